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

use crate::output::Output;
use crate::sender::{Load, Maker, SENDER, Sent, cable, send};

pub(crate) use recorder::Recorder;

/// More than any sender here reaches: it sends as fast as it can.
const UNPACED_PACKETS_PER_S: u64 = 100_000_000;
/// Bisection begins between this rate and the sender's best.
const FLOOR_PACKETS_PER_S: u64 = 100_000;

/// Promised at 1500 B: CPU time in plain text, indexed, over that of stenotype with its index; and
/// CPU seconds for each GB sealed and indexed.
const OF_STENOTYPE: f64 = 0.8;
const SEALED_MAX_S_GB: f64 = 0.65;

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
    /// Who makes the packets.
    #[arg(long, value_enum, default_value = "socket")]
    sender: Maker,
    /// Recorders to run.
    #[arg(long, value_enum, value_delimiter = ',')]
    #[arg(default_values_t = Recorder::value_variants().to_vec())]
    only: Vec<Recorder>,
    /// Folder for the files [default: the system's temporary folder].
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
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
    /// The sender was let off the leash.
    unpaced: bool,
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
pub(crate) fn run(options: &Options, mut output: Output) -> Result<bool> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("wirevault-peers-");
    let folder = match &options.folder {
        Some(under) => builder.tempdir_in(under),
        None => builder.tempdir(),
    }
    .context("temporary folder")?;
    let _namespace = cable(options.sender)?;
    output.say(format!(
        "One core for each recorder, {} s a run; missing packets, CPU time and memory at {} \
         packets a second, and the quickest run without loss.",
        options.secs, options.rate
    ));
    output.table(&[
        ("bytes", 5),
        ("recorder", 26),
        ("missing", 8),
        ("s/Mpacket", 9),
        ("CPU s/GB", 9),
        ("MiB", 5),
        ("Mpps without loss", 17),
        ("Gbit/s", 6),
        ("CPU", 5),
        ("limit", 20),
    ]);
    let mut rows = Vec::new();
    for frame_bytes in &options.size {
        for recorder in &options.only {
            if let Err(missing) = recorder.find() {
                eprintln!("{frame_bytes:>5}  {:<20} left out: {missing:#}", recorder.name());
                continue;
            }
            let row = measure(options, folder.path(), *recorder, *frame_bytes)?;
            row.show(&mut output);
            rows.push(row);
        }
    }
    compare(&rows, &mut output);
    output.finish(&rows)?;
    let lossless = |row: &Row| row.steady.iter().any(|run| run.lost() == 0);
    Ok(rows.iter().filter(|row| row.recorder.is_ours()).all(lossless))
}

/// CPU time as a multiple of others' that were measured beside it, and what is promised.
fn compare(rows: &[Row], output: &mut Output) {
    let mut sizes: Vec<_> = rows.iter().map(|row| row.frame_bytes).collect();
    sizes.dedup();
    output.say("CPU time at the steady rate, as multiples of that of others.");
    output.table(&[("bytes", 5), ("recorder", 20), ("of a ring reader", 16), ("of stenotype", 12)]);
    for bytes in sizes {
        let row =
            |recorder| rows.iter().find(|row| (row.frame_bytes, row.recorder) == (bytes, recorder));
        let cpu = |recorder| Some(row(recorder)?.middle()?.cpu_per_gb(bytes));
        let of = |ours, theirs| Some(cpu(ours)? / cpu(theirs)?);
        let number = |value: Option<f64>| value.map_or("-".to_owned(), |it| format!("{it:.2}"));
        for ours in [Recorder::Plaintext, Recorder::Sealed] {
            output.row(vec![
                bytes.to_string(),
                ours.name().to_owned(),
                number(of(ours, Recorder::Reader)),
                number(of(ours, Recorder::Stenotype)),
            ]);
        }
        if let (1500, Some(multiple)) = (bytes, of(Recorder::Plaintext, Recorder::Stenotype)) {
            let what = "1500 B, plain text and indexed: CPU, of stenotype with its index";
            output.at_most(what, "", OF_STENOTYPE, multiple);
        }
        if let (1500, Some(seconds)) = (bytes, cpu(Recorder::Sealed)) {
            let what = "1500 B, sealed and indexed: CPU";
            output.at_most(what, " s/GB", SEALED_MAX_S_GB, seconds);
        }
        // Who keeps all that the sender can send is not beaten by more.
        let best = |recorder| row(recorder)?.best_packets_per_s.map(|rate| rate as f64 / 1e6);
        let others = rows.iter().filter(|row| row.frame_bytes == bytes && row.recorder.is_peer());
        let Some(most) = others.filter_map(|row| best(row.recorder)).max_by(f64::total_cmp) else {
            continue;
        };
        for ours in [Recorder::Plaintext, Recorder::Sealed] {
            let Some(row) = row(ours).filter(|row| row.unpaced) else { continue };
            let what = format!("{bytes} B, {}: without loss", ours.name());
            let reached = best(ours).unwrap_or(0.0);
            let promised = format!("all that was sent, or {most:.2} Mpps, the best of others");
            output.promise(&what, promised, " Mpps", reached, row.sender_bound || reached >= most);
        }
    }
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
        unpaced: options.steps > 0,
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
    let load = Load { maker: options.sender, frame_bytes, packets_per_s, time, cpu: Some(0) };
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

    /// The run in the middle at the steady rate.
    fn middle(&self) -> Option<&Run> {
        self.steady.get(self.steady.len() / 2)
    }

    fn show(&self, output: &mut Output) {
        let number = |value: Option<f64>| value.map_or("-".to_owned(), |it| format!("{it:.3}"));
        let (middle, lost) = (self.middle(), self.steady.iter().map(Run::lost).min());
        let rate = self.best_packets_per_s.map(|rate| rate as f64);
        let gbit_s = rate.map(|rate| rate * self.frame_bytes as f64 * 8.0 / 1e9);
        let limit = match self.lost_at {
            _ if self.sender_bound => "the sender's".to_owned(),
            Some((rate, share)) => {
                format!("{:.2} % lost at {:.2}", share * 100.0, rate as f64 / 1e6)
            }
            None => "-".to_owned(),
        };
        output.row(vec![
            self.frame_bytes.to_string(),
            self.recorder.name().to_owned(),
            lost.map_or("-".to_owned(), |it| it.to_string()),
            number(middle.map(Run::cpu_per_million)),
            number(middle.map(|run| run.cpu_per_gb(self.frame_bytes))),
            middle.map_or("-".to_owned(), |run| (run.memory_peak_bytes >> 20).to_string()),
            rate.map_or("-".to_owned(), |rate| format!("{:.2}", rate / 1e6)),
            gbit_s.map_or("-".to_owned(), |it| format!("{it:.1}")),
            self.best_cpu.map_or("-".to_owned(), |it| format!("{:.0} %", it * 100.0)),
            limit,
        ]);
    }
}
