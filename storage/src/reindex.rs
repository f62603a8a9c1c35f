//! Making the index of a segment from its chunks: after a crash, or when deltas were lost.

use wirevault_format::chunk::{self, ChunkHeader, HEADER_BYTES, TAG_BYTES};
use wirevault_format::footer::ChunkEntry;
use wirevault_format::gap::CAUSES;
use wirevault_format::limits::{CHUNK_BYTES, LBA_BYTES};
use wirevault_format::pcapng::read::{Blocks, Epb};
use wirevault_format::pcapng::{BLOCK_EPB, PcapngError};
use wirevault_format::{FormatError, Gap, Interface, LifeId, LinkType, VxlanPorts};
use wirevault_index::flow_table::{BATCH, FlowOptions};
use wirevault_index::reader::gaps_in;
use wirevault_index::{ChunkDelta, FlowTable, PacketNote, SegmentIndex, recover};
use wirevault_media::MediaFile;
use wirevault_packet::dissect_with;
use wirevault_seal::chain::Chain;
use wirevault_seal::{DataOpener, SegmentKeys};

use crate::StorageError;
use crate::store::OpenSegment;
use crate::volume::{device, key_error};

/// Where the CRC of a plain chunk's body stands in its tail.
pub(crate) const BODY_CRC_AT: usize = 40;

/// Makes the index of a segment anew from the first `chunks` chunks in its file, which are durable,
/// and the hash over them. Whatever the file holds behind them counts as not written.
///
/// # Errors
/// `Misuse` if the file holds fewer; `Device` if reading fails, `Key`, `Index`.
pub fn rebuild_index(
    open: &OpenSegment,
    chunks: u32,
) -> Result<(SegmentIndex, [u8; 32]), StorageError> {
    let opener = opener(open.keys.as_ref(), &open.name)?;
    let scanned = recover::scan(&*open.file, open.entry.life, open.data_offset, opener.as_ref());
    let reading = || format!("read {}", open.file.name());
    let found = scanned.map_err(|source| device(&open.name, &reading(), source))?;
    let kept = recover::recover(&found, open.data_offset, 0).chunks;
    let entries = kept.iter().map(|(at, header)| entry(*at, header));
    let entries: Vec<ChunkEntry> = entries.take(chunks as usize).collect();
    if entries.len() < chunks as usize {
        let (name, have) = (open.file.name(), entries.len());
        let what =
            format!("{name} reads back {have} of {chunks} chunks; the next start recovers it");
        return Err(StorageError::Misuse { what });
    }
    let source = Chunks::new(open, opener);
    let rebuilt = source.index(&entries, open.flows_max)?;
    Ok((rebuilt.index, rebuilt.chain))
}

pub(crate) fn opener(
    keys: Option<&SegmentKeys>,
    volume: &str,
) -> Result<Option<DataOpener>, StorageError> {
    let opener = keys.map(SegmentKeys::data_opener).transpose();
    opener.map_err(|source| key_error(volume, source))
}

fn entry(offset: u64, header: &ChunkHeader) -> ChunkEntry {
    ChunkEntry {
        offset,
        chunk_bytes: header.chunk_bytes() as u32,
        packets: header.packets,
        times_ns: header.times_ns,
        first_sequence: header.first_sequence,
    }
}

/// What was learnt from reading all chunks.
pub(crate) struct Rebuilt {
    pub(crate) index: SegmentIndex,
    pub(crate) chain: [u8; 32],
    pub(crate) captured_bytes: u64,
    pub(crate) received: u64,
    pub(crate) shed: u64,
    /// By cause, as far as the gaps tell: a header has only the sum.
    pub(crate) dropped: [u64; CAUSES],
}

/// The chunks of one segment file.
pub(crate) struct Chunks<'a> {
    file: &'a dyn MediaFile,
    life: LifeId,
    link_type: LinkType,
    interfaces: &'a [Interface],
    opener: Option<DataOpener>,
    volume: &'a str,
}

impl<'a> Chunks<'a> {
    pub(crate) fn new(open: &'a OpenSegment, opener: Option<DataOpener>) -> Self {
        Self {
            file: &*open.file,
            life: open.entry.life,
            link_type: open.entry.link_type,
            interfaces: &open.interfaces,
            opener,
            volume: &open.name,
        }
    }

    /// Reads the chunks that `entries` name and indexes their packets. A chunk that is not whole
    /// keeps its number and is left to be found by those who scan it.
    pub(crate) fn index(
        &self,
        entries: &[ChunkEntry],
        flows_max: u32,
    ) -> Result<Rebuilt, StorageError> {
        let mut table = FlowTable::new(FlowOptions { flows_max });
        let mut delta = ChunkDelta::new();
        let mut chain = Chain::new();
        let mut out = Rebuilt {
            index: SegmentIndex::new(),
            chain: [0; 32],
            captured_bytes: 0,
            received: 0,
            shed: 0,
            dropped: [0; CAUSES],
        };
        let mut buf = vec![0; CHUNK_BYTES];
        for (number, entry) in entries.iter().enumerate() {
            delta.clear();
            delta.number = number as u32;
            delta.chunk = *entry;
            table.begin_chunk(&delta);
            match self.read(&mut buf, number as u32, entry)? {
                Some(header) => {
                    let payload = HEADER_BYTES..HEADER_BYTES + header.payload_bytes as usize;
                    let tag_at = payload.end;
                    chain.add(match header.sealed {
                        true => &buf[tag_at..tag_at + TAG_BYTES],
                        false => &buf[tag_at + BODY_CRC_AT..tag_at + BODY_CRC_AT + 4],
                    });
                    out.received = header.received.max(out.received);
                    out.shed = header.shed.max(out.shed);
                    let payload = &buf[payload];
                    match self.note_packets(&mut table, &mut delta, payload) {
                        Ok(captured_bytes) => out.captured_bytes += captured_bytes,
                        Err(_) => delta.unindexed = true,
                    }
                    if header.gaps {
                        delta.gaps.extend(gaps_in(payload).unwrap_or_default());
                    }
                    out.note_dropped(&delta.gaps);
                }
                None => delta.unindexed = entry.packets > 0,
            }
            (delta.received, delta.shed, delta.dropped) = (out.received, out.shed, out.dropped);
            out.index.apply(&delta)?;
        }
        out.chain = chain.finish();
        Ok(out)
    }

    /// Reads one chunk with its payload decrypted; `None` if it is not whole.
    fn read(
        &self,
        buf: &mut [u8],
        number: u32,
        entry: &ChunkEntry,
    ) -> Result<Option<ChunkHeader>, StorageError> {
        let chunk_bytes = entry.chunk_bytes as usize;
        let Some(chunk) = buf.get_mut(..chunk_bytes).filter(|_| chunk_bytes >= LBA_BYTES) else {
            return Ok(None);
        };
        let reading = || format!("read chunk {number} of {}", self.file.name());
        let failed = |source| device(self.volume, &reading(), source);
        let file_bytes = self.file.len().map_err(failed)?;
        if entry.offset + entry.chunk_bytes as u64 > file_bytes {
            return Ok(None);
        }
        self.file.read_exact_at(chunk, entry.offset).map_err(failed)?;
        let Ok(header) = ChunkHeader::decode(chunk) else { return Ok(None) };
        let same = header.life == self.life
            && header.number == number
            && header.chunk_bytes() == chunk_bytes
            && header.sealed == self.opener.is_some();
        if !same {
            return Ok(None);
        }
        let whole = match &self.opener {
            None => chunk::plain_payload(chunk, &header).is_ok(),
            Some(opener) => chunk::sealed_parts(chunk, &header).is_ok_and(|parts| {
                opener.open(header.number, parts.aad, parts.ciphertext, &parts.tag).is_ok()
            }),
        };
        Ok(whole.then_some(header))
    }

    /// Enters every packet of a payload into the flow table and gives their captured bytes.
    fn note_packets(
        &self,
        table: &mut FlowTable,
        delta: &mut ChunkDelta,
        payload: &[u8],
    ) -> Result<u64, FormatError> {
        let mut notes: [PacketNote; BATCH] = std::array::from_fn(|_| PacketNote::default());
        let (mut filled, mut captured_bytes) = (0, 0);
        for block in Blocks::new(payload) {
            let block = block?;
            if block.kind != BLOCK_EPB {
                continue;
            }
            let packet =
                Epb::parse(&block).map_err(|error: PcapngError| FormatError::from(error))?;
            let from = self.interfaces.get(packet.interface_id as usize);
            let vxlan = from.map_or(VxlanPorts::USUAL, |interface| interface.vxlan_ports);
            let dissected = dissect_with(&vxlan, self.link_type, packet.data);
            notes[filled] = PacketNote {
                key: dissected.key,
                hash: dissected.hash,
                direction: dissected.direction,
                ts_ns: packet.ts_ns,
                wire_len: packet.orig_len,
                captured_len: packet.data.len() as u32,
                tcp_flags: dissected.tcp_flags,
            };
            captured_bytes += packet.data.len() as u64;
            filled += 1;
            if filled == BATCH {
                table.upsert(&notes, delta);
                filled = 0;
            }
        }
        table.upsert(&notes[..filled], delta);
        Ok(captured_bytes)
    }
}

impl Rebuilt {
    fn note_dropped(&mut self, gaps: &[Gap]) {
        for gap in gaps {
            let counter = &mut self.dropped[gap.cause.index()];
            *counter = gap.cumulative.max(*counter);
        }
    }

    /// Tells of an absence that no chunk tells of.
    pub(crate) fn add_gap(&mut self, gap: Gap) {
        self.index.add_gap(gap);
    }
}
