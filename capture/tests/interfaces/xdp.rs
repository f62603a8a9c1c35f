//! AF_XDP sockets, in both places where a program can run.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::process::Command;
use std::time::{Duration, Instant};

use caps::Capability;
use wirevault_capture::{
    CaptureError, Packet, Polled, Source, SourceState, XdpHook, XdpOptions, XdpSource, choose,
    open_xdp_lanes,
};
use wirevault_format::Cause;
use wirevault_testkit::net::{
    Namespace, Sender, now_ns, received, udp, wait_for, without_capabilities,
};

use crate::wire::{
    EXPERIMENTAL, HERE, PATIENCE, THERE, WAIT, assert_books, frame, mixed_frames, outage,
    received_by, take, take_all, take_refusing, until, until_received,
};

const HOOKS: [XdpHook; 2] = [XdpHook::Native, XdpHook::Generic];
/// Frames sent before the kernel's thread that empties the veth pair's own queue of 256 is waited
/// for.
const BURST: usize = 32;

/// Sends to `va` in bursts that the veth pair can hold.
fn send_all(sender: &mut Sender, frames: &[Vec<u8>]) {
    for burst in frames.chunks(BURST) {
        let all = received("va") + burst.len() as u64;
        burst.iter().for_each(|frame| sender.send(frame));
        wait_for("the pair is empty", PATIENCE, || (received("va") >= all).then_some(()));
    }
}

fn options(interface: &str, hook: XdpHook) -> XdpOptions {
    XdpOptions { ring_bytes: 8 << 20, hook, ..XdpOptions::new(interface) }
}

/// What `ip link` says of XDP programs on an interface.
fn programs(ns: &Namespace, interface: &str) -> bool {
    let link = Command::new("ip").args(["-n", ns.name(), "link", "show", interface]).output();
    String::from_utf8_lossy(&link.expect("ip").stdout).contains("prog/xdp")
}

#[test]
fn every_byte_length_and_tag_is_as_sent() {
    let Some(ns) = Namespace::new() else { return };
    for hook in HOOKS {
        ns.add_veth("va", "vb");
        let mut source = XdpSource::open(&options("va", hook)).expect("open");
        assert_eq!(source.state(), SourceState::Running);
        let sent = mixed_frames(700);
        let before_ns = now_ns();
        send_all(&mut Sender::on("vb"), &sent);
        let got = take(&mut source, sent.len());
        assert_eq!(got.len(), sent.len(), "{hook:?} {:?}", source.report());
        let after_ns = now_ns();
        for (number, (got, sent)) in got.iter().zip(&sent).enumerate() {
            assert_eq!(&got.bytes, sent, "packet {number}, {hook:?}");
            assert_eq!(got.wire_len as usize, sent.len());
            let reception = [1, 3, 4][number % 3];
            assert_eq!(got.flags, 1 | reception << 2, "packet {number}, {hook:?}");
            assert!((before_ns..=after_ns).contains(&got.ts_ns), "packet {number}, {hook:?}");
        }
        assert!(got.is_sorted_by_key(|packet| packet.ts_ns), "one queue keeps order");
        assert!(got[0].ts_ns < got[699].ts_ns, "each packet has a time of its own");
        assert_books(&mut source);
        let c = source.counters();
        assert_eq!((c.handed, c.dropped_ring, c.in_ring), (700, 0, 0));
        let report = source.report();
        assert_eq!((report.kind, report.ring_bytes), ("af_xdp", 8 << 20));
        assert_eq!(report.clocks, ["xdp"]);
        let place = if hook == XdpHook::Native { "(native)" } else { "(generic)" };
        assert!(report.notes[0].contains(place), "{report:?}");
        assert!(report.notes[0].contains("no zero-copy"), "veth has none: {report:?}");
        assert!(programs(&ns, "va"));
        drop(source);
        assert!(!programs(&ns, "va"), "the program goes with its source");
        ns.ip(&["link", "del", "va"]);
    }
}

#[test]
fn without_stamps_a_packet_has_the_time_of_its_taking() {
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    let plain = XdpOptions { stamps: false, ..options("va", XdpHook::Best) };
    let mut source = XdpSource::open(&plain).expect("open");
    let sent: Vec<_> = (0..50).map(|it| frame(HERE, EXPERIMENTAL, it, 200)).collect();
    send_all(&mut Sender::on("vb"), &sent);
    let sent_ns = now_ns();
    let got = take(&mut source, sent.len());
    assert!(got.iter().map(|packet| &packet.bytes).eq(&sent));
    assert!(got.iter().all(|packet| (sent_ns..=now_ns()).contains(&packet.ts_ns)));
    assert_eq!(source.report().clocks, ["poll"]);
    assert_eq!(source.interfaces()[0].clock.as_deref(), Some("poll"));
}

#[test]
fn jumbo_frames_come_whole() {
    let Some(ns) = Namespace::new() else { return };
    for hook in HOOKS {
        ns.add_veth("va", "vb");
        for name in ["va", "vb"] {
            ns.ip(&["link", "set", name, "mtu", "9000"]);
        }
        let mut source = XdpSource::open(&options("va", hook)).expect("open");
        let sent: Vec<_> = (0..120)
            .map(|number: u32| {
                let bytes = [9014, 64, 3840, 3841, 4096, 7680, 7681, 8999][number as usize % 8];
                frame(HERE, EXPERIMENTAL, number, bytes)
            })
            .collect();
        send_all(&mut Sender::on("vb"), &sent);
        let got = take(&mut source, sent.len());
        assert_eq!(got.len(), sent.len(), "{hook:?}");
        for (got, sent) in got.iter().zip(&sent) {
            assert!(got.bytes == *sent, "{} bytes, {hook:?}", sent.len());
        }
        assert_books(&mut source);
        assert_eq!(source.counters().received, 120);
        ns.ip(&["link", "del", "va"]);
    }
}

/// A veth pair whose packets come by way of the stack, which takes tags out of what it receives: a
/// pair with tx-vlan-offload then carries them beside the frame. Give what is sent on `out`.
fn tags_beside_frames(ns: &Namespace) -> Sender {
    ns.add_veth("va", "vb");
    ns.add_veth("in", "out");
    // What comes out of `in` goes into `vb`.
    tc(&["qdisc", "add", "dev", "in", "ingress"]);
    tc(&[
        "filter", "add", "dev", "in", "parent", "ffff:", "protocol", "all", "u32", "match", "u32",
        "0", "0", "action", "mirred", "egress", "redirect", "dev", "vb",
    ]);
    Sender::on("out")
}

/// A frame, and the same with a tag.
fn tagged(number: u32, tag: [u8; 4]) -> (Vec<u8>, Vec<u8>) {
    let plain = frame(HERE, EXPERIMENTAL, number, 100);
    let mut tagged = plain.clone();
    tagged.splice(12..12, tag);
    (plain, tagged)
}

/// Linux 6.8 lets the program ask for the tag; it is put back where it was. Without stamps the
/// program asks nothing, and the lane says what is lost.
#[test]
fn a_tag_beside_the_frame_comes_back_if_the_driver_tells() {
    let Some(ns) = Namespace::new() else { return };
    let mut sender = tags_beside_frames(&ns);
    // Not in the stack: a packet that was redirected there passes by generic programs.
    for stamps in [true, false] {
        let asking = XdpOptions { stamps, ..options("va", XdpHook::Native) };
        let mut source = XdpSource::open(&asking).expect("open");
        let notes = source.report().notes.join("; ");
        let puts_back = notes.contains("are put back in");
        assert_eq!(notes.contains("are lost"), !puts_back, "{notes}");
        if stamps && !puts_back {
            eprintln!("SKIPPED: no tags from this kernel: {notes}");
            continue;
        }
        for (number, tag) in [(1, [0x81, 0, 0x60, 5]), (2, [0x88, 0xa8, 0x0a, 0xbc])] {
            let (plain, tagged) = tagged(number, tag);
            for sent in [&tagged, &plain] {
                sender.send(sent);
                let got = take(&mut source, 1);
                let expected = if puts_back { sent } else { &plain };
                assert_eq!(&got[0].bytes, expected, "{tag:x?} {notes}");
                assert_eq!(got[0].wire_len as usize, expected.len());
            }
        }
        assert_eq!(source.report().clocks, [if stamps { "xdp" } else { "poll" }]);
        if !stamps {
            ethtool(&["-K", "vb", "txvlan", "off"]);
            let (_, tagged) = tagged(3, [0x81, 0, 0, 5]);
            sender.send(&tagged);
            assert_eq!(take(&mut source, 1)[0].bytes, tagged);
        }
    }
}

/// A veth pair lets the program ask for the card's time and has none to tell: packets have the
/// program's. In the stack nobody can be asked.
#[test]
fn the_cards_time_is_asked_for_and_missed_by_name() {
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    let timed = |hook| XdpOptions { hardware_time: true, ..options("va", hook) };
    let error = XdpSource::open(&timed(XdpHook::Generic)).expect_err("nobody to ask");
    assert!(error.to_string().contains("only a program in the driver can ask it"), "{error}");
    let mut source = match XdpSource::open(&timed(XdpHook::Native)) {
        Ok(source) => source,
        Err(error) => return eprintln!("SKIPPED: {error}"),
    };
    let sent: Vec<_> = (0..50).map(|it| frame(HERE, EXPERIMENTAL, it, 200)).collect();
    let before_ns = now_ns();
    send_all(&mut Sender::on("vb"), &sent);
    let got = take(&mut source, sent.len());
    assert!(got.iter().map(|packet| &packet.bytes).eq(&sent));
    assert!(got.iter().all(|packet| (before_ns..=now_ns()).contains(&packet.ts_ns)));
    assert_eq!(source.report().clocks, ["hardware", "xdp"]);
}

fn tc(args: &[&str]) {
    let output = Command::new("tc").args(args).output().expect("tc");
    assert!(output.status.success(), "tc {args:?}: {output:?}");
}

fn ethtool(args: &[&str]) {
    let output = Command::new("ethtool").args(args).output().expect("ethtool");
    assert!(output.status.success(), "ethtool {args:?}: {output:?}");
}

#[test]
fn a_refused_packet_comes_again_and_none_is_skipped() {
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    let mut source = XdpSource::open(&options("va", XdpHook::Best)).expect("open");
    let sent: Vec<_> = (0..200).map(|number| frame(HERE, EXPERIMENTAL, number, 80)).collect();
    send_all(&mut Sender::on("vb"), &sent);
    assert_eq!(take_refusing(&mut source, 200), (0..200).collect::<Vec<_>>());
}

#[test]
fn what_finds_no_frame_is_counted_and_told() {
    let Some(ns) = Namespace::new() else { return };
    for hook in HOOKS {
        ns.add_veth("va", "vb");
        let tiny = XdpOptions { ring_bytes: 128 * 2048, ..options("va", hook) };
        let mut source = XdpSource::open(&tiny).expect("open");
        let mut sender = Sender::on("vb");
        let before_ns = now_ns();
        let (mut told, mut handed) = (0, 0);
        let mut refuse = |_: &Packet<'_>| ControlFlow::Break(());
        for round in 0..5 {
            let frames: Vec<_> =
                (0..100).map(|it| frame(HERE, EXPERIMENTAL, round * 100 + it, 500)).collect();
            send_all(&mut sender, &frames);
            if let Polled::Gap(gap) = source.poll(&mut refuse, Duration::ZERO).expect("poll") {
                told += gap.packets.expect("counted");
            }
            assert_books(&mut source);
        }
        let begin = Instant::now();
        while handed + told < 500 {
            assert!(begin.elapsed() < PATIENCE, "{handed} handed out, {told} told as lost");
            match source.poll(&mut |_: &Packet<'_>| ControlFlow::Continue(()), WAIT).expect("poll")
            {
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
        assert_eq!((c.received, c.in_ring, handed), (500, 0, c.handed), "{hook:?} {c:?}");
        assert_eq!((c.handed, c.dropped_ring), (128, 372), "{hook:?}: a frame, a packet");
        assert_eq!(told, c.dropped_ring, "{hook:?}");
        // The frames are free again.
        sender.send(&frame(HERE, EXPERIMENTAL, 7, 100));
        assert_eq!(take(&mut source, 1).len(), 1);
        ns.ip(&["link", "del", "va"]);
    }
}

/// As [`Namespace::add_veth`], with several queues in both directions.
fn add_queues(ns: &Namespace, queues: u32) {
    let queues = queues.to_string();
    let counts = ["numrxqueues", &queues, "numtxqueues", &queues];
    let (begin, peer) = (["link", "add", "va"], ["type", "veth", "peer", "name", "vb"]);
    ns.ip(&[&begin[..], &counts, &peer, &counts].concat());
    for (name, address) in [("va", "02:00:00:00:00:01"), ("vb", "02:00:00:00:00:02")] {
        ns.ip(&["link", "set", name, "address", address, "up"]);
    }
    ns.wait_for_carrier(&["va", "vb"]);
}

#[test]
fn queues_are_shared_out_over_lanes() {
    let Some(ns) = Namespace::new() else { return };
    add_queues(&ns, 3);
    for hook in HOOKS {
        // Any queue could get all of them.
        let roomy = XdpOptions { ring_bytes: 2 * 4096 * 2048, ..options("va", hook) };
        let mut sources = open_xdp_lanes(&roomy, 2).expect("open");
        let sent: Vec<_> =
            (0..3000u32).map(|it| udp(HERE, THERE, (1000 + it % 64) as u16, it)).collect();
        send_all(&mut Sender::on("vb"), &sent);
        let mut numbers: HashMap<Vec<u8>, u32> = HashMap::new();
        let mut counts = Vec::new();
        let got = take_all(&mut sources, 3000);
        for (source, got) in sources.iter_mut().zip(got) {
            counts.push(got.len());
            for packet in got {
                *numbers.entry(packet.bytes[42..46].to_vec()).or_insert(0) += 1;
            }
            assert_books(source);
        }
        assert_eq!(numbers.len(), 3000, "{hook:?} {counts:?}");
        assert!(numbers.values().all(|count| *count == 1));
        assert!(counts.iter().all(|count| *count > 0), "{hook:?} {counts:?}");
        let reports: Vec<_> = sources.iter().map(Source::report).collect();
        assert_eq!(reports[0].fanout.as_deref(), Some("2 lanes by receive queue"));
        assert!(reports[0].notes[0].contains("queues 0, 2 of 3"), "{reports:?}");
        assert!(reports[1].notes[0].contains("queues 1 of 3"), "{reports:?}");
    }
    let error = open_xdp_lanes(&options("va", XdpHook::Best), 4).expect_err("too many");
    assert!(error.to_string().contains("3 receive queues for 4 lanes"), "{error}");
}

#[test]
fn other_traffic_is_left_alone() {
    let Some(ns) = Namespace::new() else { return };
    let Some(peer) = Namespace::new() else { return };
    ns.join();
    for hook in HOOKS {
        ns.add_veth("va", "vb");
        ns.ip(&["link", "set", "vb", "netns", peer.name()]);
        ns.ip(&["addr", "add", "10.99.0.2/24", "dev", "va"]);
        peer.ip(&["addr", "add", "10.99.0.1/24", "dev", "vb"]);
        peer.ip(&["link", "set", "vb", "up"]);
        ns.wait_for_carrier(&["va"]);
        peer.wait_for_carrier(&["vb"]);
        let mirrored = XdpOptions { udp_ports: vec![4789, 6081], ..options("va", hook) };
        let mut source = XdpSource::open(&mirrored).expect("open");
        // What the machine's own stack gets: a socket of its own.
        let here = std::net::UdpSocket::bind("10.99.0.2:0").expect("bind");
        let port = here.local_addr().expect("address").port();
        here.set_read_timeout(Some(PATIENCE)).expect("timeout");
        peer.join();
        let there = std::net::UdpSocket::bind("10.99.0.1:0").expect("bind");
        ns.join();
        for number in 0..50u32 {
            for to in [4789, port, 6081] {
                there.send_to(&number.to_be_bytes(), ("10.99.0.2", to)).expect("send");
            }
            let mut room = [0; 64];
            let (bytes, _) = here.recv_from(&mut room).expect("left alone");
            assert_eq!(room[..bytes], number.to_be_bytes(), "{hook:?}");
        }
        let got = take(&mut source, 100);
        assert_eq!(got.len(), 100, "{hook:?}");
        for (at, packet) in got.iter().enumerate() {
            let port: u16 = if at % 2 == 0 { 4789 } else { 6081 };
            assert_eq!(packet.bytes[36..38], port.to_be_bytes(), "{hook:?}");
            assert_eq!(packet.bytes[42..46], (at as u32 / 2).to_be_bytes(), "{hook:?}");
        }
        let note = "only UDP packets to 4789, 6081 are taken";
        assert!(source.report().notes.iter().any(|it| it.contains(note)));
        ns.ip(&["link", "del", "va"]);
    }
}

#[test]
fn the_filter_sees_through_tags_and_ipv6_but_not_fragments() {
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    let mirrored = XdpOptions { udp_ports: vec![9999], ..options("va", XdpHook::Native) };
    let mut source = XdpSource::open(&mirrored).expect("open");
    // Its destination port is 9999.
    let plain = udp(HERE, THERE, 5, 1);
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = plain.clone();
        change(&mut frame);
        frame
    };
    let tag = |frame: &mut Vec<u8>, tpid: [u8; 2]| {
        frame.splice(12..12, [tpid[0], tpid[1], 0, 9]);
    };
    let mut ipv6 = [&HERE[..], &THERE, &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 26, 17, 64]].concat();
    ipv6.extend([0xfd; 32]);
    ipv6.extend_from_slice(&plain[34..]);
    let wanted = [
        plain.clone(),
        with(&|frame| tag(frame, [0x81, 0])),
        with(&|frame| {
            tag(frame, [0x81, 0]);
            tag(frame, [0x88, 0xa8]);
        }),
        with(&|frame| {
            // A header with options.
            frame[14] = 0x46;
            frame.splice(34..34, [1, 1, 1, 0]);
        }),
        ipv6.clone(),
    ];
    let unwanted = [
        with(&|frame| frame[37] ^= 1),
        with(&|frame| frame[23] = 6),
        with(&|frame| frame[21] = 9),
        with(&|frame| frame[13] = 6),
        with(&|frame| frame.truncate(37)),
        with(&|frame| frame.truncate(20)),
        {
            ipv6[20] = 44;
            ipv6
        },
    ];
    let mut sender = Sender::on("vb");
    for (bad, good) in unwanted.iter().zip(wanted.iter().cycle()) {
        sender.send(bad);
        sender.send(good);
    }
    let expected: Vec<_> = wanted.iter().cycle().take(unwanted.len()).cloned().collect();
    let got = take(&mut source, expected.len()).into_iter().map(|packet| packet.bytes);
    let got: Vec<_> = got.collect();
    assert_eq!(got, expected);
}

#[test]
fn an_interface_that_goes_down_or_away_leaves_a_gap_and_is_taken_up_again() {
    let Some(ns) = Namespace::new() else { return };
    add_queues(&ns, 2);
    let mut sources = open_xdp_lanes(&options("va", XdpHook::Best), 2).expect("open");
    let is_down = |state: &SourceState| matches!(state, SourceState::InterfaceDown { .. });
    let outages: [(&[&str], &dyn Fn()); 2] = [
        (&["link", "set", "va", "down"], &|| drop(ns.ip(&["link", "set", "va", "up"]))),
        (&["link", "del", "va"], &|| add_queues(&ns, 2)),
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
        let sent: Vec<_> = (0..256).map(|it| udp(HERE, THERE, it as u16, it)).collect();
        send_all(&mut Sender::on("vb"), &sent);
        let counts: Vec<_> = take_all(&mut sources, 256).iter().map(Vec::len).collect();
        assert_eq!(counts.iter().sum::<usize>(), 256, "step {step}: {counts:?}");
        assert!(counts.iter().all(|count| *count > 0), "step {step}: {counts:?}");
        sources.iter_mut().for_each(assert_books);
        assert!(programs(&ns, "va"), "step {step}");
        assert_eq!(sources[0].interfaces().len(), 1);
    }
}

#[test]
fn somebody_elses_program_is_refused_by_number() {
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    for hook in HOOKS {
        let first = XdpSource::open(&options("va", hook)).expect("open");
        let error = XdpSource::open(&options("va", XdpHook::Best)).expect_err("occupied");
        let CaptureError::XdpOccupied { program, .. } = &error else { panic!("{error}") };
        let link = Command::new("ip").args(["-n", ns.name(), "link", "show", "va"]).output();
        let link = String::from_utf8_lossy(&link.expect("ip").stdout).into_owned();
        assert!(link.contains(&format!("id {program}")), "{link}");
        assert!(error.to_string().contains(&format!("XDP program {program}")), "{error}");
        assert!(!choose("va", 1).expect("choice").af_xdp);
        drop(first);
        assert!(!programs(&ns, "va"), "{hook:?}");
    }
}

#[test]
fn errors_name_what_is_missing() {
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    let error = XdpSource::open(&options("nope0", XdpHook::Best)).expect_err("absent");
    assert!(matches!(error, CaptureError::NoInterface { .. }), "{error}");
    let admin = [Capability::CAP_NET_ADMIN, Capability::CAP_SYS_ADMIN];
    without_capabilities(&admin, || {
        let error = XdpSource::open(&options("va", XdpHook::Best)).expect_err("forbidden");
        assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
    });
    without_capabilities(&[Capability::CAP_NET_RAW], || {
        let error = XdpSource::open(&options("va", XdpHook::Best)).expect_err("forbidden");
        assert!(error.to_string().contains("CAP_NET_RAW"), "{error}");
    });
}

/// veth copies, so nothing here is right for AF_XDP; whose packets would be missed is told first.
#[test]
fn af_xdp_is_not_chosen_where_packets_are_missed_or_copied() {
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    let why = |what: &str| {
        let choice = choose("va", 1).expect("choice");
        assert!(!choice.af_xdp && choice.why.contains(what), "{choice:?}, not {what}");
    };
    why("no zero-copy");
    let listener = Sender::on("va");
    why("packet sockets of others");
    drop(listener);
    ns.ip(&["addr", "add", "10.99.0.2/24", "dev", "va"]);
    why("the address 10.99.0.2");
    ns.ip(&["addr", "flush", "dev", "va"]);
    ns.ip(&["link", "add", "bridge7", "type", "bridge"]);
    ns.ip(&["link", "set", "va", "master", "bridge7"]);
    why("bridge");
    ns.ip(&["link", "set", "va", "nomaster"]);
    why("no zero-copy");
    ns.ip(&["link", "set", "va", "down"]);
    why("down");
}
