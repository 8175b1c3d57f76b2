//! Every bound of the crate, with its reason.

use std::time::Duration;

/// Longest name, description or text in a string field (NBD proto, "Values": strings are at most
/// 4096 bytes).
pub const MAX_STRING_BYTES: usize = 4096;

/// Longest option payload that is kept in memory: a name of full length and a handful of queries.
pub const MAX_OPTION_BYTES: u32 = 16 * 1024;

/// Longest option payload that is skipped to answer `NBD_REP_ERR_TOO_BIG`. Past that a client is
/// not confused but hostile, and is cut off.
pub const MAX_SKIPPED_OPTION_BYTES: u32 = 32 * 1024 * 1024;

/// Options on one connection before an export is chosen. A client that lists a server and asks
/// about each export stays far below.
pub const MAX_OPTIONS: u32 = 1024;

/// Longest payload of one option reply that a client takes.
pub const MAX_OPTION_REPLY_BYTES: u32 = 64 * 1024;

/// Option replies that a client takes for one option: a listing of this many exports.
pub const MAX_OPTION_REPLIES: u32 = 65_536;

/// Smallest block a client may address. 1, because clients derive lengths from disk sizes that are
/// no multiple of anything.
pub const MIN_BLOCK_BYTES: u32 = 1;

/// Block size that is advised: the cluster size of the images behind most exports.
pub const PREFERRED_BLOCK_BYTES: u32 = 64 * 1024;

/// Longest payload that is advertised.
pub const MAX_BLOCK_BYTES: u32 = 32 * 1024 * 1024;

/// Longest payload of a READ or WRITE that is accepted: several clients in the field go past what
/// is advertised, up to this.
pub const MAX_PAYLOAD_BYTES: u32 = 64 * 1024 * 1024;

/// What is handed to an export in one call, at most. Small enough to stay in a processor cache
/// between the socket and the file, large enough that the cost of a call does not count.
/// Pieces are cut at multiples of this offset, so that they never split a cluster needlessly.
pub const PIECE_BYTES: u32 = 256 * 1024;

/// What one call of zero or trim covers, at most, so that other requests find their turn.
pub const ZERO_PIECE_BYTES: u32 = 32 * 1024 * 1024;

/// A reply that must be contiguous (no structured replies, or DF) is gathered in memory up to this
/// length, so that an error can still be told. Longer ones are streamed while the connection does
/// nothing else, and an error cuts the connection or the chunk.
pub const MAX_GATHERED_BYTES: u32 = 2 * 1024 * 1024;

/// Block descriptors of one context in one reply; the client asks again for the rest.
pub const MAX_DESCRIPTORS: usize = 8192;

/// What an export is asked about in one call for a block status, at most: the longest range of a
/// compact request.
pub const EXTENTS_PIECE_BYTES: u64 = 1 << 32;

/// Calls for one block status. With 64-bit lengths a client asks about a whole device; it is told
/// about a prefix, and other requests find their turn.
pub const MAX_EXTENTS_CALLS: u32 = 64;

/// Longest payload of a reply chunk that carries no data (errors, block status), as a client takes it.
pub const MAX_CHUNK_BYTES: u32 = 1024 * 1024;

/// Requests of one connection that are under way at once. Copy tools keep up to 64.
pub const IN_FLIGHT_REQUESTS: u32 = 128;

/// Payload bytes of one connection that are in memory at once, in either direction.
pub const IN_FLIGHT_BYTES: u32 = 8 * 1024 * 1024;

/// Payload bytes of all connections of a server that are in memory at once. Past it each connection
/// goes on with one small piece of its own, so that no connection can starve another.
pub const PAYLOAD_BUDGET_BYTES: u32 = 256 * 1024 * 1024;

/// The piece that a connection may always have: small, because thousands of connections that stopped
/// within a request can each hold one.
pub const RESERVED_PIECE_BYTES: u32 = 32 * 1024;

/// Free buffers that are kept for the next request, of [`PIECE_BYTES`] each.
pub const POOLED_PIECES: usize = 32;

/// Bytes that are read ahead of a request header. It also takes small payloads whole.
pub const READ_AHEAD_BYTES: usize = 16 * 1024;

/// Replies that wait for the socket of one connection; past that their requests wait.
pub const QUEUED_REPLIES: usize = 64;

/// Sessions of a server: connections past their handshake. Four agents' idle connections for each
/// disk of a thousand VMs; an idle one costs about 16 KiB.
pub const MAX_SESSIONS: u32 = 16_384;

/// Connections of a server that are still in their handshake. One more takes the place of the
/// oldest, so this is how many newcomers a slow but honest client can be overtaken by.
pub const MAX_HANDSHAKES: u32 = 4096;

/// The same from one address, so that one machine does not take all places. Clients behind a tunnel
/// or on this machine have no address of their own and are not limited by it.
pub const MAX_HANDSHAKES_PER_ADDRESS: u32 = 256;

/// Handshakes that are let go at once when descriptors run out: enough that accepting goes on, few
/// enough that clients that will answer are probably not among them.
pub const EVICTED_AT_ONCE: usize = 64;

/// The part of a process's descriptors that connections may take, in quarters; the rest is for the
/// images, a chain of which has up to hundreds of files.
pub const CONNECTION_QUARTERS: u64 = 3;

/// The part of the connections' descriptors that handshakes may take: one in so many.
pub const HANDSHAKES_ONE_IN: u64 = 4;

/// Connections to one export. Copy tools open 4 to 16; agents leave idle ones open for hours.
pub const MAX_CONNECTIONS_PER_EXPORT: u32 = 64;

/// From accept to the end of the handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a request header, or a piece of a payload, may take from its first byte to its last. A
/// client has nothing to think about there, so only the way to it can be slow: tunnels come back
/// within minutes or not at all, and 256 KiB in five minutes is no backup. Between two requests a
/// client may be silent for ever.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// How long a client may leave its replies unread, without taking a single byte. Longer than
/// [`STALL_TIMEOUT`], because it may wait for a disk of its own that hangs; but it holds payload
/// memory meanwhile.
pub const UNREAD_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// Bytes that TLS holds of one connection before the socket takes them: four records. A client that
/// never reads costs this much beside [`IN_FLIGHT_BYTES`].
pub const TLS_BUFFER_BYTES: usize = 64 * 1024;

/// Longest name of a client's certificate that is told (RFC 5280, `ub-common-name`).
pub const MAX_PEER_NAME_CHARS: usize = 64;

/// How long a session that must end may still answer what is in flight before its socket is cut.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest pause of the accept loop after the system refused a socket (out of descriptors).
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Least time between two log lines about sockets that the system refuses.
pub const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);

/// Connections the kernel holds for the accept loop.
pub const LISTEN_BACKLOG: u32 = 1024;
