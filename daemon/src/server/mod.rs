//! Which question goes where, and past whom.

pub(crate) mod access;
pub(crate) mod answers;
pub(crate) mod connections;
pub(crate) mod doors;
pub(crate) mod json;
mod openapi;
pub(crate) mod revocation;
pub(crate) mod scrape;
pub(crate) mod tail;
pub(crate) mod tls;

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Instant;

use axum::body::Body;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::IncomingStream;
use axum::{Json, Router};
use tokio::sync::Semaphore;
use wirevault_lifecycle::audit::Who;
use wirevault_media::Fenced;
use wirevault_pipeline::Pipeline;
use wirevault_query::filter::EXPRESSION_BYTES_MAX;
use wirevault_seal::EpochKeys;
use wirevault_telemetry::exposition::Exposition;
use wirevault_telemetry::histogram::Latency;

use crate::api::{self, Endpoint, RecoveryStatus, SandboxStatus};
use crate::cloud::backup::Backups;
use crate::cloud::instance::Watched;
use crate::cloud::keys;
use crate::cloud::publisher::Publishing;
use crate::input::cards::CardWatch;
use crate::lifecycle::audit::Audit;
use crate::lifecycle::snapshots::{self, Checkpoints};
use crate::lifecycle::tier::Tier;
use crate::lifecycle::{Holds, Rules};
use crate::report::conditions::Conditions;
use crate::report::metrics;
use crate::report::status;
use crate::volumes::health::Devices;
use crate::volumes::replace;
use crate::volumes::shared::Shared;
use crate::volumes::standby::Stored;
use crate::volumes::vfio::Successors;
use crate::{DaemonError, lifecycle};
use access::{Access, Origin, Refusal};
use answers::{ANSWERS_MAX, TAILS_MAX};
use connections::{Answering, Connection, Door, REQUEST_MAX};
use tls::Certificates;

/// Looks at the pipeline at a time (status, metrics): each takes a thread. More wait
/// for their turn.
const LOOKS_MAX: usize = 4;

/// Bytes of a question about packets or flows at most: the longest filter that is compiled, and as
/// much again for what JSON makes of it and for the rest.
const QUESTION_BYTES_MAX: usize = 2 * EXPRESSION_BYTES_MAX;
/// Bytes of any other request at most: an order names each of tens of thousands of segments.
const ORDER_BYTES_MAX: usize = 2 << 20;

/// Mode of the socket: everybody may connect, and is told why if he may not ask.
const SOCKET_MODE: u32 = 0o666;

/// What the API answers from. Clones are handles.
#[derive(Clone)]
pub(crate) struct App {
    inner: Arc<Inner>,
}

struct Inner {
    pipeline: RwLock<Option<Arc<Pipeline>>>,
    facts: Facts,
    audit: Arc<Audit>,
    rules: RwLock<Arc<Rules>>,
    holds: Holds,
    devices: Devices,
    /// What a machine that stands by answers from.
    stored: Option<Stored>,
    conditions: Conditions,
    answers: Arc<Semaphore>,
    tails: Arc<Semaphore>,
    looks: Arc<Semaphore>,
    questions: Questions,
    cancels: Mutex<Vec<Weak<AtomicBool>>>,
    stopping: AtomicBool,
}

/// What does not change while the recorder runs.
pub(crate) struct Facts {
    /// When it started, ns.
    pub(crate) started_ns: u64,
    /// What the start had to repair.
    pub(crate) recovery: RecoveryStatus,
    /// What is not as it should be on this machine.
    pub(crate) notes: Vec<String>,
    /// What is shown over TLS, if anything is.
    pub(crate) certificates: Option<Arc<Certificates>>,
    /// The device, if two machines have it.
    pub(crate) shared: Option<Arc<Shared>>,
    /// The store's key, if a service keeps it.
    pub(crate) keys: Option<Arc<EpochKeys>>,
    /// Checkpoints of the state, if the configuration wants them.
    pub(crate) snapshots: Option<Arc<Checkpoints>>,
    /// Where metrics are published, if they are.
    pub(crate) publishing: Option<Arc<Publishing>>,
    /// Opens volumes that take the place of others, where this machine writes any.
    pub(crate) successors: Option<Successors>,
    /// What was given up; nothing while it stands by.
    pub(crate) sandbox: Option<SandboxStatus>,
    /// Where closed segments go.
    pub(crate) tier: Option<Arc<Tier>>,
    /// Backups of the state, if the configuration wants them.
    pub(crate) backups: Option<Arc<Backups>>,
    /// The machine, if a cloud tells it of itself.
    pub(crate) instance: Option<Arc<Watched>>,
    /// The network cards that packets come in by.
    pub(crate) cards: CardWatch,
}

/// Counters of questions.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    pub(crate) running: AtomicU64,
    pub(crate) answered: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) matched_packets: AtomicU64,
    pub(crate) duration: Latency,
}

impl App {
    /// Of a machine that records.
    pub(crate) fn recording(
        pipeline: Pipeline,
        devices: Devices,
        facts: Facts,
        audit: Arc<Audit>,
        (rules, holds): (Rules, Holds),
    ) -> Self {
        Self::of(Some(pipeline), None, devices, facts, audit, (rules, holds))
    }

    /// Of a machine that stands by.
    pub(crate) fn standing_by(
        stored: Stored,
        facts: Facts,
        audit: Arc<Audit>,
        holds: Holds,
    ) -> Self {
        Self::of(None, Some(stored), Devices::none(), facts, audit, (Rules::new(&[]), holds))
    }

    fn of(
        pipeline: Option<Pipeline>,
        stored: Option<Stored>,
        devices: Devices,
        facts: Facts,
        audit: Arc<Audit>,
        (rules, holds): (Rules, Holds),
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                devices,
                stored,
                conditions: Conditions::default(),
                pipeline: RwLock::new(pipeline.map(Arc::new)),
                facts,
                audit,
                rules: RwLock::new(Arc::new(rules)),
                holds,
                answers: Arc::new(Semaphore::new(ANSWERS_MAX)),
                tails: Arc::new(Semaphore::new(TAILS_MAX)),
                looks: Arc::new(Semaphore::new(LOOKS_MAX)),
                questions: Questions::default(),
                cancels: Mutex::new(Vec::new()),
                stopping: AtomicBool::new(false),
            }),
        }
    }

    /// The pipeline, unless it was taken away to be ended. Holders let go of it soon.
    pub(crate) fn pipeline(&self) -> Option<Arc<Pipeline>> {
        self.inner.pipeline.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the pipeline away; later questions are told that the recorder has stopped.
    pub(crate) fn take_pipeline(&self) -> Option<Arc<Pipeline>> {
        self.inner.pipeline.write().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The store that another machine writes, while this one stands by.
    pub(crate) fn stored(&self) -> Option<&Stored> {
        self.inner.stored.as_ref()
    }

    /// Why this machine may not write the shared volume any more.
    pub(crate) fn lost(&self) -> Option<&Fenced> {
        self.inner.facts.shared.as_ref()?.lost()
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.inner.facts
    }

    /// Where closed segments go, if anywhere.
    pub(crate) fn tier(&self) -> Option<&Tier> {
        self.inner.facts.tier.as_deref()
    }

    pub(crate) fn audit(&self) -> &Audit {
        &self.inner.audit
    }

    pub(crate) fn conditions(&self) -> &Conditions {
        &self.inner.conditions
    }

    /// The retention rules that hold now.
    pub(crate) fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.inner.rules.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From here on these hold.
    pub(crate) fn set_rules(&self, rules: Rules) {
        *self.inner.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
    }

    pub(crate) fn holds(&self) -> &Holds {
        &self.inner.holds
    }

    pub(crate) fn devices(&self) -> &Devices {
        &self.inner.devices
    }

    pub(crate) fn questions(&self) -> &Questions {
        &self.inner.questions
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.inner.stopping.load(Ordering::Relaxed)
    }

    /// Says in the status that the recorder drains.
    pub(crate) fn set_stopping(&self) {
        self.inner.stopping.store(true, Ordering::Relaxed);
    }

    /// Ends every answer that is being made.
    pub(crate) fn cancel_answers(&self) {
        self.inner.answers.close();
        self.inner.tails.close();
        let mut cancels = self.inner.cancels.lock().unwrap_or_else(PoisonError::into_inner);
        for cancel in cancels.drain(..).filter_map(|cancel| cancel.upgrade()) {
            cancel.store(true, Ordering::Relaxed);
        }
    }

    /// Remembers to cancel this answer when the recorder stops.
    pub(crate) fn cancel_at_stop(&self, cancel: &Arc<AtomicBool>) {
        let mut cancels = self.inner.cancels.lock().unwrap_or_else(PoisonError::into_inner);
        cancels.retain(|known| known.strong_count() > 0);
        cancels.push(Arc::downgrade(cancel));
    }

    /// The places for answers that end.
    pub(crate) fn answers(&self) -> &Arc<Semaphore> {
        &self.inner.answers
    }

    /// The places for live views, which do not end by themselves.
    pub(crate) fn tails(&self) -> &Arc<Semaphore> {
        &self.inner.tails
    }
}

/// Who is at the other end, and what he is being answered.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    origin: Origin,
    answering: Answering,
}

impl Peer {
    pub(crate) fn of<S>(connection: &Connection<S>) -> Self {
        Self { origin: connection.origin.clone(), answering: connection.answering.clone() }
    }
}

impl Connected<IncomingStream<'_, Door>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Door>) -> Self {
        Self::of(stream.io())
    }
}

/// All questions and who may ask them.
pub(crate) fn router(app: App, access: Arc<Access>) -> Router {
    Router::new()
        .route(api::STATUS, get(show_status))
        .route(api::SEGMENTS, get(answers::segments))
        .route(api::METRICS, get(show_metrics))
        .route(api::QUERY, post(answers::query))
        .route(api::FLOWS, post(answers::flow_rows))
        .route(api::TAIL, get(tail::watch))
        .route(api::OPENAPI, get(openapi::show))
        .merge(lifecycle::routes())
        .merge(replace::routes())
        .merge(keys::routes())
        .merge(snapshots::routes())
        .layer(middleware::from_fn_with_state((app.clone(), access), admit))
        .layer(middleware::from_fn(answered))
        .with_state(app)
}

/// Takes the whole request first, which has its limit of time, and then notes for as long as the
/// answer takes that the connection is not idle.
pub(crate) async fn answered(
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let (head, body) = request.into_parts();
    let bytes_max = match head.uri.path() {
        api::QUERY | api::FLOWS => QUESTION_BYTES_MAX,
        _ => ORDER_BYTES_MAX,
    };
    let body = match axum::body::to_bytes(body, bytes_max).await {
        Ok(body) => body,
        Err(failed) => {
            let text = format!(
                "the request cannot be read: {failed}; it may have {bytes_max} bytes and \
                 take {} s",
                REQUEST_MAX.as_secs()
            );
            return answers::error(StatusCode::BAD_REQUEST, text);
        }
    };
    let answer = peer.answering.begin();
    let response = next.run(Request::from_parts(head, Body::from(body))).await;
    answer.until_the_end_of(response)
}

/// Lets nobody through whose role does not reach, and tells those behind who asks. What is not in
/// the table of the API, path and method, goes no further: the router would have HEAD answered by
/// whoever answers GET, without the role that GET needs.
async fn admit(
    State((app, access)): State<(App, Arc<Access>)>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    mut request: Request,
    next: Next,
) -> Response {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let path = request.extensions().get::<MatchedPath>().map_or(uri.path(), MatchedPath::as_str);
    let endpoint = api::ENDPOINTS.iter().find(|it| it.path == path && it.method == method.as_str());
    tracing::trace!(who = peer.origin.name(), path, "a question");
    let here = app.stored().is_none() || api::OF_STANDBY.contains(&path);
    let asks = format!("{method} {uri}");
    let may = move || {
        let asker = access.admit(&peer.origin, Instant::now());
        let asker = asker.and_then(|asker| match endpoint {
            Some(Endpoint { method, path, role, .. }) if asker.role < *role => {
                let (name, has) = (peer.origin.name(), asker.role);
                let why = format!("{name} has the role {has}; {method} {path} needs {role}");
                Err(Refusal::Denied(Box::new(asker.who), why))
            }
            _ => Ok(asker),
        });
        if let Err(Refusal::Denied(who, why) | Refusal::TooOften(who, why)) = &asker {
            app.audit().denied(Who::clone(who), asks, why);
        }
        asker
    };
    // The user database may be asked and the audit log written, which blocks.
    match tokio::task::spawn_blocking(may).await {
        Ok(Ok(_)) if endpoint.is_none() => not_in_the_table(&method, uri.path()),
        Ok(Ok(_)) if !here => {
            let why = "this machine stands by; ask the one that writes the store".to_owned();
            answers::error(StatusCode::SERVICE_UNAVAILABLE, why)
        }
        Ok(Ok(asker)) => {
            request.extensions_mut().insert(asker);
            next.run(request).await
        }
        Ok(Err(Refusal::Denied(_, why))) => answers::error(StatusCode::FORBIDDEN, why),
        Ok(Err(Refusal::TooOften(_, why))) => answers::too_many(why),
        Err(error) => {
            let why = format!("whether this may be asked is not known: {error}");
            answers::error(StatusCode::FORBIDDEN, why)
        }
    }
}

async fn show_status(State(app): State<App>) -> Response {
    look(app, |app| status::live(&app).map(|report| Json(report).into_response())).await
}

pub(crate) async fn show_metrics(State(app): State<App>, headers: HeaderMap) -> Response {
    let accept = headers.get_all(header::ACCEPT).iter().filter_map(|it| it.to_str().ok());
    let form = Exposition::wanted(&accept.collect::<Vec<_>>().join(","));
    look(app, move |app| {
        let page = form.write(metrics::gather(&app)?);
        Ok(([(header::CONTENT_TYPE, form.content_type())], page).into_response())
    })
    .await
}

/// Looks at the pipeline on a thread of its own: making a page takes a while.
async fn look(
    app: App,
    show: impl FnOnce(App) -> Result<Response, String> + Send + 'static,
) -> Response {
    // It is never closed.
    let place = Arc::clone(&app.inner.looks).acquire_owned().await;
    let looking = tokio::task::spawn_blocking(move || {
        let _place = place;
        show(app)
    });
    match looking.await {
        Ok(Ok(response)) => response,
        Ok(Err(why)) => answers::error(StatusCode::SERVICE_UNAVAILABLE, why),
        Err(error) => answers::error(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// Says that there is no such path, or which method it takes.
fn not_in_the_table(method: &Method, path: &str) -> Response {
    let Some(known) = api::ENDPOINTS.iter().find(|it| it.path == path) else {
        let text = format!("there is no {path}; see the documentation of the API");
        return answers::error(StatusCode::NOT_FOUND, text);
    };
    let text = format!("{path} does not take {method}, but {}", known.method);
    let allow = [(header::ALLOW, HeaderValue::from_static(known.method))];
    (allow, answers::error(StatusCode::METHOD_NOT_ALLOWED, text)).into_response()
}

/// Makes the socket. One that nobody answers on is a leftover and is replaced.
///
/// # Errors
/// `SocketInUse` if somebody answers, `Socket` if it cannot be made.
pub(crate) fn bind(path: &Path) -> Result<std::os::unix::net::UnixListener, DaemonError> {
    let failed = |step: &'static str| {
        let path = path.to_owned();
        move |source: io::Error| DaemonError::Socket { path, step, source }
    };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed("making its directory"))?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(DaemonError::SocketInUse { path: path.to_owned() });
            }
            std::fs::remove_file(path).map_err(failed("removing the one left over"))?;
        }
        Ok(_) => {
            let source = io::Error::from(io::ErrorKind::AlreadyExists);
            return Err(failed("looking at what is there, which is no socket,")(source));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("looking at what is there")(error)),
    }
    let listener = std::os::unix::net::UnixListener::bind(path).map_err(failed("binding"))?;
    let mode = std::fs::Permissions::from_mode(SOCKET_MODE);
    std::fs::set_permissions(path, mode).map_err(failed("setting its mode"))?;
    listener.set_nonblocking(true).map_err(failed("setting it up"))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_left_over_is_replaced_and_one_in_use_is_not() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("run/s.sock");
        let first = bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, SOCKET_MODE);
        assert!(matches!(bind(&path), Err(DaemonError::SocketInUse { .. })));
        drop(first);
        drop(bind(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "mine").unwrap();
        let error = bind(&path).unwrap_err();
        assert!(error.chain().contains("no socket"), "{}", error.chain());
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    }
}
