//! The SOURCE argument: which kind of source a text means.

use std::fmt::{self, Display, Formatter};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use super::Source;
use super::image::Qcow2Source;
use super::raw::RawSource;
use crate::{Error, ErrorKind};

/// First bytes of every qcow2 file ("QFI\xfb", qcow2 spec, Header).
const QCOW2_MAGIC: &[u8] = b"QFI\xfb";

/// Where a disk is read from.
///
/// The content alone never decides: a guest may write a qcow2 header into its raw disk, and believing it would read
/// any file of the node into the backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceSpec {
    /// `raw:PATH`: the bytes of the file or block device are the disk.
    Raw(PathBuf),
    /// `qcow2:PATH`: a qcow2 file, backing files from the same directory tree.
    Qcow2(PathBuf),
    /// `PATH`: qcow2 when the name ends in `.qcow2` and the file agrees; else raw.
    Path(PathBuf),
}

impl FromStr for SourceSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const NBD_SCHEMES: [&str; 4] = ["nbd://", "nbds://", "nbd+unix://", "nbds+unix://"];
        if NBD_SCHEMES.iter().any(|scheme| text.starts_with(scheme)) {
            return Err(format!(
                "an nbd uri cannot be read as a source yet source={text}"
            ));
        }
        let spec = if let Some(path) = text.strip_prefix("raw:") {
            Self::Raw(path.into())
        } else if let Some(path) = text.strip_prefix("qcow2:") {
            Self::Qcow2(path.into())
        } else {
            Self::Path(text.into())
        };
        if spec.path().as_os_str().is_empty() {
            return Err(format!("no path given source={text}"));
        }
        Ok(spec)
    }
}

impl Display for SourceSpec {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Raw(path) => write!(f, "raw:{}", path.display()),
            Self::Qcow2(path) => write!(f, "qcow2:{}", path.display()),
            Self::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

impl SourceSpec {
    fn path(&self) -> &Path {
        match self {
            Self::Raw(path) | Self::Qcow2(path) | Self::Path(path) => path,
        }
    }

    /// Opens the source for reading. Blocking.
    ///
    /// # Errors
    /// `Source` when it cannot be opened or is not what its name says.
    pub fn open(&self) -> Result<Arc<dyn Source>, Error> {
        self.open_inner()
            .map_err(|error| error.context(format_args!("cannot open source={self}")))
    }

    fn open_inner(&self) -> Result<Arc<dyn Source>, Error> {
        match self {
            Self::Raw(path) => Ok(Arc::new(RawSource::open(path)?)),
            Self::Qcow2(path) => Ok(Arc::new(Qcow2Source::open(path)?)),
            Self::Path(path) => {
                let has_magic = has_qcow2_magic(path)?;
                let has_extension = path.extension().is_some_and(|end| end == "qcow2");
                match (has_extension, has_magic) {
                    (true, true) => Ok(Arc::new(Qcow2Source::open(path)?)),
                    (true, false) => Err(Error::new(
                        ErrorKind::Source,
                        "the name ends in .qcow2 but the content is not qcow2; say raw:PATH to take it as it is",
                    )),
                    (false, true) => {
                        let remark = "begins like a qcow2 file but is read as raw; say qcow2:PATH if that is meant";
                        Ok(Arc::new(RawSource::open(path)?.with_remark(remark)))
                    }
                    (false, false) => Ok(Arc::new(RawSource::open(path)?)),
                }
            }
        }
    }
}

fn has_qcow2_magic(path: &Path) -> Result<bool, Error> {
    let file = open_regular_or_block(path)?;
    let mut magic = [0; 4];
    match file.read_exact_at(&mut magic, 0) {
        Ok(()) => Ok(magic == QCOW2_MAGIC),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(Error::because(ErrorKind::Source, "cannot read", error)),
    }
}

/// Opens what can be a disk; a FIFO would block for ever, a directory cannot be read.
pub(super) fn open_regular_or_block(path: &Path) -> Result<File, Error> {
    use std::os::unix::fs::FileTypeExt;
    let kind = std::fs::metadata(path)
        .map_err(|error| Error::because(ErrorKind::Source, "cannot look at it", error))?
        .file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Error::new(
            ErrorKind::Source,
            "neither a regular file nor a block device",
        ));
    }
    File::open(path).map_err(|error| Error::because(ErrorKind::Source, "cannot open it", error))
}
