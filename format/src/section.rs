//! Index sections: named byte streams behind the chunks of a closed segment, cut into blocks of at
//! most 1 MiB.
//!
//! A section is compressed as a whole (or not), then cut into parts. Each part is one local-use
//! block:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 20 | common start; flag 1: sealed |
//! | 20 | 2 | section id |
//! | 22 | 2 | part, from 0 |
//! | 24 | 16 | life id |
//! | 40 | 4 | payload bytes, without the tag |
//! | 44 | 4 | zero |
//! | 48 | 16 | salt of the seal, zero in plain stores |
//! | 64 | n | payload, then the 16-byte tag if sealed, then zeros to a multiple of 4 |
//! | -8 | 4 | CRC-32C of everything before it |
//! | -4 | 4 | trailing length |
//!
//! The first 48 bytes are the additional data of the seal.

use crate::bytes::{all_zero, array_at, put, put_u16, put_u32, u16_at, u32_at};
use crate::limits::BLOCK_BYTES_MAX;
use crate::local::{self, Kind};
use crate::{FormatError, LifeId, crc32c};

/// Bytes before the payload.
pub const PART_HEADER_BYTES: usize = 64;
/// Bytes of the header that the seal authenticates.
pub const PART_AAD_BYTES: usize = 48;
/// Bytes of GCM tag behind a sealed payload.
pub const PART_TAG_BYTES: usize = 16;
/// Payload bytes of one part at most.
pub const PART_PAYLOAD_BYTES_MAX: usize =
    BLOCK_BYTES_MAX - PART_HEADER_BYTES - PART_TAG_BYTES - 8 - 4;

const FLAG_SEALED: u16 = 1;
const STRUCTURE: &str = "index section";

/// What a section holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u16)]
pub enum SectionId {
    /// One 40-byte entry a chunk, see [`crate::footer::ChunkEntry`].
    Chunks = 1,
    /// Gap blocks found in the chunks.
    Gaps = 2,
    /// Shapes of the flows' headers.
    Shapes = 3,
    /// Addresses.
    Hosts = 4,
    /// Flow records, in columns.
    Flows = 5,
    /// For each flow the chunks that hold its packets.
    Postings = 6,
    /// Filter over addresses and their prefixes, and the port bitmap.
    Filter = 7,
    /// Filters over the addresses and ports of single chunks, instead of their flows.
    ChunkFilters = 8,
}

impl SectionId {
    /// Every section, in file order.
    pub const ALL: &[Self] = &[
        Self::Chunks,
        Self::Gaps,
        Self::Shapes,
        Self::Hosts,
        Self::Flows,
        Self::Postings,
        Self::Filter,
        Self::ChunkFilters,
    ];

    /// The section with that number.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.iter().copied().find(|id| *id as u16 == number)
    }
}

/// Header of one part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartHeader {
    /// Section the part belongs to.
    pub id: SectionId,
    /// Number of the part, from 0.
    pub part: u16,
    /// Life of the segment.
    pub life: LifeId,
    /// Payload is encrypted.
    pub sealed: bool,
    /// Bytes of payload, without the tag.
    pub payload_bytes: u32,
}

impl PartHeader {
    /// Bytes of the whole block.
    pub fn block_bytes(&self) -> usize {
        let tag_bytes = if self.sealed { PART_TAG_BYTES } else { 0 };
        (PART_HEADER_BYTES + self.payload_bytes as usize + tag_bytes).next_multiple_of(4) + 8
    }

    /// The additional data of the seal.
    pub fn aad(&self) -> [u8; PART_AAD_BYTES] {
        let mut aad = [0; PART_AAD_BYTES];
        let flags = if self.sealed { FLAG_SEALED } else { 0 };
        local::put_start(&mut aad, Kind::Section, self.block_bytes() as u32, flags);
        put_u16(&mut aad, 20, self.id as u16);
        put_u16(&mut aad, 22, self.part);
        put(&mut aad, 24, &self.life.0);
        put_u32(&mut aad, 40, self.payload_bytes);
        aad
    }

    /// Appends the block. `body` is the payload, with its tag if sealed.
    pub fn encode(&self, out: &mut Vec<u8>, salt: &[u8; 16], body: &[u8]) {
        let at = out.len();
        let block_bytes = self.block_bytes();
        out.resize(at + block_bytes, 0);
        let block = &mut out[at..];
        put(block, 0, &self.aad());
        put(block, PART_AAD_BYTES, salt);
        put(block, PART_HEADER_BYTES, body);
        let crc = crc32c(&block[..block_bytes - 8]);
        put_u32(block, block_bytes - 8, crc);
        put_u32(block, block_bytes - 4, block_bytes as u32);
    }
}

/// One part, taken apart.
#[derive(Debug)]
pub struct Part<'a> {
    /// Header.
    pub header: PartHeader,
    /// Salt of the seal.
    pub salt: [u8; 16],
    /// Payload, with its tag if sealed.
    pub body: &'a [u8],
    /// Bytes of the whole block.
    pub block_bytes: usize,
}

/// Reads the part at the start of `bytes`.
///
/// # Errors
/// `NotPresent`, `Checksum`, `Field` or `Short`.
pub fn decode(bytes: &[u8]) -> Result<Part<'_>, FormatError> {
    let start = local::expect(bytes, Kind::Section, STRUCTURE)?;
    let block_bytes = start.total_bytes as usize;
    let field = |field, value| FormatError::Field { structure: STRUCTURE, field, value };
    if !(PART_HEADER_BYTES + 8..=BLOCK_BYTES_MAX).contains(&block_bytes) {
        return Err(field("block bytes", u64::from(start.total_bytes)));
    }
    let block = bytes.get(..block_bytes).ok_or(FormatError::Short {
        structure: STRUCTURE,
        have: bytes.len(),
        need: block_bytes,
    })?;
    let (found, expected) = (u32_at(block, block_bytes - 8), crc32c(&block[..block_bytes - 8]));
    if found != expected {
        return Err(FormatError::Checksum { structure: STRUCTURE, found, expected });
    }
    let number = u16_at(block, 20);
    let header = PartHeader {
        id: SectionId::from_number(number).ok_or(field("section id", u64::from(number)))?,
        part: u16_at(block, 22),
        life: LifeId(array_at(block, 24)),
        sealed: start.flags & FLAG_SEALED != 0,
        payload_bytes: u32_at(block, 40),
    };
    if header.payload_bytes as usize > PART_PAYLOAD_BYTES_MAX
        || header.block_bytes() != block_bytes
        || header.aad() != block[..PART_AAD_BYTES]
        || u32_at(block, block_bytes - 4) as usize != block_bytes
    {
        return Err(field("block bytes", u64::from(start.total_bytes)));
    }
    let tag_bytes = if header.sealed { PART_TAG_BYTES } else { 0 };
    let body_end = PART_HEADER_BYTES + header.payload_bytes as usize + tag_bytes;
    if !all_zero(&block[body_end..block_bytes - 8]) {
        return Err(field("padding", body_end as u64));
    }
    let body = &block[PART_HEADER_BYTES..body_end];
    Ok(Part { header, salt: array_at(block, PART_AAD_BYTES), body, block_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_of_a_part_is_an_error() {
        let header = PartHeader {
            id: SectionId::Flows,
            part: 2,
            life: LifeId([3; 16]),
            sealed: false,
            payload_bytes: 5,
        };
        let mut good = Vec::new();
        header.encode(&mut good, &[0; 16], b"abcde");
        let part = decode(&good).expect("a part reads back");
        assert_eq!((part.header, part.body), (header, &b"abcde"[..]));
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(decode(&bad).is_err(), "byte {at}");
        }
    }
}
