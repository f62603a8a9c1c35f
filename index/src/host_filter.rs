//! Which addresses and ports a segment holds, as a filter without false negatives.

use std::ops::RangeInclusive;

use wirevault_packet::bpf::Oracle;
use xorf::{BinaryFuse8, BinaryFuse8Ref, DmaSerializable, Filter, FilterRef};

/// Bytes of the port bitmap: one bit a port.
pub(crate) const PORT_BITMAP_BYTES: usize = 65_536 / 8;
/// Lengths of the IPv4 prefixes that the filter holds beside whole addresses.
pub(crate) const PREFIXES4: [u8; 3] = [32, 24, 16];
/// The same for IPv6.
pub(crate) const PREFIXES6: [u8; 3] = [128, 64, 48];

/// Which addresses and ports a segment holds, as a small filter without false negatives.
#[derive(Debug, Clone)]
pub struct HostFilter {
    /// `None`: any address may be here.
    pub(crate) hosts: Option<FuseFilter>,
    pub(crate) ports: Vec<u8>,
}

impl HostFilter {
    /// Builds the filter over addresses and a port bitmap.
    pub(crate) fn build(hosts4: &[[u8; 4]], hosts6: &[[u8; 16]], ports: Vec<u8>) -> Self {
        let keys = host_keys(hosts4, hosts6);
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

/// The keys of addresses and their prefixes, each once.
pub(crate) fn host_keys(hosts4: &[[u8; 4]], hosts6: &[[u8; 16]]) -> Vec<u64> {
    let keys4 = hosts4.iter().flat_map(|addr| PREFIXES4.map(|bits| key4(*addr, bits)));
    let keys6 = hosts6.iter().flat_map(|addr| PREFIXES6.map(|bits| key6(*addr, bits)));
    let mut keys: Vec<u64> = keys4.chain(keys6).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

pub(crate) fn key4(addr: [u8; 4], prefix_len: u8) -> u64 {
    let bits = u32::from_be_bytes(addr) & (u32::MAX << (32 - prefix_len));
    mix(u64::from(bits) | u64::from(prefix_len) << 32 | 4 << 40)
}

pub(crate) fn key6(addr: [u8; 16], prefix_len: u8) -> u64 {
    let bits = u128::from_be_bytes(addr) & (u128::MAX << (128 - prefix_len));
    mix((bits >> 64) as u64 ^ mix(bits as u64 ^ u64::from(prefix_len)) ^ 6 << 40)
}

/// The finaliser of SplitMix64: the filter wants keys that differ in all bits.
pub(crate) fn mix(mut key: u64) -> u64 {
    key = (key ^ key >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    key = (key ^ key >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    key ^ key >> 31
}
