//! The list of segments.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wirevault_query::summary::Instant;

/// One segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SegmentRow {
    /// Name.
    pub name: String,
    /// Number of the volume that it lies on, or lay on.
    pub volume: u16,
    /// Its place there.
    pub place: u32,
    /// Where its bytes are: `local`, `tiered` or `both`; `nowhere` if they are
    /// lost.
    pub at: String,
    /// Store-wide number; the smallest is given up first.
    pub ordinal: u64,
    /// `open` (being written), `interrupted` (a crash left it so), `closed`, or `lost: instance
    /// store` (it is gone with its volume, and known from a checkpoint).
    pub state: String,
    /// Why it was closed; nothing while it is not.
    pub close_reason: Option<String>,
    /// Packets are encrypted.
    pub sealed: bool,
    /// Written by an import.
    pub import: bool,
    /// Closed by recovery.
    pub recovered: bool,
    /// Recovery found damage.
    pub damaged: bool,
    /// Number of the hold for which it is a copy; nothing if it was recorded.
    #[serde(default)]
    pub hold: Option<u32>,
    /// Run.
    pub run: String,
    /// Lane.
    pub lane: u16,
    /// Link type.
    pub link_type: String,
    /// Smallest packet time.
    pub from: Option<Instant>,
    /// Largest packet time.
    pub until: Option<Instant>,
    /// When it was opened.
    pub opened: Instant,
    /// When it was closed.
    pub closed: Option<Instant>,
    /// Packets.
    pub packets: u64,
    /// Captured bytes.
    pub captured_bytes: u64,
    /// Bytes on the volume; nothing while it is written.
    pub file_bytes: Option<u64>,
    /// Chunks.
    pub chunks: u64,
    /// Why it cannot be read, if so; of a lost one which store it was of.
    pub error: Option<String>,
}
