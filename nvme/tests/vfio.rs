//! The driver of our own over a model controller: what is acknowledged, what is given back, and
//! what happens when the device misbehaves.

#[path = "conformance/disk.rs"]
mod disk;

/// What [`disk`] takes from the suite.
mod suite {
    /// Bytes of every file.
    pub(crate) const FILE_BYTES: u64 = 16 << 20;
}

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use disk::DiskFiles;
use proptest::prelude::*;
use wirevault_buffer::{Arena, ArenaOptions, Hugepages, Pool};
use wirevault_format::limits::{CHUNK_BYTES, LBA_BYTES};
use wirevault_media::sim::SplitMix64;
use wirevault_media::{BlockMedia, Media, OpenMode, Shape};
use wirevault_nvme::admin::Admin;
use wirevault_nvme::device::{Device, DeviceKind, Roots};
use wirevault_nvme::health::Health;
use wirevault_nvme::spec::Status;
use wirevault_nvme::spec::command::{ALL_NAMESPACES, Command, log};
use wirevault_nvme::spec::identify::IDENTIFY_BYTES;
use wirevault_nvme::vfio::model::{ModelBus, ModelOptions, Trouble};
use wirevault_nvme::vfio::{Controller, ControllerOptions, VfioDisk, VfioVolume};
use wirevault_nvme::{Completion, NvmeError, Queue, QueueOptions, Slot, VfioQueue, is_poisoned};

const DEPTH: usize = 8;
/// How long a command may take; the model's time costs little, but not nothing.
const COMMAND_TIMEOUT: Duration = Duration::from_millis(200);
const ADMIN_TIMEOUT: Duration = Duration::from_millis(100);
/// More than every timeout together.
const LONG: Duration = Duration::from_secs(60);

struct Bench {
    bus: ModelBus,
    controller: Arc<Controller<ModelBus>>,
    disk: Arc<VfioDisk<ModelBus>>,
    media: DiskFiles<ModelBus>,
    pool: Pool,
}

fn bench(model: ModelOptions) -> Bench {
    bench_with(model, COMMAND_TIMEOUT, ADMIN_TIMEOUT)
}

fn bench_with(model: ModelOptions, command_timeout: Duration, admin_timeout: Duration) -> Bench {
    let bus = ModelBus::new(model).unwrap();
    let bytes = 16 * CHUNK_BYTES;
    let arena = ArenaOptions { bytes, hugepages: Hugepages::Off, numa_node: None };
    let pool = Pool::new(Arena::new(arena).unwrap());
    let options = ControllerOptions { namespace: None, command_timeout, admin_timeout };
    let controller = Controller::start(bus.clone(), options, Some(pool.arena())).unwrap();
    let disk = Arc::new(VfioDisk::open(&controller).unwrap());
    let media = DiskFiles::new(Arc::clone(&disk));
    Bench { bus, controller, disk, media, pool }
}

impl Bench {
    fn queue(&self) -> VfioQueue<ModelBus> {
        let options = QueueOptions { depth: DEPTH as u32, slots: 4, ..QueueOptions::default() };
        VfioQueue::new(&self.controller, &options).unwrap()
    }

    fn attach(&self, queue: &mut VfioQueue<ModelBus>, name: &str) -> Slot {
        queue.attach(&self.media.open(name, OpenMode::Create).unwrap()).unwrap()
    }

    fn write(&self, queue: &mut VfioQueue<ModelBus>, slot: Slot, n: u64) {
        let mut buf = self.pool.take().unwrap();
        buf.fill(n as u8 + 1);
        queue.write(slot, n * CHUNK_BYTES as u64, buf, CHUNK_BYTES, n).unwrap();
    }

    /// The model saw nothing that a driver must not do.
    fn check(self) {
        drop((self.media, self.disk, self.controller));
        assert_eq!(self.bus.violations(), Vec::<String>::new());
        assert_eq!(self.pool.in_flight(), 0, "leaked chunks");
    }
}

fn finish(queue: &mut VfioQueue<ModelBus>) -> Vec<Completion> {
    let mut out = Vec::new();
    while queue.in_flight() > 0 {
        queue.poll(LONG, &mut out).unwrap();
    }
    out
}

fn failed(ends: &[Completion]) -> usize {
    ends.iter().filter(|end| end.result().is_err()).count()
}

/// Tokens of writes that were acknowledged: they completed before a sync was submitted that
/// succeeded.
///
/// Trouble begins after some of them.
fn record(bench: &Bench, seed: u64, writes: u64, mut trouble: Option<Trouble>) -> BTreeSet<u64> {
    const SYNC: u64 = 1 << 32;
    const TROUBLE_AFTER: u64 = 5;
    let mut rng = SplitMix64::new(seed);
    let mut queue = bench.queue();
    let slot = bench.attach(&mut queue, "a");
    let (mut next, mut syncs, mut out) = (0, SYNC, Vec::new());
    let (mut acknowledged, mut completed, mut covered) =
        (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
    while next < writes || queue.in_flight() > 0 {
        if next >= TROUBLE_AFTER {
            trouble.take().into_iter().for_each(|trouble| bench.bus.trouble(trouble));
        }
        if next < writes && rng.below(3) > 0 && queue.in_flight() < DEPTH {
            let mut buf = bench.pool.take().unwrap();
            buf.fill(next as u8 + 1);
            let blocks = 1 + rng.below((CHUNK_BYTES / LBA_BYTES) as u64) as usize;
            let sent = queue.write(
                slot,
                next * CHUNK_BYTES as u64,
                buf,
                blocks * LBA_BYTES,
                next | (blocks as u64) << 40,
            );
            if sent.is_err_and(|refused| refused.error.is_poisoned()) {
                next = writes;
            }
            next += 1;
        }
        if rng.below(4) == 0 && queue.sync(slot, syncs).is_ok() {
            covered.insert(syncs, completed.clone());
            syncs += 1;
        }
        queue.poll(Duration::from_micros(rng.below(300)), &mut out).unwrap();
        for end in out.drain(..) {
            match end {
                Completion::Write { token, result: Ok(()), .. } => _ = completed.insert(token),
                Completion::Sync { token, result: Ok(()) } => {
                    acknowledged.extend(covered.remove(&token).unwrap_or_default());
                }
                Completion::Write { .. } | Completion::Sync { .. } => {}
            }
        }
    }
    acknowledged
}

/// Acknowledged writes that a loss of power now would take.
fn missing(bench: &Bench, acknowledged: &BTreeSet<u64>) -> Vec<u64> {
    let whole = |token: &&u64| {
        let (n, blocks) = (**token & 0xffff, (**token >> 40) as usize);
        let found = bench.bus.durable_at(n as usize * CHUNK_BYTES, blocks * LBA_BYTES);
        !found.iter().all(|b| u64::from(*b) == n + 1)
    };
    acknowledged.iter().filter(whole).copied().collect()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 150,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// On any device: small or large blocks, transfers and queues, with a cache or without, with
    /// commands that fail or do not end.
    #[test]
    fn what_was_acknowledged_is_durable(
        seed: u64,
        mdts in 0u8..8,
        entries in prop::sample::select(vec![32u16, 33, 64, 1024]),
        stride in 0u8..3,
        power in 9u32..=12,
        volatile_cache: bool,
        trouble in prop::option::of(prop::sample::select(vec![
            Trouble::Stuck(1), Trouble::Stuck(3), Trouble::Deaf(2), Trouble::Echo, Trouble::Fatal,
        ])),
        bad in prop::option::of(0u64..30 * CHUNK_BYTES as u64),
    ) {
        let block_bytes = 1 << power;
        let options = ModelOptions {
            seed, mdts, entries, stride, block_bytes, volatile_cache, bytes: 16 << 20,
            ..ModelOptions::default()
        };
        let bench = bench(options);
        if let Some(bad) = bad {
            bench.bus.fail(true, bad..bad + 1, Status(0x280));
        }
        let acknowledged = record(&bench, seed, 30, trouble);
        prop_assert_eq!(missing(&bench, &acknowledged), Vec::<u64>::new());
        if trouble.is_none() && bad.is_none() {
            // Without trouble the last sync may come before the last writes end, but not before
            // all do.
            prop_assert!(!acknowledged.is_empty() || !volatile_cache);
        }
        bench.check();
    }
}

#[test]
fn the_check_catches_flushes_that_lie() {
    let bench = bench(ModelOptions::default());
    bench.bus.trouble(Trouble::FlushLies);
    let acknowledged = record(&bench, 1, 30, None);
    assert!(!acknowledged.is_empty());
    assert!(!missing(&bench, &acknowledged).is_empty());
}

#[test]
fn a_device_without_volatile_cache_is_sent_no_flush() {
    let bench = bench(ModelOptions { volatile_cache: false, ..ModelOptions::default() });
    let mut queue = bench.queue();
    let slot = bench.attach(&mut queue, "a");
    queue.sync(slot, 1).unwrap();
    assert_eq!(failed(&finish(&mut queue)), 0);
    assert_eq!(bench.bus.io_commands(), 0);
    bench.disk.flush().unwrap();
    assert_eq!(bench.bus.io_commands(), 0);
    drop(queue);
    bench.check();
}

#[test]
fn long_writes_are_cut_at_the_devices_limit() {
    for (mdts, commands) in [(0, 1), (7, 1), (6, 1), (5, 2), (4, 4), (1, 32)] {
        let bench = bench(ModelOptions { mdts, ..ModelOptions::default() });
        let mut queue = bench.queue();
        let slot = bench.attach(&mut queue, "a");
        for n in 0..DEPTH as u64 {
            bench.write(&mut queue, slot, n);
        }
        assert_eq!(failed(&finish(&mut queue)), 0);
        assert_eq!(bench.bus.io_commands(), commands * DEPTH as u64, "MDTS {mdts}");
        let found = bench.bus.bytes_at(0, DEPTH * CHUNK_BYTES);
        let right = |(n, chunk): (usize, &[u8])| chunk.iter().all(|b| usize::from(*b) == n + 1);
        assert!(found.chunks(CHUNK_BYTES).enumerate().all(right), "MDTS {mdts}");
        drop(queue);
        bench.check();
    }
}

#[test]
fn a_command_that_does_not_end_is_aborted_alone() {
    let bench = bench(ModelOptions::default());
    let mut queue = bench.queue();
    let (a, b) = (bench.attach(&mut queue, "a"), bench.attach(&mut queue, "b"));
    bench.bus.trouble(Trouble::Stuck(1));
    bench.write(&mut queue, a, 0);
    queue.poll(Duration::ZERO, &mut Vec::new()).unwrap();
    bench.write(&mut queue, b, 1);
    let ends = finish(&mut queue);
    assert_eq!((ends.len(), failed(&ends)), (2, 1), "{ends:?}");
    let error = ends.iter().find_map(|end| end.result().as_ref().err()).unwrap();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    assert_eq!((bench.bus.aborts(), bench.controller.resets()), (1, 0));
    bench.write(&mut queue, b, 2);
    assert_eq!(failed(&finish(&mut queue)), 0, "the other file goes on");
    drop((ends, queue));
    bench.check();
}

#[test]
fn a_reset_ends_every_queue_and_all_go_on() {
    let bench = bench(ModelOptions::default());
    let (mut first, mut second) = (bench.queue(), bench.queue());
    let (a, b) = (bench.attach(&mut first, "a"), bench.attach(&mut second, "b"));
    bench.bus.trouble(Trouble::Deaf(2));
    bench.write(&mut first, a, 0);
    first.poll(Duration::ZERO, &mut Vec::new()).unwrap();
    bench.write(&mut second, b, 0);
    let ends = finish(&mut first);
    assert_eq!(failed(&ends), 1);
    assert_eq!(bench.controller.resets(), 1);
    let others = finish(&mut second);
    assert!(others.len() == 1 && others[0].result().is_err() || failed(&others) == 0);
    let next = bench.attach(&mut first, "c");
    bench.write(&mut first, next, 3);
    let next = bench.attach(&mut second, "d");
    bench.write(&mut second, next, 4);
    assert_eq!((failed(&finish(&mut first)), failed(&finish(&mut second))), (0, 0));
    let mut block = vec![0; LBA_BYTES];
    bench.disk.read_at(&mut block, 0).unwrap();
    drop((ends, others, first, second));
    bench.check();
}

#[test]
fn a_dead_device_gives_every_chunk_back() {
    for trouble in [Trouble::Gone, Trouble::WillNotStop] {
        let bench = bench(ModelOptions::default());
        let mut queue = bench.queue();
        let slot = bench.attach(&mut queue, "a");
        bench.bus.trouble(Trouble::Deaf(u32::MAX));
        for n in 0..4 {
            bench.write(&mut queue, slot, n);
        }
        queue.poll(Duration::ZERO, &mut Vec::new()).unwrap();
        bench.bus.trouble(trouble);
        let ends = finish(&mut queue);
        assert_eq!((ends.len(), failed(&ends)), (4, 4), "{trouble:?}");
        assert!(!is_poisoned(ends[0].result().as_ref().unwrap_err()));
        drop(ends);
        assert_eq!(bench.pool.in_flight(), 0, "{trouble:?}");
        assert!(!bench.controller.is_alive());
        let refused = queue.write(slot, 0, bench.pool.take().unwrap(), LBA_BYTES, 9).unwrap_err();
        assert!(matches!(refused.error, NvmeError::Broken { .. }), "{}", refused.error);
        assert!(bench.disk.read_at(&mut vec![0; LBA_BYTES], 0).is_err());
        drop((refused, queue));
        bench.check();
    }
}

/// Not by its queues' doing, and before any command is late.
#[test]
fn a_device_that_somebody_else_resets_goes_on() {
    let bench = bench(ModelOptions::default());
    let mut queue = bench.queue();
    let slot = bench.attach(&mut queue, "a");
    bench.bus.trouble(Trouble::Deaf(1));
    bench.write(&mut queue, slot, 0);
    queue.poll(Duration::ZERO, &mut Vec::new()).unwrap();
    bench.bus.trouble(Trouble::Reset);
    let ends = finish(&mut queue);
    assert_eq!(failed(&ends), 1);
    assert_eq!((bench.bus.aborts(), bench.controller.resets()), (0, 1));
    let next = bench.attach(&mut queue, "b");
    bench.write(&mut queue, next, 1);
    assert_eq!(failed(&finish(&mut queue)), 0);
    bench.disk.read_at(&mut vec![0; LBA_BYTES], 0).unwrap();
    drop((ends, queue));
    bench.check();
}

/// The kernel wants it back while it works, or has nothing to do.
#[test]
fn a_device_that_is_let_go_of_gives_every_chunk_back() {
    for writes in [0, 3] {
        let bench = bench(ModelOptions::default());
        let mut queue = bench.queue();
        let slot = bench.attach(&mut queue, "a");
        bench.bus.trouble(Trouble::Deaf(u32::MAX));
        (0..writes).for_each(|n| bench.write(&mut queue, slot, n));
        queue.poll(Duration::ZERO, &mut Vec::new()).unwrap();
        assert!(!bench.controller.is_left());
        bench.controller.let_go();
        assert!(bench.controller.is_left());
        let ends = finish(&mut queue);
        assert_eq!((ends.len() as u64, failed(&ends) as u64), (writes, writes));
        assert!(bench.disk.read_at(&mut vec![0; LBA_BYTES], 0).is_err());
        assert!(Health::read(bench.controller.as_ref(), 1).is_err());
        bench.controller.let_go();
        drop((ends, queue));
        bench.check();
    }
}

#[test]
fn chunks_that_a_runaway_device_may_read_are_never_used_again() {
    let bench = bench(ModelOptions::default());
    let mut queue = bench.queue();
    let slot = bench.attach(&mut queue, "a");
    bench.bus.trouble(Trouble::Deaf(u32::MAX));
    for n in 0..3 {
        bench.write(&mut queue, slot, n);
    }
    queue.poll(Duration::ZERO, &mut Vec::new()).unwrap();
    bench.bus.trouble(Trouble::WillNotStop);
    bench.bus.keep_memory();
    let error = queue.poll(LONG, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, NvmeError::Broken { .. }), "{error}");
    drop(queue);
    assert_eq!(bench.pool.in_flight(), 3);
}

#[test]
fn a_stuck_admin_queue_leads_to_a_reset_and_an_end() {
    let bench = bench(ModelOptions::default());
    let mut queue = bench.queue();
    let slot = bench.attach(&mut queue, "a");
    bench.bus.trouble(Trouble::Stuck(1));
    bench.bus.trouble(Trouble::AdminStuck);
    bench.write(&mut queue, slot, 0);
    let ends = finish(&mut queue);
    assert_eq!(failed(&ends), 1);
    assert!(!bench.controller.is_alive(), "without an admin queue nothing can be opened");
    drop((ends, queue));
    bench.check();
}

#[test]
fn files_of_other_disks_and_places_beyond_the_end_are_refused() {
    let (bench, other) = (bench(ModelOptions::default()), bench(ModelOptions::default()));
    let mut queue = bench.queue();
    let dir = tempfile::tempdir().unwrap();
    let plain = wirevault_media::DirMedia::open(dir.path()).unwrap();
    let plain = plain.open("a", OpenMode::Create).unwrap();
    assert!(matches!(queue.attach(&plain), Err(NvmeError::WrongFile { .. })));
    // 64 MiB hold four files; the fifth lies behind the end.
    for name in ["a", "b", "c", "d"] {
        bench.media.open(name, OpenMode::Create).unwrap();
    }
    let beyond = bench.media.open("e", OpenMode::Create).unwrap();
    assert!(matches!(queue.attach(&beyond), Err(NvmeError::WrongFile { .. })));
    let slot = bench.attach(&mut queue, "d");
    let buf = bench.pool.take().unwrap();
    let end = suite::FILE_BYTES - LBA_BYTES as u64;
    let refused = queue.write(slot, end, buf, 2 * LBA_BYTES, 1).unwrap_err();
    assert!(matches!(refused.error, NvmeError::Offset { .. }), "{}", refused.error);
    queue.write(slot, end, refused.buf, LBA_BYTES, 2).unwrap();
    assert_eq!(failed(&finish(&mut queue)), 0);
    assert!(bench.disk.read_at(&mut vec![0; LBA_BYTES], bench.disk.bytes()).is_err());
    assert!(bench.disk.read_at(&mut [0; 512], 0).is_err());
    drop(queue);
    bench.check();
    other.check();
}

#[test]
fn commands_have_the_time_that_the_kernel_was_told_to_leave_them() {
    let dir = tempfile::tempdir().unwrap();
    let roots = Roots { sys: dir.path().to_owned(), ..Roots::default() };
    let told = |kind| {
        let device = a_device("nvme7n1", kind);
        ControllerOptions::as_patient_as_the_kernel(&roots, &device).command_timeout.as_secs()
    };
    assert_eq!(told(DeviceKind::Nvme), 30);
    let put = |path: &str, text: &str| {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    for (text, seconds) in [("60\n", 60), ("0\n", 30), ("?\n", 30)] {
        put("module/nvme_core/parameters/io_timeout", text);
        assert_eq!(told(DeviceKind::Nvme), seconds, "{text}");
    }
    put("block/nvme7n1/queue/io_timeout", "45000\n");
    assert_eq!(told(DeviceKind::InstanceStore), 45, "the device's own goes first");
}

/// With Amazon's images a lost completion of a local disk was waited for without end.
#[test]
fn no_local_device_is_waited_for_without_end() {
    let dir = tempfile::tempdir().unwrap();
    let roots = Roots { sys: dir.path().to_owned(), ..Roots::default() };
    let set = dir.path().join("module/nvme_core/parameters");
    std::fs::create_dir_all(&set).unwrap();
    std::fs::write(set.join("io_timeout"), "4294967295\n").unwrap();
    for (kind, seconds) in [
        (DeviceKind::Nvme, 90),
        (DeviceKind::InstanceStore, 90),
        (DeviceKind::Ebs, u64::from(u32::MAX)),
    ] {
        let device = a_device("nvme7n1", kind);
        let options = ControllerOptions::as_patient_as_the_kernel(&roots, &device);
        assert_eq!(options.command_timeout.as_secs(), seconds, "{kind}");
    }
}

fn a_device(name: &str, kind: DeviceKind) -> Device {
    Device {
        name: name.to_owned(),
        node: format!("/dev/{name}").into(),
        by_id: None,
        number: (259, 7),
        kind,
        model: String::new(),
        serial: String::new(),
        bytes: 1 << 30,
        lba_bytes: 512,
        physical_block_bytes: 4096,
        transfer_bytes_max: 128 << 10,
        volatile_cache: false,
        fua: false,
        polled_queues: false,
        discard_bytes_max: 0,
        read_only: false,
        numa_node: None,
        nvme: None,
        uses: Vec::new(),
    }
}

/// The abort came late, because nobody looked; the device had no time left to end the command.
#[test]
fn an_aborted_command_has_its_grace_from_the_abort_on() {
    let bench = bench(ModelOptions::default());
    let mut queue = bench.queue();
    let slot = bench.attach(&mut queue, "a");
    bench.bus.trouble(Trouble::Deaf(1));
    bench.write(&mut queue, slot, 0);
    let mut out = Vec::new();
    queue.poll(Duration::ZERO, &mut out).unwrap();
    bench.bus.stand_still(1, (COMMAND_TIMEOUT + ADMIN_TIMEOUT).as_nanos() as u64);
    queue.poll(Duration::ZERO, &mut out).unwrap();
    assert_eq!((bench.bus.aborts(), bench.controller.resets()), (1, 0));
    queue.poll(ADMIN_TIMEOUT / 2, &mut out).unwrap();
    assert_eq!(bench.controller.resets(), 0, "it has not had its time");
    let ends = finish(&mut queue);
    assert_eq!((failed(&ends), bench.controller.resets()), (1, 1));
    drop((ends, queue));
    bench.check();
}

#[test]
fn a_thread_that_stands_still_before_the_doorbell_aborts_nothing() {
    let bench = bench(ModelOptions::default());
    let mut queue = bench.queue();
    let slot = bench.attach(&mut queue, "a");
    // The queue looks when it is polled, and again when it takes the command.
    bench.bus.stand_still(2, 2 * COMMAND_TIMEOUT.as_nanos() as u64);
    bench.write(&mut queue, slot, 0);
    assert_eq!(failed(&finish(&mut queue)), 0);
    assert_eq!(bench.bus.aborts(), 0);
    drop(queue);
    bench.check();
}

#[test]
fn an_answer_that_comes_late_is_not_read_as_another() {
    let bench = bench(ModelOptions::default());
    let admin_ns = ADMIN_TIMEOUT.as_nanos() as u64;
    bench.bus.trouble(Trouble::AdminLate(admin_ns + admin_ns / 4));
    let ask = Command::log_page(log::SMART, ALL_NAMESPACES, 512);
    let error = bench.controller.read(&ask, &mut [0; 512]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    // Both answers are there when the driver looks.
    bench.bus.stand_still(1, admin_ns / 2);
    let mut page = [0; IDENTIFY_BYTES];
    bench.controller.read(&Command::identify(1, 0), &mut page).unwrap();
    assert_eq!(&page[4..9], b"MODEL", "the answer to something else");
    bench.check();
}

#[test]
fn what_a_device_cannot_deallocate_it_zeroes() {
    let model = ModelOptions { can_deallocate: false, ..ModelOptions::default() };
    for can_write_zeroes in [true, false] {
        let bench = bench(ModelOptions { can_write_zeroes, ..model.clone() });
        let bytes = 3 * CHUNK_BYTES;
        bench.bus.put(0, &vec![7; bytes + LBA_BYTES]);
        let taken = bench.disk.discard(LBA_BYTES as u64, (bytes - LBA_BYTES) as u64).unwrap();
        assert_eq!(taken, can_write_zeroes);
        let found = bench.bus.bytes_at(0, bytes + LBA_BYTES);
        let byte = if can_write_zeroes { 0 } else { 7 };
        assert!(found[LBA_BYTES..bytes].iter().all(|found| *found == byte));
        assert!(found[..LBA_BYTES].iter().chain(&found[bytes..]).all(|found| *found == 7));
        bench.check();
    }
}

#[test]
fn queues_are_limited_and_given_back() {
    let bench = bench(ModelOptions { pairs: 3, ..ModelOptions::default() });
    for _ in 0..5 {
        // The blocking calls have the third.
        let queues = [bench.queue(), bench.queue()];
        let options = QueueOptions::default();
        let error = VfioQueue::new(&bench.controller, &options).err().expect("no queue is left");
        assert!(error.to_string().contains("in use"), "{error}");
        drop(queues);
    }
    bench.check();
}

#[test]
fn devices_that_cannot_be_used_say_why() {
    let start = |options, trouble: Option<Trouble>| {
        let bus = ModelBus::new(options).unwrap();
        trouble.into_iter().for_each(|trouble| bus.trouble(trouble));
        Controller::start(bus, ControllerOptions::default(), None).err().unwrap().to_string()
    };
    let options = ModelOptions::default();
    let cases = [
        (start(options.clone(), Some(Trouble::Gone)), "gone"),
        (start(options.clone(), Some(Trouble::Fatal)), "fatal"),
        (start(options.clone(), Some(Trouble::AdminStuck)), "no answer"),
        (start(ModelOptions { block_bytes: 8192, ..options.clone() }, None), "8192 bytes"),
        (start(ModelOptions { entries: 16, ..options }, None), "32 entries"),
    ];
    for (text, word) in cases {
        assert!(text.contains(word) && text.contains("model"), "{text}");
    }
}

#[test]
fn a_controller_says_what_it_is_and_how_it_is() {
    let bench = bench(ModelOptions::default());
    let facts = bench.controller.facts();
    assert_eq!((facts.controller.serial.as_str(), facts.namespace_id), ("MODEL", 1));
    assert_eq!((facts.bytes(), facts.transfer_bytes_max, facts.pairs), (64 << 20, 128 << 10, 4));
    // The model fills every log page with 5Ah.
    let health = Health::read(bench.controller.as_ref(), facts.namespace_id).unwrap();
    assert_eq!(health.controller.serial, "MODEL");
    assert_eq!(health.namespace.unwrap().lba_bytes, Some(512));
    assert_eq!(health.smart.unwrap().spare_percent, 0x5a);
    assert_eq!(health.why_not, Vec::<String>::new());
    let long = Command::log_page(2, 1, 8192);
    let refused = bench.controller.read(&long, &mut vec![0; 8192]).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::InvalidInput, "{refused}");
    bench.check();
}

#[test]
fn blocking_calls_come_from_many_threads_beside_a_queue() {
    // Threads that wait make the model's time pass. One that does not run meanwhile is not late.
    let bench = bench_with(ModelOptions::default(), LONG, LONG);
    let mut queue = bench.queue();
    let slot = bench.attach(&mut queue, "a");
    std::thread::scope(|scope| {
        for n in 0..3u64 {
            let disk = &bench.disk;
            scope.spawn(move || {
                let place = (32 << 20) + n * (1 << 20);
                let written = vec![n as u8 + 7; 600 << 10];
                disk.write_at(&written, place).unwrap();
                disk.flush().unwrap();
                let mut found = vec![0; written.len()];
                disk.read_at(&mut found, place).unwrap();
                assert!(found == written);
            });
        }
        for n in 0..20 {
            bench.write(&mut queue, slot, n);
            assert_eq!(failed(&finish(&mut queue)), 0);
        }
    });
    drop(queue);
    bench.check();
}

#[test]
fn tokens_come_back_once_whatever_the_order() {
    let bench = bench(ModelOptions { mdts: 1, entries: 40, ..ModelOptions::default() });
    let mut queue = bench.queue();
    let slot = bench.attach(&mut queue, "a");
    let mut seen = HashSet::new();
    for round in 0..10 {
        for n in 0..DEPTH as u64 {
            bench.write(&mut queue, slot, n + round % 4 * DEPTH as u64);
        }
        for end in finish(&mut queue) {
            end.result().as_ref().unwrap();
            assert!(seen.insert((round, end.token())));
        }
    }
    assert_eq!(seen.len(), 10 * DEPTH);
    drop(queue);
    bench.check();
}

/// What the store does with a device, on one of ours: parts of any length, one writer, and places
/// that are empty once they were given up.
#[test]
fn a_volume_keeps_its_parts_apart_and_forgets_what_is_given_up() {
    let bench = bench(ModelOptions::default());
    let open = || Arc::new(VfioVolume::open(&bench.controller, "the name").unwrap());
    let volume = BlockMedia::over(open()).unwrap();
    volume
        .lay_out(&Shape {
            volume_bytes: 1 << 20,
            digests_bytes: 0,
            place_bytes: 4 << 20,
            places: 3,
        })
        .unwrap();
    let lock = volume.lock().unwrap();
    assert!(volume.lock().unwrap_err().is_locked());
    drop(lock);
    drop(volume.lock().unwrap());

    let write = |name: &str, byte: u8| {
        let file = volume.open(name, OpenMode::CreateNew).unwrap();
        file.write_at(&[byte; 10_000], 5_000).unwrap();
        file.sync().unwrap();
        file.extent().unwrap().start as usize
    };
    let [first, second] = [write("000000.pcapng", 1), write("000001.pcapng", 2)];
    assert_eq!(bench.bus.durable_at(second + 4_999, 10_002)[..2], [0, 2]);
    let reader = BlockMedia::over(open()).unwrap().open("000000.pcapng", OpenMode::Read).unwrap();
    let mut found = [0; 3];
    reader.read_exact_at(&mut found, 4_998).unwrap();
    assert_eq!(found, [0, 0, 1]);
    assert!(reader.write_at(&[0; 4096], 0).is_err(), "it is open to read only");

    volume.remove("000000.pcapng").unwrap();
    assert!(bench.bus.bytes_at(first, 4 << 20).iter().all(|byte| *byte == 0));
    assert_eq!(bench.bus.bytes_at(second + 5_000, 1), [2], "the neighbour stays");
    drop((reader, volume));
    bench.check();
}
