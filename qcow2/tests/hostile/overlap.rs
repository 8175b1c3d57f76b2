//! Metadata is never written over: neither by data, nor by a table, nor by a commit, nor after a bogus free.

use qcow2::{ErrorKind, Image, Seal};

use crate::sample::{Bytes, COPIED, open_chain, read_all};

/// The image of most cases: everything that can be overlapped, in clusters of 512 bytes.
fn full() -> Bytes {
    Bytes::new(512).with_snapshot().with_bitmap()
}

/// A change that makes the image lie.
type Lie = fn(&mut Bytes);
type Request = fn(&Image) -> Result<(), qcow2::Error>;
type Place = fn(&Bytes) -> u64;

/// Structures that overlap are seen at open: refused, and not a byte is changed.
#[test]
fn structures_that_overlap_are_refused_at_open() {
    let cases: [(&str, Lie); 11] = [
        ("L2 table overlaps refcount block: offset=", |bytes| {
            bytes.put_u64(bytes.l1_at() + 8, bytes.block_at(0));
        }),
        ("L2 table overlaps L1 table: offset=", |bytes| {
            bytes.put_u64(bytes.l1_at() + 8, bytes.l1_at() | COPIED);
        }),
        ("L2 table overlaps L2 table: offset=", |bytes| {
            let one = bytes.l2_at(0);
            bytes.put_u64(bytes.l1_at() + 8, one | COPIED);
        }),
        ("L2 table overlaps refcount table: offset=", |bytes| {
            bytes.put_u64(bytes.l1_at(), bytes.table_at());
        }),
        ("refcount block overlaps refcount block: offset=", |bytes| {
            bytes.put_u64(bytes.table_at() + 8, bytes.block_at(0));
        }),
        ("refcount block overlaps L1 table: offset=", |bytes| {
            bytes.put_u64(bytes.table_at() + 8, bytes.l1_at());
        }),
        ("L1 table overlaps refcount table: offset=", |bytes| {
            bytes.put_u64(40, bytes.table_at());
        }),
        ("snapshot's L1 table overlaps L1 table: offset=", |bytes| {
            bytes.put_u64(bytes.snapshots_at(), bytes.l1_at());
        }),
        ("L2 table overlaps snapshot table: offset=", |bytes| {
            bytes.put_u64(bytes.l1_at(), bytes.snapshots_at());
        }),
        ("L2 table overlaps bitmap directory: offset=", |bytes| {
            bytes.put_u64(bytes.l1_at(), bytes.directory_at());
        }),
        ("L2 table overlaps L2 table: offset=", |bytes| {
            // The table that the snapshot uses, claimed by the active disk alone.
            bytes.put_u64(bytes.l1_at(), bytes.l2_at(0) | COPIED);
        }),
    ];
    for (expected, lie) in cases {
        let mut bytes = full();
        lie(&mut bytes);
        let storage = bytes.storage();
        let error = Image::open(storage.clone(), None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{expected}");
        let text = error.to_string();
        let (one, other) = expected
            .strip_suffix(": offset=")
            .and_then(|names| names.split_once(" overlaps "))
            .unwrap();
        // Which of two is named first is the order of the file.
        let said = [
            format!("{one} overlaps {other}: offset=0x"),
            format!("{other} overlaps {one}: offset=0x"),
        ];
        assert!(said.iter().any(|said| text.starts_with(said)), "{text}");
        assert!(storage.to_bytes() == bytes.0, "{expected}: changed");
    }
}

/// What the first guest cluster's data claims to be, and what the error must say.
fn data_cases() -> Vec<(&'static str, u64)> {
    let bytes = full();
    let plain = Bytes::new(512);
    vec![
        ("data cluster overlaps L1 table", bytes.l1_at()),
        ("data cluster overlaps refcount table", bytes.table_at()),
        ("data cluster overlaps refcount block", bytes.block_at(0)),
        ("data cluster overlaps L2 table", bytes.l2_at(7)),
        ("data cluster overlaps L2 table", bytes.l2_at(0)),
        ("data cluster overlaps snapshot table", bytes.snapshots_at()),
        (
            "data cluster overlaps snapshot's L1 table",
            bytes.snapshot_l1_at(),
        ),
        (
            "data cluster overlaps bitmap directory",
            bytes.directory_at(),
        ),
        (
            "data cluster lies beyond the file",
            plain.0.len() as u64 + (1 << 20),
        ),
    ]
}

/// Data that lies in metadata is neither written in place, nor filled, nor freed: the image is marked corrupt first.
#[test]
fn data_never_lands_in_metadata() {
    let requests: [Request; 4] = [
        |image| image.write(0, &[9; 512]),
        |image| image.write(100, b"a part"),
        |image| image.write_zeroes(0, 512, false),
        |image| image.write_zeroes(0, 512, true),
    ];
    for (expected, offset) in data_cases() {
        for flags in [0, COPIED, COPIED | 1] {
            for request in requests {
                let mut bytes = full();
                bytes.put_u64(bytes.entry_at(0), offset | flags);
                let context = format!("{expected} flags={flags:#x}");
                is_fenced(&bytes, request, expected, offset, &context);
            }
        }
    }
}

/// Refcounts that contradict the entries are seen before anything is written through them.
#[test]
fn counts_that_contradict_are_refused() {
    let cases: [(&str, Place, u16); 4] = [
        (
            "data cluster is counted as free",
            |bytes| bytes.data_at(0),
            0,
        ),
        (
            "data cluster claims one reference and has another count",
            |bytes| bytes.data_at(0),
            2,
        ),
        (
            "L2 table claims one reference and has another count",
            |bytes| bytes.l2_at(0),
            0,
        ),
        (
            "L2 table claims one reference and has another count",
            |bytes| bytes.l2_at(0),
            2,
        ),
    ];
    for (expected, place, count) in cases {
        let mut bytes = Bytes::new(512);
        let offset = place(&bytes);
        bytes.set_refcount(offset, count);
        let zeroes = |image: &Image| image.write_zeroes(0, 512, false);
        is_fenced(&bytes, zeroes, expected, offset, expected);
    }
}

/// Version 2 has no place for the mark: refused all the same.
#[test]
fn version_2_is_refused_without_a_mark() {
    let mut bytes = Bytes::version_2(512);
    let offset = bytes.l2_at(0);
    bytes.put_u64(bytes.entry_at(0), offset | COPIED);
    let write = |image: &Image| image.write(0, &[9; 512]);
    is_fenced(
        &bytes,
        write,
        "data cluster overlaps L2 table",
        offset,
        "version 2",
    );
}

/// The request fails, nothing but the mark is written, every later change is refused, reads go on.
fn is_fenced(
    bytes: &Bytes,
    request: impl Fn(&Image) -> Result<(), qcow2::Error>,
    expected: &str,
    offset: u64,
    context: &str,
) {
    let version = bytes.header().version;
    let before = read_all(bytes.storage());
    let storage = bytes.storage();
    let image = Image::open(storage.clone(), None).unwrap();
    let error = request(&image).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{context}: {error}");
    let named = format!("{expected}: offset={offset:#x}");
    assert!(error.to_string().starts_with(&named), "{context}: {error}");

    let mut marked = bytes.clone();
    marked.put_u64(88, 0);
    if version >= 3 {
        marked.0[79] |= 2;
    } else {
        marked = bytes.clone();
    }
    assert!(storage.to_bytes() == marked.0, "{context}: changed");

    let last = image.virtual_size_bytes() - 512;
    let later = [
        image.write(last, &[1; 512]),
        image.write_zeroes(last, 512, false),
        image.flush(),
        image.seal(&Seal::default()),
    ];
    for result in later {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{context}");
        assert!(error.to_string().contains(&named), "{context}: {error}");
    }
    assert!(storage.to_bytes() == marked.0, "{context}: changed later");

    let mut sector = [0; 512];
    image.read(last, &mut sector).unwrap();
    drop(image);
    match (before, read_all(storage.clone())) {
        (Ok(before), Ok(after)) => assert!(before == after, "{context}: reads otherwise"),
        (before, after) => assert_eq!(before.is_ok(), after.is_ok(), "{context}"),
    }
    open_chain(storage.clone()).unwrap();
    if version >= 3 {
        let error = Image::open(storage, None).unwrap_err();
        assert!(error.to_string().contains("marked corrupt"), "{error}");
    }
}

/// Two L1 entries share a table that is counted once: the copy for one must not free it under the other.
#[test]
fn a_bogus_free_is_not_handed_out() {
    let mut bytes = Bytes::new(512);
    let shared = bytes.l2_at(0);
    bytes.put_u64(bytes.l1_at(), shared);
    bytes.put_u64(bytes.l1_at() + 8, shared);
    for at in (shared..shared + 512).step_by(8) {
        bytes.put_u64(at, bytes.u64(at) & !COPIED);
    }
    let storage = bytes.storage();
    let image = Image::open(storage.clone(), None).unwrap();
    image.write(8 * 512, &[9; 512]).unwrap();
    let error = image.flush().unwrap_err();
    let expected = format!("cluster to be freed is part of L2 table: offset={shared:#x}");
    assert_eq!(error.to_string(), expected);
    assert_eq!(
        image.write(0, &[9; 512]).unwrap_err().kind(),
        ErrorKind::Corrupt
    );
    let after = Bytes(storage.to_bytes());
    let range = usize::try_from(shared).unwrap()..usize::try_from(shared + 512).unwrap();
    assert!(
        after.0[range.clone()] == bytes.0[range],
        "the table is whole"
    );
    assert!(after.0[79] & 2 != 0, "marked");
}

/// A file that counts more than it uses is only wasteful, and takes writes.
#[test]
fn leaks_are_no_damage() {
    let mut bytes = Bytes::new(512);
    let end = (bytes.0.len() as u64).next_multiple_of(512);
    bytes.set_refcount(end + 512, 3);
    let storage = bytes.storage();
    let image = Image::open(storage.clone(), None).unwrap();
    let size = usize::try_from(image.virtual_size_bytes()).unwrap();
    image.write(0, &vec![5; size]).unwrap();
    image.flush().unwrap();
    let report = qcow2::check(&*storage).unwrap();
    assert_eq!((report.corruptions, report.leaks), (0, 1), "{report:?}");
}
