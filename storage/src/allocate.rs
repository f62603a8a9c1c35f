//! Opening a segment: which volume, what has to go for it, which key, and in which order that
//! becomes durable.

use std::sync::atomic::Ordering;

use wirevault_format::segment::SegmentHeader;
use wirevault_format::table::{SegmentEntry, SegmentState};
use wirevault_format::{FormatError, Interface, RunId};
use wirevault_seal::{Purpose, SealError, SegmentKeys, random};

use crate::StorageError;
use crate::choose::{Load, ranked};
use crate::create::encode_error;
use crate::plan::{flows_max, index_reserve_bytes};
use crate::room::Held;
use crate::standing::SharedVolume;
use crate::store::{OpenRequest, OpenSegment, Store};
use crate::view::Showing;
use crate::volume::{VolumeWriter, key_error};

/// What a new segment is to be.
#[derive(Clone, Copy)]
pub(crate) struct Opening<'a> {
    pub(crate) request: OpenRequest<'a>,
    pub(crate) run: RunId,
    pub(crate) import: bool,
    pub(crate) opened_ns: u64,
    /// Number of the hold for which it is a copy; 0: it is none.
    pub(crate) hold: u32,
}

impl Store {
    /// Opens a segment on the volume that ranks first (module `choose`). If that volume refuses,
    /// the others are asked.
    ///
    /// # Errors
    /// What the first volume said, if all refuse: as [`Store::open_segment_on`].
    pub fn open_segment(&self, request: OpenRequest<'_>) -> Result<OpenSegment, StorageError> {
        let mut first_error = None;
        for number in self.ranked_volumes(|_| Load::default()) {
            match self.open_segment_on(number, request) {
                Ok(open) => return Ok(open),
                Err(error) => drop(first_error.get_or_insert(error)),
            }
        }
        let what = || "the store has no volume".to_owned();
        Err(first_error.unwrap_or_else(|| StorageError::Misuse { what: what() }))
    }

    /// Numbers of the volumes, in the order in which they are to be asked for the next segment.
    /// `load` tells what their writers have to do. Waits for no device.
    pub fn ranked_volumes(&self, load: impl Fn(usize) -> Load) -> Vec<usize> {
        let candidate = |(number, volume): (usize, &SharedVolume)| volume.candidate(load(number));
        let candidates: Vec<_> = self.volumes.iter().enumerate().map(candidate).collect();
        ranked(&candidates)
    }

    /// Opens a segment on this volume. Takes as long as its device needs for some flushes.
    ///
    /// # Errors
    /// `Exhausted`, `DiskFull`, `Device`, `Failed`, `Key`. `Misuse` without a run, or without such
    /// a volume; `Encode` if the interfaces do not fit a header.
    pub fn open_segment_on(
        &self,
        number: usize,
        request: OpenRequest<'_>,
    ) -> Result<OpenSegment, StorageError> {
        let run = self.desk().run.clone().map(|(_, run)| run);
        let (Some(run), Some(volume)) = (run, self.volumes.get(number)) else {
            let what = "a segment opens within a run, on a volume of the store".to_owned();
            return Err(StorageError::Misuse { what });
        };
        self.desk().opening.push(request.lane);
        let opened = self.room_in_budget(number, request.lane, run.import).and_then(|over| {
            volume.work(|volume| {
                let opening = Opening {
                    request,
                    run: run.run,
                    import: run.import,
                    opened_ns: self.clock.unix_ns(),
                    hold: 0,
                };
                let opened = self.open_on((number, volume), &opening, over);
                volume.note_room(opened.as_ref().err());
                opened
            })
        });
        let opening = &mut self.desk().opening;
        if let Some(at) = opening.iter().position(|lane| *lane == request.lane) {
            opening.swap_remove(at);
        }
        opened.inspect(|_| volume.note_opened())
    }

    pub(crate) fn open_on(
        &self,
        (number, volume): (usize, &mut VolumeWriter),
        opening: &Opening<'_>,
        over: Vec<Held>,
    ) -> Result<OpenSegment, StorageError> {
        let Opening { request, run, import, opened_ns, hold } = *opening;
        let place = self.make_room(volume, over)?;
        let keys = self.take_key(volume)?;
        let life = match &keys {
            Some(keys) => keys.life(),
            None => random::life_id().map_err(|e| key_error(&volume.name, e))?,
        };
        let entry = SegmentEntry {
            state: SegmentState::Open,
            sealed: keys.is_some(),
            import,
            lane: request.lane,
            link_type: request.link_type,
            life,
            run,
            // The number is spent whatever becomes of the segment: who knows what a device kept.
            ordinal: self.next_ordinal.fetch_add(1, Ordering::Relaxed),
            opened_ns,
            hold,
            ..SegmentEntry::default()
        };
        let region =
            self.header_region(&volume.name, place, &entry, keys.as_ref(), request.interfaces)?;
        let file = volume.make_segment_file(place, &region)?;
        volume.set_segments(&[(place, entry.clone())])?;
        self.desk().open.insert(life, (number, place));
        self.top_up(volume);
        let segment_bytes = volume.superblock().segment_bytes;
        Ok(OpenSegment {
            volume: number,
            name: volume.name.clone(),
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
        volume: &str,
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

    fn take_key(&self, volume: &mut VolumeWriter) -> Result<Option<SegmentKeys>, StorageError> {
        if !self.is_sealed() {
            return Ok(None);
        }
        volume.may_begin()?;
        if volume.spares() == 0 {
            // Not with the desk in hand: others need it while this device hangs.
            let wanted = self.desk().spares_wanted;
            volume.rewrite_ring(wanted)?;
        }
        let spare = volume.take_spare();
        spare.map(Some).ok_or_else(|| StorageError::Exhausted {
            volume: volume.name.clone(),
            arithmetic: "its key ring has no room for a spare key".to_owned(),
        })
    }

    /// Writes the ring again when fewer than half of the spares are left. A failure is no reason to
    /// stop while there are spares.
    fn top_up(&self, volume: &mut VolumeWriter) {
        let wanted = volume.spares_wanted(self.desk().spares_wanted);
        if volume.superblock().sealed && volume.spares() < wanted / 2 {
            let written = volume.rewrite_ring(wanted);
            self.desk().key_trouble = written.err().map(|error| error.to_string());
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
