//! Writing one volume's own structures: superblock, table pages, key ring; and making and removing
//! segment files.
//!
//! # Order and crashes
//! Every structure has two slots. A write goes into the slot that does not hold the newest valid
//! copy, with the next generation (or epoch), and is synced before anything in memory changes. A
//! torn write loses to the older copy, which is always a state that the start accepts. After a
//! failed write or sync the volume takes no more writes: nobody knows what it holds.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use wirevault_format::LifeId;
use wirevault_format::digest::file_bytes;
use wirevault_format::limits::LBA_BYTES;
use wirevault_format::superblock::{SLOT_OFFSETS, Superblock};
use wirevault_format::table::{
    Entry, PAGE_ENTRIES, RunEntry, SegmentEntry, SegmentState, encode_page,
};
use wirevault_index::volume::{Table, page_offset, segment_file_name};
use wirevault_index::{IndexError, KeySource, SharedCatalog, Volume};
use wirevault_media::{DIGEST_FILE, Lock, Media, MediaFile, OpenMode, VOLUME_FILE};
use wirevault_seal::ring::wrapped_root;
use wirevault_seal::{ForgetLevel, KeyProvider, KeyRing, SealError, SegmentKeys};

use crate::StorageError;
use crate::bad::{self, Verdict};
use crate::create::{encode_error, encode_ring};
use crate::ledger::{self, Ledger};
use crate::plan::{spares_max, volume_file_bytes};
use crate::room::Disk;
use crate::view::{self, VolumeStatus};

/// For how long places that a fenced writer may write to are not used again, unless it says before
/// that it has ended: drivers give writes up after 30 s, on EC2's local disks after 90 s, and a
/// machine that was paused for longer writes as soon as it goes on.
const CONTESTED_FOR: Duration = Duration::from_secs(3600);

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

    /// Cuts the file of digests behind the highest place that holds a segment, so that it takes no
    /// more than is counted.
    pub(crate) fn cut_digests(&mut self) -> Result<(), StorageError> {
        let reach = reach(self.entries());
        let most = file_bytes(self.superblock().segment_bytes, reach);
        let failed = |source| device(&self.name, &format!("cut {DIGEST_FILE}"), source);
        match self.volume.media.open(DIGEST_FILE, OpenMode::ReadWrite) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => {
                let file = opened.map_err(failed)?;
                if file.len().map_err(failed)? > most {
                    file.set_len(most).map_err(failed)?;
                }
            }
        }
        self.reach = reach;
        Ok(())
    }

    /// Makes new entries of the segment table durable, page by page in the order given.
    pub(crate) fn set_segments(
        &mut self,
        changes: &[(u32, SegmentEntry)],
    ) -> Result<(), StorageError> {
        // A place stays contested, or bad, whatever it holds.
        let stays = |(place, entry): &(u32, SegmentEntry)| {
            let before = &self.entries()[*place as usize];
            let contested = entry.contested || before.contested;
            let bad = entry.bad || before.bad;
            (*place, SegmentEntry { contested, bad, ..entry.clone() })
        };
        let changes: Vec<_> = changes.iter().map(stays).collect();
        self.write_segments(&changes)
    }

    /// A writer before us may still have writes under way: to the segments that it had open, and to
    /// the place that it would have turned to next.
    pub(crate) fn contest(&mut self) -> Result<(), StorageError> {
        let may_be = self.volume.media.lease().is_some_and(|lease| lease.is_contested());
        if !may_be {
            self.note_contested();
            return Ok(());
        }
        let next = self.ledger().first_free();
        let late = |(place, entry): &(u32, &SegmentEntry)| {
            entry.state == SegmentState::Open || Some(*place) == next
        };
        let contested = |(place, entry): (u32, &SegmentEntry)| {
            (place, SegmentEntry { contested: true, ..entry.clone() })
        };
        let changes: Vec<_> = (0..).zip(self.entries()).filter(late).map(contested).collect();
        self.write_segments(&changes)?;
        self.note_contested();
        Ok(())
    }

    fn note_contested(&mut self) {
        let contested = self.entries().iter().any(|entry| entry.contested);
        self.contested_since = contested.then(Instant::now);
    }

    /// Segments may open at contested places again, if nobody writes there any more.
    pub(crate) fn settle_contested(&mut self) -> Result<(), StorageError> {
        let Some(since) = self.contested_since else { return Ok(()) };
        let lease = self.volume.media.lease();
        let gone = lease.is_some_and(|lease| lease.rivals_are_gone().unwrap_or(false));
        if !gone && since.elapsed() < CONTESTED_FOR {
            return Ok(());
        }
        let settled = |(place, entry): (u32, &SegmentEntry)| {
            entry.contested.then(|| (place, SegmentEntry { contested: false, ..entry.clone() }))
        };
        let changes: Vec<_> = (0..).zip(self.entries()).filter_map(settled).collect();
        self.write_segments(&changes)?;
        self.contested_since = None;
        Ok(())
    }

    fn write_segments(&mut self, changes: &[(u32, SegmentEntry)]) -> Result<(), StorageError> {
        let mut rest = changes;
        while let Some((place, _)) = rest.first() {
            let page = *place as usize / PAGE_ENTRIES;
            let in_page =
                |(place, _): &&(u32, SegmentEntry)| *place as usize / PAGE_ENTRIES == page;
            let together = rest.iter().take_while(in_page).count();
            let changes: Vec<_> =
                rest[..together].iter().map(|(at, entry)| (*at as usize, entry.clone())).collect();
            let superblock = &self.volume.superblock;
            let (offset, pages) = (superblock.segments_offset, superblock.segments_pages);
            let next = NextPage::new(&self.volume.segments, offset, pages, page, changes);
            self.write("write the segment table", next.offset, &next.bytes)?;
            let before: Vec<SegmentEntry> = rest[..together]
                .iter()
                .map(|(at, _)| self.entries()[*at as usize].clone())
                .collect();
            let mut ledger = self.ledger.write().unwrap_or_else(PoisonError::into_inner);
            for ((place, after), before) in rest.iter().zip(&before) {
                ledger.change(*place, before, after);
                if after.state != SegmentState::Free {
                    self.reach = self.reach.max(*place + 1);
                }
            }
            drop(ledger);
            for ((_, after), before) in rest.iter().zip(&before) {
                if after.life != before.life || after.state == SegmentState::Free {
                    self.volume.digests.forget(before.life);
                }
            }
            next.apply(&mut self.volume.segments);
            if let Some(shared) = &self.shared {
                view::show_segments(shared, &self.volume, &before, &rest[..together]);
            }
            rest = &rest[together..];
        }
        Ok(())
    }

    /// Makes one new entry of the run table durable.
    pub(crate) fn set_run(&mut self, at: usize, entry: RunEntry) -> Result<(), StorageError> {
        let superblock = &self.volume.superblock;
        let (offset, pages) = (superblock.runs_offset, superblock.runs_pages);
        let changes = vec![(at, entry)];
        let page = at / PAGE_ENTRIES;
        let next = NextPage::new(&self.volume.runs, offset, pages, page, changes);
        self.write("write the run table", next.offset, &next.bytes)?;
        next.apply(&mut self.volume.runs);
        if let Some(shared) = &self.shared {
            view::show_runs(shared, self.runs());
        }
        Ok(())
    }

    /// Makes a changed superblock durable.
    pub(crate) fn set_superblock(
        &mut self,
        change: impl FnOnce(&mut Superblock),
    ) -> Result<(), StorageError> {
        let mut next = self.volume.superblock.clone();
        change(&mut next);
        next.generation += 1;
        let slot = 1 - self.volume.superblock_slot;
        let block = next.encode().map_err(|source| encode_error(&self.name, source))?;
        self.write("write the superblock", SLOT_OFFSETS[slot], &block)?;
        self.volume.superblock = next;
        self.volume.superblock_slot = slot;
        if let Some(shared) = &self.shared {
            view::show_evicted(shared, &self.volume.superblock);
        }
        Ok(())
    }

    /// Keeps a closed segment from being given up until [`VolumeWriter::unpin`]. `false`: this
    /// life is not there, not closed, or a copy for a hold.
    pub(crate) fn pin(&mut self, place: u32, life: LifeId) -> bool {
        let entry = self.entries().get(place as usize);
        let there = entry.is_some_and(|entry| {
            (entry.state, entry.life, entry.hold) == (SegmentState::Closed, life, 0)
        });
        if there {
            self.ledger.write().unwrap_or_else(PoisonError::into_inner).pin(place);
        }
        there
    }

    pub(crate) fn unpin(&mut self, place: u32) {
        self.ledger.write().unwrap_or_else(PoisonError::into_inner).unpin(place);
    }

    /// Spare keys at hand.
    pub(crate) fn spares(&self) -> usize {
        self.spares.len()
    }

    /// How many of so many spares the ring has room for.
    pub(crate) fn spares_wanted(&self, wanted: usize) -> usize {
        wanted.min(spares_max(self.superblock()))
    }

    /// Writes the ring anew: the keys of the lives in the table, the spares at hand, and new spares
    /// until there are `wanted` (or as many as there is room for). Does nothing in plain stores.
    pub(crate) fn rewrite_ring(&mut self, wanted: usize) -> Result<(), StorageError> {
        let (Some(provider), Some(Ok(ring))) = (&self.provider, &self.volume.ring) else {
            return Ok(());
        };
        let failed = |source| key_error(&self.name, source);
        let superblock = &self.volume.superblock;
        let mut ring: KeyRing = ring.clone();
        let has_key = |entry: &&SegmentEntry| {
            matches!(entry.state, SegmentState::Open | SegmentState::Closed)
        };
        let held = self.entries().iter().filter(has_key);
        let spare = self.spares.iter().map(SegmentKeys::life);
        let named: HashSet<LifeId> = held.map(|entry| entry.life).chain(spare).collect();
        ring.retain(|keys| named.contains(&keys.life()));
        let mut fresh = Vec::new();
        for _ in self.spares.len()..self.spares_wanted(wanted) {
            let keys = SegmentKeys::generate().map_err(failed)?;
            ring.insert(keys.clone()).map_err(failed)?;
            fresh.push(keys);
        }
        ring.advance_epoch();
        let slot = 1 - self.volume.ring_slot;
        let bytes = encode_ring(&ring, &**provider, superblock.ring_slot_bytes, &self.name)?;
        let offset = superblock.ring_offset + slot as u64 * superblock.ring_slot_bytes;
        self.write("write the key ring", offset, &bytes)?;
        // Only now may a segment open with one of the new keys.
        self.volume.ring = Some(Ok(ring));
        self.volume.ring_slot = slot;
        self.spares.extend(fresh);
        Ok(())
    }

    /// Leaves one ring only: reads the newest back, has the provider forget every other root, and
    /// overwrites the other slot. Gives how far that reaches and the epoch that is left; nothing in
    /// plain stores.
    pub(crate) fn forget_older_ring(&mut self) -> Result<Option<(ForgetLevel, u64)>, StorageError> {
        let (Some(provider), Some(Ok(ring))) = (&self.provider, &self.volume.ring) else {
            return Ok(None);
        };
        let provider = Arc::clone(provider);
        let epoch = ring.epoch();
        let Superblock { ring_offset, ring_slot_bytes, .. } = *self.superblock();
        let at = |slot: usize| ring_offset + slot as u64 * ring_slot_bytes;
        let (newest, other) = (at(self.volume.ring_slot), at(1 - self.volume.ring_slot));
        let mut slot = vec![0; ring_slot_bytes as usize];
        let read = |slot: &mut [u8], at| {
            let read = self.file.read_exact_at(slot, at);
            read.map_err(|source| device(&self.name, "read the key ring back", source))
        };
        read(&mut slot, newest)?;
        let failed = |source| key_error(&self.name, source);
        if KeyRing::decode(&slot, &*provider).map_err(failed)?.epoch() != epoch {
            let (what, detail) = ("the key ring", "it does not read back as it was written");
            return Err(failed(SealError::Damaged { what, detail }));
        }
        let kept = wrapped_root(&slot).unwrap_or_default();
        provider.forget_others(kept).map_err(failed)?;
        slot.fill(0);
        self.write("overwrite the older key ring", other, &slot)?;
        let read = self.file.read_exact_at(&mut slot, other);
        read.map_err(|source| device(&self.name, "read the older key ring back", source))?;
        if slot.iter().any(|byte| *byte != 0) {
            let source = io::Error::other("it is still there after it was overwritten");
            return Err(device(&self.name, "overwrite the older key ring", source));
        }
        Ok(Some((provider.forget_level(), epoch)))
    }

    /// Whether the key lets a segment begin.
    pub(crate) fn may_begin(&self) -> Result<(), StorageError> {
        let allowed = self.provider.as_ref().map_or(Ok(()), |provider| provider.may_begin());
        allowed.map_err(|source| key_error(&self.name, source))
    }

    /// A key for a new life, durable already. It is spent whatever becomes of the segment.
    pub(crate) fn take_spare(&mut self) -> Option<SegmentKeys> {
        self.spares.pop_front()
    }

    /// Key of a life that the table names.
    pub(crate) fn keys(&self, entry: &SegmentEntry) -> Option<SegmentKeys> {
        match &self.volume.ring {
            Some(Ok(ring)) if entry.sealed => ring.get(entry.life).cloned(),
            _ => None,
        }
    }

    /// Makes the file of a place: header region and space for a full segment, with its name, all
    /// durable. A file that a crash left there is removed first.
    pub(crate) fn make_segment_file(
        &mut self,
        place: u32,
        region: &[u8],
    ) -> Result<Arc<dyn MediaFile>, StorageError> {
        self.check()?;
        let media = Arc::clone(&self.volume.media);
        let made = bad::twice(&*media, || self.try_make_segment_file(place, region));
        made.map_err(|(error, bad)| {
            // What is left of it is removed at the next start, if not now.
            let _ = media.remove(&segment_file_name(place));
            if bad {
                let entry = SegmentEntry { bad, ..SegmentEntry::default() };
                // If the tables cannot be written either, it is not the place.
                let _ = self.set_segments(&[(place, entry)]);
            }
            error
        })
    }

    fn try_make_segment_file(
        &self,
        place: u32,
        region: &[u8],
    ) -> Result<Arc<dyn MediaFile>, StorageError> {
        let media = &self.volume.media;
        let name = segment_file_name(place);
        let failed = |doing: &str| {
            let doing = format!("{doing} {name}");
            move |source| device(&self.name, &doing, source)
        };
        self.remove_segment_files(&[place])?;
        let file = media.open(&name, OpenMode::CreateNew).map_err(failed("make"))?;
        let wanted_bytes = self.superblock().segment_bytes;
        file.allocate(wanted_bytes).map_err(|source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StorageError::DiskFull {
                volume: self.name.clone(),
                wanted_bytes,
                free_bytes: media.free_bytes().unwrap_or(0),
            },
            _ => failed("reserve space for")(source),
        })?;
        file.write_at(region, 0).map_err(failed("write the header of"))?;
        file.sync().map_err(failed("make durable"))?;
        media.sync_dir().map_err(failed("make durable the name of"))?;
        Ok(file)
    }

    /// Removes the files of places that are free, durably: their space can be used again. A crash
    /// before the end may bring them back; the next start removes them then.
    pub(crate) fn remove_segment_files(&self, places: &[u32]) -> Result<(), StorageError> {
        let mut removed = false;
        for place in places {
            let name = segment_file_name(*place);
            match self.volume.media.remove(&name) {
                Ok(()) => removed = true,
                Err(source) if source.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(device(&self.name, &format!("remove {name}"), source)),
            }
        }
        match removed {
            true => self.volume.media.sync_dir().map_err(|source| {
                device(&self.name, "make the removal of segments durable", source)
            }),
            false => Ok(()),
        }
    }

    /// Takes the volume back into use after a failure: opens it again, for its device may have been
    /// away, and writes anew what it may or may not have kept of the call that failed. What is in
    /// memory counts, because whoever asked for that call was told that it failed; and it was
    /// durable, in the slots that the call did not write to.
    ///
    /// # Errors
    /// The volume is not there, is another one, was written by somebody else, or fails again.
    pub(crate) fn rejoin(&mut self) -> Result<(), StorageError> {
        // One lock at a time: on a device that was there all the time this one still holds.
        self.lock = None;
        let media = Arc::clone(&self.volume.media);
        let lock = media.lock()?;
        let file = media.open(VOLUME_FILE, OpenMode::ReadWrite);
        let file = file.map_err(|source| device(&self.name, "open volume.wv again", source))?;
        let key = self.provider.clone().map_or(KeySource::Recorded, KeySource::Provider);
        let mut found = Volume::read(media, &key)?;
        if let Some(Err(_)) = &found.ring
            && let Some(Err(error)) = found.ring.take()
        {
            return Err(error.into());
        }
        self.check_same(&found)?;
        (self.file, self.lock, self.failed) = (file, Some(lock), None);
        // The superblock also shows that the device takes writes.
        self.volume.superblock.generation = found.superblock.generation;
        self.set_superblock(|_| ())?;
        let Superblock { segments_offset, segments_pages, runs_offset, runs_pages, .. } =
            self.volume.superblock;
        let stale = stale_pages(&mut self.volume.segments, &found.segments);
        let segments = &self.volume.segments;
        let pages = stale
            .into_iter()
            .map(|page| NextPage::new(segments, segments_offset, segments_pages, page, Vec::new()));
        for next in pages.collect::<Vec<_>>() {
            self.write("write the segment table", next.offset, &next.bytes)?;
            next.apply(&mut self.volume.segments);
        }
        let stale = stale_pages(&mut self.volume.runs, &found.runs);
        let runs = &self.volume.runs;
        let pages = stale
            .into_iter()
            .map(|page| NextPage::new(runs, runs_offset, runs_pages, page, Vec::new()));
        for next in pages.collect::<Vec<_>>() {
            self.write("write the run table", next.offset, &next.bytes)?;
            next.apply(&mut self.volume.runs);
        }
        if let (Some(Ok(ring)), Some(Ok(found))) = (&mut self.volume.ring, &found.ring) {
            while ring.epoch() < found.epoch() {
                ring.advance_epoch();
            }
        }
        self.rewrite_ring(self.spares.len())
    }

    /// Its superblock, and what opens its key ring.
    pub(crate) fn identity(&self) -> (Superblock, Option<Arc<dyn KeyProvider>>) {
        (self.superblock().clone(), self.provider.clone())
    }

    /// Becomes another volume, of the same number; whoever looks at this one sees that one then.
    pub(crate) fn give_way_to(&mut self, fresh: Self) {
        let ledger = Arc::clone(&self.ledger);
        let known = fresh.ledger().clone();
        *ledger.write().unwrap_or_else(PoisonError::into_inner) = known;
        let (shared, reserve_percent) = (self.shared.take(), self.reserve_percent);
        *self = Self { ledger, shared, reserve_percent, ..fresh };
    }

    /// Whether that is this volume, and as this process left it but for one call that failed.
    fn check_same(&self, found: &Volume) -> Result<(), StorageError> {
        let (known, there) = (&self.volume, &found.superblock);
        let own = &known.superblock;
        let refuse = |why: &str| {
            let (volume, why) = (self.name.clone(), why.to_owned());
            Err(StorageError::Failed { volume, why })
        };
        if (there.store, there.volume) != (own.store, own.volume) {
            return refuse("another volume stands there now");
        }
        let follows = |found: &[(u64, usize)], known: &[(u64, usize)]| {
            found.iter().zip(known).all(|(found, known)| found.0 <= known.0 + 1)
        };
        let others = there.generation > own.generation + 1
            || !follows(&found.segments.pages, &known.segments.pages)
            || !follows(&found.runs.pages, &known.runs.pages);
        match others {
            true => refuse("it was written by somebody else meanwhile"),
            false => Ok(()),
        }
    }

    fn check(&self) -> Result<(), StorageError> {
        match &self.failed {
            None => check_lease(&*self.volume.media, &self.name),
            Some(why) => Err(StorageError::Failed { volume: self.name.clone(), why: why.clone() }),
        }
    }

    /// On a shared volume the lease is looked at before, so that at most one write is late, and
    /// behind, so that nothing counts which another writer does not know of.
    fn write(&mut self, doing: &str, offset: u64, bytes: &[u8]) -> Result<(), StorageError> {
        self.check()?;
        let written = self.file.write_at(bytes, offset).and_then(|()| self.file.sync());
        let kept = || self.volume.media.lease().map_or(Ok(()), |lease| lease.check());
        let written = written.and_then(|()| kept());
        written.map_err(|source| {
            self.failed = Some(format!("cannot {doing}: {source}"));
            device(&self.name, doing, source)
        })
    }
}

/// A page of a table as it will be.
struct NextPage<E> {
    page: usize,
    generation: u64,
    slot: usize,
    offset: u64,
    bytes: [u8; LBA_BYTES],
    changes: Vec<(usize, E)>,
}

impl<E: Entry> NextPage<E> {
    fn new(
        table: &Table<E>,
        table_offset: u64,
        pages: u32,
        page: usize,
        changes: Vec<(usize, E)>,
    ) -> Self {
        let (generation, slot) = table.pages[page];
        let (generation, slot) = (generation + 1, 1 - slot);
        let first = page * PAGE_ENTRIES;
        let end = table.entries.len().min(first + PAGE_ENTRIES);
        let mut entries = table.entries[first..end].to_vec();
        for (at, entry) in &changes {
            entries[at - first] = entry.clone();
        }
        let bytes = encode_page(page as u32, generation, &entries);
        let offset = page_offset(table_offset, pages, slot, page as u32);
        Self { page, generation, slot, offset, bytes, changes }
    }

    fn apply(self, table: &mut Table<E>) {
        table.pages[self.page] = (self.generation, self.slot);
        for (at, entry) in self.changes {
            table.entries[at] = entry;
        }
    }
}

/// Pages of which the volume may hold a newer copy than is known. The next one is newer than that,
/// and goes where that is.
fn stale_pages<E>(known: &mut Table<E>, found: &Table<E>) -> Vec<usize> {
    let mut stale = Vec::new();
    for (page, (known, found)) in known.pages.iter_mut().zip(&found.pages).enumerate() {
        if found.0 > known.0 {
            known.0 = found.0;
            stale.push(page);
        }
    }
    stale
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

/// Place of the segment file with that name.
pub(crate) fn place_of(name: &str) -> Option<u32> {
    let place = name.strip_suffix(".pcapng")?.parse().ok()?;
    (segment_file_name(place) == name).then_some(place)
}

pub(crate) fn device(volume: &str, doing: &str, source: io::Error) -> StorageError {
    StorageError::Device { volume: volume.to_owned(), doing: doing.to_owned(), source }
}

pub(crate) fn key_error(volume: &str, source: SealError) -> StorageError {
    StorageError::Key { volume: volume.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_we_give_are_ours() {
        assert_eq!(place_of("000012.pcapng"), Some(12));
        for other in ["12.pcapng", "000012.pcap", "+00012.pcapng", "evidence.pcapng", "volume.wv"] {
            assert_eq!(place_of(other), None, "{other}");
        }
    }
}
