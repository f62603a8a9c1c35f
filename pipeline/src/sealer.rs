//! The sealer of a lane: takes full chunks in order, notes their flows, seals them and hands them
//! to the writer of the volume on which their segment lies. It owns the lane's open segments.
//!
//! It is a value that never waits. Whoever drives it hands it chunks ([`Sealer::push`]) and calls
//! [`Sealer::advance`], which does what can be done now and says when it wants to be called again:
//!
//! - a thread of its own (*split*), so that lane and sealer use two cores, or
//! - the lane itself (*run to completion*), which seals each chunk as soon as it is full, while its
//!   bytes are in the core's cache, and wakes nobody.
//!
//! What cannot be done yet is a state and not a wait: a chunk whose segment is not there stays at
//! the head of `waiting` until the opener has answered ([`crate::rolling`]), and chunks that a
//! device did not take are sealed again one at a time, between the lane's ([`crate::reseal`]). So
//! an opener that hangs in a flush, or a store without room, never keeps a lane from emptying its
//! ring: chunks wait in the buffer, and only when that is used up does the lane stop taking.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, select};
use crossbeam_queue::ArrayQueue;
use wirevault_buffer::Pool;
use wirevault_format::chunk::{self, ChunkHeader, HEADER_BYTES};
use wirevault_format::footer::CloseReason;
use wirevault_format::{Cause, Gap, Interface, LinkType, RunId};
use wirevault_index::ChunkDelta;
use wirevault_index::flow_table::{FlowOptions, FlowTable};
use wirevault_seal::{DataSealer, SealError};
use wirevault_storage::Store;

use crate::ack::{LaneAcks, Span};
use crate::closer::ToCloser;
use crate::job::{Job, Jobs};
use crate::live::{LiveSegment, Registry};
use crate::note::{Packets, fill_delta, note_flows};
use crate::opener::{Opened, ToOpener};
use crate::pace::Pace;
use crate::reseal::{Mending, Returned};
use crate::status::{BufferTimes, LaneShared, note_since};
use crate::tail::TailHub;
use crate::write_file::{Link, WriteJob};
use crate::writer::WriterShared;

/// Pause between two attempts to open a segment while no volume takes one.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Attempts after which a replay gives up. A live lane goes on: its packets keep coming.
pub(crate) const REPLAY_ATTEMPTS: u32 = 3;
/// How often an idle sealer looks at the age of its segments.
const IDLE_WAIT: Duration = Duration::from_millis(200);
/// How often it looks for what it waits for: a segment, or the end of a pause.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// Its longest sleep while chunks come. What it finds then is still in a cache.
const REST_MAX: Duration = Duration::from_millis(2);

pub(crate) struct Sealer {
    pub run: RunId,
    pub lane: u16,
    pub store: Arc<Store>,
    pub jobs: Jobs,
    /// By volume.
    pub writers: Vec<ToWriter>,
    /// Chunks that a volume's writer may hold before its lanes go on elsewhere.
    pub fair_chunks: usize,
    /// Chunks that a device did not take.
    pub from_writers: Receiver<Box<WriteJob>>,
    pub opener: Sender<ToOpener>,
    pub closer: Sender<ToCloser>,
    pub registry: Arc<Registry>,
    pub deltas: Arc<ArrayQueue<Box<ChunkDelta>>>,
    pub acks: Arc<LaneAcks>,
    pub shared: Arc<LaneShared>,
    pub times: Arc<BufferTimes>,
    pub tail: Arc<TailHub>,
    pub stop: Arc<AtomicBool>,
    /// Packets come from a live source.
    pub live: bool,
    pub segment_age: Duration,
    /// Orders to close all segments that it has followed.
    pub closings_done: u64,
    /// Flows of a segment at most.
    pub flows_max: u32,
    /// A table for the next stream.
    pub spare_table: Option<FlowTable>,
    pub streams: Vec<SealStream>,
    /// The lane's chunks, oldest first; there is a place for every chunk there is.
    pub waiting: VecDeque<Box<Job>>,
    /// The first of them tells of the losses that were known when it came to the front.
    pub first_tells: bool,
    pub returned: Returned,
    /// A failed segment whose chunks are being sealed again.
    pub mending: Option<Mending>,
    /// Nothing is sealed before: one segment after the other failed.
    pub paused_until: Option<Instant>,
    /// Ends of segments that the closer had no room for.
    pub unsent: Vec<ToCloser>,
}

/// The way to a volume's writer.
#[derive(Clone)]
pub(crate) struct ToWriter {
    pub sender: Sender<WriteJob>,
    /// Its thread has the other half of this.
    pub alive: Weak<()>,
    pub shared: Arc<WriterShared>,
}

pub(crate) struct SealStream {
    pub link_type: LinkType,
    watermark: Arc<AtomicU64>,
    /// The opener makes it with the first segment if none was set aside.
    pub table: Option<FlowTable>,
    pub current: Option<Current>,
    /// The next segment, on its way.
    pub next: Option<Next>,
    /// Attempts to open a segment since one opened.
    pub attempts: u32,
    pub retry_at: Option<Instant>,
    /// It takes the chunks of a failed segment and no others.
    pub mends: bool,
}

/// A segment that is on its way.
pub(crate) struct Next {
    /// What it describes.
    pub interfaces: Arc<Vec<Interface>>,
    pub answer: Opened,
}

/// The segment that a stream writes.
pub(crate) struct Current {
    pub segment: Arc<LiveSegment>,
    pub sealer: Option<DataSealer>,
    pub at: u64,
    pub chunks: u32,
    pub since: Instant,
}

/// Where a chunk comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The lane: nobody has seen it yet.
    Lane,
    /// A segment that failed: it is told to watchers and counted as under way already.
    Failed,
}

/// What became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Something was done, and there may be more.
    Done,
    /// It needs something that is not there yet.
    Waits,
    /// There is nothing to do.
    Nothing,
}

impl Sealer {
    /// Drives it on a thread of its own until the lane is gone. While chunks come it sleeps between
    /// two looks, so that the lane has nobody to wake: a wake-up for each chunk took the lane's
    /// core from it a thousand times a second where they share one.
    pub(crate) fn run(mut self, from_lane: &Receiver<Box<Job>>, pool: &Pool) {
        self.set_table_aside();
        let mut pace = Pace::new(REST_MAX);
        let mut rest = IDLE_WAIT;
        loop {
            let free_chunks = pool.capacity() - pool.in_flight();
            match pace.rest(free_chunks).filter(|_| from_lane.is_empty()) {
                Some(nap) => std::thread::sleep(nap.min(rest)),
                None => select! {
                    recv(self.from_writers) -> job => match job {
                        Ok(job) => self.returned.push(*job),
                        // Every writer has panicked; the lane's next chunk will say so.
                        Err(_) => std::thread::sleep(RETRY_PAUSE),
                    },
                    recv(from_lane) -> job => match job {
                        Ok(job) => self.push(job),
                        Err(_) => break,
                    },
                    default(rest) => {}
                },
            }
            from_lane.try_iter().for_each(|job| self.push(job));
            pace.arrived(self.waiting.len());
            rest = self.advance(usize::MAX);
        }
        self.finish();
    }

    /// Before packets come: a table for large segments takes some ten milliseconds.
    pub(crate) fn set_table_aside(&mut self) {
        self.spare_table = Some(FlowTable::new(FlowOptions { flows_max: self.flows_max }));
    }

    /// Takes a chunk from the lane.
    pub(crate) fn push(&mut self, job: Box<Job>) {
        self.waiting.push_back(job);
    }

    /// Does what can be done without waiting: of the lane's chunks `chunks_max` at most, and of
    /// those that came back one. Gives the time after which there is something to do again, if no
    /// chunk comes before.
    pub(crate) fn advance(&mut self, chunks_max: usize) -> Duration {
        self.shared.seal_rounds.fetch_add(1, Ordering::Relaxed);
        self.collect_returned();
        let now = Instant::now();
        let pauses = |sealer: &Self| sealer.paused_until.is_some_and(|until| now < until);
        if pauses(self) {
            return LOOK_AGAIN;
        }
        let mended = self.mend();
        if pauses(self) {
            return LOOK_AGAIN;
        }
        let mut sealed = 0;
        while sealed < chunks_max && self.seal_next() {
            sealed += 1;
        }
        self.close_aged(now);
        self.send_ends();
        let cut_short = sealed == chunks_max && !self.waiting.is_empty();
        if mended == Step::Done || cut_short {
            Duration::ZERO
        } else if mended == Step::Waits || !self.waiting.is_empty() || !self.unsent.is_empty() {
            LOOK_AGAIN
        } else {
            IDLE_WAIT
        }
    }

    /// No more comes from the lane: waits until the fate of its last chunk is known, and closes
    /// the segments.
    pub(crate) fn finish(mut self) {
        while !self.waiting.is_empty() {
            let rest = self.advance(usize::MAX);
            if !self.waiting.is_empty() {
                std::thread::sleep(rest);
            }
        }
        for at in 0..self.streams.len() {
            if !self.streams[at].mends {
                self.close(at, CloseReason::Stop);
                self.forget_next(at);
            }
        }
        self.wait_for_writers();
        for end in self.unsent.drain(..) {
            let _ = self.closer.send(end);
        }
    }

    /// Seals the oldest chunk of the lane, if there is one and its segment is there.
    fn seal_next(&mut self) -> bool {
        let Some(mut job) = self.waiting.pop_front() else { return false };
        let at = self.stream(job.link_type);
        if !std::mem::replace(&mut self.first_tells, true) {
            let lost = self.acks.take_lost(|gap| job.push_gap(gap));
            job.dropped.iter_mut().zip(lost).for_each(|(dropped, lost)| *dropped += lost);
        }
        if let Some(job) = self.place(at, job, Origin::Lane) {
            self.waiting.push_front(job);
            return false;
        }
        self.first_tells = false;
        true
    }

    /// Seals a chunk into its stream's segment. Gives it back while there is none for it.
    pub(crate) fn place(
        &mut self,
        at: usize,
        mut job: Box<Job>,
        origin: Origin,
    ) -> Option<Box<Job>> {
        let chunk_bytes = (HEADER_BYTES + job.payload_bytes() + chunk::TAIL_BYTES_MIN)
            .next_multiple_of(wirevault_format::limits::LBA_BYTES) as u64;
        self.roll(at, &job, chunk_bytes);
        match self.open(at, &job.interfaces) {
            Step::Done => {}
            Step::Waits => return Some(job),
            Step::Nothing => {
                self.give_up(&span(&job), &job.gaps);
                self.jobs.put(job);
                return None;
            }
        }
        if let Err(error) = self.seal_and_send(at, &mut job, origin) {
            // A chunk that cannot be sealed is never written in the clear.
            self.shared.fail(&error.to_string());
            tracing::error!(lane = self.lane, "a chunk could not be sealed: {error}");
            self.give_up(&span(&job), &job.gaps);
            self.close(at, CloseReason::DeviceFailed);
        }
        self.jobs.put(job);
        None
    }

    /// A chunk goes nowhere: its packets are counted as dropped, and another one tells of
    /// that, and of the gaps that stood in it.
    pub(crate) fn give_up(&self, span: &Span, gaps: &[Gap]) {
        self.acks.untold(gaps);
        self.acks.lost(span, Cause::DeviceFailed);
    }

    fn seal_and_send(
        &mut self,
        at: usize,
        job: &mut Box<Job>,
        origin: Origin,
    ) -> Result<(), SealError> {
        let lane = self.lane;
        let stream = &mut self.streams[at];
        let (Some(current), Some(table)) = (stream.current.as_mut(), stream.table.as_mut()) else {
            return Ok(());
        };
        let Some(buf) = job.buf.as_mut() else { return Ok(()) };
        if origin == Origin::Lane && self.tail.is_watched() {
            let (payload, packets) = (&buf[HEADER_BYTES..job.end], job.epb_at.len());
            self.tail.publish(&job.interfaces, job.link_type, lane, payload, packets);
        }
        let header = ChunkHeader {
            sealed: current.sealer.is_some(),
            gaps: !job.gaps.is_empty(),
            lane,
            link_type: stream.link_type,
            life: current.segment.open.entry.life,
            run: self.run,
            number: current.chunks,
            payload_bytes: job.payload_bytes() as u32,
            first_sequence: job.first_sequence,
            packets: job.epb_at.len() as u32,
            times_ns: job.times_ns,
            received: job.received,
            shed: job.shed,
            dropped: job.dropped.iter().sum(),
            watermark: stream.watermark.load(Ordering::Acquire),
        };
        // Without room for what this chunk adds to the index, queries scan the chunk.
        let spare = self.deltas.pop();
        let indexed = spare.is_some();
        let mut unparsed = 0;
        let mut delta = spare.unwrap_or_else(|| Box::new(ChunkDelta::small()));
        fill_delta(&mut delta, &header, current.at, job);
        let buf = job.buf.as_mut().expect("the chunk was there above");
        if indexed {
            let (link_type, from) = (stream.link_type, &job.interfaces[..]);
            let packets =
                Packets { link_type, from, chunk: buf, at: &job.epb_at, coarse: job.coarse };
            unparsed = note_flows(table, &mut delta, &packets);
        } else {
            delta.unindexed = true;
        }
        if delta.unindexed {
            self.shared.unindexed_chunks.fetch_add(1, Ordering::Relaxed);
        } else if !delta.loose.is_empty() {
            self.shared.filtered_chunks.fetch_add(1, Ordering::Relaxed);
        }
        self.shared.flows.store(table.len() as u64, Ordering::Relaxed);
        self.shared.flows_max.store(table.flows_max() as u64, Ordering::Relaxed);
        header.encode(buf);
        let link = match &mut current.sealer {
            Some(sealer) => {
                let (aad, payload) = buf.split_at_mut(HEADER_BYTES);
                let payload = &mut payload[..header.payload_bytes as usize];
                let tag = sealer.seal(header.number, aad, payload)?;
                chunk::put_sealed_tail(buf, &header, &tag);
                Link::new(&tag)
            }
            None => {
                chunk::put_plain_tail(buf, &header);
                let crc_at = HEADER_BYTES + header.payload_bytes as usize + 40;
                Link::new(&buf[crc_at..crc_at + 4])
            }
        };
        let chunk_bytes = header.chunk_bytes();
        let offset = current.at;
        current.at += chunk_bytes as u64;
        current.chunks += 1;
        current.segment.sealed_chunks.fetch_add(1, Ordering::AcqRel);
        let span = Span { unparsed, ..span(job) };
        if origin == Origin::Lane {
            self.acks.submitted(&span);
        }
        let segment = Arc::clone(&current.segment);
        let volume = segment.open.volume;
        let write = WriteJob {
            segment,
            buf: job.buf.take(),
            number: header.number,
            offset,
            chunk_bytes,
            captured_bytes: job.captured_bytes,
            link,
            span,
            delta,
            acks: Arc::clone(&self.acks),
        };
        // The channel has a place for every chunk there is; it refuses only when the writer is
        // gone.
        let begin = Instant::now();
        let writer = &self.writers[volume];
        writer.shared.held_chunks.fetch_add(1, Ordering::Relaxed);
        let sent = writer.sender.try_send(write);
        note_since(&self.times.hand_over, begin);
        if let Err(refused) = sent {
            writer.shared.held_chunks.fetch_sub(1, Ordering::Relaxed);
            self.shared.fail("the writer thread is gone");
            let write = refused.into_inner();
            self.give_up(&write.span, &write.delta.gaps);
        }
        Ok(())
    }

    /// A stream of its own for packets of this link type. The first one takes the table that was
    /// set aside; others get theirs with their first segment.
    pub(crate) fn add_stream(&mut self, link_type: LinkType, mends: bool) -> usize {
        self.streams.push(SealStream {
            link_type,
            watermark: self.acks.watermark(link_type),
            table: self.spare_table.take(),
            current: None,
            next: None,
            attempts: 0,
            retry_at: None,
            mends,
        });
        self.streams.len() - 1
    }
}

pub(crate) fn span(job: &Job) -> Span {
    let (link_type, first, next) = (job.link_type, job.first_sequence, job.next_sequence());
    let (times_ns, open_since_ns) = (job.times_ns, job.open_since_ns);
    Span { link_type, first, next, times_ns, open_since_ns, unparsed: 0 }
}
