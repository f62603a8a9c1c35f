//! A flow that is held, and a store that is filled three times over it.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use wirevault_format::table::SegmentState;
use wirevault_index::{KeySource, open_store};
use wirevault_testkit::net::{Namespace, Sender, wait_for};
use wirevault_tests::captures::{Packet, parse_pcap, write_pcap};
use wirevault_tests::frames::{Fragment, ethernet, ipv4, tcp, udp};
use wirevault_tests::recorder::{Site, lane_count};
use wirevault_tests::store::{TestStore, code, succeed, text, wirevault, words};

const HOST: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 3);
const FLOW: &str = "tcp port 4443 and host 10.1.2.3";
const START_NS: u64 = 1_700_000_000_000_000_000;
/// Bytes that fill the smallest quota once, in packets of so many.
const FILL_BYTES: usize = 256 << 20;
const NOISE_BYTES: usize = 60_000;

fn packet(number: u64, data: Vec<u8>) -> Packet {
    Packet { ts_ns: START_NS + number * 1_001, orig_len: data.len() as u32, data }
}

fn other(number: u64, payload: &[u8]) -> Vec<u8> {
    let from = Ipv4Addr::from(0x0a00_0000 + (number % 999) as u32);
    let body = udp(5000, 53, payload);
    ethernet(1, 2, 0x0800, &ipv4(from, Ipv4Addr::new(10, 0, 9, 9), 17, &[], Fragment::Whole, &body))
}

/// Packets of one flow among those of many others.
fn traffic() -> Vec<Packet> {
    let of_flow = |number: u64| {
        let segment = tcp(4443, 50_000, 0x18, &number.to_be_bytes());
        ethernet(
            1,
            2,
            0x0800,
            &ipv4(HOST, Ipv4Addr::new(10, 0, 0, 9), 6, &[], Fragment::Whole, &segment),
        )
    };
    let frame = |number: u64| match number % 97 {
        0 => of_flow(number),
        _ => other(number, &[7; 300]),
    };
    (0..20_000).map(|number| packet(number, frame(number))).collect()
}

/// Fills the smallest quota once.
fn noise() -> Vec<Packet> {
    (0..FILL_BYTES / NOISE_BYTES)
        .map(|n| packet(n as u64, other(n as u64, &vec![n as u8; NOISE_BYTES])))
        .collect()
}

fn exported(store: &TestStore, filter: &str) -> Vec<u8> {
    let (output, _) = store.query(&["--format", "pcap", "-w", "-", filter]);
    assert!(matches!(code(&output), 0 | 1 | 3), "{}", words(&output));
    output.stdout
}

fn hold(store: &TestStore, args: &[&str]) {
    let dir = text(&store.dir());
    succeed(&wirevault(&[&["hold", args[0], "--store", &dir], &args[1..]].concat()));
}

#[test]
fn a_held_flow_is_exported_byte_for_byte_after_the_disk_was_filled_three_times() {
    let traffic = traffic();
    let store = TestStore::holding(true, &traffic);
    let flow = exported(&store, FLOW);
    let expected: Vec<Packet> = traffic.into_iter().step_by(97).collect();
    assert_eq!(parse_pcap(&flow), expected, "what was recorded");
    hold(&store, &["add", "--name", "case-7", "--filter", FLOW, "--reason", "a breach"]);
    assert!(exported(&store, FLOW) == flow, "each packet once while both are there");

    let file = store.path("noise.pcap");
    write_pcap(&file, &noise());
    for _ in 0..3 {
        succeed(&store.import(&file));
    }
    let catalog = store.catalog();
    let recorded = catalog.segments.iter().filter(|it| it.entry.hold == 0);
    let oldest = recorded.map(|it| it.entry.ordinal).min().expect("segments");
    let held = catalog.segments.iter().find(|it| it.entry.hold == 1).expect("a copy");
    assert!(oldest > held.entry.ordinal + 16, "the source is gone, and much that came behind it");
    assert!(exported(&store, FLOW) == flow, "the flow is not what it was");
    assert_eq!(store.verify().0, 0);

    hold(&store, &["release", "case-7"]);
    assert_eq!(parse_pcap(&exported(&store, FLOW)), [], "released is gone");
}

/// The recorder was killed between the entry of a hold and its copies, with its store at the quota:
/// the first segment of the next start wants the place of the only one that is held.
#[test]
fn what_a_killed_recorder_had_not_copied_outlives_the_first_segment_of_the_next() {
    const PATIENCE: Duration = Duration::from_secs(120);
    // As many as fill it and more, of a segment each.
    const IMPORTS: u64 = 20;
    const PACKETS: u64 = 250;
    const STEP_NS: u64 = 1_000_000_000_000;
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    let site = Site::new("272MiB", 1);
    for import in 0..IMPORTS {
        let packets = (0..PACKETS).map(|number| {
            let body = udp(5000, 7000 + import as u16, &[import as u8; NOISE_BYTES]);
            let (from, to) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 9, 9));
            let data = ethernet(1, 2, 0x0800, &ipv4(from, to, 17, &[], Fragment::Whole, &body));
            let ts_ns = START_NS + import * STEP_NS + number;
            Packet { ts_ns, orig_len: data.len() as u32, data }
        });
        let file = site.file("noise.pcap");
        write_pcap(&file, &packets.collect::<Vec<_>>());
        succeed(&site.offline("import", &[&text(&file)]));
    }
    let options = "    ring: 8MiB\nbuffer:\n  size: 8MiB\n";
    site.record("va", options).kill();
    let oldest = {
        let store = open_store(&site.store(), &KeySource::File(site.key())).expect("a store");
        let catalog = store.catalog(0);
        let closed = catalog.segments.iter().filter(|it| it.entry.state == SegmentState::Closed);
        closed.min_by_key(|it| it.entry.ordinal).expect("segments").entry.clone()
    };
    assert!(oldest.ordinal > 1, "the store is at its quota");
    let import = (oldest.times_ns.expect("packets").0 - START_NS) / STEP_NS;
    let flow = format!("udp dst port {}", 7000 + import);
    let found = || {
        let said = site.offline("query", &["--format", "pcap", "-w", "-", &flow]);
        parse_pcap(&said.stdout).len() as u64
    };
    assert_eq!(found(), PACKETS);
    // The list as another recorder wrote it, which had nothing to copy.
    let (another, list) = (Site::new("272MiB", 1), "audit/holds.json");
    succeed(&another.offline_of("hold", "add", &["--name", "case-9", "--filter", &flow]));
    fs::copy(another.store().join(list), site.store().join(list)).expect("a list");

    let recorder = site.record("va", options);
    let mut sender = Sender::on("vb");
    wait_for("a segment of this start", PATIENCE, || {
        sender.send(&other(1, &[1; 64]));
        (lane_count(&recorder.status(), "received") > 0).then_some(())
    });
    wait_for("a copy", PATIENCE, || {
        let log = site.offline_of("audit", "show", &["--json"]).stdout;
        String::from_utf8_lossy(&log).contains("\"held\"").then_some(())
    });
    let reasons = recorder.status()["reasons"].to_string();
    assert!(!reasons.contains("the quota took"), "{reasons}");
    assert!(recorder.terminate().success());
    let log = site.offline_of("audit", "show", &[]).stdout;
    let log = String::from_utf8_lossy(&log);
    assert!(!log.contains("before a hold had its copy"), "{log}");
    assert_eq!(found(), PACKETS, "{log}");
}

/// Both come with one import: nobody has time to look at a segment before the quota wants it.
#[test]
fn a_flow_that_is_wanted_outlives_an_import_larger_than_the_store() {
    let (traffic, noise) = (traffic(), noise());
    let store = TestStore::new(true);
    hold(&store, &["add", "--name", "case-8", "--filter", FLOW]);
    let files = [("flow.pcap", &traffic), ("noise.pcap", &noise)];
    for (name, packets) in files {
        write_pcap(&store.path(name), packets);
    }
    let (dir, flow, more) =
        (text(&store.dir()), text(&store.path("flow.pcap")), text(&store.path("noise.pcap")));
    succeed(&wirevault(&["import", "--store", &dir, &flow, &more, &more]));
    let expected: Vec<Packet> = traffic.into_iter().step_by(97).collect();
    assert_eq!(parse_pcap(&exported(&store, FLOW)), expected);
    assert_eq!(store.verify().0, 0);
}
