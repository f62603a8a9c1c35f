//! The rule of acknowledgement over a simulated disk: a write that completed before a sync was
//! submitted is there after every crash, once that sync succeeded. With syncs that lie, the same
//! check must fail.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use wirevault_buffer::{Arena, ArenaOptions, Hugepages, Pool};
use wirevault_format::limits::{CHUNK_BYTES, LBA_BYTES};
use wirevault_media::sim::SplitMix64;
use wirevault_media::{Fault, Media, OpenMode, SimMedia, Trigger};
use wirevault_nvme::{Completion, Queue, SimOptions, SimQueue};

const WRITES: u64 = 24;
/// First token of a sync; each has its own, because several are in flight with different cover.
const SYNC: u64 = 1 << 32;

fn pool() -> Pool {
    let bytes = 16 * CHUNK_BYTES;
    let options = ArenaOptions { bytes, hugepages: Hugepages::Off, numa_node: None };
    Pool::new(Arena::new(options).unwrap())
}

/// Writes number `n` to block `n`, syncs now and then, stops when the disk fails. Gives what was
/// acknowledged.
fn run(media: &SimMedia, pool: &Pool, seed: u64) -> BTreeSet<u64> {
    let mut acknowledged = BTreeSet::new();
    let Ok(file) = media.open("a", OpenMode::Create) else { return acknowledged };
    if media.sync_dir().is_err() {
        return acknowledged;
    }
    let mut rng = SplitMix64::new(seed);
    let options = SimOptions { seed, depth: 8, slots: 1, delay_polls_max: 6 };
    let mut queue = SimQueue::new(options);
    let slot = queue.attach(&file).unwrap();
    let (mut completed, mut covered) = (BTreeSet::new(), BTreeMap::new());
    let (mut next, mut out, mut syncs) = (0, Vec::new(), SYNC);
    while next < WRITES || queue.in_flight() > 0 {
        if next < WRITES
            && let Some(mut buf) = pool.take()
        {
            buf[..LBA_BYTES].fill(next as u8 + 1);
            match queue.write(slot, next * LBA_BYTES as u64, buf, LBA_BYTES, next) {
                Ok(()) => next += 1,
                Err(refused) if refused.error.is_backpressure() => {}
                Err(_) => next = WRITES,
            }
        }
        if rng.below(4) == 0 && queue.sync(slot, syncs).is_ok() {
            covered.insert(syncs, completed.clone());
            syncs += 1;
        }
        queue.poll(Duration::from_micros(rng.below(2)), &mut out).unwrap();
        for end in out.drain(..) {
            match end {
                Completion::Write { token, result: Ok(()), .. } => _ = completed.insert(token),
                Completion::Sync { token, result: Ok(()) } => {
                    acknowledged.extend(covered.remove(&token).unwrap_or_default());
                }
                Completion::Write { .. } | Completion::Sync { .. } => {}
            }
        }
    }
    acknowledged
}

/// Numbers out of `acknowledged` whose block is not as written on the disk found after the crash.
fn missing(media: &SimMedia, acknowledged: &BTreeSet<u64>, crash_seed: u64) -> Vec<u64> {
    let found = media.crash(crash_seed);
    let whole = |n: u64| {
        let Ok(file) = found.open("a", OpenMode::Read) else { return false };
        let mut block = vec![0; LBA_BYTES];
        file.read_exact_at(&mut block, n * LBA_BYTES as u64).is_ok()
            && block.iter().all(|b| u64::from(*b) == n + 1)
    };
    acknowledged.iter().copied().filter(|n| !whole(*n)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn acknowledged_survives(
        seed: u64,
        cut in 1u64..=60,
        failing in prop::option::of((1u64..20, any::<bool>())),
        crashes in prop::collection::vec(any::<u64>(), 8),
    ) {
        let (media, pool) = (SimMedia::new(), pool());
        media.inject(Trigger::Operation(cut), Fault::PowerCut);
        if let Some((n, write)) = failing {
            let trigger = if write { Trigger::Write(n) } else { Trigger::Sync(n) };
            media.inject(trigger, Fault::Eio);
        }
        let acknowledged = run(&media, &pool, seed);
        for crash in crashes {
            prop_assert_eq!(missing(&media, &acknowledged, crash), Vec::<u64>::new());
        }
        prop_assert_eq!(pool.in_flight(), 0);
    }
}

#[test]
fn power_cut_at_every_write() {
    let pool = pool();
    for n in 1..=WRITES {
        let media = SimMedia::new();
        media.inject(Trigger::Write(n), Fault::PowerCut);
        let acknowledged = run(&media, &pool, n);
        for crash in 0..20 {
            assert_eq!(missing(&media, &acknowledged, crash), [], "cut at write {n}");
        }
    }
    assert_eq!(pool.in_flight(), 0);
}

#[test]
fn the_check_catches_syncs_that_lie() {
    let (media, pool) = (SimMedia::new(), pool());
    media.inject(Trigger::EverySync, Fault::Lost);
    let acknowledged = run(&media, &pool, 1);
    assert!(!acknowledged.is_empty());
    assert!((0..20).any(|crash| !missing(&media, &acknowledged, crash).is_empty()));
}
