//! Who asked for what, written down before the answer begins.
//!
//! ```text
//!  question ─► entry `asked`, durable ─► answer ─► entry `answered`
//! ```
//! What cannot be written down is not answered: a recorder that goes on answering without its log
//! would be the one that an intruder makes. Recording goes on.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;
use wirevault_format::StoreId;
use wirevault_format::table::SegmentEntry;
use wirevault_lifecycle::AuditError;
use wirevault_lifecycle::audit::{self, AuditLog, Event, Outcome, Who};
use wirevault_lifecycle::certificate::{Certificate, Erasure, certify};
use wirevault_lifecycle::retention::Step;
use wirevault_query::Summary;
use wirevault_seal::chain::Chain;
use wirevault_telemetry::clock::Clock;

use crate::api::{AnchorStatus, Replaced};
use crate::lifecycle::anchors::{Anchors, Occasion};
use crate::server::answers::{Failure, Pipe};

/// So often a denial has an entry of its own, or a stranger fills the disk with them.
const DENIAL_PAUSE: Duration = Duration::from_secs(1);
/// Entries that wait for a log that can be written again, at most: some MiB. A busy store gives up
/// a segment a second, so these are hours.
const OWED_MAX: usize = 16 << 10;

/// Bytes of one text of a question at most, as the log has it: filters that people write, a hundred
/// addresses among them, are whole. Who sends junk 600 times a minute fills a GiB in six hours.
const QUESTION_TEXT_BYTES_MAX: usize = 4 << 10;
/// The same of what was refused, and why: a stranger may be refused every second.
const DENIED_TEXT_BYTES_MAX: usize = 512;

/// SHA-256 of a text, hex.
pub(crate) fn text_hash(text: &str) -> String {
    let mut chain = Chain::new();
    chain.add(text.as_bytes());
    chain.finish().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A text as the log has it: whole, unless it takes more than `bytes_max` bytes of JSON there. Then
/// it is its beginning, its length and its SHA-256, and takes more than that: so a text that was
/// cut is known by its length, and whoever has the whole one can show that it is the one.
pub(crate) fn shortened(text: String, bytes_max: usize) -> String {
    let mut bytes = 0;
    let is_beyond = |(_, char): &(usize, char)| {
        bytes += match char {
            '"' | '\\' | '\u{8}' | '\t' | '\n' | '\u{c}' | '\r' => 2,
            // As `\u0000`.
            '\0'..' ' => 6,
            char => char.len_utf8(),
        };
        bytes > bytes_max
    };
    match text.char_indices().find(is_beyond) {
        None => text,
        Some((end, _)) => {
            let (begin, bytes, hash) = (&text[..end], text.len(), text_hash(&text));
            format!("{begin}... ({bytes} bytes, SHA-256 {hash})")
        }
    }
}

/// A question as the log has it.
fn shortened_texts(value: &mut Value) {
    match value {
        Value::String(text) => *text = shortened(std::mem::take(text), QUESTION_TEXT_BYTES_MAX),
        Value::Array(values) => values.iter_mut().for_each(shortened_texts),
        Value::Object(members) => members.values_mut().for_each(shortened_texts),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The log, as the API and the store write into it.
pub(crate) struct Audit {
    log: AuditLog,
    /// Where heads of the log are kept, beside the system's log.
    anchors: Option<Anchors>,
    denials: Mutex<Denials>,
    /// Why the last entry could not be written; nothing when it could.
    trouble: Mutex<Option<String>>,
    /// What was done all the same, and stands in front of the next entry that can be written.
    owed: Mutex<VecDeque<(Who, Event)>>,
}

#[derive(Default)]
struct Denials {
    last: Option<Instant>,
    others: u64,
}

/// What an answer came to.
pub(crate) struct Answered {
    pub(crate) outcome: Outcome,
    /// Packets or flows.
    pub(crate) count: u64,
}

impl From<Summary> for Answered {
    fn from(summary: Summary) -> Self {
        let outcome = if summary.complete { Outcome::Complete } else { Outcome::Incomplete };
        Self { outcome, count: summary.packets }
    }
}

impl Audit {
    /// Opens the log of the store, of which `volume` is the first, and tells its head to the
    /// system's log.
    pub(crate) fn open(
        volume: &Path,
        store: StoreId,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, AuditError> {
        let log = AuditLog::open(&audit::folder_of(volume, &store.to_string()), clock)?;
        let (denials, trouble, owed, anchors) = Default::default();
        Ok(Self { log, anchors, denials, trouble, owed })
    }

    /// Keeps heads in these places as well.
    pub(crate) fn anchored(self, anchors: Anchors) -> Self {
        Self { anchors: Some(anchors), ..self }
    }

    /// Keeps the head outside, where it is another than the last time.
    pub(crate) fn anchor(&self, occasion: Occasion) {
        self.anchors.iter().for_each(|anchors| anchors.keep(&self.log, occasion));
    }

    /// How it stands with the places where heads are kept. Waits for none of them.
    pub(crate) fn anchors(&self) -> Vec<AnchorStatus> {
        let head = self.log.head();
        self.anchors.as_ref().map_or_else(Vec::new, |anchors| anchors.status(&head))
    }

    /// Writes down what the recorder does itself, later if it cannot be now: recording goes on. The
    /// status tells of the trouble.
    pub(crate) fn note(&self, event: Event) {
        self.note_of(Who::Recorder, event);
    }

    fn note_of(&self, who: Who, event: Event) {
        if self.append(who.clone(), event.clone()).is_err() {
            let mut owed = self.owed();
            match owed.len() < OWED_MAX {
                true => owed.push_back((who, event)),
                false => tracing::error!(?event, "not in the audit log, and never will be"),
            }
        }
    }

    /// Writes down what somebody does; what this refuses is not done. Gives the entry's number.
    pub(crate) fn write(&self, who: &Who, event: Event) -> Result<u64, AuditError> {
        self.append(who.clone(), event)
    }

    /// Folder of the log, where the list of holds is, too.
    pub(crate) fn folder(&self) -> &Path {
        self.log.folder()
    }

    /// A segment is about to be given up for the quota; a hold may lose something by it.
    pub(crate) fn deleting(&self, entry: &SegmentEntry, unheld: bool) {
        let reason = if unheld { "quota, before a hold had its copy" } else { "quota" };
        self.note(Event::Deleted {
            segment: entry.ordinal,
            life: entry.life.to_string(),
            reason: reason.to_owned(),
            packets: entry.packets,
            times_ns: entry.times_ns,
        });
    }

    /// Writes down that a segment is about to be deleted; without this it is not.
    pub(crate) fn will_delete(&self, who: &Who, step: &Step) -> Result<(), AuditError> {
        let event = Event::Deleted {
            segment: step.segment,
            life: step.life.clone(),
            reason: step.reason.clone(),
            packets: step.packets,
            times_ns: step.times_ns,
        };
        self.write(who, event).map(drop)
    }

    /// Writes down that a volume is about to be replaced; without this it is not.
    pub(crate) fn will_replace(&self, who: &Who, replaced: &Replaced) -> Result<(), AuditError> {
        let Replaced { volume, was, path } = replaced.clone();
        self.append(who.clone(), Event::Replaced { volume, was, path }).map(drop)
    }

    /// Writes down that segments are gone.
    pub(crate) fn certify(&self, who: &Who, erasure: Erasure) -> Result<Certificate, AuditError> {
        let certify = || certify(&self.log, who.clone(), erasure);
        let certificate = self.watched(self.pay().and_then(|()| certify()))?;
        self.anchor(Occasion::Deletion);
        Ok(certificate)
    }

    /// Somebody was turned away.
    pub(crate) fn denied(&self, who: Who, request: String, why: &str) {
        let mut denials = self.denials.lock().unwrap_or_else(PoisonError::into_inner);
        if denials.last.is_some_and(|last| last.elapsed() < DENIAL_PAUSE) {
            denials.others += 1;
            return;
        }
        let others = std::mem::take(&mut denials.others);
        denials.last = Some(Instant::now());
        let request = shortened(request, DENIED_TEXT_BYTES_MAX);
        let why = shortened(why.to_owned(), DENIED_TEXT_BYTES_MAX);
        // He is turned away either way, and must not crowd out what the recorder owes.
        if self.append(who, Event::Denied { request, why, others }).is_err() {
            denials.others = others + 1;
        }
    }

    /// Makes an answer between its two entries.
    pub(crate) fn answer(
        &self,
        who: &Who,
        (verb, question): (&str, &impl Serialize),
        pipe: &mut Pipe,
        work: impl FnOnce(&mut Pipe) -> Result<Answered, Failure>,
    ) -> Result<(), Failure> {
        let mut question = serde_json::to_value(question).map_err(|error| {
            Failure::Failed(format!("the question cannot be written down: {error}"))
        })?;
        shortened_texts(&mut question);
        let asked = self.append(who.clone(), Event::Asked { verb: verb.to_owned(), question });
        let asked = asked.map_err(|error| {
            Failure::Failed(format!("nothing is answered that cannot be written down: {error}"))
        })?;
        let result = work(pipe);
        let (outcome, count) = match &result {
            Ok(answered) => (answered.outcome, Some(answered.count)),
            Err(Failure::Refused(_)) => (Outcome::Refused, None),
            Err(Failure::Failed(_)) => (Outcome::BrokenOff, None),
        };
        let bytes = pipe.bytes();
        // If this fails, the next question is not answered.
        self.note_of(who.clone(), Event::Answered { asked, outcome, count, bytes });
        result.map(drop)
    }

    /// Why the log cannot be written.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Hash of the last line.
    pub(crate) fn head(&self) -> String {
        self.log.head()
    }

    fn append(&self, who: Who, event: Event) -> Result<u64, AuditError> {
        self.watched(self.pay().and_then(|()| self.log.append(who, event)))
    }

    /// Writes down what could not be written before.
    fn pay(&self) -> Result<(), AuditError> {
        let mut owed = self.owed();
        while let Some((who, event)) = owed.front().cloned() {
            self.log.append(who, event)?;
            owed.pop_front();
        }
        Ok(())
    }

    fn owed(&self) -> MutexGuard<'_, VecDeque<(Who, Event)>> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watched<T>(&self, appended: Result<T, AuditError>) -> Result<T, AuditError> {
        let trouble = appended.as_ref().err().map(ToString::to_string);
        if let Some(trouble) = &trouble {
            tracing::error!("{trouble}");
        }
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
        appended
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use wirevault_telemetry::clock::ManualClock;

    use super::*;

    /// What a full disk kept out of the log was never in it: segments went for the quota, and the
    /// log was whole without them.
    #[test]
    fn what_could_not_be_written_down_is_written_down_later() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(1));
        let audit = Audit::open(dir.path(), StoreId::default(), clock).unwrap();
        // A log that has to go on in another file, and cannot: a folder has its name.
        let request = "x".repeat(64 << 20);
        audit.note(Event::Denied { request, why: String::new(), others: 0 });
        let next = audit.folder().join("audit-00000002.log");
        fs::create_dir(&next).unwrap();
        let noted = |segment| Event::Drained { closed: segment, left: 0, checkpoint: None };
        audit.note(noted(1));
        audit.denied(Who::Unknown, "GET /".to_owned(), "nobody knows him");
        audit.note(noted(2));
        assert!(audit.trouble().is_some());
        assert!(audit.write(&Who::Recorder, noted(3)).is_err(), "not done, so not owed");

        fs::remove_dir(&next).unwrap();
        audit.write(&Who::Recorder, noted(4)).unwrap();
        assert_eq!(audit.trouble(), None);
        let mut told = Vec::new();
        let report = audit::read(audit.folder(), Some(&audit.head()), &mut |entry| {
            told.push(entry.event);
        });
        assert_eq!(report.unwrap().faults.len(), 0);
        assert_eq!(told[1..], [noted(1), noted(2), noted(4)]);
    }

    fn json_bytes(text: &str) -> usize {
        serde_json::to_string(text).unwrap().len() - 2
    }

    #[test]
    fn a_text_is_whole_or_its_beginning_length_and_hash() {
        for whole in ["", "port 80", "é\\\"\n"] {
            assert_eq!(shortened(whole.to_owned(), 16), whole);
        }
        let short = shortened("x".repeat(17), 16);
        let hash = text_hash(&"x".repeat(17));
        assert_eq!(short, format!("{}... (17 bytes, SHA-256 {hash})", "x".repeat(16)));
        // Whatever is sent: it is no longer than that in the log, never cut within a character, and
        // longer than any text that is whole.
        let hash_bytes = "... (1000000 bytes, SHA-256 )".len() + 64;
        for char in ['x', '"', '\\', '\u{1}', '\u{7f}', '\n', 'é', '\u{1f4a9}'] {
            let text = String::from(char).repeat(1_000_000 / char.len_utf8());
            let bytes = json_bytes(&shortened(text, 512));
            assert!(bytes > 512 && bytes <= 512 + hash_bytes, "{char:?}: {bytes}");
        }
    }
}
