//! The general way from a frame to its key: header after header, whatever they are.
//!
//! Invariants: no allocation, no panic; every step consumes key room, so the walk ends.

use wirevault_format::{LinkType, VxlanPorts};

use crate::dissect::Dissected;
use crate::key::{Direction, KeyWriter, MAX_KEY_BYTES, SHAPE_AT, process_seed};
use crate::shape::{Fragment, Layer, ValueKind};
use crate::tunnel::{
    ERSPAN_FRAME_ETHERNET, ERSPAN_FRAME_IP, ERSPAN_I_II, ERSPAN_III, GENEVE_PORT, GPE_ETHERNET,
    GPE_IPV4, GPE_IPV6, GRE_OTHER, GRE_SEQUENCE, GTP_U_PORT, Pseudowire, TRANSPARENT_ETHERNET,
    VXLAN_GPE_PORT, gtp_user_packet, is_tunnel_port, pseudowire,
};

/// Follows the headers one by one.
#[inline(never)]
pub(crate) fn dissect_layers(vxlan: &VxlanPorts, link: LinkType, data: &[u8]) -> Dissected {
    let mut walk = Walk::new(vxlan, link, data);
    let mut next = match link {
        LinkType::ETHERNET => Next::Ethernet,
        LinkType::RAW => Next::IpAny,
        LinkType::IPV4 => Next::Ipv4,
        LinkType::IPV6 => Next::Ipv6,
        LinkType::LINUX_SLL => Next::Sll,
        LinkType::LINUX_SLL2 => Next::Sll2,
        LinkType::NULL | LinkType::LOOP => Next::Loopback,
        _ => Next::Unknown,
    };
    loop {
        next = match next {
            Next::Ethernet => walk.ethernet(),
            Next::Type(ethertype) => by_ethertype(ethertype),
            Next::Vlan => walk.vlan(),
            Next::Mpls => walk.mpls(),
            Next::MplsPayload => walk.mpls_payload(),
            Next::Pppoe => walk.pppoe(),
            Next::IpAny => walk.ip_any(),
            Next::Ipv4 => walk.ipv4(),
            Next::Ipv6 => walk.ipv6(),
            Next::Protocol { number, v6 } => walk.protocol(number, v6),
            Next::Erspan => walk.erspan(),
            Next::Arp => walk.arp(),
            Next::Llc => walk.llc(),
            Next::Sll => walk.sll(),
            Next::Sll2 => walk.sll2(),
            Next::Loopback => walk.loopback(),
            Next::Unknown => {
                walk.parsed = false;
                break;
            }
            Next::End => break,
        };
    }
    walk.finish()
}

/// Which header comes next.
#[derive(Clone, Copy)]
enum Next {
    Ethernet,
    Type(u16),
    Vlan,
    Mpls,
    MplsPayload,
    Pppoe,
    IpAny,
    Ipv4,
    Ipv6,
    Protocol { number: u8, v6: bool },
    Erspan,
    Arp,
    Llc,
    Sll,
    Sll2,
    Loopback,
    Unknown,
    End,
}

#[inline(always)]
fn by_ethertype(ethertype: u16) -> Next {
    match ethertype {
        0x0800 => Next::Ipv4,
        0x86dd => Next::Ipv6,
        0x8100 | 0x88a8 | 0x9100 => Next::Vlan,
        0x8847 | 0x8848 => Next::Mpls,
        0x8864 => Next::Pppoe,
        0x0806 | 0x8035 => Next::Arp,
        _ => Next::End,
    }
}

/// Highest value of the type field that is an 802.3 length (what libpcap takes for one).
pub(crate) const LENGTH_MAX: u16 = 1500;
/// Most layers with values that fit a key: the smallest is IPv4 with 3 + 8 bytes.
const PAIRS_MAX: usize = 12;
const _: () = assert!(PAIRS_MAX * 11 > MAX_KEY_BYTES, "the key is full before the list of pairs");
/// Bytes of the record that says why a walk ended, always kept free.
const LAST_RECORD_BYTES: usize = 2;

/// Offsets in the frame of a pair of values, and what they are.
#[derive(Clone, Copy)]
struct PairAt {
    kind: ValueKind,
    source: u32,
    destination: u32,
}

struct Walk<'a> {
    vxlan: &'a VxlanPorts,
    data: &'a [u8],
    /// Where the next header starts; may lie behind the captured bytes.
    at: usize,
    writer: KeyWriter,
    shape_bytes: usize,
    values_bytes: usize,
    pairs: [PairAt; PAIRS_MAX],
    pair_count: usize,
    tcp_flags: u8,
    parsed: bool,
}

impl<'a> Walk<'a> {
    #[inline(always)]
    fn new(vxlan: &'a VxlanPorts, link: LinkType, data: &'a [u8]) -> Self {
        let mut writer = KeyWriter::new();
        writer.put(u128::from(link.0), 2);
        Self {
            vxlan,
            data,
            at: 0,
            writer,
            shape_bytes: 2,
            values_bytes: 0,
            pairs: [PairAt { kind: ValueKind::Port, source: 0, destination: 0 }; PAIRS_MAX],
            pair_count: 0,
            tcp_flags: 0,
            parsed: true,
        }
    }

    /// The first `N` bytes of the next header, if they were captured.
    #[inline(always)]
    fn head<const N: usize>(&self) -> Option<&'a [u8; N]> {
        self.data.get(self.at..)?.first_chunk()
    }

    /// Records a layer and moves behind its header.
    #[inline(always)]
    fn push(&mut self, layer: Layer, next: Next) -> Next {
        let record = layer.encode();
        let pair = layer.pair();
        let values = pair.map_or(0, |pair| pair.kind.bytes() * 2);
        let sum = SHAPE_AT + self.shape_bytes + record.bytes + self.values_bytes + values;
        if sum + LAST_RECORD_BYTES > MAX_KEY_BYTES {
            return self.stop(Layer::Deep);
        }
        self.writer.put(u128::from(record.bits), record.bytes);
        self.shape_bytes += record.bytes;
        if let (Some(pair), Some(slot)) = (pair, self.pairs.get_mut(self.pair_count)) {
            *slot = PairAt {
                kind: pair.kind,
                source: (self.at + pair.source) as u32,
                destination: (self.at + pair.destination) as u32,
            };
            self.pair_count += 1;
            self.values_bytes += values;
        }
        self.at += layer.header_bytes();
        next
    }

    /// Records why the walk ends here.
    #[cold]
    fn stop(&mut self, layer: Layer) -> Next {
        let record = layer.encode();
        self.writer.put(u128::from(record.bits), record.bytes);
        self.shape_bytes += record.bytes;
        self.parsed = false;
        Next::End
    }

    #[cold]
    fn cut(&mut self, need: u8) -> Next {
        self.stop(Layer::Cut { need })
    }

    #[inline(always)]
    fn ethernet(&mut self) -> Next {
        let Some(head) = self.head::<14>() else { return self.cut(14) };
        let ethertype = half(head, 12);
        if ethertype <= LENGTH_MAX {
            return self.push(Layer::Ethernet8023, Next::Llc);
        }
        self.push(Layer::Ethernet { ethertype }, Next::Type(ethertype))
    }

    fn vlan(&mut self) -> Next {
        let Some(head) = self.head::<4>() else { return self.cut(4) };
        let (vid, ethertype) = (half(head, 0) & 0xfff, half(head, 2));
        if ethertype <= LENGTH_MAX {
            return self.push(Layer::Vlan8023 { vid }, Next::Llc);
        }
        self.push(Layer::Vlan { vid, ethertype }, Next::Type(ethertype))
    }

    fn mpls(&mut self) -> Next {
        let Some(head) = self.head::<4>() else { return self.cut(4) };
        let label = u32::from_be_bytes(*head) >> 12;
        let bottom = head[2] & 1 == 1;
        let next = if bottom { Next::MplsPayload } else { Next::Mpls };
        self.push(Layer::Mpls { label, bottom }, next)
    }

    /// What the label stack carries has no type field: IP, or a pseudowire's Ethernet frame.
    fn mpls_payload(&mut self) -> Next {
        let rest = self.data.get(self.at..).unwrap_or_default();
        match pseudowire(rest) {
            Some(Pseudowire::Plain) => Next::Ethernet,
            Some(Pseudowire::ControlWord) => self.push(Layer::ControlWord, Next::Ethernet),
            None => self.ip_any(),
        }
    }

    fn pppoe(&mut self) -> Next {
        let Some(head) = self.head::<8>() else { return self.cut(8) };
        // An odd first byte is a protocol field shortened to one byte.
        if head[0] != 0x11 || head[1] != 0 || head[6] & 1 == 1 {
            return self.stop(Layer::Malformed);
        }
        let protocol = half(head, 6);
        let next = match protocol {
            0x0021 => Next::Ipv4,
            0x0057 => Next::Ipv6,
            _ => Next::End,
        };
        self.push(Layer::Pppoe { session: half(head, 2), protocol }, next)
    }

    /// IP without a type field before it. Anything else, such as a pseudowire, is left alone.
    fn ip_any(&mut self) -> Next {
        match self.head::<1>() {
            None => self.cut(1),
            Some([byte]) if byte >> 4 == 4 => Next::Ipv4,
            Some([byte]) if byte >> 4 == 6 => Next::Ipv6,
            Some(_) => Next::End,
        }
    }

    #[inline(always)]
    fn ipv4(&mut self) -> Next {
        let Some(head) = self.head::<20>() else { return self.cut(20) };
        let (version, ihl) = (head[0] >> 4, head[0] & 0xf);
        if version != 4 || ihl < 5 {
            return self.stop(Layer::Malformed);
        }
        let number = head[9];
        let (fragment, next) = match half(head, 6) & 0x3fff {
            0 => (Fragment::None, Next::Protocol { number, v6: false }),
            0x2000 => (Fragment::First, Next::Protocol { number, v6: false }),
            _ => (Fragment::Later, Next::End),
        };
        // 0x2000 alone is "more fragments" with offset 0; any other bits are an offset.
        self.push(Layer::Ipv4 { ihl, fragment, protocol: number }, next)
    }

    #[inline(always)]
    fn ipv6(&mut self) -> Next {
        let Some(head) = self.head::<40>() else { return self.cut(40) };
        if head[0] >> 4 != 6 {
            return self.stop(Layer::Malformed);
        }
        let next = head[6];
        self.push(Layer::Ipv6 { next }, Next::Protocol { number: next, v6: true })
    }

    #[inline(always)]
    fn protocol(&mut self, number: u8, v6: bool) -> Next {
        match number {
            6 => self.tcp(),
            17 => self.udp(),
            132 => match self.head::<4>() {
                Some(_) => self.push(Layer::Sctp, Next::End),
                None => self.cut(4),
            },
            1 if !v6 => self.icmp(),
            58 if v6 => self.icmp(),
            4 => Next::Ipv4,
            41 => Next::Ipv6,
            47 => self.gre(),
            137 => Next::Mpls,
            0 | 43 | 51 | 60 if v6 => {
                let Some(head) = self.head::<2>() else { return self.cut(2) };
                let [next, length] = *head;
                let layer = Layer::Extension { kind: number, length, next };
                self.push(layer, Next::Protocol { number: next, v6 })
            }
            44 if v6 => self.fragment6(),
            _ => Next::End,
        }
    }

    fn fragment6(&mut self) -> Next {
        let Some(head) = self.head::<8>() else { return self.cut(8) };
        let next = head[0];
        let onward = Next::Protocol { number: next, v6: true };
        let (fragment, onward) = match half(head, 2) & 0xfff9 {
            0 => (Fragment::None, onward),
            1 => (Fragment::First, onward),
            _ => (Fragment::Later, Next::End),
        };
        self.push(Layer::Fragment6 { fragment, next }, onward)
    }

    #[inline(always)]
    fn tcp(&mut self) -> Next {
        if let Some(head) = self.head::<20>() {
            let next = self.push(Layer::Tcp, Next::End);
            self.tcp_flags = if self.parsed { head[13] } else { 0 };
            return next;
        }
        let flags = self.head::<14>().map_or(0, |head| head[13]);
        if self.head::<4>().is_none() {
            return self.cut(4);
        }
        let next = self.push(Layer::TcpCut, Next::End);
        self.tcp_flags = if self.parsed { flags } else { 0 };
        self.parsed = false;
        next
    }

    #[inline(always)]
    fn udp(&mut self) -> Next {
        let Some(head) = self.head::<4>() else { return self.cut(4) };
        let port = half(head, 2);
        if is_tunnel_port(port, self.vxlan) {
            return self.tunnel(port);
        }
        self.push(Layer::Udp, Next::End)
    }

    /// UDP to a tunnel's port; if no tunnel header follows, it is a flow like any other.
    fn tunnel(&mut self, port: u16) -> Next {
        let Some(head) = self.head::<16>() else { return self.push(Layer::Udp, Next::End) };
        let vni = u32::from_be_bytes([0, head[12], head[13], head[14]]);
        match port {
            GENEVE_PORT if head[8] >> 6 == 0 => {
                let protocol = half(head, 10);
                let layer = Layer::Geneve { option_words: head[8] & 0x3f, protocol, vni };
                self.push(layer, by_tunnel_type(protocol))
            }
            VXLAN_GPE_PORT if head[8] & 0x0c == 0x0c => {
                let next = match head[11] {
                    GPE_IPV4 => Next::Ipv4,
                    GPE_IPV6 => Next::Ipv6,
                    GPE_ETHERNET => Next::Ethernet,
                    _ => Next::End,
                };
                self.push(Layer::VxlanGpe { next: head[11], vni }, next)
            }
            GTP_U_PORT => {
                let message = self.data.get(self.at + 8..).unwrap_or_default();
                match gtp_user_packet(message, half(head, 4)) {
                    Some(words) => self.push(Layer::GtpU { flags: head[8], words }, Next::IpAny),
                    None => self.push(Layer::Udp, Next::End),
                }
            }
            _ if self.vxlan.contains(port) && head[8] & 0x08 != 0 => {
                self.push(Layer::Vxlan { port, vni }, Next::Ethernet)
            }
            _ => self.push(Layer::Udp, Next::End),
        }
    }

    fn gre(&mut self) -> Next {
        let Some(head) = self.head::<4>() else { return self.cut(4) };
        let (flags, protocol) = (half(head, 0), half(head, 2));
        let next = match protocol {
            _ if flags & GRE_OTHER != 0 => Next::End,
            // Type I has neither a sequence number nor a header.
            ERSPAN_I_II if flags & GRE_SEQUENCE == 0 => Next::Ethernet,
            ERSPAN_I_II | ERSPAN_III => Next::Erspan,
            _ => by_tunnel_type(protocol),
        };
        self.push(Layer::Gre { flags, protocol }, next)
    }

    fn erspan(&mut self) -> Next {
        let Some(head) = self.head::<8>() else { return self.cut(8) };
        let (vlan, session) = (half(head, 0) & 0x0fff, half(head, 2) & 0x03ff);
        match head[0] >> 4 {
            1 => self.push(Layer::Erspan2 { vlan, session }, Next::Ethernet),
            2 => {
                let Some(head) = self.head::<12>() else { return self.cut(12) };
                let (frame_type, subheader) = (head[10] >> 2 & 0x1f, head[11] & 1 == 1);
                let next = match frame_type {
                    ERSPAN_FRAME_ETHERNET => Next::Ethernet,
                    ERSPAN_FRAME_IP => Next::IpAny,
                    _ => Next::End,
                };
                self.push(Layer::Erspan3 { vlan, session, frame_type, subheader }, next)
            }
            _ => self.stop(Layer::Malformed),
        }
    }

    fn icmp(&mut self) -> Next {
        let Some(head) = self.head::<2>() else { return self.cut(2) };
        let [kind, code] = *head;
        self.push(Layer::Icmp { kind, code }, Next::End)
    }

    fn arp(&mut self) -> Next {
        let Some(head) = self.head::<28>() else { return self.cut(28) };
        if head[..6] != ARP_FOR_IPV4 {
            return Next::End;
        }
        self.push(Layer::Arp { operation: half(head, 6) }, Next::End)
    }

    fn llc(&mut self) -> Next {
        let Some(head) = self.head::<3>() else { return self.cut(3) };
        let [dsap, ssap, control] = *head;
        let unnumbered = (control & 3 == 3).then_some(control);
        let next = self.push(Layer::Llc { dsap, ssap, control: unnumbered }, Next::Llc);
        match (next, *head) {
            (Next::Llc, [0xaa, 0xaa, 3]) => self.snap(),
            _ => Next::End,
        }
    }

    fn snap(&mut self) -> Next {
        let Some(head) = self.head::<5>() else { return self.cut(5) };
        let oui = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let protocol = half(head, 3);
        let next = if oui == 0 { Next::Type(protocol) } else { Next::End };
        self.push(Layer::Snap { oui, protocol }, next)
    }

    fn sll(&mut self) -> Next {
        let Some(head) = self.head::<16>() else { return self.cut(16) };
        let (hardware, protocol) = (half(head, 2), half(head, 14));
        self.push(Layer::Sll { hardware, protocol }, by_cooked_type(protocol))
    }

    fn sll2(&mut self) -> Next {
        let Some(head) = self.head::<20>() else { return self.cut(20) };
        let (hardware, protocol) = (half(head, 8), half(head, 0));
        self.push(Layer::Sll2 { hardware, protocol }, by_cooked_type(protocol))
    }

    fn loopback(&mut self) -> Next {
        let Some(&family) = self.head::<4>() else { return self.cut(4) };
        // The writer's byte order is not known for NULL; a family is a small number either way.
        let number = match family {
            [n, 0, 0, 0] | [0, 0, 0, n] => n,
            _ => 0,
        };
        let next = match number {
            2 => Next::Ipv4,
            10 | 24 | 28 | 30 => Next::Ipv6,
            _ => Next::End,
        };
        self.push(Layer::Loopback { family }, next)
    }

    /// Orders the endpoints and copies the values behind the shape.
    #[inline(always)]
    fn finish(&mut self) -> Dissected {
        let pairs = &self.pairs[..self.pair_count.min(PAIRS_MAX)];
        let direction = direction_of(self.data, pairs);
        for pair in pairs {
            let places = match direction {
                Direction::AtoB => [pair.source, pair.destination],
                Direction::BtoA => [pair.destination, pair.source],
            };
            for at in places {
                match pair.kind {
                    ValueKind::Addr4 => self.writer.put(little(value::<4>(self.data, at)), 4),
                    ValueKind::Addr6 => self.writer.put(little(value::<16>(self.data, at)), 16),
                    ValueKind::Port => self.writer.put(little(value::<2>(self.data, at)), 2),
                }
            }
        }
        let key = self.writer.finish(self.shape_bytes, self.values_bytes);
        let hash = key.hash64(process_seed());
        Dissected { key, direction, tcp_flags: self.tcp_flags, parsed: self.parsed, hash }
    }
}

/// Hardware type Ethernet, protocol IPv4, address lengths 6 and 4.
pub(crate) const ARP_FOR_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// What GRE and GENEVE carry: as on Ethernet, and Ethernet itself.
fn by_tunnel_type(protocol: u16) -> Next {
    if protocol == TRANSPARENT_ETHERNET { Next::Ethernet } else { by_ethertype(protocol) }
}

/// What Linux cooked headers carry: as on Ethernet, and 802.2 under a number of its own.
fn by_cooked_type(protocol: u16) -> Next {
    if protocol == 4 { Next::Llc } else { by_ethertype(protocol) }
}

/// Compares the innermost addresses, then the ports above them.
#[inline(always)]
fn direction_of(data: &[u8], pairs: &[PairAt]) -> Direction {
    let Some((last, before)) = pairs.split_last() else { return Direction::AtoB };
    let order = match (last.kind, before.last()) {
        (ValueKind::Port, Some(address)) => order(data, address).then_with(|| order(data, last)),
        _ => order(data, last),
    };
    if order.is_gt() { Direction::BtoA } else { Direction::AtoB }
}

#[inline(always)]
fn order(data: &[u8], pair: &PairAt) -> std::cmp::Ordering {
    let [a, b] = [pair.source, pair.destination].map(|at| match pair.kind {
        ValueKind::Addr4 => u128::from(u32::from_be_bytes(value(data, at))),
        ValueKind::Addr6 => u128::from_be_bytes(value(data, at)),
        ValueKind::Port => u128::from(u16::from_be_bytes(value(data, at))),
    });
    a.cmp(&b)
}

/// Bytes of a value. A layer is recorded only with all its values captured.
#[inline(always)]
pub(crate) fn value<const N: usize>(data: &[u8], at: u32) -> [u8; N] {
    data.get(at as usize..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

/// The bytes as a number, first byte lowest.
#[inline(always)]
pub(crate) fn little<const N: usize>(bytes: [u8; N]) -> u128 {
    match bytes[..] {
        [a, b] => u128::from(u16::from_le_bytes([a, b])),
        [a, b, c, d] => u128::from(u32::from_le_bytes([a, b, c, d])),
        _ => bytes.first_chunk().map_or(0, |all| u128::from_le_bytes(*all)),
    }
}

#[inline(always)]
pub(crate) fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}
