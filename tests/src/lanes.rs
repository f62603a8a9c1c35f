//! The pipeline in this process: lanes that replay files, and sources that wait to be told to end.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use wirevault_buffer::{Arena, ArenaOptions, Hugepages, Pool};
use wirevault_capture::{
    CaptureError, PacketSink, Polled, ReplayOptions, ReplaySource, Source, SourceCounters,
    SourceReport, SourceState, Speed,
};
use wirevault_format::Interface;
use wirevault_index::{Catalog, KeySource};
use wirevault_pipeline::{LaneSpec, Pipeline, PipelineOptions};
use wirevault_storage::Store;
use wirevault_telemetry::clock::Clock;
use wirevault_testkit::net::wait_for;

use crate::recorder::PATIENCE;

/// A replay that behaves like an interface on which nothing more comes: it does not end by itself.
pub struct Held {
    replay: ReplaySource,
    ended: bool,
    release: Arc<AtomicBool>,
}

impl Held {
    /// Replays `file`, then stays silent until `release` is set.
    ///
    /// # Panics
    /// If the file cannot be read.
    pub fn open(file: &Path, release: &Arc<AtomicBool>) -> Box<dyn Source> {
        Box::new(Self { replay: replay(file), ended: false, release: Arc::clone(release) })
    }
}

impl Source for Held {
    fn interfaces(&self) -> &[Interface] {
        self.replay.interfaces()
    }

    fn poll(&mut self, sink: &mut dyn PacketSink, wait: Duration) -> Result<Polled, CaptureError> {
        if !self.ended {
            let polled = self.replay.poll(sink, wait)?;
            self.ended = polled == Polled::End;
            return Ok(if self.ended { Polled::Idle } else { polled });
        }
        if self.release.load(Ordering::Acquire) {
            return Ok(Polled::End);
        }
        std::thread::sleep(wait.min(Duration::from_millis(10)));
        Ok(Polled::Idle)
    }

    fn counters(&mut self) -> SourceCounters {
        self.replay.counters()
    }

    fn state(&self) -> SourceState {
        SourceState::Running
    }

    fn report(&self) -> SourceReport {
        self.replay.report()
    }

    fn is_live(&self) -> bool {
        true
    }
}

/// A file at full speed.
///
/// # Panics
/// If it cannot be read.
pub fn replay(file: &Path) -> ReplaySource {
    let options = ReplayOptions { path: file.to_owned(), speed: Speed::Full };
    ReplaySource::open(&options).expect("a capture file")
}

/// Starts a run with one lane a source.
///
/// # Panics
/// If the store does not open or the pipeline does not start.
pub fn start(
    store: &Path,
    sources: Vec<Box<dyn Source>>,
    import: bool,
    clock: Arc<dyn Clock>,
) -> Pipeline {
    start_with(store, sources, PipelineOptions { import, ..PipelineOptions::default() }, clock)
}

/// As [`start`], with options of one's own. The buffer has 128 chunks.
///
/// # Panics
/// As there.
pub fn start_with(
    store: &Path,
    sources: Vec<Box<dyn Source>>,
    options: PipelineOptions,
    clock: Arc<dyn Clock>,
) -> Pipeline {
    let (store, _) =
        Store::open_dir(store, &KeySource::Recorded, Arc::clone(&clock)).expect("the store opens");
    let arena = ArenaOptions { bytes: 32 << 20, hugepages: Hugepages::Off, numa_node: None };
    let pool = Pool::new(Arena::new(arena).expect("an arena"));
    let lanes = sources.into_iter().map(LaneSpec::new).collect();
    Pipeline::start(store, pool, lanes, &options, clock).expect("the pipeline starts")
}

/// Waits until so many packets are durable and can be found in the pipeline's open segments; gives
/// the catalog that shows them.
///
/// # Panics
/// If they do not come.
pub fn stored(pipeline: &Pipeline, packets: u64) -> Catalog {
    wait_for("durable packets", PATIENCE, || {
        let stored: u64 = pipeline.lanes().iter().map(|lane| lane.books.snapshot().stored).sum();
        if stored < packets {
            return None;
        }
        let catalog = pipeline.catalog();
        let found = crate::store::ask(&catalog, &crate::store::count()).expect("a count");
        (found.summary.packets >= packets).then_some(catalog)
    })
}
