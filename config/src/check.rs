//! From the tree to a [`Config`]: one function for each section, then the rules between keys.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::PathBuf;

use wirevault_format::limits::CHUNK_BYTES;

use crate::fault::{Fault, Mark};
use crate::section::{Faults, Item, Section, Value};
use crate::settings::{
    Api, Buffer, Capture, Config, Decap, DecapMode, Hugepages, Input, LogLevel, MirrorTarget,
    MirrorTunnel, PcapOverIp, Principal, Replay, Sender, SourceKind, Speed, Tunnel,
};
use crate::tree::{self, Body, Node};
use crate::units::size_text;
use crate::{Given, LANE_CHUNKS_MIN, LANES_MAX};

/// Checks a whole text.
pub(crate) fn config(text: &str, given: &Given) -> Result<Config, Vec<Fault>> {
    let (tree, faults) = tree::read(text);
    let Some(tree) = tree else { return Err(faults) };
    let faults: Faults = RefCell::new(faults);
    let config = whole(&tree, given, &faults);
    match (config, faults.into_inner()) {
        (Some(config), faults) if faults.is_empty() => Ok(config),
        (_, faults) => Err(faults),
    }
}

/// `None` only if there is a fault.
fn whole(tree: &Node, given: &Given, faults: &Faults) -> Option<Config> {
    let root = Section::root(tree, faults);
    if !matches!(tree.body, Body::Map(_) | Body::Nothing) {
        // What is missing in a text that is no mapping is of no interest.
        return None;
    }
    let config = Config {
        stores: stores(&root, given, faults),
        key_file: root.path("key_file"),
        // The missing input must not hide the faults of the keys after it.
        input: input(&root, faults).unwrap_or(Input::Capture(Vec::new())),
        pcap_over_ip: senders(&root, faults),
        mirror_targets: root.sections("mirror_targets").iter().filter_map(mirror_target).collect(),
        buffer: buffer(&root.section("buffer")),
        flush_age: root.duration("flush_age"),
        commit_interval: root.duration("commit_interval"),
        segment_age: root.duration("segment_age"),
        api: api(&root.section("api")),
        lane_cpus: cpus(&root.section("cpus").list("lanes"), faults),
        log: choice(&root, "log", LogLevel::from_name, LogLevel::Info),
    };
    lanes_fit(&config, &root);
    Some(config)
}

fn stores(root: &Section<'_>, given: &Given, faults: &Faults) -> Vec<PathBuf> {
    if !given.store.is_empty() {
        if root.has("store") {
            root.list("store");
        }
        return given.store.clone();
    }
    let items = root.list("store");
    let unique = without_repeats(&items, faults, "the directory", |item| match &item.value {
        Value::Text(text) => Some(PathBuf::from(text).components().collect::<PathBuf>()),
        _ => None,
    });
    unique.into_iter().collect()
}

/// Keys of what packets come from now; any of them may stand alone.
const LIVE: [&str; 3] = ["capture", "pcap_over_ip", "mirror_targets"];

/// Interfaces, or a file.
fn input(root: &Section<'_>, faults: &Faults) -> Option<Input> {
    let live = LIVE.into_iter().find(|name| root.has(name));
    match (live, root.has("replay")) {
        (Some(_), false) => Some(Input::Capture(captures(root, faults))),
        (None, true) => replay(&root.section("replay")).map(Input::Replay),
        (Some(live), true) => {
            let problem = format!("both `{live}` and `replay` are given");
            let way_out = "remove one: a daemon records what comes now, or a file".to_owned();
            root.fault("replay", problem, way_out);
            captures(root, faults);
            replay(&root.section("replay"));
            None
        }
        (None, false) => {
            let problem = "neither `capture`, `pcap_over_ip`, `mirror_targets` nor `replay` says \
                           where packets come from";
            let way_out = "add `capture:`, and under it `  - interface: eth0`, for example";
            root.fault("capture", problem.to_owned(), way_out.to_owned());
            None
        }
    }
}

fn senders(root: &Section<'_>, faults: &Faults) -> Vec<PcapOverIp> {
    let mut senders: Vec<PcapOverIp> = Vec::new();
    for section in root.sections("pcap_over_ip") {
        let Some(one) = sender(&section) else { continue };
        if senders.iter().any(|known| known.sender == one.sender) {
            let problem = "the address is there already".to_owned();
            let way_out = "merge the two entries; `lanes` sets how many senders are taken";
            faults
                .borrow_mut()
                .push(Fault::new(section.mark, &section.path, problem).way_out(way_out));
        }
        senders.push(one);
    }
    senders
}

fn sender(section: &Section<'_>) -> Option<PcapOverIp> {
    let (listen, connect) = (section.address("listen"), section.text("connect"));
    let lanes = section.number("lanes");
    let sender = match (listen, connect) {
        (Some(address), None) => Some(Sender::Listen(address)),
        (None, Some(host)) => {
            if lanes > 1 {
                let problem = format!("{lanes} lanes would each connect and get everything");
                section.fault("lanes", problem, "remove the key".to_owned());
            }
            Some(Sender::Connect(host))
        }
        (Some(_), Some(_)) => {
            let problem = "both `listen` and `connect` are given".to_owned();
            section.fault("connect", problem, "make two entries of them".to_owned());
            None
        }
        (None, None) => {
            if section.is_bare(&["listen", "connect"]) {
                let problem = "neither `listen` nor `connect` says who sends".to_owned();
                section.fault("listen", problem, "add `listen: 127.0.0.1:57012`".to_owned());
            }
            None
        }
    };
    let interface = section.text("interface");
    let snaplen_bytes = section.number("snaplen").try_into().unwrap_or(u32::MAX);
    let filter = section.text("filter");
    // The table keeps it far below the limit of its type.
    let lanes = lanes.try_into().unwrap_or(u16::MAX);
    Some(PcapOverIp { sender: sender?, lanes, interface, snaplen_bytes, filter })
}

fn captures(root: &Section<'_>, faults: &Faults) -> Vec<Capture> {
    let sections = root.sections("capture");
    let captures: Vec<Capture> = sections.iter().map(capture).collect();
    let names = sections.iter().zip(&captures).filter(|(_, one)| !one.interface.is_empty());
    let mut seen: Vec<(&str, Mark)> = Vec::new();
    for (section, one) in names {
        let mark = section.mark_of("interface");
        match seen.iter().find(|(name, _)| *name == one.interface) {
            Some((name, first)) => {
                let problem = format!("`{name}` is captured already, at line {}", first.line);
                let way_out = "merge the two entries; `lanes` sets the number of threads";
                let path = format!("{}.interface", section.path);
                faults.borrow_mut().push(Fault::new(mark, &path, problem).way_out(way_out));
            }
            None => seen.push((&one.interface, mark)),
        }
    }
    captures
}

fn capture(section: &Section<'_>) -> Capture {
    let source = choice(section, "source", SourceKind::from_name, SourceKind::Auto);
    let hardware_time = section.switch("hardware_time");
    let ports = section.list("udp_ports").into_iter();
    let port = |item: Item| match item.value {
        Value::Number(port) => u16::try_from(port).ok(),
        _ => None,
    };
    if hardware_time && source == SourceKind::AfXdp {
        let problem = "AF_XDP has no time stamps of the card".to_owned();
        section.fault("hardware_time", problem, "write `source: packet_mmap`".to_owned());
    }
    let (decap, udp_ports) = (decap(section), ports.filter_map(port).collect::<Vec<_>>());
    if decap.is_some() && !udp_ports.is_empty() && source != SourceKind::AfXdp {
        // A packet socket tests them in the lane's filter, which is asked after stripping.
        let problem = "with `decap: strip`, ports of outer headers can be selected by AF_XDP only";
        let way_out = "write `source: af_xdp`, or record these ports with `mirror_targets`";
        section.fault("udp_ports", problem.to_owned(), way_out.to_owned());
    }
    Capture {
        source,
        udp_ports,
        busy_poll: section.switch("busy_poll"),
        hardware_time,
        interface: section.text("interface").unwrap_or_default(),
        // The table keeps both far below the limits of their types.
        lanes: section.number("lanes").try_into().unwrap_or(u16::MAX),
        snaplen_bytes: section.number("snaplen").try_into().unwrap_or(u32::MAX),
        promiscuous: section.switch("promiscuous"),
        filter: section.text("filter"),
        ring_bytes: section.number("ring"),
        decap,
    }
}

/// What `strip` removes; the keys are the same for every source.
fn decap(section: &Section<'_>) -> Option<Decap> {
    let mode = choice(section, "decap", DecapMode::from_name, DecapMode::Keep);
    let tunnels = section.list("decap_tunnels").into_iter().filter_map(|item| match item.value {
        Value::Text(name) => Tunnel::from_name(&name),
        _ => None,
    });
    let mut tunnels: Vec<_> = tunnels.collect();
    if !section.has("decap_tunnels") {
        tunnels = TUNNELS_DEFAULT.to_vec();
    }
    let ports = section.list("vxlan_ports").into_iter().filter_map(|item| match item.value {
        Value::Number(port) => u16::try_from(port).ok(),
        _ => None,
    });
    let mut vxlan_ports: Vec<_> = ports.collect();
    if !section.has("vxlan_ports") {
        vxlan_ports = VXLAN_PORTS_DEFAULT.to_vec();
    }
    (mode == DecapMode::Strip).then_some(Decap { tunnels, vxlan_ports })
}

/// As the table says for an absent key; a test compares.
const TUNNELS_DEFAULT: [Tunnel; 7] = [
    Tunnel::Mpls,
    Tunnel::Vxlan,
    Tunnel::Geneve,
    Tunnel::Gre,
    Tunnel::Erspan,
    Tunnel::GtpU,
    Tunnel::IpInIp,
];
/// As the table says for an absent key; a test compares.
const VXLAN_PORTS_DEFAULT: [u16; 2] = [4789, 8472];

fn mirror_target(section: &Section<'_>) -> Option<MirrorTarget> {
    let tunnel = choice(section, "tunnel", MirrorTunnel::from_name, MirrorTunnel::Vxlan);
    let listen = section.address("listen");
    let target = |listen| MirrorTarget {
        listen,
        tunnel,
        lanes: section.number("lanes").try_into().unwrap_or(u16::MAX),
        snaplen_bytes: section.number("snaplen").try_into().unwrap_or(u32::MAX),
        filter: section.text("filter"),
        buffer_bytes: section.number("buffer"),
    };
    // Every key is looked at, whether or not there is an address.
    let target = target(listen.unwrap_or(SocketAddr::from(([0; 4], 0))));
    listen.map(|_| target)
}

fn replay(section: &Section<'_>) -> Option<Replay> {
    let file = section.path("file");
    let speed = choice(section, "speed", Speed::from_name, Speed::Full);
    let interface = section.text("interface");
    let decap = decap(section);
    Some(Replay { file: file?, speed, interface, decap })
}

fn buffer(section: &Section<'_>) -> Buffer {
    let hugepages = choice(section, "hugepages", Hugepages::from_name, Hugepages::Auto);
    Buffer { size_bytes: section.number("size"), hugepages }
}

fn api(section: &Section<'_>) -> Api {
    let principals = |name| {
        let items = section.list(name).into_iter();
        let principal = |item: Item| match item.value {
            Value::Principal(principal) => Some(principal),
            _ => None,
        };
        items.filter_map(principal).collect::<Vec<Principal>>()
    };
    Api {
        socket: section.path("socket").unwrap_or_default(),
        users: principals("users"),
        groups: principals("groups"),
    }
}

fn cpus(items: &[Item], faults: &Faults) -> Vec<u16> {
    let mut cpus = Vec::new();
    for item in items {
        let Value::Cpus { first, last } = item.value else { continue };
        for cpu in first..=last {
            if cpus.contains(&cpu) {
                let fault = Fault::new(item.mark, &item.path, format!("CPU {cpu} is there twice"));
                let way_out = "name another CPU: two lanes on one halve each other's speed";
                faults.borrow_mut().push(fault.way_out(way_out));
                break;
            }
            cpus.push(cpu);
        }
    }
    cpus
}

/// The rules that tie lanes to the machine's means.
fn lanes_fit(config: &Config, root: &Section<'_>) {
    let lanes = config.lanes();
    if lanes > LANES_MAX {
        let problem = format!("all inputs together have {lanes} lanes; {LANES_MAX} is the most");
        root.fault("capture", problem, "lower `lanes` of some of them".to_owned());
        return;
    }
    let (size, needed) = (config.buffer.size_bytes, buffer_needed(lanes));
    // A size of 0 stands for one that is refused already.
    if size != 0 && size < needed {
        let (size, needed) = (size_text(size), size_text(needed));
        let problem = format!(
            "{size} are too little for {lanes} lanes of {LANE_CHUNKS_MIN} chunks of {} each",
            size_text(CHUNK_BYTES as u64)
        );
        let section = root.section_quiet("buffer");
        let way_out = format!("write {needed} or more");
        section.fault("size", problem, way_out);
    }
    let cpus = config.lane_cpus.len();
    if cpus != 0 && cpus < lanes {
        let problem = format!("{cpus} CPUs are named for {lanes} lanes");
        let way_out = "name a CPU for every lane, or remove `cpus`".to_owned();
        root.section_quiet("cpus").fault("lanes", problem, way_out);
    }
}

fn buffer_needed(lanes: usize) -> u64 {
    lanes as u64 * LANE_CHUNKS_MIN * CHUNK_BYTES as u64
}

fn choice<T>(
    section: &Section<'_>,
    name: &str,
    from_name: impl Fn(&str) -> Option<T>,
    refused: T,
) -> T {
    section.text(name).and_then(|text| from_name(&text)).unwrap_or(refused)
}

/// The values that `read` makes of `items`; a fault for each that repeats an earlier one.
fn without_repeats<T: PartialEq>(
    items: &[Item],
    faults: &Faults,
    what: &str,
    read: impl Fn(&Item) -> Option<T>,
) -> Vec<T> {
    let mut unique = Vec::new();
    for item in items {
        match read(item) {
            Some(value) if unique.contains(&value) => {
                let problem = format!("{what} is there twice");
                let fault = Fault::new(item.mark, &item.path, problem);
                faults.borrow_mut().push(fault.way_out("remove one of the two"));
            }
            value => unique.extend(value),
        }
    }
    unique
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;

    const MINIMAL: &str = include_str!("../examples/minimal.yaml");

    fn read(text: &str) -> Config {
        config(text, &Given::default()).unwrap_or_else(|faults| panic!("{faults:#?}"))
    }

    /// Faults as `LINE:COLUMN: ...`, in the order of the file.
    fn faults(text: &str) -> Vec<String> {
        let mut faults = config(text, &Given::default()).expect_err(text);
        faults.sort_by_key(|fault| (fault.line, fault.column));
        faults.iter().map(Fault::to_string).collect()
    }

    fn one_fault(text: &str) -> String {
        let all = faults(text);
        assert_eq!(all.len(), 1, "{all:#?}");
        all.concat()
    }

    #[test]
    fn three_lines_are_enough() {
        assert_eq!(MINIMAL.lines().count(), 3);
        let config = read(MINIMAL);
        assert_eq!(config.stores, [Path::new("/var/lib/wirevault")]);
        let Input::Capture(interfaces) = &config.input else { panic!() };
        let expected = Capture {
            interface: "eth0".into(),
            lanes: 1,
            snaplen_bytes: 262_144,
            promiscuous: true,
            filter: None,
            ring_bytes: 64 << 20,
            source: SourceKind::Auto,
            udp_ports: Vec::new(),
            busy_poll: false,
            hardware_time: false,
            decap: None,
        };
        assert_eq!(interfaces[..], [expected]);
        assert_eq!(config.buffer, Buffer { size_bytes: 64 << 20, hugepages: Hugepages::Auto });
        assert_eq!(config.flush_age, Duration::from_millis(250));
        assert_eq!(config.commit_interval, Duration::from_millis(100));
        assert_eq!(config.segment_age, Duration::from_secs(3600));
        assert_eq!(config.api.socket, Path::new("/run/wirevault/wirevault.sock"));
        assert!(config.api.users.is_empty() && config.api.groups.is_empty());
        assert!(config.key_file.is_none() && config.lane_cpus.is_empty());
        assert_eq!((config.log, config.lanes()), (LogLevel::Info, 1));
    }

    #[test]
    fn every_key_is_taken_over() {
        let config = read(
            "store: [/a, /b]\nkey_file: /k\ncapture:\n  - {interface: eth0, lanes: 2, \
             snaplen: 128, promiscuous: false, filter: 'tcp port 80', ring: 8MiB, source: af_xdp, \
             udp_ports: [4789, 6081], busy_poll: true}\n  \
             - {interface: lo, hardware_time: true}\nbuffer: {size: 128MiB, \
             hugepages: 1GiB}\nflush_age: 10ms\n\
             commit_interval: 1s\nsegment_age: 2h\napi: {socket: /s, users: [ops, 1000], \
             groups: wheel}\ncpus: {lanes: [4, 6-8]}\nlog: debug\n",
        );
        assert_eq!(config.stores, [Path::new("/a"), Path::new("/b")]);
        assert_eq!(config.key_file.as_deref(), Some(Path::new("/k")));
        let Input::Capture(interfaces) = &config.input else { panic!() };
        let expected = Capture {
            interface: "eth0".into(),
            lanes: 2,
            snaplen_bytes: 128,
            promiscuous: false,
            filter: Some("tcp port 80".into()),
            ring_bytes: 8 << 20,
            source: SourceKind::AfXdp,
            udp_ports: vec![4789, 6081],
            busy_poll: true,
            hardware_time: false,
            decap: None,
        };
        assert_eq!(interfaces[0], expected);
        assert_eq!((interfaces[1].interface.as_str(), interfaces[1].hardware_time), ("lo", true));
        assert_eq!(config.lanes(), 3);
        assert_eq!(config.buffer, Buffer { size_bytes: 128 << 20, hugepages: Hugepages::Size1GiB });
        assert_eq!(config.flush_age, Duration::from_millis(10));
        assert_eq!(config.commit_interval, Duration::from_secs(1));
        assert_eq!(config.segment_age, Duration::from_secs(7200));
        assert_eq!(config.api.socket, Path::new("/s"));
        assert_eq!(config.api.users, [Principal::Name("ops".into()), Principal::Id(1000)]);
        assert_eq!(config.api.groups, [Principal::Name("wheel".into())]);
        assert_eq!(config.lane_cpus, [4, 6, 7, 8]);
        assert_eq!(config.log, LogLevel::Debug);
    }

    #[test]
    fn a_file_may_take_the_place_of_interfaces() {
        let config =
            read("store: /a\nreplay:\n  file: /x.pcap\n  speed: realtime\n  interface: a\n");
        let expected = Replay {
            file: "/x.pcap".into(),
            speed: Speed::RealTime,
            interface: Some("a".into()),
            decap: None,
        };
        assert_eq!(config.input, Input::Replay(expected));
        assert_eq!(config.lanes(), 1);
    }

    #[test]
    fn packets_may_come_over_tcp_too() {
        let text = "store: /a\npcap_over_ip:\n  - {listen: '127.0.0.1:57012', lanes: 2, \
                    interface: tap, snaplen: 128, filter: ip}\n  - connect: far:57012\n";
        let config = read(text);
        let listening = PcapOverIp {
            sender: Sender::Listen("127.0.0.1:57012".parse().unwrap()),
            lanes: 2,
            interface: Some("tap".into()),
            snaplen_bytes: 128,
            filter: Some("ip".into()),
        };
        let connecting = PcapOverIp {
            sender: Sender::Connect("far:57012".into()),
            lanes: 1,
            interface: None,
            snaplen_bytes: 262_144,
            filter: None,
        };
        assert_eq!(config.pcap_over_ip, [listening, connecting]);
        assert_eq!((config.input.clone(), config.lanes()), (Input::Capture(Vec::new()), 3));
        let beside = read(&format!("{MINIMAL}pcap_over_ip: [{{connect: 'a:1'}}]\n"));
        assert_eq!((beside.lanes(), beside.pcap_over_ip.len()), (2, 1));

        let of = |entries: &str| one_fault(&format!("store: /a\npcap_over_ip: [{entries}]\n"));
        assert!(of("{lanes: 2}").contains("neither `listen` nor `connect`"));
        assert!(of("{listen: '1.2.3.4:5', connect: 'a:1'}").contains("make two entries"));
        assert!(of("{connect: 'a:1', lanes: 2}").contains("2 lanes would each connect"));
        assert!(of("{connect: 'a:1'}, {connect: 'a:1'}").contains("pcap_over_ip[1]: the address"));
        assert!(of("{listen: here}").contains("`here` is not an address and a port"));
        let both = "store: /a\npcap_over_ip: [{connect: 'a:1'}]\nreplay: {file: /x}\n";
        assert!(one_fault(both).contains("both `pcap_over_ip` and `replay`"));
    }

    #[test]
    fn outer_headers_are_kept_unless_they_are_to_be_removed() {
        let text = "store: /a\ncapture:\n  - {interface: eth0, decap: strip}\n  - {interface: \
                    eth1, decap: strip, decap_tunnels: [vlan, gtp_u], vxlan_ports: 4790}\n  \
                    - {interface: eth2, decap_tunnels: [vlan]}\n";
        let config = read(text);
        let Input::Capture(interfaces) = &config.input else { panic!() };
        let by_default =
            Decap { tunnels: TUNNELS_DEFAULT.to_vec(), vxlan_ports: VXLAN_PORTS_DEFAULT.to_vec() };
        let chosen = Decap { tunnels: vec![Tunnel::Vlan, Tunnel::GtpU], vxlan_ports: vec![4790] };
        let decaps: Vec<_> = interfaces.iter().map(|one| one.decap.clone()).collect();
        assert_eq!(decaps, [Some(by_default.clone()), Some(chosen), None]);
        // What the table says is written out for an absent key gives the same.
        let (list, ports) = ("decap_tunnels", "vxlan_ports");
        let shown = |name| {
            let path = format!("capture[].{name}");
            crate::keys::TABLE.iter().find(|key| key.path == path).unwrap().example
        };
        let text = format!(
            "store: /a\nreplay:\n  file: /x\n  decap: strip\n  {list}: {}\n  {ports}: {}\n",
            shown(list),
            shown(ports)
        );
        let Input::Replay(replay) = read(&text).input else { panic!() };
        assert_eq!(replay.decap, Some(by_default));
        let fault = one_fault("store: /a\ncapture: [{interface: e, decap_tunnels: [vxlann]}]\n");
        assert!(fault.contains("did you mean `vxlan`?"), "{fault}");
    }

    #[test]
    fn mirror_targets_stand_alone_or_beside_interfaces() {
        let config = read(
            "store: /a\nmirror_targets:\n  - listen: 0.0.0.0:4789\n  - {listen: '[::]:6081', \
             tunnel: geneve, lanes: 2, snaplen: 128, filter: tcp, buffer: 1MiB}\n",
        );
        assert_eq!((&config.input, config.lanes()), (&Input::Capture(Vec::new()), 3));
        let first = MirrorTarget {
            listen: "0.0.0.0:4789".parse().unwrap(),
            tunnel: MirrorTunnel::Vxlan,
            lanes: 1,
            snaplen_bytes: 262_144,
            filter: None,
            buffer_bytes: 64 << 20,
        };
        let second = MirrorTarget {
            listen: "[::]:6081".parse().unwrap(),
            tunnel: MirrorTunnel::Geneve,
            lanes: 2,
            snaplen_bytes: 128,
            filter: Some("tcp".into()),
            buffer_bytes: 1 << 20,
        };
        assert_eq!(config.mirror_targets, [first, second]);
        let beside = format!("{MINIMAL}mirror_targets: [{{listen: '1.2.3.4:4789'}}]\n");
        assert_eq!(read(&beside).lanes(), 2);
        let fault = one_fault("store: /a\nmirror_targets: [{listen: 4789}]\n");
        assert!(fault.contains("is not an address and a port"), "{fault}");
        let both = "store: /a\nmirror_targets: [{listen: '1.2.3.4:1'}]\nreplay: {file: /x}\n";
        assert!(one_fault(both).contains("both `mirror_targets` and `replay`"));
    }

    #[test]
    fn all_faults_are_told_together_with_their_places() {
        let all = faults(
            "store: relative\ncapture:\n  - inteface: eth0\n    lanes: 64\n    ring: 64MB\n\
             flush_age: 250\nlog: verbose\nlog: info\nlanes: 3\n",
        );
        let starts = [
            "1:8: store: `relative` is not an absolute path",
            "3:5: capture[0].inteface: `inteface` is not a key here",
            "3:5: capture[0].interface: the key is missing",
            "4:12: capture[0].lanes: `64` is outside the range\n    allowed: 1 to 32",
            "5:11: capture[0].ring: `64MB` is 64000000 bytes, which does not fit",
            "6:12: flush_age: `250` is not a length of time",
            "7:6: log: `verbose` is not one of the words known here",
            "8:1: log: the key is there twice; first at 7:1",
            "9:1: lanes: `lanes` is not a key here",
        ];
        assert_eq!(all.len(), starts.len(), "{all:#?}");
        for (fault, start) in all.iter().zip(starts) {
            assert!(fault.starts_with(start), "{fault}\nis not\n{start}");
        }
        assert!(all[1].contains("allowed: interface, lanes,"));
        assert!(all[1].ends_with("way out: did you mean `interface`?"));
        assert!(all[4].ends_with("way out: write 61MiB"));
        assert!(all[5].contains("allowed: 1ms to 10s") && all[5].contains("250ms"));
        assert!(all[6].contains("allowed: error, warn, info, debug, trace"));
        assert!(all[8].ends_with("way out: `lanes` belongs into `capture`"));
    }

    #[test]
    fn what_af_xdp_cannot_do_is_refused() {
        let with =
            |keys: &str| one_fault(&format!("store: /a\ncapture:\n  - interface: e\n    {keys}\n"));
        assert!(with("udp_ports: [4789, 65536]").contains("outside the range"));
        let time = with("hardware_time: true\n    source: af_xdp");
        assert!(time.starts_with("4:20: capture[0].hardware_time: AF_XDP has no"), "{time}");
    }

    #[test]
    fn ports_outside_a_tunnel_are_selected_before_it_is_removed() {
        let text = |source: &str, decap: &str, ports: &str| {
            format!("store: /a\ncapture:\n  - {{interface: e{source}{decap}{ports}}}\n")
        };
        let (strip, ports) = (", decap: strip", ", udp_ports: [4789]");
        for source in ["", ", source: auto", ", source: packet_mmap"] {
            let fault = one_fault(&text(source, strip, ports));
            assert!(fault.starts_with("3:"), "{fault}");
            for part in ["udp_ports: ", "`decap: strip`", "`source: af_xdp`", "`mirror_targets`"] {
                assert!(fault.contains(part), "{part} is not in {fault}");
            }
            read(&text(source, ", decap: keep", ports));
            read(&text(source, strip, ""));
        }
        read(&text(", source: af_xdp", strip, ports));
    }

    #[test]
    fn an_input_is_needed_and_only_one() {
        assert!(one_fault("store: /a\n").starts_with("1:1: capture: neither"));
        let both = one_fault(&format!("{MINIMAL}replay: {{file: /x}}\n"));
        assert!(both.starts_with("4:9: replay: both"), "{both}");
        let empty = faults("");
        assert!(empty.len() == 2 && empty.concat().contains("store: the key is missing"));
        assert!(one_fault("store: /a\ncapture: []\n").contains("0 entries"));
        let bare = one_fault("store: /a\ncapture:\n");
        assert!(bare.starts_with("2:1: capture: the key has no value"), "{bare}");
        assert!(one_fault("store: /a\ncapture: eth0\n").contains("start every entry with `- `"));
        assert!(
            one_fault("store: /a\nreplay: {speed: full}\n").contains("replay.file: the key is")
        );
    }

    #[test]
    fn a_text_of_another_shape_is_told_once() {
        assert!(one_fault("just words").contains("`just words` stands where `key: value`"));
        assert!(one_fault("- store: /a\n").contains("a list stands where"));
        let misplaced = faults("store: /a\ncapture:\n  - eth0\nbuffer: 64MiB\n");
        assert_eq!(misplaced.len(), 2, "{misplaced:#?}");
        assert!(misplaced[0].starts_with("3:5: capture[0]: `eth0` stands where"));
        assert!(misplaced[1].ends_with("allowed: size, hugepages"));
        assert!(one_fault("store: /a\nreplay: ~\n").contains("replay: the key has no value"));
    }

    #[test]
    fn repeated_things_are_faults() {
        let stores = one_fault("store: [/a, /b, /a/]\ncapture: [{interface: e}]\n");
        assert!(stores.starts_with("1:17: store[2]: the directory is there twice"), "{stores}");
        let twice = "store: /a\ncapture: [{interface: e}, {interface: e}]\n";
        assert!(one_fault(twice).contains("capture[1].interface: `e` is captured already"));
        let cpus = one_fault(&format!("{MINIMAL}cpus: {{lanes: [1-3, 2]}}\n"));
        assert!(cpus.contains("cpus.lanes[1]: CPU 2 is there twice"), "{cpus}");
    }

    #[test]
    fn lanes_must_fit_the_buffer_and_the_cpus() {
        let lanes = "store: /a\ncapture: [{interface: e, lanes: 32}]\n";
        let small = one_fault(&format!("{lanes}buffer: {{size: 16MiB}}\n"));
        assert!(
            small.starts_with("3:16: buffer.size: 16MiB are too little for 32 lanes"),
            "{small}"
        );
        assert!(small.ends_with("write 32MiB or more"));
        let cpus = one_fault(&format!("{lanes}cpus: {{lanes: [0-30]}}\n"));
        assert!(cpus.starts_with("3:15: cpus.lanes: 31 CPUs are named for 32 lanes"), "{cpus}");
        let many: String =
            (0..9).map(|n| format!("  - {{interface: e{n}, lanes: 32}}\n")).collect();
        assert!(one_fault(&format!("store: /a\ncapture:\n{many}")).contains("288 lanes; 256"));
    }

    #[test]
    fn words_of_older_yaml_keep_their_letters() {
        assert!(
            one_fault(&format!("{MINIMAL}    promiscuous: yes\n")).contains("write true or false")
        );
        assert!(
            read(&format!("{MINIMAL}buffer: {{hugepages: off}}\n")).buffer.hugepages
                == Hugepages::Off
        );
        let Input::Capture(interfaces) = read("store: /a\ncapture: [{interface: no}]\n").input
        else {
            panic!()
        };
        assert_eq!(interfaces[0].interface, "no");
    }
}
