//! The one writer of a store: runs, segments, quota.
//!
//! Invariants:
//! 1. A segment's name, header, space and key are durable before its table entry says "open", and
//!    that entry is durable before anybody may write a chunk.
//! 2. Whatever is given up for the quota is closed, and the oldest of its volume by ordinal; what
//!    readers must know of it (the superblock's `evicted` times) is durable before its entry is
//!    freed, and that before its file goes.
//! 3. Per volume, volume file + closed segments + open segments at full size never exceed the
//!    quota.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wirevault_format::table::{RunEntry, RunState, SegmentEntry};
use wirevault_format::{Interface, LifeId, LinkType, RunId, StoreId};
use wirevault_index::SharedCatalog;
use wirevault_media::MediaFile;
use wirevault_seal::{SegmentKeys, random};
use wirevault_telemetry::clock::Clock;

use crate::StorageError;
use crate::choose::Wear;
use crate::finish::Finished;
use crate::hold::HOLD_PERCENT;
use crate::plan::{flows_max, spares_wanted};
use crate::room::Budget;
use crate::standing::SharedVolume;
use crate::view::Showing;
use crate::volume::{VolumeWriter, key_error};

/// The one writer of a store, for several threads. Dropping it unlocks the volumes.
///
/// Each volume has a lock of its own, which is held through the writes and flushes of a change
/// there: threads that work on other volumes do not wait for it.
pub struct Store {
    pub(crate) id: StoreId,
    pub(crate) sealed: bool,
    pub(crate) volumes: Vec<SharedVolume>,
    pub(crate) clock: Arc<dyn Clock>,
    /// What queries look at; the volumes keep it up to date.
    pub(crate) shared: Arc<SharedCatalog>,
    pub(crate) next_ordinal: AtomicU64,
    desk: Mutex<Desk>,
    pub(crate) witness: Witness,
    /// Part of each file system that is left to others.
    pub(crate) reserve_percent: u8,
    pub(crate) budgets: Vec<Budget>,
    /// Part of each volume's quota that copies for holds may take.
    pub(crate) hold_percent: u8,
}

/// What belongs to no volume. Its lock is taken last, and never while a device is waited for.
#[derive(Default)]
pub(crate) struct Desk {
    /// Place in the run table, and entry, of the run that is going on.
    pub(crate) run: Option<(usize, RunEntry)>,
    /// Segments that this process opened and has not closed: volume and place.
    pub(crate) open: HashMap<LifeId, (usize, u32)>,
    /// Lanes whose segments are being opened.
    pub(crate) opening: Vec<u16>,
    pub(crate) spares_wanted: usize,
    /// Why the last writing of a key ring failed, if it did.
    pub(crate) key_trouble: Option<String>,
}

/// Is told of each segment that is given up, before anything of it goes, and whether it waited for
/// holds; says whether they lose something by it. May take as long as a device needs for a read and
/// a flush: nobody waits for it but who makes room, unless somebody else made room on the same
/// volume at the same time. What it was told of is the next to go.
pub type Witness = Box<dyn Fn(&SegmentEntry, bool) -> bool + Send + Sync>;

/// Which segment a lane wants.
#[derive(Debug, Clone, Copy)]
pub struct OpenRequest<'a> {
    /// Lane.
    pub lane: u16,
    /// Link type of every packet to come.
    pub link_type: LinkType,
    /// Interfaces that packets will name by number; 64 at most.
    pub interfaces: &'a [Interface],
}

/// A segment that is open for writing. Its header, its name, its space and its table entry are
/// durable.
pub struct OpenSegment {
    /// Number of the volume.
    pub volume: usize,
    /// The volume in words, for messages.
    pub name: String,
    /// Place on the volume.
    pub place: u32,
    /// File of the segment, as long as a full segment.
    pub file: Arc<dyn MediaFile>,
    /// Key of its life in a sealed store; it gives out the one data sealer.
    pub keys: Option<SegmentKeys>,
    /// Entry of the segment table.
    pub entry: SegmentEntry,
    /// What its packets came from, as its header region says.
    pub interfaces: Arc<[Interface]>,
    /// Offset of the first chunk.
    pub data_offset: u64,
    /// Offset that no chunk may pass: what is behind it belongs to the index.
    pub data_end: u64,
    /// Bytes of a full segment.
    pub segment_bytes: u64,
    /// Flows whose index fits the reserve.
    pub flows_max: u32,
    /// How queries get to see it.
    pub(crate) showing: Showing,
}

impl Store {
    /// A store of these volumes, in the order of their numbers, in which no run goes on.
    pub(crate) fn new(
        id: StoreId,
        volumes: Vec<VolumeWriter>,
        clock: Arc<dyn Clock>,
        shared: Arc<SharedCatalog>,
    ) -> Self {
        let ordinals = volumes.iter().flat_map(VolumeWriter::entries).map(|entry| entry.ordinal);
        Self {
            id,
            sealed: volumes.first().is_some_and(|volume| volume.superblock().sealed),
            next_ordinal: AtomicU64::new(ordinals.max().unwrap_or(0) + 1),
            volumes: volumes.into_iter().map(SharedVolume::new).collect(),
            clock,
            shared,
            desk: Mutex::default(),
            witness: Box::new(|_, waited| waited),
            reserve_percent: 0,
            budgets: Vec::new(),
            hold_percent: HOLD_PERCENT,
        }
    }

    /// Store.
    pub fn id(&self) -> StoreId {
        self.id
    }

    /// Packets, index and flow data are encrypted.
    pub fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// The key that the store is sealed with, as its provider names it; nothing in a plain store.
    pub fn key_id(&self) -> Option<String> {
        self.volumes.first().and_then(|volume| volume.look().key_id())
    }

    /// Sets who is told of segments that are given up; until then nobody is.
    pub fn set_witness(&mut self, witness: Witness) {
        self.witness = witness;
    }

    /// Flows that the index of an open segment follows at most, on any of the volumes.
    pub fn flows_max(&self) -> u32 {
        let each = self.volumes.iter().map(|it| flows_max(it.status().segment_bytes));
        each.max().unwrap_or(0)
    }

    /// Begins a run and makes that durable. Its entry takes a free line of the run table, or the
    /// line of the oldest run of which no segment is left, or of the oldest.
    ///
    /// # Errors
    /// `Misuse` if a run is going on; `Key` if there is no randomness or no key can be made;
    /// `Device`.
    pub fn begin_run(&self, import: bool, lanes: u16) -> Result<RunId, StorageError> {
        self.volumes[0].work(|first| {
            if let Some((_, run)) = &self.desk().run {
                let what = format!("run {} is going on: end it before another begins", run.run);
                return Err(StorageError::Misuse { what });
            }
            let failed = |source| key_error(&first.name, source);
            let now_ns = self.clock.unix_ns();
            let entry = RunEntry {
                state: RunState::Running,
                import,
                lanes,
                run: random::run_id().map_err(failed)?,
                started_ns: now_ns,
                alive_ns: now_ns,
                ended_ns: 0,
            };
            let at = self.free_run_line(first)?;
            first.set_run(at, entry.clone())?;
            let run = entry.run;
            let mut desk = self.desk();
            desk.spares_wanted = desk.spares_wanted.max(spares_wanted(lanes));
            desk.run = Some((at, entry));
            Ok(run)
        })
    }

    /// Says durably that the run is alive.
    ///
    /// # Errors
    /// `Misuse` without a run; `Device`.
    pub fn heartbeat(&self) -> Result<(), StorageError> {
        let now_ns = self.clock.unix_ns();
        self.update_run(|run| run.alive_ns = now_ns.max(run.alive_ns))?;
        self.volumes[0].work(VolumeWriter::settle_contested)
    }

    /// Says durably that the run ended well.
    ///
    /// # Errors
    /// `Misuse` without a run; `Device`: the next start then takes it for a crash.
    pub fn end_run(&self) -> Result<(), StorageError> {
        let now_ns = self.clock.unix_ns();
        self.update_run(|run| {
            run.alive_ns = now_ns.max(run.alive_ns);
            run.ended_ns = run.alive_ns;
            run.state = RunState::Ended;
        })?;
        self.desk().run = None;
        Ok(())
    }

    /// Enters a finished segment into the table as closed, durably.
    ///
    /// # Errors
    /// `Misuse` if the place does not hold this open segment; `Device`.
    pub fn close_segment(
        &self,
        open: &OpenSegment,
        finished: Finished,
    ) -> Result<SegmentEntry, StorageError> {
        if finished.entry.life != open.entry.life {
            let what = format!(
                "segment {} cannot be closed with the index of segment {}",
                open.entry.life, finished.entry.life
            );
            return Err(StorageError::Misuse { what });
        }
        let change = [(open.place, finished.entry.clone())];
        let volume = &self.volumes[open.volume];
        volume.work(|volume| {
            self.check_open(open, "closed")?;
            volume.set_segments(&change)
        })?;
        volume.note_closed(&finished.entry);
        self.desk().open.remove(&open.entry.life);
        Ok(finished.entry)
    }

    /// Gives back a segment that never held a chunk: its entry is freed durably, then its file
    /// goes.
    ///
    /// # Errors
    /// `Misuse` if the place does not hold this open segment; `Device`.
    pub fn release_segment(&self, open: &OpenSegment) -> Result<(), StorageError> {
        self.release(open, false)
    }

    /// The same, and its place is bad: no segment is given it any more.
    ///
    /// # Errors
    /// As [`Store::release_segment`].
    pub fn release_bad_place(&self, open: &OpenSegment) -> Result<(), StorageError> {
        self.release(open, true)
    }

    pub(crate) fn release(&self, open: &OpenSegment, bad: bool) -> Result<(), StorageError> {
        let freed = SegmentEntry { bad, ..SegmentEntry::default() };
        self.volumes[open.volume].work(|volume| {
            self.check_open(open, "released")?;
            volume.set_segments(&[(open.place, freed)])?;
            self.desk().open.remove(&open.entry.life);
            volume.remove_segment_files(&[open.place])
        })
    }

    /// Whether this segment is open; not any more if its volume was replaced.
    pub fn is_open(&self, life: LifeId) -> bool {
        self.desk().open.contains_key(&life)
    }

    /// A write or flush of a segment on this volume failed. For some time segments open there only
    /// if no other volume takes one; then one does, on trial, and if it is closed well the volume
    /// is as good as any. Its tables go on: they are flushed by themselves, and a failure there is
    /// noticed there. Waits for no device.
    pub fn suspect_volume(&self, volume: usize, why: &str) {
        if let Some(volume) = self.volumes.get(volume) {
            volume.suspect(why, self.next_ordinal.load(Ordering::Relaxed));
        }
    }

    /// Whether a volume failed, now or lately, so that segments open elsewhere if they can. Waits
    /// for no device.
    pub fn has_failed(&self, volume: usize) -> bool {
        self.volumes.get(volume).is_none_or(SharedVolume::has_failed)
    }

    /// Takes a volume back into use that failed, if its device works again: segments open there as
    /// before, and those that could not be closed there can be now.
    ///
    /// # Errors
    /// `Media`, `Index`, `Device` if it does not work; `Failed` if another volume stands there, or
    /// somebody else wrote to it.
    pub fn rejoin_volume(&self, volume: usize) -> Result<(), StorageError> {
        match self.volumes.get(volume) {
            Some(volume) => volume.work(VolumeWriter::rejoin),
            None => Err(StorageError::Misuse { what: format!("there is no volume {volume}") }),
        }
    }

    /// Whether a volume takes writes, as far as is known. Waits for no device.
    pub fn is_in_use(&self, volume: usize) -> bool {
        self.volumes.get(volume).is_some_and(SharedVolume::is_well)
    }

    /// What the device of a volume tells of its wear. Waits for no device.
    pub fn set_wear(&self, volume: usize, wear: Wear) {
        if let Some(volume) = self.volumes.get(volume) {
            volume.set_wear(wear);
        }
    }

    /// What belongs to no volume.
    pub(crate) fn desk(&self) -> MutexGuard<'_, Desk> {
        // Whoever held it left it whole.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update_run(&self, change: impl FnOnce(&mut RunEntry)) -> Result<(), StorageError> {
        self.volumes[0].work(|first| {
            let Some((at, mut run)) = self.desk().run.clone() else {
                let what = "no run is going on: begin one".to_owned();
                return Err(StorageError::Misuse { what });
            };
            change(&mut run);
            first.set_run(at, run.clone())?;
            self.desk().run = Some((at, run));
            Ok(())
        })
    }

    fn free_run_line(&self, first: &VolumeWriter) -> Result<usize, StorageError> {
        let runs = first.runs();
        if let Some(free) = runs.iter().position(|run| run.state == RunState::None) {
            return Ok(free);
        }
        let catalog = self.shared.take(0);
        let has_segments = |run: RunId| catalog.segments.iter().any(|it| it.entry.run == run);
        let line =
            (0..runs.len()).min_by_key(|at| (has_segments(runs[*at].run), runs[*at].started_ns));
        let what = || "the store has no run table".to_owned();
        line.ok_or_else(|| StorageError::Misuse { what: what() })
    }

    fn check_open(&self, open: &OpenSegment, what_for: &str) -> Result<(), StorageError> {
        match self.desk().open.get(&open.entry.life) {
            Some(at) if *at == (open.volume, open.place) => Ok(()),
            _ => {
                let life = open.entry.life;
                let what = format!("segment {life} cannot be {what_for}: it is not open");
                Err(StorageError::Misuse { what })
            }
        }
    }
}
