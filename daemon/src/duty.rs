//! Threads beside the recording, each of which does one thing again and again until the recorder
//! ends: they may wait for a device or a service, and nothing else waits for them.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// A thread.
pub(crate) struct Duty {
    /// Completes "the thread that".
    what: &'static str,
    stop: SyncSender<()>,
    thread: JoinHandle<()>,
}

/// How the thread waits.
pub(crate) struct Rest(Receiver<()>);

impl Rest {
    /// Waits. Whether to go on: at the end it returns at once.
    pub(crate) fn wait(&self, pause: Duration) -> bool {
        self.0.recv_timeout(pause) == Err(RecvTimeoutError::Timeout)
    }
}

impl Duty {
    /// Begins at once. `round` does it, and gives the pause until the next time. `name` is the
    /// thread's, of 15 bytes at most; `what` it does stands in "the thread that ... has panicked".
    /// Without a thread that is told, and recording goes on.
    pub(crate) fn start(
        name: &str,
        what: &'static str,
        mut round: impl FnMut(&Rest) -> Duration + Send + 'static,
    ) -> Option<Self> {
        let (stop, stopped) = sync_channel(1);
        let rest = Rest(stopped);
        let work = move || {
            loop {
                let pause = round(&rest);
                if !rest.wait(pause) {
                    return;
                }
            }
        };
        let thread = Builder::new().name(name.to_owned()).spawn(work);
        let failed = |error| tracing::error!("there is no thread that {what}: {error}");
        Some(Self { what, stop, thread: thread.map_err(failed).ok()? })
    }

    /// Ends them all, each after what it has at hand.
    pub(crate) fn end(duties: impl IntoIterator<Item = Option<Self>>) {
        let told = |duty: Self| {
            drop(duty.stop);
            (duty.what, duty.thread)
        };
        let ending: Vec<_> = duties.into_iter().flatten().map(told).collect();
        for (what, thread) in ending {
            if thread.join().is_err() {
                tracing::error!("the thread that {what} has panicked");
            }
        }
    }
}
