//! From the configuration's input to what each lane takes.

use std::sync::Arc;

use wirevault_buffer::Hugepages;
use wirevault_capture::{
    CaptureError, PacketMmapOptions, PcapOverIpOptions, Rendezvous, Source, Speed, TargetTunnel,
    UdpTargetOptions, XdpOptions, choose, open_lanes, open_streams, open_targets, open_xdp_lanes,
};
use wirevault_config::{
    Capture, Config, Input, Live, LiveSource, MirrorTarget, MirrorTunnel, PcapOverIp, Policy,
    PolicyAction, Replay, Rung, Sender, SourceKind,
};
use wirevault_format::{LinkType, PolicyName, VxlanPorts};
use wirevault_packet::{Decap, Tunnel};
use wirevault_pipeline::duplicates::Seen;
use wirevault_pipeline::{
    Action, Filter, LaneSpec, LaneWish, PolicySpec, RungSpec, Topology, affinity,
};
use wirevault_query::filter;
use wirevault_storage::Budget;

use crate::DaemonError;
use crate::input::chain::ChainSource;

/// What is known of each lane before its source is open, in the order of the configuration.
pub(crate) fn wishes(config: &Config) -> Vec<LaneWish> {
    let mut wishes = Vec::new();
    match &config.input {
        Input::Live(inputs) => {
            for live in inputs {
                let interface = match &live.source {
                    LiveSource::Capture(capture) => Some(capture.interface.clone()),
                    LiveSource::PcapOverIp(_) | LiveSource::MirrorTarget(_) => None,
                };
                let wish = LaneWish { cpu: None, interface };
                wishes.resize(wishes.len() + usize::from(live.lanes), wish);
            }
        }
        Input::Replay(_) => wishes.push(LaneWish::default()),
    }
    for (wish, cpu) in wishes.iter_mut().zip(&config.lane_cpus) {
        wish.cpu = Some(usize::from(*cpu));
    }
    wishes
}

/// What the lanes of an interface may take.
pub(crate) fn budgets(config: &Config) -> Vec<Budget> {
    let Input::Live(inputs) = &config.input else { return Vec::new() };
    let mut end = 0;
    let budget = |live: &Live| {
        let lanes = end..end + live.lanes;
        end = lanes.end;
        match &live.source {
            LiveSource::Capture(capture) => Some(Budget { lanes, bytes: capture.budget_bytes? }),
            LiveSource::PcapOverIp(_) | LiveSource::MirrorTarget(_) => None,
        }
    };
    inputs.iter().filter_map(budget).collect()
}

/// Opens every source; the lanes come in the order of the configuration. `near` has for each lane
/// the cores on its node: the kernel places a ring near the thread that asks for it.
///
/// # Errors
/// A filter that does not compile, an interface or file that cannot be opened. Filters are compiled
/// for the link types that are there now.
pub(crate) fn open(config: &Config, near: &[Vec<usize>]) -> Result<Vec<LaneSpec>, DaemonError> {
    let anywhere = affinity::allowed();
    let mut lanes = Vec::new();
    match &config.input {
        Input::Live(inputs) => {
            for live in inputs {
                move_to(near.get(lanes.len()).map_or(&[], Vec::as_slice));
                let opened = open_live(live, config);
                move_to(&anywhere);
                lanes.extend(opened?);
            }
        }
        Input::Replay(replay) => lanes.push(open_replay(replay)?),
    }
    for (lane, cpu) in lanes.iter_mut().zip(&config.lane_cpus) {
        lane.cpu = Some(usize::from(*cpu));
    }
    Ok(lanes)
}

fn move_to(cpus: &[usize]) {
    if let Err(error) = affinity::pin(cpus) {
        tracing::warn!(?cpus, "a ring may be far from its lane: {error}");
    }
}

fn open_live(live: &Live, config: &Config) -> Result<Vec<LaneSpec>, DaemonError> {
    let (sources, filter) = match &live.source {
        LiveSource::Capture(capture) => take_from(live, capture)?,
        LiveSource::PcapOverIp(streams) => (pcap_over_ip(live, streams)?, live.filter.clone()),
        LiveSource::MirrorTarget(target) => (mirror_target(live, target)?, live.filter.clone()),
    };
    let (path, present) = (format!("{}.filter", live.path), present(&sources));
    let filter = filter.map(|text| compile(&text, &path, &present)).transpose()?;
    let policies = config.policies.iter().filter(|policy| is_for(policy, live));
    let policies: Vec<_> = policies.map(|it| policy(it, &present)).collect::<Result<_, _>>()?;
    let rung = |it| rung(it, &present);
    let ladder: Vec<_> = config.pressure.iter().map(rung).collect::<Result<_, _>>()?;
    let vxlan_ports = VxlanPorts::new(&live.vxlan_ports);
    let decap = live.decap.as_ref().map(|tunnels| removed(tunnels, vxlan_ports));
    // One for all its lanes: the copies of a packet may reach different ones.
    let duplicates = live.duplicates_window.map(|window| Arc::new(Seen::new(window)));
    let lane = |source| LaneSpec {
        duplicates: duplicates.clone(),
        snaplen_bytes: live.snaplen_bytes,
        filter: filter.clone(),
        policies: policies.clone(),
        ladder: ladder.clone(),
        decap,
        vxlan_ports,
        ..LaneSpec::new(source)
    };
    Ok(sources.into_iter().map(lane).collect())
}

fn is_for(policy: &Policy, live: &Live) -> bool {
    policy.interface.as_ref().is_none_or(|name| match &live.source {
        LiveSource::Capture(capture) => capture.interface == *name,
        LiveSource::PcapOverIp(_) | LiveSource::MirrorTarget(_) => false,
    })
}

/// The lane's word for a policy of the configuration, its filter compiled.
fn policy(policy: &Policy, present: &[LinkType]) -> Result<PolicySpec, DaemonError> {
    let path = format!("{}.filter", policy.path);
    let filter = policy.filter.as_ref().map(|text| compile(text, &path, present)).transpose()?;
    let name = PolicyName::new(&policy.name).expect("the configuration's names are short words");
    let action = match policy.action {
        PolicyAction::Keep => Action::Keep,
        PolicyAction::Drop => Action::Drop,
        PolicyAction::Cutoff { flow_bytes } => Action::Cutoff { flow_bytes },
        PolicyAction::Sample { one_in } => Action::Sample { one_in },
        PolicyAction::Snaplen { bytes } => Action::Snaplen { bytes },
        PolicyAction::CoarseIndex => Action::CoarseIndex,
    };
    Ok(PolicySpec { name, filter, action })
}

fn rung(rung: &Rung, present: &[LinkType]) -> Result<RungSpec, DaemonError> {
    let Rung { enter_percent, leave_percent, .. } = *rung;
    Ok(RungSpec { policy: policy(&rung.policy, present)?, enter_percent, leave_percent })
}

/// The link type that each source gives first. A mirror target also knows raw IP, which is an
/// exception within GENEVE.
fn present(sources: &[Box<dyn Source>]) -> Vec<LinkType> {
    sources.iter().filter_map(|source| source.interfaces().first()).map(|i| i.link_type).collect()
}

/// Lanes of one interface, and the filter that is left for them to apply.
type Taken = (Vec<Box<dyn Source>>, Option<String>);

/// Opens the kind of source that is asked for, or the one that is right.
fn take_from(live: &Live, capture: &Capture) -> Result<Taken, DaemonError> {
    match capture.source {
        SourceKind::PacketMmap => {
            packet_mmap(live, capture, "packet_mmap, as configured".to_owned())
        }
        SourceKind::AfXdp => Ok(af_xdp(live, capture, "af_xdp, as configured".to_owned())?),
        SourceKind::Auto if capture.hardware_time => {
            let why = "packet_mmap, because of hardware_time, which most drivers give only it";
            packet_mmap(live, capture, why.to_owned())
        }
        SourceKind::Auto => {
            let choice = choose(&capture.interface, usize::from(live.lanes))?;
            if !choice.af_xdp {
                return packet_mmap(live, capture, format!("packet_mmap, because {}", choice.why));
            }
            af_xdp(live, capture, format!("af_xdp, because {}", choice.why)).or_else(|error| {
                let error = wirevault_index::error::chain(&error);
                tracing::warn!("AF_XDP would be better here, but cannot be had: {error}");
                packet_mmap(live, capture, format!("packet_mmap, because AF_XDP failed: {error}"))
            })
        }
    }
}

fn packet_mmap(live: &Live, capture: &Capture, chosen: String) -> Result<Taken, DaemonError> {
    let mut options = PacketMmapOptions::new(&capture.interface);
    options.ring_bytes = usize::try_from(capture.ring_bytes).unwrap_or(usize::MAX);
    options.promiscuous = capture.promiscuous;
    options.snaplen_bytes = live.snaplen_bytes;
    options.hardware_time = capture.hardware_time;
    options.chosen = Some(chosen);
    let sources = boxed(open_lanes(&options, usize::from(live.lanes))?);
    Ok((sources, whole_filter(live.filter.as_deref(), &capture.udp_ports)))
}

fn af_xdp(live: &Live, capture: &Capture, chosen: String) -> Result<Taken, CaptureError> {
    let mut options = XdpOptions::new(&capture.interface);
    options.ring_bytes = usize::try_from(capture.ring_bytes).unwrap_or(usize::MAX);
    options.promiscuous = capture.promiscuous;
    options.snaplen_bytes = live.snaplen_bytes;
    options.udp_ports = capture.udp_ports.clone();
    options.busy_poll = capture.busy_poll;
    options.hardware_time = capture.hardware_time;
    options.chosen = Some(chosen);
    let sources = boxed(open_xdp_lanes(&options, usize::from(live.lanes))?);
    Ok((sources, live.filter.clone()))
}

fn pcap_over_ip(live: &Live, streams: &PcapOverIp) -> Result<Vec<Box<dyn Source>>, CaptureError> {
    let rendezvous = match &streams.sender {
        Sender::Listen(address) => Rendezvous::Listen(*address),
        Sender::Connect(address) => Rendezvous::Connect(address.clone()),
    };
    let options = PcapOverIpOptions { rendezvous, interface: streams.interface.clone() };
    Ok(boxed(open_streams(&options, usize::from(live.lanes))?))
}

fn mirror_target(live: &Live, target: &MirrorTarget) -> Result<Vec<Box<dyn Source>>, CaptureError> {
    let options = UdpTargetOptions {
        listen: target.listen,
        tunnel: match target.tunnel {
            MirrorTunnel::Vxlan => TargetTunnel::Vxlan,
            MirrorTunnel::Geneve => TargetTunnel::Geneve,
        },
        buffer_bytes: usize::try_from(target.buffer_bytes).unwrap_or(usize::MAX),
        snaplen_bytes: live.snaplen_bytes,
    };
    Ok(boxed(open_targets(&options, usize::from(live.lanes))?))
}

fn boxed<S: Source + 'static>(sources: Vec<S>) -> Vec<Box<dyn Source>> {
    sources.into_iter().map(|source| Box::new(source) as Box<dyn Source>).collect()
}

/// The filter with the ports in it, for a source that cannot select ports itself.
fn whole_filter(filter: Option<&str>, udp_ports: &[u16]) -> Option<String> {
    let ports: Vec<_> = udp_ports.iter().map(|port| format!("udp dst port {port}")).collect();
    match (filter, ports.is_empty()) {
        (filter, true) => filter.map(str::to_owned),
        (None, false) => Some(ports.join(" or ")),
        (Some(filter), false) => Some(format!("({}) and ({filter})", ports.join(" or "))),
    }
}

/// The lane's word for the configuration's.
fn removed(wanted: &[wirevault_config::Tunnel], vxlan_ports: VxlanPorts) -> Decap {
    use wirevault_config::Tunnel as Wanted;
    let tunnels = wanted.iter().map(|tunnel| match tunnel {
        Wanted::Vlan => Tunnel::Vlan,
        Wanted::Mpls => Tunnel::Mpls,
        Wanted::Vxlan => Tunnel::Vxlan,
        Wanted::Geneve => Tunnel::Geneve,
        Wanted::Gre => Tunnel::Gre,
        Wanted::Erspan => Tunnel::Erspan,
        Wanted::GtpU => Tunnel::GtpU,
        Wanted::IpInIp => Tunnel::IpInIp,
    });
    Decap::new(&tunnels.collect::<Vec<_>>(), vxlan_ports)
}

fn open_replay(replay: &Replay) -> Result<LaneSpec, DaemonError> {
    let speed = match replay.speed {
        wirevault_config::Speed::Full => Speed::Full,
        wirevault_config::Speed::RealTime => Speed::RealTime,
    };
    let files = vec![replay.file.clone()];
    let source = ChainSource::open(files, speed, replay.interface.clone())?;
    let vxlan_ports = VxlanPorts::new(&replay.vxlan_ports);
    Ok(import_lane(source, replay.decap.as_deref(), vxlan_ports))
}

/// The one lane of files.
pub(crate) fn import_lane(
    source: ChainSource,
    decap: Option<&[wirevault_config::Tunnel]>,
    vxlan_ports: VxlanPorts,
) -> LaneSpec {
    let decap = decap.map(|tunnels| removed(tunnels, vxlan_ports));
    LaneSpec { decap, vxlan_ports, ..LaneSpec::new(Box::new(source)) }
}

/// A filter that is right for every link type present. Of one that a later interface brings and
/// that it does not fit all packets are kept: dropping them unasked would be worse.
fn compile(text: &str, path: &str, present: &[LinkType]) -> Result<Filter, DaemonError> {
    for link_type in present {
        filter::compile(text, *link_type)
            .map_err(|source| DaemonError::Filter { path: path.to_owned(), source })?;
    }
    let (text, path) = (text.to_owned(), path.to_owned());
    Ok(Arc::new(move |link_type| match filter::compile(&text, link_type) {
        Ok(program) => Some(program),
        Err(error) => {
            tracing::warn!("{path}: all packets of link type {link_type} are kept: {error}");
            None
        }
    }))
}

/// Which threads are asked for.
pub(crate) fn topology(configured: wirevault_config::Topology) -> Topology {
    match configured {
        wirevault_config::Topology::Auto => Topology::Auto,
        wirevault_config::Topology::RunToCompletion => Topology::RunToCompletion,
        wirevault_config::Topology::Split => Topology::Split,
    }
}

/// The buffer's word for the configuration's.
pub(crate) fn hugepages(wanted: wirevault_config::Hugepages) -> Hugepages {
    use wirevault_config::Hugepages as Wanted;
    match wanted {
        Wanted::Auto => Hugepages::Auto,
        Wanted::Size2MiB => Hugepages::TwoMiB,
        Wanted::Size1GiB => Hugepages::OneGiB,
        Wanted::Off => Hugepages::Off,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Exit;
    use crate::input::chain::tests::pcap;

    fn config(text: &str) -> Config {
        wirevault_config::parse(text, "t").unwrap()
    }

    #[test]
    fn a_replay_is_one_lane_on_its_cpu() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("a.pcap");
        pcap(&path, 1, &[(1, vec![0; 60])]);
        let text = format!(
            "store: /s\ncpus:\n  lanes: [0]\nreplay:\n  file: {}\n  interface: eth9\n",
            path.display()
        );
        let lanes = open(&config(&text), &[]).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((lanes.len(), lanes[0].cpu), (1, Some(0)));
        assert_eq!(lanes[0].source.interfaces()[0].name.as_deref(), Some("eth9"));
        std::fs::remove_file(&path).unwrap();
        let error = open(&config(&text), &[]).err().expect("the file is gone");
        assert_eq!(error.exit(), Exit::Usage);
    }

    #[test]
    fn ports_become_a_part_of_the_filter() {
        let whole = whole_filter;
        assert_eq!(whole(None, &[]), None);
        assert_eq!(whole(Some("tcp"), &[]).as_deref(), Some("tcp"));
        let ports = whole(None, &[1, 2]);
        assert_eq!(ports.as_deref(), Some("udp dst port 1 or udp dst port 2"));
        let both = whole(Some("host 10.0.0.1 or arp"), &[3]);
        assert_eq!(both.as_deref(), Some("(udp dst port 3) and (host 10.0.0.1 or arp)"));
    }

    #[test]
    fn filters_are_compiled_for_what_is_present() {
        let filter = compile("ether proto 0x88b5", "capture[0].filter", &[LinkType::ETHERNET])
            .unwrap_or_else(|error| panic!("{error}"));
        assert!(filter(LinkType::ETHERNET).is_some());
        let error = compile("tcpp", "capture[0].filter", &[LinkType::ETHERNET]).err();
        let text = error.expect("it does not compile").to_string();
        assert!(text.starts_with("capture[0].filter: "), "{text}");
        let filter = compile("ether host 2:0:0:0:0:1", "x", &[]).unwrap_or_else(|e| panic!("{e}"));
        assert!(filter(LinkType::RAW).is_none(), "kept rather than lost");
    }
}
