//! The footer: the last logical block of a closed segment. It says what the segment holds and where
//! its index is.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 20 | common start; total length 4096; flag 1: sealed, flag 2: recovered after a crash |
//! | 20 | 2 | lane |
//! | 22 | 2 | link type |
//! | 24 | 16 | life id |
//! | 40 | 8 | run id |
//! | 48 | 8 | ordinal |
//! | 56 | 4 | chunks |
//! | 60 | 2 | close reason |
//! | 62 | 2 | directory entries |
//! | 64 | 8 | packets |
//! | 72 | 8 | captured bytes of them |
//! | 80 | 8, 8 | smallest and largest packet time, ns |
//! | 96 | 8, 8 | first stream sequence, and the one after the last |
//! | 112 | 8, 8 | packets received and shed so far in the run, lane-wide |
//! | 128 | 128 | packets dropped so far by cause, 16 counters |
//! | 256 | 8, 8 | time opened and closed, ns |
//! | 272 | 8 | offset of the first chunk |
//! | 280 | 8 | offset of the first index block |
//! | 288 | 4 | flows |
//! | 292 | 4 | chunks that the index does not cover and a query must scan |
//! | 296 | 32 | SHA-256 over the tags (sealed) or tail CRCs (plain) of all chunks, in order |
//! | 328 | 24 each | directory: section id u16, parts u16, codec u8, 3 zeros, offset u64, parts' bytes u32, raw bytes u32 |
//! | 4056 | 16 | salt of the seal, zero in plain stores |
//! | 4072 | 16 | GCM tag over bytes 0 to 4055, zero in plain stores |
//! | 4088 | 4 | CRC-32C of bytes 0 to 4087 |
//! | 4092 | 4 | trailing length |

use crate::bytes::{all_zero, array_at, put, put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};
use crate::gap::CAUSES;
use crate::limits::LBA_BYTES;
use crate::local::{self, Kind};
use crate::section::SectionId;
use crate::{FormatError, LifeId, LinkType, RunId, crc32c};

/// Bytes of the footer.
pub const FOOTER_BYTES: usize = LBA_BYTES;
/// Bytes of the footer that the seal authenticates.
pub const FOOTER_AAD_BYTES: usize = 4056;
/// Bytes of one entry of the chunk table.
pub const CHUNK_ENTRY_BYTES: usize = 40;

const DIRECTORY_AT: usize = 328;
const DIRECTORY_ENTRY_BYTES: usize = 24;
const TAG_AT: usize = 4072;
const FLAG_SEALED: u16 = 1;
const FLAG_RECOVERED: u16 = 2;
const STRUCTURE: &str = "footer";

/// Why a segment was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum CloseReason {
    /// It was full.
    Full = 0,
    /// It reached its age.
    Age = 1,
    /// The lane stopped, or somebody asked for it.
    Stop = 2,
    /// A packet came from an interface that the segment does not describe.
    NewInterface = 3,
    /// A crash interrupted it; recovery wrote the footer.
    Recovered = 4,
    /// Its device failed, or it holds only chunks that another one's device did not take.
    DeviceFailed = 5,
    /// Its device was slower than its lane; the lane went on elsewhere.
    SlowDevice = 6,
    /// It is a copy of chunks of another one, for a hold.
    Copied = 7,
}

impl CloseReason {
    /// The reason with that number.
    pub fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            0 => Self::Full,
            1 => Self::Age,
            2 => Self::Stop,
            3 => Self::NewInterface,
            4 => Self::Recovered,
            5 => Self::DeviceFailed,
            6 => Self::SlowDevice,
            7 => Self::Copied,
            _ => return None,
        })
    }

    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Age => "age",
            Self::Stop => "stop",
            Self::NewInterface => "new_interface",
            Self::Recovered => "recovered",
            Self::DeviceFailed => "device_failed",
            Self::SlowDevice => "slow_device",
            Self::Copied => "copied",
        }
    }
}

/// How the bytes of a section are encoded before sealing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    /// As they are.
    Raw = 0,
    /// One zstd frame.
    Zstd = 1,
}

/// Where one index section lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// Which section.
    pub id: SectionId,
    /// Blocks it is cut into.
    pub parts: u16,
    /// Encoding.
    pub codec: Codec,
    /// Offset of its first block in the file.
    pub offset: u64,
    /// Bytes of all its blocks.
    pub blocks_bytes: u32,
    /// Bytes after decoding.
    pub raw_bytes: u32,
}

/// What a closed segment says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    /// Payload is encrypted.
    pub sealed: bool,
    /// Written by recovery.
    pub recovered: bool,
    /// Lane.
    pub lane: u16,
    /// Link type.
    pub link_type: LinkType,
    /// Life.
    pub life: LifeId,
    /// Run.
    pub run: RunId,
    /// Store-wide number.
    pub ordinal: u64,
    /// Chunks.
    pub chunks: u32,
    /// Why it was closed.
    pub close_reason: CloseReason,
    /// Packets.
    pub packets: u64,
    /// Captured bytes.
    pub captured_bytes: u64,
    /// Smallest and largest packet time, ns.
    pub times_ns: Option<(u64, u64)>,
    /// First stream sequence, and the one after the last.
    pub sequences: (u64, u64),
    /// Received so far in the run, lane-wide.
    pub received: u64,
    /// Shed so far.
    pub shed: u64,
    /// Dropped so far, by cause.
    pub dropped: [u64; CAUSES],
    /// Time opened, ns.
    pub opened_ns: u64,
    /// Time closed, ns.
    pub closed_ns: u64,
    /// Offset of the first chunk.
    pub data_offset: u64,
    /// Offset of the first index block.
    pub index_offset: u64,
    /// Flows in the index.
    pub flows: u32,
    /// Chunks the index does not cover.
    pub unindexed_chunks: u32,
    /// Hash over the chunks' tags or CRCs.
    pub chain: [u8; 32],
    /// Sections.
    pub directory: Vec<DirectoryEntry>,
}

impl Footer {
    /// Writes the footer. `seal` gets the additional data and gives salt and tag; it is not called
    /// in plain stores.
    ///
    /// # Errors
    /// Whatever `seal` returns.
    pub fn encode<E>(
        &self,
        seal: impl FnOnce(&[u8]) -> Result<([u8; 16], [u8; 16]), E>,
    ) -> Result<[u8; FOOTER_BYTES], E> {
        let mut page = [0; FOOTER_BYTES];
        let flags = if self.sealed { FLAG_SEALED } else { 0 }
            | if self.recovered { FLAG_RECOVERED } else { 0 };
        local::put_start(&mut page, Kind::Footer, FOOTER_BYTES as u32, flags);
        put_u16(&mut page, 20, self.lane);
        put_u16(&mut page, 22, self.link_type.0);
        put(&mut page, 24, &self.life.0);
        put_u64(&mut page, 40, self.run.0);
        put_u64(&mut page, 48, self.ordinal);
        put_u32(&mut page, 56, self.chunks);
        put_u16(&mut page, 60, self.close_reason as u16);
        put_u16(&mut page, 62, self.directory.len() as u16);
        put_u64(&mut page, 64, self.packets);
        put_u64(&mut page, 72, self.captured_bytes);
        let (min_ns, max_ns) = self.times_ns.unwrap_or((u64::MAX, 0));
        put_u64(&mut page, 80, min_ns);
        put_u64(&mut page, 88, max_ns);
        put_u64(&mut page, 96, self.sequences.0);
        put_u64(&mut page, 104, self.sequences.1);
        put_u64(&mut page, 112, self.received);
        put_u64(&mut page, 120, self.shed);
        for (n, dropped) in self.dropped.iter().enumerate() {
            put_u64(&mut page, 128 + 8 * n, *dropped);
        }
        put_u64(&mut page, 256, self.opened_ns);
        put_u64(&mut page, 264, self.closed_ns);
        put_u64(&mut page, 272, self.data_offset);
        put_u64(&mut page, 280, self.index_offset);
        put_u32(&mut page, 288, self.flows);
        put_u32(&mut page, 292, self.unindexed_chunks);
        put(&mut page, 296, &self.chain);
        for (n, entry) in self.directory.iter().enumerate() {
            let at = DIRECTORY_AT + n * DIRECTORY_ENTRY_BYTES;
            put_u16(&mut page, at, entry.id as u16);
            put_u16(&mut page, at + 2, entry.parts);
            page[at + 4] = entry.codec as u8;
            put_u64(&mut page, at + 8, entry.offset);
            put_u32(&mut page, at + 16, entry.blocks_bytes);
            put_u32(&mut page, at + 20, entry.raw_bytes);
        }
        if self.sealed {
            let (salt, tag) = seal(&page[..FOOTER_AAD_BYTES])?;
            put(&mut page, FOOTER_AAD_BYTES, &salt);
            put(&mut page, TAG_AT, &tag);
        }
        let crc = crc32c(&page[..4088]);
        put_u32(&mut page, 4088, crc);
        put_u32(&mut page, 4092, FOOTER_BYTES as u32);
        Ok(page)
    }

    /// Reads a footer. The caller checks the tag of a sealed one with [`seal_of`].
    ///
    /// # Errors
    /// `NotPresent`, `Checksum`, `Field` or `Short`.
    pub fn decode(page: &[u8]) -> Result<Self, FormatError> {
        if page.len() < FOOTER_BYTES {
            let (have, need) = (page.len(), FOOTER_BYTES);
            return Err(FormatError::Short { structure: STRUCTURE, have, need });
        }
        let start = local::expect(page, Kind::Footer, STRUCTURE)?;
        let (found, expected) = (u32_at(page, 4088), crc32c(&page[..4088]));
        if found != expected {
            return Err(FormatError::Checksum { structure: STRUCTURE, found, expected });
        }
        let field = |field, value| FormatError::Field { structure: STRUCTURE, field, value };
        if start.total_bytes as usize != FOOTER_BYTES || u32_at(page, 4092) != start.total_bytes {
            return Err(field("block bytes", u64::from(start.total_bytes)));
        }
        let reason = u16_at(page, 60);
        let close_reason =
            CloseReason::from_number(reason).ok_or(field("close reason", u64::from(reason)))?;
        let packets = u64_at(page, 64);
        let times_ns = match (u64_at(page, 80), u64_at(page, 88)) {
            (u64::MAX, 0) if packets == 0 => None,
            (min_ns, max_ns) if packets > 0 && min_ns <= max_ns => Some((min_ns, max_ns)),
            (min_ns, _) => return Err(field("packet time", min_ns)),
        };
        let mut dropped = [0; CAUSES];
        for (n, counter) in dropped.iter_mut().enumerate() {
            *counter = u64_at(page, 128 + 8 * n);
        }
        let sealed = start.flags & FLAG_SEALED != 0;
        if !sealed && !all_zero(&page[FOOTER_AAD_BYTES..4088]) {
            return Err(field("tag", u64_at(page, TAG_AT)));
        }
        Ok(Self {
            sealed,
            recovered: start.flags & FLAG_RECOVERED != 0,
            lane: u16_at(page, 20),
            link_type: LinkType(u16_at(page, 22)),
            life: LifeId(array_at(page, 24)),
            run: RunId(u64_at(page, 40)),
            ordinal: u64_at(page, 48),
            chunks: u32_at(page, 56),
            close_reason,
            packets,
            captured_bytes: u64_at(page, 72),
            times_ns,
            sequences: (u64_at(page, 96), u64_at(page, 104)),
            received: u64_at(page, 112),
            shed: u64_at(page, 120),
            dropped,
            opened_ns: u64_at(page, 256),
            closed_ns: u64_at(page, 264),
            data_offset: u64_at(page, 272),
            index_offset: u64_at(page, 280),
            flows: u32_at(page, 288),
            unindexed_chunks: u32_at(page, 292),
            chain: array_at(page, 296),
            directory: directory(page)?,
        })
    }
}

fn directory(page: &[u8]) -> Result<Vec<DirectoryEntry>, FormatError> {
    let field = |field, value| FormatError::Field { structure: STRUCTURE, field, value };
    let entries = usize::from(u16_at(page, 62));
    if entries > SectionId::ALL.len() {
        return Err(field("directory entries", entries as u64));
    }
    (0..entries)
        .map(|n| {
            let at = DIRECTORY_AT + n * DIRECTORY_ENTRY_BYTES;
            let id = u16_at(page, at);
            Ok(DirectoryEntry {
                id: SectionId::from_number(id).ok_or(field("section id", u64::from(id)))?,
                parts: u16_at(page, at + 2),
                codec: match page[at + 4] {
                    0 => Codec::Raw,
                    1 => Codec::Zstd,
                    other => return Err(field("codec", u64::from(other))),
                },
                offset: u64_at(page, at + 8),
                blocks_bytes: u32_at(page, at + 16),
                raw_bytes: u32_at(page, at + 20),
            })
        })
        .collect()
}

/// Additional data, salt and tag of a footer page that [`Footer::decode`] accepted.
pub fn seal_of(page: &[u8]) -> (&[u8], [u8; 16], [u8; 16]) {
    (&page[..FOOTER_AAD_BYTES], array_at(page, FOOTER_AAD_BYTES), array_at(page, TAG_AT))
}

/// Where one chunk lies and what it holds.
///
/// Layout, 40 bytes, little-endian: offset u64; chunk bytes u32; packets u32; smallest time u64;
/// largest time u64; first stream sequence u64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkEntry {
    /// Offset in the segment.
    pub offset: u64,
    /// Bytes on disk.
    pub chunk_bytes: u32,
    /// Packets.
    pub packets: u32,
    /// Smallest and largest packet time, ns.
    pub times_ns: Option<(u64, u64)>,
    /// Stream sequence of the first packet.
    pub first_sequence: u64,
}

impl ChunkEntry {
    /// Writes the entry.
    pub fn encode(&self) -> [u8; CHUNK_ENTRY_BYTES] {
        let mut entry = [0; CHUNK_ENTRY_BYTES];
        put_u64(&mut entry, 0, self.offset);
        put_u32(&mut entry, 8, self.chunk_bytes);
        put_u32(&mut entry, 12, self.packets);
        let (min_ns, max_ns) = self.times_ns.unwrap_or((u64::MAX, 0));
        put_u64(&mut entry, 16, min_ns);
        put_u64(&mut entry, 24, max_ns);
        put_u64(&mut entry, 32, self.first_sequence);
        entry
    }

    /// Reads a whole chunk table.
    ///
    /// # Errors
    /// `Field` if the bytes are not whole entries.
    pub fn decode_table(table: &[u8]) -> Result<Vec<Self>, FormatError> {
        let (entries, rest) = table.as_chunks::<CHUNK_ENTRY_BYTES>();
        if !rest.is_empty() {
            let (structure, field, value) = ("chunk table", "bytes", table.len() as u64);
            return Err(FormatError::Field { structure, field, value });
        }
        let entry = |entry: &[u8; CHUNK_ENTRY_BYTES]| {
            let packets = u32_at(entry, 12);
            let times_ns = (packets > 0).then(|| (u64_at(entry, 16), u64_at(entry, 24)));
            Self {
                offset: u64_at(entry, 0),
                chunk_bytes: u32_at(entry, 8),
                packets,
                times_ns,
                first_sequence: u64_at(entry, 32),
            }
        };
        Ok(entries.iter().map(entry).collect())
    }
}

const _: () = assert!(
    DIRECTORY_AT + SectionId::ALL.len() * DIRECTORY_ENTRY_BYTES <= FOOTER_AAD_BYTES,
    "the directory fits the footer"
);

#[cfg(test)]
mod tests {
    use super::*;

    fn footer() -> Footer {
        Footer {
            sealed: false,
            recovered: true,
            lane: 1,
            link_type: LinkType::RAW,
            life: LifeId([2; 16]),
            run: RunId(3),
            ordinal: 4,
            chunks: 5,
            close_reason: CloseReason::Recovered,
            packets: 6,
            captured_bytes: 7,
            times_ns: Some((8, 9)),
            sequences: (10, 16),
            received: 17,
            shed: 0,
            dropped: std::array::from_fn(|n| n as u64),
            opened_ns: 18,
            closed_ns: 19,
            data_offset: 4096,
            index_offset: 8192,
            flows: 20,
            unindexed_chunks: 1,
            chain: [21; 32],
            directory: vec![DirectoryEntry {
                id: SectionId::Chunks,
                parts: 1,
                codec: Codec::Zstd,
                offset: 8192,
                blocks_bytes: 100,
                raw_bytes: 200,
            }],
        }
    }

    #[test]
    fn a_footer_reads_back_and_every_flipped_bit_is_an_error() {
        let never = |_: &[u8]| -> Result<([u8; 16], [u8; 16]), FormatError> {
            panic!("a plain footer has no tag")
        };
        let page = footer().encode(never).expect("it fits");
        assert_eq!(Footer::decode(&page), Ok(footer()));
        for at in 0..page.len() {
            let mut bad = page;
            bad[at] ^= 1 << (at % 8);
            assert!(Footer::decode(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_chunk_entry_reads_back() {
        let entry = ChunkEntry {
            offset: 4096,
            chunk_bytes: 8192,
            packets: 3,
            times_ns: Some((1, 2)),
            first_sequence: 44,
        };
        assert_eq!(ChunkEntry::decode_table(&entry.encode()), Ok(vec![entry]));
        assert!(ChunkEntry::decode_table(&[0; 41]).is_err());
    }
}
