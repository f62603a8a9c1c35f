//! What removed outer headers said, as the value of a packet option.
//!
//! Layout: records from the outside in, each `kind u8`, `bytes u8`, then that many bytes as they
//! stood in the frame, see [`OuterKind`]. The option's code is
//! [`wirevault_format::pcapng::OPTION_EPB_OUTER`].

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use wirevault_format::pcapng::OPTION_EPB_OUTER;
use wirevault_format::{LinkType, VxlanPorts};

use crate::dissect::dissect_with;
use crate::error::PacketError;
use crate::shape::{Layer, Layers};
use crate::walk::half;

/// Bytes of records at most: two tunnels over IPv6 with tags and options. It keeps the option small
/// beside a packet.
pub const OUTER_BYTES_MAX: usize = 252;
/// Code and length of the option.
const OPTION_HEAD_BYTES: usize = 4;

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum OuterKind {
    /// VLAN tag: TPID and TCI, 4 bytes.
    Vlan = 1,
    /// MPLS label stack entry, 4 bytes.
    Mpls = 2,
    /// Control word of a pseudowire, 4 bytes.
    ControlWord = 3,
    /// IPv4 source and destination, 8 bytes.
    Ipv4 = 4,
    /// IPv6 source and destination, 32 bytes.
    Ipv6 = 5,
    /// IP followed IP directly; no bytes.
    IpInIp = 6,
    /// VXLAN header, 8 bytes.
    Vxlan = 7,
    /// VXLAN-GPE header, 8 bytes.
    VxlanGpe = 8,
    /// GENEVE header with its options.
    Geneve = 9,
    /// GRE header with its optional fields.
    Gre = 10,
    /// ERSPAN header: none for type I, 8 bytes for type II, 12 or 20 for type III.
    Erspan = 11,
    /// GTP-U header with its optional fields and extension headers.
    GtpU = 12,
    /// The mirror cut the frame; bytes of it that the tunnel carried, `u32` in network byte order.
    Truncated = 13,
}

impl OuterKind {
    const ALL: [Self; 13] = [
        Self::Vlan,
        Self::Mpls,
        Self::ControlWord,
        Self::Ipv4,
        Self::Ipv6,
        Self::IpInIp,
        Self::Vxlan,
        Self::VxlanGpe,
        Self::Geneve,
        Self::Gre,
        Self::Erspan,
        Self::GtpU,
        Self::Truncated,
    ];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// Outer headers of one frame, ready to be stored. Made once and used for packet after packet.
#[derive(Debug, Clone)]
pub struct OuterHeaders {
    /// Option head, records, padding.
    bytes: [u8; OPTION_HEAD_BYTES + OUTER_BYTES_MAX],
    records: usize,
}

const _: () = assert!(OUTER_BYTES_MAX.is_multiple_of(4), "padding has room, too");

impl Default for OuterHeaders {
    fn default() -> Self {
        Self { bytes: [0; OPTION_HEAD_BYTES + OUTER_BYTES_MAX], records: 0 }
    }
}

impl OuterHeaders {
    /// Forgets all.
    #[inline]
    pub fn clear(&mut self) {
        self.records = 0;
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Adds a record of some bytes; `false`, with nothing changed, if there is no room.
    #[must_use]
    #[inline]
    pub fn push(&mut self, kind: OuterKind, body: &[u8]) -> bool {
        let bytes = body.len();
        let start = OPTION_HEAD_BYTES + self.records;
        let Ok(length) = u8::try_from(bytes) else { return false };
        let Some(room) = self.bytes.get_mut(start..start + 2 + bytes) else { return false };
        (room[0], room[1]) = (kind as u8, length);
        room[2..].copy_from_slice(body);
        self.records += 2 + bytes;
        true
    }

    /// The records, as [`outer_headers`] reads them.
    pub fn records(&self) -> &[u8] {
        &self.bytes[OPTION_HEAD_BYTES..OPTION_HEAD_BYTES + self.records]
    }

    /// The whole option: code, length, records, padding to 4 bytes. Empty without records.
    #[inline]
    pub fn option(&mut self) -> &[u8] {
        if self.records == 0 {
            return &[];
        }
        let [a, b] = OPTION_EPB_OUTER.to_le_bytes();
        // Below 2^16: the array is that small.
        let [c, d] = (self.records as u16).to_le_bytes();
        self.bytes[..OPTION_HEAD_BYTES].copy_from_slice(&[a, b, c, d]);
        let end = OPTION_HEAD_BYTES + self.records;
        let padded = end.next_multiple_of(4);
        self.bytes[end..padded].fill(0);
        &self.bytes[..padded]
    }

    /// Where the next record goes.
    #[inline]
    pub(crate) fn mark(&self) -> usize {
        self.records
    }

    /// Takes back what was added since the mark.
    #[inline]
    pub(crate) fn back_to(&mut self, mark: usize) {
        self.records = self.records.min(mark);
    }

    /// Takes out the records between two marks.
    pub(crate) fn remove(&mut self, from: usize, to: usize) {
        let base = OPTION_HEAD_BYTES;
        self.bytes.copy_within(base + to..base + self.records, base + from);
        self.records -= to - from;
    }
}

/// Reads records; what follows a record that breaks off is left out, as are kinds that are not
/// known.
pub fn outer_headers(records: &[u8]) -> impl Iterator<Item = (OuterKind, &[u8])> {
    let mut rest = records;
    std::iter::from_fn(move || {
        loop {
            let (head, behind) = rest.split_first_chunk::<2>()?;
            let (body, next) = behind.split_at_checked(usize::from(head[1]))?;
            rest = next;
            if let Some(kind) = OuterKind::from_byte(head[0]) {
                return Some((kind, body));
            }
        }
    })
}

/// Numbers of the tunnels that were removed, the outermost first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TunnelId {
    /// VLAN id.
    Vlan(u16),
    /// MPLS label.
    Mpls(u32),
    /// VNI of VXLAN, VXLAN-GPE or GENEVE.
    Vni(u32),
    /// GRE key.
    GreKey(u32),
    /// ERSPAN session.
    Session(u16),
    /// GTP-U tunnel endpoint.
    Teid(u32),
}

/// Numbers in records.
pub fn tunnel_ids(records: &[u8]) -> impl Iterator<Item = TunnelId> {
    outer_headers(records).filter_map(|(kind, body)| tunnel_id(kind, body))
}

fn tunnel_id(kind: OuterKind, body: &[u8]) -> Option<TunnelId> {
    let word = |at: usize| body.get(at..)?.first_chunk().map(|b| u32::from_be_bytes(*b));
    match kind {
        OuterKind::Vlan => word(0).map(|tag| TunnelId::Vlan(tag as u16 & 0x0fff)),
        OuterKind::Mpls => word(0).map(|entry| TunnelId::Mpls(entry >> 12)),
        OuterKind::Vxlan | OuterKind::VxlanGpe | OuterKind::Geneve => {
            word(4).map(|word| TunnelId::Vni(word >> 8))
        }
        OuterKind::Gre => {
            let flags = half(body.first_chunk::<2>()?, 0);
            let key_at = if flags & 0x8000 != 0 { 8 } else { 4 };
            word(key_at).filter(|_| flags & 0x2000 != 0).map(TunnelId::GreKey)
        }
        OuterKind::Erspan => word(0).map(|word| TunnelId::Session(word as u16 & 0x03ff)),
        OuterKind::GtpU => word(4).map(TunnelId::Teid),
        _ => None,
    }
}

impl fmt::Display for TunnelId {
    /// As [`TunnelId::from_str`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, number) = match *self {
            Self::Vlan(id) => ("vlan", id.into()),
            Self::Mpls(label) => ("mpls", label),
            Self::Vni(vni) => ("vni", vni),
            Self::GreKey(key) => ("gre_key", key),
            Self::Session(session) => ("session", session.into()),
            Self::Teid(teid) => ("teid", teid),
        };
        write!(f, "{name}={number}")
    }
}

impl FromStr for TunnelId {
    type Err = PacketError;

    /// Reads `vni=5`, `vlan=7`, `mpls=100`, `gre_key=9`, `session=3` or `teid=4`.
    fn from_str(text: &str) -> Result<Self, PacketError> {
        let read = || {
            let (name, number) = text.split_once('=')?;
            let number: u32 = number.parse().ok()?;
            let half = |most: u16| u16::try_from(number).ok().filter(|half| *half <= most);
            let below = |bits: u32| (number >> bits == 0).then_some(number);
            Some(match name {
                "vlan" => Self::Vlan(half(0x0fff)?),
                "mpls" => Self::Mpls(below(20)?),
                "vni" => Self::Vni(below(24)?),
                "gre_key" => Self::GreKey(number),
                "session" => Self::Session(half(0x03ff)?),
                "teid" => Self::Teid(number),
                _ => return None,
            })
        };
        read().ok_or_else(|| PacketError::TunnelText { text: text.to_owned() })
    }
}

/// Whether a packet came in this tunnel: its removed outer headers say so, or the headers that are
/// still there.
///
/// `vxlan` are the ports of the packet's interface; `records` are the value of the packet's option,
/// empty without one.
pub fn is_in_tunnel(
    id: TunnelId,
    vxlan: &VxlanPorts,
    link: LinkType,
    data: &[u8],
    records: &[u8],
) -> bool {
    if tunnel_ids(records).any(|found| found == id) {
        return true;
    }
    let key = dissect_with(vxlan, link, data).key;
    let mut layers = Layers::new(key.shape()).map_while(Result::ok);
    layers.any(|(at, layer)| {
        let word = |at: usize| data.get(at..)?.first_chunk().map(|b| u32::from_be_bytes(*b));
        let found = match layer {
            Layer::Vlan { vid, .. } | Layer::Vlan8023 { vid } => Some(TunnelId::Vlan(vid)),
            Layer::Mpls { label, .. } => Some(TunnelId::Mpls(label)),
            Layer::Vxlan { vni, .. } | Layer::VxlanGpe { vni, .. } | Layer::Geneve { vni, .. } => {
                Some(TunnelId::Vni(vni))
            }
            Layer::Gre { .. } => {
                let header = data.get(at..at + layer.header_bytes());
                header.and_then(|header| tunnel_id(OuterKind::Gre, header))
            }
            Layer::Erspan2 { session, .. } | Layer::Erspan3 { session, .. } => {
                Some(TunnelId::Session(session))
            }
            // Behind UDP's header and four bytes of its own.
            Layer::GtpU { .. } => word(at + 12).map(TunnelId::Teid),
            _ => None,
        };
        found == Some(id)
    })
}

/// Records in words: `IP 10.0.0.1 > 10.0.0.2, VXLAN vni 7`.
#[derive(Debug, Clone, Copy)]
pub struct OuterText<'a>(pub &'a [u8]);

impl fmt::Display for OuterText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for (kind, body) in outer_headers(self.0) {
            f.write_str(comma)?;
            comma = ", ";
            let id = tunnel_id(kind, body);
            match (kind, id) {
                (_, Some(TunnelId::Vlan(vid))) => write!(f, "vlan {vid}")?,
                (_, Some(TunnelId::Mpls(label))) => write!(f, "mpls {label}")?,
                (OuterKind::Vxlan, Some(TunnelId::Vni(vni))) => write!(f, "VXLAN vni {vni}")?,
                (OuterKind::Geneve, Some(TunnelId::Vni(vni))) => write!(f, "GENEVE vni {vni}")?,
                (_, Some(TunnelId::Vni(vni))) => write!(f, "VXLAN-GPE vni {vni}")?,
                (_, Some(TunnelId::GreKey(key))) => write!(f, "GRE key {key}")?,
                (_, Some(TunnelId::Session(session))) => write!(f, "ERSPAN session {session}")?,
                (_, Some(TunnelId::Teid(teid))) => write!(f, "GTP-U teid {teid}")?,
                (OuterKind::Ipv4, None) => match body.first_chunk::<8>() {
                    Some([a, b, c, d, e, g, h, i]) => write!(
                        f,
                        "IP {} > {}",
                        Ipv4Addr::new(*a, *b, *c, *d),
                        Ipv4Addr::new(*e, *g, *h, *i)
                    )?,
                    None => f.write_str("IP")?,
                },
                (OuterKind::Ipv6, None) => match body.as_chunks::<16>().0 {
                    [from, to] => {
                        write!(f, "IP6 {} > {}", Ipv6Addr::from(*from), Ipv6Addr::from(*to))?;
                    }
                    _ => f.write_str("IP6")?,
                },
                (OuterKind::Gre, None) => f.write_str("GRE")?,
                (OuterKind::Erspan, None) => f.write_str("ERSPAN")?,
                (OuterKind::IpInIp, None) => f.write_str("IP in IP")?,
                (OuterKind::ControlWord, None) => f.write_str("control word")?,
                (OuterKind::Truncated, None) => match body.first_chunk() {
                    Some(bytes) => {
                        write!(f, "cut by the mirror to {} bytes", u32::from_be_bytes(*bytes))?;
                    }
                    None => f.write_str("cut by the mirror")?,
                },
                (kind, None) => write!(f, "{kind:?}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_back_and_impossible_ones_are_refused() {
        let texts =
            ["vlan=4095", "mpls=1048575", "vni=16777215", "gre_key=1", "session=1023", "teid=7"];
        for text in texts {
            assert_eq!(text.parse().map(|id: TunnelId| id.to_string()), Ok(text.to_owned()));
        }
        for text in ["vlan=4096", "mpls=1048576", "vni=16777216", "session=1024", "vni", "x=1", "="]
        {
            let error = text.parse::<TunnelId>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{text}`")) && error.contains("vni=5"), "{error}");
        }
    }

    #[test]
    fn a_full_list_refuses_and_keeps_what_it_has() {
        let mut outer = OuterHeaders::default();
        assert!(outer.option().is_empty());
        while outer.push(OuterKind::Ipv6, &[1; 32]) {}
        assert_eq!(outer_headers(outer.records()).count(), OUTER_BYTES_MAX / 34);
        assert!(!outer.push(OuterKind::Geneve, &[0; 256]));
        assert!(outer.push(OuterKind::Vlan, &[0x81, 0, 0, 9]));
        let ids: Vec<_> = tunnel_ids(outer.records()).collect();
        assert_eq!(ids, [TunnelId::Vlan(9)]);
        outer.clear();
        assert!(outer.is_empty());
    }

    #[test]
    fn unknown_records_are_passed_over_and_broken_ones_end_the_list() {
        let records = [200, 1, 9, 1, 4, 0x81, 0, 0, 5, 7, 8, 8, 0];
        let read: Vec<_> = outer_headers(&records).collect();
        assert_eq!(read, [(OuterKind::Vlan, &[0x81, 0, 0, 5][..])]);
    }

    #[test]
    fn a_tunnel_is_found_in_the_frame_or_beside_it() {
        let vni = TunnelId::Vni(7);
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1]);
        frame.extend([9, 9, 0x12, 0xb5, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 7, 0]);
        frame.resize(90, 0);
        assert!(is_in_tunnel(vni, &VxlanPorts::USUAL, LinkType::ETHERNET, &frame, &[]));
        assert!(!is_in_tunnel(
            TunnelId::Vni(8),
            &VxlanPorts::USUAL,
            LinkType::ETHERNET,
            &frame,
            &[]
        ));
        let beside = [7, 8, 8, 0, 0, 0, 0, 0, 7, 0];
        assert!(is_in_tunnel(vni, &VxlanPorts::USUAL, LinkType::RAW, &[], &beside));
        let mut gre = frame[..34].to_vec();
        gre[23] = 47;
        gre.extend([0x20, 0, 8, 0, 0, 0, 0, 77]);
        assert!(is_in_tunnel(
            TunnelId::GreKey(77),
            &VxlanPorts::USUAL,
            LinkType::ETHERNET,
            &gre,
            &[]
        ));
    }
}
