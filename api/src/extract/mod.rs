//! Typed input: what a request says becomes engine types here, or a refusal in its family's words.
//!
//! JSON is read as the legacy hub read it: unknown fields, trailing text and the content type are
//! ignored, field names match in any case, `null` means absent, and a wrong type is refused.

mod access;
mod backups;
mod policies;
mod repositories;
mod telemetry;
mod vms;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::marker::PhantomData;

pub(crate) use access::{AuditQuery, LoginInput, TokenInput};
pub(crate) use backups::{
    ChainQuery, ChangeIdQuery, CompleteDiskInput, ListQuery, StartBackupInput, StatsQuery, job_id,
    stored_backup_id,
};
pub(crate) use policies::{CopyInput, PolicyInput, policy_id};
pub(crate) use repositories::{PlaceInput, RepositoryInput, RepositoryQuery};
pub(crate) use telemetry::TelemetryInput;
pub(crate) use vms::{CredentialInput, VmInput, context};

use crate::error::{Failure, Family, Refused};

/// A JSON body; refusals are worded as those of family `F`.
pub(crate) struct Body<T, F>(pub(crate) T, PhantomData<F>);

impl<T, F, S> FromRequest<S> for Body<T, F>
where
    T: DeserializeOwned,
    F: Family,
    S: Send + Sync,
{
    type Rejection = Refused<F>;

    async fn from_request(request: Request, state: &S) -> Result<Self, Self::Rejection> {
        let bytes =
            Bytes::from_request(request, state)
                .await
                .map_err(|rejection| match rejection.status().as_u16() {
                    413 => Failure::too_large(F::INVALID_BODY, rejection.body_text()),
                    _ => Failure::invalid(F::INVALID_BODY, rejection.body_text()),
                })?;
        let decoded =
            decode(&bytes).map_err(|error| Failure::invalid(F::INVALID_BODY, error.to_string()))?;
        Ok(Self(decoded, PhantomData))
    }
}

/// The query of a request. Every field is text; the first of several wins; absent is empty.
pub(crate) struct Params<T>(pub(crate) T);

impl<T, S> FromRequestParts<S> for Params<T>
where
    T: DeserializeOwned,
    S: Send + Sync,
{
    type Rejection = Refused<crate::error::Backups>;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let invalid = |error: &dyn ToString| Failure::invalid("invalid query", error.to_string());
        let Query(pairs) = Query::<Vec<(String, String)>>::from_request_parts(parts, state)
            .await
            .map_err(|rejection| invalid(&rejection))?;
        let mut fields = Map::new();
        for (name, value) in pairs {
            fields.entry(name).or_insert(Value::String(value));
        }
        let query = serde_json::from_value(Value::Object(fields)).map_err(|e| invalid(&e))?;
        Ok(Self(query))
    }
}

/// Reads the first JSON value of `bytes` as a `T`.
fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    Value::deserialize(&mut reader).and_then(object)
}

/// Reads an object as a `T`; for an object inside another one `#[serde(deserialize_with)]` goes through here.
fn object<T: DeserializeOwned>(value: Value) -> Result<T, serde_json::Error> {
    serde_json::from_value(Value::Object(fields(value)?))
}

/// The fields of an object by their lower-case names, nulls left out; an exact name wins over one
/// in another case because sorted maps hold lower case last.
fn fields(value: Value) -> Result<Map<String, Value>, serde_json::Error> {
    match value {
        Value::Null => Ok(Map::new()),
        Value::Object(fields) => Ok(fields
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name.to_lowercase(), value))
            .collect()),
        _ => Err(serde::de::Error::custom("expected an object")),
    }
}

/// Empty text counts as absent.
fn non_empty(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default)]
    struct Sample {
        name: String,
        count: i64,
    }

    #[test]
    fn bodies_are_read_as_the_legacy_hub_read_them() {
        let check = |body: &str, name: &str, count: i64| {
            let expected = Sample {
                name: name.to_owned(),
                count,
            };
            assert_eq!(
                decode::<Sample>(body.as_bytes()).unwrap(),
                expected,
                "{body}"
            );
        };
        check("{}", "", 0);
        check("null", "", 0);
        check(r#"{"name":"a","count":2,"unknown":[1]}"#, "a", 2);
        check(r#"{"NAME":"a"}"#, "a", 0);
        check(r#"{"name":"exact","Name":"other"}"#, "exact", 0);
        check(r#"{"name":"first","name":"last"}"#, "last", 0);
        check(r#"{"name":null}"#, "", 0);
        check("{\"name\":\"a\"}\n trailing", "a", 0);
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for body in [
            "",
            "{",
            "[]",
            "7",
            r#"{"name":7}"#,
            r#"{"count":"7"}"#,
            r#"{"count":1.5}"#,
        ] {
            assert!(decode::<Sample>(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn deep_nesting_is_refused_not_followed() {
        let deep = "[".repeat(100_000);
        assert!(decode::<Sample>(deep.as_bytes()).is_err());
    }
}
