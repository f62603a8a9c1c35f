//! A capture goes through the whole pipeline into a sealed store and comes back packet for packet.

use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use wirevault_buffer::{Arena, ArenaOptions, Hugepages, Pool};
use wirevault_capture::{ReplaySource, Speed};
use wirevault_format::LinkType;
use wirevault_index::{Catalog, KeySource, open_store};
use wirevault_media::DirMedia;
use wirevault_pipeline::{LaneSpec, Pipeline, PipelineOptions, Topology};
use wirevault_query::export::CountSink;
use wirevault_query::{Request, Summary};
use wirevault_seal::{FileProvider, KeyProvider, random};
use wirevault_storage::{CreateOptions, Store, create};
use wirevault_telemetry::clock::{Clock, SystemClock};

const PACKETS: u32 = 60_000;
const START_NS: u64 = 1_700_000_000_000_000_000;

fn frame(n: u32) -> Vec<u8> {
    let mut frame = vec![0; 12];
    let host = (n / 100 % 250) as u8;
    frame.extend([8, 0, 0x45, 0, 0, 220, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 1, host, 10, 0, 2, 1]);
    frame.extend([0x10, 0, 0, 53, 0, 200, 0, 0]);
    frame.extend(n.to_be_bytes());
    frame.resize(600, n as u8);
    frame
}

fn pcap() -> Vec<u8> {
    let mut file = 0xa1b2_3c4d_u32.to_le_bytes().to_vec();
    file.extend([2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0]);
    for n in 0..PACKETS {
        let ns = START_NS + u64::from(n) * 1_000_000;
        let frame = frame(n);
        file.extend(((ns / 1_000_000_000) as u32).to_le_bytes());
        file.extend(((ns % 1_000_000_000) as u32).to_le_bytes());
        file.extend((frame.len() as u32).to_le_bytes());
        file.extend((frame.len() as u32).to_le_bytes());
        file.extend(frame);
    }
    file
}

fn new_store(dir: &Path, key: Option<Arc<dyn KeyProvider>>) -> Arc<dyn Clock> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let media = DirMedia::create(dir).expect("a directory");
    let path = dir.display().to_string();
    let options = CreateOptions {
        quota_bytes: Some(256 << 20),
        lanes: 1,
        key,
        key_path: String::new(),
        clock: Arc::clone(&clock),
    };
    let id = random::store_id().expect("random numbers");
    create(&[(Arc::new(media), path)], id, &options).expect("a new store");
    clock
}

fn pool() -> Pool {
    let options = ArenaOptions { bytes: 16 << 20, hugepages: Hugepages::Off, numa_node: None };
    Pool::new(Arena::new(options).expect("16 MiB"))
}

fn lane(bytes: Vec<u8>) -> LaneSpec {
    let input = Box::new(Cursor::new(bytes));
    let source = ReplaySource::from_reader("test.pcap".to_owned(), input, Speed::Full);
    let source = Box::new(source.expect("a pcap file"));
    LaneSpec::new(source)
}

fn count(catalog: &Catalog, filter: &str) -> Summary {
    let request = Request { filter: filter.to_owned(), ..Request::default() };
    let cancel = AtomicBool::new(false);
    wirevault_query::run(catalog, &request, &mut CountSink::default(), &cancel).expect("an answer")
}

fn check(catalog: &Catalog) {
    let all = count(catalog, "");
    assert_eq!((all.packets, all.complete), (u64::from(PACKETS), true), "{all:?}");
    let one = count(catalog, "host 10.0.1.7");
    assert_eq!((one.packets, one.complete), (300, true), "{one:?}");
    assert!(one.chunks_read < one.chunks_considered, "{one:?}");
    let not = count(catalog, "not host 10.0.1.7");
    assert_eq!(not.packets, u64::from(PACKETS) - 300, "{not:?}");
    // A chunk that found no room on the way to the index is scanned, so a few may be read.
    let none = count(catalog, "host 10.9.9.9");
    assert!(none.packets == 0 && none.chunks_read < none.chunks_considered / 4, "{none:?}");
}

fn round_trip(sealed: bool, topology: Topology) {
    let dir = tempfile::tempdir().expect("a directory");
    let (store_dir, key_file) = (dir.path().join("store"), dir.path().join("the.key"));
    let key: Option<Arc<dyn KeyProvider>> =
        sealed.then(|| Arc::new(FileProvider::create(&key_file).expect("a key")) as _);
    let clock = new_store(&store_dir, key);
    let key = KeySource::File(key_file);
    let (store, report) =
        Store::open_dir(&store_dir, &key, Arc::clone(&clock)).expect("the store opens");
    assert!(report.segments.is_empty(), "{report:?}");
    let options = PipelineOptions { import: true, topology, ..PipelineOptions::default() };
    let pool = pool();
    let pipeline =
        Pipeline::start(store, pool.clone(), vec![lane(pcap())], &options, Arc::clone(&clock))
            .expect("the pipeline starts");
    while !pipeline.is_finished() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let books = pipeline.join().expect("a clean end");
    let lane = &books[0];
    assert!(lane.balances(), "{lane:?}");
    let packets = u64::from(PACKETS);
    assert_eq!((lane.received, lane.stored, lane.watermark), (packets, packets, packets));
    assert_eq!(pool.in_flight(), 0, "every chunk went back");
    let reader = open_store(&store_dir, &key).expect("the store opens for reading");
    let catalog = reader.catalog(clock.unix_ns());
    assert!(catalog.segments.len() > 1, "36 MB do not fit into one segment of 16 MiB");
    check(&catalog);
    let links: Vec<LinkType> = catalog.segments.iter().map(|it| it.entry.link_type).collect();
    assert!(links.iter().all(|link| *link == LinkType::ETHERNET));
}

#[test]
fn a_capture_comes_back_from_a_sealed_store() {
    round_trip(true, Topology::RunToCompletion);
    round_trip(true, Topology::Split);
}

#[test]
fn a_capture_comes_back_from_a_plain_store() {
    round_trip(false, Topology::RunToCompletion);
    round_trip(false, Topology::Split);
}
