//! What `serve` can be told, and by whom: flag, then environment, then file, then default.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use engine::{Endpoint, Secret, WatchLimits};
use serde::{Deserialize, Deserializer};

use super::sna::{self, Sna};
use crate::cli::listen::{Listen, Listens, listen, tcp};
use crate::cli::tls::{TlsChoice, TlsMode};
use crate::hub::ServeConfig;

/// Where sites of the legacy hub keep the key of stored passwords.
const KEY_VARIABLE: &str = "MIGRATEKIT_CRED_ENCRYPTION_KEY";

/// Every setting; absent means that this source says nothing.
#[derive(Debug, Default, Clone, PartialEq, Eq, Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// State of this hub; the SQLite file and the default repository live here
    /// [default: ./sendense-data].
    #[arg(long, env = "SENDENSE_DATA", value_name = "DIR")]
    data: Option<PathBuf>,

    /// Where the database is: sqlite:PATH [default: sqlite:DIR/hub.db].
    #[arg(long, env = "SENDENSE_DATABASE", value_name = "URL")]
    database: Option<String>,

    /// Where REST listens [default: 127.0.0.1:8082].
    #[arg(long, env = "SENDENSE_API", value_name = "ADDR", value_parser = tcp)]
    #[serde(deserialize_with = "tcp_key")]
    api: Option<SocketAddr>,

    /// Where NBD listens, HOST:PORT or unix:PATH, each with ,tls=off|on|require behind it where --tls
    /// does not hold; may be given several times [default: 127.0.0.1:10809].
    #[arg(long, env = "SENDENSE_NBD", value_name = "ADDR", value_parser = listen)]
    #[serde(deserialize_with = "listen_key")]
    nbd: Vec<Listens>,

    /// What backup answers name as the NBD server [default: the first --nbd].
    #[arg(long, env = "SENDENSE_NBD_ADVERTISE", value_name = "HOST:PORT")]
    #[serde(alias = "nbd_advertise")]
    nbd_advertise: Option<String>,

    /// TLS for NBD: off, on (for clients that ask for it), or require [default: off].
    #[arg(long, env = "SENDENSE_TLS", value_name = "MODE", value_enum)]
    tls: Option<TlsMode>,

    /// Folder with server-cert.pem and server-key.pem, and for --tls-verify-peer ca-cert.pem and maybe
    /// ca-crl.pem.
    #[arg(long, env = "SENDENSE_TLS_CERTIFICATES", value_name = "DIR")]
    #[serde(alias = "tls_certificates")]
    tls_certificates: Option<PathBuf>,

    /// In TLS, serve clients only that show a certificate of the authority in ca-cert.pem.
    #[arg(long, env = "SENDENSE_TLS_VERIFY_PEER", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    #[serde(alias = "tls_verify_peer")]
    tls_verify_peer: Option<bool>,

    /// The node appliance, or VCENTER=URL for the one of a vCenter; may be given several times
    /// [default: http://127.0.0.1:9081].
    #[arg(long, env = "SENDENSE_SNA", value_name = "URL", value_delimiter = ',')]
    #[serde(deserialize_with = "sna::key")]
    sna: Vec<Sna>,

    /// Which logs to write, such as info or info,nbd_server=debug; lines for people on a
    /// terminal, JSON otherwise [default: info].
    #[arg(long, env = "SENDENSE_LOG", value_name = "FILTER")]
    log: Option<String>,

    /// File with the key that stored passwords are encrypted with, base64 of 32 bytes; the
    /// environment variable MIGRATEKIT_CRED_ENCRYPTION_KEY may hold the key itself.
    #[arg(long, env = "SENDENSE_CREDENTIAL_KEY_FILE", value_name = "FILE")]
    #[serde(alias = "credential_key_file")]
    credential_key_file: Option<PathBuf>,

    /// Give exports names that nobody guesses (VM, 128 random bits, disk): whoever reaches the NBD
    /// port then needs the answer of the start to write.
    #[arg(long, env = "SENDENSE_PRIVATE_EXPORTS", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    #[serde(alias = "private_exports")]
    private_exports: Option<bool>,

    /// Ask every caller for a token; without it callers on this machine are trusted.
    #[arg(long, env = "SENDENSE_REQUIRE_TOKENS", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    #[serde(alias = "require_tokens")]
    require_tokens: Option<bool>,

    /// Seconds that a client may take from the start of a backup to its first sign [default: 900].
    #[arg(long, env = "SENDENSE_START_TIMEOUT", value_name = "SECONDS")]
    #[serde(alias = "start_timeout")]
    start_timeout: Option<NonZeroU32>,

    /// Seconds that a running backup's client may neither send nor say anything [default: 900].
    #[arg(long, env = "SENDENSE_STALL_TIMEOUT", value_name = "SECONDS")]
    #[serde(alias = "stall_timeout")]
    stall_timeout: Option<NonZeroU32>,

    /// Seconds that a running backup's client may have no connection after it had one [default: 300].
    #[arg(long, env = "SENDENSE_GONE_GRACE", value_name = "SECONDS")]
    #[serde(alias = "gone_grace")]
    gone_grace: Option<NonZeroU32>,

    /// Allow addresses that other machines can reach, although nothing authenticates them.
    #[arg(long, env = "SENDENSE_INSECURE", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    insecure: Option<bool>,

    /// Do not offer 64-bit requests, for NBD clients that offer them and fail at them.
    #[arg(long, env = "SENDENSE_NO_EXTENDED_HEADERS", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    #[serde(alias = "no_extended_headers")]
    no_extended_headers: Option<bool>,
}

impl Settings {
    /// Reads the configuration file.
    ///
    /// # Errors
    /// Names the line, and a key that is not a setting.
    pub(crate) fn from_toml(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// These settings, and those of `weaker` where these say nothing.
    pub(crate) fn or(self, weaker: Self) -> Self {
        Self {
            data: self.data.or(weaker.data),
            database: self.database.or(weaker.database),
            api: self.api.or(weaker.api),
            nbd: match self.nbd.is_empty() {
                true => weaker.nbd,
                false => self.nbd,
            },
            nbd_advertise: self.nbd_advertise.or(weaker.nbd_advertise),
            tls: self.tls.or(weaker.tls),
            tls_certificates: self.tls_certificates.or(weaker.tls_certificates),
            tls_verify_peer: self.tls_verify_peer.or(weaker.tls_verify_peer),
            sna: match self.sna.is_empty() {
                true => weaker.sna,
                false => self.sna,
            },
            log: self.log.or(weaker.log),
            credential_key_file: self.credential_key_file.or(weaker.credential_key_file),
            private_exports: self.private_exports.or(weaker.private_exports),
            require_tokens: self.require_tokens.or(weaker.require_tokens),
            start_timeout: self.start_timeout.or(weaker.start_timeout),
            stall_timeout: self.stall_timeout.or(weaker.stall_timeout),
            gone_grace: self.gone_grace.or(weaker.gone_grace),
            insecure: self.insecure.or(weaker.insecure),
            no_extended_headers: self.no_extended_headers.or(weaker.no_extended_headers),
        }
    }

    pub(crate) fn log_filter(&self) -> &str {
        self.log.as_deref().unwrap_or("info")
    }

    /// The key of stored passwords: the file's, else the environment's.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn credential_key(&self) -> anyhow::Result<Option<Secret>> {
        let text = match &self.credential_key_file {
            Some(path) => {
                let failed = || format!("read the credential key path={}", path.display());
                Some(std::fs::read_to_string(path).with_context(failed)?)
            }
            None => std::env::var(KEY_VARIABLE).ok(),
        };
        Ok(text.map(|text| Secret::new(text.trim())))
    }

    /// Where NBD listens, and whether in TLS.
    ///
    /// # Errors
    /// As [`TlsChoice::endpoints`].
    pub(crate) fn endpoints(&self) -> anyhow::Result<Vec<Endpoint>> {
        let choice = TlsChoice {
            mode: self.tls,
            certificates: self.tls_certificates.clone(),
            verify_peer: self.tls_verify_peer.unwrap_or(false),
        };
        let told = self.nbd.iter().flat_map(|listens| listens.0.clone());
        let mut listens: Vec<_> = told.collect();
        if listens.is_empty() {
            listens.push(Listen::default());
        }
        choice.endpoints(listens)
    }

    /// What the hub is started with, but for [`Settings::credential_key`] and
    /// [`Settings::endpoints`]: defaults where nobody said anything.
    pub(crate) fn into_config(self) -> ServeConfig {
        let default = ServeConfig::new(self.data.unwrap_or_else(|| "sendense-data".into()));
        let (common_sna, vcenter_sna_urls) = sna::by_vcenter(self.sna);
        ServeConfig {
            database: self.database.or(default.database),
            api: self.api.unwrap_or(default.api),
            nbd: default.nbd,
            nbd_advertise: self.nbd_advertise.or(default.nbd_advertise),
            sna_url: common_sna.unwrap_or(default.sna_url),
            vcenter_sna_urls,
            private_exports: self.private_exports.unwrap_or(default.private_exports),
            require_tokens: self.require_tokens.unwrap_or(default.require_tokens),
            watch: WatchLimits {
                start_timeout: seconds(self.start_timeout, default.watch.start_timeout),
                stall_timeout: seconds(self.stall_timeout, default.watch.stall_timeout),
                gone_grace: seconds(self.gone_grace, default.watch.gone_grace),
            },
            insecure: self.insecure.unwrap_or(default.insecure),
            extended_headers: match self.no_extended_headers {
                Some(refuse) => !refuse,
                None => default.extended_headers,
            },
            data_dir: default.data_dir,
            credential_key: default.credential_key,
        }
    }
}

fn seconds(told: Option<NonZeroU32>, default: Duration) -> Duration {
    told.map_or(default, |seconds| Duration::from_secs(seconds.get().into()))
}

fn tcp_key<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(from)?;
    tcp(&text).map(Some).map_err(serde::de::Error::custom)
}

fn listen_key<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Listens>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMore {
        One(String),
        More(Vec<String>),
    }
    let texts = match OneOrMore::deserialize(from)? {
        OneOrMore::One(text) => vec![text],
        OneOrMore::More(texts) => texts,
    };
    let parsed: Result<Vec<_>, _> = texts.iter().map(|text| listen(text)).collect();
    parsed.map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{FromArgMatches as _, Parser};

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        settings: Settings,
    }

    fn flags(args: &[&str]) -> Settings {
        let args = std::iter::once(&"serve").chain(args);
        Program::try_parse_from(args).unwrap().settings
    }

    const FILE: &str = r#"
        data = "/srv/hub"
        api = "127.0.0.1:1"
        nbd = ["127.0.0.1:2", "unix:/run/hub.sock"]
        nbd-advertise = "hub:3"
        tls = "off"
        tls-certificates = "/etc/hub-tls"
        tls-verify-peer = true
        sna = "http://node"
        log = "debug"
        credential-key-file = "/etc/hub.key"
        private-exports = true
        require-tokens = true
        start-timeout = 60
        stall-timeout = 70
        gone-grace = 80
        insecure = true
        no-extended-headers = true
    "#;

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let file = Settings::from_toml(FILE).unwrap();
        let merged = flags(&["--api", "127.0.0.1:9", "--insecure=false"]).or(file.clone());
        assert_eq!(merged.endpoints().unwrap().len(), 2);
        let config = merged.into_config();
        assert_eq!(config.api.port(), 9);
        assert!(!config.insecure);
        assert!(config.require_tokens && config.private_exports);
        assert_eq!(config.data_dir.to_str(), Some("/srv/hub"));
        assert_eq!(config.nbd_advertise.as_deref(), Some("hub:3"));
        assert_eq!(config.database, None);
        assert_eq!(config.watch.start_timeout, Duration::from_secs(60));
        assert_eq!(config.watch.stall_timeout, Duration::from_secs(70));
        assert_eq!(config.watch.gone_grace, Duration::from_secs(80));

        let nbd = flags(&["--nbd", "127.0.0.1:7"])
            .or(file.clone())
            .endpoints();
        assert_eq!(
            nbd.unwrap().len(),
            1,
            "a flag replaces the list of the file"
        );
        // The file's certificates are read once a flag wants them.
        let tls = flags(&["--tls", "require"]).or(file).endpoints();
        assert!(format!("{:#}", tls.unwrap_err()).contains("/etc/hub-tls"));

        let file = Settings::from_toml(FILE).unwrap();
        assert!(!file.clone().into_config().extended_headers);
        let merged = flags(&["--no-extended-headers=false"]).or(file);
        assert!(merged.into_config().extended_headers);
        let told = flags(&["--no-extended-headers"]);
        assert!(!told.into_config().extended_headers);

        let config = Settings::default().into_config();
        assert!(config.extended_headers);
        assert_eq!(config.data_dir.to_str(), Some("sendense-data"));
        assert_eq!(config.api.to_string(), "127.0.0.1:8082");
        assert_eq!(config.sna_url, "http://127.0.0.1:9081");
        assert!(!config.insecure);
        assert_eq!(config.watch, WatchLimits::default());
    }

    #[test]
    fn one_nbd_address_needs_no_list() {
        let one = Settings::from_toml(r#"nbd = "unix:/run/hub.sock""#).unwrap();
        assert_eq!(one.nbd, [listen("unix:/run/hub.sock").unwrap()]);
    }

    #[test]
    fn a_wrong_key_or_value_is_named() {
        let check = |text: &str, named: &str| {
            let error = Settings::from_toml(text).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        };
        check("daata = \"x\"", "daata");
        check("api = \"nowhere\"", "HOST:PORT");
        check("nbd = [\"unix:\"]", "needs a path");
        check("insecure = 3", "insecure");
        check("tls = \"always\"", "always");
        check("nbd = \"127.0.0.1:1,tls=always\"", "tls=always");
    }

    #[test]
    fn every_flag_has_its_environment_variable() {
        let command = <Program as clap::CommandFactory>::command();
        for flag in command.get_arguments().filter(|a| a.get_id() != "help") {
            let name = flag.get_long().unwrap().to_uppercase().replace('-', "_");
            let variable = flag.get_env().map(|v| v.to_string_lossy().into_owned());
            assert_eq!(variable, Some(format!("SENDENSE_{name}")));
        }
        let matches = command.get_matches_from(["serve"]);
        Program::from_arg_matches(&matches).unwrap();
    }

    #[test]
    fn every_flag_is_a_key_of_the_file() {
        let command = <Program as clap::CommandFactory>::command();
        let file: toml::Table = FILE.parse().unwrap();
        for flag in command.get_arguments().filter(|a| a.get_id() != "help") {
            let key = flag.get_long().unwrap();
            assert!(file.contains_key(key) || key == "database", "{key}");
        }
        Settings::from_toml("database = \"sqlite:/x\"").unwrap();
    }
}
