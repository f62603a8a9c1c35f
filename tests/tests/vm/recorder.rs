//! The recorder on devices of the real nvme driver: what it acknowledged is found again, whatever
//! becomes of the process or of a device.

use serde_json::Value;
use wirevault_tests::vm::{Disk, Fault, Kind, NvmeOptions, Vm};

pub(crate) const DEVICE_BYTES: u64 = 1 << 30;
pub(crate) const PACKET_BYTES: u32 = 1000;
pub(crate) const RUN: u16 = 1;
/// Packets a second that an emulated processor takes beside everything else.
pub(crate) const RATE: u64 = 2000;

/// A machine with a veth pair, and a sealed store on devices of these serial numbers.
pub(crate) fn site(serials: &[&str]) -> (Vm, Vec<Disk>) {
    site_on(Kind::Plain, serials)
}

/// The same on a machine of that kind.
pub(crate) fn site_on(kind: Kind, serials: &[&str]) -> (Vm, Vec<Disk>) {
    site_of(kind, &serials.iter().map(|it| NvmeOptions::new(it, DEVICE_BYTES)).collect::<Vec<_>>())
}

/// The same on devices made as told.
pub(crate) fn site_of(kind: Kind, devices: &[NvmeOptions]) -> (Vm, Vec<Disk>) {
    let mut vm = wired(kind);
    let disks: Vec<Disk> = devices.iter().map(|it| vm.add_nvme(it)).collect();
    vm.ok("mkdir -p /etc/wirevault/keys");
    let paths: Vec<String> = disks.iter().map(|it| by_id(&it.serial)).collect();
    let more: String = paths[1..].iter().map(|path| format!(" --volume {path}")).collect();
    vm.ok(&format!("wirevault init {}{more} --key /etc/wirevault/keys/store.key", paths[0]));
    vm.put(
        "/tmp/wirevault.yaml",
        &format!(
            "store: {}\nkey_file: /etc/wirevault/keys/store.key\napi:\n  socket: /tmp/socket\n\
             buffer:\n  size: 64MiB\ncapture:\n  - interface: va\n    ring: 64MiB\n",
            paths[0]
        ),
    );
    (vm, disks)
}

/// A machine with a veth pair.
pub(crate) fn wired(kind: Kind) -> Vm {
    let mut vm = Vm::restore(kind);
    vm.ok("echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6");
    // The shell's own `ip` knows no veth.
    let ip = "/usr/local/bin/ip link";
    vm.ok(&format!("{ip} add va type veth peer name vb && {ip} set va up && {ip} set vb up"));
    vm
}

pub(crate) fn by_id(serial: &str) -> String {
    format!("/dev/disk/by-id/nvme-{serial}")
}

/// Starts the recorder and waits until it records; gives its process id.
pub(crate) fn start(vm: &mut Vm) -> u32 {
    let pid = vm.spawn("wirevaultd --config /tmp/wirevault.yaml", "/tmp/log");
    let running = "grep -q '\"state\": *\"running\"' /tmp/status || { tail -3 /tmp/log; false; }";
    let ask = "wirevault status --socket /tmp/socket --json >/tmp/status 2>&1";
    vm.wait_for("the recorder", &format!("{ask} && {running}"));
    pid
}

pub(crate) fn status(vm: &mut Vm) -> Value {
    let text = vm.ok("wirevault status --socket /tmp/socket --json || [ $? = 3 ]");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Sends packets at a rate; returns when the last one is sent.
pub(crate) fn send(vm: &mut Vm, run: u16, packets: u64, rate: u64) {
    vm.ok(&format!("lab-guest send vb {run} {packets} {rate} {PACKET_BYTES}"));
}

/// Waits until everything that arrived is durable; gives how many packets that is.
pub(crate) fn wait_until_durable(vm: &mut Vm, packets: u64) {
    wirevault_testkit::net::wait_for("packets to be durable", patience(), || {
        let status = status(vm);
        let lane = &status["lanes"][0];
        let stored = lane["stored"].as_u64().unwrap_or(0);
        let lost = lane["dropped"].as_u64().unwrap_or(0);
        assert_eq!(lost, 0, "the load is small: {lane}");
        (stored >= packets).then_some(())
    });
}

/// Waits until the status tells how the volume's device is, and that it is the one of this serial
/// number.
pub(crate) fn wait_for_health(vm: &mut Vm, volume: usize, serial: &str) {
    wirevault_testkit::net::wait_for("the device's health", patience(), || {
        let device = status(vm)["volumes"][volume]["device"].clone();
        let told = (&device["serial"], &device["celsius"]);
        (told == (&serial.into(), &50.into())).then_some(())
    });
}

pub(crate) fn patience() -> std::time::Duration {
    wirevault_tests::vm::machine::PATIENCE
}

/// What an answer holds: ranges of sequence numbers, and how many packets are there twice.
pub(crate) fn numbers(vm: &mut Vm, place: &str, run: u16) -> (Vec<(u64, u64)>, u64) {
    let port = 20_000 + run;
    let question = format!("wirevault query {place} 'udp port {port}' -w /tmp/found.pcapng");
    let answer = vm.run(&format!("rm -f /tmp/found.pcapng; {question} 2>/tmp/said"));
    assert!(
        answer.code == 0 || answer.code == 3,
        "exit code {}: {}",
        answer.code,
        vm.ok("cat /tmp/said")
    );
    let text = vm.ok(&format!("lab-guest numbers /tmp/found.pcapng {run}"));
    let mut ranges = Vec::new();
    for line in text.lines() {
        match line.split_once(' ') {
            Some(("doubled", count)) => return (ranges, count.parse().expect("a number")),
            Some((first, last)) => {
                ranges.push((first.parse().expect("first"), last.parse().expect("last")));
            }
            None => panic!("{text}"),
        }
    }
    panic!("no count of doubled packets: {text}")
}

#[test]
fn a_store_on_a_device_records_answers_and_recovers_from_a_kill() {
    let (mut vm, disks) = site(&["KILLED"]);
    let pid = start(&mut vm);
    send(&mut vm, RUN, 10_000, RATE);
    wait_until_durable(&mut vm, 10_000);
    let live = numbers(&mut vm, "--socket /tmp/socket", RUN);
    assert_eq!(live, (vec![(0, 9999)], 0));
    wait_for_health(&mut vm, 0, "KILLED");
    // Mounting or taking the device is refused while it records.
    let block = &disks[0].block;
    assert_ne!(vm.run(&format!("mount -t ext4 {block} /mnt")).code, 0);
    let again = vm.run(&format!("wirevault init {} --plaintext", by_id("KILLED")));
    assert!(again.code == 2 && again.text.contains("belongs to store"), "{again:?}");

    vm.ok(&format!("kill -9 {pid}"));
    vm.wait_for("the end of the recorder", &format!("! [ -d /proc/{pid} ]"));
    let offline = numbers(&mut vm, &format!("--store {}", by_id("KILLED")), RUN);
    assert_eq!(offline, (vec![(0, 9999)], 0));

    let pid = start(&mut vm);
    let report = status(&mut vm);
    let recovery = &report["recovery"];
    assert_eq!((&recovery["segments"], &recovery["packets"]), (&1.into(), &10_000.into()));
    send(&mut vm, RUN + 1, 1000, RATE);
    wait_until_durable(&mut vm, 1000);
    assert_eq!(numbers(&mut vm, "--socket /tmp/socket", RUN), (vec![(0, 9999)], 0));
    assert_eq!(numbers(&mut vm, "--socket /tmp/socket", RUN + 1), (vec![(0, 999)], 0));
    vm.ok(&format!("kill {pid}"));
    vm.wait_for("the end of the recorder", &format!("! [ -d /proc/{pid} ]"));
    vm.ok(&format!("wirevault verify --store {}", by_id("KILLED")));
    vm.finish();
}

/// Writes of one device of two fail under load: nothing acknowledged is lost, what was not is
/// sealed again on the other, and the answer is whole.
#[test]
fn a_device_whose_writes_fail_costs_no_packet() {
    let (mut vm, disks) = site(&["FAILING", "STEADY"]);
    start(&mut vm);
    // Wherever the lane's segment opened, both devices get their turn at failing.
    let sender = format!("lab-guest send vb {RUN} 20000 {RATE} {PACKET_BYTES}");
    let sender = vm.spawn(&sender, "/tmp/sender");
    for disk in &disks {
        let before = status(&mut vm)["lanes"][0]["stored"].as_u64().unwrap_or(0);
        wait_until_durable(&mut vm, before + 2000);
        vm.fail(disk, Fault::Writes);
        let before = status(&mut vm)["lanes"][0]["stored"].as_u64().unwrap_or(0);
        wait_until_durable(&mut vm, before + 2000);
        vm.heal(disk);
    }
    vm.wait_for("the sender", &format!("! [ -d /proc/{sender} ]"));
    wait_until_durable(&mut vm, 20_000);
    assert_eq!(numbers(&mut vm, "--socket /tmp/socket", RUN), (vec![(0, 19_999)], 0));
    vm.finish();
}

/// A device is pulled out under load. Recording goes on with the other; what the lost one held is
/// missing, and the answer says so.
#[test]
fn a_device_that_vanishes_is_missed_and_the_rest_goes_on() {
    let (mut vm, disks) = site(&["FIRST", "SECOND"]);
    start(&mut vm);
    send(&mut vm, RUN, 5000, RATE);
    wait_until_durable(&mut vm, 5000);
    // The one that the segment is on.
    let writes = |vm: &mut Vm, disk: &Disk| -> u64 {
        let name = disk.block.trim_start_matches("/dev/");
        let stat = vm.ok(&format!("cat /sys/block/{name}/stat"));
        stat.split_whitespace().nth(6).and_then(|it| it.parse().ok()).expect("sectors written")
    };
    let counts: Vec<u64> = disks.iter().map(|disk| writes(&mut vm, disk)).collect();
    let busy = usize::from(counts[1] > counts[0]);
    vm.unplug(&disks[busy]);
    send(&mut vm, RUN + 1, 5000, RATE);
    wait_until_durable(&mut vm, 10_000);
    let report = status(&mut vm);
    assert_eq!(report["state"], "degraded", "{report}");
    let (ranges, doubled) = numbers(&mut vm, "--socket /tmp/socket", RUN + 1);
    assert_eq!((ranges, doubled), (vec![(0, 4999)], 0));
    // The first packets went with their device.
    let question = "wirevault query --socket /tmp/socket 'udp port 20001' --summary - 2>&1";
    let answer = vm.run(question);
    assert_eq!(answer.code, 3, "the answer lacks something and says so: {}", answer.text);
    vm.finish();
}
