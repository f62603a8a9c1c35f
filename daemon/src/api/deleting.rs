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
