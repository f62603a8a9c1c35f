//! The starts that show the keys of sources: AF_XDP, tunnels, PCAP-over-IP, mirror targets.
//!
//! | run | configuration | traffic |
//! |---|---|---|
//! | `others` | an entry with defaults and one with everything else, of each source | each its own |
//! | `doubled` | interfaces and targets with each `duplicates` | everything twice |
//! | `kept`, `stripped`, `chosen` | a file of tunnelled packets, with each `decap` | |

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use wirevault_testkit::net::{Namespace, Sender, Stamp, wait_for};
use wirevault_tests::captures::{Packet, write_pcap};
use wirevault_tests::frames::{Fragment, ethernet, geneve, ipv4, udp, vxlan};
use wirevault_tests::recorder::Site;

use crate::runs::{PACKET_BYTES, PACKETS, PATIENCE, Seen, look, send, site};

/// Packets in each tunnel.
pub(crate) const TUNNELLED: u64 = 5;
/// Runs of the packets inside: VXLAN to its own port, VXLAN to [`PORT_CHOSEN`], GENEVE.
pub(crate) const TUNNELS: [u16; 3] = [2, 3, 4];
/// A port that is VXLAN's only where it is configured.
const PORT_CHOSEN: u16 = 5000;
/// UDP source ports of the packets inside, by the interface that they are sent to.
pub(crate) const FLOW_KEPT: u16 = 7000;
pub(crate) const FLOW_STRIPPED: u16 = 7001;
pub(crate) const FLOW_CHOSEN: u16 = 7002;
/// The same of what mirrors send in VXLAN, and in GENEVE.
pub(crate) const FLOWS_MIRRORED: [u16; 2] = [8000, 8001];
/// Bytes before the packet inside: Ethernet, IPv4, UDP and the tunnel's own.
const OUTER_BYTES: usize = 14 + 20 + 8 + 8;

/// Where senders come to, and where the recorder goes to.
pub(crate) const LISTEN_CHANGED: &str = "127.0.0.1:57021";
pub(crate) const LISTEN_PLAIN: &str = "127.0.0.1:57022";
pub(crate) const CONNECT: &str = "127.0.0.1:57023";
/// Where mirrors send to.
pub(crate) const TARGET_PLAIN: &str = "127.0.0.1:57024";
pub(crate) const TARGET_CHANGED: &str = "127.0.0.1:57025";
pub(crate) const TARGETS_DOUBLED: [&str; 3] =
    ["127.0.0.1:57026", "127.0.0.1:57027", "127.0.0.1:57028"];
/// Packets that are sent twice.
pub(crate) const COPIES: u64 = 10;
/// Sockets that each send a datagram of either tunnel and run: too many for one of two lanes to get
/// none of them.
pub(crate) const MIRRORS: u64 = 32;
/// Bytes that entries with a snap length keep, each another.
pub(crate) const SNAPLEN_STREAM: usize = 200;
pub(crate) const SNAPLEN_TARGET: usize = 300;

/// What was seen of them, and what was refused.
pub(crate) struct Sources {
    pub(crate) others: Seen,
    pub(crate) doubled: Seen,
    pub(crate) kept: Seen,
    pub(crate) stripped: Seen,
    pub(crate) chosen: Seen,
    pub(crate) with_hardware_time: Output,
    pub(crate) with_stripped_ports: Output,
    pub(crate) without_target: Output,
    pub(crate) without_sender: Output,
}

impl Sources {
    /// `stream` is a pcapng file of [`PACKETS`] to each of two ports.
    pub(crate) fn make(ns: &Namespace, stream: &Path) -> Self {
        ns.ip(&["link", "set", "lo", "up"]);
        for (a, b) in [("vi", "vj"), ("vk", "vl")] {
            ns.add_veth(a, b);
        }
        let others = others(ns, &fs::read(stream).expect("an answer"));
        let site = Site::new("272MiB", 1);
        let refused = |input: &str| {
            let (store, socket) = (site.store(), site.file("socket"));
            let (store, socket) = (store.display(), socket.display());
            site.refuse(&format!("store: {store}\napi: {{socket: {socket}}}\n{input}"))
        };
        let replayed = |decap: &str| replayed(ns, decap);
        Self {
            others,
            doubled: doubled(ns),
            kept: replayed(""),
            stripped: replayed("  decap: strip\n"),
            chosen: replayed(&format!(
                "  decap: strip\n  decap_tunnels: [vxlan]\n  vxlan_ports: [{PORT_CHOSEN}]\n"
            )),
            with_hardware_time: refused("capture: [{interface: va, hardware_time: true}]\n"),
            with_stripped_ports: refused(
                "capture: [{interface: va, decap: strip, udp_ports: [4789]}]\n",
            ),
            without_target: refused("mirror_targets: [{tunnel: geneve}]\n"),
            without_sender: refused("pcap_over_ip: [{interface: far0}]\n"),
        }
    }
}

fn others(ns: &Namespace, stream: &[u8]) -> Seen {
    let site = site(1);
    let socket = site.file("socket");
    let sender = TcpListener::bind(CONNECT).expect("a place");
    let recorder = site.start(&others_config(&site), &socket);
    let begin = Instant::now();
    for interface in ["vb", "vd"] {
        send(interface);
    }
    for (interface, flow) in [("vd", FLOW_KEPT), ("vj", FLOW_STRIPPED), ("vl", FLOW_CHOSEN)] {
        let mut sender = Sender::on(interface);
        tunnelled(flow).iter().for_each(|frame| sender.send(frame));
    }
    // They stay connected: the second sender to a single lane waits as long.
    let connect = |place: &str| TcpStream::connect(place).expect("the recorder listens");
    let [mut first, mut second, mut alone] =
        [LISTEN_CHANGED, LISTEN_CHANGED, LISTEN_PLAIN].map(connect);
    let (mut gone_to, _) = sender.accept().expect("the recorder connects");
    for connection in [&mut first, &mut second, &mut alone, &mut gone_to] {
        connection.write_all(stream).expect("sent");
    }
    // As much as fits into sockets that nobody reads from.
    let mut waiting = connect(LISTEN_PLAIN);
    waiting.write_all(&stream[..stream.len() / 4]).expect("sent");
    mirror();
    wait_for("everything is counted", PATIENCE, || {
        let status = recorder.status();
        let lanes = status["lanes"].as_array().expect("lanes").iter();
        let count =
            |field: &str| lanes.clone().filter_map(|lane| lane[field].as_u64()).sum::<u64>();
        let tunnelled = 3 * TUNNELLED * TUNNELS.len() as u64;
        // One of two ports; two; two senders, one and one; and to each target one of two tunnels.
        let due = 3 * PACKETS + tunnelled + 8 * PACKETS + 4 * MIRRORS;
        let done = count("stored") + count("shed") >= due && count("unreadable") >= 4 * MIRRORS;
        done.then_some(())
    });
    let elapsed = begin.elapsed();
    look(ns, site, recorder, elapsed)
}

fn others_config(site: &Site) -> String {
    let (store, socket, port) = (site.store(), site.file("socket"), Stamp::port(1));
    let ring = "ring: 4MiB";
    format!(
        "store: {}\napi:\n  socket: {}\ncapture:\n\
         \x20 - {{interface: va, source: af_xdp, udp_ports: [{port}], busy_poll: true, {ring}}}\n\
         \x20 - {{interface: vc, source: af_xdp, {ring}}}\n\
         \x20 - {{interface: vi, decap: strip, {ring}}}\n\
         \x20 - {{interface: vk, decap: strip, decap_tunnels: [vxlan], \
         vxlan_ports: [{PORT_CHOSEN}], {ring}}}\n\
         pcap_over_ip:\n\
         \x20 - {{listen: '{LISTEN_CHANGED}', lanes: 2, interface: far0, \
         snaplen: {SNAPLEN_STREAM}, filter: udp dst port {port}}}\n\
         \x20 - {{listen: '{LISTEN_PLAIN}'}}\n\
         \x20 - {{connect: '{CONNECT}'}}\n\
         mirror_targets:\n\
         \x20 - {{listen: '{TARGET_PLAIN}'}}\n\
         \x20 - {{listen: '{TARGET_CHANGED}', tunnel: geneve, lanes: 2, \
         snaplen: {SNAPLEN_TARGET}, filter: udp dst port {port}, buffer: 1MiB}}\n",
        store.display(),
        socket.display()
    )
}

/// To both targets the same: for each of two ports inside, a VXLAN and a GENEVE of each socket.
fn mirror() {
    for number in 0..MIRRORS {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        for run in [0, 1] {
            let frame = |flow| {
                let bytes = PACKET_BYTES;
                Stamp { run, number, sent_ns: 0, flow, bytes, vlan: 0 }.frame()
            };
            let [in_vxlan, in_geneve] = FLOWS_MIRRORED.map(frame);
            for datagram in [vxlan(0, 1, &in_vxlan), geneve(0, 1, &in_geneve)] {
                for target in [TARGET_PLAIN, TARGET_CHANGED] {
                    // The kernel writes the header of UDP itself.
                    socket.send_to(&datagram[8..], target).expect("loopback");
                }
            }
        }
    }
}

/// To three interfaces and three targets the same packets twice, with more than the default window
/// between.
fn doubled(ns: &Namespace) -> Seen {
    let site = site(1);
    let (store, socket) = (site.store(), site.file("socket"));
    let long = "duplicates_window: 10s";
    let entries = |key: &str, values: [&str; 3]| {
        let keys =
            [format!("duplicates: mark, {long}"), long.to_owned(), "duplicates: mark".into()];
        let entry = |(keys, value)| format!("  - {{{key}: '{value}', {keys}}}\n");
        keys.into_iter().zip(values).map(entry).collect::<String>()
    };
    let config = format!(
        "store: {}\napi:\n  socket: {}\ncapture:\n{}mirror_targets:\n{}",
        store.display(),
        socket.display(),
        entries("interface", ["va", "vi", "vk"]),
        entries("listen", TARGETS_DOUBLED)
    );
    let recorder = site.start(&config, &socket);
    let begin = Instant::now();
    let mut senders = ["vb", "vj", "vl"].map(Sender::on);
    let mirror = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    for round in 0..2 {
        if round > 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
        for number in 0..COPIES {
            let (bytes, flow) = (PACKET_BYTES, FLOW_KEPT);
            let frame = Stamp { run: 1, number, sent_ns: 0, flow, bytes, vlan: 0 }.frame();
            senders.iter_mut().for_each(|sender| sender.send(&frame));
            for target in TARGETS_DOUBLED {
                mirror.send_to(&vxlan(0, 1, &frame)[8..], target).expect("loopback");
            }
        }
    }
    wait_for("everything is stored", PATIENCE, || {
        let status = recorder.status();
        let lanes = status["lanes"].as_array().expect("lanes").iter();
        (lanes.filter_map(|lane| lane["stored"].as_u64()).sum::<u64>() == 12 * COPIES).then_some(())
    });
    let elapsed = begin.elapsed();
    look(ns, site, recorder, elapsed)
}

fn replayed(ns: &Namespace, decap: &str) -> Seen {
    let site = site(1);
    let (file, socket) = (site.file("in.pcap"), site.file("socket"));
    let packet = |data: Vec<u8>| {
        let ts_ns = 1_700_000_000_000_000_000;
        Packet { ts_ns, orig_len: data.len() as u32, data }
    };
    let packets: Vec<_> = tunnelled(FLOW_KEPT).into_iter().map(packet).collect();
    write_pcap(&file, &packets);
    let config = format!(
        "store: {}\napi:\n  socket: {}\nreplay:\n  file: {}\n{decap}",
        site.store().display(),
        socket.display(),
        file.display()
    );
    let begin = Instant::now();
    let recorder = site.start(&config, &socket);
    wait_for("the replay", PATIENCE, || {
        (recorder.status()["lanes"][0]["stored"] == packets.len()).then_some(())
    });
    let elapsed = begin.elapsed();
    look(ns, site, recorder, elapsed)
}

/// [`TUNNELLED`] frames in each of [`TUNNELS`].
fn tunnelled(flow: u16) -> Vec<Vec<u8>> {
    let whole = |run: u16, number: u64| {
        let frame = Stamp { run, number, sent_ns: 0, flow, bytes: 200, vlan: 0 }.frame();
        let datagram = match TUNNELS.iter().position(|tunnel| *tunnel == run) {
            Some(0) => vxlan(flow, 1, &frame),
            Some(1) => udp(flow, PORT_CHOSEN, &vxlan(flow, 1, &frame)[8..]),
            _ => geneve(flow, 1, &frame),
        };
        let (from, to) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        ethernet(1, 2, 0x0800, &ipv4(from, to, 17, &[], Fragment::Whole, &datagram))
    };
    let numbers = |run| (0..TUNNELLED).map(move |number| (run, number));
    TUNNELS.into_iter().flat_map(numbers).map(|(run, number)| whole(run, number)).collect()
}

/// Of packets of a flow, by tunnel: how many came without and with what was around them.
pub(crate) fn tunnels_of(seen: &Seen, flow: u16) -> [(u64, u64); 3] {
    let mut counts: BTreeMap<u16, (u64, u64)> = BTreeMap::new();
    // What was cut is not what its stamp describes.
    let whole = seen.packets.iter().filter(|it| it.data.len() == it.wire_len as usize);
    for packet in whole {
        let bare = Stamp::read(&packet.data);
        let kept = packet.data.get(OUTER_BYTES..).and_then(Stamp::read);
        if let Some(stamp) = bare.filter(|stamp| stamp.flow == flow) {
            counts.entry(stamp.run).or_default().0 += 1;
        } else if let Some(stamp) = kept.filter(|stamp| stamp.flow == flow) {
            counts.entry(stamp.run).or_default().1 += 1;
        }
    }
    TUNNELS.map(|run| counts.get(&run).copied().unwrap_or_default())
}
