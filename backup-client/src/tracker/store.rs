//! Where states live: `<state>/<vm>/<disk>.track`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::format::{Identity, StateHeader};
use super::reader::State;
use super::writer::StateWriter;
use crate::limits::MAX_FILE_STEM_BYTES;
use crate::{Error, ErrorKind};

/// The states of one VM, held by one run at a time.
#[derive(Debug)]
pub(crate) struct VmStates {
    directory: PathBuf,
    vm_name: String,
    /// Locked until this is dropped.
    lock: File,
}

impl Drop for VmStates {
    fn drop(&mut self) {
        // Closing would not be enough: a program that is being started at this moment holds the file, too, until it is
        // executed. Where unlocking fails, closing must do.
        let _ = flock(&self.lock, FlockOperation::Unlock);
    }
}

/// What was found where a state should be.
#[derive(Debug)]
pub(crate) enum Loaded {
    /// Nothing.
    Absent,
    /// A file that cannot be used, and why.
    Damaged(String),
    /// A state whose checksum is right and that belongs to this disk.
    Present(State),
}

impl VmStates {
    /// Creates the VM's directory where needed and locks it. Blocking, but never waits for another run.
    ///
    /// # Errors
    /// `State` when the directory cannot be used, `Busy` when another run holds it.
    pub(crate) fn open(root: &Path, vm_name: &str) -> Result<Self, Error> {
        let directory = root.join(file_stem(vm_name));
        let wrong = |error: io::Error| {
            Error::because(
                ErrorKind::State,
                format_args!(
                    "cannot use the state directory path={}",
                    directory.display()
                ),
                error,
            )
        };
        fs::create_dir_all(&directory).map_err(wrong)?;
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join("lock"))
            .map_err(wrong)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            if error == rustix::io::Errno::WOULDBLOCK {
                let text = "another backup of this vm runs on this node";
                Error::new(ErrorKind::Busy, format_args!("{text} vm={vm_name}"))
            } else {
                wrong(error.into())
            }
        })?;
        Ok(Self {
            directory,
            vm_name: vm_name.to_owned(),
            lock,
        })
    }

    /// Looks for the state of a disk and verifies it. Blocking: reads the whole file.
    pub(crate) fn load(&self, disk_id: &str) -> Loaded {
        match State::open(&self.path(disk_id)) {
            Ok(None) => Loaded::Absent,
            Ok(Some(state)) if state.header().identity == self.identity(disk_id) => {
                Loaded::Present(state)
            }
            Ok(Some(state)) => Loaded::Damaged(format!(
                "it belongs to another disk vm={} disk={}",
                state.header().identity.vm_name,
                state.header().identity.disk_id
            )),
            Err(why) => Loaded::Damaged(why),
        }
    }

    /// Begins a new state; the one in force stays until the new one is committed.
    ///
    /// # Errors
    /// `State` with the cause.
    pub(crate) fn create(&self, header: &StateHeader) -> Result<StateWriter, Error> {
        let path = self.path(&header.identity.disk_id);
        StateWriter::create(path, header).map_err(|error| {
            Error::because(
                ErrorKind::State,
                format_args!(
                    "cannot write a tracking state directory={}",
                    self.directory.display()
                ),
                error,
            )
        })
    }

    pub(crate) fn identity(&self, disk_id: &str) -> Identity {
        Identity {
            vm_name: self.vm_name.clone(),
            disk_id: disk_id.to_owned(),
        }
    }

    fn path(&self, disk_id: &str) -> PathBuf {
        self.directory.join(format!("{}.track", file_stem(disk_id)))
    }
}

/// A file name for any text: readable where possible, different for different texts, never hidden, never a path.
fn file_stem(name: &str) -> String {
    let mut stem = String::with_capacity(name.len());
    for (index, byte) in name.bytes().enumerate() {
        let plain = byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if plain || (byte == b'.' && index > 0) {
            stem.push(char::from(byte));
        } else {
            stem.push_str(&format!("%{byte:02x}"));
        }
    }
    if stem.is_empty() || stem.len() > MAX_FILE_STEM_BYTES {
        stem.truncate(MAX_FILE_STEM_BYTES);
        stem.push('+');
        stem.push_str(&blake3::hash(name.as_bytes()).to_hex());
    }
    stem
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_is_over_keeps_nobody_out_through_a_copy_of_its_descriptor() {
        let folder = tempfile::tempdir().unwrap();
        let states = VmStates::open(folder.path(), "vm").unwrap();
        // What a program that is being started has of it until it is executed.
        let inherited = states.lock.try_clone().unwrap();
        drop(states);
        VmStates::open(folder.path(), "vm").unwrap();
        drop(inherited);
    }
}
