//! How many flushes of a volume failed, for whoever has bytes on its device that are not flushed.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts the failed ones. Clones count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flushes {
    failed: Arc<AtomicU64>,
}

impl Flushes {
    /// Takes the end of one down.
    pub(crate) fn note(&self, ended: io::Result<()>) -> io::Result<()> {
        if ended.is_err() {
            self.failed.fetch_add(1, Ordering::Release);
        }
        ended
    }

    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Acquire)
    }
}
