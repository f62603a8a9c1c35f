//! Chunks that a device did not take: opened with the key of the life they were sealed for, and
//! sealed again for another.
//!
//! When a segment fails, the lane's packets go on in a new one at once. What the failed segment had
//! not acknowledged comes back from its writer when nothing of it is under way, and goes into a
//! segment of its own: it lies before the packets that were taken meanwhile, and recovery wants the
//! packets of a segment to follow each other. The failed segment is closed over its durable chunks.
//! It is done chunk by chunk between those of the lane, and one segment after the other.
//! Copies that reached the disk all the same are told apart from these by (run, lane, sequence).
//!
//! This way allocates: it is taken when a device fails, not for a packet.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use wirevault_format::LinkType;
use wirevault_format::chunk::{self, ChunkHeader, HEADER_BYTES};
use wirevault_format::footer::CloseReason;
use wirevault_format::pcapng::{BLOCK_EPB, Blocks};
use wirevault_seal::DataOpener;

use crate::job::Job;
use crate::live::LiveSegment;
use crate::sealer::{Origin, REPLAY_ATTEMPTS, RETRY_PAUSE, Sealer, Step};
use crate::write_file::WriteJob;

/// Rounds of failures without a packet becoming durable after which the sealer pauses before each
/// further one, and shows that it is blocked: opening segments works, writing them does not.
const BARREN_MAX: u32 = 2;

/// Chunks that came back.
#[derive(Default)]
pub(crate) struct Returned {
    chunks: Vec<WriteJob>,
    /// Rounds of failures since a packet became durable. Segments that were open together and fail
    /// together are one round.
    barren: u32,
    /// Packets that were durable when the last segment failed.
    stored: u64,
    /// Largest ordinal of a segment that this lane opened; the same when the last round began.
    opened: u64,
    round: u64,
}

impl Returned {
    pub(crate) fn push(&mut self, job: WriteJob) {
        self.chunks.push(job);
    }

    pub(crate) fn note_opened(&mut self, ordinal: u64) {
        self.opened = self.opened.max(ordinal);
    }

    /// Counts a failure. Whether it begins another round.
    fn note_failed(&mut self, ordinal: u64, stored: u64) -> bool {
        if stored > self.stored {
            (self.barren, self.round) = (0, 0);
        }
        self.stored = stored;
        if ordinal <= self.round {
            return false;
        }
        self.round = self.opened;
        self.barren += 1;
        true
    }
}

/// A failed segment whose chunks are being sealed again.
pub(crate) struct Mending {
    link_type: LinkType,
    /// Opens them; a plain store's need none.
    opener: Result<Option<DataOpener>, String>,
    /// In order.
    chunks: VecDeque<WriteJob>,
    begun: bool,
    /// The one that waits for a segment.
    reopened: Option<Box<Job>>,
}

impl Sealer {
    /// Segments fail one after the other, and nothing becomes durable.
    pub(crate) fn is_barren(&self) -> bool {
        self.returned.barren >= BARREN_MAX
    }

    /// Acts on the failure of a segment, once: says so, and lets go of the segments that were
    /// ordered before it was known.
    pub(crate) fn note_failure(&mut self, segment: &Arc<LiveSegment>) {
        let Some(why) = segment.failure() else { return };
        if segment.failure_noted.swap(true, Ordering::AcqRel) {
            return;
        }
        self.shared.fail(why);
        for at in 0..self.streams.len() {
            self.forget_next(at);
        }
    }

    /// Takes what came back, and acts on failures of the segments that are open.
    pub(crate) fn collect_returned(&mut self) {
        if self.returned.barren > 0 && self.acks.stored() > self.returned.stored {
            self.returned.barren = 0;
            self.shared.set_blocked(false);
        }
        while let Ok(job) = self.from_writers.try_recv() {
            self.returned.push(*job);
        }
        for at in 0..self.streams.len() {
            let current = self.streams[at].current.as_ref().map(|current| &current.segment);
            let failed = |segment: &&Arc<LiveSegment>| segment.failure().is_some();
            if let Some(segment) = current.filter(failed).cloned() {
                self.note_failure(&segment);
                self.close(at, CloseReason::DeviceFailed);
            }
        }
    }

    /// Seals one chunk of a failed segment again, in a segment of its own. The next failed segment
    /// is begun with when it is settled.
    pub(crate) fn mend(&mut self) -> Step {
        let Some(mut mending) = self.mending.take() else { return self.begin_mending() };
        // Asked once, behind the pause: what is begun is brought to its end.
        if !std::mem::replace(&mut mending.begun, true) && self.is_hopeless() {
            mending.chunks.iter().for_each(|job| self.give_up(&job.span, &job.delta.gaps));
            return Step::Done;
        }
        let begun = self.streams.iter().position(|stream| stream.mends);
        let at = begun.unwrap_or_else(|| self.add_stream(mending.link_type, true));
        let next = mending.reopened.take().or_else(|| self.reopen_next(&mut mending));
        if let Some(job) = next {
            mending.reopened = self.place(at, job, Origin::Failed);
            let waits = mending.reopened.is_some();
            self.mending = Some(mending);
            return if waits { Step::Waits } else { Step::Done };
        }
        self.close(at, CloseReason::DeviceFailed);
        self.forget_next(at);
        self.spare_table = self.streams.remove(at).table;
        Step::Done
    }

    /// Looks for a failed segment whose chunks are all back.
    fn begin_mending(&mut self) -> Step {
        let settled = |job: &WriteJob| job.segment.is_settled();
        let Some(at) = self.returned.chunks.iter().position(settled) else { return Step::Nothing };
        let segment = Arc::clone(&self.returned.chunks[at].segment);
        let same = |job: &mut WriteJob| Arc::ptr_eq(&job.segment, &segment);
        let mut chunks: Vec<WriteJob> = self.returned.chunks.extract_if(.., same).collect();
        chunks.sort_by_key(|job| job.number);
        self.note_failure(&segment);
        let entry = &segment.open.entry;
        let (lane, life, count) = (self.lane, entry.life, chunks.len());
        tracing::warn!(lane, %life, chunks = count, "chunks are to be sealed again");
        let stored = self.acks.stored();
        if self.returned.note_failed(entry.ordinal, stored) && self.is_barren() {
            self.shared.set_blocked(true);
            self.paused_until = Some(Instant::now() + RETRY_PAUSE);
        }
        let opener = segment.open.keys.as_ref().map(|keys| keys.data_opener()).transpose();
        self.mending = Some(Mending {
            link_type: entry.link_type,
            opener: opener.map_err(|error| error.to_string()),
            chunks: chunks.into(),
            begun: false,
            reopened: None,
        });
        Step::Done
    }

    /// Whether it is no use to try another segment: nothing became durable in several rounds, and
    /// nobody waits for the device to come back.
    fn is_hopeless(&mut self) -> bool {
        let tried = self.returned.barren >= REPLAY_ATTEMPTS;
        if tried && !self.live {
            self.stop.store(true, Ordering::Relaxed);
        }
        tried && self.stop.load(Ordering::Relaxed)
    }

    /// The next chunk that can be opened; those that cannot are given up.
    fn reopen_next(&self, mending: &mut Mending) -> Option<Box<Job>> {
        loop {
            let write = mending.chunks.pop_front()?;
            let (span, gaps) = (write.span, write.delta.gaps.clone());
            let opened = match &mending.opener {
                Ok(opener) => self.reopened(write, opener.as_ref()),
                Err(error) => Err(error.clone()),
            };
            match opened {
                Ok(job) => return Some(job),
                Err(error) => {
                    self.shared.fail(&error);
                    tracing::error!(lane = self.lane, "a chunk cannot be sealed again: {error}");
                    self.give_up(&span, &gaps);
                }
            }
        }
    }

    /// The chunk as the lane filled it.
    fn reopened(
        &self,
        mut write: WriteJob,
        opener: Option<&DataOpener>,
    ) -> Result<Box<Job>, String> {
        let Some(mut buf) = write.buf.take() else { return Err("its bytes are gone".to_owned()) };
        let text = |error: &dyn std::error::Error| error.to_string();
        let header = ChunkHeader::decode(&buf).map_err(|error| text(&error))?;
        let payload_end = HEADER_BYTES + header.payload_bytes as usize;
        match opener {
            Some(opener) => {
                let parts = chunk::sealed_parts(&mut buf, &header).map_err(|e| text(&e))?;
                opener
                    .open(header.number, parts.aad, parts.ciphertext, &parts.tag)
                    .map_err(|error| text(&error))?;
            }
            None => drop(chunk::plain_payload(&buf, &header).map_err(|error| text(&error))?),
        }
        let mut job = self.jobs.take_or_make(buf);
        job.link_type = header.link_type;
        job.interfaces = Arc::clone(&write.segment.interfaces);
        job.end = payload_end;
        job.first_sequence = header.first_sequence;
        job.times_ns = header.times_ns;
        job.open_since_ns = write.span.open_since_ns;
        job.captured_bytes = write.captured_bytes;
        job.gaps.extend_from_slice(&write.delta.gaps);
        (job.received, job.shed, job.dropped) =
            (write.delta.received, write.delta.shed, write.delta.dropped);
        let Job { buf, epb_at, .. } = &mut *job;
        let payload = buf.as_ref().map_or(&[][..], |buf| &buf[HEADER_BYTES..payload_end]);
        for block in Blocks::new(payload) {
            let block = block.map_err(|error| text(&error))?;
            if block.kind == BLOCK_EPB {
                epb_at.push((HEADER_BYTES + block.offset) as u32);
            }
        }
        if write.delta.is_full_size() {
            let _ = self.deltas.push(write.delta);
        }
        Ok(job)
    }

    /// Waits until the fate of every chunk is known.
    pub(crate) fn wait_for_writers(&mut self) {
        while self.acks.outstanding() > 0 {
            let rest = self.advance(0).min(RETRY_PAUSE / 100);
            match self.from_writers.recv_timeout(rest) {
                Ok(job) => self.returned.push(*job),
                Err(_) if self.writers.iter().any(|it| it.alive.strong_count() == 0) => return,
                Err(_) => {}
            }
        }
    }
}
