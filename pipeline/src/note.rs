//! What a chunk adds to the index: its place, its gaps, and the flows of its packets.

use wirevault_format::chunk::ChunkHeader;
use wirevault_format::footer::ChunkEntry;
use wirevault_format::{Interface, LinkType, VxlanPorts};
use wirevault_index::flow_table::{FlowTable, PacketNote};
use wirevault_index::{ChunkDelta, prefetch};
use wirevault_packet::dissect_with;

use crate::job::Job;

/// Packets noted at once: the flow table looks them all up before it touches any.
const NOTES: usize = wirevault_index::flow_table::BATCH;
/// Where a block is read: the fields behind its type and length, and the last header, whose flags
/// of TCP stand here in IPv4. They lie in two lines of the cache, the first of which need not be
/// that of the data.
const READ_AT: [usize; 2] = [8, EPB_DATA_AT + 47];
/// Offset of data in an Enhanced Packet Block.
const EPB_DATA_AT: usize = 28;

/// Begins a delta: all that is known of the chunk beside its flows.
pub(crate) fn fill_delta(delta: &mut ChunkDelta, header: &ChunkHeader, offset: u64, job: &Job) {
    delta.clear();
    delta.number = header.number;
    delta.chunk = ChunkEntry {
        offset,
        chunk_bytes: header.chunk_bytes() as u32,
        packets: header.packets,
        times_ns: header.times_ns,
        first_sequence: header.first_sequence,
    };
    delta.gaps.extend_from_slice(&job.gaps);
    delta.received = job.received;
    delta.shed = job.shed;
    delta.dropped = job.dropped;
}

/// The packets of a chunk.
pub(crate) struct Packets<'a> {
    pub(crate) link_type: LinkType,
    /// What they came from, by the numbers that they carry.
    pub(crate) from: &'a [Interface],
    pub(crate) chunk: &'a [u8],
    /// Where their blocks stand.
    pub(crate) at: &'a [u32],
    /// They get no flows: the chunk's filter stands for them.
    pub(crate) coarse: bool,
}

/// Enters every packet of a chunk into the flow table, unless it is indexed coarsely, and gives the
/// number of packets that no parser understood.
pub(crate) fn note_flows(
    table: &mut FlowTable,
    delta: &mut ChunkDelta,
    packets: &Packets<'_>,
) -> u64 {
    let Packets { link_type, from, chunk, at: epb_at, coarse } = *packets;
    table.begin_chunk(delta);
    let mut unparsed = 0;
    let mut notes: [PacketNote; NOTES] = std::array::from_fn(|_| PacketNote::default());
    // Where the lane filled the chunk on another core, and where it has grown out of the nearest
    // cache, the headers of the next batch are fetched while this one is taken apart.
    let mut ahead = epb_at.iter().skip(NOTES);
    for batch in epb_at.chunks(NOTES) {
        for at in ahead.by_ref().take(NOTES) {
            READ_AT.iter().for_each(|read| prefetch(chunk, *at as usize + read));
        }
        for (note, at) in notes.iter_mut().zip(batch) {
            let block = &chunk[*at as usize..];
            let head: &[u8; EPB_DATA_AT] =
                block.first_chunk().expect("the lane wrote whole blocks and their places");
            // Spelled out: `map` over the places is a call for each of them.
            let word = |at: usize| {
                u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
            };
            let captured_len = word(20);
            let data = &block[EPB_DATA_AT..EPB_DATA_AT + captured_len as usize];
            // The lane numbers its packets' interfaces by the same list.
            let from = from.get(word(8) as usize);
            let vxlan = from.map_or(&VxlanPorts::USUAL, |interface| &interface.vxlan_ports);
            let dissected = dissect_with(vxlan, link_type, data);
            table.prefetch(dissected.hash);
            unparsed += u64::from(!dissected.parsed);
            *note = PacketNote {
                hash: dissected.hash,
                key: dissected.key,
                direction: dissected.direction,
                ts_ns: u64::from(word(12)) << 32 | u64::from(word(16)),
                wire_len: word(24),
                captured_len,
                tcp_flags: dissected.tcp_flags,
            };
        }
        match coarse {
            false => table.upsert(&notes[..batch.len()], delta),
            true => notes[..batch.len()].iter().for_each(|note| delta.note_loose(&note.key)),
        }
    }
    unparsed
}
