//! What this process gives up once it has all that it needs from the system.
//!
//! ```text
//!  volumes, audit log and sources are open ─► rights ─► files ─► system calls ─► lanes, answers
//! ```
//! Whoever makes a recorder run code of his own, by a packet or a question, finds a process that
//! cannot start a program, become somebody else, or open what is not the recorder's. The unit
//! forbids much of that from outside, from the first instruction on; this holds also where there is
//! no unit, and forbids what only the start needs.
//!
//! - **Rights**: capabilities that no part of this configuration uses are dropped.
//! - **Files** (`files`): Landlock lets it open its own, and those that tell of the machine.
//! - **System calls** (`calls`): seccomp refuses what a recorder never does.
//!
//! Rights and files hold for the threads that start later, as all do that read packets or
//! questions; system calls hold for every thread. Nothing is killed: what is refused fails with
//! `EPERM` or `EACCES`, is told by whoever asked for it, and recording goes on.

mod calls;
mod files;
mod rights;

use std::path::{Path, PathBuf};

use wirevault_config::{Config, Input, Live, LiveSource, Sandbox, SourceKind};
use wirevault_media::DirMedia;

use crate::DaemonError;
use crate::api::SandboxStatus;

pub use files::{Landlock, landlock};

/// Gives up what is not needed from here on. `file` is the configuration's, `volumes` are all of
/// the store's.
///
/// # Errors
/// `Sandbox`: the configuration insists, and something cannot be had.
pub(crate) fn enter(
    config: &Config,
    file: &Path,
    volumes: &[PathBuf],
) -> Result<SandboxStatus, DaemonError> {
    if config.sandbox == Sandbox::Off {
        let why_not = vec!["`sandbox: off` in the configuration".to_owned()];
        return Ok(SandboxStatus { why_not, ..SandboxStatus::default() });
    }
    let mut status = SandboxStatus { earlier_threads: other_threads(), ..SandboxStatus::default() };
    match rights::give_up(config) {
        Ok(left) => status.rights = Some(left),
        Err(error) => status.why_not.push(format!("capabilities stay: {error}")),
    }
    if let Some(snapshots) = &config.snapshots {
        // No rule can be made of a folder that is not there. The first checkpoint tells why not.
        let _ = DirMedia::create(&snapshots.folder);
    }
    let reach = files::Reach::of(config, file, volumes);
    status.writes = reach.written();
    match files::confine(&reach) {
        Ok(abi) => status.landlock_abi = Some(abi),
        Err(why) => status.why_not.push(format!("files: {why}")),
    }
    match calls::forbid(may_use_xdp(config)) {
        Ok(()) => status.seccomp = true,
        Err(error) => status.why_not.push(format!("system calls: {error}")),
    }
    if config.sandbox == Sandbox::On && !status.why_not.is_empty() {
        return Err(DaemonError::Sandbox { why: status.why_not.join("; ") });
    }
    for why in &status.why_not {
        tracing::warn!("the sandbox is not whole: {why}");
    }
    let SandboxStatus { landlock_abi, seccomp, .. } = &status;
    tracing::info!(landlock_abi, seccomp, "what is not needed any more was given up");
    Ok(status)
}

/// Names of the threads that are there already, without the one that asks.
fn other_threads() -> Vec<String> {
    let own = nix::unistd::gettid().to_string();
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let others = threads.filter(|thread| thread.file_name().to_string_lossy() != own);
    let name = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("comm"));
    let mut names: Vec<_> = others.filter_map(|thread| name(thread).ok()).collect();
    names.iter_mut().for_each(|name| name.truncate(name.trim_end().len()));
    names.sort();
    names
}

/// Whether packets come from interfaces.
fn captures(config: &Config) -> impl Iterator<Item = SourceKind> {
    let live: &[Live] = match &config.input {
        Input::Live(live) => live,
        Input::Replay(_) => &[],
    };
    live.iter().filter_map(|live| match &live.source {
        LiveSource::Capture(capture) => Some(capture.source),
        LiveSource::PcapOverIp(_) | LiveSource::MirrorTarget(_) => None,
    })
}

/// Whether an interface that comes back may need its XDP program again.
fn may_use_xdp(config: &Config) -> bool {
    captures(config).any(|source| source != SourceKind::PacketMmap)
}
