//! Which volume takes the next segment.
//!
//! Volumes are asked in the order of their rank: those that work, before those under strain (they
//! keep more chunks than their share, or say that they are worn out), before those in doubt (they
//! do not answer, or failed lately), before those that failed. A device that is only slow still
//! takes what it is given. Among equals the smallest cost comes first, counted in segments:
//!
//! ```text
//! cost = segments open there
//!      + time that its queue needs, in quarters of a second, 8 at most
//!      + percent of its life used beyond that of the least used volume, in fives, 4 at most
//!      + share of its quota that holds segments
//! ```
//! Lanes spread over devices by the first term, and leave a slow one by the second. The third
//! evens out wear: a device that has used five percent of its life more than another counts as if
//! one more segment were open there, so it gets fewer until the others have caught up. By the
//! fourth, free room is used before anything is given up; on full volumes the oldest segment goes
//! first, wherever it is.

use std::cmp::Ordering;
use std::time::Duration;

/// Time of a queue that counts as one segment.
const QUEUE_UNIT: Duration = Duration::from_millis(250);
/// A queue counts as so many segments at most: what takes longer is stalled, not busy.
const QUEUE_COST_MAX: f64 = 8.0;
/// Percent of its life that count as one segment.
const WEAR_UNIT_PERCENT: f64 = 5.0;
/// Wear counts as so many segments at most: the worn device still bears its part of a high rate.
const WEAR_COST_MAX: f64 = 4.0;

/// What the writer of a volume has to do at the moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Segments that are being opened there.
    pub opening: u32,
    /// Time that the chunks in its queue need.
    pub queue: Duration,
    /// It keeps more chunks than its share.
    pub crowded: bool,
    /// Its device does not answer.
    pub stalled: bool,
}

/// What the device of a volume tells of its wear.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wear {
    /// Percent of its life that is used, by its maker's reckoning, or by what was written to it;
    /// may pass 100. `None` if it tells neither.
    pub used_percent: Option<u8>,
    /// It says that its spare blocks run short, that its reliability is degraded, or that it takes
    /// no more writes.
    pub exhausted: bool,
}

/// A volume that may take a segment.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Candidate {
    pub failed: bool,
    pub doubted: bool,
    pub strained: bool,
    pub open_segments: u32,
    pub queue: Duration,
    pub used_percent: Option<u8>,
    pub quota_segments: u64,
    pub free_segments: u64,
    /// Ordinal of the oldest segment.
    pub oldest: Option<u64>,
}

impl Candidate {
    fn class(&self) -> u8 {
        match (self.failed, self.doubted, self.strained) {
            (true, ..) => 3,
            (_, true, _) => 2,
            (_, _, true) => 1,
            _ => 0,
        }
    }

    /// `least_used`: percent of the least used volume of the store.
    fn cost(&self, least_used: u8) -> f64 {
        let queue = self.queue.as_secs_f64() / QUEUE_UNIT.as_secs_f64();
        // One that tells nothing counts as the least used.
        let beyond = self.used_percent.map_or(0, |used| used.saturating_sub(least_used));
        let free = self.free_segments.min(self.quota_segments) as f64;
        // Less than a segment is no room at all.
        let full = 1.0 - free / self.quota_segments.max(1) as f64;
        f64::from(self.open_segments)
            + queue.min(QUEUE_COST_MAX)
            + (f64::from(beyond) / WEAR_UNIT_PERCENT).min(WEAR_COST_MAX)
            + full
    }
}

/// Numbers of the volumes in the order in which they are to be asked.
pub(crate) fn ranked(candidates: &[Candidate]) -> Vec<usize> {
    let least_used = candidates.iter().filter_map(|it| it.used_percent).min().unwrap_or(0);
    let key = |number: &usize| {
        let candidate = &candidates[*number];
        (candidate.class(), candidate.cost(least_used), candidate.oldest)
    };
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by(|left, right| {
        let ((class, cost, oldest), (other_class, other_cost, other_oldest)) =
            (key(left), key(right));
        let by_cost = cost.partial_cmp(&other_cost).unwrap_or(Ordering::Equal);
        class.cmp(&other_class).then(by_cost).then(oldest.cmp(&other_oldest))
    });
    order
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn empty() -> Candidate {
        Candidate {
            failed: false,
            doubted: false,
            strained: false,
            open_segments: 0,
            queue: Duration::ZERO,
            used_percent: None,
            quota_segments: 100,
            free_segments: 100,
            oldest: None,
        }
    }

    fn candidate() -> impl Strategy<Value = Candidate> {
        let worn = prop::option::of(0u8..=255);
        let times = (0u64..5000, any::<Option<u64>>());
        (any::<[bool; 3]>(), 0u32..9, times, worn, 0u64..500, 0u64..500).prop_map(
            |(signs, open_segments, (ms, oldest), used_percent, free, quota)| {
                let [failed, doubted, strained] = signs;
                Candidate {
                    failed,
                    doubted,
                    strained,
                    open_segments,
                    queue: Duration::from_millis(ms),
                    used_percent,
                    quota_segments: quota,
                    free_segments: free,
                    oldest,
                }
            },
        )
    }

    proptest! {
        /// Every volume is asked once; one that works before one under strain, before one in doubt,
        /// before one that failed; and more of any burden never brings a volume forward.
        #[test]
        fn burdens_only_put_a_volume_back(
            candidates in prop::collection::vec(candidate(), 1..9),
            which: prop::sample::Index,
            burden in 0..7,
        ) {
            let order = ranked(&candidates);
            let mut all = order.clone();
            all.sort_unstable();
            prop_assert_eq!(all, (0..candidates.len()).collect::<Vec<_>>());
            let classes: Vec<u8> = order.iter().map(|at| candidates[*at].class()).collect();
            prop_assert!(classes.is_sorted());

            let at = which.index(candidates.len());
            let mut more = candidates.clone();
            match burden {
                0 => more[at].failed = true,
                1 => more[at].doubted = true,
                2 => more[at].open_segments += 1,
                3 => more[at].queue += QUEUE_UNIT,
                4 => more[at].free_segments /= 2,
                5 => more[at].strained = true,
                _ => {
                    // Not the least used one: others are measured by that.
                    let worst = candidates.iter().filter_map(|it| it.used_percent).max();
                    more[at].used_percent = worst.map(|worst| worst.saturating_add(9));
                }
            }
            let rank = |order: &[usize]| order.iter().position(|it| *it == at);
            prop_assert!(rank(&ranked(&more)) >= rank(&order));
        }

        /// Lanes that open one segment after the other wear devices evenly, however unequal they
        /// were, though a segment costs one of them up to twice what it costs another. (At four
        /// times a device whose wear counts the most would wear as fast as the others still.)
        #[test]
        fn wear_is_evened_out(
            worn in prop::collection::vec(0.0f64..40.0, 2..5),
            costs in prop::collection::vec(1.0f64..2.0, 5),
            lanes in 1usize..5,
        ) {
            let mut used = worn.clone();
            let mut candidates = vec![Candidate { free_segments: 0, ..empty() }; used.len()];
            let mut lane_on: Vec<Option<usize>> = vec![None; lanes];
            for step in 0..60_000 {
                for (candidate, used) in candidates.iter_mut().zip(&used) {
                    candidate.used_percent = Some(*used as u8);
                }
                let lane = step % lanes;
                let chosen = ranked(&candidates)[0];
                candidates[chosen].open_segments += 1;
                if let Some(before) = lane_on[lane].replace(chosen) {
                    candidates[before].open_segments -= 1;
                }
                used[chosen] += costs[chosen] / 1000.0;
                if used.iter().any(|used| *used > 99.0) {
                    break;
                }
            }
            let spread = |used: &[f64]| {
                let most = used.iter().copied().fold(f64::MIN, f64::max);
                most - used.iter().copied().fold(f64::MAX, f64::min)
            };
            // A segment for each lane can stand between two volumes, and percent are whole.
            let close = WEAR_UNIT_PERCENT * lanes as f64 + 1.0;
            prop_assert!(spread(&used) <= spread(&worn).max(close) + 0.01, "{worn:?}: {used:?}");
            prop_assert!(spread(&used) <= close.max(WEAR_UNIT_PERCENT * WEAR_COST_MAX), "{used:?}");
        }
    }

    #[test]
    fn equal_volumes_take_turns_and_the_worn_one_takes_fewer() {
        let choose = |used: [u8; 2], open: [u32; 2]| {
            let volume = |at: usize| Candidate {
                used_percent: Some(used[at]),
                open_segments: open[at],
                ..empty()
            };
            ranked(&[volume(0), volume(1)])[0]
        };
        assert_eq!((choose([3, 3], [1, 0]), choose([3, 3], [0, 1])), (1, 0));
        assert_eq!(choose([20, 3], [0, 1]), 1, "a second segment rather than the worn device");
        assert_eq!(choose([20, 3], [0, 5]), 0, "which still bears its part of a high rate");
    }

    #[test]
    fn a_slow_device_is_left_and_a_full_one_comes_last() {
        let slow = Candidate { queue: Duration::from_secs(1), ..empty() };
        let busy = Candidate { open_segments: 3, ..empty() };
        assert_eq!(ranked(&[slow.clone(), busy])[0], 1);
        let full = Candidate { free_segments: 0, oldest: Some(7), ..empty() };
        let older = Candidate { oldest: Some(3), ..full.clone() };
        assert_eq!(ranked(&[full, older, empty()]), [2, 1, 0]);
        let failed = Candidate { failed: true, ..empty() };
        assert_eq!(ranked(&[failed, slow.clone()]), [1, 0]);
        let crowded = Candidate { strained: true, ..slow };
        let doubted = Candidate { doubted: true, ..empty() };
        assert_eq!(ranked(&[doubted, crowded]), [1, 0], "however little the other has to do");
    }
}
