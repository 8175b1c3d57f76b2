//! The steps of a backup, and what is undone when one fails.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::options::{BackupOptions, BackupType};
use super::progress::Progress;
use super::report::{BackupReport, DiskReport, HubCounters, Warning};
use crate::hub::{
    BackupView, CompleteDisk, DiskReportView, Hub, NewVm, Report, StartBackup, VmDisk,
};
use crate::limits::{BLOCK_BYTES, REPORT_INTERVAL};
use crate::nbd::NbdUri;
use crate::push::{DiskJob, push_disk};
use crate::source::{Source, SourceSpec, Unchanged};
use crate::tracker::{
    BaseAtHub, Decision, Everything, HashReader, Loaded, PendingState, StateHeader, StateWriter,
    VmStates, decide,
};
use crate::{Error, ErrorKind};

/// Key of a VM's first disk, as VMware counts them; the hub orders disks by it.
const FIRST_DISK_KEY: usize = 2000;

/// Backs up one VM: registers it where needed, starts a job at the hub, pushes every disk, completes it, and then
/// puts the new tracking states in force. A job that cannot be finished is cancelled at the hub.
///
/// # Errors
/// The first thing that went wrong, of the kind that says whose part it is; `Cancelled` when
/// [`BackupOptions::cancel`] was used.
///
/// # Cancel safety
/// Dropping the future leaves a running job at the hub; use [`BackupOptions::cancel`] instead.
pub async fn backup(
    options: BackupOptions,
    progress: &dyn Progress,
) -> Result<BackupReport, Error> {
    options.check()?;
    let begun = Instant::now();
    let cancel = options.cancel.clone();
    let mut warnings = Warnings {
        list: Vec::new(),
        progress,
    };
    let preparing = prepare(&options, &mut warnings);
    let prepared = tokio::select! {
        prepared = preparing => prepared?,
        () = cancel.cancelled() => return Err(cancelled()),
    };
    // Not cancelled half-way: a job that the hub has started must become known here.
    let job = prepared.start(&options).await?;
    progress.job_started(&job.backup_id, &job.backup_type, job.type_reason.as_deref());

    let mut run = Run {
        prepared,
        job,
        options,
        warnings,
        disks: Vec::new(),
        states: Vec::new(),
    };
    let result = tokio::select! {
        result = run.push_all() => result,
        () = cancel.cancelled() => Err(cancelled()),
    };
    match result {
        Ok(()) => run.finish(begun).await,
        Err(error) => run.give_up(error, begun).await,
    }
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "cancelled")
}

/// The warnings of a run; each is told at once and kept.
struct Warnings<'a> {
    list: Vec<Warning>,
    progress: &'a dyn Progress,
}

impl Warnings<'_> {
    fn add(&mut self, name: &'static str, text: String) {
        let warning = Warning { name, text };
        self.progress.warning(&warning);
        self.list.push(warning);
    }
}

/// Everything that is known before a job exists.
struct Prepared {
    hub: Hub,
    sources: Vec<Arc<dyn Source>>,
    repository_id: String,
    states: Option<Arc<VmStates>>,
}

async fn prepare(options: &BackupOptions, warnings: &mut Warnings<'_>) -> Result<Prepared, Error> {
    let hub = Hub::new(&options.hub, options.token.clone())?;
    let sources = open_sources(options.disks.clone()).await?;
    for source in &sources {
        for remark in source.remarks() {
            warnings.add("source-remark", format!("{}: {remark}", source.label()));
        }
    }
    let repository_id = match &options.repository {
        Some(id) => id.clone(),
        None => first_repository(&hub).await?,
    };
    let states = open_states(options, warnings).await?;
    register(&hub, &options.vm_name, &sources).await?;
    Ok(Prepared {
        hub,
        sources,
        repository_id,
        states,
    })
}

async fn open_sources(specs: Vec<SourceSpec>) -> Result<Vec<Arc<dyn Source>>, Error> {
    blocking(move || specs.iter().map(SourceSpec::open).collect()).await
}

async fn first_repository(hub: &Hub) -> Result<String, Error> {
    let repositories = hub.repositories().await?;
    repositories
        .into_iter()
        .find(|repository| repository.enabled)
        .map(|repository| repository.id)
        .ok_or_else(|| Error::new(ErrorKind::Hub, "the hub has no enabled repository"))
}

/// A state directory that cannot be used costs speed, not the backup; one in use by another run stops this one.
async fn open_states(
    options: &BackupOptions,
    warnings: &mut Warnings<'_>,
) -> Result<Option<Arc<VmStates>>, Error> {
    let Some(root) = options.state_dir.clone() else {
        return Ok(None);
    };
    let vm_name = options.vm_name.clone();
    match blocking(move || VmStates::open(&root, &vm_name)).await {
        Ok(states) => Ok(Some(Arc::new(states))),
        Err(error) if error.kind() == ErrorKind::Busy => Err(error),
        Err(error) => {
            warnings.add("tracking-unavailable", error.full_text());
            Ok(None)
        }
    }
}

/// Tells the hub the VM and the sizes of its disks, as the same VM that it may know from its inventory.
async fn register(hub: &Hub, vm_name: &str, sources: &[Arc<dyn Source>]) -> Result<(), Error> {
    let known = hub.vm(vm_name).await?.unwrap_or_default();
    let disks = sources
        .iter()
        .enumerate()
        .map(|(index, source)| VmDisk {
            disk_id: disk_id(index),
            capacity_bytes: source.size_bytes(),
            label: format!("Hard disk {}", index + 1),
        })
        .collect();
    hub.register_vm(&NewVm {
        vm_name: vm_name.to_owned(),
        vm_path: known.vm_path,
        vmware_vm_id: known.vmware_vm_id,
        vcenter_host: known.vcenter_host,
        datacenter: known.datacenter,
        credential_id: known.credential_id,
        disks,
    })
    .await
}

fn disk_id(index: usize) -> String {
    format!("disk-{}", FIRST_DISK_KEY + index)
}

impl Prepared {
    async fn start(&self, options: &BackupOptions) -> Result<BackupView, Error> {
        self.hub
            .start_backup(&StartBackup {
                vm_name: &options.vm_name,
                repository_id: &self.repository_id,
                backup_type: options.backup_type.word(),
                transfer: "direct",
            })
            .await
    }
}

/// A job that exists at the hub.
struct Run<'a> {
    prepared: Prepared,
    job: BackupView,
    options: BackupOptions,
    warnings: Warnings<'a>,
    disks: Vec<DiskReport>,
    /// Durable, but in force only after the hub has acknowledged everything.
    states: Vec<PendingState>,
}

/// How one disk is going to be pushed.
struct DiskPlan {
    everything: Option<Everything>,
    change_id: String,
    previous: Option<HashReader>,
    next: Option<StateWriter>,
}

impl Run<'_> {
    async fn push_all(&mut self) -> Result<(), Error> {
        if self.options.backup_type == BackupType::Incremental && self.job.backup_type == "full" {
            let why = self.job.type_reason.as_deref().unwrap_or("no reason given");
            let text = format!("the hub made a full backup instead of an increment: {why}");
            self.warnings.add("full-instead-of-incremental", text);
        }
        // All bases are asked for before any disk completes: afterwards the answers may change.
        let mut bases = Vec::new();
        for index in 0..self.prepared.sources.len() {
            bases.push(self.base(index).await?);
        }
        for (index, base) in bases.iter().enumerate() {
            self.push_one(index, base)
                .await
                .map_err(|error| error.context(disk_id(index)))?;
        }
        Ok(())
    }

    async fn base(&self, index: usize) -> Result<BaseAtHub, Error> {
        if self.job.backup_type == "full" {
            return Ok(BaseAtHub::Full);
        }
        let answer = self
            .prepared
            .hub
            .base(&self.options.vm_name, u32_of(index))
            .await?;
        Ok(BaseAtHub::Increment {
            change_id: answer.change_id,
            backup_id: answer.backup_job_id.filter(|id| !id.is_empty()),
        })
    }

    /// Tells the hub every now and then that this client lives and how much of a disk it is done with; never ends.
    async fn report(&self, index: usize, done_bytes: &AtomicU64, total_bytes: u64) -> Infallible {
        loop {
            tokio::time::sleep(REPORT_INTERVAL).await;
            let disk = DiskReportView {
                disk_index: u32_of(index),
                bytes_transferred: done_bytes.load(Ordering::Relaxed),
                total_bytes,
            };
            let report = Report {
                status: "running",
                current_phase: "transferring",
                disks: [disk],
            };
            self.prepared.hub.report(&self.job.backup_id, &report).await;
        }
    }

    async fn push_one(&mut self, index: usize, base: &BaseAtHub) -> Result<(), Error> {
        let begun = Instant::now();
        let disk_id = disk_id(index);
        let source = Arc::clone(&self.prepared.sources[index]);
        let uri = self.uri(index)?;
        let plan = self.plan(&disk_id, &source, base).await?;
        let progress = self.warnings.progress;
        progress.disk_started(&disk_id, source.label(), source.size_bytes());

        let done_bytes = AtomicU64::new(0);
        let advanced = |bytes| {
            done_bytes.fetch_add(bytes, Ordering::Relaxed);
            progress.advanced(&disk_id, bytes);
        };
        let pushing = push_disk(DiskJob {
            source: Arc::clone(&source),
            uri: &uri,
            connections: self.options.connections,
            previous: plan.previous,
            next: plan.next,
            advanced: &advanced,
        });
        let pushed = tokio::select! {
            pushed = pushing => pushed?,
            never = self.report(index, &done_bytes, source.size_bytes()) => match never {},
        };
        self.check_source(&disk_id, &source).await?;

        if let Some(why) = pushed.tracking_lost {
            self.warnings
                .add("tracking-lost", format!("{disk_id}: {why}"));
        }
        self.seal_state(&disk_id, pushed.next).await;
        // Reported before the hub acknowledges it: should the answer be lost, `give_up` asks how it ended.
        self.disks.push(DiskReport {
            disk_index: u32_of(index),
            disk_id,
            source: source.label().to_owned(),
            size_bytes: source.size_bytes(),
            read_bytes: pushed.read_bytes,
            sent_bytes: pushed.sent_bytes,
            zero_bytes: pushed.zero_bytes,
            unchanged_bytes: pushed.unchanged_bytes,
            change_id: plan.change_id.clone(),
            everything: plan.everything,
            hub: None,
            elapsed: begun.elapsed(),
        });
        let complete = CompleteDisk {
            change_id: &plan.change_id,
            disk_id: u32_of(index),
            bytes_transferred: pushed.sent_bytes,
        };
        self.prepared
            .hub
            .complete(&self.job.backup_id, &complete)
            .await?;
        if let Some(report) = self.disks.last_mut() {
            report.elapsed = begun.elapsed();
            progress.disk_finished(report);
        }
        Ok(())
    }

    /// Where the hub takes the disk.
    fn uri(&self, index: usize) -> Result<NbdUri, Error> {
        let index = u32_of(index);
        let results = &self.job.disk_results;
        let result = results
            .iter()
            .find(|result| result.disk_id == index)
            .ok_or_else(|| {
                let text = "the hub prepared no export for the disk";
                Error::new(
                    ErrorKind::Hub,
                    format_args!("{text} disk={index} prepared={}", results.len()),
                )
            })?;
        result.nbd_url.parse().map_err(|why| {
            let text = format!("the hub gave no usable nbd url={:?}", result.nbd_url);
            Error::because(ErrorKind::Hub, text, why)
        })
    }

    /// Compares the state on this node with the base at the hub.
    async fn plan(
        &mut self,
        disk_id: &str,
        source: &Arc<dyn Source>,
        base: &BaseAtHub,
    ) -> Result<DiskPlan, Error> {
        let fresh_epoch = Uuid::new_v4();
        let Some(states) = self.prepared.states.clone() else {
            let everything = match base {
                BaseAtHub::Full => Everything::FullBackup,
                BaseAtHub::Increment { .. } => Everything::TrackingOff,
            };
            return Ok(DiskPlan {
                everything: Some(everything),
                change_id: crate::tracker::ChangeId::first(fresh_epoch).to_string(),
                previous: None,
                next: None,
            });
        };
        let (loaded, mut previous_error) = (load(&states, disk_id).await?, None);
        let block_bytes = u32::try_from(BLOCK_BYTES).expect("a block is small");
        let Decision {
            everything,
            change_id,
        } = decide(
            base,
            &loaded,
            source.size_bytes(),
            block_bytes,
            &self.job.backup_id,
            fresh_epoch,
        );
        if let Some(reason) = everything.as_ref().filter(|reason| reason.is_surprise()) {
            let text = format!("{disk_id}: everything is sent: {reason}");
            self.warnings.add(reason.name(), text);
        }
        let previous = match (loaded, &everything) {
            (Loaded::Present(state), None) => state
                .into_hashes()
                .map_err(|error| previous_error = Some(error))
                .ok(),
            _ => None,
        };
        if let Some(error) = previous_error {
            let text = format!("{disk_id}: cannot read the tracking state: {error}");
            self.warnings.add("tracking-lost", text);
        }
        let header = StateHeader {
            identity: states.identity(disk_id),
            size_bytes: source.size_bytes(),
            block_bytes,
            change_id,
            backup_id: self.job.backup_id.clone(),
        };
        let next = match blocking(move || states.create(&header)).await {
            Ok(writer) => Some(writer),
            Err(error) => {
                let text = format!("{disk_id}: {}", error.full_text());
                self.warnings.add("tracking-lost", text);
                None
            }
        };
        Ok(DiskPlan {
            everything,
            change_id: change_id.to_string(),
            previous,
            next,
        })
    }

    async fn check_source(&mut self, disk_id: &str, source: &Arc<dyn Source>) -> Result<(), Error> {
        let checked = Arc::clone(source);
        let unchanged = blocking(move || {
            checked.check_unchanged().map_err(|error| {
                let text = format!("cannot trust the source={}", checked.label());
                Error::because(ErrorKind::Source, text, error)
            })
        })
        .await?;
        if unchanged == Unchanged::Modified {
            let text = format!(
                "{disk_id}: {} was written to while it was read, so the backup may mix two states",
                source.label()
            );
            self.warnings.add("source-modified", text);
        }
        Ok(())
    }

    /// Makes the new state durable beside the old one.
    async fn seal_state(&mut self, disk_id: &str, writer: Option<StateWriter>) {
        let Some(writer) = writer else { return };
        let sealed = blocking(move || {
            writer.finish().map_err(|error| {
                Error::because(ErrorKind::State, "cannot write the tracking state", error)
            })
        })
        .await;
        match sealed {
            Ok(state) => self.states.push(state),
            Err(error) => {
                let text = format!("{disk_id}: {}", error.full_text());
                self.warnings.add("tracking-lost", text);
            }
        }
    }

    /// The hub has everything: the new states come into force.
    async fn finish(mut self, begun: Instant) -> Result<BackupReport, Error> {
        let states = std::mem::take(&mut self.states);
        let committed = blocking(move || {
            states
                .into_iter()
                .try_for_each(PendingState::commit)
                .map_err(|error| {
                    Error::because(
                        ErrorKind::State,
                        "cannot put a tracking state in force",
                        error,
                    )
                })
        })
        .await;
        if let Err(error) = committed {
            self.warnings.add("tracking-lost", error.full_text());
        }
        self.add_hub_counters().await;
        Ok(self.into_report(begun.elapsed()))
    }

    /// What the hub made of the data; a hub that does not tell costs these figures only.
    async fn add_hub_counters(&mut self) {
        match self.prepared.hub.backup_disks(&self.job.backup_id).await {
            Ok(told) => {
                for report in &mut self.disks {
                    report.hub = told
                        .iter()
                        .find(|disk| disk.disk_id == report.disk_index)
                        .map(|disk| HubCounters {
                            received_bytes: disk.received_bytes,
                            zero_bytes: disk.zero_bytes,
                            equal_bytes: disk.equal_bytes,
                            stored_bytes: disk.stored_bytes,
                        });
                }
            }
            Err(error) => tracing::debug!(error = error.full_text(), "no counters from the hub"),
        }
    }

    /// Ends the job at the hub, unless the hub had finished it and only its answer was lost.
    async fn give_up(self, error: Error, begun: Instant) -> Result<BackupReport, Error> {
        let backup_id = &self.job.backup_id;
        let error = error.context(format_args!("backup={backup_id}"));
        match self.prepared.hub.cancel(backup_id).await {
            Ok(true) => Err(error),
            Ok(false) => match self.prepared.hub.backup(backup_id).await {
                Ok(job) if job.status == "completed" && self.all_disks_told() => {
                    self.finish(begun).await
                }
                Ok(job) => Err(match job.error_message.filter(|text| !text.is_empty()) {
                    Some(text) => error.context(format_args!("the hub ended the job: {text}")),
                    None => error,
                }),
                Err(_) => Err(error),
            },
            Err(failed) => {
                let text = format!("{} (the job may still run at the hub)", failed.full_text());
                tracing::warn!(backup_id, "{text}");
                Err(error.context(text))
            }
        }
    }

    fn all_disks_told(&self) -> bool {
        self.disks.len() == self.prepared.sources.len()
    }

    fn into_report(self, elapsed: Duration) -> BackupReport {
        BackupReport {
            backup_id: self.job.backup_id,
            vm_name: self.options.vm_name,
            repository_id: self.prepared.repository_id,
            backup_type: self.job.backup_type,
            type_reason: self.job.type_reason,
            disks: self.disks,
            warnings: self.warnings.list,
            elapsed,
        }
    }
}

async fn load(states: &Arc<VmStates>, disk_id: &str) -> Result<Loaded, Error> {
    let (states, disk_id) = (Arc::clone(states), disk_id.to_owned());
    blocking(move || Ok(states.load(&disk_id))).await
}

/// Runs file work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::because(ErrorKind::Source, "file work panicked", error))?
}

fn u32_of(index: usize) -> u32 {
    u32::try_from(index).expect("the number of disks is limited")
}
