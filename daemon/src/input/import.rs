//! Imports: capture files into a store, without any of the service around it. One run, one lane.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wirevault_buffer::{Arena, ArenaOptions, Hugepages, Pool};
use wirevault_capture::Speed;
pub use wirevault_config::Tunnel;
use wirevault_format::VxlanPorts;
use wirevault_index::KeySource;
use wirevault_lifecycle::audit::{self, Event};
use wirevault_pipeline::decap::DecapCounters;
use wirevault_pipeline::{LaneView, Pipeline, PipelineOptions, Topology};
use wirevault_storage::{RESERVE_PERCENT, Store};
use wirevault_telemetry::clock::{Clock, SystemClock};

use crate::DaemonError;
use crate::api::RecoveryStatus;
pub use crate::input::chain::FileReport;
use crate::input::chain::{ChainSource, Reports, lock};
use crate::input::sources;
use crate::lifecycle::audit::Audit;
use crate::lifecycle::tier;
use crate::lifecycle::{self, Holds};
use crate::serve::recovery_status;

/// How often the progress is told.
const LOOK: Duration = Duration::from_millis(100);
/// Segments that an import may be ahead of holds: the quota has room for 16 of a lane, and spares
/// what waits for them so long as it is no more than half.
const AHEAD_SEGMENTS: u64 = 2;
/// Bytes of packet buffer that keep a disk busy.
const ARENA_BYTES: usize = 64 << 20;

/// What to import, and where to.
pub struct ImportOptions {
    /// First directory of the store.
    pub store: PathBuf,
    /// Its key.
    pub key: KeySource,
    /// Capture files, in order.
    pub files: Vec<PathBuf>,
    /// With the pauses between the packets.
    pub realtime: bool,
    /// What is removed from packets before they are stored; `None` stores them as they are.
    pub decap: Option<Vec<Tunnel>>,
    /// UDP ports that are taken for VXLAN's.
    pub vxlan_ports: VxlanPorts,
    /// Bytes of packet buffer.
    pub arena_bytes: usize,
    /// Set it to end early: what was taken until then is stored.
    pub cancel: Arc<AtomicBool>,
}

impl ImportOptions {
    /// At full speed, with the usual buffer and the key that the store names.
    pub fn new(store: PathBuf, files: Vec<PathBuf>) -> Self {
        Self {
            store,
            key: KeySource::Recorded,
            files,
            realtime: false,
            decap: None,
            vxlan_ports: VxlanPorts::USUAL,
            arena_bytes: ARENA_BYTES,
            cancel: Arc::default(),
        }
    }
}

/// How far an import is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// File being read; empty at the end.
    pub file: String,
    /// Files that have ended.
    pub files_ended: usize,
    /// Files there are.
    pub files: usize,
    /// Packets taken.
    pub packets: u64,
    /// Captured bytes of them.
    pub bytes: u64,
    /// Packets durable.
    pub stored: u64,
}

/// What came of an import.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportReport {
    /// Packets read.
    pub packets: u64,
    /// Captured bytes of them.
    pub bytes: u64,
    /// Packets durable; fewer than `packets` only if a device failed.
    pub stored: u64,
    /// Packets lost on the way to the device.
    pub dropped: u64,
    /// Interfaces.
    pub interfaces: u64,
    /// Packets cut, because they were longer than a chunk.
    pub cut: u64,
    /// Files that could not be opened, or not be read to their end.
    pub unreadable: u64,
    /// Packets whose time had parts below the nanosecond, or lay outside 1970 to 2554.
    pub times_rounded: u64,
    /// Packets longer than the file's own snap length; what lies behind it, tcpdump does not see.
    pub cut_to_snaplen: u64,
    /// Packets whose fraction of a second was a second or more; it is carried over.
    pub times_carried: u64,
    /// Packets that lost some of their options.
    pub options_cut: u64,
    /// Packets stored without the outer headers that they came with.
    pub stripped: u64,
    /// Packets stored as they came because they are fragments of a tunnel's packets.
    pub kept_fragments: u64,
    /// Packets, of those stripped, that the mirror had cut.
    pub truncated_mirror: u64,
    /// It was ended early.
    pub cancelled: bool,
    /// Why something that a hold wants is not held; it stays in its segment until the quota takes
    /// that.
    pub not_held: Option<String>,
    /// The last thing that went wrong in the pipeline.
    pub error: Option<String>,
    /// What opening the store had to repair.
    pub recovery: RecoveryStatus,
    /// File by file.
    pub files: Vec<FileReport>,
}

impl ImportReport {
    /// Everything in the files is in the store.
    pub fn is_whole(&self) -> bool {
        let failed = self.unreadable + self.dropped + u64::from(self.cancelled);
        failed == 0 && self.stored == self.packets && self.error.is_none()
    }
}

/// Imports files. `progress` is told of it several times a second, and once at its end.
///
/// # Errors
/// The store cannot be written, the first file cannot be opened, or a device gave up. Files after
/// the first that are damaged or absent are no error: the report says so.
pub fn run(
    options: ImportOptions,
    progress: &mut dyn FnMut(&Progress),
) -> Result<ImportReport, DaemonError> {
    if options.files.is_empty() {
        return Err(DaemonError::NoFiles);
    }
    let files = options.files.len();
    let names = options.files.iter().map(|file| file.display().to_string()).collect();
    let speed = if options.realtime { Speed::RealTime } else { Speed::Full };
    let source = ChainSource::open(options.files, speed, None)?;
    let (reports, allowance) = (source.reports(), source.allowance());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let (mut store, recovery) = Store::open_dir(&options.store, &options.key, Arc::clone(&clock))?;
    store.set_reserve(RESERVE_PERCENT);
    let folder = audit::folder_of(&options.store, &store.id().to_string());
    // Numbers of segments that lie in the tier only are not given again.
    let holds = Holds::open(&folder)?.with_tier(tier::of_store(&store, &options.key, &folder)?);
    let audit = Arc::new(Audit::open(&options.store, store.id(), Arc::clone(&clock))?);
    lifecycle::settle(&store, &audit, &recovery.deletions)?;
    let began = audit.write(&lifecycle::user(), Event::Importing { files: names })?;
    store.set_witness(holds.witness(&store, &audit));
    // From here on the quota takes last what no hold has had its copies of.
    holds.keep(&store, &audit, &|| options.cancel.load(Ordering::Relaxed));
    // A file is read faster than holds look at segments, and it can wait for them.
    let segment_bytes = store.status().volumes.first().map_or(0, |volume| volume.segment_bytes);
    let ahead_bytes = match holds.is_empty() {
        true => u64::MAX,
        false => AHEAD_SEGMENTS * segment_bytes,
    };
    allowance.store(ahead_bytes, Ordering::Relaxed);
    let arena =
        ArenaOptions { bytes: options.arena_bytes, hugepages: Hugepages::Auto, numa_node: None };
    let pool = Pool::new(Arena::new(arena)?);
    let lane = sources::import_lane(source, options.decap.as_deref(), options.vxlan_ports);
    // A file waits, so what counts is how many cores share the work, not what each packet costs.
    let topology = Topology::Split;
    let pipeline_options = PipelineOptions { import: true, topology, ..PipelineOptions::default() };
    let pipeline = Pipeline::start(store, pool, vec![lane], &pipeline_options, clock)?;
    let store = Arc::clone(pipeline.store());
    let keep = |stop: &dyn Fn() -> bool| holds.keep(&store, &audit, stop);
    let mut cancelled = false;
    while !pipeline.is_finished() {
        progress(&progress_of(pipeline.lanes(), &reports, files));
        if options.cancel.load(Ordering::Relaxed) && !cancelled {
            cancelled = true;
            pipeline.stop();
        }
        keep(&|| pipeline.is_finished());
        allowance.store(ahead_bytes, Ordering::Relaxed);
        std::thread::sleep(LOOK);
    }
    let lanes = pipeline.lanes().to_vec();
    let shared = lanes.first().map(|lane| Arc::clone(&lane.shared));
    let decap = |count: fn(&DecapCounters) -> &AtomicU64| {
        shared.as_ref().map_or(0, |shared| count(&shared.decap).load(Ordering::Relaxed))
    };
    let books = pipeline.join()?.into_iter().next().unwrap_or_default();
    // Only now is everything stored that is to be, however short it was.
    progress(&progress_of(&lanes, &reports, files));
    keep(&|| false);
    let files = lock(&reports).clone();
    let sum = |figure: fn(&FileReport) -> u64| files.iter().map(figure).sum();
    let report = ImportReport {
        packets: sum(|file| file.packets),
        bytes: sum(|file| file.bytes),
        stored: books.stored,
        dropped: books.dropped_packets(),
        interfaces: sum(|file| file.interfaces),
        cut: books.cut,
        unreadable: sum(|file| u64::from(file.error.is_some())),
        times_rounded: sum(|file| file.times_rounded),
        cut_to_snaplen: sum(|file| file.cut_to_snaplen),
        times_carried: sum(|file| file.times_carried),
        options_cut: sum(|file| file.options_cut),
        stripped: decap(|decap| &decap.stripped),
        kept_fragments: decap(|decap| &decap.kept_fragments),
        truncated_mirror: decap(|decap| &decap.truncated_mirror),
        cancelled,
        not_held: holds.waiting().why,
        error: shared.as_ref().and_then(|shared| shared.error()),
        recovery: recovery_status(&recovery),
        files,
    };
    let (packets, stored, whole) = (report.packets, report.stored, report.is_whole());
    audit.write(&lifecycle::user(), Event::Imported { began, packets, stored, whole })?;
    Ok(report)
}

fn progress_of(lanes: &[LaneView], reports: &Reports, files: usize) -> Progress {
    let stored = lanes.iter().map(|lane| lane.books.snapshot().stored).sum();
    let reports = lock(reports);
    let current = reports.last().filter(|file| !file.ended);
    Progress {
        file: current.map(|file| file.path.clone()).unwrap_or_default(),
        files_ended: reports.iter().filter(|file| file.ended).count(),
        files,
        packets: reports.iter().map(|file| file.packets).sum(),
        bytes: reports.iter().map(|file| file.bytes).sum(),
        stored,
    }
}
