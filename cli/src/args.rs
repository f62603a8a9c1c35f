//! What can be typed: verbs, flags, their meaning and an example of each.

use std::net::SocketAddr;
use std::path::PathBuf;

use bytesize::ByteSize;
use clap::builder::styling::{AnsiColor, Styles};
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use wirevault_daemon::import::Tunnel;
use wirevault_format::StoreId;
use wirevault_format::VxlanPorts;
use wirevault_packet::TunnelId;

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
    #[command(after_help = "Example: wirevault flows --since '10m ago' 'tcp port 443' --csv")]
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
    /// Read the log of what was done with a store, and check that nobody changed it.
    #[command(after_help = "Example: wirevault audit verify --store /var/lib/wirevault")]
    #[command(subcommand)]
    Audit(AuditVerb),
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
}

/// What is done with devices.
#[derive(Debug, Subcommand)]
pub(crate) enum VolumeVerb {
    /// List disks: model, serial number, who uses them, what is on them.
    #[command(after_help = "Example: wirevault volume list --json | jq -r '.devices[].path'")]
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make a device empty, so that `init` takes it. What is mounted is never touched.
    #[command(after_help = "\
Example: wirevault volume format /dev/disk/by-id/nvme-Amazon_EC2_NVMe_Instance_Storage_AWS1A4FC2")]
    Format {
        /// Device.
        #[arg(value_name = "DEV")]
        device: PathBuf,
        /// Erase partitions, file systems and volumes of other stores that are there.
        #[arg(long)]
        force: bool,
    },
    /// Tell a store where one of its volumes is now: moved, or a device under another name.
    #[command(after_help = "\
Example: wirevault volume adopt /dev/disk/by-id/nvme-NEWNAME --store /dev/disk/by-id/nvme-OTHER")]
    Adopt {
        /// The volume, where it is now.
        #[arg(value_name = "DEV")]
        volume: PathBuf,
        /// Another volume of its store.
        #[arg(long, value_name = "DIR")]
        store: PathBuf,
        /// Record it; without this it is only looked at.
        #[arg(long)]
        yes: bool,
    },
    /// Give a store a new, empty volume for one that is gone with what it held. While it records,
    /// the recorder does it.
    #[command(after_help = "\
Example: wirevault volume replace 1 /dev/disk/by-id/nvme-NEW --yes")]
    Replace {
        /// Number of the volume that is gone.
        #[arg(value_name = "NUMBER")]
        number: u16,
        /// The new one: an empty directory or device.
        #[arg(value_name = "DEV")]
        volume: PathBuf,
        #[command(flatten)]
        place: Place,
        /// Do it: what the old volume held is given up.
        #[arg(long)]
        yes: bool,
    },
    /// Hand back to the kernel devices that a recorder drove itself (`vfio`) when it was killed.
    #[command(after_help = "Example: wirevault volume release")]
    Release,
    /// End a volume: erase its tables and keys, then everything else.
    #[command(after_help = "\
Example: wirevault volume retire /dev/nvme1n1 --store 5f0c0a7c9d1e4b0f8a6b2c3d4e5f6071")]
    Retire {
        /// Device.
        #[arg(value_name = "DEV")]
        device: PathBuf,
        /// Store that it belongs to: so that no other device is hit.
        #[arg(long, value_name = "ID")]
        store: StoreId,
        /// How the rest is erased, beside tables and keys.
        #[arg(long, value_name = "HOW", default_value = "discard")]
        erase: EraseHow,
    },
}

/// How a device is erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EraseHow {
    /// The device is told that nothing on it is wanted.
    Discard,
    /// Format NVM, with cryptographic erase where the device offers that.
    Format,
    /// Sanitize, spare areas and caches included; where the device offers it.
    Sanitize,
}

/// What is done by the rules.
#[derive(Debug, Subcommand)]
pub(crate) enum LifecycleVerb {
    /// Show what the rules want deleted now.
    #[command(after_help = "\
Example: wirevault lifecycle plan --store ./store --config /etc/wirevault/wirevault.yaml")]
    Plan(LifecycleArgs),
    /// Delete what the rules want deleted. The daemon does that by itself, every minute.
    #[command(after_help = "Example: wirevault lifecycle apply")]
    Apply(LifecycleArgs),
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

/// What is done with the audit log.
#[derive(Debug, Subcommand)]
pub(crate) enum AuditVerb {
    /// Check the chain of all lines. Exit code 0: whole; 3: something was done to it.
    ///
    /// Lines that are missing at the end show only against heads that were kept elsewhere: in the
    /// file of `audit.anchor`, and in the system's log at each start and end of the recorder.
    #[command(after_help = "\
Example: wirevault audit verify --store /var/lib/wirevault --head $(journalctl -u wirevaultd \
-o cat | grep -o 'head=\"[0-9a-f]*' | tail -1 | cut -d'\"' -f2)")]
    Verify {
        /// Directory of the store: its first volume.
        #[arg(long, value_name = "DIR", required_unless_present = "file")]
        store: Option<PathBuf>,
        /// A log that `export --json` wrote, in the place of a store's.
        #[arg(long, value_name = "FILE", conflicts_with_all = ["store", "anchor"])]
        file: Option<PathBuf>,
        /// Hash of a line that must be in the log: 64 hex digits.
        #[arg(long, value_name = "HASH")]
        head: Option<String>,
        /// File of heads that the recorder kept (`audit.anchor`): none of them may be missing.
        #[arg(long, value_name = "FILE")]
        anchor: Option<PathBuf>,
        /// Report as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Write the whole log to a file, as it stands: it is checked as the log itself is.
    #[command(after_help = "\
Example: wirevault audit export --store /var/lib/wirevault -w audit.log; tail -1 audit.log")]
    Export {
        /// Directory of the store: its first volume.
        #[arg(long, value_name = "DIR")]
        store: PathBuf,
        /// File to write; `-` is standard output.
        #[arg(short, long, value_name = "FILE")]
        write: PathBuf,
        /// As JSON, one object an entry; the last line is a proof of what there was.
        #[arg(long)]
        json: bool,
    },
    /// Show the entries, one a line.
    #[command(after_help = "\
Example: wirevault audit show --store /var/lib/wirevault --json | jq 'select(.event==\"asked\")'")]
    Show {
        /// Directory of the store: its first volume.
        #[arg(long, value_name = "DIR")]
        store: PathBuf,
        /// As JSON objects, one a line.
        #[arg(long)]
        json: bool,
    },
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

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Directory or block device of the store: its first volume. A directory is made if it is
    /// missing; a device must be empty, see `wirevault volume`.
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Store packets unencrypted: tshark and tcpdump then open segments as they are.
    #[arg(long, conflicts_with = "key")]
    pub(crate) plaintext: bool,
    /// What all volumes together may take: bytes, `500GiB` for example, or a share of their file
    /// systems and devices, such as `80%` [default: half of what is free in directories, and 90 %
    /// of devices].
    #[arg(long, value_name = "SIZE", value_parser = quota)]
    pub(crate) quota: Option<Quota>,
    /// Key file. It is used if it is there, else made. It must lie outside the store
    /// [default: /etc/wirevault/keys/ID.key, or in the user's configuration directory].
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// A key of AWS KMS instead of a key file: ARN, id or `alias/NAME`. It never leaves KMS, which
    /// must be reached to make, open and read the store. Region and credentials are found as by any
    /// AWS program.
    #[arg(long, value_name = "KEY", conflicts_with_all = ["key", "plaintext"])]
    pub(crate) kms_key: Option<String>,
    /// A further volume: a directory on another device, or a device. May be given several times.
    #[arg(long = "volume", value_name = "DIR")]
    pub(crate) volumes: Vec<PathBuf>,
    /// Two machines have the device: one records, the other takes over when that falls silent.
    #[arg(long, conflicts_with = "volumes")]
    pub(crate) shared: bool,
    /// Lanes that will record at the same time; it decides the size of segments.
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) lanes: u16,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// Directory of the store: its first volume.
    #[arg(long, value_name = "DIR")]
    pub(crate) store: PathBuf,
    /// Files, in the order of their packets.
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// Key file of a sealed store, where it is not where `init` put it.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Store what is inside tunnels, and ids and addresses of the outer headers beside it.
    #[arg(long)]
    pub(crate) strip: bool,
    /// What --strip removes. Without it all but VLAN tags.
    #[arg(long, value_name = "TUNNEL,...", value_delimiter = ',', value_parser = tunnel)]
    #[arg(requires = "strip")]
    pub(crate) decap_tunnels: Option<Vec<Tunnel>>,
    /// UDP ports of VXLAN, for --strip and for the index; up to 8.
    #[arg(long, value_name = "PORT,...", value_parser = vxlan_ports, default_value = "4789,8472")]
    pub(crate) vxlan_ports: VxlanPorts,
    /// Report as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

fn tunnel(name: &str) -> Result<Tunnel, String> {
    let known = || format!("one of {}", Tunnel::NAMES.join(", "));
    Tunnel::from_name(name).ok_or_else(known)
}

fn vxlan_ports(text: &str) -> Result<VxlanPorts, String> {
    let ports: Option<Vec<u16>> =
        text.split(',').map(|port| port.trim().parse().ok().filter(|port| *port != 0)).collect();
    match ports.filter(|ports| ports.len() <= VxlanPorts::MAX) {
        Some(ports) => Ok(VxlanPorts::new(&ports)),
        None => Err(format!("up to {} ports from 1 to 65535, with commas", VxlanPorts::MAX)),
    }
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

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) place: Place,
    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Configuration that the recorder is to have.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SegmentsArgs {
    #[command(flatten)]
    pub(crate) place: Place,
    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Directory of the store: its first volume.
    #[arg(long, value_name = "DIR")]
    pub(crate) store: PathBuf,
    /// Key file of a sealed store, where it is not where `init` put it.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Report as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum InspectVerb {
    /// Print every size, offset and number that the format promises.
    #[command(after_help = "Example: wirevault inspect constants")]
    Constants,
    /// Print header, chunks and footer of a segment. No key is needed.
    #[command(after_help = "\
Examples:
  wirevault inspect segment ./store/000003.pcapng
  wirevault inspect segment 0:000003#17 --store ./store")]
    Segment(InspectSegmentArgs),
    /// Print superblock, tables and key ring of a volume.
    #[command(after_help = "Example: wirevault inspect volume ./store --json")]
    Volume(InspectVolumeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct InspectSegmentArgs {
    /// File of the segment, or its name as `wirevault segments` shows it.
    #[arg(value_name = "FILE|NAME")]
    pub(crate) segment: String,
    /// Directory of the store, to find a segment by its name.
    #[arg(long, value_name = "DIR")]
    pub(crate) store: Option<PathBuf>,
    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InspectVolumeArgs {
    /// Directory of the volume.
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Key file of a sealed store, where it is not where `init` put it.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What a store may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quota {
    /// So many bytes.
    Bytes(u64),
    /// So much of the file systems and devices of its volumes.
    Percent(u8),
}

fn quota(text: &str) -> Result<Quota, String> {
    let Some(share) = text.strip_suffix('%') else { return size(text).map(Quota::Bytes) };
    match share.trim_end().parse() {
        Ok(percent @ 1..=100) => Ok(Quota::Percent(percent)),
        _ => Err("a share is a whole number from 1 to 100 and %, such as 80%".to_owned()),
    }
}

fn size(text: &str) -> Result<u64, String> {
    let size = text.parse::<ByteSize>().map(|size| size.as_u64());
    size.map_err(|_| "a size is a number and a unit, such as 512MiB, 1.5TiB or 100GB".to_owned())
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

    #[test]
    fn a_quota_is_a_size_or_a_share() {
        assert_eq!(quota("1GiB"), Ok(Quota::Bytes(1 << 30)));
        assert_eq!(quota("80%"), Ok(Quota::Percent(80)));
        for text in ["0%", "101%", "%", "half", "1.5%"] {
            assert!(quota(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_have_binary_and_decimal_units() {
        assert_eq!(size("512MiB"), Ok(512 << 20));
        assert_eq!(size("1GB"), Ok(1_000_000_000));
        assert_eq!(size("4096"), Ok(4096));
        assert!(size("much").is_err());
        assert!(size("-1").is_err());
    }
}
