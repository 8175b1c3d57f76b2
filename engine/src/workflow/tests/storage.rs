//! A repository that breaks under a running backup.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use nbd_server::{ErrorCode, Export};
use qcow2::Storage;

use super::world::*;
use crate::workflow::Hooks;
use crate::*;

/// A disk that is full after so many bytes, or whose sync fails.
#[derive(Debug)]
struct Broken {
    inner: Arc<dyn Storage>,
    faults: Arc<Faults>,
    is_sidecar: bool,
}

#[derive(Debug)]
struct Faults {
    room_bytes: AtomicU64,
    sync_fails: AtomicBool,
    /// Only the files that take hashes have the faults.
    spares_images: AtomicBool,
    made: AtomicUsize,
}

impl Faults {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            room_bytes: AtomicU64::new(u64::MAX),
            sync_fails: AtomicBool::new(false),
            spares_images: AtomicBool::new(false),
            made: AtomicUsize::new(0),
        })
    }

    fn hooks(self: &Arc<Self>) -> Hooks {
        let faults = Arc::clone(self);
        let wrap = move |inner| {
            Arc::new(Broken {
                inner,
                faults: Arc::clone(&faults),
                // An image is made first, then the sidecar that takes its hashes.
                is_sidecar: faults.made.fetch_add(1, Ordering::SeqCst) % 2 == 1,
            }) as Arc<dyn Storage>
        };
        Hooks {
            storage: Some(Arc::new(wrap)),
            ..Hooks::default()
        }
    }
}

impl Broken {
    fn is_hit(&self) -> bool {
        self.is_sidecar || !self.faults.spares_images.load(Ordering::SeqCst)
    }
}

impl Storage for Broken {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(offset, into)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let len = if self.is_hit() { data.len() as u64 } else { 0 };
        let room =
            self.faults
                .room_bytes
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |room| {
                    room.checked_sub(len)
                });
        room.map_err(|_| io::Error::from(io::ErrorKind::StorageFull))?;
        self.inner.write_at(offset, data)
    }
    fn len_bytes(&self) -> io::Result<u64> {
        self.inner.len_bytes()
    }
    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.inner.set_len(len_bytes)
    }
    fn sync(&self) -> io::Result<()> {
        if self.is_hit() && self.faults.sync_fails.load(Ordering::SeqCst) {
            return Err(io::Error::other("the disk is on fire"));
        }
        self.inner.sync()
    }
    fn start_writeback(&self, offset: u64, len_bytes: u64) {
        self.inner.start_writeback(offset, len_bytes);
    }
}

async fn world_with(faults: &Arc<Faults>) -> (World, Engine) {
    let world = World::new();
    let engine = world.open_with(faults.hooks()).await;
    engine.register_vm(vm(VM, &SIZES)).await.unwrap();
    (world, engine)
}

/// Resolves when the job has ended.
async fn ended(engine: &Engine, id: &BackupId) {
    if let Some(job) = engine.hub.job(id) {
        tokio::time::timeout(Duration::from_secs(30), job.ended.cancelled())
            .await
            .expect("the job ends");
    }
}

async fn assert_failed(world: &World, engine: &Engine, id: &BackupId, why: &str) {
    let backup = engine.backup(id).await.unwrap();
    assert_eq!(backup.status, JobStatus::Failed);
    assert!(
        backup.error_message.as_ref().unwrap().contains(why),
        "{backup:?}"
    );
    assert_eq!(backup.intent, None);
    assert!(world.files().is_empty(), "{:?}", world.files());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_fails_the_job_at_once() {
    let faults = Faults::new();
    let (world, engine) = world_with(&faults).await;
    let started = start(&engine, RequestedType::Full).await;
    let id = &started.backup.id;
    let (first, second) = (
        connect(&engine, &started.disks[0]).await,
        connect(&engine, &started.disks[1]).await,
    );
    write(&first, 0, &[1; 64 * KIB]).await;
    faults.room_bytes.store(100 * KIB as u64, Ordering::SeqCst);
    let mut refused = None;
    for piece in 1..20 {
        let data = bytes::Bytes::from(vec![2; 64 * KIB]);
        if let Err(error) = first.write(piece * 64 * KIB as u64, data).await {
            refused = Some(error.code);
            break;
        }
    }
    assert_eq!(refused, Some(ErrorCode::NOSPC));
    ended(&engine, id).await;
    // The other disk of the backup is fenced, too, and every connection is cut.
    assert_eq!(second.flush().await.unwrap_err().code, ErrorCode::SHUTDOWN);
    second.withdrawn().await;
    assert_failed(&world, &engine, id, "no space left").await;
    let error = engine
        .complete_disk(completion(id, 0, "a/1"))
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict);
    faults.room_bytes.store(u64::MAX, Ordering::SeqCst);
    let started = start(&engine, RequestedType::Full).await;
    finish(&engine, &started, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_that_fails_while_completing_fails_the_job() {
    let faults = Faults::new();
    let (world, engine) = world_with(&faults).await;
    let started = start(&engine, RequestedType::Full).await;
    let id = &started.backup.id;
    write(&connect(&engine, &started.disks[0]).await, 0, &[1; 4096]).await;
    complete(&engine, id, 1, "a/1").await;
    faults.sync_fails.store(true, Ordering::SeqCst);
    let error = engine
        .complete_disk(completion(id, 0, "a/1"))
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    assert_failed(&world, &engine, id, "failed to seal image").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hashes_that_cannot_be_kept_fail_the_job() {
    for is_full in [true, false] {
        let faults = Faults::new();
        let (world, engine) = world_with(&faults).await;
        faults.spares_images.store(true, Ordering::SeqCst);
        let started = start(&engine, RequestedType::Full).await;
        let id = &started.backup.id;
        let kind = if is_full {
            faults.room_bytes.store(0, Ordering::SeqCst);
            ErrorKind::NoSpace
        } else {
            faults.sync_fails.store(true, Ordering::SeqCst);
            ErrorKind::Unavailable
        };
        // The client's data is taken, whatever becomes of its hash.
        write(
            &connect(&engine, &started.disks[0]).await,
            0,
            &[1; 64 * KIB],
        )
        .await;
        let error = engine
            .complete_disk(completion(id, 0, "a/1"))
            .await
            .unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert_failed(&world, &engine, id, "failed to seal image").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hashes_that_were_lost_on_the_way_are_made_again() {
    let faults = Faults::new();
    let (world, engine) = world_with(&faults).await;
    faults.spares_images.store(true, Ordering::SeqCst);
    let disks = disks(&mut seeded(31));
    let started = start(&engine, RequestedType::Full).await;
    faults.room_bytes.store(100, Ordering::SeqCst);
    for (prepared, content) in started.disks.iter().zip(&disks) {
        push_everything(&connect(&engine, prepared).await, content).await;
    }
    faults.room_bytes.store(u64::MAX, Ordering::SeqCst);
    let id = finish(&engine, &started, 1).await;
    world.assert_hashed("after a full disk");
    world.assert_point(&engine, &id, &disks).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_full_from_the_start_refuses_the_backup() {
    let faults = Faults::new();
    let (world, engine) = world_with(&faults).await;
    faults.room_bytes.store(10, Ordering::SeqCst);
    let error = engine
        .start_backup(request(RequestedType::Full))
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::NoSpace, "{error}");
    assert!(world.files().is_empty(), "{:?}", world.files());
    assert!(
        engine
            .backups(BackupFilter::default())
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_published_whole_or_not_at_all() {
    let mut random = seeded(30);
    let world = World::new();
    let engine = world.open_with_vm().await;
    let disks = disks(&mut random);
    let started = start(&engine, RequestedType::Full).await;
    let id = &started.backup.id;
    for (prepared, content) in started.disks.iter().zip(&disks) {
        push_everything(&connect(&engine, prepared).await, content).await;
    }
    complete(&engine, id, 0, "a/1").await;
    // Somebody puts a file where the second image is to go.
    std::fs::write(&started.disks[1].image_path, "not ours").unwrap();
    let error = engine
        .complete_disk(completion(id, 1, "a/2"))
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict, "{error}");
    assert_eq!(engine.backup(id).await.unwrap().status, JobStatus::Failed);
    assert_eq!(world.files().len(), 1, "{:?}", world.files());
    assert_eq!(
        std::fs::read(&started.disks[1].image_path).unwrap(),
        b"not ours"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutting_down_fails_what_runs() {
    let world = World::new();
    let engine = world.open_with_vm().await;
    let started = start(&engine, RequestedType::Full).await;
    let session = connect(&engine, &started.disks[0]).await;
    engine.shutdown().await;
    assert_eq!(session.flush().await.unwrap_err().code, ErrorCode::SHUTDOWN);
    assert!(
        try_connect(&engine, started.disks[1].export_name.as_str())
            .await
            .is_err()
    );
    let error = engine
        .start_backup(request(RequestedType::Full))
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    engine.shutdown().await;
    drop(engine);
    let engine = world.open().await;
    assert_failed(&world, &engine, &started.backup.id, "shut down").await;
}
