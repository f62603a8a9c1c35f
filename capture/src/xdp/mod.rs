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
mod options;
mod program;
#[expect(unsafe_code, reason = "sockets and mapped rings; see its invariants")]
mod sys;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wirevault_format::{Cause, Interface};

use crate::error::CaptureError;
use crate::link::{self, Link};
use crate::packet_mmap::socket_error;
use crate::source::{
    GapInfo, Packet, PacketSink, Polled, Source, SourceCounters, SourceReport, SourceState,
};
use attach::{Hooked, Sharing};
pub use choose::{Choice, choose};
pub use options::{XdpHook, XdpOptions};
use sys::{Binding, Entry, FRAME_BYTES, Queue, Statistics};

/// How often the interface and an idle socket's counters are looked at.
const CHECK_PERIOD: Duration = Duration::from_millis(100);
/// How long the packets of a deleted interface may take to be handed out.
const DRAIN_LIMIT: Duration = Duration::from_millis(200);
/// Time between two takings while packets come. At 2 million packets a second that are 2000
/// packets.
const GATHER: Duration = Duration::from_millis(1);
/// A ring that is this much full (one part of) is emptied at once.
const GATHER_PART: u32 = 8;
/// Entries taken from one queue before the next one's turn.
const BATCH_MAX: u32 = 1024;
/// Entries after which their frames are given back.
const GIVE_BACK: u32 = 64;
/// Bytes of the longest packet that several frames make, by the kernel's limit of 17 fragments.
const LONG_BYTES_MAX: usize = 18 * FRAME_BYTES;

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
    state: SourceState,
    overflow: Option<GapInfo>,
    outage: Option<GapInfo>,
    handed: u64,
    dropped: u64,
    /// When the kernel's counters were read last, Unix time.
    read_ns: u64,
    /// When the interface was last seen to be up, Unix time.
    up_ns: u64,
    /// Time of the last packet handed out.
    last_ts_ns: u64,
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

/// A socket on its queue.
#[derive(Debug)]
struct Bound {
    queue: Queue,
    number: u32,
    binding: Binding,
    /// The kernel's counters when they were read last.
    seen: Statistics,
    /// Of the entries that wait, how many were counted, and the packets that end in them.
    counted: u32,
    packets: u64,
}

enum Stop {
    Emptied,
    Refused,
    NewClock(Clock),
    Outside(u32),
}

impl Bound {
    /// Counts what came into the ring since the last call.
    fn count(&mut self) -> u64 {
        let waiting = self.queue.waiting();
        for ahead in self.counted..waiting {
            let ends = self.queue.entry(ahead).is_none_or(|entry| !entry.continued);
            self.packets += u64::from(ends);
        }
        self.counted = self.counted.max(waiting);
        self.packets
    }

    fn give_back(&mut self, entries: u32, packets: u64) {
        self.queue.give_back(entries);
        self.counted = self.counted.saturating_sub(entries);
        self.packets = self.packets.saturating_sub(packets);
    }

    /// Entries and bytes of the packet that begins `ahead` of the first entry; a packet of several
    /// frames is put together in `long`. `Ok(None)` if its end is not there yet.
    fn packet(&self, ahead: u32, long: &mut Vec<u8>) -> Result<Option<(Entry, u32)>, Stop> {
        let first = self.queue.entry(ahead).ok_or(Stop::Outside(ahead))?;
        let mut entry = first;
        let mut entries = 1;
        long.clear();
        while entry.continued {
            if ahead + entries >= self.counted {
                return Ok(None);
            }
            long.extend_from_slice(self.queue.bytes(entry));
            entry = self.queue.entry(ahead + entries).ok_or(Stop::Outside(ahead + entries))?;
            entries += 1;
        }
        if entries > 1 {
            long.extend_from_slice(self.queue.bytes(entry));
        }
        Ok(Some((first, entries)))
    }
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
            state: SourceState::InterfaceDown { since_ns: now_ns },
            overflow: None,
            outage: None,
            handed: 0,
            dropped: 0,
            read_ns: now_ns,
            up_ns: now_ns,
            last_ts_ns: 0,
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

    /// Hands out what waits, queue by queue. `None` if nothing did.
    fn consume(&mut self, sink: &mut dyn PacketSink) -> Result<Option<Polled>, CaptureError> {
        let Some(queues) = self.attached.as_ref().map(|attached| attached.queues.len()) else {
            return Ok(None);
        };
        let (mut handed, mut came) = (0, false);
        for step in 0..queues {
            let (packets, stop) = self.consume_queue(step, sink);
            handed += packets;
            came |= packets > 0 || !matches!(stop, Stop::Emptied);
            match stop {
                Stop::Emptied => {}
                Stop::Refused => break,
                Stop::NewClock(clock) => {
                    let link = self.attached.as_ref().map(|attached| attached.link);
                    if let Some(link) = link
                        && self.place_of(link, clock)?
                    {
                        return Ok(Some(Polled::Interfaces));
                    }
                }
                Stop::Outside(entry) => {
                    self.read_statistics()?;
                    self.detach();
                    return Err(CaptureError::Ring {
                        interface: self.options.interface.clone(),
                        offset: entry as usize,
                        block_bytes: FRAME_BYTES,
                    });
                }
            }
        }
        if let Some(attached) = &mut self.attached {
            attached.turn = (attached.turn + 1) % queues.max(1);
        }
        if came {
            self.taken = Instant::now();
            self.read_statistics()?;
        }
        Ok(came.then_some(Polled::Packets(handed)))
    }

    /// Hands out what waits in the queue `step` behind the one whose turn it is.
    fn consume_queue(&mut self, step: usize, sink: &mut dyn PacketSink) -> (u64, Stop) {
        let Some(attached) = &mut self.attached else { return (0, Stop::Emptied) };
        let at = (attached.turn + step) % attached.queues.len();
        let (bound, address) = (&mut attached.queues[at], attached.link.address);
        if bound.count() == 0 {
            return (0, Stop::Emptied);
        }
        // Read after the count: what was counted had arrived.
        let now_ns = link::now_ns();
        let tai_ahead_ns = sys::tai_ahead_ns();
        let (mut handed, mut taken) = (0, 0);
        // Entries and packets that are to be given back.
        let mut done = (0, 0);
        let stop = loop {
            if taken >= BATCH_MAX || done.0 >= bound.counted {
                break Stop::Emptied;
            }
            let (first, entries) = match bound.packet(done.0, &mut self.long) {
                Ok(Some(found)) => found,
                Ok(None) => break Stop::Emptied,
                Err(stop) => break stop,
            };
            let data = if entries == 1 { bound.queue.bytes(first) } else { &self.long };
            let (clock, ts_ns) = match bound.queue.stamp(first) {
                Some(tai_ns) => (Clock::Xdp, tai_ns.wrapping_add_signed(-tai_ahead_ns)),
                None => (Clock::Poll, now_ns),
            };
            let Some(interface) = self.places[clock as usize] else {
                break Stop::NewClock(clock);
            };
            let packet = Packet {
                interface,
                ts_ns,
                wire_len: data.len() as u32,
                data,
                vlan: None,
                flags: Some(epb_flags(data, address)),
                options: &[],
            };
            if sink.packet(&packet).is_break() {
                break Stop::Refused;
            }
            handed += 1;
            taken += entries;
            done = (done.0 + entries, done.1 + 1);
            self.last_ts_ns = ts_ns;
            if done.0 >= GIVE_BACK {
                bound.give_back(done.0, done.1);
                done = (0, 0);
            }
        };
        bound.give_back(done.0, done.1);
        bound.queue.wake(false);
        self.handed += handed;
        (handed, stop)
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
        self.lose(lost, now_ns);
        if starved && lost == 0 {
            self.suspect(now_ns);
        }
        self.read_ns = now_ns;
        Ok(())
    }

    /// Books packets as dropped since the last reading.
    fn lose(&mut self, packets: u64, now_ns: u64) {
        if packets == 0 {
            return;
        }
        self.dropped += packets;
        let before = self.overflow.map_or(Some(0), |gap| gap.packets);
        self.overflow = Some(GapInfo {
            cause: Cause::RingOverflow,
            from_ns: self.overflow.map_or(self.read_ns, |gap| gap.from_ns),
            until_ns: Some(now_ns),
            packets: before.map(|before| before + packets),
        });
    }

    /// A card that writes by itself found no frame: what it then dropped, only it knows.
    fn suspect(&mut self, now_ns: u64) {
        self.overflow.get_or_insert(GapInfo {
            cause: Cause::RingOverflow,
            from_ns: self.read_ns,
            until_ns: Some(now_ns),
            packets: None,
        });
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
                if was_down || self.state != SourceState::Running {
                    self.end_outage();
                }
                self.up_ns = link::now_ns();
            }
            Some(_) => self.begin_outage(),
            None => {
                self.begin_outage();
                if self.in_ring() == 0 || self.taken.elapsed() > DRAIN_LIMIT {
                    self.detach();
                }
            }
        }
        Ok(())
    }

    fn begin_outage(&mut self) {
        if self.state == SourceState::Running {
            let since_ns = self.up_ns.max(self.last_ts_ns);
            self.state = SourceState::InterfaceDown { since_ns };
        }
    }

    fn end_outage(&mut self) {
        self.begin_outage();
        if let SourceState::InterfaceDown { since_ns } = self.state {
            let until_ns = link::now_ns();
            self.outage = Some(GapInfo {
                cause: Cause::InterfaceDown,
                // Packets that were still in the ring prove that it was up for longer.
                from_ns: since_ns.max(self.last_ts_ns).min(until_ns),
                until_ns: Some(until_ns),
                packets: None,
            });
        }
        self.state = SourceState::Running;
    }

    /// Closes the sockets. What they still hold is lost, and booked so.
    fn detach(&mut self) {
        let lost = self.in_ring();
        self.lose(lost, link::now_ns());
        self.attached = None;
        self.begin_outage();
    }

    /// Waits for packets; while they come, until it is time to take them.
    fn settle(&mut self, wait: Duration) -> Result<(), CaptureError> {
        let Some(attached) = &self.attached else { return Ok(()) };
        let queues = || attached.queues.iter().map(|bound| &bound.queue);
        let nothing = || queues().all(|queue| queue.waiting() == 0);
        if self.options.busy_poll {
            let begin = Instant::now();
            while nothing() && begin.elapsed() < wait {
                queues().for_each(|queue| queue.wake(true));
            }
            return Ok(());
        }
        let full = || queues().any(|queue| queue.waiting() >= queue.frames() / GATHER_PART);
        let early = GATHER.saturating_sub(self.taken.elapsed()).min(wait);
        if !early.is_zero() && !full() {
            std::thread::sleep(early);
        }
        if !wait.is_zero() && nothing() {
            sys::wait(queues(), &mut self.polled, wait)
                .map_err(socket_error(&self.options.interface, "waiting for packets"))?;
        }
        Ok(())
    }
}

impl Source for XdpSource {
    fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    fn poll(&mut self, sink: &mut dyn PacketSink, wait: Duration) -> Result<Polled, CaptureError> {
        if let Some(gap) = self.overflow.take().or_else(|| self.outage.take()) {
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
            received: self.handed + self.dropped + in_ring,
            handed: self.handed,
            dropped_ring: self.dropped,
            in_ring,
            ..SourceCounters::default()
        }
    }

    fn state(&self) -> SourceState {
        self.state
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

/// `epb_flags` of a packet that came in: bits 0-1 direction (1 in), bits 2-4 reception (1 unicast,
/// 2 multicast, 3 broadcast, 4 promiscuous), as the kernel's stack would have found.
#[inline]
fn epb_flags(frame: &[u8], own: [u8; 6]) -> u32 {
    let reception = match frame.first_chunk::<6>() {
        Some([0xff, 0xff, 0xff, 0xff, 0xff, 0xff]) => 3,
        Some(to) if to[0] & 1 != 0 => 2,
        Some(to) if *to == own => 1,
        Some(_) => 4,
        None => 0,
    };
    1 | reception << 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reception_is_told_by_the_address() {
        let own = [2, 0, 0, 0, 0, 1];
        assert_eq!(epb_flags(&[0xff; 60], own), 1 | 3 << 2);
        assert_eq!(epb_flags(&[1, 0, 0x5e, 0, 0, 1, 9], own), 1 | 2 << 2);
        assert_eq!(epb_flags(&own, own), 1 | 1 << 2);
        assert_eq!(epb_flags(&[2, 9, 9, 9, 9, 9], own), 1 | 4 << 2);
        assert_eq!(epb_flags(&[], own), 1);
    }
}
