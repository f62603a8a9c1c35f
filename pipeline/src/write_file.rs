//! One segment file at its writer: which chunks are waiting, under way, written, durable.
//!
//! A segment is acknowledged in the order of its chunks. What is durable of it is therefore always
//! its first chunks without a hole, whatever order the device ends in; when the file fails, the
//! rest goes back to the lane as one run of packets, and recovery finds no acknowledged chunk
//! behind one that is missing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wirevault_buffer::ChunkBuf;
use wirevault_index::ChunkDelta;
use wirevault_nvme::Slot;

use crate::ack::{LaneAcks, Span};
use crate::live::LiveSegment;

/// What the chain of a segment's footer takes of a chunk: a tag of 16 bytes, or a CRC of 4.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    bytes: [u8; 16],
    len: u8,
}

impl Link {
    pub(crate) fn new(link: &[u8]) -> Self {
        let mut bytes = [0; 16];
        let len = link.len().min(bytes.len());
        bytes[..len].copy_from_slice(&link[..len]);
        Self { bytes, len: len as u8 }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// A chunk on its way to the device. It keeps its buffer until it is durable, so that it can be
/// sealed again for another segment.
pub(crate) struct WriteJob {
    pub segment: Arc<LiveSegment>,
    /// `None` only while the queue has it.
    pub buf: Option<ChunkBuf>,
    pub number: u32,
    pub offset: u64,
    pub chunk_bytes: usize,
    pub captured_bytes: u64,
    pub link: Link,
    pub span: Span,
    pub delta: Box<ChunkDelta>,
    pub acks: Arc<LaneAcks>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not submitted.
    Waiting,
    /// The queue has it.
    Writing,
    /// Written, and no flush that covers it was submitted.
    Written,
    /// Written, and a flush that covers it is under way.
    Syncing,
    /// Durable, but one before it is not.
    Durable,
}

/// A chunk and how far it has come.
pub(crate) struct Held {
    job: WriteJob,
    state: State,
    arrived: Instant,
    since: Instant,
}

/// A write that ended.
pub(crate) struct Written {
    pub offset: u64,
    pub chunk_bytes: usize,
    pub took: Duration,
}

/// One file that is being written.
pub(crate) struct WriteFile {
    /// Names the file in tokens of the queue.
    pub key: u32,
    /// `None` if the queue did not take the file.
    pub slot: Option<Slot>,
    pub segment: Arc<LiveSegment>,
    /// Chunks that are not acknowledged, in order of their numbers.
    chunks: VecDeque<Held>,
    /// Number of the first of them.
    first: u32,
    /// Of `chunks`, how many were submitted.
    submitted: usize,
    writing: usize,
    written_since: Option<Instant>,
    syncing_since: Option<Instant>,
    /// Flushes of the volume beside the queue that had failed when it was last looked at.
    failed_syncs: u64,
}

impl WriteFile {
    /// `chunks` is an empty list that a file before this one may have used.
    pub(crate) fn new(
        key: u32,
        slot: Option<Slot>,
        segment: Arc<LiveSegment>,
        chunks: VecDeque<Held>,
    ) -> Self {
        let (written_since, syncing_since) = (None, None);
        let failed_syncs = segment.open.failed_syncs();
        Self {
            key,
            slot,
            segment,
            chunks,
            first: 0,
            submitted: 0,
            writing: 0,
            written_since,
            syncing_since,
            failed_syncs,
        }
    }

    /// Takes a chunk from the lane, which hands them on in order of their numbers.
    pub(crate) fn push(&mut self, job: WriteJob) {
        if self.chunks.is_empty() {
            self.first = job.number;
        }
        debug_assert_eq!(job.number as usize, self.first as usize + self.chunks.len());
        let arrived = Instant::now();
        self.chunks.push_back(Held { job, state: State::Waiting, arrived, since: arrived });
    }

    /// Chunks to submit. Those of a file that failed go back instead.
    pub(crate) fn waiting_chunks(&self) -> usize {
        match self.slot.is_some() && self.segment.failure().is_none() {
            true => self.chunks.len() - self.submitted,
            false => 0,
        }
    }

    /// The chunk to submit next; [`WriteFile::submitted`] says that it was.
    pub(crate) fn waiting(&mut self) -> Option<&mut WriteJob> {
        if self.waiting_chunks() == 0 {
            return None;
        }
        self.chunks.get_mut(self.submitted).map(|held| &mut held.job)
    }

    pub(crate) fn submitted(&mut self) {
        if let Some(held) = self.chunks.get_mut(self.submitted) {
            (held.state, held.since) = (State::Writing, Instant::now());
            self.submitted += 1;
            self.writing += 1;
        }
    }

    /// A write ended, well or not; the chunk's bytes stay in the arena.
    pub(crate) fn written(&mut self, number: u32, buf: ChunkBuf) -> Option<Written> {
        let at = number.checked_sub(self.first)? as usize;
        let held = self.chunks.get_mut(at).filter(|held| held.state == State::Writing)?;
        held.job.buf = Some(buf);
        held.state = State::Written;
        self.writing -= 1;
        self.written_since.get_or_insert_with(Instant::now);
        let (offset, chunk_bytes) = (held.job.offset, held.job.chunk_bytes);
        Some(Written { offset, chunk_bytes, took: held.since.elapsed() })
    }

    /// Whether a flush is due: something is written, no flush is under way, and either it has
    /// waited for `interval`, or nothing else will come before it that it could cover as well.
    pub(crate) fn sync_is_due(&self, interval: Duration, ending: bool) -> bool {
        let Some(since) = self.written_since.filter(|_| self.syncing_since.is_none()) else {
            return false;
        };
        let last = ending && self.writing == 0 && self.submitted == self.chunks.len();
        last || since.elapsed() >= interval
    }

    /// A flush was submitted: it covers what is written by now.
    pub(crate) fn sync_submitted(&mut self) {
        for held in &mut self.chunks {
            if held.state == State::Written {
                held.state = State::Syncing;
            }
        }
        (self.written_since, self.syncing_since) = (None, Some(Instant::now()));
    }

    /// The flush ended, well or not; what it covers is durable unless the segment failed.
    pub(crate) fn synced(&mut self) -> Option<Duration> {
        let since = self.syncing_since.take()?;
        for held in &mut self.chunks {
            if held.state == State::Syncing {
                held.state = State::Durable;
            }
        }
        Some(since.elapsed())
    }

    /// When the oldest write or flush under way was submitted.
    pub(crate) fn oldest_under_way(&self) -> Option<Instant> {
        let writing = self.chunks.iter().filter(|held| held.state == State::Writing);
        writing.map(|held| held.since).chain(self.syncing_since).min()
    }

    /// When the oldest chunk that it holds arrived.
    pub(crate) fn oldest_arrival(&self) -> Option<Instant> {
        self.chunks.front().map(|held| held.arrived)
    }

    /// Something may be on the device that no successful flush covers yet: a write may have ended
    /// there before it is told.
    pub(crate) fn has_unflushed(&self) -> bool {
        self.writing > 0 || self.written_since.is_some() || self.syncing_since.is_some()
    }

    /// Whether a flush of the volume beside the queue failed since this was asked last.
    pub(crate) fn lost_a_sync(&mut self) -> bool {
        let failed = self.segment.open.failed_syncs();
        std::mem::replace(&mut self.failed_syncs, failed) != failed
    }

    /// The queue gives nothing back any more: what it had is gone.
    pub(crate) fn abandon(&mut self) {
        for held in self.chunks.iter_mut().filter(|held| held.state == State::Writing) {
            held.state = State::Written;
        }
        (self.slot, self.writing, self.syncing_since) = (None, 0, None);
    }

    /// The next chunk to acknowledge.
    pub(crate) fn pop_durable(&mut self) -> Option<WriteJob> {
        let durable = |held: &mut Held| held.state == State::Durable;
        let held = self.chunks.pop_front_if(durable)?;
        self.first += 1;
        self.submitted -= 1;
        Some(held.job)
    }

    /// The next chunk of a failed file to give back, once nothing of it is under way.
    pub(crate) fn pop_failed(&mut self) -> Option<WriteJob> {
        if self.writing > 0 || self.syncing_since.is_some() {
            return None;
        }
        let held = self.chunks.pop_front()?;
        self.first += 1;
        self.submitted = self.submitted.saturating_sub(1);
        self.written_since = None;
        Some(held.job)
    }

    /// No chunk is held.
    pub(crate) fn is_idle(&self) -> bool {
        self.chunks.is_empty() && self.syncing_since.is_none()
    }

    /// The list, to be used again.
    pub(crate) fn into_list(self) -> VecDeque<Held> {
        self.chunks
    }
}
