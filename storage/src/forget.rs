//! Deleting segments so that they cannot be read again.
//!
//! | step | writes | a crash behind it leaves |
//! |---|---|---|
//! | 1 | superblock: latest packet time that is given up | answers that are more careful |
//! | 2 | table: the entries say "forgetting" | segments that nobody reads; the next start goes on |
//! | 3 | key ring under a fresh root, without their keys; read back | two rings, the older with the keys |
//! | 4 | the provider forgets every other root | an older ring that opens for nobody (from L2 on) |
//! | 5 | the other slot of the ring: zeros; read back | one ring |
//! | 6 | the caller: audit entry and certificate | as before |
//! | 7 | [`Store::settle`]: the files go, their space is discarded | places that hold nothing of worth |
//! | 8 | table: the places are free | the store without them |
//!
//! Steps 3 to 5 are the deletion; they may be repeated at will. The chain roots are read before
//! step 7, from footers that are authenticated but not encrypted, so that a start after a crash can
//! still write the certificate.
//!
//! What is not reached from here: a query that has a segment open goes on to its end.

use std::collections::HashSet;
use std::num::NonZeroU32;

use wirevault_format::LifeId;
use wirevault_format::footer::{FOOTER_BYTES, Footer};
use wirevault_format::table::{SegmentEntry, SegmentState};
use wirevault_index::volume::segment_file_name;
use wirevault_media::OpenMode;
use wirevault_seal::ForgetLevel;

use crate::StorageError;
use crate::room::note_given_up;
use crate::store::Store;
use crate::volume::VolumeWriter;

/// Segments of one volume whose keys are gone. Their space is not free until
/// [`Store::settle`] has this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deletion {
    /// Number of the volume.
    pub volume: usize,
    /// The volume in words.
    pub path: String,
    /// What was deleted.
    pub segments: Vec<DeletedSegment>,
    /// How far the forgetting reaches; nothing in a plain store, where there was no key to forget.
    pub level: Option<ForgetLevel>,
    /// Epoch of the key ring that no longer holds their keys; 0 in a plain store.
    pub epoch: u64,
    /// It is none of those that were asked for now: a crash, or an error, had left it half done.
    pub begun_before: bool,
}

/// A deleted segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeletedSegment {
    /// Its place on the volume.
    pub place: u32,
    /// Its entry, as it was when it was closed but for the state.
    pub entry: SegmentEntry,
    /// The hash over its chunks that its footer states; nothing if the footer does not read.
    pub chain: Option<[u8; 32]>,
}

impl Store {
    /// Deletes closed segments: their keys are gone on return, for good as far as the key's
    /// provider reaches. The caller writes down what was done and then calls [`Store::settle`].
    ///
    /// Lives of which nothing is on a volume any more are left out, as are copies for holds: the
    /// quota may have been faster. What is [kept from the quota](Store::pin) is deleted; whoever
    /// reads it finds that out behind its reading.
    ///
    /// # Errors
    /// [`Store::may_write_rings`]; nothing was done then. `Device`, `Failed`, `Key`: what was begun
    /// is finished by the next deletion there, or the next start.
    pub fn forget(&self, lives: &[LifeId]) -> Result<Vec<Deletion>, StorageError> {
        let lives: HashSet<LifeId> = lives.iter().copied().collect();
        self.forget_closed(|entry| entry.hold == 0 && lives.contains(&entry.life))
    }

    /// Deletes all copies for a hold, as [`Store::forget`] deletes segments. There may be none.
    ///
    /// # Errors
    /// As [`Store::forget`].
    pub fn forget_hold(&self, hold: NonZeroU32) -> Result<Vec<Deletion>, StorageError> {
        self.forget_closed(|entry| entry.hold == hold.get())
    }

    fn forget_closed(
        &self,
        wanted: impl Fn(&SegmentEntry) -> bool,
    ) -> Result<Vec<Deletion>, StorageError> {
        let mut of_volumes = vec![Vec::new(); self.volumes.len()];
        // Looking at the tables would wait for a volume that hangs, for what lies on others.
        for segment in self.shared.take(0).segments.iter().filter(|it| it.media().is_some()) {
            if segment.entry.state == SegmentState::Closed && wanted(&segment.entry) {
                let places: &mut Vec<_> = &mut of_volumes[usize::from(segment.volume)];
                places.push((segment.place, segment.entry.life));
            }
        }
        if of_volumes.iter().any(|places| !places.is_empty()) {
            self.may_write_rings()?;
        }
        let spares_wanted = self.desk().spares_wanted;
        let mut deletions = Vec::new();
        for (number, places) in of_volumes.iter_mut().enumerate() {
            places.sort_unstable();
            if !places.is_empty() {
                let done = self.volumes[number].work(|volume| {
                    let begun = begin_forgetting(volume, places)?;
                    finish_forgetting(number, volume, &begun, spares_wanted)
                });
                deletions.extend(done?);
            }
        }
        Ok(deletions)
    }

    /// Gives back the space of deleted segments: their files go, then their places are free.
    /// Doing it again does nothing.
    ///
    /// # Errors
    /// `Device`, `Failed`: the next start tells of the deletion again.
    pub fn settle(&self, deletion: &Deletion) -> Result<(), StorageError> {
        let volume = &self.volumes[deletion.volume];
        volume.work(|volume| free(volume, deletion))?;
        volume.are_gone(deletion.segments.iter().map(|segment| &segment.entry));
        Ok(())
    }

    /// Finishes what a crash, or an error, left of deletions.
    pub(crate) fn resume_forgetting(&self) -> Result<Vec<Deletion>, StorageError> {
        let wanted = self.desk().spares_wanted;
        let mut deletions = Vec::new();
        for (number, volume) in self.volumes.iter().enumerate() {
            deletions.extend(volume.work(|volume| finish_forgetting(number, volume, &[], wanted))?);
        }
        Ok(deletions)
    }
}

/// Steps 7 and 8.
fn free(volume: &mut VolumeWriter, deletion: &Deletion) -> Result<(), StorageError> {
    let still = |it: &&DeletedSegment| {
        let entry = &volume.entries()[it.place as usize];
        (entry.state, entry.life) == (SegmentState::Forgetting, it.entry.life)
    };
    let places: Vec<u32> =
        deletion.segments.iter().filter(still).map(|segment| segment.place).collect();
    volume.remove_segment_files(&places)?;
    let freed: Vec<_> = places.into_iter().map(|place| (place, SegmentEntry::default())).collect();
    volume.set_segments(&freed)
}

/// Steps 1 and 2: from here on it will be done, whatever happens. Gives the places.
///
/// What the quota has taken since it was looked for is left out.
fn begin_forgetting(
    volume: &mut VolumeWriter,
    wanted: &[(u32, LifeId)],
) -> Result<Vec<u32>, StorageError> {
    let entry = |place: u32| &volume.entries()[place as usize];
    let there = |(place, life): &&(u32, LifeId)| {
        (entry(*place).state, entry(*place).life) == (SegmentState::Closed, *life)
    };
    let places: Vec<u32> = wanted.iter().filter(there).map(|(place, _)| *place).collect();
    let given_up: Vec<SegmentEntry> = places.iter().map(|place| entry(*place).clone()).collect();
    note_given_up(volume, &volume.not_tiered(&given_up))?;
    let forgetting = |entry| SegmentEntry { state: SegmentState::Forgetting, ..entry };
    let entries = given_up.into_iter().map(forgetting);
    let changes: Vec<_> = places.iter().copied().zip(entries).collect();
    volume.set_segments(&changes)?;
    Ok(places)
}

/// Steps 3 to 5, for all that the table says is to be forgotten: what was begun now, and apart from
/// it what was begun before.
fn finish_forgetting(
    number: usize,
    volume: &mut VolumeWriter,
    begun: &[u32],
    spares_wanted: usize,
) -> Result<Vec<Deletion>, StorageError> {
    let segments: Vec<DeletedSegment> = (0..)
        .zip(volume.entries())
        .filter(|(_, entry)| entry.state == SegmentState::Forgetting)
        .map(|(place, entry)| DeletedSegment {
            place,
            entry: entry.clone(),
            chain: chain(volume, place, entry),
        })
        .collect();
    if segments.is_empty() {
        return Ok(Vec::new());
    }
    volume.rewrite_ring(volume.spares_wanted(spares_wanted))?;
    let forgotten = volume.forget_older_ring()?;
    let (now, before): (Vec<_>, Vec<_>) =
        segments.into_iter().partition(|segment| begun.contains(&segment.place));
    let parts = [(now, false), (before, true)].into_iter().filter(|(it, _)| !it.is_empty());
    let deletion = |(segments, begun_before)| Deletion {
        volume: number,
        path: volume.name.clone(),
        segments,
        level: forgotten.map(|(level, _)| level),
        epoch: forgotten.map_or(0, |(_, epoch)| epoch),
        begun_before,
    };
    Ok(parts.map(deletion).collect())
}

/// The hash over the chunks in the footer of a segment, if that reads.
fn chain(volume: &VolumeWriter, place: u32, entry: &SegmentEntry) -> Option<[u8; 32]> {
    let media = &volume.volume.media;
    let file = media.open(&segment_file_name(place), OpenMode::Read).ok()?;
    let mut page = [0; FOOTER_BYTES];
    file.read_exact_at(&mut page, entry.footer_offset).ok()?;
    let footer = Footer::decode(&page).ok()?;
    (footer.life == entry.life).then_some(footer.chain)
}
