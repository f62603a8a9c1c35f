//! What can be wrong with bytes that should be ours.

use crate::pcapng::PcapngError;

/// Bytes do not decode. The caller adds which volume, segment and chunk they came from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The bytes are not the structure at all: never written, or of something else.
    #[error("no {structure} here: the magic number is missing")]
    NotPresent {
        /// Name of the structure.
        structure: &'static str,
    },
    /// The structure was written by a newer release.
    #[error(
        "the {structure} has format version {found}; this release reads up to {supported}: \
         use the release that wrote the store"
    )]
    Newer {
        /// Name of the structure.
        structure: &'static str,
        /// Version found.
        found: u32,
        /// Newest version this release reads.
        supported: u32,
    },
    /// A checksum does not match.
    #[error(
        "the {structure} is damaged: its checksum is {found:#010x}, its bytes give {expected:#010x}"
    )]
    Checksum {
        /// Name of the structure.
        structure: &'static str,
        /// Checksum stored.
        found: u32,
        /// Checksum computed.
        expected: u32,
    },
    /// A field has a value that the structure cannot have.
    #[error("the {structure} is damaged: {field} is {value}")]
    Field {
        /// Name of the structure.
        structure: &'static str,
        /// Name of the field.
        field: &'static str,
        /// Value found.
        value: u64,
    },
    /// The bytes end before the structure does.
    #[error("the {structure} is cut off: {have} bytes of {need}")]
    Short {
        /// Name of the structure.
        structure: &'static str,
        /// Bytes present.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// A value does not fit the structure that should carry it.
    #[error("{what} does not fit: {value}, at most {limit}")]
    TooLarge {
        /// What does not fit.
        what: &'static str,
        /// Its size.
        value: u64,
        /// The limit.
        limit: u64,
    },
    /// A pcapng block inside one of our structures does not decode.
    #[error("the pcapng blocks are damaged: {what}")]
    Pcapng {
        /// What the pcapng reader says.
        what: String,
    },
}

impl From<PcapngError> for FormatError {
    fn from(error: PcapngError) -> Self {
        Self::Pcapng { what: error.to_string() }
    }
}
