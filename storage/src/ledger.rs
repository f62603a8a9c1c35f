//! The places of a volume as the allocator wants them: which are free, which hold the oldest
//! segments, and how many bytes all of them take.
//!
//! A volume has up to half a million places. Looking through all of them for each segment that
//! opens took 0.5 ms at 100,000, three times, under the store's lock; here each answer is a look
//! into a tree or a number.
//!
//! Invariant: it says what the segment table says. Whoever changes an entry calls
//! [`Ledger::change`] with the entry as it was and as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use wirevault_format::table::{SegmentEntry, SegmentState};

/// What the segment table of a volume adds up to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ledger {
    /// Bytes of a full segment, as which an open one counts.
    segment_bytes: u64,
    free: BTreeSet<u32>,
    /// Ordinal and place of the closed segments.
    closed: BTreeSet<(u64, u32)>,
    open: usize,
    /// Wider than an entry's, so that no damaged table makes it overflow.
    used_bytes: u128,
    /// The same of each lane's live segments, for budgets.
    lanes: BTreeMap<u16, LaneShare>,
}

/// What the live segments of one lane take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct LaneShare {
    segments: usize,
    used_bytes: u128,
    closed: BTreeMap<(u64, u32), u64>,
}

/// Looks at a ledger that others may change.
pub(crate) fn read(ledger: &RwLock<Ledger>) -> RwLockReadGuard<'_, Ledger> {
    // Whoever changed it left it whole.
    ledger.read().unwrap_or_else(PoisonError::into_inner)
}

impl Ledger {
    pub(crate) fn new(segment_bytes: u64, entries: &[SegmentEntry]) -> Self {
        let mut ledger = Self { segment_bytes, ..Self::default() };
        (0..).zip(entries).for_each(|(place, entry)| ledger.add(place, entry));
        ledger
    }

    /// The entry of a place changed.
    pub(crate) fn change(&mut self, place: u32, before: &SegmentEntry, after: &SegmentEntry) {
        match before.state {
            SegmentState::Free => {
                self.free.remove(&place);
            }
            SegmentState::Open => self.open -= 1,
            SegmentState::Closed => {
                self.closed.remove(&(before.ordinal, place));
            }
            SegmentState::Forgetting => {}
        }
        let bytes = u128::from(self.bytes_of(before));
        self.used_bytes -= bytes;
        if let Some(share) = lane_of(before).and_then(|lane| self.lanes.get_mut(&lane)) {
            share.segments -= 1;
            share.used_bytes -= bytes;
            share.closed.remove(&(before.ordinal, place));
        }
        self.lanes.retain(|_, share| share.segments > 0);
        self.add(place, after);
    }

    /// The first free place that is not contested.
    pub(crate) fn first_free(&self) -> Option<u32> {
        self.free.first().copied()
    }

    /// Places that hold a segment.
    pub(crate) fn held(&self) -> usize {
        self.open + self.closed.len()
    }

    /// Open segments.
    pub(crate) fn open(&self) -> usize {
        self.open
    }

    /// Ordinals and places of the closed segments, oldest first.
    pub(crate) fn oldest(&self) -> impl Iterator<Item = (u64, u32)> {
        self.closed.iter().copied()
    }

    /// Bytes of all segments; an open one counts as full.
    pub(crate) fn used_bytes(&self) -> u64 {
        u64::try_from(self.used_bytes).unwrap_or(u64::MAX)
    }

    /// Bytes of the live segments of these lanes; an open one counts as full.
    pub(crate) fn lanes_bytes(&self, lanes: &Range<u16>) -> u128 {
        self.lanes.range(lanes.clone()).map(|(_, share)| share.used_bytes).sum()
    }

    /// Ordinals, places and bytes of the closed live segments of these lanes, each lane's oldest
    /// first.
    pub(crate) fn lanes_closed(&self, lanes: &Range<u16>) -> impl Iterator<Item = (u64, u32, u64)> {
        let closed = self.lanes.range(lanes.clone()).flat_map(|(_, share)| &share.closed);
        closed.map(|((ordinal, place), bytes)| (*ordinal, *place, *bytes))
    }

    fn add(&mut self, place: u32, entry: &SegmentEntry) {
        match entry.state {
            SegmentState::Free if entry.contested => {}
            SegmentState::Free => {
                self.free.insert(place);
            }
            SegmentState::Open => self.open += 1,
            SegmentState::Closed => {
                self.closed.insert((entry.ordinal, place));
            }
            // Nobody's any more, but its bytes are still there.
            SegmentState::Forgetting => {}
        }
        let bytes = u128::from(self.bytes_of(entry));
        self.used_bytes += bytes;
        if let Some(lane) = lane_of(entry) {
            let share = self.lanes.entry(lane).or_default();
            share.segments += 1;
            share.used_bytes += bytes;
            if entry.state == SegmentState::Closed {
                share.closed.insert((entry.ordinal, place), entry.file_bytes);
            }
        }
    }

    fn bytes_of(&self, entry: &SegmentEntry) -> u64 {
        match entry.state {
            SegmentState::Free => 0,
            SegmentState::Open => self.segment_bytes,
            SegmentState::Closed | SegmentState::Forgetting => entry.file_bytes,
        }
    }
}

/// The lane whose budget a segment counts against. Lanes of an import are no interfaces.
fn lane_of(entry: &SegmentEntry) -> Option<u16> {
    (entry.state != SegmentState::Free && !entry.import).then_some(entry.lane)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(state: SegmentState, ordinal: u64, file_bytes: u64) -> SegmentEntry {
        SegmentEntry { state, ordinal, file_bytes, ..SegmentEntry::default() }
    }

    #[test]
    fn after_any_changes_it_is_what_the_table_adds_up_to() {
        let states = [
            SegmentState::Free,
            SegmentState::Open,
            SegmentState::Closed,
            SegmentState::Forgetting,
        ];
        let mut table = vec![SegmentEntry::default(); 40];
        let mut ledger = Ledger::new(1000, &table);
        let mut random = 1u64;
        for ordinal in 1..2000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let place = (random >> 33) as usize % table.len();
            let after = SegmentEntry {
                lane: (random >> 44) as u16 % 4,
                import: random & 1 << 60 == 0,
                ..entry(states[(random >> 40) as usize % 4], ordinal, random >> 50)
            };
            ledger.change(place as u32, &table[place], &after);
            table[place] = after;
            assert_eq!(ledger, Ledger::new(1000, &table));
        }
        let of = |state| (0u32..).zip(&table).filter(move |(_, entry)| entry.state == state);
        assert_eq!(ledger.first_free(), of(SegmentState::Free).map(|(place, _)| place).next());
        let closed = of(SegmentState::Closed).map(|(place, entry)| (entry.ordinal, place));
        let mut closed: Vec<_> = closed.collect();
        closed.sort_unstable();
        assert_eq!(ledger.oldest().collect::<Vec<_>>(), closed);
        let full = of(SegmentState::Open).count();
        assert_eq!((ledger.open(), ledger.held()), (full, full + closed.len()));
        let bytes = |state| of(state).map(|(_, entry)| entry.file_bytes).sum::<u64>();
        let bytes = bytes(SegmentState::Closed) + bytes(SegmentState::Forgetting);
        assert_eq!(ledger.used_bytes(), bytes + 1000 * full as u64);
        let mine = |entry: &&SegmentEntry| !entry.import && (1..3).contains(&entry.lane);
        let held = table.iter().filter(|entry| entry.state != SegmentState::Free).filter(mine);
        let bytes: u128 = held.map(|entry| u128::from(ledger.bytes_of(entry))).sum();
        assert_eq!(ledger.lanes_bytes(&(1..3)), bytes);
        let closed = of(SegmentState::Closed).filter(|(_, entry)| mine(entry)).count();
        assert_eq!(ledger.lanes_closed(&(1..3)).count(), closed);
    }

    #[test]
    fn sizes_beyond_all_measure_fill_the_volume() {
        let huge = entry(SegmentState::Closed, 1, u64::MAX);
        let mut ledger = Ledger::new(1000, &[huge.clone(), huge.clone()]);
        assert_eq!(ledger.used_bytes(), u64::MAX);
        ledger.change(0, &huge, &SegmentEntry::default());
        ledger.change(1, &huge, &SegmentEntry::default());
        assert_eq!((ledger.used_bytes(), ledger.first_free()), (0, Some(0)));
    }
}
