//! A new volume for one that failed, while recording goes on. It is written down who wanted that
//! before anything is done.

use std::path::Path;

use axum::extract::{Extension, State};
use axum::response::Response;
use axum::routing::post;
use wirevault_lifecycle::audit::Who;

use crate::api::{self, ReplaceBody, Replaced};
use crate::server::App;
use crate::server::access::Asker;
use crate::server::answers::STOPPED;
use crate::server::json::{Sent, done};

/// The questions of this module.
pub(crate) fn routes() -> axum::Router<App> {
    axum::Router::new().route(api::REPLACE, post(replace))
}

async fn replace(
    State(app): State<App>,
    Extension(asker): Extension<Asker>,
    Sent(body): Sent<ReplaceBody>,
) -> Response {
    done(move || carry_out(&app, &asker.who, &body)).await
}

fn carry_out(app: &App, who: &Who, body: &ReplaceBody) -> Result<Replaced, String> {
    let ReplaceBody { volume, path } = body;
    if !Path::new(path).is_absolute() {
        return Err(format!("`{path}` is not an absolute path"));
    }
    let pipeline = app.pipeline().ok_or(STOPPED)?;
    let store = pipeline.store();
    let known = store.status().volumes.into_iter().nth(usize::from(*volume));
    let was = known.ok_or_else(|| format!("there is no volume {volume}"))?.path;
    refuse_with_log(&was, app.audit().folder())?;
    refuse_what_is_out(app, Path::new(path))?;
    let successors = app.facts().successors.as_ref().ok_or(STOPPED)?;
    let media = successors.open(&was, Path::new(path)).map_err(|error| error.to_string())?;
    let replaced = Replaced { volume: *volume, was, path: path.clone() };
    app.audit().will_replace(who, &replaced).map_err(|error| error.to_string())?;
    let done = store.replace_volume(usize::from(*volume), media, path);
    done.map_err(|error| error.to_string())?;
    app.devices().is_new(usize::from(*volume));
    tracing::warn!(volume, was = replaced.was, path, "a volume was replaced; what it held is gone");
    Ok(replaced)
}

/// The log goes on where it is, and the next start would look for it in the new volume.
fn refuse_with_log(volume: &str, log: &Path) -> Result<(), String> {
    match log.starts_with(volume) {
        true => Err(format!(
            "the audit log lies in {}, which is a part of {volume}: end the recorder, copy that \
             folder into the new volume, and replace it with --store",
            log.display()
        )),
        false => Ok(()),
    }
}

/// What the sandbox keeps out would be found out when the first segment is made.
fn refuse_what_is_out(app: &App, path: &Path) -> Result<(), String> {
    let bound = app.facts().sandbox.as_ref().filter(|sandbox| sandbox.landlock_abi.is_some());
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let is_in = |own: &String| path.starts_with(own) || real(path).starts_with(real(own.as_ref()));
    match bound {
        Some(sandbox) if !sandbox.writes.iter().any(is_in) => {
            let path = path.display();
            Err(format!(
                "the sandbox keeps {path} out: `spares` would have to name it at the start"
            ))
        }
        _ => Ok(()),
    }
}
