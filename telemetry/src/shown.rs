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

use crate::line::{LINES_BYTES, OwnLines};
use crate::sync::{AtomicU64, Ordering};

/// One lane's deltas between its writers and the index.
#[derive(Debug, Default)]
pub struct Shown {
    /// Deltas of durable chunks, counted before they are sent.
    sent: OwnLines<AtomicU64>,
    /// Those in the index, or noted to be missing in their segment's.
    handled: OwnLines<AtomicU64>,
    /// Durable time of the lane that the last round of the closer covers.
    until_ns: AtomicU64,
}

const _: () = assert!(
    size_of::<Shown>() >= 2 * LINES_BYTES,
    "what writers count and what the closer counts lie on lines of their own"
);

impl Shown {
    /// A writer is about to send deltas, and acknowledges their chunks only after it.
    pub fn send(&self, deltas: u64) {
        self.sent.fetch_add(deltas, Ordering::Release);
    }

    /// Deltas are in the index, or their segment's index is marked as incomplete.
    pub fn handled(&self, deltas: u64) {
        self.handled.fetch_add(deltas, Ordering::Release);
    }

    /// Everything that the lane called durable when it said this time is in the index.
    pub fn until(&self, durable_ns: u64) {
        self.until_ns.store(durable_ns, Ordering::Release);
    }

    /// Deltas sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Acquire)
    }

    /// As many were dealt with.
    pub fn has(&self, sent: u64) -> bool {
        self.handled.load(Ordering::Acquire) >= sent
    }

    /// What `durable_ns` reads, if the index shows all of it; else the time up to which it does.
    ///
    /// Both counts only grow, and `handled` is never ahead. Read in this order they are equal only
    /// if everything that was sent until the second reading had been dealt with at the first;
    /// whatever `durable_ns` saw acknowledged in between was sent before.
    pub fn until_ns(&self, durable_ns: impl FnOnce() -> u64) -> u64 {
        let handled = self.handled.load(Ordering::Acquire);
        let durable_ns = durable_ns();
        match self.sent.load(Ordering::Acquire) == handled {
            true => durable_ns,
            false => self.until_ns.load(Ordering::Acquire),
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::{sync::Arc, thread};

    use super::*;

    /// A writer, the closer and a query, with the closer's inbox, the lane's durable time and the
    /// index as one number each.
    #[derive(Default)]
    struct Lane {
        shown: Shown,
        inbox: AtomicU64,
        durable_ns: AtomicU64,
        index_ns: AtomicU64,
    }

    /// Every interleaving: nothing is promised that the index does not show.
    #[test]
    fn no_promise_runs_ahead_of_the_index() {
        loom::model(|| {
            let lane = Arc::new(Lane::default());
            let writer = {
                let lane = Arc::clone(&lane);
                thread::spawn(move || {
                    lane.shown.send(1);
                    lane.inbox.store(1, Ordering::Release);
                    lane.durable_ns.store(10, Ordering::Release);
                })
            };
            let closer = {
                let lane = Arc::clone(&lane);
                thread::spawn(move || {
                    let durable_ns = lane.durable_ns.load(Ordering::Acquire);
                    if lane.inbox.load(Ordering::Acquire) == 1 {
                        lane.index_ns.store(10, Ordering::Release);
                        lane.shown.handled(1);
                    }
                    lane.shown.until(durable_ns);
                })
            };
            let promised = lane.shown.until_ns(|| lane.durable_ns.load(Ordering::Acquire));
            let shown = lane.index_ns.load(Ordering::Acquire);
            assert!(promised <= shown, "{promised} promised, {shown} shown");
            writer.join().expect("the writer does not panic");
            closer.join().expect("the closer does not panic");
        });
    }
}

#[cfg(all(test, not(loom)))]
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
