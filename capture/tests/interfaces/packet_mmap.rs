//! AF_PACKET rings.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::process::Command;
use std::time::{Duration, Instant};

use caps::Capability;
use wirevault_capture::{
    CaptureError, Packet, PacketMmapOptions, PacketMmapSource, Polled, Source, SourceState,
    open_lanes,
};
use wirevault_format::Cause;
use wirevault_testkit::net::{Namespace, Sender, now_ns, udp, without_capabilities};

use crate::wire::{
    EXPERIMENTAL, HERE, PATIENCE, THERE, WAIT, assert_books, frame, mixed_frames, outage,
    received_by, take, take_all, take_refusing, until, until_received,
};

const INBOUND_UNICAST: u32 = 1 | 1 << 2;
const INBOUND_BROADCAST: u32 = 1 | 3 << 2;
const INBOUND_PROMISCUOUS: u32 = 1 | 4 << 2;
const OUTBOUND: u32 = 2;

fn options(interface: &str) -> PacketMmapOptions {
    PacketMmapOptions { ring_bytes: 4 << 20, ..PacketMmapOptions::new(interface) }
}

#[test]
fn every_byte_length_tag_and_direction_is_as_sent() {
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    let mut source = PacketMmapSource::open(&options("va")).expect("open");
    assert_eq!(source.state(), SourceState::Running);
    let mut sender = Sender::on("vb");
    let sent = mixed_frames(600);
    let before_ns = now_ns();
    sent.iter().for_each(|bytes| sender.send(bytes));
    let got = take(&mut source, sent.len());
    assert_eq!(got.len(), sent.len());
    for (number, (got, sent)) in got.iter().zip(&sent).enumerate() {
        assert_eq!(&got.bytes, sent, "packet {number}");
        assert_eq!(got.wire_len as usize, sent.len());
        let expected = [INBOUND_UNICAST, INBOUND_BROADCAST, INBOUND_PROMISCUOUS][number % 3];
        assert_eq!(got.flags, expected, "packet {number}");
        assert_eq!(got.tagged, number % 5 == 0 || number % 7 == 0);
        assert!((before_ns..=now_ns()).contains(&got.ts_ns), "packet {number}");
    }

    let outgoing = frame(THERE, EXPERIMENTAL, 7, 100);
    Sender::on("va").send(&outgoing);
    let got = take(&mut source, 1);
    assert_eq!((got[0].flags, &got[0].bytes), (OUTBOUND, &outgoing));
    assert_books(&mut source);
    let c = source.counters();
    assert_eq!((c.handed, c.dropped_ring, c.in_ring), (601, 0, 0));

    let report = source.report();
    assert_eq!(report.ring_bytes, 4 << 20);
    assert!(report.notes.iter().any(|note| note.starts_with("gro is")), "{report:?}");
    let described = &source.interfaces()[0];
    assert_eq!(described.name.as_deref(), Some("va"));
    // One interface, although the kernel may stamp the first packets later than the others.
    assert_eq!(report.clocks, ["software"]);
}

#[test]
fn a_refused_packet_comes_again_and_none_is_skipped() {
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    let mut source = PacketMmapSource::open(&options("va")).expect("open");
    let mut sender = Sender::on("vb");
    for number in 0..50 {
        sender.send(&frame(HERE, EXPERIMENTAL, number, 80));
    }
    assert_eq!(take_refusing(&mut source, 50), (0..50).collect::<Vec<_>>());
}

#[test]
fn loopback_packets_come_once() {
    let Some(ns) = Namespace::new() else { return };
    ns.ip(&["link", "set", "lo", "up"]);
    for lanes in [1, 2] {
        let mut sources = open_lanes(&options("lo"), lanes).expect("open");
        let mut sender = Sender::on("lo");
        for number in 0..20 {
            sender.send(&frame([0; 6], EXPERIMENTAL, number, 90));
        }
        let got = take_all(&mut sources, 20).concat();
        assert_eq!(got.len(), 20, "{lanes} lanes");
        assert!(got.iter().all(|packet| packet.flags & 3 == 1), "inbound");
    }
}

#[test]
fn lanes_share_an_interface_without_loss_or_doubling() {
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    let mut sources = open_lanes(&options("va"), 2).expect("open");
    let mut sender = Sender::on("vb");
    let mut got = [Vec::new(), Vec::new()];
    for number in 0..4000u32 {
        sender.send(&udp(HERE, THERE, (1000 + number % 64) as u16, number));
        // A block is closed after some milliseconds, however little is in it. A busy machine that
        // sends slowly would close all of them.
        if number % 50 == 49 {
            let fresh = take_all(&mut sources, 50);
            got.iter_mut().zip(fresh).for_each(|(got, fresh)| got.extend(fresh));
        }
    }
    let mut numbers: HashMap<Vec<u8>, u32> = HashMap::new();
    let mut lanes_of_port: HashMap<[u8; 2], usize> = HashMap::new();
    for ((lane, source), got) in sources.iter_mut().enumerate().zip(got) {
        assert!(!got.is_empty(), "lane {lane} saw nothing");
        for packet in got {
            let port = [packet.bytes[34], packet.bytes[35]];
            assert_eq!(*lanes_of_port.entry(port).or_insert(lane), lane, "a flow changed its lane");
            *numbers.entry(packet.bytes[42..46].to_vec()).or_insert(0) += 1;
        }
        assert_books(source);
    }
    assert_eq!(numbers.len(), 4000);
    assert!(numbers.values().all(|count| *count == 1));
    assert_eq!(sources[0].report().fanout.as_deref(), Some("2 lanes by flow hash"));
}

#[test]
fn what_a_full_ring_drops_is_counted_and_told() {
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    let tiny = PacketMmapOptions { ring_bytes: 16384, block_bytes: 4096, ..options("va") };
    let mut source = PacketMmapSource::open(&tiny).expect("open");
    let mut sender = Sender::on("vb");
    let before_ns = now_ns();
    let mut told = 0;
    let mut refuse = |_: &Packet<'_>| ControlFlow::Break(());
    for number in 0..500 {
        sender.send(&frame(HERE, EXPERIMENTAL, number, 500));
        if number % 100 == 50 {
            if let Polled::Gap(gap) = source.poll(&mut refuse, Duration::ZERO).expect("poll") {
                told += gap.packets.expect("counted");
            }
            assert_books(&mut source);
        }
    }
    let mut handed = 0;
    let begin = Instant::now();
    while handed + told < 500 {
        assert!(begin.elapsed() < PATIENCE, "{handed} handed out, {told} told as lost");
        match source.poll(&mut |_: &Packet<'_>| ControlFlow::Continue(()), WAIT).expect("poll") {
            Polled::Packets(count) => handed += count,
            Polled::Gap(gap) => {
                assert_eq!(gap.cause, Cause::RingOverflow);
                assert!(gap.from_ns >= before_ns - 1_000_000_000);
                assert!(gap.until_ns.is_some_and(|until| until > gap.from_ns));
                told += gap.packets.expect("counted");
            }
            _ => {}
        }
    }
    let c = source.counters();
    assert_eq!((c.received, c.in_ring), (500, 0), "{c:?}");
    assert!(c.dropped_ring > 0 && handed > 0, "{c:?}");
    assert_eq!(handed + c.dropped_ring, 500);
    assert_eq!(told, c.dropped_ring);
}

#[test]
fn an_interface_that_goes_down_or_away_leaves_a_gap_and_is_taken_up_again() {
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    let mut sources = open_lanes(&options("va"), 2).expect("open");
    let is_down = |state: &SourceState| matches!(state, SourceState::InterfaceDown { .. });
    let outages: [(&[&str], &dyn Fn()); 2] = [
        (&["link", "set", "va", "down"], &|| drop(ns.ip(&["link", "set", "va", "up"]))),
        (&["link", "del", "va"], &|| ns.add_veth("va", "vb")),
    ];
    for (step, (break_it, mend)) in outages.into_iter().enumerate() {
        // Packets that came before the outage are still given out after it.
        let had = received_by(&mut sources);
        Sender::on("vb").send(&frame(HERE, EXPERIMENTAL, 1, 90));
        until_received(&mut sources, had, 1);
        let down_ns = now_ns();
        ns.ip(break_it);
        let before: usize = take_all(&mut sources, 1).iter().map(Vec::len).sum();
        assert_eq!(before, 1, "step {step}");
        sources.iter_mut().for_each(|source| until(source, is_down));
        std::thread::sleep(Duration::from_millis(150));
        mend();
        ns.wait_for_carrier(&["va", "vb"]);
        let up_ns = now_ns();
        for source in &mut sources {
            let (from_ns, until_ns) = outage(source);
            assert!(from_ns <= down_ns + 50_000_000, "step {step}: begins too late");
            assert!(until_ns + 50_000_000 >= up_ns - 100_000_000, "step {step}: ends too early");
            assert_eq!(source.state(), SourceState::Running);
        }
        let mut sender = Sender::on("vb");
        for number in 0..64u32 {
            sender.send(&udp(HERE, THERE, number as u16, number));
        }
        let counts: Vec<_> = take_all(&mut sources, 64).iter().map(Vec::len).collect();
        assert_eq!(counts.iter().sum::<usize>(), 64, "step {step}: {counts:?}");
        assert!(counts.iter().all(|count| *count > 0), "step {step}: {counts:?}");
        sources.iter_mut().for_each(assert_books);
        assert_eq!(sources[0].interfaces().len(), 1);
    }
}

#[test]
fn an_interface_that_is_down_at_first_is_attached_when_it_comes_up() {
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    ns.ip(&["link", "set", "va", "down"]);
    let mut source = PacketMmapSource::open(&options("va")).expect("open");
    assert!(matches!(source.state(), SourceState::InterfaceDown { .. }));
    ns.ip(&["link", "set", "va", "up"]);
    outage(&mut source);
    ns.wait_for_carrier(&["va", "vb"]);
    Sender::on("vb").send(&frame(HERE, EXPERIMENTAL, 3, 64));
    assert_eq!(take(&mut source, 1).len(), 1);
}

#[test]
fn errors_name_what_is_missing() {
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    let error = PacketMmapSource::open(&options("nope0")).expect_err("absent");
    assert!(matches!(error, CaptureError::NoInterface { .. }));
    let text = error.to_string();
    assert!(["nope0", "lo", "va", "vb"].iter().all(|name| text.contains(name)), "{text}");
    let long = PacketMmapSource::open(&options("a-name-beyond-sixteen")).expect_err("absent");
    assert!(matches!(long, CaptureError::NoInterface { .. }), "{long}");

    without_capabilities(&[Capability::CAP_NET_RAW], || {
        let error = PacketMmapSource::open(&options("va")).expect_err("forbidden");
        assert!(error.to_string().contains("CAP_NET_RAW"), "{error}");
    });
}

#[test]
fn a_namespace_is_gone_when_its_test_is() {
    let Some(ns) = Namespace::new() else { return };
    let name = ns.name().to_owned();
    drop(ns);
    let list = Command::new("ip").args(["netns", "list"]).output().expect("ip");
    assert!(!String::from_utf8_lossy(&list.stdout).contains(&name));
}
