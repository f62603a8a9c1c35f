//! Files of segments, made and removed, and the length of the file of digests.

use std::io;
use std::sync::Arc;

use wirevault_format::digest::file_bytes;
use wirevault_format::table::SegmentEntry;
use wirevault_index::volume::segment_file_name;
use wirevault_media::{DIGEST_FILE, MediaFile, OpenMode};

use super::{VolumeWriter, device, reach};
use crate::StorageError;
use crate::bad;

impl VolumeWriter {
    /// Cuts the file of digests behind the highest place that holds a segment, so that it takes no
    /// more than is counted.
    pub(crate) fn cut_digests(&mut self) -> Result<(), StorageError> {
        let reach = reach(self.entries());
        let most = file_bytes(self.superblock().segment_bytes, reach);
        let failed = |source| device(&self.name, &format!("cut {DIGEST_FILE}"), source);
        match self.volume.media.open(DIGEST_FILE, OpenMode::ReadWrite) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => {
                let file = opened.map_err(failed)?;
                if file.len().map_err(failed)? > most {
                    file.set_len(most).map_err(failed)?;
                }
            }
        }
        self.reach = reach;
        Ok(())
    }

    /// Makes the file of a place: header region and space for a full segment, with its name, all
    /// durable. A file that a crash left there is removed first.
    pub(crate) fn make_segment_file(
        &mut self,
        place: u32,
        region: &[u8],
    ) -> Result<Arc<dyn MediaFile>, StorageError> {
        self.check()?;
        let media = Arc::clone(&self.volume.media);
        let made = bad::twice(&*media, || self.try_make_segment_file(place, region));
        made.map_err(|(error, bad)| {
            // What is left of it is removed at the next start, if not now.
            let _ = media.remove(&segment_file_name(place));
            if bad {
                let entry = SegmentEntry { bad, ..SegmentEntry::default() };
                // If the tables cannot be written either, it is not the place.
                let _ = self.set_segments(&[(place, entry)]);
            }
            error
        })
    }

    fn try_make_segment_file(
        &self,
        place: u32,
        region: &[u8],
    ) -> Result<Arc<dyn MediaFile>, StorageError> {
        let media = &self.volume.media;
        let name = segment_file_name(place);
        let failed = |doing: &str| {
            let doing = format!("{doing} {name}");
            move |source| device(&self.name, &doing, source)
        };
        self.remove_segment_files(&[place])?;
        let file = media.open(&name, OpenMode::CreateNew).map_err(failed("make"))?;
        let wanted_bytes = self.superblock().segment_bytes;
        file.allocate(wanted_bytes).map_err(|source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StorageError::DiskFull {
                volume: self.name.clone(),
                wanted_bytes,
                free_bytes: media.free_bytes().unwrap_or(0),
            },
            _ => failed("reserve space for")(source),
        })?;
        file.write_at(region, 0).map_err(failed("write the header of"))?;
        file.sync().map_err(failed("make durable"))?;
        media.sync_dir().map_err(failed("make durable the name of"))?;
        Ok(file)
    }

    /// Removes the files of places that are free, durably: their space can be used again. A crash
    /// before the end may bring them back; the next start removes them then.
    pub(crate) fn remove_segment_files(&self, places: &[u32]) -> Result<(), StorageError> {
        let mut removed = false;
        for place in places {
            let name = segment_file_name(*place);
            match self.volume.media.remove(&name) {
                Ok(()) => removed = true,
                Err(source) if source.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(device(&self.name, &format!("remove {name}"), source)),
            }
        }
        match removed {
            true => self.volume.media.sync_dir().map_err(|source| {
                device(&self.name, "make the removal of segments durable", source)
            }),
            false => Ok(()),
        }
    }
}

/// Place of the segment file with that name.
pub(crate) fn place_of(name: &str) -> Option<u32> {
    let place = name.strip_suffix(".pcapng")?.parse().ok()?;
    (segment_file_name(place) == name).then_some(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_we_give_are_ours() {
        assert_eq!(place_of("000012.pcapng"), Some(12));
        for other in ["12.pcapng", "000012.pcap", "+00012.pcapng", "evidence.pcapng", "volume.wv"] {
            assert_eq!(place_of(other), None, "{other}");
        }
    }
}
