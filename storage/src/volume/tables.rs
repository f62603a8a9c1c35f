//! Superblock and table pages.
//!
//! # Order and crashes
//! Both have two slots. A write goes into the slot that does not hold the newest valid copy, with
//! the next generation, and is synced before anything in memory changes. A torn write loses to the
//! older copy, which is always a state that the start accepts. After a failed write or sync the
//! volume takes no more writes: nobody knows what it holds.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use wirevault_format::limits::LBA_BYTES;
use wirevault_format::superblock::{SLOT_OFFSETS, Superblock};
use wirevault_format::table::{
    Entry, PAGE_ENTRIES, RunEntry, SegmentEntry, SegmentState, encode_page,
};
use wirevault_index::volume::{Table, page_offset};

use super::{VolumeWriter, check_lease, device};
use crate::StorageError;
use crate::create::encode_error;
use crate::view;

/// For how long places that a fenced writer may write to are not used again, unless it says before
/// that it has ended: drivers give writes up after 30 s, on EC2's local disks after 90 s, and a
/// machine that was paused for longer writes as soon as it goes on.
const CONTESTED_FOR: Duration = Duration::from_secs(3600);

impl VolumeWriter {
    /// Makes new entries of the segment table durable, page by page in the order given.
    pub(crate) fn set_segments(
        &mut self,
        changes: &[(u32, SegmentEntry)],
    ) -> Result<(), StorageError> {
        // A place stays contested, or bad, whatever it holds.
        let stays = |(place, entry): &(u32, SegmentEntry)| {
            let before = &self.entries()[*place as usize];
            let contested = entry.contested || before.contested;
            let bad = entry.bad || before.bad;
            (*place, SegmentEntry { contested, bad, ..entry.clone() })
        };
        let changes: Vec<_> = changes.iter().map(stays).collect();
        self.write_segments(&changes)
    }

    /// A writer before us may still have writes under way: to the segments that it had open, and to
    /// the place that it would have turned to next.
    pub(crate) fn contest(&mut self) -> Result<(), StorageError> {
        let may_be = self.volume.media.lease().is_some_and(|lease| lease.is_contested());
        if !may_be {
            self.note_contested();
            return Ok(());
        }
        let next = self.ledger().first_free();
        let late = |(place, entry): &(u32, &SegmentEntry)| {
            entry.state == SegmentState::Open || Some(*place) == next
        };
        let contested = |(place, entry): (u32, &SegmentEntry)| {
            (place, SegmentEntry { contested: true, ..entry.clone() })
        };
        let changes: Vec<_> = (0..).zip(self.entries()).filter(late).map(contested).collect();
        self.write_segments(&changes)?;
        self.note_contested();
        Ok(())
    }

    fn note_contested(&mut self) {
        let contested = self.entries().iter().any(|entry| entry.contested);
        self.contested_since = contested.then(Instant::now);
    }

    /// Segments may open at contested places again, if nobody writes there any more.
    pub(crate) fn settle_contested(&mut self) -> Result<(), StorageError> {
        let Some(since) = self.contested_since else { return Ok(()) };
        let lease = self.volume.media.lease();
        let gone = lease.is_some_and(|lease| lease.rivals_are_gone().unwrap_or(false));
        if !gone && since.elapsed() < CONTESTED_FOR {
            return Ok(());
        }
        let settled = |(place, entry): (u32, &SegmentEntry)| {
            entry.contested.then(|| (place, SegmentEntry { contested: false, ..entry.clone() }))
        };
        let changes: Vec<_> = (0..).zip(self.entries()).filter_map(settled).collect();
        self.write_segments(&changes)?;
        self.contested_since = None;
        Ok(())
    }

    fn write_segments(&mut self, changes: &[(u32, SegmentEntry)]) -> Result<(), StorageError> {
        let mut rest = changes;
        while let Some((place, _)) = rest.first() {
            let page = *place as usize / PAGE_ENTRIES;
            let in_page =
                |(place, _): &&(u32, SegmentEntry)| *place as usize / PAGE_ENTRIES == page;
            let together = rest.iter().take_while(in_page).count();
            let changes: Vec<_> =
                rest[..together].iter().map(|(at, entry)| (*at as usize, entry.clone())).collect();
            let superblock = &self.volume.superblock;
            let (offset, pages) = (superblock.segments_offset, superblock.segments_pages);
            let next = NextPage::new(&self.volume.segments, offset, pages, page, changes);
            self.write("write the segment table", next.offset, &next.bytes)?;
            let before: Vec<SegmentEntry> = rest[..together]
                .iter()
                .map(|(at, _)| self.entries()[*at as usize].clone())
                .collect();
            let mut ledger = self.ledger.write().unwrap_or_else(PoisonError::into_inner);
            for ((place, after), before) in rest.iter().zip(&before) {
                ledger.change(*place, before, after);
                if after.state != SegmentState::Free {
                    self.reach = self.reach.max(*place + 1);
                }
            }
            drop(ledger);
            for ((_, after), before) in rest.iter().zip(&before) {
                if after.life != before.life || after.state == SegmentState::Free {
                    self.volume.digests.forget(before.life);
                }
            }
            next.apply(&mut self.volume.segments);
            if let Some(shared) = &self.shared {
                view::show_segments(shared, &self.volume, &before, &rest[..together]);
            }
            rest = &rest[together..];
        }
        Ok(())
    }

    /// Makes one new entry of the run table durable.
    pub(crate) fn set_run(&mut self, at: usize, entry: RunEntry) -> Result<(), StorageError> {
        let superblock = &self.volume.superblock;
        let (offset, pages) = (superblock.runs_offset, superblock.runs_pages);
        let changes = vec![(at, entry)];
        let page = at / PAGE_ENTRIES;
        let next = NextPage::new(&self.volume.runs, offset, pages, page, changes);
        self.write("write the run table", next.offset, &next.bytes)?;
        next.apply(&mut self.volume.runs);
        if let Some(shared) = &self.shared {
            view::show_runs(shared, self.runs());
        }
        Ok(())
    }

    /// Makes a changed superblock durable.
    pub(crate) fn set_superblock(
        &mut self,
        change: impl FnOnce(&mut Superblock),
    ) -> Result<(), StorageError> {
        let mut next = self.volume.superblock.clone();
        change(&mut next);
        next.generation += 1;
        let slot = 1 - self.volume.superblock_slot;
        let block = next.encode().map_err(|source| encode_error(&self.name, source))?;
        self.write("write the superblock", SLOT_OFFSETS[slot], &block)?;
        self.volume.superblock = next;
        self.volume.superblock_slot = slot;
        if let Some(shared) = &self.shared {
            view::show_evicted(shared, &self.volume.superblock);
        }
        Ok(())
    }

    pub(super) fn check(&self) -> Result<(), StorageError> {
        match &self.failed {
            None => check_lease(&*self.volume.media, &self.name),
            Some(why) => Err(StorageError::Failed { volume: self.name.clone(), why: why.clone() }),
        }
    }

    /// On a shared volume the lease is looked at before, so that at most one write is late, and
    /// behind, so that nothing counts which another writer does not know of.
    pub(super) fn write(
        &mut self,
        doing: &str,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), StorageError> {
        self.check()?;
        let written = self.file.write_at(bytes, offset).and_then(|()| self.file.sync());
        let kept = || self.volume.media.lease().map_or(Ok(()), |lease| lease.check());
        let written = written.and_then(|()| kept());
        written.map_err(|source| {
            self.failed = Some(format!("cannot {doing}: {source}"));
            device(&self.name, doing, source)
        })
    }
}

/// A page of a table as it will be.
pub(super) struct NextPage<E> {
    page: usize,
    generation: u64,
    slot: usize,
    pub(super) offset: u64,
    pub(super) bytes: [u8; LBA_BYTES],
    changes: Vec<(usize, E)>,
}

impl<E: Entry> NextPage<E> {
    pub(super) fn new(
        table: &Table<E>,
        table_offset: u64,
        pages: u32,
        page: usize,
        changes: Vec<(usize, E)>,
    ) -> Self {
        let (generation, slot) = table.pages[page];
        let (generation, slot) = (generation + 1, 1 - slot);
        let first = page * PAGE_ENTRIES;
        let end = table.entries.len().min(first + PAGE_ENTRIES);
        let mut entries = table.entries[first..end].to_vec();
        for (at, entry) in &changes {
            entries[at - first] = entry.clone();
        }
        let bytes = encode_page(page as u32, generation, &entries);
        let offset = page_offset(table_offset, pages, slot, page as u32);
        Self { page, generation, slot, offset, bytes, changes }
    }

    pub(super) fn apply(self, table: &mut Table<E>) {
        table.pages[self.page] = (self.generation, self.slot);
        for (at, entry) in self.changes {
            table.entries[at] = entry;
        }
    }
}
