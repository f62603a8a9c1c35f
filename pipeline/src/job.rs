//! What is handed from thread to thread: one chunk with everything that is known of it so far.

use std::sync::Arc;

use crossbeam_queue::ArrayQueue;
use wirevault_buffer::ChunkBuf;
use wirevault_format::chunk::{HEADER_BYTES, PAYLOAD_BYTES_MAX};
use wirevault_format::gap::{CAUSES, GAP_BYTES};
use wirevault_format::pcapng::EPB_FIXED_BYTES;
use wirevault_format::{Gap, Interface, LinkType};

/// Packets that one chunk can hold at most: all of them empty.
pub const CHUNK_PACKETS_MAX: usize = PAYLOAD_BYTES_MAX / EPB_FIXED_BYTES;
/// Gaps that a lane, and as many that its writers, put into one chunk at most; more are joined
/// before.
pub const CHUNK_GAPS_MAX: usize = 24;
/// Bytes that a lane keeps free behind the packets of a chunk, so that every gap that is due has
/// room in it.
pub const GAP_ROOM_BYTES: usize = 2 * CHUNK_GAPS_MAX * GAP_BYTES;

/// A chunk that a lane fills.
///
/// Jobs are made once, at start, and go in a circle: lane, sealer, writer, free list.
pub struct Job {
    /// The chunk; `None` while the job is on the free list.
    pub buf: Option<ChunkBuf>,
    /// Link type of its packets.
    pub link_type: LinkType,
    /// Interfaces that its packets name by number.
    pub interfaces: Arc<Vec<Interface>>,
    /// Offset of the first free byte.
    pub end: usize,
    /// Offset of each packet's block.
    pub epb_at: Vec<u32>,
    /// Gaps that the payload holds.
    pub gaps: Vec<Gap>,
    /// Stream sequence of the first packet.
    pub first_sequence: u64,
    /// Smallest and largest packet time.
    pub times_ns: Option<(u64, u64)>,
    /// Smallest packet time in the chunks of other streams that the lane went on filling when it
    /// handed this one over.
    pub open_since_ns: Option<u64>,
    /// Captured bytes.
    pub captured_bytes: u64,
    /// The index has a filter for it instead of its flows.
    pub coarse: bool,
    /// Lane counters when the chunk was handed over.
    pub received: u64,
    /// Of them left out by policy.
    pub shed: u64,
    /// Of them dropped, by cause.
    pub dropped: [u64; CAUSES],
}

impl Job {
    fn new() -> Self {
        Self {
            buf: None,
            link_type: LinkType::ETHERNET,
            interfaces: Arc::new(Vec::new()),
            end: HEADER_BYTES,
            epb_at: Vec::with_capacity(CHUNK_PACKETS_MAX),
            gaps: Vec::with_capacity(2 * CHUNK_GAPS_MAX),
            first_sequence: 0,
            times_ns: None,
            open_since_ns: None,
            captured_bytes: 0,
            coarse: false,
            received: 0,
            shed: 0,
            dropped: [0; CAUSES],
        }
    }

    fn with(mut self: Box<Self>, buf: ChunkBuf) -> Box<Self> {
        self.buf = Some(buf);
        self.end = HEADER_BYTES;
        self.epb_at.clear();
        self.gaps.clear();
        self.times_ns = None;
        self.captured_bytes = 0;
        self.coarse = false;
        self
    }

    /// Bytes of payload so far.
    pub fn payload_bytes(&self) -> usize {
        self.end - HEADER_BYTES
    }

    /// Stream sequence after the last packet.
    pub fn next_sequence(&self) -> u64 {
        self.first_sequence + self.epb_at.len() as u64
    }

    /// Appends a gap; there is always room, see [`CHUNK_GAPS_MAX`] and the lane's limit for
    /// packets.
    pub fn push_gap(&mut self, gap: Gap) {
        let Some(buf) = self.buf.as_mut() else { return };
        let room = buf.get_mut(self.end..self.end + GAP_BYTES);
        let Some(block) = room.and_then(|room| room.first_chunk_mut()) else { return };
        gap.encode(block);
        self.end += GAP_BYTES;
        self.gaps.push(gap);
    }
}

/// The free list of jobs.
#[derive(Clone)]
pub struct Jobs {
    free: Arc<ArrayQueue<Box<Job>>>,
}

impl Jobs {
    /// `count` jobs, made now so that none is made later.
    pub fn new(count: usize) -> Self {
        let free = ArrayQueue::new(count.max(1));
        for _ in 0..count {
            // There are as many places as jobs.
            let _ = free.push(Box::new(Job::new()));
        }
        Self { free: Arc::new(free) }
    }

    /// An empty job that holds `buf`; `None` if all are under way.
    pub fn take(&self, buf: ChunkBuf) -> Option<Box<Job>> {
        self.free.pop().map(|job| job.with(buf))
    }

    /// An empty job that holds `buf`, whatever it takes: the way of a chunk that came back.
    pub fn take_or_make(&self, buf: ChunkBuf) -> Box<Job> {
        self.free.pop().unwrap_or_else(|| Box::new(Job::new())).with(buf)
    }

    /// Takes a job back; its chunk goes back to the pool.
    pub fn put(&self, mut job: Box<Job>) {
        job.buf = None;
        let _ = self.free.push(job);
    }
}
