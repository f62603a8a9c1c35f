//! The flow table of a segment that is being written: from a packet's key to the flow's number.
//!
//! It knows only numbers; what is known of a flow goes out with the deltas. Open addressing over
//! 8-byte slots (32-bit tag, flow number). Packets come in batches and each batch is looked up in
//! three passes, so that the misses of one packet overlap those of the others: one at a time costs
//! twice as much.

use wirevault_packet::{Direction, FlowKey};

use crate::delta::{ChunkDelta, FlowStats, FlowTouch};

/// Packets of a batch at most.
pub const BATCH: usize = 32;
/// Flows of a segment at most. Their index is then about 10 MB; packets of further flows are found
/// by scanning.
pub const FLOWS_MAX: u32 = 400_000;
/// Probes for one packet at most. Longer runs mean that somebody prepared keys; the packet's chunk
/// is scanned then.
const PROBES_MAX: usize = 64;
const EMPTY: u64 = u64::MAX;

/// What the table needs to know of a packet.
#[derive(Debug, Clone, Copy)]
pub struct PacketNote {
    /// Flow.
    pub key: FlowKey,
    /// Hash of the key, as `dissect` gives it.
    pub hash: u64,
    /// Direction.
    pub direction: Direction,
    /// Time, ns.
    pub ts_ns: u64,
    /// Length on the wire.
    pub wire_len: u32,
    /// Captured length.
    pub captured_len: u32,
    /// TCP flags, 0 if it is not TCP.
    pub tcp_flags: u8,
}

impl Default for PacketNote {
    fn default() -> Self {
        let dissected = wirevault_packet::dissect(wirevault_format::LinkType::RAW, &[]);
        Self {
            key: dissected.key,
            hash: dissected.hash,
            direction: dissected.direction,
            ts_ns: 0,
            wire_len: 0,
            captured_len: 0,
            tcp_flags: 0,
        }
    }
}

impl PacketNote {
    fn stats(&self) -> FlowStats {
        FlowStats {
            times_ns: (self.ts_ns, self.ts_ns),
            packets: 1,
            bytes: u64::from(self.wire_len),
            wire_len: (self.wire_len, self.wire_len),
            captured_len: (self.captured_len, self.captured_len),
            tcp_or: self.tcp_flags,
            tcp_and: self.tcp_flags,
            directions: FlowStats::bit(self.direction),
        }
    }
}

/// How large a table may grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowOptions {
    /// Flows at most.
    pub flows_max: u32,
}

impl Default for FlowOptions {
    fn default() -> Self {
        Self { flows_max: FLOWS_MAX }
    }
}

/// The flow table of one open segment.
pub struct FlowTable {
    slots: Vec<u64>,
    flows: Vec<Flow>,
    flows_max: usize,
    chunk: u32,
}

#[derive(Clone, Copy)]
struct Flow {
    key: FlowKey,
    /// Number of the last chunk that touched it, and its place in that chunk's `touched`.
    chunk: u32,
    touch: u32,
}

impl FlowTable {
    /// An empty table. Memory for all its flows is set aside now.
    pub fn new(options: FlowOptions) -> Self {
        let flows_max = options.flows_max.min(FLOWS_MAX) as usize;
        let slots = (flows_max * 5 / 3 + 1).next_power_of_two();
        let flows = Vec::with_capacity(flows_max);
        Self { slots: vec![EMPTY; slots], flows, flows_max, chunk: 0 }
    }

    /// Forgets all flows and takes at most `flows_max` (no more than at its making) from now on.
    pub fn reset(&mut self, flows_max: u32) {
        self.slots.fill(EMPTY);
        self.flows.clear();
        self.flows_max = (flows_max as usize).min(self.flows.capacity());
        self.chunk = 0;
    }

    /// Begins a chunk. The delta is empty and has its number.
    pub fn begin_chunk(&mut self, delta: &ChunkDelta) {
        // One more than the chunk's number: 0 stands for none.
        self.chunk = delta.number + 1;
    }

    /// Enters at most [`BATCH`] packets. A packet that finds no room makes its chunk unindexed.
    pub fn upsert(&mut self, notes: &[PacketNote], delta: &mut ChunkDelta) {
        let mask = self.slots.len() - 1;
        let mut first = [EMPTY; BATCH];
        for (slot, note) in first.iter_mut().zip(notes) {
            *slot = self.slots[note.hash as usize & mask];
        }
        // The keys that the next pass compares come into the cache here, all at once.
        let mut warm = 0;
        for slot in &first[..notes.len()] {
            warm |= self.flows.get(*slot as u32 as usize).map_or(0, |flow| flow.chunk);
        }
        std::hint::black_box(warm);
        for note in notes {
            match self.find(note, delta) {
                Some(flow) => self.touch(flow, note, delta),
                None => delta.unindexed = true,
            }
        }
    }

    /// Number of the packet's flow, a new one if needed; `None` if there is no room for it.
    fn find(&mut self, note: &PacketNote, delta: &mut ChunkDelta) -> Option<usize> {
        let mask = self.slots.len() - 1;
        let tag = note.hash >> 32;
        for probe in 0..PROBES_MAX {
            let at = (note.hash as usize + probe) & mask;
            let slot = self.slots[at];
            if slot == EMPTY {
                if self.flows.len() >= self.flows_max {
                    return None;
                }
                self.slots[at] = tag << 32 | self.flows.len() as u64;
                self.flows.push(Flow { key: note.key, chunk: 0, touch: 0 });
                delta.new_flows.push(note.key);
                return Some(self.flows.len() - 1);
            }
            let flow = slot as u32 as usize;
            if slot >> 32 == tag && self.flows[flow].key == note.key {
                return Some(flow);
            }
        }
        None
    }

    fn touch(&mut self, number: usize, note: &PacketNote, delta: &mut ChunkDelta) {
        let flow = &mut self.flows[number];
        if flow.chunk == self.chunk {
            delta.touched[flow.touch as usize].stats.add(&note.stats());
            return;
        }
        flow.chunk = self.chunk;
        flow.touch = delta.touched.len() as u32;
        delta.touched.push(FlowTouch { flow: number as u32, stats: note.stats() });
    }
}
