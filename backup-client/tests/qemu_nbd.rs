//! The NBD client against a server of other people.
#![expect(clippy::unwrap_used, reason = "a panic in a test is the report")]
#![expect(clippy::print_stderr, reason = "a test that is skipped says so")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use backup_client::nbd::{ConnectOptions, Connection, ErrorCode, NbdError, NbdUri, Target};
use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process};

const MIB: u64 = 1 << 20;

/// A running `qemu-nbd` on a raw file; ends with this value.
struct QemuNbd {
    folder: tempfile::TempDir,
    pid: Pid,
}

impl QemuNbd {
    /// `None` when it is not installed; the test says so and ends.
    fn start(size_bytes: u64, extra: &[&str]) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk.raw");
        fs::File::create(&disk)
            .unwrap()
            .set_len(size_bytes)
            .unwrap();
        let pid_file = folder.path().join("pid");
        // It forks when it accepts connections.
        let started = Command::new("qemu-nbd")
            .args(["--fork", "--persistent", "--shared=16", "--format=raw"])
            .args(["--discard=unmap", "--export-name=disk"])
            .arg(format!("--pid-file={}", pid_file.display()))
            .arg(format!("--socket={}", folder.path().join("nbd").display()))
            .args(extra)
            .arg(&disk)
            .status();
        match started {
            Ok(status) => assert!(status.success(), "qemu-nbd did not start"),
            Err(error) => {
                eprintln!("skipped: qemu-nbd is not installed: {error}");
                return None;
            }
        }
        let pid = fs::read_to_string(pid_file).unwrap();
        let pid = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
        Some(Self { folder, pid })
    }

    fn uri(&self) -> NbdUri {
        NbdUri::unix(self.folder.path().join("nbd"), "disk")
    }

    fn disk(&self) -> PathBuf {
        self.folder.path().join("disk.raw")
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        let _ = kill_process(self.pid, Signal::TERM);
    }
}

const STATUS: ConnectOptions = ConnectOptions { block_status: true };

#[tokio::test]
async fn every_command_does_what_it_says() {
    let Some(server) = QemuNbd::start(8 * MIB, &[]) else {
        return;
    };
    let connection = Connection::connect(&server.uri(), STATUS).await.unwrap();
    let info = connection.info();
    assert_eq!(info.size_bytes, 8 * MIB);
    assert!(!info.read_only && info.multi_conn && info.can_block_status);

    let data = Bytes::from(vec![0x5a; 300_000]);
    connection.write(MIB, data.clone()).await.unwrap();
    assert_eq!(connection.read(MIB, 300_000).await.unwrap(), data);
    connection.flush().await.unwrap();
    assert_eq!(read_file(&server.disk(), MIB, 300_000), data);

    connection.write_zeroes(MIB, 65536, false).await.unwrap();
    connection.trim(MIB + 65536, 65536).await.unwrap();
    let back = connection.read(MIB, 300_000).await.unwrap();
    assert!(back[..65536].iter().all(|byte| *byte == 0));
    assert_eq!(back[131_072..], data[131_072..]);

    let extents = connection.block_status(4 * MIB, 65536).await.unwrap();
    assert!(extents[0].hole && extents[0].reads_zero, "{extents:?}");
    assert_eq!(
        connection.read(8 * MIB - 1, 1).await.unwrap(),
        Bytes::from_static(&[0])
    );
    connection.disconnect().await;
}

#[tokio::test]
async fn many_requests_are_in_flight_and_each_gets_its_own_reply() {
    let Some(server) = QemuNbd::start(64 * MIB, &[]) else {
        return;
    };
    let target = Target::connect(&server.uri(), 4).await.unwrap();
    assert_eq!(target.connections(), 4);
    let writes = (0..256_u64).map(|index| {
        let byte = u8::try_from(index).unwrap();
        target.write(index * 256 * 1024, Bytes::from(vec![byte; 256 * 1024]))
    });
    for result in futures_util::future::join_all(writes).await {
        result.unwrap();
    }
    target.flush().await.unwrap();

    let connection = Connection::connect(&server.uri(), STATUS).await.unwrap();
    let reads = (0..256_u64).map(|index| connection.read(index * 256 * 1024, 256 * 1024));
    for (index, result) in futures_util::future::join_all(reads)
        .await
        .into_iter()
        .enumerate()
    {
        let expected = u8::try_from(index).unwrap();
        assert!(
            result.unwrap().iter().all(|byte| *byte == expected),
            "request {index}"
        );
    }
    target.disconnect().await;
}

#[tokio::test]
async fn errors_name_what_was_asked() {
    let Some(server) = QemuNbd::start(MIB, &["--read-only"]) else {
        return;
    };
    let connection = Connection::connect(&server.uri(), STATUS).await.unwrap();
    assert!(connection.info().read_only);
    let error = connection.write(4096, Bytes::from_static(&[1; 512])).await;
    match error.unwrap_err() {
        NbdError::Server {
            offset: 4096,
            len_bytes: 512,
            code,
            ..
        } => {
            assert_ne!(code, ErrorCode::NONE);
        }
        other => panic!("{other}"),
    }
    // The connection goes on.
    connection.read(0, 512).await.unwrap();
    let error = connection.read(MIB - 1, 2).await.unwrap_err();
    assert!(matches!(error, NbdError::Invalid { .. }), "{error}");

    let wrong = NbdUri::unix(server.folder.path().join("nbd"), "other");
    let error = Connection::connect(&wrong, STATUS)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("export=\"other\""), "{error}");
}

#[tokio::test]
async fn a_server_that_vanishes_ends_every_request() {
    let Some(server) = QemuNbd::start(64 * MIB, &[]) else {
        return;
    };
    let connection = Connection::connect(&server.uri(), STATUS).await.unwrap();
    connection.read(0, 512).await.unwrap();
    kill_process(server.pid, Signal::KILL).unwrap();
    let error = loop {
        if let Err(error) = connection.read(0, 512).await {
            break error;
        }
    };
    assert!(matches!(error, NbdError::Closed { .. }), "{error}");
    let again = connection.flush().await.unwrap_err();
    assert_eq!(again, error);
    // While the process is going, its listener may still take a connection and lose it.
    let refused = async {
        loop {
            match Connection::connect(&server.uri(), STATUS).await {
                Err(NbdError::Connect { .. }) => break,
                Err(NbdError::Closed { .. }) => {}
                Err(other) => panic!("{other}"),
                Ok(_) => panic!("a dead server answered"),
            }
        }
    };
    let deadline = std::time::Duration::from_secs(30);
    tokio::time::timeout(deadline, refused).await.unwrap();
}

fn read_file(path: &Path, offset: u64, len: usize) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; len];
    fs::File::open(path)
        .unwrap()
        .read_exact_at(&mut bytes, offset)
        .unwrap();
    bytes
}
