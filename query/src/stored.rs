//! Segments of a catalog as sources of a query.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use wirevault_format::chunk::ChunkHeader;
use wirevault_format::table::SegmentEntry;
use wirevault_format::{Cause, Interface};
use wirevault_index::digest::ask::{Told, ask};
use wirevault_index::error::chain;
use wirevault_index::recover::Damage;
use wirevault_index::{Flows, IndexError, Segment, SegmentIndex, SegmentReader};
use wirevault_packet::bpf::Program;

use crate::source::{Absence, Hole, Look, Question, Reader, Source};

impl From<IndexError> for Absence {
    fn from(error: IndexError) -> Self {
        let cause = match &error {
            _ if error.is_wrong_key() => Cause::WrongKey,
            _ if error.is_missing() => Cause::MissingSegment,
            _ if error.is_reused() => Cause::Retention,
            _ if error.is_unreachable() => Cause::TierUnreachable,
            // Also what cannot be classified: the packets are not there.
            _ => Cause::Damaged,
        };
        Self { cause, what: chain(&error) }
    }
}

impl Source for Segment {
    type Reader = SegmentReader;

    fn ask(sources: &[&Self], program: &Program) -> Vec<Option<Told>> {
        ask(sources, program)
    }

    fn entry(&self) -> &SegmentEntry {
        &self.entry
    }

    fn name(&self) -> String {
        self.name()
    }

    fn open(&self) -> Result<SegmentReader, Absence> {
        self.open().map_err(Absence::from)
    }
}

impl Reader for SegmentReader {
    fn interfaces(&self) -> &[Interface] {
        self.interfaces()
    }

    fn look(&self, question: Option<&Question<'_>>) -> Look {
        self.with_index(|index: &SegmentIndex| {
            let select = |question: &Question<'_>| {
                index.select(question.program, question.since_ns, question.until_ns)
            };
            let selection = question.map(select).unwrap_or_default();
            Look {
                chunks: index.chunks().to_vec(),
                gaps: index.gaps().iter().map(|(_, gap)| *gap).collect(),
                selected: selection.chunks,
                considered: selection.chunks_considered,
                index_damage: selection
                    .index_damage
                    .or_else(|| self.index_damage().map(str::to_owned)),
            }
        })
    }

    fn with_flows<R>(
        &self,
        since_ns: u64,
        until_ns: u64,
        look: impl FnOnce(Option<&Flows<'_>>) -> R,
    ) -> R {
        self.with_index(|index: &SegmentIndex| {
            let uncovered = (0u32..).zip(index.chunks()).any(|(number, chunk)| {
                let touches = |(min_ns, max_ns)| min_ns < until_ns && max_ns >= since_ns;
                chunk.times_ns.is_some_and(touches) && !index.lists_flows_of(number)
            });
            // An index that cannot be read is told of by `select`.
            let flows = if uncovered { None } else { index.flows().ok() };
            look(flows.as_ref())
        })
    }

    fn damage(&self) -> Vec<Hole> {
        let hole = |damage: &Damage| Hole {
            chunk: Some(damage.chunk),
            times_ns: damage.from_ns.zip(damage.until_ns),
            packets: damage.packets,
            what: format!("an acknowledged chunk is not at byte {}", damage.offset),
        };
        self.damage().iter().map(hole).collect()
    }

    fn taken(&self) -> Option<Arc<AtomicU64>> {
        self.taken().map(Arc::clone)
    }

    fn read_chunk(
        &self,
        number: u32,
        buf: &mut Vec<u8>,
    ) -> Result<(ChunkHeader, Range<usize>), Absence> {
        self.read_chunk(number, buf).map_err(Absence::from)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::{Arc, RwLock};

    use wirevault_format::chunk::{ChunkHeader, HEADER_BYTES, put_plain_tail};
    use wirevault_format::footer::ChunkEntry;
    use wirevault_format::pcapng::{Blocks, Epb};
    use wirevault_format::segment::SegmentHeader;
    use wirevault_format::table::{RunEntry, RunState};
    use wirevault_format::{FormatError, LifeId, LinkType, RunId, StoreId};
    use wirevault_index::flow_table::FlowOptions;
    use wirevault_index::{Catalog, ChunkDelta, FlowTable, PacketNote, Segment, SegmentIndex};
    use wirevault_media::SimMedia;
    use wirevault_packet::dissect;

    use crate::export::PcapngSink;
    use crate::run::Request;
    use crate::sim::{SimPacket, SimSegment};
    use crate::{FlowRow, flows, run};

    /// A plain segment as a lane writes it: 40 packets to ports 53 and 80 in four chunks.
    fn recorded() -> (SimMedia, Catalog) {
        let mut sim = SimSegment::new(7, 2, LinkType::ETHERNET, 1).still_open();
        for chunk in 0..4u64 {
            let packet = |n: u64| SimPacket {
                ts_ns: 1000 + chunk * 100 + n,
                port: if chunk == 2 && n == 5 { 53 } else { 80 },
                number: chunk * 10 + n,
            };
            sim = sim.chunk(chunk * 10, &(0..10).map(packet).collect::<Vec<_>>());
        }
        let sim = sim.still_open();
        let head = SegmentHeader {
            sealed: false,
            import: false,
            lane: 2,
            link_type: LinkType::ETHERNET,
            life: sim.entry.life,
            run: RunId(7),
            store: StoreId([1; 16]),
            ordinal: 1,
            place: 0,
            opened_ns: 1,
        };
        let never = |_: &[u8], _: &mut Vec<u8>| Err(FormatError::NotPresent { structure: "seal" });
        let mut file = head.encode(&sim.interfaces, never).unwrap();
        let mut table = FlowTable::new(FlowOptions { flows_max: 100 });
        let mut index = SegmentIndex::new();
        for (number, chunk) in (0u32..).zip(&sim.chunks) {
            let header = chunk_header(head.life, number, &chunk.entry, chunk.payload.len());
            let mut bytes = vec![0; header.chunk_bytes()];
            header.encode(&mut bytes);
            bytes[HEADER_BYTES..][..chunk.payload.len()].copy_from_slice(&chunk.payload);
            put_plain_tail(&mut bytes, &header);
            let mut delta = ChunkDelta::new();
            delta.number = number;
            let chunk_bytes = bytes.len() as u32;
            delta.chunk = ChunkEntry { offset: file.len() as u64, chunk_bytes, ..chunk.entry };
            table.begin_chunk(&delta);
            table.upsert(&notes(&chunk.payload), &mut delta);
            index.apply(&delta).unwrap();
            file.extend(bytes);
        }
        let media = SimMedia::new();
        media.preload("000000.pcapng", &file);
        let index = Arc::new(RwLock::new(index));
        let segment = Segment::live(sim.entry, 0, 0, Arc::new(media.clone()), None, index);
        let run = RunEntry {
            state: RunState::Running,
            run: RunId(7),
            started_ns: 500,
            lanes: 1,
            ..RunEntry::default()
        };
        let catalog = Catalog {
            store: StoreId([1; 16]),
            segments: std::iter::once(Arc::new(segment)).collect(),
            runs: [run].into(),
            missing_volumes: Vec::new(),
            lost: Arc::default(),
            replaced_ns: 0,
            evicted_live_ns: 0,
            evicted_import_ns: 0,
            now_ns: 5000,
            durable_until_ns: Some(4000),
        };
        (media, catalog)
    }

    fn chunk_header(life: LifeId, number: u32, entry: &ChunkEntry, bytes: usize) -> ChunkHeader {
        ChunkHeader {
            sealed: false,
            gaps: false,
            lane: 2,
            link_type: LinkType::ETHERNET,
            life,
            run: RunId(7),
            number,
            payload_bytes: bytes as u32,
            first_sequence: entry.first_sequence,
            packets: entry.packets,
            times_ns: entry.times_ns,
            received: 0,
            shed: 0,
            dropped: 0,
            watermark: 0,
        }
    }

    fn notes(payload: &[u8]) -> Vec<PacketNote> {
        let note = |packet: Epb<'_>| {
            let dissected = dissect(LinkType::ETHERNET, packet.data);
            PacketNote {
                key: dissected.key,
                hash: dissected.hash,
                direction: dissected.direction,
                ts_ns: packet.ts_ns,
                wire_len: packet.orig_len,
                captured_len: packet.data.len() as u32,
                tcp_flags: dissected.tcp_flags,
            }
        };
        Blocks::new(payload).map(|block| note(Epb::parse(&block.unwrap()).unwrap())).collect()
    }

    fn exported(catalog: &Catalog, filter: &str) -> (crate::Summary, String) {
        let mut sink = PcapngSink::new(Vec::new()).unwrap();
        let request = Request { filter: filter.into(), ..Request::default() };
        let summary = run(catalog, &request, &mut sink, &AtomicBool::new(false)).unwrap();
        let file = sink.finish(&summary).unwrap();
        (summary, crate::export::tests::read_with("tcpdump", &["-n", "-tt", "--nano"], &file))
    }

    #[test]
    fn a_recorded_segment_answers() {
        let (_, catalog) = recorded();
        let (summary, text) = exported(&catalog, "");
        assert_eq!((summary.packets, text.lines().count(), summary.chunks_read), (40, 40, 4));
        let (summary, text) = exported(&catalog, "port 53");
        assert_eq!((summary.packets, summary.chunks_considered, summary.chunks_read), (1, 4, 1));
        assert!(summary.complete, "{summary}");
        assert!(text.starts_with("0.000001205 IP 10.0.0.1.12345 > 10.0.0.2.53:"), "{text}");
        assert_eq!(summary.covered_until.unwrap().ns, 4000);
    }

    #[test]
    fn its_flows_come_from_its_index() {
        let (_, catalog) = recorded();
        let mut rows = Vec::new();
        let mut out = |row: &FlowRow| {
            rows.push((row.packets, row.first.ns, row.last.ns));
            Ok(std::ops::ControlFlow::Continue(()))
        };
        let cancel = AtomicBool::new(false);
        let summary = flows(&catalog, &Request::default(), &mut out, &cancel).unwrap();
        assert_eq!((summary.packets, summary.chunks_read), (40, 0));
        assert_eq!(rows, [(39, 1000, 1309), (1, 1205, 1205)]);
    }

    #[test]
    fn a_rotten_byte_and_a_missing_file_are_told() {
        let (media, catalog) = recorded();
        // The third chunk: behind the header's page and two chunks of one page.
        media.poke("000000.pcapng", 3 * 4096 + 300, b"rot").unwrap();
        let (summary, text) = exported(&catalog, "");
        assert_eq!((summary.packets, text.lines().count()), (30, 30));
        assert_eq!((summary.damaged.len(), summary.damaged[0].chunk), (1, Some(2)), "{summary}");
        assert_eq!((summary.gaps[0].from.ns, summary.gaps[0].until.ns), (1200, 1210));
        wirevault_media::Media::remove(&media, "000000.pcapng").unwrap();
        let (summary, _) = exported(&catalog, "");
        assert_eq!((summary.packets, summary.gaps[0].cause.name()), (0, "missing_segment"));
    }
}
