//! Taking checkpoints, and removing old ones.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;

use wirevault_media::{Media, OpenMode};

use super::read::{failed, piece};
use super::{FileEntry, Manifest, PIECE, PIECE_BYTES, SnapshotError, VERSION, hash, list, name_of};

/// A file of the state.
#[derive(Debug)]
pub struct StateFile {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its bytes.
    pub content: Content,
}

/// Where the bytes of a file are.
#[derive(Debug)]
pub enum Content {
    /// Here.
    Whole(Vec<u8>),
    /// In a file of whole lines that only grows: what an earlier checkpoint of this process has of
    /// it is not read again, nor is a line that is being written.
    Grows(PathBuf),
}

/// A folder of checkpoints, open for taking them.
pub struct Snapshots {
    media: Arc<dyn Media>,
    store: String,
    keep: usize,
    next: u64,
    /// Hashes of pieces that are durable and whole.
    known: HashSet<String>,
    /// The last one that this process took.
    last: Option<Manifest>,
}

impl Snapshots {
    /// Opens a folder; `keep` checkpoints of this store stay there, at least 2: while a copy is
    /// made of the newest one, the next may be taken.
    ///
    /// Reads the newest checkpoint: what has rotted of it is written again.
    ///
    /// # Errors
    /// `Io`.
    pub fn open(media: Arc<dyn Media>, store: &str, keep: usize) -> Result<Self, SnapshotError> {
        let found = list(&*media)?;
        let of_store = || found.iter().filter(|it| it.store == store);
        let next = of_store().map(|it| it.number + 1).max().unwrap_or(1);
        let newest = of_store().filter_map(|it| it.manifest.as_ref().ok()).next_back();
        let pieces = newest.iter().flat_map(|it| &it.files).flat_map(|file| &file.pieces);
        let whole = |name: &&String| piece(&*media, name).is_ok();
        let known = pieces.filter(whole).cloned().collect();
        let (store, keep) = (store.to_owned(), keep.max(2));
        Ok(Self { media, store, keep, next, known, last: None })
    }

    /// Number of the next checkpoint.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Takes a checkpoint. It is durable on return.
    ///
    /// # Errors
    /// `Io`: there is none of this number then, and there never will be one.
    pub fn take(
        &mut self,
        files: &[StateFile],
        time_ns: u64,
        program: &str,
    ) -> Result<Manifest, SnapshotError> {
        let number = self.next;
        self.next += 1;
        let files = files.iter().map(|file| self.keep_file(file)).collect::<Result<_, _>>()?;
        self.sync_names()?;
        let (store, program) = (self.store.clone(), program.to_owned());
        let manifest = Manifest { version: VERSION, store, number, time_ns, program, files };
        let name = manifest.name();
        let write = || {
            let file = self.media.open(&name, OpenMode::CreateNew)?;
            file.write_at(&manifest.encode(), 0)?;
            file.sync()
        };
        write().map_err(|source| failed(&*self.media, format!("write {name}"), source))?;
        self.sync_names()?;
        self.last = Some(manifest.clone());
        Ok(manifest)
    }

    /// Removes what is older than the checkpoints to keep, and the pieces that nobody names any
    /// more.
    ///
    /// # Errors
    /// `Io`; what is left is removed by the next call.
    pub fn prune(&mut self) -> Result<(), SnapshotError> {
        let found = list(&*self.media)?;
        let mine = found.iter().filter(|it| it.store == self.store);
        let mut whole: Vec<u64> =
            mine.filter(|it| it.manifest.is_ok()).map(|it| it.number).collect();
        whole.sort_unstable();
        let Some(&oldest) = whole.get(whole.len().saturating_sub(self.keep)) else {
            return Ok(());
        };
        // What a crash left of a manifest goes as well, once it is older than these.
        let (old, left): (Vec<_>, Vec<_>) =
            found.iter().partition(|it| it.store == self.store && it.number < oldest);
        old.iter().try_for_each(|it| self.remove(&name_of(&it.store, it.number)))?;
        self.sync_names()?;
        // One that does not read now may name any piece.
        if left.iter().any(|it| it.manifest.is_err()) {
            return Ok(());
        }
        let files = left.iter().filter_map(|it| it.manifest.as_ref().ok()).flat_map(|it| &it.files);
        let named: HashSet<&str> =
            files.flat_map(|file| &file.pieces).map(String::as_str).collect();
        let names = self.media.list();
        let names = names.map_err(|source| failed(&*self.media, "list the folder", source))?;
        let pieces = names.iter().filter_map(|name| Some((name, name.strip_prefix(PIECE)?)));
        for (name, piece) in pieces.filter(|(_, piece)| !named.contains(piece)) {
            self.known.remove(piece);
            self.remove(name)?;
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), SnapshotError> {
        let removed = self.media.remove(name);
        removed.map_err(|source| failed(&*self.media, format!("remove {name}"), source))
    }

    fn keep_file(&mut self, file: &StateFile) -> Result<FileEntry, SnapshotError> {
        let name = file.name.clone();
        let (mut pieces, rest) = match &file.content {
            Content::Whole(bytes) => (Vec::new(), bytes.clone()),
            Content::Grows(path) => {
                let before = self.last.as_ref().and_then(|last| last.file(&name));
                let full = before.map_or(0, |file| file.bytes as usize / PIECE_BYTES);
                let pieces = before.map_or(Vec::new(), |file| file.pieces[..full].to_vec());
                let rest = lines_from(path, (full * PIECE_BYTES) as u64);
                let what = || format!("read {}", path.display());
                (pieces, rest.map_err(|source| failed(&*self.media, what(), source))?)
            }
        };
        let bytes = (pieces.len() * PIECE_BYTES + rest.len()) as u64;
        for bytes in rest.chunks(PIECE_BYTES) {
            pieces.push(self.keep_piece(bytes)?);
        }
        Ok(FileEntry { name, bytes, pieces })
    }

    fn keep_piece(&mut self, bytes: &[u8]) -> Result<String, SnapshotError> {
        let piece = hash(bytes);
        if self.known.contains(&piece) {
            return Ok(piece);
        }
        let name = format!("{PIECE}{piece}");
        let write = || {
            let file = self.media.open(&name, OpenMode::Create)?;
            // A crash may have left one of this name that is not whole.
            file.set_len(0)?;
            file.write_at(bytes, 0)?;
            file.sync()
        };
        write().map_err(|source| failed(&*self.media, format!("write {name}"), source))?;
        self.known.insert(piece.clone());
        Ok(piece)
    }

    fn sync_names(&self) -> Result<(), SnapshotError> {
        let synced = self.media.sync_dir();
        synced.map_err(|source| failed(&*self.media, "make names durable", source))
    }
}

/// Whole lines of a file from this byte on.
fn lines_from(path: &PathBuf, offset: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    bytes.truncate(bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1));
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use wirevault_media::SimMedia;

    use super::super::crash_tests::check_all;
    use super::super::newest;
    use super::super::read::content;
    use super::*;

    fn whole(name: &str, bytes: &[u8]) -> StateFile {
        StateFile { name: name.to_owned(), content: Content::Whole(bytes.to_vec()) }
    }

    fn pieces(media: &SimMedia) -> usize {
        media.list().unwrap().iter().filter(|name| name.starts_with(PIECE)).count()
    }

    #[test]
    fn a_log_that_grows_is_kept_once_and_up_to_its_last_whole_line() {
        let (dir, media) = (tempfile::tempdir().unwrap(), SimMedia::new());
        let path = dir.path().join("log");
        let mut snapshots = Snapshots::open(Arc::new(media.clone()), "a", 9).unwrap();
        let mut text = String::new();
        for round in 0..4 {
            for line in 0..40 {
                text += &format!("line {line} of round {round}, which has some length\n");
            }
            fs::write(&path, format!("{text}half a li")).unwrap();
            let content = Content::Grows(path.clone());
            let file = StateFile { name: "log".to_owned(), content };
            snapshots.take(&[file], round, "t").unwrap();
        }
        let manifest = newest(&media, None, None).unwrap();
        let log = content(&media, &manifest, manifest.file("log").unwrap()).unwrap();
        assert_eq!(log, text.as_bytes());
        let full = text.len() / PIECE_BYTES;
        assert!(pieces(&media) <= full + 4, "{} pieces of {full}", pieces(&media));
        check_all(&media);
    }

    #[test]
    fn so_many_are_kept_and_nothing_that_they_need_goes() {
        let media = SimMedia::new();
        let mut snapshots = Snapshots::open(Arc::new(media.clone()), "a", 3).unwrap();
        Snapshots::open(Arc::new(media.clone()), "other", 2)
            .and_then(|mut other| other.take(&[whole("x", b"others'")], 0, "t"))
            .unwrap();
        for n in 1..=8u64 {
            let files = [whole("same", b"as ever"), whole("new", &n.to_le_bytes())];
            assert_eq!(snapshots.take(&files, n, "t").unwrap().number, n);
            snapshots.prune().unwrap();
        }
        let numbers: Vec<_> =
            list(&media).unwrap().iter().map(|it| (it.store.clone(), it.number)).collect();
        let a = |n| ("a".to_owned(), n);
        assert_eq!(numbers, [("other".to_owned(), 1), a(6), a(7), a(8)]);
        assert_eq!(pieces(&media), 5, "three new ones, the same one, and the other's");
        check_all(&media);
    }

    #[test]
    fn what_has_rotted_is_written_again_and_was_never_given_out() {
        let media = SimMedia::new();
        let open = || Snapshots::open(Arc::new(media.clone()), "a", 3).unwrap();
        let first = open().take(&[whole("x", b"bytes")], 1, "t").unwrap();
        media.poke(&format!("{PIECE}{}", first.files[0].pieces[0]), 0, b"B").unwrap();
        let error = newest(&media, None, None).unwrap_err();
        assert!(matches!(error, SnapshotError::None { .. }), "{error}");
        assert_eq!(open().take(&[whole("x", b"bytes")], 2, "t").unwrap().number, 2);
        assert_eq!(newest(&media, Some("a"), None).unwrap().number, 2);
        assert!(newest(&media, Some("b"), None).is_err());
        assert_eq!(newest(&media, None, Some(1)).unwrap().number, 1, "it needs the same piece");
    }
}
