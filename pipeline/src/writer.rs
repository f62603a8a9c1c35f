//! The writer thread of a volume: submits chunks, groups flushes, acknowledges.
//!
//! A chunk is acknowledged when its write completed *and* a flush that was submitted after that
//! completion succeeded. Flushes of a file are grouped over the commit interval, earlier when the
//! buffers run short, and overlap writing.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use wirevault_buffer::{ChunkBuf, Pool};
use wirevault_format::{Cause, LifeId};
use wirevault_index::ChunkDelta;
use wirevault_nvme::{Completion, Queue, QueueReport, Slot};
use wirevault_telemetry::histogram::Latency;

use crate::ack::{LaneAcks, Span};
use crate::closer::ToCloser;
use crate::live::LiveSegment;
use crate::status::lock;

/// Share of the buffers in flight above which a flush does not wait for the commit interval.
const COMMIT_PRESSURE: f64 = 0.3;
/// Wait for a completion while new chunks may arrive. Bounds the delay of a chunk that arrives
/// meanwhile.
const BUSY_WAIT: Duration = Duration::from_millis(1);
/// Wait for chunks when nothing is in flight.
const IDLE_WAIT: Duration = Duration::from_millis(50);
/// Tokens of flushes have this bit; tokens of writes do not.
const SYNC_TOKEN: u64 = 1 << 63;

/// A chunk on its way to the device.
pub(crate) struct WriteJob {
    pub segment: Arc<LiveSegment>,
    pub buf: Option<ChunkBuf>,
    pub offset: u64,
    pub chunk_bytes: usize,
    pub span: Span,
    pub delta: Box<ChunkDelta>,
    pub acks: Arc<LaneAcks>,
}

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
    pub written_bytes: std::sync::atomic::AtomicU64,
    /// Chunks given up because the device failed.
    pub failed_chunks: std::sync::atomic::AtomicU64,
    /// Index deltas that found no room on their way.
    pub lost_deltas: std::sync::atomic::AtomicU64,
}

pub(crate) struct Writer {
    pub queue: Box<dyn Queue>,
    pub from_sealers: Receiver<WriteJob>,
    pub closer: Sender<ToCloser>,
    pub pool: Pool,
    pub commit_interval: Duration,
    pub shared: Arc<WriterShared>,
    pub files: HashMap<LifeId, FileState>,
    pub writing: HashMap<u64, (WriteJob, Instant)>,
    pub next_token: u64,
}

/// One file that is being written.
pub(crate) struct FileState {
    slot: Slot,
    segment: Arc<LiveSegment>,
    writing: usize,
    /// Written, and not covered by a flush yet.
    written: Vec<WriteJob>,
    written_since: Option<Instant>,
    syncing: Option<Syncing>,
}

/// A flush that is under way, and the chunks it makes durable.
struct Syncing {
    token: u64,
    jobs: Vec<WriteJob>,
    since: Instant,
}

impl Writer {
    /// Runs until every sealer is gone and everything is acknowledged or given up.
    pub(crate) fn run(mut self) {
        let mut open = true;
        let mut completions = Vec::new();
        while open || !self.files.is_empty() || !self.writing.is_empty() {
            open = self.submit_all(open);
            self.commit(!open);
            let in_flight = self.queue.in_flight() > 0;
            if (in_flight || !open)
                && let Err(error) = self.queue.poll(BUSY_WAIT, &mut completions)
            {
                tracing::error!("the device queue failed: {error}");
                std::thread::sleep(BUSY_WAIT);
            }
            for completion in completions.drain(..) {
                self.complete(completion);
            }
            self.forget_done(!open);
        }
    }

    /// Submits what has arrived; `false` when no more can arrive.
    fn submit_all(&mut self, open: bool) -> bool {
        let dirty = self.files.values().any(|file| file.written_since.is_some());
        if open && self.queue.in_flight() == 0 && !dirty {
            match self.from_sealers.recv_timeout(IDLE_WAIT) {
                Ok(job) => self.submit(job),
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        } else if open && self.queue.in_flight() == 0 {
            match self.from_sealers.recv_timeout(BUSY_WAIT) {
                Ok(job) => self.submit(job),
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        loop {
            match self.from_sealers.try_recv() {
                Ok(job) => self.submit(job),
                Err(TryRecvError::Empty) => return open,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn submit(&mut self, mut job: WriteJob) {
        let life = job.segment.open.entry.life;
        if !self.files.contains_key(&life) {
            match self.queue.attach(&job.segment.open.file) {
                Ok(slot) => {
                    let file = FileState {
                        slot,
                        segment: Arc::clone(&job.segment),
                        writing: 0,
                        written: Vec::new(),
                        written_since: None,
                        syncing: None,
                    };
                    self.files.insert(life, file);
                    *lock(&self.shared.report) = Some(self.queue.report());
                }
                Err(error) => {
                    tracing::error!("segment file could not be opened for writing: {error}");
                    self.give_up(job);
                    return;
                }
            }
        }
        let Some(slot) = self.files.get(&life).map(|file| file.slot) else { return };
        let token = self.next_token;
        self.next_token += 1;
        while let Some(buf) = job.buf.take() {
            match self.queue.write(slot, job.offset, buf, job.chunk_bytes, token) {
                Ok(()) => {}
                Err(refused) if refused.error.is_backpressure() => {
                    job.buf = Some(refused.buf);
                    let mut completions = Vec::new();
                    if let Err(error) = self.queue.poll(BUSY_WAIT, &mut completions) {
                        tracing::error!("the device queue failed: {error}");
                    }
                    completions.into_iter().for_each(|completion| self.complete(completion));
                }
                Err(refused) => {
                    tracing::error!("a write was refused: {}", refused.error);
                    drop(refused.buf);
                    self.give_up(job);
                    return;
                }
            }
        }
        if let Some(file) = self.files.get_mut(&life) {
            file.writing += 1;
        }
        self.writing.insert(token, (job, Instant::now()));
    }

    /// Flushes files whose written chunks have waited long enough.
    fn commit(&mut self, now: bool) {
        let pressed = self.pool.pressure() > COMMIT_PRESSURE;
        let mut lost = Vec::new();
        for file in self.files.values_mut() {
            let Some(since) = file.written_since.filter(|_| file.syncing.is_none()) else {
                continue;
            };
            // At the end the last flush waits for the last write, so that one flush covers all.
            let due = match now {
                true => file.writing == 0,
                false => since.elapsed() >= self.commit_interval,
            };
            if !due && !pressed {
                continue;
            }
            let token = SYNC_TOKEN | self.next_token;
            match self.queue.sync(file.slot, token) {
                Ok(()) => {
                    self.next_token += 1;
                    let jobs = std::mem::take(&mut file.written);
                    file.syncing = Some(Syncing { token, jobs, since: Instant::now() });
                    file.written_since = None;
                }
                Err(error) if error.is_backpressure() => {}
                Err(error) => {
                    tracing::error!("a flush was refused: {error}");
                    file.written_since = None;
                    lost.append(&mut file.written);
                }
            }
        }
        lost.into_iter().for_each(|job| self.give_up(job));
    }

    fn complete(&mut self, completion: Completion) {
        match completion {
            Completion::Write { token, buf, result } => self.complete_write(token, buf, result),
            Completion::Sync { token, result } => self.complete_sync(token, result),
        }
    }

    fn complete_write(&mut self, token: u64, buf: ChunkBuf, result: std::io::Result<()>) {
        let Some((mut job, since)) = self.writing.remove(&token) else { return };
        self.shared.write_latency.record_ns(since.elapsed().as_nanos() as u64);
        let Some(file) = self.files.get_mut(&job.segment.open.entry.life) else { return };
        file.writing -= 1;
        match result {
            Ok(()) => {
                // The bytes stay in the arena until they are durable.
                job.buf = Some(buf);
                self.shared.written_bytes.fetch_add(job.chunk_bytes as u64, Ordering::Relaxed);
                file.written_since.get_or_insert_with(Instant::now);
                file.written.push(job);
            }
            Err(error) => {
                let (volume, place) = (job.segment.open.volume, job.segment.open.place);
                tracing::error!(volume, place, "a chunk could not be written: {error}");
                drop(buf);
                self.give_up(job);
            }
        }
    }

    fn complete_sync(&mut self, token: u64, result: std::io::Result<()>) {
        let of_token = |file: &&mut FileState| {
            file.syncing.as_ref().is_some_and(|syncing| syncing.token == token)
        };
        let Some(file) = self.files.values_mut().find(of_token) else { return };
        let Some(Syncing { jobs, since, .. }) = file.syncing.take() else { return };
        self.shared.sync_latency.record_ns(since.elapsed().as_nanos() as u64);
        if let Err(error) = result {
            let (volume, place) = (file.segment.open.volume, file.segment.open.place);
            tracing::error!(volume, place, "a flush failed: {error}");
            // After a failed flush nobody knows which of the file's pages are durable.
            let written = std::mem::take(&mut file.written);
            file.written_since = None;
            jobs.into_iter().chain(written).for_each(|job| self.give_up(job));
            return;
        }
        file.segment.settled_chunks.fetch_add(jobs.len() as u32, Ordering::AcqRel);
        acknowledge(&jobs);
        for job in jobs {
            let told = self.closer.try_send(ToCloser::Durable(job.segment, job.delta));
            if let Err(refused) = told
                && let ToCloser::Durable(segment, _) = refused.into_inner()
            {
                segment.index_lost.store(true, Ordering::Release);
                self.shared.lost_deltas.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// The chunk cannot be made durable: its packets are counted as dropped, and its segment takes
    /// no more.
    fn give_up(&mut self, job: WriteJob) {
        job.segment.failed.store(true, Ordering::Release);
        job.segment.settled_chunks.fetch_add(1, Ordering::AcqRel);
        job.segment.index_lost.store(true, Ordering::Release);
        self.shared.failed_chunks.fetch_add(1, Ordering::Relaxed);
        job.acks.lost(&job.span, Cause::DeviceFailed);
    }

    /// Lets go of files of which nothing is in flight and nothing more can come.
    fn forget_done(&mut self, ending: bool) {
        let queue = &mut self.queue;
        self.files.retain(|_, file| {
            let idle = file.writing == 0 && file.written.is_empty() && file.syncing.is_none();
            // Only the sealer's side and the registry hold the segment while it is being written.
            let done = idle && (ending || file.segment.ended.load(Ordering::Acquire));
            if done && let Err(error) = queue.detach(file.slot) {
                tracing::error!("a segment file could not be let go: {error}");
            }
            !done
        });
    }
}

/// Acknowledges chunks, one lock a run of chunks of one lane.
fn acknowledge(jobs: &[WriteJob]) {
    for group in jobs.chunk_by(|a, b| Arc::ptr_eq(&a.acks, &b.acks)) {
        let spans: Vec<Span> = group.iter().map(|job| job.span).collect();
        group[0].acks.acknowledged(&spans);
    }
}
