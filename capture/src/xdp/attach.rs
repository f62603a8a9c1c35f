//! Attaching to an interface: at the start, and again after it was away.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use wirevault_buffer::{Arena, ArenaOptions, Hugepages};
use wirevault_format::LinkType;

use super::bpf::{self, Hook};
use super::facts::Facts;
use super::load::{Card, Loaded, Wanted};
use super::sys::{Binding, PAGE_FRAME_BYTES, Queue, SMALL_FRAME_BYTES};
use super::take::Bound;
use super::{Attached, XdpOptions, XdpSource};
use crate::error::CaptureError;
use crate::link::{self, Link};
use crate::port::{Clock, OnInterface, Port, link_type, socket_error};

/// Room in a frame that packets do not get: what XDP keeps free before them, and a link header with
/// two tags.
const FRAME_KEPT_BYTES: u32 = 256 + 22;

/// How long the kernel may take to let go of a queue whose socket was closed.
const RELEASE_LIMIT: Duration = Duration::from_secs(1);
const RELEASE_PAUSE: Duration = Duration::from_millis(5);

/// The program on an interface, and the map that it finds sockets in. Both go with this value.
#[derive(Debug)]
pub(super) struct Hooked {
    interface: i32,
    map: OwnedFd,
    _link: OwnedFd,
    pub(super) hook: Hook,
    pub(super) stamps: bool,
    pub(super) card: Card,
    pub(super) queues: u32,
}

/// What the lanes of one interface share: the program, for as long as one of them is attached.
#[derive(Debug, Default)]
pub(super) struct Sharing(Mutex<Weak<Hooked>>);

impl Sharing {
    /// The program on that interface; put there if it is not.
    fn join(
        &self,
        link: Link,
        facts: &Facts,
        options: &XdpOptions,
        queues: u32,
    ) -> Result<Arc<Hooked>, CaptureError> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(hooked) = known.upgrade().filter(|hooked| hooked.interface == link.index) {
            return Ok(hooked);
        }
        let hooked = Arc::new(Hooked::new(link, facts, options, queues)?);
        *known = Arc::downgrade(&hooked);
        Ok(hooked)
    }
}

impl Hooked {
    fn new(
        link: Link,
        facts: &Facts,
        options: &XdpOptions,
        queues: u32,
    ) -> Result<Self, CaptureError> {
        let name = &options.interface;
        refuse_occupied(facts, name)?;
        let map = bpf::new_map(queues).map_err(|e| bpf_error(name, "making a map", e, ""))?;
        let mut refused = io::ErrorKind::Unsupported.into();
        for hook in options.hook.places() {
            let wanted = Wanted { options, link, facts, hook: *hook, map: map.as_raw_fd() };
            let Loaded { program, stamps, card } = wanted
                .load()
                .map_err(|(error, log)| bpf_error(name, "loading the program", error, &log))?;
            match bpf::attach(&program, link.index, *hook) {
                Ok(link_fd) => {
                    let (interface, hook) = (link.index, *hook);
                    return Ok(Self { interface, map, _link: link_fd, hook, stamps, card, queues });
                }
                Err(error) => {
                    if let Some(libc::EBUSY | libc::EEXIST) = error.raw_os_error() {
                        let now = Facts::ask(link.index)
                            .map_err(socket_error(name, "asking for its programs"))?;
                        refuse_occupied(&now, name)?;
                    }
                    refused = error;
                }
            }
        }
        Err(bpf_error(name, "putting the program on it", refused, ""))
    }
}

fn refuse_occupied(facts: &Facts, name: &str) -> Result<(), CaptureError> {
    match facts.program {
        Some(program) => Err(CaptureError::XdpOccupied { interface: name.to_owned(), program }),
        None => Ok(()),
    }
}

fn bpf_error(name: &str, step: &'static str, source: io::Error, log: &str) -> CaptureError {
    let interface = name.to_owned();
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => CaptureError::XdpPermission { interface, step, source },
        _ => {
            let log = if log.is_empty() { String::new() } else { format!(" ({log})") };
            CaptureError::Xdp { interface, step, log, source }
        }
    }
}

impl OnInterface for XdpSource {
    fn port(&self) -> &Port {
        &self.port
    }

    fn port_mut(&mut self) -> &mut Port {
        &mut self.port
    }

    fn expected_clock(&self) -> Clock {
        match &self.options {
            XdpOptions { hardware_time: true, .. } => Clock::Hardware,
            XdpOptions { stamps: true, .. } => Clock::Xdp,
            XdpOptions { stamps: false, .. } => Clock::Poll,
        }
    }

    fn link_type(&self, link: Link) -> Result<LinkType, CaptureError> {
        let name = self.port.name();
        match link_type(name, link.hardware)? {
            LinkType::ETHERNET => Ok(LinkType::ETHERNET),
            // Such a driver shows the program a frame without a link header, or a made-up one.
            _ => {
                let (interface, hardware) = (name.to_owned(), link.hardware);
                Err(CaptureError::XdpHardware { interface, hardware })
            }
        }
    }

    /// Opens this lane's sockets. The program does not know them yet, so nothing comes.
    fn attach(&mut self, link: Link) -> Result<(), CaptureError> {
        let name = self.options.interface.clone();
        let queues = link::receive_queues(&self.port.probe, &name);
        if (queues as usize) < self.lanes {
            let lanes = self.lanes;
            return Err(CaptureError::Queues { interface: name, queues, lanes });
        }
        let facts = Facts::ask(link.index).map_err(socket_error(&name, "asking about it"))?;
        let hooked = self.sharing.join(link, &facts, &self.options, queues)?;
        if self.options.hardware_time && !hooked.card.time {
            let why = hooked.card.why_not.as_deref().unwrap_or("its driver tells no times");
            let what = format!("the card's time stamps do not reach AF_XDP: {why}");
            return Err(CaptureError::HardwareTime { interface: name, what });
        }
        let numbers: Vec<u32> = (self.lane as u32..queues).step_by(self.lanes).collect();
        let frame_bytes = frame_bytes(&facts, hooked.hook);
        let frames = self.options.frames(numbers.len(), frame_bytes);
        let bytes = numbers.len() * frames * frame_bytes;
        let wanted = ArenaOptions { bytes, hugepages: Hugepages::Auto, numa_node: None };
        let arena = Arena::new(wanted).map_err(|source| CaptureError::XdpMemory {
            interface: name.clone(),
            bytes,
            source,
        })?;
        let ways: Vec<Binding> = Binding::ALL
            .into_iter()
            .filter(|way| may_bind(*way, hooked.hook, facts.mtu, frame_bytes))
            .collect();
        let mut bound = Vec::with_capacity(numbers.len());
        let mut busy = true;
        for (place, number) in numbers.into_iter().enumerate() {
            let queue = Queue::new(&arena, place * frames, frames as u32, frame_bytes).map_err(
                |(step, source)| match source.raw_os_error() {
                    Some(libc::ENOBUFS) => {
                        CaptureError::XdpLocked { interface: name.clone(), bytes, source }
                    }
                    _ => socket_error(&name, step)(source),
                },
            )?;
            let binding = bind(&queue, link.index, number, &ways).map_err(|source| {
                let interface = name.clone();
                match source.raw_os_error() {
                    Some(libc::EBUSY) => {
                        CaptureError::QueueTaken { interface, queue: number, source }
                    }
                    _ => socket_error(&name, "binding a socket to its queue")(source),
                }
            })?;
            busy &= self.options.busy_poll && queue.poll_busily();
            bound.push(Bound::new(queue, number, binding));
        }
        if self.options.promiscuous {
            link::be_promiscuous(&self.port.probe, link.index)
                .map_err(socket_error(&name, "promiscuous mode"))?;
        }
        self.notes = self.describe_attached(&hooked, &bound, &arena, busy);
        self.polled.reserve(bound.len());
        self.attached = Some(Attached { queues: bound, hooked, link, turn: 0 });
        Ok(())
    }

    fn open_gate(&mut self) -> Result<(), CaptureError> {
        let Some(attached) = &self.attached else { return Ok(()) };
        attached.queues.iter().try_for_each(|bound| {
            bpf::put(&attached.hooked.map, bound.number, bound.queue.fd()).map_err(|source| {
                bpf_error(self.port.name(), "telling the program of a socket", source, "")
            })
        })
    }

    fn attached_to(&self) -> Option<i32> {
        self.attached.as_ref().map(|attached| attached.link.index)
    }

    fn take_error(&self) -> io::Result<Option<io::Error>> {
        let mut worst: Option<io::Error> = None;
        for bound in self.attached.iter().flat_map(|attached| &attached.queues) {
            let pending = bound.queue.take_error()?;
            let worse = |known: &io::Error| known.raw_os_error() == Some(libc::ENETDOWN);
            if worst.as_ref().is_none_or(worse) {
                worst = pending.or(worst);
            }
        }
        Ok(worst)
    }

    fn read_statistics(&mut self) -> Result<(), CaptureError> {
        let Some(attached) = &mut self.attached else { return Ok(()) };
        let (mut lost, mut starved) = (0, false);
        for bound in &mut attached.queues {
            let now = bound
                .queue
                .statistics()
                .map_err(socket_error(self.port.name(), "reading its counters"))?;
            let seen = std::mem::replace(&mut bound.seen, now);
            lost += (now.dropped + now.ring_full).saturating_sub(seen.dropped + seen.ring_full);
            starved |= bound.binding.zero_copy && now.no_frame > seen.no_frame;
        }
        let now_ns = link::now_ns();
        self.port.losses.lose(lost, now_ns);
        if starved && lost == 0 {
            // A card that writes by itself found no frame: what it then dropped, only it knows.
            self.port.losses.suspect(now_ns);
        }
        self.port.losses.read_ns = now_ns;
        Ok(())
    }

    fn in_ring(&mut self) -> u64 {
        let Some(attached) = &mut self.attached else { return 0 };
        attached.queues.iter_mut().map(Bound::count).sum()
    }

    fn close(&mut self) {
        self.attached = None;
    }
}

/// Binds in the best way. The kernel lets go of a closed socket's queue a moment after the close,
/// so a queue that is taken is asked for again.
fn bind(queue: &Queue, interface: i32, number: u32, ways: &[Binding]) -> io::Result<Binding> {
    let begin = Instant::now();
    loop {
        match queue.bind(interface, number, ways) {
            Err(error)
                if error.raw_os_error() == Some(libc::EBUSY) && begin.elapsed() < RELEASE_LIMIT =>
            {
                std::thread::sleep(RELEASE_PAUSE);
            }
            other => return other,
        }
    }
}

/// Pages where the card might write by itself, or packets are long.
fn frame_bytes(facts: &Facts, hook: Hook) -> usize {
    let copied = hook == Hook::Generic || facts.driver.is_some_and(|driver| !driver.zero_copy);
    let short = facts.mtu.saturating_add(FRAME_KEPT_BYTES) as usize <= SMALL_FRAME_BYTES;
    if copied && short { SMALL_FRAME_BYTES } else { PAGE_FRAME_BYTES }
}

/// Whether a way of binding makes sense: zero-copy needs the driver and whole pages, and a socket
/// that takes no fragments would lose every long packet.
fn may_bind(way: Binding, hook: Hook, mtu: u32, frame_bytes: usize) -> bool {
    let long = mtu.saturating_add(FRAME_KEPT_BYTES) as usize > frame_bytes;
    let direct = hook == Hook::Native && frame_bytes == PAGE_FRAME_BYTES;
    !way.zero_copy || (direct && (way.fragments || !long))
}

#[cfg(test)]
mod tests {
    use super::super::facts::Driver;
    use super::*;

    #[test]
    fn frames_are_small_where_the_kernel_copies_short_packets() {
        let bytes = |zero_copy: Option<bool>, mtu, hook| {
            let driver =
                zero_copy.map(|zero_copy| Driver { native: true, zero_copy, ..Driver::default() });
            frame_bytes(&Facts { mtu, driver, ..Facts::default() }, hook)
        };
        assert_eq!(bytes(Some(false), 1500, Hook::Native), SMALL_FRAME_BYTES);
        assert_eq!(bytes(Some(true), 1500, Hook::Generic), SMALL_FRAME_BYTES);
        assert_eq!(bytes(Some(true), 1500, Hook::Native), PAGE_FRAME_BYTES);
        assert_eq!(bytes(None, 1500, Hook::Native), PAGE_FRAME_BYTES);
        assert_eq!(bytes(Some(false), 9000, Hook::Native), PAGE_FRAME_BYTES);
    }

    #[test]
    fn zero_copy_without_fragments_is_for_short_packets() {
        let ways = |hook, mtu, frame_bytes| {
            let may = |way: &Binding| may_bind(*way, hook, mtu, frame_bytes);
            Binding::ALL.into_iter().filter(may).collect::<Vec<_>>()
        };
        assert_eq!(ways(Hook::Native, 1500, PAGE_FRAME_BYTES), Binding::ALL);
        let copying = Binding { zero_copy: false, fragments: true };
        assert_eq!(ways(Hook::Native, 9000, PAGE_FRAME_BYTES)[1], copying);
        assert_eq!(ways(Hook::Native, 1500, SMALL_FRAME_BYTES), &Binding::ALL[2..]);
        assert_eq!(ways(Hook::Generic, 1500, PAGE_FRAME_BYTES), &Binding::ALL[2..]);
    }
}
