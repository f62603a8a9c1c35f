//! The index of one segment: its chunks, its gaps, its flows, and in which chunks each flow has
//! packets.
//!
//! Built from deltas while the segment is written, or decoded from the sections of a closed one;
//! a closed one may be coarser (see `coarsen`). Of a closed segment only what planning needs first
//! is decoded at once: the rest waits until the filter has not ruled the segment out.
//!
//! Each chunk is covered by its flows, or by a filter of its own, or by nothing: then it is
//! scanned.

use std::borrow::Cow;
use std::fmt;
use std::sync::OnceLock;

use wirevault_format::Gap;
use wirevault_format::footer::ChunkEntry;
use wirevault_format::section::SectionId;
use wirevault_packet::bpf::Program;

use crate::IndexError;
use crate::chunk_filter::ChunkFilter;
use crate::coarsen::{self, Coarse};
use crate::decode;
use crate::delta::ChunkDelta;
use crate::digest::{Digest, Values};
use crate::flows::{FlowList, Flows, Lists, Shape, parts};
use crate::host_filter::HostFilter;
use crate::sections::{self, EncodedIndex, Parts};
use crate::select::{self, Chunks, Selection};

/// Shapes that loose packets may add to an index: a flood of random headers has no end of them, and
/// its chunks are scanned.
const LOOSE_SHAPES_MAX: usize = 4096;

/// Gives the decoded bytes of a section; `None` if the segment has no such section.
pub type Loader = Box<dyn Fn(SectionId) -> Result<Option<Vec<u8>>, IndexError> + Send + Sync>;

/// The index of one segment.
#[derive(Default)]
pub struct SegmentIndex {
    live: Live,
    gaps: Vec<(u32, Gap)>,
    stored: Option<Stored>,
}

/// What deltas add. Of a closed segment: chunks, and which of them are scanned.
#[derive(Default)]
pub(crate) struct Live {
    pub(crate) chunks: Vec<ChunkEntry>,
    pub(crate) scanned: Vec<bool>,
    /// Filters of chunks with packets whose flows are not in `flows`.
    pub(crate) filters: Vec<Option<ChunkFilter>>,
    pub(crate) flows: FlowList,
    /// For each chunk the flows that have packets in it.
    pub(crate) touches: Lists,
}

/// What a closed segment adds: shapes and filter, and the rest once it was asked for.
struct Stored {
    shapes: Vec<Shape>,
    filter: Option<HostFilter>,
    loader: Loader,
    filters: OnceLock<Result<Vec<Option<ChunkFilter>>, String>>,
    flows: OnceLock<Result<(FlowList, Lists), String>>,
}

impl SegmentIndex {
    /// An index of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a chunk. Chunks come in the order of their numbers.
    ///
    /// # Errors
    /// `Section` if the delta does not continue the index; the index is unchanged then.
    pub fn apply(&mut self, delta: &ChunkDelta) -> Result<(), IndexError> {
        let wrong = |what: String| IndexError::Section { section: "delta", what };
        if delta.number as usize != self.live.chunks.len() {
            let (found, expected) = (delta.number, self.live.chunks.len());
            return Err(wrong(format!("chunk {found} follows instead of {expected}")));
        }
        if self.stored.is_some() {
            return Err(wrong("a closed segment takes no chunk".to_owned()));
        }
        let flows = self.live.flows.len() + delta.new_flows.len();
        if let Some(touch) = delta.touched.iter().find(|touch| touch.flow as usize >= flows) {
            return Err(wrong(format!("flow {} of {flows} is touched", touch.flow)));
        }
        self.gaps.extend(delta.gaps.iter().map(|gap| (delta.number, *gap)));
        self.live.add(delta);
        Ok(())
    }

    /// Adds a gap that no chunk tells of.
    pub fn add_gap(&mut self, gap: Gap) {
        self.gaps.push((self.live.chunks.len() as u32, gap));
    }

    /// Chunks, by number.
    pub fn chunks(&self) -> &[ChunkEntry] {
        &self.live.chunks
    }

    /// Gaps, each with the number of the chunk that tells of it.
    pub fn gaps(&self) -> &[(u32, Gap)] {
        &self.gaps
    }

    /// Queries scan this chunk.
    pub fn is_unindexed(&self, chunk: u32) -> bool {
        self.live.scanned.get(chunk as usize).copied().unwrap_or(true)
    }

    /// The flows cover every packet of this chunk. False also where the index cannot be read.
    pub fn lists_flows_of(&self, chunk: u32) -> bool {
        let filtered = self.filters().map(|it| it.get(chunk as usize).is_some_and(Option::is_some));
        !self.is_unindexed(chunk) && filtered.is_ok_and(|filtered| !filtered)
    }

    /// Chunks that queries scan.
    pub fn unindexed_chunks(&self) -> u32 {
        self.live.scanned.iter().filter(|scanned| **scanned).count() as u32
    }

    /// Flows, in the order of their first packets. Chunks that a filter covers may hold more.
    ///
    /// # Errors
    /// `Section` if the sections of a closed segment do not decode.
    pub fn flows(&self) -> Result<Flows<'_>, IndexError> {
        match &self.stored {
            None => {
                let listed =
                    |chunk: usize| !self.live.scanned[chunk] && self.live.filters[chunk].is_none();
                let postings = self.live.touches.turned(self.live.flows.len(), listed);
                Ok(Flows::new(&self.live.flows, Cow::Owned(postings)))
            }
            Some(stored) => {
                let (flows, postings) = stored.flows(&self.live).map_err(unreadable)?;
                Ok(Flows::new(flows, Cow::Borrowed(postings)))
            }
        }
    }

    /// Bytes of memory that the flows of a live segment take, without what the allocator adds.
    pub fn memory_bytes(&self) -> usize {
        let Live { chunks, scanned, filters, flows, touches } = &self.live;
        let filters: usize = filters.iter().flatten().map(|filter| filter.bits.len()).sum();
        size_of_val(&chunks[..])
            + scanned.len()
            + filters
            + flows.memory_bytes()
            + size_of_val(&touches.numbers[..])
            + size_of_val(&touches.ends[..])
    }

    /// Encodes all sections. What the flows of a live segment take is bounded: where they are too
    /// many, chunks are covered by filters.
    ///
    /// # Errors
    /// `Section` if the compressor fails, or if an index that was decoded does not decode any more.
    pub fn encode(&self) -> Result<EncodedIndex, IndexError> {
        self.encode_within(coarsen::budget_bytes(&self.live.chunks))
    }

    /// The same, with another budget than the share of the stored bytes. An index of filters only
    /// may be larger than a small budget.
    ///
    /// # Errors
    /// As for [`SegmentIndex::encode`].
    pub fn encode_within(&self, budget_bytes: u64) -> Result<EncodedIndex, IndexError> {
        let (chunks, gaps) = (&self.live.chunks[..], &self.gaps[..]);
        match &self.stored {
            None => {
                let coarse = Coarse::of(&self.live, budget_bytes);
                sections::encode(&Parts {
                    chunks,
                    gaps,
                    scanned: &coarse.scanned,
                    filters: &coarse.filters,
                    flows: &self.live.flows,
                    shapes: &coarse.shapes,
                    shape_numbers: &coarse.shape_numbers,
                    kept: &coarse.kept,
                    postings: &coarse.postings,
                })
            }
            Some(stored) => {
                let (flows, postings) = stored.flows(&self.live).map_err(unreadable)?;
                let kept: Vec<u32> = (0..flows.len() as u32).collect();
                let shape_numbers: Vec<u32> = (0..stored.shapes.len() as u32).collect();
                sections::encode(&Parts {
                    chunks,
                    gaps,
                    scanned: &self.live.scanned,
                    filters: self.filters().map_err(unreadable)?,
                    flows,
                    shapes: &stored.shapes,
                    shape_numbers: &shape_numbers,
                    kept: &kept,
                    postings,
                })
            }
        }
    }

    /// Reads an index back. `loader` is kept and asked for the flows when they are needed.
    ///
    /// # Errors
    /// `Section` if a section does not decode, or whatever `loader` says of those that are needed
    /// at once.
    pub fn decode(loader: Loader) -> Result<Self, IndexError> {
        let chunks = loader(SectionId::Chunks)?.unwrap_or_default();
        let chunks = ChunkEntry::decode_table(&chunks)
            .map_err(|error| IndexError::Section { section: "chunks", what: error.to_string() })?;
        let (gaps, scanned) = match loader(SectionId::Gaps)? {
            Some(bytes) => decode::decode_gaps(&bytes, chunks.len())?,
            None => (Vec::new(), vec![true; chunks.len()]),
        };
        let shapes = loader(SectionId::Shapes)?.map(|bytes| decode::decode_shapes(&bytes));
        // Without shapes there is nothing to ask the filter about, and it must not rule out all.
        let filter = match &shapes {
            Some(_) => loader(SectionId::Filter)?.map(|bytes| decode::decode_filter(&bytes)),
            None => None,
        };
        let shapes = shapes.transpose()?.unwrap_or_default();
        let stored = Stored {
            shapes: shapes.into_iter().map(Shape::new).collect(),
            filter: filter.transpose()?,
            loader,
            filters: OnceLock::new(),
            flows: OnceLock::new(),
        };
        let live = Live { chunks, scanned, ..Live::default() };
        Ok(Self { live, gaps, stored: Some(stored) })
    }

    /// Chunks that may hold a packet within [`since_ns`, `until_ns`) that the program accepts:
    /// always a superset.
    pub fn select(&self, program: &Program, since_ns: u64, until_ns: u64) -> Selection {
        let window = (since_ns, until_ns);
        let mut chunks = Chunks::new(&self.live.chunks, &self.live.scanned, window);
        let mut index_damage = None;
        if let Err(what) = self.select_open(program, window, &mut chunks) {
            index_damage = Some(unreadable(what).to_string());
            chunks.mark_all();
        }
        Selection {
            chunks: chunks.marked(),
            chunks_considered: self.live.chunks.iter().filter(|entry| entry.packets > 0).count(),
            index_damage,
        }
    }

    fn select_open(
        &self,
        program: &Program,
        window: (u64, u64),
        chunks: &mut Chunks,
    ) -> Result<(), String> {
        let shapes = self.stored.as_ref().map_or(&self.live.flows.shapes.list, |it| &it.shapes);
        select::mark_filtered(self.filters()?, shapes, program, chunks);
        match &self.stored {
            _ if !chunks.any_open() => {}
            None => {
                let Live { flows, touches, .. } = &self.live;
                let mut found = vec![false; flows.len()];
                select::matching_flows(flows, program, window, |_| true, |it| found[it] = true);
                for chunk in 0..self.live.chunks.len() {
                    if touches.get(chunk).iter().any(|flow| found[*flow as usize]) {
                        chunks.mark(chunk as u32);
                    }
                }
            }
            Some(stored) if stored.is_ruled_out(program) => {}
            Some(stored) => {
                let (flows, postings) = stored.flows(&self.live)?;
                let mut found = vec![false; flows.len()];
                let asked = |flow| postings.get(flow).iter().any(|chunk| chunks.is_open(*chunk));
                select::matching_flows(flows, program, window, asked, |it| found[it] = true);
                for flow in (0..flows.len()).filter(|flow| found[*flow]) {
                    postings.get(flow).iter().for_each(|chunk| chunks.mark(*chunk));
                }
            }
        }
        Ok(())
    }

    /// The digest of an index that was read back; `None` if packets are not covered by it, or if it
    /// is a live one.
    ///
    /// # Errors
    /// `Section` if sections that it is made of do not decode.
    pub fn digest(&self) -> Result<Option<Digest>, IndexError> {
        let Some(stored) = &self.stored else { return Ok(None) };
        let filters = stored.filters(self.live.chunks.len()).map_err(unreadable)?;
        let values = match (&stored.filter, (stored.loader)(SectionId::Hosts)?) {
            // A chunk's own filter does not tell which addresses it holds.
            _ if filters.iter().any(Option::is_some) => None,
            (Some(filter), Some(hosts)) => {
                let (hosts4, hosts6) = decode::decode_hosts(&hosts)?;
                Some(Values { hosts4, hosts6, ports: filter.ports.clone() })
            }
            (None, None) => Some(Values::none()),
            _ => None,
        };
        let Live { chunks, scanned, .. } = &self.live;
        Ok(Digest::new(chunks, scanned, &self.gaps, &stored.shapes, values))
    }

    fn filters(&self) -> Result<&[Option<ChunkFilter>], String> {
        match &self.stored {
            None => Ok(&self.live.filters),
            Some(stored) => stored.filters(self.live.chunks.len()),
        }
    }
}

fn unreadable(what: String) -> IndexError {
    IndexError::Section { section: "flows", what }
}

impl Live {
    fn add(&mut self, delta: &ChunkDelta) {
        delta.new_flows.iter().for_each(|key| self.flows.push(key));
        for touch in &delta.touched {
            self.flows.stats[touch.flow as usize].add(&touch.stats);
            self.touches.numbers.push(touch.flow);
        }
        self.touches.end_list();
        let filter = match delta.loose.is_empty() || delta.unindexed {
            true => None,
            false => self.filter_of(delta),
        };
        self.scanned.push(delta.unindexed || !delta.loose.is_empty() && filter.is_none());
        self.filters.push(filter);
        self.chunks.push(delta.chunk);
    }

    /// The filter over all packets of a chunk some of which are loose; `None` if it has too many
    /// shapes.
    fn filter_of(&mut self, delta: &ChunkDelta) -> Option<ChunkFilter> {
        let shapes = &mut self.flows.shapes;
        let number = |key: &[u8]| shapes.number(parts(key).0, LOOSE_SHAPES_MAX);
        let loose: Option<Vec<u32>> = delta.loose.iter().map(number).collect();
        let loose = loose?;
        let flows = &self.flows;
        let touched = delta.touched.iter().map(|touch| {
            let (shape, values) = flows.flow(touch.flow as usize);
            (flows.shape_of[touch.flow as usize], shape, values)
        });
        let loose = loose.iter().zip(0..).map(|(number, at)| {
            let shape = &flows.shapes.list[*number as usize];
            (*number, shape, parts(delta.loose.get(at)).1)
        });
        ChunkFilter::build(delta.chunk.chunk_bytes, touched.chain(loose))
    }
}

impl Stored {
    fn filters(&self, chunks: usize) -> Result<&[Option<ChunkFilter>], String> {
        let filters = self.filters.get_or_init(|| {
            let load = (self.loader)(SectionId::ChunkFilters).map_err(|error| error.to_string())?;
            let Some(bytes) = load else { return Ok(Vec::new()) };
            decode::decode_chunk_filters(&bytes, chunks, self.shapes.len())
                .map_err(|error| error.to_string())
        });
        filters.as_deref().map_err(Clone::clone)
    }

    fn flows(&self, live: &Live) -> Result<&(FlowList, Lists), String> {
        let flows = self.flows.get_or_init(|| {
            let filters = self.filters(live.chunks.len())?;
            let (flows, postings) = self.load(live.chunks.len())?;
            match unexplained(&postings, live, filters) {
                None => Ok((flows, postings)),
                Some(chunk) => Err(format!("no flow explains the packets of chunk {chunk}")),
            }
        });
        flows.as_ref().map_err(Clone::clone)
    }

    fn load(&self, chunks: usize) -> Result<(FlowList, Lists), String> {
        let load = |id| (self.loader)(id).map_err(|error| error.to_string());
        let (hosts, flows) = (load(SectionId::Hosts)?, load(SectionId::Flows)?);
        // Of a segment without flows there are no such sections.
        let (Some(hosts), Some(flows)) = (hosts, flows) else { return Ok(Default::default()) };
        let postings = load(SectionId::Postings)?.unwrap_or_default();
        decode::read_flows(&self.shapes, &hosts, &flows, &postings, chunks)
            .map_err(|error| error.to_string())
    }

    /// Whether shapes and filter show that no flow matches.
    fn is_ruled_out(&self, program: &Program) -> bool {
        let Some(filter) = &self.filter else { return false };
        !select::shapes_may_match(&self.shapes, program, filter)
    }
}

/// A chunk with packets that is covered by nothing and that no flow names: it would be left out of
/// every answer.
fn unexplained(postings: &Lists, live: &Live, filters: &[Option<ChunkFilter>]) -> Option<usize> {
    let mut named = live.scanned.clone();
    for (named, filter) in named.iter_mut().zip(filters) {
        *named |= filter.is_some();
    }
    postings.numbers.iter().for_each(|chunk| named[*chunk as usize] = true);
    (0..live.chunks.len()).find(|n| live.chunks[*n].packets > 0 && !named[*n])
}

impl fmt::Debug for SegmentIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SegmentIndex")
            .field("chunks", &self.live.chunks.len())
            .field("gaps", &self.gaps.len())
            .field("flows", &self.live.flows.len())
            .field("stored", &self.stored.is_some())
            .finish()
    }
}
