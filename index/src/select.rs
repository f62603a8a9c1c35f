//! Planning: which chunks of a segment a query must read.
//!
//! The program that decides every packet decides here first, run abstractly: on the segment's
//! shapes with "is this address here at all?" answered by the filter, then on each flow, and on the
//! shapes of each chunk that a filter of its own covers. It answers No, Yes or Maybe, and only No
//! leaves anything out. So the answer is a superset whatever the filters say, `not` and odd
//! encapsulations included.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::RangeInclusive;

use wirevault_format::footer::ChunkEntry;
use wirevault_packet::bpf::{AnyAddress, Oracle, Program, Verdict};
use wirevault_packet::{Direction, FlowKey, Template, ValueKind, shape_template};

use crate::chunk_filter::ChunkFilter;
use crate::delta::FlowStats;
use crate::flows::{FlowList, Shape};
use crate::host_filter::HostFilter;

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

/// Whether any shape may hold a packet that the program accepts.
pub(crate) fn shapes_may_match(shapes: &[Shape], program: &Program, filter: &HostFilter) -> bool {
    shapes.iter().any(|shape| match shape_template(&shape.bytes) {
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

    /// Some chunk is still to be decided.
    pub(crate) fn any_open(&self) -> bool {
        self.states.contains(&State::Open)
    }

    pub(crate) fn is_open(&self, chunk: u32) -> bool {
        self.states.get(chunk as usize) == Some(&State::Open)
    }

    pub(crate) fn mark(&mut self, chunk: u32) {
        self.decide(chunk, true);
    }

    fn decide(&mut self, chunk: u32, is_wanted: bool) {
        if self.is_open(chunk) {
            self.states[chunk as usize] = if is_wanted { State::Marked } else { State::Outside };
        }
    }
}

/// Decides every chunk that a filter of its own covers.
pub(crate) fn mark_filtered(
    filters: &[Option<ChunkFilter>],
    shapes: &[Shape],
    program: &Program,
    chunks: &mut Chunks,
) {
    let mut plans: HashMap<u32, ShapePlan> = HashMap::new();
    for (chunk, filter) in (0..).zip(filters) {
        let Some(filter) = filter.as_ref().filter(|_| chunks.is_open(chunk)) else { continue };
        let is_wanted = filter.shapes.iter().any(|number| {
            let Some(shape) = shapes.get(*number as usize) else { return true };
            let plan = plans.entry(*number).or_insert_with(|| ShapePlan::new(shape, program));
            plan.may_match(filter, program)
        });
        chunks.decide(chunk, is_wanted);
    }
}

/// Calls `found` with the number of every flow that may hold a packet that the program accepts.
/// Flows for which `asked` is false are not looked at.
pub(crate) fn matching_flows(
    flows: &FlowList,
    program: &Program,
    window: (u64, u64),
    mut asked: impl FnMut(usize) -> bool,
    mut found: impl FnMut(usize),
) {
    let mut plans: Vec<Option<ShapePlan>> = Vec::new();
    plans.resize_with(flows.shapes.list.len(), || None);
    for (number, stats) in flows.stats.iter().enumerate() {
        let (first_ns, last_ns) = stats.times_ns;
        if last_ns < window.0 || first_ns >= window.1 || !asked(number) {
            continue;
        }
        let (shape, values) = flows.flow(number);
        let plan = plans[flows.shape_of[number] as usize]
            .get_or_insert_with(|| ShapePlan::new(shape, program));
        let matches = match plan.decide(shape, values, stats, program) {
            Verdict::No => false,
            Verdict::Yes => true,
            Verdict::Maybe => {
                flow_may_match(&FlowKey::from_kept(flows.keys.get(number)), stats, program)
            }
        };
        if matches {
            found(number);
        }
    }
}

/// Questions about one shape's addresses and ports at most; the answers are bits of a word.
const QUESTIONS_MAX: usize = 64;
/// Answers remembered for one shape at most. Flags and hosts make a handful.
const VERDICTS_MAX: usize = 4096;

/// What a program wants to know of an address or port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    Host4([u8; 4], u8),
    Host6([u8; 16], u8),
    Port(u16, u16),
}

impl Question {
    fn ask(&self, oracle: &impl Oracle) -> bool {
        match *self {
            Self::Host4(addr, bits) => oracle.host4(addr, bits),
            Self::Host6(addr, bits) => oracle.host6(addr, bits),
            Self::Port(low, high) => oracle.port(low..=high),
        }
    }

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
pub(crate) struct ShapePlan {
    /// `None`: the shape does not decode; its flows are taken one by one.
    template: Option<Template>,
    questions: Vec<Question>,
    verdicts: HashMap<(u64, u8, u8), Verdict>,
    /// The same for chunks, of whose packets no flags are known.
    filtered: HashMap<u64, bool>,
    /// The last flow's entry: flows of one shape are much alike.
    last: ((u64, u8, u8), Verdict),
    /// What the program says whatever the addresses, ports and flags are.
    always: Verdict,
}

impl ShapePlan {
    pub(crate) fn new(shape: &Shape, program: &Program) -> Self {
        let listening = Listening(RefCell::new(Vec::new()));
        let template = shape_template(&shape.bytes).ok();
        let always = template.as_ref().map_or(Verdict::Maybe, |t| program.decide(t, &listening));
        Self {
            template,
            questions: listening.0.into_inner(),
            verdicts: HashMap::new(),
            filtered: HashMap::new(),
            last: ((0, 0, 0), Verdict::Maybe),
            always,
        }
    }

    /// What is certain of the flow without regard to its lengths and directions.
    fn decide(
        &mut self,
        shape: &Shape,
        values: &[u8],
        stats: &FlowStats,
        program: &Program,
    ) -> Verdict {
        let Some(template) = self.template.as_ref().filter(|_| self.always == Verdict::Maybe)
        else {
            return self.always;
        };
        let answers = self.answers(shape, values);
        let flags = match template.tcp_flags_at() {
            Some(_) => (stats.tcp_or, stats.tcp_and),
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

    fn answers(&self, shape: &Shape, values: &[u8]) -> u64 {
        let mut answers = 0;
        for (kind, value) in shape.values(values) {
            for (at, question) in self.questions.iter().enumerate() {
                answers |= u64::from(question.holds(kind, value)) << at;
            }
        }
        answers
    }

    /// What is asked of addresses and ports.
    pub(crate) fn questions(&self) -> &[Question] {
        &self.questions
    }

    /// Whether packets of this shape may match, if that does not depend on addresses and ports.
    pub(crate) fn without_values(&self) -> Option<bool> {
        match (&self.template, self.always) {
            (None, _) | (_, Verdict::Yes) => Some(true),
            (_, Verdict::No) => Some(false),
            (_, Verdict::Maybe) if self.questions.is_empty() => Some(true),
            (_, Verdict::Maybe) => None,
        }
    }

    /// Whether packets of this shape may match where `filter` says which addresses and ports there
    /// are.
    pub(crate) fn may_match(&mut self, filter: &impl Oracle, program: &Program) -> bool {
        let Some(template) = self.template.as_ref().filter(|_| self.always == Verdict::Maybe)
        else {
            return self.always != Verdict::No;
        };
        let mut answers = 0;
        for (at, question) in self.questions.iter().enumerate() {
            answers |= u64::from(question.ask(filter)) << at;
        }
        if let Some(known) = self.filtered.get(&answers) {
            return *known;
        }
        let answering = Answering { questions: &self.questions, answers };
        let may_match = program.decide(template, &answering) != Verdict::No;
        if self.filtered.len() < VERDICTS_MAX {
            self.filtered.insert(answers, may_match);
        }
        may_match
    }
}

fn flow_may_match(key: &FlowKey, stats: &FlowStats, program: &Program) -> bool {
    [Direction::AtoB, Direction::BtoA].into_iter().any(|direction| {
        if stats.directions & FlowStats::bit(direction) == 0 {
            return false;
        }
        let mut template = key.template(direction);
        let ((wire_min, wire_max), (cap_min, cap_max)) = (stats.wire_len, stats.captured_len);
        template.set_lengths(wire_min, wire_max, cap_min, cap_max);
        template.set_tcp_flags(stats.tcp_or, stats.tcp_and);
        program.decide(&template, &AnyAddress) != Verdict::No
    })
}
