//! How a volume is, and how the store is: one of five conditions, the same words in status, metrics
//! and log.
//!
//! The conditions are rows of two tables; exactly one row fits each set of signs, which a test
//! shows. [`Watched`] keeps a condition from flickering: worse is told at once, better only when it
//! has stayed better for [`CALM`].

use std::time::{Duration, Instant};

/// How a volume or the store is, best first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// All is as it should be.
    #[default]
    Healthy,
    /// Everything is still recorded, but there is less room than the quota, or fewer free buffers
    /// than there should be.
    Pressured,
    /// Something does not work and something else does its work.
    Degraded,
    /// There is no room for another segment, and nothing that could go for it.
    Full,
    /// It takes no more writes until somebody sees to it.
    Failed,
}

impl Condition {
    /// Every condition, best first.
    pub const ALL: [Self; 5] =
        [Self::Healthy, Self::Pressured, Self::Degraded, Self::Full, Self::Failed];

    /// Name in status, metrics and log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Pressured => "pressured",
            Self::Degraded => "degraded",
            Self::Full => "full",
            Self::Failed => "failed",
        }
    }
}

/// What is seen of a volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VolumeSigns {
    /// Its tables could not be written.
    pub failed: bool,
    /// The last segment that was to open here found no room.
    pub refused: bool,
    /// A segment failed here, or the device does not answer.
    pub in_doubt: bool,
    /// Others' files leave it less than its quota.
    pub squeezed: bool,
}

/// What is seen of the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreSigns {
    /// Every volume has failed.
    pub all_failed: bool,
    /// No volume takes a segment: each has failed or is full.
    pub none_takes: bool,
    /// A volume is degraded, full or failed, or no key ring can be written.
    pub trouble: bool,
    /// A volume is pressured, or too much of the buffer is in use.
    pub pressure: bool,
}

/// A row of a table: which signs it wants present, which absent; the others may be either.
struct Row {
    present: &'static [usize],
    absent: &'static [usize],
    is: Condition,
}

const fn row(present: &'static [usize], absent: &'static [usize], is: Condition) -> Row {
    Row { present, absent, is }
}

/// Signs in the order of their fields, for volumes and for stores: both are graded alike.
const TABLE: [Row; 5] = [
    row(&[0], &[], Condition::Failed),
    row(&[1], &[0], Condition::Full),
    row(&[2], &[0, 1], Condition::Degraded),
    row(&[3], &[0, 1, 2], Condition::Pressured),
    row(&[], &[0, 1, 2, 3], Condition::Healthy),
];

impl Row {
    fn fits(&self, signs: [bool; 4]) -> bool {
        self.present.iter().all(|at| signs[*at]) && !self.absent.iter().any(|at| signs[*at])
    }
}

impl VolumeSigns {
    /// The condition of a volume with these signs.
    pub fn condition(self) -> Condition {
        graded([self.failed, self.refused, self.in_doubt, self.squeezed])
    }
}

impl StoreSigns {
    /// What the volumes' conditions say of the store; `trouble` and `pressure` are what is known
    /// beside them.
    pub fn of(volumes: &[Condition], trouble: bool, pressure: bool) -> Self {
        let all = |takes_none: &[Condition]| volumes.iter().all(|it| takes_none.contains(it));
        let any = |from: Condition| volumes.iter().any(|it| *it >= from);
        Self {
            all_failed: all(&[Condition::Failed]),
            none_takes: all(&[Condition::Full, Condition::Failed]),
            trouble: trouble || any(Condition::Degraded),
            pressure: pressure || any(Condition::Pressured),
        }
    }

    /// The condition of a store with these signs.
    pub fn condition(self) -> Condition {
        graded([self.all_failed, self.none_takes, self.trouble, self.pressure])
    }
}

fn graded(signs: [bool; 4]) -> Condition {
    let row = TABLE.iter().find(|row| row.fits(signs));
    row.map(|row| row.is).expect("a row fits any signs, as the test of the table shows")
}

/// Time for which it must stay better before that is believed.
pub const CALM: Duration = Duration::from_secs(5);

/// Share of the buffer, in thousandths, from which the store counts as pressured, and to which it
/// must fall for the pressure to be over. Up to 300 is what a device at its full rate keeps.
pub const PRESSURE_PERMILLE: (u64, u64) = (500, 300);

/// A sign with two thresholds: it appears at the upper one and goes at the lower one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Threshold {
    on: bool,
}

impl Threshold {
    /// Whether the sign is there, now that the value is `value`.
    pub fn look(&mut self, value: u64, (enter, leave): (u64, u64)) -> bool {
        self.on = if self.on { value > leave } else { value >= enter };
        self.on
    }
}

/// A condition as it is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Watched {
    told: Condition,
    /// Since when it has been better than told.
    better_since: Option<Instant>,
}

impl Watched {
    /// What is told.
    pub fn told(&self) -> Condition {
        self.told
    }

    /// Takes a new look. Gives what was told before if that changes.
    pub fn look(&mut self, now: Instant, seen: Condition) -> Option<Condition> {
        if seen == self.told {
            self.better_since = None;
            return None;
        }
        if seen < self.told {
            let since = *self.better_since.get_or_insert(now);
            if now.saturating_duration_since(since) < CALM {
                return None;
            }
        }
        self.better_since = None;
        Some(std::mem::replace(&mut self.told, seen))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_row_fits_any_signs() {
        for bits in 0..16u8 {
            let signs = std::array::from_fn(|at| bits & 1 << at != 0);
            let fitting = TABLE.iter().filter(|row| row.fits(signs)).count();
            assert_eq!(fitting, 1, "{signs:?}");
        }
        let named: Vec<Condition> = TABLE.iter().rev().map(|row| row.is).collect();
        assert_eq!(named, Condition::ALL, "every condition has a row, worse ones go first");
    }

    #[test]
    fn a_store_is_as_well_as_what_is_left_of_it() {
        use Condition::{Degraded, Failed, Full, Healthy, Pressured};
        let cases: [(&[Condition], bool, bool, Condition); 9] = [
            (&[Healthy, Healthy], false, false, Healthy),
            (&[Healthy, Healthy], false, true, Pressured),
            (&[Healthy, Healthy], true, true, Degraded),
            (&[Healthy, Pressured], false, false, Pressured),
            (&[Healthy, Degraded], false, true, Degraded),
            (&[Pressured, Full], false, false, Degraded),
            (&[Healthy, Failed], false, false, Degraded),
            (&[Full, Failed], false, false, Full),
            (&[Failed, Failed], true, true, Failed),
        ];
        for (volumes, trouble, pressure, want) in cases {
            let signs = StoreSigns::of(volumes, trouble, pressure);
            assert_eq!(signs.condition(), want, "{volumes:?}");
        }
    }

    #[test]
    fn worse_is_told_at_once_and_better_when_it_lasts() {
        use Condition::{Degraded, Full, Healthy};
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut watched = Watched::default();
        assert_eq!(watched.look(at(0), Healthy), None);
        assert_eq!(watched.look(at(0), Degraded), Some(Healthy));
        assert_eq!(watched.look(at(1), Healthy), None);
        assert_eq!(watched.look(at(5), Degraded), None, "it was better for too short a time");
        assert_eq!(watched.look(at(6), Healthy), None);
        assert_eq!(watched.look(at(10), Healthy), None);
        assert_eq!(watched.told(), Degraded);
        assert_eq!(watched.look(at(11), Healthy), Some(Degraded));
        assert_eq!(watched.look(at(11), Full), Some(Healthy));
    }

    #[test]
    fn a_threshold_has_two_sides() {
        let mut pressure = Threshold::default();
        let seen = [499, 500, 400, 301, 300, 499, 900].map(|it| pressure.look(it, (500, 300)));
        assert_eq!(seen, [false, true, true, true, false, false, true]);
    }
}
