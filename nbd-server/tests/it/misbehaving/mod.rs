//! A catalogue of peers that misbehave, by name. Each is let loose on a server that serves a
//! well-behaved client at the same time; afterwards that client's data is right, the statistics tell
//! what happened, and nothing is left.
//!
//! The clock is paused: a peer that stalls for an hour costs no time.

mod handshakes;
pub(crate) mod peers;
mod requests;

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use nbd_server::Statistics;
use tokio_util::sync::CancellationToken;

use crate::peer::{Answer, Client, Server, pattern, settle};
use peers::Peers;

/// What the well-behaved client writes again and again; the peers stay away from it.
const GOOD_LEN: usize = 3 << 18;

/// Runs one peer of the catalogue to its end and looks at what it left.
async fn survive(misbehave: impl AsyncFnOnce(&Peers<'_>), seen: impl FnOnce(&Statistics)) {
    let server = Server::new();
    let mut good = server.connect().await;
    let peers = Peers::new(&server);
    let done = CancellationToken::new();
    tokio::join!(behave(&mut good, &done), async {
        misbehave(&peers).await;
        done.cancel();
    });
    peers.all_sessions_end().await;
    good.assert_good().await;
    good.hang_up().await;
    settle().await;
    let statistics = server.gate.statistics();
    seen(&statistics);
    assert_nothing_is_left(&server, &statistics);
}

/// Writes and reads back, with longer and longer pauses, until it is told to stop.
async fn behave(client: &mut Client, done: &CancellationToken) {
    let mut data = pattern(GOOD_LEN);
    let mut pause = Duration::from_secs(1);
    while !done.is_cancelled() {
        data.rotate_left(1);
        assert_eq!(client.write(0, &data).await, Answer::Done);
        let read = client.read(0, u32::try_from(GOOD_LEN).unwrap()).await;
        assert!(read.unwrap() == data, "the good client's data");
        // Under the paused clock a pause is over when nothing else can go on.
        let _ = tokio::time::timeout(pause, done.cancelled()).await;
        pause *= 2;
    }
}

fn assert_nothing_is_left(server: &Server, statistics: &Statistics) {
    let now = [
        statistics.handshaking,
        statistics.sessions,
        statistics.requests_in_flight,
        statistics.held_bytes,
    ];
    assert_eq!(now, [0; 4], "nothing is left {statistics:?}");
    let ended = statistics.handshakes_ended.total() + statistics.sessions_ended.total();
    assert_eq!(statistics.accepted, ended, "each ended once {statistics:?}");
    assert_eq!(statistics.sessions_begun, statistics.sessions_ended.total());
    let script = server.script();
    assert_eq!(script.still_open(), 0);
    assert_eq!(script.calls.load(SeqCst), 0);
    assert_eq!(script.held.load(SeqCst), 0, "bytes of reads");
}
