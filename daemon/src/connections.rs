//! Connections to the API's socket, so many at a time and so many of one user.
//!
//! Each holds a file descriptor, and so does each open segment: nobody who may connect, which is
//! everybody, can use up those that recording needs.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};

/// Connections at a time.
pub(crate) const CONNECTIONS_MAX: usize = 256;
/// Connections of one user at a time, so that nobody keeps the others out alone.
pub(crate) const CONNECTIONS_OF_USER_MAX: usize = 128;

/// Takes connections; those beyond the limits are told so and closed.
pub(crate) struct Door {
    listener: UnixListener,
    open: Arc<Mutex<Open>>,
    all_max: usize,
    user_max: usize,
}

/// Open connections by user, `None` where the kernel does not tell.
type Open = HashMap<Option<u32>, usize>;

impl Door {
    pub(crate) fn new(listener: UnixListener) -> Self {
        let (all_max, user_max) = (CONNECTIONS_MAX, CONNECTIONS_OF_USER_MAX);
        Self { listener, open: Arc::default(), all_max, user_max }
    }

    fn place(&self, uid: Option<u32>) -> Result<Place, String> {
        let mut open = lock(&self.open);
        let (all, of_user) = (open.values().sum::<usize>(), open.get(&uid).copied());
        if all >= self.all_max {
            return Err(format!("{all} connections are open already"));
        }
        if let Some(of_user) = of_user.filter(|count| *count >= self.user_max) {
            return Err(format!("{of_user} connections of this user are open already"));
        }
        *open.entry(uid).or_default() += 1;
        Ok(Place { open: Arc::clone(&self.open), uid })
    }
}

impl Listener for Door {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.listener).await;
            let ids = stream.peer_cred().ok().map(|peer| (peer.uid(), peer.gid()));
            match self.place(ids.map(|(uid, _)| uid)) {
                Ok(place) => return (Connection { stream, ids, _place: place }, address),
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
pub(crate) struct Connection {
    stream: UnixStream,
    /// User and group at the other end, as the kernel attests them.
    pub(crate) ids: Option<(u32, u32)>,
    _place: Place,
}

/// Given back when the connection ends.
struct Place {
    open: Arc<Mutex<Open>>,
    uid: Option<u32>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = lock(&self.open);
        if let Some(count) = open.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.uid);
            }
        }
    }
}

fn lock(open: &Mutex<Open>) -> std::sync::MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buf)
    }
}

impl AsyncWrite for Connection {
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
    use std::io::Read;

    use super::*;

    #[tokio::test]
    async fn connections_beyond_the_limits_are_told_so() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("s.sock");
        let mut door = Door::new(UnixListener::bind(&path).unwrap());
        (door.all_max, door.user_max) = (3, 2);
        let connect = || std::os::unix::net::UnixStream::connect(&path).unwrap();
        let clients = [connect(), connect()];
        let (first, _) = door.accept().await;
        let (second, _) = door.accept().await;
        assert_eq!(first.ids.map(|(uid, _)| uid), second.ids.map(|(uid, _)| uid));
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
        let other = door.place(Some(4_000_000));
        let more = [door.place(Some(4_000_001)), door.place(Some(4_000_002))];
        assert!(other.is_ok() && more[0].is_ok(), "one place was given back with its connection");
        assert!(more[1].as_ref().is_err_and(|why| why.contains("3 connections are open")));
        drop((clients, second, other, more));
        assert!(lock(&door.open).is_empty());
    }
}
