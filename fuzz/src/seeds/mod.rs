//! Seeds: bytes that our own encoders make, so that mutations start deep inside the parsers.

pub mod state;

use std::sync::OnceLock;

use wirevault_format::chunk::{self, ChunkHeader, HEADER_BYTES};
use wirevault_format::digest::PageHeader;
use wirevault_format::footer::{CHUNK_ENTRY_BYTES, ChunkEntry, CloseReason, Footer};
use wirevault_format::gap::{CAUSES, GAP_BYTES};
use wirevault_format::pcapng::write::{EpbParts, put_epb, put_idb, put_shb};
use wirevault_format::section::{PartHeader, SectionId};
use wirevault_format::segment::{SegmentHeader, interface_table};
use wirevault_format::superblock::Superblock;
use wirevault_format::table::{RunEntry, SegmentEntry, encode_page};
use wirevault_format::{
    Cause, FormatError, Gap, Interface, LifeId, LinkType, RunId, StoreId, VolumeId,
};
use wirevault_index::digest::PagePayload;
use wirevault_index::flow_table::{FlowOptions, FlowTable, PacketNote};
use wirevault_index::{ChunkDelta, SegmentIndex};
use wirevault_packet::dissect;
use wirevault_seal::locked::LockedBytes;
use wirevault_seal::{KeyProvider, KeyRing, SealError};

/// Seeds of a target.
pub fn of(target: &str) -> Vec<Vec<u8>> {
    match target {
        "chunk" => vec![plain_chunk(), payload()],
        "segment" => vec![region(), interface_table(&[eth0()])],
        "footer" => vec![footer(), chunk_entry().encode().to_vec()],
        "volume" => vec![
            encode_page(0, 1, &[SegmentEntry::default()]).to_vec(),
            encode_page(0, 1, &[RunEntry::default()]).to_vec(),
            superblock(),
        ],
        "block_volume" => vec![[label(), superblock()].concat()],
        "digest" => digest_pages(),
        "section" => {
            let mut seeds: Vec<_> = index_sections().into_iter().map(|(_, raw)| raw).collect();
            seeds.push(part());
            seeds
        }
        "flows" => vec![four_sections()],
        "import" => vec![pcapng(), pcap()],
        "device" => vec![smart_log(), identify_controller(), amazon_log(), error_log()],
        "config" => vec![
            b"store: /tmp/s\ncapture:\n  - interface: eth0\n".to_vec(),
            wirevault_config::reference::example_yaml().into_bytes(),
        ],
        "packet" => frames().into_iter().map(|frame| [vec![1], frame].concat()).collect(),
        "decap" => tunnels().into_iter().map(|frame| [vec![1, 0, 0, 0], frame].concat()).collect(),
        "program" => vec![tcp_port_80()],
        "ring" => vec![key_ring()],
        "audit" => vec![state::audit_log()],
        "checkpoint" => state::checkpoints(),
        "catalog" => vec![state::catalog()],
        "beside_log" => state::beside_log(),
        other => panic!("target {other} has no seeds"),
    }
}

fn eth0() -> Interface {
    let mut interface = Interface::unnamed(LinkType::ETHERNET);
    interface.name = Some("eth0".to_owned());
    interface
}

/// A device that is warm and half worn.
fn smart_log() -> Vec<u8> {
    let mut page = vec![0; 512];
    page[..6].copy_from_slice(&[2, 0x4d, 1, 90, 10, 50]);
    page[48] = 200;
    page
}

/// Two entries of an error log: a failed read and a failed write.
fn error_log() -> Vec<u8> {
    let mut page = vec![0; 128];
    page[..16].copy_from_slice(&[2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 7, 0, 2, 5, 0, 0]);
    page[64] = 1;
    page[76..78].copy_from_slice(&[0, 5]);
    page
}

fn identify_controller() -> Vec<u8> {
    let mut page = vec![0; 4096];
    page[4..24].copy_from_slice(b"AWS1A2B3C4D5E6F7    ");
    page[24..56].copy_from_slice(b"Amazon EC2 NVMe Instance Storage");
    page[77] = 7;
    page[525] = 1;
    page[3072..3080].copy_from_slice(b"/dev/sdf");
    page
}

/// An EBS volume with one bin in either histogram.
fn amazon_log() -> Vec<u8> {
    let mut page = vec![0; 4096];
    page[..4].copy_from_slice(&0x3c23_b510u32.to_le_bytes());
    for at in [512, 2056] {
        page[at] = 1;
        page[at + 16] = 8;
        page[at + 24] = 3;
    }
    page
}

/// Plain TCP, VLAN with UDP, and IPv6 with an extension header.
fn frames() -> Vec<Vec<u8>> {
    let mut tcp = vec![0; 12];
    tcp.extend([8, 0, 0x45, 0, 0, 44, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    tcp.extend([0x1f, 0x90, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 1, 0, 0, 0, 0, 0, 1, 2, 3, 4]);
    let mut vlan = vec![0; 12];
    vlan.extend([0x81, 0, 0, 5, 8, 0, 0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0]);
    vlan.extend([10, 0, 0, 3, 10, 0, 0, 4, 0x12, 0xb5, 0x12, 0xb5, 0, 12, 0, 0, 8, 0, 0, 0]);
    let mut six = vec![0; 12];
    six.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 16, 0, 64]);
    six.extend([0xfd; 16]);
    six.extend([0xfe; 16]);
    six.extend([17, 0, 1, 4, 0, 0, 0, 0, 0, 53, 0, 53, 0, 8, 0, 0]);
    vec![tcp, vlan, six]
}

/// The frames above in VXLAN behind a tag, in GENEVE, ERSPAN and GTP-U, behind MPLS labels, and as
/// the payload of a datagram.
fn tunnels() -> Vec<Vec<u8>> {
    let inner = frames().swap_remove(0);
    let ip = |protocol: u8, payload: &[u8]| {
        let mut out = vec![0x45, 0];
        out.extend((20 + payload.len() as u16).to_be_bytes());
        out.extend([0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 5, 10, 0, 0, 6]);
        [&out, payload].concat()
    };
    let udp = |port: u16, payload: &[u8]| {
        let length = (8 + payload.len() as u16).to_be_bytes();
        [&[0xc0, 0][..], &port.to_be_bytes(), &length, &[0, 0], payload].concat()
    };
    let ethernet = |kind: &[u8], payload: &[u8]| [&[2; 12], kind, payload].concat();
    let vxlan = [&[8, 0, 0, 0, 0, 0, 7, 0][..], &inner].concat();
    let geneve = [&[1, 0, 0x65, 0x58, 0, 0, 7, 0, 1, 8, 1, 0][..], &inner].concat();
    let erspan = [&[0x10, 0, 0x88, 0xbe, 0, 0, 0, 1, 0x10, 1, 0, 5, 0, 0, 0, 0][..], &inner];
    let mut gtp_u = vec![0x34, 0xff, 0, 8 + inner.len() as u8 - 14, 0, 0, 0, 1];
    gtp_u.extend([0, 0, 0, 0x85, 1, 0x10, 5, 0]);
    gtp_u.extend(&inner[14..]);
    let labels = [&[0, 0, 0x70, 64, 0, 0, 0x91, 64][..], &[0, 0, 0, 1], &inner].concat();
    vec![
        ethernet(&[0x81, 0, 0, 9, 8, 0], &ip(17, &udp(4789, &vxlan))),
        ethernet(&[8, 0], &ip(17, &udp(6081, &geneve))),
        ethernet(&[8, 0], &ip(47, &erspan.concat())),
        ethernet(&[8, 0], &ip(17, &udp(2152, &gtp_u))),
        ethernet(&[8, 0], &ip(4, &ip(41, &inner[14..]))),
        ethernet(&[0x88, 0x47], &labels),
        vxlan,
    ]
}

fn payload() -> Vec<u8> {
    let mut payload = vec![0; 4096];
    let mut at = 0;
    for (n, frame) in frames().iter().enumerate() {
        let parts = EpbParts {
            interface_id: 0,
            ts_ns: 1_000 + n as u64,
            orig_len: frame.len() as u32,
            data: frame,
            vlan: None,
            flags: Some(1),
            raw_options: &[],
        };
        at += put_epb(&mut payload, at, &parts).unwrap_or(0);
    }
    let mut block = [0; GAP_BYTES];
    gap().encode(&mut block);
    payload.truncate(at);
    payload.extend(block);
    payload
}

fn gap() -> Gap {
    Gap {
        cause: Cause::NoBuffer,
        from_ns: 1,
        until_ns: Some(2),
        packets: Some(3),
        cumulative: 3,
        sequence: 3,
        policy: None,
        pressure: None,
    }
}

fn plain_chunk() -> Vec<u8> {
    let payload = payload();
    let header = ChunkHeader {
        sealed: false,
        gaps: true,
        lane: 0,
        link_type: LinkType::ETHERNET,
        life: LifeId([1; 16]),
        run: RunId(2),
        number: 0,
        payload_bytes: payload.len() as u32,
        first_sequence: 0,
        packets: 3,
        times_ns: Some((1_000, 1_002)),
        received: 6,
        shed: 0,
        dropped: 3,
        watermark: 0,
    };
    let mut chunk = vec![0; header.chunk_bytes()];
    header.encode(&mut chunk);
    chunk[HEADER_BYTES..HEADER_BYTES + payload.len()].copy_from_slice(&payload);
    chunk::put_plain_tail(&mut chunk, &header);
    chunk
}

fn region() -> Vec<u8> {
    let header = SegmentHeader {
        sealed: false,
        import: false,
        lane: 0,
        link_type: LinkType::ETHERNET,
        life: LifeId([1; 16]),
        run: RunId(2),
        store: StoreId([3; 16]),
        ordinal: 4,
        place: 5,
        opened_ns: 6,
    };
    let plain = |_: &[u8], _: &mut Vec<u8>| -> Result<[u8; 16], FormatError> { Ok([0; 16]) };
    header.encode(&[eth0()], plain).expect("one interface fits")
}

fn chunk_entry() -> ChunkEntry {
    ChunkEntry {
        offset: 4096,
        chunk_bytes: 4096,
        packets: 3,
        times_ns: Some((1_000, 1_002)),
        first_sequence: 0,
    }
}

fn footer() -> Vec<u8> {
    let footer = Footer {
        sealed: false,
        recovered: false,
        lane: 0,
        link_type: LinkType::ETHERNET,
        life: LifeId([1; 16]),
        run: RunId(2),
        ordinal: 4,
        chunks: 1,
        close_reason: CloseReason::Stop,
        packets: 3,
        captured_bytes: 100,
        times_ns: Some((1_000, 1_002)),
        sequences: (0, 3),
        received: 6,
        shed: 0,
        dropped: [0; CAUSES],
        opened_ns: 6,
        closed_ns: 7,
        data_offset: 4096,
        index_offset: 8192,
        flows: 3,
        unindexed_chunks: 0,
        chain: [0; 32],
        directory: Vec::new(),
    };
    let plain = |_: &[u8]| -> Result<([u8; 16], [u8; 16]), FormatError> { Ok(([0; 16], [0; 16])) };
    footer.encode(plain).expect("an empty directory fits").to_vec()
}

fn part() -> Vec<u8> {
    let body = chunk_entry().encode();
    let header = PartHeader {
        id: SectionId::Chunks,
        part: 0,
        life: LifeId([1; 16]),
        sealed: false,
        payload_bytes: CHUNK_ENTRY_BYTES as u32,
    };
    let mut out = Vec::new();
    header.encode(&mut out, &[0; 16], &body);
    out
}

/// A plain store of one volume with 64 places.
fn superblock() -> Vec<u8> {
    let superblock = Superblock {
        sealed: false,
        replacement: false,
        store: StoreId([1; 16]),
        volume: VolumeId([2; 16]),
        number: 0,
        places: 64,
        generation: 1,
        segment_bytes: 16 << 20,
        quota_bytes: 1 << 30,
        created_ns: 3,
        evicted_live_ns: 0,
        evicted_import_ns: 0,
        segments_offset: 2 << 20,
        segments_pages: 3,
        runs_offset: (2 << 20) + 6 * 4096,
        runs_pages: 2,
        ring_offset: 0,
        ring_slot_bytes: 0,
        key_id: String::new(),
        key_path: String::new(),
        volume_paths: vec!["/dev/nvme0n1".to_owned()],
    };
    superblock.encode().expect("one path fits").to_vec()
}

/// The label of a device of 2 MiB, as docs/FORMAT.md has it: without its sum.
fn label() -> Vec<u8> {
    let mut block = vec![0; 4096];
    block[..8].copy_from_slice(b"WVDEVICE");
    block[8] = 1;
    block[12] = 1;
    for (at, field) in (16..).step_by(8).zip([1u64 << 20, 512 << 10, 1536 << 10, 4096, 2 << 20]) {
        block[at..at + 8].copy_from_slice(&field.to_le_bytes());
    }
    block
}

/// The pages of a digest over the frames above.
fn digest_pages() -> Vec<Vec<u8>> {
    let encoded = index().encode().expect("a small index encodes");
    let pages = encoded.digest.and_then(|digest| digest.pages(2)).expect("its facts fit");
    let page = |payload: PagePayload| {
        let header = PageHeader {
            page: payload.page,
            sealed: false,
            probes: payload.probes,
            place: 5,
            life: LifeId([1; 16]),
            closed_ns: 7,
            payload_bytes: payload.bytes.len() as u16,
        };
        header.encode(&[0; 16], &payload.bytes).to_vec()
    };
    pages.into_iter().map(page).collect()
}

/// A log of a few lines, as the recorder writes it.
/// The raw sections of an index over the frames above.
fn index_sections() -> Vec<(SectionId, Vec<u8>)> {
    let encoded = index().encode().expect("a small index encodes");
    encoded.sections.into_iter().map(|section| (section.id, section.into_raw())).collect()
}

/// An index over the frames above.
fn index() -> SegmentIndex {
    let mut table = FlowTable::new(FlowOptions { flows_max: 100 });
    let mut delta = ChunkDelta::new();
    delta.chunk = chunk_entry();
    delta.gaps.push(gap());
    table.begin_chunk(&delta);
    for (n, frame) in frames().iter().enumerate() {
        let dissected = dissect(LinkType::ETHERNET, frame);
        let note = PacketNote {
            key: dissected.key,
            hash: dissected.hash,
            direction: dissected.direction,
            ts_ns: 1_000 + n as u64,
            wire_len: frame.len() as u32,
            captured_len: frame.len() as u32,
            tcp_flags: dissected.tcp_flags,
        };
        table.upsert(&[note], &mut delta);
    }
    let mut index = SegmentIndex::new();
    index.apply(&delta).expect("the first delta applies");
    index
}

fn four_sections() -> Vec<u8> {
    let wanted = [SectionId::Shapes, SectionId::Hosts, SectionId::Flows, SectionId::Postings];
    let sections = index_sections();
    let raw = |id| sections.iter().find(|(found, _)| *found == id).map_or(&[][..], |(_, raw)| raw);
    let parts = wanted.map(raw);
    let total: usize = parts.iter().map(|part| part.len()).sum();
    let mut end = 0;
    let mut cuts = parts.iter().take(3).map(|part| {
        end += part.len();
        (end * 256).div_ceil(total) as u8
    });
    let cuts = [0, 1, 2].map(|_| cuts.next().unwrap_or(0));
    [&cuts[..], &parts.concat()].concat()
}

fn pcapng() -> Vec<u8> {
    let mut file = Vec::new();
    put_shb(&mut file, "seed");
    put_idb(&mut file, &eth0(), 262_144);
    let payload = payload();
    file.extend(&payload[..payload.len() - GAP_BYTES]);
    file
}

fn pcap() -> Vec<u8> {
    let mut file = 0xa1b2_3c4d_u32.to_le_bytes().to_vec();
    file.extend([2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0]);
    for frame in frames() {
        let len = (frame.len() as u32).to_le_bytes();
        file.extend([[1, 0, 0, 0], [2, 0, 0, 0], len, len].concat());
        file.extend(frame);
    }
    file
}

/// What libpcap makes of `tcp port 80` without IPv6, and a frame that it accepts.
fn tcp_port_80() -> Vec<u8> {
    let insns: [(u16, u8, u8, u32); 12] = [
        (0x28, 0, 0, 12),
        (0x15, 0, 9, 0x800),
        (0x30, 0, 0, 23),
        (0x15, 0, 7, 6),
        (0x28, 0, 0, 20),
        (0x45, 5, 0, 0x1fff),
        (0xb1, 0, 0, 14),
        (0x48, 0, 0, 14),
        (0x15, 1, 0, 80),
        (0x48, 0, 0, 16),
        (0x06, 0, 0, 262_144),
        (0x06, 0, 0, 0),
    ];
    let mut seed: Vec<u8> = Vec::new();
    for (code, jt, jf, k) in insns {
        seed.extend(code.to_le_bytes());
        seed.extend([jt, jf]);
        seed.extend(k.to_le_bytes());
    }
    let mut frame = frames().swap_remove(0);
    frame.resize(seed.len(), 0);
    seed.extend(frame);
    seed
}

fn key_ring() -> Vec<u8> {
    let mut ring = KeyRing::new(StoreId([1; 16]), VolumeId([2; 16]));
    ring.fill_spares(2).expect("random numbers are there");
    ring.advance_epoch();
    ring.encode(provider()).expect("the provider below never refuses")
}

/// A provider that wraps by copying: the fuzzer looks for defects of parsers, not of ciphers.
pub fn provider() -> &'static dyn KeyProvider {
    static PROVIDER: OnceLock<Copying> = OnceLock::new();
    PROVIDER.get_or_init(|| Copying)
}

struct Copying;

impl KeyProvider for Copying {
    fn id(&self) -> String {
        "copying".to_owned()
    }

    fn wrap(&self, plaintext: &[u8], _: &[u8]) -> Result<Vec<u8>, SealError> {
        Ok(plaintext.to_vec())
    }

    fn unwrap(&self, wrapped: &[u8], _: &[u8]) -> Result<LockedBytes, SealError> {
        LockedBytes::copy_of(wrapped)
    }
}
