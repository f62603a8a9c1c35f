//! The log as JSON lines, with a proof behind them: for whoever checks it elsewhere.
//!
//! # Format
//! One line an entry, in their order, then one line that says what was there:
//!
//! ```text
//! {"hash":HASH,"entry":ENTRY}
//! {"proof":{"store":ID,"entries":COUNT,"head":HASH,"whole":true,"time_ns":NS}}
//! ```
//!
//! `ENTRY` is the text of the log, byte for byte, so that the chain can be checked without the log
//! (see [`crate::audit`]). The proof tells a file that was cut off from a whole one; its head is
//! worth what the place is worth where heads are kept.

use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::AuditError;
use crate::audit::entry::Entry;
use crate::audit::folder;
use crate::audit::verify::{self, Check, Fault, FaultKind, Report, Source};

const BEFORE_HASH: &str = "{\"hash\":\"";
const BEFORE_ENTRY: &str = "\",\"entry\":";

/// What a log held when it was exported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Store id, hex.
    pub store: String,
    /// Lines that are entries.
    pub entries: u64,
    /// Hash of the last line.
    pub head: String,
    /// The chain was whole.
    pub whole: bool,
    /// When it was exported, Unix ns.
    pub time_ns: u64,
}

#[derive(Serialize, Deserialize)]
struct ProofLine {
    proof: Proof,
}

/// Writes a log out. Lines that are none are left out, and the report has them.
///
/// # Errors
/// As [`Source::verify`]; what `out` says, as the system's.
pub fn export(
    folder: &Path,
    store: &str,
    time_ns: u64,
    out: &mut dyn Write,
) -> Result<Report, AuditError> {
    let report = Source::Folder(folder).verify(None)?;
    let failed = |source| AuditError::Io { path: folder.to_owned(), what: "export", source };
    let bytes = verify::bytes(folder)?;
    for text in bytes.split(|byte| *byte == b'\n').filter(|text| !text.is_empty()) {
        if let Ok(line) = folder::parse(text) {
            let (hash, entry) = (line.hash, line.text);
            out.write_all(format!("{BEFORE_HASH}{hash}{BEFORE_ENTRY}{entry}}}\n").as_bytes())
                .map_err(failed)?;
        }
    }
    let (entries, head) = (report.entries, report.head.clone());
    let (store, whole) = (store.to_owned(), report.faults.is_empty());
    let proof = ProofLine { proof: Proof { store, entries, head, whole, time_ns } };
    let line = serde_json::to_string(&proof).map_err(io::Error::from).map_err(failed)?;
    out.write_all((line + "\n").as_bytes()).map_err(failed)?;
    Ok(report)
}

/// Checks a log that was exported, as [`verify::read_hashed`] checks one where it is.
///
/// # Errors
/// The system's.
pub(super) fn read_hashed(
    file: &Path,
    anchor: Option<&str>,
    sink: &mut dyn FnMut(Entry, &str),
) -> Result<Report, AuditError> {
    let bytes = verify::file_bytes(file)?;
    let mut check = Check::new(1, anchor, sink);
    let (mut proof, mut faults, mut lines) = (None, Vec::new(), 0);
    let fault = |line, kind| Fault { file: file.to_owned(), line, kind };
    for text in bytes.split_inclusive(|byte| *byte == b'\n') {
        lines += 1;
        if proof.is_some() {
            let what = "it stands behind the proof".to_owned();
            faults.push(fault(lines, FaultKind::Unreadable(what)));
        } else if let Ok(ProofLine { proof: found }) = serde_json::from_slice(text) {
            proof = Some(found);
        } else if let Some(kind) = check.line(&as_logged(text)) {
            faults.push(fault(lines, kind));
        }
    }
    let report = check.report;
    let store = proof.as_ref().map(|proof| proof.store.clone());
    let unproved = match proof {
        None => Some("it is not there".to_owned()),
        Some(proof) if (proof.entries, &proof.head) != (report.entries, &report.head) => {
            Some(format!("it speaks of {} entries up to {}", proof.entries, proof.head))
        }
        Some(proof) => {
            let was_broken = !proof.whole && faults.is_empty();
            was_broken.then(|| "the log was broken when it was exported".to_owned())
        }
    };
    faults.extend(unproved.map(|why| fault(lines, FaultKind::Unproved(why))));
    Ok(Report { faults, store, ..report })
}

/// The line as the log has it; as it stands if it is none of an export.
fn as_logged(text: &[u8]) -> Vec<u8> {
    let parts = std::str::from_utf8(text).ok().and_then(|text| {
        let (hash, entry) = text.strip_prefix(BEFORE_HASH)?.split_once(BEFORE_ENTRY)?;
        Some(format!("{hash} {}\n", entry.strip_suffix("}\n")?))
    });
    parts.map_or_else(|| text.to_vec(), String::into_bytes)
}
