//! Whether an answer is complete: what the store covers, and what is missing within the window.
//!
//! Rules, all times half-open:
//! - Live capture covers from the start of its first run (or from behind the last packet given up
//!   for the quota) to what is durable. Imports cover from their first packet to their last.
//! - Between two live runs nothing was recorded; between two imports nothing was promised.
//! - An omitted bound means the edge of what is covered. A bound that lies outside makes the answer
//!   incomplete.
//! - Recorded gaps, damage and absent segments count if they touch the window.

use std::collections::HashMap;

use wirevault_format::table::{RunEntry, RunState};
use wirevault_format::{Cause, Gap, PolicyName, RunId};

use crate::summary::{DamageLine, GapLine, Instant, LIST_MAX, Summary};

/// Within this time after its arrival a packet is durable and can be found (`docs/SPEC.md`). What a
/// crashed recorder received in the last such span before its last sign of life may be lost.
const QUERYABLE_NS: u64 = 2_000_000_000;

/// The window asked for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Window {
    pub(crate) since_ns: Option<u64>,
    pub(crate) until_ns: Option<u64>,
    /// The answer was cut behind this time: nothing later is spoken of.
    pub(crate) cut_ns: Option<u64>,
}

/// What a segment contributes to the coverage.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    pub(crate) run: RunId,
    pub(crate) lane: u16,
    pub(crate) import: bool,
    pub(crate) times_ns: Option<(u64, u64)>,
}

/// A gap as a lane wrote it down.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recorded {
    pub(crate) run: RunId,
    pub(crate) lane: u16,
    pub(crate) gap: Gap,
}

/// Packets that were stored and cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lost {
    pub(crate) segment: String,
    pub(crate) chunk: Option<u32>,
    pub(crate) lane: u16,
    pub(crate) cause: Cause,
    pub(crate) from_ns: u64,
    pub(crate) until_ns: u64,
    pub(crate) packets: Option<u64>,
    pub(crate) what: String,
}

/// Everything the judgement rests on.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// By start.
    pub(crate) runs: Vec<RunEntry>,
    pub(crate) parts: Vec<Part>,
    pub(crate) recorded: Vec<Recorded>,
    pub(crate) lost: Vec<Lost>,
    pub(crate) missing_volumes: Vec<String>,
    pub(crate) replaced_ns: u64,
    pub(crate) evicted_live_ns: u64,
    pub(crate) evicted_import_ns: u64,
    pub(crate) durable_until_ns: Option<u64>,
    /// When the question was asked.
    pub(crate) now_ns: u64,
}

/// A span of time.
type Span = (u64, u64);

struct Missing {
    span: Span,
    lane: Option<u16>,
    packets: Option<u64>,
    cause: Cause,
    policy: Option<PolicyName>,
}

impl Missing {
    /// Of all lanes, without a number.
    fn everywhere(span: Span, cause: Cause) -> Self {
        Self { span, lane: None, packets: None, cause, policy: None }
    }
}

/// Fills in what a summary says of completeness.
pub(crate) fn judge(facts: &Facts, window: &Window, summary: &mut Summary) {
    let live = live_coverage(facts);
    let import = hull(facts.parts.iter().filter(|part| part.import));
    let edges = match (live, import) {
        (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.max(b.1))),
        (one, other) => one.or(other),
    };
    let asked = effective(window, edges, facts.now_ns);
    let mut missing = Vec::new();
    outside(facts, window, asked, live, import, &mut missing);
    between_runs(facts, live, &mut missing);
    interrupted_imports(facts, edges, &mut missing);
    recorded(facts, &mut missing);
    let mut lost: Vec<&Lost> = facts.lost.iter().collect();
    lost.sort_by_key(|lost| (lost.from_ns, &lost.segment, lost.chunk));
    lost.dedup_by(|a, b| a.segment == b.segment && a.chunk == b.chunk);
    for lost in &lost {
        let span = (lost.from_ns, lost.until_ns);
        let (lane, packets) = (Some(lost.lane), lost.packets);
        missing.push(Missing { span, lane, packets, cause: lost.cause, policy: None });
    }
    if !facts.missing_volumes.is_empty() {
        missing.push(Missing::everywhere(asked, Cause::MissingVolume));
    }
    if asked.0 < facts.replaced_ns {
        let (span, cause) = ((asked.0, facts.replaced_ns), Cause::MissingVolume);
        missing.push(Missing { span, lane: None, packets: None, policy: None, cause });
    }
    // Who names no end asks for what lies behind the last packet, too: an import that was cut short
    // has its gap there.
    let reach = match (window.until_ns, window.cut_ns) {
        (None, None) => (asked.0, asked.1.saturating_add(1)),
        _ => asked,
    };
    missing.retain(|missing| touches(missing.span, reach));
    let gaps = coalesce(missing);
    let mut damaged = lost;
    damaged.retain(|lost| {
        lost.cause == Cause::Damaged && touches((lost.from_ns, lost.until_ns), asked)
    });

    summary.complete = gaps.is_empty();
    let covered = edges.map(|edges| (edges.0.max(asked.0), edges.1.min(asked.1)));
    let covered = covered.filter(|covered| covered.0 < covered.1);
    summary.covered_from = covered.map(|covered| covered.0.into());
    summary.covered_until = covered.map(|covered| covered.1.into());
    summary.gaps_not_listed = gaps.len().saturating_sub(LIST_MAX) as u64;
    summary.gaps = gaps.iter().take(LIST_MAX).map(line).collect();
    summary.damaged_not_listed = damaged.len().saturating_sub(LIST_MAX) as u64;
    summary.damaged = damaged.iter().take(LIST_MAX).map(|lost| damage_line(lost)).collect();
    summary.missing_volumes = facts.missing_volumes.clone();
    if asked.0 < facts.replaced_ns {
        let at = Instant::from(facts.replaced_ns).utc;
        summary.missing_volumes.push(format!("what a volume held that was replaced at {at}"));
    }
}

/// The window with its omitted bounds filled in; never empty, so that a bound beyond the coverage
/// is noticed. What begins behind the coverage and names no end ends now.
fn effective(window: &Window, edges: Option<Span>, now_ns: u64) -> Span {
    let (first, last) = edges.unwrap_or((0, 0));
    let since = window.since_ns.unwrap_or_else(|| {
        window.until_ns.map_or(first, |until| first.min(until.saturating_sub(1)))
    });
    let until = window.until_ns.unwrap_or_else(|| match since < last {
        true => last,
        false if window.since_ns.is_some() => now_ns.max(since.saturating_add(1)),
        false => since.saturating_add(1),
    });
    match window.cut_ns {
        Some(cut) => (since, until.min(cut.saturating_add(1).max(since))),
        None => (since, until),
    }
}

/// Where the window reaches outside the coverage because somebody asked for it.
fn outside(
    facts: &Facts,
    window: &Window,
    asked: Span,
    live: Option<Span>,
    import: Option<Span>,
    missing: &mut Vec<Missing>,
) {
    let (since, until) = asked;
    let covered = live.or(import).unwrap_or((until, until));
    let mut add = |span: Span, default: Cause| {
        for span in without(span, import) {
            // Something later than the start of the span was given up: what the span held may have
            // gone with it.
            let evicted = facts.evicted_live_ns.max(facts.evicted_import_ns);
            let cause = if evicted > 0 && span.0 <= evicted { Cause::Retention } else { default };
            missing.push(Missing::everywhere(span, cause));
        }
    };
    let head_asked = window.since_ns.is_some() || until <= covered.0;
    if head_asked && (window.since_ns.is_some() || window.until_ns.is_some()) {
        add((since, until.min(covered.0)), Cause::NotRecording);
    }
    let tail_asked = window.until_ns.is_some() || window.since_ns.is_some_and(|s| s >= covered.1);
    if tail_asked && live.or(import).is_some() {
        add((since.max(covered.1), until), after_the_last_run(facts));
    }
}

fn after_the_last_run(facts: &Facts) -> Cause {
    match facts.runs.iter().rfind(|run| !run.import).map(|run| run.state) {
        Some(RunState::Running) => Cause::NotYetDurable,
        Some(RunState::Crashed) => Cause::CrashTail,
        _ => Cause::NotRecording,
    }
}

fn live_coverage(facts: &Facts) -> Option<Span> {
    let first = facts.runs.iter().find(|run| !run.import)?;
    let from = match facts.evicted_live_ns {
        0 => first.started_ns,
        evicted => first.started_ns.max(evicted.saturating_add(1)),
    };
    let until = live_ends(facts).last().map_or(from, |(_, end)| *end);
    Some((from, until.max(from)))
}

/// Live runs, each with the time up to which everything it received is durable.
fn live_ends(facts: &Facts) -> Vec<(&RunEntry, u64)> {
    let live: Vec<&RunEntry> = facts.runs.iter().filter(|run| !run.import).collect();
    let last = live.len().saturating_sub(1);
    let end = |(n, run): (usize, &&RunEntry)| match (run.state, facts.durable_until_ns) {
        (RunState::Ended, _) => run.ended_ns,
        (RunState::Running, Some(durable)) if n == last => durable,
        _ => interrupted_end(facts, run),
    };
    live.iter().enumerate().map(|pair| (*pair.1, end(pair).max(pair.1.started_ns))).collect()
}

/// Up to when everything is durable that a run received which did not end properly: whatever is
/// later than the promised delay, and on every lane everything up to its last stored packet.
fn interrupted_end(facts: &Facts, run: &RunEntry) -> u64 {
    let alive = run.alive_ns.saturating_sub(QUERYABLE_NS);
    let mut lanes: HashMap<u16, u64> = HashMap::new();
    for part in facts.parts.iter().filter(|part| part.run == run.run) {
        let last = lanes.entry(part.lane).or_default();
        *last = part.times_ns.map_or(0, |times| times.1.saturating_add(1)).max(*last);
    }
    let all_lanes = lanes.len() >= usize::from(run.lanes);
    let stored = lanes.into_values().min().filter(|_| all_lanes).unwrap_or(0);
    alive.max(stored)
}

fn between_runs(facts: &Facts, live: Option<Span>, missing: &mut Vec<Missing>) {
    let from = live.map_or(0, |live| live.0);
    for pair in live_ends(facts).windows(2) {
        let [(run, end), (next, _)] = pair else { continue };
        let span = ((*end).max(from), next.started_ns);
        let cause =
            if run.state == RunState::Ended { Cause::NotRecording } else { Cause::CrashTail };
        if span.0 < span.1 {
            missing.push(Missing::everywhere(span, cause));
        }
    }
}

/// An import that ended before its files did: what is missing lies behind the last packet of it
/// that is stored, as far as anybody knows, and may have any time if there is none.
fn interrupted_imports(facts: &Facts, edges: Option<Span>, missing: &mut Vec<Missing>) {
    let crashed = |run: &&RunEntry| run.import && run.state == RunState::Crashed;
    for run in facts.runs.iter().filter(crashed) {
        let stored = hull(facts.parts.iter().filter(|part| part.run == run.run));
        let from = stored.map_or_else(|| edges.map_or(0, |edges| edges.0), |span| span.1);
        let until = edges.map_or(from, |edges| edges.1).max(from.saturating_add(1));
        missing.push(Missing::everywhere((from, until), Cause::CrashTail));
    }
}

/// Gaps that lanes wrote down, each once, open ones closed.
fn recorded(facts: &Facts, missing: &mut Vec<Missing>) {
    // End and packets, by what makes a gap the same one.
    type Same = (RunId, u16, Cause, Option<PolicyName>, u64);
    type Gaps = HashMap<Same, (Option<u64>, Option<u64>)>;
    let mut seen = Gaps::new();
    // That a rung was entered spoils nothing: what it left out has gaps of its own.
    let absences = facts.recorded.iter().filter(|it| it.gap.cause != Cause::Pressure);
    for Recorded { run, lane, gap } in absences {
        let same = (*run, *lane, gap.cause, gap.policy, gap.from_ns);
        let known = seen.entry(same).or_insert((None, None));
        // A gap that begins, and the same one when it has ended, or copied into another segment.
        known.0 = known.0.max(gap.until_ns);
        known.1 = known.1.max(gap.packets);
    }
    let ends = live_ends(facts);
    for ((run, lane, cause, policy, from), (until, packets)) in seen {
        let until = until.unwrap_or_else(|| {
            let live = ends.iter().find(|(entry, _)| entry.run == run).map(|(_, end)| *end);
            // An import's clock is that of its packets: what is missing lies behind its last.
            let last = || hull(facts.parts.iter().filter(|part| part.run == run));
            live.or_else(|| last().map(|span| span.1)).unwrap_or(from)
        });
        let (span, lane) = ((from, until.max(from)), Some(lane));
        missing.push(Missing { span, lane, packets, cause, policy });
    }
}

/// From the first packet to behind the last.
fn hull<'a>(parts: impl Iterator<Item = &'a Part>) -> Option<Span> {
    let times = parts.filter_map(|part| part.times_ns);
    times.map(|(min, max)| (min, max.saturating_add(1))).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
}

/// A span counts at least its first nanosecond.
fn touches(span: Span, window: Span) -> bool {
    span.0 < window.1 && span.1.max(span.0.saturating_add(1)) > window.0
}

/// What is left of `span` outside `hole`.
fn without(span: Span, hole: Option<Span>) -> Vec<Span> {
    let hole = hole.unwrap_or((span.1, span.1));
    let parts = [(span.0, span.1.min(hole.0)), (span.0.max(hole.1), span.1)];
    parts.into_iter().filter(|part| part.0 < part.1).collect()
}

/// Joins what overlaps or touches, if lane, cause and policy are the same, and sorts by time.
fn coalesce(mut missing: Vec<Missing>) -> Vec<Missing> {
    let why = |missing: &Missing| (missing.lane, missing.cause, missing.policy);
    missing.sort_by_key(|missing| (why(missing), missing.span));
    let mut out: Vec<Missing> = Vec::new();
    for next in missing {
        match out.last_mut() {
            Some(last) if why(last) == why(&next) && next.span.0 <= last.span.1 => {
                last.span.1 = last.span.1.max(next.span.1);
                last.packets = last.packets.zip(next.packets).map(|(a, b)| a.saturating_add(b));
            }
            _ => out.push(next),
        }
    }
    out.sort_by_key(|missing| (missing.span, why(missing)));
    out
}

fn line(missing: &Missing) -> GapLine {
    let Missing { span, lane, packets, cause, policy } = *missing;
    let (from, until) = (Instant::from(span.0), Instant::from(span.1));
    GapLine { from, until, lane, packets, cause, policy: policy.map(|policy| policy.to_string()) }
}

fn damage_line(lost: &Lost) -> DamageLine {
    DamageLine {
        segment: lost.segment.clone(),
        chunk: lost.chunk,
        from: Instant::from(lost.from_ns),
        until: Instant::from(lost.until_ns),
        what: lost.what.clone(),
    }
}
