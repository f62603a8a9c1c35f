//! Power cuts at any operation, on a simulated disk.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use wirevault_index::KeySource;
use wirevault_media::sim::SplitMix64;
use wirevault_media::{Fault, Media, SimMedia, Trigger};
use wirevault_nvme::{Completion, Layer, NvmeError, Queue, SimOptions, SimQueue};
use wirevault_pipeline::PipelineOptions;
use wirevault_seal::{FileProvider, KeyProvider, random};
use wirevault_storage::{CreateOptions, create};
use wirevault_telemetry::books::LaneBooks;

use crate::support::{clock, recover, start};

const PACKETS: u32 = 12_000;
/// Cuts in the gate. Each takes about a tenth of a second.
const CUTS: u64 = 60;

struct Rig {
    disk: SimMedia,
    key: KeySource,
    _dir: tempfile::TempDir,
}

fn rig() -> Rig {
    let dir = tempfile::tempdir().expect("a directory");
    let provider: Arc<dyn KeyProvider> =
        Arc::new(FileProvider::create(&dir.path().join("k")).expect("a key"));
    let disk = SimMedia::new();
    let options = CreateOptions {
        quota_bytes: Some(256 << 20),
        lanes: 1,
        key: Some(Arc::clone(&provider)),
        key_path: String::new(),
        clock: clock(),
    };
    let volumes: [(Arc<dyn Media>, String); 1] = [(Arc::new(disk.clone()), "/sim".to_owned())];
    create(&volumes, random::store_id().expect("an id"), &options).expect("a store");
    Rig { disk, key: KeySource::Provider(provider), _dir: dir }
}

/// Looks at the books whenever the writer does anything, so that every acknowledgement before the
/// power goes is seen, however late the test's own thread runs.
struct Watched {
    inner: SimQueue,
    disk: SimMedia,
    books: Arc<OnceLock<LaneBooks>>,
    acknowledged: Arc<AtomicU64>,
}

impl Layer for Watched {
    type Inner = SimQueue;

    fn inner(&self) -> &SimQueue {
        &self.inner
    }

    fn inner_mut(&mut self) -> &mut SimQueue {
        &mut self.inner
    }

    fn pass(&mut self, wait: Duration, out: &mut Vec<Completion>) -> Result<(), NvmeError> {
        if let Some(books) = self.books.get() {
            let snapshot = books.snapshot();
            assert!(snapshot.balances(), "{snapshot:?}");
            // What the books said while the power was on was durable then.
            if !self.disk.power_is_cut() {
                self.acknowledged.store(snapshot.watermark, Ordering::Release);
            }
        }
        self.inner.poll(wait, out)
    }
}

/// Records until the end or the power cut; gives the watermark known before the cut.
fn record(rig: &Rig, seed: u64) -> u64 {
    let (books, acknowledged) = (Arc::new(OnceLock::new()), Arc::new(AtomicU64::new(0)));
    let seen = (rig.disk.clone(), Arc::clone(&books), Arc::clone(&acknowledged));
    let options = PipelineOptions {
        queue: Arc::new(move |_, _| {
            let inner = SimQueue::new(SimOptions { seed, ..SimOptions::default() });
            let (disk, books, acknowledged) = seen.clone();
            Ok(Box::new(Watched { inner, disk, books, acknowledged }))
        }),
        ..PipelineOptions::default()
    };
    let started = start(Arc::new(rig.disk.clone()), &rig.key, PACKETS, seed, &options);
    let Some((pipeline, pool)) = started else { return 0 };
    let books = books.get_or_init(|| pipeline.lanes()[0].books.clone());
    while !pipeline.is_finished() {
        if rig.disk.power_is_cut() {
            pipeline.stop();
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    // After a power cut the end of the run cannot be written.
    if pipeline.join().is_ok() && !rig.disk.power_is_cut() {
        acknowledged.store(books.snapshot().watermark, Ordering::Release);
    }
    assert_eq!(pool.in_flight(), 0, "every chunk went back");
    acknowledged.load(Ordering::Acquire)
}

/// Cuts the power at a random operation; gives packets acknowledged before, and of them lost.
fn cut(seed: u64, operations: u64, syncs_lie: bool) -> (u64, usize) {
    let rig = rig();
    let mut random = SplitMix64::new(seed);
    let at = rig.disk.counts().operations + 1 + random.below(operations);
    rig.disk.inject(Trigger::Operation(at), Fault::PowerCut);
    if syncs_lie {
        rig.disk.inject(Trigger::EverySync, Fault::Lost);
    }
    let acknowledged = record(&rig, seed);
    let recovered = recover(Arc::new(rig.disk.crash(seed)), &rig.key, PACKETS);
    (acknowledged, recovered.lost(acknowledged, &format!("seed {seed}")))
}

fn operations_of_a_run() -> u64 {
    let rig = rig();
    let before = rig.disk.counts().operations;
    assert_eq!(record(&rig, 0), u64::from(PACKETS));
    rig.disk.counts().operations - before
}

#[test]
fn what_was_acknowledged_survives_a_power_cut_at_any_operation() {
    let operations = operations_of_a_run();
    let mut acknowledged = 0;
    let mut cuts_with_watermark = 0;
    for seed in 1..=CUTS {
        let (packets, lost) = cut(seed, operations, false);
        assert_eq!(lost, 0, "seed {seed}: {lost} of {packets} acknowledged packets are lost");
        acknowledged += packets;
        cuts_with_watermark += u64::from(packets > 0);
    }
    println!(
        "{CUTS} power cuts within {operations} operations, {cuts_with_watermark} with a \
         watermark, {acknowledged} acknowledged packets, none lost"
    );
    assert!(cuts_with_watermark > CUTS / 3, "only {cuts_with_watermark} cuts had a watermark");
}

#[test]
fn a_missing_flush_is_noticed() {
    let operations = operations_of_a_run();
    let noticed = (1..=20).any(|seed| {
        let rig_opened = std::panic::catch_unwind(|| cut(seed, operations, true));
        rig_opened.is_err() || rig_opened.is_ok_and(|(_, lost)| lost > 0)
    });
    assert!(noticed, "20 power cuts on a disk whose flushes do nothing lost nothing");
}
