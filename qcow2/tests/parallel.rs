//! Requests on different clusters are inside the storage at the same time: proved by threads that wait there for each
//! other, not by a clock.
#![expect(clippy::unwrap_used, reason = "a panic in a test is its report")]

use std::io::{Error, ErrorKind, Result};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use qcow2::{CreateOptions, Image, MemoryStorage, Storage};

const CLUSTER: usize = 4096;
const THREADS: usize = 4;
/// Only bounds a failure.
const DEADLINE: Duration = Duration::from_secs(30);

/// Guest data is written, or read, only when all threads are there to do so.
#[derive(Debug, Default)]
struct Meeting {
    file: MemoryStorage,
    /// Those who came; `None` while nobody has to wait.
    inside: Mutex<Option<usize>>,
    came: Condvar,
}

impl Meeting {
    fn call(&self) {
        *self.inside.lock().unwrap() = Some(0);
    }

    fn wait_for_all(&self) -> Result<()> {
        let mut inside = self.inside.lock().unwrap();
        let Some(count) = inside.as_mut() else {
            return Ok(());
        };
        *count += 1;
        self.came.notify_all();
        let missing = |inside: &mut Option<usize>| inside.is_some_and(|count| count < THREADS);
        let waited = self.came.wait_timeout_while(inside, DEADLINE, missing);
        if waited.unwrap().1.timed_out() {
            return Err(Error::new(ErrorKind::TimedOut, "nobody else came in"));
        }
        Ok(())
    }
}

impl Storage for Meeting {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        if into.len() == CLUSTER - 1 {
            self.wait_for_all()?;
        }
        self.file.read_at(offset, into)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        // Tables have many values, data has one.
        if data.len() == CLUSTER && data[0] != 0 && data.iter().all(|byte| *byte == data[0]) {
            self.wait_for_all()?;
        }
        self.file.write_at(offset, data)
    }

    fn len_bytes(&self) -> Result<u64> {
        self.file.len_bytes()
    }

    fn set_len(&self, len_bytes: u64) -> Result<()> {
        self.file.set_len(len_bytes)
    }

    fn sync(&self) -> Result<()> {
        self.file.sync()
    }

    fn start_writeback(&self, _offset: u64, _len_bytes: u64) {}
}

#[test]
fn disjoint_requests_are_inside_the_storage_at_once() {
    let meeting = Arc::new(Meeting::default());
    let options = CreateOptions {
        cluster_size_bytes: u32::try_from(CLUSTER).unwrap(),
        ..CreateOptions::new((THREADS * CLUSTER) as u64)
    };
    let image = Image::create(meeting.clone(), &options, None).unwrap();
    let at = |thread: usize| (thread * CLUSTER) as u64;
    let value = |thread: usize| u8::try_from(thread + 1).unwrap();
    // Into new clusters, then in place.
    for _ in 0..2 {
        meeting.call();
        at_once(|thread| image.write(at(thread), &[value(thread); CLUSTER]).unwrap());
    }
    meeting.call();
    at_once(|thread| {
        let mut read = [0; CLUSTER - 1];
        image.read(at(thread), &mut read).unwrap();
        assert_eq!(read, [value(thread); CLUSTER - 1]);
    });
    // Readers of one cluster are not in each other's way either.
    meeting.call();
    at_once(|_| image.read(0, &mut [0; CLUSTER - 1]).unwrap());
}

fn at_once(request: impl Fn(usize) + Sync) {
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let request = &request;
            scope.spawn(move || request(thread));
        }
    });
}
