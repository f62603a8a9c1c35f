//! Attaching to an interface: at the start, and again after it was away.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use wirevault_format::{Interface, LinkType};

use super::frame::Clock;
use super::sys::{RingShape, RingSocket};
use super::{Attached, CHECK_PERIOD, PacketMmapSource};
use crate::error::CaptureError;
use crate::link::{self, Link};
use crate::source::Polled;

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

impl PacketMmapSource {
    pub(super) fn find_link(&self) -> Result<Option<Link>, CaptureError> {
        let name = &self.options.interface;
        link::link_by_name(&self.probe, name).map_err(socket_error(name, "looking it up"))
    }

    /// Learns the interface's link type, and adds it to the list with the clock that is expected.
    pub(super) fn describe(&mut self, link: Link) -> Result<(), CaptureError> {
        self.places = [None; Clock::ALL.len()];
        let clock = if self.options.hardware_time { Clock::Hardware } else { Clock::Software };
        self.place_of(link, clock)?;
        self.notes = self.options.chosen.iter().cloned().collect();
        self.notes.extend(offload_notes(&self.probe, &self.options.interface));
        if self.options.hardware_time {
            self.notes.push(hardware_note(&self.probe, &self.options.interface)?);
        }
        Ok(())
    }

    /// Place of the interface with this clock; `true` if it was added for it.
    pub(super) fn place_of(&mut self, link: Link, clock: Clock) -> Result<bool, CaptureError> {
        let mut interface = Interface::unnamed(link_type(&self.options.interface, link.hardware)?);
        interface.name = Some(self.options.interface.clone());
        interface.snaplen_bytes = self.options.snaplen_bytes;
        interface.clock = Some(clock.name().to_owned());
        let known = self.interfaces.iter().position(|i| *i == interface);
        let place = known.unwrap_or(self.interfaces.len());
        self.places[clock as usize] = Some(place as u32);
        if known.is_none() {
            self.interfaces.push(interface);
        }
        Ok(known.is_none())
    }

    /// Opens a ring on the interface, its gate still closed.
    pub(super) fn attach(&mut self, link: Link) -> Result<(), CaptureError> {
        let name = &self.options.interface;
        let fd = link::open_socket().map_err(socket_error(name, "opening"))?;
        let ring = RingSocket::new(fd, self.shape).map_err(|(step, source)| {
            if source.raw_os_error() == Some(libc::ENOMEM) {
                let RingShape { block_bytes, blocks } = self.shape;
                let ring_bytes = block_bytes * blocks;
                CaptureError::RingMemory {
                    interface: name.clone(),
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
        let now_ns = link::now_ns();
        self.losses.attached(now_ns);
        (self.checked, self.quiet_since) = (Instant::now(), Instant::now());
        self.attached = Some(Attached { ring, link, block: 0, cursor: None });
        Ok(())
    }

    /// Tries to attach to an interface that was down or absent.
    pub(super) fn attach_again(&mut self, wait: Duration) -> Result<Polled, CaptureError> {
        let early = CHECK_PERIOD.saturating_sub(self.checked.elapsed());
        if !early.is_zero() {
            std::thread::sleep(early.min(wait));
            return Ok(Polled::Idle);
        }
        self.checked = Instant::now();
        let Some(link) = self.find_link()?.filter(|link| link.up) else {
            return Ok(Polled::Idle);
        };
        let state = self.losses.state;
        let known = self.interfaces.len();
        self.describe(link)?;
        self.attach(link)?;
        self.losses.state = state;
        self.losses.end_outage();
        if let Some(attached) = &self.attached {
            attached.open_gate(&self.options.interface)?;
        }
        if self.interfaces.len() > known {
            return Ok(Polled::Interfaces);
        }
        Ok(self.losses.take().map_or(Polled::Idle, Polled::Gap))
    }
}

impl Attached {
    pub(super) fn open_gate(&self, name: &str) -> Result<(), CaptureError> {
        self.ring.open_gate().map_err(socket_error(name, "opening the gate"))
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

/// What `status` says of receive offloads.
pub(crate) fn offload_notes(probe: &OwnedFd, name: &str) -> Vec<String> {
    link::receive_offloads(probe, name)
        .into_iter()
        .map(|(offload, on)| match on {
            Some(true) => format!(
                "{offload} is on: packets of one stream may be merged before they are seen \
                 (`ethtool -K {name} {offload} off` keeps them apart)"
            ),
            Some(false) => format!("{offload} is off"),
            None => format!("{offload}: unknown"),
        })
        .collect()
}

/// Says what was being done to which interface when the kernel refused.
pub(crate) fn socket_error(
    name: &str,
    step: &'static str,
) -> impl FnOnce(io::Error) -> CaptureError + use<> {
    let interface = name.to_owned();
    move |source| match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => CaptureError::Permission { interface, source },
        _ => CaptureError::Socket { interface, step, source },
    }
}

/// Link type of what a packet socket gives on an interface of that kind.
///
/// Source: linux/if_arp.h and libpcap's `map_arphrd_to_dlt`. The kinds named here give whole
/// frames; others would need the kernel's cooked mode, which drops link headers.
pub(crate) fn link_type(name: &str, hardware: u16) -> Result<LinkType, CaptureError> {
    const ARPHRD_RAWIP: u16 = 519;
    match hardware {
        libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => Ok(LinkType::ETHERNET),
        libc::ARPHRD_NONE
        | libc::ARPHRD_TUNNEL
        | libc::ARPHRD_TUNNEL6
        | libc::ARPHRD_SIT
        | ARPHRD_RAWIP => Ok(LinkType::RAW),
        libc::ARPHRD_IEEE80211 => Ok(LinkType(105)),
        libc::ARPHRD_IEEE80211_RADIOTAP => Ok(LinkType(127)),
        _ => Err(CaptureError::Hardware { interface: name.to_owned(), hardware }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_without_whole_frames_is_refused_by_name() {
        assert_eq!(link_type("lo", libc::ARPHRD_LOOPBACK).ok(), Some(LinkType::ETHERNET));
        assert_eq!(link_type("tun0", libc::ARPHRD_NONE).ok(), Some(LinkType::RAW));
        let error = link_type("gre0", libc::ARPHRD_IPGRE).unwrap_err().to_string();
        assert!(error.contains("gre0") && error.contains("778"), "{error}");
    }
}
