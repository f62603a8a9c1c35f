//! What is to be deleted, and what was.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wirevault_lifecycle::certificate::Certificate;
use wirevault_lifecycle::retention::Step;

/// Which part of the plan to carry out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ApplyBody {
    /// Only these lives, of those that the rules still want deleted; nothing: all of them.
    pub lives: Option<Vec<String>>,
}

/// How long a drain may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DrainBody {
    /// No segment begins to move after so many milliseconds, and one on its way is left.
    pub within_ms: u64,
}

/// What a drain came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Drained {
    /// Closed segments that moved to the tier.
    pub moved: u64,
    /// Closed segments that did not: there was no time, or the status says why.
    pub left: u64,
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

/// What is to be deleted or moved to the tier, and what was.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Deletions {
    /// What was asked for, oldest first.
    pub steps: Vec<Step>,
    /// What was deleted; empty where it was only asked what would be.
    pub certificates: Vec<Certificate>,
    /// Segments that were moved to the tier.
    #[serde(default)]
    pub moved: u64,
}
