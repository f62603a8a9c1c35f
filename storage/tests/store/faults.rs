//! Devices and keys that fail, and damage that no crash makes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use wirevault_format::footer::CloseReason;
use wirevault_format::{Cause, Interface, LinkType};
use wirevault_index::KeySource;
use wirevault_media::{Fault, Media, SimMedia, Trigger};
use wirevault_storage::{OpenRequest, Plan, Store, create_planned, rebuild_index};

use crate::checks::*;
use crate::support::*;

fn started(media: &SimMedia) -> Recorder {
    make(media, true, 32 << 20, 64).unwrap();
    let (store, _) = open(media, clock()).unwrap();
    Recorder::start(store, clock(), Ledger::default(), 1).ok().unwrap()
}

/// A segment with five acknowledged chunks, left open by a power cut; gives what was promised.
fn interrupted(media: &SimMedia) -> (SimMedia, Ledger, u64) {
    let mut recorder = started(media);
    recorder.open_segment(0).unwrap();
    let data_offset = recorder.segment(0).unwrap().data_offset;
    for _ in 0..6 {
        recorder.write_chunk(0, 5, 200, true).unwrap().unwrap();
        recorder.sync(0).unwrap();
    }
    (media.crash(1), recorder.ledger, data_offset)
}

#[test]
fn a_volume_that_failed_takes_no_more_writes() {
    let media = SimMedia::new();
    let mut recorder = started(&media);
    media.inject(Trigger::Sync(media.counts().syncs + 1), Fault::Eio);
    assert!(recorder.store.heartbeat().unwrap_err().is_device());
    let text = recorder.store.heartbeat().unwrap_err().to_string();
    assert!(text.contains("takes no more writes"), "{text}");
    assert!(recorder.open_segment(0).err().unwrap().is_device());
    assert!(recorder.store.status().volumes[0].failed.is_some());
    drop(recorder);
    media.clear_faults();
    let (_, report) = open(&media, clock()).unwrap();
    assert_eq!(report.runs_crashed.len(), 1);
}

/// Tables of a volume used to be written under the lock of the store.
#[test]
fn a_volume_that_hangs_holds_up_no_other() {
    let disks = [SimMedia::new(), SimMedia::new()];
    let media = |n: usize| -> Arc<dyn Media> { Arc::new(disks[n].clone()) };
    let volumes = [(media(0), "/a".to_owned()), (media(1), "/b".to_owned())];
    let plan = Plan::exact(SEGMENT_BYTES, &[(16 << 20, 64), (16 << 20, 64)], 1).unwrap();
    create_planned(&volumes, STORE, &options(true), &plan).unwrap();
    let (store, _) = Store::open(vec![media(0), media(1)], &key_source(), clock()).unwrap();
    store.begin_run(false, 1).unwrap();
    let interfaces = [Interface::unnamed(LinkType::ETHERNET)];
    let request = OpenRequest { lane: 0, link_type: LinkType::ETHERNET, interfaces: &interfaces };
    disks[1].hang(true);
    std::thread::scope(|scope| {
        let hung = scope.spawn(|| store.open_segment_on(1, request).map(|open| open.volume));
        while !store.status().volumes[1].hangs {
            std::thread::sleep(Duration::from_millis(1));
        }
        let open = store.open_segment(request).unwrap();
        assert_eq!(open.volume, 0);
        store.release_segment(&open).unwrap();
        store.heartbeat().unwrap();
        store.suspect_volume(1, "it hangs");
        assert!(!hung.is_finished());
        disks[1].hang(false);
        assert_eq!(hung.join().unwrap().unwrap(), 1);
    });
    assert!(!store.status().volumes[1].hangs);
}

#[test]
fn capture_goes_on_while_the_key_service_is_down() {
    let media = SimMedia::new();
    make(&media, true, 64 << 20, 256).unwrap();
    let moody = Arc::new(Moody { key: key(), down: AtomicBool::new(false) });
    let source = KeySource::Provider(moody.clone());
    let volumes: Vec<Arc<dyn Media>> = vec![Arc::new(media.clone())];
    let (store, _) = Store::open(volumes, &source, clock()).unwrap();
    let mut recorder = Recorder::start(store, clock(), Ledger::default(), 1).ok().unwrap();
    moody.down.store(true, Ordering::Relaxed);
    let cycle = |recorder: &mut Recorder| {
        recorder.open_segment(0)?;
        recorder.write_chunk(0, 1, 100, false).unwrap().unwrap();
        recorder.sync(0).unwrap();
        recorder.close(0, CloseReason::Age)
    };
    for _ in 0..16 {
        cycle(&mut recorder).unwrap();
    }
    let trouble = recorder.store.status().key_trouble.unwrap();
    assert!(trouble.contains("key provider moody failed"), "{trouble}");
    let error = cycle(&mut recorder).unwrap_err().to_string();
    assert!(error.contains("key provider moody failed"), "{error}");
    moody.down.store(false, Ordering::Relaxed);
    cycle(&mut recorder).unwrap();
}

#[test]
fn a_rotten_chunk_below_the_watermark_is_reported_and_the_rest_stays() {
    let media = SimMedia::new();
    let (found, ledger, data_offset) = interrupted(&media);
    // Chunk 2 rots in its body.
    found.poke("000000.pcapng", data_offset + 2 * 4096 + 700, &[0xee; 9]).unwrap();
    let (store, report) = open(&found, clock()).unwrap();
    let recovered = &report.segments[0];
    assert!(recovered.entry.damaged && recovered.entry.recovered);
    assert_eq!((recovered.damage.len(), recovered.damage[0].chunk), (1, 2));
    let held = read_all(&store.catalog(START_NS), false).unwrap();
    let held = held.values().next().unwrap();
    let written = *ledger.written.values().next().unwrap();
    let lost = 10..15;
    let expected: Vec<u64> = (0..written).filter(|sequence| !lost.contains(sequence)).collect();
    assert_eq!(*held, expected);
}

#[test]
fn a_chunk_that_vanished_is_a_gap_of_the_closed_segment() {
    let media = SimMedia::new();
    let (found, _, data_offset) = interrupted(&media);
    found.poke("000000.pcapng", data_offset + 4096, &[0; 4096]).unwrap();
    let (store, report) = open(&found, clock()).unwrap();
    assert_eq!(report.segments[0].damage[0].packets, Some(5));
    let catalog = store.catalog(START_NS);
    let reader = catalog.segments[0].open().unwrap();
    let gaps = reader.with_index(|index| index.gaps().to_vec());
    let damaged: Vec<_> = gaps.iter().filter(|(_, gap)| gap.cause == Cause::Damaged).collect();
    assert_eq!((damaged.len(), damaged[0].1.packets), (1, Some(5)));
    assert_eq!(reader.footer().unwrap().dropped[Cause::RingOverflow.index()], 6);
}

#[test]
fn an_unreadable_segment_does_not_keep_the_store_closed() {
    let media = SimMedia::new();
    let (found, _, _) = interrupted(&media);
    found.poke("000000.pcapng", 0, &[0xff; 4096]).unwrap();
    let (store, report) = open(&found, clock()).unwrap();
    assert!(report.segments[0].unreadable.is_some() && report.segments[0].entry.damaged);
    let catalog = store.catalog(START_NS);
    assert!(catalog.segments[0].open().err().unwrap().is_damage());
    drop(store);
    assert!(open(&found, clock()).unwrap().1.is_clean());
}

#[test]
fn a_missing_file_does_not_keep_the_store_closed() {
    let media = SimMedia::new();
    let (found, _, _) = interrupted(&media);
    found.remove("000000.pcapng").unwrap();
    let (store, report) = open(&found, clock()).unwrap();
    assert!(report.segments[0].unreadable.is_some());
    assert_eq!(report.segments[0].entry.file_bytes, 0);
    let error = store.catalog(START_NS).segments[0].open().err().unwrap();
    assert!(error.is_missing());
}

#[test]
fn a_lost_index_is_made_again_from_the_chunks() {
    let media = SimMedia::new();
    let mut recorder = started(&media);
    recorder.open_segment(0).unwrap();
    for _ in 0..5 {
        recorder.write_chunk(0, 40, 300, true).unwrap().unwrap();
    }
    recorder.sync(0).unwrap();
    let open = recorder.segment(0).unwrap();
    let (index, chain) = rebuild_index(open, 5).unwrap();
    // What lies behind the durable chunks counts as not written; what is missing is an error.
    assert_eq!(rebuild_index(open, 3).unwrap().0.chunks(), &index.chunks()[..3]);
    assert!(rebuild_index(open, 6).is_err());
    recorder.close(0, CloseReason::Stop).unwrap();
    let catalog = recorder.store.catalog(START_NS);
    let reader = catalog.segments[0].open().unwrap();
    assert_eq!(reader.footer().unwrap().chain, chain);
    reader.with_index(|written| {
        assert_eq!(index.chunks(), written.chunks());
        assert_eq!(index.gaps(), written.gaps());
        assert!(index.flows().unwrap().iter().eq(written.flows().unwrap().iter()));
    });
}

#[test]
fn flows_that_do_not_fit_are_left_out() {
    let media = SimMedia::new();
    let mut recorder = started(&media);
    recorder.open_segment(0).unwrap();
    let mut chunks = 0;
    while let Some(written) = recorder.write_chunk(0, 250, 900, true) {
        written.unwrap();
        chunks += 1;
    }
    recorder.sync(0).unwrap();
    let open = recorder.segment_mut(0).unwrap();
    // As if the chunks had left room for the footer only: what must be written goes behind it.
    let (index, _) = rebuild_index(open, chunks).unwrap();
    let last = index.chunks().last().unwrap();
    let end = last.offset + u64::from(last.chunk_bytes);
    open.segment_bytes = end + 4096;
    recorder.close(0, CloseReason::Full).unwrap();
    let catalog = recorder.store.catalog(START_NS);
    let entry = &catalog.segments[0].entry;
    let reader = catalog.segments[0].open().unwrap();
    let footer = reader.footer().unwrap();
    assert_eq!((footer.flows, footer.unindexed_chunks), (0, footer.chunks));
    assert_eq!((footer.index_offset, entry.file_bytes), (end, end + 2 * 4096));
    assert_eq!(reader.with_index(|it| it.gaps().to_vec()), index.gaps());
    read_all(&catalog, true).unwrap();
}
