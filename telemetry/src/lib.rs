//! What the recorder says about itself.
//!
//! ```text
//!  lane thread ──► books ◄── writer thread        histogram ◄── any thread
//!                    │ snapshot                        │ snapshot
//!                    └──────────► metrics page ◄───────┘
//! ```
//!
//! - [`books`]: the counters of one lane, and the one equation they must satisfy.
//! - [`clock`]: the only place that asks the operating system for the time.
//! - [`histogram`]: latency histograms without locks.
//! - [`metrics`]: the closed list of metric names, and the page that Prometheus reads.
//! - [`exposition`]: the forms that such a page is written in.
//! - [`publish`]: what a metrics service is sent of that page, and as what.
//! - [`mod@line`]: values on cache lines of their own.
//! - [`shown`]: how much of what is durable answers may promise.
//! - [`log`]: the tracing subscriber of the binaries.
//!
//! Nothing here opens a socket: exporters belong to the daemon.

#![forbid(unsafe_code)]

pub mod books;
pub mod clock;
pub mod exposition;
pub mod histogram;
pub mod line;
pub mod log;
pub mod metrics;
pub mod publish;
mod seqlock;
pub mod shown;
mod sync;
