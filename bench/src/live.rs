//! From an interface into sealed and indexed segments: what was sent must be stored, all of it.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde::Serialize;
use wirevault_capture::{PacketMmapOptions, PacketMmapSource, Source, XdpOptions, XdpSource};
use wirevault_pipeline::{Pipeline, PipelineOptions};

use crate::limits::Limits;
use crate::sender::{Load, RECEIVER, SENDER, cable, send};
use crate::site::{Site, SiteOptions};
use crate::threads::StageTimes;

/// Time for the last packets to become durable.
const SETTLE_MAX: Duration = Duration::from_secs(10);
const BUFFER_BYTES: usize = 256 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
enum Case {
    /// 200 000 packets of 1500 B a second: 2.4 Gbit/s.
    #[value(name = "1500")]
    #[serde(rename = "1500")]
    Large,
    /// 1 000 000 packets of 64 B a second.
    #[value(name = "64")]
    #[serde(rename = "64")]
    Small,
}

/// How packets are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
enum SourceKind {
    /// A packet socket with a ring.
    #[value(name = "packet_mmap")]
    PacketMmap,
    /// AF_XDP with the program in the driver.
    #[value(name = "af_xdp")]
    AfXdp,
}

impl SourceKind {
    fn name(self) -> &'static str {
        match self {
            Self::PacketMmap => "packet_mmap",
            Self::AfXdp => "af_xdp",
        }
    }

    fn open(self, interface: &str, ring_bytes: usize) -> Result<Box<dyn Source>> {
        Ok(match self {
            Self::PacketMmap => {
                let ring = PacketMmapOptions { ring_bytes, ..PacketMmapOptions::new(interface) };
                Box::new(PacketMmapSource::open(&ring)?)
            }
            Self::AfXdp => {
                let ring = XdpOptions { ring_bytes, ..XdpOptions::new(interface) };
                Box::new(XdpSource::open(&ring)?)
            }
        })
    }
}

impl Case {
    fn shape(self) -> (usize, u64) {
        match self {
            Self::Large => (1500, 200_000),
            Self::Small => (64, 1_000_000),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Seconds of each run.
    #[arg(long, value_name = "N", default_value_t = 60)]
    secs: u64,
    /// Runs of each load; the best counts.
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: u32,
    /// Loads.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["1500", "64"])]
    case: Vec<Case>,
    /// How packets are taken; both in turn if both are named.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["packet_mmap"])]
    source: Vec<SourceKind>,
    /// MiB of the source's ring. The default holds hundreds of milliseconds of either load.
    #[arg(long, value_name = "N", default_value_t = 256)]
    ring_mib: usize,
    #[command(flatten)]
    site: SiteOptions,
}

/// One run.
#[derive(Debug, Serialize)]
struct Row {
    source: SourceKind,
    case: Case,
    run: u32,
    seconds: f64,
    sent: u64,
    received: u64,
    stored: u64,
    dropped: u64,
    mpps: f64,
    gbit_s: f64,
    fill_cpu: f64,
    seal_cpu: f64,
    write_cpu: f64,
    buffer_peak: f64,
    unindexed_chunks: u64,
}

#[derive(Debug, Serialize)]
struct Report {
    limits: Limits,
    /// In every case there was a run in which everything sent was stored.
    lossless: bool,
    rows: Vec<Row>,
}

/// Runs it; false if a load was not stored whole in any of its runs.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let site = Site::new(options.site.folder.as_deref())?;
    let limits = Limits::measure(Some(site.path()))?;
    let namespace = cable()?;
    if !options.site.json {
        limits.print();
        println!("\nlive from a veth pair, one lane, sealed and indexed; CPU in % of one core");
        println!(
            "{:>11} {:>5} {:>3} {:>7} {:>10} {:>10} {:>10} {:>8} {:>6} {:>7} | {:>5} {:>5} {:>5} | \
             {:>6}",
            "source",
            "bytes",
            "run",
            "seconds",
            "sent",
            "received",
            "stored",
            "dropped",
            "Mpps",
            "Gbit/s",
            "fill",
            "seal",
            "write",
            "buffer"
        );
    }
    let mut rows = Vec::new();
    // Beside each other in time, so that both meet the same machine.
    for case in &options.case {
        for run in 1..=options.runs.max(1) {
            for source in &options.source {
                let row = measure(options, &site, *source, *case, run)?;
                if !options.site.json {
                    row.print();
                }
                rows.push(row);
            }
        }
    }
    drop(namespace);
    let whole = |row: &&Row| row.sent == row.stored && row.dropped == 0;
    let best = |source: &SourceKind, case: &Case| {
        rows.iter().filter(whole).find(|row| (row.source, row.case) == (*source, *case))
    };
    let loads =
        || options.case.iter().flat_map(|case| options.source.iter().map(move |it| (it, case)));
    let lossless = loads().all(|(source, case)| best(source, case).is_some());
    match options.site.json {
        true => {
            println!("{}", serde_json::to_string_pretty(&Report { limits, lossless, rows })?);
        }
        false => {
            for (source, case) in loads() {
                let (bytes, rate) = case.shape();
                let best = match best(source, case) {
                    Some(row) => format!("all {} packets stored, run {}", row.sent, row.run),
                    None => "packets were lost in every run".to_owned(),
                };
                let source = source.name();
                println!("{source}: {rate} packets of {bytes} B a second: {best}");
            }
        }
    }
    Ok(lossless)
}

fn measure(options: &Options, site: &Site, kind: SourceKind, case: Case, run: u32) -> Result<Row> {
    let (frame_bytes, packets_per_s) = case.shape();
    let source = kind.open(RECEIVER, options.ring_mib << 20)?;
    let quota_bytes = options.site.quota_bytes();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let how = PipelineOptions::default();
    let pipeline = site.start(source, quota_bytes, BUFFER_BYTES, &how)?;
    let before = StageTimes::now()?;
    let time = Duration::from_secs(options.secs);
    // The kernel's work of receiving happens on the sender's core.
    let cpu = (cpus > 1).then_some(0);
    let load = Load { frame_bytes, packets_per_s, time, cpu };
    let sender = std::thread::Builder::new().name("sender".to_owned());
    let sender = sender.spawn(move || send(SENDER, load))?;
    let mut buffer_peak: f64 = 0.0;
    while !sender.is_finished() {
        buffer_peak = buffer_peak.max(pipeline.pool().pressure());
        std::thread::sleep(Duration::from_millis(5));
    }
    let sent = sender.join().ok().context("the sender panicked")??;
    settle(&pipeline, sent.packets);
    let stages = StageTimes::now()?;
    let lane = &pipeline.lanes()[0];
    let unindexed_chunks = lane.shared.unindexed_chunks.load(Ordering::Relaxed);
    pipeline.stop();
    let books = pipeline.join()?;
    site.clear()?;
    let share = |after: u64, before: u64| (after - before) as f64 / sent.time.as_nanos() as f64;
    Ok(Row {
        source: kind,
        case,
        run,
        seconds: sent.time.as_secs_f64(),
        sent: sent.packets,
        received: books[0].received,
        stored: books[0].stored,
        dropped: books[0].dropped_packets(),
        mpps: sent.packets as f64 / sent.time.as_micros() as f64,
        gbit_s: sent.packets as f64 * frame_bytes as f64 * 8.0 / sent.time.as_nanos() as f64,
        fill_cpu: share(stages.fill_ns, before.fill_ns),
        seal_cpu: share(stages.seal_ns, before.seal_ns),
        write_cpu: share(stages.write_ns, before.write_ns),
        buffer_peak,
        unindexed_chunks,
    })
}

fn settle(pipeline: &Pipeline, sent: u64) {
    let begin = Instant::now();
    let stored = || pipeline.lanes()[0].books.snapshot();
    while stored().stored + stored().dropped_packets() < sent && begin.elapsed() < SETTLE_MAX {
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Row {
    fn print(&self) {
        let Self { run, seconds, sent, received, stored, dropped, mpps, gbit_s, .. } = self;
        let [fill, seal, write, buffer] =
            [self.fill_cpu, self.seal_cpu, self.write_cpu, self.buffer_peak].map(|it| it * 100.0);
        println!(
            "{:>11} {:>5} {run:>3} {seconds:>7.1} {sent:>10} {received:>10} {stored:>10} \
             {dropped:>8} {mpps:>6.2} {gbit_s:>7.2} | {fill:>5.0} {seal:>5.0} {write:>5.0} | \
             {buffer:>5.0}%",
            self.source.name(),
            self.case.shape().0
        );
    }
}
