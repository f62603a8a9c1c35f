//! What a lane shows of itself beside its books.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use wirevault_capture::{SourceCounters, SourceReport};

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

/// What the threads of one lane share with those who look at it.
pub struct LaneShared {
    /// Number of the lane.
    pub lane: u16,
    /// Chunks that the index does not cover.
    pub unindexed_chunks: AtomicU64,
    /// Everything that reached the source before this time was taken.
    pub polled_ns: AtomicU64,
    /// Largest packet time below the watermark.
    pub durable_ns: AtomicU64,
    /// What its decapsulation did.
    pub decap: DecapCounters,
    state: AtomicU8,
    blocked: AtomicU8,
    error: Mutex<Option<String>>,
    report: Mutex<Option<SourceReport>>,
    counters: Mutex<Option<SourceCounters>>,
    cpu: Option<usize>,
}

impl LaneShared {
    pub(crate) fn new(lane: u16, cpu: Option<usize>, report: SourceReport) -> Self {
        Self {
            lane,
            unindexed_chunks: AtomicU64::new(0),
            polled_ns: AtomicU64::new(0),
            durable_ns: AtomicU64::new(0),
            decap: DecapCounters::default(),
            state: AtomicU8::new(LaneState::Running as u8),
            blocked: AtomicU8::new(0),
            error: Mutex::new(None),
            report: Mutex::new(Some(report)),
            counters: Mutex::new(None),
            cpu,
        }
    }

    /// What the lane is doing.
    pub fn state(&self) -> LaneState {
        match self.blocked.load(Ordering::Relaxed) {
            0 => self.source_state(),
            _ => LaneState::Blocked,
        }
    }

    /// As `state`, as if segments could always be opened.
    pub(crate) fn source_state(&self) -> LaneState {
        LaneState::from_u8(self.state.load(Ordering::Relaxed))
    }

    /// The last thing that went wrong.
    pub fn error(&self) -> Option<String> {
        lock(&self.error).clone()
    }

    /// What the source said of itself last.
    pub fn report(&self) -> Option<SourceReport> {
        lock(&self.report).clone()
    }

    /// Counters of a source that has ended.
    pub fn final_counters(&self) -> Option<SourceCounters> {
        *lock(&self.counters)
    }

    /// Core the lane is pinned to.
    pub fn cpu(&self) -> Option<usize> {
        self.cpu
    }

    pub(crate) fn set_state(&self, state: LaneState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    pub(crate) fn set_report(&self, report: SourceReport) {
        *lock(&self.report) = Some(report);
    }

    pub(crate) fn set_blocked(&self, blocked: bool) {
        self.blocked.store(u8::from(blocked), Ordering::Relaxed);
    }

    pub(crate) fn fail(&self, error: &str) {
        *lock(&self.error) = Some(error.to_owned());
    }

    pub(crate) fn finish(&self, counters: SourceCounters) {
        *lock(&self.counters) = Some(counters);
    }
}

/// Looks at a value behind a lock whose holder cannot leave it half changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
