//! Files of a volume, behind two small traits.
//!
//! ```text
//!  storage, query, nvme ──► Media ──► MediaFile
//!                             │
//!             ┌───────────────┼───────────────┐
//!          DirMedia       BlockMedia        SimMedia
//!        a directory   a block device   a disk in memory with faults
//! ```
//!
//! What was moved off the volumes lies in a store of others, behind [`Objects`]; [`ObjectFile`]
//! shows it as a file again.
//!
//! Everything here blocks: tables, headers and recovery go through these calls. Chunks go through
//! the queues of the `nvme` crate, which opens its own descriptor ([`MediaFile::direct_path`]) or,
//! in simulations, talks to the simulated file ([`MediaFile::simulated`]).
//!
//! # Durability
//! A write is durable once a [`MediaFile::sync`] that was submitted after the write's completion
//! has succeeded. A file's name (made or removed) is durable after [`Media::sync_dir`]. After a
//! failed sync nothing written before it may be trusted, whatever later syncs say (that is how
//! Linux behaves); callers must abandon the file. The same goes for files of the same volume that
//! have bytes not synced ([`Media::failed_syncs`]): they were in the same cache.
//!
//! - [`address`]: where objects lie, in words. [`dir`]: [`DirMedia`]. [`block`]: [`BlockMedia`].
//!   [`sim`]: [`SimMedia`], its fault model and the seeded generator. [`error`]: [`MediaError`].
//!   [`notes`]: devices that a process drives itself. [`objects`]: places for objects. `flushes`:
//!   how many of a volume's failed.

#![deny(unsafe_code)]

pub mod address;
pub mod block;
pub mod dir;
pub mod error;
mod flushes;
pub mod notes;
pub mod objects;
pub mod sim;

use std::any::Any;
use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use address::{Address, AddressError, Bucket, place_of};
pub use block::BlockMedia;
pub use block::lease::{Claim, Fenced, Lease, LeaseRecord, LeaseState, Role, fenced};
pub use dir::{DirMedia, is_of_place};
pub use error::MediaError;
pub use objects::{ObjectError, ObjectFault, ObjectFile, Objects};
pub use sim::{Fault, SimFile, SimMedia, SimObjects, Survival, Trigger};

/// File that carries a volume's superblocks, and the single writer's lock.
pub const VOLUME_FILE: &str = "volume.wv";

/// File of what the segments of a volume may hold, so that a question need not open each.
pub const DIGEST_FILE: &str = "digests.wv";

/// Bytes a file name may have (ext4 and XFS allow no more).
pub const NAME_BYTES_MAX: usize = 255;

/// How [`Media::open`] treats a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// The file must exist; only reads are allowed.
    Read,
    /// The file must exist.
    ReadWrite,
    /// The file is made (empty) when it is missing; an existing one keeps its content.
    Create,
    /// The file is made; an existing one is `AlreadyExists`.
    CreateNew,
}

/// The files of one volume: flat names, no folders.
///
/// Names are 1 to 255 of `[A-Za-z0-9._-]` and do not start with a dot; others are refused with
/// `InvalidInput`.
pub trait Media: Send + Sync {
    /// Opens a file. Errors: `NotFound`, `AlreadyExists`, `InvalidInput` (name), and the system's
    /// own.
    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Arc<dyn MediaFile>>;

    /// Removes a name; open handles stay usable. Durable after [`Media::sync_dir`].
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Names of all regular files, sorted. Names that [`check_name`] refuses are left out.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes the names (made and removed so far) durable.
    fn sync_dir(&self) -> io::Result<()>;

    /// Takes the single writer's lock, a lock on [`VOLUME_FILE`], which is made (empty) when it is
    /// missing. Errors: [`MediaError::Locked`] when somebody holds it, this process included.
    fn lock(&self) -> Result<Lock, MediaError>;

    /// The volume's place in words, for messages.
    fn describe(&self) -> String;

    /// Bytes that may still be allocated by this user.
    fn free_bytes(&self) -> io::Result<u64>;

    /// Bytes of the file system or device, whoever uses them.
    fn total_bytes(&self) -> io::Result<u64>;

    /// A number that volumes have in common whose bytes are free on the same file system.
    fn file_system(&self) -> io::Result<u64>;

    /// Whether the volume is a whole device, cut into places of one size: all its bytes are for the
    /// volume, and a file never takes less than its place.
    fn is_device(&self) -> bool {
        false
    }

    /// What became of places that were given up since it was opened. A directory's file system
    /// keeps that to itself.
    fn erased(&self) -> Erased {
        Erased::default()
    }

    /// Whether two machines may have the volume. Then it is written under a lease only.
    fn is_shared(&self) -> bool {
        false
    }

    /// The lease under which this process writes a shared volume.
    fn lease(&self) -> Option<Arc<Lease>> {
        None
    }

    /// How many syncs of its files and names have failed since it was opened. The device may have
    /// dropped whatever it had not made durable then, of all files, and later syncs say nothing of
    /// that. Syncs through queues are told by these.
    fn failed_syncs(&self) -> u64;

    /// What stands there that is no volume's and would be lost, in words. Only devices can hold
    /// such things: in a directory other files are left alone.
    fn foreign(&self) -> io::Result<Option<&'static str>> {
        Ok(None)
    }

    /// Makes room for a new volume of that shape, whose file is then there and empty. A directory
    /// needs nothing. The caller holds the lock.
    fn lay_out(&self, _shape: &Shape) -> io::Result<()> {
        Ok(())
    }
}

/// Places that were given up, by what a few of their blocks read as afterwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    /// Zeros only.
    pub zeros: u64,
    /// Something else, although the device took the order.
    pub other: u64,
    /// They could not be read.
    pub unread: u64,
    /// The device cannot take such orders: the bytes are as they were.
    pub kept: u64,
}

/// Sizes of a new volume. See [`Media::lay_out`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of [`VOLUME_FILE`].
    pub volume_bytes: u64,
    /// Bytes of [`DIGEST_FILE`] at most; 0 if there is to be none.
    pub digests_bytes: u64,
    /// Bytes of a full segment.
    pub place_bytes: u64,
    /// Segments that the volume has places for.
    pub places: u32,
}

/// Takes the volume at a path: a directory, a block device, or a plain file standing for one.
///
/// # Errors
/// As [`DirMedia::open`] and [`BlockMedia::open`]; `Driven`, `Left` if a process has the device
/// past the kernel, or had it.
pub fn open_volume(path: &Path) -> Result<Arc<dyn Media>, MediaError> {
    if !path.exists()
        && let Some(error) = notes::taken(Path::new(notes::NOTES), path)
    {
        return Err(error);
    }
    match path.is_dir() || !path.exists() {
        true => Ok(Arc::new(DirMedia::open(path)?)),
        false => Ok(Arc::new(BlockMedia::open(path)?)),
    }
}

/// One open file of a volume. Calls may come from several threads.
pub trait MediaFile: Send + Sync {
    /// Name within the volume.
    fn name(&self) -> &str;

    /// Reads up to `buf.len()` bytes at `offset`; 0 at or behind the end.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Fills `buf` from `offset`. Errors: `UnexpectedEof` when the file ends before.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            match self.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        format!(
                            "{} ends before byte {} (wanted {} bytes at {offset})",
                            self.name(),
                            offset + buf.len() as u64,
                            buf.len()
                        ),
                    ));
                }
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Writes all of `data` at `offset`, growing the file when needed. Volatile until
    /// [`MediaFile::sync`].
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;

    /// Makes every write that completed before this call durable, with the length (`fdatasync`).
    fn sync(&self) -> io::Result<()>;

    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether the length is 0.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Cuts or grows (with zeros) the file. Durable after [`MediaFile::sync`].
    fn set_len(&self, len_bytes: u64) -> io::Result<()>;

    /// Reserves space so that the first `len_bytes` can be written without running out of it; grows
    /// the length to that (zeros), never shrinks it. Durable after [`MediaFile::sync`].
    fn allocate(&self, len_bytes: u64) -> io::Result<()>;

    /// The descriptor, if there is one. It lives as long as this object.
    fn raw_fd(&self) -> Option<RawFd>;

    /// Path under which a queue may open the same file again with its own flags (`O_DIRECT`).
    fn direct_path(&self) -> Option<PathBuf>;

    /// Where the file's bytes lie on a device, if it is a fixed part of one and no file system
    /// stands between. Queues that speak to the device itself write there.
    fn extent(&self) -> Option<Extent> {
        None
    }

    /// The simulated file behind this object, for queues that delay and reorder completions.
    fn simulated(&self) -> Option<&SimFile> {
        None
    }
}

/// A fixed part of a device. See [`MediaFile::extent`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The device's node, such as `/dev/nvme0n1`, or a link to it.
    pub device: PathBuf,
    /// Byte of the device at which the file begins. A multiple of 4096.
    pub start: u64,
    /// Bytes that belong to the file; what lies behind them belongs to others. A multiple of 4096.
    pub bytes: u64,
}

/// The single writer's lock; dropping it releases the volume.
pub struct Lock {
    _guard: Box<dyn Any + Send + Sync>,
}

impl Lock {
    /// Wraps whatever releases the lock when it is dropped. For implementers of [`Media`].
    pub fn new(guard: impl Any + Send + Sync) -> Self {
        Self { _guard: Box::new(guard) }
    }
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lock")
    }
}

/// Checks a file name against the rule of [`Media`]. Errors: `InvalidInput`, naming the fault.
pub fn check_name(name: &str) -> io::Result<()> {
    let fault = if name.is_empty() {
        "is empty"
    } else if name.len() > NAME_BYTES_MAX {
        "is longer than 255 bytes"
    } else if name.starts_with('.') {
        "starts with a dot"
    } else if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        "has characters other than A-Z a-z 0-9 . _ -"
    } else {
        return Ok(());
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("file name {name:?} {fault}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_the_volume() {
        for bad in ["", ".", "..", "../x", "a/b", "a\0", ".hidden", "ä", &"x".repeat(256)] {
            assert_eq!(check_name(bad).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{bad:?}");
        }
        for good in ["volume.wv", "seg-000001.pcapng", "A_b", &"x".repeat(255)] {
            check_name(good).unwrap();
        }
    }
}
