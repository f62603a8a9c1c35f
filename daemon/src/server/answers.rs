//! Answers that are streamed: a query runs on a thread that may block, and writes into a bounded
//! channel that the connection empties.
//!
//! - A reader that is slow makes the query wait; one that is gone cancels it. One that takes
//!   nothing for a while is left when others need its place.
//! - The first piece decides the status: an error before it is a status of its own, one after it
//!   breaks the connection off, so that no cut answer looks whole.
//! - So many answers run at a time; more are refused with 429. A query can never cost packets: it
//!   takes no lock that a lane waits for.
//! - Each answer stands between two entries of the audit log ([`crate::lifecycle::audit`]).

use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{Extension, Json, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use serde::Serialize;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::{Semaphore, TryAcquireError};
use wirevault_config::Role;
use wirevault_index::Catalog;
use wirevault_index::error::chain;
use wirevault_query::export::PcapngSink;
use wirevault_query::{QueryError, Request, Summary, flows, run};

use crate::api::{ErrorBody, JSON_LINES_TYPE, JSON_TYPE, PCAPNG_TYPE, QueryBody};
use crate::lifecycle::audit::Answered;
use crate::report::status;
use crate::server::App;
use crate::server::access::Asker;
use crate::server::json::Sent;

/// Answers that are made at a time; each may hold a thread and some MiB.
pub(crate) const ANSWERS_MAX: usize = 32;
/// Live views at a time: they do not end by themselves, so they have places of their own.
pub(crate) const TAILS_MAX: usize = 16;
/// So long a reader may take nothing, once all places are taken. Until then nobody is in the way of
/// somebody who reads an answer page by page.
const STALL_MAX: Duration = Duration::from_secs(30);
/// How often a writer looks whether its reader has taken a piece.
const LOOK: Duration = Duration::from_millis(1);
/// Pieces of an answer that wait for the connection. A piece has 256 KiB at most.
const PIECES: usize = 4;
/// Bytes of flow rows that are collected before they are sent.
const ROWS_BYTES: usize = 64 << 10;

/// Why there is nothing more to look at.
pub(crate) const STOPPED: &str = "the recorder has stopped";

/// Why there is no answer, or no more of it.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The question is at fault.
    Refused(String),
    /// The answer is.
    Failed(String),
}

/// Packets, as pcapng.
pub(crate) async fn query(
    State(app): State<App>,
    Extension(asker): Extension<Asker>,
    Sent(body): Sent<QueryBody>,
) -> Response {
    let request = narrowed(body, &asker);
    if !request.count_only && asker.role < Role::Export {
        let why = format!(
            "the role {} gets no packets, which need {}; ask with `count_only`, or for flows",
            asker.role,
            Role::Export
        );
        denied(&app, &asker, "POST /v1/query for packets", &why).await;
        return error(StatusCode::FORBIDDEN, why);
    }
    answer(app, asker, ("query", "POST /v1/query", PCAPNG_TYPE), request, |ask, pipe, cancel| {
        let mut sink = PcapngSink::new(pipe).map_err(QueryError::Sink)?;
        let summary = run(ask.catalog, ask.request, &mut sink, cancel)?;
        sink.finish(&summary).map_err(QueryError::Sink)?;
        Ok(summary)
    })
    .await
}

/// Flows, one JSON object a line, and the summary as the last line.
pub(crate) async fn flow_rows(
    State(app): State<App>,
    Extension(asker): Extension<Asker>,
    Sent(body): Sent<QueryBody>,
) -> Response {
    /// The last line.
    #[derive(Serialize)]
    struct Last<'a> {
        summary: &'a Summary,
    }

    let request = narrowed(body, &asker);
    answer(
        app,
        asker,
        ("flows", "POST /v1/flows", JSON_LINES_TYPE),
        request,
        |ask, pipe, cancel| {
            let mut lines = BufWriter::with_capacity(ROWS_BYTES, pipe);
            let mut each = |row: &_| put_line(&mut lines, row).map(|()| ControlFlow::Continue(()));
            let summary = flows(ask.catalog, ask.request, &mut each, cancel)?;
            put_line(&mut lines, &Last { summary: &summary }).map_err(QueryError::Sink)?;
            lines.flush().map_err(QueryError::Sink)?;
            Ok(summary)
        },
    )
    .await
}

/// A question and what is looked at for it.
struct Asked<'a> {
    catalog: &'a Catalog,
    request: &'a Request,
}

/// Streams what `make` finds, between the two entries of the audit log. `verb` is what that calls
/// the question.
async fn answer(
    app: App,
    asker: Asker,
    (verb, asks, content_type): (&'static str, &'static str, &'static str),
    request: Request,
    make: impl FnOnce(&Asked<'_>, &mut Pipe, &AtomicBool) -> Result<Summary, QueryError>
    + Send
    + 'static,
) -> Response {
    let (of, who) = (app.clone(), asker.who.clone());
    let work = move |pipe: &mut Pipe, cancel: &AtomicBool| {
        let question = Narrowed::new(&request);
        of.audit().answer(&who, (verb, &question), pipe, |pipe| {
            counted(&of, |catalog| make(&Asked { catalog, request: &request }, pipe, cancel))
        })
    };
    stream(&app, app.answers(), (asks, content_type), &asker, work).await
}

/// Segments, oldest first, as a JSON list that is made while it is sent: 100,000 of them take about
/// 70 MB.
pub(crate) async fn segments(
    State(app): State<App>,
    Extension(asker): Extension<Asker>,
) -> Response {
    let asked = app.clone();
    stream(&app, app.answers(), ("GET /v1/segments", JSON_TYPE), &asker, move |pipe, cancel| {
        let catalog = catalog(&asked)?;
        let mut out = BufWriter::with_capacity(ROWS_BYTES, pipe);
        put_list(&mut out, status::segment_rows(&catalog), cancel)
            .map_err(|failed| Failure::Failed(failed.to_string()))
    })
    .await
}

/// Runs `work` on a thread of its own and streams what it writes, if one of `places` is free and he
/// has not as many answers already as he may.
pub(crate) async fn stream(
    app: &App,
    places: &Arc<Semaphore>,
    (asks, content_type): (&'static str, &'static str),
    asker: &Asker,
    work: impl FnOnce(&mut Pipe, &AtomicBool) -> Result<(), Failure> + Send + 'static,
) -> Response {
    let permit = match Arc::clone(places).try_acquire_owned() {
        Ok(permit) => permit,
        Err(TryAcquireError::Closed) => {
            let text = "the recorder is stopping".to_owned();
            return error(StatusCode::SERVICE_UNAVAILABLE, text);
        }
        Err(TryAcquireError::NoPermits) => {
            let (what, max) = match Arc::ptr_eq(places, app.tails()) {
                true => ("live views are open", TAILS_MAX),
                false => ("answers are being made", ANSWERS_MAX),
            };
            let why = format!("{max} {what} already");
            denied(app, asker, asks, &why).await;
            return too_many(why);
        }
    };
    let turn = match asker.turn() {
        Ok(turn) => turn,
        Err(why) => {
            denied(app, asker, asks, &why).await;
            return too_many(why);
        }
    };
    let places = Arc::clone(places);
    let cancel = Arc::new(AtomicBool::new(false));
    app.cancel_at_stop(&cancel);
    let (sender, pieces) = channel(PIECES);
    let broken = Arc::new(AtomicBool::new(false));
    let end = (Arc::clone(&cancel), Arc::clone(&broken));
    let mut answer = Answer { first: None, pieces, cancel: end.0, broken: end.1 };
    tokio::task::spawn_blocking(move || {
        let _places = (permit, turn);
        let stall_max = STALL_MAX;
        let mut pipe = Pipe { sender, held: None, places, stall_max, broken, bytes: 0 };
        // A receiver that is gone does not want to know either way.
        match work(&mut pipe, &cancel) {
            Ok(()) => drop(pipe.flush()),
            Err(_) if pipe.broken.load(Ordering::Relaxed) => {}
            Err(failure) => drop(pipe.put(Err(failure))),
        }
    });
    match answer.pieces.recv().await {
        Some(Ok(piece)) => answer.first = Some(piece),
        Some(Err(Failure::Refused(text))) => return error(StatusCode::BAD_REQUEST, text),
        Some(Err(Failure::Failed(text))) => return error(StatusCode::INTERNAL_SERVER_ERROR, text),
        None => {}
    }
    let content_type = HeaderValue::from_static(content_type);
    ([(header::CONTENT_TYPE, content_type)], Body::from_stream(answer)).into_response()
}

/// An error as JSON.
pub(crate) fn error(status: StatusCode, text: String) -> Response {
    (status, Json(ErrorBody { error: text })).into_response()
}

/// So much is not to be had at once.
pub(crate) fn too_many(why: String) -> Response {
    let wait = [(header::RETRY_AFTER, HeaderValue::from_static("1"))];
    let text = format!("{why}; ask again later");
    (wait, error(StatusCode::TOO_MANY_REQUESTS, text)).into_response()
}

/// Writes down that somebody may not have this, or not now.
async fn denied(app: &App, asker: &Asker, asks: &'static str, why: &str) {
    let (app, who, why) = (app.clone(), asker.who.clone(), why.to_owned());
    let write = move || app.audit().denied(who, asks.to_owned(), &why);
    // A log that cannot be written is in the status.
    let _ = tokio::task::spawn_blocking(write).await;
}

/// A question, and what it was narrowed to, as the audit log has them.
#[derive(Serialize)]
struct Narrowed {
    #[serde(flatten)]
    question: QueryBody,
    #[serde(skip_serializing_if = "String::is_empty")]
    within: String,
}

impl Narrowed {
    fn new(request: &Request) -> Self {
        Self { within: request.within.clone(), question: request.clone().into() }
    }
}

/// The writing end of an answer.
///
/// The first piece is held back until more comes or until a flush: a writer that fails passes on
/// what it has buffered when it is dropped, and the failure must come first.
#[derive(Debug)]
pub(crate) struct Pipe {
    sender: Sender<Result<Bytes, Failure>>,
    held: Option<Held>,
    /// Where this answer has its place.
    places: Arc<Semaphore>,
    stall_max: Duration,
    /// It was given up: its end must not look like one.
    broken: Arc<AtomicBool>,
    bytes: u64,
}

#[derive(Debug)]
enum Held {
    First(Bytes),
    Sent,
}

impl Pipe {
    /// Bytes written into it.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn send(&self, bytes: Bytes) -> io::Result<()> {
        self.put(Ok(bytes))
    }

    /// Waits for room.
    fn put(&self, mut piece: Result<Bytes, Failure>) -> io::Result<()> {
        let since = Instant::now();
        loop {
            piece = match self.sender.try_send(piece) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Closed(_)) => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(TrySendError::Full(piece)) => piece,
            };
            if since.elapsed() > self.stall_max && self.places.available_permits() == 0 {
                tracing::warn!("an answer was given up: its reader stalls, and others wait");
                self.broken.store(true, Ordering::Relaxed);
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        self.bytes += bytes.len() as u64;
        let piece = Bytes::copy_from_slice(bytes);
        match self.held {
            None => self.held = Some(Held::First(piece)),
            Some(_) => {
                self.flush()?;
                self.send(piece)?;
            }
        }
        Ok(bytes.len())
    }

    /// Sends what is held back.
    fn flush(&mut self) -> io::Result<()> {
        match self.held.replace(Held::Sent) {
            Some(Held::First(piece)) => self.send(piece),
            _ => Ok(()),
        }
    }
}

/// The reading end of an answer. Dropping it, as a closed connection does, cancels the work.
struct Answer {
    first: Option<Bytes>,
    pieces: Receiver<Result<Bytes, Failure>>,
    cancel: Arc<AtomicBool>,
    broken: Arc<AtomicBool>,
}

impl Stream for Answer {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        let piece = std::task::ready!(self.pieces.poll_recv(context));
        if piece.is_none() && self.broken.swap(false, Ordering::Relaxed) {
            return Poll::Ready(Some(Err(io::ErrorKind::TimedOut.into())));
        }
        Poll::Ready({
            piece.map(|piece| {
                piece.map_err(|failure| {
                    let (Failure::Refused(text) | Failure::Failed(text)) = failure;
                    tracing::warn!("an answer was broken off: {text}");
                    io::Error::other(text)
                })
            })
        })
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.cancel.store(true, Ordering::Relaxed);
    }
}

/// Looks at the catalog, runs a query over it and books its result.
fn counted(
    app: &App,
    ask: impl FnOnce(&Catalog) -> Result<Summary, QueryError>,
) -> Result<Answered, Failure> {
    let catalog = catalog(app)?;
    let started = Instant::now();
    let questions = app.questions();
    questions.running.fetch_add(1, Ordering::Relaxed);
    let result = ask(&catalog);
    questions.running.fetch_sub(1, Ordering::Relaxed);
    let took_ns = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
    questions.duration.record_ns(took_ns);
    let (count, result) = match result {
        Ok(summary) => {
            questions.matched_packets.fetch_add(summary.packets, Ordering::Relaxed);
            (&questions.answered, Ok(summary.into()))
        }
        Err(failed) if failed.is_misuse() => {
            (&questions.refused, Err(Failure::Refused(chain(&failed))))
        }
        Err(failed) if failed.is_cancelled() || matches!(failed, QueryError::Sink(_)) => {
            (&questions.cancelled, Err(Failure::Failed(chain(&failed))))
        }
        Err(failed) => (&questions.failed, Err(Failure::Failed(chain(&failed)))),
    };
    count.fetch_add(1, Ordering::Relaxed);
    result
}

fn narrowed(body: QueryBody, asker: &Asker) -> Request {
    Request { within: asker.within.clone(), ..body.into() }
}

fn catalog(app: &App) -> Result<Catalog, Failure> {
    if let Some(stored) = app.stored() {
        let opened = stored.open().map_err(|error| Failure::Failed(chain(&error)));
        return opened.map(|(_, catalog)| catalog);
    }
    let catalog = app.pipeline().map(|pipeline| pipeline.catalog());
    catalog.ok_or_else(|| Failure::Failed(STOPPED.to_owned()))
}

/// Writes a JSON list, a value a line.
fn put_list(
    out: &mut impl Write,
    values: impl Iterator<Item = impl Serialize>,
    cancel: &AtomicBool,
) -> io::Result<()> {
    out.write_all(b"[")?;
    for (number, value) in values.enumerate() {
        if cancel.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        out.write_all(if number == 0 { b"\n" } else { b",\n" })?;
        serde_json::to_writer(&mut *out, &value)?;
    }
    out.write_all(b"\n]\n")?;
    out.flush()
}

fn put_line(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    fn answer(pieces: usize) -> (Pipe, Answer) {
        let (sender, receiver) = channel(pieces);
        let cancel = Arc::new(AtomicBool::new(false));
        let broken = Arc::new(AtomicBool::new(false));
        let pipe = Pipe {
            sender,
            held: None,
            places: Arc::new(Semaphore::new(1)),
            stall_max: Duration::from_millis(20),
            broken: Arc::clone(&broken),
            bytes: 0,
        };
        (pipe, Answer { first: None, pieces: receiver, cancel, broken })
    }

    async fn next(answer: &mut Answer) -> Option<io::Result<Bytes>> {
        poll_fn(|context| Pin::new(&mut *answer).poll_next(context)).await
    }

    #[test]
    fn a_dropped_answer_cancels_and_breaks_the_pipe() {
        let (mut pipe, answer) = answer(1);
        let cancel = Arc::clone(&answer.cancel);
        pipe.write_all(b"one").unwrap();
        pipe.flush().unwrap();
        drop(answer);
        assert!(cancel.load(Ordering::Relaxed));
        assert_eq!(pipe.write_all(b"two").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_list_is_json_whatever_its_length_and_ends_when_cancelled() {
        let go_on = AtomicBool::new(false);
        for length in [0, 1, 3] {
            let mut out = Vec::new();
            put_list(&mut out, 0..length, &go_on).unwrap();
            let read: Vec<i32> = serde_json::from_slice(&out).unwrap();
            assert_eq!(read, (0..length).collect::<Vec<_>>());
        }
        let mut out = Vec::new();
        assert!(put_list(&mut out, 0.., &AtomicBool::new(true)).is_err());
        assert!(serde_json::from_slice::<Vec<i32>>(&out).is_err(), "it does not look whole");
    }

    #[test]
    fn a_failure_comes_before_what_was_written_first() {
        let (mut pipe, mut answer) = answer(2);
        let mut writer = BufWriter::new(&mut pipe);
        writer.write_all(b"header").unwrap();
        drop(writer);
        assert!(answer.pieces.try_recv().is_err(), "it is held back");
        pipe.flush().unwrap();
        assert_eq!(answer.pieces.try_recv().unwrap().unwrap(), "header");
    }

    #[tokio::test]
    async fn a_reader_that_stalls_loses_its_place_only_if_others_need_it() {
        let (mut pipe, mut answer) = answer(1);
        pipe.write_all(b"one").unwrap();
        pipe.flush().unwrap();
        let reading = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(60));
            let one = answer.pieces.blocking_recv();
            (one, answer)
        });
        // There is a free place, so it waits for longer than a reader may stall.
        pipe.write_all(b"two").unwrap();
        let (one, mut answer) = reading.join().unwrap();
        assert_eq!(one.unwrap().unwrap(), "one");
        let taken = Arc::clone(&pipe.places).try_acquire_owned().unwrap();
        assert_eq!(pipe.write_all(b"three").unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop((pipe, taken));
        assert_eq!(next(&mut answer).await.unwrap().unwrap(), "two");
        let cut = next(&mut answer).await.unwrap().unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::TimedOut, "it does not look like a whole answer");
        assert!(next(&mut answer).await.is_none());
    }

    #[tokio::test]
    async fn pieces_come_in_order_and_a_failure_is_an_error() {
        let (mut pipe, mut answer) = answer(4);
        answer.first = Some(Bytes::from_static(b"zero"));
        let writing = std::thread::spawn(move || {
            pipe.write_all(b"one").unwrap();
            pipe.write_all(b"two").unwrap();
            let _ = pipe.put(Err(Failure::Failed("broken".to_owned())));
        });
        assert_eq!(next(&mut answer).await.unwrap().unwrap(), "zero");
        assert_eq!(next(&mut answer).await.unwrap().unwrap(), "one");
        assert_eq!(next(&mut answer).await.unwrap().unwrap(), "two");
        assert_eq!(next(&mut answer).await.unwrap().unwrap_err().to_string(), "broken");
        assert!(next(&mut answer).await.is_none());
        writing.join().unwrap();
    }
}
