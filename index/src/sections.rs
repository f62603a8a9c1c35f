//! Encoding of the index sections. Every section is one byte stream, compressed with zstd level 1
//! if that helps.
//!
//! Numbers are unsigned LEB128 varints unless a width is given; widths are little-endian.
//!
//! | section | bytes |
//! |---|---|
//! | chunks | one 40-byte entry a chunk, see [`ChunkEntry`] |
//! | gaps | count; for each: chunk number, 80-byte gap block; then count and numbers of unindexed chunks, as differences |
//! | shapes | count; for each: length, bytes |
//! | hosts | count and 4 bytes each of IPv4 addresses; count and 16 bytes each of IPv6 addresses |
//! | flows | count; then one column after the other, one value a flow: see below |
//! | postings | for each flow: count, then chunk numbers as differences |
//! | chunk filters | ascending list of chunks; for each: ascending list of its shapes' numbers, flags u8, bytes; then the bits of all |
//! | filter | 1 byte (0: no host filter), binary fuse descriptor (seed u64, segment length, its mask, segment count length u32 each), fingerprint count u32, fingerprints; 8192 bytes of port bitmap |
//!
//! Columns of flows: shape number; numbers of all its addresses, each in the list of its family;
//! ports, u16; first time as zigzag difference to the flow before; duration; packets; bytes;
//! smallest wire length and what the largest adds; the same for captured length; three bytes: TCP
//! flags of any packet, of every packet, directions.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

use wirevault_format::Gap;
use wirevault_format::footer::{ChunkEntry, Codec};
use wirevault_format::gap::GAP_BYTES;
use wirevault_format::section::SectionId;
use wirevault_packet::ValueKind;

use crate::IndexError;
use crate::chunk_filter::ChunkFilter;
use crate::delta::FlowStats;
use crate::digest::{Digest, Values};
use crate::flows::{FlowList, Lists, Shape};
use crate::host_filter::{HostFilter, PORT_BITMAP_BYTES, mix};
use crate::varint::{put, put_ascending, zigzag};

/// zstd level: 1 shrinks by a third for a third of the closing time; higher levels hardly shrink
/// more.
const ZSTD_LEVEL: i32 = 1;

/// A section ready to be cut into blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedSection {
    /// Which section.
    pub id: SectionId,
    /// Encoding of `bytes`.
    pub codec: Codec,
    /// Encoded bytes.
    pub bytes: Vec<u8>,
    /// Bytes before compression.
    pub raw_bytes: u32,
}

impl EncodedSection {
    /// The bytes before compression.
    ///
    /// # Panics
    /// Never: what was compressed here decompresses.
    pub fn into_raw(self) -> Vec<u8> {
        match self.codec {
            Codec::Raw => self.bytes,
            Codec::Zstd => zstd::bulk::decompress(&self.bytes, self.raw_bytes as usize)
                .expect("the section was compressed in this process"),
        }
    }
}

/// An index ready to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedIndex {
    /// Its sections.
    pub sections: Vec<EncodedSection>,
    /// Flows in it.
    pub flows: u32,
    /// Chunks covered by a filter of their own instead of flows.
    pub filtered_chunks: u32,
    /// Chunks that queries scan.
    pub scanned_chunks: u32,
    /// What stands for all of it outside of the segment; `None` if every question must look into
    /// it.
    pub digest: Option<Digest>,
}

/// What goes into the sections.
pub(crate) struct Parts<'a> {
    pub(crate) chunks: &'a [ChunkEntry],
    pub(crate) gaps: &'a [(u32, Gap)],
    pub(crate) scanned: &'a [bool],
    pub(crate) filters: &'a [Option<ChunkFilter>],
    pub(crate) flows: &'a FlowList,
    /// Shapes of flows and filters, and the number of each of the flows' shapes among them.
    pub(crate) shapes: &'a [Shape],
    pub(crate) shape_numbers: &'a [u32],
    /// Flows that are written, ascending, and for each flow the chunks.
    pub(crate) kept: &'a [u32],
    pub(crate) postings: &'a Lists,
}

/// Encodes all sections. What there is none of has no section.
pub(crate) fn encode(parts: &Parts<'_>) -> Result<EncodedIndex, IndexError> {
    let table: Vec<u8> = parts.chunks.iter().flat_map(ChunkEntry::encode).collect();
    let mut sections = vec![
        compress(SectionId::Chunks, table)?,
        compress(SectionId::Gaps, encode_gaps(parts.gaps, parts.scanned))?,
    ];
    let filtered = parts.filters.iter().filter(|filter| filter.is_some()).count();
    if !parts.kept.is_empty() || filtered > 0 {
        sections.push(compress(SectionId::Shapes, encode_shapes(parts.shapes))?);
    }
    // A chunk's own filter does not tell which addresses it holds.
    let mut values = (filtered == 0).then(Values::none);
    if !parts.kept.is_empty() {
        let mut tables = Tables::new();
        let columns = encode_flows(parts, &mut tables);
        let (list4, list6) = (&tables.hosts4.list, &tables.hosts6.list);
        let filter = HostFilter::build(list4, list6, tables.ports.clone());
        let postings = encode_postings(parts.kept, parts.postings);
        sections.push(compress(SectionId::Hosts, tables.encode_hosts())?);
        sections.push(compress(SectionId::Flows, columns)?);
        sections.push(compress(SectionId::Postings, postings)?);
        sections.push(compress(SectionId::Filter, encode_filter(&filter))?);
        let (hosts4, hosts6) = (tables.hosts4.list, tables.hosts6.list);
        values = values.map(|_| Values { hosts4, hosts6, ports: tables.ports });
    }
    if filtered > 0 {
        let filters = encode_chunk_filters(parts.filters);
        sections.push(compress(SectionId::ChunkFilters, filters)?);
    }
    Ok(EncodedIndex {
        sections,
        flows: parts.kept.len() as u32,
        filtered_chunks: filtered as u32,
        scanned_chunks: parts.scanned.iter().filter(|scanned| **scanned).count() as u32,
        digest: Digest::new(parts.chunks, parts.scanned, parts.gaps, parts.shapes, values),
    })
}

fn compress(id: SectionId, raw: Vec<u8>) -> Result<EncodedSection, IndexError> {
    let wrong = |what: String| IndexError::Section { section: "encoding", what };
    let raw_bytes = u32::try_from(raw.len()).map_err(|error| wrong(error.to_string()))?;
    let packed =
        zstd::bulk::compress(&raw, ZSTD_LEVEL).map_err(|error| wrong(error.to_string()))?;
    let (codec, bytes) = match packed.len() < raw.len() {
        true => (Codec::Zstd, packed),
        false => (Codec::Raw, raw),
    };
    Ok(EncodedSection { id, codec, bytes, raw_bytes })
}

fn encode_gaps(gaps: &[(u32, Gap)], unindexed: &[bool]) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, gaps.len() as u64);
    for (chunk, gap) in gaps {
        put(&mut out, u64::from(*chunk));
        let mut block = [0; GAP_BYTES];
        gap.encode(&mut block);
        out.extend_from_slice(&block);
    }
    let numbers: Vec<u32> =
        unindexed.iter().enumerate().filter(|(_, is)| **is).map(|(n, _)| n as u32).collect();
    put_ascending(&mut out, &numbers);
    out
}

fn encode_shapes(shapes: &[Shape]) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, shapes.len() as u64);
    for shape in shapes {
        put(&mut out, shape.bytes.len() as u64);
        out.extend_from_slice(&shape.bytes);
    }
    out
}

/// Addresses met, each with its number, and ports.
struct Tables {
    hosts4: Numbers<4>,
    hosts6: Numbers<16>,
    /// One bit a port.
    ports: Vec<u8>,
}

/// Addresses in the order in which they were met.
struct Numbers<const N: usize> {
    numbers: HashMap<[u8; N], u32, AddressHash>,
    list: Vec<[u8; N]>,
}

impl<const N: usize> Numbers<N> {
    fn number(&mut self, addr: [u8; N]) -> u32 {
        *self.numbers.entry(addr).or_insert_with(|| {
            self.list.push(addr);
            self.list.len() as u32 - 1
        })
    }
}

impl Tables {
    fn new() -> Self {
        let hash = AddressHash { seed: RandomState::new().hash_one(0), state: 0 };
        Self {
            hosts4: Numbers { numbers: HashMap::with_hasher(hash), list: Vec::new() },
            hosts6: Numbers { numbers: HashMap::with_hasher(hash), list: Vec::new() },
            ports: vec![0; PORT_BITMAP_BYTES],
        }
    }

    fn encode_hosts(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, self.hosts4.list.len() as u64);
        out.extend_from_slice(self.hosts4.list.as_flattened());
        put(&mut out, self.hosts6.list.len() as u64);
        out.extend_from_slice(self.hosts6.list.as_flattened());
        out
    }
}

/// Hash of an address under a seed that senders do not know; the standard one takes a third of the
/// time that encoding a flow takes.
#[derive(Clone, Copy)]
struct AddressHash {
    seed: u64,
    state: u64,
}

impl BuildHasher for AddressHash {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        Self { state: self.seed, ..*self }
    }
}

impl Hasher for AddressHash {
    fn write(&mut self, bytes: &[u8]) {
        for word in bytes.chunks(8) {
            let mut padded = [0; 8];
            padded[..word.len()].copy_from_slice(word);
            self.state = mix((u64::from_le_bytes(padded) ^ self.state).wrapping_add(self.seed));
        }
    }

    fn finish(&self) -> u64 {
        self.state
    }
}

fn encode_flows(parts: &Parts<'_>, tables: &mut Tables) -> Vec<u8> {
    let Parts { flows, kept, shape_numbers, .. } = parts;
    let mut out = Vec::with_capacity(kept.len() * 28);
    put(&mut out, kept.len() as u64);
    let kept = || kept.iter().map(|number| *number as usize);
    kept().for_each(|number| {
        put(&mut out, u64::from(shape_numbers[flows.shape_of[number] as usize]));
    });
    let mut ports = Vec::with_capacity(kept().len() * 4);
    for number in kept() {
        let (shape, values) = flows.flow(number);
        for (kind, value) in shape.values(values) {
            match kind {
                ValueKind::Addr4 => {
                    let number = value.try_into().map_or(0, |addr| tables.hosts4.number(addr));
                    put(&mut out, u64::from(number));
                }
                ValueKind::Addr6 => {
                    let number = value.try_into().map_or(0, |addr| tables.hosts6.number(addr));
                    put(&mut out, u64::from(number));
                }
                ValueKind::Port => {
                    let port = value.try_into().map_or(0, u16::from_be_bytes);
                    ports.extend(port.to_le_bytes());
                    tables.ports[usize::from(port / 8)] |= 1 << (port % 8);
                }
            }
        }
    }
    out.append(&mut ports);
    let mut before = 0u64;
    for number in kept() {
        let first = flows.stats[number].times_ns.0;
        put(&mut out, zigzag(first.wrapping_sub(before) as i64));
        before = first;
    }
    let columns: [fn(&FlowStats) -> u64; 7] = [
        // A flow without packets has its bounds reversed.
        |stats| stats.times_ns.1.saturating_sub(stats.times_ns.0),
        |stats| stats.packets,
        |stats| stats.bytes,
        |stats| u64::from(stats.wire_len.0),
        |stats| u64::from(stats.wire_len.1.saturating_sub(stats.wire_len.0)),
        |stats| u64::from(stats.captured_len.0),
        |stats| u64::from(stats.captured_len.1.saturating_sub(stats.captured_len.0)),
    ];
    for column in columns {
        kept().for_each(|number| put(&mut out, column(&flows.stats[number])));
    }
    for column in
        [|s: &FlowStats| s.tcp_or, |s: &FlowStats| s.tcp_and, |s: &FlowStats| s.directions]
    {
        out.extend(kept().map(|number| column(&flows.stats[number])));
    }
    out
}

fn encode_postings(kept: &[u32], postings: &Lists) -> Vec<u8> {
    let mut out = Vec::with_capacity(postings.numbers.len() * 2 + kept.len());
    kept.iter().for_each(|number| put_ascending(&mut out, postings.get(*number as usize)));
    out
}

fn encode_chunk_filters(filters: &[Option<ChunkFilter>]) -> Vec<u8> {
    let present = || (0..).zip(filters).filter_map(|(number, it)| Some((number, it.as_ref()?)));
    let mut out = Vec::new();
    let numbers: Vec<u32> = present().map(|(number, _)| number).collect();
    put_ascending(&mut out, &numbers);
    for (_, filter) in present() {
        put_ascending(&mut out, &filter.shapes);
        out.push(filter.flags);
        put(&mut out, filter.bits.len() as u64);
    }
    present().for_each(|(_, filter)| out.extend_from_slice(&filter.bits));
    out
}

fn encode_filter(filter: &HostFilter) -> Vec<u8> {
    let mut out = Vec::new();
    match &filter.hosts {
        None => out.push(0),
        Some(hosts) => {
            out.push(1);
            out.extend_from_slice(&hosts.descriptor);
            out.extend((hosts.fingerprints.len() as u32).to_le_bytes());
            out.extend_from_slice(&hosts.fingerprints);
        }
    }
    out.extend_from_slice(&filter.ports);
    out
}
