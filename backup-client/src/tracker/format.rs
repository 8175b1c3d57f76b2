//! The layout of a state file, version 1. Pure: bytes to types and back; all numbers little-endian.

use uuid::Uuid;

use crate::limits::MAX_STATE_NAME_BYTES;

/// Length of the header; hashes begin right after it.
pub(super) const HEADER_BYTES: usize = 4096;
/// Length of one block hash: 128 bits of BLAKE3, as much as a match needs to stand for equality.
pub(super) const HASH_BYTES: usize = 16;
/// Length of the checksum at the end: a whole BLAKE3 hash.
pub(super) const TRAILER_BYTES: usize = 32;

const MAGIC: [u8; 8] = *b"SNDTRACK";
const VERSION: u32 = 1;

/// The hash of one block.
pub(crate) type BlockHash = [u8; HASH_BYTES];

/// Hashes one block.
pub(crate) fn block_hash(block: &[u8]) -> BlockHash {
    let full = blake3::hash(block);
    let mut hash = [0; HASH_BYTES];
    hash.copy_from_slice(&full.as_bytes()[..HASH_BYTES]);
    hash
}

/// A position in the history of one disk: `<epoch>/<generation>`.
///
/// Within an epoch each generation was made from the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChangeId {
    pub(crate) epoch: Uuid,
    pub(crate) generation: u64,
}

impl ChangeId {
    pub(crate) fn first(epoch: Uuid) -> Self {
        Self {
            epoch,
            generation: 1,
        }
    }

    /// The position after this one; `None` at the end of the numbers.
    pub(crate) fn next(self) -> Option<Self> {
        Some(Self {
            epoch: self.epoch,
            generation: self.generation.checked_add(1)?,
        })
    }
}

impl std::fmt::Display for ChangeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.epoch, self.generation)
    }
}

/// Whose state it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) vm_name: String,
    pub(crate) disk_id: String,
}

/// Everything that a state file says besides its hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StateHeader {
    pub(crate) identity: Identity,
    pub(crate) size_bytes: u64,
    pub(crate) block_bytes: u32,
    pub(crate) change_id: ChangeId,
    /// The backup that the hashes describe. Two hubs may be told the same change id; a backup id they never share.
    pub(crate) backup_id: String,
}

impl StateHeader {
    /// Number of hashes that follow.
    pub(crate) fn block_count(&self) -> u64 {
        self.size_bytes.div_ceil(u64::from(self.block_bytes))
    }

    /// Length of the whole file, `None` when it cannot be expressed.
    pub(super) fn file_len_bytes(&self) -> Option<u64> {
        const FRAME_BYTES: u64 = (HEADER_BYTES + TRAILER_BYTES) as u64;
        self.block_count()
            .checked_mul(HASH_BYTES as u64)?
            .checked_add(FRAME_BYTES)
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, String> {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.block_bytes.to_le_bytes());
        out.extend_from_slice(&self.size_bytes.to_le_bytes());
        out.extend_from_slice(self.change_id.epoch.as_bytes());
        out.extend_from_slice(&self.change_id.generation.to_le_bytes());
        for text in [
            &self.identity.vm_name,
            &self.identity.disk_id,
            &self.backup_id,
        ] {
            if text.len() > MAX_STATE_NAME_BYTES {
                return Err(format!(
                    "name too long for a tracking state len_bytes={} limit={MAX_STATE_NAME_BYTES}",
                    text.len()
                ));
            }
            let len = u16::try_from(text.len()).expect("the limit fits in 16 bits");
            out.extend_from_slice(&len.to_le_bytes());
            out.extend_from_slice(text.as_bytes());
        }
        out.resize(HEADER_BYTES, 0);
        Ok(out)
    }

    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, String> {
        let mut fields = Fields { rest: bytes };
        if fields.take()? != MAGIC {
            return Err("not a tracking state".to_owned());
        }
        let version = u32::from_le_bytes(fields.take()?);
        if version != VERSION {
            return Err(format!("unknown version={version}"));
        }
        let block_bytes = u32::from_le_bytes(fields.take()?);
        if block_bytes == 0 {
            return Err("block size is zero".to_owned());
        }
        let size_bytes = u64::from_le_bytes(fields.take()?);
        let epoch = Uuid::from_bytes(fields.take()?);
        let generation = u64::from_le_bytes(fields.take()?);
        Ok(Self {
            identity: Identity {
                vm_name: fields.text()?,
                disk_id: fields.text()?,
            },
            size_bytes,
            block_bytes,
            change_id: ChangeId { epoch, generation },
            backup_id: fields.text()?,
        })
    }
}

/// What is still to be parsed of a header.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], String> {
        let (head, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or_else(|| format!("header ends early wanted_bytes={len}"))?;
        self.rest = rest;
        Ok(head)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut out = [0; N];
        out.copy_from_slice(self.bytes(N)?);
        Ok(out)
    }

    fn text(&mut self) -> Result<String, String> {
        let len = usize::from(u16::from_le_bytes(self.take()?));
        let bytes = self.bytes(len)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| format!("name is not utf-8 len_bytes={len}"))
    }
}
