//! The pipeline at full rate for minutes: neither its memory nor its cost per packet may grow.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;

use crate::packets::{MemorySource, Packets, Size};
use crate::pipeline::Device;
use crate::site::{Site, SiteOptions};
use crate::threads::StageTimes;

const MEMORY_BYTES: usize = 256 << 20;
const BUFFER_BYTES: usize = 64 << 20;
const PAGE_BYTES: u64 = 4096;
/// More than any run needs.
const PASSES: u64 = 1 << 40;
/// Rows in which tables and caches fill.
const WARM_ROWS: usize = 2;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Seconds in all.
    #[arg(long, value_name = "N", default_value_t = 600)]
    secs: u64,
    /// Seconds of each row.
    #[arg(long, value_name = "N", default_value_t = 20)]
    every: u64,
    /// Packet size.
    #[arg(long, value_enum, default_value = "mix")]
    size: Size,
    /// Where chunks go.
    #[arg(long, value_enum, default_value = "null")]
    device: Device,
    #[command(flatten)]
    site: SiteOptions,
}

/// What one stretch of the run took.
#[derive(Debug, Serialize)]
struct Row {
    until_s: f64,
    gb_s: f64,
    mpps: f64,
    /// CPU time of all stages.
    cpu_ns: f64,
    resident_mib: u64,
    unindexed_chunks: u64,
}

#[derive(Debug, Serialize)]
struct Report {
    rows: Vec<Row>,
    /// CPU time per packet in the last third over that in the first.
    cpu_drift: f64,
    /// Memory in the last third less that in the first.
    memory_growth_mib: i64,
}

/// Runs it; false if a packet was lost.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let site = Site::new(options.site.folder.as_deref())?;
    let packets = Arc::new(Packets::make(options.size, MEMORY_BYTES));
    let packet_bytes = packets.bytes() as f64 / packets.count as f64;
    let memory = Box::new(MemorySource::new(packets, PASSES, site.clock.unix_ns()));
    let how = options.device.options();
    let pipeline = site.start(memory, options.site.quota_bytes(), BUFFER_BYTES, &how)?;
    let lane = &pipeline.lanes()[0];
    if !options.site.json {
        println!("{} packets at full rate, sealed and indexed", options.size.name());
        println!(
            "{:>8} {:>6} {:>6} {:>10} {:>9} {:>10}",
            "until s", "GB/s", "Mpps", "CPU ns", "MiB", "unindexed"
        );
    }
    let begin = Instant::now();
    let mut rows = Vec::new();
    let mut before = (Instant::now(), 0, StageTimes::now()?);
    while begin.elapsed() < Duration::from_secs(options.secs) {
        std::thread::sleep(Duration::from_secs(options.every));
        ensure!(!pipeline.is_finished(), "the lane ended: {:?}", lane.shared.error());
        let now = (Instant::now(), lane.books.snapshot().stored, StageTimes::now()?);
        let count = (now.1 - before.1) as f64;
        let time_ns = (now.0 - before.0).as_nanos() as f64;
        let row = Row {
            until_s: begin.elapsed().as_secs_f64(),
            gb_s: count * packet_bytes / time_ns,
            mpps: count * 1000.0 / time_ns,
            cpu_ns: (now.2.sum_ns() - before.2.sum_ns()) as f64 / count,
            resident_mib: resident_bytes()? >> 20,
            unindexed_chunks: lane.shared.unindexed_chunks.load(Ordering::Relaxed),
        };
        if !options.site.json {
            row.print();
        }
        rows.push(row);
        before = now;
    }
    pipeline.stop();
    let books = &pipeline.join()?[0];
    let warm = &rows[WARM_ROWS.min(rows.len() - 1)..];
    let third = warm.len().div_ceil(3);
    let (first, last) = (&warm[..third], &warm[warm.len() - third..]);
    let mean = |rows: &[Row], of: fn(&Row) -> f64| rows.iter().map(of).sum::<f64>() / third as f64;
    let cpu_drift = mean(last, |row| row.cpu_ns) / mean(first, |row| row.cpu_ns);
    let memory = |rows| mean(rows, |row| row.resident_mib as f64);
    let memory_growth_mib = (memory(last) - memory(first)).round() as i64;
    let report = Report { rows, cpu_drift, memory_growth_mib };
    match options.site.json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => println!(
            "last third against the first, {WARM_ROWS} rows left out: CPU per packet x \
             {cpu_drift:.3}, memory {memory_growth_mib:+} MiB"
        ),
    }
    Ok(books.dropped_packets() == 0)
}

impl Row {
    fn print(&self) {
        let Self { until_s, gb_s, mpps, cpu_ns, resident_mib, unindexed_chunks } = self;
        println!(
            "{until_s:>8.0} {gb_s:>6.2} {mpps:>6.2} {cpu_ns:>10.0} {resident_mib:>9} \
             {unindexed_chunks:>10}"
        );
    }
}

fn resident_bytes() -> Result<u64> {
    let fields = std::fs::read_to_string("/proc/self/statm").context("/proc/self/statm")?;
    let pages: u64 = fields.split(' ').nth(1).context("no second field in statm")?.parse()?;
    Ok(pages * PAGE_BYTES)
}
