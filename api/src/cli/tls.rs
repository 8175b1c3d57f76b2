//! TLS for NBD as the command line tells it: a mode, and a folder of certificates as qemu and nbdkit
//! have them.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::ValueEnum;
use engine::{Endpoint, Tls, TlsPem, TlsServer};
use serde::Deserialize;

use super::listen::Listen;

/// What `--tls` says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TlsMode {
    /// Without TLS.
    #[default]
    Off,
    /// In TLS for clients that ask for it.
    On,
    /// In TLS only.
    Require,
}

/// All that was said about TLS.
#[derive(Debug, Clone, Default)]
pub(crate) struct TlsChoice {
    /// `--tls`: for listeners that were told nothing else.
    pub(crate) mode: Option<TlsMode>,
    /// `--tls-certificates`.
    pub(crate) certificates: Option<PathBuf>,
    /// `--tls-verify-peer`.
    pub(crate) verify_peer: bool,
}

impl TlsChoice {
    /// The listeners with the TLS that each of them wants.
    ///
    /// # Errors
    /// A [`clap::Error`] where the choice makes no sense; else which file cannot be used, and why.
    pub(crate) fn endpoints(&self, listens: Vec<Listen>) -> anyhow::Result<Vec<Endpoint>> {
        let mode_of = |listen: &Listen| listen.tls.or(self.mode).unwrap_or_default();
        let wanted = listens.iter().any(|listen| mode_of(listen) != TlsMode::Off);
        let server = match (&self.certificates, wanted) {
            (Some(dir), true) => Some(read(dir, self.verify_peer)?),
            (None, true) => {
                return Err(usage("TLS needs certificates: say --tls-certificates DIR"));
            }
            (Some(_), false) if self.mode.is_none() => {
                return Err(usage(
                    "certificates that nobody shows: say --tls on or --tls require",
                ));
            }
            (None, false) if self.verify_peer => {
                return Err(usage("--tls-verify-peer says nothing without --tls"));
            }
            (_, false) => None,
        };
        let endpoint = |listen: Listen| {
            let tls = match (mode_of(&listen), &server) {
                (TlsMode::On, Some(server)) => Tls::On(server.clone()),
                (TlsMode::Require, Some(server)) => Tls::Require(server.clone()),
                (_, _) => Tls::Off,
            };
            let address = listen.address;
            Endpoint { address, tls }
        };
        Ok(listens.into_iter().map(endpoint).collect())
    }
}

fn usage(text: &str) -> anyhow::Error {
    clap::Error::raw(
        clap::error::ErrorKind::MissingRequiredArgument,
        format!("{text}\n"),
    )
    .into()
}

/// Reads `server-cert.pem`, `server-key.pem`, and to verify clients `ca-cert.pem` and, where it
/// exists, `ca-crl.pem`.
fn read(dir: &Path, verify_peer: bool) -> anyhow::Result<TlsServer> {
    let certificates = text(dir, CERTIFICATE)?;
    let key = text(dir, KEY)?;
    warn_of_readers(&dir.join(KEY));
    let authorities = match verify_peer {
        true => Some(text(dir, AUTHORITY)?),
        false => None,
    };
    let revoked = match verify_peer && has(dir, REVOKED)? {
        true => Some(text(dir, REVOKED)?),
        false => None,
    };
    TlsServer::from_pem(&TlsPem {
        certificates: &certificates,
        key: &key,
        client_authorities: authorities.as_deref(),
        revoked: revoked.as_deref(),
    })
    .with_context(|| format!("use the tls certificates dir={}", dir.display()))
}

fn text(dir: &Path, name: &str) -> anyhow::Result<Vec<u8>> {
    let path = dir.join(name);
    fs::read(&path).with_context(|| format!("read the tls certificates path={}", path.display()))
}

/// Whether a file is there. What cannot be told is an error: a revocation list that is overlooked
/// lets those in whom it names.
fn has(dir: &Path, name: &str) -> anyhow::Result<bool> {
    let path = dir.join(name);
    match fs::metadata(&path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => {
            let failed = || format!("read the tls certificates path={}", path.display());
            Err(error).with_context(failed)
        }
    }
}

fn warn_of_readers(key: &Path) {
    let mode = fs::metadata(key).map_or(0, |metadata| metadata.permissions().mode());
    if mode & OTHERS_READ != 0 {
        tracing::warn!(
            path = %key.display(),
            mode = format_args!("{:o}", mode & 0o777),
            "every user of this machine can read the tls key"
        );
    }
}

const CERTIFICATE: &str = "server-cert.pem";
const KEY: &str = "server-key.pem";
const AUTHORITY: &str = "ca-cert.pem";
const REVOKED: &str = "ca-crl.pem";
const OTHERS_READ: u32 = 0o004;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::listen::listen;

    fn endpoints(choice: &TlsChoice, texts: &[&str]) -> anyhow::Result<Vec<Endpoint>> {
        let listens = texts.iter().flat_map(|text| listen(text).unwrap().0);
        choice.endpoints(listens.collect())
    }

    #[test]
    fn tls_without_certificates_is_a_usage_error() {
        let check = |choice: &TlsChoice, texts: &[&str], named: &str| {
            let error = endpoints(choice, texts).unwrap_err();
            let usage = error.downcast_ref::<clap::Error>().expect("a usage error");
            assert_eq!(usage.exit_code(), 2);
            assert!(error.to_string().contains(named), "{error}");
        };
        let plain = ["127.0.0.1:1"];
        for mode in [TlsMode::On, TlsMode::Require] {
            let mode = Some(mode);
            let choice = TlsChoice {
                mode,
                ..TlsChoice::default()
            };
            check(&choice, &plain, "--tls-certificates");
            // A listener of its own mind needs none.
            assert!(endpoints(&choice, &["127.0.0.1:1,tls=off"]).is_ok());
        }
        let nothing = TlsChoice::default();
        check(&nothing, &["127.0.0.1:1,tls=on"], "--tls-certificates");
        let certificates = TlsChoice {
            certificates: Some("/nowhere".into()),
            ..TlsChoice::default()
        };
        check(&certificates, &plain, "--tls on");
        let verify = TlsChoice {
            verify_peer: true,
            ..TlsChoice::default()
        };
        check(&verify, &plain, "--tls-verify-peer");
        // Switched off for now.
        let off = TlsChoice {
            mode: Some(TlsMode::Off),
            ..certificates
        };
        assert!(endpoints(&off, &plain).is_ok());
    }

    #[test]
    fn a_file_that_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let choice = TlsChoice {
            mode: Some(TlsMode::Require),
            certificates: Some(dir.path().to_owned()),
            verify_peer: true,
        };
        for name in [CERTIFICATE, KEY, AUTHORITY] {
            let error = endpoints(&choice, &["127.0.0.1:1"]).unwrap_err();
            assert!(format!("{error:#}").contains(name), "{error:#}");
            fs::write(dir.path().join(name), "nothing").unwrap();
        }
        let error = endpoints(&choice, &["127.0.0.1:1"]).unwrap_err();
        assert!(
            format!("{error:#}").contains("no server certificate"),
            "{error:#}"
        );
    }
}
