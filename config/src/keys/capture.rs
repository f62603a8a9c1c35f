//! Network interfaces to record: `capture`.

use wirevault_format::limits::SNAPLEN_MAX;

use super::Without::{Fault, Nothing, Value};
use super::{
    CAPTURE_RING_STEP_BYTES, DUPLICATES, DUPLICATES_WINDOW, FILTER_BYTES_MAX, GIB, INTERFACES_MAX,
    Key, Kind, LANES_PER_INTERFACE_MAX, MIB, PORT, SECOND_MS, TUNNEL, TUNNELS_DEFAULT,
    VXLAN_PORTS_DEFAULT, VXLAN_PORTS_MAX, hidden, key, millis, size,
};
use crate::settings::{DecapMode, Duplicates, SourceKind, Tunnel};

/// Ports of `udp_ports` at most: as many as the XDP program tests.
const UDP_PORTS_MAX: usize = 16;

pub(super) const KEYS: &[Key] = &[
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
    hidden(key(
        "capture[].budget",
        size(64 * MIB, 1 << 50, 1),
        Nothing,
        "100GiB",
        "Bytes that packets of this interface may take, all lanes and volumes together; then its \
         own oldest go. Segments count for the number of their lane: who changes the order of \
         the interfaces changes whose they are.",
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
         in UTC. With AF_XDP its driver must tell the program of them.",
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
];
