//! Image files that the hub does not know, against `qemu-img` where it is installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;
use crate::{Comparison, ErrorKind, ServerLimits};

fn raw_content(seed: u64, len: usize) -> Vec<u8> {
    println!("seed={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut content = vec![0; len];
    for block in content.chunks_mut(64 << 10) {
        if random.bool() {
            random.fill(block);
        }
    }
    content
}

/// Runs qemu-img; `false`, loudly, where it is not installed and nobody insists (`CI`).
fn qemu_img(arguments: &[&str]) -> bool {
    match Command::new("qemu-img").args(arguments).output() {
        Ok(output) => {
            assert!(
                output.status.success(),
                "{arguments:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            true
        }
        Err(error) => {
            assert!(
                std::env::var_os("CI").is_none(),
                "qemu-img is needed: {error}"
            );
            eprintln!("SKIPPED: qemu-img is not installed: {error}");
            false
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn create_image(path: PathBuf, size_bytes: Option<u64>, backing: Option<&str>) -> CreateImage {
    CreateImage {
        backing: backing.map(|name| Path::new(name).into()),
        ..CreateImage::new(path, size_bytes)
    }
}

#[tokio::test]
async fn conversions_there_and_back_are_equal() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let content = raw_content(1, (3 << 20) + 512);
    std::fs::write(at("a.raw"), &content).unwrap();
    let to = |source: &str, target: &str, format| ConvertImage {
        compression: None,
        source: at(source).into(),
        target: at(target),
        format,
        cluster_size_bytes: 65536,
    };
    let there = convert(to("a.raw", "b.qcow2", ImageFormat::Qcow2))
        .await
        .unwrap();
    assert_eq!(there.virtual_size_bytes, content.len() as u64);
    assert!(there.written_bytes < content.len() as u64);
    convert(to("b.qcow2", "c.raw", ImageFormat::Raw))
        .await
        .unwrap();
    assert!(std::fs::read(at("c.raw")).unwrap() == content);
    let equal = Comparison::Equal {
        compared_bytes: content.len() as u64,
    };
    assert_eq!(compare(&at("a.raw"), &at("b.qcow2")).await.unwrap(), equal);
    let refused = convert(to("a.raw", "b.qcow2", ImageFormat::Qcow2))
        .await
        .unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Conflict);
    let report = check(&at("b.qcow2")).await.unwrap();
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{report:?}");
    let runs = map(&at("b.qcow2")).await.unwrap();
    let mut offset = 0;
    for run in &runs {
        assert_eq!(run.offset, offset);
        offset += run.len_bytes;
        let data = &content[usize::try_from(run.offset).unwrap()..usize::try_from(offset).unwrap()];
        assert!(!run.zero || data.iter().all(|byte| *byte == 0));
        assert_eq!(run.host_offset.is_some(), !run.zero);
    }
    assert_eq!(offset, content.len() as u64);
    if qemu_img(&["check", "-q", text(&at("b.qcow2"))]) {
        qemu_img(&["compare", "-q", text(&at("a.raw")), text(&at("b.qcow2"))]);
    }
}

#[tokio::test]
async fn chains_made_here_and_by_qemu_are_told_alike() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    create(create_image(at("base.qcow2"), Some(1 << 20), None))
        .await
        .unwrap();
    let tip = create(create_image(at("tip.qcow2"), None, Some("base.qcow2")))
        .await
        .unwrap();
    assert_eq!(
        (tip.virtual_size_bytes, tip.backing_name.as_deref()),
        (1 << 20, Some("base.qcow2"))
    );
    let chain = info(&at("tip.qcow2")).await.unwrap();
    assert_eq!(chain.len(), 2);
    assert_eq!(chain[1].backing_name, None);
    assert!(chain[1].path.ends_with("base.qcow2"));
    let again = create(create_image(at("tip.qcow2"), Some(1 << 20), None))
        .await
        .unwrap_err();
    assert_eq!(again.kind, ErrorKind::Conflict);
    let sizeless = create(create_image(at("x.qcow2"), None, None))
        .await
        .unwrap_err();
    assert_eq!(sizeless.kind, ErrorKind::Invalid);
    assert!(!at("x.qcow2").exists());
    if qemu_img(&["check", "-q", text(&at("tip.qcow2"))]) {
        let (base, top) = (at("base.qcow2"), at("theirs.qcow2"));
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            "-b",
            text(&base),
            text(&top),
        ]);
        assert_eq!(info(&top).await.unwrap().len(), 2);
    }
}

#[tokio::test]
async fn what_is_not_an_image_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let missing = info(&folder.path().join("none.qcow2")).await.unwrap_err();
    assert_eq!(missing.kind, ErrorKind::NotFound);
    let broken = folder.path().join("broken.qcow2");
    std::fs::write(&broken, b"QFI\xfb\0\0\0\x63").unwrap();
    assert!(info(&broken).await.is_err());
    assert!(check(&broken).await.is_err());
    let raw = Source {
        format: Some(ImageFormat::Raw),
        ..Source::from(&broken)
    };
    assert_eq!(
        check(raw.clone()).await.unwrap_err().kind,
        ErrorKind::Invalid
    );
    assert_eq!(info(raw).await.unwrap()[0].format, ImageFormat::Raw);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_are_served_and_flushed_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("new.qcow2");
    let new = NamedDevice {
        name: "new".to_owned(),
        device: Device::Create {
            path: image.clone(),
            size_bytes: 1 << 20,
            backing: None,
        },
    };
    let any = nbd_server::ListenAddress::Tcp("127.0.0.1:0".parse().unwrap()).into();
    let server = serve(
        vec![new.clone()],
        std::slice::from_ref(&any),
        ServerLimits::default(),
    )
    .await
    .unwrap();
    let addresses = server.local_addresses();
    let nbd_server::ListenAddress::Tcp(address) = &addresses[0] else {
        panic!("{addresses:?}")
    };
    assert_ne!(address.port(), 0);
    // A name is served once, a file is made once, and its writer is alone.
    assert_eq!(
        serve(vec![new], &[], ServerLimits::default())
            .await
            .unwrap_err()
            .kind,
        ErrorKind::Conflict
    );
    let open = NamedDevice {
        name: "again".to_owned(),
        device: Device::Open {
            source: (&image).into(),
            read_only: false,
        },
    };
    assert_eq!(
        serve(vec![open.clone()], &[], ServerLimits::default())
            .await
            .unwrap_err()
            .kind,
        ErrorKind::Conflict
    );
    let url = format!("nbd://{address}");
    let written = Command::new("qemu-io")
        .args(["-f", "raw", "-c", "write -P 7 4096 8192", &url])
        .output();
    match written {
        Ok(output) => assert!(output.status.success(), "{output:?}"),
        Err(error) => {
            assert!(
                std::env::var_os("CI").is_none(),
                "qemu-io is needed: {error}"
            );
            eprintln!("SKIPPED: qemu-io is not installed: {error}");
            return;
        }
    }
    server.stop().await.unwrap();
    let report = check(&image).await.unwrap();
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{report:?}");
    let mut expected = vec![0; 1 << 20];
    expected[4096..12288].fill(7);
    let raw = folder.path().join("expected.raw");
    std::fs::write(&raw, expected).unwrap();
    let equal = Comparison::Equal {
        compared_bytes: 1 << 20,
    };
    assert_eq!(compare(&image, &raw).await.unwrap(), equal);
    serve(vec![open], &[], ServerLimits::default())
        .await
        .unwrap()
        .stop()
        .await
        .unwrap();
}
