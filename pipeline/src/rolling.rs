//! The segments that a sealer writes: ordered ahead, opened, rolled over, closed.
//!
//! The thread that opens segments flushes tables while it does so. So the next segment is ordered
//! when the current one is half full, and the sealer looks for the answer instead of waiting for
//! it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crossbeam_channel::{TryRecvError, TrySendError, bounded};
use wirevault_format::footer::CloseReason;
use wirevault_format::{Interface, LinkType};
use wirevault_index::flow_table::{FlowOptions, FlowTable};
use wirevault_storage::OpenSegment;

use crate::closer::{Closing, ToCloser};
use crate::job::Job;
use crate::opener::{OpenOrder, ToOpener, Wish};
use crate::sealer::{
    Current, Next, REPLAY_ATTEMPTS, RETRY_PAUSE, SealStream, Sealer, Step, ToWriter,
};

impl Sealer {
    /// Closes the current segment if it cannot take the chunk, or if its device failed.
    pub(crate) fn roll(&mut self, at: usize, job: &Job, chunk_bytes: u64) {
        let Some(current) = &self.streams[at].current else { return };
        let reason = if current.segment.failure().is_some() {
            let segment = Arc::clone(&current.segment);
            self.note_failure(&segment);
            CloseReason::DeviceFailed
        } else if !describes(&current.segment.interfaces, &job.interfaces) {
            CloseReason::NewInterface
        } else if current.at + chunk_bytes > current.segment.open.data_end {
            CloseReason::Full
        } else if self.is_crowded(current.segment.open.volume) {
            // It was chosen when the device was quick.
            self.forget_next(at);
            CloseReason::SlowDevice
        } else {
            self.prepare(at, &job.interfaces);
            return;
        };
        self.close(at, reason);
    }

    /// Whether a volume's writer holds more than its share of the buffer while another one has room
    /// for more: its device is slower than the lanes that write there, or hangs. They go on
    /// elsewhere, so that no device ever holds the chunks that other devices' lanes need. Where one
    /// has failed lately there is no room: what fails at once is never busy.
    fn is_crowded(&self, volume: usize) -> bool {
        let held = |writer: &ToWriter| writer.shared.held_chunks.load(Ordering::Relaxed);
        let has_room = |(volume, writer): (usize, &ToWriter)| {
            held(writer) < self.fair_chunks / 2
                && !writer.shared.stalled.load(Ordering::Relaxed)
                && !self.store.has_failed(volume)
        };
        let mut writers = self.writers.iter().enumerate();
        held(&self.writers[volume]) > self.fair_chunks && writers.any(has_room)
    }

    /// Asks for the next segment when the current one is half full.
    fn prepare(&mut self, at: usize, interfaces: &Arc<Vec<Interface>>) {
        let stream = &self.streams[at];
        let Some(current) = &stream.current else { return };
        let half = current.segment.open.data_offset / 2 + current.segment.open.data_end / 2;
        if stream.next.is_none() && current.at > half {
            self.streams[at].next = Some(self.order(at, interfaces));
        }
    }

    fn order(&self, at: usize, interfaces: &Arc<Vec<Interface>>) -> Next {
        let (reply, answer) = bounded(1);
        let stream = &self.streams[at];
        let wish = Wish {
            lane: self.lane,
            link_type: stream.link_type,
            interfaces: Arc::clone(interfaces),
            table: stream.table.is_none().then_some(FlowOptions { flows_max: self.flows_max }),
        };
        let order = OpenOrder { wish, reply };
        // If the opener is gone the answer is a closed channel, which `open` reports.
        let _ = self.opener.send(ToOpener::Open(order));
        Next { interfaces: Arc::clone(interfaces), answer }
    }

    /// Sees to it that the stream has a segment. `Waits` if it is not there yet, `Nothing` if there
    /// is none and nobody waits for one any more.
    pub(crate) fn open(&mut self, at: usize, interfaces: &Arc<Vec<Interface>>) -> Step {
        let stream = &self.streams[at];
        if stream.current.is_some() {
            return Step::Done;
        }
        if stream.retry_at.is_some_and(|at| Instant::now() < at) {
            return Step::Waits;
        }
        if stream.next.as_ref().is_some_and(|next| !describes(&next.interfaces, interfaces)) {
            self.forget_next(at);
        }
        let ordered = self.streams[at].next.take();
        let next = ordered.unwrap_or_else(|| self.order(at, interfaces));
        let answer = match next.answer.try_recv() {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(TryRecvError::Empty) => {
                self.streams[at].next = Some(next);
                return Step::Waits;
            }
            Err(TryRecvError::Disconnected) => {
                Err("the thread that opens segments is gone".to_owned())
            }
        };
        let begun = answer.and_then(|(segment, table)| {
            let stream = &mut self.streams[at];
            stream.table = stream.table.take().or(table);
            self.begin(at, segment, next.interfaces)
        });
        match begun {
            Ok(()) => Step::Done,
            Err(error) => self.cannot_open(at, &error),
        }
    }

    fn begin(
        &mut self,
        at: usize,
        open: OpenSegment,
        interfaces: Arc<Vec<Interface>>,
    ) -> Result<(), String> {
        let sealer = open.keys.as_ref().map(|keys| keys.data_sealer()).transpose();
        let sealer = sealer.map_err(|error| error.to_string())?;
        let (data_offset, flows_max) = (open.data_offset, open.flows_max);
        self.returned.note_opened(open.entry.ordinal);
        self.shared.set_volume(open.volume);
        let segment = self.registry.add(open, interfaces);
        let stream = &mut self.streams[at];
        let table = stream.table.get_or_insert_with(|| FlowTable::new(FlowOptions { flows_max }));
        table.reset(flows_max);
        let since = Instant::now();
        stream.current = Some(Current { segment, sealer, at: data_offset, chunks: 0, since });
        (stream.attempts, stream.retry_at) = (0, None);
        self.shared.set_blocked(self.is_barren());
        Ok(())
    }

    fn cannot_open(&mut self, at: usize, error: &str) -> Step {
        self.shared.set_blocked(true);
        self.shared.fail(error);
        tracing::error!(lane = self.lane, "no segment can be opened: {error}");
        let stream = &mut self.streams[at];
        stream.attempts += 1;
        if !self.live && stream.attempts == REPLAY_ATTEMPTS {
            // Nobody is served by a replay that waits for a device to come back.
            self.stop.store(true, Ordering::Relaxed);
        }
        if self.stop.load(Ordering::Relaxed) {
            (stream.attempts, stream.retry_at) = (0, None);
            return Step::Nothing;
        }
        stream.retry_at = Some(Instant::now() + RETRY_PAUSE);
        Step::Waits
    }

    /// Lets go of the segment that a stream ordered ahead.
    pub(crate) fn forget_next(&mut self, at: usize) {
        if let Some(Next { answer, .. }) = self.streams[at].next.take() {
            let _ = self.opener.send(ToOpener::Release(answer));
        }
    }

    /// Closes what is old enough, and what holds anything at all if somebody asked for that.
    pub(crate) fn close_aged(&mut self, now: Instant) {
        let asked = self.shared.closings_asked.load(Ordering::Relaxed);
        let all = std::mem::replace(&mut self.closings_done, asked) != asked;
        for at in 0..self.streams.len() {
            let Some(current) = &self.streams[at].current else { continue };
            if now - current.since >= self.segment_age {
                self.close(at, CloseReason::Age);
            } else if all && current.chunks > 0 {
                self.close(at, CloseReason::Stop);
            }
        }
    }

    pub(crate) fn close(&mut self, at: usize, reason: CloseReason) {
        let Some(Current { segment, .. }) = self.streams[at].current.take() else { return };
        segment.ended.store(true, Ordering::Release);
        let acks = Arc::clone(&self.acks);
        let closing = Closing { segment, acks, reason, again_at: None };
        self.unsent.push(ToCloser::End(Box::new(closing)));
        self.send_ends();
    }

    /// Tells the closer of segments that ended. When its inbox is full, later.
    pub(crate) fn send_ends(&mut self) {
        while let Some(end) = self.unsent.pop() {
            if let Err(TrySendError::Full(end)) = self.closer.try_send(end) {
                self.unsent.push(end);
                return;
            }
        }
    }

    /// The stream of a link type.
    pub(crate) fn stream(&mut self, link_type: LinkType) -> usize {
        let same = |stream: &SealStream| !stream.mends && stream.link_type == link_type;
        let known = self.streams.iter().position(same);
        known.unwrap_or_else(|| self.add_stream(link_type, false))
    }
}

/// A segment whose table begins with everything that `wanted` lists can name the interfaces of
/// `wanted`.
fn describes(table: &[Interface], wanted: &[Interface]) -> bool {
    table.starts_with(wanted)
}
