//! A controller of our own as the device of a volume: what `media` wants of one.
//!
//! Tables and answers have a queue each, so that whoever opens a segment never waits behind a
//! question that reads.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use wirevault_media::block::BlockDevice;
use wirevault_media::block::aligned::{AlignedFile, Blocks};
use wirevault_media::{Lock, MediaError, MediaFile};

use super::bus::Bus;
use super::controller::Controller;
use super::disk::VfioDisk;
use crate::error::NvmeError;

/// A namespace that this process drives, under the name that its store gives it.
pub struct VfioVolume<B: Bus> {
    name: String,
    path: PathBuf,
    tables: Arc<VfioDisk<B>>,
    answers: Arc<VfioDisk<B>>,
    /// Whoever writes it. Other processes have no way to the device.
    writer: Mutex<Weak<()>>,
}

impl<B: Bus> VfioVolume<B> {
    /// Opens the queues. `name` is what the volume is called in messages and status.
    ///
    /// Errors: the device has no queue left for tables, or refuses. Without a second one answers
    /// share the first.
    pub fn open(controller: &Arc<Controller<B>>, name: &str) -> Result<Self, NvmeError> {
        let tables = Arc::new(VfioDisk::open(controller)?);
        let answers = VfioDisk::open(controller).map_or_else(|_| Arc::clone(&tables), Arc::new);
        let (name, path) = (name.to_owned(), tables.path());
        Ok(Self { name, path, tables, answers, writer: Mutex::default() })
    }
}

impl<B: Bus + 'static> BlockDevice for VfioVolume<B> {
    fn open(&self, writable: bool) -> io::Result<Arc<dyn MediaFile>> {
        let disk = if writable { &self.tables } else { &self.answers };
        let (disk, path) = (Arc::clone(disk), self.path.clone());
        Ok(Arc::new(AlignedFile::new(OpenDisk { disk, path, writable })))
    }

    /// One process drives the device, whoever has the lease.
    fn lock(&self, _leased: bool) -> Result<Lock, MediaError> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if writer.strong_count() > 0 {
            let holder = Some(std::process::id());
            return Err(MediaError::Locked { volume: self.name.clone(), holder });
        }
        let guard = Arc::new(());
        *writer = Arc::downgrade(&guard);
        Ok(Lock::new(guard))
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<bool> {
        self.tables.discard(offset, bytes)
    }

    fn describe(&self) -> String {
        self.name.clone()
    }

    fn path(&self) -> Option<PathBuf> {
        Some(self.path.clone())
    }

    fn number(&self) -> io::Result<u64> {
        let mut hasher = DefaultHasher::new();
        self.path.hash(&mut hasher);
        Ok(hasher.finish())
    }
}

struct OpenDisk<B: Bus> {
    disk: Arc<VfioDisk<B>>,
    path: PathBuf,
    writable: bool,
}

impl<B: Bus> OpenDisk<B> {
    fn failed(&self, action: &'static str) -> impl FnOnce(io::Error) -> io::Error {
        move |e| io::Error::new(e.kind(), format!("cannot {action} {}: {e}", self.path.display()))
    }
}

impl<B: Bus> Blocks for OpenDisk<B> {
    fn path(&self) -> &Path {
        &self.path
    }

    fn bytes(&self) -> u64 {
        self.disk.bytes()
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.disk.read_at(buf, offset).map_err(self.failed("read"))
    }

    fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        if !self.writable {
            let error = io::Error::new(io::ErrorKind::PermissionDenied, "it is open to read only");
            return Err(self.failed("write")(error));
        }
        self.disk.write_at(data, offset).map_err(self.failed("write"))
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.flush().map_err(self.failed("sync"))
    }

    fn raw_fd(&self) -> Option<RawFd> {
        None
    }
}
