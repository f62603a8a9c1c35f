//! What a packet costs at the very least: one copy, entering it in the flow table, sealing. Each is
//! measured alone, on one core, over the packets of the same run.

use std::hint::black_box;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
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

/// CPU time for a packet in ns.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Bound {
    /// Handing it out. It is the generator's, not the recorder's, and no part of the bound.
    pub(crate) generate_ns: f64,
    /// Copying it into a chunk that is in the cache.
    pub(crate) copy_ns: f64,
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
    upsert: Duration,
    seal: Duration,
}

impl Bound {
    /// Measures them over all of `packets`, `passes` times.
    pub(crate) fn measure(packets: &Arc<Packets>, passes: u64) -> Result<Self> {
        let count = packets.count * passes;
        let mut best = Times {
            generate: Duration::MAX,
            copy: Duration::MAX,
            upsert: Duration::MAX,
            seal: Duration::MAX,
        };
        let mut steps = Steps::new()?;
        for _ in 0..REPEATS {
            best.generate = best.generate.min(generate(packets, passes)?);
            let times = steps.run(packets, passes)?;
            best.copy = best.copy.min(times.copy);
            best.upsert = best.upsert.min(times.upsert);
            best.seal = best.seal.min(times.seal);
        }
        let each = |time: Duration| time.as_nanos() as f64 / count as f64;
        Ok(Self {
            generate_ns: each(best.generate),
            copy_ns: each(best.copy),
            upsert_ns: each(best.upsert),
            seal_ns: each(best.seal),
        })
    }

    /// One core's time for a packet.
    pub(crate) fn sum_ns(&self) -> f64 {
        self.copy_ns + self.upsert_ns + self.seal_ns
    }
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
    chunk: Vec<u8>,
    /// Where each packet stands in the chunk.
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
            chunk: vec![0; CHUNK_BYTES],
            places: Vec::new(),
            notes: Vec::with_capacity(BATCH),
            table: FlowTable::new(FlowOptions::default()),
            delta: ChunkDelta::new(),
            sealer: SegmentKeys::generate()?.data_sealer()?,
            number: 0,
        })
    }

    fn run(&mut self, packets: &Packets, passes: u64) -> Result<Times> {
        let mut times = Times::default();
        for _ in 0..passes {
            let mut waiting = packets.iter().peekable();
            while waiting.peek().is_some() {
                let mut end = 0;
                self.places.clear();
                let begin = cpu()?;
                while let Some(packet) =
                    waiting.next_if(|packet| end + packet.len() <= PAYLOAD_BYTES_MAX)
                {
                    self.chunk[end..end + packet.len()].copy_from_slice(packet);
                    self.places.push((end, end + packet.len()));
                    end += packet.len();
                }
                let copied = cpu()?;
                self.upsert();
                let entered = cpu()?;
                black_box(self.sealer.seal(
                    self.number,
                    &[0; AAD_BYTES],
                    &mut self.chunk[..end],
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
                let frame = &self.chunk[from..to];
                note(frame, frame.len() as u32, 1)
            }));
            self.table.upsert(&self.notes, &mut self.delta);
        }
    }
}
