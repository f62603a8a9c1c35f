//! A packet in one line, in tcpdump's manner, without names and time.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use wirevault_format::LinkType;

use crate::describe::protocol_name;
use crate::dissect::dissect;
use crate::key::FlowKey;
use crate::shape::{Fragment, Layer, Layers};

/// A packet's line; `to_string` or `{}` writes it.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    key: FlowKey,
    data: &'a [u8],
    wire_len: u32,
}

/// The line for a packet.
///
/// `data` are the captured bytes, `wire_len` the length on the wire. Lines look like
/// `IP 10.0.0.1.4000 > 10.0.0.2.80: Flags [S], seq 7, win 512, length 0`.
pub fn line(link: LinkType, data: &[u8], wire_len: u32) -> Line<'_> {
    Line { key: dissect(link, data).key, data, wire_len }
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut writer = Writer { data: self.data, wire_len: self.wire_len, ip: None, last: None };
        for (at, layer) in Layers::new(self.key.shape()).map_while(Result::ok) {
            writer.layer(f, at, &layer)?;
            writer.last = Some((at + layer.header_bytes(), layer));
        }
        writer.end(f)
    }
}

/// The IP layer that the next header belongs to.
#[derive(Clone, Copy)]
struct Ip {
    source: IpAddr,
    destination: IpAddr,
    /// Where its packet ends in the frame, by its own length field or that of the wire.
    end: usize,
    protocol: u8,
    fragment: Fragment,
    /// First byte of this fragment within the whole packet.
    offset: usize,
}

struct Writer<'a> {
    data: &'a [u8],
    wire_len: u32,
    /// Written by the transport header, or at the end if there is none.
    ip: Option<Ip>,
    /// The layer before, and where it ends.
    last: Option<(usize, Layer)>,
}

impl Writer<'_> {
    fn layer(&mut self, f: &mut fmt::Formatter<'_>, at: usize, layer: &Layer) -> fmt::Result {
        match *layer {
            Layer::Vlan { vid, .. } | Layer::Vlan8023 { vid } => write!(f, "vlan {vid}, "),
            Layer::Mpls { label, .. } => write!(f, "MPLS (label {label}), "),
            Layer::Pppoe { session, .. } => write!(f, "PPPoE [ses {session:#x}] "),
            Layer::Ipv4 { fragment, protocol, .. } => {
                self.flush(f)?;
                let total = usize::from(self.half(at + 2));
                let end = if total == 0 { self.wire_len as usize } else { at + total };
                let addr = |at| IpAddr::from(Ipv4Addr::from(self.bytes::<4>(at)));
                let (source, destination) = (addr(at + 12), addr(at + 16));
                let offset = usize::from(self.half(at + 6) & 0x1fff) * 8;
                self.ip = Some(Ip { source, destination, end, protocol, fragment, offset });
                Ok(())
            }
            Layer::Ipv6 { next } => {
                self.flush(f)?;
                let end = at + 40 + usize::from(self.half(at + 4));
                let addr = |at| IpAddr::from(Ipv6Addr::from(self.bytes::<16>(at)));
                let (source, destination) = (addr(at + 8), addr(at + 24));
                let fragment = Fragment::None;
                self.ip =
                    Some(Ip { source, destination, end, protocol: next, fragment, offset: 0 });
                Ok(())
            }
            Layer::Extension { next, .. } => {
                if let Some(ip) = &mut self.ip {
                    ip.protocol = next;
                }
                Ok(())
            }
            Layer::Fragment6 { fragment, next } => {
                let offset = usize::from(self.half(at + 2) & 0xfff8);
                if let Some(ip) = &mut self.ip {
                    *ip = Ip { protocol: next, fragment, offset, ..*ip };
                }
                Ok(())
            }
            Layer::Tcp | Layer::TcpCut => self.tcp(f, at),
            Layer::Udp => {
                let end = self.ends(f, at, true)?;
                write!(f, "UDP, length {}", end.saturating_sub(at + 8))
            }
            Layer::Sctp => {
                let end = self.ends(f, at, true)?;
                write!(f, "sctp, length {}", end.saturating_sub(at + 12))
            }
            Layer::Icmp { kind, code } => self.icmp(f, at, kind, code),
            Layer::Vxlan { vni, .. } => {
                self.ends(f, at, true)?;
                write!(f, "VXLAN, vni {vni}: ")
            }
            Layer::VxlanGpe { vni, .. } => {
                self.ends(f, at, true)?;
                write!(f, "VXLAN-GPE, vni {vni}: ")
            }
            Layer::GtpU { .. } => {
                self.ends(f, at, true)?;
                write!(f, "GTP-U, teid {:#x}: ", u32::from_be_bytes(self.bytes(at + 12)))
            }
            Layer::Erspan2 { session, .. } | Layer::Erspan3 { session, .. } => {
                write!(f, "ERSPAN, session {session}: ")
            }
            Layer::Geneve { vni, .. } => {
                self.ends(f, at, true)?;
                write!(f, "Geneve, vni {vni:#x}: ")
            }
            Layer::Gre { .. } => {
                self.ends(f, at, false)?;
                f.write_str("GREv0: ")
            }
            Layer::Arp { operation } => self.arp(f, at, operation),
            Layer::Llc { dsap, ssap, .. } => write!(f, "LLC, dsap {dsap:#04x}, ssap {ssap:#04x}, "),
            Layer::Snap { oui, protocol } => write!(f, "oui {oui:#08x}, pid {protocol:#06x}, "),
            _ => Ok(()),
        }
    }

    fn end(&mut self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ip.is_some() {
            return self.flush_last(f);
        }
        let length = self.wire_len;
        match self.last {
            Some((_, Layer::Ethernet { ethertype } | Layer::Vlan { ethertype, .. })) => {
                write!(f, "ethertype {ethertype:#06x}, length {length}")
            }
            Some((_, Layer::Sll { protocol, .. } | Layer::Sll2 { protocol, .. })) => {
                write!(f, "ethertype {protocol:#06x}, length {length}")
            }
            Some((_, Layer::Gre { protocol, .. } | Layer::Geneve { protocol, .. })) => {
                write!(f, "protocol {protocol:#06x}, length {length}")
            }
            Some((_, Layer::Pppoe { protocol, .. })) => {
                write!(f, "PPP protocol {protocol:#06x}, length {length}")
            }
            Some((_, Layer::Cut { .. })) => write!(f, "[|cut off], length {length}"),
            Some((_, Layer::Malformed | Layer::Deep)) => write!(f, "[|malformed], length {length}"),
            // Transport headers and ARP end with a length of their own.
            Some((
                _,
                Layer::Tcp
                | Layer::TcpCut
                | Layer::Udp
                | Layer::Sctp
                | Layer::Icmp { .. }
                | Layer::Arp { .. },
            )) => Ok(()),
            _ => write!(f, "length {length}"),
        }
    }

    /// Writes `IP a > b: ` and returns where the IP packet ends; with ports if there are some.
    fn ends(
        &mut self,
        f: &mut fmt::Formatter<'_>,
        at: usize,
        ports: bool,
    ) -> Result<usize, fmt::Error> {
        let Some(ip) = self.ip.take() else { return Ok(self.wire_len as usize) };
        let name = if ip.source.is_ipv6() { "IP6" } else { "IP" };
        if ports {
            let (source, destination) = (self.half(at), self.half(at + 2));
            write!(f, "{name} {}.{source} > {}.{destination}: ", ip.source, ip.destination)?;
        } else {
            write!(f, "{name} {} > {}: ", ip.source, ip.destination)?;
        }
        Ok(ip.end)
    }

    /// Writes an IP layer that only carries another.
    fn flush(&mut self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ends(f, 0, false).map(|_| ())
    }

    /// Writes an IP layer behind which nothing was recognised.
    fn flush_last(&mut self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(ip) = self.ip else { return Ok(()) };
        let end = self.ends(f, 0, false)?;
        let start = self.last.map_or(0, |(start, _)| start);
        let name = protocol_name(ip.protocol);
        if ip.fragment == Fragment::Later {
            write!(f, "{name} fragment at {}, ", ip.offset)?;
        } else {
            write!(f, "{name}, ")?;
        }
        if let Some((_, Layer::Cut { .. })) = self.last {
            f.write_str("[|cut off], ")?;
        }
        write!(f, "length {}", end.saturating_sub(start))
    }

    fn tcp(&mut self, f: &mut fmt::Formatter<'_>, at: usize) -> fmt::Result {
        let end = self.ends(f, at, true)?;
        let Some(head) = self.data.get(at..).and_then(|d| d.first_chunk::<20>()) else {
            return f.write_str("TCP [|cut off]");
        };
        let flags = head[13];
        f.write_str("Flags [")?;
        let letters = [(1, 'F'), (2, 'S'), (4, 'R'), (8, 'P'), (16, '.'), (32, 'U'), (64, 'E')];
        for (bit, letter) in letters.into_iter().chain([(128, 'W')]) {
            if flags & bit != 0 {
                write!(f, "{letter}")?;
            }
        }
        f.write_str(if flags == 0 { "none]" } else { "]" })?;
        let length = end.saturating_sub(at + usize::from(head[12] >> 4) * 4);
        let seq = u32::from_be_bytes(self.bytes(at + 4));
        if length > 0 {
            let length = u32::try_from(length).unwrap_or(u32::MAX);
            write!(f, ", seq {seq}:{}", seq.wrapping_add(length))?;
        } else if flags & 7 != 0 {
            write!(f, ", seq {seq}")?;
        }
        if flags & 16 != 0 {
            write!(f, ", ack {}", u32::from_be_bytes(self.bytes(at + 8)))?;
        }
        write!(f, ", win {}, length {length}", self.half(at + 14))
    }

    fn icmp(&mut self, f: &mut fmt::Formatter<'_>, at: usize, kind: u8, code: u8) -> fmt::Result {
        let v6 = self.ip.is_some_and(|ip| ip.source.is_ipv6());
        let end = self.ends(f, at, false)?;
        f.write_str(if v6 { "ICMP6, " } else { "ICMP " })?;
        let name = match (v6, kind) {
            (false, 8) | (true, 128) => Some("echo request"),
            (false, 0) | (true, 129) => Some("echo reply"),
            (false, 3) | (true, 1) => None,
            (false, 11) | (true, 3) => Some("time exceeded"),
            (false, 5) => Some("redirect"),
            (true, 133) => Some("router solicitation"),
            (true, 134) => Some("router advertisement"),
            (true, 135) => Some("neighbor solicitation"),
            (true, 136) => Some("neighbor advertisement"),
            _ => return write!(f, "type {kind} code {code}, length {}", end.saturating_sub(at)),
        };
        match name {
            Some(name) => f.write_str(name)?,
            None => write!(f, "unreachable, code {code}")?,
        }
        if name.is_some_and(|name| name.starts_with("echo")) {
            write!(f, ", id {}, seq {}", self.half(at + 4), self.half(at + 6))?;
        }
        write!(f, ", length {}", end.saturating_sub(at))
    }

    fn arp(&self, f: &mut fmt::Formatter<'_>, at: usize, operation: u16) -> fmt::Result {
        let addr = |at| Ipv4Addr::from(self.bytes::<4>(at));
        let (sender, target) = (addr(at + 14), addr(at + 24));
        let length = (self.wire_len as usize).saturating_sub(at);
        match operation {
            1 => write!(f, "ARP, Request who-has {target} tell {sender}, length {length}"),
            2 => {
                let [a, b, c, d, e, g] = self.bytes::<6>(at + 8);
                write!(f, "ARP, Reply {sender} is-at ")?;
                write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}, length {length}")
            }
            other => write!(f, "ARP, operation {other} {sender} > {target}, length {length}"),
        }
    }

    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        let rest = self.data.get(at..).and_then(|rest| rest.first_chunk());
        rest.copied().unwrap_or([0; N])
    }

    fn half(&self, at: usize) -> u16 {
        u16::from_be_bytes(self.bytes(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipv4(protocol: u8, total: u8) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend_from_slice(&[8, 0, 0x45, 0, 0, total, 0, 0, 0, 0, 64, protocol, 0, 0]);
        frame.extend_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        frame
    }

    fn text(frame: &[u8]) -> String {
        line(LinkType::ETHERNET, frame, frame.len() as u32).to_string()
    }

    #[test]
    fn lines_read_like_tcpdumps() {
        let mut tcp = ipv4(6, 40);
        tcp.extend_from_slice(&[
            0xf, 0xa0, 0, 80, 0, 0, 0, 7, 0, 0, 0, 0, 0x50, 2, 2, 0, 0, 0, 0, 0,
        ]);
        assert_eq!(
            text(&tcp),
            "IP 10.0.0.1.4000 > 10.0.0.2.80: Flags [S], seq 7, win 512, length 0"
        );
        let mut udp = ipv4(17, 31);
        udp.extend_from_slice(&[0, 53, 0, 99, 0, 11, 0, 0, 1, 2, 3]);
        assert_eq!(text(&udp), "IP 10.0.0.1.53 > 10.0.0.2.99: UDP, length 3");
        let mut icmp = ipv4(1, 28);
        icmp.extend_from_slice(&[8, 0, 0, 0, 0, 1, 0, 2]);
        assert_eq!(text(&icmp), "IP 10.0.0.1 > 10.0.0.2: ICMP echo request, id 1, seq 2, length 8");
        let mut arp = vec![0; 12];
        arp.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 2, 2, 2, 2, 2, 10, 0, 0, 1]);
        arp.extend_from_slice(&[0, 0, 0, 0, 0, 0, 10, 0, 0, 2]);
        assert_eq!(text(&arp), "ARP, Request who-has 10.0.0.2 tell 10.0.0.1, length 28");
    }

    #[test]
    fn the_rest_says_what_is_known() {
        let mut lldp = vec![0; 60];
        (lldp[12], lldp[13]) = (0x88, 0xcc);
        assert_eq!(text(&lldp), "ethertype 0x88cc, length 60");
        assert_eq!(text(&lldp[..9]), "[|cut off], length 9");
        let esp = ipv4(50, 40);
        assert_eq!(text(&esp), "IP 10.0.0.1 > 10.0.0.2: ESP, length 20");
        let mut later = ipv4(17, 36);
        later[21] = 2;
        assert_eq!(text(&later), "IP 10.0.0.1 > 10.0.0.2: UDP fragment at 16, length 16");
    }
}
