use bytes::Bytes;

use crate::proto::limits::PIECE_BYTES;
use crate::{ByteRange, Content, Export, ExportError, ExportInfo, Extent, MetaContext, Zero};

/// What every read is cut from.
static ZEROES: [u8; PIECE_BYTES as usize] = [0; PIECE_BYTES as usize];

/// A device that accepts and forgets, and reads zero: the ceiling of the wire.
#[derive(Debug, Clone)]
pub struct DiscardExport {
    size_bytes: u64,
}

impl DiscardExport {
    /// A device of this size.
    #[must_use]
    pub const fn new(size_bytes: u64) -> Self {
        Self { size_bytes }
    }
}

impl Export for DiscardExport {
    fn info(&self) -> ExportInfo {
        ExportInfo {
            size_bytes: self.size_bytes,
            read_only: false,
            multi_conn: true,
            fast_zero: true,
            description: "accepts and forgets".to_owned(),
            contexts: vec![MetaContext::Allocation],
        }
    }

    async fn read(&self, range: ByteRange) -> Result<Content, ExportError> {
        let len = usize::try_from(range.len_bytes).unwrap_or(usize::MAX);
        // As data: what is measured is the wire.
        let data = Bytes::from_static(&ZEROES).slice(..len.min(ZEROES.len()));
        Ok(Content::Data(data))
    }

    async fn write(&self, _offset: u64, _data: Bytes) -> Result<(), ExportError> {
        Ok(())
    }

    async fn zero(&self, _range: ByteRange, _how: Zero) -> Result<(), ExportError> {
        Ok(())
    }

    async fn trim(&self, _range: ByteRange) -> Result<(), ExportError> {
        Ok(())
    }

    async fn flush(&self) -> Result<(), ExportError> {
        Ok(())
    }

    async fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, ExportError> {
        Ok(vec![Extent::flat(range.len_bytes, true, true)])
    }
}
