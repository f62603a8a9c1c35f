//! A disk that forgets to sync one kind of thing.

use std::io;
use std::sync::{Arc, Mutex};

use wirevault_format::superblock::Superblock;
use wirevault_media::{Media, MediaFile, SimMedia, VOLUME_FILE};
use wirevault_testkit::hooked::{DiskHook, FileHook, Hooked};

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
pub(crate) fn without(lose: Sync, media: &SimMedia) -> Arc<dyn Media> {
    let below: Arc<dyn Media> = Arc::new(media.clone());
    Arc::new(Hooked::new(below, Lose { lose, superblock: superblock(media) }))
}

struct Lose {
    lose: Sync,
    superblock: Superblock,
}

impl DiskHook for Lose {
    type File = LoseOf;

    fn opened(&self, name: &str) -> LoseOf {
        let tables = (name == VOLUME_FILE).then(|| self.superblock.clone());
        LoseOf { tables, last: Mutex::new(Sync::Header), lose: self.lose }
    }

    fn sync_dir(&self, media: &dyn Media) -> io::Result<()> {
        if self.lose == Sync::Names { Ok(()) } else { media.sync_dir() }
    }
}

struct LoseOf {
    tables: Option<Superblock>,
    last: Mutex<Sync>,
    lose: Sync,
}

impl LoseOf {
    fn note(&self, last: Sync) {
        *self.last.lock().unwrap() = last;
    }
}

impl FileHook for LoseOf {
    fn write(&self, file: &dyn MediaFile, data: &[u8], offset: u64) -> io::Result<()> {
        self.note(match &self.tables {
            Some(it) if offset >= it.ring_offset => Sync::Ring,
            Some(it) if offset >= it.runs_offset => Sync::Runs,
            Some(it) if offset >= it.segments_offset => Sync::Segments,
            Some(_) => Sync::Superblock,
            None if offset == 0 => Sync::Header,
            None => Sync::Chunk,
        });
        file.write_at(data, offset)
    }

    fn sync(&self, file: &dyn MediaFile) -> io::Result<()> {
        let last = *self.last.lock().unwrap();
        if last == self.lose { Ok(()) } else { file.sync() }
    }

    fn set_len(&self, file: &dyn MediaFile, len_bytes: u64) -> io::Result<()> {
        self.note(Sync::Finish);
        file.set_len(len_bytes)
    }
}
