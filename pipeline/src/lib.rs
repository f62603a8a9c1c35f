//! The pinned threads between the wire and the device.
//!
//! ```text
//!  source ─► lane ─► sealer ─► writer (one a volume) ─► device
//!            fill    index      submit, flush,
//!            chunk   seal       acknowledge ─► closer: index of open segments, closing
//!                      └─► opener: next segment                 └─► store
//! ```
//! A lane and its sealer are two threads or one, see [`Topology`].
//! A chunk is moved, never shared, and stays in the arena until it is acknowledged. After start
//! these threads do not allocate, lock or log for a packet; locks are taken for a chunk at most.

#![forbid(unsafe_code)]

pub mod ack;
pub mod affinity;
mod closer;
pub mod decap;
pub mod duplicates;
pub mod error;
pub mod job;
pub mod lane;
pub mod layout;
pub mod live;
pub mod machine;
mod note;
mod opener;
pub mod options;
mod pace;
mod pending;
pub mod policy;
pub mod pressure;
mod reseal;
mod rolling;
mod rounds;
mod sealer;
mod start;
pub mod status;
pub mod tail;
mod write_file;
mod writer;

pub use error::PipelineError;
pub use lane::{Filter, LaneSpec};
pub use layout::{LaneWish, Layout, ThreadPlace};
pub use machine::Machine;
pub use options::{PipelineOptions, QueueMaker, Topology};
pub use policy::{Action, PolicySpec, RungSpec};
pub use pressure::Shares;
pub use rounds::Rounds;
pub use start::{LaneView, Pipeline, VolumeView};
pub use status::{BufferTimes, LaneShared, LaneState, PolicyCounters};
pub use tail::{Missed, TailChunk, TailHub};
pub use writer::WriterShared;
