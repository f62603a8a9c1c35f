//! The books of one lane: what came in, and what became of it.
//!
//! `received = stored + shed + dropped + in_flight` holds in every snapshot, by construction:
//!
//! - Two threads write, each its own half, each half under its own sequence lock: the lane thread
//!   says what came in and what it did with it ([`LaneCounts`]); the writer thread says what the
//!   device did ([`WriterCounts`]).
//! - A packet is settled by the writer only after the lane appended it. A snapshot reads the
//!   writer's half first, so the lane's half is never older and `in_flight` is never negative.
//! - All counters only grow, so every term of a later snapshot except `in_flight` is at least as
//!   great as in an earlier one.
//!
//! Neither writer ever waits, allocates or makes a system call: both may publish once a batch.

use std::mem::offset_of;
use std::sync::Arc;

use crate::line::{LINES_BYTES, OwnLines};
use crate::seqlock::SeqLock;

/// Causes of drops that the books can tell apart. The meaning of an index is the caller's: it is
/// the number of the gap's cause in the on-disk format.
pub const CAUSES_MAX: usize = 16;

/// Words of the lane's half.
const LANE_WORDS: usize = 5 + CAUSES_MAX;
/// Words of the writer's half.
const WRITER_WORDS: usize = 4 + CAUSES_MAX;

/// Further passes of a snapshot whose two halves may be of different moments.
const PASSES_MAX: usize = 16;

/// Packets by cause.
pub type ByCause = [u64; CAUSES_MAX];

/// Opens the books of one lane for one run: all counters start at zero.
///
/// Each of the two writing handles exists once; give [`LaneBooks`] to everyone who only reads.
pub fn open(lane: u16) -> (LaneSide, WriterSide, LaneBooks) {
    let shared = Arc::new(Shared {
        lane,
        lane_half: OwnLines(SeqLock::new()),
        writer_half: OwnLines(SeqLock::new()),
    });
    (
        LaneSide { shared: Arc::clone(&shared), published: LaneCounts::default() },
        WriterSide { shared: Arc::clone(&shared), published: WriterCounts::default() },
        LaneBooks { shared },
    )
}

/// What the lane thread counts. All counts are packets since the run began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneCounts {
    /// Packets the source says it received, its own drops included. The source tells this less
    /// often than packets arrive, so it may lag behind the other counters; a snapshot evens it out.
    pub received: u64,
    /// Packets written into a chunk.
    pub appended: u64,
    /// Packets left out by a configured policy.
    pub shed: u64,
    /// Packets that were lost before they were appended.
    pub dropped: ByCause,
    /// Packets whose bytes were cut on purpose or for want of room: a part of `appended`.
    pub cut: u64,
    /// Records of an import that could not be delimited: beside the sum, not in it.
    pub unreadable: u64,
}

/// What the writer thread counts. All counts are packets since the run began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriterCounts {
    /// Packets acknowledged, that is durable.
    pub stored: u64,
    /// Packets whose headers no parser understood: a part of those handed to the writer.
    pub unparsed: u64,
    /// Packets that were appended and then given up, because no device took them.
    pub dropped: ByCause,
    /// Sum over the lane's streams: packets below it are acknowledged, or counted as lost to a
    /// device. Of one stream it is a sequence number.
    pub watermark: u64,
    /// Unix time in nanoseconds of the oldest packet not yet acknowledged; 0 when there is none.
    pub unacknowledged_since_ns: u64,
}

/// The lane thread's pen.
#[derive(Debug)]
pub struct LaneSide {
    shared: Arc<Shared>,
    published: LaneCounts,
}

impl LaneSide {
    /// Makes the counts visible.
    ///
    /// Call it once a batch, and always before a chunk is handed over: otherwise a packet may be
    /// stored before it was appended, and a snapshot counts it as received early.
    pub fn publish(&mut self, counts: &LaneCounts) {
        debug_assert!(
            self.published.appended <= counts.appended && self.published.shed <= counts.shed,
            "counters only grow"
        );
        self.published = *counts;
        self.shared.lane_half.write(&counts.to_words());
    }

    /// The counts published last.
    pub fn published(&self) -> &LaneCounts {
        &self.published
    }
}

/// The writer thread's pen.
#[derive(Debug)]
pub struct WriterSide {
    shared: Arc<Shared>,
    published: WriterCounts,
}

impl WriterSide {
    /// Makes the counts visible. Call it after an acknowledgement or a loss, once a batch.
    pub fn publish(&mut self, counts: &WriterCounts) {
        debug_assert!(
            self.published.stored <= counts.stored && self.published.watermark <= counts.watermark,
            "counters only grow"
        );
        self.published = *counts;
        self.shared.writer_half.write(&counts.to_words());
    }

    /// The counts published last.
    pub fn published(&self) -> &WriterCounts {
        &self.published
    }
}

/// The books of one lane, for reading. A copy is cheap.
#[derive(Clone, Debug)]
pub struct LaneBooks {
    shared: Arc<Shared>,
}

impl LaneBooks {
    /// The lane's number.
    pub fn lane(&self) -> u16 {
        self.shared.lane
    }

    /// One coherent state of all counters. Never blocks either writer.
    pub fn snapshot(&self) -> Snapshot {
        // This order is the invariant: see the head of the module.
        let mut settled = self.shared.writer_half.read();
        let mut came = self.shared.lane_half.read();
        // A reader that was descheduled in between would report packets in flight that are long
        // stored. Writers publish some thousand times a second, so the second pass nearly always
        // finds nothing new; after a few more an older state is as good as any.
        for _ in 0..PASSES_MAX {
            let again = self.shared.writer_half.read();
            if again == settled {
                break;
            }
            settled = again;
            came = self.shared.lane_half.read();
        }
        let writer = WriterCounts::from_words(&settled);
        let lane = LaneCounts::from_words(&came);
        Snapshot::of(self.shared.lane, &lane, &writer)
    }
}

/// One lane at one moment. `received = stored + shed + dropped_packets() + in_flight`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The lane's number.
    pub lane: u16,
    /// Packets that came in: the source's own count, or what is known to have come in where the
    /// source has not told yet.
    pub received: u64,
    /// Packets acknowledged.
    pub stored: u64,
    /// Packets left out by a configured policy.
    pub shed: u64,
    /// Packets lost, by cause, before or after they were appended.
    pub dropped: ByCause,
    /// Packets on their way: in the source's ring, in a chunk, or at the device.
    pub in_flight: u64,
    /// The part of `in_flight` that is still in the source's ring.
    pub in_ring: u64,
    /// Packets whose bytes were cut: a part of `stored` and `in_flight`.
    pub cut: u64,
    /// Packets that no parser understood: a part of `stored` and `in_flight`.
    pub unparsed: u64,
    /// Records of an import that could not be delimited: beside the sum.
    pub unreadable: u64,
    /// Sum over the lane's streams: packets below it are acknowledged, or counted as lost to a
    /// device. Of one stream it is a sequence number.
    pub watermark: u64,
    /// Unix time in nanoseconds of the oldest packet not acknowledged; nothing when all are.
    pub unacknowledged_since_ns: Option<u64>,
}

impl Snapshot {
    /// All packets lost, whatever the cause.
    pub fn dropped_packets(&self) -> u64 {
        total(&self.dropped)
    }

    /// Whether the equation holds.
    pub fn balances(&self) -> bool {
        self.received == self.stored + self.shed + self.dropped_packets() + self.in_flight
    }

    fn of(lane_number: u16, lane: &LaneCounts, writer: &WriterCounts) -> Self {
        let settled = writer.stored + total(&writer.dropped);
        // What is settled was appended, and what was decided on was received, even where the count
        // that says so is published later.
        let appended = lane.appended.max(settled);
        let decided = appended + lane.shed + total(&lane.dropped);
        let received = lane.received.max(decided);
        Self {
            lane: lane_number,
            received,
            stored: writer.stored,
            shed: lane.shed,
            dropped: std::array::from_fn(|cause| lane.dropped[cause] + writer.dropped[cause]),
            in_flight: received - decided + appended - settled,
            in_ring: received - decided,
            cut: lane.cut,
            unparsed: writer.unparsed,
            unreadable: lane.unreadable,
            watermark: writer.watermark,
            unacknowledged_since_ns: Some(writer.unacknowledged_since_ns).filter(|ns| *ns != 0),
        }
    }
}

#[derive(Debug)]
struct Shared {
    lane: u16,
    /// Written by the lane once a batch.
    lane_half: OwnLines<SeqLock<LANE_WORDS>>,
    /// Written by the writers once a batch.
    writer_half: OwnLines<SeqLock<WRITER_WORDS>>,
}

const _: () = assert!(
    offset_of!(Shared, lane_half).is_multiple_of(LINES_BYTES)
        && offset_of!(Shared, writer_half).is_multiple_of(LINES_BYTES)
        && offset_of!(Shared, lane_half) != offset_of!(Shared, writer_half),
    "no line is written by both"
);

impl LaneCounts {
    fn to_words(self) -> [u64; LANE_WORDS] {
        let head = [self.received, self.appended, self.shed, self.cut, self.unreadable];
        join(&head, &self.dropped)
    }

    fn from_words(words: &[u64; LANE_WORDS]) -> Self {
        let [received, appended, shed, cut, unreadable, ..] = *words;
        Self { received, appended, shed, dropped: tail(words), cut, unreadable }
    }
}

impl WriterCounts {
    fn to_words(self) -> [u64; WRITER_WORDS] {
        let head = [self.stored, self.unparsed, self.watermark, self.unacknowledged_since_ns];
        join(&head, &self.dropped)
    }

    fn from_words(words: &[u64; WRITER_WORDS]) -> Self {
        let [stored, unparsed, watermark, unacknowledged_since_ns, ..] = *words;
        Self { stored, unparsed, dropped: tail(words), watermark, unacknowledged_since_ns }
    }
}

fn total(packets: &ByCause) -> u64 {
    packets.iter().sum()
}

fn join<const N: usize>(head: &[u64], by_cause: &ByCause) -> [u64; N] {
    std::array::from_fn(|at| if at < head.len() { head[at] } else { by_cause[at - head.len()] })
}

fn tail<const N: usize>(words: &[u64; N]) -> ByCause {
    std::array::from_fn(|cause| words[N - CAUSES_MAX + cause])
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
            mpsc,
        },
        thread,
    };

    use super::*;

    #[test]
    fn a_new_lane_has_nothing() {
        let (_, _, books) = open(3);
        let snapshot = books.snapshot();
        assert_eq!(snapshot, Snapshot { lane: 3, ..Snapshot::default() });
        assert!(snapshot.balances());
    }

    #[test]
    fn every_field_comes_back() {
        let (mut lane, mut writer, books) = open(0);
        let mut dropped = [0; CAUSES_MAX];
        dropped[0] = 5;
        dropped[CAUSES_MAX - 1] = 7;
        let mut lost = [0; CAUSES_MAX];
        lost[1] = 2;
        lane.publish(&LaneCounts {
            received: 100,
            appended: 70,
            shed: 8,
            dropped,
            cut: 3,
            unreadable: 1,
        });
        writer.publish(&WriterCounts {
            stored: 60,
            unparsed: 4,
            dropped: lost,
            watermark: 62,
            unacknowledged_since_ns: 1_700_000_000_000_000_000,
        });
        let got = books.snapshot();
        assert!(got.balances());
        assert_eq!((got.received, got.stored, got.shed), (100, 60, 8));
        assert_eq!((got.dropped[0], got.dropped[1], got.dropped[CAUSES_MAX - 1]), (5, 2, 7));
        assert_eq!((got.in_ring, got.in_flight), (10, 18));
        assert_eq!((got.cut, got.unparsed, got.unreadable, got.watermark), (3, 4, 1, 62));
        assert_eq!(got.unacknowledged_since_ns, Some(1_700_000_000_000_000_000));
    }

    #[test]
    fn a_late_source_count_never_makes_packets_vanish() {
        let (mut lane, mut writer, books) = open(0);
        lane.publish(&LaneCounts { received: 10, appended: 40, shed: 2, ..LaneCounts::default() });
        writer.publish(&WriterCounts { stored: 50, ..WriterCounts::default() });
        let got = books.snapshot();
        assert!(got.balances());
        assert_eq!((got.received, got.stored, got.in_flight), (52, 50, 0));
    }

    /// Both writers at full speed, as in the pipeline: chunks go over a bounded channel.
    #[test]
    fn the_equation_holds_in_every_snapshot() {
        const BATCHES: u64 = 100_000;
        let (mut lane, mut writer, books) = open(0);
        let (chunks, taken) = mpsc::sync_channel::<u64>(64);
        let lane_thread = thread::spawn(move || {
            let mut counts = LaneCounts::default();
            for batch in 0..BATCHES {
                counts.appended += 1 + batch % 7;
                counts.shed += batch % 2;
                counts.dropped[(batch % 3) as usize] += batch % 5;
                if batch % 4 == 0 {
                    counts.received = counts.appended + counts.shed + total(&counts.dropped) + 9;
                }
                lane.publish(&counts);
                chunks.send(1 + batch % 7).expect("the writer outlives the lane");
            }
        });
        let writer_thread = thread::spawn(move || {
            let mut counts = WriterCounts::default();
            while let Ok(packets) = taken.recv() {
                if packets == 3 {
                    counts.dropped[15] += packets;
                } else {
                    counts.stored += packets;
                    counts.watermark = counts.stored;
                }
                writer.publish(&counts);
            }
        });
        let done = Arc::new(AtomicBool::new(false));
        let reader = {
            let (books, done) = (books.clone(), Arc::clone(&done));
            thread::spawn(move || {
                let mut last = books.snapshot();
                while !done.load(Ordering::Acquire) {
                    let next = books.snapshot();
                    assert!(next.balances(), "{next:?}");
                    assert!(next.in_ring <= next.in_flight);
                    assert!(next.received >= last.received && next.stored >= last.stored);
                    last = next;
                }
            })
        };
        lane_thread.join().expect("the lane does not panic");
        writer_thread.join().expect("the writer does not panic");
        done.store(true, Ordering::Release);
        reader.join().expect("every snapshot balances");
        assert_eq!(books.snapshot().in_flight, books.snapshot().in_ring);
    }
}
