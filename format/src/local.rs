//! The one local-use pcapng block type that carries everything of ours.
//!
//! Layout of the common start, little-endian:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | block type [`BLOCK_TYPE`] |
//! | 4 | 4 | block total length |
//! | 8 | 8 | [`MAGIC`] |
//! | 16 | 1 | [`Kind`] |
//! | 17 | 1 | version |
//! | 18 | 2 | flags |
//!
//! Source: pcapng, section 10.1 "Standardized Block Type Codes": types with the top bit set are for
//! local use. The magic makes a clash with somebody else's local use harmless.

use crate::FormatError;
use crate::bytes::{put, put_u16, put_u32, u16_at, u32_at};

/// Block type: local use, tag `0x575256`.
pub const BLOCK_TYPE: u32 = 0x8057_5256;
/// First bytes of the body of each of our blocks.
pub const MAGIC: [u8; 8] = *b"WIREVLT\x01";
/// Version that structures inside a segment are written with. 2 added the section of chunk filters.
pub const VERSION: u8 = 2;
/// Version of a gap that names a policy: releases that do not know of names refuse just these.
pub(crate) const VERSION_NAMED: u8 = 3;
/// Newest version that is read.
const VERSION_MAX: u8 = VERSION_NAMED;
/// Where the version stands.
pub(crate) const VERSION_AT: usize = 17;
/// Bytes of the common start.
pub const START_BYTES: usize = 20;

/// What a block of ours is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Padding.
    Skip = 0,
    /// Segment header.
    Segment = 1,
    /// Start of a plain chunk; its packets follow as ordinary blocks.
    ChunkHead = 2,
    /// End of a plain chunk.
    ChunkTail = 3,
    /// A counted absence of packets.
    Gap = 4,
    /// Part of an index section.
    Section = 5,
    /// Footer of a closed segment.
    Footer = 6,
    /// A whole sealed chunk.
    SealedChunk = 7,
}

impl Kind {
    fn from_u8(value: u8) -> Option<Self> {
        Some(match value {
            0 => Self::Skip,
            1 => Self::Segment,
            2 => Self::ChunkHead,
            3 => Self::ChunkTail,
            4 => Self::Gap,
            5 => Self::Section,
            6 => Self::Footer,
            7 => Self::SealedChunk,
            _ => return None,
        })
    }
}

/// Writes the common start. `buf` holds at least [`START_BYTES`].
pub(crate) fn put_start(buf: &mut [u8], kind: Kind, total_bytes: u32, flags: u16) {
    put_u32(buf, 0, BLOCK_TYPE);
    put_u32(buf, 4, total_bytes);
    put(buf, 8, &MAGIC);
    buf[16] = kind as u8;
    buf[VERSION_AT] = VERSION;
    put_u16(buf, 18, flags);
}

/// The common start of a block of ours, read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// What the block is.
    pub kind: Kind,
    /// Bytes of the whole block.
    pub total_bytes: u32,
    /// Flags; their meaning depends on the kind.
    pub flags: u16,
}

/// Reads the common start of a block.
///
/// # Errors
/// `NotPresent` if it is not a block of ours, `Newer` if its version is unknown, `Field` if its
/// kind is.
pub fn start(buf: &[u8], structure: &'static str) -> Result<Start, FormatError> {
    if buf.len() < START_BYTES {
        return Err(FormatError::Short { structure, have: buf.len(), need: START_BYTES });
    }
    if u32_at(buf, 0) != BLOCK_TYPE || buf[8..16] != MAGIC {
        return Err(FormatError::NotPresent { structure });
    }
    if buf[VERSION_AT] > VERSION_MAX {
        let (found, supported) = (u32::from(buf[VERSION_AT]), u32::from(VERSION_MAX));
        return Err(FormatError::Newer { structure, found, supported });
    }
    let kind = Kind::from_u8(buf[16]).ok_or(FormatError::Field {
        structure,
        field: "block kind",
        value: u64::from(buf[16]),
    })?;
    Ok(Start { kind, total_bytes: u32_at(buf, 4), flags: u16_at(buf, 18) })
}

/// Like [`start`], and the block must be of `kind`.
pub(crate) fn expect(
    buf: &[u8],
    kind: Kind,
    structure: &'static str,
) -> Result<Start, FormatError> {
    let start = start(buf, structure)?;
    if start.kind != kind {
        return Err(FormatError::Field {
            structure,
            field: "block kind",
            value: start.kind as u64,
        });
    }
    Ok(start)
}

/// A padding block of exactly `bytes` (a multiple of 4, at least 24).
pub fn skip_block(bytes: usize) -> Vec<u8> {
    debug_assert!(bytes >= START_BYTES + 4 && bytes.is_multiple_of(4), "a block fits its padding");
    let mut block = vec![0; bytes];
    put_start(&mut block, Kind::Skip, bytes as u32, 0);
    put_u32(&mut block, bytes - 4, bytes as u32);
    block
}
