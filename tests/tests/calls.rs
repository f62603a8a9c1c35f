//! What a packet costs in system calls: none. Lanes, sealers and writers make them for batches, for
//! chunks and as time passes.

use std::collections::BTreeMap;
use std::time::Duration;

use wirevault_testkit::net::{Namespace, Sender, Stamp, wait_for};
use wirevault_tests::recorder::{PATIENCE, Recorder, Site, lane_count};

const PACKETS: u64 = 100_000;
/// Far more packets than calls, even where a slow machine takes half a minute for them: lane and
/// writer look for work some hundred times a second.
const PACKETS_A_CALL_MIN: u64 = 8;
/// Beginnings of the names of threads that a packet passes.
const THREADS: [&str; 3] = ["lane-", "seal-", "write-"];

fn calls(recorder: &Recorder) -> BTreeMap<String, u64> {
    let mut calls = recorder.stepper().calls();
    calls.retain(|name, _| THREADS.iter().any(|start| name.starts_with(start)));
    calls
}

#[test]
fn a_packet_costs_no_system_call() {
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    for topology in ["run_to_completion", "split"] {
        let more =
            format!("    ring: 64MiB\nbuffer:\n  size: 32MiB\ncpus:\n  topology: {topology}\n");
        let site = Site::new("1GiB", 1);
        let recorder = site.record_stepped("va", &more, false);
        let before = calls(&recorder);
        let mut sender = Sender::on("vb");
        for number in 0..PACKETS {
            let flow = 1000 + (number % 97) as u16;
            let stamp = Stamp { run: 1, number, sent_ns: 0, flow, bytes: 70, vlan: 0 };
            sender.send(&stamp.frame());
            if number % 500 == 499 {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let stored = wait_for("everything is stored", PATIENCE, || {
            let stored = lane_count(&recorder.status(), "stored");
            (stored >= PACKETS).then_some(stored)
        });
        let mut sum = 0;
        for (name, calls) in calls(&recorder) {
            let calls = calls - before.get(&name).unwrap_or(&0);
            println!("{topology}: {name} made {calls} calls for {stored} packets");
            sum += calls;
        }
        assert!(sum > 0, "{topology}: the threads have other names");
        assert!(sum * PACKETS_A_CALL_MIN < stored, "{topology}: {sum} calls, {stored} packets");
    }
}
