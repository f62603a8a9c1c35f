//! CPU time of the pipeline's threads, by stage: every stage is a thread of its own.

use std::fs;

use anyhow::{Context, Result};
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
}

impl StageTimes {
    pub(crate) fn sum_ns(&self) -> u64 {
        self.fill_ns + self.seal_ns + self.write_ns + self.apply_ns
    }

    /// Reads them from the threads that run now.
    pub(crate) fn now() -> Result<Self> {
        let mut times = Self::default();
        for task in fs::read_dir("/proc/self/task").context("/proc/self/task")? {
            let folder = task?.path();
            // A thread may end while we look.
            let Ok(name) = fs::read_to_string(folder.join("comm")) else { continue };
            let Ok(statistics) = fs::read_to_string(folder.join("schedstat")) else { continue };
            let cpu_ns = statistics.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0);
            match name.trim_end().split('-').next() {
                Some("lane") => times.fill_ns += cpu_ns,
                Some("seal") => times.seal_ns += cpu_ns,
                Some("write") => times.write_ns += cpu_ns,
                Some("closer") => times.apply_ns += cpu_ns,
                _ => {}
            }
        }
        Ok(times)
    }
}
