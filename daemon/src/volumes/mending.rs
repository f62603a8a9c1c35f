//! A thread that makes digests which are missing: of a store from an older release, or lost in a
//! crash. Recording and questions do not wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use wirevault_index::Catalog;
use wirevault_storage::{Mended, mend_digests};

/// The thread; it ends by itself when nothing is missing any more.
pub(crate) struct Mending {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Mending {
    /// Begins with the segments that are closed now; later ones have their digests from the start.
    pub(crate) fn start(catalog: Catalog) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let work = move || {
            let Mended { made, without } = mend_digests(&catalog, &told);
            if made + without > 0 {
                tracing::info!(made, without, "digests of segments were missing");
            }
        };
        let thread = std::thread::Builder::new().name("digests".to_owned()).spawn(work);
        let failed = |error| tracing::warn!("missing digests stay so: {error}");
        Self { stop, thread: thread.map_err(failed).ok() }
    }

    /// Ends it, after the segment at hand.
    pub(crate) fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Err(_)) = self.thread.map(JoinHandle::join) {
            tracing::error!("the thread that makes digests has panicked");
        }
    }
}
