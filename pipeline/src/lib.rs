//! The pinned threads between the wire and the device.
//!
//! ```text
//!  source ─► lane ─► sealer ─► writer (one a volume) ─► device
//!            fill    index      submit, flush,
//!            chunk   seal       acknowledge ─► closer: index of open segments, closing
//!                      └─► opener: next segment                 └─► store
//! ```
//! A chunk is moved, never shared, and stays in the arena until it is acknowledged. After start
//! these threads do not allocate, lock or log for a packet; locks are taken for a chunk at most.

#![forbid(unsafe_code)]

pub mod ack;
mod affinity;
mod closer;
pub mod decap;
pub mod error;
pub mod job;
pub mod lane;
pub mod live;
mod opener;
pub mod options;
mod pace;
mod reseal;
mod sealer;
mod shown;
mod start;
pub mod status;
pub mod tail;
mod write_file;
mod writer;

pub use error::PipelineError;
pub use lane::{Filter, LaneSpec};
pub use options::{PipelineOptions, QueueMaker};
pub use start::{LaneView, Pipeline, VolumeView};
pub use status::{BufferTimes, LaneShared, LaneState};
pub use tail::{Missed, TailChunk, TailHub};
