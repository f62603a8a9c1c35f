//! The recorder as a service: wiring, and the API through which people and tools ask it.
//!
//! ```text
//!  config ──► sources ──► Pipeline ◄── serve (signals, systemd) ──► server (unix socket, TLS)
//!                            │                                        │ access: who, role, limits
//!                            ├──► status, metrics ────────────────────┤
//!                            ├──► catalog ──► answers (query, flows) ──┤
//!                            └──► tail ────────────────────────────────┘
//!  import: files ──► chain ──► Pipeline, without any of the service
//! ```
//! - [`serve`]: what `wirevaultd --config` does. [`probe`]: what `wirevaultd validate` looks at.
//! - [`api`]: paths and JSON of the API, shared with the command line. `server`: who comes in, and
//!   what he is answered.
//! - [`input`]: what each lane takes, and the command line's entry for imports.
//! - [`volumes`]: disks of this machine, taken, watched, shared and replaced.
//! - [`lifecycle`]: what is kept, moved, deleted and written down.
//! - [`report`]: status and metrics of a running recorder, and of a store that nobody writes.
//! - [`cloud`]: keys, metrics and backups at services of others. Whatever goes on beside the
//!   recording is a thread of `duty`.
//! - [`reload`]: the configuration's file, read again. [`sandbox`]: what is given up by then.
//! - [`error`]: [`DaemonError`] and the exit codes.
//!
//! Nothing here decides about packets: what it starts is in `pipeline`, what it asks is in `query`.

#![forbid(unsafe_code)]

pub mod api;
pub mod cloud;
mod duty;
pub mod error;
mod folders;
pub mod input;
pub mod lifecycle;
pub mod probe;
pub mod reload;
pub mod report;
pub mod sandbox;
pub mod serve;
mod server;
mod supervisor;
pub mod volumes;

pub use error::{DaemonError, Exit};

/// Name of this machine; empty if the kernel does not tell it.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim_end().to_owned()
}
