use crate::{Export, ExportName, Exports, OpenError, Peer};

/// One device under one name; the empty name means it, too.
#[derive(Debug, Clone)]
pub struct SingleExport<E> {
    name: String,
    export: E,
}

impl<E: Export + Clone> SingleExport<E> {
    /// Serves clones of `export`, which must share their device.
    #[must_use]
    pub fn new(name: impl Into<String>, export: E) -> Self {
        Self {
            name: name.into(),
            export,
        }
    }
}

impl<E: Export + Clone> Exports for SingleExport<E> {
    type Export = E;

    async fn open(&self, name: &ExportName, _peer: &Peer) -> Result<E, OpenError> {
        if name.as_str().is_empty() || name.as_str() == self.name {
            Ok(self.export.clone())
        } else {
            Err(OpenError::Unknown)
        }
    }

    async fn list(&self, _peer: &Peer) -> Vec<String> {
        vec![self.name.clone()]
    }
}
