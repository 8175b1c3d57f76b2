//! The input of `/telemetry`: what clients of the legacy hub send, all of it optional.

use engine::{ClientError, DiskIndex, DiskTelemetry, Telemetry};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use utoipa::ToSchema;

/// A report of a running backup. Zero and empty mean that nothing is said.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[expect(
    dead_code,
    reason = "some fields are decoded so that a wrong type is refused as it always was"
)]
pub(crate) struct TelemetryInput {
    /// Ignored: the path says it.
    #[serde(default)]
    job_id: String,
    /// Ignored: the path says it.
    #[serde(default)]
    job_type: String,
    /// `failed` fails the backup; `completed` means that the disk which is sent now has been sent.
    #[serde(default)]
    status: String,
    /// What the client is doing, in a word.
    #[serde(default)]
    current_phase: String,
    /// Bytes copied so far.
    #[serde(default)]
    bytes_transferred: i64,
    /// What they are a part of.
    #[serde(default)]
    total_bytes: i64,
    /// Bytes per second.
    #[serde(default)]
    transfer_speed_bps: i64,
    /// Seconds until the end.
    #[serde(default)]
    eta_seconds: i64,
    /// 0 to 100.
    #[serde(default)]
    progress_percent: f64,
    /// Disk by disk.
    #[serde(default, deserialize_with = "objects")]
    disks: Vec<DiskTelemetryInput>,
    /// Fails the backup.
    #[serde(default, deserialize_with = "maybe_object")]
    error: Option<ClientErrorInput>,
    /// Ignored: the hub has a clock.
    #[serde(default)]
    timestamp: String,
}

/// A report of one disk.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct DiskTelemetryInput {
    /// Index of the disk in the backup.
    #[serde(default)]
    disk_index: i64,
    /// Bytes copied so far.
    #[serde(default)]
    bytes_transferred: i64,
    /// What they are a part of.
    #[serde(default)]
    total_bytes: i64,
    /// `completed` when the disk has been sent.
    #[serde(default)]
    status: String,
    /// 0 to 100.
    #[serde(default)]
    progress_percent: f64,
}

/// What went wrong at the client.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[expect(
    dead_code,
    reason = "a field is decoded so that a wrong type is refused as it always was"
)]
pub(crate) struct ClientErrorInput {
    /// In its own words.
    #[serde(default)]
    message: String,
    /// A code of its own.
    #[serde(default)]
    code: String,
    /// Ignored: the hub has a clock.
    #[serde(default)]
    timestamp: String,
}

impl From<TelemetryInput> for Telemetry {
    fn from(input: TelemetryInput) -> Self {
        Self {
            status: input.status,
            current_phase: input.current_phase,
            bytes_transferred: input.bytes_transferred,
            total_bytes: input.total_bytes,
            transfer_speed_bps: input.transfer_speed_bps,
            eta_seconds: input.eta_seconds,
            progress_percent: input.progress_percent,
            disks: input.disks.into_iter().filter_map(disk).collect(),
            error: input.error.map(|error| ClientError {
                message: error.message,
                code: error.code,
            }),
        }
    }
}

/// A report of a disk that cannot be is of no disk.
fn disk(input: DiskTelemetryInput) -> Option<DiskTelemetry> {
    Some(DiskTelemetry {
        disk_index: DiskIndex::new(u32::try_from(input.disk_index).ok()?),
        bytes_transferred: input.bytes_transferred,
        total_bytes: input.total_bytes,
        status: input.status,
        progress_percent: input.progress_percent,
    })
}

/// Objects inside an object, read as leniently as the one around them.
fn objects<'de, D, T>(from: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    let values = Vec::<Value>::deserialize(from)?;
    let read = |value| super::object(value).map_err(D::Error::custom);
    values.into_iter().map(read).collect()
}

fn maybe_object<'de, D, T>(from: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    let value = Value::deserialize(from)?;
    super::object(value).map(Some).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<Telemetry, serde_json::Error> {
        super::super::decode::<TelemetryInput>(body.as_bytes()).map(Telemetry::from)
    }

    #[test]
    fn a_report_is_read_as_the_legacy_hub_read_it() {
        assert_eq!(read("{}").unwrap(), Telemetry::default());
        assert_eq!(read("null").unwrap(), Telemetry::default());
        assert_eq!(
            read(r#"{"disks":null,"error":null}"#).unwrap(),
            Telemetry::default()
        );
        let body = r#"{"job_id":"x","job_type":"backup","STATUS":"running","current_phase":"transferring",
            "bytes_transferred":5,"total_bytes":10,"transfer_speed_bps":3,"eta_seconds":-2,"progress_percent":50,
            "disks":[{"Disk_Index":1,"progress_percent":12.5,"extra":{}},{"disk_index":-1}],
            "error":{"Message":"gone","code":null,"timestamp":"t"},"timestamp":"t","unknown":[1]} tail"#;
        let expected = Telemetry {
            status: "running".to_owned(),
            current_phase: "transferring".to_owned(),
            bytes_transferred: 5,
            total_bytes: 10,
            transfer_speed_bps: 3,
            eta_seconds: -2,
            progress_percent: 50.0,
            disks: vec![DiskTelemetry {
                disk_index: DiskIndex::new(1),
                progress_percent: 12.5,
                ..DiskTelemetry::default()
            }],
            error: Some(ClientError {
                message: "gone".to_owned(),
                code: String::new(),
            }),
        };
        assert_eq!(read(body).unwrap(), expected);
    }

    #[test]
    fn a_wrong_type_is_refused() {
        for body in [
            r#"{"status":1}"#,
            r#"{"bytes_transferred":"5"}"#,
            r#"{"bytes_transferred":1.5}"#,
            r#"{"progress_percent":"5"}"#,
            r#"{"disks":{}}"#,
            r#"{"disks":[1]}"#,
            r#"{"disks":[{"disk_index":"0"}]}"#,
            r#"{"error":"text"}"#,
            r#"{"error":{"message":1}}"#,
            r#"{"timestamp":1}"#,
            "[]",
            "",
        ] {
            assert!(read(body).is_err(), "{body}");
        }
    }
}
