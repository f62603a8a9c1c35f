//! The writer thread of a volume: submits chunks, groups flushes, acknowledges, and gives back what
//! the device did not take.
//!
//! A chunk is acknowledged when its write completed, a flush that was submitted after that
//! completion succeeded, *and* every chunk before it in its segment is acknowledged. Flushes of a
//! file are grouped over the commit interval, earlier when the buffers run short, and overlap
//! writing.
//!
//! It looks for work every few milliseconds while chunks come ([`crate::pace`]) and submits what it
//! finds file by file, so that chunks that follow each other reach the device as runs of up to
//! 4 MiB: many small interleaved writes halve a disk's rate, and one submission, completion and
//! wake-up for each chunk cost more than everything else that a writer does.
//!
//! A chunk keeps its buffer until it is acknowledged. When a write or flush fails, the file takes
//! no more; once nothing of it is under way, what is not acknowledged goes back to the lane's
//! sealer, in order. After a failed flush that is true of every file of the volume with unflushed
//! chunks, whether it was a flush of ours or one of tables and indexes beside the queue: the device
//! may have dropped the others' bytes with those that it told of.
//!
//! A queue that breaks keeps what it has. Those chunks are lost and counted; everything else goes
//! back, and another queue is asked for.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use wirevault_buffer::Pool;
use wirevault_format::Cause;
use wirevault_format::limits::CHUNK_BYTES;
use wirevault_nvme::{Completion, NvmeError, Queue, QueueReport};
use wirevault_storage::{Load, Store};
use wirevault_telemetry::histogram::Latency;

use crate::ack::Span;
use crate::closer::ToCloser;
use crate::live::LiveSegment;
use crate::options::QueueMaker;
use crate::pace::Pace;
use crate::status::{BufferTimes, lock, note_since};
use crate::write_file::{Held, WriteFile, WriteJob, Written};

/// Share of the buffers in flight above which a flush does not wait for the commit interval.
const COMMIT_PRESSURE: f64 = 0.3;
/// Wait for a completion while chunks run short or the queue is full. Bounds the delay of a chunk
/// that arrives meanwhile.
const BUSY_WAIT: Duration = Duration::from_millis(1);
/// Wait for chunks when nothing is in flight.
const IDLE_WAIT: Duration = Duration::from_millis(50);
/// Chunks that arrive within this time are submitted together. At 30 Gbps 4 MiB arrive in 1 ms; at
/// 2.4 Gbps it gathers six chunks.
const GATHER: Duration = Duration::from_millis(5);
/// Chunks of one file that are submitted in a row before it is another file's turn: 4 MiB.
const RUN_CHUNKS_MAX: usize = 16;
/// Any of a run that was not taken may have met what the device does not take.
const RUN_BYTES_MAX: u64 = (RUN_CHUNKS_MAX * CHUNK_BYTES) as u64;
/// A device that takes a hundred times what 99 of 100 operations take has something else to do than
/// this one, as far as a volume that takes over is concerned.
const PATIENCE_SHARE: u64 = 100;
/// But not less than this: a device that resets, or a path that changes, is back by then.
const PATIENCE_MIN: Duration = Duration::from_secs(1);
/// Tokens of flushes have this bit; tokens of writes do not. Below it stand the file's key and, for
/// a write, the chunk's number.
const SYNC_TOKEN: u64 = 1 << 63;
const KEYS: u32 = 1 << 31;
/// Chunks of one file that are held without the list of them growing: 1 GiB of buffers.
const LIST_CHUNKS: usize = 4096;
/// Files that are written at once without a list growing.
const FILES: usize = 64;

/// What a volume's writer counts.
#[derive(Default)]
pub struct WriterShared {
    /// What the queue uses and what not, and why. Brought up to date when a file is attached.
    pub report: Mutex<Option<QueueReport>>,
    /// Time from the submission of a write to its completion.
    pub write_latency: Latency,
    /// Time from the submission of a flush to its completion.
    pub sync_latency: Latency,
    /// Bytes written.
    pub written_bytes: AtomicU64,
    /// Chunks that the device did not take and that went back to be sealed again.
    pub failed_chunks: AtomicU64,
    /// Index deltas that found no room on their way.
    pub lost_deltas: AtomicU64,
    /// The device has not answered for longer than it may. See [`PipelineOptions::stall`].
    ///
    /// [`PipelineOptions::stall`]: crate::PipelineOptions::stall
    pub stalled: AtomicBool,
    /// The last write or flush that failed.
    pub error: Mutex<Option<String>>,
    /// Chunks that were handed over and are neither durable nor given back.
    pub held_chunks: AtomicUsize,
    /// How much longer than it should the oldest of them has been there, ns.
    pub queue_ns: AtomicU64,
}

impl WriterShared {
    /// What the choice of a volume wants to know, while so many segments are being opened there; a
    /// writer that holds more than its fair number of chunks is avoided.
    pub(crate) fn load(&self, opening: u32, fair_chunks: usize) -> Load {
        Load {
            opening,
            queue: Duration::from_nanos(self.queue_ns.load(Ordering::Relaxed)),
            crowded: self.held_chunks.load(Ordering::Relaxed) > fair_chunks,
            stalled: self.stalled.load(Ordering::Relaxed),
        }
    }
}

/// Where chunks come from and go to.
pub(crate) struct WriterChannels {
    pub inbox: Receiver<WriteJob>,
    /// By lane: where chunks go back to.
    pub to_sealers: Vec<Sender<Box<WriteJob>>>,
    pub closer: Sender<ToCloser>,
}

pub(crate) struct Writer {
    queue: Box<dyn Queue>,
    /// Makes another queue, and the volume for which.
    maker: QueueMaker,
    volume: usize,
    /// The queue gives nothing back any more.
    broken: bool,
    channels: WriterChannels,
    pool: Pool,
    commit_interval: Duration,
    stall: Duration,
    store: Arc<Store>,
    /// Of this volume.
    shared: Arc<WriterShared>,
    /// Of all volumes.
    peers: Vec<Arc<WriterShared>>,
    times: Arc<BufferTimes>,
    files: Vec<WriteFile>,
    next_key: u32,
    /// Of `files`, whose turn it is to submit.
    turn: usize,
    /// Chunks wait because the queue had no room for them.
    full: bool,
    pace: Pace,
    /// Chunks that became durable together.
    durable: Vec<WriteJob>,
    /// Their packets.
    spans: Vec<Span>,
    /// Empty lists of files that are done, so that a new file allocates none.
    lists: Vec<VecDeque<Held>>,
}

impl Writer {
    pub(crate) fn new(
        (queue, maker): (Box<dyn Queue>, QueueMaker),
        channels: WriterChannels,
        pool: Pool,
        (commit_interval, stall): (Duration, Duration),
        (volume, peers): (usize, Vec<Arc<WriterShared>>),
        times: Arc<BufferTimes>,
        store: Arc<Store>,
    ) -> Self {
        let shared = Arc::clone(&peers[volume]);
        let chunks = pool.capacity();
        Self {
            queue,
            maker,
            volume,
            broken: false,
            channels,
            commit_interval,
            stall,
            store,
            shared,
            peers,
            times,
            files: Vec::with_capacity(FILES),
            next_key: 0,
            turn: 0,
            full: false,
            pace: Pace::new(GATHER),
            durable: Vec::with_capacity(chunks.min(LIST_CHUNKS)),
            spans: Vec::with_capacity(chunks.min(LIST_CHUNKS)),
            lists: Vec::with_capacity(FILES),
            pool,
        }
    }

    /// Runs until every sealer is gone and the fate of every chunk is known.
    pub(crate) fn run(mut self) {
        let mut open = true;
        let mut completions = Vec::with_capacity(self.queue.depth());
        while open || !self.files.is_empty() {
            let rest = match open && !self.full {
                true => self.pace.rest(self.pool.capacity() - self.pool.in_flight()),
                false => None,
            };
            open = self.receive(open, rest);
            // Flushes first: a queue full of writes must not keep them out.
            self.commit(!open);
            self.submit();
            let wait = if rest.is_some() { Duration::ZERO } else { BUSY_WAIT };
            if (self.in_flight() > 0 || !open)
                && let Err(error) = self.queue.poll(wait, &mut completions)
            {
                tracing::error!("the device queue failed: {error}");
                match error {
                    NvmeError::Broken { .. } => self.abandon(&error),
                    _ => std::thread::sleep(BUSY_WAIT),
                }
            }
            self.heed_failed_flushes(&completions);
            for completion in completions.drain(..) {
                self.complete(completion);
            }
            self.watch();
            self.settle();
            self.forget_done(!open);
        }
    }

    /// Rests, then takes what has arrived; `false` when no more can arrive. Whoever sends while the
    /// writer sleeps has nobody to wake.
    fn receive(&mut self, open: bool, rest: Option<Duration>) -> bool {
        let mut arrived = 0;
        if let Some(rest) = rest {
            std::thread::sleep(rest);
        } else if open && self.in_flight() == 0 && !self.full {
            let held = self.files.iter().any(|file| !file.is_idle());
            let wait = if held { self.commit_interval.min(GATHER) } else { IDLE_WAIT };
            match self.channels.inbox.recv_timeout(wait) {
                Ok(job) => {
                    self.take(job);
                    arrived = 1;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        loop {
            match self.channels.inbox.try_recv() {
                Ok(job) => {
                    self.take(job);
                    arrived += 1;
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        self.pace.arrived(arrived);
        open
    }

    /// What a broken queue has never ends.
    fn in_flight(&self) -> usize {
        if self.broken { 0 } else { self.queue.in_flight() }
    }

    fn take(&mut self, job: WriteJob) {
        let life = job.segment.open.entry.life;
        let known = self.files.iter().position(|file| file.segment.open.entry.life == life);
        let at = known.unwrap_or_else(|| self.add(&job.segment));
        self.files[at].push(job);
    }

    fn add(&mut self, segment: &Arc<LiveSegment>) -> usize {
        if self.broken {
            self.renew();
        }
        let slot = self.queue.attach(&segment.open.file);
        *lock(&self.shared.report) = Some(self.queue.report());
        let key = self.next_key;
        self.next_key = (self.next_key + 1) % KEYS;
        let room = || VecDeque::with_capacity(self.pool.capacity().min(LIST_CHUNKS));
        let list = self.lists.pop().unwrap_or_else(room);
        let (slot, refused) = match slot {
            Ok(slot) => (Some(slot), None),
            Err(error) => (None, Some(error)),
        };
        self.files.push(WriteFile::new(key, slot, Arc::clone(segment), list));
        let at = self.files.len() - 1;
        if let Some(error) = refused {
            self.fail(at, &format!("it could not be opened for writing: {error}"));
        }
        at
    }

    /// Submits what waits, in runs of one file after the other, as far as the queue has room.
    fn submit(&mut self) {
        self.full = false;
        let mut idle = 0;
        while idle < self.files.len() && !self.full {
            self.turn %= self.files.len();
            let run = self.files[self.turn].waiting_chunks().min(RUN_CHUNKS_MAX);
            // A run is not cut by a queue that is nearly full: the next one would be cut as well.
            let room = self.queue.depth() - self.in_flight();
            self.full = run.min(self.queue.depth()) > room;
            if self.full {
                break;
            }
            idle = if run == 0 { idle + 1 } else { 0 };
            for _ in 0..run {
                self.submit_one(self.turn);
            }
            self.turn += 1;
        }
    }

    fn submit_one(&mut self, at: usize) {
        let file = &mut self.files[at];
        let (key, slot) = (file.key, file.slot);
        let (Some(slot), Some(job)) = (slot, file.waiting()) else { return };
        let Some(buf) = job.buf.take() else { return };
        let token = u64::from(key) << 32 | u64::from(job.number);
        match self.queue.write(slot, job.offset, buf, job.chunk_bytes, token) {
            Ok(()) => file.submitted(),
            Err(refused) => {
                job.buf = Some(refused.buf);
                match refused.error.is_backpressure() {
                    true => self.full = true,
                    false => self.fail(at, &format!("a write was refused: {}", refused.error)),
                }
            }
        }
    }

    /// Flushes files whose written chunks have waited long enough, or behind which nothing comes.
    fn commit(&mut self, ending: bool) {
        let pressed = self.pool.pressure() > COMMIT_PRESSURE;
        let interval = if pressed { Duration::ZERO } else { self.commit_interval };
        for at in 0..self.files.len() {
            let file = &mut self.files[at];
            let ended = ending || file.segment.ended.load(Ordering::Acquire);
            if file.segment.failure().is_some() || !file.sync_is_due(interval, ended) {
                continue;
            }
            let Some(slot) = file.slot else { continue };
            match self.queue.sync(slot, SYNC_TOKEN | u64::from(file.key) << 32) {
                Ok(()) => file.sync_submitted(),
                Err(error) if error.is_backpressure() => {}
                Err(error) => self.fail_unflushed(at, &format!("a flush was refused: {error}")),
            }
        }
    }

    fn file_of(&self, token: u64) -> Option<usize> {
        let key = (token & !SYNC_TOKEN) >> 32;
        self.files.iter().position(|file| u64::from(file.key) == key)
    }

    fn complete(&mut self, completion: Completion) {
        let Some(at) = self.file_of(completion.token()) else { return };
        match completion {
            Completion::Write { token, buf, result } => {
                let file = &mut self.files[at];
                if let Some(Written { offset, chunk_bytes, took }) = file.written(token as u32, buf)
                {
                    self.shared.write_latency.record_ns(took.as_nanos() as u64);
                    match result {
                        Ok(()) => {
                            let written_bytes = &self.shared.written_bytes;
                            written_bytes.fetch_add(chunk_bytes as u64, Ordering::Relaxed);
                        }
                        Err(_) => file.segment.note_not_taken(offset..offset + RUN_BYTES_MAX),
                    }
                }
                if let Err(error) = result {
                    self.fail(at, &format!("a chunk could not be written: {error}"));
                }
            }
            Completion::Sync { .. } => {
                if let Some(took) = self.files[at].synced() {
                    self.shared.sync_latency.record_ns(took.as_nanos() as u64);
                }
            }
        }
    }

    /// Before anything is called durable that ended at the same time: a flush that succeeded may
    /// have come after one that failed.
    fn heed_failed_flushes(&mut self, completions: &[Completion]) {
        for completion in completions {
            if let Completion::Sync { token, result: Err(error) } = completion
                && let Some(at) = self.file_of(*token)
            {
                self.fail_unflushed(at, &format!("a flush failed: {error}"));
            }
        }
        for at in 0..self.files.len() {
            let file = &mut self.files[at];
            if file.lost_a_sync() && file.has_unflushed() {
                self.fail(at, "a flush beside the queue failed, of tables or an index");
            }
        }
    }

    /// Gives everything up that the queue has, and asks for another one.
    fn abandon(&mut self, error: &NvmeError) {
        for at in 0..self.files.len() {
            self.fail(at, &format!("the device queue failed: {error}"));
            self.files[at].abandon();
        }
        self.broken = true;
        self.renew();
    }

    /// Without another queue, files that come fail, and each asks again. The one before is dropped,
    /// which waits a while for the kernel to let go of its chunks.
    fn renew(&mut self) {
        match (self.maker)(self.volume, self.pool.arena()) {
            Ok(queue) => (self.queue, self.broken) = (queue, false),
            Err(error) => tracing::error!("no other device queue can be had: {error}"),
        }
    }

    /// Gives segments up whose device hangs, so that their lanes go on elsewhere. What the device
    /// has stays with it until it answers.
    fn watch(&mut self) {
        let now = Instant::now();
        let arrived = self.files.iter().filter_map(WriteFile::oldest_arrival).min();
        let held = arrived.map_or(Duration::ZERO, |arrived| now - arrived);
        let late = held.saturating_sub(GATHER + 2 * self.commit_interval);
        self.shared.queue_ns.store(late.as_nanos() as u64, Ordering::Relaxed);
        let age = self.queue.oldest().map_or(Duration::ZERO, |since| now - since);
        let patience =
            if age > PATIENCE_MIN.min(self.stall) { self.patience() } else { self.stall };
        let stalled = age > patience;
        self.shared.stalled.store(stalled, Ordering::Relaxed);
        if !stalled {
            return;
        }
        for at in 0..self.files.len() {
            let file = &self.files[at];
            // One by one: a segment that was opened since has its own time.
            if file.segment.failure().is_none()
                && file.oldest_under_way().is_some_and(|since| now - since > patience)
            {
                self.fail(at, &format!("the device has not answered for {patience:?}"));
            }
        }
    }

    /// How long the device may take for an answer: as long as is known to be too long for any, or
    /// less where another volume takes over and this device is known to be quick.
    fn patience(&self) -> Duration {
        let others = self.peers.iter().filter(|peer| !Arc::ptr_eq(peer, &self.shared));
        if others.clone().all(|peer| peer.stalled.load(Ordering::Relaxed)) {
            return self.stall;
        }
        let usual_ns = |latency: &Latency| latency.snapshot().quantile_ns(0.99).unwrap_or(u64::MAX);
        let usual_ns =
            usual_ns(&self.shared.write_latency).max(usual_ns(&self.shared.sync_latency));
        let long = Duration::from_nanos(usual_ns.saturating_mul(PATIENCE_SHARE));
        long.max(PATIENCE_MIN).min(self.stall)
    }

    /// Nothing of the file is acknowledged any more.
    fn fail(&mut self, at: usize, why: &str) {
        let segment = &self.files[at].segment;
        if segment.failure().is_some() {
            return;
        }
        let (volume, place) = (&segment.open.name, segment.open.place);
        let why = format!("volume {volume}, place {place}: {why}");
        tracing::error!("{why}");
        // Before a lane learns of it, so that the store knows when it chooses the next volume.
        self.store.suspect_volume(segment.open.volume, &why);
        segment.fail(&why);
        *lock(&self.shared.error) = Some(why);
    }

    /// As [`Self::fail`], and neither is anything of another file that is not flushed.
    fn fail_unflushed(&mut self, at: usize, why: &str) {
        self.fail(at, why);
        for other in 0..self.files.len() {
            if self.files[other].has_unflushed() {
                self.fail(other, &format!("{why}, of another file of the volume"));
            }
        }
    }

    /// Acknowledges what is durable, and gives back what a failed file holds.
    fn settle(&mut self) {
        for at in 0..self.files.len() {
            match self.files[at].segment.failure().is_some() {
                false => self.acknowledge(at),
                true => self.give_back(at),
            }
        }
    }

    fn acknowledge(&mut self, at: usize) {
        let Self { files, durable, spans, channels, shared, times, .. } = self;
        let file = &mut files[at];
        durable.extend(std::iter::from_fn(|| file.pop_durable()));
        let (Some(first), Some(last)) = (durable.first(), durable.last()) else { return };
        {
            let mut known = lock(&file.segment.durable);
            known.chunks += durable.len() as u32;
            for job in durable.iter() {
                known.captured_bytes += job.captured_bytes;
                known.chain.add(job.link.bytes());
            }
            let delta = &last.delta;
            (known.received, known.shed, known.dropped) =
                (delta.received, delta.shed, delta.dropped);
        }
        let chunks = durable.len() as u32;
        let acks = Arc::clone(&first.acks);
        // On their way to the index before anybody is told: see `telemetry::shown`.
        acks.shown().send(u64::from(chunks));
        spans.clear();
        for mut job in durable.drain(..) {
            spans.push(job.span);
            let begin = Instant::now();
            drop(job.buf.take());
            note_since(&times.recycle, begin);
            if let Err(refused) =
                channels.closer.try_send(ToCloser::Durable(job.segment, job.delta))
                && let ToCloser::Durable(segment, _) = refused.into_inner()
            {
                segment.index_lost.store(true, Ordering::Release);
                acks.shown().handled(1);
                shared.lost_deltas.fetch_add(1, Ordering::Relaxed);
            }
        }
        acks.acknowledged(spans);
        shared.held_chunks.fetch_sub(chunks as usize, Ordering::Relaxed);
        file.segment.settled_chunks.fetch_add(chunks, Ordering::AcqRel);
    }

    fn give_back(&mut self, at: usize) {
        let file = &mut self.files[at];
        let lane = usize::from(file.segment.open.entry.lane);
        let mut chunks = 0;
        while let Some(job) = file.pop_failed() {
            chunks += 1;
            let sealer = self.channels.to_sealers.get(lane);
            let refused = match sealer {
                Some(sealer) => sealer.send(Box::new(job)).map_err(|refused| *refused.0).err(),
                None => Some(job),
            };
            // A sealer waits for all its chunks; one that is gone has panicked.
            if let Some(job) = refused {
                job.acks.lost(&job.span, Cause::DeviceFailed);
            }
        }
        if chunks > 0 {
            self.shared.failed_chunks.fetch_add(u64::from(chunks), Ordering::Relaxed);
            self.shared.held_chunks.fetch_sub(chunks as usize, Ordering::Relaxed);
            // Behind the chunks themselves: whoever sees this number finds all of them.
            file.segment.settled_chunks.fetch_add(chunks, Ordering::AcqRel);
        }
    }

    /// Lets go of files of which nothing is held and nothing more can come.
    fn forget_done(&mut self, ending: bool) {
        let mut at = 0;
        while let Some(file) = self.files.get(at) {
            if !file.is_idle() || !(ending || file.segment.is_settled()) {
                at += 1;
                continue;
            }
            let file = self.files.swap_remove(at);
            if let Some(Err(error)) = file.slot.map(|slot| self.queue.detach(slot)) {
                tracing::error!("a segment file could not be let go: {error}");
            }
            self.lists.push(file.into_list());
        }
    }
}
