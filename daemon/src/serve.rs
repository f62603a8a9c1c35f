//! What `wirevaultd --config FILE` does: open, start, answer, and end cleanly when told to.
//!
//! ```text
//!  a volume that two machines have: stand by until the other is silent, take its lease
//!  lock and recover the store ─► buffer ─► sources ─► pipeline ─► socket ─► READY=1
//!  SIGHUP ─► RELOADING=1 ─► what may change of the configuration ─► READY=1
//!  SIGTERM, SIGINT ─► STOPPING=1 ─► drain rings ─► end answers ─► close segments ─► end run
//! ```
//! The socket answers while the lanes drain and is gone before the segments close.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use wirevault_buffer::{Arena, ArenaOptions, ArenaReport, Pool};
use wirevault_cloud::instance::Metadata;
use wirevault_config::{Config, Imds, Input};
use wirevault_format::StoreId;
use wirevault_index::KeySource;
use wirevault_lifecycle::audit::{Event, Who};
use wirevault_media::place_of;
use wirevault_pipeline::{Layout, Machine, Pipeline, PipelineOptions, Rounds, affinity};
use wirevault_seal::MacService;
use wirevault_storage::{RecoveryReport, Store};
use wirevault_telemetry::books::Snapshot;
use wirevault_telemetry::clock::{Clock, SystemClock};
use wirevault_telemetry::publish::MetricSink;

use crate::api::RecoveryStatus;
use crate::cloud::backup::{self, Backups};
use crate::cloud::instance::{self, Watched};
use crate::cloud::keys;
use crate::cloud::publisher::{self, Publisher, Publishing};
use crate::duty::Duty;
use crate::input::cards::{self, CardWatch};
use crate::input::sources;
use crate::lifecycle::anchors;
use crate::lifecycle::anchors::{Anchors, Occasion};
use crate::lifecycle::audit::{Audit, text_hash};
use crate::lifecycle::snapshots;
use crate::lifecycle::snapshots::Checkpoints;
use crate::lifecycle::tier::{self, Tier};
use crate::lifecycle::{self, Holds, Rules};
use crate::probe::{self, Level};
use crate::reload::{ConfigFile, Reloader};
use crate::server::access::Access;
use crate::server::doors::{ANSWERS_END, Call, Calls, Doors};
use crate::server::{App, Facts};
use crate::supervisor;
use crate::volumes::health::Devices;
use crate::volumes::mending::Mending;
use crate::volumes::shared::{Leased, Shared};
use crate::volumes::standby;
use crate::volumes::standby::{StoodBy, Waited};
use crate::volumes::vfio::OwnDevices;
use crate::{DaemonError, sandbox};

/// How often it looks whether the lanes still run. Also bounds the watchdog's beat.
const LOOK: Duration = Duration::from_millis(250);
/// Folder of metrics that wait to be published, beside the audit log.
const PUBLISH_FOLDER: &str = "publish";
/// How long the lanes may take to drain before the segments are closed all the same.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// Services of others that the recorder uses.
pub struct Services {
    /// Where the store's key comes from.
    pub key: KeySource,
    /// Where metrics are published, if they are.
    pub metrics: Option<Arc<dyn MetricSink>>,
    /// Who makes codes of heads of the audit log, if somebody does.
    pub macs: Option<Arc<dyn MacService>>,
}

impl From<KeySource> for Services {
    /// Only a key.
    fn from(key: KeySource) -> Self {
        Self { key, metrics: None, macs: None }
    }
}

/// Records until it is told to stop. `file` is where `config` was read.
///
/// # Errors
/// It cannot start, a thread failed, or the end could not be written down. What was acknowledged is
/// safe in all cases.
pub fn run(config: &Config, file: &ConfigFile, services: &Services) -> Result<(), DaemonError> {
    no_core_dumps();
    open_files();
    let notes = log_probe(config);
    // The store's lock decides who records; the socket is checked first for the better message.
    let doors = Doors::bind(&config.api)?;
    let ended = in_turn(config, file, services, doors, notes);
    if let Err(error) = std::fs::remove_file(&config.api.socket) {
        tracing::warn!("the socket {} stays: {error}", config.api.socket.display());
    }
    ended
}

/// Records, on a shared volume when nobody else does.
fn in_turn(
    config: &Config,
    file: &ConfigFile,
    services: &Services,
    doors: Doors,
    notes: Vec<String>,
) -> Result<(), DaemonError> {
    let Some(shared) = Shared::of(config)? else {
        return record(config, file, services, doors, notes, (None, None));
    };
    let mut reloader = Reloader::new(file, config);
    let waited = standby::wait(&mut reloader, services, &shared, doors.again()?, notes.clone())?;
    let Waited::Turn(before) = waited else { return Ok(()) };
    let leased = shared.take()?;
    let ended = record(&reloader.config(), file, services, doors, notes, (Some(&leased), before));
    match leased.end(!matches!(ended, Err(DaemonError::Unended))) {
        // What it could not write down after that is no news.
        Some(lost) => Err(DaemonError::Fenced { lost }),
        None => ended,
    }
}

fn record(
    config: &Config,
    file: &ConfigFile,
    services: &Services,
    doors: Doors,
    mut notes: Vec<String>,
    (leased, before): (Option<&Leased>, Option<StoodBy>),
) -> Result<(), DaemonError> {
    let access = Access::new(&config.api)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let started_ns = clock.unix_ns();
    let first = first_volume(config);
    // Declared before whatever uses the devices, so that it is dropped behind them.
    let own = OwnDevices::new(&config.vfio, first);
    if leased.is_some() {
        own.leave(first, "two machines have the device");
    }
    let mut open = |path: &Path| match leased.and_then(|leased| leased.volume(path)) {
        Some(volume) => Ok(volume),
        None => own.open(path),
    };
    let (mut store, mut recovery) =
        Store::open_with(first, &services.key, Arc::clone(&clock), &mut open)?;
    check_volumes(config, &store, &own)?;
    let keys = match &services.key {
        KeySource::Service(keys) => keys.known(store.id()),
        _ => None,
    };
    store.set_reserve(config.reserve_percent);
    store.set_budgets(sources::budgets(config))?;
    store.set_hold_percent(config.hold_percent);
    let deletions = std::mem::take(&mut recovery.deletions);
    let recovery = recovery_status(&recovery);
    log_recovery(&recovery);
    let (audit, sending) = match before {
        Some(StoodBy { audit, sending }) => (audit, sending),
        None => (Arc::new(open_audit(config, services, store.id(), &clock)?), None),
    };
    tracing::info!(head = audit.head(), "the audit log is open");
    audit.note(Event::Started {
        store: store.id().to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        config: Some(text_hash(&config.text)),
        key: store.key_id(),
    });
    lifecycle::settle(&store, &audit, &deletions)?;
    let (lost, troubles) = snapshots::lost_stores(audit.folder());
    notes.extend(troubles);
    store.shared_catalog().change(|catalog| catalog.lost = Arc::clone(&lost));
    let snapshots = Checkpoints::of(config, store.id(), store.shared_catalog()).map(Arc::new);
    let tier = open_tier(config, &store, &services.key, &audit)?;
    let holds = Holds::open(audit.folder())?.with_tier(tier.clone());
    // Before the first packet: a lane's first segment may take a place already.
    store.set_witness(holds.witness(&store, &audit));
    holds.begin(&store);
    let what = "making a client of the backup service";
    let service = wirevault_cloud::backup_service();
    let service = service.map_err(|source| DaemonError::System { what, source })?;
    let of = (store.id().to_string(), &*audit);
    let backups = Backups::of(config, service, snapshots.as_ref(), of).map(Arc::new);
    let instance = metadata(config)?;
    let instance = Watched::of(config, instance).map(Arc::new);
    let machine = Machine::here();
    let topology = sources::topology(config.topology);
    let volumes = store.status().volumes.len();
    let layout = Layout::plan(&machine, &sources::wishes(config), volumes, topology);
    let sizes = ArenaOptions {
        bytes: usize::try_from(config.buffer.size_bytes).unwrap_or(usize::MAX),
        hugepages: sources::hugepages(config.buffer.hugepages),
        numa_node: None,
    };
    let arena = Arena::over_nodes(sizes, &layout.lanes_of_nodes())?;
    log_arena(arena.report());
    let near: Vec<_> = layout.lane_nodes.iter().map(|node| machine.cores_of(*node)).collect();
    let lanes = sources::open(config, &near)?;
    for lane in &lanes {
        let report = lane.source.report();
        let notes = report.notes.join("; ");
        tracing::info!(kind = report.kind, source = report.name, notes, "a lane's source is open");
    }
    let live = matches!(config.input, Input::Live(_));
    let options = PipelineOptions {
        flush_age: config.flush_age,
        commit_interval: config.commit_interval,
        segment_age: config.segment_age,
        // The times of a file's packets say nothing about when this process recorded.
        import: !live,
        topology,
        queue: match leased {
            Some(leased) => leased.queues(own.queues(&store.status())),
            None => own.queues(&store.status()),
        },
        ..PipelineOptions::default()
    };
    let volumes: Vec<PathBuf> =
        store.status().volumes.iter().map(|volume| PathBuf::from(&volume.path)).collect();
    let sandbox = Some(sandbox::enter(config, file.path(), &volumes)?);
    let pipeline = Pipeline::start(store, Pool::new(arena), lanes, &options, clock)?;
    log_queues(&pipeline);
    log_layout(pipeline.layout());
    let mending = Mending::start(pipeline.catalog());
    let rules = Rules::new(&config.retention);
    let shared = leased.map(|leased| Arc::clone(&leased.shared));
    let publishing = match &sending {
        Some(sending) => Some(Arc::clone(&sending.publishing)),
        None => publishing(config, services, audit.folder())?,
    };
    let successors = own.successors();
    let known = successors.clone();
    let devices = Devices::watch(pipeline.store(), move |path: &str| known.below(path));
    let facts = Facts {
        started_ns,
        recovery,
        notes,
        certificates: doors.certificates(),
        shared,
        keys,
        snapshots,
        backups,
        instance,
        publishing,
        successors: Some(successors),
        sandbox,
        tier,
        cards: CardWatch::of(config),
    };
    let app = App::recording(pipeline, devices, facts, Arc::clone(&audit), (rules, holds));
    let duties = [
        lifecycle::keeping(&app),
        tier::moving(&app),
        keys::tending(&app),
        snapshots::taking(&app),
        instance::watching(&app),
        backup::ordering(&app),
        cards::watching(&app),
        anchors::keeping(&app),
    ];
    let publisher = Publisher::start(&app, sending);
    let watched = serve(&app, access, doors, Reloader::new(file, config), live);
    mending.end();
    Duty::end(duties);
    let closing = publisher.close(&app);
    let finished = finish(&app);
    closing.end(finished.as_deref().unwrap_or_default());
    let books = finished?;
    for books in &books {
        let (lane, received, stored) = (books.lane, books.received, books.stored);
        let (shed, dropped) = (books.shed, books.dropped_packets());
        tracing::info!(lane, received, stored, shed, dropped, "the lane has ended");
    }
    tracing::info!("every segment is closed");
    if let Some(snapshots) = &app.facts().snapshots {
        // Why it failed is in the log.
        let _ = snapshots.take(&audit, &Who::Recorder);
    }
    audit.note(Event::Stopped);
    audit.anchor(Occasion::End);
    tracing::info!(head = audit.head(), "the audit log ends");
    watched
}

/// Where this machine learns of itself, if the configuration wants that.
fn metadata(config: &Config) -> Result<Option<Arc<dyn Metadata>>, DaemonError> {
    let what = "making a client of the cloud's metadata";
    match config.cloud.imds {
        Imds::Off => Ok(None),
        Imds::Auto => {
            wirevault_cloud::metadata().map_err(|source| DaemonError::System { what, source })
        }
    }
}

/// Opens the audit log of the store, and the places where its heads are kept.
///
/// # Errors
/// `Audit`; as [`Anchors::of`].
pub(crate) fn open_audit(
    config: &Config,
    services: &Services,
    store: StoreId,
    clock: &Arc<dyn Clock>,
) -> Result<Audit, DaemonError> {
    let audit = Audit::open(first_volume(config), store, Arc::clone(clock))?;
    let anchors = Anchors::of(config, store, Arc::clone(clock), services.macs.as_ref())?;
    Ok(audit.anchored(anchors))
}

/// The publisher of metrics, with its spool beside the audit log.
///
/// # Errors
/// The spool cannot be made.
pub(crate) fn publishing(
    config: &Config,
    services: &Services,
    state: &Path,
) -> Result<Option<Arc<Publishing>>, DaemonError> {
    let options = publisher::options(&config.cloudwatch);
    let (Some(sink), Some(options)) = (services.metrics.clone(), options) else { return Ok(None) };
    let what = "making the spool of metrics";
    let periods = (config.cloudwatch.period, options.appliance.as_str());
    let publishing = Publishing::new(sink, periods, &state.join(PUBLISH_FOLDER));
    publishing.map(|it| Some(Arc::new(it))).map_err(|source| DaemonError::System { what, source })
}

/// Opens the tier, and shows what lies there. Nothing is asked of it yet.
///
/// # Errors
/// `Audit`: its list does not read. `Setting`: segments lie where the configuration does not say.
fn open_tier(
    config: &Config,
    store: &Store,
    key: &KeySource,
    audit: &Audit,
) -> Result<Option<Arc<Tier>>, DaemonError> {
    let content = wirevault_lifecycle::tier::read(audit.folder())?;
    let segments = content.len();
    let other = content.url.filter(|_| segments > 0);
    let wanted = config.tier.as_ref().map(|tier| tier.url.clone());
    let place = wanted.as_deref().map(place_of);
    if let Some(url) = other.filter(|other| place != Some(place_of(other))) {
        return Err(DaemonError::Setting {
            path: "tier.url".to_owned(),
            value: wanted.unwrap_or_else(|| "absent".to_owned()),
            problem: format!("{segments} segments of this store lie at {url}"),
            way_out: "set it to that, or delete them first".to_owned(),
        });
    }
    let Some(tier) = &config.tier else { return Ok(None) };
    Tier::of_config(tier, store, key, audit.folder()).map(Some)
}

/// Answers until told to stop, then until the lanes are drained.
fn serve(
    app: &App,
    access: Access,
    doors: Doors,
    mut reloader: Reloader,
    live: bool,
) -> Result<(), DaemonError> {
    doors.answer_while(app, access, async |calls| {
        let mut states = vec![NotifyState::Ready, NotifyState::Status("recording")];
        // It has more of it while it takes over a shared volume.
        states.extend(supervisor::watchdog().and_then(supervisor::patience));
        calls.supervisor.tell(states).await;
        tracing::info!("recording");
        let watched = watch(app, &mut reloader, live, calls).await;
        calls.supervisor.tell(vec![NotifyState::Stopping, NotifyState::Status("draining")]).await;
        app.set_stopping();
        if let Some(pipeline) = app.pipeline() {
            pipeline.stop();
            // Who lost a shared volume has nowhere to drain to.
            if app.lost().is_none() {
                drained(&pipeline).await;
            }
        }
        watched
    })
}

/// Waits for a signal to stop or the loss of a shared volume, and beats the watchdog's drum as long
/// as every lane goes on. A live pipeline that ends is an error.
async fn watch(
    app: &App,
    reloader: &mut Reloader,
    live: bool,
    calls: &mut Calls,
) -> Result<(), DaemonError> {
    let watchdog = supervisor::watchdog();
    let beat = watchdog.map_or(LOOK, |limit| LOOK.min(limit / 3));
    let mut rounds = Rounds::default();
    let mut told = false;
    loop {
        match calls.pause(beat).await {
            Some(Call::Stop(signal)) => {
                tracing::info!("{signal}: draining");
                return Ok(());
            }
            Some(Call::Reload) => reloader.reload(app, calls).await,
            None => {}
        }
        let pipeline = app.pipeline();
        let lanes = pipeline.as_ref().map_or(&[][..], |pipeline| pipeline.lanes());
        if watchdog.is_some() && rounds.all_went_on(lanes) {
            calls.supervisor.tell(vec![NotifyState::Watchdog]).await;
        }
        if let Some(lost) = app.lost() {
            tracing::error!("{lost}");
            return Ok(());
        }
        if app.facts().instance.as_ref().is_some_and(|instance| instance.wants_end()) {
            return Ok(());
        }
        pipeline
            .iter()
            .for_each(|pipeline| app.conditions().look(pipeline, app.holds().waiting().why));
        let ended = pipeline.is_none_or(|pipeline| pipeline.is_finished());
        if ended && live {
            return Err(DaemonError::EndedEarly);
        }
        if ended && !told {
            told = true;
            tracing::info!("the file was read to its end; the API goes on until SIGTERM");
        }
    }
}

async fn drained(pipeline: &Pipeline) {
    let since = Instant::now();
    while !pipeline.is_finished() {
        if since.elapsed() > DRAIN_MAX {
            tracing::error!("the lanes did not drain within {} s", DRAIN_MAX.as_secs());
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Ends the pipeline once nobody looks at it any more.
fn finish(app: &App) -> Result<Vec<Snapshot>, DaemonError> {
    let Some(mut pipeline) = app.take_pipeline() else { return Ok(Vec::new()) };
    let since = Instant::now();
    loop {
        match Arc::try_unwrap(pipeline) {
            Ok(pipeline) => return Ok(pipeline.join()?),
            Err(shared) => pipeline = shared,
        }
        if since.elapsed() > ANSWERS_END {
            return Err(DaemonError::Unended);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn first_volume(config: &Config) -> &Path {
    // A checked configuration has at least one.
    config.stores.first().map_or(Path::new("/"), |path| path.as_path())
}

/// A configuration that lists several volumes must list those of the store.
fn check_volumes(config: &Config, store: &Store, own: &OwnDevices) -> Result<(), DaemonError> {
    let status = store.status();
    if let Some((number, path)) = own.strangers(&status).into_iter().next() {
        return Err(DaemonError::Setting {
            path: format!("vfio[{number}]"),
            value: path.display().to_string(),
            problem: "it is no volume of this store".to_owned(),
            way_out: "name volumes as `wirevault status` shows them".to_owned(),
        });
    }
    let volumes = status.volumes;
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let known: Vec<_> = volumes.iter().map(|volume| real(Path::new(&volume.path))).collect();
    for (number, path) in config.stores.iter().enumerate().skip(1) {
        if !known.contains(&real(path)) {
            return Err(DaemonError::Setting {
                path: format!("store[{number}]"),
                value: path.display().to_string(),
                problem: "it is no volume of this store".to_owned(),
                way_out: "name only the first directory, which knows the others, or make a store \
                          of all of them with `wirevault init`"
                    .to_owned(),
            });
        }
    }
    Ok(())
}

/// What recovery did, as the API tells it.
pub(crate) fn recovery_status(report: &RecoveryReport) -> RecoveryStatus {
    let damage = report.segments.iter().flat_map(|segment| {
        let name = &segment.name;
        let unreadable = segment.unreadable.iter().map(move |why| format!("segment {name}: {why}"));
        unreadable.chain(segment.damage.iter().map(move |damage| {
            let (chunk, offset) = (damage.chunk, damage.offset);
            format!("segment {name}: the acknowledged chunk {chunk} is not at byte {offset}")
        }))
    });
    let set_aside = report.set_aside.iter().map(|(name, why)| format!("segment {name}: {why}"));
    RecoveryStatus {
        segments: report.segments.len() as u64,
        packets: report.segments.iter().map(|segment| segment.entry.packets).sum(),
        empty_segments: u64::from(report.segments_freed),
        crashed_runs: report.runs_crashed.len() as u64,
        set_aside: set_aside.collect(),
        damage: damage.collect(),
    }
}

fn log_recovery(recovery: &RecoveryStatus) {
    if recovery.is_clean() {
        return;
    }
    let RecoveryStatus { segments, packets, empty_segments, crashed_runs, .. } = recovery;
    tracing::warn!(
        crashed_runs,
        segments,
        packets,
        empty_segments,
        "the last run did not end well; its segments were recovered"
    );
    for trouble in recovery.set_aside.iter().chain(&recovery.damage) {
        tracing::error!("{trouble}");
    }
}

fn log_arena(report: &ArenaReport) {
    let (bytes, chunks, huge_bytes) = (report.bytes, report.chunks, report.huge_bytes);
    tracing::info!(bytes, chunks, huge_bytes, pages = %report.pages, "the packet buffer is ready");
    for why in &report.why_not {
        tracing::warn!("packet buffer: {why}");
    }
}

fn log_queues(pipeline: &Pipeline) {
    for (number, volume) in pipeline.volumes().iter().enumerate() {
        let report = volume.shared.report.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(report) = report.as_ref() else { continue };
        tracing::info!(
            volume = number,
            backend = report.backend,
            why = report.why,
            "the device queue is ready"
        );
        for why in &report.why_not {
            tracing::warn!(volume = number, "{why}");
        }
    }
}

/// Says which threads there are, and leaves their cores to them: answers and their threads come
/// from this one.
fn log_layout(layout: &Layout) {
    let (topology, why) = (layout.topology.name(), &layout.why);
    tracing::info!(topology, why, "the threads are running");
    if let Err(error) = affinity::pin(&layout.others) {
        tracing::warn!("answers may run on a lane's core: {error}");
    }
}

/// Logs what the machine lacks; gives what makes the recording less than it should be.
fn log_probe(config: &Config) -> Vec<String> {
    let findings = probe::machine(config);
    for finding in &findings {
        match finding.level {
            // What is fatal fails again where it is needed, with its own error.
            Level::Fault | Level::Warning => tracing::warn!("{finding}"),
            Level::Note => tracing::info!("{finding}"),
        }
    }
    let warnings = findings.into_iter().filter(|finding| finding.level == Level::Warning);
    warnings.filter(|finding| finding.degrades).map(|finding| finding.to_string()).collect()
}

/// Packets and keys must not end up in core files. A process that is not dumpable at all cannot
/// open its own `/proc/self/fd` unless it is root, and libpcap is handed its input that way.
fn no_core_dumps() {
    use nix::sys::resource::{Resource, setrlimit};
    if let Err(error) = setrlimit(Resource::RLIMIT_CORE, 0, 0) {
        tracing::warn!("core dumps may hold packets: {error}");
    }
    if nix::unistd::Uid::effective().is_root()
        && let Err(error) = wirevault_seal::locked::make_process_undumpable()
    {
        tracing::warn!("debuggers may read keys: {error}");
    }
}

/// As many open files as the system allows without being asked: segments, connections, and what
/// answers read.
fn open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!("the limit of open files stays as it is: {error}");
    }
}
