//! Paths and JSON of the API: HTTP/1.1 over a unix socket, or over TLS with certificates on both
//! sides.
//!
//! | request | role | answer |
//! |---|---|---|
//! | `GET /v1/openapi.json` | status | this, for programs |
//! | `GET /v1/status` | status | [`StatusReport`] |
//! | `GET /v1/segments` | status | list of [`SegmentRow`], oldest first, sent as it is made |
//! | `GET /v1/metrics` | status | text of Prometheus, or OpenMetrics if that is asked for |
//! | `GET /v1/lifecycle/plan` | status | [`Deletions`]: what the rules want now |
//! | `POST /v1/lifecycle/apply`, an [`ApplyBody`] | admin | [`Deletions`]: what was done |
//! | `POST /v1/lifecycle/drain`, a [`DrainBody`] | admin | [`Drained`] |
//! | `POST /v1/delete`, a [`DeleteBody`] | admin | [`Deletions`] |
//! | `POST /v1/volumes/replace`, a [`ReplaceBody`] | admin | [`Replaced`] |
//! | `GET /v1/key` | status | [`KeyStatus`] |
//! | `POST /v1/key/rotate`, a [`RotateBody`] | admin | [`KeyStatus`] |
//! | `GET /v1/holds` | admin | [`HoldsReport`] |
//! | `POST /v1/holds/add`, a [`HoldBody`] | admin | [`HoldsReport`] |
//! | `POST /v1/holds/release`, a [`ReleaseBody`] | admin | [`HoldsReport`] |
//! | `POST /v1/snapshots/create` | admin | [`SnapshotStatus`], once it is taken |
//! | `POST /v1/flows`, a [`QueryBody`] | query | one JSON object a line, last `{"summary":...}` |
//! | `POST /v1/query`, a [`QueryBody`] | query to count, else export | pcapng, or the summary |
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

mod cards;
mod cloud;
mod deleting;
mod holds;
mod key;
mod lane;
mod layout;
mod publish;
mod question;
mod segments;
mod snapshots;
mod status;
mod volumes;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wirevault_config::Role;
pub use wirevault_query::summary::Instant;

pub use cards::CardStatus;
pub use cloud::{BackupStatus, InstanceStatus, NoticeStatus};
pub use deleting::{ApplyBody, DeleteBody, Deletions, DrainBody, Drained};
pub use holds::{HoldBody, HoldRow, HoldsReport, HoldsStatus, ReleaseBody};
pub use key::{KeyStatus, RotateBody};
pub use lane::{LaneStatus, PolicyStatus, PressureStatus};
pub use layout::{BufferStatus, LayoutStatus, MemoryStatus, ThreadStatus};
pub use publish::PublishStatus;
pub use question::QueryBody;
pub use segments::SegmentRow;
pub use snapshots::{LostStatus, SnapshotStatus};
pub use status::{
    AnchorStatus, BudgetStatus, LimitsStatus, RecoveryStatus, SandboxStatus, SharedStatus, State,
    StatusReport, TierStatus,
};
pub use volumes::{DeviceStatus, ErasedStatus, ReplaceBody, Replaced, VolumeStatus};

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
/// Path to have everything moved to the tier.
pub const DRAIN: &str = "/v1/lifecycle/drain";
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
/// Path to have a checkpoint of the state taken.
pub const SNAPSHOT: &str = "/v1/snapshots/create";
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
    endpoint("GET", METRICS, Role::Status, "Metrics, as Prometheus' text, or as OpenMetrics."),
    endpoint("GET", PLAN, Role::Status, "What the retention rules want deleted or moved now."),
    endpoint("POST", APPLY, Role::Admin, "Deletes and moves what they want."),
    endpoint("POST", DRAIN, Role::Admin, "Moves all closed segments to the tier, held ones first."),
    endpoint("POST", DELETE, Role::Admin, "Deletes segments so that nobody can read them again."),
    endpoint("POST", REPLACE, Role::Admin, "Goes on with a new volume for one that failed."),
    endpoint("GET", HOLDS, Role::Admin, "Holds: what may not be forgotten, and why."),
    endpoint("POST", HOLD_ADD, Role::Admin, "Holds packets until they are released."),
    endpoint("POST", HOLD_RELEASE, Role::Admin, "Releases a hold: its copies are deleted."),
    endpoint("GET", KEY, Role::Status, "How it stands with a key that a service keeps."),
    endpoint("POST", ROTATE, Role::Admin, "Lets the next epoch key take over, or another key."),
    endpoint("POST", SNAPSHOT, Role::Admin, "Takes a checkpoint of the recorder's state."),
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_documentation_lists_every_endpoint() {
        let pages =
            [include_str!("../../../docs/OPERATIONS.md"), include_str!("mod.rs")].map(|page| {
                let rows = page.lines().map(|line| line.trim_start_matches("//! "));
                rows.filter(|row| row.starts_with("| `GET /v1/") || row.starts_with("| `POST /v1/"))
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            });
        for rows in pages {
            for Endpoint { method, path, role, .. } in ENDPOINTS {
                let begin = format!("| `{method} {path}");
                let is = |row: &&String| {
                    row.strip_prefix(&begin).is_some_and(|rest| rest.starts_with(['`', '?']))
                };
                let row = rows.iter().find(is);
                let row = row.unwrap_or_else(|| panic!("{method} {path}: no row in {rows:#?}"));
                let role = format!("| {role:?}").to_lowercase();
                assert!(row.contains(&role), "{row}: its role is {role:?}");
            }
            assert_eq!(
                rows.iter().map(|row| row.split(['`', '?']).nth(1)).collect::<HashSet<_>>().len(),
                ENDPOINTS.len(),
                "{rows:#?}"
            );
        }
    }

    #[test]
    fn the_default_socket_is_the_configurations() {
        let text = "store: /a\ncapture:\n  - interface: eth0\n";
        let config = wirevault_config::parse(text, "t").unwrap();
        assert_eq!(config.api.socket, std::path::Path::new(DEFAULT_SOCKET));
    }
}
