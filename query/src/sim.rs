//! Segments in memory, for tests: chunks with packets, gaps, damage, and an index that is exact or
//! generous.

use std::ops::Range;
use std::rc::Rc;

use wirevault_format::chunk::ChunkHeader;
use wirevault_format::footer::ChunkEntry;
use wirevault_format::pcapng::{Blocks, Epb, EpbParts, put_epb};
use wirevault_format::table::{SegmentEntry, SegmentState};
use wirevault_format::{Cause, Gap, Interface, LifeId, LinkType, RunId, VxlanPorts};
use wirevault_index::Flows;
use wirevault_index::delta::FlowStats;
use wirevault_packet::FlowKey;

use crate::flows::stats_of;
use crate::source::{Absence, Hole, Look, Question, Reader, Source};

/// One packet: its time, a port to filter by, and a number to know it by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SimPacket {
    pub(crate) ts_ns: u64,
    pub(crate) port: u16,
    pub(crate) number: u64,
}

impl SimPacket {
    /// UDP over IPv4; over Ethernet for that link type, bare otherwise.
    pub(crate) fn frame(&self, link_type: LinkType) -> Vec<u8> {
        let mut frame = Vec::new();
        if link_type == LinkType::ETHERNET {
            frame.extend([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
        }
        frame.extend([
            0x45, 0, 0, 36, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x30, 0x39,
        ]);
        frame.extend(self.port.to_be_bytes());
        frame.extend([0, 16, 0, 0]);
        frame.extend(self.number.to_be_bytes());
        frame
    }

    /// The packet as it was given to [`SimSegment::chunk`].
    fn of(packet: &Epb<'_>) -> Self {
        let port_at = packet.data.len() - 14;
        let port = u16::from_be_bytes([packet.data[port_at], packet.data[port_at + 1]]);
        Self { ts_ns: packet.ts_ns, port, number: Self::number_of(packet.data) }
    }

    pub(crate) fn number_of(frame: &[u8]) -> u64 {
        u64::from_be_bytes(*frame.last_chunk().unwrap())
    }
}

#[derive(Debug, Clone)]
pub(crate) struct SimChunk {
    pub(crate) entry: ChunkEntry,
    pub(crate) payload: Vec<u8>,
    pub(crate) absent: Option<Cause>,
}

#[derive(Debug, Clone)]
pub(crate) struct SimSegment {
    pub(crate) entry: SegmentEntry,
    pub(crate) interfaces: Vec<Interface>,
    pub(crate) chunks: Vec<SimChunk>,
    pub(crate) gaps: Vec<Gap>,
    pub(crate) holes: Vec<Hole>,
    pub(crate) absent: Option<Cause>,
    /// The index names every n-th chunk too that holds no answer; 0: it is exact.
    pub(crate) generous: usize,
    /// The index does not know all flows.
    pub(crate) unindexed: bool,
}

impl SimSegment {
    /// A closed segment with nothing in it.
    pub(crate) fn new(run: u64, lane: u16, link_type: LinkType, ordinal: u64) -> Self {
        let entry = SegmentEntry {
            state: SegmentState::Closed,
            lane,
            link_type,
            life: LifeId([ordinal as u8; 16]),
            run: RunId(run),
            ordinal,
            opened_ns: 1,
            closed_ns: 2,
            ..SegmentEntry::default()
        };
        let mut interface = Interface::unnamed(link_type);
        interface.name = Some(format!("eth{lane}"));
        let (interfaces, chunks) = (vec![interface], Vec::new());
        Self {
            entry,
            interfaces,
            chunks,
            gaps: Vec::new(),
            holes: Vec::new(),
            absent: None,
            generous: 0,
            unindexed: false,
        }
    }

    /// A copy of some of its chunks, for a hold.
    pub(crate) fn copy_of(&self, hold: u32, ordinal: u64, chunks: &[usize]) -> Self {
        let SegmentEntry { run, lane, link_type, import, .. } = self.entry;
        let mut copy = Self::new(run.0, lane, link_type, ordinal);
        (copy.entry.hold, copy.entry.import) = (hold, import);
        for at in chunks {
            let packets: Vec<SimPacket> = Blocks::new(&self.chunks[*at].payload)
                .map(|block| SimPacket::of(&Epb::parse(&block.unwrap()).unwrap()))
                .collect();
            copy = copy.chunk(self.chunks[*at].entry.first_sequence, &packets);
        }
        copy
    }

    /// Appends a chunk whose first packet has the sequence given.
    pub(crate) fn chunk(mut self, first_sequence: u64, packets: &[SimPacket]) -> Self {
        let mut payload = Vec::new();
        for packet in packets {
            let data = packet.frame(self.entry.link_type);
            let (interface_id, orig_len) = (0, data.len() as u32);
            let (vlan, flags, raw_options) = (None, None, &[][..]);
            let ts_ns = packet.ts_ns;
            let parts =
                EpbParts { interface_id, ts_ns, orig_len, data: &data, vlan, flags, raw_options };
            let at = payload.len();
            payload.resize(at + parts.block_bytes(), 0);
            put_epb(&mut payload, at, &parts).unwrap();
        }
        let times = || packets.iter().map(|packet| packet.ts_ns);
        let times_ns = times().min().zip(times().max());
        let (offset, chunk_bytes) = (4096 * (1 + self.chunks.len() as u64), 4096);
        let count = packets.len() as u32;
        let entry = ChunkEntry { offset, chunk_bytes, packets: count, times_ns, first_sequence };
        if self.entry.packets == 0 {
            self.entry.sequences.0 = first_sequence;
        }
        self.entry.packets += u64::from(count);
        self.entry.sequences.1 = first_sequence + u64::from(count);
        if let Some((min, max)) = times_ns {
            let old = self.entry.times_ns.unwrap_or((min, max));
            self.entry.times_ns = Some((old.0.min(min), old.1.max(max)));
        }
        self.chunks.push(SimChunk { entry, payload, absent: None });
        self
    }

    /// As a lane writes it: nothing of the packets is in the table yet.
    pub(crate) fn still_open(mut self) -> Self {
        let SegmentEntry { state, times_ns, packets, sequences, closed_ns, .. } = &mut self.entry;
        *state = SegmentState::Open;
        (*times_ns, *packets, *sequences, *closed_ns) = (None, 0, (0, 0), 0);
        self
    }
}

impl Source for SimSegment {
    type Reader = Rc<SimSegment>;

    fn entry(&self) -> &SegmentEntry {
        &self.entry
    }

    fn name(&self) -> String {
        format!("#{}", self.entry.ordinal)
    }

    fn open(&self) -> Result<Rc<SimSegment>, Absence> {
        match self.absent {
            Some(cause) => Err(Absence { cause, what: "absent".into() }),
            None => Ok(Rc::new(self.clone())),
        }
    }
}

impl Reader for Rc<SimSegment> {
    fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    fn look(&self, question: Option<&Question<'_>>) -> Look {
        let mut selected = Vec::new();
        let mut considered = 0;
        for (n, chunk) in self.chunks.iter().enumerate() {
            let Some((question, times)) = question.zip(chunk.entry.times_ns) else { continue };
            if times.0 >= question.until_ns || times.1 < question.since_ns {
                continue;
            }
            considered += 1;
            let matches = Blocks::new(&chunk.payload).any(|block| {
                let block = block.unwrap();
                let packet = Epb::parse(&block);
                packet.is_ok_and(|p| question.program.run(p.data, p.orig_len) != 0)
            });
            if matches || self.generous > 0 && n % self.generous == 0 {
                selected.push(n as u32);
            }
        }
        let chunks = self.chunks.iter().map(|chunk| chunk.entry).collect();
        Look { chunks, gaps: self.gaps.clone(), selected, considered, index_damage: None }
    }

    fn with_flows<R>(&self, _: u64, _: u64, look: impl FnOnce(Option<&Flows<'_>>) -> R) -> R {
        if self.unindexed {
            return look(None);
        }
        let mut flows: Vec<(FlowKey, FlowStats, Vec<u32>)> = Vec::new();
        for (number, chunk) in (0u32..).zip(&self.chunks) {
            for block in Blocks::new(&chunk.payload).map(Result::unwrap) {
                let (key, stats) = stats_of(
                    &VxlanPorts::USUAL,
                    self.entry.link_type,
                    &Epb::parse(&block).unwrap(),
                );
                match flows.iter_mut().find(|flow| flow.0 == key) {
                    Some((_, sum, chunks)) => {
                        sum.add(&stats);
                        chunks.push(number);
                        chunks.dedup();
                    }
                    None => flows.push((key, stats, vec![number])),
                }
            }
        }
        look(Some(&flows.into_iter().collect()))
    }

    fn damage(&self) -> Vec<Hole> {
        self.holes.clone()
    }

    fn read_chunk(
        &self,
        number: u32,
        buf: &mut Vec<u8>,
    ) -> Result<(ChunkHeader, Range<usize>), Absence> {
        let chunk = &self.chunks[number as usize];
        if let Some(cause) = chunk.absent {
            return Err(Absence { cause, what: format!("chunk {number}: checksum") });
        }
        buf.clear();
        buf.extend([0xee; 128]);
        buf.extend(&chunk.payload);
        let header = ChunkHeader {
            sealed: false,
            gaps: false,
            lane: self.entry.lane,
            link_type: self.entry.link_type,
            life: self.entry.life,
            run: self.entry.run,
            number,
            payload_bytes: chunk.payload.len() as u32,
            first_sequence: chunk.entry.first_sequence,
            packets: chunk.entry.packets,
            times_ns: chunk.entry.times_ns,
            received: 0,
            shed: 0,
            dropped: 0,
            watermark: 0,
        };
        Ok((header, 128..buf.len()))
    }
}
