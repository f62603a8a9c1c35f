//! Errors of taking hold of a volume. Calls on files give `io::Error` with the name and the
//! operation in its text.

use std::io;

/// Why a volume could not be opened or locked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MediaError {
    /// Another writer holds the volume.
    #[error(
        "volume {volume} is locked by {}: one writer at a time; stop it, or read only",
        holder_text(.holder)
    )]
    Locked {
        /// The volume's place.
        volume: String,
        /// Process that holds the lock, if the system tells (it hides processes of other pid
        /// namespaces).
        holder: Option<u32>,
    },
    /// A recorder has the device, past the kernel.
    #[error(
        "{volume}: {} drives this device itself (VFIO), so the kernel has none of that name; ask \
         the recorder with `wirevault query --socket`, or stop it: it hands the device back",
        holder_text(.holder)
    )]
    Driven {
        /// The volume's place.
        volume: String,
        /// The recorder, if the system tells.
        holder: Option<u32>,
    },
    /// A recorder that had the device past the kernel died.
    #[error(
        "{volume}: a recorder that drove this device itself (VFIO) ended without handing it back, \
         so the kernel has none of that name; `wirevault volume release` hands it back, and so \
         does the next start of the recorder"
    )]
    Left {
        /// The volume's place.
        volume: String,
    },
    /// A shared volume is written under its lease only.
    #[error(
        "{volume} is shared by two machines: only a recorder (`wirevaultd`) that has its lease \
         writes it"
    )]
    NotLeased {
        /// The device.
        volume: String,
    },
    /// The kernel says that a device is used otherwise.
    #[error(
        "{volume} is in use: it, or a part of it, is mounted or belongs to another device; \
         unmount it, or name another device"
    )]
    InUse {
        /// The device.
        volume: String,
    },
    /// The path exists and is neither directory nor device.
    #[error("{volume} is not a directory; a volume is a directory, or a block device")]
    NotADirectory {
        /// The path.
        volume: String,
    },
    /// A system call failed.
    #[error("volume {volume}: cannot {action}: {source}")]
    Io {
        /// The volume's place.
        volume: String,
        /// What was tried, a verb first.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

impl MediaError {
    /// Whether another writer holds the volume.
    pub fn is_locked(&self) -> bool {
        matches!(self, Self::Locked { .. } | Self::Driven { .. })
    }
}

fn holder_text(holder: &Option<u32>) -> String {
    match holder {
        Some(pid) if *pid == std::process::id() => format!("this process (pid {pid})"),
        Some(pid) => format!("pid {pid}"),
        None => "another process".to_owned(),
    }
}
