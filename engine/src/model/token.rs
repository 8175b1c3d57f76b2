//! Bearer tokens: what lets a caller in.

use super::{Role, check_text};
use crate::clock::Timestamp;
use crate::config::Secret;
use crate::error::Error;
use crate::id::BackupId;
use crate::limits::TOKEN_NAME_CHARS_MAX;

/// Random bytes of a token.
pub const TOKEN_BYTES: usize = 32;

/// What every token starts with, so that people and scanners of leaked secrets know it when they see it.
const PREFIX: &str = "sendense_";

/// What the database keeps of a token.
///
/// A fast hash is right here: a token is 256 random bits, so there is nothing to guess that a slow hash would protect, and it
/// is checked with every request. Whoever reads the database learns no token from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenHash(pub [u8; 32]);

impl TokenHash {
    /// The hash of what a caller presents; `None` for what cannot be a token.
    #[must_use]
    pub fn of(presented: &str) -> Option<Self> {
        let digits = presented.strip_prefix(PREFIX)?;
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if digits.len() != 2 * TOKEN_BYTES || !digits.bytes().all(is_hex) {
            return None;
        }
        Some(Self(*blake3::hash(presented.as_bytes()).as_bytes()))
    }
}

/// The text of the token with these random bytes.
#[must_use]
pub fn token_text(random: [u8; TOKEN_BYTES]) -> Secret {
    let digits = random.map(|byte| format!("{byte:02x}")).concat();
    Secret::new(format!("{PREFIX}{digits}"))
}

/// A token to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewToken {
    /// What the audit log calls its holder; unique.
    pub name: String,
    /// What its holder may do.
    pub role: Role,
    /// The only job that it is good for: given for a node, and for nobody else.
    pub job: Option<BackupId>,
}

impl NewToken {
    /// Refuses what cannot be a token.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) for an empty, overlong or odd name, a role that no token has, a node without a job and a job
    /// without a node.
    pub fn check(&self) -> Result<(), Error> {
        if self.name.trim().is_empty() {
            return Err(Error::invalid("name is required", ""));
        }
        check_text("name", &self.name, TOKEN_NAME_CHARS_MAX)?;
        match (self.role, &self.job) {
            (Role::Trusted, _) => Err(Error::invalid("no token has this role", "role=trusted")),
            (Role::Node, None) => Err(Error::invalid("a node's token needs its job", "")),
            (Role::Admin | Role::Operator | Role::ReadOnly, Some(job)) => Err(Error::invalid(
                "only a node's token has a job",
                format!("role={} job_id={job}", self.role),
            )),
            (Role::Node, Some(_)) | (Role::Admin | Role::Operator | Role::ReadOnly, None) => Ok(()),
        }
    }
}

/// A token that is known; its text is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// What the audit log calls its holder; unique.
    pub name: String,
    /// What its holder may do.
    pub role: Role,
    /// The only job that it is good for.
    pub job: Option<BackupId>,
    /// When it was made.
    pub created_at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_known_by_its_hash() {
        let mut random = [0; TOKEN_BYTES];
        random[0] = 0xab;
        let text = token_text(random);
        assert_eq!(text.reveal(), format!("sendense_ab{}", "00".repeat(31)));
        let hash = TokenHash::of(text.reveal()).unwrap();
        assert_eq!(hash.0, *blake3::hash(text.reveal().as_bytes()).as_bytes());
        random[31] = 1;
        assert_ne!(TokenHash::of(token_text(random).reveal()), Some(hash));
    }

    #[test]
    fn what_cannot_be_a_token_has_no_hash() {
        let good = token_text([7; TOKEN_BYTES]);
        let good = good.reveal();
        assert!(TokenHash::of(good).is_some());
        for bad in [
            "",
            "sendense_",
            "sendense_07",
            &good[1..],
            &good[..good.len() - 1],
            &format!("{good}0"),
            &format!(" {good}"),
            &good.to_uppercase(),
            &good.replace("sendense_", "sendense-"),
            &good.replacen('7', "g", 1),
        ] {
            assert_eq!(TokenHash::of(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_node_has_a_job_and_nobody_else() {
        let job = BackupId::parse("backup-web-1").ok();
        for role in Role::ALL {
            for job in [None, job.clone()] {
                let new = NewToken {
                    name: "a".to_owned(),
                    role: *role,
                    job: job.clone(),
                };
                let expected = match role {
                    Role::Admin | Role::Operator | Role::ReadOnly => job.is_none(),
                    Role::Node => job.is_some(),
                    Role::Trusted => false,
                };
                assert_eq!(new.check().is_ok(), expected, "{role} {job:?}");
            }
        }
        for name in ["", " ", "a\nb", &"x".repeat(TOKEN_NAME_CHARS_MAX + 1)] {
            let new = NewToken {
                name: name.to_owned(),
                role: Role::Admin,
                job: None,
            };
            assert!(new.check().is_err(), "{name:?}");
        }
    }
}
