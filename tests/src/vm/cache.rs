//! Where the laboratory keeps what it need not make again.

use std::env;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Folder of the cache, shared by all checkouts of a user.
pub fn root() -> PathBuf {
    let named = |variable: &str| env::var_os(variable).filter(|value| !value.is_empty());
    let folder = match (named("WIREVAULT_VM_CACHE"), named("XDG_CACHE_HOME"), named("HOME")) {
        (Some(folder), _, _) => PathBuf::from(folder),
        (None, Some(cache), _) => Path::new(&cache).join("wirevault/vm"),
        (None, None, Some(home)) => Path::new(&home).join(".cache/wirevault/vm"),
        (None, None, None) => target().join("vm"),
    };
    fs::create_dir_all(&folder).unwrap_or_else(|error| {
        panic!("{}: {error}; WIREVAULT_VM_CACHE names another folder", folder.display())
    });
    folder
}

/// Cargo's target folder: that of this test.
pub fn target() -> PathBuf {
    let test = env::current_exe().expect("own path");
    test.ancestors().nth(3).expect("target folder").to_owned()
}

/// A name for whatever these parts make.
pub fn key(parts: &[&str]) -> String {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Gives the folder of this name, made by `make` in a folder beside it if it is not there yet.
/// Tests of several processes and checkouts may ask at once.
pub fn made(within: &Path, name: &str, make: impl FnOnce(&Path)) -> PathBuf {
    fs::create_dir_all(within).expect("cache folder");
    let folder = within.join(name);
    if folder.exists() {
        return folder;
    }
    let lock = File::create(within.join(format!("{name}.lock"))).expect("lock of the cache");
    lock.lock().expect("lock of the cache");
    if folder.exists() {
        return folder;
    }
    // What an interrupted attempt left is of no use.
    let partial = within.join(format!("{name}.partial"));
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir(&partial).expect("cache folder");
    make(&partial);
    fs::rename(&partial, &folder).expect("cache folder");
    folder
}

/// Removes all but the newest folders whose names begin like this.
pub fn keep_newest(within: &Path, prefix: &str, count: usize) {
    let Ok(entries) = fs::read_dir(within) else { return };
    let mut folders: Vec<(SystemTime, PathBuf)> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .filter(|entry| entry.path().is_dir() && entry.path().extension().is_none())
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    folders.sort();
    let surplus = folders.len().saturating_sub(count);
    for (_, folder) in folders.drain(..surplus) {
        let _ = fs::remove_dir_all(folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_made_once_and_old_ones_go() {
        let folder = tempfile::tempdir().expect("folder");
        let make = |path: &Path| fs::write(path.join("a"), "b").expect("file");
        let first = made(folder.path(), "x-1", make);
        assert_eq!(fs::read(first.join("a")).expect("file"), b"b");
        made(folder.path(), "x-1", |_| panic!("it is there"));
        made(folder.path(), "x-2", make);
        keep_newest(folder.path(), "x-", 1);
        let left = ["x-1", "x-2"].iter().filter(|name| folder.path().join(name).exists()).count();
        assert_eq!(left, 1);
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
    }
}
