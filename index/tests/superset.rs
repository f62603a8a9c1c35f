//! Whatever the filter, the index names every chunk that holds a match: live, and read back.

#[path = "../../packet/tests/common/mod.rs"]
#[expect(dead_code, unreachable_pub, reason = "each test binary uses a part")]
mod common;

use std::collections::HashMap;

use common::{LINKS, Random, cases, compile, filters, frames};
use proptest::prelude::*;
use wirevault_format::footer::{ChunkEntry, Codec};
use wirevault_format::section::SectionId;
use wirevault_format::{Cause, Gap, LinkType};
use wirevault_index::delta::FlowTouch;
use wirevault_index::flow_table::FlowOptions;
use wirevault_index::sections::EncodedSection;
use wirevault_index::{ChunkDelta, FlowTable, PacketNote, SegmentIndex};
use wirevault_packet::bpf::Program;
use wirevault_packet::dissect;

/// Filters asked of one segment.
const FILTERS: usize = 24;

struct Packet {
    ts_ns: u64,
    wire_len: u32,
    data: Vec<u8>,
}

/// A segment's packets by chunk, and what the flow table made of them.
struct Sample {
    link: LinkType,
    chunks: Vec<Vec<Packet>>,
    deltas: Vec<ChunkDelta>,
}

impl Sample {
    /// Some frames come again and again, so that flows reach over several chunks.
    fn new(random: &mut Random, flows_max: u32) -> Self {
        let link = *random.pick(&LINKS);
        let pool: Vec<_> = (0..1 + random.below(40)).map(|_| frames::frame(random, link)).collect();
        let count = 1 + random.below(12);
        let chunks: Vec<Vec<Packet>> = (0..count)
            .map(|_| {
                let packets = random.below(20);
                (0..packets).map(|_| packet(random, &pool)).collect()
            })
            .collect();
        let mut table = FlowTable::new(FlowOptions { flows_max });
        let deltas =
            chunks.iter().enumerate().map(|(n, chunk)| delta(&mut table, link, n as u32, chunk));
        let deltas = deltas.collect();
        Self { link, chunks, deltas }
    }

    fn live(&self) -> SegmentIndex {
        let mut index = SegmentIndex::new();
        self.deltas.iter().for_each(|delta| index.apply(delta).unwrap());
        index
    }

    fn program(&self, random: &mut Random) -> Program {
        loop {
            let coarse = [
                "tcp[tcpflags] & tcp-syn != 0",
                "tcp[tcpflags] = tcp-ack",
                "greater 90",
                "link[60] & 1 = 0",
            ];
            let filter = match random.one_in(6) {
                true => (*random.pick(&coarse)).to_owned(),
                false => filters::filter(random),
            };
            if let Some((_, program)) = compile(self.link, &filter, true) {
                return program;
            }
        }
    }

    /// Chunks that hold a match.
    fn matching(&self, program: &Program, since_ns: u64, until_ns: u64) -> Vec<u32> {
        let matches = |packet: &Packet| {
            (since_ns..until_ns).contains(&packet.ts_ns)
                && program.run(&packet.data, packet.wire_len) != 0
        };
        let chunks = self.chunks.iter().enumerate();
        chunks.filter(|(_, chunk)| chunk.iter().any(matches)).map(|(n, _)| n as u32).collect()
    }

    /// Answers that lack a chunk, and chunks that need not be read, of random filters and windows.
    fn ask(&self, random: &mut Random, indexes: &[&SegmentIndex]) -> (usize, usize) {
        let (mut wrong, mut spared) = (0, 0);
        for _ in 0..FILTERS {
            let program = self.program(random);
            let (since_ns, until_ns) = match random.below(3) {
                0 => (0, u64::MAX),
                _ => (random.bits() % 1000, random.bits() % 1000),
            };
            let matching = self.matching(&program, since_ns, until_ns);
            for index in indexes {
                let selection = index.select(&program, since_ns, until_ns);
                assert!(selection.chunks.is_sorted());
                wrong += usize::from(matching.iter().any(|n| !selection.chunks.contains(n)));
                spared += self.chunks.len() - selection.chunks.len();
            }
        }
        (wrong, spared)
    }
}

fn packet(random: &mut Random, pool: &[Vec<u8>]) -> Packet {
    let mut data = pool[random.below(pool.len())].clone();
    if random.one_in(8) {
        let more = random.below(30);
        data.extend(random.bytes(more));
    }
    let wire_len = data.len() as u32;
    if random.one_in(6) {
        data.truncate(random.below(data.len() + 1));
    }
    Packet { ts_ns: random.bits() % 1000, wire_len, data }
}

fn delta(table: &mut FlowTable, link: LinkType, number: u32, packets: &[Packet]) -> ChunkDelta {
    let mut delta = ChunkDelta::small();
    delta.number = number;
    let times = || packets.iter().map(|packet| packet.ts_ns);
    delta.chunk = ChunkEntry {
        offset: 4096 * u64::from(number + 1),
        chunk_bytes: 4096,
        packets: packets.len() as u32,
        times_ns: times().min().zip(times().max()),
        first_sequence: 100 * u64::from(number),
    };
    table.begin_chunk(&delta);
    let notes: Vec<PacketNote> = packets.iter().map(|packet| note(link, packet)).collect();
    notes.chunks(32).for_each(|notes| table.upsert(notes, &mut delta));
    delta
}

fn note(link: LinkType, packet: &Packet) -> PacketNote {
    let dissected = dissect(link, &packet.data);
    PacketNote {
        key: dissected.key,
        hash: dissected.hash,
        direction: dissected.direction,
        ts_ns: packet.ts_ns,
        wire_len: packet.wire_len,
        captured_len: packet.data.len() as u32,
        tcp_flags: dissected.tcp_flags,
    }
}

fn raw(section: &EncodedSection) -> Vec<u8> {
    match section.codec {
        Codec::Raw => section.bytes.clone(),
        Codec::Zstd => zstd::bulk::decompress(&section.bytes, section.raw_bytes as usize).unwrap(),
    }
}

fn sections(index: &SegmentIndex) -> HashMap<SectionId, Vec<u8>> {
    sections_within(index, u64::MAX)
}

/// With a budget of 0 filters cover every chunk for which they are smaller than flows.
fn sections_within(index: &SegmentIndex, budget_bytes: u64) -> HashMap<SectionId, Vec<u8>> {
    let encoded = index.encode_within(budget_bytes).unwrap();
    encoded.sections.iter().map(|section| (section.id, raw(section))).collect()
}

fn decode(sections: HashMap<SectionId, Vec<u8>>) -> Result<SegmentIndex, String> {
    SegmentIndex::decode(Box::new(move |id| Ok(sections.get(&id).cloned())))
        .map_err(|error| error.to_string())
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn every_match_is_selected(seed: u64) {
        let mut random = Random::new(seed);
        let flows_max = *random.pick(&[0, 3, 400]);
        let sample = Sample::new(&mut random, flows_max);
        let live = sample.live();
        let closed = decode(sections(&live)).unwrap();
        let (here, there) = (live.flows().unwrap(), closed.flows().unwrap());
        prop_assert!(here.iter().filter(|flow| !flow.chunks.is_empty()).eq(there.iter()));
        prop_assert_eq!(live.chunks(), closed.chunks());
        let coarse = decode(sections_within(&live, 0)).unwrap();
        prop_assert!(coarse.flows().unwrap().len() <= there.len());
        let (wrong, _) = sample.ask(&mut random, &[&live, &closed, &coarse]);
        prop_assert_eq!(wrong, 0);
    }

    #[test]
    fn what_was_read_back_is_written_alike(seed: u64) {
        let mut random = Random::new(seed);
        let flows_max = *random.pick(&[0, 3, 400]);
        let live = Sample::new(&mut random, flows_max).live();
        let mut written = sections_within(&live, *random.pick(&[0, 1000, u64::MAX]));
        let mut again = sections(&decode(written.clone()).unwrap());
        // The host filter is built over a random seed.
        let filters = [&mut written, &mut again].map(|it| it.remove(&SectionId::Filter).is_some());
        prop_assert_eq!(filters[0], filters[1]);
        let differ = |id: &&SectionId| written.get(id) != again.get(id);
        prop_assert_eq!(SectionId::ALL.iter().find(differ), None);
    }

    #[test]
    fn a_damaged_section_is_an_error_or_a_superset(seed: u64) {
        let mut random = Random::new(seed);
        let live = Sample::new(&mut random, 400).live();
        let mut sections = sections_within(&live, *random.pick(&[0, u64::MAX]));
        let ids: Vec<SectionId> = SectionId::ALL.to_vec();
        for _ in 0..8 {
            let Some(bytes) = sections.get_mut(random.pick(&ids)) else { continue };
            match random.below(4) {
                0 => bytes.truncate(random.below(bytes.len() + 1)),
                1 => bytes.extend(random.bytes(3)),
                _ if bytes.is_empty() => {}
                _ => {
                    let at = random.below(bytes.len());
                    bytes[at] = random.bits() as u8;
                }
            }
        }
        // Nothing here may panic; bytes that pass are merely another index.
        if let Ok(index) = decode(sections) {
            let program = compile(LinkType::ETHERNET, "host 10.0.0.1 or port 80", true).unwrap().1;
            index.select(&program, 0, u64::MAX);
            let _ = index.flows();
        }
    }
}

/// Wrong answers of one sample after another, once its deltas were changed.
fn wrong_answers(change: impl Fn(&mut ChunkDelta)) -> impl Iterator<Item = usize> {
    let mut random = Random::new(7);
    std::iter::repeat_with(move || {
        let mut sample = Sample::new(&mut random, 400);
        sample.deltas.iter_mut().for_each(&change);
        let live = sample.live();
        sample.ask(&mut random, &[&live]).0
    })
}

/// Whether a change makes an answer wrong. Some do only where a rare filter meets a rare packet.
fn is_noticed(change: impl Fn(&mut ChunkDelta)) -> bool {
    wrong_answers(change).take(4000).any(|wrong| wrong > 0)
}

/// The test above would notice an index that leaves something out.
#[test]
fn mutations_are_noticed() {
    assert!(wrong_answers(|_| {}).take(60).all(|wrong| wrong == 0));
    let one_posting_short = |delta: &mut ChunkDelta| {
        if delta.touched.len() > 1 {
            delta.touched.pop();
        }
    };
    assert!(is_noticed(one_posting_short), "a posting");
    let each = |change: fn(&mut FlowTouch)| {
        move |delta: &mut ChunkDelta| delta.touched.iter_mut().for_each(change)
    };
    assert!(is_noticed(each(|touch| touch.stats.directions = 1)), "directions");
    let no_flags = |touch: &mut FlowTouch| (touch.stats.tcp_or, touch.stats.tcp_and) = (0, 0);
    assert!(is_noticed(each(no_flags)), "flags of any packet");
    let all_flags = |touch: &mut FlowTouch| (touch.stats.tcp_or, touch.stats.tcp_and) = (255, 255);
    assert!(is_noticed(each(all_flags)), "flags of every packet");
    let wire = |touch: &mut FlowTouch| {
        touch.stats.wire_len.1 = touch.stats.wire_len.0;
    };
    assert!(is_noticed(each(wire)), "lengths on the wire");
    let captured = |touch: &mut FlowTouch| {
        touch.stats.captured_len.1 = touch.stats.captured_len.0;
    };
    assert!(is_noticed(each(captured)), "captured lengths");
    let times = |touch: &mut FlowTouch| {
        touch.stats.times_ns.1 = touch.stats.times_ns.0;
    };
    assert!(is_noticed(each(times)), "times");
}

#[test]
fn the_index_spares_chunks() {
    let mut random = Random::new(11);
    let (mut spared, mut of) = (0, 0);
    for _ in 0..40 {
        let sample = Sample::new(&mut random, 400);
        let closed = decode(sections(&sample.live())).unwrap();
        spared += sample.ask(&mut random, &[&closed]).1;
        of += sample.chunks.len() * FILTERS;
    }
    assert!(spared * 2 > of, "{spared} of {of} chunks");
}

/// Filters of chunks spare less than flows, and still much.
#[test]
fn filters_spare_chunks() {
    let mut random = Random::new(11);
    let (mut spared, mut of) = (0, 0);
    for _ in 0..40 {
        let sample = Sample::new(&mut random, 0);
        let live = sample.live();
        let closed = decode(sections(&live)).unwrap();
        let covered = (0..).zip(&sample.deltas).all(|(chunk, delta)| {
            delta.loose.is_empty() || !closed.is_unindexed(chunk) && !closed.lists_flows_of(chunk)
        });
        assert!(covered && closed.flows().unwrap().is_empty());
        spared += sample.ask(&mut random, &[&closed]).1;
        of += sample.chunks.len() * FILTERS;
    }
    assert!(spared * 5 > of * 2, "{spared} of {of} chunks");
}

#[test]
fn gaps_and_scans_read_back() {
    let mut random = Random::new(13);
    let mut sample = Sample::new(&mut random, 2);
    sample.deltas.iter_mut().step_by(2).for_each(|delta| delta.unindexed = true);
    let gap = Gap {
        cause: Cause::RingOverflow,
        from_ns: 5,
        until_ns: Some(9),
        packets: None,
        cumulative: 3,
        sequence: 8,
        policy: None,
        pressure: None,
    };
    sample.deltas[0].gaps.push(gap);
    let mut live = sample.live();
    live.add_gap(Gap { cause: Cause::DeviceFailed, ..gap });
    let closed = decode(sections(&live)).unwrap();
    assert_eq!(live.gaps(), closed.gaps());
    assert_eq!(live.gaps().len(), 2);
    let numbers = 0..live.chunks().len() as u32;
    assert!(numbers.clone().all(|n| live.is_unindexed(n) == closed.is_unindexed(n)));
    assert_eq!(live.unindexed_chunks(), closed.unindexed_chunks());
    assert!(live.unindexed_chunks() > 0);
}

#[test]
fn chunks_that_no_flow_explains_are_scanned() {
    let mut random = Random::new(17);
    let sample = Sample::new(&mut random, 400);
    let packets: Vec<u32> =
        (0..).zip(&sample.chunks).filter(|(_, c)| !c.is_empty()).map(|c| c.0).collect();
    let program = compile(LinkType::ETHERNET, "ip6 or not ip6", true).unwrap().1;
    for missing in [SectionId::Flows, SectionId::Hosts, SectionId::Postings, SectionId::Shapes] {
        let mut sections = sections(&sample.live());
        sections.remove(&missing);
        let index = decode(sections).unwrap();
        let selection = index.select(&program, 0, u64::MAX);
        assert_eq!(selection.chunks, packets, "without {missing:?}");
        assert!(selection.index_damage.is_some(), "without {missing:?}");
    }
}
