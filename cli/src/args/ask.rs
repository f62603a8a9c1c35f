//! `query`, `flows`, `tail`: packets.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use wirevault_packet::TunnelId;

use super::{Daemon, Place};

/// Which packets.
#[derive(Debug, Args)]
pub(crate) struct Question {
    /// Filter in tcpdump's language; several words are joined. Without it every packet is meant.
    #[arg(value_name = "FILTER")]
    pub(crate) filter: Vec<String>,
    /// Only packets at or after this time.
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// Only packets before this time.
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<String>,
    /// Leave out link types that the filter does not fit, instead of refusing.
    #[arg(long)]
    pub(crate) skip_linktype: bool,
    /// Only packets that came in this tunnel, be its headers stored or removed: vni=5, vlan=7,
    /// mpls=100, gre_key=9, session=3 (ERSPAN) or teid=4 (GTP-U).
    #[arg(long, value_name = "ID")]
    pub(crate) tunnel: Option<TunnelId>,
    /// Leave out packets that are marked as second copies (`duplicates: mark`).
    #[arg(long)]
    pub(crate) without_duplicates: bool,
}

/// Kind of file that `-w` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FileFormat {
    /// Keeps interfaces, comments and direction, and ends with a statement of completeness.
    Pcapng,
    /// Classic, with nanoseconds; one link type only.
    Pcap,
}

#[derive(Debug, Args)]
pub(crate) struct QueryArgs {
    #[command(flatten)]
    pub(crate) place: Place,
    #[command(flatten)]
    pub(crate) question: Question,
    /// Write packets to a file; `-` is standard output.
    #[arg(short = 'w', long = "write", value_name = "FILE")]
    pub(crate) write: Option<PathBuf>,
    /// Kind of file that -w writes.
    #[arg(long, value_name = "KIND", value_enum, default_value_t = FileFormat::Pcapng)]
    #[arg(requires = "write")]
    pub(crate) format: FileFormat,
    /// Stop after so many packets.
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u64>,
    /// Only say how many packets there are.
    #[arg(long, conflicts_with = "write")]
    pub(crate) count: bool,
    /// Strictly by time. Else packets of one lane stay in the order in which they were captured.
    #[arg(long)]
    pub(crate) sort: bool,
    /// Write what the answer says of itself as JSON: completeness, gaps, damage.
    #[arg(long, value_name = "FILE")]
    pub(crate) summary: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct FlowsArgs {
    #[command(flatten)]
    pub(crate) place: Place,
    #[command(flatten)]
    pub(crate) question: Question,
    /// Stop after so many flows.
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u64>,
    /// One JSON object a line.
    #[arg(long, conflicts_with = "csv")]
    pub(crate) json: bool,
    /// Comma-separated values with a line of headings.
    #[arg(long)]
    pub(crate) csv: bool,
    /// A Parquet file, for programs that ask many of them.
    #[arg(long, requires = "write", conflicts_with_all = ["json", "csv"])]
    pub(crate) parquet: bool,
    /// Write to a file; `-` is standard output.
    #[arg(short = 'w', long = "write", value_name = "FILE")]
    pub(crate) write: Option<PathBuf>,
    /// Write what the answer says of itself as JSON: completeness, gaps, damage.
    #[arg(long, value_name = "FILE")]
    pub(crate) summary: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct TailArgs {
    /// Filter in tcpdump's language; several words are joined. Without it every packet is shown.
    #[arg(value_name = "FILTER")]
    pub(crate) filter: Vec<String>,
    #[command(flatten)]
    pub(crate) daemon: Daemon,
    /// Private key of the certificate, as PEM.
    #[arg(long, value_name = "FILE", requires = "connect")]
    pub(crate) key: Option<PathBuf>,
    /// Write pcapng to a file; `-` is standard output.
    #[arg(short = 'w', long = "write", value_name = "FILE")]
    pub(crate) write: Option<PathBuf>,
    /// Serve the packets over TCP instead (PCAP-over-IP), to 8 programs at a time. Every user of
    /// this machine can connect.
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "write")]
    pub(crate) listen: Option<SocketAddr>,
    /// What --listen sends.
    #[arg(long, value_name = "KIND", value_enum, default_value_t = FileFormat::Pcapng)]
    #[arg(requires = "listen")]
    pub(crate) format: FileFormat,
    /// Let --listen take an address that other machines reach. Nothing is encrypted, and nobody is
    /// asked who he is.
    #[arg(long, requires = "listen")]
    pub(crate) allow_remote: bool,
}
