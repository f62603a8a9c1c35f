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
//! - [`api`]: paths and JSON of the API, shared with the command line.
//! - [`serve`]: what `wirevaultd --config` does. [`probe`]: what `wirevaultd validate` looks at.
//! - [`reload`]: the configuration's file, read again. [`sandbox`]: what is given up by then.
//! - [`keys`]: keys that a service keeps. [`publisher`]: metrics for one.
//! - [`snapshots`]: checkpoints of the state. `anchors`: heads of the audit log, kept elsewhere.
//! - [`import`]: the command line's entry for imports. [`devices`]: disks of this machine.
//! - [`status`]: the report of a running recorder, and of a store that nobody writes.
//! - [`error`]: [`DaemonError`] and the exit codes.
//!
//! Nothing here decides about packets: what it starts is in `pipeline`, what it asks is in `query`.

#![forbid(unsafe_code)]

mod access;
mod anchors;
mod answers;
pub mod api;
mod audit;
mod backup;
pub mod cards;
mod chain;
mod conditions;
mod connections;
pub mod devices;
mod doors;
mod duty;
pub mod error;
mod health;
pub mod import;
mod instance;
mod json;
pub mod keys;
pub mod lifecycle;
mod mending;
mod metrics;
mod openapi;
pub mod probe;
pub mod publisher;
pub mod reload;
mod revocation;
mod rungs;
pub mod sandbox;
mod scrape;
pub mod serve;
mod server;
mod shared;
pub mod snapshots;
mod sources;
mod standby;
pub mod status;
mod supervisor;
mod tail;
pub mod tier;
mod tls;
mod vfio;
mod volumes;

pub use error::{DaemonError, Exit};

/// Name of this machine; empty if the kernel does not tell it.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim_end().to_owned()
}
