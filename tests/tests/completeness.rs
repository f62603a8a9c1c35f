//! Every answer says whether it is complete: what is missing is told with lane, window and cause,
//! and a window beside it is complete.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use wirevault_format::Cause;
use wirevault_index::{Catalog, KeySource, open_store};
use wirevault_query::summary::GapLine;
use wirevault_query::{Request, Summary};
use wirevault_storage::Store;
use wirevault_telemetry::clock::ManualClock;
use wirevault_tests::captures::{Packet, write_pcap};
use wirevault_tests::lanes::{self, Held};
use wirevault_tests::store::{
    Answer, QUOTA, TestStore, all, ask, code, text, window, wirevault, words,
};
use wirevault_tests::traffic::{BEGIN_NS, Capture};

const SECOND_NS: u64 = 1_000_000_000;

/// A chunk in the middle of a store's first segment: its number, its offset in the segment's file,
/// its packets and their times.
fn middle_chunk(catalog: &Catalog) -> (u32, u64, u64, (u64, u64)) {
    let reader = catalog.segments[0].open().unwrap();
    reader.with_index(|index| {
        let number = index.chunks().len() as u32 / 2;
        let chunk = index.chunks()[number as usize];
        (number, chunk.offset, u64::from(chunk.packets), chunk.times_ns.unwrap())
    })
}

fn flip(file: &Path, at: u64) {
    let mut bytes = fs::read(file).unwrap();
    bytes[at as usize] ^= 0x40;
    fs::write(file, bytes).unwrap();
}

fn gap(summary: &Summary, cause: Cause) -> &GapLine {
    let found = summary.gaps.iter().find(|gap| gap.cause == cause);
    assert!(!summary.complete);
    found.unwrap_or_else(|| panic!("no gap of cause {cause}: {summary}"))
}

fn complete(answer: &Answer) -> usize {
    assert!(answer.summary.complete, "{}", answer.summary);
    assert!(answer.summary.gaps.is_empty());
    answer.packets.len()
}

#[test]
fn a_damaged_chunk_is_told_and_the_rest_is_complete() {
    let capture = Capture::new(5);
    for sealed in [false, true] {
        let store = TestStore::holding(sealed, &capture.packets);
        let catalog = store.catalog();
        let name = catalog.segments[0].name();
        let (number, offset, packets, (min_ns, max_ns)) = middle_chunk(&catalog);
        flip(&store.segment_files()[0], offset + 5000);

        let answer = store.ask(&all(""));
        let damaged = gap(&answer.summary, Cause::Damaged);
        assert_eq!(damaged.lane, Some(0));
        assert_eq!(damaged.packets, Some(packets));
        assert_eq!((damaged.from.ns, damaged.until.ns), (min_ns, max_ns + 1));
        assert_eq!(answer.summary.gaps.len(), 1);
        let line = &answer.summary.damaged[0];
        assert_eq!((line.segment.as_str(), line.chunk), (name.as_str(), Some(number)));
        assert_eq!((line.from.ns, line.until.ns), (min_ns, max_ns + 1));
        assert_eq!(answer.packets.len() as u64, capture.packets.len() as u64 - packets);

        let (first_ns, last_ns) = capture.times_ns();
        let inside = store.ask(&window(min_ns, max_ns + 1));
        gap(&inside.summary, Cause::Damaged);
        assert!(complete(&store.ask(&window(first_ns, min_ns))) > 1000);
        assert!(complete(&store.ask(&window(max_ns + 1, last_ns + 1))) > 1000);

        let (output, summary) = store.query(&["--count"]);
        assert_eq!(code(&output), 3, "{}", words(&output));
        assert_eq!(summary.unwrap()["gaps"][0]["cause"], "damaged");
        let (status, report) = store.verify();
        assert_eq!(status, 3, "{report}");
        assert_eq!(report["damaged"][0]["segment"], name);
        assert_eq!(report["damaged"][0]["chunk"], number);
        assert_eq!(report["damaged"][0]["from"]["ns"], min_ns);
    }
}

#[test]
fn a_missing_segment_is_told() {
    let capture = Capture::new(5);
    let store = TestStore::holding(true, &capture.packets);
    let catalog = store.catalog();
    assert!(catalog.segments.len() >= 3, "{} segments", catalog.segments.len());
    let lost = &catalog.segments[1].entry;
    let (min_ns, max_ns) = lost.times_ns.unwrap();
    fs::remove_file(&store.segment_files()[1]).unwrap();

    let answer = store.ask(&all(""));
    let missing = gap(&answer.summary, Cause::MissingSegment);
    assert_eq!((missing.lane, missing.packets), (Some(0), Some(lost.packets)));
    assert_eq!((missing.from.ns, missing.until.ns), (min_ns, max_ns + 1));
    assert_eq!(answer.packets.len() as u64, capture.packets.len() as u64 - lost.packets);
    let (first_ns, last_ns) = capture.times_ns();
    assert!(complete(&store.ask(&window(first_ns, min_ns))) > 1000);
    assert!(complete(&store.ask(&window(max_ns + 1, last_ns + 1))) > 100);
    let (status, report) = store.verify();
    assert_eq!(status, 3, "{report}");
    assert_eq!(report["damaged"][0]["segment"], catalog.segments[1].name());
}

#[test]
fn a_missing_volume_is_told() {
    let capture = Capture::new(5);
    let store = TestStore::with_volumes(true, 2);
    let file = store.path("original.pcap");
    // What a volume that is absent held cannot be known, so no window beside it is complete; the
    // same window is when it is back.
    write_pcap(&file, &capture.packets);
    assert_eq!(code(&store.import(&file)), 0);
    let (first_ns, last_ns) = capture.times_ns();
    let question = window(first_ns, last_ns + 1);
    assert_eq!(complete(&store.ask(&question)), capture.packets.len());
    let aside = store.path("aside");
    fs::rename(store.volume(1), &aside).unwrap();
    let answer = store.ask(&question);
    let missing = gap(&answer.summary, Cause::MissingVolume);
    assert_eq!((missing.lane, missing.packets), (None, None));
    assert_eq!((missing.from.ns, missing.until.ns), (first_ns, last_ns + 1));
    let path = text(&store.volume(1));
    assert!(answer.summary.missing_volumes[0].contains(&path), "{}", answer.summary);
    let (output, _) = store.query(&["--count"]);
    assert_eq!(code(&output), 3, "{}", words(&output));
    fs::rename(&aside, store.volume(1)).unwrap();
    assert_eq!(complete(&store.ask(&question)), capture.packets.len());
}

/// Two imports with a day between them, in which nothing was promised.
fn two_imports(sealed: bool) -> (TestStore, Vec<Packet>) {
    let store = TestStore::new(sealed);
    let capture = Capture::new(5);
    let first = &capture.packets[..2000];
    let later = first.iter().cloned().map(|mut packet| {
        packet.ts_ns += 86_400 * SECOND_NS;
        packet
    });
    let later: Vec<Packet> = later.collect();
    for (name, packets) in [("first.pcap", first), ("later.pcap", &later[..])] {
        let file = store.path(name);
        write_pcap(&file, packets);
        let output = store.import(&file);
        assert_eq!(code(&output), 0, "{}", words(&output));
    }
    (store, [first, &later[..]].concat())
}

#[test]
fn a_wrong_key_is_told() {
    let (store, packets) = two_imports(true);
    let hole = window(BEGIN_NS + 3600 * SECOND_NS, BEGIN_NS + 7200 * SECOND_NS);
    assert_eq!(complete(&store.ask(&hole)), 0);
    assert_eq!(complete(&store.ask(&all(""))), packets.len());
    let other = TestStore::new(true);
    let key = KeySource::File(other.key_file());
    let catalog = open_store(&store.dir(), &key).unwrap().catalog(BEGIN_NS);
    let answer = ask(&catalog, &all("")).unwrap();
    assert!(answer.packets.is_empty());
    let lines: Vec<_> = answer.summary.gaps.iter().filter(|g| g.cause == Cause::WrongKey).collect();
    assert_eq!(lines.len(), 2, "{}", answer.summary);
    for (line, segment) in lines.iter().zip(&catalog.segments) {
        let (min_ns, max_ns) = segment.entry.times_ns.unwrap();
        assert_eq!((line.lane, line.packets), (Some(0), Some(segment.entry.packets)));
        assert_eq!((line.from.ns, line.until.ns), (min_ns, max_ns + 1));
    }
    assert_eq!(complete(&ask(&catalog, &hole).unwrap()), 0);
    let (store, key) = (text(&store.dir()), text(&other.key_file()));
    let output = wirevault(&["query", "--store", &store, "--key", &key, "--count"]);
    assert!(code(&output) >= 2, "{}", words(&output));
    assert!(words(&output).contains("key"), "{}", words(&output));
}

/// Packets of one second each, from `from_ns` on.
fn seconds(from_ns: u64, count: u64) -> Vec<Packet> {
    let capture = Capture::new(6);
    let packets = capture.packets.into_iter().take(count as usize);
    (0..)
        .zip(packets)
        .map(|(n, packet)| Packet { ts_ns: from_ns + n * SECOND_NS, ..packet })
        .collect()
}

/// Records `packets` in a run that starts a second before them; `then` sees the store while it
/// runs. The run ends a second after the last packet.
fn live_run(
    store: &Path,
    clock: &Arc<ManualClock>,
    packets: &[Packet],
    then: impl FnOnce(&Catalog),
) {
    let file = store.with_file_name("live.pcap");
    write_pcap(&file, packets);
    let (first_ns, last_ns) = (packets[0].ts_ns, packets.last().unwrap().ts_ns);
    clock.set_unix_ns(first_ns - SECOND_NS);
    let release = Arc::new(AtomicBool::new(false));
    let source = Held::open(&file, &release);
    let pipeline = lanes::start(store, vec![source], false, Arc::clone(clock) as _);
    clock.set_unix_ns(last_ns + SECOND_NS);
    let catalog = lanes::stored(&pipeline, packets.len() as u64);
    then(&catalog);
    release.store(true, Ordering::Release);
    pipeline.join().unwrap();
}

#[test]
fn a_restart_is_told() {
    let store = TestStore::new(true);
    let clock = Arc::new(ManualClock::default());
    let runs = [seconds(BEGIN_NS, 100), seconds(BEGIN_NS + 500 * SECOND_NS, 100)];
    for packets in &runs {
        live_run(&store.dir(), &clock, packets, |_| {});
    }
    let (ended_ns, started_ns) = (BEGIN_NS + 100 * SECOND_NS, BEGIN_NS + 499 * SECOND_NS);
    let answer = store.ask(&all(""));
    let away = gap(&answer.summary, Cause::NotRecording);
    assert_eq!((away.lane, away.packets), (None, None));
    assert_eq!((away.from.ns, away.until.ns), (ended_ns, started_ns));
    assert_eq!(answer.packets, runs.concat());
    assert_eq!(answer.summary.gaps.len(), 1, "{}", answer.summary);

    assert_eq!(complete(&store.ask(&window(BEGIN_NS, ended_ns))), 100);
    assert_eq!(complete(&store.ask(&window(started_ns, started_ns + 50 * SECOND_NS))), 49);
    let over = store.ask(&window(ended_ns - SECOND_NS, ended_ns + 1));
    assert_eq!(gap(&over.summary, Cause::NotRecording).from.ns, ended_ns);
    let before = store.ask(&window(BEGIN_NS - 9 * SECOND_NS, BEGIN_NS + SECOND_NS));
    assert_eq!(gap(&before.summary, Cause::NotRecording).until.ns, BEGIN_NS - SECOND_NS);
}

#[test]
fn a_crash_is_told() {
    for sealed in [false, true] {
        let store = TestStore::new(sealed);
        let clock = Arc::new(ManualClock::default());
        let packets = seconds(BEGIN_NS, 100);
        let last_ns = packets[99].ts_ns;
        // What a crash leaves: the files as they are while a run holds them open.
        let crashed = store.path("crashed");
        live_run(&store.dir(), &clock, &packets, |_| copy(&store.dir(), &crashed));

        let offline = |now_ns| open_store(&crashed, &KeySource::Recorded).unwrap().catalog(now_ns);
        let now_ns = BEGIN_NS + 400 * SECOND_NS;
        let asked =
            |since_ns, until_ns| ask(&offline(now_ns), &window(since_ns, until_ns)).unwrap();
        assert_eq!(complete(&asked(BEGIN_NS, last_ns + 1)), 100);
        let tail = asked(last_ns, now_ns);
        assert_eq!(gap(&tail.summary, Cause::NotYetDurable).from.ns, last_ns + 1);

        let (_, report) =
            Store::open_dir(&crashed, &KeySource::Recorded, Arc::clone(&clock) as _).unwrap();
        println!("sealed {sealed}: {report:?}");
        let tail = asked(last_ns, now_ns);
        assert_eq!(gap(&tail.summary, Cause::CrashTail).from.ns, last_ns + 1);

        let later = seconds(BEGIN_NS + 500 * SECOND_NS, 100);
        live_run(&crashed, &clock, &later, |_| {});
        let answer = ask(&offline(now_ns), &all("")).unwrap();
        let lost = gap(&answer.summary, Cause::CrashTail);
        assert_eq!((lost.lane, lost.packets), (None, None));
        assert_eq!((lost.from.ns, lost.until.ns), (last_ns + 1, later[0].ts_ns - SECOND_NS));
        assert_eq!(answer.packets, [packets, later.clone()].concat());
        assert_eq!(answer.summary.gaps.len(), 1, "{}", answer.summary);
        assert_eq!(complete(&asked(BEGIN_NS, last_ns + 1)), 100);
        assert_eq!(complete(&asked(later[0].ts_ns, later[99].ts_ns)), 99);
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn what_the_quota_gave_up_is_retention() {
    let store = TestStore::new(false);
    let clock = Arc::new(ManualClock::default());
    let capture = Capture::new(7);
    // Each run fills a few segments of 16 MiB; together they are more than the quota.
    let mut from_ns = BEGIN_NS;
    for _ in 0..8 {
        let shift_ns = from_ns - BEGIN_NS + 10 * SECOND_NS;
        let moved = capture.packets.iter().cloned().map(|mut packet| {
            packet.ts_ns += shift_ns;
            packet
        });
        let packets: Vec<Packet> = moved.collect();
        live_run(&store.dir(), &clock, &packets, |_| {});
        from_ns += 1000 * SECOND_NS;
    }
    let catalog = store.catalog();
    assert!(catalog.evicted_live_ns > 0, "nothing was given up with a quota of {QUOTA}");
    let bytes: u64 = store.files().iter().map(|file| fs::metadata(file).unwrap().len()).sum();
    assert!(bytes <= 256 << 20, "{bytes} bytes of a quota of {QUOTA}");
    let early = store.ask(&window(BEGIN_NS, catalog.evicted_live_ns + 1));
    let gone = gap(&early.summary, Cause::Retention);
    assert_eq!(gone.until.ns, catalog.evicted_live_ns + 1);
    let last = BEGIN_NS + 7000 * SECOND_NS + 10 * SECOND_NS;
    let kept = Request { since_ns: Some(last), until_ns: Some(last + 60 * SECOND_NS), ..all("") };
    assert!(complete(&store.ask(&kept)) > 1000);
}

#[test]
fn time_that_no_import_covers_is_not_recorded() {
    let (store, packets) = two_imports(false);
    let last_ns = packets.iter().map(|packet| packet.ts_ns).max().unwrap();
    let beyond = last_ns + Duration::from_secs(60).as_nanos() as u64;
    let answer = store.ask(&window(last_ns, beyond));
    let after = gap(&answer.summary, Cause::NotRecording);
    assert_eq!((after.from.ns, after.until.ns), (last_ns + 1, beyond));
    assert_eq!(complete(&store.ask(&window(last_ns, last_ns + 1))), 1);
}
