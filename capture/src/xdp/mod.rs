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
//! milliseconds later.
//!
//! An idle lane sleeps until a packet comes. While packets come it wakes about once a millisecond
//! and takes what is there: being woken for each packet costs many times more than the packet.

mod attach;
#[expect(unsafe_code, reason = "bpf(2); see its invariants")]
mod bpf;
mod choose;
mod facts;
mod notes;
mod options;
mod program;
#[expect(unsafe_code, reason = "sockets and mapped rings; see its invariants")]
mod sys;
mod take;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wirevault_format::Interface;

use crate::error::CaptureError;
use crate::link::{self, Link};
use crate::losses::Losses;
use crate::packet_mmap::socket_error;
use crate::source::{PacketSink, Polled, Source, SourceCounters, SourceReport, SourceState};
use attach::{Hooked, Sharing};
pub use choose::{Choice, choose};
pub use options::{XdpHook, XdpOptions};
use sys::PAGE_FRAME_BYTES;
use take::Bound;

/// How often the interface and an idle socket's counters are looked at.
const CHECK_PERIOD: Duration = Duration::from_millis(100);
/// How long the packets of a deleted interface may take to be handed out.
const DRAIN_LIMIT: Duration = Duration::from_millis(200);
/// Bytes of the longest packet that several frames make, by the kernel's limit of 17 fragments.
const LONG_BYTES_MAX: usize = 18 * PAGE_FRAME_BYTES;

/// What stamped a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clock {
    /// The program, as the driver handed the packet over.
    Xdp,
    /// This side, as it took the packet out of the ring.
    Poll,
}

impl Clock {
    const ALL: [Self; 2] = [Self::Xdp, Self::Poll];

    /// The name that interface descriptions carry.
    const fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Poll => "poll",
        }
    }
}

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
    /// Unbound packet socket to ask about interfaces with; it also holds promiscuous mode.
    probe: OwnedFd,
    attached: Option<Attached>,
    interfaces: Vec<Interface>,
    /// Place in `interfaces` for each clock.
    places: [Option<u32>; Clock::ALL.len()],
    losses: Losses,
    handed: u64,
    checked: Instant,
    /// When packets were taken last.
    taken: Instant,
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
        let probe = link::open_socket().map_err(socket_error(&options.interface, "opening"))?;
        let now_ns = link::now_ns();
        let mut source = Self {
            options: options.clone(),
            lane,
            lanes,
            sharing,
            probe,
            attached: None,
            interfaces: Vec::with_capacity(Clock::ALL.len()),
            places: [None; Clock::ALL.len()],
            losses: Losses::since(now_ns),
            handed: 0,
            checked: Instant::now(),
            taken: Instant::now(),
            long: Vec::with_capacity(LONG_BYTES_MAX),
            polled: Vec::new(),
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

    /// Adds the kernel's counters to the books, and notes a gap if it dropped packets.
    fn read_statistics(&mut self) -> Result<(), CaptureError> {
        let Some(attached) = &mut self.attached else { return Ok(()) };
        let (mut lost, mut starved) = (0, false);
        for bound in &mut attached.queues {
            let now = bound
                .queue
                .statistics()
                .map_err(socket_error(&self.options.interface, "reading its counters"))?;
            let seen = std::mem::replace(&mut bound.seen, now);
            lost += (now.dropped + now.ring_full).saturating_sub(seen.dropped + seen.ring_full);
            starved |= bound.binding.zero_copy && now.no_frame > seen.no_frame;
        }
        let now_ns = link::now_ns();
        self.losses.lose(lost, now_ns);
        if starved && lost == 0 {
            // A card that writes by itself found no frame: what it then dropped, only it knows.
            self.losses.suspect(now_ns);
        }
        self.losses.read_ns = now_ns;
        Ok(())
    }

    fn in_ring(&mut self) -> u64 {
        let Some(attached) = &mut self.attached else { return 0 };
        attached.queues.iter_mut().map(Bound::count).sum()
    }

    /// Looks at counters and interface, if it is time to.
    fn look_after(&mut self) -> Result<(), CaptureError> {
        if self.checked.elapsed() < CHECK_PERIOD {
            return Ok(());
        }
        self.checked = Instant::now();
        self.read_statistics()?;
        let name = &self.options.interface;
        let Some(attached) = &self.attached else { return Ok(()) };
        let mut was_down = false;
        for bound in &attached.queues {
            let pending = bound.queue.take_error();
            match pending.map_err(socket_error(name, "asking its error"))? {
                Some(error) if error.raw_os_error() == Some(libc::ENETDOWN) => was_down = true,
                Some(source) => return Err(socket_error(name, "receiving")(source)),
                None => {}
            }
        }
        let link = link::link_by_index(&self.probe, attached.link.index)
            .map_err(socket_error(name, "looking it up"))?;
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
                if self.in_ring() == 0 || self.taken.elapsed() > DRAIN_LIMIT {
                    self.detach();
                }
            }
        }
        Ok(())
    }

    /// Closes the sockets. What they still hold is lost, and booked so.
    fn detach(&mut self) {
        let lost = self.in_ring();
        self.losses.lose(lost, link::now_ns());
        self.attached = None;
        self.losses.begin_outage();
    }
}

impl Source for XdpSource {
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
        self.settle(wait)?;
        let polled = self.consume(sink)?;
        self.look_after()?;
        Ok(polled.unwrap_or(Polled::Idle))
    }

    fn counters(&mut self) -> SourceCounters {
        // A failure shows in the next poll, which asks the same sockets.
        let _ = self.read_statistics();
        let in_ring = self.in_ring();
        SourceCounters {
            received: self.handed + self.losses.dropped + in_ring,
            handed: self.handed,
            dropped_ring: self.losses.dropped,
            in_ring,
            ..SourceCounters::default()
        }
    }

    fn state(&self) -> SourceState {
        self.losses.state
    }

    fn report(&self) -> SourceReport {
        let lanes = (self.lanes > 1).then(|| format!("{} lanes by receive queue", self.lanes));
        SourceReport {
            kind: "af_xdp",
            name: self.options.interface.clone(),
            fanout: lanes,
            ring_bytes: self.ring_bytes(),
            clocks: self.interfaces.iter().filter_map(|i| i.clock.clone()).collect(),
            notes: self.all_notes(),
        }
    }

    fn is_live(&self) -> bool {
        true
    }
}
