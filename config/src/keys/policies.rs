//! What is left out on purpose, always or under pressure: `policies` and `pressure`.

use wirevault_format::PolicyName;
use wirevault_format::limits::SNAPLEN_MAX;

use super::Without::{Fault, Nothing};
use super::{FILTER_BYTES_MAX, GIB, Key, Kind, hidden, key, size};
use crate::policies::PolicyAction;

/// Policies at most, and rungs at most. Each is asked for every packet, and a chunk has room for a
/// gap of each.
const POLICIES_MAX: usize = 8;
/// Flows of which one is kept, at most.
const ONE_IN_MAX: u64 = 1 << 20;
/// A lane holds a chunk while packets come, and a disk some while it flushes: without any trouble
/// there is always some pressure.
const SHARE: Kind = Kind::Percent { min: 10, max: 100 };
const NAME: Kind = Kind::Word(PolicyName::BYTES_MAX);

const FLOW_BYTES: &str = "With `action: cutoff`: bytes of a flow, both directions together; \
     packets that begin behind them are left out. A TCP connection that begins anew, or a pause \
     of a minute, counts anew.";
const SNAPLEN: &str = "With `action: snaplen`: bytes kept of each packet; its true length is kept.";

pub(super) const KEYS: &[Key] = &[
    hidden(key(
        "policies",
        Kind::Sections(POLICIES_MAX),
        Nothing,
        "",
        "What is left out, always, of the packets that come now. Policies are asked in this order; \
         the first that leaves a packet out decides, `keep` spares it from all behind. What is \
         left out is counted as `shed`, by policy, and told in the data; answers about such times \
         are incomplete.",
    )),
    hidden(key(
        "policies[].name",
        NAME,
        Fault,
        "backups",
        "Name in data, status and metrics; no two have the same.",
    )),
    hidden(key(
        "policies[].action",
        Kind::Choice(PolicyAction::STANDING),
        Fault,
        "cutoff",
        "`drop` leaves packets out, `cutoff` those behind the first bytes of their flow, `sample` \
         all but one of so many flows; `snaplen` cuts packets; `keep` spares them from the \
         policies behind it and from `pressure`.",
    )),
    hidden(key(
        "policies[].filter",
        Kind::Filter(FILTER_BYTES_MAX),
        Nothing,
        "tcp port 873",
        "Packets it is for, as a tcpdump filter; without it all are.",
    )),
    hidden(key(
        "policies[].interface",
        Kind::Interface,
        Nothing,
        "eth0",
        "The interface of `capture` it is for; without it it is for all that comes now.",
    )),
    hidden(key("policies[].flow_bytes", size(1, 1024 * GIB, 1), Nothing, "1MiB", FLOW_BYTES)),
    hidden(key(
        "policies[].one_in",
        Kind::Count { min: 2, max: ONE_IN_MAX },
        Nothing,
        "100",
        "With `action: sample`: one of so many flows is kept, both directions together.",
    )),
    hidden(key("policies[].snaplen", size(64, SNAPLEN_MAX as u64, 1), Nothing, "128B", SNAPLEN)),
    hidden(key(
        "pressure",
        Kind::Sections(POLICIES_MAX),
        Nothing,
        "",
        "Rungs of a ladder that a lane climbs while the disk is slower than the wire, so that it \
         loses what matters least. They hold for all that comes now, behind `policies`. Each is \
         marked in the data when it is entered and left. Without them packets are lost when the \
         buffer is full, whichever they are.",
    )),
    hidden(key(
        "pressure[].name",
        NAME,
        Fault,
        "long",
        "Name in data, status and metrics; no two have the same, nor that of a policy.",
    )),
    hidden(key(
        "pressure[].action",
        Kind::Choice(PolicyAction::UNDER_PRESSURE),
        Fault,
        "cutoff",
        "`coarse_index` keeps no flows in the index, which costs queries time and no packets; \
         `cutoff`, `snaplen` and `drop` are those of `policies`.",
    )),
    hidden(key(
        "pressure[].enter",
        SHARE,
        Fault,
        "50%",
        "Pressure at which the rung is entered: the share of the packet buffer in use; or how late \
         the lane's device is, of 10 s; or 100% while no segment can be opened; whichever is \
         largest. No rung is entered before the one above it in this list.",
    )),
    hidden(key(
        "pressure[].leave",
        SHARE,
        Fault,
        "35%",
        "Pressure that it must have been below for a second to leave the rung, one rung at a time. \
         A healthy disk holds up to about 30 % of the buffer while it flushes.",
    )),
    hidden(key(
        "pressure[].filter",
        Kind::Filter(FILTER_BYTES_MAX),
        Nothing,
        "not port 53",
        "Packets it is for, as a tcpdump filter; without it all are. Not with `coarse_index`.",
    )),
    hidden(key("pressure[].flow_bytes", size(1, 1024 * GIB, 1), Nothing, "256KiB", FLOW_BYTES)),
    hidden(key("pressure[].snaplen", size(64, SNAPLEN_MAX as u64, 1), Nothing, "128B", SNAPLEN)),
];
