//! A backup writes its image: the device behind a writable export.

use nbd_server::{Extent, MetaContext};
use qcow2::Image;

use super::device::{Device, DeviceError, all_zero, allocation, chain_contexts};

impl Device for Image {
    fn size_bytes(&self) -> u64 {
        self.virtual_size_bytes()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), DeviceError> {
        Ok(Image::read(self, offset, into)?)
    }

    fn reads_zero(&self, offset: u64, len_bytes: u64) -> Result<bool, DeviceError> {
        Ok(all_zero(&Image::extents(self, offset, len_bytes)?))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        Ok(Image::write(self, offset, data)?)
    }

    fn zero(&self, offset: u64, len_bytes: u64, keep_allocation: bool) -> Result<(), DeviceError> {
        Ok(self.write_zeroes(offset, len_bytes, keep_allocation)?)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(Image::flush(self)?)
    }

    fn contexts(&self) -> Vec<MetaContext> {
        chain_contexts(Image::info(self).backing.is_some())
    }

    fn extents(&self, offset: u64, len_bytes: u64) -> Result<Vec<Extent>, DeviceError> {
        Ok(allocation(&Image::extents(self, offset, len_bytes)?))
    }
}
