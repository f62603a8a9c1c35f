//! Packets that were seen lately, to know second copies of them: mirrors overlap.
//!
//! One table for all lanes of an input, because the copies of a packet may reach different ones. It
//! is bounded and nothing waits for it: entries are two words, and lanes that write one at the same
//! time can only make it miss a copy, or misjudge how long ago it was. A copy is marked, never
//! dropped.
//!
//! ```text
//!  hash ──► bucket of one cache line: 4 entries (hash, time); the one farthest in time gives way
//! ```

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use wirevault_format::LinkType;
use wirevault_packet::fingerprint;

/// Entries of one bucket: a cache line of 64 bytes.
const WAYS: usize = 4;
/// Buckets: 2 MiB with their entries. At 4 million packets a second 131,072 entries last 30 ms.
const BUCKETS: usize = 1 << 15;
const _: () = assert!(BUCKETS.is_power_of_two() && size_of::<Bucket>() == 64);

/// The packets that an input's lanes saw lately.
pub struct Seen {
    window_ns: u64,
    /// Drawn at the start, so that nobody can send packets that share a bucket.
    seed: u64,
    buckets: Box<[Bucket]>,
}

#[derive(Default)]
#[repr(align(64))]
struct Bucket([Entry; WAYS]);

#[derive(Default)]
struct Entry {
    hash: AtomicU64,
    ts_ns: AtomicU64,
}

impl Seen {
    /// Remembers packets for `window`, or until 131,072 others came.
    pub fn new(window: Duration) -> Self {
        Self {
            window_ns: u64::try_from(window.as_nanos()).unwrap_or(u64::MAX),
            seed: RandomState::new().hash_one("duplicates"),
            buckets: (0..BUCKETS).map(|_| Bucket::default()).collect(),
        }
    }

    /// What a packet and its copies share; see [`fingerprint`].
    #[inline]
    pub(crate) fn fingerprint(
        &self,
        link: LinkType,
        head: &[u8],
        data: &[u8],
        wire_len: u32,
    ) -> u64 {
        fingerprint(link, head, data, wire_len, self.seed)
    }

    /// Nanoseconds between this packet and an equal one that was noted, if it is within the window.
    #[inline]
    pub(crate) fn distance_ns(&self, hash: u64, ts_ns: u64) -> Option<u64> {
        let equal = self.bucket(hash).iter().find(|it| it.hash.load(Ordering::Relaxed) == hash)?;
        let distance_ns = equal.ts_ns.load(Ordering::Relaxed).abs_diff(ts_ns);
        (distance_ns <= self.window_ns).then_some(distance_ns)
    }

    /// Remembers a packet that was stored.
    #[inline]
    pub(crate) fn note(&self, hash: u64, ts_ns: u64) {
        let bucket = self.bucket(hash);
        let equal = bucket.iter().find(|entry| entry.hash.load(Ordering::Relaxed) == hash);
        // Farthest in time and not oldest: a clock that was set back leaves entries of its future.
        let distance = |entry: &&Entry| entry.ts_ns.load(Ordering::Relaxed).abs_diff(ts_ns);
        let Some(entry) = equal.or_else(|| bucket.iter().max_by_key(distance)) else { return };
        entry.ts_ns.store(ts_ns, Ordering::Relaxed);
        entry.hash.store(hash, Ordering::Relaxed);
    }

    #[inline]
    fn bucket(&self, hash: u64) -> &[Entry; WAYS] {
        &self.buckets[hash as usize % BUCKETS].0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_copy_is_known_within_the_window_on_both_sides() {
        let seen = Seen::new(Duration::from_millis(10));
        let (hash, at) = (0x1234_5678_9abc_def0, 1000 * MS);
        assert_eq!(seen.distance_ns(hash, at), None);
        seen.note(hash, at);
        assert_eq!(seen.distance_ns(hash, at + 3), Some(3));
        assert_eq!(seen.distance_ns(hash, at + 10 * MS), Some(10 * MS));
        assert_eq!(seen.distance_ns(hash, at + 10 * MS + 1), None);
        // Lanes stamp by themselves: the copy may be the older one.
        assert_eq!(seen.distance_ns(hash, at - 7), Some(7));
        assert_eq!(seen.distance_ns(hash ^ 1 << 60, at), None, "another packet of that bucket");
    }

    #[test]
    fn a_full_bucket_forgets_what_is_farthest_in_time() {
        let seen = Seen::new(Duration::from_secs(10));
        let of = |number: u64| number * BUCKETS as u64 + 5;
        (1..=4).for_each(|number| seen.note(of(number), number * MS));
        seen.note(of(5), 5 * MS);
        let known: Vec<_> = (1..=5).map(|n| seen.distance_ns(of(n), n * MS).is_some()).collect();
        assert_eq!(known, [false, true, true, true, true]);
        // A clock that was set back by an hour: what is of the future goes first.
        let future = 3_600_000 * MS;
        (6..=9).for_each(|number| seen.note(of(number), future));
        seen.note(of(10), 6 * MS);
        assert_eq!(seen.distance_ns(of(10), 6 * MS), Some(0));
        (11..=13).for_each(|number| seen.note(of(number), 6 * MS));
        assert!((10..=13).all(|number| seen.distance_ns(of(number), 6 * MS).is_some()));
        // The same packet again, much later, is remembered anew and takes no second place.
        seen.note(of(10), 7 * MS);
        assert_eq!(seen.distance_ns(of(10), 7 * MS), Some(0));
        assert!((11..=13).all(|number| seen.distance_ns(of(number), 6 * MS).is_some()));
    }
}
