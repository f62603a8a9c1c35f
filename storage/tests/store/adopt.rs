//! Volumes that are found again under another path.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use wirevault_format::StoreId;
use wirevault_index::{KeySource, open_store};
use wirevault_media::{BlockMedia, DirMedia, Media};
use wirevault_storage::{
    Adoption, CreateOptions, Plan, RecoveryReport, StorageError, Store, adopt, create_planned,
};
use wirevault_telemetry::clock::SystemClock;

use crate::support::STORE;

/// A store on a directory, a plain file that stands for a device, and another directory.
pub(crate) struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    pub(crate) fn new(store: StoreId) -> Self {
        let site = Self { dir: tempfile::tempdir().unwrap() };
        fs::File::create(site.at("device")).unwrap().set_len(32 << 20).unwrap();
        let dir = |name| Arc::new(DirMedia::create(site.at(name)).unwrap()) as Arc<dyn Media>;
        let device = Arc::new(BlockMedia::open(site.at("device")).unwrap());
        let volumes = [dir("first"), device, dir("third")];
        let volumes = volumes.map(|media| (Arc::clone(&media), media.describe()));
        let options = CreateOptions {
            quota_bytes: None,
            lanes: 1,
            key: None,
            key_path: String::new(),
            clock: Arc::new(SystemClock),
        };
        let plan = Plan::exact(1 << 20, &[(16 << 20, 8); 3], 1).unwrap();
        create_planned(&volumes, store, &options, &plan).unwrap();
        site
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn rename(&self, from: &str, to: &str) {
        fs::rename(self.at(from), self.at(to)).unwrap();
    }

    /// Has the store record this volume.
    fn record(&self, volume: &Path) -> Result<Adoption, StorageError> {
        adopt(&self.at("first"), volume.to_str().unwrap(), Some(&mut |_| Ok(())))
    }

    fn adopt(&self, name: &str, does: bool) -> Result<String, String> {
        let adopted = match does {
            true => self.record(&self.at(name)),
            false => adopt(&self.at("first"), self.at(name).to_str().unwrap(), None),
        };
        adopted.map(|it| it.was).map_err(|error| error.to_string())
    }
}

pub(crate) fn open(path: &Path) -> Result<(Store, RecoveryReport), StorageError> {
    Store::open_dir(path, &KeySource::Recorded, Arc::new(SystemClock))
}

#[test]
fn moved_volumes_are_found_again_from_each_of_them() {
    let site = Site::new(STORE);
    site.rename("device", "other-name");
    site.rename("third", "elsewhere");
    let refused = open(&site.at("first")).err().unwrap().to_string();
    assert!(
        refused.contains("volume 1") && refused.contains("wirevault volume adopt"),
        "{refused}"
    );

    let was = site.at("device").display().to_string();
    assert_eq!(site.adopt("other-name", false).unwrap(), was);
    assert_eq!(open_store(&site.at("first"), &KeySource::Recorded).unwrap().missing.len(), 2);
    assert_eq!(site.adopt("other-name", true).unwrap(), was);
    let reader = open_store(&site.at("first"), &KeySource::Recorded).unwrap();
    assert_eq!(reader.missing.len(), 1, "{:?}", reader.missing);
    site.adopt("elsewhere", true).unwrap();
    for name in ["first", "other-name", "elsewhere"] {
        let reader = open_store(&site.at(name), &KeySource::Recorded).unwrap();
        assert!(reader.missing.is_empty(), "{name}: {:?}", reader.missing);
        open(&site.at(name)).unwrap();
    }
}

#[test]
fn what_is_not_missing_is_refused() {
    let (site, other) = (Site::new(STORE), Site::new(StoreId([9; 16])));
    let refused = site.adopt("device", true).unwrap_err();
    assert!(refused.contains("at") && refused.contains("already"), "{refused}");
    fs::copy(site.at("device"), site.at("copy")).unwrap();
    let refused = site.adopt("copy", true).unwrap_err();
    assert!(refused.contains("one is a copy of the other"), "{refused}");
    let stranger = other.at("device");
    let refused = site.record(&stranger).unwrap_err();
    assert!(refused.to_string().contains("of store 0909"), "{refused}");
    let empty = site.at("empty");
    fs::create_dir(&empty).unwrap();
    let refused = site.record(&empty).unwrap_err();
    assert!(refused.to_string().contains("not a Wirevault store"), "{refused}");

    site.rename("third", "elsewhere");
    let _writer = BlockMedia::open(site.at("device")).unwrap().lock().unwrap();
    let moved = site.at("elsewhere");
    let refused = site.record(&moved).unwrap_err();
    assert!(refused.is_locked(), "{refused}");
    assert!(site.adopt("elsewhere", false).is_ok(), "looking needs no lock");
}

#[test]
fn what_cannot_be_announced_is_not_done() {
    let site = Site::new(STORE);
    site.rename("third", "moved");
    let moved = site.at("moved");
    let mut refuse = |it: &Adoption| {
        assert_eq!((it.number, it.first.as_str()), (2, site.at("first").to_str().unwrap()));
        Err("the log is full".into())
    };
    let path = moved.to_str().unwrap();
    let refused = adopt(&site.at("first"), path, Some(&mut refuse)).unwrap_err();
    assert_eq!(refused.to_string(), "nothing was done: the log is full");
    assert!(open(&site.at("first")).is_err(), "it is not recorded");
    assert_eq!(site.adopt("moved", true).unwrap(), site.at("third").to_str().unwrap());
}
