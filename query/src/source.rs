//! What a query needs of a segment. [`crate::stored`] gives it for real ones; tests put simulated
//! ones in their place.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use wirevault_format::chunk::ChunkHeader;
use wirevault_format::footer::ChunkEntry;
use wirevault_format::table::SegmentEntry;
use wirevault_format::{Cause, Gap, Interface};
use wirevault_index::Flows;
use wirevault_index::digest::ask::Told;
use wirevault_packet::bpf::Program;

/// A segment that can be opened.
pub(crate) trait Source: Sized + Sync {
    type Reader: Reader;

    /// What is known of closed segments without opening them; `None` where nothing is.
    fn ask(sources: &[&Self], _program: &Program) -> Vec<Option<Told>> {
        vec![None; sources.len()]
    }

    fn entry(&self) -> &SegmentEntry;
    fn name(&self) -> String;
    fn open(&self) -> Result<Self::Reader, Absence>;
}

/// A segment that is open.
pub(crate) trait Reader {
    fn interfaces(&self) -> &[Interface];
    /// Chunk table, gaps and the chunks to read, all of one moment: a live segment grows between
    /// two calls.
    fn look(&self, question: Option<&Question<'_>>) -> Look;
    /// The flows of the index, or `None` if it does not cover every chunk that touches the window.
    fn with_flows<R>(
        &self,
        since_ns: u64,
        until_ns: u64,
        look: impl FnOnce(Option<&Flows<'_>>) -> R,
    ) -> R;
    fn damage(&self) -> Vec<Hole>;
    /// Counts the bytes that are read from the tier, if it lies there.
    fn taken(&self) -> Option<Arc<AtomicU64>> {
        None
    }
    fn read_chunk(
        &self,
        number: u32,
        buf: &mut Vec<u8>,
    ) -> Result<(ChunkHeader, Range<usize>), Absence>;
}

/// What to select chunks by: a filter and a half-open window.
pub(crate) struct Question<'a> {
    pub(crate) program: &'a Program,
    pub(crate) since_ns: u64,
    pub(crate) until_ns: u64,
}

/// What an index says at one moment.
pub(crate) struct Look {
    pub(crate) chunks: Vec<ChunkEntry>,
    pub(crate) gaps: Vec<Gap>,
    /// Numbers of the chunks that may hold an answer, ascending. Empty without a question.
    pub(crate) selected: Vec<u32>,
    pub(crate) considered: usize,
    /// Why the flow index could not be used, if so; the answer is the same, only slower.
    pub(crate) index_damage: Option<String>,
}

/// All that opening a segment shows but its reader.
pub(crate) struct Shown {
    pub(crate) look: Look,
    pub(crate) holes: Vec<Hole>,
    pub(crate) taken: Option<Arc<AtomicU64>>,
}

/// A place that should hold packets and does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hole {
    pub(crate) chunk: Option<u32>,
    pub(crate) times_ns: Option<(u64, u64)>,
    pub(crate) packets: Option<u64>,
    pub(crate) what: String,
}

/// Why a segment or chunk gives nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Absence {
    pub(crate) cause: Cause,
    pub(crate) what: String,
}
