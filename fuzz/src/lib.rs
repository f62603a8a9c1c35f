//! Fuzz targets: every function here takes any bytes and must neither panic nor hang.
//!
//! The gate runs each target over its seeds and over mutations of them (`tests/targets.rs`); the
//! same functions serve a coverage-guided fuzzer. Seeds are made by our own encoders, so that
//! mutations start from bytes that get deep.

#![forbid(unsafe_code)]

pub mod mutate;
pub mod seeds;
mod state;

use std::io::Cursor;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use wirevault_capture::{Packet, Polled, ReplaySource, Source, Speed};
use wirevault_format::chunk::{self, ChunkHeader};
use wirevault_format::footer::{ChunkEntry, Footer};
use wirevault_format::limits::LBA_BYTES;
use wirevault_format::superblock::Superblock;
use wirevault_format::table::{RunEntry, SegmentEntry, decode_page};
use wirevault_format::{Gap, LinkType, VxlanPorts, crc32c, digest, pcapng, section, segment};
use wirevault_index::{Digest, KeySource, Volume, decode};
use wirevault_media::block::sim::{DEVICE_FILE, SimDevice};
use wirevault_media::{BlockMedia, SimMedia};
use wirevault_nvme::spec;
use wirevault_packet::bpf::{AnyAddress, Insn, Oracle, Program};
use wirevault_packet::{
    Decap, FlowKey, OuterHeaders, OuterText, Stripped, Tunnel, dissect, fingerprint, outer_headers,
    summary,
};

/// A target and its name.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[
    ("chunk", chunk),
    ("segment", segment_header),
    ("footer", footer),
    ("volume", volume),
    ("block_volume", block_volume),
    ("digest", digest_page),
    ("section", index_section),
    ("flows", flows),
    ("import", import),
    ("device", device),
    ("config", config),
    ("packet", packet),
    ("decap", decap),
    ("program", program),
    ("ring", ring),
    ("audit", state::audit_log),
    ("checkpoint", state::checkpoint),
    ("catalog", state::catalog),
    ("beside_log", state::beside_log),
];

/// Polls of a replay at most: a hostile file must end, not go round.
const POLLS_MAX: usize = 100_000;

/// A chunk as it lies on disk.
pub fn chunk(bytes: &[u8]) {
    if let Ok(header) = ChunkHeader::decode(bytes) {
        if let Ok(payload) = chunk::plain_payload(bytes, &header) {
            payload_blocks(payload);
        }
        let _ = chunk::sealed_parts(&mut bytes.to_vec(), &header);
    }
    payload_blocks(bytes);
}

fn payload_blocks(payload: &[u8]) {
    for block in pcapng::read::Blocks::new(payload) {
        let Ok(block) = block else { break };
        let _ = pcapng::read::Epb::parse(&block);
        let _ = Gap::decode(&payload[block.offset..]);
    }
    let _ = wirevault_index::reader::gaps_in(payload);
}

/// The header region of a segment.
pub fn segment_header(bytes: &[u8]) {
    let _ = segment::decode(bytes);
    let _ = segment::read_interface_table(bytes);
}

/// A footer and a chunk table.
pub fn footer(bytes: &[u8]) {
    let _ = Footer::decode(bytes);
    let _ = ChunkEntry::decode_table(bytes);
}

/// Superblock and table pages.
pub fn volume(bytes: &[u8]) {
    let _ = Superblock::decode(bytes);
    let _ = decode_page::<SegmentEntry>(0, bytes);
    let _ = decode_page::<RunEntry>(0, bytes);
}

/// Where `volume.wv` begins on a device.
const VOLUME_OFFSET: usize = 1 << 20;

/// A block device: its label, and behind it the beginning of `volume.wv`. Their sums are made
/// right, since mutations would get no further.
pub fn block_volume(bytes: &[u8]) {
    let (label, volume) = bytes.split_at(bytes.len().min(LBA_BYTES));
    let (superblock, tables) = volume.split_at(volume.len().min(LBA_BYTES));
    let mut image = vec![0; VOLUME_OFFSET];
    image[..LBA_BYTES].copy_from_slice(&summed(label));
    image.extend(summed(superblock));
    image.extend(tables);
    image.resize(2 * VOLUME_OFFSET, 0);
    let disk = SimMedia::new();
    disk.preload(DEVICE_FILE, &image);
    if let Ok(media) = BlockMedia::over(Arc::new(SimDevice::on(&disk))) {
        let _ = Volume::read(Arc::new(media), &KeySource::Recorded);
    }
}

/// A page of a digest, and what its facts say.
pub fn digest_page(bytes: &[u8]) {
    let bytes = summed(bytes);
    if let Ok(page) = digest::decode(&bytes) {
        let _ = Digest::of_facts(page.body);
    }
}

/// The first block of `bytes`, which ends with a sum over the rest of it.
fn summed(bytes: &[u8]) -> [u8; LBA_BYTES] {
    let mut block = [0; LBA_BYTES];
    let length = bytes.len().min(LBA_BYTES - 4);
    block[..length].copy_from_slice(&bytes[..length]);
    let sum = crc32c(&block[..LBA_BYTES - 4]);
    block[LBA_BYTES - 4..].copy_from_slice(&sum.to_le_bytes());
    block
}

/// A block of an index section, and the sections that need no other.
pub fn index_section(bytes: &[u8]) {
    let _ = section::decode(bytes);
    let _ = decode::decode_gaps(bytes, 64);
    let _ = decode::decode_shapes(bytes);
    if let Ok(filter) = decode::decode_filter(bytes) {
        let _ = filter.host4([10, 0, 0, 1], 32) | filter.host6([0xfe; 16], 64);
    }
    for filter in decode::decode_chunk_filters(bytes, 64, 8).into_iter().flatten().flatten() {
        let _ = filter.host4([10, 0, 0, 1], 24) | filter.host6([0xfe; 16], 128);
        let _ = filter.port(80..=81);
    }
}

/// Shapes, hosts, flows and postings: four sections, cut at the first four bytes.
pub fn flows(bytes: &[u8]) {
    let Some((cuts, rest)) = bytes.split_first_chunk::<3>() else { return };
    let at = |n: usize| rest.len() * usize::from(cuts[n]) / 256;
    let mut cuts = [at(0), at(1), at(2)];
    cuts.sort_unstable();
    let Ok(shapes) = decode::decode_shapes(&rest[..cuts[0]]) else { return };
    let (hosts, columns) = (&rest[cuts[0]..cuts[1]], &rest[cuts[1]..cuts[2]]);
    let _ = decode::decode_flows(&shapes, hosts, columns, &rest[cuts[2]..], 64);
}

/// What a device answers: the structures are as long as they are, whatever comes.
pub fn device(bytes: &[u8]) {
    let mut page = [0; 4096];
    let length = bytes.len().min(page.len());
    page[..length].copy_from_slice(&bytes[..length]);
    let controller = spec::IdentifyController::decode(&page);
    assert!(controller.transfer_bytes_max != Some(0), "a limit of nothing");
    let namespace = spec::IdentifyNamespace::decode(&page);
    assert!(namespace.lba_bytes.is_none_or(|it| it >= 512 && it.is_power_of_two()));
    let _ = spec::amazon::mapped_name(&page);
    if let Some(log) = spec::AmazonLog::decode(&page) {
        for bins in [&log.read_latency, &log.write_latency].into_iter().flatten() {
            let [half, all] = [0.5, 1.0].map(|share| spec::amazon::quantile_us(bins, share));
            assert!(half <= all, "quantiles grow");
        }
    }
    if let Some(smart) = page.first_chunk() {
        let smart = spec::SmartLog::decode(smart);
        assert_eq!(smart.warning.is_empty(), smart.warning.names().count() == 0);
    }
    for entry in spec::ErrorEntry::decode_all(bytes) {
        assert!(entry.status.into_result().is_ok() == (entry.status.code() == 0));
    }
}

/// A capture file: pcap or pcapng, compressed or not.
pub fn import(bytes: &[u8]) {
    let input = Box::new(Cursor::new(bytes.to_vec()));
    let Ok(mut source) = ReplaySource::from_reader("fuzz".to_owned(), input, Speed::Full) else {
        return;
    };
    let mut sink = |_: &Packet<'_>| ControlFlow::Continue(());
    for _ in 0..POLLS_MAX {
        match source.poll(&mut sink, Duration::ZERO) {
            Ok(Polled::End) | Err(_) => return,
            Ok(_) => {}
        }
    }
    panic!("a file of {} bytes does not end", bytes.len());
}

/// A configuration file.
pub fn config(bytes: &[u8]) {
    let _ = wirevault_config::parse_bytes_with(bytes, "fuzz.yaml", &Default::default());
}

/// A frame: the first byte picks the link type.
pub fn packet(bytes: &[u8]) {
    let Some((pick, frame)) = bytes.split_first() else { return };
    let links = [0, 1, 12, 101, 108, 113, 228, 229, 276, 9999];
    let link = LinkType(links[usize::from(*pick) % links.len()]);
    let dissected = dissect(link, frame);
    let template = dissected.key.template(dissected.direction);
    assert!(template.admits(frame, frame.len() as u32), "a template must cover its packet");
    let _ = summary::line(link, frame, frame.len() as u32).to_string();
    let _ = dissected.key.describe();
    let (shape, values) = bytes.split_at(bytes.len() / 2);
    let _ = FlowKey::from_parts(shape, values);
}

/// A frame whose outer headers are removed: the first bytes pick the link type, a datagram's port
/// and a tag that the kernel took out.
pub fn decap(bytes: &[u8]) {
    let Some(([pick, port, tag, cut], frame)) = bytes.split_first_chunk() else { return };
    let links = [0, 1, 101, 113, 228, 229, 276];
    let link = LinkType(links[usize::from(*pick) % links.len()]);
    let decap = Decap::new(&Tunnel::ALL, VxlanPorts::USUAL);
    let mut outer = OuterHeaders::default();
    let wire_len = frame.len() as u32 + u32::from(*cut);
    let tag = (tag & 1 == 1).then_some([0x81, 0, 0, *tag]);
    let ports = [4789, 8472, 4790, 6081, 2152, 53];
    let port = ports[usize::from(*port) % ports.len()];
    let stripped = decap.strip(link, frame, wire_len, tag, &mut outer);
    check_inner(frame, stripped, &mut outer);
    outer.clear();
    let _ = fingerprint(link, &[], frame, wire_len, 1);
    let stripped = decap.strip_datagram(port, frame, wire_len, &mut outer);
    check_inner(frame, stripped, &mut outer);
    let _ = OuterText(frame).to_string();
}

fn check_inner(frame: &[u8], stripped: Stripped<'_>, outer: &mut OuterHeaders) {
    let Stripped::Inner(inner) = stripped else { return };
    let (whole, part) = (frame.as_ptr_range(), inner.data.as_ptr_range());
    assert!(whole.start <= part.start && part.end <= whole.end, "data lies within the frame");
    let stored = inner.head().len() + inner.data.len();
    assert!(inner.wire_len as usize >= stored, "no more is stored than was on the wire");
    assert!(outer.option().len().is_multiple_of(4), "an option is padded");
    let read: usize = outer_headers(outer.records()).map(|(_, body)| 2 + body.len()).sum();
    assert_eq!(read, outer.records().len(), "every record reads back");
}

/// A filter program and a frame: half the bytes each.
pub fn program(bytes: &[u8]) {
    let (code, frame) = bytes.split_at(bytes.len() / 2);
    let insns = code.as_chunks::<8>().0.iter().map(|insn| Insn {
        code: u16::from_le_bytes([insn[0], insn[1]]),
        jt: insn[2],
        jf: insn[3],
        k: u32::from_le_bytes([insn[4], insn[5], insn[6], insn[7]]),
    });
    let Ok(program) = Program::new(insns.collect()) else { return };
    let accepted = program.run(frame, frame.len() as u32) != 0;
    let dissected = dissect(LinkType::ETHERNET, frame);
    let template = dissected.key.template(dissected.direction);
    match program.decide(&template, &AnyAddress) {
        wirevault_packet::bpf::Verdict::No => assert!(!accepted, "No for a packet that matches"),
        wirevault_packet::bpf::Verdict::Yes => assert!(accepted, "Yes for one that does not"),
        wirevault_packet::bpf::Verdict::Maybe => {}
    }
}

/// A key ring.
pub fn ring(bytes: &[u8]) {
    if let Some(head) = bytes.first_chunk() {
        let _ = wirevault_seal::ring::encoded_bytes(head);
    }
    let _ = wirevault_seal::KeyRing::decode(bytes, seeds::provider());
}
