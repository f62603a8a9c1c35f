//! Paths and JSON of the API: HTTP/1.1 over a unix socket, or over TLS with certificates on both
//! sides.
//!
//! | request | role | answer |
//! |---|---|---|
//! | `GET /v1/openapi.json` | status | this, for programs |
//! | `GET /v1/status` | status | [`StatusReport`] |
//! | `GET /v1/segments` | status | list of [`SegmentRow`], oldest first, sent as it is made |
//! | `GET /v1/metrics` | status | OpenMetrics text |
//! | `GET /v1/lifecycle/plan` | status | [`Deletions`]: what the rules want deleted now |
//! | `POST /v1/lifecycle/apply`, an [`ApplyBody`] | admin | [`Deletions`]: what was deleted |
//! | `POST /v1/delete`, a [`DeleteBody`] | admin | [`Deletions`] |
//! | `POST /v1/volumes/replace`, a [`ReplaceBody`] | admin | [`Replaced`] |
//! | `GET /v1/holds` | admin | [`HoldsReport`] |
//! | `POST /v1/holds/add`, a [`HoldBody`] | admin | [`HoldsReport`] |
//! | `POST /v1/holds/release`, a [`ReleaseBody`] | admin | [`HoldsReport`] |
//! | `POST /v1/flows`, a [`QueryBody`] | query | one JSON object a line, last `{"summary":...}` |
//! | `POST /v1/query`, a [`QueryBody`] | export | pcapng; the last comment holds the summary |
//! | the same with `count_only` | query | the summary alone |
//! | `GET /v1/tail?filter=EXPR` | export | pcapng without end; comments tell what was missed |
//!
//! [`ENDPOINTS`] is that table for the program: what is not in it is not answered. A machine that
//! stands by answers what can be told from the store (status, segments, metrics, flows, queries)
//! and refuses the rest with 503.
//!
//! An error before the first byte of an answer is a status of 4xx or 5xx with an [`ErrorBody`]. An
//! error later breaks the connection off: an answer without its last chunk, and so without a
//! summary, is not whole.
//!
//! A connection ends that asks nothing for a minute, or takes 10 s over a request; an answer may
//! take any time.
//!
//! ```text
//! $ curl --unix-socket /run/wirevault/wirevault.sock http://localhost/v1/query \
//!     -H 'content-type: application/json' -d '{"filter":"tcp port 443"}' | tcpdump -nr -
//! $ curl --unix-socket /run/wirevault/wirevault.sock http://localhost/v1/query \
//!     -H 'content-type: application/json' -d '{"filter":"tcpp"}'
//! {"error":"the filter does not fit link type EN10MB: can't parse filter expression: ..."}
//! ```
//!
//! Times are Unix nanoseconds in requests; in answers they are objects of both forms, such as
//! `{"utc":"2026-11-21T05:00:00Z","ns":1795237200000000000}`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wirevault_config::Role;
use wirevault_lifecycle::certificate::Certificate;
use wirevault_lifecycle::retention::Step;
use wirevault_packet::TunnelId;
use wirevault_query::Request;
pub use wirevault_query::summary::Instant;

/// Where the socket is if nobody says otherwise: the default of `api.socket`.
pub const DEFAULT_SOCKET: &str = "/run/wirevault/wirevault.sock";
/// Path of the status.
pub const STATUS: &str = "/v1/status";
/// Path of the list of segments.
pub const SEGMENTS: &str = "/v1/segments";
/// Path of the metrics.
pub const METRICS: &str = "/v1/metrics";
/// Path of queries.
pub const QUERY: &str = "/v1/query";
/// Path of flow queries.
pub const FLOWS: &str = "/v1/flows";
/// Path of the plan of the retention rules.
pub const PLAN: &str = "/v1/lifecycle/plan";
/// Path to have a plan carried out.
pub const APPLY: &str = "/v1/lifecycle/apply";
/// Path to delete segments.
pub const DELETE: &str = "/v1/delete";
/// Path to have a volume that failed replaced.
pub const REPLACE: &str = "/v1/volumes/replace";
/// Path of the list of holds.
pub const HOLDS: &str = "/v1/holds";
/// Path to add a hold.
pub const HOLD_ADD: &str = "/v1/holds/add";
/// Path to release a hold.
pub const HOLD_RELEASE: &str = "/v1/holds/release";
/// Path of the state of a key that a service keeps.
pub const KEY: &str = "/v1/key";
/// Path to have the next epoch key take over.
pub const ROTATE: &str = "/v1/key/rotate";
/// Path of the live view; the query parameter is `filter`.
pub const TAIL: &str = "/v1/tail";
/// Path of the description of all these.
pub const OPENAPI: &str = "/v1/openapi.json";

/// One thing that can be asked.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint {
    /// `GET` or `POST`.
    pub method: &'static str,
    /// Path.
    pub path: &'static str,
    /// The least role that gets an answer.
    pub role: Role,
    /// What the answer is, for people.
    pub about: &'static str,
}

const fn endpoint(
    method: &'static str,
    path: &'static str,
    role: Role,
    about: &'static str,
) -> Endpoint {
    Endpoint { method, path, role, about }
}

/// All that can be asked, and by whom.
pub const ENDPOINTS: &[Endpoint] = &[
    endpoint("GET", OPENAPI, Role::Status, "This document."),
    endpoint("GET", STATUS, Role::Status, "What the recorder does, and its books."),
    endpoint("GET", SEGMENTS, Role::Status, "Segments, oldest first."),
    endpoint("GET", METRICS, Role::Status, "Metrics, as OpenMetrics text."),
    endpoint("GET", PLAN, Role::Status, "What the retention rules want deleted now."),
    endpoint("POST", APPLY, Role::Admin, "Deletes what they want deleted."),
    endpoint("POST", DELETE, Role::Admin, "Deletes segments so that nobody can read them again."),
    endpoint("POST", REPLACE, Role::Admin, "Goes on with a new volume for one that failed."),
    endpoint("GET", HOLDS, Role::Admin, "Holds: what may not be forgotten, and why."),
    endpoint("POST", HOLD_ADD, Role::Admin, "Holds packets until they are released."),
    endpoint("POST", HOLD_RELEASE, Role::Admin, "Releases a hold: its copies are deleted."),
    endpoint("GET", KEY, Role::Status, "How it stands with a key that a service keeps."),
    endpoint("POST", ROTATE, Role::Admin, "Lets the next epoch key take over, or another key."),
    endpoint("POST", FLOWS, Role::Query, "Flows, one a line; the last line is the summary."),
    endpoint(
        "POST",
        QUERY,
        Role::Query,
        "Packets, as pcapng whose last block holds the summary. Packets need the role `export`; \
         with `count_only` there is only the summary.",
    ),
    endpoint("GET", TAIL, Role::Export, "Packets as they arrive, as pcapng without end."),
];

/// What a machine that stands by answers. The rest is the business of the one that records.
pub(crate) const OF_STANDBY: &[&str] = &[OPENAPI, STATUS, SEGMENTS, METRICS, FLOWS, QUERY];

/// Content type of pcapng answers.
pub const PCAPNG_TYPE: &str = "application/x-pcapng";
/// Content type of JSON that is made while it is sent.
pub(crate) const JSON_TYPE: &str = "application/json";
/// Content type of answers of one JSON object a line.
pub const JSON_LINES_TYPE: &str = "application/x-ndjson";

/// What is wrong with a request, or why it cannot be answered now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorBody {
    /// In words: the thing, its value, the way out.
    pub error: String,
}

/// A question: [`Request`] as JSON. Every field may be left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct QueryBody {
    /// tcpdump's filter language; empty takes every packet.
    pub filter: String,
    /// Start of the window in packet time, ns.
    pub since_ns: Option<u64>,
    /// First nanosecond after the window.
    pub until_ns: Option<u64>,
    /// Packets at most.
    pub limit: Option<u64>,
    /// Strictly by time.
    pub sort: bool,
    /// Leave out link types that the filter does not fit.
    pub skip_link_types: bool,
    /// Count only: the answer holds no packets, only the summary.
    pub count_only: bool,
    /// Only packets that came in this tunnel: `vni=5`, `vlan=7`, `mpls=100`, `gre_key=9`,
    /// `session=3` or `teid=4`.
    #[serde(with = "tunnel_text")]
    #[schemars(with = "Option<String>")]
    pub tunnel: Option<TunnelId>,
    /// Leave out packets that are marked as second copies of others.
    pub without_duplicates: bool,
}

/// Which part of the plan to carry out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ApplyBody {
    /// Only these lives, of those that the rules still want deleted; nothing: all of them.
    pub lives: Option<Vec<String>>,
}

/// Which closed segments to delete.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DeleteBody {
    /// Those whose packets are all older than this, Unix ns.
    pub before_ns: Option<u64>,
    /// Those of these ordinals.
    pub segments: Vec<u64>,
    /// Only say which.
    pub dry_run: bool,
}

/// What is to be deleted, and what was.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Deletions {
    /// What was asked for, oldest first.
    pub steps: Vec<Step>,
    /// What was done; empty where it was only asked what would be.
    pub certificates: Vec<Certificate>,
}

/// Which volume to replace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplaceBody {
    /// Its number. It takes no writes, and is not the first.
    pub volume: u16,
    /// The new one: absolute path of an empty directory or device on the recorder's machine.
    pub path: String,
}

/// A volume that was replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Replaced {
    /// Its number.
    pub volume: u16,
    /// Where it was.
    pub was: String,
    /// Where the new one is.
    pub path: String,
}

/// What to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HoldBody {
    /// Name of the case.
    pub name: String,
    /// tcpdump's filter language; empty holds every packet.
    #[serde(default)]
    pub filter: String,
    /// From this packet time on, Unix ns; nothing: from the beginning.
    #[serde(default)]
    pub since_ns: Option<u64>,
    /// Up to this packet time, Unix ns; nothing: also what is still to come.
    #[serde(default)]
    pub until_ns: Option<u64>,
    /// Why, for people.
    #[serde(default)]
    pub reason: Option<String>,
}

/// Which hold to release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReleaseBody {
    /// Its name; `#NUMBER` for copies whose hold is not listed.
    pub name: String,
}

/// The holds of a store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HoldsReport {
    /// All of them, oldest first.
    pub holds: Vec<HoldRow>,
    /// Bytes that their copies may take; nothing offline.
    pub budget_bytes: Option<u64>,
    /// Bytes that they take.
    pub used_bytes: u64,
    /// Deletions of copies that this question asked for.
    pub certificates: Vec<Certificate>,
}

/// A hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HoldRow {
    /// Its number, which its copies carry.
    pub number: u32,
    /// Name of the case.
    pub name: String,
    /// What is held.
    pub filter: String,
    /// From this packet time on.
    pub since: Option<Instant>,
    /// Up to this packet time.
    pub until: Option<Instant>,
    /// Why.
    pub reason: Option<String>,
    /// Who asked for it.
    pub by: String,
    /// When; nothing for copies whose hold is not listed.
    pub added: Option<Instant>,
    /// It was released, and its copies are being deleted.
    pub released: bool,
    /// Copies, in segments.
    pub segments: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Closed segments in its window that were not looked at or could not be copied; nothing
    /// offline.
    pub waiting: Option<u64>,
    /// Why one of them could not.
    pub why: Option<String>,
}

/// A tunnel as text.
mod tunnel_text {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use wirevault_packet::TunnelId;

    #[expect(clippy::ref_option, reason = "serde asks for this signature")]
    pub(super) fn serialize<S: Serializer>(
        tunnel: &Option<TunnelId>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        tunnel.map(|id| id.to_string()).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<TunnelId>, D::Error> {
        let text: Option<String> = Option::deserialize(from)?;
        text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
    }
}

impl From<QueryBody> for Request {
    fn from(body: QueryBody) -> Self {
        let QueryBody { filter, since_ns, until_ns, limit, sort, skip_link_types, .. } = body;
        let QueryBody { count_only, tunnel, without_duplicates, .. } = body;
        Self {
            filter,
            since_ns,
            until_ns,
            limit,
            sort,
            skip_link_types,
            count_only,
            tunnel,
            without_duplicates,
            within: String::new(),
        }
    }
}

impl From<Request> for QueryBody {
    fn from(request: Request) -> Self {
        let Request { filter, since_ns, until_ns, limit, sort, skip_link_types, .. } = request;
        let Request { count_only, tunnel, without_duplicates, .. } = request;
        Self {
            filter,
            since_ns,
            until_ns,
            limit,
            sort,
            skip_link_types,
            count_only,
            tunnel,
            without_duplicates,
        }
    }
}

/// What a store as a whole is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Every lane takes packets.
    Recording,
    /// It records, but something is not as it should be: see `reasons`.
    Degraded,
    /// Every source came to its end.
    Ended,
    /// Another machine writes the store; this one answers from it and waits for its turn.
    Standby,
    /// Another machine took the store over: nothing more is acknowledged, and the recorder ends.
    Fenced,
    /// It was told to stop and drains.
    Stopping,
    /// Read from the store; no recorder was asked.
    Offline,
}

/// State of a recorder, or of a store that nobody was asked about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StatusReport {
    /// What it is doing.
    pub state: State,
    /// How the store is: `healthy`, `pressured`, `degraded`, `full`, `failed`; empty offline.
    #[serde(default)]
    pub condition: String,
    /// Why it is degraded; empty otherwise.
    pub reasons: Vec<String>,
    /// Store id.
    pub store: String,
    /// Whether packets are encrypted.
    pub sealed: bool,
    /// When the recorder started; nothing offline.
    pub started: Option<Instant>,
    /// When this report was made.
    pub now: Instant,
    /// Release of the program that made the report.
    pub version: String,
    /// Lanes; offline those of the newest run.
    pub lanes: Vec<LaneStatus>,
    /// Volumes.
    pub volumes: Vec<VolumeStatus>,
    /// Paths and reasons of volumes that cannot be opened.
    pub missing_volumes: Vec<String>,
    /// The packet buffer; nothing offline.
    pub buffer: Option<BufferStatus>,
    /// Threads, and where they and the buffer are; nothing offline.
    pub layout: Option<LayoutStatus>,
    /// Segments, open ones included.
    pub segments: u64,
    /// What the last start had to repair; nothing offline.
    pub recovery: Option<RecoveryStatus>,
    /// Limits beside the quotas; nothing offline.
    #[serde(default)]
    pub limits: Option<LimitsStatus>,
    /// Who writes the store, if it is on a device that two machines have; nothing offline.
    #[serde(default)]
    pub shared: Option<SharedStatus>,
    /// Holds; nothing offline.
    #[serde(default)]
    pub holds: Option<HoldsStatus>,
    /// The store's key, if a service keeps it; nothing offline.
    #[serde(default)]
    pub key: Option<KeyStatus>,
}

/// A store's device that two machines have, as this one sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SharedStatus {
    /// What this machine is for: `primary` or `standby`.
    pub role: String,
    /// Whether this machine writes.
    pub writes: bool,
    /// Name of the machine that has the newest lease.
    pub holder: String,
    /// Number of that lease: each take-over has a higher one.
    pub epoch: u64,
    /// What its holder says: `claimed` (it takes over), `held`, `released` (it has ended), `fenced`
    /// (it noticed a take-over and has ended), `none` (nobody ever wrote).
    pub lease: String,
    /// What keeps the other machine's writes from doing harm, while this one writes: `reservation`
    /// (the device refuses them) or `lease` (late ones are never returned).
    pub protection: Option<String>,
    /// Why the device is not reserved, if it is not.
    pub why_no_reservation: Option<String>,
    /// How long the lease has been as it is, by this machine's clock. A writer changes it every
    /// second.
    pub beat_age_ms: u64,
}

/// What holds take, and what they wait for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HoldsStatus {
    /// Bytes that copies may take.
    pub budget_bytes: u64,
    /// Bytes that they take.
    pub used_bytes: u64,
    /// Closed segments that some hold wants and that are not copied yet.
    pub waiting_segments: u64,
}

/// How it stands with a key that a service keeps.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeyStatus {
    /// Name of the key at its service: an ARN.
    pub key: String,
    /// `ready`, `waiting` (the service does not answer as it should), `exhausted` (the last epoch
    /// key is older than it should get) or `revoked` (the service refuses the key).
    pub condition: String,
    /// Epoch keys that were fetched and wait for their turn.
    pub epochs_ahead: u64,
    /// Since when the epoch key of now wraps.
    pub epoch_since: Option<Instant>,
    /// Whether no segment is begun, as the configuration says for this condition.
    pub stopped: bool,
    /// What the service said last, if it was no answer.
    pub trouble: Option<String>,
}

/// Lets the next epoch begin.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RotateBody {
    /// Another key of the service, to hang from now on.
    pub to: Option<String>,
}

/// Limits of a store beside its volumes' quotas.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LimitsStatus {
    /// Part of each file system that stays free for others.
    pub reserve_percent: u8,
    /// Budgets of interfaces.
    pub budgets: Vec<BudgetStatus>,
}

/// What the segments of some lanes may take together, on all volumes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BudgetStatus {
    /// The lanes.
    pub lanes: Vec<u16>,
    /// Bytes at most.
    pub budget_bytes: u64,
    /// Bytes that they take; open segments count as full.
    pub used_bytes: u64,
}

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

/// What a policy, or a rung of the pressure ladder, did on a lane.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyStatus {
    /// Its name in the configuration.
    pub name: String,
    /// It is a rung: it holds under pressure only.
    pub rung: bool,
    /// It holds now.
    pub active: bool,
    /// Packets that it left out: a part of the lane's `shed`.
    pub shed: u64,
    /// Packets that it cut: a part of the lane's `cut`.
    pub cut: u64,
}

/// Places of segments that were given up since the start, by what a few of their blocks read as
/// once the device had been told to forget them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErasedStatus {
    /// Zeros.
    pub zeros: u64,
    /// Something else.
    pub other: u64,
    /// Could not be read.
    pub unread: u64,
    /// The device takes no such order: the sealed bytes stay until they are written over.
    pub kept: u64,
}

/// One volume and its device queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeStatus {
    /// Path.
    pub path: String,
    /// Bytes that it may take.
    pub quota_bytes: u64,
    /// Bytes that it takes: its own file, closed segments, and open ones at full size.
    pub used_bytes: u64,
    /// Segments.
    pub segments: u64,
    /// Places for segments.
    pub places: u64,
    /// Bytes of one segment.
    pub segment_bytes: u64,
    /// How it is: `ok`; `suspect` with the reason (a segment failed here, others are opened here
    /// only if no other volume takes them); `full` with the reason; `stalled`
    /// (its device does not answer at the moment,
    /// and segments that wait for it were given up); `failed` with the reason (it takes no more).
    pub state: String,
    /// The same in one word, as for the store.
    #[serde(default)]
    pub condition: String,
    /// Back end of its queue: `vfio`, `passthrough`, `io_uring`, `thread`; empty offline.
    pub backend: String,
    /// Why it is this one.
    #[serde(default)]
    pub backend_why: String,
    /// Whether writes go past the page cache.
    pub o_direct: bool,
    /// Whether chunks are written from memory that the kernel knows already.
    pub registered_buffers: bool,
    /// Whether files are registered with the kernel.
    pub registered_files: bool,
    /// What was wanted and is not so, with the reason.
    pub why_not: Vec<String>,
    /// Half of the writes took no longer, µs; an upper bound, at most twice too high.
    pub write_p50_us: Option<u64>,
    /// 99 % of the writes took no longer.
    pub write_p99_us: Option<u64>,
    /// Half of the flushes took no longer.
    pub sync_p50_us: Option<u64>,
    /// 99 % of the flushes took no longer.
    pub sync_p99_us: Option<u64>,
    /// Bytes written since the start.
    pub written_bytes: u64,
    /// Chunks that the device did not take, and that were sealed again for another segment or
    /// counted as dropped.
    pub failed_chunks: u64,
    /// The last write or flush that failed.
    pub error: Option<String>,
    /// What became of the bytes of segments that were given up, on volumes that are devices.
    #[serde(default)]
    pub erased: ErasedStatus,
    /// The device below, once it was asked.
    #[serde(default)]
    pub device: Option<DeviceStatus>,
}

/// The device below a volume, as it says of itself. What it does not tell is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceStatus {
    /// Its node at the moment.
    pub node: String,
    /// `instance_store`, `ebs`, `nvme` or `block`.
    pub kind: String,
    /// Model.
    pub model: String,
    /// Serial number.
    pub serial: String,
    /// Firmware.
    pub firmware: String,
    /// Temperature.
    pub celsius: Option<i32>,
    /// Life used, percent of what the maker expects; may exceed 100.
    pub used_percent: Option<u8>,
    /// Spare capacity left, percent.
    pub spare_percent: Option<u8>,
    /// Bytes written to it in its life, by whomever.
    pub life_written_bytes: Option<u64>,
    /// Times that it could not recover data, in its life.
    pub media_errors: Option<u64>,
    /// EC2's devices: time in which more was asked of it than its limits allow, µs.
    pub throttled_us: Option<u64>,
    /// EC2's devices: 99 % of the writes took no longer inside the device, µs.
    pub device_write_p99_us: Option<u64>,
    /// What it warns of.
    pub warnings: Vec<String>,
    /// What could not be had, with the reason.
    pub why_not: Vec<String>,
}

/// The packet buffer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BufferStatus {
    /// Bytes.
    pub bytes: u64,
    /// Pages in use.
    pub hugepages: String,
    /// Bytes backed by hugepages.
    pub huge_bytes: u64,
    /// Whether it cannot be swapped out.
    pub locked: bool,
    /// Chunks.
    pub chunks: u64,
    /// Chunks in use.
    pub in_flight: u64,
    /// Share of the chunks in use, in thousandths.
    pub pressure_permille: u64,
    /// By operation (`take`, `hand_over`, `recycle`): 99.9 % took no longer, ns; an upper bound, at
    /// most twice too high.
    pub p999_ns: BTreeMap<String, u64>,
    /// What was wanted and is not so, with the way out.
    pub why_not: Vec<String>,
}

/// Which threads there are between sources and volumes, and where they run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LayoutStatus {
    /// `split` or `run_to_completion`.
    pub topology: String,
    /// Why that one.
    pub why: String,
    /// Threads, lanes first.
    pub threads: Vec<ThreadStatus>,
    /// CPUs that everything else runs on; empty for any.
    pub others: Vec<usize>,
    /// Parts of the packet buffer: one for each NUMA node that has lanes, or one for all.
    pub memory: Vec<MemoryStatus>,
}

/// A thread and where it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ThreadStatus {
    /// Name, as the system shows it.
    pub name: String,
    /// CPUs that it may use; empty for any.
    pub cpus: Vec<usize>,
    /// NUMA node of these, if they are of one.
    pub node: Option<u32>,
    /// Why it is not where it was told to be.
    pub why_not: Option<String>,
}

/// A part of the packet buffer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MemoryStatus {
    /// NUMA node that it was asked for; nothing if that is left to the kernel.
    pub node: Option<u32>,
    /// Chunks.
    pub chunks: u64,
    /// Chunks in use.
    pub in_flight: u64,
}

/// What a start had to repair after a crash.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RecoveryStatus {
    /// Interrupted segments that were closed.
    pub segments: u64,
    /// Packets in them.
    pub packets: u64,
    /// Places whose segment held nothing yet.
    pub empty_segments: u64,
    /// Runs that a crash ended.
    pub crashed_runs: u64,
    /// Interrupted segments that could not be closed, with the reason; the next start tries again.
    pub set_aside: Vec<String>,
    /// What was acknowledged and is not there: one line each. Empty unless a device lied or rotted.
    pub damage: Vec<String>,
}

impl RecoveryStatus {
    /// The last end was clean.
    pub fn is_clean(&self) -> bool {
        *self == Self::default()
    }
}

/// One segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SegmentRow {
    /// Name.
    pub name: String,
    /// Volume number.
    pub volume: u16,
    /// Place on the volume.
    pub place: u32,
    /// Store-wide number; the smallest is given up first.
    pub ordinal: u64,
    /// `open` (being written), `interrupted` (a crash left it so), `closed`.
    pub state: String,
    /// Why it was closed; nothing while it is not.
    pub close_reason: Option<String>,
    /// Packets are encrypted.
    pub sealed: bool,
    /// Written by an import.
    pub import: bool,
    /// Closed by recovery.
    pub recovered: bool,
    /// Recovery found damage.
    pub damaged: bool,
    /// Number of the hold for which it is a copy; nothing if it was recorded.
    #[serde(default)]
    pub hold: Option<u32>,
    /// Run.
    pub run: String,
    /// Lane.
    pub lane: u16,
    /// Link type.
    pub link_type: String,
    /// Smallest packet time.
    pub from: Option<Instant>,
    /// Largest packet time.
    pub until: Option<Instant>,
    /// When it was opened.
    pub opened: Instant,
    /// When it was closed.
    pub closed: Option<Instant>,
    /// Packets.
    pub packets: u64,
    /// Captured bytes.
    pub captured_bytes: u64,
    /// Bytes on the volume; nothing while it is written.
    pub file_bytes: Option<u64>,
    /// Chunks.
    pub chunks: u64,
    /// Why it cannot be read, if so.
    pub error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_needs_no_field_and_takes_no_other() {
        let body: QueryBody = serde_json::from_str("{}").unwrap();
        assert_eq!(Request::from(body), Request::default());
        let body: QueryBody = serde_json::from_str(r#"{"filter":"tcp","limit":3}"#).unwrap();
        assert_eq!((body.filter.as_str(), body.limit), ("tcp", Some(3)));
        let error = serde_json::from_str::<QueryBody>(r#"{"filtre":"tcp"}"#).unwrap_err();
        assert!(error.to_string().contains("filtre"), "{error}");
    }

    #[test]
    fn the_default_socket_is_the_configurations() {
        let text = "store: /a\ncapture:\n  - interface: eth0\n";
        let config = wirevault_config::parse(text, "t").unwrap();
        assert_eq!(config.api.socket, std::path::Path::new(DEFAULT_SOCKET));
    }
}
