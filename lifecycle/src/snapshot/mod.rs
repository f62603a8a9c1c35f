//! Checkpoints of a recorder's state: what is not on its volumes, or dies with them.
//!
//! State is small: the configuration, the audit log, the list of holds, and the catalog of segments
//! (which there are, when, how large). No key is part of it, wrapped or not: a copy of a folder of
//! checkpoints would otherwise outlive every deletion.
//!
//! # Format
//! A folder of two kinds of files, which are written once and never changed:
//!
//! ```text
//! piece-SHA256                   bytes of state, at most PIECE_BYTES, named by their hash
//! checkpoint-STORE-NNNNNNNN      one line of JSON (a Manifest), then SHA256 of that line, hex
//! ```
//!
//! A manifest names its files, each a list of pieces. Pieces that did not change since are not
//! written again: an audit log and a segment table grow and change in few of theirs.
//!
//! # Every instant of the folder is a backup
//! Pieces are durable before the manifest that names them is begun, and a manifest is durable
//! before one that it follows is removed, which is before the pieces that nobody names any more
//! are. So whatever instant a copy was taken at, by a snapshot of the block device or by a slow
//! `cp`, the newest checkpoint in it that is whole is no older than the last one that was answered
//! for before the copy began, as long as fewer than `keep` were taken meanwhile. A torn manifest or
//! piece does not fit its hash and counts as absent.
//!
//! One process writes a folder at a time; several stores may share it, one after the other.
//!
//! Files: `write` (taking, removing old ones), `read` (finding the newest whole one),
//! `restore` (putting state back).

#[cfg(test)]
mod crash_tests;
pub mod read;
pub mod restore;
pub mod write;

use std::io;

use serde::{Deserialize, Serialize};
use wirevault_seal::chain::Chain;

use crate::{AuditError, hex};

pub use read::{Checkpoint, list, newest};
pub use restore::{LostCatalog, Restored, lost, restore, restore_config, state};
pub use write::{Content, Snapshots, StateFile};

/// Bytes of a piece at most. A day of audit log at a question a minute is three of them; the table
/// of 100,000 segments is 50.
pub const PIECE_BYTES: usize = if cfg!(test) { 1 << 10 } else { 256 << 10 };
/// Version of the manifest.
const VERSION: u32 = 1;
/// Name of the configuration within a checkpoint.
pub const CONFIG: &str = "config.yaml";
/// Name of the catalog of segments within a checkpoint.
pub const CATALOG: &str = "catalog";

const PIECE: &str = "piece-";
const CHECKPOINT: &str = "checkpoint-";

/// What a checkpoint holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    version: u32,
    /// Store id, hex.
    pub store: String,
    /// Its number: counts from 1 in a folder.
    pub number: u64,
    /// When it was taken, Unix ns.
    pub time_ns: u64,
    /// Release of the program that took it.
    pub program: String,
    /// Its files.
    pub files: Vec<FileEntry>,
}

/// A file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
    /// SHA-256 of its pieces in order, hex. All but the last have [`PIECE_BYTES`].
    pub pieces: Vec<String>,
}

impl Manifest {
    /// Bytes of all its files.
    pub fn bytes(&self) -> u64 {
        // What a manifest says of itself is not checked before its pieces are read.
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes))
    }

    /// The file of this name.
    pub fn file(&self, name: &str) -> Option<&FileEntry> {
        self.files.iter().find(|file| file.name == name)
    }

    fn name(&self) -> String {
        name_of(&self.store, self.number)
    }

    fn encode(&self) -> Vec<u8> {
        // It holds strings and numbers: none of that fails to become JSON.
        let mut text = serde_json::to_string(self).expect("a manifest is JSON");
        let hash = hash(text.as_bytes());
        text += &format!("\n{hash}\n");
        text.into_bytes()
    }

    /// Reads a manifest. Errors: why it is none.
    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
        let mut lines = text.lines();
        let (Some(line), Some(found)) = (lines.next(), lines.next()) else {
            return Err("it is cut off".into());
        };
        if hash(line.as_bytes()) != found {
            return Err("its hash does not fit".into());
        }
        let manifest: Self = serde_json::from_str(line).map_err(|error| error.to_string())?;
        match manifest.version {
            VERSION => Ok(manifest),
            newer => Err(format!("it has version {newer}; this release knows {VERSION}")),
        }
    }
}

/// What can go wrong with checkpoints.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The folder cannot be read or written.
    #[error("checkpoints in {folder}: cannot {what}: {source}")]
    Io {
        /// The folder.
        folder: String,
        /// What was tried.
        what: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Nothing in the folder can be restored.
    #[error("{folder} holds no whole checkpoint{}; `wirevault snapshot list` shows what there is",
            wanted.as_ref().map_or(String::new(), |wanted| format!(" {wanted}")))]
    None {
        /// The folder.
        folder: String,
        /// Which one was wanted, if a certain one was.
        wanted: Option<String>,
    },
    /// Bytes of a checkpoint are not those that were written.
    #[error("checkpoint {number} in {folder}: {what}; restore another one with `--checkpoint`")]
    Damaged {
        /// The folder.
        folder: String,
        /// Number of the checkpoint.
        number: u64,
        /// What is wrong.
        what: String,
    },
    /// What would be restored is there already.
    #[error("{there} is there already; move it away first, a restore replaces nothing")]
    Exists {
        /// The file.
        there: String,
    },
    /// The audit log cannot be read or written.
    #[error(transparent)]
    Audit(#[from] AuditError),
}

fn name_of(store: &str, number: u64) -> String {
    format!("{CHECKPOINT}{store}-{number:08}")
}

/// Store and number in the name of a manifest. A number of more digits is none of ours, and would
/// leave none for the next one.
fn parse_name(name: &str) -> Option<(&str, u64)> {
    let (store, number) = name.strip_prefix(CHECKPOINT)?.rsplit_once('-')?;
    let digits = number.len() == 8 && number.bytes().all(|byte| byte.is_ascii_digit());
    Some((store, digits.then(|| number.parse().ok())??))
}

/// SHA-256, hex.
fn hash(bytes: &[u8]) -> String {
    let mut chain = Chain::new();
    chain.add(bytes);
    hex::encode(&chain.finish())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use wirevault_media::{Media, SimMedia};

    use super::*;

    #[test]
    fn a_number_that_leaves_none_for_the_next_is_nobodys() {
        let media = SimMedia::new();
        media.preload(&format!("{CHECKPOINT}5f0c-{}", u64::MAX), b"");
        let media: Arc<dyn Media> = Arc::new(media);
        assert!(list(&*media).unwrap().is_empty());
        let mut snapshots = Snapshots::open(media, "5f0c", 2).unwrap();
        assert_eq!(snapshots.take(&[], 1, "t").unwrap().number, 1);
    }

    #[test]
    fn bytes_of_a_manifest_that_lies_are_no_overflow() {
        let file = || FileEntry { name: "a".into(), bytes: u64::MAX, pieces: Vec::new() };
        let (store, program, files) = ("5f0c".into(), "t".into(), vec![file(), file()]);
        let lies = Manifest { version: VERSION, store, number: 1, time_ns: 0, program, files };
        assert_eq!(lies.bytes(), u64::MAX);
    }
}
