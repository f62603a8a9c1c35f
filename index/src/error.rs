//! What can go wrong when a store is read.

use std::error::Error;
use std::io;

use wirevault_format::{FormatError, LifeId};
use wirevault_media::{MediaError, ObjectError, ObjectFault};
use wirevault_packet::PacketError;
use wirevault_seal::SealError;

/// A store, a segment or a chunk cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// There is no store.
    #[error("{path} is not a Wirevault store: {why}; make one with `wirevault init {path}`")]
    NotAStore {
        /// Directory asked for.
        path: String,
        /// What is missing.
        why: String,
    },
    /// The store is another user's.
    #[error(
        "{path} cannot be read by this user: {why}; be the user who owns it, or give it to this \
         one with `chown -R`"
    )]
    Forbidden {
        /// Directory or device asked for.
        path: String,
        /// What the system refused.
        why: String,
    },
    /// The volume's device is not with the kernel, because a recorder drives it or did so.
    #[error(transparent)]
    Taken(MediaError),
    /// A structure of a volume does not decode.
    #[error("volume {volume}: {what}")]
    Volume {
        /// The volume in words.
        volume: String,
        /// Which structure.
        what: &'static str,
        /// What is wrong with it.
        #[source]
        source: FormatError,
    },
    /// The key ring does not open, or the key file does not.
    #[error("volume {volume}: the key ring cannot be opened: {source}")]
    Key {
        /// The volume in words.
        volume: String,
        /// Why.
        #[source]
        source: SealError,
    },
    /// A segment needs a key that is not there; `why` repeats what opening the key ring said.
    #[error("segment {segment}: no key: {why}")]
    NoKey {
        /// Name of the segment.
        segment: String,
        /// Why there is none.
        why: String,
    },
    /// A segment's file is not there.
    #[error("segment {segment}: its file is missing")]
    MissingSegment {
        /// Name of the segment.
        segment: String,
    },
    /// A segment's place holds another life by now: its packets were given up for the quota.
    #[error("segment {segment}: its place was used again (life {found} instead of {expected})")]
    Reused {
        /// Name of the segment.
        segment: String,
        /// Life expected.
        expected: LifeId,
        /// Life found.
        found: LifeId,
    },
    /// Bytes of a segment fail their check.
    #[error("segment {segment}{}: {source}", of_chunk(*chunk))]
    Damaged {
        /// Name of the segment.
        segment: String,
        /// Chunk, if it is one.
        chunk: Option<u32>,
        /// What is wrong.
        #[source]
        source: FormatError,
    },
    /// Bytes of a sealed segment fail authentication.
    #[error("segment {segment}{}: {source}", of_chunk(*chunk))]
    Unsealed {
        /// Name of the segment.
        segment: String,
        /// Chunk, if it is one.
        chunk: Option<u32>,
        /// What is wrong.
        #[source]
        source: SealError,
    },
    /// An index section does not decode.
    #[error("the index section {section} is damaged: {what}")]
    Section {
        /// Name of the section.
        section: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// A flow key of an index does not decode.
    #[error("the index holds a flow that cannot be: {0}")]
    Flow(#[from] PacketError),
    /// Reading failed.
    #[error("{what}: reading failed")]
    Io {
        /// What was read.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// An error with its causes, in one line; a cause that a message repeats already is left out.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    text
}

fn of_chunk(chunk: Option<u32>) -> String {
    chunk.map(|number| format!(", chunk {number}")).unwrap_or_default()
}

impl IndexError {
    /// What was asked for cannot be opened, for a reason of this kind.
    pub(crate) fn unopened(path: String, why: String, kind: io::ErrorKind) -> Self {
        match kind {
            io::ErrorKind::PermissionDenied => Self::Forbidden { path, why },
            _ => Self::NotAStore { path, why },
        }
    }

    /// The key is missing or is another one.
    pub fn is_wrong_key(&self) -> bool {
        match self {
            Self::Key { source, .. } => source.is_wrong_key(),
            Self::NoKey { .. } => true,
            _ => false,
        }
    }

    /// The key's service may do at the next attempt.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Key { source, .. } if source.passes())
    }

    /// The file is not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::MissingSegment { .. })
            || self.tier_fault() == Some(ObjectFault::Missing)
    }

    /// Stored bytes are not what was written.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Damaged { .. }
                | Self::Unsealed { .. }
                | Self::Section { .. }
                | Self::Flow(_)
                | Self::Volume { .. }
                | Self::Io { .. }
        ) && !self.is_unreachable()
    }

    /// It lies in the tier, which does not give it now; its bytes may be as they should.
    pub fn is_unreachable(&self) -> bool {
        self.tier_fault().is_some_and(|fault| fault != ObjectFault::Missing)
    }

    /// What the tier says, if that is why it failed.
    fn tier_fault(&self) -> Option<ObjectFault> {
        match self {
            Self::Io { source, .. } => ObjectError::behind(source).map(|error| error.fault),
            _ => None,
        }
    }

    /// The segment was given up for the quota while it was being read.
    pub fn is_reused(&self) -> bool {
        matches!(self, Self::Reused { .. })
    }
}
