//! The flows of many segments, each once, in bounded memory.

use std::collections::HashMap;

use wirevault_format::LinkType;
use wirevault_index::delta::FlowStats;
use wirevault_packet::FlowKey;

/// What tells one flow from another.
pub(crate) type FlowId = (LinkType, FlowKey);

/// A flow, with the number of segments that hold packets of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flow {
    pub(crate) id: FlowId,
    pub(crate) stats: FlowStats,
    pub(crate) segments: u32,
}

/// Flows that may still go on in a later segment.
///
/// When there are too many, the half that has been silent for longest is let go: a flow of them
/// that speaks again begins anew.
pub(crate) struct HeldFlows {
    flows: HashMap<FlowId, (FlowStats, u32)>,
    max: usize,
    /// Flows were let go before the end.
    pub(crate) overflowed: bool,
}

impl HeldFlows {
    pub(crate) fn new(max: usize) -> Self {
        Self { flows: HashMap::new(), max: max.max(2), overflowed: false }
    }

    /// Adds what one segment holds of a flow. Gives flows that have to be let go for it, by first
    /// time.
    pub(crate) fn add(&mut self, id: FlowId, stats: &FlowStats) -> Vec<Flow> {
        if let Some((sum, segments)) = self.flows.get_mut(&id) {
            sum.add(stats);
            *segments += 1;
            return Vec::new();
        }
        let full = self.flows.len() >= self.max;
        self.overflowed |= full;
        let gone = if full { self.let_half_go() } else { Vec::new() };
        self.flows.insert(id, (*stats, 1));
        gone
    }

    /// All flows that are left, by first time.
    pub(crate) fn finish(&mut self) -> Vec<Flow> {
        by_first_time(self.flows.drain().map(flow).collect())
    }

    fn let_half_go(&mut self) -> Vec<Flow> {
        let mut flows: Vec<Flow> = self.flows.drain().map(flow).collect();
        let half = flows.len() / 2;
        flows.select_nth_unstable_by_key(half, |flow| flow.stats.times_ns.1);
        let kept = flows.split_off(half);
        self.flows.extend(kept.into_iter().map(|flow| (flow.id, (flow.stats, flow.segments))));
        by_first_time(flows)
    }
}

fn flow((id, (stats, segments)): (FlowId, (FlowStats, u32))) -> Flow {
    Flow { id, stats, segments }
}

fn by_first_time(mut flows: Vec<Flow>) -> Vec<Flow> {
    flows.sort_unstable_by_key(|flow| (flow.stats.times_ns, flow.id));
    flows
}
