//! What has to go so that a segment fits: for the quota, for the reserve of the file system, for
//! the budget of a lane.
//!
//! Three limits, of which the tightest decides:
//!
//! - The **quota** is what the volume may occupy. It holds always.
//! - The **reserve** is the part of a file system that is left free for others. What others write
//!   shrinks our share, so our oldest goes for them. It is never more than the quota: a small store
//!   on a large disk is not what fills it. It costs closed segments down to
//!   [`SEGMENTS_PER_VOLUME`] of a volume, and never stops the recording; only a file system without
//!   room for one segment does. A device has no reserve here; nobody else writes there.
//! - A **budget** is what the live segments of some lanes may take on all volumes together.
//!
//! Nothing goes before it is known that the rest of what goes makes room enough, so a refusal takes
//! nothing; and nothing goes behind that, so no segment too many does.

use std::ops::Range;

use wirevault_format::table::{SegmentEntry, SegmentState};

use crate::StorageError;
use crate::bad::Verdict;
use crate::plan::SEGMENTS_PER_VOLUME;
use crate::store::Store;
use crate::volume::VolumeWriter;

/// Part of a file system that is left free for others, in percent, if nobody says otherwise. File
/// systems slow down and fragment when they are full, and root's own share of ext4 is half of it.
pub const RESERVE_PERCENT: u8 = 10;
/// Segments that each lane with a budget holds in it at least: one that it writes, the next one,
/// which is opened ahead, and two that are kept.
pub const SEGMENTS_PER_BUDGET_LANE: u64 = 4;

/// What the live segments of some lanes may take together, on all volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// The lanes, by number.
    pub lanes: Range<u16>,
    /// Bytes at most; open segments count as full.
    pub bytes: u64,
}

/// Room on the file system below a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Disk {
    /// Bytes that nobody uses.
    pub(crate) free_bytes: u64,
    /// Of them left to others.
    pub(crate) reserve_bytes: u64,
}

/// A segment of a volume: its ordinal and its place.
pub(crate) type Held = (u64, u32);

impl Store {
    /// Leaves this part of each file system to others. 0: only the quota counts.
    pub fn set_reserve(&mut self, percent: u8) {
        self.reserve_percent = percent.min(100);
        for volume in &self.volumes {
            volume.work(|volume| volume.set_reserve(self.reserve_percent));
        }
    }

    /// Limits what the live segments of some lanes take. Lanes go by their number: segments of
    /// earlier runs count for the lane that has their number now.
    ///
    /// # Errors
    /// `Quota` with the arithmetic if a budget holds fewer than [`SEGMENTS_PER_BUDGET_LANE`]
    /// segments for each of its lanes.
    pub fn set_budgets(&mut self, budgets: Vec<Budget>) -> Result<(), StorageError> {
        let each = self.volumes.iter().map(|it| it.status().segment_bytes);
        let segment_bytes = each.max().unwrap_or(0);
        for Budget { lanes, bytes } in &budgets {
            let need = lanes.len() as u64 * SEGMENTS_PER_BUDGET_LANE * segment_bytes;
            if *bytes < need {
                let (lanes, per_lane) = (lanes.len(), SEGMENTS_PER_BUDGET_LANE);
                let arithmetic = format!(
                    "a budget of {bytes} bytes is too small: {per_lane} segments x {lanes} lanes x \
                     {segment_bytes} bytes = {need} bytes are needed"
                );
                return Err(StorageError::Quota { arithmetic });
            }
        }
        self.budgets = budgets;
        Ok(())
    }

    /// Gives up what has to go until a full segment fits the volume, `over` in any case, and names
    /// a place.
    pub(crate) fn make_room(
        &self,
        volume: &mut VolumeWriter,
        over: Vec<Held>,
    ) -> Result<u32, StorageError> {
        volume.note_disk();
        let room = Room::plan(volume, over)?;
        self.give_up(volume, &room.evict)?;
        Ok(room.place)
    }

    /// Makes room for a segment in the budget of its lane: gives up what has to go on other
    /// volumes, and names what has to go on this one, by ordinal and place.
    pub(crate) fn room_in_budget(
        &self,
        number: usize,
        lane: u16,
        import: bool,
    ) -> Result<Vec<Held>, StorageError> {
        let over = if import { Vec::new() } else { self.over_budget(number, lane)? };
        let of = |volume: usize| -> Vec<Held> {
            let there = over.iter().filter(|(at, _)| *at == volume);
            there.map(|(_, segment)| *segment).collect()
        };
        let here = of(number);
        let told = self.tell_ahead(number, &here);
        if here.len() < over.len() {
            // A refusal takes nothing.
            told?;
        }
        for (other, volume) in self.volumes.iter().enumerate() {
            let there = if other == number { Vec::new() } else { of(other) };
            if !there.is_empty() {
                let going = {
                    let volume = volume.look();
                    volume.not_tiered(&entries_at(&volume, &still_closed(&volume, &there)))
                };
                volume.tell(&self.witness, &going);
                volume.work(|volume| self.give_up(volume, &still_closed(volume, &there)))?;
            }
        }
        Ok(here)
    }

    /// The oldest segments of the lane's budget, as volume, ordinal and place, that have to go
    /// before another one fits it. Those on devices that hang or failed cannot go now.
    fn over_budget(&self, number: usize, lane: u16) -> Result<Vec<(usize, Held)>, StorageError> {
        let mine = self.budgets.iter().find(|budget| budget.lanes.contains(&lane));
        let Some(Budget { lanes, bytes }) = mine else { return Ok(Vec::new()) };
        // This one, and others that are being opened at the same time.
        let opening = self.desk().opening.iter().filter(|lane| lanes.contains(lane)).count();
        let status = self.volumes[number].status();
        let wanted_bytes = opening as u128 * u128::from(status.segment_bytes);
        let used = self.volumes.iter().map(|volume| volume.ledger().lanes_bytes(lanes));
        let mut left_bytes = used.sum::<u128>();
        let fits = |left_bytes: u128| left_bytes + wanted_bytes <= u128::from(*bytes);
        let mut over = Vec::new();
        if fits(left_bytes) {
            return Ok(over);
        }
        let mut oldest = Vec::new();
        for (number, volume) in self.volumes.iter().enumerate().filter(|(_, it)| it.is_well()) {
            let ledger = volume.ledger();
            let closed = ledger.lanes_closed(lanes);
            oldest
                .extend(closed.map(|(spared, ordinal, place, bytes)| {
                    (spared, ordinal, number, place, bytes)
                }));
        }
        oldest.sort_unstable();
        for (_, ordinal, number, place, file_bytes) in oldest {
            left_bytes -= u128::from(file_bytes);
            over.push((number, (ordinal, place)));
            if fits(left_bytes) {
                return Ok(over);
            }
        }
        let arithmetic = format!(
            "lanes {} to {} have a budget of {bytes} bytes, and {left_bytes} bytes of segments are \
             open; use fewer lanes, or give them a larger budget",
            lanes.start,
            lanes.end.saturating_sub(1)
        );
        Err(StorageError::Exhausted { volume: status.path, arithmetic })
    }

    /// Tells the witness of what has to go from a volume for another segment, `over` in any case,
    /// before anybody locks the volume for that.
    ///
    /// # Errors
    /// There is no room, and nothing goes.
    pub(crate) fn tell_ahead(&self, number: usize, over: &[Held]) -> Result<(), StorageError> {
        let going = {
            let volume = self.volumes[number].look();
            let room = Room::plan(&volume, over.to_vec())?;
            volume.not_tiered(&entries_at(&volume, &room.evict))
        };
        self.volumes[number].tell(&self.witness, &going);
        Ok(())
    }

    /// Gives up closed segments of a volume: what readers must know of them is durable before
    /// their entries are freed, and that before their files go. What the tier has is not lost.
    pub(crate) fn give_up(
        &self,
        volume: &mut VolumeWriter,
        places: &[u32],
    ) -> Result<(), StorageError> {
        if places.is_empty() {
            return Ok(());
        }
        let given_up = entries_at(volume, places);
        let lost = volume.not_tiered(&given_up);
        let shared = &self.volumes[usize::from(volume.superblock().number)];
        shared.tell(&self.witness, &lost);
        note_given_up(volume, &lost)?;
        let freed: Vec<_> = places.iter().map(|place| (*place, SegmentEntry::default())).collect();
        volume.set_segments(&freed)?;
        shared.are_gone(given_up.iter());
        volume.remove_segment_files(places)
    }
}

/// What has to go from a volume, and which place is free then.
struct Room {
    evict: Vec<u32>,
    place: u32,
}

impl Room {
    /// `over` goes in any case; behind it the oldest go until a full segment fits.
    fn plan(volume: &VolumeWriter, over: Vec<Held>) -> Result<Self, StorageError> {
        if let Some(why) = volume.failed() {
            let (volume, why) = (volume.name.clone(), why.to_owned());
            return Err(StorageError::Failed { volume, why });
        }
        if volume.verdict() == Verdict::Spent {
            let (bad_places, places) = (volume.ledger().bad(), volume.superblock().places);
            return Err(StorageError::Spent { volume: volume.name.clone(), bad_places, places });
        }
        let (disk, ledger) = (volume.disk(), volume.ledger());
        let mut evict = still_closed(volume, &over);
        let superblock = volume.superblock();
        let (segment_bytes, quota_bytes) = (superblock.segment_bytes, superblock.quota_bytes);
        let file_bytes = |place: u32| volume.entries()[place as usize].file_bytes;
        let mut given_up_bytes =
            evict.iter().fold(0u64, |sum, place| sum.saturating_add(file_bytes(*place)));
        let mut oldest = ledger.oldest();
        let free = ledger.first_free();
        loop {
            // The lowest, so that the table alone says which place a writer turns to next: another
            // one that takes over keeps away from it.
            let usable = |place: &u32| volume.entries()[*place as usize].is_usable();
            let place = evict.iter().copied().filter(usable).chain(free).min();
            // A higher place than ever makes the file of digests longer.
            let used_bytes = volume.used_bytes_with(place.map_or(0, |place| place + 1));
            let left_bytes = used_bytes.saturating_sub(given_up_bytes);
            let fits_quota = left_bytes.saturating_add(segment_bytes) <= quota_bytes;
            let closed = ledger.closed() - evict.len();
            let fits_disk = disk.is_none_or(|disk| {
                let free_bytes = disk.free_bytes.saturating_add(given_up_bytes);
                let may_go = closed as u64 > SEGMENTS_PER_VOLUME;
                let reserve_bytes = if may_go { disk.reserve_bytes } else { 0 };
                segment_bytes.saturating_add(reserve_bytes) <= free_bytes
            });
            if let Some(place) = place.filter(|_| fits_quota && fits_disk) {
                return Ok(Self { evict, place });
            }
            let Some((_, place)) = oldest.find(|(_, place)| !evict.contains(place)) else {
                return Err(match disk.filter(|_| fits_quota && place.is_some()) {
                    Some(Disk { free_bytes, .. }) => StorageError::DiskFull {
                        volume: volume.name.clone(),
                        wanted_bytes: segment_bytes,
                        free_bytes,
                    },
                    None => no_room(volume),
                });
            };
            given_up_bytes = given_up_bytes.saturating_add(file_bytes(place));
            evict.push(place);
        }
    }
}

fn entries_at(volume: &VolumeWriter, places: &[u32]) -> Vec<SegmentEntry> {
    places.iter().map(|place| volume.entries()[*place as usize].clone()).collect()
}

/// Places of those of the segments, by ordinal and place, that others did not give up meanwhile.
fn still_closed(volume: &VolumeWriter, segments: &[Held]) -> Vec<u32> {
    let there = |(ordinal, place): &&Held| {
        let entry = &volume.entries()[*place as usize];
        entry.state == SegmentState::Closed && entry.ordinal == *ordinal
    };
    segments.iter().filter(there).map(|(_, place)| *place).collect()
}

fn no_room(volume: &VolumeWriter) -> StorageError {
    let superblock = volume.superblock();
    let (segment_bytes, quota_bytes) = (superblock.segment_bytes, superblock.quota_bytes);
    let arithmetic = format!(
        "its quota of {quota_bytes} bytes holds {} bytes of tables and digests and {} open \
         segments of {segment_bytes} bytes, on {} places; use fewer lanes, or make a store with a \
         larger quota",
        volume.used_bytes().saturating_sub(volume.ledger().used_bytes()),
        volume.ledger().open(),
        superblock.places
    );
    StorageError::Exhausted { volume: volume.name.clone(), arithmetic }
}

/// Writes down how late the packets are that go with these segments: what readers must know
/// before anything is gone.
pub(crate) fn note_given_up(
    volume: &mut VolumeWriter,
    given_up: &[SegmentEntry],
) -> Result<(), StorageError> {
    let latest = |import: bool| {
        // What copies for holds cover was given up with what they were copied from.
        let counts = |entry: &&SegmentEntry| entry.hold == 0 && entry.import == import;
        let these = given_up.iter().filter(counts);
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
    Ok(())
}

/// The last time that a segment can answer for. Live packets are no later than the closing.
fn last_ns(entry: &SegmentEntry) -> u64 {
    match (entry.times_ns, entry.import) {
        (Some((_, max_ns)), _) => max_ns,
        (None, true) => 0,
        (None, false) => entry.closed_ns,
    }
}
