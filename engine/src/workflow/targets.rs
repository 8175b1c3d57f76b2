//! How clients are told where an export is: pure text.

use crate::error::Error;
use crate::id::ExportName;

/// The port that NBD has by itself (NBD URI specification).
const NBD_PORT: u16 = 10809;

/// Where clients reach the NBD server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Advertised {
    /// Host (an IPv6 address in brackets) and port, and whether it serves in TLS only.
    Tcp { host: String, port: u16, tls: bool },
    /// A socket on this machine.
    Unix { path: String },
}

impl Advertised {
    /// Reads `HOST:PORT`, `HOST`, either with `nbds://` before it, or `unix:PATH`.
    ///
    /// # Errors
    ///
    /// Any text that could not stand in a URL or in the legacy list of targets.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let refused = || Error::invalid("nbd_advertise is not HOST:PORT", format!("text={text:?}"));
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() {
                Err(refused())
            } else {
                Ok(Self::Unix {
                    path: path.to_owned(),
                })
            };
        }
        let (text, tls) = match text.strip_prefix("nbds://") {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let bracketed = text.ends_with(']');
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !bracketed => (host, port.parse().map_err(|_| refused())?),
            _ => (text, NBD_PORT),
        };
        let is_v6 = host.starts_with('[') && host.ends_with(']');
        let name = if is_v6 {
            &host[1..host.len() - 1]
        } else {
            host
        };
        let allowed = |c: char| {
            c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') || (is_v6 && c == ':')
        };
        if name.is_empty() || !name.chars().all(allowed) {
            return Err(refused());
        }
        Ok(Self::Tcp {
            host: host.to_owned(),
            port,
            tls,
        })
    }

    /// The URL of an export. Its name needs no escaping.
    pub(crate) fn url(&self, export: &ExportName) -> String {
        match self {
            Self::Tcp { host, port, tls } => {
                let scheme = if *tls { "nbds" } else { "nbd" };
                format!("{scheme}://{host}:{port}/{export}")
            }
            Self::Unix { path } => format!("nbd+unix:///{export}?socket={path}"),
        }
    }

    /// The port, or 0 for a socket on this machine.
    pub(crate) fn port(&self) -> u16 {
        match self {
            Self::Tcp { port, .. } => *port,
            Self::Unix { .. } => 0,
        }
    }

    /// The host that a node is told.
    pub(crate) fn host(&self) -> &str {
        match self {
            Self::Tcp { host, .. } => host,
            Self::Unix { .. } => "127.0.0.1",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_become_urls() {
        let export = ExportName::parse("backup-web-1-disk0").unwrap();
        for (text, url, port) in [
            (
                "127.0.0.1:10809",
                "nbd://127.0.0.1:10809/backup-web-1-disk0",
                10809,
            ),
            (
                "hub.example",
                "nbd://hub.example:10809/backup-web-1-disk0",
                10809,
            ),
            ("[::1]:10100", "nbd://[::1]:10100/backup-web-1-disk0", 10100),
            (
                "nbds://hub.example:1",
                "nbds://hub.example:1/backup-web-1-disk0",
                1,
            ),
            (
                "unix:/run/nbd.sock",
                "nbd+unix:///backup-web-1-disk0?socket=/run/nbd.sock",
                0,
            ),
        ] {
            let advertised = Advertised::parse(text).unwrap();
            assert_eq!(
                (advertised.url(&export).as_str(), advertised.port()),
                (url, port)
            );
        }
        for text in [
            "", ":1", "h:x", "a,b:1", "a/b:1", "h:70000", "unix:", "::1:1",
        ] {
            assert!(Advertised::parse(text).is_err(), "text={text:?}");
        }
    }
}
