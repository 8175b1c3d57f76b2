//! The image format against QEMU's own tools: what we write they accept, what they write we read.

#![expect(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use std::sync::Arc;

use qcow2::{BackingFormat, BackingName, Chain, CreateOptions, FileStorage, Image};
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
            virtual_size_bytes: size,
            cluster_size_bytes: 1 << cluster_bits,
            backing: name,
        };
        let path = dir.path("tip.qcow2");
        let image = Image::create(storage(&path), &options, chain.clone()).unwrap();
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
