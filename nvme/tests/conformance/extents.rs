//! A volume without a file system, for queues that speak to devices: files at fixed places of a
//! block device, or of a plain file that stands for one. It keeps nothing of names.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use wirevault_format::limits::LBA_BYTES;
use wirevault_media::{Extent, Lock, Media, MediaError, MediaFile, OpenMode};

use super::suite::FILE_BYTES;

/// Files of [`FILE_BYTES`] one behind the other, from the second place on.
pub(crate) struct ExtentMedia {
    device: PathBuf,
    /// Past the page cache where it is a device: commands do not pass it either.
    file: Arc<File>,
    is_device: bool,
    names: Mutex<BTreeMap<String, u64>>,
}

impl ExtentMedia {
    pub(crate) fn open(device: &Path) -> Self {
        let is_device = std::fs::metadata(device).unwrap().file_type().is_block_device();
        let flags = if is_device { libc::O_DIRECT } else { 0 };
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(device);
        let (file, names) = (Arc::new(file.unwrap()), Mutex::default());
        Self { device: device.to_owned(), file, is_device, names }
    }
}

impl Media for ExtentMedia {
    fn open(&self, name: &str, _mode: OpenMode) -> io::Result<Arc<dyn MediaFile>> {
        let mut names = self.names.lock().unwrap();
        let next = names.len() as u64 + 1;
        let place = *names.entry(name.to_owned()).or_insert(next);
        let extent =
            Extent { device: self.device.clone(), start: place * FILE_BYTES, bytes: FILE_BYTES };
        let (file, is_device) = (Arc::clone(&self.file), self.is_device);
        Ok(Arc::new(ExtentFile { name: name.to_owned(), file, is_device, extent }))
    }

    fn remove(&self, _name: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.names.lock().unwrap().keys().cloned().collect())
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self) -> Result<Lock, MediaError> {
        Ok(Lock::new(()))
    }

    fn describe(&self) -> String {
        self.device.display().to_string()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(0)
    }

    fn total_bytes(&self) -> io::Result<u64> {
        Ok(0)
    }

    fn file_system(&self) -> io::Result<u64> {
        Ok(0)
    }

    fn failed_syncs(&self) -> u64 {
        0
    }
}

struct ExtentFile {
    name: String,
    file: Arc<File>,
    is_device: bool,
    extent: Extent,
}

/// Memory that O_DIRECT takes, within a larger piece.
fn aligned(bytes: usize) -> (Vec<u8>, usize) {
    let memory = vec![0; bytes + LBA_BYTES];
    let at = memory.as_ptr().align_offset(LBA_BYTES);
    (memory, at)
}

impl MediaFile for ExtentFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let block = LBA_BYTES as u64;
        let skipped = (offset % block) as usize;
        let bytes = (skipped + buf.len()).next_multiple_of(LBA_BYTES);
        let (mut memory, at) = aligned(bytes);
        let from = self.extent.start + offset - skipped as u64;
        self.file.read_exact_at(&mut memory[at..at + bytes], from)?;
        buf.copy_from_slice(&memory[at + skipped..at + skipped + buf.len()]);
        Ok(buf.len())
    }

    fn write_at(&self, _data: &[u8], _offset: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.extent.bytes)
    }

    fn set_len(&self, _len_bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Fills the place with zeros, unless it is part of a file that has them anyway.
    fn allocate(&self, len_bytes: u64) -> io::Result<()> {
        if !self.is_device {
            return Ok(());
        }
        let (memory, at) = aligned(len_bytes as usize);
        self.file.write_all_at(&memory[at..at + len_bytes as usize], self.extent.start)
    }

    fn raw_fd(&self) -> Option<RawFd> {
        Some(self.file.as_raw_fd())
    }

    fn direct_path(&self) -> Option<PathBuf> {
        None
    }

    fn extent(&self) -> Option<Extent> {
        Some(self.extent.clone())
    }
}
