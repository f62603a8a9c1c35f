//! Live capture over AF_PACKET with TPACKET_V3 rings, shared by flow hash over the lanes of one
//! interface.
//!
//! ```text
//!  kernel ──► block ──► block ──► block     one ring a lane; a block is given out when
//!               │                             full or after 10 ms
//!               │ consumed in order, given back when the sink took its last packet
//!               ▼
//!             sink
//! ```
//! Books: the kernel's `tp_packets` already includes its `tp_drops`, so
//! `received = handed + dropped + in_ring` holds at every reading, and a growth of the drops
//! becomes a gap between the previous reading and this one.
//!
//! An interface that goes down keeps its socket, because the kernel takes it up again without loss.
//! One that is deleted is drained, and its successor of the same name is attached when it appears.

mod attach;
mod frame;
mod options;
#[expect(unsafe_code, reason = "system calls and the mapped ring; see its invariants")]
mod sys;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wirevault_format::Interface;

use crate::error::CaptureError;
use crate::link::{self, Link};
use crate::losses::Losses;
use crate::source::{
    Packet, PacketSink, Polled, Source, SourceCounters, SourceReport, SourceState,
};
use attach::FanoutGroup;
pub(crate) use attach::{link_type, offload_notes, socket_error};
use frame::{Clock, Cursor, Frame};
pub use options::PacketMmapOptions;
use sys::{RingShape, RingSocket, Waited};

/// How often the interface and an idle socket's counters are looked at.
const CHECK_PERIOD: Duration = Duration::from_millis(100);
/// How long a deleted interface's ring may keep packets back; the kernel gives blocks out after 10
/// ms.
const DRAIN_LIMIT: Duration = Duration::from_millis(200);

/// Opens `lanes` sources that share one interface by flow hash; both directions of a flow reach the
/// same lane.
///
/// No packet is given out before all lanes are open, so none arrives twice. An interface that is
/// down is no error: the sources attach when it is up.
///
/// Errors: wrong options, no CAP_NET_RAW, no such interface, no memory for the rings.
pub fn open_lanes(
    options: &PacketMmapOptions,
    lanes: usize,
) -> Result<Vec<PacketMmapSource>, CaptureError> {
    if lanes == 0 {
        let rule = "at least one lane is needed";
        return Err(CaptureError::Option { name: "lanes", value: "0".to_owned(), rule });
    }
    let group = (lanes > 1).then(|| Arc::new(FanoutGroup::new(lanes)));
    let sources = (0..lanes)
        .map(|_| PacketMmapSource::open_behind_gate(options, group.clone()))
        .collect::<Result<Vec<_>, _>>()?;
    for attached in sources.iter().filter_map(|source| source.attached.as_ref()) {
        attached.open_gate(&options.interface)?;
    }
    Ok(sources)
}

/// One lane of live capture.
#[derive(Debug)]
pub struct PacketMmapSource {
    options: PacketMmapOptions,
    shape: RingShape,
    group: Option<Arc<FanoutGroup>>,
    /// Unbound socket to ask about interfaces with.
    probe: OwnedFd,
    attached: Option<Attached>,
    interfaces: Vec<Interface>,
    /// Place in `interfaces` for each clock, for the interface attached now.
    places: [Option<u32>; Clock::ALL.len()],
    losses: Losses,
    received: u64,
    handed: u64,
    checked: Instant,
    quiet_since: Instant,
    notes: Vec<String>,
}

#[derive(Debug)]
struct Attached {
    ring: RingSocket,
    link: Link,
    /// Block that is or will be consumed.
    block: usize,
    /// Place in it, if a part of it was handed out.
    cursor: Option<Cursor>,
}

enum Stop {
    BlockDone,
    Refused,
    NewClock(Clock),
    Outside(usize),
}

impl PacketMmapSource {
    /// Opens the only lane of an interface. Errors: as [`open_lanes`].
    pub fn open(options: &PacketMmapOptions) -> Result<Self, CaptureError> {
        let source = Self::open_behind_gate(options, None)?;
        if let Some(attached) = &source.attached {
            attached.open_gate(&options.interface)?;
        }
        Ok(source)
    }

    fn open_behind_gate(
        options: &PacketMmapOptions,
        group: Option<Arc<FanoutGroup>>,
    ) -> Result<Self, CaptureError> {
        let shape = options.shape()?;
        let probe = link::open_socket().map_err(socket_error(&options.interface, "opening"))?;
        let now_ns = link::now_ns();
        let mut source = Self {
            options: options.clone(),
            shape,
            group,
            probe,
            attached: None,
            interfaces: Vec::with_capacity(Clock::ALL.len()),
            places: [None; Clock::ALL.len()],
            losses: Losses::since(now_ns),
            received: 0,
            handed: 0,
            checked: Instant::now(),
            quiet_since: Instant::now(),
            notes: Vec::new(),
        };
        let Some(link) = source.find_link()? else {
            return Err(CaptureError::NoInterface {
                interface: options.interface.clone(),
                present: link::interface_names().join(", "),
            });
        };
        source.describe(link)?;
        if link.up {
            source.attach(link)?;
        }
        Ok(source)
    }

    /// Hands out what is left of the current block.
    fn consume(&mut self, sink: &mut dyn PacketSink) -> Result<Polled, CaptureError> {
        let Some(attached) = &mut self.attached else { return Ok(Polled::Idle) };
        let Some(block) = attached.ring.block(attached.block) else { return Ok(Polled::Idle) };
        let start = attached.cursor.or_else(|| Cursor::at_start(block));
        let mut cursor = start.unwrap_or(Cursor { offset: 0, left: 0 });
        let mut handed = 0;
        let stop = loop {
            if cursor.left == 0 {
                break Stop::BlockDone;
            }
            let Some(frame) = Frame::parse(block, cursor.offset) else {
                break Stop::Outside(cursor.offset);
            };
            let Some(interface) = self.places[frame.clock as usize] else {
                break Stop::NewClock(frame.clock);
            };
            let packet = Packet {
                interface,
                ts_ns: frame.ts_ns,
                wire_len: frame.wire_len,
                data: frame.data,
                vlan: frame.vlan,
                flags: Some(frame.flags),
                options: &[],
            };
            if sink.packet(&packet).is_break() {
                break Stop::Refused;
            }
            handed += 1;
            self.losses.last_ts_ns = frame.ts_ns;
            cursor = cursor.behind(&frame);
        };
        self.handed += handed;
        attached.cursor = Some(cursor);
        match stop {
            Stop::BlockDone => {
                attached.cursor = None;
                attached.ring.release(attached.block);
                attached.block = (attached.block + 1) % self.shape.blocks;
                self.read_statistics()?;
            }
            Stop::Refused => {}
            Stop::NewClock(clock) => {
                let link = attached.link;
                if self.place_of(link, clock)? {
                    return Ok(Polled::Interfaces);
                }
            }
            Stop::Outside(offset) => {
                self.read_statistics()?;
                self.detach();
                return Err(CaptureError::Ring {
                    interface: self.options.interface.clone(),
                    offset,
                    block_bytes: self.shape.block_bytes,
                });
            }
        }
        Ok(Polled::Packets(handed))
    }

    /// Adds the kernel's counters to the books, and notes a gap if it dropped packets.
    fn read_statistics(&mut self) -> Result<(), CaptureError> {
        let Some(attached) = &self.attached else { return Ok(()) };
        let fresh = attached
            .ring
            .statistics()
            .map_err(socket_error(&self.options.interface, "reading its counters"))?;
        let now_ns = link::now_ns();
        self.received += u64::from(fresh.packets);
        self.losses.lose(fresh.drops.into(), now_ns);
        self.losses.read_ns = now_ns;
        Ok(())
    }

    fn in_ring(&self) -> u64 {
        self.received.saturating_sub(self.losses.dropped + self.handed)
    }

    /// Looks at counters and interface, if it is time to or the socket has an error pending.
    fn look_after(&mut self, alarmed: bool) -> Result<(), CaptureError> {
        if !alarmed && self.checked.elapsed() < CHECK_PERIOD {
            return Ok(());
        }
        self.checked = Instant::now();
        self.read_statistics()?;
        let name = &self.options.interface;
        let Some(attached) = &self.attached else { return Ok(()) };
        let pending = attached.ring.take_error().map_err(socket_error(name, "asking its error"))?;
        let link = link::link_by_index(attached.ring.fd(), attached.link.index)
            .map_err(socket_error(name, "looking it up"))?;
        let was_down = pending.as_ref().and_then(io::Error::raw_os_error) == Some(libc::ENETDOWN);
        if let Some(source) = pending.filter(|_| !was_down) {
            return Err(socket_error(name, "receiving")(source));
        }
        match link {
            Some(link) if link.up => {
                if was_down || self.losses.state != SourceState::Running {
                    self.losses.end_outage();
                }
                self.losses.up_ns = link::now_ns();
            }
            Some(_) => self.losses.begin_outage(),
            None => {
                self.losses.begin_outage();
                if self.in_ring() == 0 || self.quiet_since.elapsed() > DRAIN_LIMIT {
                    self.detach();
                }
            }
        }
        Ok(())
    }

    /// Closes the ring. What it still holds is lost, and booked so.
    fn detach(&mut self) {
        self.losses.lose(self.in_ring(), link::now_ns());
        self.attached = None;
        self.losses.begin_outage();
    }

    fn block_is_ready(&self) -> bool {
        self.attached.as_ref().is_some_and(|a| a.ring.block(a.block).is_some())
    }

    fn wait(&self, wait: Duration) -> Result<Waited, CaptureError> {
        match &self.attached {
            Some(attached) if !wait.is_zero() => attached
                .ring
                .wait(wait)
                .map_err(socket_error(&self.options.interface, "waiting for packets")),
            _ => Ok(Waited::Quiet),
        }
    }
}

impl Source for PacketMmapSource {
    fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    fn poll(&mut self, sink: &mut dyn PacketSink, wait: Duration) -> Result<Polled, CaptureError> {
        if let Some(gap) = self.losses.take() {
            return Ok(Polled::Gap(gap));
        }
        if self.attached.is_none() {
            return self.attach_again(wait);
        }
        let mut alarmed = false;
        if !self.block_is_ready() {
            alarmed = self.wait(wait)? == Waited::Error;
        }
        let polled = if self.block_is_ready() {
            self.quiet_since = Instant::now();
            self.consume(sink)?
        } else {
            Polled::Idle
        };
        self.look_after(alarmed)?;
        Ok(polled)
    }

    fn counters(&mut self) -> SourceCounters {
        // A failure shows in the next poll, which asks the same socket.
        let _ = self.read_statistics();
        SourceCounters {
            received: self.received,
            handed: self.handed,
            dropped_ring: self.losses.dropped,
            in_ring: self.in_ring(),
            ..SourceCounters::default()
        }
    }

    fn state(&self) -> SourceState {
        self.losses.state
    }

    fn report(&self) -> SourceReport {
        let lanes = self.group.as_ref().map(|group| group.lanes);
        SourceReport {
            kind: "packet_mmap",
            name: self.options.interface.clone(),
            fanout: lanes.map(|lanes| format!("{lanes} lanes by flow hash")),
            ring_bytes: self.shape.block_bytes * self.shape.blocks,
            clocks: self.interfaces.iter().filter_map(|i| i.clock.clone()).collect(),
            notes: self.notes.clone(),
        }
    }

    fn is_live(&self) -> bool {
        true
    }
}
