//! Looking into several segments at once, where one after the other turned out to hold no answer.
//!
//! A segment that its digest lets through and its index then denies costs half a millisecond of a
//! core. Some hundreds of them in a row, or segments without digests, would decide how long a
//! question takes. So with each that held nothing twice as many of the next are looked into, by
//! several threads.
//!
//! Invariant: what looking showed is noted when the turn of the segment comes, as if it were opened
//! then; and one that may hold an answer is opened then, because what is open stays in memory.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::source::{Look, Question, Reader, Shown, Source};

/// Groups of segments looked into at once at most.
const GROUPS_MAX: usize = 16;
/// Threads at most. Each has the index of one segment in memory.
const THREADS_MAX: usize = 8;

/// How many segments to look into at once.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    /// Groups in a row that held nothing.
    empty: u32,
}

impl Ahead {
    /// A group was opened, or would have been.
    pub(crate) fn opened(&mut self, held_something: bool) {
        self.empty = if held_something { 0 } else { self.empty.saturating_add(1) };
    }

    /// So many groups are worth looking into now; 1: none before its turn.
    pub(crate) fn groups(&self) -> usize {
        1usize.checked_shl(self.empty).unwrap_or(GROUPS_MAX).clamp(1, GROUPS_MAX)
    }
}

/// What is known of a group before its turn.
pub(crate) enum Glance {
    /// It was not looked into.
    Unknown,
    /// It may hold an answer, or cannot be opened.
    Open,
    /// None of its segments holds an answer; what opening each of them shows.
    Nothing(Vec<Shown>),
}

/// Looks into groups of segments.
pub(crate) fn glance<S: Source>(groups: &[Vec<&S>], question: &Question<'_>) -> Vec<Glance> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut seen = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(group) = groups.get(at) else { return seen };
            let shown = group.iter().map(|source| nothing(*source, question)).collect();
            seen.push((at, shown));
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    // Half of them may wait for the device.
    let threads = (2 * cores).min(THREADS_MAX).min(groups.len());
    let seen: Vec<(usize, Option<Vec<Shown>>)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        // What a thread did not tell is opened when its turn comes.
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
    });
    let mut glances: Vec<Glance> = groups.iter().map(|_| Glance::Open).collect();
    for (at, shown) in seen {
        glances[at] = shown.map_or(Glance::Open, Glance::Nothing);
    }
    glances
}

/// What opening the segment shows, if it holds no answer.
fn nothing<S: Source>(source: &S, question: &Question<'_>) -> Option<Shown> {
    let reader = source.open().ok()?;
    let look = reader.look(Some(question));
    let (holes, taken) = (reader.damage(), reader.taken());
    let chunks = Vec::new();
    look.selected.is_empty().then_some(Shown { look: Look { chunks, ..look }, holes, taken })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_is_looked_into_with_each_that_held_nothing() {
        let mut ahead = Ahead::default();
        let mut groups = vec![ahead.groups()];
        for held in [false, false, false, false, false, false, true, false] {
            ahead.opened(held);
            groups.push(ahead.groups());
        }
        assert_eq!(groups, [1, 2, 4, 8, 16, 16, 16, 1, 2]);
        ahead.empty = u32::MAX;
        ahead.opened(false);
        assert_eq!(ahead.groups(), GROUPS_MAX);
    }
}
