//! Makes, looks at and forgets repositories.

use std::sync::Arc;

use super::hub::Hub;
use super::open::DEFAULT_REPOSITORY;
use crate::blocking::blocking;
use crate::catalog::StoredPassword;
use crate::config::Secret;
use crate::error::{Error, ErrorKind};
use crate::id::RepositoryId;
use crate::limits::REPOSITORY_LOOK;
use crate::model::{
    Mount, NewRepository, Place, Removal, RepositoryState, RepositorySummary, StorageSeen,
};
use crate::node::no_key;
use crate::repository::{Repository, Space, ensure_mounted, expect_mounted};

/// Records a repository after it was found usable.
pub(crate) async fn create_repository(
    hub: &Hub,
    mut new: NewRepository,
) -> Result<RepositorySummary, Error> {
    hub.accepting()?;
    let now = hub.clock.now();
    let kind = new.repository_type.clone();
    let id = hub.catalog.free_repository_id(&kind, now).await?;
    new.place.settle(&id);
    new.check()?;
    let sealed = match &new.password {
        None => None,
        Some(password) => {
            let key = hub.credential_key.as_ref().ok_or_else(no_key)?;
            Some(key.encrypt(password)?)
        }
    };
    let repository = Arc::new(open_place(hub, &new.place, new.password.clone()).await?);
    let made = hub
        .catalog
        .add_repository(&id, &new, sealed.as_deref(), now)
        .await?;
    let seen = look(hub, repository).await?;
    hub.catalog.record_storage(&id, &seen).await?;
    tracing::info!(event = "repository.created", repository_id = %id, kind, "repository created");
    Ok(RepositorySummary {
        storage: Some(seen),
        ..made
    })
}

/// Whether a place could become a repository: mounted if it has to be, and written once. Nothing is recorded.
pub(crate) async fn try_place(
    hub: &Hub,
    mut place: Place,
    password: Option<Secret>,
) -> Result<StorageSeen, Error> {
    place.settle(&RepositoryId::parse("repo-test")?);
    place.check()?;
    let repository = open_place(hub, &place, password).await?;
    look(hub, Arc::new(repository)).await
}

/// A repository's storage as it is now; what is seen is recorded. With `write`, a file is made and removed first.
pub(crate) async fn look_at_repository(
    hub: &Hub,
    id: &RepositoryId,
    write: bool,
) -> Result<(RepositorySummary, StorageSeen), Error> {
    let row = hub.catalog.repository(id).await?;
    let repository = hub.open_row(&row).await?;
    if write {
        let files = Arc::clone(&repository);
        bounded(
            id,
            async move { blocking(move || files.try_writing()).await },
        )
        .await?;
    }
    let seen = bounded(id, look(hub, repository)).await?;
    hub.catalog.record_storage(id, &seen).await?;
    Ok((row, seen))
}

/// Every repository with its state now, by name. Those that are not ready are there, too.
pub(crate) async fn repositories(
    hub: &Hub,
) -> Result<Vec<(RepositorySummary, RepositoryState)>, Error> {
    let mut shown = Vec::new();
    for row in hub.catalog.repositories().await? {
        shown.push(with_state(hub, row).await);
    }
    Ok(shown)
}

/// One repository with its state now.
pub(crate) async fn repository(
    hub: &Hub,
    id: &RepositoryId,
) -> Result<(RepositorySummary, RepositoryState), Error> {
    let row = hub.catalog.repository(id).await?;
    Ok(with_state(hub, row).await)
}

async fn with_state(hub: &Hub, mut row: RepositorySummary) -> (RepositorySummary, RepositoryState) {
    if !row.enabled {
        return (row, RepositoryState::Disabled);
    }
    match bounded(&row.id, state_of(hub, &row)).await {
        Ok(seen) => {
            row.storage = Some(seen);
            (row, RepositoryState::Ready)
        }
        Err(error) => {
            tracing::warn!(event = "repository.broken", repository_id = %row.id, %error, "repository cannot be used");
            (row, RepositoryState::Broken(error.to_string()))
        }
    }
}

/// A list must not mount anything: it looks.
async fn state_of(hub: &Hub, row: &RepositorySummary) -> Result<StorageSeen, Error> {
    if let Some(mount) = row.place.as_ref().and_then(Place::mount) {
        blocking(move || expect_mounted(&mount)).await?;
    }
    look(hub, hub.open_row(row).await?).await
}

/// Looks at the storage of every repository that is switched on: how many answered, how many did not.
pub(crate) async fn refresh_storage(hub: &Hub) -> Result<(usize, usize), Error> {
    let (mut refreshed, mut failed) = (0, 0);
    for row in hub.catalog.repositories().await? {
        if !row.enabled {
            continue;
        }
        match look_at_repository(hub, &row.id, false).await {
            Ok(_) => refreshed += 1,
            Err(error) => {
                tracing::warn!(event = "repository.broken", repository_id = %row.id, %error, "repository cannot be used");
                failed += 1;
            }
        }
    }
    Ok((refreshed, failed))
}

/// Forgets a repository that holds no backup. Its files and its mount stay.
pub(crate) async fn delete_repository(hub: &Hub, id: &RepositoryId) -> Result<Removal, Error> {
    if id.as_str() == DEFAULT_REPOSITORY {
        // The next start would make it again.
        let details = format!("repository_id={id}");
        return Err(Error::conflict("default repository stays", details));
    }
    match hub.catalog.delete_repository(id).await? {
        0 => {
            hub.forget_repository(id);
            tracing::info!(event = "repository.deleted", repository_id = %id, "repository deleted");
            Ok(Removal::Removed)
        }
        backup_count => Ok(Removal::InUse { backup_count }),
    }
}

/// The password of a share, in plain text.
pub(crate) async fn share_password(hub: &Hub, id: &RepositoryId) -> Result<Option<Secret>, Error> {
    match hub.catalog.repository_password(id).await? {
        None => Ok(None),
        Some(StoredPassword::Plain(password)) => Ok(Some(password)),
        Some(StoredPassword::Sealed(sealed)) => {
            let key = hub.credential_key.as_ref().ok_or_else(no_key)?;
            key.decrypt(&sealed).map(Some)
        }
    }
}

/// Mounts a share unless it is mounted.
pub(crate) async fn mounted(
    hub: &Hub,
    mount: &Mount,
    password: Option<Secret>,
) -> Result<(), Error> {
    // One at a time: the file with the password has one name.
    let _turn = hub.mounting.lock().await;
    let (mount, scratch) = (mount.clone(), hub.data_dir.clone());
    blocking(move || ensure_mounted(&mount, password.as_ref(), &scratch)).await
}

async fn open_place(
    hub: &Hub,
    place: &Place,
    password: Option<Secret>,
) -> Result<Repository, Error> {
    let wrapper = hub.hooks.storage.clone();
    let share = place.mount();
    if let Some(mount) = &share {
        mounted(hub, mount, password).await?;
    }
    let root = place.root().to_owned();
    blocking(move || {
        let repository = match share {
            Some(share) => Repository::open_on(share, wrapper)?,
            None => Repository::open_or_create(root.as_ref(), wrapper)?,
        };
        repository.try_writing()?;
        Ok(repository)
    })
    .await
}

async fn look(hub: &Hub, repository: Arc<Repository>) -> Result<StorageSeen, Error> {
    let space: Space = blocking(move || {
        repository.expect_share()?;
        repository.space()
    })
    .await?;
    Ok(StorageSeen {
        total_bytes: space.total_bytes,
        used_bytes: space.total_bytes.saturating_sub(space.available_bytes),
        available_bytes: space.available_bytes,
        at: hub.clock.now(),
    })
}

/// A look that gives up: a share whose server is away would hold the caller for good.
async fn bounded<T>(
    id: &RepositoryId,
    look: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(REPOSITORY_LOOK, look).await {
        Ok(seen) => seen,
        Err(_) => Err(Error::new(
            ErrorKind::Unavailable,
            "repository does not answer",
            format!("repository_id={id} waited_s={}", REPOSITORY_LOOK.as_secs()),
        )),
    }
}
