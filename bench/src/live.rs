//! From an interface into sealed and indexed segments: what was sent must be stored, all of it.

use std::str::FromStr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;
use wirevault_capture::{PacketMmapOptions, PacketMmapSource, Source, XdpOptions, XdpSource};
use wirevault_pipeline::{Pipeline, PipelineOptions};

use crate::limits::Limits;
use crate::output::{Output, spread};
use crate::sender::{FRAME_BYTES_MIN, Load, Maker, RECEIVER, SENDER, cable, send};
use crate::site::{Site, SiteOptions};
use crate::threads::StageTimes;

/// Time for the last packets to become durable.
const SETTLE_MAX: Duration = Duration::from_secs(10);
const BUFFER_BYTES: usize = 256 << 20;
/// What still counts as no dearer: runs of the same differ by as much.
const NO_DEARER: f64 = 1.05;

/// Packets of one size at one rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Case {
    pub(crate) frame_bytes: usize,
    pub(crate) packets_per_s: u64,
}

impl FromStr for Case {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (bytes, rate) = text.split_once('@').context("a load is BYTES@PACKETS_PER_S")?;
        let frame_bytes = bytes.parse().context("bytes of a packet")?;
        let packets_per_s = rate.parse().context("packets a second")?;
        ensure!(frame_bytes >= FRAME_BYTES_MIN, "packets have {FRAME_BYTES_MIN} bytes at least");
        Ok(Self { frame_bytes, packets_per_s })
    }
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
    /// The same with busy polling.
    #[value(name = "af_xdp_busy")]
    AfXdpBusy,
}

impl SourceKind {
    fn name(self) -> &'static str {
        match self {
            Self::PacketMmap => "packet_mmap",
            Self::AfXdp => "af_xdp",
            Self::AfXdpBusy => "af_xdp_busy",
        }
    }

    fn open(self, interface: &str, ring_bytes: usize) -> Result<Box<dyn Source>> {
        Ok(match self {
            Self::PacketMmap => {
                let ring = PacketMmapOptions { ring_bytes, ..PacketMmapOptions::new(interface) };
                Box::new(PacketMmapSource::open(&ring)?)
            }
            Self::AfXdp | Self::AfXdpBusy => {
                let busy_poll = self == Self::AfXdpBusy;
                let ring = XdpOptions { ring_bytes, busy_poll, ..XdpOptions::new(interface) };
                Box::new(XdpSource::open(&ring)?)
            }
        })
    }
}

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Seconds of each run.
    #[arg(long, value_name = "N", default_value_t = 60)]
    secs: u64,
    /// Runs of each load; every one is shown.
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: u32,
    /// Loads.
    #[arg(long, value_name = "BYTES@PACKETS_PER_S", value_delimiter = ',')]
    #[arg(default_values = ["1500@200000", "64@1000000"])]
    load: Vec<Case>,
    /// How packets are taken; each in turn if several are named.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["packet_mmap"])]
    source: Vec<SourceKind>,
    /// Who makes the packets.
    #[arg(long, value_enum, default_value = "socket")]
    sender: Maker,
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
    stages: StageTimes,
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
pub(crate) fn run(options: &Options, mut output: Output) -> Result<bool> {
    let site = Site::new(options.site.folder.as_deref())?;
    let limits = Limits::measure(Some(site.path()))?;
    let namespace = cable(options.sender)?;
    limits.say(&mut output);
    output.say(format!(
        "Live from a veth pair, one lane, sealed and indexed, {} s a run; CPU in % of one core.",
        options.secs
    ));
    output.table(&[
        ("bytes", 5),
        ("source", 11),
        ("run", 3),
        ("sent", 10),
        ("stored", 10),
        ("dropped", 8),
        ("Mpps", 6),
        ("Gbit/s", 6),
        ("lane %", 6),
        ("sealer %", 8),
        ("writer %", 8),
        ("CPU s/GB", 8),
        ("CPU s/Mpacket", 13),
        ("buffer peak", 11),
    ]);
    let mut rows = Vec::new();
    // Beside each other in time, so that all meet the same machine.
    for case in &options.load {
        for run in 1..=options.runs.max(1) {
            for source in &options.source {
                let row = measure(options, &site, *source, *case, run)?;
                row.show(&mut output);
                rows.push(row);
            }
        }
    }
    drop(namespace);
    for case in &options.load {
        for source in &options.source {
            promise(&rows, *case, *source, options.source[0], &mut output);
        }
    }
    let lossless = options.load.iter().all(|case| {
        options.source.iter().all(|source| least_missing(&rows, *case, *source) == Some(0))
    });
    output.finish(&Report { limits, lossless, rows })?;
    Ok(lossless)
}

fn runs(rows: &[Row], case: Case, source: SourceKind) -> impl Iterator<Item = &Row> {
    rows.iter().filter(move |row| (row.case, row.source) == (case, source))
}

/// Packets missing in the best run.
fn least_missing(rows: &[Row], case: Case, source: SourceKind) -> Option<u64> {
    let missing = |row: &Row| row.sent.abs_diff(row.stored).max(row.dropped);
    runs(rows, case, source).map(missing).min()
}

/// Nothing may be lost, and AF_XDP may not cost more than the first source named.
fn promise(rows: &[Row], case: Case, source: SourceKind, first: SourceKind, output: &mut Output) {
    let Case { frame_bytes, packets_per_s } = case;
    let load = format!("{packets_per_s} packets of {frame_bytes} B a second, {}", source.name());
    let missing = least_missing(rows, case, source).unwrap_or(0);
    output.at_most(&format!("{load}: missing"), "", 0.0, missing as f64);
    let cpu = |source| {
        let each = |row: &Row| row.stages.sum_ns() as f64 / row.sent as f64;
        spread(runs(rows, case, source).map(each)).map_or(f64::NAN, |[_, middle, _]| middle)
    };
    if source != first {
        let what = format!("{load}: CPU, of {}", first.name());
        output.at_most(&what, "", NO_DEARER, cpu(source) / cpu(first));
    }
}

fn measure(options: &Options, site: &Site, kind: SourceKind, case: Case, run: u32) -> Result<Row> {
    let Case { frame_bytes, packets_per_s } = case;
    let source = kind.open(RECEIVER, options.ring_mib << 20)?;
    let quota_bytes = options.site.quota_bytes();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let how = PipelineOptions { topology: options.site.topology(), ..PipelineOptions::default() };
    let pipeline = site.start(source, quota_bytes, BUFFER_BYTES, &how)?;
    let before = StageTimes::now()?;
    let time = Duration::from_secs(options.secs);
    // The kernel's work of receiving happens on the sender's core.
    let cpu = (cpus > 1).then_some(0);
    let load = Load { maker: options.sender, frame_bytes, packets_per_s, time, cpu };
    let sender = std::thread::Builder::new().name("sender".to_owned());
    let sender = sender.spawn(move || send(SENDER, load))?;
    let mut buffer_peak: f64 = 0.0;
    while !sender.is_finished() {
        buffer_peak = buffer_peak.max(pipeline.pool().pressure());
        std::thread::sleep(Duration::from_millis(5));
    }
    let sent = sender.join().ok().context("the sender panicked")??;
    settle(&pipeline, sent.packets);
    let stages = StageTimes::now()?.since(&before);
    let lane = &pipeline.lanes()[0];
    let unindexed_chunks = lane.shared.unindexed_chunks.load(Ordering::Relaxed);
    pipeline.stop();
    let books = pipeline.join()?;
    site.clear()?;
    Ok(Row {
        source: kind,
        case,
        run,
        seconds: sent.time.as_secs_f64(),
        sent: sent.packets,
        received: books[0].received,
        stored: books[0].stored,
        dropped: books[0].dropped_packets(),
        stages,
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
    fn show(&self, output: &mut Output) {
        let (mpps, bytes) = (self.sent as f64 / self.seconds / 1e6, self.case.frame_bytes as f64);
        let StageTimes { fill_ns, seal_ns, write_ns, .. } = self.stages;
        let share = |ns: u64| format!("{:.1}", ns as f64 / self.seconds / 1e7);
        let cpu_s = self.stages.sum_ns() as f64 / 1e9;
        let mut cells = vec![self.case.frame_bytes.to_string(), self.source.name().to_owned()];
        cells.push(self.run.to_string());
        cells.extend([self.sent, self.stored, self.dropped].map(|packets| packets.to_string()));
        cells.push(format!("{mpps:.2}"));
        cells.push(format!("{:.2}", mpps * bytes * 8.0 / 1e3));
        cells.extend([fill_ns, seal_ns, write_ns].map(share));
        cells.push(format!("{:.3}", cpu_s / (self.sent as f64 * bytes / 1e9)));
        cells.push(format!("{:.3}", cpu_s / (self.sent as f64 / 1e6)));
        cells.push(format!("{:.0} %", self.buffer_peak * 100.0));
        output.row(cells);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_bytes_at_a_rate() {
        let case = Case { frame_bytes: 1500, packets_per_s: 200_000 };
        assert_eq!("1500@200000".parse::<Case>().unwrap(), case);
        for wrong in ["1500", "x@1", "1@x", "10@1000"] {
            assert!(wrong.parse::<Case>().is_err(), "{wrong}");
        }
    }
}
