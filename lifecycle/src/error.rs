//! What can go wrong with the audit log.

use std::io;
use std::path::PathBuf;

use wirevault_media::ObjectError;
use wirevault_seal::ServiceFailure;

/// The audit log cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// The system refuses.
    #[error("audit log {}: cannot {what}: {source}", path.display())]
    Io {
        /// The folder or the file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// There is no log.
    #[error("{} holds no audit log; a recorder writes one into the folder `audit` of the \
             store's first volume", path.display())]
    None {
        /// The folder.
        path: PathBuf,
    },
    /// A place where heads are kept does not take one, or does not give it back.
    #[error("heads of the audit log: {0}")]
    Objects(#[source] Box<ObjectError>),
    /// A service makes or checks no code.
    #[error("heads of the audit log: {0}")]
    Service(#[source] Box<ServiceFailure>),
    /// The newest file does not end as a log does, so nothing can be chained to it.
    #[error("audit log {}: line {line} is none of ours: {why}; look at it with `wirevault audit \
             verify`, then move the folder away to begin a new log", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
}

impl From<ObjectError> for AuditError {
    fn from(error: ObjectError) -> Self {
        Self::Objects(Box::new(error))
    }
}

impl From<ServiceFailure> for AuditError {
    fn from(failure: ServiceFailure) -> Self {
        Self::Service(Box::new(failure))
    }
}
