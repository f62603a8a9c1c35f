//! A new volume for one that failed, while recording goes on. It is written down who wanted that
//! before anything is done.

use std::path::Path;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use wirevault_lifecycle::audit::Who;
use wirevault_media::open_volume;

use crate::access::Asker;
use crate::answers;
use crate::api::{self, ReplaceBody, Replaced};
use crate::server::App;

/// The questions of this module.
pub(crate) fn routes() -> axum::Router<App> {
    axum::Router::new().route(api::REPLACE, post(replace))
}

async fn replace(
    State(app): State<App>,
    Extension(asker): Extension<Asker>,
    body: Result<Json<ReplaceBody>, JsonRejection>,
) -> Response {
    let body = match body {
        Ok(Json(body)) => body,
        Err(rejection) => return answers::error(StatusCode::BAD_REQUEST, rejection.body_text()),
    };
    // Making a volume waits for devices.
    match tokio::task::spawn_blocking(move || carry_out(&app, &asker.who, &body)).await {
        Ok(Ok(replaced)) => Json(replaced).into_response(),
        Ok(Err(why)) => answers::error(StatusCode::UNPROCESSABLE_ENTITY, why),
        Err(error) => answers::error(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

fn carry_out(app: &App, who: &Who, body: &ReplaceBody) -> Result<Replaced, String> {
    let ReplaceBody { volume, path } = body;
    if !Path::new(path).is_absolute() {
        return Err(format!("`{path}` is not an absolute path"));
    }
    let pipeline = app.pipeline().ok_or("the recorder has stopped")?;
    let store = pipeline.store();
    let known = store.status().volumes.into_iter().nth(usize::from(*volume));
    let was = known.ok_or_else(|| format!("there is no volume {volume}"))?.path;
    let media = open_volume(Path::new(path)).map_err(|error| error.to_string())?;
    let replaced = Replaced { volume: *volume, was, path: path.clone() };
    app.audit().will_replace(who, &replaced).map_err(|error| error.to_string())?;
    let done = store.replace_volume(usize::from(*volume), media, path);
    done.map_err(|error| error.to_string())?;
    tracing::warn!(volume, was = replaced.was, path, "a volume was replaced; what it held is gone");
    Ok(replaced)
}
