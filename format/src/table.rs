//! Tables of 128-byte entries in two slots: the segment table and the run table of a volume.
//!
//! Each slot is a row of 4096-byte pages. A page is rewritten alone, into the slot that does *not*
//! hold its newest generation; a torn write therefore loses to the older page, and the older page
//! is always a state that recovery accepts. Page layout, little-endian:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | [`PAGE_MAGIC`] |
//! | 8 | 8 | generation, from 1 |
//! | 16 | 4 | page number in the slot |
//! | 20 | 4 | which table: 1 segments, 2 runs |
//! | 24 | 8 | zero |
//! | 32 | 31 x 128 | entries |
//! | 4000 | 92 | zero |
//! | 4092 | 4 | CRC-32C of bytes 0 to 4091 |

use crate::bytes::{all_zero, array_at, put, put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};
use crate::footer::CloseReason;
use crate::limits::LBA_BYTES;
use crate::{FormatError, LifeId, LinkType, RunId, crc32c};

/// First bytes of a page.
pub const PAGE_MAGIC: [u8; 8] = *b"WVTABLE\x01";
/// Bytes of an entry.
pub const ENTRY_BYTES: usize = 128;
/// Entries of a page.
pub const PAGE_ENTRIES: usize = 31;

const ENTRIES_AT: usize = 32;
const CRC_AT: usize = LBA_BYTES - 4;
const STRUCTURE: &str = "table page";

/// Which table a page belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum TableKind {
    /// One entry a place: what the place holds.
    Segments = 1,
    /// One entry a run: when the store was being written.
    Runs = 2,
}

/// An entry of one of the tables.
pub trait Entry: Sized + Default + Clone {
    /// The table it belongs to.
    const KIND: TableKind;

    /// Writes the entry.
    fn encode(&self) -> [u8; ENTRY_BYTES];

    /// Reads the entry.
    ///
    /// # Errors
    /// `Field` if a field has a value that it cannot have.
    fn decode(bytes: &[u8; ENTRY_BYTES]) -> Result<Self, FormatError>;
}

/// Encodes page `number` of a table. Missing entries are written as default ones.
pub fn encode_page<E: Entry>(number: u32, generation: u64, entries: &[E]) -> [u8; LBA_BYTES] {
    let mut page = [0; LBA_BYTES];
    put(&mut page, 0, &PAGE_MAGIC);
    put_u64(&mut page, 8, generation);
    put_u32(&mut page, 16, number);
    put_u32(&mut page, 20, E::KIND as u32);
    for n in 0..PAGE_ENTRIES {
        let entry = entries.get(n).map_or_else(|| E::default().encode(), Entry::encode);
        put(&mut page, ENTRIES_AT + n * ENTRY_BYTES, &entry);
    }
    let crc = crc32c(&page[..CRC_AT]);
    put_u32(&mut page, CRC_AT, crc);
    page
}

/// Reads page `number` of a table and gives its generation and entries.
///
/// # Errors
/// `NotPresent` if the page was never written, `Checksum` if it is torn or damaged, `Field`
/// otherwise.
pub fn decode_page<E: Entry>(number: u32, page: &[u8]) -> Result<(u64, Vec<E>), FormatError> {
    if page.len() < LBA_BYTES {
        return Err(FormatError::Short { structure: STRUCTURE, have: page.len(), need: LBA_BYTES });
    }
    if page[..8] != PAGE_MAGIC {
        return Err(FormatError::NotPresent { structure: STRUCTURE });
    }
    let (found, expected) = (u32_at(page, CRC_AT), crc32c(&page[..CRC_AT]));
    if found != expected {
        return Err(FormatError::Checksum { structure: STRUCTURE, found, expected });
    }
    let field = |field, value| FormatError::Field { structure: STRUCTURE, field, value };
    if u32_at(page, 16) != number {
        return Err(field("page number", u64::from(u32_at(page, 16))));
    }
    if u32_at(page, 20) != E::KIND as u32 {
        return Err(field("table kind", u64::from(u32_at(page, 20))));
    }
    let entries = (0..PAGE_ENTRIES)
        .map(|n| E::decode(&array_at(page, ENTRIES_AT + n * ENTRY_BYTES)))
        .collect::<Result<_, _>>()?;
    Ok((u64_at(page, 8), entries))
}

/// What a place holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum SegmentState {
    /// Nothing that may be read.
    #[default]
    Free = 0,
    /// A lane writes to it, or a crash left it so.
    Open = 1,
    /// Complete, with index and footer.
    Closed = 2,
    /// Deleted: its key goes, then its space. Nobody reads it any more; the entry stays until that
    /// is done, so that a start after a crash finishes it.
    Forgetting = 3,
}

/// Entry of the segment table.
///
/// Layout, 128 bytes, little-endian: 0 state u8; 1 flags u8 (1 sealed, 2 import, 4 recovered, 8
/// damaged, 16 contested, 32 bad); 2 lane u16; 4 link type u16; 6 close reason u16; 8 life id; 24
/// run id u64; 32 ordinal u64; 40 opened ns; 48 closed ns; 56 smallest packet time (all ones:
/// none); 64 largest; 72 packets u64; 80 captured bytes u64; 88 file bytes u64; 96 footer offset
/// u64; 104 first stream sequence u64; 112 the one after the last u64; 120 chunks u32; 124 hold
/// u32.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentEntry {
    /// What the place holds.
    pub state: SegmentState,
    /// Payload is encrypted.
    pub sealed: bool,
    /// Written by an import.
    pub import: bool,
    /// Closed by recovery.
    pub recovered: bool,
    /// Recovery found damage below the watermark.
    pub damaged: bool,
    /// A writer that lost its lease may still have a write under way to the place, whatever is
    /// there now: it is given to no new segment.
    pub contested: bool,
    /// The medium does not take what is written somewhere in the place: it is given to no new
    /// segment, and what is there was written elsewhere in it.
    pub bad: bool,
    /// Lane.
    pub lane: u16,
    /// Link type.
    pub link_type: LinkType,
    /// Why it was closed.
    pub close_reason: CloseReason,
    /// Life.
    pub life: LifeId,
    /// Run.
    pub run: RunId,
    /// Store-wide number.
    pub ordinal: u64,
    /// Time opened, ns.
    pub opened_ns: u64,
    /// Time closed, ns; 0 while open.
    pub closed_ns: u64,
    /// Smallest and largest packet time, ns; known when closed.
    pub times_ns: Option<(u64, u64)>,
    /// Packets.
    pub packets: u64,
    /// Captured bytes.
    pub captured_bytes: u64,
    /// Bytes the segment occupies on the volume.
    pub file_bytes: u64,
    /// Offset of the footer; 0 while open.
    pub footer_offset: u64,
    /// First stream sequence, and the one after the last.
    pub sequences: (u64, u64),
    /// Chunks.
    pub chunks: u32,
    /// Number of the hold for which this is a copy of chunks of another segment; 0: it is none.
    /// Run, lane and sequences are those of the other one. Quota and retention leave it alone.
    pub hold: u32,
}

impl SegmentEntry {
    /// Whether a new segment may be written to the place once it is free.
    pub fn is_usable(&self) -> bool {
        !self.contested && !self.bad
    }

    /// Whether the place holds a segment that may be read. A copy for a hold may be once it is
    /// closed: until then all that is in it lies where it was copied from.
    pub fn is_readable(&self) -> bool {
        match self.state {
            SegmentState::Open => self.hold == 0,
            SegmentState::Closed => true,
            SegmentState::Free | SegmentState::Forgetting => false,
        }
    }
}

impl Default for SegmentEntry {
    fn default() -> Self {
        Self {
            state: SegmentState::Free,
            sealed: false,
            import: false,
            recovered: false,
            damaged: false,
            contested: false,
            bad: false,
            lane: 0,
            link_type: LinkType(0),
            close_reason: CloseReason::Full,
            life: LifeId::default(),
            run: RunId::default(),
            ordinal: 0,
            opened_ns: 0,
            closed_ns: 0,
            times_ns: None,
            packets: 0,
            captured_bytes: 0,
            file_bytes: 0,
            footer_offset: 0,
            sequences: (0, 0),
            chunks: 0,
            hold: 0,
        }
    }
}

impl Entry for SegmentEntry {
    const KIND: TableKind = TableKind::Segments;

    fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[0] = self.state as u8;
        let flags =
            [self.sealed, self.import, self.recovered, self.damaged, self.contested, self.bad];
        bytes[1] = flags.iter().enumerate().map(|(bit, set)| u8::from(*set) << bit).sum();
        put_u16(&mut bytes, 2, self.lane);
        put_u16(&mut bytes, 4, self.link_type.0);
        put_u16(&mut bytes, 6, self.close_reason as u16);
        put(&mut bytes, 8, &self.life.0);
        put_u64(&mut bytes, 24, self.run.0);
        put_u64(&mut bytes, 32, self.ordinal);
        put_u64(&mut bytes, 40, self.opened_ns);
        put_u64(&mut bytes, 48, self.closed_ns);
        let (min_ns, max_ns) = self.times_ns.unwrap_or((u64::MAX, 0));
        put_u64(&mut bytes, 56, min_ns);
        put_u64(&mut bytes, 64, max_ns);
        put_u64(&mut bytes, 72, self.packets);
        put_u64(&mut bytes, 80, self.captured_bytes);
        put_u64(&mut bytes, 88, self.file_bytes);
        put_u64(&mut bytes, 96, self.footer_offset);
        put_u64(&mut bytes, 104, self.sequences.0);
        put_u64(&mut bytes, 112, self.sequences.1);
        put_u32(&mut bytes, 120, self.chunks);
        put_u32(&mut bytes, 124, self.hold);
        bytes
    }

    fn decode(bytes: &[u8; ENTRY_BYTES]) -> Result<Self, FormatError> {
        let field = |field, value| FormatError::Field { structure: "segment entry", field, value };
        let state = match bytes[0] {
            0 => SegmentState::Free,
            1 => SegmentState::Open,
            2 => SegmentState::Closed,
            3 => SegmentState::Forgetting,
            other => return Err(field("state", u64::from(other))),
        };
        let reason = u16_at(bytes, 6);
        let (min_ns, max_ns) = (u64_at(bytes, 56), u64_at(bytes, 64));
        let flag = |bit: u8| bytes[1] & (1 << bit) != 0;
        Ok(Self {
            state,
            sealed: flag(0),
            import: flag(1),
            recovered: flag(2),
            damaged: flag(3),
            contested: flag(4),
            bad: flag(5),
            lane: u16_at(bytes, 2),
            link_type: LinkType(u16_at(bytes, 4)),
            close_reason: CloseReason::from_number(reason)
                .ok_or(field("close reason", u64::from(reason)))?,
            life: LifeId(array_at(bytes, 8)),
            run: RunId(u64_at(bytes, 24)),
            ordinal: u64_at(bytes, 32),
            opened_ns: u64_at(bytes, 40),
            closed_ns: u64_at(bytes, 48),
            times_ns: (min_ns <= max_ns).then_some((min_ns, max_ns)),
            packets: u64_at(bytes, 72),
            captured_bytes: u64_at(bytes, 80),
            file_bytes: u64_at(bytes, 88),
            footer_offset: u64_at(bytes, 96),
            sequences: (u64_at(bytes, 104), u64_at(bytes, 112)),
            chunks: u32_at(bytes, 120),
            hold: u32_at(bytes, 124),
        })
    }
}

/// How far a run got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum RunState {
    /// No run.
    #[default]
    None = 0,
    /// It runs, or a crash ended it.
    Running = 1,
    /// It drained its lanes and closed its segments.
    Ended = 2,
    /// A crash ended it and recovery has closed its segments.
    Crashed = 3,
}

/// Entry of the run table.
///
/// Layout, 128 bytes, little-endian: 0 state u8; 1 kind u8 (0 live, 1 import); 2 lanes u16; 4 zero
/// u32; 8 run id u64; 16 started ns; 24 last sign of life ns; 32 ended ns (0 while it runs); 40
/// zero.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RunEntry {
    /// How far it got.
    pub state: RunState,
    /// An import rather than live capture.
    pub import: bool,
    /// Lanes.
    pub lanes: u16,
    /// Run.
    pub run: RunId,
    /// Time started, ns.
    pub started_ns: u64,
    /// Last time it said that it runs, ns.
    pub alive_ns: u64,
    /// Time ended, ns; 0 while it runs.
    pub ended_ns: u64,
}

impl Entry for RunEntry {
    const KIND: TableKind = TableKind::Runs;

    fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[0] = self.state as u8;
        bytes[1] = u8::from(self.import);
        put_u16(&mut bytes, 2, self.lanes);
        put_u64(&mut bytes, 8, self.run.0);
        put_u64(&mut bytes, 16, self.started_ns);
        put_u64(&mut bytes, 24, self.alive_ns);
        put_u64(&mut bytes, 32, self.ended_ns);
        bytes
    }

    fn decode(bytes: &[u8; ENTRY_BYTES]) -> Result<Self, FormatError> {
        let field = |field, value| FormatError::Field { structure: "run entry", field, value };
        let state = match bytes[0] {
            0 => RunState::None,
            1 => RunState::Running,
            2 => RunState::Ended,
            3 => RunState::Crashed,
            other => return Err(field("state", u64::from(other))),
        };
        if bytes[1] > 1 || !all_zero(&bytes[40..]) {
            return Err(field("kind", u64::from(bytes[1])));
        }
        Ok(Self {
            state,
            import: bytes[1] == 1,
            lanes: u16_at(bytes, 2),
            run: RunId(u64_at(bytes, 8)),
            started_ns: u64_at(bytes, 16),
            alive_ns: u64_at(bytes, 24),
            ended_ns: u64_at(bytes, 32),
        })
    }
}

const _: () =
    assert!(ENTRIES_AT + PAGE_ENTRIES * ENTRY_BYTES <= CRC_AT, "entries end before the CRC");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_reads_back_and_every_flipped_bit_is_an_error() {
        let entry = SegmentEntry {
            state: SegmentState::Closed,
            sealed: true,
            damaged: true,
            lane: 2,
            link_type: LinkType::ETHERNET,
            close_reason: CloseReason::Age,
            ordinal: 77,
            times_ns: Some((1, 2)),
            chunks: 5,
            ..SegmentEntry::default()
        };
        let page = encode_page(3, 9, &[SegmentEntry::default(), entry.clone()]);
        let (generation, entries) = decode_page::<SegmentEntry>(3, &page).expect("it reads back");
        assert_eq!((generation, &entries[1]), (9, &entry));
        assert_eq!(entries[2], SegmentEntry::default());
        assert!(decode_page::<SegmentEntry>(4, &page).is_err(), "a misdirected page");
        assert!(decode_page::<RunEntry>(3, &page).is_err(), "a page of the other table");
        for at in 0..page.len() {
            let mut bad = page;
            bad[at] ^= 1 << (at % 8);
            assert!(decode_page::<SegmentEntry>(3, &bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_run_reads_back() {
        let run = RunEntry {
            state: RunState::Crashed,
            import: true,
            lanes: 4,
            run: RunId(5),
            started_ns: 6,
            alive_ns: 7,
            ended_ns: 8,
        };
        assert_eq!(RunEntry::decode(&run.encode()), Ok(run));
    }
}
