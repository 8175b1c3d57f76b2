//! A point is read: the device behind a read-only export of a chain.

use nbd_server::{ErrorCode, Extent, MetaContext};
use qcow2::Chain;

use super::device::{Device, DeviceError, all_zero, allocation, chain_contexts};

impl Device for Chain {
    fn size_bytes(&self) -> u64 {
        self.virtual_size_bytes()
    }

    fn read_only(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), DeviceError> {
        Ok(Chain::read(self, offset, into)?)
    }

    fn reads_zero(&self, offset: u64, len_bytes: u64) -> Result<bool, DeviceError> {
        Ok(all_zero(&Chain::extents(self, offset, len_bytes)?))
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> Result<(), DeviceError> {
        Err(refused())
    }

    fn zero(
        &self,
        _offset: u64,
        _len_bytes: u64,
        _keep_allocation: bool,
    ) -> Result<(), DeviceError> {
        Err(refused())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn contexts(&self) -> Vec<MetaContext> {
        chain_contexts(self.layers().len() > 1)
    }

    fn extents(&self, offset: u64, len_bytes: u64) -> Result<Vec<Extent>, DeviceError> {
        Ok(allocation(&Chain::extents(self, offset, len_bytes)?))
    }
}

/// The session refuses writes to a read-only export before they come here; a published point is never written.
fn refused() -> DeviceError {
    DeviceError {
        code: ErrorCode::PERM,
        message: "a published point takes no writes".to_owned(),
        fatal: false,
    }
}
