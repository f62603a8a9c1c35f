//! What reaches the disk, beside what fio reaches with one sequential stream on the same file
//! system.
//!
//! The lanes take packets as large as chunks, one a chunk, from a buffer in the cache: what is left
//! of capture is one hot copy, and of indexing one flow. Sealing, segments, queue, flushes and
//! acknowledgement are those of the recorder.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;
use serde_json::Value;
use wirevault_capture::Source;
use wirevault_format::chunk::PAYLOAD_BYTES_MAX;
use wirevault_pipeline::PipelineOptions;

use crate::output::{Output, spread};
use crate::packets::{MemorySource, Packets};
use crate::site::Site;
use crate::threads::StageTimes;

/// Bytes of a packet: what a chunk holds, less room for its block and for gaps.
const PACKET_BYTES: usize = PAYLOAD_BYTES_MAX - (8 << 10);
/// fio's writes: large and few, as one writer does them at best.
const FIO_BLOCK: &str = "1M";
const FIO_DEPTH: &str = "8";
const FIO_FILE: &str = "fio.stream";
/// Share of fio's rate that is promised.
const OF_FIO: f64 = 0.95;
/// Nothing takes longer, however slow the disk.
const TIME_MAX: Duration = Duration::from_secs(600);
const PAUSE: Duration = Duration::from_millis(1);
/// The last chunk of a lane is not full; the default would add a quarter of a second for it.
const FLUSH_AGE: Duration = Duration::from_millis(5);

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Numbers of lanes.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 2, 4, 8])]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=32))]
    lanes: Vec<u16>,
    /// MiB written in each run, by all lanes together, and by fio.
    #[arg(long, value_name = "N", default_value_t = 2048)]
    mib: u64,
    /// Runs of each kind in turn; the medians are shown.
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: usize,
    /// MiB of packet buffer.
    #[arg(long, value_name = "N", default_value_t = 64)]
    buffer_mib: u64,
    /// GiB that the store may take; it decides the size of segments, and only what is written takes
    /// room on the disk.
    #[arg(long, value_name = "N", default_value_t = 5)]
    quota_gib: u64,
    /// Folder for the store and fio's file; its disk is what is measured [default: the system's
    /// temporary folder].
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
}

/// One row: medians over the runs.
#[derive(Debug, Serialize)]
struct Row {
    lanes: u16,
    /// Bytes that reached the disk, segment headers and indexes left out.
    bytes: u64,
    segment_bytes: u64,
    gb_s: f64,
    /// fio's, run before each of ours.
    fio_gb_s: Option<f64>,
    /// Median of each run's share of the fio run before it.
    ratio: Option<f64>,
    /// CPU seconds for each GB: lanes and sealers, and the writer.
    fill_and_seal_s_gb: f64,
    write_s_gb: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    folder: PathBuf,
    backend: String,
    o_direct: bool,
    mib: u64,
    runs: usize,
    fio: Option<String>,
    rows: Vec<Row>,
}

/// Runs it; false if fio is missing, so that there is nothing to compare with.
pub(crate) fn run(options: &Options, mut output: Output) -> Result<bool> {
    ensure!(options.runs > 0 && options.mib > 0, "at least one run of at least one MiB");
    let site = Site::new(options.folder.as_deref())?;
    let fio = fio_version();
    let mut report = Report {
        folder: site.path().parent().unwrap_or(site.path()).to_owned(),
        backend: String::new(),
        o_direct: false,
        mib: options.mib,
        runs: options.runs,
        fio,
        rows: Vec::new(),
    };
    head(&report, &mut output);
    for lanes in &options.lanes {
        let row = row(options, &site, *lanes, &mut report)?;
        row.show(&mut output);
        report.rows.push(row);
    }
    output.say(format!("Written by {}, O_DIRECT {}.", report.backend, report.o_direct));
    for row in &report.rows {
        if let Some(ratio) = row.ratio {
            let what = format!("{} lanes to the device, of fio's one stream", row.lanes);
            output.at_least(&what, "", OF_FIO, ratio);
        }
    }
    output.finish(&report)?;
    Ok(report.fio.is_some())
}

fn head(report: &Report, output: &mut Output) {
    let Report { mib, runs, .. } = report;
    output.say(format!("{mib} MiB a run, median of {runs}, sealed and flushed."));
    output.say(match &report.fio {
        Some(version) => format!(
            "{version}: one sequential stream, O_DIRECT, io_uring, {FIO_BLOCK} x {FIO_DEPTH}, \
             fsync at the end, run before each of ours."
        ),
        None => "fio is not installed, so there is no ratio: apt-get install fio".to_owned(),
    });
    output.table(&[
        ("lanes", 5),
        ("segment MiB", 11),
        ("GB/s", 6),
        ("fio GB/s", 8),
        ("of fio", 6),
        ("lane and sealer CPU s/GB", 12),
        ("writer CPU s/GB", 12),
    ]);
}

impl Row {
    fn show(&self, output: &mut Output) {
        let number = |value: Option<f64>| value.map_or("-".to_owned(), |it| format!("{it:.2}"));
        output.row(vec![
            self.lanes.to_string(),
            (self.segment_bytes >> 20).to_string(),
            format!("{:.2}", self.gb_s),
            number(self.fio_gb_s),
            number(self.ratio),
            format!("{:.3}", self.fill_and_seal_s_gb),
            format!("{:.3}", self.write_s_gb),
        ]);
    }
}

/// What one run of ours came to.
struct Ours {
    bytes: u64,
    gb_s: f64,
    segment_bytes: u64,
    stages: StageTimes,
}

fn row(options: &Options, site: &Site, lanes: u16, report: &mut Report) -> Result<Row> {
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let mut last = None;
    for _ in 0..options.runs {
        let fio_gb_s = match report.fio {
            Some(_) => Some(fio(site.path(), options.mib)?),
            None => None,
        };
        let run = measure(options, site, lanes, report)?;
        ours.push(run.gb_s);
        theirs.extend(fio_gb_s);
        ratios.extend(fio_gb_s.map(|fio| run.gb_s / fio));
        last = Some(run);
    }
    let last = last.context("at least one run")?;
    let each = |ns: u64| ns as f64 / last.bytes as f64;
    Ok(Row {
        lanes,
        bytes: last.bytes,
        segment_bytes: last.segment_bytes,
        gb_s: median(ours).context("at least one run")?,
        fio_gb_s: median(theirs),
        ratio: median(ratios),
        fill_and_seal_s_gb: each(last.stages.fill_ns + last.stages.seal_ns),
        write_s_gb: each(last.stages.write_ns),
    })
}

fn median(values: Vec<f64>) -> Option<f64> {
    spread(values).map(|[_, middle, _]| middle)
}

/// Writes one store through the pipeline. The clock runs from the first acknowledgement to the
/// last: each comes with a flush, so what waits for one at the beginning is what waits at the end.
fn measure(options: &Options, site: &Site, lanes: u16, report: &mut Report) -> Result<Ours> {
    let all = ((options.mib << 20) / PACKET_BYTES as u64).max(1);
    let each = all.div_ceil(u64::from(lanes));
    let frame = Arc::new(Packets::one("chunks", frame()));
    let from_ns = site.clock.unix_ns();
    let source =
        |_| Box::new(MemorySource::new(Arc::clone(&frame), each, from_ns)) as Box<dyn Source>;
    let sources = (0..lanes).map(source).collect();
    let buffer_bytes = (options.buffer_mib << 20) as usize;
    let how = PipelineOptions { flush_age: FLUSH_AGE, ..PipelineOptions::default() };
    let begin = Instant::now();
    let quota_bytes = options.quota_gib << 30;
    let pipeline = site.start_lanes(sources, 1, quota_bytes, buffer_bytes, &how)?;
    let (total, mut first) = (each * u64::from(lanes), None);
    let stored = || pipeline.lanes().iter().map(|lane| lane.books.snapshot().stored).sum();
    let (since, before) = loop {
        ensure!(begin.elapsed() < TIME_MAX, "still not done: {} of {total} packets", stored());
        ensure!(!pipeline.is_finished(), "a lane ended: {:?}", pipeline.lanes()[0].shared.error());
        let stored: u64 = stored();
        if stored > 0 {
            let first = *first.get_or_insert((Instant::now(), stored));
            if stored == total {
                break first;
            }
        }
        std::thread::sleep(PAUSE);
    };
    let took = since.elapsed();
    ensure!(before < total, "all came with the first flush; write more MiB");
    let stages = StageTimes::now()?;
    let bytes = pipeline.volumes()[0].shared.written_bytes.load(Ordering::Relaxed);
    let segment_bytes = pipeline.store().status().volumes[0].segment_bytes;
    if let Ok(queue) = pipeline.volumes()[0].shared.report.lock()
        && let Some(queue) = &*queue
    {
        report.backend = queue.backend.to_owned();
        report.o_direct = queue.o_direct;
    }
    pipeline.stop();
    for books in pipeline.join()? {
        ensure!(books.stored == each && books.dropped_packets() == 0, "lost: {books:?}");
    }
    site.clear()?;
    let rated_bytes = bytes as f64 * (total - before) as f64 / total as f64;
    Ok(Ours { bytes, gb_s: rated_bytes / took.as_nanos() as f64, segment_bytes, stages })
}

fn fio_version() -> Option<String> {
    let output = Command::new("fio").arg("--version").output().ok()?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success().then_some(version)
}

/// GB (10^9 bytes) a second of one sequential stream, its fsync included. The file is removed.
fn fio(folder: &Path, mib: u64) -> Result<f64> {
    let file = folder.join(FIO_FILE);
    let output = Command::new("fio")
        .arg("--name=stream")
        .arg(format!("--filename={}", file.display()))
        .args(["--rw=write", "--direct=1", "--ioengine=io_uring", "--end_fsync=1"])
        .arg(format!("--bs={FIO_BLOCK}"))
        .arg(format!("--iodepth={FIO_DEPTH}"))
        .arg(format!("--size={mib}M"))
        .arg("--output-format=json")
        .output()
        .context("fio")?;
    let _ = std::fs::remove_file(&file);
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "fio failed: {errors}");
    // Warnings may stand before the object.
    let text = String::from_utf8_lossy(&output.stdout);
    let json: Value = serde_json::from_str(&text[text.find('{').unwrap_or(0)..])?;
    gb_s_of(&json["jobs"][0]).with_context(|| format!("fio's report: {text}"))
}

/// fio's `runtime` ends with the fsync (`do_io` in its `backend.c`).
fn gb_s_of(job: &Value) -> Option<f64> {
    let bytes = job["write"]["io_bytes"].as_u64()?;
    let took_ms = job["write"]["runtime"].as_u64()?;
    (bytes > 0 && took_ms > 0).then(|| bytes as f64 / (took_ms as f64 * 1e6))
}

/// A frame of no protocol that is indexed further, and bytes that no disk can squeeze.
fn frame() -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    while frame.len() < PACKET_BYTES {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        frame.extend_from_slice(&(state >> 16).to_le_bytes()[..4]);
    }
    frame.truncate(PACKET_BYTES);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fios_report_is_understood() {
        let job = serde_json::json!({ "write": { "io_bytes": 2_000_000_000u64, "runtime": 1000 } });
        assert_eq!(gb_s_of(&job), Some(2.0));
        assert_eq!(gb_s_of(&serde_json::json!({ "write": { "io_bytes": 0, "runtime": 0 } })), None);
        assert_eq!(gb_s_of(&serde_json::json!({})), None);
    }

    #[test]
    fn a_small_run_stores_everything_from_each_number_of_lanes() {
        let options = Options {
            lanes: vec![1, 3],
            mib: 24,
            runs: 1,
            buffer_mib: 16,
            quota_gib: 1,
            folder: None,
        };
        let site = Site::new(None).unwrap();
        let mut report = Report {
            folder: PathBuf::new(),
            backend: String::new(),
            o_direct: false,
            mib: options.mib,
            runs: 1,
            fio: None,
            rows: Vec::new(),
        };
        for lanes in options.lanes.clone() {
            let row = row(&options, &site, lanes, &mut report).unwrap();
            assert!(row.bytes >= 23 << 20 && row.bytes <= 26 << 20, "{row:?}");
            assert!(row.gb_s > 0.0 && row.ratio.is_none());
        }
        assert!(!report.backend.is_empty());
    }
}
