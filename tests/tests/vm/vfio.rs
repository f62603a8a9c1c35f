//! Our own driver on emulated controllers behind an IOMMU: the queues' suite, errors, and what is
//! left to the kernel afterwards.

use serde_json::json;
use wirevault_tests::vm::{Disk, Fault, Kind, NvmeOptions, Vm};

const MIB: u64 = 1 << 20;
/// As much as the suite's files take.
const BYTES: u64 = 96 * MIB;

/// Waits until the kernel's driver has the device again; gives its block device.
fn kernel_has(vm: &mut Vm, disk: &Disk) -> String {
    let find = format!(
        "for d in /sys/class/nvme/nvme*; do [ \"$(echo $(cat $d/serial))\" = {} ] && \
         ls $d /sys/class/nvme-subsystem/*/ | grep -o 'nvme[0-9]*n[0-9]*$' | sort -u | \
         while read n; do [ -b /dev/$n ] && echo /dev/$n; done; done | head -n 1 | grep .",
        disk.serial
    );
    vm.wait_for("the kernel's driver to have the device", &find).trim().to_owned()
}

#[test]
fn queue_pairs_of_our_own_keep_the_rules() {
    let mut vm = Vm::restore(Kind::Iommu);
    let small = vm.add_nvme(&NvmeOptions::new("SMALL", BYTES));
    assert_eq!(vm.ok("lab-vfio why-not SMALL"), "");
    let said = vm.ok("lab-vfio suite SMALL");
    assert!(said.ends_with("all checks passed\n"), "{said}");
    eprintln!("{}", vm.ok("lab-vfio speed SMALL 1000"));

    // What went past the kernel is there for the kernel.
    assert_eq!(vm.ok("lab-vfio write SMALL"), "ok\nok\n");
    let block = kernel_has(&mut vm, &small);
    let count =
        format!("dd if={block} bs=256k count=1 skip=8 iflag=direct 2>/dev/null | tr -d W | wc -c");
    assert_eq!(vm.ok(&count).trim(), "0", "the chunk is all W");
    vm.finish();
}

#[test]
fn large_blocks_and_short_commands_keep_the_rules() {
    let mut vm = Vm::restore(Kind::Iommu);
    // Chunks take two commands each: MDTS of 5 is 128 KiB.
    let properties = json!({"mdts": 5});
    vm.add_nvme(&NvmeOptions { block_bytes: 4096, properties, ..NvmeOptions::new("LARGE", BYTES) });
    let said = vm.ok("lab-vfio suite LARGE");
    assert!(said.ends_with("all checks passed\n"), "{said}");
    vm.finish();
}

#[test]
fn health_and_errors_come_through_as_the_device_tells_them() {
    let mut vm = Vm::restore(Kind::Iommu);
    let disk = vm.add_nvme(&NvmeOptions::new("FAULTY", BYTES));
    let health = vm.ok("lab-vfio health FAULTY");
    assert_eq!(health, "QEMU NVMe Ctrl FAULTY Some(512) Some(323)\n");
    kernel_has(&mut vm, &disk);
    assert_eq!(vm.ok("lab-vfio write FAULTY"), "ok\nok\n");
    kernel_has(&mut vm, &disk);
    vm.fail(&disk, Fault::Writes);
    let said = vm.ok("lab-vfio write FAULTY");
    let fault = "failed: the device answered write fault (NVMe status 0x280";
    assert!(said.starts_with(fault) && said.contains("refused: "), "{said}");
    kernel_has(&mut vm, &disk);
    vm.heal(&disk);
    assert_eq!(vm.ok("lab-vfio write FAULTY"), "ok\nok\n");
    vm.finish();
}

#[test]
fn a_device_comes_back_from_a_killed_driver() {
    let mut vm = Vm::restore(Kind::Iommu);
    let disk = vm.add_nvme(&NvmeOptions::new("HELD", BYTES));
    let pid = vm.spawn("lab-vfio hold HELD", "/tmp/hold");
    vm.wait_for("the driver to write", "grep writing /tmp/hold");
    assert_ne!(vm.run(&format!("[ -b {} ]", disk.block)).code, 0, "the kernel has let go");
    vm.ok(&format!("kill -9 {pid}"));
    vm.wait_for("its end", &format!("! [ -d /proc/{pid} ]"));
    // Not before it is asked for: nobody knows what the next owner wants.
    assert_eq!(vm.ok("ls /sys/bus/pci/drivers/vfio-pci | grep -c 0000:").trim(), "1");
    let address = vm.ok("lab-vfio return");
    assert!(address.starts_with("0000:"), "{address}");
    let block = kernel_has(&mut vm, &disk);
    vm.ok(&format!("dd if={block} of=/dev/null bs=1M count=8 iflag=direct"));
    assert_eq!(vm.ok("lab-vfio return"), "", "nothing is left to hand back");
    assert_eq!(vm.ok("lab-vfio write HELD"), "ok\nok\n", "it can be taken again");
    vm.finish();
}

#[test]
fn devices_that_cannot_be_taken_stay_where_they_are() {
    let mut vm = Vm::restore(Kind::Iommu);
    let disk = vm.add_nvme(&NvmeOptions::new("MOUNTED", BYTES));
    vm.ok(&format!("mke2fs -q -F {0} && mount -t ext4 {0} /mnt", disk.block));
    let reasons = vm.ok("lab-vfio why-not MOUNTED");
    assert!(reasons.contains("is mounted at /mnt"), "{reasons}");
    let refused = vm.run("lab-vfio write MOUNTED");
    assert!(refused.code != 0 && refused.text.contains("is mounted at /mnt"), "{}", refused.text);
    vm.ok("echo still here >/mnt/file && sync && grep still /mnt/file");
    vm.finish();

    let mut vm = Vm::restore(Kind::Plain);
    vm.add_nvme(&NvmeOptions::new("PLAIN", BYTES));
    let reasons = vm.ok("lab-vfio why-not PLAIN");
    assert!(
        reasons.contains("there is no IOMMU") && reasons.contains("intel_iommu=on"),
        "{reasons}"
    );
    let refused = vm.run("lab-vfio write PLAIN");
    assert!(refused.code != 0 && refused.text.contains("there is no IOMMU"), "{}", refused.text);
    vm.finish();
}
