//! What can go wrong when a store is made, opened or written, grouped by blame.

use std::io;

use wirevault_format::{FormatError, StoreId};
use wirevault_index::IndexError;
use wirevault_media::MediaError;
use wirevault_seal::SealError;

/// The store cannot do what was asked. Messages name volume, value and way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    // Misuse: the caller asked for something that cannot be.
    /// The directory or device is in use already.
    #[error("{path} cannot become a volume: {why}; name an empty directory or device")]
    InUse {
        /// The volume.
        path: String,
        /// What is there.
        why: String,
    },
    /// A store has too few or too many volumes.
    #[error("{volumes} volumes were named; a store has 1 to {max}")]
    Volumes {
        /// Volumes named.
        volumes: usize,
        /// The most there can be.
        max: usize,
    },
    /// The quota is too small for the smallest segments.
    #[error("{arithmetic}; give the store more, or use fewer lanes")]
    Quota {
        /// What is needed and what is there, in bytes.
        arithmetic: String,
    },
    /// A call that does not fit the state of the store.
    #[error("{what}")]
    Misuse {
        /// Which call, and why it does not fit.
        what: String,
    },
    /// Whoever had to be told first did not take it.
    #[error("nothing was done: {0}")]
    Unannounced(#[source] Box<dyn std::error::Error + Send + Sync>),

    // Corrupt, or not this store.
    /// A volume or a segment cannot be read.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A volume of the store is not there.
    #[error(
        "volume {number} of the store, {path}, is missing: {why}; mount it, name its new path \
         with `wirevault volume adopt`, or read what is left with the query commands, which need \
         no writer"
    )]
    MissingVolume {
        /// Its number.
        number: usize,
        /// Its path as the store knows it.
        path: String,
        /// Why it does not open.
        why: String,
    },
    /// A volume belongs to another store or has another number.
    #[error(
        "{path} was opened as volume {number} of store {store}, but it is volume {found_number} \
         of store {found}; mount the right volume there"
    )]
    Foreign {
        /// The volume.
        path: String,
        /// Number expected.
        number: usize,
        /// Store expected.
        store: StoreId,
        /// Number found.
        found_number: u16,
        /// Store found.
        found: StoreId,
    },
    /// A structure does not fit its place.
    #[error("volume {volume}: {source}")]
    Encode {
        /// The volume.
        volume: String,
        /// What does not fit.
        #[source]
        source: FormatError,
    },

    // Keys.
    /// A key cannot be made, wrapped or used.
    #[error("volume {volume}: {source}")]
    Key {
        /// The volume.
        volume: String,
        /// Why.
        #[source]
        source: SealError,
    },

    // Device.
    /// Another writer holds a volume, or its directory does not open.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// A call on a volume failed.
    #[error("volume {volume}: cannot {doing}: {source}")]
    Device {
        /// The volume.
        volume: String,
        /// What was tried, a verb first.
        doing: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A write to the volume failed before; what it holds now is only known when it is read again.
    #[error("volume {volume} takes no more writes until its device works again: {why}")]
    Failed {
        /// The volume.
        volume: String,
        /// The first failure.
        why: String,
    },
    /// Too many of the volume's places do not take what is written to them.
    #[error(
        "volume {volume} takes no more segments: {bad_places} of its {places} places are bad; \
         replace its device"
    )]
    Spent {
        /// The volume.
        volume: String,
        /// Bad places.
        bad_places: u32,
        /// Places.
        places: u32,
    },
    /// The file system is full although the quota is not.
    #[error(
        "volume {volume} is full: {wanted_bytes} bytes wanted for a segment, {free_bytes} free; \
         free space on it, or make a store with a smaller quota"
    )]
    DiskFull {
        /// The volume.
        volume: String,
        /// Bytes wanted.
        wanted_bytes: u64,
        /// Bytes free.
        free_bytes: u64,
    },

    // Exhausted.
    /// A copy for a hold does not fit the part of the volumes that holds may take.
    #[error("no room for a copy for a hold: {arithmetic}; release a hold, or raise `hold_share`")]
    HoldBudget {
        /// The budget and what uses it, in bytes.
        arithmetic: String,
    },
    /// Nothing can be given up to make room.
    #[error("volume {volume}: no room for another segment: {arithmetic}")]
    Exhausted {
        /// The volume.
        volume: String,
        /// Quota and what uses it, in bytes.
        arithmetic: String,
    },
}

impl StorageError {
    /// Another key would help.
    pub fn is_wrong_key(&self) -> bool {
        match self {
            Self::Index(error) => error.is_wrong_key(),
            Self::Key { source, .. } => source.is_wrong_key(),
            _ => false,
        }
    }

    /// The key's service may do at the next attempt.
    pub fn passes(&self) -> bool {
        match self {
            Self::Index(error) => error.passes(),
            Self::Key { source, .. } => source.passes(),
            _ => false,
        }
    }

    /// Another writer holds the store.
    pub fn is_locked(&self) -> bool {
        matches!(self, Self::Media(error) if error.is_locked())
    }

    /// A device failed: another volume may still do.
    pub fn is_device(&self) -> bool {
        matches!(self, Self::Device { .. } | Self::Failed { .. } | Self::Spent { .. })
    }

    /// Copies for holds have no room left; other segments do.
    pub fn is_hold_budget(&self) -> bool {
        matches!(self, Self::HoldBudget { .. })
    }

    /// There is no room, by quota or by file system.
    pub fn is_exhausted(&self) -> bool {
        matches!(self, Self::Exhausted { .. } | Self::DiskFull { .. })
    }
}
