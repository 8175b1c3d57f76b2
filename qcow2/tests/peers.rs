//! The image format against QEMU's own tools: what we write they accept, what they write we read.

#![expect(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::sync::Arc;

use qcow2::{BackingFormat, BackingName, Chain, CreateOptions, Elision, FileStorage, Image};
use support::{Dir, Folder, Model, random_request, rng, seed};

fn storage(path: &std::path::Path) -> Arc<FileStorage> {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .unwrap();
    Arc::new(FileStorage::new(file))
}

fn backing(name: &str, format: BackingFormat) -> Option<BackingName> {
    Some(BackingName {
        name: name.into(),
        format: Some(format),
    })
}

/// Random traces over all cluster sizes, without and with parents that are shorter, longer, raw.
#[test]
fn random_traces_are_clean_and_equal() {
    if !support::has_qemu() {
        return;
    }
    let seed = seed();
    let mut rng = rng(seed);
    for round in 0..24_u64 {
        let dir = Dir::new();
        let cluster_bits = 9 + u32::try_from(round % 13).unwrap();
        let size = (rng.u64(1..2048) + 3000) * 512;
        let below = round % 4;
        let mut model = Model::new(size);
        let parent = match below {
            0 => None,
            1 => Some(("raw", "base.raw", size)),
            2 => Some(("qcow2", "base.qcow2", size - rng.u64(1..2000) * 512)),
            _ => Some(("qcow2", "base.qcow2", size + rng.u64(1..2000) * 512)),
        };
        let (chain, name) = match parent {
            None => (None, None),
            Some((format, name, base_size)) => {
                let base = support::make_base(&dir, format, name, base_size, &mut rng);
                model.put(0, &base[..base.len().min(usize::try_from(size).unwrap())]);
                let format = if format == "raw" {
                    BackingFormat::Raw
                } else {
                    BackingFormat::Qcow2
                };
                let tip = storage(&dir.path(name));
                let chain = Chain::open(tip, name, format, &Folder(dir.root())).unwrap();
                (Some(Arc::new(chain)), backing(name, format))
            }
        };
        let options = CreateOptions {
            cluster_size_bytes: 1 << cluster_bits,
            backing: name,
            ..CreateOptions::new(size)
        };
        let path = dir.path("tip.qcow2");
        let elision = [Elision::Off, Elision::Read][usize::from(rng.bool())];
        let image = Image::create(storage(&path), &options, chain.clone()).unwrap();
        let image = image.with_elision(elision);
        for _ in 0..60 {
            random_request(&mut rng, &image, &mut model);
        }
        image.flush().unwrap();
        let mut read = vec![0; model.bytes().len()];
        image.read(0, &mut read).unwrap();
        assert!(
            read == model.bytes(),
            "our own read: seed={seed} round={round}"
        );
        drop(image);
        support::check_clean(&path, seed);
        support::compare(&dir, &path, &model, seed);

        // Once more from the file.
        let image = Image::open(storage(&path), chain).unwrap();
        for _ in 0..20 {
            random_request(&mut rng, &image, &mut model);
        }
        image
            .seal(&qcow2::Seal {
                point_id: "p".into(),
                ..Default::default()
            })
            .unwrap_or_else(|error| {
                assert!(cluster_bits == 9, "seal: {error} seed={seed} round={round}");
            });
        image.flush().unwrap();
        support::check_clean(&path, seed);
        support::compare(&dir, &path, &model, seed);
    }
}

/// Images that QEMU made, of every cluster size and refcount width, with snapshots and bitmaps: we read them, write
/// into them, and they stay clean, the snapshot included.
#[test]
fn images_of_qemu_are_read_and_written() {
    if !support::has_qemu() {
        return;
    }
    let seed = seed();
    let mut rng = rng(seed);
    let size = 3_000 * 512_u64;
    let cases = [
        ("compat=0.10", true),
        ("compat=1.1,cluster_size=512,refcount_bits=64", true),
        ("compat=1.1,cluster_size=512,refcount_bits=1", false),
        ("compat=1.1,cluster_size=4096,refcount_bits=2", true),
        ("compat=1.1,cluster_size=4096,refcount_bits=8", true),
        ("compat=1.1,cluster_size=2M,refcount_bits=32", true),
        ("compat=1.1,preallocation=metadata", true),
        ("compat=1.1,lazy_refcounts=on", true),
    ];
    for (options, snapshot) in cases {
        let dir = Dir::new();
        let bytes = support::random_data(&mut rng, usize::try_from(size).unwrap());
        let raw = dir.path("content.raw");
        std::fs::write(&raw, &bytes).unwrap();
        let path = dir.path("foreign.qcow2");
        let target = support::text(&path);
        let convert = ["convert", "-f", "raw", "-O", "qcow2", "-o", options];
        support::must(
            "qemu-img",
            &[&convert[..], &[support::text(&raw), target]].concat(),
        );
        if snapshot {
            support::must("qemu-img", &["snapshot", "-c", "before", target]);
        }
        let mut model = Model::new(size);
        model.put(0, &bytes);

        let image = Image::open(storage(&path), None).unwrap();
        let mut read = vec![0; bytes.len()];
        image.read(0, &mut read).unwrap();
        assert!(read == bytes, "seed={seed} options={options}");
        for _ in 0..60 {
            random_request(&mut rng, &image, &mut model);
        }
        image.flush().unwrap();
        drop(image);
        support::check_clean(&path, seed);
        support::compare(&dir, &path, &model, seed);
        if snapshot {
            support::must("qemu-img", &["snapshot", "-a", "before", target]);
            let mut before = Model::new(size);
            before.put(0, &bytes);
            support::compare(&dir, &path, &before, seed);
        }
    }
}

/// A persistent bitmap is never left valid over data it does not know of.
#[test]
fn bitmaps_are_invalidated() {
    if !support::has_qemu() {
        return;
    }
    let dir = Dir::new();
    let path = dir.path("bitmap.qcow2");
    let target = support::text(&path);
    support::must("qemu-img", &["create", "-f", "qcow2", target, "16M"]);
    support::must(
        "qemu-img",
        &["bitmap", "--add", "--enable", target, "changes"],
    );
    support::check_clean(&path, 0);
    let image = Image::open(storage(&path), None).unwrap();
    image.write(0, b"unseen").unwrap();
    image.flush().unwrap();
    drop(image);
    let info = support::must("qemu-img", &["info", target]);
    assert!(
        !info.contains("name: changes") || info.contains("in-use"),
        "{info}"
    );
}

/// A chain of images with their own cluster sizes and lengths: every point reads as QEMU reads it.
#[test]
fn every_point_of_a_chain_is_equal() {
    if !support::has_qemu() {
        return;
    }
    let seed = seed();
    let mut rng = rng(seed);
    let dir = Dir::new();
    let mut bytes = support::make_base(&dir, "raw", "0", 900 * 512, &mut rng);
    let mut below: Option<(String, BackingFormat)> = Some(("0".into(), BackingFormat::Raw));
    for depth in 1..12_u32 {
        let (name, format) = below.take().unwrap();
        let chain = Chain::open(
            storage(&dir.path(&name)),
            &name,
            format,
            &Folder(dir.root()),
        )
        .unwrap();
        assert_eq!(chain.layers().len(), usize::try_from(depth).unwrap());
        let mut read = vec![0; bytes.len()];
        chain.read(0, &mut read).unwrap();
        assert!(read == bytes, "seed={seed} depth={depth}");
        let extents = chain.extents(0, bytes.len() as u64).unwrap();
        assert_eq!(
            extents.iter().map(|extent| extent.len_bytes).sum::<u64>(),
            bytes.len() as u64
        );

        let size = rng.u64(600..1400) * 512;
        bytes.resize(usize::try_from(size).unwrap(), 0);
        let mut model = Model::new(size);
        model.put(0, &bytes);
        let options = CreateOptions {
            cluster_size_bytes: 512 << rng.u32(0..8),
            backing: backing(&name, format),
            ..CreateOptions::new(size)
        };
        let path = dir.path(&depth.to_string());
        let image = Image::create(storage(&path), &options, Some(Arc::new(chain))).unwrap();
        for _ in 0..6 {
            random_request(&mut rng, &image, &mut model);
        }
        image.flush().unwrap();
        drop(image);
        support::check_clean(&path, seed);
        support::compare(&dir, &path, &model, seed);
        bytes = model.bytes().to_vec();
        below = Some((depth.to_string(), BackingFormat::Qcow2));
    }
}

/// Loops, depth, missing files and formats are refused by name.
#[test]
fn chains_that_cannot_be_are_refused() {
    struct Same;
    impl qcow2::Opener for Same {
        fn open_backing(
            &self,
            name: &BackingName,
            of: &str,
        ) -> Result<qcow2::OpenedBacking, qcow2::Error> {
            let storage = Arc::new(qcow2::MemoryStorage::with_bytes(tip()));
            // "loop" leads back to itself; "deep" never ends.
            let identity = if of == "loop" {
                of.into()
            } else {
                format!("{of}{}", name.name)
            };
            let format = if of == "raw" {
                BackingFormat::Raw
            } else {
                BackingFormat::Qcow2
            };
            Ok(qcow2::OpenedBacking {
                storage,
                identity,
                format,
            })
        }
    }
    fn tip() -> Vec<u8> {
        let base = Arc::new(qcow2::MemoryStorage::new());
        let folder = Folder("/nonexistent".into());
        let chain = Chain::open(base, "base", BackingFormat::Raw, &folder).unwrap();
        let storage = Arc::new(qcow2::MemoryStorage::new());
        let options = CreateOptions {
            cluster_size_bytes: 512,
            backing: backing("b", BackingFormat::Qcow2),
            ..CreateOptions::new(0)
        };
        Image::create(storage.clone(), &options, Some(Arc::new(chain))).unwrap();
        storage.to_bytes()
    }
    for (identity, expected) in [
        ("loop", "loop"),
        ("deep", "too deep"),
        ("raw", "another format"),
    ] {
        let storage = Arc::new(qcow2::MemoryStorage::with_bytes(tip()));
        let error = Chain::open(storage, identity, BackingFormat::Qcow2, &Same).unwrap_err();
        assert_eq!(error.kind(), qcow2::ErrorKind::Refused);
        assert!(error.to_string().contains(expected), "{error}");
    }
}
