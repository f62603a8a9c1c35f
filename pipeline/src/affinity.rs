//! Pinning a thread to a core.

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Pins the calling thread to `cpu`.
///
/// # Errors
/// The system's reason: the core does not exist, or the process may not use it.
pub(crate) fn pin(cpu: usize) -> Result<(), nix::Error> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set)
}
