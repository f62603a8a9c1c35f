//! Metrics for a collector on this machine: plain HTTP on loopback, one path, nobody is asked who
//! he is.
//!
//! What stands there are numbers: no address, no packet, no name of a file. Whoever comes from
//! another machine comes over TLS (`crate::server::tls`).

use std::io;
use std::net::SocketAddr;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware;
use axum::response::Response;
use axum::routing::get;
use axum::serve::{IncomingStream, Listener};
use tokio::net::{TcpListener, TcpStream};

use crate::DaemonError;
use crate::server::access::Origin;
use crate::server::answers;
use crate::server::connections::{Connection, Holder, Places};
use crate::server::tls;
use crate::server::{App, Peer, answered, show_metrics};

/// Where collectors look unless they are told otherwise.
const PATH: &str = "/metrics";

/// Listens. Nobody is answered yet.
///
/// # Errors
/// `Setting`: the address cannot be had.
pub(crate) fn bind(address: SocketAddr) -> Result<std::net::TcpListener, DaemonError> {
    tls::listen("metrics_listen", address)
}

/// The one path.
pub(crate) fn router(app: App) -> Router {
    Router::new()
        .route(PATH, get(show_metrics))
        .fallback(elsewhere)
        .layer(middleware::from_fn(answered))
        .with_state(app)
}

async fn elsewhere() -> Response {
    let text = format!("here is nothing but {PATH}; questions go to the socket, or come over TLS");
    answers::error(StatusCode::NOT_FOUND, text)
}

/// Takes connections; those beyond the limits are closed.
pub(crate) struct ScrapeDoor {
    listener: TcpListener,
    places: Places,
}

impl ScrapeDoor {
    /// Takes connections from now on.
    pub(crate) fn open(bound: std::net::TcpListener) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::from_std(bound)?, places: Places::of_addresses() })
    }
}

impl Listener for ScrapeDoor {
    type Io = Connection<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.listener).await;
            let Ok(place) = self.places.take(Holder::Address(address.ip())) else { continue };
            return (Connection::new(stream, Origin::User(None), place), address);
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl axum::extract::connect_info::Connected<IncomingStream<'_, ScrapeDoor>> for Peer {
    fn connect_info(stream: IncomingStream<'_, ScrapeDoor>) -> Self {
        Self::of(stream.io())
    }
}
