//! A file that is recorded: `replay`.

use super::Without::{Fault, Nothing, Value};
use super::{
    Key, Kind, PATH_BYTES_MAX, PORT, TUNNEL, TUNNELS_DEFAULT, VXLAN_PORTS_DEFAULT, VXLAN_PORTS_MAX,
    hidden, key,
};
use crate::settings::{DecapMode, Speed, Tunnel};

pub(super) const KEYS: &[Key] = &[
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
];
