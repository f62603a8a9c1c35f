//! The abstract interpreter is not only right but of use: what it must decide, and how.

#[expect(dead_code, unreachable_pub, reason = "each test binary uses a part")]
mod common;

use std::ops::RangeInclusive;

use common::{compile, must_compile};
use wirevault_format::LinkType;
use wirevault_packet::bpf::Verdict::{self, Maybe, No, Yes};
use wirevault_packet::bpf::{AnyAddress, Oracle};
use wirevault_packet::{Direction, FlowKey, dissect, shape_template};

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let pair = |two: &[u8]| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap();
    digits.chunks(2).map(pair).collect()
}

const MACS: &str = "020000000002 020000000001";
const SYN: &str = "0fa0 0050 00000001 00000000 5002 0200 0000 0000";
const V4_TCP: &str = "4500 0028 0001 4000 40 06 0000 0a000001 0a000002";
const V6_TCP: &str = "60000000 0014 06 40 20010db8000000000000000000000001 \
                      20010db8000000000000000000000002";

fn frame(parts: &[&str]) -> Vec<u8> {
    bytes(&parts.concat())
}

fn plain4() -> Vec<u8> {
    frame(&[MACS, "0800", V4_TCP, SYN])
}

fn plain6() -> Vec<u8> {
    frame(&[MACS, "86dd", V6_TCP, SYN])
}

fn vlan() -> Vec<u8> {
    frame(&[MACS, "8100 2005 0800", V4_TCP, SYN])
}

fn mpls() -> Vec<u8> {
    frame(&[MACS, "8847 00064140", V4_TCP, SYN])
}

fn options() -> Vec<u8> {
    let header = "4600 002c 0001 0000 40 06 0000 0a000001 0a000002 01010101";
    frame(&[MACS, "0800", header, SYN])
}

fn later_fragment() -> Vec<u8> {
    let header = "4500 0028 0001 2010 40 11 0000 0a000001 0a000002";
    frame(&[MACS, "0800", header, SYN])
}

fn vxlan() -> Vec<u8> {
    let outer = "4500 005a 0001 0000 40 11 0000 c0a80001 c0a80002";
    frame(&[
        MACS,
        "0800",
        outer,
        "9999 12b5 0046 0000 08000000 00000700",
        MACS,
        "0800",
        V4_TCP,
        SYN,
    ])
}

fn geneve() -> Vec<u8> {
    let outer = "4500 005e 0001 0000 40 11 0000 c0a80001 c0a80002";
    let header = "9999 17c1 004a 0000 0100 6558 00000700 01020304";
    frame(&[MACS, "0800", outer, header, MACS, "0800", V4_TCP, SYN])
}

fn arp() -> Vec<u8> {
    frame(&[MACS, "0806 0001 0800 06 04 0001 020000000001 0a000001 000000000000 0a000002"])
}

/// What a filter says about a flow, both directions together, with lengths and flags as seen.
fn flow(filter: &str, data: &[u8]) -> Verdict {
    let d = dissect(LinkType::ETHERNET, data);
    let one = |direction| {
        let mut template = d.key.template(direction);
        let len = data.len() as u32;
        template.set_lengths(len, len, len, len);
        template.set_tcp_flags(d.tcp_flags, d.tcp_flags);
        must_compile(filter).decide(&template, &AnyAddress)
    };
    one(Direction::AtoB).and_also(one(Direction::BtoA))
}

#[test]
fn flows_are_decided() {
    let cases: &[(&str, Vec<u8>, Verdict)] = &[
        ("host 10.0.0.1", plain4(), Yes),
        ("not host 10.0.0.1", plain4(), No),
        ("host 10.0.0.3", plain4(), No),
        ("not host 10.0.0.3", plain4(), Yes),
        ("src host 10.0.0.1", plain4(), Maybe),
        ("host 10.0.0.1 and not port 80", plain4(), No),
        ("port 80", plain4(), Yes),
        ("port 81", plain4(), No),
        ("portrange 3999-4001", plain4(), Yes),
        ("portrange 3000-3999", plain4(), No),
        ("tcp port 80", plain4(), Yes),
        ("udp port 80", plain4(), No),
        ("net 10.0.0.0/8", plain4(), Yes),
        ("net 11.0.0.0/8", plain4(), No),
        ("tcp", plain4(), Yes),
        ("udp or icmp or arp", plain4(), No),
        ("vlan", plain4(), No),
        ("tcp[tcpflags] & tcp-syn != 0", plain4(), Yes),
        ("tcp[tcpflags] & tcp-fin != 0", plain4(), No),
        ("tcp[tcpflags] == tcp-syn", plain4(), Yes),
        ("ip[6:2] & 0x1fff != 0", plain4(), No),
        ("ip[6] & 0x40 != 0", plain4(), Maybe),
        ("ip[8] > 3", plain4(), Maybe),
        ("ether host 02:00:00:00:00:01", plain4(), Maybe),
        ("ether host 02:00:00:00:00:01 and port 81", plain4(), No),
        ("ether host 02:00:00:00:00:01 or port 80", plain4(), Yes),
        ("(ip[8] > 9 or ip[4:2] = 7) and (ip[10:2] = 3 or ip[1] = 4) and udp", plain4(), No),
        ("less 60", plain4(), Yes),
        ("greater 55", plain4(), No),
        ("host 2001:db8::1", plain6(), Yes),
        ("not host 2001:db8::1", plain6(), No),
        ("host 2001:db8::3", plain6(), No),
        ("net 2001:db8::/36", plain6(), Yes),
        ("ip6 protochain 6", plain6(), Yes),
        ("ip6 protochain 17", plain6(), No),
        // As tcpdump has it: without `vlan`, the tag hides the address.
        ("host 10.0.0.1", vlan(), No),
        ("not host 10.0.0.1", vlan(), Yes),
        ("vlan 5 and host 10.0.0.1", vlan(), Yes),
        ("vlan 6 and host 10.0.0.1", vlan(), No),
        ("vlan 5 and port 81", vlan(), No),
        ("mpls and host 10.0.0.1", mpls(), Yes),
        ("mpls 100 and host 10.0.0.1", mpls(), Yes),
        ("mpls 101", mpls(), No),
        ("mpls and host 10.0.0.3", mpls(), No),
        ("port 80", options(), Yes),
        ("port 81", options(), No),
        ("tcp[tcpflags] & tcp-syn != 0", options(), Yes),
        ("ip[0] & 0xf > 5", options(), Yes),
        ("port 80", later_fragment(), No),
        ("not port 80", later_fragment(), Yes),
        ("udp", later_fragment(), Yes),
        ("ip[6:2] & 0x1fff != 0", later_fragment(), Yes),
        ("ip[6:2] & 0x1fff = 0", later_fragment(), No),
        ("udp port 4789", vxlan(), Yes),
        ("udp port 4789 and ether[76:4] = 0x0a000001", vxlan(), Maybe),
        ("ether[76:4] = 0x0a000001 or ether[80:4] = 0x0a000001", vxlan(), Yes),
        ("ether[76:4] = 0x0a000003 or ether[80:4] = 0x0a000003", vxlan(), No),
        ("geneve and host 10.0.0.1", geneve(), Yes),
        ("geneve and host 10.0.0.3", geneve(), No),
        ("geneve 7 and port 80", geneve(), Yes),
        ("geneve 8", geneve(), No),
        ("arp", arp(), Yes),
        ("host 10.0.0.1", arp(), Yes),
        ("host 10.0.0.3", arp(), No),
        ("arp[6:2] = 1", arp(), Yes),
    ];
    let mut wrong = Vec::new();
    for (filter, data, want) in cases {
        let got = flow(filter, data);
        if got != *want {
            wrong.push(format!("`{filter}`: {got:?}, not {want:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Knows one IPv4 net, one IPv6 host and one port; all of them occur everywhere.
struct Segment;

impl Oracle for Segment {
    fn host4(&self, addr: [u8; 4], prefix_len: u8) -> bool {
        let shift = 32 - u32::from(prefix_len.min(24));
        u32::from_be_bytes(addr) >> shift == 0x0a00_0000 >> shift
    }

    fn host6(&self, addr: [u8; 16], prefix_len: u8) -> bool {
        let only = 0x2001_0db8_0000_0000_0000_0000_0000_0001;
        let shift = 128 - u32::from(prefix_len);
        u128::from_be_bytes(addr) >> shift == only >> shift
    }

    fn port(&self, range: RangeInclusive<u16>) -> bool {
        range.contains(&80)
    }
}

#[test]
fn segments_are_decided() {
    let cases: &[(&str, Vec<u8>, Verdict)] = &[
        ("host 10.0.0.9", plain4(), Maybe),
        ("host 10.0.1.9", plain4(), No),
        ("src host 10.0.1.9 or dst host 10.9.9.9", plain4(), No),
        ("not host 10.0.1.9", plain4(), Yes),
        ("not host 10.0.0.9", plain4(), Maybe),
        ("net 10.0.1.0/24", plain4(), No),
        ("net 10.0.0.0/8", plain4(), Maybe),
        ("net 11.0.0.0/8", plain4(), No),
        ("ip[12:2] = 0x0b00", plain4(), No),
        ("port 80", plain4(), Maybe),
        ("port 81", plain4(), No),
        ("portrange 1-79", plain4(), No),
        ("portrange 81-90", plain4(), No),
        ("portrange 70-90", plain4(), Yes),
        ("host 10.0.0.9 and port 81", plain4(), No),
        ("udp and port 80", plain4(), No),
        ("tcp[2:2] > 1000", plain4(), No),
        ("host 2001:db8::1", plain6(), Maybe),
        ("host 2001:db8::2", plain6(), No),
        ("host 2001:db8::2 or host 2001:db8:1::1", plain6(), No),
        ("net 2001:db8::/64", plain6(), Maybe),
        ("net 2001:db8:1::/48", plain6(), No),
        ("net 2001:db8:8000::/36", plain6(), No),
        ("vlan and host 10.0.1.9", vlan(), No),
        ("vlan 5 and host 10.0.0.9", vlan(), Maybe),
        ("vlan 6 and host 10.0.0.9", vlan(), No),
        ("host 10.0.0.9", vlan(), No),
        ("geneve and host 10.0.1.9", geneve(), No),
        ("geneve and host 10.0.0.9", geneve(), Maybe),
        ("host 10.0.1.9", arp(), No),
        ("udp port 4789", vxlan(), Yes),
        ("ether[76:4] = 0x0a000109", vxlan(), No),
    ];
    let mut wrong = Vec::new();
    for (filter, data, want) in cases {
        let key: FlowKey = dissect(LinkType::ETHERNET, data).key;
        let mut template = shape_template(key.shape()).unwrap();
        template.set_lengths(data.len() as u32, 1514, data.len() as u32, 1514);
        let got = must_compile(filter).decide(&template, &Segment);
        if got != *want {
            wrong.push(format!("`{filter}`: {got:?}, not {want:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_one_way_has_learned_does_not_outlive_its_meeting_with_another() {
    // libpcap's optimizer would keep the ways apart.
    let template = shape_template(dissect(LinkType::ETHERNET, &plain4()).key.shape()).unwrap();
    let filters = [
        "(src host 10.0.0.1 or ip[8] = 3) and src host 10.0.0.2",
        "(ip[8] = 3 or src host 10.0.0.1) and src host 10.0.0.2",
        "(src host 10.0.0.1 or src net 10.0.0.0/30 or ip[8] = 3) and src host 10.0.0.2",
    ];
    for filter in filters {
        let (_, program) = compile(LinkType::ETHERNET, filter, false).unwrap();
        assert_eq!(program.decide(&template, &Segment), Maybe, "{filter}");
    }
}

#[test]
fn cut_headers_are_decided_by_their_length() {
    let data = &plain4()[..36];
    assert_eq!(flow("port 80", data), Maybe);
    assert_eq!(flow("tcp[tcpflags] & tcp-syn != 0", data), No);
    let template = dissect(LinkType::ETHERNET, &data[..33]).key.template(Direction::AtoB);
    assert_eq!(must_compile("host 10.0.0.1").decide(&template, &AnyAddress), Maybe);
    let template = dissect(LinkType::ETHERNET, &data[..34]).key.template(Direction::AtoB);
    assert_eq!(must_compile("host 10.0.0.1").decide(&template, &AnyAddress), Yes);
    assert_eq!(must_compile("tcp[2:2] = 80").decide(&template, &AnyAddress), No);
}

#[test]
fn open_conditions_do_not_multiply() {
    // Two to the power of 40 ways without joining; the answer is still exact.
    let open: Vec<_> = (0..40).map(|i| format!("(ip[8] = {i} or ip[4:2] = {i})")).collect();
    let filter = format!("not ({}) and udp", open.join(" and "));
    assert_eq!(flow(&filter, &plain4()), No);
}
