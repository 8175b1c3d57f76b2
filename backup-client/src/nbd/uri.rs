//! NBD URIs (NBD uri.md): `nbd://HOST[:PORT]/EXPORT` and `nbd+unix:///EXPORT?socket=PATH`.

use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;
use std::str::FromStr;

use super::NbdError;

/// Port of NBD (IANA).
const DEFAULT_PORT: u16 = 10809;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A host name or address without brackets, and a port.
    Tcp(String, u16),
    /// A socket in the filesystem.
    Unix(PathBuf),
}

impl Display for Address {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// An export at a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdUri {
    /// The server.
    pub address: Address,
    /// The name of the export, decoded; empty means the default one.
    pub export: String,
}

impl NbdUri {
    /// An export at a TCP address.
    #[must_use]
    pub fn tcp(host: &str, port: u16, export: &str) -> Self {
        Self {
            address: Address::Tcp(host.to_owned(), port),
            export: export.to_owned(),
        }
    }

    /// An export at a socket in the filesystem.
    #[must_use]
    pub fn unix(path: impl Into<PathBuf>, export: &str) -> Self {
        Self {
            address: Address::Unix(path.into()),
            export: export.to_owned(),
        }
    }
}

impl FromStr for NbdUri {
    type Err = NbdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |why: &str| NbdError::invalid(format!("{why} uri={text:?}"));
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| wrong("not an nbd uri"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let export = percent_decode(path).ok_or_else(|| wrong("bad escape in the export name"))?;
        let address = match scheme {
            "nbd" => {
                let (host, port) =
                    host_and_port(authority).ok_or_else(|| wrong("bad host or port"))?;
                Address::Tcp(host, port)
            }
            "nbd+unix" if authority.is_empty() => {
                let socket = query
                    .split('&')
                    .find_map(|pair| pair.strip_prefix("socket="))
                    .and_then(percent_decode)
                    .filter(|path| !path.is_empty())
                    .ok_or_else(|| wrong("no socket given"))?;
                Address::Unix(socket.into())
            }
            "nbds" | "nbds+unix" => return Err(wrong("tls is not supported yet")),
            _ => return Err(wrong("not an nbd uri")),
        };
        Ok(Self { address, export })
    }
}

/// `HOST`, `HOST:PORT`, `[V6]`, `[V6]:PORT`.
fn host_and_port(authority: &str) -> Option<(String, u16)> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']')?;
        match after {
            "" => (host, None),
            _ => (host, Some(after.strip_prefix(':')?)),
        }
    } else {
        match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    if host.is_empty() || host.contains('@') {
        return None;
    }
    let port = match port {
        Some(port) => port.parse().ok()?,
        None => DEFAULT_PORT,
    };
    Some((host.to_owned(), port))
}

/// Decodes `%XX`; `None` for a cut escape or text that is not UTF-8.
fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let high = char::from(bytes.next()?).to_digit(16)?;
            let low = char::from(bytes.next()?).to_digit(16)?;
            out.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}
