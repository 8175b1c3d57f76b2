//! Every bound of the engine, each with its reason. Reaching one is an error that names it.

use std::time::Duration;

/// Longest id of any kind, in characters: the legacy schema stores ids as `VARCHAR(64)`.
pub const ID_CHARS_MAX: usize = 64;

/// Longest change id, in bytes: the legacy schema stores it as `VARCHAR(255)`.
pub const CHANGE_ID_BYTES_MAX: usize = 255;

/// Longest export name that we make, in bytes. The NBD protocol allows 4096, but a name also has to fit
/// a command line and a log line; a backup id plus `-disk<index>` needs less than half of this.
pub const EXPORT_NAME_BYTES_MAX: usize = 192;

/// Longest name of a VM, host, data centre, repository or user, in characters: `VARCHAR(255)` in the legacy schema.
pub const NAME_CHARS_MAX: usize = 255;

/// Longest inventory path of a VM, in characters: `VARCHAR(500)` in the legacy schema.
pub const VM_PATH_CHARS_MAX: usize = 500;

/// Longest path of an image file, in bytes: `VARCHAR(512)` in the legacy schema.
pub const IMAGE_PATH_BYTES_MAX: usize = 512;

/// Longest encrypted password, in bytes. A 4 KiB secret stays well below it after encryption and base64.
pub const SEALED_PASSWORD_BYTES_MAX: usize = 8192;

/// Longest name of a phase, in characters: `VARCHAR(50)` in the legacy schema.
pub const PHASE_CHARS_MAX: usize = 50;

/// Longest error text that a row keeps, in bytes. A longer one is cut: the log has all of it.
pub const ERROR_TEXT_BYTES_MAX: usize = 4096;

/// Most disks of one VM. vSphere allows 4 PVSCSI controllers with 64 disks each, 4 NVMe controllers with 64 and
/// 4 SATA controllers with 30.
pub const DISKS_PER_VM_MAX: usize = 4 * 64 + 4 * 64 + 4 * 30;

/// Largest virtual disk, in bytes. vSphere stops at 62 TiB; 64 TiB leaves room for other sources and keeps sums
/// over all disks of a VM far below 2^63, which is where the database's integers end.
pub const DISK_CAPACITY_BYTES_MAX: u64 = 64 << 40;

/// Most layers of a chain. An incremental on top of a chain this long starts a new one: every layer is an open
/// file while a point is read, and a restore depends on all of them. Daily increments reach it after 8 months.
pub const CHAIN_DEPTH_MAX: u32 = 250;

/// Largest page of a list, in rows: bounds memory and the time that one request holds a reader.
pub const PAGE_ROWS_MAX: u32 = 1000;

/// Most dependents that are looked up when a backup is to be deleted: one is enough to refuse, the rest is for the text.
pub const DEPENDENTS_ROWS_MAX: u32 = 1000;

/// Most rows of an inventory list (VMs, repositories): four times the VMs of the largest vCenter, which is 10 000 per
/// host cluster.
pub const INVENTORY_ROWS_MAX: u32 = 40_000;

/// Most points of one chain view: more than any chain can hold before it is cut at [`CHAIN_DEPTH_MAX`].
pub const CHAIN_VIEW_ROWS_MAX: u32 = 2 * CHAIN_DEPTH_MAX;

/// Most ids that are tried for one name within one second before giving up.
pub const ID_ATTEMPTS_MAX: u32 = 1000;

/// Connections that read the database at the same time. Reads are short; more would only wait for the disk.
pub const DATABASE_READERS_MAX: u32 = 4;

/// How long a statement waits for the database's lock, in milliseconds. Only another process can hold it longer
/// than a moment, because the hub itself has one writer.
pub const DATABASE_BUSY_TIMEOUT_MS: u64 = 10_000;

/// How long a call waits for a free connection, in milliseconds, before the database counts as unavailable.
pub const DATABASE_ACQUIRE_TIMEOUT_MS: u64 = 30_000;

/// Longest piece of a file name that comes from a name in the inventory, in bytes: with the rest of an image's name it
/// stays below the 255 bytes that filesystems take.
pub const NAME_COMPONENT_BYTES_MAX: usize = 100;

/// Most images of one disk that may be named within one second. Two happen when a backup is repeated at once.
pub const IMAGES_PER_SECOND_MAX: u32 = 100;

/// Size of a cluster of an image, in bytes: what qemu-img makes, and what legacy chains have.
pub const IMAGE_CLUSTER_BYTES: u32 = 64 << 10;

/// Most files that a walk through a repository looks at: 40 000 VMs with hundreds of points would stay below it, and
/// the list of names still fits memory.
pub const REPOSITORY_FILES_MAX: usize = 10_000_000;

/// Most devices that are served at once: every disk of the largest VM, for many VMs at a time.
pub const EXPORTS_MAX: usize = 16_384;

/// Longest range whose extents are looked up for one question, in bytes. The protocol allows an answer for a prefix,
/// and at 64 KiB clusters this is 16 384 runs at worst.
pub const EXTENT_QUERY_BYTES_MAX: u64 = 1 << 30;

/// Shortest read that is looked up in the tables first, in bytes, because it may be all zero: a cluster of most images.
pub const ZEROES_READ_BYTES_MIN: u64 = 64 << 10;

/// How long a call to a node may take to connect, in seconds: it is on the same host or behind a tunnel.
pub const NODE_CONNECT_TIMEOUT_S: u64 = 10;

/// How long a call to a node may take in all, in seconds: it answers once its client is started, but hypervisors behind
/// it were seen to need 17 seconds.
pub const NODE_CALL_TIMEOUT_S: u64 = 60;

/// How long a node may take to say that it is well, in seconds: it does nothing for that.
pub const NODE_HEALTH_TIMEOUT_S: u64 = 10;

/// Pauses before a node that could not be connected to is tried again: long enough for a tunnel that is being set up anew to
/// come back, short enough for a caller that waits. Nothing was sent, so nothing can be done twice.
pub const NODE_CONNECT_PAUSES: [Duration; 2] =
    [Duration::from_millis(250), Duration::from_millis(1000)];

/// How much of a node's refusal an error repeats, in bytes.
pub const NODE_ANSWER_BYTES_MAX: usize = 512;

/// How much is read at a time while a device is copied or compared, in bytes: large enough for a disk to stream, small
/// enough for the processor's cache.
pub const COPY_PIECE_BYTES: usize = 1 << 20;

/// Threads that compress one image at a time: each holds a piece and a cluster, and others work here, too.
pub const COMPRESS_THREADS_MAX: usize = 8;

/// Blocks of zeroes of this size are left out of a raw copy, in bytes.
pub const SPARSE_BLOCK_BYTES: usize = 64 << 10;

/// Most runs that a map lists: a few hundred megabytes of memory; only tiny clusters or a badly broken up disk reach it.
pub const MAP_EXTENTS_MAX: usize = 4 << 20;

/// Least free space of a repository for a backup to start, in bytes: enough for the tables of empty images. How much data
/// will come nobody knows.
pub const REPOSITORY_RESERVE_BYTES: u64 = 4 << 20;

/// First pause before an end that the database refused is recorded again: a full disk may have space in a moment.
pub const RECORD_RETRY_FIRST: Duration = Duration::from_millis(200);

/// Longest pause between such tries.
pub const RECORD_RETRY_LAST: Duration = Duration::from_secs(30);

/// Most mount options of a share: more than mount(8), nfs(5) and mount.cifs(8) know together is a mistake.
pub const MOUNT_OPTIONS_MAX: usize = 64;

/// Longest retention, in days: a hundred years.
pub const RETENTION_DAYS_MAX: u32 = 36_525;

/// How much of a mounter's complaint an error repeats, in characters.
pub const MOUNT_ERROR_CHARS_MAX: usize = 300;

/// How long mounting may take, in seconds: what the legacy hub allowed.
pub const MOUNT_TIMEOUT_S: u32 = 30;

/// How long a look at a repository's storage may take: a share whose server is away never answers, and the others are to be
/// shown.
pub const REPOSITORY_LOOK: Duration = Duration::from_secs(5);

/// Entries of the audit log that are kept: what a hub with a thousand backups a day does in two months. The trigger that
/// guards the log in the database has the same number.
pub const AUDIT_ROWS_MAX: i64 = 100_000;

/// How much of an object an entry of the audit log keeps, in characters: an id and the name of a VM.
pub const AUDIT_OBJECT_CHARS_MAX: usize = 400;

/// Longest name of a token, in characters: it stands in every row of the audit log that its holder causes.
pub const TOKEN_NAME_CHARS_MAX: usize = 100;

/// Most tokens: one for each of the VMs that are backed up at a time and for everybody who works here. When they are used
/// up, those of ended jobs go.
pub const TOKENS_MAX: u32 = 10_000;

/// How long a client may take from the start of a backup to its first sign: switching on change tracking and a quiesced
/// snapshot of a busy VM were seen to take minutes, and neither is reported. Configurable.
pub const START_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// How long a client may neither send nor say anything. The legacy hub gave up 300 s after the last report; three times
/// that, because a hypervisor may compute the changes of a large disk for minutes without a word. Configurable.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// How long a client that had connections may have none. Between two disks there is none for as long as it takes to open
/// the next; the figure is the legacy hub's for a client without reports. Configurable.
pub const GONE_GRACE: Duration = Duration::from_secs(5 * 60);

/// Longest time that one look at a running backup counts, however long ago the last one was: it is far above the interval
/// and below every limit, so that a clock that is set, or a machine that slept, does not end all backups at once.
pub const WATCH_STEP_MAX: Duration = Duration::from_secs(60);

/// Pause between two looks at the running backups: what live views show is at most this old.
pub const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// Shortest time between two records of a running backup's progress, in seconds: a crash loses at most so much of its
/// accounting, and hundreds of running backups do not keep the database busy.
pub const RECORD_INTERVAL_S: i64 = 10;

/// Events that are kept for a live view that is slow: some minutes of a busy hub. What is older is lost to it, and it is
/// told so.
pub const EVENTS_KEPT: usize = 1024;

/// Most live views at a time: each is an open connection, and people look at few.
pub const SUBSCRIBERS_MAX: usize = 256;

/// Most copy rules of one policy: each names another repository, and a request that names more is a mistake.
pub const COPY_RULES_PER_POLICY_MAX: usize = 32;

/// Most policies: as many as there can be VMs that each have their own.
pub const POLICIES_MAX: u32 = 10_000;

/// Longest retention of a policy in days, and largest priority of a rule: `INT` in the legacy schema.
pub const POLICY_NUMBER_MAX: u32 = i32::MAX as u32;
