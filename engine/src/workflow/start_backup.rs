//! Starts a backup: decide, record the intent, make the images, serve them, tell the node.
//!
//! ```text
//! load, decide ─▶ rows (intent creating) ─▶ partial images ─▶ exports ─▶ intent cleared ─▶ node told
//!                   └──────────────── any failure: exports, files and rows are removed ─────┘
//! ```

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::end_backup::end_on_storage_failure;
use super::events::tell;
use super::hooks::Step;
use super::hub::Hub;
use super::job::{Job, JobDisk, Turn, Watched};
use crate::blocking::blocking;
use crate::catalog::{BeginBackup, BeginDisk};
use crate::config::Secret;
use crate::error::{Error, ErrorKind};
use crate::export::{Device, FailureReport, LiveExport, RegisterError, StorageFailure};
use crate::id::ExportName;
use crate::limits::REPOSITORY_RESERVE_BYTES;
use crate::model::{
    Backup, BackupChange, BackupPlan, DeclaredParent, Intent, JobStatus, Meter, PlannedDisk,
    PreparedDisk, StartBackup, StartedBackup, Transfer, Vm, WantedDisk, Watch, plan_backup,
};
use crate::node::{NodeStart, VcenterLogin, no_key};
use crate::random;
use crate::repository::{Discard, ImagePath, Repository};

/// Everything that was looked up before anything is created.
struct Decided {
    vm: Vm,
    repository: Arc<Repository>,
    plan: BackupPlan,
    /// For a node transfer only.
    login: Option<VcenterLogin>,
}

/// Starts a backup. When it returns, every export accepts data, and a node that has to has been told.
pub(crate) async fn start_backup(
    hub: Arc<Hub>,
    request: StartBackup,
) -> Result<StartedBackup, Error> {
    hub.accepting()?;
    let decided = decide(&hub, &request).await?;
    let begin = plan_files(&hub, &request, &decided).await?;
    let backup = hub.catalog.begin_backup(&begin, hub.clock.now()).await?;
    hub.reached(Step::Recorded).await;
    match set_up(&hub, &decided, &begin, &backup).await {
        Ok(()) => {
            tell(&hub, BackupChange::Started, &begin.id).await;
            started(&hub, &begin, &decided.repository).await
        }
        Err(error) => {
            tracing::warn!(backup_id = %begin.id, %error, "backup was not started");
            match undo(&hub, &decided.repository, &begin).await {
                Undo::Completed => started(&hub, &begin, &decided.repository).await,
                Undo::Undone | Undo::EndedOtherwise => Err(error),
            }
        }
    }
}

/// What became of a start that failed.
enum Undo {
    /// Nothing of it is left.
    Undone,
    /// The node's answer was lost or wrong, but its client has delivered everything: the point is good and stays.
    Completed,
    /// It failed by itself before, or is being published: its row and its files are in other hands.
    EndedOtherwise,
}

/// Looks everything up and decides; nothing has been created when it fails.
async fn decide(hub: &Hub, request: &StartBackup) -> Result<Decided, Error> {
    let vm = hub.catalog.vm_by_name_or_id(&request.vm_name).await?;
    let disks = hub.catalog.vm_disks(&vm.context_id).await?;
    if disks.is_empty() {
        return Err(Error::not_found(
            "No disks found for VM",
            format!("vm_name={}", vm.vm_name),
        ));
    }
    let row = hub.catalog.repository(&request.repository_id).await?;
    if !row.enabled {
        return Err(Error::conflict(
            "repository is disabled",
            format!("repository_id={}", row.id),
        ));
    }
    if let Some(policy) = &request.policy_id {
        hub.catalog.policy(policy).await?;
    }
    let repository = hub.repository(&row.id).await?;
    let wanted: Vec<WantedDisk> = (0..)
        .map(crate::id::DiskIndex::new)
        .zip(&disks)
        .map(|(disk_index, disk)| WantedDisk {
            disk_index,
            device_key: disk.device_key,
            capacity_bytes: disk.capacity_bytes,
        })
        .collect();
    let mut keys = HashSet::new();
    if let Some(twice) = wanted.iter().find(|disk| !keys.insert(disk.device_key)) {
        // Two disks of one key would be written into each other.
        let details = format!("vm_name={} device_key={}", vm.vm_name, twice.device_key);
        return Err(Error::conflict(
            "two disks have the same device key",
            details,
        ));
    }
    let files = Arc::clone(&repository);
    let space = blocking(move || files.space()).await?;
    if space.available_bytes < REPOSITORY_RESERVE_BYTES {
        let details = format!(
            "repository_id={} available_bytes={}",
            row.id, space.available_bytes
        );
        return Err(Error::new(
            ErrorKind::NoSpace,
            "no space left in the repository",
            details,
        ));
    }
    let login = match request.transfer {
        Transfer::Node => Some(login(hub, &vm).await?),
        Transfer::Direct => None,
    };
    let candidates = hub.catalog.parents_for(&vm.context_id, &row.id).await?;
    let plan = plan_backup(request.backup_type, &wanted, &candidates)?;
    if request.transfer == Transfer::Node {
        hub.nodes
            .of_vcenter(&vm.vcenter_host)
            .expect_healthy()
            .await?;
    }
    Ok(Decided {
        vm,
        repository,
        plan,
        login,
    })
}

/// What the node needs to reach the hypervisor.
async fn login(hub: &Hub, vm: &Vm) -> Result<VcenterLogin, Error> {
    let missing = || {
        Error::invalid(
            "VM context missing credential_id",
            format!("vm_name={}", vm.vm_name),
        )
    };
    let stored = hub
        .catalog
        .credential(vm.credential_id.ok_or_else(missing)?)
        .await?;
    let key = hub.credential_key.as_ref().ok_or_else(no_key)?;
    let password: Secret = key.decrypt(&stored.password_encrypted)?;
    Ok(VcenterLogin {
        host: stored.credential.vcenter_host,
        username: stored.credential.username,
        password,
    })
}

/// Names for everything that will be created.
async fn plan_files(
    hub: &Hub,
    request: &StartBackup,
    decided: &Decided,
) -> Result<BeginBackup, Error> {
    let now = hub.clock.now();
    let id = hub.catalog.free_backup_id(&decided.vm.vm_name, now).await?;
    let (vm, plan) = (decided.vm.clone(), decided.plan.clone());
    let (repository, backup) = (Arc::clone(&decided.repository), id.clone());
    let secret = hub.private_exports.then(random::half);
    let disks = blocking(move || {
        let begin = |planned: &PlannedDisk| {
            let index = planned.disk.disk_index;
            let path = repository.free_image_path(&vm.context_id, &vm.vm_name, index, now)?;
            Ok(BeginDisk {
                disk_index: index,
                device_key: planned.disk.device_key,
                capacity_bytes: planned.disk.capacity_bytes,
                image_path: path.published().to_owned(),
                export_name: match secret {
                    Some(secret) => ExportName::private(&vm.vm_name, secret, index),
                    None => ExportName::of_disk(&backup, index),
                },
                parent: planned.parent.clone(),
                parent_reason: planned.reason,
            })
        };
        plan.disks
            .iter()
            .map(begin)
            .collect::<Result<Vec<_>, Error>>()
    })
    .await?;
    Ok(BeginBackup {
        id,
        vm_context_id: decided.vm.context_id.clone(),
        repository_id: request.repository_id.clone(),
        policy_id: request.policy_id.clone(),
        backup_type: decided.plan.backup_type,
        type_reason: decided.plan.reason,
        transfer: request.transfer,
        disks,
    })
}

/// Makes the images, serves them, clears the intent, tells the node.
async fn set_up(
    hub: &Arc<Hub>,
    decided: &Decided,
    begin: &BeginBackup,
    backup: &Backup,
) -> Result<(), Error> {
    let (report, failures) = mpsc::channel(begin.disks.len().max(1));
    let job = Arc::new(make_job(decided, begin, backup, &report).await?);
    hub.jobs().insert(job.id.clone(), Arc::clone(&job));
    for disk in &job.disks {
        hub.exports
            .register(disk.export_name.as_str(), Arc::clone(&disk.live))
            .map_err(not_served)?;
    }
    watch_storage(hub, &job, failures);
    hub.reached(Step::FilesMade).await;
    hub.catalog.backup_ready(&begin.id).await?;
    hub.reached(Step::Ready).await;
    if let Some(login) = &decided.login {
        let start = NodeStart {
            job_id: begin.id.to_string(),
            vm_name: decided.vm.vm_name.clone(),
            vm_path: decided.vm.vm_path.clone(),
            login: login.clone(),
            nbd_targets: nbd_targets(hub, begin),
            nbd_host: hub.advertised.host().to_owned(),
            backup_type: begin.backup_type,
        };
        hub.nodes
            .of_vcenter(&decided.vm.vcenter_host)
            .start_backup(&start)
            .await?;
    }
    tracing::info!(backup_id = %begin.id, backup_type = %begin.backup_type, disks = begin.disks.len(), "backup started");
    Ok(())
}

/// Creates one partial image per disk, each behind its export.
async fn make_job(
    decided: &Decided,
    begin: &BeginBackup,
    backup: &Backup,
    report: &mpsc::Sender<StorageFailure>,
) -> Result<Job, Error> {
    let mut disks = Vec::with_capacity(begin.disks.len());
    for disk in &begin.disks {
        let repository = Arc::clone(&decided.repository);
        let path = repository.parse(&disk.image_path)?;
        let below = disk
            .parent
            .as_ref()
            .map(|parent| repository.parse(&parent.image_path))
            .transpose()?;
        let (capacity_bytes, parent) = (disk.capacity_bytes, disk.parent.clone());
        let new_path = path.clone();
        let image = blocking(move || {
            make_image(
                &repository,
                &new_path,
                capacity_bytes,
                below.as_ref(),
                parent.as_ref(),
            )
        })
        .await?;
        let device: Arc<dyn Device> = Arc::clone(&image) as Arc<dyn Device>;
        let report = FailureReport {
            disk: disk.disk_index,
            channel: report.clone(),
        };
        disks.push(JobDisk {
            index: disk.disk_index,
            device_key: disk.device_key,
            capacity_bytes,
            path,
            export_name: disk.export_name.clone(),
            parent: disk.parent.clone(),
            image,
            live: Arc::new(LiveExport::new(device, capacity_bytes, Some(report))),
            is_sealed: AtomicBool::new(false),
        });
    }
    Ok(Job {
        id: begin.id.clone(),
        vm: decided.vm.clone(),
        backup_type: begin.backup_type,
        created_at: backup.created_at,
        repository: Arc::clone(&decided.repository),
        disks,
        turn: tokio::sync::Mutex::new(Turn::default()),
        meter: Mutex::new(Meter::new(begin.backup_type, backup.created_at)),
        watched: Mutex::new(Watched {
            watch: Watch::default(),
            recorded_at: backup.created_at,
            recorded: None,
            told: None,
        }),
        calls: AtomicU64::new(0),
        ended: CancellationToken::new(),
    })
}

/// Creates the image after making sure that the file below is the declared parent.
fn make_image(
    repository: &Repository,
    path: &ImagePath,
    capacity_bytes: u64,
    below: Option<&ImagePath>,
    parent: Option<&DeclaredParent>,
) -> Result<Arc<qcow2::Image>, Error> {
    if let (Some(below), Some(parent)) = (below, parent) {
        repository.expect_point(below, &parent.backup_id)?;
    }
    // Devices are whole sectors; the export ends where the disk does.
    let sectors = capacity_bytes.div_ceil(SECTOR_BYTES);
    repository.create_image(path, sectors.saturating_mul(SECTOR_BYTES), below)
}

/// qcow2 sizes are multiples of this.
const SECTOR_BYTES: u64 = 512;

/// Ends the job as soon as one of its images cannot become good.
fn watch_storage(hub: &Arc<Hub>, job: &Arc<Job>, mut failures: mpsc::Receiver<StorageFailure>) {
    let (hub, job) = (Arc::clone(hub), Arc::clone(job));
    hub.clone().tasks.spawn(async move {
        let failure = tokio::select! {
            () = job.ended.cancelled() => return,
            failure = failures.recv() => failure,
        };
        if let Some(failure) = failure {
            end_on_storage_failure(&hub, &job, &failure).await;
        }
    });
}

/// Removes everything that a refused start has made, unless its client was faster. What cannot be removed now is swept at the
/// next start.
async fn undo(hub: &Hub, repository: &Arc<Repository>, begin: &BeginBackup) -> Undo {
    let job = hub.job(&begin.id);
    // A completion that has begun comes first.
    let mut turn = match &job {
        Some(job) => Some(job.turn.lock().await),
        None => None,
    };
    match hub.catalog.backup(&begin.id).await {
        Ok(backup) => match (backup.status, backup.intent) {
            (JobStatus::Completed, _) => return Undo::Completed,
            (JobStatus::Failed | JobStatus::Cancelled, _) | (_, Some(Intent::Publishing)) => {
                return Undo::EndedOtherwise;
            }
            (JobStatus::Pending | JobStatus::Running, _) => {}
        },
        Err(error) => {
            // Not known to be unwanted: what is there is looked at again at the next start.
            tracing::error!(backup_id = %begin.id, %error, "a refused backup was not removed");
            return Undo::EndedOtherwise;
        }
    }
    if let (Some(job), Some(turn)) = (&job, &mut turn) {
        job.fence(&hub.exports).await;
        job.withdraw();
        turn.has_ended = true;
        hub.jobs().remove(&begin.id);
        job.ended.cancel();
    }
    let paths: Vec<String> = begin
        .disks
        .iter()
        .map(|disk| disk.image_path.clone())
        .collect();
    let repository = Arc::clone(repository);
    let removed = blocking(move || {
        paths.iter().try_for_each(|path| {
            repository.discard_image(&repository.parse(path)?, &Discard::Partial)
        })
    })
    .await;
    if let Err(error) = removed {
        tracing::error!(backup_id = %begin.id, %error, "files of a refused backup were not removed");
    }
    if let Err(error) = hub.catalog.delete_backup_rows(&begin.id).await {
        tracing::error!(backup_id = %begin.id, %error, "rows of a refused backup were not removed");
    }
    Undo::Undone
}

/// What the caller is told.
async fn started(
    hub: &Hub,
    begin: &BeginBackup,
    repository: &Repository,
) -> Result<StartedBackup, Error> {
    let backup = hub.catalog.backup(&begin.id).await?;
    let prepared = |disk: &BeginDisk| {
        Ok(PreparedDisk {
            disk_index: disk.disk_index,
            device_key: disk.device_key,
            nbd_port: hub.advertised.port(),
            export_name: disk.export_name.clone(),
            nbd_url: hub.advertised.url(&disk.export_name),
            image_path: repository.absolute(&repository.parse(&disk.image_path)?),
            capacity_bytes: disk.capacity_bytes,
        })
    };
    let disks = begin
        .disks
        .iter()
        .map(prepared)
        .collect::<Result<_, Error>>()?;
    Ok(StartedBackup {
        backup,
        disks,
        nbd_targets: nbd_targets(hub, begin),
    })
}

/// `{device key}:{url}` of every disk, separated by commas (legacy client, `nbd_targets` grammar).
fn nbd_targets(hub: &Hub, begin: &BeginBackup) -> String {
    let target = |disk: &BeginDisk| {
        format!(
            "{}:{}",
            disk.device_key,
            hub.advertised.url(&disk.export_name)
        )
    };
    begin.disks.iter().map(target).collect::<Vec<_>>().join(",")
}

fn not_served(error: RegisterError) -> Error {
    let kind = match error {
        RegisterError::Taken => ErrorKind::Internal,
        RegisterError::TooMany | RegisterError::ShuttingDown => ErrorKind::Unavailable,
    };
    Error::new(kind, "failed to serve disk", "").with_source(error)
}
