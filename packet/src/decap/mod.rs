//! Removes encapsulations from a frame before it is stored: mirrors wrap what they copy.
//!
//! ```text
//!  Ethernet | IP | UDP | VXLAN | Ethernet | IP | ...        the frame as it came
//!  └────────── outer ─────────┘└────────── stored ──────┘   data: a part of the same bytes
//!            │
//!            └─► OuterHeaders: what they said, kept as an option of the packet
//! ```
//! Invariants:
//! - nothing is copied but at most [`HEAD_BYTES_MAX`] bytes (addresses and type, where what is
//!   removed stands behind them), nothing is allocated, nothing panics, whatever the bytes;
//! - [`Inner::data`] lies within the frame, and everything removed is in [`OuterHeaders`] as far as
//!   that says; a frame whose outer headers do not fit there is stripped no further;
//! - what cannot be taken apart for certain stays as it is: fragments, headers that were cut off,
//!   headers that contradict themselves, tunnels that are not to be removed, and all inside those.

mod ip;
mod link;

use wirevault_format::{LinkType, VxlanPorts};

use crate::outer::{OuterHeaders, OuterKind};

/// Tunnels within tunnels that are removed from one frame at most; real ones have two.
pub const DECAP_LAYERS_MAX: usize = 8;
/// VLAN tags of one frame at most; real frames have two.
const TAGS_MAX: usize = 4;
/// Bytes of [`Inner::head`] at most: addresses, tags that stay, type.
pub const HEAD_BYTES_MAX: usize = ADDRESSES_BYTES + 4 * TAGS_MAX + 2;
/// The two addresses of an Ethernet frame.
const ADDRESSES_BYTES: usize = 12;
const ETHERNET_BYTES: usize = 14;

/// An encapsulation that can be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tunnel {
    /// VLAN tags, one or several.
    Vlan,
    /// MPLS label stacks, with or without a pseudowire's control word.
    Mpls,
    /// VXLAN, and VXLAN-GPE on its own port.
    Vxlan,
    /// GENEVE.
    Geneve,
    /// GRE around Ethernet or IP.
    Gre,
    /// ERSPAN types I, II and III.
    Erspan,
    /// GTP-U.
    GtpU,
    /// IP in IP: protocols 4 and 41.
    IpInIp,
}

impl Tunnel {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Vlan,
        Self::Mpls,
        Self::Vxlan,
        Self::Geneve,
        Self::Gre,
        Self::Erspan,
        Self::GtpU,
        Self::IpInIp,
    ];
}

/// What is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decap {
    tunnels: u16,
    vxlan_ports: VxlanPorts,
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stripped<'a> {
    /// Nothing is to be removed; the frame is stored as it came.
    Kept,
    /// A fragment of a tunnel's packet: the frame is stored as it came. Of UDP tunnels only first
    /// fragments are known to be that.
    KeptFragment,
    /// This is stored instead.
    Inner(Inner<'a>),
}

/// A frame without its outer headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inner<'a> {
    /// [`LinkType::ETHERNET`] or, if the tunnel carried IP, [`LinkType::RAW`].
    pub link: LinkType,
    head: [u8; HEAD_BYTES_MAX],
    head_bytes: usize,
    /// The frame's captured bytes behind `head`.
    pub data: &'a [u8],
    /// Length of the inner frame on the wire, `head` included: what the outer headers leave, or
    /// what the inner IP header says if the mirror cut the frame.
    pub wire_len: u32,
    /// The mirror cut the frame: its IP header says more than the tunnel carried.
    pub truncated: bool,
}

impl Inner<'_> {
    /// Bytes that stand before `data`.
    #[inline]
    pub fn head(&self) -> &[u8] {
        &self.head[..self.head_bytes]
    }
}

impl Decap {
    /// Removes `tunnels`; VXLAN is what goes to one of `vxlan_ports`.
    pub fn new(tunnels: &[Tunnel], vxlan_ports: VxlanPorts) -> Self {
        let tunnels = tunnels.iter().fold(0, |all, tunnel| all | 1 << *tunnel as u16);
        Self { tunnels, vxlan_ports }
    }

    /// Removes the outer headers of a frame; `outer` then holds what they said.
    ///
    /// `data` are the captured bytes, `wire_len` the length on the wire, both without `tag`, the
    /// VLAN tag that the kernel took out.
    #[inline]
    pub fn strip<'a>(
        &self,
        link: LinkType,
        data: &'a [u8],
        wire_len: u32,
        tag: Option<[u8; 4]>,
        outer: &mut OuterHeaders,
    ) -> Stripped<'a> {
        outer.clear();
        let end = data.len().max(wire_len as usize);
        Walk { decap: self, data, end, outer, inner_ip_end: None }.run(link, tag)
    }

    /// As [`Decap::strip`], for the payload of a UDP datagram that was sent to a tunnel's `port`.
    /// `outer` has the datagram's addresses already.
    pub fn strip_datagram<'a>(
        &self,
        port: u16,
        payload: &'a [u8],
        wire_len: u32,
        outer: &mut OuterHeaders,
    ) -> Stripped<'a> {
        let end = payload.len().max(wire_len as usize);
        let mut walk = Walk { decap: self, data: payload, end, outer, inner_ip_end: None };
        match walk.udp_tunnel(port, 0, end, None) {
            Some(first) => walk.follow(first),
            None => Stripped::Kept,
        }
    }

    #[inline]
    fn has(&self, tunnel: Tunnel) -> bool {
        self.tunnels & 1 << tunnel as u16 != 0
    }

    #[inline]
    fn is_vxlan_port(&self, port: u16) -> bool {
        self.vxlan_ports.contains(port) && self.has(Tunnel::Vxlan)
    }
}

/// Where an inner frame starts, and where the outer headers say that it ends.
#[derive(Debug, Clone, Copy)]
struct Cut {
    link: LinkType,
    at: usize,
    end: usize,
}

/// What was found in one frame.
enum Found<'a> {
    Tunnel(Cut),
    /// Tags or labels are removed, the frame's addresses stay.
    Rewritten(Inner<'a>),
    Fragment,
    Nothing,
}

/// What IP carries, and where.
enum Carried {
    Tunnel(Cut),
    Fragment,
    Other,
}

struct Walk<'d, 'a, 'o> {
    decap: &'d Decap,
    data: &'a [u8],
    /// End of the whole frame on the wire; may lie behind the captured bytes.
    end: usize,
    outer: &'o mut OuterHeaders,
    /// Where the IP packet in the frame looked at last says that it ends.
    inner_ip_end: Option<usize>,
}

impl<'a> Walk<'_, 'a, '_> {
    #[inline]
    fn run(mut self, link: LinkType, tag: Option<[u8; 4]>) -> Stripped<'a> {
        match self.frame(link, 0, self.end, tag) {
            Found::Nothing => Stripped::Kept,
            Found::Fragment => Stripped::KeptFragment,
            Found::Rewritten(inner) => Stripped::Inner(inner),
            Found::Tunnel(cut) => self.follow(cut),
        }
    }

    /// Looks into an inner frame for further ones.
    fn follow(mut self, first: Cut) -> Stripped<'a> {
        let mut cut = first;
        for _ in 1..DECAP_LAYERS_MAX {
            match self.frame(cut.link, cut.at, cut.end, None) {
                Found::Tunnel(next) => {
                    cut = next;
                    self.inner_ip_end = None;
                }
                Found::Rewritten(mut inner) => {
                    let said = self.inner_ip_end.map_or(0, |end| end.saturating_sub(cut.end));
                    inner.truncated = said > 0;
                    self.note_truncated(inner.truncated, inner.wire_len);
                    inner.wire_len += said as u32;
                    return Stripped::Inner(inner);
                }
                Found::Fragment | Found::Nothing => break,
            }
        }
        let carried = cut.end - cut.at;
        let truncated = self.inner_ip_end.is_some_and(|end| end > cut.end);
        self.note_truncated(truncated, carried as u32);
        let wire = self.inner_ip_end.filter(|_| truncated).map_or(carried, |end| end - cut.at);
        Stripped::Inner(Inner {
            link: cut.link,
            head: [0; HEAD_BYTES_MAX],
            head_bytes: 0,
            data: &self.data[cut.at..self.data.len().min(cut.end)],
            wire_len: wire as u32,
            truncated,
        })
    }

    fn note_truncated(&mut self, truncated: bool, carried: u32) {
        if truncated {
            // Without room it is only counted.
            let _ = self.outer.push(OuterKind::Truncated, &carried.to_be_bytes());
        }
    }

    /// `N` captured bytes at `at`.
    #[inline]
    fn head<const N: usize>(&self, at: usize) -> Option<&'a [u8; N]> {
        self.data.get(at..)?.first_chunk()
    }

    /// Looks for a tunnel in the frame at `at`, which ends at `end` on the wire. Whatever is
    /// recorded before it turns out that there is none is taken back.
    #[inline]
    fn frame(&mut self, link: LinkType, at: usize, end: usize, tag: Option<[u8; 4]>) -> Found<'a> {
        self.inner_ip_end = None;
        let before = self.outer.mark();
        let carried = match link {
            LinkType::ETHERNET => return self.ethernet(at, end, tag),
            LinkType::RAW | LinkType::IPV4 | LinkType::IPV6 => self.ip(at, end),
            LinkType::LINUX_SLL => self.cooked(at + 14, at + 16, end),
            LinkType::LINUX_SLL2 => self.cooked(at, at + 20, end),
            _ => Carried::Other,
        };
        match carried {
            Carried::Tunnel(cut) => Found::Tunnel(cut),
            Carried::Fragment => Found::Fragment,
            Carried::Other => {
                self.outer.back_to(before);
                Found::Nothing
            }
        }
    }

    fn cooked(&mut self, type_at: usize, at: usize, end: usize) -> Carried {
        match self.head::<2>(type_at) {
            Some([0x08, 0x00] | [0x86, 0xdd]) => self.ip(at, end),
            _ => Carried::Other,
        }
    }

    /// The inner frame at `at`, if enough of it was captured to be sure that it is one.
    #[inline]
    fn cut(&self, link: LinkType, at: usize, end: usize) -> Option<Cut> {
        match link {
            LinkType::ETHERNET => {
                self.head::<ETHERNET_BYTES>(at).filter(|_| at + ETHERNET_BYTES <= end)?;
            }
            _ => self.holds_ip(at, end)?,
        }
        Some(Cut { link, at, end })
    }

    /// Whether a whole IP header stands at `at`.
    fn holds_ip(&self, at: usize, end: usize) -> Option<()> {
        let first = *self.data.get(at)?;
        let bytes = match first >> 4 {
            4 if first & 0xf >= 5 => 20,
            6 => 40,
            _ => return None,
        };
        (at + bytes <= end.min(self.data.len())).then_some(())
    }
}
