//! Who asked for what, written down before the answer begins.
//!
//! ```text
//!  question ─► entry `asked`, durable ─► answer ─► entry `answered`
//! ```
//! What cannot be written down is not answered: a recorder that goes on answering without its log
//! would be the one that an intruder makes. Recording goes on.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
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

/// SHA-256 of a text, hex.
pub(crate) fn text_hash(text: &str) -> String {
    let mut chain = Chain::new();
    chain.add(text.as_bytes());
    chain.finish().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The log, as the API and the store write into it.
pub(crate) struct Audit {
    log: AuditLog,
    /// Where heads of the log are kept, beside the system's log.
    anchors: Option<Anchors>,
    denials: Mutex<Denials>,
    /// Why the last entry could not be written; nothing when it could.
    trouble: Mutex<Option<String>>,
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
        let (denials, trouble, anchors) = Default::default();
        Ok(Self { log, anchors, denials, trouble })
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

    /// Writes down what the recorder does itself. A failure is told by the status.
    pub(crate) fn note(&self, event: Event) {
        // The trouble is kept for the status; whoever records goes on.
        let _ = self.append(Who::Recorder, event);
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
        let certificate = self.watched(certify(&self.log, who.clone(), erasure))?;
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
        let event = Event::Denied { request, why: why.into(), others };
        // The trouble is kept for the status; he is turned away either way.
        let _ = self.append(who, event);
    }

    /// Makes an answer between its two entries.
    pub(crate) fn answer(
        &self,
        who: &Who,
        (verb, question): (&str, &impl Serialize),
        pipe: &mut Pipe,
        work: impl FnOnce(&mut Pipe) -> Result<Answered, Failure>,
    ) -> Result<(), Failure> {
        let question = serde_json::to_value(question).map_err(|error| {
            Failure::Failed(format!("the question cannot be written down: {error}"))
        })?;
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
        // The trouble is kept for the status; the next question is not answered.
        let _ = self.append(who.clone(), Event::Answered { asked, outcome, count, bytes });
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
        self.watched(self.log.append(who, event))
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
