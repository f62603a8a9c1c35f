//! What the cloud tells a machine of itself, and of what is about to happen to it.

/// A machine in the cloud.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Instance {
    /// Its id.
    pub id: String,
    /// What kind of machine it is, such as `i7ie.12xlarge`.
    pub kind: String,
    /// Region.
    pub region: String,
    /// Availability zone.
    pub zone: String,
    /// Account that it belongs to.
    pub account: String,
    /// Its tags by name, if it may know them.
    pub tags: Vec<(String, String)>,
}

/// Why a machine may go away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NoticeKind {
    /// The cloud takes a spot instance back, two minutes from now at most.
    Spot,
    /// It is likelier than usual that it will.
    Rebalance,
    /// Maintenance is scheduled.
    Maintenance,
    /// Its group wants it to end.
    Scaling,
}

impl NoticeKind {
    /// For people, and for the audit log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Spot => "spot",
            Self::Rebalance => "rebalance",
            Self::Maintenance => "maintenance",
            Self::Scaling => "scaling",
        }
    }
}

/// Something that is about to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// What it is.
    pub kind: NoticeKind,
    /// The cloud's words.
    pub text: String,
}

/// Where a machine learns of itself.
pub trait Metadata: Send + Sync {
    /// Who it is.
    ///
    /// # Errors
    /// In words: nobody tells.
    fn instance(&self) -> Result<Instance, String>;

    /// Whether it also answers who has no token (version 1 of the protocol); nothing if that cannot
    /// be told.
    fn answers_without_token(&self) -> Option<bool>;

    /// What is about to happen; usually nothing.
    ///
    /// # Errors
    /// In words: nobody tells.
    fn notices(&self) -> Result<Vec<Notice>, String>;
}
