//! The key of a store that a service keeps: which one, how it stands, and the thread that sees to
//! it that recording never waits for the service.
//!
//! ```text
//!  thread `keys`, each second ─► a due epoch: the rings are written again
//!                             ├─► EpochKeys::tend ─► the service
//!                             └─► a change: a line in the log, an entry in the audit log
//! ```

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use wirevault_config::{Config, WhenOut};
use wirevault_index::KeySource;
use wirevault_index::error::chain;
use wirevault_lifecycle::audit::{Event, Who};
use wirevault_seal::epoch::{self, KeyChange, KeyCondition};
use wirevault_seal::{
    EpochKeys, EpochOptions, KeyProvider, KeyService, OneWayKey, SealError, ServiceKeys,
};
use wirevault_telemetry::clock::SystemClock;

use crate::api::{self, KeyStatus, RotateBody};
use crate::duty::Duty;
use crate::lifecycle::tier::Tier;
use crate::server::App;
use crate::server::access::Asker;
use crate::server::answers;
use crate::server::json::{Sent, done};

/// How often the thread looks.
const PERIOD: Duration = Duration::from_secs(1);

/// Where the key of the configured store comes from. A service is not asked yet.
///
/// # Errors
/// The public key cannot be read.
pub fn source(
    config: &Config,
    service: Option<Arc<dyn KeyService>>,
) -> Result<KeySource, SealError> {
    let policy = |policy| match policy {
        WhenOut::Extend => epoch::WhenOut::Extend,
        WhenOut::Stop => epoch::WhenOut::Stop,
        WhenOut::Seal => epoch::WhenOut::Seal,
    };
    let options = EpochOptions {
        ahead: config.kms.epochs_ahead,
        age: config.kms.epoch_age,
        when_exhausted: policy(config.kms.when_exhausted),
        when_revoked: policy(config.kms.when_revoked),
    };
    Ok(match (&config.key_file, service) {
        (Some(path), _) => KeySource::File(path.clone()),
        (None, None) => KeySource::Recorded,
        (None, Some(service)) => {
            let seal = config.kms.public_key.as_deref().map(OneWayKey::read).transpose()?;
            let seal = seal.map(|key| key.kept_as(config.kms.public_key_of.as_deref()));
            let keys = ServiceKeys::new(service, options, Arc::new(SystemClock));
            KeySource::Service(Arc::new(keys.sealing_with(seal.map(Arc::new))))
        }
    })
}

/// How it stands with the key, as the API tells it; nothing if no service keeps it.
pub(crate) fn status(app: &App) -> Option<KeyStatus> {
    let status = app.facts().keys.as_ref()?.status();
    Some(KeyStatus {
        key: status.key,
        condition: status.condition.name().to_owned(),
        epochs_ahead: status.ahead as u64,
        epoch_since: status.epoch.map(|(_, since_ns)| since_ns.into()),
        stopped: status.stopped,
        one_way: status.one_way,
        behind_in_tier: app.tier().map_or(0, Tier::behind),
        trouble: status.trouble.map(|failure| failure.to_string()),
    })
}

/// Why the recorder is degraded, if its key is the reason.
pub(crate) fn reason(keys: &EpochKeys) -> Option<String> {
    let status = keys.status();
    let bad = status.condition >= KeyCondition::Exhausted;
    status.trouble.filter(|_| bad).map(|failure| failure.to_string())
}

/// Begins to tend the key. Without a key of a service there is nothing to do.
pub(crate) fn tending(app: &App) -> Option<Duty> {
    let (app, keys) = (app.clone(), app.facts().keys.clone()?);
    Duty::start("keys", "fetches epoch keys", move |_| {
        if keys.is_due()
            && let Err(error) = turn(&app, &keys, &Who::Recorder, None)
        {
            tracing::error!("the key rings stay as they are: {error}");
        }
        keys.tend();
        tell(&app, &keys);
        PERIOD
    })
}

/// Tells what the key came to since the last time.
fn tell(app: &App, keys: &EpochKeys) {
    for KeyChange { key, from, to, trouble } in keys.changes() {
        let why = trouble.map_or_else(|| "the service answers".to_owned(), |it| it.to_string());
        let (before, now) = (from.name(), to.name());
        match to > from {
            true => tracing::warn!(from = before, to = now, "the store's key is {now}: {why}"),
            false => tracing::info!(from = before, to = now, "the store's key is {now}: {why}"),
        }
        app.audit().note(Event::KeyCondition { key, condition: now.to_owned(), why });
    }
}

/// Lets the next epoch begin, under another key if one is named, and has all rings hang from it.
fn turn(app: &App, keys: &EpochKeys, who: &Who, to: Option<&str>) -> Result<(), String> {
    let pipeline = app.pipeline().ok_or("the recorder has stopped")?;
    match to {
        Some(key) => keys.move_to(key),
        None => keys.turn(),
    }
    .map_err(|error| error.to_string())?;
    let store = pipeline.store();
    let written = match to {
        Some(_) => store.record_key(&keys.id(), &keys.key()),
        None => store.renew_rings(),
    };
    let noted = app.audit().write(who, Event::KeyTurned { key: keys.key() });
    written.map_err(|error| chain(&error))?;
    noted.map(drop).map_err(|error| error.to_string())
}

/// The questions of this module.
pub(crate) fn routes() -> Router<App> {
    Router::new().route(api::KEY, get(show)).route(api::ROTATE, post(rotate))
}

async fn show(State(app): State<App>) -> Response {
    status(&app).map_or_else(no_service, |status| Json(status).into_response())
}

async fn rotate(
    State(app): State<App>,
    Extension(asker): Extension<Asker>,
    Sent(body): Sent<RotateBody>,
) -> Response {
    let Some(keys) = app.facts().keys.clone() else { return no_service() };
    done(move || turn(&app, &keys, &asker.who, body.to.as_deref()).map(|()| status(&app))).await
}

fn no_service() -> Response {
    let why = "no service keeps this store's key: `wirevault init --kms-key` makes such a store";
    answers::error(StatusCode::CONFLICT, why.to_owned())
}
