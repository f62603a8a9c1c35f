//! A recorder of an idle link is no recorder that hangs.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use wirevault_buffer::{Arena, ArenaOptions, Hugepages, Pool};
use wirevault_capture::{
    CaptureError, PacketSink, Polled, Source, SourceCounters, SourceReport, SourceState,
};
use wirevault_format::Interface;
use wirevault_index::KeySource;
use wirevault_media::DirMedia;
use wirevault_pipeline::{LaneSpec, Pipeline, PipelineOptions, Rounds, Topology};
use wirevault_seal::random;
use wirevault_storage::{CreateOptions, Store, create};
use wirevault_telemetry::clock::{Clock, ManualClock};

/// How often a watchdog of 30 s is fed, at least.
const LOOK: Duration = Duration::from_secs(10);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// A round takes microseconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// A live source to which nothing comes. Each wait for packets ends when the test says so.
struct Silent {
    waits_end: Receiver<()>,
    ended: Sender<()>,
}

impl Source for Silent {
    fn interfaces(&self) -> &[Interface] {
        &[]
    }

    fn is_live(&self) -> bool {
        true
    }

    fn poll(&mut self, _: &mut dyn PacketSink, _: Duration) -> Result<Polled, CaptureError> {
        // The lane has gone round once more since the last wait.
        let _ = self.ended.send(());
        Ok(if self.waits_end.recv().is_ok() { Polled::Idle } else { Polled::End })
    }

    fn counters(&mut self) -> SourceCounters {
        SourceCounters::default()
    }

    fn state(&self) -> SourceState {
        SourceState::Running
    }

    fn report(&self) -> SourceReport {
        SourceReport::default()
    }
}

#[test]
fn a_day_without_a_packet_is_progress() {
    let dir = tempfile::tempdir().expect("a directory");
    let manual = Arc::new(ManualClock::new(1_700_000_000_000_000_000));
    let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&manual);
    let media = DirMedia::create(dir.path()).expect("a directory");
    let options = CreateOptions {
        quota_bytes: Some(256 << 20),
        lanes: 1,
        key: None,
        key_path: String::new(),
        clock: Arc::clone(&clock),
    };
    let id = random::store_id().expect("random numbers");
    create(&[(Arc::new(media), dir.path().display().to_string())], id, &options).expect("a store");
    let (store, _) = Store::open_dir(dir.path(), &KeySource::Recorded, Arc::clone(&clock))
        .expect("the store opens");
    let sizes = ArenaOptions { bytes: 4 << 20, hugepages: Hugepages::Off, numa_node: None };
    let pool = Pool::new(Arena::new(sizes).expect("4 MiB"));
    let ((end_wait, waits_end), (ended, rounds)) = (bounded(0), bounded(1));
    let lane = LaneSpec::new(Box::new(Silent { waits_end, ended }));
    let options =
        PipelineOptions { topology: Topology::RunToCompletion, ..PipelineOptions::default() };
    let pipeline = Pipeline::start(store, pool, vec![lane], &options, clock).expect("it starts");
    rounds.recv_timeout(PATIENCE).expect("the lane begins");
    let mut watched = Rounds::default();
    assert!(!watched.all_went_on(pipeline.lanes()), "the lane has not been round once");
    let mut passed = Duration::ZERO;
    while passed < DAY {
        manual.advance(LOOK);
        passed += LOOK;
        end_wait.send_timeout((), PATIENCE).expect("the lane waits for packets");
        rounds.recv_timeout(PATIENCE).expect("the lane goes round");
        assert!(watched.all_went_on(pipeline.lanes()), "after {passed:?}");
        assert!(!watched.all_went_on(pipeline.lanes()), "it waits again");
    }
    pipeline.stop();
    drop((end_wait, rounds));
    pipeline.join().expect("it ends");
}
