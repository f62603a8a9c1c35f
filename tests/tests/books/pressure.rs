//! A device that is slowed step by step under load: each rung of a ladder is entered, and left when
//! the device is quick again. The books balance at each step, and the sequence numbers that are
//! missing from the data are those that it says each rung left out. Once it shows in a small buffer
//! that fills, once in a large one that hardly does, by the time that the device takes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use wirevault_format::gap::Cause;
use wirevault_format::{Gap, LinkType, PolicyName, PressureCause};
use wirevault_index::{KeySource, open_store};
use wirevault_pipeline::{
    Action, Filter, LaneSpec, Pipeline, PipelineOptions, PolicyCounters, PolicySpec, RungSpec,
    Topology,
};
use wirevault_telemetry::clock::SystemClock;
use wirevault_testkit::net::{Namespace, Sender, Stamp, now_ns, wait_for};
use wirevault_tests::recorder::PATIENCE;
use wirevault_tests::slow::ChunkTime;

use super::{FRAME_BYTES, LaneData, ask, lanes, make_store, pool, read_back};

/// Runs, thus ports, of packets that policies spare, and of the others.
const VOICE: u16 = 1;
const BULK: u16 = 0;
/// Half of the bulk packets have as many flows.
const FLOWS: u64 = 8;
/// What the cutoff keeps of each: twenty packets.
const FLOW_BYTES: u64 = 20 * FRAME_BYTES as u64;
const SNAPLEN: u32 = 100;
/// Name of a rung, what it does, the percentages at which it is entered and left, and what a chunk
/// takes until it is entered.
type Step = (&'static str, Action, u8, u8, Duration);

/// What slows the lane down, and how it shows.
struct Way {
    cause: PressureCause,
    chunks: usize,
    /// What the device has waits for it, however slow it is.
    stall: Duration,
    /// Packets between two looks at the rungs.
    step_packets: u64,
    rungs: [Step; 4],
}

const COARSE: Action = Action::CoarseIndex;
const HEADS: Action = Action::Snaplen { bytes: SNAPLEN };
const LONG: Action = Action::Cutoff { flow_bytes: FLOW_BYTES };

/// Marks are shares of 32 chunks.
const BY_BUFFER: Way = Way {
    cause: PressureCause::Buffer,
    chunks: 32,
    stall: Duration::from_secs(3600),
    step_packets: 100,
    rungs: [
        ("coarse", COARSE, 20, 15, Duration::from_millis(250)),
        ("heads", HEADS, 30, 20, Duration::from_millis(500)),
        ("long", LONG, 50, 30, Duration::from_millis(1000)),
        ("rest", Action::Drop, 70, 40, Duration::from_millis(2000)),
    ],
};

/// Marks are shares of 8 s, from 2 s on: a few chunks of 512 wait then.
const BY_QUEUE: Way = Way {
    cause: PressureCause::Queue,
    chunks: 512,
    stall: Duration::from_secs(8),
    step_packets: 16,
    rungs: [
        ("coarse", COARSE, 25, 20, Duration::from_millis(500)),
        ("heads", HEADS, 30, 20, Duration::from_millis(700)),
        ("long", LONG, 35, 25, Duration::from_millis(1000)),
        ("rest", Action::Drop, 40, 30, Duration::from_millis(1500)),
    ],
};

#[test]
fn a_device_slowed_step_by_step_moves_the_lane_up_and_down_the_ladder() {
    for topology in [Topology::RunToCompletion, Topology::Split] {
        climb(topology, &BY_BUFFER);
    }
}

#[test]
fn a_device_that_is_late_moves_the_lane_up_and_down_while_the_buffer_is_nearly_free() {
    climb(Topology::Auto, &BY_QUEUE);
}

fn climb(topology: Topology, way: &Way) {
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    let folder = tempfile::tempdir().expect("folder");
    let store = make_store(folder.path());
    let time = ChunkTime::default();
    let options = PipelineOptions {
        topology,
        queue: time.queues(),
        stall: way.stall,
        ..PipelineOptions::default()
    };
    let lanes = lanes(1).into_iter().map(|lane| with_ladder(lane, way)).collect();
    let clock = Arc::new(SystemClock);
    let pool = pool(way.chunks);
    let pipeline = Pipeline::start(store, pool, lanes, &options, clock).expect("pipeline");
    let sent = up_and_down(&pipeline, &time, way);
    let policies = &pipeline.lanes()[0].shared.policies;
    let counts: Vec<_> = policies.iter().map(|it| (it.name, it.shed(), it.cut())).collect();
    pipeline.stop();
    let books = pipeline.join().expect("the pipeline ends well")[0];

    assert!(books.balances() && books.in_flight == 0, "{books:?}");
    assert_eq!(books.received, sent.len() as u64, "the sender's own count");
    let reader = open_store(&folder.path().join("store"), &KeySource::Recorded).expect("store");
    let catalog = reader.catalog(now_ns());
    let data = read_back(&catalog).remove(&0).expect("the lane's data");
    assert_eq!(books.stored, (data.packets.len() + data.cut.len()) as u64);
    assert_eq!(books.cut, data.cut.len() as u64);
    assert_eq!(books.shed, counts.iter().map(|(_, shed, _)| shed).sum::<u64>());
    check_missing(&sent, &data, &counts, books.dropped_packets());
    check_marks(&data.gaps, &counts, way.cause);
    let summary = ask(&catalog);
    for (name, shed, _) in counts {
        let of_policy =
            summary.gaps.iter().filter(|gap| gap.policy.as_deref() == Some(name.as_str()));
        let told: u64 = of_policy.filter_map(|gap| gap.packets).sum();
        assert_eq!(told, shed, "what an answer says of {name}: {summary}");
    }
    assert!(!summary.complete);
    assert!(summary.gaps.iter().all(|gap| gap.cause != Cause::Pressure), "a mark is no absence");
}

fn with_ladder(lane: LaneSpec, way: &Way) -> LaneSpec {
    let name = |name| PolicyName::new(name).expect("a short name");
    let rung = |(text, action, enter_percent, leave_percent, _)| RungSpec {
        policy: PolicySpec { name: name(text), filter: None, action },
        enter_percent,
        leave_percent,
    };
    let voice = format!("udp dst port {}", Stamp::port(VOICE));
    let filter: Filter =
        Arc::new(move |link: LinkType| wirevault_query::filter::compile(&voice, link).ok());
    let keep = PolicySpec { name: name("voice"), filter: Some(filter), action: Action::Keep };
    LaneSpec { policies: vec![keep], ladder: way.rungs.map(rung).to_vec(), ..lane }
}

/// Sends until the last rung is entered, slowing the device for each; then until they are left.
fn up_and_down(pipeline: &Pipeline, time: &ChunkTime, way: &Way) -> Vec<Stamp> {
    let lane = &pipeline.lanes()[0];
    let rungs: Vec<&PolicyCounters> = lane.shared.policies.iter().skip(1).collect();
    let (mut sender, mut sent) = (Sender::on("vb"), Vec::new());
    let mut send = |packets: u64| {
        for _ in 0..packets {
            let number = sent.len() as u64;
            let run = if number.is_multiple_of(2) { VOICE } else { BULK };
            // Every other bulk packet is one of the long flows, the rest are flows that begin,
            // which a cutoff leaves to the rung behind it.
            let flow = match number % 4 {
                1 => 2000 + (number % 60_000) as u16,
                _ => 1000 + (number / 4 % FLOWS) as u16,
            };
            let mut stamp = Stamp { run, number, sent_ns: 0, flow, bytes: FRAME_BYTES, vlan: 0 };
            stamp.sent_ns = now_ns();
            sender.send(&stamp.frame());
            sent.push(stamp);
        }
    };
    for ((name, action, .., chunk_time), rung) in way.rungs.iter().zip(&rungs) {
        time.set(*chunk_time);
        wait_for(name, 3 * PATIENCE, || {
            send(way.step_packets);
            let snapshot = lane.books.snapshot();
            assert!(snapshot.balances(), "{name}: {snapshot:?}");
            let did = match action {
                Action::CoarseIndex => true,
                Action::Snaplen { .. } => rung.cut() > 0,
                _ => rung.shed() > 0,
            };
            (rung.is_active() && did).then_some(())
        });
    }
    time.set(Duration::ZERO);
    wait_for("every rung is left", 3 * PATIENCE, || {
        let snapshot = lane.books.snapshot();
        assert!(snapshot.balances(), "{snapshot:?}");
        let settled = snapshot.in_flight == 0 && rungs.iter().all(|rung| !rung.is_active());
        settled.then_some(())
    });
    sent
}

/// The numbers that are missing are as many as were left out and lost, and no packet that a policy
/// spares is among those left out.
fn check_missing(sent: &[Stamp], data: &LaneData, counts: &[(PolicyName, u64, u64)], dropped: u64) {
    let is_there = |stamp: &&Stamp| {
        data.packets.contains_key(&stamp.number) || data.cut.contains(&stamp.number)
    };
    let missing: Vec<&Stamp> = sent.iter().filter(|stamp| !is_there(stamp)).collect();
    let shed: u64 = counts.iter().map(|(_, shed, _)| shed).sum();
    assert_eq!(missing.len() as u64, shed + dropped);
    let voice = missing.iter().filter(|stamp| stamp.run == VOICE).count() as u64;
    assert!(voice <= dropped, "{voice} packets to be spared are missing, {dropped} were lost");
    let bulk: BTreeSet<u64> =
        sent.iter().filter(|stamp| stamp.run == BULK).map(|stamp| stamp.number).collect();
    assert!(data.cut.is_subset(&bulk), "a packet to be spared was cut");

    let told = data.gaps.iter().filter(|gap| gap.cause == Cause::Shed);
    for gap in told.clone() {
        let (packets, until_ns) = (gap.packets.expect("a count"), gap.until_ns.expect("an end"));
        // The sender stamps a packet before the kernel does, and both by one clock.
        let within = missing.iter().filter(|stamp| stamp.sent_ns < until_ns);
        assert!(within.count() as u64 >= packets, "{gap:?}");
    }
    for (name, shed, _) in counts {
        let of_policy = told.clone().filter(|gap| gap.policy == Some(*name));
        let (sum, last) = of_policy.fold((0, 0), |(sum, last), gap| {
            (sum + gap.packets.unwrap_or_default(), gap.cumulative.max(last))
        });
        assert_eq!((sum, last), (*shed, *shed), "{name}: in gaps, and their running total");
    }
    println!("{} sent, {} missing, {dropped} lost, {counts:?}", sent.len(), missing.len());
}

/// Each rung is marked when it is entered and when it is left, with what it did meanwhile, and what
/// it left out it left out then.
fn check_marks(gaps: &[Gap], counts: &[(PolicyName, u64, u64)], cause: PressureCause) {
    for (name, shed, cut) in &counts[1..] {
        let of_rung =
            |cause| gaps.iter().filter(move |gap| gap.cause == cause && gap.policy == Some(*name));
        let (entered, left): (Vec<_>, Vec<_>) =
            of_rung(Cause::Pressure).partition(|gap| gap.until_ns.is_none());
        let begins = |marks: &[&Gap]| marks.iter().map(|gap| gap.from_ns).collect::<BTreeSet<_>>();
        assert!(!entered.is_empty(), "{name} was not entered");
        // One that no chunk was written under has a single mark, with both ends.
        assert!(begins(&entered).is_subset(&begins(&left)), "{name}: entered, and left again");
        let causes = of_rung(Cause::Pressure).map(|mark| mark.pressure).collect::<BTreeSet<_>>();
        assert_eq!(causes, BTreeSet::from([Some(cause)]), "{name}");
        let did: u64 = left.iter().filter_map(|gap| gap.packets).sum();
        assert_eq!(did, shed + cut, "{name}: what it did while it was entered");
        for gap in of_rung(Cause::Shed) {
            let holds = |mark: &&Gap| {
                Some(gap.from_ns) <= mark.until_ns && Some(mark.from_ns) <= gap.until_ns
            };
            assert!(left.iter().any(holds), "{name}: {gap:?} but {left:?}");
        }
    }
}
