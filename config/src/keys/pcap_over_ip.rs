//! Programs that send packets over TCP: `pcap_over_ip`.

use wirevault_format::limits::SNAPLEN_MAX;

use super::Without::{Nothing, Value};
use super::{
    FILTER_BYTES_MAX, INTERFACES_MAX, Key, Kind, LANES_PER_INTERFACE_MAX, hidden, key, size,
};

pub(super) const KEYS: &[Key] = &[
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
];
