//! What removed outer headers said, as the value of a packet option.
//!
//! Layout: records from the outside in, each `kind u8`, `bytes u8`, then that many bytes as they
//! stood in the frame, see [`OuterKind`]. The option's code is
//! [`wirevault_format::pcapng::OPTION_EPB_OUTER`].

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use wirevault_format::pcapng::OPTION_EPB_OUTER;

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
