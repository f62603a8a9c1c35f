//! Several lanes and several volumes: everything comes back, merged by time, each lane in its own
//! order.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;

use wirevault_capture::Source;
use wirevault_pipeline::{PipelineOptions, Topology};
use wirevault_query::Request;
use wirevault_telemetry::clock::SystemClock;
use wirevault_tests::captures::{Packet, parse_pcap, write_pcap};
use wirevault_tests::lanes;
use wirevault_tests::oracle::compare;
use wirevault_tests::store::{TestStore, all, code, text, words};
use wirevault_tests::traffic::Capture;

/// The order of an answer: lanes merged by the running maximum of their times, lanes of lower
/// number first at equal times, each lane as it was captured.
fn merged(lanes: &[&[Packet]]) -> Vec<Packet> {
    let mut keyed = Vec::new();
    for (lane, packets) in lanes.iter().enumerate() {
        let mut reached_ns = 0;
        for (sequence, packet) in packets.iter().enumerate() {
            reached_ns = packet.ts_ns.max(reached_ns);
            keyed.push(((reached_ns, lane, sequence), packet));
        }
    }
    keyed.sort_by_key(|(key, _)| *key);
    keyed.into_iter().map(|(_, packet)| packet.clone()).collect()
}

#[test]
fn two_lanes_on_two_volumes_come_back() {
    for sealed in [false, true] {
        let store = TestStore::with_volumes(sealed, 2);
        let captures = [Capture::new(3), Capture::new(4)];
        let mut sources: Vec<Box<dyn Source>> = Vec::new();
        for (number, capture) in captures.iter().enumerate() {
            let file = store.path(&format!("lane-{number}.pcap"));
            write_pcap(&file, &capture.packets);
            sources.push(Box::new(lanes::replay(&file)));
        }
        let pipeline = lanes::start(&store.dir(), sources, true, Arc::new(SystemClock));
        let books = pipeline.join().unwrap();
        for (books, capture) in books.iter().zip(&captures) {
            assert_eq!(books.received, capture.packets.len() as u64, "{books:?}");
            assert_eq!(books.stored, books.received, "{books:?}");
        }
        let catalog = store.catalog();
        let parts: BTreeSet<_> =
            catalog.segments.iter().map(|s| (s.entry.lane, s.volume)).collect();
        let lanes: BTreeSet<_> = parts.iter().map(|part| part.0).collect();
        let volumes: BTreeSet<_> = parts.iter().map(|part| part.1).collect();
        println!(
            "sealed {sealed}: lanes and volumes of {} segments: {parts:?}",
            catalog.segments.len()
        );
        assert_eq!((lanes.len(), volumes.len()), (2, 2), "{parts:?}");

        let wanted = merged(&[&captures[0].packets, &captures[1].packets]);
        let answer = store.ask(&all(""));
        compare(&wanted, &answer.packets).unwrap();
        assert!(answer.summary.complete, "{}", answer.summary);
        let sorted = store.ask(&Request { sort: true, ..Request::default() });
        assert!(sorted.packets.is_sorted_by_key(|packet| packet.ts_ns));
        assert_eq!(sorted.packets.len(), wanted.len());

        let (status, report) = store.verify();
        assert_eq!(status, 0, "{report}");
        assert_eq!(report["packets"], wanted.len());

        let (filter, file) = ("udp or vlan", store.path("out.pcap"));
        let (output, _) = store.query(&[filter, "-w", &text(&file), "--format", "pcap"]);
        assert_eq!(code(&output), 0, "{}", words(&output));
        let answer = store.ask(&all(filter));
        compare(&answer.packets, &parse_pcap(&fs::read(&file).unwrap())).unwrap();
    }
}

/// As many lanes and volumes as are promised.
const LANES: u32 = 32;
const VOLUMES: usize = 8;
/// The least that so many lanes may ask for; a build server's disk has little more.
const QUOTA: &str = "8GiB";
/// Of each lane: some six chunks, where the buffer has four for each.
const LANE_PACKETS: u32 = 1500;

fn packet(lane: u32, n: u32) -> Packet {
    let mut data = vec![0; 12];
    data.extend([8, 0, 0x45, 0, 4, 0x1a, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, lane as u8, 1]);
    data.extend([10, 0, 2, (n % 50) as u8, 0x10, 0, 0, 53, 4, 6, 0, 0]);
    data.extend([lane.to_be_bytes(), n.to_be_bytes()].concat());
    data.resize(1064, n as u8);
    let ts_ns = 1_700_000_000_000_000_000 + u64::from(n * LANES + lane) * 1000;
    Packet { ts_ns, orig_len: data.len() as u32, data }
}

#[test]
fn thirty_two_lanes_on_eight_volumes_come_back_through_a_small_buffer() {
    for (topology, sealed) in [(Topology::RunToCompletion, true), (Topology::Split, false)] {
        let store = TestStore::with_lanes(sealed, VOLUMES, LANES as usize, QUOTA);
        let of_lane = |lane| (0..LANE_PACKETS).map(|n| packet(lane, n)).collect::<Vec<_>>();
        let packets: Vec<_> = (0..LANES).map(of_lane).collect();
        let mut sources: Vec<Box<dyn Source>> = Vec::new();
        for (lane, packets) in packets.iter().enumerate() {
            let file = store.path(&format!("lane-{lane}.pcap"));
            write_pcap(&file, packets);
            sources.push(Box::new(lanes::replay(&file)));
        }
        let options = PipelineOptions { import: true, topology, ..PipelineOptions::default() };
        let clock = Arc::new(SystemClock);
        let pipeline = lanes::start_with(&store.dir(), sources, options, clock);
        let pool = pipeline.pool().clone();
        assert_eq!(pool.capacity(), 4 * LANES as usize, "the least that so many lanes need");
        let books = pipeline.join().unwrap();
        assert_eq!((books.len(), pool.in_flight()), (LANES as usize, 0));
        for books in &books {
            let counts = (books.received, books.stored, books.dropped_packets());
            assert_eq!(counts, (u64::from(LANE_PACKETS), u64::from(LANE_PACKETS), 0), "{books:?}");
        }
        let catalog = store.catalog();
        let volumes: BTreeSet<_> = catalog.segments.iter().map(|s| s.volume).collect();
        assert_eq!(volumes.len(), VOLUMES, "{volumes:?}");

        let answer = store.ask(&all(""));
        let each: Vec<_> = packets.iter().map(Vec::as_slice).collect();
        compare(&merged(&each), &answer.packets).unwrap();
        assert!(answer.summary.complete, "{}", answer.summary);
        let answer = store.ask(&all("host 10.0.7.1"));
        compare(&packets[7], &answer.packets).unwrap();
    }
}
