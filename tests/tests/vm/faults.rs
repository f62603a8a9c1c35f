//! Devices that fail, are slow, go and come back under load, on the real nvme driver. Packets carry
//! numbers: each is found once, or the answer says that something is missing.

use serde_json::Value;
use wirevault_media::BlockMedia;
use wirevault_testkit::net::wait_for;
use wirevault_tests::vm::{Disk, Fault, Kind, NvmeOptions, Vm};

use crate::recorder::*;

/// Packets of a load: ten seconds, or twenty of our own driver's.
pub(crate) const PACKETS: u64 = 20_000;
/// Packets before it, of a run of their own.
pub(crate) const FIRST: u64 = 1000;
/// What has to become durable for a device to be seen to be done without. Less than what the
/// buffer holds would show nothing: 6 MB, of which the buffer keeps 4.
pub(crate) const BEYOND: u64 = 6000;
const BUFFER: &str = "4MiB";

/// A recorder on two devices, with a buffer that a silent device could use up alone, that has
/// stored the first packets and waits for more.
fn ready(serials: &[&str]) -> (Vm, Vec<Disk>) {
    let (mut vm, disks) = site(serials);
    begin(&mut vm);
    is_written_by(&mut vm, "passthrough");
    (vm, disks)
}

/// Starts the recorder of a machine that has a store; it stores the first packets.
pub(crate) fn begin(vm: &mut Vm) {
    vm.ok(&format!("sed -i 's/size: 64MiB/size: {BUFFER}/' /tmp/wirevault.yaml"));
    start(vm);
    send(vm, RUN + 1, FIRST, RATE);
    wait_until_durable(vm, FIRST);
}

/// Begins to send a load; gives the sender's process id.
fn load(vm: &mut Vm) -> u32 {
    load_of(vm, (RUN, PACKETS), RATE)
}

/// The same of any run and length, of so many packets a second.
pub(crate) fn load_of(vm: &mut Vm, (run, packets): (u16, u64), rate: u64) -> u32 {
    let sender = format!("lab-guest send vb {run} {packets} {rate} {PACKET_BYTES}");
    vm.spawn(&sender, "/tmp/sender")
}

/// The same under a load.
fn loaded(serials: &[&str]) -> (Vm, Vec<Disk>, u32) {
    let (mut vm, disks) = ready(serials);
    let sender = load(&mut vm);
    wait_until_durable(&mut vm, 2 * FIRST);
    (vm, disks, sender)
}

pub(crate) fn stored(vm: &mut Vm) -> u64 {
    status(vm)["lanes"][0]["stored"].as_u64().unwrap_or(0)
}

pub(crate) fn segments(vm: &mut Vm) -> Vec<Value> {
    let text = vm.ok("wirevault segments --socket /tmp/socket --json");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

pub(crate) fn newest_segment(vm: &mut Vm) -> Value {
    segments(vm).pop().expect("an open segment")
}

/// Number of the volume, and so of the device, that the newest segment is on.
pub(crate) fn busy(vm: &mut Vm) -> usize {
    newest_segment(vm)["volume"].as_u64().expect("its volume") as usize
}

pub(crate) fn wait_for_state(vm: &mut Vm, volume: usize, state: &str) {
    wait_for(&format!("volume {volume} to be {state}"), patience(), || {
        let report = status(vm);
        let told = report["volumes"][volume]["state"].as_str()?;
        told.starts_with(state).then_some(())
    });
}

pub(crate) fn wait_until_in_use(vm: &mut Vm, volume: usize) {
    wait_for(&format!("volume {volume} to be in use"), patience(), || {
        let report = status(vm);
        let state = report["volumes"][volume]["state"].as_str()?;
        (!state.starts_with("failed") && !state.starts_with("stalled")).then_some(())
    });
}

/// Waits until the load is sent and an answer holds all of it, and says so.
pub(crate) fn all_is_found(vm: &mut Vm, sender: u32) {
    vm.wait_for("the sender", &format!("! [ -d /proc/{sender} ]"));
    wait_until_durable(vm, FIRST + PACKETS);
    let found = numbers(vm, "--socket /tmp/socket", RUN);
    assert_eq!(found, (vec![(0, PACKETS - 1)], 0), "{}", vm.ok("cat /tmp/said"));
}

pub(crate) fn is_complete(vm: &mut Vm) -> bool {
    let question = "wirevault query --socket /tmp/socket 'udp port 20001' --summary - 2>&1";
    let answer = vm.run(question);
    match answer.code {
        0 => true,
        3 => false,
        other => panic!("the query ends with {other}: {}", answer.text),
    }
}

/// Pulled out in the middle of writes and put back: meanwhile answers say what is missing, and
/// afterwards nothing is, without a restart.
#[test]
fn a_device_that_is_pulled_and_comes_back_is_used_again() {
    let (mut vm, disks, sender) = loaded(&["PULLED-A", "PULLED-B"]);
    let pulled = busy(&mut vm);
    vm.unplug(&disks[pulled]);
    let before = stored(&mut vm);
    wait_until_durable(&mut vm, before + BEYOND);
    assert!(!is_complete(&mut vm), "the first packets went with their device");
    assert_eq!(status(&mut vm)["state"], "degraded");

    vm.replug(&disks[pulled]);
    wait_for("a complete answer", patience(), || is_complete(&mut vm).then_some(()));
    all_is_found(&mut vm, sender);
    wait_until_in_use(&mut vm, pulled);
    vm.finish();
}

/// Controllers are reset in the middle of writes. Later somebody formats a device under the
/// recorder, and nothing that was there is taken for whole.
#[test]
fn a_reset_costs_no_packet_and_a_device_that_is_wiped_is_told() {
    let (mut vm, disks, sender) = loaded(&["RESET-A", "RESET-B"]);
    for disk in [&disks[0], &disks[1], &disks[0]] {
        vm.ok(&format!("nvme reset /dev/{}", disk.controller));
    }
    all_is_found(&mut vm, sender);
    assert!(is_complete(&mut vm));
    load(&mut vm);
    let wiped = busy(&mut vm);
    vm.ok(&format!("nvme format {} --force", disks[wiped].block));
    assert!(!is_complete(&mut vm), "what the device held is gone, and the answer says so");
    vm.finish();
}

/// A namespace is taken away from its controller in the middle of writes, and given back.
#[test]
fn a_namespace_that_went_is_missed_until_it_is_back() {
    let (mut vm, disks, sender) = loaded(&["TAKEN-A", "TAKEN-B"]);
    let taken = busy(&mut vm);
    vm.detach_namespace(&disks[taken]);
    vm.wait_for("the sender", &format!("! [ -d /proc/{sender} ]"));
    wait_until_durable(&mut vm, FIRST + PACKETS);
    assert!(!is_complete(&mut vm), "the first packets went with their namespace");
    vm.attach_namespace(&disks[taken]);
    wait_for("a complete answer", patience(), || is_complete(&mut vm).then_some(()));
    all_is_found(&mut vm, sender);
    wait_until_in_use(&mut vm, taken);
    vm.finish();
}

/// A device that takes a twentieth of the load: its lane goes on elsewhere before the buffer is
/// used up, and nothing is dropped.
#[test]
fn a_slow_device_is_left_to_the_other() {
    let (mut vm, disks, sender) = loaded(&["SLOW-A", "SLOW-B"]);
    let slow = busy(&mut vm);
    vm.slow(&disks[slow], 100_000);
    let before = stored(&mut vm);
    wait_until_durable(&mut vm, before + BEYOND);
    vm.slow(&disks[slow], 0);
    all_is_found(&mut vm, sender);
    assert!(is_complete(&mut vm));
    vm.finish();
}

/// Flushes of one device fail, for good; later the other one's sectors cannot be read for a while.
#[test]
fn failing_flushes_cost_no_packet_and_unreadable_sectors_are_told() {
    let (mut vm, disks, sender) = loaded(&["FLUSH-A", "FLUSH-B"]);
    let failing = busy(&mut vm);
    vm.fail(&disks[failing], Fault::Flushes);
    all_is_found(&mut vm, sender);
    assert!(is_complete(&mut vm));
    vm.fail(&disks[1 - failing], Fault::Reads);
    assert!(!is_complete(&mut vm), "what cannot be read is missing, and the answer says so");
    vm.heal(&disks[1 - failing]);
    assert!(is_complete(&mut vm));
    // QEMU itself cannot flush the first device, so it does not let go of the fault.
    vm.finish();
}

/// One sector of the open segment cannot be written: it ends there, and the lane goes on elsewhere.
#[test]
fn a_bad_sector_costs_no_packet() {
    const SECTOR_BYTES: u64 = 512;
    const AHEAD_BYTES: u64 = 4 << 20;
    let (mut vm, disks) = ready(&["SPOT-A", "SPOT-B"]);
    let segment = newest_segment(&mut vm);
    let number = segment["volume"].as_u64().expect("its volume") as usize;
    let place = segment["place"].as_u64().expect("its place") as u32;
    let label = BlockMedia::open(&disks[number].image).expect("the image").label();
    let bad = label.expect("a label").place_offset(place) + AHEAD_BYTES;
    vm.fail(&disks[number], Fault::WritesAt(bad / SECTOR_BYTES));
    let sender = load(&mut vm);
    all_is_found(&mut vm, sender);
    assert!(is_complete(&mut vm));
    let volume = status(&mut vm)["volumes"][number].clone();
    assert_ne!(volume["failed_chunks"], 0, "the sector was met: {volume}");
    // The place is marked when its segment closes, and it is told whoever looks at the device.
    wait_for("the place to be marked", patience(), || {
        (status(&mut vm)["volumes"][number]["bad_places"] == 1).then_some(())
    });
    let listed = vm.ok("wirevault volume list");
    assert_eq!(listed.matches(", 1 bad place").count(), 1, "{listed}");
    vm.heal(&disks[number]);
    vm.finish();
}

/// A thin device whose room is used up: what it has taken is read, and the rest goes elsewhere. To
/// the guest its writes fail like those of bad sectors, so it may be given up for that.
#[test]
fn a_thin_device_that_is_full_costs_no_packet() {
    const THIN: usize = 0;
    const ROOM_BYTES: u64 = 12 << 20;
    let thin = NvmeOptions::new("THIN", DEVICE_BYTES);
    let thin = NvmeOptions { room_bytes: Some(ROOM_BYTES), ..thin };
    let (mut vm, disks) = site_of(Kind::Plain, &[thin, NvmeOptions::new("ROOMY", DEVICE_BYTES)]);
    begin(&mut vm);
    assert_eq!(busy(&mut vm), THIN, "the first of two that are equal");
    is_written_by(&mut vm, "passthrough");
    let sender = load(&mut vm);
    all_is_found(&mut vm, sender);
    assert!(is_complete(&mut vm), "what the full device has taken is read");
    let report = status(&mut vm);
    assert_eq!(report["state"], "degraded", "{report}");
    assert_ne!(report["volumes"][THIN]["failed_chunks"], 0, "{report}");
    vm.make_room(&disks[THIN], DEVICE_BYTES);
    wait_for("the segment that ended there to be closed", patience(), || {
        let ended = |row: &Value| row["volume"] == THIN && row["close_reason"] == "device_failed";
        segments(&mut vm).iter().any(ended).then_some(())
    });
    assert_eq!(numbers(&mut vm, "--socket /tmp/socket", RUN), (vec![(0, PACKETS - 1)], 0));
    vm.unplug(&disks[THIN]);
    assert!(!is_complete(&mut vm), "now what it held is missing, and the answer says so");
    vm.finish();
}

/// A device that went read-only, as those do whose spare blocks are used up: nothing is written
/// there any more, and all of it is read, until it is pulled.
#[test]
fn a_device_that_goes_read_only_is_still_read() {
    /// Of the critical warnings: the medium is in read-only mode.
    const READ_ONLY: u8 = 8;
    let (mut vm, disks, sender) = loaded(&["FROZEN-A", "FROZEN-B"]);
    let frozen = busy(&mut vm);
    vm.warn(&disks[frozen], READ_ONLY);
    vm.fail(&disks[frozen], Fault::Writes);
    let before = stored(&mut vm);
    wait_until_durable(&mut vm, before + BEYOND);
    all_is_found(&mut vm, sender);
    assert!(is_complete(&mut vm));
    let report = status(&mut vm);
    assert_eq!(report["state"], "degraded", "{report}");
    assert_ne!(report["volumes"][frozen]["state"], "ok", "{report}");
    vm.heal(&disks[frozen]);
    vm.unplug(&disks[frozen]);
    assert!(!is_complete(&mut vm), "now what it held is missing, and the answer says so");
    vm.finish();
}

/// A device that is silent for longer than it may be, and then is not any more: meanwhile its lane
/// goes on elsewhere; afterwards who asked for what lies there has a whole answer, everything is
/// found, and the device is used again.
#[test]
fn a_stall_that_ends_costs_no_packet() {
    /// A chunk takes 13 s, and then all goes on: what waits already is let go of by itself.
    const BYTES_PER_SECOND: u64 = 20_000;
    let (mut vm, disks, sender) = loaded(&["STALL-A", "STALL-B"]);
    let stalled = busy(&mut vm);
    vm.slow(&disks[stalled], BYTES_PER_SECOND);
    wait_for_state(&mut vm, stalled, "stalled");
    // What lies there is waited for; recording does not wait for the question.
    let question = "wirevault query --socket /tmp/socket 'udp port 20002' --count";
    vm.put("/tmp/ask", &format!("{question} >/tmp/answer 2>&1; echo $? >>/tmp/answer"));
    vm.spawn("sh /tmp/ask", "/dev/null");
    let before = stored(&mut vm);
    wait_until_durable(&mut vm, before + FIRST);
    vm.slow(&disks[stalled], 0);
    let answer =
        vm.wait_for("the answer", "tail -n 1 /tmp/answer | grep '^[0-9]$' && cat /tmp/answer");
    assert!(answer.starts_with("0\n"), "{answer}");
    all_is_found(&mut vm, sender);
    assert!(is_complete(&mut vm));
    wait_until_in_use(&mut vm, stalled);
    vm.finish();
}

/// A device that is silent for longer than the kernel's driver waits, which aborts what it was
/// given. It answers again before the driver would reset it, which is after as long once more.
#[test]
fn what_the_kernel_aborts_costs_no_packet() {
    /// A chunk takes 13 s.
    const BYTES_PER_SECOND: u64 = 20_000;
    const LIMIT_MS: u64 = 8000;
    let (mut vm, disks, sender) = loaded(&["ABORT-A", "ABORT-B"]);
    let silent = busy(&mut vm);
    vm.ok(&format!("for it in /sys/block/nvme*/queue/io_timeout; do echo {LIMIT_MS} >$it; done"));
    vm.slow(&disks[silent], BYTES_PER_SECOND);
    vm.wait_for("an abort", "dmesg | grep 'timeout, aborting'");
    vm.slow(&disks[silent], 0);
    all_is_found(&mut vm, sender);
    wait_until_in_use(&mut vm, silent);
    assert!(is_complete(&mut vm));
    vm.finish();
}

/// A device that neither ends nor fails what it was given: no lane waits for it.
#[test]
fn a_silent_device_keeps_nobody_waiting() {
    let (mut vm, disks) = ready(&["SILENT-A", "SILENT-B"]);
    let silent = busy(&mut vm);
    vm.slow(&disks[silent], 1);
    load(&mut vm);
    wait_until_durable(&mut vm, FIRST + BEYOND);
    wait_for_state(&mut vm, silent, "stalled");
    vm.finish();
}

/// The first device is pulled for good, and a new one takes its place without a restart: recording
/// goes on on both, and answers that reach before that say what is missing. A restart finds it so.
#[test]
fn a_device_that_is_gone_is_replaced_by_a_new_one() {
    const GONE: usize = 0;
    const KEPT: usize = 1;
    let (mut vm, disks) = ready(&["GONE", "KEPT"]);
    let mut sent = FIRST;
    if busy(&mut vm) == KEPT {
        vm.fail(&disks[KEPT], Fault::Writes);
        send(&mut vm, RUN + 2, FIRST, RATE);
        sent += FIRST;
        wait_until_durable(&mut vm, sent);
        vm.heal(&disks[KEPT]);
        wait_until_in_use(&mut vm, KEPT);
    }
    assert_eq!(busy(&mut vm), GONE);
    vm.unplug(&disks[GONE]);
    let sender = load(&mut vm);
    vm.add_nvme(&NvmeOptions::new("NEW", DEVICE_BYTES));
    let replace = format!("wirevault volume replace {GONE} {} --socket /tmp/socket", by_id("NEW"));
    assert_eq!(vm.run(&replace).code, 2, "what is lost is lost when told to only");
    vm.ok(&format!("{replace} --yes"));
    wait_for_state(&mut vm, GONE, "ok");
    assert_eq!(status(&mut vm)["volumes"][GONE]["path"], by_id("NEW"));
    wait_for_health(&mut vm, GONE, "NEW");
    vm.wait_for("the sender", &format!("! [ -d /proc/{sender} ]"));
    sent += PACKETS;
    wait_until_durable(&mut vm, sent);
    let live = "--socket /tmp/socket";
    assert_eq!(numbers(&mut vm, live, RUN), (vec![(0, PACKETS - 1)], 0));
    assert!(!is_complete(&mut vm), "what the old device held is missing");

    // Now the other device fails, so what comes is on the new one.
    vm.fail(&disks[KEPT], Fault::Writes);
    send(&mut vm, RUN + 3, FIRST, RATE);
    wait_until_durable(&mut vm, sent + FIRST);
    assert_eq!(busy(&mut vm), GONE);
    assert_eq!(numbers(&mut vm, live, RUN + 3), (vec![(0, FIRST - 1)], 0));
    vm.heal(&disks[KEPT]);
    wait_until_in_use(&mut vm, KEPT);

    vm.ok("kill $(pidof wirevaultd)");
    vm.wait_for("the end of the recorder", "! pidof wirevaultd");
    vm.ok("sed -i s/GONE/NEW/ /tmp/wirevault.yaml");
    start(&mut vm);
    assert_eq!(numbers(&mut vm, live, RUN), (vec![(0, PACKETS - 1)], 0));
    assert_eq!(numbers(&mut vm, live, RUN + 3), (vec![(0, FIRST - 1)], 0));
    vm.finish();
}
