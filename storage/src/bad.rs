//! Bad places: parts of a device that do not take what is written to them, while the rest does.
//!
//! | seen | done |
//! |---|---|
//! | a chunk was not taken | when its segment closes it is tried once more; if that fails, too, the place is bad |
//! | index and footer were not taken behind the last chunk | they go further on; if that works, the place is bad |
//! | the header of a new segment was not taken | tried once more; if that fails, too, the place is bad |
//!
//! The mark is a flag of the place's table entry and goes with the entry that is written anyway. It
//! needs a table that can be written: of a device that takes nothing no place is bad. What is
//! acknowledged in a bad place stays there until it is given up; nothing else is ever written
//! there. A place is only marked on a volume that is a device. In a directory the blocks below a
//! file are others the next time.
//!
//! A device has spare blocks for bad ones, so places that stay bad say that they are used up, and
//! more will follow: [`Verdict`].

use std::ops::Range;

use wirevault_format::limits::CHUNK_BYTES;
use wirevault_media::{Media, OpenMode, is_of_place};

use crate::StorageError;
use crate::store::OpenSegment;
use crate::volume::check_lease;

/// A volume with so many bad places, one in so many of all, is asked last for segments.
const WORN: Budget = Budget { least: 2, one_in: 50 };
/// With so many it takes none any more.
const SPENT: Budget = Budget { least: 4, one_in: 10 };

/// Bad places that a volume may have.
struct Budget {
    /// Small volumes have so many all the same.
    least: u32,
    one_in: u32,
}

impl Budget {
    fn is_used_up(&self, bad: u32, places: u32) -> bool {
        bad >= self.least.max(places.div_ceil(self.one_in))
    }
}

/// What its bad places say of a volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// There are none, or few.
    #[default]
    Sound,
    /// Segments open there if no other volume takes one.
    Worn,
    /// It takes no more segments.
    Spent,
}

impl Verdict {
    /// Of a volume with so many bad places among so many.
    pub fn of(bad: u32, places: u32) -> Self {
        match () {
            () if SPENT.is_used_up(bad, places) => Self::Spent,
            () if WORN.is_used_up(bad, places) => Self::Worn,
            () => Self::Sound,
        }
    }
}

impl StorageError {
    /// A write failed, and that may be for its place alone.
    pub(crate) fn is_of_place(&self) -> bool {
        matches!(self, Self::Device { source, .. } if is_of_place(source))
    }
}

impl OpenSegment {
    /// Whether the place is bad where chunks were not taken: it does not take zeros there either.
    /// Nothing of the segment is being written any more, and what was to stand there is elsewhere.
    ///
    /// `false` also if that cannot be told.
    pub fn is_bad_in(&self, bytes: Range<u64>) -> bool {
        let media = &self.showing.media;
        let ends_at = self.data_end.min(bytes.end);
        if !media.is_device() || check_lease(&**media, &self.name).is_err() {
            return false;
        }
        let Ok(file) = media.open(self.file.name(), OpenMode::ReadWrite) else { return false };
        let zeros = vec![0; CHUNK_BYTES];
        let put = |at: u64| {
            let bytes = (ends_at - at).min(CHUNK_BYTES as u64);
            file.write_at(&zeros[..bytes as usize], at)
        };
        let tried = (bytes.start..ends_at).step_by(CHUNK_BYTES).try_for_each(put);
        tried.and_then(|()| file.sync()).is_err_and(|error| is_of_place(&error))
    }
}

/// Makes something in a place; on a device once more if the place seems to refuse it. Gives whether
/// the place is bad with the failure.
pub(crate) fn twice<T>(
    media: &dyn Media,
    mut make: impl FnMut() -> Result<T, StorageError>,
) -> Result<T, (StorageError, bool)> {
    match make() {
        Err(error) if media.is_device() && error.is_of_place() => make().map_err(|error| {
            let bad = error.is_of_place();
            (error, bad)
        }),
        made => made.map_err(|error| (error, false)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_bad_places_are_borne_and_more_are_not() {
        let verdicts = |places: u32, bad: [u32; 4]| bad.map(|bad| Verdict::of(bad, places));
        use Verdict::{Sound, Spent, Worn};
        assert_eq!(verdicts(6, [0, 1, 2, 4]), [Sound, Sound, Worn, Spent]);
        assert_eq!(verdicts(7000, [0, 139, 140, 700]), [Sound, Sound, Worn, Spent]);
        assert_eq!(Verdict::of(0, 0), Sound);
    }
}
