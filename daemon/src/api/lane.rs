//! The books of a lane.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wirevault_query::summary::Instant;

/// The books of one lane, and how it works.
///
/// `received = stored + shed + dropped + in_flight`; the other counts are parts of these, or stand
/// beside them where that is said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LaneStatus {
    /// Number.
    pub lane: u16,
    /// Interface; nothing for a file.
    pub interface: Option<String>,
    /// Kind of source: `packet_mmap`, `af_xdp`, `pcap_over_ip`, `udp_target`, `replay`; offline
    /// `live` or `import`.
    pub source: String,
    /// `running`, `starved`, `interface_down`, `blocked`, `ended`.
    pub state: String,
    /// Packets that came in.
    pub received: u64,
    /// Packets durable.
    pub stored: u64,
    /// Packets left out by a configured filter or policy.
    pub shed: u64,
    /// What policies did, and then the rungs of the pressure ladder.
    #[serde(default)]
    pub policies: Vec<PolicyStatus>,
    /// The pressure on it; nothing offline.
    #[serde(default)]
    pub pressure: Option<PressureStatus>,
    /// Packets lost.
    pub dropped: u64,
    /// The same by cause.
    pub dropped_by_cause: BTreeMap<String, u64>,
    /// Packets on their way.
    pub in_flight: u64,
    /// Those of them that are still in the source's ring.
    pub in_ring: u64,
    /// Packets stored with some of their bytes cut.
    pub cut: u64,
    /// Packets stored whose headers no parser understood.
    pub unparsed: u64,
    /// Records of a file that cannot be delimited: beside the sum.
    pub unreadable: u64,
    /// Packets whose time had parts below the nanosecond, or lay outside 1970 to 2554.
    pub times_rounded: u64,
    /// Packets longer than the file's own snap length; what lies behind it, tcpdump does not see.
    pub cut_to_snaplen: u64,
    /// Packets whose fraction of a second was a second or more; it is carried over.
    pub times_carried: u64,
    /// Packets that lost some of their options.
    pub options_cut: u64,
    /// Blocks of a file that are not kept, by kind.
    pub skipped_blocks: BTreeMap<String, u64>,
    /// Sequence number below which everything is durable.
    pub watermark: u64,
    /// Age of the oldest packet that is not durable, ms; 0 when all are.
    pub unacknowledged_age_ms: u64,
    /// Largest packet time below the watermark.
    pub durable_until: Option<Instant>,
    /// Chunks that queries must scan, because the index does not cover them.
    pub unindexed_chunks: u64,
    /// Packets stored without the outer headers that they came with.
    pub stripped: u64,
    /// Packets stored as they came because they are fragments of a tunnel's packets.
    pub kept_fragments: u64,
    /// Packets that the mirror had cut, of those stripped by the lane or by a mirror target.
    pub truncated_mirror: u64,
    /// Packets marked as second copies of others that the input's lanes stored.
    pub duplicates: u64,
    /// Chunks with more flows than the index follows, or indexed coarsely under pressure: filters
    /// over addresses and ports cover them.
    pub filtered_chunks: u64,
    /// Flows of the open segment so far; 0 offline.
    pub flows: u64,
    /// Flows of a segment that the index follows at most; 0 offline and before the first packet.
    pub flows_max: u64,
    /// Pages that hold the lane's chunks.
    pub hugepages: String,
    /// How the interface's packets are shared between lanes; nothing with one lane.
    pub fanout: Option<String>,
    /// Bytes of the kernel's ring.
    pub ring_bytes: u64,
    /// CPU the lane is pinned to.
    pub cpu: Option<usize>,
    /// What stamps the packets.
    pub clocks: Vec<String>,
    /// What else people should know of the source; of an interface first why it is this kind.
    pub notes: Vec<String>,
    /// The last thing that went wrong.
    pub error: Option<String>,
}

/// How much pressure there is on a lane: the largest of its causes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PressureStatus {
    /// The pressure, in thousandths.
    pub permille: u64,
    /// What it comes from: `buffer`, `queue`, `disk`.
    pub cause: String,
    /// Each cause, in thousandths: share of the chunks in use; how late the device is that the lane
    /// writes to, of the time after which it counts as stalled; all while no segment can be opened.
    pub by_cause: BTreeMap<String, u64>,
}

/// What a policy, or a rung of the pressure ladder, did on a lane.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyStatus {
    /// Its name in the configuration.
    pub name: String,
    /// It is a rung: it holds under pressure only.
    pub rung: bool,
    /// It holds now.
    pub active: bool,
    /// How often the rung was entered, by what the pressure came from.
    #[serde(default)]
    pub entered: BTreeMap<String, u64>,
    /// Packets that it left out: a part of the lane's `shed`.
    pub shed: u64,
    /// Packets that it cut: a part of the lane's `cut`.
    pub cut: u64,
}
