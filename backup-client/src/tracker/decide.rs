//! May unchanged blocks be left out? Pure.

use std::fmt::{self, Display, Formatter};

use uuid::Uuid;

use super::format::{ChangeId, StateHeader};
use super::store::Loaded;

/// What the hub says about the point under the running backup, for one disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BaseAtHub {
    /// The hub makes a full backup: there is no base.
    Full,
    /// An increment on the point that has this change id. Empty when the hub knows none.
    Increment {
        change_id: String,
        /// The backup that recorded the change id, where the hub names it.
        backup_id: Option<String>,
    },
}

/// What to send, and the change id that the new state gets.
#[derive(Debug)]
pub(crate) struct Decision {
    /// Why everything is sent; `None` means that blocks equal to the state are left out.
    pub(crate) everything: Option<Everything>,
    /// The position that this backup creates.
    pub(crate) change_id: ChangeId,
}

/// Why every block of a disk is sent, although the hub may have most of them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Everything {
    /// The backup is a full one.
    FullBackup,
    /// Tracking was switched off.
    TrackingOff,
    /// This node keeps no state of the disk.
    NoState,
    /// The state cannot be read, for this reason.
    DamagedState(String),
    /// The disk has another size than the state.
    SizeChanged {
        /// Size that the state describes.
        state_bytes: u64,
        /// Size of the disk now.
        disk_bytes: u64,
    },
    /// The hub builds on a point that the state does not describe.
    OtherBase {
        /// Change id and backup id at the hub.
        hub: String,
        /// Change id and backup id in the state.
        state: String,
    },
}

impl Everything {
    /// A stable name, for scripts.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::FullBackup => "full-backup",
            Self::TrackingOff => "tracking-off",
            Self::NoState => "tracking-state-missing",
            Self::DamagedState(_) => "tracking-state-damaged",
            Self::SizeChanged { .. } => "disk-size-changed",
            Self::OtherBase { .. } => "other-base-at-hub",
        }
    }

    /// Whether the user did not ask for it and may want to know.
    #[must_use]
    pub fn is_surprise(&self) -> bool {
        !matches!(self, Self::FullBackup | Self::TrackingOff)
    }
}

impl Display for Everything {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::FullBackup => write!(f, "full backup"),
            Self::TrackingOff => write!(f, "change tracking is switched off"),
            Self::NoState => write!(f, "no tracking state on this node"),
            Self::DamagedState(why) => write!(f, "tracking state unusable: {why}"),
            Self::SizeChanged {
                state_bytes,
                disk_bytes,
            } => write!(
                f,
                "the disk size changed before={state_bytes} now={disk_bytes}"
            ),
            Self::OtherBase { hub, state } => {
                write!(f, "the hub builds on another point hub={hub} state={state}")
            }
        }
    }
}

/// Decides for one disk. `running_backup_id` is the job of this run: a hub that names it as the owner of the base
/// says nothing about the owner. `fresh_epoch` is used when the history of the state does not go on.
pub(crate) fn decide(
    base: &BaseAtHub,
    state: &Loaded,
    disk_bytes: u64,
    block_bytes: u32,
    running_backup_id: &str,
    fresh_epoch: Uuid,
) -> Decision {
    let everything = match state {
        Loaded::Absent => Err(Everything::NoState),
        Loaded::Damaged(why) => Err(Everything::DamagedState(why.clone())),
        Loaded::Present(state) => continues(
            base,
            state.header(),
            disk_bytes,
            block_bytes,
            running_backup_id,
        ),
    };
    let next = match &everything {
        Ok(change_id) => change_id.next(),
        Err(_) => None,
    };
    Decision {
        everything: match base {
            BaseAtHub::Full => Some(Everything::FullBackup),
            BaseAtHub::Increment { .. } => everything.err(),
        },
        change_id: next.unwrap_or_else(|| ChangeId::first(fresh_epoch)),
    }
}

/// The change id that the state stands for, when the new point continues its history.
fn continues(
    base: &BaseAtHub,
    header: &StateHeader,
    disk_bytes: u64,
    block_bytes: u32,
    running_backup_id: &str,
) -> Result<ChangeId, Everything> {
    if header.size_bytes != disk_bytes {
        return Err(Everything::SizeChanged {
            state_bytes: header.size_bytes,
            disk_bytes,
        });
    }
    if header.block_bytes != block_bytes {
        return Err(Everything::DamagedState(format!(
            "it has another block size block_bytes={}",
            header.block_bytes
        )));
    }
    let BaseAtHub::Increment {
        change_id,
        backup_id,
    } = base
    else {
        // A full backup of the same disk starts nothing new.
        return Ok(header.change_id);
    };
    let same_backup = match backup_id {
        Some(id) => *id == header.backup_id || id == running_backup_id,
        None => true,
    };
    if *change_id == header.change_id.to_string() && same_backup {
        return Ok(header.change_id);
    }
    Err(Everything::OtherBase {
        hub: format!(
            "{}@{}",
            if change_id.is_empty() { "-" } else { change_id },
            backup_id.as_deref().unwrap_or("-")
        ),
        state: format!("{}@{}", header.change_id, header.backup_id),
    })
}
