//! When the rungs of the pressure ladder are entered and left.
//!
//! Pressure is the share of the buffer's chunks that are in use. A slow disk, a late flush and a
//! lane that gets more than its share all end there, and it is what runs out: when nothing is free,
//! packets are lost. Divided by the rate it is the time that packets wait.
//!
//! Rungs are entered in order, as many at once as the pressure asks for: a buffer fills within
//! milliseconds. They are left one by one, the last first, each after a second in which the
//! pressure was below its mark, so that a rung does not flap with every flush of a disk.

use std::time::{Duration, Instant};

/// Time below its mark after which a rung is left.
pub(super) const LEAVE_AFTER: Duration = Duration::from_secs(1);

/// A change, with the number of the rung.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Enter(usize),
    Leave(usize),
}

pub(super) struct Ladder {
    /// Shares at which rungs are entered, and below which they are left.
    rungs: Vec<(f64, f64)>,
    /// Rungs that are entered.
    height: usize,
    below_since: Option<Instant>,
}

impl Ladder {
    pub(super) fn new(percents: impl Iterator<Item = (u8, u8)>) -> Self {
        let share = |percent: u8| f64::from(percent) / 100.0;
        let rungs = percents.map(|(enter, leave)| (share(enter), share(leave))).collect();
        Self { rungs, height: 0, below_since: None }
    }

    /// Notes the pressure and tells every change.
    pub(super) fn climb(&mut self, pressure: f64, now: Instant, mut tell: impl FnMut(Step)) {
        while self.rungs.get(self.height).is_some_and(|(enter, _)| pressure >= *enter) {
            tell(Step::Enter(self.height));
            self.height += 1;
        }
        let Some(top) = self.height.checked_sub(1) else { return };
        if pressure >= self.rungs[top].1 {
            self.below_since = None;
            return;
        }
        let since = *self.below_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= LEAVE_AFTER {
            tell(Step::Leave(top));
            self.height = top;
            self.below_since = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Step::{Enter, Leave};

    #[test]
    fn rungs_are_entered_at_once_and_left_one_by_one() {
        let mut ladder = Ladder::new([(50, 25), (70, 40), (90, 60)].into_iter());
        let begin = Instant::now();
        let mut at = |ms: u64, percent: u32| {
            let mut steps = Vec::new();
            let now = begin + Duration::from_millis(ms);
            ladder.climb(f64::from(percent) / 100.0, now, |step| steps.push(step));
            steps
        };
        assert_eq!(at(0, 49), []);
        assert_eq!(at(1, 75), [Enter(0), Enter(1)]);
        assert_eq!(at(2, 45), [], "below the mark of entering, not of leaving");
        assert_eq!(at(3, 95), [Enter(2)]);
        assert_eq!(at(4, 59), []);
        assert_eq!(at(900, 61), [], "above it again: the second begins anew");
        assert_eq!(at(1100, 10), []);
        assert_eq!(at(2099, 10), []);
        assert_eq!(at(2100, 10), [Leave(2)]);
        assert_eq!(at(2101, 10), []);
        assert_eq!(at(3101, 10), [Leave(1)]);
        assert_eq!(at(3102, 80), [Enter(1)]);
        assert_eq!(at(3103, 0), []);
        assert_eq!(at(4103, 0), [Leave(1)]);
        assert_eq!(at(5000, 0), []);
        assert_eq!(at(6000, 0), [Leave(0)]);
        assert_eq!(at(9000, 0), []);
    }

    #[test]
    fn no_rungs_no_steps() {
        let mut ladder = Ladder::new(std::iter::empty());
        ladder.climb(1.0, Instant::now(), |step| panic!("{step:?}"));
    }
}
