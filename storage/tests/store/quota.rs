//! What goes when room is needed, and what is said when nothing can go.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, RwLock};
use std::thread;
use std::time::Duration;

use wirevault_format::LinkType;
use wirevault_format::footer::CloseReason;
use wirevault_format::table::{SegmentEntry, SegmentState};
use wirevault_index::SegmentIndex;
use wirevault_media::{Fault, Media, SimMedia, Trigger};
use wirevault_storage::{OpenRequest, Plan, Store, create_planned};

use crate::checks::*;
use crate::support::*;

/// For what must happen at once.
const PATIENCE: Duration = Duration::from_secs(60);

/// A recorder with one lane on a disk with these sizes.
fn recorder(media: &SimMedia, segments: u64, places: u32, lanes: u16) -> Recorder {
    let tables = {
        let trial = SimMedia::new();
        make(&trial, false, 64 << 20, places).unwrap();
        disk_bytes(&trial).unwrap()
    };
    make(media, false, tables + segments * SEGMENT_BYTES, places).unwrap();
    let (store, _) = open(media, clock()).unwrap();
    Recorder::start(store, clock(), Ledger::default(), lanes).ok().unwrap()
}

/// Fills a segment to the last chunk that fits, and closes it.
fn full_segment(recorder: &mut Recorder, lane: usize) {
    recorder.open_segment(lane).unwrap();
    while let Some(written) = recorder.write_chunk(lane, 250, 900, false) {
        written.unwrap();
    }
    recorder.sync(lane).unwrap();
    recorder.close(lane, CloseReason::Full).unwrap();
}

fn entries(store: &Store) -> Vec<SegmentEntry> {
    store.catalog(START_NS).segments.iter().map(|it| it.entry.clone()).collect()
}

#[test]
fn the_oldest_goes_and_no_more_than_needed() {
    let media = SimMedia::new();
    let mut recorder = recorder(&media, 4, 64, 1);
    for n in 0..12 {
        let before = entries(&recorder.store);
        let used_before = recorder.store.status().volumes[0].used_bytes;
        recorder.open_segment(0).unwrap();
        check_quota(&media, &recorder.store).unwrap();
        let after = entries(&recorder.store);
        let gone = before.len() - after.len();
        assert_eq!(before[gone..], after, "what stays is the newest");
        let freed: u64 = before[..gone].iter().map(|entry| entry.file_bytes).sum();
        if let Some(last) = gone.checked_sub(1) {
            // Without the last one that went, there would have been no room.
            let quota_bytes = recorder.store.status().volumes[0].quota_bytes;
            let kept = used_before - freed + before[last].file_bytes;
            assert!(kept + SEGMENT_BYTES > quota_bytes, "segment {n}: {gone} went");
            let catalog = recorder.store.catalog(START_NS);
            let last_ns = before[last].times_ns.unwrap().1;
            assert_eq!((catalog.evicted_live_ns, catalog.evicted_import_ns), (last_ns, 0));
        }
        recorder.close(0, CloseReason::Stop).unwrap();
        full_segment(&mut recorder, 0);
    }
    assert!(entries(&recorder.store)[0].ordinal > 1);
}

/// What is asked of the disk while the witness looks finds the segment as it was.
#[test]
fn the_witness_sees_what_goes_before_it_goes() {
    let media = SimMedia::new();
    let mut recorder = recorder(&media, 4, 64, 1);
    let (told, disk) = (Arc::new(Mutex::new(Vec::new())), media.clone());
    let seen = Arc::clone(&told);
    recorder.store.set_witness(Box::new(move |entry, _| {
        let files = disk.list().unwrap().len();
        seen.lock().unwrap().push((entry.ordinal, files));
        false
    }));
    let mut gone = Vec::new();
    for _ in 0..12 {
        let before = entries(&recorder.store);
        let files = media.list().unwrap().len();
        full_segment(&mut recorder, 0);
        let after = entries(&recorder.store);
        gone.extend(before.iter().filter(|it| !after.contains(it)).map(|it| (it.ordinal, files)));
    }
    assert!(gone.len() > 2);
    assert_eq!(*told.lock().unwrap(), gone);
}

/// A witness waits for a flush of its own device; what others do on the volume goes on meanwhile.
#[test]
fn a_witness_keeps_nobody_from_the_volume() {
    let media = SimMedia::new();
    let mut recorder = recorder(&media, 4, 64, 1);
    (0..4).for_each(|_| full_segment(&mut recorder, 0));
    let Recorder { mut store, .. } = recorder;
    let (ask, asked) = sync_channel::<()>(1);
    let (answer, answered) = sync_channel::<()>(1);
    let went_on = Arc::new(Mutex::new(Vec::new()));
    let (told, both) = (Arc::clone(&went_on), Mutex::new((ask, answered)));
    store.set_witness(Box::new(move |_, _| {
        let both = both.lock().unwrap();
        both.0.send(()).unwrap();
        told.lock().unwrap().push(both.1.recv_timeout(PATIENCE).is_ok());
        false
    }));
    let (store, opened) = (&store, &AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(move || {
            while !opened.load(Ordering::Relaxed) {
                if asked.recv_timeout(Duration::from_millis(10)).is_ok() {
                    store.heartbeat().unwrap();
                    answer.send(()).unwrap();
                }
            }
        });
        let (link_type, interfaces) = (LinkType::ETHERNET, &[][..]);
        let open = store.open_segment(OpenRequest { lane: 0, link_type, interfaces });
        opened.store(true, Ordering::Relaxed);
        open.unwrap();
    });
    let went_on = went_on.lock().unwrap();
    assert!(!went_on.is_empty() && went_on.iter().all(|it| *it), "{went_on:?}");
}

#[test]
fn places_run_out_before_the_quota_does() {
    let media = SimMedia::new();
    let mut recorder = recorder(&media, 40, 3, 1);
    for _ in 0..5 {
        recorder.open_segment(0).unwrap();
        recorder.write_chunk(0, 2, 100, false).unwrap().unwrap();
        recorder.sync(0).unwrap();
        recorder.close(0, CloseReason::Age).unwrap();
    }
    let ordinals: Vec<u64> = entries(&recorder.store).iter().map(|entry| entry.ordinal).collect();
    assert_eq!(ordinals, [3, 4, 5]);
}

#[test]
fn open_segments_never_go() {
    let media = SimMedia::new();
    let mut recorder = recorder(&media, 2, 64, 3);
    recorder.open_segment(0).unwrap();
    recorder.open_segment(1).unwrap();
    let error = recorder.open_segment(2).err().unwrap();
    assert!(error.is_exhausted());
    let text = error.to_string();
    assert!(text.contains("2 open segments of 1048576 bytes"), "{text}");
    recorder.close(0, CloseReason::Stop).unwrap();
    recorder.open_segment(2).unwrap();
}

#[test]
fn a_refusal_takes_nothing() {
    let media = SimMedia::new();
    let mut recorder = recorder(&media, 2, 64, 3);
    full_segment(&mut recorder, 0);
    recorder.open_segment(1).unwrap();
    let kept = entries(&recorder.store);
    assert_eq!(kept.len(), 1);
    recorder.open_segment(2).unwrap();
    assert!(recorder.open_segment(0).is_err());
    assert_eq!(entries(&recorder.store), [], "the closed one went for the second open one");
}

#[test]
fn a_released_segment_leaves_nothing() {
    let media = SimMedia::new();
    let mut recorder = recorder(&media, 4, 64, 1);
    let before = recorder.store.status();
    recorder.open_segment(0).unwrap();
    let open = &recorder.store.status().volumes[0];
    assert_eq!((open.open_segments, open.segments), (1, 1));
    assert!(entries(&recorder.store).is_empty(), "it holds nothing durable yet");
    recorder.close(0, CloseReason::Stop).unwrap();
    assert_eq!(recorder.store.status(), before);
    assert_eq!(media.list().unwrap(), ["volume.wv"]);
}

#[test]
fn a_full_disk_names_the_numbers() {
    let media = SimMedia::with_capacity(4 << 20);
    let volumes: Vec<(Arc<dyn Media>, String)> = vec![(Arc::new(media.clone()), "/sim".into())];
    let plan = Plan::exact(SEGMENT_BYTES, &[(64 << 20, 64)], 1).unwrap();
    create_planned(&volumes, STORE, &options(false), &plan).unwrap();
    let (store, _) = open(&media, clock()).unwrap();
    let mut recorder = Recorder::start(store, clock(), Ledger::default(), 2).ok().unwrap();
    recorder.open_segment(0).unwrap();
    let error = recorder.open_segment(1).err().unwrap();
    assert!(error.is_exhausted());
    let text = error.to_string();
    assert!(text.contains("1048576 bytes wanted") && text.contains("761856 free"), "{text}");
    recorder.close(0, CloseReason::Stop).unwrap();
    recorder.open_segment(1).unwrap();
}

#[test]
fn lanes_spread_over_the_volumes() {
    let disks = [SimMedia::new(), SimMedia::new()];
    let media = |n: usize| -> Arc<dyn Media> { Arc::new(disks[n].clone()) };
    let volumes = [(media(0), "/a".to_owned()), (media(1), "/b".to_owned())];
    let plan = Plan::exact(SEGMENT_BYTES, &[(8 << 20, 64), (16 << 20, 64)], 2).unwrap();
    create_planned(&volumes, STORE, &options(true), &plan).unwrap();
    let only_one = Store::open(vec![media(0)], &key_source(), clock()).err().unwrap();
    assert!(only_one.to_string().contains("/b, is missing"), "{only_one}");
    let twice = Store::open(vec![media(1), media(1)], &key_source(), clock()).err().unwrap();
    assert!(twice.is_locked(), "{twice}");
    let (store, _) = Store::open(vec![media(1), media(0)], &key_source(), clock()).unwrap();
    let mut recorder = Recorder::start(store, clock(), Ledger::default(), 4).ok().unwrap();
    let on: Vec<usize> = (0..4)
        .map(|lane| {
            recorder.open_segment(lane).unwrap();
            recorder.segment(lane).unwrap().volume
        })
        .collect();
    assert_eq!(on, [1, 0, 1, 0], "first the one with the most room, then in turn");
    recorder.store.suspect_volume(0, "the test says so");
    recorder.close(0, CloseReason::Stop).unwrap();
    recorder.close(1, CloseReason::Stop).unwrap();
    // Lane 1 was on the suspect volume before; what was opened before the failure clears nothing.
    assert_eq!(recorder.store.status().volumes[0].suspect.as_deref(), Some("the test says so"));
    recorder.open_segment(1).unwrap();
    for _ in 0..2 {
        recorder.open_segment(0).unwrap();
        assert_eq!(recorder.segment(0).unwrap().volume, 1);
        recorder.close(0, CloseReason::Stop).unwrap();
    }
}

/// What a reader without the lock makes of the tables.
fn as_a_reader_sees_it(media: &SimMedia) -> Vec<SegmentEntry> {
    let offline = offline_catalog(media).unwrap();
    // What is open holds nothing that is shown.
    let closed = offline.segments.iter().filter(|it| it.entry.state == SegmentState::Closed);
    closed.map(|it| it.entry.clone()).collect()
}

#[test]
fn the_catalog_that_is_kept_is_the_one_that_a_reader_makes() {
    let media = SimMedia::new();
    let mut recorder = recorder(&media, 4, 64, 2);
    let at_first = recorder.store.catalog(START_NS);
    for round in 0..8 {
        let lane = round % 2;
        full_segment(&mut recorder, lane);
        let kept = recorder.store.catalog(START_NS + 1);
        assert_eq!(entries(&recorder.store), as_a_reader_sees_it(&media), "round {round}");
        let offline = offline_catalog(&media).unwrap();
        assert_eq!(kept.runs, offline.runs);
        assert_eq!(kept.evicted_live_ns, offline.evicted_live_ns);
        assert_eq!((kept.now_ns, kept.store), (START_NS + 1, offline.store));
    }
    assert!(entries(&recorder.store)[0].ordinal > 1, "some went for the quota");
    assert!(at_first.segments.is_empty(), "a catalog that was taken does not change");
    recorder.open_segment(0).unwrap();
    let open = recorder.segment(0).unwrap();
    open.show(Arc::new(RwLock::new(SegmentIndex::new())));
    let life = open.entry.life;
    let catalog = recorder.store.catalog(START_NS);
    let last = &catalog.segments[catalog.segments.len() - 1];
    assert!(last.is_live() && last.entry.life == life);
    recorder.close(0, CloseReason::Stop).unwrap();
    assert_eq!(entries(&recorder.store), as_a_reader_sees_it(&media), "a segment given back goes");
}

#[test]
fn a_suspect_volume_is_used_when_no_other_takes_a_segment_and_cleared_by_one_that_closes_well() {
    let disks = [SimMedia::new(), SimMedia::new()];
    let media = |n: usize| -> Arc<dyn Media> { Arc::new(disks[n].clone()) };
    let volumes = [(media(0), "/a".to_owned()), (media(1), "/b".to_owned())];
    let plan = Plan::exact(SEGMENT_BYTES, &[(16 << 20, 64), (8 << 20, 64)], 1).unwrap();
    create_planned(&volumes, STORE, &options(true), &plan).unwrap();
    let (store, _) = Store::open(vec![media(0), media(1)], &key_source(), clock()).unwrap();
    let mut recorder = Recorder::start(store, clock(), Ledger::default(), 1).ok().unwrap();
    recorder.store.suspect_volume(0, "the test says so");
    disks[1].inject(Trigger::EveryWrite, Fault::Enospc);
    recorder.open_segment(0).unwrap();
    assert_eq!(recorder.segment(0).unwrap().volume, 0);
    recorder.write_chunk(0, 5, 200, true).unwrap().unwrap();
    recorder.sync(0).unwrap();
    recorder.close(0, CloseReason::Full).unwrap();
    assert_eq!(recorder.store.status().volumes[0].suspect, None);
}
