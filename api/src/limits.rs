//! Every bound of the HTTP side, with its reason.

use std::time::Duration;

/// Largest request body. The biggest legitimate one registers a VM with 256 disks (about 40 KiB);
/// a body is held in memory whole, so the bound is the cost of one hostile request.
pub const MAX_BODY_BYTES: usize = 1 << 20;

/// How long `stop` waits for HTTP requests that are being answered. A completion fsyncs within
/// its request, and a slow disk may take this long; after that the process would look hung.
pub const HTTP_DRAIN: Duration = Duration::from_secs(30);

/// How long `stop` waits for NBD sessions that are being answered: one flush of a slow disk.
pub const NBD_DRAIN: Duration = Duration::from_secs(60);

/// How long a command line client waits for the hub to accept its connection.
pub const CLIENT_CONNECT: Duration = Duration::from_secs(10);

/// Entries of the audit log on one page when the caller names no other number: what people read at once.
pub const AUDIT_PAGE_ROWS: u32 = 100;

/// Entries of the audit log for callers who are not known, per minute: enough to see an attempt, and a flood of them takes a
/// week to push the others out. Every one is in the log of the process.
pub const AUDITED_STRANGERS_PER_MINUTE: u32 = 10;

/// Longest request id that is taken from a caller, in bytes: a UUID has 36, a trace id of W3C 55.
pub const REQUEST_ID_BYTES_MAX: usize = 64;

/// Pause between two comments that keep a silent stream of events alive: proxies cut what is silent for half a minute.
pub const HEARTBEAT: Duration = Duration::from_secs(15);
