//! Devices that fail under load: writes and flushes with EIO, full disks, on two volumes under two
//! lanes. Nothing acknowledged is lost, nothing is dropped while a volume works, books balance, and
//! each packet comes back once, also after a crash in the middle of it.

mod rig;

use std::sync::Arc;
use std::time::Duration;

use wirevault_capture::Source;
use wirevault_format::Cause;
use wirevault_media::sim::SplitMix64;
use wirevault_media::{Fault, SimMedia, Survival, Trigger};
use wirevault_pipeline::Topology;

use rig::*;

/// Each takes a few tenths of a second.
const CRASHES: u64 = 24;

const FAILURES: [(&str, Refusal); 4] = [
    ("EIO on write", Refusal::Write(libc::EIO)),
    ("ENOSPC on write", Refusal::Write(libc::ENOSPC)),
    ("EIO on flush", Refusal::Sync(libc::EIO)),
    ("ENOSPC on flush", Refusal::Sync(libc::ENOSPC)),
];

/// A device that fails for good after so many operations. Flushes are grouped, the more so the
/// busier the machine is: a volume sees two for certain, one for each of its segments.
fn broken(refusal: Refusal, after: u64) -> Arc<Plan> {
    let after = if matches!(refusal, Refusal::Sync(_)) { after.min(1) } else { after };
    Plan::new(refusal, after, ALWAYS)
}

/// A case under either topology.
fn both<T: Copy>(case: T) -> [(T, Topology); 2] {
    TOPOLOGIES.map(|topology| (case, topology))
}

fn well() -> Arc<Plan> {
    Plan::new(Refusal::Nothing, 0, 0)
}

#[test]
fn a_volume_that_fails_for_good_costs_no_packet_while_another_works() {
    for (n, (what, refusal)) in FAILURES.into_iter().enumerate() {
        for (after, topology) in [0, 7].into_iter().flat_map(both) {
            let (rig, broken) = (rig(2, topology), broken(refusal, after));
            let recorded = record(&rig, &[well(), Arc::clone(&broken)], n as u64);
            check_whole(&rig, &recorded, what);
            // On a busy machine the volume may see fewer operations than those that succeed.
            if !broken.has_struck() {
                assert!(after > 0, "{what}: the volume was not used");
                continue;
            }
            let error = recorded.volume_errors[1].as_deref().expect("it is told");
            assert!(error.contains("place"), "{error}");
            assert!(recorded.lane_errors.iter().any(Option::is_some), "{what}");
            assert!(!recorded.suspect[0], "{what}");
        }
    }
}

#[test]
fn one_bad_place_costs_no_packet_on_the_only_volume() {
    for (n, (what, refusal)) in FAILURES.into_iter().enumerate() {
        for ((after, times), topology) in [(0, 1), (5, 1), (20, 2)].into_iter().flat_map(both) {
            let rig = rig(1, topology);
            let recorded = record(&rig, &[Plan::new(refusal, after, times)], n as u64);
            check_whole(&rig, &recorded, what);
        }
    }
}

/// A device that neither ends nor fails what it has: its segments are given up while it hangs, and
/// what it had is sealed again for the other volume when it answers.
#[test]
fn a_device_that_hangs_is_left_and_costs_no_packet() {
    for (seed, topology) in (0..4).flat_map(both) {
        let rig = Rig { stall: Duration::from_millis(500), ..rig(2, topology) };
        let hanging = Plan::new(Refusal::Hang, seed, 0);
        let recorded = record(&rig, &[well(), hanging], seed);
        check_whole(&rig, &recorded, "hanging");
        assert_eq!(recorded.suspect, [false, true]);
        let error = recorded.volume_errors[1].as_deref().expect("it is told");
        assert!(error.contains("has not answered"), "{error}");
    }
}

/// A device that neither ends nor fails anything, for longer than the lanes could wait: it keeps
/// its share of the buffer and no more, and segments open and fill on the other volume meanwhile.
#[test]
fn a_device_that_hangs_starves_nobody() {
    for topology in TOPOLOGIES {
        let rig = rig(2, topology);
        // The buffer holds a tenth of what is to be stored before the device answers.
        let most = u64::from(LANES * PACKETS) * 3 / 4;
        let hanging = Plan::new(Refusal::HangUntil(most), 3, 0);
        let live = |lane| -> Box<dyn Source> { Box::new(Live::new(lane)) };
        let recorded = record_from(&rig, &[well(), hanging], 1, live);
        check_whole(&rig, &recorded, "hanging");
        assert_eq!(recorded.volume_errors, [None, None], "nothing was given up");
    }
}

/// The lanes left a device that had more chunks than its share for one that had just failed, again
/// and again, until a replay gave up: what fails at once is never busy.
#[test]
fn a_slow_device_was_left_for_one_that_fails() {
    for topology in TOPOLOGIES {
        let rig = rig(2, topology);
        let slow = Plan::new(Refusal::Slow(Duration::from_millis(30)), 0, 0);
        let broken = broken(Refusal::Write(libc::ENOSPC), 0);
        let recorded = record(&rig, &[slow, Arc::clone(&broken)], 1);
        check_whole(&rig, &recorded, "slow");
        assert!(broken.has_struck(), "the other was not used");
    }
}

#[test]
fn both_volumes_fail_in_turn_and_no_packet_is_lost() {
    for (seed, topology) in (0..6).flat_map(both) {
        let (_, refusal) = FAILURES[seed as usize % FAILURES.len()];
        let rig = rig(2, topology);
        let plans = [Plan::new(refusal, 6, 1), Plan::new(refusal, 9, 1)];
        check_whole(&rig, &record(&rig, &plans, seed), "in turn");
    }
}

#[test]
fn a_live_lane_waits_for_the_only_device_to_work_again() {
    for topology in TOPOLOGIES {
        let rig = rig(1, topology);
        // A lane is blocked after fewer rounds than after which a replay gives up.
        let plan = Plan::until_blocked(Refusal::Write(libc::EIO), 3);
        let recorded = record_from(&rig, &[plan], 1, |lane| Box::new(Live::new(lane)));
        check_whole(&rig, &recorded, "live");
        assert!(recorded.blocked, "it was told that nothing became durable");
    }
}

#[test]
fn when_no_volume_works_the_rest_is_dropped_and_told() {
    let mut shown = 0;
    for ((what, refusal), topology) in FAILURES.into_iter().flat_map(both) {
        let rig = rig(2, topology);
        let plans = [broken(refusal, 6), broken(refusal, 6)];
        let recorded = record(&rig, &plans, 1);
        // On a busy machine a volume may see fewer operations than those that succeed.
        if !plans.iter().all(|plan| plan.has_struck()) {
            continue;
        }
        shown += 1;
        let (seen, summary) = reopen(&rig, &rig.disks);
        assert!(!summary.complete, "{what}: {summary:?} {:?}", recorded.books);
        for (books, seen) in recorded.books.iter().zip(&seen) {
            // A file that is given up may have one packet read that found no room.
            assert!(books.balances() && books.in_flight == books.in_ring, "{what}: {books:?}");
            let failed = books.dropped[Cause::DeviceFailed.index()];
            assert_eq!(books.dropped_packets(), failed, "{what}: {books:?}");
            // What a device took without saying so may be there as well.
            let found = seen.iter().filter(|times| **times == 1).count() as u64;
            assert!(found >= books.stored, "{what}: {found} found, {books:?}");
            assert!(seen.iter().all(|times| *times <= 1), "{what}: twice");
        }
        assert!(recorded.books.iter().any(|books| books.dropped_packets() > 0), "{what}");
    }
    assert!(shown >= 2, "both volumes failed in {shown} of {} cases", 2 * FAILURES.len());
}

/// Faults of the disk itself, which keep bytes from it and strike tables and headers, too.
#[test]
fn a_call_that_fails_on_one_disk_costs_no_packet() {
    let mut random = SplitMix64::new(1);
    for seed in 0..20 {
        let rig = rig(2, TOPOLOGIES[seed as usize / 4 % 2]);
        let fault = if seed % 2 == 0 { Fault::Eio } else { Fault::Enospc };
        // Behind the first write and flush, which are the start's own.
        let trigger = match seed % 4 {
            0 | 1 => Trigger::Write(rig.disks[1].counts().writes + 2 + random.below(60)),
            _ => Trigger::Sync(rig.disks[1].counts().syncs + 2 + random.below(20)),
        };
        rig.disks[1].inject(trigger, fault);
        check_whole(&rig, &record(&rig, &[well(), well()], seed), &format!("seed {seed}"));
    }
}

/// A table's flush failed, and chunks that the device had dropped with it were acknowledged by the
/// next flush of the queue; so were those of another file whose write ended behind a failed flush.
#[test]
fn a_cache_that_is_dropped_with_a_failed_flush_loses_nothing_acknowledged() {
    const FLUSHES: u64 = 48;
    let mut struck = 0;
    for nth in 0..FLUSHES {
        let rig = rig(2, TOPOLOGIES[nth as usize % 2]);
        // Behind the first flush, which is the start's own.
        let at = rig.disks[1].counts().syncs + 2 + nth;
        rig.disks[1].inject(Trigger::Sync(at), Fault::CacheDropped);
        let recorded = record(&rig, &[well(), well()], nth);
        struck += u64::from(rig.disks[1].counts().syncs >= at);
        let found = rig.disks.iter().map(|disk| disk.crash_as(Survival::Nothing, 0));
        let (seen, summary) = reopen(&rig, &found.collect::<Vec<_>>());
        for (lane, seen) in seen.iter().enumerate() {
            let promised = recorded.acknowledged[lane] as usize;
            let lost = seen[..promised].iter().filter(|times| **times == 0).count();
            assert_eq!(lost, 0, "flush {nth}: {lost} of {promised} are lost, {summary:?}");
        }
    }
    println!("{struck} of {FLUSHES} flushes failed");
    assert!(struck > FLUSHES / 3);
}

/// Its chunks were never given back nor counted, it was asked every millisecond, and the recorder
/// did not end.
#[test]
fn a_queue_that_breaks_loses_what_it_has_and_no_more() {
    let mut lossy = 0;
    for (case, topology) in (0..12).flat_map(both) {
        let (volumes, after) = (1 + case % 2, case / 2 * 7);
        let rig = rig(volumes, topology);
        let plan = Plan::new(Refusal::Break, after as u64, 1);
        let plans: Vec<_> = std::iter::once(Arc::clone(&plan)).chain([well()]).collect();
        let recorded = record(&rig, &plans[..volumes], case as u64);
        assert!(plan.has_struck(), "case {case}: the queue was not used");
        let (seen, _) = reopen(&rig, &rig.disks);
        for (books, seen) in recorded.books.iter().zip(&seen) {
            assert!(books.balances() && books.in_flight == 0, "case {case}: {books:?}");
            let failed = books.dropped[Cause::DeviceFailed.index()];
            assert_eq!(books.dropped_packets(), failed, "case {case}: {books:?}");
            assert_eq!(books.stored + failed, u64::from(PACKETS), "case {case}: {books:?}");
            let found = seen.iter().filter(|times| **times == 1).count() as u64;
            assert!(found >= books.stored, "case {case}: {found} found, {books:?}");
            assert!(seen.iter().all(|times| *times <= 1), "case {case}: twice");
        }
        lossy += u32::from(recorded.books.iter().any(|books| books.dropped_packets() > 0));
    }
    // Or it had a flush, and no chunks.
    assert!(lossy > 0, "it never had a chunk when it broke");
}

#[test]
fn a_crash_while_chunks_are_sealed_again_loses_nothing_acknowledged() {
    let mut random = SplitMix64::new(2);
    let (mut cut_short, mut acknowledged) = (0, 0);
    for seed in 0..CRASHES {
        let rig = rig(2, TOPOLOGIES[seed as usize / FAILURES.len() % 2]);
        let (_, refusal) = FAILURES[seed as usize % FAILURES.len()];
        // One failure on each: fewer rounds than after which a replay gives packets up, which the
        // watermark would pass over.
        let after = random.below(12);
        let plans = [Plan::new(refusal, after, 1), Plan::new(refusal, after + 3, 1)];
        let disk = &rig.disks[random.below(2) as usize];
        let at = disk.counts().operations + 20 + random.below(120);
        disk.inject(Trigger::Operation(at), Fault::PowerCut);
        let recorded = record(&rig, &plans, seed);
        cut_short += u64::from(rig.disks.iter().any(SimMedia::power_is_cut));
        assert!(!recorded.dropped, "seed {seed}: packets were given up");
        let found: Vec<SimMedia> = rig.disks.iter().map(|disk| disk.crash(seed)).collect();
        let (seen, _) = reopen(&rig, &found);
        for (lane, seen) in seen.iter().enumerate() {
            let promised = recorded.acknowledged[lane] as usize;
            acknowledged += promised;
            assert!(seen.iter().all(|times| *times <= 1), "seed {seed}: a packet came twice");
            let lost = seen[..promised].iter().filter(|times| **times == 0).count();
            assert_eq!(lost, 0, "seed {seed}: {lost} of {promised} acknowledged are lost");
        }
    }
    println!("{cut_short} of {CRASHES} runs cut, {acknowledged} acknowledged packets, none lost");
    assert!(cut_short > CRASHES / 3 && acknowledged > 0);
}
