//! The shape: the layers of a frame as a compact byte string.
//!
//! A shape holds every constant that moves an offset or that a filter tests often: types, VLAN and
//! MPLS numbers, header lengths, fragment class. What differs from packet to packet (lengths,
//! identification, TTL, checksums, MAC addresses) is left out.
//!
//! Layout: link type (u16, little-endian), then one record a layer: a tag byte and the fields that
//! `Layer::encode` writes, in network byte order. The end of the shape says that what follows
//! was not looked into; [`Layer::Cut`], [`Layer::Malformed`] and [`Layer::Deep`] say why not.

use wirevault_format::LinkType;

use crate::error::PacketError;
use crate::template::Template;
use crate::tunnel::GTP_OPTIONAL;

/// What one stored value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ValueKind {
    /// IPv4 address, 4 bytes.
    Addr4,
    /// IPv6 address, 16 bytes.
    Addr6,
    /// TCP, UDP or SCTP port, 2 bytes, network byte order.
    Port,
}

impl ValueKind {
    /// Bytes that such a value takes.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Addr4 => 4,
            Self::Addr6 => 16,
            Self::Port => 2,
        }
    }
}

/// A pair of values in a layer: what they are and where source and destination lie in the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) kind: ValueKind,
    pub(crate) source: usize,
    pub(crate) destination: usize,
}

/// Whether an IP packet is whole, and if not, whether it holds the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fragment {
    /// Offset 0 and no more to come.
    None,
    /// Offset 0, more to come.
    First,
    /// Offset above 0: the transport header is elsewhere.
    Later,
}

impl Fragment {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::None, Self::First, Self::Later].into_iter().find(|f| *f as u8 == byte)
    }
}

/// One layer of a frame.
///
/// Sources: IEEE 802.3 and 802.1Q, RFC 791, 8200, 3032, 4385, 4448, 2516, 7348, 8926, 2784 and
/// 2890, 826, draft-ietf-nvo3-vxlan-gpe, draft-foschiano-erspan, 3GPP TS 29.281, and the LINKTYPE_
/// registry of tcpdump.org.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "fields carry the names of their headers' specifications")]
pub enum Layer {
    /// Ethernet II.
    Ethernet { ethertype: u16 },
    /// 802.3: a length stands where the type would be.
    Ethernet8023,
    /// VLAN tag; the tag protocol is the type named by the layer before.
    Vlan { vid: u16, ethertype: u16 },
    /// VLAN tag followed by an 802.3 length.
    Vlan8023 { vid: u16 },
    /// MPLS label stack entry.
    Mpls { label: u32, bottom: bool },
    /// PPPoE session header with the PPP protocol.
    Pppoe { session: u16, protocol: u16 },
    /// IPv4; `ihl` in words of 4 bytes.
    Ipv4 { ihl: u8, fragment: Fragment, protocol: u8 },
    /// IPv6 fixed header.
    Ipv6 { next: u8 },
    /// IPv6 hop-by-hop, routing, destination or authentication header; `length` as in the header.
    Extension { kind: u8, length: u8, next: u8 },
    /// IPv6 fragment header.
    Fragment6 { fragment: Fragment, next: u8 },
    /// TCP with its whole fixed header.
    Tcp,
    /// TCP of which little more than the ports was captured.
    TcpCut,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// ICMP or ICMPv6.
    Icmp { kind: u8, code: u8 },
    /// UDP and VXLAN headers. The UDP source port is a hash of the inner flow and is left out.
    Vxlan { port: u16, vni: u32 },
    /// UDP and GENEVE headers with options. The UDP source port is left out.
    Geneve { option_words: u8, protocol: u16, vni: u32 },
    /// GRE.
    Gre { flags: u16, protocol: u16 },
    /// ARP or RARP for IPv4 over Ethernet.
    Arp { operation: u16 },
    /// 802.2 LLC. `control` is absent for frames that count in it.
    Llc { dsap: u8, ssap: u8, control: Option<u8> },
    /// SNAP.
    Snap { oui: u32, protocol: u16 },
    /// Linux cooked header, version 1.
    Sll { hardware: u16, protocol: u16 },
    /// Linux cooked header, version 2.
    Sll2 { hardware: u16, protocol: u16 },
    /// BSD loopback header, as it stands in the frame.
    Loopback { family: [u8; 4] },
    /// Fewer than `need` bytes of the next header were captured.
    Cut { need: u8 },
    /// The next header contradicts itself.
    Malformed,
    /// The key has no room for the next layer.
    Deep,
    /// UDP and VXLAN-GPE headers with a VNI and a next protocol. The UDP source port is left out.
    VxlanGpe { next: u8, vni: u32 },
    /// ERSPAN type II. Type I has no header of its own.
    Erspan2 { vlan: u16, session: u16 },
    /// ERSPAN type III, with or without the platform's subheader.
    Erspan3 { vlan: u16, session: u16, frame_type: u8, subheader: bool },
    /// UDP and GTP-U headers of a user's packet; `words` of 4 bytes of extension headers. The UDP
    /// source port and the tunnel's id are left out: each direction has an id of its own, and there
    /// are as many as subscribers.
    GtpU { flags: u8, words: u8 },
    /// Control word of a pseudowire, before Ethernet.
    ControlWord,
}

/// IPv6 next header value of the authentication header, whose length counts words of 4 bytes.
const AUTHENTICATION: u8 = 51;

/// A layer's record, first byte lowest. It stays in a register until whole words are stored: narrow
/// stores read back by the wide loads of hash and copy would stall the lane.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record {
    pub(crate) bits: u64,
    pub(crate) bytes: usize,
}

impl Record {
    #[inline(always)]
    const fn new(tag: u8) -> Self {
        Self { bits: tag as u64, bytes: 1 }
    }

    #[inline(always)]
    const fn byte(self, byte: u8) -> Self {
        Self { bits: self.bits | (byte as u64) << (8 * self.bytes), bytes: self.bytes + 1 }
    }

    #[inline(always)]
    const fn half(self, half: u16) -> Self {
        let [a, b] = half.to_be_bytes();
        self.byte(a).byte(b)
    }

    #[inline(always)]
    const fn three(self, number: u32) -> Self {
        let [_, a, b, c] = number.to_be_bytes();
        self.byte(a).byte(b).byte(c)
    }
}

impl Layer {
    /// The layer's record.
    #[inline(always)]
    pub(crate) fn encode(&self) -> Record {
        match *self {
            Self::Ethernet { ethertype } => Record::new(1).half(ethertype),
            Self::Ethernet8023 => Record::new(2),
            Self::Vlan { vid, ethertype } => Record::new(3).half(vid).half(ethertype),
            Self::Vlan8023 { vid } => Record::new(4).half(vid),
            Self::Mpls { label, bottom } => Record::new(5).three(label << 4 | u32::from(bottom)),
            Self::Pppoe { session, protocol } => Record::new(6).half(session).half(protocol),
            Self::Ipv4 { ihl, fragment, protocol } => {
                Record::new(7).byte((fragment as u8) << 4 | ihl).byte(protocol)
            }
            Self::Ipv6 { next } => Record::new(8).byte(next),
            Self::Extension { kind, length, next } => {
                Record::new(9).byte(kind).byte(length).byte(next)
            }
            Self::Fragment6 { fragment, next } => Record::new(10).byte(fragment as u8).byte(next),
            Self::Tcp => Record::new(11),
            Self::TcpCut => Record::new(12),
            Self::Udp => Record::new(13),
            Self::Sctp => Record::new(14),
            Self::Icmp { kind, code } => Record::new(15).byte(kind).byte(code),
            Self::Vxlan { port, vni } => Record::new(16).half(port).three(vni),
            Self::Geneve { option_words, protocol, vni } => {
                Record::new(17).byte(option_words).half(protocol).three(vni)
            }
            Self::Gre { flags, protocol } => Record::new(18).half(flags).half(protocol),
            Self::Arp { operation } => Record::new(19).half(operation),
            // An unnumbered frame's control field is never 0: its two low bits are set.
            Self::Llc { dsap, ssap, control } => {
                Record::new(20).byte(dsap).byte(ssap).byte(control.unwrap_or(0))
            }
            Self::Snap { oui, protocol } => Record::new(21).three(oui).half(protocol),
            Self::Sll { hardware, protocol } => Record::new(22).half(hardware).half(protocol),
            Self::Sll2 { hardware, protocol } => Record::new(23).half(hardware).half(protocol),
            Self::Loopback { family: [a, b, c, d] } => {
                Record::new(24).byte(a).byte(b).byte(c).byte(d)
            }
            Self::Cut { need } => Record::new(25).byte(need),
            Self::Malformed => Record::new(26),
            Self::Deep => Record::new(27),
            Self::VxlanGpe { next, vni } => Record::new(28).byte(next).three(vni),
            Self::Erspan2 { vlan, session } => Record::new(29).half(vlan).half(session),
            Self::Erspan3 { vlan, session, frame_type, subheader } => {
                let last = frame_type << 1 | u8::from(subheader);
                Record::new(30).half(vlan).half(session).byte(last)
            }
            Self::GtpU { flags, words } => Record::new(31).byte(flags).byte(words),
            Self::ControlWord => Record::new(32),
        }
    }

    /// Reads the record at the start of `bytes`. `None`: it is not one, or breaks off.
    fn decode(bytes: &[u8]) -> Result<(Self, usize), Broken> {
        let (&tag, rest) = bytes.split_first().ok_or(Broken::Short)?;
        let byte = |at: usize| rest.get(at).copied().ok_or(Broken::Short);
        let half = |at: usize| Ok(u16::from_be_bytes([byte(at)?, byte(at + 1)?]));
        let three =
            |at: usize| Ok(u32::from_be_bytes([0, byte(at)?, byte(at + 1)?, byte(at + 2)?]));
        let below =
            |value: u16, limit: u16| (value < limit).then_some(value).ok_or(Broken::Content);
        Ok(match tag {
            1 => (Self::Ethernet { ethertype: half(0)? }, 3),
            2 => (Self::Ethernet8023, 1),
            3 => (Self::Vlan { vid: below(half(0)?, 4096)?, ethertype: half(2)? }, 5),
            4 => (Self::Vlan8023 { vid: below(half(0)?, 4096)? }, 3),
            5 => {
                let entry = three(0)?;
                if entry & 0xe != 0 {
                    return Err(Broken::Content);
                }
                (Self::Mpls { label: entry >> 4, bottom: entry & 1 == 1 }, 4)
            }
            6 => (Self::Pppoe { session: half(0)?, protocol: half(2)? }, 5),
            7 => {
                let ihl = byte(0)? & 0xf;
                let fragment = Fragment::from_byte(byte(0)? >> 4).ok_or(Broken::Content)?;
                let protocol = byte(1)?;
                if ihl < 5 {
                    return Err(Broken::Content);
                }
                (Self::Ipv4 { ihl, fragment, protocol }, 3)
            }
            8 => (Self::Ipv6 { next: byte(0)? }, 2),
            9 => (Self::Extension { kind: byte(0)?, length: byte(1)?, next: byte(2)? }, 4),
            10 => {
                let fragment = Fragment::from_byte(byte(0)?).ok_or(Broken::Content)?;
                (Self::Fragment6 { fragment, next: byte(1)? }, 3)
            }
            11 => (Self::Tcp, 1),
            12 => (Self::TcpCut, 1),
            13 => (Self::Udp, 1),
            14 => (Self::Sctp, 1),
            15 => (Self::Icmp { kind: byte(0)?, code: byte(1)? }, 3),
            16 => (Self::Vxlan { port: half(0)?, vni: three(2)? }, 6),
            17 => {
                let option_words = below(u16::from(byte(0)?), 64)? as u8;
                (Self::Geneve { option_words, protocol: half(1)?, vni: three(3)? }, 7)
            }
            18 => (Self::Gre { flags: half(0)?, protocol: half(2)? }, 5),
            19 => (Self::Arp { operation: half(0)? }, 3),
            20 => {
                let control = Some(byte(2)?).filter(|c| *c != 0);
                (Self::Llc { dsap: byte(0)?, ssap: byte(1)?, control }, 4)
            }
            21 => (Self::Snap { oui: three(0)?, protocol: half(3)? }, 6),
            22 => (Self::Sll { hardware: half(0)?, protocol: half(2)? }, 5),
            23 => (Self::Sll2 { hardware: half(0)?, protocol: half(2)? }, 5),
            24 => (Self::Loopback { family: [byte(0)?, byte(1)?, byte(2)?, byte(3)?] }, 5),
            25 => (Self::Cut { need: byte(0)? }, 2),
            26 => (Self::Malformed, 1),
            27 => (Self::Deep, 1),
            28 => (Self::VxlanGpe { next: byte(0)?, vni: three(1)? }, 5),
            29 => {
                let session = below(half(2)?, 1024)?;
                (Self::Erspan2 { vlan: below(half(0)?, 4096)?, session }, 5)
            }
            30 => {
                let (vlan, session) = (below(half(0)?, 4096)?, below(half(2)?, 1024)?);
                let last = below(u16::from(byte(4)?), 64)? as u8;
                let (frame_type, subheader) = (last >> 1, last & 1 == 1);
                (Self::Erspan3 { vlan, session, frame_type, subheader }, 6)
            }
            31 => (Self::GtpU { flags: byte(0)?, words: byte(1)? }, 3),
            32 => (Self::ControlWord, 1),
            _ => return Err(Broken::Content),
        })
    }

    /// Bytes of the header that must have been captured for this layer to be recorded.
    pub(crate) fn need(&self) -> usize {
        match self {
            Self::Ethernet { .. } | Self::Ethernet8023 => 14,
            Self::Vlan { .. } | Self::Vlan8023 { .. } | Self::Mpls { .. } | Self::Gre { .. } => 4,
            Self::Pppoe { .. } | Self::Fragment6 { .. } => 8,
            Self::Ipv4 { .. } | Self::Tcp | Self::Sll2 { .. } => 20,
            Self::Ipv6 { .. } => 40,
            Self::Extension { .. } | Self::Icmp { .. } => 2,
            Self::TcpCut | Self::Udp | Self::Sctp | Self::Loopback { .. } => 4,
            Self::Vxlan { .. } | Self::Geneve { .. } | Self::Sll { .. } => 16,
            Self::Arp { .. } => 28,
            Self::Llc { .. } => 3,
            Self::Snap { .. } => 5,
            Self::VxlanGpe { .. } => 16,
            Self::Erspan2 { .. } => 8,
            Self::Erspan3 { .. } => 12,
            Self::GtpU { flags, words } => {
                let optional = if flags & GTP_OPTIONAL != 0 { 4 } else { 0 };
                16 + optional + usize::from(*words) * 4
            }
            Self::ControlWord => 4,
            Self::Cut { .. } | Self::Malformed | Self::Deep => 0,
        }
    }

    /// Bytes from the start of this layer to the start of the next.
    pub(crate) fn header_bytes(&self) -> usize {
        match *self {
            Self::Ipv4 { ihl, .. } => usize::from(ihl) * 4,
            Self::Extension { kind: AUTHENTICATION, length, .. } => (usize::from(length) + 2) * 4,
            Self::Extension { length, .. } => (usize::from(length) + 1) * 8,
            Self::Geneve { option_words, .. } => 16 + usize::from(option_words) * 4,
            Self::Gre { flags, .. } => {
                let optional = |bits: u16| if flags & bits != 0 { 4 } else { 0 };
                4 + optional(0xc000) + optional(0x2000) + optional(0x1000)
            }
            Self::Erspan3 { subheader: true, .. } => 20,
            _ => self.need(),
        }
    }

    /// The values that this layer adds to the key.
    #[inline(always)]
    pub(crate) fn pair(&self) -> Option<Pair> {
        let (kind, source, destination) = match self {
            Self::Ipv4 { .. } => (ValueKind::Addr4, 12, 16),
            Self::Arp { .. } => (ValueKind::Addr4, 14, 24),
            Self::Ipv6 { .. } => (ValueKind::Addr6, 8, 24),
            Self::Tcp | Self::TcpCut | Self::Udp | Self::Sctp => (ValueKind::Port, 0, 2),
            _ => return None,
        };
        Some(Pair { kind, source, destination })
    }
}

enum Broken {
    Short,
    Content,
}

/// Walks a shape: each layer with the offset in the frame where its header starts.
#[derive(Debug, Clone)]
pub struct Layers<'a> {
    shape: &'a [u8],
    at: usize,
    frame_at: usize,
}

impl<'a> Layers<'a> {
    /// Starts at the outermost layer.
    pub fn new(shape: &'a [u8]) -> Self {
        Self { shape, at: 2, frame_at: 0 }
    }
}

impl Iterator for Layers<'_> {
    /// Offset in the frame, layer.
    type Item = Result<(usize, Layer), PacketError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.shape.get(self.at..).unwrap_or_default();
        if rest.is_empty() && self.shape.len() >= 2 {
            return None;
        }
        let (at, bytes) = (self.at, self.shape.len());
        match Layer::decode(rest) {
            Ok((layer, len)) => {
                let here = self.frame_at;
                self.at += len;
                self.frame_at += layer.header_bytes();
                Some(Ok((here, layer)))
            }
            Err(broken) => {
                // Nothing behind a broken record can be found.
                self.shape = &[0, 0];
                Some(Err(match broken {
                    Broken::Short => PacketError::ShapeCut { at, bytes },
                    Broken::Content => PacketError::ShapeLayer { tag: rest[0], at },
                }))
            }
        }
    }
}

/// The link type that a shape starts with.
///
/// # Errors
/// The shape has not even that.
pub fn link_type(shape: &[u8]) -> Result<LinkType, PacketError> {
    let bytes = shape.first_chunk().ok_or(PacketError::ShapeCut { at: 0, bytes: shape.len() })?;
    Ok(LinkType(u16::from_le_bytes(*bytes)))
}

/// What the values of a shape are, in their order: for each layer with values A's, then B's.
///
/// # Errors
/// The shape is damaged.
pub fn value_layout(shape: &[u8]) -> Result<Vec<ValueKind>, PacketError> {
    let mut kinds = Vec::new();
    for layer in Layers::new(shape) {
        if let Some(pair) = layer?.1.pair() {
            kinds.extend([pair.kind; 2]);
        }
    }
    Ok(kinds)
}

/// The packet that stands for every packet of a shape: addresses and ports are symbolic, that is,
/// left to the [`crate::bpf::Oracle`].
///
/// # Errors
/// The shape is damaged.
pub fn shape_template(shape: &[u8]) -> Result<Template, PacketError> {
    link_type(shape)?;
    Template::of_shape(shape)
}

/// Bytes of the values that belong to a shape.
pub(crate) fn values_bytes(shape: &[u8]) -> Result<usize, PacketError> {
    let mut bytes = 0;
    link_type(shape)?;
    for layer in Layers::new(shape) {
        bytes += layer?.1.pair().map_or(0, |pair| pair.kind.bytes() * 2);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_reads_back() {
        let fragment = Fragment::Later;
        let layers = [
            Layer::Ethernet { ethertype: 0x800 },
            Layer::Ethernet8023,
            Layer::Vlan { vid: 4095, ethertype: 0x86dd },
            Layer::Vlan8023 { vid: 7 },
            Layer::Mpls { label: 0xf_ffff, bottom: true },
            Layer::Mpls { label: 16, bottom: false },
            Layer::Pppoe { session: 0x1234, protocol: 0x21 },
            Layer::Ipv4 { ihl: 15, fragment, protocol: 6 },
            Layer::Ipv6 { next: 44 },
            Layer::Extension { kind: 0, length: 255, next: 6 },
            Layer::Fragment6 { fragment, next: 17 },
            Layer::Tcp,
            Layer::TcpCut,
            Layer::Udp,
            Layer::Sctp,
            Layer::Icmp { kind: 8, code: 1 },
            Layer::Vxlan { port: 8472, vni: 0xff_ffff },
            Layer::Geneve { option_words: 63, protocol: 0x6558, vni: 9 },
            Layer::Gre { flags: 0xb000, protocol: 0x88be },
            Layer::Arp { operation: 2 },
            Layer::Llc { dsap: 0xaa, ssap: 0xaa, control: Some(3) },
            Layer::Llc { dsap: 4, ssap: 5, control: None },
            Layer::Snap { oui: 0x80c2, protocol: 7 },
            Layer::Sll { hardware: 1, protocol: 0x800 },
            Layer::Sll2 { hardware: 772, protocol: 0x86dd },
            Layer::Loopback { family: [2, 0, 0, 0] },
            Layer::Cut { need: 20 },
            Layer::Malformed,
            Layer::Deep,
            Layer::VxlanGpe { next: 3, vni: 0xff_ffff },
            Layer::Erspan2 { vlan: 4095, session: 1023 },
            Layer::Erspan3 { vlan: 1, session: 2, frame_type: 31, subheader: true },
            Layer::GtpU { flags: 0x34, words: 255 },
            Layer::ControlWord,
        ];
        for layer in layers {
            let (record, len) = (layer.encode(), layer.encode().bytes);
            let bytes = record.bits.to_le_bytes();
            let (back, read) = Layer::decode(&bytes[..len]).ok().expect("a record just written");
            assert_eq!((back, read), (layer, len));
            assert!((0..len).all(|cut| Layer::decode(&bytes[..cut]).is_err()), "{layer:?}");
        }
    }
}
