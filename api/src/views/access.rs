//! Tokens, and what a login answers.

use engine::{Secret, Timestamp, Token};
use serde::{Deserialize, Serialize};
use time::Duration;
use utoipa::ToSchema;

use super::utc;

/// A token that is known; its text is not.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TokenView {
    /// What the audit log calls its holder; unique.
    pub name: String,
    /// `admin`, `operator`, `read-only` or `node`.
    pub role: String,
    /// For a node: the only backup that the token is good for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub job_id: Option<String>,
    /// UTC.
    pub created_at: String,
}

impl From<Token> for TokenView {
    fn from(token: Token) -> Self {
        Self {
            name: token.name,
            role: token.role.to_string(),
            job_id: token.job.map(Into::into),
            created_at: utc(token.created_at),
        }
    }
}

/// A new token with its text.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct CreatedTokenView {
    /// The token.
    #[serde(flatten)]
    pub known: TokenView,
    /// Its text, told this once.
    pub token: String,
}

impl CreatedTokenView {
    pub(crate) fn new(token: Token, text: &Secret) -> Self {
        Self {
            known: token.into(),
            token: text.reveal().to_owned(),
        }
    }
}

/// All tokens.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TokenListView {
    /// By name; never null.
    pub tokens: Vec<TokenView>,
}

impl TokenListView {
    pub(crate) fn new(tokens: Vec<Token>) -> Self {
        Self {
            tokens: tokens.into_iter().map(TokenView::from).collect(),
        }
    }
}

/// The answer to a revocation.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RevokedTokenView {
    /// The token that was.
    pub name: String,
    /// For people.
    pub message: String,
}

impl RevokedTokenView {
    pub(crate) fn new(name: String) -> Self {
        Self {
            name,
            message: "token revoked".to_owned(),
        }
    }
}

/// A session.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct LoginView {
    /// `true`.
    pub success: bool,
    /// What to send as a bearer token: the token itself.
    pub session_token: String,
    /// Ten years from now; a token lives until it is revoked.
    pub expires_at: String,
}

impl LoginView {
    pub(crate) fn new(token: &Secret, now: Timestamp) -> Self {
        Self {
            success: true,
            session_token: token.reveal().to_owned(),
            expires_at: utc(now.saturating_add(SESSION)),
        }
    }
}

/// What legacy appliances are told, which ask again shortly before it ends.
const SESSION: Duration = Duration::days(3650);

/// A login that was refused.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LoginFailure {
    /// `false`.
    pub success: bool,
    /// Always the same.
    pub error_message: String,
}

impl Default for LoginFailure {
    fn default() -> Self {
        Self {
            success: false,
            error_message: "Invalid credentials".to_owned(),
        }
    }
}
