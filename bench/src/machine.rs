//! What is known of the machine on which a run was made.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use serde::{Deserialize, Serialize};

/// Of `/proc`, on every architecture.
pub(crate) const TICKS_PER_S: u64 = 100;

/// Facts without which a figure says nothing. What cannot be found out is empty.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// Day of the run, UTC.
    pub(crate) date: String,
    /// Commit of the code; `+` stands behind it if files had changed since.
    pub(crate) commit: String,
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
    pub(crate) memory_gib: u64,
    pub(crate) hugepages: u64,
    /// File system of the folder for temporary files.
    pub(crate) file_system: String,
    /// Cores' worth of time that other programs had during the run. Interrupts are not counted.
    pub(crate) others: f64,
}

/// CPU time of all programs at a moment, and of this one with its children.
pub(crate) struct Busy {
    at: Instant,
    all: Duration,
    own: Duration,
}

impl Busy {
    pub(crate) fn now() -> Self {
        // `man 5 proc_stat`: user, nice, system in ticks, from the second word on.
        let stat = text("/proc/stat");
        let ticks = stat.split_whitespace().skip(1).take(3).filter_map(|it| it.parse::<u64>().ok());
        let own = [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN].map(|who| {
            let usage = getrusage(who).ok()?;
            Some(duration(usage.user_time()) + duration(usage.system_time()))
        });
        Self {
            at: Instant::now(),
            all: Duration::from_millis(ticks.sum::<u64>() * 1000 / TICKS_PER_S),
            own: own.into_iter().flatten().sum(),
        }
    }

    /// Cores' worth of time that others had since.
    pub(crate) fn others_since(&self) -> f64 {
        let now = Self::now();
        let (all, own) = (now.all.saturating_sub(self.all), now.own.saturating_sub(self.own));
        all.saturating_sub(own).as_secs_f64() / (now.at - self.at).as_secs_f64().max(0.01)
    }
}

/// What a process used, as the kernel tells it.
pub(crate) fn duration(time: TimeVal) -> Duration {
    Duration::from_micros((time.tv_sec() * 1_000_000 + time.tv_usec()) as u64)
}

impl Machine {
    pub(crate) fn look() -> Self {
        let processors = text("/proc/cpuinfo");
        let memory_kib = number_behind(&text("/proc/meminfo"), "MemTotal:");
        let hugepages = number_behind(&text("/proc/meminfo"), "HugePages_Total:");
        let file_system = said("df", &["--output=fstype", &std::env::temp_dir().to_string_lossy()]);
        Self {
            date: said("date", &["-u", "+%Y-%m-%d"]),
            commit: commit(),
            cpu: processor(&processors),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            memory_gib: memory_kib >> 20,
            hugepages,
            file_system: file_system.lines().last().unwrap_or_default().trim().to_owned(),
            others: 0.0,
        }
    }

    /// In one line.
    pub(crate) fn line(&self) -> String {
        let Self { cpu, cores, kernel, memory_gib, file_system, others, date, commit, .. } = self;
        format!(
            "{date}, commit {commit}: {cpu}, {cores} cores, {memory_gib} GiB, Linux {kernel}, \
             {file_system}, others used {others:.2} cores"
        )
    }
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn number_behind(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|it| it.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Its name, and its family and model: clouds give many models one name.
fn processor(cpuinfo: &str) -> String {
    let value = |name: &str| {
        let is = |line: &&str| line.split(':').next().is_some_and(|it| it.trim() == name);
        let line = cpuinfo.lines().find(is)?;
        Some(line.split_once(':')?.1.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    match (value("model name"), value("cpu family"), value("model")) {
        (Some(name), Some(family), Some(model)) => format!("{name} ({family}/{model})"),
        (name, ..) => name.unwrap_or_default(),
    }
}

fn said(program: &str, arguments: &[&str]) -> String {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(program).args(arguments).current_dir(here).output();
    let output = output.ok().filter(|it| it.status.success());
    output.map_or(String::new(), |it| String::from_utf8_lossy(&it.stdout).trim().to_owned())
}

fn commit() -> String {
    let changed = !said("git", &["status", "--porcelain", "--untracked-files=no"]).is_empty();
    said("git", &["rev-parse", "--short", "HEAD"]) + if changed { "+" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_named_with_its_model() {
        let text = "processor\t: 0\ncpu family\t: 6\nmodel\t\t: 207\n\
                    model name\t: Intel(R)  Xeon(R) Processor\n";
        assert_eq!(processor(text), "Intel(R) Xeon(R) Processor (6/207)");
        assert_eq!(processor(""), "");
    }

    #[test]
    fn others_have_at_most_all_cores() {
        let busy = Busy::now();
        while Busy::now().own - busy.own < Duration::from_millis(20) {}
        let cores = std::thread::available_parallelism().unwrap().get() as f64;
        assert!((0.0..=cores + 0.5).contains(&busy.others_since()));
    }

    #[test]
    fn this_machine_has_cores_and_memory() {
        let machine = Machine::look();
        assert!(machine.cores > 0 && machine.memory_gib > 0 && !machine.kernel.is_empty());
    }
}
