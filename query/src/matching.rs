//! What the index alone says about a filter and one segment: for holds and retention, which ask
//! about thousands of segments and need no packet.

use wirevault_index::Segment;

use crate::error::QueryError;
use crate::filter;
use crate::source::{Question, Reader};

/// Numbers of the chunks that may hold a packet of `[since_ns, until_ns)` that the filter selects:
/// never too few. A segment that cannot be opened gives nothing to go by.
///
/// # Errors
/// `Filter` if it does not fit the segment's link type, `Segment` if that cannot be opened.
pub fn matching_chunks(
    segment: &Segment,
    expression: &str,
    since_ns: u64,
    until_ns: u64,
) -> Result<Vec<u32>, QueryError> {
    let program = filter::compile(expression, segment.entry.link_type)?;
    let reader = segment.open().map_err(QueryError::Segment)?;
    let question = Question { program: &program, since_ns, until_ns };
    Ok(Reader::look(&reader, Some(&question)).selected)
}
