//! Where an answer's packets go, and what is said at its end.

use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::path::Path;

use indicatif::ProgressBar;
use wirevault_format::Interface;
use wirevault_query::export::{LineSink, PcapSink, PcapngSink};
use wirevault_query::summary::Instant;
use wirevault_query::time::local_zone;
use wirevault_query::{PacketOut, Request, Sink, Summary};

use crate::args::FileFormat;
use crate::error::CliError;
use crate::interrupt::{self, Cancel};
use crate::outcome::Outcome;
use crate::output::{Paint, Target, put, tell, write_json};
use crate::progress;

/// What the packets of an answer become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape<'a> {
    /// One line each on standard output.
    Lines,
    /// Only their number.
    Count,
    /// A file, or standard output if it is `-`.
    File(&'a Path, FileFormat),
}

/// Receives an answer. Files are made at the first packet or at the end, so that a refused question
/// leaves them as they were.
pub(crate) struct Answer<'a> {
    shape: Shape<'a>,
    target: Option<Target>,
    open: Open,
    /// Lines are for somebody who watches.
    watched: bool,
    cancel: Cancel,
    bar: ProgressBar,
    packets: u64,
    bytes: u64,
}

enum Open {
    NotYet,
    Lines(LineSink<Target>),
    Pcapng(PcapngSink<Target>),
    Pcap(PcapSink<Target>),
}

impl<'a> Answer<'a> {
    /// `watched`: every line is passed on at once.
    ///
    /// # Errors
    /// `Usage` if packets would go to a terminal.
    pub(crate) fn new(shape: Shape<'a>, watched: bool, cancel: &Cancel) -> Result<Self, CliError> {
        let target = match shape {
            Shape::File(path, _) => Target::packets(path)?,
            Shape::Lines | Shape::Count => Target::Stdout(io::stdout()),
        };
        let lines_are_seen = shape == Shape::Lines && io::stdout().is_terminal();
        let bar = match lines_are_seen {
            true => ProgressBar::hidden(),
            false => progress::counter("found"),
        };
        Ok(Self {
            shape,
            target: Some(target),
            open: Open::NotYet,
            watched: watched || lines_are_seen,
            cancel: cancel.clone(),
            bar,
            packets: 0,
            bytes: 0,
        })
    }

    /// Ends the answer: the file is completed, the summary told and written.
    ///
    /// # Errors
    /// Writing failed.
    pub(crate) fn finish(
        mut self,
        summary: &Summary,
        summary_file: Option<&Path>,
    ) -> Result<Outcome, CliError> {
        self.bar.finish_and_clear();
        if self.shape == Shape::Count {
            put(&format!("{}\n", summary.packets))?;
        } else {
            self.open()?;
        }
        let closed = match self.open {
            Open::NotYet => Ok(()),
            Open::Lines(sink) => sink.finish().map(drop),
            Open::Pcapng(sink) => sink.finish(summary).map(drop),
            Open::Pcap(sink) => sink.finish().map(drop),
        };
        conclude(summary, summary_file)?;
        closed?;
        Ok(match interrupt::is_set(&self.cancel) {
            true => Outcome::Incomplete,
            false => Outcome::of(summary, summary.packets),
        })
    }

    /// What can be said of an answer that ended before its time: so much came, and it is cut.
    pub(crate) fn so_far(&self, request: &Request) -> Summary {
        Summary { packets: self.packets, bytes: self.bytes, ..cut(request) }
    }

    fn open(&mut self) -> io::Result<&mut Open> {
        if let (Open::NotYet, Some(target)) = (&self.open, self.target.take()) {
            self.open = match self.shape {
                Shape::Lines => Open::Lines(LineSink::new(target, local_zone())),
                Shape::Count => Open::NotYet,
                Shape::File(_, FileFormat::Pcap) => Open::Pcap(PcapSink::new(target)),
                Shape::File(_, FileFormat::Pcapng) => Open::Pcapng(PcapngSink::new(target)?),
            };
        }
        Ok(&mut self.open)
    }
}

impl Sink for Answer<'_> {
    fn interface(&mut self, id: u32, interface: &Interface) -> io::Result<()> {
        match self.open()? {
            Open::NotYet => Ok(()),
            Open::Lines(sink) => sink.interface(id, interface),
            Open::Pcapng(sink) => sink.interface(id, interface),
            Open::Pcap(sink) => sink.interface(id, interface),
        }
    }

    fn packet(&mut self, packet: &PacketOut<'_>) -> io::Result<ControlFlow<()>> {
        self.packets += 1;
        self.bytes += packet.data.len() as u64;
        if self.packets.is_multiple_of(1024) {
            self.bar.set_position(self.packets);
        }
        let watched = self.watched;
        let flow = match self.open()? {
            Open::NotYet => ControlFlow::Continue(()),
            Open::Lines(sink) => {
                let flow = sink.packet(packet)?;
                if watched {
                    sink.flush()?;
                }
                flow
            }
            Open::Pcapng(sink) => sink.packet(packet)?,
            Open::Pcap(sink) => sink.packet(packet)?,
        };
        Ok(if interrupt::is_set(&self.cancel) { ControlFlow::Break(()) } else { flow })
    }
}

/// The summary of an answer that ended before its own.
pub(crate) fn cut(request: &Request) -> Summary {
    Summary {
        limit_reached: true,
        since: request.since_ns.map(Instant::from),
        until: request.until_ns.map(Instant::from),
        ..Summary::default()
    }
}

/// Tells people what the answer says of itself, and writes it for programs.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn conclude(summary: &Summary, summary_file: Option<&Path>) -> Result<(), CliError> {
    let text = summary.to_string();
    let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
    let paint = Paint::stderr();
    tell(&match summary.complete {
        true => first.to_owned(),
        false => paint.warn(first),
    });
    if !rest.is_empty() {
        tell(rest);
    }
    summary_file.map_or(Ok(()), |path| write_json(path, summary))
}
