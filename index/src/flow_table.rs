//! The flow table of a segment that is being written: from a packet's key to the flow's number.
//!
//! It knows only numbers; what is known of a flow goes out with the deltas. Open addressing over
//! 8-byte slots, entries of a key's true length behind them. Packets come in batches and each batch
//! is looked up in three passes: fetch the slots, fetch the entries, enter the packets. So the
//! misses of one packet overlap those of the others: one at a time costs twice as much.
//!
//! ```text
//!  hash ─► slot: hash bits 30 | generation 12 | place 22
//!                                                 └─► entry: chunk 31 | touch 13 | flow 20, key
//! ```
//! Memory is bounded and set aside when a lane opens its first segment: 16 bytes of slots and 64
//! of entries for each flow. A packet of a flow that finds no room is noted as loose: the filter of
//! its chunk then stands for the chunk's flows. Nothing grows, and nothing is cleared between two
//! segments: a slot of another generation is empty.

use wirevault_packet::{Direction, FlowKey};

use crate::delta::{ChunkDelta, FlowStats, FlowTouch, PACKETS_MAX};
use crate::memory::{filled, prefetch};

/// Packets that are looked up together.
pub const BATCH: usize = 32;
/// Flows of a segment at most; the number of an entry has room for no more.
pub const FLOWS_MAX: u32 = 1 << FLOW_BITS;
/// Bytes of the table for each flow that it may hold.
pub const TABLE_BYTES_PER_FLOW: usize = 8 * SLOTS_PER_FLOW + UNIT_BYTES * UNITS_PER_FLOW;
/// Probes for one packet at most. Longer runs mean that somebody prepared keys.
const PROBES_MAX: usize = 64;
/// Half of the slots stay empty: a key is found at its first or second place.
const SLOTS_PER_FLOW: usize = 2;
/// An entry is this many bytes, or a multiple: the key of TCP or UDP in IPv4 fits one, in IPv6 two.
const UNIT_BYTES: usize = 32;
const UNIT_WORDS: usize = UNIT_BYTES / 8;
const LINE_BYTES: usize = 64;
/// A place that no table has.
const NOWHERE: usize = 1 << PLACE_BITS;
/// Room for every flow to be IPv6. Longer keys leave room for fewer flows.
const UNITS_PER_FLOW: usize = 2;

const PLACE_BITS: u32 = 22;
const GENERATION_BITS: u32 = 12;
const TAG_SHIFT: u32 = PLACE_BITS + GENERATION_BITS;
const PLACE_MASK: u64 = (1 << PLACE_BITS) - 1;
const FLOW_BITS: u32 = 20;
const TOUCH_BITS: u32 = 13;
const CHUNK_SHIFT: u32 = FLOW_BITS + TOUCH_BITS;
const _: () = assert!(
    UNITS_PER_FLOW << FLOW_BITS < 1 << PLACE_BITS && PACKETS_MAX < 1 << TOUCH_BITS,
    "places and touches fit their bits"
);

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
    entries: Vec<u64>,
    /// First word on the border of a cache line.
    first: usize,
    units: usize,
    units_used: usize,
    flows: usize,
    flows_max: usize,
    /// Slots of another generation are empty; 0 is never the current one.
    generation: u64,
    chunk: u64,
}

impl FlowTable {
    /// An empty table. Memory for all its flows is set aside, and touched, now.
    pub fn new(options: FlowOptions) -> Self {
        let flows_max = options.flows_max.min(FLOWS_MAX) as usize;
        let slots = (flows_max * SLOTS_PER_FLOW).next_power_of_two();
        let units = flows_max * UNITS_PER_FLOW;
        let entries = filled(units * UNIT_WORDS + LINE_BYTES / 8, 0u64);
        // The smallest entry then never lies in two lines.
        let first = entries.as_ptr().align_offset(LINE_BYTES).min(LINE_BYTES / 8);
        Self {
            slots: filled(slots, 0),
            entries,
            first,
            units,
            units_used: 0,
            flows: 0,
            flows_max,
            generation: 1,
            chunk: 0,
        }
    }

    /// Forgets all flows and takes at most `flows_max` from now on. Only if that is more than the
    /// table was ever made for, it is made anew.
    pub fn reset(&mut self, flows_max: u32) {
        let wanted = flows_max.min(FLOWS_MAX) as usize;
        if wanted * UNITS_PER_FLOW > self.units {
            *self = Self::new(FlowOptions { flows_max });
            return;
        }
        self.generation += 1;
        if self.generation == 1 << GENERATION_BITS {
            self.generation = 1;
            self.slots.fill(0);
        }
        (self.flows_max, self.flows, self.units_used, self.chunk) = (wanted, 0, 0, 0);
    }

    /// Flows in it.
    pub fn len(&self) -> usize {
        self.flows
    }

    /// It holds no flow.
    pub fn is_empty(&self) -> bool {
        self.flows == 0
    }

    /// Flows that it takes at most.
    pub fn flows_max(&self) -> usize {
        self.flows_max
    }

    /// Bytes of memory that it has set aside.
    pub fn memory_bytes(&self) -> usize {
        size_of_val(&self.slots[..]) + size_of_val(&self.entries[..])
    }

    /// Begins a chunk. The delta is empty and has its number.
    pub fn begin_chunk(&mut self, delta: &ChunkDelta) {
        // One more than the chunk's number: 0 stands for none.
        self.chunk = u64::from(delta.number) + 1;
    }

    /// Fetches the slot of a packet with this hash ahead of [`FlowTable::upsert`].
    #[inline(always)]
    pub fn prefetch(&self, hash: u64) {
        prefetch(&self.slots, hash as usize & (self.slots.len() - 1));
    }

    /// Enters packets, best [`BATCH`] at a time. A packet whose flow finds no room makes it loose.
    pub fn upsert(&mut self, notes: &[PacketNote], delta: &mut ChunkDelta) {
        notes.chunks(BATCH).for_each(|batch| self.upsert_batch(batch, delta));
    }

    fn upsert_batch(&mut self, notes: &[PacketNote], delta: &mut ChunkDelta) {
        notes.iter().for_each(|note| self.prefetch(note.hash));
        let mut places = [NOWHERE; BATCH];
        for (place, note) in places.iter_mut().zip(notes) {
            *place = self.probe(note.hash);
            let at = self.word(*place);
            prefetch(&self.entries, at);
            // The other unit of a longer entry may lie in the next line.
            prefetch(&self.entries, at + UNIT_WORDS);
        }
        for (place, note) in places.into_iter().zip(notes) {
            if self.holds(place, &note.key) {
                self.touch(place, note, delta);
                continue;
            }
            match self.find(note, delta) {
                Some(place) => self.touch(place, note, delta),
                None => delta.note_loose(&note.key),
            }
        }
    }

    /// Place of the first entry whose slot has this hash's bits, if one is near; else one that does
    /// not exist.
    #[inline(always)]
    fn probe(&self, hash: u64) -> usize {
        const NEAR: usize = 4;
        let mask = self.slots.len() - 1;
        let wanted = self.slot(hash, 0) >> PLACE_BITS;
        for probe in 0..NEAR {
            let slot = self.slots[(hash as usize + probe) & mask];
            if slot >> PLACE_BITS == wanted {
                return (slot & PLACE_MASK) as usize;
            }
        }
        NOWHERE
    }

    /// A slot of this hash and place in the current generation. The hash's low bits chose the slot,
    /// so its high ones are kept.
    #[inline(always)]
    fn slot(&self, hash: u64, place: usize) -> u64 {
        hash >> TAG_SHIFT << TAG_SHIFT | self.generation << PLACE_BITS | place as u64
    }

    #[inline(always)]
    fn is_vacant(&self, slot: u64) -> bool {
        slot >> PLACE_BITS & ((1 << GENERATION_BITS) - 1) != self.generation
    }

    /// Place of the packet's flow, a new one if needed; `None` if there is no room for it.
    #[inline(always)]
    fn find(&mut self, note: &PacketNote, delta: &mut ChunkDelta) -> Option<usize> {
        let mask = self.slots.len() - 1;
        let wanted = self.slot(note.hash, 0) >> PLACE_BITS;
        for probe in 0..PROBES_MAX {
            let at = (note.hash as usize + probe) & mask;
            let slot = self.slots[at];
            if slot >> PLACE_BITS == wanted {
                let place = (slot & PLACE_MASK) as usize;
                if self.holds(place, &note.key) {
                    return Some(place);
                }
            } else if self.is_vacant(slot) {
                let place = self.enter(&note.key)?;
                self.slots[at] = self.slot(note.hash, place);
                delta.new_flows.push(&note.key);
                return Some(place);
            }
        }
        None
    }

    #[inline(always)]
    fn holds(&self, place: usize, key: &FlowKey) -> bool {
        let (at, words) = (self.word(place) + 1, key.words());
        let Some(kept) = self.entries.get(at..at + words.len()) else { return false };
        // Equal keys have equal lengths, and those are in the first word. All of them are compared:
        // that takes no longer than to find out where to stop.
        let differ = |at: usize| kept[at] ^ u64::from_le_bytes(words[at]);
        (0..words.len()).fold(0, |sum, at| sum | differ(at)) == 0
    }

    /// Appends an entry and gives its place.
    fn enter(&mut self, key: &FlowKey) -> Option<usize> {
        let words = key.words();
        let (place, units) = (self.units_used, (1 + words.len()).div_ceil(UNIT_WORDS));
        if self.flows >= self.flows_max || place + units > self.units {
            return None;
        }
        let at = self.word(place);
        self.entries[at] = self.flows as u64;
        let room = &mut self.entries[at + 1..at + 1 + words.len()];
        room.iter_mut().zip(words).for_each(|(room, word)| *room = u64::from_le_bytes(*word));
        self.units_used += units;
        self.flows += 1;
        Some(place)
    }

    /// Where the entry of a place begins.
    #[inline(always)]
    fn word(&self, place: usize) -> usize {
        self.first + place * UNIT_WORDS
    }

    #[inline(always)]
    fn touch(&mut self, place: usize, note: &PacketNote, delta: &mut ChunkDelta) {
        let at = self.word(place);
        let head = &mut self.entries[at];
        if *head >> CHUNK_SHIFT == self.chunk {
            let touch = (*head >> FLOW_BITS) as usize & ((1 << TOUCH_BITS) - 1);
            delta.touched[touch].stats.add(&note.stats());
            return;
        }
        let flow = *head & ((1 << FLOW_BITS) - 1);
        *head = self.chunk << CHUNK_SHIFT | (delta.touched.len() as u64) << FLOW_BITS | flow;
        delta.touched.push(FlowTouch { flow: flow as u32, stats: note.stats() });
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

    fn keys(delta: &ChunkDelta) -> Vec<FlowKey> {
        delta.new_flows.iter().map(FlowKey::from_kept).collect()
    }

    #[test]
    fn a_flow_is_new_once_and_touched_once_a_chunk() {
        let mut table = FlowTable::new(FlowOptions { flows_max: 1000 });
        let notes = notes(3);
        let first = chunk(&mut table, 0, &[notes[0], notes[1], notes[0]]);
        assert_eq!(keys(&first), [notes[0].key, notes[1].key]);
        let packets: Vec<_> = first.touched.iter().map(|t| (t.flow, t.stats.packets)).collect();
        assert_eq!(packets, [(0, 2), (1, 1)]);
        let second = chunk(&mut table, 1, &[notes[2], notes[1]]);
        assert_eq!(keys(&second), [notes[2].key]);
        let flows: Vec<_> = second.touched.iter().map(|touch| touch.flow).collect();
        assert_eq!(flows, [2, 1]);
    }

    #[test]
    fn a_full_table_makes_new_flows_loose() {
        let mut table = FlowTable::new(FlowOptions { flows_max: 100 });
        let notes = notes(1000);
        let full = chunk(&mut table, 0, &notes);
        assert_eq!((full.new_flows.len(), full.touched.len(), full.loose.len()), (100, 100, 900));
        let loose: Vec<FlowKey> = full.loose.iter().map(FlowKey::from_kept).collect();
        assert!(loose.iter().eq(notes[100..].iter().map(|note| &note.key)));
        let known = chunk(&mut table, 1, &notes[..100]);
        assert_eq!((known.new_flows.len(), known.touched.len(), known.loose.len()), (0, 100, 0));
        table.reset(50);
        let again = chunk(&mut table, 0, &notes[..60]);
        assert_eq!((again.new_flows.len(), again.loose.len(), table.len()), (50, 10, 50));
        table.reset(200);
        assert_eq!(chunk(&mut table, 0, &notes).new_flows.len(), 200);
        assert_eq!((table.flows_max(), table.memory_bytes()), (200, 200 * 64 + 64 + 512 * 8));
    }

    #[test]
    fn a_table_that_is_used_again_and_again_starts_empty() {
        let mut table = FlowTable::new(FlowOptions { flows_max: 10 });
        let notes = notes(10);
        for _ in 0..(2 << GENERATION_BITS) {
            table.reset(10);
            assert!(table.is_empty());
            assert_eq!(chunk(&mut table, 0, &notes[..3]).new_flows.len(), 3);
        }
    }

    #[test]
    fn keys_made_to_collide_do_not_stop_it() {
        let mut table = FlowTable::new(FlowOptions { flows_max: 1000 });
        let mut notes = notes(200);
        notes.iter_mut().for_each(|note| note.hash = 7);
        let delta = chunk(&mut table, 0, &notes);
        assert_eq!((delta.new_flows.len(), delta.loose.len()), (PROBES_MAX, 200 - PROBES_MAX));
    }

    #[test]
    fn keys_of_every_length_are_kept_whole() {
        // Stacks of VLAN tags in front of IPv6: 46 bytes and more, in two units and more.
        let note = |tags: usize, last: u8| {
            let mut frame = vec![0; 12];
            (0..tags).for_each(|tag| frame.extend([0x81, 0, 0, tag as u8]));
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, 17, 64]);
            frame.extend([0; 31]);
            frame.extend([last, 0, 1, 0, 2, 0, 8, 0, 0]);
            let dissected = dissect(LinkType::ETHERNET, &frame);
            // The same slot for all: only the keys tell them apart.
            PacketNote { key: dissected.key, hash: 3, ..PacketNote::default() }
        };
        let notes: Vec<_> =
            (0..10).flat_map(|tags| [note(tags, 1), note(tags, 2), note(tags, 1)]).collect();
        let mut table = FlowTable::new(FlowOptions { flows_max: 100 });
        let first = chunk(&mut table, 0, &notes);
        assert_eq!((first.new_flows.len(), first.loose.len()), (20, 0));
        assert_eq!(first.touched.iter().filter(|touch| touch.stats.packets == 2).count(), 10);
        assert_eq!(chunk(&mut table, 1, &notes).new_flows.len(), 0);
    }

    #[test]
    fn the_fullest_chunk_does_not_allocate() {
        let mut table = FlowTable::new(FlowOptions { flows_max: 6000 });
        let mut delta = ChunkDelta::new();
        let flows = notes(PACKETS_MAX as u32);
        let room = delta.room();
        delta.clear();
        table.begin_chunk(&delta);
        table.upsert(&flows, &mut delta);
        assert_eq!((delta.new_flows.len(), delta.loose.len()), (6000, PACKETS_MAX - 6000));
        assert_eq!(delta.room(), room);
    }
}
