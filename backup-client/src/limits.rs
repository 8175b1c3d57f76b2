//! Every bound of the client, with its reason.
//!
//! Memory of one disk in transfer: `QUEUED_PIECES` pieces wait, `connections × REQUESTS_PER_CONNECTION` are on the
//! wire and one window is being read, each at most `WINDOW_BYTES`: 21 MiB with four connections.

use std::time::Duration;

/// Granularity of change tracking, and of zero and equality decisions: the hub's default cluster, so that a changed
/// block never causes a partial cluster write.
pub(crate) const BLOCK_BYTES: usize = 64 << 10;

/// What is read from the source in one piece, and the longest WRITE: enough to amortise a round trip, small enough
/// to stay in the cache between reading, hashing and sending.
pub(crate) const WINDOW_BYTES: usize = 1 << 20;

/// The longest run of zeroes or unchanged blocks told in one piece: a hole of a terabyte becomes 4096 requests, and
/// the progress still moves.
pub(crate) const RUN_BYTES: u64 = 256 << 20;

/// Pieces that wait between reading and sending; covers the jitter of both.
pub(crate) const QUEUED_PIECES: usize = 4;

/// Requests in flight on one connection: hides the latency of a tunnel without buffering much.
pub(crate) const REQUESTS_PER_CONNECTION: usize = 4;

/// Connections to one export; more only compete for the same image.
pub(crate) const MAX_CONNECTIONS: usize = 16;

/// Disks of one VM; four full SCSI controllers.
pub(crate) const MAX_DISKS: usize = 60;

/// Longest VM name, disk id or backup id that a tracking state records: they share the 4 KiB header.
pub(crate) const MAX_STATE_NAME_BYTES: usize = 1024;

/// Bytes of an escaped name before it is cut and completed by its hash: file names end at 255 bytes.
pub(crate) const MAX_FILE_STEM_BYTES: usize = 150;

/// Time to reach a peer at all.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Time for the answer to an ordinary REST call; starting a backup opens images and may wait for a disk.
pub(crate) const REST_TIMEOUT: Duration = Duration::from_secs(120);

/// Time for `complete`: the hub seals and publishes the image inside the call.
pub(crate) const COMPLETE_TIMEOUT: Duration = Duration::from_secs(4 * 3600);

/// Tries of `complete` when the connection fails: the call is idempotent, and a backup of hours hangs on it.
pub(crate) const COMPLETE_TRIES: u32 = 3;

/// Pause between two reports to the hub. Reading what has not changed sends nothing for a long time, and a hub gives a silent
/// client up after minutes.
pub(crate) const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Time for the answer to a report: the next one comes anyway.
pub(crate) const REPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest body of a REST answer that is read.
pub(crate) const MAX_REST_BODY_BYTES: usize = 16 << 20;

/// Time for the NBD handshake.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);

/// Time for the reply to one READ, WRITE or WRITE_ZEROES; longer means that the peer has vanished silently.
pub(crate) const REPLY_TIMEOUT: Duration = Duration::from_secs(300);

/// Time for the reply to FLUSH: a slow repository may hold gigabytes of dirty pages.
pub(crate) const FLUSH_TIMEOUT: Duration = Duration::from_secs(3600);

/// Requests that one NBD connection takes before a caller waits.
pub(crate) const MAX_IN_FLIGHT: usize = 64;

/// Longest READ that the client asks for at once; bounds the memory of its reply.
pub(crate) const MAX_READ_BYTES: u32 = 32 << 20;
