//! Power cuts at every step of taking and removing checkpoints.

use std::sync::Arc;

use wirevault_media::{Fault, SimMedia, Trigger};

use super::read::content;
use super::*;

/// Survivals that are tried for each cut.
const SURVIVALS: u64 = 4;
const CHECKPOINTS: u64 = 6;
const STORE: &str = "5f0c";

/// State that changes a little from checkpoint to checkpoint.
fn state(number: u64) -> Vec<StateFile> {
    let log: String = (0..number * 30).map(|line| format!("entry {line}\n")).collect();
    let mut table = vec![7; 3 * PIECE_BYTES];
    table[PIECE_BYTES + number as usize] = 8;
    let whole = |name: &str, bytes: Vec<u8>| StateFile {
        name: name.to_owned(),
        content: Content::Whole(bytes),
    };
    vec![whole("log", log.into_bytes()), whole(CATALOG, table), whole(CONFIG, b"same".to_vec())]
}

/// Takes checkpoints until it is done or cut off, and tells the last one that was answered for.
fn work(media: &SimMedia) -> (u64, Result<(), SnapshotError>) {
    let mut promised = 0;
    let mut work = || {
        let mut snapshots = Snapshots::open(Arc::new(media.clone()), STORE, 2)?;
        for _ in 0..CHECKPOINTS {
            let number = snapshots.next();
            promised = snapshots.take(&state(number), number, "t")?.number;
            snapshots.prune()?;
        }
        Ok(())
    };
    let result = work();
    (promised, result)
}

/// What is found holds the promised checkpoint or a newer one, byte for byte.
fn check(found: &SimMedia, promised: u64, when: &str) -> Option<u64> {
    let manifest = match newest(found, Some(STORE), None) {
        Ok(manifest) => manifest,
        Err(error) if promised == 0 => {
            assert!(matches!(error, SnapshotError::None { .. }), "{when}: {error}");
            return None;
        }
        Err(error) => panic!("{when}: {promised} was promised, {error}"),
    };
    assert!(manifest.number >= promised, "{when}: {} of {promised}", manifest.number);
    for file in state(manifest.number) {
        let entry = manifest.file(&file.name).expect("a file of the state");
        let bytes = content(found, &manifest, entry).expect("whole");
        let Content::Whole(expected) = file.content else { unreachable!("state of bytes") };
        assert_eq!(bytes, expected, "{when}: {}", file.name);
    }
    Some(manifest.number)
}

#[test]
fn a_cut_at_every_operation_leaves_the_last_checkpoint_or_a_newer_one() {
    let whole = SimMedia::new();
    work(&whole).1.expect("nothing goes wrong");
    let operations = whole.counts().operations;
    assert!(operations > 60, "{operations}");
    for n in 1..=operations {
        let media = SimMedia::new();
        media.inject(Trigger::Operation(n), Fault::PowerCut);
        let (promised, result) = work(&media);
        assert!(result.is_err() && media.power_is_cut(), "operation {n}");
        for survival in 0..SURVIVALS {
            let found = media.crash(n * SURVIVALS + survival);
            let when = format!("cut {n}, survival {survival}");
            let newest = check(&found, promised, &when);
            // Whoever goes on there takes further ones, with numbers that were never used.
            let (last, result) = work(&found);
            result.unwrap_or_else(|error| panic!("{when}: {error}"));
            assert!(last >= newest.unwrap_or(0) + CHECKPOINTS, "{when}");
            check(&found, last, &when);
        }
    }
}

#[test]
fn a_failing_disk_fails_the_checkpoint_and_spares_the_others() {
    let whole = SimMedia::new();
    work(&whole).1.expect("nothing goes wrong");
    for fault in [Fault::Eio, Fault::Enospc] {
        for n in 1..=whole.counts().operations {
            let media = SimMedia::new();
            media.inject(Trigger::Operation(n), fault);
            let (promised, result) = work(&media);
            assert!(result.is_err(), "operation {n}, {fault:?}");
            check(&media, promised, &format!("operation {n}, {fault:?}"));
        }
    }
}

/// All checkpoints of the folder are whole.
pub(super) fn check_all(media: &SimMedia) {
    for checkpoint in list(media).expect("a list") {
        let manifest = checkpoint.manifest.expect("a manifest");
        read::check(media, &manifest).expect("whole");
    }
}
