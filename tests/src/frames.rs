//! Headers of the protocols that the generated captures consist of. Checksums stay zero: nothing
//! that is compared here looks at them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of an Ethernet header.
pub const ETHERNET_BYTES: usize = 14;
/// TCP's push and acknowledge flags.
pub const TCP_PSH_ACK: u8 = 0x18;
/// TCP's synchronize flag.
pub const TCP_SYN: u8 = 0x02;
/// UDP port of VXLAN.
pub const VXLAN_PORT: u16 = 4789;
/// UDP port of GENEVE.
pub const GENEVE_PORT: u16 = 6081;

/// Where a fragment lies in its packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    /// Not a fragment.
    Whole,
    /// The first of several.
    First,
    /// Not the first; the offset in units of 8 bytes.
    Later(u16),
}

/// Ethernet II; addresses are written from their numbers.
pub fn ethernet(from: u32, to: u32, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mac = |n: u32| [&[2, 0][..], &n.to_be_bytes()].concat();
    [&mac(to)[..], &mac(from), &ethertype.to_be_bytes(), payload].concat()
}

/// What follows the ethertype of a VLAN tag.
pub fn vlan(id: u16, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&id.to_be_bytes()[..], &ethertype.to_be_bytes(), payload].concat()
}

/// A label stack and what it carries.
pub fn mpls(labels: &[u32], payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for (n, label) in labels.iter().enumerate() {
        let bottom = u32::from(n + 1 == labels.len());
        out.extend((label << 12 | bottom << 8 | 64).to_be_bytes());
    }
    out.extend(payload);
    out
}

/// IPv4 or IPv6, as the addresses are. `options` are IPv4 options, whole words; `fragment` counts
/// for IPv4 only.
pub fn ip(
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    options: &[u8],
    fragment: Fragment,
    payload: &[u8],
) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ipv4(from, to, protocol, options, fragment, payload),
        (IpAddr::V6(from), IpAddr::V6(to)) => ipv6(from, to, protocol, payload),
        _ => unreachable!("both ends of a flow have addresses of one family"),
    }
}

/// IPv4.
pub fn ipv4(
    from: Ipv4Addr,
    to: Ipv4Addr,
    protocol: u8,
    options: &[u8],
    fragment: Fragment,
    payload: &[u8],
) -> Vec<u8> {
    let total = (20 + options.len() + payload.len()) as u16;
    let word: u16 = match fragment {
        Fragment::Whole => 0x4000,
        Fragment::First => 0x2000,
        Fragment::Later(offset) => offset,
    };
    let mut out = vec![0x45 + (options.len() / 4) as u8, 0];
    out.extend(total.to_be_bytes());
    out.extend([0x12, 0x34]);
    out.extend(word.to_be_bytes());
    out.extend([64, protocol, 0, 0]);
    out.extend(from.octets());
    out.extend(to.octets());
    out.extend(options);
    out.extend(payload);
    out
}

/// IPv6.
pub fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0x60, 0, 0, 0];
    out.extend((payload.len() as u16).to_be_bytes());
    out.extend([next, 64]);
    out.extend(from.octets());
    out.extend(to.octets());
    out.extend(payload);
    out
}

/// An IPv6 extension header of 8 bytes (hop-by-hop, routing, destination options) before `payload`.
pub fn extension(next: u8, payload: &[u8]) -> Vec<u8> {
    [&[next, 0, 1, 4, 0, 0, 0, 0][..], payload].concat()
}

/// An IPv6 fragment header before `payload`; `fragment` must be one.
pub fn extension_fragment(next: u8, fragment: Fragment, payload: &[u8]) -> Vec<u8> {
    let word = match fragment {
        Fragment::Later(offset) => offset << 3,
        Fragment::First | Fragment::Whole => 1,
    };
    let word: [u8; 2] = word.to_be_bytes();
    [&[next, 0][..], &word, &[0, 0, 0x12, 0x34], payload].concat()
}

/// TCP.
pub fn tcp(from: u16, to: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = [from.to_be_bytes(), to.to_be_bytes()].concat();
    out.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 2, 0, 0, 0, 0, 0]);
    out.extend(payload);
    out
}

/// UDP.
pub fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    [from.to_be_bytes(), to.to_be_bytes(), length.to_be_bytes(), [0, 0]]
        .concat()
        .into_iter()
        .chain(payload.iter().copied())
        .collect()
}

/// SCTP with one chunk of data.
pub fn sctp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = [from.to_be_bytes(), to.to_be_bytes()].concat();
    out.extend([0, 0, 0, 7, 0, 0, 0, 0, 0, 3]);
    out.extend((16 + payload.len() as u16).to_be_bytes());
    out.extend([0; 12]);
    out.extend(payload);
    out
}

/// ICMP or ICMPv6: type, code and body.
pub fn icmp(kind: u8, code: u8, payload: &[u8]) -> Vec<u8> {
    [&[kind, code, 0, 0, 0, 1, 0, 2][..], payload].concat()
}

/// ARP for IPv4 over Ethernet; `trailer` pads the frame.
pub fn arp(operation: u16, from: Ipv4Addr, to: Ipv4Addr, trailer: &[u8]) -> Vec<u8> {
    let mut out = vec![0, 1, 8, 0, 6, 4];
    out.extend(operation.to_be_bytes());
    out.extend([2, 0, 0, 0, 0, 1]);
    out.extend(from.octets());
    out.extend([0; 6]);
    out.extend(to.octets());
    out.extend(trailer);
    out
}

/// UDP datagram with VXLAN around an Ethernet frame.
pub fn vxlan(from: u16, vni: u32, frame: &[u8]) -> Vec<u8> {
    let head = [[8, 0, 0, 0], (vni << 8).to_be_bytes()].concat();
    udp(from, VXLAN_PORT, &[&head, frame].concat())
}

/// UDP datagram with GENEVE, without options, around an Ethernet frame.
pub fn geneve(from: u16, vni: u32, frame: &[u8]) -> Vec<u8> {
    let head = [[0, 0, 0x65, 0x58], (vni << 8).to_be_bytes()].concat();
    udp(from, GENEVE_PORT, &[&head, frame].concat())
}

/// GRE without options around a packet of this ethertype.
pub fn gre(ethertype: u16, packet: &[u8]) -> Vec<u8> {
    [&[0, 0][..], &ethertype.to_be_bytes(), packet].concat()
}
