//! `wirevault audit`: the log of what was done with a store.

use std::path::{Path, PathBuf};

use serde::Serialize;
use wirevault_config::Anchor;
use wirevault_index::{KeySource, open_store};
use wirevault_lifecycle::audit::anchor::{self, Difference};
use wirevault_lifecycle::audit::codes::{self, Codes};
use wirevault_lifecycle::audit::{self, Entry, Event, FaultKind, Report, Source};
use wirevault_query::summary::Instant;
use wirevault_telemetry::clock::{Clock, SystemClock};

use crate::args::AuditVerb;
use crate::error::CliError;
use crate::outcome::Outcome;
use crate::output::{Paint, count_text, put, put_json, tell};

/// Digits of a hash.
const HASH_DIGITS: usize = 64;

/// Shows or checks the log.
pub(crate) fn audit(verb: &AuditVerb) -> Result<Outcome, CliError> {
    match verb {
        AuditVerb::Verify { store, file, head, anchor, json } => {
            let store = store.as_deref().unwrap_or(Path::new(""));
            verify((store, file.as_deref()), head.as_deref(), anchor, *json)
        }
        AuditVerb::Export { store, write, json } => export(store, write, *json),
        AuditVerb::Show { store, json } => show(store, *json),
    }
}

/// The whole log, as it stands or as JSON lines with a proof.
fn export(store: &Path, file: &Path, json: bool) -> Result<Outcome, CliError> {
    let log = folder(store)?;
    let (report, bytes) = match json {
        true => {
            let mut lines = Vec::new();
            let id = open_store(store, &KeySource::Recorded)?.store.to_string();
            (audit::export(&log, &id, SystemClock.unix_ns(), &mut lines)?, lines)
        }
        false => (Source::Folder(&log).verify(None)?, audit::bytes(&log)?),
    };
    match file == Path::new("-") {
        true => put(&String::from_utf8_lossy(&bytes))?,
        false => std::fs::write(file, bytes)?,
    }
    tell(&text(&Verdict::of(&report), Paint::stderr()));
    Ok(if report.faults.is_empty() { Outcome::Found } else { Outcome::Incomplete })
}

/// Checks the log of a store, or an exported one.
fn verify(
    (store, file): (&Path, Option<&Path>),
    head: Option<&str>,
    anchors: &[String],
    json: bool,
) -> Result<Outcome, CliError> {
    if let Some(head) = head
        && (head.len() != HASH_DIGITS || !head.bytes().all(|byte| byte.is_ascii_hexdigit()))
    {
        let what = format!("--head {head}: a hash is {HASH_DIGITS} hex digits");
        return Err(CliError::Usage(what));
    }
    let head = head.map(str::to_ascii_lowercase);
    let folder = if file.is_none() { folder(store)? } else { PathBuf::new() };
    let log = file.map_or(Source::Folder(&folder), Source::Export);
    let report = log.verify(head.as_deref())?;
    let verdict = match (anchors, file, &report.store) {
        // An export without a proof is broken, whosever it is.
        ([], ..) | (_, Some(_), None) => Verdict::of(&report),
        (_, Some(_), Some(id)) => Verdict::of(&report).compared(log, id, anchors)?,
        (_, None, _) => {
            let id = open_store(store, &KeySource::Recorded)?.store.to_string();
            Verdict::of(&report).compared(log, &id, anchors)?
        }
    };
    match json {
        true => put_json(&verdict)?,
        false => put(&text(&verdict, Paint::stdout()))?,
    }
    Ok(if verdict.is_whole() { Outcome::Found } else { Outcome::Incomplete })
}

/// A report, and how the log differs from the heads that were kept.
#[derive(Serialize)]
struct Verdict<'a> {
    #[serde(flatten)]
    report: &'a Report,
    difference: Option<Difference>,
    /// What a service says of the codes in the log, if one was asked.
    codes: Option<Codes>,
}

impl<'a> Verdict<'a> {
    /// As long as no heads are known.
    fn of(report: &'a Report) -> Self {
        Self { report, difference: None, codes: None }
    }

    /// With the heads of the store that these places keep.
    fn compared(self, log: Source<'_>, id: &str, anchors: &[String]) -> Result<Self, CliError> {
        let (mut marks, mut keys) = (Vec::new(), Vec::new());
        for place in anchors {
            let kept = match Anchor::from(place.as_str()) {
                Anchor::Key(key) => {
                    keys.push(key);
                    continue;
                }
                Anchor::File(file) => anchor::marks(&file, id)?,
                Anchor::Objects(url) => {
                    let objects = wirevault_cloud::objects(&url).map_err(CliError::Start)?;
                    anchor::object_marks(&*objects, id)?
                }
            };
            if kept.is_empty() {
                return Err(CliError::Usage(format!("{place} holds no head of store {id}")));
            }
            marks.extend(kept);
        }
        let codes = match keys.is_empty() {
            true => None,
            false => {
                let service = wirevault_cloud::mac_service(None).map_err(CliError::Start)?;
                let why = "this build knows no service for keys: build it with the feature `aws`";
                let service = service.ok_or_else(|| CliError::Usage(why.to_owned()))?;
                Some(codes::check(log, id, (&*service, &keys))?)
            }
        };
        marks.extend(codes.iter().flat_map(|codes| codes.good.iter().cloned()));
        Ok(Self { difference: anchor::compare(log, &marks)?, codes, ..self })
    }

    fn is_whole(&self) -> bool {
        let coded = self.codes.as_ref().is_none_or(|it| it.count > 0 && it.wrong.is_empty());
        let Self { report, difference, .. } = self;
        report.faults.is_empty() && report.anchored != Some(false) && difference.is_none() && coded
    }
}

fn show(store: &Path, json: bool) -> Result<Outcome, CliError> {
    let mut written = Ok(());
    let report = audit::read(&folder(store)?, None, &mut |entry| {
        if written.is_ok() {
            written = put(&if json { json_line(&entry) } else { line(&entry) });
        }
    })?;
    written?;
    Ok(if report.faults.is_empty() { Outcome::Found } else { Outcome::Incomplete })
}

/// Where the log is: the id of a store on devices stands in its superblock.
pub(crate) fn folder(store: &Path) -> Result<PathBuf, CliError> {
    match store.is_dir() {
        true => Ok(store.join(audit::FOLDER)),
        false => {
            let id = open_store(store, &KeySource::Recorded)?.store;
            Ok(audit::folder_of(store, &id.to_string()))
        }
    }
}

fn text(verdict: &Verdict<'_>, paint: Paint) -> String {
    let Verdict { report, difference, codes } = verdict;
    let mut text = String::new();
    for fault in &report.faults {
        let what = match &fault.kind {
            FaultKind::Unreadable(why) => format!("it is no line of a log: {why}"),
            FaultKind::Changed => "it, or the line before it, is not what was written".to_owned(),
            FaultKind::Missing { from, until } if from == until => {
                format!("entry {from} is missing before it")
            }
            FaultKind::Missing { from, until } => {
                format!("entries {from} to {until} are missing before it")
            }
            FaultKind::OutOfOrder { number } => {
                format!("entry {number} does not belong here: it was moved or put in")
            }
            FaultKind::Unproved(why) => format!("the proof does not fit: {why}"),
            FaultKind::Torn => "it has no end: a crash, or somebody cut it".to_owned(),
        };
        let place = format!("{}, line {}", fault.file.display(), fault.line);
        text += &format!("{}: {place}\n  {what}\n", paint.bad("broken"));
    }
    if report.anchored == Some(false) {
        let what = "no line has the hash asked for: the log was cut off or written anew";
        text += &format!("{}: {what}\n", paint.bad("broken"));
    }
    if let Some(difference) = difference {
        let what = match difference {
            Difference::CutOff { from, until } => format!(
                "its end was cut off: entry {from} is missing, and all up to {until} at least"
            ),
            Difference::Rewritten { after: Some(after), until } => format!(
                "entry {until} is not the one that was kept: it was made anew behind entry {after}"
            ),
            Difference::Rewritten { after: None, until } => {
                format!("entry {until} is not the one that was kept, nor is any before it")
            }
        };
        text += &format!("{}: {what}\n", paint.bad("broken"));
    }
    if let Some(codes) = codes {
        text += &codes_text(codes, report.entries, paint);
    }
    let verdict = match verdict.is_whole() {
        true => paint.good("whole"),
        false => paint.bad("BROKEN"),
    };
    let entries = match report.entries {
        1 => "1 entry".to_owned(),
        entries => format!("{entries} entries"),
    };
    let files = count_text(u64::from(report.files), "file");
    text + &format!("{entries} in {files}, head {}: {verdict}\n", report.head)
}

fn codes_text(codes: &Codes, entries: u64, paint: Paint) -> String {
    let mut text = String::new();
    for (entry, key) in &codes.wrong {
        let what = format!("the code of entry {entry}, which names {key}, is none of these keys'");
        text += &format!("{}: {what}\n", paint.bad("broken"));
    }
    match codes.last {
        None => {
            let what = "no entry has a code of these keys: the log is older, or was made anew";
            text += &format!("{}: {what}\n", paint.bad("broken"));
        }
        Some((entry, made_ns)) => {
            let count = count_text(codes.count, "good code");
            let (behind, at) = (entries.saturating_sub(entry + 1), Instant::from(made_ns));
            text += &format!("{count}, the last of entry {entry} at {at}; behind it: {behind}\n");
        }
    }
    text
}

fn line(entry: &Entry) -> String {
    let who = entry.who.to_string();
    let what = match &entry.event {
        Event::Started { version, config, key, .. } => {
            let told = [("configuration", config), ("key", key)].into_iter();
            let told = told.filter_map(|(what, it)| Some(format!(", {what} {}", it.as_ref()?)));
            format!("started, release {version}{}", told.collect::<String>())
        }
        Event::Keys { trouble: Some(why) } => format!("fresh keys cannot be had: {why}"),
        Event::Keys { trouble: None } => "fresh keys can be had again".to_owned(),
        Event::Reloaded { refused: Some(why), .. } => {
            format!("another configuration was refused: {why}")
        }
        Event::Reloaded { changed, .. } if changed.is_empty() => {
            "the configuration was read again: nothing changed".to_owned()
        }
        Event::Reloaded { changed, .. } => format!("another configuration: {}", changed.join(", ")),
        Event::Stopped => "stopped".to_owned(),
        Event::Asked { verb, question } => format!("asked: {verb} {question}"),
        Event::Answered { asked, outcome, count, bytes } => {
            let count = count.map_or(String::new(), |count| format!(", {count} found"));
            format!("answered {asked}: {}{count}, {bytes} bytes", outcome.name())
        }
        Event::Denied { request, why, others } => {
            let others = match others {
                0 => String::new(),
                others => format!("; {others} more since the last denial shown"),
            };
            format!("denied: {request}: {why}{others}")
        }
        Event::Deleted { segment, life, reason, packets, .. } => {
            format!("deleted: segment {segment} (life {life}), {packets} packets, for {reason}")
        }
        Event::Forgotten(erasure) => {
            let level = erasure.level.as_deref().unwrap_or("no level: the store is plain");
            let segments: Vec<_> =
                erasure.segments.iter().map(|it| it.segment.to_string()).collect();
            let segments = segments.join(", ");
            format!("forgotten ({level}): segments {segments} of {}", erasure.path)
        }
        Event::Tiered { segment, reason, place, bytes, .. } => {
            format!("segment {segment} lies in {place} ({bytes} bytes), for {reason}")
        }
        Event::Replaced { volume, was, path } => {
            format!("replaced: volume {volume}, {was}, by {path}")
        }
        Event::Adopted { volume, was, path } => {
            format!("adopted: volume {volume}, {was}, is {path} now")
        }
        Event::Retired { volume, path, segments, how } => {
            format!("retired: volume {volume}, {path}, with {segments} segments: {how}")
        }
        Event::Importing { files } => format!("importing {}", files.join(", ")),
        Event::Imported { began, packets, stored, whole } => {
            let whole = if *whole { "" } else { ", NOT WHOLE" };
            format!("imported, as {began} says: {packets} packets, {stored} stored{whole}")
        }
        Event::HoldAdded { hold, name, filter, .. } => {
            format!("hold {name} (number {hold}) added, for {filter:?}")
        }
        Event::Held { hold, segment, copy, packets, .. } => format!(
            "held: {packets} packets of segment {segment} are in segment {copy}, for hold {hold}"
        ),
        Event::HoldReleased { hold, name } => format!("hold {name} (number {hold}) released"),
        Event::KeyCondition { key, condition, why } => format!("key {key} is {condition}: {why}"),
        Event::KeyTurned { key } => format!("a new epoch of key {key}"),
        Event::Checkpoint { checkpoint, folder } => {
            format!("checkpoint {checkpoint} of the state is taken in {folder}")
        }
        Event::Restored { checkpoint, store, lost_segments } => format!(
            "restored from checkpoint {checkpoint} of store {store}; {lost_segments} segments lost"
        ),
        Event::Backup { checkpoint, job, state, why } => {
            let job = job.as_ref().map_or(String::new(), |job| format!(", {job}"));
            let why = why.as_ref().map_or(String::new(), |why| format!(": {why}"));
            format!("backup {state}, with checkpoint {checkpoint}{job}{why}")
        }
        Event::Notice { kind, text } => format!("the cloud announces {kind}: {text}"),
        Event::Drained { closed, left, checkpoint } => {
            let checkpoint = checkpoint.map_or("none".to_owned(), |number| number.to_string());
            format!("drained: {closed} segments closed, {left} left, checkpoint {checkpoint}")
        }
        Event::Anchored { last, key, .. } => format!("a code of entry {last} by key {key}"),
        Event::Cut { bytes } => format!("{bytes} bytes of an unfinished line were cut off"),
    };
    format!("{:>6}  {}  {who:<9}  {what}\n", entry.number, Instant::from(entry.time_ns))
}

fn json_line(entry: &Entry) -> String {
    // It holds strings, numbers and JSON values.
    serde_json::to_string(entry).expect("an entry is JSON") + "\n"
}
