//! The key ring: keys of lives, and spare ones that a durable ring holds before a segment opens
//! with them. It has two slots, as the tables have, and epochs instead of generations.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use wirevault_format::LifeId;
use wirevault_format::superblock::Superblock;
use wirevault_format::table::{SegmentEntry, SegmentState};
use wirevault_seal::ring::wrapped_root;
use wirevault_seal::{ForgetLevel, KeyRing, SealError, SegmentKeys};

use super::{VolumeWriter, device, key_error};
use crate::StorageError;
use crate::create::encode_ring;
use crate::plan::spares_max;

impl VolumeWriter {
    /// Spare keys at hand.
    pub(crate) fn spares(&self) -> usize {
        self.spares.len()
    }

    /// How many of so many spares the ring has room for.
    pub(crate) fn spares_wanted(&self, wanted: usize) -> usize {
        wanted.min(spares_max(self.superblock()))
    }

    /// Writes the ring anew: the keys of the lives in the table, the spares at hand, and new spares
    /// until there are `wanted` (or as many as there is room for). Does nothing in plain stores.
    pub(crate) fn rewrite_ring(&mut self, wanted: usize) -> Result<(), StorageError> {
        let (Some(provider), Some(Ok(ring))) = (&self.provider, &self.volume.ring) else {
            return Ok(());
        };
        let failed = |source| key_error(&self.name, source);
        let superblock = &self.volume.superblock;
        let mut ring: KeyRing = ring.clone();
        let has_key = |entry: &&SegmentEntry| {
            matches!(entry.state, SegmentState::Open | SegmentState::Closed)
        };
        let held = self.entries().iter().filter(has_key);
        let spare = self.spares.iter().map(SegmentKeys::life);
        let named: HashSet<LifeId> = held.map(|entry| entry.life).chain(spare).collect();
        ring.retain(|keys| named.contains(&keys.life()));
        ring.retain_shut(|life| named.contains(&life));
        let mut fresh = Vec::new();
        for _ in self.spares.len()..self.spares_wanted(wanted) {
            let keys = SegmentKeys::generate().map_err(failed)?;
            ring.insert(keys.clone()).map_err(failed)?;
            fresh.push(keys);
        }
        ring.advance_epoch();
        let slot = 1 - self.volume.ring_slot;
        let bytes = encode_ring(&ring, &**provider, superblock.ring_slot_bytes, &self.name)?;
        let offset = superblock.ring_offset + slot as u64 * superblock.ring_slot_bytes;
        self.write("write the key ring", offset, &bytes)?;
        // Only now may a segment open with one of the new keys.
        self.volume.ring = Some(Ok(ring));
        self.volume.ring_slot = slot;
        self.spares.extend(fresh);
        Ok(())
    }

    /// Leaves one ring only: reads the newest back, has the provider forget every other root, and
    /// overwrites the other slot. Gives how far that reaches and the epoch that is left; nothing in
    /// plain stores.
    pub(crate) fn forget_older_ring(&mut self) -> Result<Option<(ForgetLevel, u64)>, StorageError> {
        let (Some(provider), Some(Ok(ring))) = (&self.provider, &self.volume.ring) else {
            return Ok(None);
        };
        let provider = Arc::clone(provider);
        let epoch = ring.epoch();
        let Superblock { ring_offset, ring_slot_bytes, .. } = *self.superblock();
        let at = |slot: usize| ring_offset + slot as u64 * ring_slot_bytes;
        let (newest, other) = (at(self.volume.ring_slot), at(1 - self.volume.ring_slot));
        let mut slot = vec![0; ring_slot_bytes as usize];
        let read = |slot: &mut [u8], at| {
            let read = self.file.read_exact_at(slot, at);
            read.map_err(|source| device(&self.name, "read the key ring back", source))
        };
        read(&mut slot, newest)?;
        let failed = |source| key_error(&self.name, source);
        if KeyRing::decode(&slot, &*provider).map_err(failed)?.epoch() != epoch {
            let (what, detail) = ("the key ring", "it does not read back as it was written");
            return Err(failed(SealError::Damaged { what, detail }));
        }
        let kept = wrapped_root(&slot).unwrap_or_default();
        provider.forget_others(kept).map_err(failed)?;
        slot.fill(0);
        self.write("overwrite the older key ring", other, &slot)?;
        let read = self.file.read_exact_at(&mut slot, other);
        read.map_err(|source| device(&self.name, "read the older key ring back", source))?;
        if slot.iter().any(|byte| *byte != 0) {
            let source = io::Error::other("it is still there after it was overwritten");
            return Err(device(&self.name, "overwrite the older key ring", source));
        }
        Ok(Some((provider.forget_level(), epoch)))
    }

    /// Whether the key lets a segment begin.
    pub(crate) fn may_begin(&self) -> Result<(), StorageError> {
        let allowed = self.provider.as_ref().map_or(Ok(()), |provider| provider.may_begin());
        allowed.map_err(|source| key_error(&self.name, source))
    }

    /// A key for a new life, durable already. It is spent whatever becomes of the segment.
    pub(crate) fn take_spare(&mut self) -> Option<SegmentKeys> {
        self.spares.pop_front()
    }

    /// Key of a life that the table names.
    pub(crate) fn keys(&self, entry: &SegmentEntry) -> Option<SegmentKeys> {
        match &self.volume.ring {
            Some(Ok(ring)) if entry.sealed => ring.get(entry.life).cloned(),
            _ => None,
        }
    }

    /// Why the key of a life that the table names does not open, if it is there.
    pub(crate) fn why_shut(&self, entry: &SegmentEntry) -> Option<String> {
        match &self.volume.ring {
            Some(Ok(ring)) if entry.sealed => ring.why_shut(entry.life).map(ToString::to_string),
            _ => None,
        }
    }
}
