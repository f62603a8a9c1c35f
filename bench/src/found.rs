//! From a packet's arrival to its being found, while packets come at full rate.
//!
//! ```text
//!  packets ──┐
//!  probes ───┴─► lane ─► seal ─► write ─► flush ─► index ─► question, again and again
//!                          └─► tail ─► whoever watches
//! ```
//! A probe is a packet of a flow of its own. Its time begins before it is given away, so what is
//! printed is never less than what a user would meet.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;
use wirevault_capture::{
    CaptureError, Packet, PacketMmapOptions, PacketMmapSource, PacketSink, Polled, Source,
    SourceCounters, SourceReport, SourceState,
};
use wirevault_format::Interface;
use wirevault_format::pcapng::{BLOCK_EPB, Blocks, Epb};
use wirevault_pipeline::{Pipeline, PipelineOptions, TailChunk};
use wirevault_query::export::CountSink;
use wirevault_query::{Request, run as ask};
use wirevault_telemetry::clock::{Clock, SystemClock};
use wirevault_testkit::random::Random;

use crate::live::Case;
use crate::output::{Output, spread};
use crate::packets::{MemorySource, Packets, Size};
use crate::sender::{Load, Maker, PORT_AT, RECEIVER, SENDER, cable, probe, send};
use crate::site::{Site, SiteOptions};
use crate::sys::RawSocket;

const MEMORY_BYTES: usize = 256 << 20;
const BUFFER_BYTES: usize = 64 << 20;
const RING_BYTES: usize = 256 << 20;
/// More than any run needs.
const PASSES: u64 = 1 << 40;
/// Source port of the first probe; no other packet has it, nor one of those behind it.
const FIRST_PORT: u16 = 20_000;
const PROBES_MAX: u16 = 10_000;
/// Bytes of a probe.
const PROBE_BYTES: usize = 64;
/// What is promised.
const FOUND_MS: f64 = 2000.0;
/// Time between two questions for the same probe.
const ASK_AGAIN: Duration = Duration::from_millis(5);
/// Longest pause between two probes, which fall into all phases of what is periodic.
const PAUSE_MS: usize = 200;
/// A probe that is not found by then is lost.
const LOST: Duration = Duration::from_secs(20);

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Seconds of each load.
    #[arg(long, value_name = "N", default_value_t = 20)]
    secs: u64,
    /// Loads from an interface. The first row is from memory, as quickly as the disk takes it.
    #[arg(long, value_name = "BYTES@PACKETS_PER_S", value_delimiter = ',')]
    #[arg(default_values = ["1500@200000", "64@1000000"])]
    load: Vec<Case>,
    #[command(flatten)]
    site: SiteOptions,
}

/// What the probes of one load met.
#[derive(Debug, Default, Serialize)]
struct Row {
    load: String,
    mpps: f64,
    probes: u16,
    /// Until a question found the probe: smallest, middle, largest.
    found_ms: [f64; 3],
    /// Until a live view had it.
    tail_ms: [f64; 3],
    /// Probes that the live view missed, because it was behind.
    tail_missed: u16,
    /// What one question took.
    question_ms: [f64; 3],
    dropped: u64,
}

/// Runs it; false if a packet was lost.
pub(crate) fn run(options: &Options, mut output: Output) -> Result<bool> {
    let site = Site::new(options.site.folder.as_deref())?;
    output.say(
        "One lane, sealed and indexed, into files, with a live view of everything beside it; ms \
         from a probe's arrival until a question finds it, and until the live view has it.",
    );
    output.table(&[
        ("load", 18),
        ("Mpps", 6),
        ("probes", 6),
        ("found, median", 13),
        ("most", 6),
        ("live view, median", 17),
        ("most", 6),
        ("missed", 6),
        ("a question", 10),
        ("dropped", 7),
    ]);
    let mut rows = vec![from_memory(options, &site)?];
    rows[0].show(&mut output);
    let namespace = cable(Maker::Socket)?;
    for case in &options.load {
        let row = from_interface(options, &site, *case)?;
        row.show(&mut output);
        rows.push(row);
    }
    drop(namespace);
    for row in &rows {
        let what = format!("{}: a packet is found after", row.load);
        output.at_most(&what, " ms", FOUND_MS, row.found_ms[2]);
    }
    let dropped: u64 = rows.iter().map(|row| row.dropped).sum();
    output.finish(&rows)?;
    Ok(dropped == 0)
}

fn from_memory(options: &Options, site: &Site) -> Result<Row> {
    let packets = Arc::new(Packets::make(Size::Mix, MEMORY_BYTES));
    let memory = MemorySource::new(packets, PASSES, site.clock.unix_ns());
    let wanted = Arc::new(Mutex::new(None));
    let source = Probed { memory, wanted: Arc::clone(&wanted), probes: 0 };
    let pipeline = start(options, site, Box::new(source))?;
    let end = Instant::now() + Duration::from_secs(options.secs);
    let mut give = |frame: Vec<u8>| {
        *wanted.lock().unwrap_or_else(PoisonError::into_inner) = Some(frame);
        Ok(())
    };
    let row = probes(&pipeline, &mut give, &mut || Instant::now() >= end)?;
    finish(Row { load: "memory, 800 mix".to_owned(), ..row }, pipeline, site)
}

fn from_interface(options: &Options, site: &Site, case: Case) -> Result<Row> {
    let ring = PacketMmapOptions { ring_bytes: RING_BYTES, ..PacketMmapOptions::new(RECEIVER) };
    let pipeline = start(options, site, Box::new(PacketMmapSource::open(&ring)?))?;
    let Case { frame_bytes, packets_per_s } = case;
    let time = Duration::from_secs(options.secs);
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    // The kernel's work of receiving happens on the sender's core.
    let cpu = (cpus > 1).then_some(0);
    let load = Load { maker: Maker::Socket, frame_bytes, packets_per_s, time, cpu };
    let sender = std::thread::Builder::new().name("sender".to_owned());
    let sender = sender.spawn(move || send(SENDER, load))?;
    let socket = RawSocket::on(SENDER)?;
    let mut give = |frame: Vec<u8>| {
        let begin = Instant::now();
        while socket.send(std::slice::from_ref(&frame)).is_err() {
            ensure!(begin.elapsed() < LOST, "a probe cannot be sent");
        }
        Ok(())
    };
    let row = probes(&pipeline, &mut give, &mut || sender.is_finished())?;
    sender.join().ok().context("the sender panicked")??;
    finish(Row { load: format!("{frame_bytes}@{packets_per_s}"), ..row }, pipeline, site)
}

fn start(options: &Options, site: &Site, source: Box<dyn Source>) -> Result<Pipeline> {
    let how = PipelineOptions { topology: options.site.topology(), ..PipelineOptions::default() };
    site.start(source, options.site.quota_bytes(), BUFFER_BYTES, &how)
}

fn finish(row: Row, pipeline: Pipeline, site: &Site) -> Result<Row> {
    pipeline.stop();
    let dropped = pipeline.join()?[0].dropped_packets();
    site.clear()?;
    Ok(Row { dropped, ..row })
}

/// Sends probes one after the other, and asks for each until it is found.
fn probes(
    pipeline: &Pipeline,
    give: &mut dyn FnMut(Vec<u8>) -> Result<()>,
    is_over: &mut dyn FnMut() -> bool,
) -> Result<Row> {
    let view = View::of(pipeline)?;
    let lane = &pipeline.lanes()[0];
    let (began, before) = (Instant::now(), lane.books.snapshot());
    let mut random = Random::new(7);
    let (mut sent, mut found_ms, mut question_ms) = (Vec::new(), Vec::new(), Vec::new());
    while !is_over() && sent.len() < usize::from(PROBES_MAX) {
        std::thread::sleep(Duration::from_millis(random.below(PAUSE_MS) as u64));
        let port = FIRST_PORT + sent.len() as u16;
        let since_ns = SystemClock.unix_ns();
        let begin = Instant::now();
        sent.push(begin);
        give(probe(PROBE_BYTES, port))?;
        let request = Request {
            filter: format!("udp src port {port}"),
            since_ns: Some(since_ns),
            count_only: true,
            ..Request::default()
        };
        loop {
            let asked = Instant::now();
            let cancel = AtomicBool::new(false);
            let summary = ask(&pipeline.catalog(), &request, &mut CountSink::default(), &cancel)?;
            question_ms.push(ms(asked.elapsed()));
            if summary.packets > 0 {
                break;
            }
            ensure!(begin.elapsed() < LOST, "a probe is not found: {summary}");
            std::thread::sleep(ASK_AGAIN);
        }
        found_ms.push(ms(begin.elapsed()));
    }
    let (seconds, after) = (began.elapsed().as_secs_f64(), lane.books.snapshot());
    let packets = (after.stored - before.stored) as f64;
    let seen = view.end()?;
    let tail_ms: Vec<f64> = (FIRST_PORT..)
        .zip(&sent)
        .filter_map(|(port, begin)| Some(ms(seen.get(&port)?.duration_since(*begin))))
        .collect();
    Ok(Row {
        mpps: packets / seconds / 1e6,
        probes: sent.len() as u16,
        tail_missed: (sent.len() - tail_ms.len()) as u16,
        found_ms: spread(found_ms).context("no probe was sent")?,
        tail_ms: spread(tail_ms).unwrap_or_default(),
        question_ms: spread(question_ms).unwrap_or_default(),
        ..Row::default()
    })
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Somebody who watches everything live, and notes when probes come by.
struct View {
    thread: JoinHandle<HashMap<u16, Instant>>,
    stop: Arc<AtomicBool>,
}

impl View {
    fn of(pipeline: &Pipeline) -> Result<Self> {
        let chunks = pipeline.tail().subscribe();
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let watch = move || {
            let mut seen = HashMap::new();
            while !told.load(Ordering::Relaxed) {
                let Ok(chunk) = chunks.recv_timeout(Duration::from_millis(100)) else { continue };
                let now = Instant::now();
                seen.extend(probes_in(&chunk).map(|port| (port, now)));
            }
            seen
        };
        let thread = std::thread::Builder::new().name("view".to_owned()).spawn(watch)?;
        Ok(Self { thread, stop })
    }

    /// When each probe came by.
    fn end(self) -> Result<HashMap<u16, Instant>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok().context("the live view panicked")
    }
}

/// Source ports of the probes in a chunk.
fn probes_in(chunk: &TailChunk) -> impl Iterator<Item = u16> {
    let blocks = Blocks::new(&chunk.payload).map_while(Result::ok);
    blocks.filter(|block| block.kind == BLOCK_EPB).filter_map(|block| {
        let packet = Epb::parse(&block).ok()?;
        let port = u16::from_be_bytes(*packet.data.get(PORT_AT..)?.first_chunk()?);
        (packet.data.len() == PROBE_BYTES && packet.data[23] == 17 && port >= FIRST_PORT)
            .then_some(port)
    })
}

/// Packets from memory, and among them those that are wanted.
struct Probed {
    memory: MemorySource,
    wanted: Arc<Mutex<Option<Vec<u8>>>>,
    probes: u64,
}

impl Source for Probed {
    fn interfaces(&self) -> &[Interface] {
        self.memory.interfaces()
    }

    fn poll(&mut self, sink: &mut dyn PacketSink, wait: Duration) -> Result<Polled, CaptureError> {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(frame) = wanted.take() {
            let packet = Packet {
                interface: 0,
                ts_ns: SystemClock.unix_ns(),
                wire_len: frame.len() as u32,
                data: &frame,
                vlan: None,
                flags: None,
                options: &[],
            };
            if sink.packet(&packet).is_break() {
                *wanted = Some(frame);
                return Ok(Polled::Packets(0));
            }
            self.probes += 1;
            return Ok(Polled::Packets(1));
        }
        drop(wanted);
        self.memory.poll(sink, wait)
    }

    fn counters(&mut self) -> SourceCounters {
        let SourceCounters { received, handed, .. } = self.memory.counters();
        let (received, handed) = (received + self.probes, handed + self.probes);
        SourceCounters { received, handed, ..SourceCounters::default() }
    }

    fn state(&self) -> SourceState {
        self.memory.state()
    }

    fn report(&self) -> SourceReport {
        self.memory.report()
    }

    fn is_live(&self) -> bool {
        self.memory.is_live()
    }
}

impl Row {
    fn show(&self, output: &mut Output) {
        let [_, found, found_most] = self.found_ms;
        let [_, tail, tail_most] = self.tail_ms;
        output.row(vec![
            self.load.clone(),
            format!("{:.2}", self.mpps),
            self.probes.to_string(),
            format!("{found:.0}"),
            format!("{found_most:.0}"),
            format!("{tail:.0}"),
            format!("{tail_most:.0}"),
            self.tail_missed.to_string(),
            format!("{:.1}", self.question_ms[1]),
            self.dropped.to_string(),
        ]);
    }
}
