//! A volume that failed, and goes on; and one that takes the place of another.

use std::sync::{Arc, PoisonError};

use wirevault_format::superblock::Superblock;
use wirevault_index::volume::Table;
use wirevault_index::{KeySource, Volume};
use wirevault_media::{OpenMode, VOLUME_FILE};
use wirevault_seal::KeyProvider;

use super::tables::NextPage;
use super::{VolumeWriter, device};
use crate::StorageError;

impl VolumeWriter {
    /// Takes the volume back into use after a failure: opens it again, for its device may have been
    /// away, and writes anew what it may or may not have kept of the call that failed. What is in
    /// memory counts, because whoever asked for that call was told that it failed; and it was
    /// durable, in the slots that the call did not write to.
    ///
    /// # Errors
    /// The volume is not there, is another one, was written by somebody else, or fails again.
    pub(crate) fn rejoin(&mut self) -> Result<(), StorageError> {
        // One lock at a time: on a device that was there all the time this one still holds.
        self.lock = None;
        let media = Arc::clone(&self.volume.media);
        let lock = media.lock()?;
        let file = media.open(VOLUME_FILE, OpenMode::ReadWrite);
        let file = file.map_err(|source| device(&self.name, "open volume.wv again", source))?;
        let key = self.provider.clone().map_or(KeySource::Recorded, KeySource::Provider);
        let mut found = Volume::read(media, &key)?;
        if let Some(Err(_)) = &found.ring
            && let Some(Err(error)) = found.ring.take()
        {
            return Err(error.into());
        }
        self.check_same(&found)?;
        (self.file, self.lock, self.failed) = (file, Some(lock), None);
        // The superblock also shows that the device takes writes.
        self.volume.superblock.generation = found.superblock.generation;
        self.set_superblock(|_| ())?;
        let Superblock { segments_offset, segments_pages, runs_offset, runs_pages, .. } =
            self.volume.superblock;
        let stale = stale_pages(&mut self.volume.segments, &found.segments);
        let segments = &self.volume.segments;
        let pages = stale
            .into_iter()
            .map(|page| NextPage::new(segments, segments_offset, segments_pages, page, Vec::new()));
        for next in pages.collect::<Vec<_>>() {
            self.write("write the segment table", next.offset, &next.bytes)?;
            next.apply(&mut self.volume.segments);
        }
        let stale = stale_pages(&mut self.volume.runs, &found.runs);
        let runs = &self.volume.runs;
        let pages = stale
            .into_iter()
            .map(|page| NextPage::new(runs, runs_offset, runs_pages, page, Vec::new()));
        for next in pages.collect::<Vec<_>>() {
            self.write("write the run table", next.offset, &next.bytes)?;
            next.apply(&mut self.volume.runs);
        }
        if let (Some(Ok(ring)), Some(Ok(found))) = (&mut self.volume.ring, &found.ring) {
            while ring.epoch() < found.epoch() {
                ring.advance_epoch();
            }
        }
        self.rewrite_ring(self.spares.len())
    }

    /// Its superblock, and what opens its key ring.
    pub(crate) fn identity(&self) -> (Superblock, Option<Arc<dyn KeyProvider>>) {
        (self.superblock().clone(), self.provider.clone())
    }

    /// Becomes another volume, of the same number; whoever looks at this one sees that one then.
    pub(crate) fn give_way_to(&mut self, fresh: Self) {
        let ledger = Arc::clone(&self.ledger);
        let known = fresh.ledger().clone();
        *ledger.write().unwrap_or_else(PoisonError::into_inner) = known;
        let (shared, reserve_percent) = (self.shared.take(), self.reserve_percent);
        *self = Self { ledger, shared, reserve_percent, ..fresh };
    }

    /// Whether that is this volume, and as this process left it but for one call that failed.
    fn check_same(&self, found: &Volume) -> Result<(), StorageError> {
        let (known, there) = (&self.volume, &found.superblock);
        let own = &known.superblock;
        let refuse = |why: &str| {
            let (volume, why) = (self.name.clone(), why.to_owned());
            Err(StorageError::Failed { volume, why })
        };
        if (there.store, there.volume) != (own.store, own.volume) {
            return refuse("another volume stands there now");
        }
        let follows = |found: &[(u64, usize)], known: &[(u64, usize)]| {
            found.iter().zip(known).all(|(found, known)| found.0 <= known.0 + 1)
        };
        let others = there.generation > own.generation + 1
            || !follows(&found.segments.pages, &known.segments.pages)
            || !follows(&found.runs.pages, &known.runs.pages);
        match others {
            true => refuse("it was written by somebody else meanwhile"),
            false => Ok(()),
        }
    }
}

/// Pages of which the volume may hold a newer copy than is known. The next one is newer than that,
/// and goes where that is.
fn stale_pages<E>(known: &mut Table<E>, found: &Table<E>) -> Vec<usize> {
    let mut stale = Vec::new();
    for (page, (known, found)) in known.pages.iter_mut().zip(&found.pages).enumerate() {
        if found.0 > known.0 {
            known.0 = found.0;
            stale.push(page);
        }
    }
    stale
}
