//! Every prefix of what a recorder did to a device, and parts of it in any order, through recovery.

use std::sync::Arc;
use std::time::Duration;

use wirevault_format::Cause;
use wirevault_index::KeySource;
use wirevault_media::sim::SplitMix64;
use wirevault_media::{BlockMedia, Media};
use wirevault_nvme::{Backend, QueueOptions, open_best};
use wirevault_pipeline::PipelineOptions;
use wirevault_seal::{FileProvider, KeyProvider, random};
use wirevault_storage::{CreateOptions, Plan, create_planned};

use crate::log::{Log, LoggedDevice};
use crate::support::{Recovered, recover, start};

const PACKETS: u32 = 6_000;
const SEGMENT_BYTES: u64 = 4 << 20;
/// Enough for all packets, so that nothing goes for the quota.
const PLACES: u32 = 4;
const QUOTA_BYTES: u64 = (3 << 20) + PLACES as u64 * SEGMENT_BYTES;
const DEVICE_BYTES: usize = 20 << 20;
/// Disks without power that are tried in the gate.
const CUTS: u64 = 120;
/// Of how many of them the recovery is cut, at each of its own operations.
const RECOVERIES: u64 = 6;

/// The log of a whole recording into a sealed store.
struct Recording {
    log: Log,
    key: KeySource,
    _dir: tempfile::TempDir,
}

fn record(seed: u64, flushes: bool) -> Recording {
    let dir = tempfile::tempdir().expect("a directory");
    let provider: Arc<dyn KeyProvider> =
        Arc::new(FileProvider::create(&dir.path().join("k")).expect("a key"));
    let key = KeySource::Provider(Arc::clone(&provider));
    let device = LoggedDevice::new(vec![0; DEVICE_BYTES]);
    let options = CreateOptions {
        quota_bytes: None,
        lanes: 1,
        key: Some(provider),
        key_path: String::new(),
        clock: crate::support::clock(),
    };
    let plan = Plan::exact(SEGMENT_BYTES, &[(QUOTA_BYTES, PLACES)], 1).expect("sizes");
    let volumes = [(volume(&device), "/logged".to_owned())];
    create_planned(&volumes, random::store_id().expect("an id"), &options, &plan).expect("a store");

    let label = BlockMedia::over(Arc::new(device.clone())).expect("a volume").label();
    let places = label.expect("a label").places_offset;
    let device = LoggedDevice::new(device.log().prefix(usize::MAX));
    let device =
        if flushes { device } else { device.without_flushes_of_chunks(places, SEGMENT_BYTES) };
    let queue = QueueOptions { backend: Backend::Thread, ..QueueOptions::default() };
    let options = PipelineOptions {
        queue: Arc::new(move |_, arena| open_best(&queue, arena)),
        ..PipelineOptions::default()
    };
    let started = start(volume(&device), &key, PACKETS, seed, &options);
    let (pipeline, _pool) = started.expect("a recorder");
    let books = device.books.get_or_init(|| pipeline.lanes()[0].books.clone());
    while !pipeline.is_finished() {
        std::thread::sleep(Duration::from_micros(200));
    }
    pipeline.join().expect("an end");
    assert_eq!(books.snapshot().watermark, u64::from(PACKETS));
    Recording { log: device.log(), key, _dir: dir }
}

fn volume(device: &LoggedDevice) -> Arc<dyn Media> {
    Arc::new(BlockMedia::over(Arc::new(device.clone())).expect("a device"))
}

impl Recording {
    /// Recovers a device, and checks that nothing below the watermark is lost and nothing is
    /// called damaged. Gives what it did to the device for that.
    fn check(&self, image: Vec<u8>, acknowledged: u64, what: &str) -> Result<Log, String> {
        let device = LoggedDevice::new(image);
        let recovered = recover(volume(&device), &self.key, PACKETS);
        let lost = recovered.lost(acknowledged, what);
        if lost > 0 {
            return Err(format!("{what}: {lost} of {acknowledged} acknowledged packets are lost"));
        }
        whole(&recovered).map_err(|why| format!("{what}: {why}"))?;
        let log = device.log();
        // Whoever comes next finds nothing to mend, and the same packets.
        let again = recover(volume(&device), &self.key, PACKETS);
        let same = again.seen == recovered.seen && again.report.is_clean();
        same.then_some(log).ok_or(format!("{what}: the second start found other packets"))
    }
}

/// A crash alone damages nothing.
fn whole(recovered: &Recovered) -> Result<(), String> {
    let Recovered { report, summary, .. } = recovered;
    let damaged = report.segments.iter().find(|segment| {
        !segment.damage.is_empty() || segment.unreadable.is_some() || segment.entry.damaged
    });
    let told = summary.gaps.iter().find(|gap| gap.cause == Cause::Damaged);
    match damaged.is_none() && report.set_aside.is_empty() && told.is_none() {
        true if summary.damaged.is_empty() && summary.warnings.is_empty() => Ok(()),
        _ => Err(format!("{damaged:?}, {:?}, {told:?}, {summary:?}", report.set_aside)),
    }
}

#[test]
fn every_prefix_of_the_log_recovers() {
    for topology in 0..2 {
        let recording = record(topology, true);
        let log = &recording.log;
        for n in 0..=log.len() {
            let what = format!("topology {topology}, the first {n} operations");
            let checked = recording.check(log.prefix(n), log.acknowledged(n), &what);
            checked.unwrap_or_else(|why| panic!("{why}"));
        }
        println!("topology {topology}: {} operations, {} flushes", log.len(), log.flushes());
    }
}

#[test]
fn between_flushes_any_part_in_any_order_recovers() {
    let recording = record(1, true);
    let log = &recording.log;
    let mut recoveries = 0;
    for seed in 0..CUTS {
        let mut random = SplitMix64::new(seed);
        let n = random.below(log.len() as u64 + 1) as usize;
        let (acknowledged, what) = (log.acknowledged(n), format!("seed {seed}, cut at {n}"));
        let checked = recording.check(log.cut(n, &mut random), acknowledged, &what);
        let mended = checked.unwrap_or_else(|why| panic!("{why}"));
        if seed >= RECOVERIES {
            continue;
        }
        for at in 0..=mended.len() {
            let what = format!("{what}, recovery cut at {at}");
            let checked = recording.check(mended.cut(at, &mut random), acknowledged, &what);
            checked.unwrap_or_else(|why| panic!("{why}"));
            recoveries += 1;
        }
    }
    println!("seeds 0 to {CUTS} over {} operations, {recoveries} cut recoveries", log.len());
}

/// As if the writer asked for no flush of its chunks.
#[test]
fn a_log_without_flushes_loses_packets() {
    let recording = record(0, false);
    let log = &recording.log;
    let cuts = (0..=log.len()).flat_map(|n| (0..4).map(move |seed| (n, seed)));
    let noticed = cuts.into_iter().find_map(|(n, seed)| {
        let image = log.cut(n, &mut SplitMix64::new(seed));
        let what = format!("seed {seed}, cut at {n}");
        let why = recording.check(image, log.acknowledged(n), &what).err();
        why.filter(|why| why.contains("acknowledged packets are lost"))
    });
    println!("{noticed:?}");
    assert!(noticed.is_some(), "no acknowledged packet misses the flushes");
}
