//! Frame to flow key: one pass over the headers, once per packet, on the hot path.
//!
//! Invariants: no allocation, no panic; both ways taken here give the same key for the same frame.

use wirevault_format::{LinkType, VxlanPorts};

use crate::key::{Direction, FlowKey, KeyWriter, process_seed};
use crate::shape::{Fragment, Layer};
use crate::tunnel::is_tunnel_port;
use crate::walk::{dissect_layers, half, little, value};

/// What the headers of one frame say.
#[derive(Debug, Clone, Copy)]
pub struct Dissected {
    /// The flow, the same for both directions.
    pub key: FlowKey,
    /// Which way this packet goes.
    pub direction: Direction,
    /// Flags of the innermost TCP header; 0 if there is none, or if it was cut off.
    pub tcp_flags: u8,
    /// False if a header was cut off, contradicts itself, or lies deeper than a key can hold, or
    /// if the link type is not one of those taken apart here: the frame counts as unparsed.
    pub parsed: bool,
    /// Hash of the key under a seed drawn once per process, for the flow table.
    pub hash: u64,
}

const _: () = assert!(size_of::<Dissected>() <= 128, "copied in registers, see MAX_KEY_BYTES");

/// Takes the headers of a frame apart; VXLAN is what goes to one of the usual ports.
///
/// `data` are the captured bytes, from the link-layer header on. Any bytes will do.
#[inline]
pub fn dissect(link: LinkType, data: &[u8]) -> Dissected {
    dissect_with(&VxlanPorts::USUAL, link, data)
}

/// As [`dissect`]; VXLAN is what goes to one of `vxlan`, as the packet's interface says.
#[inline]
pub fn dissect_with(vxlan: &VxlanPorts, link: LinkType, data: &[u8]) -> Dissected {
    if link == LinkType::ETHERNET
        && let Some(dissected) = dissect_plain(vxlan, data)
    {
        return dissected;
    }
    dissect_layers(vxlan, link, data)
}

/// The way of most packets: TCP or UDP in IPv4 without options or in IPv6, untagged, whole.
/// Gives what [`dissect_layers`] gives, in a third of the time.
#[inline(always)]
fn dissect_plain(vxlan: &VxlanPorts, data: &[u8]) -> Option<Dissected> {
    let ethertype = half(data.first_chunk::<14>()?, 12);
    match ethertype {
        0x0800 => {
            let head: &[u8; 42] = data.first_chunk()?;
            if head[14] != 0x45 || half(head, 20) & 0x3fff != 0 {
                return None;
            }
            let (layer, tcp_flags) = plain_transport(vxlan, data, head[23], 34)?;
            let ip = Layer::Ipv4 { ihl: 5, fragment: Fragment::None, protocol: head[23] };
            let [a, b] = [value::<4>(data, 26), value::<4>(data, 30)];
            let [a, b] = [a, b].map(|addr| (addr, u128::from(u32::from_be_bytes(addr))));
            Some(plain_key([Layer::Ethernet { ethertype }, ip, layer], a, b, data, 34, tcp_flags))
        }
        0x86dd => {
            let head: &[u8; 62] = data.first_chunk()?;
            if head[14] >> 4 != 6 {
                return None;
            }
            let (layer, tcp_flags) = plain_transport(vxlan, data, head[20], 54)?;
            let ip = Layer::Ipv6 { next: head[20] };
            let [a, b] = [value::<16>(data, 22), value::<16>(data, 38)];
            let [a, b] = [a, b].map(|addr| (addr, u128::from_be_bytes(addr)));
            Some(plain_key([Layer::Ethernet { ethertype }, ip, layer], a, b, data, 54, tcp_flags))
        }
        _ => None,
    }
}

/// TCP with its flags, or UDP that is not to a tunnel's port.
#[inline(always)]
fn plain_transport(
    vxlan: &VxlanPorts,
    data: &[u8],
    protocol: u8,
    at: usize,
) -> Option<(Layer, u8)> {
    let rest = data.get(at..)?;
    match protocol {
        6 => Some((Layer::Tcp, rest.first_chunk::<20>()?[13])),
        17 => {
            let port = half(rest.first_chunk::<4>()?, 2);
            (!is_tunnel_port(port, vxlan)).then_some((Layer::Udp, 0))
        }
        _ => None,
    }
}

#[inline(always)]
fn plain_key<const N: usize>(
    layers: [Layer; 3],
    source: ([u8; N], u128),
    destination: ([u8; N], u128),
    data: &[u8],
    ports_at: u32,
    tcp_flags: u8,
) -> Dissected {
    let mut writer = KeyWriter::new();
    writer.put(u128::from(LinkType::ETHERNET.0), 2);
    let mut shape_bytes = 2;
    for layer in &layers {
        let record = layer.encode();
        writer.put(u128::from(record.bits), record.bytes);
        shape_bytes += record.bytes;
    }
    let [sport, dport] = [value::<2>(data, ports_at), value::<2>(data, ports_at + 2)];
    let swap = (source.1, sport) > (destination.1, dport);
    let direction = if swap { Direction::BtoA } else { Direction::AtoB };
    let ([a, b], [aport, bport]) = match direction {
        Direction::AtoB => ([source.0, destination.0], [sport, dport]),
        Direction::BtoA => ([destination.0, source.0], [dport, sport]),
    };
    writer.put(little(a), N);
    writer.put(little(b), N);
    writer.put(little(aport), 2);
    writer.put(little(bport), 2);
    let key = writer.finish(shape_bytes, 2 * N + 4);
    let hash = key.hash64(process_seed());
    Dissected { key, direction, tcp_flags, parsed: true, hash }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::shape::Layers;
    use crate::tunnel::{GENEVE_PORT, GTP_U_PORT};

    fn layers(d: &Dissected) -> Vec<Layer> {
        Layers::new(d.key.shape()).map(|layer| layer.unwrap().1).collect()
    }

    fn tcp_frame(from: [u8; 4], to: [u8; 4], sport: u16, dport: u16) -> Vec<u8> {
        let mut frame = vec![0; 54];
        frame[12] = 8;
        frame[14] = 0x45;
        frame[23] = 6;
        frame[26..30].copy_from_slice(&from);
        frame[30..34].copy_from_slice(&to);
        frame[34..36].copy_from_slice(&sport.to_be_bytes());
        frame[36..38].copy_from_slice(&dport.to_be_bytes());
        frame[47] = 0x12;
        frame
    }

    #[test]
    fn both_directions_share_a_key() {
        let to = dissect(LinkType::ETHERNET, &tcp_frame([10, 0, 0, 1], [10, 0, 0, 2], 9, 80));
        let from = dissect(LinkType::ETHERNET, &tcp_frame([10, 0, 0, 2], [10, 0, 0, 1], 80, 9));
        assert_eq!(to.key, from.key);
        assert_eq!(to.hash, from.hash);
        assert_eq!((to.direction, from.direction), (Direction::AtoB, Direction::BtoA));
        assert_eq!(to.key.values(), [10, 0, 0, 1, 10, 0, 0, 2, 0, 9, 0, 80]);
        assert_eq!((to.tcp_flags, to.parsed), (0x12, true));
    }

    #[test]
    fn ports_decide_between_equal_addresses() {
        let here = [127, 0, 0, 1];
        let to = dissect(LinkType::ETHERNET, &tcp_frame(here, here, 9, 80));
        let from = dissect(LinkType::ETHERNET, &tcp_frame(here, here, 80, 9));
        let same = dissect(LinkType::ETHERNET, &tcp_frame(here, here, 80, 80));
        assert_eq!(to.key, from.key);
        assert_ne!(to.direction, from.direction);
        assert_eq!(same.direction, Direction::AtoB);
    }

    proptest::proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn the_short_way_gives_the_same(
            mut frame in proptest::collection::vec(any::<u8>(), 40..90),
            v6: bool,
            protocol in prop_oneof![Just(6u8), Just(17), any::<u8>()],
            port in prop_oneof![Just(53u16), Just(GENEVE_PORT), Just(8472), Just(GTP_U_PORT)],
            equal: bool,
        ) {
            let (ethertype, ip, protocol_at, ports) =
                if v6 { ([0x86, 0xdd], 0x60, 20, 54) } else { ([8, 0], 0x45, 23, 34) };
            frame[12..14].copy_from_slice(&ethertype);
            frame[14] = ip;
            frame[protocol_at] = protocol;
            (frame[20], frame[21]) = if v6 { (protocol, 0) } else { (0x40, 0) };
            let (source, width) = if v6 { (22, 16) } else { (26, 4) };
            if equal && frame.len() >= source + 2 * width {
                frame.copy_within(source..source + width, source + width);
            }
            if let Some(place) = frame.get_mut(ports + 2..ports + 4) {
                place.copy_from_slice(&port.to_be_bytes());
            }
            if let Some(short) = dissect_plain(&VxlanPorts::USUAL, &frame) {
                let long = dissect_layers(&VxlanPorts::USUAL, LinkType::ETHERNET, &frame);
                prop_assert_eq!(short.key, long.key);
                prop_assert_eq!(short.direction, long.direction);
                prop_assert_eq!((short.tcp_flags, short.hash), (long.tcp_flags, long.hash));
                prop_assert!(short.parsed && long.parsed);
            }
        }
    }

    #[test]
    fn what_is_cut_says_so() {
        let frame = tcp_frame([1, 2, 3, 4], [5, 6, 7, 8], 1, 2);
        let cases = [
            (13, Layer::Cut { need: 14 }),
            (33, Layer::Cut { need: 20 }),
            (37, Layer::Cut { need: 4 }),
            (53, Layer::TcpCut),
        ];
        for (len, last) in cases {
            let cut = dissect(LinkType::ETHERNET, &frame[..len]);
            assert_eq!((layers(&cut).last(), cut.parsed), (Some(&last), false));
        }
    }

    #[test]
    fn a_key_never_overflows() {
        // IPv4 in IPv4 without end.
        let mut frame = vec![0; 14];
        frame[12] = 8;
        for _ in 0..40 {
            let mut header = [0; 20];
            (header[0], header[9]) = (0x45, 4);
            frame.extend_from_slice(&header);
        }
        let deep = dissect(LinkType::ETHERNET, &frame);
        assert_eq!(layers(&deep).last(), Some(&Layer::Deep));
        assert!(!deep.parsed);
    }
}
