//! A volume of a store that has another path now: it was moved, or its device has another name.
//!
//! Every volume lists the paths of all. The one that was moved gets the new list first, the one
//! whose list counts gets it last; a crash in between leaves lists that differ, and doing it again
//! ends that. Nothing else of the store changes.

use std::error::Error;
use std::fs;
use std::path::Path;

use wirevault_format::StoreId;
use wirevault_format::superblock::SLOT_OFFSETS;
use wirevault_index::{KeySource, Volume, open_store};
use wirevault_media::{Lock, MediaError, OpenMode, VOLUME_FILE, open_volume};

use crate::StorageError;
use crate::create::encode_error;
use crate::volume::device;

/// A volume that has another path than its store knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adoption {
    /// Store.
    pub store: StoreId,
    /// Number of the volume.
    pub number: u16,
    /// The path that the store knew.
    pub was: String,
    /// Path of the store's first volume once this is done: beside it is the audit log.
    pub first: String,
    /// Further volumes of the store that are not there: path and reason. They keep their lists of
    /// paths until they are adopted themselves.
    pub missing: Vec<(String, String)>,
}

/// Is told what comes next once nobody else can write the store; if it fails, nothing comes.
pub type Announce<'a> = &'a mut dyn FnMut(&Adoption) -> Result<(), Box<dyn Error + Send + Sync>>;

/// Has the store, of which `named` is a volume, find another one at `path`, an absolute one. Where
/// nobody is told it is only looked at.
///
/// # Errors
/// `Index` if one of the two is no volume; `Misuse` with the reason if that at `path` is of another
/// store, or the store has that volume elsewhere; `Media` if somebody writes the store; `Encode` if
/// a superblock has no room for the path; `Unannounced`; `Device`.
pub fn adopt(
    named: &Path,
    path: &str,
    announce: Option<Announce<'_>>,
) -> Result<Adoption, StorageError> {
    let mut found = Found::look(named, path)?;
    if let Some(announce) = announce {
        let _locks = found.lock()?;
        // Whoever wrote the store until now may have changed it since it was looked at.
        found = Found::look(named, path)?;
        announce(&found.adoption).map_err(StorageError::Unannounced)?;
        found.record(path)?;
    }
    Ok(found.adoption)
}

struct Found {
    moved: Volume,
    named: Volume,
    others: Vec<Volume>,
    adoption: Adoption,
}

impl Found {
    fn look(named: &Path, path: &str) -> Result<Self, StorageError> {
        // Paths stand in the clear, so no key is needed.
        let moved = Volume::read(open_volume(Path::new(path))?, &KeySource::Recorded)?;
        let mut reader = open_store(named, &KeySource::Recorded)?;
        let (number, other) = (moved.superblock.number, moved.superblock.store);
        let store = reader.store;
        let refuse = |what: String| Err(StorageError::Misuse { what });
        if other != store {
            return refuse(format!(
                "{path} is volume {number} of store {other}, not of store {store}"
            ));
        }
        if let Some(there) = reader.volumes.iter().find(|it| it.superblock.number == number) {
            let at = there.media.describe();
            return match is_same(Path::new(&at), Path::new(path)) {
                true => refuse(format!("the store has its volume {number} at {at} already")),
                false => refuse(format!(
                    "the store has its volume {number} at {at}, and {path} says that it is that \
                     volume, too: one is a copy of the other; take the copy away"
                )),
            };
        }
        let is_named = |it: &Volume| is_same(Path::new(&it.media.describe()), named);
        let Some(at) = reader.volumes.iter().position(is_named) else {
            return refuse(format!("{} is not there any more", named.display()));
        };
        let named = reader.volumes.swap_remove(at);
        let Some(was) = named.superblock.volume_paths.get(usize::from(number)).cloned() else {
            return refuse(format!("store {store} has no volume {number}"));
        };
        reader.missing.retain(|(missing, _)| *missing != was);
        let first = first_with(&named.superblock.volume_paths, number, path);
        let adoption = Adoption { store, number, was, first, missing: reader.missing };
        Ok(Self { moved, named, others: reader.volumes, adoption })
    }

    /// Volumes in the order in which they get the new list.
    fn volumes(&self) -> impl Iterator<Item = &Volume> {
        [&self.moved].into_iter().chain(&self.others).chain([&self.named])
    }

    fn lock(&self) -> Result<Vec<Lock>, MediaError> {
        self.volumes().map(|it| it.media.lock()).collect()
    }

    fn record(&self, path: &str) -> Result<(), StorageError> {
        let mut paths = self.named.superblock.volume_paths.clone();
        path.clone_into(&mut paths[usize::from(self.adoption.number)]);
        // What has no room for it says so before anything is written.
        let blocks: Vec<_> =
            self.volumes().map(|it| with_paths(it, &paths)).collect::<Result<_, _>>()?;
        self.volumes().zip(&blocks).try_for_each(|(it, block)| write(it, block))
    }
}

/// The first path once the volume of this number is at `path`.
pub(crate) fn first_with(paths: &[String], number: u16, path: &str) -> String {
    match (number, paths.first()) {
        (1.., Some(first)) => first.clone(),
        _ => path.to_owned(),
    }
}

pub(crate) fn is_same(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| fs::canonicalize(path).ok();
    real(one).is_some() && real(one) == real(other)
}

/// The next superblock of a volume, with these paths.
fn with_paths(volume: &Volume, paths: &[String]) -> Result<Vec<u8>, StorageError> {
    let mut next = volume.superblock.clone();
    next.volume_paths = paths.to_vec();
    next.generation += 1;
    let encoded = next.encode();
    let name = || volume.media.describe();
    encoded.map(Vec::from).map_err(|source| encode_error(&name(), source))
}

fn write(volume: &Volume, block: &[u8]) -> Result<(), StorageError> {
    let slot = SLOT_OFFSETS[1 - volume.superblock_slot];
    let file = volume.media.open(VOLUME_FILE, OpenMode::ReadWrite);
    let written = file.and_then(|file| {
        file.write_at(block, slot)?;
        file.sync()
    });
    written.map_err(|source| device(&volume.media.describe(), "write the superblock", source))
}
