//! What can keep a pipeline from starting or ending well.

use std::io;

use wirevault_nvme::NvmeError;
use wirevault_storage::StorageError;

/// A pipeline cannot start, or did not end well.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// There are too few buffers.
    #[error("{have} buffers are too few for {lanes} lanes: at least {need} of 256 KiB are needed")]
    TooFewBuffers {
        /// Buffers of the arena.
        have: usize,
        /// Lanes.
        lanes: usize,
        /// Buffers needed.
        need: usize,
    },
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StorageError),
    /// No queue to a volume's device can be made.
    #[error("volume {volume}: no queue to its device: {source}")]
    Queue {
        /// Number of the volume.
        volume: usize,
        /// Why.
        #[source]
        source: NvmeError,
    },
    /// The system refused a thread.
    #[error("thread {name} cannot be started")]
    Thread {
        /// Name of the thread.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A thread ended by a panic. What it had not acknowledged is lost and counted by the next
    /// start.
    #[error("thread {name} panicked: this is a defect of Wirevault")]
    Panicked {
        /// Name of the thread.
        name: String,
    },
}
