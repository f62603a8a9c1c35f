//! Everything that somebody who may write to the folder can do to a log, and what tells of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use wirevault_telemetry::clock::ManualClock;

use super::anchor::{Difference, FileAnchor, compare, marks};
use super::export::export;
use super::verify::{FaultKind, Source};
use super::{Anchor, AuditLog, Event, Mark, Who};

const STORE: &str = "0101";
const ENTRIES: usize = 8;

/// A folder with a log of [`ENTRIES`] lines; the head after the sixth was kept.
fn log(folder: &Path) -> PathBuf {
    let log = AuditLog::open(folder, Arc::new(ManualClock::new(1))).unwrap();
    let kept = folder.join("marks");
    for number in 0..ENTRIES {
        let hold = number as u32 + 1;
        log.append(Who::Recorder, Event::HoldReleased { hold, name: "a".to_owned() }).unwrap();
        if number == 5 {
            let (entry, hash) = log.last().unwrap();
            let mark = Mark { store: STORE.to_owned(), entry, hash, time_ns: 1 };
            FileAnchor::new(&kept).keep(&mark).unwrap();
        }
    }
    kept
}

/// What is told of a log: line and kind of the first fault, and what the kept head says.
#[derive(Debug, PartialEq)]
struct Told {
    fault: Option<(u64, &'static str)>,
    kept: Option<&'static str>,
}

fn told(folder: &Path, kept: &Path) -> Told {
    let log = Source::Folder(folder);
    let report = log.verify(None).unwrap();
    let difference = compare(log, &marks(kept, STORE).unwrap()).unwrap();
    Told {
        fault: report.faults.first().map(|fault| (fault.line, name(&fault.kind))),
        kept: difference.map(|difference| match difference {
            Difference::CutOff { .. } => "cut off",
            Difference::Rewritten { .. } => "rewritten",
        }),
    }
}

fn name(kind: &FaultKind) -> &'static str {
    match kind {
        FaultKind::Unreadable(_) => "unreadable",
        FaultKind::Changed => "changed",
        FaultKind::Missing { .. } => "missing",
        FaultKind::OutOfOrder { .. } => "out of order",
        FaultKind::Torn => "torn",
        FaultKind::Unproved(_) => "unproved",
    }
}

/// What was done; the line that is named for it, and how; what the kept head says.
type Row = (&'static str, Tamper, Option<(u64, &'static str)>, Option<&'static str>);
type Tamper = fn(&mut Vec<String>);

const TABLE: &[Row] = &[
    ("nothing", |_| (), None, None),
    ("a word changed", |lines| edit(lines, 2), Some((3, "changed")), None),
    ("a hash changed", |lines| flip_hash(lines, 2), Some((3, "changed")), None),
    ("the first line removed", |lines| drop(lines.remove(0)), Some((1, "missing")), None),
    ("a line removed", |lines| drop(lines.remove(3)), Some((4, "missing")), None),
    ("lines removed", |lines| drop(lines.drain(2..5)), Some((3, "missing")), None),
    ("a line doubled", |lines| lines.insert(3, lines[3].clone()), Some((5, "out of order")), None),
    ("two lines swapped", |lines| lines.swap(2, 3), Some((3, "missing")), None),
    ("a foreign line put in", |lines| lines.insert(4, "x".into()), Some((5, "unreadable")), None),
    ("the kept line changed", |lines| edit(lines, 5), Some((6, "changed")), None),
    ("the end cut behind what was kept", |lines| lines.truncate(7), None, None),
    ("the end cut", |lines| lines.truncate(4), None, Some("cut off")),
    ("all removed but one", |lines| lines.truncate(1), None, Some("cut off")),
    ("written anew from a line on", |lines| anew(lines, 3), None, Some("rewritten")),
    ("written anew as a whole", |lines| anew(lines, 0), None, Some("rewritten")),
];

fn edit(lines: &mut [String], at: usize) {
    lines[at] = lines[at].replace("\"name\":\"a\"", "\"name\":\"b\"");
}

fn flip_hash(lines: &mut [String], at: usize) {
    let flipped = if lines[at].starts_with('0') { "1" } else { "0" };
    lines[at].replace_range(..1, flipped);
}

/// Hashes that fit, over other entries.
fn anew(lines: &mut [String], from: usize) {
    let beginning = "0".repeat(64);
    for at in from..lines.len() {
        edit(lines, at);
        let before = at.checked_sub(1).map_or(&beginning[..], |at| &lines[at][..64]);
        let entry = lines[at][65..].to_owned();
        lines[at] = format!("{} {entry}", super::folder::hash(before, &entry));
    }
}

#[test]
fn everything_done_to_a_log_is_found_and_located() {
    for (what, tamper, fault, difference) in TABLE {
        let dir = tempfile::tempdir().unwrap();
        let kept = log(dir.path());
        let path = dir.path().join("audit-00000001.log");
        let text = fs::read_to_string(&path).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        tamper(&mut lines);
        fs::write(&path, lines.join("\n") + "\n").unwrap();
        let found = told(dir.path(), &kept);
        assert_eq!(found.fault, *fault, "{what}");
        // Where the chain is broken nothing is asked of the kept head but that it does no harm.
        if fault.is_none() {
            assert_eq!(found.kept, *difference, "{what}");
        }
    }
}

#[test]
fn an_export_is_checked_without_the_log() {
    let dir = tempfile::tempdir().unwrap();
    log(dir.path());
    let mut exported = Vec::new();
    let report = export(dir.path(), STORE, 7, &mut exported).unwrap();
    let file = dir.path().join("export");
    let check = |lines: &[String]| {
        fs::write(&file, lines.concat()).unwrap();
        Source::Export(&file).verify(None).unwrap()
    };
    let text = String::from_utf8(exported).unwrap();
    let lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
    assert_eq!(lines.len(), ENTRIES + 1);
    for line in &lines {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
    let whole = check(&lines);
    assert_eq!((&whole.head, whole.entries), (&report.head, ENTRIES as u64));
    assert_eq!(whole.faults, []);
    assert_eq!(whole.store.as_deref(), Some(STORE));
    let kept = Source::Export(&file).verify(Some(&report.head)).unwrap();
    assert_eq!(kept.anchored, Some(true));

    let first = |lines: &[String]| {
        let report = check(lines);
        report.faults.first().map(|fault| (fault.line, name(&fault.kind)))
    };
    for at in 0..=ENTRIES {
        let mut fewer = lines.clone();
        fewer.remove(at);
        let expected = match at {
            0..7 => (at as u64 + 1, "missing"),
            _ => (8, "unproved"),
        };
        assert_eq!(first(&fewer), Some(expected), "without line {at}");
    }
    let mut edited = lines.clone();
    edited[4] = edited[4].replace("\"name\":\"a\"", "\"name\":\"b\"");
    assert_eq!(first(&edited), Some((5, "changed")));
    edited[4] = "{}\n".to_owned();
    assert_eq!(first(&edited), Some((5, "unreadable")));
    let mut longer = lines.clone();
    longer.push(lines[0].clone());
    assert_eq!(first(&longer), Some((10, "unreadable")));
}
