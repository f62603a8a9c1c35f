//! Segments that lanes of this process write, as queries see them.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use wirevault_format::gap::CAUSES;
use wirevault_format::{Interface, LifeId};
use wirevault_index::SegmentIndex;
use wirevault_seal::chain::Chain;
use wirevault_storage::OpenSegment;

use crate::status::lock;

/// A segment that a lane writes.
pub struct LiveSegment {
    /// Its place, file and keys.
    pub open: OpenSegment,
    /// Interfaces that it describes.
    pub interfaces: Arc<Vec<Interface>>,
    /// Index of its durable chunks.
    pub index: Arc<RwLock<SegmentIndex>>,
    /// The lane has handed on the last chunk.
    pub ended: AtomicBool,
    /// Chunks that the lane handed on.
    pub sealed_chunks: AtomicU32,
    /// Chunks whose fate is known: durable, given back to the lane, or given up.
    pub settled_chunks: AtomicU32,
    /// The way to the index was full once: the index is made anew when the segment closes.
    pub index_lost: AtomicBool,
    pub(crate) durable: Mutex<Durable>,
    /// Why no more of its chunks become durable.
    failure: OnceLock<String>,
    /// Where the device did not take chunks, if that was the failure.
    not_taken: OnceLock<Range<u64>>,
    /// Its lane has acted on the failure.
    pub(crate) failure_noted: AtomicBool,
}

/// What is durable of a segment: always its first chunks, without a hole.
pub(crate) struct Durable {
    pub chunks: u32,
    pub captured_bytes: u64,
    /// Counters of the lane at the last of them.
    pub received: u64,
    pub shed: u64,
    pub dropped: [u64; CAUSES],
    /// Hash over them.
    pub chain: Chain,
}

impl LiveSegment {
    pub(crate) fn new(open: OpenSegment, interfaces: Arc<Vec<Interface>>) -> Self {
        Self {
            open,
            interfaces,
            index: Arc::new(RwLock::new(SegmentIndex::new())),
            ended: AtomicBool::new(false),
            sealed_chunks: AtomicU32::new(0),
            settled_chunks: AtomicU32::new(0),
            index_lost: AtomicBool::new(false),
            durable: Mutex::new(Durable {
                chunks: 0,
                captured_bytes: 0,
                received: 0,
                shed: 0,
                dropped: [0; CAUSES],
                chain: Chain::new(),
            }),
            failure: OnceLock::new(),
            not_taken: OnceLock::new(),
            failure_noted: AtomicBool::new(false),
        }
    }

    /// No more of its chunks become durable; the first reason stays.
    pub(crate) fn fail(&self, why: &str) {
        let _ = self.failure.set(why.to_owned());
    }

    /// The device did not take chunks that stand there; before [`LiveSegment::fail`].
    pub(crate) fn note_not_taken(&self, bytes: Range<u64>) {
        let _ = self.not_taken.set(bytes);
    }

    /// Whether it failed because its place is bad. Tries the device: for a segment that is settled.
    pub(crate) fn is_in_bad_place(&self) -> bool {
        self.not_taken.get().is_some_and(|bytes| self.open.is_bad_in(bytes.clone()))
    }

    /// Why no more of its chunks become durable; nothing while they do.
    pub fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// The lane has handed on its last chunk, and the fate of every chunk is known.
    pub(crate) fn is_settled(&self) -> bool {
        self.ended.load(Ordering::Acquire)
            && self.settled_chunks.load(Ordering::Acquire)
                == self.sealed_chunks.load(Ordering::Acquire)
    }
}

/// All segments that are being written.
#[derive(Default)]
pub struct Registry {
    segments: Mutex<Vec<Arc<LiveSegment>>>,
}

impl Registry {
    pub(crate) fn add(
        &self,
        open: OpenSegment,
        interfaces: Arc<Vec<Interface>>,
    ) -> Arc<LiveSegment> {
        let segment = Arc::new(LiveSegment::new(open, interfaces));
        segment.open.show(Arc::clone(&segment.index));
        lock(&self.segments).push(Arc::clone(&segment));
        segment
    }

    pub(crate) fn remove(&self, life: LifeId) {
        lock(&self.segments).retain(|segment| segment.open.entry.life != life);
    }

    /// All of them.
    #[cfg(test)]
    pub(crate) fn segments(&self) -> Vec<Arc<LiveSegment>> {
        lock(&self.segments).clone()
    }

    /// For each segment whose index is incomplete: the largest packet time that it shows.
    pub(crate) fn shown_until_ns(&self) -> Vec<u64> {
        let lost = |segment: &&Arc<LiveSegment>| segment.index_lost.load(Ordering::Acquire);
        let shown = |segment: &Arc<LiveSegment>| {
            let index = segment.index.read().unwrap_or_else(PoisonError::into_inner);
            let times = index.chunks().iter().filter_map(|chunk| chunk.times_ns);
            times.map(|(_, max_ns)| max_ns).max().unwrap_or(segment.open.entry.opened_ns)
        };
        lock(&self.segments).iter().filter(lost).map(shown).collect()
    }
}
