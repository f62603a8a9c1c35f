//! What a store shows of itself: the catalog for queries, the status for people.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use wirevault_format::table::{RunEntry, RunState, SegmentState};
use wirevault_format::{LifeId, StoreId};
use wirevault_index::{Catalog, Segment, SegmentIndex, catalog};

use crate::store::Store;
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
    /// Why the key rings could not be written the last time; capture goes on with spare keys.
    pub key_trouble: Option<String>,
}

/// State of one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// Bytes of a full segment.
    pub segment_bytes: u64,
    /// Spare keys at hand; 0 in plain stores.
    pub spare_keys: usize,
    /// `None` while it works; else the failure after which it takes no more writes.
    pub failed: Option<String>,
}

impl Store {
    /// What queries may look at. `live` are the indexes of segments that lanes of this process
    /// write; an open segment without one holds nothing durable yet and is left out.
    pub fn catalog(&self, now_ns: u64, live: &[(LifeId, Arc<RwLock<SegmentIndex>>)]) -> Catalog {
        let live: HashMap<_, _> = live.iter().map(|(life, index)| (*life, index)).collect();
        let mut segments = Vec::new();
        for volume in &self.volumes {
            let (number, media) = (volume.superblock().number, &volume.volume.media);
            for (place, entry) in volume.entries().iter().enumerate() {
                let place = place as u32;
                match (entry.state, live.get(&entry.life)) {
                    (SegmentState::Free, _) => {}
                    (SegmentState::Open, Some(index)) => {
                        let (keys, index) = (volume.keys(entry), Arc::clone(index));
                        let media = Arc::clone(media);
                        let segment =
                            Segment::live(entry.clone(), number, place, media, keys, index);
                        segments.push(segment);
                    }
                    (SegmentState::Open, None) if self.open.contains_key(&entry.life) => {}
                    (SegmentState::Open | SegmentState::Closed, _) => {
                        segments.push(Segment::stored(&volume.volume, place, entry.clone()));
                    }
                }
            }
        }
        segments.sort_by_key(|segment| segment.entry.ordinal);
        catalog::set_watermarks(&mut segments);
        let runs = self.volumes[0].runs().iter().filter(|run| run.state != RunState::None);
        let mut runs: Vec<RunEntry> = runs.cloned().collect();
        runs.sort_by_key(|run| run.started_ns);
        let superblocks = || self.volumes.iter().map(VolumeWriter::superblock);
        Catalog {
            store: self.id,
            segments: segments.into_iter().map(Arc::new).collect(),
            runs,
            missing_volumes: Vec::new(),
            evicted_live_ns: superblocks().map(|it| it.evicted_live_ns).max().unwrap_or(0),
            evicted_import_ns: superblocks().map(|it| it.evicted_import_ns).max().unwrap_or(0),
            now_ns,
            durable_until_ns: None,
        }
    }

    /// State of the store.
    pub fn status(&self) -> StoreStatus {
        let volume = |volume: &VolumeWriter| {
            let superblock = volume.superblock();
            let held = volume.entries().iter().filter(|it| it.state != SegmentState::Free).count();
            VolumeStatus {
                path: volume.name.clone(),
                quota_bytes: superblock.quota_bytes,
                used_bytes: volume.used_bytes(),
                segments: held as u32,
                open_segments: volume.open_count() as u32,
                places: superblock.places,
                segment_bytes: superblock.segment_bytes,
                spare_keys: volume.spares(),
                failed: volume.failed().map(str::to_owned),
            }
        };
        StoreStatus {
            id: self.id,
            sealed: self.is_sealed(),
            volumes: self.volumes.iter().map(volume).collect(),
            key_trouble: self.key_trouble.clone(),
        }
    }
}
