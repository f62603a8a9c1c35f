//! What a packet costs at the very least: one copy, entering it in the flow table, sealing. Each is
//! measured alone, over the packets of the same run, on as many cores at the same time as there are
//! lanes: cores share the way to memory, so one core alone is quicker than each of two.

use std::hint::black_box;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use anyhow::{Result, anyhow};
use serde::Serialize;
use wirevault_capture::{Packet, Polled, Source};
use wirevault_format::chunk::PAYLOAD_BYTES_MAX;
use wirevault_format::limits::CHUNK_BYTES;
use wirevault_index::flow_table::{BATCH, FlowOptions};
use wirevault_index::{ChunkDelta, FlowTable, PacketNote};
use wirevault_seal::{DataSealer, SegmentKeys};

use crate::index::note;
use crate::packets::{MemorySource, Packets};
use crate::threads::cpu;

/// Passes over the packets; the best counts, because other programs share the core.
const REPEATS: usize = 3;
const AAD_BYTES: usize = 128;
/// Chunks that a device has while a lane fills the next: 16 MiB, more than the near caches hold.
const CHUNKS_IN_FLIGHT: usize = 64;

/// CPU time for a packet in ns.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Bound {
    /// Handing it out. It is the generator's, not the recorder's, and no part of the bound.
    pub(crate) generate_ns: f64,
    /// Copying it into a chunk that is in the cache.
    pub(crate) copy_ns: f64,
    /// Copying it into one of many chunks, as a recorder must, whose last ones are still on their
    /// way to the device. No part of the bound.
    pub(crate) copy_far_ns: f64,
    /// Dissecting it there, and entering it in the flow table.
    pub(crate) upsert_ns: f64,
    /// Sealing it there with AES-256-GCM, a chunk at a time.
    pub(crate) seal_ns: f64,
}

/// CPU time of what is done to the packets.
#[derive(Clone, Copy, Default)]
struct Times {
    generate: Duration,
    copy: Duration,
    copy_far: Duration,
    upsert: Duration,
    seal: Duration,
}

impl Times {
    const MAX: Self = Self {
        generate: Duration::MAX,
        copy: Duration::MAX,
        copy_far: Duration::MAX,
        upsert: Duration::MAX,
        seal: Duration::MAX,
    };
}

impl Bound {
    /// Measures them over all of `packets`, `passes` times, on `cores` at once; each figure is the
    /// mean of theirs.
    pub(crate) fn measure(packets: &Arc<Packets>, passes: u64, cores: usize) -> Result<Self> {
        let times = thread::scope(|scope| {
            let on_core = |_| scope.spawn(|| best(packets, passes));
            let threads: Vec<_> = (0..cores).map(on_core).collect();
            threads.into_iter().map(join).collect::<Result<Vec<_>>>()
        })?;
        let count = (packets.count * passes * cores as u64) as f64;
        let each = |of: fn(&Times) -> Duration| {
            times.iter().map(|times| of(times).as_nanos() as f64).sum::<f64>() / count
        };
        Ok(Self {
            generate_ns: each(|times| times.generate),
            copy_ns: each(|times| times.copy),
            copy_far_ns: each(|times| times.copy_far),
            upsert_ns: each(|times| times.upsert),
            seal_ns: each(|times| times.seal),
        })
    }

    /// One core's time for a packet.
    pub(crate) fn sum_ns(&self) -> f64 {
        self.copy_ns + self.upsert_ns + self.seal_ns
    }
}

fn join(thread: ScopedJoinHandle<'_, Result<Times>>) -> Result<Times> {
    thread.join().map_err(|_| anyhow!("a thread that measures panicked"))?
}

/// One core's best.
fn best(packets: &Arc<Packets>, passes: u64) -> Result<Times> {
    let mut best = Times::MAX;
    let mut steps = Steps::new()?;
    for _ in 0..REPEATS {
        best.generate = best.generate.min(generate(packets, passes)?);
        let far = steps.run(packets, passes, CHUNKS_IN_FLIGHT)?;
        best.copy_far = best.copy_far.min(far.copy);
        let near = steps.run(packets, passes, 1)?;
        best.copy = best.copy.min(near.copy);
        best.upsert = best.upsert.min(near.upsert);
        best.seal = best.seal.min(near.seal);
    }
    Ok(best)
}

fn generate(packets: &Arc<Packets>, passes: u64) -> Result<Duration> {
    let mut source = MemorySource::new(Arc::clone(packets), passes, 0);
    let mut sink = |packet: &Packet<'_>| {
        black_box(packet);
        ControlFlow::Continue(())
    };
    let begin = cpu()?;
    while let Polled::Packets(_) = source.poll(&mut sink, Duration::ZERO)? {}
    Ok(cpu()? - begin)
}

/// The steps in turn, a chunk at a time, so that each meets what the one before it left in the
/// cache.
struct Steps {
    /// Chunks, of which a run uses some.
    chunks: Vec<u8>,
    /// Where each packet of a chunk stands among them.
    places: Vec<(usize, usize)>,
    notes: Vec<PacketNote>,
    table: FlowTable,
    delta: ChunkDelta,
    sealer: DataSealer,
    number: u32,
}

impl Steps {
    fn new() -> Result<Self> {
        Ok(Self {
            chunks: vec![1; CHUNKS_IN_FLIGHT * CHUNK_BYTES],
            places: Vec::new(),
            notes: Vec::with_capacity(BATCH),
            table: FlowTable::new(FlowOptions::default()),
            delta: ChunkDelta::new(),
            sealer: SegmentKeys::generate()?.data_sealer()?,
            number: 0,
        })
    }

    fn run(&mut self, packets: &Packets, passes: u64, chunks: usize) -> Result<Times> {
        let mut times = Times::default();
        for _ in 0..passes {
            let mut waiting = packets.iter().peekable();
            while waiting.peek().is_some() {
                let at = self.number as usize % chunks * CHUNK_BYTES;
                let mut end = at;
                self.places.clear();
                let begin = cpu()?;
                while let Some(packet) =
                    waiting.next_if(|packet| end + packet.len() <= at + PAYLOAD_BYTES_MAX)
                {
                    self.chunks[end..end + packet.len()].copy_from_slice(packet);
                    self.places.push((end, end + packet.len()));
                    end += packet.len();
                }
                let copied = cpu()?;
                self.upsert();
                let entered = cpu()?;
                black_box(self.sealer.seal(
                    self.number,
                    &[0; AAD_BYTES],
                    &mut self.chunks[at..end],
                )?);
                self.number += 1;
                times.copy += copied - begin;
                times.upsert += entered - copied;
                times.seal += cpu()? - entered;
            }
        }
        Ok(times)
    }

    fn upsert(&mut self) {
        self.delta.clear();
        self.delta.number = self.number;
        self.table.begin_chunk(&self.delta);
        for batch in self.places.chunks(BATCH) {
            self.notes.clear();
            self.notes.extend(batch.iter().map(|&(from, to)| {
                let frame = &self.chunks[from..to];
                note(frame, frame.len() as u32, 1)
            }));
            self.table.upsert(&self.notes, &mut self.delta);
        }
    }
}
