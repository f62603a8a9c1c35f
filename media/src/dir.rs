//! A volume that is a directory of an ordinary file system.
//!
//! The writer's lock is `flock` on `volume.wv`: the kernel releases it when the process ends,
//! however it ends, and a second open in the same process is refused as well. Advisory locks of
//! this kind do not reach over NFS clients.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::flushes::Flushes;
use crate::{Lock, Media, MediaError, MediaFile, OpenMode, VOLUME_FILE, check_name, fenced};

/// Mode of the directory: captures are for their owner only.
const DIR_MODE: u32 = 0o700;
/// Mode of the files: the owner writes, the owner's group may read (query users).
const FILE_MODE: u32 = 0o640;

/// A directory as a volume.
#[derive(Clone, Debug)]
pub struct DirMedia {
    path: PathBuf,
    flushes: Flushes,
}

impl DirMedia {
    /// Takes an existing directory. Errors: it is missing or not a directory.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, MediaError> {
        let path = path.into();
        let volume = || path.display().to_string();
        let metadata = fs::metadata(&path).map_err(|source| MediaError::Io {
            volume: volume(),
            action: "open the directory",
            source,
        })?;
        if !metadata.is_dir() {
            return Err(MediaError::NotADirectory { volume: volume() });
        }
        // An absolute path keeps meaning the same when the process changes its directory.
        let path = fs::canonicalize(&path).map_err(|source| MediaError::Io {
            volume: volume(),
            action: "resolve the path",
            source,
        })?;
        Ok(Self { path, flushes: Flushes::default() })
    }

    /// Makes the directory (mode 0700, with missing parents) unless it exists, then opens it.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, MediaError> {
        let path = path.into();
        fs::DirBuilder::new().recursive(true).mode(DIR_MODE).create(&path).map_err(|source| {
            MediaError::Io {
                volume: path.display().to_string(),
                action: "make the directory",
                source,
            }
        })?;
        let media = Self::open(path)?;
        if let Some(parent) = media.path.parent() {
            // The directory's own name must survive a power cut as well; an unreadable parent is
            // not our business.
            let _ = File::open(parent).and_then(|dir| dir.sync_all());
        }
        Ok(media)
    }

    /// The directory, as an absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn statvfs(&self) -> io::Result<rustix::fs::StatVfs> {
        rustix::fs::statvfs(&self.path).map_err(|e| in_words(e.into(), "stat", &self.path))
    }

    fn open_file(&self, name: &str, mode: OpenMode) -> io::Result<File> {
        check_name(name)?;
        let mut options = OpenOptions::new();
        options.read(true).mode(FILE_MODE);
        match mode {
            OpenMode::Read => {}
            OpenMode::ReadWrite => _ = options.write(true),
            OpenMode::Create => _ = options.write(true).create(true).truncate(false),
            OpenMode::CreateNew => _ = options.write(true).create_new(true),
        }
        options.open(self.path.join(name)).map_err(|e| in_words(e, "open", &self.path.join(name)))
    }
}

impl Media for DirMedia {
    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Arc<dyn MediaFile>> {
        let file = self.open_file(name, mode)?;
        let (path, flushes) = (self.path.join(name), self.flushes.clone());
        Ok(Arc::new(DirFile { file, path, name: name.to_owned(), flushes }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        check_name(name)?;
        let path = self.path.join(name);
        fs::remove_file(&path).map_err(|e| in_words(e, "remove", &path))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(|e| in_words(e, "list", &self.path))? {
            let entry = entry.map_err(|e| in_words(e, "list", &self.path))?;
            if !entry.file_type()?.is_file() {
                continue;
            }
            if let Ok(name) = entry.file_name().into_string()
                && check_name(&name).is_ok()
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.path)
            .and_then(|dir| self.flushes.note(dir.sync_all()))
            .map_err(|e| in_words(e, "sync", &self.path))
    }

    fn lock(&self) -> Result<Lock, MediaError> {
        let failed = |action, source| MediaError::Io { volume: self.describe(), action, source };
        let file = self
            .open_file(VOLUME_FILE, OpenMode::Create)
            .map_err(|e| failed("open volume.wv to lock it", e))?;
        match file.try_lock() {
            Ok(()) => Ok(Lock::new(file)),
            Err(TryLockError::WouldBlock) => {
                Err(MediaError::Locked { volume: self.describe(), holder: lock_holder(&file) })
            }
            Err(TryLockError::Error(e)) => Err(failed("lock volume.wv", e)),
        }
    }

    fn describe(&self) -> String {
        self.path.display().to_string()
    }

    fn failed_syncs(&self) -> u64 {
        self.flushes.failed()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = self.statvfs()?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn total_bytes(&self) -> io::Result<u64> {
        let stat = self.statvfs()?;
        Ok(stat.f_blocks.saturating_mul(stat.f_frsize))
    }

    fn file_system(&self) -> io::Result<u64> {
        let metadata = std::fs::metadata(&self.path);
        Ok(metadata.map_err(|e| in_words(e, "stat", &self.path))?.dev())
    }
}

struct DirFile {
    file: File,
    path: PathBuf,
    name: String,
    flushes: Flushes,
}

impl DirFile {
    fn failed(&self, action: &'static str) -> impl FnOnce(io::Error) -> io::Error {
        move |e| in_words(e, action, &self.path)
    }
}

impl MediaFile for DirFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset).map_err(self.failed("read"))
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(data, offset).map_err(self.failed("write"))
    }

    fn sync(&self) -> io::Result<()> {
        self.flushes.note(self.file.sync_data()).map_err(self.failed("sync"))
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata().map_err(self.failed("stat"))?.len())
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.file.set_len(len_bytes).map_err(self.failed("set the length of"))
    }

    fn allocate(&self, len_bytes: u64) -> io::Result<()> {
        if len_bytes == 0 {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, len_bytes) {
            Ok(()) => Ok(()),
            // File systems without reservation (NFS 3, some FUSE): the length at least is what the
            // caller expects.
            Err(Errno::OPNOTSUPP) if self.len()? < len_bytes => self.set_len(len_bytes),
            Err(Errno::OPNOTSUPP) => Ok(()),
            Err(e) => Err(in_words(e.into(), "allocate space for", &self.path)),
        }
    }

    fn raw_fd(&self) -> Option<RawFd> {
        Some(self.file.as_raw_fd())
    }

    fn direct_path(&self) -> Option<PathBuf> {
        Some(self.path.clone())
    }
}

/// A failed system call that keeps its kind and errno and gains the operation and the path.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
struct FileError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

pub(crate) fn in_words(source: io::Error, action: &'static str, path: &Path) -> io::Error {
    io::Error::new(source.kind(), FileError { action, path: path.to_owned(), source })
}

/// Whether a failed write tells of its place on the device, and not of the device or the system.
/// These are what Linux makes of a device's answers about blocks (`BLK_STS_*`, block/blk-core.c);
/// what a driver of our own hears has no number of the system's.
pub fn is_of_place(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<FileError>());
    let error = inner.map_or(error, |inner| &inner.source);
    match error.raw_os_error() {
        Some(number) => [libc::EIO, libc::ENODATA, libc::EILSEQ, libc::EREMOTEIO].contains(&number),
        None => error.kind() == io::ErrorKind::Other && fenced(error).is_none(),
    }
}

/// Process that holds a `flock` on this file, out of /proc/locks (see proc_locks(5)).
///
/// Lines read `1: FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF`: pid, then device (major:minor,
/// hex) and inode. On file systems with anonymous devices (btrfs) the numbers differ from `stat`
/// and nobody is found.
pub(crate) fn lock_holder(file: &File) -> Option<u32> {
    let metadata = file.metadata().ok()?;
    let dev = metadata.dev();
    let place =
        format!("{:02x}:{:02x}:{}", rustix::fs::major(dev), rustix::fs::minor(dev), metadata.ino());
    holder_in(&fs::read_to_string("/proc/locks").ok()?, &place)
}

fn holder_in(locks: &str, place: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip_while(|w| *w != "FLOCK").skip(3);
        let pid = words.next()?.parse::<u32>().ok()?;
        (words.next()? == place && pid != 0).then_some(pid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume() -> (tempfile::TempDir, DirMedia) {
        let dir = tempfile::tempdir().unwrap();
        let media = DirMedia::create(dir.path().join("v0")).unwrap();
        (dir, media)
    }

    #[test]
    fn files_keep_what_was_written() {
        let (_dir, media) = volume();
        let file = media.open("a", OpenMode::CreateNew).unwrap();
        file.allocate(8192).unwrap();
        assert_eq!(file.len().unwrap(), 8192);
        file.allocate(4096).unwrap();
        assert_eq!(file.len().unwrap(), 8192, "allocate never shrinks");
        file.write_at(b"hello", 8190).unwrap();
        file.sync().unwrap();
        media.sync_dir().unwrap();
        let again = media.open("a", OpenMode::Read).unwrap();
        let mut buf = [9; 7];
        again.read_exact_at(&mut buf, 8188).unwrap();
        assert_eq!(&buf, b"\0\0hello");
        let e = again.read_exact_at(&mut buf, 8190).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::UnexpectedEof);
        assert!(again.write_at(b"x", 0).is_err(), "opened to read only");
        file.set_len(1).unwrap();
        assert_eq!(again.len().unwrap(), 1);
    }

    #[test]
    fn modes_say_what_must_exist() {
        let (_dir, media) = volume();
        let kind = |name, mode| media.open(name, mode).err().map(|e| e.kind());
        assert_eq!(kind("a", OpenMode::Read), Some(io::ErrorKind::NotFound));
        assert_eq!(kind("a", OpenMode::ReadWrite), Some(io::ErrorKind::NotFound));
        assert_eq!(kind("a", OpenMode::Create), None);
        assert_eq!(kind("a", OpenMode::Create), None);
        assert_eq!(kind("a", OpenMode::CreateNew), Some(io::ErrorKind::AlreadyExists));
        assert_eq!(kind("../a", OpenMode::Create), Some(io::ErrorKind::InvalidInput));
    }

    #[test]
    fn errors_name_the_file_and_keep_errno() {
        let (_dir, media) = volume();
        let e = media.remove("missing").unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::NotFound);
        assert!(e.to_string().contains("v0/missing"), "{e}");
        assert!(e.to_string().contains("os error 2"), "{e}");
    }

    #[test]
    fn list_shows_regular_files_only() {
        let (_dir, media) = volume();
        for name in ["b", "a"] {
            media.open(name, OpenMode::Create).unwrap();
        }
        fs::create_dir(media.path().join("folder")).unwrap();
        fs::write(media.path().join(".hidden"), "").unwrap();
        assert_eq!(media.list().unwrap(), ["a", "b"]);
        media.remove("a").unwrap();
        assert_eq!(media.list().unwrap(), ["b"]);
        assert!((1..=media.total_bytes().unwrap()).contains(&media.free_bytes().unwrap()));
    }

    #[test]
    fn second_writer_is_refused_by_name() {
        let (_dir, media) = volume();
        let lock = media.lock().unwrap();
        let second = DirMedia::open(media.path()).unwrap();
        let e = second.lock().unwrap_err();
        assert!(e.is_locked());
        let text = e.to_string();
        assert!(text.contains(&media.describe()), "{text}");
        assert!(text.contains(&std::process::id().to_string()), "{text}");
        drop(lock);
        second.lock().unwrap();
    }

    #[test]
    fn missing_and_wrong_places_are_told() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(DirMedia::open(dir.path().join("no")), Err(MediaError::Io { .. })));
        fs::write(dir.path().join("f"), "").unwrap();
        let e = DirMedia::open(dir.path().join("f")).unwrap_err();
        assert!(matches!(e, MediaError::NotADirectory { .. }));
    }

    #[test]
    fn proc_locks_lines() {
        let text = "1: POSIX  ADVISORY  WRITE 11 fe:00:77 0 EOF\n\
                    2: FLOCK  ADVISORY  WRITE 22 fe:00:77 0 EOF\n\
                    2: -> FLOCK  ADVISORY  WRITE 33 fe:00:88 0 EOF\n\
                    3: FLOCK  ADVISORY  WRITE 0 fe:00:99 0 EOF\n";
        assert_eq!(holder_in(text, "fe:00:77"), Some(22));
        assert_eq!(holder_in(text, "fe:00:88"), Some(33));
        assert_eq!(holder_in(text, "fe:00:99"), None, "pid of another namespace");
        assert_eq!(holder_in(text, "fe:00:1"), None);
    }

    #[test]
    fn a_device_that_is_gone_or_full_says_nothing_of_a_place() {
        let of_place = |number: i32| {
            let error = io::Error::from_raw_os_error(number);
            let told = is_of_place(&error);
            assert_eq!(is_of_place(&in_words(error, "write", Path::new("/dev/x"))), told);
            told
        };
        assert!(
            [libc::EIO, libc::ENODATA, libc::EILSEQ, libc::EREMOTEIO].into_iter().all(of_place)
        );
        let others = [libc::ENXIO, libc::ENODEV, libc::ENOSPC, libc::EROFS, libc::ETIMEDOUT];
        assert!(!others.into_iter().any(of_place));
        assert!(is_of_place(&io::Error::other("write fault")));
        assert!(!is_of_place(&io::Error::from(io::ErrorKind::StorageFull)));
    }
}
