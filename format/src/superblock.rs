//! The superblock: the first thing read of a volume. Two slots; the valid one with the higher
//! generation counts.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | [`MAGIC`] |
//! | 8 | 4 | format version |
//! | 12 | 4 | flags: 1 sealed |
//! | 16 | 16 | store id |
//! | 32 | 16 | volume id |
//! | 48 | 2 | number of this volume in the store, from 0 |
//! | 50 | 2 | volumes of the store |
//! | 52 | 4 | places |
//! | 56 | 8 | generation |
//! | 64 | 8 | segment bytes |
//! | 72 | 8 | quota bytes of this volume, its own file included |
//! | 80 | 8 | time created, ns |
//! | 88 | 8 | largest packet time of a live segment whose place was used again; 0: none |
//! | 96 | 8 | the same for imported segments |
//! | 104 | 8, 4 | offset of the segment table, pages of one slot |
//! | 116 | 8, 4 | offset of the run table, pages of one slot |
//! | 128 | 8, 8 | offset of the key ring, bytes of one slot |
//! | 144 | 1 + 63 | length and text: id of the key |
//! | 208 | 2 + 510 | length and text: path of the key file |
//! | 720 | | volume paths: for each a length u16 and the text, in the order of their numbers |
//! | 4092 | 4 | CRC-32C of bytes 0 to 4091 |

use crate::bytes::{array_at, put, put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};
use crate::limits::LBA_BYTES;
use crate::{FormatError, StoreId, VolumeId, crc32c};

/// First bytes of a superblock.
pub const MAGIC: [u8; 8] = *b"WVVOLUME";
/// Version of the volume format that this release writes and reads.
pub const FORMAT_VERSION: u32 = 1;
/// Offsets of the two slots. Far apart, so that one bad region of a device does not take both.
pub const SLOT_OFFSETS: [u64; 2] = [0, 1 << 20];
/// Volumes of a store at most: what the paths of a superblock have room for.
pub const VOLUMES_MAX: usize = 8;

const FLAG_SEALED: u32 = 1;
const FLAG_REPLACEMENT: u32 = 2;
const KEY_ID_AT: usize = 144;
const KEY_ID_BYTES_MAX: usize = 63;
const KEY_PATH_AT: usize = 208;
/// Pages of one slot of a table at most: a million places, twice what is ever made. A reader takes
/// memory for them before it has read any.
const TABLE_PAGES_MAX: u32 = 1 << 15;
/// Bytes of one slot of the key ring at most: twice what a million lives and a large wrapped root
/// take.
const RING_SLOT_BYTES_MAX: u64 = 128 << 20;
/// No part of a volume lies behind this: what system calls take as an offset.
const OFFSET_MAX: u64 = i64::MAX as u64;
const KEY_PATH_BYTES_MAX: usize = 510;
const PATHS_AT: usize = 720;
const CRC_AT: usize = LBA_BYTES - 4;
const STRUCTURE: &str = "superblock";

/// What a volume says of itself and of the store it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Packets, index and flow data are encrypted.
    pub sealed: bool,
    /// The store had another volume of this number, which is gone with what it held.
    pub replacement: bool,
    /// Store.
    pub store: StoreId,
    /// Volume.
    pub volume: VolumeId,
    /// Number of this volume, from 0.
    pub number: u16,
    /// Places on this volume.
    pub places: u32,
    /// Generation of this superblock.
    pub generation: u64,
    /// Bytes of a full segment.
    pub segment_bytes: u64,
    /// Bytes that the segments and this volume's own file may occupy together.
    pub quota_bytes: u64,
    /// Time created, ns.
    pub created_ns: u64,
    /// Largest packet time of a live segment that was given up for the quota; 0: none was.
    pub evicted_live_ns: u64,
    /// The same for imported segments.
    pub evicted_import_ns: u64,
    /// Offset of the segment table.
    pub segments_offset: u64,
    /// Pages of one slot of the segment table.
    pub segments_pages: u32,
    /// Offset of the run table.
    pub runs_offset: u64,
    /// Pages of one slot of the run table.
    pub runs_pages: u32,
    /// Offset of the key ring.
    pub ring_offset: u64,
    /// Bytes of one slot of the key ring.
    pub ring_slot_bytes: u64,
    /// Id of the key that wraps the ring's root; empty in plain stores.
    pub key_id: String,
    /// Path of the key file at the time of creation.
    pub key_path: String,
    /// Paths of all volumes, this one included.
    pub volume_paths: Vec<String>,
}

impl Superblock {
    /// Encodes the superblock.
    ///
    /// # Errors
    /// `TooLarge` if a text or the number of volumes does not fit.
    pub fn encode(&self) -> Result<[u8; LBA_BYTES], FormatError> {
        let fits = |what, value: usize, limit: usize| match value <= limit {
            true => Ok(()),
            false => Err(FormatError::TooLarge { what, value: value as u64, limit: limit as u64 }),
        };
        fits("id of the key", self.key_id.len(), KEY_ID_BYTES_MAX)?;
        fits("path of the key file", self.key_path.len(), KEY_PATH_BYTES_MAX)?;
        fits("number of volumes", self.volume_paths.len(), VOLUMES_MAX)?;
        let paths_bytes: usize = self.volume_paths.iter().map(|path| 2 + path.len()).sum();
        fits("volume paths together", paths_bytes, CRC_AT - PATHS_AT)?;
        let mut block = [0; LBA_BYTES];
        put(&mut block, 0, &MAGIC);
        put_u32(&mut block, 8, FORMAT_VERSION);
        let flags = [(self.sealed, FLAG_SEALED), (self.replacement, FLAG_REPLACEMENT)];
        let flags = flags.into_iter().filter(|(set, _)| *set).fold(0, |all, (_, flag)| all | flag);
        put_u32(&mut block, 12, flags);
        put(&mut block, 16, &self.store.0);
        put(&mut block, 32, &self.volume.0);
        put_u16(&mut block, 48, self.number);
        put_u16(&mut block, 50, self.volume_paths.len() as u16);
        put_u32(&mut block, 52, self.places);
        put_u64(&mut block, 56, self.generation);
        put_u64(&mut block, 64, self.segment_bytes);
        put_u64(&mut block, 72, self.quota_bytes);
        put_u64(&mut block, 80, self.created_ns);
        put_u64(&mut block, 88, self.evicted_live_ns);
        put_u64(&mut block, 96, self.evicted_import_ns);
        put_u64(&mut block, 104, self.segments_offset);
        put_u32(&mut block, 112, self.segments_pages);
        put_u64(&mut block, 116, self.runs_offset);
        put_u32(&mut block, 124, self.runs_pages);
        put_u64(&mut block, 128, self.ring_offset);
        put_u64(&mut block, 136, self.ring_slot_bytes);
        block[KEY_ID_AT] = self.key_id.len() as u8;
        put(&mut block, KEY_ID_AT + 1, self.key_id.as_bytes());
        put_u16(&mut block, KEY_PATH_AT, self.key_path.len() as u16);
        put(&mut block, KEY_PATH_AT + 2, self.key_path.as_bytes());
        let mut at = PATHS_AT;
        for path in &self.volume_paths {
            put_u16(&mut block, at, path.len() as u16);
            put(&mut block, at + 2, path.as_bytes());
            at += 2 + path.len();
        }
        let crc = crc32c(&block[..CRC_AT]);
        put_u32(&mut block, CRC_AT, crc);
        Ok(block)
    }

    /// Reads a superblock.
    ///
    /// # Errors
    /// `NotPresent` if there is none, `Newer` if a later release wrote it, `Checksum` or `Field` if
    /// it is damaged.
    pub fn decode(block: &[u8]) -> Result<Self, FormatError> {
        if block.len() < LBA_BYTES {
            let (have, need) = (block.len(), LBA_BYTES);
            return Err(FormatError::Short { structure: STRUCTURE, have, need });
        }
        if block[..8] != MAGIC {
            return Err(FormatError::NotPresent { structure: STRUCTURE });
        }
        let (found, expected) = (u32_at(block, CRC_AT), crc32c(&block[..CRC_AT]));
        if found != expected {
            return Err(FormatError::Checksum { structure: STRUCTURE, found, expected });
        }
        let version = u32_at(block, 8);
        if version > FORMAT_VERSION {
            let (found, supported) = (version, FORMAT_VERSION);
            return Err(FormatError::Newer { structure: STRUCTURE, found, supported });
        }
        let field = |field, value| FormatError::Field { structure: STRUCTURE, field, value };
        let volumes = usize::from(u16_at(block, 50));
        if volumes == 0 || volumes > VOLUMES_MAX || usize::from(u16_at(block, 48)) >= volumes {
            return Err(field("volumes", volumes as u64));
        }
        let mut at = PATHS_AT;
        let mut volume_paths = Vec::with_capacity(volumes);
        for _ in 0..volumes {
            if at + 2 > CRC_AT {
                return Err(field("volume path at", at as u64));
            }
            let bytes = usize::from(u16_at(block, at));
            volume_paths.push(text(block, at + 2, bytes)?);
            at += 2 + bytes;
        }
        let superblock = Self {
            sealed: u32_at(block, 12) & FLAG_SEALED != 0,
            replacement: u32_at(block, 12) & FLAG_REPLACEMENT != 0,
            store: StoreId(array_at(block, 16)),
            volume: VolumeId(array_at(block, 32)),
            number: u16_at(block, 48),
            places: u32_at(block, 52),
            generation: u64_at(block, 56),
            segment_bytes: u64_at(block, 64),
            quota_bytes: u64_at(block, 72),
            created_ns: u64_at(block, 80),
            evicted_live_ns: u64_at(block, 88),
            evicted_import_ns: u64_at(block, 96),
            segments_offset: u64_at(block, 104),
            segments_pages: u32_at(block, 112),
            runs_offset: u64_at(block, 116),
            runs_pages: u32_at(block, 124),
            ring_offset: u64_at(block, 128),
            ring_slot_bytes: u64_at(block, 136),
            key_id: text(block, KEY_ID_AT + 1, usize::from(block[KEY_ID_AT]))?,
            key_path: text(block, KEY_PATH_AT + 2, usize::from(u16_at(block, KEY_PATH_AT)))?,
            volume_paths,
        };
        superblock.check_parts().map(|()| superblock)
    }

    /// Time until which something may be missing because this volume replaced one that is gone; 0
    /// if it replaced none.
    pub fn replaced_ns(&self) -> u64 {
        if self.replacement { self.created_ns } else { 0 }
    }

    /// The parts have sizes that can be, at places that can be.
    fn check_parts(&self) -> Result<(), FormatError> {
        let page_bytes = LBA_BYTES as u64;
        let parts = [
            ("segment table", self.segments_offset, self.segments_pages),
            ("run table", self.runs_offset, self.runs_pages),
        ];
        let parts = parts.map(|(name, offset, pages)| {
            let bytes = u64::from(pages) * page_bytes;
            (name, offset, bytes, u64::from(TABLE_PAGES_MAX) * page_bytes)
        });
        let ring = ("key ring", self.ring_offset, self.ring_slot_bytes, RING_SLOT_BYTES_MAX);
        for (field, offset, slot_bytes, slot_bytes_max) in parts.into_iter().chain([ring]) {
            let (structure, value) = (STRUCTURE, slot_bytes.max(offset));
            if slot_bytes > slot_bytes_max || offset > OFFSET_MAX - 2 * slot_bytes {
                return Err(FormatError::Field { structure, field, value });
            }
        }
        Ok(())
    }
}

fn text(block: &[u8], at: usize, bytes: usize) -> Result<String, FormatError> {
    let field = |value: usize| FormatError::Field {
        structure: STRUCTURE,
        field: "text at",
        value: value as u64,
    };
    let raw = block[..CRC_AT].get(at..at.saturating_add(bytes)).ok_or(field(at))?;
    String::from_utf8(raw.to_vec()).map_err(|_| field(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock() -> Superblock {
        Superblock {
            sealed: true,
            replacement: true,
            store: StoreId([1; 16]),
            volume: VolumeId([2; 16]),
            number: 1,
            places: 128,
            generation: 3,
            segment_bytes: 16 << 20,
            quota_bytes: 1 << 30,
            created_ns: 4,
            evicted_live_ns: 5,
            evicted_import_ns: 6,
            segments_offset: 2 << 20,
            segments_pages: 5,
            runs_offset: 3 << 20,
            runs_pages: 16,
            ring_offset: 4 << 20,
            ring_slot_bytes: 1 << 20,
            key_id: "file:0123".into(),
            key_path: "/etc/wirevault/keys/x.key".into(),
            volume_paths: vec!["/a".into(), "/b".into()],
        }
    }

    #[test]
    fn a_superblock_reads_back_and_every_flipped_bit_is_an_error() {
        let block = superblock().encode().expect("it fits");
        assert_eq!(Superblock::decode(&block), Ok(superblock()));
        for at in 0..block.len() {
            let mut bad = block;
            bad[at] ^= 1 << (at % 8);
            assert!(Superblock::decode(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_newer_version_is_named() {
        let mut block = superblock().encode().expect("it fits");
        put_u32(&mut block, 8, 7);
        let crc = crc32c(&block[..CRC_AT]);
        put_u32(&mut block, CRC_AT, crc);
        assert!(matches!(Superblock::decode(&block), Err(FormatError::Newer { found: 7, .. })));
    }

    #[test]
    fn parts_of_impossible_sizes_and_places_are_refused() {
        let refused = |change: fn(&mut Superblock)| {
            let mut changed = superblock();
            change(&mut changed);
            let decoded = Superblock::decode(&changed.encode().unwrap());
            assert!(matches!(decoded, Err(FormatError::Field { .. })), "{decoded:?}");
        };
        refused(|it| it.segments_pages = u32::MAX);
        refused(|it| it.runs_pages = TABLE_PAGES_MAX + 1);
        refused(|it| it.ring_slot_bytes = u64::MAX);
        refused(|it| it.segments_offset = u64::MAX);
        refused(|it| it.ring_offset = OFFSET_MAX);
    }
}
