//! `snapshot`: checkpoints of a recorder's state.

use std::path::PathBuf;

use clap::{ArgGroup, Subcommand};

use super::Daemon;

/// What is done with checkpoints.
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotVerb {
    /// Have the recorder take one now, beside those that it takes by itself.
    #[command(after_help = "Example: wirevault snapshot create")]
    Create {
        #[command(flatten)]
        daemon: Daemon,
        /// Private key of the certificate, for --connect.
        #[arg(long, value_name = "FILE", requires = "connect")]
        key: Option<PathBuf>,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// List the checkpoints in a folder, or in a copy of one, and check every byte of them. Exit
    /// code 3: none of them is whole.
    #[command(after_help = "Example: wirevault snapshot list /var/lib/wirevault-state --json")]
    List {
        /// Folder of checkpoints: `snapshots.folder` of the configuration.
        #[arg(value_name = "FOLDER")]
        folder: PathBuf,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Put the newest whole checkpoint back. Nothing that is there is replaced.
    ///
    /// Into the store that it is of, or into a new one, if the volumes are gone: their segments are
    /// then told as lost. Keys are in no checkpoint.
    #[command(after_help = "\
Example: wirevault snapshot restore /mnt/copy --config /etc/wirevault/wirevault.yaml
  wirevault init /var/lib/wirevault --quota 500GiB
  wirevault snapshot restore /mnt/copy --store /var/lib/wirevault")]
    #[command(group = ArgGroup::new("back").required(true).multiple(true))]
    Restore {
        /// Folder of checkpoints, or a copy of one.
        #[arg(value_name = "FOLDER")]
        folder: PathBuf,
        /// Number of the checkpoint, in the place of the newest.
        #[arg(long, value_name = "N")]
        checkpoint: Option<u64>,
        /// Store that it is of, if the folder has those of several.
        #[arg(long, value_name = "ID")]
        of: Option<String>,
        /// Store to put audit log, holds and what is lost into: its first volume. Nobody may write
        /// it.
        #[arg(long, value_name = "DIR", group = "back")]
        store: Option<PathBuf>,
        /// File to write the configuration to.
        #[arg(long, value_name = "FILE", group = "back")]
        config: Option<PathBuf>,
    },
}
