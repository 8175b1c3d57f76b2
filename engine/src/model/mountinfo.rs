//! What is mounted, as `/proc/self/mountinfo` tells it (proc(5)).

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Where.
    pub mount_point: String,
    /// What, as the mounter named it: `server:/export`, `//server/share`, a device.
    pub source: String,
    /// How: `nfs4`, `cifs`, `ext4`.
    pub filesystem: String,
}

/// What is mounted at `mount_point` itself; of several on top of each other the one that is seen, which is the last.
#[must_use]
pub fn mounted_at(mountinfo: &str, mount_point: &str) -> Option<Mounted> {
    mountinfo
        .lines()
        .filter_map(read_line)
        .rfind(|mounted| mounted.mount_point == mount_point)
}

/// Whether two names of a source mean the same; mounters add and drop slashes at the end.
#[must_use]
pub fn is_same_source(one: &str, other: &str) -> bool {
    one.trim_end_matches('/') == other.trim_end_matches('/')
}

/// `id parent major:minor root mount_point options [optional…] - filesystem source super_options`.
fn read_line(line: &str) -> Option<Mounted> {
    let (mount, device) = line.split_once(" - ")?;
    let mount_point = mount.split(' ').nth(4)?;
    let mut device = device.split(' ');
    let filesystem = device.next()?.to_owned();
    Some(Mounted {
        mount_point: unescape(mount_point),
        source: unescape(device.next()?),
        filesystem,
    })
}

/// Space, tab, newline, backslash and `#` appear as three octal digits after a backslash.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *first == b'\\');
        let byte = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match byte {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
22 28 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
28 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
90 28 0:52 / /mnt/sendense/repo-nfs-1 rw,relatime shared:50 master:2 - nfs4 nas:/export/backup rw,vers=4.2,addr=10.0.0.2
91 28 0:53 / /mnt/with\\040space\\134and\\043more rw,relatime - cifs //nas/share\\040one rw,vers=3.0
92 28 0:54 / /mnt/twice rw,relatime - ext4 /dev/sdb1 rw
93 92 0:55 / /mnt/twice rw,relatime - nfs nas:/over rw
94 28 0:56 / /mnt/none rw,relatime - tmpfs  rw
95 28 0:57 / /mnt/old\\04 rw - cifs //nas/x rw
a line that is none
96 28 0:58 / /mnt/cut rw,relatime - nfs
";

    #[test]
    fn what_is_mounted_is_told_by_its_place() {
        let check = |at: &str, filesystem: &str, source: &str| {
            let found = mounted_at(MOUNTINFO, at);
            let expected = Mounted {
                mount_point: at.to_owned(),
                source: source.to_owned(),
                filesystem: filesystem.to_owned(),
            };
            assert_eq!(found, Some(expected), "{at}");
        };
        check("/", "ext4", "/dev/vda1");
        check("/mnt/sendense/repo-nfs-1", "nfs4", "nas:/export/backup");
        check("/mnt/with space\\and#more", "cifs", "//nas/share one");
        check("/mnt/twice", "nfs", "nas:/over");
        check("/mnt/none", "tmpfs", "");
        check("/mnt/old\\04", "cifs", "//nas/x");
        for absent in [
            "",
            "/mnt",
            "/mnt/sendense",
            "/mnt/sendense/repo-nfs-1/x",
            "/mnt/cut",
        ] {
            assert_eq!(mounted_at(MOUNTINFO, absent), None, "{absent}");
        }
    }

    #[test]
    fn slashes_at_the_end_make_no_other_source() {
        assert!(is_same_source("nas:/export", "nas:/export/"));
        assert!(is_same_source("nas:/", "nas:"));
        assert!(!is_same_source("nas:/export", "nas:/export2"));
        assert!(!is_same_source("nas:/export", "nas2:/export"));
    }
}
