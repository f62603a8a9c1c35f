//! Attaching to an interface: at the start, and again after it was away.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use wirevault_format::LinkType;

use super::sys::{RingShape, RingSocket};
use super::{Attached, PacketMmapSource};
use crate::error::CaptureError;
use crate::link::{self, Link};
use crate::port::{Clock, OnInterface, Port, link_type, offload_notes, socket_error};

/// The lanes of one interface.
#[derive(Debug)]
pub(super) struct FanoutGroup {
    pub(super) lanes: usize,
    /// Interface index and the kernel's id of the group for it. Taken while attaching only.
    joined: Mutex<Option<(i32, u16)>>,
}

impl FanoutGroup {
    pub(super) fn new(lanes: usize) -> Self {
        Self { lanes, joined: Mutex::new(None) }
    }

    /// Joins the group; the first lane has the kernel choose an id, so that no other process can
    /// share it by chance.
    fn join(&self, ring: &RingSocket, index: i32, ignore_outgoing: bool) -> io::Result<()> {
        let mut joined = self.joined.lock().unwrap_or_else(PoisonError::into_inner);
        let id = joined.filter(|(known, _)| *known == index).map(|(_, id)| id);
        *joined = Some((index, ring.join_fanout(id, ignore_outgoing)?));
        Ok(())
    }
}

impl OnInterface for PacketMmapSource {
    fn port(&self) -> &Port {
        &self.port
    }

    fn port_mut(&mut self) -> &mut Port {
        &mut self.port
    }

    fn expected_clock(&self) -> Clock {
        if self.options.hardware_time { Clock::Hardware } else { Clock::Software }
    }

    fn link_type(&self, link: Link) -> Result<LinkType, CaptureError> {
        link_type(self.port.name(), link.hardware)
    }

    fn look_at(&mut self) -> Result<(), CaptureError> {
        self.notes = offload_notes(&self.port.probe, self.port.name());
        if self.options.hardware_time {
            self.notes.push(hardware_note(&self.port.probe, self.port.name())?);
        }
        Ok(())
    }

    /// Opens a ring on the interface, its gate still closed.
    fn attach(&mut self, link: Link) -> Result<(), CaptureError> {
        let name = self.port.name();
        let fd = link::open_socket().map_err(socket_error(name, "opening"))?;
        let ring = RingSocket::new(fd, self.shape).map_err(|(step, source)| {
            if source.raw_os_error() == Some(libc::ENOMEM) {
                let RingShape { block_bytes, blocks } = self.shape;
                let ring_bytes = block_bytes * blocks;
                CaptureError::RingMemory {
                    interface: name.to_owned(),
                    ring_bytes,
                    block_bytes,
                    source,
                }
            } else {
                socket_error(name, step)(source)
            }
        })?;
        let loopback = link.hardware == libc::ARPHRD_LOOPBACK;
        ring.close_gate().map_err(socket_error(name, "closing the gate"))?;
        ring.stamp_early(self.options.hardware_time)
            .map_err(socket_error(name, "asking for time stamps"))?;
        if loopback {
            ring.ignore_outgoing().map_err(socket_error(name, "leaving out sent packets"))?;
        }
        ring.bind(link.index).map_err(socket_error(name, "binding"))?;
        if self.options.promiscuous {
            link::be_promiscuous(ring.fd(), link.index)
                .map_err(socket_error(name, "promiscuous mode"))?;
        }
        if let Some(group) = &self.group {
            group
                .join(&ring, link.index, loopback)
                .map_err(socket_error(name, "joining the lanes' fanout group"))?;
        }
        // What an earlier socket state left behind is no part of the books.
        ring.statistics().map_err(socket_error(name, "reading its counters"))?;
        self.attached = Some(Attached { ring, link, block: 0, cursor: None });
        Ok(())
    }

    fn open_gate(&mut self) -> Result<(), CaptureError> {
        let Some(attached) = &self.attached else { return Ok(()) };
        attached.ring.open_gate().map_err(socket_error(self.port.name(), "opening the gate"))
    }

    fn attached_to(&self) -> Option<i32> {
        self.attached.as_ref().map(|attached| attached.link.index)
    }

    fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.attached.as_ref().map_or(Ok(None), |attached| attached.ring.take_error())
    }

    fn read_statistics(&mut self) -> Result<(), CaptureError> {
        let Some(attached) = &self.attached else { return Ok(()) };
        let fresh = attached.ring.statistics();
        let fresh = fresh.map_err(socket_error(self.port.name(), "reading its counters"))?;
        let now_ns = link::now_ns();
        self.received += u64::from(fresh.packets);
        self.port.losses.lose(fresh.drops.into(), now_ns);
        self.port.losses.read_ns = now_ns;
        Ok(())
    }

    fn in_ring(&mut self) -> u64 {
        self.received.saturating_sub(self.port.losses.dropped + self.handed)
    }

    fn close(&mut self) {
        self.attached = None;
    }
}

/// What `status` says of the card's time stamps. Errors: it has none.
fn hardware_note(probe: &OwnedFd, name: &str) -> Result<String, CaptureError> {
    let lacks = |what: String| {
        let what = format!("`hardware_time` is asked for, but {what} (`ethtool -T {name}`)");
        Err(CaptureError::HardwareTime { interface: name.to_owned(), what })
    };
    let can = match link::time_stamping(probe, name) {
        Ok(can) => can,
        Err(error) => return lacks(format!("its driver says nothing of time stamps: {error}")),
    };
    if !can.receives {
        return lacks("the card does not stamp received packets".to_owned());
    }
    let clock = can.clock.map_or("no clock device".to_owned(), |it| format!("/dev/ptp{it}"));
    let set_up = format!("`hwstamp_ctl -i {name} -r 1` has it stamp all");
    Ok(match (can.all, can.on) {
        (false, _) => {
            format!("the card ({clock}) stamps only packets of time protocols; clocks will differ")
        }
        (true, Some(true)) => format!("the card ({clock}) stamps all packets; keep it in UTC"),
        (true, Some(false)) => format!("the card ({clock}) does not stamp all packets; {set_up}"),
        (true, None) => format!("whether the card ({clock}) stamps now is unknown; {set_up}"),
    })
}
