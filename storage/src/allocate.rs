//! Opening a segment: which volume, what has to go for it, which key, and in which order that
//! becomes durable.

use wirevault_format::segment::SegmentHeader;
use wirevault_format::table::{RunEntry, SegmentEntry, SegmentState};
use wirevault_format::{FormatError, Interface};
use wirevault_seal::{Purpose, SealError, SegmentKeys, random};

use crate::StorageError;
use crate::create::encode_error;
use crate::plan::{flows_max, index_reserve_bytes};
use crate::store::{OpenRequest, OpenSegment, Store};
use crate::view::Showing;
use crate::volume::{VolumeWriter, key_error};

impl Store {
    /// Opens a segment: on a volume that is not suspect, with the fewest open segments, then with
    /// the most room, then with the oldest data. If that volume refuses, the others are asked.
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
            let oldest = volume.ledger().oldest().next().map(|(ordinal, _)| ordinal);
            let failed = volume.failed().is_some();
            let suspect = volume.suspect().is_some();
            (failed, suspect, volume.ledger().open(), u64::MAX - segments_left, oldest)
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
        self.top_up(number);
        let volume = &self.volumes[number];
        let segment_bytes = volume.superblock().segment_bytes;
        let name = volume.name.clone();
        Ok(OpenSegment {
            volume: number,
            name,
            place,
            file,
            keys,
            entry,
            interfaces: request.interfaces.into(),
            data_offset: region.len() as u64,
            data_end: segment_bytes - index_reserve_bytes(segment_bytes),
            segment_bytes,
            flows_max: flows_max(segment_bytes),
            showing: Showing::new(&self.shared, volume),
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
        given_up.iter().for_each(|entry| (self.witness)(entry));
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
        volume.remove_segment_files(&room.evict)?;
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
        let mut oldest = volume.ledger().oldest();
        let free = volume.ledger().first_free();
        let mut given_up_bytes = 0u64;
        let mut evict = Vec::new();
        loop {
            let place = evict.first().copied().or(free);
            // A higher place than ever makes the file of digests longer.
            let used_bytes = volume.used_bytes_with(place.map_or(0, |place| place + 1));
            let left_bytes = used_bytes.saturating_sub(given_up_bytes);
            let fits = left_bytes.saturating_add(segment_bytes) <= quota_bytes;
            if let Some(place) = place.filter(|_| fits) {
                return Ok(Self { evict, place });
            }
            let Some((_, place)) = oldest.next() else {
                let arithmetic = format!(
                    "its quota of {quota_bytes} bytes holds {} bytes of tables and digests and {} \
                     open segments of {segment_bytes} bytes, on {} places; use fewer lanes, or \
                     make a store with a larger quota",
                    volume.used_bytes().saturating_sub(volume.ledger().used_bytes()),
                    volume.ledger().open(),
                    superblock.places
                );
                return Err(StorageError::Exhausted { volume: volume.name.clone(), arithmetic });
            };
            let entry = &volume.entries()[place as usize];
            given_up_bytes = given_up_bytes.saturating_add(entry.file_bytes);
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

/// The last time that a segment can answer for. Live packets are no later than the closing.
fn last_ns(entry: &SegmentEntry) -> u64 {
    match (entry.times_ns, entry.import) {
        (Some((_, max_ns)), _) => max_ns,
        (None, true) => 0,
        (None, false) => entry.closed_ns,
    }
}
