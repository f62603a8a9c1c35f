//! CPU time of the pipeline's threads, by stage: every stage is a thread of its own,
//! unless lanes seal their own chunks: their time then stands in `fill_ns`.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// CPU time in ns since the threads began, all threads of a stage together.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct StageTimes {
    /// Lanes: polling the source, and the copy of each packet.
    pub(crate) fill_ns: u64,
    /// Sealers: dissecting, flow table, and sealing.
    pub(crate) seal_ns: u64,
    /// Writers: submitting and acknowledging, and what the kernel does for it on their time.
    pub(crate) write_ns: u64,
    /// The closer: adding what each chunk held to the index of its segment.
    pub(crate) apply_ns: u64,
    /// Time in which lanes, and sealers, were ready to run and had no core.
    pub(crate) fill_coreless_ns: u64,
    pub(crate) seal_coreless_ns: u64,
    /// Lanes and sealers, the threads that touch every byte.
    pub(crate) workers: usize,
}

/// CPU time that this process has used.
pub(crate) fn process_cpu() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).context("the process's CPU time")?.into())
}

/// CPU time that this thread has used.
pub(crate) fn cpu() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("the thread's CPU time")?.into())
}

impl StageTimes {
    pub(crate) fn sum_ns(&self) -> u64 {
        self.fill_ns + self.seal_ns + self.write_ns + self.apply_ns
    }

    /// What was used since an earlier look.
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            fill_ns: self.fill_ns - before.fill_ns,
            seal_ns: self.seal_ns - before.seal_ns,
            write_ns: self.write_ns - before.write_ns,
            apply_ns: self.apply_ns - before.apply_ns,
            fill_coreless_ns: self.fill_coreless_ns - before.fill_coreless_ns,
            seal_coreless_ns: self.seal_coreless_ns - before.seal_coreless_ns,
            workers: self.workers,
        }
    }

    /// Reads them from the threads that run now.
    pub(crate) fn now() -> Result<Self> {
        let mut times = Self::default();
        for task in fs::read_dir("/proc/self/task").context("/proc/self/task")? {
            let folder = task?.path();
            // A thread may end while we look.
            let Ok(name) = fs::read_to_string(folder.join("comm")) else { continue };
            let Ok(statistics) = fs::read_to_string(folder.join("schedstat")) else { continue };
            // Time on a core, and time of waiting for one (`Documentation/scheduler/sched-stats`).
            let mut figures = statistics.split(' ').map(|ns| ns.parse().unwrap_or(0));
            let mut figure = || figures.next().unwrap_or(0);
            let (cpu_ns, coreless_ns) = (figure(), figure());
            let stage = name.trim_end().split('-').next();
            times.workers += usize::from(matches!(stage, Some("lane" | "seal")));
            match stage {
                Some("lane") => {
                    times.fill_ns += cpu_ns;
                    times.fill_coreless_ns += coreless_ns;
                }
                Some("seal") => {
                    times.seal_ns += cpu_ns;
                    times.seal_coreless_ns += coreless_ns;
                }
                Some("write") => times.write_ns += cpu_ns,
                Some("closer") => times.apply_ns += cpu_ns,
                _ => {}
            }
        }
        Ok(times)
    }
}
