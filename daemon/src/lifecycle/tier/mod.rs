//! The object tier: where closed segments go that the volumes have no room for, and come back from
//! in answers.
//!
//! ```text
//!  rule, drain ─► list: coming ─► put segment ─► read it back ─► put key ─► open it there
//!                 ─► list: kept ─► local may go
//!  rule, person ─► list: forgetting ─► hide ─► local goes ─► key goes ─► bytes go ─► list: gone
//! ```
//! Each arrow is durable before the next. A crash leaves a segment in both places, or objects of
//! one that the list says is coming: the next attempt takes them for what they are if they are the
//! same, and they go if there is none, because the segment is deleted or the quota took it.
//!
//! Files: `moving` (there), `keys` (another key), `flows` (Parquet beside it), `forgetting` (gone),
//! `offline` (for readers without a recorder). Here is what they share, and the thread that follows
//! the rules.

mod flows;
mod forgetting;
mod keys;
mod moving;
mod offline;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use wirevault_config::TierFlows;
use wirevault_format::table::{SegmentEntry, SegmentState};
use wirevault_format::{LifeId, StoreId};
use wirevault_index::tier::content_bytes;
use wirevault_index::{IndexError, KeySource, Segment, TierCopy, TierKey, Tiered};
use wirevault_lifecycle::audit::Who;
use wirevault_lifecycle::retention::{Action, Step};
use wirevault_lifecycle::tier::{Row, TierList};
use wirevault_media::{ObjectError, Objects};
use wirevault_storage::Store;

use crate::DaemonError;
use crate::api::TierStatus;
use crate::duty::Duty;
use crate::lifecycle::audit::Audit;
use crate::lifecycle::planned;
use crate::server::App;

pub use offline::attach;
pub(crate) use offline::of_store;

/// How often the rules are asked, and what failed is tried again.
const PERIOD: Duration = Duration::from_secs(60);

/// The tier of a store that is being written.
pub(crate) struct Tier {
    objects: Arc<dyn Objects>,
    options: TierOptions,
    /// Held while something is entered or goes, never while the service is waited for.
    list: Mutex<TierList>,
    /// What the status tells of the list; it never waits for a device.
    shown: Mutex<TierStatus>,
    /// One segment moves at a time.
    moving: Mutex<()>,
    /// Which.
    under_way: Mutex<Option<LifeId>>,
    /// One deletion goes on at a time, of what somebody wants gone or of what was left.
    forgetting: Mutex<()>,
    /// Flows are put or deleted, of one segment at a time.
    flows: Mutex<()>,
    /// Keys are put or deleted, of one segment at a time.
    rekeying: Mutex<()>,
    /// What wraps the keys of the own store (`None`), and of those whose place it took; nothing in
    /// a plain one.
    keys: BTreeMap<Option<StoreId>, TierKey>,
    trouble: Mutex<Trouble>,
}

/// Why something did not move or go, the last time; nothing once it did.
#[derive(Debug, Default)]
struct Trouble {
    moving: Option<String>,
    flows: Option<String>,
    keys: Option<String>,
    forgetting: Option<String>,
}

/// How the tier is used.
#[derive(Debug, Clone)]
pub(crate) struct TierOptions {
    /// Where it is.
    pub(crate) url: String,
    /// Bytes a second at most, there and for the reading back.
    pub(crate) rate: Option<u64>,
    /// What lies on the volumes stays until the quota takes it.
    pub(crate) keep_local: bool,
    /// Flows of what goes there lie beside it as Parquet.
    pub(crate) flows: bool,
}

impl Tier {
    /// Opens the list of a tier and shows what it says to whoever asks the store.
    ///
    /// # Errors
    /// `Audit`: the list does not read, or segments lie at another place.
    pub(crate) fn open(
        options: TierOptions,
        objects: Arc<dyn Objects>,
        store: &Store,
        key: &KeySource,
        folder: &Path,
    ) -> Result<Self, DaemonError> {
        let list = TierList::open(folder, &options.url)?;
        let own = store.key_provider().map(|own| (None, Ok(own)));
        let former = list.content().rows.values().filter_map(|row| row.store);
        let former: BTreeSet<StoreId> = former.collect();
        let former = former.into_iter();
        let former = former.filter_map(|it| Some((Some(it), store.key_provider_of(it, key)?)));
        let keys = own.into_iter().chain(former).collect();
        let list = Mutex::new(list);
        let shown = Mutex::new(TierStatus { url: options.url.clone(), ..TierStatus::default() });
        let tier = Self {
            objects,
            options,
            list,
            shown,
            moving: Mutex::default(),
            under_way: Mutex::default(),
            forgetting: Mutex::default(),
            flows: Mutex::default(),
            rekeying: Mutex::default(),
            keys,
            trouble: Mutex::default(),
        };
        tier.show(&tier.list());
        let rows: Vec<Row> = tier.list().content().rows.values().cloned().collect();
        let kept = rows.iter().filter(|row| !row.forgetting);
        store.show_tiered(&kept.map(|row| tier.tiered(store, row)).collect::<Vec<_>>());
        Ok(tier)
    }

    /// The tier that a configuration names.
    ///
    /// # Errors
    /// As [`objects`] and [`Tier::open`].
    pub(crate) fn of_config(
        config: &wirevault_config::Tier,
        store: &Store,
        key: &KeySource,
        folder: &Path,
    ) -> Result<Arc<Self>, DaemonError> {
        let (rate, keep_local) = (config.rate_bytes, config.keep_local);
        let flows = config.flows == TierFlows::Parquet;
        let options = TierOptions { url: config.url.clone(), rate, keep_local, flows };
        let objects = objects(&config.url)?;
        Ok(Arc::new(Self::open(options, objects, store, key, folder)?))
    }

    /// Moves what these steps name, so far as it is still there. Ends early at `stop`. A segment
    /// that does not read here, or whose name is taken there, does not keep others from moving.
    ///
    /// # Errors
    /// The first that did not move; if the tier was why, those behind it were not tried.
    pub(crate) fn follow(
        &self,
        store: &Store,
        audit: &Audit,
        who: &Who,
        steps: &[Step],
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<u64, DaemonError> {
        let (mut moved, mut stays) = (0, None);
        for step in steps.iter().filter(|step| step.action == Action::Tier) {
            if stop() {
                break;
            }
            let catalog = store.catalog(0);
            let named = |it: &&Arc<Segment>| it.entry.life.to_string() == step.life;
            if let Some(segment) = catalog.segments.iter().find(named) {
                match self.take(store, audit, who, segment, &step.reason, stop) {
                    Ok(()) => moved += 1,
                    Err(error) if is_of_segment(&error) => drop(stays.get_or_insert(error)),
                    Err(error) => return Err(error),
                }
            }
        }
        let put = self.put_due_flows(store, stop);
        self.watched(|trouble| &mut trouble.flows, put)?;
        if let Some(error) = &stays {
            let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
            trouble.moving = Some(error.chain());
        }
        stays.map_or(Ok(moved), Err)
    }

    /// Moves everything that is closed, until it is `late`: the machine goes away. Copies for holds
    /// come first, then what the rules would move, then the youngest. What closes meanwhile stays.
    /// Says how many segments moved, and how many did not.
    pub(crate) fn drain(
        &self,
        store: &Store,
        audit: &Audit,
        who: &Who,
        planned: &[Step],
        late: &(dyn Fn() -> bool + Sync),
    ) -> (u64, u64) {
        let wanted: HashSet<&str> = planned
            .iter()
            .filter(|step| step.action == Action::Tier)
            .map(|step| step.life.as_str())
            .collect();
        let catalog = store.catalog(0);
        let here =
            |it: &&Arc<Segment>| it.entry.state == SegmentState::Closed && it.tier().is_none();
        let mut segments: Vec<_> = catalog.segments.iter().filter(here).collect();
        segments.sort_by_key(|segment| {
            let entry = &segment.entry;
            let later = (entry.hold == 0, !wanted.contains(entry.life.to_string().as_str()));
            (later, std::cmp::Reverse(entry.ordinal))
        });
        let all = segments.len() as u64;
        let in_time = segments.into_iter().take_while(|_| !late());
        // What failed is told by the status.
        let moved = in_time
            .filter(|segment| self.take(store, audit, who, segment, "drain", late).is_ok())
            .count() as u64;
        (moved, all - moved)
    }

    /// How it stands, for the status.
    pub(crate) fn status(&self) -> TierStatus {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
        TierStatus { trouble: self.trouble(), ..shown }
    }

    /// The list has changed.
    fn show(&self, list: &TierList) {
        let rows = &list.content().rows;
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.segments = rows.len() as u64;
        shown.bytes = rows.values().map(|row| content_bytes(&row.entry)).sum();
        shown.forgetting = rows.values().filter(|row| row.forgetting).count() as u64;
    }

    /// Why something did not move or go.
    pub(crate) fn trouble(&self) -> Option<String> {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let Trouble { moving, flows, keys, forgetting } = &*trouble;
        moving.as_ref().or(flows.as_ref()).or(keys.as_ref()).or(forgetting.as_ref()).cloned()
    }

    fn list(&self) -> MutexGuard<'_, TierList> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tiered(&self, store: &Store, row: &Row) -> Tiered {
        let objects = Arc::clone(&self.objects);
        let (of, key) = (row.store.unwrap_or(store.id()), self.keys.get(&row.store));
        let copy = TierCopy::new(objects, of, &row.entry, key);
        let (entry, volume, place) = (row.entry.clone(), row.volume, row.place);
        Tiered { entry, volume, place, copy: Arc::new(copy) }
    }

    /// Keeps what went wrong for the status; a line in the log for each change.
    fn watched<T>(
        &self,
        which: fn(&mut Trouble) -> &mut Option<String>,
        done: Result<T, DaemonError>,
    ) -> Result<T, DaemonError> {
        let told = done.as_ref().err().map(DaemonError::chain);
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let before = which(&mut trouble);
        match (&*before, &told) {
            (None, None) => {}
            (Some(_), None) => tracing::info!("the tier does as it is told again"),
            (before, Some(now)) if before.as_ref() == Some(now) => {}
            (_, Some(now)) => tracing::error!("the tier: {now}"),
        }
        *before = told;
        done
    }
}

/// Whether a segment is on a volume.
fn is_here(store: &Store, entry: &SegmentEntry) -> bool {
    store.catalog(0).segments.get(entry).is_some_and(|segment| segment.media().is_some())
}

/// Whether others may move although this one does not: its key is not for this machine, its bytes
/// do not read, or its name is taken.
fn is_of_segment(error: &DaemonError) -> bool {
    match error {
        DaemonError::Unlike { .. } => true,
        DaemonError::Read(IndexError::Io { source, .. }) => ObjectError::behind(source).is_none(),
        DaemonError::Read(_) => true,
        _ => false,
    }
}

/// The place that a URL names.
///
/// # Errors
/// `System`: this build, or this machine, cannot open it.
pub(crate) fn objects(url: &str) -> Result<Arc<dyn Objects>, DaemonError> {
    let what = "opening the object tier";
    wirevault_cloud::objects(url).map_err(|source| DaemonError::System { what, source })
}

/// Begins to move what the rules say, if there is a tier: what a crash left, then once a minute.
pub(crate) fn moving(app: &App) -> Option<Duty> {
    let (app, tier) = (app.clone(), app.facts().tier.clone()?);
    Duty::start("tier", "moves segments to the tier", move |_| {
        let began = Instant::now();
        if let Some(pipeline) = app.pipeline() {
            let (store, audit) = (pipeline.store(), app.audit());
            let stopping = || app.is_stopping();
            // What fails is told by the status, and tried again.
            let _ = tier.resume(store, audit);
            let _ = tier.follow_key(store, &stopping);
            let steps = planned(&app, &app.rules());
            let _ = tier.follow(store, audit, &Who::Recorder, &steps, &stopping);
        }
        PERIOD.saturating_sub(began.elapsed())
    })
}
