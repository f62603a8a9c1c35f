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
use crate::volume::key_error;

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
            let left = volume.left_bytes(self.reserve_percent);
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
                Ok(open) => {
                    self.volumes[number].note_room(None);
                    return Ok(open);
                }
                Err(error) => {
                    self.volumes[number].note_room(Some(&error));
                    first_error.get_or_insert(error);
                }
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
        let place = self.make_room(number, request.lane, run.import)?;
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
