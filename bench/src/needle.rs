//! One host among 10 TB: how long it takes to find the one segment that holds its packets.
//!
//! Every segment goes the way of a recorder's: a place, a key, a header, a chunk, index, digest,
//! footer, table entry. What is not there: of its 3,839 chunks only the first holds packets,
//! and the others are a hole in the file. What is whole: sizes, number of segments and places,
//! digests, and indexes over as many hosts as asked for.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;
use wirevault_format::chunk::{self, ChunkHeader, HEADER_BYTES};
use wirevault_format::footer::{ChunkEntry, CloseReason};
use wirevault_format::gap::CAUSES;
use wirevault_format::limits::CHUNK_BYTES;
use wirevault_format::pcapng::{EpbParts, put_epb};
use wirevault_format::table::SegmentState;
use wirevault_format::{Interface, LinkType, RunId};
use wirevault_index::flow_table::{BATCH, FlowOptions};
use wirevault_index::{Catalog, ChunkDelta, FlowTable, KeySource, PacketNote, SegmentIndex};
use wirevault_media::{DIGEST_FILE, DirMedia, Media};
use wirevault_packet::dissect;
use wirevault_query::export::CountSink;
use wirevault_query::{Request, Summary, run as ask};
use wirevault_seal::chain::Chain;
use wirevault_seal::{FileProvider, KeyProvider, random};
use wirevault_storage::{
    ClosingFacts, CreateOptions, OpenRequest, Plan, Store, create_planned, finish_segment,
};
use wirevault_telemetry::clock::{Clock, ManualClock};
use wirevault_testkit::random::Random;

use crate::output::{Output, spread};
use crate::site::Site;

/// Bytes of a full segment.
const SEGMENT_BYTES: u64 = 1 << 30;
/// Packets that a segment really holds.
const PACKETS: u64 = 200;
/// Time between two segments.
const STEP: Duration = Duration::from_millis(300);
/// Segments over which the time of opening is the median.
const OPENINGS: usize = 200;
/// Networks of 256 addresses that the hosts of a segment share.
const NETWORKS: usize = 300;
/// Packets of the host that is looked for.
const NEEDLE_PACKETS: u64 = 3;
/// What is promised, ms: of the first question after all caches were dropped, and of another one.
const COLD_MS: f64 = 1000.0;
const WARM_MS: f64 = 100.0;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Segments.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    segments: u32,
    /// Places of the volume.
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    places: u32,
    /// Hosts in the index of each segment, each with a flow.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    hosts: u32,
    /// Times that each question is asked.
    #[arg(long, value_name = "N", default_value_t = 5)]
    repeat: u32,
    /// Plain, instead of sealed.
    #[arg(long)]
    plain: bool,
    /// Folder for the store [default: the system's temporary folder].
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Asks a store that an earlier run left, instead of making one; the run may have been ended
    /// before it had made all segments.
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
}

#[derive(Debug, Default, Serialize)]
struct Figures {
    sealed: bool,
    segments: usize,
    hosts: u32,
    /// Opening a segment, flushes and all, at the beginning and at the end, µs.
    open_first_us: f64,
    open_last_us: f64,
    digest_bytes: u64,
    index_bytes: u64,
    rows: Vec<Row>,
}

/// One question; smallest, middle and largest time, and the CPU time of all threads.
#[derive(Debug, Serialize)]
struct Row {
    what: String,
    took_ms: [f64; 3],
    cpu_ms: [f64; 3],
    packets: u64,
    segments_read: u64,
    chunks_read: u64,
}

/// Runs it; fails if the packets are not found.
pub(crate) fn run(options: &Options, mut output: Output) -> Result<bool> {
    let site = Site::new(options.folder.as_deref())?;
    let path = options.store.clone().unwrap_or_else(|| site.path().join("store"));
    let mut figures = match &options.store {
        None => make(options, &site, &path)?,
        Some(store) => left(options, store)?,
    };
    let segments = figures.segments as u32;
    output.say(format!(
        "{} {} segments of 1 GiB on {} places, {} hosts each; digests {} MiB, indexes {} MiB; of \
         the packets {PACKETS} a segment are there",
        figures.segments,
        if options.plain { "plain" } else { "sealed" },
        options.places,
        options.hosts,
        figures.digest_bytes >> 20,
        figures.index_bytes >> 20,
    ));
    if options.store.is_none() {
        output.say(format!(
            "opening a segment, flushes and all: {:.0} us at first, {:.0} us with {} segments",
            figures.open_first_us, figures.open_last_us, figures.segments
        ));
    }
    output.table(&[
        ("question", 50),
        ("ms", 8),
        ("least", 8),
        ("most", 8),
        ("CPU ms", 8),
        ("packets", 8),
        ("segments read", 8),
    ]);
    let mut row = |what: &str, ask: &mut dyn FnMut(u32) -> Result<(Duration, Summary)>| {
        let (mut took, mut cpu) = (Vec::new(), Vec::new());
        let mut last = None;
        for n in 0..options.repeat.max(1) {
            let before = cpu_ms()?;
            let (time, summary) = ask(n)?;
            ensure!(options.store.is_some() || summary.complete, "{what}: {summary}");
            cpu.push(cpu_ms()? - before);
            took.push(time.as_secs_f64() * 1000.0);
            last = Some(summary);
        }
        let took_ms = spread(took).context("no time")?;
        let cpu_ms = spread(cpu).context("no time")?;
        let Summary { packets, segments_read, chunks_read, .. } = last.context("no answer")?;
        let ms = [took_ms[1], took_ms[0], took_ms[2], cpu_ms[1]].map(|ms| format!("{ms:.1}"));
        let counts = [packets, segments_read].map(|count| count.to_string());
        output.row([&[what.to_owned()], &ms[..], &counts].concat());
        let what = what.to_owned();
        figures.rows.push(Row { what, took_ms, cpu_ms, packets, segments_read, chunks_read });
        Ok(packets)
    };
    let spread_out = |n: u32| 1 + n * (segments - 2) / options.repeat.max(1);
    let cold = |n: u32| {
        drop_caches()?;
        let begin = Instant::now();
        let catalog = catalog(&path)?;
        let summary = question(&catalog, &needle(spread_out(n)))?;
        Ok((begin.elapsed(), summary))
    };
    let found = row("one host, all caches dropped, store opened", &mut { cold })?;
    ensure!(found == NEEDLE_PACKETS, "{found} packets instead of {NEEDLE_PACKETS}");
    let held = catalog(&path)?;
    let timed = |filter: String| {
        let begin = Instant::now();
        let summary = question(&held, &filter)?;
        Ok((begin.elapsed(), summary))
    };
    timed(needle(0))?;
    row("another host each time, store open", &mut |n| timed(needle(spread_out(n))))?;
    row("the same host again", &mut |_| timed(needle(7)))?;
    row("a host that is nowhere", &mut |n| timed(format!("host 192.0.2.{}", n + 1)))?;
    row("one host and a port", &mut |n| {
        timed(format!("{} and tcp port 443", needle(spread_out(n))))
    })?;
    row("a protocol that is nowhere", &mut |_| timed("icmp6".to_owned()))?;
    // Digests know that host and that port, but not that packets go the other way only.
    row("a host and a port that do not go together", &mut |n| {
        timed(format!("src host 198.51.100.1 and tcp dst port {}", 32_768 + 5600 * n))
    })?;
    std::fs::rename(path.join(DIGEST_FILE), path.join("digests.gone"))?;
    let mut again = |n: u32| {
        let begin = Instant::now();
        let summary = question(&catalog(&path)?, &needle(spread_out(n)))?;
        Ok((begin.elapsed(), summary))
    };
    row("one host without digests, store opened", &mut again)?;
    std::fs::rename(path.join("digests.gone"), path.join(DIGEST_FILE))?;
    let middle = |at: usize| figures.rows[at].took_ms[1];
    let tb = f64::from(segments) * SEGMENT_BYTES as f64 / 1e12;
    output.at_most(&format!("one host in {tb:.1} TB, cold"), " ms", COLD_MS, middle(0));
    output.at_most(&format!("another host in {tb:.1} TB, warm"), " ms", WARM_MS, middle(1));
    output.finish(&figures)?;
    Ok(true)
}

/// What is known of a store that was left.
fn left(options: &Options, path: &Path) -> Result<Figures> {
    let catalog = catalog(path)?;
    let closed = catalog.segments.iter().filter(|it| it.entry.state == SegmentState::Closed);
    Ok(Figures {
        sealed: !options.plain,
        segments: closed.count(),
        hosts: options.hosts,
        digest_bytes: std::fs::metadata(path.join(DIGEST_FILE))?.len(),
        ..Figures::default()
    })
}

fn catalog(path: &Path) -> Result<Catalog> {
    let store = wirevault_index::open_store(path, &KeySource::Recorded)?;
    Ok(store.catalog(u64::MAX / 2))
}

fn question(catalog: &Catalog, filter: &str) -> Result<Summary> {
    let request = Request { filter: filter.to_owned(), ..Request::default() };
    Ok(ask(catalog, &request, &mut CountSink::default(), &AtomicBool::new(false))?)
}

/// CPU time of all threads of this process so far, ms.
fn cpu_ms() -> Result<f64> {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?;
    Ok(Duration::from(time).as_secs_f64() * 1000.0)
}

/// The host that only segment `number` has.
fn needle(number: u32) -> String {
    let [_, b, c, d] = number.to_be_bytes();
    format!("host 172.{}.{c}.{d}", 16 + b)
}

/// Nothing of the store is in the system's memory afterwards.
fn drop_caches() -> Result<()> {
    let sync = std::process::Command::new("sync").status().context("sync")?;
    ensure!(sync.success(), "sync failed");
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("dropping caches needs root")
}

fn make(options: &Options, site: &Site, path: &Path) -> Result<Figures> {
    let key_path = site.path().join("store.key");
    let key: Option<Arc<dyn KeyProvider>> = match options.plain {
        false => Some(Arc::new(FileProvider::create(&key_path)?)),
        true => None,
    };
    let clock = Arc::new(ManualClock::new(site.clock.unix_ns() - (1 << 50)));
    let quota_bytes = u64::from(options.places) * SEGMENT_BYTES;
    let plan = Plan::exact(SEGMENT_BYTES, &[(quota_bytes, options.places)], 1)?;
    let with = CreateOptions {
        quota_bytes: None,
        lanes: 1,
        key,
        key_path: key_path.display().to_string(),
        clock: Arc::clone(&clock) as Arc<dyn Clock>,
    };
    let media: Arc<dyn Media> = Arc::new(DirMedia::create(path)?);
    create_planned(&[(media, path.display().to_string())], random::store_id()?, &with, &plan)?;
    let (mut store, _) =
        Store::open_dir(path, &KeySource::Recorded, Arc::clone(&clock) as Arc<dyn Clock>)?;
    let run = store.begin_run(false, 1)?;
    let mut writing = Writing { run, next_sequence: 0, random: Random::new(1), index_bytes: 0 };
    let mut openings = Vec::new();
    for number in 0..options.segments {
        openings.push(writing.segment(&mut store, number, options.hosts, &clock)?);
        clock.advance(STEP);
    }
    store.end_run()?;
    let middle = |times: &[f64]| spread(times.iter().copied()).map_or(0.0, |it| it[1]);
    let few = OPENINGS.min(openings.len());
    Ok(Figures {
        sealed: !options.plain,
        segments: openings.len(),
        hosts: options.hosts,
        open_first_us: middle(&openings[..few]),
        open_last_us: middle(&openings[openings.len() - few..]),
        digest_bytes: std::fs::metadata(path.join(DIGEST_FILE))?.len(),
        index_bytes: writing.index_bytes,
        rows: Vec::new(),
    })
}

struct Writing {
    run: RunId,
    next_sequence: u64,
    random: Random,
    index_bytes: u64,
}

impl Writing {
    /// Writes one segment and closes it; gives the time that opening took, µs.
    fn segment(
        &mut self,
        store: &mut Store,
        number: u32,
        hosts: u32,
        clock: &ManualClock,
    ) -> Result<f64> {
        let interfaces = [Interface::unnamed(LinkType::ETHERNET)];
        let request =
            OpenRequest { lane: 0, link_type: LinkType::ETHERNET, interfaces: &interfaces };
        let begin = Instant::now();
        let open = store.open_segment(request)?;
        let took_us = begin.elapsed().as_secs_f64() * 1e6;
        let mut table = FlowTable::new(FlowOptions { flows_max: hosts + 16 });
        let mut delta = ChunkDelta::new();
        table.begin_chunk(&delta);
        let mut buf = vec![0; CHUNK_BYTES];
        let (mut end, first_ns) = (HEADER_BYTES, clock.unix_ns());
        let networks: Vec<u32> =
            (0..NETWORKS).map(|_| 10 << 24 | (self.random.bits() as u32 & 0xff_ffff)).collect();
        let mut notes = Vec::with_capacity(BATCH);
        for n in 0..u64::from(hosts).max(PACKETS) {
            let is_needle = n < NEEDLE_PACKETS;
            let client = match is_needle {
                true => 172 << 24 | 16 << 16 | number,
                false => self.random.pick(&networks) & !0xff | self.random.below(256) as u32,
            };
            let frame = frame(client, 32_768 + self.random.below(28_000) as u16);
            let ts_ns = first_ns + n;
            if n < PACKETS {
                let (interface_id, orig_len, data) = (0, frame.len() as u32, &frame[..]);
                let (vlan, flags, raw_options) = (None, None, &[][..]);
                let packet =
                    EpbParts { interface_id, ts_ns, orig_len, data, vlan, flags, raw_options };
                end += put_epb(&mut buf, end, &packet).context("the packets fit a chunk")?;
            }
            let found = dissect(LinkType::ETHERNET, &frame);
            notes.push(PacketNote {
                key: found.key,
                hash: found.hash,
                direction: found.direction,
                ts_ns,
                wire_len: frame.len() as u32,
                captured_len: frame.len() as u32,
                tcp_flags: found.tcp_flags,
            });
            if notes.len() == BATCH {
                table.upsert(&notes, &mut delta);
                notes.clear();
            }
        }
        table.upsert(&notes, &mut delta);
        let times_ns = Some((first_ns, first_ns + PACKETS - 1));
        let header = ChunkHeader {
            sealed: open.keys.is_some(),
            gaps: false,
            lane: 0,
            link_type: LinkType::ETHERNET,
            life: open.entry.life,
            run: self.run,
            number: 0,
            payload_bytes: (end - HEADER_BYTES) as u32,
            first_sequence: self.next_sequence,
            packets: PACKETS as u32,
            times_ns,
            received: self.next_sequence + PACKETS,
            shed: 0,
            dropped: 0,
            watermark: self.next_sequence,
        };
        header.encode(&mut buf);
        let mut chain = Chain::new();
        match &open.keys {
            Some(keys) => {
                let (aad, payload) = buf.split_at_mut(HEADER_BYTES);
                let payload = &mut payload[..header.payload_bytes as usize];
                let tag = keys.data_sealer()?.seal(0, aad, payload)?;
                chunk::put_sealed_tail(&mut buf, &header, &tag);
                chain.add(&tag);
            }
            None => chunk::put_plain_tail(&mut buf, &header),
        }
        let chunk_bytes = header.chunk_bytes();
        open.file.write_at(&buf[..chunk_bytes], open.data_offset)?;
        delta.chunk = ChunkEntry {
            offset: open.data_offset,
            chunk_bytes: chunk_bytes as u32,
            packets: PACKETS as u32,
            times_ns,
            first_sequence: self.next_sequence,
        };
        self.next_sequence += PACKETS;
        let mut index = SegmentIndex::new();
        index.apply(&delta)?;
        let first_end = open.data_offset + chunk_bytes as u64;
        let mut at = first_end;
        delta.clear();
        while at + CHUNK_BYTES as u64 <= open.data_end {
            delta.number += 1;
            delta.chunk = ChunkEntry {
                offset: at,
                chunk_bytes: CHUNK_BYTES as u32,
                packets: 0,
                times_ns: None,
                first_sequence: self.next_sequence,
            };
            index.apply(&delta)?;
            at += CHUNK_BYTES as u64;
        }
        let facts = ClosingFacts {
            reason: CloseReason::Full,
            recovered: false,
            damaged: false,
            captured_bytes: PACKETS * 60,
            received: self.next_sequence,
            shed: 0,
            dropped: [0; CAUSES],
            chain: chain.finish(),
        };
        let segment_path = open.file.direct_path().context("a file of a directory")?;
        let finished = finish_segment(&open, &index, &facts, clock)?;
        let entry = store.close_segment(&open, finished)?;
        self.index_bytes += entry.file_bytes - at;
        // Its blocks were reserved as always; here the disk gets those of the hole back.
        let file = std::fs::OpenOptions::new().write(true).open(segment_path)?;
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&file, hole, first_end as i64, (at - first_end) as i64)?;
        Ok(took_us)
    }
}

/// A TCP packet of a client to one server.
fn frame(client: u32, port: u16) -> [u8; 60] {
    let mut frame = [0; 60];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]);
    frame[14..24].copy_from_slice(&[0x45, 0, 0, 46, 0, 0, 0, 0, 64, 6]);
    frame[26..30].copy_from_slice(&client.to_be_bytes());
    frame[30..34].copy_from_slice(&[198, 51, 100, 1]);
    frame[34..36].copy_from_slice(&port.to_be_bytes());
    frame[36..38].copy_from_slice(&443u16.to_be_bytes());
    frame[46..48].copy_from_slice(&[0x50, 0x10]);
    frame
}
