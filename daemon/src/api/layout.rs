//! Where threads and their memory are.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
