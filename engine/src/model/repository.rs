//! Repositories: where images are kept, and what may be said about it.

use super::check_text;
use crate::clock::Timestamp;
use crate::config::Secret;
use crate::error::Error;
use crate::id::RepositoryId;
use crate::limits::{IMAGE_PATH_BYTES_MAX, MOUNT_OPTIONS_MAX, NAME_CHARS_MAX, RETENTION_DAYS_MAX};

/// A repository as lists show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositorySummary {
    /// Its id.
    pub id: RepositoryId,
    /// Its name, unique.
    pub name: String,
    /// `local`, `nfs`, `cifs`, `smb`, `s3` or `azure`.
    pub repository_type: String,
    /// Whether new backups may go there.
    pub enabled: bool,
    /// Root folder on this hub; empty where the type has none.
    pub path: String,
    /// Where it is; nothing for a type that this hub does not know.
    pub place: Option<Place>,
    /// For people; may be empty.
    pub description: String,
    /// Whether points are locked after completion.
    pub is_immutable: bool,
    /// How long they are locked at least.
    pub min_retention_days: u32,
    /// What was seen of its storage last.
    pub storage: Option<StorageSeen>,
    /// Backups in it, whatever became of them.
    pub backup_count: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

/// Where images are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A folder of this hub.
    Local {
        /// Absolute.
        path: String,
    },
    /// A share of an NFS server.
    Nfs {
        /// Its name or address.
        server: String,
        /// What it exports, absolute.
        export_path: String,
        /// Where it is mounted here.
        mount_point: String,
        /// Version of the protocol; the mounter's choice if empty.
        nfs_version: String,
        /// Further options.
        mount_options: Vec<String>,
    },
    /// A share of an SMB server. Its password is kept apart.
    Cifs {
        /// Its name or address.
        server: String,
        /// The share.
        share_name: String,
        /// Where it is mounted here.
        mount_point: String,
        /// Who logs in; a guest if empty.
        username: String,
        /// The domain of the user; may be empty.
        domain: String,
        /// Further options.
        mount_options: Vec<String>,
    },
}

/// A mount that a repository stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `nfs` or `cifs`, as `mount -t` takes it.
    pub kind: &'static str,
    /// `server:/export` or `//server/share`.
    pub source: String,
    /// Where.
    pub mount_point: String,
    /// Options, without those that hold a secret.
    pub options: Vec<String>,
    /// Who logs in, and in which domain.
    pub login: Option<(String, String)>,
}

/// What was seen of a repository's storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StorageSeen {
    /// Size of the filesystem in bytes.
    pub total_bytes: u64,
    /// What is not available, in bytes; what is reserved for root counts as used.
    pub used_bytes: u64,
    /// What this hub may write, in bytes.
    pub available_bytes: u64,
    /// When.
    pub at: Timestamp,
}

impl StorageSeen {
    /// Used of all, 0 to 100.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        reason = "a percentage of bytes is for people to read"
    )]
    pub fn used_percent(&self) -> f64 {
        match self.total_bytes {
            0 => 0.0,
            total => self.used_bytes as f64 * 100.0 / total as f64,
        }
    }
}

/// Whether a repository can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RepositoryState {
    /// It can.
    Ready,
    /// It could; somebody switched it off.
    Disabled,
    /// It cannot, and why.
    Broken(String),
}

impl RepositoryState {
    /// The word that the API uses.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Disabled => "disabled",
            Self::Broken(_) => "broken",
        }
    }
}

/// What became of a repository that was to be forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It is forgotten; its files are where they were.
    Removed,
    /// It holds backups.
    InUse {
        /// So many, rows of legacy hubs included.
        backup_count: u64,
    },
}

/// A repository to make.
#[derive(Debug, Clone)]
pub struct NewRepository {
    /// Its name, unique.
    pub name: String,
    /// `local`, `nfs`, `cifs` or `smb`: what it is called, which for the last two is the same thing.
    pub repository_type: String,
    /// Whether backups may go there.
    pub enabled: bool,
    /// Where it is. A share without a mount point gets one.
    pub place: Place,
    /// For people; may be empty.
    pub description: String,
    /// What the share's user logs in with.
    pub password: Option<Secret>,
    /// Whether points are locked after completion.
    pub is_immutable: bool,
    /// How long they are locked at least.
    pub min_retention_days: u32,
}

/// Where shares are mounted that name no place of their own.
pub const MOUNT_ROOT: &str = "/mnt/sendense";

impl Place {
    /// The folder that holds the images.
    #[must_use]
    pub fn root(&self) -> &str {
        match self {
            Self::Local { path } => path,
            Self::Nfs { mount_point, .. } | Self::Cifs { mount_point, .. } => mount_point,
        }
    }

    /// Gives a share without a mount point the one of its repository.
    pub fn settle(&mut self, id: &RepositoryId) {
        match self {
            Self::Nfs { mount_point, .. } | Self::Cifs { mount_point, .. }
                if mount_point.is_empty() =>
            {
                *mount_point = format!("{MOUNT_ROOT}/{id}");
            }
            Self::Local { .. } | Self::Nfs { .. } | Self::Cifs { .. } => {}
        }
    }

    /// What must be mounted before anything is written; nothing for a folder of this hub.
    #[must_use]
    pub fn mount(&self) -> Option<Mount> {
        match self {
            Self::Local { .. } => None,
            Self::Nfs {
                server,
                export_path,
                mount_point,
                nfs_version,
                mount_options,
            } => {
                // A server that is away makes writers wait instead of losing what they wrote.
                let mut options = vec!["rw".to_owned(), "hard".to_owned()];
                options.extend(mount_options.iter().cloned());
                if !nfs_version.is_empty() {
                    options.push(format!("vers={nfs_version}"));
                }
                Some(Mount {
                    kind: "nfs",
                    source: format!("{server}:{export_path}"),
                    mount_point: mount_point.clone(),
                    options,
                    login: None,
                })
            }
            Self::Cifs {
                server,
                share_name,
                mount_point,
                username,
                domain,
                mount_options,
            } => {
                let fixed = ["vers=3.0", "rw", "file_mode=0644", "dir_mode=0755"];
                let mut options: Vec<String> = fixed.map(str::to_owned).to_vec();
                options.extend(mount_options.iter().cloned());
                let login = (!username.is_empty()).then(|| (username.clone(), domain.clone()));
                if login.is_none() {
                    options.push("guest".to_owned());
                }
                Some(Mount {
                    kind: "cifs",
                    source: format!("//{server}/{share_name}"),
                    mount_point: mount_point.clone(),
                    options,
                    login,
                })
            }
        }
    }

    /// Refuses what cannot be a place, and what would mean something else to the program that mounts.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid), naming the field.
    pub fn check(&self) -> Result<(), Error> {
        match self {
            Self::Local { path } => {
                required("path", path)?;
                absolute("path", path)
            }
            Self::Nfs {
                server,
                export_path,
                mount_point,
                nfs_version,
                mount_options,
            } => {
                host("server", server)?;
                required("export_path", export_path)?;
                // Version 4 has one tree, whose root may be the export.
                if export_path != "/" {
                    absolute("export_path", export_path)?;
                }
                optional_absolute("mount_point", mount_point)?;
                plain("nfs_version", nfs_version)?;
                options(mount_options)
            }
            Self::Cifs {
                server,
                share_name,
                mount_point,
                username,
                domain,
                mount_options,
            } => {
                host("server", server)?;
                required("share_name", share_name)?;
                line("share_name", share_name.trim_matches('/'))?;
                optional_absolute("mount_point", mount_point)?;
                line("username", username)?;
                line("domain", domain)?;
                options(mount_options)
            }
        }
    }
}

impl NewRepository {
    /// Refuses what cannot be a repository.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid), naming the field.
    pub fn check(&self) -> Result<(), Error> {
        if self.name.trim().is_empty() {
            return Err(Error::invalid("Repository name is required", ""));
        }
        check_text("name", &self.name, NAME_CHARS_MAX)?;
        if self.description.chars().count() > DESCRIPTION_CHARS_MAX {
            let details = format!("max={DESCRIPTION_CHARS_MAX}");
            return Err(Error::invalid("description is too long", details));
        }
        if self.min_retention_days > RETENTION_DAYS_MAX {
            let details = format!("days={} max={RETENTION_DAYS_MAX}", self.min_retention_days);
            return Err(Error::invalid(
                "min_retention_days is out of range",
                details,
            ));
        }
        if let Some(password) = &self.password {
            // A line of the credentials file; the text is not repeated.
            if password.reveal().contains(char::is_control) {
                return Err(Error::invalid("password has control characters", ""));
            }
        }
        self.place.check()
    }
}

/// Whether one folder is the other or lies in it.
#[must_use]
pub fn overlap(one: &str, other: &str) -> bool {
    let within = |inner: &str, outer: &str| {
        let outer = outer.trim_end_matches('/');
        inner
            .strip_prefix(outer)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    within(one, other) || within(other, one)
}

/// Longest description, in characters: a paragraph.
const DESCRIPTION_CHARS_MAX: usize = 1000;

fn required(field: &str, text: &str) -> Result<(), Error> {
    match text.is_empty() {
        true => Err(Error::invalid(format!("{field} is required"), "")),
        false => Ok(()),
    }
}

/// A text that is one line, and not a flag.
fn line(field: &str, text: &str) -> Result<(), Error> {
    check_text(field, text, NAME_CHARS_MAX)?;
    if text.starts_with('-') || text.contains(',') {
        let details = format!("text={text:?}");
        return Err(Error::invalid(format!("{field} is not usable"), details));
    }
    Ok(())
}

fn host(field: &str, text: &str) -> Result<(), Error> {
    required(field, text)?;
    let allowed =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']' | '%');
    if text.starts_with('-') || !text.chars().all(allowed) || text.len() > NAME_CHARS_MAX {
        let details = format!("text={:?}", text.chars().take(80).collect::<String>());
        return Err(Error::invalid(format!("{field} is not a host"), details));
    }
    Ok(())
}

fn optional_absolute(field: &str, path: &str) -> Result<(), Error> {
    match path.is_empty() {
        true => Ok(()),
        false => absolute(field, path),
    }
}

/// An absolute path that names its place directly, so that two of them can be compared.
fn absolute(field: &str, path: &str) -> Result<(), Error> {
    let direct = path.starts_with('/')
        && path != "/"
        && path.len() <= IMAGE_PATH_BYTES_MAX
        && !path.contains(char::is_control)
        && path[1..]
            .trim_end_matches('/')
            .split('/')
            .all(|part| !matches!(part, "" | "." | ".."));
    match direct {
        true => Ok(()),
        false => {
            let details = format!("path={:?}", path.chars().take(80).collect::<String>());
            Err(Error::invalid(
                format!("{field} is not an absolute path"),
                details,
            ))
        }
    }
}

fn plain(field: &str, text: &str) -> Result<(), Error> {
    let allowed =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '=' | ':' | '/');
    if text.starts_with('-') || !text.chars().all(allowed) || text.len() > NAME_CHARS_MAX {
        let details = format!("text={:?}", text.chars().take(80).collect::<String>());
        return Err(Error::invalid(format!("{field} is not usable"), details));
    }
    Ok(())
}

fn options(options: &[String]) -> Result<(), Error> {
    if options.len() > MOUNT_OPTIONS_MAX {
        let details = format!("count={} max={MOUNT_OPTIONS_MAX}", options.len());
        return Err(Error::invalid("too many mount_options", details));
    }
    for option in options {
        let name = option.split('=').next().unwrap_or_default();
        if name.starts_with("pass") || name.starts_with("cred") {
            // Options are shown by `ps` and in the mount table.
            return Err(Error::invalid(
                "mount_options must not hold a secret",
                format!("option={name}"),
            ));
        }
        plain("mount_options", option)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nfs(server: &str, export_path: &str, mount_point: &str, options: &[&str]) -> Place {
        Place::Nfs {
            server: server.to_owned(),
            export_path: export_path.to_owned(),
            mount_point: mount_point.to_owned(),
            nfs_version: "4.2".to_owned(),
            mount_options: options.iter().map(|option| (*option).to_owned()).collect(),
        }
    }

    #[test]
    fn a_share_is_mounted_with_what_was_said() {
        let mut place = nfs("nas", "/export", "", &["nconnect=4"]);
        place.settle(&RepositoryId::parse("repo-nfs-1").unwrap());
        let mount = place.mount().unwrap();
        assert_eq!(mount.source, "nas:/export");
        assert_eq!(mount.mount_point, "/mnt/sendense/repo-nfs-1");
        assert_eq!(mount.options, ["rw", "hard", "nconnect=4", "vers=4.2"]);
        let place = Place::Cifs {
            server: "nas".to_owned(),
            share_name: "backup".to_owned(),
            mount_point: "/srv/smb".to_owned(),
            username: "hub".to_owned(),
            domain: "CORP".to_owned(),
            mount_options: vec!["seal".to_owned()],
        };
        let mount = place.mount().unwrap();
        assert_eq!(mount.source, "//nas/backup");
        let options = ["vers=3.0", "rw", "file_mode=0644", "dir_mode=0755", "seal"];
        assert_eq!(mount.options, options);
        assert_eq!(mount.login, Some(("hub".to_owned(), "CORP".to_owned())));
        let local = Place::Local {
            path: "/srv".to_owned(),
        };
        assert_eq!((local.mount(), local.root()), (None, "/srv"));
    }

    #[test]
    fn what_would_mislead_the_mounter_is_refused() {
        let check = |place: Place, good: bool| {
            assert_eq!(place.check().is_ok(), good, "{place:?}");
        };
        check(nfs("nas", "/export", "", &[]), true);
        check(nfs("[fe80::1%eth0]", "/a/b/", "/mnt/a", &["nolock"]), true);
        check(nfs("nas", "/", "", &[]), true);
        for server in ["", "-o", "nas one", "nas,rw", "nas/x", "nas\n"] {
            check(nfs(server, "/export", "", &[]), false);
        }
        for path in ["", "export", "/a/../b", "/a//b", "/a/./b", "/a\nb"] {
            check(nfs("nas", path, "", &[]), false);
        }
        for path in ["mnt", "/", "/mnt/..", "/mnt/a/../b"] {
            check(nfs("nas", "/export", path, &[]), false);
        }
        let secrets = [
            "password=x",
            "pass=x",
            "password2=x",
            "credentials=/x",
            "cred=/x",
        ];
        for option in secrets.into_iter().chain(["a,b", "-o", "a b"]) {
            check(nfs("nas", "/export", "", &[option]), false);
        }
        let crowd = ["rw"; MOUNT_OPTIONS_MAX + 1];
        check(nfs("nas", "/export", "", &crowd), false);
    }

    #[test]
    fn folders_in_each_other_overlap() {
        for (one, other, expected) in [
            ("/srv/a", "/srv/a", true),
            ("/srv/a", "/srv/a/", true),
            ("/srv/a", "/srv/a/b", true),
            ("/srv/a/b", "/srv/a", true),
            ("/srv/a", "/srv/ab", false),
            ("/srv/a", "/srv/b", false),
            ("/", "/srv", true),
        ] {
            assert_eq!(overlap(one, other), expected, "{one} {other}");
        }
    }

    #[test]
    fn used_percent_is_of_all() {
        let seen = |total_bytes, used_bytes| StorageSeen {
            total_bytes,
            used_bytes,
            available_bytes: 0,
            at: Timestamp::UNIX_EPOCH,
        };
        assert!((seen(200, 50).used_percent() - 25.0).abs() < 1e-9);
        assert!(seen(0, 0).used_percent().abs() < 1e-9);
    }
}
