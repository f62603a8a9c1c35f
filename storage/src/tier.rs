//! Segments of which the object tier has a copy. The store does not know the tier: it is told what
//! lies there, shows it beside its own, and does not take the end of its own for a loss.
//!
//! | step | who | a crash behind it leaves |
//! |---|---|---|
//! | 1 | the caller: copy and key lie in the tier, and its list says so | a segment in both places |
//! | 2 | [`Store::show_tiered`]: answers know of the copy | the same: the next start shows the list |
//! | 3 | [`Store::let_go`], or the quota: table entry, then file | the copy |
//!
//! What is forgotten in the tier goes the other way: [`Store::hide_tiered`] first, which writes
//! down what readers must know of what is gone then.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use wirevault_format::superblock::Superblock;
use wirevault_format::table::{SegmentEntry, SegmentState};
use wirevault_format::{LifeId, StoreId};
use wirevault_index::error::chain;
use wirevault_index::{KeySource, TierKey, Tiered};
use wirevault_seal::KeyProvider;

use crate::StorageError;
use crate::room::note_given_up;
use crate::store::Store;

impl Store {
    /// What wraps the key rings, for the key objects of the tier; nothing in a plain store.
    pub fn key_provider(&self) -> Option<Arc<dyn KeyProvider>> {
        self.volumes.first().and_then(|volume| volume.look().identity().1)
    }

    /// What opened the key rings of a store whose place this one took, if it was sealed with the
    /// same key; nothing in a plain store.
    pub fn key_provider_of(&self, former: StoreId, key: &KeySource) -> Option<TierKey> {
        let (own, _) = self.volumes.first()?.look().identity();
        let superblock = Superblock { store: former, ..own };
        let opened = superblock.sealed.then(|| key.open(&superblock))?;
        Some(opened.map_err(|error| chain(&error)))
    }

    /// Shows copies in the tier beside what lies here, or in its place. Their numbers are not given
    /// again.
    pub fn show_tiered(&self, tiered: &[Tiered]) {
        let last = tiered.iter().map(|tiered| tiered.entry.ordinal).max().unwrap_or(0);
        self.next_ordinal.fetch_max(last + 1, Ordering::Relaxed);
        self.shared.change(|catalog| catalog.segments = catalog.segments.joined(tiered));
    }

    /// Lets go of what lies here of a segment that the tier has. Says whether there was any.
    ///
    /// # Errors
    /// `Misuse` if the tier is not known to have it; `Device`, `Failed`: the next start finishes
    /// what was begun.
    pub fn let_go(&self, life: LifeId) -> Result<bool, StorageError> {
        let closed =
            |entry: &SegmentEntry| (entry.state, entry.life) == (SegmentState::Closed, life);
        for volume in &self.volumes {
            let went = volume.work(|volume| {
                let place = volume.entries().iter().position(closed);
                let Some(place) = place else { return Ok(false) };
                let entry = volume.entries()[place].clone();
                if !volume.not_tiered(&[entry]).is_empty() {
                    let what = format!("segment {life} is kept: the tier does not have it");
                    return Err(StorageError::Misuse { what });
                }
                self.give_up(volume, &[place as u32]).map(|()| true)
            })?;
            if went {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Shows no copies in the tier of these segments any more. Of those that lie nowhere else it
    /// writes down how late their packets are, before.
    ///
    /// # Errors
    /// `Device`, `Failed`: they are shown still.
    pub fn hide_tiered(&self, entries: &[SegmentEntry]) -> Result<(), StorageError> {
        let catalog = self.shared.take(0);
        let nowhere_else = |entry: &&SegmentEntry| {
            catalog.segments.get(entry).is_some_and(|segment| segment.media().is_none())
        };
        let gone: Vec<SegmentEntry> = entries.iter().filter(nowhere_else).cloned().collect();
        if !gone.is_empty() {
            self.volumes[0].work(|first| note_given_up(first, &gone))?;
        }
        self.shared.change(|catalog| {
            for entry in entries {
                let Some(known) = catalog.segments.get(entry) else { continue };
                catalog.segments = match known.media() {
                    Some(_) => catalog.segments.with(Arc::new(known.with_tier(None))),
                    None => catalog.segments.without(entry),
                };
            }
        });
        Ok(())
    }
}
