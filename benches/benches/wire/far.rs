//! One connection to a server that is 10 ms away: the pipe must stay full.
//!
//! A relay in this program holds every byte for half of that in either direction, so that neither privileges nor a kernel
//! with netem are needed; it costs all subjects the same.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use nbd_server::proto::CommandCode;

use crate::client::{Address, Load};
use crate::load;
use crate::peers::{Running, Subject};
use crate::report::Case;

/// One way: half of a round trip.
const DELAY: Duration = Duration::from_millis(5);
const PIECE_BYTES: usize = 256 << 10;
/// Pieces that are on the way at once: more than twice what the client has in flight.
const ON_THE_WAY: usize = 160;

/// Throughput of one connection with few and with many requests in flight.
pub(crate) fn cases(subjects: &[Subject], rounds: usize, mib: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    for (what, command) in [("write", CommandCode::WRITE), ("read", CommandCode::READ)] {
        for in_flight in [4, 64] {
            let load = Load {
                command,
                len_bytes: 256 << 10,
                in_flight,
                requests: (mib * 4).min(in_flight * 40),
            };
            let measure = |running: &Running| {
                let relay = relay(&running.tcp)?;
                load::run(&relay, 1, load).map(|sample| [sample.mib_per_s()])
            };
            let [figures] = Case::alternate(subjects, rounds, measure);
            let window_mib = in_flight / 4;
            cases.push(Case {
                name: format!("{what} 256 KiB, 10 ms, {in_flight} in flight ({window_mib} MiB)"),
                unit: "MiB/s",
                less: false,
                figures,
            });
        }
    }
    cases
}

/// Listens for one client and passes it on, late.
fn relay(server: &Address) -> io::Result<Address> {
    let Address::Tcp(server) = server else {
        return Err(io::Error::other("only TCP is relayed"));
    };
    let server = *server;
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || -> io::Result<()> {
        let (client, _) = listener.accept()?;
        let server = TcpStream::connect(server)?;
        for stream in [&client, &server] {
            stream.set_nodelay(true)?;
        }
        delay(client.try_clone()?, server.try_clone()?);
        delay(server, client);
        Ok(())
    });
    Ok(Address::Tcp(address))
}

/// One direction; it ends with either socket.
fn delay(from: TcpStream, to: TcpStream) {
    let (sender, receiver) = sync_channel(ON_THE_WAY);
    std::thread::spawn(move || take(from, &sender));
    std::thread::spawn(move || give(to, &receiver));
}

fn take(mut from: TcpStream, sender: &SyncSender<(Instant, Vec<u8>)>) {
    let mut piece = vec![0; PIECE_BYTES];
    while let Ok(len @ 1..) = from.read(&mut piece) {
        if sender
            .send((Instant::now() + DELAY, piece[..len].to_vec()))
            .is_err()
        {
            return;
        }
    }
}

fn give(mut to: TcpStream, receiver: &Receiver<(Instant, Vec<u8>)>) {
    for (due, piece) in receiver {
        while let Some(left) = due.checked_duration_since(Instant::now()) {
            if left.is_zero() {
                break;
            }
            std::thread::park_timeout(left);
        }
        if to.write_all(&piece).is_err() {
            return;
        }
    }
    // The other side hears of the end as late as of everything else.
    let _ = to.shutdown(Shutdown::Write);
}
