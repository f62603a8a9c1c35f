//! New volumes in the place of those that are gone.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use wirevault_format::footer::CloseReason;
use wirevault_format::table::RunState;
use wirevault_index::{KeySource, Segment, open_store};
use wirevault_media::{Fault, Media, SimMedia, Trigger, open_volume};
use wirevault_storage::{Adoption, Plan, Store, adopt, create_planned, replace};
use wirevault_telemetry::clock::SystemClock;

use crate::adopt::{Site, open as open_dir};
use crate::checks::*;
use crate::support::*;

/// Chunks of a segment.
const CHUNKS: u32 = 3;

fn record(recorder: &mut Recorder, segments: usize) {
    for _ in 0..segments {
        recorder.open_segment(0).unwrap();
        for _ in 0..CHUNKS {
            recorder.write_chunk(0, 20, 300, true).unwrap().unwrap();
        }
        recorder.sync(0).unwrap();
        recorder.close(0, CloseReason::Age).unwrap();
    }
}

fn two(first: &SimMedia, second: &SimMedia) -> Vec<Arc<dyn Media>> {
    vec![volume_of(first), volume_of(second)]
}

#[test]
fn recording_goes_on_with_a_new_volume() {
    for (number, sealed) in [(0, false), (0, true), (1, false), (1, true)] {
        let (disks, new) = ([SimMedia::new(), SimMedia::new()], SimMedia::new());
        let [first, second] = &disks;
        let plan = Plan::exact(SEGMENT_BYTES, &[(16 << 20, 64); 2], 1).unwrap();
        let named = [(volume_of(first), "/first".into()), (volume_of(second), "/second".into())];
        create_planned(&named, STORE, &options(sealed), &plan).unwrap();
        let clock = clock();
        let (store, _) =
            Store::open(two(first, second), &key_source(), Arc::clone(&clock) as _).unwrap();
        let mut recorder =
            Recorder::start(store, Arc::clone(&clock), Ledger::default(), 1).ok().unwrap();
        record(&mut recorder, 6);
        let store = &recorder.store;
        let refused = store.replace_volume(number, volume_of(&new), "/new").unwrap_err();
        assert!(refused.to_string().contains("works"), "{refused}");
        let held = |store: &Store, number: usize| {
            let catalog = store.catalog(START_NS);
            catalog.segments.iter().filter(|it| usize::from(it.volume) == number).count()
        };
        let (before, lost) = (held(store, 1 - number), held(store, number));
        assert!(before > 0 && lost > 0 && before + lost == 6);
        let catalog = store.catalog(START_NS);
        let on_it = catalog.segments.iter().find(|it| usize::from(it.volume) == number);
        let (life, runs) = (on_it.unwrap().entry.life, catalog.runs);
        disks[number].inject(Trigger::EverySync, Fault::Eio);
        assert!(store.forget(&[life]).is_err());
        assert!(store.status().volumes[number].failed.is_some());

        clock.advance(Duration::from_secs(1));
        store.replace_volume(number, volume_of(&new), "/new").unwrap();
        assert!(store.status().volumes[number].failed.is_none());
        assert_eq!((held(store, 1 - number), held(store, number)), (before, 0));
        let catalog = store.catalog(START_NS);
        assert!(catalog.replaced_ns > START_NS);
        assert_eq!(catalog.runs, runs, "the run goes on");
        store.heartbeat().unwrap();
        record(&mut recorder, 6);
        let (all, on_new) = (held(&recorder.store, 1 - number), held(&recorder.store, number));
        assert!(on_new > 0 && all + on_new == before + 6);
        recorder.end().unwrap();
        drop(recorder);

        let left = match number {
            0 => two(&new, second),
            _ => two(first, &new),
        };
        let (store, report) = Store::open(left, &key_source(), clock.clone()).unwrap();
        assert!(report.is_clean(), "{report:?}");
        assert_eq!((held(&store, 1 - number), held(&store, number)), (all, on_new));
        let catalog = store.catalog(START_NS);
        assert!(catalog.replaced_ns > START_NS);
        let ended: Vec<_> = catalog.runs.iter().map(|run| (run.run, run.state)).collect();
        assert_eq!(ended, [(runs[0].run, RunState::Ended)]);
        let packets = read_all(&catalog, true).unwrap();
        let packets: usize = packets.values().map(Vec::len).sum();
        assert_eq!(packets, (before + 6) * CHUNKS as usize * 20);
        drop(store);
        // The old one is back: it is no volume of the store any more.
        disks[number].clear_faults();
        let refused = Store::open(two(first, second), &key_source(), clock).err().unwrap();
        assert!(refused.to_string().contains("names other volumes"), "{refused}");
    }
}

/// Nobody wrote the store when its first volume was lost: its runs are known by what they stored.
#[test]
fn runs_are_made_of_segments_where_their_table_is_gone() {
    let site = Site::new(STORE);
    let (second, new) = (site.at("device"), site.at("new"));
    let clock = clock();
    let (store, _) = Store::open_dir(&second, &KeySource::Recorded, clock.clone()).unwrap();
    let mut recorder = Recorder::start(store, clock, Ledger::default(), 1).ok().unwrap();
    record(&mut recorder, 6);
    let run = recorder.run;
    recorder.end().unwrap();
    drop(recorder);
    site.rename("first", "lost");
    fs::create_dir(&new).unwrap();
    let (media, path) = (open_volume(&new).unwrap(), new.to_str().unwrap());
    let mut told = None;
    let mut announce = |it: &Adoption| {
        told = Some((it.number, it.was.clone(), it.first.clone()));
        Ok(())
    };
    let clock = Arc::new(SystemClock);
    replace(&second, 0, (&*media, path), &KeySource::Recorded, clock, &mut announce).unwrap();
    let lost = site.at("first").to_str().unwrap().to_owned();
    assert_eq!(told, Some((0, lost, path.to_owned())), "the log goes on beside the new one");

    let catalog = open_store(&new, &KeySource::Recorded).unwrap().catalog(0);
    let runs: Vec<_> = catalog.runs.iter().map(|it| (it.run, it.lanes, it.state)).collect();
    assert_eq!(runs, [(run, 1, RunState::Crashed)]);
    let times = |it: &Arc<Segment>| (it.entry.opened_ns, it.entry.closed_ns);
    let begun_ns = catalog.segments.iter().map(|it| times(it).0).min();
    let seen_ns = catalog.segments.iter().map(|it| times(it).1).max();
    assert_eq!(Some(catalog.runs[0].started_ns), begun_ns);
    assert_eq!(Some(catalog.runs[0].alive_ns), seen_ns);
    assert!(!catalog.segments.is_empty() && Some(catalog.replaced_ns) > seen_ns);
    let (store, report) = open_dir(&second).unwrap();
    assert!(report.is_clean(), "{report:?}");
    store.begin_run(false, 1).unwrap();
    store.end_run().unwrap();
    assert_eq!(store.catalog(0).runs.len(), 2);
}

#[test]
fn a_store_that_lacks_a_volume_opens_with_a_new_one() {
    let site = Site::new(STORE);
    let (first, new) = (site.at("first"), site.at("new"));
    fs::create_dir(&new).unwrap();
    let put = |number: u16| {
        let (media, path) = (open_volume(&new).unwrap(), new.to_str().unwrap());
        let (clock, announce) = (Arc::new(SystemClock), &mut |_: &Adoption| Ok(()));
        replace(&first, number, (&*media, path), &KeySource::Recorded, clock, announce)
            .map_err(|error| error.to_string())
    };
    assert!(put(2).unwrap_err().contains("only a missing one goes"));
    site.rename("third", "old");
    assert!(put(3).unwrap_err().contains("has no volume 3"));
    put(2).unwrap();
    open_dir(&first).unwrap();
    let reader = open_store(&first, &KeySource::Recorded).unwrap();
    assert!(reader.missing.is_empty() && reader.catalog(0).replaced_ns > 0);
    // The old one does not come back by mistake.
    let refused =
        adopt(&first, site.at("old").to_str().unwrap(), Some(&mut |_| Ok(()))).unwrap_err();
    assert!(refused.to_string().contains("one is a copy of the other"), "{refused}");
    assert_eq!(open_store(&site.at("old"), &KeySource::Recorded).unwrap().missing.len(), 2);
    assert!(open_dir(&site.at("old")).is_err());
}
