//! Replay: packets of a capture file or pipe, at full speed or in the time they were taken.
//!
//! Damage ends a replay in three steps, so that no lane can miss it: all whole packets before it, a
//! gap of cause `import_unreadable`, then the error with its place.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use wirevault_format::{Cause, Interface};

use crate::error::CaptureError;
use crate::source::{
    GapInfo, PacketSink, Polled, Source, SourceCounters, SourceReport, SourceState,
};

pub(crate) mod decode;
mod decompress;
mod pcap;

use decode::{Advanced, Decoder};

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
    decoder: Decoder<Input>,
    compression: Option<&'static str>,
    speed: Speed,
    /// When the first packet was due, and its time.
    anchor: Option<(Instant, u64)>,
    last_ts_ns: u64,
    unreadable: u64,
    ending: Ending,
}

type Input = Box<dyn Read + Send>;

enum Ending {
    No,
    /// The gap was told, the error follows.
    Fault(Box<CaptureError>),
    Over,
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
        let decoder = Decoder::new(plain.reader, &plain.first);
        let decoder = decoder.map_err(|fault| fault.named(&name))?;
        Ok(Self {
            name,
            decoder,
            compression: plain.compression,
            speed,
            anchor: None,
            last_ts_ns: 0,
            unreadable: 0,
            ending: Ending::No,
        })
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
        self.unreadable += 1;
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
        self.decoder.interfaces()
    }

    fn poll(&mut self, sink: &mut dyn PacketSink, wait: Duration) -> Result<Polled, CaptureError> {
        match std::mem::replace(&mut self.ending, Ending::Over) {
            Ending::No => self.ending = Ending::No,
            Ending::Fault(error) => return Err(*error),
            Ending::Over => return Ok(Polled::End),
        }
        let mut handed = 0;
        while handed < BATCH_PACKETS {
            match self.decoder.advance() {
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
                Err(fault) => return Ok(self.fail(fault.named(&self.name))),
            }
            let ts_ns = self.decoder.packet().map_or(0, |packet| packet.ts_ns);
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
            let packet = self.decoder.packet();
            if !packet.is_some_and(|packet| sink.packet(&packet).is_continue()) {
                break;
            }
            self.decoder.taken();
            self.last_ts_ns = ts_ns;
            handed += 1;
        }
        Ok(Polled::Packets(handed))
    }

    fn counters(&mut self) -> SourceCounters {
        SourceCounters { unreadable: self.unreadable, ..self.decoder.counters() }
    }

    fn state(&self) -> SourceState {
        match self.ending {
            Ending::No => SourceState::Running,
            Ending::Fault(_) | Ending::Over => SourceState::Ended,
        }
    }

    fn report(&self) -> SourceReport {
        let clocks = self.interfaces().iter().filter_map(|i| i.clock.clone()).collect();
        let format = self.decoder.format();
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
