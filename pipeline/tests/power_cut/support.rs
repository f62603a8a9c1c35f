//! What is recorded, by what, and what a store gives back of it.

use std::io::{self, Cursor};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use wirevault_buffer::{Arena, ArenaOptions, Hugepages, Pool};
use wirevault_capture::{ReplaySource, Speed};
use wirevault_format::Interface;
use wirevault_index::KeySource;
use wirevault_media::Media;
use wirevault_pipeline::{LaneSpec, Pipeline, PipelineOptions, Topology};
use wirevault_query::{PacketOut, Request, Sink, Summary};
use wirevault_storage::{RecoveryReport, Store};
use wirevault_telemetry::clock::{Clock, SystemClock};

/// A capture of so many packets, each of 1500 bytes and with its number in it.
pub(crate) fn pcap(packets: u32) -> Vec<u8> {
    let mut file = 0xa1b2_3c4d_u32.to_le_bytes().to_vec();
    file.extend([2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0]);
    for n in 0..packets {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0, 0, 220, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 1, 7, 10, 0, 2, 1]);
        frame.extend([0x10, 0, 0, 53, 0, 200, 0, 0]);
        frame.extend(n.to_be_bytes());
        frame.resize(1500, n as u8);
        file.extend([[0, 0, 0, 1], (n + 1).to_le_bytes()].concat());
        file.extend((frame.len() as u32).to_le_bytes());
        file.extend((frame.len() as u32).to_le_bytes());
        file.extend(frame);
    }
    file
}

/// Notes how often each packet came.
struct Seen(Vec<u32>);

impl Sink for Seen {
    fn interface(&mut self, _: u32, _: &Interface) -> io::Result<()> {
        Ok(())
    }

    fn packet(&mut self, packet: &PacketOut<'_>) -> io::Result<ControlFlow<()>> {
        let number = [42, 43, 44, 45].map(|at| packet.data[at]);
        let n = u32::from_be_bytes(number) as usize;
        assert_eq!(packet.data[46..], vec![n as u8; 1500 - 46][..], "packet {n} is altered");
        self.0[n] += 1;
        Ok(ControlFlow::Continue(()))
    }
}

/// Starts a recorder of so many packets, under one topology for even seeds and under the other for
/// odd ones. Nothing if the disk does not let it.
pub(crate) fn start(
    disk: Arc<dyn Media>,
    key: &KeySource,
    packets: u32,
    seed: u64,
    options: &PipelineOptions,
) -> Option<(Pipeline, Pool)> {
    let (store, _) = Store::open(vec![disk], key, clock()).ok()?;
    let input = Box::new(Cursor::new(pcap(packets)));
    let source = ReplaySource::from_reader("cut.pcap".to_owned(), input, Speed::Full);
    let lane = LaneSpec::new(Box::new(source.expect("a pcap file")));
    let arena = ArenaOptions { bytes: 2 << 20, hugepages: Hugepages::Off, numa_node: None };
    let pool = Pool::new(Arena::new(arena).expect("2 MiB"));
    let options = PipelineOptions {
        commit_interval: Duration::from_millis(2),
        topology: [Topology::RunToCompletion, Topology::Split][seed as usize % 2],
        ..options.clone()
    };
    let pipeline = Pipeline::start(store, pool.clone(), vec![lane], &options, clock()).ok()?;
    Some((pipeline, pool))
}

pub(crate) fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock)
}

/// What came back of a store that a crash left.
pub(crate) struct Recovered {
    /// How often each packet is there.
    pub(crate) seen: Vec<u32>,
    pub(crate) report: RecoveryReport,
    pub(crate) summary: Summary,
}

impl Recovered {
    /// Packets of the first `acknowledged` that are gone. Panics if one came twice.
    pub(crate) fn lost(&self, acknowledged: u64, what: &str) -> usize {
        assert!(self.seen.iter().all(|times| *times <= 1), "{what}: a packet came twice");
        self.seen[..acknowledged as usize].iter().filter(|times| **times == 0).count()
    }
}

/// Recovers a crashed disk and asks it for everything.
pub(crate) fn recover(disk: Arc<dyn Media>, key: &KeySource, packets: u32) -> Recovered {
    let (store, report) = Store::open(vec![disk], key, clock()).expect("a crashed store opens");
    let catalog = store.catalog(clock().unix_ns());
    let mut seen = Seen(vec![0; packets as usize]);
    let cancel = AtomicBool::new(false);
    let answer = wirevault_query::run(&catalog, &Request::default(), &mut seen, &cancel);
    Recovered { seen: seen.0, report, summary: answer.expect("an answer") }
}
