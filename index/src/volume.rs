//! Reading what a volume says of itself: superblock, tables, key ring. Nothing here writes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use wirevault_format::limits::LBA_BYTES;
use wirevault_format::superblock::{SLOT_OFFSETS, Superblock};
use wirevault_format::table::{self, Entry, PAGE_ENTRIES, RunEntry, SegmentEntry};
use wirevault_format::{FormatError, StoreId};
use wirevault_media::{Media, MediaError, MediaFile, OpenMode, VOLUME_FILE};
use wirevault_seal::{
    FileProvider, KeyProvider, KeyRing, OneWayKey, SealError, ServiceKeys, one_way, ring,
};

use crate::IndexError;
use crate::digest::Digests;
use crate::lost::LostStores;
use crate::tier::Tiered;

/// Pages of a table that are read at once: 1 MiB of each slot. A store of 100,000 places has 3,226.
const READ_PAGES: u32 = 256;

/// Where the key of a sealed store comes from.
#[derive(Clone)]
pub enum KeySource {
    /// The path that the superblock recorded, else the default path of this user.
    Recorded,
    /// This file.
    File(PathBuf),
    /// As `Recorded`; and if the superblock names a key of this service, that.
    Service(Arc<ServiceKeys>),
    /// A provider that is open already.
    Provider(Arc<dyn KeyProvider>),
}

impl KeySource {
    /// Opens the key of a store.
    ///
    /// # Errors
    /// Whatever the key file's opening says; `NoService` for a key of a service that is not at
    /// hand. A service is not asked yet.
    pub fn open(&self, superblock: &Superblock) -> Result<Arc<dyn KeyProvider>, SealError> {
        let Superblock { key_id, key_path, store, .. } = superblock;
        let path = match self {
            Self::Provider(provider) => return Ok(Arc::clone(provider)),
            Self::File(path) => path.clone(),
            Self::Service(services) if services.keeps(key_id) => {
                return Ok(services.of(*store, key_path));
            }
            _ if one_way::parts(key_id).is_some() => PathBuf::from(key_path),
            _ if !key_id.starts_with("file:") => {
                return Err(SealError::NoService { key: key_path.clone() });
            }
            Self::Service(_) | Self::Recorded => recorded_key_path(superblock)?,
        };
        match key_id.starts_with("file:") {
            true => Ok(Arc::new(FileProvider::open(&path)?)),
            false => self.one_way(&path, superblock),
        }
    }

    /// The pair whose public half the store was sealed with, or epoch keys while its service gave
    /// none.
    fn one_way(
        &self,
        path: &Path,
        superblock: &Superblock,
    ) -> Result<Arc<dyn KeyProvider>, SealError> {
        let key = OneWayKey::read(path)?;
        let named = one_way::parts(&superblock.key_id);
        let key = key.kept_as(named.and_then(|(_, kept_as)| kept_as));
        if named.is_some() && key.name() != superblock.key_id {
            let (expected, got) = (superblock.key_id.clone(), key.name());
            return Err(SealError::WrongKey { expected, got });
        }
        let key = match self {
            Self::Service(services) if services.opens_all() => {
                key.opened_by(Arc::clone(services.service()))
            }
            _ => key,
        };
        Ok(key.keys_of(superblock.store))
    }
}

fn recorded_key_path(superblock: &Superblock) -> Result<PathBuf, SealError> {
    let recorded = PathBuf::from(&superblock.key_path);
    if recorded.is_file() {
        return Ok(recorded);
    }
    let default = wirevault_seal::default_key_path(superblock.store)?;
    Ok(if default.is_file() { default } else { recorded })
}

/// One table as read, with what a writer needs to rewrite a page of it.
#[derive(Debug, Clone)]
pub struct Table<E> {
    /// Entries of all pages.
    pub entries: Vec<E>,
    /// For each page: generation and slot (0 or 1) of its newest copy; generation 0 if it was never
    /// written.
    pub pages: Vec<(u64, usize)>,
}

/// Reads a table of `pages` pages a slot at `offset`.
///
/// # Errors
/// `Volume` if both copies of a page are damaged, `Io` if reading fails.
pub fn read_table<E: Entry>(
    file: &dyn MediaFile,
    volume: &str,
    offset: u64,
    pages: u32,
) -> Result<Table<E>, IndexError> {
    let places = pages as usize * PAGE_ENTRIES;
    let mut table =
        Table { entries: Vec::with_capacity(places), pages: Vec::with_capacity(pages as usize) };
    for first in (0..pages).step_by(READ_PAGES as usize) {
        let numbers = first..pages.min(first + READ_PAGES);
        let bytes = numbers.len() * LBA_BYTES;
        let mut slots = [Vec::new(), Vec::new()];
        for (slot, found) in slots.iter_mut().enumerate() {
            *found = read_up_to(file, volume, page_offset(offset, pages, slot, first), bytes)?;
        }
        for (number, at) in numbers.zip((0..).step_by(LBA_BYTES)) {
            let copies = [0, 1].map(|slot| &slots[slot][at..at + LBA_BYTES]);
            let (newest, entries) = newest_page(number, copies).map_err(|source| {
                let (volume, what) = (volume.to_owned(), "a page of its tables is damaged");
                IndexError::Volume { volume, what, source }
            })?;
            table.entries.extend(entries);
            table.pages.push(newest);
        }
    }
    Ok(table)
}

/// Generation, slot and entries of the newer copy that is whole; generation 0 if none was written.
fn newest_page<E: Entry>(
    number: u32,
    copies: [&[u8]; 2],
) -> Result<((u64, usize), Vec<E>), FormatError> {
    let mut newest: Option<((u64, usize), Vec<E>)> = None;
    let mut damage = None;
    for (slot, page) in copies.into_iter().enumerate() {
        match table::decode_page::<E>(number, page) {
            Ok((generation, entries)) => {
                if newest.as_ref().is_none_or(|((newer, _), _)| generation > *newer) {
                    newest = Some(((generation, slot), entries));
                }
            }
            Err(FormatError::NotPresent { .. }) => {}
            Err(error) => damage = Some(error),
        }
    }
    match (newest, damage) {
        (Some(newest), _) => Ok(newest),
        (None, Some(error)) => Err(error),
        (None, None) => Ok(((0, 1), vec![E::default(); PAGE_ENTRIES])),
    }
}

/// Offset of a page.
pub fn page_offset(table_offset: u64, pages: u32, slot: usize, number: u32) -> u64 {
    table_offset + (slot as u64 * u64::from(pages) + u64::from(number)) * LBA_BYTES as u64
}

/// Name of the file of a place.
pub fn segment_file_name(place: u32) -> String {
    format!("{place:06}.pcapng")
}

/// What a volume says of itself.
pub struct Volume {
    /// Its files.
    pub media: Arc<dyn Media>,
    /// Its superblock.
    pub superblock: Superblock,
    /// Slot of the newest superblock.
    pub superblock_slot: usize,
    /// One entry a place.
    pub segments: Table<SegmentEntry>,
    /// Runs; only the first volume has any.
    pub runs: Table<RunEntry>,
    /// The key ring of a sealed store, or why it does not open.
    pub ring: Option<Result<KeyRing, IndexError>>,
    /// Slot of the newest key ring.
    pub ring_slot: usize,
    /// What its closed segments may hold.
    pub digests: Arc<Digests>,
}

impl Volume {
    /// Reads a volume. A key ring that does not open is not an error here: what is not sealed can
    /// still be told.
    ///
    /// # Errors
    /// `NotAStore` if there is no superblock, `Forbidden` if this user may not look, `Volume` if
    /// superblock or tables are damaged or of a newer release.
    pub fn read(media: Arc<dyn Media>, key: &KeySource) -> Result<Self, IndexError> {
        let name = media.describe();
        let file = media.open(VOLUME_FILE, OpenMode::Read).map_err(|error| {
            IndexError::unopened(name.clone(), format!("{VOLUME_FILE}: {error}"), error.kind())
        })?;
        let (superblock, superblock_slot) = read_superblock(&*file, &name)?;
        let Superblock { segments_offset, segments_pages, runs_offset, runs_pages, .. } =
            superblock;
        let mut segments = read_table(&*file, &name, segments_offset, segments_pages)?;
        segments.entries.truncate(superblock.places as usize);
        let runs = read_table(&*file, &name, runs_offset, runs_pages)?;
        let (ring, ring_slot) = match superblock.sealed {
            true => read_ring(&*file, &name, &superblock, key),
            false => (None, 0),
        };
        let digests = Arc::new(Digests::new(Arc::clone(&media), superblock.segment_bytes));
        Ok(Self { media, superblock, superblock_slot, segments, runs, ring, ring_slot, digests })
    }

    /// Opens the key of this volume's store.
    ///
    /// # Errors
    /// `Key`.
    pub fn open_key(&self, key: &KeySource) -> Result<Arc<dyn KeyProvider>, IndexError> {
        self.open_key_of(self.superblock.store, key)
    }

    /// Opens what wrapped the key rings of a store whose place this one took, if it was sealed with
    /// the same key.
    ///
    /// # Errors
    /// `Key`.
    pub fn open_key_of(
        &self,
        former: StoreId,
        key: &KeySource,
    ) -> Result<Arc<dyn KeyProvider>, IndexError> {
        let superblock = Superblock { store: former, ..self.superblock.clone() };
        let volume = self.media.describe();
        key.open(&superblock).map_err(|source| IndexError::Key { volume, source })
    }
}

fn read_block(file: &dyn MediaFile, volume: &str, offset: u64) -> Result<Vec<u8>, IndexError> {
    read_up_to(file, volume, offset, LBA_BYTES)
}

/// Reads `bytes` bytes; what lies behind the end of the file is zero.
fn read_up_to(
    file: &dyn MediaFile,
    volume: &str,
    offset: u64,
    bytes: usize,
) -> Result<Vec<u8>, IndexError> {
    let mut found = vec![0; bytes];
    let mut done = 0;
    while done < found.len() {
        match file.read_at(&mut found[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(bytes) => done += bytes,
            Err(source) => {
                let what = format!("volume {volume}, offset {offset}");
                return Err(IndexError::Io { what, source });
            }
        }
    }
    Ok(found)
}

fn read_superblock(file: &dyn MediaFile, name: &str) -> Result<(Superblock, usize), IndexError> {
    let mut newest: Option<(Superblock, usize)> = None;
    let mut damage = None;
    for (slot, offset) in SLOT_OFFSETS.into_iter().enumerate() {
        match Superblock::decode(&read_block(file, name, offset)?) {
            Ok(found) => {
                if newest.as_ref().is_none_or(|(newer, _)| found.generation > newer.generation) {
                    newest = Some((found, slot));
                }
            }
            // A newer release's superblock wins over an older one in the other slot.
            Err(source @ FormatError::Newer { .. }) => {
                let (volume, what) = (name.to_owned(), "its superblock is too new");
                return Err(IndexError::Volume { volume, what, source });
            }
            Err(FormatError::NotPresent { .. }) => {}
            Err(source) => damage = Some(source),
        }
    }
    match (newest, damage) {
        (Some(found), _) => Ok(found),
        (None, Some(source)) => {
            let (volume, what) = (name.to_owned(), "its superblock is damaged");
            Err(IndexError::Volume { volume, what, source })
        }
        (None, None) => Err(IndexError::NotAStore {
            path: name.to_owned(),
            why: format!("{VOLUME_FILE} has no superblock"),
        }),
    }
}

fn read_ring(
    file: &dyn MediaFile,
    name: &str,
    superblock: &Superblock,
    key: &KeySource,
) -> (Option<Result<KeyRing, IndexError>>, usize) {
    let failed = |source| IndexError::Key { volume: name.to_owned(), source };
    let provider = match key.open(superblock) {
        Ok(provider) => provider,
        Err(source) => return (Some(Err(failed(source))), 0),
    };
    let mut newest: Option<(KeyRing, usize)> = None;
    let mut first_error = None;
    for slot in 0..2 {
        let found = ring_bytes(file, name, superblock, slot)
            .and_then(|bytes| KeyRing::decode(&bytes, &*provider).map_err(failed));
        match found {
            Ok(ring) if newest.as_ref().is_none_or(|(newer, _)| ring.epoch() > newer.epoch()) => {
                newest = Some((ring, slot));
            }
            Ok(_) => {}
            Err(error) => {
                // "Another key" says more to a person than "damaged".
                if first_error.is_none() || error.is_wrong_key() {
                    first_error = Some(error);
                }
            }
        }
    }
    match (newest, first_error) {
        (Some((ring, slot)), _) => (Some(Ok(ring)), slot),
        (None, Some(error)) => (Some(Err(error)), 0),
        (None, None) => (None, 0),
    }
}

fn ring_bytes(
    file: &dyn MediaFile,
    name: &str,
    superblock: &Superblock,
    slot: usize,
) -> Result<Vec<u8>, IndexError> {
    let offset = superblock.ring_offset + slot as u64 * superblock.ring_slot_bytes;
    let block = read_block(file, name, offset)?;
    let failed = |source| IndexError::Key { volume: name.to_owned(), source };
    let head = block.first_chunk().expect("a logical block holds the head of a ring");
    let ring_bytes = ring::encoded_bytes(head).map_err(failed)?;
    let mut bytes = vec![0; ring_bytes.min(superblock.ring_slot_bytes as usize)];
    file.read_exact_at(&mut bytes, offset)
        .map_err(|source| IndexError::Io { what: format!("key ring of volume {name}"), source })?;
    Ok(bytes)
}

/// The volumes of a store, as far as they can be read.
pub struct StoreReader {
    /// Store.
    pub store: StoreId,
    /// Volumes that are present, with their numbers.
    pub volumes: Vec<Volume>,
    /// Volumes that are not: path and reason.
    pub missing: Vec<(String, String)>,
    /// Stores whose place this one took: whoever knows of them says so.
    pub lost: LostStores,
    /// Segments with a copy in the tier, as whoever opened the store has found them listed.
    pub tiered: Vec<Tiered>,
}

/// Opens a store for reading: the volume at `first` and the volumes that it names.
///
/// # Errors
/// As [`Volume::read`] for the first volume.
pub fn open_store(first: &Path, key: &KeySource) -> Result<StoreReader, IndexError> {
    let volume = open_volume(first, key)?;
    let (store, own_number) = (volume.superblock.store, usize::from(volume.superblock.number));
    let paths = volume.superblock.volume_paths.clone();
    let (missing, tiered, lost) = Default::default();
    let mut reader = StoreReader { store, volumes: vec![volume], missing, tiered, lost };
    for (number, path) in paths.iter().enumerate().filter(|(number, _)| *number != own_number) {
        match open_volume(Path::new(path), key) {
            Ok(other) if other.superblock.store != store => {
                let why = format!("it belongs to store {}", other.superblock.store);
                reader.missing.push((path.clone(), why));
            }
            Ok(other) if usize::from(other.superblock.number) != number => {
                let why = format!("it is volume {}, not {number}", other.superblock.number);
                reader.missing.push((path.clone(), why));
            }
            Ok(other) if other.superblock.volume_paths != paths => {
                let why = "it names other volumes: one of the store was moved or replaced, and \
                           not all of them know; `wirevault volume adopt` tells them";
                reader.missing.push((path.clone(), why.to_owned()));
            }
            Ok(other) => reader.volumes.push(other),
            Err(error) => reader.missing.push((path.clone(), error.to_string())),
        }
    }
    reader.volumes.sort_by_key(|volume| volume.superblock.number);
    Ok(reader)
}

fn open_volume(path: &Path, key: &KeySource) -> Result<Volume, IndexError> {
    let media = wirevault_media::open_volume(path).map_err(|error| {
        let kind = match &error {
            MediaError::Driven { .. } | MediaError::Left { .. } => return IndexError::Taken(error),
            MediaError::Io { source, .. } => source.kind(),
            _ => io::ErrorKind::Other,
        };
        IndexError::unopened(path.display().to_string(), error.to_string(), kind)
    })?;
    Volume::read(media, key)
}
