//! What the catalog of a running pipeline promises while one of its threads is held up.

use std::ops::ControlFlow;
use std::sync::atomic::AtomicU64;

use wirevault_buffer::{Arena, ArenaOptions, Hugepages};
use wirevault_capture::{
    CaptureError, Packet, PacketSink, Polled, Source, SourceCounters, SourceReport, SourceState,
};
use wirevault_format::limits::CHUNK_BYTES;
use wirevault_format::{Interface, LinkType, PolicyName};
use wirevault_index::KeySource;
use wirevault_media::sim::{Fault, Trigger};
use wirevault_media::{Media, SimMedia};
use wirevault_nvme::{SimOptions, SimQueue};
use wirevault_seal::random;
use wirevault_storage::{CreateOptions, create};
use wirevault_telemetry::clock::SystemClock;

use super::*;
use crate::{Action, PolicySpec, RungSpec};

const START_NS: u64 = 1_700_000_000_000_000_000;
/// Between two packets.
const STEP_NS: u64 = 1_000_000_000;
/// Some two hundred fill a chunk.
const PACKET_BYTES: usize = 1200;
const TOPOLOGIES: [Topology; 2] = [Topology::RunToCompletion, Topology::Split];
const TIME_MAX: Duration = Duration::from_secs(120);

fn time_ns(packet: u64) -> u64 {
    START_NS + packet * STEP_NS
}

/// Which interfaces packets come from, in order, as far as the test has let them through.
struct Paced {
    interfaces: Vec<Interface>,
    order: Vec<u32>,
    given: u64,
    allowed: Arc<AtomicU64>,
}

impl Source for Paced {
    fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    fn is_live(&self) -> bool {
        true
    }

    fn poll(&mut self, sink: &mut dyn PacketSink, _: Duration) -> Result<Polled, CaptureError> {
        if self.given == self.allowed.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(1));
            return Ok(Polled::Idle);
        }
        let data = [0; PACKET_BYTES];
        let packet = Packet {
            interface: self.order[self.given as usize],
            ts_ns: time_ns(self.given),
            wire_len: data.len() as u32,
            data: &data,
            vlan: None,
            flags: None,
            options: &[],
        };
        let taken = u64::from(sink.packet(&packet) == ControlFlow::Continue(()));
        self.given += taken;
        Ok(Polled::Packets(taken))
    }

    fn counters(&mut self) -> SourceCounters {
        SourceCounters { received: self.given, handed: self.given, ..SourceCounters::default() }
    }

    fn state(&self) -> SourceState {
        SourceState::Running
    }

    fn report(&self) -> SourceReport {
        let (kind, name, clocks, notes) = ("test", String::new(), Vec::new(), Vec::new());
        SourceReport { kind, name, fanout: None, ring_bytes: 0, clocks, notes }
    }
}

struct Rig {
    pipeline: Pipeline,
    disk: SimMedia,
    allowed: Arc<AtomicU64>,
}

impl Rig {
    /// Records packets of these link types, by number of the interface.
    fn start(links: &[LinkType], order: Vec<u32>, flush_age: Duration, topology: Topology) -> Self {
        Self::with_ladder(links, order, flush_age, topology, (16, Vec::new()))
    }

    /// The same, with so many chunks, and rungs.
    fn with_ladder(
        links: &[LinkType],
        order: Vec<u32>,
        flush_age: Duration,
        topology: Topology,
        (chunks, ladder): (usize, Vec<RungSpec>),
    ) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let disk = SimMedia::new();
        let media = || Arc::new(disk.clone()) as Arc<dyn Media>;
        let options = CreateOptions {
            quota_bytes: Some(256 << 20),
            lanes: 1,
            key: None,
            key_path: String::new(),
            clock: Arc::clone(&clock),
        };
        create(&[(media(), "/sim".to_owned())], random::store_id().unwrap(), &options).unwrap();
        let opened = Store::open(vec![media()], &KeySource::Recorded, Arc::clone(&clock));
        let (store, _) = opened.unwrap();
        let allowed = Arc::new(AtomicU64::new(0));
        let interfaces = links.iter().map(|link| Interface::unnamed(*link)).collect();
        let source = Box::new(Paced { interfaces, order, given: 0, allowed: Arc::clone(&allowed) });
        let lane = LaneSpec { ladder, ..LaneSpec::new(source) };
        let bytes = chunks * CHUNK_BYTES;
        let arena = ArenaOptions { bytes, hugepages: Hugepages::Off, numa_node: None };
        let pool = Pool::new(Arena::new(arena).unwrap());
        let options = PipelineOptions {
            flush_age,
            topology,
            commit_interval: Duration::from_millis(2),
            queue: Arc::new(|_, _| Ok(Box::new(SimQueue::new(SimOptions::default())))),
            ..PipelineOptions::default()
        };
        let pipeline = Pipeline::start(store, pool, vec![lane], &options, clock).unwrap();
        Self { pipeline, disk, allowed }
    }

    /// Lets packets through up to this number and waits until all of them are stored.
    fn store(&self, packets: u64) {
        self.allowed.store(packets, Ordering::Release);
        let books = &self.pipeline.lanes[0].books;
        self.wait("stored", || {
            let snapshot = books.snapshot();
            snapshot.stored == packets && snapshot.in_flight == 0
        });
    }

    fn wait(&self, what: &str, is_so: impl Fn() -> bool) {
        let begin = Instant::now();
        while !is_so() {
            let lane = &self.pipeline.lanes[0];
            assert!(begin.elapsed() < TIME_MAX, "never {what}: {:?}", lane.books.snapshot());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn promised_ns(&self) -> u64 {
        self.pipeline.catalog().durable_until_ns.expect("a live lane")
    }

    fn end(self) {
        self.pipeline.stop();
        self.pipeline.join().unwrap();
    }
}

#[test]
fn a_durable_chunk_is_promised_only_when_the_index_shows_it() {
    TOPOLOGIES.into_iter().for_each(promised_when_shown);
}

fn promised_when_shown(topology: Topology) {
    let age = Duration::from_millis(20);
    let rig = Rig::start(&[LinkType::ETHERNET], vec![0; 2], age, topology);
    rig.store(1);
    rig.wait("shown", || rig.promised_ns() > time_ns(0));
    let segment = Arc::clone(&rig.pipeline.registry.segments()[0]);
    // Holds the closer back: it cannot change the index meanwhile.
    let index = segment.index.read().unwrap();
    rig.store(2);
    let (shown, promised_ns) = (index.chunks().len(), rig.promised_ns());
    assert_eq!(shown, 1, "the second chunk is durable and not shown");
    assert!(promised_ns <= time_ns(1), "a packet of {} is promised: {promised_ns}", time_ns(1));
    assert!(rig.pipeline.lanes[0].shared.durable_ns.load(Ordering::Acquire) == time_ns(1));
    drop(index);
    rig.wait("shown", || rig.promised_ns() > time_ns(1));
    assert_eq!(segment.index.read().unwrap().chunks().len(), 2);
    rig.end();
}

#[test]
fn a_packet_that_the_lane_still_holds_is_not_promised_for_another_link_type() {
    TOPOLOGIES.into_iter().for_each(not_promised_while_held);
}

fn not_promised_while_held(topology: Topology) {
    // The first packet waits in a chunk of its own while others fill several of theirs.
    let order = [vec![1], vec![0; 600]].concat();
    let links = [LinkType::ETHERNET, LinkType::RAW];
    let rig = Rig::start(&links, order, Duration::from_secs(3600), topology);
    rig.allowed.store(601, Ordering::Release);
    let shared = &rig.pipeline.lanes[0].shared;
    rig.wait("stored", || rig.pipeline.lanes[0].books.snapshot().stored > 0);
    rig.wait("shown", || shared.shown.has(1));
    let promised_ns = rig.promised_ns();
    assert!(promised_ns <= time_ns(0), "a packet of {} is promised: {promised_ns}", time_ns(0));
    rig.end();
}

/// Somebody closed a segment on a device that took a minute for a flush; meanwhile nobody could see
/// the status or the metrics.
#[test]
fn the_status_is_told_while_a_volume_hangs() {
    let age = Duration::from_millis(20);
    let rig = Rig::start(&[LinkType::ETHERNET], vec![0; 2], age, Topology::Auto);
    rig.store(1);
    let hangs = || rig.pipeline.store().status().volumes[0].hangs;
    assert!(!hangs());
    // The next sign of life does.
    rig.disk.hang(true);
    rig.wait("seen to hang", hangs);
    rig.disk.hang(false);
    rig.wait("seen to work again", || !hangs());
    rig.end();
}

#[test]
fn a_segment_that_is_late_does_not_keep_the_lane_from_its_source() {
    const PACKETS: u64 = 1500;
    for topology in TOPOLOGIES {
        let order = vec![0; PACKETS as usize];
        let age = Duration::from_millis(20);
        let rig = Rig::start(&[LinkType::ETHERNET], order, age, topology);
        // The first segment cannot be opened meanwhile.
        rig.disk.hang(true);
        rig.allowed.store(PACKETS, Ordering::Release);
        let books = &rig.pipeline.lanes[0].books;
        rig.wait("taken", || {
            let snapshot = books.snapshot();
            snapshot.received == PACKETS && snapshot.in_ring == 0
        });
        assert_eq!(books.snapshot().in_flight, PACKETS, "they wait in the buffer");
        rig.disk.hang(false);
        rig.store(PACKETS);
        rig.end();
    }
}

/// The chunk for the mark that a rung was left was a quarter of these buffers, and entered it
/// again.
#[test]
fn a_rung_is_not_entered_by_the_mark_that_it_was_left() {
    let age = Duration::from_millis(20);
    for topology in TOPOLOGIES {
        let name = PolicyName::new("heads").unwrap();
        let policy = PolicySpec { name, filter: None, action: Action::Snaplen { bytes: 64 } };
        let rung = RungSpec { policy, enter_percent: 25, leave_percent: 20 };
        let with = (LANE_BUFFERS_MIN, vec![rung]);
        let rig = Rig::with_ladder(&[LinkType::ETHERNET], vec![0], age, topology, with);
        rig.store(1);
        let rung = &rig.pipeline.lanes[0].shared.policies[0];
        rig.wait("entered and left", || rung.entered() == [1, 0, 0] && !rung.is_active());
        // Time enough for a chunk with the mark, and for what came of it.
        std::thread::sleep(20 * age);
        assert_eq!((rung.entered(), rung.is_active()), ([1, 0, 0], false));
        rig.end();
    }
}

#[test]
fn rungs_are_entered_while_no_segment_can_be_opened() {
    const PACKETS: u64 = 3;
    let age = Duration::from_millis(20);
    let name = PolicyName::new("rest").unwrap();
    let policy = PolicySpec { name, filter: None, action: Action::CoarseIndex };
    let rung = RungSpec { policy, enter_percent: 90, leave_percent: 50 };
    let (links, order) = ([LinkType::ETHERNET], vec![0; PACKETS as usize]);
    let rig = Rig::with_ladder(&links, order, age, Topology::Auto, (64, vec![rung]));
    rig.disk.inject(Trigger::EveryWrite, Fault::Enospc);
    rig.allowed.store(1, Ordering::Release);
    let rung = &rig.pipeline.lanes[0].shared.policies[0];
    rig.wait("entered", || rung.is_active());
    assert_eq!(rung.entered(), [0, 0, 1], "by the disk: 63 of 64 chunks are free");
    rig.disk.clear_faults();
    rig.store(PACKETS);
    rig.wait("left", || !rung.is_active());
    rig.end();
}
