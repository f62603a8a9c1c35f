//! What a store holds and where: catalog, flow tables, filters, recovery. Read-only; `storage` does
//! the writing.
//!
//! ```text
//!  packets ─► flow_table ─► delta (one a chunk) ─► segment_index ─► sections ─► closed segment
//!                                                       ▲                            │
//!  query ─► catalog ─► reader ─► segment_index.select ──┘◄──────── sections ◄────────┘
//!              └─► digest.ask ◄── digests of all closed segments
//! ```
//! Invariants: an index only ever yields a superset of the chunks that hold an answer; no chunk is
//! believed before its CRC or tag, its life and its number were checked.

#![deny(unsafe_code)]

pub mod catalog;
pub mod chunk_filter;
pub mod coarsen;
pub mod decode;
pub mod delta;
pub mod digest;
pub mod error;
pub mod flow_table;
pub mod flows;
pub mod host_filter;
pub mod lost;
mod memory;
pub mod reader;
pub mod recover;
pub mod sections;
pub mod segment_index;
pub mod select;
pub mod tier;
mod varint;
pub mod volume;

pub use catalog::{Catalog, MissingVolume, Segment, Segments, SharedCatalog, Whereabouts};
pub use delta::ChunkDelta;
pub use digest::Digest;
pub use error::IndexError;
pub use flow_table::{FlowTable, PacketNote};
pub use flows::{FlowRecord, Flows, KeyList};
pub use memory::prefetch;
pub use reader::SegmentReader;
pub use sections::EncodedIndex;
pub use segment_index::SegmentIndex;
pub use select::Selection;
pub use tier::{TierCopy, TierKey, Tiered};
pub use volume::{KeySource, StoreReader, Volume, open_store};
