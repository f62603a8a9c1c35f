//! Which cores a thread may use.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Keeps the calling thread, and threads that it starts from now on, on these cores; on none of
/// them it stays where it is.
///
/// # Errors
/// The system's reason: a core does not exist, or the process may not use it.
pub fn pin(cpus: &[usize]) -> Result<(), nix::Error> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu)?;
    }
    sched_setaffinity(Pid::from_raw(0), &set)
}

/// Cores that the calling thread may use, in order. Where the system does not tell, as many as it
/// says there are.
pub fn allowed() -> Vec<usize> {
    let count = || std::thread::available_parallelism().map_or(1, usize::from);
    match sched_getaffinity(Pid::from_raw(0)) {
        Ok(set) => (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect(),
        Err(_) => (0..count()).collect(),
    }
}
