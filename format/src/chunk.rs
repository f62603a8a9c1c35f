//! The chunk: the one unit of buffering, sealing, indexing, writing and reading.
//!
//! ```text
//! plain    | head block 128 B | packets and gaps: ordinary pcapng blocks | tail block to the 4 KiB border |
//! sealed   | header 128 B     | the same blocks, encrypted | GCM tag 16 B | zeros | block total length u32 |
//! ```
//! Header, 128 bytes, little-endian, the same in both modes:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 20 | common start, see [`crate::local`]; total length is 128 (plain) or the whole chunk (sealed); flag 1: sealed, flag 2: the payload holds a gap |
//! | 20 | 2 | lane |
//! | 22 | 2 | link type |
//! | 24 | 16 | life id |
//! | 40 | 8 | run id |
//! | 48 | 4 | chunk number within the segment, from 0 |
//! | 52 | 4 | payload bytes |
//! | 56 | 8 | stream sequence of the first packet |
//! | 64 | 4 | packets |
//! | 68 | 4 | chunk bytes on disk, a multiple of 4096 |
//! | 72 | 8 | smallest packet time, ns (all ones if there is no packet) |
//! | 80 | 8 | largest packet time, ns |
//! | 88 | 8 | packets the lane's source received so far in this run |
//! | 96 | 8 | of them left out by policy |
//! | 104 | 8 | of them dropped, all causes |
//! | 112 | 8 | stream sequence below which everything was acknowledged when this chunk was submitted |
//! | 120 | 4 | CRC-32C of bytes 0 to 119 |
//! | 124 | 4 | 128 (plain: trailing length of the head block) or 0 (sealed) |
//!
//! All 128 bytes are the additional data of the seal: number, life and sequence are authenticated,
//! so the order of chunks is proved without chaining tags. Nothing in a chunk lies outside its CRC
//! or tag except padding, and padding must be zero.

use crate::bytes::{all_zero, array_at, put, put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};
use crate::limits::{CHUNK_BYTES, LBA_BYTES};
use crate::local::{self, Kind};
use crate::{FormatError, LifeId, LinkType, RunId, crc32c};

/// Bytes of the header, and offset of the payload.
pub const HEADER_BYTES: usize = 128;
/// Bytes of the smallest tail block of a plain chunk.
pub const TAIL_BYTES_MIN: usize = 52;
/// Bytes of the GCM tag of a sealed chunk.
pub const TAG_BYTES: usize = 16;
/// Bytes of packets and gaps that fit into one chunk, in either mode.
pub const PAYLOAD_BYTES_MAX: usize = CHUNK_BYTES - HEADER_BYTES - TAIL_BYTES_MIN;

const FLAG_SEALED: u16 = 1;
const FLAG_GAPS: u16 = 2;
const CRC_AT: usize = 120;
const STRUCTURE: &str = "chunk";
const _: () = assert!(TAIL_BYTES_MIN >= TAG_BYTES + 4, "what fits plain fits sealed");
const _: () = assert!(PAYLOAD_BYTES_MAX.is_multiple_of(4), "pcapng blocks are whole words");

/// Header of a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkHeader {
    /// Payload is encrypted.
    pub sealed: bool,
    /// The payload holds at least one gap.
    pub gaps: bool,
    /// Lane that wrote the chunk.
    pub lane: u16,
    /// Link type of every packet in it.
    pub link_type: LinkType,
    /// Life of the segment.
    pub life: LifeId,
    /// Run that wrote it.
    pub run: RunId,
    /// Number within the segment, from 0.
    pub number: u32,
    /// Bytes of packets and gaps.
    pub payload_bytes: u32,
    /// Stream sequence of the first packet.
    pub first_sequence: u64,
    /// Packets.
    pub packets: u32,
    /// Smallest and largest packet time, ns; `None` if there is no packet.
    pub times_ns: Option<(u64, u64)>,
    /// Packets the source received so far.
    pub received: u64,
    /// Packets left out by policy so far.
    pub shed: u64,
    /// Packets dropped so far.
    pub dropped: u64,
    /// Everything of the stream below this sequence was acknowledged at submit.
    pub watermark: u64,
}

impl ChunkHeader {
    /// Bytes the chunk takes on disk: header, payload and tail, up to the next logical block.
    pub fn chunk_bytes(&self) -> usize {
        let tail_bytes = if self.sealed { TAG_BYTES + 4 } else { TAIL_BYTES_MIN };
        (HEADER_BYTES + self.payload_bytes as usize + tail_bytes).next_multiple_of(LBA_BYTES)
    }

    /// Stream sequence after the last packet.
    pub fn next_sequence(&self) -> u64 {
        self.first_sequence.saturating_add(u64::from(self.packets))
    }

    /// Writes the header at the start of `chunk`.
    pub fn encode(&self, chunk: &mut [u8]) {
        let header = &mut chunk[..HEADER_BYTES];
        let (kind, total_bytes) = match self.sealed {
            true => (Kind::SealedChunk, self.chunk_bytes() as u32),
            false => (Kind::ChunkHead, HEADER_BYTES as u32),
        };
        let flags =
            if self.sealed { FLAG_SEALED } else { 0 } | if self.gaps { FLAG_GAPS } else { 0 };
        local::put_start(header, kind, total_bytes, flags);
        put_u16(header, 20, self.lane);
        put_u16(header, 22, self.link_type.0);
        put(header, 24, &self.life.0);
        put_u64(header, 40, self.run.0);
        put_u32(header, 48, self.number);
        put_u32(header, 52, self.payload_bytes);
        put_u64(header, 56, self.first_sequence);
        put_u32(header, 64, self.packets);
        put_u32(header, 68, self.chunk_bytes() as u32);
        let (min_ns, max_ns) = self.times_ns.unwrap_or((u64::MAX, 0));
        put_u64(header, 72, min_ns);
        put_u64(header, 80, max_ns);
        put_u64(header, 88, self.received);
        put_u64(header, 96, self.shed);
        put_u64(header, 104, self.dropped);
        put_u64(header, 112, self.watermark);
        let crc = crc32c(&header[..CRC_AT]);
        put_u32(header, CRC_AT, crc);
        put_u32(header, 124, if self.sealed { 0 } else { HEADER_BYTES as u32 });
    }

    /// Reads the header at the start of `bytes`.
    ///
    /// # Errors
    /// `NotPresent` if there is no chunk of ours, `Checksum` or `Field` if there is one and it is
    /// damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        if bytes.len() < HEADER_BYTES {
            let (have, need) = (bytes.len(), HEADER_BYTES);
            return Err(FormatError::Short { structure: STRUCTURE, have, need });
        }
        let start = local::start(bytes, STRUCTURE)?;
        let sealed = match start.kind {
            Kind::ChunkHead => false,
            Kind::SealedChunk => true,
            _ => return Err(FormatError::NotPresent { structure: STRUCTURE }),
        };
        let (found, expected) = (u32_at(bytes, CRC_AT), crc32c(&bytes[..CRC_AT]));
        if found != expected {
            return Err(FormatError::Checksum { structure: STRUCTURE, found, expected });
        }
        let field = |field, value| FormatError::Field { structure: STRUCTURE, field, value };
        if start.flags & !(FLAG_SEALED | FLAG_GAPS) != 0
            || (start.flags & FLAG_SEALED != 0) != sealed
        {
            return Err(field("flags", u64::from(start.flags)));
        }
        let packets = u32_at(bytes, 64);
        let times_ns = match (u64_at(bytes, 72), u64_at(bytes, 80)) {
            (u64::MAX, 0) if packets == 0 => None,
            (min_ns, max_ns) if packets > 0 && min_ns <= max_ns => Some((min_ns, max_ns)),
            (min_ns, _) => return Err(field("packet time", min_ns)),
        };
        let header = Self {
            sealed,
            gaps: start.flags & FLAG_GAPS != 0,
            lane: u16_at(bytes, 20),
            link_type: LinkType(u16_at(bytes, 22)),
            life: LifeId(array_at(bytes, 24)),
            run: RunId(u64_at(bytes, 40)),
            number: u32_at(bytes, 48),
            payload_bytes: u32_at(bytes, 52),
            first_sequence: u64_at(bytes, 56),
            packets,
            times_ns,
            received: u64_at(bytes, 88),
            shed: u64_at(bytes, 96),
            dropped: u64_at(bytes, 104),
            watermark: u64_at(bytes, 112),
        };
        if header.payload_bytes as usize > PAYLOAD_BYTES_MAX {
            return Err(field("payload bytes", u64::from(header.payload_bytes)));
        }
        let chunk_bytes = u32_at(bytes, 68);
        let total_bytes = if sealed { chunk_bytes } else { HEADER_BYTES as u32 };
        if chunk_bytes as usize != header.chunk_bytes() || start.total_bytes != total_bytes {
            return Err(field("chunk bytes", u64::from(chunk_bytes)));
        }
        let trailer = u32_at(bytes, 124);
        if trailer != if sealed { 0 } else { HEADER_BYTES as u32 } {
            return Err(field("header end", u64::from(trailer)));
        }
        Ok(header)
    }
}

/// Writes the tail of a plain chunk whose header and payload are complete. `chunk` is the whole
/// chunk on disk.
///
/// Layout of the tail block: common start; 20 life id; 36 chunk number u32; 40 CRC-32C of
/// everything in the chunk before the tail; 44 CRC-32C of the tail's bytes 0 to 43; 48 zeros; then
/// the trailing length u32.
pub fn put_plain_tail(chunk: &mut [u8], header: &ChunkHeader) {
    let tail_at = HEADER_BYTES + header.payload_bytes as usize;
    let body_crc = crc32c(&chunk[..tail_at]);
    let tail = &mut chunk[tail_at..header.chunk_bytes()];
    tail.fill(0);
    let tail_bytes = tail.len();
    local::put_start(tail, Kind::ChunkTail, tail_bytes as u32, 0);
    put(tail, 20, &header.life.0);
    put_u32(tail, 36, header.number);
    put_u32(tail, 40, body_crc);
    let crc = crc32c(&tail[..44]);
    put_u32(tail, 44, crc);
    put_u32(tail, tail_bytes - 4, tail_bytes as u32);
}

/// Checks a whole plain chunk and gives its payload.
///
/// # Errors
/// `Checksum` or `Field` if any byte of it is not as written.
pub fn plain_payload<'a>(chunk: &'a [u8], header: &ChunkHeader) -> Result<&'a [u8], FormatError> {
    let whole = whole(chunk, header)?;
    let tail_at = HEADER_BYTES + header.payload_bytes as usize;
    let tail = &whole[tail_at..];
    let start = local::expect(tail, Kind::ChunkTail, "chunk tail")?;
    let check = |structure, found, expected| match found == expected {
        true => Ok(()),
        false => Err(FormatError::Checksum { structure, found, expected }),
    };
    check("chunk tail", u32_at(tail, 44), crc32c(&tail[..44]))?;
    let field = |field, value| FormatError::Field { structure: "chunk tail", field, value };
    if start.total_bytes as usize != tail.len() || start.flags != 0 {
        return Err(field("block bytes", u64::from(start.total_bytes)));
    }
    if array_at(tail, 20) != header.life.0 || u32_at(tail, 36) != header.number {
        return Err(field("chunk number", u64::from(u32_at(tail, 36))));
    }
    let trailer = u32_at(tail, tail.len() - 4);
    if !all_zero(&tail[48..tail.len() - 4]) || trailer as usize != tail.len() {
        return Err(field("padding", u64::from(trailer)));
    }
    check("chunk", u32_at(tail, 40), crc32c(&whole[..tail_at]))?;
    Ok(&whole[HEADER_BYTES..tail_at])
}

/// Writes what follows the ciphertext of a sealed chunk: tag, zeros, trailing length.
pub fn put_sealed_tail(chunk: &mut [u8], header: &ChunkHeader, tag: &[u8; TAG_BYTES]) {
    let tail_at = HEADER_BYTES + header.payload_bytes as usize;
    let chunk_bytes = header.chunk_bytes();
    put(chunk, tail_at, tag);
    chunk[tail_at + TAG_BYTES..chunk_bytes - 4].fill(0);
    put_u32(chunk, chunk_bytes - 4, chunk_bytes as u32);
}

/// The parts of a sealed chunk: additional data, ciphertext, tag. The caller decrypts.
#[derive(Debug)]
pub struct SealedParts<'a> {
    /// The header, authenticated but not encrypted.
    pub aad: &'a [u8],
    /// Ciphertext, decrypted in place.
    pub ciphertext: &'a mut [u8],
    /// GCM tag.
    pub tag: [u8; TAG_BYTES],
}

/// Takes a whole sealed chunk apart.
///
/// # Errors
/// `Field` if padding or the trailing length is not as written, `Short` if the chunk is cut off.
pub fn sealed_parts<'a>(
    chunk: &'a mut [u8],
    header: &ChunkHeader,
) -> Result<SealedParts<'a>, FormatError> {
    let chunk_bytes = whole(chunk, header)?.len();
    let tag_at = HEADER_BYTES + header.payload_bytes as usize;
    let trailer = u32_at(chunk, chunk_bytes - 4);
    if !all_zero(&chunk[tag_at + TAG_BYTES..chunk_bytes - 4]) || trailer as usize != chunk_bytes {
        let (structure, value) = (STRUCTURE, u64::from(trailer));
        return Err(FormatError::Field { structure, field: "padding", value });
    }
    let (aad, rest) = chunk.split_at_mut(HEADER_BYTES);
    let (ciphertext, rest) = rest.split_at_mut(header.payload_bytes as usize);
    Ok(SealedParts { aad, ciphertext, tag: array_at(rest, 0) })
}

fn whole<'a>(chunk: &'a [u8], header: &ChunkHeader) -> Result<&'a [u8], FormatError> {
    let need = header.chunk_bytes();
    chunk.get(..need).ok_or(FormatError::Short { structure: STRUCTURE, have: chunk.len(), need })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(sealed: bool, payload_bytes: u32) -> ChunkHeader {
        ChunkHeader {
            sealed,
            gaps: true,
            lane: 3,
            link_type: LinkType::ETHERNET,
            life: LifeId([7; 16]),
            run: RunId(9),
            number: 12,
            payload_bytes,
            first_sequence: 1000,
            packets: 2,
            times_ns: Some((5, 8)),
            received: 1100,
            shed: 1,
            dropped: 99,
            watermark: 900,
        }
    }

    fn plain(payload: &[u8]) -> Vec<u8> {
        let header = header(false, payload.len() as u32);
        let mut chunk = vec![0xee; header.chunk_bytes()];
        header.encode(&mut chunk);
        chunk[HEADER_BYTES..HEADER_BYTES + payload.len()].copy_from_slice(payload);
        put_plain_tail(&mut chunk, &header);
        chunk
    }

    #[test]
    fn the_largest_payload_fills_the_buffer_exactly() {
        assert_eq!(header(false, PAYLOAD_BYTES_MAX as u32).chunk_bytes(), CHUNK_BYTES);
        assert_eq!(header(true, PAYLOAD_BYTES_MAX as u32).chunk_bytes(), CHUNK_BYTES);
    }

    #[test]
    fn every_flipped_bit_of_a_plain_chunk_is_an_error() {
        let good = plain(&[1, 2, 3, 4, 5, 6, 7, 8]);
        let read = |chunk: &[u8]| {
            let header = ChunkHeader::decode(chunk)?;
            plain_payload(chunk, &header).map(<[u8]>::to_vec)
        };
        assert_eq!(read(&good), Ok(vec![1, 2, 3, 4, 5, 6, 7, 8]));
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(read(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn every_flipped_bit_around_a_sealed_payload_is_an_error() {
        let header = header(true, 8);
        let mut good = vec![0xee; header.chunk_bytes()];
        header.encode(&mut good);
        put_sealed_tail(&mut good, &header, &[9; TAG_BYTES]);
        let body = HEADER_BYTES..HEADER_BYTES + 8 + TAG_BYTES;
        for at in (0..good.len()).filter(|at| !body.contains(at)) {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            let read =
                ChunkHeader::decode(&bad).and_then(|h| sealed_parts(&mut bad, &h).map(|_| ()));
            assert!(read.is_err(), "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn a_header_reads_back(sealed: bool, payload in 0..PAYLOAD_BYTES_MAX as u32, first: u64,
                               packets in 0..9u32, received: u64, watermark: u64) {
            let mut header = header(sealed, payload);
            header.first_sequence = first;
            header.packets = packets;
            header.times_ns = (packets > 0).then_some((received / 2, received));
            header.received = received;
            header.watermark = watermark;
            let mut bytes = [0; HEADER_BYTES];
            header.encode(&mut bytes);
            prop_assert_eq!(ChunkHeader::decode(&bytes), Ok(header));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = ChunkHeader::decode(&bytes);
        }
    }
}
