//! The one writer.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wirevault_telemetry::clock::Clock;

use crate::AuditError;
use crate::audit::entry::{Entry, Event, Who};
use crate::audit::folder::{self, BEGINNING};

/// A file that has so many bytes is followed by another: an editor still opens it.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// The log of a store, open for appending. Whoever opens it holds the store's lock.
pub struct AuditLog {
    folder: PathBuf,
    clock: Arc<dyn Clock>,
    file_bytes_max: u64,
    end: Mutex<End>,
    /// Hash of the last line. Its lock is not held while a line is written, which takes as long as
    /// the disk does, and those who show the head do not wait for that.
    head: Mutex<String>,
}

/// Where the next line goes.
struct End {
    file: File,
    /// Number of the file.
    number: u32,
    /// Bytes of whole lines. More may stand behind them after a failed append.
    len: u64,
    next: u64,
}

impl AuditLog {
    /// Opens the log in this folder, which is made if it is not there, with rights for its owner
    /// only.
    ///
    /// What a crash left of a line is cut off, and an entry says so. Only the newest file is read.
    ///
    /// Errors: the system's; [`AuditError::Damaged`] if the newest file's last line is none.
    pub fn open(folder: &Path, clock: Arc<dyn Clock>) -> Result<Self, AuditError> {
        let mut builder = fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(failed(folder, "make the folder"))?;
        let files = folder::files(folder)?;
        let number = files.last().copied().unwrap_or(1);
        let (file, path) = file(folder, number)?;
        let bytes = fs::read(&path).map_err(failed(&path, "read"))?;
        let len = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let (next, head) = match bytes[..len].strip_suffix(b"\n") {
            Some(lines) => last(lines, &path)?,
            // A crash between making a file and its first line.
            None if number > 1 => {
                let before = folder::path(folder, number - 1);
                let bytes = fs::read(&before).map_err(failed(&before, "read"))?;
                last(bytes.strip_suffix(b"\n").unwrap_or(&bytes), &before)?
            }
            None => (0, BEGINNING.to_owned()),
        };
        let log = Self {
            folder: folder.to_owned(),
            clock,
            file_bytes_max: FILE_BYTES_MAX,
            end: Mutex::new(End { file, number, len: len as u64, next }),
            head: Mutex::new(head),
        };
        if len < bytes.len() {
            log.append(Who::Recorder, Event::Cut { bytes: (bytes.len() - len) as u64 })?;
        }
        Ok(log)
    }

    /// Adds a line and returns its number when it is durable.
    ///
    /// Errors: the system's. Then nothing was added, and the next call tries again.
    pub fn append(&self, who: Who, event: Event) -> Result<u64, AuditError> {
        self.append_hashed(who, event).map(|(number, _)| number)
    }

    /// As [`AuditLog::append`], and gives the line's hash as well.
    ///
    /// Errors: as [`AuditLog::append`].
    pub fn append_hashed(&self, who: Who, event: Event) -> Result<(u64, String), AuditError> {
        let mut end = lock(&self.end);
        if end.len >= self.file_bytes_max {
            let number = end.number + 1;
            let (file, _) = file(&self.folder, number)?;
            (end.file, end.number, end.len) = (file, number, 0);
        }
        let number = end.next;
        let entry = Entry { number, time_ns: self.clock.unix_ns(), who, event };
        // It holds strings, numbers and JSON values: none of that fails to become JSON.
        let entry = serde_json::to_string(&entry).expect("an entry is JSON");
        let head = folder::hash(&self.head(), &entry);
        end.write(format!("{head} {entry}\n").as_bytes())
            .map_err(failed(&folder::path(&self.folder, end.number), "append"))?;
        end.next = number + 1;
        (*lock(&self.head)).clone_from(&head);
        Ok((number, head))
    }

    /// Number and hash of the last line; nothing while there is none.
    pub fn last(&self) -> Option<(u64, String)> {
        let end = lock(&self.end);
        Some((end.next.checked_sub(1)?, self.head()))
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Hash of the last line, 64 hex digits: who keeps it can tell later whether anything up to it
    /// was changed.
    pub fn head(&self) -> String {
        lock(&self.head).clone()
    }
}

impl End {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        // Cuts off what a crash or a failed append left there.
        self.file.set_len(self.len)?;
        self.file.write_all_at(line, self.len)?;
        self.file.sync_data()?;
        self.len += line.len() as u64;
        Ok(())
    }
}

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens or makes a file, so that its name is durable too.
fn file(folder: &Path, number: u32) -> Result<(File, PathBuf), AuditError> {
    let path = folder::path(folder, number);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(&path).map_err(failed(&path, "open"))?;
    let directory = File::open(folder).and_then(|folder| folder.sync_all());
    directory.map_err(failed(folder, "make a name durable"))?;
    Ok((file, path))
}

/// Number after, and hash of, the last of these lines.
fn last(lines: &[u8], path: &Path) -> Result<(u64, String), AuditError> {
    let begin = lines.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let line = folder::parse(&lines[begin..]).map_err(|why| {
        let before = lines.iter().filter(|byte| **byte == b'\n').count() as u64;
        AuditError::Damaged { path: path.into(), line: before + 1, why }
    })?;
    Ok((line.entry.number.saturating_add(1), line.hash.to_owned()))
}

fn failed(path: &Path, what: &'static str) -> impl Fn(io::Error) -> AuditError {
    let path = path.to_owned();
    move |source| AuditError::Io { path: path.clone(), what, source }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wirevault_telemetry::clock::ManualClock;

    use super::*;
    use crate::audit::verify::{Fault, FaultKind, Report, Source, read};

    fn open(folder: &Path, file_bytes_max: u64) -> AuditLog {
        let clock = Arc::new(ManualClock::new(1_700_000_000_000_000_000));
        AuditLog { file_bytes_max, ..AuditLog::open(folder, clock).expect("it opens") }
    }

    fn event(number: u64) -> Event {
        Event::Denied { request: number.to_string(), why: String::new(), others: 0 }
    }

    /// A log of so many entries, in several files.
    fn log(entries: u64) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for number in 0..entries {
            // Opened anew each time: a restart changes nothing.
            let log = open(folder.path(), 1000);
            assert_eq!(log.append(Who::Recorder, event(number)).expect("it appends"), number);
        }
        folder
    }

    fn check(folder: &tempfile::TempDir) -> Report {
        Source::Folder(folder.path()).verify(None).expect("a log")
    }

    fn lines(folder: &tempfile::TempDir) -> Vec<String> {
        let files = folder::files(folder.path()).expect("files");
        let text = |number| fs::read_to_string(folder::path(folder.path(), number)).expect("text");
        files
            .into_iter()
            .flat_map(|it| text(it).lines().map(str::to_owned).collect::<Vec<_>>())
            .collect()
    }

    /// Puts these lines in the place of the log.
    fn rewrite(folder: &tempfile::TempDir, lines: &[String]) {
        for number in folder::files(folder.path()).expect("files") {
            fs::remove_file(folder::path(folder.path(), number)).expect("it was there");
        }
        fs::write(folder::path(folder.path(), 1), lines.concat()).expect("written");
    }

    #[test]
    fn what_was_appended_is_read_back_over_files_and_restarts() {
        let folder = log(40);
        assert!(folder::files(folder.path()).expect("files").len() > 3);
        let mut entries = Vec::new();
        let report = read(folder.path(), None, &mut |entry| entries.push(entry)).expect("a log");
        assert_eq!((report.entries, report.faults), (40, vec![]));
        for (number, entry) in (0..).zip(&entries) {
            assert_eq!((entry.number, &entry.event), (number, &event(number)));
        }
        let last = lines(&folder).pop().expect("a line");
        assert_eq!(report.head, last.split_once(' ').expect("hash").0);
        assert_eq!(open(folder.path(), 1000).head(), report.head);
    }

    #[test]
    fn the_head_is_told_while_a_line_is_being_written() {
        let folder = log(3);
        let log = open(folder.path(), 1000);
        let _writing = lock(&log.end);
        assert_eq!(log.head(), check(&folder).head);
    }

    /// The line of the module's documentation, with a tool of somebody else.
    #[test]
    fn a_line_is_checked_by_hand() {
        let folder = log(3);
        let lines = lines(&folder);
        let (before, line) = (&lines[1], &lines[2]);
        let (hash, entry) = line.split_once(' ').expect("hash");
        let text = format!("{} {entry}", before.split_once(' ').expect("hash").0);
        let file = folder.path().join("text");
        fs::write(&file, text).expect("written");
        let output =
            std::process::Command::new("sha256sum").arg(&file).output().expect("coreutils");
        assert!(String::from_utf8_lossy(&output.stdout).starts_with(hash));
    }

    #[test]
    fn a_torn_line_is_cut_off_and_that_is_told() {
        let folder = log(5);
        let newest = *folder::files(folder.path()).expect("files").last().expect("one");
        let path = folder::path(folder.path(), newest);
        let whole = fs::read(&path).expect("read");
        fs::write(&path, [&whole[..], b"0123 {\"num"].concat()).expect("written");
        let torn = check(&folder).faults;
        assert!(matches!(&torn[..], [Fault { kind: FaultKind::Torn, .. }]), "{torn:?}");
        open(folder.path(), 1000);
        let mut entries = Vec::new();
        let report = read(folder.path(), None, &mut |entry| entries.push(entry)).expect("a log");
        assert_eq!((report.entries, report.faults), (6, vec![]));
        assert_eq!(entries[5].event, Event::Cut { bytes: 10 });
    }

    #[test]
    fn a_crash_before_the_first_line_of_a_file_leaves_no_hole() {
        let folder = log(5);
        let newest = *folder::files(folder.path()).expect("files").last().expect("one");
        File::create(folder::path(folder.path(), newest + 1)).expect("made");
        open(folder.path(), 1000).append(Who::Recorder, event(5)).expect("it appends");
        let report = check(&folder);
        assert_eq!((report.entries, report.faults), (6, vec![]));
    }

    #[test]
    fn a_foreign_line_at_the_end_is_refused_by_number() {
        let folder = log(2);
        let path = folder::path(folder.path(), 1);
        let whole = fs::read(&path).expect("read");
        fs::write(&path, [&whole[..], b"hello\n"].concat()).expect("written");
        let clock = Arc::new(ManualClock::new(1));
        let error = AuditLog::open(folder.path(), clock).err().expect("refused").to_string();
        assert!(error.contains("line 3") && error.contains("audit verify"), "{error}");
    }

    #[test]
    fn the_kept_head_tells_a_cut_log_from_a_whole_one() {
        let folder = log(6);
        let head = check(&folder).head;
        open(folder.path(), 1000).append(Who::Recorder, event(6)).expect("it appends");
        let anchored =
            |head: &str| Source::Folder(folder.path()).verify(Some(head)).expect("a log").anchored;
        assert_eq!(anchored(&head), Some(true));
        let lines: Vec<_> = lines(&folder).iter().take(5).map(|line| format!("{line}\n")).collect();
        rewrite(&folder, &lines);
        assert_eq!(check(&folder).faults, vec![]);
        assert_eq!(anchored(&head), Some(false));
    }

    #[test]
    fn a_log_that_is_not_there_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let absent = folder.path().join("audit");
        let error = Source::Folder(&absent).verify(None).expect_err("none").to_string();
        assert!(error.contains("holds no audit log"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Changed, removed, doubled, moved, or written anew with a hash that fits: it is found, at
        /// that line or at the one behind it.
        #[test]
        fn whatever_is_done_to_a_line_is_found_and_located(
            entries in 4u64..12, at in 0usize..11, kind in 0u8..6, byte in 0usize..200,
        ) {
            let folder = log(entries);
            let mut lines = lines(&folder);
            let at = at % (lines.len() - 1);
            match kind {
                0 => {
                    let mut bytes = std::mem::take(&mut lines[at]).into_bytes();
                    let byte = byte % bytes.len();
                    bytes[byte] = if bytes[byte] == b'1' { b'2' } else { b'1' };
                    lines[at] = String::from_utf8(bytes).expect("ASCII");
                }
                1 => drop(lines.remove(at)),
                2 => lines.insert(at, lines[at].clone()),
                3 => lines.swap(at, at + 1),
                4 => lines[at] = lines[at].replace("denied", "started"),
                _ => {
                    let before = at.checked_sub(1).map_or(BEGINNING, |at| &lines[at][..64]);
                    let entry = lines[at][65..].replace("\"request\":\"", "\"request\":\"9");
                    lines[at] = format!("{} {entry}", folder::hash(before, &entry));
                }
            }
            let lines: Vec<_> = lines.into_iter().map(|line| line + "\n").collect();
            rewrite(&folder, &lines);
            let report = check(&folder);
            let first = report.faults.first().map(|fault| fault.line as usize);
            prop_assert!(first == Some(at + 1) || first == Some(at + 2), "{at} {report:?}");
        }
    }
}
