//! Planning: which chunks of a segment a query must read.
//!
//! The program that decides every packet decides here first, run abstractly: on the segment's
//! shapes with "is this address here at all?" answered by the filter, then on each flow. It answers
//! No, Yes or Maybe, and only No leaves anything out. So the answer is a superset whatever the
//! filter says, `not` and odd encapsulations included.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::RangeInclusive;

use wirevault_format::footer::ChunkEntry;
use wirevault_packet::bpf::{AnyAddress, Oracle, Program, Verdict};
use wirevault_packet::{Direction, Template, ValueKind, shape_template, value_layout};
use xorf::{BinaryFuse8, BinaryFuse8Ref, DmaSerializable, Filter, FilterRef};

use crate::delta::FlowStats;
use crate::segment_index::FlowRecord;

/// Bytes of the port bitmap: one bit a port.
pub const PORT_BITMAP_BYTES: usize = 65_536 / 8;
/// Lengths of the IPv4 prefixes that the filter holds beside whole addresses.
const PREFIXES4: [u8; 3] = [32, 24, 16];
/// The same for IPv6.
const PREFIXES6: [u8; 3] = [128, 64, 48];

/// Chunks that a query must read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Their numbers, ascending.
    pub chunks: Vec<u32>,
    /// Chunks with packets that the index was asked about, all within the window's segments.
    pub chunks_considered: usize,
    /// The flow index could not be read, so every chunk in the window is to be read; this is why.
    pub index_damage: Option<String>,
}

/// Which addresses and ports a segment holds, as a small filter without false negatives.
#[derive(Debug, Clone)]
pub struct HostFilter {
    /// `None`: any address may be here.
    pub(crate) hosts: Option<FuseFilter>,
    pub(crate) ports: Vec<u8>,
}

impl HostFilter {
    /// Builds the filter over addresses and a port bitmap.
    pub(crate) fn build(hosts4: &[[u8; 4]], hosts6: &[[u8; 16]], ports: Vec<u8>) -> Self {
        let keys4 = hosts4.iter().flat_map(|addr| PREFIXES4.map(|bits| key4(*addr, bits)));
        let keys6 = hosts6.iter().flat_map(|addr| PREFIXES6.map(|bits| key6(*addr, bits)));
        let mut keys: Vec<u64> = keys4.chain(keys6).collect();
        keys.sort_unstable();
        keys.dedup();
        // Building fails for sets that collide by bad luck; then any address may be here.
        let hosts = BinaryFuse8::try_from(&keys).ok().filter(|_| !keys.is_empty());
        Self { hosts: hosts.as_ref().map(FuseFilter::of), ports }
    }

    fn maybe(&self, key: u64) -> bool {
        self.hosts.as_ref().is_none_or(|hosts| hosts.contains(key))
    }
}

/// A binary fuse filter in the form in which it is stored.
#[derive(Debug, Clone)]
pub(crate) struct FuseFilter {
    pub(crate) descriptor: [u8; BinaryFuse8::DESCRIPTOR_LEN],
    pub(crate) fingerprints: Box<[u8]>,
}

impl FuseFilter {
    fn of(filter: &BinaryFuse8) -> Self {
        let mut descriptor = [0; BinaryFuse8::DESCRIPTOR_LEN];
        filter.dma_copy_descriptor_to(&mut descriptor);
        Self { descriptor, fingerprints: filter.dma_fingerprints().into() }
    }

    fn contains(&self, key: u64) -> bool {
        BinaryFuse8Ref::from_dma(&self.descriptor, &self.fingerprints).contains(&key)
    }

    /// Whether no key can make the filter look outside its fingerprints: a key's three places lie
    /// in three segments that follow each other.
    pub(crate) fn is_sound(&self) -> bool {
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|n| self.descriptor[at + n]));
        let (segment, mask, count) = (word(8), word(12), word(16));
        let reach = u64::from(count) + 2 * u64::from(segment);
        segment.is_power_of_two()
            && mask == segment - 1
            && count.is_multiple_of(segment)
            && reach <= self.fingerprints.len() as u64
    }
}

impl Oracle for HostFilter {
    fn host4(&self, addr: [u8; 4], prefix_len: u8) -> bool {
        // The longest prefix held that the question covers.
        let held = PREFIXES4.into_iter().find(|held| *held <= prefix_len);
        held.is_none_or(|held| self.maybe(key4(addr, held)))
    }

    fn host6(&self, addr: [u8; 16], prefix_len: u8) -> bool {
        let held = PREFIXES6.into_iter().find(|held| *held <= prefix_len);
        held.is_none_or(|held| self.maybe(key6(addr, held)))
    }

    fn port(&self, mut range: RangeInclusive<u16>) -> bool {
        range.any(|port| self.ports[usize::from(port) / 8] & (1 << (port % 8)) != 0)
    }
}

fn key4(addr: [u8; 4], prefix_len: u8) -> u64 {
    let bits = u32::from_be_bytes(addr) & (u32::MAX << (32 - prefix_len));
    mix(u64::from(bits) | u64::from(prefix_len) << 32 | 4 << 40)
}

fn key6(addr: [u8; 16], prefix_len: u8) -> u64 {
    let bits = u128::from_be_bytes(addr) & (u128::MAX << (128 - prefix_len));
    mix((bits >> 64) as u64 ^ mix(bits as u64 ^ u64::from(prefix_len)) ^ 6 << 40)
}

/// The finaliser of SplitMix64: the filter wants keys that differ in all bits.
fn mix(mut key: u64) -> u64 {
    key = (key ^ key >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    key = (key ^ key >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    key ^ key >> 31
}

/// Whether any shape may hold a packet that the program accepts.
pub(crate) fn shapes_may_match<'a>(
    shapes: impl IntoIterator<Item = &'a [u8]>,
    program: &Program,
    filter: &HostFilter,
) -> bool {
    shapes.into_iter().any(|shape| match shape_template(shape) {
        Ok(template) => program.decide(&template, filter) != Verdict::No,
        Err(_) => true,
    })
}

/// The chunks of a segment while a query picks those it must read.
pub(crate) struct Chunks {
    states: Vec<State>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Without packets in the window.
    Outside,
    /// To be read only if a flow says so.
    Open,
    Marked,
}

impl Chunks {
    /// Marks what is scanned whatever the flows say.
    pub(crate) fn new(chunks: &[ChunkEntry], scanned: &[bool], window: (u64, u64)) -> Self {
        let state = |(entry, scanned): (&ChunkEntry, &bool)| match entry.times_ns {
            Some((min_ns, max_ns)) if max_ns >= window.0 && min_ns < window.1 => match scanned {
                true => State::Marked,
                false => State::Open,
            },
            _ => State::Outside,
        };
        Self { states: chunks.iter().zip(scanned).map(state).collect() }
    }

    pub(crate) fn mark_all(&mut self) {
        for state in self.states.iter_mut().filter(|state| **state == State::Open) {
            *state = State::Marked;
        }
    }

    /// Numbers of the chunks to read, ascending.
    pub(crate) fn marked(&self) -> Vec<u32> {
        let states = (0..).zip(&self.states);
        states.filter(|(_, state)| **state == State::Marked).map(|(n, _)| n).collect()
    }

    fn is_open(&self, chunk: u32) -> bool {
        self.states.get(chunk as usize) == Some(&State::Open)
    }

    fn mark(&mut self, chunks: &[u32]) {
        for chunk in chunks {
            if self.is_open(*chunk) {
                self.states[*chunk as usize] = State::Marked;
            }
        }
    }
}

/// Marks the chunks of every flow that may hold a packet that the program accepts.
pub(crate) fn mark_flows(
    flows: &[FlowRecord],
    program: &Program,
    window: (u64, u64),
    chunks: &mut Chunks,
) {
    let mut shapes: HashMap<&[u8], ShapePlan> = HashMap::new();
    for flow in flows {
        let (first_ns, last_ns) = flow.stats.times_ns;
        if last_ns < window.0 || first_ns >= window.1 {
            continue;
        }
        if !flow.chunks.iter().any(|chunk| chunks.is_open(*chunk)) {
            continue;
        }
        let shape = flow.key.shape();
        let plan = shapes.entry(shape).or_insert_with(|| ShapePlan::new(shape, program));
        let matches = match plan.decide(flow, program) {
            Verdict::No => false,
            Verdict::Yes => true,
            Verdict::Maybe => flow_may_match(flow, program),
        };
        if matches {
            chunks.mark(&flow.chunks);
        }
    }
}

/// Questions about one shape's addresses and ports at most; the answers are bits of a word.
const QUESTIONS_MAX: usize = 64;
/// Answers remembered for one shape at most. Flags and hosts make a handful.
const VERDICTS_MAX: usize = 4096;

/// What a program wants to know of an address or port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    Host4([u8; 4], u8),
    Host6([u8; 16], u8),
    Port(u16, u16),
}

impl Question {
    fn holds(&self, kind: ValueKind, value: &[u8]) -> bool {
        match (*self, kind) {
            (Self::Host4(addr, bits), ValueKind::Addr4) => starts_with(value, &addr, bits),
            (Self::Host6(addr, bits), ValueKind::Addr6) => starts_with(value, &addr, bits),
            (Self::Port(low, high), ValueKind::Port) => match value {
                [a, b] => (low..=high).contains(&u16::from_be_bytes([*a, *b])),
                _ => true,
            },
            _ => false,
        }
    }
}

/// Whether two addresses agree in their first `bits` bits.
fn starts_with(value: &[u8], addr: &[u8], bits: u8) -> bool {
    let (whole, rest) = (usize::from(bits / 8), bits % 8);
    let last = || match (value.get(whole), addr.get(whole)) {
        (Some(a), Some(b)) => (a ^ b) >> (8 - rest) == 0,
        _ => true,
    };
    value.get(..whole) == addr.get(..whole) && (rest == 0 || last())
}

/// Answers yes and notes what was asked.
struct Listening(RefCell<Vec<Question>>);

impl Listening {
    fn note(&self, question: Question) -> bool {
        let mut questions = self.0.borrow_mut();
        if questions.len() < QUESTIONS_MAX && !questions.contains(&question) {
            questions.push(question);
        }
        true
    }
}

impl Oracle for Listening {
    fn host4(&self, addr: [u8; 4], prefix_len: u8) -> bool {
        self.note(Question::Host4(addr, prefix_len))
    }

    fn host6(&self, addr: [u8; 16], prefix_len: u8) -> bool {
        self.note(Question::Host6(addr, prefix_len))
    }

    fn port(&self, range: RangeInclusive<u16>) -> bool {
        self.note(Question::Port(*range.start(), *range.end()))
    }
}

/// Answers for one flow; yes to what was not foreseen.
struct Answering<'a> {
    questions: &'a [Question],
    answers: u64,
}

impl Answering<'_> {
    fn answer(&self, question: Question) -> bool {
        let at = self.questions.iter().position(|known| *known == question);
        at.is_none_or(|at| self.answers >> at & 1 == 1)
    }
}

impl Oracle for Answering<'_> {
    fn host4(&self, addr: [u8; 4], prefix_len: u8) -> bool {
        self.answer(Question::Host4(addr, prefix_len))
    }

    fn host6(&self, addr: [u8; 16], prefix_len: u8) -> bool {
        self.answer(Question::Host6(addr, prefix_len))
    }

    fn port(&self, range: RangeInclusive<u16>) -> bool {
        self.answer(Question::Port(*range.start(), *range.end()))
    }
}

/// What a program says about the flows of one shape.
///
/// Running it on every flow costs half a microsecond. But most flows of a shape differ only in
/// things that the program never looks at: it runs once on the shape to learn what it asks, and
/// then once for each combination of answers (and TCP flags) that flows really have.
struct ShapePlan {
    /// `None`: the shape does not decode; its flows are taken one by one.
    template: Option<Template>,
    layout: Vec<ValueKind>,
    questions: Vec<Question>,
    verdicts: HashMap<(u64, u8, u8), Verdict>,
    /// The last flow's entry: flows of one shape are much alike.
    last: ((u64, u8, u8), Verdict),
    /// What the program says whatever the addresses, ports and flags are.
    always: Verdict,
}

impl ShapePlan {
    fn new(shape: &[u8], program: &Program) -> Self {
        let listening = Listening(RefCell::new(Vec::new()));
        let template = shape_template(shape).ok();
        let always = template.as_ref().map_or(Verdict::Maybe, |t| program.decide(t, &listening));
        Self {
            template,
            layout: value_layout(shape).unwrap_or_default(),
            questions: listening.0.into_inner(),
            verdicts: HashMap::new(),
            last: ((0, 0, 0), Verdict::Maybe),
            always,
        }
    }

    /// What is certain of the flow without regard to its lengths and directions.
    fn decide(&mut self, flow: &FlowRecord, program: &Program) -> Verdict {
        let Some(template) = self.template.as_ref().filter(|_| self.always == Verdict::Maybe)
        else {
            return self.always;
        };
        let answers = self.answers(flow.key.values());
        let flags = match template.tcp_flags_at() {
            Some(_) => (flow.stats.tcp_or, flow.stats.tcp_and),
            None => (0, 0),
        };
        let case = (answers, flags.0, flags.1);
        if case == self.last.0 && !self.verdicts.is_empty() {
            return self.last.1;
        }
        let known = self.verdicts.get(&case).copied();
        let verdict = known.unwrap_or_else(|| {
            let mut template = template.clone();
            template.set_tcp_flags(flags.0, flags.1);
            program.decide(&template, &Answering { questions: &self.questions, answers })
        });
        if self.verdicts.len() < VERDICTS_MAX {
            self.verdicts.insert(case, verdict);
        }
        self.last = (case, verdict);
        verdict
    }

    fn answers(&self, mut values: &[u8]) -> u64 {
        let mut answers = 0;
        for kind in &self.layout {
            let (value, rest) = values.split_at(kind.bytes().min(values.len()));
            values = rest;
            for (at, question) in self.questions.iter().enumerate() {
                answers |= u64::from(question.holds(*kind, value)) << at;
            }
        }
        answers
    }
}

fn flow_may_match(flow: &FlowRecord, program: &Program) -> bool {
    let stats = &flow.stats;
    [Direction::AtoB, Direction::BtoA].into_iter().any(|direction| {
        if stats.directions & FlowStats::bit(direction) == 0 {
            return false;
        }
        let mut template = flow.key.template(direction);
        let ((wire_min, wire_max), (cap_min, cap_max)) = (stats.wire_len, stats.captured_len);
        template.set_lengths(wire_min, wire_max, cap_min, cap_max);
        template.set_tcp_flags(stats.tcp_or, stats.tcp_and);
        program.decide(&template, &AnyAddress) != Verdict::No
    })
}
