//! The catalog of a store as bytes, and what is told of a store that is gone.
//!
//! A checkpoint of a recorder's state holds such bytes. They hold no key and no packet: which
//! segments there were, when, and how large. Where a store took the place of one whose volumes are
//! gone, its catalog stays, so that an answer says what it lacks.
//!
//! # Layout
//! One block of 4096 bytes of text, filled up with zeros, and then pages as tables have them
//! ([`wirevault_format::table`]), all of generation 1:
//!
//! ```text
//! wirevault catalog 1
//! evicted LIVE_NS IMPORT_NS
//! runs PAGES
//! volume NUMBER PAGES          a line for each volume that has segments
//! ```
//!
//! first those of the runs, then those of each volume, an entry a place.

use std::collections::BTreeMap;
use std::sync::Arc;

use wirevault_format::limits::LBA_BYTES;
use wirevault_format::table::{
    Entry, PAGE_ENTRIES, RunEntry, RunState, SegmentEntry, SegmentState, decode_page, encode_page,
};

use crate::{Catalog, Segment};

const MAGIC: &str = "wirevault catalog 1";

/// What is known of a store that is gone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LostStore {
    /// Its id, hex.
    pub store: String,
    /// Number of the checkpoint that knows it.
    pub checkpoint: u64,
    /// Its runs, oldest first. What went on is told as crashed.
    pub runs: Vec<RunEntry>,
    /// Its segments, oldest first. Of those that were open, what was durable at the checkpoint.
    pub segments: Vec<LostSegment>,
    /// Largest packet time of a live segment that it had given up; 0: none was.
    pub evicted_live_ns: u64,
    /// The same for imported segments.
    pub evicted_import_ns: u64,
}

/// A segment that is gone with its volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostSegment {
    /// Number of its volume.
    pub volume: u16,
    /// Its place on the volume.
    pub place: u32,
    /// Entry of the segment table.
    pub entry: SegmentEntry,
}

impl LostSegment {
    /// Name for people, as of a segment that is there.
    pub fn name(&self) -> String {
        format!("{}:{:06}#{}", self.volume, self.place, self.entry.ordinal)
    }

    /// The time of which packets may be missing: that of its packets, and for what was recorded
    /// live also that in which it was written.
    pub fn span_ns(&self) -> (u64, u64) {
        let SegmentEntry { opened_ns, closed_ns, times_ns, import, .. } = self.entry;
        let written = (opened_ns, closed_ns.max(opened_ns.saturating_add(1)));
        match times_ns.map(|(first, last)| (first, last.saturating_add(1))) {
            None => written,
            Some(packets) if import => packets,
            Some(packets) => (packets.0.min(written.0), packets.1.max(written.1)),
        }
    }
}

/// The catalog as bytes. Of open segments it has what is durable now.
pub fn encode(catalog: &Catalog) -> Vec<u8> {
    let mut volumes: BTreeMap<u16, Vec<SegmentEntry>> = BTreeMap::new();
    // What lies in the tier only has no place here, and the list of the tier tells of it.
    for segment in catalog.segments.iter().filter(|segment| segment.media().is_some()) {
        let (entries, place) = (volumes.entry(segment.volume).or_default(), segment.place as usize);
        if entries.len() <= place {
            entries.resize(place + 1, SegmentEntry::default());
        }
        entries[place] = durable(segment);
    }
    let pages = |entries: usize| entries.div_ceil(PAGE_ENTRIES);
    let mut head = format!(
        "{MAGIC}\nevicted {} {}\nruns {}\n",
        catalog.evicted_live_ns,
        catalog.evicted_import_ns,
        pages(catalog.runs.len())
    );
    for (number, entries) in &volumes {
        head += &format!("volume {number} {}\n", pages(entries.len()));
    }
    let mut bytes = head.into_bytes();
    bytes.resize(LBA_BYTES, 0);
    put_table(&mut bytes, &catalog.runs);
    volumes.values().for_each(|entries| put_table(&mut bytes, entries));
    bytes
}

fn put_table<E: Entry>(bytes: &mut Vec<u8>, entries: &[E]) {
    for (number, entries) in (0..).zip(entries.chunks(PAGE_ENTRIES)) {
        bytes.extend(encode_page(number, 1, entries));
    }
}

/// The entry of a segment, with the figures of what is durable while it is open.
fn durable(segment: &Segment) -> SegmentEntry {
    let mut entry = segment.entry.clone();
    if entry.state == SegmentState::Open
        && let Ok(reader) = segment.open()
    {
        reader.with_index(|index| {
            let chunks = index.chunks();
            entry.chunks = chunks.len() as u32;
            entry.packets = chunks.iter().map(|chunk| u64::from(chunk.packets)).sum();
            let times = chunks.iter().filter_map(|chunk| chunk.times_ns);
            entry.times_ns = times.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
        });
    }
    entry
}

/// Reads what [`encode`] wrote, as that of a store that is gone.
///
/// # Errors
/// In words: where it is damaged.
pub fn decode(bytes: &[u8], store: &str, checkpoint: u64) -> Result<LostStore, String> {
    let (head, mut rest) = bytes.split_at_checked(LBA_BYTES).ok_or("it is cut off")?;
    let text = head.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = std::str::from_utf8(text).map_err(|error| error.to_string())?;
    let mut lines = text.lines();
    if lines.next() != Some(MAGIC) {
        return Err(format!("it does not begin with `{MAGIC}`"));
    }
    let mut lost = LostStore { store: store.to_owned(), checkpoint, ..LostStore::default() };
    for line in lines {
        let damaged = || format!("its line `{line}` does not read");
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse().ok());
        match words[0] {
            "evicted" => {
                lost.evicted_live_ns = number(1).ok_or_else(damaged)?;
                lost.evicted_import_ns = number(2).ok_or_else(damaged)?;
            }
            "runs" => lost.runs = take_table(&mut rest, number(1).ok_or_else(damaged)?)?,
            "volume" => {
                let volume = number(1).and_then(|n| u16::try_from(n).ok()).ok_or_else(damaged)?;
                let entries = take_table(&mut rest, number(2).ok_or_else(damaged)?)?;
                let there =
                    (0..).zip(entries).filter(|(_, it): &(_, SegmentEntry)| it.is_readable());
                let segment = |(place, entry)| LostSegment { volume, place, entry };
                lost.segments.extend(there.map(segment));
            }
            _ => return Err(damaged()),
        }
    }
    lost.runs.retain(|run| run.state != RunState::None);
    lost.runs.sort_by_key(|run| run.started_ns);
    for run in lost.runs.iter_mut().filter(|run| run.state == RunState::Running) {
        run.state = RunState::Crashed;
    }
    lost.segments.sort_by_key(|segment| segment.entry.ordinal);
    Ok(lost)
}

fn take_table<E: Entry>(rest: &mut &[u8], pages: u64) -> Result<Vec<E>, String> {
    let mut entries = Vec::new();
    for number in 0..pages {
        let (page, behind) = rest.split_at_checked(LBA_BYTES).ok_or("it is cut off")?;
        let number = u32::try_from(number).map_err(|error| error.to_string())?;
        let (_, found) = decode_page(number, page).map_err(|error| error.to_string())?;
        entries.extend(found);
        *rest = behind;
    }
    Ok(entries)
}

/// Several stores that are gone, as a catalog has them.
pub type LostStores = Arc<[LostStore]>;

#[cfg(test)]
mod tests {
    use std::sync::RwLock;

    use wirevault_format::{LifeId, RunId, StoreId};
    use wirevault_media::SimMedia;

    use super::*;
    use crate::SegmentIndex;

    fn segment(volume: u16, place: u32, ordinal: u64) -> Arc<Segment> {
        let entry = SegmentEntry {
            state: SegmentState::Closed,
            ordinal,
            life: LifeId([ordinal as u8; 16]),
            times_ns: Some((10 * ordinal, 10 * ordinal + 5)),
            ..SegmentEntry::default()
        };
        let index = Arc::new(RwLock::new(SegmentIndex::new()));
        Arc::new(Segment::live(entry, volume, place, Arc::new(SimMedia::new()), None, index))
    }

    fn catalog() -> Catalog {
        let run = |number, state| RunEntry { state, run: RunId(number), ..RunEntry::default() };
        Catalog {
            store: StoreId([1; 16]),
            segments: [segment(0, 40, 3), segment(2, 0, 1), segment(0, 1, 2)].into_iter().collect(),
            runs: [run(1, RunState::Ended), run(2, RunState::Running)].into(),
            missing_volumes: Vec::new(),
            lost: Arc::default(),
            replaced_ns: 0,
            evicted_live_ns: 7,
            evicted_import_ns: 8,
            now_ns: 0,
            durable_until_ns: None,
        }
    }

    #[test]
    fn a_catalog_comes_back_and_what_ran_has_crashed() {
        let lost = decode(&encode(&catalog()), "01", 5).unwrap();
        let places: Vec<_> = lost.segments.iter().map(LostSegment::name).collect();
        assert_eq!(places, ["2:000000#1", "0:000001#2", "0:000040#3"]);
        assert_eq!(lost.segments[0].entry, catalog().segments[0].entry);
        let states: Vec<_> = lost.runs.iter().map(|run| run.state).collect();
        assert_eq!(states, [RunState::Ended, RunState::Crashed]);
        assert_eq!((lost.evicted_live_ns, lost.evicted_import_ns), (7, 8));
        assert_eq!((lost.store.as_str(), lost.checkpoint), ("01", 5));
    }

    #[test]
    fn every_flipped_bit_of_a_page_and_every_cut_is_an_error() {
        let bytes = encode(&catalog());
        for len in (0..bytes.len()).step_by(512) {
            assert!(decode(&bytes[..len], "01", 5).is_err(), "{len} bytes");
        }
        for at in (LBA_BYTES..bytes.len()).step_by(61) {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(decode(&bad, "01", 5).is_err(), "byte {at}");
        }
        for at in 0..80 {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << (at % 8);
            // A digit may have become another one; nothing panics.
            let _ = decode(&bad, "01", 5);
        }
    }

    #[test]
    fn what_was_written_live_lacks_the_time_of_its_writing() {
        let mut segment =
            LostSegment { volume: 0, place: 0, entry: catalog().segments[0].entry.clone() };
        assert_eq!(segment.span_ns(), (0, 16));
        (segment.entry.opened_ns, segment.entry.closed_ns) = (12, 30);
        assert_eq!(segment.span_ns(), (10, 30));
        segment.entry.import = true;
        assert_eq!(segment.span_ns(), (10, 16));
        segment.entry.times_ns = None;
        assert_eq!(segment.span_ns(), (12, 30));
    }
}
