//! What is known of the machine on which a run was made.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

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
    /// Programs that wanted a core in the minute before, other than this one.
    pub(crate) load: f64,
}

impl Machine {
    pub(crate) fn look() -> Self {
        let processors = text("/proc/cpuinfo");
        let memory_kib = number_behind(&text("/proc/meminfo"), "MemTotal:");
        let hugepages = number_behind(&text("/proc/meminfo"), "HugePages_Total:");
        let load = text("/proc/loadavg").split(' ').next().and_then(|it| it.parse().ok());
        let folder = std::env::temp_dir();
        Self {
            date: said("date", &["-u", "+%Y-%m-%d"]),
            commit: commit(),
            cpu: processor(&processors),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            memory_gib: memory_kib >> 20,
            hugepages,
            file_system: said("stat", &["--file-system", "--format=%T", &folder.to_string_lossy()]),
            load: load.unwrap_or(0.0),
        }
    }

    /// In one line.
    pub(crate) fn line(&self) -> String {
        let Self { cpu, cores, kernel, memory_gib, file_system, load, date, commit, .. } = self;
        format!(
            "{date}, commit {commit}: {cpu}, {cores} cores, {memory_gib} GiB, Linux {kernel}, \
             {file_system}, load before it {load:.1}"
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
    fn this_machine_has_cores_and_memory() {
        let machine = Machine::look();
        assert!(machine.cores > 0 && machine.memory_gib > 0 && !machine.kernel.is_empty());
    }
}
