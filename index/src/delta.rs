//! What one chunk adds to the index of its segment.

use wirevault_format::Gap;
use wirevault_format::chunk::PAYLOAD_BYTES_MAX;
use wirevault_format::footer::ChunkEntry;
use wirevault_format::gap::CAUSES;
use wirevault_format::pcapng::EPB_FIXED_BYTES;
use wirevault_packet::{Direction, FlowKey};

use crate::flows::KeyList;

/// Packets that one chunk can hold at most: all of them empty.
pub(crate) const PACKETS_MAX: usize = PAYLOAD_BYTES_MAX / EPB_FIXED_BYTES;
/// Bytes of all keys of a chunk at most: no key is longer than the block of its packet. A layer
/// adds at most 5 bytes to a key for 4 of its header, a block has 32 bytes more than its packet,
/// and a key ends at 112 bytes.
const KEY_BYTES_MAX: usize = PAYLOAD_BYTES_MAX;
/// Gaps for which a delta has room without allocating.
const GAPS: usize = 64;

/// What was seen of one flow, in one chunk or in a whole segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowStats {
    /// Smallest and largest packet time, ns.
    pub times_ns: (u64, u64),
    /// Packets.
    pub packets: u64,
    /// Bytes on the wire.
    pub bytes: u64,
    /// Smallest and largest length on the wire.
    pub wire_len: (u32, u32),
    /// Smallest and largest captured length.
    pub captured_len: (u32, u32),
    /// TCP flags of any packet.
    pub tcp_or: u8,
    /// TCP flags of every packet.
    pub tcp_and: u8,
    /// Directions seen: 1 from A to B, 2 from B to A.
    pub directions: u8,
}

impl FlowStats {
    /// Nothing seen.
    pub const NONE: Self = Self {
        times_ns: (u64::MAX, 0),
        packets: 0,
        bytes: 0,
        wire_len: (u32::MAX, 0),
        captured_len: (u32::MAX, 0),
        tcp_or: 0,
        tcp_and: u8::MAX,
        directions: 0,
    };

    /// The bit of a direction in `directions`.
    pub const fn bit(direction: Direction) -> u8 {
        match direction {
            Direction::AtoB => 1,
            Direction::BtoA => 2,
        }
    }

    /// Adds what was seen elsewhere.
    #[inline]
    pub fn add(&mut self, other: &Self) {
        self.times_ns.0 = self.times_ns.0.min(other.times_ns.0);
        self.times_ns.1 = self.times_ns.1.max(other.times_ns.1);
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.wire_len.0 = self.wire_len.0.min(other.wire_len.0);
        self.wire_len.1 = self.wire_len.1.max(other.wire_len.1);
        self.captured_len.0 = self.captured_len.0.min(other.captured_len.0);
        self.captured_len.1 = self.captured_len.1.max(other.captured_len.1);
        self.tcp_or |= other.tcp_or;
        self.tcp_and &= other.tcp_and;
        self.directions |= other.directions;
    }
}

/// What one chunk saw of one flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowTouch {
    /// Number of the flow.
    pub flow: u32,
    /// What was seen.
    pub stats: FlowStats,
}

/// What one chunk adds to the index of its segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkDelta {
    /// Number of the chunk.
    pub number: u32,
    /// Where it lies and what it holds.
    pub chunk: ChunkEntry,
    /// Gaps that it tells of.
    pub gaps: Vec<Gap>,
    /// Flows seen for the first time; they are numbered on from the deltas before.
    pub new_flows: KeyList,
    /// Flows that have packets in the chunk.
    pub touched: Vec<FlowTouch>,
    /// Keys of packets whose flows found no room in the flow table; a key may stand here often.
    pub loose: KeyList,
    /// Some packets are covered by neither `touched` nor `loose`: queries scan the chunk.
    pub unindexed: bool,
    /// Packets the lane received so far in the run.
    pub received: u64,
    /// Of them left out by policy.
    pub shed: u64,
    /// Of them dropped, by cause.
    pub dropped: [u64; CAUSES],
    full_size: bool,
}

impl ChunkDelta {
    /// A delta with room for the fullest chunk, so that filling it never allocates.
    pub fn new() -> Self {
        let mut delta = Self::small();
        delta.gaps.reserve_exact(GAPS);
        delta.new_flows = KeyList::with_room(PACKETS_MAX, KEY_BYTES_MAX);
        delta.loose = KeyList::with_room(PACKETS_MAX, KEY_BYTES_MAX);
        delta.touched.reserve_exact(PACKETS_MAX);
        delta.full_size = true;
        delta
    }

    /// A delta that only says where a chunk lies.
    pub fn small() -> Self {
        Self {
            number: 0,
            chunk: ChunkEntry {
                offset: 0,
                chunk_bytes: 0,
                packets: 0,
                times_ns: None,
                first_sequence: 0,
            },
            gaps: Vec::new(),
            new_flows: KeyList::default(),
            touched: Vec::new(),
            loose: KeyList::default(),
            unindexed: false,
            received: 0,
            shed: 0,
            dropped: [0; CAUSES],
            full_size: false,
        }
    }

    /// It was made by [`ChunkDelta::new`].
    pub fn is_full_size(&self) -> bool {
        self.full_size
    }

    /// Notes a packet that no flow is kept of: the table has no room for it, or the chunk is
    /// indexed coarsely.
    pub fn note_loose(&mut self, key: &FlowKey) {
        // A flood repeats a key rarely, but trains of one flow's packets do at once.
        if self.loose.last() != Some(key.as_bytes()) {
            self.loose.push(key);
        }
    }

    #[cfg(test)]
    pub(crate) fn room(&self) -> [usize; 5] {
        let ([a, b], [c, d]) = (self.new_flows.room(), self.loose.room());
        [a, b, c, d, self.touched.capacity()]
    }

    /// Makes it ready for the next chunk.
    pub fn clear(&mut self) {
        self.gaps.clear();
        self.new_flows.clear();
        self.touched.clear();
        self.loose.clear();
        self.unindexed = false;
    }
}

impl Default for ChunkDelta {
    fn default() -> Self {
        Self::small()
    }
}
