//! States on disk, and the decision that stands on them.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::ErrorKind;
use crate::limits::MAX_STATE_NAME_BYTES;

const BLOCK: u32 = 65536;
const VM: &str = "web/01 ü";
const DISK: &str = "disk-2000";

fn header(size_bytes: u64, change_id: ChangeId, backup_id: &str) -> StateHeader {
    StateHeader {
        identity: format::Identity {
            vm_name: VM.to_owned(),
            disk_id: DISK.to_owned(),
        },
        size_bytes,
        block_bytes: BLOCK,
        change_id,
        backup_id: backup_id.to_owned(),
    }
}

fn change_id(generation: u64) -> ChangeId {
    ChangeId {
        epoch: Uuid::from_u128(7),
        generation,
    }
}

fn write_state(states: &VmStates, header: &StateHeader, hashes: &[BlockHash]) {
    let mut writer = states.create(header).unwrap();
    for hash in hashes {
        writer.push(hash).unwrap();
    }
    writer.finish().unwrap().commit().unwrap();
}

fn state_file(root: &Path) -> std::path::PathBuf {
    let vm = fs::read_dir(root).unwrap().next().unwrap().unwrap().path();
    vm.join("disk-2000.track")
}

fn damage_of(loaded: Loaded) -> String {
    match loaded {
        Loaded::Damaged(why) => why,
        other => panic!("expected damage, got {other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_state_comes_back_as_it_was(
        hashes in proptest::collection::vec(any::<BlockHash>(), 1..40),
        short in 0u64..65536,
        generation in 1u64..,
        backup_id in "[a-z0-9-]{1,40}",
    ) {
        let root = tempfile::tempdir().unwrap();
        let states = VmStates::open(root.path(), VM).unwrap();
        let size = hashes.len() as u64 * u64::from(BLOCK) - short;
        let header = header(size, change_id(generation), &backup_id);
        write_state(&states, &header, &hashes);

        let Loaded::Present(state) = states.load(DISK) else { panic!("not present") };
        prop_assert_eq!(state.header(), &header);
        let mut reader = state.into_hashes().unwrap();
        for hash in &hashes {
            prop_assert_eq!(&reader.next_hash().unwrap(), hash);
        }
    }

    #[test]
    fn any_damage_is_found(
        blocks in 1usize..20,
        position in any::<prop::sample::Index>(),
        bit in 0u8..8,
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let root = tempfile::tempdir().unwrap();
        let states = VmStates::open(root.path(), VM).unwrap();
        let size = blocks as u64 * u64::from(BLOCK);
        write_state(&states, &header(size, change_id(1), "b"), &vec![[9; 16]; blocks]);

        let path = state_file(root.path());
        let mut bytes = fs::read(&path).unwrap();
        match cut {
            Some(cut) => bytes.truncate(cut.index(bytes.len())),
            None => {
                let at = position.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
        }
        fs::write(&path, bytes).unwrap();
        let why = damage_of(states.load(DISK));
        prop_assert!(why.contains("path="), "{}", why);
    }
}

#[test]
fn nothing_is_in_force_before_the_commit() {
    let root = tempfile::tempdir().unwrap();
    let states = VmStates::open(root.path(), VM).unwrap();
    assert!(matches!(states.load(DISK), Loaded::Absent));

    write_state(&states, &header(65536, change_id(1), "one"), &[[1; 16]]);
    let mut writer = states.create(&header(65536, change_id(2), "two")).unwrap();
    writer.push(&[2; 16]).unwrap();
    let pending = writer.finish().unwrap();
    let Loaded::Present(state) = states.load(DISK) else {
        panic!("the old state is gone")
    };
    assert_eq!(state.header().backup_id, "one");

    drop(pending);
    let Loaded::Present(state) = states.load(DISK) else {
        panic!("the old state is gone")
    };
    assert_eq!(state.header().backup_id, "one");
    let left = fs::read_dir(state_file(root.path()).parent().unwrap()).unwrap();
    let names: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        !names
            .iter()
            .any(|name| name.to_string_lossy().ends_with(".partial")),
        "left over: {names:?}"
    );
}

#[test]
fn a_state_needs_one_hash_per_block() {
    let root = tempfile::tempdir().unwrap();
    let states = VmStates::open(root.path(), VM).unwrap();
    let two_blocks = header(65537, change_id(1), "b");

    let mut writer = states.create(&two_blocks).unwrap();
    writer.push(&[0; 16]).unwrap();
    let error = writer.finish().unwrap_err().to_string();
    assert!(error.contains("missing=1"), "{error}");

    let mut writer = states.create(&two_blocks).unwrap();
    writer.push(&[0; 16]).unwrap();
    writer.push(&[0; 16]).unwrap();
    assert!(writer.push(&[0; 16]).is_err());
}

#[test]
fn a_state_of_another_disk_is_no_state() {
    let root = tempfile::tempdir().unwrap();
    let states = VmStates::open(root.path(), VM).unwrap();
    write_state(&states, &header(65536, change_id(1), "b"), &[[1; 16]]);
    let path = state_file(root.path());
    fs::copy(&path, path.with_file_name("disk-2001.track")).unwrap();
    let why = damage_of(states.load("disk-2001"));
    assert!(why.contains("another disk"), "{why}");
}

#[test]
fn one_run_at_a_time() {
    let root = tempfile::tempdir().unwrap();
    let first = VmStates::open(root.path(), VM).unwrap();
    let error = VmStates::open(root.path(), VM).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    VmStates::open(root.path(), "another vm").unwrap();
    drop(first);
    VmStates::open(root.path(), VM).unwrap();
}

#[test]
fn names_become_harmless_and_different_files() {
    let root = tempfile::tempdir().unwrap();
    let long = "x".repeat(MAX_STATE_NAME_BYTES);
    let names = [
        "..",
        ".",
        "a/b",
        "a%2fb",
        "",
        "a b",
        "a_b",
        ".hidden",
        &long,
        &long[1..],
    ];
    for name in names {
        VmStates::open(root.path(), name).unwrap();
    }
    let made: Vec<_> = fs::read_dir(root.path()).unwrap().collect();
    assert_eq!(made.len(), names.len());
    assert_eq!(
        fs::read_dir(root.path().parent().unwrap())
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name() == "b")
            .count(),
        0
    );
}

#[test]
fn a_name_too_long_is_refused_before_anything_is_written() {
    let root = tempfile::tempdir().unwrap();
    let vm = "x".repeat(MAX_STATE_NAME_BYTES + 1);
    let states = VmStates::open(root.path(), &vm).unwrap();
    let mut header = header(65536, change_id(1), "b");
    header.identity = states.identity(DISK);
    let error = states.create(&header).unwrap_err();
    assert!(
        error.full_text().contains("limit=1024"),
        "{}",
        error.full_text()
    );
}

mod decision {
    use super::*;

    const SIZE: u64 = 3 * 65536;
    const RUNNING: &str = "backup-vm-2";

    fn present() -> (tempfile::TempDir, Loaded) {
        let root = tempfile::tempdir().unwrap();
        let states = VmStates::open(root.path(), VM).unwrap();
        write_state(
            &states,
            &header(SIZE, change_id(4), "backup-vm-1"),
            &[[1; 16]; 3],
        );
        let loaded = states.load(DISK);
        (root, loaded)
    }

    fn base(change_id: &str, backup_id: Option<&str>) -> BaseAtHub {
        BaseAtHub::Increment {
            change_id: change_id.to_owned(),
            backup_id: backup_id.map(str::to_owned),
        }
    }

    fn check(base: &BaseAtHub, state: &Loaded, size: u64, reason: Option<&str>, next: ChangeId) {
        let decision = decide(base, state, size, BLOCK, RUNNING, Uuid::from_u128(99));
        let name = decision.everything.as_ref().map(Everything::name);
        assert_eq!(name, reason, "{:?}", decision.everything);
        assert_eq!(decision.change_id, next);
    }

    #[test]
    fn unchanged_blocks_are_left_out_only_on_the_very_same_point() {
        let (_root, state) = present();
        let fresh = ChangeId::first(Uuid::from_u128(99));
        let next = change_id(5);
        let same = change_id(4).to_string();

        check(&base(&same, Some("backup-vm-1")), &state, SIZE, None, next);
        check(&base(&same, None), &state, SIZE, None, next);
        check(&base(&same, Some(RUNNING)), &state, SIZE, None, next);

        let other = Some("other-base-at-hub");
        // The same change id, made by another backup: a state directory that was set back.
        check(
            &base(&same, Some("backup-vm-0")),
            &state,
            SIZE,
            other,
            fresh,
        );
        check(
            &base(&change_id(3).to_string(), Some("backup-vm-1")),
            &state,
            SIZE,
            other,
            fresh,
        );
        check(&base("", None), &state, SIZE, other, fresh);
        check(&base("*", Some("backup-vm-1")), &state, SIZE, other, fresh);
        check(
            &base(&format!("{same}/1"), Some("backup-vm-1")),
            &state,
            SIZE,
            other,
            fresh,
        );
    }

    #[test]
    fn a_state_that_does_not_fit_is_not_used() {
        let (_root, state) = present();
        let fresh = ChangeId::first(Uuid::from_u128(99));
        let same = base(&change_id(4).to_string(), None);
        check(&same, &state, SIZE + 512, Some("disk-size-changed"), fresh);
        check(
            &same,
            &Loaded::Absent,
            SIZE,
            Some("tracking-state-missing"),
            fresh,
        );
        let damaged = Loaded::Damaged("torn".to_owned());
        check(&same, &damaged, SIZE, Some("tracking-state-damaged"), fresh);
        let decision = decide(&same, &state, SIZE, BLOCK * 2, RUNNING, Uuid::from_u128(99));
        assert_eq!(
            decision.everything.unwrap().name(),
            "tracking-state-damaged"
        );
    }

    #[test]
    fn a_full_backup_sends_everything_and_goes_on_in_the_epoch() {
        let (_root, state) = present();
        let full = Some("full-backup");
        check(&BaseAtHub::Full, &state, SIZE, full, change_id(5));
        let fresh = ChangeId::first(Uuid::from_u128(99));
        check(&BaseAtHub::Full, &Loaded::Absent, SIZE, full, fresh);
        check(&BaseAtHub::Full, &state, SIZE * 2, full, fresh);
    }
}
