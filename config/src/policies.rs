//! What is left out on purpose, checked.

/// A policy of `policies`, or what a rung of `pressure` does.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Policy {
    /// Where it stands: `policies[0]`.
    pub path: String,
    /// Its name; no two policies or rungs have the same.
    pub name: String,
    /// tcpdump filter of the packets it is for; not compiled yet. `None`: all.
    pub filter: Option<String>,
    /// The interface it is for; `None`: all that comes now.
    pub interface: Option<String>,
    /// What becomes of the packets.
    pub action: PolicyAction,
}

/// A rung of `pressure`. Marks never fall from one rung to the next, and a rung's `leave` is not
/// above its `enter`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rung {
    /// What it does; for every interface.
    pub policy: Policy,
    /// Share of the buffer in use at which it is entered, in percent.
    pub enter_percent: u8,
    /// Share below which it is left.
    pub leave_percent: u8,
}

/// What becomes of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyAction {
    /// No later policy is asked.
    Keep,
    /// They are left out.
    Drop,
    /// Those that begin behind so many bytes of their flow are left out.
    Cutoff {
        /// At least 1.
        flow_bytes: u64,
    },
    /// All but one of so many flows are left out.
    Sample {
        /// At least 2.
        one_in: u32,
    },
    /// They are cut.
    Snaplen {
        /// Bytes that are kept.
        bytes: u32,
    },
    /// The index has no flows of them.
    CoarseIndex,
}

impl PolicyAction {
    /// Names of what `policies` do.
    pub const STANDING: &'static [&'static str] = &["keep", "drop", "cutoff", "sample", "snaplen"];
    /// Names of what `pressure` does, in the order of what it costs.
    pub const UNDER_PRESSURE: &'static [&'static str] =
        &["coarse_index", "cutoff", "snaplen", "drop"];
}
