//! A checked configuration. Whoever holds one need not check anything again.

use std::path::PathBuf;
use std::time::Duration;

use crate::access::Api;
use crate::audit::Audit;
use crate::input::Input;
use crate::keys::VOLUMES_MAX;
use crate::policies::{Policy, Rung};

/// An enum whose values have names in the configuration.
macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$value_doc:meta])* $value:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$value_doc])* $value,)+ }

        impl $name {
            /// The names, in the order of the values.
            pub const NAMES: &'static [&'static str] = &[$($text),+];

            /// The value of this name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name {
                    $($text => Some(Self::$value),)+
                    _ => None,
                }
            }

            /// The name of this value.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$value => $text,)+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

choice! {
    /// Which pages hold the packet buffer.
    Hugepages {
        /// The largest pages that can be had.
        Auto = "auto",
        /// Pages of 2 MiB.
        Size2MiB = "2MiB",
        /// Pages of 1 GiB.
        Size1GiB = "1GiB",
        /// Ordinary pages.
        Off = "off",
    }
}

choice! {
    /// How packets of an interface are taken.
    SourceKind {
        /// AF_XDP where the driver has zero-copy and nobody misses the packets, otherwise a packet
        /// socket.
        Auto = "auto",
        /// AF_XDP.
        AfXdp = "af_xdp",
        /// A packet socket.
        PacketMmap = "packet_mmap",
    }
}

choice! {
    /// How quickly a file is replayed.
    Speed {
        /// As quickly as it can be stored.
        Full = "full",
        /// With the pauses of the recording.
        RealTime = "realtime",
    }
}

choice! {
    /// Whether outer headers of tunnels are stored.
    DecapMode {
        /// Packets are stored as they come.
        Keep = "keep",
        /// What is inside is stored, and what the outer headers said beside it.
        Strip = "strip",
    }
}

choice! {
    /// An encapsulation that can be removed.
    Tunnel {
        /// VLAN tags.
        Vlan = "vlan",
        /// MPLS labels.
        Mpls = "mpls",
        /// VXLAN and VXLAN-GPE.
        Vxlan = "vxlan",
        /// GENEVE.
        Geneve = "geneve",
        /// GRE.
        Gre = "gre",
        /// ERSPAN of all types.
        Erspan = "erspan",
        /// GTP-U.
        GtpU = "gtp_u",
        /// IP in IP.
        IpInIp = "ip_in_ip",
    }
}

choice! {
    /// What becomes of segments that a retention rule matches.
    RetentionAction {
        /// They are deleted.
        Delete = "delete",
        /// They are moved to the object tier.
        Tier = "tier",
        /// No later rule deletes them.
        Keep = "keep",
    }
}

choice! {
    /// What lies in the object tier of the flows of a segment.
    TierFlows {
        /// Nothing but the segment.
        Off = "off",
        /// A Parquet file, in plain text.
        Parquet = "parquet",
    }
}

choice! {
    /// What to do without new keys of a key service.
    WhenOut {
        /// The last one goes on.
        Extend = "extend",
        /// No segment is begun.
        Stop = "stop",
        /// Keys are made here and sealed with a public key.
        Seal = "seal",
    }
}

choice! {
    /// Whether the metadata service of EC2 is asked.
    Imds {
        /// On an instance.
        Auto = "auto",
        /// Never.
        Off = "off",
    }
}

choice! {
    /// What a recorder does once it is drained because its machine goes away.
    OnNotice {
        /// It records on.
        Record = "record",
        /// It ends.
        Stop = "stop",
    }
}

choice! {
    /// What becomes of second copies of packets.
    Duplicates {
        /// They are stored like any other packet.
        Keep = "keep",
        /// They are stored with a mark.
        Mark = "mark",
    }
}

choice! {
    /// What mirrored packets are wrapped in when they are sent to a target.
    MirrorTunnel {
        /// VXLAN, as VPC Traffic Mirroring sends it.
        Vxlan = "vxlan",
        /// GENEVE, as a Gateway Load Balancer sends it.
        Geneve = "geneve",
    }
}

choice! {
    /// Which threads share the work between a lane's source and the volumes.
    Topology {
        /// Decided by the cores that there are.
        Auto = "auto",
        /// Lanes seal and index their own chunks.
        RunToCompletion = "run_to_completion",
        /// A thread of its own does it for each lane.
        Split = "split",
    }
}

choice! {
    /// The least important messages that are logged.
    LogLevel {
        /// What needs a person.
        Error = "error",
        /// And what degrades the recording.
        Warn = "warn",
        /// And what changes.
        Info = "info",
        /// And why.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

choice! {
    /// What the process gives up once it records.
    Sandbox {
        /// What the kernel lets it give up.
        Auto = "auto",
        /// All of it, or it does not start.
        On = "on",
        /// Nothing.
        Off = "off",
    }
}

/// A whole configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// The text that it was read from.
    pub text: String,
    /// Directories of the store, the first volume first: 1 to [`VOLUMES_MAX`] absolute paths, no
    /// two alike.
    pub stores: Vec<PathBuf>,
    /// Volumes whose devices are driven past the kernel.
    pub vfio: Vec<PathBuf>,
    /// Directories that may take the place of volumes, absolute.
    pub spares: Vec<PathBuf>,
    /// Part of each file system that stays free for others.
    pub reserve_percent: u8,
    /// Of two machines that have the store's device, this is the one that waits.
    pub standby: bool,
    /// Part of each volume's quota that copies for holds may take.
    pub hold_percent: u8,
    /// The key file, absolute; `None` for the place that belongs to the store's id.
    pub key_file: Option<PathBuf>,
    /// How a key of AWS KMS is used.
    pub kms: Kms,
    /// Where packets come from.
    pub input: Input,
    /// What is left out of what comes now, in the order of asking.
    pub policies: Vec<Policy>,
    /// What is left out under pressure, in the order of entering.
    pub pressure: Vec<Rung>,
    /// The packet buffer.
    pub buffer: Buffer,
    /// Longest time that a packet waits in a chunk that does not fill.
    pub flush_age: Duration,
    /// Time between two acknowledgements.
    pub commit_interval: Duration,
    /// Longest time that a segment stays open.
    pub segment_age: Duration,
    /// What is deleted or moved before the quota takes it, in the order of asking.
    pub retention: Vec<RetentionRule>,
    /// Where segments go that `action: tier` names.
    pub tier: Option<Tier>,
    /// What is done about the audit log.
    pub audit: Audit,
    /// Checkpoints of the recorder's state; `None`: none are taken.
    pub snapshots: Option<Snapshots>,
    /// Metrics in Amazon CloudWatch.
    pub cloudwatch: CloudWatch,
    /// Backups of the state; `None`: none are ordered. Not without `snapshots`.
    pub backup: Option<Backup>,
    /// What is done about what a cloud tells this machine.
    pub cloud: Cloud,
    /// Where questions come in, and who may ask what.
    pub api: Api,
    /// CPUs for the lanes, in order, no two alike: none (no pinning), or at least one for each
    /// lane.
    pub lane_cpus: Vec<u16>,
    /// Which threads there are.
    pub topology: Topology,
    /// What is logged.
    pub log: LogLevel,
    /// What is given up.
    pub sandbox: Sandbox,
}

impl Config {
    /// Lanes of all inputs together. A replay has one.
    pub fn lanes(&self) -> usize {
        match &self.input {
            Input::Live(inputs) => inputs.iter().map(|live| usize::from(live.lanes)).sum(),
            Input::Replay(_) => 1,
        }
    }
}

/// The packet buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Buffer {
    /// Its bytes: whole chunks, and at least [`crate::LANE_CHUNKS_MIN`] of them for each lane.
    pub size_bytes: u64,
    /// The pages it asks for.
    pub hugepages: Hugepages,
}

/// How a key of AWS KMS is used.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Kms {
    /// Address of KMS in place of the region's own.
    pub endpoint: Option<String>,
    /// For how long an epoch key wraps.
    pub epoch_age: Duration,
    /// Epoch keys fetched ahead, at least 1.
    pub epochs_ahead: usize,
    /// When they are used up.
    pub when_exhausted: WhenOut,
    /// When KMS refuses the key.
    pub when_revoked: WhenOut,
    /// The public key for `seal`: a PEM file.
    pub public_key: Option<PathBuf>,
    /// The key of KMS that it is the public half of.
    pub public_key_of: Option<String>,
}

/// Checkpoints of the recorder's state.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshots {
    /// Where they are written to, absolute.
    pub folder: PathBuf,
    /// Time between two.
    pub every: Duration,
    /// How many stay, at least 2.
    pub keep: usize,
}

/// Metrics in Amazon CloudWatch.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CloudWatch {
    /// Whether they are sent.
    pub publish: bool,
    /// The namespace.
    pub namespace: String,
    /// What tells this recorder from others; `None` for the host name.
    pub appliance: Option<String>,
    /// Time between two calls, whole seconds.
    pub period: Duration,
    /// The region in place of that of the environment.
    pub region: Option<String>,
    /// Address of CloudWatch in place of the region's own.
    pub endpoint: Option<String>,
}

/// The object tier.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tier {
    /// Where it is: an address of objects.
    pub url: String,
    /// Bytes a second at most.
    pub rate_bytes: Option<u64>,
    /// What lies on the volumes stays until the quota takes it.
    pub keep_local: bool,
    /// What else is put there of a segment.
    pub flows: TierFlows,
}

/// Backups of the volume that the state is on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Backup {
    /// Name of the vault.
    pub vault: String,
    /// ARN of the role that the service takes on.
    pub role: String,
    /// ARN of the volume.
    pub resource: String,
    /// Time between two.
    pub every: Duration,
    /// After which time a recovery point goes; `None`: never by itself.
    pub retention: Option<Duration>,
}

/// What is done about what a cloud tells this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cloud {
    /// Whether it is asked.
    pub imds: Imds,
    /// What follows when the machine goes.
    pub on_notice: OnNotice,
}

/// A rule of what is deleted or moved. What is `None` matches every segment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetentionRule {
    /// Its name; no two have the same.
    pub name: String,
    /// What becomes of what it matches.
    pub action: RetentionAction,
    /// Closed so long ago.
    pub age: Option<Duration>,
    /// Bytes that stay. Not to keep.
    pub size_bytes: Option<u64>,
    /// The interface that its packets came from.
    pub interface: Option<String>,
    /// A tcpdump filter for its flows.
    pub flows: Option<String>,
}

const _: () = assert!(VOLUMES_MAX > 0);
