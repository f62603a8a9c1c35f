//! Closing what a crash left open. `index::recover` decides what stays; this writes it down.
//!
//! A segment is never resumed: it gets index and footer behind the last chunk that stays, then its
//! table entry says "closed, recovered". Until that entry is durable the segment is as interrupted
//! as before, so all of this may be cut off and run again.

use wirevault_format::segment::{self, REGION_BYTES_MAX};
use wirevault_format::table::{SegmentEntry, SegmentState};
use wirevault_format::{Cause, Gap, footer::CloseReason};
use wirevault_format::{FormatError, RunId};
use wirevault_index::recover::Damage;
use wirevault_index::volume::segment_file_name;
use wirevault_index::{IndexError, Segment, SegmentReader};
use wirevault_media::OpenMode;

use crate::StorageError;
use crate::finish::{ClosingFacts, finish_segment};
use crate::forget::Deletion;
use crate::plan::{flows_max, index_reserve_bytes};
use crate::reindex::{self, Chunks};
use crate::store::{OpenSegment, Store};
use crate::view::Showing;
use crate::volume::device;

/// What opening a store found to repair.
#[derive(Debug, Default)]
pub struct RecoveryReport {
    /// Interrupted segments that were closed, oldest first.
    pub segments: Vec<RecoveredSegment>,
    /// Interrupted segments that held no chunk, and interrupted copies for holds: their places are
    /// free.
    pub segments_freed: u32,
    /// Interrupted segments that could not be closed now: name and reason. They stay as they are,
    /// queries read what they can of them, and the next start tries again.
    pub set_aside: Vec<(String, String)>,
    /// Files removed that a crash left at free places.
    pub files_removed: u32,
    /// Deletions that were begun and not settled: their keys are gone now. Whoever opened the
    /// store writes that down and gives them to [`Store::settle`].
    pub deletions: Vec<Deletion>,
    /// Runs that a crash ended.
    pub runs_crashed: Vec<RunId>,
}

impl RecoveryReport {
    /// The store was closed well the last time.
    pub fn is_clean(&self) -> bool {
        self.segments.is_empty()
            && self.segments_freed == 0
            && self.set_aside.is_empty()
            && self.files_removed == 0
            && self.deletions.is_empty()
            && self.runs_crashed.is_empty()
    }
}

/// An interrupted segment that was closed.
#[derive(Debug)]
pub struct RecoveredSegment {
    /// Name: volume, place, ordinal.
    pub name: String,
    /// Entry of the table as it is now.
    pub entry: SegmentEntry,
    /// What was acknowledged and is not there.
    pub damage: Vec<Damage>,
    /// Why nothing of the segment can be read, if so; its file is left alone until the quota needs
    /// the space.
    pub unreadable: Option<String>,
}

/// Closes or frees every interrupted segment of the store.
pub(crate) fn recover_segments(store: &Store) -> Result<RecoveryReport, StorageError> {
    let mut report = RecoveryReport { segments_freed: free_copies(store)?, ..Default::default() };
    let catalog = store.catalog(store.clock.unix_ns());
    let interrupted = catalog.segments.iter().filter(|it| it.entry.state == SegmentState::Open);
    for segment in interrupted {
        let number = usize::from(segment.volume);
        // A later start may have the key; until then nothing is done to it.
        if let Some(why) = store.volumes[number].look().why_shut(&segment.entry) {
            report.set_aside.push((segment.name(), why));
            continue;
        }
        let (entry, recovered) = match store.recovered(number, segment) {
            Ok(Outcome::Closed(recovered)) => (recovered.entry.clone(), Some(*recovered)),
            Ok(Outcome::Empty) => (SegmentEntry::default(), None),
            Err(error) => {
                report.set_aside.push((segment.name(), error.to_string()));
                continue;
            }
        };
        let volume = &store.volumes[number];
        volume.work(|volume| volume.set_segments(&[(segment.place, entry)]))?;
        match recovered {
            Some(recovered) => report.segments.push(recovered),
            None => {
                report.segments_freed += 1;
                volume.look().remove_segment_files(&[segment.place])?;
            }
        }
    }
    Ok(report)
}

/// Frees the places of copies that were not complete. What they were copied from is there: it is
/// not given up before they are closed.
fn free_copies(store: &Store) -> Result<u32, StorageError> {
    let mut freed = 0;
    for volume in &store.volumes {
        volume.work(|volume| {
            let copies = (0..)
                .zip(volume.entries())
                .filter(|(_, entry)| entry.state == SegmentState::Open && entry.hold != 0);
            let changes: Vec<_> =
                copies.map(|(place, _)| (place, SegmentEntry::default())).collect();
            freed += changes.len() as u32;
            volume.set_segments(&changes)
        })?;
    }
    Ok(freed)
}

enum Outcome {
    /// Index and footer are durable; the entry is not yet.
    Closed(Box<RecoveredSegment>),
    /// There is nothing to keep.
    Empty,
}

impl Store {
    fn recovered(&self, number: usize, segment: &Segment) -> Result<Outcome, StorageError> {
        let reader = match segment.open() {
            Ok(reader) => reader,
            Err(error) if is_final(&error) => {
                return self.unreadable(number, segment, &error);
            }
            Err(error) => return Err(error.into()),
        };
        let damage = reader.damage().to_vec();
        let entries = reader.with_index(|index| index.chunks().to_vec());
        if entries.is_empty() && damage.is_empty() {
            return Ok(Outcome::Empty);
        }
        let open = self.reopened(number, segment, &reader)?;
        let opener = reindex::opener(open.keys.as_ref(), &open.name)?;
        let mut rebuilt = Chunks::new(&open, opener).index(&entries, open.flows_max)?;
        let now_ns = self.clock.unix_ns();
        // A damaged chunk that kept its place tells of itself whenever it is read.
        let lost = |damage: &&Damage| {
            let entry = entries.get(damage.chunk as usize);
            entry.is_none_or(|entry| entry.packets == 0 || entry.offset != damage.offset)
        };
        for damage in damage.iter().filter(lost) {
            rebuilt.add_gap(gap(damage, &open.entry, now_ns));
        }
        let facts = ClosingFacts {
            reason: CloseReason::Recovered,
            recovered: true,
            damaged: !damage.is_empty(),
            captured_bytes: rebuilt.captured_bytes,
            received: rebuilt.received,
            shed: rebuilt.shed,
            dropped: rebuilt.dropped,
            chain: rebuilt.chain,
        };
        let finished = finish_segment(&open, &rebuilt.index, &facts, &*self.clock)?;
        let (name, entry) = (segment.name(), finished.entry().clone());
        let recovered = RecoveredSegment { name, entry, damage, unreadable: None };
        Ok(Outcome::Closed(Box::new(recovered)))
    }

    /// An interrupted segment, open for writing behind its cut.
    fn reopened(
        &self,
        number: usize,
        segment: &Segment,
        reader: &SegmentReader,
    ) -> Result<OpenSegment, StorageError> {
        let volume = self.volumes[number].look();
        let file_name = segment_file_name(segment.place);
        let failed = |source| device(&volume.name, &format!("open {file_name}"), source);
        let file = volume.volume.media.open(&file_name, OpenMode::ReadWrite).map_err(failed)?;
        let head_bytes = file.len().map_err(failed)?.min(REGION_BYTES_MAX as u64);
        let mut head = vec![0; head_bytes as usize];
        file.read_exact_at(&mut head, 0).map_err(failed)?;
        let damaged = |source: FormatError| IndexError::Damaged {
            segment: reader.name().to_owned(),
            chunk: None,
            source,
        };
        let data_offset = segment::decode(&head).map_err(damaged)?.region_bytes as u64;
        let segment_bytes = volume.superblock().segment_bytes;
        Ok(OpenSegment {
            volume: number,
            name: volume.name.clone(),
            place: segment.place,
            file,
            keys: volume.keys(&segment.entry),
            entry: segment.entry.clone(),
            interfaces: reader.interfaces().into(),
            data_offset,
            data_end: segment_bytes - index_reserve_bytes(segment_bytes),
            segment_bytes,
            flows_max: flows_max(segment_bytes),
            showing: Showing::new(&self.shared, &volume),
        })
    }

    /// Closes a segment of which nothing can be read, without touching its file: queries report it,
    /// and retention comes to it in its turn.
    fn unreadable(
        &self,
        number: usize,
        segment: &Segment,
        error: &IndexError,
    ) -> Result<Outcome, StorageError> {
        let volume = self.volumes[number].look();
        let file_name = segment_file_name(segment.place);
        let failed = |source| device(&volume.name, &format!("measure {file_name}"), source);
        let file_bytes = match volume.volume.media.open(&file_name, OpenMode::Read) {
            Ok(file) => file.len().map_err(failed)?,
            Err(_) if error.is_missing() => 0,
            Err(source) => return Err(failed(source)),
        };
        let entry = SegmentEntry {
            state: SegmentState::Closed,
            recovered: true,
            damaged: true,
            close_reason: CloseReason::Recovered,
            closed_ns: self.clock.unix_ns(),
            file_bytes,
            ..segment.entry.clone()
        };
        let (name, unreadable) = (segment.name(), Some(error.to_string()));
        let recovered = RecoveredSegment { name, entry, damage: Vec::new(), unreadable };
        Ok(Outcome::Closed(Box::new(recovered)))
    }
}

/// The segment will not be more readable at the next start. (A device that does not answer now may
/// answer then.)
fn is_final(error: &IndexError) -> bool {
    let unanswered = matches!(error, IndexError::Io { .. });
    !unanswered
        && (error.is_damage() || error.is_missing() || error.is_reused() || error.is_wrong_key())
}

/// The absence that a hole leaves.
fn gap(damage: &Damage, entry: &SegmentEntry, now_ns: u64) -> Gap {
    let from_ns = damage.from_ns.unwrap_or(entry.opened_ns);
    // Live packets came before the crash; of an import nobody knows what time they were of.
    let until_ns = damage.until_ns.or((!entry.import).then_some(now_ns));
    Gap {
        cause: Cause::Damaged,
        from_ns,
        until_ns: until_ns.map(|until_ns| until_ns.max(from_ns)),
        packets: damage.packets,
        cumulative: damage.packets.unwrap_or(0),
        sequence: 0,
        policy: None,
        pressure: None,
    }
}
