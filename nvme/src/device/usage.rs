//! Who uses a device: mounts, swap, partitions, and block devices on top of it.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::error::NvmeError;

use super::Use;

/// A device or one of its partitions.
pub(super) struct Part {
    pub(super) name: String,
    pub(super) number: (u32, u32),
    pub(super) holders: Vec<String>,
    pub(super) is_whole: bool,
}

/// What is mounted, and what is used as swap.
pub(super) struct Users {
    mounts: Vec<Mount>,
    swaps: Vec<PathBuf>,
}

struct Mount {
    number: Option<(u32, u32)>,
    /// What was mounted, as it was named. File systems over several devices have a number of their
    /// own, and this name only.
    source: PathBuf,
    point: PathBuf,
}

impl Users {
    /// Errors: mounts cannot be read. A machine whose mounts are unknown must not be written to.
    pub(super) fn read(proc: &Path) -> Result<Self, NvmeError> {
        let path = proc.join("self/mountinfo");
        let mounts =
            fs::read(&path).map_err(|source| NvmeError::Discover { path: path.clone(), source })?;
        // Kernels without swap have no such file.
        let swaps = fs::read(proc.join("swaps")).unwrap_or_default();
        Ok(Self {
            mounts: mounts.split(|b| *b == b'\n').filter_map(Mount::parse).collect(),
            swaps: swaps.split(|b| *b == b'\n').skip(1).filter_map(first_path).collect(),
        })
    }

    pub(super) fn of(&self, parts: &[Part], dev: &Path) -> Vec<Use> {
        let mut uses = Vec::new();
        for part in parts {
            let node = dev.join(&part.name);
            if !part.is_whole {
                uses.push(Use::Partition(part.name.clone()));
            }
            uses.extend(part.holders.iter().cloned().map(Use::Holder));
            let here = |it: &&Mount| it.number == Some(part.number) || leads_to(&it.source, &node);
            uses.extend(self.mounts.iter().filter(here).map(|it| Use::Mount(it.point.clone())));
            let swaps = self.swaps.iter().filter(|it| leads_to(it, &node));
            uses.extend(swaps.cloned().map(Use::Swap));
        }
        uses
    }
}

impl Mount {
    /// A line of proc_pid_mountinfo(5): `36 35 98:0 /root /point options ... - type source ...`.
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|b| *b == b' ');
        let number = str::from_utf8(fields.nth(2)?).ok()?;
        let number = number
            .split_once(':')
            .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let point = unescape(fields.nth(1)?);
        let source = fields.skip_while(|it| *it != b"-").nth(2).map(unescape);
        Some(Self { number, source: source.unwrap_or_default(), point })
    }
}

fn first_path(line: &[u8]) -> Option<PathBuf> {
    let field = line.split(|b| b.is_ascii_whitespace()).next()?;
    (!field.is_empty()).then(|| unescape(field))
}

/// Whether a name, or the end of the links behind it, is this node.
fn leads_to(name: &Path, node: &Path) -> bool {
    name == node || (name.is_absolute() && fs::canonicalize(name).is_ok_and(|it| it == node))
}

/// Blanks, tabs, line ends and backslashes stand as `\040` and so on.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let digits = tail.first_chunk::<3>().filter(|_| *first == b'\\');
        let digits = digits.and_then(|it| u8::from_str_radix(str::from_utf8(it).ok()?, 8).ok());
        bytes.push(digits.unwrap_or(*first));
        rest = if digits.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo_are_read() {
        let line = b"36 35 259:3 / /mnt/a\\040b rw,noatime shared:1 - xfs /dev/nvme1n1 rw";
        let mount = Mount::parse(line).unwrap();
        assert_eq!(mount.number, Some((259, 3)));
        assert_eq!(mount.point, Path::new("/mnt/a b"));
        assert_eq!(mount.source, Path::new("/dev/nvme1n1"));
        let bare = Mount::parse(b"36 35 0:30 / /mnt rw - btrfs /dev/nvme1n1 rw").unwrap();
        assert_eq!((bare.number, bare.source), (Some((0, 30)), "/dev/nvme1n1".into()));
        for torn in ["", "36", "36 35 x", "36 35 1:2 /"] {
            assert!(Mount::parse(torn.as_bytes()).is_none(), "{torn:?}");
        }
        assert!(Mount::parse(b"36 35 1:2 / /mnt").is_some(), "no source, still a mount");
    }

    #[test]
    fn backslashes_that_escape_nothing_stay() {
        assert_eq!(unescape(b"a\\134b\\"), Path::new("a\\b\\"));
        assert_eq!(unescape(b"\\9"), Path::new("\\9"));
        assert_eq!(unescape(b"\\777"), Path::new("\\777"));
    }
}
