//! How often writers and sealers look for work.
//!
//! While chunks come they sleep a few milliseconds between two looks, and nobody wakes them: a
//! writer sends what arrived meanwhile to the device together. When chunks run short they do not
//! sleep, and when nothing has come for a while they wait to be woken.

use std::time::Duration;

/// A chunk of 256 KiB fills in no less: 5 GB/s, what a core copies. Free chunks last at least so
/// long each.
const CHUNK_FILLS: Duration = Duration::from_micros(50);
/// Looks while free chunks last: a chunk is submitted by one, found written by another, flushed,
/// and only then free.
const LOOKS: u32 = 4;
/// Sleeping for less gains nothing over waiting.
const REST_MIN: Duration = Duration::from_micros(200);
/// Looks that found nothing after which the next chunk wakes the thread.
const VAIN_LOOKS: u32 = 2;

/// What a thread's rests depend on.
#[derive(Debug)]
pub(crate) struct Pace {
    rest_max: Duration,
    vain_looks: u32,
}

impl Pace {
    /// That of a thread to which nothing has come, and which never sleeps for longer.
    pub(crate) fn new(rest_max: Duration) -> Self {
        Self { rest_max, vain_looks: VAIN_LOOKS }
    }

    /// So many chunks had arrived when it looked.
    pub(crate) fn arrived(&mut self, chunks: usize) {
        self.vain_looks = if chunks > 0 { 0 } else { self.vain_looks.saturating_add(1) };
    }

    /// How long to sleep before the next look; nothing if chunks run short or none come.
    pub(crate) fn rest(&self, free_chunks: usize) -> Option<Duration> {
        let lasts = CHUNK_FILLS.saturating_mul(u32::try_from(free_chunks).unwrap_or(u32::MAX));
        let rest = (lasts / LOOKS).min(self.rest_max);
        (self.vain_looks < VAIN_LOOKS && rest >= REST_MIN).then_some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_sleeps_while_chunks_come_and_do_not_run_short() {
        const GATHER: Duration = Duration::from_millis(5);
        let mut pace = Pace::new(GATHER);
        assert_eq!(pace.rest(1000), None, "the first chunk wakes it");
        pace.arrived(1);
        assert_eq!(pace.rest(1000), Some(GATHER));
        assert_eq!(pace.rest(80), Some(Duration::from_millis(1)));
        assert_eq!(pace.rest(15), None, "everything goes at once");
        pace.arrived(0);
        assert_eq!(pace.rest(1000), Some(GATHER));
        pace.arrived(0);
        assert_eq!(pace.rest(1000), None, "it waits to be woken");
    }
}
