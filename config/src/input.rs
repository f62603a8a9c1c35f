//! Where packets come from: what comes now, or a file.
//!
//! A new kind of live source is a variant of [`LiveSource`]. The compiler then asks for the rest:
//! its keys (`check::input`), its opening and what the machine lacks for it (the daemon).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::keys::{CAPTURE_RING_STEP_BYTES, INTERFACE_NAME_BYTES_MAX, LANES_PER_INTERFACE_MAX};
use crate::settings::{MirrorTunnel, SourceKind, Speed, Tunnel};

/// Where packets come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// What comes now: at least one source, in the order of [`crate::keys::TABLE`], then of the
    /// file; no two of one interface or sender.
    Live(Vec<Live>),
    /// A file.
    Replay(Replay),
}

/// One entry of `capture`, `pcap_over_ip` or `mirror_targets`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Live {
    /// Where it stands: `capture[0]`.
    pub path: String,
    /// Lanes, 1 to [`LANES_PER_INTERFACE_MAX`].
    pub lanes: u16,
    /// Bytes of every packet that are kept at most.
    pub snaplen_bytes: u32,
    /// tcpdump filter of the packets to keep; not compiled yet.
    pub filter: Option<String>,
    /// What is removed from packets before they are stored; `None` stores them as they come.
    pub decap: Option<Vec<Tunnel>>,
    /// UDP ports that are taken for VXLAN's, when it is removed and when packets are indexed.
    pub vxlan_ports: Vec<u16>,
    /// Second copies of packets are marked that come within this time; `None` marks none.
    pub duplicates_window: Option<Duration>,
    /// What it is, and what only its kind has.
    pub source: LiveSource,
}

/// The kinds of what comes now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LiveSource {
    /// A network interface.
    Capture(Capture),
    /// Other programs that send packets over TCP.
    PcapOverIp(PcapOverIp),
    /// A socket that mirrored packets are sent to.
    MirrorTarget(MirrorTarget),
}

/// What only a network interface has.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capture {
    /// Its name: 1 to [`INTERFACE_NAME_BYTES_MAX`] bytes that the kernel accepts.
    pub interface: String,
    /// Whether packets for other machines are captured too.
    pub promiscuous: bool,
    /// Bytes that its packets may take in the store; `None`: what there is.
    pub budget_bytes: Option<u64>,
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
}

/// What only a sender over TCP has.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PcapOverIp {
    /// Who begins.
    pub sender: Sender,
    /// Interface name to store the packets under; `None` keeps the names in the streams.
    pub interface: Option<String>,
}

/// Who begins a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sender {
    /// Senders connect to this address.
    Listen(SocketAddr),
    /// We connect to this host and port.
    Connect(String),
}

impl Tunnel {
    /// What `strip` removes by default: all but VLAN tags, which every tool and filter knows.
    pub const USUAL: [Self; 7] =
        [Self::Mpls, Self::Vxlan, Self::Geneve, Self::Gre, Self::Erspan, Self::GtpU, Self::IpInIp];
}

/// What only a mirror's target has.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MirrorTarget {
    /// Address and port that it listens on.
    pub listen: SocketAddr,
    /// What the packets are wrapped in.
    pub tunnel: MirrorTunnel,
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
    pub decap: Option<Vec<Tunnel>>,
    /// As in [`Live`].
    pub vxlan_ports: Vec<u16>,
}

const _: () = assert!(INTERFACE_NAME_BYTES_MAX == 15);
const _: () = assert!(LANES_PER_INTERFACE_MAX as usize <= crate::LANES_MAX);
const _: () = assert!(CAPTURE_RING_STEP_BYTES.is_power_of_two());
