//! Which flows a window holds: from the indexes where they are certain, from the packets where they
//! are not.
//!
//! A flow's row is taken from its segment's index if the filter takes every packet of the flow and
//! all of them lie in the window. Otherwise its packets are read and counted, so rows are exact for
//! any filter and window.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::io;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wirevault_format::footer::ChunkEntry;
use wirevault_format::pcapng::Epb;
use wirevault_format::{LinkType, VxlanPorts};
use wirevault_index::Flows;
use wirevault_index::delta::FlowStats;
use wirevault_packet::bpf::{AnyAddress, Program, Verdict};
use wirevault_packet::{Direction, FlowKey, dissect_with};

use crate::ahead::{Ahead, Glance, glance};
use crate::completeness::Window;
use crate::error::QueryError;
use crate::held_flows::{Flow, HeldFlows};
use crate::merge::Cursor;
use crate::reading::{Findings, Reading};
use crate::run::{Request, Store, conclude, plan};
use crate::source::{Look, Question, Reader, Source};
use crate::stream::{Demand, Member, StreamCursor, StreamId};
use crate::summary::{Instant, Summary};

/// Flows that a list holds at most before it gives rows out: about 100 MB of memory. They come out
/// at the end, by first time; with more flows than that, those that were silent for longest come
/// out early, and one of them that speaks again has another row.
pub const FLOWS_HELD_MAX: usize = 1 << 18;

/// A flow: the packets between two endpoints in one encapsulation, in all segments together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowRow {
    /// Link type.
    pub link_type: String,
    /// Segments that hold packets of it.
    pub segments: u32,
    /// Time of its first packet that was asked for.
    pub first: Instant,
    /// Time of its last one.
    pub last: Instant,
    /// Packets.
    pub packets: u64,
    /// Bytes on the wire.
    pub bytes: u64,
    /// Innermost protocol.
    pub protocol: String,
    /// Lower endpoint.
    pub a_addr: Option<IpAddr>,
    /// Its port.
    pub a_port: Option<u16>,
    /// Higher endpoint.
    pub b_addr: Option<IpAddr>,
    /// Its port.
    pub b_port: Option<u16>,
    /// Packets were seen from A to B.
    pub a_to_b: bool,
    /// Packets were seen from B to A.
    pub b_to_a: bool,
    /// VLAN identifiers, outermost first.
    pub vlans: Vec<u16>,
    /// MPLS labels, outermost first.
    pub mpls: Vec<u32>,
    /// VXLAN or GENEVE network identifier.
    pub vni: Option<u32>,
    /// Layers around the innermost protocol in words, outermost first.
    pub layers: Vec<String>,
    /// TCP flags of all its packets together, as the letters `FSRPAUEC`.
    pub tcp_flags: Option<String>,
}

/// Receives rows, by first time. `Break` means that no more are wanted.
pub type RowSink<'a> = dyn FnMut(&FlowRow) -> io::Result<ControlFlow<()>> + 'a;

/// Lists the flows of a store; `limit` counts rows. The summary's bytes are those on the wire.
pub(crate) fn list<'a, S: Source>(
    store: &'a Store<'a, S>,
    request: &Request,
    out: &mut RowSink<'_>,
    cancel: &'a AtomicBool,
) -> Result<Summary, QueryError> {
    let mut reading = Reading {
        cancel,
        now_ns: store.now_ns,
        held_bytes_max: 0,
        held_bytes: 0,
        buffers: Vec::new(),
        ahead: Ahead::default(),
        findings: Findings::default(),
    };
    let mut plan = plan(store, request, &mut reading)?;
    let mut members = Vec::new();
    for (id, (program, segments)) in std::mem::take(&mut plan.streams) {
        let (since_ns, until_ns, sort) = (plan.since_ns, plan.until_ns, false);
        let (tunnel, without_duplicates) = (request.tunnel, request.without_duplicates);
        let demand = Demand { program, since_ns, until_ns, sort, tunnel, without_duplicates };
        members
            .extend(with_starts(segments).map(|(from, member)| (id, demand.clone(), from, member)));
    }
    members.retain(|(_, demand, _, it)| !it.ruled_out && demand.wants(it.times_ns));
    members.sort_by_key(|(_, _, _, member)| member.source.entry().ordinal);
    let mut members: VecDeque<_> =
        members.into_iter().map(|member| (member, Glance::Unknown)).collect();
    let mut held = HeldFlows::new(store.flows_held_max);
    let mut copied = Copied::new();
    let mut rows = Rows { out, given: 0, limit: request.limit, summary: &mut plan.summary };
    loop {
        reading.check_cancelled()?;
        look_ahead(&mut members, &reading);
        let Some(((id, demand, from, member), glance)) = members.pop_front() else { break };
        if let Glance::Nothing(shown) = glance {
            shown.iter().for_each(|shown| reading.note_nothing(member.source, shown));
            reading.ahead.opened(false);
            continue;
        }
        let link_type = id.link_type;
        for (key, stats) in flows_of(id, demand, from, member, &mut copied, &mut reading)? {
            if request.count_only {
                rows.summary.packets += stats.packets;
                rows.summary.bytes += stats.bytes;
                continue;
            }
            rows.give(&held.add((link_type, key), &stats))?;
        }
        if rows.summary.limit_reached {
            break;
        }
    }
    rows.give(&held.finish())?;
    if held.overflowed {
        reading.findings.warnings.push(format!(
            "more than {} flows: those silent for longest were listed first, and a flow that went \
             on after that has several rows; a shorter window or a filter avoids it",
            store.flows_held_max
        ));
    }
    let window = Window { since_ns: request.since_ns, until_ns: request.until_ns, cut_ns: None };
    conclude(store, plan, request, &window, reading)
}

/// A segment of a stream, and the sequence from which on it counts.
type Waiting<'a, S> = (StreamId, Demand, u64, Member<'a, S>);

/// Looks into the next segments, if those before held nothing.
fn look_ahead<S: Source>(members: &mut VecDeque<(Waiting<'_, S>, Glance)>, reading: &Reading<'_>) {
    let count = reading.ahead.groups();
    let Some(((_, demand, ..), Glance::Unknown)) = members.front().filter(|_| count > 1) else {
        return;
    };
    let Demand { program, since_ns, until_ns, .. } = demand.clone();
    let question = Question { program: &program, since_ns, until_ns };
    let is_alike = |((_, demand, _, member), _): &&mut (Waiting<'_, S>, Glance)| {
        Rc::ptr_eq(&demand.program, &program) && member.opened.is_none()
    };
    let mut next: Vec<_> = members.iter_mut().take(count).take_while(is_alike).collect();
    let sources: Vec<_> = next.iter().map(|((.., member), _)| vec![member.source]).collect();
    for ((_, known), glance) in next.iter_mut().zip(glance(&sources, &question)) {
        *known = glance;
    }
}

/// Gives rows out until there are enough.
struct Rows<'a, 'b> {
    out: &'a mut RowSink<'b>,
    given: u64,
    limit: Option<u64>,
    summary: &'a mut Summary,
}

impl Rows<'_, '_> {
    fn give(&mut self, flows: &[Flow]) -> Result<(), QueryError> {
        for flow in flows {
            if self.summary.limit_reached {
                break;
            }
            if self.limit.is_some_and(|limit| self.given >= limit) {
                self.summary.limit_reached = true;
                break;
            }
            self.given += 1;
            self.summary.packets += flow.stats.packets;
            self.summary.bytes += flow.stats.bytes;
            let more = (self.out)(&row(flow)).map_err(QueryError::Sink)?;
            self.summary.limit_reached = more.is_break();
        }
        Ok(())
    }
}

/// Segments of one stream, each with the sequence from which on it counts: copies of packets that
/// another one holds do not. A copy for a hold whose source is there is left out.
fn with_starts<'a, S: Source>(
    mut segments: Vec<Member<'a, S>>,
) -> impl Iterator<Item = (u64, Member<'a, S>)> {
    segments.sort_by_key(|member| (member.sequences.0, member.source.entry().ordinal));
    let mut end = 0;
    segments.into_iter().filter_map(move |member| {
        if member.source.entry().hold != 0 {
            return (member.sequences.1 > end).then_some((0, member));
        }
        let from = if member.sequences.0 < end { end } else { 0 };
        end = end.max(member.sequences.1);
        Some((from, member))
    })
}

/// Chunks that were met in copies for holds, by stream and first sequence. Several holds may have
/// copied the same ones.
type Copied = BTreeSet<(StreamId, u64)>;

/// Leaves out what other copies held of a copy; notes what it holds. Whether anything was left out.
fn without_copied(copied: &mut Copied, id: StreamId, look: &mut Look) -> bool {
    let key = |chunk: &ChunkEntry| (id, chunk.first_sequence);
    let known: HashSet<u32> = (0..)
        .zip(&look.chunks)
        .filter(|(_, chunk)| chunk.packets > 0 && copied.contains(&key(chunk)))
        .map(|(number, _)| number)
        .collect();
    look.selected.retain(|number| !known.contains(number));
    copied.extend(look.chunks.iter().filter(|chunk| chunk.packets > 0).map(key));
    !known.is_empty()
}

type Counted = Vec<(FlowKey, FlowStats)>;

/// The flows of one segment, by first time.
fn flows_of<'a, S: Source>(
    id: StreamId,
    demand: Demand,
    from: u64,
    mut member: Member<'a, S>,
    copied: &mut Copied,
    reading: &mut Reading<'a>,
) -> Result<Counted, QueryError> {
    let Demand { program, since_ns, until_ns, .. } = &demand;
    let question = Question { program, since_ns: *since_ns, until_ns: *until_ns };
    let opened = member
        .opened
        .take()
        .map(|opened| *opened)
        .or_else(|| reading.open(member.source, Some(&question)));
    let Some((reader, mut look)) = opened else { return Ok(Vec::new()) };
    let held_something = !look.selected.is_empty();
    let is_copy = member.source.entry().hold != 0;
    let is_whole = !(is_copy && without_copied(copied, id, &mut look)) && from == 0;
    let (mut counted, unsure) = reader.with_flows(*since_ns, *until_ns, |flows| match flows {
        // The index counts copies as well.
        Some(flows) if is_whole => {
            let (certain, unsure) = sort_out(flows, &question, demand.is_of_packets());
            (certain, Some(unsure))
        }
        _ => (Vec::new(), None),
    });
    if let Some(unsure) = &unsure {
        let chunks: HashSet<u32> = unsure.iter().flat_map(|(_, chunks)| chunks).copied().collect();
        look.selected.retain(|number| chunks.contains(number));
    }
    let wanted: Option<HashSet<FlowKey>> =
        unsure.map(|unsure| unsure.into_iter().map(|(key, _)| key).collect());
    member.opened = Some(Box::new((reader, look)));
    let read = read_flows(id, demand, from, member, wanted.as_ref(), reading)?;
    // It was asked for no more than what the index left open.
    reading.ahead.opened(held_something);
    counted.extend(read);
    counted.sort_by_key(|(key, stats)| (stats.times_ns, *key));
    Ok(counted)
}

/// Flows with the chunks that hold packets of them.
type Unsure = Vec<(FlowKey, Vec<u32>)>;

/// Flows whose index entry is the answer, and flows whose packets decide: all of them `of_packets`,
/// where packets of one flow are told apart.
fn sort_out(flows: &Flows<'_>, question: &Question<'_>, of_packets: bool) -> (Counted, Unsure) {
    let (mut certain, mut unsure) = (Vec::new(), Vec::new());
    for flow in flows.iter() {
        let (first_ns, last_ns) = flow.stats.times_ns;
        if last_ns < question.since_ns || first_ns >= question.until_ns {
            continue;
        }
        let inside = first_ns >= question.since_ns && last_ns < question.until_ns;
        match decide(&flow.key, &flow.stats, question.program) {
            Verdict::No => {}
            Verdict::Yes if inside && !of_packets => certain.push((flow.key, flow.stats)),
            _ => unsure.push((flow.key, flow.chunks.to_vec())),
        }
    }
    (certain, unsure)
}

/// What the program says to the packets of a flow, in the directions that were seen.
fn decide(key: &FlowKey, stats: &FlowStats, program: &Program) -> Verdict {
    let directions = [Direction::AtoB, Direction::BtoA];
    let seen = directions.into_iter().filter(|d| stats.directions & FlowStats::bit(*d) != 0);
    let verdict = |direction| {
        let mut template = key.template(direction);
        let ((wire_min, wire_max), (cap_min, cap_max)) = (stats.wire_len, stats.captured_len);
        template.set_lengths(wire_min, wire_max, cap_min, cap_max);
        template.set_tcp_flags(stats.tcp_or, stats.tcp_and);
        program.decide(&template, &AnyAddress)
    };
    let agreed = |a, b| if a == b { a } else { Verdict::Maybe };
    seen.map(verdict).reduce(agreed).unwrap_or(Verdict::Maybe)
}

/// Counts the packets of a segment by flow; `wanted` limits the flows.
fn read_flows<'a, S: Source>(
    id: StreamId,
    demand: Demand,
    from: u64,
    member: Member<'a, S>,
    wanted: Option<&HashSet<FlowKey>>,
    reading: &mut Reading<'a>,
) -> Result<HashMap<FlowKey, FlowStats>, QueryError> {
    let mut flows: HashMap<FlowKey, FlowStats> = HashMap::new();
    let mut cursor = StreamCursor::new(id, demand, vec![member]).starting_at(from);
    while cursor.key().is_some() {
        if let Some((packet, interfaces)) = cursor.item().filter(|_| cursor.is_ready()) {
            let vxlan = interfaces.vxlan_ports(&packet);
            let (key, stats) = stats_of(&vxlan, id.link_type, &packet);
            if wanted.is_none_or(|wanted| wanted.contains(&key)) {
                flows.entry(key).and_modify(|sum| sum.add(&stats)).or_insert(stats);
            }
        }
        cursor.advance(reading)?;
    }
    Ok(flows)
}

/// A flow of one packet.
pub(crate) fn stats_of(
    vxlan: &VxlanPorts,
    link_type: LinkType,
    packet: &Epb<'_>,
) -> (FlowKey, FlowStats) {
    let dissected = dissect_with(vxlan, link_type, packet.data);
    let captured_len = packet.data.len() as u32;
    let stats = FlowStats {
        times_ns: (packet.ts_ns, packet.ts_ns),
        packets: 1,
        bytes: u64::from(packet.orig_len),
        wire_len: (packet.orig_len, packet.orig_len),
        captured_len: (captured_len, captured_len),
        tcp_or: dissected.tcp_flags,
        tcp_and: dissected.tcp_flags,
        directions: FlowStats::bit(dissected.direction),
    };
    (dissected.key, stats)
}

fn row(flow: &Flow) -> FlowRow {
    let Flow { id: (link_type, key), stats, segments } = flow;
    let text = key.describe();
    let [a, b] = text.endpoints;
    let letters = "FSRPAUEC".chars().enumerate();
    let flags = letters.filter(|(bit, _)| stats.tcp_or & (1 << bit) != 0).map(|(_, letter)| letter);
    FlowRow {
        segments: *segments,
        link_type: link_type.to_string(),
        first: stats.times_ns.0.into(),
        last: stats.times_ns.1.into(),
        packets: stats.packets,
        bytes: stats.bytes,
        tcp_flags: (text.protocol == "TCP").then(|| flags.collect()),
        protocol: text.protocol,
        a_addr: a.addr,
        a_port: a.port,
        b_addr: b.addr,
        b_port: b.port,
        a_to_b: stats.directions & FlowStats::bit(Direction::AtoB) != 0,
        b_to_a: stats.directions & FlowStats::bit(Direction::BtoA) != 0,
        vlans: text.vlans,
        mpls: text.mpls,
        vni: text.vni,
        layers: text.layers,
    }
}
