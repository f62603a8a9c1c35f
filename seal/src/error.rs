//! What can go wrong with keys, grouped by blame.

use std::io;
use std::path::PathBuf;

use wirevault_format::LifeId;

use crate::service::{Refusal, ServiceFailure};

/// Failure of a key operation. Messages name ids, sizes, paths and fingerprints, never key bytes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The key file is not there.
    #[error(
        "key file {path} does not exist; without it nothing in the store can be read: \
         restore it from its backup, or name its place with `key_file` in the configuration or \
         with --key"
    )]
    KeyMissing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A key file is already there; it is never overwritten.
    #[error(
        "key file {path} already exists and is never overwritten; \
         name another place, or use this one"
    )]
    KeyExists {
        /// The file.
        path: PathBuf,
    },
    /// The key file cannot be understood.
    #[error("key file {path}, line {line}: {reason}; restore the file from its backup")]
    KeyMalformed {
        /// The file.
        path: PathBuf,
        /// Line, counted from 1.
        line: u32,
        /// What was expected there.
        reason: &'static str,
    },
    /// Others may read the key file.
    #[error(
        "key file {path} has mode {mode:04o}: others than its owner may use it; \
         run `chmod 600 {path}`"
    )]
    KeyExposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The operating system refused something about the key file.
    #[error("key file {path}: cannot {doing}")]
    KeyIo {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// There is no place for key files.
    #[error(
        "neither XDG_CONFIG_HOME nor HOME names a directory for key files; name a key file with \
         --key, or with `key_file` in the configuration"
    )]
    KeyHome,
    /// The key at hand is not the one that wrapped this ring.
    #[error("wrong key: the store was sealed with key {expected}, but the key at hand is {got}")]
    WrongKey {
        /// Fingerprint stored beside the wrapped bytes.
        expected: String,
        /// Fingerprint of the key at hand.
        got: String,
    },
    /// These bytes are not what they should be.
    #[error("{what} expected, but the bytes are something else")]
    Foreign {
        /// What was expected.
        what: &'static str,
    },
    /// A later release wrote this.
    #[error(
        "{what} has version {version}; this release reads versions up to {supported}: \
         use a newer release"
    )]
    Newer {
        /// What was read.
        what: &'static str,
        /// The version found.
        version: u16,
        /// The newest version understood.
        supported: u16,
    },
    /// A length, a checksum or an authentication tag is wrong.
    #[error("{what} is damaged: {detail}")]
    Damaged {
        /// What was read.
        what: &'static str,
        /// What is wrong with it.
        detail: &'static str,
    },
    /// A chunk's bytes, number or header are not those that were sealed.
    #[error(
        "chunk {chunk} of segment {life} does not authenticate: damaged, or from another place"
    )]
    Chunk {
        /// The life it should belong to.
        life: LifeId,
        /// The chunk number it should have.
        chunk: u32,
    },
    /// A record's bytes, salt or surroundings are not those that were sealed.
    #[error("{purpose} of segment {life} does not authenticate: damaged, or from another place")]
    Record {
        /// The life it should belong to.
        life: LifeId,
        /// Which record.
        purpose: crate::Purpose,
    },
    /// Sealing this chunk could repeat a nonce.
    #[error(
        "segment {life}: chunk {chunk} comes after chunk {last}; \
         numbers must increase, or a nonce would repeat"
    )]
    ChunkOrder {
        /// The life being written.
        life: LifeId,
        /// The chunk number offered.
        chunk: u32,
        /// The highest chunk number sealed.
        last: u32,
    },
    /// This key may not seal data (any more).
    #[error("segment {life}: {reason}; take a spare made by this process")]
    NoSealer {
        /// The life.
        life: LifeId,
        /// Why.
        reason: &'static str,
    },
    /// What it hangs from was destroyed on purpose.
    #[error("the root of this key ring was forgotten; what was deleted cannot be read again")]
    Forgotten,
    /// A limit is reached.
    #[error("{what}: {got} asked for, {max} is the most")]
    Exhausted {
        /// What is limited.
        what: &'static str,
        /// The amount asked for.
        got: usize,
        /// The limit.
        max: usize,
    },
    /// No memory for secrets.
    #[error("no memory for secrets: {bytes} bytes")]
    Memory {
        /// The amount asked for.
        bytes: usize,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// A provider outside this crate (a key service, say) failed.
    #[error("key provider {provider} failed")]
    Provider {
        /// The provider's id.
        provider: String,
        /// Its own reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The service that keeps the key did not do what it was asked.
    #[error(transparent)]
    Service(Box<ServiceFailure>),
    /// The service refuses, and the configuration says that recording stops then.
    #[error("no segment is begun, as `kms.{setting}: stop` says: {failure}")]
    Stopped {
        /// Which setting says so.
        setting: &'static str,
        /// What the service said.
        failure: Box<ServiceFailure>,
    },
    /// The key of this store is kept by a service that this program does not know.
    #[error(
        "the store's key is {key}, and this program has no such key service; \
         use a build with the feature `aws`"
    )]
    NoService {
        /// Id of the key.
        key: String,
    },
    /// The cipher library refused a well-formed request; it gives no reason.
    #[error("the cipher library failed to {doing}")]
    Cipher {
        /// What was tried.
        doing: &'static str,
    },
}

impl SealError {
    /// Whether stored bytes are damaged or out of place, the key at hand being right.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Chunk { .. } | Self::Record { .. })
    }

    /// Whether it may be over at the next attempt, without anybody's doing.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Service(failure) if failure.refusal.passes())
    }

    /// Whether another key would help.
    pub fn is_wrong_key(&self) -> bool {
        match self {
            Self::WrongKey { .. } => true,
            Self::Service(failure) => {
                matches!(failure.refusal, Refusal::WrongKey | Refusal::OneWay)
            }
            _ => false,
        }
    }
}

impl From<ServiceFailure> for SealError {
    fn from(failure: ServiceFailure) -> Self {
        Self::Service(Box::new(failure))
    }
}
