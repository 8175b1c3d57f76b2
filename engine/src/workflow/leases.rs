//! Who reads a backup's files now, so that nobody removes them underneath.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Error;
use crate::id::BackupId;

/// The readers of this hub, by backup. Whoever reads a backup reads the images below it as well; those cannot be deleted
/// as long as it is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct Leases {
    taken: Arc<Mutex<HashMap<BackupId, Taken>>>,
}

#[derive(Debug)]
enum Taken {
    /// So many readers.
    Shared(usize),
    /// Its files are being removed.
    Alone,
}

/// A backup that stays as it is until this is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    leases: Leases,
    id: BackupId,
}

impl Leases {
    /// The backup is read.
    ///
    /// # Errors
    ///
    /// `Conflict` while it is being deleted.
    pub(crate) fn share(&self, id: &BackupId) -> Result<Lease, Error> {
        let mut taken = self.taken();
        match taken.entry(id.clone()).or_insert(Taken::Shared(0)) {
            Taken::Shared(readers) => *readers += 1,
            Taken::Alone => return Err(being_deleted(id)),
        }
        Ok(self.lease(id))
    }

    /// The backup is deleted.
    ///
    /// # Errors
    ///
    /// `Conflict` while it is being read or deleted.
    pub(crate) fn take_all(&self, id: &BackupId) -> Result<Lease, Error> {
        let mut taken = self.taken();
        match taken.get(id) {
            None => {}
            Some(Taken::Alone) => return Err(being_deleted(id)),
            Some(Taken::Shared(readers)) => {
                let details = format!("backup_id={id} readers={readers}");
                return Err(Error::conflict("backup is in use", details));
            }
        }
        taken.insert(id.clone(), Taken::Alone);
        Ok(self.lease(id))
    }

    fn lease(&self, id: &BackupId) -> Lease {
        Lease {
            leases: self.clone(),
            id: id.clone(),
        }
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<BackupId, Taken>> {
        // No code panics while holding it; a poisoned map would still be whole.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut taken = self.leases.taken();
        match taken.get_mut(&self.id) {
            Some(Taken::Shared(readers)) if *readers > 1 => *readers -= 1,
            _ => drop(taken.remove(&self.id)),
        }
    }
}

fn being_deleted(id: &BackupId) -> Error {
    Error::conflict("backup is being deleted", format!("backup_id={id}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_share_and_a_deletion_is_alone() {
        let leases = Leases::default();
        let id = BackupId::parse("backup-web-1").unwrap();
        let other = BackupId::parse("backup-web-2").unwrap();
        let (one, two) = (leases.share(&id).unwrap(), leases.share(&id).unwrap());
        let alone = leases.take_all(&other).unwrap();
        assert!(leases.share(&other).is_err() && leases.take_all(&other).is_err());
        drop(one);
        assert!(
            leases
                .take_all(&id)
                .unwrap_err()
                .details
                .contains("readers=1")
        );
        drop(two);
        drop(leases.take_all(&id).unwrap());
        drop(alone);
        leases.share(&other).unwrap();
        assert!(leases.taken().is_empty());
    }
}
