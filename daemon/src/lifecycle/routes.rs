//! The questions about deletions and holds.

use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use wirevault_telemetry::clock::{Clock, SystemClock};

use super::deleting::{chosen, delete_live};
use super::planned;
use crate::api::{
    self, ApplyBody, DeleteBody, Deletions, DrainBody, Drained, HoldBody, ReleaseBody,
};
use crate::server::App;
use crate::server::access::Asker;
use crate::server::answers::{self, STOPPED};
use crate::server::json::{Sent, done};

/// The questions of this module.
pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route(api::PLAN, get(show_plan))
        .route(api::APPLY, post(apply))
        .route(api::DRAIN, post(drain))
        .route(api::DELETE, post(delete_chosen))
        .route(api::HOLDS, get(show_holds))
        .route(api::HOLD_ADD, post(add_hold))
        .route(api::HOLD_RELEASE, post(release_hold))
}

async fn show_plan(State(app): State<App>) -> Response {
    done(move || {
        let steps = planned(&app, &app.rules());
        Ok(Deletions { steps, ..Deletions::default() })
    })
    .await
}

async fn apply(
    State(app): State<App>,
    Extension(asker): Extension<Asker>,
    Sent(body): Sent<ApplyBody>,
) -> Response {
    done(move || {
        let mut steps = planned(&app, &app.rules());
        if let Some(lives) = body.lives {
            steps.retain(|step| lives.contains(&step.life));
        }
        let certificates = delete_live(&app, &asker.who, &steps).map_err(|it| it.chain())?;
        let stopping = || app.is_stopping();
        let moved = match app.tier().zip(app.pipeline()) {
            Some((tier, pipeline)) => {
                tier.follow(pipeline.store(), app.audit(), &asker.who, &steps, &stopping)
            }
            None => Ok(0),
        };
        let moved = moved.map_err(|it| it.chain())?;
        Ok(Deletions { steps, certificates, moved })
    })
    .await
}

async fn drain(
    State(app): State<App>,
    Extension(asker): Extension<Asker>,
    Sent(body): Sent<DrainBody>,
) -> Response {
    let Some(tier) = app.facts().tier.clone() else {
        let why = "there is no tier: `tier.url` of the configuration names one";
        return answers::error(StatusCode::CONFLICT, why.to_owned());
    };
    done(move || {
        let (began, within) = (Instant::now(), Duration::from_millis(body.within_ms));
        let late = || began.elapsed() >= within;
        let pipeline = app.pipeline().ok_or(STOPPED)?;
        let (store, planned) = (pipeline.store(), planned(&app, &app.rules()));
        let (moved, left) = tier.drain(store, app.audit(), &asker.who, &planned, &late);
        Ok(Drained { moved, left })
    })
    .await
}

async fn delete_chosen(
    State(app): State<App>,
    Extension(asker): Extension<Asker>,
    Sent(body): Sent<DeleteBody>,
) -> Response {
    done(move || {
        let pipeline = app.pipeline().ok_or(STOPPED)?;
        let steps = chosen(&pipeline.catalog(), &body)?;
        drop(pipeline);
        let certificates = match body.dry_run {
            true => Vec::new(),
            false => delete_live(&app, &asker.who, &steps).map_err(|it| it.chain())?,
        };
        Ok(Deletions { steps, certificates, moved: 0 })
    })
    .await
}

async fn show_holds(State(app): State<App>) -> Response {
    done(move || {
        let pipeline = app.pipeline().ok_or(STOPPED)?;
        Ok(app.holds().report(pipeline.store()))
    })
    .await
}

async fn add_hold(
    State(app): State<App>,
    Extension(asker): Extension<Asker>,
    Sent(body): Sent<HoldBody>,
) -> Response {
    done(move || {
        let pipeline = app.pipeline().ok_or(STOPPED)?;
        let now_ns = SystemClock.unix_ns();
        let added = app.holds().add(pipeline.store(), app.audit(), &asker.who, body, now_ns);
        added.map_err(|it| it.chain())
    })
    .await
}

async fn release_hold(
    State(app): State<App>,
    Extension(asker): Extension<Asker>,
    Sent(body): Sent<ReleaseBody>,
) -> Response {
    done(move || {
        let pipeline = app.pipeline().ok_or(STOPPED)?;
        let released = app.holds().release(pipeline.store(), app.audit(), &asker.who, &body.name);
        released.map_err(|it| it.chain())
    })
    .await
}
