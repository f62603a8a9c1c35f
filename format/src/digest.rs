//! Digests: for each place of a volume a few pages that tell what the segment there may hold, so
//! that a question need not open every segment.
//!
//! They lie in a file of their own, page by page of many segments side by side: a question that
//! names one address needs two pages of each segment, and reads them in rows.
//!
//! | page | content |
//! |---|---|
//! | 0 | facts: gaps, shapes |
//! | 1 | ports below [`PORTS_HELD`], one bit each |
//! | 2.. | addresses and their prefixes: a Bloom filter a page, each for a part of all keys |
//!
//! Layout of a page, [`PAGE_BYTES`]:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic: `WVDIGST` and one byte `0x02` |
//! | 8 | 2 | number of the page |
//! | 10 | 1 | flags: 1 sealed |
//! | 11 | 1 | bits a key sets in a page of addresses, else 0 |
//! | 12 | 4 | place |
//! | 16 | 16 | life id |
//! | 32 | 8 | time the segment was closed, ns, as in its table entry |
//! | 40 | 2 | payload bytes, without the tag |
//! | 42 | 6 | zero |
//! | 48 | 16 | salt of the seal, that of all pages of a digest; zero in plain stores |
//! | 64 | n | payload, then the 16-byte tag if sealed, then zeros |
//! | 4092 | 4 | CRC-32C of everything before it |
//!
//! The first 48 bytes are the additional data of the seal, the number of the page its nonce.

use crate::bytes::{all_zero, array_at, put, put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};
use crate::limits::LBA_BYTES;
use crate::{FormatError, LifeId, crc32c};

/// Bytes of a page.
pub const PAGE_BYTES: usize = LBA_BYTES;
/// Bytes of a page that the seal authenticates beside the payload.
pub const PAGE_AAD_BYTES: usize = 48;
/// Bytes before the payload.
pub const PAGE_HEADER_BYTES: usize = 64;
/// Payload bytes of a page at most.
pub const PAGE_PAYLOAD_BYTES_MAX: usize = 4012;
/// Ports below this have a bit each in page 1. Services are there; what clients draw lies above.
pub const PORTS_HELD: u32 = 8 * PAGE_PAYLOAD_BYTES_MAX as u32;
/// Places whose same pages lie side by side: 256 KiB are read at once, and the file is no longer
/// than the highest place in use needs, but for this many.
pub const GROUP_PLACES: u32 = 64;
/// Bytes of a segment at least that has a digest. Stores with smaller ones have a few dozen for
/// each lane, which are opened as fast; and three pages would be a larger part of theirs.
pub const SEGMENT_BYTES_MIN: u64 = 64 << 20;
/// Pages of addresses for a segment of 1 GiB, fewer for smaller ones: with 47,000 keys, as 40,000
/// hosts make, one in 10,000 strangers gets through; with 150,000 one in 27.
const HOST_PAGES_PER_GIB: u64 = 32;

const TAG_BYTES: usize = 16;
const MAGIC: [u8; 8] = *b"WVDIGST\x02";
const FLAG_SEALED: u8 = 1;
const STRUCTURE: &str = "digest page";
const _: () = assert!(
    PAGE_HEADER_BYTES + PAGE_PAYLOAD_BYTES_MAX + TAG_BYTES + 4 == PAGE_BYTES,
    "a page is full"
);

/// Number of the page with the facts.
pub const FACTS_PAGE: u16 = 0;
/// Number of the page with the ports.
pub const PORTS_PAGE: u16 = 1;
/// Number of the first page of addresses.
pub const HOSTS_PAGE: u16 = 2;

/// Pages of addresses in stores with segments of this size; `None`: its segments have no digests.
pub fn host_pages(segment_bytes: u64) -> Option<u16> {
    let pages = (segment_bytes.min(1 << 30) * HOST_PAGES_PER_GIB) >> 30;
    (segment_bytes >= SEGMENT_BYTES_MIN).then_some(pages as u16)
}

/// Bytes that the digests of places up to `places` take at most, whole groups.
pub fn file_bytes(segment_bytes: u64, places: u32) -> u64 {
    let Some(pages) = host_pages(segment_bytes) else { return 0 };
    let groups = places.div_ceil(GROUP_PLACES);
    u64::from(groups) * u64::from(GROUP_PLACES) * u64::from(HOSTS_PAGE + pages) * PAGE_BYTES as u64
}

/// Where page `page` of the segment at `place` lies, in a store with so many pages of addresses.
pub fn page_offset(host_pages: u16, place: u32, page: u16) -> u64 {
    let (group, within) = (u64::from(place / GROUP_PLACES), u64::from(place % GROUP_PLACES));
    let row = group * u64::from(HOSTS_PAGE + host_pages) + u64::from(page);
    (row * u64::from(GROUP_PLACES) + within) * PAGE_BYTES as u64
}

/// What a page is, and of which segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHeader {
    /// Number of the page.
    pub page: u16,
    /// Payload is encrypted.
    pub sealed: bool,
    /// Bits that a key sets; only pages of addresses have any.
    pub probes: u8,
    /// Place of the segment.
    pub place: u32,
    /// Its life.
    pub life: LifeId,
    /// When it was closed, ns. A segment that recovery closed again has another digest.
    pub closed_ns: u64,
    /// Bytes of payload, without the tag.
    pub payload_bytes: u16,
}

impl PageHeader {
    /// The additional data of the seal.
    pub fn aad(&self) -> [u8; PAGE_AAD_BYTES] {
        let mut aad = [0; PAGE_AAD_BYTES];
        put(&mut aad, 0, &MAGIC);
        put_u16(&mut aad, 8, self.page);
        aad[10] = if self.sealed { FLAG_SEALED } else { 0 };
        aad[11] = self.probes;
        put_u32(&mut aad, 12, self.place);
        put(&mut aad, 16, &self.life.0);
        put_u64(&mut aad, 32, self.closed_ns);
        put_u16(&mut aad, 40, self.payload_bytes);
        aad
    }

    /// The whole page. `body` is the payload, with its tag if sealed.
    pub fn encode(&self, salt: &[u8; 16], body: &[u8]) -> [u8; PAGE_BYTES] {
        let mut page = [0; PAGE_BYTES];
        put(&mut page, 0, &self.aad());
        put(&mut page, PAGE_AAD_BYTES, salt);
        put(&mut page, PAGE_HEADER_BYTES, body);
        let crc = crc32c(&page[..PAGE_BYTES - 4]);
        put_u32(&mut page, PAGE_BYTES - 4, crc);
        page
    }
}

/// A page, taken apart.
#[derive(Debug)]
pub struct Page<'a> {
    /// Header.
    pub header: PageHeader,
    /// Salt of the seal.
    pub salt: [u8; 16],
    /// Payload, with its tag if sealed.
    pub body: &'a [u8],
}

/// Reads a page.
///
/// # Errors
/// `Short`, `NotPresent`, `Checksum` or `Field`.
pub fn decode(bytes: &[u8]) -> Result<Page<'_>, FormatError> {
    let (structure, have, need) = (STRUCTURE, bytes.len(), PAGE_BYTES);
    let page = bytes.get(..need).ok_or(FormatError::Short { structure, have, need })?;
    if page[..8] != MAGIC {
        return Err(FormatError::NotPresent { structure });
    }
    let (found, expected) = (u32_at(page, need - 4), crc32c(&page[..need - 4]));
    if found != expected {
        return Err(FormatError::Checksum { structure, found, expected });
    }
    let header = PageHeader {
        page: u16_at(page, 8),
        sealed: page[10] & FLAG_SEALED != 0,
        probes: page[11],
        place: u32_at(page, 12),
        life: LifeId(array_at(page, 16)),
        closed_ns: u64_at(page, 32),
        payload_bytes: u16_at(page, 40),
    };
    let tag_bytes = if header.sealed { TAG_BYTES } else { 0 };
    let payload_bytes = usize::from(header.payload_bytes);
    let end = PAGE_HEADER_BYTES + payload_bytes + tag_bytes;
    if payload_bytes > PAGE_PAYLOAD_BYTES_MAX || header.aad() != page[..PAGE_AAD_BYTES] {
        let (field, value) = ("payload bytes", u64::from(header.payload_bytes));
        return Err(FormatError::Field { structure, field, value });
    }
    if !all_zero(&page[end..need - 4]) {
        let (field, value) = ("padding", end as u64);
        return Err(FormatError::Field { structure, field, value });
    }
    let body = &page[PAGE_HEADER_BYTES..end];
    Ok(Page { header, salt: array_at(page, PAGE_AAD_BYTES), body })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: PageHeader = PageHeader {
        page: 3,
        sealed: false,
        probes: 7,
        place: 65,
        life: LifeId([9; 16]),
        closed_ns: 1234,
        payload_bytes: 5,
    };

    #[test]
    fn every_flipped_bit_of_a_page_is_an_error() {
        let good = HEADER.encode(&[0; 16], b"hello");
        let page = decode(&good).unwrap();
        assert_eq!((page.header, page.body), (HEADER, &b"hello"[..]));
        for bit in 0..PAGE_BYTES * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad).is_err(), "bit {bit}");
        }
        assert!(decode(&good[..PAGE_BYTES - 1]).is_err());
        assert!(matches!(decode(&[0; PAGE_BYTES]), Err(FormatError::NotPresent { .. })));
    }

    #[test]
    fn pages_lie_side_by_side_and_nowhere_twice() {
        assert_eq!(
            (host_pages(SEGMENT_BYTES_MIN - 1), host_pages(SEGMENT_BYTES_MIN)),
            (None, Some(2))
        );
        assert_eq!(host_pages(1 << 30), Some(32));
        let mut at: Vec<u64> = (0..130)
            .flat_map(|place| (0..4).map(move |page| page_offset(2, place, page)))
            .collect();
        assert_eq!(page_offset(2, 1, 2) - page_offset(2, 0, 2), PAGE_BYTES as u64);
        at.sort_unstable();
        at.dedup();
        assert_eq!(at.len(), 130 * 4);
        let end = at[at.len() - 1] + PAGE_BYTES as u64;
        assert!(
            end <= file_bytes(SEGMENT_BYTES_MIN, 130) && end > file_bytes(SEGMENT_BYTES_MIN, 128)
        );
    }
}
