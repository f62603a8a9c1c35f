//! A mirror target on the loopback interface: inner frames, times, counts.

use std::net::{SocketAddr, UdpSocket};
use std::ops::ControlFlow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use wirevault_capture::{
    Packet, Polled, Source, TargetTunnel, UdpTargetOptions, UdpTargetSource, open_targets,
};
use wirevault_format::pcapng::{OPTION_EPB_OUTER, options};
use wirevault_format::{Cause, LinkType};
use wirevault_packet::OuterText;

/// Loose: machines are shared.
const PATIENCE: Duration = Duration::from_secs(60);

fn target(listen: &str, tunnel: TargetTunnel, buffer_bytes: usize) -> UdpTargetOptions {
    let listen = listen.parse().expect("an address");
    UdpTargetOptions { listen, tunnel, buffer_bytes, snaplen_bytes: 0 }
}

fn open(options: &UdpTargetOptions) -> (UdpTargetSource, UdpSocket) {
    let mut sources = open_targets(options, 1).expect("the loopback interface");
    let source = sources.remove(0);
    let port = source.local_port().expect("a port");
    let any = SocketAddr::new(options.listen.ip(), 0);
    let sender = UdpSocket::bind(any).expect("a socket");
    sender.connect(SocketAddr::new(options.listen.ip(), port)).expect("loopback");
    (source, sender)
}

/// Ethernet, IPv4, UDP; the payload is a number.
fn frame(number: u32) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend([8, 0, 0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0x10, 0, 0, 53, 0, 12, 0, 0]);
    frame.extend(number.to_be_bytes());
    frame
}

fn vxlan(vni: u8, inner: &[u8]) -> Vec<u8> {
    [&[8, 0, 0, 0, 0, 0, vni, 0][..], inner].concat()
}

struct Taken {
    link: LinkType,
    ts_ns: u64,
    wire_len: u32,
    data: Vec<u8>,
    outer: String,
}

fn take(source: &mut UdpTargetSource, wanted: usize) -> Vec<Taken> {
    let started = std::time::Instant::now();
    let interfaces = source.interfaces().to_vec();
    let mut taken = Vec::new();
    while taken.len() < wanted {
        assert!(started.elapsed() < PATIENCE, "{} of {wanted} packets came", taken.len());
        let mut sink = |packet: &Packet<'_>| {
            let mut read = options(packet.options);
            let option = read.next().expect("an option").expect("a whole one");
            assert_eq!(option.code, OPTION_EPB_OUTER);
            taken.push(Taken {
                link: interfaces[packet.interface as usize].link_type,
                ts_ns: packet.ts_ns,
                wire_len: packet.wire_len,
                data: packet.data.to_vec(),
                outer: OuterText(option.value).to_string(),
            });
            ControlFlow::Continue(())
        };
        source.poll(&mut sink, Duration::from_millis(20)).expect("a poll");
    }
    taken
}

#[expect(clippy::disallowed_methods, reason = "compared with the kernel's own clock")]
fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    now.as_nanos() as u64
}

#[test]
fn inner_frames_come_with_the_kernels_time_and_the_vni() {
    for (listen, text) in [
        ("127.0.0.1:0", "IP 127.0.0.1 > 127.0.0.1, VXLAN vni 7"),
        ("[::1]:0", "IP6 ::1 > ::1, VXLAN vni 7"),
    ] {
        let (mut source, sender) = open(&target(listen, TargetTunnel::Vxlan, 1 << 20));
        let probes = until_stamped(&mut source, &sender);
        let before_ns = now_ns();
        for number in 0..150 {
            sender.send(&vxlan(7, &frame(number))).expect("loopback");
        }
        let after_ns = now_ns();
        let taken = take(&mut source, 150);
        for (number, packet) in taken.iter().enumerate() {
            assert_eq!((packet.link, &packet.data), (LinkType::ETHERNET, &frame(number as u32)));
            assert_eq!((packet.wire_len as usize, &packet.outer[..]), (packet.data.len(), text));
            assert!((before_ns..=after_ns).contains(&packet.ts_ns), "stamped when it arrived");
        }
        let counters = source.counters();
        let all = probes + 150;
        assert_eq!((counters.received, counters.handed, counters.in_ring), (all, all, 0));
        assert_eq!((counters.unreadable, counters.dropped_ring), (0, 0));
    }
}

/// Sends until a packet has the time when it arrived, and says how many that took. The kernel
/// begins to stamp a while after it is asked to (a work queue patches its code); what arrives
/// before has the time when it is read.
fn until_stamped(source: &mut UdpTargetSource, sender: &UdpSocket) -> u64 {
    let started = std::time::Instant::now();
    for probes in 1.. {
        assert!(started.elapsed() < PATIENCE, "the kernel stamps nothing");
        sender.send(&vxlan(7, &frame(0))).expect("loopback");
        let sent_ns = now_ns();
        std::thread::sleep(Duration::from_millis(1));
        if take(source, 1)[0].ts_ns <= sent_ns {
            return probes;
        }
    }
    unreachable!("the loop has no end")
}

#[test]
fn a_load_balancers_geneve_with_vxlan_inside_is_taken_apart() {
    let (mut source, sender) = open(&target("127.0.0.1:0", TargetTunnel::Geneve, 1 << 20));
    let datagram = vxlan(9, &frame(1));
    let mut ip = vec![0x45, 0, 0, 28 + datagram.len() as u8, 0, 0, 0, 0, 64, 17, 0, 0];
    ip.extend([
        10,
        1,
        0,
        1,
        10,
        1,
        0,
        2,
        0xff,
        0xff,
        0x12,
        0xb5,
        0,
        8 + datagram.len() as u8,
        0,
        0,
    ]);
    // The option of a Gateway Load Balancer: class 0x0108, type 1, the endpoint's id.
    let geneve = [3, 0, 8, 0, 0, 0, 0, 0, 1, 8, 1, 2, 0, 0, 0, 0, 0, 0, 0, 5];
    sender.send(&[&geneve[..], &ip, &datagram].concat()).expect("loopback");
    sender.send(&[&geneve[..], &frame(2)[14..]].concat()).expect("loopback");
    let taken = take(&mut source, 2);
    assert_eq!((taken[0].link, &taken[0].data), (LinkType::ETHERNET, &frame(1)));
    assert_eq!(
        taken[0].outer,
        "IP 127.0.0.1 > 127.0.0.1, GENEVE vni 0, IP 10.1.0.1 > 10.1.0.2, VXLAN vni 9"
    );
    assert_eq!((taken[1].link, &taken[1].data[..]), (LinkType::RAW, &frame(2)[14..]));
}

#[test]
fn what_is_no_tunnel_is_counted_and_a_refused_packet_comes_again() {
    let (mut source, sender) = open(&target("127.0.0.1:0", TargetTunnel::Vxlan, 1 << 20));
    sender.send(b"are you healthy?").expect("loopback");
    sender.send(&vxlan(7, &frame(1))).expect("loopback");
    let mut refused = 0;
    let started = std::time::Instant::now();
    while refused < 2 {
        assert!(started.elapsed() < PATIENCE);
        let mut sink = |_: &Packet<'_>| {
            refused += 1;
            ControlFlow::Break(())
        };
        let polled = source.poll(&mut sink, Duration::from_millis(20)).expect("a poll");
        assert!(matches!(polled, Polled::Packets(0) | Polled::Idle), "{polled:?}");
    }
    let counters = source.counters();
    assert_eq!((counters.received, counters.in_ring, counters.unreadable), (1, 1, 1));
    assert_eq!(take(&mut source, 1)[0].data, frame(1));
    assert_eq!(source.counters().handed, 1);
}

#[test]
fn what_the_socket_has_no_room_for_is_counted_and_told() {
    const SENT: u64 = 2_000;
    let (mut source, sender) = open(&target("127.0.0.1:0", TargetTunnel::Vxlan, 20_000));
    for number in 0..SENT {
        sender.send(&vxlan(7, &frame(number as u32))).expect("loopback");
    }
    let (mut told, mut taken) = (0, 0);
    let started = std::time::Instant::now();
    while told + taken < SENT {
        assert!(started.elapsed() < PATIENCE, "{taken} taken, {told} told as lost");
        let mut sink = |_: &Packet<'_>| {
            taken += 1;
            ControlFlow::Continue(())
        };
        if let Polled::Gap(gap) = source.poll(&mut sink, Duration::from_millis(20)).expect("a poll")
        {
            assert_eq!(gap.cause, Cause::RingOverflow);
            assert!(gap.until_ns.is_some_and(|until_ns| until_ns >= gap.from_ns));
            told += gap.packets.expect("a count");
        }
    }
    let counters = source.counters();
    assert!(taken > 0 && told > 0, "{counters:?}");
    assert_eq!((counters.received, counters.handed, counters.dropped_ring), (SENT, taken, told));
}

#[test]
fn lanes_share_one_port() {
    // The kernel chooses a port that is free, then two lanes take it together.
    let free = UdpSocket::bind("127.0.0.1:0").expect("a socket").local_addr().expect("a port");
    let options = target(&free.to_string(), TargetTunnel::Vxlan, 1 << 20);
    let mut lanes = open_targets(&options, 2).expect("both lanes");
    for number in 0..40 {
        let sender = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        sender.send_to(&vxlan(7, &frame(number)), free).expect("loopback");
    }
    let started = std::time::Instant::now();
    let mut counts = [0u64; 2];
    while counts.iter().sum::<u64>() < 40 {
        assert!(started.elapsed() < PATIENCE, "{counts:?}");
        for (lane, count) in lanes.iter_mut().zip(&mut counts) {
            let mut sink = |_: &Packet<'_>| {
                *count += 1;
                ControlFlow::Continue(())
            };
            lane.poll(&mut sink, Duration::from_millis(5)).expect("a poll");
        }
    }
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    assert!(open_targets(&options, 0).is_err());
    assert!(open_targets(&target("192.0.2.1:4789", TargetTunnel::Vxlan, 1), 1).is_err());
}
