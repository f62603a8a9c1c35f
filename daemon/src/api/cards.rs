//! Network cards, and what was lost in them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A network card that packets come in by. What it lost since the recorder started is in no lane's
/// books.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CardStatus {
    /// Its interface.
    pub interface: String,
    /// Packets that it had no room for.
    pub missed_packets: u64,
    /// Packets that EC2 queued or dropped, by the limit of the instance that was exceeded; empty on
    /// other machines.
    pub allowance_packets: BTreeMap<String, u64>,
    /// Why it could not be asked the last time.
    pub why_not: Option<String>,
}
