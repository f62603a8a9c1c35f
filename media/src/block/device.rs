//! A block device of this machine, or a plain file standing for one.

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::aligned::{ALIGN_BYTES, AlignedFile, Blocks};
use super::{BlockDevice, sys};
use crate::dir::{in_words, lock_holder};
use crate::{Lock, MediaError, MediaFile};

/// systemd-udevd holds the lock for a moment while it looks at a device.
const LOCK_TRIES: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_millis(50);
/// Numbers of devices must not meet those of file systems.
const NUMBER_MARK: u64 = 1 << 63;

/// A device, named by its node, a link to it, or the path of a plain file.
pub struct HostDevice {
    path: PathBuf,
    is_block: bool,
}

impl HostDevice {
    /// Errors: nothing is there, or it is neither.
    pub fn find(path: &Path) -> Result<Self, MediaError> {
        let failed = |source| MediaError::Io {
            volume: path.display().to_string(),
            action: "find the device",
            source,
        };
        let metadata = std::fs::metadata(path).map_err(failed)?;
        let is_block = metadata.file_type().is_block_device();
        if !is_block && !metadata.is_file() {
            return Err(MediaError::NotADirectory { volume: path.display().to_string() });
        }
        // Links are kept: they name the device, nodes are numbered in the order of discovery.
        let path = std::path::absolute(path).map_err(failed)?;
        Ok(Self { path, is_block })
    }

    fn metadata(&self) -> io::Result<Metadata> {
        std::fs::metadata(&self.path).map_err(|e| in_words(e, "stat", &self.path))
    }
}

impl BlockDevice for HostDevice {
    fn open(&self, writable: bool) -> io::Result<Arc<dyn MediaFile>> {
        let failed = |e| in_words(e, "open", &self.path);
        let open = |flags| {
            OpenOptions::new().read(true).write(writable).custom_flags(flags).open(&self.path)
        };
        let mut file = match open(libc::O_DIRECT) {
            // A plain file may lie on a file system that knows no O_DIRECT.
            Err(e) if !self.is_block && e.raw_os_error() == Some(libc::EINVAL) => open(0),
            other => other,
        }
        .map_err(failed)?;
        let bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
        let bytes = bytes - bytes % ALIGN_BYTES as u64;
        let path = self.path.clone();
        Ok(Arc::new(AlignedFile::new(DirectFile { file, path, bytes })))
    }

    fn lock(&self, leased: bool) -> Result<Lock, MediaError> {
        let volume = || self.path.display().to_string();
        let failed = |action, source| MediaError::Io { volume: volume(), action, source };
        // The kernel refuses O_EXCL where a device, or a partition of it, is mounted or built upon,
        // and refuses to mount a device that is open so.
        let flags = if self.is_block { libc::O_EXCL } else { 0 };
        let open =
            || OpenOptions::new().read(true).write(true).custom_flags(flags).open(&self.path);
        let mut tries = 0;
        loop {
            tries += 1;
            let file = match open() {
                Ok(file) => file,
                // Another recorder has it, or it is mounted: the lock's holder tells which.
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                    let holder = File::open(&self.path).ok().and_then(|file| lock_holder(&file));
                    return Err(match holder {
                        Some(_) => MediaError::Locked { volume: volume(), holder },
                        None => MediaError::InUse { volume: volume() },
                    });
                }
                Err(e) => return Err(failed("open it to lock it", e)),
            };
            // A lock belongs to one machine, and a recorder that hangs would keep it.
            if leased {
                return Ok(Lock::new(file));
            }
            match file.try_lock() {
                Ok(()) => return Ok(Lock::new(file)),
                Err(TryLockError::WouldBlock) if self.is_block && tries < LOCK_TRIES => {
                    drop(file);
                    thread::sleep(LOCK_PAUSE);
                }
                Err(TryLockError::WouldBlock) => {
                    let holder = lock_holder(&file);
                    return Err(MediaError::Locked { volume: volume(), holder });
                }
                Err(TryLockError::Error(e)) => return Err(failed("lock it", e)),
            }
        }
    }

    /// Punching a hole gives a file's blocks back. On a device it becomes Write Zeroes and never
    /// Deallocate, so that the device would not learn which blocks are free: it is asked to discard
    /// first, though blocks need not read as zeros then. Refused where neither is there.
    fn discard(&self, offset: u64, bytes: u64) -> io::Result<bool> {
        let file = OpenOptions::new().write(true).open(&self.path);
        let file = file.map_err(|e| in_words(e, "open", &self.path))?;
        if self.is_block && sys::discard(&file, offset, bytes).is_ok() {
            return Ok(true);
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&file, flags, offset, bytes) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
            Err(e) => Err(in_words(e.into(), "discard a part of", &self.path)),
        }
    }

    fn describe(&self) -> String {
        self.path.display().to_string()
    }

    fn path(&self) -> Option<PathBuf> {
        Some(self.path.clone())
    }

    fn number(&self) -> io::Result<u64> {
        let metadata = self.metadata()?;
        let number = if self.is_block {
            metadata.rdev()
        } else {
            metadata.dev().rotate_left(32) ^ metadata.ino()
        };
        Ok(number | NUMBER_MARK)
    }
}

/// A device opened past the page cache.
struct DirectFile {
    file: File,
    path: PathBuf,
    bytes: u64,
}

impl DirectFile {
    fn failed(&self, action: &'static str) -> impl FnOnce(io::Error) -> io::Error {
        move |e| in_words(e, action, &self.path)
    }
}

impl Blocks for DirectFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset).map_err(self.failed("read"))
    }

    fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(data, offset).map_err(self.failed("write"))
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data().map_err(self.failed("sync"))
    }

    fn raw_fd(&self) -> Option<RawFd> {
        Some(self.file.as_raw_fd())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

        /// Whatever offsets and lengths: the device holds what a plain array would.
        #[test]
        fn unaligned_transfers_touch_nothing_else(
            writes in
                prop::collection::vec((0usize..2_600_000, 1usize..1_400_000, any::<u8>()), 1..6)
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("device");
            let mut expected = vec![0x5a; 4 << 20];
            std::fs::write(&path, &expected).unwrap();
            let file = HostDevice::find(&path).unwrap().open(true).unwrap();
            for (offset, bytes, value) in writes {
                let data: Vec<u8> = (0..bytes).map(|n| value.wrapping_add(n as u8)).collect();
                expected[offset..offset + bytes].copy_from_slice(&data);
                file.write_at(&data, offset as u64).unwrap();
                let mut back = vec![0; bytes];
                file.read_exact_at(&mut back, offset as u64).unwrap();
                prop_assert!(back == data);
            }
            prop_assert!(std::fs::read(&path).unwrap() == expected);
        }
    }
}
