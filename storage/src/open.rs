//! Opening a store for writing: lock, read, recover, and only then take orders.
//!
//! | step | writes | a crash behind it leaves |
//! |---|---|---|
//! | 1 | locks all volumes, reads them | the store as it was |
//! | 1a | shared volume: marks places that a fenced writer may still write to | marks that are made again |
//! | 2 | closes or frees what a crash left open (`recovery`) | fewer open segments |
//! | 3 | removes files of free places, cuts the digests | nothing that counts |
//! | 4 | marks runs as crashed | runs whose segments are all closed |
//! | 5 | key rings: lives of the table, fresh spares | the older ring or the newer one |
//! | 5a | superblocks and key rings, if a move to another key was cut off | two names, rings of either |
//! | 6 | finishes deletions that were begun ([`mod@crate::forget`]) | the same deletions, to be settled |

use std::path::Path;
use std::sync::Arc;

use wirevault_format::superblock::Superblock;
use wirevault_format::table::{RunEntry, RunState, SegmentState};
use wirevault_format::{FormatError, RunId};
use wirevault_index::{IndexError, KeySource, SharedCatalog, Volume};
use wirevault_media::{Media, MediaError, open_volume};
use wirevault_telemetry::clock::Clock;

use crate::StorageError;
use crate::plan::{SEGMENT_BYTES_FLOOR, SPARES_MIN};
use crate::recovery::{self, RecoveryReport};
use crate::store::Store;
use crate::view;
use crate::volume::{VolumeWriter, device, place_of};

/// Opens the volume at a path.
pub type VolumeOpener<'a> = dyn FnMut(&Path) -> Result<Arc<dyn Media>, MediaError> + 'a;

impl Store {
    /// Opens a store for writing, given all its volumes, and recovers what a crash left.
    ///
    /// # Errors
    /// `Media` if another writer holds it; `Index` if a volume does not read, is of a newer
    /// release, or the key is missing or wrong; `MissingVolume`, `Foreign`; `Device`, `Key`.
    pub fn open(
        volumes: Vec<Arc<dyn Media>>,
        key: &KeySource,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, RecoveryReport), StorageError> {
        let opened = volumes.into_iter().map(|media| VolumeWriter::open(media, key));
        let mut volumes: Vec<VolumeWriter> = opened.collect::<Result<_, _>>()?;
        volumes.sort_by_key(|volume| volume.superblock().number);
        check_complete(&volumes)?;
        // Before anybody looks at the tables: recovery goes by what they say then.
        volumes.iter_mut().try_for_each(VolumeWriter::contest)?;
        let Some(first) = volumes.first() else {
            return Err(StorageError::Volumes { volumes: 0, max: 1 });
        };
        let id = first.superblock().store;
        let shared = Arc::new(SharedCatalog::new(view::catalog(&volumes)));
        volumes.iter_mut().for_each(|volume| volume.show_changes_in(&shared));
        let store = Self::new(id, volumes, clock, shared);
        let mut report = recovery::recover_segments(&store)?;
        report.files_removed = store.remove_leftovers()?;
        for volume in &store.volumes {
            volume.work(VolumeWriter::cut_digests)?;
        }
        report.runs_crashed = store.mark_crashed()?;
        store.desk().spares_wanted = SPARES_MIN;
        for volume in &store.volumes {
            volume.work(|volume| volume.rewrite_ring(volume.spares_wanted(SPARES_MIN)))?;
        }
        store.finish_key_move()?;
        report.deletions = store.resume_forgetting()?;
        Ok((store, report))
    }

    /// Opens the store whose first volume, or any other, is the directory or device `any`.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_dir(
        any: &Path,
        key: &KeySource,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, RecoveryReport), StorageError> {
        Self::open_with(any, key, clock, &mut open_volume)
    }

    /// As [`Store::open_dir`], with volumes opened by `open`, which is given their paths.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(
        any: &Path,
        key: &KeySource,
        clock: Arc<dyn Clock>,
        open: &mut VolumeOpener<'_>,
    ) -> Result<(Self, RecoveryReport), StorageError> {
        let media = open(any)?;
        let named = Volume::read(Arc::clone(&media), key)?.superblock;
        let mut volumes = Vec::new();
        for (number, path) in named.volume_paths.iter().enumerate() {
            if number == usize::from(named.number) {
                // Its directory may have been moved since the paths were recorded.
                volumes.push(Arc::clone(&media));
                continue;
            }
            let missing =
                |why: String| StorageError::MissingVolume { number, path: path.clone(), why };
            let other = open(Path::new(path)).map_err(|error| missing(error.to_string()))?;
            volumes.push(other);
        }
        Self::open(volumes, key, clock)
    }

    /// Removes files that are named like segments and lie at free places: a crash left them between
    /// two steps of opening or giving up a segment.
    fn remove_leftovers(&self) -> Result<u32, StorageError> {
        let mut removed = 0;
        for volume in &self.volumes {
            let volume = volume.look();
            let media = &volume.volume.media;
            let names = media.list().map_err(|e| device(&volume.name, "list its files", e))?;
            let free = |place: &u32| {
                let entry = volume.entries().get(*place as usize);
                entry.is_some_and(|entry| entry.state == SegmentState::Free)
            };
            let left: Vec<u32> =
                names.iter().filter_map(|name| place_of(name)).filter(free).collect();
            volume.remove_segment_files(&left)?;
            removed += left.len() as u32;
        }
        Ok(removed)
    }

    fn mark_crashed(&self) -> Result<Vec<RunId>, StorageError> {
        let running = |(_, run): &(usize, &RunEntry)| run.state == RunState::Running;
        self.volumes[0].work(|first| {
            let crashed: Vec<(usize, RunEntry)> = first
                .runs()
                .iter()
                .enumerate()
                .filter(running)
                .map(|(at, run)| (at, RunEntry { state: RunState::Crashed, ..run.clone() }))
                .collect();
            for (at, run) in &crashed {
                first.set_run(*at, run.clone())?;
            }
            Ok(crashed.iter().map(|(_, run)| run.run).collect())
        })
    }
}

/// All volumes of one store, each once, with sizes that can be worked with.
fn check_complete(volumes: &[VolumeWriter]) -> Result<(), StorageError> {
    let Some(first) = volumes.first() else { return Ok(()) };
    let paths = &first.superblock().volume_paths;
    for (number, volume) in volumes.iter().enumerate() {
        let found = volume.superblock();
        let store = first.superblock().store;
        if found.store != store || usize::from(found.number) != number {
            let (path, found_number, found) = (volume.name.clone(), found.number, found.store);
            return Err(StorageError::Foreign { path, number, store, found_number, found });
        }
        if found.volume_paths != *paths {
            let what = format!(
                "{} names other volumes than {}: one of the store was moved or replaced, and not \
                 all of them know; `wirevault volume adopt` tells them",
                volume.name, first.name
            );
            return Err(StorageError::Misuse { what });
        }
        check_sizes(found).map_err(|source| IndexError::Volume {
            volume: volume.name.clone(),
            what: "its superblock is damaged",
            source,
        })?;
    }
    match paths.get(volumes.len()) {
        None => Ok(()),
        Some(path) => Err(StorageError::MissingVolume {
            number: volumes.len(),
            path: path.clone(),
            why: "it was not named".to_owned(),
        }),
    }
}

fn check_sizes(superblock: &Superblock) -> Result<(), FormatError> {
    let field = |field, value| FormatError::Field { structure: "superblock", field, value };
    match superblock {
        Superblock { segment_bytes, .. } if *segment_bytes < SEGMENT_BYTES_FLOOR => {
            Err(field("segment bytes", *segment_bytes))
        }
        Superblock { places: 0, .. } => Err(field("places", 0)),
        Superblock { number: 0, runs_pages: 0, .. } => Err(field("pages of the run table", 0)),
        _ => Ok(()),
    }
}
