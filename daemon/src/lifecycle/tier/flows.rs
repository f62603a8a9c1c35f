//! Flows of segments in the tier, as Parquet beside them: for programs that ask the flows of many
//! recorders and read no packets. They are not sealed; that is the operator's choice.
//!
//! The list says that flows are due before anything of them lies there, so that whatever forgets a
//! segment knows of them as well. An attempt that was cut off is made anew: a file is replaced by
//! one of the same rows.

use std::ops::ControlFlow;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;

use wirevault_format::table::SegmentEntry;
use wirevault_format::{LifeId, StoreId};
use wirevault_index::Segment;
use wirevault_lifecycle::tier::{Flows, Row};
use wirevault_media::ObjectFault;
use wirevault_query::export::FlowFile;
use wirevault_query::time::partition;
use wirevault_query::{FlowRow, segment_flows};
use wirevault_storage::Store;

use super::Tier;
use crate::DaemonError;

/// Name of the object with the flows of a segment: by day and hour of its first packet in UTC, as
/// programs want it that choose files by their paths.
pub(super) fn flows_object(store: StoreId, entry: &SegmentEntry) -> String {
    let partition = partition(entry.times_ns.unwrap_or_default().0);
    format!("flows/{partition}/appliance={store}/{}.parquet", entry.life)
}

impl Tier {
    /// What the flows of a segment that goes there are to become. Copies for holds have none:
    /// their packets are those of other segments.
    pub(super) fn flows_wanted(&self, entry: &SegmentEntry) -> Flows {
        match self.options.flows && entry.hold == 0 && entry.packets > 0 {
            true => Flows::Due,
            false => Flows::None,
        }
    }

    /// Puts the flows that are due, until `stop`.
    ///
    /// # Errors
    /// As [`Tier::put_flows`]; those behind it were not tried.
    pub(super) fn put_due_flows(
        &self,
        store: &Store,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), DaemonError> {
        let is_due = |row: &&Row| row.flows == Flows::Due && !row.forgetting;
        let due: Vec<LifeId> = {
            let list = self.list();
            list.content().rows.values().filter(is_due).map(|row| row.entry.life).collect()
        };
        for life in due {
            if stop() {
                break;
            }
            self.put_flows(store, life)?;
        }
        Ok(())
    }

    /// Puts the flows of a segment beside it, if they are due.
    ///
    /// # Errors
    /// `Window`, `Object`, `Unlike`, `Audit`: they stay due.
    pub(super) fn put_flows(&self, store: &Store, life: LifeId) -> Result<(), DaemonError> {
        // Whoever deletes flows waits, and then finds what was put.
        let _alone = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        let row = self.list().content().rows.get(&life).cloned();
        let due = row.filter(|row| row.flows == Flows::Due && !row.forgetting);
        let catalog = store.catalog(0);
        let segment = catalog.segments.iter().find(|segment| segment.entry.life == life);
        let Some((row, segment)) = due.zip(segment) else { return Ok(()) };
        let name = flows_object(row.store.unwrap_or(store.id()), &row.entry);
        let bytes = parquet(segment)?;
        let put = || {
            let mut piece = Some(bytes.clone());
            self.objects.put(&name, &mut || Ok(piece.take()))
        };
        match put() {
            Err(error) if error.fault == ObjectFault::Exists => {
                self.objects.delete(&name)?;
                put()?;
            }
            done => done?,
        }
        let there = self.objects.bytes(&name)?.unwrap_or(0);
        let same = there == bytes.len() as u64 && self.objects.read(&name, 0..there)? == bytes;
        if !same {
            let what = "it is not what was put".to_owned();
            return Err(DaemonError::Unlike { name, place: self.objects.describe(), what });
        }
        Ok(self.list().flows(life)?)
    }

    /// Deletes the flows of a segment, if they are there or may be. Gives their name.
    pub(super) fn erase_flows(
        &self,
        store: StoreId,
        row: &Row,
    ) -> Result<Option<String>, DaemonError> {
        if row.flows == Flows::None {
            return Ok(None);
        }
        let _alone = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        let name = flows_object(store, &row.entry);
        self.erase(&name)?;
        Ok(Some(name))
    }
}

/// The flows of a segment.
fn parquet(segment: &Segment) -> Result<Vec<u8>, DaemonError> {
    let mut file = FlowFile::new(Vec::new());
    let mut out = |row: &FlowRow| file.row(row).map(|()| ControlFlow::Continue(()));
    let summary = segment_flows(segment, &mut out, &AtomicBool::new(false))?;
    let what = "writing flows as Parquet";
    file.finish(&summary).map_err(|source| DaemonError::System { what, source })
}
