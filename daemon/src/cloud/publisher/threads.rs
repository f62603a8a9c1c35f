//! The two threads of the publisher: one samples, one sends. The second outlives the first where a
//! machine that stood by becomes the recorder.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use wirevault_format::Cause;
use wirevault_pipeline::{Pipeline, WriterShared};
use wirevault_telemetry::books::Snapshot;
use wirevault_telemetry::clock::{Clock, SECOND_NS, SystemClock};
use wirevault_telemetry::metrics::MetricsPage;
use wirevault_telemetry::publish::Sampler;

use super::{Doubt, Publishing};
use crate::report::metrics;
use crate::server::App;

/// How often a page is taken.
const SAMPLE: Duration = Duration::from_secs(1);
/// Longest pause between two attempts.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// After so long the end of the recorder begins no further call.
const LAST_ROUND: Duration = Duration::from_secs(3);

/// The threads of a running recorder, or of a machine that stands by.
pub(crate) struct Publisher {
    running: Option<Running>,
}

struct Running {
    stop: SyncSender<()>,
    sampling: JoinHandle<Sampler>,
    sending: Sending,
}

/// The thread that sends what is spooled. It does not know who samples.
pub(crate) struct Sending {
    pub(crate) publishing: Arc<Publishing>,
    /// Something was spooled.
    poke: SyncSender<()>,
    thread: JoinHandle<()>,
}

impl Publisher {
    /// Begins; without a service there is nothing to do. `sending` is left of the time before.
    pub(crate) fn start(app: &App, sending: Option<Sending>) -> Self {
        let Some(publishing) = app.facts().publishing.clone() else {
            return Self { running: None };
        };
        let begun = sending.map_or_else(|| Sending::start(&publishing), Ok).and_then(|sending| {
            let (stop, stopped) = sync_channel(1);
            let (app, of_sampler) = (app.clone(), Arc::clone(&publishing));
            let poke = sending.poke.clone();
            let sampling = thread::Builder::new()
                .name("sample".to_owned())
                .spawn(move || sample(&app, &of_sampler, &stopped, &poke))?;
            Ok(Running { stop, sampling, sending })
        });
        let failed = |error| publishing.trouble(format!("there is no thread for it: {error}"));
        Self { running: begun.map_err(failed).ok() }
    }

    /// Ends the sampling, while the pipeline can still be looked at.
    pub(crate) fn close(self, app: &App) -> Closing {
        let Some(Running { stop, sampling, sending }) = self.running else {
            return Closing { ending: None };
        };
        drop(stop);
        let Ok(sampler) = sampling.join() else {
            sending.publishing.trouble("the thread that samples has panicked".to_owned());
            return Closing { ending: None };
        };
        let page = metrics::gather(app).unwrap_or_default();
        let pipeline = app.pipeline();
        let views = pipeline.as_deref().map_or(&[][..], Pipeline::volumes);
        let volumes = views.iter().map(|view| Arc::clone(&view.shared)).collect();
        Closing { ending: Some(Ending { sampler, page, volumes, sending }) }
    }
}

impl Sending {
    fn start(publishing: &Arc<Publishing>) -> io::Result<Self> {
        let (poke, pokes) = sync_channel(1);
        let of_sender = Arc::clone(publishing);
        let thread = thread::Builder::new()
            .name("publish".to_owned())
            .spawn(move || send(&of_sender, &pokes))?;
        Ok(Self { publishing: Arc::clone(publishing), poke, thread })
    }

    fn end(self) {
        drop(self.poke);
        if self.thread.join().is_err() {
            tracing::error!("the thread that publishes metrics has panicked");
        }
    }
}

/// A publisher whose last page is still to be completed.
pub(crate) struct Closing {
    ending: Option<Ending>,
}

struct Ending {
    sampler: Sampler,
    page: MetricsPage,
    volumes: Vec<Arc<WriterShared>>,
    sending: Sending,
}

impl Closing {
    /// Publishes the last period, with the books as they were closed. What cannot be sent at once
    /// stays on disk for the next start.
    pub(crate) fn end(self, books: &[Snapshot]) {
        if let Some(ending) = self.ending {
            ending.spool(books).end();
        }
    }

    /// Leaves the last period of a machine that stood by to the recorder that it becomes. Waits for
    /// no call.
    pub(crate) fn hand_over(self) -> Option<Sending> {
        Some(self.ending?.spool(&[]))
    }
}

impl Ending {
    /// Writes the last period down.
    fn spool(mut self, books: &[Snapshot]) -> Sending {
        let now_ns = SystemClock.unix_ns();
        for books in books {
            self.page.books(books, now_ns, |at| Cause::ALL.get(at).map(|cause| cause.name()));
        }
        for (number, volume) in self.volumes.iter().enumerate() {
            metrics::writer(&mut self.page, number, volume);
        }
        let before = self.sampler.take(&self.page, now_ns / SECOND_NS);
        let last = [before, self.sampler.close()];
        last.into_iter().flatten().for_each(|period| self.sending.publishing.add(period));
        self.sending
    }
}

fn sample(
    app: &App,
    publishing: &Publishing,
    stopped: &Receiver<()>,
    poke: &SyncSender<()>,
) -> Sampler {
    let mut sampler = Sampler::new(publishing.period.as_secs());
    loop {
        // Without the pipeline there are no counters; it goes only after this thread.
        if let Ok(page) = metrics::gather(app)
            && let Some(period) = sampler.take(&page, SystemClock.unix_ns() / SECOND_NS)
        {
            publishing.add(period);
            // A sender that was poked already needs no other poke.
            let _ = poke.try_send(());
        }
        if stopped.recv_timeout(SAMPLE) != Err(RecvTimeoutError::Timeout) {
            return sampler;
        }
    }
}

/// Sends when its turn comes after something was spooled, and now and then what could not be sent.
/// A last time when the recorder ends.
fn send(publishing: &Publishing, pokes: &Receiver<()>) {
    let mut doubt = Doubt::default();
    let retry = publishing.period.min(RETRY_MAX);
    while waited(pokes, publishing.turn) {
        publishing.round(&mut doubt, None);
        if pokes.recv_timeout(retry) == Err(RecvTimeoutError::Disconnected) {
            break;
        }
    }
    publishing.round(&mut doubt, Some(Instant::now() + LAST_ROUND));
}

/// Waits, whatever is spooled meanwhile. Whether to go on: at the end it returns at once.
fn waited(pokes: &Receiver<()>, pause: Duration) -> bool {
    let until = Instant::now() + pause;
    loop {
        match pokes.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_waited_for_and_ends_with_the_recorder() {
        let (poke, pokes) = sync_channel(1);
        poke.send(()).unwrap();
        let since = Instant::now();
        assert!(waited(&pokes, Duration::from_millis(50)));
        assert!(since.elapsed() >= Duration::from_millis(50), "what is spooled waits for its turn");
        drop(poke);
        assert!(!waited(&pokes, Duration::from_secs(3600)));
    }
}
