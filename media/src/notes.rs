//! Notes about devices that a process drives itself, so that the kernel has none.
//!
//! Such a device has no node: who looks for it finds nothing. A note, in a folder that outlives the
//! process but not the boot, says under which names it was known. It is locked as long as its
//! writer lives; a note that nobody holds was left by a crash, and its device waits to be handed
//! back.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::MediaError;
use crate::dir::lock_holder;

/// Where the notes are. Not below `/run/wirevault`, which goes with its service.
pub const NOTES: &str = "/run/wirevault-vfio";
/// Bytes of a note that are read; a few names are far shorter.
const NOTE_BYTES_MAX: u64 = 64 << 10;

/// A note that this process holds.
#[derive(Debug)]
pub struct Note {
    path: PathBuf,
    file: File,
}

impl Note {
    /// Takes the note about a device, writing one if there is none. `None`: another holds it.
    ///
    /// # Errors
    /// The system's own.
    pub fn take(folder: &Path, device: &str) -> io::Result<Option<Self>> {
        fs::create_dir_all(folder)?;
        let path = folder.join(device);
        loop {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).open(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // Whoever held it before may have removed it meanwhile.
            let ours = file.metadata()?.ino();
            if fs::metadata(&path).is_ok_and(|there| there.ino() == ours) {
                return Ok(Some(Self { path, file }));
            }
        }
    }

    /// Says by which names the device is known.
    ///
    /// # Errors
    /// The system's own.
    pub fn name(&self, names: &[&Path]) -> io::Result<()> {
        let lines: String = names.iter().map(|name| format!("{}\n", name.display())).collect();
        self.file.set_len(0)?;
        (&self.file).write_all(lines.as_bytes())
    }

    /// The device is handed back.
    ///
    /// # Errors
    /// The system's own.
    pub fn remove(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

/// Names of the devices that have notes, sorted.
pub fn all(folder: &Path) -> Vec<String> {
    let Ok(notes) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> =
        notes.flatten().filter_map(|note| note.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

/// The error for a path under which a device was known that somebody drives now, or drove when he
/// died.
pub(crate) fn taken(folder: &Path, path: &Path) -> Option<MediaError> {
    let wanted = std::path::absolute(path).ok()?;
    let note = all(folder).into_iter().map(|name| folder.join(name)).find(|note| {
        use std::io::Read;
        let mut text = String::new();
        let read =
            File::open(note).and_then(|it| it.take(NOTE_BYTES_MAX).read_to_string(&mut text));
        read.is_ok() && text.lines().any(|line| Path::new(line) == wanted)
    })?;
    let volume = path.display().to_string();
    let file = File::open(&note).ok()?;
    match file.try_lock_shared() {
        Ok(()) => Some(MediaError::Left { volume }),
        Err(_) => Some(MediaError::Driven { volume, holder: lock_holder(&file) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_says_who_has_the_device_and_whether_he_lives() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("notes");
        let (by_id, node) = (Path::new("/dev/disk/by-id/nvme-A"), Path::new("/dev/nvme0n1"));
        assert!(taken(&folder, node).is_none() && all(&folder).is_empty());
        let note = Note::take(&folder, "0000:00:04.0").unwrap().unwrap();
        note.name(&[by_id, node]).unwrap();
        assert!(Note::take(&folder, "0000:00:04.0").unwrap().is_none(), "it is held");
        for path in [by_id, node] {
            let error = taken(&folder, path).unwrap();
            let text = error.to_string();
            assert!(text.contains(&format!("pid {}", std::process::id())), "{text}");
            assert!(error.is_locked() && text.contains("wirevault query --socket"), "{text}");
        }
        assert!(taken(&folder, Path::new("/dev/nvme1n1")).is_none());

        // The process dies, the note stays.
        drop(note);
        let left = taken(&folder, node).unwrap();
        assert!(matches!(left, MediaError::Left { .. }) && !left.is_locked(), "{left}");
        assert_eq!(all(&folder), ["0000:00:04.0"]);
        let again = Note::take(&folder, "0000:00:04.0").unwrap().unwrap();
        again.remove().unwrap();
        assert!(taken(&folder, node).is_none() && all(&folder).is_empty());
    }
}
