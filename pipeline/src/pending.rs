//! Gaps that wait for the next chunk of a lane.
//!
//! A gap asks for a chunk of its own when it has waited for long: packets are absent, and that must
//! not stay untold because none come. Marks of the pressure ladder never do. They tell of no
//! absence, and a chunk for them is pressure itself: with few buffers the mark that a rung was left
//! entered it again, once a second for ever. So a mark goes with the next chunk that is written
//! anyway, or with the last; and of a rung that was left before there was one, a single mark tells
//! both, or none if it left out nothing and cut nothing.

use std::time::{Duration, Instant};

use wirevault_format::{Cause, Gap};

use crate::job::CHUNK_GAPS_MAX;

/// They fit into one chunk together; allocates nothing after it was made.
pub(crate) struct PendingGaps {
    gaps: Vec<Gap>,
    /// Since when one waits that asks for a chunk.
    since: Option<Instant>,
}

impl Default for PendingGaps {
    fn default() -> Self {
        Self { gaps: Vec::with_capacity(CHUNK_GAPS_MAX), since: None }
    }
}

impl PendingGaps {
    /// Packets are absent.
    pub(crate) fn add(&mut self, gap: Gap) {
        self.since.get_or_insert_with(Instant::now);
        let joins = |last: &Gap| {
            (last.cause, last.policy) == (gap.cause, gap.policy) && last.from_ns <= gap.from_ns
        };
        // Nothing was taken between two gaps that wait together, so joining them says nothing
        // false.
        if let Some(last) = self.gaps.last_mut().filter(|last| joins(last)) {
            last.until_ns = gap.until_ns.zip(last.until_ns).map(|(a, b)| a.max(b)).or(gap.until_ns);
            last.packets = last.packets.zip(gap.packets).map(|(a, b)| a + b);
            last.cumulative = gap.cumulative;
            return;
        }
        self.push(gap);
    }

    /// A rung was entered or left.
    pub(crate) fn add_mark(&mut self, mark: Gap) {
        let begins = |gap: &Gap| {
            gap.cause == Cause::Pressure
                && gap.until_ns.is_none()
                && (gap.policy, gap.from_ns) == (mark.policy, mark.from_ns)
        };
        match self.gaps.iter().position(begins) {
            Some(at) if mark.packets == Some(0) => {
                self.gaps.remove(at);
            }
            Some(at) => self.gaps[at] = mark,
            None => self.push(mark),
        }
    }

    /// One has waited for so long that it asks for a chunk.
    pub(crate) fn are_due(&self, age: Duration) -> bool {
        self.since.is_some_and(|since| since.elapsed() >= age)
    }

    /// None waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.gaps.is_empty()
    }

    /// All of them, for a chunk.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = Gap> {
        self.since = None;
        self.gaps.drain(..)
    }

    fn push(&mut self, gap: Gap) {
        if self.gaps.len() < CHUNK_GAPS_MAX {
            self.gaps.push(gap);
            return;
        }
        // The last one stands for everything since.
        let last = self.gaps.last_mut().expect("the list is full");
        last.until_ns = gap.until_ns;
        last.packets = last.packets.zip(gap.packets).map(|(a, b)| a + b);
    }
}

#[cfg(test)]
mod tests {
    use wirevault_format::{PolicyName, PressureCause};

    use super::*;

    fn gap(cause: Cause, from_ns: u64, until_ns: Option<u64>, packets: Option<u64>) -> Gap {
        let pressure = (cause == Cause::Pressure).then_some(PressureCause::Queue);
        let policy = PolicyName::new("heads").filter(|_| pressure.is_some());
        let (cumulative, sequence) = (0, 0);
        Gap { cause, from_ns, until_ns, packets, cumulative, sequence, policy, pressure }
    }

    fn mark(from_ns: u64, until_ns: Option<u64>, packets: Option<u64>) -> Gap {
        gap(Cause::Pressure, from_ns, until_ns, packets)
    }

    #[test]
    fn marks_of_rungs_ask_for_no_chunk() {
        let mut gaps = PendingGaps::default();
        gaps.add_mark(mark(5, None, None));
        assert!(!gaps.are_due(Duration::ZERO) && !gaps.is_empty());
        gaps.add(gap(Cause::NoBuffer, 6, Some(7), Some(1)));
        assert!(gaps.are_due(Duration::ZERO) && !gaps.are_due(Duration::from_secs(3600)));
        assert_eq!(gaps.take().count(), 2);
        assert!(gaps.is_empty() && !gaps.are_due(Duration::ZERO));
    }

    #[test]
    fn of_a_rung_left_before_a_chunk_one_mark_tells_or_none() {
        let mut gaps = PendingGaps::default();
        gaps.add_mark(mark(5, None, None));
        gaps.add_mark(mark(5, Some(9), Some(3)));
        assert_eq!(gaps.take().collect::<Vec<_>>(), [mark(5, Some(9), Some(3))]);
        gaps.add_mark(mark(15, None, None));
        gaps.add_mark(mark(15, Some(19), Some(0)));
        assert!(gaps.is_empty(), "it did nothing");
        gaps.add_mark(mark(25, None, None));
        assert_eq!(gaps.take().count(), 1);
        gaps.add_mark(mark(25, Some(29), Some(0)));
        assert_eq!(gaps.take().count(), 1, "a chunk says already that it was entered");
    }

    #[test]
    fn gaps_that_follow_each_other_are_joined_and_none_is_lost() {
        let mut gaps = PendingGaps::default();
        for at in 0..5 {
            gaps.add(gap(Cause::RingOverflow, at, Some(at + 1), Some(2)));
        }
        let joined = gaps.take().collect::<Vec<_>>();
        assert_eq!(joined, [gap(Cause::RingOverflow, 0, Some(5), Some(10))]);
        for at in 0..3 * CHUNK_GAPS_MAX as u64 {
            let cause = [Cause::RingOverflow, Cause::NoBuffer][at as usize % 2];
            gaps.add(gap(cause, at, Some(at + 1), Some(1)));
        }
        let told: Vec<_> = gaps.take().collect();
        assert_eq!(told.len(), CHUNK_GAPS_MAX);
        let packets: u64 = told.iter().filter_map(|gap| gap.packets).sum();
        assert_eq!(packets, 3 * CHUNK_GAPS_MAX as u64);
    }
}
