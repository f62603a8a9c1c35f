//! Deleting: what the rules want once a minute, what somebody asks for, and both without a daemon.
//!
//! ```text
//!  catalog ─► pieces ─► rules ─► steps ─┐
//!  a person ────────────────────────────┴─► entry `deleted` ─► keys gone ─► certificate ─► space
//! ```
//! Whatever is planned is a list of lives; whatever is done is done to these lives and no others.
//! What cannot be written down is not deleted.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use wirevault_config::{RetentionAction, RetentionRule};
use wirevault_format::LifeId;
use wirevault_format::table::SegmentState;
use wirevault_index::{Catalog, KeySource, Segment};
use wirevault_lifecycle::audit::Who;
use wirevault_lifecycle::certificate::{Certificate, Erased, Erasure};
use wirevault_lifecycle::retention::{Action, Match, Piece, Rule, Step, plan};
use wirevault_query::matching_chunks;
use wirevault_storage::{Deletion, Store};
use wirevault_telemetry::clock::{Clock, SystemClock};

use crate::access::Asker;
use crate::api::{self, ApplyBody, DeleteBody, Deletions};
use crate::audit::Audit;
use crate::server::App;
use crate::{DaemonError, answers};

/// How often the rules are asked.
const PERIOD: Duration = Duration::from_secs(60);
/// Segments deleted at a time: each batch rewrites a key ring while no segment opens.
const BATCH: usize = 64;

/// The configured rules, and what they have learnt of segments.
pub struct Rules {
    rules: Vec<Rule>,
    known: Mutex<Known>,
}

/// What never changes of a closed segment and takes reading to find out.
#[derive(Default)]
struct Known {
    interfaces: HashMap<LifeId, Option<Vec<String>>>,
    /// By life and number of the rule.
    matches: HashMap<(LifeId, String), Match>,
}

impl Rules {
    /// Rules of a configuration.
    pub fn new(rules: &[RetentionRule]) -> Self {
        let rule = |rule: &RetentionRule| Rule {
            name: rule.name.clone(),
            action: match rule.action {
                RetentionAction::Delete => Action::Delete,
                RetentionAction::Keep => Action::Keep,
            },
            age: rule.age,
            size_bytes: rule.size_bytes,
            interface: rule.interface.clone(),
            flows: rule.flows.clone(),
        };
        Self { rules: rules.iter().map(rule).collect(), known: Mutex::default() }
    }

    /// Rules of the configuration in this file.
    ///
    /// # Errors
    /// `Config`.
    pub fn load(path: &Path) -> Result<Self, DaemonError> {
        Ok(Self::new(&wirevault_config::load(path)?.retention))
    }

    /// What the rules want deleted of this catalog.
    pub fn plan(&self, catalog: &Catalog, now_ns: u64) -> Vec<Step> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let segments: HashMap<u64, &Arc<Segment>> =
            closed(catalog).map(|segment| (segment.entry.ordinal, segment)).collect();
        let lives: HashSet<LifeId> = segments.values().map(|it| it.entry.life).collect();
        known.interfaces.retain(|life, _| lives.contains(life));
        known.matches.retain(|(life, _), _| lives.contains(life));
        let Known { interfaces, matches } = &mut *known;
        let asks = self.rules.iter().any(|rule| rule.interface.is_some());
        let pieces: Vec<Piece> = closed(catalog)
            .map(|segment| {
                let read = || asks.then(|| names(segment)).flatten();
                let interfaces = interfaces.entry(segment.entry.life).or_insert_with(read);
                Piece { interfaces: interfaces.clone(), ..piece(segment) }
            })
            .collect();
        plan(&self.rules, &pieces, now_ns, &mut |piece, filter| {
            let Some(segment) = segments.get(&piece.ordinal) else { return Match::Some };
            let key = (segment.entry.life, filter.to_owned());
            *matches.entry(key).or_insert_with(|| matching(segment, filter))
        })
    }
}

fn closed(catalog: &Catalog) -> impl Iterator<Item = &Arc<Segment>> {
    catalog.segments.iter().filter(|segment| segment.entry.state == SegmentState::Closed)
}

fn piece(segment: &Segment) -> Piece {
    let entry = &segment.entry;
    Piece {
        ordinal: entry.ordinal,
        life: entry.life.to_string(),
        closed_ns: entry.closed_ns,
        bytes: entry.file_bytes,
        packets: entry.packets,
        times_ns: entry.times_ns,
        interfaces: None,
    }
}

/// Names of a segment's interfaces; nothing if it cannot be read.
fn names(segment: &Segment) -> Option<Vec<String>> {
    let reader = segment.open().ok()?;
    let names = reader.interfaces().iter().map(|it| it.name.clone().unwrap_or_default());
    Some(names.collect())
}

/// What the index of a segment says of a filter.
fn matching(segment: &Segment, filter: &str) -> Match {
    let none = |filter: &str| {
        matching_chunks(segment, filter, 0, u64::MAX).is_ok_and(|chunks| chunks.is_empty())
    };
    if none(filter) {
        Match::None
    } else if none(&format!("not ({filter})")) {
        Match::All
    } else {
        Match::Some
    }
}

/// The segments that somebody wants deleted, oldest first.
///
/// # Errors
/// In words: one of them is not there, or not closed.
pub fn chosen(catalog: &Catalog, wanted: &DeleteBody) -> Result<Vec<Step>, String> {
    let pieces: Vec<Piece> = closed(catalog).map(|segment| piece(segment)).collect();
    let there = |ordinal: &&u64| pieces.iter().any(|piece| piece.ordinal == **ordinal);
    if let Some(absent) = wanted.segments.iter().find(|ordinal| !there(ordinal)) {
        return Err(format!(
            "there is no closed segment {absent}; `wirevault segments` lists them with their \
             numbers, which come after the `#`"
        ));
    }
    let before = |piece: &Piece| {
        let last_ns = piece.times_ns.map_or(piece.closed_ns, |(_, last_ns)| last_ns);
        wanted.before_ns.is_some_and(|before_ns| last_ns < before_ns)
    };
    let goes = |piece: &&Piece| before(piece) || wanted.segments.contains(&piece.ordinal);
    Ok(pieces.iter().filter(goes).map(|piece| piece.step("by hand")).collect())
}

/// Deletes what the steps name, so far as it is still there.
fn delete(
    store: &Store,
    audit: &Audit,
    who: &Who,
    steps: &[Step],
) -> Result<Vec<Certificate>, DaemonError> {
    let catalog = store.catalog(0);
    let lives: HashMap<String, LifeId> =
        closed(&catalog).map(|it| (it.entry.life.to_string(), it.entry.life)).collect();
    let mut certificates = Vec::new();
    for of_reason in steps.chunk_by(|a, b| a.reason == b.reason) {
        let there: Vec<_> =
            of_reason.iter().filter_map(|step| Some((step, *lives.get(&step.life)?))).collect();
        if there.is_empty() {
            continue;
        }
        for (step, _) in &there {
            audit.will_delete(who, step)?;
        }
        let lives: Vec<LifeId> = there.iter().map(|(_, life)| *life).collect();
        for deletion in store.forget(&lives)? {
            certificates.push(finish(store, audit, who, &of_reason[0].reason, &deletion)?);
        }
    }
    Ok(certificates)
}

/// Writes a deletion down and gives its space back.
fn finish(
    store: &Store,
    audit: &Audit,
    who: &Who,
    reason: &str,
    deletion: &Deletion,
) -> Result<Certificate, DaemonError> {
    let hex = |bytes: [u8; 32]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let erased = |segment: &wirevault_storage::DeletedSegment| Erased {
        segment: segment.entry.ordinal,
        life: segment.entry.life.to_string(),
        run: segment.entry.run.to_string(),
        lane: segment.entry.lane,
        packets: segment.entry.packets,
        bytes: segment.entry.file_bytes,
        times_ns: segment.entry.times_ns,
        record_ns: (segment.entry.opened_ns, segment.entry.closed_ns),
        chain: segment.chain.map(hex),
    };
    let erasure = Erasure {
        store: store.id().to_string(),
        volume: deletion.volume as u16,
        path: deletion.path.clone(),
        reason: reason.to_owned(),
        level: deletion.level.map(|level| level.to_string()),
        epoch: deletion.epoch,
        segments: deletion.segments.iter().map(erased).collect(),
    };
    let segments = erasure.segments.len();
    let certificate = audit.certify(who, erasure)?;
    store.settle(deletion)?;
    tracing::info!(segments, reason, certificate = certificate.entry, "segments were deleted");
    Ok(certificate)
}

/// Finishes what a crash left of deletions: the keys are gone already.
pub(crate) fn settle(
    store: &Store,
    audit: &Audit,
    deletions: &[Deletion],
) -> Result<(), DaemonError> {
    for deletion in deletions {
        finish(store, audit, &Who::Recorder, "begun before a crash", deletion)?;
    }
    Ok(())
}

/// Deletes in a store that nobody else has open for writing.
///
/// # Errors
/// The store cannot be opened for writing, or the deletion is cut off: opening it again, by
/// whatever writes it, finishes what was begun.
pub fn delete_offline(
    volume: &Path,
    key: &KeySource,
    steps: &[Step],
) -> Result<Vec<Certificate>, DaemonError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let (store, recovery) = Store::open_dir(volume, key, Arc::clone(&clock))?;
    let audit = Audit::open(volume, store.id(), clock)?;
    settle(&store, &audit, &recovery.deletions)?;
    let uid = nix::unistd::Uid::current().as_raw();
    let who = Who::User { uid, gid: nix::unistd::Gid::current().as_raw() };
    let mut certificates = Vec::new();
    for batch in steps.chunks(BATCH) {
        certificates.extend(delete(&store, &audit, &who, batch)?);
    }
    Ok(certificates)
}

/// Deletes while recording goes on.
fn delete_live(app: &App, who: &Who, steps: &[Step]) -> Result<Vec<Certificate>, DaemonError> {
    let mut certificates = Vec::new();
    for batch in steps.chunks(BATCH) {
        let Some(pipeline) = app.pipeline() else { break };
        certificates.extend(delete(pipeline.store(), app.audit(), who, batch)?);
    }
    Ok(certificates)
}

fn planned(app: &App, rules: &Rules) -> Vec<Step> {
    if rules.rules.is_empty() {
        return Vec::new();
    }
    let now_ns = SystemClock.unix_ns();
    app.pipeline().map_or(Vec::new(), |pipeline| rules.plan(&pipeline.catalog(), now_ns))
}

/// The thread that does what the rules say.
pub(crate) struct Keeper {
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Begins at once, and goes on every minute; keeps the head of the audit log outside as often.
    pub(crate) fn start(app: &App) -> Self {
        let (app, rules) = (app.clone(), Arc::clone(app.rules()));
        let (stop, stopped) = sync_channel(1);
        let work = move || loop {
            let steps = planned(&app, &rules);
            if let Err(error) = delete_live(&app, &Who::Recorder, &steps) {
                tracing::error!("what the rules want cannot be deleted: {}", error.chain());
            }
            app.audit().anchor();
            if stopped.recv_timeout(PERIOD) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        };
        let thread = std::thread::Builder::new().name("lifecycle".to_owned()).spawn(work);
        let failed = |error| tracing::error!("the retention rules are not followed: {error}");
        Self { stop: Some(stop), thread: thread.map_err(failed).ok() }
    }

    /// Ends it, after the deletion at hand.
    pub(crate) fn end(self) {
        drop(self.stop);
        if let Some(Err(_)) = self.thread.map(JoinHandle::join) {
            tracing::error!("the thread that follows the retention rules has panicked");
        }
    }
}

/// The questions of this module.
pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route(api::PLAN, get(show_plan))
        .route(api::APPLY, post(apply))
        .route(api::DELETE, post(delete_chosen))
}

async fn show_plan(State(app): State<App>) -> Response {
    answer(move || {
        let steps = planned(&app, app.rules());
        Ok(Deletions { steps, certificates: Vec::new() })
    })
    .await
}

async fn apply(
    State(app): State<App>,
    Extension(asker): Extension<Asker>,
    body: Result<Json<ApplyBody>, JsonRejection>,
) -> Response {
    let Json(body) = match body {
        Ok(body) => body,
        Err(rejection) => return bad_request(rejection.body_text()),
    };
    answer(move || {
        let mut steps = planned(&app, app.rules());
        if let Some(lives) = body.lives {
            steps.retain(|step| lives.contains(&step.life));
        }
        let certificates = delete_live(&app, &asker.who, &steps).map_err(|it| it.chain())?;
        Ok(Deletions { steps, certificates })
    })
    .await
}

async fn delete_chosen(
    State(app): State<App>,
    Extension(asker): Extension<Asker>,
    body: Result<Json<DeleteBody>, JsonRejection>,
) -> Response {
    let Json(body) = match body {
        Ok(body) => body,
        Err(rejection) => return bad_request(rejection.body_text()),
    };
    answer(move || {
        let pipeline = app.pipeline().ok_or("the recorder has stopped")?;
        let steps = chosen(&pipeline.catalog(), &body)?;
        drop(pipeline);
        let certificates = match body.dry_run {
            true => Vec::new(),
            false => delete_live(&app, &asker.who, &steps).map_err(|it| it.chain())?,
        };
        Ok(Deletions { steps, certificates })
    })
    .await
}

fn bad_request(text: String) -> Response {
    answers::error(StatusCode::BAD_REQUEST, text)
}

/// Works on a thread of its own: deleting waits for devices.
async fn answer(work: impl FnOnce() -> Result<Deletions, String> + Send + 'static) -> Response {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(deletions)) => Json(deletions).into_response(),
        Ok(Err(why)) => answers::error(StatusCode::UNPROCESSABLE_ENTITY, why),
        Err(error) => answers::error(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}
