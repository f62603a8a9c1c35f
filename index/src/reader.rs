//! Reading one segment: its header, its index, its chunks. Every byte is checked before it is
//! believed.

use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, RwLock};

use wirevault_format::chunk::{self, ChunkHeader, HEADER_BYTES};
use wirevault_format::footer::{self, ChunkEntry, Codec, DirectoryEntry, FOOTER_BYTES, Footer};
use wirevault_format::gap::CAUSES;
use wirevault_format::limits::LBA_BYTES;
use wirevault_format::section::{self, PART_AAD_BYTES, SectionId};
use wirevault_format::segment::{self, REGION_BYTES_MAX, SegmentHeader};
use wirevault_format::table::{SegmentEntry, SegmentState};
use wirevault_format::{FormatError, Gap, Interface, LifeId, local, pcapng};
use wirevault_media::MediaFile;
use wirevault_seal::{DataOpener, Purpose, SegmentKeys};

use crate::catalog::{Content, Segment};
use crate::recover::{self, Damage, Found};
use crate::{ChunkDelta, Digest, IndexError, SegmentIndex};

/// Bytes a decoded section may have. The flow table of a segment full of 64-byte packets takes 50
/// MB.
const SECTION_RAW_BYTES_MAX: u32 = 512 << 20;

/// A segment that is open for reading.
pub struct SegmentReader {
    name: String,
    file: Arc<dyn MediaFile>,
    /// Bytes read from the tier, if it is read there.
    taken: Option<Arc<AtomicU64>>,
    header: SegmentHeader,
    region_bytes: usize,
    interfaces: Vec<Interface>,
    opener: Option<DataOpener>,
    index: Index,
    damage: Vec<Damage>,
    index_damage: Option<String>,
    footer: Option<Footer>,
    footer_at: Option<u64>,
}

enum Index {
    Own(Box<SegmentIndex>),
    Live(Arc<RwLock<SegmentIndex>>),
}

impl SegmentReader {
    pub(crate) fn open(segment: &Segment) -> Result<Self, IndexError> {
        let (mut reader, keys) = Self::head(segment)?;
        match &segment.content {
            Content::Live(index) => reader.index = Index::Live(Arc::clone(index)),
            Content::Stored if segment.entry.state == SegmentState::Closed => {
                match reader.load_closed(&segment.entry, keys.as_ref()) {
                    Ok(()) => {}
                    // What the index says can be found out again from the chunks, more slowly.
                    Err(error) if error.is_damage() => {
                        reader.load_interrupted(segment, segment.entry.sequences.1)?;
                        reader.index_damage = Some(error.to_string());
                    }
                    Err(error) => return Err(error),
                }
            }
            Content::Stored => reader.load_interrupted(segment, segment.stream_watermark)?,
        }
        Ok(reader)
    }

    /// The chunks that an interrupted segment shows, before any decision.
    pub(crate) fn scan(segment: &Segment) -> Result<Arc<[Found]>, IndexError> {
        segment.found(|| Self::head(segment)?.0.scan_file())
    }

    /// A reader that knows the segment's header only, and the segment's keys.
    fn head(segment: &Segment) -> Result<(Self, Option<SegmentKeys>), IndexError> {
        let name = segment.name();
        let (file, taken) = segment.open_file()?;
        let keys = segment.keys()?;
        let head = read_up_to(&*file, 0, REGION_BYTES_MAX, &name)?;
        let damaged = |source| IndexError::Damaged { segment: name.clone(), chunk: None, source };
        let region = segment::decode(&head).map_err(damaged)?;
        check_life(&name, segment.entry.life, region.header.life)?;
        let interfaces = match region.sealed_table {
            None => region.interfaces,
            Some((aad, salt, sealed)) => {
                let keys = keys.as_ref().ok_or_else(|| no_key(&name))?;
                let mut table = sealed.to_vec();
                keys.open_record(Purpose::SegmentHeader, &salt, aad, &mut table)
                    .map_err(|source| unsealed(&name, None, source))?;
                segment::read_interface_table(&table).map_err(damaged)?
            }
        };
        let opener = keys
            .as_ref()
            .map(SegmentKeys::data_opener)
            .transpose()
            .map_err(|source| unsealed(&name, None, source))?;
        let reader = Self {
            name,
            file,
            taken,
            header: region.header,
            region_bytes: region.region_bytes,
            interfaces,
            opener,
            index: Index::Own(Box::new(SegmentIndex::new())),
            damage: Vec::new(),
            index_damage: None,
            footer: None,
            footer_at: None,
        };
        Ok((reader, keys))
    }

    /// Name of the segment: volume and place.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Counts the bytes that were read from the tier; nothing if it is read on its volume.
    pub fn taken(&self) -> Option<&Arc<AtomicU64>> {
        self.taken.as_ref()
    }

    /// Who wrote the segment.
    pub fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// Interfaces that its packets name by number.
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// Footer of a closed segment whose footer is whole.
    pub fn footer(&self) -> Option<&Footer> {
        self.footer.as_ref()
    }

    /// What was acknowledged and is not there, as far as opening the segment showed it.
    pub fn damage(&self) -> &[Damage] {
        &self.damage
    }

    /// What is wrong with footer or index of a closed segment; its chunks are then scanned.
    pub fn index_damage(&self) -> Option<&str> {
        self.index_damage.as_deref()
    }

    /// Looks into the index. A live segment's index grows between two calls.
    pub fn with_index<R>(&self, look: impl FnOnce(&SegmentIndex) -> R) -> R {
        match &self.index {
            Index::Own(index) => look(index),
            Index::Live(index) => look(&index.read().unwrap_or_else(|poison| poison.into_inner())),
        }
    }

    /// The digest of a closed segment, from its index; `None` if its packets are not covered.
    ///
    /// # Errors
    /// `Section` if sections that it is made of do not decode.
    pub fn digest(&self) -> Result<Option<Digest>, IndexError> {
        match (&self.index, &self.index_damage, &self.footer) {
            (Index::Own(index), None, Some(_)) => index.digest(),
            _ => Ok(None),
        }
    }

    /// Reads a chunk into `buf` (the whole chunk, its payload decrypted) and gives its header and
    /// where the payload is.
    ///
    /// # Errors
    /// `Damaged` or `Unsealed` if any byte of the chunk is not as written, `Reused` if another life
    /// holds the place by now.
    pub fn read_chunk(
        &self,
        number: u32,
        buf: &mut Vec<u8>,
    ) -> Result<(ChunkHeader, Range<usize>), IndexError> {
        let entry = self.with_index(|index| index.chunks().get(number as usize).copied());
        let field = |field, value| FormatError::Field { structure: "chunk", field, value };
        let damaged = |source| self.damaged(Some(number), source);
        let entry = entry.ok_or_else(|| damaged(field("number", u64::from(number))))?;
        buf.resize(entry.chunk_bytes as usize, 0);
        self.file.read_exact_at(buf, entry.offset).map_err(|source| IndexError::Io {
            what: format!("segment {}, chunk {number}", self.name),
            source,
        })?;
        let header = ChunkHeader::decode(buf).map_err(damaged)?;
        check_life(&self.name, self.header.life, header.life)?;
        if header.number != number || header.first_sequence != entry.first_sequence {
            return Err(damaged(field("number", u64::from(header.number))));
        }
        let payload = HEADER_BYTES..HEADER_BYTES + header.payload_bytes as usize;
        self.open_payload(buf, &header)?;
        Ok((header, payload))
    }

    /// Checks what lies between the index and the footer of a closed segment: nothing but one block
    /// of padding, whose bytes no checksum covers.
    ///
    /// # Errors
    /// `Damaged` if any byte of it is not as written, `Io`.
    pub fn check_padding(&self) -> Result<(), IndexError> {
        let Some((footer, footer_at)) = self.footer.as_ref().zip(self.footer_at) else {
            return Ok(());
        };
        let part_end = |entry: &DirectoryEntry| entry.offset + u64::from(entry.blocks_bytes);
        let end = footer.directory.iter().map(part_end).max().unwrap_or(footer.index_offset);
        let wrong = || {
            let (structure, field) = ("padding", "bytes");
            self.damaged(None, FormatError::Field { structure, field, value: end })
        };
        let bytes = footer_at.checked_sub(end).filter(|bytes| *bytes < 2 * LBA_BYTES as u64);
        let bytes = bytes.ok_or_else(wrong)? as usize;
        let found = read_up_to(&*self.file, end, bytes, &self.name)?;
        let whole = bytes == 0
            || (bytes >= local::START_BYTES + 4
                && bytes.is_multiple_of(4)
                && found == local::skip_block(bytes));
        if whole { Ok(()) } else { Err(wrong()) }
    }

    fn open_payload(&self, chunk: &mut [u8], header: &ChunkHeader) -> Result<(), IndexError> {
        let number = Some(header.number);
        if header.sealed != self.header.sealed {
            let (structure, field, value) = ("chunk", "seal", u64::from(header.sealed));
            return Err(self.damaged(number, FormatError::Field { structure, field, value }));
        }
        if !header.sealed {
            let payload = chunk::plain_payload(chunk, header);
            return payload.map(|_| ()).map_err(|source| self.damaged(number, source));
        }
        let opener = self.opener.as_ref().ok_or_else(|| no_key(&self.name))?;
        let parts =
            chunk::sealed_parts(chunk, header).map_err(|source| self.damaged(number, source))?;
        opener
            .open(header.number, parts.aad, parts.ciphertext, &parts.tag)
            .map_err(|source| unsealed(&self.name, number, source))
    }

    fn damaged(&self, chunk: Option<u32>, source: FormatError) -> IndexError {
        IndexError::Damaged { segment: self.name.clone(), chunk, source }
    }

    fn load_closed(
        &mut self,
        entry: &SegmentEntry,
        keys: Option<&SegmentKeys>,
    ) -> Result<(), IndexError> {
        let at = entry.footer_offset;
        let page = read_up_to(&*self.file, at, FOOTER_BYTES, &self.name)?;
        let footer = Footer::decode(&page).map_err(|source| self.damaged(None, source))?;
        check_life(&self.name, self.header.life, footer.life)?;
        if footer.sealed != self.header.sealed {
            let (structure, field, value) = ("footer", "seal", u64::from(footer.sealed));
            return Err(self.damaged(None, FormatError::Field { structure, field, value }));
        }
        if footer.sealed {
            let keys = keys.ok_or_else(|| no_key(&self.name))?;
            let (aad, salt, tag) = footer::seal_of(&page);
            keys.open_record(Purpose::Footer, &salt, aad, &mut tag.to_vec())
                .map_err(|source| unsealed(&self.name, None, source))?;
        }
        // A writer that lost its lease may have closed it, too, and too late.
        if (footer.chunks, footer.closed_ns) != (entry.chunks, entry.closed_ns) {
            let (structure, field, value) = ("footer", "time closed", footer.closed_ns);
            return Err(self.damaged(None, FormatError::Field { structure, field, value }));
        }
        let sections = Sections {
            name: self.name.clone(),
            file: Arc::clone(&self.file),
            life: self.header.life,
            keys: keys.cloned(),
            directory: footer.directory.clone(),
        };
        let index = SegmentIndex::decode(Box::new(move |id| sections.load(id)))?;
        let chunks = index.chunks();
        if chunks.len() != footer.chunks as usize {
            let (structure, field, value) = ("footer", "chunks", u64::from(footer.chunks));
            return Err(self.damaged(None, FormatError::Field { structure, field, value }));
        }
        self.index = Index::Own(Box::new(index));
        self.footer = Some(footer);
        self.footer_at = Some(at);
        Ok(())
    }

    fn load_interrupted(&mut self, segment: &Segment, watermark: u64) -> Result<(), IndexError> {
        let mut found = segment.found(|| self.scan_file())?;
        // Behind the chunks that it was closed with stands what was written too late.
        let chunks = segment.entry.chunks;
        if segment.entry.state == SegmentState::Closed && chunks > 0 {
            found = found.iter().filter(|it| it.header.number < chunks).cloned().collect();
        }
        let recovered = recover::recover(&found, self.region_bytes as u64, watermark);
        let mut index = SegmentIndex::new();
        for (offset, header) in &recovered.chunks {
            let gaps = if header.gaps { self.gaps_at(*offset, header)? } else { Vec::new() };
            while (index.chunks().len() as u32) < header.number {
                index.apply(&self.placeholder(index.chunks().len() as u32, *offset))?;
            }
            index.apply(&self.unindexed(*offset, header, gaps))?;
        }
        self.damage = recovered.damage;
        self.index = Index::Own(Box::new(index));
        Ok(())
    }

    fn scan_file(&self) -> Result<Vec<Found>, IndexError> {
        let (life, opener) = (self.header.life, self.opener.as_ref());
        recover::scan(&*self.file, life, self.region_bytes as u64, opener)
            .map_err(|source| IndexError::Io { what: format!("segment {}", self.name), source })
    }

    /// The watermark that the last chunk's header carries.
    pub(crate) fn last_watermark(&self) -> Option<u64> {
        let last = self.with_index(|index| index.chunks().last().copied())?;
        let bytes = read_up_to(&*self.file, last.offset, HEADER_BYTES, &self.name).ok()?;
        let header = ChunkHeader::decode(&bytes).ok()?;
        (header.life == self.header.life).then_some(header.watermark)
    }

    fn gaps_at(&self, offset: u64, header: &ChunkHeader) -> Result<Vec<Gap>, IndexError> {
        let mut chunk = read_up_to(&*self.file, offset, header.chunk_bytes(), &self.name)?;
        if self.open_payload(&mut chunk, header).is_err() {
            // The chunk is reported as damage; what it said of gaps is lost with it.
            return Ok(Vec::new());
        }
        let payload = &chunk[HEADER_BYTES..HEADER_BYTES + header.payload_bytes as usize];
        gaps_in(payload).map_err(|source| self.damaged(Some(header.number), source))
    }

    fn unindexed(&self, offset: u64, header: &ChunkHeader, gaps: Vec<Gap>) -> ChunkDelta {
        let mut delta = ChunkDelta::small();
        delta.number = header.number;
        delta.chunk = ChunkEntry {
            offset,
            chunk_bytes: header.chunk_bytes() as u32,
            packets: header.packets,
            times_ns: header.times_ns,
            first_sequence: header.first_sequence,
        };
        delta.gaps = gaps;
        delta.unindexed = true;
        delta.received = header.received;
        delta.shed = header.shed;
        delta
    }

    /// Keeps the number of a chunk that is lost, so that the numbers behind it stay theirs.
    fn placeholder(&self, number: u32, offset: u64) -> ChunkDelta {
        let mut delta = ChunkDelta::small();
        delta.number = number;
        delta.chunk = ChunkEntry {
            offset,
            chunk_bytes: LBA_BYTES as u32,
            packets: 0,
            times_ns: None,
            first_sequence: 0,
        };
        delta.dropped = [0; CAUSES];
        delta
    }
}

/// What it takes to read the index sections of a closed segment, now or later.
struct Sections {
    name: String,
    file: Arc<dyn MediaFile>,
    life: LifeId,
    keys: Option<SegmentKeys>,
    directory: Vec<DirectoryEntry>,
}

impl Sections {
    fn load(&self, id: SectionId) -> Result<Option<Vec<u8>>, IndexError> {
        let entry = self.directory.iter().find(|entry| entry.id == id);
        entry.map(|entry| self.read(entry)).transpose()
    }

    fn read(&self, entry: &DirectoryEntry) -> Result<Vec<u8>, IndexError> {
        let segment = || self.name.clone();
        let damaged = |source| IndexError::Damaged { segment: segment(), chunk: None, source };
        let bytes_max = entry.blocks_bytes as usize;
        let blocks = read_up_to(&*self.file, entry.offset, bytes_max, &self.name)?;
        let mut encoded = Vec::new();
        let mut rest = &blocks[..];
        for number in 0..entry.parts {
            let part = section::decode(rest).map_err(damaged)?;
            check_life(&self.name, self.life, part.header.life)?;
            if part.header.id != entry.id || part.header.part != number {
                let (structure, field, value) = ("index section", "part", u64::from(number));
                return Err(damaged(FormatError::Field { structure, field, value }));
            }
            let mut body = part.body.to_vec();
            if part.header.sealed != self.keys.is_some() {
                let (structure, field, value) = ("index section", "seal", u64::from(number));
                return Err(damaged(FormatError::Field { structure, field, value }));
            }
            if let Some(keys) = &self.keys {
                let aad: [u8; PART_AAD_BYTES] = part.header.aad();
                keys.open_record(Purpose::Index, &part.salt, &aad, &mut body)
                    .map_err(|source| unsealed(&self.name, None, source))?;
            }
            encoded.extend_from_slice(&body);
            rest = &rest[part.block_bytes..];
        }
        decompress(entry, encoded)
    }
}

/// Gap blocks of a chunk's payload.
///
/// # Errors
/// If the payload is not a row of whole blocks.
pub fn gaps_in(payload: &[u8]) -> Result<Vec<Gap>, FormatError> {
    let mut gaps = Vec::new();
    for block in pcapng::read::Blocks::new(payload) {
        let block = block?;
        if block.kind == local::BLOCK_TYPE {
            gaps.push(Gap::decode(&payload[block.offset..])?);
        }
    }
    Ok(gaps)
}

fn decompress(entry: &DirectoryEntry, encoded: Vec<u8>) -> Result<Vec<u8>, IndexError> {
    let section = section_name(entry.id);
    let wrong = |what: String| IndexError::Section { section, what };
    if entry.raw_bytes > SECTION_RAW_BYTES_MAX {
        return Err(wrong(format!("{} bytes, at most {SECTION_RAW_BYTES_MAX}", entry.raw_bytes)));
    }
    let raw = match entry.codec {
        Codec::Raw => encoded,
        Codec::Zstd => zstd::bulk::decompress(&encoded, entry.raw_bytes as usize)
            .map_err(|error| wrong(error.to_string()))?,
    };
    match raw.len() == entry.raw_bytes as usize {
        true => Ok(raw),
        false => Err(wrong(format!("{} bytes instead of {}", raw.len(), entry.raw_bytes))),
    }
}

fn section_name(id: SectionId) -> &'static str {
    match id {
        SectionId::Chunks => "chunks",
        SectionId::Gaps => "gaps",
        SectionId::Shapes => "shapes",
        SectionId::Hosts => "hosts",
        SectionId::Flows => "flows",
        SectionId::Postings => "postings",
        SectionId::Filter => "filter",
        SectionId::ChunkFilters => "chunk filters",
    }
}

fn read_up_to(
    file: &dyn MediaFile,
    offset: u64,
    bytes_max: usize,
    name: &str,
) -> Result<Vec<u8>, IndexError> {
    let failed = |source| IndexError::Io { what: format!("segment {name}"), source };
    let left = file.len().map_err(failed)?.saturating_sub(offset);
    let mut bytes = vec![0; bytes_max.min(left as usize)];
    file.read_exact_at(&mut bytes, offset).map_err(failed)?;
    Ok(bytes)
}

fn check_life(segment: &str, expected: LifeId, found: LifeId) -> Result<(), IndexError> {
    match expected == found {
        true => Ok(()),
        false => Err(IndexError::Reused { segment: segment.to_owned(), expected, found }),
    }
}

fn no_key(segment: &str) -> IndexError {
    let why = "the key ring has no entry for its life".to_owned();
    IndexError::NoKey { segment: segment.to_owned(), why }
}

fn unsealed(segment: &str, chunk: Option<u32>, source: wirevault_seal::SealError) -> IndexError {
    IndexError::Unsealed { segment: segment.to_owned(), chunk, source }
}
