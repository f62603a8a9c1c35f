//! Packet sources: where packets come from, before anything is kept of them.
//!
//! ```text
//!  NIC queue ── AF_PACKET ring (TPACKET_V3, fanout) ──► packet_mmap ──┐
//!  another program ── pcap or pcapng over TCP ────────► pcap_over_ip ─┤
//!  NIC queue ── XDP program, AF_XDP socket a queue ───► xdp ──────────┤
//!  mirrored packets ── UDP socket ─────────────────────► udp_target ──┤
//!  pcap, pcapng, .gz .zst .lz4 file or pipe ──────────► replay ───────┴──► PacketSink (the lane)
//! ```
//! - `losses`: gaps of live sources.
//! - [`nic`]: what network cards lost before anything here saw it.
//! - `port`: what sources on an interface do alike when it goes and comes back.
//! - [`source`]: the traits and values between a source and its lane.
//! - [`packet_mmap`]: live capture. Works on every Linux interface; the kernel counts what it had
//!   to drop.
//! - [`pcap_over_ip`]: what other programs capture and send over TCP; they wait for us.
//! - [`xdp`]: live capture over AF_XDP, for ports that are there to be recorded: packets leave the
//!   driver for our memory and reach nobody else. [`choose`] tells where that is right.
//! - [`udp_target`]: a socket that mirrors send to.
//! - [`replay`]: import of capture files, at full speed or in the time they were taken.
//!
//! A source borrows each packet to the sink for the length of one call and copies nothing. A live
//! source whose sink is full stops consuming: the kernel's ring fills, the kernel drops and counts,
//! and the source tells of it as a gap. A replay source waits.

#![deny(unsafe_code)]

pub mod error;
#[expect(unsafe_code, reason = "system calls about interfaces; see its invariants")]
mod link;
mod losses;
mod netlink;
pub mod nic;
pub mod packet_mmap;
pub mod pcap_over_ip;
mod port;
pub mod replay;
pub mod source;
pub mod udp_target;
pub mod xdp;

pub use error::CaptureError;
pub use packet_mmap::{PacketMmapOptions, PacketMmapSource, open_lanes};
pub use pcap_over_ip::{PcapOverIpOptions, PcapOverIpSource, Rendezvous, open_streams};
pub use replay::{ReplayOptions, ReplaySource, Speed};
pub use source::{
    GapInfo, Packet, PacketSink, Polled, Source, SourceCounters, SourceReport, SourceState, VlanTag,
};
pub use udp_target::{TargetTunnel, UdpTargetOptions, UdpTargetSource, open_targets};
pub use xdp::{Choice, XdpHook, XdpOptions, XdpSource, choose, open_xdp_lanes};
