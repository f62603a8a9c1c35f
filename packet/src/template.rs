//! The template: a packet of which some bits are known.
//!
//! A flow's template knows its addresses and ports; a shape's knows only where they lie. Both
//! stand for a set of packets, and [`crate::bpf::Program::decide`] answers for the whole set.

use crate::error::PacketError;
use crate::key::{Direction, FlowKey};
use crate::shape::{Fragment, Layer, Layers, ValueKind};
use crate::tunnel::{GENEVE_PORT, GTP_U_PORT, GTP_USER_PACKET, VXLAN_GPE_PORT};
use crate::walk::{ARP_FOR_IPV4, LENGTH_MAX};

/// Bytes of a packet that a template describes; later bytes are unknown. Headers of a frame with
/// two IPv6 layers, VLAN tags and a tunnel end before.
pub const TEMPLATE_BYTES: usize = 256;
/// Most places with something to say beyond bits. A key holds at most 10 pairs of values.
const PLACES_MAX: usize = 24;

/// What is known about a place in the packet beyond its bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// An IPv4 address, one of those the oracle knows.
    Addr4,
    /// An IPv6 address, one of those the oracle knows.
    Addr6,
    /// A port, one of those the oracle knows.
    Port,
    /// Two bytes of which at least one bit within the mask is set.
    NonZero(u16),
    /// Two bytes that make at most this number.
    AtMost(u16),
}

impl Place {
    pub(crate) const fn bytes(self) -> usize {
        match self {
            Self::Addr4 => 4,
            Self::Addr6 => 16,
            Self::Port | Self::NonZero(_) | Self::AtMost(_) => 2,
        }
    }
}

/// A packet of which some bits are known.
#[derive(Debug, Clone)]
pub struct Template {
    /// Known bits; unknown ones are 0.
    value: [u8; TEMPLATE_BYTES],
    /// 1 = the bit is known.
    mask: [u8; TEMPLATE_BYTES],
    pub(crate) wire_min: u32,
    pub(crate) wire_max: u32,
    pub(crate) captured_min: u32,
    pub(crate) captured_max: u32,
    tcp_flags_at: Option<usize>,
    places: [(u16, Place); PLACES_MAX],
    place_count: usize,
}

impl Template {
    fn unknown() -> Self {
        Self {
            value: [0; TEMPLATE_BYTES],
            mask: [0; TEMPLATE_BYTES],
            wire_min: 0,
            wire_max: u32::MAX,
            captured_min: 0,
            captured_max: u32::MAX,
            tcp_flags_at: None,
            places: [(0, Place::Addr4); PLACES_MAX],
            place_count: 0,
        }
    }

    pub(crate) fn of_key(key: &FlowKey, direction: Direction) -> Self {
        let mut template = Self::unknown();
        let mut values = key.values();
        // A key's shape was written by `dissect` or checked by `from_parts`.
        for (at, layer) in Layers::new(key.shape()).map_while(Result::ok) {
            template.layer(at, &layer);
            if let Some(pair) = layer.pair() {
                let width = pair.kind.bytes();
                let (a, rest) = values.split_at(width.min(values.len()));
                let (b, rest) = rest.split_at(width.min(rest.len()));
                values = rest;
                let (source, destination) = match direction {
                    Direction::AtoB => (a, b),
                    Direction::BtoA => (b, a),
                };
                template.know(at + pair.source, source);
                template.know(at + pair.destination, destination);
            }
        }
        template
    }

    pub(crate) fn of_shape(shape: &[u8]) -> Result<Self, PacketError> {
        let mut template = Self::unknown();
        for layer in Layers::new(shape) {
            let (at, layer) = layer?;
            template.layer(at, &layer);
            if let Some(pair) = layer.pair() {
                let place = match pair.kind {
                    ValueKind::Addr4 => Place::Addr4,
                    ValueKind::Addr6 => Place::Addr6,
                    ValueKind::Port => Place::Port,
                };
                template.place(at + pair.source, place);
                template.place(at + pair.destination, place);
            }
        }
        Ok(template)
    }

    /// Narrows the lengths to what was seen: on the wire, and captured. Bytes; bounds included.
    ///
    /// What the headers imply about the captured length is kept.
    pub fn set_lengths(&mut self, wire_min: u32, wire_max: u32, cap_min: u32, cap_max: u32) {
        self.wire_min = wire_min;
        self.wire_max = wire_max;
        self.captured_min = self.captured_min.max(cap_min);
        self.captured_max = self.captured_max.min(cap_max);
    }

    /// Tells which TCP flags were seen: `or` has those of any packet, `and` those of every packet.
    pub fn set_tcp_flags(&mut self, or: u8, and: u8) {
        if let Some(at) = self.tcp_flags_at {
            self.know_bits(at, !or | and, and);
        }
    }

    /// Where the flags byte of the innermost TCP header lies.
    pub fn tcp_flags_at(&self) -> Option<usize> {
        self.tcp_flags_at
    }

    /// Known bits of a byte as (mask, value); both 0 where nothing is known.
    pub fn byte(&self, at: usize) -> (u8, u8) {
        match (self.mask.get(at), self.value.get(at)) {
            (Some(mask), Some(value)) => (*mask, *value),
            _ => (0, 0),
        }
    }

    /// Fewest and most captured bytes.
    pub fn captured_bytes(&self) -> (u32, u32) {
        (self.captured_min, self.captured_max)
    }

    /// Whether this packet may be one that the template stands for.
    pub fn admits(&self, data: &[u8], wire_len: u32) -> bool {
        let captured = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let lengths = (self.captured_min..=self.captured_max).contains(&captured)
            && (self.wire_min..=self.wire_max).contains(&wire_len);
        let known = self.value.iter().zip(&self.mask);
        let bits = data.iter().zip(known).all(|(byte, (value, mask))| byte & mask == *value);
        let places = self.places().iter().all(|&(at, place)| {
            let Some(bytes) = data.get(usize::from(at)..).and_then(|d| d.first_chunk()) else {
                return true;
            };
            let half = u16::from_be_bytes(*bytes);
            match place {
                Place::NonZero(mask) => half & mask != 0,
                Place::AtMost(limit) => half <= limit,
                Place::Addr4 | Place::Addr6 | Place::Port => true,
            }
        });
        lengths && bits && places
    }

    pub(crate) fn places(&self) -> &[(u16, Place)] {
        &self.places[..self.place_count]
    }

    /// `size` bytes (1, 2 or 4) at `at`, big-endian: (unknown bits, known bits).
    #[inline]
    pub(crate) fn load(&self, at: usize, size: usize) -> (u32, u32) {
        if let (4, Some(value), Some(mask)) = (size, chunk(&self.value, at), chunk(&self.mask, at))
        {
            return (!u32::from_be_bytes(mask), u32::from_be_bytes(value));
        }
        let mut unknown = 0;
        let mut value = 0;
        for i in at..at.saturating_add(size) {
            let (byte_mask, byte) = self.byte(i);
            unknown = unknown << 8 | u32::from(!byte_mask);
            value = value << 8 | u32::from(byte);
        }
        (unknown, value)
    }

    fn know(&mut self, at: usize, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            self.know_bits(at + i, 0xff, *byte);
        }
    }

    /// Adds known bits; `value` must lie within `mask`.
    fn know_bits(&mut self, at: usize, mask: u8, value: u8) {
        if let (Some(m), Some(v)) = (self.mask.get_mut(at), self.value.get_mut(at)) {
            *m |= mask;
            *v = *v & !mask | value;
        }
    }

    fn place(&mut self, at: usize, place: Place) {
        // What does not fit is merely unknown.
        if at + place.bytes() <= TEMPLATE_BYTES
            && let Some(slot) = self.places.get_mut(self.place_count)
        {
            *slot = (at as u16, place);
            self.place_count += 1;
        }
    }

    /// Writes what a layer's record says about its header.
    fn layer(&mut self, at: usize, layer: &Layer) {
        if layer.need() > 0 {
            self.captured_min = self.captured_min.max((at + layer.need()) as u32);
        }
        match *layer {
            Layer::Ethernet { ethertype } => self.know(at + 12, &ethertype.to_be_bytes()),
            Layer::Ethernet8023 => self.length_8023(at + 12),
            Layer::Vlan { vid, ethertype } => {
                self.vlan_id(at, vid);
                self.know(at + 2, &ethertype.to_be_bytes());
            }
            Layer::Vlan8023 { vid } => {
                self.vlan_id(at, vid);
                self.length_8023(at + 2);
            }
            Layer::Mpls { label, bottom } => {
                let [a, b, c, _] = (label << 12 | u32::from(bottom) << 8).to_be_bytes();
                self.know(at, &[a, b]);
                self.know_bits(at + 2, 0xf1, c);
            }
            Layer::Pppoe { session, protocol } => {
                self.know(at, &[0x11, 0]);
                self.know(at + 2, &session.to_be_bytes());
                self.know(at + 6, &protocol.to_be_bytes());
            }
            Layer::Ipv4 { ihl, fragment, protocol } => {
                self.know(at, &[0x40 | ihl]);
                match fragment {
                    Fragment::None => self.know_half(at + 6, 0x3fff, 0),
                    Fragment::First => self.know_half(at + 6, 0x3fff, 0x2000),
                    Fragment::Later => self.place(at + 6, Place::NonZero(0x1fff)),
                }
                self.know(at + 9, &[protocol]);
            }
            Layer::Ipv6 { next } => {
                self.know_bits(at, 0xf0, 0x60);
                self.know(at + 6, &[next]);
            }
            Layer::Extension { length, next, .. } => self.know(at, &[next, length]),
            Layer::Fragment6 { fragment, next } => {
                self.know(at, &[next]);
                match fragment {
                    Fragment::None => self.know_half(at + 2, 0xfff9, 0),
                    Fragment::First => self.know_half(at + 2, 0xfff9, 1),
                    Fragment::Later => self.place(at + 2, Place::NonZero(0xfff8)),
                }
            }
            Layer::Tcp | Layer::TcpCut => self.tcp_flags_at = Some(at + 13),
            Layer::Udp | Layer::Sctp => {}
            Layer::Icmp { kind, code } => self.know(at, &[kind, code]),
            Layer::Vxlan { port, vni } => {
                self.know(at + 2, &port.to_be_bytes());
                self.know_bits(at + 8, 8, 8);
                self.know(at + 12, &vni.to_be_bytes()[1..]);
            }
            Layer::Geneve { option_words, protocol, vni } => {
                self.know(at + 2, &GENEVE_PORT.to_be_bytes());
                self.know(at + 8, &[option_words]);
                self.know(at + 10, &protocol.to_be_bytes());
                self.know(at + 12, &vni.to_be_bytes()[1..]);
            }
            Layer::Gre { flags, protocol } => {
                self.know(at, &flags.to_be_bytes());
                self.know(at + 2, &protocol.to_be_bytes());
            }
            Layer::Arp { operation } => {
                self.know(at, &ARP_FOR_IPV4);
                self.know(at + 6, &operation.to_be_bytes());
            }
            Layer::Llc { dsap, ssap, control } => {
                self.know(at, &[dsap, ssap]);
                if let Some(control) = control {
                    self.know(at + 2, &[control]);
                }
            }
            Layer::Snap { oui, protocol } => {
                self.know(at, &oui.to_be_bytes()[1..]);
                self.know(at + 3, &protocol.to_be_bytes());
            }
            Layer::Sll { hardware, protocol } => {
                self.know(at + 2, &hardware.to_be_bytes());
                self.know(at + 14, &protocol.to_be_bytes());
            }
            Layer::Sll2 { hardware, protocol } => {
                self.know(at, &protocol.to_be_bytes());
                self.know(at + 8, &hardware.to_be_bytes());
            }
            Layer::Loopback { family } => self.know(at, &family),
            Layer::Cut { need } => {
                let short = (at + usize::from(need)).saturating_sub(1) as u32;
                self.captured_max = self.captured_max.min(short);
            }
            Layer::Malformed | Layer::Deep => {}
            Layer::VxlanGpe { next, vni } => {
                self.know(at + 2, &VXLAN_GPE_PORT.to_be_bytes());
                self.know_bits(at + 8, 0x0c, 0x0c);
                self.know(at + 11, &[next]);
                self.know(at + 12, &vni.to_be_bytes()[1..]);
            }
            Layer::Erspan2 { vlan, session } => {
                self.know(at, &(0x1000 | vlan).to_be_bytes());
                self.know_half(at + 2, 0x03ff, session);
            }
            Layer::Erspan3 { vlan, session, frame_type, subheader } => {
                self.know(at, &(0x2000 | vlan).to_be_bytes());
                self.know_half(at + 2, 0x03ff, session);
                self.know_bits(at + 10, 0x7c, frame_type << 2);
                self.know_bits(at + 11, 1, u8::from(subheader));
            }
            Layer::GtpU { flags, .. } => {
                self.know(at + 2, &GTP_U_PORT.to_be_bytes());
                self.know(at + 8, &[flags, GTP_USER_PACKET]);
            }
            Layer::ControlWord => self.know(at, &[0, 0]),
        }
    }

    fn vlan_id(&mut self, at: usize, vid: u16) {
        self.know_half(at, 0x0fff, vid);
    }

    /// An 802.3 length; its five high bits are 0.
    fn length_8023(&mut self, at: usize) {
        self.know_half(at, 0xf800, 0);
        self.place(at, Place::AtMost(LENGTH_MAX));
    }

    fn know_half(&mut self, at: usize, mask: u16, value: u16) {
        let ([m0, m1], [v0, v1]) = (mask.to_be_bytes(), value.to_be_bytes());
        self.know_bits(at, m0, v0);
        self.know_bits(at + 1, m1, v1);
    }
}

fn chunk(bytes: &[u8; TEMPLATE_BYTES], at: usize) -> Option<[u8; 4]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use wirevault_format::LinkType;

    use crate::dissect;

    #[test]
    fn a_template_admits_its_packet_and_its_flow_only() {
        let mut frame = [0u8; 42];
        (frame[12], frame[14], frame[23], frame[29], frame[33]) = (8, 0x45, 17, 1, 2);
        (frame[35], frame[37]) = (53, 99);
        let d = dissect(LinkType::ETHERNET, &frame);
        let template = d.key.template(d.direction);
        assert!(template.admits(&frame, 42));
        assert_eq!(template.captured_bytes(), (38, u32::MAX));
        // MAC addresses, DF, identification and TTL may differ; a port may not.
        for (at, same) in [(0, true), (20, false), (18, true), (22, true), (35, false)] {
            let mut other = frame;
            other[at] ^= 0x21;
            assert_eq!(template.admits(&other, 42), same, "byte {at}");
        }
        frame[20] |= 0x40;
        assert!(template.admits(&frame, 42));
    }

    #[test]
    fn flags_and_lengths_narrow() {
        let mut frame = [0u8; 60];
        (frame[12], frame[14], frame[23]) = (8, 0x45, 6);
        let d = dissect(LinkType::ETHERNET, &frame);
        let mut template = d.key.template(d.direction);
        template.set_tcp_flags(0x12, 0x10);
        template.set_lengths(60, 1514, 60, 96);
        assert_eq!(template.tcp_flags_at(), Some(47));
        assert_eq!(template.byte(47), (0xfd, 0x10));
        assert!(!template.admits(&frame, 60));
        frame[47] = 0x12;
        assert!(template.admits(&frame, 60));
        assert!(!template.admits(&frame, 1515));
    }
}
