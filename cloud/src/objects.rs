//! Places for objects, through OpenDAL: a folder.
//!
//! Calls come from plain threads and wait; a runtime of this place's own does the work. Every call
//! has a limit of time, and what may pass by itself is tried again a few times.
//!
//! A folder has to be there: it is not made, because an archive that is not mounted would then fill
//! the disk below its mount point. Objects are written under a name of their own in `.partial`
//! first, made durable, and renamed.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opendal::layers::{RetryLayer, TimeoutLayer};
use opendal::{ErrorKind, Operator, services};
use tokio::runtime::Runtime;
use wirevault_media::objects::Pieces;
use wirevault_media::{ObjectError, ObjectFault, Objects};

/// What a URL of a folder begins with.
const FOLDER: &str = "file://";
/// Folder within it for what is not whole yet.
const PARTIAL: &str = ".partial";
/// For a call that moves no bytes.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// For a read or a write of some megabytes.
const BYTES_TIMEOUT: Duration = Duration::from_secs(20);
/// Times that a call is tried again.
const RETRIES: usize = 3;

/// Opens the place that a URL names. Nothing is asked of it yet.
///
/// # Errors
/// `InvalidInput`: there is no such kind of place. The operating system gives no descriptor to wait
/// with.
pub fn objects(url: &str) -> io::Result<Arc<dyn Objects>> {
    let Some(path) = url.strip_prefix(FOLDER).filter(|path| path.starts_with('/')) else {
        let what = format!("{url} is no place for objects: write {FOLDER}/ABSOLUTE/PATH");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let root = PathBuf::from(path);
    Ok(Arc::new(Folder { url: url.to_owned(), root, runtime, operator: OnceLock::new() }))
}

/// A folder.
struct Folder {
    url: String,
    root: PathBuf,
    runtime: Runtime,
    /// Made when the folder is first seen.
    operator: OnceLock<Operator>,
}

impl Folder {
    /// Does a call. `act` fails with what OpenDAL says, or with what our own side says.
    fn call<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        doing: &'static str,
        name: &str,
        act: impl FnOnce(Operator) -> F,
    ) -> Result<T, ObjectError> {
        let failed = |fault, why: String| {
            let (place, name) = (self.url.clone(), name.to_owned());
            ObjectError { place, doing, name, fault, why }
        };
        if !self.root.is_dir() {
            let why = "the folder is not there: mount it, or make it".to_owned();
            return Err(failed(ObjectFault::Unreachable, why));
        }
        let operator = match self.operator.get() {
            Some(operator) => operator.clone(),
            None => {
                let made = operator(&self.root);
                let made = made.map_err(|error| failed(fault(&error), error.to_string()))?;
                self.operator.get_or_init(|| made).clone()
            }
        };
        self.runtime.block_on(act(operator)).map_err(|failure| match failure {
            Failure::Place(error) => failed(fault(&error), error.to_string()),
            Failure::Source(error) => failed(ObjectFault::Source, error.to_string()),
        })
    }
}

enum Failure {
    Place(opendal::Error),
    Source(io::Error),
}

impl From<opendal::Error> for Failure {
    fn from(error: opendal::Error) -> Self {
        Self::Place(error)
    }
}

fn operator(root: &std::path::Path) -> opendal::Result<Operator> {
    let folder = services::Fs::default()
        .root(&root.to_string_lossy())
        .atomic_write_dir(&root.join(PARTIAL).to_string_lossy());
    Ok(Operator::new(folder)?
        .layer(TimeoutLayer::new().with_timeout(CALL_TIMEOUT).with_io_timeout(BYTES_TIMEOUT))
        .layer(RetryLayer::new().with_max_times(RETRIES).with_jitter()))
}

fn fault(error: &opendal::Error) -> ObjectFault {
    use std::error::Error;

    let system = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    match (error.kind(), system.map(io::Error::kind)) {
        (_, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)) => ObjectFault::Full,
        (ErrorKind::NotFound, _) => ObjectFault::Missing,
        (ErrorKind::PermissionDenied, _) => ObjectFault::Refused,
        (ErrorKind::ConditionNotMatch | ErrorKind::AlreadyExists, _) => ObjectFault::Exists,
        (ErrorKind::RateLimited, _) => ObjectFault::Unreachable,
        _ if error.is_temporary() => ObjectFault::Unreachable,
        _ => ObjectFault::Failed,
    }
}

impl Objects for Folder {
    fn describe(&self) -> String {
        self.url.clone()
    }

    fn put(&self, name: &str, pieces: &mut Pieces<'_>) -> Result<(), ObjectError> {
        self.call("put", name, async |operator| {
            let mut writer = operator.writer_with(name).if_not_exists(true).await?;
            loop {
                match pieces() {
                    Ok(Some(piece)) => writer.write(piece).await?,
                    Ok(None) => break,
                    Err(error) => {
                        // What is left of it has a name that nobody reads.
                        let _ = writer.abort().await;
                        return Err(Failure::Source(error));
                    }
                }
            }
            writer.close().await?;
            Ok(())
        })
    }

    fn read(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, ObjectError> {
        let wanted = range.end.saturating_sub(range.start);
        let found = self.call("read", name, async |operator| {
            Ok(operator.read_with(name).range(range).await?.to_vec())
        })?;
        if found.len() as u64 == wanted {
            return Ok(found);
        }
        let (place, name, fault) = (self.url.clone(), name.to_owned(), ObjectFault::Failed);
        let why = format!("{} bytes instead of {wanted}", found.len());
        Err(ObjectError { place, doing: "read", name, fault, why })
    }

    fn bytes(&self, name: &str) -> Result<Option<u64>, ObjectError> {
        let found = self.call("look at", name, async |operator| {
            Ok(operator.stat(name).await?.content_length())
        });
        match found {
            Err(error) if error.fault == ObjectFault::Missing => Ok(None),
            found => found.map(Some),
        }
    }

    fn delete(&self, name: &str) -> Result<(), ObjectError> {
        self.call("delete", name, async |operator| Ok(operator.delete(name).await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(objects: &dyn Objects, name: &str, pieces: &[&[u8]]) -> Result<(), ObjectError> {
        let mut pieces = pieces.iter().map(|piece| piece.to_vec());
        objects.put(name, &mut || Ok(pieces.next()))
    }

    #[test]
    fn a_folder_keeps_objects_whole_and_overwrites_none() {
        let dir = tempfile::tempdir().unwrap();
        let objects = objects(&format!("file://{}", dir.path().display())).unwrap();
        assert_eq!(objects.bytes("a/b").unwrap(), None);
        put(&*objects, "a/b", &[b"0123", b"456789"]).unwrap();
        assert_eq!(objects.bytes("a/b").unwrap(), Some(10));
        assert_eq!(objects.read("a/b", 3..7).unwrap(), b"3456");
        assert_eq!(put(&*objects, "a/b", &[b"x"]).unwrap_err().fault, ObjectFault::Exists);
        assert_eq!(std::fs::read(dir.path().join("a/b")).unwrap(), b"0123456789");
        assert!(objects.read("a/b", 8..12).is_err());
        assert_eq!(objects.read("a/c", 0..1).unwrap_err().fault, ObjectFault::Missing);
        objects.delete("a/b").unwrap();
        objects.delete("a/b").unwrap();
        assert_eq!(objects.bytes("a/b").unwrap(), None);
    }

    #[test]
    fn what_breaks_off_leaves_no_object() {
        let dir = tempfile::tempdir().unwrap();
        let objects = objects(&format!("file://{}", dir.path().display())).unwrap();
        let mut pieces = [Ok(Some(vec![1; 100])), Err(io::Error::other("gone"))].into_iter();
        let mut next = || pieces.next().unwrap_or(Ok(None));
        let error = objects.put("a", &mut next).unwrap_err();
        assert_eq!((error.fault, error.why.as_str()), (ObjectFault::Source, "gone"));
        assert_eq!(objects.bytes("a").unwrap(), None);
    }

    #[test]
    fn a_folder_that_is_not_there_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone");
        let objects = objects(&format!("file://{}", gone.display())).unwrap();
        let error = put(&*objects, "a", &[b"x"]).unwrap_err();
        assert!(error.fault == ObjectFault::Unreachable && !gone.exists(), "{error}");
        std::fs::create_dir(&gone).unwrap();
        put(&*objects, "a", &[b"x"]).unwrap();
    }

    #[test]
    fn other_places_are_refused() {
        for url in ["", "/a", "file://a", "s4://b"] {
            assert!(super::objects(url).is_err(), "{url}");
        }
    }
}
