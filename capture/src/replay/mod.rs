//! Replay: packets of a capture file or pipe, at full speed or in the time they were taken.
//!
//! Damage ends a replay in three steps, so that no lane can miss it: all whole packets before it, a
//! gap of cause `import_unreadable`, then the error with its place.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use wirevault_format::pcapng::{self, Event, PcapngError};
use wirevault_format::{Cause, Interface};

use crate::error::CaptureError;
use crate::source::{
    GapInfo, Packet, PacketSink, Polled, Source, SourceCounters, SourceReport, SourceState,
};

mod decompress;
mod pcap;

use pcap::{Fault, PcapReader};

/// Packets handed out in one poll at most, so that the lane gets its turn.
const BATCH_PACKETS: u64 = 1024;

/// How fast a replay goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speed {
    /// As fast as the sink takes packets.
    Full,
    /// Each packet comes as long after the first as its time says. A packet whose time lies before
    /// comes at once.
    RealTime,
}

/// Options of a replay.
#[derive(Debug, Clone)]
pub struct ReplayOptions {
    /// File to read; compressed or not.
    pub path: PathBuf,
    /// How fast.
    pub speed: Speed,
}

/// Replays one file or stream.
pub struct ReplaySource {
    name: String,
    format: Format,
    compression: Option<&'static str>,
    interfaces: Vec<Interface>,
    speed: Speed,
    /// When the first packet was due, and its time.
    anchor: Option<(Instant, u64)>,
    /// The current packet was read and not yet taken.
    pending: bool,
    last_ts_ns: u64,
    counters: SourceCounters,
    ending: Ending,
}

type Input = Box<dyn Read + Send>;

enum Format {
    Pcap(PcapReader<Input>),
    Pcapng(pcapng::Reader<Input>),
}

enum Ending {
    No,
    /// The gap was told, the error follows.
    Fault(Box<CaptureError>),
    Over,
}

/// What reading on came to.
enum Advanced {
    Packet,
    Interface,
    Nothing,
    End,
}

impl ReplaySource {
    /// Opens a file.
    ///
    /// Errors: it cannot be opened, or is no capture file.
    pub fn open(options: &ReplayOptions) -> Result<Self, CaptureError> {
        let name = options.path.display().to_string();
        let file = File::open(&options.path).map_err(|source| CaptureError::File {
            path: name.clone(),
            step: "opening",
            at: 0,
            source,
        })?;
        Self::from_reader(name, Box::new(file), options.speed)
    }

    /// Reads a stream, such as standard input; `name` stands in messages.
    ///
    /// Errors: its beginning cannot be read, or is not that of a capture.
    pub fn from_reader(name: String, input: Input, speed: Speed) -> Result<Self, CaptureError> {
        let plain = decompress::open(input).map_err(|source| CaptureError::File {
            path: name.clone(),
            step: "reading",
            at: 0,
            source,
        })?;
        let mut interfaces = Vec::new();
        let format = if plain.first == pcapng::BLOCK_SHB.to_le_bytes() {
            Format::Pcapng(pcapng::Reader::new(plain.reader))
        } else {
            let reader = PcapReader::new(plain.reader).map_err(|fault| fault.named(&name))?;
            interfaces.push(reader.interface());
            Format::Pcap(reader)
        };
        Ok(Self {
            name,
            format,
            compression: plain.compression,
            interfaces,
            speed,
            anchor: None,
            pending: false,
            last_ts_ns: 0,
            counters: SourceCounters::default(),
            ending: Ending::No,
        })
    }

    fn advance(&mut self) -> Result<Advanced, CaptureError> {
        match &mut self.format {
            Format::Pcap(reader) => {
                let more = reader.advance().map_err(|fault| fault.named(&self.name))?;
                if !more {
                    return Ok(Advanced::End);
                }
            }
            Format::Pcapng(reader) => {
                let event = reader.next_event().map_err(|error| name_error(&self.name, error))?;
                match event {
                    None => return Ok(Advanced::End),
                    Some(Event::Other(kind)) => {
                        self.counters.skipped_blocks[kind.index()] += 1;
                        return Ok(Advanced::Nothing);
                    }
                    Some(Event::Interface(_)) => {
                        let known = self.interfaces.len();
                        self.interfaces.extend_from_slice(&reader.interfaces()[known..]);
                        return Ok(Advanced::Interface);
                    }
                    Some(Event::Packet(record)) => {
                        let rounded = record.sub_ns_lost || record.time_clamped;
                        self.counters.times_rounded += u64::from(rounded);
                        self.counters.options_cut += u64::from(record.options_cut);
                    }
                }
            }
        }
        self.counters.received += 1;
        self.pending = true;
        Ok(Advanced::Packet)
    }

    /// The current packet, if one waits.
    fn packet(&self) -> Option<Packet<'_>> {
        if !self.pending {
            return None;
        }
        match &self.format {
            Format::Pcap(reader) => {
                let pcap::Record { ts_ns, wire_len, data } = reader.record();
                let (vlan, flags) = (None, None);
                Some(Packet { interface: 0, ts_ns, wire_len, data, vlan, flags, options: &[] })
            }
            Format::Pcapng(reader) => reader.packet().map(|record| Packet {
                interface: record.interface,
                ts_ns: record.ts_ns,
                wire_len: record.orig_len,
                data: record.data,
                vlan: None,
                flags: record.flags,
                options: record.options,
            }),
        }
    }

    /// How long the packet of that time is not due yet.
    fn early(&mut self, ts_ns: u64) -> Duration {
        if self.speed == Speed::Full {
            return Duration::ZERO;
        }
        let (start, first_ns) = *self.anchor.get_or_insert((Instant::now(), ts_ns));
        let due = Duration::from_nanos(ts_ns.saturating_sub(first_ns));
        due.saturating_sub(start.elapsed())
    }

    fn fail(&mut self, error: CaptureError) -> Polled {
        self.counters.unreadable += 1;
        self.ending = Ending::Fault(Box::new(error));
        Polled::Gap(GapInfo {
            cause: Cause::ImportUnreadable,
            from_ns: self.last_ts_ns,
            until_ns: None,
            packets: None,
        })
    }
}

impl Source for ReplaySource {
    fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    fn poll(&mut self, sink: &mut dyn PacketSink, wait: Duration) -> Result<Polled, CaptureError> {
        match std::mem::replace(&mut self.ending, Ending::Over) {
            Ending::No => self.ending = Ending::No,
            Ending::Fault(error) => return Err(*error),
            Ending::Over => return Ok(Polled::End),
        }
        let mut handed = 0;
        while handed < BATCH_PACKETS {
            if !self.pending {
                match self.advance() {
                    Ok(Advanced::Packet) => {}
                    Ok(Advanced::Nothing) => continue,
                    Ok(Advanced::Interface) => return Ok(Polled::Interfaces),
                    Ok(Advanced::End) if handed == 0 => {
                        self.ending = Ending::Over;
                        return Ok(Polled::End);
                    }
                    Ok(Advanced::End) => {
                        self.ending = Ending::Over;
                        return Ok(Polled::Packets(handed));
                    }
                    Err(error) => return Ok(self.fail(error)),
                }
            }
            let ts_ns = self.packet().map_or(0, |packet| packet.ts_ns);
            let early = self.early(ts_ns);
            if !early.is_zero() {
                if handed > 0 {
                    break;
                }
                std::thread::sleep(early.min(wait));
                if early > wait {
                    return Ok(Polled::Idle);
                }
            }
            let taken = self.packet().is_some_and(|packet| sink.packet(&packet).is_continue());
            if !taken {
                break;
            }
            self.pending = false;
            self.last_ts_ns = ts_ns;
            self.counters.handed += 1;
            handed += 1;
        }
        Ok(Polled::Packets(handed))
    }

    fn counters(&mut self) -> SourceCounters {
        SourceCounters { in_ring: u64::from(self.pending), ..self.counters }
    }

    fn state(&self) -> SourceState {
        match self.ending {
            Ending::No => SourceState::Running,
            Ending::Fault(_) | Ending::Over => SourceState::Ended,
        }
    }

    fn report(&self) -> SourceReport {
        let clocks = self.interfaces.iter().filter_map(|i| i.clock.clone()).collect();
        let format = match self.format {
            Format::Pcap(_) => "pcap",
            Format::Pcapng(_) => "pcapng",
        };
        let packing = self.compression.map_or(String::new(), |name| format!(", {name}"));
        SourceReport {
            kind: "replay",
            name: self.name.clone(),
            fanout: None,
            ring_bytes: 0,
            clocks,
            notes: vec![format!("format: {format}{packing}")],
        }
    }

    fn is_live(&self) -> bool {
        false
    }
}

impl Fault {
    fn named(self, path: &str) -> CaptureError {
        let path = path.to_owned();
        match self {
            Self::Io { at, source } => CaptureError::File { path, step: "reading", at, source },
            Self::Unsupported(what) => CaptureError::Unsupported { path, what },
            Self::Record { at, what, packets } => CaptureError::Record { path, at, what, packets },
        }
    }
}

fn name_error(path: &str, error: PcapngError) -> CaptureError {
    let path = path.to_owned();
    match error {
        PcapngError::Io { at, source } => CaptureError::File { path, step: "reading", at, source },
        source => CaptureError::Pcapng { path, source },
    }
}
