//! What a lane leaves out on purpose: standing policies, and the rungs of the pressure ladder.
//!
//! Policies are asked in their order, before a packet is copied. One that leaves the packet out
//! ends the asking; one that lets it pass hands it to the next; `Keep` spares it from all behind.
//! The rungs stand behind the standing policies, so what these spare stays under pressure as well.
//!
//! Every packet left out is counted for the policy that did it, and told in the data: a gap with
//! the policy's name. A packet that finds no chunk comes again, so what a policy remembers of it is
//! noted only when it is stored (`Policies::stored`).
//!
//! - `flows`: what flows have sent. `ladder`: when rungs are entered and left.

mod flows;
mod ladder;

use std::time::{Duration, Instant};

use wirevault_capture::VlanTag;
use wirevault_format::limits::SNAPLEN_MAX;
use wirevault_format::{Cause, Gap, LinkType, PolicyName, PressureCause, VxlanPorts};
use wirevault_packet::bpf::Program;
use wirevault_packet::{Dissected, dissect_with};

use crate::lane::Filter;
use crate::status::{Entered, PolicyCounters};
use flows::{FlowBytes, Place};
use ladder::{Ladder, Step};

/// A policy that leaves out nothing now still tells within this time what it left out.
const TOLD_AFTER: Duration = Duration::from_secs(5);
/// Bytes beside a packet's own that a policy sees: a tag, or a link header that a tunnel left.
const HEAD_BYTES_MAX: usize = 256;

/// What is left out, or kept, of the packets that a policy is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// No policy behind this one is asked.
    Keep,
    /// They are left out.
    Drop,
    /// Of each flow, both directions together, the packets are kept that begin within its first
    /// bytes.
    Cutoff {
        /// Those bytes, by lengths on the wire.
        flow_bytes: u64,
    },
    /// All but some flows are left out, both directions together.
    Sample {
        /// One of so many is kept; 0 and 1 keep all.
        one_in: u32,
    },
    /// They are cut.
    Snaplen {
        /// Bytes that are kept.
        bytes: u32,
    },
    /// Their chunks have a filter of addresses and ports in the index, and no flows.
    CoarseIndex,
}

/// A policy of a lane.
#[derive(Clone)]
pub struct PolicySpec {
    /// Its name in data, status and metrics.
    pub name: PolicyName,
    /// The packets it is for; `None`: all.
    pub filter: Option<Filter>,
    /// What becomes of them.
    pub action: Action,
}

/// A policy that holds under pressure only: see [`crate::pressure`].
#[derive(Clone)]
pub struct RungSpec {
    /// What is left out.
    pub policy: PolicySpec,
    /// It is entered at this pressure.
    pub enter_percent: u8,
    /// It is left when the pressure was below this for a second.
    pub leave_percent: u8,
}

/// A packet as a policy sees it: `head`, then `data` with the tag put back.
pub(crate) struct Subject<'a> {
    pub stream: usize,
    pub link: LinkType,
    pub head: &'a [u8],
    pub data: &'a [u8],
    pub vlan: Option<VlanTag>,
    pub wire_len: u32,
    pub ts_ns: u64,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Shed,
    Kept { snaplen_bytes: u32 },
}

/// Packets that a filter or policy left out, and how many of them the data tells of.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    packets: u64,
    told: u64,
    since: Option<(Instant, u64)>,
}

impl Tally {
    #[inline]
    pub(crate) fn note(&mut self, ts_ns: u64) {
        self.packets += 1;
        if self.since.is_none() {
            self.since = Some((Instant::now(), ts_ns));
        }
    }

    pub(crate) fn is_due(&self) -> bool {
        self.since.is_some_and(|(since, _)| since.elapsed() >= TOLD_AFTER)
    }

    /// The gap that tells of those that none has told of; its place in the data is still open.
    pub(crate) fn tell(&mut self, policy: Option<PolicyName>, now_ns: u64) -> Option<Gap> {
        let (_, from_ns) = self.since.take()?;
        let packets = Some(self.packets - self.told);
        self.told = self.packets;
        let (until_ns, cumulative) = (Some(now_ns.max(from_ns + 1)), self.packets);
        Some(Gap {
            cause: Cause::Shed,
            from_ns,
            until_ns,
            packets,
            cumulative,
            sequence: 0,
            policy,
            pressure: None,
        })
    }
}

/// The policies of one lane.
pub(crate) struct Policies {
    rules: Vec<Rule>,
    ladder: Ladder,
    /// First rule that is a rung.
    rungs_at: usize,
    vxlan_ports: VxlanPorts,
    /// Where packets are put together that do not lie in one piece.
    scratch: Vec<u8>,
    /// The rule that cuts the packet that was kept last.
    cut_by: Option<usize>,
}

/// A policy, or the lane's capture filter: the first rule then, without a name.
struct Rule {
    name: Option<PolicyName>,
    filter: Option<Filter>,
    action: Action,
    /// It selects what is kept; nothing else is asked of it.
    selects: bool,
    /// By stream.
    matches: Vec<Match>,
    active: bool,
    flows: Option<FlowBytes>,
    /// Where the packet that was kept last is counted.
    place: Option<Place>,
    shed: Tally,
    cut: u64,
    /// The rung holds.
    held: Option<Held>,
    /// How often it was entered.
    entered: Entered,
}

/// A rung that is entered.
struct Held {
    since_ns: u64,
    /// What it had left out or cut before.
    spared: u64,
    /// What the pressure came from.
    cause: PressureCause,
}

enum Match {
    All,
    None,
    Program(Program),
}

impl Policies {
    /// `None` if there is nothing to ask. The capture filter is asked first, and so on the whole
    /// packet, whatever cuts it afterwards.
    pub(crate) fn new(
        filter: &mut Option<Filter>,
        standing: Vec<PolicySpec>,
        rungs: Vec<RungSpec>,
        vxlan_ports: VxlanPorts,
    ) -> Option<Box<Self>> {
        if standing.is_empty() && rungs.is_empty() {
            return None;
        }
        let mut rules = Vec::new();
        rules.extend(filter.take().map(Rule::capture_filter));
        rules.extend(standing.into_iter().map(|policy| Rule { active: true, ..Rule::of(policy) }));
        let rungs_at = rules.len();
        let ladder = Ladder::new(rungs.iter().map(|it| (it.enter_percent, it.leave_percent)));
        rules.extend(rungs.into_iter().map(|rung| Rule::of(rung.policy)));
        let scratch = Vec::with_capacity(SNAPLEN_MAX as usize + HEAD_BYTES_MAX);
        Some(Box::new(Self { rules, ladder, rungs_at, vxlan_ports, scratch, cut_by: None }))
    }

    /// Packets of this link type are the next stream.
    pub(crate) fn learn(&mut self, link: LinkType) {
        self.rules.iter_mut().for_each(|rule| rule.learn(link));
    }

    /// Decides about a packet. If it is kept and stored, [`Policies::stored`] is next.
    #[inline(never)]
    pub(crate) fn judge(&mut self, subject: &Subject<'_>) -> Verdict {
        self.rules.iter_mut().for_each(|rule| rule.place = None);
        self.cut_by = None;
        let (bytes, wire_len) = whole(&mut self.scratch, subject);
        let (vxlan_ports, link) = (&self.vxlan_ports, subject.link);
        let mut dissected: Option<Dissected> = None;
        let mut snaplen_bytes = u32::MAX;
        for (at, rule) in self.rules.iter_mut().enumerate() {
            let asked = rule.active && rule.matches[subject.stream].is_met(bytes, wire_len);
            if asked == rule.selects {
                continue;
            }
            let mut flow =
                || *dissected.get_or_insert_with(|| dissect_with(vxlan_ports, link, bytes));
            let sheds = match rule.action {
                Action::Keep => break,
                Action::Drop => true,
                Action::Sample { one_in } => !is_chosen(flow().hash, one_in),
                Action::Cutoff { flow_bytes } => rule.flows.as_mut().is_some_and(|flows| {
                    let place = flows.find(&flow(), subject.ts_ns);
                    rule.place = Some(place);
                    flows.bytes(place) >= flow_bytes
                }),
                Action::Snaplen { bytes } => {
                    if bytes < snaplen_bytes {
                        (snaplen_bytes, self.cut_by) = (bytes, Some(at));
                    }
                    false
                }
                Action::CoarseIndex => false,
            };
            if sheds {
                rule.shed.note(subject.ts_ns);
                return Verdict::Shed;
            }
        }
        Verdict::Kept { snaplen_bytes }
    }

    /// The packet that was judged last is stored; `is_cut` if not all of it is.
    #[inline]
    pub(crate) fn stored(&mut self, wire_len: u32, is_cut: bool) {
        for rule in &mut self.rules {
            if let (Some(flows), Some(place)) = (&mut rule.flows, rule.place.take()) {
                flows.add(place, wire_len);
            }
        }
        if let Some(at) = self.cut_by.filter(|_| is_cut) {
            self.rules[at].cut += 1;
        }
    }

    /// Something left out waits to be told for long.
    pub(crate) fn is_due(&self) -> bool {
        self.rules.iter().any(|rule| rule.shed.is_due())
    }

    /// Tells what was left out since the last time.
    pub(crate) fn tell(&mut self, now_ns: u64, mut gap: impl FnMut(Gap)) {
        for rule in &mut self.rules {
            if let Some(told) = rule.shed.tell(rule.name, now_ns) {
                gap(told);
            }
        }
    }

    /// Whether chunks that are handed over now are indexed coarsely.
    pub(crate) fn is_coarse(&self) -> bool {
        self.rules.iter().any(|rule| rule.active && rule.action == Action::CoarseIndex)
    }

    /// Enters and leaves rungs; each change is marked by a gap.
    pub(crate) fn climb(
        &mut self,
        (pressure, cause): (f64, PressureCause),
        now_ns: u64,
        mut mark: impl FnMut(Gap),
    ) {
        let (rungs, rules) = (self.rungs_at, &mut self.rules);
        self.ladder.climb(pressure, Instant::now(), |step| match step {
            Step::Enter(rung) => mark(rules[rungs + rung].enter(now_ns, cause)),
            Step::Leave(rung) => rules[rungs + rung].leave(now_ns).into_iter().for_each(&mut mark),
        });
    }

    /// The lane ends: what was entered ends with it.
    pub(crate) fn end(&mut self, now_ns: u64, mark: impl FnMut(Gap)) {
        self.rules.iter_mut().filter_map(|rule| rule.leave(now_ns)).for_each(mark);
    }

    /// Shows the counts, one for each policy and rung in their order.
    pub(crate) fn publish(&self, shown: &[PolicyCounters]) {
        let named = self.rules.iter().filter(|rule| rule.name.is_some());
        named.zip(shown).for_each(|(rule, shown)| {
            shown.publish(rule.shed.packets, rule.cut, rule.active, &rule.entered);
        });
    }
}

impl Rule {
    fn of(policy: PolicySpec) -> Self {
        let PolicySpec { name, filter, action } = policy;
        Self { name: Some(name), filter, ..Self::new(action) }
    }

    /// Leaves out what the filter rejects.
    fn capture_filter(filter: Filter) -> Self {
        Self { filter: Some(filter), selects: true, active: true, ..Self::new(Action::Drop) }
    }

    /// Without a name, for all packets, and not active.
    fn new(action: Action) -> Self {
        Self {
            name: None,
            filter: None,
            action,
            selects: false,
            matches: Vec::new(),
            active: false,
            flows: matches!(action, Action::Cutoff { .. }).then(FlowBytes::new),
            place: None,
            shed: Tally::default(),
            cut: 0,
            held: None,
            entered: Entered::default(),
        }
    }

    fn learn(&mut self, link: LinkType) {
        let program = self.filter.as_ref().map(|compile| compile(link));
        self.matches.push(match program {
            None => Match::All,
            Some(Some(program)) => Match::Program(program),
            // What does not fit the link type leaves its packets alone.
            Some(None) if self.selects => Match::All,
            Some(None) => Match::None,
        });
    }

    /// Packets left out or cut so far.
    fn spared(&self) -> u64 {
        self.shed.packets + self.cut
    }

    fn enter(&mut self, now_ns: u64, cause: PressureCause) -> Gap {
        self.active = true;
        self.entered[cause.index()] += 1;
        let held = Held { since_ns: now_ns, spared: self.spared(), cause };
        let mark = self.mark(&held, None, None);
        self.held = Some(held);
        mark
    }

    /// `None` if it was not entered.
    fn leave(&mut self, now_ns: u64) -> Option<Gap> {
        let held = self.held.take()?;
        self.active = false;
        let until_ns = Some(now_ns.max(held.since_ns));
        Some(self.mark(&held, until_ns, Some(self.spared() - held.spared)))
    }

    fn mark(&self, held: &Held, until_ns: Option<u64>, packets: Option<u64>) -> Gap {
        Gap {
            cause: Cause::Pressure,
            from_ns: held.since_ns,
            until_ns,
            packets,
            cumulative: self.spared(),
            sequence: 0,
            policy: self.name,
            pressure: Some(held.cause),
        }
    }
}

impl Match {
    #[inline]
    fn is_met(&self, bytes: &[u8], wire_len: u32) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Program(program) => program.run(bytes, wire_len) != 0,
        }
    }
}

/// Whether a flow is one of `one_in`. The hash is of both directions and its seed of this process,
/// so nobody can choose flows that are left out; after a restart others are chosen.
fn is_chosen(hash: u64, one_in: u32) -> bool {
    ((hash >> 32) * u64::from(one_in)) >> 32 == 0
}

/// The packet's bytes in one piece, and its length on the wire.
fn whole<'a>(scratch: &'a mut Vec<u8>, subject: &Subject<'a>) -> (&'a [u8], u32) {
    let Subject { head, data, vlan, wire_len, .. } = *subject;
    match (vlan, data.split_at_checked(VlanTag::OFFSET)) {
        (None, _) if head.is_empty() => (data, wire_len),
        (Some(tag), Some((addresses, rest))) => {
            (joined(scratch, [head, addresses, &tag.bytes(), rest]), wire_len + 4)
        }
        _ => (joined(scratch, [head, data, &[], &[]]), wire_len),
    }
}

/// Puts pieces together; never grows.
fn joined<'a>(scratch: &'a mut Vec<u8>, pieces: [&[u8]; 4]) -> &'a [u8] {
    scratch.clear();
    for piece in pieces {
        let room = scratch.capacity() - scratch.len();
        scratch.extend_from_slice(&piece[..piece.len().min(room)]);
    }
    scratch
}

#[cfg(test)]
mod tests;
