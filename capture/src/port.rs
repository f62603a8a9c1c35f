//! What every source on a network interface does alike: find and describe the interface, notice
//! that it went down or away, and attach again when it is back.
//!
//! ```text
//!            up                        down: kept, the kernel takes it up again
//!  absent ───────► attached, gate closed ──► gate open ──────► gone: drained, detached
//!     ▲                                                                  │
//!     └──────────── looked for by name, every CHECK_PERIOD ◄─────────────┘
//! ```
//! A source brings what differs as an [`OnInterface`]; the provided functions decide when. A gate
//! keeps packets out until all lanes of the interface stand, so that none arrives twice.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use wirevault_format::{Interface, LinkType};

use crate::error::CaptureError;
use crate::link::{self, Link};
use crate::losses::Losses;
use crate::source::{Polled, SourceState};

/// How often the interface and an idle socket's counters are looked at.
const CHECK_PERIOD: Duration = Duration::from_millis(100);
/// How long a deleted interface's packets may take to be handed out. A packet socket's kernel gives
/// blocks out after 10 ms.
const DRAIN_LIMIT: Duration = Duration::from_millis(200);

/// What stamped a packet. An interface of a record has one clock, so a source shows as many as its
/// packets bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clock {
    /// The kernel's clock, as the packet entered or, microseconds later, as it was copied into the
    /// ring. One clock and so one interface: the kernel turns the earlier stamp on from a work
    /// queue, so that the first packets behind an opening lack it by chance.
    Software,
    /// The network card.
    Hardware,
    /// The XDP program, as the driver handed the packet over.
    Xdp,
    /// This side, as it took the packet out of the ring.
    Poll,
}

impl Clock {
    pub(crate) const ALL: [Self; 4] = [Self::Software, Self::Hardware, Self::Xdp, Self::Poll];

    /// The name that interface descriptions carry.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Software => "software",
            Self::Hardware => "hardware",
            Self::Xdp => "xdp",
            Self::Poll => "poll",
        }
    }
}

/// The interface that a source is on, or waits for.
#[derive(Debug)]
pub(crate) struct Port {
    name: String,
    snaplen_bytes: u32,
    /// Unbound packet socket to ask about interfaces with.
    pub(crate) probe: OwnedFd,
    pub(crate) losses: Losses,
    pub(crate) interfaces: Vec<Interface>,
    /// Place in `interfaces` for each clock, for the interface attached now.
    pub(crate) places: [Option<u32>; Clock::ALL.len()],
    checked: Instant,
    /// When packets were seen last.
    pub(crate) busy: Instant,
}

impl Port {
    /// Errors: no CAP_NET_RAW.
    pub(crate) fn new(name: &str, snaplen_bytes: u32) -> Result<Self, CaptureError> {
        Ok(Self {
            name: name.to_owned(),
            snaplen_bytes,
            probe: link::open_socket().map_err(socket_error(name, "opening"))?,
            losses: Losses::since(link::now_ns()),
            interfaces: Vec::with_capacity(Clock::ALL.len()),
            places: [None; Clock::ALL.len()],
            checked: Instant::now(),
            busy: Instant::now(),
        })
    }

    /// Name of the interface.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether the kernel's counters and the interface are to be looked at; then they are not for a
    /// while.
    fn is_due(&mut self) -> bool {
        let due = self.checked.elapsed() >= CHECK_PERIOD;
        if due {
            self.checked = Instant::now();
        }
        due
    }

    /// Place of the interface with this clock; `true` if it was added for it.
    fn place_of(&mut self, link_type: LinkType, clock: Clock) -> bool {
        let mut interface = Interface::unnamed(link_type);
        interface.name = Some(self.name.clone());
        interface.snaplen_bytes = self.snaplen_bytes;
        interface.clock = Some(clock.name().to_owned());
        let known = self.interfaces.iter().position(|i| *i == interface);
        let place = known.unwrap_or(self.interfaces.len());
        self.places[clock as usize] = Some(place as u32);
        if known.is_none() {
            self.interfaces.push(interface);
        }
        known.is_none()
    }

    /// The clocks met so far, for `status`.
    pub(crate) fn clocks(&self) -> Vec<String> {
        self.interfaces.iter().filter_map(|interface| interface.clock.clone()).collect()
    }
}

/// What one kind of source does to its interface.
pub(crate) trait OnInterface {
    /// The interface.
    fn port(&self) -> &Port;

    /// The interface.
    fn port_mut(&mut self) -> &mut Port;

    /// The clock that most packets will bring.
    fn expected_clock(&self) -> Clock;

    /// Link type of the packets. Errors: this source cannot record such an interface.
    fn link_type(&self, link: Link) -> Result<LinkType, CaptureError>;

    /// Learns what `status` says of an interface that is there, up or down. Errors: it cannot do
    /// what is asked for.
    fn look_at(&mut self) -> Result<(), CaptureError> {
        Ok(())
    }

    /// Opens sockets on the interface; nothing comes before [`Self::open_gate`].
    fn attach(&mut self, link: Link) -> Result<(), CaptureError>;

    /// Has packets come, if it is attached.
    fn open_gate(&mut self) -> Result<(), CaptureError>;

    /// Index of the interface that it is attached to.
    fn attached_to(&self) -> Option<i32>;

    /// Takes the sockets' pending error, of several the worst: any but `ENETDOWN`.
    fn take_error(&self) -> io::Result<Option<io::Error>>;

    /// Adds the kernel's counters to the books, and notes a gap if it dropped packets.
    fn read_statistics(&mut self) -> Result<(), CaptureError>;

    /// Packets that wait in the sockets.
    fn in_ring(&mut self) -> u64;

    /// Closes the sockets.
    fn close(&mut self);

    /// Attaches for the first time, if the interface is up. Errors: it does not exist.
    fn begin(&mut self) -> Result<(), CaptureError> {
        let Some(link) = self.find_link()? else {
            return Err(CaptureError::NoInterface {
                interface: self.port().name.clone(),
                present: link::interface_names().join(", "),
            });
        };
        self.describe(link)?;
        if link.up { self.attach_to(link) } else { Ok(()) }
    }

    /// Tries to attach to an interface that was down or absent.
    fn attach_again(&mut self, wait: Duration) -> Result<Polled, CaptureError> {
        if !self.port_mut().is_due() {
            let early = CHECK_PERIOD.saturating_sub(self.port().checked.elapsed());
            std::thread::sleep(early.min(wait));
            return Ok(Polled::Idle);
        }
        let Some(link) = self.find_link()?.filter(|link| link.up) else {
            return Ok(Polled::Idle);
        };
        let state = self.port().losses.state;
        let known = self.port().interfaces.len();
        self.describe(link)?;
        self.attach_to(link)?;
        let losses = &mut self.port_mut().losses;
        losses.state = state;
        losses.end_outage();
        self.open_gate()?;
        if self.port().interfaces.len() > known {
            return Ok(Polled::Interfaces);
        }
        Ok(self.port_mut().losses.take().map_or(Polled::Idle, Polled::Gap))
    }

    /// Looks at counters and interface, if it is time to or a socket has an error pending.
    fn look_after(&mut self, alarmed: bool) -> Result<(), CaptureError> {
        if !self.port_mut().is_due() && !alarmed {
            return Ok(());
        }
        self.read_statistics()?;
        let Some(index) = self.attached_to() else { return Ok(()) };
        let name = &self.port().name;
        let pending = self.take_error().map_err(socket_error(name, "asking its error"))?;
        let link = link::link_by_index(&self.port().probe, index)
            .map_err(socket_error(name, "looking it up"))?;
        let was_down = pending.as_ref().and_then(io::Error::raw_os_error) == Some(libc::ENETDOWN);
        if let Some(source) = pending.filter(|_| !was_down) {
            return Err(socket_error(name, "receiving")(source));
        }
        let losses = &mut self.port_mut().losses;
        match link {
            Some(link) if link.up => {
                if was_down || losses.state != SourceState::Running {
                    losses.end_outage();
                }
                losses.up_ns = link::now_ns();
            }
            Some(_) => losses.begin_outage(),
            None => {
                losses.begin_outage();
                if self.in_ring() == 0 || self.port().busy.elapsed() > DRAIN_LIMIT {
                    self.detach();
                }
            }
        }
        Ok(())
    }

    /// Closes the sockets. What they still hold is lost, and booked so.
    fn detach(&mut self) {
        let lost = self.in_ring();
        self.close();
        let losses = &mut self.port_mut().losses;
        losses.lose(lost, link::now_ns());
        losses.begin_outage();
    }

    /// The interface of that name; `None` if there is none.
    fn find_link(&self) -> Result<Option<Link>, CaptureError> {
        let Port { name, probe, .. } = self.port();
        link::link_by_name(probe, name).map_err(socket_error(name, "looking it up"))
    }

    /// Adds the interface to the list, with the clock that is expected.
    fn describe(&mut self, link: Link) -> Result<(), CaptureError> {
        self.port_mut().places = [None; Clock::ALL.len()];
        self.place_of(link, self.expected_clock())?;
        self.look_at()
    }

    /// Place of the interface with this clock; `true` if it was added for it.
    fn place_of(&mut self, link: Link, clock: Clock) -> Result<bool, CaptureError> {
        let link_type = self.link_type(link)?;
        Ok(self.port_mut().place_of(link_type, clock))
    }

    /// Attaches, and begins the books of this attachment.
    fn attach_to(&mut self, link: Link) -> Result<(), CaptureError> {
        self.attach(link)?;
        let port = self.port_mut();
        port.losses.attached(link::now_ns());
        (port.checked, port.busy) = (Instant::now(), Instant::now());
        Ok(())
    }
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
