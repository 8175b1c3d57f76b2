//! The classes of CVEs that QEMU had about qcow2 images and backing files, each as an image of that class.
//!
//! Left out: those of other formats (2014-0142 parallels and bochs, 2014-0148 vhdx) and of devices.

use std::sync::{Arc, Mutex};

use qcow2::{
    BackingFormat, BackingName, Chain, Error, ErrorKind, Image, MemoryStorage, OpenedBacking,
    Opener, check,
};

use crate::sample::{Bytes, COPIED, open_chain, read_all};

fn full() -> Bytes {
    Bytes::new(512).with_snapshot().with_bitmap()
}

/// One field of the full sample, as the image has it instead, and what the refusal must say.
type Case = (u64, &'static [u8], &'static str);

/// Opens an image with each of the lies, all at its own: refused for writing by `kind`, named, and not changed.
fn refused(kind: ErrorKind, cases: &[Case]) {
    for (at, value, text) in cases {
        let mut bytes = full();
        bytes.put(*at, value);
        is_refused(&bytes, kind, text);
    }
}

fn is_refused(bytes: &Bytes, kind: ErrorKind, text: &str) {
    let storage = bytes.storage();
    // Readers and the checker come to an end, whatever they say.
    let _ = check(&*storage);
    if let Ok(chain) = open_chain(storage.clone()) {
        let _ = chain.read(0, &mut [0; 512]);
        let _ = chain.extents(0, chain.virtual_size_bytes().min(1 << 20));
    }
    let error = Image::open(storage.clone(), None).unwrap_err();
    assert_eq!(error.kind(), kind, "{text}: {error}");
    assert!(error.to_string().contains(text), "{text}: {error}");
    assert!(storage.to_bytes() == bytes.0, "{text}: changed");
}

/// What a chain asks its opener for.
#[derive(Default)]
struct Asked {
    names: Mutex<Vec<BackingName>>,
    base: Vec<u8>,
}

impl Opener for Asked {
    fn open_backing(&self, name: &BackingName, _of: &str) -> Result<OpenedBacking, Error> {
        self.names.lock().unwrap().push(name.clone());
        let Some(format) = name.format else {
            return Err(Error::new(ErrorKind::Refused, "no format is recorded"));
        };
        Ok(OpenedBacking {
            storage: Arc::new(MemoryStorage::with_bytes(self.base.clone())),
            identity: name.name.clone(),
            format,
        })
    }
}

/// An image over `name`, read through an opener that has `base`.
fn over(name: &str, format: Option<BackingFormat>, base: Vec<u8>) -> (Result<Chain, Error>, Asked) {
    let bytes = Bytes::over(name, format);
    let opener = Asked {
        base,
        ..Asked::default()
    };
    let chain = Chain::open(bytes.storage(), "tip", BackingFormat::Qcow2, &opener);
    (chain, opener)
}

/// A guest writes a qcow2 header into its raw disk; whoever guesses the format then reads the host's files. The same
/// class: 2008-1945, 2013-1922.
#[test]
fn cve_2008_2004_formats_are_never_guessed() {
    let trap = Bytes::over("/etc/passwd", Some(BackingFormat::Raw)).0;
    let (chain, opener) = over("base", Some(BackingFormat::Raw), trap.clone());
    let chain = chain.unwrap();
    let mut read = vec![0; 512];
    chain.read(0, &mut read).unwrap();
    assert!(read == trap[..512], "the bytes of a disk, no header");
    assert_eq!(
        opener.names.lock().unwrap().len(),
        1,
        "nobody asked for the trap's file"
    );

    let (chain, opener) = over("base", None, trap);
    assert_eq!(chain.unwrap_err().kind(), ErrorKind::Refused);
    assert_eq!(
        opener.names.lock().unwrap()[0].format,
        None,
        "the opener decides"
    );
}

/// Sizes whose products overflow: L1 tables of snapshots and of the disk, cluster numbers without a refcount, requests.
#[test]
fn cve_2014_0143_sizes_do_not_overflow() {
    refused(
        ErrorKind::Corrupt,
        &[
            (36, &[0x7f, 0xff, 0xff, 0xff], "l1_size=2147483647"),
            (36, &[0xff; 4], "l1_size=4294967295"),
            (36, &[0, 0, 0, 0], "l1_size=0"),
            (24, &[0x7f; 8], "virtual_size=9187201950435737471"),
        ],
    );
    let mut bytes = full();
    let snapshots_at = bytes.snapshots_at();
    bytes.put(snapshots_at + 8, &[0xff; 4]);
    is_refused(&bytes, ErrorKind::Corrupt, "l1_size=4294967295");

    let mut bytes = Bytes::new(512);
    bytes.put_u64(bytes.entry_at(0), 0x00ff_ffff_ffff_fe00 | COPIED);
    let image = Image::open(bytes.storage(), None).unwrap();
    let error = image.write(0, &[1; 512]).unwrap_err();
    let text = "data cluster lies beyond the file: offset=0xfffffffffffe00";
    assert_eq!(error.to_string(), text);

    let image = Image::open(Bytes::new(512).storage(), None).unwrap();
    for (offset, len) in [(u64::MAX, 2), (u64::MAX - 1, 1), (1 << 63, 1 << 63)] {
        let error = image.write_zeroes(offset, len, false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfRange, "{error}");
    }
}

/// Header fields that nobody had checked.
#[test]
fn cve_2014_0144_every_header_field_is_checked() {
    refused(
        ErrorKind::Corrupt,
        &[
            (20, &[0, 0, 0, 0], "cluster_bits=0"),
            (20, &[0, 0, 0, 8], "cluster_bits=8"),
            (20, &[0, 0, 0, 22], "cluster_bits=22"),
            (20, &[0, 0, 0, 64], "cluster_bits=64"),
            (96, &[0, 0, 0, 7], "refcount_order=7"),
            (96, &[0xff; 4], "refcount_order=4294967295"),
            (100, &[0, 0, 0, 96], "header_length=96"),
            (100, &[0xff, 0xff, 0xff, 0xf8], "header_length=4294967288"),
            (8, &[0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1], "offset=512 len=1"),
            (
                8,
                &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 9],
                "len=9",
            ),
            (8, &[0, 0, 0, 0, 0, 0, 0, 200, 0, 0, 4, 0], "len=1024"),
            (
                8,
                &[0, 0, 0, 0, 0, 0, 0, 200, 0xff, 0xff, 0xff, 0xff],
                "len=4294967295",
            ),
            (
                40,
                &[0, 0, 0, 0, 0, 0, 2, 1],
                "L1 table is misplaced: offset=0x201",
            ),
            (
                40,
                &[0xff; 8],
                "L1 table is misplaced: offset=0xffffffffffffffff",
            ),
            (
                40,
                &[0, 0, 1, 0, 0, 0, 0, 0],
                "L1 table ends beyond the file: offset=0x10000000000",
            ),
            (
                48,
                &[0, 0, 0, 0, 0, 0, 2, 1],
                "refcount table is misplaced: offset=0x201",
            ),
            (
                48,
                &[0xff; 8],
                "refcount table is misplaced: offset=0xffffffffffffffff",
            ),
            (
                48,
                &[0, 0, 1, 0, 0, 0, 0, 0],
                "refcount table ends beyond the file: offset=0x1000",
            ),
            (
                56,
                &[0xff; 4],
                "refcount table is out of bounds: clusters=4294967295",
            ),
            (56, &[0; 4], "refcount table is out of bounds: clusters=0"),
            (60, &[0xff; 4], "too many snapshots: count=4294967295"),
            (
                64,
                &[0, 0, 0, 0, 0, 0, 2, 1],
                "snapshot table is misplaced: offset=0x201",
            ),
            (
                64,
                &[0xff; 8],
                "snapshot table is misplaced: offset=0xffffffffffffffff",
            ),
            (
                64,
                &[0, 0, 1, 0, 0, 0, 0, 0],
                "snapshot table ends beyond the file: offset=0x1000",
            ),
            (116, &[0xff; 4], "offset=112 len=4294967295"),
        ],
    );
    // A table that is larger than its place in the file.
    refused(
        ErrorKind::Corrupt,
        &[(
            56,
            &[0, 0, 0x40, 0],
            "refcount table ends beyond the file: offset=0x200 len=8388608",
        )],
    );
}

/// The L1 table of a snapshot that is larger than the buffer for the active one.
#[test]
fn cve_2014_0145_a_snapshot_has_its_own_size() {
    let mut bytes = full();
    let snapshots_at = bytes.snapshots_at();
    bytes.put(snapshots_at + 8, &[0, 0x40, 0, 0]);
    let at = bytes.snapshot_l1_at();
    let text = format!("snapshot's L1 table ends beyond the file: offset={at:#x} len=33554432");
    is_refused(&bytes, ErrorKind::Corrupt, &text);
    // Extra data and names that reach beyond the table.
    for (field, value) in [(36, [0xff; 4]), (12, [0xff; 4])] {
        let mut bytes = full();
        bytes.put(60, &2_u32.to_be_bytes());
        bytes.put(snapshots_at + field, &value);
        is_refused(&bytes, ErrorKind::Corrupt, "snapshot table");
    }
}

/// An open that fails halfway, with snapshots announced: the error path touched what did not exist yet.
#[test]
fn cve_2014_0146_an_open_that_fails_halfway_is_an_error() {
    let mut bytes = full();
    bytes.put(60, &[0, 0, 0xff, 0xff]);
    bytes.put_u64(bytes.table_at(), 1 << 40);
    is_refused(&bytes, ErrorKind::Corrupt, "snapshot");
    let mut bytes = full();
    bytes.put_u64(bytes.table_at(), 1 << 40);
    let at = bytes.table_at();
    let text = format!("refcount block lies beyond the file: offset={at:#x} entry=0x10000000000");
    is_refused(&bytes, ErrorKind::Corrupt, &text);
    let mut bytes = full();
    bytes.put_u64(bytes.table_at(), 0x601);
    is_refused(&bytes, ErrorKind::Corrupt, "entry=0x601 offset=0x200");
}

/// Refcounts that call everything free: an allocation overwrote the metadata, the header first.
#[test]
fn cve_2014_0147_what_is_in_use_is_not_allocated() {
    let mut bytes = Bytes::new(512);
    let block = bytes.block_at(0);
    bytes.put(block, &[0; 512]);
    let before = read_all(bytes.storage()).unwrap();
    let storage = bytes.storage();
    let image = Image::open(storage.clone(), None).unwrap();
    // In a part of the disk without a table, so that nothing known contradicts.
    image.write(70 * 512, &[9; 512]).unwrap();
    image.flush().unwrap();
    drop(image);
    let after = read_all(storage).unwrap();
    assert!(before[..70 * 512] == after[..70 * 512], "read otherwise");
    assert!(before[71 * 512..] == after[71 * 512..], "read otherwise");

    // An L1 table without any refcount block at all.
    let mut bytes = Bytes::new(512);
    bytes.put_u64(bytes.table_at(), 0);
    let storage = bytes.storage();
    let image = Image::open(storage.clone(), None).unwrap();
    image.write(70 * 512, &[9; 512]).unwrap();
    image.flush().unwrap();
    drop(image);
    let after = read_all(storage).unwrap();
    assert!(before[..70 * 512] == after[..70 * 512], "read otherwise");
}

/// Version 1 of the format, with L2 tables larger than its readers had room for.
#[test]
fn cve_2014_0222_version_1_is_refused_by_its_number() {
    refused(ErrorKind::Unsupported, &[(4, &[0, 0, 0, 1], "version=1")]);
}

/// A disk so large that the size of its L1 table overflows.
#[test]
fn cve_2014_0223_a_disk_too_large_for_its_table() {
    refused(
        ErrorKind::Corrupt,
        &[
            (24, &[0xff; 8], "virtual_size=18446744073709551615"),
            (
                24,
                &[0, 0, 0x80, 0, 0, 0, 0, 1],
                "virtual_size=140737488355329",
            ),
        ],
    );
}

/// An image that names a file of the host as its data file, or a description of devices as its backing file.
#[test]
fn cve_2024_4467_no_other_file_and_no_description() {
    refused(
        ErrorKind::Unsupported,
        &[
            (72, &[0, 0, 0, 0, 0, 0, 0, 4], "external data file"),
            (32, &[0, 0, 0, 2], "crypt_method=2"),
            (32, &[0, 0, 0, 1], "crypt_method=1"),
        ],
    );
    let name = "json:{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}";
    let bytes = Bytes::over(name, Some(BackingFormat::Raw));
    let error = open_chain(bytes.storage()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains(name), "taken as a name: {error}");
}
