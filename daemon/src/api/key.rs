//! A key that a service keeps.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wirevault_query::summary::Instant;

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
    /// The epoch key of now was made here and hangs from this public key: no later start will be
    /// able to read what it seals.
    #[serde(default)]
    pub one_way: Option<String>,
    /// Segments in the tier whose keys hang, or may hang, from a former key: it is needed until
    /// there are none.
    #[serde(default)]
    pub behind_in_tier: u64,
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
