//! What the streams of one query share: the way to be stopped, buffers, and notes of what is
//! missing.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use wirevault_format::Cause;
use wirevault_format::table::SegmentEntry;

use crate::ahead::Ahead;
use crate::completeness::{Lost, Recorded};
use crate::error::QueryError;
use crate::source::{Absence, Look, Question, Reader, Shown, Source};

/// What all streams of a query share.
pub(crate) struct Reading<'a> {
    pub(crate) cancel: &'a AtomicBool,
    /// End of the record time of what is not closed.
    pub(crate) now_ns: u64,
    /// Bytes that sorting may hold back.
    pub(crate) held_bytes_max: usize,
    pub(crate) held_bytes: usize,
    pub(crate) buffers: Vec<Vec<u8>>,
    pub(crate) ahead: Ahead,
    pub(crate) findings: Findings,
}

/// What was noticed on the way.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) recorded: Vec<Recorded>,
    pub(crate) lost: Vec<Lost>,
    pub(crate) warnings: Vec<String>,
    /// Ordinals of the segments that were opened, or could not be.
    pub(crate) seen: HashSet<u64>,
    pub(crate) segments_read: u64,
    pub(crate) chunks_considered: u64,
    pub(crate) chunks_read: u64,
    /// What was read from the tier: a count for each segment that was opened there.
    pub(crate) taken: Vec<Arc<AtomicU64>>,
}

impl Findings {
    /// Bytes that were read from the tier.
    pub(crate) fn tier_bytes(&self) -> u64 {
        self.taken.iter().map(|taken| taken.load(Ordering::Relaxed)).sum()
    }
}

impl Reading<'_> {
    pub(crate) fn check_cancelled(&self) -> Result<(), QueryError> {
        match self.cancel.load(Ordering::Relaxed) {
            true => Err(QueryError::Cancelled),
            false => Ok(()),
        }
    }

    /// Opens a segment and takes note of its gaps and damage. `None`: it cannot be opened, which is
    /// noted too.
    pub(crate) fn open<S: Source>(
        &mut self,
        source: &S,
        question: Option<&Question<'_>>,
    ) -> Option<(S::Reader, Look)> {
        match source.open() {
            Ok(reader) => {
                let (look, holes) = (reader.look(question), reader.damage());
                let shown = Shown { look, holes, taken: reader.taken() };
                self.note(source, &shown);
                Some((reader, shown.look))
            }
            Err(absence) => {
                self.note_absence(source, absence);
                None
            }
        }
    }

    /// Takes note of gaps and damage that opening a segment showed.
    fn note<S: Source>(&mut self, source: &S, shown: &Shown) {
        let entry = source.entry();
        self.findings.seen.insert(entry.ordinal);
        self.findings.taken.extend(shown.taken.clone());
        if let Some(why) = &shown.look.index_damage {
            let warning = format!("segment {}: its index is not used: {why}", source.name());
            self.findings.warnings.push(warning);
        }
        let (run, lane) = (entry.run, entry.lane);
        let gaps = shown.look.gaps.iter().map(|gap| Recorded { run, lane, gap: *gap });
        self.findings.recorded.extend(gaps);
        let lost = shown.holes.iter().cloned().map(|hole| {
            let (from_ns, until_ns) = hole.times_ns.unwrap_or(span(entry, self.now_ns));
            let (segment, chunk, packets) = (source.name(), hole.chunk, hole.packets);
            let (cause, what) = (Cause::Damaged, hole.what);
            Lost { segment, chunk, lane, cause, from_ns, until_ns, packets, what }
        });
        self.findings.lost.extend(lost);
    }

    /// As [`Reading::note`], of a segment that was asked and holds no answer.
    pub(crate) fn note_nothing<S: Source>(&mut self, source: &S, shown: &Shown) {
        self.note(source, shown);
        self.findings.chunks_considered += shown.look.considered as u64;
    }

    fn note_absence<S: Source>(&mut self, source: &S, Absence { cause, what }: Absence) {
        let entry = source.entry();
        self.findings.seen.insert(entry.ordinal);
        // One key opens the whole store, so one line says what is wrong with it.
        let told = |lost: &Lost| lost.cause == Cause::WrongKey;
        if cause == Cause::WrongKey && !self.findings.lost.iter().any(told) {
            self.findings.warnings.push(what.clone());
        }
        let (segment, lane, chunk) = (source.name(), entry.lane, None);
        // The entry of a segment that is not closed does not count its packets yet.
        let packets = (entry.closed_ns > 0).then_some(entry.packets);
        let (from_ns, until_ns) = span(entry, self.now_ns);
        let lost = Lost { segment, chunk, lane, cause, from_ns, until_ns, packets, what };
        self.findings.lost.push(lost);
    }
}

/// Half-open time of a segment's packets, as far as the table tells.
pub(crate) fn span(entry: &SegmentEntry, now_ns: u64) -> (u64, u64) {
    match entry.times_ns {
        Some((min, max)) => (min, max.saturating_add(1)),
        None if entry.closed_ns > 0 => (entry.opened_ns, entry.closed_ns.max(entry.opened_ns)),
        None => (entry.opened_ns, now_ns.max(entry.opened_ns)),
    }
}
