//! Shares: mounted where they are not, and looked at before every write.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::error::file_error;
use crate::config::Secret;
use crate::error::{Error, ErrorKind};
use crate::limits::{MOUNT_ERROR_CHARS_MAX, MOUNT_TIMEOUT_S};
use crate::model::{Mount, is_same_source, mounted_at};

/// Fails unless the share is mounted at its place now. A share that is not there must never be taken for the empty folder
/// below it: that is on the disk of the hub.
///
/// # Errors
///
/// [`ErrorKind::Unavailable`], saying what is there instead.
pub(crate) fn expect_mounted(mount: &Mount) -> Result<(), Error> {
    let path = "/proc/self/mountinfo";
    let mountinfo = std::fs::read(path)
        .map_err(|error| file_error("failed to look at mounts", format!("path={path}"), error))?;
    let place = mount.mount_point.trim_end_matches('/');
    let found = mounted_at(&String::from_utf8_lossy(&mountinfo), place);
    let source = &mount.source;
    match found {
        Some(found) if is_same_source(&found.source, source) => Ok(()),
        Some(found) => Err(Error::new(
            ErrorKind::Unavailable,
            "something else is mounted",
            format!(
                "mount_point={place} found={} expected={source}",
                found.source
            ),
        )),
        None => Err(Error::new(
            ErrorKind::Unavailable,
            "share is not mounted",
            format!("mount_point={place} source={source}"),
        )),
    }
}

/// Mounts the share unless it is mounted; one that somebody else mounted is as good. `scratch` is where the file with the
/// password stands for a moment: arguments are shown by `ps`.
///
/// # Errors
///
/// [`ErrorKind::Unavailable`] with the mounter's own words.
pub(crate) fn ensure_mounted(
    mount: &Mount,
    password: Option<&Secret>,
    scratch: &Path,
) -> Result<(), Error> {
    if expect_mounted(mount).is_ok() {
        return Ok(());
    }
    let mut options = mount.options.clone();
    let credentials = match &mount.login {
        None => None,
        Some((username, domain)) => {
            let file = Credentials::write(scratch, username, domain, password)?;
            options.push(format!("credentials={}", file.path.display()));
            Some(file)
        }
    };
    std::fs::create_dir_all(&mount.mount_point).map_err(|error| {
        let details = format!("mount_point={}", mount.mount_point);
        file_error("failed to make mount point", details, error)
    })?;
    run_mount(mount, &options.join(","))?;
    drop(credentials);
    expect_mounted(mount)
}

fn run_mount(mount: &Mount, options: &str) -> Result<(), Error> {
    let failed = |details: String| Error::new(ErrorKind::Unavailable, "failed to mount", details);
    let seconds = MOUNT_TIMEOUT_S.to_string();
    // A server that does not answer would hold the program for minutes.
    let output = Command::new("timeout")
        .args([
            "--kill-after=5",
            &seconds,
            "mount",
            "-t",
            mount.kind,
            "-o",
            options,
            "--",
        ])
        .args([&mount.source, &mount.mount_point])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(format!("source={}", mount.source)).with_source(error))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let said: String = said.chars().take(MOUNT_ERROR_CHARS_MAX).collect();
    Err(failed(format!(
        "{said} source={} {}",
        mount.source, output.status
    )))
}

/// A file for `mount.cifs`, readable by its owner only, gone when this is dropped.
struct Credentials {
    path: PathBuf,
}

impl Credentials {
    fn write(
        scratch: &Path,
        username: &str,
        domain: &str,
        password: Option<&Secret>,
    ) -> Result<Self, Error> {
        let path = scratch.join("mount.credentials");
        let details = || format!("path={}", path.display());
        if path.as_os_str().as_encoded_bytes().contains(&b',') {
            // The mounter would read a comma as the end of the name.
            return Err(Error::new(
                ErrorKind::Unsupported,
                "data folder has a comma in its name",
                details(),
            ));
        }
        let mut text = format!("username={username}\n");
        if let Some(password) = password {
            text.push_str(&format!("password={}\n", password.reveal()));
        }
        if !domain.is_empty() {
            text.push_str(&format!("domain={domain}\n"));
        }
        let what = "failed to write mount credentials";
        // One that a crash left is nobody's.
        let removed = std::fs::remove_file(&path);
        if let Err(error) = removed
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(file_error(what, details(), error));
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| file_error(what, details(), error))?;
        let written = Self { path: path.clone() };
        file.write_all(text.as_bytes())
            .map_err(|error| file_error(what, details(), error))?;
        Ok(written)
    }
}

impl Drop for Credentials {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::error!(path = %self.path.display(), %error, "mount credentials were not removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_password_is_in_a_private_file_for_a_moment() {
        let folder = tempfile::tempdir().unwrap();
        let password = Secret::new("a,b=c d");
        let file = Credentials::write(folder.path(), "hub", "CORP", Some(&password)).unwrap();
        let text = std::fs::read_to_string(&file.path).unwrap();
        assert_eq!(text, "username=hub\npassword=a,b=c d\ndomain=CORP\n");
        let mode = std::fs::metadata(&file.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let path = file.path.clone();
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_folder_is_no_share() {
        let folder = tempfile::tempdir().unwrap();
        let mount = Mount {
            kind: "nfs",
            source: "nas:/export".to_owned(),
            mount_point: folder.path().display().to_string(),
            options: Vec::new(),
            login: None,
        };
        let error = expect_mounted(&mount).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert_eq!(error.message, "share is not mounted");
        let root = Mount {
            mount_point: "/proc".to_owned(),
            ..mount
        };
        let error = expect_mounted(&root).unwrap_err();
        assert_eq!(error.message, "something else is mounted");
    }
}
