//! JSON of questions that want something done: what was sent, and the answer once it is done.

use axum::Json;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::server::answers;

/// The body of a request. One that does not read is answered as every error of the API is.
pub(crate) struct Sent<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Sent<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        match Json::from_request(request, state).await {
            Ok(Json(body)) => Ok(Self(body)),
            Err(rejection) => Err(answers::error(rejection.status(), rejection.body_text())),
        }
    }
}

/// Does it on a thread of its own, since it waits for devices or services, and answers with what
/// became of it. Why it is refused is in words.
pub(crate) async fn done<T: Serialize + Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Response {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(answer)) => Json(answer).into_response(),
        Ok(Err(why)) => answers::error(StatusCode::UNPROCESSABLE_ENTITY, why),
        Err(error) => answers::error(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}
