//! Making a store.
//!
//! Tables and ring are made durable before any superblock, and the first volume's superblock comes
//! last: what has a superblock is complete, and a store whose making was interrupted does not open.

use std::collections::BTreeMap;
use std::iter;
use std::sync::Arc;

use wirevault_format::digest::file_bytes;
use wirevault_format::limits::LBA_BYTES;
use wirevault_format::superblock::{SLOT_OFFSETS, Superblock};
use wirevault_format::table::{Entry, PAGE_ENTRIES, RunEntry, SegmentEntry, encode_page};
use wirevault_format::{FormatError, StoreId};
use wirevault_media::{Lock, Media, MediaFile, OpenMode, Shape, VOLUME_FILE};
use wirevault_seal::{KeyProvider, KeyRing, random};

use crate::StorageError;
use crate::options::CreateOptions;
use crate::plan::{Layout, Plan, Space, VolumePlan, plan};
use crate::volume::{device, key_error, place_of};

/// Makes a store on `volumes` (each with its absolute path) with sizes by rule.
///
/// # Errors
/// `Quota` if the quota is too small, else as [`create_planned`].
pub fn create(
    volumes: &[(Arc<dyn Media>, String)],
    store: StoreId,
    options: &CreateOptions,
) -> Result<StoreId, StorageError> {
    let file_system = |(media, path): &(Arc<dyn Media>, String)| {
        media.file_system().map_err(|source| device(path, "ask for its file system", source))
    };
    let file_systems: Vec<u64> = volumes.iter().map(file_system).collect::<Result<_, _>>()?;
    let free = |((media, path), here): (&(Arc<dyn Media>, String), &u64)| {
        // What is free on one file system is free for all volumes there together.
        let sharers = file_systems.iter().filter(|there| *there == here).count() as u64;
        let free_bytes = media.free_bytes();
        let free_bytes =
            free_bytes.map_err(|source| device(path, "ask for its free space", source))?;
        let (device, shared) = (media.is_device(), media.is_shared());
        Ok::<_, StorageError>(Space { bytes: free_bytes / sharers, device, shared })
    };
    let spaces: Vec<Space> =
        volumes.iter().zip(&file_systems).map(free).collect::<Result<_, _>>()?;
    let plan = plan(options.quota_bytes, options.lanes, &spaces)?;
    create_planned(volumes, store, options, &plan)
}

/// A share of the file systems and devices of these volumes, each counted once.
///
/// # Errors
/// `Device` if one does not tell its size.
pub fn share_bytes(volumes: &[(Arc<dyn Media>, String)], percent: u8) -> Result<u64, StorageError> {
    let mut sizes = BTreeMap::new();
    for (media, path) in volumes {
        let failed = |source| device(path, "ask for its size", source);
        sizes.insert(media.file_system().map_err(failed)?, media.total_bytes().map_err(failed)?);
    }
    let total: u128 = sizes.into_values().map(u128::from).sum();
    Ok(u64::try_from(total * u128::from(percent) / 100).unwrap_or(u64::MAX))
}

/// Makes a store of given sizes.
///
/// # Errors
/// `InUse` if a directory holds a volume or segments already; `Volumes` if plan and volumes differ
/// in number; `Encode`, `Key`, `Media` or `Device`.
pub fn create_planned(
    volumes: &[(Arc<dyn Media>, String)],
    store: StoreId,
    options: &CreateOptions,
    plan: &Plan,
) -> Result<StoreId, StorageError> {
    if volumes.len() != plan.volumes.len() {
        let (volumes, max) = (volumes.len(), plan.volumes.len());
        return Err(StorageError::Volumes { volumes, max });
    }
    for (media, path) in volumes {
        refuse_if_used(&**media, path)?;
    }
    if volumes.len() > 1 && volumes.iter().any(|(media, _)| media.is_shared()) {
        let what = "a store on a shared volume has that volume only".to_owned();
        return Err(StorageError::Misuse { what });
    }
    let paths: Vec<String> = volumes.iter().map(|(_, path)| path.clone()).collect();
    let mut blank = Vec::new();
    for (number, ((media, _), sizes)) in volumes.iter().zip(&plan.volumes).enumerate() {
        let design = Design {
            store,
            number,
            paths: &paths,
            segment_bytes: plan.segment_bytes,
            sizes: *sizes,
            replacement: false,
            runs: &[],
        };
        blank.push(NewVolume::make(&**media, &design, options)?);
    }
    for volume in blank.iter().rev() {
        volume.complete()?;
    }
    Ok(store)
}

/// A volume as it is to be.
pub(crate) struct Design<'a> {
    pub(crate) store: StoreId,
    pub(crate) number: usize,
    /// Of all volumes of the store, this one included.
    pub(crate) paths: &'a [String],
    pub(crate) segment_bytes: u64,
    pub(crate) sizes: VolumePlan,
    /// The store had another one of that number, which is gone.
    pub(crate) replacement: bool,
    /// What its run table begins with, as many as it has lines for.
    pub(crate) runs: &'a [RunEntry],
}

/// A volume that lacks nothing but its superblock.
pub(crate) struct NewVolume<'a> {
    media: &'a dyn Media,
    path: &'a str,
    file: Arc<dyn MediaFile>,
    superblock: [u8; LBA_BYTES],
    _lock: Lock,
}

impl<'a> NewVolume<'a> {
    pub(crate) fn make(
        media: &'a dyn Media,
        design: &Design<'a>,
        options: &CreateOptions,
    ) -> Result<Self, StorageError> {
        let Design { store, number, paths, segment_bytes, sizes, replacement, runs } = *design;
        let path = &paths[number];
        let failed = |doing: &str| {
            let doing = doing.to_owned();
            move |source| device(path, &doing, source)
        };
        let lock = media.lock()?;
        let layout = Layout::new(&sizes, number == 0, options.key.is_some());
        let volume = random::volume_id().map_err(|source| key_error(path, source))?;
        let superblock = Superblock {
            sealed: options.key.is_some(),
            replacement,
            store,
            volume,
            number: number as u16,
            places: sizes.places,
            generation: 1,
            segment_bytes,
            quota_bytes: sizes.quota_bytes,
            created_ns: options.clock.unix_ns(),
            evicted_live_ns: 0,
            evicted_import_ns: 0,
            segments_offset: layout.segments_offset,
            segments_pages: layout.segments_pages,
            runs_offset: layout.runs_offset,
            runs_pages: layout.runs_pages,
            ring_offset: layout.ring_offset,
            ring_slot_bytes: layout.ring_slot_bytes,
            key_id: options.key.as_ref().map_or_else(String::new, |key| key.id()),
            key_path: options.key_path.clone(),
            volume_paths: paths.to_vec(),
        };
        let encoded = superblock.encode();
        let superblock = encoded.map_err(|source| encode_error(path, source))?;
        let shape = Shape {
            volume_bytes: layout.end,
            digests_bytes: file_bytes(segment_bytes, sizes.places),
            place_bytes: segment_bytes,
            places: sizes.places,
        };
        media.lay_out(&shape).map_err(failed("lay it out"))?;
        let file = media.open(VOLUME_FILE, OpenMode::Create).map_err(failed("make volume.wv"))?;
        // What an interrupted making left must not show through.
        file.set_len(0).map_err(failed("empty volume.wv"))?;
        file.allocate(layout.end).map_err(failed("reserve space for volume.wv"))?;
        // The first real writing of a page may be torn: an older copy must be there already.
        let segments = first_pages::<SegmentEntry>(layout.segments_pages, &[]);
        let runs = first_pages(layout.runs_pages, runs);
        for (pages, offset) in [(segments, layout.segments_offset), (runs, layout.runs_offset)] {
            file.write_at(&pages, offset).map_err(failed("write the tables"))?;
        }
        if let Some(key) = &options.key {
            let mut ring = KeyRing::new(store, volume);
            ring.advance_epoch();
            let ring = encode_ring(&ring, &**key, layout.ring_slot_bytes, path)?;
            file.write_at(&ring, layout.ring_offset).map_err(failed("write the key ring"))?;
        }
        file.sync().map_err(failed("make volume.wv durable"))?;
        media.sync_dir().map_err(failed("make volume.wv durable"))?;
        Ok(Self { media, path, file, superblock, _lock: lock })
    }

    pub(crate) fn complete(&self) -> Result<(), StorageError> {
        let failed = |source| device(self.path, "write the superblock", source);
        self.file.write_at(&self.superblock, SLOT_OFFSETS[0]).map_err(failed)?;
        self.file.sync().map_err(failed)?;
        self.media.sync_dir().map_err(failed)
    }
}

/// One slot of a table that begins with these entries.
fn first_pages<E: Entry>(pages: u32, entries: &[E]) -> Vec<u8> {
    let parts = entries.chunks(PAGE_ENTRIES).chain(iter::repeat(&[][..]));
    (0..pages).zip(parts).flat_map(|(page, part)| encode_page(page, 1, part)).collect()
}

/// Encodes a ring that fits its slot.
pub(crate) fn encode_ring(
    ring: &KeyRing,
    key: &dyn KeyProvider,
    slot_bytes: u64,
    volume: &str,
) -> Result<Vec<u8>, StorageError> {
    let bytes = ring.encode(key).map_err(|source| key_error(volume, source))?;
    match bytes.len() as u64 <= slot_bytes {
        true => Ok(bytes),
        false => {
            let (what, value) = ("the key ring", bytes.len() as u64);
            let source = FormatError::TooLarge { what, value, limit: slot_bytes };
            Err(encode_error(volume, source))
        }
    }
}

pub(crate) fn encode_error(volume: &str, source: FormatError) -> StorageError {
    StorageError::Encode { volume: volume.to_owned(), source }
}

/// Refuses a place with a volume in it, whole or damaged; a device with anything on it; and a
/// directory with files named like segments: opening the new store would take those for leftovers
/// and remove them.
pub(crate) fn refuse_if_used(media: &dyn Media, path: &str) -> Result<(), StorageError> {
    let used = |why: String| Err(StorageError::InUse { path: path.to_owned(), why });
    let foreign = media.foreign().map_err(|source| device(path, "look at it", source))?;
    if let Some(what) = foreign {
        return used(format!(
            "it holds {what}; `wirevault volume format {path} --force` erases it"
        ));
    }
    let names = media.list().map_err(|source| device(path, "list it", source))?;
    let segment = || match names.iter().find(|name| place_of(name).is_some()) {
        Some(name) => used(format!("it holds {name}, which is named like a segment")),
        None => Ok(()),
    };
    if !names.iter().any(|name| name == VOLUME_FILE) {
        return segment();
    }
    let failed = |source| device(path, "read volume.wv", source);
    let file = media.open(VOLUME_FILE, OpenMode::Read).map_err(failed)?;
    for offset in SLOT_OFFSETS {
        let mut block = [0; LBA_BYTES];
        if file.len().map_err(failed)? < offset + LBA_BYTES as u64 {
            continue;
        }
        file.read_exact_at(&mut block, offset).map_err(failed)?;
        match Superblock::decode(&block) {
            Ok(found) => return used(format!("it belongs to store {}", found.store)),
            Err(FormatError::NotPresent { .. }) => {}
            Err(error) => return used(format!("it holds a volume that does not decode: {error}")),
        }
    }
    segment()
}
