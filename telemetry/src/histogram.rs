//! Latency histograms that any thread may fill: no lock, no allocation, no system call.
//!
//! Bucket `k` counts durations below `2^(k + BUCKET_SHIFT)` ns that no lower bucket took. Doubling
//! bounds answer a quantile within a factor of two, which is what a page of metrics is asked for;
//! benchmarks that need digits keep their own.

use std::sync::atomic::{AtomicU64, Ordering};

/// The first bucket holds what took less than `2^BUCKET_SHIFT` ns, about a microsecond.
const BUCKET_SHIFT: u32 = 10;
/// The last bounded bucket ends at 2^34 ns, about 17 s: far above any device timeout.
const BOUNDED: usize = 25;
/// All buckets: the bounded ones and the rest.
pub const BUCKETS: usize = BOUNDED + 1;
/// What stands for durations above all bounds where a number is needed: twice the last bound.
pub const OVERFLOW_NS: u64 = 1 << (BOUNDED as u32 + BUCKET_SHIFT);

/// A histogram of durations.
#[derive(Debug, Default)]
pub struct Latency {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

impl Latency {
    /// An empty histogram.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts one duration.
    pub fn record_ns(&self, duration_ns: u64) {
        self.buckets[bucket_of(duration_ns)].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(duration_ns, Ordering::Relaxed);
    }

    /// The counts now. Durations recorded meanwhile may be in the counts and not yet in the sum.
    pub fn snapshot(&self) -> LatencySnapshot {
        LatencySnapshot {
            buckets: std::array::from_fn(|at| self.buckets[at].load(Ordering::Relaxed)),
            sum_ns: self.sum_ns.load(Ordering::Relaxed),
        }
    }
}

/// What a [`Latency`] held at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatencySnapshot {
    /// Durations by bucket; not cumulative.
    pub buckets: [u64; BUCKETS],
    /// Sum of all durations in nanoseconds.
    pub sum_ns: u64,
}

impl LatencySnapshot {
    /// Durations recorded.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// An upper bound in nanoseconds of the given share (0.0 to 1.0) of all durations, at most
    /// twice too high; nothing when none was recorded, `u64::MAX` when it lies above all bounds.
    pub fn quantile_ns(&self, share: f64) -> Option<u64> {
        let count = self.count();
        // Counts stay far below 2^53, where f64 is exact.
        let rank = ((share.clamp(0.0, 1.0) * count as f64).ceil() as u64).max(1);
        let mut below = 0;
        self.buckets.iter().zip(bounds_ns()).find_map(|(packets, bound_ns)| {
            below += packets;
            (count > 0 && below >= rank).then(|| bound_ns.unwrap_or(u64::MAX))
        })
    }

    /// Each bucket with its upper bound in nanoseconds; [`OVERFLOW_NS`] is the last one's.
    pub(crate) fn nanos(&self) -> impl Iterator<Item = (u64, u64)> {
        bounds_ns().map(|bound| bound.unwrap_or(OVERFLOW_NS)).zip(self.buckets)
    }

    /// Each bucket with its upper bound in seconds; the last bound is infinite.
    pub(crate) fn seconds(&self) -> Vec<(f64, u64)> {
        bounds_ns()
            .map(|bound| bound.map_or(f64::INFINITY, |ns| ns as f64 / 1e9))
            .zip(self.buckets)
            .collect()
    }
}

fn bucket_of(duration_ns: u64) -> usize {
    let significant = (u64::BITS - duration_ns.leading_zeros()) as usize;
    significant.saturating_sub(BUCKET_SHIFT as usize).min(BUCKETS - 1)
}

fn bounds_ns() -> impl Iterator<Item = Option<u64>> {
    (0..BUCKETS as u32).map(|at| (at < BOUNDED as u32).then(|| 1 << (at + BUCKET_SHIFT)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_is_below_the_bound_of_its_bucket_and_not_of_the_one_before() {
        let bounds: Vec<_> = bounds_ns().map(|ns| ns.unwrap_or(u64::MAX)).collect();
        for shift in 0..64 {
            for duration in [(1_u64 << shift) - 1, 1 << shift, (1 << shift) + 1] {
                let at = bucket_of(duration);
                assert!(duration < bounds[at] || at == BUCKETS - 1, "{duration} in {at}");
                assert!(at == 0 || duration >= bounds[at - 1], "{duration} in {at}");
            }
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_bound_from_above() {
        let latency = Latency::new();
        assert_eq!(latency.snapshot().quantile_ns(0.5), None);
        for _ in 0..99 {
            latency.record_ns(1_500);
        }
        latency.record_ns(3_000_000);
        let got = latency.snapshot();
        assert_eq!((got.count(), got.sum_ns), (100, 99 * 1_500 + 3_000_000));
        assert_eq!(got.quantile_ns(0.5), Some(2_048));
        assert_eq!(got.quantile_ns(0.99), Some(2_048));
        assert_eq!(got.quantile_ns(1.0), Some(4_194_304));
    }
}
