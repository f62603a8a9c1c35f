//! What the pinned threads allocate after start-up: nothing for a packet or a chunk, and a bounded
//! number of times when a segment changes.
//!
//! Every call of the allocator on a thread of the pipeline is counted under the thread's name. The
//! source stands still twice: once when every list has been used once, and before its end. Between
//! the two readings lie several segments.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use wirevault_buffer::{Arena, ArenaOptions, Hugepages, Pool};
use wirevault_capture::{
    CaptureError, Packet, PacketSink, Polled, Source, SourceCounters, SourceReport, SourceState,
};
use wirevault_format::{Interface, LinkType, PolicyName};
use wirevault_index::KeySource;
use wirevault_media::DirMedia;
use wirevault_pipeline::{
    Action, LaneSpec, Pipeline, PipelineOptions, PolicySpec, RungSpec, Topology,
};
use wirevault_seal::{FileProvider, KeyProvider, random};
use wirevault_storage::{CreateOptions, Store, create};
use wirevault_telemetry::clock::{Clock, SystemClock};

/// Threads that are counted: beginnings of their names.
const NAMES: [&str; 3] = ["lane-", "seal-", "write-"];

/// Calls that ask for memory, by thread of [`NAMES`].
static CALLS: [AtomicU64; NAMES.len()] = [const { AtomicU64::new(0) }; NAMES.len()];
static BYTES: [AtomicU64; NAMES.len()] = [const { AtomicU64::new(0) }; NAMES.len()];

const UNKNOWN: usize = usize::MAX;
const OTHER: usize = usize::MAX - 1;

thread_local! {
    static THREAD: Cell<usize> = const { Cell::new(UNKNOWN) };
}

struct Counting;

/// Place of the calling thread in [`NAMES`]. Asks the kernel, because a thread's handle may
/// allocate.
fn thread() -> usize {
    let known = THREAD.get();
    if known != UNKNOWN {
        return known;
    }
    let mut name = [0u8; 16];
    // SAFETY: PR_GET_NAME writes at most 16 bytes, terminator included, and `name` has 16.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    let found = NAMES.iter().position(|start| name.starts_with(start.as_bytes()));
    let found = found.unwrap_or(OTHER);
    // A thread gets its name just after it begins to run.
    if found != OTHER {
        THREAD.set(found);
    }
    found
}

fn note(bytes: usize) {
    if let Some(calls) = CALLS.get(thread()) {
        calls.fetch_add(1, Ordering::Relaxed);
        BYTES[thread()].fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

// SAFETY: every method passes its arguments on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: as for `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        note(bytes);
        // SAFETY: `at` came from this allocator, that is from the system's, with this layout.
        unsafe { System.realloc(at, layout, bytes) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as for `realloc`.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn counted() -> [(u64, u64); NAMES.len()] {
    let of = |at: usize| (CALLS[at].load(Ordering::SeqCst), BYTES[at].load(Ordering::SeqCst));
    std::array::from_fn(of)
}

fn time_ns(packet: u64) -> u64 {
    1_700_000_000_000_000_000 + packet * 1000
}

/// Gives packets as fast as they are taken, up to what the test allows.
struct Paced {
    interfaces: Vec<Interface>,
    frame: Vec<u8>,
    given: u64,
    allowed: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl Source for Paced {
    fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    fn is_live(&self) -> bool {
        true
    }

    fn poll(&mut self, sink: &mut dyn PacketSink, wait: Duration) -> Result<Polled, CaptureError> {
        let allowed = self.allowed.load(Ordering::Acquire);
        if self.given == allowed {
            if self.ended.load(Ordering::Acquire) {
                return Ok(Polled::End);
            }
            std::thread::sleep(wait.min(Duration::from_millis(1)));
            return Ok(Polled::Idle);
        }
        let mut packets = 0;
        while self.given < allowed && packets < 256 {
            // A hundred flows.
            self.frame[29] = (self.given % 100) as u8;
            let packet = Packet {
                interface: 0,
                ts_ns: time_ns(self.given),
                wire_len: self.frame.len() as u32,
                data: &self.frame,
                vlan: None,
                flags: None,
                options: &[],
            };
            if let ControlFlow::Break(()) = sink.packet(&packet) {
                break;
            }
            self.given += 1;
            packets += 1;
        }
        Ok(Polled::Packets(packets))
    }

    fn counters(&mut self) -> SourceCounters {
        SourceCounters { received: self.given, handed: self.given, ..SourceCounters::default() }
    }

    fn state(&self) -> SourceState {
        SourceState::Running
    }

    fn report(&self) -> SourceReport {
        SourceReport {
            kind: "test",
            name: String::new(),
            fanout: None,
            ring_bytes: 0,
            clocks: Vec::new(),
            notes: Vec::new(),
        }
    }
}

const FRAME_BYTES: usize = 1000;
/// About as many packets as fill a chunk.
const CHUNK_PACKETS: u64 = 250;
const TIME_MAX: Duration = Duration::from_secs(120);

struct Rig {
    pipeline: Pipeline,
    pool: Pool,
    allowed: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    _dir: tempfile::TempDir,
}

/// A policy of each kind that is asked about every packet and leaves none out, and a rung that is
/// entered with the first chunk.
fn sparing_everything() -> (Vec<PolicySpec>, Vec<RungSpec>) {
    let policy = |name, action| {
        let name = PolicyName::new(name).expect("a short name");
        PolicySpec { name, filter: None, action }
    };
    let standing = vec![
        policy("some", Action::Sample { one_in: 1 }),
        policy("first", Action::Cutoff { flow_bytes: u64::MAX }),
        policy("heads", Action::Snaplen { bytes: FRAME_BYTES as u32 }),
    ];
    let policy = policy("coarse", Action::CoarseIndex);
    (standing, vec![RungSpec { policy, enter_percent: 1, leave_percent: 1 }])
}

/// Records into a sealed store of segments of 32 MiB (127 chunks) with the best queue there is.
fn start(topology: Topology, policies: bool) -> Rig {
    let dir = tempfile::tempdir().expect("a directory");
    let provider: Arc<dyn KeyProvider> =
        Arc::new(FileProvider::create(&dir.path().join("k")).expect("a key"));
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let store_dir = dir.path().join("store");
    let media = DirMedia::create(&store_dir).expect("a directory");
    let options = CreateOptions {
        quota_bytes: Some(600 << 20),
        lanes: 1,
        key: Some(Arc::clone(&provider)),
        key_path: String::new(),
        clock: Arc::clone(&clock),
    };
    let id = random::store_id().expect("an id");
    create(&[(Arc::new(media), store_dir.display().to_string())], id, &options).expect("a store");
    let (store, _) =
        Store::open_dir(&store_dir, &KeySource::Provider(provider), Arc::clone(&clock))
            .expect("the store opens");
    let (allowed, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut frame = vec![0; 12];
    frame.extend([8, 0, 0x45, 0, 0, 220, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 1, 1, 10, 0, 2, 1]);
    frame.extend([0x10, 0, 0, 53, 0, 200, 0, 0]);
    frame.resize(FRAME_BYTES, 7);
    let source = Paced {
        interfaces: vec![Interface::unnamed(LinkType::ETHERNET)],
        frame,
        given: 0,
        allowed: Arc::clone(&allowed),
        ended: Arc::clone(&ended),
    };
    let mut lane = LaneSpec::new(Box::new(source));
    if policies {
        (lane.policies, lane.ladder) = sparing_everything();
    }
    let arena = ArenaOptions { bytes: 16 << 20, hugepages: Hugepages::Off, numa_node: None };
    let pool = Pool::new(Arena::new(arena).expect("16 MiB"));
    let options = PipelineOptions {
        commit_interval: Duration::from_millis(5),
        flush_age: Duration::from_millis(20),
        topology,
        ..PipelineOptions::default()
    };
    let pipeline =
        Pipeline::start(store, pool.clone(), vec![lane], &options, clock).expect("it starts");
    Rig { pipeline, pool, allowed, ended, _dir: dir }
}

impl Rig {
    /// Lets that many chunks of packets through and waits until the threads rest again.
    fn give(&self, chunks: u64) {
        let packets = self.allowed.load(Ordering::Acquire) + chunks * CHUNK_PACKETS;
        self.allowed.store(packets, Ordering::Release);
        let begin = Instant::now();
        let books = &self.pipeline.lanes()[0].books;
        while books.snapshot().stored < packets || self.pool.in_flight() > 0 {
            assert!(begin.elapsed() < TIME_MAX, "{:?}", books.snapshot());
            std::thread::sleep(Duration::from_millis(1));
        }
        // The closer gives each delta back when it is in the index. Until then the sealer has
        // fewer, and a sealer without any makes small ones.
        let last_ns = time_ns(packets - 1);
        while self.pipeline.catalog().durable_until_ns.is_none_or(|until_ns| until_ns <= last_ns) {
            assert!(begin.elapsed() < TIME_MAX, "the index does not show the last packet");
        }
    }

    fn segments(&self) -> usize {
        self.pipeline.catalog().segments.len()
    }

    fn report(&self, what: &str, before: [(u64, u64); NAMES.len()]) -> [u64; NAMES.len()] {
        let after = counted();
        std::array::from_fn(|at| {
            let (calls, bytes) = (after[at].0 - before[at].0, after[at].1 - before[at].1);
            println!("{what}: {}N asked for memory {calls} times, {bytes} bytes", NAMES[at]);
            calls
        })
    }
}

/// What a thread may ask for when a segment changes; `docs/ARCHITECTURE.md` has the same numbers.
const AT_A_CHANGE: [(Topology, [u64; NAMES.len()]); 2] =
    [(Topology::Split, [0, 16, 12]), (Topology::RunToCompletion, [16, 0, 12])];

#[test]
fn nothing_is_allocated_for_a_packet_or_a_chunk() {
    for (topology, at_a_change) in AT_A_CHANGE {
        for policies in [false, true] {
            println!("{topology:?}, policies: {policies}");
            nothing_is_allocated(start(topology, policies), at_a_change);
        }
    }
}

fn nothing_is_allocated(rig: Rig, at_a_change: [u64; NAMES.len()]) {
    rig.give(20);
    assert_eq!(rig.segments(), 1);
    let before = counted();
    rig.give(35);
    assert_eq!(rig.segments(), 1, "the reading is within one segment");
    let within = rig.report("35 chunks of one segment", before);
    assert_eq!(within, [0; NAMES.len()]);

    // Over two changes every list is used once; the next ones count.
    rig.give(300);
    let (before, segments) = (counted(), rig.segments());
    // In steps: chunks that come faster than the index takes them go on with small deltas. There
    // are 128 deltas, and on a busy machine each chunk may be handed over half full.
    (0..10).for_each(|_| rig.give(50));
    let changes = (rig.segments() - segments) as u64;
    assert!(changes >= 3, "only {changes} segment changes");
    let over = rig.report(&format!("500 chunks over {changes} segment changes"), before);
    for ((calls, most), name) in over.into_iter().zip(at_a_change).zip(NAMES) {
        // One more may have been prepared, and one more closed, than the catalog shows.
        assert!(calls <= most * (changes + 1), "{name}N: {calls} over {changes} changes");
    }
    rig.ended.store(true, Ordering::Release);
    let books = rig.pipeline.join().expect("a clean end");
    assert_eq!((books[0].dropped_packets(), books[0].in_flight), (0, 0));
}
