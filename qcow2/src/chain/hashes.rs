//! The hash of a cluster as a chain has it, from the sidecar of the layer that decides it.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use crate::chain::flatten::PieceSource;
use crate::chain::layer::Layer;
use crate::chain::{Chain, Opener};
use crate::format::limits::MAX_CACHED_HASH_PAGES;
use crate::hashes::{ClusterHash, HashPage, Hashes, Layout};
use crate::storage::Storage;
use crate::sync::Mutex;

/// The sidecars of a chain's layers, opened when they are asked first.
#[derive(Debug, Default)]
pub(super) struct ChainHashes {
    /// As many as there are layers.
    layers: Vec<Sidecar>,
    pages: Mutex<Pages>,
}

#[derive(Debug)]
struct Sidecar {
    /// `None` where the seal names no sidecar, or nobody has it.
    storage: Option<Arc<dyn Storage>>,
    /// `None` where it is not the one that the seal names, or is damaged.
    opened: OnceLock<Option<Hashes>>,
}

/// Pages that are remembered; `None` for one that cannot be read.
#[derive(Debug, Default)]
struct Pages {
    known: HashMap<PageKey, (Option<Arc<HashPage>>, u64)>,
    clock: u64,
}

/// The number of a layer and of one of its pages.
type PageKey = (u16, u64);

impl ChainHashes {
    pub(super) fn push(&mut self, layer: &Layer, opener: &dyn Opener) {
        let is_named = layer
            .info
            .seal
            .as_ref()
            .is_some_and(|seal| seal.hashes.is_some());
        let storage = is_named
            .then(|| opener.open_hashes(&layer.identity))
            .flatten();
        self.layers.push(Sidecar {
            storage,
            opened: OnceLock::new(),
        });
    }

    /// The hash of a cluster of the layer with the number `depth`, `len` bytes of which belong to the disk above.
    fn cluster(&self, layer: &Layer, depth: u16, cluster: u64, len: u64) -> Option<ClusterHash> {
        let sidecar = self.layers.get(usize::from(depth))?;
        let hashes = sidecar
            .opened
            .get_or_init(|| sidecar.open(layer))
            .as_ref()?;
        // At the end of a disk the layer may have less of the cluster, or more.
        if hashes.layout().cluster_len(cluster) != len {
            return None;
        }
        let page = Layout::page_of(cluster);
        let known = self.pages.lock().get((depth, page));
        let found = match known {
            Some(found) => found,
            None => {
                // Without the lock: two may read the same page once, nobody waits for another's IO.
                let found = hashes.page(page).ok().map(Arc::new);
                self.pages.lock().insert((depth, page), found.clone());
                found
            }
        };
        Some(found?.get(cluster))
    }
}

impl Sidecar {
    fn open(&self, layer: &Layer) -> Option<Hashes> {
        let hashes = Hashes::open(self.storage.clone()?).ok()?;
        let is_of = hashes.belongs_to(&layer.info);
        is_of.then_some(hashes)
    }
}

impl Pages {
    fn get(&mut self, key: PageKey) -> Option<Option<Arc<HashPage>>> {
        self.clock += 1;
        let (page, used) = self.known.get_mut(&key)?;
        *used = self.clock;
        Some(page.clone())
    }

    fn insert(&mut self, key: PageKey, page: Option<Arc<HashPage>>) {
        self.known.insert(key, (page, self.clock));
        if self.known.len() > MAX_CACHED_HASH_PAGES {
            let oldest = self.known.iter().min_by_key(|(_, (_, used))| *used);
            if let Some(key) = oldest.map(|(key, _)| *key) {
                self.known.remove(&key);
            }
        }
    }
}

impl Chain {
    /// Whether any layer has a sidecar that could be asked.
    pub(crate) fn has_hashes(&self) -> bool {
        self.hashes
            .layers
            .iter()
            .any(|sidecar| sidecar.storage.is_some())
    }

    /// The hash of the `len` bytes that a cluster of this size has on the disk above; `None` where only the bytes can
    /// tell: the layer that decides has no hash, clusters of another size or another end, or several layers decide.
    pub(crate) fn cluster_hash(&self, offset: u64, len: u64, size: u64) -> Option<ClusterHash> {
        let present = self.present(offset, len);
        let mut whole = None;
        let visited = self.visit(offset, offset + present, |piece| {
            whole = (piece.start == offset && piece.len_bytes == len).then_some(piece);
            Ok(())
        });
        let piece = whole.filter(|_| visited.is_ok())?;
        match piece.source {
            PieceSource::Zero { .. } | PieceSource::Nothing | PieceSource::Beyond => {
                Some(ClusterHash::Zero)
            }
            PieceSource::Host(_) | PieceSource::Compressed(_) => {
                let layer = &self.layers[usize::from(piece.layer)];
                if layer.cluster_size() != Some(size) {
                    return None;
                }
                let hash = self
                    .hashes
                    .cluster(layer, piece.layer, offset / size, len)?;
                // A map and a sidecar that disagree tell nothing.
                matches!(hash, ClusterHash::Data(_)).then_some(hash)
            }
        }
    }
}
