//! Deleting what was planned or chosen: an entry in the audit log before, a certificate behind.

use std::collections::HashMap;

use wirevault_format::LifeId;
use wirevault_index::Catalog;
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
    let lives: HashMap<String, LifeId> =
        closed(&catalog).map(|it| (it.entry.life.to_string(), it.entry.life)).collect();
    let mut certificates = Vec::new();
    for of_reason in steps.chunk_by(|a, b| a.reason == b.reason) {
        let there: Vec<_> =
            of_reason.iter().filter_map(|step| Some((step, *lives.get(&step.life)?))).collect();
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
        let deletions = match tier {
            Some(tier) => tier.begin_forgetting(store, &lives)?,
            None => store.forget(&lives)?,
        };
        for deletion in deletions {
            certificates.push(finish(store, audit, who, reason, &deletion)?);
        }
        if let Some(tier) = tier {
            certificates.extend(tier.finish_forgetting(store, audit, who, reason)?);
        }
    }
    Ok(certificates)
}

/// Writes a deletion down and gives its space back.
pub(crate) fn finish(
    store: &Store,
    audit: &Audit,
    who: &Who,
    reason: &str,
    deletion: &Deletion,
) -> Result<Certificate, DaemonError> {
    let hex = |bytes: [u8; 32]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let erased = |segment: &wirevault_storage::DeletedSegment| Erased {
        chain: segment.chain.map(hex),
        ..Erased::from(&segment.entry)
    };
    let erasure = Erasure {
        store: store.id().to_string(),
        volume: deletion.volume as u16,
        path: deletion.path.clone(),
        reason: reason.to_owned(),
        level: deletion.level.map(|level| level.to_string()),
        epoch: deletion.epoch,
        segments: deletion.segments.iter().map(erased).collect(),
    };
    let segments = erasure.segments.len();
    let certificate = audit.certify(who, erasure)?;
    store.settle(deletion)?;
    tracing::info!(segments, reason, certificate = certificate.entry, "segments were deleted");
    Ok(certificate)
}

/// Finishes what a crash left of deletions: the keys are gone already.
pub(crate) fn settle(
    store: &Store,
    audit: &Audit,
    deletions: &[Deletion],
) -> Result<(), DaemonError> {
    for deletion in deletions {
        finish(store, audit, &Who::Recorder, "begun before a crash", deletion)?;
    }
    Ok(())
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
