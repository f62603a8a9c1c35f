//! A mixed capture from a seed: several thousand flows of every encapsulation, each alive for a
//! short time only, and stretches that hold nothing but one flow.
//!
//! ```text
//!  slot 0   slot 1   bulk    slot 2   slot 3   bulk  ...
//!  ~80 flows each    1 flow  ~80 flows each    1 flow
//! ```
//! The locality is what an index can use; the stretches of one flow are what lets it leave chunks
//! out for a filter that says `not`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use wirevault_testkit::random::Random;

use crate::captures::Packet;
use crate::frames::{self, ETHERNET_BYTES, Fragment, TCP_PSH_ACK, TCP_SYN};

/// Time of the first packets: 2026-01-01 00:00:00 UTC.
pub const BEGIN_NS: u64 = 1_767_225_600 * SECOND_NS;

const SECOND_NS: u64 = 1_000_000_000;
/// Slots of mixed traffic.
const SLOTS: u16 = 48;
/// Flows that begin in a slot.
const SLOT_FLOWS: usize = 80;
/// Packets of a stretch that holds one flow, and bytes of payload in each: three chunks a stretch,
/// so that one at least holds no other flow.
const LARGE: (usize, usize) = (640, 1250);
/// The same with small packets.
const SMALL: (usize, usize) = (8000, 40);
/// Slots between two stretches.
const BULK_EVERY: u16 = 3;

/// What a flow's packets are wrapped in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Wrap {
    /// Nothing: Ethernet.
    Plain,
    /// One VLAN tag.
    Vlan(u16),
    /// Outer and inner tag.
    QinQ(u16, u16),
    /// Labels from the outside in.
    Mpls(Vec<u32>),
    /// Ethernet in UDP.
    Vxlan(u32),
    /// Ethernet in UDP.
    Geneve(u32),
    /// IP in IP.
    Gre,
}

/// What a flow consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// TCP, with flags as a connection has them.
    Tcp,
    /// TCP with data only.
    TcpData,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// Echo.
    Icmp,
    /// ARP requests and answers.
    Arp,
    /// UDP in a first and later fragments.
    Fragments,
    /// UDP, later fragments only.
    LaterFragments,
    /// TCP behind IPv4 options.
    Options,
    /// TCP behind IPv6 extension headers.
    Extensions,
}

/// One flow.
#[derive(Debug, Clone)]
pub struct Flow {
    /// What it is wrapped in.
    pub wrap: Wrap,
    /// What it is.
    pub kind: Kind,
    /// The end that speaks first.
    pub a: IpAddr,
    /// The other.
    pub b: IpAddr,
    /// Port of `a`.
    pub a_port: u16,
    /// Port of `b`.
    pub b_port: u16,
    /// Ends of the tunnel, where there is one.
    pub outer: (Ipv4Addr, Ipv4Addr),
    /// Number in the Ethernet addresses: that of its slot.
    pub slot: u16,
    /// Bytes that are captured of each packet, if not all.
    pub snaplen_bytes: Option<usize>,
}

/// A capture and what is in it.
#[derive(Debug, Clone)]
pub struct Capture {
    /// In the order of the file. Most times rise; some are equal, some fall.
    pub packets: Vec<Packet>,
    /// Flows of mixed traffic.
    pub flows: Vec<Flow>,
    /// Flows that have a stretch of their own.
    pub bulks: Vec<Flow>,
}

impl Capture {
    /// The capture of this seed.
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut capture = Self { packets: Vec::new(), flows: Vec::new(), bulks: bulks() };
        let mut now_ns = BEGIN_NS;
        let mut waiting = capture.bulks.clone().into_iter();
        for slot in 0..SLOTS {
            capture.slot(&mut random, slot, now_ns);
            now_ns += SECOND_NS;
            if (slot + 1).is_multiple_of(BULK_EVERY) {
                // Flows of the slots before have ended by then.
                now_ns += 3 * SECOND_NS;
                if let Some(bulk) = waiting.next() {
                    capture.bulk(&mut random, &bulk, now_ns);
                }
                now_ns += SECOND_NS;
            }
        }
        assert!(waiting.next().is_none(), "every stretch has its place");
        capture.packets.sort_by_key(|packet| packet.ts_ns);
        capture.disturb(&mut random);
        capture
    }

    fn slot(&mut self, random: &mut Random, slot: u16, from_ns: u64) {
        for number in 0..SLOT_FLOWS {
            let flow = mixed(random, slot, number);
            let packets = 2 + random.below(14);
            let start_ns = from_ns + random.bits() % SECOND_NS;
            let mut times: Vec<u64> =
                (0..packets).map(|_| start_ns + random.bits() % (2 * SECOND_NS)).collect();
            times.sort_unstable();
            for (n, ts_ns) in times.into_iter().enumerate() {
                let payload = match random.below(5) {
                    0 | 1 => random.below(80),
                    2 => 200 + random.below(300),
                    _ => 900 + random.below(450),
                };
                let back = n > 0 && random.one_in(2);
                let whole = flow.frame(random, n, back, payload);
                self.packets.push(flow.captured(ts_ns, whole));
            }
            self.flows.push(flow);
        }
    }

    fn bulk(&mut self, random: &mut Random, flow: &Flow, from_ns: u64) {
        let (packets, payload) = if flow.wrap == Wrap::Gre { SMALL } else { LARGE };
        let step_ns = SECOND_NS / packets as u64;
        for n in 0..packets {
            let ts_ns = from_ns + n as u64 * step_ns;
            let whole = flow.frame(random, n, false, payload);
            self.packets.push(flow.captured(ts_ns, whole));
        }
    }

    /// Makes some times equal to the one before, and some earlier.
    fn disturb(&mut self, random: &mut Random) {
        for n in 1..self.packets.len() {
            let before_ns = self.packets[n - 1].ts_ns;
            let near = self.packets[n].ts_ns - before_ns.min(self.packets[n].ts_ns) < 50_000_000;
            match random.below(100) {
                0 | 1 if near => self.packets[n].ts_ns = before_ns,
                2 if near => self.packets[n].ts_ns = before_ns - random.bits() % 2_000_000,
                _ => {}
            }
        }
    }

    /// First and last packet time.
    pub fn times_ns(&self) -> (u64, u64) {
        let times = || self.packets.iter().map(|packet| packet.ts_ns);
        (times().min().expect("packets"), times().max().expect("packets"))
    }
}

impl Flow {
    /// Offset of the innermost network header in a frame.
    pub fn inner_at(&self) -> usize {
        ETHERNET_BYTES
            + match &self.wrap {
                Wrap::Plain => 0,
                Wrap::Vlan(_) => 4,
                Wrap::QinQ(..) => 8,
                Wrap::Mpls(labels) => 4 * labels.len(),
                Wrap::Vxlan(_) | Wrap::Geneve(_) => 20 + 8 + 8 + ETHERNET_BYTES,
                Wrap::Gre => 20 + 4,
            }
    }

    /// Whether the flow has ports that libpcap's `port` may look at.
    pub fn has_ports(&self) -> bool {
        !matches!(self.kind, Kind::Icmp | Kind::Arp | Kind::LaterFragments)
    }

    fn captured(&self, ts_ns: u64, mut data: Vec<u8>) -> Packet {
        let orig_len = data.len() as u32;
        data.truncate(self.snaplen_bytes.unwrap_or(usize::MAX));
        Packet { ts_ns, orig_len, data }
    }

    /// Packet number `n` of the flow; `back`: from `b` to `a`.
    fn frame(&self, random: &mut Random, n: usize, back: bool, payload: usize) -> Vec<u8> {
        let (ethertype, inner) = self.inner(random, n, back, payload);
        let slot = u32::from(self.slot);
        let (from, to) = if back { (slot + 0x1_0000, slot) } else { (slot, slot + 0x1_0000) };
        let ends = if back { (self.outer.1, self.outer.0) } else { self.outer };
        let outer = |protocol, payload: &[u8]| {
            frames::ipv4(ends.0, ends.1, protocol, &[], Fragment::Whole, payload)
        };
        let ether = |ethertype, payload: &[u8]| frames::ethernet(from, to, ethertype, payload);
        match &self.wrap {
            Wrap::Plain => ether(ethertype, &inner),
            Wrap::Vlan(id) => ether(0x8100, &frames::vlan(*id, ethertype, &inner)),
            Wrap::QinQ(id, inner_id) => {
                let tagged = frames::vlan(*inner_id, ethertype, &inner);
                ether(0x88a8, &frames::vlan(*id, 0x8100, &tagged))
            }
            Wrap::Mpls(labels) => ether(0x8847, &frames::mpls(labels, &inner)),
            Wrap::Vxlan(vni) => {
                let frame = frames::ethernet(7, 8, ethertype, &inner);
                ether(0x0800, &outer(17, &frames::vxlan(50_000, *vni, &frame)))
            }
            Wrap::Geneve(vni) => {
                let frame = frames::ethernet(7, 8, ethertype, &inner);
                ether(0x0800, &outer(17, &frames::geneve(50_001, *vni, &frame)))
            }
            Wrap::Gre => ether(0x0800, &outer(47, &frames::gre(ethertype, &inner))),
        }
    }

    /// Ethertype and bytes of what is wrapped.
    fn inner(&self, random: &mut Random, n: usize, back: bool, payload: usize) -> (u16, Vec<u8>) {
        let (from, to) = if back { (self.b, self.a) } else { (self.a, self.b) };
        let (from_port, to_port) =
            if back { (self.b_port, self.a_port) } else { (self.a_port, self.b_port) };
        let v6 = from.is_ipv6();
        let payload = random.bytes(payload);
        let flags = match (self.kind, n) {
            (Kind::TcpData, _) => TCP_PSH_ACK,
            (_, 0) => TCP_SYN,
            (_, 1) if back => TCP_SYN | 0x10,
            _ => *random.pick(&[0x10, TCP_PSH_ACK, TCP_PSH_ACK, 0x11, 0x04]),
        };
        let tcp = || frames::tcp(from_port, to_port, flags, &payload);
        let udp = || frames::udp(from_port, to_port, &payload);
        let later = Fragment::Later(185 * (1 + n as u16 % 8));
        let mut options = Vec::new();
        let mut fragment = Fragment::Whole;
        let (protocol, transport) = match self.kind {
            Kind::Arp => {
                let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) else {
                    unreachable!("ARP is for IPv4")
                };
                return (0x0806, frames::arp(1 + u16::from(back), from, to, &payload));
            }
            Kind::Tcp | Kind::TcpData => (6, tcp()),
            Kind::Udp => (17, udp()),
            Kind::Sctp => (132, frames::sctp(from_port, to_port, &payload)),
            Kind::Icmp if v6 => (58, frames::icmp(128 + u8::from(back), 0, &payload)),
            Kind::Icmp => (1, frames::icmp(if back { 0 } else { 8 }, 0, &payload)),
            Kind::Fragments | Kind::LaterFragments => {
                fragment = if n > 0 || self.kind == Kind::LaterFragments {
                    later
                } else {
                    Fragment::First
                };
                let datagram = if fragment == Fragment::First { udp() } else { payload.clone() };
                match v6 {
                    true => (44, frames::extension_fragment(17, fragment, &datagram)),
                    false => (17, datagram),
                }
            }
            Kind::Options => {
                options = vec![1, 1, 1, 1, 0x94, 4, 0, 0];
                (6, tcp())
            }
            Kind::Extensions => (0, frames::extension(60, &frames::extension(6, &tcp()))),
        };
        let ethertype = if v6 { 0x86dd } else { 0x0800 };
        (ethertype, frames::ip(from, to, protocol, &options, fragment, &transport))
    }
}

/// A flow of mixed traffic.
fn mixed(random: &mut Random, slot: u16, number: usize) -> Flow {
    let kind = match random.below(20) {
        0..8 => Kind::Tcp,
        8..12 => Kind::Udp,
        12 => Kind::Sctp,
        13 | 14 => Kind::Icmp,
        15 => Kind::Arp,
        16 => Kind::Fragments,
        17 => Kind::Options,
        18 => Kind::Extensions,
        _ => Kind::TcpData,
    };
    let wrap = match random.below(20) {
        0..10 => Wrap::Plain,
        10 | 11 => Wrap::Vlan(100 + slot),
        12 | 13 => Wrap::QinQ(200 + slot, 300 + slot),
        14 => Wrap::Mpls(vec![1000 + u32::from(slot)]),
        15 => Wrap::Mpls(vec![2000 + u32::from(slot), 3000 + u32::from(slot)]),
        16 => Wrap::Vxlan(5000 + u32::from(slot)),
        17 => Wrap::Geneve(6000 + u32::from(slot)),
        _ => Wrap::Gre,
    };
    // ARP stands directly behind Ethernet or a tag.
    let wrap = match wrap {
        Wrap::Mpls(_) | Wrap::Vxlan(_) | Wrap::Geneve(_) | Wrap::Gre if kind == Kind::Arp => {
            Wrap::Plain
        }
        wrap => wrap,
    };
    let v6 = match kind {
        Kind::Arp | Kind::Options => false,
        Kind::Extensions => true,
        _ => random.one_in(3),
    };
    let (client, server) = (1 + random.below(250) as u8, 1 + random.below(12) as u8);
    let net = random.below(4) as u8;
    let (a, b): (IpAddr, IpAddr) = if v6 {
        let (slot, client, net) = (slot + 1, u16::from(client), u16::from(net));
        let a = Ipv6Addr::new(0x2001, 0xdb8, slot, net, 0, 0, 0, client);
        (a.into(), Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, u16::from(server)).into())
    } else {
        let a = Ipv4Addr::new(10, slot as u8 + 1, net, client);
        (a.into(), Ipv4Addr::new(192, 168, net, server).into())
    };
    Flow {
        wrap,
        kind,
        a,
        b,
        a_port: 20_000 + slot * 500 + random.below(500) as u16,
        b_port: match random.below(6) {
            0 => 9000 + slot,
            _ => *random.pick(&[22, 53, 80, 123, 443, 443, 8080]),
        },
        outer: (
            Ipv4Addr::new(172, 16, slot as u8, 1 + (number % 5) as u8),
            Ipv4Addr::new(172, 31, 0, 1),
        ),
        slot,
        snaplen_bytes: random.one_in(16).then(|| 40 + random.below(60)),
    }
}

/// The flows that have stretches of their own, one of each sort.
fn bulks() -> Vec<Flow> {
    let sorts = [
        (Wrap::Plain, Kind::TcpData, false),
        (Wrap::Plain, Kind::Udp, false),
        (Wrap::Plain, Kind::Sctp, false),
        (Wrap::Plain, Kind::Icmp, false),
        (Wrap::Plain, Kind::TcpData, true),
        (Wrap::Plain, Kind::Arp, false),
        (Wrap::Plain, Kind::LaterFragments, false),
        (Wrap::Plain, Kind::Extensions, true),
        (Wrap::Plain, Kind::Options, false),
        (Wrap::Vlan(77), Kind::TcpData, false),
        (Wrap::QinQ(78, 79), Kind::TcpData, false),
        (Wrap::Mpls(vec![777]), Kind::TcpData, false),
        (Wrap::Vxlan(7777), Kind::TcpData, false),
        (Wrap::Geneve(7778), Kind::TcpData, false),
        (Wrap::Gre, Kind::TcpData, false),
    ];
    let flow = |(number, (wrap, kind, v6)): (usize, (Wrap, Kind, bool))| {
        let number = number as u8 + 1;
        let host = |end: u8| -> IpAddr {
            match v6 {
                true => {
                    let (net, end) = (0xff00 + u16::from(number), u16::from(end));
                    Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, end).into()
                }
                false => Ipv4Addr::new(10, 200 + number, 0, end).into(),
            }
        };
        Flow {
            wrap,
            kind,
            a: host(1),
            b: host(2),
            a_port: 60_000 + u16::from(number) * 10,
            b_port: 7000 + u16::from(number) * 10,
            outer: (Ipv4Addr::new(172, 17, number, 1), Ipv4Addr::new(172, 17, number, 2)),
            slot: 1000 + u16::from(number),
            snaplen_bytes: None,
        }
    };
    sorts.into_iter().enumerate().map(flow).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_capture_is_what_the_proofs_need() {
        let capture = Capture::new(1);
        assert!(capture.packets.len() >= 20_000, "{}", capture.packets.len());
        let bytes: usize = capture.packets.iter().map(|packet| packet.data.len()).sum();
        assert!(bytes >= 12 << 20, "{bytes}");
        let ends = |flow: &Flow| (flow.wrap.clone(), flow.a, flow.b, flow.a_port, flow.b_port);
        assert!(capture.flows.iter().map(ends).collect::<HashSet<_>>().len() > 3000);
        assert_eq!(capture.packets, Capture::new(1).packets);
        let pairs = || capture.packets.windows(2).map(|pair| (pair[0].ts_ns, pair[1].ts_ns));
        assert!(pairs().filter(|(a, b)| a == b).count() > 100);
        assert!(pairs().filter(|(a, b)| a > b).count() > 100);
        let cut = |packet: &&Packet| packet.data.len() < packet.orig_len as usize;
        assert!(capture.packets.iter().filter(cut).count() > 500);
    }
}
