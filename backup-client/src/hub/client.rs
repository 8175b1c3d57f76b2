//! One method per call.

use std::time::Duration;

use reqwest::{Method, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::views::{
    BackupDisk, BackupDiskList, BackupView, BaseView, CompleteDisk, ErrorBody, KnownVm,
    KnownVmAnswer, NewVm, Report, RepositoryList, RepositoryView, StartBackup,
};
use crate::limits::{
    COMPLETE_TIMEOUT, COMPLETE_TRIES, CONNECT_TIMEOUT, MAX_REST_BODY_BYTES, REPORT_TIMEOUT,
    REST_TIMEOUT,
};
use crate::{Error, ErrorKind, Token};

/// A hub that answers under `<base>/api/v1`.
#[derive(Debug, Clone)]
pub(crate) struct Hub {
    http: reqwest::Client,
    base: Url,
    token: Option<Token>,
}

/// A REST call that did not work out.
#[derive(Debug)]
enum CallError {
    /// The hub answered with a status that is no success.
    Status(StatusCode, String),
    /// No usable answer: connection, timeout, or a body that cannot be understood.
    Transport(reqwest::Error),
    Body(String),
}

impl Hub {
    /// `url` is the hub's address without `/api/v1`.
    pub(crate) fn new(url: &str, token: Option<Token>) -> Result<Self, Error> {
        let usage = |text: String| Error::new(ErrorKind::Usage, text);
        let base = Url::parse(url).map_err(|error| usage(format!("bad hub url={url}: {error}")))?;
        if base.scheme() != "http" || base.cannot_be_a_base() {
            return Err(usage(format!(
                "the hub url must begin with http:// url={url}"
            )));
        }
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REST_TIMEOUT)
            .build()
            .map_err(|error| Error::because(ErrorKind::Hub, "cannot make an http client", error))?;
        Ok(Self { http, base, token })
    }

    /// Enabled and disabled ones, in the hub's order.
    pub(crate) async fn repositories(&self) -> Result<Vec<RepositoryView>, Error> {
        let list: RepositoryList = self
            .get(&["repositories"], &[])
            .await
            .map_err(|error| error.named("list its repositories"))?;
        Ok(list.repositories)
    }

    /// The VM of this name in the inventory; `None` when the hub does not know it.
    pub(crate) async fn vm(&self, vm_name: &str) -> Result<Option<KnownVm>, Error> {
        match self
            .get::<KnownVmAnswer>(&["vm-contexts", vm_name], &[])
            .await
        {
            Ok(answer) => Ok(Some(answer.context)),
            Err(CallError::Status(StatusCode::NOT_FOUND, _)) => Ok(None),
            Err(error) => Err(error.named(format_args!("look up vm={vm_name}"))),
        }
    }

    /// Registers a VM or updates it.
    pub(crate) async fn register_vm(&self, vm: &NewVm) -> Result<(), Error> {
        self.post::<serde_json::Value>(&["vm-contexts"], vm, REST_TIMEOUT)
            .await
            .map(|_| ())
            .map_err(|error| error.named(format_args!("register vm={}", vm.vm_name)))
    }

    /// Starts a job whose data this client pushes.
    pub(crate) async fn start_backup(
        &self,
        request: &StartBackup<'_>,
    ) -> Result<BackupView, Error> {
        self.post(&["backups"], request, REST_TIMEOUT)
            .await
            .map_err(|error| {
                error.named(format_args!(
                    "start a backup vm={} type={} repository={}",
                    request.vm_name, request.backup_type, request.repository_id
                ))
            })
    }

    /// The job as it is now.
    pub(crate) async fn backup(&self, backup_id: &str) -> Result<BackupView, Error> {
        self.get(&["backups", backup_id], &[])
            .await
            .map_err(|error| error.named(format_args!("show backup={backup_id}")))
    }

    /// What the hub counted per disk.
    pub(crate) async fn backup_disks(&self, backup_id: &str) -> Result<Vec<BackupDisk>, Error> {
        let list: BackupDiskList = self
            .get(&["backups", backup_id, "disks"], &[])
            .await
            .map_err(|error| error.named(format_args!("show the disks of backup={backup_id}")))?;
        Ok(list.disks)
    }

    /// The change id of the point under the running increment of this disk; empty when there is none.
    pub(crate) async fn base(&self, vm_name: &str, disk_id: u32) -> Result<BaseView, Error> {
        let disk = disk_id.to_string();
        self.get(
            &["backups", "changeid"],
            &[("vm_name", vm_name), ("disk_id", &disk)],
        )
        .await
        .map_err(|error| error.named(format_args!("tell the change id of disk={disk_id}")))
    }

    /// Declares a disk complete: everything of it is durable and published when this returns with the last disk.
    /// Repeated when the connection fails, since the call is idempotent.
    pub(crate) async fn complete(
        &self,
        backup_id: &str,
        disk: &CompleteDisk<'_>,
    ) -> Result<(), Error> {
        let mut tries = 1;
        loop {
            let path = ["backups", backup_id, "complete"];
            match self
                .post::<serde_json::Value>(&path, disk, COMPLETE_TIMEOUT)
                .await
            {
                Ok(_) => return Ok(()),
                Err(CallError::Transport(error)) if tries < COMPLETE_TRIES => {
                    tracing::warn!(backup_id, disk = disk.disk_id, %error, tries, "complete: trying again");
                    tokio::time::sleep(Duration::from_secs(u64::from(tries))).await;
                    tries += 1;
                }
                Err(error) => {
                    let what = format!("complete backup={backup_id} disk={}", disk.disk_id);
                    return Err(error.named(what));
                }
            }
        }
    }

    /// Tells the hub that this client lives and how far it is. Nothing depends on the answer.
    pub(crate) async fn report(&self, backup_id: &str, report: &Report<'_>) {
        let path = ["telemetry", "backup", backup_id];
        let answer = self
            .post::<serde_json::Value>(&path, report, REPORT_TIMEOUT)
            .await;
        if let Err(error) = answer {
            tracing::debug!(backup_id, ?error, "a report was not taken");
        }
    }

    /// Ends the job. `Ok(false)` when it had ended before.
    pub(crate) async fn cancel(&self, backup_id: &str) -> Result<bool, Error> {
        let path = ["backups", backup_id, "cancel"];
        let body = serde_json::json!({});
        match self
            .post::<serde_json::Value>(&path, &body, REST_TIMEOUT)
            .await
        {
            Ok(_) => Ok(true),
            Err(CallError::Status(StatusCode::CONFLICT, _)) => Ok(false),
            Err(error) => Err(error.named(format_args!("cancel backup={backup_id}"))),
        }
    }

    async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<T, CallError> {
        let mut url = self.url(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        self.call(self.http.request(Method::GET, url)).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
        timeout: Duration,
    ) -> Result<T, CallError> {
        let request = self
            .http
            .request(Method::POST, self.url(path))
            .timeout(timeout)
            .json(body);
        self.call(request).await
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .expect("an http url can be a base")
            .pop_if_empty()
            .extend(["api", "v1"])
            .extend(path);
        url
    }

    async fn call<T: DeserializeOwned>(
        &self,
        mut request: reqwest::RequestBuilder,
    ) -> Result<T, CallError> {
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.secret());
        }
        let mut response = request.send().await.map_err(CallError::Transport)?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(part) = response.chunk().await.map_err(CallError::Transport)? {
            if body.len() + part.len() > MAX_REST_BODY_BYTES {
                return Err(CallError::Body(format!(
                    "the answer is too long limit_bytes={MAX_REST_BODY_BYTES}"
                )));
            }
            body.extend_from_slice(&part);
        }
        if !status.is_success() {
            return Err(CallError::Status(status, error_text(&body)));
        }
        serde_json::from_slice(&body)
            .map_err(|error| CallError::Body(format!("the answer is not understood: {error}")))
    }
}

/// What an error body says, whatever its shape.
fn error_text(body: &[u8]) -> String {
    const SHOWN_CHARS: usize = 300;
    serde_json::from_slice::<ErrorBody>(body)
        .ok()
        .and_then(ErrorBody::text)
        .unwrap_or_else(|| {
            String::from_utf8_lossy(body)
                .trim()
                .chars()
                .take(SHOWN_CHARS)
                .collect()
        })
}

impl CallError {
    fn named(self, what: impl std::fmt::Display) -> Error {
        let text = format!("the hub did not {what}");
        match self {
            Self::Status(status, why) => Error::new(
                ErrorKind::Hub,
                format_args!("{text}: {why} status={}", status.as_u16()),
            ),
            Self::Transport(error) => Error::because(ErrorKind::Hub, text, error),
            Self::Body(why) => Error::new(ErrorKind::Hub, format_args!("{text}: {why}")),
        }
    }
}
