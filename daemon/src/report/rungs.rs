//! Rungs of the pressure ladder in the log: a line when a lane enters one, and when it leaves it.
//!
//! The lanes count and do not log; this looks at their counts a few times a second. A rung holds
//! for a second at least, so every change is seen, and one that was missed for a while is told by
//! its number.

use wirevault_format::PressureCause;
use wirevault_pipeline::{LaneView, PolicyCounters, Shares};

/// What was told of every rung of every lane.
#[derive(Debug, Default)]
pub(crate) struct Rungs {
    told: Vec<Vec<Told>>,
}

/// How often a rung was entered, and left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Told {
    entered: [u64; PressureCause::ALL.len()],
    left: u64,
}

impl Rungs {
    /// Takes a new look; `pressure` gives that on a lane now.
    pub(crate) fn look(&mut self, lanes: &[LaneView], pressure: impl Fn(&LaneView) -> Shares) {
        self.told.resize_with(lanes.len(), Vec::new);
        for (lane, told) in lanes.iter().zip(&mut self.told) {
            let number = lane.shared.lane;
            let rungs = lane.shared.policies.iter().filter(|policy| policy.is_rung);
            for (at, rung) in rungs.enumerate() {
                if told.len() == at {
                    told.push(Told::default());
                }
                let now = Told::of(rung);
                let (name, percent) = (rung.name, pressure(lane).largest().0 * 100.0);
                for cause in now.causes_since(&told[at]) {
                    let cause = cause.name();
                    tracing::warn!(lane = number, rung = %name, cause, "under pressure ({cause}): \
                         lane {number} enters the rung {name}, {percent:.0} % now");
                }
                if now.left > told[at].left {
                    let (shed, cut) = (rung.shed(), rung.cut());
                    tracing::info!(lane = number, rung = %name, shed, cut, "lane {number} has left \
                         the rung {name}; so far it has left out {shed} packets and cut {cut}");
                }
                told[at] = now;
            }
        }
    }
}

impl Told {
    fn of(rung: &PolicyCounters) -> Self {
        // In this order: a rung that is entered in between counts as neither.
        let active = rung.is_active();
        let entered = rung.entered();
        let left = entered.iter().sum::<u64>().saturating_sub(u64::from(active));
        Self { entered, left }
    }

    /// What it was entered for since.
    fn causes_since(self, before: &Self) -> impl Iterator<Item = PressureCause> {
        let counts = before.entered;
        PressureCause::ALL
            .into_iter()
            .filter(move |cause| self.entered[cause.index()] > counts[cause.index()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_once_with_its_cause() {
        let told = |entered, left| Told { entered, left };
        let before = told([1, 0, 0], 1);
        let causes = |now: Told, before| now.causes_since(before).collect::<Vec<_>>();
        assert_eq!(causes(told([1, 0, 0], 1), &before), []);
        assert_eq!(causes(told([1, 1, 0], 1), &before), [PressureCause::Queue]);
        let twice = told([2, 0, 3], 4);
        assert_eq!(causes(twice, &before), [PressureCause::Buffer, PressureCause::Disk]);
        assert_eq!(causes(twice, &twice), []);
    }
}
