//! A base, an increment on top of it, the chain that they make, a check, and what changed between the two.
//!
//! `cargo run -p qcow2 --example chain [FOLDER]`: the files stay in FOLDER, if one is named.

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qcow2::{
    BackingFormat, BackingName, Chain, CreateOptions, ErrorKind, FileStorage, Image, OpenedBacking,
    Opener, check,
};

/// Opens backing files that lie in one folder, and nothing else: what may be opened is the caller's to decide.
struct Folder(PathBuf);

impl Opener for Folder {
    fn open_backing(&self, name: &BackingName, of: &str) -> Result<OpenedBacking, qcow2::Error> {
        let refuse = |why: &str| {
            let message = format!("{why}: name={:?} of={of:?}", name.name);
            qcow2::Error::new(ErrorKind::Refused, message)
        };
        if Path::new(&name.name).file_name() != Some(name.name.as_ref()) {
            return Err(refuse("backing file is not in the folder"));
        }
        let format = name.format.ok_or_else(|| refuse("no format is recorded"))?;
        let file = File::open(self.0.join(&name.name))
            .map_err(|error| qcow2::Error::io(format!("open name={}", name.name), error))?;
        Ok(OpenedBacking {
            storage: Arc::new(FileStorage::new(file)),
            identity: name.name.clone(),
            format,
        })
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let scratch = tempfile::tempdir()?;
    let folder = std::env::args_os().nth(1).map(PathBuf::from);
    let folder = Folder(folder.unwrap_or_else(|| scratch.path().to_owned()));

    // A disk of 1 GiB. Clusters, version and refcounts are as QEMU would choose them.
    let base = Image::create(
        new_file(&folder, "base.qcow2")?,
        &CreateOptions::new(1 << 30),
        None,
    )?;
    base.write(0, &[1; 200_000])?;
    base.flush()?; // from here on it survives a loss of power
    drop(base);

    // An increment: the header names the base, the data comes from its chain.
    let options = CreateOptions {
        backing: Some(BackingName {
            name: "base.qcow2".to_owned(),
            format: Some(BackingFormat::Qcow2),
        }),
        ..CreateOptions::new(1 << 30)
    };
    let older = Arc::new(open_chain(&folder, "base.qcow2")?);
    let tip = Image::create(
        new_file(&folder, "tip.qcow2")?,
        &options,
        Some(older.clone()),
    )?;
    // Threads share an image; requests on one cluster are atomic against each other.
    std::thread::scope(|scope| {
        let writes = (0..4_u8).map(|number| {
            let tip = &tip;
            scope.spawn(move || tip.write(u64::from(number) << 20, &[number + 2; 4096]))
        });
        let writes: Vec<_> = writes.collect();
        let mut ended = writes.into_iter();
        ended.try_for_each(|write| write.join().expect("a write does not panic"))
    })?;
    tip.write_zeroes(65_536, 65_536, false)?;
    tip.flush()?;
    println!("{:?}", tip.counters());
    drop(tip);

    // Both layers read as one.
    let newer = open_chain(&folder, "tip.qcow2")?;
    let mut sector = [0; 512];
    newer.read(150_000, &mut sector)?;
    assert_eq!(sector, [1; 512], "the base shines through");
    for extent in newer.extents(0, newer.virtual_size_bytes())? {
        println!("{extent:?}");
    }

    // What changed, from the maps alone.
    for range in newer.changes_since(&older)? {
        println!("changed: {:?}", range?);
    }

    let report = check(&FileStorage::new(File::open(folder.0.join("tip.qcow2"))?))?;
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{report:?}");
    println!(
        "check: clean, {} clusters in use",
        report.allocated_clusters
    );
    Ok(())
}

fn new_file(folder: &Folder, name: &str) -> std::io::Result<Arc<FileStorage>> {
    let mut options = File::options();
    let file = options.read(true).write(true).create_new(true);
    Ok(Arc::new(FileStorage::new(file.open(folder.0.join(name))?)))
}

fn open_chain(folder: &Folder, name: &str) -> Result<Chain, Box<dyn Error>> {
    let file = File::open(folder.0.join(name))?;
    let tip = Arc::new(FileStorage::new(file));
    Ok(Chain::open(tip, name, BackingFormat::Qcow2, folder)?)
}
