//! Time: the wall clock for people and records, the monotonic clock for intervals.
//!
//! Everything that needs the time takes a [`Clock`]; only [`SystemClock`] asks the operating
//! system, so tests and the simulator decide what time it is.

use std::{
    fmt::Debug,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

/// Nanoseconds of one second.
pub const SECOND_NS: u64 = 1_000_000_000;

/// A source of time.
pub trait Clock: Debug + Send + Sync {
    /// Unix time in nanoseconds. It may jump either way when someone sets the machine's clock.
    fn unix_ns(&self) -> u64;

    /// Nanoseconds since an arbitrary moment; it never goes backwards.
    fn monotonic_ns(&self) -> u64;
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    /// A clock set before 1970 reads as 0, one set after 2554 as `u64::MAX`.
    #[expect(clippy::disallowed_methods, reason = "the one place that asks the system")]
    fn unix_ns(&self) -> u64 {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, saturating_ns)
    }

    /// Counts from the first call in the process, so all copies agree.
    fn monotonic_ns(&self) -> u64 {
        static BEGINNING: OnceLock<Instant> = OnceLock::new();
        saturating_ns(BEGINNING.get_or_init(Instant::now).elapsed())
    }
}

/// A clock that stands still until it is told otherwise.
#[derive(Debug, Default)]
pub struct ManualClock {
    unix_ns: AtomicU64,
    monotonic_ns: AtomicU64,
}

impl ManualClock {
    /// Starts at this Unix time; the monotonic clock starts at 0.
    pub fn new(unix_ns: u64) -> Self {
        Self { unix_ns: AtomicU64::new(unix_ns), monotonic_ns: AtomicU64::new(0) }
    }

    /// Lets this much time pass on both clocks.
    pub fn advance(&self, by: Duration) {
        let by_ns = saturating_ns(by);
        self.unix_ns.fetch_add(by_ns, Ordering::AcqRel);
        self.monotonic_ns.fetch_add(by_ns, Ordering::AcqRel);
    }

    /// Sets the wall clock, as an administrator or NTP would; the monotonic clock does not notice.
    pub fn set_unix_ns(&self, unix_ns: u64) {
        self.unix_ns.store(unix_ns, Ordering::Release);
    }
}

impl Clock for ManualClock {
    fn unix_ns(&self) -> u64 {
        self.unix_ns.load(Ordering::Acquire)
    }

    fn monotonic_ns(&self) -> u64 {
        self.monotonic_ns.load(Ordering::Acquire)
    }
}

fn saturating_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_clock_is_after_2024_and_does_not_run_backwards() {
        assert!(SystemClock.unix_ns() > 1_704_067_200 * SECOND_NS);
        let earlier = SystemClock.monotonic_ns();
        assert!(SystemClock.monotonic_ns() >= earlier);
    }

    #[test]
    fn a_manual_clock_moves_only_when_told() {
        let clock = ManualClock::new(100);
        assert_eq!((clock.unix_ns(), clock.monotonic_ns()), (100, 0));
        clock.advance(Duration::from_nanos(7));
        assert_eq!((clock.unix_ns(), clock.monotonic_ns()), (107, 7));
        clock.set_unix_ns(5);
        assert_eq!((clock.unix_ns(), clock.monotonic_ns()), (5, 7));
    }
}
