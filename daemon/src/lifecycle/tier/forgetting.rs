//! A segment goes from the tier for good: its key first, then its bytes.
//!
//! | step | does | a crash behind it leaves |
//! |---|---|---|
//! | 1 | list: the segment is to go | the next start goes on with step 2 |
//! | 2 | answers do not know it any more; superblock: how late its packets are | the same |
//! | 3 | what lies on its volume is forgotten, by the steps of `storage::forget` | the same |
//! | 4 | its key goes, under both names; it is looked for, and not there | bytes that nobody can read |
//! | 5 | its flows go, if they lie there or may; they are looked for, and not there | the same |
//! | 6 | its bytes go; they are looked for, and not there | the same |
//! | 7 | certificate | a certificate twice |
//! | 8 | list: the segment is gone | the store without it |
//!
//! Deleting an object is as much as the service makes of it: in a bucket with versions the key
//! stays readable for whoever may read old versions.

use wirevault_format::LifeId;
use wirevault_index::tier::{content_bytes, segment_object};
use wirevault_lifecycle::audit::Who;
use wirevault_lifecycle::certificate::{Certificate, Erased, Erasure};
use wirevault_lifecycle::tier::Row;
use wirevault_media::{ObjectError, ObjectFault};
use wirevault_seal::ForgetLevel;
use wirevault_storage::{Deletion, Store};

use super::Tier;
use crate::lifecycle::audit::Audit;
use crate::{DaemonError, lifecycle};

impl Tier {
    /// Steps 1 to 3, for those of the segments that lie in the tier; the others are forgotten
    /// alike. Gives what became of what lay on volumes.
    ///
    /// # Errors
    /// `Audit`: nothing is forgotten then. `Store`: the next start goes on.
    pub(crate) fn begin_forgetting(
        &self,
        store: &Store,
        lives: &[LifeId],
    ) -> Result<Vec<Deletion>, DaemonError> {
        let mut list = self.list();
        let rows = &list.content().rows;
        let named = |row: &&Row| lives.contains(&row.entry.life);
        let rows: Vec<Row> = rows.values().filter(named).cloned().collect();
        for row in &rows {
            list.forgetting(row.entry.life)?;
        }
        self.show(&list);
        store.hide_tiered(&rows.iter().map(|row| row.entry.clone()).collect::<Vec<_>>())?;
        let catalog = store.catalog(0);
        let there: Vec<LifeId> = catalog
            .segments
            .iter()
            .filter(|segment| segment.entry.hold == 0)
            .map(|segment| segment.entry.life)
            .filter(|life| lives.contains(life))
            .collect();
        Ok(store.forget(&there)?)
    }

    /// Deletes the copies for a hold.
    ///
    /// # Errors
    /// As the steps.
    pub(crate) fn forget_hold(
        &self,
        store: &Store,
        audit: &Audit,
        who: &Who,
        (number, reason): (u32, &str),
    ) -> Result<Vec<Certificate>, DaemonError> {
        let rows = self.list().content().rows.clone();
        let copies = rows.values().filter(|row| row.entry.hold == number);
        let lives: Vec<LifeId> = copies.map(|row| row.entry.life).collect();
        let deletions = self.begin_forgetting(store, &lives)?;
        let finish = |deletion| lifecycle::finish(store, audit, who, reason, deletion);
        let mut done = deletions.iter().map(finish).collect::<Result<Vec<_>, _>>()?;
        done.extend(self.finish_forgetting(store, audit, who, reason)?);
        Ok(done)
    }

    /// Steps 4 to 8, for all that is to go.
    ///
    /// # Errors
    /// `Object`, `Audit`: what is left is tried again.
    pub(crate) fn finish_forgetting(
        &self,
        store: &Store,
        audit: &Audit,
        who: &Who,
        reason: &str,
    ) -> Result<Vec<Certificate>, DaemonError> {
        let rows = self.list().content().rows.clone();
        let rows: Vec<Row> = rows.into_values().filter(|row| row.forgetting).collect();
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let erase = |row: &Row| {
            let of = row.store.unwrap_or(store.id());
            self.erase_keys(of, row.entry.life)?;
            let flows = self.erase_flows(of, row)?;
            self.erase(&segment_object(of, row.entry.life))?;
            Ok(Erased { bytes: content_bytes(&row.entry), flows, ..Erased::from(&row.entry) })
        };
        let done = rows.iter().map(erase).collect::<Result<Vec<_>, _>>();
        let segments = self.watched(|trouble| &mut trouble.forgetting, done)?;
        let erasure = Erasure {
            store: store.id().to_string(),
            volume: rows[0].volume,
            path: self.objects.describe(),
            reason: reason.to_owned(),
            level: store.is_sealed().then(|| ForgetLevel::L0.to_string()),
            epoch: 0,
            segments,
        };
        let certificate = audit.certify(who, erasure)?;
        let mut list = self.list();
        for row in &rows {
            list.gone(row.entry.life)?;
        }
        self.show(&list);
        drop(list);
        let segments = rows.len();
        tracing::info!(segments, reason, "segments were deleted from the tier");
        Ok(vec![certificate])
    }

    /// Goes on with what a crash, or a silent service, left.
    pub(crate) fn resume(&self, store: &Store, audit: &Audit) -> Result<(), DaemonError> {
        let rows = self.list().content().rows.clone();
        let forgetting = rows.values().filter(|row| row.forgetting);
        let lives: Vec<LifeId> = forgetting.map(|row| row.entry.life).collect();
        if lives.is_empty() {
            return Ok(());
        }
        let reason = "begun before";
        for deletion in self.begin_forgetting(store, &lives)? {
            lifecycle::finish(store, audit, &Who::Recorder, reason, &deletion)?;
        }
        self.finish_forgetting(store, audit, &Who::Recorder, reason).map(drop)
    }

    /// Deletes an object and looks that it is gone.
    pub(super) fn erase(&self, name: &str) -> Result<(), DaemonError> {
        self.objects.delete(name)?;
        match self.objects.bytes(name)? {
            None => Ok(()),
            Some(_) => Err(DaemonError::Object(ObjectError {
                place: self.objects.describe(),
                doing: "delete",
                name: name.to_owned(),
                fault: ObjectFault::Failed,
                why: "it is still there".to_owned(),
            })),
        }
    }
}
