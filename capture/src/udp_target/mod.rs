//! A socket that mirrors send to: VPC Traffic Mirroring, a Gateway Load Balancer, `tc mirred` into
//! a VXLAN tunnel.
//!
//! ```text
//!  mirror ──► UDP socket ──► recvmmsg, a batch a call ──► inner frame ──► sink
//!                                │                             └─ outer headers: an option
//!                                └─ the kernel's time and its count of drops
//! ```
//! It needs no promiscuous interface and no privilege but that of its port. The kernel puts outer
//! fragments together and takes outer headers off; the tunnel's are removed here.
//!
//! Books: `received = handed + dropped + in_ring`. What waits in the socket's buffer is not counted
//! before it is read, because the kernel tells bytes of it, not datagrams. Drops are read once a
//! batch (`SO_MEMINFO`), so a gap lies between two readings. A datagram in which no frame can be
//! found is counted as unreadable, beside the sum.

#[expect(unsafe_code, reason = "system calls on batches of datagrams; see its invariants")]
mod sys;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use wirevault_format::{Cause, Interface, LinkType, VxlanPorts};
use wirevault_packet::{Decap, OuterHeaders, OuterKind, Stripped, Tunnel};

use crate::error::CaptureError;
use crate::source::{
    GapInfo, Packet, PacketSink, Polled, Source, SourceCounters, SourceReport, SourceState,
};
use sys::Batch;

/// UDP port of VXLAN, whatever port the socket listens on.
const VXLAN_PORT: u16 = 4789;
/// UDP port of GENEVE.
const GENEVE_PORT: u16 = 6081;
/// Place in [`Source::interfaces`] of frames that are Ethernet, and of those that are IP.
const ETHERNET: u32 = 0;
const RAW: u32 = 1;

/// What the frames are wrapped in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetTunnel {
    /// VXLAN.
    Vxlan,
    /// GENEVE, and VXLAN within it.
    Geneve,
}

/// Options of a mirror target.
#[derive(Debug, Clone)]
pub struct UdpTargetOptions {
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// What the frames are wrapped in.
    pub tunnel: TargetTunnel,
    /// Bytes of socket buffer. The kernel counts its own overhead, too, and gives no more than
    /// `net.core.rmem_max` without CAP_NET_ADMIN.
    pub buffer_bytes: usize,
    /// What the lane cuts packets to; only described here. 0 means no limit.
    pub snaplen_bytes: u32,
}

/// Opens `lanes` sources that share one address by the datagrams' addresses and ports.
///
/// Errors: wrong options, the address is not of this machine or taken, no right to its port.
pub fn open_targets(
    options: &UdpTargetOptions,
    lanes: usize,
) -> Result<Vec<UdpTargetSource>, CaptureError> {
    if lanes == 0 {
        let rule = "at least one lane is needed";
        return Err(CaptureError::Option { name: "lanes", value: "0".to_owned(), rule });
    }
    (0..lanes).map(|_| UdpTargetSource::open(options, lanes)).collect()
}

/// One lane of a mirror target.
#[derive(Debug)]
pub struct UdpTargetSource {
    name: String,
    socket: OwnedFd,
    batch: Batch,
    /// Next datagram of the batch.
    next: usize,
    decap: Decap,
    port: u16,
    local: IpAddr,
    outer: OuterHeaders,
    interfaces: [Interface; 2],
    lanes: usize,
    buffer_bytes: usize,
    notes: Vec<String>,
    received: u64,
    handed: u64,
    dropped: u64,
    unreadable: u64,
    truncated: u64,
    /// The kernel's count of drops at the last reading, and when that was.
    drops_read: u32,
    read_ns: u64,
    gap: Option<GapInfo>,
}

impl UdpTargetSource {
    fn open(options: &UdpTargetOptions, lanes: usize) -> Result<Self, CaptureError> {
        let name = format!("udp {}", options.listen);
        let failed = |step, source| CaptureError::Socket { interface: name.clone(), step, source };
        let socket = sys::open(options.listen, lanes > 1).map_err(|(step, e)| failed(step, e))?;
        let got = sys::set_buffer(&socket, options.buffer_bytes)
            .map_err(|e| failed("asking for its buffer", e))?;
        let drops_read = sys::drops(&socket).map_err(|e| failed("reading its counters", e))?;
        // The kernel doubles what is asked for, as its own overhead.
        let short = got / 2 < options.buffer_bytes;
        let notes = short.then(|| {
            format!(
                "socket buffer: {} of {} bytes; raise net.core.rmem_max or give CAP_NET_ADMIN",
                got / 2,
                options.buffer_bytes
            )
        });
        let interface = |link_type| Interface {
            name: Some(name.clone()),
            snaplen_bytes: options.snaplen_bytes,
            clock: Some("software".to_owned()),
            ..Interface::unnamed(link_type)
        };
        let (tunnels, port): (&[Tunnel], _) = match options.tunnel {
            TargetTunnel::Vxlan => (&[Tunnel::Vxlan], VXLAN_PORT),
            TargetTunnel::Geneve => (&[Tunnel::Geneve, Tunnel::Vxlan], GENEVE_PORT),
        };
        Ok(Self {
            interfaces: [interface(LinkType::ETHERNET), interface(LinkType::RAW)],
            socket,
            batch: Batch::new(),
            next: 0,
            decap: Decap::new(tunnels, VxlanPorts::new(&[VXLAN_PORT])),
            port,
            local: options.listen.ip(),
            outer: OuterHeaders::default(),
            lanes,
            buffer_bytes: got / 2,
            notes: notes.into_iter().collect(),
            received: 0,
            handed: 0,
            dropped: 0,
            unreadable: 0,
            truncated: 0,
            drops_read,
            read_ns: sys::now_ns(),
            gap: None,
            name,
        })
    }

    /// Port that it listens on: the one asked for, or the one the kernel chose for 0.
    ///
    /// # Errors
    /// The socket does not say.
    pub fn local_port(&self) -> io::Result<u16> {
        sys::local_port(&self.socket)
    }

    /// Hands out what is left of the batch.
    fn hand(&mut self, sink: &mut dyn PacketSink) -> u64 {
        let mut handed = 0;
        while let Some(datagram) = self.batch.datagram(self.next) {
            self.outer.clear();
            // There is room: the record is the first.
            let _ = match (datagram.from, self.local) {
                (Some(IpAddr::V4(from)), IpAddr::V4(to)) => {
                    let addresses = [from.octets(), to.octets()];
                    self.outer.push(OuterKind::Ipv4, addresses.as_flattened())
                }
                (Some(from), to) => {
                    let addresses = [from, to].map(|ip| match ip {
                        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                        IpAddr::V6(ip) => ip.octets(),
                    });
                    self.outer.push(OuterKind::Ipv6, addresses.as_flattened())
                }
                (None, _) => true,
            };
            let stripped = self.decap.strip_datagram(
                self.port,
                datagram.data,
                datagram.wire_len,
                &mut self.outer,
            );
            let Stripped::Inner(inner) = stripped else {
                self.unreadable += 1;
                self.received -= 1;
                self.next += 1;
                continue;
            };
            let packet = Packet {
                interface: if inner.link == LinkType::ETHERNET { ETHERNET } else { RAW },
                ts_ns: datagram.ts_ns.unwrap_or(self.read_ns),
                wire_len: inner.wire_len,
                data: inner.data,
                vlan: None,
                flags: None,
                options: self.outer.option(),
            };
            if sink.packet(&packet).is_break() {
                break;
            }
            self.next += 1;
            handed += 1;
            self.truncated += u64::from(inner.truncated);
        }
        self.handed += handed;
        handed
    }

    /// Adds the kernel's drops to the books, and notes a gap if there are new ones.
    fn read_drops(&mut self) -> Result<(), CaptureError> {
        let drops = sys::drops(&self.socket).map_err(|source| CaptureError::Socket {
            interface: self.name.clone(),
            step: "reading its counters",
            source,
        })?;
        let now_ns = sys::now_ns();
        let fresh = u64::from(drops.wrapping_sub(self.drops_read));
        if fresh > 0 {
            self.dropped += fresh;
            self.received += fresh;
            let before = self.gap.and_then(|gap| gap.packets).unwrap_or(0);
            self.gap = Some(GapInfo {
                cause: Cause::RingOverflow,
                from_ns: self.gap.map_or(self.read_ns, |gap| gap.from_ns),
                until_ns: Some(now_ns),
                packets: Some(before + fresh),
            });
        }
        (self.drops_read, self.read_ns) = (drops, now_ns);
        Ok(())
    }
}

impl Source for UdpTargetSource {
    fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    fn poll(&mut self, sink: &mut dyn PacketSink, wait: Duration) -> Result<Polled, CaptureError> {
        if let Some(gap) = self.gap.take() {
            return Ok(Polled::Gap(gap));
        }
        if self.next >= self.batch.len() {
            self.next = 0;
            let got = self.batch.receive(&self.socket, wait);
            let got = got.map_err(|source| CaptureError::Socket {
                interface: self.name.clone(),
                step: "receiving",
                source,
            })?;
            self.received += got as u64;
            self.read_drops()?;
            if got == 0 {
                return Ok(Polled::Idle);
            }
        }
        match self.hand(sink) {
            // Nothing but unreadable datagrams: the sink refused none.
            0 if self.next >= self.batch.len() => Ok(Polled::Idle),
            handed => Ok(Polled::Packets(handed)),
        }
    }

    fn counters(&mut self) -> SourceCounters {
        SourceCounters {
            received: self.received,
            handed: self.handed,
            dropped_ring: self.dropped,
            in_ring: self.received - self.handed - self.dropped,
            unreadable: self.unreadable,
            truncated_mirror: self.truncated,
            ..SourceCounters::default()
        }
    }

    fn state(&self) -> SourceState {
        SourceState::Running
    }

    fn report(&self) -> SourceReport {
        let lanes = self.lanes;
        SourceReport {
            kind: "udp_target",
            name: self.name.clone(),
            fanout: (lanes > 1).then(|| format!("{lanes} lanes by outer addresses and ports")),
            ring_bytes: self.buffer_bytes,
            clocks: vec!["software".to_owned()],
            notes: self.notes.clone(),
        }
    }

    fn is_live(&self) -> bool {
        true
    }
}
