//! The sealer thread of a lane: takes full chunks in order, notes their flows, seals them and hands
//! them to the writer of the volume on which their segment lies. It owns the lane's open segments.
//!
//! It waits only for chunks, and when it needs a segment for the thread that opens one. The next
//! segment is asked for when the current one is half full, so that this wait is over before it
//! begins. Chunks that a device did not take come back to it: see [`crate::reseal`].

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};
use crossbeam_queue::ArrayQueue;
use wirevault_format::chunk::{self, ChunkHeader, HEADER_BYTES};
use wirevault_format::footer::{ChunkEntry, CloseReason};
use wirevault_format::{Cause, Gap, Interface, LinkType, RunId};
use wirevault_index::flow_table::{FlowOptions, FlowTable, PacketNote};
use wirevault_index::{ChunkDelta, prefetch};
use wirevault_packet::dissect;
use wirevault_seal::{DataSealer, SealError};
use wirevault_storage::{OpenSegment, StorageError};

use crate::ack::{LaneAcks, Span};
use crate::closer::{Closing, ToCloser};
use crate::job::{Job, Jobs};
use crate::live::{LiveSegment, Registry};
use crate::opener::{OpenOrder, ToOpener};
use crate::reseal::Returned;
use crate::status::{BufferTimes, LaneShared, note_since};
use crate::tail::TailHub;
use crate::write_file::{Link, WriteJob};

/// Packets noted at once: the flow table looks them all up before it touches any.
const NOTES: usize = wirevault_index::flow_table::BATCH;
/// Pause between two attempts to open a segment while no volume takes one.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Attempts after which a replay gives up. A live lane goes on: its packets keep coming.
pub(crate) const REPLAY_ATTEMPTS: u32 = 3;
/// How often an idle sealer looks at the age of its segments.
const IDLE_WAIT: Duration = Duration::from_millis(200);
/// Bytes of a cache line; headers lie in two.
const LINE_BYTES: usize = 64;
/// Offset of data in an Enhanced Packet Block.
const EPB_DATA_AT: usize = 28;

pub(crate) struct Sealer {
    pub run: RunId,
    pub lane: u16,
    pub jobs: Jobs,
    pub from_lane: Receiver<Box<Job>>,
    /// By volume.
    pub writers: Vec<ToWriter>,
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
    /// Flows of a segment at most.
    pub flows_max: u32,
    /// Table of the first stream, until it comes.
    pub spare_table: Option<FlowTable>,
    pub streams: Vec<SealStream>,
    pub returned: Returned,
}

/// The way to a volume's writer.
#[derive(Clone)]
pub(crate) struct ToWriter {
    pub sender: Sender<WriteJob>,
    /// Its thread has the other half of this.
    pub alive: Weak<()>,
}

pub(crate) struct SealStream {
    pub link_type: LinkType,
    watermark: Arc<AtomicU64>,
    table: FlowTable,
    pub current: Option<Current>,
    /// The next segment, on its way, and the interfaces it describes.
    pub next: Option<(Arc<Vec<Interface>>, Opened)>,
}

/// Where the answer to an order for a segment arrives.
pub(crate) type Opened = Receiver<Result<OpenSegment, StorageError>>;

/// The segment that a stream writes.
pub(crate) struct Current {
    pub segment: Arc<LiveSegment>,
    sealer: Option<DataSealer>,
    at: u64,
    chunks: u32,
    since: Instant,
}

/// Where a chunk comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The lane: nobody has seen it yet.
    Lane,
    /// A segment that failed: it is told to watchers and counted as under way already.
    Failed,
}

impl Sealer {
    /// Runs until the lane is gone and the fate of its last chunk is known; closes the segments.
    pub(crate) fn run(mut self) {
        // Set aside before packets come: a table for large segments takes some ten milliseconds.
        self.spare_table = Some(self.new_table());
        while self.step() {
            self.seal_again();
            self.close_aged();
        }
        for at in 0..self.streams.len() {
            self.close(at, CloseReason::Stop);
            if let Some((_, prepared)) = self.streams[at].next.take() {
                self.release(prepared);
            }
        }
        self.wait_for_writers();
    }

    /// Takes the next chunk; `false` when no more comes from the lane.
    fn step(&mut self) -> bool {
        select! {
            recv(self.from_writers) -> job => {
                match job {
                    Ok(job) => self.returned.push(*job),
                    // Every writer has panicked; the lane's next chunk will say so.
                    Err(_) => std::thread::sleep(RETRY_PAUSE),
                }
                true
            }
            recv(self.from_lane) -> job => match job {
                Ok(job) => {
                    self.take(job);
                    true
                }
                Err(_) => false,
            },
            default(IDLE_WAIT) => true,
        }
    }

    fn take(&mut self, mut job: Box<Job>) {
        let at = self.stream(job.link_type);
        let lost = self.acks.take_lost(|gap| job.push_gap(gap));
        job.dropped.iter_mut().zip(lost).for_each(|(dropped, lost)| *dropped += lost);
        self.place(at, job, Origin::Lane);
    }

    /// Seals a chunk into its stream's segment, or into a new one, for as long as it takes to get
    /// one.
    pub(crate) fn place(&mut self, at: usize, mut job: Box<Job>, origin: Origin) {
        let chunk_bytes = (HEADER_BYTES + job.payload_bytes() + chunk::TAIL_BYTES_MIN)
            .next_multiple_of(wirevault_format::limits::LBA_BYTES) as u64;
        self.roll(at, &job, chunk_bytes);
        let mut attempts = 0;
        while self.streams[at].current.is_none() {
            attempts += 1;
            match self.open(at, &job.interfaces) {
                Ok(current) => {
                    self.streams[at].table.reset(current.segment.open.flows_max);
                    self.streams[at].current = Some(current);
                    self.shared.set_blocked(self.is_barren());
                }
                Err(error) => {
                    self.shared.set_blocked(true);
                    self.shared.fail(&error);
                    tracing::error!(lane = self.lane, "no segment can be opened: {error}");
                    if !self.live && attempts == REPLAY_ATTEMPTS {
                        // Nobody is served by a replay that waits for a device to come back.
                        self.stop.store(true, Ordering::Relaxed);
                    }
                    if self.stop.load(Ordering::Relaxed) {
                        self.give_up(&span(&job), &job.gaps);
                        self.jobs.put(job);
                        return;
                    }
                    std::thread::sleep(RETRY_PAUSE);
                }
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
    }

    /// A chunk goes nowhere: its packets are counted as dropped, and another one tells of
    /// that, and of the gaps that stood in it.
    pub(crate) fn give_up(&self, span: &Span, gaps: &[Gap]) {
        self.acks.untold(gaps);
        self.acks.lost(span, Cause::DeviceFailed);
    }

    /// Closes the current segment if it cannot take the chunk, or if its device failed.
    fn roll(&mut self, at: usize, job: &Job, chunk_bytes: u64) {
        let Some(current) = &self.streams[at].current else { return };
        let reason = if current.segment.failure().is_some() {
            let segment = Arc::clone(&current.segment);
            self.note_failure(&segment);
            CloseReason::DeviceFailed
        } else if !describes(&current.segment.interfaces, &job.interfaces) {
            CloseReason::NewInterface
        } else if current.at + chunk_bytes > current.segment.open.data_end {
            CloseReason::Full
        } else {
            self.prepare(at, &job.interfaces);
            return;
        };
        self.close(at, reason);
    }

    /// Asks for the next segment when the current one is half full.
    fn prepare(&mut self, at: usize, interfaces: &Arc<Vec<Interface>>) {
        let stream = &self.streams[at];
        let Some(current) = &stream.current else { return };
        let half = current.segment.open.data_offset / 2 + current.segment.open.data_end / 2;
        if stream.next.is_none() && current.at > half {
            let reply = self.order(stream.link_type, interfaces);
            self.streams[at].next = Some((Arc::clone(interfaces), reply));
        }
    }

    fn order(&self, link_type: LinkType, interfaces: &Arc<Vec<Interface>>) -> Opened {
        let (reply, answer) = bounded(1);
        let interfaces = Arc::clone(interfaces);
        let order = OpenOrder { lane: self.lane, link_type, interfaces, reply };
        // If the opener is gone the answer is a closed channel, which `open` reports.
        let _ = self.opener.send(ToOpener::Open(order));
        answer
    }

    fn open(&mut self, at: usize, interfaces: &Arc<Vec<Interface>>) -> Result<Current, String> {
        let (prepared_for, answer) = match self.streams[at].next.take() {
            Some(prepared) => prepared,
            None => (Arc::clone(interfaces), self.order(self.streams[at].link_type, interfaces)),
        };
        if !describes(&prepared_for, interfaces) {
            self.release(answer);
            return self.open(at, interfaces);
        }
        let open = answer
            .recv()
            .map_err(|_| "the thread that opens segments is gone".to_owned())?
            .map_err(|error| error.to_string())?;
        let sealer = open.keys.as_ref().map(|keys| keys.data_sealer()).transpose();
        let sealer = sealer.map_err(|error| error.to_string())?;
        let data_offset = open.data_offset;
        self.returned.note_opened(open.entry.ordinal);
        let segment = self.registry.add(open, prepared_for);
        Ok(Current { segment, sealer, at: data_offset, chunks: 0, since: Instant::now() })
    }

    pub(crate) fn release(&self, prepared: Opened) {
        if let Ok(Ok(open)) = prepared.recv() {
            let _ = self.opener.send(ToOpener::Release(Box::new(open)));
        }
    }

    fn seal_and_send(
        &mut self,
        at: usize,
        job: &mut Box<Job>,
        origin: Origin,
    ) -> Result<(), SealError> {
        let lane = self.lane;
        let stream = &mut self.streams[at];
        let Some(current) = stream.current.as_mut() else { return Ok(()) };
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
            let (table, link_type) = (&mut stream.table, stream.link_type);
            unparsed = note_flows(table, &mut delta, link_type, buf, &job.epb_at);
        } else {
            delta.unindexed = true;
        }
        if delta.unindexed {
            self.shared.unindexed_chunks.fetch_add(1, Ordering::Relaxed);
        } else if !delta.loose.is_empty() {
            self.shared.filtered_chunks.fetch_add(1, Ordering::Relaxed);
        }
        self.shared.flows.store(stream.table.len() as u64, Ordering::Relaxed);
        self.shared.flows_max.store(stream.table.flows_max() as u64, Ordering::Relaxed);
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
        let sent = self.writers[volume].sender.try_send(write);
        note_since(&self.times.hand_over, begin);
        if let Err(refused) = sent {
            self.shared.fail("the writer thread is gone");
            let write = refused.into_inner();
            self.give_up(&write.span, &write.delta.gaps);
        }
        Ok(())
    }

    fn close_aged(&mut self) {
        for at in 0..self.streams.len() {
            let current = self.streams[at].current.as_ref();
            if current.is_some_and(|current| current.since.elapsed() >= self.segment_age) {
                self.close(at, CloseReason::Age);
            }
        }
    }

    pub(crate) fn close(&mut self, at: usize, reason: CloseReason) {
        let Some(Current { segment, .. }) = self.streams[at].current.take() else { return };
        segment.ended.store(true, Ordering::Release);
        let closing = Closing { segment, acks: Arc::clone(&self.acks), reason };
        let _ = self.closer.send(ToCloser::End(Box::new(closing)));
    }

    /// The stream of a link type.
    fn stream(&mut self, link_type: LinkType) -> usize {
        let known = self.streams.iter().position(|stream| stream.link_type == link_type);
        known.unwrap_or_else(|| self.add_stream(link_type))
    }

    /// A stream of its own for packets of this link type. The first one takes the table that was
    /// set aside, others need one of their own.
    pub(crate) fn add_stream(&mut self, link_type: LinkType) -> usize {
        let table = self.spare_table.take().unwrap_or_else(|| self.new_table());
        self.streams.push(SealStream {
            link_type,
            watermark: self.acks.watermark(link_type),
            table,
            current: None,
            next: None,
        });
        self.streams.len() - 1
    }

    fn new_table(&self) -> FlowTable {
        FlowTable::new(FlowOptions { flows_max: self.flows_max })
    }
}

/// A segment whose table begins with everything that `wanted` lists can name the interfaces of
/// `wanted`.
fn describes(table: &[Interface], wanted: &[Interface]) -> bool {
    table.starts_with(wanted)
}

pub(crate) fn span(job: &Job) -> Span {
    let (link_type, first, next) = (job.link_type, job.first_sequence, job.next_sequence());
    let (times_ns, open_since_ns) = (job.times_ns, job.open_since_ns);
    Span { link_type, first, next, times_ns, open_since_ns, unparsed: 0 }
}

fn fill_delta(delta: &mut ChunkDelta, header: &ChunkHeader, offset: u64, job: &Job) {
    delta.clear();
    delta.number = header.number;
    delta.chunk = ChunkEntry {
        offset,
        chunk_bytes: header.chunk_bytes() as u32,
        packets: header.packets,
        times_ns: header.times_ns,
        first_sequence: header.first_sequence,
    };
    delta.gaps.extend_from_slice(&job.gaps);
    delta.received = job.received;
    delta.shed = job.shed;
    delta.dropped = job.dropped;
}

/// Enters every packet of a chunk into the flow table and gives the number of packets that no
/// parser understood.
fn note_flows(
    table: &mut FlowTable,
    delta: &mut ChunkDelta,
    link_type: LinkType,
    chunk: &[u8],
    epb_at: &[u32],
) -> u64 {
    table.begin_chunk(delta);
    let mut unparsed = 0;
    let mut notes: [PacketNote; NOTES] = std::array::from_fn(|_| PacketNote::default());
    // The lane filled the chunk on another core: the headers of the next batch are fetched
    // while this one is taken apart.
    let mut ahead = epb_at.iter().skip(NOTES);
    for batch in epb_at.chunks(NOTES) {
        for at in ahead.by_ref().take(NOTES) {
            prefetch(chunk, *at as usize + EPB_DATA_AT);
            prefetch(chunk, *at as usize + EPB_DATA_AT + LINE_BYTES);
        }
        for (note, at) in notes.iter_mut().zip(batch) {
            let block = &chunk[*at as usize..];
            let head: &[u8; EPB_DATA_AT] =
                block.first_chunk().expect("the lane wrote whole blocks and their places");
            // Spelled out: `map` over the places is a call for each of them.
            let word = |at: usize| {
                u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
            };
            let captured_len = word(20);
            let data = &block[EPB_DATA_AT..EPB_DATA_AT + captured_len as usize];
            let dissected = dissect(link_type, data);
            table.prefetch(dissected.hash);
            unparsed += u64::from(!dissected.parsed);
            *note = PacketNote {
                hash: dissected.hash,
                key: dissected.key,
                direction: dissected.direction,
                ts_ns: u64::from(word(12)) << 32 | u64::from(word(16)),
                wire_len: word(24),
                captured_len,
                tcp_flags: dissected.tcp_flags,
            };
        }
        table.upsert(&notes[..batch.len()], delta);
    }
    unparsed
}
