//! Figures of docs/SPEC.md: `cargo test -p wirevault-index --release --test measure -- --ignored
//! --nocapture`.

#[path = "../../packet/tests/common/mod.rs"]
#[expect(dead_code, unreachable_pub, reason = "each test binary uses a part")]
mod common;

use std::time::{Duration, Instant};

use common::{Random, compile};
use wirevault_format::LinkType;
use wirevault_format::chunk::PAYLOAD_BYTES_MAX;
use wirevault_format::footer::{ChunkEntry, Codec};
use wirevault_format::section::SectionId;
use wirevault_index::flow_table::{BATCH, FlowOptions};
use wirevault_index::{ChunkDelta, FlowTable, PacketNote, SegmentIndex};
use wirevault_packet::dissect;

/// Flows that are alive at a time.
const ALIVE: usize = 1 << 16;

/// Traffic with a few talkative hosts, many others, and flows of Pareto length.
struct Traffic {
    random: Random,
    alive: Vec<(Vec<u8>, u32)>,
    recent: [usize; 16],
    small: bool,
    ts_ns: u64,
}

impl Traffic {
    fn new(small: bool) -> Self {
        let mut random = Random::new(1);
        let alive = (0..ALIVE).map(|_| flow(&mut random)).collect();
        Self { random, alive, recent: [0; 16], small, ts_ns: 1_700_000_000_000_000_000 }
    }

    fn note(&mut self) -> PacketNote {
        let random = &mut self.random;
        let at = match random.below(10) {
            0..6 => self.recent[random.below(16)],
            _ => zipf(random, ALIVE),
        };
        self.recent[random.below(16)] = at;
        if self.alive[at].1 == 0 {
            self.alive[at] = flow(random);
        }
        let (frame, left) = &mut self.alive[at];
        *left -= 1;
        let wire_len = match (self.small, random.below(100)) {
            (true, _) => frame.len() as u32,
            (_, 0..36) => 66.max(frame.len() as u32),
            (_, 36..78) => 1500,
            _ => 80 + random.below(1400) as u32,
        };
        self.ts_ns += u64::from(wire_len) * 8 / 30;
        let mut frame = frame.clone();
        if random.one_in(2) {
            turn(&mut frame);
        }
        let dissected = dissect(LinkType::ETHERNET, &frame);
        PacketNote {
            key: dissected.key,
            hash: dissected.hash,
            direction: dissected.direction,
            ts_ns: self.ts_ns,
            wire_len,
            captured_len: wire_len,
            tcp_flags: 0x10,
        }
    }
}

fn zipf(random: &mut Random, n: usize) -> usize {
    let u = (random.bits() >> 11) as f64 / (1u64 << 53) as f64;
    // Inverse of the distribution with weights 1 / rank^0.9.
    ((u * (n as f64).powf(0.1)).powf(10.0) as usize).min(n - 1)
}

/// A frame and the packets that its flow will have.
fn flow(random: &mut Random) -> (Vec<u8>, u32) {
    let u = ((random.bits() >> 11) as f64 / (1u64 << 53) as f64).max(1e-7);
    let packets = ((3.0 / u.powf(1.0 / 1.15)) as u32).clamp(2, 2_000_000);
    let host = zipf(random, 20_000) as u32;
    let host = (host.wrapping_mul(0x9e37_79b1) & 0x0f_ffff | 0x0a00_0000).to_be_bytes();
    let server = (zipf(random, 2_000) as u32 | 0x0a63_0000).to_be_bytes();
    let port = random.pick(&[443u16, 443, 443, 443, 80, 53, 22, 8080, 5432]).to_be_bytes();
    let client = (32_768 + random.below(28_232) as u16).to_be_bytes();
    let mut frame = vec![2; 12];
    if random.one_in(10) {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
        for addr in [host, server] {
            frame.extend([0x26, 0, 0x1f, 0x18, 0, 0, 0, 0, 0, 0, 0, 0]);
            frame.extend(addr);
        }
    } else {
        frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
        frame.extend(host.iter().chain(&server));
    }
    frame.extend(client.iter().chain(&port));
    frame.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 0, 0, 0, 0, 0, 0]);
    (frame, packets)
}

/// Makes the answer of a packet.
fn turn(frame: &mut [u8]) {
    let (at, width) = if frame[12] == 8 { (26, 4) } else { (22, 16) };
    for (at, width) in [(at, width), (at + 2 * width, 2)] {
        let (a, b) = frame[at..at + 2 * width].split_at_mut(width);
        a.swap_with_slice(b);
    }
}

fn ns_each(time: Duration, count: usize) -> f64 {
    time.as_nanos() as f64 / count.max(1) as f64
}

#[test]
#[ignore = "prints figures"]
fn figures() {
    for (name, small) in [("800 B mix", false), ("64 B", true)] {
        measure(name, small);
    }
}

fn measure(name: &str, small: bool) {
    const SEGMENT_BYTES: usize = 1 << 30;
    let mut traffic = Traffic::new(small);
    let mut table = FlowTable::new(FlowOptions::default());
    let mut index = SegmentIndex::new();
    let mut delta = ChunkDelta::new();
    let (mut upsert, mut apply, mut packets, mut bytes) =
        (Duration::ZERO, Duration::ZERO, 0, 0usize);
    let mut notes: Vec<PacketNote> = Vec::new();
    for number in 0.. {
        if bytes >= SEGMENT_BYTES {
            break;
        }
        notes.clear();
        let mut payload = 0;
        while payload + 32 + 1500 <= PAYLOAD_BYTES_MAX {
            let note = traffic.note();
            payload += 32 + note.captured_len as usize;
            notes.push(note);
        }
        delta.clear();
        delta.number = number;
        delta.chunk = ChunkEntry {
            offset: 4096 + bytes as u64,
            chunk_bytes: 256 << 10,
            packets: notes.len() as u32,
            times_ns: Some((notes[0].ts_ns, traffic.ts_ns)),
            first_sequence: packets as u64,
        };
        bytes += payload;
        packets += notes.len();
        let start = Instant::now();
        table.begin_chunk(&delta);
        notes.chunks(BATCH).for_each(|notes| table.upsert(notes, &mut delta));
        upsert += start.elapsed();
        let start = Instant::now();
        index.apply(&delta).unwrap();
        apply += start.elapsed();
    }
    let flows = index.flows().unwrap();
    let count = flows.len();
    let postings: usize = flows.iter().map(|flow| flow.chunks.len()).sum();
    println!(
        "{name}: {packets} packets of {} B, {count} flows, {postings} postings, {} chunks of {} \
         scanned",
        bytes / packets,
        index.unindexed_chunks(),
        index.chunks().len(),
    );
    println!("  upsert {:.0} ns/packet", ns_each(upsert, packets));
    println!("  apply {:.0} ns/packet", ns_each(apply, packets));
    let start = Instant::now();
    let sections = index.encode_sections().unwrap();
    let time = start.elapsed();
    let encoded: usize = sections.iter().map(|section| section.bytes.len()).sum();
    println!("  encode {time:.0?}, {:.0} ns/flow", ns_each(time, count));
    for section in &sections {
        println!("    {:?} {} of {}", section.id, section.bytes.len(), section.raw_bytes);
    }
    println!(
        "  {:.2} MiB, {:.3} % of the segment, {:.1} B/flow",
        encoded as f64 / (1 << 20) as f64,
        encoded as f64 * 100.0 / bytes as f64,
        encoded as f64 / count as f64
    );
    let start = Instant::now();
    let closed = SegmentIndex::decode(Box::new(move |id: SectionId| {
        let Some(section) = sections.iter().find(|section| section.id == id) else {
            return Ok(None);
        };
        Ok(Some(match section.codec {
            Codec::Raw => section.bytes.clone(),
            Codec::Zstd => {
                zstd::bulk::decompress(&section.bytes, section.raw_bytes as usize).unwrap()
            }
        }))
    }))
    .unwrap();
    println!("  decode of chunks and filter {:.1?}", start.elapsed());
    let start = Instant::now();
    closed.flows().unwrap();
    let time = start.elapsed();
    println!("  decode of flows {time:.1?}, {:.0} ns/flow", ns_each(time, count));
    let filters = [
        "host 10.200.0.1",
        "host 10.99.0.77",
        "host 10.99.0.77 and port 443",
        "not host 10.99.0.77",
        "net 10.0.0.0/9 and port 5432",
        "tcp[tcpflags] & tcp-syn != 0",
        "udp port 53",
        "ip6 host 2600:1f18::a63:1 and port 22",
        "vlan and host 10.99.0.77",
    ];
    for filter in filters {
        let program = compile(LinkType::ETHERNET, filter, true).unwrap().1;
        for (kind, index) in [("live", &index), ("closed", &closed)] {
            let start = Instant::now();
            let selection = index.select(&program, 0, u64::MAX);
            let time = start.elapsed();
            println!(
                "  {kind:6} {filter:40} {time:8.2?} {:4.0} ns/flow, {} chunks",
                ns_each(time, count),
                selection.chunks.len()
            );
        }
    }
}
