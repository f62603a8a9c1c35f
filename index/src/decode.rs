//! Reading index sections back. Every number is checked before it is used.

use wirevault_format::Gap;
use wirevault_format::gap::GAP_BYTES;
use wirevault_packet::{MAX_KEY_BYTES, ValueKind, value_layout};

use crate::IndexError;
use crate::chunk_filter::ChunkFilter;
use crate::delta::FlowStats;
use crate::flow_table::FLOWS_MAX;
use crate::flows::{FlowList, Flows, KeyList, Lists, Shape, Shapes};
use crate::host_filter::{FuseFilter, HostFilter, PORT_BITMAP_BYTES};
use crate::varint::{Cursor, unzigzag};

/// Flows read back at most: more than a writer puts into a segment, and few enough that a damaged
/// count cannot take all memory.
const FLOWS_READ_MAX: usize = 2 * FLOWS_MAX as usize;

/// Reads gaps and the scan list back.
pub type GapsAndScans = (Vec<(u32, Gap)>, Vec<bool>);

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

/// IPv4 and IPv6 addresses.
pub type HostLists = (Vec<[u8; 4]>, Vec<[u8; 16]>);

/// Reads the hosts section.
///
/// # Errors
/// `Section`.
pub fn decode_hosts(bytes: &[u8]) -> Result<HostLists, IndexError> {
    let hosts = Hosts::decode(bytes)?;
    Ok((hosts.list4.to_vec(), hosts.list6.to_vec()))
}

/// Reads the filters of chunks, one place a chunk.
///
/// # Errors
/// `Section`.
pub fn decode_chunk_filters(
    bytes: &[u8],
    chunks: usize,
    shapes: usize,
) -> Result<Vec<Option<ChunkFilter>>, IndexError> {
    let mut read = Cursor::new("chunk filters", bytes);
    let numbers = read.ascending(chunks)?;
    let mut heads = Vec::with_capacity(numbers.len());
    for _ in &numbers {
        let shapes = read.ascending(shapes)?;
        let [flags] = read.array()?;
        heads.push((shapes, flags, read.u32()? as usize));
    }
    let mut filters = Vec::new();
    filters.resize_with(chunks, || None);
    for (number, (shapes, flags, bytes)) in numbers.into_iter().zip(heads) {
        let bits = read.take(bytes)?.to_vec();
        filters[number as usize] = Some(ChunkFilter { shapes, flags, bits });
    }
    read.end()?;
    Ok(filters)
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
) -> Result<Flows<'static>, IndexError> {
    let shapes: Vec<Shape> = shapes.iter().map(|shape| Shape::new(shape.clone())).collect();
    let (list, postings) = read_flows(&shapes, hosts, flows, postings, chunks)?;
    Ok(Flows::owned(list, postings))
}

pub(crate) fn read_flows(
    shapes: &[Shape],
    hosts: &[u8],
    flows: &[u8],
    postings: &[u8],
    chunks: usize,
) -> Result<(FlowList, Lists), IndexError> {
    let hosts = Hosts::decode(hosts)?;
    // A shape that does not decode has no layout that its flows' values could follow.
    for shape in shapes {
        value_layout(&shape.bytes)?;
    }
    let mut read = Cursor::new("flows", flows);
    // Twelve columns have at least one byte a flow.
    let count = read.count(12)?;
    if count > FLOWS_READ_MAX {
        return Err(read.wrong(format!("{count} flows, at most {FLOWS_READ_MAX}")));
    }
    let mut shape_of = Vec::with_capacity(count);
    for _ in 0..count {
        let number = read.u32()?;
        if number as usize >= shapes.len() {
            return Err(read.wrong(format!("shape {number} of {}", shapes.len())));
        }
        shape_of.push(number);
    }
    let mut hosts_of = Vec::with_capacity(count * 2);
    for number in &shape_of {
        let layout = &shapes[*number as usize].layout;
        for kind in layout.iter().filter(|kind| **kind != ValueKind::Port) {
            hosts_of.push(hosts.check(*kind, read.u32()?)?);
        }
    }
    let is_port = |kind: &&ValueKind| **kind == ValueKind::Port;
    let counts: Vec<usize> =
        shapes.iter().map(|shape| shape.layout.iter().filter(is_port).count()).collect();
    let ports = shape_of.iter().map(|number| counts[*number as usize]).sum::<usize>();
    let mut ports = read.take(ports * 2)?.as_chunks::<2>().0.iter();
    let stats = decode_stats(&mut read, count)?;
    read.end()?;
    let mut keys = KeyList::with_room(count, count * 24);
    let mut hosts_of = hosts_of.into_iter();
    let mut key = Vec::with_capacity(MAX_KEY_BYTES);
    for number in &shape_of {
        let shape = &shapes[*number as usize];
        key.clear();
        key.extend([shape.bytes.len() as u8, 0]);
        key.extend_from_slice(&shape.bytes);
        for kind in &shape.layout {
            match kind {
                ValueKind::Port => {
                    key.extend(ports.next().into_iter().flat_map(|[low, high]| [*high, *low]));
                }
                _ => key.extend_from_slice(hosts.addr(*kind, hosts_of.next())),
            }
        }
        if key.len() > MAX_KEY_BYTES {
            return Err(read.wrong(format!("a key has {} bytes", key.len())));
        }
        key[1] = (key.len() - 2 - shape.bytes.len()) as u8;
        keys.push_kept(&key);
    }
    let mut read = Cursor::new("postings", postings);
    let mut lists = Lists::default();
    for _ in 0..count {
        read.ascending_into(chunks, &mut lists.numbers)?;
        lists.end_list();
    }
    read.end()?;
    let shapes = Shapes::of(shapes.to_vec());
    Ok((FlowList { shapes, keys, shape_of, stats }, lists))
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
