//! A disk that forgets to sync one kind of thing.

use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use wirevault_format::superblock::Superblock;
use wirevault_media::{
    Lock, Media, MediaError, MediaFile, OpenMode, SimFile, SimMedia, VOLUME_FILE,
};

use crate::support::superblock;

/// What a sync makes durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sync {
    Superblock,
    Segments,
    Runs,
    Ring,
    Header,
    Chunk,
    Finish,
    Names,
}

impl Sync {
    pub(crate) const ALL: [Self; 8] = [
        Self::Superblock,
        Self::Segments,
        Self::Runs,
        Self::Ring,
        Self::Header,
        Self::Chunk,
        Self::Finish,
        Self::Names,
    ];
}

/// A simulated disk that says it has synced and has not, for one kind of sync.
pub(crate) struct Watched {
    media: SimMedia,
    lose: Sync,
    superblock: Superblock,
}

impl Watched {
    pub(crate) fn new(media: SimMedia, lose: Sync) -> Self {
        let superblock = superblock(&media);
        Self { media, lose, superblock }
    }
}

impl Media for Watched {
    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Arc<dyn MediaFile>> {
        let file = self.media.open(name, mode)?;
        let tables = (name == VOLUME_FILE).then(|| self.superblock.clone());
        let last = Mutex::new(Sync::Header);
        Ok(Arc::new(WatchedFile { file, tables, last, lose: self.lose }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.media.remove(name)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.media.list()
    }

    fn sync_dir(&self) -> io::Result<()> {
        if self.lose == Sync::Names { Ok(()) } else { self.media.sync_dir() }
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

struct WatchedFile {
    file: Arc<dyn MediaFile>,
    tables: Option<Superblock>,
    last: Mutex<Sync>,
    lose: Sync,
}

impl WatchedFile {
    fn note(&self, last: Sync) {
        *self.last.lock().unwrap() = last;
    }
}

impl MediaFile for WatchedFile {
    fn name(&self) -> &str {
        self.file.name()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.note(match &self.tables {
            Some(it) if offset >= it.ring_offset => Sync::Ring,
            Some(it) if offset >= it.runs_offset => Sync::Runs,
            Some(it) if offset >= it.segments_offset => Sync::Segments,
            Some(_) => Sync::Superblock,
            None if offset == 0 => Sync::Header,
            None => Sync::Chunk,
        });
        self.file.write_at(data, offset)
    }

    fn sync(&self) -> io::Result<()> {
        let last = *self.last.lock().unwrap();
        if last == self.lose { Ok(()) } else { self.file.sync() }
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.note(Sync::Finish);
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
