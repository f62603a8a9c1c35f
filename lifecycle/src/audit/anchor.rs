//! Heads of the log, kept where who can write to the log cannot: only they tell that its end was
//! cut off, or that all of it was made anew.
//!
//! An [`Anchor`] is a place for them. [`FileAnchor`] is a file on another path, best on another
//! machine or on a medium that is only appended to: a JSON object of [`Mark`] a line.
//! [`ObjectAnchor`] is a place for objects, best one that lets the recorder make them and never
//! change or delete them: each head is an object, `heads/STORE/NUMBER.json`, numbered from 1.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use wirevault_media::{ObjectFault, Objects};

use crate::AuditError;
use crate::audit::{Entry, Source};

/// Bytes of a head's object at most: two ids and two numbers are a fifth of that.
const MARK_BYTES_MAX: u64 = 1024;

/// The head of a log at some moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Store id, hex: several stores may have one place.
    pub store: String,
    /// Number of the last entry.
    pub entry: u64,
    /// Hash of its line.
    pub hash: String,
    /// When it was kept, Unix ns.
    pub time_ns: u64,
}

/// A place outside of the log that keeps heads.
pub trait Anchor: Send + Sync {
    /// Keeps a head, durably.
    ///
    /// # Errors
    /// It cannot be reached.
    fn keep(&self, mark: &Mark) -> Result<(), AuditError>;
}

/// A file that heads are appended to.
#[derive(Debug)]
pub struct FileAnchor {
    path: PathBuf,
}

impl FileAnchor {
    /// In this file, which is made when the first head is kept.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }
}

impl Anchor for FileAnchor {
    fn keep(&self, mark: &Mark) -> Result<(), AuditError> {
        let append = || {
            let mut line = serde_json::to_vec(mark)?;
            line.push(b'\n');
            let mut options = OpenOptions::new();
            options.append(true).read(true).create(true).mode(0o600);
            let mut file = options.open(&self.path)?;
            // What a crash left of a line stays, on a line of its own.
            if !ends_a_line(&file)? {
                line.insert(0, b'\n');
            }
            file.write_all(&line)?;
            file.sync_all()?;
            self.path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
        };
        append().map_err(|source| failed(&self.path, "append", source))
    }
}

fn ends_a_line(file: &File) -> io::Result<bool> {
    let mut last = [b'\n'];
    if let Some(at) = file.metadata()?.len().checked_sub(1) {
        file.read_exact_at(&mut last, at)?;
    }
    Ok(last == [b'\n'])
}

/// Objects, one for each head.
pub struct ObjectAnchor {
    objects: Arc<dyn Objects>,
    /// Number of the next one; nothing before it is known.
    next: Mutex<Option<u64>>,
}

impl ObjectAnchor {
    /// In this place. Nothing is asked of it yet.
    pub fn new(objects: Arc<dyn Objects>) -> Self {
        Self { objects, next: Mutex::new(None) }
    }

    /// The first number that is free. They were taken in turn, so it is found by halves.
    fn first_free(&self, store: &str) -> Result<u64, AuditError> {
        let is_taken =
            |number| Ok::<_, AuditError>(self.objects.bytes(&name(store, number))?.is_some());
        let mut free = 1;
        while is_taken(free)? {
            free *= 2;
        }
        let mut taken = free / 2;
        while free - taken > 1 {
            let middle = taken + (free - taken) / 2;
            match is_taken(middle)? {
                true => taken = middle,
                false => free = middle,
            }
        }
        Ok(free)
    }
}

impl Anchor for ObjectAnchor {
    fn keep(&self, mark: &Mark) -> Result<(), AuditError> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let mut number = match *next {
            Some(number) => number,
            None => self.first_free(&mark.store)?,
        };
        loop {
            // It holds text and numbers.
            let mut piece = Some(serde_json::to_vec(mark).expect("a mark is JSON"));
            let put = self.objects.put(&name(&mark.store, number), &mut || Ok(piece.take()));
            number += 1;
            match put {
                // One of ours, of which the answer did not come.
                Err(error) if error.fault == ObjectFault::Exists => continue,
                put => put?,
            }
            *next = Some(number);
            return Ok(());
        }
    }
}

/// Reads the heads of a store out of the objects that [`ObjectAnchor`] made.
///
/// # Errors
/// What the place says; `Io` for an object that holds none.
pub fn object_marks(objects: &dyn Objects, store: &str) -> Result<Vec<Mark>, AuditError> {
    let mut marks = Vec::new();
    for number in 1.. {
        let name = name(store, number);
        let Some(bytes) = objects.bytes(&name)? else { break };
        let text = objects.read(&name, 0..bytes.min(MARK_BYTES_MAX))?;
        let mark = serde_json::from_slice(&text);
        marks.push(mark.map_err(|error| failed(Path::new(&name), "read", error.into()))?);
    }
    Ok(marks)
}

fn name(store: &str, number: u64) -> String {
    format!("heads/{store}/{number:010}.json")
}

/// Reads the heads of a store out of a file that [`FileAnchor`] wrote. A line that a crash cut off
/// is no head.
///
/// # Errors
/// [`AuditError::Io`]; also for a line that is none.
pub fn marks(path: &Path, store: &str) -> Result<Vec<Mark>, AuditError> {
    let text = fs::read(path).map_err(|source| failed(path, "read", source))?;
    let mut marks = Vec::new();
    for line in text.split(|byte| *byte == b'\n') {
        match serde_json::from_slice::<Mark>(line) {
            Ok(mark) if mark.store == store => marks.push(mark),
            Ok(_) => {}
            Err(error) if error.is_eof() => {}
            Err(error) => return Err(failed(path, "read", error.into())),
        }
    }
    Ok(marks)
}

fn failed(path: &Path, what: &'static str, source: io::Error) -> AuditError {
    AuditError::Io { path: path.to_owned(), what, source }
}

/// How a log differs from what was kept of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    /// Its end was cut off.
    CutOff {
        /// First number that is missing.
        from: u64,
        /// Last number that was kept; more may be missing behind it.
        until: u64,
    },
    /// It was written anew, or its lines changed, somewhere between two kept heads.
    Rewritten {
        /// The last entry that is as it was kept; nothing if none is.
        after: Option<u64>,
        /// The first that is not.
        until: u64,
    },
}

/// Compares a log with the heads that were kept of it; nothing is wrong if it gives nothing.
///
/// # Errors
/// As [`Source::verify`].
pub fn compare(log: Source<'_>, marks: &[Mark]) -> Result<Option<Difference>, AuditError> {
    let mut marks: Vec<&Mark> = marks.iter().collect();
    marks.sort_by_key(|mark| mark.entry);
    let (mut at, mut after, mut changed, mut next) = (0, None, None, 0);
    log.read_hashed(None, &mut |entry: Entry, hash: &str| {
        next = entry.number + 1;
        while let Some(mark) = marks.get(at).filter(|mark| mark.entry <= entry.number) {
            let same = mark.entry == entry.number && mark.hash == hash;
            match same && changed.is_none() {
                true => after = Some(mark.entry),
                false => drop(changed.get_or_insert(mark.entry)),
            }
            at += 1;
        }
    })?;
    Ok(match (changed, marks.get(at..).and_then(|rest| rest.last())) {
        (Some(until), _) => Some(Difference::Rewritten { after, until }),
        (None, Some(mark)) => Some(Difference::CutOff { from: next, until: mark.entry }),
        (None, None) => None,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use wirevault_media::sim::SimObjects;
    use wirevault_telemetry::clock::ManualClock;

    use super::*;
    use crate::audit::{AuditLog, Event, Who};

    const STORE: &str = "07070707070707070707070707070707";

    fn log(folder: &Path) -> AuditLog {
        AuditLog::open(folder, Arc::new(ManualClock::new(1))).unwrap()
    }

    /// A log of six entries, of which heads were kept after the second and the fifth.
    fn anchored() -> (tempfile::TempDir, Vec<Mark>) {
        let dir = tempfile::tempdir().unwrap();
        let anchor = FileAnchor::new(&dir.path().join("marks"));
        let log = log(dir.path());
        for number in 0..6 {
            log.append(Who::Recorder, Event::Stopped).unwrap();
            if [1, 4].contains(&number) {
                let (entry, hash) = log.last().unwrap();
                let mark = Mark { store: STORE.into(), entry, hash, time_ns: 1 };
                anchor.keep(&mark).unwrap();
                anchor.keep(&Mark { store: "other".into(), ..mark }).unwrap();
            }
        }
        let path = dir.path().join("marks");
        let mut torn = fs::read(&path).unwrap();
        torn.extend_from_slice(b"{\"store\":");
        fs::write(&path, torn).unwrap();
        let marks = marks(&path, STORE).unwrap();
        assert_eq!(marks.iter().map(|mark| mark.entry).collect::<Vec<_>>(), [1, 4]);
        (dir, marks)
    }

    /// The next head stood behind half a line, and the file was an error from then on.
    #[test]
    fn a_head_behind_a_torn_line_made_the_file_useless() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("marks");
        let anchor = FileAnchor::new(&path);
        let mark = |entry| Mark { store: STORE.into(), entry, hash: "0a".into(), time_ns: 1 };
        anchor.keep(&mark(1)).unwrap();
        let whole = fs::read(&path).unwrap();
        for bytes in whole.len()..2 * whole.len() {
            fs::write(&path, &whole.repeat(2)[..bytes]).unwrap();
            anchor.keep(&mark(2)).unwrap();
            let kept: Vec<_> = marks(&path, STORE).unwrap().iter().map(|it| it.entry).collect();
            // Without its newline a line is whole.
            let expected: &[u64] = if bytes + 1 < 2 * whole.len() { &[1, 2] } else { &[1, 1, 2] };
            assert_eq!(kept, expected, "cut behind {bytes} bytes");
        }
        fs::write(&path, "something else\n").unwrap();
        assert!(marks(&path, STORE).is_err());
    }

    #[test]
    fn objects_are_numbered_through_and_read_back() {
        let objects = Arc::new(SimObjects::new());
        let mark = |entry| {
            let (store, hash) = (STORE.to_owned(), format!("{entry:064x}"));
            Mark { store, entry, hash, time_ns: 1 }
        };
        for start in 0..5 {
            // Each start has to find where the one before ended.
            let anchor = ObjectAnchor::new(objects.clone());
            (0..3).for_each(|number| anchor.keep(&mark(3 * start + number)).unwrap());
        }
        let kept = object_marks(&*objects, STORE).unwrap();
        assert_eq!(kept, (0..15).map(mark).collect::<Vec<_>>());
        assert!(object_marks(&*objects, "other").unwrap().is_empty());
    }

    fn keep_lines(dir: &tempfile::TempDir, count: usize) {
        let path = dir.path().join("audit-00000001.log");
        let text = fs::read_to_string(&path).unwrap();
        let kept: String = text.split_inclusive('\n').take(count).collect();
        fs::write(path, kept).unwrap();
    }

    #[test]
    fn an_end_that_was_cut_off_is_found_and_located() {
        let (dir, marks) = anchored();
        assert_eq!(compare(Source::Folder(dir.path()), &marks).unwrap(), None);
        keep_lines(&dir, 5);
        assert_eq!(
            compare(Source::Folder(dir.path()), &marks).unwrap(),
            None,
            "no head was kept of the last"
        );
        for count in (0..5).rev() {
            keep_lines(&dir, count);
            let expected = Difference::CutOff { from: count as u64, until: 4 };
            assert_eq!(compare(Source::Folder(dir.path()), &marks).unwrap(), Some(expected));
        }
    }

    #[test]
    fn a_log_that_was_made_anew_is_found_and_located() {
        for (kept, after) in [(3, Some(1)), (1, None)] {
            let (dir, marks) = anchored();
            keep_lines(&dir, kept);
            let log = log(dir.path());
            for number in kept..7 {
                let (request, why) = (number.to_string(), String::new());
                log.append(Who::Unknown, Event::Denied { request, why, others: 0 }).unwrap();
            }
            assert!(
                Source::Folder(dir.path()).verify(None).unwrap().faults.is_empty(),
                "it chains well"
            );
            let until = if kept == 3 { 4 } else { 1 };
            let expected = Difference::Rewritten { after, until };
            assert_eq!(compare(Source::Folder(dir.path()), &marks).unwrap(), Some(expected));
        }
    }
}
