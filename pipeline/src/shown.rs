//! Up to when the live index shows what a lane calls durable.
//!
//! A chunk is acknowledged by a writer and enters the index on the closer's thread, a moment later.
//! A query in between would miss it in an answer that calls itself complete. So a query asks here,
//! and nobody waits for anybody:
//!
//! - A writer counts deltas and sends them to the closer before it acknowledges their chunks.
//! - The closer counts those it has dealt with. It also notes, for each round of its inbox, what
//!   the lane called durable when the round began: the inbox is in order, so the round held all of
//!   it.
//! - A query reads what the closer has dealt with, then the lane's figures, then what was sent. If
//!   both counts are equal the figures cover nothing but what the index shows; else it goes by the
//!   closer's last round.

use std::sync::atomic::{AtomicU64, Ordering};

/// One lane's deltas between its writers and the index.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    /// Deltas of durable chunks, counted before they are sent.
    sent: AtomicU64,
    /// Those in the index, or noted to be missing in their segment's.
    handled: AtomicU64,
    /// Durable time of the lane that the last round of the closer covers.
    until_ns: AtomicU64,
}

impl Shown {
    /// A writer is about to send deltas, and acknowledges their chunks only after it.
    pub(crate) fn send(&self, deltas: u64) {
        self.sent.fetch_add(deltas, Ordering::Release);
    }

    /// Deltas are in the index, or their segment's index is marked as incomplete.
    pub(crate) fn handled(&self, deltas: u64) {
        self.handled.fetch_add(deltas, Ordering::Release);
    }

    /// Everything that the lane called durable when it said this time is in the index.
    pub(crate) fn until(&self, durable_ns: u64) {
        self.until_ns.store(durable_ns, Ordering::Release);
    }

    /// Deltas sent so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Acquire)
    }

    /// As many were dealt with.
    pub(crate) fn has(&self, sent: u64) -> bool {
        self.handled.load(Ordering::Acquire) >= sent
    }

    /// What `durable_ns` reads, if the index shows all of it; else the time up to which it does.
    ///
    /// Both counts only grow, and `handled` is never ahead. Read in this order they are equal only
    /// if everything that was sent until the second reading had been dealt with at the first;
    /// whatever `durable_ns` saw acknowledged in between was sent before.
    pub(crate) fn until_ns(&self, durable_ns: impl FnOnce() -> u64) -> u64 {
        let handled = self.handled.load(Ordering::Acquire);
        let durable_ns = durable_ns();
        match self.sent.load(Ordering::Acquire) == handled {
            true => durable_ns,
            false => self.until_ns.load(Ordering::Acquire),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_acknowledged_while_a_query_reads_is_not_promised() {
        let shown = Shown::default();
        shown.send(1);
        shown.handled(1);
        shown.until(10);
        assert_eq!(shown.until_ns(|| 20), 20, "the index has everything");
        let acknowledged_meanwhile = || {
            shown.send(1);
            30
        };
        assert_eq!(shown.until_ns(acknowledged_meanwhile), 10);
        let shown_meanwhile = || {
            shown.handled(1);
            30
        };
        assert_eq!(shown.until_ns(shown_meanwhile), 10, "it may have been read before");
        assert_eq!(shown.until_ns(|| 30), 30);
    }
}
