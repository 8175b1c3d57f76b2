//! Real files of this machine, chosen in a fixed order, to fill the demo's disks with.

use std::fs;
use std::path::{Path, PathBuf};

/// Where real files are found on a Debian-like machine.
const PLACES: &[&str] = &["/usr/lib", "/usr/share", "/usr/bin", "/etc"];

/// A single file may take this share of the budget, so that a disk holds many.
const LARGEST_SHARE: u64 = 8;

/// One real file and the name that it gets on the disk.
#[derive(Debug, Clone)]
pub(super) struct RealFile {
    pub(super) source: PathBuf,
    pub(super) name: String,
    pub(super) len_bytes: u64,
}

/// Picks up to `count` real files of up to `budget_bytes` together; `skip` leaves out that many
/// candidates first, so that two disks hold different files.
pub(super) fn pick(budget_bytes: u64, count: usize, skip: usize) -> Vec<RealFile> {
    let mut picked = Vec::new();
    let mut left = budget_bytes;
    let mut to_skip = skip;
    // The program itself comes first: a file that is there wherever the demo runs.
    let own = std::env::current_exe().into_iter();
    for source in own.chain(PLACES.iter().map(PathBuf::from)) {
        let more = walk(&source, 0, &mut |path, len_bytes| {
            if len_bytes == 0 || len_bytes > left || len_bytes > budget_bytes / LARGEST_SHARE {
                return picked.len() < count;
            }
            if to_skip > 0 {
                to_skip -= 1;
                return true;
            }
            let number = picked.len();
            let stem = path.file_name().unwrap_or_default().to_string_lossy();
            picked.push(RealFile {
                source: path.to_owned(),
                name: format!("{number:04}-{}", plain_name(&stem)),
                len_bytes,
            });
            left -= len_bytes;
            picked.len() < count
        });
        if !more {
            break;
        }
    }
    picked
}

/// Visits regular files below `path` in name order until `visit` says no.
fn walk(path: &Path, depth: usize, visit: &mut dyn FnMut(&Path, u64) -> bool) -> bool {
    let Ok(meta) = fs::symlink_metadata(path) else {
        return true;
    };
    if meta.is_file() {
        return visit(path, meta.len());
    }
    // What cannot be listed is left out: the demo needs some real files, not all.
    let Ok(entries) = fs::read_dir(path) else {
        return true;
    };
    if !meta.is_dir() || depth > 8 {
        return true;
    }
    let mut children: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    children.sort();
    children.iter().all(|child| walk(child, depth + 1, visit))
}

/// A name that every filesystem of the demo takes.
fn plain_name(name: &str) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || "._-".contains(c) {
            c
        } else {
            '_'
        }
    };
    name.chars().map(plain).take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_within_its_budget_and_names_are_plain() {
        let files = pick(8 << 20, 50, 0);
        assert!(!files.is_empty());
        assert!(files.len() <= 50);
        assert!(files.iter().map(|file| file.len_bytes).sum::<u64>() <= 8 << 20);
        assert_eq!(plain_name("a b/ü+.so"), "a_b___.so");
    }
}
