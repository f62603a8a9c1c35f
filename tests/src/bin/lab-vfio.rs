//! Our own driver on devices of a virtual machine.
//!
//! ```text
//!  lab-vfio why-not SERIAL    why the device cannot be taken, a line for each reason
//!  lab-vfio suite SERIAL      every check of the queues' suite, then hands the device back
//!  lab-vfio write SERIAL      one write and one sync; prints how they ended; hands it back
//!  lab-vfio speed SERIAL N    N chunks, many in flight, from hugepages; prints the rate
//!  lab-vfio health SERIAL     what the device says of itself, and its temperature
//!  lab-vfio hold SERIAL       takes the device and writes until it is killed
//!  lab-vfio return            hands back what a killed one left
//! ```

#[path = "../../../nvme/tests/conformance/suite.rs"]
mod suite;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wirevault_buffer::{Arena, ArenaOptions, Hugepages, Pool};
use wirevault_format::limits::CHUNK_BYTES;
use wirevault_media::notes::NOTES;
use wirevault_media::{BlockMedia, Media, Shape};
use wirevault_nvme::device::{Roots, discover};
use wirevault_nvme::vfio::{
    Binder, Controller, ControllerOptions, PciAddress, VfioBus, VfioVolume,
};
use wirevault_nvme::{Completion, Health, Queue, VfioQueue};

use suite::{Bench, DEPTH, EVERY, FILE_BYTES, STORING, drain, options, pool};

/// Files of the suite.
const FILES: u32 = 4;
/// Chunks in the memory of `speed` and `hold`: 4 MiB, two hugepages.
const CHUNKS: usize = 16;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let binder = Binder::new(Roots::default(), NOTES);
    match arguments.as_slice() {
        ["why-not", serial] => why_not(&binder, address(serial)),
        ["suite", serial] => lent(&binder, address(serial), run_suite),
        ["health", serial] => lent(&binder, address(serial), health),
        ["write", serial] => lent(&binder, address(serial), write),
        ["speed", serial, chunks] => {
            let chunks = chunks.parse().unwrap_or_else(|error| panic!("{chunks}: {error}"));
            lent(&binder, address(serial), |binder, address| speed(binder, address, chunks));
        }
        ["hold", serial] => hold(&binder, address(serial)),
        ["return"] => {
            for address in binder.give_back_all().unwrap_or_else(|error| panic!("{error}")) {
                println!("{address}");
            }
        }
        _ => {
            eprintln!("lab-vfio why-not|suite|health|write|speed|hold SERIAL | return");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

fn address(serial: &str) -> PciAddress {
    let found = discover(&Roots::default()).unwrap_or_else(|error| panic!("{error}"));
    let device = found.into_iter().find(|device| device.serial == serial);
    let device = device.unwrap_or_else(|| panic!("no device has serial number {serial}"));
    Binder::address_of(&device).unwrap_or_else(|| panic!("{serial} is not on a PCI bus"))
}

fn why_not(binder: &Binder, address: PciAddress) {
    for reason in binder.why_not(address).unwrap_or_else(|error| panic!("{error}")) {
        println!("{reason}");
    }
}

/// Takes a device, works with it, and hands it back.
fn lent(binder: &Binder, address: PciAddress, work: impl FnOnce(&Binder, PciAddress)) {
    let taken = binder.take(address, &[]).unwrap_or_else(|error| panic!("{error}"));
    work(binder, address);
    binder.give_back(taken).unwrap_or_else(|error| panic!("{error}"));
}

fn start(binder: &Binder, address: PciAddress, arena: Option<&Arena>) -> Arc<Controller<VfioBus>> {
    let bus = VfioBus::open(binder, address).unwrap_or_else(|error| panic!("{error}"));
    Controller::start(bus, ControllerOptions::default(), arena)
        .unwrap_or_else(|error| panic!("{error}"))
}

fn bench(binder: &Binder, address: PciAddress, label: &'static str, mapped: bool) -> Bench {
    let pool = pool(DEPTH + 4);
    let controller = start(binder, address, mapped.then(|| pool.arena()));
    let queue = VfioQueue::new(&controller, &options(true)).unwrap_or_else(|e| panic!("{e}"));
    let report = queue.report();
    assert_eq!(report.registered_buffers, mapped, "{report:?}");
    assert!(report.polled && report.flushes, "{report:?}");
    let media = Box::new(volume(&controller));
    Bench { label, queue: Box::new(queue), media, pool, _dir: None }
}

/// The namespace, laid out for the suite's files unless it is so already.
fn volume(controller: &Arc<Controller<VfioBus>>) -> BlockMedia {
    let volume = VfioVolume::open(controller, "volume").unwrap_or_else(|error| panic!("{error}"));
    let media = BlockMedia::over(Arc::new(volume)).unwrap_or_else(|error| panic!("{error}"));
    if media.label().is_none() {
        let shape = Shape {
            volume_bytes: 1 << 20,
            digests_bytes: 0,
            place_bytes: FILE_BYTES,
            places: FILES,
        };
        media.lay_out(&shape).unwrap_or_else(|error| panic!("{error}"));
    }
    media
}

fn run_suite(binder: &Binder, address: PciAddress) {
    for (label, mapped) in [("arena mapped", true), ("chunks copied", false)] {
        for (name, check) in STORING.iter().chain(EVERY) {
            println!("{name}: {label}");
            let bench = bench(binder, address, label, mapped);
            // Checks read zeros where they did not write.
            let zeros = vec![0; 4 << 20];
            for name in ["a", "b"] {
                let file = bench.open(name);
                for at in (0..FILE_BYTES).step_by(zeros.len()) {
                    file.write_at(&zeros, at).unwrap_or_else(|error| panic!("{error}"));
                }
            }
            check(bench);
        }
    }
    println!("all checks passed");
}

fn health(binder: &Binder, address: PciAddress) {
    let controller = start(binder, address, None);
    let id = controller.facts().namespace_id;
    let health = Health::read(controller.as_ref(), id).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(health.why_not, Vec::<String>::new());
    let kelvin = health.smart.map(|smart| smart.kelvin);
    let lba_bytes = health.namespace.and_then(|namespace| namespace.lba_bytes);
    println!("{} {} {lba_bytes:?} {kelvin:?}", health.controller.model, health.controller.serial);
}

fn write(binder: &Binder, address: PciAddress) {
    let mut bench = bench(binder, address, "write", true);
    let (slot, _file) = bench.file("a");
    let tell = |ends: Vec<Completion>| {
        for end in ends {
            match end.result() {
                Ok(()) => println!("ok"),
                Err(error) => println!("failed: {error} ({:?})", error.kind()),
            }
        }
    };
    let chunk = bench.buf(b'W');
    bench.queue.write(slot, 0, chunk, CHUNK_BYTES, 1).unwrap_or_else(|error| panic!("{error}"));
    tell(bench.finish());
    match bench.queue.sync(slot, 2) {
        Ok(()) => tell(bench.finish()),
        Err(error) => println!("refused: {error}"),
    }
}

/// A queue with memory of hugepages.
fn on_hugepages(binder: &Binder, address: PciAddress) -> Bench {
    let bytes = CHUNKS * CHUNK_BYTES;
    let memory = ArenaOptions { bytes, hugepages: Hugepages::TwoMiB, numa_node: None };
    let arena = Arena::new(memory).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(arena.report().huge_bytes, bytes, "{:?}", arena.report());
    let controller = start(binder, address, Some(&arena));
    let queue = VfioQueue::new(&controller, &options(true)).unwrap_or_else(|e| panic!("{e}"));
    let media = Box::new(volume(&controller));
    let pool = Pool::new(arena);
    Bench { label: "hugepages", queue: Box::new(queue), media, pool, _dir: None }
}

/// Writes chunks one behind the other, as many as fit in flight, round and round in one file.
fn fill(bench: &mut Bench, chunks: u64, mut ended: impl FnMut(u64)) {
    let (slot, _file) = bench.file("a");
    let (mut sent, mut out) = (0, Vec::new());
    while sent < chunks || bench.queue.in_flight() > 0 {
        while sent < chunks && bench.queue.in_flight() < DEPTH {
            let chunk = bench.pool.take().expect("more chunks than fit in flight");
            let at = sent * CHUNK_BYTES as u64 % FILE_BYTES;
            bench.queue.write(slot, at, chunk, CHUNK_BYTES, sent).expect("room");
            sent += 1;
        }
        bench.queue.poll(Duration::from_millis(100), &mut out).expect("queue");
        for end in out.drain(..) {
            end.result().as_ref().unwrap_or_else(|error| panic!("{error}"));
            ended(end.token());
        }
    }
    bench.queue.sync(slot, u64::MAX).expect("sync");
    drain(bench.queue.as_mut(), &mut out);
    out[0].result().as_ref().unwrap_or_else(|error| panic!("{error}"));
}

fn speed(binder: &Binder, address: PciAddress, chunks: u64) {
    let mut bench = on_hugepages(binder, address);
    let began = Instant::now();
    let mut count = 0;
    fill(&mut bench, chunks, |_| count += 1);
    assert_eq!(count, chunks);
    let mib = chunks as f64 * CHUNK_BYTES as f64 / f64::from(1 << 20);
    println!("{mib} MiB, {:.0} MiB/s", mib / began.elapsed().as_secs_f64());
}

fn hold(binder: &Binder, address: PciAddress) {
    let _taken = binder.take(address, &[]).unwrap_or_else(|error| panic!("{error}"));
    let mut bench = on_hugepages(binder, address);
    fill(&mut bench, u64::MAX, |token| {
        if token == DEPTH as u64 {
            println!("writing");
        }
    });
}
