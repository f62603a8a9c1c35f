//! Segments that lanes of this process write, as queries see them.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use wirevault_format::LifeId;
use wirevault_index::SegmentIndex;
use wirevault_storage::OpenSegment;

use crate::status::lock;

/// A segment that a lane writes.
pub struct LiveSegment {
    /// Its place, file and keys.
    pub open: OpenSegment,
    /// Index of its durable chunks.
    pub index: Arc<RwLock<SegmentIndex>>,
    /// Its device failed: no more chunks go there.
    pub failed: AtomicBool,
    /// The lane has handed on the last chunk.
    pub ended: AtomicBool,
    /// Chunks whose fate is known: durable, or given up.
    pub settled_chunks: AtomicU32,
    /// The way to the index was full once: the index is made anew when the segment closes.
    pub index_lost: AtomicBool,
}

/// All segments that are being written.
#[derive(Default)]
pub struct Registry {
    segments: Mutex<Vec<Arc<LiveSegment>>>,
}

impl Registry {
    pub(crate) fn add(&self, open: OpenSegment) -> Arc<LiveSegment> {
        let segment = Arc::new(LiveSegment {
            open,
            index: Arc::new(RwLock::new(SegmentIndex::new())),
            failed: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            settled_chunks: AtomicU32::new(0),
            index_lost: AtomicBool::new(false),
        });
        segment.open.show(Arc::clone(&segment.index));
        lock(&self.segments).push(Arc::clone(&segment));
        segment
    }

    pub(crate) fn remove(&self, life: LifeId) {
        lock(&self.segments).retain(|segment| segment.open.entry.life != life);
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
