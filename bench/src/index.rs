//! The index alone: entering packets into the flow table, and what the index of a full segment
//! takes in time, memory and bytes. CPU time of one thread, the best of several passes.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use wirevault_format::LinkType;
use wirevault_format::chunk::PAYLOAD_BYTES_MAX;
use wirevault_format::footer::{ChunkEntry, Codec};
use wirevault_format::limits::CHUNK_BYTES;
use wirevault_format::section::SectionId;
use wirevault_index::flow_table::{BATCH, FlowOptions};
use wirevault_index::{ChunkDelta, EncodedIndex, FlowTable, PacketNote, SegmentIndex};
use wirevault_packet::dissect;
use wirevault_query::filter::compile;

use crate::output::Output;
use crate::threads::cpu;
use crate::traffic::{Frame, Kind, Random, Traffic, ipv4, ipv6};

/// Bytes from one frame's headers to the next: a line, as at 64 B a packet.
const STRIDE_BYTES: usize = 64;
/// Packets of one chunk of such frames.
const CHUNK_PACKETS: usize = 2700;
/// Deltas in turn, so that they are not in the cache when they are filled.
const DELTAS: usize = 64;
/// Promised: entering a packet, the index's share of what is stored, closing an index.
const UPSERT_MAX_NS: f64 = 70.0;
const INDEX_MAX_PERCENT: f64 = 0.5;
const ENCODE_MAX_US: f64 = 0.6;
/// An address that no packet has, and one that many have.
const STRANGER: &str = "host 203.0.113.77";
const FILTERS: [&str; 8] = [
    STRANGER,
    "host 10.99.0.77",
    "host 10.99.0.77 and port 443",
    "not host 10.99.0.77",
    "net 10.0.0.0/9 and port 5432",
    "tcp[tcpflags] & tcp-syn != 0",
    "udp port 53",
    "ip6 host 2600:1f18::a63:1 and port 22",
];

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Live flows in the table.
    #[arg(long, value_delimiter = ',', default_values = ["10000", "100000", "1000000"])]
    flows: Vec<u32>,
    /// Packets entered at once.
    #[arg(long, value_delimiter = ',', default_values = ["1", "8", "32"])]
    batch: Vec<usize>,
    /// Packets of a pass.
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    packets: usize,
    /// Passes; the best counts.
    #[arg(long, value_name = "N", default_value_t = 5)]
    passes: usize,
    /// MiB of the segment whose index is built; 0 for none.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    mib: usize,
}

#[derive(Debug, Serialize)]
struct Upsert {
    ip: &'static str,
    live_flows: u32,
    batch: usize,
    dissect_ns: f64,
    upsert_ns: f64,
    table_bytes_per_flow: f64,
}

#[derive(Debug, Serialize)]
struct Segment {
    traffic: &'static str,
    packets: u64,
    chunks: u32,
    flows_seen: u64,
    flows_kept: u32,
    filtered_chunks: u32,
    scanned_chunks: u32,
    upsert_ns: f64,
    apply_ns: f64,
    live_bytes: usize,
    encode_ms: f64,
    encode_us_per_flow: f64,
    index_percent: f64,
    sections: Vec<Section>,
    decode_ms: f64,
    searches: Vec<Search>,
}

#[derive(Debug, Serialize)]
struct Section {
    name: String,
    bytes: usize,
    percent: f64,
}

#[derive(Debug, Serialize)]
struct Search {
    filter: &'static str,
    ms: f64,
    chunks: usize,
}

#[derive(Debug, Default, Serialize)]
struct Report {
    upserts: Vec<Upsert>,
    segments: Vec<Segment>,
}

/// Runs it.
pub(crate) fn run(options: &Options, mut output: Output) -> Result<bool> {
    let mut report = Report::default();
    output.say("Packets into the flow table, keys in random order; CPU ns a packet.");
    output.table(&[
        ("ip", 2),
        ("flows", 9),
        ("batch", 5),
        ("dissect", 8),
        ("upsert", 8),
        ("table B/flow", 12),
    ]);
    for (ip, is_v6) in [("v4", false), ("v6", true)] {
        for live_flows in &options.flows {
            for row in upserts(options, ip, is_v6, *live_flows)? {
                row.show(&mut output);
                report.upserts.push(row);
            }
        }
    }
    let kinds = [
        ("64 flood", Kind::Flood),
        ("64", Kind::Talk(Some(64))),
        ("512", Kind::Talk(Some(512))),
        ("800 mix", Kind::Talk(None)),
        ("1500", Kind::Talk(Some(1500))),
    ];
    if options.mib > 0 {
        output.say(format!("The index of a segment of {} MiB.", options.mib));
        Segment::head(&mut output);
        for (name, kind) in kinds {
            let row = segment(name, kind, options.mib << 20)?;
            row.show(&mut output);
            report.segments.push(row);
        }
    }
    promise(&report, &mut output);
    output.finish(&report)?;
    Ok(true)
}

/// The numbers that are promised, where the run can show them.
fn promise(report: &Report, output: &mut Output) {
    let at_most_flows = report.upserts.iter().map(|row| row.live_flows).max().unwrap_or(0);
    let largest = report.upserts.iter().filter(|row| row.live_flows == at_most_flows);
    // As the sealer enters them.
    let batched = largest.filter(|row| row.batch == BATCH).map(|row| row.upsert_ns);
    if let Some(worst) = batched.max_by(f64::total_cmp) {
        let what = format!("enter a packet in the flow table, {at_most_flows} live flows");
        output.at_most(&what, " ns", UPSERT_MAX_NS, worst);
    }
    for row in &report.segments {
        let what = format!("index, of the bytes stored, traffic: {}", row.traffic);
        output.at_most(&what, " %", INDEX_MAX_PERCENT, row.index_percent);
    }
    let encode = report.segments.iter().map(|row| row.encode_us_per_flow);
    if let Some(worst) = encode.max_by(f64::total_cmp) {
        output.at_most("close an index", " µs a flow", ENCODE_MAX_US, worst);
    }
}

fn ns_each(time: Duration, count: u64) -> f64 {
    time.as_nanos() as f64 / count.max(1) as f64
}

fn upserts(options: &Options, ip: &'static str, is_v6: bool, flows: u32) -> Result<Vec<Upsert>> {
    let frame = |flow: u32| {
        let [a, b, c, d] = flow.wrapping_mul(0x9e37_79b1).to_be_bytes();
        let make = if is_v6 { ipv6 } else { ipv4 };
        make([10, a, b, c], [192, 168, d, 1], [u16::from(d) | 0x8000, 443])
    };
    let stride = if is_v6 { 2 * STRIDE_BYTES } else { STRIDE_BYTES };
    let mut random = Random(7);
    let mut frames = vec![0u8; options.packets * stride];
    for place in frames.chunks_mut(stride) {
        let frame = frame(random.below(flows as usize) as u32);
        place[..frame.len()].copy_from_slice(&frame);
    }
    let mut table = FlowTable::new(FlowOptions { flows_max: flows });
    let mut deltas: Vec<ChunkDelta> = (0..DELTAS).map(|_| ChunkDelta::new()).collect();
    let mut entered = Entered { table: &mut table, deltas: &mut deltas, number: 0 };
    for first in (0..flows).step_by(BATCH) {
        let notes: Vec<_> = (first..flows.min(first + BATCH as u32))
            .map(|flow| note(&frame(flow), 64, 0))
            .collect();
        if first as usize % CHUNK_PACKETS < BATCH {
            entered.begin_chunk();
        }
        entered.enter(&notes);
    }
    let mut rows = Vec::new();
    for batch in &options.batch {
        let (mut dissect_only, mut both) = (Duration::MAX, Duration::MAX);
        for _ in 0..options.passes {
            dissect_only = dissect_only.min(pass(&frames, stride, *batch, None)?);
            both = both.min(pass(&frames, stride, *batch, Some(&mut entered))?);
        }
        let packets = options.packets as u64;
        rows.push(Upsert {
            ip,
            live_flows: flows,
            batch: *batch,
            dissect_ns: ns_each(dissect_only, packets),
            upsert_ns: ns_each(both.saturating_sub(dissect_only), packets),
            table_bytes_per_flow: entered.table.memory_bytes() as f64 / f64::from(flows),
        });
    }
    Ok(rows)
}

struct Entered<'a> {
    table: &'a mut FlowTable,
    deltas: &'a mut [ChunkDelta],
    number: u32,
}

impl Entered<'_> {
    fn begin_chunk(&mut self) {
        self.number += 1;
        let delta = &mut self.deltas[self.number as usize % DELTAS];
        delta.clear();
        delta.number = self.number;
        self.table.begin_chunk(delta);
    }

    fn enter(&mut self, notes: &[PacketNote]) {
        self.table.upsert(notes, &mut self.deltas[self.number as usize % DELTAS]);
    }
}

/// All frames once, in batches: taken apart, and entered if there is something to enter them into.
fn pass(
    frames: &[u8],
    stride: usize,
    batch: usize,
    mut entered: Option<&mut Entered<'_>>,
) -> Result<Duration> {
    let mut notes = vec![PacketNote::default(); batch];
    let begin = cpu()?;
    for chunk in frames.chunks(CHUNK_PACKETS * stride) {
        if let Some(entered) = &mut entered {
            entered.begin_chunk();
        }
        for group in chunk.chunks(batch * stride) {
            let count = group.len() / stride;
            for (place, frame) in notes.iter_mut().zip(group.chunks(stride)) {
                *place = note(frame, frame.len() as u32, 1);
            }
            match &mut entered {
                Some(entered) => entered.enter(&notes[..count]),
                None => drop(std::hint::black_box(&mut notes)),
            }
        }
    }
    Ok(cpu()? - begin)
}

/// What the index is told of an Ethernet frame.
#[inline(always)]
pub(crate) fn note(frame: &[u8], wire_len: u32, ts_ns: u64) -> PacketNote {
    let dissected = dissect(LinkType::ETHERNET, frame);
    PacketNote {
        key: dissected.key,
        hash: dissected.hash,
        direction: dissected.direction,
        ts_ns,
        wire_len,
        captured_len: wire_len,
        tcp_flags: dissected.tcp_flags,
    }
}

/// Builds the index of a full segment.
fn segment(traffic: &'static str, kind: Kind, bytes: usize) -> Result<Segment> {
    const EPB_BYTES: usize = 32;
    let mut source = Traffic::new(kind);
    let mut table = FlowTable::new(FlowOptions::default());
    let mut index = SegmentIndex::new();
    let mut delta = ChunkDelta::new();
    let (mut upsert, mut apply) = (Duration::ZERO, Duration::ZERO);
    let (mut packets, mut loose, mut notes) = (0u64, 0, Vec::new());
    let mut frame = source.next();
    let chunks = (bytes / CHUNK_BYTES) as u32;
    for number in 0..chunks {
        notes.clear();
        let mut room = PAYLOAD_BYTES_MAX;
        let block_bytes = |frame: &Frame| EPB_BYTES + frame.bytes.next_multiple_of(4) as usize;
        while block_bytes(&frame) <= room {
            room -= block_bytes(&frame);
            notes.push(note(&frame.headers, frame.bytes, frame.ts_ns));
            frame = source.next();
        }
        delta.clear();
        delta.number = number;
        delta.chunk = ChunkEntry {
            offset: 4096 + u64::from(number) * CHUNK_BYTES as u64,
            chunk_bytes: CHUNK_BYTES as u32,
            packets: notes.len() as u32,
            times_ns: Some((notes[0].ts_ns, notes[notes.len() - 1].ts_ns)),
            first_sequence: packets,
        };
        packets += notes.len() as u64;
        let begin = cpu()?;
        table.begin_chunk(&delta);
        table.upsert(&notes, &mut delta);
        upsert += cpu()? - begin;
        loose += delta.loose.len() as u64;
        let begin = cpu()?;
        index.apply(&delta)?;
        apply += cpu()? - begin;
    }
    // In a flood a packet is a flow; among talk hardly any packet finds no room.
    let flows_seen = table.len() as u64 + loose;
    let begin = cpu()?;
    let encoded = index.encode()?;
    let encode = cpu()? - begin;
    let live_bytes = index.memory_bytes();
    drop(index);
    let sections = sizes(&encoded, bytes);
    let (flows_kept, filtered_chunks) = (encoded.flows, encoded.filtered_chunks);
    let scanned_chunks = encoded.scanned_chunks;
    let begin = cpu()?;
    let closed = decoded(encoded)?;
    closed.flows()?;
    let decode = cpu()? - begin;
    let mut searches = Vec::new();
    for filter in FILTERS {
        let program = compile(filter, LinkType::ETHERNET)?;
        let begin = cpu()?;
        let selection = closed.select(&program, 0, u64::MAX);
        let ms = (cpu()? - begin).as_secs_f64() * 1e3;
        searches.push(Search { filter, ms, chunks: selection.chunks.len() });
    }
    Ok(Segment {
        traffic,
        packets,
        chunks,
        flows_seen,
        flows_kept,
        filtered_chunks,
        scanned_chunks,
        upsert_ns: ns_each(upsert, packets),
        apply_ns: ns_each(apply, packets),
        live_bytes,
        encode_ms: encode.as_secs_f64() * 1e3,
        encode_us_per_flow: ns_each(encode, flows_seen) / 1e3,
        index_percent: sections.iter().map(|section| section.percent).sum(),
        sections,
        decode_ms: decode.as_secs_f64() * 1e3,
        searches,
    })
}

fn sizes(encoded: &EncodedIndex, stored_bytes: usize) -> Vec<Section> {
    let each = encoded.sections.iter().map(|section| {
        let bytes = section.bytes.len();
        let percent = bytes as f64 * 100.0 / stored_bytes as f64;
        Section { name: format!("{:?}", section.id), bytes, percent }
    });
    each.collect()
}

fn decoded(encoded: EncodedIndex) -> Result<SegmentIndex> {
    let loader = move |id: SectionId| {
        let section = encoded.sections.iter().find(|section| section.id == id);
        Ok(section.map(|section| match section.codec {
            Codec::Raw => section.bytes.clone(),
            Codec::Zstd => section.clone().into_raw(),
        }))
    };
    Ok(SegmentIndex::decode(Box::new(loader))?)
}

impl Upsert {
    fn show(&self, output: &mut Output) {
        let times = [self.dissect_ns, self.upsert_ns].map(|ns| format!("{ns:.1}"));
        let mut cells = vec![self.ip.to_owned()];
        cells.extend([self.live_flows.to_string(), self.batch.to_string()]);
        cells.extend(times);
        cells.push(format!("{:.0}", self.table_bytes_per_flow));
        output.row(cells);
    }
}

impl Segment {
    fn head(output: &mut Output) {
        output.table(&[
            ("traffic", 8),
            ("packets", 9),
            ("flows", 9),
            ("index", 7),
            ("filtered / scanned chunks", 11),
            ("upsert ns", 9),
            ("apply ns", 8),
            ("live MB", 7),
            ("encode ms", 9),
            ("µs a flow", 9),
            ("decode ms", 9),
            ("slowest search ms", 17),
            ("read for a stranger", 19),
        ]);
    }

    fn show(&self, output: &mut Output) {
        let slowest = self.searches.iter().map(|search| search.ms).fold(0.0, f64::max);
        let for_stranger = self.searches.iter().find(|search| search.filter == STRANGER);
        output.row(vec![
            self.traffic.to_owned(),
            self.packets.to_string(),
            self.flows_seen.to_string(),
            format!("{:.3} %", self.index_percent),
            format!("{} / {} of {}", self.filtered_chunks, self.scanned_chunks, self.chunks),
            format!("{:.0}", self.upsert_ns),
            format!("{:.0}", self.apply_ns),
            format!("{:.1}", self.live_bytes as f64 / 1e6),
            format!("{:.0}", self.encode_ms),
            format!("{:.2}", self.encode_us_per_flow),
            format!("{:.1}", self.decode_ms),
            format!("{slowest:.1}"),
            for_stranger.map_or("-".to_owned(), |search| search.chunks.to_string()),
        ]);
    }
}
