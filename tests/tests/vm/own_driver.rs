//! The recorder on devices that it drives itself: taken at the start, taken again after a kill,
//! handed back at the end; and left to the kernel where there is no way to take them.

use wirevault_tests::vm::{Fault, Kind, NvmeOptions, Vm};

use crate::recorder::{
    DEVICE_BYTES, RUN, by_id, numbers, send, site_on, start, status, wait_for_health,
    wait_until_durable,
};

/// Packets a second: beside the sender and the recorder, the emulated IOMMU takes its time.
const RATE: u64 = 1000;

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
