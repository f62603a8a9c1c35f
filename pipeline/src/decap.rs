//! Outer headers that a lane removes before it stores a packet.

use std::sync::atomic::{AtomicU64, Ordering};

use wirevault_capture::{Packet, VlanTag};
use wirevault_format::LinkType;
use wirevault_format::pcapng::Beside;
use wirevault_packet::{Decap, OuterHeaders, Stripped};

/// What is stored of a packet: all of it, or what is inside.
pub(crate) struct Piece<'a> {
    /// Link type, where it is not that of the packet's interface.
    pub link: Option<LinkType>,
    pub data: &'a [u8],
    pub wire_len: u32,
    pub vlan: Option<VlanTag>,
    pub beside: Beside<'a>,
}

impl<'a> Piece<'a> {
    /// The whole packet.
    #[inline]
    pub(crate) fn whole(packet: &Packet<'a>) -> Self {
        let beside = Beside::default();
        let Packet { data, wire_len, vlan, .. } = *packet;
        Self { link: None, data, wire_len, vlan, beside }
    }
}

/// A lane's decapsulation: what is removed, room for what it said, and counters.
pub(crate) struct Stripper {
    decap: Decap,
    outer: OuterHeaders,
    counts: [u64; 3],
}

impl Stripper {
    pub(crate) fn new(decap: Decap) -> Self {
        Self { decap, outer: OuterHeaders::default(), counts: [0; 3] }
    }

    /// Removes a packet's outer headers and hands what remains to `store`, which says whether it
    /// was taken. Only what was taken counts, because a refused packet comes again.
    #[inline]
    pub(crate) fn strip<R>(
        &mut self,
        link: LinkType,
        packet: &Packet<'_>,
        store: impl FnOnce(&Piece<'_>) -> (R, bool),
    ) -> R {
        let tag = packet.vlan.map(VlanTag::bytes);
        let stripped = self.decap.strip(link, packet.data, packet.wire_len, tag, &mut self.outer);
        let (result, counted) = match &stripped {
            Stripped::Kept => (store(&Piece::whole(packet)), [0; 3]),
            Stripped::KeptFragment => (store(&Piece::whole(packet)), [0, 1, 0]),
            Stripped::Inner(inner) => {
                let outer = self.outer.option();
                let beside = Beside { head: inner.head(), outer, duplicate_ns: None };
                let (data, wire_len) = (inner.data, inner.wire_len);
                let piece = Piece { link: Some(inner.link), data, wire_len, vlan: None, beside };
                (store(&piece), [1, 0, u64::from(inner.truncated)])
            }
        };
        if result.1 {
            self.counts.iter_mut().zip(counted).for_each(|(sum, more)| *sum += more);
        }
        result.0
    }

    /// Packets stripped, fragments kept, and packets that the mirror had cut.
    pub(crate) fn counts(&self) -> [u64; 3] {
        self.counts
    }
}

/// What a lane's decapsulation did, for those who look at it.
#[derive(Debug, Default)]
pub struct DecapCounters {
    /// Packets stored without outer headers.
    pub stripped: AtomicU64,
    /// Packets stored as they came because they are fragments of a tunnel's packets.
    pub kept_fragments: AtomicU64,
    /// Packets that the mirror had cut, of those stripped here or in the source.
    pub truncated_mirror: AtomicU64,
}

impl DecapCounters {
    /// Makes the lane's counts visible, and the packets that were cut before its source removed
    /// their outer headers.
    pub(crate) fn publish(&self, counts: [u64; 3], truncated_at_source: u64) {
        let [stripped, fragments, truncated] = counts;
        self.stripped.store(stripped, Ordering::Relaxed);
        self.kept_fragments.store(fragments, Ordering::Relaxed);
        self.truncated_mirror.store(truncated + truncated_at_source, Ordering::Relaxed);
    }
}
