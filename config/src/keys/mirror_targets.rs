//! Sockets that mirrors send to: `mirror_targets`.

use wirevault_format::limits::SNAPLEN_MAX;

use super::Without::{Fault, Nothing, Value};
use super::{
    DUPLICATES, DUPLICATES_WINDOW, FILTER_BYTES_MAX, GIB, Key, Kind, LANES_PER_INTERFACE_MAX, MIB,
    SECOND_MS, hidden, key, millis, size,
};
use crate::settings::{Duplicates, MirrorTunnel};

/// Mirror targets at most: a machine has a few addresses, and lanes are the scarcer thing.
const MIRROR_TARGETS_MAX: usize = 16;

pub(super) const KEYS: &[Key] = &[
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
];
