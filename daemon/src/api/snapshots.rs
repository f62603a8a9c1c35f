//! Checkpoints of the recorder's state, and what they know of stores that are gone.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wirevault_query::summary::Instant;

/// Checkpoints of the recorder's state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SnapshotStatus {
    /// Folder that they are in.
    pub folder: String,
    /// Number of the last one that this recorder took.
    pub checkpoint: Option<u64>,
    /// When it was taken.
    pub taken: Option<Instant>,
    /// Bytes of state in it.
    pub bytes: u64,
    /// Why the next one could not be taken.
    pub trouble: Option<String>,
}

/// A store that is gone, as a checkpoint knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LostStatus {
    /// Its id.
    pub store: String,
    /// Number of the checkpoint.
    pub checkpoint: u64,
    /// Segments that it held.
    pub segments: u64,
    /// Packets in them.
    pub packets: u64,
    /// Smallest packet time.
    pub from: Option<Instant>,
    /// Largest packet time.
    pub until: Option<Instant>,
}
