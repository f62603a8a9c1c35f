use proptest::prelude::*;

use super::super::write::{EpbParts, put_epb, put_idb, put_isb_comment, put_shb};
use super::*;
use crate::LinkType;
use crate::pcapng::{OPTION_COMMENT, OPTION_IF_TSOFFSET, OPTION_IF_TSRESOL, put_option as option};

/// A packet with its bytes, so that it outlives the reader's buffer.
#[derive(Debug, Clone, PartialEq)]
struct Kept {
    interface: u32,
    ts_ns: u64,
    orig_len: u32,
    data: Vec<u8>,
    flags: Option<u32>,
    options: Vec<u8>,
}

fn read_all<R: Read>(source: R) -> (Vec<Kept>, Vec<OtherKind>, Option<PcapngError>, Reader<R>) {
    let mut reader = Reader::new(source);
    let (mut packets, mut others) = (Vec::new(), Vec::new());
    let error = loop {
        match reader.next_event() {
            Ok(Some(Event::Packet(p))) => packets.push(Kept {
                interface: p.interface,
                ts_ns: p.ts_ns,
                orig_len: p.orig_len,
                data: p.data.to_vec(),
                flags: p.flags,
                options: p.options.to_vec(),
            }),
            Ok(Some(Event::Other(kind))) => others.push(kind),
            Ok(Some(Event::Interface(_))) => {}
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    assert!(matches!(reader.next_event(), Ok(None)), "a stream ends once");
    (packets, others, error, reader)
}

/// Gives one byte at a time, so that every refill path runs.
struct Trickle<'a>(&'a [u8]);

impl Read for Trickle<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = buf.len().min(1);
        self.0.read(&mut buf[..count])
    }
}

fn kept_packets() -> impl Strategy<Value = Vec<Kept>> {
    let packet = (
        0u32..2,
        any::<u64>(),
        0u32..2000,
        proptest::collection::vec(any::<u8>(), 0..90),
        proptest::option::of(any::<u32>()),
        proptest::collection::vec("[a-z]{0,9}", 0..3),
    )
        .prop_map(|(interface, ts_ns, more, data, flags, comments)| {
            let mut options = Vec::new();
            for comment in comments {
                option(&mut options, OPTION_COMMENT, comment.as_bytes());
            }
            let orig_len = data.len() as u32 + more;
            Kept { interface, ts_ns, orig_len, data, flags, options }
        });
    proptest::collection::vec(packet, 0..12)
}

fn two_interfaces() -> [Interface; 2] {
    let mut second = Interface::unnamed(LinkType::ETHERNET);
    second.name = Some("eth1".into());
    second.clock = Some("ring".into());
    second.snaplen_bytes = 96;
    [Interface::unnamed(LinkType::ETHERNET), second]
}

fn encode(packets: &[Kept]) -> Vec<u8> {
    let mut out = Vec::new();
    put_shb(&mut out, "test");
    for interface in two_interfaces() {
        put_idb(&mut out, &interface, 262_144);
    }
    for p in packets {
        let parts = EpbParts {
            interface_id: p.interface,
            ts_ns: p.ts_ns,
            orig_len: p.orig_len,
            data: &p.data,
            vlan: None,
            flags: p.flags,
            raw_options: &p.options,
        };
        let at = out.len();
        out.resize(at + parts.block_bytes(), 0);
        assert!(put_epb(&mut out, at, &parts).is_some());
    }
    put_isb_comment(&mut out, 0, 1, "end");
    out
}

proptest! {
    #[test]
    fn what_the_writer_writes_reads_back(packets in kept_packets()) {
        let bytes = encode(&packets);
        for (read, others, error, interfaces) in [
            { let (p, o, e, r) = read_all(&bytes[..]); (p, o, e, r.interfaces().to_vec()) },
            { let (p, o, e, r) = read_all(Trickle(&bytes)); (p, o, e, r.interfaces().to_vec()) },
        ] {
            prop_assert!(error.is_none(), "{error:?}");
            prop_assert_eq!(&read, &packets);
            prop_assert_eq!(others, [OtherKind::Statistics]);
            prop_assert_eq!(interfaces, two_interfaces());
        }
    }

    #[test]
    fn a_cut_anywhere_gives_the_whole_packets_and_then_the_place(packets in kept_packets()) {
        let bytes = encode(&packets);
        let borders: Vec<usize> = crate::pcapng::Blocks::new(&bytes)
            .map(|block| block.map(|b| b.offset))
            .collect::<Result<_, _>>()
            .unwrap();
        for cut in 1..bytes.len() {
            let (read, _, error, _) = read_all(&bytes[..cut]);
            prop_assert_eq!(&read[..], &packets[..read.len()]);
            if cut < 4 {
                let refused = matches!(error, Some(PcapngError::NotPcapng { .. }));
                prop_assert!(refused, "{error:?}");
            } else if borders.contains(&cut) {
                prop_assert!(error.is_none(), "{error:?}");
            } else {
                let last = borders.iter().rfind(|b| **b < cut).copied().unwrap_or(0) as u64;
                let told = matches!(error, Some(PcapngError::Truncated { at, end, packets })
                    if at == last && end == cut as u64 && packets == read.len() as u64);
                prop_assert!(told, "cut {cut}: {error:?}");
            }
        }
    }

    #[test]
    fn any_bytes_are_read_without_panic(
        noise in proptest::collection::vec(any::<u8>(), 0..400),
        packets in kept_packets(),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        read_all(&noise[..]);
        let mut bytes = encode(&packets);
        for (place, value) in flips {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        read_all(&bytes[..]);
        let mut framed = encode(&[]);
        framed.extend(&noise);
        read_all(&framed[..]);
    }
}

#[test]
fn nothing_is_not_a_capture() {
    assert!(matches!(read_all(&[][..]).2, Some(PcapngError::NotPcapng { .. })));
}

/// Builds big-endian blocks by hand.
fn big_block(out: &mut Vec<u8>, kind: u32, body: &[u8]) {
    let total = (body.len() + 12) as u32;
    out.extend(kind.to_be_bytes());
    out.extend(total.to_be_bytes());
    out.extend(body);
    out.extend(total.to_be_bytes());
}

fn big_option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    out.extend(code.to_be_bytes());
    out.extend((value.len() as u16).to_be_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn big_section(interfaces: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut body = BYTE_ORDER_MAGIC.to_be_bytes().to_vec();
    body.extend([0, 1, 0, 0]);
    body.extend((-1i64).to_be_bytes());
    big_block(&mut out, BLOCK_SHB, &body);
    for options in interfaces {
        let mut body = vec![0, 1, 0, 0, 0, 0, 0, 8];
        body.extend(*options);
        big_block(&mut out, BLOCK_IDB, &body);
    }
    out
}

#[test]
fn big_endian_sections_and_all_packet_blocks_are_read() {
    let mut unit = Vec::new();
    big_option(&mut unit, OPTION_IF_TSRESOL, &[0x80 | 1]);
    big_option(&mut unit, OPTION_IF_TSOFFSET, &10i64.to_be_bytes());
    let mut bytes = encode(&[]);
    bytes.extend(big_section(&[&unit]));

    let fixed = |ticks: u32, captured: u32| [0, 0, ticks, captured, 1500].map(u32::to_be_bytes);
    let mut enhanced = fixed(3, 5).concat();
    enhanced.extend([1, 2, 3, 4, 5, 0, 0, 0]);
    big_option(&mut enhanced, OPTION_EPB_QUEUE, &7u32.to_be_bytes());
    big_option(&mut enhanced, OPTION_EPB_FLAGS, &2u32.to_be_bytes());
    big_option(&mut enhanced, OPTION_COMMENT, b"hey");
    enhanced.extend([0; 4]);
    big_block(&mut bytes, BLOCK_EPB, &enhanced);

    let mut old = fixed(4, 0).concat();
    old[2..4].copy_from_slice(&9u16.to_be_bytes());
    big_block(&mut bytes, BLOCK_PB, &old);

    let mut simple = 1500u32.to_be_bytes().to_vec();
    simple.extend([8; 8]);
    big_block(&mut bytes, BLOCK_SPB, &simple);
    for kind in [BLOCK_NRB, BLOCK_DSB, BLOCK_CUSTOM, BLOCK_LOCAL | 5, 77] {
        big_block(&mut bytes, kind, &[]);
    }

    let (packets, others, error, reader) = read_all(&bytes[..]);
    assert!(error.is_none(), "{error:?}");
    let times: Vec<u64> = packets.iter().map(|p| p.ts_ns).collect();
    assert_eq!(times, [11_500_000_000, 12_000_000_000, 0]);
    assert!(packets.iter().all(|p| p.interface == 2 && p.orig_len == 1500));
    assert_eq!(packets[0].data, [1, 2, 3, 4, 5]);
    assert_eq!(packets[0].flags, Some(2));
    let mut expected = Vec::new();
    option(&mut expected, OPTION_EPB_QUEUE, &7u32.to_le_bytes());
    option(&mut expected, OPTION_COMMENT, b"hey");
    assert_eq!(packets[0].options, expected);
    let mut expected = Vec::new();
    option(&mut expected, OPTION_EPB_DROPCOUNT, &9u64.to_le_bytes());
    assert_eq!(packets[1].options, expected);
    assert_eq!(packets[2].data, [8; 8], "a simple packet is cut at the snaplen of interface 0");
    use OtherKind as K;
    assert_eq!(others, [K::Statistics, K::Names, K::Secrets, K::Custom, K::Local, K::Unknown]);
    assert_eq!(reader.interfaces().len(), 3);
}

#[test]
fn equal_interfaces_of_later_sections_are_one() {
    let mut bytes = encode(&[]);
    bytes.extend(encode(&[]));
    let reader = read_all(&bytes[..]).3;
    assert_eq!(reader.interfaces(), two_interfaces());
}

#[test]
fn every_unit_of_time_is_converted() {
    let stamp = |resolution, offset_s, ticks| {
        let s = TimeUnit { resolution, offset_s }.stamp(ticks);
        (s.ns, s.sub_ns_lost, s.clamped)
    };
    assert_eq!(stamp(6, 0, 1_790_000_000_123_456), (1_790_000_000_123_456_000, false, false));
    assert_eq!(stamp(9, 0, u64::MAX), (u64::MAX, false, false));
    assert_eq!(stamp(0, 0, 3), (3_000_000_000, false, false));
    assert_eq!(stamp(0, 0, u64::MAX), (u64::MAX, false, true));
    assert_eq!(stamp(12, 0, 1_999), (1, true, false));
    assert_eq!(stamp(127, 0, u64::MAX), (0, true, false));
    assert_eq!(stamp(0x80 | 10, 0, 1024 + 512), (1_500_000_000, false, false));
    assert_eq!(stamp(0xff, 0, 1), (0, true, false));
    assert_eq!(stamp(9, -1, 5), (0, false, true));
    assert_eq!(stamp(9, i64::MAX, u64::MAX), (u64::MAX, false, true));
    assert_eq!(stamp(9, -1, 1_000_000_005), (5, false, false));
}

#[test]
fn hostile_lengths_are_refused_with_their_place() {
    let good = encode(&[]);
    let at = good.len() as u64;
    let with = |kind: u32, length: u32, body: &[u8]| {
        let mut bytes = good.clone();
        bytes.extend(kind.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend(body);
        bytes.extend(length.to_le_bytes());
        read_all(&bytes[..]).2.expect("refused")
    };
    assert!(matches!(with(6, 16 << 20 | 4, &[]), PcapngError::Length { at: a, .. } if a == at));
    assert!(matches!(with(6, 0, &[]), PcapngError::Length { at: a, .. } if a == at));
    assert!(matches!(with(6, 16, &[0; 4]), PcapngError::Length { at: a, .. } if a == at));
    let mut packet = [0u8; 20];
    packet[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(with(6, 32, &packet), PcapngError::CapturedLength { at: a, .. } if a == at));
    packet[0] = 2;
    let unknown = with(6, 32, &packet);
    assert!(matches!(unknown, PcapngError::UnknownInterface { interface: 2, known: 2, .. }));
}

#[test]
fn a_packet_with_damaged_options_is_kept_and_told() {
    let mut bytes = encode(&[]);
    let mut body = [0u32, 0, 1, 4, 4].map(u32::to_le_bytes).concat();
    body.extend([1, 2, 3, 4]);
    option(&mut body, OPTION_COMMENT, b"kept");
    body.extend([1, 0, 0xff, 0xff]);
    bytes.extend(6u32.to_le_bytes());
    bytes.extend((body.len() as u32 + 12).to_le_bytes());
    bytes.extend(&body);
    bytes.extend((body.len() as u32 + 12).to_le_bytes());
    let mut reader = Reader::new(&bytes[..]);
    let mut seen = 0;
    while let Some(event) = reader.next_event().unwrap() {
        if let Event::Packet(packet) = event {
            assert!(packet.options_cut);
            assert_eq!(packet.options, [1, 0, 4, 0, b'k', b'e', b'p', b't']);
            seen += 1;
            assert_eq!(reader.packet().map(|p| p.data.to_vec()), Some(vec![1, 2, 3, 4]));
        }
    }
    assert_eq!(seen, 1);
}
