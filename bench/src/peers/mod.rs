//! The recorder beside others: the same sender, the same cable, one core, the same disk.
//!
//! Every recorder is a process of its own, held on one core; the sender, and with it the kernel's
//! work of receiving, has the first. What was kept is counted in the files that the recorder left,
//! never taken from its own report.
//!
//! - [`recorder`]: how each is started, and how its files are counted.

mod recorder;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::sender::{Load, SENDER, Sent, cable, send};

pub(crate) use recorder::Recorder;

/// More than any sender here reaches: it sends as fast as it can.
const UNPACED_PACKETS_PER_S: u64 = 100_000_000;
/// Bisection begins between this rate and the sender's best.
const FLOOR_PACKETS_PER_S: u64 = 100_000;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Seconds of each run. The files of a run must fit on the disk.
    #[arg(long, value_name = "N", default_value_t = 4)]
    secs: u64,
    /// Runs at the steady rate for each recorder and size; the median counts.
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: usize,
    /// Packets a second of the runs in which CPU time is compared.
    #[arg(long, value_name = "N", default_value_t = 200_000)]
    rate: u64,
    /// Halvings in the search for the highest rate without loss; 0 leaves it out.
    #[arg(long, value_name = "N", default_value_t = 4)]
    steps: u32,
    /// Bytes of the packets.
    #[arg(long, value_name = "BYTES", value_delimiter = ',', default_values_t = [1500, 512, 64])]
    size: Vec<usize>,
    /// Recorders to run.
    #[arg(long, value_enum, value_delimiter = ',')]
    #[arg(default_values_t = Recorder::value_variants().to_vec())]
    only: Vec<Recorder>,
    /// Folder for the files [default: the system's temporary folder].
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// One recorder at one size.
#[derive(Debug, Serialize)]
struct Row {
    recorder: Recorder,
    frame_bytes: usize,
    /// Runs at the steady rate.
    steady: Vec<Run>,
    /// Packets a second of the quickest run in which nothing was lost.
    best_packets_per_s: Option<u64>,
    /// CPU time of that run, of one core.
    best_cpu: Option<f64>,
    /// That run was the sender's best.
    sender_bound: bool,
    /// Loss of the slowest run in which something was lost, and its rate.
    lost_at: Option<(u64, f64)>,
}

/// One run.
#[derive(Debug, Clone, Serialize)]
struct Run {
    packets_per_s: u64,
    sent: u64,
    kept: u64,
    cpu: Duration,
    sending: Duration,
    memory_peak_bytes: u64,
}

impl Run {
    fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.kept)
    }

    fn cpu_share(&self) -> f64 {
        self.cpu.as_secs_f64() / self.sending.as_secs_f64()
    }

    fn cpu_per_gb(&self, frame_bytes: usize) -> f64 {
        self.cpu.as_secs_f64() / (self.sent as f64 * frame_bytes as f64 / 1e9)
    }

    fn cpu_per_million(&self) -> f64 {
        self.cpu.as_secs_f64() / (self.sent as f64 / 1e6)
    }
}

/// Runs it; false if one of ours lost a packet at the steady rate in all of its runs.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("wirevault-peers-");
    let folder = match &options.folder {
        Some(under) => builder.tempdir_in(under),
        None => builder.tempdir(),
    }
    .context("temporary folder")?;
    let _namespace = cable()?;
    if !options.json {
        println!("one core each, {} s a run; CPU at {} packets/s", options.secs, options.rate);
        println!(
            "{:>5}  {:<20} {:>8} {:>9} {:>9} {:>6} | {:>9} {:>7} {:>6} {:>12}",
            "bytes", "recorder", "lost", "s/Mpacket", "s/GB", "MiB", "Mpps", "Gbit/s", "CPU", ""
        );
    }
    let mut rows = Vec::new();
    for frame_bytes in &options.size {
        for recorder in &options.only {
            if let Err(missing) = recorder.find() {
                eprintln!("{frame_bytes:>5}  {:<20} left out: {missing:#}", recorder.name());
                continue;
            }
            let row = measure(options, folder.path(), *recorder, *frame_bytes)?;
            if !options.json {
                row.print();
            }
            rows.push(row);
        }
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    }
    let lossless = |row: &Row| row.steady.iter().any(|run| run.lost() == 0);
    Ok(rows.iter().filter(|row| row.recorder.is_ours()).all(lossless))
}

fn measure(
    options: &Options,
    folder: &Path,
    recorder: Recorder,
    frame_bytes: usize,
) -> Result<Row> {
    let at = |packets_per_s| one_run(options, folder, recorder, frame_bytes, packets_per_s);
    let mut steady = (0..options.runs).map(|_| at(options.rate)).collect::<Result<Vec<_>>>()?;
    steady.sort_by_key(|run| run.cpu);
    let mut row = Row {
        recorder,
        frame_bytes,
        best_packets_per_s: None,
        best_cpu: None,
        sender_bound: false,
        lost_at: None,
        steady,
    };
    if options.steps == 0 {
        return Ok(row);
    }
    let unpaced = at(UNPACED_PACKETS_PER_S)?;
    let mut high = reached(&unpaced);
    row.note(&unpaced);
    row.sender_bound = unpaced.lost() == 0;
    if row.sender_bound {
        return Ok(row);
    }
    let mut low = FLOOR_PACKETS_PER_S;
    for _ in 0..options.steps {
        let middle = u64::midpoint(low, high);
        let run = at(middle)?;
        row.note(&run);
        *(if run.lost() == 0 { &mut low } else { &mut high }) = middle;
    }
    Ok(row)
}

/// Packets a second that were really sent.
fn reached(run: &Run) -> u64 {
    (run.sent as f64 / run.sending.as_secs_f64()) as u64
}

fn one_run(
    options: &Options,
    folder: &Path,
    recorder: Recorder,
    frame_bytes: usize,
    packets_per_s: u64,
) -> Result<Run> {
    let path = folder.join("files");
    std::fs::create_dir(&path).context("folder of the run")?;
    let quota_bytes = options.secs * frame_bytes as u64 * packets_per_s.min(4_000_000);
    let started = recorder.start(&path, quota_bytes)?;
    let time = Duration::from_secs(options.secs);
    let load = Load { frame_bytes, packets_per_s, time, cpu: Some(0) };
    let sender = std::thread::Builder::new().name("sender".to_owned());
    let sender = sender.spawn(move || send(SENDER, load))?;
    let Sent { packets: sent, time: sending } =
        sender.join().ok().context("the sender panicked")??;
    let stopped = started.stop().with_context(|| format!("stopping {}", recorder.name()))?;
    let kept = recorder.count(&path, frame_bytes)?;
    std::fs::remove_dir_all(&path).context("removing the files of the run")?;
    let (cpu, memory_peak_bytes) = (stopped.cpu, stopped.memory_peak_bytes);
    Ok(Run { packets_per_s, sent, kept, cpu, sending, memory_peak_bytes })
}

impl Row {
    fn note(&mut self, run: &Run) {
        let rate = reached(run);
        if run.lost() == 0 && self.best_packets_per_s.is_none_or(|best| rate > best) {
            self.best_packets_per_s = Some(rate);
            self.best_cpu = Some(run.cpu_share());
        }
        if run.lost() > 0 && self.lost_at.is_none_or(|(slowest, _)| rate < slowest) {
            self.lost_at = Some((rate, run.lost() as f64 / run.sent as f64));
        }
    }

    fn print(&self) {
        let median = &self.steady[self.steady.len() / 2];
        let lost = self.steady.iter().map(Run::lost).min().unwrap_or(0);
        print!(
            "{:>5}  {:<20} {lost:>8} {:>9.3} {:>9.3} {:>6} | ",
            self.frame_bytes,
            self.recorder.name(),
            median.cpu_per_million(),
            median.cpu_per_gb(self.frame_bytes),
            median.memory_peak_bytes >> 20,
        );
        if let (Some(rate), Some(cpu)) = (self.best_packets_per_s, self.best_cpu) {
            let gbit_s = rate as f64 * self.frame_bytes as f64 * 8.0 / 1e9;
            print!("{:>9.2} {gbit_s:>7.1} {:>5.0}% ", rate as f64 / 1e6, cpu * 100.0);
        } else {
            print!("{:>9} {:>7} {:>6} ", "-", "-", "-");
        }
        match self.lost_at {
            _ if self.sender_bound => println!("as sent"),
            Some((rate, share)) => {
                println!("{:.2} % lost at {:.2}", share * 100.0, rate as f64 / 1e6);
            }
            None => println!(),
        }
    }
}
