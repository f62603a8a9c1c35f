//! The flow table of a segment that is being written: from a packet's key to the flow's number.
//!
//! It knows only numbers; what is known of a flow goes out with the deltas. Open addressing over
//! 8-byte slots (32-bit tag, flow number). Packets come in batches and each batch is looked up in
//! three passes, so that the misses of one packet overlap those of the others: one at a time costs
//! twice as much.

use wirevault_packet::{Direction, FlowKey};

use crate::delta::{ChunkDelta, FlowStats, FlowTouch};

/// Packets that are looked up together.
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

    /// Enters packets, best [`BATCH`] at a time. A packet that finds no room makes its chunk
    /// unindexed.
    pub fn upsert(&mut self, notes: &[PacketNote], delta: &mut ChunkDelta) {
        notes.chunks(BATCH).for_each(|batch| self.upsert_batch(batch, delta));
    }

    fn upsert_batch(&mut self, notes: &[PacketNote], delta: &mut ChunkDelta) {
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

#[cfg(test)]
mod tests {
    use wirevault_format::LinkType;
    use wirevault_packet::dissect;

    use super::*;

    fn notes(count: u32) -> Vec<PacketNote> {
        let note = |n: u32| {
            let mut packet = [0; 20];
            packet[0] = 0x45;
            packet[12..16].copy_from_slice(&n.to_be_bytes());
            let dissected = dissect(LinkType::RAW, &packet);
            let (key, hash) = (dissected.key, dissected.hash);
            PacketNote { key, hash, ts_ns: n.into(), wire_len: 20, ..PacketNote::default() }
        };
        (0..count).map(note).collect()
    }

    fn chunk(table: &mut FlowTable, number: u32, notes: &[PacketNote]) -> ChunkDelta {
        let mut delta = ChunkDelta::small();
        delta.number = number;
        table.begin_chunk(&delta);
        table.upsert(notes, &mut delta);
        delta
    }

    #[test]
    fn a_flow_is_new_once_and_touched_once_a_chunk() {
        let mut table = FlowTable::new(FlowOptions::default());
        let notes = notes(3);
        let first = chunk(&mut table, 0, &[notes[0], notes[1], notes[0]]);
        assert_eq!(first.new_flows, [notes[0].key, notes[1].key]);
        let packets: Vec<_> = first.touched.iter().map(|t| (t.flow, t.stats.packets)).collect();
        assert_eq!(packets, [(0, 2), (1, 1)]);
        let second = chunk(&mut table, 1, &[notes[2], notes[1]]);
        assert_eq!(second.new_flows, [notes[2].key]);
        let flows: Vec<_> = second.touched.iter().map(|touch| touch.flow).collect();
        assert_eq!(flows, [2, 1]);
    }

    #[test]
    fn a_full_table_leaves_new_flows_to_scanning() {
        let mut table = FlowTable::new(FlowOptions { flows_max: 100 });
        let notes = notes(1000);
        let full = chunk(&mut table, 0, &notes);
        assert!(full.unindexed);
        assert_eq!((full.new_flows.len(), full.touched.len()), (100, 100));
        let known = chunk(&mut table, 1, &notes[..100]);
        assert!(!known.unindexed);
        assert_eq!((known.new_flows.len(), known.touched.len()), (0, 100));
        table.reset(50);
        let again = chunk(&mut table, 0, &notes[..60]);
        assert_eq!((again.new_flows.len(), again.unindexed), (50, true));
    }

    #[test]
    fn keys_made_to_collide_do_not_stop_it() {
        let mut table = FlowTable::new(FlowOptions { flows_max: 1000 });
        let mut notes = notes(200);
        notes.iter_mut().for_each(|note| note.hash = 7);
        let delta = chunk(&mut table, 0, &notes);
        assert_eq!((delta.new_flows.len(), delta.unindexed), (PROBES_MAX, true));
    }

    #[test]
    fn the_fullest_chunk_does_not_allocate() {
        let mut table = FlowTable::new(FlowOptions::default());
        let mut delta = ChunkDelta::new();
        let room = (delta.new_flows.capacity(), delta.touched.capacity());
        let flows = notes(room.0 as u32);
        delta.clear();
        table.begin_chunk(&delta);
        table.upsert(&flows, &mut delta);
        assert_eq!((delta.new_flows.capacity(), delta.touched.capacity()), room);
        assert_eq!(delta.new_flows.len(), flows.len());
    }
}
