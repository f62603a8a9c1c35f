//! What a store shows of itself: the catalog for queries, the status for people.

use std::sync::{Arc, RwLock};

use wirevault_format::StoreId;
use wirevault_format::superblock::Superblock;
use wirevault_format::table::{RunEntry, RunState, SegmentEntry, SegmentState};
use wirevault_index::{Catalog, Segment, SegmentIndex, SharedCatalog, Volume, catalog};
use wirevault_media::{Erased, Media};

use crate::bad::Verdict;
use crate::room::Budget;
use crate::standing::SharedVolume;
use crate::store::{OpenSegment, Store};
use crate::volume::VolumeWriter;

/// State of a store, for people and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreStatus {
    /// Store.
    pub id: StoreId,
    /// Packets, index and flow data are encrypted.
    pub sealed: bool,
    /// Volumes, by number.
    pub volumes: Vec<VolumeStatus>,
    /// Part of each file system that is left to others.
    pub reserve_percent: u8,
    /// What some lanes may take, and what their segments take now.
    pub budgets: Vec<(Budget, u64)>,
    /// Why the key rings could not be written the last time; capture goes on with spare keys.
    pub key_trouble: Option<String>,
}

/// State of one volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeStatus {
    /// Its place in words.
    pub path: String,
    /// Bytes it may occupy.
    pub quota_bytes: u64,
    /// Bytes that count against the quota: its own file, closed segments, and open ones at full
    /// size.
    pub used_bytes: u64,
    /// Segments, open ones included.
    pub segments: u32,
    /// Of them open.
    pub open_segments: u32,
    /// Places for segments.
    pub places: u32,
    /// Of them bad: they take no segment any more.
    pub bad_places: u32,
    /// Bytes of a full segment.
    pub segment_bytes: u64,
    /// Spare keys at hand; 0 in plain stores.
    pub spare_keys: usize,
    /// `None` while it works; else the failure after which it takes no more writes.
    pub failed: Option<String>,
    /// A write or flush of a segment failed here. For some time segments open here only if no other
    /// volume takes one, then one on trial.
    pub suspect: Option<String>,
    /// Why the last segment that was to open here found no room.
    pub refused: Option<String>,
    /// What became of the bytes of segments that were given up since it was opened.
    pub erased: Erased,
    /// A call on its tables or files takes longer than it may.
    pub hangs: bool,
    /// When a segment was last to open here, others' files left less than the quota.
    pub squeezed: bool,
}

impl VolumeStatus {
    /// What its bad places say of it.
    pub fn verdict(&self) -> Verdict {
        Verdict::of(self.bad_places, self.places)
    }
}

impl Store {
    /// What queries may look at now. Open segments are in it once they are shown.
    pub fn catalog(&self, now_ns: u64) -> Catalog {
        self.shared.take(now_ns)
    }

    /// Where the newest catalog can be taken without asking the store.
    pub fn shared_catalog(&self) -> Arc<SharedCatalog> {
        Arc::clone(&self.shared)
    }

    /// State of the store. Waits for no device.
    pub fn status(&self) -> StoreStatus {
        let budget = |budget: &Budget| {
            let each = self.volumes.iter().map(|it| it.ledger().lanes_bytes(&budget.lanes));
            (budget.clone(), u64::try_from(each.sum::<u128>()).unwrap_or(u64::MAX))
        };
        StoreStatus {
            id: self.id,
            sealed: self.is_sealed(),
            volumes: self.volumes.iter().map(SharedVolume::status).collect(),
            reserve_percent: self.reserve_percent,
            budgets: self.budgets.iter().map(budget).collect(),
            key_trouble: self.desk().key_trouble.clone(),
        }
    }
}

/// How queries get to see an open segment.
pub(crate) struct Showing {
    shared: Arc<SharedCatalog>,
    pub(crate) media: Arc<dyn Media>,
    number: u16,
}

impl Showing {
    pub(crate) fn new(shared: &Arc<SharedCatalog>, volume: &VolumeWriter) -> Self {
        let (number, media) = (volume.superblock().number, Arc::clone(&volume.volume.media));
        Self { shared: Arc::clone(shared), media, number }
    }
}

impl OpenSegment {
    /// How many flushes of the volume's tables and files have failed; see [`Media::failed_syncs`].
    pub fn failed_syncs(&self) -> u64 {
        self.showing.media.failed_syncs()
    }

    /// Shows the segment to queries from now on, with the index of its durable chunks, until its
    /// table entry changes. Without this an open segment holds nothing durable and is left out.
    pub fn show(&self, index: Arc<RwLock<SegmentIndex>>) {
        let Showing { shared, media, number } = &self.showing;
        let (entry, media, keys) = (self.entry.clone(), Arc::clone(media), self.keys.clone());
        let segment = Arc::new(Segment::live(entry, *number, self.place, media, keys, index));
        shared.change(|catalog| catalog.segments = catalog.segments.with(Arc::clone(&segment)));
    }
}

/// The catalog of volumes that were just opened: what a crash left open is in it as interrupted.
pub(crate) fn catalog(volumes: &[VolumeWriter]) -> Catalog {
    let mut segments = Vec::new();
    for volume in volumes {
        for (place, entry) in volume.entries().iter().enumerate() {
            if entry.is_readable() {
                segments.push(Segment::stored(&volume.volume, place as u32, entry.clone()));
            }
        }
    }
    segments.sort_by_key(|segment| segment.entry.ordinal);
    // The watermark of one segment may stand in the headers of the next, so all interrupted ones
    // are looked at before any is changed.
    catalog::set_watermarks(&mut segments);
    let superblocks = || volumes.iter().map(VolumeWriter::superblock);
    let runs = volumes.first().map_or(&[][..], VolumeWriter::runs);
    Catalog {
        store: superblocks().next().map_or_else(StoreId::default, |first| first.store),
        segments: segments.into_iter().map(Arc::new).collect(),
        runs: in_order(runs),
        missing_volumes: Vec::new(),
        lost: Arc::default(),
        replaced_ns: superblocks().map(Superblock::replaced_ns).max().unwrap_or(0),
        evicted_live_ns: superblocks().map(|it| it.evicted_live_ns).max().unwrap_or(0),
        evicted_import_ns: superblocks().map(|it| it.evicted_import_ns).max().unwrap_or(0),
        now_ns: 0,
        durable_until_ns: None,
    }
}

/// Shows changed entries of a segment table; `before` are the same entries as they were.
pub(crate) fn show_segments(
    shared: &SharedCatalog,
    volume: &Volume,
    before: &[SegmentEntry],
    changes: &[(u32, SegmentEntry)],
) {
    let closed = |(_, entry): &&(u32, SegmentEntry)| entry.state == SegmentState::Closed;
    let come: Vec<_> = changes.iter().filter(closed).collect();
    shared.change(|catalog| {
        for entry in before.iter().filter(|entry| entry.is_readable()) {
            catalog.segments = catalog.segments.without_local(entry);
        }
        for (place, entry) in &come {
            let tier = catalog.segments.get(entry).and_then(|known| known.tier().cloned());
            let segment = Segment::stored(volume, *place, entry.clone());
            let segment = if tier.is_some() { segment.with_tier(tier) } else { segment };
            catalog.segments = catalog.segments.with(Arc::new(segment));
        }
    });
}

/// Shows a changed run table.
pub(crate) fn show_runs(shared: &SharedCatalog, runs: &[RunEntry]) {
    let runs = in_order(runs);
    shared.change(|catalog| catalog.runs = Arc::clone(&runs));
}

/// Shows what was given up for the quota.
pub(crate) fn show_evicted(shared: &SharedCatalog, superblock: &Superblock) {
    shared.change(|catalog| {
        catalog.evicted_live_ns = catalog.evicted_live_ns.max(superblock.evicted_live_ns);
        catalog.evicted_import_ns = catalog.evicted_import_ns.max(superblock.evicted_import_ns);
    });
}

fn in_order(runs: &[RunEntry]) -> Arc<[RunEntry]> {
    let mut runs: Vec<_> = runs.iter().filter(|run| run.state != RunState::None).cloned().collect();
    runs.sort_by_key(|run| run.started_ns);
    runs.into()
}
