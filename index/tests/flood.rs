//! A flood, in which every packet is a flow of its own: the index stays within its share of what is
//! stored, and still leaves chunks out.

#[path = "../../packet/tests/common/mod.rs"]
#[expect(dead_code, unreachable_pub, reason = "each test binary uses a part")]
mod common;

use common::compile;
use wirevault_format::LinkType;
use wirevault_format::footer::{ChunkEntry, Codec};
use wirevault_format::limits::CHUNK_BYTES;
use wirevault_index::flow_table::FlowOptions;
use wirevault_index::{ChunkDelta, EncodedIndex, FlowTable, PacketNote, SegmentIndex};
use wirevault_packet::dissect;

const CHUNKS: u32 = 64;
/// Packets of 64 bytes in a chunk.
const PACKETS: u32 = 2700;

/// Packet `n` of a flood: a source of its own, one destination.
fn flood(n: u32) -> Vec<u8> {
    frame(n.wrapping_mul(0x9e37_79b1), 0xc0a8_0001, [1024 + (n % 50_000) as u16, 80])
}

/// A packet of one of fifty conversations with servers, each of which lasts for a chunk.
fn talk(n: u32) -> Vec<u8> {
    let chunk = n / PACKETS;
    frame(0x0a00_0000 | (n % 50), 0x0a01_0000 | chunk, [40_000 + (n % 50) as u16, 443])
}

fn frame(source: u32, destination: u32, ports: [u16; 2]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    frame.extend([source, destination].map(u32::to_be_bytes).as_flattened());
    frame.extend(ports.map(u16::to_be_bytes).as_flattened());
    frame.extend([0; 16]);
    frame
}

fn index(flows_max: u32, packet: impl Fn(u32) -> Vec<u8>) -> SegmentIndex {
    let mut table = FlowTable::new(FlowOptions { flows_max });
    let mut index = SegmentIndex::new();
    let mut delta = ChunkDelta::small();
    for number in 0..CHUNKS {
        let note = |n: u32| {
            let frame = packet(n);
            let dissected = dissect(LinkType::ETHERNET, &frame);
            PacketNote {
                key: dissected.key,
                hash: dissected.hash,
                direction: dissected.direction,
                ts_ns: u64::from(n),
                wire_len: 64,
                captured_len: 64,
                tcp_flags: dissected.tcp_flags,
            }
        };
        let first = number * PACKETS;
        let notes: Vec<_> = (first..first + PACKETS).map(note).collect();
        delta.clear();
        delta.number = number;
        delta.chunk = ChunkEntry {
            offset: 4096 + u64::from(number) * CHUNK_BYTES as u64,
            chunk_bytes: CHUNK_BYTES as u32,
            packets: PACKETS,
            times_ns: Some((first.into(), (first + PACKETS - 1).into())),
            first_sequence: first.into(),
        };
        table.begin_chunk(&delta);
        table.upsert(&notes, &mut delta);
        index.apply(&delta).unwrap();
    }
    index
}

fn closed(encoded: EncodedIndex) -> SegmentIndex {
    let loader = move |id| {
        let section = encoded.sections.iter().find(|section| section.id == id);
        Ok(section.map(|section| match section.codec {
            Codec::Raw => section.bytes.clone(),
            Codec::Zstd => section.clone().into_raw(),
        }))
    };
    SegmentIndex::decode(Box::new(loader)).unwrap()
}

fn bytes(encoded: &EncodedIndex) -> usize {
    encoded.sections.iter().map(|section| section.bytes.len()).sum()
}

fn selected(index: &SegmentIndex, filter: &str) -> Vec<u32> {
    let program = compile(LinkType::ETHERNET, filter, true).unwrap().1;
    index.select(&program, 0, u64::MAX).chunks
}

#[test]
fn a_flood_has_an_index_of_its_share_that_still_finds_hosts() {
    // With room for all flows, for some, and for none.
    for flows_max in [200_000, 20_000, 0] {
        let live = index(flows_max, flood);
        let encoded = live.encode().unwrap();
        let stored = CHUNKS as usize * CHUNK_BYTES;
        assert!(bytes(&encoded) * 200 <= stored, "{} of {stored}", bytes(&encoded));
        assert_eq!((encoded.flows, encoded.filtered_chunks), (0, CHUNKS));
        assert_eq!(encoded.scanned_chunks, 0);
        let closed = closed(encoded);
        for n in [0, 77_777, CHUNKS * PACKETS - 1] {
            let addr = std::net::Ipv4Addr::from(n.wrapping_mul(0x9e37_79b1));
            for index in [&live, &closed] {
                let chunks = selected(index, &format!("host {addr}"));
                assert!(chunks.contains(&(n / PACKETS)), "{addr}");
                assert!(chunks.len() < CHUNKS as usize / 2, "{addr}: {chunks:?}");
            }
        }
        assert_eq!(selected(&closed, "host 192.168.0.1").len(), CHUNKS as usize);
        assert!(selected(&closed, "port 22").len() < CHUNKS as usize / 2);
        assert_eq!(selected(&closed, "udp or vlan"), []);
        assert_eq!(selected(&closed, "not host 192.168.0.1").len(), CHUNKS as usize);
    }
}

#[test]
fn a_flood_coarsens_the_chunks_it_fills() {
    let quiet = CHUNKS / 2;
    let mixed = |n: u32| if n < quiet * PACKETS { talk(n) } else { flood(n) };
    let live = index(200_000, mixed);
    let encoded = live.encode().unwrap();
    assert_eq!((encoded.flows, encoded.filtered_chunks), (50 * quiet, CHUNKS - quiet));
    let closed = closed(encoded);
    assert!((0..CHUNKS).all(|chunk| closed.lists_flows_of(chunk) == (chunk < quiet)));
    let calm: Vec<u32> =
        selected(&closed, "host 10.1.0.7").into_iter().filter(|n| *n < quiet).collect();
    assert_eq!(calm, [7]);
    let flows = closed.flows().unwrap();
    assert!(flows.iter().all(|flow| flow.chunks.len() == 1 && flow.stats.packets == 54));
}

#[test]
fn headers_without_end_are_scanned() {
    // A flood of VLAN tags and types: every packet another shape.
    let odd = |n: u32| {
        let mut frame = vec![2; 12];
        frame.extend([0x81, 0]);
        frame.extend((n as u16 & 0xfff).to_be_bytes());
        frame.extend((0x9000 | (n >> 12) as u16).to_be_bytes());
        frame.extend([0; 46]);
        frame
    };
    for flows_max in [200_000, 0] {
        let encoded = index(flows_max, odd).encode().unwrap();
        assert_eq!((encoded.flows, encoded.scanned_chunks), (0, CHUNKS));
        assert!(bytes(&encoded) * 200 <= CHUNKS as usize * CHUNK_BYTES);
    }
}
