//! Metrics that are published.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wirevault_query::summary::Instant;

/// How it stands with metrics that are published. A period is what one call sends.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PublishStatus {
    /// Periods that arrived, since the recorder started.
    pub sent_periods: u64,
    /// Periods that wait on disk.
    pub waiting_periods: u64,
    /// Periods whose answer was lost, and that are asked for.
    pub in_doubt_periods: u64,
    /// Periods that were given up: refused, or too old.
    pub dropped_periods: u64,
    /// Last second of the newest period that arrived.
    pub last_sent: Option<Instant>,
    /// What is in the way.
    pub trouble: Option<String>,
}
