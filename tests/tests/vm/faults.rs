//! Devices that fail, are slow, go and come back under load, on the real nvme driver. Packets carry
//! numbers: each is found once, or the answer says that something is missing.

use serde_json::Value;
use wirevault_testkit::net::wait_for;
use wirevault_tests::vm::{Disk, Fault, Vm};

use crate::recorder::*;

/// Packets of a load: ten seconds.
const PACKETS: u64 = 20_000;
/// What has to become durable for a device to be seen to be done without. Less than what the
/// buffer holds would show nothing: 6 MB, of which the buffer keeps 4.
const BEYOND: u64 = 6000;
const BUFFER: &str = "4MiB";

/// A recorder on two devices, with a buffer that a silent device could use up alone, and a load.
fn loaded(serials: &[&str]) -> (Vm, Vec<Disk>, u32) {
    let (mut vm, disks) = site(serials);
    vm.ok(&format!("sed -i 's/size: 64MiB/size: {BUFFER}/' /tmp/wirevault.yaml"));
    start(&mut vm);
    let sender = format!("lab-guest send vb {RUN} {PACKETS} {RATE} {PACKET_BYTES}");
    let sender = vm.spawn(&sender, "/tmp/sender");
    wait_until_durable(&mut vm, 1000);
    (vm, disks, sender)
}

fn stored(vm: &mut Vm) -> u64 {
    status(vm)["lanes"][0]["stored"].as_u64().unwrap_or(0)
}

/// Number of the volume, and so of the device, that the newest segment is on.
fn busy(vm: &mut Vm) -> usize {
    let text = vm.ok("wirevault segments --socket /tmp/socket --json");
    let rows: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let newest = rows.as_array().and_then(|rows| rows.last()).expect("an open segment");
    newest["volume"].as_u64().expect("its volume") as usize
}

/// Waits until the load is sent and an answer holds all of it, and says so.
fn all_is_found(vm: &mut Vm, sender: u32) {
    vm.wait_for("the sender", &format!("! [ -d /proc/{sender} ]"));
    wait_until_durable(vm, PACKETS);
    assert_eq!(numbers(vm, "--socket /tmp/socket", RUN), (vec![(0, PACKETS - 1)], 0));
}

fn is_complete(vm: &mut Vm) -> bool {
    let question = "wirevault query --socket /tmp/socket 'udp port 20001' --summary - 2>&1";
    match vm.run(question).code {
        0 => true,
        3 => false,
        other => panic!("the query ends with {other}"),
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
    wait_for("the volume to be in use", patience(), || {
        let report = status(&mut vm);
        let state = report["volumes"][pulled]["state"].as_str().unwrap_or("failed").to_owned();
        (!state.starts_with("failed") && !state.starts_with("stalled")).then_some(())
    });
    vm.finish();
}

/// A device that takes a twentieth of the load: its lane goes on elsewhere before the buffer is
/// used up, and nothing is dropped. (One that is silent is shown on simulated devices: QEMU holds
/// back what waits for such a one for ever.)
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
