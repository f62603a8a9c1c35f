//! The catalog: everything a query may look at, as one immutable value.

mod segments;
mod shared;

use std::collections::HashMap;
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock, RwLock};

use wirevault_format::table::{RunEntry, RunState, SegmentEntry, SegmentState};
use wirevault_format::{LinkType, RunId, StoreId};
use wirevault_media::{Media, MediaFile, OpenMode};
use wirevault_seal::SegmentKeys;

use crate::digest::Digests;
use crate::lost::LostStores;
use crate::reader::SegmentReader;
use crate::recover::Found;
use crate::tier::{TierCopy, Tiered};
use crate::volume::{StoreReader, Volume, segment_file_name};
use crate::{IndexError, SegmentIndex};

pub use segments::{Iter, Segments};
pub use shared::SharedCatalog;

/// What a query may look at. Taken once, it does not change; places that are used again meanwhile
/// are noticed by their life id. Cloning it is cheap however many segments there are.
#[derive(Clone)]
pub struct Catalog {
    /// Store.
    pub store: StoreId,
    /// Segments, oldest first.
    pub segments: Segments,
    /// Runs, oldest first.
    pub runs: Arc<[RunEntry]>,
    /// Volumes that cannot be opened: path and reason.
    pub missing_volumes: Vec<MissingVolume>,
    /// Stores that are gone with their volumes, whose place this one took.
    pub lost: LostStores,
    /// When a volume was last replaced whose segments are gone: of what was recorded before,
    /// anything may be missing. 0: none was.
    pub replaced_ns: u64,
    /// Largest packet time of a live segment that was given up for the quota; 0: none was.
    pub evicted_live_ns: u64,
    /// The same for imported segments.
    pub evicted_import_ns: u64,
    /// Time the catalog was taken, ns.
    pub now_ns: u64,
    /// Everything received before this time is durable; `None` if no recorder runs in this process.
    pub durable_until_ns: Option<u64>,
}

/// A volume that the store names and that cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingVolume {
    /// Its path.
    pub path: String,
    /// Why it cannot be opened.
    pub why: String,
}

/// One segment: its entry in the table and how to read it.
pub struct Segment {
    /// Entry of the segment table.
    pub entry: SegmentEntry,
    /// Number of its volume.
    pub volume: u16,
    /// Its place on the volume.
    pub place: u32,
    pub(crate) content: Content,
    pub(crate) stream_watermark: u64,
    /// What a scan of an interrupted segment showed. Its file is read once for a catalog.
    found: OnceLock<Arc<[Found]>>,
    /// Nothing of a live one.
    pub(crate) digests: Option<Arc<Digests>>,
    /// Nothing of one that lies in the tier only.
    media: Option<Arc<dyn Media>>,
    tier: Option<Arc<TierCopy>>,
    keys: Keys,
}

pub(crate) enum Content {
    /// Nobody writes it: closed, or interrupted by a crash.
    Stored,
    /// A lane of this process writes it; the index holds its durable chunks.
    Live(Arc<RwLock<SegmentIndex>>),
}

#[derive(Clone)]
enum Keys {
    Plain,
    Sealed(SegmentKeys),
    Absent(String),
    /// An object beside its bytes.
    InTier,
}

/// Where the bytes of a segment lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whereabouts {
    /// On its volume.
    Local,
    /// In the object tier.
    Tiered,
    /// Both.
    Both,
}

impl Whereabouts {
    /// For people and machines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Tiered => "tiered",
            Self::Both => "both",
        }
    }
}

/// A segment's stream: its packets are numbered together.
pub type Stream = (RunId, u16, LinkType);

impl Segment {
    /// A segment that lies on a volume and that no lane of this process writes.
    pub fn stored(volume: &Volume, place: u32, entry: SegmentEntry) -> Self {
        let keys = match &volume.ring {
            _ if !entry.sealed => Keys::Plain,
            Some(Ok(ring)) => match ring.get(entry.life) {
                Some(keys) => Keys::Sealed(keys.clone()),
                None => Keys::Absent(ring.why_shut(entry.life).map_or_else(
                    || "the key ring has no entry for its life".to_owned(),
                    ToString::to_string,
                )),
            },
            Some(Err(error)) => Keys::Absent(error.to_string()),
            None => Keys::Absent("the store has no key ring".to_owned()),
        };
        let (media, number) = (Arc::clone(&volume.media), volume.superblock.number);
        Self {
            entry,
            volume: number,
            place,
            content: Content::Stored,
            stream_watermark: 0,
            found: OnceLock::new(),
            digests: Some(Arc::clone(&volume.digests)),
            media: Some(media),
            tier: None,
            keys,
        }
    }

    /// A closed segment of which there is a copy in the tier only.
    pub fn tiered(tiered: &Tiered) -> Self {
        let Tiered { entry, volume, place, copy } = tiered.clone();
        Self {
            keys: if entry.sealed { Keys::InTier } else { Keys::Plain },
            entry,
            volume,
            place,
            content: Content::Stored,
            stream_watermark: 0,
            found: OnceLock::new(),
            digests: None,
            media: None,
            tier: Some(copy),
        }
    }

    /// The same closed segment with this copy in the tier, or without any.
    pub fn with_tier(&self, copy: Option<Arc<TierCopy>>) -> Self {
        Self {
            entry: self.entry.clone(),
            volume: self.volume,
            place: self.place,
            content: Content::Stored,
            stream_watermark: self.stream_watermark,
            found: OnceLock::new(),
            digests: self.digests.clone(),
            media: self.media.clone(),
            tier: copy,
            keys: self.keys.clone(),
        }
    }

    /// Its copy in the tier.
    pub fn tier(&self) -> Option<&Arc<TierCopy>> {
        self.tier.as_ref()
    }

    /// The segment without what lies on its volume; nothing if that is all there is.
    pub fn left_in_tier(&self) -> Option<Self> {
        let (entry, copy) = (self.entry.clone(), self.tier.clone()?);
        let (volume, place) = (self.volume, self.place);
        Some(Self::tiered(&Tiered { entry, volume, place, copy }))
    }

    /// Where its bytes lie.
    pub fn whereabouts(&self) -> Whereabouts {
        match (&self.media, &self.tier) {
            (Some(_), Some(_)) => Whereabouts::Both,
            (None, Some(_)) => Whereabouts::Tiered,
            (_, None) => Whereabouts::Local,
        }
    }

    /// A segment that a lane of this process writes.
    pub fn live(
        entry: SegmentEntry,
        volume: u16,
        place: u32,
        media: Arc<dyn Media>,
        keys: Option<SegmentKeys>,
        index: Arc<RwLock<SegmentIndex>>,
    ) -> Self {
        let keys = keys.map_or(Keys::Plain, Keys::Sealed);
        Self {
            entry,
            volume,
            place,
            content: Content::Live(index),
            stream_watermark: 0,
            found: OnceLock::new(),
            digests: None,
            media: Some(media),
            tier: None,
            keys,
        }
    }

    /// Name for people: number of the volume, place, and ordinal.
    pub fn name(&self) -> String {
        format!("{}:{:06}#{}", self.volume, self.place, self.entry.ordinal)
    }

    /// A lane of this process writes it.
    pub fn is_live(&self) -> bool {
        matches!(self.content, Content::Live(_))
    }

    /// The stream it belongs to.
    pub fn stream(&self) -> Stream {
        (self.entry.run, self.entry.lane, self.entry.link_type)
    }

    /// Opens the segment for reading.
    ///
    /// # Errors
    /// See the methods of [`IndexError`] that classify.
    pub fn open(&self) -> Result<SegmentReader, IndexError> {
        SegmentReader::open(self)
    }

    /// Whether its digest is there; `None` if segments of this volume have none, or it is written.
    pub fn has_digest(&self) -> Option<bool> {
        let digests = self.digests.as_ref().filter(|digests| digests.host_pages().is_some())?;
        Some(digests.has(self))
    }

    /// Pages of addresses of its digest.
    pub fn host_pages(&self) -> Option<u16> {
        self.digests.as_ref()?.host_pages()
    }

    /// Files of its volume; nothing of one that lies in the tier only.
    pub fn media(&self) -> Option<&Arc<dyn Media>> {
        self.media.as_ref()
    }

    /// The chunks that an interrupted segment shows, before any decision.
    pub(crate) fn found(
        &self,
        scan: impl FnOnce() -> Result<Vec<Found>, IndexError>,
    ) -> Result<Arc<[Found]>, IndexError> {
        match self.found.get() {
            Some(found) => Ok(Arc::clone(found)),
            None => {
                let found = Arc::from(scan()?);
                Ok(Arc::clone(self.found.get_or_init(|| found)))
            }
        }
    }

    /// Its file, and the count of what is read from the tier if it lies there. What lies on the
    /// volume is read there.
    pub(crate) fn open_file(&self) -> Result<SegmentFile, IndexError> {
        let from_tier = |copy: &Arc<TierCopy>| {
            let (file, taken) = copy.file();
            (file, Some(taken))
        };
        let missing = || IndexError::MissingSegment { segment: self.name() };
        let Some(media) = &self.media else {
            return self.tier.as_ref().map(from_tier).ok_or_else(missing);
        };
        match media.open(&segment_file_name(self.place), OpenMode::Read) {
            Ok(file) => Ok((file, None)),
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                self.tier.as_ref().map(from_tier).ok_or_else(missing)
            }
            Err(source) => Err(IndexError::Io { what: format!("segment {}", self.name()), source }),
        }
    }

    /// Its key; `None` in plain stores.
    ///
    /// # Errors
    /// `NoKey`; `Io` and `Key` of a segment that lies in the tier only.
    pub fn keys(&self) -> Result<Option<SegmentKeys>, IndexError> {
        match &self.keys {
            Keys::Plain => Ok(None),
            Keys::Sealed(keys) => Ok(Some(keys.clone())),
            Keys::Absent(why) => Err(IndexError::NoKey { segment: self.name(), why: why.clone() }),
            Keys::InTier => self.tier.as_ref().map_or(Ok(None), |copy| copy.keys(&self.name())),
        }
    }
}

/// A file of a segment, and the count of what is read from the tier if it lies there.
pub(crate) type SegmentFile = (Arc<dyn MediaFile>, Option<Arc<AtomicU64>>);

impl StoreReader {
    /// The catalog of a store that this process only reads. `now_ns` is the time it is taken.
    pub fn catalog(&self, now_ns: u64) -> Catalog {
        let mut segments = Vec::new();
        for volume in &self.volumes {
            for (place, entry) in volume.segments.entries.iter().enumerate() {
                if entry.is_readable() {
                    segments.push(Segment::stored(volume, place as u32, entry.clone()));
                }
            }
        }
        segments.sort_by_key(|segment| segment.entry.ordinal);
        set_watermarks(&mut segments);
        let mut runs: Vec<RunEntry> = self
            .volumes
            .iter()
            .flat_map(|volume| &volume.runs.entries)
            .filter(|run| run.state != RunState::None)
            .cloned()
            .collect();
        runs.sort_by_key(|run| run.started_ns);
        let missing =
            |(path, why): &(String, String)| MissingVolume { path: path.clone(), why: why.clone() };
        let latest = |of: fn(&Volume) -> u64| self.volumes.iter().map(of).max().unwrap_or(0);
        Catalog {
            store: self.store,
            segments: segments.into_iter().map(Arc::new).collect::<Segments>().joined(&self.tiered),
            runs: runs.into(),
            missing_volumes: self.missing.iter().map(missing).collect(),
            lost: Arc::clone(&self.lost),
            replaced_ns: latest(|volume| volume.superblock.replaced_ns()),
            evicted_live_ns: latest(|volume| volume.superblock.evicted_live_ns),
            evicted_import_ns: latest(|volume| volume.superblock.evicted_import_ns),
            now_ns,
            durable_until_ns: None,
        }
    }
}

/// Gives every interrupted segment the watermark that recovery needs: the highest that a header of
/// its stream carries, but no more than where another segment of the stream goes on.
pub fn set_watermarks(segments: &mut [Segment]) {
    let interrupted =
        |segment: &Segment| segment.entry.state == SegmentState::Open && !segment.is_live();
    let mut highest: HashMap<Stream, u64> = HashMap::new();
    let mut firsts = vec![None; segments.len()];
    let mut starts = vec![None; segments.len()];
    for (n, segment) in segments.iter().enumerate() {
        let mut watermark = 0;
        if interrupted(segment) {
            let found = SegmentReader::scan(segment).unwrap_or_else(|_| Arc::from([]));
            let highest = found.iter().map(|found| found.header.watermark).max();
            watermark = highest.unwrap_or(0);
            let first = found.first().map(|found| &found.header);
            firsts[n] = first.map(|header| header.first_sequence);
            // Without its first chunk nobody knows where a segment began.
            let start = first.filter(|header| header.number == 0);
            starts[n] = start.map(|header| header.first_sequence);
        } else if segment.entry.packets > 0 {
            firsts[n] = Some(segment.entry.sequences.0);
            // That it is whole says nothing of an interrupted one before it, its headers do.
            if highest.contains_key(&segment.stream()) {
                watermark = segment.open().ok().and_then(|it| it.last_watermark()).unwrap_or(0);
            }
        }
        if interrupted(segment) || watermark > 0 {
            let entry = highest.entry(segment.stream()).or_default();
            *entry = watermark.max(*entry);
        }
    }
    for n in 0..segments.len() {
        if !interrupted(&segments[n]) {
            continue;
        }
        let stream = segments[n].stream();
        let of_stream = (0..segments.len()).filter(|at| segments[*at].stream() == stream);
        let others = of_stream.filter_map(|at| firsts[at].map(|first| (at, first)));
        let limit = goes_on_at(n, starts[n], others);
        let highest = highest.get(&stream).copied().unwrap_or(0);
        segments[n].stream_watermark = highest.min(limit.unwrap_or(u64::MAX));
    }
}

/// First sequence behind the segment at `n`, which begins at `start` if its first chunk was found.
/// `others` are places and first sequences of its stream's segments, in the order of opening.
///
/// What a device did not take is sealed again into a segment of its own. That is opened after the
/// stream's next one and lies before it, so that the order of opening is not that of sequences.
/// Where nobody knows the start only what was opened later counts: too small a limit would hide
/// what is missing.
fn goes_on_at(
    n: usize,
    start: Option<u64>,
    others: impl Iterator<Item = (usize, u64)>,
) -> Option<u64> {
    let behind = others.filter(|(at, first)| match start {
        Some(start) => *first > start || *first == start && *at > n,
        None => *at > n,
    });
    behind.map(|(_, first)| first).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A segment failed at 120 and holds packets from 100; the stream's next one, opened meanwhile,
    /// begins at 200; what lies between was sealed again into the last one.
    #[test]
    fn a_segment_sealed_again_ends_where_one_opened_before_it_begins() {
        let firsts = [(0, 100), (1, 200), (2, 120)];
        let limits = firsts.map(|(n, first)| goes_on_at(n, Some(first), firsts.into_iter()));
        assert_eq!(limits, [Some(120), None, Some(200)]);
    }

    #[test]
    fn a_copy_from_the_first_chunk_on_ends_what_it_copies_and_not_itself() {
        let firsts = [(0, 100), (1, 100), (2, 150)];
        let limits = firsts.map(|(n, first)| goes_on_at(n, Some(first), firsts.into_iter()));
        assert_eq!(limits, [Some(100), Some(150), None]);
    }

    #[test]
    fn without_a_start_nothing_opened_earlier_hides_what_is_missing() {
        let firsts = [(0, 100), (2, 300)];
        assert_eq!(goes_on_at(1, None, firsts.into_iter()), Some(300));
        assert_eq!(goes_on_at(3, None, firsts.into_iter()), None);
    }
}
