//! Backups of the volume that checkpoints of the state are on, by a service of others.
//!
//! ```text
//!  every `backup.every` ─► checkpoint N ─► entry `backup`: ordered ─► order, tagged with N
//!       ┌────────── not yet ◄──────────────────────────┐               │
//!       └─► a pause, longer each time ─► how does it stand? ◄── job ◄──┘
//!                                              └─► done, or failed: entry `backup`
//! ```
//! The service takes its copy some time after the order, an hour and more if it is busy. Nothing
//! waits for that: every instant of the folder can be restored from, and has N or a newer one.
//! `backup.json` beside the audit log holds the job, so that a restart asks on and orders no other.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wirevault_cloud::backup::{BackupFailure, BackupService, JobState, Order};
use wirevault_config::Config;
use wirevault_lifecycle::audit::{Event, Who};
use wirevault_lifecycle::holds::replace;
use wirevault_telemetry::clock::{Clock, SystemClock};

use crate::api::BackupStatus;
use crate::duty::Duty;
use crate::lifecycle::audit::Audit;
use crate::lifecycle::snapshots::Checkpoints;
use crate::server::App;

/// Name of the file that holds the job.
const FILE: &str = "backup.json";
/// Pause before a job is first asked for, and the longest one: a snapshot takes minutes.
const POLL_MIN: Duration = Duration::from_secs(30);
const POLL_MAX: Duration = Duration::from_secs(5 * 60);
/// Pause after an order that came to nothing.
const RETRY: Duration = Duration::from_secs(15 * 60);

/// Orders backups, one at a time.
pub(crate) struct Backups {
    options: wirevault_config::Backup,
    service: Arc<dyn BackupService>,
    checkpoints: Arc<Checkpoints>,
    store: String,
    file: PathBuf,
    known: Mutex<Known>,
}

/// What is known of backups.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Known {
    /// The job that is under way.
    job: Option<Job>,
    /// The newest one that came to a recovery point.
    completed: Option<Job>,
    #[serde(skip)]
    state: String,
    #[serde(skip)]
    trouble: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Job {
    id: String,
    /// The last checkpoint before the order.
    checkpoint: u64,
    /// When it was ordered, Unix ns.
    ordered_ns: u64,
}

impl Backups {
    /// As the configuration wants them; `None` if it wants none. Nobody is asked yet.
    pub(crate) fn of(
        config: &Config,
        service: Option<Arc<dyn BackupService>>,
        checkpoints: Option<&Arc<Checkpoints>>,
        (store, audit): (String, &Audit),
    ) -> Option<Self> {
        let options = config.backup.clone()?;
        let Some(service) = service else {
            tracing::error!("`backup` is not followed: this build has no AWS SDK");
            return None;
        };
        let checkpoints = Arc::clone(checkpoints?);
        let file = audit.folder().join(FILE);
        let known = std::fs::read(&file).ok();
        let known = known.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        Some(Self { options, service, checkpoints, store, file, known: Mutex::new(known) })
    }

    /// As the API tells it.
    pub(crate) fn status(&self) -> BackupStatus {
        let known = self.known();
        let Known { job, completed, state, trouble } = known;
        BackupStatus {
            vault: self.options.vault.clone(),
            resource: self.options.resource.clone(),
            job: job.map(|job| job.id),
            state,
            checkpoint: completed.as_ref().map(|job| job.checkpoint),
            taken: completed.map(|job| job.ordered_ns.into()),
            trouble,
        }
    }

    /// Why the recorder is degraded, if backups are the reason: the last order came to nothing, or
    /// the newest recovery point is older than it should get.
    pub(crate) fn reason(&self, now_ns: u64, started_ns: u64) -> Option<String> {
        self.known().trouble.or_else(|| {
            let overdue = self.overdue(now_ns, started_ns);
            let hours = self.age(now_ns, started_ns).as_secs() / 3600;
            let why = || format!("the state was last backed up {hours} hours ago");
            (!overdue.is_zero()).then(why)
        })
    }

    /// By how much the newest recovery point is older than it should get.
    pub(crate) fn overdue(&self, now_ns: u64, started_ns: u64) -> Duration {
        let late = self.options.every + self.options.every / 12 + POLL_MAX;
        self.age(now_ns, started_ns).saturating_sub(late)
    }

    fn age(&self, now_ns: u64, started_ns: u64) -> Duration {
        let since_ns = self.known().completed.map_or(started_ns, |job| job.ordered_ns);
        Duration::from_nanos(now_ns.saturating_sub(since_ns))
    }

    fn known(&self) -> Known {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is to be done now, and the pause after it.
    fn step(&self, audit: &Audit, asked: &mut u32) -> Duration {
        let known = self.known();
        match known.job {
            Some(job) => self.ask(audit, job, asked),
            None => {
                let now_ns = SystemClock.unix_ns();
                let last_ns = known.completed.map_or(0, |job| job.ordered_ns);
                let age = Duration::from_nanos(now_ns.saturating_sub(last_ns));
                match self.options.every.checked_sub(age) {
                    Some(rest) if !rest.is_zero() => rest,
                    _ => self.order(audit, now_ns),
                }
            }
        }
    }

    fn order(&self, audit: &Audit, ordered_ns: u64) -> Duration {
        let failed = |why: String| {
            self.change(|known| known.trouble = Some(format!("no backup was begun: {why}")));
            RETRY.min(self.options.every)
        };
        let checkpoint = match self.checkpoints.take(audit, &Who::Recorder) {
            Ok(taken) => taken.checkpoint.unwrap_or_default(),
            Err(why) => return failed(why),
        };
        note(audit, checkpoint, None, "ordered", None);
        let options = &self.options;
        let order = Order {
            vault: options.vault.clone(),
            role: options.role.clone(),
            resource: options.resource.clone(),
            retention: options.retention,
            store: self.store.clone(),
            checkpoint,
            token: format!("{}-{checkpoint}", self.store),
        };
        match self.service.start(&order) {
            Ok(id) => {
                tracing::info!(checkpoint, job = id, "a backup of the state is under way");
                note(audit, checkpoint, Some(&id), "started", None);
                let job = Some(Job { id, checkpoint, ordered_ns });
                self.change(|known| {
                    (known.job, known.trouble) = (job, None);
                    known.state = "started".to_owned();
                });
                self.pause(0)
            }
            Err(failure) => {
                note(audit, checkpoint, None, "refused", Some(failure.to_string()));
                failed(failure.to_string())
            }
        }
    }

    fn ask(&self, audit: &Audit, job: Job, asked: &mut u32) -> Duration {
        *asked += 1;
        let Job { id, checkpoint, .. } = &job;
        match self.service.describe(&self.options.resource, id) {
            Ok(JobState::Going(word)) => {
                self.change(|known| {
                    (known.state, known.trouble) = (word.to_lowercase(), None);
                });
                self.pause(*asked)
            }
            Ok(JobState::Completed) => {
                tracing::info!(checkpoint, job = id, "the state is backed up");
                note(audit, *checkpoint, Some(id), "completed", None);
                self.change(|known| {
                    known.state = "completed".to_owned();
                    (known.trouble, known.job) = (None, None);
                    known.completed = Some(job);
                });
                *asked = 0;
                Duration::ZERO
            }
            Ok(JobState::Failed(why)) => {
                note(audit, *checkpoint, Some(id), "failed", Some(why.clone()));
                *asked = 0;
                self.gave_up(format!("backup job {id} came to nothing: {why}"))
            }
            Err(BackupFailure { code, .. }) if code == "ResourceNotFoundException" => {
                note(audit, *checkpoint, Some(id), "unknown", None);
                *asked = 0;
                self.gave_up(format!("AWS Backup does not know job {id} any more"))
            }
            Err(failure) => {
                self.change(|known| known.trouble = Some(failure.to_string()));
                self.pause(*asked)
            }
        }
    }

    fn gave_up(&self, why: String) -> Duration {
        tracing::error!("{why}");
        self.change(|known| {
            known.state = "failed".to_owned();
            (known.trouble, known.job) = (Some(why), None);
        });
        RETRY.min(self.options.every)
    }

    /// Twice as long after each question.
    fn pause(&self, asked: u32) -> Duration {
        let pause = POLL_MIN.saturating_mul(2u32.saturating_pow(asked)).min(POLL_MAX);
        pause.min(self.options.every)
    }

    /// Changes what is known, and keeps what a restart needs of it.
    fn change(&self, change: impl FnOnce(&mut Known)) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let before = (known.job.clone(), known.completed.clone());
        change(&mut known);
        if before == (known.job.clone(), known.completed.clone()) {
            return;
        }
        let kept = serde_json::to_vec(&*known).map_err(std::io::Error::from);
        if let Err(error) = kept.and_then(|text| replace(&self.file, &text)) {
            let file = self.file.display();
            tracing::error!("a restart will order another backup: {file}: {error}");
        }
    }
}

fn note(audit: &Audit, checkpoint: u64, job: Option<&str>, state: &str, why: Option<String>) {
    let (job, state) = (job.map(ToOwned::to_owned), state.to_owned());
    audit.note(Event::Backup { checkpoint, job, state, why });
}

/// Begins to order them, and to ask how they stand. Without `backup` in the configuration there is
/// nothing to do. A job that is under way at the end goes on without us.
pub(crate) fn ordering(app: &App) -> Option<Duty> {
    let (app, backups) = (app.clone(), app.facts().backups.clone()?);
    let mut asked = 0;
    Duty::start("backup", "orders backups", move |_| backups.step(app.audit(), &mut asked))
}
