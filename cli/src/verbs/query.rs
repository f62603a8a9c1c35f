//! `wirevault query`: packets, from a store or from the daemon.

use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::path::Path;

use wirevault_daemon::api::{self, QueryBody};
use wirevault_format::pcapng::{Event, PcapngError, Reader, put_isb_comment};
use wirevault_index::Catalog;
use wirevault_query::{PacketOut, QueryError, Request, Sink, Summary, run};
use wirevault_telemetry::clock::{Clock, SystemClock};

use crate::answer::{Answer, Shape, conclude, cut};
use crate::args::{FileFormat, QueryArgs};
use crate::client::{Body, Watch};
use crate::error::CliError;
use crate::interrupt::{self, Cancel};
use crate::outcome::Outcome;
use crate::output::{Target, count_text, tell};
use crate::place::{self, Asked};

/// Bytes taken from the socket at a time.
const PIECE_BYTES: usize = 256 << 10;

/// Answers a query.
pub(crate) fn query(args: &QueryArgs) -> Result<Outcome, CliError> {
    let request = Request {
        limit: args.limit,
        sort: args.sort,
        count_only: args.count,
        ..place::request(&args.question)?
    };
    let shape = match &args.write {
        Some(path) => Shape::File(path, args.format),
        None if args.count => Shape::Count,
        None => Shape::Lines,
    };
    let cancel = interrupt::watch()?;
    let answer = Answer::new(shape, false, &cancel)?;
    let summary_file = args.summary.as_deref();
    match place::ask(&args.place, &cancel)? {
        Asked::Store(store) => {
            let catalog = store.catalog(SystemClock.unix_ns());
            from_store(&catalog, &request, answer, summary_file, &cancel)
        }
        Asked::Daemon(client) => {
            let body = client.post(api::QUERY, &QueryBody::from(request.clone()))?;
            match shape {
                Shape::File(path, FileFormat::Pcapng) => {
                    pass_on(body, Target::packets(path)?, &request, summary_file, &cancel)
                }
                _ => decode(body, &request, answer, summary_file, &cancel),
            }
        }
    }
}

fn from_store(
    catalog: &Catalog,
    request: &Request,
    mut answer: Answer<'_>,
    summary_file: Option<&Path>,
    cancel: &Cancel,
) -> Result<Outcome, CliError> {
    match run(catalog, request, &mut answer, cancel) {
        Ok(summary) => answer.finish(&summary, summary_file),
        Err(QueryError::Cancelled) => {
            let summary = answer.so_far(request);
            answer.finish(&summary, summary_file)
        }
        Err(error) => Err(error.into()),
    }
}

/// Writes the daemon's pcapng byte for byte. Only whole blocks are written, so a cut answer is
/// still a file that readers take, and its last block says that it is cut.
fn pass_on(
    mut body: Body,
    mut target: Target,
    request: &Request,
    summary_file: Option<&Path>,
    cancel: &Cancel,
) -> Result<Outcome, CliError> {
    let (mut watch, mut piece, mut pending) = (Watch::default(), vec![0; PIECE_BYTES], Vec::new());
    let cut_by = loop {
        match body.read(&mut piece) {
            Ok(0) => break None,
            Ok(count) => {
                let piece = &piece[..count];
                let whole = match watch.feed(piece) {
                    Ok(whole) => whole,
                    Err(error) => break Some(io::Error::other(error)),
                };
                if whole == 0 {
                    pending.extend_from_slice(piece);
                    continue;
                }
                pending.extend_from_slice(&piece[..whole]);
                target.write_all(&pending)?;
                pending.clear();
                pending.extend_from_slice(&piece[whole..]);
            }
            Err(error) => break Some(error),
        }
    };
    if let (None, Some(summary)) = (&cut_by, watch.summary()) {
        target.flush()?;
        conclude(&summary, summary_file)?;
        return Ok(Outcome::of(&summary, summary.packets));
    }
    let summary = Summary { packets: watch.packets(), ..cut(request) };
    let mut note = Vec::new();
    put_isb_comment(&mut note, 0, 0, "wirevault: the answer is CUT here; packets are missing");
    target.write_all(&note)?;
    target.flush()?;
    if interrupt::is_set(cancel) {
        conclude(&summary, summary_file)?;
        return Ok(Outcome::Incomplete);
    }
    Err(cut_short(watch.packets(), cut_by))
}

/// Decodes the daemon's pcapng into another form.
fn decode(
    body: Body,
    request: &Request,
    mut answer: Answer<'_>,
    summary_file: Option<&Path>,
    cancel: &Cancel,
) -> Result<Outcome, CliError> {
    let mut source = Watched::new(body);
    let fed = feed(&mut source, &mut answer)?;
    let cut_by = match (fed, source.watch.summary()) {
        (Fed::Whole, Some(summary)) => return answer.finish(&summary, summary_file),
        (Fed::Whole, None) => None,
        (Fed::Cut(error), _) => Some(error),
        (Fed::Stopped, _) => {
            let summary = answer.so_far(request);
            return answer.finish(&summary, summary_file);
        }
    };
    let summary = answer.so_far(request);
    let finished = answer.finish(&summary, summary_file);
    if interrupt::is_set(cancel) {
        return finished;
    }
    // What came is shown; that it is not all is the error.
    Err(cut_short(source.watch.packets(), cut_by))
}

/// How a stream ended.
pub(crate) enum Fed {
    /// At its own end.
    Whole,
    /// Because the sink wanted no more.
    Stopped,
    /// Before its end.
    Cut(io::Error),
}

/// Gives the packets of a stream to a sink.
///
/// # Errors
/// The sink's.
pub(crate) fn feed(source: &mut Watched, sink: &mut dyn Sink) -> Result<Fed, CliError> {
    let mut reader = Reader::new(source);
    loop {
        match reader.next_event() {
            Ok(None) => return Ok(Fed::Whole),
            Ok(Some(Event::Interface(id))) => {
                let interface = reader.interfaces()[id as usize].clone();
                sink.interface(id, &interface)?;
            }
            Ok(Some(Event::Packet(_))) => {
                let Some(packet) = reader.packet() else { continue };
                let link_type = reader.interfaces()[packet.interface as usize].link_type;
                let packet = PacketOut {
                    interface: packet.interface,
                    link_type,
                    ts_ns: packet.ts_ns,
                    orig_len: packet.orig_len,
                    data: packet.data,
                    flags: packet.flags,
                    options: packet.options,
                };
                if let ControlFlow::Break(()) = sink.packet(&packet)? {
                    return Ok(Fed::Stopped);
                }
            }
            Ok(Some(Event::Other(_))) => {}
            Err(PcapngError::Io { source, .. }) => return Ok(Fed::Cut(source)),
            Err(error) => return Ok(Fed::Cut(io::Error::other(error))),
        }
    }
}

/// The daemon's stream, watched as it passes.
pub(crate) struct Watched {
    body: Body,
    watch: Watch,
    /// Comments on the stream are told as they come.
    telling: bool,
}

impl Watched {
    fn new(body: Body) -> Self {
        Self { body, watch: Watch::default(), telling: false }
    }

    /// For a stream that has no end: what it says of itself cannot wait.
    pub(crate) fn telling(body: Body) -> Self {
        Self { telling: true, ..Self::new(body) }
    }
}

impl Read for Watched {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.body.read(out)?;
        self.watch.feed(&out[..count]).map_err(io::Error::other)?;
        let comments = self.watch.take_comments();
        if self.telling {
            comments.iter().for_each(|comment| tell(comment));
        }
        Ok(count)
    }
}

fn cut_short(packets: u64, cut_by: Option<io::Error>) -> CliError {
    let why = match cut_by {
        Some(error) => error.to_string(),
        None => "ended without its closing statement".to_owned(),
    };
    let came = count_text(packets, "packet");
    CliError::Answer { what: format!("{why}; the answer is CUT after {came}") }
}
