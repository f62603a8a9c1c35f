//! Which checkpoints there are, and what is in them.

use wirevault_media::{Media, OpenMode, check_name};

use super::{FileEntry, Manifest, PIECE, PIECE_BYTES, SnapshotError, hash, parse_name};

/// A checkpoint in a folder.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// Store id, hex.
    pub store: String,
    /// Its number.
    pub number: u64,
    /// Its manifest, or why that does not read.
    pub manifest: Result<Manifest, String>,
}

/// All checkpoints of a folder, oldest first. Whether their pieces are whole is not looked at: that
/// takes [`check`].
///
/// # Errors
/// `Io`: the folder cannot be listed.
pub fn list(media: &dyn Media) -> Result<Vec<Checkpoint>, SnapshotError> {
    let names = media.list().map_err(|source| failed(media, "list the folder", source))?;
    let mut found: Vec<Checkpoint> = names
        .iter()
        .filter_map(|name| {
            let (store, number) = parse_name(name)?;
            let manifest = manifest(media, name);
            let manifest = manifest.and_then(|it| match (it.store == store, it.number == number) {
                (true, true) => Ok(it),
                _ => Err("it stands under the name of another one".to_owned()),
            });
            Some(Checkpoint { store: store.to_owned(), number, manifest })
        })
        .collect();
    found.sort_by_key(|it| (it.manifest.as_ref().map_or(0, |it| it.time_ns), it.number));
    Ok(found)
}

/// The newest whole checkpoint, or that of a number; of a certain store, or of any.
///
/// # Errors
/// `None` if there is no whole one, `Io`.
pub fn newest(
    media: &dyn Media,
    store: Option<&str>,
    number: Option<u64>,
) -> Result<Manifest, SnapshotError> {
    let fits = |it: &Checkpoint| {
        store.is_none_or(|store| it.store == store) && number.is_none_or(|n| it.number == n)
    };
    let mut found = list(media)?;
    found.retain(fits);
    let manifests = found.into_iter().rev().filter_map(|it| it.manifest.ok());
    let whole = manifests.into_iter().find(|manifest| check(media, manifest).is_ok());
    whole.ok_or_else(|| SnapshotError::None {
        folder: media.describe(),
        wanted: number.map(|number| number.to_string()),
    })
}

/// Reads every piece of a checkpoint.
///
/// # Errors
/// `Damaged`: one is absent or has other bytes.
pub fn check(media: &dyn Media, manifest: &Manifest) -> Result<(), SnapshotError> {
    manifest.files.iter().try_for_each(|file| content(media, manifest, file).map(drop))
}

/// Bytes of a file of a checkpoint, as they were.
///
/// # Errors
/// `Damaged`.
pub fn content(
    media: &dyn Media,
    manifest: &Manifest,
    file: &FileEntry,
) -> Result<Vec<u8>, SnapshotError> {
    let damaged = |what: String| SnapshotError::Damaged {
        folder: media.describe(),
        number: manifest.number,
        what: format!("{}: {what}", file.name),
    };
    check_name(&file.name).map_err(|error| damaged(error.to_string()))?;
    let mut bytes = Vec::new();
    for name in &file.pieces {
        bytes.extend(piece(media, name).map_err(damaged)?);
    }
    match bytes.len() as u64 == file.bytes {
        true => Ok(bytes),
        false => Err(damaged(format!("{} bytes, not {}", bytes.len(), file.bytes))),
    }
}

/// Bytes of a piece. Errors: why it is not whole.
pub(super) fn piece(media: &dyn Media, name: &str) -> Result<Vec<u8>, String> {
    let bytes = whole(media, &format!("{PIECE}{name}"), PIECE_BYTES)?;
    match hash(&bytes) == name {
        true => Ok(bytes),
        false => Err(format!("piece {name} has other bytes")),
    }
}

fn manifest(media: &dyn Media, name: &str) -> Result<Manifest, String> {
    // A manifest of 10 TB in segments of 1 GiB has 15 KiB.
    const MANIFEST_BYTES_MAX: usize = 64 << 20;
    Manifest::decode(&whole(media, name, MANIFEST_BYTES_MAX)?)
}

fn whole(media: &dyn Media, name: &str, bytes_max: usize) -> Result<Vec<u8>, String> {
    let read = || {
        let file = media.open(name, OpenMode::Read)?;
        let mut bytes = vec![0; usize::try_from(file.len()?).unwrap_or(usize::MAX).min(bytes_max)];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    };
    read().map_err(|error: std::io::Error| format!("{name}: {error}"))
}

pub(super) fn failed(
    media: &dyn Media,
    what: impl Into<String>,
    source: std::io::Error,
) -> SnapshotError {
    SnapshotError::Io { folder: media.describe(), what: what.into(), source }
}
