//! The rules of completeness, as tables of windows and answers.

use wirevault_format::table::{RunEntry, RunState};
use wirevault_format::{Cause, Gap, PolicyName, RunId};

use crate::completeness::{Facts, Lost, Part, Recorded, Window, judge};
use crate::summary::Summary;

fn run(number: u64, state: RunState, started_ns: u64, end_ns: u64) -> RunEntry {
    let ended = state == RunState::Ended;
    RunEntry {
        state,
        import: false,
        lanes: 1,
        run: RunId(number),
        started_ns,
        alive_ns: end_ns,
        ended_ns: if ended { end_ns } else { 0 },
    }
}

fn import(number: u64) -> RunEntry {
    RunEntry { import: true, ..run(number, RunState::Ended, 90_000 * S, 90_001 * S) }
}

fn part(number: u64, import: bool, min: u64, max: u64) -> Part {
    Part { run: RunId(number), lane: 0, import, times_ns: Some((min, max)) }
}

fn gap(
    number: u64,
    cause: Cause,
    from_ns: u64,
    until_ns: Option<u64>,
    packets: Option<u64>,
) -> Recorded {
    let (cumulative, sequence, policy, pressure) = (0, 0, None, None);
    let gap = Gap { cause, from_ns, until_ns, packets, cumulative, sequence, policy, pressure };
    Recorded { run: RunId(number), lane: 0, gap }
}

const S: u64 = 1_000_000_000;

/// One answer in short: covered span, and gaps as `cause from-until` in seconds.
fn verdict(facts: &Facts, since: Option<u64>, until: Option<u64>) -> String {
    let window =
        Window { since_ns: since.map(|s| s * S), until_ns: until.map(|s| s * S), cut_ns: None };
    let mut summary = Summary::default();
    judge(facts, &window, &mut summary);
    assert_eq!(summary.complete, summary.gaps.is_empty());
    let seconds = |ns: u64| format!("{}", ns as f64 / S as f64);
    let mut text = match (&summary.covered_from, &summary.covered_until) {
        (Some(from), Some(until)) => format!("{}..{}", seconds(from.ns), seconds(until.ns)),
        _ => "nothing".to_owned(),
    };
    for gap in &summary.gaps {
        text += &format!(" {} {}-{}", gap.cause, seconds(gap.from.ns), seconds(gap.until.ns));
    }
    text
}

/// Runs 100-200 and 300-400, both ended.
fn two_runs() -> Facts {
    Facts {
        runs: vec![
            run(1, RunState::Ended, 100 * S, 200 * S),
            run(2, RunState::Ended, 300 * S, 400 * S),
        ],
        parts: vec![part(1, false, 110 * S, 190 * S), part(2, false, 310 * S, 390 * S)],
        ..Facts::default()
    }
}

#[test]
fn the_table_of_windows() {
    let table: &[(Option<u64>, Option<u64>, &str)] = &[
        (None, None, "100..400 not_recording 200-300"),
        (None, Some(200), "100..200"),
        (None, Some(201), "100..201 not_recording 200-300"),
        (Some(300), None, "300..400"),
        (Some(299), None, "299..400 not_recording 200-300"),
        (Some(100), Some(200), "100..200"),
        (Some(99), Some(200), "100..200 not_recording 99-100"),
        (Some(350), Some(400), "350..400"),
        (Some(350), Some(401), "350..400 not_recording 400-401"),
        (Some(10), Some(20), "nothing not_recording 10-20"),
        (Some(500), Some(600), "nothing not_recording 500-600"),
        (Some(500), None, "nothing not_recording 500-500.000000001"),
        (None, Some(50), "nothing not_recording 49.999999999-50"),
        (
            Some(0),
            Some(1000),
            "100..400 not_recording 0-100 not_recording 200-300 not_recording 400-1000",
        ),
    ];
    for (since, until, expected) in table {
        let found = verdict(&two_runs(), *since, *until);
        // Gaps of one cause that touch are one gap.
        assert_eq!(&found, expected, "{since:?} {until:?}");
    }
}

#[test]
fn what_was_given_up_is_retention_never_loss() {
    let facts = Facts { evicted_live_ns: 150 * S, ..two_runs() };
    assert_eq!(verdict(&facts, None, Some(180)), "150.000000001..180");
    assert_eq!(verdict(&facts, Some(151), Some(180)), "151..180");
    assert_eq!(
        verdict(&facts, Some(120), Some(180)),
        "150.000000001..180 retention 120-150.000000001"
    );
    let facts = Facts { evicted_live_ns: 310 * S, ..two_runs() };
    assert_eq!(
        verdict(&facts, None, None),
        "310.000000001..400",
        "the time between is given up too"
    );
}

#[test]
fn a_running_recorder_covers_what_is_durable() {
    let mut facts = two_runs();
    facts.runs[1].state = RunState::Running;
    facts.durable_until_ns = Some(410 * S);
    assert_eq!(verdict(&facts, Some(300), None), "300..410");
    assert_eq!(verdict(&facts, Some(300), Some(410)), "300..410");
    assert_eq!(verdict(&facts, Some(300), Some(411)), "300..410 not_yet_durable 410-411");
    assert_eq!(verdict(&facts, Some(415), None), "nothing not_yet_durable 415-415.000000001");
    // Seen from another process: its last sign of life, less what may still have been on its way.
    facts.durable_until_ns = None;
    assert_eq!(verdict(&facts, Some(300), None), "300..398");
    assert_eq!(verdict(&facts, Some(300), Some(399)), "300..398 not_yet_durable 398-399");
}

#[test]
fn what_policies_shed_is_told_by_their_names() {
    let mut facts = two_runs();
    let shed = |policy: Option<&str>, from_ns: u64, packets: u64| {
        let mut it = gap(1, Cause::Shed, from_ns, Some(130 * S), Some(packets));
        it.gap.policy = policy.map(|name| PolicyName::new(name).expect("a short name"));
        it
    };
    // Two of one policy overlap; another policy and the capture filter left out at the same time.
    facts.recorded = vec![
        shed(Some("bulk"), 120 * S, 5),
        shed(Some("bulk"), 121 * S, 2),
        shed(Some("video"), 120 * S, 3),
        shed(None, 120 * S, 1),
    ];
    let mut summary = Summary::default();
    judge(&facts, &Window { until_ns: Some(150 * S), ..Window::default() }, &mut summary);
    let lines = summary.gaps.iter().map(|gap| (gap.policy.as_deref(), gap.packets));
    let expected = [(None, Some(1)), (Some("bulk"), Some(7)), (Some("video"), Some(3))];
    assert_eq!(lines.collect::<Vec<_>>(), expected);
    assert!(!summary.complete);
}

#[test]
fn a_crash_leaves_a_tail() {
    let mut facts = two_runs();
    facts.runs[0].state = RunState::Crashed;
    assert_eq!(verdict(&facts, None, None), "100..400 crash_tail 198-300");
    assert_eq!(verdict(&facts, None, Some(198)), "100..198");
    // A packet of the only lane that was stored later proves more.
    facts.parts[0].times_ns = Some((110 * S, 199 * S));
    assert_eq!(verdict(&facts, None, None), "100..400 crash_tail 199.000000001-300");
    facts.runs[0].lanes = 2;
    assert_eq!(
        verdict(&facts, None, None),
        "100..400 crash_tail 198-300",
        "the other lane is silent"
    );
    facts.runs.pop();
    assert_eq!(verdict(&facts, None, None), "100..198");
    assert_eq!(verdict(&facts, None, Some(199)), "100..198 crash_tail 198-199");
}

/// A full disk ended an import, and the answer called itself complete.
#[test]
fn an_import_that_was_cut_short_is_not_complete() {
    let mut facts = Facts {
        runs: vec![import(1), import(2)],
        parts: vec![part(1, true, 10 * S, 20 * S - 1), part(2, true, 30 * S, 40 * S - 1)],
        ..Facts::default()
    };
    facts.runs[0].state = RunState::Crashed;
    assert_eq!(verdict(&facts, None, None), "10..40 crash_tail 20-40");
    assert_eq!(verdict(&facts, Some(10), Some(20)), "10..20");
    facts.runs.truncate(1);
    facts.parts.truncate(1);
    assert_eq!(verdict(&facts, None, None), "10..20 crash_tail 20-20.000000001");
    assert_eq!(verdict(&facts, None, Some(20)), "10..20");
}

#[test]
fn imports_cover_their_packets_and_nothing_between_counts() {
    let facts = Facts {
        runs: vec![import(1), import(2)],
        parts: vec![part(1, true, 10 * S, 20 * S - 1), part(2, true, 30 * S, 40 * S - 1)],
        ..Facts::default()
    };
    assert_eq!(verdict(&facts, None, None), "10..40");
    assert_eq!(verdict(&facts, Some(15), Some(35)), "15..35");
    assert_eq!(verdict(&facts, Some(5), Some(45)), "10..40 not_recording 5-10 not_recording 40-45");
    assert_eq!(verdict(&facts, Some(50), None), "nothing not_recording 50-50.000000001");
    let facts = Facts { evicted_import_ns: 9 * S, ..facts };
    assert_eq!(verdict(&facts, Some(5), None), "10..40 retention 5-10");
}

#[test]
fn an_import_beside_live_runs() {
    let mut facts = two_runs();
    facts.runs.push(import(3));
    facts.parts.push(part(3, true, 10 * S, 20 * S - 1));
    assert_eq!(verdict(&facts, None, Some(200)), "10..200");
    assert_eq!(verdict(&facts, Some(12), Some(15)), "12..15");
    assert_eq!(verdict(&facts, Some(12), Some(150)), "12..150 not_recording 20-100");
    assert_eq!(verdict(&facts, Some(50), Some(60)), "50..60 not_recording 50-60");
    assert_eq!(verdict(&facts, Some(500), Some(600)), "nothing not_recording 500-600");
}

#[test]
fn recorded_gaps_count_if_they_touch_the_window() {
    let mut facts = two_runs();
    facts.recorded.push(gap(1, Cause::RingOverflow, 150 * S, Some(160 * S), Some(7)));
    assert_eq!(verdict(&facts, None, Some(200)), "100..200 ring_overflow 150-160");
    assert_eq!(verdict(&facts, None, Some(150)), "100..150");
    assert_eq!(verdict(&facts, Some(160), Some(200)), "160..200");
    assert_eq!(verdict(&facts, Some(159), Some(200)), "159..200 ring_overflow 150-160");
    // A gap of no length still counts.
    facts.recorded = vec![gap(1, Cause::NoBuffer, 150 * S, Some(150 * S), Some(1))];
    assert_eq!(verdict(&facts, Some(150), Some(151)), "150..151 no_buffer 150-150");
    assert_eq!(verdict(&facts, Some(151), Some(152)), "151..152");
}

#[test]
fn an_open_gap_ends_with_its_end_record_or_with_its_run() {
    let mut facts = two_runs();
    facts.recorded.push(gap(1, Cause::InterfaceDown, 150 * S, None, None));
    assert_eq!(verdict(&facts, None, Some(200)), "100..200 interface_down 150-200");
    facts.recorded.push(gap(1, Cause::InterfaceDown, 150 * S, Some(170 * S), None));
    assert_eq!(verdict(&facts, None, Some(200)), "100..200 interface_down 150-170");
    assert_eq!(verdict(&facts, Some(170), Some(200)), "170..200");
    // Another lane's end record is not its end.
    facts.recorded[1].lane = 1;
    assert_eq!(verdict(&facts, Some(180), Some(200)), "180..200 interface_down 150-200");
    // An import's run ends today, its packets may be old.
    let facts = Facts {
        runs: vec![import(1)],
        parts: vec![part(1, true, 10 * S, 20 * S - 1)],
        recorded: vec![gap(1, Cause::ImportUnreadable, 20 * S - 1, None, None)],
        ..Facts::default()
    };
    assert_eq!(verdict(&facts, None, None), "10..20 import_unreadable 19.999999999-20");
    assert_eq!(verdict(&facts, None, Some(19)), "10..19");
}

#[test]
fn gaps_that_touch_are_one_and_copies_count_once() {
    let mut facts = two_runs();
    for from in [150, 151, 153, 150] {
        facts.recorded.push(gap(1, Cause::RingOverflow, from * S, Some((from + 1) * S), Some(5)));
    }
    let mut summary = Summary::default();
    let window = Window { until_ns: Some(200 * S), ..Window::default() };
    judge(&facts, &window, &mut summary);
    let found: Vec<_> =
        summary.gaps.iter().map(|g| (g.from.ns / S, g.until.ns / S, g.packets)).collect();
    assert_eq!(found, [(150, 152, Some(10)), (153, 154, Some(5))]);
    facts.recorded[1].gap.packets = None;
    judge(&facts, &window, &mut summary);
    assert_eq!(summary.gaps[0].packets, None);
}

#[test]
fn damage_is_listed_and_is_a_gap() {
    let mut facts = two_runs();
    let lost = Lost {
        segment: "0:000001#1".into(),
        chunk: Some(3),
        lane: 0,
        cause: Cause::Damaged,
        from_ns: 150 * S,
        until_ns: 151 * S,
        packets: Some(9),
        what: "checksum".into(),
    };
    facts.lost = vec![lost.clone(), lost];
    let mut summary = Summary::default();
    judge(&facts, &Window { until_ns: Some(200 * S), ..Window::default() }, &mut summary);
    assert_eq!((summary.damaged.len(), summary.gaps.len()), (1, 1));
    assert_eq!(summary.gaps[0].packets, Some(9));
    assert_eq!(verdict(&facts, Some(151), Some(200)), "151..200");
    for cause in [Cause::WrongKey, Cause::MissingSegment, Cause::Retention] {
        facts.lost.truncate(1);
        facts.lost[0].cause = cause;
        let expected = format!("100..200 {} 150-151", cause.name());
        assert_eq!(verdict(&facts, None, Some(200)), expected);
    }
}

#[test]
fn a_missing_volume_leaves_nothing_certain() {
    let facts = Facts { missing_volumes: vec!["/b: absent".into()], ..two_runs() };
    assert_eq!(verdict(&facts, Some(120), Some(130)), "120..130 missing_volume 120-130");
    let facts = Facts { missing_volumes: vec!["/b: absent".into()], ..Facts::default() };
    assert!(verdict(&facts, None, None).contains("missing_volume"));
}

#[test]
fn before_a_volume_was_replaced_nothing_is_certain() {
    let facts = Facts { replaced_ns: 150 * S, ..two_runs() };
    assert_eq!(verdict(&facts, Some(120), Some(130)), "120..130 missing_volume 120-150");
    assert!(!verdict(&facts, Some(150), Some(160)).contains("missing_volume"));
    // What was recorded before is gone for the quota as well.
    let facts = Facts { evicted_live_ns: 150 * S, ..facts };
    assert!(!verdict(&facts, None, None).contains("missing_volume"));
}

#[test]
fn an_empty_store_covers_nothing() {
    assert_eq!(verdict(&Facts::default(), None, None), "nothing");
    assert_eq!(verdict(&Facts::default(), Some(1), Some(2)), "nothing not_recording 1-2");
    assert_eq!(verdict(&Facts::default(), Some(1), None), "nothing not_recording 1-1.000000001");
    assert_eq!(verdict(&Facts::default(), None, Some(2)), "nothing not_recording 0-2");
}

/// Since yesterday, and the gap was one of a nanosecond.
#[test]
fn what_begins_behind_all_that_is_covered_reaches_to_now() {
    let empty = Facts { now_ns: 900 * S, ..Facts::default() };
    assert_eq!(verdict(&empty, Some(1), None), "nothing not_recording 1-900");
    assert_eq!(verdict(&empty, None, None), "nothing");
    let facts = Facts { now_ns: 900 * S, ..two_runs() };
    assert_eq!(verdict(&facts, Some(500), None), "nothing not_recording 500-900");
    assert_eq!(verdict(&facts, Some(300), None), "300..400");
    assert_eq!(verdict(&facts, Some(901), None), "nothing not_recording 901-901.000000001");
}

#[test]
fn a_cut_answer_speaks_of_what_came_before_the_cut() {
    let window = Window { cut_ns: Some(150 * S - 1), ..Window::default() };
    let mut summary = Summary::default();
    judge(&two_runs(), &window, &mut summary);
    assert!(summary.complete);
    assert_eq!(summary.covered_until.as_ref().map(|until| until.ns), Some(150 * S));
    let window = Window { since_ns: Some(50 * S), until_ns: Some(900 * S), ..window };
    judge(&two_runs(), &window, &mut summary);
    assert_eq!(summary.gaps.len(), 1, "only the part before the first run");
}
