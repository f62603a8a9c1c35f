//! What can go wrong between a typed line and its answer.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use wirevault_daemon::DaemonError;
use wirevault_format::FormatError;
use wirevault_index::IndexError;
use wirevault_lifecycle::AuditError;
use wirevault_lifecycle::snapshot::SnapshotError;
use wirevault_media::MediaError;
use wirevault_query::QueryError;
use wirevault_query::time::TimeError;
use wirevault_seal::SealError;
use wirevault_storage::StorageError;

/// A verb did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// Misuse: what was typed does not go together.
    #[error("{0}")]
    Usage(String),
    /// Misuse: a flag's value is not a time.
    #[error("--{flag}: {source}")]
    Time { flag: &'static str, source: TimeError },
    /// The store or a segment cannot be read.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The question cannot be answered.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// The store cannot be made.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The key cannot be made or read.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The audit log cannot be read.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// A checkpoint cannot be read or put back.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A volume's directory cannot be used.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// An import cannot begin or go on.
    #[error(transparent)]
    Import(#[from] DaemonError),
    /// A file is not the structure that it should be.
    #[error("{}: {source}", path.display())]
    Format { path: PathBuf, source: FormatError },
    /// Nobody listens there, or may not be spoken to.
    #[error("cannot reach wirevaultd at {daemon}: {source}; {}", way_out(source))]
    Connect { daemon: String, source: io::Error },
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
    /// The daemon refuses.
    #[error("{message}")]
    Refused { message: String },
    /// The daemon's answer is not what this release understands, or ended early.
    #[error("wirevaultd's answer {what}")]
    Answer { what: String },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    /// The answer's receiver failed.
    #[error("writing the answer failed: {0}")]
    Output(#[from] io::Error),
    /// The operating system refuses what every run needs.
    #[error("cannot start: {0}")]
    Start(#[source] io::Error),
}

impl CliError {
    pub(crate) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |source| Self::File { path: path.to_owned(), source }
    }

    /// Whoever reads our output has gone, as `head` does when it has seen enough.
    pub(crate) fn is_closed_pipe(&self) -> bool {
        let error: &io::Error = match self {
            Self::Output(error) | Self::Query(QueryError::Sink(error)) => error,
            Self::File { source, .. } => source,
            _ => return false,
        };
        error.kind() == io::ErrorKind::BrokenPipe
    }
}

fn way_out(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "this user may not use the socket: see `api` in the daemon's configuration"
        }
        io::ErrorKind::InvalidData => {
            "look at the certificates on both sides: names, authorities, times"
        }
        _ => "start wirevaultd, name its socket with --socket, or a store with --store",
    }
}

#[cfg(test)]
mod tests {
    use wirevault_index::error::chain;

    use super::*;

    #[test]
    fn a_connection_error_names_socket_reason_and_way_out() {
        let source = io::Error::from(io::ErrorKind::NotFound);
        let error = CliError::Connect { daemon: "/run/x.sock".into(), source };
        let text = chain(&error);
        assert!(text.starts_with("cannot reach wirevaultd at /run/x.sock: "), "{text}");
        assert!(text.ends_with("or a store with --store"), "{text}");
        assert_eq!(text.matches("not found").count(), 1, "{text}");
    }

    #[test]
    fn only_broken_pipes_are_closed_pipes() {
        assert!(CliError::Output(io::ErrorKind::BrokenPipe.into()).is_closed_pipe());
        assert!(!CliError::Output(io::ErrorKind::StorageFull.into()).is_closed_pipe());
        assert!(!CliError::Usage(String::new()).is_closed_pipe());
    }
}
