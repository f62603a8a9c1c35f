//! What a deletion came to, for whoever has to prove it: an entry of the audit log, and the same
//! text as a file beside it.
//!
//! # Format
//! Folder `certificates` of the log's folder, a file `NNNNNNNN.json` for each deletion, named by
//! the number of its entry: a JSON object of [`Certificate`]. It is written to a file of another
//! name first, which is then renamed: it is there whole or not at all.
//!
//! A certificate is worth as much as the log: [`verify`] compares the file with the entry that has
//! its number and hash. Where the log's head is kept elsewhere, neither can be made afterwards.

use std::fs;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wirevault_format::table::SegmentEntry;

use crate::AuditError;
use crate::audit::{self, AuditLog, Event, Report, Who};
use crate::holds::replace;

/// Name of the folder within that of the audit log.
pub const FOLDER: &str = "certificates";

/// What was deleted, and how far that reaches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Erasure {
    /// Store id, hex.
    pub store: String,
    /// Number of the volume.
    pub volume: u16,
    /// The volume in words.
    pub path: String,
    /// Why: `rule NAME`, `by hand`, `volume retired`, or `begun before`, of what a crash or an
    /// error had left half done.
    pub reason: String,
    /// How far the forgetting of the keys reaches, `L0` to `L3`; nothing in a plain store: there
    /// the bytes were given back to the device, and that is all.
    pub level: Option<String>,
    /// Epoch of the key ring that no longer holds the keys; 0 where the ring itself is gone.
    pub epoch: u64,
    /// The segments.
    pub segments: Vec<Erased>,
}

/// A segment that is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Erased {
    /// Ordinal in the store.
    pub segment: u64,
    /// Life id, hex.
    pub life: String,
    /// Run, hex.
    pub run: String,
    /// Lane.
    pub lane: u16,
    /// Packets that were in it.
    pub packets: u64,
    /// Bytes that it took.
    pub bytes: u64,
    /// Packet time of the first and of the last packet, Unix ns.
    pub times_ns: Option<(u64, u64)>,
    /// When it was opened and closed, Unix ns.
    pub record_ns: (u64, u64),
    /// SHA-256 over its chunks as its footer stated it, hex; nothing if that did not read.
    pub chain: Option<String>,
    /// Name of the Parquet file with its flows that went with it; nothing if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flows: Option<String>,
}

/// A segment of which nobody can read the footer, and that has no flows.
impl From<&SegmentEntry> for Erased {
    fn from(entry: &SegmentEntry) -> Self {
        Self {
            segment: entry.ordinal,
            life: entry.life.to_string(),
            run: entry.run.to_string(),
            lane: entry.lane,
            packets: entry.packets,
            bytes: entry.file_bytes,
            times_ns: entry.times_ns,
            record_ns: (entry.opened_ns, entry.closed_ns),
            chain: None,
            flows: None,
        }
    }
}

/// A deletion as it stands in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Certificate {
    /// Number of its entry.
    pub entry: u64,
    /// Hash of its entry.
    pub hash: String,
    /// What was deleted.
    #[serde(flatten)]
    pub erasure: Erasure,
}

/// Writes a deletion down: into the log, and as a file. Durable on return.
///
/// # Errors
/// The system's.
pub fn certify(log: &AuditLog, who: Who, erasure: Erasure) -> Result<Certificate, AuditError> {
    let (entry, hash) = log.append_hashed(who, Event::Forgotten(erasure.clone()))?;
    let certificate = Certificate { entry, hash, erasure };
    save(log.folder(), &certificate)?;
    Ok(certificate)
}

fn save(log: &Path, certificate: &Certificate) -> Result<(), AuditError> {
    let name = log.join(FOLDER).join(format!("{:08}.json", certificate.entry));
    let failed = |source| AuditError::Io { path: name.clone(), what: "write", source };
    let mut text = serde_json::to_vec_pretty(certificate).map_err(|e| failed(e.into()))?;
    text.push(b'\n');
    replace(&name, &text).map_err(failed)
}

/// Makes the files of all certificates again from the log, and gives their number and what the
/// check of the log found on the way.
///
/// # Errors
/// As [`audit::Source::verify`]; a file cannot be written.
pub fn make_again(log: &Path) -> Result<(u64, Report), AuditError> {
    let (mut saved, mut count) = (Ok(()), 0);
    let report = audit::verify::read_hashed(log, None, &mut |entry, hash| {
        if let (Event::Forgotten(erasure), true) = (entry.event, saved.is_ok()) {
            let (entry, hash) = (entry.number, hash.to_owned());
            saved = save(log, &Certificate { entry, hash, erasure });
            count += 1;
        }
    })?;
    saved.map(|()| (count, report))
}

/// Paths of all certificates of a log, oldest first.
///
/// # Errors
/// The system's; a log without a certificate has none.
pub fn list(log: &Path) -> Result<Vec<PathBuf>, AuditError> {
    let folder = log.join(FOLDER);
    let failed = |source| AuditError::Io { path: folder.clone(), what: "list", source };
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let paths: Result<Vec<PathBuf>, _> = entries.map(|entry| entry.map(|it| it.path())).collect();
    let mut paths = paths.map_err(failed)?;
    paths.retain(|path| path.extension().is_some_and(|it| it == "json"));
    paths.sort_unstable();
    Ok(paths)
}

/// Reads a certificate.
///
/// # Errors
/// [`AuditError::Io`]; text that is none counts as unreadable.
pub fn read(path: &Path) -> Result<Certificate, AuditError> {
    let failed = |source| AuditError::Io { path: path.to_owned(), what: "read", source };
    let text = fs::read(path).map_err(failed)?;
    serde_json::from_slice(&text).map_err(|error| failed(error.into()))
}

/// Why a certificate is not what the log says; nothing if it is.
///
/// # Errors
/// As [`audit::Source::verify`].
pub fn verify(log: &Path, certificate: &Certificate) -> Result<Option<String>, AuditError> {
    let mut entry = None;
    let report = audit::read(log, Some(&certificate.hash), &mut |found| {
        if found.number == certificate.entry {
            entry = Some(found);
        }
    })?;
    let number = certificate.entry;
    Ok(if !report.faults.is_empty() {
        Some("the audit log is broken: see `wirevault audit verify`".to_owned())
    } else if report.anchored == Some(false) {
        Some(format!("no entry of the audit log has the hash {}", certificate.hash))
    } else {
        match entry.map(|entry| entry.event) {
            Some(Event::Forgotten(erasure)) if erasure == certificate.erasure => None,
            Some(_) => Some(format!("entry {number} of the audit log says something else")),
            None => Some(format!("the audit log has no entry {number}")),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use wirevault_telemetry::clock::ManualClock;

    use super::*;

    fn erasure() -> Erasure {
        Erasure {
            store: "07".repeat(16),
            volume: 0,
            path: "/store".into(),
            reason: "by hand".into(),
            level: Some("L0".into()),
            epoch: 7,
            segments: vec![Erased {
                segment: 3,
                life: "0a".repeat(16),
                run: "0b".repeat(8),
                lane: 1,
                packets: 100,
                bytes: 4096,
                times_ns: Some((1, 2)),
                record_ns: (1, 3),
                chain: Some("0c".repeat(32)),
                flows: None,
            }],
        }
    }

    #[test]
    fn a_certificate_is_what_the_log_says_or_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let log = AuditLog::open(dir.path(), Arc::new(ManualClock::new(1))).unwrap();
        assert!(list(dir.path()).unwrap().is_empty());
        log.append(Who::Recorder, Event::Stopped).unwrap();
        let made = certify(&log, Who::Recorder, erasure()).unwrap();
        log.append(Who::Recorder, Event::Stopped).unwrap();
        let paths = list(dir.path()).unwrap();
        assert_eq!(paths, [dir.path().join("certificates/00000001.json")]);
        let read = read(&paths[0]).unwrap();
        assert_eq!((&read, verify(dir.path(), &read).unwrap()), (&made, None));

        let refused = |certificate: &Certificate| verify(dir.path(), certificate).unwrap().unwrap();
        let mut other = made.clone();
        other.erasure.segments[0].packets = 99;
        assert!(refused(&other).contains("something else"));
        let other = Certificate { hash: "0".repeat(64), ..made.clone() };
        assert!(refused(&other).contains("no entry"));
        let other = Certificate { entry: 2, ..made };
        assert!(refused(&other).contains("something else"));
    }
}
