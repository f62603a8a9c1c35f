//! One suite over every back end. See [`suite`].
//!
//! Queues that cannot be had here are skipped loudly; with WIREVAULT_NO_SKIP set a skip is a
//! failure.

mod extents;
mod suite;

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use wirevault_buffer::{Arena, Pool};
use wirevault_format::limits::{CHUNK_BYTES, LBA_BYTES};
use wirevault_media::{
    BlockMedia, DirMedia, Fault, Media, MediaFile, OpenMode, Shape, SimMedia, Trigger,
};
use wirevault_nvme::passthrough::sim::SimCommands;
use wirevault_nvme::passthrough::{PassthroughQueue, TRIES_MAX, Target};
use wirevault_nvme::spec::Status;
use wirevault_nvme::vfio::model::{ModelBus, ModelOptions};
use wirevault_nvme::vfio::{Controller, ControllerOptions, VfioVolume};
use wirevault_nvme::{
    Completion, NullQueue, NvmeError, Queue, SimOptions, SimQueue, ThreadQueue, UringQueue,
    VfioQueue, is_poisoned,
};

use extents::ExtentMedia;
use suite::{Bench, DEPTH, EVERY, SLOTS, STORING, drain, options, pool};

fn uring(direct: bool, arena: Option<&Arena>) -> Option<Box<dyn Queue>> {
    match UringQueue::new(&options(direct), arena) {
        Ok(queue) => Some(Box::new(queue)),
        Err(e) => {
            eprintln!("skipped: {e}");
            assert!(std::env::var_os("WIREVAULT_NO_SKIP").is_none(), "skips are failures here");
            None
        }
    }
}

/// Queues that store what they are given.
fn storing() -> Vec<Bench> {
    let mut benches = Vec::new();
    let mut on_dir = |label, make: &dyn Fn(&Pool) -> Option<Box<dyn Queue>>| {
        let pool = pool(DEPTH + 4);
        let dir = tempfile::tempdir().unwrap();
        let media = Box::new(DirMedia::open(dir.path()).unwrap());
        if let Some(queue) = make(&pool) {
            benches.push(Bench { label, queue, media, pool, _dir: Some(dir) });
        }
    };
    on_dir("uring direct", &|pool| uring(true, Some(pool.arena())));
    on_dir("uring buffered", &|pool| uring(false, Some(pool.arena())));
    on_dir("uring unregistered", &|_| uring(true, None));
    on_dir("thread direct", &|_| Some(Box::new(ThreadQueue::new(&options(true)).unwrap())));
    on_dir("thread buffered", &|_| Some(Box::new(ThreadQueue::new(&options(false)).unwrap())));
    for (label, direct) in [("uring on a device", true), ("uring on a device, buffered", false)] {
        let pool = pool(DEPTH + 4);
        if let Some(queue) = uring(direct, Some(pool.arena())) {
            benches.push(on_device(label, queue, pool));
        }
    }
    let thread = Box::new(ThreadQueue::new(&options(true)).unwrap());
    benches.push(on_device("thread on a device", thread, pool(DEPTH + 4)));
    let thread = Box::new(ThreadQueue::new(&options(true)).unwrap());
    benches.push(simulated("thread over sim", thread, SimMedia::new()));
    for seed in 0..4 {
        benches.push(simulated("sim", sim(seed), SimMedia::new()));
        benches.push(on_model(&model(seed)));
    }
    for (label, lba_bytes, transfer_bytes) in [
        ("passthrough", 512, CHUNK_BYTES),
        ("passthrough in pieces", 4096, CHUNK_BYTES / 4),
        ("passthrough in odd pieces", 512, 3 * LBA_BYTES),
    ] {
        for must_flush in [true, false] {
            let namespace = Target { lba_bytes, transfer_bytes, must_flush, ..namespace() };
            benches.push(passthrough(label, namespace, |_| ()));
        }
    }
    benches
}

/// Over a volume whose files are parts of one device.
fn on_device(label: &'static str, queue: Box<dyn Queue>, pool: Pool) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("device");
    File::create(&path).unwrap().set_len(150 << 20).unwrap();
    let media = BlockMedia::open(&path).unwrap();
    let shape = Shape {
        volume_bytes: 1 << 20,
        digests_bytes: 0,
        place_bytes: suite::FILE_BYTES,
        places: 8,
    };
    media.lay_out(&shape).unwrap();
    Bench { label, queue, media: Box::new(media), pool, _dir: Some(dir) }
}

fn namespace() -> Target {
    let bytes = 8 * suite::FILE_BYTES;
    let transfer_bytes = CHUNK_BYTES;
    Target { namespace: 1, lba_bytes: 4096, bytes, transfer_bytes, must_flush: true }
}

/// Commands to a simulated namespace, which is told first what goes wrong.
fn passthrough(
    label: &'static str,
    namespace: Target,
    tell: impl FnOnce(&mut SimCommands),
) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let device = dir.path().join("device");
    File::create(&device).unwrap().set_len(namespace.bytes).unwrap();
    let mut commands = SimCommands::open(&device, &namespace, DEPTH, 7).unwrap();
    tell(&mut commands);
    let queue = PassthroughQueue::over(&options(true), commands, namespace).unwrap();
    let media = Box::new(ExtentMedia::open(&device));
    Bench { label, queue: Box::new(queue), media, pool: pool(DEPTH + 4), _dir: Some(dir) }
}

/// A controller with small blocks, commands of half a chunk, and a volatile cache.
fn model(seed: u64) -> ModelBus {
    let bytes = 5 * suite::FILE_BYTES as usize;
    ModelBus::new(ModelOptions { seed, bytes, ..ModelOptions::default() }).unwrap()
}

/// A queue pair of our own on a model, for files of a volume there.
fn on_model(bus: &ModelBus) -> Bench {
    let pool = pool(DEPTH + 4);
    let controller = Controller::start(bus.clone(), ControllerOptions::default(), None).unwrap();
    controller.map_arena(pool.arena()).unwrap();
    let queue = Box::new(VfioQueue::new(&controller, &options(true)).unwrap());
    let volume = VfioVolume::open(&controller, "model").unwrap();
    let media = BlockMedia::over(Arc::new(volume)).unwrap();
    let shape = Shape {
        volume_bytes: 1 << 20,
        digests_bytes: 0,
        place_bytes: suite::FILE_BYTES,
        places: 4,
    };
    media.lay_out(&shape).unwrap();
    Bench { label: "vfio", queue, media: Box::new(media), pool, _dir: None }
}

fn sim(seed: u64) -> Box<dyn Queue> {
    Box::new(SimQueue::new(SimOptions { seed, depth: DEPTH, slots: SLOTS, delay_polls_max: 5 }))
}

fn simulated(label: &'static str, queue: Box<dyn Queue>, media: SimMedia) -> Bench {
    Bench { label, queue, media: Box::new(media), pool: pool(DEPTH + 4), _dir: None }
}

/// All queues.
fn every() -> Vec<Bench> {
    let mut benches = storing();
    let null = Box::new(NullQueue::new(&options(true)).unwrap());
    benches.push(simulated("null", null, SimMedia::new()));
    benches
}

#[test]
fn what_is_stored_is_found() {
    for (name, check) in STORING {
        for bench in storing() {
            println!("{name}: {}", bench.label);
            check(bench);
        }
    }
}

#[test]
fn every_queue_keeps_the_rules() {
    for (name, check) in EVERY {
        for bench in every() {
            println!("{name}: {}", bench.label);
            check(bench);
        }
    }
}

/// A failing file for each back end: /dev/full for real ones, an injected error for simulated ones.
fn failing() -> Vec<(Bench, Arc<dyn MediaFile>)> {
    let mut benches = Vec::new();
    for bench in storing() {
        if ["uring", "thread"].iter().any(|it| bench.label.starts_with(it))
            && bench.media.describe() != "simulated disk"
        {
            let bad = DirMedia::open("/dev").unwrap().open("full", OpenMode::ReadWrite).unwrap();
            benches.push((bench, bad));
        }
    }
    const CAPACITY_EXCEEDED: i32 = 0x4081;
    let bench = passthrough("passthrough", namespace(), |it| it.fail(2, CAPACITY_EXCEEDED));
    let bad = bench.media.open("bad", OpenMode::Create).unwrap();
    benches.push((bench, bad));
    for seed in 0..4 {
        let bus = model(seed);
        let bench = on_model(&bus);
        let bad = bench.open("bad");
        let place = bad.extent().unwrap();
        bus.fail(true, place.start..place.start + place.bytes, Status(0x081));
        benches.push((bench, bad));
    }
    let thread: Box<dyn Queue> = Box::new(ThreadQueue::new(&options(true)).unwrap());
    for (label, queue) in [("thread over sim", thread), ("sim", sim(1)), ("sim", sim(2))] {
        let media = SimMedia::new();
        media.inject(Trigger::Write(1), Fault::Enospc);
        let bad = media.open("bad", OpenMode::Create).unwrap();
        benches.push((simulated(label, queue, media), bad));
    }
    benches
}

#[test]
fn a_failed_write_poisons_its_file_and_no_other() {
    // Chunks with gaps between them, and chunks that follow each other.
    for step in [CHUNK_BYTES, LBA_BYTES] {
        failing().into_iter().for_each(|(bench, bad)| fail_a_write(bench, &bad, step as u64));
    }
}

fn fail_a_write(mut bench: Bench, bad: &Arc<dyn MediaFile>, step_bytes: u64) {
    let label = bench.label;
    let slot = bench.queue.attach(bad).unwrap();
    for n in 0..4u64 {
        bench.queue.write(slot, n * step_bytes, bench.buf(1), LBA_BYTES, n).unwrap();
    }
    let ends = bench.finish();
    assert_eq!(ends.len(), 4, "{label}");
    let failed = ends.iter().position(|e| e.result().is_err()).expect("the write failed");
    assert!(ends[failed..].iter().all(|e| e.result().is_err()), "{label}: {ends:?}");
    let first = ends[failed].result().as_ref().unwrap_err();
    assert!(!is_poisoned(first), "{label}: the first error is the device's own");
    assert_eq!(first.kind(), io::ErrorKind::StorageFull, "{label}: {first}");
    let refused = bench.queue.write(slot, 0, bench.buf(1), LBA_BYTES, 9).unwrap_err();
    assert!(refused.error.is_poisoned(), "{label}");
    assert!(bench.queue.sync(slot, 9).unwrap_err().is_poisoned(), "{label}");
    let (good, _file) = bench.file("a");
    bench.queue.write(good, 0, bench.buf(1), LBA_BYTES, 5).unwrap();
    assert!(bench.finish()[0].result().is_ok(), "{label}");
    bench.queue.detach(slot).unwrap();
    drop((ends, refused));
    assert_eq!(bench.pool.in_flight(), 0, "{label}");
}

#[test]
fn a_failed_sync_poisons_its_file() {
    let thread: Box<dyn Queue> = Box::new(ThreadQueue::new(&options(true)).unwrap());
    for queue in [thread, sim(3), sim(4)] {
        let media = SimMedia::new();
        media.inject(Trigger::Sync(1), Fault::Eio);
        let mut bench = simulated("sync", queue, media);
        let (slot, _file) = bench.file("a");
        bench.queue.write(slot, 0, bench.buf(1), LBA_BYTES, 0).unwrap();
        assert!(bench.finish()[0].result().is_ok());
        bench.queue.sync(slot, 1).unwrap();
        let ends = bench.finish();
        assert_eq!(ends[0].result().as_ref().unwrap_err().raw_os_error(), Some(libc::EIO));
        assert!(bench.queue.sync(slot, 2).unwrap_err().is_poisoned());
    }
}

#[test]
fn a_failed_flush_poisons_its_file() {
    let fault = i32::from(Status::WRITE_FAULT.0);
    let mut bench = passthrough("flush", namespace(), |it| it.fail(2, fault));
    let (slot, _file) = bench.file("a");
    bench.queue.write(slot, 0, bench.buf(1), LBA_BYTES, 0).unwrap();
    assert!(bench.finish()[0].result().is_ok());
    bench.queue.sync(slot, 1).unwrap();
    let ends = bench.finish();
    let error = ends[0].result().as_ref().unwrap_err();
    assert_eq!(Status::of(error), Some(Status::WRITE_FAULT));
    assert!(bench.queue.sync(slot, 2).unwrap_err().is_poisoned());
}

/// A reset cuts commands short that the block layer would repeat.
#[test]
fn commands_that_were_cut_short_are_repeated() {
    const ABORTED_BY_DRIVER: i32 = 0x371;
    let quarter = Target { transfer_bytes: CHUNK_BYTES / 4, ..namespace() };
    let mut bench = passthrough("repeated", quarter.clone(), |it| {
        for (nth, result) in [(1, -libc::EINTR), (3, ABORTED_BY_DRIVER), (5, -libc::EAGAIN)] {
            it.fail(nth, result);
        }
    });
    let (slot, file) = bench.file("a");
    bench.queue.write(slot, 0, bench.buf(7), CHUNK_BYTES, 0).unwrap();
    let ends = bench.finish();
    assert!(ends.len() == 1 && ends[0].result().is_ok(), "{ends:?}");
    let mut found = vec![0; CHUNK_BYTES];
    file.read_exact_at(&mut found, 0).unwrap();
    assert!(found.iter().all(|byte| *byte == 7));

    // Not for ever: the device may be gone.
    let mut bench = passthrough("gone", namespace(), |it| {
        (1..=u64::from(TRIES_MAX) + 1).for_each(|nth| it.fail(nth, -libc::EINTR));
    });
    let (slot, _file) = bench.file("a");
    bench.queue.write(slot, 0, bench.buf(7), CHUNK_BYTES, 0).unwrap();
    let ends = bench.finish();
    let error = ends[0].result().as_ref().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINTR));
}

/// A piece that fails fails its chunk, whichever piece ends last, and the chunk comes back.
#[test]
fn one_bad_piece_is_a_bad_chunk() {
    for nth in 1..=4 {
        let quarter = Target { transfer_bytes: CHUNK_BYTES / 4, ..namespace() };
        let fault = i32::from(Status::WRITE_FAULT.0);
        let mut bench = passthrough("piece", quarter, |it| it.fail(nth, fault));
        let (slot, _file) = bench.file("a");
        bench.queue.write(slot, 0, bench.buf(7), CHUNK_BYTES, 3).unwrap();
        let ends = bench.finish();
        assert_eq!(ends.len(), 1);
        let Completion::Write { token: 3, result: Err(error), .. } = &ends[0] else { panic!() };
        assert_eq!(Status::of(error), Some(Status::WRITE_FAULT));
        drop(ends);
        assert_eq!(bench.pool.in_flight(), 0);
    }
}

#[test]
fn only_places_on_the_device_are_attached() {
    let mut bench = passthrough("passthrough", namespace(), |_| ());
    let wrong = |bench: &mut Bench, file: &Arc<dyn MediaFile>| {
        matches!(bench.queue.attach(file), Err(NvmeError::WrongFile { .. }))
    };
    let dir = tempfile::tempdir().unwrap();
    let plain = DirMedia::open(dir.path()).unwrap().open("a", OpenMode::Create).unwrap();
    assert!(wrong(&mut bench, &plain), "a file of a file system");
    let device = dir.path().join("device");
    File::create(&device).unwrap();
    let other = ExtentMedia::open(&device).open("a", OpenMode::Create).unwrap();
    assert!(wrong(&mut bench, &other), "another device");
    let small = Target { bytes: suite::FILE_BYTES, ..namespace() };
    let mut bench = passthrough("small", small, |_| ());
    let behind = bench.media.open("a", OpenMode::Create).unwrap();
    assert!(wrong(&mut bench, &behind), "behind the end of the device");
    let mut bench = passthrough("passthrough", namespace(), |_| ());
    let (slot, _file) = bench.file("a");
    let beyond = bench.queue.write(slot, suite::FILE_BYTES - 4096, bench.buf(1), 8192, 1);
    let refused = beyond.unwrap_err();
    assert!(matches!(refused.error, NvmeError::Beyond { bytes: suite::FILE_BYTES, .. }));
    assert_eq!(bench.queue.in_flight(), 0);
}

#[test]
fn a_ring_belongs_to_the_thread_that_used_it_first() {
    let pool = pool(4);
    let Some(mut queue) = uring(true, Some(pool.arena())) else { return };
    if queue.report().why_not.iter().any(|r| r.contains("SINGLE_ISSUER")) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = DirMedia::open(dir.path()).unwrap().open("a", OpenMode::Create).unwrap();
    let slot = queue.attach(&file).unwrap();
    let mut queue = thread::scope(|scope| {
        let first = scope.spawn(|| {
            let mut out = Vec::new();
            queue.write(slot, 0, pool.take().unwrap(), CHUNK_BYTES, 1).unwrap();
            drain(queue.as_mut(), &mut out);
            assert!(out[0].result().is_ok());
            queue
        });
        first.join().unwrap()
    });
    queue.write(slot, 0, pool.take().unwrap(), CHUNK_BYTES, 2).unwrap();
    let e = queue.poll(Duration::ZERO, &mut Vec::new()).unwrap_err();
    assert!(matches!(e, NvmeError::WrongThread), "{e}");
    drop(queue);
    assert_eq!(pool.in_flight(), 1, "what may still be in the kernel's hands is never reused");
}

#[test]
fn the_report_tells_what_is_in_use() {
    for mut bench in storing() {
        let before = bench.queue.report();
        let is_device = before.backend == "passthrough";
        assert!(is_device || !before.o_direct, "{}: no file, no claim", bench.label);
        assert_eq!(before.backend, bench.queue.name());
        bench.file("a");
        let report = bench.queue.report();
        match bench.label {
            "uring buffered"
            | "uring on a device, buffered"
            | "thread buffered"
            | "thread over sim"
            | "sim" => {
                assert!(!report.o_direct, "{}", bench.label);
            }
            _ => assert!(report.o_direct || !report.why_not.is_empty(), "{}", bench.label),
        }
        if bench.label == "uring direct" {
            let said = |word: &str| report.why_not.iter().any(|r| r.contains(word));
            assert!(report.registered_buffers || said("memory"), "{report:?}");
            assert!(report.registered_files || said("files"), "{report:?}");
        }
    }
}

#[test]
#[ignore = "takes more than 1 GiB of memory"]
fn arenas_above_one_gib_are_registered_in_pieces() {
    let pool = pool((1 << 30) / CHUNK_BYTES + 1);
    assert_eq!(pool.arena().regions().len(), 2);
    let Some(mut queue) = uring(true, Some(pool.arena())) else { return };
    assert!(queue.report().registered_buffers, "{:?}", queue.report());
    let dir = tempfile::tempdir().unwrap();
    let file = DirMedia::open(dir.path()).unwrap().open("a", OpenMode::Create).unwrap();
    let slot = queue.attach(&file).unwrap();
    let mut all: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
    let mut last = all.pop().unwrap();
    assert_eq!(last.region_index(), 1);
    last.fill(9);
    queue.write(slot, 0, last, CHUNK_BYTES, 1).unwrap();
    let mut out = Vec::new();
    drain(queue.as_mut(), &mut out);
    assert!(out[0].result().is_ok(), "{out:?}");
    let mut found = vec![0; CHUNK_BYTES];
    file.read_exact_at(&mut found, 0).unwrap();
    assert!(found.iter().all(|b| *b == 9));
}
