//! What can keep the recorder from starting or ending well, and what the process then exits with.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use wirevault_buffer::BufferError;
use wirevault_capture::CaptureError;
use wirevault_config::ConfigError;
use wirevault_index::IndexError;
use wirevault_index::error::chain;
use wirevault_lifecycle::AuditError;
use wirevault_lifecycle::holds::HoldError;
use wirevault_lifecycle::snapshot::SnapshotError;
use wirevault_media::{Fenced, ObjectError};
use wirevault_nvme::NvmeError;
use wirevault_pipeline::PipelineError;
use wirevault_query::QueryError;
use wirevault_query::filter::FilterError;
use wirevault_seal::SealError;
use wirevault_storage::StorageError;
use wirevault_telemetry::log::LogError;

/// What a process says by its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    /// All went well.
    Ok = 0,
    /// Something failed while it ran.
    Failed = 1,
    /// Arguments or configuration are wrong.
    Usage = 2,
    /// The store cannot be used: absent, damaged, incomplete, or of a newer release.
    Store = 3,
    /// The key is missing, taken away, or another store's.
    Key = 4,
    /// Another process writes the store or answers on the socket.
    Busy = 5,
    /// The machine does not give what is needed: a privilege, an interface, memory, the way to the
    /// service of the key. It may at the next attempt.
    Machine = 6,
    /// Another machine took the shared volume over.
    Fenced = 7,
}

impl Exit {
    /// The codes and their meanings, for `--help`.
    pub const HELP: &str = "Exit codes: 0 ended well; 1 failed while running; 2 wrong arguments or \
        configuration; 3 the store cannot be used; 4 its key cannot; 5 another process has the \
        store or the socket; 6 the machine lacks a privilege, an interface, memory, or an \
        answer about the key; 7 another machine took the shared volume over.";
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// The recorder cannot start, or did not end well.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DaemonError {
    /// The configuration cannot be read or is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The audit log cannot be opened.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// A value of the configuration does not fit this machine or this store.
    #[error("{path} is {value}: {problem}; {way_out}")]
    Setting {
        /// Where it stands in the configuration.
        path: String,
        /// The value.
        value: String,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        way_out: String,
    },
    /// A capture filter does not compile.
    #[error("{path}: {source}; try it with `tcpdump -d`")]
    Filter {
        /// Where it stands in the configuration.
        path: String,
        /// What libpcap says.
        source: FilterError,
    },
    /// A hold cannot be added or released.
    #[error(transparent)]
    Hold(#[from] HoldError),
    /// A segment is not deleted because of a hold.
    #[error(
        "segment {segment} is not deleted: what hold {hold} wants of it could not be copied yet; \
         `wirevault hold list` says why"
    )]
    Held {
        /// Ordinal of the segment.
        segment: u64,
        /// Name of the hold.
        hold: String,
    },
    /// A window that holds nothing.
    #[error(transparent)]
    Window(#[from] QueryError),
    /// The key that is to seal cannot be read.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The store refuses to be written.
    #[error(transparent)]
    Store(#[from] StorageError),
    /// The store cannot be read.
    #[error(transparent)]
    Read(#[from] IndexError),
    /// The devices of this machine cannot be told.
    #[error(transparent)]
    Devices(#[from] NvmeError),
    /// A source of packets cannot be opened.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// There is no memory for the packet buffer.
    #[error("buffer.size: {0}")]
    Buffer(#[from] BufferError),
    /// The pipeline did not start or did not end well.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// Somebody answers on the socket.
    #[error(
        "a recorder already answers on {}; stop it, or set another `api.socket`",
        path.display()
    )]
    SocketInUse {
        /// The socket.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("{}: {step} failed; `api.socket` names another place", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What was being done.
        step: &'static str,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The configuration insists on a sandbox that this machine does not give.
    #[error("sandbox is on: {why}; `sandbox: auto` goes on without")]
    Sandbox {
        /// What cannot be had.
        why: String,
    },
    /// Logging cannot be set up.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The operating system refused something that has no name in the configuration.
    #[error("{what} failed")]
    System {
        /// What was being done.
        what: &'static str,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The pipeline ended although nobody asked it to.
    #[error("all lanes ended although nobody asked them to; the messages before this say why")]
    EndedEarly,
    /// An answer holds on to the pipeline: its last segments are not closed.
    #[error("an answer did not end in time; the next start closes the last segments")]
    Unended,
    /// Another machine took the shared volume over.
    #[error("{lost}; what it acknowledged is safe, and a new start waits for its turn")]
    Fenced {
        /// By whom.
        lost: Fenced,
    },
    /// A checkpoint of the state cannot be taken or put back.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The object tier does not do what it was asked.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// What lies in the tier is not what lies here.
    #[error(
        "{place}: {name} is not the segment that it is named after: {what}; nothing was \
         overwritten, and the segment stays here; if it does not help to try again, look at the \
         object and remove it"
    )]
    Unlike {
        /// The place in words.
        place: String,
        /// Name of the object.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// There is nothing to import.
    #[error("no file to import was named")]
    NoFiles,
}

impl DaemonError {
    /// What the process exits with.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Config(_)
            | Self::Setting { .. }
            | Self::Filter { .. }
            | Self::Hold(_)
            | Self::Held { .. }
            | Self::Window(_)
            | Self::NoFiles => Exit::Usage,
            Self::Seal(error) => key_exit(error.passes()),
            Self::Store(error) => store_exit(error),
            Self::Read(error) => read_exit(error),
            Self::Capture(CaptureError::File { .. } | CaptureError::Unsupported { .. }) => {
                Exit::Usage
            }
            Self::Audit(AuditError::Damaged { .. }) => Exit::Store,
            Self::Audit(_)
            | Self::Devices(_)
            | Self::Capture(_)
            | Self::Buffer(_)
            | Self::Snapshot(_)
            | Self::Sandbox { .. }
            | Self::Socket { .. } => Exit::Machine,
            Self::SocketInUse { .. } => Exit::Busy,
            Self::Fenced { .. } => Exit::Fenced,
            Self::Pipeline(PipelineError::Store(error)) => store_exit(error),
            Self::Pipeline(PipelineError::TooFewBuffers { .. }) => Exit::Usage,
            Self::Pipeline(_)
            | Self::Log(_)
            | Self::System { .. }
            | Self::Object(_)
            | Self::Unlike { .. }
            | Self::EndedEarly
            | Self::Unended => Exit::Failed,
        }
    }

    /// The message with its causes, in one line.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

fn store_exit(error: &StorageError) -> Exit {
    match error {
        _ if error.is_locked() => Exit::Busy,
        StorageError::Index(error) => read_exit(error),
        StorageError::Key { .. } => key_exit(error.passes()),
        _ => Exit::Store,
    }
}

/// A service of keys that is silent when the machine boots must not keep systemd from trying again.
fn key_exit(passes: bool) -> Exit {
    if passes { Exit::Machine } else { Exit::Key }
}

/// What it is when the store, or its key ring, cannot be read.
pub(crate) fn read_exit(error: &IndexError) -> Exit {
    match error {
        IndexError::Key { .. } | IndexError::NoKey { .. } => key_exit(error.passes()),
        IndexError::Forbidden { .. } => Exit::Machine,
        _ => Exit::Store,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_follow_once() {
        let source = io::Error::other("no such thing");
        let error = DaemonError::System { what: "reading", source };
        assert_eq!(error.chain(), "reading failed: no such thing");
        let error = DaemonError::Read(IndexError::NotAStore { path: "/x".into(), why: "y".into() });
        assert_eq!((error.exit(), error.exit() as u8), (Exit::Store, 3));
        assert!(error.chain().contains("wirevault init /x"), "{}", error.chain());
    }

    #[test]
    fn the_help_names_every_code() {
        for code in 0..=Exit::Fenced as u8 {
            assert!(Exit::HELP.contains(&format!(" {code} ")), "{code}");
        }
    }
}
