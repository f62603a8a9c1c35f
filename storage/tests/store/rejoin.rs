//! Volumes that failed and are taken back into use without a restart.

use wirevault_format::footer::CloseReason;
use wirevault_media::{Fault, Media, OpenMode, SimMedia, Survival, Trigger};
use wirevault_storage::StorageError;

use crate::checks::*;
use crate::support::*;

/// Segments that are written, of which the volume holds two.
const ROUNDS: u32 = 4;
/// More calls than any of the steps makes.
const CALLS_MAX: u64 = 16;

/// Takes one step of the recorder during which the `call`th call fails. Whether it failed.
fn step(
    media: &SimMedia,
    recorder: &mut Recorder,
    call: Option<u64>,
    take: impl Fn(&mut Recorder) -> Result<(), StorageError>,
) -> bool {
    if let Some(call) = call {
        let at = media.counts().operations + call;
        media.inject(Trigger::Operation(at), Fault::Eio);
    }
    let failed = take(recorder).is_err();
    media.clear_faults();
    if recorder.store.status().volumes[0].failed.is_some() {
        assert!(take(recorder).is_err(), "a volume that failed takes nothing");
        recorder.store.rejoin_volume(0).unwrap();
        assert!(recorder.store.status().volumes[0].failed.is_none());
    }
    if failed {
        take(recorder).unwrap();
    }
    failed
}

/// Whichever call on the tables fails: afterwards they are as if it had been made once, in memory,
/// for readers, and after a crash.
#[test]
fn a_volume_that_failed_goes_on_as_it_was() {
    let mut failures = 0;
    for sealed in [false, true] {
        for (which, call) in (0..3).flat_map(|which| (1..CALLS_MAX).map(move |call| (which, call)))
        {
            let media = SimMedia::new();
            make(&media, sealed, 5 << 20, 64).unwrap();
            let (store, _) = open(&media, clock()).unwrap();
            let mut recorder = Recorder::start(store, clock(), Ledger::default(), 1).ok().unwrap();
            for round in 1..=ROUNDS {
                let fails = |step| (round == ROUNDS && which == step).then_some(call);
                failures += u32::from(step(&media, &mut recorder, fails(0), |recorder| {
                    match recorder.is_open(0) {
                        true => Ok(()),
                        false => recorder.open_segment(0),
                    }
                }));
                while let Some(written) = recorder.write_chunk(0, 250, 900, false) {
                    written.unwrap();
                }
                recorder.sync(0).unwrap();
                failures += u32::from(step(&media, &mut recorder, fails(1), |recorder| {
                    recorder.store.heartbeat()
                }));
                failures += u32::from(step(&media, &mut recorder, fails(2), |recorder| {
                    recorder.close(0, CloseReason::Full)
                }));
            }
            let case = format!("sealed {sealed}, step {which}, call {call}");
            let kept = recorder.store.catalog(START_NS);
            let kept: Vec<_> = kept.segments.iter().map(|it| it.entry.clone()).collect();
            let offline = offline_catalog(&media).unwrap();
            let read: Vec<_> = offline.segments.iter().map(|it| it.entry.clone()).collect();
            assert_eq!(kept, read, "{case}");
            let found = media.crash_as(Survival::Nothing, call);
            let (store, report) = open(&found, clock()).unwrap();
            assert!(report.segments.is_empty() && report.set_aside.is_empty(), "{case}");
            let held = read_all(&store.catalog(START_NS), false).unwrap();
            let packets: u64 = kept.iter().map(|entry| entry.packets).sum();
            assert_eq!(held.values().map(Vec::len).sum::<usize>() as u64, packets, "{case}");
        }
    }
    assert!(failures > 20, "{failures} calls failed");
}

#[test]
fn another_volume_in_its_place_is_refused() {
    let (media, other) = (SimMedia::new(), SimMedia::new());
    for media in [&media, &other] {
        make(media, false, 16 << 20, 64).unwrap();
    }
    let (store, _) = open(&media, clock()).unwrap();
    store.begin_run(false, 1).unwrap();
    media.inject(Trigger::EverySync, Fault::Eio);
    assert!(store.heartbeat().is_err());
    assert!(store.rejoin_volume(0).is_err(), "it fails still");
    media.clear_faults();
    let file = |media: &SimMedia| media.open("volume.wv", OpenMode::Read).unwrap();
    let mut bytes = vec![0; file(&other).len().unwrap() as usize];
    file(&other).read_exact_at(&mut bytes, 0).unwrap();
    let own = file(&media).len().unwrap() as usize;
    media.poke("volume.wv", 0, &bytes[..own.min(bytes.len())]).unwrap();
    let error = store.rejoin_volume(0).unwrap_err().to_string();
    assert!(error.contains("another volume stands there now"), "{error}");
    assert!(store.heartbeat().is_err() && store.status().volumes[0].failed.is_some());
}
