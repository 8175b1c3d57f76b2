//! `sendense-hub export`: image files over NBD without a hub.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use engine::standalone::{self, Device, NamedDevice};
use engine::{Endpoint, ListenAddress, ServerLimits};

use super::image::{Format, source};
use super::listen::{Listen, Listens, listen};
use super::signals::Ends;
use super::tls::{TlsChoice, TlsMode};
use super::{logging, output, size};
use crate::hub;

/// Serve image files over NBD without the hub.
///
/// Prints `ready nbd://…` once it accepts; SIGTERM and SIGINT flush and end it. With one device
/// the empty export name means it, too.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Image files, qcow2 or raw; with --create, the one to make.
    #[arg(value_name = "IMAGE", required_unless_present = "discard_sink")]
    images: Vec<PathBuf>,

    /// Name of the export, once per image in their order [default: the file's stem].
    #[arg(long = "name", value_name = "NAME")]
    names: Vec<String>,

    /// Format of the images; needed where magic and file name do not agree.
    #[arg(long, short, value_enum, conflicts_with_all = ["create", "discard_sink"])]
    format: Option<Format>,

    /// Backing files may lie below this folder, too, not only below the image's own; may be given
    /// several times.
    #[arg(
        long = "trust-root",
        value_name = "DIR",
        conflicts_with = "discard_sink"
    )]
    roots: Vec<PathBuf>,

    /// Where to listen, HOST:PORT or unix:PATH, each with ,tls=off|on|require behind it where --tls does
    /// not hold; may be given several times [default: 127.0.0.1:10809 unless --socket is given].
    #[arg(long, value_name = "ADDR", value_parser = listen)]
    listen: Vec<Listens>,

    /// Listen on this unix socket.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// TLS: off, on (for clients that ask for it), or require [default: off].
    #[arg(long, value_name = "MODE", value_enum)]
    tls: Option<TlsMode>,

    /// Folder with server-cert.pem and server-key.pem, and for --tls-verify-peer ca-cert.pem and maybe
    /// ca-crl.pem.
    #[arg(long, value_name = "DIR")]
    tls_certificates: Option<PathBuf>,

    /// In TLS, serve clients only that show a certificate of the authority in ca-cert.pem.
    #[arg(long)]
    tls_verify_peer: bool,

    /// Refuse writes.
    #[arg(long, conflicts_with_all = ["create", "discard_sink"])]
    read_only: bool,

    /// Make a new qcow2 image of this size (64M, 1.5G, …) first; never overwrites.
    #[arg(long, value_name = "SIZE", value_parser = size::parse, conflicts_with = "discard_sink")]
    create: Option<u64>,

    /// With --create: the image that supplies what the new one does not have.
    #[arg(long, value_name = "PARENT", requires = "create")]
    backing: Option<PathBuf>,

    /// Format of --backing; needed where magic and file name do not agree.
    #[arg(long, short = 'F', value_enum, requires = "backing")]
    backing_format: Option<Format>,

    /// A device of this size that accepts writes and forgets them, for measuring the wire.
    #[arg(long, value_name = "SIZE", value_parser = size::parse, conflicts_with = "images")]
    discard_sink: Option<u64>,

    /// Allow addresses that other machines can reach, although nothing authenticates them.
    #[arg(long)]
    insecure: bool,

    /// Do not offer 64-bit requests, for clients that offer them and fail at them.
    #[arg(long)]
    no_extended_headers: bool,

    /// Which logs to write to stderr.
    #[arg(
        long,
        env = "SENDENSE_LOG",
        value_name = "FILTER",
        default_value = "warn"
    )]
    log: String,
}

impl Export {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        logging::start(&self.log)?;
        let mut ends = Ends::catch().context("catch signals")?;
        let listen = self.endpoints()?;
        let limits = ServerLimits {
            extended_headers: !self.no_extended_headers,
            ..ServerLimits::default()
        };
        let server = standalone::serve(self.devices()?, &listen, limits).await?;
        let urls: Vec<_> = server.endpoints().iter().map(hub::nbd_url).collect();
        let ready = format!("ready {}", urls.join(" "));
        if let Err(error) = output::line(ready) {
            tracing::warn!(%error, "nobody reads stdout");
        }
        let signal = ends.next().await;
        tracing::info!(signal, "ending: flushing");
        server.stop().await?;
        Ok(())
    }

    fn endpoints(&self) -> anyhow::Result<Vec<Endpoint>> {
        let told = self.listen.iter().flat_map(|listens| listens.0.clone());
        let sockets = self.socket.iter().cloned().map(ListenAddress::Unix);
        let mut listens: Vec<_> = told.chain(sockets.map(Listen::from)).collect();
        if listens.is_empty() {
            listens.push(Listen::default());
        }
        let choice = TlsChoice {
            mode: self.tls,
            certificates: self.tls_certificates.clone(),
            verify_peer: self.tls_verify_peer,
        };
        let endpoints = choice.endpoints(listens)?;
        if let Some(address) = endpoints.iter().find_map(hub::exposed)
            && !self.insecure
        {
            let remedy = hub::CERTIFICATES_REMEDY;
            bail!(
                "exposed listener: anyone who reaches this address could use the image; bind a loopback address, {remedy}, or say --insecure address={address}"
            );
        }
        Ok(endpoints)
    }

    fn devices(&self) -> anyhow::Result<Vec<NamedDevice>> {
        if let Some(size_bytes) = self.discard_sink {
            let name = self.names.first().cloned();
            return Ok(vec![NamedDevice {
                name: name.unwrap_or_else(|| "discard".to_owned()),
                device: Device::DiscardSink { size_bytes },
            }]);
        }
        if self.names.len() > self.images.len() {
            let (names, images) = (self.names.len(), self.images.len());
            bail!("more names than images names={names} images={images}");
        }
        if self.create.is_some() && self.images.len() != 1 {
            bail!(
                "--create makes exactly one image images={}",
                self.images.len()
            );
        }
        let devices = self.images.iter().enumerate();
        devices
            .map(|(index, path)| {
                Ok(NamedDevice {
                    name: match self.names.get(index) {
                        Some(name) => name.clone(),
                        None => stem(path)?,
                    },
                    device: self.device(path),
                })
            })
            .collect()
    }

    fn device(&self, path: &Path) -> Device {
        match self.create {
            Some(size_bytes) => Device::Create {
                path: path.to_owned(),
                size_bytes,
                backing: (self.backing.clone())
                    .map(|path| source(path, self.backing_format, &self.roots)),
            },
            None => Device::Open {
                source: source(path.to_owned(), self.format, &self.roots),
                read_only: self.read_only,
            },
        }
    }
}

fn stem(path: &Path) -> anyhow::Result<String> {
    path.file_stem()
        .and_then(|stem| stem.to_str())
        .map(str::to_owned)
        .with_context(|| format!("no export name in the file's name, say --name path={path:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        export: Export,
    }

    fn parse(line: &str) -> Result<Export, clap::Error> {
        let args = std::iter::once("export").chain(line.split_whitespace());
        Program::try_parse_from(args).map(|program| program.export)
    }

    fn names(line: &str) -> Vec<String> {
        let devices = parse(line).unwrap().devices().unwrap();
        devices.into_iter().map(|device| device.name).collect()
    }

    #[test]
    fn an_export_is_named_after_its_file_unless_told() {
        assert_eq!(names("/a/disk.qcow2 b.img"), ["disk", "b"]);
        assert_eq!(names("--name x /a/disk.qcow2 b.img"), ["x", "b"]);
        assert_eq!(names("--discard-sink 1G"), ["discard"]);
        assert!(parse("--name x --name y a.img").unwrap().devices().is_err());
    }

    #[test]
    fn a_new_image_has_its_size_and_parent() {
        let devices = parse("--create 1.5G --backing base.qcow2 new.qcow2")
            .unwrap()
            .devices();
        let expected = Device::Create {
            path: "new.qcow2".into(),
            size_bytes: 3 << 29,
            backing: Some(source("base.qcow2".into(), None, &[])),
        };
        assert_eq!(devices.unwrap()[0].device, expected);
        assert!(parse("--create 1G a b").unwrap().devices().is_err());
    }

    #[test]
    fn what_makes_no_sense_is_a_usage_error() {
        let wrong = [
            "",
            "--backing p a",
            "--create 1G --read-only a",
            "--discard-sink 1G a",
            "--create x a",
            "--listen nowhere a",
        ];
        for line in wrong {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn only_loopback_without_saying_insecure() {
        assert!(parse("--listen 127.0.0.1:0 a").unwrap().endpoints().is_ok());
        assert!(parse("--listen [::1]:0 a").unwrap().endpoints().is_ok());
        assert!(parse("--listen 0.0.0.0:0 a").unwrap().endpoints().is_err());
        assert!(
            parse("--insecure --listen 0.0.0.0:0 a")
                .unwrap()
                .endpoints()
                .is_ok()
        );
        assert_eq!(
            parse("--socket /s --listen 127.0.0.1:0 a")
                .unwrap()
                .endpoints()
                .unwrap()
                .len(),
            2
        );
    }
}
