//! Speaks HTTP/1.1 with the daemon, over its unix socket or over TLS. Calls block; the runtime
//! underneath only turns while one of them waits.

mod endpoint;
mod watch;

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use wirevault_daemon::api::ErrorBody;

use crate::error::CliError;
use crate::interrupt::{self, Cancel};

pub(crate) use endpoint::Endpoint;
pub(crate) use watch::Watch;

/// How long a wait may ignore a Ctrl-C.
const LOOK: Duration = Duration::from_millis(100);
/// Bytes of an answer that is not streamed. A list of 100,000 segments has about 60 MB.
const ANSWER_BYTES_MAX: usize = 512 << 20;

/// What a stream's end by Ctrl-C looks like to whoever reads it.
const INTERRUPTED: &str = "interrupted by the user";

/// A connection to the daemon.
pub(crate) struct Client {
    runtime: Runtime,
    sender: SendRequest<Full<Bytes>>,
    cancel: Cancel,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// `Connect`, with what to do.
    pub(crate) fn connect(endpoint: &Endpoint, cancel: &Cancel) -> Result<Self, CliError> {
        let runtime =
            Builder::new_current_thread().enable_all().build().map_err(CliError::Start)?;
        let failed = |source| CliError::Connect { daemon: endpoint.to_string(), source };
        let sender = runtime.block_on(async {
            let stream = endpoint.open().await?;
            let (sender, connection) =
                handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
            // Its errors come out of the request or of the body.
            tokio::spawn(connection);
            Ok(sender)
        });
        Ok(Self { runtime, sender: sender.map_err(failed)?, cancel: Arc::clone(cancel) })
    }

    /// Asks for a JSON document.
    ///
    /// # Errors
    /// `Refused`, `Answer`.
    pub(crate) fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, CliError> {
        let response = self.send(Method::GET, path, Bytes::new())?;
        self.document(response)
    }

    /// Has something done whose answer is a JSON document.
    ///
    /// # Errors
    /// `Refused`, `Answer`.
    pub(crate) fn have_done<T: DeserializeOwned>(
        &mut self,
        path: &str,
        order: &impl Serialize,
    ) -> Result<T, CliError> {
        let json = serde_json::to_vec(order).map_err(io::Error::from)?;
        let response = self.send(Method::POST, path, json.into())?;
        self.document(response)
    }

    /// Asks for a stream.
    ///
    /// # Errors
    /// `Refused`, `Answer`.
    pub(crate) fn get_stream(mut self, path: &str) -> Result<Body, CliError> {
        let response = self.send(Method::GET, path, Bytes::new())?;
        Ok(Body { client: self, incoming: response.into_body(), piece: Bytes::new() })
    }

    /// Asks a question whose answer is a stream.
    ///
    /// # Errors
    /// `Refused`, `Answer`.
    pub(crate) fn post<T: Serialize>(mut self, path: &str, question: &T) -> Result<Body, CliError> {
        let json = serde_json::to_vec(question).map_err(io::Error::from)?;
        let response = self.send(Method::POST, path, json.into())?;
        Ok(Body { client: self, incoming: response.into_body(), piece: Bytes::new() })
    }

    fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, CliError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| CliError::Usage(format!("{path} cannot be asked for: {error}")))?;
        let Self { runtime, sender, cancel } = self;
        let response = runtime.block_on(async {
            let mut waiting = std::pin::pin!(sender.send_request(request));
            loop {
                match timeout(LOOK, &mut waiting).await {
                    Ok(response) => return response.map_err(|error| answer(broken(&error))),
                    Err(_) if interrupt::is_set(cancel) => return Err(answer(INTERRUPTED.into())),
                    Err(_) => {}
                }
            }
        })?;
        match response.status() {
            StatusCode::OK => Ok(response),
            status => Err(self.refusal(status, response.into_body())),
        }
    }

    fn document<T: DeserializeOwned>(&self, response: Response<Incoming>) -> Result<T, CliError> {
        let bytes = self.collect(response.into_body())?;
        serde_json::from_slice(&bytes).map_err(|error| {
            answer(format!("does not fit this release: {error}; use the release of the daemon"))
        })
    }

    fn refusal(&self, status: StatusCode, body: Incoming) -> CliError {
        match self.collect(body) {
            Ok(bytes) => match serde_json::from_slice::<ErrorBody>(&bytes) {
                Ok(body) => CliError::Refused { message: body.error },
                Err(_) => answer(format!("is {status}; it may be of another release")),
            },
            Err(error) => error,
        }
    }

    fn collect(&self, body: Incoming) -> Result<Bytes, CliError> {
        let collected = self.runtime.block_on(Limited::new(body, ANSWER_BYTES_MAX).collect());
        let bytes = collected.map_err(|error| match error.is::<LengthLimitError>() {
            true => answer(format!("is longer than {ANSWER_BYTES_MAX} bytes")),
            false => answer(format!("broke off: {error}")),
        });
        Ok(bytes?.to_bytes())
    }
}

/// A streamed answer. Dropping it tells the daemon that nobody reads any more.
pub(crate) struct Body {
    client: Client,
    incoming: Incoming,
    piece: Bytes,
}

impl Read for Body {
    /// The next bytes; 0 only at the proper end of the answer.
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            let Client { runtime, cancel, .. } = &self.client;
            let incoming = &mut self.incoming;
            let frame = runtime.block_on(async {
                loop {
                    match timeout(LOOK, incoming.frame()).await {
                        _ if interrupt::is_set(cancel) => {
                            return Err(io::Error::other(INTERRUPTED));
                        }
                        Ok(None) => return Ok(None),
                        Ok(Some(frame)) => {
                            return frame.map(Some).map_err(|error| {
                                io::Error::new(io::ErrorKind::UnexpectedEof, broken(&error))
                            });
                        }
                        Err(_) => {}
                    }
                }
            })?;
            match frame.map(|frame| frame.into_data()) {
                Some(Ok(piece)) => self.piece = piece,
                // Trailers say nothing to us.
                Some(Err(_)) => {}
                None => return Ok(0),
            }
        }
        let count = out.len().min(self.piece.len());
        out[..count].copy_from_slice(&self.piece.split_to(count));
        Ok(count)
    }
}

fn answer(what: String) -> CliError {
    CliError::Answer { what }
}

fn broken(error: &hyper::Error) -> String {
    if let Some(alert) = endpoint::alert(error) {
        return format!("broke off: the daemon does not take the certificate: {alert}");
    }
    match error.is_incomplete_message() || error.is_body_write_aborted() {
        true => "broke off: the daemon stopped or gave the answer up; its log says why".to_owned(),
        false => format!("broke off: {error}"),
    }
}
