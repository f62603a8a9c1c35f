//! The same without a daemon: in a store that nobody else has open for writing.

use std::path::Path;
use std::sync::Arc;

use wirevault_format::StoreId;
use wirevault_index::{Catalog, KeySource};
use wirevault_lifecycle::AuditError;
use wirevault_lifecycle::audit::{self, AuditLog, Event, Who};
use wirevault_lifecycle::certificate::{Certificate, Erasure, certify};
use wirevault_lifecycle::holds::HoldList;
use wirevault_lifecycle::retention::Step;
use wirevault_storage::{HoldUse, RESERVE_PERCENT, Store};
use wirevault_telemetry::clock::{Clock, SystemClock};

use super::deleting::{BATCH, delete_free, settle};
use super::hold_rows::rows;
use super::holds::Holds;
use crate::DaemonError;
use crate::api::{HoldBody, HoldsReport};
use crate::lifecycle::audit::Audit;
use crate::lifecycle::tier::{self, Tier};

/// A store with its log and its holds, and the user who opened it.
struct Opened {
    store: Store,
    audit: Arc<Audit>,
    holds: Holds,
    tier: Option<Arc<Tier>>,
    who: Who,
}

impl Opened {
    /// Opens a store for writing, and finishes what a crash left of deletions. Its tier is that of
    /// a configuration, or else where segments lie already.
    fn new(
        volume: &Path,
        key: &KeySource,
        config: Option<&wirevault_config::Tier>,
    ) -> Result<Self, DaemonError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let (mut store, recovery) = Store::open_dir(volume, key, Arc::clone(&clock))?;
        store.set_reserve(RESERVE_PERCENT);
        let audit = Arc::new(Audit::open(volume, store.id(), clock)?);
        settle(&store, &audit, &recovery.deletions)?;
        let tier = match config {
            Some(config) => Some(Tier::of_config(config, &store, key, audit.folder())?),
            None => tier::of_store(&store, key, audit.folder())?,
        };
        let holds = Holds::open(audit.folder())?.with_tier(tier.clone());
        // Copies for holds take room, too.
        store.set_witness(holds.witness(&store, &audit));
        holds.begin(&store);
        Ok(Self { store, audit, holds, tier, who: user() })
    }
}

/// Who runs this program.
pub(crate) fn user() -> Who {
    let uid = nix::unistd::Uid::current().as_raw();
    Who::User { uid, gid: nix::unistd::Gid::current().as_raw() }
}

/// The log of a store of which not all volumes are there. Whoever has it sees to it that nobody
/// else writes the store.
pub struct Notes {
    log: AuditLog,
    who: Who,
}

impl Notes {
    /// Of the store whose first volume this is. A log that is not there begins.
    ///
    /// # Errors
    /// As [`AuditLog::open`].
    pub fn open(first: &Path, store: StoreId) -> Result<Self, AuditError> {
        let folder = audit::folder_of(first, &store.to_string());
        Ok(Self { log: AuditLog::open(&folder, Arc::new(SystemClock))?, who: user() })
    }

    /// Writes down what this user does next.
    ///
    /// # Errors
    /// The system's: then it is not done.
    pub fn write(&self, event: Event) -> Result<(), AuditError> {
        self.log.append(self.who.clone(), event).map(drop)
    }

    /// Writes down what is gone.
    ///
    /// # Errors
    /// As [`certify`].
    pub fn certify(&self, erasure: Erasure) -> Result<Certificate, AuditError> {
        certify(&self.log, self.who.clone(), erasure)
    }
}

/// Deletes in a store, and moves segments to the tier of a configuration. Gives the certificates
/// and the number of segments that moved.
///
/// # Errors
/// The store cannot be opened for writing, or the deletion is cut off: opening it again, by
/// whatever writes it, finishes what was begun. `Held`. What moving says.
pub fn apply_offline(
    volume: &Path,
    key: &KeySource,
    tier: Option<&wirevault_config::Tier>,
    steps: &[Step],
) -> Result<(Vec<Certificate>, u64), DaemonError> {
    let Opened { store, audit, holds, tier, who } = Opened::new(volume, key, tier)?;
    let mut certificates = Vec::new();
    for batch in steps.chunks(BATCH) {
        certificates.extend(delete_free(&store, &audit, &holds, &who, batch)?);
    }
    let moved = match tier {
        Some(tier) => tier.follow(&store, &audit, &who, steps, &|| false)?,
        None => 0,
    };
    Ok((certificates, moved))
}

/// Adds a hold to a store, and copies what it wants.
///
/// # Errors
/// The store cannot be opened for writing; `Hold`, `Filter`, `Window`.
pub fn add_hold(
    volume: &Path,
    key: &KeySource,
    body: HoldBody,
) -> Result<HoldsReport, DaemonError> {
    let Opened { store, audit, holds, who, .. } = Opened::new(volume, key, None)?;
    holds.add(&store, &audit, &who, body, SystemClock.unix_ns())
}

/// Releases a hold of a store.
///
/// # Errors
/// The store cannot be opened for writing, or the deletion of the copies is cut off; `Hold`.
pub fn release_hold(
    volume: &Path,
    key: &KeySource,
    name: &str,
) -> Result<HoldsReport, DaemonError> {
    let Opened { store, audit, holds, who, .. } = Opened::new(volume, key, None)?;
    holds.release(&store, &audit, &who, name)
}

/// The holds of a store, which is only read.
///
/// # Errors
/// `Audit`: the list does not read.
pub fn holds_of(volume: &Path, catalog: &Catalog) -> Result<HoldsReport, DaemonError> {
    let list = HoldList::load(&audit::folder_of(volume, &catalog.store.to_string()))?;
    let mut taken = std::collections::BTreeMap::<u32, HoldUse>::new();
    for copy in catalog.segments.iter().filter(|segment| segment.entry.hold != 0) {
        let used = taken.entry(copy.entry.hold).or_default();
        used.segments += 1;
        used.bytes += copy.entry.file_bytes;
    }
    let used_bytes = taken.values().map(|used| used.bytes).sum();
    let holds = rows(&list, taken, |_| None);
    Ok(HoldsReport { holds, used_bytes, ..HoldsReport::default() })
}
