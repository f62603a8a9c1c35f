//! The recorder on devices of the real nvme driver: what it acknowledged is found again, whatever
//! becomes of the process or of a device.

use serde_json::Value;
use wirevault_tests::vm::{Disk, Fault, Kind, NvmeOptions, Vm};

pub(crate) const DEVICE_BYTES: u64 = 1 << 30;
pub(crate) const PACKET_BYTES: u32 = 1000;
pub(crate) const RUN: u16 = 1;
pub(crate) const KEY: &str = "/etc/wirevault/keys/store.key";
/// A user without rights, and what the packaged unit gives the recorder.
const USER: u32 = 1000;
const RIGHTS: &str = "-all,+net_raw,+net_admin,+bpf,+ipc_lock";
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
    vm.ok(&format!("wirevault init {}{more} --key {KEY}", paths[0]));
    configure(&mut vm, &paths[0]);
    (vm, disks)
}

/// Writes the configuration of a recorder with that store.
pub(crate) fn configure(vm: &mut Vm, store: &str) {
    vm.put(
        "/tmp/wirevault.yaml",
        &format!(
            "store: {store}\nkey_file: {KEY}\napi:\n  socket: /tmp/socket\n\
             buffer:\n  size: 64MiB\ncapture:\n  - interface: va\n    ring: 64MiB\n"
        ),
    );
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
    start_with(vm, "")
}

/// The same with the rights of the packaged unit only, as its user.
fn start_as_user(vm: &mut Vm) -> u32 {
    let rights = format!(
        "--inh-caps={RIGHTS} --ambient-caps={RIGHTS} --bounding-set={RIGHTS} --no-new-privs"
    );
    // Busybox's own is found by the name alone.
    let user = format!("--reuid={USER} --regid={USER} --clear-groups");
    start_with(vm, &format!("/lab/bin/setpriv {user} {rights} -- "))
}

fn start_with(vm: &mut Vm, before: &str) -> u32 {
    let command = format!("{before}wirevaultd --config /tmp/wirevault.yaml");
    let pid = vm.spawn(&command, "/tmp/log");
    let running = "grep -q '\"state\": *\"running\"' /tmp/status || { tail -3 /tmp/log; false; }";
    let ask = "wirevault status --socket /tmp/socket --json >/tmp/status 2>&1";
    vm.wait_for("the recorder", &format!("{ask} && {running}"));
    pid
}

/// Ends the recorder without letting it do anything more.
pub(crate) fn kill(vm: &mut Vm, pid: u32) {
    vm.ok(&format!("kill -9 {pid}"));
    vm.wait_for("the end of the recorder", &format!("! [ -d /proc/{pid} ]"));
}

/// Every volume that was written to is written by that back end, and none silently by a lesser one.
pub(crate) fn is_written_by(vm: &mut Vm, backend: &str) -> Value {
    let report = status(vm);
    let volumes = report["volumes"].as_array().expect("volumes");
    let mut written = volumes.iter().filter(|it| it["written_bytes"] != 0).peekable();
    assert!(written.peek().is_some() && written.all(|it| it["backend"] == backend), "{report}");
    report
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
    let said = vm.ok("cat /tmp/said");
    match answer.code {
        0 | 3 => {}
        1 => return (Vec::new(), 0),
        other => panic!("exit code {other}: {said}"),
    }
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
    is_written_by(&mut vm, "passthrough");
    let live = numbers(&mut vm, "--socket /tmp/socket", RUN);
    assert_eq!(live, (vec![(0, 9999)], 0));
    wait_for_health(&mut vm, 0, "KILLED");
    // Mounting or taking the device is refused while it records.
    let block = &disks[0].block;
    assert_ne!(vm.run(&format!("mount -t ext4 {block} /mnt")).code, 0);
    let again = vm.run(&format!("wirevault init {} --plaintext", by_id("KILLED")));
    assert!(again.code == 2 && again.text.contains("belongs to store"), "{again:?}");

    kill(&mut vm, pid);
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
    is_written_by(&mut vm, "passthrough");
    vm.ok(&format!("kill {pid}"));
    vm.wait_for("the end of the recorder", &format!("! [ -d /proc/{pid} ]"));
    vm.ok(&format!("wirevault verify --store {}", by_id("KILLED")));
    vm.finish();
}

/// A recorder that was killed has left so many packets of `RUN`; another one is started, which
/// finds them, records more, and answers with both.
fn goes_on_after_a_kill(vm: &mut Vm, left: u64, backend: &str, start: fn(&mut Vm) -> u32) -> u32 {
    let pid = start(vm);
    let report = status(vm);
    assert_eq!(report["recovery"]["packets"], left, "{report}");
    send(vm, RUN + 1, 1000, RATE);
    wait_until_durable(vm, 1000);
    is_written_by(vm, backend);
    assert_eq!(numbers(vm, "--socket /tmp/socket", RUN), (vec![(0, left - 1)], 0));
    assert_eq!(numbers(vm, "--socket /tmp/socket", RUN + 1), (vec![(0, 999)], 0));
    pid
}

/// As the packaged unit runs it, without CAP_SYS_ADMIN: NVMe commands where the namespace's own
/// node is there to write, io_uring on the block device where it is not; io_uring, too, on files of
/// ext4 on such a device. Each records, is killed, recovers and answers.
#[test]
fn a_recorder_without_rights_writes_by_commands_by_io_uring_and_to_files() {
    let (mut vm, disks) = site(&["RIGHTS"]);
    let (block, generic) = (&disks[0].block, &disks[0].generic);
    vm.ok(&format!("mkdir -p /var/lib/wirevault && chown -R {USER} /var/lib/wirevault"));
    vm.ok(&format!("chown {USER} {block} {generic} {KEY}"));
    let pid = start_as_user(&mut vm);
    send(&mut vm, RUN, 4000, RATE);
    wait_until_durable(&mut vm, 4000);
    is_written_by(&mut vm, "passthrough");
    assert_eq!(numbers(&mut vm, "--socket /tmp/socket", RUN), (vec![(0, 3999)], 0));
    kill(&mut vm, pid);

    vm.ok(&format!("chown 0 {generic}"));
    let pid = goes_on_after_a_kill(&mut vm, 4000, "io_uring", start_as_user);
    let volume = status(&mut vm)["volumes"][0].clone();
    assert_eq!((&volume["o_direct"], &volume["failed_chunks"]), (&true.into(), &0.into()));
    let why_not = volume["why_not"].to_string();
    assert!(why_not.contains("no NVMe commands: ") && why_not.contains(generic), "{volume}");
    kill(&mut vm, pid);
    let offline = format!("--store {}", by_id("RIGHTS"));
    for (run, last) in [(RUN, 3999), (RUN + 1, 999)] {
        assert_eq!(numbers(&mut vm, &offline, run), (vec![(0, last)], 0));
    }
    let pid = start_as_user(&mut vm);
    assert_eq!(status(&mut vm)["recovery"]["packets"], 1000);
    assert_eq!(numbers(&mut vm, "--socket /tmp/socket", RUN + 1), (vec![(0, 999)], 0));
    vm.ok(&format!("kill {pid}"));
    vm.wait_for("the end of the recorder", &format!("! [ -d /proc/{pid} ]"));
    vm.ok(&format!("wirevault verify {offline}"));

    let files = vm.add_nvme(&NvmeOptions::new("FILES", DEVICE_BYTES));
    vm.ok(&format!(
        "/usr/local/bin/mke2fs -q -t ext4 -F {0} && mount -t ext4 {0} /mnt",
        files.block
    ));
    vm.ok(&format!("wirevault init /mnt/store --quota 512MiB --key {KEY}.files"));
    vm.ok(&format!("chown -R {USER} /mnt/store && mv {KEY}.files {KEY} && chown {USER} {KEY}"));
    configure(&mut vm, "/mnt/store");
    let pid = start_as_user(&mut vm);
    send(&mut vm, RUN, 2000, RATE);
    wait_until_durable(&mut vm, 2000);
    let report = is_written_by(&mut vm, "io_uring");
    assert_eq!(report["volumes"][0]["o_direct"], true, "{report}");
    kill(&mut vm, pid);
    goes_on_after_a_kill(&mut vm, 2000, "io_uring", start_as_user);
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
    is_written_by(&mut vm, "passthrough");
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
