//! Quota, reserve and budgets under anything that happens to a recorder left alone: chunks of all
//! sizes, others who fill the disk and empty it again, restarts and crashes, clocks that jump.
//! After every opening it is checked that nothing is over its limit, that what went was the oldest,
//! and that without the last one that went there would have been no room.

use std::sync::Arc;

use wirevault_format::footer::CloseReason;
use wirevault_format::table::{SegmentEntry, SegmentState};
use wirevault_media::sim::SplitMix64;
use wirevault_media::{Media, OpenMode, SimMedia};
use wirevault_storage::{Budget, SEGMENTS_PER_BUDGET_LANE, Store};

use crate::checks::check_quota;
use crate::support::*;

const LANES: u16 = 2;
const DISK_BYTES: u64 = 24 << 20;
const RESERVE_PERCENT: u8 = 10;
const RESERVE_BYTES: u64 = DISK_BYTES / 10;
/// Closed segments that the reserve leaves in any case.
const KEPT: usize = 4;
/// Lane 1 may hold no more.
const BUDGET_BYTES: u64 = SEGMENTS_PER_BUDGET_LANE * SEGMENT_BYTES;
const STEPS: usize = 60;

/// A disk that others use, too.
struct Shared {
    media: SimMedia,
    foreign: u64,
}

impl Shared {
    fn free_bytes(&self) -> u64 {
        self.media.free_bytes().unwrap()
    }

    /// Somebody else's files have so many bytes from now on, if there is room.
    fn fill(&mut self, bytes: u64) {
        self.empty();
        let bytes = bytes.min(self.free_bytes());
        let file = self.media.open("somebody.else", OpenMode::Create).unwrap();
        file.allocate(bytes).unwrap();
        file.sync().unwrap();
        self.media.sync_dir().unwrap();
        self.foreign = bytes;
    }

    fn empty(&mut self) {
        if self.media.list().unwrap().iter().any(|name| name == "somebody.else") {
            self.media.remove("somebody.else").unwrap();
            self.media.sync_dir().unwrap();
        }
        self.foreign = 0;
    }
}

fn entries(store: &Store) -> Vec<SegmentEntry> {
    store.catalog(START_NS).segments.iter().map(|it| it.entry.clone()).collect()
}

fn start(media: &SimMedia, ledger: Ledger, now_ns: u64) -> Recorder {
    let clock = clock();
    clock.set_unix_ns(now_ns);
    let (mut store, _) = open(media, Arc::clone(&clock)).unwrap();
    store.set_reserve(RESERVE_PERCENT);
    store.set_budgets(vec![Budget { lanes: 1..2, bytes: BUDGET_BYTES }]).unwrap();
    Recorder::start(store, clock, ledger, LANES).ok().unwrap()
}

fn lane_bytes(entries: &[SegmentEntry], lane: u16) -> u64 {
    let bytes = |entry: &SegmentEntry| match entry.state {
        SegmentState::Closed => entry.file_bytes,
        _ => SEGMENT_BYTES,
    };
    entries.iter().filter(|entry| entry.lane == lane).map(bytes).sum()
}

/// Opens a segment and checks what went for it. Open segments are not in the catalog.
fn open_checked(disk: &Shared, recorder: &mut Recorder, lane: usize) -> bool {
    let before = entries(&recorder.store);
    let status = recorder.store.status().volumes[0].clone();
    let mine_open = |recorder: &Recorder| u64::from(recorder.is_open(1));
    let (free_before, open_before) = (disk.free_bytes(), mine_open(recorder));
    let opened = recorder.open_segment(lane);
    let after = entries(&recorder.store);
    if let Err(error) = opened {
        assert!(error.is_exhausted(), "{error}");
        assert_eq!(before, after, "a refusal takes nothing: {error}");
        assert!(free_before + before.iter().map(|it| it.file_bytes).sum::<u64>() < SEGMENT_BYTES);
        assert!(recorder.store.status().volumes[0].refused.is_some());
        return false;
    }
    assert_eq!(recorder.store.status().volumes[0].refused, None);
    check_quota_beside(disk, &recorder.store);
    let mine = lane_bytes(&after, 1) + mine_open(recorder) * SEGMENT_BYTES;
    assert!(mine <= BUDGET_BYTES, "lane 1 has {mine} bytes");
    assert!(disk.free_bytes() >= RESERVE_BYTES || after.len() <= KEPT, "{} kept", after.len());

    let gone: Vec<&SegmentEntry> = before.iter().filter(|it| !after.contains(it)).collect();
    let Some(last) = gone.last() else { return true };
    let freed: u64 = gone.iter().map(|entry| entry.file_bytes).sum::<u64>() - last.file_bytes;
    // What the volume's own file of digests grows by is not more than this.
    let slack_bytes = 1 << 16;
    let over_quota = status.used_bytes - freed + SEGMENT_BYTES + slack_bytes > status.quota_bytes;
    let kept = before.len() - (gone.len() - 1);
    let reserve_bytes = if kept > KEPT { RESERVE_BYTES } else { 0 };
    let over_disk = free_before + freed < SEGMENT_BYTES + reserve_bytes;
    let mine_gone = gone.iter().filter(|it| it.lane == 1).map(|it| it.file_bytes).sum::<u64>();
    let mine_last = if last.lane == 1 { last.file_bytes } else { 0 };
    let over_budget = lane == 1 && {
        let mine = lane_bytes(&before, 1) + open_before * SEGMENT_BYTES;
        mine - (mine_gone - mine_last) + SEGMENT_BYTES > BUDGET_BYTES
    };
    assert!(
        over_quota || over_disk || over_budget,
        "{} went, one too many: {status:?}",
        gone.len()
    );
    if !over_budget {
        let oldest: Vec<&SegmentEntry> = before[..gone.len()].iter().collect();
        assert_eq!(gone, oldest, "what stays is the newest");
    }
    true
}

/// The disk holds others' files as well.
fn check_quota_beside(disk: &Shared, store: &Store) {
    let volume = &store.status().volumes[0];
    let ours = DISK_BYTES - disk.free_bytes() - disk.foreign;
    assert!(ours <= volume.used_bytes && volume.used_bytes <= volume.quota_bytes, "{volume:?}");
}

fn live_through(seed: u64) -> (usize, usize) {
    let mut rng = SplitMix64::new(seed);
    let media = SimMedia::with_capacity(DISK_BYTES);
    make(&media, false, 16 << 20, 64).unwrap();
    let mut disk = Shared { media, foreign: 0 };
    let mut now_ns = START_NS;
    let mut recorder = start(&disk.media, Ledger::default(), now_ns);
    let (mut opened, mut refused) = (0, 0);
    for _ in 0..STEPS {
        let lane = rng.below(u64::from(LANES)) as usize;
        match rng.below(16) {
            0..=8 => {
                if !recorder.is_open(lane) && !open_checked(&disk, &mut recorder, lane) {
                    refused += 1;
                    continue;
                }
                opened += 1;
                for _ in 0..=rng.below(4) {
                    let packets = 1 + rng.below(250) as u32;
                    let Some(written) = recorder.write_chunk(lane, packets, 900, false) else {
                        break;
                    };
                    written.unwrap();
                }
                recorder.sync(lane).unwrap();
                recorder.close(lane, CloseReason::Age).unwrap();
            }
            9 => drop(recorder.is_open(lane) || open_checked(&disk, &mut recorder, lane)),
            10 => disk.fill(rng.below(DISK_BYTES)),
            11 => disk.empty(),
            // A clock that was an hour off, one way or the other.
            12 | 13 => {
                now_ns = START_NS - (3600 << 30) + (rng.below(7200) << 30);
                recorder.clock.set_unix_ns(now_ns);
            }
            14 => {
                recorder.end().unwrap();
                let ledger = recorder.ledger.clone();
                drop(recorder);
                recorder = start(&disk.media, ledger, now_ns);
            }
            _ => {
                let (found, ledger) = (disk.media.crash(rng.next_u64()), recorder.ledger.clone());
                drop(recorder);
                disk.media = found;
                recorder = start(&disk.media, ledger, now_ns);
            }
        }
    }
    recorder.end().unwrap();
    disk.empty();
    check_quota(&disk.media, &recorder.store).unwrap();
    (opened, refused)
}

#[test]
fn a_store_left_alone_keeps_its_limits_and_its_newest() {
    let lived: Vec<_> = (0..40).map(live_through).collect();
    let (opened, refused) = lived.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    assert!(opened > 500 && refused > 0, "{opened} segments, {refused} refused");
}

#[test]
fn what_others_write_costs_the_oldest_down_to_a_few_segments() {
    let media = SimMedia::with_capacity(DISK_BYTES);
    make(&media, false, 20 << 20, 64).unwrap();
    let mut disk = Shared { media, foreign: 0 };
    let mut recorder = start(&disk.media, Ledger::default(), START_NS);
    let full = |recorder: &mut Recorder, disk: &Shared| {
        assert!(open_checked(disk, recorder, 0));
        while let Some(written) = recorder.write_chunk(0, 250, 900, false) {
            written.unwrap();
        }
        recorder.sync(0).unwrap();
        recorder.close(0, CloseReason::Full).unwrap();
    };
    (0..30).for_each(|_| full(&mut recorder, &disk));
    let whole = entries(&recorder.store).len();
    for _ in 0..8 {
        disk.empty();
        disk.fill(disk.free_bytes() - SEGMENT_BYTES);
        full(&mut recorder, &disk);
    }
    assert_eq!((whole > 2 * KEPT, entries(&recorder.store).len()), (true, KEPT + 1));
    disk.empty();
    (0..30).for_each(|_| full(&mut recorder, &disk));
    assert_eq!(entries(&recorder.store).len(), whole, "its share is its own again");
}

#[test]
fn a_budget_that_holds_too_little_is_refused_with_the_arithmetic() {
    let media = SimMedia::new();
    make(&media, false, 16 << 20, 64).unwrap();
    let (mut store, _) = open(&media, clock()).unwrap();
    let error = store.set_budgets(vec![Budget { lanes: 0..2, bytes: BUDGET_BYTES }]).unwrap_err();
    assert!(error.to_string().contains("4 segments x 2 lanes x 1048576 bytes"), "{error}");
}
