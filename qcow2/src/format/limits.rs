//! Every bound of this crate, with its reason.
//!
//! What one open image takes, at its most hostile, is the sum of: L1 pages 2 MiB, refcount table 8 MiB and once more
//! while it moves, filter 1 MiB, places of structures 5 MiB, pending frees 2 MiB, free runs 3 MiB, L2 tables 12 MiB and
//! those that change during a commit once more 6 MiB, refcount blocks 4 MiB and once more 4 MiB, inflated clusters
//! 4 MiB: [`MAX_IMAGE_MEMORY_BYTES`]. While an image is opened, the list of its tables takes up to 40 MiB instead of the
//! caches. A request under way takes its own buffers, and each thread beyond the first that writes a table of 2 MiB more.

/// Memory of one open image over that of the idle process, besides the buffers of requests under way, whatever the
/// image says: a hub has dozens open.
pub const MAX_IMAGE_MEMORY_BYTES: u64 = 64 << 20;
/// Smallest cluster: 512 bytes (qcow2 spec, `cluster_bits`).
pub const MIN_CLUSTER_BITS: u32 = 9;
/// Largest cluster: 2 MiB, the limit QEMU enforces.
pub const MAX_CLUSTER_BITS: u32 = 21;
/// Smallest cluster with extended L2 entries: 16 KiB (qcow2 spec, `cluster_bits`).
pub const MIN_EXTENDED_CLUSTER_BITS: u32 = 14;
/// Subclusters of a cluster with an extended L2 entry (qcow2 spec, "Extended L2 Entries").
pub const SUBCLUSTERS: u64 = 32;
/// Cluster size unless told: 64 KiB, QEMU's default and a good unit for hashing and cloning.
pub const DEFAULT_CLUSTER_BITS: u32 = 16;
/// Refcounts are at most 64 bits wide (qcow2 spec, `refcount_order`).
pub const MAX_REFCOUNT_ORDER: u32 = 6;
/// 16-bit refcounts: the only width of version 2 and the default of version 3.
pub const DEFAULT_REFCOUNT_ORDER: u32 = 4;
/// L1 tables above 32 MiB are refused, as QEMU does; 2 PiB of disk with 64 KiB clusters.
pub const MAX_L1_BYTES: u64 = 32 << 20;
/// Refcount tables above 8 MiB are refused, as QEMU does; 2 PiB of file with 64 KiB clusters.
pub const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// Longest backing file name (qcow2 spec).
pub const MAX_BACKING_NAME_BYTES: u32 = 1023;
/// Part of the first cluster that other readers see of the header: qcow2-rs reads no more, however large the cluster.
pub const HEADER_READ_BYTES: u64 = 64 << 10;
/// More internal snapshots than QEMU allows.
pub const MAX_SNAPSHOTS: u32 = 65_536;
/// The snapshot table as QEMU bounds it: 1 KiB for each of the snapshots it allows.
pub const MAX_SNAPSHOT_TABLE_BYTES: u64 = 64 << 20;
/// Persistent bitmaps as QEMU bounds them.
pub const MAX_BITMAPS: u32 = 65_535;
/// The bitmap directory as QEMU bounds it: 64 bytes and a name for each bitmap it allows.
pub const MAX_BITMAP_DIRECTORY_BYTES: u64 = 65_535 * 1024;
/// A bitmap table covers at most this many clusters of bits; as QEMU bounds it.
pub const MAX_BITMAP_TABLE_ENTRIES: u32 = 1 << 27;
/// Host offsets have 56 bits (qcow2 spec, L1 and L2 entries).
pub const MAX_HOST_OFFSET: u64 = 1 << 56;
/// Longest seal: three identifiers and their JSON; the rest of cluster 0 belongs to others.
pub const MAX_SEAL_BYTES: usize = 4096;

/// Layers of a chain: every layer is an open file, and retention merges long before this.
pub const MAX_CHAIN_DEPTH: usize = 256;
/// Clusters of the finest layer that one flattened span covers: 512 MiB of disk with 64 KiB clusters,
/// at most this many extents, 64 KiB of L2 read per layer.
pub const SPAN_CLUSTERS: u64 = 8192;
/// Extents kept over all flattened spans of a chain: 40 bytes each, 20 MiB together. A span counts two more, which is
/// what its place in the cache takes, so that a thin disk of any size is within the bound, too.
pub const MAX_CACHED_EXTENTS: usize = 512 * 1024;
/// Memory of one chain over that of the idle process, besides the buffers of requests under way: the extents it keeps,
/// those it is flattening, the clusters it inflated last, the hashes it asked for, and what each of its layers says of
/// itself.
pub const MAX_CHAIN_MEMORY_BYTES: u64 = 32 << 20;

/// Pages of the L1 table kept in memory: all of it up to 128 TiB of disk with 64 KiB clusters.
pub const MAX_CACHED_L1_BYTES: u64 = 2 << 20;
/// Bits of the filter that tells guest data from metadata: 1 MiB, exact for files of up to 512 GiB with 64 KiB
/// clusters; beyond, a hit is looked up in the tables.
pub const METADATA_FILTER_BITS: u64 = 1 << 23;
/// L1 entries, of the active table and of internal snapshots together, whose L2 tables are known as metadata: what the
/// largest active table may have. The L2 tables of snapshots beyond are protected by their refcounts alone.
pub const MAX_INDEXED_L1_ENTRIES: u64 = MAX_L1_BYTES / 8;
/// Changed L2 tables in memory that force a commit: 4 MiB describe 32 GiB of disk with 64 KiB clusters.
pub const MAX_DIRTY_L2_BYTES: u64 = 4 << 20;
/// L2 tables kept in memory together, changed or not, before clean ones are dropped: 96 GiB of disk with 64 KiB clusters.
pub const MAX_CACHED_L2_BYTES: u64 = 12 << 20;
/// Changed refcount blocks in memory that force a commit.
pub const MAX_DIRTY_REFCOUNT_BYTES: u64 = 2 << 20;
/// Refcount blocks kept in memory together before clean ones are dropped.
pub const MAX_CACHED_REFCOUNT_BYTES: u64 = 4 << 20;
/// What a table or block in memory takes beside its bytes: with clusters of 512 bytes that is a third of it.
pub const CACHE_ENTRY_BYTES: u64 = 256;
/// Clusters waiting to be freed by the next commit; more force one.
pub const MAX_PENDING_FREES: usize = 128 * 1024;
/// Commits that one flush adds to lower refcounts, where they are spread over more blocks than fit into memory; what is
/// left waits for the next flush.
pub const MAX_FREEING_COMMITS: usize = 64;
/// Clusters of a request that are decided together: each takes some 200 bytes of memory meanwhile.
pub const MAX_PART_CLUSTERS: u64 = 8192;
/// Runs of free clusters that are remembered for reuse; more stay free on disk, unused until the next open.
pub const MAX_FREE_RUNS: usize = 64 * 1024;
/// At open, refcount blocks looked at from the end of the file for the last cluster in use.
pub const MAX_TRAILING_BLOCKS: usize = 64;

/// Deflate's level: zlib's own default.
pub const ZLIB_LEVEL: u32 = 6;
/// Deflate's window as an exponent: what QEMU reads is a window of 4 KiB.
pub const ZLIB_WINDOW_BITS: u8 = 12;
/// zstd's level: its own default.
pub const ZSTD_LEVEL: i32 = 3;
/// Compressed clusters begin and end at sectors, which a disk writes at once: no write touches a neighbour's.
pub const COMPRESSED_ALIGN_BYTES: usize = 512;
/// Inflated clusters that a chain or an image remembers: small reads of a compressed cluster inflate it once.
pub const MAX_INFLATED_BYTES: usize = 4 << 20;

/// Bytes of the parent read at once to compare them with a write, at least one cluster: no thread holds more for it.
pub const MAX_COMPARE_BYTES: u64 = 256 * 1024;
/// Contiguous data from which on early writeback is worth a system call.
pub const MIN_WRITEBACK_BYTES: u64 = 128 * 1024;
/// Longest name of an image in its hash sidecar: a point id; the header is one sector.
pub const MAX_HASH_IDENTITY_BYTES: usize = 255;
/// Pages of a hash sidecar, of 4096 clusters each: 2 PiB of disk with 64 KiB clusters, as far as an L1 table goes. While
/// an image is written each costs a byte of memory.
pub const MAX_HASH_PAGES: u64 = 1 << 23;
/// Part of a sidecar's directory that is in memory at once.
pub const HASH_DIRECTORY_PIECE_BYTES: usize = 64 * 1024;
/// Pages of hashes that a chain remembers, over all its layers: 64 KiB each, 2 MiB together, which is 8 GiB of disk.
pub const MAX_CACHED_HASH_PAGES: usize = 32;
/// Neighbouring clusters that belong to one part of a disk that is verified in parts: 4 MiB with 64 KiB clusters.
pub const HASH_SUBSET_RUN_CLUSTERS: u64 = 64;
/// Neighbouring data read at once to be hashed, at least one cluster.
pub const MAX_HASH_READ_BYTES: u64 = 1 << 20;
/// Host clusters whose references one pass of `check` counts: 20 MiB of counters and kinds, 256 GiB of file with
/// 64 KiB clusters; larger files take more passes.
pub const CHECK_WINDOW_CLUSTERS: u64 = 4 << 20;
/// Host clusters of a file that is checked, as QEMU bounds them: 128 TiB with 64 KiB clusters, 512 passes.
pub const MAX_CHECKED_CLUSTERS: u64 = 1 << 31;
/// Findings kept as text; all are counted.
pub const MAX_FINDINGS: usize = 100;
