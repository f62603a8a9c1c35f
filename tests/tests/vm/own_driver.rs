//! The recorder on devices that it drives itself: taken at the start, taken again after a kill,
//! handed back at the end; and left to the kernel where there is no way to take them.

use wirevault_testkit::net::wait_for;
use wirevault_tests::vm::{Disk, Fault, Kind, NvmeOptions, Vm};

use crate::faults::*;
use crate::recorder::{
    DEVICE_BYTES, RUN, by_id, numbers, patience, send, site_on, start, status, wait_for_health,
    wait_until_durable,
};

/// Packets a second: beside the sender and the recorder, the emulated IOMMU takes its time.
const RATE: u64 = 1000;
/// Run of a second load, and its packets.
const AGAIN: u16 = RUN + 2;
const MORE: u64 = 4000;

/// Adds the line to the configuration.
fn configure(vm: &mut Vm, line: &str) {
    vm.ok(&format!("echo '{line}' >>/tmp/wirevault.yaml"));
}

/// Keeps the links by which stores name their devices, as udev does.
fn keep_links(vm: &mut Vm) {
    vm.put(
        "/tmp/links",
        "cd /sys/block; while sleep 1; do for b in nvme*; do case $b in *c*n*) continue; esac\n\
         read -r s <$b/device/serial && ln -sfn /dev/$b /dev/disk/by-id/nvme-$s\n\
         done; done\n",
    );
    vm.spawn("sh /tmp/links", "/dev/null");
}

/// Waits until nothing of a process is left: its files are closed last.
fn wait_for_end(vm: &mut Vm, pid: u32) {
    vm.wait_for("the end of the recorder", &format!("! [ -d /proc/{pid} ]"));
}

#[test]
fn a_store_past_the_kernel_records_answers_and_is_handed_back() {
    let (mut vm, disks) = site_on(Kind::Iommu, &["OURS"]);
    keep_links(&mut vm);
    let device = by_id("OURS");
    configure(&mut vm, &format!("vfio: {device}"));
    vm.ok("wirevaultd validate /tmp/wirevault.yaml");
    let pid = start(&mut vm);
    let report = status(&mut vm);
    let volume = &report["volumes"][0];
    assert_eq!((&volume["backend"], &volume["path"]), (&"vfio".into(), &device.clone().into()));
    assert!(volume["backend_why"].as_str().is_some_and(|why| why.contains("ourselves")));
    assert_eq!(volume["registered_buffers"], true, "{volume}");
    assert_ne!(vm.run(&format!("[ -b {} ]", disks[0].block)).code, 0, "the kernel has let go");

    send(&mut vm, RUN, 4000, RATE);
    wait_until_durable(&mut vm, 4000);
    assert_eq!(numbers(&mut vm, "--socket /tmp/socket", RUN), (vec![(0, 3999)], 0));
    let health = status(&mut vm)["volumes"][0]["device"].clone();
    assert_eq!((&health["serial"], &health["celsius"]), (&"OURS".into(), &50.into()));
    // Who asks past the recorder is told whom to ask.
    let offline = vm.run(&format!("wirevault query --store {device} 'udp'"));
    assert_eq!(offline.code, 2, "{}", offline.text);
    assert!(offline.text.contains("wirevault query --socket"), "{}", offline.text);
    assert!(offline.text.contains(&format!("pid {pid}")), "{}", offline.text);
    let second = vm.run("wirevaultd --config /tmp/wirevault.yaml");
    assert_eq!(second.code, 5, "{}", second.text);

    vm.ok(&format!("kill -9 {pid}"));
    wait_for_end(&mut vm, pid);
    let left = vm.run(&format!("wirevault query --store {device} 'udp'"));
    assert!(left.code == 2 && left.text.contains("wirevault volume release"), "{}", left.text);
    let pid = start(&mut vm);
    let report = status(&mut vm);
    assert_eq!(report["volumes"][0]["backend"], "vfio");
    assert_eq!(report["recovery"]["packets"], 4000, "{report}");
    send(&mut vm, RUN + 1, 1000, RATE);
    wait_until_durable(&mut vm, 1000);
    let question = "--socket /tmp/socket";
    assert_eq!(numbers(&mut vm, question, RUN), (vec![(0, 3999)], 0));
    assert_eq!(numbers(&mut vm, question, RUN + 1), (vec![(0, 999)], 0));

    // The end hands it back, and the kernel's driver finds what ours wrote.
    vm.ok(&format!("kill {pid}"));
    wait_for_end(&mut vm, pid);
    vm.wait_for("the kernel's device", &format!("[ -b {device} ]"));
    assert_eq!(vm.ok("ls /run/wirevault-vfio"), "");
    let offline = format!("--store {device}");
    assert_eq!(numbers(&mut vm, &offline, RUN), (vec![(0, 3999)], 0));
    vm.ok(&format!("wirevault verify --store {device}"));
    vm.ok("sed -i '/^vfio/d' /tmp/wirevault.yaml");
    let pid = start(&mut vm);
    assert_ne!(status(&mut vm)["volumes"][0]["backend"], "vfio");
    assert_eq!(numbers(&mut vm, question, RUN), (vec![(0, 3999)], 0));
    assert_eq!(numbers(&mut vm, question, RUN + 1), (vec![(0, 999)], 0));
    vm.ok(&format!("kill {pid}"));
    wait_for_end(&mut vm, pid);
    vm.finish();
}

#[test]
fn a_device_that_a_killed_recorder_had_can_be_released() {
    let (mut vm, _disks) = site_on(Kind::Iommu, &["LEFT"]);
    keep_links(&mut vm);
    let device = by_id("LEFT");
    configure(&mut vm, &format!("vfio: {device}"));
    let pid = start(&mut vm);
    send(&mut vm, RUN, 500, RATE);
    wait_until_durable(&mut vm, 500);
    assert_eq!(vm.run("wirevault volume release").code, 1, "its recorder lives: nothing to do");
    vm.ok(&format!("kill -9 {pid}"));
    wait_for_end(&mut vm, pid);
    let said = vm.ok("wirevault volume release");
    assert!(said.contains("the kernel drives 0000:"), "{said}");
    vm.wait_for("the kernel's device", &format!("[ -b {device} ]"));
    assert_eq!(numbers(&mut vm, &format!("--store {device}"), RUN), (vec![(0, 499)], 0));
    vm.finish();
}

/// The new one is driven as the old one was, from the first of its segments on.
#[test]
fn a_device_past_the_kernel_is_replaced_by_one_past_the_kernel() {
    let (mut vm, disks) = site_on(Kind::Iommu, &["OLD", "OTHER"]);
    keep_links(&mut vm);
    configure(&mut vm, &format!("vfio: {}", by_id("OLD")));
    let pid = start(&mut vm);
    send(&mut vm, RUN, 500, RATE);
    wait_until_durable(&mut vm, 500);
    vm.fail(&disks[0], Fault::Writes);
    vm.add_nvme(&NvmeOptions::new("NEW", DEVICE_BYTES));
    let new = by_id("NEW");
    vm.ok(&format!("wirevault volume replace 0 {new} --socket /tmp/socket --yes"));
    vm.fail(&disks[1], Fault::Writes);
    send(&mut vm, RUN + 1, 1000, RATE);
    wait_until_durable(&mut vm, 1500);
    let volume = status(&mut vm)["volumes"][0].clone();
    assert_eq!((&volume["path"], &volume["backend"]), (&new.clone().into(), &"vfio".into()));
    assert_eq!(volume["why_not"], serde_json::json!([]), "{volume}");
    wait_for_health(&mut vm, 0, "NEW");
    let question = "--socket /tmp/socket";
    assert_eq!(numbers(&mut vm, question, RUN + 1), (vec![(0, 999)], 0));
    vm.heal(&disks[1]);
    vm.ok(&format!("kill {pid}"));
    wait_for_end(&mut vm, pid);
    // The link may lead to the name that the other device got back.
    let serial = "read -r s </sys/block/${b##*/}/device/serial && [ $s = NEW ]";
    vm.wait_for("the kernel's device", &format!("b=$(readlink -f {new}) && [ -b $b ] && {serial}"));
    assert_eq!(numbers(&mut vm, &format!("--store {new}"), RUN + 1), (vec![(0, 999)], 0));
    vm.finish();
}

/// A recorder on two devices, both past the kernel, under a load.
fn both_loaded(serials: [&str; 2]) -> (Vm, Vec<Disk>, u32) {
    let (mut vm, disks) = site_on(Kind::Iommu, &serials);
    keep_links(&mut vm);
    configure(&mut vm, &format!("vfio: [{}]", serials.map(by_id).join(", ")));
    begin(&mut vm);
    let sender = load_of(&mut vm, (RUN, PACKETS), RATE);
    wait_until_durable(&mut vm, 2 * FIRST);
    (vm, disks, sender)
}

/// Waits until recording has gone on elsewhere for longer than by the buffer alone.
fn wait_until_done_without(vm: &mut Vm) {
    let before = stored(vm);
    wait_until_durable(vm, before + BEYOND);
    assert_eq!(status(vm)["state"], "degraded");
}

/// Waits until a volume is in use again, with all that it held.
fn wait_until_whole_again(vm: &mut Vm, volume: usize) {
    wait_for("a complete answer", patience(), || is_complete(vm).then_some(()));
    wait_until_in_use(vm, volume);
}

/// Ends the recorder; what is there of the devices is the kernel's again, and nothing is noted.
fn end(vm: &mut Vm, left: &[&Disk]) {
    vm.ok("kill $(pidof wirevaultd)");
    vm.wait_for("the end of the recorder", "! pidof wirevaultd");
    for disk in left {
        let driver = format!("/sys/bus/pci/devices/{}/driver", disk.place);
        vm.wait_for("the kernel's driver", &format!("readlink {driver} | grep '/nvme$'"));
    }
    assert_eq!(vm.ok("ls /run/wirevault-vfio"), "");
}

/// Pulled out while we drive it: whoever pulls does not have to wait for us, recording goes on with
/// the other, and once it is back it is taken again. Then a controller is reset by somebody else.
/// What is gone at the end is not handed back, and hinders nobody.
#[test]
fn a_device_past_the_kernel_that_was_pulled_or_reset_is_used_again() {
    let (mut vm, disks, sender) = both_loaded(["PULLED-A", "PULLED-B"]);
    let pulled = busy(&mut vm);
    vm.unplug(&disks[pulled]);
    wait_until_done_without(&mut vm);
    assert!(!is_complete(&mut vm), "the first packets went with their device");
    vm.put_back(&disks[pulled]);
    wait_until_whole_again(&mut vm, pulled);
    all_is_found(&mut vm, sender);

    let sender = load_of(&mut vm, (AGAIN, MORE), RATE);
    let reset = busy(&mut vm);
    let failed = |vm: &mut Vm| status(vm)["volumes"][reset]["failed_chunks"].as_u64();
    let before = failed(&mut vm);
    vm.ok(&format!("echo 1 >/sys/bus/pci/devices/{}/reset", disks[reset].place));
    wait_for("the reset to be noticed", patience(), || (failed(&mut vm) > before).then_some(()));
    vm.wait_for("the sender", &format!("! [ -d /proc/{sender} ]"));
    wait_until_durable(&mut vm, FIRST + PACKETS + MORE);
    assert_eq!(numbers(&mut vm, "--socket /tmp/socket", AGAIN), (vec![(0, MORE - 1)], 0));
    wait_until_whole_again(&mut vm, reset);
    let report = status(&mut vm);
    let driven = [0, 1].map(|volume| report["volumes"][volume]["backend"].clone());
    assert_eq!(driven, ["vfio", "vfio"], "{report}");
    vm.unplug(&disks[pulled]);
    end(&mut vm, &[&disks[1 - pulled]]);
    vm.finish();
}

/// Poison: what cannot be read is missing, and answers say so. Then pulled out; it comes back and
/// is not to be had: the kernel's driver goes on with it, beside a device that it always had.
#[test]
fn a_device_past_the_kernel_that_cannot_be_taken_again_is_the_kernels() {
    const OURS: usize = 0;
    const KERNELS: usize = 1;
    let (mut vm, disks) = site_on(Kind::Iommu, &["OURS", "KERNELS"]);
    keep_links(&mut vm);
    configure(&mut vm, &format!("vfio: {}", by_id("OURS")));
    begin(&mut vm);
    assert_eq!(busy(&mut vm), OURS, "the first of two that are equal");
    let sender = load_of(&mut vm, (RUN, PACKETS), RATE);
    // An answer that has nothing to find is whole.
    wait_until_durable(&mut vm, 2 * FIRST);
    vm.fail(&disks[OURS], Fault::Reads);
    assert!(!is_complete(&mut vm), "what cannot be read is missing");
    vm.heal(&disks[OURS]);
    assert!(is_complete(&mut vm));
    vm.unplug(&disks[OURS]);
    wait_until_done_without(&mut vm);
    assert!(!is_complete(&mut vm), "what was there went with it");
    vm.ok("rmmod vfio_pci");
    vm.put_back(&disks[OURS]);
    wait_until_whole_again(&mut vm, OURS);
    all_is_found(&mut vm, sender);
    vm.fail(&disks[KERNELS], Fault::Writes);
    send(&mut vm, AGAIN, FIRST, RATE);
    wait_until_durable(&mut vm, 2 * FIRST + PACKETS);
    assert_eq!(busy(&mut vm), OURS);
    let volume = status(&mut vm)["volumes"][OURS].clone();
    assert_eq!(volume["backend"], "passthrough", "{volume}");
    let why_not = volume["why_not"].to_string();
    assert!(why_not.contains("the driver vfio-pci is not loaded"), "{volume}");
    assert_eq!(numbers(&mut vm, "--socket /tmp/socket", AGAIN), (vec![(0, FIRST - 1)], 0));
    vm.heal(&disks[KERNELS]);
    end(&mut vm, &[&disks[OURS], &disks[KERNELS]]);
    vm.finish();
}

/// A device that neither ends nor fails what it was given: no lane waits for it.
#[test]
fn a_silent_device_past_the_kernel_keeps_nobody_waiting() {
    let (mut vm, disks, _sender) = both_loaded(["SILENT-A", "SILENT-B"]);
    let silent = busy(&mut vm);
    vm.slow(&disks[silent], 1);
    let before = stored(&mut vm);
    wait_until_durable(&mut vm, before + BEYOND);
    wait_for_state(&mut vm, silent, "stalled");
    vm.finish();
}

/// Recording comes first: without an IOMMU the kernel's driver does it.
#[test]
fn a_device_that_cannot_be_taken_is_driven_by_the_kernel() {
    let (mut vm, disks) = site_on(Kind::Plain, &["KERNELS"]);
    configure(&mut vm, &format!("vfio: {}", by_id("KERNELS")));
    let told = vm.ok("wirevaultd validate /tmp/wirevault.yaml 2>&1");
    assert!(told.contains("vfio[0]: ") && told.contains("there is no IOMMU"), "{told}");
    let pid = start(&mut vm);
    send(&mut vm, RUN, 500, RATE);
    wait_until_durable(&mut vm, 500);
    let volume = status(&mut vm)["volumes"][0].clone();
    assert_eq!(volume["backend"], "passthrough");
    let why_not = volume["why_not"][0].as_str().expect("a reason");
    assert!(why_not.contains("the kernel drives the device: "), "{volume}");
    assert!(why_not.contains("there is no IOMMU"), "{volume}");
    vm.ok(&format!("[ -b {} ]", disks[0].block));
    assert_eq!(numbers(&mut vm, "--socket /tmp/socket", RUN), (vec![(0, 499)], 0));
    vm.ok(&format!("kill {pid}"));
    wait_for_end(&mut vm, pid);
    vm.finish();
}
