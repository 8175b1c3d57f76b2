//! Passwords as a legacy hub stores them: AES-256-GCM, base64 of nonce and ciphertext (legacy `vmware_credentials`).

use aes_gcm::aead::{Aead, Generate, KeyInit};
use aes_gcm::{Aes256Gcm, Key, Nonce};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::config::Secret;
use crate::error::{Error, ErrorKind};

/// Length of the nonce before the ciphertext, in bytes (AES-GCM's own).
const NONCE_BYTES: usize = 12;

/// The key of this hub, ready to use.
pub(crate) struct CredentialKey(Aes256Gcm);

impl std::fmt::Debug for CredentialKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CredentialKey(..)")
    }
}

impl CredentialKey {
    /// Reads the base64 of 32 bytes.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for anything else; the text is not repeated.
    pub(crate) fn parse(text: &Secret) -> Result<Self, Error> {
        let refused = |why: &str| {
            let details = format!("expected base64 of 32 bytes, {why}");
            Error::invalid("credential key is not usable", details)
        };
        let bytes = STANDARD
            .decode(text.reveal().trim())
            .map_err(|_| refused("not base64"))?;
        let key = <[u8; 32]>::try_from(bytes.as_slice())
            .map_err(|_| refused(&format!("len_bytes={}", bytes.len())))?;
        Ok(Self(Aes256Gcm::new(&Key::<Aes256Gcm>::from(key))))
    }

    /// Encrypts a password under a fresh random nonce.
    pub(crate) fn encrypt(&self, password: &Secret) -> Result<String, Error> {
        let nonce = Nonce::generate();
        let ciphertext = self
            .0
            .encrypt(&nonce, password.reveal().as_bytes())
            .map_err(|_| Error::internal("failed to encrypt password", ""))?;
        let mut stored = nonce.to_vec();
        stored.extend_from_slice(&ciphertext);
        Ok(STANDARD.encode(stored))
    }

    /// Decrypts a stored password.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] if it is damaged, or was encrypted with another key.
    pub(crate) fn decrypt(&self, stored: &str) -> Result<Secret, Error> {
        let refused = |why: &str| Error::corrupt("failed to decrypt password", why.to_owned());
        let bytes = STANDARD
            .decode(stored.trim())
            .map_err(|_| refused("not base64"))?;
        let (nonce, ciphertext) = bytes
            .split_first_chunk::<NONCE_BYTES>()
            .ok_or_else(|| refused("too short"))?;
        let plain = self
            .0
            .decrypt(&Nonce::from(*nonce), ciphertext)
            .map_err(|_| refused("damaged, or encrypted with another key"))?;
        String::from_utf8(plain)
            .map(Secret::new)
            .map_err(|_| refused("not text"))
    }
}

/// What to say when a password is needed and no key is configured.
pub(crate) fn no_key() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "no credential key is configured",
        "set MIGRATEKIT_CRED_ENCRYPTION_KEY to the base64 of 32 bytes",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> CredentialKey {
        CredentialKey::parse(&Secret::new(STANDARD.encode([byte; 32]))).unwrap()
    }

    #[test]
    fn passwords_come_back_and_never_look_the_same() {
        let password = Secret::new("pässword");
        let (first, second) = (
            key(1).encrypt(&password).unwrap(),
            key(1).encrypt(&password).unwrap(),
        );
        assert_ne!(first, second);
        assert_eq!(key(1).decrypt(&first).unwrap(), password);
        assert_eq!(key(2).decrypt(&first).unwrap_err().kind, ErrorKind::Corrupt);
    }

    #[test]
    fn a_password_of_another_implementation_is_read() {
        // Made with OpenSSL: key 32 × 0x07, nonce 12 × 0x09, text "secret".
        let stored = "CQkJCQkJCQkJCQkJVODn5tuEakRPhO+01WPgEWx49Wh4LQ==";
        assert_eq!(key(7).decrypt(stored).unwrap().reveal(), "secret");
    }

    #[test]
    fn damage_is_noticed() {
        for stored in ["", "AAAA", "not base64!", &STANDARD.encode([0; 40])] {
            assert_eq!(key(1).decrypt(stored).unwrap_err().kind, ErrorKind::Corrupt);
        }
        for text in ["", "AAAA", "not base64!"] {
            let error = CredentialKey::parse(&Secret::new(text)).unwrap_err();
            assert!(text.is_empty() || !error.to_string().contains(text));
        }
    }
}
