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
use std::sync::{Arc, RwLock};

use wirevault_format::segment::SegmentHeader;
use wirevault_format::table::{RunEntry, RunState, SegmentEntry, SegmentState};
use wirevault_format::{FormatError, Interface, LifeId, LinkType, RunId, StoreId};
use wirevault_index::{Catalog, Segment, SegmentIndex, catalog};
use wirevault_media::MediaFile;
use wirevault_seal::{Purpose, SealError, SegmentKeys, random};
use wirevault_telemetry::clock::Clock;

use crate::StorageError;
use crate::create::encode_error;
use crate::finish::Finished;
use crate::plan::{flows_max, index_reserve_bytes, spares_wanted, volume_file_bytes};
use crate::volume::{VolumeWriter, key_error};

/// The one writer of a store. Dropping it unlocks the volumes.
pub struct Store {
    pub(crate) id: StoreId,
    pub(crate) volumes: Vec<VolumeWriter>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Place in the run table, and entry, of the run that is going on.
    pub(crate) run: Option<(usize, RunEntry)>,
    pub(crate) next_ordinal: u64,
    /// Segments that this process opened and has not closed: volume and place.
    pub(crate) open: HashMap<LifeId, (usize, u32)>,
    pub(crate) spares_wanted: usize,
    /// Why the last writing of a key ring failed, if it did.
    pub(crate) key_trouble: Option<String>,
}

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
    /// Offset of the first chunk.
    pub data_offset: u64,
    /// Offset that no chunk may pass: what is behind it belongs to the index.
    pub data_end: u64,
    /// Bytes of a full segment.
    pub segment_bytes: u64,
    /// Flows whose index fits the reserve.
    pub flows_max: u32,
}

/// State of a store, for people and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreStatus {
    /// Store.
    pub id: StoreId,
    /// Packets, index and flow data are encrypted.
    pub sealed: bool,
    /// Volumes, by number.
    pub volumes: Vec<VolumeStatus>,
    /// Why the key rings could not be written the last time; capture goes on with spare keys.
    pub key_trouble: Option<String>,
}

/// State of one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeStatus {
    /// Its place in words.
    pub path: String,
    /// Bytes it may occupy.
    pub quota_bytes: u64,
    /// Bytes that count against the quota: its own file, closed segments, and open ones at full
    /// size.
    pub used_bytes: u64,
    /// Segments, open ones included.
    pub segments: u32,
    /// Of them open.
    pub open_segments: u32,
    /// Places for segments.
    pub places: u32,
    /// Bytes of a full segment.
    pub segment_bytes: u64,
    /// Spare keys at hand; 0 in plain stores.
    pub spare_keys: usize,
    /// `None` while it works; else the failure after which it takes no more writes.
    pub failed: Option<String>,
}

impl Store {
    /// Store.
    pub fn id(&self) -> StoreId {
        self.id
    }

    /// Packets, index and flow data are encrypted.
    pub fn is_sealed(&self) -> bool {
        self.volumes[0].superblock().sealed
    }

    /// Begins a run and makes that durable. Its entry takes a free line of the run table, or the
    /// line of the oldest run of which no segment is left, or of the oldest.
    ///
    /// # Errors
    /// `Misuse` if a run is going on; `Key` if there is no randomness or no key can be made;
    /// `Device`.
    pub fn begin_run(&mut self, import: bool, lanes: u16) -> Result<RunId, StorageError> {
        if let Some((_, run)) = &self.run {
            let what = format!("run {} is going on: end it before another begins", run.run);
            return Err(StorageError::Misuse { what });
        }
        let failed = |source| key_error(&self.volumes[0].name, source);
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
        self.spares_wanted = self.spares_wanted.max(spares_wanted(lanes));
        let at = self.free_run_line()?;
        self.volumes[0].set_run(at, entry.clone())?;
        let run = entry.run;
        self.run = Some((at, entry));
        Ok(run)
    }

    /// Says durably that the run is alive.
    ///
    /// # Errors
    /// `Misuse` without a run; `Device`.
    pub fn heartbeat(&mut self) -> Result<(), StorageError> {
        let now_ns = self.clock.unix_ns();
        self.update_run(|run| run.alive_ns = now_ns.max(run.alive_ns))
    }

    /// Says durably that the run ended well.
    ///
    /// # Errors
    /// `Misuse` without a run; `Device`: the next start then takes it for a crash.
    pub fn end_run(&mut self) -> Result<(), StorageError> {
        let now_ns = self.clock.unix_ns();
        self.update_run(|run| {
            run.alive_ns = now_ns.max(run.alive_ns);
            run.ended_ns = run.alive_ns;
            run.state = RunState::Ended;
        })?;
        self.run = None;
        Ok(())
    }

    /// Opens a segment: on the volume with the fewest open segments, then with the most room, then
    /// with the oldest data. If that volume refuses, the others are asked.
    ///
    /// # Errors
    /// What the first volume said, if all refuse: `Exhausted`, `DiskFull`, `Device`, `Failed`,
    /// `Key`. `Misuse` without a run, `Encode` if the interfaces do not fit a header.
    pub fn open_segment(&mut self, request: OpenRequest<'_>) -> Result<OpenSegment, StorageError> {
        let Some((_, run)) = self.run.clone() else {
            let what = "a segment opens within a run only: begin one".to_owned();
            return Err(StorageError::Misuse { what });
        };
        let mut order: Vec<usize> = (0..self.volumes.len()).collect();
        order.sort_by_cached_key(|number| {
            let volume = &self.volumes[*number];
            let left = volume.superblock().quota_bytes.saturating_sub(volume.used_bytes());
            // Less than a segment is no room at all: something has to go on each such volume.
            let segments_left = left / volume.superblock().segment_bytes;
            let oldest = closed(volume).map(|(_, entry)| entry.ordinal).min();
            let failed = volume.failed().is_some();
            (failed, open_count(volume), u64::MAX - segments_left, oldest)
        });
        let mut first_error = None;
        for number in order {
            match self.open_on(number, &run, &request) {
                Ok(open) => return Ok(open),
                Err(error) => drop(first_error.get_or_insert(error)),
            }
        }
        let what = || "the store has no volume".to_owned();
        Err(first_error.unwrap_or_else(|| StorageError::Misuse { what: what() }))
    }

    /// Enters a finished segment into the table as closed, durably.
    ///
    /// # Errors
    /// `Misuse` if the place does not hold this open segment; `Device`.
    pub fn close_segment(
        &mut self,
        open: &OpenSegment,
        finished: Finished,
    ) -> Result<SegmentEntry, StorageError> {
        self.check_open(open, "closed")?;
        if finished.entry.life != open.entry.life {
            let what = format!(
                "segment {} cannot be closed with the index of segment {}",
                open.entry.life, finished.entry.life
            );
            return Err(StorageError::Misuse { what });
        }
        let change = [(open.place, finished.entry.clone())];
        self.volumes[open.volume].set_segments(&change)?;
        self.open.remove(&open.entry.life);
        Ok(finished.entry)
    }

    /// Gives back a segment that never held a chunk: its entry is freed durably, then its file
    /// goes.
    ///
    /// # Errors
    /// `Misuse` if the place does not hold this open segment; `Device`.
    pub fn release_segment(&mut self, open: &OpenSegment) -> Result<(), StorageError> {
        self.check_open(open, "released")?;
        let volume = &mut self.volumes[open.volume];
        volume.set_segments(&[(open.place, SegmentEntry::default())])?;
        self.open.remove(&open.entry.life);
        volume.remove_segment_file(open.place)
    }

    /// Opens no more segments on a volume, and writes nothing to its tables, until the next start:
    /// its device failed under somebody else's writes.
    pub fn set_volume_failed(&mut self, volume: usize, why: &str) {
        if let Some(volume) = self.volumes.get_mut(volume) {
            volume.set_failed(why.to_owned());
        }
    }

    /// What queries may look at. `live` are the indexes of segments that lanes of this process
    /// write; an open segment without one holds nothing durable yet and is left out.
    pub fn catalog(&self, now_ns: u64, live: &[(LifeId, Arc<RwLock<SegmentIndex>>)]) -> Catalog {
        let live: HashMap<_, _> = live.iter().map(|(life, index)| (*life, index)).collect();
        let mut segments = Vec::new();
        for volume in &self.volumes {
            let (number, media) = (volume.superblock().number, &volume.volume.media);
            for (place, entry) in volume.entries().iter().enumerate() {
                let place = place as u32;
                match (entry.state, live.get(&entry.life)) {
                    (SegmentState::Free, _) => {}
                    (SegmentState::Open, Some(index)) => {
                        let (keys, index) = (volume.keys(entry), Arc::clone(index));
                        let media = Arc::clone(media);
                        let segment =
                            Segment::live(entry.clone(), number, place, media, keys, index);
                        segments.push(segment);
                    }
                    (SegmentState::Open, None) if self.open.contains_key(&entry.life) => {}
                    (SegmentState::Open | SegmentState::Closed, _) => {
                        segments.push(Segment::stored(&volume.volume, place, entry.clone()));
                    }
                }
            }
        }
        segments.sort_by_key(|segment| segment.entry.ordinal);
        catalog::set_watermarks(&mut segments);
        let runs = self.volumes[0].runs().iter().filter(|run| run.state != RunState::None);
        let mut runs: Vec<RunEntry> = runs.cloned().collect();
        runs.sort_by_key(|run| run.started_ns);
        let superblocks = || self.volumes.iter().map(VolumeWriter::superblock);
        Catalog {
            store: self.id,
            segments: segments.into_iter().map(Arc::new).collect(),
            runs,
            missing_volumes: Vec::new(),
            evicted_live_ns: superblocks().map(|it| it.evicted_live_ns).max().unwrap_or(0),
            evicted_import_ns: superblocks().map(|it| it.evicted_import_ns).max().unwrap_or(0),
            now_ns,
            durable_until_ns: None,
        }
    }

    /// State of the store.
    pub fn status(&self) -> StoreStatus {
        let volume = |volume: &VolumeWriter| {
            let superblock = volume.superblock();
            let held = volume.entries().iter().filter(|it| it.state != SegmentState::Free).count();
            VolumeStatus {
                path: volume.name.clone(),
                quota_bytes: superblock.quota_bytes,
                used_bytes: volume.used_bytes(),
                segments: held as u32,
                open_segments: open_count(volume) as u32,
                places: superblock.places,
                segment_bytes: superblock.segment_bytes,
                spare_keys: volume.spares(),
                failed: volume.failed().map(str::to_owned),
            }
        };
        StoreStatus {
            id: self.id,
            sealed: self.is_sealed(),
            volumes: self.volumes.iter().map(volume).collect(),
            key_trouble: self.key_trouble.clone(),
        }
    }

    fn update_run(&mut self, change: impl FnOnce(&mut RunEntry)) -> Result<(), StorageError> {
        let Some((at, mut run)) = self.run.clone() else {
            let what = "no run is going on: begin one".to_owned();
            return Err(StorageError::Misuse { what });
        };
        change(&mut run);
        self.volumes[0].set_run(at, run.clone())?;
        self.run = Some((at, run));
        Ok(())
    }

    fn free_run_line(&self) -> Result<usize, StorageError> {
        let runs = self.volumes[0].runs();
        let has_segments = |run: RunId| {
            let held = |it: &SegmentEntry| it.state != SegmentState::Free && it.run == run;
            self.volumes.iter().any(|volume| volume.entries().iter().any(held))
        };
        if let Some(free) = runs.iter().position(|run| run.state == RunState::None) {
            return Ok(free);
        }
        let line =
            (0..runs.len()).min_by_key(|at| (has_segments(runs[*at].run), runs[*at].started_ns));
        let what = || "the store has no run table".to_owned();
        line.ok_or_else(|| StorageError::Misuse { what: what() })
    }

    fn check_open(&self, open: &OpenSegment, what_for: &str) -> Result<(), StorageError> {
        match self.open.get(&open.entry.life) {
            Some(at) if *at == (open.volume, open.place) => Ok(()),
            _ => {
                let life = open.entry.life;
                let what = format!("segment {life} cannot be {what_for}: it is not open");
                Err(StorageError::Misuse { what })
            }
        }
    }

    fn open_on(
        &mut self,
        number: usize,
        run: &RunEntry,
        request: &OpenRequest<'_>,
    ) -> Result<OpenSegment, StorageError> {
        let place = self.make_room(number)?;
        let keys = self.take_key(number)?;
        let life = match &keys {
            Some(keys) => keys.life(),
            None => random::life_id().map_err(|e| key_error(&self.volumes[number].name, e))?,
        };
        let entry = SegmentEntry {
            state: SegmentState::Open,
            sealed: keys.is_some(),
            import: run.import,
            lane: request.lane,
            link_type: request.link_type,
            life,
            run: run.run,
            ordinal: self.next_ordinal,
            opened_ns: self.clock.unix_ns(),
            ..SegmentEntry::default()
        };
        let region =
            self.header_region(number, place, &entry, keys.as_ref(), request.interfaces)?;
        let volume = &mut self.volumes[number];
        let file = volume.make_segment_file(place, &region)?;
        // The number is spent even if the entry cannot be written: who knows what the device kept.
        self.next_ordinal += 1;
        volume.set_segments(&[(place, entry.clone())])?;
        self.open.insert(life, (number, place));
        let segment_bytes = volume.superblock().segment_bytes;
        let name = volume.name.clone();
        self.top_up(number);
        Ok(OpenSegment {
            volume: number,
            name,
            place,
            file,
            keys,
            entry,
            data_offset: region.len() as u64,
            data_end: segment_bytes - index_reserve_bytes(segment_bytes),
            segment_bytes,
            flows_max: flows_max(segment_bytes),
        })
    }

    fn header_region(
        &self,
        number: usize,
        place: u32,
        entry: &SegmentEntry,
        keys: Option<&SegmentKeys>,
        interfaces: &[Interface],
    ) -> Result<Vec<u8>, StorageError> {
        let header = SegmentHeader {
            sealed: entry.sealed,
            import: entry.import,
            lane: entry.lane,
            link_type: entry.link_type,
            life: entry.life,
            run: entry.run,
            store: self.id,
            ordinal: entry.ordinal,
            place,
            opened_ns: entry.opened_ns,
        };
        let volume = &self.volumes[number].name;
        let region = header.encode(interfaces, |aad, table| {
            let reason = "a plain segment has no header to seal";
            let keys = keys.ok_or(SealError::NoSealer { life: entry.life, reason })?;
            Ok(keys.seal_record(Purpose::SegmentHeader, aad, table)?.salt)
        });
        region.map_err(|error| match error {
            HeaderError::Format(source) => encode_error(volume, source),
            HeaderError::Seal(source) => key_error(volume, source),
        })
    }

    /// Gives up the oldest closed segments of a volume until a full one fits, and names a place.
    fn make_room(&mut self, number: usize) -> Result<u32, StorageError> {
        let volume = &mut self.volumes[number];
        if let Some(why) = volume.failed() {
            let (volume, why) = (volume.name.clone(), why.to_owned());
            return Err(StorageError::Failed { volume, why });
        }
        let room = Room::plan(volume)?;
        let given_up: Vec<SegmentEntry> =
            room.evict.iter().map(|place| volume.entries()[*place as usize].clone()).collect();
        let latest = |import: bool| {
            let these = given_up.iter().filter(|entry| entry.import == import);
            these.map(last_ns).max().unwrap_or(0)
        };
        let (live_ns, import_ns) = (latest(false), latest(true));
        let superblock = volume.superblock();
        if live_ns > superblock.evicted_live_ns || import_ns > superblock.evicted_import_ns {
            volume.set_superblock(|superblock| {
                superblock.evicted_live_ns = live_ns.max(superblock.evicted_live_ns);
                superblock.evicted_import_ns = import_ns.max(superblock.evicted_import_ns);
            })?;
        }
        let freed: Vec<_> =
            room.evict.iter().map(|place| (*place, SegmentEntry::default())).collect();
        volume.set_segments(&freed)?;
        for place in &room.evict {
            volume.remove_segment_file(*place)?;
        }
        Ok(room.place)
    }

    fn take_key(&mut self, number: usize) -> Result<Option<SegmentKeys>, StorageError> {
        if !self.is_sealed() {
            return Ok(None);
        }
        if self.volumes[number].spares() == 0 {
            self.volumes[number].rewrite_ring(self.spares_wanted)?;
        }
        let volume = &mut self.volumes[number];
        let spare = volume.take_spare();
        spare.map(Some).ok_or_else(|| StorageError::Exhausted {
            volume: volume.name.clone(),
            arithmetic: "its key ring has no room for a spare key".to_owned(),
        })
    }

    /// Writes the ring again when fewer than half of the spares are left. A failure is no reason to
    /// stop while there are spares.
    fn top_up(&mut self, number: usize) {
        let volume = &mut self.volumes[number];
        let wanted = volume.spares_wanted(self.spares_wanted);
        if volume.superblock().sealed && volume.spares() < wanted / 2 {
            let written = volume.rewrite_ring(wanted);
            self.key_trouble = written.err().map(|error| error.to_string());
        }
    }
}

/// What has to go from a volume, oldest first, and which place is free then.
struct Room {
    evict: Vec<u32>,
    place: u32,
}

impl Room {
    fn plan(volume: &VolumeWriter) -> Result<Self, StorageError> {
        let superblock = volume.superblock();
        let (segment_bytes, quota_bytes) = (superblock.segment_bytes, superblock.quota_bytes);
        let mut oldest: Vec<(u32, &SegmentEntry)> = closed(volume).collect();
        oldest.sort_by_key(|(_, entry)| entry.ordinal);
        let free = volume.entries().iter().position(|entry| entry.state == SegmentState::Free);
        let mut used_bytes = volume.used_bytes();
        let mut evict = Vec::new();
        let mut oldest = oldest.into_iter();
        loop {
            let place = evict.first().copied().or(free.map(|place| place as u32));
            let fits = used_bytes.saturating_add(segment_bytes) <= quota_bytes;
            if let Some(place) = place.filter(|_| fits) {
                return Ok(Self { evict, place });
            }
            let Some((place, entry)) = oldest.next() else {
                let arithmetic = format!(
                    "its quota of {quota_bytes} bytes holds {} bytes of tables and {} open \
                     segments of {segment_bytes} bytes, on {} places; use fewer lanes, or make a \
                     store with a larger quota",
                    volume_file_bytes(superblock),
                    open_count(volume),
                    superblock.places
                );
                return Err(StorageError::Exhausted { volume: volume.name.clone(), arithmetic });
            };
            used_bytes = used_bytes.saturating_sub(entry.file_bytes);
            evict.push(place);
        }
    }
}

/// Why a header region cannot be made.
enum HeaderError {
    Format(FormatError),
    Seal(SealError),
}

impl From<FormatError> for HeaderError {
    fn from(error: FormatError) -> Self {
        Self::Format(error)
    }
}

impl From<SealError> for HeaderError {
    fn from(error: SealError) -> Self {
        Self::Seal(error)
    }
}

fn closed(volume: &VolumeWriter) -> impl Iterator<Item = (u32, &SegmentEntry)> {
    let entries = volume.entries().iter().enumerate();
    entries
        .filter(|(_, entry)| entry.state == SegmentState::Closed)
        .map(|(place, entry)| (place as u32, entry))
}

fn open_count(volume: &VolumeWriter) -> usize {
    volume.entries().iter().filter(|entry| entry.state == SegmentState::Open).count()
}

/// The last time that a segment can answer for. Live packets are no later than the closing.
fn last_ns(entry: &SegmentEntry) -> u64 {
    match (entry.times_ns, entry.import) {
        (Some((_, max_ns)), _) => max_ns,
        (None, true) => 0,
        (None, false) => entry.closed_ns,
    }
}
