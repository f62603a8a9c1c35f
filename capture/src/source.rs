//! What a lane sees of any source: packets, gaps, counters, a state, and a report.

use std::ops::ControlFlow;
use std::time::Duration;

use wirevault_format::{Cause, Interface};

/// A VLAN tag that the kernel took out of the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VlanTag {
    /// Tag protocol identifier, such as 0x8100.
    pub tpid: u16,
    /// Priority, drop eligibility and VLAN id.
    pub tci: u16,
}

impl VlanTag {
    /// Offset in an Ethernet frame where the tag belongs: behind the two addresses.
    pub const OFFSET: usize = 12;

    /// The tag as it stands on the wire.
    pub fn bytes(self) -> [u8; 4] {
        let [a, b] = self.tpid.to_be_bytes();
        let [c, d] = self.tci.to_be_bytes();
        [a, b, c, d]
    }
}

/// One packet, lent to the sink.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    /// Its place in [`Source::interfaces`], which held it when [`Source::poll`] was called.
    pub interface: u32,
    /// Nanoseconds since 1970-01-01 UTC.
    pub ts_ns: u64,
    /// Bytes on the wire, without the tag in `vlan`.
    pub wire_len: u32,
    /// Captured bytes, without the tag in `vlan`.
    pub data: &'a [u8],
    /// Tag to put back at [`VlanTag::OFFSET`]; it counts in both lengths.
    pub vlan: Option<VlanTag>,
    /// `epb_flags`: direction and kind of reception.
    pub flags: Option<u32>,
    /// Other packet options to keep, encoded little-endian and padded, without `opt_endofopt`.
    pub options: &'a [u8],
}

/// Takes packets.
pub trait PacketSink {
    /// Takes one packet, or refuses it with `Break`: the source stops and offers the same packet in
    /// the next poll.
    fn packet(&mut self, packet: &Packet<'_>) -> ControlFlow<()>;
}

impl<F: FnMut(&Packet<'_>) -> ControlFlow<()>> PacketSink for F {
    fn packet(&mut self, packet: &Packet<'_>) -> ControlFlow<()> {
        self(packet)
    }
}

/// A time in which packets are or may be absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GapInfo {
    /// Why.
    pub cause: Cause,
    /// First nanosecond in which packets may be absent.
    pub from_ns: u64,
    /// First nanosecond after it; `None` if nothing is known after it.
    pub until_ns: Option<u64>,
    /// Packets absent, if they were counted.
    pub packets: Option<u64>,
}

/// What one call of [`Source::poll`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Polled {
    /// The sink took that many packets. 0 means that it refused the first one.
    Packets(u64),
    /// Nothing came within the wait.
    Idle,
    /// [`Source::interfaces`] has grown; packets of the new ones follow. Any packets handed out in
    /// the same call are in the counters.
    Interfaces,
    /// Packets are absent between what was handed out so far and what follows.
    Gap(GapInfo),
    /// Nothing will follow.
    End,
}

/// Counters since the source was opened, read together.
///
/// `received = handed + dropped_ring + in_ring`, always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SourceCounters {
    /// Packets that the kernel counted on this lane, or that were read from the file.
    pub received: u64,
    /// Packets that the sink took.
    pub handed: u64,
    /// Packets that the kernel dropped because the ring was full.
    pub dropped_ring: u64,
    /// Packets that wait in the source.
    pub in_ring: u64,
    /// Places from which a file could not be read on; what follows them is not counted.
    pub unreadable: u64,
    /// Packets whose time had parts below the nanosecond, or lay outside 1970 to 2554.
    pub times_rounded: u64,
    /// Packets of a pcap file that were longer than its snap length, and are cut to it.
    pub cut_to_snaplen: u64,
    /// Packets of a pcap file whose fraction of a second was a second or more.
    pub times_carried: u64,
    /// Packets that lost options which ran past their block or were too many.
    pub options_cut: u64,
    /// Packets that the mirror had cut, where the source itself takes them out of their tunnel.
    pub truncated_mirror: u64,
    /// pcapng blocks skipped, by [`wirevault_format::pcapng::OtherKind::index`].
    pub skipped_blocks: [u64; 7],
}

/// Whether packets can come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceState {
    /// Packets come as they arrive.
    Running,
    /// The interface is down or absent; the source attaches again by itself when it is back.
    InterfaceDown {
        /// Last time in Unix nanoseconds at which it was known to be up.
        since_ns: u64,
    },
    /// No sender is connected; the source meets the next one by itself.
    Waiting {
        /// Last time in Unix nanoseconds at which one was known to be connected.
        since_ns: u64,
    },
    /// A file was read to its end, or to damage.
    Ended,
}

/// What `status` shows of a source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceReport {
    /// Kind of source: `packet_mmap`, `af_xdp`, `pcap_over_ip` or `replay`.
    pub kind: &'static str,
    /// Interface, address or file.
    pub name: String,
    /// Lanes that share the interface, and how.
    pub fanout: Option<String>,
    /// Bytes of this lane's ring; 0 without one.
    pub ring_bytes: usize,
    /// What stamps the packets, as far as seen.
    pub clocks: Vec<String>,
    /// What people should know: why this kind, receive offloads, compression, refused options.
    pub notes: Vec<String>,
}

/// Where a lane's packets come from.
pub trait Source: Send {
    /// Interfaces met so far. The list only grows, and only across a poll that returns
    /// [`Polled::Interfaces`].
    fn interfaces(&self) -> &[Interface];

    /// Hands a batch of packets to the sink, waiting at most `wait` for the first.
    ///
    /// Errors: [`crate::CaptureError`]. After an error a replay has ended; a live source may be
    /// polled again.
    fn poll(
        &mut self,
        sink: &mut dyn PacketSink,
        wait: Duration,
    ) -> Result<Polled, crate::CaptureError>;

    /// Counters, brought up to date.
    fn counters(&mut self) -> SourceCounters;

    /// Whether packets can come.
    fn state(&self) -> SourceState;

    /// What `status` shows.
    fn report(&self) -> SourceReport;

    /// Whether packets are lost while the sink refuses them. A replay loses nothing, so its lane
    /// should wait.
    fn is_live(&self) -> bool;
}
