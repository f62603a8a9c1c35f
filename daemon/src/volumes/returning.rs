//! The device of a volume that this process drives: it may be pulled out, and come back.
//!
//! What comes back is another device to the kernel, and to VFIO, though it has the same path. It is
//! looked for when the volume is locked, which is how it is taken back into use after a failure;
//! files that were opened before go on failing.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use wirevault_media::block::BlockDevice;
use wirevault_media::{Lock, MediaError, MediaFile};
use wirevault_nvme::vfio::{Controller, VfioBus};

use crate::volumes::vfio::Successors;

/// A device, and who drives it.
pub(crate) struct Driven {
    pub(crate) device: Arc<dyn BlockDevice>,
    /// Nobody's, if the kernel does.
    pub(crate) controller: Weak<Controller<VfioBus>>,
}

/// The device at a path, whoever drives it at the moment.
pub(crate) struct Returning {
    path: PathBuf,
    now: Mutex<Driven>,
    successors: Successors,
}

impl Returning {
    pub(crate) fn new(path: &Path, now: Driven, successors: Successors) -> Self {
        Self { path: path.to_owned(), now: Mutex::new(now), successors }
    }

    fn now(&self) -> MutexGuard<'_, Driven> {
        // It is put in whole.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn device(&self) -> Arc<dyn BlockDevice> {
        Arc::clone(&self.now().device)
    }

    /// Whether what was driven from here is no more.
    fn is_gone(&self) -> bool {
        self.now().controller.upgrade().is_some_and(|controller| controller.is_left())
    }
}

impl BlockDevice for Returning {
    fn open(&self, writable: bool) -> io::Result<Arc<dyn MediaFile>> {
        self.device().open(writable)
    }

    fn lock(&self, leased: bool) -> Result<Lock, MediaError> {
        if self.is_gone() {
            // Answers do not wait for it.
            let back = self.successors.take_again(&self.path)?;
            *self.now() = back;
        }
        self.device().lock(leased)
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<bool> {
        self.device().discard(offset, bytes)
    }

    fn describe(&self) -> String {
        self.path.display().to_string()
    }

    fn path(&self) -> Option<PathBuf> {
        self.device().path()
    }

    fn number(&self) -> io::Result<u64> {
        self.device().number()
    }
}
