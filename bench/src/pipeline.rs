//! From memory through the pipeline, sealed and indexed, into nothing and into a file.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;
use wirevault_format::limits::CHUNK_BYTES;
use wirevault_nvme::{NullQueue, Queue, QueueOptions};
use wirevault_pipeline::PipelineOptions;

use crate::limits::Limits;
use crate::packets::{FLOWS, MemorySource, Packets, Size};
use crate::site::{Site, SiteOptions};
use crate::threads::StageTimes;

/// A source of this many bytes stays in the second-level cache.
const HOT_BYTES: usize = 512 << 10;
/// Nothing takes longer, however slow the machine.
const TIME_MAX: Duration = Duration::from_secs(600);
const PAUSE: Duration = Duration::from_millis(1);
/// The last chunk is not full; the default would add a quarter of a second for it.
const FLUSH_AGE: Duration = Duration::from_millis(5);

/// Where chunks go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Device {
    /// They are dropped after sealing.
    Null,
    /// Into the segment files of a store, with its quota, flushes and index.
    File,
}

impl Device {
    /// Options of a pipeline onto it.
    pub(crate) fn options(self) -> PipelineOptions {
        let mut options = PipelineOptions { flush_age: FLUSH_AGE, ..PipelineOptions::default() };
        if self == Self::Null {
            options.queue = Arc::new(|_, _| {
                Ok(Box::new(NullQueue::new(&QueueOptions::default())?) as Box<dyn Queue>)
            });
        }
        options
    }
}

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// MiB of distinct packets in memory.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    mib: u64,
    /// Passes over them; the hot source gives as many packets in all.
    #[arg(long, value_name = "N", default_value_t = 4)]
    passes: u64,
    /// Packet sizes.
    #[arg(long, value_enum, value_delimiter = ',')]
    #[arg(default_values = ["64", "512", "mix", "1500"])]
    size: Vec<Size>,
    /// Devices.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["null", "file"])]
    device: Vec<Device>,
    /// MiB of packet buffer.
    #[arg(long, value_name = "N", default_value_t = 64)]
    buffer_mib: u64,
    #[command(flatten)]
    site: SiteOptions,
}

/// One row.
#[derive(Debug, Serialize)]
struct Row {
    size: Size,
    source: &'static str,
    device: &'static str,
    packets: u64,
    bytes: u64,
    seconds: f64,
    gb_s: f64,
    mpps: f64,
    fill_ns: f64,
    /// The sealing thread's time without sealing.
    index_ns: f64,
    /// Bytes by the rate of sealing a chunk that is in the cache, in the same run.
    seal_ns: f64,
    write_ns: f64,
    /// Keeping the index of open segments, on its own thread.
    apply_ns: f64,
    chunks: u64,
    /// Chunks that the index does not cover, because its thread could not keep up.
    unindexed_chunks: u64,
    /// 99.9 % of the operations on buffers took no longer, ns: taking a free chunk, handing one
    /// over, giving one back. Upper bounds, at most twice too high.
    take_p999_ns: u64,
    hand_over_p999_ns: u64,
    recycle_p999_ns: u64,
}

#[derive(Debug, Serialize)]
struct Report {
    flows: u64,
    limits: Limits,
    rows: Vec<Row>,
}

/// Runs it; false if a run lost packets.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let site = Site::new(options.site.folder.as_deref())?;
    let to_disk = options.device.contains(&Device::File);
    let limits = Limits::measure(to_disk.then(|| site.path()))?;
    if !options.site.json {
        limits.print();
        println!("\npackets in memory through the pipeline, {FLOWS} flows, sealed and indexed");
        println!(
            "ns a packet: CPU time of each stage's thread (index and seal share one); the slowest \
             thread sets the pace; take, hand, recycle: ns that 99.9 % of these operations on \
             chunks stay below"
        );
        println!(
            "{:>8} {:>6} {:>6} {:>10} {:>6} {:>6} | {:>6} {:>6} {:>6} {:>6} {:>6} | \
             {:>7} {:>9} | {:>6} {:>6} {:>7}",
            "size",
            "source",
            "device",
            "packets",
            "GB/s",
            "Mpps",
            "fill",
            "index",
            "seal",
            "write",
            "apply",
            "chunks",
            "unindexed",
            "take",
            "hand",
            "recycle"
        );
    }
    let mut rows = Vec::new();
    for size in &options.size {
        let cold = Arc::new(Packets::make(*size, (options.mib << 20) as usize));
        let hot = Arc::new(Packets::make(*size, HOT_BYTES));
        let hot_passes = (cold.count * options.passes).div_ceil(hot.count);
        for device in &options.device {
            for (name, packets, passes) in
                [("cold", &cold, options.passes), ("hot", &hot, hot_passes)]
            {
                let row = measure(options, &site, &limits, *device, name, packets, passes, *size)?;
                if !options.site.json {
                    row.print();
                }
                rows.push(row);
            }
        }
    }
    if options.site.json {
        println!("{}", serde_json::to_string_pretty(&Report { flows: FLOWS, limits, rows })?);
    }
    Ok(true)
}

#[expect(clippy::too_many_arguments, reason = "one row of the table is made of these")]
fn measure(
    options: &Options,
    site: &Site,
    limits: &Limits,
    device: Device,
    source: &'static str,
    packets: &Arc<Packets>,
    passes: u64,
    size: Size,
) -> Result<Row> {
    let how = device.options();
    let (count, bytes) = (packets.count * passes, packets.bytes() * passes);
    let quota_bytes = options.site.quota_bytes();
    let memory = MemorySource::new(Arc::clone(packets), passes, site.clock.unix_ns());
    let buffer_bytes = (options.buffer_mib << 20) as usize;
    let begin = Instant::now();
    let pipeline = site.start(Box::new(memory), quota_bytes, buffer_bytes, &how)?;
    let started = Instant::now();
    let lane = &pipeline.lanes()[0];
    while lane.books.snapshot().stored < count {
        ensure!(begin.elapsed() < TIME_MAX, "still not done: {:?}", lane.books.snapshot());
        ensure!(!pipeline.is_finished(), "the lane ended: {:?}", lane.shared.error());
        std::thread::sleep(PAUSE);
    }
    let took = started.elapsed();
    let stages = StageTimes::now()?;
    let unindexed_chunks = lane.shared.unindexed_chunks.load(Ordering::Relaxed);
    let written_bytes = pipeline.volumes()[0].shared.written_bytes.load(Ordering::Relaxed);
    let [take_p999_ns, hand_over_p999_ns, recycle_p999_ns] = pipeline
        .buffer_times()
        .all()
        .map(|(_, latency)| latency.snapshot().quantile_ns(0.999).unwrap_or(0));
    pipeline.stop();
    let books = pipeline.join()?;
    ensure!(books[0].stored == count && books[0].dropped_packets() == 0, "lost: {books:?}");
    site.clear()?;
    let each = |ns: u64| ns as f64 / count as f64;
    let seal_ns = bytes as f64 / count as f64 / limits.seal_warm_gb_s;
    Ok(Row {
        size,
        source,
        device: if device == Device::Null { "null" } else { "file" },
        packets: count,
        bytes,
        seconds: took.as_secs_f64(),
        gb_s: bytes as f64 / took.as_nanos() as f64,
        mpps: count as f64 * 1000.0 / took.as_nanos() as f64,
        fill_ns: each(stages.fill_ns),
        index_ns: (each(stages.seal_ns) - seal_ns).max(0.0),
        seal_ns,
        write_ns: each(stages.write_ns),
        apply_ns: each(stages.apply_ns),
        chunks: written_bytes / CHUNK_BYTES as u64,
        unindexed_chunks,
        take_p999_ns,
        hand_over_p999_ns,
        recycle_p999_ns,
    })
}

impl Row {
    fn print(&self) {
        let Self { source, device, packets, gb_s, mpps, chunks, unindexed_chunks, .. } = self;
        let Self { fill_ns, index_ns, seal_ns, write_ns, apply_ns, .. } = self;
        let Self { take_p999_ns, hand_over_p999_ns, recycle_p999_ns, .. } = self;
        println!(
            "{:>8} {source:>6} {device:>6} {packets:>10} {gb_s:>6.2} {mpps:>6.2} | {fill_ns:>6.0} \
             {index_ns:>6.0} {seal_ns:>6.0} {write_ns:>6.0} {apply_ns:>6.0} | {chunks:>7} \
             {unindexed_chunks:>9} | {take_p999_ns:>6} {hand_over_p999_ns:>6} {recycle_p999_ns:>7}",
            self.size.name()
        );
    }
}
