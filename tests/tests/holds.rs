//! A flow that is held, and a store that is filled three times over it.

use std::net::Ipv4Addr;

use wirevault_tests::captures::{Packet, parse_pcap, write_pcap};
use wirevault_tests::frames::{Fragment, ethernet, ipv4, tcp, udp};
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
