//! A flow key in words, for people.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use wirevault_format::LinkType;

use crate::key::FlowKey;
use crate::shape::{Fragment, Layer, Layers, ValueKind, link_type};

/// One end of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Endpoint {
    /// Address, if the layer has one.
    pub addr: Option<IpAddr>,
    /// Port, if the protocol has ports and they were captured.
    pub port: Option<u16>,
}

impl fmt::Display for Endpoint {
    /// Written `10.0.0.1:80` and `[2001:db8::1]:80`; `-` without an address.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.addr, self.port) {
            (Some(addr), Some(port)) => std::net::SocketAddr::new(addr, port).fmt(f),
            (Some(addr), None) => addr.fmt(f),
            (None, _) => f.write_str("-"),
        }
    }
}

/// A flow in words.
///
/// Display is one line, outermost layer first, A's end before B's:
/// `vlan 5 / IP 10.0.0.1 - 10.0.0.2 / VXLAN vni 7 / TCP 192.168.0.1:4000 - 192.168.0.2:80`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowText {
    /// Link type of the interface.
    pub link: LinkType,
    /// Innermost protocol known: `TCP`, `UDP`, `ICMP`, `ARP`, `ip proto 50`, `ethertype 0x88cc`.
    pub protocol: String,
    /// Innermost endpoints.
    pub endpoints: [Endpoint; 2],
    /// Addresses of the IP layers around the innermost, outermost first.
    pub outer: Vec<[IpAddr; 2]>,
    /// VLAN identifiers, outermost first.
    pub vlans: Vec<u16>,
    /// MPLS labels, outermost first.
    pub mpls: Vec<u32>,
    /// VXLAN, VXLAN-GPE or GENEVE network identifier, the innermost.
    pub vni: Option<u32>,
    /// Whether the packets are fragments, and of which kind.
    pub fragment: Fragment,
    /// Layers between link and innermost protocol, each in a few words.
    pub layers: Vec<String>,
    /// Why the headers were not followed to their end.
    pub incomplete: Option<&'static str>,
}

impl FlowText {
    pub(crate) fn of_key(key: &FlowKey) -> Self {
        let mut text = Self {
            link: link_type(key.shape()).unwrap_or(LinkType(u16::MAX)),
            protocol: String::new(),
            endpoints: [Endpoint::default(); 2],
            outer: Vec::new(),
            vlans: Vec::new(),
            mpls: Vec::new(),
            vni: None,
            fragment: Fragment::None,
            layers: Vec::new(),
            incomplete: None,
        };
        let mut values = key.values();
        for (_, layer) in Layers::new(key.shape()).map_while(Result::ok) {
            text.layer(&layer);
            if let Some(pair) = layer.pair() {
                let (now, rest) = values.split_at((pair.kind.bytes() * 2).min(values.len()));
                values = rest;
                text.values(pair.kind, now);
            }
        }
        if text.protocol.is_empty() {
            text.protocol = text.link.to_string();
        }
        text
    }

    fn values(&mut self, kind: ValueKind, bytes: &[u8]) {
        let (a, b) = bytes.split_at(bytes.len() / 2);
        let [a, b] = [a, b].map(|half| {
            let (n, addr4) = (half.first_chunk(), half.first_chunk());
            match kind {
                ValueKind::Addr4 => (addr4.map(|x: &[u8; 4]| Ipv4Addr::from(*x).into()), 0),
                ValueKind::Addr6 => {
                    (half.first_chunk().map(|x: &[u8; 16]| Ipv6Addr::from(*x).into()), 0)
                }
                ValueKind::Port => (None, n.map_or(0, |x| u16::from_be_bytes(*x))),
            }
        });
        if kind == ValueKind::Port {
            [self.endpoints[0].port, self.endpoints[1].port] = [Some(a.1), Some(b.1)];
            return;
        }
        if let [Endpoint { addr: Some(a), .. }, Endpoint { addr: Some(b), .. }] = self.endpoints {
            self.layers.push(format!("IP {a} - {b}"));
            self.outer.push([a, b]);
        }
        self.endpoints = [a.0, b.0].map(|addr| Endpoint { addr, port: None });
    }

    fn layer(&mut self, layer: &Layer) {
        match *layer {
            Layer::Ethernet { ethertype } => self.protocol = format!("ethertype {ethertype:#06x}"),
            Layer::Vlan { vid, ethertype } => {
                self.vlan(vid);
                self.protocol = format!("ethertype {ethertype:#06x}");
            }
            Layer::Vlan8023 { vid } => self.vlan(vid),
            Layer::Ethernet8023 => self.protocol = "802.3".to_owned(),
            Layer::Mpls { label, .. } => {
                self.mpls.push(label);
                self.layers.push(format!("mpls {label}"));
                self.protocol = "MPLS".to_owned();
            }
            Layer::Pppoe { session, protocol } => {
                self.layers.push(format!("pppoe {session}"));
                self.protocol = format!("ppp {protocol:#06x}");
            }
            Layer::Ipv4 { protocol, fragment, .. } => {
                self.fragment = fragment;
                self.protocol = protocol_name(protocol);
            }
            Layer::Ipv6 { next } => {
                self.fragment = Fragment::None;
                self.protocol = protocol_name(next);
            }
            Layer::Extension { kind, next, .. } => {
                self.layers.push(format!("ip6 extension {kind}"));
                self.protocol = protocol_name(next);
            }
            Layer::Fragment6 { fragment, next } => {
                self.fragment = fragment;
                self.protocol = protocol_name(next);
            }
            Layer::Tcp | Layer::TcpCut => self.protocol = "TCP".to_owned(),
            Layer::Udp => self.protocol = "UDP".to_owned(),
            Layer::Sctp => self.protocol = "SCTP".to_owned(),
            Layer::Icmp { kind, code } => {
                let name = if kind >= 128 && self.is_v6() { "ICMP6" } else { "ICMP" };
                self.protocol = format!("{name} type {kind} code {code}");
            }
            Layer::Vxlan { vni, .. } => self.tunnel("VXLAN", vni),
            Layer::Geneve { vni, .. } => self.tunnel("GENEVE", vni),
            Layer::Gre { protocol, .. } => {
                self.outer_now();
                self.layers.push("GRE".to_owned());
                self.protocol = format!("GRE {protocol:#06x}");
            }
            Layer::Arp { .. } => self.protocol = "ARP".to_owned(),
            Layer::Llc { dsap, ssap, .. } => {
                self.protocol = format!("LLC {dsap:#04x} {ssap:#04x}");
            }
            Layer::Snap { oui, protocol } => {
                self.protocol = format!("SNAP {oui:06x} {protocol:#06x}");
            }
            Layer::Sll { protocol, .. } | Layer::Sll2 { protocol, .. } => {
                self.protocol = format!("ethertype {protocol:#06x}");
            }
            Layer::Loopback { family: [a, b, c, d] } => {
                self.protocol = format!("family {a:02x}{b:02x}{c:02x}{d:02x}");
            }
            Layer::Cut { .. } => self.incomplete = Some("cut off"),
            Layer::Malformed => self.incomplete = Some("malformed"),
            Layer::Deep => self.incomplete = Some("too many layers"),
            Layer::VxlanGpe { vni, .. } => self.tunnel("VXLAN-GPE", vni),
            Layer::Erspan2 { session, .. } | Layer::Erspan3 { session, .. } => {
                self.layers.push(format!("ERSPAN session {session}"));
                self.protocol = "ERSPAN".to_owned();
            }
            Layer::GtpU { .. } => {
                self.outer_now();
                self.layers.push("GTP-U".to_owned());
                self.protocol = "GTP-U".to_owned();
            }
            Layer::ControlWord => self.layers.push("control word".to_owned()),
        }
    }

    fn vlan(&mut self, vid: u16) {
        self.vlans.push(vid);
        self.layers.push(format!("vlan {vid}"));
    }

    fn tunnel(&mut self, name: &str, vni: u32) {
        self.outer_now();
        self.vni = Some(vni);
        self.layers.push(format!("{name} vni {vni}"));
        self.protocol = name.to_owned();
    }

    /// Moves the endpoints outside: a tunnel header follows them.
    fn outer_now(&mut self) {
        if let [Endpoint { addr: Some(a), .. }, Endpoint { addr: Some(b), .. }] = self.endpoints {
            self.layers.push(format!("IP {a} - {b}"));
            self.outer.push([a, b]);
            self.endpoints = [Endpoint::default(); 2];
        }
    }

    fn is_v6(&self) -> bool {
        self.endpoints[0].addr.is_some_and(|addr| addr.is_ipv6())
    }
}

impl fmt::Display for FlowText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for layer in &self.layers {
            write!(f, "{layer} / ")?;
        }
        f.write_str(&self.protocol)?;
        if self.endpoints[0].addr.is_some() {
            write!(f, " {} - {}", self.endpoints[0], self.endpoints[1])?;
        }
        match self.fragment {
            Fragment::None => {}
            Fragment::First => f.write_str(" (first fragments)")?,
            Fragment::Later => f.write_str(" (later fragments)")?,
        }
        self.incomplete.map_or(Ok(()), |why| write!(f, " ({why})"))
    }
}

/// Name of an IP protocol, or its number.
pub(crate) fn protocol_name(number: u8) -> String {
    let name = match number {
        1 => "ICMP",
        2 => "IGMP",
        6 => "TCP",
        17 => "UDP",
        47 => "GRE",
        50 => "ESP",
        51 => "AH",
        58 => "ICMP6",
        89 => "OSPF",
        103 => "PIM",
        112 => "VRRP",
        132 => "SCTP",
        _ => return format!("ip proto {number}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dissect;

    #[test]
    fn a_tunnel_reads_from_outside_in() {
        let mut frame = vec![0; 12];
        frame.extend_from_slice(&[0x81, 0, 0x20, 5, 8, 0]);
        frame.extend_from_slice(&[
            0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1,
        ]);
        frame.extend_from_slice(&[9, 9, 0x12, 0xb5, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 7, 0]);
        frame.extend_from_slice(&[0; 12]);
        frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 17, 64]);
        frame.extend_from_slice(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        frame.extend_from_slice(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        frame.extend_from_slice(&[0, 53, 0, 99, 0, 0, 0, 0]);
        let text = dissect(LinkType::ETHERNET, &frame).key.describe();
        assert_eq!(
            text.to_string(),
            "vlan 5 / IP 10.0.0.2 - 10.0.0.1 / VXLAN vni 7 / \
             UDP [2001:db8::1]:53 - [2001:db8::2]:99"
        );
        assert_eq!((text.vlans, text.vni), (vec![5], Some(7)));
        assert_eq!(text.outer.len(), 1);
    }

    #[test]
    fn what_is_missing_is_said() {
        let text = dissect(LinkType::ETHERNET, &[0; 4]).key.describe();
        assert_eq!(text.to_string(), "EN10MB (cut off)");
    }
}
