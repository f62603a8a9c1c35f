//! `lifecycle`, `delete`, `hold`, `certificate`: what goes, and what may not.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};

use super::{Daemon, Place};

/// What is done by the rules.
#[derive(Debug, Subcommand)]
pub(crate) enum LifecycleVerb {
    /// Show what the rules want deleted, or moved to the tier, now.
    #[command(after_help = "\
Example: wirevault lifecycle plan --store ./store --config /etc/wirevault/wirevault.yaml")]
    Plan(LifecycleArgs),
    /// Delete and move what the rules want. The daemon does that by itself, every minute.
    #[command(after_help = "Example: wirevault lifecycle apply")]
    Apply(LifecycleArgs),
    /// Move all closed segments to the tier, because the machine goes away: first copies for holds,
    /// then what the rules would move, then the youngest. Exit code 3: some are left.
    #[command(after_help = "Example: wirevault lifecycle drain --within 100")]
    Drain(DrainArgs),
}

/// How long a drain may take.
#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    #[command(flatten)]
    pub(crate) daemon: Daemon,
    /// With --connect, private key of the certificate.
    #[arg(long, value_name = "FILE", requires = "connect")]
    pub(crate) key: Option<PathBuf>,
    /// Seconds after which nothing moves any more.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) within: u32,
    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Whose rules.
#[derive(Debug, Args)]
pub(crate) struct LifecycleArgs {
    #[command(flatten)]
    pub(crate) place: Place,
    /// Configuration with the rules; the daemon has its own.
    #[arg(long, value_name = "FILE", requires = "store")]
    pub(crate) config: Option<PathBuf>,
    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What to delete.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").args(["before", "segment"]).required(true).multiple(true))]
pub(crate) struct DeleteArgs {
    #[command(flatten)]
    pub(crate) place: Place,
    /// Segments whose packets are all older than this time.
    #[arg(long, value_name = "TIME")]
    pub(crate) before: Option<String>,
    /// Segments of these numbers: `wirevault segments` shows them behind the `#`.
    #[arg(long, value_name = "N")]
    pub(crate) segment: Vec<u64>,
    /// Delete them, instead of showing which they are.
    #[arg(long)]
    pub(crate) yes: bool,
    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What is done with holds.
#[derive(Debug, Subcommand)]
pub(crate) enum HoldVerb {
    /// Hold what matches, also what is still to come, if the window has no end.
    #[command(after_help = "\
Example: wirevault hold add --name case-7 --filter 'host 10.1.2.3 and port 443' --until now")]
    Add {
        #[command(flatten)]
        place: Place,
        /// Name of the case: no spaces.
        #[arg(long, value_name = "CASE")]
        name: String,
        /// What to hold, in tcpdump's language; without it everything in the window.
        #[arg(long, value_name = "FILTER", default_value = "")]
        filter: String,
        /// From this packet time on.
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
        /// Up to this packet time.
        #[arg(long, value_name = "TIME")]
        until: Option<String>,
        /// Why, for those who read the list.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// List holds, with what their copies take. Exit code 3: something is not held that should be.
    #[command(after_help = "Example: wirevault hold list --json")]
    List {
        #[command(flatten)]
        place: Place,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Release a hold: its copies are deleted for good, with certificates.
    #[command(after_help = "Example: wirevault hold release case-7")]
    Release {
        #[command(flatten)]
        place: Place,
        /// Name of the case; `#NUMBER` for copies whose hold is not listed.
        #[arg(value_name = "CASE")]
        name: String,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

/// What is done with certificates.
#[derive(Debug, Subcommand)]
pub(crate) enum CertificateVerb {
    /// Show certificates of deletions, one a line.
    #[command(after_help = "Example: wirevault certificate show --store ./store --json")]
    Show {
        /// Directory of the store: its first volume.
        #[arg(long, value_name = "DIR")]
        store: PathBuf,
        /// As JSON, with the hashes of what was in the segments.
        #[arg(long)]
        json: bool,
    },
    /// Compare certificates with the audit log, and look whether their segments are gone. Exit code
    /// 0: it is so; 3: it is not.
    #[command(after_help = "Example: wirevault certificate verify --store ./store")]
    Verify {
        /// Directory of the store: its first volume.
        #[arg(long, value_name = "DIR")]
        store: PathBuf,
        /// Key file of a sealed store, where it is not where `init` put it.
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        /// Only this certificate.
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
}
