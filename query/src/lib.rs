//! Questions to a store: filter, plan, read, merge, export, and say whether the answer is complete.
//!
//! ```text
//!  filter text ─► libpcap ─► program ──┬─► index: which chunks ──┐
//!  catalog ─► segments ─► streams ─► digests                     ▼
//!              (run, lane, link type)    chunks ─► packets ─► program ─► merge ─► sink
//!  gaps, damage, what is absent ────────────────────────────► completeness ─► summary
//! ```
//! Invariants:
//! - the filter means what it means to `tcpdump -r`: libpcap compiles it as for a file, and the
//!   program runs on every packet; the index only saves reading;
//! - one chunk a stream is in memory, and only of streams whose turn has come;
//! - damage, absent files and wrong keys never end a query: the answer goes on and says what is
//!   missing;
//! - nothing is written, and no lock is taken.
//!
//! - [`run()`]: packets. [`flows()`]: flows.
//! - [`matching_chunks()`]: what the index alone says of one segment.
//! - [`filter`]: the filter language. [`time`]: points in time as people write them.
//! - [`export`]: pcapng, pcap, lines, Parquet. [`summary`]: what an answer says of itself.
//! - `prune`: what need not be opened. `ahead`: what is looked into by several threads. `stream`,
//!   `merge`: reading one stream, and many in order. `completeness`: the rules. `stored`: the way
//!   to `index`.

#![forbid(unsafe_code)]

mod ahead;
mod completeness;
#[cfg(test)]
mod completeness_tests;
mod error;
pub mod export;
pub mod filter;
mod flows;
mod held_flows;
mod lost;
mod matching;
mod merge;
mod prune;
mod reading;
mod run;
#[cfg(test)]
mod run_tests;
#[cfg(test)]
mod sim;
mod source;
mod stored;
mod stream;
pub mod summary;
pub mod time;

use std::sync::atomic::AtomicBool;

use wirevault_index::{Catalog, Segment};

pub use error::QueryError;
pub use export::{PacketOut, Sink};
pub use flows::{FLOWS_HELD_MAX, FlowRow, RowSink};
pub use matching::matching_chunks;
pub use run::Request;
pub use summary::Summary;

use run::{HELD_BYTES_MAX, Store};

/// Finds packets and gives them to `sink` in order. `cancel` is looked at before every chunk.
///
/// # Errors
/// See [`QueryError`]. What cannot be read in the store is no error; the summary tells of it.
pub fn run(
    catalog: &Catalog,
    request: &Request,
    sink: &mut dyn Sink,
    cancel: &AtomicBool,
) -> Result<Summary, QueryError> {
    run::execute(&store(catalog), request, sink, cancel)
}

/// Finds flows and gives them to `out`, a row for each, by first time; beyond [`FLOWS_HELD_MAX`]
/// flows one may have several. The filter and the window decide packet by packet which count;
/// `limit` counts rows; `sort` means nothing here.
///
/// # Errors
/// As [`run()`].
pub fn flows(
    catalog: &Catalog,
    request: &Request,
    out: &mut RowSink<'_>,
    cancel: &AtomicBool,
) -> Result<Summary, QueryError> {
    flows::list(&store(catalog), request, out, cancel)
}

/// Finds the flows of one segment, as [`flows()`] those of many. The summary tells of this segment
/// only.
///
/// # Errors
/// As [`run()`].
pub fn segment_flows(
    segment: &Segment,
    out: &mut RowSink<'_>,
    cancel: &AtomicBool,
) -> Result<Summary, QueryError> {
    let store = Store {
        segments: vec![segment],
        runs: &[],
        missing_volumes: Vec::new(),
        lost: &[],
        replaced_ns: 0,
        evicted_live_ns: 0,
        evicted_import_ns: 0,
        now_ns: segment.entry.closed_ns,
        durable_until_ns: None,
        held_bytes_max: HELD_BYTES_MAX,
        flows_held_max: FLOWS_HELD_MAX,
    };
    flows::list(&store, &Request::default(), out, cancel)
}

fn store(catalog: &Catalog) -> Store<'_, Segment> {
    let missing = catalog.missing_volumes.iter();
    Store {
        segments: catalog.segments.iter().map(AsRef::as_ref).collect(),
        runs: &catalog.runs,
        missing_volumes: missing.map(|volume| format!("{}: {}", volume.path, volume.why)).collect(),
        lost: &catalog.lost,
        replaced_ns: catalog.replaced_ns,
        evicted_live_ns: catalog.evicted_live_ns,
        evicted_import_ns: catalog.evicted_import_ns,
        now_ns: catalog.now_ns,
        durable_until_ns: catalog.durable_until_ns,
        held_bytes_max: HELD_BYTES_MAX,
        flows_held_max: FLOWS_HELD_MAX,
    }
}
