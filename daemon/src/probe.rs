//! What `wirevaultd validate` finds out about the machine, beside what the file says.
//!
//! Nothing here changes anything: the store is read without its lock, no packet socket is opened.

use std::fmt;
use std::fs;
use std::path::Path;

use caps::{CapSet, Capability};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::{AccessFlags, Pid, access};
use wirevault_buffer::PageKind;
use wirevault_capture::{ReplayOptions, ReplaySource, Speed};
use wirevault_config::{
    Capture, Config, Hugepages, Input, Live, LiveSource, MirrorTarget, PcapOverIp, Replay, Sender,
    SourceKind,
};
use wirevault_format::LinkType;
use wirevault_index::error::chain;
use wirevault_index::{IndexError, KeySource, open_store};
use wirevault_query::filter;

use crate::error::read_exit;
use crate::folders::{self, Folder};
use crate::server::access::Access;
use crate::volumes::devices;
use crate::{DaemonError, Exit};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Good to know.
    Note,
    /// It will record, but not as well as it could.
    Warning,
    /// It will not start.
    Fault,
}

/// One thing found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What the daemon would exit with.
    pub exit: Exit,
    /// Where it stands in the configuration.
    pub path: String,
    /// What it is, and the way out.
    pub text: String,
    /// The recorder calls itself degraded because of it.
    pub degrades: bool,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.text)
    }
}

impl Finding {
    fn new(level: Level, exit: Exit, path: impl Into<String>, text: impl Into<String>) -> Self {
        Self { level, exit, path: path.into(), text: text.into(), degrades: false }
    }

    fn fault(exit: Exit, path: impl Into<String>, text: impl Into<String>) -> Self {
        Self::new(Level::Fault, exit, path, text)
    }

    fn warning(path: impl Into<String>, text: impl Into<String>) -> Self {
        Self::new(Level::Warning, Exit::Ok, path, text)
    }
}

/// Everything that can be found out before a start: machine, store, and who may ask.
pub fn all(config: &Config, key: &KeySource) -> Vec<Finding> {
    let mut findings = store(config, key);
    findings.extend(vfio(config));
    findings.extend(folders::of(config).iter().filter_map(unwritable));
    findings.extend(machine(config));
    findings.extend(api(config));
    findings
}

/// What the machine lacks for the inputs, the buffer and the lanes.
pub fn machine(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    match &config.input {
        Input::Live(inputs) => {
            findings.extend(capabilities(inputs));
            findings.extend(inputs.iter().flat_map(live));
        }
        Input::Replay(replay) => findings.extend(file(replay)),
    }
    findings.extend(pages(config));
    findings.extend(cpus(config));
    findings
}

/// What interfaces need, if there are any; other sources need nothing.
fn capabilities(inputs: &[Live]) -> Vec<Finding> {
    let interfaces = || {
        inputs.iter().filter_map(|live| match &live.source {
            LiveSource::Capture(capture) => Some((live, capture)),
            LiveSource::PcapOverIp(_) | LiveSource::MirrorTarget(_) => None,
        })
    };
    let needed = interfaces().next().and_then(|_| capability());
    needed.into_iter().chain(xdp_capabilities(interfaces())).collect()
}

fn live(live: &Live) -> Vec<Finding> {
    let (found, link_type) = match &live.source {
        LiveSource::Capture(capture) => interface(live, capture),
        // Streams say what they hold when they come.
        LiveSource::PcapOverIp(streams) => (open_to_all(live, streams), None),
        LiveSource::MirrorTarget(target) => (mirror_target(live, target), Some(LinkType::ETHERNET)),
    };
    let mut findings: Vec<_> = found.into_iter().collect();
    if let (Some(text), Some(link_type)) = (&live.filter, link_type)
        && let Err(source) = filter::compile(text, link_type)
    {
        let text = format!("{source}; try it with `tcpdump -d`");
        findings.push(Finding::fault(Exit::Usage, format!("{}.filter", live.path), text));
    }
    findings
}

/// Whether the address can be listened on. A running daemon holds it, which is no fault of the
/// configuration.
fn mirror_target(live: &Live, target: &MirrorTarget) -> Option<Finding> {
    let error = std::net::UdpSocket::bind(target.listen).err()?;
    let (path, listen) = (format!("{}.listen", live.path), target.listen);
    Some(match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            Finding::warning(path, format!("{listen} is in use; by a running daemon, perhaps"))
        }
        _ => Finding::fault(Exit::Machine, path, format!("{listen} cannot be used: {error}")),
    })
}

fn capability() -> Option<Finding> {
    match caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_RAW) {
        Ok(true) => None,
        Ok(false) => Some(Finding::fault(
            Exit::Machine,
            "capture",
            "this process lacks CAP_NET_RAW, which packet sockets need: run it as root, or set \
             AmbientCapabilities=CAP_NET_RAW in the unit",
        )),
        Err(error) => {
            let text = format!("whether it has CAP_NET_RAW cannot be found out: {error}");
            Some(Finding::warning("capture", text))
        }
    }
}

/// What AF_XDP needs beside, where it is asked for by name.
fn xdp_capabilities<'a>(interfaces: impl Iterator<Item = (&'a Live, &'a Capture)>) -> Vec<Finding> {
    let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(true);
    if has(Capability::CAP_SYS_ADMIN) {
        return Vec::new();
    }
    let needed = [Capability::CAP_NET_ADMIN, Capability::CAP_BPF];
    let missing: Vec<_> =
        needed.into_iter().filter(|it| !has(*it)).map(|it| it.to_string()).collect();
    let missing = missing.join(" and ");
    let asked = |(_, capture): &(&Live, &Capture)| {
        !missing.is_empty() && capture.source == SourceKind::AfXdp
    };
    let fault = |(live, _): (&Live, _)| {
        let text = format!(
            "AF_XDP needs {missing}, which this process lacks: run it as root, set \
             AmbientCapabilities= in the unit, or write `source: packet_mmap`"
        );
        Finding::fault(Exit::Machine, format!("{}.source", live.path), text)
    };
    interfaces.filter(asked).map(fault).collect()
}

/// What is wrong with the interface, and the link type of its packets.
fn interface(live: &Live, capture: &Capture) -> (Option<Finding>, Option<LinkType>) {
    let folder = Path::new("/sys/class/net").join(&capture.interface);
    let path = format!("{}.interface", live.path);
    let name = &capture.interface;
    // Asked of the kernel, not of /sys, which may be mounted for another network namespace.
    if nix::net::if_::if_nametoindex(name.as_str()).is_err() {
        let present = present().join(", ");
        let text = format!("`{name}` does not exist here; present are: {present}");
        return (Some(Finding::fault(Exit::Machine, path, text)), None);
    }
    let flags = fs::read_to_string(folder.join("flags")).unwrap_or_default();
    let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap_or(1);
    let down = (flags & IFF_UP == 0).then(|| {
        let text = format!("`{name}` is down: nothing is recorded until `ip link set {name} up`");
        Finding::warning(path, text)
    });
    let kind = fs::read_to_string(folder.join("type")).unwrap_or_default();
    let ethernet = matches!(kind.trim(), "1" | "772" | "");
    (down, Some(if ethernet { LinkType::ETHERNET } else { LinkType::RAW }))
}

/// Source: linux/if.h.
const IFF_UP: u32 = 1;

fn present() -> Vec<String> {
    let interfaces = nix::net::if_::if_nameindex();
    let name =
        |interface: &nix::net::if_::Interface| interface.name().to_string_lossy().into_owned();
    let mut names: Vec<String> =
        interfaces.iter().flat_map(|interfaces| interfaces.iter()).map(name).collect();
    names.sort();
    names
}

/// Senders are not asked who they are.
fn open_to_all(live: &Live, streams: &PcapOverIp) -> Option<Finding> {
    let Sender::Listen(address) = &streams.sender else { return None };
    let path = format!("{}.listen", live.path);
    let text = format!(
        "whoever reaches {address} over the network can add packets to the record, and they are \
         not encrypted on the way: restrict it with a firewall, or listen on 127.0.0.1 behind a \
         tunnel"
    );
    (!address.ip().is_loopback()).then(|| Finding::warning(path, text))
}

fn file(replay: &Replay) -> Option<Finding> {
    let options = ReplayOptions { path: replay.file.clone(), speed: Speed::Full };
    let error = ReplaySource::open(&options).err()?;
    Some(Finding::fault(Exit::Usage, "replay.file", chain(&error)))
}

fn pages(config: &Config) -> Option<Finding> {
    let bytes = config.buffer.size_bytes;
    let wanted = |kind: PageKind| bytes.div_ceil(kind.bytes() as u64);
    let has = |kind: PageKind| kind.free(None).is_some_and(|free| free >= wanted(kind));
    let kind = match config.buffer.hugepages {
        Hugepages::Off => return None,
        Hugepages::Size1GiB => PageKind::OneGiB,
        Hugepages::Size2MiB | Hugepages::Auto => PageKind::TwoMiB,
    };
    let shortage = kind.shortage(wanted(kind), None);
    (!has(kind)).then(|| {
        let text = format!("{shortage}; until then ordinary pages are used, which are slower");
        Finding::warning("buffer.hugepages", text)
    })
}

fn cpus(config: &Config) -> Vec<Finding> {
    let Ok(allowed) = sched_getaffinity(Pid::from_raw(0)) else { return Vec::new() };
    let has = |cpu: usize| cpu < CpuSet::count() && allowed.is_set(cpu).unwrap_or(false);
    let lanes = config.lane_cpus.iter().take(config.lanes()).enumerate();
    let absent = lanes.filter(|(_, cpu)| !has(usize::from(**cpu)));
    absent
        .map(|(number, cpu)| {
            let text = format!(
                "CPU {cpu} is absent, or this process may not use it: lane {number} runs anywhere"
            );
            Finding { degrades: true, ..Finding::warning(format!("cpus.lanes[{number}]"), text) }
        })
        .collect()
}

fn store(config: &Config, key: &KeySource) -> Vec<Finding> {
    let Some(first) = config.stores.first() else { return Vec::new() };
    let reader = match open_store(first, key) {
        Ok(reader) => reader,
        Err(IndexError::Taken(error)) => return vec![taken(error.to_string())],
        Err(error) => {
            let error = DaemonError::Read(error);
            return vec![Finding::fault(error.exit(), "store", error.chain())];
        }
    };
    let mut findings = Vec::new();
    for (path, why) in &reader.missing {
        let text = format!("volume {path} cannot be opened: {why}");
        findings.push(Finding::fault(Exit::Store, "store", text));
    }
    for volume in &reader.volumes {
        if let Some(Err(error)) = &volume.ring {
            findings.push(Finding::fault(read_exit(error), "key", chain(error)));
        }
        let path = volume.media.describe();
        if access(Path::new(&path), AccessFlags::W_OK).is_err() {
            let text = format!("{path} cannot be written by this user");
            findings.push(Finding::fault(Exit::Store, "store", text));
        }
    }
    findings
}

/// A recorder has the store's device, or the next start takes it back.
fn taken(text: String) -> Finding {
    Finding::new(Level::Note, Exit::Ok, "store", text)
}

/// Volumes that the recorder cannot drive itself, although it is to.
fn vfio(config: &Config) -> Vec<Finding> {
    let asked = config.vfio.iter().enumerate().filter(|(_, path)| path.exists());
    let told = asked.filter_map(|(number, path)| {
        let why = match devices::why_not_own(path) {
            Ok(reasons) if reasons.is_empty() => return None,
            Ok(reasons) => reasons.join("; "),
            Err(error) => error.chain(),
        };
        let text = format!("{}: {why}; the kernel drives the device instead", path.display());
        Some(Finding::warning(format!("vfio[{number}]"), text))
    });
    told.collect()
}

/// It records without: what it could not write there the status tells.
fn unwritable(folder: &Folder) -> Option<Finding> {
    let Folder { key, path, is_made } = folder;
    let there = path.ancestors().find(|it| it.exists())?;
    let may = || access(there, AccessFlags::W_OK | AccessFlags::X_OK);
    let why = match there == path {
        false if !is_made => "is not there".to_owned(),
        true if !path.is_dir() => "is no folder".to_owned(),
        _ => match may().err()? {
            error if there == path => format!("cannot be written by this user: {}", error.desc()),
            error => format!(
                "is not there and cannot be made by this user in {}: {}",
                there.display(),
                error.desc()
            ),
        },
    };
    let text = format!(
        "{} {why}; under systemd it must be the service's user's, and a folder of the unit \
         (`StateDirectory=` or `ReadWritePaths=`)",
        path.display()
    );
    Some(Finding::warning(*key, text))
}

fn api(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Err(error) = Access::new(&config.api) {
        findings.push(Finding::fault(error.exit(), "api", error.chain()));
    }
    let socket = &config.api.socket;
    if std::os::unix::net::UnixStream::connect(socket).is_ok() {
        let text = format!("a recorder answers on {} now", socket.display());
        findings.push(Finding::new(Level::Note, Exit::Ok, "api.socket", text));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        wirevault_config::parse(text, "t").unwrap()
    }

    fn texts(findings: &[Finding]) -> String {
        findings.iter().map(|finding| format!("{finding}\n")).collect()
    }

    #[test]
    fn what_the_machine_lacks_is_told_with_its_place() {
        let text = "store: /nowhere\nbuffer:\n  size: 1GiB\n  hugepages: 1GiB\n\
            cpus:\n  lanes: [8000, 8001]\napi:\n  users: [no-such-user]\n\
            capture:\n  - interface: lo\n    filter: tcpp\n  - interface: none7\n";
        let findings = all(&config(text), &KeySource::Recorded);
        let told = texts(&findings);
        for part in [
            "store: /nowhere is not a Wirevault store",
            "capture[0].filter: ",
            "capture[1].interface: `none7` does not exist here; present are: ",
            "cpus.lanes[0]: CPU 8000",
            "api.users[0] is no-such-user",
        ] {
            assert!(told.contains(part), "{part}\nis not in\n{told}");
        }
        let worst = findings.iter().filter(|it| it.level == Level::Fault).map(|it| it.exit).max();
        assert_eq!(worst, Some(Exit::Machine));
    }

    #[test]
    fn folders_that_cannot_be_written_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let here = dir.path().display();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let told = |folder: &str, tier: &str, anchor: &str| {
            let text = format!(
                "store: /a\nreplay: {{file: /a}}\nsnapshots: {{folder: {here}/{folder}}}\n\
                 tier: {{url: 'file://{here}/{tier}'}}\naudit: {{anchor: {here}/{anchor}/heads}}\n"
            );
            texts(&all(&config(&text), &KeySource::Recorded))
        };
        let fine = told("made/when/needed", ".", ".");
        for key in ["snapshots.folder", "tier.url", "audit.anchor"] {
            assert!(!fine.contains(key), "{fine}");
        }
        let amiss = told("file", "none", "none");
        for part in [
            format!("snapshots.folder: {here}/file is no folder"),
            format!("tier.url: {here}/none is not there"),
            format!("audit.anchor: {here}/none is not there"),
        ] {
            assert!(amiss.contains(&part), "{part}\nis not in\n{amiss}");
        }
    }

    #[test]
    fn an_open_door_is_told_and_needs_no_privilege() {
        let text =
            "store: /a\npcap_over_ip:\n  - listen: 0.0.0.0:57012\n  - listen: '[::1]:57012'\n";
        let told = texts(&machine(&config(text)));
        assert!(told.contains("pcap_over_ip[0].listen: whoever reaches 0.0.0.0:57012"), "{told}");
        assert!(!told.contains("pcap_over_ip[1]") && !told.contains("CAP_NET_RAW"), "{told}");
    }

    #[test]
    fn a_file_to_replay_must_be_a_capture() {
        let findings = machine(&config("store: /a\nreplay:\n  file: /etc/passwd\n"));
        let told = texts(&findings);
        assert!(told.contains("replay.file: /etc/passwd"), "{told}");
        assert!(!told.contains("CAP_NET_RAW"), "a file needs no privilege");
    }
}
