//! Opening an existing file: everything is checked before it is used.

use std::sync::{Arc, OnceLock};

use crate::chain::Chain;
use crate::codec::Inflated;
use crate::error::{Error, ErrorKind, corrupt, invalid, unsupported};
use crate::format::extension::{BACKING_FORMAT, Extensions, SEAL};
use crate::format::feature::{INCOMPATIBLE_CORRUPT, INCOMPATIBLE_DIRTY};
use crate::format::geometry::{HostOffset, to_u64, to_usize};
use crate::format::header::{AUTOCLEAR_AT, Header, PREFIX_BYTES};
use crate::format::seal::Seal;
use crate::image::commit::CommitState;
use crate::image::locks::RangeLocks;
use crate::image::tables::Tables;
use crate::image::write::Counters;
use crate::image::{BackingFormat, BackingName, Elision, Image, ImageInfo};
use crate::storage::{self, Storage};
use crate::sync::{AtomicBool, Mutex};

/// A header and what follows from it.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) header: Header,
    pub(crate) info: ImageInfo,
    pub(crate) extensions: Extensions,
}

/// Reads and checks the header of a file.
pub(crate) fn open_file(storage: &dyn Storage) -> Result<Opened, Error> {
    let file_len = storage::len(storage)?;
    let mut prefix = [0; PREFIX_BYTES];
    let present = to_usize(file_len.min(to_u64(PREFIX_BYTES)));
    storage::read(storage, HostOffset(0), &mut prefix[..present])?;
    let header = Header::parse(&prefix)?;
    let mut cluster = vec![0; to_usize(header.geometry.cluster_size())];
    storage::read_padded(storage, HostOffset(0), &mut cluster)?;
    let (extensions, name) = header.parse_cluster(&cluster)?;
    let backing = match name {
        None => None,
        Some(name) => Some(BackingName {
            name,
            format: format(extensions.find(BACKING_FORMAT))?,
        }),
    };
    let seal = extensions.find(SEAL).map(Seal::parse).transpose()?;
    let geometry = &header.geometry;
    let info = ImageInfo {
        virtual_size_bytes: geometry.virtual_size(),
        cluster_size_bytes: 1 << geometry.cluster_bits(),
        version: header.version,
        refcount_bits: 1 << geometry.refcount_order(),
        compression: Some(header.compression),
        backing,
        seal,
        file_size_bytes: file_len,
    };
    Ok(Opened {
        header,
        info,
        extensions,
    })
}

fn format(extension: Option<&[u8]>) -> Result<Option<BackingFormat>, Error> {
    match extension {
        None => Ok(None),
        Some(b"qcow2") => Ok(Some(BackingFormat::Qcow2)),
        Some(b"raw") => Ok(Some(BackingFormat::Raw)),
        Some(other) => Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "unknown format of the backing file: format={}",
                other.escape_ascii()
            ),
        )),
    }
}

impl Image {
    /// Opens an existing image for writing. Autoclear features (persistent bitmaps) are invalidated first.
    ///
    /// # Errors
    /// `Refused` for a sealed image; `Unsupported` and `Corrupt` for what the header says: extended L2 entries, the
    /// dirty and the corrupt bit, which are all fine for reading; `Corrupt` for structures that overlap or lie beyond
    /// the file; `Invalid` for a parent that does not go with the header; `Io` from the storage.
    pub fn open(storage: Arc<dyn Storage>, parent: Option<Arc<Chain>>) -> Result<Self, Error> {
        let Opened {
            header,
            info,
            extensions,
        } = open_file(&*storage)?;
        check_writable(&header, &info)?;
        if info.backing.is_some() != parent.is_some() {
            return Err(invalid("a backing name and a parent go together"));
        }
        let tables = Tables::open(&header, &extensions, info.file_size_bytes, &*storage)?;
        if header.autoclear != 0 {
            storage::write(&*storage, HostOffset(AUTOCLEAR_AT), &[0; 8])?;
            storage::sync(&*storage)?;
        }
        Ok(Self {
            storage,
            parent,
            geometry: header.geometry,
            compression: header.compression,
            inflated: Inflated::default(),
            info: Mutex::new(info),
            locks: RangeLocks::default(),
            commit: Mutex::new(CommitState::default()),
            tables: Mutex::new(tables),
            counters: Counters::default(),
            elision: Elision::Off,
            hashes: None,
            sealed: AtomicBool::new(false),
            damage: OnceLock::new(),
        })
    }
}

fn check_writable(header: &Header, info: &ImageInfo) -> Result<(), Error> {
    if let Some(seal) = &info.seal {
        return Err(Error::new(
            ErrorKind::Refused,
            format!("image is sealed: point_id={}", seal.point_id),
        ));
    }
    if header.has_extended_l2() {
        return Err(unsupported(
            "image uses extended L2 entries (subclusters), which are read but not written",
        ));
    }
    if header.incompatible & INCOMPATIBLE_DIRTY != 0 {
        return Err(corrupt(
            "image was not closed by its last writer (dirty bit): it can be read, and must be repaired by a check \
             before it is written",
        ));
    }
    if header.incompatible & INCOMPATIBLE_CORRUPT != 0 {
        return Err(corrupt(
            "image is marked corrupt: it can be read, and must be repaired by a check before it is written",
        ));
    }
    Ok(())
}
