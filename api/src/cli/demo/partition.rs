//! A disk image with one MBR partition, and the partition as a file of its own.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

/// Where the partition starts: 1 MiB, as every partitioning tool aligns it.
pub(super) const PARTITION_START: u64 = 1 << 20;

const SECTOR: u64 = 512;

/// MBR partition types.
#[derive(Debug, Clone, Copy)]
pub(super) enum PartitionType {
    /// FAT32 with LBA addressing.
    Fat32 = 0x0c,
    /// Any Linux filesystem.
    Linux = 0x83,
}

/// Writes a master boot record with one partition that fills the rest of the disk.
///
/// # Errors
/// When the disk cannot be written, or is too large for an MBR (2 TiB).
pub(super) fn write_mbr(disk: &File, size_bytes: u64, kind: PartitionType) -> io::Result<()> {
    let too_large = |_| io::Error::new(io::ErrorKind::InvalidInput, "disk too large for an MBR");
    let start = u32::try_from(PARTITION_START / SECTOR).map_err(too_large)?;
    let sectors = u32::try_from((size_bytes - PARTITION_START) / SECTOR).map_err(too_large)?;

    let mut record = [0u8; 512];
    let entry = &mut record[446..462];
    // Cylinders, heads and sectors are the maximum, which means "use the LBA fields".
    entry[1..4].copy_from_slice(&[0xfe, 0xff, 0xff]);
    entry[4] = kind as u8;
    entry[5..8].copy_from_slice(&[0xfe, 0xff, 0xff]);
    entry[8..12].copy_from_slice(&start.to_le_bytes());
    entry[12..16].copy_from_slice(&sectors.to_le_bytes());
    record[510..].copy_from_slice(&[0x55, 0xaa]);

    disk.write_all_at(&record, 0)
}

/// Pages of the partition that are kept in memory: a filesystem asks for a few bytes at a time.
const PAGE_BYTES: usize = 64 << 10;

/// When this many pages are held (32 MiB), all are written back and forgotten.
const MAX_PAGES: usize = 512;

/// The partition of a disk made by [`write_mbr`], with positions from its own start.
///
/// Holds what was written in pages until [`Write::flush`] or the end of its life.
#[derive(Debug)]
pub(super) struct Partition {
    disk: File,
    len_bytes: u64,
    position: u64,
    pages: HashMap<u64, Page>,
}

#[derive(Debug)]
struct Page {
    data: Vec<u8>,
    dirty: bool,
}

impl Partition {
    /// # Errors
    /// When the disk's size cannot be read.
    pub(super) fn open(disk: File) -> io::Result<Self> {
        let len_bytes = disk.metadata()?.len().saturating_sub(PARTITION_START);
        Ok(Self {
            disk,
            len_bytes,
            position: 0,
            pages: HashMap::new(),
        })
    }

    /// The page under the current position, and where in it the position is.
    fn page(&mut self) -> io::Result<(&mut Page, usize)> {
        let number = self.position / PAGE_BYTES as u64;
        let within = usize::try_from(self.position % PAGE_BYTES as u64).expect("less than a page");
        if !self.pages.contains_key(&number) {
            if self.pages.len() >= MAX_PAGES {
                self.write_back()?;
                self.pages.clear();
            }
            let start = number * PAGE_BYTES as u64;
            let len = usize::try_from((self.len_bytes - start).min(PAGE_BYTES as u64))
                .expect("at most a page");
            let mut data = vec![0; len];
            self.disk
                .read_exact_at(&mut data, PARTITION_START + start)?;
            self.pages.insert(number, Page { data, dirty: false });
        }
        let page = self.pages.get_mut(&number).expect("it was put there above");
        Ok((page, within))
    }

    fn write_back(&mut self) -> io::Result<()> {
        for (number, page) in self.pages.iter_mut().filter(|(_, page)| page.dirty) {
            let offset = PARTITION_START + number * PAGE_BYTES as u64;
            self.disk.write_all_at(&page.data, offset)?;
            page.dirty = false;
        }
        Ok(())
    }
}

impl Drop for Partition {
    fn drop(&mut self) {
        // Who needs to know whether it arrived has called `flush`.
        let _ = self.write_back();
    }
}

impl Read for Partition {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.position >= self.len_bytes || into.is_empty() {
            return Ok(0);
        }
        let (page, within) = self.page()?;
        let count = into.len().min(page.data.len() - within);
        into[..count].copy_from_slice(&page.data[within..within + count]);
        self.position += count as u64;
        Ok(count)
    }
}

impl Write for Partition {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.position >= self.len_bytes || data.is_empty() {
            return Ok(0);
        }
        let (page, within) = self.page()?;
        let count = data.len().min(page.data.len() - within);
        page.data[within..within + count].copy_from_slice(&data[..count]);
        page.dirty = true;
        self.position += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.write_back()
    }
}

impl Seek for Partition {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(delta) => self.len_bytes.checked_add_signed(delta),
            SeekFrom::Current(delta) => self.position.checked_add_signed(delta),
        };
        let before_start =
            || io::Error::new(io::ErrorKind::InvalidInput, "seek before the partition");
        self.position = position.ok_or_else(before_start)?;
        Ok(self.position)
    }
}
