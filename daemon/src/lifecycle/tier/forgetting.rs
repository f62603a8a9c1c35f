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
//! What was [coming](wirevault_lifecycle::tier) when its move was cut off, and is on no volume any
//! more, goes the same way, whoever deleted it there: the quota, too.
//!
//! Deleting an object is as much as the service makes of it: in a bucket with versions the key
//! stays readable for whoever may read old versions.

use std::num::NonZeroU32;
use std::sync::PoisonError;

use wirevault_format::LifeId;
use wirevault_index::tier::{content_bytes, segment_object};
use wirevault_lifecycle::audit::Who;
use wirevault_lifecycle::certificate::{Certificate, Erased, Erasure};
use wirevault_lifecycle::tier::Row;
use wirevault_media::{ObjectError, ObjectFault};
use wirevault_seal::ForgetLevel;
use wirevault_storage::{Deletion, Store};

use super::{Tier, is_here};
use crate::DaemonError;
use crate::lifecycle::audit::Audit;
use crate::lifecycle::deleting::{BEGUN_BEFORE, finish};

impl Tier {
    /// All steps, for those of the segments that lie in the tier; the others are forgotten alike.
    /// What was begun before is finished, too, and written down as the recorder's.
    ///
    /// # Errors
    /// `Audit`, `Store`, `Object`: what was begun is tried again.
    pub(crate) fn forget(
        &self,
        store: &Store,
        audit: &Audit,
        who: &Who,
        reason: &str,
        lives: &[LifeId],
    ) -> Result<Vec<Certificate>, DaemonError> {
        // What one is at is not yet what another finds left.
        let _alone = self.forgetting.lock().unwrap_or_else(PoisonError::into_inner);
        self.forget_alone(store, audit, who, reason, lives)
    }

    /// Deletes the copies for a hold.
    ///
    /// # Errors
    /// As [`Tier::forget`].
    pub(crate) fn forget_hold(
        &self,
        store: &Store,
        audit: &Audit,
        who: &Who,
        reason: &str,
        number: NonZeroU32,
    ) -> Result<Vec<Certificate>, DaemonError> {
        let _alone = self.forgetting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = finish(store, audit, who, reason, &store.forget_hold(number)?)?;
        let lives: Vec<LifeId> = {
            let list = self.list();
            let rows = list.content().rows.values().chain(list.content().coming.values());
            let copies = rows.filter(|row| row.entry.hold == number.get());
            copies.map(|row| row.entry.life).collect()
        };
        done.extend(self.forget_alone(store, audit, who, reason, &lives)?);
        Ok(done)
    }

    /// Goes on with what a crash, or a silent service, left.
    pub(crate) fn resume(&self, store: &Store, audit: &Audit) -> Result<(), DaemonError> {
        let _alone = self.forgetting.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = self.list().content().rows.clone();
        let forgetting = rows.values().filter(|row| row.forgetting);
        let lives: Vec<LifeId> = forgetting.map(|row| row.entry.life).collect();
        self.forget_alone(store, audit, &Who::Recorder, BEGUN_BEFORE, &lives).map(drop)
    }

    fn forget_alone(
        &self,
        store: &Store,
        audit: &Audit,
        who: &Who,
        reason: &str,
        lives: &[LifeId],
    ) -> Result<Vec<Certificate>, DaemonError> {
        let deletions = self.begin_forgetting(store, lives)?;
        let mut done = finish(store, audit, who, reason, &deletions)?;
        self.forget_cut_off(store)?;
        let rows = self.list().content().rows.clone();
        let forgetting = rows.into_values().filter(|row| row.forgetting);
        let (now, before): (Vec<_>, Vec<_>) =
            forgetting.partition(|row| lives.contains(&row.entry.life));
        for (who, reason, rows) in [(who, reason, now), (&Who::Recorder, BEGUN_BEFORE, before)] {
            if !rows.is_empty() {
                done.push(self.finish_forgetting(store, audit, who, reason, &rows)?);
            }
        }
        Ok(done)
    }

    /// Steps 1 to 3. Gives what became of what lay on volumes.
    ///
    /// # Errors
    /// `Audit`: nothing is forgotten then. `Store`: the next start goes on.
    fn begin_forgetting(
        &self,
        store: &Store,
        lives: &[LifeId],
    ) -> Result<Vec<Deletion>, DaemonError> {
        if lives.is_empty() {
            return Ok(Vec::new());
        }
        let mut list = self.list();
        let rows = &list.content().rows;
        let named = |row: &&Row| lives.contains(&row.entry.life);
        let rows: Vec<Row> = rows.values().filter(named).cloned().collect();
        for row in &rows {
            list.forgetting(row.entry.life)?;
        }
        self.show(&list);
        store.hide_tiered(&rows.iter().map(|row| row.entry.clone()).collect::<Vec<_>>())?;
        Ok(store.forget(lives)?)
    }

    /// Step 1 for what was coming and is on no volume any more. What is being moved right now is
    /// seen to behind that.
    fn forget_cut_off(&self, store: &Store) -> Result<(), DaemonError> {
        let mut list = self.list();
        let coming = list.content().coming.values().map(|row| &row.entry);
        let mut gone: Vec<LifeId> =
            coming.filter(|entry| !is_here(store, entry)).map(|entry| entry.life).collect();
        // Whoever begins a move after this look finds that the segment is not there.
        let under_way = *self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        gone.retain(|life| Some(*life) != under_way);
        for life in gone {
            list.forgetting(life)?;
        }
        self.show(&list);
        Ok(())
    }

    /// Steps 4 to 8, for one segment at least.
    ///
    /// # Errors
    /// `Object`, `Audit`: what is left is tried again.
    fn finish_forgetting(
        &self,
        store: &Store,
        audit: &Audit,
        who: &Who,
        reason: &str,
        rows: &[Row],
    ) -> Result<Certificate, DaemonError> {
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
        for row in rows {
            list.gone(row.entry.life)?;
        }
        self.show(&list);
        drop(list);
        let segments = rows.len();
        tracing::info!(segments, reason, "segments were deleted from the tier");
        Ok(certificate)
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
