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
    /// Bad places, whatever they hold.
    bad: u32,
    /// Wider than an entry's, so that no damaged table makes it overflow.
    used_bytes: u128,
    /// The same of each lane's live segments, for budgets.
    lanes: BTreeMap<u16, LaneShare>,
    /// The same of each hold's copies, which are in neither of them.
    holds: BTreeMap<u32, HoldShare>,
    /// Ordinal and place of the closed segments that are being copied, for a hold or to the tier,
    /// which the quota does not take meanwhile.
    pinned: BTreeSet<(u64, u32)>,
    /// Ordinal and place of the closed segments of which a hold may still want copies, and whether
    /// they are spared.
    waiting: BTreeMap<(u64, u32), bool>,
    /// What closes from now on waits for holds.
    holding: bool,
}

/// What holds still want of a closed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing, or they have a copy of it.
    Nothing,
    /// It is of their time; nobody has looked at it yet.
    Unseen,
    /// Packets that are in it.
    Packets,
}

/// What the copies for one hold take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct HoldShare {
    pub(crate) segments: u64,
    pub(crate) used_bytes: u128,
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
            SegmentState::Open if before.hold == 0 => self.open -= 1,
            SegmentState::Closed => {
                self.closed.remove(&(before.ordinal, place));
                self.waiting.remove(&(before.ordinal, place));
            }
            SegmentState::Open | SegmentState::Forgetting => {}
        }
        self.bad -= u32::from(before.bad);
        let bytes = u128::from(self.bytes_of(before));
        self.used_bytes -= bytes;
        if let Some(share) = hold_of(before).and_then(|hold| self.holds.get_mut(&hold)) {
            share.segments -= 1;
            share.used_bytes -= bytes;
        }
        self.holds.retain(|_, share| share.segments > 0);
        if let Some(share) = lane_of(before).and_then(|lane| self.lanes.get_mut(&lane)) {
            share.segments -= 1;
            share.used_bytes -= bytes;
            share.closed.remove(&(before.ordinal, place));
        }
        self.lanes.retain(|_, share| share.segments > 0);
        self.add(place, after);
    }

    /// The first free place that may be used.
    pub(crate) fn first_free(&self) -> Option<u32> {
        self.free.first().copied()
    }

    /// Places with a segment: open ones, closed ones, copies for holds.
    pub(crate) fn segments(&self) -> usize {
        let copies: u64 = self.holds.values().map(|share| share.segments).sum();
        self.open + self.closed.len() + copies as usize
    }

    /// Closed segments that may be given up.
    pub(crate) fn closed(&self) -> usize {
        self.closed.len()
    }

    /// Places that take no segment any more.
    pub(crate) fn bad(&self) -> u32 {
        self.bad
    }

    /// Open segments.
    pub(crate) fn open(&self) -> usize {
        self.open
    }

    /// Ordinals and places of the closed segments that may be given up, oldest first; behind them
    /// those that are spared.
    pub(crate) fn oldest(&self) -> impl Iterator<Item = (u64, u32)> {
        let first = self.closed.iter().filter(|held| !self.is_spared(held));
        let last = self.waiting.iter().filter_map(|(held, spared)| spared.then_some(held));
        first.chain(last).copied().filter(|held| !self.pinned.contains(held))
    }

    /// Whether a hold may still want copies of a segment.
    pub(crate) fn is_waiting(&self, ordinal: u64) -> bool {
        self.waiting.range((ordinal, 0)..=(ordinal, u32::MAX)).next().is_some()
    }

    /// Says what holds want of closed segments, by their ordinals; of those that nothing is said of
    /// nobody knows yet. What closes from now on waits if `holding`.
    ///
    /// What waits may wait for long: no more than half of what may go is spared for it, so that a
    /// hold without room does not cost the recorder its place. Those come first of which it is
    /// known that they are wanted, and of either kind the youngest.
    pub(crate) fn spare(&mut self, holding: bool, wanted: impl Fn(u64) -> Option<Wanted>) {
        self.holding = holding;
        let mut left = self.closed.len() / 2;
        let known = self.closed.iter().rev().filter_map(|held| Some((*held, wanted(held.0)?)));
        let known: Vec<_> = known.collect();
        for kind in [Wanted::Packets, Wanted::Unseen, Wanted::Nothing] {
            for (held, _) in known.iter().filter(|(_, wanted)| *wanted == kind) {
                if kind == Wanted::Nothing {
                    self.waiting.remove(held);
                } else {
                    self.waiting.insert(*held, left > 0);
                    left = left.saturating_sub(1);
                }
            }
        }
    }

    fn is_spared(&self, held: &(u64, u32)) -> bool {
        self.waiting.get(held) == Some(&true)
    }

    /// What the copies for each hold take; one that is being written counts as full.
    pub(crate) fn holds(&self) -> &BTreeMap<u32, HoldShare> {
        &self.holds
    }

    /// What the copies for all holds take.
    pub(crate) fn holds_bytes(&self) -> u64 {
        let bytes = self.holds.values().map(|share| share.used_bytes).sum::<u128>();
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    /// Keeps a closed segment from being given up, until [`Ledger::unpin`].
    pub(crate) fn pin(&mut self, held: (u64, u32)) {
        self.pinned.insert(held);
    }

    /// What has its place by now stays as it is, if somebody deleted the segment meanwhile.
    pub(crate) fn unpin(&mut self, held: (u64, u32)) {
        self.pinned.remove(&held);
    }

    /// Bytes of all segments; an open one counts as full.
    pub(crate) fn used_bytes(&self) -> u64 {
        u64::try_from(self.used_bytes).unwrap_or(u64::MAX)
    }

    /// Bytes of the live segments of these lanes; an open one counts as full.
    pub(crate) fn lanes_bytes(&self, lanes: &Range<u16>) -> u128 {
        self.lanes.range(lanes.clone()).map(|(_, share)| share.used_bytes).sum()
    }

    /// Whether they are spared, ordinals, places and bytes of the closed live segments of these
    /// lanes, each lane's oldest first.
    pub(crate) fn lanes_closed(
        &self,
        lanes: &Range<u16>,
    ) -> impl Iterator<Item = (bool, u64, u32, u64)> {
        let closed = self.lanes.range(lanes.clone()).flat_map(|(_, share)| &share.closed);
        let free_to_go = closed.filter(|(held, _)| !self.pinned.contains(held));
        free_to_go.map(|(held, bytes)| (self.is_spared(held), held.0, held.1, *bytes))
    }

    fn add(&mut self, place: u32, entry: &SegmentEntry) {
        match entry.state {
            SegmentState::Free if !entry.is_usable() => {}
            SegmentState::Free => {
                self.free.insert(place);
            }
            SegmentState::Open if entry.hold == 0 => self.open += 1,
            SegmentState::Closed if entry.hold == 0 => {
                self.closed.insert((entry.ordinal, place));
                if self.holding {
                    self.waiting.insert((entry.ordinal, place), true);
                }
            }
            SegmentState::Open | SegmentState::Closed => {}
            // Nobody's any more, but its bytes are still there.
            SegmentState::Forgetting => {}
        }
        self.bad += u32::from(entry.bad);
        let bytes = u128::from(self.bytes_of(entry));
        self.used_bytes += bytes;
        if let Some(hold) = hold_of(entry) {
            let share = self.holds.entry(hold).or_default();
            share.segments += 1;
            share.used_bytes += bytes;
        }
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

/// The lane whose budget a segment counts against. Lanes of an import are no interfaces, and copies
/// have the budget of holds.
fn lane_of(entry: &SegmentEntry) -> Option<u16> {
    let counts = entry.state != SegmentState::Free && !entry.import && entry.hold == 0;
    counts.then_some(entry.lane)
}

/// The hold whose copy a segment is.
fn hold_of(entry: &SegmentEntry) -> Option<u32> {
    (entry.state != SegmentState::Free && entry.hold != 0).then_some(entry.hold)
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
                hold: ((random >> 55) as u32 % 8).saturating_sub(5),
                bad: random & 7 << 57 == 0,
                ..entry(states[(random >> 40) as usize % 4], ordinal, random >> 50)
            };
            ledger.change(place as u32, &table[place], &after);
            table[place] = after;
            assert_eq!(ledger, Ledger::new(1000, &table));
        }
        let of = |state| (0u32..).zip(&table).filter(move |(_, entry)| entry.state == state);
        let mut free = of(SegmentState::Free).filter(|(_, entry)| !entry.bad);
        assert_eq!(ledger.first_free(), free.next().map(|(place, _)| place));
        let bad = table.iter().filter(|entry| entry.bad).count();
        assert_eq!(ledger.bad() as usize, bad);
        let recorded = |state| of(state).filter(|(_, entry)| entry.hold == 0);
        let closed = recorded(SegmentState::Closed).map(|(place, entry)| (entry.ordinal, place));
        let mut closed: Vec<_> = closed.collect();
        closed.sort_unstable();
        assert_eq!(ledger.oldest().collect::<Vec<_>>(), closed);
        let open = recorded(SegmentState::Open).count();
        let copies = table.iter().filter(|entry| hold_of(entry).is_some());
        let of_a_hold = copies.clone().filter(|entry| entry.hold == 1);
        assert_eq!(ledger.holds()[&1].segments, of_a_hold.count() as u64);
        let taken: u64 = copies.clone().map(|entry| ledger.bytes_of(entry)).sum();
        assert_eq!(ledger.holds_bytes(), taken);
        assert_eq!((ledger.open(), ledger.closed()), (open, closed.len()));
        assert_eq!(ledger.segments(), open + closed.len() + copies.count());
        let full = of(SegmentState::Open).count();
        let bytes = |state| of(state).map(|(_, entry)| entry.file_bytes).sum::<u64>();
        let bytes = bytes(SegmentState::Closed) + bytes(SegmentState::Forgetting);
        assert_eq!(ledger.used_bytes(), bytes + 1000 * full as u64);
        let mine = |entry: &&SegmentEntry| {
            !entry.import && entry.hold == 0 && (1..3).contains(&entry.lane)
        };
        let held = table.iter().filter(|entry| entry.state != SegmentState::Free).filter(mine);
        let bytes: u128 = held.map(|entry| u128::from(ledger.bytes_of(entry))).sum();
        assert_eq!(ledger.lanes_bytes(&(1..3)), bytes);
        let closed = of(SegmentState::Closed).filter(|(_, entry)| mine(entry)).count();
        assert_eq!(ledger.lanes_closed(&(1..3)).count(), closed);
        let oldest = ledger.oldest().next().unwrap();
        ledger.pin(oldest);
        assert!(ledger.oldest().all(|held| held != oldest), "it is being copied");
        ledger.unpin(oldest);
        assert_eq!(ledger.oldest().next(), Some(oldest));
    }

    #[test]
    fn what_waits_for_holds_goes_last_but_for_more_than_half() {
        let closed = |ordinal| entry(SegmentState::Closed, ordinal, 10);
        let table: Vec<_> = (1..=6).map(closed).collect();
        let mut ledger = Ledger::new(1000, &table);
        let oldest =
            |ledger: &Ledger| ledger.oldest().map(|(ordinal, _)| ordinal).collect::<Vec<_>>();
        let packets = |yes| Some(if yes { Wanted::Packets } else { Wanted::Nothing });
        ledger.spare(true, |ordinal| packets(ordinal <= 2));
        assert_eq!(oldest(&ledger), [3, 4, 5, 6, 1, 2]);
        let of_lanes = ledger.lanes_closed(&(0..1)).map(|(spared, ordinal, ..)| (spared, ordinal));
        let mut of_lanes: Vec<_> = of_lanes.collect();
        of_lanes.sort_unstable();
        assert_eq!(of_lanes[4..], [(true, 1), (true, 2)]);
        // What closes later waits until somebody says otherwise.
        let open = entry(SegmentState::Open, 7, 0);
        ledger.change(6, &SegmentEntry::default(), &open);
        ledger.change(6, &open, &closed(7));
        ledger.spare(true, |ordinal| packets(ordinal <= 2).filter(|_| ordinal <= 6));
        assert!(ledger.is_waiting(7) && oldest(&ledger) == [3, 4, 5, 6, 1, 2, 7]);
        ledger.spare(true, |ordinal| packets(ordinal != 4));
        assert_eq!(oldest(&ledger), [1, 2, 3, 4, 5, 6, 7], "three of seven are spared");
        let one = |ordinal| if ordinal == 1 { Wanted::Packets } else { Wanted::Unseen };
        ledger.spare(true, |ordinal| Some(one(ordinal)));
        assert_eq!(oldest(&ledger), [2, 3, 4, 5, 1, 6, 7], "what is known to be wanted is");
        ledger.change(0, &table[0], &SegmentEntry::default());
        assert!(!ledger.is_waiting(1));
        ledger.spare(false, |_| packets(false));
        assert!(oldest(&ledger) == [2, 3, 4, 5, 6, 7] && !ledger.is_waiting(7));
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
