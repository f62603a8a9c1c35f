//! The part of the checks that makes an [`Input`].

use std::net::SocketAddr;
use std::time::Duration;

use wirevault_format::VxlanPorts;

use super::choice;
use crate::fault::{Fault, Mark};
use crate::input::{Capture, Input, Live, LiveSource, MirrorTarget, PcapOverIp, Replay, Sender};
use crate::section::{Faults, Item, Section, Value};
use crate::settings::{DecapMode, Duplicates, MirrorTunnel, SourceKind, Speed, Tunnel};

/// Makes the sources of one key's entries. All their faults are noted; `None` stands for an entry
/// that no source can be made of.
type Read = fn(&Section<'_>, &mut Seen<'_>) -> Option<Live>;

/// The keys of what packets come from now; any of them may stand alone.
const LIVE: [(&str, Read); 3] =
    [("capture", capture), ("pcap_over_ip", sender), ("mirror_targets", mirror_target)];

/// Entries of one key so far, to tell two that are alike.
struct Seen<'a> {
    known: Vec<(String, Mark)>,
    faults: &'a Faults,
}

impl Seen<'_> {
    /// Where `what` was met before; now it is known.
    fn again(&mut self, what: &str, mark: Mark) -> Option<Mark> {
        let first = self.known.iter().find(|(known, _)| known == what).map(|(_, mark)| *mark);
        if first.is_none() {
            self.known.push((what.to_owned(), mark));
        }
        first
    }

    /// Notes a fault if an earlier entry has this address.
    fn merge(&mut self, section: &Section<'_>, address: &str, hint: &str) {
        if self.again(address, section.mark).is_some() {
            let problem = "the address is there already";
            let fault = Fault::new(section.mark, &section.path, problem);
            let way_out = format!("merge the two entries; {hint}");
            self.faults.borrow_mut().push(fault.way_out(way_out));
        }
    }
}

/// What comes now, or a file. `None` only if there is a fault.
pub(super) fn input(root: &Section<'_>, faults: &Faults) -> Option<Input> {
    let given = LIVE.iter().map(|(name, _)| *name).find(|name| root.has(name));
    match (given, root.has("replay")) {
        (Some(_), false) => Some(Input::Live(live(root, faults))),
        (None, true) => replay(&root.section("replay")).map(Input::Replay),
        (Some(given), true) => {
            let problem = format!("both `{given}` and `replay` are given");
            let way_out = "remove one: a daemon records what comes now, or a file".to_owned();
            root.fault("replay", problem, way_out);
            live(root, faults);
            replay(&root.section("replay"));
            None
        }
        (None, false) => {
            let names = LIVE.map(|(name, _)| format!("`{name}`")).join(", ");
            let problem = format!("neither {names} nor `replay` says where packets come from");
            let way_out = "add `capture:`, and under it `  - interface: eth0`, for example";
            root.fault("capture", problem, way_out.to_owned());
            None
        }
    }
}

fn live(root: &Section<'_>, faults: &Faults) -> Vec<Live> {
    let mut inputs = Vec::new();
    for (name, read) in LIVE {
        let mut seen = Seen { known: Vec::new(), faults };
        inputs.extend(root.sections(name).iter().filter_map(|section| read(section, &mut seen)));
    }
    inputs
}

/// The keys that every live source has.
fn with_common(section: &Section<'_>, source: LiveSource) -> Live {
    Live {
        path: section.path.clone(),
        // The table keeps both far below the limits of their types.
        lanes: section.number("lanes").try_into().unwrap_or(u16::MAX),
        snaplen_bytes: section.number("snaplen").try_into().unwrap_or(u32::MAX),
        filter: section.text("filter"),
        decap: None,
        vxlan_ports: VxlanPorts::USUAL.iter().collect(),
        duplicates_window: None,
        source,
    }
}

fn capture(section: &Section<'_>, seen: &mut Seen<'_>) -> Option<Live> {
    let source = choice(section, "source", SourceKind::from_name, SourceKind::Auto);
    let interface = section.text("interface");
    if let Some(name) = &interface {
        let mark = section.mark_of("interface");
        if let Some(first) = seen.again(name, mark) {
            let problem = format!("`{name}` is captured already, at line {}", first.line);
            let way_out = "merge the two entries; `lanes` sets the number of threads".to_owned();
            section.fault("interface", problem, way_out);
        }
    }
    let (decap, udp_ports) = (decap(section), ports(section, "udp_ports"));
    if decap.is_some() && !udp_ports.is_empty() && source != SourceKind::AfXdp {
        // A packet socket tests them in the lane's filter, which is asked after stripping.
        let problem = "with `decap: strip`, ports of outer headers can be selected by AF_XDP only";
        let way_out = "write `source: af_xdp`, or record these ports with `mirror_targets`";
        section.fault("udp_ports", problem.to_owned(), way_out.to_owned());
    }
    let capture = Capture {
        source,
        udp_ports,
        busy_poll: section.switch("busy_poll"),
        hardware_time: section.switch("hardware_time"),
        interface: interface.clone().unwrap_or_default(),
        promiscuous: section.switch("promiscuous"),
        budget_bytes: section.has("budget").then(|| section.number("budget")),
        ring_bytes: section.number("ring"),
    };
    let source = LiveSource::Capture(capture);
    let vxlan_ports = vxlan_ports(section);
    let duplicates_window = duplicates_window(section);
    let live = Live { decap, vxlan_ports, duplicates_window, ..with_common(section, source) };
    interface.map(|_| live)
}

fn sender(section: &Section<'_>, seen: &mut Seen<'_>) -> Option<Live> {
    let (listen, connect) = (section.address("listen"), section.text("connect"));
    let sender = match (listen, connect) {
        (Some(address), None) => Some(Sender::Listen(address)),
        (None, Some(host)) => Some(Sender::Connect(host)),
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
    if let Some(sender) = &sender {
        seen.merge(section, &format!("{sender:?}"), "`lanes` sets how many senders are taken");
    }
    let connects = matches!(sender, Some(Sender::Connect(_)));
    // Every key is looked at, whether or not somebody sends.
    let sender_or = sender.clone().unwrap_or(Sender::Connect(String::new()));
    let source = PcapOverIp { sender: sender_or, interface: section.text("interface") };
    let live = with_common(section, LiveSource::PcapOverIp(source));
    if connects && live.lanes > 1 {
        let problem = format!("{} lanes would each connect and get everything", live.lanes);
        section.fault("lanes", problem, "remove the key".to_owned());
    }
    sender.map(|_| live)
}

fn mirror_target(section: &Section<'_>, seen: &mut Seen<'_>) -> Option<Live> {
    let listen = section.address("listen");
    if let Some(address) = listen {
        seen.merge(section, &address.to_string(), "`lanes` sets the number of threads");
    }
    let target = MirrorTarget {
        // Every key is looked at, whether or not there is an address.
        listen: listen.unwrap_or(SocketAddr::from(([0; 4], 0))),
        tunnel: choice(section, "tunnel", MirrorTunnel::from_name, MirrorTunnel::Vxlan),
        buffer_bytes: section.number("buffer"),
    };
    // The source itself removes what the mirror added.
    let source = LiveSource::MirrorTarget(target);
    let duplicates_window = duplicates_window(section);
    let live = Live { duplicates_window, ..with_common(section, source) };
    listen.map(|_| live)
}

fn replay(section: &Section<'_>) -> Option<Replay> {
    let file = section.path("file");
    let speed = choice(section, "speed", Speed::from_name, Speed::Full);
    let interface = section.text("interface");
    let decap = decap(section);
    let vxlan_ports = vxlan_ports(section);
    Some(Replay { file: file?, speed, interface, decap, vxlan_ports })
}

/// What `strip` removes; the keys are the same wherever they stand.
fn decap(section: &Section<'_>) -> Option<Vec<Tunnel>> {
    let mode = choice(section, "decap", DecapMode::from_name, DecapMode::Keep);
    let tunnels = section.list("decap_tunnels").into_iter().filter_map(|item| match item.value {
        Value::Text(name) => Tunnel::from_name(&name),
        _ => None,
    });
    let mut tunnels: Vec<_> = tunnels.collect();
    if !section.has("decap_tunnels") {
        tunnels = Tunnel::USUAL.to_vec();
    }
    (mode == DecapMode::Strip).then_some(tunnels)
}

fn vxlan_ports(section: &Section<'_>) -> Vec<u16> {
    let given = ports(section, "vxlan_ports");
    if section.has("vxlan_ports") { given } else { VxlanPorts::USUAL.iter().collect() }
}

/// The keys are the same wherever they stand.
fn duplicates_window(section: &Section<'_>) -> Option<Duration> {
    let wanted = choice(section, "duplicates", Duplicates::from_name, Duplicates::Keep);
    let window = section.duration("duplicates_window");
    (wanted == Duplicates::Mark).then_some(window)
}

fn ports(section: &Section<'_>, name: &str) -> Vec<u16> {
    let port = |item: Item| match item.value {
        Value::Number(port) => u16::try_from(port).ok(),
        _ => None,
    };
    section.list(name).into_iter().filter_map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{MINIMAL, faults, live as live_of, one_fault, read};
    use super::*;

    #[test]
    fn packets_may_come_over_tcp_too() {
        let text = "store: /a\npcap_over_ip:\n  - {listen: '127.0.0.1:57012', lanes: 2, \
                    interface: tap, snaplen: 128, filter: ip}\n  - connect: far:57012\n";
        let config = read(text);
        let of_sender = |path: &str, sender, interface: Option<&str>| Live {
            path: path.into(),
            lanes: 1,
            snaplen_bytes: 262_144,
            filter: None,
            decap: None,
            vxlan_ports: vec![4789, 8472],
            duplicates_window: None,
            source: LiveSource::PcapOverIp(PcapOverIp {
                sender,
                interface: interface.map(str::to_owned),
            }),
        };
        let address = Sender::Listen("127.0.0.1:57012".parse().unwrap());
        let listening = Live {
            lanes: 2,
            snaplen_bytes: 128,
            filter: Some("ip".into()),
            ..of_sender("pcap_over_ip[0]", address, Some("tap"))
        };
        let far = Sender::Connect("far:57012".into());
        assert_eq!(live_of(&config), [listening, of_sender("pcap_over_ip[1]", far, None)]);
        assert_eq!(config.lanes(), 3);
        let beside = read(&format!("{MINIMAL}pcap_over_ip: [{{connect: 'a:1'}}]\n"));
        let paths: Vec<_> = live_of(&beside).iter().map(|live| live.path.as_str()).collect();
        assert_eq!((beside.lanes(), &paths[..]), (2, &["capture[0]", "pcap_over_ip[0]"][..]));

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
                    - {interface: eth2, decap_tunnels: [vlan], vxlan_ports: 4791}\n";
        let config = read(text);
        let by_default = (Some(Tunnel::USUAL.to_vec()), vec![4789, 8472]);
        let chosen = (Some(vec![Tunnel::Vlan, Tunnel::GtpU]), vec![4790]);
        let kept = (None, vec![4791]);
        let of = |one: &Live| (one.decap.clone(), one.vxlan_ports.clone());
        let found: Vec<_> = live_of(&config).iter().map(of).collect();
        assert_eq!(found, [by_default.clone(), chosen, kept]);
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
        assert_eq!((replay.decap, replay.vxlan_ports), by_default);
        let fault = one_fault("store: /a\ncapture: [{interface: e, decap_tunnels: [vxlann]}]\n");
        assert!(fault.contains("did you mean `vxlan`?"), "{fault}");
    }

    #[test]
    fn mirror_targets_stand_alone_or_beside_interfaces() {
        let config = read(
            "store: /a\nmirror_targets:\n  - listen: 0.0.0.0:4789\n  - {listen: '[::]:6081', \
             tunnel: geneve, lanes: 2, snaplen: 128, filter: tcp, buffer: 1MiB}\n",
        );
        assert_eq!(config.lanes(), 3);
        let of_target = |path: &str, listen: &str, tunnel, buffer_bytes| Live {
            path: path.into(),
            lanes: 1,
            snaplen_bytes: 262_144,
            filter: None,
            decap: None,
            vxlan_ports: vec![4789, 8472],
            duplicates_window: None,
            source: LiveSource::MirrorTarget(MirrorTarget {
                listen: listen.parse().unwrap(),
                tunnel,
                buffer_bytes,
            }),
        };
        let (vxlan, geneve) = (MirrorTunnel::Vxlan, MirrorTunnel::Geneve);
        let first = of_target("mirror_targets[0]", "0.0.0.0:4789", vxlan, 64 << 20);
        let second = Live {
            lanes: 2,
            snaplen_bytes: 128,
            filter: Some("tcp".into()),
            ..of_target("mirror_targets[1]", "[::]:6081", geneve, 1 << 20)
        };
        assert_eq!(live_of(&config), [first, second]);
        let marked = |keys: &str| {
            let text = format!("store: /a\nmirror_targets: [{{listen: '[::]:1'{keys}}}]\n");
            live_of(&read(&text))[0].duplicates_window
        };
        assert_eq!(marked(", duplicates_window: 1s"), None);
        assert_eq!(marked(", duplicates: mark"), Some(Duration::from_millis(10)));
        assert_eq!(
            marked(", duplicates: mark, duplicates_window: 1s").map(|it| it.as_secs()),
            Some(1)
        );
        let twice = "store: /a\nmirror_targets: [{listen: '[::]:1'}, {listen: '[::]:1'}]\n";
        assert!(one_fault(twice).contains("mirror_targets[1]: the address is there already"));
        let beside = format!("{MINIMAL}mirror_targets: [{{listen: '1.2.3.4:4789'}}]\n");
        assert_eq!(read(&beside).lanes(), 2);
        let fault = one_fault("store: /a\nmirror_targets: [{listen: 4789}]\n");
        assert!(fault.contains("is not an address and a port"), "{fault}");
        let both = "store: /a\nmirror_targets: [{listen: '1.2.3.4:1'}]\nreplay: {file: /x}\n";
        assert!(one_fault(both).contains("both `mirror_targets` and `replay`"));
    }

    #[test]
    fn what_af_xdp_cannot_do_is_refused() {
        let with =
            |keys: &str| one_fault(&format!("store: /a\ncapture:\n  - interface: e\n    {keys}\n"));
        assert!(with("udp_ports: [4789, 65536]").contains("outside the range"));
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
    fn a_file_may_take_the_place_of_interfaces() {
        let config =
            read("store: /a\nreplay:\n  file: /x.pcap\n  speed: realtime\n  interface: a\n");
        let expected = Replay {
            file: "/x.pcap".into(),
            speed: Speed::RealTime,
            interface: Some("a".into()),
            decap: None,
            vxlan_ports: vec![4789, 8472],
        };
        assert_eq!(config.input, Input::Replay(expected));
        assert_eq!(config.lanes(), 1);
    }
}
