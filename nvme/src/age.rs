//! How long operations have been in flight, for finding a device that hangs.

use std::collections::VecDeque;
use std::time::Instant;

/// Operations in flight in the order of their submission. Never grows beyond what it was made for
/// by more than operations that ended out of order.
pub(crate) struct Ages {
    entries: VecDeque<Entry>,
}

struct Entry {
    token: u64,
    since: Instant,
    ended: bool,
}

impl Ages {
    /// Room for this many operations in flight.
    pub(crate) fn new(depth: usize) -> Self {
        // Twice as many, because the oldest may stay while others come and go.
        Self { entries: VecDeque::with_capacity(2 * depth) }
    }

    pub(crate) fn begin(&mut self, token: u64, since: Instant) {
        // What ended behind one that hangs must not pile up.
        if self.entries.len() == self.entries.capacity() {
            self.entries.retain(|entry| !entry.ended);
        }
        self.entries.push_back(Entry { token, since, ended: false });
    }

    /// Ends the oldest operation of that token.
    pub(crate) fn end(&mut self, token: u64) {
        let mut open = self.entries.iter_mut();
        if let Some(entry) = open.find(|entry| !entry.ended && entry.token == token) {
            entry.ended = true;
        }
        while self.entries.pop_front_if(|entry| entry.ended).is_some() {}
    }

    /// When the oldest operation in flight was submitted.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.entries.front().map(|entry| entry.since)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The oldest is the oldest of those under way, and nothing grows, whatever the order.
        #[test]
        fn the_oldest_is_known(steps in prop::collection::vec((any::<bool>(), 0u64..8), 1..400)) {
            const DEPTH: usize = 8;
            let begin = Instant::now();
            let (mut ages, mut model) = (Ages::new(DEPTH), Vec::<(u64, Instant)>::new());
            let room = ages.entries.capacity();
            for (n, (submit, token)) in steps.into_iter().enumerate() {
                let since = begin + Duration::from_secs(n as u64);
                if submit && model.len() < DEPTH {
                    ages.begin(token, since);
                    model.push((token, since));
                } else {
                    ages.end(token);
                    if let Some(at) = model.iter().position(|(other, _)| *other == token) {
                        model.remove(at);
                    }
                }
                prop_assert_eq!(ages.oldest(), model.first().map(|(_, since)| *since));
                prop_assert_eq!(ages.entries.capacity(), room);
            }
        }
    }
}
