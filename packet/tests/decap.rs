//! Removing outer headers: whatever the frame is, and what remains of hand-made ones.

#[expect(dead_code, unreachable_pub, reason = "each test binary uses a part")]
mod common;

use common::{LINKS, Random, cases, frames};
use proptest::prelude::*;
use wirevault_format::pcapng::{OPTION_EPB_OUTER, options};
use wirevault_format::{LinkType, VxlanPorts};
use wirevault_packet::decap::HEAD_BYTES_MAX;
use wirevault_packet::outer::OUTER_BYTES_MAX;
use wirevault_packet::shape::{Layer, Layers};
use wirevault_packet::{
    Decap, Inner, OuterHeaders, OuterKind, OuterText, Stripped, Tunnel, TunnelId, dissect,
    outer_headers, tunnel_ids,
};

fn all() -> Decap {
    Decap::new(&Tunnel::ALL, VxlanPorts::USUAL)
}

fn layers(link: LinkType, data: &[u8]) -> Vec<(usize, Layer)> {
    let key = dissect(link, data).key;
    Layers::new(key.shape()).map(|layer| layer.expect("a shape just made")).collect()
}

/// The stored bytes.
fn stored(inner: &Inner<'_>) -> Vec<u8> {
    [inner.head(), inner.data].concat()
}

fn check(decap: &Decap, link: LinkType, frame: &[u8], tag: Option<[u8; 4]>) {
    let mut outer = OuterHeaders::default();
    let Stripped::Inner(inner) = decap.strip(link, frame, frame.len() as u32, tag, &mut outer)
    else {
        return;
    };
    let range = frame.as_ptr_range();
    let data = inner.data.as_ptr_range();
    assert!(range.start <= data.start && data.end <= range.end, "a part of the frame");
    assert!(inner.head().len() <= HEAD_BYTES_MAX);
    assert!(inner.wire_len as usize >= inner.head().len() + inner.data.len());
    assert!(matches!(inner.link, LinkType::ETHERNET | LinkType::RAW));
    assert!(!outer.is_empty());
    let told = outer_headers(outer.records()).any(|(kind, _)| kind == OuterKind::Truncated);
    // Its record is 6 bytes; without room for them it is only counted.
    let full = outer.records().len() + 6 > OUTER_BYTES_MAX;
    assert!(told == inner.truncated || inner.truncated && full);
    assert!(!OuterText(outer.records()).to_string().is_empty());
    let records = outer.records().to_vec();
    let read: Vec<_> = options(outer.option()).collect();
    assert_eq!(read.len(), 1);
    let option = read[0].as_ref().expect("one whole option");
    assert_eq!((option.code, option.value), (OPTION_EPB_OUTER, &records[..]));

    // The walk to the key, which is another one, finds the same headers inside. It stops earlier
    // where the key is full, and sees bytes behind the inner frame that are not stored.
    let whole = layers(link, frame);
    let full = whole.iter().any(|(_, layer)| *layer == Layer::Deep);
    if inner.head().is_empty() && data.end == range.end && tag.is_none() && !full {
        let at = data.start as usize - range.start as usize;
        let tail: Vec<_> =
            whole.iter().filter(|it| it.0 >= at).map(|(from, layer)| (from - at, *layer)).collect();
        assert_eq!(layers(inner.link, inner.data), tail, "{link} {frame:02x?}");
    }
}

proptest! {
    #![proptest_config(cases(3000))]

    #[test]
    fn frames_cut_at_every_length_stay_within_themselves(seed: u64) {
        let mut random = Random::new(seed);
        let link = *random.pick(&LINKS);
        let frame = frames::frame(&mut random, link);
        let some: Vec<_> = Tunnel::ALL.into_iter().filter(|_| !random.one_in(3)).collect();
        let some = Decap::new(&some, VxlanPorts::new(&[4789]));
        let decap = if random.one_in(2) { all() } else { some };
        let tag = random.one_in(4).then_some([0x81, 0, 0x20, 9]);
        for len in 0..=frame.len() {
            check(&decap, link, &frame[..len], tag);
        }
    }

    #[test]
    fn random_bytes_do_no_harm(
        link in prop::sample::select(LINKS.to_vec()),
        data in prop::collection::vec(
            prop_oneof![any::<u8>(), Just(0), Just(0x45), Just(47), Just(0x81)],
            0..300,
        ),
        wire_len: u32,
        port in prop::sample::select(vec![4789u16, 4790, 6081, 2152, 53]),
    ) {
        check(&all(), link, &data, None);
        let mut outer = OuterHeaders::default();
        let _ = all().strip(link, &data, wire_len, Some([0x88, 0xa8, 0, 1]), &mut outer);
        let _ = all().strip_datagram(port, &data, wire_len, &mut outer);
        let _ = OuterText(&data).to_string();
        let _ = tunnel_ids(&data).count();
    }
}

fn ethernet(kind: u16, payload: &[u8]) -> Vec<u8> {
    let addresses = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    [&addresses[..], &kind.to_be_bytes(), payload].concat()
}

fn ipv4(protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0x45, 0];
    out.extend((20 + payload.len() as u16).to_be_bytes());
    out.extend([0, 1]);
    out.extend(fragment.to_be_bytes());
    out.extend([64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    [&out, payload].concat()
}

fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0x99, 0x99];
    out.extend(port.to_be_bytes());
    out.extend((8 + payload.len() as u16).to_be_bytes());
    out.extend([0, 0]);
    [&out, payload].concat()
}

fn vxlan(vni: u8, inner: &[u8]) -> Vec<u8> {
    [&[8, 0, 0, 0, 0, 0, vni, 0][..], inner].concat()
}

fn mirrored(vni: u8, inner: &[u8]) -> Vec<u8> {
    ethernet(0x0800, &ipv4(17, 0, &udp(4789, &vxlan(vni, inner))))
}

fn plain(bytes: usize) -> Vec<u8> {
    ethernet(0x0800, &ipv4(17, 0, &udp(53, &vec![7; bytes])))
}

fn strip<'a>(decap: &Decap, frame: &'a [u8], outer: &mut OuterHeaders) -> Stripped<'a> {
    decap.strip(LinkType::ETHERNET, frame, frame.len() as u32, None, outer)
}

fn inner<'a>(decap: &Decap, frame: &'a [u8], outer: &mut OuterHeaders) -> Inner<'a> {
    match strip(decap, frame, outer) {
        Stripped::Inner(inner) => inner,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_mirrored_frame_is_a_part_of_the_outer_one_and_its_vni_is_kept() {
    let (frame, mut outer) = (mirrored(7, &plain(80)), OuterHeaders::default());
    let found = inner(&all(), &frame, &mut outer);
    assert_eq!((stored(&found), found.link), (plain(80), LinkType::ETHERNET));
    assert_eq!((found.wire_len, found.truncated), (plain(80).len() as u32, false));
    assert_eq!(tunnel_ids(outer.records()).collect::<Vec<_>>(), [TunnelId::Vni(7)]);
    assert_eq!(OuterText(outer.records()).to_string(), "IP 10.0.0.1 > 10.0.0.2, VXLAN vni 7");
    // Padding and checksums of the outer frame are not the inner one's.
    let padded = [frame.clone(), vec![0; 9]].concat();
    assert_eq!(stored(&inner(&all(), &padded, &mut outer)), plain(80));
    // A capture that cut the frame keeps the inner one's length on the wire.
    let found = all().strip(LinkType::ETHERNET, &frame[..90], frame.len() as u32, None, &mut outer);
    let Stripped::Inner(found) = found else { panic!("{found:?}") };
    assert_eq!((found.data, found.wire_len), (&plain(80)[..40], plain(80).len() as u32));
    assert!(!found.truncated);
}

#[test]
fn a_mirror_that_cuts_frames_is_told_from_a_capture_that_does() {
    let (whole, mut outer) = (plain(400), OuterHeaders::default());
    let frame = mirrored(7, &whole[..128]);
    let found = inner(&all(), &frame, &mut outer);
    assert_eq!(stored(&found), whole[..128]);
    assert_eq!((found.wire_len, found.truncated), (whole.len() as u32, true));
    assert!(OuterText(outer.records()).to_string().ends_with("cut by the mirror to 128 bytes"));
    let tagged = ethernet(0x8100, &[&[0, 5, 8, 0][..], &whole[14..100]].concat());
    let copy = mirrored(7, &tagged);
    let found = inner(&all(), &copy, &mut outer);
    assert_eq!(stored(&found), whole[..100]);
    assert_eq!((found.wire_len, found.truncated), (whole.len() as u32, true));
}

#[test]
fn fragments_stay_and_are_told() {
    let mut outer = OuterHeaders::default();
    let datagram = udp(4789, &vxlan(7, &plain(90)));
    let first = ethernet(0x0800, &ipv4(17, 0x2000, &datagram));
    assert_eq!(strip(&all(), &first, &mut outer), Stripped::KeptFragment);
    let later = ethernet(0x0800, &ipv4(47, 0x0005, &[0; 40]));
    assert_eq!(strip(&all(), &later, &mut outer), Stripped::KeptFragment);
    // Nothing says that this one belongs to a tunnel.
    let unknown = ethernet(0x0800, &ipv4(17, 0x0005, &datagram));
    assert_eq!(strip(&all(), &unknown, &mut outer), Stripped::Kept);
    let other = ethernet(0x0800, &ipv4(17, 0x2000, &udp(53, &[0; 40])));
    assert_eq!(strip(&all(), &other, &mut outer), Stripped::Kept);
    assert!(outer.is_empty());
}

#[test]
fn what_is_not_asked_for_stays() {
    let mut outer = OuterHeaders::default();
    let frame = mirrored(7, &plain(80));
    assert_eq!(
        strip(&Decap::new(&[Tunnel::Geneve], VxlanPorts::USUAL), &frame, &mut outer),
        Stripped::Kept
    );
    assert_eq!(
        strip(&Decap::new(&Tunnel::ALL, VxlanPorts::new(&[8472])), &frame, &mut outer),
        Stripped::Kept
    );
    // A tag outside goes with the tunnel; one inside stays where tags are to stay.
    let tagged = ethernet(0x8100, &[&[0, 5, 8, 0][..], &plain(60)[14..]].concat());
    let nested = mirrored(7, &tagged);
    let nested = ethernet(0x8100, &[&[0, 9, 8, 0][..], &nested[14..]].concat());
    let decap = Decap::new(&[Tunnel::Vxlan], VxlanPorts::USUAL);
    assert_eq!(stored(&inner(&decap, &nested, &mut outer)), tagged);
    let ids: Vec<_> = tunnel_ids(outer.records()).collect();
    assert_eq!(ids, [TunnelId::Vlan(9), TunnelId::Vni(7)]);
    assert_eq!(stored(&inner(&all(), &nested, &mut outer)), plain(60));
    let ids: Vec<_> = tunnel_ids(outer.records()).collect();
    assert_eq!(ids, [TunnelId::Vlan(9), TunnelId::Vni(7), TunnelId::Vlan(5)]);
}

#[test]
fn labels_go_and_tags_stay_where_only_labels_are_asked_for() {
    let ip = &plain(60)[14..];
    let labelled = [&[0, 0, 0x70, 64, 0, 0, 0x91, 64][..], ip].concat();
    let frame = ethernet(0x8100, &[&[0x20, 5, 0x88, 0x47][..], &labelled].concat());
    let (decap, mut outer) =
        (Decap::new(&[Tunnel::Mpls], VxlanPorts::USUAL), OuterHeaders::default());
    let found = inner(&decap, &frame, &mut outer);
    assert_eq!(stored(&found), ethernet(0x8100, &[&[0x20, 5, 8, 0][..], ip].concat()));
    assert_eq!(found.wire_len as usize, stored(&found).len());
    let ids: Vec<_> = tunnel_ids(outer.records()).collect();
    assert_eq!(ids, [TunnelId::Mpls(7), TunnelId::Mpls(9)]);
    // A tag that the kernel took out is put back in front of what remains.
    let untagged = ethernet(0x8847, &labelled);
    let tag = Some([0x81, 0, 0x20, 5]);
    let length = untagged.len() as u32;
    let found = decap.strip(LinkType::ETHERNET, &untagged, length, tag, &mut outer);
    let Stripped::Inner(found) = found else { panic!("{found:?}") };
    assert_eq!(stored(&found), ethernet(0x8100, &[&[0x20, 5, 8, 0][..], ip].concat()));
    assert_eq!(stored(&inner(&all(), &frame, &mut outer)), plain(60));
}

#[test]
fn a_tag_that_the_kernel_took_out_needs_no_copy() {
    let (frame, mut outer) = (plain(60), OuterHeaders::default());
    let tag = Some([0x81, 0, 0x20, 5]);
    let length = frame.len() as u32;
    let Stripped::Inner(found) = all().strip(LinkType::ETHERNET, &frame, length, tag, &mut outer)
    else {
        panic!("the tag is to go")
    };
    assert_eq!((found.head(), found.data, found.wire_len), (&[][..], &frame[..], length));
    assert_eq!(OuterText(outer.records()).to_string(), "vlan 5");
    let decap = Decap::new(&[Tunnel::Vxlan], VxlanPorts::USUAL);
    let kept = decap.strip(LinkType::ETHERNET, &frame, length, tag, &mut outer);
    assert_eq!((kept, outer.is_empty()), (Stripped::Kept, true));
}

#[test]
fn tunnels_without_end_are_followed_only_so_far() {
    let mut packet = ipv4(17, 0, &udp(53, &[0; 30]));
    for _ in 0..20 {
        packet = ipv4(4, 0, &packet);
    }
    let (frame, mut outer) = (ethernet(0x0800, &packet), OuterHeaders::default());
    let found = inner(&all(), &frame, &mut outer);
    assert_eq!(found.link, LinkType::RAW);
    assert_eq!(found.data.len(), frame.len() - 14 - 8 * 20);
    assert!(!found.truncated);
}

#[test]
fn a_datagram_is_stripped_as_its_frame_is() {
    let mut outer = OuterHeaders::default();
    let payload = vxlan(9, &plain(80));
    assert!(outer.push(OuterKind::Ipv4, &[10, 0, 0, 1, 10, 0, 0, 2]));
    let found = all().strip_datagram(4789, &payload, payload.len() as u32, &mut outer);
    let Stripped::Inner(found) = found else { panic!("{found:?}") };
    assert_eq!((found.data, found.wire_len), (&plain(80)[..], plain(80).len() as u32));
    assert_eq!(OuterText(outer.records()).to_string(), "IP 10.0.0.1 > 10.0.0.2, VXLAN vni 9");
    assert_eq!(all().strip_datagram(4789, &[0; 60], 60, &mut outer), Stripped::Kept);
}

/// Prints what it costs; the bound is ten times what a slow machine needs.
#[test]
fn stripping_costs_nanoseconds() {
    const ROUNDS: u32 = 200_000;
    let gwlb = {
        let inside = &mirrored(7, &plain(700))[14..];
        let geneve = [&[0, 0, 8, 0, 0, 0, 0, 0][..], inside].concat();
        ethernet(0x0800, &ipv4(17, 0, &udp(6081, &geneve)))
    };
    let cases = [("no tunnel", plain(700)), ("VXLAN", mirrored(7, &plain(700))), ("GWLB", gwlb)];
    let (decap, mut outer) = (all(), OuterHeaders::default());
    for (name, frame) in cases {
        let started = std::time::Instant::now();
        let mut bytes = 0;
        for _ in 0..ROUNDS {
            let frame = std::hint::black_box(&frame[..]);
            bytes += match strip(&decap, frame, &mut outer) {
                Stripped::Inner(inner) => inner.data.len() + outer.option().len(),
                _ => frame.len(),
            };
        }
        std::hint::black_box(bytes);
        let ns = started.elapsed().as_nanos() / u128::from(ROUNDS);
        println!("{name}: {ns} ns a frame");
        assert!(ns < 2_000, "{name}: {ns} ns a frame");
    }
}
