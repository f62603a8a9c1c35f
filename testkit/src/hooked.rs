//! Disks that do what they are asked, but for what a test says: a call that fails, is left out, is
//! remembered, or stops for something else.
//!
//! A hook is given the file below and makes the call itself; what it does not mention goes through.
//! Only calls through these traits are seen: a queue that takes the simulated file behind
//! ([`MediaFile::simulated`]) goes past it.

use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;

use wirevault_media::block::BlockDevice;
use wirevault_media::{
    Erased, Extent, Lease, Lock, Media, MediaError, MediaFile, OpenMode, Shape, SimFile,
};

/// What a test says of the calls on one handle of a file.
pub trait FileHook: Send + Sync + 'static {
    /// As [`MediaFile::read_at`].
    fn read(&self, file: &dyn MediaFile, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        file.read_at(buf, offset)
    }

    /// As [`MediaFile::write_at`].
    fn write(&self, file: &dyn MediaFile, data: &[u8], offset: u64) -> io::Result<()> {
        file.write_at(data, offset)
    }

    /// As [`MediaFile::sync`].
    fn sync(&self, file: &dyn MediaFile) -> io::Result<()> {
        file.sync()
    }

    /// As [`MediaFile::set_len`].
    fn set_len(&self, file: &dyn MediaFile, len_bytes: u64) -> io::Result<()> {
        file.set_len(len_bytes)
    }
}

/// What a test says of the calls on a disk.
pub trait DiskHook: Send + Sync {
    /// Of its files.
    type File: FileHook;

    /// A file of that name is opened; a device is one without a name.
    fn opened(&self, name: &str) -> Self::File;

    /// As [`Media::sync_dir`].
    fn sync_dir(&self, media: &dyn Media) -> io::Result<()> {
        media.sync_dir()
    }

    /// As [`BlockDevice::discard`].
    fn discard(&self, device: &dyn BlockDevice, offset: u64, bytes: u64) -> io::Result<bool> {
        device.discard(offset, bytes)
    }
}

/// A disk with a hook: `D` is `dyn Media` or `dyn BlockDevice`.
pub struct Hooked<D: ?Sized, H> {
    disk: Arc<D>,
    hook: H,
}

impl<D: ?Sized, H: DiskHook> Hooked<D, H> {
    /// That disk with this hook.
    pub fn new(disk: Arc<D>, hook: H) -> Self {
        Self { disk, hook }
    }

    fn file(&self, file: Arc<dyn MediaFile>, name: &str) -> Arc<dyn MediaFile> {
        Arc::new(HookedFile { file, hook: self.hook.opened(name) })
    }
}

impl<H: DiskHook> Media for Hooked<dyn Media, H> {
    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Arc<dyn MediaFile>> {
        Ok(self.file(self.disk.open(name, mode)?, name))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.hook.sync_dir(&*self.disk)
    }

    fn lock(&self) -> Result<Lock, MediaError> {
        self.disk.lock()
    }

    fn describe(&self) -> String {
        self.disk.describe()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.disk.free_bytes()
    }

    fn total_bytes(&self) -> io::Result<u64> {
        self.disk.total_bytes()
    }

    fn file_system(&self) -> io::Result<u64> {
        self.disk.file_system()
    }

    fn is_device(&self) -> bool {
        self.disk.is_device()
    }

    fn erased(&self) -> Erased {
        self.disk.erased()
    }

    fn is_shared(&self) -> bool {
        self.disk.is_shared()
    }

    fn lease(&self) -> Option<Arc<Lease>> {
        self.disk.lease()
    }

    fn failed_syncs(&self) -> u64 {
        self.disk.failed_syncs()
    }

    fn foreign(&self) -> io::Result<Option<&'static str>> {
        self.disk.foreign()
    }

    fn lay_out(&self, shape: &Shape) -> io::Result<()> {
        self.disk.lay_out(shape)
    }
}

impl<H: DiskHook> BlockDevice for Hooked<dyn BlockDevice, H> {
    fn open(&self, writable: bool) -> io::Result<Arc<dyn MediaFile>> {
        Ok(self.file(self.disk.open(writable)?, ""))
    }

    fn lock(&self, leased: bool) -> Result<Lock, MediaError> {
        self.disk.lock(leased)
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<bool> {
        self.hook.discard(&*self.disk, offset, bytes)
    }

    fn describe(&self) -> String {
        self.disk.describe()
    }

    fn path(&self) -> Option<PathBuf> {
        self.disk.path()
    }

    fn number(&self) -> io::Result<u64> {
        self.disk.number()
    }
}

struct HookedFile<H> {
    file: Arc<dyn MediaFile>,
    hook: H,
}

impl<H: FileHook> MediaFile for HookedFile<H> {
    fn name(&self) -> &str {
        self.file.name()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.hook.read(&*self.file, buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.hook.write(&*self.file, data, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.hook.sync(&*self.file)
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.hook.set_len(&*self.file, len_bytes)
    }

    fn allocate(&self, len_bytes: u64) -> io::Result<()> {
        self.file.allocate(len_bytes)
    }

    fn raw_fd(&self) -> Option<RawFd> {
        self.file.raw_fd()
    }

    fn direct_path(&self) -> Option<PathBuf> {
        self.file.direct_path()
    }

    fn extent(&self) -> Option<Extent> {
        self.file.extent()
    }

    fn simulated(&self) -> Option<&SimFile> {
        self.file.simulated()
    }
}
