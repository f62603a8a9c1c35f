//! Connections to the API, so many at a time and so many of one user or address.
//!
//! Each holds a file descriptor, and so does each open segment: nobody who may connect, which is
//! everybody, can use up those that recording needs. For the same reason a connection ends when it
//! asks nothing for a while, or takes too long over a request. An answer may take any time.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::response::Response;
use axum::serve::Listener;
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, Sleep};

use crate::server::access::Origin;

/// Connections at a time.
pub(crate) const CONNECTIONS_MAX: usize = 256;
/// Connections of one user at a time, so that nobody keeps the others out alone.
pub(crate) const CONNECTIONS_OF_USER_MAX: usize = 128;
/// Connections over TCP at a time. They have places of their own: strangers can come there.
const CONNECTIONS_OF_TCP_MAX: usize = 128;
/// Connections of one address at a time.
const CONNECTIONS_OF_ADDRESS_MAX: usize = 32;

/// How long a connection may wait before its first request, and between two.
pub(crate) const IDLE_MAX: Duration = Duration::from_secs(60);
/// How long a request may take from its first byte to the end of its body. It has 2 MiB at most.
pub(crate) const REQUEST_MAX: Duration = Duration::from_secs(10);

/// Takes connections of the unix socket; those beyond the limits are told so and closed.
pub(crate) struct Door {
    listener: UnixListener,
    places: Places,
    patience: Patience,
}

/// How long a connection may take.
#[derive(Debug, Clone, Copy)]
struct Patience {
    idle: Duration,
    request: Duration,
}

impl Patience {
    const USUAL: Self = Self { idle: IDLE_MAX, request: REQUEST_MAX };
}

/// Who holds a place: `None` where the kernel does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Holder {
    User(Option<u32>),
    Address(IpAddr),
}

/// Places for connections. Clones are handles.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    open: Arc<Mutex<Open>>,
    all_max: usize,
    each_max: usize,
}

/// Open connections by holder.
type Open = HashMap<Holder, usize>;

impl Places {
    /// For the unix socket.
    pub(crate) fn of_users() -> Self {
        Self::new(CONNECTIONS_MAX, CONNECTIONS_OF_USER_MAX)
    }

    /// For TCP.
    pub(crate) fn of_addresses() -> Self {
        Self::new(CONNECTIONS_OF_TCP_MAX, CONNECTIONS_OF_ADDRESS_MAX)
    }

    fn new(all_max: usize, each_max: usize) -> Self {
        Self { open: Arc::default(), all_max, each_max }
    }

    /// Takes one. Errors: why there is none.
    pub(crate) fn take(&self, holder: Holder) -> Result<Place, String> {
        let mut open = lock(&self.open);
        let (all, its) = (open.values().sum::<usize>(), open.get(&holder).copied());
        if all >= self.all_max {
            return Err(format!("{all} connections are open already"));
        }
        if let Some(its) = its.filter(|count| *count >= self.each_max) {
            return Err(format!("{its} connections of this user are open already"));
        }
        *open.entry(holder).or_default() += 1;
        Ok(Place { open: Arc::clone(&self.open), holder })
    }
}

impl Door {
    pub(crate) fn new(listener: UnixListener) -> Self {
        Self { listener, places: Places::of_users(), patience: Patience::USUAL }
    }
}

impl Listener for Door {
    type Io = Connection<UnixStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.listener).await;
            let ids = stream.peer_cred().ok().map(|peer| (peer.uid(), peer.gid()));
            match self.places.take(Holder::User(ids.map(|(uid, _)| uid))) {
                Ok(place) => {
                    let origin = Origin::User(ids);
                    return (Connection::with(stream, origin, place, self.patience), address);
                }
                Err(why) => {
                    // Whether it gets there or not, this connection ends here.
                    let _ = stream.try_write(refusal(&why).as_bytes());
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

fn refusal(why: &str) -> String {
    let body = format!("{{\"error\":\"{why}; close some, or ask again later\"}}");
    format!(
        "HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\nretry-after: 1\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// A connection that has a place.
pub(crate) struct Connection<S> {
    stream: S,
    /// Who is at the other end.
    pub(crate) origin: Origin,
    /// The answers that are on their way to it.
    pub(crate) answering: Answering,
    /// When it ends unless something happens.
    deadline: Pin<Box<Sleep>>,
    phase: Phase,
    patience: Patience,
    _place: Place,
}

/// What a connection is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The first byte of a request.
    Idle,
    /// The rest of it.
    Asking,
    /// Nothing: it is being answered.
    Answered,
}

impl<S> Connection<S> {
    pub(crate) fn new(stream: S, origin: Origin, place: Place) -> Self {
        Self::with(stream, origin, place, Patience::USUAL)
    }

    fn with(stream: S, origin: Origin, place: Place, patience: Patience) -> Self {
        Self {
            stream,
            origin,
            answering: Answering::default(),
            deadline: Box::pin(tokio::time::sleep(patience.idle)),
            phase: Phase::Idle,
            patience,
            _place: place,
        }
    }

    fn enter(&mut self, phase: Phase, limit: Duration) {
        self.phase = phase;
        self.deadline.as_mut().reset(Instant::now() + limit);
    }
}

/// Counts the answers that a connection is being given. Clones are handles.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answering(Arc<Mutex<Answers>>);

#[derive(Debug, Default)]
struct Answers {
    count: usize,
    /// Woken when the last of them ends.
    reader: Option<Waker>,
}

impl Answering {
    /// An answer begins; it ends when what is given back is dropped.
    pub(crate) fn begin(&self) -> AnswerGuard {
        self.lock().count += 1;
        AnswerGuard(self.clone())
    }

    /// Whether there is one; `reader` is told when there is none any more.
    fn is_going_on(&self, reader: &Waker) -> bool {
        let mut answers = self.lock();
        let going_on = answers.count > 0;
        answers.reader = going_on.then(|| reader.clone());
        going_on
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Answers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An answer that is on its way.
pub(crate) struct AnswerGuard(Answering);

impl AnswerGuard {
    /// Ties the end of the answer to that of the response.
    pub(crate) fn until_the_end_of(self, response: Response) -> Response {
        response.map(|body| Body::new(Guarded { body, _guard: self }))
    }
}

impl Drop for AnswerGuard {
    fn drop(&mut self) {
        let reader = {
            let mut answers = self.0.lock();
            answers.count -= 1;
            let is_last = answers.count == 0;
            answers.reader.take_if(|_| is_last)
        };
        reader.into_iter().for_each(Waker::wake);
    }
}

/// The body of a response, which is an answer until it is dropped.
struct Guarded {
    body: Body,
    _guard: AnswerGuard,
}

impl HttpBody for Guarded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Given back when the connection ends.
#[derive(Debug)]
pub(crate) struct Place {
    open: Arc<Mutex<Open>>,
    holder: Holder,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = lock(&self.open);
        if let Some(count) = open.get_mut(&self.holder) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.holder);
            }
        }
    }
}

fn lock(open: &Mutex<Open>) -> std::sync::MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.answering.is_going_on(context.waker()) {
            self.phase = Phase::Answered;
            return Pin::new(&mut self.stream).poll_read(context, buf);
        }
        if self.phase == Phase::Answered {
            let limit = self.patience.idle;
            self.enter(Phase::Idle, limit);
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buf);
        if read.is_pending() {
            let ended = self.deadline.as_mut().poll(context);
            return ended.map(|()| Err(io::ErrorKind::TimedOut.into()));
        }
        if buf.filled().len() > before && self.phase == Phase::Idle {
            let limit = self.patience.request;
            self.enter(Phase::Asking, limit);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use axum::Router;
    use axum::routing::get;

    use super::*;
    use crate::server::{Peer, answered};

    #[tokio::test]
    async fn connections_beyond_the_limits_are_told_so() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("s.sock");
        let mut door = Door::new(UnixListener::bind(&path).unwrap());
        door.places = Places::new(3, 2);
        let connect = || std::os::unix::net::UnixStream::connect(&path).unwrap();
        let clients = [connect(), connect()];
        let (first, _) = door.accept().await;
        let (second, _) = door.accept().await;
        assert_eq!(first.origin, second.origin);
        let mut third = connect();
        let waits = tokio::time::timeout(std::time::Duration::from_millis(200), door.accept());
        assert!(waits.await.is_err(), "there is no place for it");
        let mut said = String::new();
        third.read_to_string(&mut said).unwrap();
        assert!(said.starts_with("HTTP/1.1 429 "), "{said}");
        assert!(said.contains("2 connections of this user are open already"), "{said}");
        drop(first);
        let _again = connect();
        door.accept().await;
        // Other users are not kept out, until all places are taken.
        let take = |uid| door.places.take(Holder::User(Some(uid)));
        let other = take(4_000_000);
        let more = [take(4_000_001), take(4_000_002)];
        assert!(other.is_ok() && more[0].is_ok(), "one place was given back with its connection");
        assert!(more[1].as_ref().is_err_and(|why| why.contains("3 connections are open")));
        drop((clients, second, other, more));
        assert!(lock(&door.places.open).is_empty());
    }

    const SHORT: Duration = Duration::from_millis(100);
    /// Longer than any test.
    const LONG: Duration = Duration::from_secs(3600);
    /// Headers of a request that is the last of its connection.
    const LAST: &str = "host: x\r\nconnection: close\r\n";

    /// Answers on a socket with these limits; `/slow` takes 0.5 s.
    async fn serving(dir: &tempfile::TempDir, patience: Patience) -> std::path::PathBuf {
        let path = dir.path().join("s.sock");
        let _ = std::fs::remove_file(&path);
        let mut door = Door::new(UnixListener::bind(&path).unwrap());
        door.patience = patience;
        let slow = || async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            "slow"
        };
        let router = Router::new()
            .route("/slow", get(slow).post(slow))
            .layer(axum::middleware::from_fn(answered));
        let service = router.into_make_service_with_connect_info::<Peer>();
        tokio::spawn(axum::serve(door, service).into_future());
        path
    }

    /// What a client hears that sends these pieces, one each 20 ms, until its connection ends.
    async fn heard(path: &std::path::Path, pieces: Vec<String>) -> String {
        let path = path.to_owned();
        let client = move || {
            let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
            let mut writing = stream.try_clone().unwrap();
            let writer = std::thread::spawn(move || {
                for piece in pieces {
                    if writing.write_all(piece.as_bytes()).is_err() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
            let mut heard = Vec::new();
            // A connection that ends with bytes unread is reset.
            let _ = stream.read_to_end(&mut heard);
            writer.join().unwrap();
            String::from_utf8(heard).unwrap()
        };
        tokio::task::spawn_blocking(client).await.unwrap()
    }

    #[tokio::test]
    async fn who_asks_nothing_or_never_ends_asking_loses_the_connection() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = serving(&dir, Patience { idle: SHORT, request: LONG }).await;
        assert_eq!(heard(&path, vec![]).await, "");
        // A client may be slow to begin, on a busy machine.
        let path = serving(&dir, Patience { idle: LONG, request: SHORT }).await;
        let mut endless = vec!["GET /slow HTTP/1.1\r\n".to_owned()];
        endless.extend((0..500).map(|n| format!("x-{n}: y\r\n")));
        assert_eq!(heard(&path, endless).await, "");
        let head = format!("POST /slow HTTP/1.1\r\n{LAST}content-length: 1000\r\n\r\n");
        let body = (0..500).map(|_| "y".to_owned());
        let heard = heard(&path, [head].into_iter().chain(body).collect()).await;
        assert!(heard.starts_with("HTTP/1.1 400 ") && heard.contains("take 10 s"), "{heard}");
    }

    #[tokio::test]
    async fn an_answer_may_take_longer_than_a_request() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = serving(&dir, Patience { idle: LONG, request: SHORT }).await;
        let request = format!("GET /slow HTTP/1.1\r\n{LAST}\r\n");
        let heard = heard(&path, vec![request]).await;
        assert!(heard.starts_with("HTTP/1.1 200 ") && heard.ends_with("slow"), "{heard}");
    }
}
