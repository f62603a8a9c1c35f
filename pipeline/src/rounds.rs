//! Whether the threads that packets pass still go round: what a watchdog is fed with.
//!
//! A lane's thread comes back from its source 20 ms later at most, packets or none, and its sealer
//! looks around five times a second. So an idle link is progress, and a full buffer or a store
//! without room is, too: these are states, and a new start would not end them. A thread that hangs
//! or has panicked goes round no more, and only a new start helps.

use std::sync::atomic::Ordering;

use crate::{LaneShared, LaneView};

/// Remembers how far lanes and their sealers had come.
#[derive(Debug, Default)]
pub struct Rounds {
    /// Of each lane and of its sealer, when all had gone on last.
    seen: Vec<(u64, u64)>,
}

impl Rounds {
    /// True if every live lane and its sealer went round since it was true last; lanes that have
    /// ended are left out. A replay may wait for its file, a pipe for example, as long as it likes.
    pub fn all_went_on(&mut self, lanes: &[LaneView]) -> bool {
        let live = lanes.iter().filter(|lane| lane.live);
        self.went_on(live.map(|lane| &*lane.shared))
    }

    fn went_on<'a>(&mut self, lanes: impl Iterator<Item = &'a LaneShared>) -> bool {
        let rounds = |lane: &LaneShared| {
            let (own, sealer) = (&lane.rounds, &lane.seal_rounds);
            (own.load(Ordering::Relaxed), sealer.load(Ordering::Relaxed))
        };
        // Once ended a lane is never again anything else.
        let now: Vec<_> =
            lanes.map(|lane| if lane.has_ended() { None } else { Some(rounds(lane)) }).collect();
        self.seen.resize(now.len(), (0, 0));
        let stands = |(now, seen): (&Option<(u64, u64)>, &(u64, u64))| {
            now.is_some_and(|(lane, sealer)| lane == seen.0 || sealer == seen.1)
        };
        if now.iter().zip(&self.seen).any(stands) {
            return false;
        }
        let seen = self.seen.iter_mut().zip(now);
        seen.for_each(|(seen, now)| *seen = now.unwrap_or(*seen));
        true
    }
}

#[cfg(test)]
mod tests {
    use wirevault_capture::SourceReport;

    use super::*;
    use crate::LaneState;

    #[test]
    fn one_thread_that_stands_still_is_enough() {
        let lanes =
            [0, 1].map(|lane| LaneShared::new(lane, None, SourceReport::default(), Vec::new()));
        let go = |lane: usize, own, sealer| {
            lanes[lane].rounds.fetch_add(own, Ordering::Relaxed);
            lanes[lane].seal_rounds.fetch_add(sealer, Ordering::Relaxed);
        };
        let mut rounds = Rounds::default();
        let mut look = || rounds.went_on(lanes.iter());
        assert!(!look(), "they have not begun");
        (0..2).for_each(|lane| go(lane, 1, 1));
        assert!(look());
        assert!(!look(), "nothing moved since");
        go(0, 5, 5);
        go(1, 5, 0);
        assert!(!look(), "the second sealer stands still");
        go(1, 0, 1);
        assert!(look(), "late is not never: what the others did is not forgotten");
        go(0, 1, 1);
        assert!(!look());
        lanes[1].set_state(LaneState::Ended);
        assert!(look(), "a lane that has ended need not move");
    }
}
