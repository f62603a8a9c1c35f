//! A disk that remembers every byte that was ever written to it, as flash may.

use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use wirevault_media::{Lock, Media, MediaError, MediaFile, OpenMode, SimFile, SimMedia};

/// One write.
pub(crate) struct Written {
    pub(crate) file: String,
    pub(crate) bytes: Vec<u8>,
}

/// A simulated disk whose writes are remembered elsewhere, over crashes and overwriting.
pub(crate) struct Recording {
    media: SimMedia,
    written: Arc<Mutex<Vec<Written>>>,
}

impl Recording {
    pub(crate) fn new(media: SimMedia, written: Arc<Mutex<Vec<Written>>>) -> Self {
        Self { media, written }
    }
}

impl Media for Recording {
    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Arc<dyn MediaFile>> {
        let file = self.media.open(name, mode)?;
        Ok(Arc::new(RecordingFile { file, written: Arc::clone(&self.written) }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.media.remove(name)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.media.list()
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.media.sync_dir()
    }

    fn lock(&self) -> Result<Lock, MediaError> {
        self.media.lock()
    }

    fn describe(&self) -> String {
        self.media.describe()
    }

    fn file_system(&self) -> io::Result<u64> {
        self.media.file_system()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.media.free_bytes()
    }

    fn total_bytes(&self) -> io::Result<u64> {
        self.media.total_bytes()
    }
}

struct RecordingFile {
    file: Arc<dyn MediaFile>,
    written: Arc<Mutex<Vec<Written>>>,
}

impl MediaFile for RecordingFile {
    fn name(&self) -> &str {
        self.file.name()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }

    /// Remembered before it is known to have gone well: parts of it may be there.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let written = Written { file: self.name().to_owned(), bytes: data.to_vec() };
        self.written.lock().unwrap().push(written);
        self.file.write_at(data, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.file.set_len(len_bytes)
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

    fn simulated(&self) -> Option<&SimFile> {
        self.file.simulated()
    }
}
