use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use parking_lot::RwLock;

use crate::proto::ErrorCode;
use crate::{ByteRange, Content, Export, ExportError, ExportInfo, Extent, MetaContext, Zero};

/// Granularity in which memory is taken and given back.
const PAGE_BYTES: u64 = 64 * 1024;

/// A device in memory; clones share its bytes. Parts that were never written take no memory.
#[derive(Debug, Clone)]
pub struct MemoryExport {
    size_bytes: u64,
    /// Pages by number; an absent one reads as zero.
    pages: Arc<RwLock<BTreeMap<u64, Box<[u8]>>>>,
}

impl MemoryExport {
    /// A device of this size that reads as zero.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        Self {
            size_bytes,
            pages: Arc::default(),
        }
    }

    fn check(&self, range: ByteRange) -> Result<(), ExportError> {
        match range.offset.checked_add(range.len_bytes) {
            Some(end) if end <= self.size_bytes => Ok(()),
            _ => Err(ExportError::new(
                ErrorCode::INVAL,
                format!(
                    "beyond the device range={range:?} size_bytes={}",
                    self.size_bytes
                ),
            )),
        }
    }

    fn clear(&self, range: ByteRange, how: Zero) -> Result<(), ExportError> {
        self.check(range)?;
        let mut pages = self.pages.write();
        for part in pages_of(range) {
            let whole = part.len == page_len();
            match how {
                Zero::MayUnmap if whole => {
                    pages.remove(&part.page);
                }
                Zero::MayUnmap => {
                    if let Some(page) = pages.get_mut(&part.page) {
                        page[part.start..part.start + part.len].fill(0);
                    }
                }
                Zero::KeepAllocated => {
                    let page = pages.entry(part.page).or_insert_with(empty_page);
                    page[part.start..part.start + part.len].fill(0);
                }
            }
        }
        Ok(())
    }
}

/// A part of a range that lies in one page.
struct PagePart {
    page: u64,
    start: usize,
    len: usize,
}

fn pages_of(range: ByteRange) -> impl Iterator<Item = PagePart> {
    let page_bytes = u32::try_from(PAGE_BYTES).expect("a page is small");
    range.pieces(page_bytes).map(|piece| PagePart {
        page: piece.offset / PAGE_BYTES,
        start: usize::try_from(piece.offset % PAGE_BYTES).expect("less than a page"),
        len: usize::try_from(piece.len_bytes).expect("at most a page"),
    })
}

fn page_len() -> usize {
    usize::try_from(PAGE_BYTES).expect("a page is small")
}

fn empty_page() -> Box<[u8]> {
    vec![0; page_len()].into_boxed_slice()
}

impl Export for MemoryExport {
    fn info(&self) -> ExportInfo {
        ExportInfo {
            size_bytes: self.size_bytes,
            read_only: false,
            multi_conn: true,
            fast_zero: true,
            description: "a device in memory".to_owned(),
            contexts: vec![MetaContext::Allocation],
        }
    }

    async fn read(&self, range: ByteRange) -> Result<Content, ExportError> {
        self.check(range)?;
        let pages = self.pages.read();
        if pages_of(range).all(|part| !pages.contains_key(&part.page)) {
            return Ok(Content::Zeroes);
        }
        let mut data = BytesMut::with_capacity(usize::try_from(range.len_bytes).unwrap_or(0));
        for part in pages_of(range) {
            match pages.get(&part.page) {
                Some(page) => data.extend_from_slice(&page[part.start..part.start + part.len]),
                None => data.resize(data.len() + part.len, 0),
            }
        }
        Ok(Content::Data(data.freeze()))
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), ExportError> {
        let len_bytes = u64::try_from(data.len()).unwrap_or(u64::MAX);
        let range = ByteRange { offset, len_bytes };
        self.check(range)?;
        let mut pages = self.pages.write();
        let mut rest = &data[..];
        for part in pages_of(range) {
            let (here, after) = rest.split_at(part.len);
            let page = pages.entry(part.page).or_insert_with(empty_page);
            page[part.start..part.start + part.len].copy_from_slice(here);
            rest = after;
        }
        Ok(())
    }

    async fn zero(&self, range: ByteRange, how: Zero) -> Result<(), ExportError> {
        self.clear(range, how)
    }

    async fn trim(&self, range: ByteRange) -> Result<(), ExportError> {
        self.clear(range, Zero::MayUnmap)
    }

    async fn flush(&self) -> Result<(), ExportError> {
        Ok(())
    }

    async fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, ExportError> {
        self.check(range)?;
        let pages = self.pages.read();
        let mut extents: Vec<Extent> = Vec::new();
        for part in pages_of(range) {
            let hole = !pages.contains_key(&part.page);
            let len_bytes = u64::try_from(part.len).expect("at most a page");
            match extents.last_mut() {
                Some(last) if last.hole == hole => last.len_bytes += len_bytes,
                _ => extents.push(Extent::flat(len_bytes, hole, hole)),
            }
        }
        Ok(extents)
    }
}
