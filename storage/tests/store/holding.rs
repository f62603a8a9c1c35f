//! Copies for holds: cut off at every operation, outliving what they were copied from, forgotten.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use wirevault_format::LifeId;
use wirevault_format::footer::CloseReason;
use wirevault_format::table::SegmentState;
use wirevault_index::{Catalog, Segment};
use wirevault_media::{Fault, SimMedia, Survival, Trigger};
use wirevault_storage::{StorageError, Store};

use crate::checks::{check_after_crash, check_quota, offline_catalog, read_all};
use crate::support::*;

const QUOTA_SEGMENTS: u64 = 8;
const PLACES: u32 = 9;
const CASE: NonZeroU32 = NonZeroU32::new(1).unwrap();

fn disk(device: bool, sealed: bool) -> SimMedia {
    let media = disk_for(device.then_some(16 << 20));
    make(&media, sealed, (3 << 20) + QUOTA_SEGMENTS * SEGMENT_BYTES, PLACES).unwrap();
    media.crash_as(Survival::Nothing, 0)
}

/// Records so many segments of one lane, three chunks in each.
fn record(store: Store, ledger: Ledger, segments: u32) -> (Store, Ledger) {
    let started = Recorder::start(store, clock(), ledger, 1);
    let mut recorder = started.unwrap_or_else(|failed| panic!("{}", failed.0));
    for _ in 0..segments {
        recorder.open_segment(0).unwrap();
        for (packets, gap) in [(5, false), (3, true), (4, false)] {
            recorder.write_chunk(0, packets, 300, gap).unwrap().unwrap();
        }
        recorder.sync(0).unwrap();
        recorder.close(0, CloseReason::Age).unwrap();
    }
    recorder.end().unwrap();
    (recorder.store, recorder.ledger)
}

fn recorded(store: &Store) -> Vec<Arc<Segment>> {
    let catalog = store.catalog(START_NS);
    catalog.segments.iter().filter(|it| it.entry.hold == 0).map(Arc::clone).collect()
}

/// Payloads of the packets of a hold, by sequence of their chunk.
fn copies(catalog: &Catalog) -> BTreeMap<u64, Vec<u8>> {
    let held = catalog.segments.iter().filter(|it| it.entry.hold == CASE.get());
    held.flat_map(|segment| payloads(segment)).collect()
}

fn payloads(segment: &Segment) -> BTreeMap<u64, Vec<u8>> {
    let reader = segment.open().unwrap();
    let payload = |number| {
        let mut buf = Vec::new();
        let (header, payload) = reader.read_chunk(number, &mut buf).unwrap();
        (header.first_sequence, buf[payload].to_vec())
    };
    (0..segment.entry.chunks).map(payload).collect()
}

/// Holds the first and the last chunk of the two oldest segments.
fn hold(store: &Store) -> Result<(), StorageError> {
    for source in recorded(store).iter().take(2) {
        let copy = store.hold_chunks(CASE, source, &[0, 2])?;
        assert_eq!((copy.hold, copy.run, copy.lane), (1, source.entry.run, source.entry.lane));
        assert_eq!((copy.packets, copy.state), (9, SegmentState::Closed));
        assert_ne!(copy.life, source.entry.life);
    }
    Ok(())
}

fn cut_everywhere(device: bool, sealed: bool) {
    let media = disk(device, sealed);
    let (store, ledger) = record(open(&media, clock()).unwrap().0, Ledger::default(), 4);
    let expected: BTreeMap<u64, Vec<u8>> =
        recorded(&store).iter().take(2).flat_map(|it| payloads(it)).collect();
    drop(store);
    let media = media.crash_as(Survival::Everything, 0);
    let whole = media.crash_as(Survival::Everything, 0);
    hold(&open(&whole, clock()).unwrap().0).unwrap();
    for n in 1..=whole.counts().operations {
        for survival in 0..3 {
            let media = media.crash_as(Survival::Everything, 0);
            media.inject(Trigger::Operation(n), Fault::PowerCut);
            let cut = open(&media, clock()).and_then(|(store, _)| hold(&store));
            assert!(cut.is_err() && media.power_is_cut(), "operation {n}: {cut:?}");
            let found = media.crash(3 * n + survival);
            let held = copies(&offline_catalog(&found).unwrap());
            assert!([0, 2, 4].contains(&held.len()), "half of a copy is there");
            let same = held.iter().all(|(sequence, payload)| expected[sequence] == *payload);
            assert!(same, "cut {n}, survival {survival}: a copy is not what was copied");
            if let Err(why) = check_after_crash(&found, &ledger) {
                panic!("cut {n}, survival {survival}: {why}");
            }
            assert_eq!(copies(&offline_catalog(&found).unwrap()), held, "a start changed copies");
        }
    }
}

#[test]
fn a_copy_survives_a_cut_at_every_operation() {
    cut_everywhere(false, true);
}

#[test]
fn a_plain_copy_on_a_device_survives_a_cut_at_every_operation() {
    cut_everywhere(true, false);
}

#[test]
fn copies_outlive_a_disk_that_is_filled_three_times() {
    for (device, sealed) in [(false, true), (true, true), (false, false)] {
        let media = disk(device, sealed);
        let (store, ledger) = record(open(&media, clock()).unwrap().0, Ledger::default(), 4);
        hold(&store).unwrap();
        let held = copies(&store.catalog(START_NS));
        assert_eq!(held.len(), 4);
        let (mut store, mut ledger) = (store, ledger);
        for _ in 0..3 {
            // A segment takes less than its share of the quota once it is closed, but no place
            // takes two.
            (store, ledger) = record(store, ledger, PLACES);
            check_quota(&media, &store).unwrap();
            drop(store);
            store = open(&media, clock()).unwrap().0;
        }
        assert!(recorded(&store).iter().all(|it| it.entry.ordinal > 4), "the sources are gone");
        assert!(store.catalog(START_NS).evicted_live_ns > 0);
        assert_eq!(copies(&store.catalog(START_NS)), held);
        read_all(&store.catalog(START_NS), true).unwrap();
        let used = store.holds()[&1];
        assert_eq!(used.segments, 2);

        let lives: Vec<LifeId> = store
            .catalog(START_NS)
            .segments
            .iter()
            .filter(|it| it.entry.hold == 1)
            .map(|it| it.entry.life)
            .collect();
        assert_eq!(store.forget(&lives).unwrap(), [], "only who releases the hold deletes them");
        assert_eq!(copies(&store.catalog(START_NS)), held);
        let evicted_ns = store.catalog(START_NS).evicted_live_ns;
        for deletion in store.forget_hold(CASE).unwrap() {
            assert_eq!(deletion.segments.len(), 2);
            store.settle(&deletion).unwrap();
        }
        assert!(copies(&store.catalog(START_NS)).is_empty() && store.holds().is_empty());
        assert_eq!(store.catalog(START_NS).evicted_live_ns, evicted_ns);
        assert_eq!(store.forget_hold(CASE).unwrap(), []);
        drop(store);
        check_after_crash(&media, &ledger).unwrap();
    }
}

#[test]
fn a_copy_beyond_the_budget_is_refused_and_changes_nothing() {
    let media = disk(false, true);
    let (mut store, _) = record(open(&media, clock()).unwrap().0, Ledger::default(), 4);
    let before = store.status();
    store.set_hold_percent(0);
    let refused = hold(&store).unwrap_err();
    assert!(refused.is_hold_budget(), "{refused}");
    assert_eq!(store.status(), before);
    store.set_hold_percent(100);
    hold(&store).unwrap();
    let copy = store.catalog(START_NS).segments.iter().last().map(Arc::clone).unwrap();
    let refused = store.hold_chunks(CASE, &copy, &[0]).unwrap_err().to_string();
    assert!(refused.contains("cannot be kept"), "a copy is no source: {refused}");
    let source = recorded(&store).remove(0);
    let refused = store.hold_chunks(CASE, &source, &[7]).unwrap_err().to_string();
    assert!(refused.contains("chunk 7"), "{refused}");
    assert_eq!(store.holds()[&1].segments, 2, "what failed leaves no copy");
}
