//! Planning: which chunks of a segment a query must read.
//!
//! The program that decides every packet decides here first, run abstractly: on the segment's
//! shapes with "is this address here at all?" answered by the filter, then on each flow. It answers
//! No, Yes or Maybe, and only No leaves anything out. So the answer is a superset whatever the
//! filter says, `not` and odd encapsulations included.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use wirevault_packet::bpf::{AnyAddress, Oracle, Program, Verdict};
use wirevault_packet::{Direction, FlowKey, ValueKind, shape_template, value_layout};
use xorf::{BinaryFuse8, BinaryFuse8Ref, DmaSerializable, Filter, FilterRef};

use crate::delta::FlowStats;
use crate::segment_index::FlowRecord;

/// Bytes of the port bitmap: one bit a port.
pub const PORT_BITMAP_BYTES: usize = 65_536 / 8;
/// Lengths of the IPv4 prefixes that the filter holds beside whole addresses.
const PREFIXES4: [u8; 3] = [32, 24, 16];
/// The same for IPv6.
const PREFIXES6: [u8; 3] = [128, 64, 48];

/// Chunks that a query must read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Their numbers, ascending.
    pub chunks: Vec<u32>,
    /// Chunks with packets that the index was asked about, all within the window's segments.
    pub chunks_considered: usize,
    /// The flow index could not be read, so every chunk in the window is to be read; this is why.
    pub index_damage: Option<String>,
}

/// Which addresses and ports a segment holds, as a small filter without false negatives.
#[derive(Debug, Clone)]
pub struct HostFilter {
    /// `None`: any address may be here.
    pub(crate) hosts: Option<FuseFilter>,
    pub(crate) ports: Vec<u8>,
}

impl HostFilter {
    /// Builds the filter over all addresses and ports of `flows`.
    pub(crate) fn build<'a>(flows: impl Iterator<Item = &'a FlowKey>) -> Self {
        let mut keys = Vec::new();
        let mut ports = vec![0; PORT_BITMAP_BYTES];
        for key in flows {
            for (kind, value) in values(key) {
                match (kind, value) {
                    (ValueKind::Port, &[high, low]) => {
                        let port = usize::from(u16::from_be_bytes([high, low]));
                        ports[port / 8] |= 1 << (port % 8);
                    }
                    (ValueKind::Addr4, value) => {
                        if let Ok(addr) = value.try_into() {
                            keys.extend(PREFIXES4.map(|bits| key4(addr, bits)));
                        }
                    }
                    (_, value) => {
                        if let Ok(addr) = value.try_into() {
                            keys.extend(PREFIXES6.map(|bits| key6(addr, bits)));
                        }
                    }
                }
            }
        }
        keys.sort_unstable();
        keys.dedup();
        // Building fails for sets that collide by bad luck; then any address may be here.
        let hosts = BinaryFuse8::try_from(&keys).ok().filter(|_| !keys.is_empty());
        Self { hosts: hosts.as_ref().map(FuseFilter::of), ports }
    }

    fn maybe(&self, key: u64) -> bool {
        self.hosts.as_ref().is_none_or(|hosts| hosts.contains(key))
    }
}

/// A binary fuse filter in the form in which it is stored.
#[derive(Debug, Clone)]
pub(crate) struct FuseFilter {
    pub(crate) descriptor: [u8; BinaryFuse8::DESCRIPTOR_LEN],
    pub(crate) fingerprints: Box<[u8]>,
}

impl FuseFilter {
    fn of(filter: &BinaryFuse8) -> Self {
        let mut descriptor = [0; BinaryFuse8::DESCRIPTOR_LEN];
        filter.dma_copy_descriptor_to(&mut descriptor);
        Self { descriptor, fingerprints: filter.dma_fingerprints().into() }
    }

    fn contains(&self, key: u64) -> bool {
        BinaryFuse8Ref::from_dma(&self.descriptor, &self.fingerprints).contains(&key)
    }

    /// Whether no key can make the filter look outside its fingerprints: a key's three places lie
    /// in three segments that follow each other.
    pub(crate) fn is_sound(&self) -> bool {
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|n| self.descriptor[at + n]));
        let (segment, mask, count) = (word(8), word(12), word(16));
        let reach = u64::from(count) + 2 * u64::from(segment);
        segment.is_power_of_two()
            && mask == segment - 1
            && count.is_multiple_of(segment)
            && reach <= self.fingerprints.len() as u64
    }
}

impl Oracle for HostFilter {
    fn host4(&self, addr: [u8; 4], prefix_len: u8) -> bool {
        // The longest prefix held that the question covers.
        let held = PREFIXES4.into_iter().find(|held| *held <= prefix_len);
        held.is_none_or(|held| self.maybe(key4(addr, held)))
    }

    fn host6(&self, addr: [u8; 16], prefix_len: u8) -> bool {
        let held = PREFIXES6.into_iter().find(|held| *held <= prefix_len);
        held.is_none_or(|held| self.maybe(key6(addr, held)))
    }

    fn port(&self, mut range: RangeInclusive<u16>) -> bool {
        range.any(|port| self.ports[usize::from(port) / 8] & (1 << (port % 8)) != 0)
    }
}

/// Values of a key with their kinds, in the order of its shape.
pub(crate) fn values(key: &FlowKey) -> Vec<(ValueKind, &[u8])> {
    let mut rest = key.values();
    let layout = value_layout(key.shape()).unwrap_or_default();
    let take = |kind: ValueKind| {
        let (value, behind) = rest.split_at_checked(kind.bytes())?;
        rest = behind;
        Some((kind, value))
    };
    layout.into_iter().map_while(take).collect()
}

fn key4(addr: [u8; 4], prefix_len: u8) -> u64 {
    let bits = u32::from_be_bytes(addr) & (u32::MAX << (32 - prefix_len));
    mix(u64::from(bits) | u64::from(prefix_len) << 32 | 4 << 40)
}

fn key6(addr: [u8; 16], prefix_len: u8) -> u64 {
    let bits = u128::from_be_bytes(addr) & (u128::MAX << (128 - prefix_len));
    mix((bits >> 64) as u64 ^ mix(bits as u64 ^ u64::from(prefix_len)) ^ 6 << 40)
}

/// The finaliser of SplitMix64: the filter wants keys that differ in all bits.
fn mix(mut key: u64) -> u64 {
    key = (key ^ key >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    key = (key ^ key >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    key ^ key >> 31
}

/// Whether any shape may hold a packet that the program accepts.
pub(crate) fn shapes_may_match<'a>(
    shapes: impl IntoIterator<Item = &'a [u8]>,
    program: &Program,
    filter: &HostFilter,
) -> bool {
    shapes.into_iter().any(|shape| match shape_template(shape) {
        Ok(template) => program.decide(&template, filter) != Verdict::No,
        Err(_) => true,
    })
}

/// Marks the chunks of every flow that may hold a packet that the program accepts.
pub(crate) fn mark_flows(
    flows: &[FlowRecord],
    program: &Program,
    window: (u64, u64),
    filter: Option<&HostFilter>,
    marked: &mut [bool],
) {
    let mut shapes: HashMap<&[u8], bool> = HashMap::new();
    for flow in flows {
        let (first_ns, last_ns) = flow.stats.times_ns;
        if last_ns < window.0 || first_ns >= window.1 {
            continue;
        }
        let shape = flow.key.shape();
        let possible = *shapes.entry(shape).or_insert_with(|| {
            shape_template(shape).map_or(true, |template| match filter {
                Some(filter) => program.decide(&template, filter) != Verdict::No,
                None => program.decide(&template, &AnyAddress) != Verdict::No,
            })
        });
        if possible && flow_may_match(flow, program) {
            for chunk in &flow.chunks {
                if let Some(mark) = marked.get_mut(*chunk as usize) {
                    *mark = true;
                }
            }
        }
    }
}

fn flow_may_match(flow: &FlowRecord, program: &Program) -> bool {
    let stats = &flow.stats;
    [Direction::AtoB, Direction::BtoA].into_iter().any(|direction| {
        if stats.directions & FlowStats::bit(direction) == 0 {
            return false;
        }
        let mut template = flow.key.template(direction);
        let ((wire_min, wire_max), (cap_min, cap_max)) = (stats.wire_len, stats.captured_len);
        template.set_lengths(wire_min, wire_max, cap_min, cap_max);
        template.set_tcp_flags(stats.tcp_or, stats.tcp_and);
        program.decide(&template, &AnyAddress) != Verdict::No
    })
}
