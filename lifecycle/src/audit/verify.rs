//! Reading a log back and checking its chain.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::AuditError;
use crate::audit::entry::Entry;
use crate::audit::export;
use crate::audit::folder::{self, BEGINNING};

/// A log that is read.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// Where it is written: its folder.
    Folder(&'a Path),
    /// The file that [`export()`](super::export()) made of it.
    Export(&'a Path),
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Lines that are entries.
    pub entries: u64,
    /// Files.
    pub files: u32,
    /// Hash of the last line.
    pub head: String,
    /// Whether the hash asked for is that of a line; nothing if none was asked for.
    pub anchored: Option<bool>,
    /// Id of the store that the proof of an export names, hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// What is wrong, in the order of the lines. Empty: the log is whole.
    pub faults: Vec<Fault>,
}

/// A place where the chain is broken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The file.
    pub file: PathBuf,
    /// Line within it, from 1.
    pub line: u64,
    /// What is wrong there.
    pub kind: FaultKind,
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// It is no line of a log.
    Unreadable(String),
    /// Its text, or its place in the chain, is not the one that was written.
    Changed,
    /// Entries before it are missing: numbers `from` to `until`, both included.
    Missing {
        /// First number that is missing.
        from: u64,
        /// Last number that is missing.
        until: u64,
    },
    /// Its number was there before: it was moved, or put in.
    OutOfOrder {
        /// Its number.
        number: u64,
    },
    /// A part of a line at the end, as a crash leaves it.
    Torn,
    /// The proof of an export is not there, or not of what stands before it.
    Unproved(String),
}

impl Source<'_> {
    /// Checks all of it. `anchor` is a hash that was kept elsewhere: a line must have it.
    ///
    /// # Errors
    /// [`AuditError::None`] for a folder without a log, or the system's.
    pub fn verify(self, anchor: Option<&str>) -> Result<Report, AuditError> {
        self.read_hashed(anchor, &mut |_, _| ())
    }

    /// As [`Source::verify`], and gives out every entry on the way, with the hash of its line.
    pub(super) fn read_hashed(
        self,
        anchor: Option<&str>,
        sink: &mut dyn FnMut(Entry, &str),
    ) -> Result<Report, AuditError> {
        match self {
            Self::Folder(folder) => read_hashed(folder, anchor, sink),
            Self::Export(file) => export::read_hashed(file, anchor, sink),
        }
    }
}

/// The whole log as it stands, one file behind the other.
///
/// Errors: the system's.
pub fn bytes(folder: &Path) -> Result<Vec<u8>, AuditError> {
    let mut all = Vec::new();
    for number in folder::files(folder)? {
        all.extend(file_bytes(&folder::path(folder, number))?);
    }
    Ok(all)
}

pub(super) fn file_bytes(path: &Path) -> Result<Vec<u8>, AuditError> {
    fs::read(path).map_err(|source| AuditError::Io { path: path.into(), what: "read", source })
}

/// As [`Source::verify`], and gives out every entry on the way.
///
/// Errors: as [`Source::verify`].
pub fn read(
    folder: &Path,
    anchor: Option<&str>,
    sink: &mut dyn FnMut(Entry),
) -> Result<Report, AuditError> {
    read_hashed(folder, anchor, &mut |entry, _| sink(entry))
}

/// As [`read`], and gives out the hash of every line as well.
///
/// Errors: as [`Source::verify`].
pub fn read_hashed(
    folder: &Path,
    anchor: Option<&str>,
    sink: &mut dyn FnMut(Entry, &str),
) -> Result<Report, AuditError> {
    let files = folder::files(folder)?;
    if files.is_empty() {
        return Err(AuditError::None { path: folder.into() });
    }
    let mut check = Check::new(files.len() as u32, anchor, sink);
    for number in files {
        let path = folder::path(folder, number);
        let bytes = file_bytes(&path)?;
        for (line, text) in (1..).zip(bytes.split_inclusive(|byte| *byte == b'\n')) {
            if let Some(kind) = check.line(text) {
                check.report.faults.push(Fault { file: path.clone(), line, kind });
            }
        }
    }
    Ok(check.report)
}

/// A check on its way through the lines.
pub(super) struct Check<'a> {
    pub(super) report: Report,
    anchor: Option<&'a str>,
    next: u64,
    sink: &'a mut dyn FnMut(Entry, &str),
}

impl<'a> Check<'a> {
    pub(super) fn new(
        files: u32,
        anchor: Option<&'a str>,
        sink: &'a mut dyn FnMut(Entry, &str),
    ) -> Self {
        let (head, anchored) = (BEGINNING.to_owned(), anchor.map(|_| false));
        let report = Report { entries: 0, files, head, anchored, store: None, faults: Vec::new() };
        Self { report, anchor, next: 0, sink }
    }

    /// What is wrong with the next line. The check goes on from the hash that the line states, so
    /// that one fault is told once.
    pub(super) fn line(&mut self, text: &[u8]) -> Option<FaultKind> {
        let Some(text) = text.strip_suffix(b"\n") else { return Some(FaultKind::Torn) };
        let line = match folder::parse(text) {
            Ok(line) => line,
            Err(why) => return Some(FaultKind::Unreadable(why)),
        };
        let follows = folder::hash(&self.report.head, line.text) == line.hash;
        let (number, expected) = (line.entry.number, self.next);
        let fault = if number > expected {
            Some(FaultKind::Missing { from: expected, until: number - 1 })
        } else if number < expected {
            Some(FaultKind::OutOfOrder { number })
        } else {
            (!follows).then_some(FaultKind::Changed)
        };
        self.report.entries += 1;
        self.report.head = line.hash.to_owned();
        if self.anchor == Some(line.hash) {
            self.report.anchored = Some(true);
        }
        self.next = expected.max(number.saturating_add(1));
        (self.sink)(line.entry, line.hash);
        fault
    }
}
