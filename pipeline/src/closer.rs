//! The thread that keeps the indexes of open segments and closes segments.
//!
//! It gets one delta for every durable chunk, in order of their numbers, so a query sees only what
//! is durable, and `telemetry::shown` says up to when it sees all of that. Closing itself (encoding
//! and writing the index) runs on a thread of its own: other lanes' deltas go on.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use crossbeam_queue::ArrayQueue;
use wirevault_format::Gap;
use wirevault_format::footer::CloseReason;
use wirevault_index::ChunkDelta;
use wirevault_storage::{
    ClosingFacts, Finished, StorageError, Store, finish_segment, rebuild_index,
};
use wirevault_telemetry::books::ByCause;
use wirevault_telemetry::clock::Clock;

use crate::ack::LaneAcks;
use crate::live::{LiveSegment, Registry};
use crate::status::{LaneShared, lock};

/// How often segments that wait for their last acknowledgement are looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Time after which a segment is closed again whose volume failed meanwhile.
const TRY_AGAIN: Duration = Duration::from_secs(5);

pub(crate) enum ToCloser {
    /// A chunk is durable.
    Durable(Arc<LiveSegment>, Box<ChunkDelta>),
    /// A lane has handed on the last chunk of a segment.
    End(Box<Closing>),
}

/// A segment that its lane has finished. What stands in it is known when its chunks are settled.
pub(crate) struct Closing {
    pub segment: Arc<LiveSegment>,
    pub acks: Arc<LaneAcks>,
    pub reason: CloseReason,
    /// Its volume failed under an attempt to close it: when the next one may be.
    pub again_at: Option<Instant>,
}

pub(crate) struct Closer {
    pub store: Arc<Store>,
    pub registry: Arc<Registry>,
    pub inbox: Receiver<ToCloser>,
    pub deltas: Vec<Arc<ArrayQueue<Box<ChunkDelta>>>>,
    /// By number.
    pub lanes: Vec<Arc<LaneShared>>,
    /// What each lane called durable when the round began.
    pub durable_ns: Vec<u64>,
    pub clock: Arc<dyn Clock>,
    pub closing: Vec<Closing>,
    /// Segments that were not closed, from the threads that tried.
    pub unclosed: (Sender<Closing>, Receiver<Closing>),
    pub threads: Vec<JoinHandle<()>>,
}

impl Closer {
    /// Runs until sealers and writers are gone and every segment is closed.
    pub(crate) fn run(mut self) {
        loop {
            let wait = if self.closing.is_empty() { LOOK_AGAIN * 20 } else { LOOK_AGAIN };
            match self.inbox.recv_timeout(wait) {
                Ok(message) => self.round(message),
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

    /// Takes everything that has arrived. What was called durable before is in the index then,
    /// because deltas are sent before their chunks are acknowledged.
    fn round(&mut self, first: ToCloser) {
        for (lane, durable_ns) in self.lanes.iter().zip(&mut self.durable_ns) {
            *durable_ns = lane.durable_ns.load(Ordering::Acquire);
        }
        let arrived = self.inbox.len();
        self.take(first);
        for _ in 0..arrived {
            let Ok(message) = self.inbox.try_recv() else { break };
            self.take(message);
        }
        for (lane, durable_ns) in self.lanes.iter().zip(&self.durable_ns) {
            lane.shown.until(*durable_ns);
        }
    }

    fn take(&mut self, message: ToCloser) {
        match message {
            ToCloser::Durable(segment, delta) => self.durable(&segment, delta),
            ToCloser::End(closing) => self.closing.push(*closing),
        }
    }

    fn durable(&mut self, segment: &Arc<LiveSegment>, delta: Box<ChunkDelta>) {
        // Once a delta is lost the index is made anew when the segment closes.
        if !segment.index_lost.load(Ordering::Acquire) {
            let mut index = segment.index.write().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = index.apply(&delta) {
                tracing::error!("an index delta was refused: {error}");
                segment.index_lost.store(true, Ordering::Release);
            }
        }
        if let Some(lane) = self.lanes.get(usize::from(segment.open.entry.lane)) {
            lane.shown.handled(1);
        }
        give_back(&self.deltas, segment, delta);
    }

    fn close_ready(&mut self) {
        self.threads.retain(|thread| !thread.is_finished());
        self.closing.extend(self.unclosed.1.try_iter());
        let store = Arc::clone(&self.store);
        let ready = |closing: &mut Closing| {
            if let Some(again_at) = closing.again_at {
                let volume = closing.segment.open.volume;
                return again_at <= Instant::now() && store.is_in_use(volume);
            }
            let segment = &closing.segment;
            let applied = || {
                let index = segment.index.read().unwrap_or_else(PoisonError::into_inner);
                index.chunks().len() as u32 == lock(&segment.durable).chunks
            };
            segment.is_settled() && (segment.index_lost.load(Ordering::Acquire) || applied())
        };
        for closing in self.closing.extract_if(.., ready) {
            let (store, registry) = (Arc::clone(&self.store), Arc::clone(&self.registry));
            let (clock, unclosed) = (Arc::clone(&self.clock), self.unclosed.0.clone());
            let close = move || {
                let life = closing.segment.open.entry.life;
                match close(&closing, &store, &registry, &*clock) {
                    Ok(()) => {}
                    Err(error) if error.is_device() => {
                        if closing.again_at.is_none() {
                            tracing::error!(%life, "a segment could not be closed: {error}");
                        }
                        let again_at = Some(Instant::now() + TRY_AGAIN);
                        // The next start recovers what finds no place here.
                        let _ = unclosed.try_send(Closing { again_at, ..closing });
                    }
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
    store: &Store,
    registry: &Registry,
    clock: &dyn Clock,
) -> Result<(), StorageError> {
    let segment = &closing.segment;
    if !store.is_open(segment.open.entry.life) {
        // It went with a volume that was replaced; answers say so.
        registry.remove(segment.open.entry.life);
        return Ok(());
    }
    let bad = segment.is_in_bad_place();
    if lock(&segment.durable).chunks == 0 {
        match bad {
            true => store.release_bad_place(&segment.open)?,
            false => store.release_segment(&segment.open)?,
        }
        registry.remove(segment.open.entry.life);
        return Ok(());
    }
    // A segment that failed may not get its index, and is then recovered by its chunks: what was
    // lost is told elsewhere.
    let mut told: Vec<Gap> = Vec::new();
    let lost = match segment.failure() {
        None => closing.acks.take_lost(|gap| told.push(gap)),
        Some(_) => ByCause::default(),
    };
    let closed = finish(closing, &told, &lost, clock).and_then(|finished| {
        let finished = if bad { finished.in_bad_place() } else { finished };
        store.close_segment(&segment.open, finished)?;
        let life = segment.open.entry.life;
        registry.remove(life);
        let (reason, chunks) = (closing.reason.name(), lock(&segment.durable).chunks);
        tracing::debug!(%life, reason, chunks, "a segment is closed");
        Ok(())
    });
    closed.inspect_err(|_| closing.acks.untold(&told))
}

/// Writes index and footer over what is durable of the segment.
fn finish(
    closing: &Closing,
    told: &[Gap],
    lost: &ByCause,
    clock: &dyn Clock,
) -> Result<Finished, StorageError> {
    let segment = &closing.segment;
    let (chunks, mut facts) = {
        let durable = lock(&segment.durable);
        let facts = ClosingFacts {
            reason: match segment.failure() {
                None => closing.reason,
                Some(_) => CloseReason::DeviceFailed,
            },
            recovered: false,
            damaged: false,
            captured_bytes: durable.captured_bytes,
            received: durable.received,
            shed: durable.shed,
            // The lane's last count may be older than the writers'.
            dropped: std::array::from_fn(|cause| durable.dropped[cause].max(lost[cause])),
            chain: durable.chain.clone().finish(),
        };
        (durable.chunks, facts)
    };
    if segment.index_lost.load(Ordering::Acquire) {
        let (index, chain) = rebuild_index(&segment.open, chunks)?;
        facts.chain = chain;
        *segment.index.write().unwrap_or_else(PoisonError::into_inner) = index;
    }
    if !told.is_empty() {
        let mut index = segment.index.write().unwrap_or_else(PoisonError::into_inner);
        told.iter().for_each(|gap| index.add_gap(*gap));
    }
    let index = segment.index.read().unwrap_or_else(PoisonError::into_inner);
    finish_segment(&segment.open, &index, &facts, clock)
}
