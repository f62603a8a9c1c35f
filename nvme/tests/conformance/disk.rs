//! A volume for queues that drive the device themselves: files at fixed places of it. It keeps
//! nothing of names.

use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use wirevault_format::limits::LBA_BYTES;
use wirevault_media::{Extent, Lock, Media, MediaError, MediaFile, OpenMode};
use wirevault_nvme::vfio::{Bus, VfioDisk};

use super::suite::FILE_BYTES;

/// A volume of as many files as fit, in the order in which they are opened first.
pub(crate) struct DiskFiles<B: Bus> {
    disk: Arc<VfioDisk<B>>,
    names: Mutex<Vec<String>>,
}

struct DiskFile<B: Bus> {
    disk: Arc<VfioDisk<B>>,
    name: String,
    start: u64,
}

impl<B: Bus> DiskFiles<B> {
    pub(crate) fn new(disk: Arc<VfioDisk<B>>) -> Self {
        Self { disk, names: Mutex::new(Vec::new()) }
    }
}

impl<B: Bus + 'static> Media for DiskFiles<B> {
    fn open(&self, name: &str, _mode: OpenMode) -> io::Result<Arc<dyn MediaFile>> {
        let mut names = self.names.lock().unwrap();
        let at = names.iter().position(|known| known == name).unwrap_or_else(|| {
            names.push(name.to_owned());
            names.len() - 1
        });
        let (disk, name, start) = (Arc::clone(&self.disk), name.to_owned(), at as u64 * FILE_BYTES);
        Ok(Arc::new(DiskFile { disk, name, start }))
    }

    fn remove(&self, _name: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.names.lock().unwrap().clone())
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self) -> Result<Lock, MediaError> {
        Ok(Lock::new(()))
    }

    fn describe(&self) -> String {
        "files on a disk".to_owned()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.disk.bytes())
    }

    fn total_bytes(&self) -> io::Result<u64> {
        Ok(self.disk.bytes())
    }

    fn file_system(&self) -> io::Result<u64> {
        Ok(0)
    }

    fn failed_syncs(&self) -> u64 {
        0
    }
}

impl<B: Bus> MediaFile for DiskFile<B> {
    fn name(&self) -> &str {
        &self.name
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let lba = LBA_BYTES as u64;
        let first = offset / lba * lba;
        let last = (offset + buf.len() as u64).next_multiple_of(lba);
        let mut blocks = vec![0; (last - first) as usize];
        self.disk.read_at(&mut blocks, self.start + first)?;
        buf.copy_from_slice(&blocks[(offset - first) as usize..][..buf.len()]);
        Ok(buf.len())
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.disk.write_at(data, self.start + offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.flush()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(FILE_BYTES)
    }

    fn set_len(&self, _len_bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn allocate(&self, len_bytes: u64) -> io::Result<()> {
        if len_bytes <= FILE_BYTES { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }

    fn raw_fd(&self) -> Option<RawFd> {
        None
    }

    fn direct_path(&self) -> Option<PathBuf> {
        None
    }

    fn extent(&self) -> Option<Extent> {
        Some(Extent { device: self.disk.path(), start: self.start, bytes: FILE_BYTES })
    }
}
