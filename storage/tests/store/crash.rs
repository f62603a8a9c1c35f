//! Power cuts at every step of a workload, and at every step of the recovery from them.

use std::collections::HashMap;
use std::sync::Arc;

use wirevault_format::footer::{self, Footer};
use wirevault_format::section;
use wirevault_media::block::sim::DEVICE_FILE;
use wirevault_media::sim::SplitMix64;
use wirevault_media::{Fault, Media, OpenMode, SimMedia, Survival, Trigger};

use crate::checks::*;
use crate::support::*;
use crate::watched::{Sync, without};
use crate::workload::workload;

/// Survivals that are tried for each cut.
const SURVIVALS: u64 = 3;
const QUOTA_SEGMENTS: u64 = 5;
/// Label, tables, and six places.
const DEVICE_BYTES: u64 = 10 << 20;

/// What a store is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    Directory,
    Device,
}

impl On {
    /// An empty disk.
    fn empty(self) -> SimMedia {
        disk_for((self == Self::Device).then_some(DEVICE_BYTES))
    }
}

fn disk(on: On, sealed: bool) -> SimMedia {
    let media = on.empty();
    let tables = 3 << 20;
    make(&media, sealed, tables + QUOTA_SEGMENTS * SEGMENT_BYTES, 6).unwrap();
    // What the making of the store did is durable; count from here.
    media.crash_as(Survival::Nothing, 0)
}

/// Operations of a whole workload.
fn operations(on: On, sealed: bool, seed: u64, lose: Option<Sync>) -> u64 {
    let media = disk(on, sealed);
    workload(&media, &through(&media, lose), seed, &mut Ledger::default()).unwrap();
    let evicted = offline_catalog(&media).unwrap().evicted_live_ns;
    assert!(evicted > 0, "the workload makes the quota give segments up");
    media.counts().operations
}

fn through(media: &SimMedia, lose: Option<Sync>) -> Arc<dyn Media> {
    match lose {
        None => volume_of(media),
        Some(lose) => without(lose, media),
    }
}

/// The disk of a workload that was cut at operation `n`, and what it had promised by then.
fn cut_at(on: On, sealed: bool, seed: u64, n: u64, lose: Option<Sync>) -> (SimMedia, Ledger) {
    let media = disk(on, sealed);
    media.inject(Trigger::Operation(n), Fault::PowerCut);
    let mut ledger = Ledger::default();
    let result = workload(&media, &through(&media, lose), seed, &mut ledger);
    assert!(result.is_err() && media.power_is_cut(), "operation {n}: {result:?}");
    (media, ledger)
}

fn cut_everywhere(on: On, sealed: bool, seed: u64) {
    let operations = operations(on, sealed, seed, None);
    let mut tried = 0;
    for n in 1..=operations {
        let (media, ledger) = cut_at(on, sealed, seed, n, None);
        for survival in 0..SURVIVALS {
            let found = media.crash(n * SURVIVALS + survival);
            if let Err(why) = check_after_crash(&found, &ledger) {
                panic!("workload {seed}, cut {n}, survival {survival}: {why}");
            }
            tried += 1;
        }
    }
    println!(
        "{on:?}, sealed {sealed}, workload {seed}: {tried} crashes at {operations} operations"
    );
}

#[test]
fn a_sealed_store_survives_a_cut_at_every_operation() {
    cut_everywhere(On::Directory, true, 1);
}

#[test]
fn a_plain_store_survives_a_cut_at_every_operation() {
    cut_everywhere(On::Directory, false, 2);
}

#[test]
fn a_sealed_store_on_a_device_survives_a_cut_at_every_operation() {
    cut_everywhere(On::Device, true, 1);
}

#[test]
fn a_plain_store_on_a_device_survives_a_cut_at_every_operation() {
    cut_everywhere(On::Device, false, 2);
}

#[test]
fn recovery_survives_a_cut_at_every_operation() {
    cut_recovery_everywhere(On::Directory);
}

#[test]
fn recovery_on_a_device_survives_a_cut_at_every_operation() {
    cut_recovery_everywhere(On::Device);
}

fn cut_recovery_everywhere(on: On) {
    let seed = 3;
    let operations = operations(on, true, seed, None);
    let mut rng = SplitMix64::new(9);
    let (mut cuts, mut workloads) = (0, 0);
    // A device has more bytes to copy and to look through for each crash; what is new with it is
    // that places keep what they held.
    let step = if on == On::Device { 131 } else { 11 };
    for n in (5..=operations).step_by(step) {
        let (media, ledger) = cut_at(on, true, seed, n, None);
        let survival = rng.next_u64();
        let whole = media.crash(survival);
        drop(open(&whole, clock()).unwrap());
        for at in 1..=whole.counts().operations {
            let first = media.crash(survival);
            first.inject(Trigger::Operation(at), Fault::PowerCut);
            let interrupted = open(&first, clock()).map(|_| ());
            assert!(interrupted.is_err(), "cut {n}: recovery hides the power cut at {at}");
            let second = first.crash(rng.next_u64());
            same_salt_same_bytes(&first.crash_as(Survival::Everything, 0), &second);
            if let Err(why) = check_after_crash(&second, &ledger) {
                panic!("workload cut {n}, recovery cut {at}: {why}");
            }
            same_salt_same_bytes(&first.crash_as(Survival::Everything, 0), &second);
            cuts += 1;
        }
        workloads += 1;
    }
    println!("{cuts} crashes of the recovery from {workloads} crashes");
}

/// A record that is sealed again gets another salt: the same salt over other bytes would be the
/// same key and nonce twice.
fn same_salt_same_bytes(before: &SimMedia, after: &SimMedia) {
    let old = records(before);
    for (salt, block) in records(after) {
        if let Some(other) = old.get(&salt) {
            assert_eq!(*other, block, "a salt was used twice");
        }
    }
}

/// Index blocks and footers of all segment files, whole ones only, by salt.
fn records(media: &SimMedia) -> HashMap<[u8; 16], Vec<u8>> {
    let mut records = HashMap::new();
    let segments = |name: &&String| name.ends_with(".pcapng") || *name == DEVICE_FILE;
    for name in media.list().unwrap().iter().filter(segments) {
        let file = media.open(name, OpenMode::Read).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        for at in (0..bytes.len()).step_by(4) {
            if let Ok(part) = section::decode(&bytes[at..]) {
                records.insert(part.salt, bytes[at..at + part.block_bytes].to_vec());
            }
            if at % 4096 == 0
                && bytes.len() >= at + 4096
                && Footer::decode(&bytes[at..at + 4096]).is_ok()
            {
                let page = &bytes[at..at + 4096];
                let (_, salt, _) = footer::seal_of(page);
                records.insert(salt, page.to_vec());
            }
        }
    }
    records
}

#[test]
fn making_a_store_survives_a_cut_at_every_operation() {
    cut_making_everywhere(On::Directory);
    cut_making_everywhere(On::Device);
}

fn cut_making_everywhere(on: On) {
    let make = |media: &SimMedia| make(media, true, 8 << 20, 6);
    let whole = on.empty();
    make(&whole).unwrap();
    for n in 1..=whole.counts().operations {
        let media = on.empty();
        media.inject(Trigger::Operation(n), Fault::PowerCut);
        make(&media).unwrap_err();
        for survival in 0..20 {
            let found = media.crash(survival);
            match open(&found, clock()) {
                Ok((store, report)) => {
                    assert!(report.is_clean());
                    assert_eq!(store.id(), STORE);
                }
                // No superblock, or a torn one: the store was never there. It can be made again
                // in the first case, and asks for another directory in the second, or for a
                // formatting where half a label stands on a device.
                Err(_) => match make(&found) {
                    Ok(()) => drop(open(&found, clock()).unwrap()),
                    Err(error) => {
                        let text = error.to_string();
                        let torn = text.contains("does not decode");
                        assert!(torn || text.contains("`wirevault volume format"), "{text}");
                    }
                },
            }
        }
    }
}

/// Leaves out all syncs of one kind, as if the line were deleted from the code: some cut must show
/// it. A lost sync of the key ring never shows, because a later sync of the same file covers it
/// before the last of the older spares is used up.
#[test]
fn every_kind_of_sync_is_needed() {
    let seed = 1;
    for lose in Sync::ALL {
        let operations = operations(On::Directory, true, seed, Some(lose));
        let mut tried = 0;
        let noticed =
            (1..=operations).flat_map(|n| (0..2).map(move |s| (n, s))).find_map(|(n, s)| {
                tried += 1;
                let (media, ledger) = cut_at(On::Directory, true, seed, n, Some(lose));
                check_after_crash(&media.crash(2 * n + s), &ledger).err()
            });
        println!("without the sync of {lose:?}, crash {tried}: {noticed:?}");
        assert!(noticed.is_some() || lose == Sync::Ring, "nothing misses the sync of {lose:?}");
    }
}

#[test]
fn one_writer_at_a_time() {
    let media = disk(On::Device, false);
    let first = open(&media, clock()).unwrap();
    assert!(open(&media, clock()).err().unwrap().is_locked());
    drop(first);
    let media = disk(On::Directory, false);
    let first = open(&media, clock()).unwrap();
    assert!(open(&media, clock()).err().unwrap().is_locked());
    drop(first);
    open(&media, clock()).unwrap();
}
