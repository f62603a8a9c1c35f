//! What the cloud announces to this machine, and what is done about it.
//!
//! ```text
//!  every 5 s: notices ─► a new one: a line in the log, an entry `notice`, a reason in the status
//!                          └─► drain: close segments ─► checkpoint ─► entry `drained` ─► tier
//!                                └─► the machine goes, and `on_notice: stop`: the recorder ends
//! ```
//! Two minutes are left at most. What is in an instance store goes with it, whatever is done here:
//! closing makes segments whole for whoever can still copy them, a checkpoint says what there was,
//! and the tier takes what there is time for, copies for holds first. Off the cloud there is none.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use wirevault_cloud::instance::{Instance, Metadata, Notice, NoticeKind};
use wirevault_config::{Config, OnNotice};
use wirevault_format::LifeId;
use wirevault_lifecycle::audit::{Event, Who};
use wirevault_telemetry::clock::{Clock, SystemClock};

use crate::api::{InstanceStatus, NoticeStatus};
use crate::duty::{Duty, Rest};
use crate::lifecycle::planned;
use crate::server::App;

/// How often notices are asked for. Of the two minutes that a spot instance has, five seconds.
const PERIOD: Duration = Duration::from_secs(5);
/// Longest that a drain waits for segments to close: devices may be slow, and the checkpoint is to
/// be taken within the two minutes in any case.
const CLOSING_MAX: Duration = Duration::from_secs(45);
/// Longest that a drain takes with what it moves to the tier: of two minutes the rest is for the
/// notice's own delay, for the segment at hand and for the end.
const RESCUE_MAX: Duration = Duration::from_secs(90);
/// How often a drain looks whether they are.
const LOOK: Duration = Duration::from_millis(100);

/// The machine, watched.
pub(crate) struct Watched {
    metadata: Arc<dyn Metadata>,
    on_notice: OnNotice,
    flush_age: Duration,
    shown: Mutex<InstanceStatus>,
    wants_end: AtomicBool,
}

impl Watched {
    /// `None` off the cloud. Nobody is asked yet.
    pub(crate) fn of(config: &Config, metadata: Option<Arc<dyn Metadata>>) -> Option<Self> {
        let (on_notice, flush_age) = (config.cloud.on_notice, config.flush_age);
        let (shown, wants_end) = Default::default();
        Some(Self { metadata: metadata?, on_notice, flush_age, shown, wants_end })
    }

    /// As the API tells it.
    pub(crate) fn status(&self) -> InstanceStatus {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why the recorder is degraded: the machine may go away.
    pub(crate) fn reasons(&self) -> Vec<String> {
        let told =
            |notice: NoticeStatus| format!("the cloud announces {}: {}", notice.kind, notice.text);
        self.status().notices.into_iter().map(told).collect()
    }

    /// The machine goes, and the recorder is to end before it.
    pub(crate) fn wants_end(&self) -> bool {
        self.wants_end.load(Ordering::Relaxed)
    }

    fn change(&self, change: impl FnOnce(&mut InstanceStatus)) {
        change(&mut self.shown.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Asks who the machine is, until it is known.
    fn learn(&self) -> bool {
        match self.metadata.instance() {
            Ok(Instance { id, kind, region, zone, account, tags }) => {
                tracing::info!(id, kind, region, zone, "the cloud says which machine this is");
                let tags = tags.into_iter().collect();
                self.change(|shown| {
                    let notices = std::mem::take(&mut shown.notices);
                    let (drained, trouble) = (shown.drained.take(), None);
                    *shown = InstanceStatus {
                        id,
                        kind,
                        region,
                        zone,
                        account,
                        tags,
                        notices,
                        drained,
                        trouble,
                    };
                });
                true
            }
            Err(why) => {
                self.change(|shown| shown.trouble = Some(why));
                false
            }
        }
    }

    /// Looks for notices, and deals with those that were not there the last time.
    fn look(&self, app: &App, seen: &mut HashSet<(NoticeKind, String)>, rest: &Rest) {
        let found = match self.metadata.notices() {
            Ok(found) => found,
            Err(why) => return self.change(|shown| shown.trouble = Some(why)),
        };
        let now_ns = SystemClock.unix_ns();
        let is_new = |it: &&Notice| !seen.contains(&(it.kind, it.text.clone()));
        let new: Vec<Notice> = found.iter().filter(is_new).cloned().collect();
        *seen = found.iter().map(|it| (it.kind, it.text.clone())).collect();
        self.change(|shown| {
            shown.trouble = None;
            let there = |it: &NoticeStatus| {
                found.iter().any(|found| found.kind.name() == it.kind && found.text == it.text)
            };
            shown.notices.retain(there);
            shown.notices.extend(new.iter().map(|it| NoticeStatus {
                kind: it.kind.name().to_owned(),
                text: it.text.clone(),
                seen: now_ns.into(),
            }));
        });
        for Notice { kind, text } in &new {
            let kind = kind.name().to_owned();
            tracing::warn!(kind, text, "the cloud announces that this machine may go away");
            app.audit().note(Event::Notice { kind, text: text.clone() });
        }
        if new.is_empty() {
            return;
        }
        self.drain(app, rest);
        let goes = |it: &Notice| matches!(it.kind, NoticeKind::Spot | NoticeKind::Scaling);
        if self.on_notice == OnNotice::Stop && new.iter().any(goes) {
            tracing::warn!("the recorder ends, as `cloud.on_notice` says");
            self.wants_end.store(true, Ordering::Relaxed);
        }
    }

    /// Makes whole and durable what was taken so far: segments are closed, and then the state is
    /// saved, which names them. Recording goes on in others.
    fn drain(&self, app: &App, rest: &Rest) {
        // What lanes hold in chunks that are not full is handed on within this time.
        if !rest.wait(self.flush_age) {
            return;
        }
        let open = open_segments(app);
        if let Some(pipeline) = app.pipeline() {
            pipeline.close_segments();
        }
        let since = Instant::now();
        let mut left = open.len();
        while left > 0 && since.elapsed() < CLOSING_MAX {
            if !rest.wait(LOOK) {
                return;
            }
            left = open_segments(app).intersection(&open).count();
        }
        let snapshots = app.facts().snapshots.as_ref();
        let taken = snapshots.map(|it| it.take(app.audit(), &Who::Recorder));
        let checkpoint = taken.and_then(Result::ok).and_then(|taken| taken.checkpoint);
        let (closed, left) = ((open.len() - left) as u64, left as u64);
        tracing::warn!(
            closed,
            left,
            checkpoint,
            "drained: segments are closed, the state is saved"
        );
        app.audit().note(Event::Drained { closed, left, checkpoint });
        rescue(app, since);
        self.change(|shown| shown.drained = Some(SystemClock.unix_ns().into()));
    }
}

/// Moves to the tier, if there is one, what there is time for since the drain began.
fn rescue(app: &App, since: Instant) {
    let (Some(tier), Some(pipeline)) = (app.tier(), app.pipeline()) else { return };
    let planned = planned(app, &app.rules());
    let late = || since.elapsed() >= RESCUE_MAX || app.is_stopping();
    let (moved, left) = tier.drain(pipeline.store(), app.audit(), &Who::Recorder, &planned, &late);
    tracing::warn!(moved, left, "drained: segments were moved to the tier");
}

/// Segments with packets that lanes write now.
fn open_segments(app: &App) -> HashSet<LifeId> {
    let Some(pipeline) = app.pipeline() else { return HashSet::new() };
    let catalog = pipeline.catalog();
    catalog.segments.iter().filter(|it| it.is_live()).map(|it| it.entry.life).collect()
}

/// Begins to watch. Off the cloud there is nothing to do.
pub(crate) fn watching(app: &App) -> Option<Duty> {
    let (app, watched) = (app.clone(), app.facts().instance.clone()?);
    let (mut known, mut seen) = (false, HashSet::new());
    Duty::start("instance", "looks for notices of the cloud", move |rest| {
        known = known || watched.learn();
        watched.look(&app, &mut seen, rest);
        PERIOD
    })
}
