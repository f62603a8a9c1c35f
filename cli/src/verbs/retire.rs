//! `wirevault volume retire`: the end of a volume, and what of it stands in the audit log.
//!
//! ```text
//!  lock ─► entry `retired` ─► tables, keys ─► the rest ─► entries `forgotten`, certificates
//! ```
//! Tables, keys and digests are written over. The rest is left to the device: the entry says what
//! it was asked for, the last lines say what it did.
//!
//! The store may be gone, or work on without this volume under a recorder that has its log. Then
//! the volume is ended all the same, and it is told why nothing is written down.

use std::path::Path;
use std::sync::Arc;

use wirevault_daemon::lifecycle::Notes;
use wirevault_daemon::volumes::devices::{Erase, Eraser};
use wirevault_format::StoreId;
use wirevault_format::table::SegmentState;
use wirevault_index::{KeySource, Volume};
use wirevault_lifecycle::audit::{self, Event};
use wirevault_lifecycle::certificate::{Erased, Erasure};
use wirevault_media::{BlockMedia, Lock, open_volume};

use super::delete;
use super::volume::{Content, Emptied, erase, refused, uses};
use crate::args::EraseHow;
use crate::error::CliError;
use crate::outcome::Outcome;
use crate::output::{put, tell};

/// What certificates of a retired volume give as the reason.
const REASON: &str = "volume retired";
/// Segments in one certificate.
const OF_ONE: usize = 1024;
/// How far it reaches that the volume's key ring was overwritten: copies of it, and the key, may be
/// anywhere.
const LEVEL: &str = "L0";
/// How the rest is erased unless the device erases itself, as the log has it.
const DISCARD: &str = "discard asked for";
/// What became of the rest then.
const DISCARDED: &str = "discarded";
const KEPT: &str = "kept: the device takes no such order";

/// The log of the volume's store, and the lock of the store's first volume.
struct Log {
    notes: Notes,
    _lock: Option<Lock>,
}

/// Ends a volume: its tables and keys go first, then the rest. What the device then still holds
/// makes the outcome incomplete.
pub(super) fn retire(path: &Path, store: StoreId, how: EraseHow) -> Result<Outcome, CliError> {
    if let Some(it) = uses(path)?.first() {
        return Err(refused(path, &format!("it {it}; end that use first")));
    }
    match Content::of(path) {
        Content::Volume(found, ..) if found == store => {}
        content => {
            let why = format!("{}; no volume of store {store} is known there", content.sentence());
            return Err(refused(path, &why));
        }
    }
    // What the device does not offer is told before anything is erased.
    let eraser = match how {
        EraseHow::Discard => None,
        EraseHow::Format => Some(Eraser::make(path, Erase::Format)?),
        EraseHow::Sanitize => Some(Eraser::make(path, Erase::Sanitize)?),
    };
    let volume = Volume::read(Arc::new(BlockMedia::open(path)?), &KeySource::Recorded)?;
    let log = log_of(&volume)?;
    let how = eraser.as_ref().map_or(DISCARD, Eraser::name);
    let gone = erasures(&volume);
    let announce = || match &log {
        Err(_) => Ok(()),
        Ok(log) => Ok(log.notes.write(Event::Retired {
            volume: volume.superblock.number,
            path: volume.media.describe(),
            segments: gone.iter().map(|it| it.segments.len() as u64).sum(),
            how: how.to_owned(),
        })?),
    };
    let Emptied { discarded, sampled } = erase(path, eraser.as_ref(), announce)?;
    // What a device discards it need not read as zeros.
    let (rest, is_gone) = match &eraser {
        Some(eraser) => (eraser.name(), true),
        None if discarded => (DISCARDED, sampled.other == 0),
        None => (KEPT, false),
    };
    put(&format!(
        "{} is no volume any more. Its tables and its keys were overwritten; the rest: {rest}. Of \
         {} blocks that were read afterwards {} hold zeros. Store {store} does not open for \
         writing any more; its other volumes still answer\n",
        path.display(),
        sampled.zeros + sampled.other,
        sampled.zeros
    ))?;
    match log {
        Err(why) => tell(&format!("it stands in no audit log, and nothing certifies it: {why}")),
        Ok(_) if gone.is_empty() => tell("it held no closed segment: there is nothing to certify"),
        Ok(_) if !is_gone && !volume.superblock.sealed => {
            tell("what a plain volume held is still on the device: nothing is certified");
        }
        Ok(log) => {
            for erasure in gone {
                put(&delete::line(&log.notes.certify(erasure)?))?;
            }
        }
    }
    Ok(if is_gone { Outcome::Found } else { Outcome::Incomplete })
}

/// The log of a volume's store, or why there is none to write to.
///
/// Errors: it is there, and does not open.
fn log_of(volume: &Volume) -> Result<Result<Log, String>, CliError> {
    let superblock = &volume.superblock;
    let first = Path::new(superblock.volume_paths.first().map_or("", String::as_str));
    let folder = audit::folder_of(first, &superblock.store.to_string());
    if audit::files(&folder)?.is_empty() {
        let there = folder.display();
        return Ok(Err(format!("the store's log would be in {there}, and is not there")));
    }
    // Whoever has the first volume has the log.
    let lock = match superblock.number {
        0 => None,
        _ => match open_volume(first).and_then(|first| first.lock()) {
            Ok(lock) => Some(lock),
            Err(error) => return Ok(Err(error.to_string())),
        },
    };
    Ok(Ok(Log { notes: Notes::open(first, superblock.store)?, _lock: lock }))
}

/// What goes with a volume.
fn erasures(volume: &Volume) -> Vec<Erasure> {
    let superblock = &volume.superblock;
    let closed = volume.segments.entries.iter().filter(|it| it.state == SegmentState::Closed);
    let gone: Vec<Erased> = closed.map(Erased::from).collect();
    let of = |segments: &[Erased]| Erasure {
        store: superblock.store.to_string(),
        volume: superblock.number,
        path: volume.media.describe(),
        reason: REASON.to_owned(),
        level: superblock.sealed.then(|| LEVEL.to_owned()),
        epoch: 0,
        segments: segments.to_vec(),
    };
    gone.chunks(OF_ONE).map(of).collect()
}
