//! The audit log: append-only, and every line chained to the one before it.
//!
//! # Format
//! A folder of files `audit-NNNNNNNN.log`, numbered from 1 without a hole, each of lines of text:
//!
//! ```text
//! HASH ENTRY\n
//! ```
//!
//! `ENTRY` is one JSON object (an [`Entry`]); `HASH`, 64 lower-case hex digits, is
//!
//! ```text
//! SHA-256( HASH of the line before ‖ one space ‖ ENTRY )
//! ```
//!
//! over the text as it stands. Before the very first line stand 64 zeros; the first line of a file
//! follows the last one of the file before. So a line is checked by hand with
//! `printf '%s %s' "$before" "$entry" | sha256sum`.
//!
//! # What that proves
//! Who knows the hash of a line knows that no earlier line was changed, removed or moved since.
//! Lines that are missing at the end are noticed only by who kept a newer hash: heads are kept
//! outside, see [`anchor`], and told in the system's log at each start and end. Somebody who may
//! write to the folder can make a whole new chain; its head is another one.
//!
//! # Durability
//! [`AuditLog::append`] returns when the line is on the disk (`fdatasync`). What a crash leaves of
//! a line was not answered for, and is cut off at the next opening, which is an entry of its own.
//!
//! Files: [`anchor`] (heads that are kept elsewhere), [`codes`] (heads with a code of a service, in
//! the log itself), [`entry`], [`mod@export`] (JSON lines with a proof), [`log`] (the writer),
//! [`mod@verify`] (the reader), `folder` (names and lines).

use std::path::{Path, PathBuf};

use crate::AuditError;

pub mod anchor;
pub mod codes;
pub mod entry;
pub mod export;
mod folder;
pub mod log;
#[cfg(test)]
mod tampering_tests;
pub mod verify;

pub use anchor::{Anchor, FileAnchor, Mark, ObjectAnchor};
pub use entry::{Entry, Event, Outcome, Who};
pub use export::export;
pub use log::AuditLog;
pub use verify::{Fault, FaultKind, Report, Source, bytes, read};

/// Name of the log's folder within the first volume of a store.
pub const FOLDER: &str = "audit";
/// Where the logs of stores are whose first volume is a device, a folder for each store's id.
pub const DEVICES_FOLDER: &str = "/var/lib/wirevault/audit";

/// The files of a log, oldest first; a folder that is not there holds none.
///
/// # Errors
/// The system's.
pub fn files(log: &Path) -> Result<Vec<PathBuf>, AuditError> {
    let numbers = folder::files(log)?;
    Ok(numbers.into_iter().map(|number| folder::path(log, number)).collect())
}

/// Folder of the log of a store: in its first volume if that is a directory.
pub fn folder_of(first_volume: &Path, store: &str) -> PathBuf {
    match first_volume.is_dir() {
        true => first_volume.join(FOLDER),
        false => Path::new(DEVICES_FOLDER).join(store),
    }
}
