//! Starting the threads, looking at them, and stopping them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use crossbeam_queue::ArrayQueue;
use wirevault_buffer::Pool;
use wirevault_index::{Catalog, ChunkDelta, SharedCatalog};
use wirevault_storage::Store;
use wirevault_telemetry::books::{self, LaneBooks, LaneCounts, LaneSide, Snapshot};
use wirevault_telemetry::clock::Clock;

use crate::ack::LaneAcks;
use crate::closer::Closer;
use crate::decap::Stripper;
use crate::job::Jobs;
use crate::lane::{Fill, Hand, Lane, LaneSpec};
use crate::layout::{LaneWish, Layout};
use crate::live::Registry;
use crate::machine::Machine;
use crate::opener::{self, Done, Opener, Work};
use crate::pending::PendingGaps;
use crate::policy::{Policies, Tally};
use crate::pressure::{Pressure, Shares};
use crate::reseal::Returned;
use crate::sealer::{Sealer, ToWriter};
use crate::status::{BufferTimes, LaneShared, PolicyCounters, lock};
use crate::tail::TailHub;
use crate::writer::{Writer, WriterChannels, WriterShared};
use crate::{PipelineError, PipelineOptions, Topology, affinity};

/// Buffers that a lane needs to go on at all: one it fills, one being sealed, two being written.
const LANE_BUFFERS_MIN: usize = 4;
/// Index deltas under way for one lane at most. Each covers a chunk from sealing until it is
/// durable and in the index, a little longer than its buffer; with too few, chunks go unindexed
/// (half of them with 128 for 256 chunks). Each reserves 1.4 MB and uses what its chunk needs.
const LANE_DELTAS_MAX: usize = 1024;
/// Messages to the closer that may wait. Deltas beyond it are counted and their segment's index is
/// made anew.
const CLOSER_INBOX: usize = 1 << 15;
/// Messages to the opener that may wait. A stream has an order under way, one to let go of, and a
/// failure to tell: room for 10 streams of each of 32 lanes, so that no lane waits for a place.
const OPENER_INBOX: usize = 1024;
/// A packet may wait in the kernel's ring for its block to be retired; nothing newer than this is
/// called durable.
const RING_DELAY_NS: u64 = 50_000_000;
/// So long a catalog waits for the index. A delta takes microseconds, a full inbox of the closer
/// some hundred milliseconds; whoever waits longer gets an answer that says what it lacks.
const INDEX_WAIT_MAX: Duration = Duration::from_millis(500);
/// How often it looks.
const INDEX_LOOK: Duration = Duration::from_millis(1);

/// A running pipeline.
pub struct Pipeline {
    store: Arc<Store>,
    catalog: Arc<SharedCatalog>,
    registry: Arc<Registry>,
    tail: Arc<TailHub>,
    pool: Pool,
    clock: Arc<dyn Clock>,
    stop: Arc<AtomicBool>,
    times: Arc<BufferTimes>,
    pressure: Pressure,
    lanes: Vec<LaneView>,
    acks: Vec<Arc<LaneAcks>>,
    volumes: Vec<VolumeView>,
    layout: Layout,
    threads: Vec<(String, JoinHandle<()>)>,
    lane_threads: usize,
}

/// One lane, for those who look at it.
#[derive(Clone)]
pub struct LaneView {
    /// Its state beside the books.
    pub shared: Arc<LaneShared>,
    /// Its books.
    pub books: LaneBooks,
    /// Packets come from a live source.
    pub live: bool,
}

/// One volume's writer, for those who look at it.
#[derive(Clone)]
pub struct VolumeView {
    /// Its counters.
    pub shared: Arc<WriterShared>,
}

impl Pipeline {
    /// Starts a run: opens it in the store, then starts all threads.
    ///
    /// # Errors
    /// See [`PipelineError`]. Threads that were started end by themselves.
    pub fn start(
        store: Store,
        pool: Pool,
        lanes: Vec<LaneSpec>,
        options: &PipelineOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, PipelineError> {
        let (have, need) = (pool.capacity(), lanes.len() * LANE_BUFFERS_MIN);
        if have < need {
            return Err(PipelineError::TooFewBuffers { have, lanes: lanes.len(), need });
        }
        let run = store.begin_run(options.import, lanes.len() as u16)?;
        let (volumes, flows_max) = (store.status().volumes.len(), store.flows_max());
        let wishes: Vec<_> = lanes.iter().map(LaneWish::of).collect();
        let layout = Layout::plan(&Machine::here(), &wishes, volumes, options.topology);
        let (topology, why) = (layout.topology.name(), &layout.why);
        tracing::debug!(topology, "threads: {why}");
        let mut starter = Starter { layout: layout.clone(), threads: Vec::new() };
        let catalog = store.shared_catalog();
        let store = Arc::new(store);
        let registry = Arc::new(Registry::default());
        let tail = Arc::new(TailHub::default());
        let stop = Arc::new(AtomicBool::new(false));
        let (to_closer, closer_inbox) = bounded(CLOSER_INBOX);
        let (to_opener, opener_inbox) = bounded(OPENER_INBOX);

        let backs = lanes.iter().map(|_| bounded(have + 1));
        let (to_sealers, mut backs): (Vec<_>, Vec<_>) = backs.unzip();
        let times = Arc::new(BufferTimes::default());
        let mut writers = Vec::new();
        let mut volume_views = Vec::new();
        let peers: Vec<_> = (0..volumes).map(|_| Arc::<WriterShared>::default()).collect();
        // So each leaves the others theirs, whatever becomes of it.
        let fair_chunks = have / volumes.max(1);
        for volume in 0..volumes {
            let (sender, inbox) = bounded(have + 1);
            let sign = Arc::new(());
            let times = Arc::clone(&times);
            let shared = Arc::clone(&peers[volume]);
            writers.push(ToWriter { sender, alive: Arc::downgrade(&sign), shared });
            let channels =
                WriterChannels { inbox, to_sealers: to_sealers.clone(), closer: to_closer.clone() };
            let of = (volume, peers.clone());
            let with = (sign, times, Arc::clone(&store));
            volume_views.push(starter.writer(of, channels, with, &pool, options)?);
        }
        drop(to_sealers);
        let workers = starter.open_threads(volumes, &store)?;
        let opener = Opener::new(Arc::clone(&store), workers, peers.clone(), fair_chunks);
        starter.spawn("opener".to_owned(), move || opener.run(&opener_inbox))?;

        let jobs = Jobs::new(have);
        let pressure = Pressure::new(pool.clone(), peers.clone(), options.stall);
        let parts = LaneParts {
            pool: &pool,
            jobs: &jobs,
            clock: &clock,
            stop: &stop,
            times: &times,
            layout: &layout,
            pressure: &pressure,
            options,
        };
        let mut views = Vec::new();
        let mut deltas = Vec::new();
        let mut lane_starts = Vec::new();
        let mut lane_acks = Vec::new();
        for ((number, spec), from_writers) in lanes.into_iter().enumerate().zip(backs.drain(..)) {
            let (pen, acks, view) = parts.view(number as u16, &spec);
            lane_acks.push(Arc::clone(&acks));
            let count = (2 * have).min(LANE_DELTAS_MAX);
            let spares = Arc::new(ArrayQueue::new(count));
            (0..count).for_each(|_| drop(spares.push(Box::new(ChunkDelta::new()))));
            deltas.push(Arc::clone(&spares));
            let sealer = Sealer {
                run,
                lane: number as u16,
                store: Arc::clone(&store),
                jobs: jobs.clone(),
                writers: writers.clone(),
                fair_chunks,
                from_writers,
                opener: to_opener.clone(),
                closer: to_closer.clone(),
                registry: Arc::clone(&registry),
                deltas: spares,
                acks,
                shared: Arc::clone(&view.shared),
                times: Arc::clone(&times),
                tail: Arc::clone(&tail),
                stop: Arc::clone(&stop),
                live: view.live,
                segment_age: options.segment_age,
                closings_done: 0,
                flows_max,
                spare_table: None,
                streams: Vec::new(),
                waiting: VecDeque::with_capacity(have + 1),
                first_tells: false,
                returned: Returned::default(),
                mending: None,
                paused_until: None,
                unsent: Vec::new(),
            };
            let hand = if layout.topology == Topology::RunToCompletion {
                Hand::Own(Box::new(sealer))
            } else {
                let (to_sealer, from_lane) = bounded(have + 1);
                let pool = pool.clone();
                starter.spawn(format!("seal-{number}"), move || sealer.run(&from_lane, &pool))?;
                Hand::Thread(to_sealer)
            };
            lane_starts.push((number, parts.lane(spec, hand, pen, &view)));
            views.push(view);
        }
        // What remains are the senders of the threads themselves: the pipeline ends from its
        // sources to its devices.
        drop((writers, to_opener, to_closer));
        let closer = Closer {
            store: Arc::clone(&store),
            registry: Arc::clone(&registry),
            inbox: closer_inbox,
            deltas,
            lanes: views.iter().map(|view: &LaneView| Arc::clone(&view.shared)).collect(),
            durable_ns: vec![0; views.len()],
            clock: Arc::clone(&clock),
            closing: Vec::new(),
            unclosed: bounded(CLOSER_INBOX),
            threads: Vec::new(),
        };
        starter.spawn("closer".to_owned(), move || closer.run())?;
        let lane_threads = lane_starts.len();
        for (number, lane) in lane_starts {
            starter.spawn(format!("lane-{number}"), move || lane.run())?;
        }
        Ok(Self {
            store,
            catalog,
            registry,
            tail,
            pool,
            clock,
            stop,
            times,
            pressure,
            lanes: views,
            acks: lane_acks,
            volumes: volume_views,
            layout,
            threads: starter.threads,
            lane_threads,
        })
    }

    /// Asks the lanes to close the segments that they write; what comes later goes into others.
    /// They are closed some time later, when all of them is acknowledged.
    pub fn close_segments(&self) {
        for lane in &self.lanes {
            lane.shared.closings_asked.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Asks the lanes to take what their sources hold and to end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Every source has ended by itself, or was stopped.
    pub fn is_finished(&self) -> bool {
        let lanes = self.threads.len() - self.lane_threads;
        self.threads[lanes..].iter().all(|(_, thread)| thread.is_finished())
    }

    /// Waits until everything is durable and every segment closed, then ends the run in the store,
    /// unless packets were lost of which no segment tells.
    ///
    /// # Errors
    /// `Panicked` if a thread did; `Store` if the end of the run could not be written.
    pub fn join(self) -> Result<Vec<Snapshot>, PipelineError> {
        let mut panicked = None;
        for (name, thread) in self.threads {
            if thread.join().is_err() {
                panicked.get_or_insert(name);
            }
        }
        self.tail.end();
        if let Some(name) = panicked {
            return Err(PipelineError::Panicked { name });
        }
        if self.acks.iter().any(|acks| acks.has_untold_losses()) {
            // No segment is left that could tell of them. A run without an end says to every reader
            // that packets behind its last ones may be missing, as after a crash.
            tracing::error!("the last packets were lost; the run is left without a clean end");
        } else {
            self.store.end_run()?;
        }
        Ok(self.lanes.iter().map(|lane| lane.books.snapshot()).collect())
    }

    /// Lanes, by number.
    pub fn lanes(&self) -> &[LaneView] {
        &self.lanes
    }

    /// Volumes, by number.
    pub fn volumes(&self) -> &[VolumeView] {
        &self.volumes
    }

    /// Its threads, and where they run.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The buffers.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The pressure on a lane, whether it has a ladder or not.
    pub fn pressure_on(&self, lane: &LaneView) -> Shares {
        self.pressure.on(&lane.shared)
    }

    /// The largest pressure on any lane.
    pub fn pressure(&self) -> Shares {
        let lanes = self.lanes.iter().map(|lane| self.pressure_on(lane));
        lanes.reduce(Shares::larger).unwrap_or_default()
    }

    /// How long operations on buffers take.
    pub fn buffer_times(&self) -> &BufferTimes {
        &self.times
    }

    /// Where watchers subscribe.
    pub fn tail(&self) -> &Arc<TailHub> {
        &self.tail
    }

    /// The store.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// What queries may look at now: everything durable. Takes no lock of the store. Waits a little
    /// while what was durable before is not in the index; if it stays so, `durable_until_ns` is as
    /// much earlier.
    pub fn catalog(&self) -> Catalog {
        let sent: Vec<u64> = self.lanes.iter().map(|lane| lane.shared.shown.sent()).collect();
        let shown =
            || self.lanes.iter().zip(&sent).all(|(lane, sent)| lane.shared.shown.has(*sent));
        let begin = Instant::now();
        while !shown() && begin.elapsed() < INDEX_WAIT_MAX {
            std::thread::sleep(INDEX_LOOK);
        }
        // Before the catalog itself, which then shows at least as much.
        let now_ns = self.clock.unix_ns();
        let durable_until_ns = self.durable_until_ns();
        Catalog { durable_until_ns, ..self.catalog.take(now_ns) }
    }

    /// Everything that reached a live source before this time is durable, and in the index.
    fn durable_until_ns(&self) -> Option<u64> {
        let lane_until = |lane: &LaneView| {
            lane.shared.shown.until_ns(|| {
                let polled_ns = lane.shared.polled_ns.load(Ordering::Acquire);
                let durable_ns = lane.shared.durable_ns.load(Ordering::Acquire);
                match lane.books.snapshot().in_flight {
                    0 => polled_ns.saturating_sub(RING_DELAY_NS).max(durable_ns),
                    _ => durable_ns,
                }
            })
        };
        let lanes = self.lanes.iter().filter(|lane| lane.live).map(lane_until);
        // A segment whose index misses a chunk shows queries nothing behind it until it closes.
        let until_ns = lanes.chain(self.registry.shown_until_ns()).min()?;
        // Times of packets may be a sender's word. Nothing of the future is durable yet.
        Some(until_ns.min(self.clock.unix_ns()))
    }
}

/// Starts threads and remembers them.
struct Starter {
    layout: Layout,
    threads: Vec<(String, JoinHandle<()>)>,
}

impl Starter {
    fn spawn(
        &mut self,
        name: String,
        run: impl FnOnce() + Send + 'static,
    ) -> Result<(), PipelineError> {
        let cpus = self.layout.cpus_of(&name);
        let pinned = move || {
            if let Err(error) = affinity::pin(&cpus) {
                tracing::warn!(?cpus, "a thread is not pinned: {error}");
            }
            run();
        };
        let thread = std::thread::Builder::new().name(name.clone()).spawn(pinned);
        let thread =
            thread.map_err(|source| PipelineError::Thread { name: name.clone(), source })?;
        self.threads.push((name, thread));
        Ok(())
    }

    /// Starts the threads that open segments, one a volume: a device that hangs has its own.
    fn open_threads(
        &mut self,
        volumes: usize,
        store: &Arc<Store>,
    ) -> Result<(Vec<Sender<Work>>, Receiver<Done>), PipelineError> {
        let (to_opener, done) = bounded(OPENER_INBOX);
        let mut workers = Vec::new();
        for volume in 0..volumes {
            // As many as orders can be under way.
            let (sender, orders) = bounded(OPENER_INBOX);
            workers.push(sender);
            let (store, to_opener) = (Arc::clone(store), to_opener.clone());
            let work = move || opener::work(volume, &store, &orders, &to_opener);
            self.spawn(format!("open-{volume}"), work)?;
        }
        Ok((workers, done))
    }

    /// Starts a volume's writer. Its queue is made on its own thread, because io_uring wants one
    /// submitter.
    fn writer(
        &mut self,
        (volume, peers): (usize, Vec<Arc<WriterShared>>),
        channels: WriterChannels,
        (sign, times, store): (Arc<()>, Arc<BufferTimes>, Arc<Store>),
        pool: &Pool,
        options: &PipelineOptions,
    ) -> Result<VolumeView, PipelineError> {
        let shared = Arc::clone(&peers[volume]);
        let (report_to, report) = bounded(1);
        let (pool, queue_maker) = (pool.clone(), options.queue.clone());
        let bounds = (options.commit_interval, options.stall);
        let thread_shared = Arc::clone(&shared);
        let name = format!("write-{volume}");
        self.spawn(name.clone(), move || {
            let queue = match queue_maker(volume, pool.arena()) {
                Ok(queue) => queue,
                Err(error) => {
                    let _ = report_to.send(Err(error));
                    return;
                }
            };
            *lock(&thread_shared.report) = Some(queue.report());
            let _ = report_to.send(Ok(()));
            let queue = (queue, queue_maker);
            let writer = Writer::new(queue, channels, pool, bounds, (volume, peers), times, store);
            writer.run();
            drop(sign);
        })?;
        match report.recv() {
            Ok(Ok(())) => Ok(VolumeView { shared }),
            Ok(Err(source)) => Err(PipelineError::Queue { volume, source }),
            Err(_) => Err(PipelineError::Panicked { name }),
        }
    }
}

/// What every lane gets a share of.
struct LaneParts<'a> {
    pool: &'a Pool,
    jobs: &'a Jobs,
    clock: &'a Arc<dyn Clock>,
    stop: &'a Arc<AtomicBool>,
    times: &'a Arc<BufferTimes>,
    layout: &'a Layout,
    pressure: &'a Pressure,
    options: &'a PipelineOptions,
}

impl LaneParts<'_> {
    /// What others see of a lane, and the pens that write it.
    fn view(&self, number: u16, spec: &LaneSpec) -> (LaneSide, Arc<LaneAcks>, LaneView) {
        let (lane_pen, writer_pen, books) = books::open(number);
        let standing = spec.policies.iter().map(|policy| PolicyCounters::new(policy.name, false));
        let rungs = spec.ladder.iter().map(|rung| PolicyCounters::new(rung.policy.name, true));
        let policies = standing.chain(rungs).collect();
        let shared = LaneShared::new(number, spec.cpu, spec.source.report(), policies);
        let shared = Arc::new(shared);
        let acks = Arc::new(LaneAcks::new(writer_pen, Arc::clone(&shared)));
        (lane_pen, acks, LaneView { shared, books, live: spec.source.is_live() })
    }

    /// The part of the buffer on a lane's node.
    fn near(&self, lane: u16) -> usize {
        let node = self.layout.lane_nodes.get(usize::from(lane)).copied().flatten();
        let parts = &self.pool.arena().report().parts;
        parts.iter().position(|part| part.node.is_some() && part.node == node).unwrap_or(0)
    }

    fn lane(&self, mut spec: LaneSpec, hand: Hand, pen: LaneSide, view: &LaneView) -> Lane {
        let pressure = (!spec.ladder.is_empty()).then(|| self.pressure.clone());
        let (standing, rungs) = (spec.policies, spec.ladder);
        let policies = Policies::new(&mut spec.filter, standing, rungs, spec.vxlan_ports);
        let fill = Fill {
            pool: self.pool.clone(),
            near: self.near(view.shared.lane),
            jobs: self.jobs.clone(),
            hand,
            snaplen_bytes: spec.snaplen_bytes,
            filter: spec.filter,
            vxlan_ports: spec.vxlan_ports,
            duplicates: spec.duplicates,
            duplicates_marked: 0,
            clock: Arc::clone(self.clock),
            pen,
            shared: Arc::clone(&view.shared),
            times: Arc::clone(self.times),
            streams: Vec::new(),
            numbers: Vec::new(),
            places: Vec::new(),
            stripper: spec.decap.map(|decap| Box::new(Stripper::new(decap))),
            counts: LaneCounts::default(),
            gaps: PendingGaps::default(),
            starved: false,
            policies,
            pressure,
            filtered: Tally::default(),
            shed_told: 0,
        };
        let (source, stop) = (spec.source, Arc::clone(self.stop));
        Lane { source, fill, stop, flush_age: self.options.flush_age }
    }
}

#[cfg(test)]
#[path = "start_tests.rs"]
mod tests;
