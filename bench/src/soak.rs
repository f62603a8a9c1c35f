//! The pipeline at full rate for minutes: neither its memory nor its cost per packet may grow, and
//! the lane may not stop when a segment is full and the next one begins.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;
use wirevault_pipeline::LaneView;

use crate::output::{Output, spread};
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
/// What still counts as no drift, no growth and no step on a machine that others may use.
const DRIFT_MAX: f64 = 1.03;
const GROWTH_MAX_MIB: f64 = 16.0;
const STEP_MAX: f64 = 1.25;
/// Time between two looks at the lane.
const LOOK: Duration = Duration::from_micros(200);
/// Stretches of time that are compared: with the change of a segment, and without.
const WINDOW: Duration = Duration::from_millis(50);

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
    segment_changes: usize,
    unindexed_chunks: u64,
}

#[derive(Debug, Serialize)]
struct Report {
    rows: Vec<Row>,
    /// CPU time per packet in the last third over that in the first.
    cpu_drift: f64,
    /// Memory in the last third less that in the first.
    memory_growth_mib: i64,
    /// The longest time without a packet in each window of 50 ms, ms: smallest, median, largest.
    pause_at_change_ms: [f64; 3],
    pause_elsewhere_ms: [f64; 3],
}

/// Runs it; false if a packet was lost.
pub(crate) fn run(options: &Options, mut output: Output) -> Result<bool> {
    let site = Site::new(options.site.folder.as_deref())?;
    let packets = Arc::new(Packets::make(options.size, MEMORY_BYTES));
    let packet_bytes = packets.bytes() as f64 / packets.count as f64;
    let memory = Box::new(MemorySource::new(packets, PASSES, site.clock.unix_ns()));
    let how = options.device.options(options.site.topology());
    let pipeline = site.start(memory, options.site.quota_bytes(), BUFFER_BYTES, &how)?;
    let lane = &pipeline.lanes()[0];
    output.say(format!("{} packets at full rate, sealed and indexed.", options.size.name()));
    output.table(&[
        ("until s", 7),
        ("GB/s", 6),
        ("Mpps", 6),
        ("CPU ns a packet", 15),
        ("memory MiB", 10),
        ("segments begun", 14),
        ("unindexed", 9),
    ]);
    let begin = Instant::now();
    let (mut rows, mut pauses) = (Vec::new(), Pauses::default());
    let mut before = (Instant::now(), 0, StageTimes::now()?, 0);
    while begin.elapsed() < Duration::from_secs(options.secs) {
        let until = before.0 + Duration::from_secs(options.every);
        while Instant::now() < until {
            pauses.look(lane);
            std::thread::sleep(LOOK);
        }
        ensure!(!pipeline.is_finished(), "the lane ended: {:?}", lane.shared.error());
        let now =
            (Instant::now(), lane.books.snapshot().stored, StageTimes::now()?, pauses.changes);
        let count = (now.1 - before.1) as f64;
        let time_ns = (now.0 - before.0).as_nanos() as f64;
        let row = Row {
            until_s: begin.elapsed().as_secs_f64(),
            gb_s: count * packet_bytes / time_ns,
            mpps: count * 1000.0 / time_ns,
            cpu_ns: (now.2.sum_ns() - before.2.sum_ns()) as f64 / count,
            resident_mib: resident_bytes()? >> 20,
            segment_changes: now.3 - before.3,
            unindexed_chunks: lane.shared.unindexed_chunks.load(Ordering::Relaxed),
        };
        row.show(&mut output);
        rows.push(row);
        before = now;
    }
    pipeline.stop();
    let books = &pipeline.join()?[0];
    let report = Report::new(rows, pauses);
    report.say(&mut output);
    let what = format!("{} s at full rate: CPU per packet, last third of the first", options.secs);
    output.at_most(&what, "", DRIFT_MAX, report.cpu_drift);
    let what = format!("{} s at full rate: growth of memory", options.secs);
    output.at_most(&what, " MiB", GROWTH_MAX_MIB, report.memory_growth_mib as f64);
    let [[_, at, _], [_, elsewhere, _]] = [report.pause_at_change_ms, report.pause_elsewhere_ms];
    let what = "longest pause of the lane in 50 ms where a segment begins, of that elsewhere";
    output.at_most(what, "", STEP_MAX, at / elsewhere);
    output.finish(&report)?;
    Ok(books.dropped_packets() == 0)
}

impl Report {
    fn new(rows: Vec<Row>, pauses: Pauses) -> Self {
        let warm = &rows[WARM_ROWS.min(rows.len() - 1)..];
        let third = warm.len().div_ceil(3);
        let (first, last) = (&warm[..third], &warm[warm.len() - third..]);
        let mean =
            |rows: &[Row], of: fn(&Row) -> f64| rows.iter().map(of).sum::<f64>() / third as f64;
        let cpu_drift = mean(last, |row| row.cpu_ns) / mean(first, |row| row.cpu_ns);
        let memory = |rows| mean(rows, |row| row.resident_mib as f64);
        let memory_growth_mib = (memory(last) - memory(first)).round() as i64;
        Self {
            rows,
            cpu_drift,
            memory_growth_mib,
            pause_at_change_ms: spread(pauses.at_change_ms).unwrap_or_default(),
            pause_elsewhere_ms: spread(pauses.elsewhere_ms).unwrap_or_default(),
        }
    }

    fn say(&self, output: &mut Output) {
        let Self { cpu_drift, memory_growth_mib, .. } = self;
        output.say(format!(
            "Last third against the first, {WARM_ROWS} rows left out: CPU per packet x \
             {cpu_drift:.3}, memory {memory_growth_mib:+} MiB."
        ));
        let [_, median_at, most_at] = self.pause_at_change_ms;
        let [_, median, most] = self.pause_elsewhere_ms;
        output.say(format!(
            "Longest time in which the lane took no packet, in each {} ms: {median_at:.2} ms in \
             the median and {most_at:.1} ms at most where a segment begins, {median:.2} ms and \
             {most:.1} ms elsewhere. Whoever measures sleeps between two looks, so these are upper \
             bounds.",
            WINDOW.as_millis()
        ));
    }
}

impl Row {
    fn show(&self, output: &mut Output) {
        output.row(vec![
            format!("{:.0}", self.until_s),
            format!("{:.2}", self.gb_s),
            format!("{:.2}", self.mpps),
            format!("{:.0}", self.cpu_ns),
            self.resident_mib.to_string(),
            self.segment_changes.to_string(),
            self.unindexed_chunks.to_string(),
        ]);
    }
}

/// Times in which a lane takes nothing, by whether a segment began meanwhile.
#[derive(Default)]
struct Pauses {
    at_change_ms: Vec<f64>,
    elsewhere_ms: Vec<f64>,
    changes: usize,
    seen: Option<Seen>,
}

/// What was seen of the lane last.
struct Seen {
    window_began: Instant,
    moved: Instant,
    received: u64,
    flows: u64,
    longest: Duration,
    changed: bool,
}

impl Pauses {
    fn look(&mut self, lane: &LaneView) {
        let (now, received) = (Instant::now(), lane.books.snapshot().received);
        let flows = lane.shared.flows.load(Ordering::Relaxed);
        let fresh = Seen {
            window_began: now,
            moved: now,
            received,
            flows,
            longest: Duration::ZERO,
            changed: false,
        };
        let seen = self.seen.get_or_insert(fresh);
        if received != seen.received {
            seen.longest = seen.longest.max(now - seen.moved);
            (seen.received, seen.moved) = (received, now);
        }
        // Flows of a segment only become more, so this is another one.
        if flows < seen.flows {
            seen.changed = true;
            self.changes += 1;
        }
        seen.flows = flows;
        if now - seen.window_began >= WINDOW {
            let longest_ms = seen.longest.as_secs_f64() * 1e3;
            match seen.changed {
                true => self.at_change_ms.push(longest_ms),
                false => self.elsewhere_ms.push(longest_ms),
            }
            (seen.window_began, seen.longest, seen.changed) = (now, Duration::ZERO, false);
        }
    }
}

pub(crate) fn resident_bytes() -> Result<u64> {
    let fields = std::fs::read_to_string("/proc/self/statm").context("/proc/self/statm")?;
    let pages: u64 = fields.split(' ').nth(1).context("no second field in statm")?.parse()?;
    Ok(pages * PAGE_BYTES)
}
