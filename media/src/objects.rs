//! Objects in a store of others: put once and whole, read in ranges, deleted. It is what the tier
//! needs of S3, or of a folder on another machine's disk, and nothing more.
//!
//! An object is never changed: [`Objects::put`] refuses a name that is taken, and whoever reads a
//! range gets it in full or an error. [`ObjectFile`] shows one as a [`MediaFile`] that cannot be
//! written, so that what reads segments does not know where they lie.

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::MediaFile;

/// What an object is made of, piece by piece; nothing at its end.
pub type Pieces<'a> = dyn FnMut() -> io::Result<Option<Vec<u8>>> + Send + 'a;

/// A place for objects. Every call waits until the service has answered or given up.
pub trait Objects: Send + Sync {
    /// The place in words.
    fn describe(&self) -> String;

    /// Makes an object of all pieces: it is there whole on return, and not at all after an error.
    ///
    /// # Errors
    /// `Exists` if the name is taken, `Source` if the pieces end in an error, and what else the
    /// service says.
    fn put(&self, name: &str, pieces: &mut Pieces<'_>) -> Result<(), ObjectError>;

    /// These bytes of an object.
    ///
    /// # Errors
    /// `Missing`; `Failed` if the object ends before; what else the service says.
    fn read(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, ObjectError>;

    /// Bytes of an object; `None` if there is none.
    ///
    /// # Errors
    /// What the service says.
    fn bytes(&self, name: &str) -> Result<Option<u64>, ObjectError>;

    /// Deletes an object. There may be none.
    ///
    /// # Errors
    /// What the service says.
    fn delete(&self, name: &str) -> Result<(), ObjectError>;
}

/// A call that a place for objects did not do.
#[derive(Debug, thiserror::Error)]
#[error("{place}: cannot {doing} {name}: {fault}{}", detail(why))]
pub struct ObjectError {
    /// The place in words.
    pub place: String,
    /// What was tried.
    pub doing: &'static str,
    /// Name of the object.
    pub name: String,
    /// Whose fault it is.
    pub fault: ObjectFault,
    /// What the service says.
    pub why: String,
}

/// Why a call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectFault {
    /// The name is taken.
    Exists,
    /// There is no such object.
    Missing,
    /// The place itself is not there: a folder that is not mounted, a bucket of another name.
    NoPlace,
    /// The service does not let us.
    Refused,
    /// There is nothing to sign with, so nothing was sent.
    NoCredentials,
    /// There is no room.
    Full,
    /// Nobody answers in time.
    Unreachable,
    /// What was to be put cannot be read on our side.
    Source,
    /// Anything else.
    Failed,
}

impl fmt::Display for ObjectFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exists => "there is an object of that name",
            Self::Missing => "there is no such object",
            Self::NoPlace => "there is no such place",
            Self::Refused => "access is refused; look at credentials, policy and mode",
            Self::NoCredentials => "there are no credentials; give this machine some",
            Self::Full => "there is no room",
            Self::Unreachable => "nobody answers in time",
            Self::Source => "what was to be put cannot be read",
            Self::Failed => "it failed",
        })
    }
}

impl From<ObjectError> for io::Error {
    fn from(error: ObjectError) -> Self {
        let kind = match error.fault {
            ObjectFault::Missing => io::ErrorKind::NotFound,
            ObjectFault::Refused | ObjectFault::NoCredentials => io::ErrorKind::PermissionDenied,
            ObjectFault::Unreachable => io::ErrorKind::TimedOut,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

impl ObjectError {
    /// The error of a place for objects behind one of the system, if it is one.
    pub fn behind(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

fn detail(why: &str) -> String {
    if why.is_empty() { String::new() } else { format!(" ({why})") }
}

/// An object as a file that cannot be written.
pub struct ObjectFile {
    objects: Arc<dyn Objects>,
    name: String,
    bytes: u64,
    taken: Arc<AtomicU64>,
}

impl ObjectFile {
    /// The object of that name, which is known to have so many bytes. Nothing is asked yet.
    pub fn new(objects: Arc<dyn Objects>, name: &str, bytes: u64) -> Self {
        Self { objects, name: name.to_owned(), bytes, taken: Arc::default() }
    }

    /// Counts the bytes that were read through this file.
    pub fn taken(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.taken)
    }
}

impl MediaFile for ObjectFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let wanted = self.bytes.saturating_sub(offset).min(buf.len() as u64);
        if wanted == 0 {
            return Ok(0);
        }
        let found = self.objects.read(&self.name, offset..offset + wanted)?;
        self.taken.fetch_add(found.len() as u64, Ordering::Relaxed);
        let bytes = found.len().min(buf.len());
        buf[..bytes].copy_from_slice(&found[..bytes]);
        Ok(bytes)
    }

    fn write_at(&self, _data: &[u8], _offset: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes)
    }

    fn set_len(&self, _len_bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn allocate(&self, _len_bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn raw_fd(&self) -> Option<RawFd> {
        None
    }

    fn direct_path(&self) -> Option<PathBuf> {
        None
    }
}

#[cfg(test)]
mod tests {
    use crate::sim::SimObjects;

    use super::*;

    fn pieces(all: &[&[u8]]) -> impl FnMut() -> io::Result<Option<Vec<u8>>> + Send {
        let mut all: Vec<Vec<u8>> = all.iter().rev().map(|piece| piece.to_vec()).collect();
        move || Ok(all.pop())
    }

    #[test]
    fn an_object_reads_like_a_file_that_cannot_be_written() {
        let objects = SimObjects::new();
        objects.put("a/b", &mut pieces(&[b"0123", b"456789"])).unwrap();
        let again = objects.put("a/b", &mut pieces(&[b"other"])).unwrap_err();
        assert_eq!(again.fault, ObjectFault::Exists);
        let file = ObjectFile::new(Arc::new(objects), "a/b", 10);
        let mut buf = [0; 4];
        file.read_exact_at(&mut buf, 3).unwrap();
        assert_eq!((&buf, file.taken().load(Ordering::Relaxed)), (b"3456", 4));
        assert_eq!(file.read_at(&mut buf, 8).unwrap(), 2);
        assert_eq!(file.read_at(&mut buf, 10).unwrap(), 0);
        assert!(file.write_at(b"x", 0).is_err() && file.set_len(0).is_err());
    }

    #[test]
    fn what_a_service_says_is_found_behind_an_error_of_the_system() {
        let objects = SimObjects::new();
        let error = io::Error::from(objects.read("none", 0..1).unwrap_err());
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert_eq!(ObjectError::behind(&error).unwrap().fault, ObjectFault::Missing);
        assert!(ObjectError::behind(&io::Error::other("x")).is_none());
    }
}
