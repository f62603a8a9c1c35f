//! How fine the index of a closing segment is: chunk by chunk, its flows or a filter.
//!
//! Flows are finer and tell more; under a flood they are also as large as the packets. So there is
//! a budget, a share of what the segment stores. If the flows do not fit it, the chunks that cost
//! most are covered by their filters, until the rest fits. A flow that is left without chunks is
//! not written. A flood that lasts for a part of the segment coarsens that part.

use wirevault_format::footer::ChunkEntry;

use crate::chunk_filter::{self, ChunkFilter};
use crate::flows::{FlowList, Lists, Shape};
use crate::segment_index::Live;

/// Stored bytes for each byte of index, 0.45 %: the footer, the padding and an error of the
/// estimates below fit between this and the 0.5 % that are promised.
const STORED_BYTES_PER_BYTE: u64 = 222;
/// Bytes that an index may always have: a small segment is searched like a large one.
pub const INDEX_BYTES_ALWAYS: u64 = 64 << 10;
/// Bytes that a flow takes after compression, its addresses included, and a posting in tenths:
/// measured on mixed traffic (14.5 and 1.3), and a little more.
const FLOW_BYTES: u64 = 16;
const POSTING_TENTHS: u64 = 15;
/// Bytes of a shape.
const SHAPE_BYTES: u64 = 12;
/// Bytes that a chunk takes in the chunk table after compression.
const CHUNK_BYTES: u64 = 18;

/// Bytes that the index over these chunks may take.
pub(crate) fn budget_bytes(chunks: &[ChunkEntry]) -> u64 {
    let stored: u64 = chunks.iter().map(|chunk| u64::from(chunk.chunk_bytes)).sum();
    (stored / STORED_BYTES_PER_BYTE).max(INDEX_BYTES_ALWAYS)
}

/// What is written of the index of a live segment.
pub(crate) struct Coarse {
    pub(crate) filters: Vec<Option<ChunkFilter>>,
    pub(crate) scanned: Vec<bool>,
    pub(crate) kept: Vec<u32>,
    /// Shapes of what is written, and the number of each of the index's shapes among them.
    pub(crate) shapes: Vec<Shape>,
    pub(crate) shape_numbers: Vec<u32>,
    pub(crate) postings: Lists,
}

impl Coarse {
    /// Chooses for each chunk.
    pub(crate) fn of(live: &Live, budget: u64) -> Self {
        let mut filters = live.filters.clone();
        let mut scanned = live.scanned.clone();
        let open = |chunk: usize| !scanned[chunk] && filters[chunk].is_none();
        let is_open: Vec<bool> = (0..live.chunks.len()).map(open).collect();
        let mut sum = Estimate::new(live, &is_open);
        let mut order: Vec<u32> = (0..).zip(&is_open).filter(|it| *it.1).map(|it| it.0).collect();
        if sum.bytes() > budget {
            order.sort_by_key(|chunk| std::cmp::Reverse(live.touches.get(*chunk as usize).len()));
        }
        for chunk in order {
            if sum.bytes() <= budget {
                break;
            }
            let entry = &live.chunks[chunk as usize];
            let touched = live.touches.get(chunk as usize);
            if sum.gain(touched) <= chunk_filter::bytes_max(entry.chunk_bytes) {
                continue;
            }
            let filter = filter_of(&live.flows, touched, entry.chunk_bytes);
            sum.take_out(touched, filter.as_ref());
            scanned[chunk as usize] = filter.is_none();
            filters[chunk as usize] = filter;
        }
        let kept = (0..).zip(&sum.chunks_of).filter(|(_, chunks)| **chunks > 0);
        let kept: Vec<u32> = kept.map(|(flow, _)| flow).collect();
        let listed = |chunk: usize| !scanned[chunk] && filters[chunk].is_none();
        let postings = live.touches.turned(live.flows.len(), listed);
        let (shapes, shape_numbers) = shapes_of(&live.flows, &kept, &mut filters);
        Self { filters, scanned, kept, shapes, shape_numbers, postings }
    }
}

/// The shapes of what is written, numbered anew, also in the filters.
fn shapes_of(
    flows: &FlowList,
    kept: &[u32],
    filters: &mut [Option<ChunkFilter>],
) -> (Vec<Shape>, Vec<u32>) {
    let mut used = vec![false; flows.shapes.list.len()];
    kept.iter().for_each(|flow| used[flows.shape_of[*flow as usize] as usize] = true);
    let named = filters.iter().flatten().flat_map(|filter| &filter.shapes);
    named.for_each(|number| used[*number as usize] = true);
    let mut shapes = Vec::new();
    let number = |(shape, used): (&Shape, &bool)| {
        if *used {
            shapes.push(shape.clone());
        }
        // Of no use where the shape is not used.
        shapes.len().saturating_sub(1) as u32
    };
    let numbers: Vec<u32> = flows.shapes.list.iter().zip(&used).map(number).collect();
    for number in filters.iter_mut().flatten().flat_map(|filter| &mut filter.shapes) {
        *number = numbers[*number as usize];
    }
    (shapes, numbers)
}

/// The filter over flows that an index knows.
fn filter_of(flows: &FlowList, touched: &[u32], chunk_bytes: u32) -> Option<ChunkFilter> {
    // The flows of a chunk lie all over the list: fetched together they take a third of the time.
    touched.iter().for_each(|flow| flows.prefetch_place(*flow as usize));
    touched.iter().for_each(|flow| flows.prefetch_key(*flow as usize));
    let each = touched.iter().map(|flow| {
        let (shape, values) = flows.flow(*flow as usize);
        (flows.shape_of[*flow as usize], shape, values)
    });
    ChunkFilter::build(chunk_bytes, each)
}

/// Bytes that the index will have, about.
struct Estimate {
    flows: u64,
    postings: u64,
    other_bytes: u64,
    /// For each flow the chunks that still name it.
    chunks_of: Vec<u32>,
}

impl Estimate {
    fn new(live: &Live, is_open: &[bool]) -> Self {
        let mut chunks_of = vec![0u32; live.flows.len()];
        let mut postings = 0;
        for chunk in (0..is_open.len()).filter(|chunk| is_open[*chunk]) {
            let touched = live.touches.get(chunk);
            postings += touched.len() as u64;
            touched.iter().for_each(|flow| chunks_of[*flow as usize] += 1);
        }
        let flows = chunks_of.iter().filter(|chunks| **chunks > 0).count() as u64;
        let filters = live.filters.iter().flatten().map(|filter| filter.bits.len() as u64);
        let other_bytes = live.chunks.len() as u64 * CHUNK_BYTES
            + live.flows.shapes.list.len() as u64 * SHAPE_BYTES
            + filters.sum::<u64>();
        Self { flows, postings, other_bytes, chunks_of }
    }

    fn bytes(&self) -> u64 {
        cost(self.flows, self.postings) + self.other_bytes
    }

    /// Bytes less if a chunk with these flows did not name them.
    fn gain(&self, touched: &[u32]) -> u64 {
        let alone = touched.iter().filter(|flow| self.chunks_of[**flow as usize] == 1).count();
        // A flow of several chunks goes with the last of them, so each carries a part of it.
        let shared = (touched.len() - alone) as u64 / 2;
        cost(alone as u64 + shared, touched.len() as u64)
    }

    fn take_out(&mut self, touched: &[u32], filter: Option<&ChunkFilter>) {
        self.postings -= touched.len() as u64;
        self.other_bytes += filter.map_or(0, |filter| filter.bits.len() as u64);
        for flow in touched {
            let chunks = &mut self.chunks_of[*flow as usize];
            *chunks -= 1;
            self.flows -= u64::from(*chunks == 0);
        }
    }
}

fn cost(flows: u64, postings: u64) -> u64 {
    flows * FLOW_BYTES + postings * POSTING_TENTHS / 10
}
