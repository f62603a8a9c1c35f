//! Taking packets out of the rings: when, in which order, and what is handed out of each.

use std::time::{Duration, Instant};

use super::XdpSource;
use super::program::Stamp;
use super::sys::{self, Binding, Entry, PAGE_FRAME_BYTES, Queue, Statistics};
use crate::error::CaptureError;
use crate::link;
use crate::port::{Clock, OnInterface, socket_error};
use crate::source::{Packet, PacketSink, Polled};

/// Time between two takings while packets come. At 2 million packets a second that are 2000
/// packets.
const GATHER: Duration = Duration::from_millis(1);
/// A ring that is this much full (one part of) is emptied at once.
const GATHER_PART: u32 = 8;
/// Entries taken from one queue before the next one's turn.
const BATCH_MAX: u32 = 1024;
/// Entries that the processor fetches ahead. A miss takes about as long as this many packets.
const PREFETCH: u32 = 8;
/// Entries after which their frames are given back.
const GIVE_BACK: u32 = 64;

/// A socket on its queue.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) queue: Queue,
    pub(super) number: u32,
    pub(super) binding: Binding,
    /// The kernel's counters when they were read last.
    pub(super) seen: Statistics,
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
    pub(super) fn new(queue: Queue, number: u32, binding: Binding) -> Self {
        Self { queue, number, binding, seen: Statistics::default(), counted: 0, packets: 0 }
    }

    /// Counts what came into the ring since the last call.
    pub(super) fn count(&mut self) -> u64 {
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
    /// Hands out what waits, queue by queue. `None` if nothing did.
    pub(super) fn consume(
        &mut self,
        sink: &mut dyn PacketSink,
    ) -> Result<Option<Polled>, CaptureError> {
        let Some(queues) = self.attached.as_ref().map(|attached| attached.queues.len()) else {
            return Ok(None);
        };
        let (mut handed, mut came, mut refused) = (0, false, None);
        for step in 0..queues {
            let (packets, stop) = self.consume_queue(step, sink);
            handed += packets;
            came |= packets > 0 || !matches!(stop, Stop::Emptied);
            match stop {
                Stop::Emptied => {}
                Stop::Refused => {
                    refused = Some(step);
                    break;
                }
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
                        block_bytes: PAGE_FRAME_BYTES,
                    });
                }
            }
        }
        if let Some(attached) = &mut self.attached {
            // A refused packet is the first of the next poll.
            attached.turn = (attached.turn + refused.unwrap_or(1)) % queues.max(1);
        }
        if came {
            self.port.busy = Instant::now();
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
            if done.0 + PREFETCH < bound.counted {
                bound.queue.prefetch(done.0 + PREFETCH);
            }
            let (first, entries) = match bound.packet(done.0, &mut self.long) {
                Ok(Some(found)) => found,
                Ok(None) => break Stop::Emptied,
                Err(stop) => break stop,
            };
            let data = if entries == 1 { bound.queue.bytes(first) } else { &self.long };
            let stamp = bound.queue.stamp(first);
            let (clock, ts_ns) = match stamp {
                Some(Stamp { card_ns: Some(card_ns), .. }) => (Clock::Hardware, card_ns),
                Some(stamp) => (Clock::Xdp, stamp.tai_ns.wrapping_add_signed(-tai_ahead_ns)),
                None => (Clock::Poll, now_ns),
            };
            let Some(interface) = self.port.places[clock as usize] else {
                break Stop::NewClock(clock);
            };
            let packet = Packet {
                interface,
                ts_ns,
                wire_len: data.len() as u32,
                data,
                vlan: stamp.and_then(|stamp| stamp.vlan),
                flags: Some(epb_flags(data, address)),
                options: &[],
            };
            if sink.packet(&packet).is_break() {
                break Stop::Refused;
            }
            handed += 1;
            taken += entries;
            done = (done.0 + entries, done.1 + 1);
            self.port.losses.last_ts_ns = ts_ns;
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

    /// Waits for packets; while they come, until it is time to take them.
    pub(super) fn settle(&mut self, wait: Duration) -> Result<(), CaptureError> {
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
        let early = GATHER.saturating_sub(self.port.busy.elapsed()).min(wait);
        if !early.is_zero() && !full() {
            std::thread::sleep(early);
        }
        if !wait.is_zero() && nothing() {
            sys::wait(queues(), &mut self.polled, wait)
                .map_err(socket_error(self.port.name(), "waiting for packets"))?;
        }
        Ok(())
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
