//! The plainest client there is: the crate `nbd` asks by `EXPORT_NAME`, sends one request at a time, and hangs up.

use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use engine::standalone::{Device, NamedDevice, Server, serve};
use engine::{ListenAddress, ServerLimits};
use nbd::client::{NbdClient, handshake};
use tests::disk::{Disk, Op};
use tests::hub::DEADLINE;
use tests::peers::have;
use tests::{qemu, seed};
use tokio::runtime::Runtime;

/// Ends in the middle of a cluster.
const SIZE: usize = (9 << 20) + 512;

struct Served {
    runtime: Runtime,
    server: Server,
    address: SocketAddr,
}

impl Served {
    fn new(device: Device) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let name = "vm-disk0".to_owned();
        let listen = [ListenAddress::Tcp(([127, 0, 0, 1], 0).into()).into()];
        let server = runtime
            .block_on(serve(
                vec![NamedDevice { name, device }],
                &listen,
                ServerLimits::default(),
            ))
            .expect("a server");
        let address = match server.local_addresses().first() {
            Some(ListenAddress::Tcp(address)) => *address,
            other => panic!("it listens at {other:?}"),
        };
        Self {
            runtime,
            server,
            address,
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("a connection");
        // It sends a request in six pieces.
        stream.set_nodelay(true).expect("a TCP connection");
        stream.set_read_timeout(Some(DEADLINE)).expect("a deadline");
        stream
    }

    fn client(&self, read_only: bool) -> NbdClient<TcpStream> {
        let mut stream = self.connect();
        let export = handshake(&mut stream, b"vm-disk0").expect("a handshake");
        assert_eq!(export.size, SIZE as u64);
        assert_eq!(export.readonly, read_only);
        assert!(export.send_flush);
        NbdClient::new(stream, &export)
    }

    fn stop(self) {
        self.runtime.block_on(self.server.stop()).expect("an end");
    }
}

fn new_image(path: &Path) -> Device {
    Device::Create {
        path: path.to_owned(),
        size_bytes: SIZE as u64,
        backing: None,
    }
}

fn existing(path: PathBuf) -> Device {
    Device::Open {
        source: path.into(),
        read_only: true,
    }
}

fn read_all(client: &mut NbdClient<TcpStream>) -> Vec<u8> {
    let mut bytes = vec![0; SIZE];
    client.seek(SeekFrom::Start(0)).expect("a place");
    for piece in bytes.chunks_mut(1_000_003) {
        client.read_exact(piece).expect("a read");
    }
    bytes
}

#[test]
fn a_naive_client_writes_and_reads_an_image() {
    let mut rng = seed::rng("a_naive_client_writes_and_reads_an_image");
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("disk.qcow2");
    let served = Served::new(new_image(&path));
    let mut disk = Disk::new(SIZE, None);
    let mut client = served.client(false);
    for round in 0..60 {
        // It knows no request for zeroes: they come as data.
        let op = disk.random_op(&mut rng, 65_536);
        disk.apply(&op);
        match &op {
            Op::Write { offset, runs } => {
                let end = offset + runs.iter().map(|(_, len)| len).sum::<usize>();
                client
                    .seek(SeekFrom::Start(*offset as u64))
                    .expect("a place");
                client
                    .write_all(&disk.bytes()[*offset..end])
                    .expect("a write");
            }
            Op::Zero { range, .. } => {
                let start = range.start as u64;
                client.seek(SeekFrom::Start(start)).expect("a place");
                client
                    .write_all(&disk.bytes()[range.clone()])
                    .expect("a write");
            }
            Op::Flush => client.flush().expect("a flush"),
        }
        if round % 20 == 19 {
            disk.assert_is(&read_all(&mut client), "the naive client", "its own writes");
        }
    }
    client
        .seek(SeekFrom::Start(SIZE as u64 - 3))
        .expect("a place");
    client.write_all(b"end").expect("the last bytes");
    let last = vec![(b'e', 1), (b'n', 1), (b'd', 1)];
    disk.apply(&Op::Write {
        offset: SIZE - 3,
        runs: last,
    });
    client.flush().expect("a flush");
    // It hangs up without a word; the next one finds everything.
    drop(client);
    disk.assert_is(
        &read_all(&mut served.client(false)),
        "the second client",
        "",
    );
    served.stop();

    if have("qemu-img") {
        let raw = dir.path().join("raw");
        std::fs::write(&raw, disk.bytes()).expect("a raw file");
        qemu::assert_clean(&path);
        qemu::assert_reads_like(&path, &raw);
    }
    let served = Served::new(existing(path));
    let mut client = served.client(true);
    disk.assert_is(&read_all(&mut client), "a reader", "");
    client.seek(SeekFrom::Start(0)).expect("a place");
    let refused = client.write_all(b"no").expect_err("it is read-only");
    assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
    disk.assert_is(&read_all(&mut client), "after the refusal", "");
    drop(client);
    served.stop();
}

#[test]
fn a_name_that_nobody_serves_ends_the_connection() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("disk.qcow2");
    let served = Served::new(new_image(&path));
    // There is no error reply to EXPORT_NAME (NBD protocol, "Fixed newstyle negotiation"): the end says it.
    let mut stream = served.connect();
    let refused = handshake(&mut stream, b"vm-disk9").expect_err("no such export");
    assert_eq!(refused.kind(), std::io::ErrorKind::UnexpectedEof);
    // Others are served on.
    let mut client = served.client(false);
    client.write_all(b"still here").expect("a write");
    drop(client);
    served.stop();
}
