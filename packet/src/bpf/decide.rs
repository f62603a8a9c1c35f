//! A program on a template: what it does to every packet that the template stands for.
//!
//! The machine's words are numbers of which some bits and bounds are known. Where a condition is
//! not decided both ways are followed. Jumps go forward, so the instructions are visited in order
//! and ways that meet are joined: no instruction runs twice, however many conditions are open.
//! A flow's template leaves few conditions open; then nothing is allocated.

use std::ops::RangeInclusive;

use crate::bpf::insn::{Alu, Op, Operand, Program, SCRATCH_WORDS, Size, Step, Test};
use crate::bpf::value::{Origin, Value};
use crate::template::{Place, Template};

/// Steps beyond the program's length after which the answer is `Maybe`. Only loops get there.
const EXTRA_STEPS_MAX: usize = 4096;
/// Most places about which one way remembers what it has learned; more is forgotten.
const FACTS_MAX: usize = 4;

/// What a program does to a set of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It refuses every one.
    No,
    /// It takes every one.
    Yes,
    /// It may take some and refuse others.
    Maybe,
}

impl Verdict {
    /// The verdict on both sets together, such as the two directions of a flow.
    pub fn and_also(self, other: Self) -> Self {
        if self == other { self } else { Self::Maybe }
    }
}

/// Knows which addresses and ports occur, for templates that leave them open.
///
/// `true` means "perhaps"; only `false` rules anything out.
pub trait Oracle {
    /// Whether an IPv4 address occurs that starts with the first `prefix_len` bits of `addr`.
    fn host4(&self, addr: [u8; 4], prefix_len: u8) -> bool;
    /// Whether an IPv6 address occurs that starts with the first `prefix_len` bits of `addr`.
    fn host6(&self, addr: [u8; 16], prefix_len: u8) -> bool;
    /// Whether a port within the range occurs.
    fn port(&self, range: RangeInclusive<u16>) -> bool;
}

/// The oracle that knows nothing; right for flows, whose templates leave no address open.
#[derive(Debug, Clone, Copy, Default)]
pub struct AnyAddress;

impl Oracle for AnyAddress {
    fn host4(&self, _: [u8; 4], _: u8) -> bool {
        true
    }

    fn host6(&self, _: [u8; 16], _: u8) -> bool {
        true
    }

    fn port(&self, _: RangeInclusive<u16>) -> bool {
        true
    }
}

impl Program {
    /// Says what [`Program::run`] does to every packet that the template stands for, as far as
    /// the template and the oracle allow.
    pub fn decide(&self, template: &Template, oracle: &impl Oracle) -> Verdict {
        let mut search = Search {
            steps: &self.steps,
            template,
            oracle,
            pending: Vec::new(),
            taken: false,
            refused: false,
        };
        search.follow()
    }
}

/// Bits learned about a place on the way: an address of which a part was compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Fact {
    /// Number of the place, from 1; 0 = free slot.
    place: u8,
    /// Known bits, counted from the place's first, at the top of the number.
    mask: u128,
    value: u128,
}

/// What a condition says about the accumulator and about the place it was loaded from.
#[derive(Debug, Clone, Copy)]
struct Learned {
    a: Value,
    fact: Fact,
}

impl Learned {
    fn only(a: Value) -> Self {
        Self { a, fact: Fact::default() }
    }
}

/// The machine somewhere on one way.
#[derive(Debug, Clone, Copy)]
struct State {
    at: usize,
    a: Value,
    x: Value,
    scratch: [Value; SCRATCH_WORDS],
    facts: [Fact; FACTS_MAX],
}

impl State {
    fn fact(&self, place: u8) -> Option<&Fact> {
        self.facts.iter().find(|fact| fact.place == place)
    }

    /// Moves on, knowing more.
    fn go(&mut self, at: usize, learned: &Learned) {
        self.at = at;
        self.a = learned.a;
        if learned.fact.place != 0 {
            let slot = self.facts.iter().position(|fact| fact.place == learned.fact.place);
            let slot = slot.or_else(|| self.facts.iter().position(|fact| fact.place == 0));
            if let Some(slot) = slot {
                self.facts[slot] = learned.fact;
            }
        }
    }

    fn join(&mut self, other: &Self) {
        self.a = self.a.join(&other.a);
        self.x = self.x.join(&other.x);
        for (mine, theirs) in self.scratch.iter_mut().zip(&other.scratch) {
            *mine = mine.join(theirs);
        }
        for fact in &mut self.facts {
            let theirs = other.fact(fact.place).copied().unwrap_or_default();
            fact.mask &= theirs.mask & !(fact.value ^ theirs.value);
            fact.value &= fact.mask;
            if fact.mask == 0 {
                *fact = Fact::default();
            }
        }
    }
}

struct Search<'a, O> {
    steps: &'a [Step],
    template: &'a Template,
    oracle: &'a O,
    /// Ways not yet followed, at most one per instruction.
    pending: Vec<State>,
    taken: bool,
    refused: bool,
}

/// What became of the way being followed.
enum Way {
    Goes,
    Ended,
}

impl<O: Oracle> Search<'_, O> {
    fn follow(&mut self) -> Verdict {
        let mut state = State {
            at: 0,
            a: Value::default(),
            x: Value::default(),
            scratch: [Value::default(); SCRATCH_WORDS],
            facts: [Fact::default(); FACTS_MAX],
        };
        for _ in 0..self.steps.len() + EXTRA_STEPS_MAX {
            let way = self.step(&mut state);
            if self.taken && self.refused {
                return Verdict::Maybe;
            }
            if self.pending.is_empty() {
                match way {
                    Way::Goes => continue,
                    Way::Ended if self.taken => return Verdict::Yes,
                    Way::Ended => return Verdict::No,
                }
            }
            if matches!(way, Way::Goes) {
                self.put_off(state);
            }
            state = self.earliest();
        }
        Verdict::Maybe
    }

    /// Takes the pending way that is least far.
    fn earliest(&mut self) -> State {
        let earliest = (0..self.pending.len()).min_by_key(|&i| self.pending[i].at);
        self.pending.swap_remove(earliest.expect("called with a way pending"))
    }

    /// Keeps a way for later, joined with one that waits at the same instruction.
    fn put_off(&mut self, state: State) {
        match self.pending.iter_mut().find(|waiting| waiting.at == state.at) {
            Some(waiting) => waiting.join(&state),
            None => self.pending.push(state),
        }
    }

    fn step(&mut self, state: &mut State) -> Way {
        let Some(step) = self.steps.get(state.at) else { return self.refuse() };
        let k = Value::constant(step.k);
        let slot = step.k as usize % SCRATCH_WORDS;
        match step.op {
            Op::LoadAbsolute(size) => return self.load(state, &k, size, step),
            Op::LoadIndirect(size) => {
                let (low, high) =
                    (state.x.low.checked_add(step.k), state.x.high.checked_add(step.k));
                let Some(low) = low else { return self.refuse() };
                self.refused |= high.is_none();
                let offset = Value::range(low, high.unwrap_or(u32::MAX));
                return self.load(state, &offset, size, step);
            }
            Op::LoadXHeader => {
                let a = state.a;
                let way = self.load(state, &k, Size::Byte, step);
                let (unknown, value) = (state.a.unknown & 0xf, state.a.value & 0xf);
                state.x = Value::bits(unknown << 2, value << 2);
                state.a = a;
                return way;
            }
            Op::LoadLength => state.a = self.wire_len(),
            Op::LoadXLength => state.x = self.wire_len(),
            Op::LoadImmediate => state.a = k,
            Op::LoadXImmediate => state.x = k,
            Op::LoadScratch => state.a = state.scratch[slot],
            Op::LoadXScratch => state.x = state.scratch[slot],
            Op::Store => state.scratch[slot] = state.a,
            Op::StoreX => state.scratch[slot] = state.x,
            Op::Alu(alu, operand) => {
                let right = if operand == Operand::K { k } else { state.x };
                let divides = matches!(alu, Alu::Div | Alu::Mod);
                match state.a.compute(alu, &right) {
                    Some(value) => state.a = value,
                    None => return self.refuse(),
                }
                self.refused |= divides && right.may_be(0);
            }
            Op::Negate => state.a = state.a.negate(),
            Op::Always => {}
            Op::Jump(test, operand) => {
                let right = if operand == Operand::K { k } else { state.x };
                return self.branch(state, test, &right, step);
            }
            Op::ReturnK => return self.give(&k),
            Op::ReturnA => return self.give(&state.a),
            Op::AToX => state.x = state.a,
            Op::XToA => state.a = state.x,
        }
        state.at = step.otherwise as usize;
        Way::Goes
    }

    fn refuse(&mut self) -> Way {
        self.refused = true;
        Way::Ended
    }

    fn give(&mut self, result: &Value) -> Way {
        self.taken |= result.high > 0;
        self.refused |= result.may_be(0);
        Way::Ended
    }

    fn wire_len(&self) -> Value {
        Value::range(self.template.wire_min, self.template.wire_max)
    }

    fn load(&mut self, state: &mut State, offset: &Value, size: Size, step: &Step) -> Way {
        let bytes = size as usize;
        let (captured_min, captured_max) = self.template.captured_bytes();
        let end = |at: u32| u64::from(at) + bytes as u64;
        if end(offset.low) > u64::from(captured_max) {
            return self.refuse();
        }
        self.refused |= end(offset.high) > u64::from(captured_min);
        let whole = u32::MAX >> (32 - 8 * bytes);
        state.a = match offset.exactly() {
            None => Value::bits(whole, 0),
            Some(at) => {
                let (unknown, value) = self.template.load(at as usize, bytes);
                // Bits above the load are 0, not unknown.
                let loaded = Value::bits(unknown & whole, value);
                if loaded.unknown == 0 { loaded } else { self.placed(state, loaded, at, bytes) }
            }
        };
        state.at = step.otherwise as usize;
        Way::Goes
    }

    /// Adds to a loaded number what is known about the place that it comes from.
    fn placed(&self, state: &State, mut loaded: Value, at: u32, bytes: usize) -> Value {
        let at = at as usize;
        let covers = |&(start, place): &(u16, Place)| {
            let start = usize::from(start);
            start <= at && at + bytes <= start + place.bytes()
        };
        let Some(index) = self.template.places().iter().position(covers) else { return loaded };
        let (start, place) = self.template.places()[index];
        let skip = at - usize::from(start);
        match place {
            Place::AtMost(limit) if bytes == 2 => {
                return loaded.within(0, u32::from(limit)).unwrap_or(loaded);
            }
            Place::AtMost(_) => return loaded,
            Place::NonZero(_) if bytes != 2 => return loaded,
            Place::NonZero(_) | Place::Addr4 | Place::Addr6 | Place::Port => {}
        }
        let number = index as u8 + 1;
        if let Some(fact) = state.fact(number) {
            let shift = 128 - 8 * (skip + bytes);
            let (mask, value) = ((fact.mask >> shift) as u32, (fact.value >> shift) as u32);
            let mask = mask & loaded.unknown;
            loaded = Value::bits(loaded.unknown & !mask, loaded.value | value & mask);
        }
        let kept = u32::MAX >> (32 - 8 * bytes);
        loaded.origin = Origin { place: number, skip: skip as u8, size: bytes as u8, kept };
        loaded
    }

    fn branch(&mut self, state: &mut State, test: Test, right: &Value, step: &Step) -> Way {
        let (then, otherwise) = (step.then as usize, step.otherwise as usize);
        let (holds, fails) = match right.exactly() {
            Some(n) => (self.holds(state, test, n), self.fails(state, test, n)),
            // Both ways, with nothing learned.
            None => (Some(Learned::only(state.a)), Some(Learned::only(state.a))),
        };
        match (holds, fails) {
            (Some(holds), Some(fails)) => {
                if self.returned(then) {
                    state.go(otherwise, &fails);
                } else {
                    if !self.returned(otherwise) {
                        let mut later = *state;
                        later.go(otherwise, &fails);
                        self.put_off(later);
                    }
                    state.go(then, &holds);
                }
                Way::Goes
            }
            (Some(holds), None) => {
                state.go(then, &holds);
                Way::Goes
            }
            (None, Some(fails)) => {
                state.go(otherwise, &fails);
                Way::Goes
            }
            // No packet comes this way.
            (None, None) => Way::Ended,
        }
    }

    /// Books a way that only returns a constant, so that it need not be put off.
    fn returned(&mut self, at: usize) -> bool {
        let Some(Step { op: Op::ReturnK, k, .. }) = self.steps.get(at) else { return false };
        self.give(&Value::constant(*k));
        true
    }

    /// What follows if the condition holds. `None`: it cannot.
    fn holds(&self, state: &State, test: Test, n: u32) -> Option<Learned> {
        let a = state.a;
        let narrowed = match test {
            Test::Equal => {
                if !a.may_be(n) || n == 0 && self.never_zero(&a.origin, u32::MAX) {
                    return None;
                }
                let fact = self.learn(state, a.origin.kept, n)?;
                let a = Value { origin: a.origin, ..Value::constant(n) };
                return self.port_occurs(&a).then_some(Learned { a, fact });
            }
            Test::Greater => a.within(n.checked_add(1)?, u32::MAX)?,
            Test::GreaterOrEqual => a.within(n, u32::MAX)?,
            Test::AnyBit if (a.value | a.unknown) & n == 0 => return None,
            Test::AnyBit => a,
        };
        self.port_occurs(&narrowed).then(|| Learned::only(narrowed))
    }

    /// What follows if the condition fails. `None`: it cannot.
    fn fails(&self, state: &State, test: Test, n: u32) -> Option<Learned> {
        let a = state.a;
        let narrowed = match test {
            Test::Equal if a.exactly() == Some(n) => return None,
            Test::Equal if a.low == n => a.within(n + 1, u32::MAX)?,
            Test::Equal if a.high == n => a.within(0, n - 1)?,
            Test::Equal => a,
            Test::Greater => a.within(0, n)?,
            Test::GreaterOrEqual => a.within(0, n.checked_sub(1)?)?,
            Test::AnyBit => {
                if a.value & n != 0 || self.never_zero(&a.origin, n) {
                    return None;
                }
                let fact = self.learn(state, a.origin.kept & n, 0)?;
                let cleared = Value::bits(a.unknown & !n, a.value);
                let a = Value { origin: a.origin, ..cleared }.within(a.low, a.high)?;
                return self.port_occurs(&a).then_some(Learned { a, fact });
            }
        };
        self.port_occurs(&narrowed).then(|| Learned::only(narrowed))
    }

    /// Whether these bits of a place are known not to be all 0.
    fn never_zero(&self, origin: &Origin, bits: u32) -> bool {
        match self.place(origin) {
            Some(Place::NonZero(mask)) => u32::from(mask) & !(origin.kept & bits) == 0,
            _ => false,
        }
    }

    fn place(&self, origin: &Origin) -> Option<Place> {
        let index = usize::from(origin.place).checked_sub(1)?;
        self.template.places().get(index).map(|(_, place)| *place)
    }

    /// Whether a port occurs that the number may be; true for anything that is not a whole port.
    fn port_occurs(&self, value: &Value) -> bool {
        let whole = Origin { place: value.origin.place, skip: 0, size: 2, kept: 0xffff };
        if value.origin != whole || self.place(&whole) != Some(Place::Port) {
            return true;
        }
        let bounds = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        let (low, high) = (bounds(value.low), bounds(value.high));
        (low, high) == (0, u16::MAX) || self.oracle.port(low..=high)
    }

    /// What follows for an address if the accumulator's bits in `mask` are those of `n`. `None`: no
    /// address occurs that its place may hold. An empty fact: it is no address.
    fn learn(&self, state: &State, mask: u32, n: u32) -> Option<Fact> {
        let origin = state.a.origin;
        let bits = match self.place(&origin) {
            Some(Place::Addr4) => 32,
            Some(Place::Addr6) => 128,
            _ => return Some(Fact::default()),
        };
        let shift = 128 - 8 * (usize::from(origin.skip) + usize::from(origin.size));
        let known = state.fact(origin.place).copied().unwrap_or_default();
        let mask = u128::from(mask) << shift;
        let value = (u128::from(n) << shift) & mask;
        if (known.value ^ value) & known.mask & mask != 0 {
            return None;
        }
        let (mask, value) = (known.mask | mask, known.value | value);
        // Only a prefix can be asked for; words compared out of order wait for those before them.
        let prefix_len = mask.leading_ones().min(bits);
        let prefix = value & !u128::MAX.checked_shr(prefix_len).unwrap_or(0);
        let addr = prefix.to_be_bytes();
        let occurs = match bits {
            _ if prefix_len == 0 => true,
            32 => self.oracle.host4([addr[0], addr[1], addr[2], addr[3]], prefix_len as u8),
            _ => self.oracle.host6(addr, prefix_len as u8),
        };
        occurs.then_some(Fact { place: origin.place, mask, value })
    }
}
