//! The table of all keys: the only place that knows their kinds, defaults, ranges and meanings.

use std::time::Duration;

use wirevault_format::limits::{CHUNK_BYTES, SNAPLEN_MAX};

use crate::settings::{
    DecapMode, Duplicates, Hugepages, LogLevel, MirrorTunnel, SourceKind, Speed, Topology, Tunnel,
};
use crate::units::{duration_text, size_text};

/// Volumes of a store at most.
pub const VOLUMES_MAX: usize = 8;
/// Interfaces at most: a segment describes no more.
pub const INTERFACES_MAX: usize = wirevault_format::limits::SEGMENT_INTERFACES_MAX;
/// Bytes of an interface name at most. Source: IFNAMSIZ of linux/if.h, less the closing zero byte.
pub const INTERFACE_NAME_BYTES_MAX: usize = 15;
/// Lanes of one interface at most.
pub const LANES_PER_INTERFACE_MAX: u64 = 32;
/// A kernel ring is a multiple of this: the block size that a lane hands back to the kernel at
/// once.
pub const CAPTURE_RING_STEP_BYTES: u64 = 1 << 20;
/// UDP ports of VXLAN at most. A lane compares with each.
const VXLAN_PORTS_MAX: usize = 8;
/// Mirror targets at most: a machine has a few addresses, and lanes are the scarcer thing.
const MIRROR_TARGETS_MAX: usize = 16;
/// Bytes of a path at most. Source: PATH_MAX of linux/limits.h, less the closing zero byte.
const PATH_BYTES_MAX: usize = 4095;
/// Bytes of a socket's path at most. Source: `sun_path` in unix(7), less the closing zero byte.
const SOCKET_BYTES_MAX: usize = 107;
/// Bytes of a filter at most; tcpdump filters are a line or two.
const FILTER_BYTES_MAX: usize = 4096;
/// Users or groups at most.
const PRINCIPALS_MAX: usize = 256;
/// Ports of `udp_ports` at most: as many as the XDP program tests.
const UDP_PORTS_MAX: usize = 16;
/// Highest CPU number. Source: the largest NR_CPUS of Linux is 8192.
pub(crate) const CPU_MAX: u16 = 8191;

/// One key of the configuration.
#[derive(Debug)]
pub struct Key {
    /// Where it stands: names joined by dots, `[]` after the name of a list of sections.
    pub path: &'static str,
    /// What its value is.
    pub kind: Kind,
    /// What holds without it.
    pub without: Without,
    /// A value for the example file; empty for sections. Equals the default where there is one.
    pub example: &'static str,
    /// Whether the example file sets it; otherwise it stands there with a `#` before it.
    pub shown: bool,
    /// What it means: full sentences.
    pub meaning: &'static str,
}

impl Key {
    /// The last part of the path.
    pub fn name(&self) -> &'static str {
        self.path.rsplit('.').next().unwrap_or(self.path)
    }

    /// The path of the section it stands in; empty at the top. Ends with `[]` in a list of
    /// sections.
    pub fn parent(&self) -> &'static str {
        self.path.rsplit_once('.').map_or("", |(parent, _)| parent)
    }
}

/// What holds when a key is absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Without {
    /// Absence is a fault.
    Fault,
    /// This value, written as in a file.
    Value(&'static str),
    /// Nothing in particular; the meaning says what.
    Nothing,
}

/// What a value is, and its range.
#[derive(Debug)]
#[non_exhaustive]
pub enum Kind {
    /// A mapping of further keys.
    Section,
    /// A list of at most so many mappings of further keys.
    Sections(usize),
    /// A list of at most so many values; one value alone may stand without the list.
    List(&'static Kind, usize),
    /// Bytes: least, most, and what it is a multiple of.
    Size {
        /// Least.
        min: u64,
        /// Most.
        max: u64,
        /// The value is a multiple of this.
        step: u64,
    },
    /// A length of time.
    Duration {
        /// Shortest.
        min: Duration,
        /// Longest.
        max: Duration,
    },
    /// A number.
    Count {
        /// Least.
        min: u64,
        /// Most.
        max: u64,
    },
    /// `true` or `false`.
    Switch,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// An absolute path of at most so many bytes.
    Path(usize),
    /// A name the kernel accepts for a network interface.
    Interface,
    /// A tcpdump filter of at most so many bytes.
    Filter(usize),
    /// An IP address of this machine, or all of them, and a port.
    Address,
    /// A host and a TCP port.
    Endpoint,
    /// A user's or group's name or number.
    Principal,
    /// A CPU number, or a range of them such as `2-5`.
    Cpus,
}

impl Kind {
    /// What may stand there, for people.
    pub fn allowed(&self) -> String {
        match self {
            Self::Section => "a mapping of keys".to_owned(),
            Self::Sections(max) => format!("a list of 1 to {max} mappings of keys"),
            Self::List(item, max) => format!("one, or a list of up to {max}: {}", item.allowed()),
            Self::Size { min, max, step } => {
                let range = format!("{} to {}", size_text(*min), size_text(*max));
                match step {
                    1 => range,
                    step => format!("{range}, a multiple of {}", size_text(*step)),
                }
            }
            Self::Duration { min, max } => {
                format!("{} to {}", duration_text(*min), duration_text(*max))
            }
            Self::Count { min, max } => format!("{min} to {max}"),
            Self::Switch => "true, false".to_owned(),
            Self::Choice(names) => names.join(", "),
            Self::Path(max) => format!("an absolute path of at most {max} bytes"),
            Self::Interface => format!(
                "an interface name of 1 to {INTERFACE_NAME_BYTES_MAX} bytes, no space, `/` or `:`"
            ),
            Self::Filter(max) => format!("a tcpdump filter of at most {max} bytes"),
            Self::Address => "an IP address and a port".to_owned(),
            Self::Endpoint => "a host and a port".to_owned(),
            Self::Principal => "a name or a number".to_owned(),
            Self::Cpus => format!("a CPU number from 0 to {CPU_MAX}, or a range such as 2-5"),
        }
    }
}

const fn key(
    path: &'static str,
    kind: Kind,
    without: Without,
    example: &'static str,
    meaning: &'static str,
) -> Key {
    Key { path, kind, without, example, shown: true, meaning }
}

/// A key that the example file holds behind a `#`.
const fn hidden(key: Key) -> Key {
    Key { shown: false, ..key }
}

const fn size(min: u64, max: u64, step: u64) -> Kind {
    Kind::Size { min, max, step }
}

const fn millis(min: u64, max: u64) -> Kind {
    Kind::Duration { min: Duration::from_millis(min), max: Duration::from_millis(max) }
}

const DIRECTORY: Kind = Kind::Path(PATH_BYTES_MAX);
const PRINCIPAL: Kind = Kind::Principal;
const CPUS: Kind = Kind::Cpus;
const PORT: Kind = Kind::Count { min: 1, max: u16::MAX as u64 };
const TUNNEL: Kind = Kind::Choice(Tunnel::NAMES);
/// All but VLAN tags, which every tool and every filter knows.
const TUNNELS_DEFAULT: &str = "[mpls, vxlan, geneve, gre, erspan, gtp_u, ip_in_ip]";
/// The assigned port, and Linux's older default.
const VXLAN_PORTS_DEFAULT: &str = "[4789, 8472]";

const DUPLICATES: &str = "`mark` tells second copies of a packet, as overlapping mirrors send \
     them, by a mark beside the packet. They are stored and found like all others, unless `query` \
     is asked to leave them out. Copies are equal from the IP header on, except for the hop limit; \
     other packets must be equal in every byte.";
const DUPLICATES_WINDOW: &str = "Longest time between two copies. A sender that repeats a packet \
     byte for byte sooner than this is taken for a mirror. The last 131,072 packets at most are \
     remembered, in 2 MiB.";

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const SECOND_MS: u64 = 1000;
const DAY_MS: u64 = 24 * 3600 * SECOND_MS;

use Without::{Fault, Nothing, Value};

/// All keys, in the order of the example file. A section stands before its keys.
pub static TABLE: &[Key] = &[
    key(
        "store",
        Kind::List(&DIRECTORY, VOLUMES_MAX),
        Fault,
        "/var/lib/wirevault",
        "Directory of the store, or a list of directories, one on each disk. The first names the \
         others. `wirevault init` makes it. `--store` on the command line goes before this key.",
    ),
    hidden(key(
        "key_file",
        Kind::Path(PATH_BYTES_MAX),
        Nothing,
        "/etc/wirevault/keys/store.key",
        "File of the key that the store is sealed with. It must not lie in the store. Without this \
         key it is /etc/wirevault/keys/ID.key, where ID is the store's id.",
    )),
    key(
        "capture",
        Kind::Sections(INTERFACES_MAX),
        Nothing,
        "",
        "Network interfaces to record. This, `pcap_over_ip`, `mirror_targets` or `replay` must be \
         there.",
    ),
    key(
        "capture[].interface",
        Kind::Interface,
        Fault,
        "eth0",
        "Name of the interface, as `ip link` shows it.",
    ),
    key(
        "capture[].lanes",
        Kind::Count { min: 1, max: LANES_PER_INTERFACE_MAX },
        Value("1"),
        "1",
        "Threads that share the interface's packets. Each keeps a CPU busy under load; one is \
         enough for some gigabits a second.",
    ),
    key(
        "capture[].snaplen",
        size(64, SNAPLEN_MAX as u64, 1),
        Value("256KiB"),
        "256KiB",
        "Bytes kept of every packet. Longer packets are cut; their true length is kept.",
    ),
    key(
        "capture[].promiscuous",
        Kind::Switch,
        Value("true"),
        "true",
        "Record packets that are addressed to other machines, too.",
    ),
    hidden(key(
        "capture[].filter",
        Kind::Filter(FILTER_BYTES_MAX),
        Nothing,
        "not port 22",
        "Record only packets that this tcpdump filter selects. Without it all are recorded.",
    )),
    key(
        "capture[].ring",
        size(4 * MIB, 16 * GIB, CAPTURE_RING_STEP_BYTES),
        Value("64MiB"),
        "64MiB",
        "Kernel memory of each lane for packets not taken yet. It bridges pauses of the lane: \
         64MiB hold 18 ms of 30 Gbit/s.",
    ),
    key(
        "capture[].source",
        Kind::Choice(SourceKind::NAMES),
        Value("auto"),
        "auto",
        "How packets are taken. `packet_mmap` works everywhere and leaves packets to the machine. \
         `af_xdp` takes packets away: this machine and other programs do not see them; it costs \
         less where the card writes into our memory itself (zero-copy). `auto` takes `af_xdp` only \
         there, and only where nobody misses them; `wirevault status` says which and why.",
    ),
    hidden(key(
        "capture[].udp_ports",
        Kind::List(&PORT, UDP_PORTS_MAX),
        Nothing,
        "[4789, 6081]",
        "Record only UDP packets to these ports, as for a target of mirrored traffic. AF_XDP then \
         takes only these away; all others stay with the machine. With `decap: strip` it needs \
         `source: af_xdp`.",
    )),
    hidden(key(
        "capture[].busy_poll",
        Kind::Switch,
        Value("false"),
        "false",
        "With AF_XDP: the lane polls the card instead of sleeping. It keeps a CPU busy.",
    )),
    hidden(key(
        "capture[].hardware_time",
        Kind::Switch,
        Value("false"),
        "false",
        "Store the network card's own time stamps. The card must be set up for it, with its clock \
         in UTC. Not with `source: af_xdp`.",
    )),
    key(
        "capture[].decap",
        Kind::Choice(DecapMode::NAMES),
        Value("keep"),
        "keep",
        "`strip` stores what is inside tunnels, and ids and addresses of the outer headers beside \
         it; snaplen and filter then count for what is inside.",
    ),
    key(
        "capture[].decap_tunnels",
        Kind::List(&TUNNEL, Tunnel::NAMES.len()),
        Value(TUNNELS_DEFAULT),
        TUNNELS_DEFAULT,
        "What `strip` removes. A tunnel that is not named stays, with all that is inside it.",
    ),
    key(
        "capture[].vxlan_ports",
        Kind::List(&PORT, VXLAN_PORTS_MAX),
        Value(VXLAN_PORTS_DEFAULT),
        VXLAN_PORTS_DEFAULT,
        "UDP ports of VXLAN, for `strip` and for the index. The record keeps them, so that flows \
         and tunnel ids are found in it wherever it is read.",
    ),
    hidden(key(
        "capture[].duplicates",
        Kind::Choice(Duplicates::NAMES),
        Value("keep"),
        "keep",
        DUPLICATES,
    )),
    hidden(key(
        "capture[].duplicates_window",
        millis(1, 10 * SECOND_MS),
        Value("10ms"),
        "10ms",
        DUPLICATES_WINDOW,
    )),
    hidden(key(
        "pcap_over_ip",
        Kind::Sections(INTERFACES_MAX),
        Nothing,
        "",
        "Programs that send pcap or pcapng over TCP (PCAP-over-IP), beside interfaces or instead \
         of them.",
    )),
    hidden(key(
        "pcap_over_ip[].listen",
        Kind::Address,
        Nothing,
        "127.0.0.1:57012",
        "Address to wait for senders on. Whoever reaches it can add packets to the record; nothing \
         is encrypted on the way. Either this or `connect` must be there.",
    )),
    hidden(key(
        "pcap_over_ip[].connect",
        Kind::Endpoint,
        Nothing,
        "sensor.example:57012",
        "Sender to connect to, again and again. Either this or `listen` must be there.",
    )),
    hidden(key(
        "pcap_over_ip[].lanes",
        Kind::Count { min: 1, max: LANES_PER_INTERFACE_MAX },
        Value("1"),
        "1",
        "Senders that are taken from at a time, each on a thread of its own; further ones wait. \
         With `connect` it is 1.",
    )),
    hidden(key(
        "pcap_over_ip[].interface",
        Kind::Interface,
        Nothing,
        "tap0",
        "Interface name to store the packets under. Without it the names in the streams are kept.",
    )),
    hidden(key(
        "pcap_over_ip[].snaplen",
        size(64, SNAPLEN_MAX as u64, 1),
        Value("256KiB"),
        "256KiB",
        "Bytes kept of every packet. Longer packets are cut; their true length is kept.",
    )),
    hidden(key(
        "pcap_over_ip[].filter",
        Kind::Filter(FILTER_BYTES_MAX),
        Nothing,
        "not port 22",
        "Record only packets that this tcpdump filter selects. Without it all are recorded.",
    )),
    hidden(key(
        "mirror_targets",
        Kind::Sections(MIRROR_TARGETS_MAX),
        Nothing,
        "",
        "Sockets that mirrors such as VPC Traffic Mirroring send to. They record what is inside, \
         need no privilege to watch an interface, and may stand alone or beside `capture`.",
    )),
    hidden(key(
        "mirror_targets[].listen",
        Kind::Address,
        Fault,
        "0.0.0.0:4789",
        "Address and UDP port that the mirror sends to.",
    )),
    hidden(key(
        "mirror_targets[].tunnel",
        Kind::Choice(MirrorTunnel::NAMES),
        Value("vxlan"),
        "vxlan",
        "What the packets are wrapped in: `vxlan` from a mirror session, `geneve` from a Gateway \
         Load Balancer. VXLAN inside GENEVE is removed, too.",
    )),
    hidden(key(
        "mirror_targets[].lanes",
        Kind::Count { min: 1, max: LANES_PER_INTERFACE_MAX },
        Value("1"),
        "1",
        "Threads that share the packets, by their outer addresses and ports.",
    )),
    hidden(key(
        "mirror_targets[].snaplen",
        size(64, SNAPLEN_MAX as u64, 1),
        Value("256KiB"),
        "256KiB",
        "Bytes kept of every inner packet.",
    )),
    hidden(key(
        "mirror_targets[].filter",
        Kind::Filter(FILTER_BYTES_MAX),
        Nothing,
        "not port 22",
        "Record only inner packets that this tcpdump filter selects.",
    )),
    hidden(key(
        "mirror_targets[].buffer",
        size(MIB, GIB, 1),
        Value("64MiB"),
        "64MiB",
        "Kernel memory of each lane for packets not taken yet. Above net.core.rmem_max it needs \
         CAP_NET_ADMIN.",
    )),
    hidden(key(
        "mirror_targets[].duplicates",
        Kind::Choice(Duplicates::NAMES),
        Value("keep"),
        "keep",
        DUPLICATES,
    )),
    hidden(key(
        "mirror_targets[].duplicates_window",
        millis(1, 10 * SECOND_MS),
        Value("10ms"),
        "10ms",
        DUPLICATES_WINDOW,
    )),
    hidden(key(
        "replay",
        Kind::Section,
        Nothing,
        "",
        "A file to record instead of interfaces, as a test or a demonstration.",
    )),
    hidden(key(
        "replay.file",
        Kind::Path(PATH_BYTES_MAX),
        Fault,
        "/var/tmp/capture.pcapng",
        "The pcap or pcapng file, plain or compressed with gzip, zstd or lz4.",
    )),
    hidden(key(
        "replay.speed",
        Kind::Choice(Speed::NAMES),
        Value("full"),
        "full",
        "`full` stores as quickly as the store can take it; `realtime` keeps the pauses between \
         the packets.",
    )),
    hidden(key(
        "replay.interface",
        Kind::Interface,
        Nothing,
        "eth0",
        "Interface name to store the packets under. Without it the names in the file are kept.",
    )),
    hidden(key(
        "replay.decap",
        Kind::Choice(DecapMode::NAMES),
        Value("keep"),
        "keep",
        "`strip` stores what is inside tunnels, and ids and addresses of the outer headers beside \
         it; snaplen and filter then count for what is inside.",
    )),
    hidden(key(
        "replay.decap_tunnels",
        Kind::List(&TUNNEL, Tunnel::NAMES.len()),
        Value(TUNNELS_DEFAULT),
        TUNNELS_DEFAULT,
        "What `strip` removes. A tunnel that is not named stays, with all that is inside it.",
    )),
    hidden(key(
        "replay.vxlan_ports",
        Kind::List(&PORT, VXLAN_PORTS_MAX),
        Value(VXLAN_PORTS_DEFAULT),
        VXLAN_PORTS_DEFAULT,
        "UDP ports of VXLAN, for `strip` and for the index. The record keeps them, so that flows \
         and tunnel ids are found in it wherever it is read.",
    )),
    key("buffer", Kind::Section, Nothing, "", "Memory for packets on their way to the disk."),
    key(
        "buffer.size",
        size(4 * MIB, 256 * GIB, CHUNK_BYTES as u64),
        Value("64MiB"),
        "64MiB",
        "Bytes of the buffer. It bridges pauses of the disk; every lane needs 1MiB at least.",
    ),
    key(
        "buffer.hugepages",
        Kind::Choice(Hugepages::NAMES),
        Value("auto"),
        "auto",
        "Pages to use: `auto` takes the largest that can be had; `wirevault status` says which.",
    ),
    key(
        "flush_age",
        millis(1, 10 * SECOND_MS),
        Value("250ms"),
        "250ms",
        "Longest time that a packet waits in memory on a quiet link.",
    ),
    key(
        "commit_interval",
        millis(1, 10 * SECOND_MS),
        Value("100ms"),
        "100ms",
        "Time between two flushes of the disk's cache. What is not flushed may be lost in a crash.",
    ),
    key(
        "segment_age",
        millis(10 * SECOND_MS, 7 * DAY_MS),
        Value("1h"),
        "1h",
        "Longest time that a segment is written to. Segments are what is deleted as a whole.",
    ),
    key("api", Kind::Section, Nothing, "", "The socket that the command line talks to."),
    key(
        "api.socket",
        Kind::Path(SOCKET_BYTES_MAX),
        Value("/run/wirevault/wirevault.sock"),
        "/run/wirevault/wirevault.sock",
        "Path of the unix socket.",
    ),
    key(
        "api.users",
        Kind::List(&PRINCIPAL, PRINCIPALS_MAX),
        Value("[]"),
        "[]",
        "Users, by name or number, who may ask questions, beside root and the daemon's own user.",
    ),
    key(
        "api.groups",
        Kind::List(&PRINCIPAL, PRINCIPALS_MAX),
        Value("[]"),
        "[]",
        "Groups, by name or number, whose members may ask questions.",
    ),
    hidden(key(
        "cpus",
        Kind::Section,
        Nothing,
        "",
        "Which CPUs do what. Without it the system decides.",
    )),
    hidden(key(
        "cpus.lanes",
        Kind::List(&CPUS, CPU_MAX as usize),
        Nothing,
        "[2, 3-5]",
        "CPUs for the lanes, in the order of the interfaces: at least one for each lane. Other \
         threads are kept off them, and get CPUs of their own while there are some.",
    )),
    hidden(key(
        "cpus.topology",
        Kind::Choice(Topology::NAMES),
        Value("auto"),
        "auto",
        "Threads: `split` has one for each lane and one that seals for it; with \
         `run_to_completion` lanes seal themselves; `auto` takes `split` if each of its threads \
         can have a CPU.",
    )),
    key(
        "log",
        Kind::Choice(LogLevel::NAMES),
        Value("info"),
        "info",
        "The least important messages to log.",
    ),
];

const _: () = assert!(SNAPLEN_MAX as u64 == 256 * KIB, "the default snaplen is the largest");
const _: () = assert!(4 * CHUNK_BYTES as u64 == MIB, "`buffer.size` names what a lane needs");

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn paths_are_unique_and_sections_come_first() {
        let mut seen = HashSet::from([""]);
        for key in TABLE {
            let parent = key.parent();
            let section = parent.strip_suffix("[]").unwrap_or(parent);
            assert!(seen.contains(section), "{}: its section comes later", key.path);
            assert!(seen.insert(key.path), "{} is there twice", key.path);
            let list = TABLE.iter().find(|other| other.path == section);
            let is_list = list.is_some_and(|key| matches!(key.kind, Kind::Sections(_)));
            assert_eq!(parent.ends_with("[]"), is_list, "{}", key.path);
        }
    }

    #[test]
    fn the_example_shows_the_default() {
        for key in TABLE {
            if let Value(default) = key.without {
                assert_eq!(default, key.example, "{}", key.path);
            }
            assert!(key.meaning.ends_with('.'), "{}: a sentence ends with a period", key.path);
            let is_section = matches!(key.kind, Kind::Section | Kind::Sections(_));
            assert_eq!(is_section, key.example.is_empty(), "{}", key.path);
            assert!(!is_section || key.without == Nothing, "{}", key.path);
        }
    }
}
