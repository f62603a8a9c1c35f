//! Tunnels in IP packets: over UDP, GRE, and IP in IP.

use wirevault_format::LinkType;

use super::{Carried, Cut, Tunnel, Walk};
use crate::outer::OuterKind;
use crate::tunnel::{
    ERSPAN_FRAME_ETHERNET, ERSPAN_FRAME_IP, ERSPAN_I_II, ERSPAN_III, GENEVE_PORT, GPE_ETHERNET,
    GPE_IPV4, GPE_IPV6, GRE_OTHER, GRE_SEQUENCE, GTP_OPTIONAL, GTP_U_PORT, TRANSPARENT_ETHERNET,
    VXLAN_GPE_PORT, gtp_user_packet,
};
use crate::walk::half;

/// IPv6 extension headers before a tunnel at most.
const EXTENSIONS_MAX: usize = 8;

impl Walk<'_, '_, '_> {
    /// Looks for a tunnel in the IP packet at `at`.
    #[inline]
    pub(super) fn ip(&mut self, at: usize, end: usize) -> Carried {
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
                let (port, bytes) = (half(head, 2), usize::from(half(head, 4)));
                // A GTP-U message is known by its length, which must be UDP's.
                if port == GTP_U_PORT && (bytes < 8 || at + bytes > end) {
                    return Carried::Other;
                }
                let end = if bytes < 8 { end } else { end.min(at + bytes) };
                self.udp_tunnel(port, at + 8, end, Some(addresses))
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
    pub(super) fn udp_tunnel(
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
}

/// Link type of what GRE and GENEVE carry under a type; `None` for what is not taken apart.
fn carried_link(protocol: u16) -> Option<LinkType> {
    match protocol {
        TRANSPARENT_ETHERNET => Some(LinkType::ETHERNET),
        0x0800 | 0x86dd => Some(LinkType::RAW),
        _ => None,
    }
}
