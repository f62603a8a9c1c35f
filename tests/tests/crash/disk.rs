//! A volume's bytes as a kill left them, read slot by slot.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use wirevault_format::superblock::{SLOT_OFFSETS, Superblock};
use wirevault_format::table::{PAGE_ENTRIES, SegmentEntry, SegmentState, decode_page};
use wirevault_index::volume::{page_offset, segment_file_name};
use wirevault_seal::{FileProvider, KeyRing};
use wirevault_tests::recorder::Site;

/// Bytes of a page of a table, and of a superblock.
pub(crate) const PAGE_BYTES: u64 = 4096;

/// Where a volume's structures lie, and how to read them.
pub(crate) struct Disk {
    dir: PathBuf,
    key: PathBuf,
    superblock: Superblock,
}

/// What lies somewhere in `volume.wv`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Superblock,
    Segments,
    Runs,
    Ring,
}

/// What a new page of the segment table says that the newest one on disk does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Opens,
    Closes,
    Frees,
}

impl Disk {
    pub(crate) fn of(site: &Site) -> Self {
        let (dir, key) = (site.store(), site.key());
        let superblocks = SLOT_OFFSETS.map(|at| Superblock::decode(&bytes(&dir, at, PAGE_BYTES)));
        let newest = superblocks.into_iter().flatten().max_by_key(|block| block.generation);
        Self { dir, key, superblock: newest.expect("a superblock") }
    }

    pub(crate) fn segment_bytes(&self) -> u64 {
        self.superblock.segment_bytes
    }

    /// What `volume.wv` holds at an offset.
    pub(crate) fn part(&self, offset: u64) -> Part {
        let superblock = &self.superblock;
        if offset >= superblock.ring_offset {
            Part::Ring
        } else if offset >= superblock.runs_offset {
            Part::Runs
        } else if offset >= superblock.segments_offset {
            Part::Segments
        } else {
            Part::Superblock
        }
    }

    /// Generation of the superblock at this offset, if it is whole.
    pub(crate) fn superblock_at(&self, offset: u64) -> Option<u64> {
        let block = Superblock::decode(&bytes(&self.dir, offset, PAGE_BYTES));
        block.ok().map(|block| block.generation)
    }

    /// Epoch of the key ring in the slot at this offset, if it is whole.
    pub(crate) fn ring_at(&self, offset: u64) -> Option<u64> {
        let key = FileProvider::open(&self.key).expect("the key file");
        let slot = bytes(&self.dir, offset, self.superblock.ring_slot_bytes);
        KeyRing::decode(&slot, &key).ok().map(|ring| ring.epoch())
    }

    /// Generation of the page of the segment table at this offset, if it is whole.
    pub(crate) fn page_at(&self, offset: u64) -> Option<u64> {
        let page = bytes(&self.dir, offset, PAGE_BYTES);
        let page = decode_page::<SegmentEntry>(self.page_number(offset), &page);
        page.ok().map(|(generation, _)| generation)
    }

    /// The other slot of what lies at this offset.
    pub(crate) fn other_slot(&self, offset: u64) -> u64 {
        let superblock = &self.superblock;
        let (start, slot_bytes) = match self.part(offset) {
            Part::Superblock => (0, SLOT_OFFSETS[1]),
            Part::Segments => {
                (superblock.segments_offset, u64::from(superblock.segments_pages) * PAGE_BYTES)
            }
            Part::Runs => (superblock.runs_offset, u64::from(superblock.runs_pages) * PAGE_BYTES),
            Part::Ring => (superblock.ring_offset, superblock.ring_slot_bytes),
        };
        if offset - start < slot_bytes { offset + slot_bytes } else { offset - slot_bytes }
    }

    /// What a page of the segment table would change if it were written at this offset.
    pub(crate) fn change(&self, offset: u64, page: &[u8]) -> Option<Change> {
        let number = self.page_number(offset);
        let (_, next) = decode_page::<SegmentEntry>(number, page).ok()?;
        let first = number as usize * PAGE_ENTRIES;
        let changes = next.iter().zip(first..).filter_map(|(entry, place)| {
            let now = self.state(place as u32);
            (entry.state != now).then_some(match entry.state {
                SegmentState::Free | SegmentState::Forgetting => Change::Frees,
                SegmentState::Open => Change::Opens,
                SegmentState::Closed => Change::Closes,
            })
        });
        changes.last()
    }

    /// What the newest whole page says of a place.
    pub(crate) fn state(&self, place: u32) -> SegmentState {
        let superblock = &self.superblock;
        let number = place / PAGE_ENTRIES as u32;
        let pages = (0..2).filter_map(|slot| {
            let pages = superblock.segments_pages;
            let at = page_offset(superblock.segments_offset, pages, slot, number);
            decode_page::<SegmentEntry>(number, &bytes(&self.dir, at, PAGE_BYTES)).ok()
        });
        let newest = pages.max_by_key(|(generation, _)| *generation);
        newest
            .map_or(SegmentState::Free, |(_, entries)| entries[place as usize % PAGE_ENTRIES].state)
    }

    /// Files of places that the table calls so.
    pub(crate) fn files(&self, state: SegmentState) -> Vec<PathBuf> {
        let places = (0..self.superblock.places).filter(|at| self.state(*at) == state);
        let files = places.map(|place| self.dir.join(segment_file_name(place)));
        files.filter(|path| path.exists()).collect()
    }

    fn page_number(&self, offset: u64) -> u32 {
        let superblock = &self.superblock;
        let page = (offset - superblock.segments_offset) / PAGE_BYTES;
        page as u32 % superblock.segments_pages
    }
}

/// Place of a segment's file.
pub(crate) fn place(path: &Path) -> u32 {
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    stem.and_then(|stem| stem.parse().ok()).expect("a file of a segment")
}

/// Bytes of a file; what lies behind its end is zero.
pub(crate) fn piece(path: &Path, offset: u64, length: u64) -> Vec<u8> {
    let mut piece = vec![0; length as usize];
    let file = File::open(path).expect("a file of the store");
    let mut done = 0;
    while done < piece.len() {
        match file.read_at(&mut piece[done..], offset + done as u64).expect("reading") {
            0 => break,
            read => done += read,
        }
    }
    piece
}

fn bytes(dir: &Path, offset: u64, length: u64) -> Vec<u8> {
    piece(&dir.join("volume.wv"), offset, length)
}
