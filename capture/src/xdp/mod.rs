//! Live capture over AF_XDP: packets leave the driver for our memory before the kernel's stack
//! makes anything of them.
//!
//! ```text
//!  queue 0 ──► XDP program ──► socket, frames ──┐
//!  queue 1 ──►    (one for  ──► socket, frames ──┼──► lane 0 ──► sink
//!  queue 2 ──►  all queues) ──► socket, frames ──┘
//! ```
//! A packet that is taken is taken away: the machine and other programs do not see it, and packets
//! that the machine sends are not seen here. So this is for ports that are there to be recorded.
//!
//! Books: `in_ring` counts the packets that wait in the sockets' rings, `dropped` is the kernel's
//! count of those that found no frame or no place, and `received` is their sum with those handed
//! out. A growth of the drops becomes a gap between the previous reading and this one.
//!
//! Packets are stamped by the program as the driver hands them over (clock `xdp`). Where it cannot,
//! they carry the time at which they were taken out of the ring (clock `poll`), up to a few
//! milliseconds later. Where the driver tells the program, VLAN tags that the card took out of a
//! frame come back beside it, and packets have the card's time if that is asked for (clock
//! `hardware`).
//!
//! An idle lane sleeps until a packet comes. While packets come it wakes about once a millisecond
//! and takes what is there: being woken for each packet costs many times more than the packet.

mod attach;
#[expect(unsafe_code, reason = "bpf(2); see its invariants")]
mod bpf;
mod btf;
mod choose;
mod facts;
mod load;
mod notes;
mod options;
mod program;
#[expect(unsafe_code, reason = "sockets and mapped rings; see its invariants")]
mod sys;
mod take;

use std::sync::Arc;
use std::time::Duration;

use wirevault_format::Interface;

use crate::error::CaptureError;
use crate::link::Link;
use crate::port::{OnInterface, Port};
use crate::source::{PacketSink, Polled, Source, SourceCounters, SourceReport, SourceState};
use attach::{Hooked, Sharing};
pub use choose::{Choice, choose};
pub use options::{XdpHook, XdpOptions};
use sys::PAGE_FRAME_BYTES;
use take::Bound;

/// Bytes of the longest packet that several frames make, by the kernel's limit of 17 fragments.
const LONG_BYTES_MAX: usize = 18 * PAGE_FRAME_BYTES;

/// Opens `lanes` sources that share an interface's receive queues: queue q belongs to lane q modulo
/// `lanes`.
///
/// No packet is taken before all lanes are open. An interface that is down is no error: the sources
/// attach when it is up.
///
/// Errors: wrong options, missing capabilities, no such interface, fewer queues than lanes, no
/// memory, a program of somebody else on the interface.
pub fn open_xdp_lanes(options: &XdpOptions, lanes: usize) -> Result<Vec<XdpSource>, CaptureError> {
    options.check(lanes)?;
    let sharing = Arc::new(Sharing::default());
    let mut sources = (0..lanes)
        .map(|lane| XdpSource::open_closed(options, lane, lanes, Arc::clone(&sharing)))
        .collect::<Result<Vec<_>, _>>()?;
    sources.iter_mut().try_for_each(XdpSource::open_gate)?;
    Ok(sources)
}

/// One lane of live capture over AF_XDP.
#[derive(Debug)]
pub struct XdpSource {
    options: XdpOptions,
    lane: usize,
    lanes: usize,
    sharing: Arc<Sharing>,
    /// Its probe also holds promiscuous mode.
    port: Port,
    attached: Option<Attached>,
    handed: u64,
    /// A packet of several frames, put together.
    long: Vec<u8>,
    /// Room for waiting on all sockets.
    polled: Vec<libc::pollfd>,
    notes: Vec<String>,
}

#[derive(Debug)]
struct Attached {
    queues: Vec<Bound>,
    hooked: Arc<Hooked>,
    link: Link,
    /// Queue whose turn comes first.
    turn: usize,
}

impl XdpSource {
    /// Opens the only lane of an interface. Errors: as [`open_xdp_lanes`].
    pub fn open(options: &XdpOptions) -> Result<Self, CaptureError> {
        let mut lanes = open_xdp_lanes(options, 1)?;
        lanes.pop().ok_or_else(|| CaptureError::Option {
            name: "lanes",
            value: "0".to_owned(),
            rule: "at least one lane is needed",
        })
    }

    fn open_closed(
        options: &XdpOptions,
        lane: usize,
        lanes: usize,
        sharing: Arc<Sharing>,
    ) -> Result<Self, CaptureError> {
        let mut source = Self {
            options: options.clone(),
            lane,
            lanes,
            sharing,
            port: Port::new(&options.interface, options.snaplen_bytes)?,
            attached: None,
            handed: 0,
            long: Vec::with_capacity(LONG_BYTES_MAX),
            polled: Vec::new(),
            notes: Vec::new(),
        };
        source.begin()?;
        Ok(source)
    }
}

impl Source for XdpSource {
    fn interfaces(&self) -> &[Interface] {
        &self.port.interfaces
    }

    fn poll(&mut self, sink: &mut dyn PacketSink, wait: Duration) -> Result<Polled, CaptureError> {
        if let Some(gap) = self.port.losses.take() {
            return Ok(Polled::Gap(gap));
        }
        if self.attached.is_none() {
            return self.attach_again(wait);
        }
        self.settle(wait)?;
        let polled = self.consume(sink)?;
        self.look_after(false)?;
        Ok(polled.unwrap_or(Polled::Idle))
    }

    fn counters(&mut self) -> SourceCounters {
        // A failure shows in the next poll, which asks the same sockets.
        let _ = self.read_statistics();
        let in_ring = self.in_ring();
        SourceCounters {
            received: self.handed + self.port.losses.dropped + in_ring,
            handed: self.handed,
            dropped_ring: self.port.losses.dropped,
            in_ring,
            ..SourceCounters::default()
        }
    }

    fn state(&self) -> SourceState {
        self.port.losses.state
    }

    fn report(&self) -> SourceReport {
        let lanes = (self.lanes > 1).then(|| format!("{} lanes by receive queue", self.lanes));
        SourceReport {
            kind: "af_xdp",
            name: self.options.interface.clone(),
            fanout: lanes,
            ring_bytes: self.ring_bytes(),
            clocks: self.port.clocks(),
            notes: self.all_notes(),
        }
    }

    fn is_live(&self) -> bool {
        true
    }
}
