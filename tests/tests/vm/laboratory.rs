//! The laboratory does what it promises.

use wirevault_tests::vm::{Fault, Kind, NvmeOptions, Vm};

#[test]
fn a_machine_answers_and_ends_as_told() {
    let mut vm = Vm::restore(Kind::Plain);
    assert_eq!(vm.ok("echo a; echo b >&2"), "a\nb\n");
    let answer = vm.run("printf no-line-end; exit 7");
    assert_eq!((answer.code, answer.text.as_str()), (7, "no-line-end"));
    vm.put("/tmp/file", "it's one\ntwo\n");
    assert_eq!(vm.ok("cat /tmp/file"), "it's one\ntwo\n");
    assert!(vm.ok("wirevault --version").starts_with("wirevault "));
    vm.ok("ip link add va type veth peer name vb");
    vm.finish();
}

/// Keys and names of lives are random: two recorders from one saved state must differ.
#[test]
fn machines_of_one_state_draw_different_numbers() {
    let draw = || Vm::restore(Kind::Plain).ok("head -c 16 /dev/urandom | hexdump");
    assert_ne!(draw(), draw());
}

#[test]
fn devices_fail_as_told() {
    let mut vm = Vm::restore(Kind::Plain);
    let disk = vm.add_nvme(&NvmeOptions::new("FAILS", 64 << 20));
    let other =
        vm.add_nvme(&NvmeOptions { block_bytes: 4096, ..NvmeOptions::new("OTHER", 64 << 20) });
    let size = |vm: &mut Vm, block: &str| vm.ok(&format!("blockdev --getss {block}"));
    assert_eq!(size(&mut vm, &disk.block).trim(), "512");
    assert_eq!(size(&mut vm, &other.block).trim(), "4096");

    let write = |at: u64| {
        let block = &disk.block;
        format!(
            "[ -b {block} ] && dd if=/dev/zero of={block} bs=4096 count=1 seek={at} oflag=direct"
        )
    };
    let read = format!("dd if={} of=/dev/null bs=4096 count=1 iflag=direct", disk.block);
    vm.ok(&write(5));
    vm.ok(&read);
    vm.fail(&disk, Fault::Writes);
    assert_ne!(vm.run(&write(5)).code, 0);
    vm.ok(&read);
    vm.fail(&disk, Fault::WritesAt(48));
    assert_ne!(vm.run(&write(6)).code, 0);
    vm.ok(&write(5));
    vm.fail(&disk, Fault::Reads);
    assert_ne!(vm.run(&read).code, 0);
    vm.heal(&disk);
    vm.ok(&write(6));
    vm.ok(&read);

    vm.unplug(&disk);
    vm.wait_for("the guest's driver to notice", &format!("! [ -e {} ]", disk.block));
    vm.ok(&format!("dd if={} of=/dev/null bs=4096 count=1 iflag=direct", other.block));
    let back = vm.replug(&disk);
    vm.ok(&format!("dd if={} of=/dev/null bs=4096 count=1 iflag=direct", back.block));
    vm.finish();
}

#[test]
fn a_machine_with_an_iommu_lends_a_device() {
    let mut vm = Vm::restore(Kind::Iommu);
    let disk = vm.add_nvme(&NvmeOptions::new("LENT", 64 << 20));
    let address = vm.ok(&format!("cat /sys/class/nvme/{}/address", disk.controller));
    let device = format!("/sys/bus/pci/devices/{}", address.trim());
    vm.ok(&format!("[ -e {device}/iommu_group ]"));
    vm.ok(&format!("echo {} >{device}/driver/unbind", address.trim()));
    vm.ok(&format!("echo vfio-pci >{device}/driver_override"));
    vm.ok(&format!("echo {} >/sys/bus/pci/drivers_probe", address.trim()));
    vm.ok(&format!("[ -c /dev/vfio/$(basename $(readlink {device}/iommu_group)) ]"));
    vm.finish();
}
