//! What goes over the pair, and what a lane would have seen of it.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use wirevault_capture::{Packet, Polled, Source, SourceState, VlanTag};
use wirevault_format::Cause;
use wirevault_testkit::net::wait_for;

/// A poll waits for so long at most.
pub(crate) const WAIT: Duration = Duration::from_millis(20);
/// What is waited for comes by then; machines are shared.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The interface's address that is recorded, and the one across.
pub(crate) const HERE: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const THERE: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// An ethertype that no stack answers.
pub(crate) const EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];

/// A packet as the lane would store it: the tag is back in its place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Seen {
    pub bytes: Vec<u8>,
    pub wire_len: u32,
    pub flags: u32,
    /// Its tag came beside it.
    pub tagged: bool,
    pub ts_ns: u64,
}

impl Seen {
    pub(crate) fn of(packet: &Packet<'_>) -> Self {
        let tag = packet.vlan.map(VlanTag::bytes);
        let tag = tag.as_ref().map_or(&[][..], |tag| &tag[..]);
        let mut bytes = packet.data.to_vec();
        bytes.splice(VlanTag::OFFSET..VlanTag::OFFSET, tag.iter().copied());
        Self {
            bytes,
            wire_len: packet.wire_len + tag.len() as u32,
            flags: packet.flags.unwrap_or(0),
            tagged: packet.vlan.is_some(),
            ts_ns: packet.ts_ns,
        }
    }
}

/// An Ethernet frame with a number, filled with what follows from it.
pub(crate) fn frame(to: [u8; 6], ethertype: [u8; 2], number: u32, bytes: usize) -> Vec<u8> {
    let mut frame = [&to[..], &THERE, &ethertype, &number.to_be_bytes()].concat();
    let mut value = number;
    while frame.len() < bytes {
        value = value.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        frame.push((value >> 24) as u8);
    }
    frame
}

/// Frames of all sizes to this interface, to everybody and to somebody else, some with a tag.
pub(crate) fn mixed_frames(count: u32) -> Vec<Vec<u8>> {
    let make = |number: u32| {
        let to = [HERE, [0xff; 6], [2, 9, 9, 9, 9, 9]][number as usize % 3];
        let mut bytes = frame(to, EXPERIMENTAL, number, 60 + (number as usize * 37) % 1455);
        if number.is_multiple_of(5) {
            bytes.splice(VlanTag::OFFSET..VlanTag::OFFSET, [0x81, 0x00, 0x2a, 0xbc]);
        } else if number.is_multiple_of(7) {
            bytes.splice(VlanTag::OFFSET..VlanTag::OFFSET, [0x88, 0xa8, 0x00, 0x07]);
        }
        bytes
    };
    (0..count).map(make).collect()
}

/// Polls until `count` packets came, and once more: what came beside them is given, too.
pub(crate) fn take(source: &mut impl Source, count: usize) -> Vec<Seen> {
    take_all(std::slice::from_mut(source), count).remove(0)
}

/// The same of lanes that share the packets.
pub(crate) fn take_all(sources: &mut [impl Source], count: usize) -> Vec<Vec<Seen>> {
    let mut got = vec![Vec::new(); sources.len()];
    let begin = Instant::now();
    let mut had_all = false;
    while !had_all {
        let came = got.iter().map(Vec::len).sum::<usize>();
        assert!(begin.elapsed() < PATIENCE, "{came} of {count} packets came");
        had_all = came >= count;
        for (source, got) in sources.iter_mut().zip(&mut got) {
            let mut sink = |packet: &Packet<'_>| {
                got.push(Seen::of(packet));
                ControlFlow::Continue(())
            };
            source.poll(&mut sink, WAIT).expect("poll");
        }
    }
    got
}

/// Waits until packets that were sent are in the lanes' rings, so many more than `before`.
pub(crate) fn until_received(sources: &mut [impl Source], before: u64, count: u64) {
    wait_for("they are received", PATIENCE, || {
        (received_by(sources) >= before + count).then_some(())
    });
}

/// Packets that came to the lanes so far.
pub(crate) fn received_by(sources: &mut [impl Source]) -> u64 {
    sources.iter_mut().map(|source| source.counters().received).sum()
}

/// Polls until `count` packets came, with a sink that refuses every third; gives their numbers.
pub(crate) fn take_refusing(source: &mut impl Source, count: usize) -> Vec<u32> {
    let (mut got, mut calls) = (Vec::new(), 0);
    let begin = Instant::now();
    while got.len() < count {
        assert!(begin.elapsed() < PATIENCE, "{} of {count} packets came", got.len());
        let mut sink = |packet: &Packet<'_>| {
            calls += 1;
            if calls % 3 == 0 {
                return ControlFlow::Break(());
            }
            got.push(u32::from_be_bytes(*packet.data[14..].first_chunk().expect("number")));
            ControlFlow::Continue(())
        };
        source.poll(&mut sink, WAIT).expect("poll");
        assert_books(source);
    }
    got
}

pub(crate) fn assert_books(source: &mut impl Source) {
    let c = source.counters();
    assert_eq!(c.received, c.handed + c.dropped_ring + c.in_ring, "{c:?}");
}

/// Polls until the state is as wanted.
pub(crate) fn until(source: &mut impl Source, wanted: impl Fn(&SourceState) -> bool) {
    let begin = Instant::now();
    while !wanted(&source.state()) {
        assert!(begin.elapsed() < PATIENCE, "state stays {:?}", source.state());
        source.poll(&mut |_: &Packet<'_>| ControlFlow::Continue(()), WAIT).expect("poll");
    }
}

/// Polls until the source tells of an outage; returns its window.
pub(crate) fn outage(source: &mut impl Source) -> (u64, u64) {
    let begin = Instant::now();
    loop {
        assert!(begin.elapsed() < PATIENCE, "no gap was told");
        let polled = source.poll(&mut |_: &Packet<'_>| ControlFlow::Continue(()), WAIT);
        if let Polled::Gap(gap) = polled.expect("poll") {
            assert_eq!((gap.cause, gap.packets), (Cause::InterfaceDown, None));
            return (gap.from_ns, gap.until_ns.expect("it ended"));
        }
    }
}
