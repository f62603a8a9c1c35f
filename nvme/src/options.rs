//! What a queue should be and what it became.

use crate::error::NvmeError;

/// Operations in flight at most, whatever is asked for. Two writes of 1 MiB already saturate one
/// disk.
pub const DEPTH_MAX: u32 = 4096;

/// Files a queue holds at most, whatever is asked for.
pub const SLOTS_MAX: u16 = 1024;

/// Which back end [`open_best`](crate::open_best) takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// NVMe passthrough on devices that can be asked directly, else io_uring, or the thread where
    /// io_uring cannot be had.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// The thread.
    Thread,
}

/// What a queue should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueOptions {
    /// Which back end.
    pub backend: Backend,
    /// Operations in flight, 1 to [`DEPTH_MAX`].
    pub depth: u32,
    /// Files attached at a time, 1 to [`SLOTS_MAX`].
    pub slots: u16,
    /// Whether to go past the page cache (`O_DIRECT`) where the file system allows it.
    pub direct: bool,
    /// Whether to poll a device whose driver has polled queues, instead of being interrupted. It
    /// takes the writer's core while anything is in flight.
    pub polling: bool,
}

impl Default for QueueOptions {
    fn default() -> Self {
        Self { backend: Backend::Auto, depth: 64, slots: 64, direct: true, polling: true }
    }
}

impl QueueOptions {
    pub(crate) fn check(&self) -> Result<(), NvmeError> {
        let check = |option, value: u64, max: u64| {
            if (1..=max).contains(&value) {
                return Ok(());
            }
            Err(NvmeError::Option { option, value, min: 1, max })
        };
        check("depth", u64::from(self.depth), u64::from(DEPTH_MAX))?;
        check("slots", u64::from(self.slots), u64::from(SLOTS_MAX))
    }
}

/// What a queue is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueReport {
    /// Name of the back end.
    pub backend: &'static str,
    /// Why it is this one.
    pub why: &'static str,
    /// Whether chunks of the arena are written from memory the kernel knows already.
    pub registered_buffers: bool,
    /// Whether files are registered with the kernel.
    pub registered_files: bool,
    /// Whether files are attached, and all attached so far went past the page cache.
    pub o_direct: bool,
    /// Whether the device is polled instead of interrupting.
    pub polled: bool,
    /// Whether a sync asks the device to flush. Not so where a completed write is durable by
    /// itself.
    pub flushes: bool,
    /// What was wanted and is not so, each with its reason.
    pub why_not: Vec<String>,
}

impl QueueReport {
    /// Reasons kept at most; files come and go, the report must not grow with them.
    const REASONS_MAX: usize = 16;

    pub(crate) fn new(backend: &'static str, why: &'static str) -> Self {
        Self {
            backend,
            why,
            registered_buffers: false,
            registered_files: false,
            o_direct: false,
            polled: false,
            flushes: true,
            why_not: Vec::new(),
        }
    }

    pub(crate) fn because(&mut self, reason: String) {
        if self.why_not.len() < Self::REASONS_MAX && !self.why_not.contains(&reason) {
            self.why_not.push(reason);
        }
    }
}
