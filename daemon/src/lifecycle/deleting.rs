//! Deleting what was planned or chosen: an entry in the audit log before, a certificate behind.

use std::collections::HashMap;
use std::sync::Arc;

use wirevault_format::LifeId;
use wirevault_index::{Catalog, Segment};
use wirevault_lifecycle::audit::Who;
use wirevault_lifecycle::certificate::{Certificate, Erased, Erasure};
use wirevault_lifecycle::retention::{Action, Piece, Step};
use wirevault_storage::{Deletion, Store};

use super::holds::Holds;
use super::rules::{closed, piece};
use crate::DaemonError;
use crate::api::DeleteBody;
use crate::lifecycle::audit::Audit;
use crate::lifecycle::tier::Tier;
use crate::server::App;

/// Segments deleted at a time: each batch rewrites a key ring while no segment opens.
pub(super) const BATCH: usize = 64;
/// Reason of a deletion that somebody ordered.
pub(super) const BY_HAND: &str = "by hand";
/// Reason of a deletion that a crash or an error had left half done: whoever began it may be long
/// gone, and whoever comes across it did not want it.
pub(super) const BEGUN_BEFORE: &str = "begun before";

/// The segments that somebody wants deleted, oldest first.
///
/// # Errors
/// In words: one of them is not there, or not closed.
pub fn chosen(catalog: &Catalog, wanted: &DeleteBody) -> Result<Vec<Step>, String> {
    let pieces: Vec<Piece> = closed(catalog).map(|segment| piece(segment)).collect();
    let there = |ordinal: &&u64| pieces.iter().any(|piece| piece.ordinal == **ordinal);
    if let Some(absent) = wanted.segments.iter().find(|ordinal| !there(ordinal)) {
        return Err(format!(
            "there is no closed segment {absent}; `wirevault segments` lists them with their \
             numbers, which come after the `#`"
        ));
    }
    let before = |piece: &Piece| {
        let last_ns = piece.times_ns.map_or(piece.closed_ns, |(_, last_ns)| last_ns);
        wanted.before_ns.is_some_and(|before_ns| last_ns < before_ns)
    };
    let goes = |piece: &&Piece| before(piece) || wanted.segments.contains(&piece.ordinal);
    Ok(pieces.iter().filter(goes).map(|piece| piece.step(Action::Delete, BY_HAND)).collect())
}

/// Deletes what the steps name and no hold still wants.
pub(super) fn delete_free(
    store: &Store,
    audit: &Audit,
    holds: &Holds,
    who: &Who,
    steps: &[Step],
) -> Result<Vec<Certificate>, DaemonError> {
    let mut keeping = holds.lock();
    keeping.keep(store, audit, &|| false);
    let steps: Vec<Step> =
        steps.iter().filter(|step| step.action == Action::Delete).cloned().collect();
    let steps = keeping.spare(&store.catalog(0), &steps)?;
    delete(store, audit, keeping.tier(), who, &steps)
}

/// Deletes what the steps name, so far as it is still there.
fn delete(
    store: &Store,
    audit: &Audit,
    tier: Option<&Tier>,
    who: &Who,
    steps: &[Step],
) -> Result<Vec<Certificate>, DaemonError> {
    let catalog = store.catalog(0);
    let segments: HashMap<String, &Arc<Segment>> =
        closed(&catalog).map(|it| (it.entry.life.to_string(), it)).collect();
    let mut certificates = Vec::new();
    for of_reason in steps.chunk_by(|a, b| a.reason == b.reason) {
        // What the quota took by now is none of ours, and would be announced twice.
        let catalog = store.catalog(0);
        let is_there = |it: &Segment| catalog.segments.get(&it.entry).is_some();
        let segment = |step: &Step| segments.get(&step.life).filter(|it| is_there(it));
        let there: Vec<_> =
            of_reason.iter().filter_map(|step| Some((step, segment(step)?.entry.life))).collect();
        if there.is_empty() {
            continue;
        }
        // What cannot be done is not announced.
        store.may_write_rings()?;
        for (step, _) in &there {
            audit.will_delete(who, step)?;
        }
        let lives: Vec<LifeId> = there.iter().map(|(_, life)| *life).collect();
        let reason = &of_reason[0].reason;
        let done = match tier {
            Some(tier) => tier.forget(store, audit, who, reason, &lives)?,
            None => finish(store, audit, who, reason, &store.forget(&lives)?)?,
        };
        certificates.extend(done);
    }
    Ok(certificates)
}

/// Writes deletions down and gives their space back: what was begun before as the recorder's.
pub(crate) fn finish(
    store: &Store,
    audit: &Audit,
    who: &Who,
    reason: &str,
    deletions: &[Deletion],
) -> Result<Vec<Certificate>, DaemonError> {
    let certified = |deletion: &Deletion| {
        let (who, reason) = match deletion.begun_before {
            true => (&Who::Recorder, BEGUN_BEFORE),
            false => (who, reason),
        };
        let certificate = audit.certify(who, erasure(store, reason, deletion))?;
        store.settle(deletion)?;
        let segments = deletion.segments.len();
        tracing::info!(segments, reason, certificate = certificate.entry, "segments were deleted");
        Ok(certificate)
    };
    deletions.iter().map(certified).collect()
}

fn erasure(store: &Store, reason: &str, deletion: &Deletion) -> Erasure {
    let hex = |bytes: [u8; 32]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let erased = |segment: &wirevault_storage::DeletedSegment| Erased {
        chain: segment.chain.map(hex),
        ..Erased::from(&segment.entry)
    };
    Erasure {
        store: store.id().to_string(),
        volume: deletion.volume as u16,
        path: deletion.path.clone(),
        reason: reason.to_owned(),
        level: deletion.level.map(|level| level.to_string()),
        epoch: deletion.epoch,
        segments: deletion.segments.iter().map(erased).collect(),
    }
}

/// Finishes what a crash left of deletions: the keys are gone already.
pub(crate) fn settle(
    store: &Store,
    audit: &Audit,
    deletions: &[Deletion],
) -> Result<(), DaemonError> {
    finish(store, audit, &Who::Recorder, BEGUN_BEFORE, deletions).map(drop)
}

/// Deletes while recording goes on. What somebody ordered is refused where a hold stands in its
/// way.
pub(super) fn delete_live(
    app: &App,
    who: &Who,
    steps: &[Step],
) -> Result<Vec<Certificate>, DaemonError> {
    let mut certificates = Vec::new();
    for batch in steps.chunks(BATCH) {
        let Some(pipeline) = app.pipeline() else { break };
        let (store, audit) = (pipeline.store(), app.audit());
        certificates.extend(delete_free(store, audit, app.holds(), who, batch)?);
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use wirevault_lifecycle::audit::{self, Event};

    use super::*;
    use crate::lifecycle::month_tests::{Month, Open, PACKETS};

    const SEGMENTS: u64 = 4;

    /// A store with some closed segments, numbered from 1.
    fn recorded() -> (Month, Open) {
        let mut month = Month::new();
        let open = month.open().unwrap();
        let run = open.store.begin_run(false, 1).unwrap();
        for number in 0..SEGMENTS {
            month.record(&open.store, run, number * PACKETS).unwrap();
        }
        open.store.end_run().unwrap();
        (month, open)
    }

    fn life(store: &Store, ordinal: u64) -> LifeId {
        let catalog = store.catalog(0);
        let segment = catalog.segments.iter().find(|segment| segment.entry.ordinal == ordinal);
        segment.unwrap().entry.life
    }

    fn steps(store: &Store, segments: &[u64]) -> Vec<Step> {
        let body = DeleteBody { segments: segments.to_vec(), ..DeleteBody::default() };
        chosen(&store.catalog(0), &body).unwrap()
    }

    fn events(audit: &Audit) -> Vec<(Who, Event)> {
        let mut events = Vec::new();
        let mut each = |entry: audit::Entry| events.push((entry.who, entry.event));
        audit::read(audit.folder(), None, &mut each).unwrap();
        events
    }

    /// Nothing of the batch was, and the log said of all of it that it would be.
    #[test]
    fn what_the_quota_took_or_somebody_reads_keeps_no_other_from_being_deleted() {
        let (_month, Open { store, audit, holds }) = recorded();
        let planned = steps(&store, &[1, 2, 3]);
        for deletion in store.forget(&[life(&store, 1)]).unwrap() {
            store.settle(&deletion).unwrap();
        }
        let catalog = store.catalog(0);
        let read = catalog.segments.iter().find(|segment| segment.entry.ordinal == 2).unwrap();
        let _pinned = store.pin(read).unwrap();
        let done = delete_free(&store, &audit, &holds, &Who::Recorder, &planned).unwrap();
        let segments = |it: &Erasure| it.segments.iter().map(|it| it.segment).collect::<Vec<_>>();
        assert_eq!(done.iter().map(|it| segments(&it.erasure)).collect::<Vec<_>>(), [[2, 3]]);
        let announced = events(&audit).into_iter().filter_map(|(_, event)| match event {
            Event::Deleted { segment, .. } => Some(segment),
            _ => None,
        });
        assert_eq!(announced.collect::<Vec<_>>(), [2, 3]);
        let left = store.catalog(0).segments.iter().map(|it| it.entry.ordinal).collect::<Vec<_>>();
        assert_eq!(left, [4]);
    }

    /// The next deletion there wrote it down as its own.
    #[test]
    fn what_somebody_else_began_is_certified_as_begun_before() {
        let (_month, Open { store, audit, holds }) = recorded();
        // Its certificate could not be written.
        store.forget(&[life(&store, 1)]).unwrap();
        let who = Who::User { uid: 1001, gid: 1001 };
        delete_free(&store, &audit, &holds, &who, &steps(&store, &[3])).unwrap();
        let certified = events(&audit).into_iter().filter_map(|(who, event)| match event {
            Event::Forgotten(it) => Some((who, it.reason, it.segments[0].segment)),
            _ => None,
        });
        let mine = (who, BY_HAND.to_owned(), 3);
        let left = (Who::Recorder, BEGUN_BEFORE.to_owned(), 1);
        assert_eq!(certified.collect::<Vec<_>>(), [mine, left]);
    }
}
