//! The pipeline from one lane to very many, onto one volume to several: what a packet costs may not
//! grow with either.
//!
//! Every run takes the same packets, shared out over the lanes. With more lanes than cores the
//! rate stays that of the cores, so what counts is the CPU time of a packet.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;
use wirevault_capture::Source;

use crate::output::Output;
use crate::packets::{MemorySource, Packets, Size};
use crate::pipeline::{Device, wait_until_stored};
use crate::site::{Site, SiteOptions};
use crate::soak::resident_bytes;
use crate::sys::give_memory_back;
use crate::threads::StageTimes;

/// Distinct packets, which all lanes read.
const MEMORY_BYTES: usize = 256 << 20;

/// What still counts as no growth: more threads than cores share their caches.
const GROWTH_MAX: f64 = 1.25;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Numbers of lanes, onto one volume.
    #[arg(long, value_name = "N", value_delimiter = ',')]
    #[arg(default_values_t = [1, 2, 4, 8, 16, 32])]
    lanes: Vec<u16>,
    /// Numbers of volumes, for as many lanes.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [2, 4, 8])]
    volumes: Vec<u16>,
    /// MiB of packets in each run, all lanes together.
    #[arg(long, value_name = "N", default_value_t = 8192)]
    mib: u64,
    /// Runs of each; the median counts.
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: usize,
    /// MiB of packet buffer, for all lanes together.
    #[arg(long, value_name = "N", default_value_t = 128)]
    buffer_mib: u64,
    /// Packet size.
    #[arg(long, value_enum, default_value = "mix")]
    size: Size,
    #[command(flatten)]
    site: SiteOptions,
}

impl Options {
    fn lanes_max(&self) -> u16 {
        self.lanes.iter().copied().max().unwrap_or(0)
    }
}

/// One number of lanes and volumes; the run in the middle by CPU time.
#[derive(Debug, Serialize)]
struct Row {
    lanes: u16,
    volumes: u16,
    gb_s: f64,
    /// CPU time of a packet, all stages.
    cpu_ns: f64,
    stages: StageTimes,
    packets: u64,
    unindexed_chunks: u64,
    resident_mib: u64,
}

/// Runs it; false never: it fails if a packet is lost.
pub(crate) fn run(options: &Options, mut output: Output) -> Result<bool> {
    ensure!(options.runs > 0, "at least one run");
    let site = Site::new(options.site.folder.as_deref())?;
    let packets = Arc::new(Packets::make(options.size, MEMORY_BYTES));
    output.say(format!(
        "{} packets from memory into nothing, sealed and indexed, {} MiB over all lanes, median of \
         {} runs; CPU ns a packet.",
        options.size.name(),
        options.mib,
        options.runs
    ));
    output.table(&[
        ("lanes", 5),
        ("volumes", 7),
        ("GB/s", 6),
        ("CPU ns", 6),
        ("of one lane", 11),
        ("lanes", 6),
        ("sealers", 7),
        ("writers", 7),
        ("live index", 10),
        ("unindexed", 9),
        ("memory MiB", 10),
    ]);
    let one_volume = options.lanes.iter().map(|lanes| (*lanes, 1));
    let cases = one_volume.chain(options.volumes.iter().map(|volumes| (*volumes, *volumes)));
    let mut rows: Vec<Row> = Vec::new();
    for (lanes, volumes) in cases {
        let run = |_| measure(options, &site, &packets, lanes, volumes);
        let mut runs = (0..options.runs).map(run).collect::<Result<Vec<_>>>()?;
        runs.sort_by(|a, b| a.cpu_ns.total_cmp(&b.cpu_ns));
        let middle = runs.swap_remove(runs.len() / 2);
        middle.show(rows.first().unwrap_or(&middle), &mut output);
        rows.push(middle);
    }
    let one = rows.first().map_or(0.0, |row| row.cpu_ns);
    let worst =
        |rows: &mut dyn Iterator<Item = &Row>| rows.map(|row| row.cpu_ns / one).fold(0.0, f64::max);
    let mut one_volume = rows.iter().filter(|row| row.volumes == 1);
    let what = format!("CPU per packet, up to {} lanes, of one lane", options.lanes_max());
    output.at_most(&what, "", GROWTH_MAX, worst(&mut one_volume));
    let mut several = rows.iter().filter(|row| row.volumes > 1).peekable();
    if let Some(most) = several.peek().and(options.volumes.iter().max()) {
        let what = format!("CPU per packet, up to {most} volumes, of one lane on one volume");
        output.at_most(&what, "", GROWTH_MAX, worst(&mut several));
    }
    output.finish(&rows)?;
    Ok(true)
}

fn measure(
    options: &Options,
    site: &Site,
    packets: &Arc<Packets>,
    lanes: u16,
    volumes: u16,
) -> Result<Row> {
    let from_ns = site.clock.unix_ns();
    let passes = (options.mib << 20).div_ceil(u64::from(lanes) * packets.bytes());
    let source =
        |_| Box::new(MemorySource::new(Arc::clone(packets), passes, from_ns)) as Box<dyn Source>;
    let sources = (0..lanes).map(source).collect();
    let buffer_bytes = (options.buffer_mib << 20) as usize;
    let (quota_bytes, how) =
        (options.site.quota_bytes(), Device::Null.options(options.site.topology()));
    let volumes_made = usize::from(volumes);
    let pipeline = site.start_lanes(sources, volumes_made, quota_bytes, buffer_bytes, &how)?;
    let total = packets.count * passes * u64::from(lanes);
    let begin = Instant::now();
    wait_until_stored(&pipeline, total)?;
    let took_ns = begin.elapsed().as_nanos() as f64;
    let stages = StageTimes::now()?;
    let resident_mib = resident_bytes()? >> 20;
    let unindexed = pipeline.lanes().iter().map(|lane| &lane.shared.unindexed_chunks);
    let unindexed_chunks = unindexed.map(|chunks| chunks.load(Ordering::Relaxed)).sum();
    pipeline.stop();
    for books in pipeline.join()? {
        ensure!(books.dropped_packets() == 0, "lost: {books:?}");
    }
    site.clear()?;
    give_memory_back();
    Ok(Row {
        lanes,
        volumes,
        gb_s: (packets.bytes() * passes * u64::from(lanes)) as f64 / took_ns,
        cpu_ns: stages.sum_ns() as f64 / total as f64,
        stages,
        packets: total,
        unindexed_chunks,
        resident_mib,
    })
}

impl Row {
    fn show(&self, one: &Self, output: &mut Output) {
        let StageTimes { fill_ns, seal_ns, write_ns, apply_ns, .. } = self.stages;
        let mut cells = vec![self.lanes.to_string(), self.volumes.to_string()];
        cells.push(format!("{:.2}", self.gb_s));
        cells.push(format!("{:.0}", self.cpu_ns));
        cells.push(format!("x {:.2}", self.cpu_ns / one.cpu_ns));
        let each = |ns: u64| format!("{:.0}", ns as f64 / self.packets as f64);
        cells.extend([fill_ns, seal_ns, write_ns, apply_ns].map(each));
        cells.push(self.unindexed_chunks.to_string());
        cells.push(self.resident_mib.to_string());
        output.row(cells);
    }
}
