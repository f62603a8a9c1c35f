//! What the machine could do at best, measured in the same run: one core's memcpy and AES-256-GCM,
//! and O_DIRECT writes through the recorder's own device queue.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::Serialize;
use wirevault_buffer::{Arena, ArenaOptions, Hugepages, Pool};
use wirevault_format::limits::CHUNK_BYTES;
use wirevault_media::{DirMedia, Media, OpenMode};
use wirevault_nvme::{Completion, QueueOptions, open_best};
use wirevault_seal::SegmentKeys;

use crate::output::Output;

/// Far more than any cache holds.
const MEMORY_BYTES: usize = 128 << 20;
const DISK_BYTES: u64 = 1 << 30;
/// Writes in flight: 2 MiB saturate one disk.
const DISK_DEPTH: usize = 16;
const AAD_BYTES: usize = 128;
const WARM_CHUNKS: usize = 256;
const REPEATS: usize = 10;

/// GB (10^9 bytes) a second.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Limits {
    /// Copying memory that is in no cache, a chunk at a time, on one core.
    pub(crate) memcpy_gb_s: f64,
    /// Sealing chunks that are in no cache, on one core.
    pub(crate) seal_gb_s: f64,
    /// Sealing a chunk that is in the cache, as it is when a lane has just filled it.
    pub(crate) seal_warm_gb_s: f64,
    /// Writing chunks to a preallocated file, with a flush at the end; nothing if not asked for.
    pub(crate) disk_gb_s: Option<f64>,
    /// How the disk was written.
    pub(crate) disk: String,
}

impl Limits {
    /// Measures them; the disk's in `folder`.
    pub(crate) fn measure(folder: Option<&Path>) -> Result<Self> {
        let mut from = vec![1u8; MEMORY_BYTES];
        let mut to = vec![2u8; MEMORY_BYTES];
        let memcpy_gb_s = best(|| {
            for (to, from) in to.chunks_mut(CHUNK_BYTES).zip(from.chunks(CHUNK_BYTES)) {
                to.copy_from_slice(from);
            }
            black_box(&mut to);
            Ok(MEMORY_BYTES as u64)
        })?;
        let mut number = 0;
        let mut sealer = SegmentKeys::generate()?.data_sealer()?;
        let seal_gb_s = best(|| {
            for chunk in from.chunks_mut(CHUNK_BYTES) {
                black_box(sealer.seal(number, &[0; AAD_BYTES], chunk)?);
                number += 1;
            }
            Ok(MEMORY_BYTES as u64)
        })?;
        let warm = &mut from[..CHUNK_BYTES];
        let seal_warm_gb_s = best(|| {
            for _ in 0..WARM_CHUNKS {
                black_box(sealer.seal(number, &[0; AAD_BYTES], warm)?);
                number += 1;
            }
            Ok((WARM_CHUNKS * CHUNK_BYTES) as u64)
        })?;
        let (disk_gb_s, disk) = match folder {
            Some(folder) => {
                let (gb_s, how) = disk(folder)?;
                (Some(gb_s), how)
            }
            None => (None, "not measured".to_owned()),
        };
        Ok(Self { memcpy_gb_s, seal_gb_s, seal_warm_gb_s, disk_gb_s, disk })
    }

    /// A line for people.
    pub(crate) fn say(&self, output: &mut Output) {
        let mut line = format!(
            "One core in the same run: memcpy {:.2} GB/s (cold), AES-256-GCM {:.2} (cold) and \
             {:.2} (chunk in the cache).",
            self.memcpy_gb_s, self.seal_gb_s, self.seal_warm_gb_s
        );
        if let Some(gb_s) = self.disk_gb_s {
            line += &format!(" Sequential writes and a flush: {gb_s:.2} GB/s ({}).", self.disk);
        }
        output.say(line);
    }
}

/// The best of several: other programs share the cores.
fn best(mut work: impl FnMut() -> Result<u64>) -> Result<f64> {
    let mut best: f64 = 0.0;
    for _ in 0..REPEATS {
        let begin = Instant::now();
        let bytes = work()?;
        best = best.max(bytes as f64 / begin.elapsed().as_nanos() as f64);
    }
    Ok(best)
}

fn disk(folder: &Path) -> Result<(f64, String)> {
    const NAME: &str = "limit";
    let media = DirMedia::open(folder)?;
    let file = media.open(NAME, OpenMode::Create)?;
    file.allocate(DISK_BYTES)?;
    file.sync()?;
    let arena = ArenaOptions {
        bytes: DISK_DEPTH * CHUNK_BYTES,
        hugepages: Hugepages::Auto,
        numa_node: None,
    };
    let pool = Pool::new(Arena::new(arena)?);
    let mut queue = open_best(&QueueOptions::default(), pool.arena())?;
    let slot = queue.attach(&file)?;
    let report = queue.report();
    let (mut offset, mut completions) = (0, Vec::new());
    let begin = Instant::now();
    while offset < DISK_BYTES || queue.in_flight() > 0 {
        while offset < DISK_BYTES
            && let Some(buf) = pool.take()
        {
            let written = queue.write(slot, offset, buf, CHUNK_BYTES, offset);
            ensure!(written.is_ok(), "a write to {} was refused", folder.display());
            offset += CHUNK_BYTES as u64;
        }
        queue.poll(Duration::from_millis(10), &mut completions)?;
        for completion in completions.drain(..) {
            ensure!(completion.result().is_ok(), "writing: {:?}", completion.result());
        }
    }
    queue.sync(slot, 0)?;
    while queue.in_flight() > 0 {
        queue.poll(Duration::from_millis(10), &mut completions)?;
    }
    let took = begin.elapsed();
    let flushed = completions.iter().all(|it: &Completion| it.result().is_ok());
    ensure!(flushed, "the flush failed: {completions:?}");
    queue.detach(slot)?;
    media.remove(NAME)?;
    let direct = if report.o_direct { ", O_DIRECT" } else { "" };
    let how = format!("{}{direct}, {} MiB in flight", report.backend, DISK_DEPTH / 4);
    Ok((DISK_BYTES as f64 / took.as_nanos() as f64, how))
}
