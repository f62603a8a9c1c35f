//! The index of one segment: its chunks, its gaps, its flows, and in which chunks each flow has
//! packets.
//!
//! Built from deltas while the segment is written, or decoded from the sections of a closed one;
//! both ways give the same value. Of a closed segment only what planning needs first is decoded at
//! once: flows wait until the filter has not ruled the segment out.

use std::fmt;
use std::sync::OnceLock;

use wirevault_format::Gap;
use wirevault_format::footer::ChunkEntry;
use wirevault_format::section::SectionId;
use wirevault_packet::FlowKey;
use wirevault_packet::bpf::Program;

use crate::IndexError;
use crate::delta::{ChunkDelta, FlowStats};
use crate::sections::{self, EncodedSection};
use crate::select::{self, Chunks, HostFilter, Selection};

/// A flow and what was seen of it in the segment.
#[derive(Debug, Clone, PartialEq)]
pub struct FlowRecord {
    /// Its key.
    pub key: FlowKey,
    /// What was seen.
    pub stats: FlowStats,
    /// Chunks that hold packets of it, ascending.
    pub chunks: Vec<u32>,
}

/// Gives the decoded bytes of a section; `None` if the segment has no such section.
pub type Loader = Box<dyn Fn(SectionId) -> Result<Option<Vec<u8>>, IndexError> + Send + Sync>;

/// The index of one segment.
#[derive(Default)]
pub struct SegmentIndex {
    chunks: Vec<ChunkEntry>,
    gaps: Vec<(u32, Gap)>,
    unindexed: Vec<bool>,
    flows: Vec<FlowRecord>,
    stored: Option<Stored>,
}

/// What a closed segment adds: shapes and filter, and the flows once they were asked for.
struct Stored {
    shapes: Vec<Vec<u8>>,
    filter: Option<HostFilter>,
    loader: Loader,
    flows: OnceLock<Result<Vec<FlowRecord>, String>>,
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
        if delta.number as usize != self.chunks.len() {
            let (found, expected) = (delta.number, self.chunks.len());
            return Err(wrong(format!("chunk {found} follows instead of {expected}")));
        }
        if self.stored.is_some() {
            return Err(wrong("a closed segment takes no chunk".to_owned()));
        }
        let flows = self.flows.len() + delta.new_flows.len();
        if let Some(touch) = delta.touched.iter().find(|touch| touch.flow as usize >= flows) {
            return Err(wrong(format!("flow {} of {flows} is touched", touch.flow)));
        }
        self.flows.extend(delta.new_flows.iter().map(|key| FlowRecord {
            key: *key,
            stats: FlowStats {
                times_ns: (u64::MAX, 0),
                packets: 0,
                bytes: 0,
                wire_len: (u32::MAX, 0),
                captured_len: (u32::MAX, 0),
                tcp_or: 0,
                tcp_and: u8::MAX,
                directions: 0,
            },
            chunks: Vec::new(),
        }));
        for touch in &delta.touched {
            let flow = &mut self.flows[touch.flow as usize];
            flow.stats.add(&touch.stats);
            if flow.chunks.last() != Some(&delta.number) {
                flow.chunks.push(delta.number);
            }
        }
        self.gaps.extend(delta.gaps.iter().map(|gap| (delta.number, *gap)));
        self.chunks.push(delta.chunk);
        self.unindexed.push(delta.unindexed);
        Ok(())
    }

    /// Adds a gap that no chunk tells of.
    pub fn add_gap(&mut self, gap: Gap) {
        self.gaps.push((self.chunks.len() as u32, gap));
    }

    /// Forgets all flows: every chunk will be scanned. For a segment whose flows do not fit.
    pub fn forget_flows(&mut self) {
        self.flows.clear();
        self.stored = None;
        self.unindexed.fill(true);
    }

    /// Chunks, by number.
    pub fn chunks(&self) -> &[ChunkEntry] {
        &self.chunks
    }

    /// Gaps, each with the number of the chunk that tells of it.
    pub fn gaps(&self) -> &[(u32, Gap)] {
        &self.gaps
    }

    /// Queries scan this chunk.
    pub fn is_unindexed(&self, chunk: u32) -> bool {
        self.unindexed.get(chunk as usize).copied().unwrap_or(true)
    }

    /// Chunks that queries scan.
    pub fn unindexed_chunks(&self) -> u32 {
        self.unindexed.iter().filter(|unindexed| **unindexed).count() as u32
    }

    /// Flows, in the order of their first packets.
    ///
    /// # Errors
    /// `Section` if the sections of a closed segment do not decode.
    pub fn flows(&self) -> Result<&[FlowRecord], IndexError> {
        match &self.stored {
            None => Ok(&self.flows),
            Some(stored) => stored
                .flows(&self.chunks, &self.unindexed)
                .map_err(|what| IndexError::Section { section: "flows", what }),
        }
    }

    /// Encodes all sections.
    ///
    /// # Errors
    /// `Section` if the compressor fails, or if an index that was decoded does not decode any more.
    pub fn encode_sections(&self) -> Result<Vec<EncodedSection>, IndexError> {
        sections::encode(&self.chunks, &self.gaps, &self.unindexed, self.flows()?)
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
        let (gaps, unindexed) = match loader(SectionId::Gaps)? {
            Some(bytes) => sections::decode_gaps(&bytes, chunks.len())?,
            None => (Vec::new(), vec![true; chunks.len()]),
        };
        let shapes = loader(SectionId::Shapes)?.map(|bytes| sections::decode_shapes(&bytes));
        // Without shapes there is nothing to ask the filter about, and it must not rule out all.
        let filter = match &shapes {
            Some(_) => loader(SectionId::Filter)?.map(|bytes| sections::decode_filter(&bytes)),
            None => None,
        };
        let stored = Stored {
            shapes: shapes.transpose()?.unwrap_or_default(),
            filter: filter.transpose()?,
            loader,
            flows: OnceLock::new(),
        };
        Ok(Self { chunks, gaps, unindexed, flows: Vec::new(), stored: Some(stored) })
    }

    /// Chunks that may hold a packet within [`since_ns`, `until_ns`) that the program accepts:
    /// always a superset.
    pub fn select(&self, program: &Program, since_ns: u64, until_ns: u64) -> Selection {
        let window = (since_ns, until_ns);
        let mut chunks = Chunks::new(&self.chunks, &self.unindexed, window);
        let mut index_damage = None;
        if !self.is_ruled_out(program) {
            match self.flows() {
                Ok(flows) => select::mark_flows(flows, program, window, &mut chunks),
                Err(error) => {
                    index_damage = Some(error.to_string());
                    chunks.mark_all();
                }
            }
        }
        Selection {
            chunks: chunks.marked(),
            chunks_considered: self.chunks.iter().filter(|entry| entry.packets > 0).count(),
            index_damage,
        }
    }

    /// Whether shapes and filter of a closed segment show that no flow of it matches.
    fn is_ruled_out(&self, program: &Program) -> bool {
        let Some(Stored { shapes, filter: Some(filter), .. }) = &self.stored else { return false };
        !select::shapes_may_match(shapes.iter().map(Vec::as_slice), program, filter)
    }
}

impl Stored {
    fn flows(&self, chunks: &[ChunkEntry], scanned: &[bool]) -> Result<&[FlowRecord], String> {
        let flows = self.flows.get_or_init(|| {
            let flows = self.load(chunks.len())?;
            match unexplained(&flows, chunks, scanned) {
                None => Ok(flows),
                Some(chunk) => Err(format!("no flow explains the packets of chunk {chunk}")),
            }
        });
        flows.as_deref().map_err(Clone::clone)
    }

    fn load(&self, chunks: usize) -> Result<Vec<FlowRecord>, String> {
        let load = |id| (self.loader)(id).map_err(|error| error.to_string());
        let (hosts, flows) = (load(SectionId::Hosts)?, load(SectionId::Flows)?);
        // Of a segment without flows there are no such sections.
        let (Some(hosts), Some(flows)) = (hosts, flows) else { return Ok(Vec::new()) };
        let postings = load(SectionId::Postings)?.unwrap_or_default();
        sections::decode_flows(&self.shapes, &hosts, &flows, &postings, chunks)
            .map_err(|error| error.to_string())
    }
}

/// A chunk with packets that is not to be scanned and that no flow names: it would be left out of
/// every answer.
fn unexplained(flows: &[FlowRecord], chunks: &[ChunkEntry], scanned: &[bool]) -> Option<usize> {
    let mut named = vec![false; chunks.len()];
    for chunk in flows.iter().flat_map(|flow| &flow.chunks) {
        named[*chunk as usize] = true;
    }
    (0..chunks.len()).find(|n| chunks[*n].packets > 0 && !scanned[*n] && !named[*n])
}

impl fmt::Debug for SegmentIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SegmentIndex")
            .field("chunks", &self.chunks.len())
            .field("gaps", &self.gaps.len())
            .field("flows", &self.flows.len())
            .field("stored", &self.stored.is_some())
            .finish()
    }
}
