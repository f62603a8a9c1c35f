//! What a store as a whole does.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wirevault_query::summary::Instant;

use super::cards::CardStatus;
use super::cloud::{BackupStatus, InstanceStatus};
use super::holds::HoldsStatus;
use super::key::KeyStatus;
use super::lane::LaneStatus;
use super::layout::{BufferStatus, LayoutStatus};
use super::publish::PublishStatus;
use super::snapshots::{LostStatus, SnapshotStatus};
use super::volumes::VolumeStatus;

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
    /// What the recorder has given up; nothing before it records, and offline.
    #[serde(default)]
    pub sandbox: Option<SandboxStatus>,
    /// Checkpoints of the state, if any are taken; nothing offline.
    #[serde(default)]
    pub snapshots: Option<SnapshotStatus>,
    /// Backups of the state, if any are ordered; nothing offline.
    #[serde(default)]
    pub backup: Option<BackupStatus>,
    /// The machine, as the cloud tells it; nothing off the cloud, and offline.
    #[serde(default)]
    pub instance: Option<InstanceStatus>,
    /// Stores that are gone with their volumes, and whose place this one took.
    #[serde(default)]
    pub lost: Vec<LostStatus>,
    /// Network cards that packets come in by; none offline.
    #[serde(default)]
    pub cards: Vec<CardStatus>,
    /// Metrics that are published, if any are; nothing offline.
    #[serde(default)]
    pub publish: Option<PublishStatus>,
    /// The object tier, if there is one; nothing offline.
    #[serde(default)]
    pub tier: Option<TierStatus>,
    /// Places where heads of the audit log are kept; none offline.
    #[serde(default)]
    pub anchors: Vec<AnchorStatus>,
}

/// A place where heads of the audit log are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AnchorStatus {
    /// As it is configured.
    pub place: String,
    /// Number of the entry that was the last one when a head was kept; nothing before the first.
    pub entry: Option<u64>,
    /// When that was.
    pub kept: Option<Instant>,
    /// Milliseconds since then, or since the start; 0 while that is still the head.
    pub age_ms: u64,
    /// Why the last attempt came to nothing; nothing if it did not.
    pub trouble: Option<String>,
}

/// The object tier.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TierStatus {
    /// Where it is.
    pub url: String,
    /// Segments that lie there.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of the segments those that are to go, and are not gone yet.
    pub forgetting: u64,
    /// Why the last segment did not move, or did not go; nothing if it did.
    pub trouble: Option<String>,
}

/// What a recorder has given up since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SandboxStatus {
    /// Capabilities that are left; nothing if none were dropped.
    pub rights: Option<Vec<String>>,
    /// Version of Landlock that binds it to its own files; nothing if it may open any.
    pub landlock_abi: Option<u32>,
    /// Whether system calls that it does not need are refused.
    pub seccomp: bool,
    /// Where it may write.
    pub writes: Vec<String>,
    /// Threads that were there before, which keep their rights and their files.
    pub earlier_threads: Vec<String>,
    /// What could not be given up, and why.
    pub why_not: Vec<String>,
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
