//! Places for objects, through OpenDAL: a folder, or a bucket of S3.
//!
//! Calls come from plain threads and wait; a runtime of this place's own does the work. Every call
//! has a limit of time, and what may pass by itself is tried again a few times.
//!
//! Files: `folder`, `s3`. Here is what both share.

mod folder;
#[cfg(feature = "aws")]
mod s3;

use std::error::Error;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opendal::layers::{RetryLayer, TimeoutLayer};
use opendal::{ErrorKind, Operator};
use tokio::runtime::Runtime;
#[cfg(feature = "aws")]
use wirevault_media::Bucket;
use wirevault_media::objects::Pieces;
use wirevault_media::{Address, ObjectError, ObjectFault, Objects, place_of};

/// For a call that moves no bytes.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// For a read or a write of some megabytes.
const BYTES_TIMEOUT: Duration = Duration::from_secs(15);
/// Times that a call is tried again. A stop waits for the call that is on its way: 50 s at most,
/// of the 90 that the unit gives it.
const RETRIES: usize = 2;
/// Bytes that are sent at a time. S3 takes no piece below 5 MiB but the last one, and 10,000 of
/// them: an object may have 78 GiB.
const PART_BYTES: usize = 8 << 20;

/// Opens the place that an address names. Nothing is asked of it yet.
///
/// # Errors
/// `InvalidInput`: it is no address. `Unsupported`: this build knows no such place. The operating
/// system gives no descriptor to wait with.
pub fn objects(address: &str) -> io::Result<Arc<dyn Objects>> {
    let parsed: Result<Address, _> = address.parse();
    let parsed = parsed.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let kind = match parsed {
        Address::Folder(root) => Kind::Folder(root),
        #[cfg(feature = "aws")]
        Address::Bucket(bucket) => Kind::Bucket(bucket),
        #[cfg(not(feature = "aws"))]
        Address::Bucket(_) => {
            let what = format!("{address}: this build has no S3; take one with the feature `aws`");
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let name = place_of(address).to_owned();
    Ok(Arc::new(Place { name, kind, runtime, operator: OnceLock::new() }))
}

/// A place.
struct Place {
    name: String,
    kind: Kind,
    runtime: Runtime,
    /// Made when the place is first asked.
    operator: OnceLock<Operator>,
}

/// Places that this build knows.
enum Kind {
    Folder(PathBuf),
    #[cfg(feature = "aws")]
    Bucket(Bucket),
}

/// Why a place cannot be asked.
struct Unopened {
    fault: ObjectFault,
    why: String,
}

impl Unopened {
    fn new(fault: ObjectFault, why: &str) -> Self {
        Self { fault, why: why.to_owned() }
    }
}

impl From<opendal::Error> for Unopened {
    fn from(error: opendal::Error) -> Self {
        Self { fault: fault(&error), why: why(&error) }
    }
}

impl Place {
    /// Does a call. `act` fails with what OpenDAL says, or with what our own side says.
    fn call<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        doing: &'static str,
        name: &str,
        act: impl FnOnce(Operator) -> F,
    ) -> Result<T, ObjectError> {
        let failed = |fault, why: String| {
            let (place, name) = (self.name.clone(), name.to_owned());
            ObjectError { place, doing, name, fault, why }
        };
        self.runtime.block_on(async {
            let operator = self.operator().await;
            let operator = operator.map_err(|unopened| failed(unopened.fault, unopened.why))?;
            act(operator).await.map_err(|failure| match failure {
                Failure::Place(error) => failed(fault(&error), why(&error)),
                Failure::Source(error) => failed(ObjectFault::Source, error.to_string()),
            })
        })
    }

    async fn operator(&self) -> Result<Operator, Unopened> {
        match &self.kind {
            Kind::Folder(root) => folder::is_there(root)?,
            #[cfg(feature = "aws")]
            Kind::Bucket(_) => {}
        }
        if let Some(operator) = self.operator.get() {
            return Ok(operator.clone());
        }
        let operator = match &self.kind {
            Kind::Folder(root) => folder::operator(root)?,
            #[cfg(feature = "aws")]
            Kind::Bucket(bucket) => s3::operator(bucket).await?,
        };
        let timeouts = TimeoutLayer::new().with_timeout(CALL_TIMEOUT);
        let operator = operator
            .layer(timeouts.with_io_timeout(BYTES_TIMEOUT))
            .layer(RetryLayer::new().with_max_times(RETRIES).with_jitter());
        Ok(self.operator.get_or_init(|| operator).clone())
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

fn fault(error: &opendal::Error) -> ObjectFault {
    let system = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    match (error.kind(), system.map(io::Error::kind)) {
        (_, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)) => ObjectFault::Full,
        (ErrorKind::NotFound, _) => ObjectFault::Missing,
        // A bucket that is not there, to OpenDAL.
        (ErrorKind::ConfigInvalid, _) => ObjectFault::NoPlace,
        (ErrorKind::PermissionDenied, _) => ObjectFault::Refused,
        #[cfg(feature = "aws")]
        _ if s3::has_no_credentials(error) => ObjectFault::NoCredentials,
        (ErrorKind::ConditionNotMatch | ErrorKind::AlreadyExists, _) => ObjectFault::Exists,
        #[cfg(feature = "aws")]
        _ if s3::came_in_wrong(error) => ObjectFault::Failed,
        (ErrorKind::RateLimited, _) => ObjectFault::Unreachable,
        // It was temporary each time it was tried.
        _ if error.is_temporary() || error.is_persistent() => ObjectFault::Unreachable,
        _ => ObjectFault::Failed,
    }
}

/// What a person needs of an error: no list of headers.
fn why(error: &opendal::Error) -> String {
    #[cfg(feature = "aws")]
    if s3::has_no_credentials(error) {
        // Which place was found how the signer keeps to itself.
        return crate::client::LOOKED_FOR.to_owned();
    }
    let (mut said, mut next) = (error.message().to_owned(), error.source());
    while let Some(cause) = next {
        said += &format!(": {cause}");
        next = cause.source();
    }
    said
}

impl Objects for Place {
    fn describe(&self) -> String {
        self.name.clone()
    }

    fn put(&self, name: &str, pieces: &mut Pieces<'_>) -> Result<(), ObjectError> {
        self.call("put", name, async |operator| {
            let writer = operator.writer_with(name).if_not_exists(true).chunk(PART_BYTES);
            let mut writer = writer.await?;
            let sent = async {
                loop {
                    match pieces() {
                        Ok(Some(piece)) => writer.write(piece).await?,
                        Ok(None) => return Ok(writer.close().await.map(drop)?),
                        Err(error) => return Err(Failure::Source(error)),
                    }
                }
            };
            let sent = sent.await;
            if sent.is_err() {
                // What is left of it has a name that nobody reads, or none.
                let _ = writer.abort().await;
            }
            sent
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
        let (place, name, fault) = (self.name.clone(), name.to_owned(), ObjectFault::Failed);
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
        assert!(error.fault == ObjectFault::NoPlace && !gone.exists(), "{error}");
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
