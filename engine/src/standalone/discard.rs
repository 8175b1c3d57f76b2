//! A device that accepts and forgets writes, and reads as zero: for measuring the wire.

use nbd_server::Extent;

use crate::export::{Device, DeviceError};

/// Nothing, of a size.
#[derive(Debug)]
pub(crate) struct DiscardSink {
    pub(crate) size_bytes: u64,
}

impl Device for DiscardSink {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_only(&self) -> bool {
        false
    }

    fn blocks(&self) -> bool {
        false
    }

    fn read(&self, _offset: u64, into: &mut [u8]) -> Result<(), DeviceError> {
        into.fill(0);
        Ok(())
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> Result<(), DeviceError> {
        Ok(())
    }

    fn zero(
        &self,
        _offset: u64,
        _len_bytes: u64,
        _keep_allocation: bool,
    ) -> Result<(), DeviceError> {
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn extents(&self, _offset: u64, len_bytes: u64) -> Result<Vec<Extent>, DeviceError> {
        Ok(vec![Extent::flat(len_bytes, true, true)])
    }
}
