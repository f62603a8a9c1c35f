//! Every size, offset and number that the format promises. A test compares this text with
//! `tests/data/constants.txt`: a change of the format cannot pass unseen.
//!
//! Offsets are shown by encoding one sample of every structure: field after field holds 1, 2, 3 and
//! so on, and every 16 bytes that are not all zero are printed behind their offset.

use std::convert::Infallible;
use std::fmt::Write;

use wirevault_format::chunk::ChunkHeader;
use wirevault_format::footer::{ChunkEntry, CloseReason, Codec, DirectoryEntry, Footer};
use wirevault_format::gap::{CAUSES, GAP_BYTES};
use wirevault_format::local::Kind;
use wirevault_format::section::{PartHeader, SectionId};
use wirevault_format::superblock::Superblock;
use wirevault_format::table::{self, Entry, RunEntry, RunState, SegmentEntry, SegmentState};
use wirevault_format::{
    Cause, Gap, LifeId, LinkType, PolicyName, RunId, StoreId, VolumeId, chunk, crc32c, footer, gap,
    limits, local, pcapng, section, segment, superblock,
};
use wirevault_storage::plan;

/// The text.
pub(super) fn text() -> String {
    let mut out = String::new();
    numbers(&mut out);
    names(&mut out);
    samples(&mut out);
    out
}

fn numbers(out: &mut String) {
    macro_rules! put {
        ($($path:path),* $(,)?) => {
            $( line(out, &format!("{} = {}", path(stringify!($path)), $path)); )*
        };
    }
    heading(out, "sizes and numbers");
    put!(
        limits::LBA_BYTES,
        limits::CHUNK_BYTES,
        limits::SNAPLEN_MAX,
        limits::BLOCK_BYTES_MAX,
        limits::SEGMENT_INTERFACES_MAX,
        local::BLOCK_TYPE,
        local::VERSION,
        local::START_BYTES,
        superblock::FORMAT_VERSION,
        superblock::VOLUMES_MAX,
        table::ENTRY_BYTES,
        table::PAGE_ENTRIES,
        segment::HEADER_AAD_BYTES,
        segment::REGION_BYTES_MAX,
        chunk::HEADER_BYTES,
        chunk::TAIL_BYTES_MIN,
        chunk::TAG_BYTES,
        chunk::PAYLOAD_BYTES_MAX,
        gap::GAP_BYTES,
        gap::CAUSES,
        PolicyName::BYTES_MAX,
        section::PART_HEADER_BYTES,
        section::PART_AAD_BYTES,
        section::PART_TAG_BYTES,
        section::PART_PAYLOAD_BYTES_MAX,
        footer::FOOTER_BYTES,
        footer::FOOTER_AAD_BYTES,
        footer::CHUNK_ENTRY_BYTES,
        pcapng::OPTION_IF_OWN_SNAPLEN,
        pcapng::OPTION_IF_CLOCK,
        pcapng::TEXT_BYTES_MAX,
        pcapng::PACKET_OPTIONS_BYTES_MAX,
        wirevault_seal::KEY_BYTES,
        wirevault_seal::SALT_BYTES,
        wirevault_seal::ring::HEAD_BYTES,
        wirevault_seal::ring::ENTRIES_MAX,
        wirevault_seal::ring::WRAPPED_ROOT_BYTES_MAX,
        plan::SEGMENT_BYTES_MAX,
        plan::SEGMENT_BYTES_MIN,
        plan::SEGMENTS_PER_LANE,
        plan::SEGMENTS_PER_VOLUME,
        plan::PLACES_MIN,
        plan::PLACES_PER_SEGMENT,
        plan::PLACES_MAX,
        plan::SPARES_MIN,
    );
    line(out, &format!("superblock::SLOT_OFFSETS = {:?}", superblock::SLOT_OFFSETS));
    for (name, magic) in [
        ("local::MAGIC", local::MAGIC),
        ("superblock::MAGIC", superblock::MAGIC),
        ("table::PAGE_MAGIC", table::PAGE_MAGIC),
    ] {
        line(out, &format!("{name} = \"{}\"", magic.escape_ascii()));
    }
    line(out, &format!("crc32c(\"123456789\") = {:#010x}", crc32c(b"123456789")));
}

fn names(out: &mut String) {
    heading(out, "numbers with a meaning");
    for cause in Cause::ALL {
        line(out, &format!("cause {} = {cause}", *cause as u16));
    }
    for reason in (0..).map_while(CloseReason::from_number) {
        line(out, &format!("close reason {} = {}", reason as u16, reason.name()));
    }
    for id in SectionId::ALL {
        line(out, &format!("section {} = {id:?}", *id as u16));
    }
    for kind in [
        Kind::Skip,
        Kind::Segment,
        Kind::ChunkHead,
        Kind::ChunkTail,
        Kind::Gap,
        Kind::Section,
        Kind::Footer,
        Kind::SealedChunk,
    ] {
        line(out, &format!("block kind {} = {kind:?}", kind as u8));
    }
    for codec in [Codec::Raw, Codec::Zstd] {
        line(out, &format!("codec {} = {codec:?}", codec as u8));
    }
    for state in
        [SegmentState::Free, SegmentState::Open, SegmentState::Closed, SegmentState::Forgetting]
    {
        line(out, &format!("segment state {} = {state:?}", state as u8));
    }
    for state in [RunState::None, RunState::Running, RunState::Ended, RunState::Crashed] {
        line(out, &format!("run state {} = {state:?}", state as u8));
    }
}

const LIFE: LifeId = LifeId([0x11; 16]);
const RUN: RunId = RunId(0x2222_2222_2222_2222);
const LINK: LinkType = LinkType(0x3333);

fn samples(out: &mut String) {
    superblock_sample(out);
    table_samples(out);
    chunk_samples(out);
    footer_sample(out);
    let gap = Gap {
        cause: Cause::Shed,
        from_ns: 1,
        until_ns: Some(2),
        packets: Some(3),
        cumulative: 4,
        sequence: 5,
        policy: PolicyName::new("backups"),
        pressure: None,
    };
    let mut block = [0; GAP_BYTES];
    gap.encode(&mut block);
    sample(out, "gap", &block);
    let part =
        PartHeader { id: SectionId::Flows, part: 1, life: LIFE, sealed: true, payload_bytes: 2 };
    let mut block = Vec::new();
    part.encode(&mut block, &[0x44; 16], &[0x55; 18]);
    sample(out, "index section", &block);
}

fn superblock_sample(out: &mut String) {
    let superblock = Superblock {
        sealed: true,
        replacement: false,
        store: StoreId([0x44; 16]),
        volume: VolumeId([0x55; 16]),
        number: 1,
        places: 2,
        generation: 3,
        segment_bytes: 4,
        quota_bytes: 5,
        created_ns: 6,
        evicted_live_ns: 7,
        evicted_import_ns: 8,
        segments_offset: 9,
        segments_pages: 10,
        runs_offset: 11,
        runs_pages: 12,
        ring_offset: 13,
        ring_slot_bytes: 14,
        key_id: "key id".to_owned(),
        key_path: "key path".to_owned(),
        volume_paths: vec!["volume 0".to_owned(), "volume 1".to_owned()],
    };
    // Short texts always fit.
    sample(out, "superblock", &superblock.encode().unwrap_or([0; limits::LBA_BYTES]));
}

fn table_samples(out: &mut String) {
    let entry = SegmentEntry {
        state: SegmentState::Closed,
        sealed: true,
        import: true,
        recovered: true,
        damaged: true,
        contested: true,
        bad: true,
        lane: 1,
        link_type: LINK,
        close_reason: CloseReason::DeviceFailed,
        life: LIFE,
        run: RUN,
        ordinal: 2,
        opened_ns: 3,
        closed_ns: 4,
        times_ns: Some((5, 6)),
        packets: 7,
        captured_bytes: 8,
        file_bytes: 9,
        footer_offset: 10,
        sequences: (11, 12),
        chunks: 13,
        hold: 14,
    };
    sample(out, "segment entry", &entry.encode());
    let run = RunEntry {
        state: RunState::Crashed,
        import: true,
        lanes: 1,
        run: RUN,
        started_ns: 2,
        alive_ns: 3,
        ended_ns: 4,
    };
    sample(out, "run entry", &run.encode());
    sample(out, "table page", &table::encode_page(1, 2, &[run]));
}

fn chunk_samples(out: &mut String) {
    let mut header = ChunkHeader {
        sealed: false,
        gaps: true,
        lane: 1,
        link_type: LINK,
        life: LIFE,
        run: RUN,
        number: 2,
        payload_bytes: 4,
        first_sequence: 5,
        packets: 6,
        times_ns: Some((7, 8)),
        received: 9,
        shed: 10,
        dropped: 11,
        watermark: 12,
    };
    let mut plain = vec![0; header.chunk_bytes()];
    plain[chunk::HEADER_BYTES..chunk::HEADER_BYTES + 4].fill(0x55);
    header.encode(&mut plain);
    chunk::put_plain_tail(&mut plain, &header);
    sample(out, "plain chunk", &plain);
    header.sealed = true;
    let mut sealed = vec![0; header.chunk_bytes()];
    sealed[chunk::HEADER_BYTES..chunk::HEADER_BYTES + 4].fill(0x55);
    header.encode(&mut sealed);
    chunk::put_sealed_tail(&mut sealed, &header, &[0x66; chunk::TAG_BYTES]);
    sample(out, "sealed chunk", &sealed);
}

fn footer_sample(out: &mut String) {
    let mut dropped = [0; CAUSES];
    (100..).zip(&mut dropped).for_each(|(number, dropped)| *dropped = number);
    let directory = DirectoryEntry {
        id: SectionId::Filter,
        parts: 18,
        codec: Codec::Zstd,
        offset: 19,
        blocks_bytes: 20,
        raw_bytes: 21,
    };
    let footer = Footer {
        sealed: true,
        recovered: true,
        lane: 1,
        link_type: LINK,
        life: LIFE,
        run: RUN,
        ordinal: 2,
        chunks: 3,
        close_reason: CloseReason::DeviceFailed,
        packets: 4,
        captured_bytes: 5,
        times_ns: Some((6, 7)),
        sequences: (8, 9),
        received: 10,
        shed: 11,
        dropped,
        opened_ns: 12,
        closed_ns: 13,
        data_offset: 14,
        index_offset: 15,
        flows: 16,
        unindexed_chunks: 17,
        chain: [0x44; 32],
        directory: vec![directory],
    };
    let seal = |_: &[u8]| Ok::<_, Infallible>(([0x55; 16], [0x66; 16]));
    let Ok(page) = footer.encode(seal);
    sample(out, "footer", &page);
    let entry = ChunkEntry {
        offset: 1,
        chunk_bytes: 2,
        packets: 3,
        times_ns: Some((4, 5)),
        first_sequence: 6,
    };
    sample(out, "chunk entry", &entry.encode());
}

fn sample(out: &mut String, name: &str, bytes: &[u8]) {
    heading(out, &format!("{name}, {} bytes", bytes.len()));
    for (number, row) in bytes.chunks(16).enumerate() {
        if row.iter().any(|byte| *byte != 0) {
            let hex: Vec<String> = row.iter().map(|byte| format!("{byte:02x}")).collect();
            line(out, &format!("{:6} {}", number * 16, hex.join(" ")));
        }
    }
}

/// `limits :: LBA_BYTES` without its blanks.
fn path(text: &str) -> String {
    text.replace(' ', "")
}

fn heading(out: &mut String, text: &str) {
    let gap = if out.is_empty() { "" } else { "\n" };
    line(out, &format!("{gap}# {text}"));
}

fn line(out: &mut String, text: &str) {
    // Writing into a text cannot fail.
    let _ = writeln!(out, "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUARD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/constants.txt");

    /// Stores in the field have the format that this file shows. Whoever changes it says so in
    /// docs/FORMAT.md and decides what becomes of those stores.
    #[test]
    fn the_format_is_what_it_was() {
        let expected = std::fs::read_to_string(GUARD).unwrap_or_default();
        let (now, expected): (Vec<_>, Vec<_>) =
            (text().lines().map(str::to_owned).collect(), expected.lines().collect());
        let differs = (0..now.len().max(expected.len()))
            .find(|at| now.get(*at).map(String::as_str) != expected.get(*at).copied());
        if let Some(at) = differs {
            panic!(
                "line {}: {:?} instead of {:?}; `wirevault inspect constants` makes the file",
                at + 1,
                now.get(at),
                expected.get(at)
            );
        }
    }
}
