//! Outer headers are removed: scapy builds the frames and says what is inside, tshark reads both.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufReader;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;

use wirevault_format::LinkType;
use wirevault_format::pcapng::{Event, OPTION_EPB_OUTER, Reader, options};
use wirevault_packet::OuterText;
use wirevault_testkit::net::{Namespace, Sender, wait_for};
use wirevault_tests::captures::parse_pcap;
use wirevault_tests::frames::{Fragment, ethernet, ipv4, udp, vxlan};
use wirevault_tests::readers::{Reader as Oracle, python, start};
use wirevault_tests::recorder::{PATIENCE, Recorder, Site, lane_count};

const SCAPY: &str = include_str!("../src/encapsulations.py");
const OPTIONS: &str = "    ring: 32MiB\nbuffer:\n  size: 16MiB\n";
/// Everything that can be removed.
const ALL: &str = "    decap: strip\n    decap_tunnels: [vlan, mpls, vxlan, geneve, gre, erspan, \
                   gtp_u, ip_in_ip]\n";
/// What tshark cannot know by itself: a VXLAN port, and what two labels carry.
const DECODE_AS: [&str; 6] = [
    "-d",
    "udp.port==8472,vxlan",
    "-d",
    "mpls.label==102,pwethnocw",
    "-d",
    "mpls.label==103,pwethcw",
];

/// What is expected of a frame, or was found of one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Inner {
    link: LinkType,
    wire_len: u32,
    outer: String,
    data: Vec<u8>,
}

/// Frames with their names, and what is inside.
struct Frames {
    names: Vec<String>,
    frames: Vec<Vec<u8>>,
    inner: Vec<Inner>,
}

/// `None`, loudly, without scapy.
fn frames(site: &Site) -> Option<Frames> {
    let (pcap, text) = (site.file("outer.pcap"), site.file("inner.txt"));
    let output = python("scapy", SCAPY, &[path(&pcap), path(&text)])?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let file = fs::read(&pcap).expect("scapy's file");
    let frames: Vec<_> = parse_pcap(&file).into_iter().map(|packet| packet.data).collect();
    let (mut names, mut inner) = (Vec::new(), Vec::new());
    for line in fs::read_to_string(&text).expect("scapy's answer").lines() {
        let [name, link, wire_len, outer, hex] =
            line.split('|').collect::<Vec<_>>().try_into().expect("five fields");
        names.push(name.to_owned());
        inner.push(Inner {
            link: LinkType(link.parse().expect("a number")),
            wire_len: wire_len.parse().expect("a number"),
            outer: outer.to_owned(),
            data: bytes(hex),
        });
    }
    assert!(names.len() > 30 && frames.len() == names.len());
    Some(Frames { names, frames, inner })
}

fn bytes(hex: &str) -> Vec<u8> {
    let pair = |two: &[u8]| {
        let text = std::str::from_utf8(two).expect("digits");
        u8::from_str_radix(text, 16).expect("digits")
    };
    hex.as_bytes().chunks(2).map(pair).collect()
}

fn path(path: &Path) -> &str {
    path.to_str().expect("the folder has a plain name")
}

fn wait_until_stored(recorder: &Recorder, packets: u64) -> serde_json::Value {
    wait_for("everything is stored", PATIENCE, || {
        let status = recorder.status();
        (lane_count(&status, "stored") >= packets).then_some(status)
    })
}

/// Packets of an answer with what their options say of outer headers.
fn answer(file: &Path) -> Vec<Inner> {
    let mut reader = Reader::new(BufReader::new(File::open(file).expect("an answer's file")));
    let mut packets = Vec::new();
    while let Some(event) = reader.next_event().expect("a readable answer") {
        let Event::Packet(record) = event else { continue };
        let outer = options(record.options).map(|option| option.expect("a whole option"));
        let outer = outer.filter(|option| option.code == OPTION_EPB_OUTER);
        let outer = outer.map(|option| OuterText(option.value).to_string()).collect();
        let (wire_len, data, id) = (record.orig_len, record.data.to_vec(), record.interface);
        let link = LinkType::NULL;
        packets.push((id, Inner { link, wire_len, outer, data }));
    }
    let links: Vec<_> = reader.interfaces().iter().map(|one| one.link_type).collect();
    let with_link = |(id, inner): (u32, Inner)| Inner { link: links[id as usize], ..inner };
    packets.into_iter().map(with_link).collect()
}

fn query(recorder: &Recorder, file: &Path, filter: &[&str]) -> Vec<Inner> {
    let output = recorder.ask("query", &[&["-w", path(file)], filter].concat());
    // A filter that shed packets makes an answer incomplete, exit code 3.
    assert!(matches!(output.status.code(), Some(0 | 1 | 3)), "{output:?}");
    answer(file)
}

/// For each packet of a file the innermost addresses and ports that tshark finds.
fn innermost(file: &Path) -> Option<Vec<String>> {
    let fields = [
        "-n",
        "-T",
        "fields",
        "-E",
        "occurrence=l",
        "-e",
        "ip.id",
        "-e",
        "ip.src",
        "-e",
        "ipv6.src",
        "-e",
        "tcp.srcport",
        "-e",
        "udp.srcport",
        "-e",
        "icmp.type",
        "-e",
        "arp.dst.proto_ipv4",
        "-r",
    ];
    let output = start("tshark", &[&fields[..], &[path(file)], &DECODE_AS].concat())?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

#[test]
fn what_is_stored_is_what_scapy_put_inside() {
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    let site = Site::new("512MiB", 1);
    let Some(made) = frames(&site) else { return };
    let recorder = site.record("va", &format!("{ALL}{OPTIONS}"));
    let mut sender = Sender::on("vb");
    made.frames.iter().for_each(|frame| sender.send(frame));
    let sent = made.frames.len() as u64;
    let status = wait_until_stored(&recorder, sent);
    assert_eq!((lane_count(&status, "received"), lane_count(&status, "dropped")), (sent, 0));
    let removed = made.inner.iter().filter(|inner| !inner.outer.is_empty()).count() as u64;
    assert_eq!(lane_count(&status, "stripped"), removed);
    assert_eq!(lane_count(&status, "kept_fragments"), 2);
    assert_eq!(lane_count(&status, "truncated_mirror"), 1);

    let file = site.file("answer.pcapng");
    let found = query(&recorder, &file, &[]);
    assert_eq!(found.len(), made.inner.len());
    for ((name, expected), found) in made.names.iter().zip(&made.inner).zip(&found) {
        assert_eq!(found, expected, "{name}");
    }

    // A filter asks for what is inside, in both link types, and the index prunes by it.
    let hosts = query(&recorder, &site.file("host.pcapng"), &["src host 192.168.7.9"]);
    assert_eq!(hosts.len(), 1);
    assert_eq!(
        (hosts[0].link, &hosts[0].outer[..]),
        (LinkType::RAW, "IP 10.0.0.1 > 10.0.0.2, GRE")
    );
    let outside = query(&recorder, &site.file("none.pcapng"), &["host 10.0.0.1"]);
    let stayed = made.inner.iter().filter(|inner| inner.outer.is_empty()).count();
    assert_eq!(outside.len(), stayed - 1, "what was removed is no longer there to be found");

    // What was removed can be asked for.
    for (tunnel, names) in [
        ("vni=12", &["a gateway load balancer's"][..]),
        ("gre_key=77", &["gre with all fields"]),
        ("session=1023", &["erspan III"]),
        ("teid=3", &["gtp-u with an extension"]),
        ("vlan=8", &["a tagged frame in vxlan"]),
        ("mpls=101", &["mpls"]),
        // The fragment was stored as it came, with its headers.
        ("vni=5", &["vxlan", "a first fragment"]),
        ("vni=404", &[]),
    ] {
        let found = query(&recorder, &site.file("tunnel.pcapng"), &["--tunnel", tunnel]);
        let expected = made.names.iter().zip(&made.inner);
        let expected = expected.filter(|(name, _)| names.contains(&name.as_str()));
        let expected: Vec<_> = expected.map(|(_, inner)| inner.clone()).collect();
        assert_eq!((&found, found.len()), (&expected, names.len()), "{tunnel}");
    }
    let flows = recorder.ask("flows", &["--tunnel", "gre_key=77"]);
    let flows = String::from_utf8_lossy(&flows.stdout).into_owned();
    assert!(flows.contains("192.168.7.10") && !flows.contains("192.168.7.9 "), "{flows}");
    let lines = recorder.ask("query", &["--tunnel", "vni=12"]);
    let lines = String::from_utf8_lossy(&lines.stdout).into_owned();
    assert!(lines.contains("[IP 10.0.0.1 > 10.0.0.2, GENEVE vni 0, IP 10.1.0.1"), "{lines}");
    let refused = recorder.ask("query", &["--tunnel", "vni=x"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");

    // Other readers take the answer, and tshark finds inside the original what is stored here.
    for reader in [Oracle::Tshark, Oracle::Capinfos, Oracle::Scapy] {
        assert!(reader.count(&file).is_none_or(|count| count == sent), "{reader:?}");
    }
    let theirs = innermost(&site.file("outer.pcap")).zip(innermost(&file));
    for (name, (whole, inside)) in
        made.names.iter().zip(theirs.map_or(Vec::new(), |(a, b)| a.into_iter().zip(b).collect()))
    {
        // Where only ARP or IPv6 is inside, the last IPv4 address of the whole is an outer one.
        let of_inside = |line: &str| -> Vec<String> {
            let fields = inside.split('\t').zip(line.split('\t'));
            fields.filter(|(have, _)| !have.is_empty()).map(|(_, it)| it.to_owned()).collect()
        };
        assert_eq!(of_inside(&whole), of_inside(&inside), "{name}");
    }
    assert!(recorder.terminate().success());
    let verify = site.offline("verify", &[]);
    assert_eq!(verify.status.code(), Some(0), "{verify:?}");
}

#[test]
fn packets_are_kept_as_they_came_unless_told_otherwise() {
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    let site = Site::new("512MiB", 1);
    let Some(made) = frames(&site) else { return };
    let recorder = site.record("va", OPTIONS);
    let mut sender = Sender::on("vb");
    made.frames.iter().for_each(|frame| sender.send(frame));
    let status = wait_until_stored(&recorder, made.frames.len() as u64);
    assert_eq!(lane_count(&status, "stripped"), 0);
    let found = query(&recorder, &site.file("answer.pcapng"), &[]);
    let data: Vec<_> = found.iter().map(|packet| packet.data.clone()).collect();
    assert!(data == made.frames, "byte for byte");
    assert!(found.iter().all(|packet| packet.outer.is_empty()));
    // Headers that are still there are asked for in the same words.
    let found = query(&recorder, &site.file("tunnel.pcapng"), &["--tunnel", "vni=12"]);
    assert_eq!(found.len(), 1);
    let found = query(&recorder, &site.file("tunnel.pcapng"), &["--tunnel", "teid=3", "ip"]);
    assert_eq!(found.len(), 1);
    assert!(recorder.terminate().success());
}

#[test]
fn a_mirror_target_stores_what_was_mirrored() {
    let Some(ns) = Namespace::new() else { return };
    ns.ip(&["link", "set", "lo", "up"]);
    ns.add_veth("va", "vb");
    let site = Site::new("512MiB", 1);
    let Some(made) = frames(&site) else { return };
    let targets = "mirror_targets:\n  - listen: 127.0.0.1:4789\n    filter: not arp\n  - listen: \
                   127.0.0.1:6081\n    tunnel: geneve\n";
    let recorder = site.record("va", &format!("{OPTIONS}{targets}"));
    let sender = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let mut expected = BTreeMap::new();
    for ((name, frame), inner) in made.names.iter().zip(&made.frames).zip(&made.inner) {
        // Frames without tags or options: UDP's payload starts at byte 42.
        let port = match name.as_str() {
            "vxlan" | "arp in vxlan" | "a frame that the mirror cut" => 4789,
            "geneve" | "geneve with IPv6" | "a gateway load balancer's" => 6081,
            _ => continue,
        };
        sender.send_to(&frame[42..], ("127.0.0.1", port)).expect("loopback");
        if name != "arp in vxlan" {
            let outer = inner.outer.replace("10.0.0.1 > 10.0.0.2", "127.0.0.1 > 127.0.0.1");
            expected.insert(inner.data.clone(), Inner { outer, ..inner.clone() });
        }
    }
    sender.send_to(b"a health check", ("127.0.0.1", 4789)).expect("loopback");
    let status = wait_for("everything is stored", PATIENCE, || {
        let status = recorder.status();
        let stored =
            |lane: usize| status["lanes"][lane]["stored"].as_u64() == Some([0, 2, 3][lane]);
        (stored(1) && stored(2)).then_some(status)
    });
    let target = &status["lanes"][1];
    assert_eq!(
        (target["source"].as_str(), target["state"].as_str()),
        (Some("udp_target"), Some("running"))
    );
    assert_eq!((target["shed"].as_u64(), target["unreadable"].as_u64()), (Some(1), Some(1)));
    let truncated = [1, 2].map(|lane| status["lanes"][lane]["truncated_mirror"].as_u64());
    assert_eq!(truncated, [Some(1), Some(0)]);
    let found = query(&recorder, &site.file("answer.pcapng"), &[]);
    assert_eq!(found.len(), expected.len());
    for packet in found {
        assert_eq!(Some(&packet), expected.get(&packet.data));
    }
    assert!(recorder.terminate().success());
}

#[test]
fn an_import_removes_outer_headers_as_a_lane_does() {
    let site = Site::new("512MiB", 1);
    let Some(made) = frames(&site) else { return };
    let all = "vlan,mpls,vxlan,geneve,gre,erspan,gtp_u,ip_in_ip";
    let pcap = site.file("outer.pcap");
    let flags = ["--strip", "--decap-tunnels", all, "--json", path(&pcap)];
    let report = site.offline("import", &flags);
    assert_eq!(report.status.code(), Some(0), "{report:?}");
    let report: serde_json::Value = serde_json::from_slice(&report.stdout).expect("a report");
    let removed = made.inner.iter().filter(|inner| !inner.outer.is_empty()).count() as u64;
    let counts = ["stripped", "kept_fragments", "truncated_mirror"].map(|it| report[it].as_u64());
    assert_eq!(counts, [Some(removed), Some(2), Some(1)]);
    let file = site.file("answer.pcapng");
    let output = site.offline("query", &["-w", path(&file)]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(answer(&file), made.inner);

    for wrong in [&["--decap-tunnels", "vxlan"][..], &["--vxlan-ports", "0"], &["--strip=x"]] {
        let refused = site.offline("import", &[wrong, &[path(&pcap)]].concat());
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    }
}

/// Whoever reads a record finds the same flows in it: while it is written, from its files, after a
/// crash, and from an answer that was imported again.
#[test]
fn a_port_of_vxlan_is_known_to_whoever_reads_the_record() {
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    let site = Site::new("512MiB", 1);
    let Some(made) = frames(&site) else { return };
    let at = made.names.iter().position(|name| name == "vxlan").expect("a frame of that name");
    let mut frame = made.frames[at].clone();
    frame[36..38].copy_from_slice(&9999u16.to_be_bytes());
    let inside = |flows: std::process::Output| -> bool {
        let text = String::from_utf8_lossy(&flows.stdout).into_owned();
        assert!(text.contains("10.0.0.1") || text.contains("192.168"), "{flows:?}");
        text.contains("VXLAN vni 5")
    };
    let tunnel = ["--tunnel", "vni=5", "--json"];

    let recorder = site.record("va", &format!("    vxlan_ports: [4789, 9999]\n{OPTIONS}"));
    Sender::on("vb").send(&frame);
    wait_until_stored(&recorder, 1);
    assert!(inside(recorder.ask("flows", &["--json"])));
    assert_eq!(recorder.ask("flows", &tunnel).status.code(), Some(0));
    recorder.kill();
    assert!(inside(site.offline("flows", &["--json"])), "from chunks without an index");

    let recorder = site.record("va", OPTIONS);
    assert!(inside(recorder.ask("flows", &["--json"])), "from the index made anew");
    let file = site.file("answer.pcapng");
    assert_eq!(query(&recorder, &file, &["--tunnel", "vni=5"]).len(), 1);
    assert!(recorder.terminate().success());

    let again = Site::new("512MiB", 1);
    assert_eq!(again.offline("import", &[path(&file)]).status.code(), Some(0));
    assert!(inside(again.offline("flows", &["--json"])), "the answer says what the record knew");

    let unknowing = Site::new("512MiB", 1);
    let pcap = unknowing.file("answer.pcap");
    let classic = again.offline("query", &["--format", "pcap", "-w", path(&pcap)]);
    assert_eq!(classic.status.code(), Some(0), "{classic:?}");
    assert_eq!(unknowing.offline("import", &[path(&pcap)]).status.code(), Some(0));
    assert!(!inside(unknowing.offline("flows", &["--json"])), "a pcap file says nothing of ports");
    let told = ["--vxlan-ports", "4789,9999", path(&pcap)];
    assert_eq!(unknowing.offline("import", &told).status.code(), Some(0));
    assert!(inside(unknowing.offline("flows", &["--json"])));
}

/// One packet is mirrored where it leaves and where it arrives: two tunnels, other addresses of the
/// link, one hop less.
#[test]
fn copies_of_overlapping_mirrors_are_marked_and_can_be_left_out() {
    let Some(ns) = Namespace::new() else { return };
    ns.ip(&["link", "set", "lo", "up"]);
    let site = Site::new("512MiB", 1);
    let input = "mirror_targets: [{listen: '127.0.0.1:4789', lanes: 2, duplicates: mark, \
                 duplicates_window: 10s}]\nbuffer: {size: 16MiB}\n";
    let recorder = site.record_from(input);
    let copies = |number: u8, link: u32, hops: u8| {
        let payload = [&[number; 40][..], b"the same at both ends"].concat();
        let (from, to) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let mut packet = ipv4(from, to, 17, &[], Fragment::Whole, &udp(7, 9, &payload));
        packet[8] = hops;
        vxlan(0, link, &ethernet(link, link + 1, 0x0800, &packet))[8..].to_vec()
    };
    // Some of many sockets reach the one lane, some the other.
    const PACKETS: u8 = 40;
    for number in 0..PACKETS {
        for (link, hops) in [(1, 64), (5, 63)] {
            let sender = UdpSocket::bind("127.0.0.1:0").expect("a socket");
            sender.send_to(&copies(number, link, hops), "127.0.0.1:4789").expect("loopback");
        }
    }
    let sum = |status: &serde_json::Value, field: &str| -> u64 {
        let lanes = status["lanes"].as_array().expect("lanes").iter();
        lanes.filter_map(|lane| lane[field].as_u64()).sum()
    };
    let status = wait_for("everything is stored", PATIENCE, || {
        Some(recorder.status()).filter(|status| sum(status, "stored") == 2 * u64::from(PACKETS))
    });
    // Two lanes that take both copies at once may miss each other's. Of 40 pairs some reach one
    // lane together, and there none is missed.
    let marked = sum(&status, "duplicates");
    assert!((1..=u64::from(PACKETS)).contains(&marked), "{marked}");
    let count = |args: &[&str]| {
        let output = recorder.ask("query", &[&["--count"], args].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split_whitespace().find_map(|word| word.parse::<u64>().ok()).expect("a number")
    };
    assert_eq!((count(&[]), count(&["udp"])), (2 * u64::from(PACKETS), 2 * u64::from(PACKETS)));
    assert_eq!(count(&["--without-duplicates"]), 2 * u64::from(PACKETS) - marked);
    let lines = recorder.ask("query", &[]).stdout;
    let lines = String::from_utf8_lossy(&lines).into_owned();
    assert_eq!(
        lines.matches("[duplicate] [IP 127.0.0.1 > 127.0.0.1, VXLAN").count() as u64,
        marked
    );
    let packets = |args: &[&str]| -> u64 {
        let flows = recorder.ask("flows", &[&["--json"], args].concat());
        let flows = String::from_utf8_lossy(&flows.stdout).into_owned();
        let flows = flows.lines().filter_map(|line| serde_json::from_str(line).ok());
        flows.filter_map(|flow: serde_json::Value| flow["packets"].as_u64()).sum()
    };
    assert_eq!(packets(&[]), 2 * u64::from(PACKETS));
    assert_eq!(packets(&["--without-duplicates"]), 2 * u64::from(PACKETS) - marked);

    // The mark comes along with an answer, and stays in what is made of it.
    let file = site.file("answer.pcapng");
    assert_eq!(recorder.ask("query", &["-w", path(&file)]).status.code(), Some(0));
    assert!(recorder.terminate().success());
    let again = Site::new("512MiB", 1);
    assert_eq!(again.offline("import", &[path(&file)]).status.code(), Some(0));
    let output = again.offline("query", &["--without-duplicates", "--count"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let left = (2 * u64::from(PACKETS) - marked).to_string();
    assert!(text.split_whitespace().any(|word| word == left), "{text}");
    for reader in [Oracle::Tshark, Oracle::Capinfos, Oracle::Scapy] {
        let counted = reader.count(&file);
        assert!(counted.is_none_or(|count| count == 2 * u64::from(PACKETS)), "{reader:?}");
    }
}
