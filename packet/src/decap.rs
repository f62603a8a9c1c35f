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

use wirevault_format::LinkType;

use crate::outer::{OuterHeaders, OuterKind};
use crate::tunnel::{
    ERSPAN_FRAME_ETHERNET, ERSPAN_FRAME_IP, ERSPAN_I_II, ERSPAN_III, GENEVE_PORT, GPE_ETHERNET,
    GPE_IPV4, GPE_IPV6, GRE_OTHER, GRE_SEQUENCE, GTP_OPTIONAL, GTP_U_PORT, Pseudowire,
    TRANSPARENT_ETHERNET, VXLAN_GPE_PORT, gtp_user_packet, pseudowire,
};
use crate::walk::half;

/// Tunnels within tunnels that are removed from one frame at most; real ones have two.
pub const DECAP_LAYERS_MAX: usize = 8;
/// VLAN tags of one frame at most; real frames have two.
const TAGS_MAX: usize = 4;
/// MPLS labels of one frame at most; real stacks have three or four.
const LABELS_MAX: usize = 8;
/// IPv6 extension headers before a tunnel at most.
const EXTENSIONS_MAX: usize = 8;
/// UDP ports that can be taken for VXLAN's.
pub const DECAP_VXLAN_PORTS_MAX: usize = 8;
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
    vxlan_ports: [u16; DECAP_VXLAN_PORTS_MAX],
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
    /// Removes `tunnels`; VXLAN is what goes to one of `vxlan_ports`, of which the first
    /// [`DECAP_VXLAN_PORTS_MAX`] count.
    pub fn new(tunnels: &[Tunnel], vxlan_ports: &[u16]) -> Self {
        let mut decap = Self { tunnels: 0, vxlan_ports: [0; DECAP_VXLAN_PORTS_MAX] };
        for tunnel in tunnels {
            decap.tunnels |= 1 << *tunnel as u16;
        }
        for (place, port) in decap.vxlan_ports.iter_mut().zip(vxlan_ports) {
            *place = *port;
        }
        decap
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
        // Unused places hold 0, which no datagram is sent to.
        port != 0 && self.vxlan_ports.contains(&port) && self.has(Tunnel::Vxlan)
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

    #[inline]
    fn ethernet(&mut self, at: usize, end: usize, tag: Option<[u8; 4]>) -> Found<'a> {
        let Some(head) = self.head::<ETHERNET_BYTES>(at) else { return Found::Nothing };
        let before = self.outer.mark();
        let kind = half(head, ADDRESSES_BYTES);
        // Most frames: IP at once.
        let plain = tag.is_none() && (kind == 0x0800 || kind == 0x86dd);
        if plain {
            let carried = self.ip(at + ETHERNET_BYTES, end);
            return match carried {
                Carried::Tunnel(cut) => Found::Tunnel(cut),
                Carried::Fragment => Found::Fragment,
                Carried::Other => {
                    self.outer.back_to(before);
                    Found::Nothing
                }
            };
        }
        let Some(tagged) = self.tags(at + ADDRESSES_BYTES, tag) else { return Found::Nothing };
        self.tagged(at, end, &tagged)
    }

    /// Reads VLAN tags from the type field at `type_at` on. `None`: there are too many, or they
    /// were cut off.
    fn tags(&self, type_at: usize, tag: Option<[u8; 4]>) -> Option<Tags> {
        let mut tags = Tags { tags: [[0; 4]; TAGS_MAX], count: 0, type_at, taken_out: false };
        if let Some(tag) = tag {
            tags.tags[0] = tag;
            (tags.count, tags.taken_out) = (1, true);
        }
        loop {
            let kind = half(self.head::<2>(tags.type_at)?, 0);
            if !matches!(kind, 0x8100 | 0x88a8 | 0x9100) {
                return Some(tags);
            }
            *tags.tags.get_mut(tags.count)? = *self.head::<4>(tags.type_at)?;
            tags.count += 1;
            tags.type_at += 4;
        }
    }

    fn tagged(&mut self, at: usize, end: usize, tags: &Tags) -> Found<'a> {
        let before = self.outer.mark();
        let Some(kind) = self.head::<2>(tags.type_at) else { return Found::Nothing };
        let (mut kind, mut payload) = (*kind, tags.type_at + 2);
        let fits = tags.list().iter().all(|tag| self.outer.push(OuterKind::Vlan, tag));
        let labels = self.outer.mark();
        let mpls = matches!(half(&kind, 0), 0x8847 | 0x8848) && self.decap.has(Tunnel::Mpls);
        let mut unlabelled = false;
        if fits && mpls {
            match self.labels(payload, end) {
                Some(Labelled::Frame(cut)) => return Found::Tunnel(cut),
                Some(Labelled::Ip { at, v6 }) => {
                    (kind, payload) = (if v6 { [0x86, 0xdd] } else { [0x08, 0x00] }, at);
                    unlabelled = true;
                }
                None => self.outer.back_to(labels),
            }
        }
        if fits && matches!(kind, [0x08, 0x00] | [0x86, 0xdd]) {
            let here = self.outer.mark();
            match self.ip(payload, end) {
                Carried::Tunnel(cut) => return Found::Tunnel(cut),
                Carried::Fragment if !unlabelled && !self.decap.has(Tunnel::Vlan) => {
                    self.outer.back_to(before);
                    return Found::Fragment;
                }
                Carried::Fragment | Carried::Other => self.outer.back_to(here),
            }
        }
        let untagged = tags.count > 0 && self.decap.has(Tunnel::Vlan);
        if !fits || !(untagged || unlabelled) {
            self.outer.back_to(before);
            return Found::Nothing;
        }
        if !untagged {
            // The tags stay in the frame, so they are no outer headers.
            self.outer.remove(before, labels);
        }
        Found::Rewritten(self.rewrite(at, end, tags, untagged, kind, payload))
    }

    /// The frame at `at` with its addresses, without tags if `untagged`, then `kind` and what lies
    /// behind `payload`.
    fn rewrite(
        &self,
        at: usize,
        end: usize,
        tags: &Tags,
        untagged: bool,
        kind: [u8; 2],
        payload: usize,
    ) -> Inner<'a> {
        let mut inner = Inner {
            link: LinkType::ETHERNET,
            head: [0; HEAD_BYTES_MAX],
            head_bytes: 0,
            data: &self.data[at..],
            wire_len: (end - at) as u32,
            truncated: false,
        };
        let only_taken_out = untagged && tags.taken_out && tags.count == 1;
        if !(only_taken_out && payload == at + ETHERNET_BYTES) {
            let mut put = |bytes: &[u8]| {
                inner.head[inner.head_bytes..inner.head_bytes + bytes.len()].copy_from_slice(bytes);
                inner.head_bytes += bytes.len();
            };
            put(&self.data[at..at + ADDRESSES_BYTES]);
            if !untagged {
                tags.list().iter().for_each(|tag| put(tag));
            }
            put(&kind);
            inner.data = &self.data[payload..];
            inner.wire_len = (end.saturating_sub(payload) + inner.head_bytes) as u32;
        }
        let most = end.saturating_sub(self.data.len() - inner.data.len());
        inner.data = &inner.data[..inner.data.len().min(most)];
        inner
    }

    /// Records a label stack and says what it carries; `None` if nothing known.
    fn labels(&mut self, at: usize, end: usize) -> Option<Labelled> {
        let mut at = at;
        for _ in 0..LABELS_MAX {
            let entry = self.head::<4>(at)?;
            if !self.outer.push(OuterKind::Mpls, entry) {
                return None;
            }
            at += 4;
            if entry[2] & 1 == 0 {
                continue;
            }
            let payload = self.data.get(at..)?;
            match pseudowire(payload) {
                Some(Pseudowire::Plain) => {}
                Some(Pseudowire::ControlWord) => {
                    if !self.outer.push(OuterKind::ControlWord, payload.get(..4)?) {
                        return None;
                    }
                    at += 4;
                }
                None => {
                    self.holds_ip(at, end)?;
                    return Some(Labelled::Ip { at, v6: payload.first()? >> 4 == 6 });
                }
            }
            return self.cut(LinkType::ETHERNET, at, end).map(Labelled::Frame);
        }
        None
    }

    /// Looks for a tunnel in the IP packet at `at`.
    #[inline]
    fn ip(&mut self, at: usize, end: usize) -> Carried {
        match self.data.get(at).map(|byte| byte >> 4) {
            Some(4) => self.ipv4(at, end),
            Some(6) => self.ipv6(at, end),
            _ => Carried::Other,
        }
    }

    #[inline]
    fn ipv4(&mut self, at: usize, end: usize) -> Carried {
        let Some(head) = self.head::<20>(at) else { return Carried::Other };
        let (header, total) = (usize::from(head[0] & 0xf) * 4, usize::from(half(head, 2)));
        // A length of 0 is left by cards that cut large packets for the sender.
        if header < 20 || (total != 0 && total < header) {
            return Carried::Other;
        }
        let end = match total {
            0 => end,
            total => {
                self.inner_ip_end = Some(at + total);
                end.min(at + total)
            }
        };
        let (protocol, payload) = (head[9], at + header);
        if !self.may_be_tunnel(protocol) {
            return Carried::Other;
        }
        let fragment = half(head, 6) & 0x3fff;
        if fragment != 0 {
            return self.fragment(protocol, payload, fragment & 0x1fff == 0);
        }
        let addresses = &head[12..20];
        self.transport(protocol, payload, end, (OuterKind::Ipv4, addresses))
    }

    fn ipv6(&mut self, at: usize, end: usize) -> Carried {
        let Some(head) = self.head::<40>(at) else { return Carried::Other };
        let end = match usize::from(half(head, 4)) {
            // A jumbogram.
            0 => end,
            bytes => {
                self.inner_ip_end = Some(at + 40 + bytes);
                end.min(at + 40 + bytes)
            }
        };
        let (mut protocol, mut payload) = (head[6], at + 40);
        for _ in 0..EXTENSIONS_MAX {
            let extension = self.head::<8>(payload);
            let header = match (protocol, extension) {
                (0 | 43 | 60, Some(head)) => (usize::from(head[1]) + 1) * 8,
                (51, Some(head)) => (usize::from(head[1]) + 2) * 4,
                (44, Some(head)) if half(head, 2) & 0xfff9 == 0 => 8,
                (44, Some(head)) => {
                    let first = half(head, 2) & 0xfff8 == 0;
                    return self.fragment(head[0], payload + 8, first);
                }
                (0 | 43 | 44 | 51 | 60, None) => return Carried::Other,
                _ => break,
            };
            protocol = extension.map_or(protocol, |head| head[0]);
            payload += header;
        }
        if !self.may_be_tunnel(protocol) {
            return Carried::Other;
        }
        self.transport(protocol, payload, end, (OuterKind::Ipv6, &head[8..40]))
    }

    #[inline]
    fn may_be_tunnel(&self, protocol: u8) -> bool {
        match protocol {
            17 => true,
            47 => self.decap.has(Tunnel::Gre) || self.decap.has(Tunnel::Erspan),
            4 | 41 => self.decap.has(Tunnel::IpInIp),
            _ => false,
        }
    }

    /// A fragment cannot be taken apart; whether it is one of a tunnel's packet.
    #[cold]
    fn fragment(&mut self, protocol: u8, payload: usize, first: bool) -> Carried {
        let decap = self.decap;
        let tunnel = match protocol {
            17 if first => {
                let port = self.head::<4>(payload).map_or(0, |head| half(head, 2));
                decap.is_vxlan_port(port)
                    || port == VXLAN_GPE_PORT && decap.has(Tunnel::Vxlan)
                    || port == GENEVE_PORT && decap.has(Tunnel::Geneve)
                    || port == GTP_U_PORT && decap.has(Tunnel::GtpU)
            }
            17 => false,
            protocol => self.may_be_tunnel(protocol),
        };
        if tunnel { Carried::Fragment } else { Carried::Other }
    }

    #[inline]
    fn transport(
        &mut self,
        protocol: u8,
        at: usize,
        end: usize,
        addresses: (OuterKind, &[u8]),
    ) -> Carried {
        let cut = match protocol {
            17 => {
                let Some(head) = self.head::<8>(at) else { return Carried::Other };
                let bytes = usize::from(half(head, 4));
                let end = if bytes < 8 { end } else { end.min(at + bytes) };
                self.udp_tunnel(half(head, 2), at + 8, end, Some(addresses))
            }
            47 => self.gre(at, end, addresses),
            4 | 41 => {
                let fits = self.outer.push(addresses.0, addresses.1);
                let fits = fits && self.outer.push(OuterKind::IpInIp, &[]);
                if fits { self.cut(LinkType::RAW, at, end) } else { None }
            }
            _ => None,
        };
        cut.map_or(Carried::Other, Carried::Tunnel)
    }

    /// The tunnel whose header stands at `at`, behind UDP to `port`. `addresses` are recorded if
    /// there is one.
    #[inline]
    fn udp_tunnel(
        &mut self,
        port: u16,
        at: usize,
        end: usize,
        addresses: Option<(OuterKind, &[u8])>,
    ) -> Option<Cut> {
        let decap = self.decap;
        let (kind, header, link) = match port {
            port if decap.is_vxlan_port(port) => {
                let head = self.head::<8>(at).filter(|head| head[0] & 0x08 != 0)?;
                (OuterKind::Vxlan, &head[..], LinkType::ETHERNET)
            }
            VXLAN_GPE_PORT if decap.has(Tunnel::Vxlan) => {
                let head = self.head::<8>(at).filter(|head| head[0] & 0x0c == 0x0c)?;
                let link = match head[3] {
                    GPE_IPV4 | GPE_IPV6 => LinkType::RAW,
                    GPE_ETHERNET => LinkType::ETHERNET,
                    _ => return None,
                };
                (OuterKind::VxlanGpe, &head[..], link)
            }
            GENEVE_PORT if decap.has(Tunnel::Geneve) => {
                let head = self.head::<8>(at).filter(|head| head[0] >> 6 == 0)?;
                let link = carried_link(half(head, 2))?;
                let bytes = 8 + usize::from(head[0] & 0x3f) * 4;
                (OuterKind::Geneve, self.data.get(at..at + bytes)?, link)
            }
            GTP_U_PORT if decap.has(Tunnel::GtpU) => {
                let message = self.data.get(at..)?;
                let bytes = u16::try_from(end.checked_sub(at)? + 8).ok()?;
                let words = usize::from(gtp_user_packet(message, bytes)?);
                let optional = if message[0] & GTP_OPTIONAL != 0 { 4 } else { 0 };
                (OuterKind::GtpU, message.get(..8 + optional + words * 4)?, LinkType::RAW)
            }
            _ => return None,
        };
        if let Some((kind, addresses)) = addresses
            && !self.outer.push(kind, addresses)
        {
            return None;
        }
        let fits = self.outer.push(kind, header);
        if fits { self.cut(link, at + header.len(), end) } else { None }
    }

    fn gre(&mut self, at: usize, end: usize, addresses: (OuterKind, &[u8])) -> Option<Cut> {
        let head = self.head::<4>(at)?;
        let (flags, protocol) = (half(head, 0), half(head, 2));
        if flags & GRE_OTHER != 0 {
            return None;
        }
        let optional = |bit: u16| if flags & bit != 0 { 4 } else { 0 };
        let behind = at + 4 + optional(0x8000) + optional(0x2000) + optional(GRE_SEQUENCE);
        let erspan = matches!(protocol, ERSPAN_I_II | ERSPAN_III);
        if !self.decap.has(if erspan { Tunnel::Erspan } else { Tunnel::Gre }) {
            return None;
        }
        let (link, bytes) = match protocol {
            ERSPAN_I_II if flags & GRE_SEQUENCE == 0 => (LinkType::ETHERNET, 0),
            ERSPAN_I_II | ERSPAN_III => self.erspan(behind)?,
            protocol => (carried_link(protocol)?, 0),
        };
        let fits = self.outer.push(addresses.0, addresses.1)
            && self.outer.push(OuterKind::Gre, self.data.get(at..behind)?)
            && (!erspan
                || self.outer.push(OuterKind::Erspan, self.data.get(behind..behind + bytes)?));
        if fits { self.cut(link, behind + bytes, end) } else { None }
    }

    /// What an ERSPAN header of type II or III carries, and its length.
    fn erspan(&self, at: usize) -> Option<(LinkType, usize)> {
        let version = self.head::<8>(at)?[0] >> 4;
        match version {
            1 => Some((LinkType::ETHERNET, 8)),
            2 => {
                let head = self.head::<12>(at)?;
                let link = match head[10] >> 2 & 0x1f {
                    ERSPAN_FRAME_ETHERNET => LinkType::ETHERNET,
                    ERSPAN_FRAME_IP => LinkType::RAW,
                    _ => return None,
                };
                Some((link, if head[11] & 1 == 1 { 20 } else { 12 }))
            }
            _ => None,
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

/// VLAN tags of a frame.
struct Tags {
    tags: [[u8; 4]; TAGS_MAX],
    count: usize,
    /// Where the type behind them stands.
    type_at: usize,
    /// The first one is not in the frame: the kernel took it out.
    taken_out: bool,
}

impl Tags {
    fn list(&self) -> &[[u8; 4]] {
        &self.tags[..self.count.min(TAGS_MAX)]
    }
}

/// What a label stack carries.
enum Labelled {
    Frame(Cut),
    Ip { at: usize, v6: bool },
}

/// Link type of what GRE and GENEVE carry under a type; `None` for what is not taken apart.
fn carried_link(protocol: u16) -> Option<LinkType> {
    match protocol {
        TRANSPARENT_ETHERNET => Some(LinkType::ETHERNET),
        0x0800 | 0x86dd => Some(LinkType::RAW),
        _ => None,
    }
}
