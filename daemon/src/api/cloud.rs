//! What the cloud does for a recorder, and tells it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wirevault_query::summary::Instant;

/// Backups of the recorder's state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackupStatus {
    /// Vault that they go to.
    pub vault: String,
    /// Volume that is backed up.
    pub resource: String,
    /// The job that is under way.
    pub job: Option<String>,
    /// How the last one stands: `started`, `created`, `running`, `completed`, `failed`; empty
    /// before the first.
    pub state: String,
    /// The last checkpoint before the newest recovery point was ordered: it is in there.
    pub checkpoint: Option<u64>,
    /// When that one was ordered.
    pub taken: Option<Instant>,
    /// Why there is no newer one.
    pub trouble: Option<String>,
}

/// The machine, as the cloud tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceStatus {
    /// Id of the instance.
    pub id: String,
    /// Type of the instance.
    pub kind: String,
    /// Region.
    pub region: String,
    /// Availability zone.
    pub zone: String,
    /// Account.
    pub account: String,
    /// Tags, where instances may know them.
    pub tags: BTreeMap<String, String>,
    /// What is about to happen to it.
    pub notices: Vec<NoticeStatus>,
    /// When its segments were last closed and its state saved because of a notice.
    pub drained: Option<Instant>,
    /// Why this is not known, or not up to date.
    pub trouble: Option<String>,
}

/// Something that the cloud announces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NoticeStatus {
    /// `spot`, `rebalance`, `maintenance` or `scaling`.
    pub kind: String,
    /// The cloud's words.
    pub text: String,
    /// When it was first seen.
    pub seen: Instant,
}
