//! What stands for the flows of one chunk where keeping them one by one would take too much: the
//! shapes of its packets, and a Bloom filter over their addresses and ports.
//!
//! Under a flood every packet is a flow of its own and its record would be as large as itself. The
//! filter has a fixed share of the chunk's size, whatever the packets are. It never denies what is
//! there. What it holds beside whole addresses and ports below 1024 depends on the room: ports
//! above, then prefixes of addresses. What it does not hold it does not deny.

use std::ops::RangeInclusive;

use wirevault_packet::ValueKind;
use wirevault_packet::bpf::Oracle;

use crate::flows::Shape;
use crate::host_filter::{PREFIXES4, PREFIXES6, key4, key6, mix};

/// Bytes of a chunk for each byte of its filter: 0.46 %, so that an index of filters only stays
/// below 0.5 % of what is stored.
const CHUNK_BYTES_PER_BYTE: usize = 216;
/// A filter is whole blocks of this many bytes, so that it can be folded.
const BLOCK_BYTES: usize = 8;
/// Bits set for each key. With three bits a key, which is what a flood of 64-byte packets leaves,
/// three of them let the fewest strangers through.
const PROBES: u32 = 3;
/// Ports below this are always held: services are asked for by them, and they are few.
const LOW_PORTS: u16 = 1024;
/// A part of the filter's bits, of 256, up to which another class of keys is tried, and up to which
/// it is kept then.
const TRY_UP_TO: usize = 100;
const KEEP_UP_TO: usize = 140;
/// A filter with fewer bits set than this part of 256 is folded in two.
const FOLD_BELOW: usize = 40;
/// Shapes that a filter can name; a chunk with more is scanned.
pub(crate) const SHAPES_MAX: usize = 64;
/// Ports of a range that are asked for one by one; a wider range may be anywhere.
const RANGE_MAX: usize = 256;

/// Flag: ports from 1024 on are in the filter.
const HIGH_PORTS: u8 = 1;
/// Flag: prefixes are in the filter.
const PREFIXES: u8 = 2;

/// Bytes of the filter of a chunk at most.
pub(crate) fn bytes_max(chunk_bytes: u32) -> u64 {
    let blocks = chunk_bytes as usize / CHUNK_BYTES_PER_BYTE / BLOCK_BYTES;
    (blocks.max(1) * BLOCK_BYTES) as u64
}

/// The filter of one chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkFilter {
    /// Numbers of the shapes of its packets, ascending.
    pub(crate) shapes: Vec<u32>,
    pub(crate) flags: u8,
    pub(crate) bits: Vec<u8>,
}

impl ChunkFilter {
    /// A filter over flows, each given with its shape's number, shape and values. `None` if they
    /// have too many shapes.
    pub(crate) fn build<'a>(
        chunk_bytes: u32,
        flows: impl Iterator<Item = (u32, &'a Shape, &'a [u8])> + Clone,
    ) -> Option<Self> {
        let bits = vec![0; bytes_max(chunk_bytes) as usize];
        let mut filter = Self { shapes: Vec::new(), flags: 0, bits };
        for (number, shape, values) in flows.clone() {
            if filter.shapes.last() != Some(&number)
                && let Err(at) = filter.shapes.binary_search(&number)
            {
                if filter.shapes.len() == SHAPES_MAX {
                    return None;
                }
                filter.shapes.insert(at, number);
            }
            for (kind, value) in shape.values(values) {
                match Value::of(kind, value) {
                    Value::Port(port) if port >= LOW_PORTS => {}
                    value => filter.add(value.key()),
                }
            }
        }
        for class in [HIGH_PORTS, PREFIXES] {
            if filter.part_set() > TRY_UP_TO {
                break;
            }
            let mut more = filter.clone();
            more.flags |= class;
            for (_, shape, values) in flows.clone() {
                for (kind, value) in shape.values(values) {
                    more.add_class(class, Value::of(kind, value));
                }
            }
            if more.part_set() <= KEEP_UP_TO {
                filter = more;
            }
        }
        while filter.part_set() < FOLD_BELOW && filter.bits.len().is_multiple_of(2) {
            filter.fold();
        }
        Some(filter)
    }

    fn add_class(&mut self, class: u8, value: Value) {
        match value {
            Value::Port(port) if class == HIGH_PORTS && port >= LOW_PORTS => self.add(value.key()),
            Value::Addr4(addr) if class == PREFIXES => {
                PREFIXES4[1..].iter().for_each(|bits| self.add(key4(addr, *bits)));
            }
            Value::Addr6(addr) if class == PREFIXES => {
                PREFIXES6[1..].iter().for_each(|bits| self.add(key6(addr, *bits)));
            }
            _ => {}
        }
    }

    fn add(&mut self, key: u64) {
        for at in places(key, self.bits.len()) {
            self.bits[at / 8] |= 1 << (at % 8);
        }
    }

    fn maybe(&self, key: u64) -> bool {
        places(key, self.bits.len()).all(|at| {
            // A filter without bits denies nothing.
            self.bits.get(at / 8).is_none_or(|byte| byte & 1 << (at % 8) != 0)
        })
    }

    /// Bits set, of 256.
    fn part_set(&self) -> usize {
        let set: usize = self.bits.iter().map(|byte| byte.count_ones() as usize).sum();
        set * 256 / (self.bits.len() * 8)
    }

    /// Halves the filter: a key's place in it is half of what it was.
    fn fold(&mut self) {
        let bit = |at: usize| self.bits[at / 8] >> (at % 8) & 1;
        let mut folded = vec![0; self.bits.len() / 2];
        for at in 0..folded.len() * 8 {
            folded[at / 8] |= (bit(2 * at) | bit(2 * at + 1)) << (at % 8);
        }
        self.bits = folded;
    }
}

/// The bits of a key in a filter of so many bytes.
fn places(key: u64, bytes: usize) -> impl Iterator<Item = usize> {
    let (start, step) = (key as u32, (key >> 32) as u32 | 1);
    let at = move |probe: u32| u64::from(start.wrapping_add(probe.wrapping_mul(step)));
    (0..PROBES).map(move |probe| ((at(probe) * (bytes as u64 * 8)) >> 32) as usize)
}

#[derive(Clone, Copy)]
enum Value {
    Addr4([u8; 4]),
    Addr6([u8; 16]),
    Port(u16),
}

impl Value {
    /// A value is as long as its kind wants; damaged ones become zeros.
    #[inline]
    fn of(kind: ValueKind, value: &[u8]) -> Self {
        match kind {
            ValueKind::Addr4 => Self::Addr4(value.try_into().unwrap_or_default()),
            ValueKind::Addr6 => Self::Addr6(value.try_into().unwrap_or_default()),
            ValueKind::Port => Self::Port(value.try_into().map_or(0, u16::from_be_bytes)),
        }
    }

    #[inline]
    fn key(self) -> u64 {
        match self {
            Self::Addr4(addr) => key4(addr, 32),
            Self::Addr6(addr) => key6(addr, 128),
            Self::Port(port) => port_key(port),
        }
    }
}

fn port_key(port: u16) -> u64 {
    mix(u64::from(port) | 1 << 40)
}

impl Oracle for ChunkFilter {
    fn host4(&self, addr: [u8; 4], prefix_len: u8) -> bool {
        // The longest prefix held that the question covers.
        let held = &PREFIXES4[..if self.flags & PREFIXES == 0 { 1 } else { PREFIXES4.len() }];
        let held = held.iter().find(|held| **held <= prefix_len);
        held.is_none_or(|held| self.maybe(key4(addr, *held)))
    }

    fn host6(&self, addr: [u8; 16], prefix_len: u8) -> bool {
        let held = &PREFIXES6[..if self.flags & PREFIXES == 0 { 1 } else { PREFIXES6.len() }];
        let held = held.iter().find(|held| **held <= prefix_len);
        held.is_none_or(|held| self.maybe(key6(addr, *held)))
    }

    fn port(&self, mut range: RangeInclusive<u16>) -> bool {
        let unknown = self.flags & HIGH_PORTS == 0 && *range.end() >= LOW_PORTS;
        unknown || range.len() > RANGE_MAX || range.any(|port| self.maybe(port_key(port)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        // Ethernet, IPv4, TCP.
        Shape::new(vec![1, 0, 1, 8, 0, 7, 5, 6, 11])
    }

    fn values(n: u32, port: u16) -> Vec<u8> {
        let addr = n.wrapping_mul(0x9e37_79b1).to_be_bytes();
        [&addr[..], &[10, 0, 0, 1], &port.to_be_bytes(), &[1, 187]].concat()
    }

    fn filter(flows: &[Vec<u8>], chunk_bytes: u32) -> ChunkFilter {
        let shape = shape();
        let flows = flows.iter().map(|values| (3, &shape, &values[..]));
        ChunkFilter::build(chunk_bytes, flows).unwrap()
    }

    fn let_through(filter: &ChunkFilter, from: u32) -> usize {
        let addr = |n: u32| n.wrapping_mul(0x9e37_79b1).to_be_bytes();
        (from..from + 10_000).filter(|n| filter.host4(addr(*n), 32)).count()
    }

    #[test]
    fn what_is_there_is_never_denied() {
        for count in [0, 1, 30, 300, 3000] {
            let flows: Vec<_> = (0..count).map(|n| values(n, n as u16 ^ 0x5555)).collect();
            let filter = filter(&flows, 256 << 10);
            for n in 0..count {
                let addr = n.wrapping_mul(0x9e37_79b1).to_be_bytes();
                assert!((8..=32).all(|bits| filter.host4(addr, bits)), "{n} of {count}");
                let port = n as u16 ^ 0x5555;
                assert!(filter.port(port..=port) && filter.port(0..=u16::MAX));
            }
            assert!(count == 0 || filter.port(443..=443) && filter.host4([10, 0, 0, 1], 32));
        }
    }

    #[test]
    fn a_flood_leaves_room_for_hosts_and_calm_for_all() {
        let flows =
            |count: u32| (0..count).map(|n| values(n, 40_000 + n as u16)).collect::<Vec<_>>();
        let flood = filter(&flows(2700), 256 << 10);
        assert_eq!((flood.bits.len(), flood.flags), (1208, 0));
        let strangers = let_through(&flood, 1 << 20);
        assert!((1000..2500).contains(&strangers), "{strangers} of 10000");
        assert!(!flood.port(80..=80) && flood.port(8080..=8080));
        let calm = filter(&flows(60), 256 << 10);
        assert_eq!(calm.flags, HIGH_PORTS | PREFIXES);
        assert!(calm.bits.len() < 600, "{}", calm.bits.len());
        assert!(let_through(&calm, 1 << 20) < 200);
        assert!(!calm.host4([77, 1, 0, 0], 16) && !calm.port(8080..=8080));
    }

    #[test]
    fn a_chunk_of_too_many_shapes_has_none() {
        let shape = shape();
        let values = values(1, 1);
        let flows = |count: u32| (0..count).rev().map(|n| (n, &shape, &values[..]));
        let most = ChunkFilter::build(4096, flows(SHAPES_MAX as u32)).unwrap();
        assert!(most.shapes.is_sorted() && most.shapes.len() == SHAPES_MAX);
        assert_eq!(ChunkFilter::build(4096, flows(SHAPES_MAX as u32 + 1)), None);
    }
}
