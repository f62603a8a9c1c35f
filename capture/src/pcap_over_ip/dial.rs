//! Connects to a sender on a thread of its own: looking a name up and connecting block, and the
//! lane may not.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

/// First pause, and the pause after a connection that brought packets. A program that serves one
/// file to each that connects is not asked more often than this.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// Longest time that one attempt takes.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// What came of an attempt.
pub(super) enum Dialed {
    /// A connection, and the address it leads to.
    Connected(TcpStream, String),
    /// Why not; told once until that changes.
    Failed(io::Error),
}

/// The source's end. Dropping it ends the thread at its next look.
pub(super) struct Dialer {
    orders: SyncSender<Order>,
    dialed: Receiver<Dialed>,
}

/// To connect.
struct Order {
    /// The last connection brought something.
    was_of_use: bool,
}

impl Dialer {
    /// Starts connecting to `address`, a host and a port.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn start(address: String) -> io::Result<Self> {
        let (orders, orders_end) = sync_channel(1);
        let (dialed_end, dialed) = sync_channel(1);
        let run = move || run(&address, &orders_end, &dialed_end);
        std::thread::Builder::new().name("dial".to_owned()).spawn(run)?;
        Ok(Self { orders, dialed })
    }

    /// Orders the next connection. The one before was delivered, so the thread waits for it.
    pub(super) fn dial_again(&self, was_of_use: bool) {
        // Only a thread that panicked is gone.
        let _ = self.orders.try_send(Order { was_of_use });
    }

    /// What came of attempts since the last call.
    pub(super) fn poll(&self, wait: Duration) -> Option<Dialed> {
        self.dialed.recv_timeout(wait).ok()
    }
}

fn run(address: &str, orders: &Receiver<Order>, dialed: &SyncSender<Dialed>) {
    let (mut pause, mut told) = (PAUSE_MIN, String::new());
    loop {
        match dial(address) {
            Ok((stream, to)) => {
                told.clear();
                if dialed.send(Dialed::Connected(stream, to)).is_err() {
                    return;
                }
                let Ok(Order { was_of_use }) = orders.recv() else { return };
                pause = if was_of_use { PAUSE_MIN } else { longer(pause) };
            }
            Err(error) => {
                let text = error.to_string();
                if text != told && dialed.try_send(Dialed::Failed(error)).is_ok() {
                    told = text;
                }
                pause = longer(pause);
            }
        }
        if let Err(RecvTimeoutError::Disconnected) = orders.recv_timeout(pause) {
            return;
        }
    }
}

fn longer(pause: Duration) -> Duration {
    (pause * 2).min(PAUSE_MAX)
}

/// Tries each address of the name.
fn dial(address: &str) -> io::Result<(TcpStream, String)> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for to in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&to, CONNECT_MAX) {
            Ok(stream) => return Ok((stream, to.to_string())),
            Err(error) => last = error,
        }
    }
    Err(last)
}
