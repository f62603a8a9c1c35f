//! A new, empty volume in the place of one that is gone for good, under its number.
//!
//! | step | writes | a crash behind it leaves |
//! |---|---|---|
//! | 1 | the new volume, empty, marked as a replacement | the store as it was; `adopt` ends it |
//! | 2 | the new path, on the other volumes | lists of paths that differ; `adopt` ends it |
//!
//! What the old volume held is gone. Nobody knows what that was, so every answer that reaches
//! before the making of the new one says that something may be missing.

use std::path::Path;
use std::sync::Arc;

use wirevault_format::superblock::Superblock;
use wirevault_index::{KeySource, Segment, Volume, open_store};
use wirevault_media::Media;
use wirevault_seal::KeyProvider;
use wirevault_telemetry::clock::Clock;

use crate::StorageError;
use crate::adopt::{adopt, is_same};
use crate::create::{Design, NewVolume, refuse_if_used};
use crate::options::CreateOptions;
use crate::plan::{Space, plan_one, spares_max};
use crate::store::Store;
use crate::volume::{VolumeWriter, device};

/// Gives the store, of which `named` is a volume, a new one at `path`, an absolute one, for that of
/// this number, which is missing. Nobody may write the store.
///
/// # Errors
/// `Index` if the store does not open, or its key is missing or wrong; `InUse`, `Quota` if that
/// place cannot become a volume of it; `Misuse` with the reason if the volume is not missing, or is
/// the first; `Media` if somebody writes the store; `Key`, `Encode`, `Device`.
pub fn replace(
    named: &Path,
    number: u16,
    (media, path): (&dyn Media, &str),
    key: &KeySource,
    clock: Arc<dyn Clock>,
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
    let key = match model.superblock.sealed {
        true => Some(model.open_key(key)?),
        false => None,
    };
    make(&model.superblock, usize::from(number), (media, path), key, clock)?;
    drop((locks, reader));
    adopt(named, path, true).map(drop)
}

impl Store {
    /// Goes on with a new volume at `path`, an absolute one, in the place of one that takes no
    /// writes any more.
    ///
    /// # Errors
    /// As [`replace`]; `Misuse` also if the volume takes a write, or its device does not answer, or
    /// another volume failed as well.
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
        if gone.work(|volume| volume.set_superblock(|_| ())).is_ok() {
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
        make(&model, number, (&*media, path), key.clone(), Arc::clone(&self.clock))?;
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

/// Makes a whole and empty volume of the store that `model` is a volume of.
fn make(
    model: &Superblock,
    number: usize,
    (media, path): (&dyn Media, &str),
    key: Option<Arc<dyn KeyProvider>>,
    clock: Arc<dyn Clock>,
) -> Result<(), StorageError> {
    let refuse = |what: &str| Err(StorageError::Misuse { what: what.to_owned() });
    if number == 0 {
        return refuse("the first volume holds what is known of runs, and cannot be replaced");
    }
    if media.is_shared() {
        return refuse("a store on a shared volume has that volume only");
    }
    let mut paths = model.volume_paths.clone();
    let Some(own) = paths.get_mut(number) else {
        let what = format!("store {} has no volume {number}", model.store);
        return Err(StorageError::Misuse { what });
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
    };
    let key_path = model.key_path.clone();
    let options = CreateOptions { quota_bytes: None, lanes: 0, key, key_path, clock };
    NewVolume::make(media, &design, &options)?.complete()
}

fn is_on(segment: &Segment, number: usize) -> bool {
    usize::from(segment.volume) == number
}
