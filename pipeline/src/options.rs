//! How a pipeline runs.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use wirevault_buffer::Arena;
use wirevault_nvme::{NvmeError, Queue, QueueOptions, open_best};

/// Makes the queue to the device of a volume, on the thread that will use it.
pub type QueueMaker = Arc<dyn Fn(usize, &Arena) -> Result<Box<dyn Queue>, NvmeError> + Send + Sync>;

/// Which threads share the work between a lane's source and its volumes' writers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Topology {
    /// `Split` if there is a core for each of its threads, else `RunToCompletion`.
    #[default]
    Auto,
    /// A lane's thread seals and indexes its own chunks, while they are in its core's cache.
    RunToCompletion,
    /// A lane's chunks are sealed and indexed by a thread of their own.
    Split,
}

/// Time after which a device counts as stalled. Disks that clean up, or flush behind a page cache,
/// take seconds; drivers give up after 30 s, on EC2's local disks after 90 s.
const STALL: Duration = Duration::from_secs(10);

/// How a pipeline runs.
#[derive(Clone)]
pub struct PipelineOptions {
    /// Age of the first packet of a chunk after which it is written although it is not full.
    pub flush_age: Duration,
    /// Time over which flushes of a file are grouped.
    pub commit_interval: Duration,
    /// Time that a write or flush may take before its segment is given up and the lane goes on
    /// elsewhere.
    pub stall: Duration,
    /// Age after which a segment is closed although it is not full.
    pub segment_age: Duration,
    /// Written by an import rather than from live interfaces.
    pub import: bool,
    /// Which threads there are.
    pub topology: Topology,
    /// Makes each volume's queue: the best that works, unless somebody plugs in another.
    pub queue: QueueMaker,
}

impl Default for PipelineOptions {
    fn default() -> Self {
        Self {
            flush_age: Duration::from_millis(250),
            commit_interval: Duration::from_millis(100),
            stall: STALL,
            segment_age: Duration::from_secs(3600),
            import: false,
            topology: Topology::Auto,
            queue: Arc::new(|_, arena| open_best(&QueueOptions::default(), arena)),
        }
    }
}

impl fmt::Debug for PipelineOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PipelineOptions")
            .field("flush_age", &self.flush_age)
            .field("commit_interval", &self.commit_interval)
            .field("stall", &self.stall)
            .field("segment_age", &self.segment_age)
            .field("import", &self.import)
            .field("topology", &self.topology)
            .finish_non_exhaustive()
    }
}
