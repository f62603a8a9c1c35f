//! Devices that fail under load: writes and flushes with EIO, full disks, on two volumes under two
//! lanes. Nothing acknowledged is lost, nothing is dropped while a volume works, books balance, and
//! each packet comes back once, also after a crash in the middle of it.

use std::collections::HashMap;
use std::io::{self, Cursor};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use wirevault_buffer::{Arena, ArenaOptions, ChunkBuf, Hugepages, Pool};
use wirevault_capture::{
    CaptureError, Packet, PacketSink, Polled, ReplaySource, Source, SourceCounters, SourceReport,
    SourceState, Speed,
};
use wirevault_format::chunk::{ChunkHeader, HEADER_BYTES};
use wirevault_format::{Cause, Interface, LifeId, LinkType};
use wirevault_index::{Catalog, KeySource};
use wirevault_media::sim::SplitMix64;
use wirevault_media::{Fault, Media, MediaFile, SimMedia, Trigger};
use wirevault_nvme::{
    Completion, NvmeError, Queue, QueueReport, Refused, SimOptions, SimQueue, Slot,
};
use wirevault_pipeline::{LaneSpec, LaneState, Pipeline, PipelineOptions, Topology};
use wirevault_query::{PacketOut, Request, Sink, Summary};
use wirevault_seal::{FileProvider, KeyProvider, random};
use wirevault_storage::{CreateOptions, Store, create};
use wirevault_telemetry::books::Snapshot;
use wirevault_telemetry::clock::{Clock, SystemClock};

const LANES: u32 = 2;
/// Whether lanes seal their own chunks must make no difference to any test.
const TOPOLOGIES: [Topology; 2] = [Topology::RunToCompletion, Topology::Split];
/// Packets of each lane: two segments' worth.
const PACKETS: u32 = 12_000;
const PACKET_BYTES: usize = 1500;
/// Where the lane and the number stand in a packet.
const MARK_AT: usize = 42;
const TIME_MAX: Duration = Duration::from_secs(120);
const ALWAYS: u64 = u64::MAX;
/// Each takes a few tenths of a second.
const CRASHES: u64 = 24;

/// What a disk refuses at the moment. Tables and headers go on: a failure there is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Nothing,
    Write(i32),
    Sync(i32),
    /// Nothing ends, until the volume was seen suspect.
    Hang,
}

/// Every (life, chunk number) that was submitted, with what identified it: one pair must never be
/// sealed twice.
type Sealed = Arc<Mutex<HashMap<(LifeId, u32), Vec<u8>>>>;

/// A queue whose device refuses chunks as told, from the `n`th operation on, so many times.
struct FailingQueue {
    inner: SimQueue,
    plan: Arc<Plan>,
    sealed: Sealed,
    disks: Vec<SimMedia>,
    submitted: u64,
    hanging_since: Option<Instant>,
}

struct Plan {
    refusal: Refusal,
    /// Operations of that kind before the first that fails, and how many fail.
    after: u64,
    times: u64,
    seen: std::sync::atomic::AtomicU64,
    /// Set when the volume was seen suspect.
    was_suspect: AtomicBool,
    /// Set when a lane was seen blocked; a device that is to fail until then works again.
    was_blocked: AtomicBool,
    until_blocked: bool,
}

impl Plan {
    fn new(refusal: Refusal, after: u64, times: u64) -> Arc<Self> {
        let (seen, was_suspect, was_blocked) = (0.into(), false.into(), false.into());
        let until_blocked = false;
        Arc::new(Self { refusal, after, times, seen, was_suspect, was_blocked, until_blocked })
    }

    /// As a plan that fails for good, until a lane was seen blocked.
    fn until_blocked(refusal: Refusal, after: u64) -> Arc<Self> {
        let plan = Arc::into_inner(Self::new(refusal, after, ALWAYS)).expect("it is new");
        Arc::new(Self { until_blocked: true, ..plan })
    }

    /// Whether an operation has failed.
    fn has_struck(&self) -> bool {
        self.seen.load(Ordering::Relaxed) > self.after
    }

    /// Whether the device hangs at the moment, after this many operations were submitted to it.
    fn hangs(&self, submitted: u64) -> bool {
        self.refusal == Refusal::Hang
            && submitted > self.after
            && !self.was_suspect.load(Ordering::Relaxed)
    }

    fn strikes(&self) -> bool {
        let n = self.seen.fetch_add(1, Ordering::Relaxed);
        if self.until_blocked && self.was_blocked.load(Ordering::Relaxed) {
            return false;
        }
        n >= self.after && n - self.after < self.times
    }
}

impl Queue for FailingQueue {
    fn name(&self) -> &'static str {
        "failing"
    }

    fn report(&self) -> QueueReport {
        self.inner.report()
    }

    fn depth(&self) -> usize {
        self.inner.depth()
    }

    fn attach(&mut self, file: &Arc<dyn MediaFile>) -> Result<Slot, NvmeError> {
        self.inner.attach(file)
    }

    fn detach(&mut self, slot: Slot) -> Result<(), NvmeError> {
        self.inner.detach(slot)
    }

    fn write(
        &mut self,
        slot: Slot,
        offset: u64,
        buf: ChunkBuf,
        len_bytes: usize,
        token: u64,
    ) -> Result<(), Refused> {
        // Power goes for all disks at once.
        if self.disks.iter().any(SimMedia::power_is_cut) {
            self.disks.iter().for_each(SimMedia::cut_power);
        }
        let header = ChunkHeader::decode(&buf).expect("a chunk");
        let tag_at = HEADER_BYTES + header.payload_bytes as usize;
        let mark = buf[tag_at..tag_at + 16].to_vec();
        let pair = (header.life, header.number);
        let before = self.sealed.lock().unwrap().insert(pair, mark.clone());
        assert!(before.is_none_or(|before| before == mark), "{pair:?} was sealed twice");
        self.submitted += 1;
        self.inner.write(slot, offset, buf, len_bytes, token)
    }

    fn sync(&mut self, slot: Slot, token: u64) -> Result<(), NvmeError> {
        self.inner.sync(slot, token)
    }

    fn poll(&mut self, wait: Duration, out: &mut Vec<Completion>) -> Result<(), NvmeError> {
        if self.plan.hangs(self.submitted) {
            self.hanging_since.get_or_insert_with(Instant::now);
            std::thread::sleep(wait.min(Duration::from_millis(1)));
            return Ok(());
        }
        self.hanging_since = None;
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

    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }

    fn oldest(&self) -> Option<Instant> {
        self.hanging_since
    }
}

fn frame(lane: u32, n: u32) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend([8, 0, 0x45, 0, 0, 220, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, lane as u8, 7]);
    frame.extend([10, 0, 2, (n / 100) as u8, 0x10, 0, 0, 53, 0, 200, 0, 0]);
    frame.extend((lane << 24 | n).to_be_bytes());
    frame.resize(PACKET_BYTES, n as u8);
    frame
}

/// A live source, whose lane gives up only when it is stopped.
struct Live {
    lane: u32,
    given: u32,
    interfaces: Vec<Interface>,
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

fn pcap(lane: u32) -> Vec<u8> {
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
struct Seen {
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

fn ask(catalog: &Catalog) -> (Vec<Vec<u32>>, Summary) {
    let lanes = LANES as usize;
    let mut seen = Seen { times: vec![vec![0; PACKETS as usize]; lanes], last: vec![None; lanes] };
    let cancel = AtomicBool::new(false);
    let summary = wirevault_query::run(catalog, &Request::default(), &mut seen, &cancel);
    (seen.times, summary.expect("an answer"))
}

struct Rig {
    topology: Topology,
    disks: Vec<SimMedia>,
    key: KeySource,
    clock: Arc<dyn Clock>,
    sealed: Sealed,
    _dir: tempfile::TempDir,
}

fn rig(volumes: usize, topology: Topology) -> Rig {
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
    Rig { topology, disks, key, clock, sealed, _dir: dir }
}

/// What is left when a recording is over.
struct Recorded {
    books: Vec<Snapshot>,
    /// Watermark of each lane when the power was last seen on.
    acknowledged: Vec<u64>,
    lane_errors: Vec<Option<String>>,
    volume_errors: Vec<Option<String>>,
    /// Volumes that were seen suspect; one that fails at the very end may not be.
    suspect: Vec<bool>,
    /// A lane was seen blocked.
    blocked: bool,
    /// A lane was seen to have dropped packets, with the power on.
    dropped: bool,
    /// Answer of the running recorder, asked for after the first failure.
    live: Option<(Vec<Vec<u32>>, Summary)>,
}

/// Records both lanes' files until the end or a power cut. `plans` say what each volume's device
/// refuses.
fn record(rig: &Rig, plans: &[Arc<Plan>], seed: u64) -> Recorded {
    let replay = |lane| -> Box<dyn Source> {
        let input = Box::new(Cursor::new(pcap(lane)));
        let source = ReplaySource::from_reader("test.pcap".to_owned(), input, Speed::Full);
        Box::new(source.expect("a pcap file"))
    };
    record_from(rig, plans, seed, replay)
}

/// As [`record`], from other sources.
fn record_from(
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
        stall: Duration::from_millis(20),
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
                submitted: 0,
                hanging_since: None,
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
        plans.iter().for_each(|plan| plan.was_blocked.store(blocked, Ordering::Relaxed));
        for (noted, volume) in suspect.iter_mut().zip(&pipeline.store_status().volumes) {
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
        if pipeline.is_finished() {
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
fn reopen(rig: &Rig, disks: &[SimMedia]) -> (Vec<Vec<u32>>, Summary) {
    let media = disks.iter().map(|disk| Arc::new(disk.clone()) as Arc<dyn Media>).collect();
    let (store, report) = Store::open(media, &rig.key, Arc::clone(&rig.clock)).expect("it opens");
    let damage: Vec<_> = report.segments.iter().flat_map(|segment| &segment.damage).collect();
    assert!(damage.is_empty(), "{damage:?}");
    assert!(report.set_aside.is_empty(), "{report:?}");
    ask(&store.catalog(rig.clock.unix_ns()))
}

/// Nothing dropped, everything stored, and every packet found once, in order.
fn check_whole(rig: &Rig, recorded: &Recorded, what: &str) {
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

const FAILURES: [(&str, Refusal); 4] = [
    ("EIO on write", Refusal::Write(libc::EIO)),
    ("ENOSPC on write", Refusal::Write(libc::ENOSPC)),
    ("EIO on flush", Refusal::Sync(libc::EIO)),
    ("ENOSPC on flush", Refusal::Sync(libc::ENOSPC)),
];

/// A device that fails for good after so many operations. Flushes are grouped, the more so the
/// busier the machine is: a volume sees two for certain, one for each of its segments.
fn broken(refusal: Refusal, after: u64) -> Arc<Plan> {
    let after = if matches!(refusal, Refusal::Sync(_)) { after.min(1) } else { after };
    Plan::new(refusal, after, ALWAYS)
}

/// A case under either topology.
fn both<T: Copy>(case: T) -> [(T, Topology); 2] {
    TOPOLOGIES.map(|topology| (case, topology))
}

fn well() -> Arc<Plan> {
    Plan::new(Refusal::Nothing, 0, 0)
}

#[test]
fn a_volume_that_fails_for_good_costs_no_packet_while_another_works() {
    for (n, (what, refusal)) in FAILURES.into_iter().enumerate() {
        for (after, topology) in [0, 7].into_iter().flat_map(both) {
            let (rig, broken) = (rig(2, topology), broken(refusal, after));
            let recorded = record(&rig, &[well(), Arc::clone(&broken)], n as u64);
            check_whole(&rig, &recorded, what);
            // On a busy machine the volume may see fewer operations than those that succeed.
            if !broken.has_struck() {
                assert!(after > 0, "{what}: the volume was not used");
                continue;
            }
            let error = recorded.volume_errors[1].as_deref().expect("it is told");
            assert!(error.contains("place"), "{error}");
            assert!(recorded.lane_errors.iter().any(Option::is_some), "{what}");
            assert!(!recorded.suspect[0], "{what}");
        }
    }
}

#[test]
fn one_bad_place_costs_no_packet_on_the_only_volume() {
    for (n, (what, refusal)) in FAILURES.into_iter().enumerate() {
        for ((after, times), topology) in [(0, 1), (5, 1), (20, 2)].into_iter().flat_map(both) {
            let rig = rig(1, topology);
            let recorded = record(&rig, &[Plan::new(refusal, after, times)], n as u64);
            check_whole(&rig, &recorded, what);
        }
    }
}

/// A device that neither ends nor fails what it has: its segments are given up while it hangs, and
/// what it had is sealed again for the other volume when it answers.
#[test]
fn a_device_that_hangs_is_left_and_costs_no_packet() {
    for (seed, topology) in (0..4).flat_map(both) {
        let rig = rig(2, topology);
        let hanging = Plan::new(Refusal::Hang, seed, 0);
        let recorded = record(&rig, &[well(), hanging], seed);
        check_whole(&rig, &recorded, "hanging");
        assert_eq!(recorded.suspect, [false, true]);
        let error = recorded.volume_errors[1].as_deref().expect("it is told");
        assert!(error.contains("has not answered"), "{error}");
    }
}

#[test]
fn both_volumes_fail_in_turn_and_no_packet_is_lost() {
    for (seed, topology) in (0..6).flat_map(both) {
        let (_, refusal) = FAILURES[seed as usize % FAILURES.len()];
        let rig = rig(2, topology);
        let plans = [Plan::new(refusal, 6, 1), Plan::new(refusal, 9, 1)];
        check_whole(&rig, &record(&rig, &plans, seed), "in turn");
    }
}

#[test]
fn a_live_lane_waits_for_the_only_device_to_work_again() {
    for topology in TOPOLOGIES {
        let rig = rig(1, topology);
        // A lane is blocked after fewer rounds than after which a replay gives up.
        let plan = Plan::until_blocked(Refusal::Write(libc::EIO), 3);
        let recorded = record_from(&rig, &[plan], 1, |lane| {
            let interfaces = vec![Interface::unnamed(LinkType::ETHERNET)];
            Box::new(Live { lane, given: 0, interfaces })
        });
        check_whole(&rig, &recorded, "live");
        assert!(recorded.blocked, "it was told that nothing became durable");
    }
}

#[test]
fn when_no_volume_works_the_rest_is_dropped_and_told() {
    let mut shown = 0;
    for ((what, refusal), topology) in FAILURES.into_iter().flat_map(both) {
        let rig = rig(2, topology);
        let plans = [broken(refusal, 6), broken(refusal, 6)];
        let recorded = record(&rig, &plans, 1);
        // On a busy machine a volume may see fewer operations than those that succeed.
        if !plans.iter().all(|plan| plan.has_struck()) {
            continue;
        }
        shown += 1;
        let (seen, summary) = reopen(&rig, &rig.disks);
        assert!(!summary.complete, "{what}: {summary:?} {:?}", recorded.books);
        for (books, seen) in recorded.books.iter().zip(&seen) {
            // A file that is given up may have one packet read that found no room.
            assert!(books.balances() && books.in_flight == books.in_ring, "{what}: {books:?}");
            let failed = books.dropped[Cause::DeviceFailed.index()];
            assert_eq!(books.dropped_packets(), failed, "{what}: {books:?}");
            // What a device took without saying so may be there as well.
            let found = seen.iter().filter(|times| **times == 1).count() as u64;
            assert!(found >= books.stored, "{what}: {found} found, {books:?}");
            assert!(seen.iter().all(|times| *times <= 1), "{what}: twice");
        }
        assert!(recorded.books.iter().any(|books| books.dropped_packets() > 0), "{what}");
    }
    assert!(shown >= 2, "both volumes failed in {shown} of {} cases", 2 * FAILURES.len());
}

/// Faults of the disk itself, which keep bytes from it and strike tables and headers, too.
#[test]
fn a_call_that_fails_on_one_disk_costs_no_packet() {
    let mut random = SplitMix64::new(1);
    for seed in 0..20 {
        let rig = rig(2, TOPOLOGIES[seed as usize / 4 % 2]);
        let fault = if seed % 2 == 0 { Fault::Eio } else { Fault::Enospc };
        // Behind the first write and flush, which are the start's own.
        let trigger = match seed % 4 {
            0 | 1 => Trigger::Write(rig.disks[1].counts().writes + 2 + random.below(60)),
            _ => Trigger::Sync(rig.disks[1].counts().syncs + 2 + random.below(20)),
        };
        rig.disks[1].inject(trigger, fault);
        check_whole(&rig, &record(&rig, &[well(), well()], seed), &format!("seed {seed}"));
    }
}

#[test]
fn a_crash_while_chunks_are_sealed_again_loses_nothing_acknowledged() {
    let mut random = SplitMix64::new(2);
    let (mut cut_short, mut acknowledged) = (0, 0);
    for seed in 0..CRASHES {
        let rig = rig(2, TOPOLOGIES[seed as usize / FAILURES.len() % 2]);
        let (_, refusal) = FAILURES[seed as usize % FAILURES.len()];
        // One failure on each: fewer rounds than after which a replay gives packets up, which the
        // watermark would pass over.
        let after = random.below(12);
        let plans = [Plan::new(refusal, after, 1), Plan::new(refusal, after + 3, 1)];
        let disk = &rig.disks[random.below(2) as usize];
        let at = disk.counts().operations + 20 + random.below(120);
        disk.inject(Trigger::Operation(at), Fault::PowerCut);
        let recorded = record(&rig, &plans, seed);
        cut_short += u64::from(rig.disks.iter().any(SimMedia::power_is_cut));
        assert!(!recorded.dropped, "seed {seed}: packets were given up");
        let found: Vec<SimMedia> = rig.disks.iter().map(|disk| disk.crash(seed)).collect();
        let (seen, _) = reopen(&rig, &found);
        for (lane, seen) in seen.iter().enumerate() {
            let promised = recorded.acknowledged[lane] as usize;
            acknowledged += promised;
            assert!(seen.iter().all(|times| *times <= 1), "seed {seed}: a packet came twice");
            let lost = seen[..promised].iter().filter(|times| **times == 0).count();
            assert_eq!(lost, 0, "seed {seed}: {lost} of {promised} acknowledged are lost");
        }
    }
    println!("{cut_short} of {CRASHES} runs cut, {acknowledged} acknowledged packets, none lost");
    assert!(cut_short > CRASHES / 3 && acknowledged > 0);
}
