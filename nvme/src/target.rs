//! A file opened the way queues want it: past the page cache, if the file system allows that.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use wirevault_media::MediaFile;

use crate::error::NvmeError;

pub(crate) struct Target {
    /// Our own descriptor, opened with O_DIRECT.
    direct: Option<File>,
    /// The volume's file: used when there is no own descriptor, and kept open in any case.
    media: Arc<dyn MediaFile>,
    /// Where the file lies behind the descriptor: a part of a device has that of the device.
    part: Part,
}

/// Bytes of a descriptor that belong to a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    start: u64,
    bytes: u64,
}

impl Part {
    fn of(media: &dyn MediaFile) -> Self {
        let whole = Self { start: 0, bytes: u64::MAX };
        media.extent().map_or(whole, |it| Self { start: it.start, bytes: it.bytes })
    }

    /// Offset behind the descriptor. What lies behind the part belongs to another file.
    pub(crate) fn place(self, offset: u64, len_bytes: usize) -> Result<u64, NvmeError> {
        let end = offset.checked_add(len_bytes as u64);
        match end.is_some_and(|end| end <= self.bytes) {
            true => Ok(self.start + offset),
            false => Err(NvmeError::Beyond { offset, len_bytes, bytes: self.bytes }),
        }
    }
}

impl Target {
    /// Opens a file; `why_not` gets the reason when O_DIRECT was wanted and refused. Errors:
    /// anything else.
    pub(crate) fn open(
        backend: &'static str,
        media: &Arc<dyn MediaFile>,
        want_direct: bool,
        mut why_not: impl FnMut(String),
    ) -> Result<Self, NvmeError> {
        let part = Part::of(&**media);
        let buffered = Self { direct: None, media: Arc::clone(media), part };
        if !want_direct {
            return Ok(buffered);
        }
        let Some(path) = media.direct_path() else {
            why_not("files without a path are written through the page cache".to_owned());
            return Ok(buffered);
        };
        let failed = |source| NvmeError::Open { backend, file: path.display().to_string(), source };
        match OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(&path) {
            Ok(file) => {
                same_file(&file, media.raw_fd()).map_err(failed)?;
                Ok(Self { direct: Some(file), media: Arc::clone(media), part })
            }
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
                let folder = path.parent().unwrap_or(Path::new("/")).display();
                why_not(format!(
                    "the file system of {folder} refused O_DIRECT ({e}); \
                     writes go through the page cache"
                ));
                Ok(buffered)
            }
            Err(e) => Err(failed(e)),
        }
    }

    pub(crate) fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    pub(crate) fn fd(&self) -> Option<RawFd> {
        self.direct.as_ref().map(AsRawFd::as_raw_fd).or_else(|| self.media.raw_fd())
    }

    pub(crate) fn part(&self) -> Part {
        self.part
    }

    pub(crate) fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        match &self.direct {
            Some(file) => {
                let place = self.part.place(offset, data.len()).map_err(io::Error::other)?;
                file.write_all_at(data, place)
            }
            None => self.media.write_at(data, offset),
        }
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        match &self.direct {
            Some(file) => file.sync_data(),
            None => self.media.sync(),
        }
    }
}

/// Fails if the path no longer leads to the file that the volume has open. Without /proc this
/// cannot be checked.
fn same_file(ours: &File, theirs: Option<RawFd>) -> io::Result<()> {
    let Some(fd) = theirs else { return Ok(()) };
    let Ok(theirs) = fs::metadata(format!("/proc/self/fd/{fd}")) else { return Ok(()) };
    let ours = ours.metadata()?;
    if (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "the path leads to another file by now"))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use wirevault_media::{DirMedia, Media, OpenMode};

    use super::*;

    /// A file under a path of its own, with the rest left out.
    struct Odd {
        file: File,
        path: Option<PathBuf>,
    }

    impl MediaFile for Odd {
        fn name(&self) -> &str {
            "odd"
        }
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            self.file.read_at(buf, offset)
        }
        fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
            self.file.write_all_at(data, offset)
        }
        fn sync(&self) -> io::Result<()> {
            self.file.sync_data()
        }
        fn len(&self) -> io::Result<u64> {
            Ok(self.file.metadata()?.len())
        }
        fn set_len(&self, len_bytes: u64) -> io::Result<()> {
            self.file.set_len(len_bytes)
        }
        fn allocate(&self, len_bytes: u64) -> io::Result<()> {
            self.file.set_len(len_bytes)
        }
        fn raw_fd(&self) -> Option<RawFd> {
            Some(self.file.as_raw_fd())
        }
        fn direct_path(&self) -> Option<PathBuf> {
            self.path.clone()
        }
    }

    fn open(media: Arc<dyn MediaFile>) -> (Result<Target, NvmeError>, Vec<String>) {
        let mut why_not = Vec::new();
        let target = Target::open("test", &media, true, |text| why_not.push(text));
        (target, why_not)
    }

    #[test]
    fn refused_o_direct_falls_back_and_says_so() {
        // procfs refuses O_DIRECT on every kernel.
        let path = PathBuf::from("/proc/self/comm");
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let (target, why_not) = open(Arc::new(Odd { file, path: Some(path) }));
        assert!(!target.unwrap().is_direct());
        assert!(
            why_not[0].contains("O_DIRECT") && why_not[0].contains("page cache"),
            "{why_not:?}"
        );
    }

    #[test]
    fn files_without_path_are_buffered() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("f")).unwrap();
        let (target, why_not) = open(Arc::new(Odd { file, path: None }));
        assert!(!target.unwrap().is_direct());
        assert_eq!(why_not.len(), 1);
    }

    #[test]
    fn replaced_file_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let media = DirMedia::open(dir.path()).unwrap();
        let file = media.open("a", OpenMode::Create).unwrap();
        media.remove("a").unwrap();
        let (gone, _) = open(Arc::clone(&file));
        assert!(matches!(gone, Err(NvmeError::Open { .. })));
        media.open("a", OpenMode::CreateNew).unwrap();
        let (replaced, why_not) = open(file);
        // Where O_DIRECT is refused, the volume's own descriptor is used and cannot be mistaken.
        assert!(replaced.is_err() || !why_not.is_empty());
    }
}
