//! Every prefix of what a recorder did to a device, and parts of it in any order, through recovery.
//! By each of the back ends that drive a device: what they do to it differs, and so does its order.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use wirevault_buffer::Arena;
use wirevault_format::Cause;
use wirevault_index::KeySource;
use wirevault_media::sim::SplitMix64;
use wirevault_media::{BlockMedia, Media};
use wirevault_nvme::passthrough::Target;
use wirevault_nvme::passthrough::sim::SimCommands;
use wirevault_nvme::vfio::model::{ModelBus, ModelOptions};
use wirevault_nvme::vfio::{Controller, ControllerOptions, VfioVolume};
use wirevault_nvme::{
    Backend, NvmeError, PassthroughQueue, Queue, QueueOptions, VfioQueue, open_best,
};
use wirevault_pipeline::{PipelineOptions, QueueMaker};
use wirevault_seal::{FileProvider, KeyProvider, random};
use wirevault_storage::{CreateOptions, Plan, create_planned};

use crate::log::{Log, LoggedDevice, LoggedRing};
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
/// Bytes that an NVMe command carries: a chunk takes two.
const TRANSFER_BYTES: usize = 128 << 10;
/// The same as a power of two of 4096 bytes.
const MDTS: u8 = 5;
const LBA_BYTES: u32 = 512;

/// What drives the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Driver {
    /// Calls on files.
    Thread,
    /// The same without flushes of chunks.
    Unflushed,
    /// NVMe commands through the kernel.
    Passthrough,
    /// Queue pairs of our own.
    Vfio,
}

/// The log of a whole recording into a sealed store.
struct Recording {
    log: Log,
    key: KeySource,
    _dir: tempfile::TempDir,
}

fn record(seed: u64, driver: Driver) -> Recording {
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

    let made = device.log().prefix(usize::MAX);
    let device = LoggedDevice::new(made.clone());
    let (device, volume, queue) = match driver {
        Driver::Thread => by_thread(device),
        Driver::Unflushed => {
            let label = BlockMedia::over(Arc::new(device.clone())).expect("a volume").label();
            let places = label.expect("a label").places_offset;
            by_thread(device.without_flushes_of_chunks(places, SEGMENT_BYTES))
        }
        Driver::Passthrough => by_passthrough(device, &dir.path().join("node"), seed),
        Driver::Vfio => by_vfio(device, &made, seed),
    };
    let options = PipelineOptions { queue, ..PipelineOptions::default() };
    let started = start(volume, &key, PACKETS, seed, &options);
    let (pipeline, _pool) = started.expect("a recorder");
    let books = device.books.get_or_init(|| pipeline.lanes()[0].books.clone());
    while !pipeline.is_finished() {
        std::thread::sleep(Duration::from_micros(200));
    }
    pipeline.join().expect("an end");
    assert_eq!(books.snapshot().watermark, u64::from(PACKETS));
    Recording { log: device.log(), key, _dir: dir }
}

/// A device whose log is kept, the volume on it, and what writes there.
type Rig = (LoggedDevice, Arc<dyn Media>, QueueMaker);

fn by_thread(device: LoggedDevice) -> Rig {
    let options = QueueOptions { backend: Backend::Thread, ..QueueOptions::default() };
    let media = volume(&device);
    (device, media, Arc::new(move |_, arena| open_best(&options, arena)))
}

/// The node is a file that nobody reads: what is done to it is done to the device as well.
fn by_passthrough(device: LoggedDevice, node: &Path, seed: u64) -> Rig {
    let bytes = DEVICE_BYTES as u64;
    File::create(node).and_then(|file| file.set_len(bytes)).expect("a file");
    let (device, node) = (device.at(node), node.to_owned());
    let (media, logged) = (volume(&device), device.clone());
    let queue = move |_, _: &Arena| -> Result<Box<dyn Queue>, NvmeError> {
        let options = QueueOptions::default();
        let target = Target {
            namespace: 1,
            lba_bytes: LBA_BYTES,
            bytes,
            transfer_bytes: TRANSFER_BYTES,
            must_flush: true,
        };
        let commands = SimCommands::open(&node, &target, options.depth as usize, seed);
        let ring = LoggedRing::new(commands.expect("the file"), logged.clone(), LBA_BYTES);
        Ok(Box::new(PassthroughQueue::over(&options, ring, target)?))
    };
    (device, media, Arc::new(queue))
}

/// The device is the model's, tables and all; the other one has its log.
fn by_vfio(device: LoggedDevice, made: &[u8], seed: u64) -> Rig {
    let bytes = DEVICE_BYTES;
    let model = ModelOptions { seed, bytes, mdts: MDTS, ..ModelOptions::default() };
    let bus = ModelBus::new(model).expect("a model");
    bus.put(0, made);
    let controller = Controller::start(bus.clone(), ControllerOptions::default(), None);
    let controller = controller.expect("a controller");
    bus.tell(Box::new(device.clone()));
    let own = VfioVolume::open(&controller, "model").expect("queues for tables");
    let media = BlockMedia::over(Arc::new(own)).expect("a volume");
    let queue = move |_, arena: &Arena| -> Result<Box<dyn Queue>, NvmeError> {
        controller.map_arena(arena)?;
        Ok(Box::new(VfioQueue::new(&controller, &QueueOptions::default())?))
    };
    (device, Arc::new(media), Arc::new(queue))
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
        every_prefix_recovers(topology, Driver::Thread);
    }
}

#[test]
fn every_prefix_of_the_commands_through_the_kernel_recovers() {
    every_prefix_recovers(0, Driver::Passthrough);
}

#[test]
fn every_prefix_of_our_own_drivers_commands_recovers() {
    every_prefix_recovers(1, Driver::Vfio);
}

fn every_prefix_recovers(topology: u64, driver: Driver) {
    let recording = record(topology, driver);
    let log = &recording.log;
    for n in 0..=log.len() {
        let what = format!("{driver:?}, topology {topology}, the first {n} operations");
        let checked = recording.check(log.prefix(n), log.acknowledged(n), &what);
        checked.unwrap_or_else(|why| panic!("{why}"));
    }
    let (operations, flushes) = (log.len(), log.flushes());
    println!("{driver:?}, topology {topology}: {operations} operations, {flushes} flushes");
    assert!(flushes > 0, "{driver:?} promised something");
}

#[test]
fn between_flushes_any_part_in_any_order_recovers() {
    any_part_in_any_order_recovers(Driver::Thread, CUTS);
}

/// The recovery after it is the same, and was cut above.
#[test]
fn between_flush_commands_any_part_in_any_order_recovers() {
    for driver in [Driver::Passthrough, Driver::Vfio] {
        any_part_in_any_order_recovers(driver, CUTS / 2);
    }
}

fn any_part_in_any_order_recovers(driver: Driver, cuts: u64) {
    let recording = record(1, driver);
    let log = &recording.log;
    let mut recoveries = 0;
    for seed in 0..cuts {
        let mut random = SplitMix64::new(seed);
        let n = random.below(log.len() as u64 + 1) as usize;
        let acknowledged = log.acknowledged(n);
        let what = format!("{driver:?}, seed {seed}, cut at {n}");
        let checked = recording.check(log.cut(n, &mut random), acknowledged, &what);
        let mended = checked.unwrap_or_else(|why| panic!("{why}"));
        if driver != Driver::Thread || seed >= RECOVERIES {
            continue;
        }
        for at in 0..=mended.len() {
            let what = format!("{what}, recovery cut at {at}");
            let checked = recording.check(mended.cut(at, &mut random), acknowledged, &what);
            checked.unwrap_or_else(|why| panic!("{why}"));
            recoveries += 1;
        }
    }
    let operations = log.len();
    println!("{driver:?}, seeds 0 to {cuts} over {operations} operations, {recoveries} recoveries");
}

/// As if the writer asked for no flush of its chunks.
#[test]
fn a_log_without_flushes_loses_packets() {
    let recording = record(0, Driver::Unflushed);
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
