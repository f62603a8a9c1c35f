//! One connection and the stream in it.

use std::io::{self, Chain, Cursor, Read};
use std::net::TcpStream;
use std::ops::ControlFlow;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use wirevault_format::Interface;
use wirevault_format::pcapng::BLOCK_SHB;

use super::{INTERFACES_MAX, readable};
use crate::error::CaptureError;
use crate::replay::decode::{Advanced, DecodeFault, Decoder};
use crate::source::{Packet, PacketSink, SourceCounters};

/// Bytes of a pcap header. A pcapng stream is known by its first four.
const HEAD_BYTES: usize = 24;
/// A peer that vanished without a word is noticed after about `KEEP_IDLE_S + KEEP_PROBES *
/// KEEP_INTERVAL_S` seconds; until then it keeps others from its lane.
const KEEP_IDLE_S: u32 = 30;
const KEEP_INTERVAL_S: u32 = 10;
const KEEP_PROBES: u32 = 3;

/// A sender.
pub(super) struct Peer {
    /// Its address.
    pub(super) address: String,
    connected_ns: u64,
    /// Time of its last packet.
    last_ts_ns: u64,
    socket: TcpStream,
    /// The first bytes, until they tell the format.
    head: Vec<u8>,
    stream: Option<Decoder<Input>>,
    /// Place in the source's list for each interface of the stream.
    places: Vec<u32>,
}

type Input = Chain<Cursor<Vec<u8>>, TcpStream>;

/// What one step came to.
pub(super) enum Taken {
    /// The sink has one packet more.
    Packet,
    /// The sink has no room; the packet is offered again.
    Refused,
    /// Interfaces must be learned before packets of them come.
    Interfaces,
    /// Something was read that is no packet.
    Nothing,
    /// The sender ended the stream behind a whole record, or sent nothing at all.
    End,
}

impl Peer {
    /// Takes a connection over.
    ///
    /// # Errors
    /// The kernel refuses what every connection needs.
    pub(super) fn new(socket: TcpStream, address: String, now_ns: u64) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        setsockopt(&socket, sockopt::KeepAlive, &true)?;
        setsockopt(&socket, sockopt::TcpKeepIdle, &KEEP_IDLE_S)?;
        setsockopt(&socket, sockopt::TcpKeepInterval, &KEEP_INTERVAL_S)?;
        setsockopt(&socket, sockopt::TcpKeepCount, &KEEP_PROBES)?;
        let head = Vec::with_capacity(HEAD_BYTES);
        let (stream, places) = (None, Vec::new());
        let (connected_ns, last_ts_ns) = (now_ns, now_ns);
        Ok(Self { address, connected_ns, last_ts_ns, socket, head, stream, places })
    }

    /// From when on packets may be absent if the stream breaks off now. Times are the sender's
    /// word: one from long ago must not cast doubt on everything since.
    pub(super) fn whole_until_ns(&self, now_ns: u64) -> u64 {
        self.last_ts_ns.min(now_ns).max(self.connected_ns)
    }

    /// Name of the format, once it is known.
    pub(super) fn format(&self) -> Option<&'static str> {
        self.stream.as_ref().map(Decoder::format)
    }

    /// Counts of this stream.
    pub(super) fn counters(&self) -> SourceCounters {
        self.stream.as_ref().map(Decoder::counters).unwrap_or_default()
    }

    /// Waits for bytes; false if none came.
    pub(super) fn wait(&self, wait: Duration) -> bool {
        readable(&self.socket, wait)
    }

    /// Reads one record and gives a packet to the sink.
    ///
    /// # Errors
    /// The stream is dry or cannot be read on.
    pub(super) fn take(&mut self, sink: &mut dyn PacketSink) -> Result<Taken, DecodeFault> {
        let Some(stream) = &mut self.stream else { return self.begin() };
        match stream.advance()? {
            Advanced::Packet => {}
            Advanced::Interface => return Ok(Taken::Interfaces),
            Advanced::Nothing => return Ok(Taken::Nothing),
            Advanced::End => return Ok(Taken::End),
        }
        let Some(packet) = stream.packet() else { return Ok(Taken::Nothing) };
        let place = self.places.get(packet.interface as usize).copied();
        let ts_ns = packet.ts_ns;
        let taken = match place {
            Some(interface) => sink.packet(&Packet { interface, ..packet }),
            None => ControlFlow::Break(()),
        };
        if taken.is_break() {
            return Ok(Taken::Refused);
        }
        stream.taken();
        self.last_ts_ns = ts_ns;
        Ok(Taken::Packet)
    }

    /// Reads the stream's first bytes. Those of pcap are wanted whole: its reader starts with them.
    fn begin(&mut self) -> Result<Taken, DecodeFault> {
        let want = match self.head.starts_with(&BLOCK_SHB.to_le_bytes()) {
            true => self.head.len(),
            false => HEAD_BYTES,
        };
        let mut ended = false;
        if self.head.len() < want {
            let mut bytes = [0; HEAD_BYTES];
            match self.socket.read(&mut bytes[..want - self.head.len()]) {
                Ok(0) => ended = true,
                Ok(count) => self.head.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(DecodeFault::input(self.head.len() as u64, source)),
            }
            if ended && self.head.is_empty() {
                return Ok(Taken::End);
            }
            let known = self.head.len() == want || self.head.starts_with(&BLOCK_SHB.to_le_bytes());
            if !known && !ended {
                return Ok(Taken::Nothing);
            }
        }
        let socket = self.socket.try_clone();
        let socket = socket.map_err(|source| DecodeFault::input(self.head.len() as u64, source))?;
        let head = std::mem::take(&mut self.head);
        let first = head.clone();
        self.stream = Some(Decoder::new(Cursor::new(head).chain(socket), &first)?);
        Ok(Taken::Interfaces)
    }

    /// Adds the stream's new interfaces to the source's list.
    ///
    /// # Errors
    /// `Unsupported` if senders have described too many.
    pub(super) fn learn(
        &mut self,
        interfaces: &mut Vec<Interface>,
        rename: Option<&str>,
    ) -> Result<(), CaptureError> {
        let described = self.stream.as_ref().map(Decoder::interfaces).unwrap_or_default();
        for interface in &described[self.places.len()..] {
            let mut interface = interface.clone();
            if let Some(name) = rename {
                interface.name = Some(name.to_owned());
            }
            let known = interfaces.iter().position(|known| *known == interface);
            if known.is_none() && interfaces.len() == INTERFACES_MAX {
                let what = format!(
                    "senders have described {INTERFACES_MAX} interfaces since the start, which is \
                     the most; restart the recorder, or set `interface` so that all have one name"
                );
                return Err(CaptureError::Unsupported { path: self.address.clone(), what });
            }
            self.places.push(known.unwrap_or(interfaces.len()) as u32);
            if known.is_none() {
                interfaces.push(interface);
            }
        }
        Ok(())
    }
}
