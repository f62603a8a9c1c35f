//! Stores in real directories, and on plain files that stand for devices.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use caps::Capability;
use wirevault_format::footer::CloseReason;
use wirevault_index::{KeySource, open_store};
use wirevault_media::{DirMedia, Media, open_volume};
use wirevault_seal::FileProvider;
use wirevault_storage::{CreateOptions, StorageError, Store, create};
use wirevault_telemetry::clock::SystemClock;
use wirevault_testkit::net::without_capabilities;

use crate::checks::*;
use crate::support::*;

const QUOTA: u64 = 256 << 20;

fn volume(path: &Path) -> (Arc<dyn Media>, String) {
    let media = DirMedia::create(path).unwrap();
    let path = media.describe();
    (Arc::new(media), path)
}

fn create_in(path: &Path, key: Option<&Path>) -> Result<(), StorageError> {
    let options = CreateOptions {
        quota_bytes: Some(QUOTA),
        lanes: 1,
        key: key.map(|path| Arc::new(FileProvider::open(path).unwrap()) as _),
        key_path: key.map_or(String::new(), |path| path.display().to_string()),
        clock: Arc::new(SystemClock),
    };
    create(&[volume(path)], STORE, &options).map(drop)
}

fn record(path: &Path) -> Ledger {
    let (store, _) = Store::open_dir(path, &KeySource::Recorded, Arc::new(SystemClock)).unwrap();
    let mut recorder = Recorder::start(store, clock(), Ledger::default(), 1).ok().unwrap();
    for _ in 0..2 {
        recorder.open_segment(0).unwrap();
        for _ in 0..3 {
            recorder.write_chunk(0, 20, 300, true).unwrap().unwrap();
        }
        recorder.sync(0).unwrap();
        recorder.close(0, CloseReason::Age).unwrap();
    }
    recorder.end().unwrap();
    recorder.ledger
}

#[test]
fn a_sealed_store_in_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (path, key) = (dir.path().join("store"), dir.path().join("the.key"));
    FileProvider::create(&key).unwrap();
    create_in(&path, Some(&key)).unwrap();
    let again = create_in(&path, Some(&key)).unwrap_err();
    assert!(again.to_string().contains("belongs to store 07070707"), "{again}");
    let ledger = record(&path);

    let reader = open_store(&path, &KeySource::Recorded).unwrap();
    let catalog = reader.catalog(START_NS);
    assert_eq!(catalog.segments.len(), 2);
    check_held(&read_all(&catalog, true).unwrap(), &ledger, 0).unwrap();
    let bytes: u64 = std::fs::read_dir(&path)
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    let (store, report) =
        Store::open_dir(&path, &KeySource::Recorded, Arc::new(SystemClock)).unwrap();
    assert!(report.is_clean());
    let status = store.status();
    assert_eq!(status.volumes[0].used_bytes, bytes, "closed segments are cut behind their footer");
    let locked = Store::open_dir(&path, &KeySource::Recorded, Arc::new(SystemClock));
    assert!(locked.err().unwrap().is_locked());
    drop(store);

    // A store whose directory moved opens all the same; another key does not open it.
    let moved = dir.path().join("moved");
    std::fs::rename(&path, &moved).unwrap();
    let other = dir.path().join("other.key");
    FileProvider::create(&other).unwrap();
    let wrong = Store::open_dir(&moved, &KeySource::File(other), Arc::new(SystemClock));
    assert!(wrong.err().unwrap().is_wrong_key());
    Store::open_dir(&moved, &KeySource::Recorded, Arc::new(SystemClock)).unwrap();
    std::fs::remove_file(&key).unwrap();
    let missing = Store::open_dir(&moved, &KeySource::Recorded, Arc::new(SystemClock));
    assert!(missing.err().unwrap().to_string().contains("does not exist"));
}

#[test]
fn a_sealed_store_on_a_device() {
    let dir = tempfile::tempdir().unwrap();
    let (device, key) = (dir.path().join("device"), dir.path().join("the.key"));
    std::fs::File::create(&device).unwrap().set_len(300 << 20).unwrap();
    FileProvider::create(&key).unwrap();
    let options = CreateOptions {
        quota_bytes: None,
        lanes: 1,
        key: Some(Arc::new(FileProvider::open(&key).unwrap())),
        key_path: key.display().to_string(),
        clock: Arc::new(SystemClock),
    };
    let volume = || (open_volume(&device).unwrap(), device.display().to_string());
    create(&[volume()], STORE, &options).unwrap();
    let again = create(&[volume()], STORE, &options).unwrap_err();
    assert!(again.to_string().contains("belongs to store 07070707"), "{again}");
    let ledger = record(&device);
    assert_eq!(std::fs::metadata(&device).unwrap().len(), 300 << 20);

    let reader = open_store(&device, &KeySource::Recorded).unwrap();
    let catalog = reader.catalog(START_NS);
    assert_eq!(catalog.segments.len(), 2);
    check_held(&read_all(&catalog, true).unwrap(), &ledger, 0).unwrap();
    let (store, report) =
        Store::open_dir(&device, &KeySource::Recorded, Arc::new(SystemClock)).unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(store.status().volumes[0].quota_bytes, 270 << 20, "a tenth is left alone");
    let locked = Store::open_dir(&device, &KeySource::Recorded, Arc::new(SystemClock));
    assert!(locked.err().unwrap().is_locked());
}

#[test]
fn plain_segments_are_pcapng_files() {
    let dir = tempfile::tempdir().unwrap();
    create_in(dir.path(), None).unwrap();
    record(dir.path());
    let file = dir.path().join("000000.pcapng");
    let Ok(output) = Command::new("tcpdump").arg("-nr").arg(&file).output() else {
        println!("SKIPPED: no tcpdump here");
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.lines().count(), 60, "{text}");
}

#[test]
fn other_directories_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let no_store = Store::open_dir(dir.path(), &KeySource::Recorded, Arc::new(SystemClock));
    assert!(no_store.err().unwrap().to_string().contains("is not a Wirevault store"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was made there");
    std::fs::write(dir.path().join("000007.pcapng"), b"evidence").unwrap();
    let refused = create_in(dir.path(), None).unwrap_err().to_string();
    assert!(refused.contains("000007.pcapng"), "{refused}");
}

#[test]
fn a_store_of_another_user_is_not_called_no_store() {
    let dir = tempfile::tempdir().unwrap();
    create_in(dir.path(), None).unwrap();
    // Root may read everything unless it gives that up.
    let powers = [Capability::CAP_DAC_OVERRIDE, Capability::CAP_DAC_READ_SEARCH];
    for closed in [dir.path().join("volume.wv"), dir.path().to_owned()] {
        std::fs::set_permissions(&closed, Permissions::from_mode(0o000)).unwrap();
        without_capabilities(&powers, || {
            let refused = open_store(dir.path(), &KeySource::Recorded).err().unwrap().to_string();
            assert!(refused.contains("cannot be read by this user"), "{refused}");
            assert!(refused.contains("chown") && !refused.contains("init"), "{refused}");
        });
    }
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn volumes_on_one_file_system_share_what_is_free_there() {
    let dir = tempfile::tempdir().unwrap();
    let volumes = [volume(&dir.path().join("a")), volume(&dir.path().join("b"))];
    let free_bytes = volumes[0].0.free_bytes().unwrap();
    let options = |quota_bytes| CreateOptions {
        quota_bytes,
        lanes: 1,
        key: None,
        key_path: String::new(),
        clock: Arc::new(SystemClock),
    };
    // Others write to this file system too, so nothing here stands on the last byte.
    let error = create(&volumes, STORE, &options(Some(free_bytes / 2 * 3))).unwrap_err();
    assert!(error.to_string().contains("is more than the"), "{error}");
    create(&volumes, STORE, &options(None)).unwrap();
    let (store, _) =
        Store::open_dir(&dir.path().join("a"), &KeySource::Recorded, Arc::new(SystemClock))
            .unwrap();
    let quota_bytes: u64 = store.status().volumes.iter().map(|volume| volume.quota_bytes).sum();
    assert!(quota_bytes < free_bytes / 4 * 3, "{quota_bytes} of {free_bytes}");
}
