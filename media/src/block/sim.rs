//! A simulated device: one file of a simulated disk, with all its faults.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::BlockDevice;
use crate::{Lock, Media, MediaError, MediaFile, OpenMode, SimMedia};

/// Name of the file on the simulated disk.
pub const DEVICE_FILE: &str = "device";

/// A device that is the file [`DEVICE_FILE`] of a simulated disk. Discards do nothing, so that
/// places are used again over what they held.
pub struct SimDevice {
    disk: SimMedia,
}

impl SimDevice {
    /// On that disk.
    pub fn on(disk: &SimMedia) -> Self {
        Self { disk: disk.clone() }
    }
}

impl BlockDevice for SimDevice {
    fn open(&self, writable: bool) -> io::Result<Arc<dyn MediaFile>> {
        let mode = if writable { OpenMode::ReadWrite } else { OpenMode::Read };
        self.disk.open(DEVICE_FILE, mode)
    }

    fn lock(&self, leased: bool) -> Result<Lock, MediaError> {
        match leased {
            true => Ok(Lock::new(())),
            false => self.disk.hold(self.describe()),
        }
    }

    fn discard(&self, _offset: u64, _bytes: u64) -> io::Result<bool> {
        Ok(false)
    }

    fn describe(&self) -> String {
        "simulated device".to_owned()
    }

    fn path(&self) -> Option<PathBuf> {
        None
    }

    fn number(&self) -> io::Result<u64> {
        self.disk.file_system()
    }
}
