//! A store of very many segments: how long it takes to open it, to take its catalog, to change it,
//! and to plan a question.
//!
//! All but a few of the segments stand in the tables only; the last ones are recorded. A question
//! about these finds its packets among all the others.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;
use wirevault_buffer::{Arena, ArenaOptions, Hugepages, Pool};
use wirevault_format::limits::LBA_BYTES;
use wirevault_format::table::{
    Entry, PAGE_ENTRIES, RunEntry, RunState, SegmentEntry, SegmentState, encode_page,
};
use wirevault_format::{LifeId, LinkType, RunId};
use wirevault_index::volume::page_offset;
use wirevault_index::{Catalog, KeySource, Segment, SharedCatalog, Volume, open_store};
use wirevault_media::{DirMedia, Media, MediaFile, OpenMode, VOLUME_FILE};
use wirevault_pipeline::{LaneSpec, Pipeline, PipelineOptions};
use wirevault_query::export::CountSink;
use wirevault_query::{Request, Summary, run as ask};
use wirevault_seal::{FileProvider, KeyProvider, KeyRing, SegmentKeys, random};
use wirevault_storage::{CreateOptions, Plan, Store, create_planned};

use crate::output::Output;
use crate::packets::{MemorySource, Packets, Size};
use crate::site::Site;

/// Bytes of a segment, as the tables say; the smallest that stores are planned with.
const SEGMENT_BYTES: u64 = 16 << 20;
/// Bytes of packets that are recorded behind the other segments: a few segments.
const RECORDED_BYTES: usize = 40 << 20;
/// Places for segments that are recorded.
const PLACES_LEFT: u32 = 64;
/// Lanes that wrote the segments of the tables.
const LANES: u16 = 4;
/// Time in which one of them was written.
const SEGMENT_NS: u64 = 1_000_000_000;
/// How long recording may take.
const TIME_MAX: Duration = Duration::from_secs(120);

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Segments of the store.
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    segments: u32,
    /// Runs that wrote them.
    #[arg(long, value_name = "N", default_value_t = 100)]
    runs: u16,
    /// Times that each question is asked; the median counts.
    #[arg(long, value_name = "N", default_value_t = 15)]
    repeat: usize,
    /// Folder for the store [default: the system's temporary folder].
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
}

/// Times in µs; those that are repeated are medians.
#[derive(Debug, Default, Serialize)]
struct Figures {
    sealed: bool,
    segments: usize,
    volume_file_bytes: u64,
    /// Reading the tables and making the catalog, as every offline verb does.
    open_reader_us: f64,
    /// The same under the lock, with a new key ring, as a recorder's start does.
    open_writer_us: f64,
    /// What a question does first in a recorder.
    take_catalog_us: f64,
    /// Putting one segment into the newest catalog, and taking it out again.
    change_catalog_us: f64,
    /// A window of an hour in the middle, filter and all, up to the first chunk that would be read.
    plan_hour_us: f64,
    /// The same without a window: every segment may hold an answer.
    plan_all_us: f64,
    /// A host's packets of one millisecond, read from their segment and counted.
    find_us: f64,
    packets_found: u64,
}

/// Runs it; false never: it measures, and fails if packets are not found.
pub(crate) fn run(options: &Options, mut output: Output) -> Result<bool> {
    let mut all = Vec::new();
    for sealed in [false, true] {
        let site = Site::new(options.folder.as_deref())?;
        let figures = measure(options, &site, sealed)?;
        figures.show(&mut output);
        all.push(figures);
    }
    output.finish(&all)?;
    Ok(true)
}

fn measure(options: &Options, site: &Site, sealed: bool) -> Result<Figures> {
    let path = site.path().join("store");
    make(options, site, &path, sealed)?;
    let volume_file_bytes = std::fs::metadata(path.join(VOLUME_FILE))?.len();
    let now_ns = site.clock.unix_ns();
    let (open_reader, catalog) = median(options.repeat, || -> Result<Catalog> {
        Ok(open_store(&path, &KeySource::Recorded)?.catalog(now_ns))
    })?;
    drop(catalog);
    let clock = Arc::clone(&site.clock);
    let begin = Instant::now();
    let (store, _) = Store::open_dir(&path, &KeySource::Recorded, clock)?;
    let open_writer = begin.elapsed();
    let pipeline = record(site, store)?;

    let (take, catalog) = median(1000, || Ok(pipeline.catalog()))?;
    let change = change(&catalog)?;
    let middle_ns = now_ns - u64::from(options.segments / 2) * SEGMENT_NS;
    let hour = Request {
        filter: "host 10.1.2.3 and tcp port 443".to_owned(),
        since_ns: Some(middle_ns),
        until_ns: Some(middle_ns + 3600 * 1_000_000_000),
        // Nothing is read for an answer without packets.
        limit: Some(0),
        ..Request::default()
    };
    let everything = Request { since_ns: None, until_ns: None, ..hour.clone() };
    let (plan_hour, _) = median(options.repeat, || question(&catalog, &hour))?;
    let (plan_all, _) = median(options.repeat, || question(&catalog, &everything))?;
    let last_ns = recorded(&catalog).filter_map(|it| it.entry.times_ns).map(|it| it.0).max();
    let last_ns = last_ns.context("no segment was recorded")?;
    let needle = Request {
        filter: "net 10.0.0.0/16".to_owned(),
        since_ns: Some(last_ns),
        until_ns: Some(last_ns + 1_000_000),
        ..Request::default()
    };
    let (find, found) = median(options.repeat, || question(&catalog, &needle))?;
    ensure!(found.packets > 0 && found.complete, "the recorded packets are not found: {found}");
    let segments = catalog.segments.len();
    pipeline.stop();
    pipeline.join()?;
    Ok(Figures {
        sealed,
        segments,
        volume_file_bytes,
        open_reader_us: micros(open_reader),
        open_writer_us: micros(open_writer),
        take_catalog_us: micros(take),
        change_catalog_us: micros(change),
        plan_hour_us: micros(plan_hour),
        plan_all_us: micros(plan_all),
        find_us: micros(find),
        packets_found: found.packets,
    })
}

fn question(catalog: &Catalog, request: &Request) -> Result<Summary> {
    Ok(ask(catalog, request, &mut CountSink::default(), &AtomicBool::new(false))?)
}

/// Replaces a segment in the middle of a catalog by itself, as closing and giving up do.
fn change(catalog: &Catalog) -> Result<Duration> {
    let shared = SharedCatalog::new(catalog.clone());
    let segment = Arc::clone(&catalog.segments[catalog.segments.len() / 2]);
    let (took, ()) = median(1000, || {
        shared.change(|next| {
            next.segments = next.segments.without(&segment.entry).with(Arc::clone(&segment));
        });
        Ok(())
    })?;
    Ok(took)
}

/// Median time of `work`, and its last result.
fn median<T>(times: usize, mut work: impl FnMut() -> Result<T>) -> Result<(Duration, T)> {
    let mut took = Vec::new();
    let mut last = None;
    for _ in 0..times.max(1) {
        let begin = Instant::now();
        last = Some(black_box(work()?));
        took.push(begin.elapsed());
    }
    took.sort_unstable();
    Ok((took[took.len() / 2], last.context("nothing was measured")?))
}

/// Makes a store whose tables say that it is full of segments.
fn make(options: &Options, site: &Site, path: &Path, sealed: bool) -> Result<()> {
    let key_path = site.path().join("store.key");
    let key: Option<Arc<dyn KeyProvider>> = match sealed {
        true => Some(Arc::new(FileProvider::create(&key_path)?)),
        false => None,
    };
    let places = options.segments + PLACES_LEFT;
    // Room for as many again: nothing is given up while the last ones are recorded.
    let quota_bytes = 2 * u64::from(places) * SEGMENT_BYTES;
    let plan = Plan::exact(SEGMENT_BYTES, &[(quota_bytes, places)], 1)?;
    let made_with = CreateOptions {
        quota_bytes: None,
        lanes: 1,
        key: key.clone(),
        key_path: key_path.display().to_string(),
        clock: Arc::clone(&site.clock),
    };
    let media: Arc<dyn Media> = Arc::new(DirMedia::create(path)?);
    let volumes = [(Arc::clone(&media), path.display().to_string())];
    create_planned(&volumes, random::store_id()?, &made_with, &plan)?;

    let superblock = Volume::read(Arc::clone(&media), &KeySource::Recorded)?.superblock;
    let mut ring = KeyRing::new(superblock.store, superblock.volume);
    let first_ns = site.clock.unix_ns() - u64::from(options.segments) * SEGMENT_NS;
    let mut runs = Vec::new();
    let mut segments = Vec::new();
    for number in 0..options.segments {
        let run = number as usize * usize::from(options.runs) / options.segments as usize;
        let from_ns = first_ns + u64::from(number) * SEGMENT_NS;
        if run == runs.len() {
            runs.push(run_entry(run as u64, from_ns));
        }
        let last: &mut RunEntry = &mut runs[run];
        (last.alive_ns, last.ended_ns) = (from_ns + SEGMENT_NS, from_ns + SEGMENT_NS);
        let life = match sealed {
            true => {
                let keys = SegmentKeys::generate()?;
                ring.insert(keys.clone())?;
                keys.life()
            }
            false => random::life_id()?,
        };
        segments.push(segment_entry(number, last, life, from_ns, sealed));
    }
    let file = media.open(VOLUME_FILE, OpenMode::ReadWrite)?;
    put_table(&*file, superblock.segments_offset, superblock.segments_pages, &segments)?;
    put_table(&*file, superblock.runs_offset, superblock.runs_pages, &runs)?;
    if let Some(key) = &key {
        ring.advance_epoch();
        ring.advance_epoch();
        file.write_at(&ring.encode(&**key)?, superblock.ring_offset)?;
    }
    Ok(file.sync()?)
}

fn run_entry(number: u64, started_ns: u64) -> RunEntry {
    RunEntry {
        state: RunState::Ended,
        import: false,
        lanes: LANES,
        run: RunId(number + 1),
        started_ns,
        alive_ns: started_ns,
        ended_ns: started_ns,
    }
}

fn segment_entry(
    number: u32,
    run: &RunEntry,
    life: LifeId,
    from_ns: u64,
    sealed: bool,
) -> SegmentEntry {
    let packets = 20_000;
    let first_sequence = u64::from(number) / u64::from(LANES) * packets;
    let until_ns = from_ns + SEGMENT_NS - 1;
    SegmentEntry {
        state: SegmentState::Closed,
        sealed,
        lane: number as u16 % LANES,
        link_type: LinkType::ETHERNET,
        life,
        run: run.run,
        ordinal: u64::from(number) + 1,
        opened_ns: from_ns,
        closed_ns: until_ns,
        times_ns: Some((from_ns, until_ns)),
        packets,
        captured_bytes: SEGMENT_BYTES * 9 / 10,
        file_bytes: SEGMENT_BYTES,
        footer_offset: SEGMENT_BYTES - LBA_BYTES as u64,
        sequences: (first_sequence, first_sequence + packets),
        chunks: 64,
        ..SegmentEntry::default()
    }
}

fn put_table<E: Entry>(file: &dyn MediaFile, at: u64, pages: u32, entries: &[E]) -> Result<()> {
    for (number, entries) in (0u32..).zip(entries.chunks(PAGE_ENTRIES)) {
        ensure!(number < pages, "the table has {pages} pages");
        let page = encode_page(number, 2, entries);
        file.write_at(&page, page_offset(at, pages, 1, number))?;
    }
    Ok(())
}

/// Records packets behind the segments of the tables; the pipeline is still there.
fn record(site: &Site, store: Store) -> Result<Pipeline> {
    let packets = Arc::new(Packets::make(Size::Large, RECORDED_BYTES));
    let count = packets.count;
    // Packets of a run are no older than its start.
    let source = Box::new(MemorySource::new(packets, 1, site.clock.unix_ns() + SEGMENT_NS));
    let arena = ArenaOptions { bytes: 16 << 20, hugepages: Hugepages::Off, numa_node: None };
    let lane = LaneSpec::new(source);
    let pool = Pool::new(Arena::new(arena)?);
    let (how, clock) = (PipelineOptions::default(), Arc::clone(&site.clock));
    let pipeline = Pipeline::start(store, pool, vec![lane], &how, clock)?;
    let begin = Instant::now();
    let run_closed = |catalog: &Catalog| recorded(catalog).count() > 0;
    while pipeline.lanes()[0].books.snapshot().stored < count || !run_closed(&pipeline.catalog()) {
        ensure!(begin.elapsed() < TIME_MAX, "recording does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(pipeline)
}

/// Closed segments whose packets are there.
fn recorded(catalog: &Catalog) -> impl Iterator<Item = &Segment> {
    let newest = catalog.runs.last().map(|run| run.run);
    let closed = |it: &&Segment| it.entry.state == SegmentState::Closed;
    let segments = catalog.segments.iter().map(AsRef::as_ref).filter(closed);
    segments.filter(move |segment| Some(segment.entry.run) == newest)
}

fn micros(took: Duration) -> f64 {
    took.as_nanos() as f64 / 1000.0
}

impl Figures {
    fn show(&self, output: &mut Output) {
        let kind = if self.sealed { "sealed" } else { "plain" };
        let (segments, mib) = (self.segments, self.volume_file_bytes as f64 / f64::from(1 << 20));
        output.say(format!("A {kind} store of {segments} segments; volume file {mib:.1} MiB."));
        output.table(&[("what", 48), ("ms", 12)]);
        let found = format!("find {} packets of one millisecond", self.packets_found);
        for (what, took_us) in [
            ("open, to read (tables, key ring, catalog)", self.open_reader_us),
            ("open, to write (the same, and a new key ring)", self.open_writer_us),
            ("take the catalog", self.take_catalog_us),
            ("change the catalog by one segment", self.change_catalog_us),
            ("plan a window of an hour", self.plan_hour_us),
            ("plan without a window", self.plan_all_us),
            (&found, self.find_us),
        ] {
            output.row(vec![what.to_owned(), format!("{:.3}", took_us / 1000.0)]);
        }
    }
}
