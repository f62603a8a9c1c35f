//! NVMe commands through the real driver: the queues' suite, and errors of the device.

use serde_json::json;
use wirevault_tests::vm::{Fault, Kind, NvmeOptions, Vm};

const MIB: u64 = 1 << 20;
/// As much as the suite's files take, and the empty place before them.
const BYTES: u64 = 96 * MIB;

#[test]
fn commands_keep_the_rules_of_queues() {
    let mut vm = Vm::restore(Kind::Plain);
    vm.add_nvme(&NvmeOptions::new("SMALL", BYTES));
    // Chunks take two commands each: MDTS of 5 is 128 KiB.
    let halves = json!({"mdts": 5});
    let large =
        NvmeOptions { block_bytes: 4096, properties: halves, ..NvmeOptions::new("LARGE", BYTES) };
    vm.add_nvme(&large);
    let devices = vm.ok("lab-queues devices");
    for (serial, facts) in
        [("SMALL", "lba=512 transfer=524288 "), ("LARGE", "lba=4096 transfer=131072 ")]
    {
        let line = devices.lines().find(|line| line.starts_with(serial)).expect("found by serial");
        for fact in [facts, "kind=nvme ", "cache=true ", "polled=true ", "generic=true ", "uses=[]"]
        {
            assert!(line.contains(fact), "{fact}: {line}");
        }
        let said = vm.ok(&format!("lab-queues suite {serial}"));
        assert!(said.ends_with("all checks passed\n"), "{said}");
    }
    vm.finish();
}

#[test]
fn errors_of_a_device_are_told_as_it_tells_them() {
    let mut vm = Vm::restore(Kind::Plain);
    let disk = vm.add_nvme(&NvmeOptions::new("FAULTY", BYTES));
    assert_eq!(vm.ok("lab-queues write FAULTY"), "ok\nok\n");
    vm.fail(&disk, Fault::Writes);
    let said = vm.ok("lab-queues write FAULTY");
    assert!(
        said.starts_with("failed: the device answered write fault (NVMe status 0x280"),
        "{said}"
    );
    assert!(said.contains("refused: ") && !said.contains("ok"), "{said}");
    vm.heal(&disk);
    assert_eq!(vm.ok("lab-queues write FAULTY"), "ok\nok\n");
    vm.fail(&disk, Fault::Flushes);
    let said = vm.ok("lab-queues write FAULTY");
    assert!(said.starts_with("ok\nfailed: the device answered "), "{said}");
    // QEMU itself cannot flush now, so it does not let go of the fault.
    vm.finish();
}

#[test]
fn a_device_tells_of_its_health() {
    let mut vm = Vm::restore(Kind::Plain);
    let disk = vm.add_nvme(&NvmeOptions::new("WELL", BYTES));
    vm.ok(&format!("dd if=/dev/zero of={} bs=1M count=4 oflag=direct", disk.block));
    let said = vm.ok("lab-queues health WELL");
    // QEMU's devices are at 323 K, hold 512 KiB a command, and keep no error log.
    for fact in [
        "celsius=Some(50) ",
        "warnings=[] ",
        "lba=Some(512) cache=true transfer=Some(524288) errors=0 amazon=false why_not=[]",
    ] {
        assert!(said.contains(fact), "{fact}: {said}");
    }
    const DEGRADED: u8 = 4;
    vm.warn(&disk, DEGRADED);
    let said = vm.ok("lab-queues health WELL");
    assert!(said.contains("reliability is degraded"), "{said}");
    vm.finish();
}
