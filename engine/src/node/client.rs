//! Calls to the node appliance (SNA).

use std::time::Duration;

use serde::Serialize;

use crate::config::Secret;
use crate::error::{Error, ErrorKind};
use crate::limits::{
    NODE_ANSWER_BYTES_MAX, NODE_CALL_TIMEOUT_S, NODE_CONNECT_PAUSES, NODE_CONNECT_TIMEOUT_S,
    NODE_HEALTH_TIMEOUT_S,
};
use crate::model::BackupType;

/// How a node reaches the hypervisor.
#[derive(Debug, Clone)]
pub(crate) struct VcenterLogin {
    pub(crate) host: String,
    pub(crate) username: String,
    pub(crate) password: Secret,
}

/// What a node is told to do.
#[derive(Debug, Clone)]
pub(crate) struct NodeStart {
    pub(crate) job_id: String,
    pub(crate) vm_name: String,
    pub(crate) vm_path: String,
    pub(crate) login: VcenterLogin,
    /// `{device key}:{url}` of every disk, separated by commas.
    pub(crate) nbd_targets: String,
    /// Host part of the advertised address.
    pub(crate) nbd_host: String,
    pub(crate) backup_type: BackupType,
}

/// The ten fields of the call, exactly (legacy hub → SNA contract, start of a backup).
#[derive(Serialize)]
struct StartBody<'a> {
    job_id: &'a str,
    vm_name: &'a str,
    vcenter_host: &'a str,
    vcenter_user: &'a str,
    vcenter_password: &'a str,
    vm_path: &'a str,
    nbd_host: &'a str,
    nbd_targets: &'a str,
    backup_type: &'a str,
    previous_change_id: &'a str,
}

/// The node asks the hub for the change id itself; it only wants the field not to be empty.
const PREVIOUS_CHANGE_ID: &str = "PLACEHOLDER";

/// A client of one node appliance.
#[derive(Debug, Clone)]
pub(crate) struct NodeClient {
    http: reqwest::Client,
    url: String,
}

impl NodeClient {
    /// A client of the appliance at `url`, such as `http://127.0.0.1:9081`.
    pub(crate) fn new(url: &str) -> Result<Self, Error> {
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(NODE_CONNECT_TIMEOUT_S))
            .timeout(Duration::from_secs(NODE_CALL_TIMEOUT_S))
            // The body carries a password: it goes where the operator said, nowhere else.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|error| {
                Error::internal("failed to make the node client", "").with_source(error)
            })?;
        Ok(Self {
            http,
            url: url.trim_end_matches('/').to_owned(),
        })
    }

    /// Asks the node whether it is well, before anything is made for a backup that it could not start. A node that does not
    /// know the question is asked no further.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NodeUnreachable`] without an answer, [`ErrorKind::NodeRefused`] if it is not well.
    pub(crate) async fn expect_healthy(&self) -> Result<(), Error> {
        let url = format!("{}/api/v1/health", self.url);
        let timeout = Duration::from_secs(NODE_HEALTH_TIMEOUT_S);
        let answer = send(&url, || self.http.get(&url).timeout(timeout)).await?;
        match answer.status().as_u16() {
            200..=299 | 404 | 405 => Ok(()),
            status => Err(refused("health ", status, answer).await),
        }
    }

    /// Tells the node to start. An answer of 200 or 202 only means that its client was started.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NodeUnreachable`] without an answer, [`ErrorKind::NodeRefused`] with any other answer.
    pub(crate) async fn start_backup(&self, start: &NodeStart) -> Result<(), Error> {
        let url = format!("{}/api/v1/backup/start", self.url);
        let body = StartBody {
            job_id: &start.job_id,
            vm_name: &start.vm_name,
            vcenter_host: &start.login.host,
            vcenter_user: &start.login.username,
            vcenter_password: start.login.password.reveal(),
            vm_path: &start.vm_path,
            nbd_host: &start.nbd_host,
            nbd_targets: &start.nbd_targets,
            backup_type: start.backup_type.as_str(),
            previous_change_id: PREVIOUS_CHANGE_ID,
        };
        let answer = send(&url, || self.http.post(&url).json(&body)).await?;
        let status = answer.status().as_u16();
        if matches!(status, 200 | 202) {
            return Ok(());
        }
        Err(refused("", status, answer).await)
    }

    #[cfg(test)]
    pub(super) fn url(&self) -> &str {
        &self.url
    }
}

/// Sends a request; again after a pause as long as not even a connection came about.
async fn send(
    url: &str,
    request: impl Fn() -> reqwest::RequestBuilder,
) -> Result<reqwest::Response, Error> {
    let mut pauses = NODE_CONNECT_PAUSES.iter();
    loop {
        let error = match request().send().await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        match pauses.next() {
            // Anything else may have reached the node, which would start a second client.
            Some(pause) if error.is_connect() => tokio::time::sleep(*pause).await,
            _ => {
                let details = format!("url={url}");
                let message = "failed to call SNA API";
                return Err(
                    Error::new(ErrorKind::NodeUnreachable, message, details).with_source(error)
                );
            }
        }
    }
}

/// The error that an answer is.
async fn refused(about: &str, status: u16, answer: reqwest::Response) -> Error {
    let text = beginning(answer).await;
    let details = format!("{about}status: {status} answer={text:?}");
    Error::new(ErrorKind::NodeRefused, "SNA API error", details)
}

/// The beginning of an answer's body, for the error text; whatever cannot be read is left out.
async fn beginning(mut answer: reqwest::Response) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < NODE_ANSWER_BYTES_MAX {
        match answer.chunk().await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            _ => break,
        }
    }
    bytes.truncate(NODE_ANSWER_BYTES_MAX);
    String::from_utf8_lossy(&bytes).trim().to_owned()
}
