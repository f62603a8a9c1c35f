//! One stream of packets: the segments of one run, lane and link type, read in the order of their
//! sequence numbers.
//!
//! ```text
//!  groups of segments ─► open ─► chunks, by first sequence ─► packets ─► filter ─► at hand
//! ```
//! Invariants:
//! - one chunk is in memory; sorting holds back only packets that an unread chunk may still
//!   precede;
//! - a packet's place in capture order is the running maximum of *all* times of the stream up to
//!   it, those of skipped chunks included, so it does not depend on filter or window;
//! - of packets with the same sequence number (their segment's device failed, another one got
//!   copies) one is used.

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet, VecDeque};
use std::ops::Range;
use std::rc::Rc;

use wirevault_format::footer::ChunkEntry;
use wirevault_format::pcapng::{
    BLOCK_EPB, Blocks, Epb, OPTION_EPB_DUPLICATE, OPTION_EPB_OUTER, options,
};
use wirevault_format::{Cause, Interface, LinkType, RunId, VxlanPorts};
use wirevault_packet::bpf::Program;
use wirevault_packet::{TunnelId, is_in_tunnel};

use crate::ahead::{Glance, glance};
use crate::completeness::Lost;
use crate::error::QueryError;
use crate::merge::Cursor;
use crate::reading::{Reading, span};
use crate::source::{Absence, Look, Question, Reader, Source};

/// Which stream, in the order that streams have at equal times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StreamId {
    pub(crate) started_ns: u64,
    pub(crate) run: RunId,
    pub(crate) lane: u16,
    pub(crate) link_type: LinkType,
}

/// A packet's place in the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) time_ns: u64,
    pub(crate) stream: StreamId,
    pub(crate) sequence: u64,
}

/// A segment of a stream, as planned.
pub(crate) struct Member<'a, S: Source> {
    pub(crate) source: &'a S,
    /// Smallest and largest packet time.
    pub(crate) times_ns: (u64, u64),
    /// First sequence, and the one after the last.
    pub(crate) sequences: (u64, u64),
    /// A segment that was not closed is opened while planning; what it held then is what is read.
    pub(crate) opened: Option<Box<(S::Reader, Look)>>,
    /// It is known to hold no answer, nor does any segment whose sequences overlap its own.
    pub(crate) ruled_out: bool,
}

/// What of a stream is asked for.
#[derive(Clone)]
pub(crate) struct Demand {
    pub(crate) program: Rc<Program>,
    pub(crate) since_ns: u64,
    pub(crate) until_ns: u64,
    pub(crate) sort: bool,
    pub(crate) tunnel: Option<TunnelId>,
    pub(crate) without_duplicates: bool,
}

impl Demand {
    /// Whether packets are told apart by what their flow does not say: what was removed from them,
    /// and marks.
    pub(crate) fn is_of_packets(&self) -> bool {
        self.tunnel.is_some() || self.without_duplicates
    }

    /// Whether packets of these times may lie in the window.
    pub(crate) fn wants(&self, (min_ns, max_ns): (u64, u64)) -> bool {
        min_ns < self.until_ns && max_ns >= self.since_ns
    }
}

/// Segments whose sequences overlap, because one holds copies of the other's last packets. Mostly
/// just one segment.
struct Group<'a, S: Source> {
    first: Member<'a, S>,
    more: Vec<Member<'a, S>>,
    times_ns: (u64, u64),
    first_sequence: u64,
    /// Largest packet time of what lies between the group before and this one.
    before_max_ns: u64,
    /// Smallest packet time in this and all later groups.
    rest_min_ns: u64,
    glance: Glance,
}

impl<'a, S: Source> Group<'a, S> {
    fn members(&self) -> impl Iterator<Item = &Member<'a, S>> {
        std::iter::once(&self.first).chain(&self.more)
    }
}

/// A group that is open.
struct Opened<R> {
    members: Vec<OpenedMember<R>>,
    chunks: VecDeque<Planned>,
}

struct OpenedMember<R> {
    reader: R,
    interfaces: Rc<Interfaces>,
    name: String,
    span: (u64, u64),
    read: bool,
}

/// Interfaces of a segment, and the numbers they have got in the answer.
pub(crate) struct Interfaces {
    pub(crate) list: Vec<Interface>,
    pub(crate) ids: Vec<Cell<Option<u32>>>,
}

impl Interfaces {
    /// What was taken for VXLAN when the packet was indexed.
    pub(crate) fn vxlan_ports(&self, packet: &Epb<'_>) -> VxlanPorts {
        let interface = self.list.get(packet.interface_id as usize);
        interface.map_or(VxlanPorts::USUAL, |interface| interface.vxlan_ports)
    }
}

struct Planned {
    member: usize,
    number: u32,
    entry: ChunkEntry,
    selected: bool,
    /// Smallest packet time in this and all later selected chunks of the stream.
    rest_min_ns: u64,
}

/// The chunk in memory.
struct Loaded {
    buf: Vec<u8>,
    member: usize,
    number: u32,
    packets: u64,
    times_ns: Option<(u64, u64)>,
    /// What of the payload was not looked at yet.
    rest: Range<usize>,
    next_sequence: u64,
    end_sequence: u64,
    /// Offset of the packet at hand, and its sequence.
    at_hand: Option<(usize, u64)>,
}

/// A packet that waits for its place in strict order.
struct Held {
    ts_ns: u64,
    sequence: u64,
    block: Box<[u8]>,
    interfaces: Rc<Interfaces>,
}

/// Reads one stream.
pub(crate) struct StreamCursor<'a, S: Source> {
    id: StreamId,
    demand: Demand,
    groups: VecDeque<Group<'a, S>>,
    opened: Option<Opened<S::Reader>>,
    loaded: Option<Loaded>,
    held: BinaryHeap<Reverse<Held>>,
    running_max_ns: u64,
    /// Sequence behind the last packet that was looked at.
    watermark: u64,
}

impl<'a, S: Source> StreamCursor<'a, S> {
    /// `members` are all segments of the stream that hold packets, in any order, also those outside
    /// the window.
    pub(crate) fn new(id: StreamId, demand: Demand, mut members: Vec<Member<'a, S>>) -> Self {
        members.sort_by_key(|member| (member.sequences.0, member.source.entry().ordinal));
        let mut groups: VecDeque<Group<'a, S>> = VecDeque::new();
        let mut before_max_ns = 0;
        let mut rest = members.into_iter().peekable();
        while let Some(first) = rest.next() {
            let wants = |it: &Member<'a, S>| !it.ruled_out && demand.wants(it.times_ns);
            let (mut times_ns, mut wanted) = (first.times_ns, wants(&first));
            let (first_sequence, mut end) = first.sequences;
            let mut more = Vec::new();
            while let Some(member) = rest.next_if(|member| member.sequences.0 < end) {
                wanted |= wants(&member);
                times_ns.0 = times_ns.0.min(member.times_ns.0);
                times_ns.1 = times_ns.1.max(member.times_ns.1);
                end = end.max(member.sequences.1);
                more.push(member);
            }
            if !wanted {
                // Nothing is read of it, but its times count.
                before_max_ns = times_ns.1.max(before_max_ns);
                continue;
            }
            groups.push_back(Group {
                first,
                more,
                times_ns,
                first_sequence,
                before_max_ns,
                rest_min_ns: u64::MAX,
                glance: Glance::Unknown,
            });
            before_max_ns = 0;
        }
        let mut rest_min_ns = u64::MAX;
        for group in groups.iter_mut().rev() {
            rest_min_ns = rest_min_ns.min(group.times_ns.0.max(demand.since_ns));
            group.rest_min_ns = rest_min_ns;
        }
        let held = BinaryHeap::new();
        let mut cursor = Self {
            id,
            demand,
            groups,
            opened: None,
            loaded: None,
            held,
            running_max_ns: 0,
            watermark: 0,
        };
        cursor.skip_groups();
        cursor
    }

    /// Leaves out packets with smaller sequences.
    pub(crate) fn starting_at(self, sequence: u64) -> Self {
        Self { watermark: self.watermark.max(sequence), ..self }
    }

    /// The packet at hand.
    pub(crate) fn item(&self) -> Option<(Epb<'_>, &Interfaces)> {
        let (block, interfaces) = match (&self.loaded, &self.opened, self.held.peek()) {
            (_, _, Some(Reverse(held))) => (&held.block[..], &*held.interfaces),
            (Some(loaded), Some(opened), None) => {
                let block = &loaded.buf[loaded.at_hand?.0..loaded.rest.start];
                (block, &*opened.members[loaded.member].interfaces)
            }
            _ => return None,
        };
        // It was read once already when it was found.
        let packet = Epb::parse(&Blocks::new(block).next()?.ok()?).ok()?;
        Some((packet, interfaces))
    }

    /// Passes over what lies before the next group.
    fn skip_groups(&mut self) {
        let before_max_ns = self.groups.front().map_or(0, |group| group.before_max_ns);
        self.running_max_ns = self.running_max_ns.max(before_max_ns);
    }

    /// Leaves chunks that need not be read; their times count, but only behind the chunk that is
    /// loaded.
    fn skip_chunks(&mut self) {
        let Some(opened) = self.opened.as_mut().filter(|_| self.loaded.is_none()) else { return };
        while let Some(chunk) = opened.chunks.pop_front_if(|chunk| !chunk.selected) {
            self.running_max_ns = self.running_max_ns.max(max_of(chunk.entry.times_ns));
        }
        if opened.chunks.is_empty() {
            self.opened = None;
            self.skip_groups();
        }
    }

    /// Looks into the next groups, if those before held nothing.
    fn look_ahead(&mut self, reading: &Reading<'_>) {
        let is_new = |group: &Group<'a, S>| matches!(group.glance, Glance::Unknown);
        let count = reading.ahead.groups();
        if count == 1 || !self.groups.front().is_some_and(is_new) {
            return;
        }
        let Demand { program, since_ns, until_ns, .. } = &self.demand;
        let question = Question { program, since_ns: *since_ns, until_ns: *until_ns };
        // What is open already waits for its turn.
        let is_closed = |group: &&mut Group<'a, S>| group.members().all(|it| it.opened.is_none());
        let mut next: Vec<_> = self.groups.iter_mut().take(count).take_while(is_closed).collect();
        let sources: Vec<Vec<&S>> =
            next.iter().map(|group| group.members().map(|it| it.source).collect()).collect();
        for (group, glance) in next.iter_mut().zip(glance(&sources, &question)) {
            group.glance = glance;
        }
    }

    fn open_group(&mut self, reading: &mut Reading<'_>) {
        self.look_ahead(reading);
        let Some(group) = self.groups.pop_front() else { return };
        if let Glance::Nothing(shown) = &group.glance {
            for (member, shown) in group.members().zip(shown) {
                reading.note_nothing(member.source, shown);
            }
            reading.ahead.opened(false);
            self.running_max_ns = self.running_max_ns.max(group.times_ns.1);
            self.skip_groups();
            return;
        }
        let Demand { program, since_ns, until_ns, .. } = &self.demand;
        let question = Question { program, since_ns: *since_ns, until_ns: *until_ns };
        let (mut members, mut chunks) = (Vec::new(), Vec::new());
        for member in std::iter::once(group.first).chain(group.more) {
            let opened = member.opened.map(|opened| *opened);
            let opened = opened.or_else(|| reading.open(member.source, Some(&question)));
            let Some((reader, look)) = opened else {
                // What it would have told of times is in the table.
                self.running_max_ns = self.running_max_ns.max(member.times_ns.1);
                continue;
            };
            reading.findings.chunks_considered += look.considered as u64;
            let selected: HashSet<u32> = look.selected.into_iter().collect();
            for (number, entry) in (0u32..).zip(look.chunks) {
                let selected = selected.contains(&number);
                if entry.packets > 0 {
                    let member = members.len();
                    chunks.push(Planned { member, number, entry, selected, rest_min_ns: u64::MAX });
                }
            }
            let list = reader.interfaces().to_vec();
            let ids = list.iter().map(|_| Cell::new(None)).collect();
            let interfaces = Rc::new(Interfaces { list, ids });
            let span = span(member.source.entry(), reading.now_ns);
            let name = member.source.name();
            members.push(OpenedMember { reader, interfaces, name, span, read: false });
        }
        chunks.sort_by_key(|chunk| (chunk.entry.first_sequence, chunk.member));
        let mut rest_min_ns = self.groups.front().map_or(u64::MAX, |group| group.rest_min_ns);
        for chunk in chunks.iter_mut().rev().filter(|chunk| chunk.selected) {
            let min_ns = chunk.entry.times_ns.map_or(0, |times| times.0);
            rest_min_ns = rest_min_ns.min(min_ns.max(self.demand.since_ns));
            chunk.rest_min_ns = rest_min_ns;
        }
        reading.ahead.opened(chunks.iter().any(|chunk| chunk.selected));
        self.opened = Some(Opened { members, chunks: chunks.into() });
        self.skip_chunks();
    }

    fn load_chunk(&mut self, reading: &mut Reading<'_>) {
        let Some(opened) = &mut self.opened else { return };
        let Some(chunk) = opened.chunks.pop_front() else { return };
        let member = &mut opened.members[chunk.member];
        let mut buf = reading.buffers.pop().unwrap_or_default();
        match member.reader.read_chunk(chunk.number, &mut buf) {
            Ok((header, rest)) => {
                reading.findings.segments_read +=
                    u64::from(!std::mem::replace(&mut member.read, true));
                reading.findings.chunks_read += 1;
                self.loaded = Some(Loaded {
                    buf,
                    member: chunk.member,
                    number: chunk.number,
                    packets: u64::from(header.packets),
                    times_ns: header.times_ns,
                    rest,
                    next_sequence: header.first_sequence,
                    end_sequence: header.next_sequence(),
                    at_hand: None,
                });
            }
            Err(absence) => {
                reading.buffers.push(buf);
                self.running_max_ns = self.running_max_ns.max(max_of(chunk.entry.times_ns));
                let packets = Some(u64::from(chunk.entry.packets));
                let lost = lost(
                    member,
                    self.id.lane,
                    chunk.number,
                    chunk.entry.times_ns,
                    packets,
                    absence,
                );
                reading.findings.lost.push(lost);
            }
        }
    }

    /// Looks for the next packet of the loaded chunk that is asked for; leaves the chunk at its
    /// end.
    fn scan(&mut self, reading: &mut Reading<'_>) {
        let (Some(loaded), Some(opened)) = (&mut self.loaded, &mut self.opened) else { return };
        let member = &opened.members[loaded.member];
        loaded.at_hand = None;
        let mut blocks = Blocks::new(&loaded.buf[loaded.rest.clone()]);
        let base = loaded.rest.start;
        let mut wrong = None;
        for block in &mut blocks {
            let packet = match block {
                Ok(block) if block.kind != BLOCK_EPB => continue,
                Ok(block) => Epb::parse(&block).map(|packet| (base + block.offset, packet)),
                Err(error) => Err(error),
            };
            let (at, packet) = match packet {
                Ok(found) => found,
                Err(error) => {
                    wrong = Some(error.to_string());
                    break;
                }
            };
            let sequence = loaded.next_sequence;
            loaded.next_sequence += 1;
            if sequence < self.watermark {
                continue;
            }
            self.running_max_ns = self.running_max_ns.max(packet.ts_ns);
            let in_window = (self.demand.since_ns..self.demand.until_ns).contains(&packet.ts_ns);
            if !in_window || self.demand.program.run(packet.data, packet.orig_len) == 0 {
                continue;
            }
            if self.demand.without_duplicates && is_duplicate(packet.options) {
                continue;
            }
            let in_tunnel = |id| {
                let (vxlan, records) =
                    (member.interfaces.vxlan_ports(&packet), outer_records(packet.options));
                is_in_tunnel(id, &vxlan, self.id.link_type, packet.data, records)
            };
            if !self.demand.tunnel.is_none_or(in_tunnel) {
                continue;
            }
            if packet.interface_id as usize >= member.interfaces.list.len() {
                let known = member.interfaces.list.len();
                wrong =
                    Some(format!("a packet names interface {} of {known}", packet.interface_id));
                continue;
            }
            loaded.at_hand = Some((at, sequence));
            break;
        }
        loaded.rest.start = base + blocks.offset();
        if let Some(what) = wrong {
            let absence = Absence { cause: Cause::Damaged, what };
            let packets = Some(loaded.packets);
            let lost = lost(member, self.id.lane, loaded.number, loaded.times_ns, packets, absence);
            reading.findings.lost.push(lost);
        }
        if loaded.at_hand.is_none() {
            self.watermark = self.watermark.max(loaded.end_sequence);
            self.running_max_ns = self.running_max_ns.max(max_of(loaded.times_ns));
            reading.buffers.push(std::mem::take(&mut loaded.buf));
            self.loaded = None;
            self.skip_chunks();
        }
    }

    /// Takes all packets of the loaded chunk aside, to be given out by time.
    fn hold(&mut self, reading: &mut Reading<'_>) -> Result<(), QueryError> {
        while let (Some(loaded), Some(opened)) = (&self.loaded, &self.opened) {
            if let Some((at, sequence)) = loaded.at_hand {
                let block: Box<[u8]> = loaded.buf[at..loaded.rest.start].into();
                let interfaces = Rc::clone(&opened.members[loaded.member].interfaces);
                let parsed = Blocks::new(&block).next().and_then(Result::ok);
                let ts_ns = parsed.and_then(|b| Epb::parse(&b).ok()).map_or(0, |p| p.ts_ns);
                reading.held_bytes += block.len();
                if reading.held_bytes > reading.held_bytes_max {
                    let limit_bytes = reading.held_bytes_max;
                    return Err(QueryError::SortMemory { limit_bytes });
                }
                self.held.push(Reverse(Held { ts_ns, sequence, block, interfaces }));
            }
            self.scan(reading);
        }
        Ok(())
    }

    /// The least place that a packet can have which was not looked at yet.
    fn bound(&self) -> Option<Key> {
        let (mut time_ns, rest_min_ns, first_sequence) = match (&self.opened, self.groups.front()) {
            (Some(Opened { chunks, .. }), _) if !chunks.is_empty() => {
                let next = &chunks[0];
                let min_ns = next.entry.times_ns.map_or(0, |times| times.0);
                (min_ns, next.rest_min_ns, next.entry.first_sequence)
            }
            (_, Some(group)) => (group.times_ns.0, group.rest_min_ns, group.first_sequence),
            _ => return None,
        };
        time_ns = match self.demand.sort {
            true => rest_min_ns,
            false => time_ns.max(self.running_max_ns).max(self.demand.since_ns),
        };
        Some(Key { time_ns, stream: self.id, sequence: first_sequence.max(self.watermark) })
    }
}

/// Whether a packet is marked as a second copy.
pub(crate) fn is_duplicate(packet_options: &[u8]) -> bool {
    let mut read = options(packet_options).map_while(Result::ok);
    read.any(|option| option.code == OPTION_EPB_DUPLICATE)
}

/// What was removed from a packet, as its options say.
pub(crate) fn outer_records(packet_options: &[u8]) -> &[u8] {
    let mut read = options(packet_options).map_while(Result::ok);
    read.find(|option| option.code == OPTION_EPB_OUTER).map_or(&[], |option| option.value)
}

impl<'a, S: Source> Cursor for StreamCursor<'a, S> {
    type Key = Key;
    type Error = QueryError;
    type Context = Reading<'a>;

    fn key(&self) -> Option<Key> {
        if let Some((_, sequence)) = self.loaded.as_ref().and_then(|loaded| loaded.at_hand) {
            return Some(Key { time_ns: self.running_max_ns, stream: self.id, sequence });
        }
        let held = self.held.peek().map(|Reverse(held)| Key {
            time_ns: held.ts_ns,
            stream: self.id,
            sequence: held.sequence,
        });
        match (held, self.bound()) {
            (Some(held), Some(bound)) => Some(held.min(bound)),
            (one, other) => one.or(other),
        }
    }

    fn is_ready(&self) -> bool {
        let at_hand = self.loaded.as_ref().is_some_and(|loaded| loaded.at_hand.is_some());
        let held = self.held.peek().map(|Reverse(held)| held.ts_ns);
        at_hand || held.is_some_and(|ts_ns| self.bound().is_none_or(|bound| ts_ns <= bound.time_ns))
    }

    fn advance(&mut self, reading: &mut Self::Context) -> Result<(), QueryError> {
        if self.is_ready() && self.loaded.is_none() {
            if let Some(Reverse(held)) = self.held.pop() {
                reading.held_bytes -= held.block.len();
            }
            return Ok(());
        }
        if self.loaded.is_some() {
            self.scan(reading);
            return Ok(());
        }
        reading.check_cancelled()?;
        if self.opened.is_none() {
            self.open_group(reading);
            return Ok(());
        }
        self.load_chunk(reading);
        self.scan(reading);
        self.skip_chunks();
        if self.demand.sort { self.hold(reading) } else { Ok(()) }
    }
}

impl Held {
    fn place(&self) -> (u64, u64) {
        (self.ts_ns, self.sequence)
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}

impl Eq for Held {}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Held {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.place().cmp(&other.place())
    }
}

fn lost<R>(
    member: &OpenedMember<R>,
    lane: u16,
    number: u32,
    times_ns: Option<(u64, u64)>,
    packets: Option<u64>,
    Absence { cause, what }: Absence,
) -> Lost {
    let times = times_ns.map(|(min, max)| (min, max.saturating_add(1)));
    let (from_ns, until_ns) = times.unwrap_or(member.span);
    let (segment, chunk) = (member.name.clone(), Some(number));
    Lost { segment, chunk, lane, cause, from_ns, until_ns, packets, what }
}

fn max_of(times_ns: Option<(u64, u64)>) -> u64 {
    times_ns.map_or(0, |times| times.1)
}
