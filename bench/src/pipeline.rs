//! From memory through the pipeline, sealed and indexed, into nothing and into a file.
//!
//! The bound is what the cores could do if they did nothing but copy each packet once, enter it in
//! the flow table and seal it, with each of these at the speed that it has alone ([`Bound`]), and
//! if the work were spread over lanes and sealers to the last nanosecond.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;
use wirevault_capture::Source;
use wirevault_nvme::{NullQueue, Queue, QueueOptions};
use wirevault_pipeline::{Pipeline, PipelineOptions, Topology};

use crate::bound::Bound;
use crate::limits::Limits;
use crate::output::{Output, spread};
use crate::packets::{FLOWS, MemorySource, Packets, Size};
use crate::site::{Site, SiteOptions};
use crate::threads::{StageTimes, process_cpu};

/// A source of this many bytes stays in the second-level cache.
const HOT_BYTES: usize = 512 << 10;
/// Nothing takes longer, however slow the machine.
const TIME_MAX: Duration = Duration::from_secs(600);
const PAUSE: Duration = Duration::from_millis(1);
/// The last chunk is not full; the default would add a quarter of a second for it.
const FLUSH_AGE: Duration = Duration::from_millis(5);

/// 30 Gbit/s.
const TARGET_GB_S: f64 = 3.75;
/// Share of the bound that is promised.
const BOUND_PERCENT: f64 = 85.0;
/// 99.9 % of the operations on buffers are promised to be quicker.
const BUFFER_MAX_US: f64 = 10.0;

/// Where chunks go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Device {
    /// They are dropped after sealing.
    Null,
    /// Into the segment files of a store, with its quota, flushes and index.
    File,
}

impl Device {
    /// Options of a pipeline onto it.
    pub(crate) fn options(self, topology: Topology) -> PipelineOptions {
        let default = PipelineOptions::default();
        let mut options = PipelineOptions { flush_age: FLUSH_AGE, topology, ..default };
        if self == Self::Null {
            options.queue = Arc::new(|_, _| {
                Ok(Box::new(NullQueue::new(&QueueOptions::default())?) as Box<dyn Queue>)
            });
        }
        options
    }
}

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// MiB of distinct packets in memory.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    mib: u64,
    /// Passes over them in each run, by each lane; the hot source gives as many packets in all.
    #[arg(long, value_name = "N", default_value_t = 2)]
    passes: u64,
    /// Lanes, each with all packets.
    #[arg(long, value_name = "N", default_value_t = 2)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=32))]
    lanes: u16,
    /// Runs of each kind in turn; slowest, middle and quickest are shown.
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: usize,
    /// Packet sizes.
    #[arg(long, value_enum, value_delimiter = ',')]
    #[arg(default_values = ["64", "512", "mix", "1500"])]
    size: Vec<Size>,
    /// Devices.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["null", "file"])]
    device: Vec<Device>,
    /// MiB of packet buffer.
    #[arg(long, value_name = "N", default_value_t = 64)]
    buffer_mib: u64,
    #[command(flatten)]
    site: SiteOptions,
}

/// One run.
#[derive(Debug, Serialize)]
struct Run {
    gb_s: f64,
    mpps: f64,
    stages: StageTimes,
    /// CPU time in ns of all other threads of this process: above all of those that close segments.
    rest_ns: u64,
    /// Chunks that the index does not cover, because its thread could not keep up.
    unindexed_chunks: u64,
    /// 99.9 % of the operations on buffers took no longer, ns: taking a free chunk, handing one
    /// over, giving one back. Upper bounds, at most twice too high.
    take_p999_ns: u64,
    hand_over_p999_ns: u64,
    recycle_p999_ns: u64,
}

/// Packets of one size from one source into one device.
#[derive(Debug, Serialize)]
struct Row {
    size: Size,
    source: &'static str,
    device: &'static str,
    packets: u64,
    bytes: u64,
    /// What the same packets cost step by step, alone.
    bound: Bound,
    /// From the slowest to the quickest.
    runs: Vec<Run>,
}

#[derive(Debug, Serialize)]
struct Report {
    flows: u64,
    limits: Limits,
    rows: Vec<Row>,
}

/// Packets of one source: all of them, so many times, in each lane.
struct Load {
    name: &'static str,
    packets: Arc<Packets>,
    passes: u64,
    lanes: u16,
}

impl Load {
    fn count(&self) -> u64 {
        self.packets.count * self.passes * u64::from(self.lanes)
    }

    fn bytes(&self) -> u64 {
        self.packets.bytes() * self.passes * u64::from(self.lanes)
    }
}

/// Runs it; false never: it fails if a packet is lost.
pub(crate) fn run(options: &Options, mut output: Output) -> Result<bool> {
    ensure!(options.runs > 0, "at least one run");
    let site = Site::new(options.site.folder.as_deref())?;
    let to_disk = options.device.contains(&Device::File);
    let limits = Limits::measure(to_disk.then(|| site.path()))?;
    limits.say(&mut output);
    output.say(format!(
        "Packets in memory through the pipeline, {FLOWS} flows, sealed and indexed, lanes: {}; \
         cold: {} MiB of packets, hot: a source that stays in the cache; {} runs each.",
        options.lanes, options.mib, options.runs
    ));
    output.table(&[
        ("size", 7),
        ("source", 6),
        ("device", 6),
        ("GB/s", 6),
        ("slowest", 7),
        ("quickest", 8),
        ("Gbit/s", 6),
        ("Mpps", 6),
        ("bound GB/s", 10),
        ("of the bound", 12),
    ]);
    let mut rows: Vec<Row> = Vec::new();
    for size in &options.size {
        let cold = Arc::new(Packets::make(*size, (options.mib << 20) as usize));
        let hot = Arc::new(Packets::make(*size, HOT_BYTES));
        let hot_passes = (cold.count * options.passes).div_ceil(hot.count);
        let loads = [
            Load { name: "cold", packets: cold, passes: options.passes, lanes: options.lanes },
            Load { name: "hot", packets: hot, passes: hot_passes, lanes: options.lanes },
        ];
        for load in loads {
            // As many packets as there are in memory: more would not make it more exact.
            let passes = (load.passes / options.passes).max(1);
            let bound = Bound::measure(&load.packets, passes, cores().min(options.lanes.into()))?;
            for device in &options.device {
                let row = row(options, &site, *device, &load, *size, bound)?;
                row.show(&mut output);
                rows.push(row);
            }
        }
    }
    say_where_time_goes(&rows, &mut output);
    say_buffers(&rows, &mut output);
    promise(&rows, &mut output);
    output.finish(&Report { flows: FLOWS, limits, rows })?;
    Ok(true)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn row(
    options: &Options,
    site: &Site,
    device: Device,
    load: &Load,
    size: Size,
    bound: Bound,
) -> Result<Row> {
    let run = |_| measure(options, site, device, load);
    let mut runs = (0..options.runs).map(run).collect::<Result<Vec<_>>>()?;
    runs.sort_by(|a, b| a.gb_s.total_cmp(&b.gb_s));
    Ok(Row {
        size,
        source: load.name,
        device: if device == Device::Null { "null" } else { "file" },
        packets: load.count(),
        bytes: load.bytes(),
        bound,
        runs,
    })
}

fn measure(options: &Options, site: &Site, device: Device, load: &Load) -> Result<Run> {
    let how = device.options(options.site.topology());
    let (count, bytes) = (load.count(), load.bytes());
    let quota_bytes = options.site.quota_bytes();
    let from_ns = site.clock.unix_ns();
    let source = |_| {
        let memory = MemorySource::new(Arc::clone(&load.packets), load.passes, from_ns);
        Box::new(memory) as Box<dyn Source>
    };
    let sources = (0..load.lanes).map(source).collect();
    let buffer_bytes = (options.buffer_mib << 20) as usize;
    let pipeline = site.start_lanes(sources, 1, quota_bytes, buffer_bytes, &how)?;
    let (started, cpu_before) = (Instant::now(), process_cpu()?);
    wait_until_stored(&pipeline, count)?;
    let took = started.elapsed();
    let stages = StageTimes::now()?;
    let rest_ns = (process_cpu()? - cpu_before).as_nanos() as u64;
    let rest_ns = rest_ns.saturating_sub(stages.sum_ns());
    let unindexed = pipeline.lanes().iter().map(|lane| &lane.shared.unindexed_chunks);
    let unindexed_chunks = unindexed.map(|chunks| chunks.load(Ordering::Relaxed)).sum();
    let [take_p999_ns, hand_over_p999_ns, recycle_p999_ns] = pipeline
        .buffer_times()
        .all()
        .map(|(_, latency)| latency.snapshot().quantile_ns(0.999).unwrap_or(0));
    pipeline.stop();
    for books in pipeline.join()? {
        ensure!(books.dropped_packets() == 0, "lost: {books:?}");
    }
    site.clear()?;
    Ok(Run {
        gb_s: bytes as f64 / took.as_nanos() as f64,
        mpps: count as f64 * 1000.0 / took.as_nanos() as f64,
        stages,
        rest_ns,
        unindexed_chunks,
        take_p999_ns,
        hand_over_p999_ns,
        recycle_p999_ns,
    })
}

/// Waits until all lanes together have stored `count` packets.
pub(crate) fn wait_until_stored(pipeline: &Pipeline, count: u64) -> Result<()> {
    let begin = Instant::now();
    loop {
        let books = || pipeline.lanes().iter().map(|lane| lane.books.snapshot());
        if books().map(|books| books.stored).sum::<u64>() >= count {
            return Ok(());
        }
        ensure!(begin.elapsed() < TIME_MAX, "still not done: {:?}", books().collect::<Vec<_>>());
        let error = || pipeline.lanes().iter().find_map(|lane| lane.shared.error());
        ensure!(!pipeline.is_finished(), "a lane ended: {:?}", error());
        std::thread::sleep(PAUSE);
    }
}

impl Row {
    /// The run in the middle.
    fn middle(&self) -> &Run {
        &self.runs[self.runs.len() / 2]
    }

    /// GB a second that lanes and sealers could reach at most, on as many cores as they can have.
    fn bound_gb_s(&self) -> f64 {
        let hands = self.middle().stages.workers.min(cores()) as f64;
        hands * self.bytes as f64 / self.packets as f64 / self.bound.sum_ns()
    }

    /// GB a second, from the slowest to the quickest run.
    fn gb_s(&self) -> [f64; 3] {
        spread(self.runs.iter().map(|run| run.gb_s)).unwrap_or_default()
    }

    fn names(&self) -> Vec<String> {
        [self.size.name(), self.source, self.device].map(str::to_owned).into()
    }

    fn show(&self, output: &mut Output) {
        let [slowest, middle, quickest] = self.gb_s();
        let bound_gb_s = self.bound_gb_s();
        let mut cells = self.names();
        cells.extend([middle, slowest, quickest].map(|gb_s| format!("{gb_s:.2}")));
        cells.push(format!("{:.1}", middle * 8.0));
        cells.push(format!("{:.2}", self.middle().mpps));
        cells.push(format!("{bound_gb_s:.2}"));
        cells.push(format!("{:.0} %", 100.0 * middle / bound_gb_s));
        output.row(cells);
    }
}

fn say_where_time_goes(rows: &[Row], output: &mut Output) {
    output.say(
        "CPU ns a packet. Alone, on as many cores at once as there are lanes: copying it into a \
         chunk in the cache, entering it in the flow table, sealing it, which make the bound; and \
         copying it into one of 64 chunks, as a recorder must, whose last chunks are on their way \
         to the device. In the run in the middle: lane (the generator's share, as it is alone, \
         taken off), sealer (index and seal, unless the lane does that itself), writer, the thread \
         that keeps the live index, and the rest, nearly all of it closing segments. Where lanes \
         have every core, the last three are taken from them. Beside them what passes from one \
         packet to the next, and how much of it lane and sealer were ready and had no core, \
         because others had it; what is left they waited for each other.",
    );
    output.table(&[
        ("size", 7),
        ("source", 6),
        ("device", 6),
        ("generator", 9),
        ("copy alone", 10),
        ("into 64 chunks", 14),
        ("upsert alone", 12),
        ("AES alone", 9),
        ("lane", 6),
        ("sealer", 6),
        ("writer", 6),
        ("live index", 10),
        ("rest", 6),
        ("passes", 6),
        ("lane coreless", 13),
        ("sealer coreless", 15),
    ]);
    for row in rows {
        let (bound, stages) = (row.bound, row.middle().stages);
        let each = |ns: u64| ns as f64 / row.packets as f64;
        let lane = (each(stages.fill_ns) - bound.generate_ns).max(0.0);
        let [sealer, writer, live] = [stages.seal_ns, stages.write_ns, stages.apply_ns].map(each);
        let Bound { generate_ns, copy_ns, copy_far_ns, upsert_ns, seal_ns } = bound;
        let alone = [generate_ns, copy_ns, copy_far_ns, upsert_ns, seal_ns];
        let rest = each(row.middle().rest_ns);
        let mut cells = row.names();
        let coreless = [stages.fill_coreless_ns, stages.seal_coreless_ns].map(each);
        let passes = 1000.0 / row.middle().mpps;
        let figures = alone.into_iter().chain([lane, sealer, writer, live, rest, passes]);
        let figures = figures.chain(coreless);
        cells.extend(figures.map(|ns| format!("{ns:.1}")));
        output.row(cells);
    }
}

fn say_buffers(rows: &[Row], output: &mut Output) {
    output.say(
        "Operations on chunks: µs that 99.9 % of them stay below, at most twice too high; and \
         chunks that the index does not cover. The worst of the runs.",
    );
    output.table(&[
        ("size", 7),
        ("source", 6),
        ("device", 6),
        ("take", 6),
        ("hand over", 9),
        ("recycle", 7),
        ("unindexed", 9),
    ]);
    for row in rows {
        let worst = |of: fn(&Run) -> u64| row.runs.iter().map(of).max().unwrap_or(0);
        let times: [fn(&Run) -> u64; 3] =
            [|run| run.take_p999_ns, |run| run.hand_over_p999_ns, |run| run.recycle_p999_ns];
        let mut cells = row.names();
        cells.extend(times.map(|of| format!("{:.1}", worst(of) as f64 / 1000.0)));
        cells.push(worst(|run| run.unindexed_chunks).to_string());
        output.row(cells);
    }
}

/// The numbers that are promised, where the runs can show them.
fn promise(rows: &[Row], output: &mut Output) {
    let into_nothing =
        |row: &&Row| row.device == "null" && matches!(row.size, Size::Mix | Size::Large);
    for row in rows.iter().filter(into_nothing) {
        let (size, source, [_, gb_s, _]) = (row.size.name(), row.source, row.gb_s());
        if row.source == "hot" {
            let what = format!("{size} B from memory into nothing, sealed and indexed");
            output.at_least(&what, " GB/s", TARGET_GB_S, gb_s);
        }
        let what = format!("{size} B, {source}: share of copy, upsert and AES alone");
        output.at_least(&what, " %", BOUND_PERCENT, 100.0 * gb_s / row.bound_gb_s());
    }
    // The run in the middle of the worst kind of packets.
    let mut quick = |what: &str, of: fn(&Run) -> u64| {
        let worst = rows.iter().map(|row| of(row.middle())).max().unwrap_or(0);
        output.at_most(&format!("{what}, p99.9"), " µs", BUFFER_MAX_US, worst as f64 / 1000.0);
    };
    quick("take a chunk", |run| run.take_p999_ns);
    quick("hand a chunk over", |run| run.hand_over_p999_ns);
    quick("recycle a chunk", |run| run.recycle_p999_ns);
}
