//! One volume as its writer has it: what is known of it, and the room that it has.
//!
//! - `tables`: superblock and table pages. `ring`: the key ring. `files`: files of segments.
//!   `rejoin`: going on after a failure.

mod files;
mod rejoin;
mod ring;
mod tables;

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Instant;

use wirevault_format::LifeId;
use wirevault_format::digest::file_bytes;
use wirevault_format::superblock::Superblock;
use wirevault_format::table::{RunEntry, SegmentEntry, SegmentState};
use wirevault_index::{IndexError, KeySource, SharedCatalog, Volume};
use wirevault_media::{Lock, Media, MediaFile, OpenMode, VOLUME_FILE};
use wirevault_seal::{KeyProvider, SealError, SegmentKeys};

use crate::StorageError;
use crate::bad::Verdict;
use crate::ledger::{self, Ledger};
use crate::plan::volume_file_bytes;
use crate::room::{Disk, Held};
use crate::view::VolumeStatus;

pub(crate) use files::place_of;

/// A volume that this process writes.
pub(crate) struct VolumeWriter {
    pub(crate) volume: Volume,
    pub(crate) name: String,
    file: Arc<dyn MediaFile>,
    provider: Option<Arc<dyn KeyProvider>>,
    /// Keys that no segment has and that a durable ring holds.
    spares: VecDeque<SegmentKeys>,
    failed: Option<String>,
    /// What queries look at; set once all volumes are open.
    shared: Option<Arc<SharedCatalog>>,
    /// Why the last segment found no room here; `None` if it did.
    refused: Option<String>,
    /// Part of the file system that is left to others.
    reserve_percent: u8,
    /// Others' files left less than the quota then.
    squeezed: bool,
    /// What the segment table adds up to.
    ledger: Arc<RwLock<Ledger>>,
    /// Places up to the highest that held a segment since the digests were cut: so many may have
    /// digests in their file.
    reach: u32,
    /// Since when this process keeps away from contested places, if there are any.
    contested_since: Option<Instant>,
    /// `None` only after an attempt to take it back into use went wrong.
    lock: Option<Lock>,
}

impl VolumeWriter {
    /// Locks and reads a volume. Nothing is written.
    pub(crate) fn open(media: Arc<dyn Media>, key: &KeySource) -> Result<Self, StorageError> {
        let name = media.describe();
        // Locking would make the file where there is none.
        let file = media.open(VOLUME_FILE, OpenMode::ReadWrite).map_err(|source| {
            let (path, why) = (name.clone(), format!("{VOLUME_FILE}: {source}"));
            match source.kind() {
                io::ErrorKind::NotFound => IndexError::NotAStore { path, why }.into(),
                _ => device(&name, "open volume.wv to write it", source),
            }
        })?;
        let lock = media.lock()?;
        let mut volume = Volume::read(media, key)?;
        if let Some(Err(_)) = &volume.ring
            && let Some(Err(error)) = volume.ring.take()
        {
            return Err(error.into());
        }
        let provider = match volume.superblock.sealed {
            true => Some(volume.open_key(key)?),
            false => None,
        };
        if let (Some(Ok(ring)), Some(provider)) = (&mut volume.ring, &provider)
            && let Some(why) = ring.take_shut(|why| provider.may_leave_shut(why))
        {
            return Err(key_error(&name, why));
        }
        let superblock = &volume.superblock;
        if let Some(Ok(ring)) = &volume.ring
            && (ring.store(), ring.volume()) != (superblock.store, superblock.volume)
        {
            let detail = "it belongs to another volume";
            let source = SealError::Damaged { what: "the key ring", detail };
            return Err(key_error(&name, source));
        }
        let (spares, failed, shared) = (VecDeque::new(), None, None);
        let (refused, reserve_percent, squeezed) = (None, 0, false);
        let ledger = Ledger::new(superblock.segment_bytes, &volume.segments.entries);
        let ledger = Arc::new(RwLock::new(ledger));
        let reach = reach(&volume.segments.entries);
        Ok(Self {
            volume,
            name,
            file,
            provider,
            spares,
            failed,
            shared,
            refused,
            reserve_percent,
            squeezed,
            ledger,
            reach,
            contested_since: None,
            lock: Some(lock),
        })
    }

    /// Every change of the tables shows in this catalog from now on.
    pub(crate) fn show_changes_in(&mut self, shared: &Arc<SharedCatalog>) {
        self.shared = Some(Arc::clone(shared));
    }

    pub(crate) fn key_id(&self) -> Option<String> {
        self.provider.as_ref().map(|provider| provider.id())
    }

    pub(crate) fn superblock(&self) -> &Superblock {
        &self.volume.superblock
    }

    pub(crate) fn entries(&self) -> &[SegmentEntry] {
        &self.volume.segments.entries
    }

    pub(crate) fn runs(&self) -> &[RunEntry] {
        &self.volume.runs.entries
    }

    pub(crate) fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// What the segment table adds up to.
    pub(crate) fn ledger(&self) -> RwLockReadGuard<'_, Ledger> {
        ledger::read(&self.ledger)
    }

    /// The same, for those who do not wait for the volume.
    pub(crate) fn shared_ledger(&self) -> Arc<RwLock<Ledger>> {
        Arc::clone(&self.ledger)
    }

    /// What its bad places say of it.
    pub(crate) fn verdict(&self) -> Verdict {
        Verdict::of(self.ledger().bad(), self.superblock().places)
    }

    /// Ordinal of the oldest closed segment.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.ledger().oldest().next().map(|(ordinal, _)| ordinal)
    }

    /// State of the volume, as far as its own structures tell.
    pub(crate) fn status(&self) -> VolumeStatus {
        let superblock = self.superblock();
        VolumeStatus {
            path: self.name.clone(),
            quota_bytes: superblock.quota_bytes,
            used_bytes: self.used_bytes(),
            segments: self.ledger().segments() as u32,
            open_segments: self.ledger().open() as u32,
            places: superblock.places,
            bad_places: self.ledger().bad(),
            segment_bytes: superblock.segment_bytes,
            spare_keys: self.spares.len(),
            failed: self.failed.clone(),
            suspect: None,
            refused: self.refused.clone(),
            squeezed: self.squeezed,
            erased: self.volume.media.erased(),
            hangs: false,
        }
    }

    /// Bytes that count against the quota: an open segment counts as full.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.used_bytes_with(0)
    }

    /// The same, if the digests reached so many places at least.
    pub(crate) fn used_bytes_with(&self, reach: u32) -> u64 {
        let superblock = self.superblock();
        let digests = file_bytes(superblock.segment_bytes, self.reach.max(reach));
        let own = volume_file_bytes(superblock).saturating_add(digests);
        own.saturating_add(self.ledger().used_bytes())
    }

    /// Room on the file system below, and how much of it is left to others. `None` on a device,
    /// and if the file system does not tell: what it has no room for it then refuses itself.
    pub(crate) fn disk(&self) -> Option<Disk> {
        let media = &self.volume.media;
        if media.is_device() {
            return None;
        }
        let (free_bytes, total_bytes) = media.free_bytes().ok().zip(media.total_bytes().ok())?;
        let reserve = u128::from(total_bytes) * u128::from(self.reserve_percent) / 100;
        let reserve_bytes = reserve.min(u128::from(self.superblock().quota_bytes)) as u64;
        Some(Disk { free_bytes, reserve_bytes })
    }

    /// Bytes that segments may still take before something has to go.
    pub(crate) fn left_bytes(&self) -> u64 {
        let of_quota = self.superblock().quota_bytes.saturating_sub(self.used_bytes());
        self.disk().map_or(of_quota, |disk| {
            of_quota.min(disk.free_bytes.saturating_sub(disk.reserve_bytes))
        })
    }

    /// The last opening of a segment here went so. Only a lack of room is of interest.
    pub(crate) fn note_room(&mut self, error: Option<&StorageError>) {
        self.refused = error.filter(|error| error.is_exhausted()).map(ToString::to_string);
    }

    /// A segment is to open here: what others' files leave of the quota.
    pub(crate) fn note_disk(&mut self) {
        self.squeezed = self.disk().is_some_and(|disk| {
            let ours_bytes = disk.free_bytes.saturating_sub(disk.reserve_bytes);
            ours_bytes.saturating_add(self.used_bytes()) < self.superblock().quota_bytes
        });
    }

    /// Leaves this part of the file system to others.
    pub(crate) fn set_reserve(&mut self, percent: u8) {
        self.reserve_percent = percent;
    }

    /// Keeps a closed segment from being given up until [`VolumeWriter::unpin`] of what this gives.
    /// Nothing: this life is not there, not closed, or a copy for a hold.
    pub(crate) fn pin(&mut self, place: u32, life: LifeId) -> Option<Held> {
        let there = self.entries().get(place as usize).filter(|entry| {
            (entry.state, entry.life, entry.hold) == (SegmentState::Closed, life, 0)
        });
        let held = (there?.ordinal, place);
        self.ledger.write().unwrap_or_else(PoisonError::into_inner).pin(held);
        Some(held)
    }

    /// Those of which the tier has no copy.
    pub(crate) fn not_tiered(&self, entries: &[SegmentEntry]) -> Vec<SegmentEntry> {
        let catalog = self.shared.as_ref().map(|shared| shared.take(0));
        let segment = |entry: &SegmentEntry| catalog.as_ref()?.segments.get(entry).cloned();
        let in_tier = |entry: &SegmentEntry| segment(entry).is_some_and(|it| it.tier().is_some());
        entries.iter().filter(|entry| !in_tier(entry)).cloned().collect()
    }

    pub(crate) fn unpin(&mut self, held: Held) {
        self.ledger.write().unwrap_or_else(PoisonError::into_inner).unpin(held);
    }
}

/// Places up to the highest that holds a segment.
fn reach(entries: &[SegmentEntry]) -> u32 {
    let last = entries.iter().rposition(|entry| entry.state != SegmentState::Free);
    last.map_or(0, |place| place as u32 + 1)
}

/// Errors: another machine has taken the volume over.
pub(crate) fn check_lease(media: &dyn Media, volume: &str) -> Result<(), StorageError> {
    let Some(lease) = media.lease() else { return Ok(()) };
    lease.check().map_err(|source| device(volume, "keep its lease", source))
}

pub(crate) fn device(volume: &str, doing: &str, source: io::Error) -> StorageError {
    StorageError::Device { volume: volume.to_owned(), doing: doing.to_owned(), source }
}

pub(crate) fn key_error(volume: &str, source: SealError) -> StorageError {
    StorageError::Key { volume: volume.to_owned(), source }
}
