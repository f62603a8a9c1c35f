//! How a pipeline runs.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use wirevault_buffer::Arena;
use wirevault_nvme::{NvmeError, Queue, QueueOptions, open_best};

/// Makes the queue to the device of a volume, on the thread that will use it.
pub type QueueMaker = Arc<dyn Fn(usize, &Arena) -> Result<Box<dyn Queue>, NvmeError> + Send + Sync>;

/// How a pipeline runs.
#[derive(Clone)]
pub struct PipelineOptions {
    /// Age of the first packet of a chunk after which it is written although it is not full.
    pub flush_age: Duration,
    /// Time over which flushes of a file are grouped.
    pub commit_interval: Duration,
    /// Age after which a segment is closed although it is not full.
    pub segment_age: Duration,
    /// Written by an import rather than from live interfaces.
    pub import: bool,
    /// Makes each volume's queue: the best that works, unless somebody plugs in another.
    pub queue: QueueMaker,
}

impl Default for PipelineOptions {
    fn default() -> Self {
        Self {
            flush_age: Duration::from_millis(250),
            commit_interval: Duration::from_millis(100),
            segment_age: Duration::from_secs(3600),
            import: false,
            queue: Arc::new(|_, arena| open_best(&QueueOptions::default(), arena)),
        }
    }
}

impl fmt::Debug for PipelineOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PipelineOptions")
            .field("flush_age", &self.flush_age)
            .field("commit_interval", &self.commit_interval)
            .field("segment_age", &self.segment_age)
            .field("import", &self.import)
            .finish_non_exhaustive()
    }
}
