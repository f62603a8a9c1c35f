//! `wirevault tail --listen`: the live view over TCP, as PCAP-over-IP: a pcapng or pcap file from
//! its header on, without end.
//!
//! ```text
//!  daemon ── one tail for each client ──► thread ──► TCP ──► tshark -i TCP@..., nc | tcpdump -r -
//! ```
//! A client that is slow makes its own tail miss packets, which its stream and this command tell;
//! neither the recorder nor other clients notice. What clients send is not looked at.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use wirevault_format::LinkType;
use wirevault_format::pcapng::{self, BLOCK_EPB, BLOCK_IDB, Epb, PcapngError};
use wirevault_index::error::chain;
use wirevault_query::export::PcapSink;
use wirevault_query::{PacketOut, Sink};

use crate::args::{FileFormat, TailArgs};
use crate::client::{Client, Endpoint};
use crate::error::CliError;
use crate::interrupt::{self, Cancel};
use crate::outcome::Outcome;
use crate::output::{count_text, tell};
use crate::verbs::tail::{Blocks, pass_on};

/// Clients at a time. The daemon makes 32 answers at a time; the rest is for other questions.
const CLIENTS_MAX: usize = 8;
/// How often the door, the clients and Ctrl-C are looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long a write waits before Ctrl-C is looked at.
const WRITE_WAIT: Duration = Duration::from_millis(200);
/// A client that takes nothing for so long is let go of: it holds a place.
const STALL_MAX: Duration = Duration::from_secs(60);
/// For a look whether a client is still there. Shorter than a tick of any kernel.
const PEEK_WAIT: Duration = Duration::from_micros(1);

/// Serves the tail at `path` of the daemon's API until Ctrl-C.
///
/// # Errors
/// The address is open to others without leave or cannot be had, the daemon is not there or refuses
/// the filter.
pub(crate) fn serve(args: &TailArgs, address: SocketAddr, path: &str) -> Result<Outcome, CliError> {
    if !address.ip().is_loopback() && !args.allow_remote {
        return Err(CliError::Usage(format!(
            "--listen {address}: packets would leave this machine unencrypted, to everybody who \
             reaches that address; listen on 127.0.0.1 and use a tunnel (ssh -L), or give \
             --allow-remote"
        )));
    }
    let cancel = interrupt::watch()?;
    // A filter or a daemon that is wrong is told now and not to the first client.
    let endpoint = Endpoint::new(&args.daemon, args.key.as_deref());
    drop(Client::connect(&endpoint, &cancel)?.get_stream(path)?);
    let failed = |source| CliError::Listen { address, source };
    let listener = TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tell(&format!("serving on {address}, to {CLIENTS_MAX} clients at a time; Ctrl-C ends it"));
    let order = Order { endpoint, path: path.to_owned(), format: args.format };
    let mut clients: Vec<Viewer> = Vec::new();
    while !interrupt::is_set(&cancel) {
        clients.retain_mut(Viewer::is_there);
        match listener.accept() {
            Ok((stream, peer)) => admit(&mut clients, stream, peer, &order),
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(LOOK),
            Err(error) => {
                tell(&format!("a client could not be taken: {error}"));
                std::thread::sleep(LOOK);
            }
        }
    }
    clients.iter().for_each(Viewer::let_go);
    for client in clients {
        // A thread that panicked has told so.
        let _ = client.thread.join();
    }
    Ok(Outcome::Found)
}

/// What every client gets.
#[derive(Clone)]
struct Order {
    endpoint: Endpoint,
    path: String,
    format: FileFormat,
}

/// A client that is being served.
struct Viewer {
    peer: SocketAddr,
    socket: TcpStream,
    /// Tells its thread to end.
    leave: Cancel,
    /// It will send no more. It may still read, as `nc` does when its input has ended.
    half_closed: bool,
    thread: JoinHandle<()>,
}

impl Viewer {
    /// Looks at the connection; what came in is thrown away.
    fn is_there(&mut self) -> bool {
        if self.thread.is_finished() {
            return false;
        }
        match self.socket.read(&mut [0; 1024]) {
            Ok(0) => self.half_closed = true,
            Ok(_) => {}
            Err(error) if is_no_data(&error) => {}
            Err(_) => self.let_go(),
        }
        true
    }

    fn let_go(&self) {
        self.leave.store(true, Ordering::Relaxed);
    }
}

fn is_no_data(error: &io::Error) -> bool {
    // A timeout of a socket is the one or the other.
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// Begins to serve a client, if there is room. One whose client sends no more gives way.
fn admit(clients: &mut Vec<Viewer>, stream: TcpStream, peer: SocketAddr, order: &Order) {
    if clients.len() >= CLIENTS_MAX {
        let Some(at) = clients.iter().position(|client| client.half_closed) else {
            tell(&format!("{peer} was turned away: {CLIENTS_MAX} clients are being served"));
            return;
        };
        let gone = clients.remove(at);
        tell(&format!("{} gives way to {peer}", gone.peer));
        gone.let_go();
    }
    match begin(stream, peer, order) {
        Ok(client) => clients.push(client),
        Err(error) => tell(&format!("{peer} could not be served: {error}")),
    }
}

fn begin(stream: TcpStream, peer: SocketAddr, order: &Order) -> io::Result<Viewer> {
    // The listener's mode is not that of its connections everywhere.
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(WRITE_WAIT))?;
    stream.set_read_timeout(Some(PEEK_WAIT))?;
    stream.set_nodelay(true)?;
    let (socket, leave, order) = (stream.try_clone()?, Cancel::default(), order.clone());
    let out = Out { stream, leave: Arc::clone(&leave) };
    let thread = std::thread::Builder::new().name("viewer".to_owned()).spawn(move || {
        let told = |text: &str| tell(&format!("{peer}: {text}"));
        told("connected");
        // Another holder of the socket would keep it open.
        let stream = out.stream.try_clone();
        match send(out, &order, &told) {
            Ok(packets) => told(&format!("ended after {}", count_text(packets, "packet"))),
            Err(CliError::Output(error)) => told(&format!("gone: {error}")),
            Err(error) => told(&chain(&error)),
        }
        let _ = stream.and_then(|stream| stream.shutdown(Shutdown::Both));
    })?;
    Ok(Viewer { peer, socket, leave, half_closed: false, thread })
}

/// Sends one tail to one client. Returns the packets that the daemon gave.
fn send(mut out: Out, order: &Order, told: &dyn Fn(&str)) -> Result<u64, CliError> {
    let leave = Arc::clone(&out.leave);
    let body = Client::connect(&order.endpoint, &leave)?.get_stream(&order.path)?;
    match order.format {
        FileFormat::Pcapng => pass_on(body, &mut out, &leave, told),
        FileFormat::Pcap => {
            let mut out = PcapOut::new(out);
            let packets = pass_on(body, &mut out, &leave, told)?;
            if out.left_out > 0 {
                let left_out = count_text(out.left_out, "packet");
                told(&format!("{left_out} of other link types left out; pcapng has room for them"));
            }
            Ok(packets)
        }
    }
}

/// The writing end of a connection. It waits for a slow client, but not for ever, and not when it
/// is to end.
struct Out {
    stream: TcpStream,
    leave: Cancel,
}

impl Write for Out {
    #[expect(clippy::disallowed_methods, reason = "it looks at the time between two attempts")]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let begin = Instant::now();
        loop {
            if interrupt::is_set(&self.leave) {
                return Err(io::Error::new(ErrorKind::BrokenPipe, "let go"));
            }
            match self.stream.write(bytes) {
                Err(error) if is_no_data(&error) && begin.elapsed() < STALL_MAX => {}
                Err(error) if is_no_data(&error) => {
                    let text = format!("it took nothing for {} s", STALL_MAX.as_secs());
                    return Err(io::Error::new(ErrorKind::TimedOut, text));
                }
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Blocks for Out {
    fn blocks(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        Ok(self.write_all(bytes)?)
    }
}

/// Makes classic pcap of a tail. The first interface decides the link type.
struct PcapOut<W: Write> {
    sink: PcapSink<W>,
    link_types: Vec<LinkType>,
    /// Packets of other link types.
    left_out: u64,
}

impl<W: Write> PcapOut<W> {
    fn new(out: W) -> Self {
        Self { sink: PcapSink::new(out), link_types: Vec::new(), left_out: 0 }
    }

    fn packet(&mut self, packet: &Epb<'_>) -> Result<(), CliError> {
        let Some(link_type) = self.link_types.get(packet.interface_id as usize).copied() else {
            return Ok(());
        };
        if link_type != self.sink.begin(link_type)? {
            self.left_out += 1;
            return Ok(());
        }
        let packet = PacketOut {
            interface: packet.interface_id,
            link_type,
            ts_ns: packet.ts_ns,
            orig_len: packet.orig_len,
            data: packet.data,
            flags: packet.flags,
            options: packet.options,
        };
        // It never has enough.
        let _ = self.sink.packet(&packet)?;
        Ok(())
    }
}

impl<W: Write> Blocks for PcapOut<W> {
    fn blocks(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        let wrong = |error: PcapngError| CliError::Answer { what: error.to_string() };
        for block in pcapng::Blocks::new(bytes) {
            let block = block.map_err(wrong)?;
            match block.kind {
                BLOCK_IDB => {
                    let link_type = pcapng::read::interface(&block).map_err(wrong)?.link_type;
                    self.sink.begin(link_type)?;
                    self.link_types.push(link_type);
                }
                BLOCK_EPB => self.packet(&Epb::parse(&block).map_err(wrong)?)?,
                _ => {}
            }
        }
        Ok(self.sink.flush()?)
    }
}

#[cfg(test)]
mod tests {
    use wirevault_format::Interface;
    use wirevault_format::pcapng::{EpbParts, put_epb, put_idb, put_isb_comment, put_shb};

    use super::*;

    #[test]
    fn pcap_begins_with_the_first_interface_and_keeps_to_its_link_type() {
        let mut file = Vec::new();
        let mut out = PcapOut::new(&mut file);
        let mut bytes = Vec::new();
        put_shb(&mut bytes, "test");
        out.blocks(&bytes).unwrap();
        bytes.clear();
        put_idb(&mut bytes, &Interface::unnamed(LinkType::RAW), 262_144);
        out.blocks(&bytes).unwrap();
        assert_eq!(out.sink.begin(LinkType::ETHERNET).unwrap(), LinkType::RAW);
        bytes.clear();
        put_idb(&mut bytes, &Interface::unnamed(LinkType::ETHERNET), 262_144);
        put_isb_comment(&mut bytes, 0, 1, "a comment");
        for (interface_id, data) in [(0, &[0x45; 20][..]), (1, &[7; 60]), (0, &[0x46; 24])] {
            let parts = EpbParts {
                interface_id,
                ts_ns: 1_500_000_000,
                orig_len: data.len() as u32,
                data,
                vlan: None,
                flags: None,
                raw_options: &[],
            };
            let at = bytes.len();
            bytes.resize(at + parts.block_bytes(), 0);
            put_epb(&mut bytes, at, &parts).unwrap();
        }
        out.blocks(&bytes).unwrap();
        assert_eq!(out.left_out, 1);
        drop(out);
        assert_eq!(file.len(), 24 + 16 + 20 + 16 + 24);
        assert_eq!(
            (file[20], file[24], &file[28..32]),
            (101, 1, &500_000_000_u32.to_le_bytes()[..])
        );
    }
}
