//! Copies for holds: chunks of a closed segment, in a segment of their own that neither quota nor
//! retention takes.
//!
//! A copy has a life, and so a key, of its own; run, lane, link type and the numbers of its packets
//! are those of the segment that it was copied from. While both are there readers see each packet
//! once, by (run, lane, sequence), as with chunks that were sealed again. It covers nothing: what
//! was given up around it is told as given up.
//!
//! | step | writes | a crash behind it leaves |
//! |---|---|---|
//! | 1 | keeps the source from being given up (in memory) | the store as it was |
//! | 2 | opens a segment for the hold, as any | an open copy: the next start frees its place |
//! | 3 | the chunks, sealed with its key; reads them back; index and footer | the same |
//! | 4 | table: the copy is closed | the copy |
//!
//! So a copy is there whole or not at all, and whoever wants it asks again after a crash.
//!
//! Until it has been looked at for all holds a closed segment [waits](Store::spare): the quota
//! takes it last. Those whose copies find no room wait on, no more than half of a volume's.
//!
//! Copies count for the quota as other segments do. They may take [`HOLD_PERCENT`] of each
//! volume's, or what [`Store::set_hold_percent`] says: what is held is lost to recording.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;

use wirevault_format::chunk::{self, ChunkHeader, HEADER_BYTES};
use wirevault_format::footer::{ChunkEntry, CloseReason};
use wirevault_format::table::SegmentEntry;
use wirevault_index::{Catalog, Segment, SegmentReader};
use wirevault_seal::chain::Chain;

use crate::StorageError;
use crate::allocate::Opening;
use crate::choose::Load;
use crate::finish::{ClosingFacts, Finished, finish_segment};
use crate::ledger::Wanted;
use crate::plan::index_reserve_bytes;
use crate::reindex::{self, BODY_CRC_AT, Chunks};
use crate::room::Held;
use crate::standing::SharedVolume;
use crate::store::{OpenRequest, OpenSegment, Store};
use crate::volume::{device, key_error};

/// Part of each volume's quota that copies may take if nobody says otherwise, in percent.
pub const HOLD_PERCENT: u8 = 10;

/// What the copies for a hold take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HoldUse {
    /// Segments.
    pub segments: u64,
    /// Bytes; a copy that is being written counts as a full segment.
    pub bytes: u64,
}

/// A closed segment that the quota does not take while this lives.
pub struct Pinned<'a> {
    volume: &'a SharedVolume,
    held: Held,
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        self.volume.work(|volume| volume.unpin(self.held));
    }
}

impl Store {
    /// Lets copies for holds take this part of each volume's quota.
    pub fn set_hold_percent(&mut self, percent: u8) {
        self.hold_percent = percent.min(100);
    }

    /// What the copies for each hold take, by number. Waits for no device.
    pub fn holds(&self) -> BTreeMap<u32, HoldUse> {
        let mut holds: BTreeMap<u32, HoldUse> = BTreeMap::new();
        for volume in &self.volumes {
            for (hold, share) in volume.ledger().holds() {
                let sum = holds.entry(*hold).or_default();
                let bytes = u64::try_from(share.used_bytes).unwrap_or(u64::MAX);
                sum.segments += share.segments;
                sum.bytes = sum.bytes.saturating_add(bytes);
            }
        }
        holds
    }

    /// Bytes that the copies for all holds take. Waits for no device.
    pub fn holds_bytes(&self) -> u64 {
        self.volumes.iter().map(|volume| volume.ledger().holds_bytes()).sum()
    }

    /// Bytes that the copies for all holds may take.
    pub fn hold_budget_bytes(&self) -> u64 {
        self.volumes.iter().map(|volume| self.hold_budget_of(volume)).sum()
    }

    /// Copies these chunks of a closed segment for a hold, durably.
    ///
    /// # Errors
    /// `HoldBudget`, or what else the first volume said, if no volume takes the copy; `Index` if
    /// one of the chunks cannot be read; `Misuse` if the segment is none that was recorded here, or
    /// is not there any more. There is no copy then.
    pub fn hold_chunks(
        &self,
        hold: NonZeroU32,
        source: &Segment,
        chunks: &[u32],
    ) -> Result<SegmentEntry, StorageError> {
        // What lies in the tier only is not on any volume.
        let _pinned = source.media().map(|_| self.pin(source)).transpose()?;
        let reader = source.open()?;
        let known = reader.with_index(|index| index.chunks().to_vec());
        let chunk_bytes = |number: &u32| known.get(*number as usize).map(|it| it.chunk_bytes);
        let bytes = chunks.iter().filter_map(chunk_bytes).map(u64::from).sum();
        let open = self.open_copy(hold, source, &reader, bytes)?;
        let copied = self.copy(&open, &reader, chunks);
        match copied.and_then(|finished| self.close_segment(&open, finished)) {
            Ok(entry) => Ok(entry),
            Err(error) => {
                let bad = error.is_of_place() && open.is_bad_in(open.data_offset..open.data_end);
                // If that fails, too, the next start frees the place.
                let _ = self.release(&open, bad);
                Err(error)
            }
        }
    }

    /// Keeps the quota from taking a closed segment, which is no copy for a hold: from those it
    /// keeps away anyhow.
    ///
    /// # Errors
    /// `Misuse` if it is not there, or not closed.
    pub fn pin(&self, source: &Segment) -> Result<Pinned<'_>, StorageError> {
        let (number, place, life) = (source.volume, source.place, source.entry.life);
        let volume = self.volumes.get(usize::from(number));
        let pinned = volume.and_then(|volume| {
            let held = volume.work(|volume| volume.pin(place, life))?;
            Some(Pinned { volume, held })
        });
        pinned.ok_or_else(|| {
            let name = source.name();
            let what = format!("segment {name} cannot be kept: it is not there, or not closed");
            StorageError::Misuse { what }
        })
    }

    /// Spares closed segments of which holds want copies: the quota takes them last, so long as
    /// they are no more than half of a volume's. `wanted` tells of those of the catalog; what
    /// closes later waits if `holding`, until this is called again. Waits for no device.
    pub fn spare(&self, holding: bool, catalog: &Catalog, wanted: impl Fn(&Segment) -> Wanted) {
        let recorded = catalog.segments.iter().filter(|segment| segment.entry.hold == 0);
        let known: HashMap<u64, Wanted> =
            recorded.map(|segment| (segment.entry.ordinal, wanted(segment))).collect();
        for volume in &self.volumes {
            volume.spare(holding, |ordinal| known.get(&ordinal).copied());
        }
    }

    /// Segments that were given up since the start although holds wanted something of them.
    pub fn unheld(&self) -> u64 {
        self.volumes.iter().map(|volume| volume.unheld()).sum()
    }

    /// Opens a copy with room for so many bytes of chunks, on the first volume that takes it.
    fn open_copy(
        &self,
        hold: NonZeroU32,
        source: &Segment,
        reader: &SegmentReader,
        bytes: u64,
    ) -> Result<OpenSegment, StorageError> {
        let SegmentEntry { lane, link_type, run, import, opened_ns, .. } = source.entry;
        let request = OpenRequest { lane, link_type, interfaces: reader.interfaces() };
        let opening = Opening { request, run, import, opened_ns, hold: hold.get() };
        let mut first_error = None;
        for number in self.ranked_volumes(|_| Load::default()) {
            let volume = &self.volumes[number];
            let opened = self.check_budget(volume, bytes).and_then(|()| {
                self.tell_ahead(number, &[])?;
                volume.work(|volume| self.open_on((number, volume), &opening, Vec::new()))
            });
            match opened {
                Ok(open) => return Ok(open),
                Err(error) => drop(first_error.get_or_insert(error)),
            }
        }
        let what = || "the store has no volume".to_owned();
        Err(first_error.unwrap_or_else(|| StorageError::Misuse { what: what() }))
    }

    fn check_budget(&self, volume: &SharedVolume, bytes: u64) -> Result<(), StorageError> {
        let (budget_bytes, used_bytes) =
            (self.hold_budget_of(volume), volume.ledger().holds_bytes());
        let wanted_bytes = bytes + index_reserve_bytes(volume.status().segment_bytes);
        if used_bytes.saturating_add(wanted_bytes) <= budget_bytes {
            return Ok(());
        }
        let arithmetic = format!(
            "{} percent of {} are {budget_bytes} bytes, {used_bytes} bytes are held there, and \
             {wanted_bytes} bytes are wanted",
            self.hold_percent,
            volume.status().path
        );
        Err(StorageError::HoldBudget { arithmetic })
    }

    fn hold_budget_of(&self, volume: &SharedVolume) -> u64 {
        let quota = u128::from(volume.status().quota_bytes);
        (quota * u128::from(self.hold_percent) / 100) as u64
    }

    /// Writes the chunks into the copy, with index and footer.
    fn copy(
        &self,
        open: &OpenSegment,
        reader: &SegmentReader,
        chunks: &[u32],
    ) -> Result<Finished, StorageError> {
        let name = &open.name;
        let failed = |doing: &'static str| {
            let doing = format!("{doing} {}", open.file.name());
            move |source| device(name, &doing, source)
        };
        let sealer = open.keys.as_ref().map(|keys| keys.data_sealer()).transpose();
        let mut sealer = sealer.map_err(|source| key_error(name, source))?;
        let (mut entries, mut chain, mut at) = (Vec::new(), Chain::new(), open.data_offset);
        let mut buf = Vec::new();
        for (number, from) in (0..).zip(chunks) {
            let (header, payload) = reader.read_chunk(*from, &mut buf)?;
            let life = open.entry.life;
            let header = ChunkHeader { life, number, sealed: sealer.is_some(), ..header };
            header.encode(&mut buf);
            match &mut sealer {
                Some(sealer) => {
                    let (aad, rest) = buf.split_at_mut(HEADER_BYTES);
                    let payload = &mut rest[..header.payload_bytes as usize];
                    let tag = sealer.seal(number, aad, payload);
                    let tag = tag.map_err(|source| key_error(name, source))?;
                    chunk::put_sealed_tail(&mut buf, &header, &tag);
                    chain.add(&tag);
                }
                None => {
                    chunk::put_plain_tail(&mut buf, &header);
                    chain.add(&buf[payload.end + BODY_CRC_AT..][..4]);
                }
            }
            open.file.write_at(&buf, at).map_err(failed("write"))?;
            entries.push(ChunkEntry {
                offset: at,
                chunk_bytes: buf.len() as u32,
                packets: header.packets,
                times_ns: header.times_ns,
                first_sequence: header.first_sequence,
            });
            at += buf.len() as u64;
        }
        open.file.sync().map_err(failed("make durable"))?;
        let opener = reindex::opener(open.keys.as_ref(), name)?;
        let rebuilt = Chunks::new(open, opener).index(&entries, open.flows_max)?;
        if rebuilt.chain != chain.finish() {
            let source = std::io::Error::other("it is not what was written");
            return Err(failed("read back")(source));
        }
        let facts = ClosingFacts {
            reason: CloseReason::Copied,
            recovered: false,
            damaged: false,
            captured_bytes: rebuilt.captured_bytes,
            received: rebuilt.received,
            shed: rebuilt.shed,
            dropped: rebuilt.dropped,
            chain: rebuilt.chain,
        };
        finish_segment(open, &rebuilt.index, &facts, &*self.clock)
    }
}
