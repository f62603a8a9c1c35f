//! What of a packet is the same at two places that it passes, as one number.
//!
//! Two mirrors that see one packet see other link headers, tags, hop limits and padding. So an IP
//! packet counts from its header on, without the fields that every router changes, and as far as
//! its own length says; anything else counts whole.

use twox_hash::XxHash3_64;
use wirevault_format::LinkType;

use crate::walk::half;

/// VLAN tags in front of IP that are passed over at most; real frames have two.
const TAGS_MAX: usize = 4;
const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;

/// A number that two copies of a packet share, and two other packets but by a chance of 2^-64.
///
/// The frame's captured bytes are `head`, then `data`; `head` is empty or ends with the frame's
/// type. Copies that were captured to different lengths have different numbers. Never panics.
#[inline]
pub fn fingerprint(link: LinkType, head: &[u8], data: &[u8], wire_len: u32, seed: u64) -> u64 {
    let ip = match (link, head.last_chunk::<2>()) {
        (LinkType::ETHERNET, Some(ethertype)) => {
            behind_tags(data, u16::from_be_bytes(*ethertype), 0)
        }
        (LinkType::ETHERNET, None) => {
            data.first_chunk::<14>().and_then(|frame| behind_tags(data, half(frame, 12), 14))
        }
        (LinkType::RAW | LinkType::IPV4 | LinkType::IPV6, _) => Some(data),
        _ => None,
    };
    match ip.and_then(split_ip) {
        Some((header, rest)) => {
            let outer = XxHash3_64::oneshot_with_seed(seed, &header);
            XxHash3_64::oneshot_with_seed(outer, rest)
        }
        None => {
            let seed = seed ^ u64::from(wire_len) << 16 ^ u64::from(link.0);
            XxHash3_64::oneshot_with_seed(XxHash3_64::oneshot_with_seed(seed, head), data)
        }
    }
}

/// The IP packet behind a type field and the tags that it announces.
fn behind_tags(data: &[u8], ethertype: u16, at: usize) -> Option<&[u8]> {
    let (mut ethertype, mut at) = (ethertype, at);
    for _ in 0..TAGS_MAX {
        if !matches!(ethertype, 0x8100 | 0x88a8 | 0x9100) {
            break;
        }
        ethertype = half(data.get(at..)?.first_chunk::<4>()?, 2);
        at += 4;
    }
    matches!(ethertype, 0x0800 | 0x86dd).then(|| data.get(at..)).flatten()
}

/// The fixed header without what routers change, and what follows within the packet's length.
fn split_ip(packet: &[u8]) -> Option<([u8; IPV6_BYTES], &[u8])> {
    let mut header = [0; IPV6_BYTES];
    let (bytes, end) = match packet.first()? >> 4 {
        4 => {
            let fixed: &[u8; IPV4_BYTES] = packet.first_chunk()?;
            header[..IPV4_BYTES].copy_from_slice(fixed);
            (header[8], header[10], header[11]) = (0, 0, 0);
            (IPV4_BYTES, usize::from(half(fixed, 2)))
        }
        6 => {
            header = *packet.first_chunk::<IPV6_BYTES>()?;
            header[7] = 0;
            (IPV6_BYTES, IPV6_BYTES + usize::from(half(&header, 4)))
        }
        _ => return None,
    };
    // Packets that were merged on the way have no length that fits; all of them counts then.
    let end = if end < bytes { packet.len() } else { end.min(packet.len()) };
    Some((header, &packet[bytes..end]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SEED: u64 = 7;

    fn ethernet(tags: &[u16], ethertype: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![2; 12];
        for tag in tags {
            frame.extend([0x81, 0, (tag >> 8) as u8, *tag as u8]);
        }
        frame.extend(ethertype.to_be_bytes());
        frame.extend(payload);
        frame
    }

    fn ipv4(ttl: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 20 + payload.len() as u8, 0, 9, 0x40, 0, ttl, 17, ttl, 1];
        packet.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        packet.extend(payload);
        packet
    }

    fn of(frame: &[u8]) -> u64 {
        fingerprint(LinkType::ETHERNET, &[], frame, frame.len() as u32, SEED)
    }

    #[test]
    fn what_changes_on_the_way_does_not_count() {
        let plain = of(&ethernet(&[], 0x0800, &ipv4(64, b"payload")));
        let mut hopped = ethernet(&[5, 6], 0x0800, &ipv4(61, b"payload"));
        hopped[..12].fill(9);
        hopped.extend([0; 9]);
        assert_eq!(of(&hopped), plain, "addresses, tags, hops, padding");
        let (head, rest) = hopped.split_at(22);
        let split = fingerprint(LinkType::ETHERNET, head, rest, hopped.len() as u32, SEED);
        assert_eq!(split, plain, "a head that a tunnel left");
        let raw = fingerprint(LinkType::RAW, &[], &ipv4(3, b"payload"), 27, SEED);
        assert_eq!(raw, plain, "without a link header");

        let v6 = |hops, last| {
            let mut packet = vec![0x60, 0, 0, 0, 0, 4, 17, hops];
            packet.extend([1; 32]);
            packet.extend([1, 2, 3, last]);
            of(&ethernet(&[], 0x86dd, &packet))
        };
        assert_eq!(v6(64, 4), v6(63, 4));
        assert_ne!(v6(64, 4), v6(64, 5));
    }

    #[test]
    fn what_is_not_ip_counts_whole() {
        let arp = ethernet(&[], 0x0806, &[1; 28]);
        assert_ne!(of(&arp), of(&ethernet(&[1], 0x0806, &[1; 28])));
        let longer = fingerprint(LinkType::ETHERNET, &[], &arp, 60, SEED);
        assert_ne!(of(&arp), longer, "the length on the wire");
    }

    proptest! {
        #[test]
        fn every_other_byte_counts(
            payload in proptest::collection::vec(any::<u8>(), 8..100),
            at in any::<prop::sample::Index>(),
        ) {
            let frame = ethernet(&[], 0x0800, &ipv4(64, &payload));
            let at = 14 + at.index(frame.len() - 14);
            let mut changed = frame.clone();
            changed[at] ^= 0x10;
            let free = [14 + 8, 14 + 10, 14 + 11].contains(&at);
            prop_assert_eq!(of(&frame) == of(&changed), free, "byte {}", at);
        }

        #[test]
        fn any_bytes_will_do(
            link in any::<u16>(), data in proptest::collection::vec(any::<u8>(), 0..80),
            head in proptest::collection::vec(any::<u8>(), 0..20),
        ) {
            for link in [LinkType(link), LinkType::ETHERNET, LinkType::RAW] {
                fingerprint(link, &head, &data, 0, SEED);
            }
        }
    }
}
