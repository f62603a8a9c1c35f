//! `wirevault init`: a new store, and where its key is.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use wirevault_format::StoreId;
use wirevault_index::error::chain;
use wirevault_index::{KeySource, open_store};
use wirevault_media::{BlockMedia, DirMedia, Media};
use wirevault_seal::{FileProvider, KeyProvider, OneWayKey, SealError, default_key_path, random};
use wirevault_storage::{CreateOptions, create, share_bytes};
use wirevault_telemetry::clock::SystemClock;

use crate::args::{InitArgs, Quota};
use crate::error::CliError;
use crate::outcome::Outcome;
use crate::output::{Paint, count_text, put, size_text};
use crate::place::{key_services, text};

/// Makes a store. What a failed attempt made is removed again.
pub(crate) fn init(args: &InitArgs) -> Result<Outcome, CliError> {
    let dirs: Vec<&Path> =
        [&args.dir].into_iter().chain(&args.volumes).map(PathBuf::as_path).collect();
    let mut made = Made::default();
    let mut volumes: Vec<(Arc<dyn Media>, String)> = Vec::new();
    let mut paths: Vec<PathBuf> = Vec::new();
    for dir in dirs {
        let (media, path) = volume(dir, args.shared, &mut made)?;
        if let Some(other) = paths.iter().find(|other| **other == path) {
            let path = other.display();
            return Err(CliError::Usage(format!("{path} was named twice; a volume is one place")));
        }
        volumes.push((media, text(&path)?));
        paths.push(path);
    }
    let store = random::store_id()?;
    let key = match (args.plaintext, &args.seal_to, &args.kms_key) {
        (true, _, _) => None,
        (false, Some(path), name) => Some(public_key(path, name.as_deref(), store)?),
        (false, None, Some(name)) => Some(service_key(name, store)?),
        (false, None, None) => Some(key_file(args.key.as_deref(), store, &paths, &mut made)?),
    };
    let options = CreateOptions {
        quota_bytes: match args.quota {
            Some(Quota::Bytes(bytes)) => Some(bytes),
            Some(Quota::Percent(percent)) => Some(share_bytes(&volumes, percent)?),
            None => None,
        },
        lanes: args.lanes,
        key: key.as_ref().map(|key| Arc::clone(&key.provider)),
        key_path: key.as_ref().map_or_else(String::new, |key| key.path.clone()),
        clock: Arc::new(SystemClock),
    };
    create(&volumes, store, &options)?;
    made.keep();
    tell_store(&paths[0], store)?;
    tell_key(key.as_ref())?;
    Ok(Outcome::Found)
}

/// The place of a volume and its absolute path. What is neither directory nor missing is a device.
fn volume(
    dir: &Path,
    shared: bool,
    made: &mut Made,
) -> Result<(Arc<dyn Media>, PathBuf), CliError> {
    let missing = !dir.exists();
    if !missing && !dir.is_dir() {
        let path = std::path::absolute(dir).map_err(CliError::file(dir))?;
        let media = BlockMedia::open(&path)?;
        let media = if shared { media.to_be_shared() } else { media };
        return Ok((Arc::new(media), path));
    }
    if shared {
        let dir = dir.display();
        return Err(CliError::Usage(format!(
            "{dir} is no block device; only a device can be shared by two machines"
        )));
    }
    if missing {
        made.dirs.push(dir.to_owned());
    }
    let media = DirMedia::create(dir)?;
    let path = media.path().to_owned();
    Ok((Arc::new(media), path))
}

/// What the store is sealed with.
struct Key {
    provider: Arc<dyn KeyProvider>,
    /// File, or name at its service.
    path: String,
    /// In words.
    told: String,
    warning: &'static str,
}

/// A key of the service, which must make an epoch key with it.
fn service_key(name: &str, store: StoreId) -> Result<Key, CliError> {
    let Some(services) = key_services()? else {
        return Err(SealError::NoService { key: name.to_owned() }.into());
    };
    let keys = services.of(store, name);
    keys.turn()?;
    Ok(Key {
        path: keys.key(),
        told: keys.id(),
        provider: keys,
        warning: "Whoever disables or deletes that key takes the whole store away, and whoever may \
                  use it can read the store. Look at its policy now.",
    })
}

/// A public key, whose private half `kept_as` names if a service keeps it.
fn public_key(path: &Path, kept_as: Option<&str>, store: StoreId) -> Result<Key, CliError> {
    let path = std::path::absolute(path).map_err(CliError::file(path))?;
    let keys = OneWayKey::read(&path)?.kept_as(kept_as).keys_of(store);
    Ok(Key {
        path: text(&path)?,
        told: keys.id(),
        provider: keys,
        warning: "This machine can seal packets with it and open none: reading needs the private \
                  half. Make sure that you have it, and that it is not here.",
    })
}

/// Opens the key file that was named if it exists, else makes one.
fn key_file(
    named: Option<&Path>,
    store: StoreId,
    volumes: &[PathBuf],
    made: &mut Made,
) -> Result<Key, CliError> {
    let path = match named {
        Some(path) => std::path::absolute(path).map_err(CliError::file(path))?,
        None => default_key_path(store)?,
    };
    // Directories of the path that exist already may be links into the store.
    let existing = path.ancestors().skip(1).find_map(|dir| dir.canonicalize().ok());
    let inside = |dir: &Path| volumes.iter().any(|volume| dir.starts_with(volume));
    if inside(&path) || existing.is_some_and(|dir| inside(&dir)) {
        let path = path.display();
        return Err(CliError::Usage(format!(
            "the key {path} would lie inside the store: whoever takes the disk has the key; name \
             another place with --key"
        )));
    }
    let (provider, new) = match path.exists() {
        true => (FileProvider::open(&path)?, "was there already"),
        false => {
            let made_anew = FileProvider::create(&path);
            let provider = made_anew.map_err(|error| not_made(error, named.is_some()))?;
            made.key = Some(path.clone());
            (provider, "new")
        }
    };
    Ok(Key {
        path: text(&path)?,
        told: format!("{}, {new}", provider.id()),
        provider: Arc::new(provider),
        warning: "Back the key up now, away from this machine and away from the store: without it \
                  nothing in the store can ever be read.",
    })
}

/// Why there is no key file. Whoever did not name it may do so.
fn not_made(error: SealError, named: bool) -> CliError {
    match error {
        SealError::KeyIo { .. } if !named => {
            CliError::Usage(format!("{}; name another place with --key", chain(&error)))
        }
        error => error.into(),
    }
}

fn tell_store(first: &Path, store: StoreId) -> Result<(), CliError> {
    let reader = open_store(first, &KeySource::Recorded)?;
    let mut text = format!("store      {store}\n");
    let mut segments = 0;
    for volume in &reader.volumes {
        let superblock = &volume.superblock;
        let (path, quota) = (volume.media.describe(), size_text(superblock.quota_bytes));
        text += &format!("volume {:<3} {path}, at most {quota}\n", superblock.number);
        segments = superblock.segment_bytes;
    }
    let volumes = count_text(reader.volumes.len() as u64, "volume");
    text += &format!("segments   {} each, on {volumes}\n", size_text(segments));
    put(&text)
}

fn tell_key(key: Option<&Key>) -> Result<(), CliError> {
    let Some(Key { path, told, warning, .. }) = key else {
        return put("key        none: packets are stored unencrypted\n");
    };
    put(&format!("key        {path} ({told})\n"))?;
    put(&format!("{}\n", Paint::stdout().warn(warning)))
}

/// What this attempt made, removed unless it is kept.
#[derive(Debug, Default)]
struct Made {
    key: Option<PathBuf>,
    dirs: Vec<PathBuf>,
}

impl Made {
    /// Field by field: assigning a new value would drop, and so remove, what is to be kept.
    fn keep(&mut self) {
        self.key = None;
        self.dirs.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Some(key) = &self.key {
            // Nothing was ever sealed with it.
            let _ = fs::remove_file(key);
        }
        for dir in &self.dirs {
            // It stays if it is not empty.
            let _ = fs::remove_dir(dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_without_a_place_for_the_key_is_told_with_the_way_out() {
        let io = || SealError::KeyIo {
            path: "/nowhere".into(),
            doing: "make this directory",
            source: std::io::ErrorKind::PermissionDenied.into(),
        };
        let told = not_made(io(), false).to_string();
        assert!(told.contains("/nowhere") && told.contains("permission denied"), "{told}");
        assert!(told.ends_with("with --key"), "{told}");
        assert!(!not_made(io(), true).to_string().contains("--key"));
        assert!(CliError::from(SealError::KeyHome).to_string().contains("--key"));
    }

    #[test]
    fn what_is_kept_stays_and_the_rest_goes() {
        let dir = tempfile::tempdir().unwrap();
        for keep in [true, false] {
            let made = dir.path().join("made");
            let key = dir.path().join("key");
            fs::create_dir(&made).unwrap();
            fs::write(&key, "k").unwrap();
            let mut attempt = Made { key: Some(key.clone()), dirs: vec![made.clone()] };
            if keep {
                attempt.keep();
            }
            drop(attempt);
            assert_eq!((key.exists(), made.exists()), (keep, keep));
            if keep {
                fs::remove_file(&key).unwrap();
                fs::remove_dir(&made).unwrap();
            }
        }
    }
}
