//! The starts that show `policies` and `pressure`.
//!
//! | run | configuration | traffic |
//! |---|---|---|
//! | `shed` | a policy of each action, on two interfaces | flows to five ports |
//! | `pressed` | a rung of each action, all entered with the fourth chunk | a flow to each of four ports |

use std::process::Output;
use std::time::Instant;

use serde_json::Value;
use wirevault_testkit::net::{Namespace, Sender, Stamp, wait_for};
use wirevault_tests::recorder::{Recorder, Site};

use crate::runs::{PACKET_BYTES, PATIENCE, Seen, look, site, sum};

/// Packets to each port of a run, and flows that they belong to.
pub(crate) const PACKETS: u64 = 60;
pub(crate) const FLOWS: u64 = 20;
/// Packets to each port between two looks at the rungs.
const ROUND: u64 = 50;
/// Bytes of each flow that a cutoff keeps: two packets that begin within them.
const FLOW_BYTES: u64 = 1500;
/// Bytes of each packet that a snap length keeps.
pub(crate) const SNAPLEN: usize = 100;
/// Runs of packets, which have a port each, by what happens to them.
pub(crate) const DROPPED: u16 = 0;
pub(crate) const CUT_OFF: u16 = 1;
pub(crate) const SAMPLED: u16 = 2;
pub(crate) const CUT: u16 = 3;
pub(crate) const SPARED: u16 = 4;
const RUNS: u16 = 5;

/// What was seen of them, and what was refused.
pub(crate) struct Policies {
    pub(crate) shed: Seen,
    pub(crate) pressed: Seen,
    /// Status while every rung held.
    pub(crate) under_pressure: Value,
    pub(crate) with_cutoff_of_nothing: Output,
    pub(crate) with_strange_interface: Output,
    pub(crate) with_falling_rungs: Output,
    pub(crate) with_leave_above_enter: Output,
}

impl Policies {
    pub(crate) fn make(ns: &Namespace) -> Self {
        let site = Site::new("272MiB", 1);
        let refused = |more: &str| site.refuse(&config(&site, more));
        let rung = |name: &str, marks: &str| format!("{{name: {name}, action: drop, {marks}}}");
        let (low, high) =
            (rung("a", "enter: 50%, leave: 10%"), rung("b", "enter: 60%, leave: 10%"));
        let (pressed, under_pressure) = pressed(ns);
        Self {
            shed: shed(ns),
            pressed,
            under_pressure,
            with_cutoff_of_nothing: refused("policies: [{name: a, action: cutoff}]\n"),
            with_strange_interface: refused(
                "policies: [{name: a, action: drop, interface: nope0}]\n",
            ),
            with_falling_rungs: refused(&format!("pressure: [{high}, {low}]\n")),
            with_leave_above_enter: refused(
                "pressure: [{name: a, action: drop, enter: 50%, leave: 51%}]\n",
            ),
        }
    }
}

fn config(site: &Site, more: &str) -> String {
    let (store, socket) = (site.store(), site.file("socket"));
    let (store, socket) = (store.display(), socket.display());
    let inputs = "capture: [{interface: va, ring: 4MiB}, {interface: vc, ring: 4MiB}]\n";
    format!("store: {store}\napi: {{socket: {socket}}}\n{inputs}{more}")
}

fn start(site: &Site, more: &str) -> Recorder {
    site.start(&config(site, more), &site.file("socket"))
}

/// [`PACKETS`] of each run in [`FLOWS`] flows.
fn send(interface: &str) {
    let mut sender = Sender::on(interface);
    for number in 0..PACKETS {
        for run in 0..RUNS {
            let flow = 1000 + (number % FLOWS) as u16;
            let bytes = PACKET_BYTES;
            sender.send(&Stamp { run, number, sent_ns: 0, flow, bytes, vlan: 0 }.frame());
        }
    }
}

fn wait_until_settled(recorder: &Recorder, packets: u64) {
    let settled = |status: &Value| sum(status, "stored") + sum(status, "shed");
    wait_for("everything is stored or left out", PATIENCE, || {
        (settled(&recorder.status()) >= packets).then_some(())
    });
}

fn to(run: u16) -> String {
    format!("udp dst port {}", Stamp::port(run))
}

fn shed(ns: &Namespace) -> Seen {
    let site = site(1);
    let policies = format!(
        "policies:\n\
         \x20 - {{name: only-va, action: drop, interface: va, filter: {}}}\n\
         \x20 - {{name: first, action: cutoff, flow_bytes: {FLOW_BYTES}B, filter: {}}}\n\
         \x20 - {{name: some, action: sample, one_in: 2, filter: {}}}\n\
         \x20 - {{name: heads, action: snaplen, snaplen: {SNAPLEN}B, filter: {}}}\n",
        to(DROPPED),
        to(CUT_OFF),
        to(SAMPLED),
        to(CUT),
    );
    let recorder = start(&site, &policies);
    let begin = Instant::now();
    ["vb", "vd"].into_iter().for_each(send);
    wait_until_settled(&recorder, 2 * u64::from(RUNS) * PACKETS);
    look(ns, site, recorder, begin.elapsed())
}

/// What is written stays in the buffer until it is flushed, which takes ten seconds here: four of
/// 32 chunks are the share that each rung waits for. Packets come until each has done something.
fn pressed(ns: &Namespace) -> (Seen, Value) {
    let site = site(1);
    let marks = "enter: 10%, leave: 10%";
    let more = format!(
        "commit_interval: 10s\nbuffer: {{size: 8MiB, hugepages: off}}\n\
         policies: [{{name: spared, action: keep, filter: {}}}]\n\
         pressure:\n\
         \x20 - {{name: coarse, action: coarse_index, {marks}}}\n\
         \x20 - {{name: first, action: cutoff, flow_bytes: {FLOW_BYTES}B, filter: {}, {marks}}}\n\
         \x20 - {{name: heads, action: snaplen, snaplen: {SNAPLEN}B, filter: {}, {marks}}}\n\
         \x20 - {{name: rest, action: drop, filter: {}, {marks}}}\n",
        to(SPARED),
        to(CUT_OFF),
        to(CUT),
        to(DROPPED),
    );
    let recorder = start(&site, &more);
    let begin = Instant::now();
    let (mut sender, mut number) = (Sender::on("vb"), 0);
    let under_pressure = wait_for("every rung holds and did something", PATIENCE, || {
        for _ in 0..ROUND {
            for run in [DROPPED, CUT_OFF, CUT, SPARED] {
                let bytes = PACKET_BYTES;
                let stamp = Stamp { run, number, sent_ns: 0, flow: 1, bytes, vlan: 0 };
                sender.send(&stamp.frame());
            }
            number += 1;
        }
        let status = recorder.status();
        let lane = &status["lanes"][0];
        let rungs = lane["policies"].as_array().expect("policies").iter().skip(1);
        let did = |rung: &Value| match rung["name"].as_str() {
            Some("coarse") => lane["filtered_chunks"] != 0,
            Some("heads") => rung["cut"] != 0,
            _ => rung["shed"] != 0,
        };
        rungs.clone().all(|rung| rung["active"] == true && did(rung)).then_some(status)
    });
    wait_until_settled(&recorder, 4 * number);
    (look(ns, site, recorder, begin.elapsed()), under_pressure)
}

/// Packets of a run that are in the answer; cut ones count.
pub(crate) fn found(seen: &Seen, run: u16) -> u64 {
    let port = Stamp::port(run).to_be_bytes();
    seen.packets.iter().filter(|packet| packet.data[36..38] == port).count() as u64
}

/// What a policy did on a lane.
pub(crate) fn done<'a>(status: &'a Value, lane: usize, name: &str) -> &'a Value {
    let policies = status["lanes"][lane]["policies"].as_array().expect("policies");
    policies.iter().find(|policy| policy["name"] == name).expect("the policy is shown")
}
