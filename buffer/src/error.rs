//! Errors of making an arena.

use std::io;

/// Why an arena could not be made. Handing out chunks does not fail, it gives `None`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BufferError {
    /// The asked size holds not a single chunk.
    #[error("an arena of {bytes} bytes holds no chunk; it needs at least {chunk_bytes} bytes")]
    TooSmall {
        /// Bytes asked for.
        bytes: usize,
        /// Bytes of one chunk.
        chunk_bytes: usize,
    },
    /// The asked size is beyond what an index of chunks can number.
    #[error("an arena of {bytes} bytes is too large; the limit is {bytes_max} bytes")]
    TooLarge {
        /// Bytes asked for.
        bytes: usize,
        /// Largest size.
        bytes_max: usize,
    },
    /// The system gave no memory, not even ordinary pages.
    #[error(
        "cannot map an arena of {bytes} bytes ({reasons}): {source}; \
         lower the arena's size or free memory"
    )]
    Map {
        /// Bytes asked for.
        bytes: usize,
        /// Why better pages were not used before this failed.
        reasons: String,
        /// The system's answer.
        source: io::Error,
    },
}
