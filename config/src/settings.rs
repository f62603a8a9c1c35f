//! A checked configuration. Whoever holds one need not check anything again.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::keys::{
    CAPTURE_RING_STEP_BYTES, INTERFACE_NAME_BYTES_MAX, LANES_PER_INTERFACE_MAX, VOLUMES_MAX,
};

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
    /// What mirrored packets are wrapped in when they are sent to a target.
    MirrorTunnel {
        /// VXLAN, as VPC Traffic Mirroring sends it.
        Vxlan = "vxlan",
        /// GENEVE, as a Gateway Load Balancer sends it.
        Geneve = "geneve",
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

/// A whole configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Directories of the store, the first volume first: 1 to [`VOLUMES_MAX`] absolute paths, no
    /// two alike.
    pub stores: Vec<PathBuf>,
    /// The key file, absolute; `None` for the place that belongs to the store's id.
    pub key_file: Option<PathBuf>,
    /// Where packets come from.
    pub input: Input,
    /// Other programs that send packets over TCP: no two of one address. Beside interfaces, never
    /// beside a file.
    pub pcap_over_ip: Vec<PcapOverIp>,
    /// Sockets that mirrored packets are sent to, beside the input.
    pub mirror_targets: Vec<MirrorTarget>,
    /// The packet buffer.
    pub buffer: Buffer,
    /// Longest time that a packet waits in a chunk that does not fill.
    pub flush_age: Duration,
    /// Time between two acknowledgements.
    pub commit_interval: Duration,
    /// Longest time that a segment stays open.
    pub segment_age: Duration,
    /// The control socket.
    pub api: Api,
    /// CPUs for the lanes, in order, no two alike: none (no pinning), or at least one for each
    /// lane.
    pub lane_cpus: Vec<u16>,
    /// What is logged.
    pub log: LogLevel,
}

impl Config {
    /// Lanes of all inputs together. A replay has one.
    pub fn lanes(&self) -> usize {
        let streams = self.pcap_over_ip.iter().map(|one| usize::from(one.lanes));
        let targets = self.mirror_targets.iter().map(|one| usize::from(one.lanes));
        let input: usize = match &self.input {
            Input::Capture(interfaces) => interfaces.iter().map(|one| usize::from(one.lanes)).sum(),
            Input::Replay(_) => 1,
        };
        input + streams.chain(targets).sum::<usize>()
    }
}

/// Where packets come from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Input {
    /// Network interfaces: no two of one name; none only if packets come over TCP or to mirror
    /// targets.
    Capture(Vec<Capture>),
    /// A file.
    Replay(Replay),
}

/// How one network interface is captured.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capture {
    /// Its name: 1 to [`INTERFACE_NAME_BYTES_MAX`] bytes that the kernel accepts.
    pub interface: String,
    /// Lanes, 1 to [`LANES_PER_INTERFACE_MAX`].
    pub lanes: u16,
    /// Bytes of every packet that are kept at most.
    pub snaplen_bytes: u32,
    /// Whether packets for other machines are captured too.
    pub promiscuous: bool,
    /// tcpdump filter of the packets to keep; not compiled yet.
    pub filter: Option<String>,
    /// Bytes of kernel ring of each lane, a multiple of [`CAPTURE_RING_STEP_BYTES`].
    pub ring_bytes: u64,
    /// How packets are taken.
    pub source: SourceKind,
    /// Only UDP packets to these ports are recorded; all are if there are none.
    pub udp_ports: Vec<u16>,
    /// Whether AF_XDP polls the card.
    pub busy_poll: bool,
    /// Whether the card stamps packets. Never with [`SourceKind::AfXdp`].
    pub hardware_time: bool,
    /// What is removed from packets before they are stored; `None` stores them as they come.
    pub decap: Option<Decap>,
}

/// How packets of other programs are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PcapOverIp {
    /// Who begins.
    pub sender: Sender,
    /// Lanes, 1 to [`LANES_PER_INTERFACE_MAX`]; one where we connect.
    pub lanes: u16,
    /// Interface name to store the packets under; `None` keeps the names in the streams.
    pub interface: Option<String>,
    /// Bytes of every packet that are kept at most.
    pub snaplen_bytes: u32,
    /// tcpdump filter of the packets to keep; not compiled yet.
    pub filter: Option<String>,
}

/// Who begins a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sender {
    /// Senders connect to this address.
    Listen(SocketAddr),
    /// We connect to this host and port.
    Connect(String),
}

/// What is removed from packets before they are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Decap {
    /// Encapsulations.
    pub tunnels: Vec<Tunnel>,
    /// UDP ports of VXLAN.
    pub vxlan_ports: Vec<u16>,
}

/// A socket that mirrored packets are sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MirrorTarget {
    /// Address and port that it listens on.
    pub listen: SocketAddr,
    /// What the packets are wrapped in.
    pub tunnel: MirrorTunnel,
    /// Lanes, 1 to [`LANES_PER_INTERFACE_MAX`].
    pub lanes: u16,
    /// Bytes of every inner packet that are kept at most.
    pub snaplen_bytes: u32,
    /// tcpdump filter of the inner packets to keep; not compiled yet.
    pub filter: Option<String>,
    /// Bytes of socket buffer of each lane.
    pub buffer_bytes: u64,
}

/// How a file is replayed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replay {
    /// The file, absolute.
    pub file: PathBuf,
    /// How quickly.
    pub speed: Speed,
    /// Interface name to store the packets under; `None` keeps the names in the file.
    pub interface: Option<String>,
    /// What is removed from packets before they are stored; `None` stores them as they are.
    pub decap: Option<Decap>,
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

/// The control socket. Root and the daemon's own user may always use it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Api {
    /// Path of the unix socket, absolute.
    pub socket: PathBuf,
    /// Users who may use it as well.
    pub users: Vec<Principal>,
    /// Groups whose members may use it as well.
    pub groups: Vec<Principal>,
}

/// A user or a group. Names are looked up when the daemon starts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Principal {
    /// By name.
    Name(String),
    /// By number.
    Id(u32),
}

const _: () = assert!(VOLUMES_MAX > 0 && INTERFACE_NAME_BYTES_MAX == 15);
const _: () = assert!(LANES_PER_INTERFACE_MAX as usize <= crate::LANES_MAX);
const _: () = assert!(CAPTURE_RING_STEP_BYTES.is_power_of_two());
