//! NBD addresses as they are written.

use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs as _};

use clap::ValueEnum as _;
use engine::ListenAddress;

use super::tls::TlsMode;

/// An NBD listener: `HOST:PORT` or `unix:PATH`, and `tls=MODE` where `--tls` does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listen {
    pub(crate) address: ListenAddress,
    pub(crate) tls: Option<TlsMode>,
}

impl Default for Listen {
    /// The port that NBD has by itself, on this machine.
    fn default() -> Self {
        ListenAddress::Tcp((Ipv4Addr::LOCALHOST, 10809).into()).into()
    }
}

impl From<ListenAddress> for Listen {
    fn from(address: ListenAddress) -> Self {
        Self { address, tls: None }
    }
}

/// What one flag, or the environment, says: one listener or several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listens(pub(crate) Vec<Listen>);

/// Reads `ADDR[,tls=MODE][,ADDR[,tls=MODE]]…`.
pub(crate) fn listen(text: &str) -> Result<Listens, String> {
    let mut listens: Vec<Listen> = Vec::new();
    for part in text.split(',') {
        match part.strip_prefix("tls=") {
            None => listens.push(address(part)?.into()),
            Some(mode) => {
                let listen = listens.last_mut().ok_or("tls= comes behind an address")?;
                let mode = TlsMode::from_str(mode, false)
                    .map_err(|_| format!("tls={mode} is none of off, on, require"))?;
                if listen.tls.replace(mode).is_some() {
                    return Err("tls= is told twice for one address".to_owned());
                }
            }
        }
    }
    Ok(Listens(listens))
}

fn address(text: &str) -> Result<ListenAddress, String> {
    match text.strip_prefix("unix:") {
        Some("") => Err("unix: needs a path".to_owned()),
        Some(path) => Ok(ListenAddress::Unix(path.into())),
        None => tcp(text).map(ListenAddress::Tcp),
    }
}

/// Reads `HOST:PORT`; a name stands for its first address.
pub(crate) fn tcp(text: &str) -> Result<SocketAddr, String> {
    text.to_socket_addrs()
        .map_err(|error| format!("not HOST:PORT: {error}"))?
        .next()
        .ok_or_else(|| "the name has no address".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_may_have_a_mode_of_its_own() {
        let check = |text: &str, expected: &[(&str, Option<TlsMode>)]| {
            let listens = listen(text).unwrap().0.into_iter();
            let found: Vec<_> = listens.map(|one| (one.address, one.tls)).collect();
            let expected = expected.iter();
            let expected: Vec<_> = expected
                .map(|(text, tls)| (address(text).unwrap(), *tls))
                .collect();
            assert_eq!(found, expected, "{text}");
        };
        let (off, require) = (Some(TlsMode::Off), Some(TlsMode::Require));
        check("127.0.0.1:1", &[("127.0.0.1:1", None)]);
        check("[::1]:1,tls=off", &[("[::1]:1", off)]);
        check("unix:/s,tls=on", &[("unix:/s", Some(TlsMode::On))]);
        let two = [("127.0.0.1:1", None), ("0.0.0.0:2", require)];
        check("127.0.0.1:1,0.0.0.0:2,tls=require", &two);
        for wrong in [
            "",
            "nowhere",
            "unix:",
            "tls=on",
            "127.0.0.1:1,",
            "127.0.0.1:1,tls=",
            "127.0.0.1:1,tls=ON",
            "127.0.0.1:1,tls=always",
            "127.0.0.1:1,tls=on,tls=off",
            "127.0.0.1:1,ssl=on",
        ] {
            assert!(listen(wrong).is_err(), "{wrong}");
        }
    }
}
