//! What can be typed: verbs, flags, their meaning and an example of each.

mod ask;
mod audit;
mod cloudwatch;
mod key;
mod lifecycle;
mod look;
mod metrics;
mod snapshot;
mod store;
mod volume;

use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{ArgGroup, Args, Parser, Subcommand};

pub(crate) use ask::{FileFormat, FlowsArgs, QueryArgs, Question, TailArgs};
pub(crate) use audit::AuditVerb;
pub(crate) use cloudwatch::{BoardArgs, CloudWatchVerb};
pub(crate) use key::KeyVerb;
pub(crate) use lifecycle::{
    CertificateVerb, DeleteArgs, DrainArgs, HoldVerb, LifecycleArgs, LifecycleVerb,
};
pub(crate) use look::{
    DoctorArgs, InspectSegmentArgs, InspectVerb, InspectVolumeArgs, SegmentsArgs, StatusArgs,
    VerifyArgs,
};
pub(crate) use metrics::MetricsVerb;
pub(crate) use snapshot::SnapshotVerb;
pub(crate) use store::{ImportArgs, InitArgs, Quota};
pub(crate) use volume::{EraseHow, VolumeVerb};

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const AFTER_HELP: &str = "\
Exit codes: 0 found, or all is well; 1 nothing found; 2 error; 3 the answer is incomplete, or \
something is damaged.
Times: `5m ago`, `10:00`, `2026-11-21 10:00`, `2026-11-21T10:00:00Z`, `@1795255200`; local where \
no offset is stated.
Example: wirevault query --since '5m ago' 'host 10.0.0.1 and tcp port 443' -w found.pcapng";

/// Finds packets again that Wirevault recorded.
#[derive(Debug, Parser)]
#[command(name = "wirevault", version, styles = STYLES, max_term_width = 100)]
#[command(after_help = AFTER_HELP, arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Make a store.
    #[command(after_help = "Example: wirevault init /var/lib/wirevault --quota 500GiB")]
    Init(InitArgs),
    /// Put packets of pcap and pcapng files into a store.
    ///
    /// Files may be compressed with gzip, zstd or lz4. What a file holds and a store cannot keep is
    /// counted and told.
    #[command(
        after_help = "Example: wirevault import --store ./store monday.pcapng tuesday.pcap.gz"
    )]
    Import(ImportArgs),
    /// Find packets: by time, and by a filter in tcpdump's language.
    ///
    /// Without -w every packet is one line, as tcpdump shows it. What the answer may lack is told
    /// on standard error.
    #[command(after_help = "\
Examples:
  wirevault query --store ./store 'udp port 53' --limit 10
  wirevault query --since '1h ago' 'host 10.0.0.1' -w - | tshark -r -")]
    Query(QueryArgs),
    /// List the flows that packets belong to.
    #[command(after_help = "\
Examples:
  wirevault flows --since '10m ago' 'tcp port 443' --csv
  wirevault flows --since '1 day ago' --parquet -w flows.parquet
    and then: duckdb -c \"SELECT * FROM 'flows.parquet' ORDER BY bytes DESC LIMIT 10\"")]
    Flows(FlowsArgs),
    /// Show packets as they arrive. The daemon must be running.
    ///
    /// Copies are taken before packets are stored; what this command is too slow for is told, and
    /// is stored all the same.
    #[command(after_help = "\
Examples:
  wirevault tail 'arp or icmp'
  wirevault tail -w - | tshark -r -
  wirevault tail --listen 127.0.0.1:57012 'not tcp port 57012'
    and then: wireshark -k -i TCP@127.0.0.1:57012, or nc 127.0.0.1 57012 | tcpdump -n -r -")]
    Tail(TailArgs),
    /// Show what is recorded, where it goes, and what was lost.
    #[command(after_help = "Example: wirevault status --json | jq '.lanes[].dropped_by_cause'")]
    Status(StatusArgs),
    /// List the segments of a store.
    #[command(after_help = "Example: wirevault segments --store ./store")]
    Segments(SegmentsArgs),
    /// Check every chunk of every segment. Exit code 0: whole; 3: damaged.
    #[command(after_help = "Example: wirevault verify --store ./store --json")]
    Verify(VerifyArgs),
    /// What the retention rules want deleted, and having it done.
    #[command(after_help = "Example: wirevault lifecycle plan")]
    #[command(subcommand)]
    Lifecycle(LifecycleVerb),
    /// Delete segments, so that nobody can read them again. Shows which; --yes deletes them.
    ///
    /// Their keys go first, then their space. A certificate says how far that reaches.
    #[command(after_help = "\
Examples:
  wirevault delete --before '30 days ago'
  wirevault delete --store ./store --segment 17 --yes")]
    Delete(DeleteArgs),
    /// What may not be forgotten: neither quota nor rule nor order takes it until it is released.
    ///
    /// What matches is copied, chunk by chunk, into segments of its own. Copies are asked like all
    /// else; they have a budget, `hold_share` of the configuration.
    #[command(after_help = "\
Examples:
  wirevault hold add --name case-7 --filter 'host 10.1.2.3' --since '2 days ago' --reason 'breach'
  wirevault hold release case-7 --store ./store")]
    #[command(subcommand)]
    Hold(HoldVerb),
    /// What was deleted, as the audit log states it.
    #[command(after_help = "Example: wirevault certificate show --store /var/lib/wirevault")]
    #[command(subcommand)]
    Certificate(CertificateVerb),
    /// The key of a store in AWS KMS: how it stands, and letting the next epoch begin.
    #[command(after_help = "Example: wirevault key show")]
    #[command(subcommand)]
    Key(KeyVerb),
    /// Alarms and dashboard of Amazon CloudWatch for the metrics that a recorder publishes.
    #[command(after_help = "\
Example: wirevault cloudwatch alarms --config /etc/wirevault/wirevault.yaml --apply")]
    #[command(subcommand)]
    Cloudwatch(CloudWatchVerb),
    /// Alarms for Prometheus, which reads the metrics of a recorder itself.
    #[command(after_help = "\
Example: wirevault metrics rules --job recorders >/etc/prometheus/wirevault.rules.yml")]
    #[command(subcommand)]
    Metrics(MetricsVerb),
    /// Read the log of what was done with a store, and check that nobody changed it.
    #[command(after_help = "Example: wirevault audit verify --store /var/lib/wirevault")]
    #[command(subcommand)]
    Audit(AuditVerb),
    /// Checkpoints of a recorder's state: configuration, audit log, holds, catalog of segments.
    #[command(after_help = "Example: wirevault snapshot list /var/lib/wirevault-state")]
    #[command(subcommand)]
    Snapshot(SnapshotVerb),
    /// What limits this machine, and what to do about it. Exit code 0: it can record; 1: something
    /// keeps it from that.
    ///
    /// Looks at memory, cores, clock, interfaces and disks, and changes nothing. With a
    /// configuration also at what that asks for, as `wirevaultd validate` does.
    #[command(after_help = "\
Example: wirevault doctor --config /etc/wirevault/wirevault.yaml")]
    Doctor(DoctorArgs),
    /// Devices without a file system, as volumes.
    #[command(after_help = "Example: wirevault volume list")]
    #[command(subcommand)]
    Volume(VolumeVerb),
    /// Look at the structures of a store. Keys are never shown.
    #[command(after_help = "Example: wirevault inspect volume ./store")]
    #[command(subcommand)]
    Inspect(InspectVerb),
    /// Write manual pages and completions for shells, as a package has them below /usr/share.
    #[command(hide = true, after_help = "Example: wirevault generate /usr/share")]
    Generate(GenerateArgs),
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// Folder that stands for /usr/share.
    #[arg(value_name = "DIR")]
    pub(crate) folder: PathBuf,
}

/// Where an answer comes from.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("place").args(["store", "socket", "connect"]))]
#[command(group = ArgGroup::new("keyed").args(["store", "connect"]).multiple(true))]
pub(crate) struct Place {
    /// Directory of a store: its first volume. No daemon is needed.
    #[arg(long, value_name = "DIR")]
    pub(crate) store: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) daemon: Daemon,
    /// Key file of a sealed store, where it is not where `init` put it; with --connect, private
    /// key of the certificate.
    #[arg(long, value_name = "FILE", requires = "keyed")]
    pub(crate) key: Option<PathBuf>,
}

/// Which daemon is asked.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Daemon {
    /// Socket of the daemon [default: /run/wirevault/wirevault.sock].
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Daemon on another machine, which is asked over TLS.
    #[arg(long, value_name = "HOST:PORT", requires_all = ["cert", "key", "ca"])]
    #[arg(conflicts_with = "socket")]
    pub(crate) connect: Option<String>,
    /// Certificate to show it, as PEM.
    #[arg(long, value_name = "FILE", requires = "connect")]
    pub(crate) cert: Option<PathBuf>,
    /// Authorities that may vouch for it, as PEM.
    #[arg(long, value_name = "FILE", requires = "connect")]
    pub(crate) ca: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use wirevault_daemon::api::DEFAULT_SOCKET;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_verb_has_an_example() {
        fn check(command: &clap::Command) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "{}", command.get_name());
            command.get_subcommands().for_each(check);
        }
        check(&Arguments::command());
    }

    #[test]
    fn the_default_socket_is_the_one_that_help_names() {
        let mut command = Arguments::command();
        let status = command.find_subcommand_mut("status").unwrap();
        assert!(status.render_long_help().to_string().contains(DEFAULT_SOCKET));
    }
}
