//! Sources of every kind.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::*;
use crate::{Error, ErrorKind};

fn open(text: &str) -> Result<std::sync::Arc<dyn Source>, Error> {
    text.parse::<SourceSpec>().unwrap().open()
}

fn open_path(path: &Path) -> Result<std::sync::Arc<dyn Source>, Error> {
    open(path.to_str().unwrap())
}

#[test]
fn texts_mean_what_they_say() {
    let parse = str::parse::<SourceSpec>;
    assert_eq!(parse("/dev/sda"), Ok(SourceSpec::Path("/dev/sda".into())));
    assert_eq!(parse("raw:a:b"), Ok(SourceSpec::Raw("a:b".into())));
    assert_eq!(parse("qcow2:x"), Ok(SourceSpec::Qcow2("x".into())));
    assert_eq!(parse("disk:1"), Ok(SourceSpec::Path("disk:1".into())));
    for bad in ["", "raw:", "qcow2:"] {
        assert!(parse(bad).unwrap_err().contains("no path"), "{bad}");
    }
    for uri in ["nbd://host/x", "nbds://host/x", "nbd+unix:///?socket=/s"] {
        assert!(parse(uri).unwrap_err().contains("nbd uri"), "{uri}");
    }
}

#[test]
fn a_raw_file_tells_its_holes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    let file = File::create(&path).unwrap();
    file.set_len(8 << 20).unwrap();
    file.write_all_at(&[7; 1000], 3 << 20).unwrap();
    let source = open_path(&path).unwrap();

    let mut offset = 0;
    let mut data_bytes = 0;
    while offset < source.size_bytes() {
        let run = source.run_at(offset).unwrap();
        assert!(run.len_bytes > 0 && offset + run.len_bytes <= source.size_bytes());
        let mut bytes = vec![1; usize::try_from(run.len_bytes).unwrap()];
        source.read_at(offset, &mut bytes).unwrap();
        if run.reads_zero {
            assert!(bytes.iter().all(|byte| *byte == 0));
        } else {
            data_bytes += run.len_bytes;
        }
        offset += run.len_bytes;
    }
    assert!((1000..8 << 20).contains(&data_bytes), "{data_bytes}");
}

#[test]
fn changes_while_reading_are_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    fs::write(&path, [1; 4096]).unwrap();
    let source = open_path(&path).unwrap();
    assert_eq!(source.check_unchanged().unwrap(), Unchanged::Quiet);

    let file = File::options().write(true).open(&path).unwrap();
    let earlier = std::time::SystemTime::UNIX_EPOCH;
    file.set_modified(earlier).unwrap();
    assert_eq!(source.check_unchanged().unwrap(), Unchanged::Modified);

    file.set_len(8192).unwrap();
    let error = source.check_unchanged().unwrap_err().to_string();
    assert!(error.contains("before=4096 after=8192"), "{error}");
    file.set_len(100).unwrap();
    assert!(source.read_at(0, &mut [0; 4096]).is_err());
}

#[test]
fn the_content_alone_never_makes_it_qcow2() {
    let folder = tempfile::tempdir().unwrap();
    let looks_like = folder.path().join("disk.img");
    let mut bytes = vec![0; 65536];
    bytes[..4].copy_from_slice(b"QFI\xfb");
    fs::write(&looks_like, &bytes).unwrap();
    let source = open_path(&looks_like).unwrap();
    assert_eq!(source.size_bytes(), 65536);
    assert!(source.remarks()[0].contains("read as raw"));

    let named = folder.path().join("disk.qcow2");
    fs::write(&named, [0; 4096]).unwrap();
    let error = open_path(&named).unwrap_err();
    assert!(
        error.full_text().contains("raw:PATH"),
        "{}",
        error.full_text()
    );
    assert_eq!(
        open(&format!("raw:{}", named.display()))
            .unwrap()
            .size_bytes(),
        4096
    );
}

#[test]
fn what_cannot_be_a_disk_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty");
    File::create(&empty).unwrap();
    for (path, text) in [
        (folder.path(), "neither a regular file"),
        (&folder.path().join("missing"), "cannot look at it"),
        (&empty, "empty"),
        (Path::new("/dev/null"), "neither a regular file"),
    ] {
        let error = open_path(path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Source);
        assert!(error.full_text().contains(text), "{}", error.full_text());
    }
}
