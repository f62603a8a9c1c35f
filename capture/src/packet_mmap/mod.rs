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

use std::sync::Arc;
use std::time::{Duration, Instant};

use wirevault_format::Interface;

use crate::error::CaptureError;
use crate::link::Link;
use crate::port::{Clock, OnInterface, Port, socket_error};
use crate::source::{
    Packet, PacketSink, Polled, Source, SourceCounters, SourceReport, SourceState,
};
use attach::FanoutGroup;
use frame::{Cursor, Frame};
pub use options::PacketMmapOptions;
use sys::{RingShape, RingSocket, Waited};

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
    let mut sources = (0..lanes)
        .map(|_| PacketMmapSource::open_behind_gate(options, group.clone()))
        .collect::<Result<Vec<_>, _>>()?;
    sources.iter_mut().try_for_each(PacketMmapSource::open_gate)?;
    Ok(sources)
}

/// One lane of live capture.
#[derive(Debug)]
pub struct PacketMmapSource {
    options: PacketMmapOptions,
    shape: RingShape,
    group: Option<Arc<FanoutGroup>>,
    port: Port,
    attached: Option<Attached>,
    received: u64,
    handed: u64,
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
        let mut source = Self::open_behind_gate(options, None)?;
        source.open_gate()?;
        Ok(source)
    }

    fn open_behind_gate(
        options: &PacketMmapOptions,
        group: Option<Arc<FanoutGroup>>,
    ) -> Result<Self, CaptureError> {
        let mut source = Self {
            options: options.clone(),
            shape: options.shape()?,
            group,
            port: Port::new(&options.interface, options.snaplen_bytes)?,
            attached: None,
            received: 0,
            handed: 0,
            notes: Vec::new(),
        };
        source.begin()?;
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
            let Some(interface) = self.port.places[frame.clock as usize] else {
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
            self.port.losses.last_ts_ns = frame.ts_ns;
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

    fn block_is_ready(&self) -> bool {
        self.attached.as_ref().is_some_and(|a| a.ring.block(a.block).is_some())
    }

    fn wait(&self, wait: Duration) -> Result<Waited, CaptureError> {
        match &self.attached {
            Some(attached) if !wait.is_zero() => attached
                .ring
                .wait(wait)
                .map_err(socket_error(self.port.name(), "waiting for packets")),
            _ => Ok(Waited::Quiet),
        }
    }
}

impl Source for PacketMmapSource {
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
        let mut alarmed = false;
        if !self.block_is_ready() {
            alarmed = self.wait(wait)? == Waited::Error;
        }
        let polled = if self.block_is_ready() {
            self.port.busy = Instant::now();
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
            dropped_ring: self.port.losses.dropped,
            in_ring: self.in_ring(),
            ..SourceCounters::default()
        }
    }

    fn state(&self) -> SourceState {
        self.port.losses.state
    }

    fn report(&self) -> SourceReport {
        let lanes = self.group.as_ref().map(|group| group.lanes);
        SourceReport {
            kind: "packet_mmap",
            name: self.options.interface.clone(),
            fanout: lanes.map(|lanes| format!("{lanes} lanes by flow hash")),
            ring_bytes: self.shape.block_bytes * self.shape.blocks,
            clocks: self.port.clocks(),
            notes: self.options.chosen.iter().chain(&self.notes).cloned().collect(),
        }
    }

    fn is_live(&self) -> bool {
        true
    }
}
