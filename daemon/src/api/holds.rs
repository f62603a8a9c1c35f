//! Holds: what may not be forgotten.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wirevault_lifecycle::certificate::Certificate;
use wirevault_query::summary::Instant;

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
