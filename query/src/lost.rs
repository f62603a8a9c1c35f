//! What answers lack of stores that are gone: their runs and segments belong to the history of the
//! store that took their place.

use wirevault_format::Cause;
use wirevault_index::lost::{LostSegment, LostStore};

use crate::completeness::{Facts, Lost, Part};

/// What is found of a lost segment.
const WHAT: &str = "lost: instance store";

/// Adds their runs, what they covered, and that it is missing.
pub(crate) fn add(stores: &[LostStore], facts: &mut Facts) {
    for store in stores {
        facts.evicted_live_ns = facts.evicted_live_ns.max(store.evicted_live_ns);
        facts.evicted_import_ns = facts.evicted_import_ns.max(store.evicted_import_ns);
        facts.runs.extend(store.runs.iter().cloned());
        // A copy for a hold covers nothing that its segment did not.
        for segment in store.segments.iter().filter(|segment| segment.entry.hold == 0) {
            facts.parts.push(part(segment));
            facts.lost.push(lost(segment, store));
        }
    }
    facts.runs.sort_by_key(|run| run.started_ns);
}

fn part(segment: &LostSegment) -> Part {
    let entry = &segment.entry;
    Part { run: entry.run, lane: entry.lane, import: entry.import, times_ns: entry.times_ns }
}

fn lost(segment: &LostSegment, store: &LostStore) -> Lost {
    let (from_ns, until_ns) = segment.span_ns();
    Lost {
        // The store that is there has segments of the same numbers.
        segment: format!("{} of store {}", segment.name(), store.store),
        chunk: None,
        lane: segment.entry.lane,
        cause: Cause::MissingSegment,
        from_ns,
        until_ns,
        packets: (segment.entry.packets > 0).then_some(segment.entry.packets),
        what: WHAT.to_owned(),
    }
}

/// A line for people; nothing if there is nothing lost.
pub(crate) fn warning(stores: &[LostStore], window: (u64, u64)) -> Option<String> {
    let touches = |segment: &&LostSegment| {
        let (from_ns, until_ns) = segment.span_ns();
        from_ns < window.1 && until_ns > window.0
    };
    let count = stores.iter().flat_map(|store| &store.segments).filter(touches).count();
    (count > 0).then(|| {
        format!(
            "{count} segments of the window are {WHAT}: their volumes are gone, a checkpoint \
             knows of them"
        )
    })
}

#[cfg(test)]
mod tests {
    use wirevault_format::RunId;
    use wirevault_format::table::{RunEntry, RunState, SegmentEntry};

    use super::*;
    use crate::completeness::{Window, judge};
    use crate::summary::Summary;

    const S: u64 = 1_000_000_000;

    fn run(number: u64, state: RunState, started: u64, ended: u64) -> RunEntry {
        let (started_ns, ended_ns) = (started * S, ended * S);
        let (run, import) = (RunId(number), false);
        RunEntry { state, import, lanes: 1, run, started_ns, alive_ns: ended_ns, ended_ns }
    }

    fn gone() -> LostStore {
        let entry = |run: u64, from: u64, until: u64| SegmentEntry {
            run: RunId(run),
            opened_ns: from * S,
            closed_ns: until * S,
            times_ns: Some((from * S, until * S - 1)),
            packets: 5,
            ..SegmentEntry::default()
        };
        let segment = |place, entry| LostSegment { volume: 0, place, entry };
        LostStore {
            runs: vec![run(1, RunState::Ended, 10, 30), run(2, RunState::Crashed, 40, 62)],
            segments: vec![segment(0, entry(1, 10, 30)), segment(1, entry(2, 40, 60))],
            ..LostStore::default()
        }
    }

    fn verdict(since: Option<u64>, until: Option<u64>) -> Vec<(&'static str, u64, u64)> {
        let mut facts = Facts { runs: vec![run(3, RunState::Ended, 100, 200)], ..Facts::default() };
        add(&[gone()], &mut facts);
        let (since_ns, until_ns) = (since.map(|s| s * S), until.map(|s| s * S));
        let mut summary = Summary::default();
        judge(&facts, &Window { since_ns, until_ns, cut_ns: None }, &mut summary);
        let line =
            |gap: &crate::summary::GapLine| (gap.cause.name(), gap.from.ns / S, gap.until.ns / S);
        assert_eq!(summary.complete, summary.gaps.is_empty());
        summary.gaps.iter().map(line).collect()
    }

    #[test]
    fn what_is_lost_is_a_gap_and_the_time_between_is_told_as_ever() {
        let missing = [
            ("missing_segment", 10, 30),
            ("not_recording", 30, 40),
            ("missing_segment", 40, 60),
            ("crash_tail", 60, 100),
        ];
        assert_eq!(verdict(None, None), missing, "who names no window asks for all of it");
        assert_eq!(verdict(Some(110), Some(150)), []);
        assert_eq!(verdict(Some(50), Some(55)), [("missing_segment", 40, 60)]);
    }

    #[test]
    fn people_are_told_how_many() {
        assert_eq!(warning(&[], (0, u64::MAX)), None);
        assert_eq!(warning(&[gone()], (100 * S, 200 * S)), None);
        let told = warning(&[gone()], (50 * S, 51 * S)).unwrap();
        assert!(told.starts_with("1 segments of the window are lost: instance store"), "{told}");
    }
}
