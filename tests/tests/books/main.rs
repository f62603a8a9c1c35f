//! A device that is far too slow forces losses. The books, the gaps in the data and the sequence
//! numbers that are missing from it all say the same, lane by lane. With a ladder ([`pressure`])
//! they say which rung left out which.

mod pressure;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use wirevault_buffer::{Arena, ArenaOptions, Hugepages, Pool};
use wirevault_capture::{PacketMmapOptions, open_lanes};
use wirevault_format::Gap;
use wirevault_format::gap::Cause;
use wirevault_format::limits::CHUNK_BYTES;
use wirevault_format::pcapng::{Blocks, Epb};
use wirevault_index::reader::gaps_in;
use wirevault_index::{Catalog, KeySource, open_store};
use wirevault_media::{DirMedia, Media};
use wirevault_pipeline::{LaneSpec, LaneView, Pipeline, PipelineOptions, Topology};
use wirevault_query::export::CountSink;
use wirevault_query::{Request, Summary};
use wirevault_seal::{FileProvider, random};
use wirevault_storage::{CreateOptions, Store, create};
use wirevault_telemetry::books::Snapshot;
use wirevault_telemetry::clock::{Clock, SystemClock};
use wirevault_testkit::net::{Namespace, Sender, Stamp, now_ns, wait_for};
use wirevault_tests::recorder::PATIENCE;
use wirevault_tests::slow::ChunkTime;

const LANES: usize = 2;
/// A chunk takes this long: 4 MB/s.
const CHUNK_TIME: Duration = Duration::from_millis(64);
/// Four times what buffers and rings hold, three times, with pauses to recover between.
const BURSTS: u64 = 3;
const BURST_PACKETS: u64 = 15_000;
const FRAME_BYTES: u16 = 1000;
const FLOWS: u64 = 32;
/// A packet is counted by the kernel at most this long after it was stamped, or is one of those
/// that are on their way.
const ON_THE_WAY_NS: u64 = 100_000_000;
/// What the kernel's queue of a processor holds (`netdev_max_backlog`), and the sender's one.
const ON_THE_WAY_PACKETS: u64 = 1001;

/// What the segments of one lane hold.
#[derive(Default)]
struct LaneData {
    packets: BTreeMap<u64, Stamp>,
    /// Packets that were cut, which have no readable stamp: their number.
    cut: BTreeSet<u64>,
    gaps: Vec<Gap>,
}

#[test]
fn what_a_slow_device_loses_is_counted_and_the_data_says_where() {
    for topology in [Topology::RunToCompletion, Topology::Split] {
        lose(topology);
    }
}

fn lose(topology: Topology) {
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    let folder = tempfile::tempdir().expect("folder");
    let store = make_store(folder.path());
    let time = ChunkTime::default();
    let pipeline = start(store, topology, &time);
    let sent = send_bursts(&pipeline, &time);
    let settled = || pipeline.lanes().iter().all(|lane| lane.books.snapshot().in_flight == 0);
    wait_for("what was taken is stored", PATIENCE, || settled().then_some(()));
    pipeline.stop();
    let books = pipeline.join().expect("the pipeline ends well");

    let received: u64 = books.iter().map(|lane| lane.received).sum();
    assert_eq!(received, sent.len() as u64, "the sender's own count");
    let reader = open_store(&folder.path().join("store"), &KeySource::Recorded).expect("store");
    let catalog = reader.catalog(now_ns());
    let lanes = read_back(&catalog);
    assert_eq!(lanes.keys().copied().collect::<Vec<_>>(), [0, 1], "both lanes got packets");
    let summary = ask(&catalog);
    assert!(!summary.complete);
    assert_eq!(summary.packets, books.iter().map(|lane| lane.stored).sum::<u64>());

    // A flow stays in its lane, so a packet that is missing has a lane, too.
    let lane_of_flow: HashMap<u16, u16> = lanes
        .iter()
        .flat_map(|(lane, data)| data.packets.values().map(|stamp| (stamp.flow, *lane)))
        .collect();
    assert_eq!(lane_of_flow.len() as u64, FLOWS, "every flow has packets in the data");
    for snapshot in &books {
        let data = &lanes[&snapshot.lane];
        let mine = |stamp: &&Stamp| lane_of_flow[&stamp.flow] == snapshot.lane;
        let mine: Vec<&Stamp> = sent.iter().filter(mine).collect();
        check_lane(snapshot, data, &mine);
        check_summary(snapshot, &summary);
    }
}

/// Books, sequence numbers and gaps of one lane.
fn check_lane(snapshot: &Snapshot, data: &LaneData, sent: &[&Stamp]) {
    let lane = snapshot.lane;
    assert!(snapshot.balances() && snapshot.in_flight == 0, "{snapshot:?}");
    assert_eq!(snapshot.received, sent.len() as u64, "lane {lane}");
    assert_eq!(snapshot.stored, data.packets.len() as u64, "lane {lane}");
    assert!(data.cut.is_empty(), "nothing was to be cut");
    let dropped = snapshot.dropped_packets();
    assert!(dropped > 0, "lane {lane} lost nothing: the device was not slow enough");

    let missing: Vec<u64> = sent
        .iter()
        .filter(|stamp| !data.packets.contains_key(&stamp.number))
        .map(|stamp| stamp.sent_ns)
        .collect();
    assert_eq!(missing.len() as u64, dropped, "lane {lane}");

    let mut gaps = data.gaps.clone();
    gaps.sort_by_key(|gap| gap.from_ns);
    let mut told = 0;
    for gap in &gaps {
        let packets = gap.packets.expect("the kernel counted them");
        let until_ns = gap.until_ns.expect("it is over");
        assert!(matches!(gap.cause, Cause::NoBuffer | Cause::RingOverflow), "{gap:?}");
        let before = |ns: u64| missing.iter().filter(|sent_ns| **sent_ns < ns).count() as u64;
        // All that is missing before this gap was told by the gaps before it, and all that is
        // missing until its end by it and those. Sender and kernel agree on the time but for what
        // was on its way.
        let told_by = |ns: u64| {
            let at_most = before(ns);
            let early = before(ns.saturating_sub(ON_THE_WAY_NS));
            early.min(at_most.saturating_sub(ON_THE_WAY_PACKETS))..=at_most
        };
        assert!(told_by(gap.from_ns).contains(&told), "lane {lane}: {gaps:?}");
        told += packets;
        assert!(told_by(until_ns).contains(&told), "lane {lane}: {gaps:?}");
    }
    assert_eq!(told, dropped, "lane {lane}: {gaps:?}");
    for (cause, packets) in Cause::ALL.iter().map(|cause| (cause, snapshot.dropped[cause.index()]))
    {
        let of_cause: Vec<_> = gaps.iter().filter(|gap| gap.cause == *cause).collect();
        let sum: u64 = of_cause.iter().filter_map(|gap| gap.packets).sum();
        assert_eq!(sum, packets, "lane {lane}, {cause}");
        let cumulative = of_cause.iter().map(|gap| gap.cumulative).max().unwrap_or(0);
        assert_eq!(cumulative, packets, "lane {lane}, {cause}: the running total in the data");
    }
    let times: Vec<_> = gaps.iter().map(|gap| (gap.cause.name(), gap.packets)).collect();
    println!("lane {lane}: {} stored, {dropped} dropped, gaps {times:?}", snapshot.stored);
}

/// What an answer tells people of the same losses.
fn check_summary(snapshot: &Snapshot, summary: &Summary) {
    let of_lane = summary.gaps.iter().filter(|gap| gap.lane == Some(snapshot.lane));
    let packets: u64 = of_lane.filter_map(|gap| gap.packets).sum();
    assert_eq!(packets, snapshot.dropped_packets(), "{summary}");
}

fn make_store(folder: &Path) -> Store {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let (path, key_path) = (folder.join("store"), folder.join("store.key"));
    let key = FileProvider::create(&key_path).expect("key");
    let options = CreateOptions {
        quota_bytes: Some(1 << 30),
        lanes: LANES as u16,
        key: Some(Arc::new(key)),
        key_path: key_path.display().to_string(),
        clock: Arc::clone(&clock),
    };
    let media: Arc<dyn Media> = Arc::new(DirMedia::create(&path).expect("folder"));
    let volumes = [(media, path.display().to_string())];
    create(&volumes, random::store_id().expect("id"), &options).expect("store");
    drop(volumes);
    Store::open_dir(&path, &KeySource::Recorded, clock).expect("store").0
}

fn start(store: Store, topology: Topology, time: &ChunkTime) -> Pipeline {
    let options = PipelineOptions { topology, queue: time.queues(), ..PipelineOptions::default() };
    Pipeline::start(store, pool(8), lanes(LANES), &options, Arc::new(SystemClock))
        .expect("pipeline")
}

/// Lanes that take everything from the test's interface.
fn lanes(count: usize) -> Vec<LaneSpec> {
    let ring = PacketMmapOptions {
        ring_bytes: 1 << 20,
        block_bytes: 1 << 16,
        ..PacketMmapOptions::new("va")
    };
    let sources = open_lanes(&ring, count).expect("lanes");
    sources.into_iter().map(|source| LaneSpec::new(Box::new(source))).collect()
}

fn pool(chunks: usize) -> Pool {
    let bytes = chunks * CHUNK_BYTES;
    let arena = ArenaOptions { bytes, hugepages: Hugepages::Off, numa_node: None };
    Pool::new(Arena::new(arena).expect("memory"))
}

/// Each burst goes on until every lane lost packets of it, and slows the device down where a busy
/// machine sends too slowly for that.
fn send_bursts(pipeline: &Pipeline, time: &ChunkTime) -> Vec<Stamp> {
    let mut sender = Sender::on("vb");
    let mut sent = Vec::new();
    let mut send = || {
        for _ in 0..BURST_PACKETS {
            let number = sent.len() as u64;
            let flow = 1000 + (number % FLOWS) as u16;
            let mut stamp = Stamp { run: 0, number, sent_ns: 0, flow, bytes: FRAME_BYTES, vlan: 0 };
            stamp.sent_ns = now_ns();
            sender.send(&stamp.frame());
            sent.push(stamp);
        }
    };
    let dropped = || {
        let of_lane = |lane: &LaneView| lane.books.snapshot().dropped_packets();
        pipeline.lanes().iter().map(of_lane).collect::<Vec<_>>()
    };
    for _ in 0..BURSTS {
        let (before, mut chunk_time) = (dropped(), CHUNK_TIME);
        time.set(chunk_time);
        wait_for("every lane loses packets", PATIENCE, || {
            send();
            chunk_time *= 2;
            let all_lost = dropped().iter().zip(&before).all(|(now, before)| now > before);
            all_lost.then_some(()).or_else(|| {
                time.set(chunk_time);
                None
            })
        });
        time.set(CHUNK_TIME);
        let empty = || pipeline.lanes().iter().all(|lane| lane.books.snapshot().in_flight == 0);
        wait_for("the device catches up", PATIENCE, || empty().then_some(()));
    }
    sent
}

/// Every chunk of every segment, by lane, without any query in between.
fn read_back(catalog: &Catalog) -> BTreeMap<u16, LaneData> {
    let mut lanes: BTreeMap<u16, LaneData> = BTreeMap::new();
    let mut buf = Vec::new();
    for segment in &catalog.segments {
        let reader = segment.open().expect("segment");
        let data = lanes.entry(segment.entry.lane).or_default();
        let chunks = reader.with_index(|index| index.chunks().len());
        for chunk in 0..chunks as u32 {
            let (_, payload) = reader.read_chunk(chunk, &mut buf).expect("chunk");
            let payload = &buf[payload];
            data.gaps.extend(gaps_in(payload).expect("blocks"));
            for block in Blocks::new(payload) {
                let Ok(packet) = Epb::parse(&block.expect("a block")) else { continue };
                if packet.data.len() < packet.orig_len as usize {
                    let number = packet.data[48..56].try_into().expect("the stamp is not cut");
                    assert!(data.cut.insert(u64::from_be_bytes(number)), "a cut packet is twice");
                    continue;
                }
                let Some(stamp) = Stamp::read(packet.data) else { continue };
                let doubled = data.packets.insert(stamp.number, stamp);
                assert!(doubled.is_none(), "packet {} is there twice", stamp.number);
            }
        }
    }
    lanes
}

fn ask(catalog: &Catalog) -> Summary {
    let mut sink = CountSink::default();
    let request = Request::default();
    wirevault_query::run(catalog, &request, &mut sink, &AtomicBool::new(false)).expect("an answer")
}
