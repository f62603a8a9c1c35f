//! PCAP-over-IP: streams of pcap or pcapng that other programs send over TCP, as live sources.
//!
//! ```text
//!  sender ── TCP ──► socket ──► decoder (that of replay) ──► sink
//!            listen: accepted, one sender a lane at a time; others wait in the kernel's queue
//!            connect: made by a thread of its own, again and again
//! ```
//! - A stream is a whole file from its first byte on. Each connection is a stream of its own; its
//!   interfaces are added to those that earlier ones described.
//! - Nothing is dropped here. A sink that refuses makes the socket fill and the sender wait; what a
//!   sender then drops is its own account.
//! - Time without a sender is a gap, `interface_down`. A stream that breaks off within a record or
//!   makes no sense is a gap, `import_unreadable`, and an error; only its connection ends.
//! - Books: `received` counts packets as they are decoded. Bytes that wait in the socket are not
//!   packets yet.

mod dial;
mod options;
mod peer;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::ClockId;
use wirevault_format::pcapng::STREAM_INTERFACES_MAX;
use wirevault_format::{Cause, Interface, LinkType};

use crate::error::CaptureError;
use crate::replay::decode::DecodeFault;
use crate::source::{
    GapInfo, PacketSink, Polled, Source, SourceCounters, SourceReport, SourceState,
};
use dial::{Dialed, Dialer};
pub use options::{PcapOverIpOptions, Rendezvous};
use peer::{Peer, Taken};

/// Records looked at in one poll at most, so that the lane gets its turn.
const BATCH_RECORDS: u32 = 1024;
/// Interfaces of all streams of a lane together at most, so that senders cannot fill the memory.
/// One stream may describe as many.
const INTERFACES_MAX: usize = STREAM_INTERFACES_MAX;
/// After a stream that made no sense nobody is accepted for so long: a program that sends rubbish
/// again and again must not fill the log.
const BROKEN_PAUSE: Duration = Duration::from_secs(1);

/// Opens `lanes` sources that take senders from one place.
///
/// # Errors
/// No lanes, several lanes that would connect to one sender, or an address that cannot be listened
/// on. A sender that is not there is no error.
pub fn open_streams(
    options: &PcapOverIpOptions,
    lanes: usize,
) -> Result<Vec<PcapOverIpSource>, CaptureError> {
    let refuse = |rule| {
        let value = lanes.to_string();
        Err(CaptureError::Option { name: "lanes", value, rule })
    };
    match &options.rendezvous {
        _ if lanes == 0 => refuse("at least one lane is needed"),
        Rendezvous::Connect(_) if lanes > 1 => {
            refuse("a sender that is connected to sends everything to each lane; use one")
        }
        Rendezvous::Connect(address) => {
            let dialer = Dialer::start(address.clone())
                .map_err(socket_error(address, "starting a thread for it"))?;
            Ok(vec![PcapOverIpSource::new(address.clone(), Place::Dialer(dialer), options)])
        }
        Rendezvous::Listen(address) => {
            let name = address.to_string();
            let listener = TcpListener::bind(address).map_err(socket_error(&name, "listening"))?;
            listener.set_nonblocking(true).map_err(socket_error(&name, "listening"))?;
            // Port 0 has become a real one.
            let name = listener.local_addr().map_or(name, |address| address.to_string());
            let lane = |_| {
                let listener = listener.try_clone().map_err(socket_error(&name, "listening"))?;
                Ok(PcapOverIpSource::new(name.clone(), Place::Listener(listener), options))
            };
            (0..lanes).map(lane).collect()
        }
    }
}

/// One lane's streams, one after the other.
pub struct PcapOverIpSource {
    name: String,
    place: Place,
    rename: Option<String>,
    peer: Option<Peer>,
    interfaces: Vec<Interface>,
    state: SourceState,
    /// Counters of the streams that have ended.
    ended: SourceCounters,
    streams: u64,
    /// Told by the next poll.
    fault: Option<CaptureError>,
    /// Meeting senders fails, and it was told.
    failing: bool,
    not_before: Option<Instant>,
    /// When the connection was last seen to be open, Unix time.
    alive_ns: u64,
}

/// Where senders are met.
enum Place {
    Listener(TcpListener),
    Dialer(Dialer),
}

impl PcapOverIpSource {
    fn new(name: String, place: Place, options: &PcapOverIpOptions) -> Self {
        let now_ns = now_ns();
        let rename = options.interface.clone();
        // Something must carry the gap of the time in which no sender has come yet.
        let mut unknown = Interface::unnamed(LinkType::ETHERNET);
        unknown.name.clone_from(&rename);
        Self {
            name,
            place,
            rename,
            peer: None,
            interfaces: vec![unknown],
            state: SourceState::Waiting { since_ns: now_ns },
            ended: SourceCounters::default(),
            streams: 0,
            fault: None,
            failing: false,
            not_before: None,
            alive_ns: now_ns,
        }
    }

    /// Address that is listened on; nothing where a sender is connected to.
    pub fn local_address(&self) -> Option<SocketAddr> {
        match &self.place {
            Place::Listener(listener) => listener.local_addr().ok(),
            Place::Dialer(_) => None,
        }
    }

    /// Waits for the next sender.
    fn meet(&mut self, wait: Duration) -> Result<Polled, CaptureError> {
        if let Some(pause) = self.not_before.and_then(|until| until.checked_duration_since(now())) {
            std::thread::sleep(pause.min(wait));
            return Ok(Polled::Idle);
        }
        let met = match &self.place {
            Place::Listener(listener) => accept(listener, wait),
            Place::Dialer(dialer) => match dialer.poll(wait) {
                Some(Dialed::Connected(stream, address)) => Ok(Some((stream, address))),
                Some(Dialed::Failed(error)) => Err(error),
                None => Ok(None),
            },
        };
        let peer = met.and_then(|met| {
            let peer = met.map(|(stream, address)| Peer::new(stream, address, now_ns()));
            peer.transpose().inspect_err(|_| self.dial_again(false))
        });
        match peer {
            Ok(None) => Ok(Polled::Idle),
            Ok(Some(peer)) => Ok(Polled::Gap(self.begin(peer))),
            Err(_) if self.failing && matches!(self.place, Place::Listener(_)) => {
                std::thread::sleep(wait);
                Ok(Polled::Idle)
            }
            Err(error) => {
                self.failing = true;
                Err(socket_error(&self.name, "meeting a sender")(error))
            }
        }
    }

    fn begin(&mut self, peer: Peer) -> GapInfo {
        let from_ns = match self.state {
            SourceState::Waiting { since_ns } => since_ns,
            _ => self.alive_ns,
        };
        self.alive_ns = now_ns();
        self.peer = Some(peer);
        self.state = SourceState::Running;
        self.streams += 1;
        self.failing = false;
        let until_ns = Some(self.alive_ns.max(from_ns));
        GapInfo { cause: Cause::InterfaceDown, from_ns, until_ns, packets: None }
    }

    /// Takes what the sender has sent.
    fn take(&mut self, sink: &mut dyn PacketSink, wait: Duration) -> Polled {
        let Some(peer) = &mut self.peer else { return Polled::Idle };
        let (mut handed, mut waited) = (0, wait.is_zero());
        for _ in 0..BATCH_RECORDS {
            match peer.take(sink) {
                Ok(Taken::Packet) => handed += 1,
                Ok(Taken::Nothing) => {}
                Ok(Taken::Refused) => return Polled::Packets(handed),
                Ok(Taken::Interfaces) => {
                    let learned = peer.learn(&mut self.interfaces, self.rename.as_deref());
                    return match learned {
                        Ok(()) => Polled::Interfaces,
                        Err(error) => self.broken(error),
                    };
                }
                Ok(Taken::End) => {
                    self.part(self.alive_ns);
                    break;
                }
                Err(fault) if fault.is_dry() => {
                    self.alive_ns = now_ns();
                    if handed > 0 || waited || !peer.wait(wait) {
                        break;
                    }
                    waited = true;
                }
                Err(fault) => return self.lose(fault),
            }
        }
        if handed == 0 { Polled::Idle } else { Polled::Packets(handed) }
    }

    /// The stream cannot be read on.
    fn lose(&mut self, fault: DecodeFault) -> Polled {
        let Some(peer) = &self.peer else { return Polled::Idle };
        let name = format!("{} from {}", self.name, peer.address);
        match fault.io() {
            // The connection failed: nobody knows what was under way in it.
            Some(source) => {
                let number = source.raw_os_error();
                let source = number.map_or(source.kind().into(), io::Error::from_raw_os_error);
                self.fault = Some(socket_error(&name, "reading")(source));
                self.part(peer.whole_until_ns(self.alive_ns));
                Polled::Idle
            }
            None => self.broken(fault.named(&name)),
        }
    }

    /// The stream is damaged, or says what cannot be.
    fn broken(&mut self, error: CaptureError) -> Polled {
        let now_ns = now_ns();
        let from_ns = self.peer.as_ref().map_or(now_ns, |peer| peer.whole_until_ns(now_ns));
        self.fault = Some(error);
        self.ended.unreadable += 1;
        self.not_before = Some(now() + BROKEN_PAUSE);
        self.part(self.alive_ns);
        let (cause, until_ns) = (Cause::ImportUnreadable, Some(now_ns.max(from_ns + 1)));
        Polled::Gap(GapInfo { cause, from_ns, until_ns, packets: None })
    }

    /// Lets go of the sender.
    fn part(&mut self, since_ns: u64) {
        let Some(peer) = self.peer.take() else { return };
        let counters = peer.counters();
        self.ended = sum(&self.ended, &counters);
        self.state = SourceState::Waiting { since_ns };
        self.dial_again(counters.received > 0);
    }

    fn dial_again(&self, was_of_use: bool) {
        if let Place::Dialer(dialer) = &self.place {
            dialer.dial_again(was_of_use);
        }
    }
}

impl Source for PcapOverIpSource {
    fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    fn poll(&mut self, sink: &mut dyn PacketSink, wait: Duration) -> Result<Polled, CaptureError> {
        match self.fault.take() {
            Some(error) => Err(error),
            None if self.peer.is_some() => Ok(self.take(sink, wait)),
            None => self.meet(wait),
        }
    }

    fn counters(&mut self) -> SourceCounters {
        match &self.peer {
            Some(peer) => sum(&self.ended, &peer.counters()),
            None => self.ended,
        }
    }

    fn state(&self) -> SourceState {
        self.state
    }

    fn report(&self) -> SourceReport {
        let note = match (&self.peer, &self.place) {
            (Some(peer), _) => {
                let format = peer.format().unwrap_or("nothing sent yet");
                format!("connected to {}, stream {}, {format}", peer.address, self.streams)
            }
            (None, Place::Listener(_)) => {
                format!("waiting for a sender on {}; {} so far", self.name, self.streams)
            }
            (None, Place::Dialer(_)) => {
                format!("waiting for {} to answer; {} streams so far", self.name, self.streams)
            }
        };
        SourceReport {
            kind: "pcap_over_ip",
            name: self.name.clone(),
            fanout: None,
            ring_bytes: 0,
            clocks: Vec::new(),
            notes: vec![note],
        }
    }

    fn is_live(&self) -> bool {
        true
    }
}

/// The next sender that waits to be accepted.
fn accept(listener: &TcpListener, wait: Duration) -> io::Result<Option<(TcpStream, String)>> {
    if !readable(listener, wait) {
        return Ok(None);
    }
    match listener.accept() {
        Ok((stream, address)) => Ok(Some((stream, address.to_string()))),
        Err(error) => match error.kind() {
            // Another lane was quicker, or the sender has gone again.
            io::ErrorKind::WouldBlock
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::Interrupted => Ok(None),
            _ => Err(error),
        },
    }
}

/// Waits until there is something to read, or an end or error to be read.
fn readable(socket: &impl AsFd, wait: Duration) -> bool {
    let timeout = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
    let mut sockets = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    match poll(&mut sockets, timeout) {
        Ok(count) => count > 0,
        Err(error) => error != Errno::EINTR,
    }
}

fn socket_error<'a>(
    address: &'a str,
    step: &'static str,
) -> impl FnOnce(io::Error) -> CaptureError + 'a {
    move |source| CaptureError::Stream { address: address.to_owned(), step, source }
}

fn sum(a: &SourceCounters, b: &SourceCounters) -> SourceCounters {
    let mut skipped_blocks = a.skipped_blocks;
    for (sum, blocks) in skipped_blocks.iter_mut().zip(b.skipped_blocks) {
        *sum += blocks;
    }
    SourceCounters {
        received: a.received + b.received,
        handed: a.handed + b.handed,
        dropped_ring: 0,
        in_ring: b.in_ring,
        unreadable: a.unreadable + b.unreadable,
        times_rounded: a.times_rounded + b.times_rounded,
        options_cut: a.options_cut + b.options_cut,
        cut_to_snaplen: a.cut_to_snaplen + b.cut_to_snaplen,
        times_carried: a.times_carried + b.times_carried,
        truncated_mirror: a.truncated_mirror + b.truncated_mirror,
        skipped_blocks,
    }
}

fn now() -> Instant {
    Instant::now()
}

/// Unix time in nanoseconds.
fn now_ns() -> u64 {
    let now = ClockId::CLOCK_REALTIME.now().map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
