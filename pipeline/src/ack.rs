//! Acknowledgements of one lane: which packets are durable, and the watermark that follows from it.
//!
//! Chunks become durable out of order, and the segments of one stream may lie on several volumes.
//! The watermark of a stream is the sequence below which every chunk is durable; nothing at or
//! above it is promised.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use wirevault_format::{Cause, Gap, LinkType};
use wirevault_telemetry::books::{ByCause, WriterCounts, WriterSide};
use wirevault_telemetry::shown::Shown;

use crate::job::CHUNK_GAPS_MAX;
use crate::status::{LaneShared, lock};

/// Chunks of one stream under way without a list growing: 1 GiB of buffers.
const RUNS: usize = 4096;

/// One lane's acknowledgements. Writers of several volumes share it; they take the lock once a
/// batch.
pub struct LaneAcks {
    state: Mutex<State>,
    lane: Arc<LaneShared>,
}

struct State {
    pen: WriterSide,
    counts: WriterCounts,
    streams: Vec<StreamAcks>,
    /// Losses that the data does not tell of yet.
    lost: Vec<Gap>,
    /// Everything that the lane took before this time is durable, or was submitted and is not.
    settled_ns: u64,
}

struct StreamAcks {
    link_type: LinkType,
    watermark: Arc<AtomicU64>,
    next: u64,
    /// Durable runs above the watermark, by sequence.
    done: VecDeque<Run>,
    /// Handed to a writer and neither durable nor lost, by sequence.
    submitted: VecDeque<Run>,
}

/// Sequences of one chunk, and a time: the smallest of one that was submitted, and up to when the
/// lane has handed on everything of one that is done.
#[derive(Clone, Copy)]
struct Run {
    first: u64,
    next: u64,
    time_ns: u64,
}

/// A run of packets of one stream: what one chunk holds.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// Link type of the stream.
    pub link_type: LinkType,
    /// First sequence.
    pub first: u64,
    /// Sequence after the last.
    pub next: u64,
    /// Smallest and largest packet time.
    pub times_ns: Option<(u64, u64)>,
    /// Smallest packet time in the chunks that the lane was still filling.
    pub open_since_ns: Option<u64>,
    /// Packets that no parser understood.
    pub unparsed: u64,
}

impl LaneAcks {
    pub(crate) fn new(pen: WriterSide, lane: Arc<LaneShared>) -> Self {
        let counts = WriterCounts::default();
        Self {
            state: Mutex::new(State {
                pen,
                counts,
                streams: Vec::new(),
                lost: Vec::with_capacity(CHUNK_GAPS_MAX),
                settled_ns: 0,
            }),
            lane,
        }
    }

    /// Watermark of a stream, to be written into the next chunk's header.
    pub(crate) fn watermark(&self, link_type: LinkType) -> Arc<AtomicU64> {
        Arc::clone(&lock(&self.state).stream(link_type).watermark)
    }

    /// How far the index shows what is durable.
    pub(crate) fn shown(&self) -> &Shown {
        &self.lane.shown
    }

    /// The sealer hands a chunk to a writer.
    pub(crate) fn submitted(&self, span: &Span) {
        let mut state = lock(&self.state);
        let time_ns = span.times_ns.map_or(u64::MAX, |(min_ns, _)| min_ns);
        state.counts.unparsed += span.unparsed;
        let run = Run { first: span.first, next: span.next, time_ns };
        put(&mut state.stream(span.link_type).submitted, run);
        self.publish(&mut state);
    }

    /// Chunks are durable, and their deltas on their way to the index.
    pub(crate) fn acknowledged(&self, spans: &[Span]) {
        let mut state = lock(&self.state);
        for span in spans {
            state.counts.stored += span.next - span.first;
            state.settle(span);
        }
        self.publish(&mut state);
    }

    /// Chunks that a writer has, or that came back from one and were not sealed again yet.
    pub(crate) fn outstanding(&self) -> usize {
        lock(&self.state).streams.iter().map(|stream| stream.submitted.len()).sum()
    }

    /// Packets acknowledged so far.
    pub(crate) fn stored(&self) -> u64 {
        lock(&self.state).counts.stored
    }

    /// Gives every loss that the data does not tell of yet to `tell`, which writes it down. Gives
    /// the packets that writers lost so far, by cause.
    pub(crate) fn take_lost(&self, tell: impl FnMut(Gap)) -> ByCause {
        let mut state = lock(&self.state);
        state.lost.drain(..).for_each(tell);
        state.counts.dropped
    }

    /// Losses that were taken to be told, and could not be.
    pub(crate) fn untold(&self, gaps: &[Gap]) {
        let mut state = lock(&self.state);
        gaps.iter().for_each(|gap| state.keep_lost(*gap));
    }

    /// Losses are left that no chunk and no index tells of.
    pub(crate) fn has_untold_losses(&self) -> bool {
        !lock(&self.state).lost.is_empty()
    }

    /// Chunks are lost: no device took them. The watermark passes over them, as a gap in the data
    /// says where they were.
    pub(crate) fn lost(&self, span: &Span, cause: Cause) {
        let mut state = lock(&self.state);
        let packets = span.next - span.first;
        state.counts.dropped[cause.index()] += packets;
        if let Some((from_ns, max_ns)) = span.times_ns {
            let cumulative = state.counts.dropped[cause.index()];
            let (until_ns, packets) = (Some(max_ns.saturating_add(1)), Some(packets));
            let gap = Gap {
                cause,
                from_ns,
                until_ns,
                packets,
                cumulative,
                sequence: span.first,
                policy: None,
                pressure: None,
            };
            state.keep_lost(gap);
        }
        state.settle(span);
        self.publish(&mut state);
    }

    fn publish(&self, state: &mut State) {
        let oldest = state.streams.iter().flat_map(|stream| &stream.submitted);
        let oldest_ns = oldest.map(|run| run.time_ns).min().unwrap_or(u64::MAX);
        // What another stream has under way may be older than what this one has settled.
        self.lane.durable_ns.fetch_max(state.settled_ns.min(oldest_ns), Ordering::AcqRel);
        state.counts.watermark = state.streams.iter().map(|stream| stream.next).sum();
        state.counts.unacknowledged_since_ns = if oldest_ns == u64::MAX { 0 } else { oldest_ns };
        state.pen.publish(&state.counts);
    }
}

fn join(lost: &mut [Gap], gap: &Gap) {
    let Some(last) = lost.last_mut() else { return };
    last.from_ns = last.from_ns.min(gap.from_ns);
    last.until_ns = last.until_ns.max(gap.until_ns);
    last.packets = last.packets.zip(gap.packets).map(|(a, b)| a + b);
    last.cumulative = gap.cumulative;
}

/// Enters a run in order; nearly always it is the last.
fn put(runs: &mut VecDeque<Run>, run: Run) {
    let at = runs.partition_point(|other| (other.first, other.next) < (run.first, run.next));
    runs.insert(at, run);
}

impl State {
    /// More losses than a chunk has room to tell of are told as one.
    fn keep_lost(&mut self, gap: Gap) {
        match self.lost.len() < CHUNK_GAPS_MAX {
            true => self.lost.push(gap),
            false => join(&mut self.lost, &gap),
        }
    }

    fn stream(&mut self, link_type: LinkType) -> &mut StreamAcks {
        let known = self.streams.iter().position(|stream| stream.link_type == link_type);
        let at = known.unwrap_or_else(|| {
            self.streams.push(StreamAcks {
                link_type,
                watermark: Arc::default(),
                next: 0,
                done: VecDeque::with_capacity(RUNS),
                submitted: VecDeque::with_capacity(RUNS),
            });
            self.streams.len() - 1
        });
        &mut self.streams[at]
    }

    fn settle(&mut self, span: &Span) {
        let settled_ns = self.stream(span.link_type).settle(span);
        self.settled_ns = self.settled_ns.max(settled_ns);
    }
}

impl StreamAcks {
    /// Moves the watermark as far as it goes and gives the largest time of what is new below it.
    /// Chunks are submitted in the order in which the lane handed them over, so what it took before
    /// that time was submitted already, whatever stream it belongs to.
    fn settle(&mut self, span: &Span) -> u64 {
        let same = |run: &Run| (run.first, run.next) == (span.first, span.next);
        if let Some(at) = self.submitted.iter().position(same) {
            self.submitted.remove(at);
        }
        let open_since_ns = span.open_since_ns.unwrap_or(u64::MAX);
        let time_ns = span.times_ns.map_or(0, |(_, max_ns)| max_ns.min(open_since_ns));
        if span.next > span.first {
            put(&mut self.done, Run { first: span.first, next: span.next, time_ns });
        }
        let mut settled_ns = 0;
        while let Some(run) = self.done.pop_front_if(|run| run.first <= self.next) {
            self.next = self.next.max(run.next);
            settled_ns = settled_ns.max(run.time_ns);
        }
        self.watermark.store(self.next, Ordering::Release);
        settled_ns
    }
}

#[cfg(test)]
mod tests {
    use wirevault_capture::SourceReport;
    use wirevault_telemetry::books::LaneBooks;

    use super::*;

    fn span(first: u64, next: u64) -> Span {
        let times_ns = Some((first * 10, next * 10));
        let (link_type, open_since_ns) = (LinkType::ETHERNET, None);
        Span { link_type, first, next, times_ns, open_since_ns, unparsed: 0 }
    }

    fn acks() -> (LaneAcks, Arc<LaneShared>, LaneBooks) {
        let (_, pen, books) = wirevault_telemetry::books::open(0);
        let report = SourceReport {
            kind: "replay",
            name: String::new(),
            fanout: None,
            ring_bytes: 0,
            clocks: Vec::new(),
            notes: Vec::new(),
        };
        let shared = Arc::new(LaneShared::new(0, None, report, Vec::new()));
        (LaneAcks::new(pen, Arc::clone(&shared)), shared, books)
    }

    #[test]
    fn an_older_chunk_of_another_stream_is_waited_for() {
        let (acks, shared, _) = acks();
        let durable_ns = || shared.durable_ns.load(Ordering::Acquire);
        let raw = Span { link_type: LinkType::RAW, ..span(0, 3) };
        let ethernet = [span(0, 5), Span { open_since_ns: Some(70), ..span(5, 9) }];
        acks.submitted(&raw);
        ethernet.iter().for_each(|span| acks.submitted(span));
        acks.acknowledged(&ethernet[..1]);
        assert_eq!(durable_ns(), 0, "packets from 0 to 30 are under way");
        acks.acknowledged(&[raw]);
        assert_eq!(durable_ns(), 50);
        acks.acknowledged(&ethernet[1..]);
        assert_eq!(durable_ns(), 70, "the lane still has packets of that time");
    }

    #[test]
    fn the_watermark_waits_for_the_oldest_chunk() {
        let (acks, shared, books) = acks();
        let watermark = acks.watermark(LinkType::ETHERNET);
        for (first, next) in [(0, 5), (5, 8), (8, 9)] {
            acks.submitted(&span(first, next));
        }
        acks.acknowledged(&[span(5, 8)]);
        assert_eq!((watermark.load(Ordering::Acquire), books.snapshot().stored), (0, 3));
        acks.acknowledged(&[span(0, 5)]);
        assert_eq!(watermark.load(Ordering::Acquire), 8);
        assert_eq!(shared.durable_ns.load(Ordering::Acquire), 80);
        assert_eq!(books.snapshot().unacknowledged_since_ns, Some(80));
        acks.lost(&span(8, 9), Cause::DeviceFailed);
        assert_eq!(watermark.load(Ordering::Acquire), 9);
        assert_eq!(books.snapshot().unacknowledged_since_ns, None);
    }
}
