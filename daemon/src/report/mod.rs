//! How the recorder stands, for people and programs: status, metrics, and what changes of it.

pub(crate) mod conditions;
pub(crate) mod metrics;
pub(crate) mod rungs;
pub mod status;
