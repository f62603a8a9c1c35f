//! `key`: the key of a store in AWS KMS.

use std::path::PathBuf;

use clap::Subcommand;

use super::Daemon;

/// What is done with a key in AWS KMS.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyVerb {
    /// Show which key it is, how it stands, and how many epoch keys wait.
    #[command(after_help = "Example: wirevault key show --json | jq -r .condition")]
    Show {
        #[command(flatten)]
        daemon: Daemon,
        /// Private key of the certificate, for --connect.
        #[arg(long, value_name = "FILE", requires = "connect")]
        key: Option<PathBuf>,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Let the next epoch key take over now, and write the key rings again.
    ///
    /// With --to they hang from another key of KMS afterwards; once this has ended well the former
    /// one is not needed any more.
    #[command(after_help = "\
Examples:
  wirevault key rotate
  wirevault key rotate --to alias/recorder-2027")]
    Rotate {
        #[command(flatten)]
        daemon: Daemon,
        /// Private key of the certificate, for --connect.
        #[arg(long, value_name = "FILE", requires = "connect")]
        key: Option<PathBuf>,
        /// The key to hang from: ARN, id or `alias/NAME`.
        #[arg(long, value_name = "KEY")]
        to: Option<String>,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}
