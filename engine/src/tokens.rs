//! The tokens of a data folder, whether a hub runs on it or not: how the first one is made.

use std::path::Path;
use std::sync::Arc;

use crate::blocking::blocking;
use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::config::{EngineConfig, Secret};
use crate::error::{Error, ErrorKind};
use crate::model::{Deed, NewToken, Token, Verb};
use crate::repository::DataLock;
use crate::workflow;

/// The tokens in a hub's database. Who may write the file may make tokens.
pub struct Tokens {
    catalog: Catalog,
    clock: Arc<dyn Clock>,
    /// Held where no hub runs, so that none starts on tables that are being changed.
    _lock: Option<DataLock>,
}

impl Tokens {
    /// Opens the database. Where no hub runs, it is made and brought up to date as a hub would; below a running hub its tables
    /// are left as they are.
    ///
    /// # Errors
    /// As [`Catalog::open`]; [`Conflict`](ErrorKind::Conflict) if a hub of another version runs.
    pub async fn open(
        data_dir: &Path,
        database: Option<String>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Error> {
        let url = EngineConfig::url_of(data_dir, database.as_deref());
        let folder = data_dir.to_owned();
        let (catalog, lock) = match blocking(move || DataLock::take(&folder)).await {
            Ok(lock) => (Catalog::open(&url).await?, Some(lock)),
            Err(error) if error.kind == ErrorKind::Unavailable => {
                (Catalog::open_as_is(&url).await?, None)
            }
            Err(error) => return Err(error),
        };
        Ok(Self {
            catalog,
            clock,
            _lock: lock,
        })
    }

    /// Whether there is a token in the database of the hub on `data_dir`; nothing is made or changed.
    ///
    /// # Errors
    /// As [`Catalog::open`].
    pub async fn exist(data_dir: &Path, database: Option<&str>) -> Result<bool, Error> {
        Catalog::has_tokens(&EngineConfig::url_of(data_dir, database)).await
    }

    /// Makes a token; its text is told this once.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) for what cannot be a token, [`NotFound`](ErrorKind::NotFound) for an unknown job,
    /// [`Conflict`](ErrorKind::Conflict) if the name is taken.
    pub async fn create(&self, token: &NewToken) -> Result<(Token, Secret), Error> {
        let made = workflow::create_token(&self.catalog, token, self.clock.now()).await?;
        self.record(&token.name).await?;
        Ok(made)
    }

    /// Every token, by name.
    ///
    /// # Errors
    /// What the database says.
    pub async fn list(&self) -> Result<Vec<Token>, Error> {
        self.catalog.tokens().await
    }

    /// Forgets a token: the next call with it is refused.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound).
    pub async fn revoke(&self, name: &str) -> Result<(), Error> {
        self.catalog.revoke_token(name).await?;
        self.record(name).await
    }

    async fn record(&self, name: &str) -> Result<(), Error> {
        let deed = Deed {
            actor: "command line".to_owned(),
            role: None,
            peer: None,
            verb: Verb::ManageTokens,
            object: format!("name={name}"),
            status: 0,
            request_id: String::new(),
        };
        self.catalog.record_deed(&deed, self.clock.now()).await
    }

    /// Closes the database.
    pub async fn close(self) {
        self.catalog.close().await;
    }
}
