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
//! | filter | 1 byte (0: no host filter), binary fuse descriptor (seed u64, segment length, its mask, segment count length u32 each), fingerprint count u32, fingerprints; 8192 bytes of port bitmap |
//!
//! Columns of flows: shape number; numbers of all its addresses, each in the list of its family;
//! ports, u16; first time as zigzag difference to the flow before; duration; packets; bytes;
//! smallest wire length and what the largest adds; the same for captured length; three bytes: TCP
//! flags of any packet, of every packet, directions.

use std::collections::HashMap;

use wirevault_format::Gap;
use wirevault_format::footer::{ChunkEntry, Codec};
use wirevault_format::gap::GAP_BYTES;
use wirevault_format::section::SectionId;
use wirevault_packet::{FlowKey, MAX_KEY_BYTES, ValueKind, value_layout};

use crate::IndexError;
use crate::delta::FlowStats;
use crate::flow_table::FLOWS_MAX;
use crate::segment_index::FlowRecord;
use crate::select::{FuseFilter, HostFilter, PORT_BITMAP_BYTES};

/// zstd level: 1 shrinks by a third for a third of the closing time; higher levels hardly shrink
/// more.
const ZSTD_LEVEL: i32 = 1;
/// Flows read back at most: several times what a writer puts into a segment, and few enough that a
/// damaged count cannot take all memory.
const FLOWS_READ_MAX: usize = 4 * FLOWS_MAX as usize;

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

/// Encodes all sections. Without flows there are only chunks and gaps.
pub(crate) fn encode(
    chunks: &[ChunkEntry],
    gaps: &[(u32, Gap)],
    unindexed: &[bool],
    flows: &[FlowRecord],
) -> Result<Vec<EncodedSection>, IndexError> {
    let table: Vec<u8> = chunks.iter().flat_map(ChunkEntry::encode).collect();
    let mut sections = vec![
        compress(SectionId::Chunks, table)?,
        compress(SectionId::Gaps, encode_gaps(gaps, unindexed))?,
    ];
    if !flows.is_empty() {
        let mut tables = Tables { ports: vec![0; PORT_BITMAP_BYTES], ..Tables::default() };
        let columns = encode_flows(flows, &mut tables);
        let filter = HostFilter::build(&tables.list4, &tables.list6, tables.ports.clone());
        sections.push(compress(SectionId::Shapes, tables.encode_shapes())?);
        sections.push(compress(SectionId::Hosts, tables.encode_hosts())?);
        sections.push(compress(SectionId::Flows, columns)?);
        sections.push(compress(SectionId::Postings, encode_postings(flows))?);
        sections.push(compress(SectionId::Filter, encode_filter(&filter))?);
    }
    Ok(sections)
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

/// Shapes and addresses met, each with its number.
#[derive(Default)]
struct Tables {
    shapes: HashMap<Vec<u8>, u32>,
    shape_list: Vec<Vec<u8>>,
    hosts4: HashMap<[u8; 4], u32>,
    list4: Vec<[u8; 4]>,
    hosts6: HashMap<[u8; 16], u32>,
    list6: Vec<[u8; 16]>,
    /// One bit a port.
    ports: Vec<u8>,
}

impl Tables {
    fn shape(&mut self, shape: &[u8]) -> u32 {
        if let Some(number) = self.shapes.get(shape) {
            return *number;
        }
        let number = self.shape_list.len() as u32;
        self.shapes.insert(shape.to_vec(), number);
        self.shape_list.push(shape.to_vec());
        number
    }

    fn host4(&mut self, addr: [u8; 4]) -> u32 {
        *self.hosts4.entry(addr).or_insert_with(|| {
            self.list4.push(addr);
            self.list4.len() as u32 - 1
        })
    }

    fn host6(&mut self, addr: [u8; 16]) -> u32 {
        *self.hosts6.entry(addr).or_insert_with(|| {
            self.list6.push(addr);
            self.list6.len() as u32 - 1
        })
    }

    fn encode_shapes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, self.shape_list.len() as u64);
        for shape in &self.shape_list {
            put(&mut out, shape.len() as u64);
            out.extend_from_slice(shape);
        }
        out
    }

    fn encode_hosts(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, self.list4.len() as u64);
        self.list4.iter().for_each(|addr| out.extend_from_slice(addr));
        put(&mut out, self.list6.len() as u64);
        self.list6.iter().for_each(|addr| out.extend_from_slice(addr));
        out
    }
}

fn encode_flows(flows: &[FlowRecord], tables: &mut Tables) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, flows.len() as u64);
    let numbers: Vec<u32> = flows.iter().map(|flow| tables.shape(flow.key.shape())).collect();
    numbers.iter().for_each(|number| put(&mut out, u64::from(*number)));
    // A key in memory was made by `dissect` or passed `from_parts`, so its shape has a layout.
    let layout = |shape: &Vec<u8>| value_layout(shape).unwrap_or_default();
    let layouts: Vec<Vec<ValueKind>> = tables.shape_list.iter().map(layout).collect();
    let mut ports = Vec::with_capacity(flows.len() * 4);
    for (flow, number) in flows.iter().zip(numbers) {
        let mut values = flow.key.values();
        for kind in &layouts[number as usize] {
            let (value, rest) = values.split_at(kind.bytes().min(values.len()));
            values = rest;
            match kind {
                ValueKind::Addr4 => {
                    let number = value.try_into().map_or(0, |addr| tables.host4(addr));
                    put(&mut out, u64::from(number));
                }
                ValueKind::Addr6 => {
                    let number = value.try_into().map_or(0, |addr| tables.host6(addr));
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
    for flow in flows {
        let first = flow.stats.times_ns.0;
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
        flows.iter().for_each(|flow| put(&mut out, column(&flow.stats)));
    }
    for column in
        [|s: &FlowStats| s.tcp_or, |s: &FlowStats| s.tcp_and, |s: &FlowStats| s.directions]
    {
        out.extend(flows.iter().map(|flow| column(&flow.stats)));
    }
    out
}

fn encode_postings(flows: &[FlowRecord]) -> Vec<u8> {
    let mut out = Vec::new();
    flows.iter().for_each(|flow| put_ascending(&mut out, &flow.chunks));
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

/// Reads gaps and the scan list back.
pub(crate) type GapsAndScans = (Vec<(u32, Gap)>, Vec<bool>);

/// Reads the gaps section.
///
/// # Errors
/// `Section`.
pub fn decode_gaps(bytes: &[u8], chunks: usize) -> Result<GapsAndScans, IndexError> {
    let mut read = Cursor::new("gaps", bytes);
    let count = read.count(GAP_BYTES)?;
    let mut gaps = Vec::with_capacity(count);
    for _ in 0..count {
        let chunk = read.u32()?;
        let gap = Gap::decode(read.take(GAP_BYTES)?).map_err(|error| read.wrong(error))?;
        gaps.push((chunk, gap));
    }
    let mut unindexed = vec![false; chunks];
    for number in read.ascending(chunks)? {
        unindexed[number as usize] = true;
    }
    read.end()?;
    Ok((gaps, unindexed))
}

/// Reads the shapes section.
///
/// # Errors
/// `Section`.
pub fn decode_shapes(bytes: &[u8]) -> Result<Vec<Vec<u8>>, IndexError> {
    let mut read = Cursor::new("shapes", bytes);
    let count = read.count(1)?;
    let mut shapes = Vec::with_capacity(count);
    for _ in 0..count {
        let len = read.count(1)?;
        shapes.push(read.take(len)?.to_vec());
    }
    read.end()?;
    Ok(shapes)
}

/// Reads the filter section.
///
/// # Errors
/// `Section`, also if the filter would look outside its fingerprints.
pub fn decode_filter(bytes: &[u8]) -> Result<HostFilter, IndexError> {
    let mut read = Cursor::new("filter", bytes);
    let hosts = match read.take(1)? {
        [0] => None,
        _ => {
            let descriptor = read.array()?;
            let count = u32::from_le_bytes(read.array()?) as usize;
            let fingerprints = read.take(count)?.into();
            let hosts = FuseFilter { descriptor, fingerprints };
            if count > 0 && !hosts.is_sound() {
                return Err(read.wrong("its segments reach outside its fingerprints"));
            }
            // A filter over no keys has no fingerprints and must not be asked.
            (count > 0).then_some(hosts)
        }
    };
    let ports = read.take(PORT_BITMAP_BYTES)?.to_vec();
    read.end()?;
    Ok(HostFilter { hosts, ports })
}

/// Reads flows and postings.
///
/// # Errors
/// `Section`, `Flow`.
pub fn decode_flows(
    shapes: &[Vec<u8>],
    hosts: &[u8],
    flows: &[u8],
    postings: &[u8],
    chunks: usize,
) -> Result<Vec<FlowRecord>, IndexError> {
    let hosts = Hosts::decode(hosts)?;
    let layouts: Vec<Vec<ValueKind>> =
        shapes.iter().map(|shape| value_layout(shape)).collect::<Result<_, _>>()?;
    let mut read = Cursor::new("flows", flows);
    // Twelve columns have at least one byte a flow.
    let count = read.count(12)?;
    if count > FLOWS_READ_MAX {
        return Err(read.wrong(format!("{count} flows, at most {FLOWS_READ_MAX}")));
    }
    let mut shape_numbers = Vec::with_capacity(count);
    for _ in 0..count {
        let number = read.u32()? as usize;
        if number >= shapes.len() {
            return Err(read.wrong(format!("shape {number} of {}", shapes.len())));
        }
        shape_numbers.push(number);
    }
    let mut hosts_of = Vec::with_capacity(count * 2);
    for number in &shape_numbers {
        for kind in layouts[*number].iter().filter(|kind| **kind != ValueKind::Port) {
            hosts_of.push(hosts.check(*kind, read.u32()?)?);
        }
    }
    let is_port = |kind: &&ValueKind| **kind == ValueKind::Port;
    let counts: Vec<usize> =
        layouts.iter().map(|layout| layout.iter().filter(is_port).count()).collect();
    let ports = shape_numbers.iter().map(|number| counts[*number]).sum::<usize>();
    let mut ports = read.take(ports * 2)?.as_chunks::<2>().0.iter();
    let stats = decode_stats(&mut read, count)?;
    read.end()?;
    let mut read = Cursor::new("postings", postings);
    let mut records = Vec::with_capacity(count);
    let mut hosts_of = hosts_of.into_iter();
    let mut values = Vec::with_capacity(MAX_KEY_BYTES);
    for (number, stats) in shape_numbers.into_iter().zip(stats) {
        values.clear();
        for kind in &layouts[number] {
            match kind {
                ValueKind::Port => {
                    values.extend(ports.next().into_iter().flat_map(|[low, high]| [*high, *low]));
                }
                _ => values.extend_from_slice(hosts.addr(*kind, hosts_of.next())),
            }
        }
        let key = FlowKey::from_parts(&shapes[number], &values)?;
        records.push(FlowRecord { key, stats, chunks: read.ascending(chunks)? });
    }
    read.end()?;
    Ok(records)
}

fn decode_stats(read: &mut Cursor<'_>, count: usize) -> Result<Vec<FlowStats>, IndexError> {
    let column = |read: &mut Cursor<'_>| -> Result<Vec<u64>, IndexError> {
        (0..count).map(|_| read.number()).collect()
    };
    let first = column(read)?;
    let duration = column(read)?;
    let packets = column(read)?;
    let bytes = column(read)?;
    let wire = [column(read)?, column(read)?];
    let captured = [column(read)?, column(read)?];
    let (or, and) = (read.take(count)?, read.take(count)?);
    let directions = read.take(count)?;
    let mut before = 0u64;
    let range = |min: u64, more: u64| {
        let (min, max) = (u32::try_from(min), u32::try_from(min.saturating_add(more)));
        min.ok().zip(max.ok())
    };
    (0..count)
        .map(|n| {
            let first_ns = before.wrapping_add(unzigzag(first[n]) as u64);
            before = first_ns;
            let lengths = range(wire[0][n], wire[1][n]).zip(range(captured[0][n], captured[1][n]));
            let (wire_len, captured_len) =
                lengths.ok_or_else(|| read.wrong("a length is above 4 GiB"))?;
            Ok(FlowStats {
                times_ns: (first_ns, first_ns.saturating_add(duration[n])),
                packets: packets[n],
                bytes: bytes[n],
                wire_len,
                captured_len,
                tcp_or: or[n],
                tcp_and: and[n],
                directions: directions[n],
            })
        })
        .collect()
}

/// The address table, read back.
struct Hosts<'a> {
    list4: &'a [[u8; 4]],
    list6: &'a [[u8; 16]],
}

impl<'a> Hosts<'a> {
    fn decode(bytes: &'a [u8]) -> Result<Self, IndexError> {
        let mut read = Cursor::new("hosts", bytes);
        let count4 = read.count(4)?;
        let list4 = read.take(count4 * 4)?.as_chunks().0;
        let count6 = read.count(16)?;
        let list6 = read.take(count6 * 16)?.as_chunks().0;
        read.end()?;
        Ok(Self { list4, list6 })
    }

    /// Gives the number back if there is such an address.
    fn check(&self, kind: ValueKind, number: u32) -> Result<u32, IndexError> {
        let count = match kind {
            ValueKind::Addr4 => self.list4.len(),
            _ => self.list6.len(),
        };
        if (number as usize) < count { Ok(number) } else { Err(missing_host(number)) }
    }

    /// The address with a number that was checked.
    fn addr(&self, kind: ValueKind, number: Option<u32>) -> &'a [u8] {
        let at = number.map_or(usize::MAX, |number| number as usize);
        let addr = match kind {
            ValueKind::Addr4 => self.list4.get(at).map(|addr| addr.as_slice()),
            _ => self.list6.get(at).map(|addr| addr.as_slice()),
        };
        addr.unwrap_or_default()
    }
}

fn missing_host(number: u32) -> IndexError {
    IndexError::Section { section: "hosts", what: format!("address {number} is not in it") }
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_ascending(out: &mut Vec<u8>, numbers: &[u32]) {
    put(out, numbers.len() as u64);
    let mut before = 0;
    for number in numbers {
        put(out, u64::from(number - before));
        before = *number;
    }
}

fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63) as u64
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// Reads a section front to back; every length is checked against what is left.
struct Cursor<'a> {
    section: &'static str,
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn new(section: &'static str, rest: &'a [u8]) -> Self {
        Self { section, rest }
    }

    fn wrong(&self, what: impl ToString) -> IndexError {
        IndexError::Section { section: self.section, what: what.to_string() }
    }

    fn take(&mut self, bytes: usize) -> Result<&'a [u8], IndexError> {
        let Some((taken, rest)) = self.rest.split_at_checked(bytes) else {
            return Err(self.wrong(format!("{bytes} bytes are wanted, {} left", self.rest.len())));
        };
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], IndexError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn number(&mut self) -> Result<u64, IndexError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.wrong("a number has more than 64 bits"))
    }

    fn u32(&mut self) -> Result<u32, IndexError> {
        let number = self.number()?;
        u32::try_from(number).map_err(|_| self.wrong(format!("{number} is above 32 bits")))
    }

    /// A count of things that take at least `bytes_each`: no more than the bytes left can hold.
    fn count(&mut self, bytes_each: usize) -> Result<usize, IndexError> {
        let count = self.number()?;
        let most = self.rest.len() / bytes_each;
        match usize::try_from(count).ok().filter(|count| *count <= most) {
            Some(count) => Ok(count),
            None => Err(self.wrong(format!("{count} things in {} bytes", self.rest.len()))),
        }
    }

    /// Ascending numbers below `limit`.
    fn ascending(&mut self, limit: usize) -> Result<Vec<u32>, IndexError> {
        let count = self.count(1)?;
        let mut numbers = Vec::with_capacity(count);
        let mut value = 0u64;
        for n in 0..count {
            let step = self.number()?;
            value = value.saturating_add(step);
            if (n > 0 && step == 0) || value >= limit as u64 {
                return Err(
                    self.wrong(format!("number {value} is out of order or not below {limit}"))
                );
            }
            numbers.push(value as u32);
        }
        Ok(numbers)
    }

    fn end(&self) -> Result<(), IndexError> {
        match self.rest.len() {
            0 => Ok(()),
            bytes => Err(self.wrong(format!("{bytes} bytes too many"))),
        }
    }
}
