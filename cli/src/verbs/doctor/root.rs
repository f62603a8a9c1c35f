//! Files in which the kernel says how the machine is, below a folder that stands for `/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The folder.
#[derive(Debug)]
pub(super) struct Root {
    folder: PathBuf,
}

impl Root {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// `path` without its leading slash.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    pub(super) fn has(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// A file's text without blanks around it. Some files of `/sys` cannot be read in some states:
    /// the speed of an interface that is down, for example.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.path(path)).ok().map(|text| text.trim().to_owned())
    }

    pub(super) fn number<T: FromStr>(&self, path: &str) -> Option<T> {
        self.text(path)?.parse().ok()
    }

    /// Names in a folder, sorted; none if it is not there.
    pub(super) fn names(&self, path: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(path)) else { return Vec::new() };
        let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        let mut names: Vec<_> = entries.filter_map(Result::ok).map(name).collect();
        names.sort();
        names
    }
}

/// Numbers of a list as the kernel writes it: `0-2,5`.
pub(super) fn cpu_list(text: &str) -> Vec<u16> {
    let range = |part: &str| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        Some(from.trim().parse().ok()?..=to.trim().parse().ok()?)
    };
    text.split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_the_kernel_writes_them() {
        for (text, cpus) in [
            ("0-2,5", vec![0, 1, 2, 5]),
            ("7", vec![7]),
            ("", vec![]),
            ("0,x,3", vec![0, 3]),
            ("3-1", vec![]),
        ] {
            assert_eq!(cpu_list(text), cpus, "{text}");
        }
    }
}
