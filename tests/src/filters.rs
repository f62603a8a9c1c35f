//! Filters in tcpdump's language, made from what a capture holds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use wirevault_testkit::random::Random;

use crate::traffic::{Capture, Flow, Kind, Wrap};

/// A filter at random: leaves of flows that exist, joined, negated, nested.
pub fn filter(random: &mut Random, capture: &Capture) -> String {
    let depth = *random.pick(&[0, 0, 1, 1, 1, 2, 2, 3]);
    expression(random, capture, depth)
}

fn expression(random: &mut Random, capture: &Capture, depth: usize) -> String {
    if depth == 0 {
        let flow = some_flow(random, capture);
        let leaf = leaf(random, flow);
        return if random.one_in(4) { format!("not ({leaf})") } else { leaf };
    }
    match random.below(8) {
        // Two sides of one flow: what they have in common exists.
        0..3 => {
            let flow = some_flow(random, capture);
            let (left, right) = (leaf(random, flow), leaf(random, flow));
            format!("({left}) and ({right})")
        }
        3 => {
            let flow = some_flow(random, capture);
            let left = leaf(random, flow);
            format!("({left}) and not ({})", expression(random, capture, depth - 1))
        }
        4..7 => {
            let left = expression(random, capture, depth - 1);
            format!("({left}) or ({})", expression(random, capture, depth - 1))
        }
        _ => format!("not ({})", expression(random, capture, depth - 1)),
    }
}

fn some_flow<'a>(random: &mut Random, capture: &'a Capture) -> &'a Flow {
    let from = if random.one_in(5) { &capture.bulks } else { &capture.flows };
    random.pick(from)
}

/// A condition that some packets of the flow should fulfil.
fn leaf(random: &mut Random, flow: &Flow) -> String {
    if random.one_in(6) {
        return by_bytes(random, flow);
    }
    let tail = inner(random, flow);
    if random.one_in(8) {
        // Without the word that reaches inside: a tagged packet of a host is none of `host`.
        return tail;
    }
    let alone = random.one_in(4);
    match &flow.wrap {
        Wrap::Plain => tail,
        Wrap::Vlan(id) if alone => format!("vlan {id}"),
        Wrap::Vlan(id) => format!("vlan {id} and {tail}"),
        Wrap::QinQ(id, inner) if alone => format!("vlan {id} and vlan {inner}"),
        Wrap::QinQ(id, inner) => format!("vlan {id} and vlan {inner} and {tail}"),
        Wrap::Mpls(labels) => {
            let words: Vec<_> = labels.iter().map(|label| format!("mpls {label}")).collect();
            if alone { words.join(" and ") } else { format!("{} and {tail}", words.join(" and ")) }
        }
        Wrap::Geneve(vni) if alone => format!("geneve {vni}"),
        Wrap::Geneve(vni) => format!("geneve {vni} and {tail}"),
        Wrap::Vxlan(_) => {
            let by_bytes = by_bytes(random, flow);
            format!("udp port 4789 and {by_bytes}")
        }
        Wrap::Gre if alone => format!("host {} and ip proto 47", flow.outer.0),
        Wrap::Gre => format!("ip proto 47 and {}", by_bytes(random, flow)),
    }
}

/// The inner address or ports at their place in the frame, where libpcap has no word for them.
fn by_bytes(random: &mut Random, flow: &Flow) -> String {
    let at = flow.inner_at();
    if flow.kind == Kind::Arp {
        return format!("ether[{}:4] = {}", at + 14, number(flow.a, 12));
    }
    let (source, destination, last) = match flow.a {
        IpAddr::V4(_) => (12, 16, 0),
        IpAddr::V6(_) => (8 + 12, 24 + 12, 12),
    };
    match random.below(4) {
        0 => format!("ether[{}:4] = {}", at + source, number(flow.a, last)),
        1 => format!("ether[{}:4] = {}", at + destination, number(flow.a, last)),
        2 if flow.a.is_ipv6() => {
            // The upper half tells the net.
            format!("ether[{}:4] = {}", at + 8 + 4, number(flow.a, 4))
        }
        _ => inner_host(flow),
    }
}

/// An inner host at either end, by its bytes' place in the frame.
pub fn inner_host(flow: &Flow) -> String {
    let at = flow.inner_at();
    let (source, destination, last) = match flow.a {
        IpAddr::V4(_) => (12, 16, 0),
        IpAddr::V6(_) => (8 + 12, 24 + 12, 12),
    };
    let host = number(flow.a, last);
    format!("(ether[{}:4] = {host} or ether[{}:4] = {host})", at + source, at + destination)
}

/// Four bytes of an address as a number; `from` counts for IPv6.
fn number(address: IpAddr, from: usize) -> String {
    let word: [u8; 4] = match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => {
            let octets = address.octets();
            [octets[from], octets[from + 1], octets[from + 2], octets[from + 3]]
        }
    };
    format!("{:#010x}", u32::from_be_bytes(word))
}

/// A condition on the flow itself, without its wrapping.
fn inner(random: &mut Random, flow: &Flow) -> String {
    let side = *random.pick(&["", "", "src ", "dst "]);
    let host = if random.one_in(4) { flow.b } else { flow.a };
    let port = if random.one_in(3) { flow.b_port } else { flow.a_port };
    match random.below(16) {
        0..3 => format!("{side}host {host}"),
        3 | 4 => format!("{side}net {}", net(random, host)),
        5 | 6 if flow.has_ports() => format!("{side}port {port}"),
        7 if flow.has_ports() => {
            let (below, above) = (random.below(40) as u16, random.below(40) as u16);
            let (from, to) = (port.saturating_sub(below), port.saturating_add(above));
            format!("{side}portrange {from}-{to}")
        }
        8 if flow.has_ports() => format!("host {} and port {}", flow.a, flow.a_port),
        9 => format!("{} {}", random.pick(&["less", "greater"]), 60 + random.below(1400)),
        10 => odd(random, flow),
        11 => format!("host {host} and {}", odd(random, flow)),
        _ => word(random, flow),
    }
}

fn net(random: &mut Random, host: IpAddr) -> String {
    let bits = if host.is_ipv4() {
        *random.pick(&[8, 14, 16, 16, 20, 24, 24, 28, 30])
    } else {
        *random.pick(&[32, 44, 48, 48, 60, 64, 64, 112, 126])
    };
    net_of(host, bits)
}

/// The net of `bits` bits that a host is in, as libpcap wants it: its other bits zero.
pub fn net_of(host: IpAddr, bits: u32) -> String {
    match host {
        IpAddr::V4(host) => {
            let masked = u32::from(host) & (u32::MAX << (32 - bits));
            format!("{}/{bits}", Ipv4Addr::from(masked))
        }
        IpAddr::V6(host) => {
            let masked = u128::from(host) & (u128::MAX << (128 - bits));
            format!("{}/{bits}", Ipv6Addr::from(masked))
        }
    }
}

/// The protocol of a flow in words.
fn word(random: &mut Random, flow: &Flow) -> String {
    let v6 = flow.a.is_ipv6();
    let family = if v6 { "ip6" } else { "ip" };
    let words: &[&str] = match flow.kind {
        Kind::Tcp | Kind::TcpData | Kind::Options => &["tcp", "tcp", "proto 6"],
        Kind::Udp => &["udp", "proto 17"],
        Kind::Sctp => &["sctp", "proto 132"],
        Kind::Icmp if v6 => &["icmp6", "icmp6", "proto 58"],
        Kind::Icmp => &["icmp", "icmp", "proto 1"],
        Kind::Arp => return format!("arp and host {}", flow.a),
        Kind::Fragments | Kind::LaterFragments if v6 => &["proto 44", "protochain 17"],
        Kind::Fragments | Kind::LaterFragments => &["udp", "proto 17"],
        Kind::Extensions => &["protochain 6", "proto 0"],
    };
    match *random.pick(words) {
        word if word.starts_with("proto") => format!("{family} {word}"),
        word => word.to_owned(),
    }
}

/// What only bytes tell.
fn odd(random: &mut Random, flow: &Flow) -> String {
    let v6 = flow.a.is_ipv6();
    let choices: &[&str] = match flow.kind {
        Kind::Tcp | Kind::TcpData | Kind::Options if !v6 => &[
            "tcp[tcpflags] & tcp-syn != 0",
            "tcp[tcpflags] & (tcp-syn|tcp-fin) = tcp-syn",
            "tcp[tcpflags] == tcp-ack",
            "tcp[13] = 0x18",
            "ip[0] & 0xf > 5",
            "tcp[2:2] < 1024",
            "ip[2:2] > 600",
            "ip[9] = 6",
        ],
        Kind::Udp if !v6 => &["udp[4:2] > 300", "udp[0:2] = 53 or udp[2:2] = 53", "ip[9] = 17"],
        Kind::Icmp if !v6 => &["icmp[icmptype] = icmp-echo", "icmp[0] = 0"],
        Kind::Icmp => &["icmp6[0] = 128", "ip6[40] = 129"],
        Kind::Arp => &["arp[6:2] = 1", "arp[6:2] = 2", "rarp"],
        Kind::Fragments | Kind::LaterFragments if !v6 => {
            &["ip[6:2] & 0x1fff != 0", "ip[6] & 0x20 != 0", "ip[6:2] & 0x3fff != 0 and udp"]
        }
        _ if v6 => &["ip6[6] = 0", "ip6[6] = 44", "ip6[6] = 17", "ip6[4:2] > 500", "ip6[6] = 6"],
        _ => &["ip[8] > 60", "ip[6] & 0x40 != 0"],
    };
    let choice = *random.pick(choices);
    if random.one_in(8) { "len > 600 and len < 1200".to_owned() } else { choice.to_owned() }
}
