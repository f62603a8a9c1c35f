//! The thread that keeps the indexes of open segments and closes segments.
//!
//! It gets one delta for every durable chunk and applies them in order of their numbers, so a query
//! sees exactly what is durable. Closing itself (encoding and writing the index) runs on a thread
//! of its own: other lanes' deltas go on.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use crossbeam_queue::ArrayQueue;
use wirevault_format::footer::CloseReason;
use wirevault_format::gap::CAUSES;
use wirevault_format::{Gap, LifeId};
use wirevault_index::{ChunkDelta, SegmentIndex};
use wirevault_storage::{ClosingFacts, StorageError, Store, finish_segment, rebuild_index};
use wirevault_telemetry::clock::Clock;

use crate::ack::LaneAcks;
use crate::live::{LiveSegment, Registry};
use crate::status::lock;

/// How often segments that wait for their last acknowledgement are looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

pub(crate) enum ToCloser {
    /// A chunk is durable.
    Durable(Arc<LiveSegment>, Box<ChunkDelta>),
    /// A lane has handed on the last chunk of a segment.
    End(Box<Closing>),
}

/// What a lane knows of a segment that it has finished.
pub(crate) struct Closing {
    pub segment: Arc<LiveSegment>,
    pub acks: Arc<LaneAcks>,
    pub reason: CloseReason,
    pub chunks: u32,
    pub captured_bytes: u64,
    pub received: u64,
    pub shed: u64,
    pub dropped: [u64; CAUSES],
    pub chain: [u8; 32],
}

pub(crate) struct Closer {
    pub store: Arc<Mutex<Store>>,
    pub registry: Arc<Registry>,
    pub inbox: Receiver<ToCloser>,
    pub deltas: Vec<Arc<ArrayQueue<Box<ChunkDelta>>>>,
    pub clock: Arc<dyn Clock>,
    /// Deltas that came before one with a smaller number.
    pub early: HashMap<LifeId, BTreeMap<u32, Box<ChunkDelta>>>,
    pub closing: Vec<Closing>,
    pub threads: Vec<JoinHandle<()>>,
}

impl Closer {
    /// Runs until sealers and writers are gone and every segment is closed.
    pub(crate) fn run(mut self) {
        loop {
            let wait = if self.closing.is_empty() { LOOK_AGAIN * 20 } else { LOOK_AGAIN };
            match self.inbox.recv_timeout(wait) {
                Ok(ToCloser::Durable(segment, delta)) => self.durable(&segment, delta),
                Ok(ToCloser::End(closing)) => {
                    closing.segment.ended.store(true, Ordering::Release);
                    self.closing.push(*closing);
                }
                Err(RecvTimeoutError::Timeout) => {}
                // Sealers and writers are gone, so nothing will be settled any more.
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.close_ready();
        }
        self.close_ready();
        for closing in &self.closing {
            let life = closing.segment.open.entry.life;
            tracing::error!(%life, "a segment is not complete; the next start recovers it");
        }
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!(
                    "a thread that closed a segment panicked; the next start recovers it"
                );
            }
        }
    }

    fn durable(&mut self, segment: &Arc<LiveSegment>, delta: Box<ChunkDelta>) {
        let life = segment.open.entry.life;
        if segment.index_lost.load(Ordering::Acquire) {
            // The index is made anew when the segment closes.
            give_back(&self.deltas, segment, delta);
            return;
        }
        let early = self.early.entry(life).or_default();
        early.insert(delta.number, delta);
        let mut index = segment.index.write().unwrap_or_else(PoisonError::into_inner);
        while let Some(delta) = early.remove(&(index.chunks().len() as u32)) {
            if let Err(error) = index.apply(&delta) {
                tracing::error!("an index delta was refused: {error}");
                segment.index_lost.store(true, Ordering::Release);
            }
            give_back(&self.deltas, segment, delta);
        }
        if early.is_empty() {
            self.early.remove(&life);
        }
    }

    fn close_ready(&mut self) {
        self.threads.retain(|thread| !thread.is_finished());
        let ready = |closing: &Closing| {
            let segment = &closing.segment;
            let applied = || {
                let index = segment.index.read().unwrap_or_else(PoisonError::into_inner);
                index.chunks().len() as u32 == closing.chunks
            };
            let settled = segment.settled_chunks.load(Ordering::Acquire) == closing.chunks;
            settled && (segment.index_lost.load(Ordering::Acquire) || applied())
        };
        for closing in self.closing.extract_if(.., |closing| ready(closing)) {
            self.early.remove(&closing.segment.open.entry.life);
            let (store, registry) = (Arc::clone(&self.store), Arc::clone(&self.registry));
            let clock = Arc::clone(&self.clock);
            let close = move || {
                let life = closing.segment.open.entry.life;
                match close(&closing, &store, &registry, &*clock) {
                    Ok(()) => {}
                    Err(error) => tracing::error!(
                        %life,
                        "a segment could not be closed, the next start recovers it: {error}"
                    ),
                }
            };
            match std::thread::Builder::new().name("close".to_owned()).spawn(close) {
                Ok(thread) => self.threads.push(thread),
                Err(error) => tracing::error!("no thread to close a segment: {error}"),
            }
        }
    }
}

/// Returns a delta to its lane.
fn give_back(
    deltas: &[Arc<ArrayQueue<Box<ChunkDelta>>>],
    segment: &LiveSegment,
    delta: Box<ChunkDelta>,
) {
    let spares = deltas.get(usize::from(segment.open.entry.lane));
    if let Some(spares) = spares.filter(|_| delta.is_full_size()) {
        let _ = spares.push(delta);
    }
}

fn close(
    closing: &Closing,
    store: &Mutex<Store>,
    registry: &Registry,
    clock: &dyn Clock,
) -> Result<(), StorageError> {
    let segment = &closing.segment;
    let life = segment.open.entry.life;
    if segment.failed.load(Ordering::Acquire) {
        let why = "a write or flush of a segment failed";
        lock(store).set_volume_failed(segment.open.volume, why);
    }
    let rebuilt = match segment.index_lost.load(Ordering::Acquire) {
        true => Some(rebuild_index(&segment.open)?),
        false => None,
    };
    let mut told: Vec<Gap> = Vec::new();
    let lost = closing.acks.take_lost(|gap| told.push(gap));
    let finish = |index: &SegmentIndex, chain| {
        let facts = ClosingFacts {
            reason: closing.reason,
            recovered: false,
            damaged: false,
            captured_bytes: closing.captured_bytes,
            received: closing.received,
            shed: closing.shed,
            // The lane's last count may be older than the writers'.
            dropped: std::array::from_fn(|cause| closing.dropped[cause].max(lost[cause])),
            chain,
        };
        finish_segment(&segment.open, index, &facts, clock)
    };
    let finished = match rebuilt {
        Some((mut index, chain)) => {
            told.iter().for_each(|gap| index.add_gap(*gap));
            *segment.index.write().unwrap_or_else(PoisonError::into_inner) = index;
            finish(&segment.index.read().unwrap_or_else(PoisonError::into_inner), chain)
        }
        None => {
            if !told.is_empty() {
                let mut index = segment.index.write().unwrap_or_else(PoisonError::into_inner);
                told.iter().for_each(|gap| index.add_gap(*gap));
            }
            finish(&segment.index.read().unwrap_or_else(PoisonError::into_inner), closing.chain)
        }
    };
    let mut store = lock(store);
    let empty = segment.index.read().unwrap_or_else(PoisonError::into_inner).chunks().is_empty();
    if empty {
        store.release_segment(&segment.open)?;
    } else {
        store.close_segment(&segment.open, finished?)?;
    }
    registry.remove(life);
    Ok(())
}
