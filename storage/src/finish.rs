//! Closing a segment: index sections and footer behind its chunks.
//!
//! The segment table says "open" until all of this is durable. A crash in between leaves an open
//! segment whose chunks are all there; the next start writes index and footer again, under fresh
//! salts.

use wirevault_format::footer::{ChunkEntry, CloseReason, DirectoryEntry, FOOTER_BYTES, Footer};
use wirevault_format::gap::CAUSES;
use wirevault_format::limits::{CHUNK_BYTES, LBA_BYTES};
use wirevault_format::section::{PART_PAYLOAD_BYTES_MAX, PartHeader};
use wirevault_format::table::{SegmentEntry, SegmentState};
use wirevault_format::{LifeId, local};
use wirevault_index::sections::EncodedSection;
use wirevault_index::{ChunkDelta, Digest, EncodedIndex, SegmentIndex};
use wirevault_media::OpenMode;
use wirevault_seal::{Purpose, SALT_BYTES, SealError, SegmentKeys, TAG_BYTES};
use wirevault_telemetry::clock::Clock;

use crate::StorageError;
use crate::digests::write_digest;
use crate::store::OpenSegment;
use crate::volume::{check_lease, device, key_error};

/// How far behind the last chunk index and footer go if they are not taken there: behind the chunk
/// that was not taken, if there was one, and further.
const SKIPPED_BYTES: [u64; 4] = [16 << 10, CHUNK_BYTES as u64, 1 << 20, 4 << 20];
/// Bytes of the smallest padding block.
const PADDING_BYTES_MIN: usize = local::START_BYTES + 4;

/// What the index does not know of a segment that is closed.
#[derive(Debug, Clone)]
pub struct ClosingFacts {
    /// Why it is closed.
    pub reason: CloseReason,
    /// Recovery closes it.
    pub recovered: bool,
    /// Recovery found damage below the watermark.
    pub damaged: bool,
    /// Captured bytes of its packets.
    pub captured_bytes: u64,
    /// Packets the lane received so far in the run.
    pub received: u64,
    /// Of them left out by policy.
    pub shed: u64,
    /// Of them dropped, by cause.
    pub dropped: [u64; CAUSES],
    /// Hash over the chunks, see [`wirevault_seal::chain::Chain`].
    pub chain: [u8; 32],
}

/// A segment whose index and footer are durable, and whose entry in the table is not yet.
#[derive(Debug, Clone)]
#[must_use = "the segment counts as interrupted until `Store::close_segment` has this"]
pub struct Finished {
    pub(crate) entry: SegmentEntry,
}

impl Finished {
    /// The entry that the table will have.
    pub fn entry(&self) -> &SegmentEntry {
        &self.entry
    }

    /// The same in a place that no other segment is given any more.
    pub fn in_bad_place(mut self) -> Self {
        self.entry.bad = true;
        self
    }
}

/// Writes index and footer behind the chunks, cuts the file there, and makes it durable. Needs no
/// store; the chunks must be durable. Where a device does not take them they go further on, and the
/// place is bad. In a contested place they go to its end: late chunks of the writer before, and its
/// late index behind them, do not reach that far.
///
/// If the flows do not fit what is left of the segment they are left out and every chunk will be
/// scanned. Chunk table and gaps are always written: only gaps in numbers that no lane produces
/// could carry the file past a full segment then.
///
/// # Errors
/// `Key`, `Index` if the index cannot be encoded, `Device`.
pub fn finish_segment(
    open: &OpenSegment,
    index: &SegmentIndex,
    facts: &ClosingFacts,
    clock: &dyn Clock,
) -> Result<Finished, StorageError> {
    let chunk_end = |chunk: &ChunkEntry| chunk.offset + u64::from(chunk.chunk_bytes);
    let start = index.chunks().iter().map(chunk_end).max().unwrap_or(open.data_offset);
    let start = match open.entry.contested {
        true => last_start(open, index)?.max(start),
        false => start,
    };
    let first = match finish_at(start, open, index, facts, clock) {
        Err(error) if open.showing.media.is_device() && error.is_of_place() => error,
        finished => return finished,
    };
    for skipped_bytes in SKIPPED_BYTES {
        let start = start + skipped_bytes;
        if start + (LBA_BYTES + FOOTER_BYTES) as u64 > open.segment_bytes {
            break;
        }
        if let Ok(finished) = finish_at(start, open, index, facts, clock) {
            return Ok(finished.in_bad_place());
        }
    }
    Err(first)
}

/// The same, from this offset on.
fn finish_at(
    start: u64,
    open: &OpenSegment,
    index: &SegmentIndex,
    facts: &ClosingFacts,
    clock: &dyn Clock,
) -> Result<Finished, StorageError> {
    let name = open.name.as_str();
    let failed = |source| key_error(name, source);
    let mut tail = Tail::new(open, index, start)?;
    let footer_offset = start + tail.bytes.len() as u64;
    let file_bytes = footer_offset + FOOTER_BYTES as u64;
    let entry = SegmentEntry {
        state: SegmentState::Closed,
        recovered: facts.recovered,
        damaged: facts.damaged,
        close_reason: facts.reason,
        closed_ns: clock.unix_ns(),
        times_ns: times_of(index.chunks()),
        packets: index.chunks().iter().map(|chunk| u64::from(chunk.packets)).sum(),
        captured_bytes: facts.captured_bytes,
        file_bytes,
        footer_offset,
        sequences: sequences_of(index.chunks()),
        chunks: index.chunks().len() as u32,
        ..open.entry.clone()
    };
    let footer = Footer {
        sealed: entry.sealed,
        recovered: entry.recovered,
        lane: entry.lane,
        link_type: entry.link_type,
        life: entry.life,
        run: entry.run,
        ordinal: entry.ordinal,
        chunks: entry.chunks,
        close_reason: entry.close_reason,
        packets: entry.packets,
        captured_bytes: entry.captured_bytes,
        times_ns: entry.times_ns,
        sequences: entry.sequences,
        received: facts.received,
        shed: facts.shed,
        dropped: facts.dropped,
        opened_ns: entry.opened_ns,
        closed_ns: entry.closed_ns,
        data_offset: open.data_offset,
        index_offset: start,
        flows: tail.flows,
        unindexed_chunks: tail.scanned_chunks,
        chain: facts.chain,
        directory: tail.directory,
    };
    let page = footer.encode(|aad| Seal::of(open).footer(aad)).map_err(failed)?;
    tail.bytes.extend_from_slice(&page);
    // Whoever lost a shared volume acknowledged less than is there, and would write its index over
    // chunks that the next writer has found.
    check_lease(&*open.showing.media, name)?;
    // One sync covers the bytes and the length: neither counts before the table says "closed".
    // Its device may have been away since the segment was opened, and that handle with it.
    let file = open.showing.media.open(open.file.name(), OpenMode::ReadWrite);
    file.and_then(|file| {
        file.write_at(&tail.bytes, start)?;
        file.set_len(file_bytes)?;
        file.sync()
    })
    .map_err(|source| device(name, &format!("finish {}", open.file.name()), source))?;
    if let Some(digest) = &tail.digest {
        let (media, keys) = (&*open.showing.media, open.keys.as_ref());
        // Without it questions open the segment; the next start makes it anew.
        let _ = write_digest(media, open.segment_bytes, open.place, &entry, keys, digest);
    }
    Ok(Finished { entry })
}

/// Where index and footer begin that end with the place.
fn last_start(open: &OpenSegment, index: &SegmentIndex) -> Result<u64, StorageError> {
    let tail = Tail::new(open, index, open.data_end)?;
    Ok(open.segment_bytes.saturating_sub((tail.bytes.len() + FOOTER_BYTES) as u64))
}

/// Index blocks, padded so that the footer behind them starts on a logical block.
struct Tail {
    bytes: Vec<u8>,
    directory: Vec<DirectoryEntry>,
    /// Flows that it has.
    flows: u32,
    /// Chunks that neither flows nor filters cover.
    scanned_chunks: u32,
    digest: Option<Digest>,
}

impl Tail {
    /// The index as it stands at `start`, without flows if they do not fit behind that.
    fn new(open: &OpenSegment, index: &SegmentIndex, start: u64) -> Result<Self, StorageError> {
        let room = open.segment_bytes.saturating_sub(start + FOOTER_BYTES as u64);
        let whole = Self::of(open, index.encode()?, start)?;
        match whole.bytes.len() as u64 <= room {
            true => Ok(whole),
            false => Self::of(open, without_flows(index)?.encode()?, start),
        }
    }

    fn of(open: &OpenSegment, encoded: EncodedIndex, start: u64) -> Result<Self, StorageError> {
        let EncodedIndex { sections, flows, scanned_chunks, digest, .. } = encoded;
        let blocks = Seal::of(open).blocks(sections, start);
        let (bytes, directory) = blocks.map_err(|source| key_error(&open.name, source))?;
        Ok(Self { bytes, directory, flows, scanned_chunks, digest })
    }
}

/// How the records of one segment are sealed, if they are.
struct Seal<'a> {
    keys: Option<&'a SegmentKeys>,
    life: LifeId,
}

impl<'a> Seal<'a> {
    fn of(open: &'a OpenSegment) -> Self {
        Self { keys: open.keys.as_ref(), life: open.entry.life }
    }

    /// Sections in blocks, and where they are.
    fn blocks(
        &self,
        sections: Vec<EncodedSection>,
        start: u64,
    ) -> Result<(Vec<u8>, Vec<DirectoryEntry>), SealError> {
        let (mut bytes, mut directory) = (Vec::new(), Vec::new());
        for section in sections {
            let at = bytes.len();
            let mut parts = 0u16;
            for payload in section.bytes.chunks(PART_PAYLOAD_BYTES_MAX) {
                self.part(&mut bytes, &section, parts, payload)?;
                parts += 1;
            }
            directory.push(DirectoryEntry {
                id: section.id,
                parts,
                codec: section.codec,
                offset: start + at as u64,
                blocks_bytes: (bytes.len() - at) as u32,
                raw_bytes: section.raw_bytes,
            });
        }
        let end = start as usize + bytes.len();
        let mut padding = end.next_multiple_of(LBA_BYTES) - end;
        if (1..PADDING_BYTES_MIN).contains(&padding) {
            padding += LBA_BYTES;
        }
        if padding > 0 {
            bytes.extend(local::skip_block(padding));
        }
        Ok((bytes, directory))
    }

    fn part(
        &self,
        out: &mut Vec<u8>,
        section: &EncodedSection,
        part: u16,
        payload: &[u8],
    ) -> Result<(), SealError> {
        let header = PartHeader {
            id: section.id,
            part,
            life: self.life,
            sealed: self.keys.is_some(),
            payload_bytes: payload.len() as u32,
        };
        let mut body = payload.to_vec();
        let salt = match self.keys {
            Some(keys) => keys.seal_record(Purpose::Index, &header.aad(), &mut body)?.salt,
            None => [0; SALT_BYTES],
        };
        header.encode(out, &salt, &body);
        Ok(())
    }

    fn footer(&self, aad: &[u8]) -> Result<([u8; SALT_BYTES], [u8; TAG_BYTES]), SealError> {
        let reason = "a plain segment has no footer to seal";
        let keys = self.keys.ok_or(SealError::NoSealer { life: self.life, reason })?;
        let mut tag = Vec::new();
        let salt = keys.seal_record(Purpose::Footer, aad, &mut tag)?.salt;
        let tag = tag.try_into().map_err(|_| SealError::Cipher { doing: "seal a footer" })?;
        Ok((salt, tag))
    }
}

/// The same index with its chunks and gaps only.
fn without_flows(index: &SegmentIndex) -> Result<SegmentIndex, StorageError> {
    let mut coarse = SegmentIndex::new();
    let mut gaps = index.gaps().to_vec();
    gaps.sort_by_key(|(chunk, _)| *chunk);
    let mut gaps = gaps.into_iter().peekable();
    for (number, chunk) in index.chunks().iter().enumerate() {
        let mut delta = ChunkDelta::small();
        delta.number = number as u32;
        delta.chunk = *chunk;
        while let Some((_, gap)) = gaps.next_if(|(chunk, _)| *chunk <= delta.number) {
            delta.gaps.push(gap);
        }
        delta.unindexed = true;
        coarse.apply(&delta)?;
    }
    gaps.for_each(|(_, gap)| coarse.add_gap(gap));
    Ok(coarse)
}

/// Smallest and largest packet time.
fn times_of(chunks: &[ChunkEntry]) -> Option<(u64, u64)> {
    let times = chunks.iter().filter_map(|chunk| chunk.times_ns);
    times.reduce(|(min, max), (low, high)| (min.min(low), max.max(high)))
}

/// First stream sequence, and the one after the last. A chunk without packets says nothing unless
/// there is no other.
fn sequences_of(chunks: &[ChunkEntry]) -> (u64, u64) {
    let mut with_packets = chunks.iter().filter(|chunk| chunk.packets > 0);
    let first = with_packets.clone().next().or(chunks.first());
    let last = with_packets.next_back().or(first);
    let next = |chunk: &ChunkEntry| chunk.first_sequence.saturating_add(chunk.packets.into());
    (first.map_or(0, |chunk| chunk.first_sequence), last.map_or(0, next))
}
