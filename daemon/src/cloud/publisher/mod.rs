//! The publisher: metrics to a service such as CloudWatch, past outages and restarts.
//!
//! ```text
//!  thread `sample`, each second ─► metrics page ─► Sampler ─► a period is over ─► spool (files)
//!  thread `publish`: spool ─► newest first, one call each ─► MetricSink
//! ```
//! Two threads (`threads`), because a call may take seconds and a second must not be missed.
//! Neither holds anything that recording or answering waits for. The spool is a folder (`spool`).
//!
//! **What is counted once.** A period is on disk before it is sent, and is sent once. If the answer
//! is lost, or the process ends meanwhile, nobody knows whether it arrived, and the service has no
//! way to send the same thing twice without counting it twice. So it is *in doubt*: after a while
//! the service is asked for the period's marker, and it is sent again only if that is not there.
//! Until then nothing else is sent, so there is one doubt at most. A process that is killed loses
//! the growth of its unfinished period; one that ends loses nothing, and what it could not send the
//! next one sends.
//!
//! **Turns.** Periods of all appliances end with the same second, since CloudWatch sums up whole
//! minutes. So that a fleet does not call in that second, each waits for a while of its own first,
//! which its name decides.
//!
//! **Standing by.** A machine that waits for its turn to write publishes, too: that it is there,
//! and that it has lost nothing. The sending thread goes over to the recorder with what it has.

mod spool;
mod threads;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use wirevault_cloud::MetricOptions;
use wirevault_config::CloudWatch;
use wirevault_telemetry::clock::{Clock, SECOND_NS, SystemClock};
use wirevault_telemetry::metrics::{Counter, Gauge, MetricsPage};
use wirevault_telemetry::publish::{Fate, MetricSink, Period, SinkFailure};

use crate::api::PublishStatus;
use crate::{DaemonError, host_name};
use spool::Spool;
pub(crate) use threads::{Publisher, Sending};

/// How far back periods are kept that cannot be sent.
const KEPT: Duration = Duration::from_secs(2 * 3600);
/// How long a doubt rests at most before the service is asked: what it was sent it may show late.
const DOUBT_RESTS: Duration = Duration::from_secs(60);
/// A doubt older than this ends without an answer: the service keeps single seconds for 3 hours.
const DOUBT_ENDS_S: u64 = 3 * 3600 - 600;
/// Longest turn. A period of a minute is there before half of the next one is over, and no alarm
/// looks at less than a minute.
const TURN_MAX: Duration = Duration::from_secs(30);
/// So many periods late is worth a word in the status.
const LATE: u64 = 5;

/// What the configuration says of CloudWatch; nothing if no metrics are to be published.
pub fn options(config: &CloudWatch) -> Option<MetricOptions> {
    config.publish.then(|| MetricOptions {
        namespace: config.namespace.clone(),
        appliance: config.appliance.clone().unwrap_or_else(host_name),
        region: config.region.clone(),
        endpoint: config.endpoint.clone(),
    })
}

/// Why metrics cannot be published by a build without a service for them.
pub fn no_service() -> DaemonError {
    DaemonError::Setting {
        path: "cloudwatch.publish".to_owned(),
        value: "true".to_owned(),
        problem: "this build knows no service for metrics".to_owned(),
        way_out: "build it with the feature `aws`".to_owned(),
    }
}

/// What there is to publish with, and how it stands.
#[derive(Debug)]
pub(crate) struct Publishing {
    sink: Arc<dyn MetricSink>,
    period: Duration,
    /// How long it waits before it sends.
    turn: Duration,
    spool: Spool,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    sent: u64,
    dropped: u64,
    waiting: u64,
    in_doubt: u64,
    last_s: Option<u64>,
    trouble: Option<String>,
}

impl Publishing {
    /// Periods of this length to `sink`, by way of a folder; `appliance` is whose they are.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub(crate) fn new(
        sink: Arc<dyn MetricSink>,
        (period, appliance): (Duration, &str),
        folder: &Path,
    ) -> io::Result<Self> {
        let periods_max = KEPT.as_secs() / period.as_secs().max(1);
        let spool = Spool::open(folder, usize::try_from(periods_max).unwrap_or(usize::MAX))?;
        let turn = turn_of(appliance, period);
        let publishing = Self { sink, period, turn, spool, known: Mutex::default() };
        // What the run before could not send is told from the beginning, not from the first turn.
        publishing.count();
        Ok(publishing)
    }

    /// How it stands, as the API tells it.
    pub(crate) fn status(&self) -> PublishStatus {
        let known = self.known();
        PublishStatus {
            sent_periods: known.sent,
            waiting_periods: known.waiting,
            in_doubt_periods: known.in_doubt,
            dropped_periods: known.dropped,
            last_sent: known.last_s.map(|second| (second * SECOND_NS).into()),
            trouble: known.trouble.clone(),
        }
    }

    /// Why the recorder is degraded, if its metrics are the reason.
    pub(crate) fn reason(&self) -> Option<String> {
        let known = self.known();
        let late = known.waiting + known.in_doubt >= LATE;
        let why = known.trouble.as_ref().filter(|_| late)?;
        Some(format!("metrics of {} periods are not published: {why}", known.waiting))
    }

    /// Its own numbers.
    pub(crate) fn page(&self, page: &mut MetricsPage) {
        let known = self.known();
        page.counter(Counter::PublishSentPeriods, &[], known.sent);
        page.counter(Counter::PublishDroppedPeriods, &[], known.dropped);
        let waiting = known.waiting + known.in_doubt;
        page.gauge(Gauge::PublishWaitingPeriods, &[], waiting as f64);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a period down; what cannot be written is given up.
    fn add(&self, period: Period) {
        if let Err(error) = self.spool.add(period) {
            self.known().dropped += 1;
            self.trouble(format!("the spool of metrics: {error}"));
        }
    }

    /// Sends what waits, newest first, until something is in the way or time is up.
    fn round(&self, doubt: &mut Doubt, deadline: Option<Instant>) {
        let ended = self.spool.trim().and_then(|too_old| {
            self.known().dropped += too_old;
            self.settle(doubt)
        });
        let sent = ended.and_then(|settled| if settled { self.send_all(deadline) } else { Ok(()) });
        if let Err(error) = sent {
            self.trouble(format!("the spool of metrics: {error}"));
        }
        self.count();
    }

    /// Looks how much there is to be sent.
    fn count(&self) {
        if let Ok(spooled) = self.spool.list() {
            let mut known = self.known();
            known.waiting = spooled.waiting.len() as u64;
            known.in_doubt = spooled.doubtful.len() as u64;
        }
    }

    /// Asks for what is in doubt. Gives whether nothing is any more.
    fn settle(&self, doubt: &mut Doubt) -> io::Result<bool> {
        for until_s in self.spool.list()?.doubtful {
            let now_s = SystemClock.unix_ns() / SECOND_NS;
            if now_s.saturating_sub(until_s) > DOUBT_ENDS_S {
                tracing::warn!("whether metrics until {until_s} arrived cannot be asked any more");
                self.drop_one(until_s)?;
                continue;
            }
            if !doubt.has_rested(until_s, self.period.min(DOUBT_RESTS)) {
                return Ok(false);
            }
            match self.sink.has(until_s) {
                Ok(true) => {
                    self.spool.forget(until_s)?;
                    self.arrived(until_s);
                }
                Ok(false) => self.spool.again(until_s)?,
                Err(failure) => {
                    self.trouble(failure.why);
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn send_all(&self, deadline: Option<Instant>) -> io::Result<()> {
        while let Some(until_s) = self.spool.list()?.waiting.pop() {
            if deadline.is_some_and(|deadline| Instant::now() > deadline) {
                return Ok(());
            }
            let period = match self.spool.begin(until_s) {
                Ok(period) => period,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(error),
                Err(error) => {
                    tracing::warn!("metrics until {until_s} cannot be read, and go: {error}");
                    self.drop_one(until_s)?;
                    continue;
                }
            };
            match self.sink.put(&period) {
                Ok(()) => {
                    self.spool.forget(until_s)?;
                    self.arrived(until_s);
                }
                Err(SinkFailure { why, fate }) => {
                    self.trouble(why);
                    match fate {
                        Fate::Refused => self.drop_one(until_s)?,
                        Fate::NotTaken => return self.spool.again(until_s),
                        Fate::Unknown => return Ok(()),
                    }
                }
            }
        }
        Ok(())
    }

    fn arrived(&self, until_s: u64) {
        let mut known = self.known();
        known.sent += 1;
        known.last_s = known.last_s.max(Some(until_s));
        if known.trouble.take().is_some() {
            tracing::info!("metrics are published again");
        }
    }

    fn drop_one(&self, until_s: u64) -> io::Result<()> {
        self.spool.forget(until_s)?;
        self.known().dropped += 1;
        Ok(())
    }

    fn trouble(&self, why: String) {
        let mut known = self.known();
        if known.trouble.as_ref() != Some(&why) {
            tracing::warn!("metrics are not published: {why}");
            known.trouble = Some(why);
        }
    }
}

/// Since when the period is known whose arrival is in doubt.
#[derive(Debug, Default)]
struct Doubt {
    of: Option<(u64, Instant)>,
}

impl Doubt {
    fn has_rested(&mut self, until_s: u64, rest: Duration) -> bool {
        match self.of {
            Some((known, since)) if known == until_s => since.elapsed() >= rest,
            _ => {
                self.of = Some((until_s, Instant::now()));
                false
            }
        }
    }
}

/// Half a period at most, the same at each start.
fn turn_of(appliance: &str, period: Duration) -> Duration {
    let longest = (period / 2).min(TURN_MAX);
    let mut hasher = DefaultHasher::new();
    appliance.hash(&mut hasher);
    longest.mul_f64(hasher.finish() as f64 / u64::MAX as f64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn appliances_of_a_fleet_take_turns_within_half_a_period() {
        let minute = Duration::from_secs(60);
        let turns: Vec<_> =
            (0..100).map(|number| turn_of(&format!("recorder-{number}"), minute)).collect();
        assert!(turns.iter().all(|turn| *turn <= TURN_MAX), "{turns:?}");
        let seconds: BTreeSet<_> = turns.iter().map(Duration::as_secs).collect();
        assert!(seconds.len() > 20, "{seconds:?}");
        assert_eq!(turn_of("recorder-7", minute), turns[7], "the same at each start");
        assert!(turn_of("recorder-7", Duration::from_secs(1)) <= Duration::from_millis(500));
    }
}
