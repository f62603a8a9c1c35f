//! What a checkpoint takes from a recorder, and putting it back.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use wirevault_media::Media;

use super::read::content;
use super::{CATALOG, CONFIG, Content, Manifest, SnapshotError, StateFile, name_of, parse_name};
use crate::audit;
use crate::holds::{self, replace};
use crate::{AuditError, certificate, tier};

/// Ending of the catalog of a store that is gone, beside the audit log of the one that took its
/// place.
const LOST: &str = ".lost";

/// The files of a recorder's state. Certificates of deletions are not among them: they are made
/// again from the audit log.
///
/// # Errors
/// `Audit`: the folder of the log cannot be read.
pub fn state(log: &Path, config: &str, catalog: Vec<u8>) -> Result<Vec<StateFile>, AuditError> {
    let file = |name: &str, content| StateFile { name: name.to_owned(), content };
    let mut files = Vec::new();
    for path in audit::files(log)? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        files.push(file(name, Content::Grows(path.clone())));
    }
    for name in [holds::FILE, tier::FILE] {
        let path = log.join(name);
        match fs::read(&path) {
            Ok(bytes) => files.push(file(name, Content::Whole(bytes))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(AuditError::Io { path, what: "read", source }),
        }
    }
    for LostCatalog { store, checkpoint, catalog } in lost(log)? {
        let name = name_of(&store, checkpoint) + LOST;
        files.push(file(&name, Content::Whole(catalog)));
    }
    files.push(file(CONFIG, Content::Whole(config.as_bytes().to_vec())));
    files.push(file(CATALOG, Content::Whole(catalog)));
    Ok(files)
}

/// What was put back.
#[derive(Debug, Default)]
pub struct Restored {
    /// Files that were written.
    pub files: Vec<PathBuf>,
    /// Entries of the audit log.
    pub entries: u64,
    /// Its head.
    pub head: String,
    /// Certificates of deletions, made again from the log.
    pub certificates: u64,
    /// The store is another one: the segments of this catalog are gone, and are told as lost from
    /// now on.
    pub lost: bool,
}

/// Writes the configuration of a checkpoint to a file.
///
/// # Errors
/// `Exists`, `Damaged`, `Io`.
pub fn restore_config(
    media: &dyn Media,
    manifest: &Manifest,
    to: &Path,
) -> Result<(), SnapshotError> {
    vacant(to)?;
    put(media, to, &content_of(media, manifest, CONFIG)?)
}

/// Puts the rest of a checkpoint back into `log`, the folder of the audit log of the store with
/// this id. Nothing may be there yet.
///
/// If the store is not the one that the checkpoint is of, that one's segments are gone with its
/// volumes: their catalog is kept beside the log, so that nobody takes their absence for silence.
/// What lies in the object tier is not gone: the list says from now on which store put it there.
///
/// # Errors
/// `Exists`, `Damaged`, `Io`, `Audit`.
pub fn restore(
    media: &dyn Media,
    manifest: &Manifest,
    log: &Path,
    store: &str,
) -> Result<Restored, SnapshotError> {
    let lost = (manifest.store != store)
        .then(|| log.join(name_of(&manifest.store, manifest.number) + LOST));
    let beside = |file: &&super::FileEntry| ![CONFIG, CATALOG].contains(&file.name.as_str());
    let to: Vec<(&str, PathBuf)> = manifest
        .files
        .iter()
        .filter(beside)
        .map(|file| (file.name.as_str(), log.join(&file.name)))
        .chain(lost.clone().map(|path| (CATALOG, path)))
        .collect();
    // A log of any length would be continued by one that it does not belong to.
    audit::files(log)?.iter().try_for_each(|path| vacant(path))?;
    to.iter().try_for_each(|(_, path)| vacant(path))?;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(log);
    made.map_err(|source| failed(media, format!("make {}", log.display()), source))?;
    for (name, path) in &to {
        let bytes = content_of(media, manifest, name)?;
        let bytes = if *name == tier::FILE {
            let former = lost.as_ref().and_then(|_| manifest.store.parse().ok());
            let list = tier::put_back(&bytes, former);
            list.map_err(|source| failed(media, format!("read {name}"), source))?
        } else {
            bytes
        };
        put(media, path, &bytes)?;
    }
    let mut restored = Restored {
        files: to.into_iter().map(|(_, path)| path).collect(),
        lost: lost.is_some(),
        ..Restored::default()
    };
    if !audit::files(log)?.is_empty() {
        let (certificates, report) = certificate::make_again(log)?;
        restored.certificates = certificates;
        (restored.entries, restored.head) = (report.entries, report.head);
    }
    Ok(restored)
}

/// A catalog of segments that are gone with their volumes.
#[derive(Debug)]
pub struct LostCatalog {
    /// Id of their store, hex.
    pub store: String,
    /// Number of the checkpoint that knows them.
    pub checkpoint: u64,
    /// The file [`CATALOG`] of that checkpoint.
    pub catalog: Vec<u8>,
}

/// The catalogs that [`restore`] put beside an audit log, oldest checkpoint first.
///
/// # Errors
/// The system's. A folder that is not there holds none.
pub fn lost(log: &Path) -> Result<Vec<LostCatalog>, AuditError> {
    let failed = |what| move |source| AuditError::Io { path: log.to_owned(), what, source };
    let entries = match fs::read_dir(log) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed("list"))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed("list"))?;
        let name = entry.file_name();
        let parts = name.to_str().and_then(|name| parse_name(name.strip_suffix(LOST)?));
        let Some((store, checkpoint)) = parts else { continue };
        let catalog = fs::read(entry.path()).map_err(failed("read what was lost in"))?;
        found.push(LostCatalog { store: store.to_owned(), checkpoint, catalog });
    }
    found.sort_by(|a, b| (a.checkpoint, &a.store).cmp(&(b.checkpoint, &b.store)));
    Ok(found)
}

fn content_of(
    media: &dyn Media,
    manifest: &Manifest,
    name: &str,
) -> Result<Vec<u8>, SnapshotError> {
    let file = manifest.file(name).ok_or_else(|| SnapshotError::Damaged {
        folder: media.describe(),
        number: manifest.number,
        what: format!("it holds no {name}"),
    })?;
    content(media, manifest, file)
}

fn put(media: &dyn Media, to: &Path, bytes: &[u8]) -> Result<(), SnapshotError> {
    let written = replace(to, bytes);
    written.map_err(|source| failed(media, format!("write {}", to.display()), source))
}

fn vacant(path: &Path) -> Result<(), SnapshotError> {
    match fs::symlink_metadata(path) {
        Err(_) => Ok(()),
        Ok(_) => Err(SnapshotError::Exists { there: path.display().to_string() }),
    }
}

fn failed(media: &dyn Media, what: String, source: io::Error) -> SnapshotError {
    super::read::failed(media, what, source)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use wirevault_media::SimMedia;
    use wirevault_telemetry::clock::ManualClock;

    use super::super::{Snapshots, newest};
    use super::*;
    use crate::audit::{AuditLog, Event, Source, Who};
    use crate::certificate::{Erasure, certify, list, read};

    const STORE: &str = "5f0c";

    /// A log with a certificate and a list of holds, and a checkpoint of it.
    fn taken() -> (tempfile::TempDir, SimMedia, Manifest) {
        let (folder, media) = (tempfile::tempdir().unwrap(), SimMedia::new());
        let log = AuditLog::open(folder.path(), Arc::new(ManualClock::new(7))).unwrap();
        log.append(Who::Recorder, Event::Stopped).unwrap();
        let (store, reason, level) = (STORE.to_owned(), "by hand".to_owned(), None);
        let path = "/a".to_owned();
        let erasure =
            Erasure { store, volume: 0, path, reason, level, epoch: 3, segments: Vec::new() };
        certify(&log, Who::Recorder, erasure).unwrap();
        fs::write(folder.path().join(holds::FILE), "{}").unwrap();
        let files = state(folder.path(), "store: /a\n", b"tables".to_vec()).unwrap();
        let mut snapshots = Snapshots::open(Arc::new(media.clone()), STORE, 2).unwrap();
        snapshots.take(&files, 9, "t").unwrap();
        let manifest = newest(&media, None, None).unwrap();
        (folder, media, manifest)
    }

    #[test]
    fn state_comes_back_as_it_was_with_certificates_and_nothing_lost() {
        let (from, media, manifest) = taken();
        let to = tempfile::tempdir().unwrap();
        let log = to.path().join("audit");
        let restored = restore(&media, &manifest, &log, STORE).unwrap();
        assert_eq!((restored.entries, restored.certificates, restored.lost), (2, 1, false));
        assert_eq!(restored.head, Source::Folder(from.path()).verify(None).unwrap().head);
        assert_eq!(Source::Folder(&log).verify(None).unwrap().faults, vec![]);
        assert_eq!(fs::read(log.join(holds::FILE)).unwrap(), b"{}");
        let read_all = |log: &Path| -> Vec<_> {
            list(log).unwrap().iter().map(|path| read(path).unwrap()).collect()
        };
        assert_eq!(read_all(&log), read_all(from.path()));
        assert!(lost(&log).unwrap().is_empty());
        let again = restore(&media, &manifest, &log, STORE).unwrap_err();
        assert!(matches!(again, SnapshotError::Exists { .. }), "{again}");
    }

    #[test]
    fn a_store_in_the_place_of_another_knows_what_is_lost() {
        let (_from, media, manifest) = taken();
        let to = tempfile::tempdir().unwrap();
        assert!(restore(&media, &manifest, to.path(), "other").unwrap().lost);
        let lost = lost(to.path()).unwrap();
        let [LostCatalog { store, checkpoint: 1, catalog }] = &lost[..] else { panic!("{lost:?}") };
        assert_eq!((store.as_str(), catalog.as_slice()), (STORE, &b"tables"[..]));
        let config = to.path().join("w.yaml");
        restore_config(&media, &manifest, &config).unwrap();
        assert_eq!(fs::read(&config).unwrap(), b"store: /a\n");
        assert!(restore_config(&media, &manifest, &config).is_err(), "nothing is replaced");
        let files = state(to.path(), "", Vec::new()).unwrap();
        let handed_on = |file: &StateFile| file.name.ends_with(LOST);
        assert!(files.iter().any(handed_on), "the next checkpoint knows of it as well");
    }

    #[test]
    fn names_of_a_manifest_lead_nowhere_else() {
        let (_from, media, mut manifest) = taken();
        manifest.files[0].name = "../elsewhere".to_owned();
        let to = tempfile::tempdir().unwrap();
        let error = restore(&media, &manifest, &to.path().join("audit"), STORE).unwrap_err();
        assert!(matches!(error, SnapshotError::Damaged { .. }), "{error}");
        assert!(!to.path().join("elsewhere").exists());
    }
}
