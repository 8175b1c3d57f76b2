//! The registry of typed ids. Text becomes an id once, at the edge; nothing downstream checks it again.
//!
//! Generators take the time and a number as arguments, so that the same arguments give the same id.

use std::fmt;
use std::str::FromStr;

use crate::clock::Timestamp;
use crate::error::Error;
use crate::limits::{CHANGE_ID_BYTES_MAX, EXPORT_NAME_BYTES_MAX, ID_CHARS_MAX};

/// Common face of the ids that are text: a private `String`, read access, `Display`, `FromStr` by `parse`.
macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                Self::parse(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }
    };
}

text_id! {
    /// `backup_jobs.id`: one point in time of a VM, all its disks.
    ///
    /// Whatever its origin, it is a single harmless path component of at most 64 characters.
    BackupId
}

impl BackupId {
    /// Takes an id of the form that this hub makes: `backup-` and at most 64 characters of `[A-Za-z0-9._-]`, without
    /// `-disk<digits>-`, which legacy clients would take for a disk index (legacy client, job id rule).
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) for any other text.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if !text.starts_with(BACKUP_PREFIX) || text.len() > ID_CHARS_MAX || !is_file_safe(text) {
            return Err(malformed("backup id", text));
        }
        if names_a_disk(text) {
            return Err(malformed("backup id", text));
        }
        Ok(Self(text.to_owned()))
    }

    /// Takes any id that a stored row may carry, those of legacy hubs included: they put the VM's name into it as it
    /// was, and made rows per disk. For look-ups and for reading rows; a new id is always [`generate`](Self::generate)d.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) if the text could not be one path component, or is too long.
    pub fn parse_stored(text: &str) -> Result<Self, Error> {
        path_component("backup id", text).map(Self)
    }

    /// The id of the backup of `vm_name` that starts at `at`: `backup-{vm}-{unix seconds}`, with `-{ordinal}` at the
    /// end unless `ordinal` is 0. The caller raises `ordinal` while the id is taken.
    ///
    /// A name that does not fit (other characters, too long, looks like a disk) is cleaned and gets a hash of the whole name.
    #[must_use]
    pub fn generate(vm_name: &str, at: Timestamp, ordinal: u32) -> Self {
        Self(compose(
            BACKUP_PREFIX,
            vm_name,
            &seconds_suffix(at, ordinal),
        ))
    }
}

text_id! {
    /// `backup_repositories.id`: where image files are kept.
    RepositoryId
}

impl RepositoryId {
    /// Takes at most 64 characters of `[A-Za-z0-9._-]`, not starting with a dot.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) for any other text.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.is_empty()
            || text.len() > ID_CHARS_MAX
            || !is_file_safe(text)
            || text.starts_with('.')
        {
            return Err(malformed("repository id", text));
        }
        Ok(Self(text.to_owned()))
    }
}

text_id! {
    /// `vm_replication_contexts.context_id`: the VM in the inventory. It names the VM's folder in a repository, so it is
    /// always a single harmless path component.
    VmContextId
}

impl VmContextId {
    /// Takes at most 64 characters that can be one path component.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) for any other text.
    pub fn parse(text: &str) -> Result<Self, Error> {
        path_component("vm context id", text).map(Self)
    }

    /// The id of the VM `vm_name` that was registered at `at`; `ordinal` as in [`BackupId::generate`].
    #[must_use]
    pub fn generate(vm_name: &str, at: Timestamp, ordinal: u32) -> Self {
        Self(compose(
            VM_CONTEXT_PREFIX,
            vm_name,
            &seconds_suffix(at, ordinal),
        ))
    }
}

text_id! {
    /// `vm_backup_contexts.context_id`: a VM in a repository.
    ContextId
}

impl ContextId {
    /// Takes at most 64 characters that can be one path component.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) for any other text.
    pub fn parse(text: &str) -> Result<Self, Error> {
        path_component("backup context id", text).map(Self)
    }

    /// The id of the context of `vm_name` that was made at `at`: `ctx-backup-{vm}-{unix seconds}`; `ordinal` as in
    /// [`BackupId::generate`].
    #[must_use]
    pub fn generate(vm_name: &str, at: Timestamp, ordinal: u32) -> Self {
        Self(compose(
            CONTEXT_PREFIX,
            vm_name,
            &seconds_suffix(at, ordinal),
        ))
    }
}

text_id! {
    /// `backup_policies.id`: where backups go, for how long, and where copies of them go.
    PolicyId
}

impl PolicyId {
    /// Takes at most 64 characters that can be one path component.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) for any other text.
    pub fn parse(text: &str) -> Result<Self, Error> {
        path_component("policy id", text).map(Self)
    }

    /// The id that these random bits make, a UUID.
    #[must_use]
    pub fn from_random(random: [u8; 16]) -> Self {
        Self(uuid_text(random))
    }
}

text_id! {
    /// `backup_copy_rules.id`: where a policy wants copies.
    CopyRuleId
}

impl CopyRuleId {
    /// Takes at most 64 characters that can be one path component.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) for any other text.
    pub fn parse(text: &str) -> Result<Self, Error> {
        path_component("copy rule id", text).map(Self)
    }

    /// The id that these random bits make, a UUID.
    #[must_use]
    pub fn from_random(random: [u8; 16]) -> Self {
        Self(uuid_text(random))
    }
}

text_id! {
    /// `backup_copies.id`: a copy of a backup in another repository.
    CopyId
}

impl CopyId {
    /// Takes at most 64 characters that can be one path component.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) for any other text.
    pub fn parse(text: &str) -> Result<Self, Error> {
        path_component("copy id", text).map(Self)
    }

    /// The id that these random bits make, a UUID.
    #[must_use]
    pub fn from_random(random: [u8; 16]) -> Self {
        Self(uuid_text(random))
    }
}

text_id! {
    /// The hypervisor's change-tracking position of one disk at one backup. Opaque: only compared and handed back.
    ChangeId
}

impl ChangeId {
    /// Takes 1 to 255 bytes without control characters. Surrounding white space is kept: the text is not ours.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) for any other text.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.trim().is_empty()
            || text.len() > CHANGE_ID_BYTES_MAX
            || text.contains(char::is_control)
        {
            return Err(malformed("change id", text));
        }
        Ok(Self(text.to_owned()))
    }
}

text_id! {
    /// The name of a device that the NBD server serves: at most 192 of `[A-Za-z0-9._-]`, because legacy clients put it into
    /// a URL and decode it more than once (legacy-client `nbd_targets` grammar).
    ExportName
}

impl ExportName {
    /// Takes 1 to 192 characters of `[A-Za-z0-9._-]`.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) for any other text.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.is_empty() || text.len() > EXPORT_NAME_BYTES_MAX || !is_file_safe(text) {
            return Err(malformed("export name", text));
        }
        Ok(Self(text.to_owned()))
    }

    /// The export of one disk of a backup under a name that nobody guesses: `{vm}-{32 hex digits}-disk{index}`. Legacy clients
    /// read the index from the end of it, and take a name with `-disk<digits>-` in it for another disk.
    #[must_use]
    pub fn private(vm_name: &str, secret: [u8; 16], disk: DiskIndex) -> Self {
        let digits = secret.map(|byte| format!("{byte:02x}")).concat();
        let job = compose("", vm_name, &format!("-{digits}"));
        Self(format!("{job}-disk{disk}"))
    }

    /// The export of one disk of a backup. Ends in `disk<index>`, which is where legacy clients read the index from.
    #[must_use]
    pub fn of_disk(backup: &BackupId, disk: DiskIndex) -> Self {
        let safe: String = backup
            .as_str()
            .chars()
            .map(file_safe_or_underscore)
            .collect();
        Self(format!("{safe}-disk{disk}"))
    }
}

/// Position of a disk among the disks of its VM, ordered by device key; counted from 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DiskIndex(u32);

impl DiskIndex {
    /// The disk at this position.
    #[must_use]
    pub const fn new(position: u32) -> Self {
        Self(position)
    }

    /// The position, counted from 0.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for DiskIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for DiskIndex {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        text.parse()
            .map(Self)
            .map_err(|_| malformed("disk index", text))
    }
}

/// The hypervisor's key of a virtual device, such as 2000: what tells the disks of a VM apart for as long as they exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceKey(u32);

impl DeviceKey {
    /// The key, if it fits the database's `INT`.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) for a key of 2^31 or more.
    pub fn new(key: u32) -> Result<Self, Error> {
        if i32::try_from(key).is_err() {
            return Err(malformed("device key", &key.to_string()));
        }
        Ok(Self(key))
    }

    /// Reads the key out of a disk id of the inventory: `disk-2000` is device 2000.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) unless the text is `disk-` and decimal digits below 2^31 without leading zeroes,
    /// so that no two texts mean the same device.
    pub fn from_disk_id(disk_id: &str) -> Result<Self, Error> {
        let refused = || malformed("disk id", disk_id);
        let digits = disk_id.strip_prefix("disk-").ok_or_else(refused)?;
        let canonical = digits == "0" || !digits.starts_with('0');
        if !canonical || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(refused());
        }
        Self::new(digits.parse().map_err(|_| refused())?).map_err(|_| refused())
    }

    /// The disk id of the inventory: the opposite of [`from_disk_id`](Self::from_disk_id).
    #[must_use]
    pub fn to_disk_id(self) -> String {
        format!("disk-{}", self.0)
    }

    /// The key as a number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `backup_disks.id`: one disk of one backup, and with it one image file. Made by the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackupDiskId(i64);

impl BackupDiskId {
    /// The id that a row carries.
    #[must_use]
    pub const fn new(id: i64) -> Self {
        Self(id)
    }

    /// The id as the database stores it.
    #[must_use]
    pub const fn get(self) -> i64 {
        self.0
    }
}

impl fmt::Display for BackupDiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `backup_chains.id`: `chain-{context}-disk{n}`, with a hash in place of a context id that leaves no room.
pub(crate) fn chain_row_id(context: &ContextId, disk: DiskIndex) -> String {
    let id = format!("chain-{context}-disk{disk}");
    if id.chars().count() <= ID_CHARS_MAX {
        return id;
    }
    format!(
        "chain-{:016x}-disk{disk}",
        fnv1a(context.as_str().as_bytes())
    )
}

const BACKUP_PREFIX: &str = "backup-";
const VM_CONTEXT_PREFIX: &str = "ctx-";
const CONTEXT_PREFIX: &str = "ctx-backup-";

/// Longest piece of a refused text that an error repeats, in characters.
const QUOTED_CHARS_MAX: usize = 80;

fn malformed(what: &str, text: &str) -> Error {
    let quoted: String = text.chars().take(QUOTED_CHARS_MAX).collect();
    Error::invalid(
        format!("malformed {what}"),
        format!("length={} text={quoted:?}", text.len()),
    )
}

fn is_file_safe(text: &str) -> bool {
    text.chars().all(|c| file_safe_or_underscore(c) == c)
}

fn file_safe_or_underscore(c: char) -> char {
    if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') {
        c
    } else {
        '_'
    }
}

/// Any text that can be one component of a path on Unix, of at most 64 characters.
/// A UUID of version 4 (RFC 9562, 5.4).
fn uuid_text(random: [u8; 16]) -> String {
    let uuid = uuid::Builder::from_random_bytes(random).into_uuid();
    uuid.to_string()
}

fn path_component(what: &str, text: &str) -> Result<String, Error> {
    let too_long = text.chars().count() > ID_CHARS_MAX;
    let special = text.is_empty() || text == "." || text == "..";
    if too_long || special || text.contains(|c: char| matches!(c, '/' | '\\') || c.is_control()) {
        return Err(malformed(what, text));
    }
    Ok(text.to_owned())
}

/// Whether legacy clients would read a disk index out of the middle of this id: `-disk<digits>-`.
fn names_a_disk(text: &str) -> bool {
    text.match_indices("-disk").any(|(at, found)| {
        let rest = &text[at + found.len()..];
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        digits > 0 && rest[digits..].starts_with('-')
    })
}

fn seconds_suffix(at: Timestamp, ordinal: u32) -> String {
    // A clock before 1970 is broken; the ordinal still makes the id unique.
    let seconds = at.unix_timestamp().max(0);
    if ordinal == 0 {
        format!("-{seconds}")
    } else {
        format!("-{seconds}-{ordinal}")
    }
}

/// `{prefix}{name}{suffix}` within 64 characters. A name that had to be changed carries a hash of the original.
fn compose(prefix: &str, name: &str, suffix: &str) -> String {
    let room = ID_CHARS_MAX - prefix.len() - suffix.len();
    let mut clean = String::with_capacity(name.len());
    for c in name.chars() {
        // `disk` before a digit is broken up, so that `-disk<digits>-` cannot arise.
        if c.is_ascii_digit() && clean.ends_with("disk") {
            clean.push('_');
        }
        clean.push(file_safe_or_underscore(c));
    }
    if clean == name && clean.len() <= room && !clean.is_empty() {
        return format!("{prefix}{clean}{suffix}");
    }
    let hash = format!("-{:016x}", fnv1a(name.as_bytes()));
    clean.truncate(room - hash.len());
    format!("{prefix}{clean}{hash}{suffix}")
}

/// FNV-1a, 64 bits: stable across releases, which the standard library's hasher does not promise. Ids that are not
/// unique are refused by the catalog, so it only has to spread.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn random_bits_make_a_uuid_of_version_4() {
        let id = PolicyId::from_random([0xff; 16]);
        assert_eq!(id.as_str(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(PolicyId::parse(id.as_str()).expect("an id"), id);
        assert_ne!(CopyId::from_random([0; 16]), CopyId::from_random([1; 16]));
    }

    #[test]
    fn ids_of_policies_fit_a_column_and_a_path() {
        let longest = "x".repeat(ID_CHARS_MAX);
        for good in ["p", "policy of elsewhere", &longest] {
            assert!(PolicyId::parse(good).is_ok(), "{good:?}");
            assert!(CopyRuleId::parse(good).is_ok(), "{good:?}");
        }
        for bad in ["", "..", "a/b", "a\nb", &format!("{longest}x")] {
            assert!(PolicyId::parse(bad).is_err(), "{bad:?}");
            assert!(CopyRuleId::parse(bad).is_err(), "{bad:?}");
        }
    }

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
        fn private_names_hold_their_secret_and_are_legal(
            name in "\\PC{0,300}|(-|disk|[0-9]|_|x){0,40}",
            secret in any::<[u8; 16]>(),
            disk in 0_u32..1000,
        ) {
            let export = ExportName::private(&name, secret, DiskIndex::new(disk));
            prop_assert!(ExportName::parse(export.as_str()).is_ok());
            let end = format!("{:032x}-disk{disk}", u128::from_be_bytes(secret));
            prop_assert!(export.as_str().ends_with(&end), "{export}");
            prop_assert!(!names_a_disk(export.as_str()), "{export}");
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
}
