//! Checkpoints of the recorder's state: the thread that takes them, and putting one back.
//!
//! ```text
//!  every `snapshots.every`, an order, the end ─► entry `checkpoint`, durable
//!     ─► audit log, holds, configuration, catalog ─► pieces ─► manifest ─► old ones go
//! ```
//! The entry that says that it is taken is in it: whoever restores it sees with what the log goes
//! on. What a checkpoint is made of is in [`wirevault_lifecycle::snapshot`].

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::post;
use wirevault_config::Config;
use wirevault_format::StoreId;
use wirevault_index::lost::{self, LostStores};
use wirevault_index::{KeySource, SharedCatalog, open_store};
use wirevault_lifecycle::audit::{self, AuditLog, Event, Who};
use wirevault_lifecycle::snapshot::{self, Manifest, Restored, SnapshotError, Snapshots};
use wirevault_lifecycle::tier;
use wirevault_media::{DirMedia, open_volume};
use wirevault_telemetry::clock::{Clock, SystemClock};

use crate::DaemonError;
use crate::api::{self, SnapshotStatus};
use crate::duty::Duty;
use crate::lifecycle::audit::Audit;
use crate::report::status::VERSION;
use crate::server::App;
use crate::server::access::Asker;
use crate::server::answers;
use crate::server::json::done;

/// Takes checkpoints, one at a time.
pub(crate) struct Checkpoints {
    options: wirevault_config::Snapshots,
    config: Mutex<String>,
    store: StoreId,
    catalog: Arc<SharedCatalog>,
    /// The folder, while it works.
    folder: Mutex<Option<Snapshots>>,
    /// What the status tells; it never waits for a disk.
    shown: Mutex<SnapshotStatus>,
}

impl Checkpoints {
    /// Of the store that this catalog is of; `None` if the configuration wants none. Nothing is
    /// opened yet.
    pub(crate) fn of(config: &Config, store: StoreId, catalog: Arc<SharedCatalog>) -> Option<Self> {
        let options = config.snapshots.clone()?;
        let folder = options.folder.display().to_string();
        let shown = Mutex::new(SnapshotStatus { folder, ..SnapshotStatus::default() });
        let (config, folder) = (Mutex::new(config.text.clone()), Mutex::default());
        Some(Self { options, config, store, catalog, folder, shown })
    }

    /// From here on this is the configuration that is kept.
    pub(crate) fn set_config(&self, text: &str) {
        text.clone_into(&mut self.config.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Takes one. It is durable on return.
    ///
    /// # Errors
    /// In words; the status tells it until one is taken.
    pub(crate) fn take(&self, audit: &Audit, who: &Who) -> Result<SnapshotStatus, String> {
        let mut folder = self.folder.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = self.taken(&mut folder, audit, who);
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        match taken {
            Ok(manifest) => {
                let Manifest { number, time_ns, .. } = manifest;
                tracing::info!(checkpoint = number, "the state is in a checkpoint");
                shown.checkpoint = Some(number);
                shown.taken = Some(time_ns.into());
                (shown.bytes, shown.trouble) = (manifest.bytes(), None);
                Ok(shown.clone())
            }
            Err(error) => {
                // What it knows of the folder may not hold after that.
                *folder = None;
                let why = DaemonError::from(error).chain();
                tracing::error!("the state is in no new checkpoint: {why}");
                shown.trouble = Some(why.clone());
                Err(why)
            }
        }
    }

    fn taken(
        &self,
        folder: &mut Option<Snapshots>,
        audit: &Audit,
        who: &Who,
    ) -> Result<Manifest, SnapshotError> {
        let path = &self.options.folder;
        let snapshots = match folder {
            Some(snapshots) => snapshots,
            None => {
                let media = DirMedia::create(path).map_err(|error| SnapshotError::Io {
                    folder: path.display().to_string(),
                    what: "open the folder".to_owned(),
                    source: std::io::Error::other(error),
                })?;
                let store = self.store.to_string();
                folder.insert(Snapshots::open(Arc::new(media), &store, self.options.keep)?)
            }
        };
        let (checkpoint, folder) = (snapshots.next(), path.display().to_string());
        audit.write(who, Event::Checkpoint { checkpoint, folder })?;
        let now_ns = SystemClock.unix_ns();
        let catalog = lost::encode(&self.catalog.take(now_ns));
        let config = self.config.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let files = snapshot::state(audit.folder(), &config, catalog)?;
        let manifest = snapshots.take(&files, now_ns, VERSION)?;
        if let Err(error) = snapshots.prune() {
            tracing::warn!("old checkpoints stay: {error}");
        }
        Ok(manifest)
    }

    /// As the API tells it.
    pub(crate) fn status(&self) -> SnapshotStatus {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Begins to take them, the first one at once. Without a configured folder there is nothing to do.
pub(crate) fn taking(app: &App) -> Option<Duty> {
    let (app, checkpoints) = (app.clone(), app.facts().snapshots.clone()?);
    Duty::start("snapshots", "takes checkpoints", move |_| {
        // Why it failed is in the status and in the log.
        let _ = checkpoints.take(app.audit(), &Who::Recorder);
        checkpoints.options.every
    })
}

/// The questions of this module.
pub(crate) fn routes() -> Router<App> {
    Router::new().route(api::SNAPSHOT, post(create))
}

async fn create(State(app): State<App>, Extension(asker): Extension<Asker>) -> Response {
    match app.facts().snapshots.clone() {
        Some(checkpoints) => done(move || checkpoints.take(app.audit(), &asker.who)).await,
        None => {
            let why = "the configuration names no folder for checkpoints: add `snapshots`";
            answers::error(StatusCode::CONFLICT, why.to_owned())
        }
    }
}

/// The stores that are gone and whose place the one with this audit log took, without those of
/// their segments that lie in the tier. What does not read is told in words.
pub fn lost_stores(log: &Path) -> (LostStores, Vec<String>) {
    let found = match snapshot::lost(log) {
        Ok(found) => found,
        Err(error) => return (LostStores::default(), vec![error.to_string()]),
    };
    let (mut stores, mut troubles) = (Vec::new(), Vec::new());
    let tiered = match tier::read(log) {
        Ok(content) => content.rows,
        Err(error) => {
            troubles.push(error.to_string());
            BTreeMap::new()
        }
    };
    for it in found {
        match lost::decode(&it.catalog, &it.store, it.checkpoint) {
            Ok(mut store) => {
                store.segments.retain(|segment| !tiered.contains_key(&segment.entry.life));
                stores.push(store);
            }
            Err(why) => troubles.push(format!(
                "what was lost of store {} cannot be told: its catalog of checkpoint {} beside \
                 the audit log: {why}",
                it.store, it.checkpoint
            )),
        }
    }
    (stores.into(), troubles)
}

/// Puts a checkpoint back into a store that nobody writes: its audit log, list of holds and, if
/// the store is another one than the checkpoint's, what of that one's segments is gone.
///
/// # Errors
/// The store does not read or is being written; `Snapshot`, `Audit`.
pub fn restore_into(
    folder: &DirMedia,
    manifest: &Manifest,
    volume: &Path,
) -> Result<Restored, DaemonError> {
    let store = open_store(volume, &KeySource::Recorded)?.store.to_string();
    let _alone = open_volume(volume).and_then(|media| media.lock()).map_err(|error| {
        let source = std::io::Error::other(error);
        DaemonError::System { what: "taking the store for this process alone", source }
    })?;
    let log = audit::folder_of(volume, &store);
    let restored = snapshot::restore(folder, manifest, &log, &store)?;
    let of = |it: &&lost::LostStore| it.checkpoint == manifest.number && it.store == manifest.store;
    let lost_segments =
        lost_stores(&log).0.iter().find(of).map_or(0, |it| it.segments.len() as u64);
    let event = Event::Restored {
        checkpoint: manifest.number,
        store: manifest.store.clone(),
        lost_segments,
    };
    let uid = nix::unistd::Uid::current().as_raw();
    let who = Who::User { uid, gid: nix::unistd::Gid::current().as_raw() };
    AuditLog::open(&log, Arc::new(SystemClock))?.append(who, event)?;
    Ok(restored)
}
