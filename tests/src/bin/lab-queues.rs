//! Device queues on devices of a virtual machine.
//!
//! ```text
//!  lab-queues devices            a line for each NVMe namespace
//!  lab-queues health SERIAL      what the device says of its health
//!  lab-queues suite SERIAL       every check of the queues' suite, over NVMe commands in each mode
//!  lab-queues write SERIAL       one write and one sync; prints how they ended
//! ```

#[path = "../../../nvme/tests/conformance/extents.rs"]
mod extents;
#[path = "../../../nvme/tests/conformance/suite.rs"]
mod suite;

use std::process::ExitCode;
use std::time::Duration;

use wirevault_media::{Media, OpenMode};
use wirevault_nvme::admin::AdminNode;
use wirevault_nvme::device::{Roots, discover};
use wirevault_nvme::{
    Completion, Device, Health, PassthroughQueue, Queue, QueueOptions, open_best,
};

use extents::ExtentMedia;
use suite::{Bench, DEPTH, EVERY, STORING, options, pool};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["devices"] => devices(),
        ["suite", serial] => run_suite(&device(serial)),
        ["health", serial] => health(&device(serial)),
        ["write", serial] => write(&device(serial)),
        _ => {
            eprintln!("lab-queues devices | health SERIAL | suite SERIAL | write SERIAL");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

fn device(serial: &str) -> Device {
    let found = discover(&Roots::default()).unwrap_or_else(|error| panic!("{error}"));
    let known = found.into_iter().find(|device| device.serial == serial);
    known.unwrap_or_else(|| panic!("no device has serial number {serial}"))
}

fn devices() {
    for device in discover(&Roots::default()).unwrap_or_else(|error| panic!("{error}")) {
        let Some(nvme) = &device.nvme else { continue };
        let uses: Vec<_> = device.uses.iter().map(ToString::to_string).collect();
        let generic = nvme.generic_node.is_some();
        println!(
            "{} model={:?} kind={} bytes={} lba={} transfer={} cache={} polled={} \
             generic={generic} controllers={} uses={uses:?}",
            device.serial,
            device.model,
            device.kind,
            device.bytes,
            device.lba_bytes,
            device.transfer_bytes_max,
            device.volatile_cache,
            device.polled_queues,
            nvme.controllers.len(),
        );
    }
}

fn health(device: &Device) {
    let nvme = device.nvme.as_ref().expect("a namespace");
    let admin = AdminNode::open(&nvme.controllers[0].node).unwrap_or_else(|e| panic!("{e}"));
    let health = Health::read(&admin, nvme.id).unwrap_or_else(|error| panic!("{error}"));
    let smart = health.smart.as_ref().expect("health");
    assert_eq!(
        (&health.controller.serial, &health.controller.model),
        (&device.serial, &device.model)
    );
    println!(
        "celsius={:?} writes={} written={} warnings={:?} lba={:?} cache={} transfer={:?} errors={} \
         amazon={} why_not={:?}",
        smart.celsius(),
        smart.writes,
        smart.written_bytes,
        health.warnings(),
        health.namespace.and_then(|it| it.lba_bytes),
        health.controller.volatile_cache,
        health.controller.transfer_bytes_max,
        health.errors.len(),
        health.amazon.is_some(),
        health.why_not,
    );
}

fn run_suite(device: &Device) {
    for (name, check) in STORING.iter().chain(EVERY) {
        for (label, polling, registered) in [
            ("interrupts, registered memory", false, true),
            ("polled, registered memory", true, true),
            ("polled, any memory", true, false),
            ("interrupts, any memory", false, false),
        ] {
            println!("{name}: {label}");
            check(bench(device, label, polling, registered));
        }
    }
    for (name, check) in STORING {
        println!("{name}: the best");
        let pool = pool(DEPTH + 4);
        let mut queue = open_best(&options(true), pool.arena()).unwrap_or_else(|e| panic!("{e}"));
        let media = Box::new(ExtentMedia::open(&device.node));
        let first = media.open("first", OpenMode::Create).expect("file");
        let slot = queue.attach(&first).unwrap_or_else(|error| panic!("{error}"));
        let report = queue.report();
        assert_eq!(report.backend, "passthrough", "{report:?}");
        queue.detach(slot).unwrap_or_else(|error| panic!("{error}"));
        check(Bench { label: "the best", queue, media, pool, _dir: None });
    }
    println!("all checks passed");
}

fn bench(device: &Device, label: &'static str, polling: bool, registered: bool) -> Bench {
    let pool = pool(DEPTH + 4);
    let options = QueueOptions { polling, ..options(true) };
    let arena = registered.then(|| pool.arena());
    let queue = PassthroughQueue::open(&options, arena, device)
        .unwrap_or_else(|error| panic!("{label}: {error}"));
    let report = queue.report();
    assert_eq!(report.registered_buffers, registered, "{label}: {report:?}");
    assert_eq!(report.polled, polling && device.polled_queues, "{label}: {report:?}");
    assert!(report.registered_files && report.flushes, "{label}: {report:?}");
    let media = Box::new(ExtentMedia::open(&device.node));
    Bench { label, queue: Box::new(queue), media, pool, _dir: None }
}

fn write(device: &Device) {
    let mut bench = bench(device, "write", false, true);
    let file = bench.media.open("a", OpenMode::Create).expect("file");
    let slot = bench.queue.attach(&file).unwrap_or_else(|error| panic!("{error}"));
    let tell = |ends: Vec<Completion>| {
        for end in ends {
            match end.result() {
                Ok(()) => println!("ok"),
                Err(error) => println!("failed: {error} ({:?})", error.kind()),
            }
        }
    };
    bench.queue.write(slot, 0, bench.buf(1), 4096, 1).unwrap_or_else(|error| panic!("{error}"));
    tell(bench.finish());
    match bench.queue.sync(slot, 2) {
        Ok(()) => tell(bench.finish()),
        Err(error) => println!("refused: {error}"),
    }
    let _ = bench.queue.poll(Duration::ZERO, &mut Vec::new());
}
