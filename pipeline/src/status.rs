//! What a lane shows of itself beside its books.

use std::mem::offset_of;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use wirevault_capture::{SourceCounters, SourceReport};
use wirevault_format::pcapng::OtherKind;
use wirevault_format::{PolicyName, PressureCause};
use wirevault_telemetry::histogram::Latency;
use wirevault_telemetry::line::{LINES_BYTES, OwnLines};
use wirevault_telemetry::shown::Shown;

use crate::decap::DecapCounters;

/// What a lane is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum LaneState {
    /// Packets are taken as they come.
    Running = 0,
    /// No chunk is free: the device is slower than the wire.
    Starved = 1,
    /// The interface is down or absent.
    InterfaceDown = 2,
    /// No segment can be opened; the reason is in `error`.
    Blocked = 3,
    /// The source has ended.
    Ended = 4,
    /// No sender is connected.
    Waiting = 5,
}

impl LaneState {
    /// Name in status and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Starved => "starved",
            Self::InterfaceDown => "interface_down",
            Self::Blocked => "blocked",
            Self::Ended => "ended",
            Self::Waiting => "waiting",
        }
    }

    fn from_u8(value: u8) -> Self {
        [Self::Running, Self::Starved, Self::InterfaceDown, Self::Blocked, Self::Waiting]
            .into_iter()
            .find(|state| *state as u8 == value)
            .unwrap_or(Self::Ended)
    }
}

/// What the threads of one lane share with those who look at it. What the lane writes for a batch,
/// its sealer for a chunk, and its writers, lies on lines of its own.
pub struct LaneShared {
    /// Number of the lane.
    pub lane: u16,
    /// Chunks that the index does not cover.
    pub unindexed_chunks: AtomicU64,
    /// Chunks some of whose flows found no room: filters of their own cover them.
    pub filtered_chunks: AtomicU64,
    /// Flows that the open segment written last has so far.
    pub flows: AtomicU64,
    /// Flows that it can have.
    pub flows_max: AtomicU64,
    /// How often somebody asked for its segments to be closed.
    pub(crate) closings_asked: AtomicU64,
    /// How often its sealer looked for something to do, whichever thread drives it.
    pub(crate) seal_rounds: AtomicU64,
    /// How often it came back from its source.
    pub(crate) rounds: OwnLines<AtomicU64>,
    /// Everything that reached the source before this time was taken.
    pub polled_ns: OwnLines<AtomicU64>,
    /// Largest packet time below the watermark with nothing older under way. Queries may not see
    /// all of it yet.
    pub durable_ns: OwnLines<AtomicU64>,
    /// How far they do.
    pub(crate) shown: Shown,
    /// What its decapsulation did.
    pub decap: OwnLines<DecapCounters>,
    /// Packets marked as second copies of others.
    pub duplicates: OwnLines<AtomicU64>,
    /// Its policies, then its rungs.
    pub policies: Vec<PolicyCounters>,
    state: OwnLines<AtomicU8>,
    blocked: AtomicU8,
    /// That of the segment it opened last.
    volume: AtomicUsize,
    error: Mutex<Option<String>>,
    report: Mutex<Option<SourceReport>>,
    figures: OwnLines<SourceFigures>,
    cpu: Option<usize>,
}

/// What a policy or a rung of a lane did.
#[derive(Debug)]
pub struct PolicyCounters {
    /// Its name.
    pub name: PolicyName,
    /// It is a rung of the pressure ladder.
    pub is_rung: bool,
    figures: OwnLines<PolicyFigures>,
}

/// How often a rung was entered, by [`PressureCause`].
pub type Entered = [u64; PressureCause::ALL.len()];

/// Written once a batch; together they need not be of one moment.
#[derive(Debug, Default)]
struct PolicyFigures {
    shed: AtomicU64,
    cut: AtomicU64,
    active: AtomicBool,
    /// By cause of pressure.
    entered: [AtomicU64; PressureCause::ALL.len()],
}

impl PolicyCounters {
    pub(crate) fn new(name: PolicyName, is_rung: bool) -> Self {
        Self { name, is_rung, figures: OwnLines::default() }
    }

    pub(crate) fn publish(&self, shed: u64, cut: u64, active: bool, entered: &Entered) {
        self.figures.shed.store(shed, Ordering::Relaxed);
        self.figures.cut.store(cut, Ordering::Relaxed);
        for (shown, count) in self.figures.entered.iter().zip(entered) {
            shown.store(*count, Ordering::Relaxed);
        }
        // Behind the counts: whoever sees that it holds sees that it was entered.
        self.figures.active.store(active, Ordering::Release);
    }

    /// Packets that it left out: a part of the lane's `shed`.
    pub fn shed(&self) -> u64 {
        self.figures.shed.load(Ordering::Relaxed)
    }

    /// Packets that it cut: a part of the lane's `cut`.
    pub fn cut(&self) -> u64 {
        self.figures.cut.load(Ordering::Relaxed)
    }

    /// Whether it holds now: a policy always does, a rung while it is entered.
    pub fn is_active(&self) -> bool {
        self.figures.active.load(Ordering::Acquire)
    }

    /// How often the rung was entered, by what the pressure came from.
    pub fn entered(&self) -> Entered {
        std::array::from_fn(|at| self.figures.entered[at].load(Ordering::Relaxed))
    }
}

/// What the source counts beside the books. Each number only grows; together they need not be of
/// one moment.
#[derive(Default)]
struct SourceFigures {
    times_rounded: AtomicU64,
    cut_to_snaplen: AtomicU64,
    times_carried: AtomicU64,
    options_cut: AtomicU64,
    skipped_blocks: [AtomicU64; OtherKind::ALL.len()],
}

const _: () = {
    let own = [
        offset_of!(LaneShared, rounds),
        offset_of!(LaneShared, polled_ns),
        offset_of!(LaneShared, durable_ns),
        offset_of!(LaneShared, decap),
        offset_of!(LaneShared, duplicates),
        offset_of!(LaneShared, state),
        offset_of!(LaneShared, figures),
    ];
    // What the sealer writes for a chunk is elsewhere.
    let sealers = offset_of!(LaneShared, flows) / LINES_BYTES;
    let mut at = 0;
    while at < own.len() {
        assert!(own[at].is_multiple_of(LINES_BYTES) && own[at] / LINES_BYTES != sealers);
        at += 1;
    }
};

impl LaneShared {
    pub(crate) fn new(
        lane: u16,
        cpu: Option<usize>,
        report: SourceReport,
        policies: Vec<PolicyCounters>,
    ) -> Self {
        Self {
            lane,
            unindexed_chunks: AtomicU64::new(0),
            filtered_chunks: AtomicU64::new(0),
            flows: AtomicU64::new(0),
            flows_max: AtomicU64::new(0),
            closings_asked: AtomicU64::new(0),
            seal_rounds: AtomicU64::new(0),
            rounds: OwnLines::default(),
            polled_ns: OwnLines::default(),
            durable_ns: OwnLines::default(),
            shown: Shown::default(),
            decap: OwnLines::default(),
            duplicates: OwnLines::default(),
            policies,
            state: OwnLines(AtomicU8::new(LaneState::Running as u8)),
            blocked: AtomicU8::new(0),
            volume: AtomicUsize::new(usize::MAX),
            error: Mutex::new(None),
            report: Mutex::new(Some(report)),
            figures: OwnLines::default(),
            cpu,
        }
    }

    /// What the lane is doing.
    pub fn state(&self) -> LaneState {
        match self.is_blocked() {
            false => self.source_state(),
            true => LaneState::Blocked,
        }
    }

    /// As `state`, as if segments could always be opened.
    pub(crate) fn source_state(&self) -> LaneState {
        LaneState::from_u8(self.state.load(Ordering::Relaxed))
    }

    /// It takes nothing any more, and never will.
    pub(crate) fn has_ended(&self) -> bool {
        self.source_state() == LaneState::Ended
    }

    /// The last thing that went wrong.
    pub fn error(&self) -> Option<String> {
        lock(&self.error).clone()
    }

    /// What the source said of itself last.
    pub fn report(&self) -> Option<SourceReport> {
        lock(&self.report).clone()
    }

    /// Packets whose time could not be kept to the last digit.
    pub fn times_rounded(&self) -> u64 {
        self.figures.times_rounded.load(Ordering::Relaxed)
    }

    /// Packets that were cut to the snap length of their file.
    pub fn cut_to_snaplen(&self) -> u64 {
        self.figures.cut_to_snaplen.load(Ordering::Relaxed)
    }

    /// Packets whose fraction of a second was a second or more.
    pub fn times_carried(&self) -> u64 {
        self.figures.times_carried.load(Ordering::Relaxed)
    }

    /// Packets that lost some of their options.
    pub fn options_cut(&self) -> u64 {
        self.figures.options_cut.load(Ordering::Relaxed)
    }

    /// Blocks of a file that were skipped, those kinds that occurred.
    pub fn skipped_blocks(&self) -> impl Iterator<Item = (OtherKind, u64)> {
        let counts = self.figures.skipped_blocks.iter().map(|it| it.load(Ordering::Relaxed));
        OtherKind::ALL.into_iter().zip(counts).filter(|(_, count)| *count > 0)
    }

    /// Core the lane is pinned to.
    pub fn cpu(&self) -> Option<usize> {
        self.cpu
    }

    pub(crate) fn set_state(&self, state: LaneState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    /// No segment can be opened for it.
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed) != 0
    }

    /// The volume that it writes to; a number that no volume has before its first segment.
    pub(crate) fn volume(&self) -> usize {
        self.volume.load(Ordering::Relaxed)
    }

    pub(crate) fn set_volume(&self, volume: usize) {
        self.volume.store(volume, Ordering::Relaxed);
    }

    pub(crate) fn set_blocked(&self, blocked: bool) {
        self.blocked.store(u8::from(blocked), Ordering::Relaxed);
    }

    pub(crate) fn fail(&self, error: &str) {
        *lock(&self.error) = Some(error.to_owned());
    }

    /// The source's interfaces are new, or back.
    pub(crate) fn set_report(&self, report: SourceReport) {
        *lock(&self.report) = Some(report);
    }

    pub(crate) fn count(&self, counters: &SourceCounters) {
        let figures = &*self.figures;
        figures.times_rounded.store(counters.times_rounded, Ordering::Relaxed);
        figures.cut_to_snaplen.store(counters.cut_to_snaplen, Ordering::Relaxed);
        figures.times_carried.store(counters.times_carried, Ordering::Relaxed);
        figures.options_cut.store(counters.options_cut, Ordering::Relaxed);
        for (shown, count) in figures.skipped_blocks.iter().zip(counters.skipped_blocks) {
            shown.store(count, Ordering::Relaxed);
        }
    }
}

/// How long the operations on buffers take. Every one is timed: there are three or four for a chunk
/// of 256 KiB, so the readings of the clock cost less than 1 % of what filling it does.
#[derive(Debug, Default)]
pub struct BufferTimes {
    /// Taking a free chunk. Only those that found one count.
    pub take: OwnLines<Latency>,
    /// Handing a chunk over, from lane to sealer and from sealer to writer; the other thread may
    /// have to be woken.
    pub hand_over: OwnLines<Latency>,
    /// Giving a chunk back to the free list.
    pub recycle: OwnLines<Latency>,
}

impl BufferTimes {
    /// Names and histograms, for status and metrics.
    pub fn all(&self) -> [(&'static str, &Latency); 3] {
        [("take", &self.take), ("hand_over", &self.hand_over), ("recycle", &self.recycle)]
    }
}

/// Notes how long it is since `begin`.
#[inline]
pub(crate) fn note_since(latency: &Latency, begin: Instant) {
    latency.record_ns(begin.elapsed().as_nanos() as u64);
}

/// Looks at a value behind a lock whose holder cannot leave it half changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
