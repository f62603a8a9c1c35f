//! A new, empty volume in the place of one that is gone for good, under its number.
//!
//! | step | writes | a crash behind it leaves |
//! |---|---|---|
//! | 1 | the new volume, empty, marked as a replacement | the store as it was; `adopt` ends it |
//! | 2 | the new path, on the other volumes | lists of paths that differ; `adopt` ends it |
//!
//! What the old volume held is gone. Nobody knows what that was, so every answer that reaches
//! before the making of the new one says that something may be missing.
//!
//! The first volume also has the table of runs. While the store is written it is in memory, and
//! goes on in the new volume as it was. Otherwise it is made of what the segments of the other
//! volumes tell. That says less, but only of times before the new volume, of which nothing is
//! promised.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use wirevault_format::RunId;
use wirevault_format::superblock::Superblock;
use wirevault_format::table::{RunEntry, RunState, SegmentEntry};
use wirevault_index::{KeySource, Segment, Volume, open_store};
use wirevault_media::Media;
use wirevault_seal::KeyProvider;
use wirevault_telemetry::clock::Clock;

use crate::StorageError;
use crate::adopt::{Adoption, Announce, adopt, first_with, is_same};
use crate::bad::Verdict;
use crate::create::{Design, NewVolume, refuse_if_used};
use crate::options::CreateOptions;
use crate::plan::{RUNS_MAX, Space, plan_one, spares_max};
use crate::store::Store;
use crate::volume::{VolumeWriter, device};

/// Gives the store, of which `named` is a volume, a new one at `path`, an absolute one, for that of
/// this number, which is missing. Nobody may write the store.
///
/// # Errors
/// `Index` if the store does not open, or its key is missing or wrong; `InUse`, `Quota` if that
/// place cannot become a volume of it; `Misuse` with the reason if the volume is not missing;
/// `Media` if somebody writes the store; `Unannounced`; `Key`, `Encode`, `Device`.
pub fn replace(
    named: &Path,
    number: u16,
    (media, path): (&dyn Media, &str),
    key: &KeySource,
    clock: Arc<dyn Clock>,
    announce: Announce<'_>,
) -> Result<(), StorageError> {
    let reader = open_store(named, key)?;
    let is = |it: &&Volume| it.superblock.number == number;
    if let Some(there) = reader.volumes.iter().find(is) {
        let at = there.media.describe();
        let what = format!("the store has its volume {number}, at {at}; only a missing one goes");
        return Err(StorageError::Misuse { what });
    }
    let is_named = |it: &&Volume| is_same(Path::new(&it.media.describe()), named);
    let Some(model) = reader.volumes.iter().find(is_named) else {
        let what = format!("{} is not there any more", named.display());
        return Err(StorageError::Misuse { what });
    };
    let locks: Vec<_> =
        reader.volumes.iter().map(|it| it.media.lock()).collect::<Result<_, _>>()?;
    let paths = &model.superblock.volume_paths;
    let Some(was) = paths.get(usize::from(number)).cloned() else {
        let what = format!("store {} has no volume {number}", reader.store);
        return Err(StorageError::Misuse { what });
    };
    let first = first_with(paths, number, path);
    let key = match model.superblock.sealed {
        true => Some(model.open_key(key)?),
        false => None,
    };
    let (store, missing) = (reader.store, Vec::new());
    announce(&Adoption { store, number, was, first, missing })
        .map_err(StorageError::Unannounced)?;
    let runs = match number {
        0 => runs_of(reader.volumes.iter().flat_map(|it| &it.segments.entries)),
        _ => Vec::new(),
    };
    let fresh = Fresh { number: usize::from(number), runs: &runs, key, clock };
    fresh.make(&model.superblock, (media, path))?;
    drop((locks, reader));
    adopt(named, path, Some(&mut |_| Ok(()))).map(drop)
}

impl Store {
    /// Goes on with a new volume at `path`, an absolute one, in the place of one that takes no
    /// writes, or no segments, any more.
    ///
    /// # Errors
    /// As [`replace`]; `Misuse` also if the volume takes segments, or its device does not answer,
    /// or another volume failed as well.
    pub fn replace_volume(
        &self,
        number: usize,
        media: Arc<dyn Media>,
        path: &str,
    ) -> Result<(), StorageError> {
        let refuse = |what: String| Err(StorageError::Misuse { what });
        let Some(gone) = self.volumes.get(number) else {
            return refuse(format!("there is no volume {number}"));
        };
        let status = gone.status();
        if status.hangs {
            let path = status.path;
            return refuse(format!(
                "volume {number}, {path}, does not answer: pull its device first"
            ));
        }
        // A device may be gone for a while before anything but segments is written to it.
        let works = || gone.work(|volume| volume.set_superblock(|_| ())).is_ok();
        if status.verdict() != Verdict::Spent && works() {
            return refuse(format!("volume {number}, {}, works", status.path));
        }
        let others = || (0..).zip(&self.volumes).filter(|(other, _)| *other != number);
        if let Some((other, _)) = others().find(|(_, volume)| !volume.is_well()) {
            return refuse(format!(
                "volume {other} does not work either, and has to be told of the new one"
            ));
        }
        let Some((_, model)) = others().next() else {
            return refuse("a store's only volume cannot be replaced: make a new store".to_owned());
        };
        let (model, key) = model.look().identity();
        // Only the first volume has any, the one that goes on among them.
        let runs = gone.look().runs().to_vec();
        let clock = Arc::clone(&self.clock);
        Fresh { number, runs: &runs, key: key.clone(), clock }.make(&model, (&*media, path))?;
        let fresh =
            VolumeWriter::open(media, &key.map_or(KeySource::Recorded, KeySource::Provider))?;
        let paths = fresh.superblock().volume_paths.clone();
        let created_ns = fresh.superblock().created_ns;
        for (_, other) in others() {
            other.work(|it| it.set_superblock(|next| next.volume_paths.clone_from(&paths)))?;
        }
        gone.work(|volume| {
            self.desk().open.retain(|_, (at, _)| *at != number);
            volume.give_way_to(fresh);
        });
        gone.is_new();
        self.shared.change(|catalog| {
            let there = |segment: &&Arc<Segment>| !is_on(segment, number);
            catalog.segments = catalog.segments.iter().filter(there).cloned().collect();
            catalog.replaced_ns = catalog.replaced_ns.max(created_ns);
        });
        Ok(())
    }
}

/// What a new volume is to be.
struct Fresh<'a> {
    number: usize,
    /// Its run table.
    runs: &'a [RunEntry],
    key: Option<Arc<dyn KeyProvider>>,
    clock: Arc<dyn Clock>,
}

impl Fresh<'_> {
    /// Makes a whole volume, without a segment, of the store that `model` is a volume of.
    fn make(
        self,
        model: &Superblock,
        (media, path): (&dyn Media, &str),
    ) -> Result<(), StorageError> {
        let Self { number, runs, key, clock } = self;
        let refuse = |what: String| Err(StorageError::Misuse { what });
        if media.is_shared() {
            return refuse("a store on a shared volume has that volume only".to_owned());
        }
        if runs.len() > RUNS_MAX {
            let lines = runs.len();
            return refuse(format!("{lines} runs: the table of a new volume takes {RUNS_MAX}"));
        }
        let mut paths = model.volume_paths.clone();
        let Some(own) = paths.get_mut(number) else {
            return refuse(format!("store {} has no volume {number}", model.store));
        };
        path.clone_into(own);
        refuse_if_used(media, path)?;
        let free_bytes = media.free_bytes();
        let bytes = free_bytes.map_err(|source| device(path, "ask for its free space", source))?;
        let space = Space { bytes, device: media.is_device(), shared: false };
        let sizes = plan_one(number, space, model.segment_bytes, spares_max(model))?;
        let design = Design {
            store: model.store,
            number,
            paths: &paths,
            segment_bytes: model.segment_bytes,
            sizes,
            replacement: true,
            runs,
        };
        let key_path = model.key_path.clone();
        let options = CreateOptions { quota_bytes: None, lanes: 0, key, key_path, clock };
        NewVolume::make(media, &design, &options)?.complete()
    }
}

/// What segments tell of the runs that wrote them, by start; the newest, if a table does not take
/// all. How they ended nobody knows: what lies behind the last segment of a run is in doubt, as
/// after a crash.
fn runs_of<'a>(entries: impl Iterator<Item = &'a SegmentEntry>) -> Vec<RunEntry> {
    let mut runs: BTreeMap<RunId, RunEntry> = BTreeMap::new();
    // Copies for holds have the times of their making.
    for entry in entries.filter(|entry| entry.is_readable() && entry.hold == 0) {
        // Recovery closed those later than the run lived.
        let closed_ns = if entry.recovered { 0 } else { entry.closed_ns };
        let seen_ns = entry.opened_ns.max(closed_ns);
        let run = runs.entry(entry.run).or_insert_with(|| RunEntry {
            state: RunState::Crashed,
            import: entry.import,
            lanes: 0,
            run: entry.run,
            started_ns: entry.opened_ns,
            alive_ns: seen_ns,
            ended_ns: 0,
        });
        run.lanes = run.lanes.max(entry.lane.saturating_add(1));
        run.started_ns = run.started_ns.min(entry.opened_ns);
        run.alive_ns = run.alive_ns.max(seen_ns);
    }
    let mut runs: Vec<RunEntry> = runs.into_values().collect();
    runs.sort_by_key(|run| run.started_ns);
    runs.split_off(runs.len().saturating_sub(RUNS_MAX))
}

fn is_on(segment: &Segment, number: usize) -> bool {
    usize::from(segment.volume) == number
}
