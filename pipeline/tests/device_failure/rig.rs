//! Recorders over simulated disks whose queues refuse and hang as told, and what they must hold.

use std::collections::HashMap;
use std::io::{self, Cursor};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use wirevault_buffer::{Arena, ArenaOptions, ChunkBuf, Hugepages, Pool};
use wirevault_capture::{
    CaptureError, Packet, PacketSink, Polled, ReplaySource, Source, SourceCounters, SourceReport,
    SourceState, Speed,
};
use wirevault_format::chunk::{ChunkHeader, HEADER_BYTES};
use wirevault_format::{Interface, LifeId, LinkType};
use wirevault_index::{Catalog, KeySource};
use wirevault_media::{Media, SimMedia};
use wirevault_nvme::{Completion, Layer, NvmeError, Queue, SimOptions, SimQueue};
use wirevault_pipeline::{LaneSpec, LaneState, Pipeline, PipelineOptions, Topology};
use wirevault_query::{PacketOut, Request, Sink, Summary};
use wirevault_seal::{FileProvider, KeyProvider, random};
use wirevault_storage::{CreateOptions, Store, create};
use wirevault_telemetry::books::Snapshot;
use wirevault_telemetry::clock::{Clock, SystemClock};

pub(crate) const LANES: u32 = 2;
/// Whether lanes seal their own chunks must make no difference to any test.
pub(crate) const TOPOLOGIES: [Topology; 2] = [Topology::RunToCompletion, Topology::Split];
/// Packets of each lane: two segments' worth.
pub(crate) const PACKETS: u32 = 12_000;
const PACKET_BYTES: usize = 1500;
/// Where the lane and the number stand in a packet.
const MARK_AT: usize = 42;
const TIME_MAX: Duration = Duration::from_secs(120);
pub(crate) const ALWAYS: u64 = u64::MAX;

/// What a disk refuses at the moment. Tables and headers go on: a failure there is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    Nothing,
    Write(i32),
    Sync(i32),
    /// Nothing ends, until the volume was seen suspect.
    Hang,
    /// Nothing ends, tables and headers included, until so many packets are stored elsewhere.
    HangUntil(u64),
    /// The queue itself breaks and keeps what it has; whoever asks again gets one that works.
    Break,
    /// Nothing is refused, and what ended is told at such intervals only.
    Slow(Duration),
}

/// Every (life, chunk number) that was submitted, with what identified it: one pair must never be
/// sealed twice.
pub(crate) type Sealed = Arc<Mutex<HashMap<(LifeId, u32), Vec<u8>>>>;

/// A queue whose device refuses chunks as told, from the `n`th operation on, so many times.
struct FailingQueue {
    inner: SimQueue,
    plan: Arc<Plan>,
    sealed: Sealed,
    disks: Vec<SimMedia>,
    /// Its own.
    disk: SimMedia,
    submitted: u64,
    hanging_since: Option<Instant>,
    told_at: Instant,
    broken: bool,
}

pub(crate) struct Plan {
    pub(crate) refusal: Refusal,
    /// Operations of that kind before the first that fails, and how many fail.
    pub(crate) after: u64,
    pub(crate) times: u64,
    pub(crate) seen: AtomicU64,
    /// Set when the volume was seen suspect.
    pub(crate) was_suspect: AtomicBool,
    /// Set when a lane was seen blocked; a device that is to fail until then works again.
    pub(crate) was_blocked: AtomicBool,
    pub(crate) until_blocked: bool,
    /// Packets that are stored.
    stored: AtomicU64,
}

impl Plan {
    pub(crate) fn new(refusal: Refusal, after: u64, times: u64) -> Arc<Self> {
        let (seen, was_suspect, was_blocked) = (0.into(), false.into(), false.into());
        let (until_blocked, stored) = (false, 0.into());
        Arc::new(Self {
            refusal,
            after,
            times,
            seen,
            was_suspect,
            was_blocked,
            until_blocked,
            stored,
        })
    }

    /// As a plan that fails for good, until a lane was seen blocked.
    pub(crate) fn until_blocked(refusal: Refusal, after: u64) -> Arc<Self> {
        let plan = Arc::into_inner(Self::new(refusal, after, ALWAYS)).expect("it is new");
        Arc::new(Self { until_blocked: true, ..plan })
    }

    /// Whether an operation has failed.
    pub(crate) fn has_struck(&self) -> bool {
        self.seen.load(Ordering::Relaxed) > self.after
    }

    /// Whether the device hangs at the moment, after this many operations were submitted to it.
    fn hangs(&self, submitted: u64) -> bool {
        let until_then = match self.refusal {
            Refusal::HangUntil(stored) => self.stored.load(Ordering::Relaxed) < stored,
            _ => self.hangs_unseen(),
        };
        until_then && submitted > self.after
    }

    fn hangs_unseen(&self) -> bool {
        self.refusal == Refusal::Hang && !self.was_suspect.load(Ordering::Relaxed)
    }

    fn strikes(&self) -> bool {
        let n = self.seen.fetch_add(1, Ordering::Relaxed);
        if self.until_blocked && self.was_blocked.load(Ordering::Relaxed) {
            return false;
        }
        n >= self.after && n - self.after < self.times
    }
}

impl Layer for FailingQueue {
    type Inner = SimQueue;

    fn inner(&self) -> &SimQueue {
        &self.inner
    }

    fn inner_mut(&mut self) -> &mut SimQueue {
        &mut self.inner
    }

    fn admit(&mut self, chunk: &ChunkBuf) -> Result<(), NvmeError> {
        // Power goes for all disks at once.
        if self.disks.iter().any(SimMedia::power_is_cut) {
            self.disks.iter().for_each(SimMedia::cut_power);
        }
        let header = ChunkHeader::decode(chunk).expect("a chunk");
        let tag_at = HEADER_BYTES + header.payload_bytes as usize;
        let mark = chunk[tag_at..tag_at + 16].to_vec();
        let pair = (header.life, header.number);
        let before = self.sealed.lock().unwrap().insert(pair, mark.clone());
        assert!(before.is_none_or(|before| before == mark), "{pair:?} was sealed twice");
        self.submitted += 1;
        Ok(())
    }

    fn pass(&mut self, wait: Duration, out: &mut Vec<Completion>) -> Result<(), NvmeError> {
        let hangs = self.plan.hangs(self.submitted);
        if matches!(self.plan.refusal, Refusal::HangUntil(_)) {
            self.disk.hang(hangs);
        }
        if hangs {
            self.hanging_since.get_or_insert_with(Instant::now);
            std::thread::sleep(wait.min(Duration::from_millis(1)));
            return Ok(());
        }
        self.hanging_since = None;
        if let Refusal::Slow(interval) = self.plan.refusal {
            if self.told_at.elapsed() < interval {
                std::thread::sleep(wait.min(Duration::from_millis(1)));
                return Ok(());
            }
            self.told_at = Instant::now();
        }
        let breaks = self.plan.refusal == Refusal::Break && self.inner.in_flight() > 0;
        self.broken |= breaks && self.plan.strikes();
        if self.broken {
            let source = io::Error::from_raw_os_error(libc::EBADFD);
            return Err(NvmeError::Broken { backend: "sim", source });
        }
        let from = out.len();
        self.inner.poll(wait, out)?;
        for completion in &mut out[from..] {
            match (completion, self.plan.refusal) {
                (Completion::Write { result, .. }, Refusal::Write(errno))
                | (Completion::Sync { result, .. }, Refusal::Sync(errno))
                    if self.plan.strikes() =>
                {
                    *result = Err(io::Error::from_raw_os_error(errno));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn since(&self) -> Option<Instant> {
        self.hanging_since
    }
}

pub(crate) fn frame(lane: u32, n: u32) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend([8, 0, 0x45, 0, 0, 220, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, lane as u8, 7]);
    frame.extend([10, 0, 2, (n / 100) as u8, 0x10, 0, 0, 53, 0, 200, 0, 0]);
    frame.extend((lane << 24 | n).to_be_bytes());
    frame.resize(PACKET_BYTES, n as u8);
    frame
}

/// A live source, whose lane gives up only when it is stopped.
pub(crate) struct Live {
    lane: u32,
    given: u32,
    interfaces: Vec<Interface>,
}

impl Live {
    pub(crate) fn new(lane: u32) -> Self {
        Self { lane, given: 0, interfaces: vec![Interface::unnamed(LinkType::ETHERNET)] }
    }
}

impl Source for Live {
    fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    fn is_live(&self) -> bool {
        true
    }

    fn poll(&mut self, sink: &mut dyn PacketSink, _: Duration) -> Result<Polled, CaptureError> {
        if self.given == PACKETS {
            return Ok(Polled::End);
        }
        let data = frame(self.lane, self.given);
        let packet = Packet {
            interface: 0,
            ts_ns: u64::from(1 + 2 * self.given + self.lane),
            wire_len: data.len() as u32,
            data: &data,
            vlan: None,
            flags: None,
            options: &[],
        };
        let taken = sink.packet(&packet).is_continue();
        self.given += u32::from(taken);
        Ok(Polled::Packets(u64::from(taken)))
    }

    fn counters(&mut self) -> SourceCounters {
        let given = u64::from(self.given);
        SourceCounters { received: given, handed: given, ..SourceCounters::default() }
    }

    fn state(&self) -> SourceState {
        SourceState::Running
    }

    fn report(&self) -> SourceReport {
        let (kind, name, clocks, notes) = ("test", String::new(), Vec::new(), Vec::new());
        SourceReport { kind, name, fanout: None, ring_bytes: 0, clocks, notes }
    }
}

pub(crate) fn pcap(lane: u32) -> Vec<u8> {
    let mut file = 0xa1b2_3c4d_u32.to_le_bytes().to_vec();
    file.extend([2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0]);
    for n in 0..PACKETS {
        let frame = frame(lane, n);
        file.extend([[0, 0, 0, 1], (2 * n + lane + 1).to_le_bytes()].concat());
        file.extend((frame.len() as u32).to_le_bytes());
        file.extend((frame.len() as u32).to_le_bytes());
        file.extend(frame);
    }
    file
}

/// How often each packet of each lane came, and whether a lane's came in order.
pub(crate) struct Seen {
    times: Vec<Vec<u32>>,
    last: Vec<Option<u32>>,
}

impl Sink for Seen {
    fn interface(&mut self, _: u32, _: &Interface) -> io::Result<()> {
        Ok(())
    }

    fn packet(&mut self, packet: &PacketOut<'_>) -> io::Result<ControlFlow<()>> {
        let mark = u32::from_be_bytes([0, 1, 2, 3].map(|at| packet.data[MARK_AT + at]));
        let (lane, n) = ((mark >> 24) as usize, mark & 0x00ff_ffff);
        let filled = vec![n as u8; PACKET_BYTES - MARK_AT - 4];
        assert_eq!(packet.data[MARK_AT + 4..], filled[..], "packet {n} is altered");
        assert!(self.last[lane] < Some(n), "packet {n} of lane {lane} is out of order");
        self.last[lane] = Some(n);
        self.times[lane][n as usize] += 1;
        Ok(ControlFlow::Continue(()))
    }
}

pub(crate) fn ask(catalog: &Catalog) -> (Vec<Vec<u32>>, Summary) {
    let lanes = LANES as usize;
    let mut seen = Seen { times: vec![vec![0; PACKETS as usize]; lanes], last: vec![None; lanes] };
    let cancel = AtomicBool::new(false);
    let summary = wirevault_query::run(catalog, &Request::default(), &mut seen, &cancel);
    (seen.times, summary.expect("an answer"))
}

pub(crate) struct Rig {
    pub(crate) topology: Topology,
    /// Time after which a device counts as stalled.
    pub(crate) stall: Duration,
    pub(crate) disks: Vec<SimMedia>,
    pub(crate) key: KeySource,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) sealed: Sealed,
    pub(crate) _dir: tempfile::TempDir,
}

pub(crate) fn rig(volumes: usize, topology: Topology) -> Rig {
    let dir = tempfile::tempdir().expect("a directory");
    let provider: Arc<dyn KeyProvider> =
        Arc::new(FileProvider::create(&dir.path().join("k")).expect("a key"));
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let disks: Vec<SimMedia> = (0..volumes).map(|_| SimMedia::new()).collect();
    let options = CreateOptions {
        quota_bytes: Some((512 << 20) * volumes as u64),
        lanes: LANES as u16,
        key: Some(Arc::clone(&provider)),
        key_path: String::new(),
        clock: Arc::clone(&clock),
    };
    let named = disks.iter().enumerate();
    let media: Vec<(Arc<dyn Media>, String)> =
        named.map(|(n, disk)| (Arc::new(disk.clone()) as _, format!("/sim{n}"))).collect();
    create(&media, random::store_id().expect("an id"), &options).expect("a store");
    let (key, sealed) = (KeySource::Provider(provider), Sealed::default());
    // No device that works is taken for one that hangs, however busy the machine is.
    let stall = Duration::from_secs(600);
    Rig { topology, stall, disks, key, clock, sealed, _dir: dir }
}

/// What is left when a recording is over.
pub(crate) struct Recorded {
    pub(crate) books: Vec<Snapshot>,
    /// Watermark of each lane when the power was last seen on.
    pub(crate) acknowledged: Vec<u64>,
    pub(crate) lane_errors: Vec<Option<String>>,
    pub(crate) volume_errors: Vec<Option<String>>,
    /// Volumes that were seen suspect; one that fails at the very end may not be.
    pub(crate) suspect: Vec<bool>,
    /// A lane was seen blocked.
    pub(crate) blocked: bool,
    /// A lane was seen to have dropped packets, with the power on.
    pub(crate) dropped: bool,
    /// Answer of the running recorder, asked for after the first failure.
    pub(crate) live: Option<(Vec<Vec<u32>>, Summary)>,
}

/// Records both lanes' files until the end or a power cut. `plans` say what each volume's device
/// refuses.
pub(crate) fn record(rig: &Rig, plans: &[Arc<Plan>], seed: u64) -> Recorded {
    let replay = |lane| -> Box<dyn Source> {
        let input = Box::new(Cursor::new(pcap(lane)));
        let source = ReplaySource::from_reader("test.pcap".to_owned(), input, Speed::Full);
        Box::new(source.expect("a pcap file"))
    };
    record_from(rig, plans, seed, replay)
}

/// As [`record`], from other sources.
pub(crate) fn record_from(
    rig: &Rig,
    plans: &[Arc<Plan>],
    seed: u64,
    source: impl Fn(u32) -> Box<dyn Source>,
) -> Recorded {
    let media = rig.disks.iter().map(|disk| Arc::new(disk.clone()) as Arc<dyn Media>).collect();
    let (store, _) = Store::open(media, &rig.key, Arc::clone(&rig.clock)).expect("it opens");
    let lanes = (0..LANES).map(|lane| {
        let source = source(lane);
        LaneSpec::new(source)
    });
    let arena = ArenaOptions { bytes: 4 << 20, hugepages: Hugepages::Off, numa_node: None };
    let pool = Pool::new(Arena::new(arena).expect("4 MiB"));
    let (sealed, disks) = (Arc::clone(&rig.sealed), rig.disks.clone());
    let device_plans = plans.to_vec();
    let options = PipelineOptions {
        commit_interval: Duration::from_millis(2),
        stall: rig.stall,
        import: true,
        topology: rig.topology,
        queue: Arc::new(move |volume, _| {
            let inner = SimQueue::new(SimOptions { seed, ..SimOptions::default() });
            let (plan, sealed) = (Arc::clone(&device_plans[volume]), Arc::clone(&sealed));
            Ok(Box::new(FailingQueue {
                inner,
                plan,
                sealed,
                disks: disks.clone(),
                disk: disks[volume].clone(),
                submitted: 0,
                hanging_since: None,
                told_at: Instant::now(),
                broken: false,
            }))
        }),
        ..PipelineOptions::default()
    };
    let clock = Arc::clone(&rig.clock);
    let pipeline = Pipeline::start(store, pool.clone(), lanes.collect(), &options, clock);
    let pipeline = pipeline.expect("it starts");
    let views: Vec<_> = pipeline.lanes().to_vec();
    let volumes: Vec<_> = pipeline.volumes().to_vec();
    let mut acknowledged = vec![0; views.len()];
    let mut suspect = vec![false; rig.disks.len()];
    let (mut live, mut blocked, mut dropped) = (None, false, false);
    let begin = Instant::now();
    loop {
        let cut = rig.disks.iter().any(SimMedia::power_is_cut);
        for (lane, view) in views.iter().enumerate() {
            blocked |= view.shared.state() == LaneState::Blocked;
            let snapshot = view.books.snapshot();
            assert!(snapshot.balances(), "{snapshot:?}");
            assert!(snapshot.watermark >= acknowledged[lane], "the watermark went back");
            // What the books said while the power was on was durable then.
            if !rig.disks.iter().any(SimMedia::power_is_cut) {
                acknowledged[lane] = snapshot.watermark;
                dropped |= snapshot.dropped_packets() > 0;
            }
        }
        let stored = views.iter().map(|view| view.books.snapshot().stored).sum();
        for plan in plans {
            plan.was_blocked.store(blocked, Ordering::Relaxed);
            plan.stored.store(stored, Ordering::Relaxed);
        }
        for (noted, volume) in suspect.iter_mut().zip(&pipeline.store().status().volumes) {
            *noted |= volume.suspect.is_some();
        }
        for (plan, suspect) in plans.iter().zip(&suspect) {
            plan.was_suspect.store(*suspect, Ordering::Relaxed);
        }
        if live.is_none() && volumes.iter().any(|it| it.shared.error.lock().unwrap().is_some()) {
            live = Some(ask(&pipeline.catalog()));
        }
        if cut {
            rig.disks.iter().for_each(SimMedia::cut_power);
            pipeline.stop();
        }
        // A device that hangs until it is seen suspect may outlast the sources.
        if pipeline.is_finished() && !plans.iter().any(|plan| plan.hangs_unseen()) {
            break;
        }
        assert!(begin.elapsed() < TIME_MAX, "it does not end");
        std::thread::sleep(Duration::from_micros(500));
    }
    let ended = pipeline.join();
    assert_eq!(pool.in_flight(), 0, "every chunk went back: {ended:?}");
    let books: Vec<_> = views.iter().map(|view| view.books.snapshot()).collect();
    if !rig.disks.iter().any(SimMedia::power_is_cut) {
        acknowledged = books.iter().map(|books| books.watermark).collect();
    }
    Recorded {
        books,
        acknowledged,
        lane_errors: views.iter().map(|view| view.shared.error()).collect(),
        volume_errors: volumes.iter().map(|it| it.shared.error.lock().unwrap().clone()).collect(),
        suspect,
        blocked,
        dropped,
        live,
    }
}

/// What a new start finds on the disks.
pub(crate) fn reopen(rig: &Rig, disks: &[SimMedia]) -> (Vec<Vec<u32>>, Summary) {
    let media = disks.iter().map(|disk| Arc::new(disk.clone()) as Arc<dyn Media>).collect();
    let (store, report) = Store::open(media, &rig.key, Arc::clone(&rig.clock)).expect("it opens");
    let damage: Vec<_> = report.segments.iter().flat_map(|segment| &segment.damage).collect();
    assert!(damage.is_empty(), "{damage:?}");
    assert!(report.set_aside.is_empty(), "{report:?}");
    ask(&store.catalog(rig.clock.unix_ns()))
}

/// Nothing dropped, everything stored, and every packet found once, in order.
pub(crate) fn check_whole(rig: &Rig, recorded: &Recorded, what: &str) {
    for books in &recorded.books {
        assert_eq!(books.stored, u64::from(PACKETS), "{what}: {books:?}");
        assert_eq!((books.dropped_packets(), books.in_flight), (0, 0), "{what}: {books:?}");
        assert_eq!(books.watermark, u64::from(PACKETS), "{what}: {books:?}");
    }
    let (seen, summary) = reopen(rig, &rig.disks);
    assert!(seen.iter().flatten().all(|times| *times == 1), "{what}: not each packet once");
    assert!(summary.damaged.is_empty(), "{what}: {summary:?}");
    if let Some((seen, _)) = &recorded.live {
        assert!(seen.iter().flatten().all(|times| *times <= 1), "{what}: twice while it recorded");
    }
}
