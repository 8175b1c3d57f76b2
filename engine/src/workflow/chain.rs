//! What a point stands on: as the catalog knows it, and as the files tell it.

use super::hub::Hub;
use super::point::open_point;
use crate::blocking::blocking;
use crate::error::Error;
use crate::id::{BackupId, DiskIndex, RepositoryId};
use crate::model::{ChainLayer, ChainView};

/// The newest completed point of a disk and everything below it, base first. Empty if there is none.
pub(crate) async fn chain(
    hub: &Hub,
    vm: &str,
    disk: DiskIndex,
    repository: Option<&str>,
) -> Result<ChainView, Error> {
    let vm = hub.catalog.vm_by_name_or_id(vm).await?;
    let repository = repository.map(RepositoryId::parse).transpose()?;
    let points = hub
        .catalog
        .chain(&vm.context_id, disk, repository.as_ref())
        .await?;
    let base = points.first();
    Ok(ChainView {
        chain_id: format!("{}-disk{disk}-chain", vm.context_id),
        vm_context_id: vm.context_id.to_string(),
        vm_name: vm.vm_name,
        disk_index: disk,
        repository_id: base
            .map(|point| point.backup.repository_id.to_string())
            .or_else(|| repository.map(String::from))
            .unwrap_or_default(),
        full_backup_id: base
            .map(|point| point.backup.id.to_string())
            .unwrap_or_default(),
        total_size_bytes: points.iter().map(|point| point.disk.stored_bytes).sum(),
        backups: points.into_iter().map(|point| point.backup).collect(),
    })
}

/// The images of a point's disk, tip first, read from the files.
pub(crate) async fn chain_layers(
    hub: &Hub,
    id: &BackupId,
    disk: DiskIndex,
) -> Result<Vec<ChainLayer>, Error> {
    let point = open_point(hub, id, disk).await?;
    blocking(move || {
        let layers = point.chain.layers();
        layers
            .into_iter()
            .map(|(name, info)| {
                Ok(ChainLayer {
                    path: point.repository.absolute(&point.repository.parse(&name)?),
                    virtual_size_bytes: info.virtual_size_bytes,
                    file_size_bytes: point.repository.allocated_bytes(&name)?,
                    cluster_size_bytes: info.cluster_size_bytes,
                    backing_name: info.backing.map(|backing| backing.name),
                })
            })
            .collect()
    })
    .await
}
