//! Certificates as qemu, nbdkit and libnbd look for them: folders of PEM files, made on the spot.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SerialNumber, date_time_ymd,
};

/// The serial number of the certificate that is revoked.
const REVOKED: u64 = 66;

/// One authority, folders for a server, and folders for clients of every kind.
#[derive(Debug)]
pub struct Certificates {
    dir: PathBuf,
}

impl Certificates {
    /// Makes all of them below `dir`.
    ///
    /// # Panics
    /// When the folder cannot be written.
    #[must_use]
    pub fn make(dir: &Path) -> Self {
        let ours = Authority::new("the authority");
        let other = Authority::new("another authority");
        let made = Self {
            dir: dir.to_owned(),
        };
        for name in ["server", "server-with-list"] {
            made.write(name, "ca-cert.pem", &ours.pem());
            made.certify(name, "server", &ours, "the server", 1);
        }
        let list = ours.revoke(REVOKED);
        made.write("server-with-list", "ca-crl.pem", &list);
        for (folder, authority, name, serial) in [
            ("client", &ours, "node-7", 7),
            ("revoked", &ours, "lost-node", REVOKED),
            ("stranger", &other, "stranger", 8),
        ] {
            made.write(folder, "ca-cert.pem", &ours.pem());
            made.certify(folder, "client", authority, name, serial);
        }
        made.write("nobody", "ca-cert.pem", &ours.pem());
        made.write("deceived", "ca-cert.pem", &other.pem());
        made
    }

    /// A folder: `server` and `server-with-list` (of revoked certificates) for servers; `client`,
    /// `revoked`, `stranger`, `nobody` (without a certificate) and `deceived` (who trusts another
    /// authority) for clients.
    ///
    /// # Panics
    /// When it has no UTF-8 name.
    #[must_use]
    pub fn folder(&self, name: &str) -> String {
        let folder = self.dir.join(name);
        folder.to_str().expect("a UTF-8 path").to_owned()
    }

    fn certify(&self, folder: &str, role: &str, by: &Authority, name: &str, serial: u64) {
        let (certificate, key) = by.issue(name, serial);
        self.write(folder, &format!("{role}-cert.pem"), &certificate);
        self.write(folder, &format!("{role}-key.pem"), &key);
    }

    fn write(&self, folder: &str, name: &str, text: &str) {
        let folder = self.dir.join(folder);
        fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join(name);
        fs::write(&path, text).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("our file");
    }
}

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(vec![]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    fn issue(&self, name: &str, serial: u64) -> (String, String) {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.serial_number = Some(SerialNumber::from(serial));
        params.not_after = date_time_ymd(2100, 1, 1);
        // qemu wants both of them.
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }

    fn revoke(&self, serial: u64) -> String {
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(2100, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from(serial),
                revocation_time: date_time_ymd(2020, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.0).expect("a list");
        list.pem().expect("a PEM text")
    }
}
