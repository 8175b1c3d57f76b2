//! Who asks.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use engine::{Caller, Clock, Engine, Role, Secret};

use super::Strangers;
use crate::error::Failure;

/// Who is trusted without a token. A token that is presented must be good whoever presents it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Nobody: `--require-tokens`.
    Nobody,
    /// Callers on this machine, which is how the legacy tunnel and GUI come.
    Loopback,
    /// Everybody: an exposed address with `--insecure`.
    Everybody,
}

/// What every guard needs; [`router`](crate::router) gives it to every request.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) engine: Engine,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) trust: Trust,
    pub(crate) strangers: Arc<Strangers>,
}

impl Door {
    /// Who asks.
    ///
    /// # Errors
    /// 401 without a token where one is needed, and for a token that is not known, even where none is needed.
    pub(crate) async fn caller(
        &self,
        headers: &HeaderMap,
        peer: Option<SocketAddr>,
    ) -> Result<Caller, Failure> {
        match presented(headers)? {
            Some(token) => Ok(self.engine.authenticate(&token).await?),
            None => trusted(self.trust, peer)
                .ok_or_else(|| Failure::unauthenticated("Missing authorization header", "")),
        }
    }
}

/// The token of a request, if it has one.
fn presented(headers: &HeaderMap) -> Result<Option<Secret>, Failure> {
    let Some(header) = headers.get(AUTHORIZATION) else {
        return Ok(None);
    };
    let token = header.to_str().ok().and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    match token {
        Some(token) => Ok(Some(Secret::new(token))),
        None => Err(Failure::unauthenticated(
            "Invalid authorization format",
            "expected Bearer and a token",
        )),
    }
}

/// A caller without a token. An address that is not known is not trusted.
fn trusted(trust: Trust, peer: Option<SocketAddr>) -> Option<Caller> {
    let is_here = peer.is_some_and(|peer| peer.ip().to_canonical().is_loopback());
    let name = match (trust, is_here) {
        (Trust::Loopback | Trust::Everybody, true) => "loopback",
        (Trust::Everybody, false) => "anonymous",
        (Trust::Nobody, _) | (Trust::Loopback, false) => return None,
    };
    Some(Caller {
        name: name.to_owned(),
        role: Role::Trusted,
        job: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn trust_ends_where_it_should() {
        let check = |trust, peer: Option<&str>, name: Option<&str>| {
            let peer = peer.map(|text| text.parse().unwrap());
            let caller = trusted(trust, peer);
            assert_eq!(
                caller.as_ref().map(|caller| caller.name.as_str()),
                name,
                "{trust:?} {peer:?}"
            );
            assert!(caller.is_none_or(|caller| caller.role == Role::Trusted));
        };
        for here in [
            "127.0.0.1:1",
            "127.9.9.9:1",
            "[::1]:1",
            "[::ffff:127.0.0.1]:1",
        ] {
            check(Trust::Nobody, Some(here), None);
            check(Trust::Loopback, Some(here), Some("loopback"));
            check(Trust::Everybody, Some(here), Some("loopback"));
        }
        for there in [
            "10.0.0.1:1",
            "[::ffff:10.0.0.1]:1",
            "[fe80::1]:1",
            "0.0.0.0:1",
        ] {
            check(Trust::Nobody, Some(there), None);
            check(Trust::Loopback, Some(there), None);
            check(Trust::Everybody, Some(there), Some("anonymous"));
        }
        check(Trust::Nobody, None, None);
        check(Trust::Loopback, None, None);
        check(Trust::Everybody, None, Some("anonymous"));
    }

    #[test]
    fn a_header_is_a_bearer_token_or_refused() {
        let of = |value: &'static [u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
            presented(&headers)
        };
        assert_eq!(presented(&HeaderMap::new()), Ok(None));
        for good in ["Bearer abc", "bearer abc", "BEARER  abc "] {
            assert_eq!(of(good.as_bytes()), Ok(Some(Secret::new("abc"))), "{good}");
        }
        for bad in [&b""[..], b"Bearer", b"Basic abc", b"abc", b"Bearer \xff"] {
            assert!(of(bad).is_err(), "{bad:?}");
        }
    }
}
