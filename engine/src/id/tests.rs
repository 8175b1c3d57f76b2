use proptest::prelude::*;

use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix_timestamp(seconds).expect("a valid second")
}

#[test]
fn a_plain_name_is_kept() {
    let id = BackupId::generate("web-01.example", at(1_760_000_000), 0);
    assert_eq!(id.as_str(), "backup-web-01.example-1760000000");
    let id = BackupId::generate("web-01.example", at(1_760_000_000), 2);
    assert_eq!(id.as_str(), "backup-web-01.example-1760000000-2");
    let id = ContextId::generate("web-01", at(7), 0);
    assert_eq!(id.as_str(), "ctx-backup-web-01-7");
    let id = VmContextId::generate("web-01", at(7), 0);
    assert_eq!(id.as_str(), "ctx-web-01-7");
}

#[test]
fn odd_names_give_legal_and_different_ids() {
    let long = "x".repeat(255);
    let longer = format!("{}y", "x".repeat(254));
    let odd = [
        "",
        " ",
        "a b",
        "a_b",
        "a  b",
        "ä",
        "日本語の名前",
        "x-disk3-y",
        "x-disk_3-y",
        "disk0",
        "-disk1-disk2-",
        "../../etc/passwd",
        "a/b",
        "a%2fb",
        "a\nb",
        &long,
        &longer,
        "-disk",
        "disk",
    ];
    let mut seen = std::collections::BTreeSet::new();
    for name in odd {
        let id = BackupId::generate(name, at(1_760_000_000), 0);
        assert!(
            BackupId::parse(id.as_str()).is_ok(),
            "name={name:?} id={id}"
        );
        assert!(seen.insert(id.clone()), "name={name:?} repeats id={id}");
        assert!(ContextId::parse(ContextId::generate(name, at(1), 3).as_str()).is_ok());
        assert!(VmContextId::parse(VmContextId::generate(name, at(1), 3).as_str()).is_ok());
    }
}

#[test]
fn backup_ids_of_legacy_rows_are_read_but_not_made() {
    for legacy in [
        "backup-my vm-1759900000",
        "backup-web-disk0-20251008-101500",
        "backup-büro-1759900000",
    ] {
        assert!(BackupId::parse(legacy).is_err(), "{legacy}");
        assert!(BackupId::parse_stored(legacy).is_ok(), "{legacy}");
    }
    for never in [
        "",
        ".",
        "..",
        "backup-../x",
        "backup-a\0b",
        "backup-a\nb",
        &"b".repeat(65),
    ] {
        assert!(BackupId::parse(never).is_err(), "{never:?}");
        assert!(BackupId::parse_stored(never).is_err(), "{never:?}");
    }
}

#[test]
fn device_keys_come_from_disk_ids() {
    assert_eq!(
        DeviceKey::from_disk_id("disk-2000")
            .map(DeviceKey::get)
            .ok(),
        Some(2000)
    );
    assert_eq!(
        DeviceKey::from_disk_id("disk-0").map(DeviceKey::get).ok(),
        Some(0)
    );
    for refused in [
        "",
        "disk-",
        "2000",
        "disk-+1",
        "disk--1",
        "disk-02000",
        "disk-2147483648",
        "disk-99999999999",
        "Disk-1",
        "disk-1 ",
    ] {
        assert!(DeviceKey::from_disk_id(refused).is_err(), "{refused:?}");
    }
}

#[test]
fn change_ids_are_opaque_but_bounded() {
    for taken in ["52 a1/4", "*", "x", &"c".repeat(255)] {
        assert_eq!(ChangeId::parse(taken).expect(taken).as_str(), taken);
    }
    for refused in ["", " ", "\t", "a\0", "a\nb", &"c".repeat(256)] {
        assert!(ChangeId::parse(refused).is_err(), "{refused:?}");
    }
}

#[test]
fn an_export_name_ends_in_its_disk() {
    let backup = BackupId::generate("web", at(5), 0);
    let name = ExportName::of_disk(&backup, DiskIndex::new(3));
    assert_eq!(name.as_str(), "backup-web-5-disk3");
    assert!(ExportName::parse(name.as_str()).is_ok());
}

proptest! {
    #[test]
    fn generated_ids_are_legal(name in "\\PC{0,255}", seconds in 0i64..=253_402_300_799, ordinal in any::<u32>()) {
        let backup = BackupId::generate(&name, at(seconds), ordinal);
        prop_assert!(BackupId::parse(backup.as_str()).is_ok(), "{backup}");
        prop_assert!(BackupId::parse_stored(backup.as_str()).is_ok());
        prop_assert!(ContextId::parse(ContextId::generate(&name, at(seconds), ordinal).as_str()).is_ok());
        prop_assert!(VmContextId::parse(VmContextId::generate(&name, at(seconds), ordinal).as_str()).is_ok());
        let export = ExportName::of_disk(&backup, DiskIndex::new(ordinal));
        prop_assert!(ExportName::parse(export.as_str()).is_ok());
        let suffix = format!("-disk{ordinal}");
        prop_assert!(export.as_str().ends_with(&suffix));
    }

    #[test]
    fn names_built_from_disk_words_are_harmless(name in "(-|disk|[0-9]|_|x){0,40}") {
        let backup = BackupId::generate(&name, at(1_760_000_000), 1);
        prop_assert!(!names_a_disk(backup.as_str()), "{backup}");
    }

    #[test]
    fn different_names_give_different_ids(a in "\\PC{0,300}", b in "\\PC{0,300}") {
        let ids = (BackupId::generate(&a, at(9), 0), BackupId::generate(&b, at(9), 0));
        prop_assert_eq!(a == b, ids.0 == ids.1);
    }

    #[test]
    fn parsing_never_panics(text in any::<String>()) {
        let _ = (BackupId::parse(&text), BackupId::parse_stored(&text), RepositoryId::parse(&text));
        let _ = (ChangeId::parse(&text), ExportName::parse(&text), DeviceKey::from_disk_id(&text));
    }
}
