//! What can go wrong with a question. Damage and absence in the store are no errors: the summary
//! tells of them.

use std::io;

use wirevault_index::IndexError;

use crate::filter::FilterError;
use crate::time::rfc3339;

/// A query did not come to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// Misuse: the filter does not compile.
    #[error("{0}")]
    Filter(#[from] FilterError),
    /// Misuse: the filter compiles, but not for a link type that occurs in the window.
    #[error("{0}; to leave packets of that link type out, use --skip-linktype")]
    LinkType(FilterError),
    /// Misuse: the window ends where it begins, or before.
    #[error(
        "the window from {} to {} is empty: it must end after its beginning",
        rfc3339(*since_ns),
        rfc3339(*until_ns)
    )]
    EmptyWindow {
        /// Start asked for, ns.
        since_ns: u64,
        /// End asked for, ns.
        until_ns: u64,
    },
    /// The caller gave up.
    #[error("the query was cancelled")]
    Cancelled,
    /// Exhausted: the packets are so far out of order that sorting them takes more memory than a
    /// query may.
    #[error(
        "sorting needs more than {limit_bytes} bytes, because packets lie far from their \
         place in time: ask for a shorter window, or without sorting"
    )]
    SortMemory {
        /// Bytes of packets that may be held back.
        limit_bytes: usize,
    },
    /// The one segment that was asked about cannot be opened.
    #[error(transparent)]
    Segment(IndexError),
    /// The receiver of the answer failed.
    #[error("writing the answer failed: {0}")]
    Sink(#[source] io::Error),
}

impl QueryError {
    /// The question itself is at fault.
    pub fn is_misuse(&self) -> bool {
        matches!(self, Self::Filter(_) | Self::LinkType(_) | Self::EmptyWindow { .. })
    }

    /// The caller gave up.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled)
    }
}
