//! A query from question to summary: plan, read and merge, judge.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;

use wirevault_format::pcapng::Epb;
use wirevault_format::table::{RunEntry, SegmentEntry, SegmentState};
use wirevault_format::{Interface, LinkType, RunId};
use wirevault_index::lost::LostStore;
use wirevault_packet::TunnelId;
use wirevault_packet::bpf::Program;

use crate::ahead::Ahead;
use crate::completeness::{Facts, Part, Window, judge};
use crate::error::QueryError;
use crate::export::{PacketOut, Sink};
use crate::filter::{self, FilterError};
use crate::lost;
use crate::merge::{Cursor, Merge};
use crate::prune::rule_out;
use crate::reading::{Findings, Reading, span};
use crate::source::{Question, Source};
use crate::stream::{Demand, Interfaces, Member, StreamCursor, StreamId};
use crate::summary::{Instant, LIST_MAX, Summary};

/// Bytes of packets that sorting may hold back.
pub(crate) const HELD_BYTES_MAX: usize = 256 << 20;

/// A question.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// tcpdump's filter language; empty takes every packet.
    pub filter: String,
    /// Takes only what this filter takes as well, and asks as if there were nothing else; empty
    /// takes every packet. The two are compiled apart: no text of one changes the other.
    pub within: String,
    /// Start of the window in packet time, ns; omitted: where the store begins.
    pub since_ns: Option<u64>,
    /// First nanosecond after the window; omitted: where the store ends.
    pub until_ns: Option<u64>,
    /// Packets at most.
    pub limit: Option<u64>,
    /// Strictly by time. Otherwise every lane's packets stay in capture order, as `tcpdump -r`
    /// shows a file. Packets that arrived out of order are held back in memory, up to 256 MiB.
    pub sort: bool,
    /// Leave out the link types that the filter does not fit, instead of refusing.
    pub skip_link_types: bool,
    /// Count only; the sink gets nothing.
    pub count_only: bool,
    /// Only packets that came in this tunnel, be its headers stored or removed.
    pub tunnel: Option<TunnelId>,
    /// Leave out packets that are marked as second copies of others.
    pub without_duplicates: bool,
}

/// What a query looks at: a catalog, or a test's idea of one.
pub(crate) struct Store<'a, S> {
    pub(crate) segments: Vec<&'a S>,
    /// By start.
    pub(crate) runs: &'a [RunEntry],
    pub(crate) missing_volumes: Vec<String>,
    pub(crate) lost: &'a [LostStore],
    pub(crate) replaced_ns: u64,
    pub(crate) evicted_live_ns: u64,
    pub(crate) evicted_import_ns: u64,
    pub(crate) now_ns: u64,
    pub(crate) durable_until_ns: Option<u64>,
    pub(crate) held_bytes_max: usize,
    pub(crate) flows_held_max: usize,
}

/// A question made ready.
pub(crate) struct Plan<'a, S: Source> {
    pub(crate) streams: BTreeMap<StreamId, (Rc<Program>, Vec<Member<'a, S>>)>,
    pub(crate) since_ns: u64,
    pub(crate) until_ns: u64,
    parts: Vec<Part>,
    written: Vec<Written<'a, S>>,
    pub(crate) summary: Summary,
}

/// The segments of one lane of a run, oldest first.
struct Written<'a, S> {
    run: RunId,
    lane: u16,
    segments: Vec<(Span, &'a S)>,
}

/// A span of time.
type Span = (u64, u64);

/// Answers a question from a store.
pub(crate) fn execute<'a, S: Source>(
    store: &'a Store<'a, S>,
    request: &Request,
    sink: &mut dyn Sink,
    cancel: &'a AtomicBool,
) -> Result<Summary, QueryError> {
    let mut reading = Reading {
        cancel,
        now_ns: store.now_ns,
        held_bytes_max: store.held_bytes_max,
        held_bytes: 0,
        buffers: Vec::new(),
        ahead: Ahead::default(),
        findings: Findings::default(),
    };
    let mut plan = plan(store, request, &mut reading)?;
    let cursors = std::mem::take(&mut plan.streams).into_iter().map(|(id, (program, members))| {
        let (since_ns, until_ns, sort) = (plan.since_ns, plan.until_ns, request.sort);
        let (tunnel, without_duplicates) = (request.tunnel, request.without_duplicates);
        let demand = Demand { program, since_ns, until_ns, sort, tunnel, without_duplicates };
        StreamCursor::new(id, demand, members)
    });
    let mut merge = Merge::new(cursors.collect());
    let mut output = Output { sink, numbers: HashMap::new() };
    let summary = &mut plan.summary;
    let mut window =
        Window { since_ns: request.since_ns, until_ns: request.until_ns, cut_ns: None };
    let mut reached_ns = 0;
    loop {
        if request.limit.is_some_and(|limit| summary.packets >= limit) {
            summary.limit_reached = true;
            break;
        }
        let Some(cursor) = merge.next(&mut reading)? else { break };
        reached_ns = cursor.key().map_or(reached_ns, |key| key.time_ns);
        let Some((packet, interfaces)) = cursor.item() else { continue };
        summary.packets += 1;
        summary.bytes += packet.data.len() as u64;
        if !request.count_only && output.packet(&packet, interfaces)?.is_break() {
            summary.limit_reached = true;
            break;
        }
    }
    if summary.limit_reached {
        window.cut_ns = Some(reached_ns);
    }
    drop(merge);
    conclude(store, plan, request, &window, reading)
}

/// Checks the window, compiles the filter, and sorts the segments into streams.
pub(crate) fn plan<'a, S: Source>(
    store: &'a Store<'a, S>,
    request: &Request,
    reading: &mut Reading<'a>,
) -> Result<Plan<'a, S>, QueryError> {
    let since_ns = request.since_ns.unwrap_or(0);
    // The last nanosecond that can be written is no time of a packet.
    let until_ns = request.until_ns.unwrap_or(u64::MAX);
    if since_ns >= until_ns {
        return Err(QueryError::EmptyWindow { since_ns, until_ns });
    }
    let mut summary = Summary {
        since: request.since_ns.map(Instant::from),
        until: request.until_ns.map(Instant::from),
        ..Summary::default()
    };
    let touches = |times: (u64, u64)| times.0 < until_ns && times.1 >= since_ns;
    let mut programs = Programs { request, compiled: Vec::new(), refused: None };
    let mut runs = Runs::default();
    for source in &store.segments {
        reading.check_cancelled()?;
        let entry = source.entry();
        let run = runs.of(entry.run);
        run.opened_ns = run.opened_ns.min(entry.opened_ns);
        let lane = run.lane(entry.lane);
        if entry.hold == 0 {
            lane.segments.push((busy(entry, store.now_ns), *source));
        }
        let stream = lane.stream(entry.link_type);
        let mut times_ns = entry.times_ns;
        let may_hold = times_ns.map_or(entry.state == SegmentState::Open, touches);
        if may_hold && stream.program.is_none() {
            stream.program = programs.of(entry.link_type)?;
        }
        let program = stream.program.as_ref();
        let mut sequences = entry.sequences;
        let mut opened = None;
        if entry.state == SegmentState::Open {
            let question = program.map(|program| Question { program, since_ns, until_ns });
            let Some((reader, look)) = reading.open(*source, question.as_ref()) else { continue };
            let held = || look.chunks.iter().filter(|chunk| chunk.packets > 0);
            times_ns = held()
                .filter_map(|chunk| chunk.times_ns)
                .reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
            let end = |chunk: &wirevault_format::footer::ChunkEntry| {
                chunk.first_sequence.saturating_add(u64::from(chunk.packets))
            };
            sequences.0 = held().map(|chunk| chunk.first_sequence).min().unwrap_or(0);
            sequences.1 = held().map(end).max().unwrap_or(0);
            opened = Some(Box::new((reader, look)));
        }
        if let Some(times_ns) = times_ns {
            summary.segments_considered += u64::from(touches(times_ns));
            let ruled_out = false;
            stream.members.push(Member { source, times_ns, sequences, opened, ruled_out });
        }
        // A copy for a hold covers nothing: what lay around it may have been given up.
        if entry.hold == 0 {
            lane.contribute(entry.import, times_ns);
        }
    }
    let link_types = programs.finish(&mut summary)?;
    if !request.filter.trim().is_empty() {
        for link_type in link_types {
            if let Some((program, streams)) = runs.streams_of(link_type) {
                rule_out(streams, &program, touches, reading);
            }
        }
    }
    let mut plan = Plan {
        streams: BTreeMap::new(),
        since_ns,
        until_ns,
        parts: Vec::new(),
        written: Vec::new(),
        summary,
    };
    plan.take(runs, store.runs);
    Ok(plan)
}

impl<'a, S: Source> Plan<'a, S> {
    fn take(&mut self, runs: Runs<'a, S>, table: &[RunEntry]) {
        for (run, found) in runs.by_start(table) {
            for lane in found.lanes {
                let number = lane.number;
                for LaneStream { link_type, program, members } in lane.streams {
                    let id = StreamId { started_ns: found.opened_ns, run, lane: number, link_type };
                    if let Some(program) = program.filter(|_| !members.is_empty()) {
                        self.streams.insert(id, (program, members));
                    }
                }
                let part = |(import, times_ns)| Part { run, lane: number, import, times_ns };
                self.parts.extend(lane.contributes.map(part));
                self.written.push(Written { run, lane: number, segments: lane.segments });
            }
        }
    }
}

/// The segments of a store by run and lane. They come by ordinal, so that most belong to the same
/// run as the one before; looking the run up for each would be most of the time of planning.
struct Runs<'a, S: Source> {
    at_hand: Option<(RunId, Run<'a, S>)>,
    others: HashMap<RunId, Run<'a, S>>,
}

/// Segments of streams, and the program that decides their packets.
type Streams<'r, 'a, S> = (Rc<Program>, Vec<&'r mut Vec<Member<'a, S>>>);

struct Run<'a, S: Source> {
    /// When its first segment was opened.
    opened_ns: u64,
    lanes: Vec<Lane<'a, S>>,
}

struct Lane<'a, S: Source> {
    number: u16,
    segments: Vec<(Span, &'a S)>,
    streams: Vec<LaneStream<'a, S>>,
    /// Whether it is of an import, and the times of its packets.
    contributes: Option<(bool, Option<Span>)>,
}

struct LaneStream<'a, S: Source> {
    link_type: LinkType,
    /// `None`: nothing of it lies in the window, or the link type is left out.
    program: Option<Rc<Program>>,
    members: Vec<Member<'a, S>>,
}

impl<S: Source> Default for Runs<'_, S> {
    fn default() -> Self {
        Self { at_hand: None, others: HashMap::new() }
    }
}

impl<'a, S: Source> Runs<'a, S> {
    fn of(&mut self, run: RunId) -> &mut Run<'a, S> {
        if let Some((id, last)) = self.at_hand.take_if(|(id, _)| *id != run) {
            self.others.insert(id, last);
        }
        let others = &mut self.others;
        let first = || Run { opened_ns: u64::MAX, lanes: Vec::new() };
        let of = || (run, others.remove(&run).unwrap_or_else(first));
        &mut self.at_hand.get_or_insert_with(of).1
    }

    /// The segments of all streams of a link type, with the program that decides their packets.
    fn streams_of(&mut self, link_type: LinkType) -> Option<Streams<'_, 'a, S>> {
        let at_hand = self.at_hand.iter_mut().map(|(_, run)| run);
        let lanes = at_hand.chain(self.others.values_mut()).flat_map(|run| &mut run.lanes);
        let mut decides = None;
        let mut streams = Vec::new();
        for stream in lanes.flat_map(|lane| &mut lane.streams) {
            if let Some(program) = stream.program.as_ref().filter(|_| stream.link_type == link_type)
            {
                decides.get_or_insert_with(|| Rc::clone(program));
                streams.push(&mut stream.members);
            }
        }
        decides.map(|program| (program, streams))
    }

    /// All runs with their true start, where the run table has not forgotten it.
    fn by_start(self, table: &[RunEntry]) -> impl Iterator<Item = (RunId, Run<'a, S>)> {
        let started: HashMap<RunId, u64> =
            table.iter().map(|run| (run.run, run.started_ns)).collect();
        let mut runs: Vec<_> = self.others.into_iter().chain(self.at_hand).collect();
        for (id, run) in &mut runs {
            run.opened_ns = started.get(id).copied().unwrap_or(run.opened_ns);
        }
        runs.sort_by_key(|(id, run)| (run.opened_ns, *id));
        runs.into_iter()
    }
}

impl<'a, S: Source> Run<'a, S> {
    fn lane(&mut self, number: u16) -> &mut Lane<'a, S> {
        let known = self.lanes.iter().position(|lane| lane.number == number);
        let at = known.unwrap_or_else(|| {
            let (segments, streams) = (Vec::new(), Vec::new());
            self.lanes.push(Lane { number, segments, streams, contributes: None });
            self.lanes.len() - 1
        });
        &mut self.lanes[at]
    }
}

impl<'a, S: Source> Lane<'a, S> {
    fn stream(&mut self, link_type: LinkType) -> &mut LaneStream<'a, S> {
        let known = self.streams.iter().position(|stream| stream.link_type == link_type);
        let at = known.unwrap_or_else(|| {
            let (program, members) = (None, Vec::new());
            self.streams.push(LaneStream { link_type, program, members });
            self.streams.len() - 1
        });
        &mut self.streams[at]
    }

    fn contribute(&mut self, import: bool, times_ns: Option<Span>) {
        let known = self.contributes.and_then(|(_, known)| known);
        let hull = match (known, times_ns) {
            (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.max(b.1))),
            (one, other) => one.or(other),
        };
        self.contributes = Some((import, hull));
    }
}

/// One program for every link type that may occur in the window.
struct Programs<'a> {
    request: &'a Request,
    /// `None`: the filter does not fit, and that link type is to be left out.
    compiled: Vec<(LinkType, Option<Rc<Program>>)>,
    refused: Option<FilterError>,
}

impl Programs<'_> {
    fn of(&mut self, link_type: LinkType) -> Result<Option<Rc<Program>>, QueryError> {
        if let Some((_, known)) = self.compiled.iter().find(|(known, _)| *known == link_type) {
            return Ok(known.clone());
        }
        let Request { filter, within, .. } = self.request;
        let program = match filter::compile_within(filter, within, link_type) {
            Ok(program) => Some(Rc::new(program)),
            Err(error) if self.request.skip_link_types => {
                self.refused.get_or_insert(error);
                None
            }
            Err(error) => return Err(self.refusal(error)),
        };
        self.compiled.push((link_type, program.clone()));
        Ok(program)
    }

    /// A filter that fits no link type is wrong in itself; leaving packets out would not help.
    fn refusal(&self, error: FilterError) -> QueryError {
        let fits = |link_type| filter::compile(&self.request.filter, link_type).is_ok();
        let others = [LinkType::ETHERNET, LinkType::RAW];
        match others.into_iter().any(|other| other != error.link_type && fits(other)) {
            true => QueryError::LinkType(error),
            false => QueryError::Filter(error),
        }
    }

    /// Notes the link types that are left out, and gives all. Leaving out all of them is no answer.
    fn finish(mut self, summary: &mut Summary) -> Result<Vec<LinkType>, QueryError> {
        if self.compiled.is_empty() {
            // A filter is not right only because there is nothing to find.
            self.of(LinkType::ETHERNET)?;
        }
        self.compiled.sort_unstable_by_key(|(link_type, _)| *link_type);
        let left_out = self.compiled.iter().filter(|(_, program)| program.is_none());
        left_out.for_each(|(link_type, _)| summary.skipped(*link_type));
        match self.refused {
            Some(error) if self.compiled.iter().all(|(_, program)| program.is_none()) => {
                Err(error.into())
            }
            _ => Ok(self.compiled.iter().map(|(link_type, _)| *link_type).collect()),
        }
    }
}

/// Reads the gaps of what was not opened for packets, and judges.
pub(crate) fn conclude<'a, S: Source>(
    store: &Store<'a, S>,
    plan: Plan<'a, S>,
    request: &Request,
    window: &Window,
    mut reading: Reading<'a>,
) -> Result<Summary, QueryError> {
    let since_ns = plan.since_ns;
    let until_ns = window.cut_ns.map_or(plan.until_ns, |cut_ns| cut_ns.saturating_add(1));
    for source in tellers(&plan.written, store.runs, since_ns, until_ns) {
        if !reading.findings.seen.contains(&source.entry().ordinal) {
            reading.check_cancelled()?;
            // What is wrong with it is noted.
            let _ = reading.open(source, None);
        }
    }
    let findings = reading.findings;
    let mut summary = plan.summary;
    summary.segments_read = findings.segments_read;
    summary.chunks_considered = findings.chunks_considered;
    summary.chunks_read = findings.chunks_read;
    summary.tier_bytes = findings.tier_bytes();
    summary.warnings = findings.warnings;
    summary.warnings.extend(lost::warning(store.lost, (since_ns, until_ns)));
    summary.warnings.truncate(LIST_MAX);
    let mut facts = Facts {
        runs: store.runs.to_vec(),
        parts: plan.parts,
        recorded: findings.recorded,
        lost: findings.lost,
        missing_volumes: store.missing_volumes.clone(),
        replaced_ns: store.replaced_ns,
        evicted_live_ns: store.evicted_live_ns,
        evicted_import_ns: store.evicted_import_ns,
        durable_until_ns: store.durable_until_ns,
        now_ns: store.now_ns,
    };
    lost::add(store.lost, &mut facts);
    judge(&facts, window, &mut summary);
    if request.limit == Some(0) {
        // Not even the first packet was looked for.
        (summary.complete, summary.limit_reached) = (false, true);
        (summary.covered_from, summary.covered_until) = (None, None);
    }
    Ok(summary)
}

/// The segments that may tell of a gap in the window: per run and lane those that were written or
/// hold packets in it, and one neighbour on either side, because a gap is written down when it
/// begins and when it ends.
fn tellers<'a, S: Source>(
    written: &[Written<'a, S>],
    runs: &[RunEntry],
    since_ns: u64,
    until_ns: u64,
) -> Vec<&'a S> {
    let mut tellers = Vec::new();
    for of_run in written.chunk_by(|a, b| a.run == b.run) {
        let run = of_run[0].run;
        let over = runs.iter().find(|entry| entry.run == run).is_some_and(|entry| {
            let ended = entry.ended_ns > 0 && entry.ended_ns <= since_ns;
            !entry.import && (ended || entry.started_ns >= until_ns)
        });
        let mut lanes: Vec<_> = of_run.iter().collect();
        lanes.sort_by_key(|lane| lane.lane);
        for Written { segments, .. } in lanes {
            let holds = |((from, until), _): &&(Span, &S)| *from < until_ns && *until > since_ns;
            if over {
                // A clock may have been wrong: segments with packets in the window count whatever
                // the run says.
                tellers.extend(segments.iter().filter(holds).map(|(_, source)| *source));
                continue;
            }
            let first = segments.iter().position(|((_, until), _)| *until > since_ns);
            let first = first.unwrap_or(segments.len()).saturating_sub(1);
            let last = segments.iter().rposition(|((from, _), _)| *from < until_ns);
            let end = last.map_or(0, |last| last + 1).saturating_add(1).min(segments.len());
            let between = segments.get(first..end).unwrap_or_default();
            tellers.extend(between.iter().map(|(_, source)| *source));
        }
    }
    tellers
}

/// Time in which a segment was written, and that of its packets. An import's is that of its
/// packets.
fn busy(entry: &SegmentEntry, now_ns: u64) -> Span {
    let packets = span(entry, now_ns);
    if entry.import {
        return packets;
    }
    let closed_ns = if entry.closed_ns > 0 { entry.closed_ns } else { now_ns };
    (packets.0.min(entry.opened_ns), packets.1.max(closed_ns))
}

/// Gives packets to the sink, interfaces numbered as they first occur.
struct Output<'s> {
    sink: &'s mut dyn Sink,
    numbers: HashMap<Interface, u32>,
}

impl Output<'_> {
    fn packet(
        &mut self,
        packet: &Epb<'_>,
        interfaces: &Interfaces,
    ) -> Result<ControlFlow<()>, QueryError> {
        match self.give(packet, interfaces) {
            // The reader at the other end of the pipe has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
            result => result.map_err(QueryError::Sink),
        }
    }

    fn give(&mut self, packet: &Epb<'_>, interfaces: &Interfaces) -> io::Result<ControlFlow<()>> {
        let at = packet.interface_id as usize;
        let (Some(interface), Some(slot)) = (interfaces.list.get(at), interfaces.ids.get(at))
        else {
            return Ok(ControlFlow::Continue(()));
        };
        let number = match slot.get() {
            Some(number) => number,
            None => self.number(interface)?,
        };
        slot.set(Some(number));
        self.sink.packet(&PacketOut {
            interface: number,
            link_type: interface.link_type,
            ts_ns: packet.ts_ns,
            orig_len: packet.orig_len,
            data: packet.data,
            flags: packet.flags,
            options: packet.options,
        })
    }

    fn number(&mut self, interface: &Interface) -> io::Result<u32> {
        if let Some(number) = self.numbers.get(interface) {
            return Ok(*number);
        }
        let number = self.numbers.len() as u32;
        self.sink.interface(number, interface)?;
        self.numbers.insert(interface.clone(), number);
        Ok(number)
    }
}
