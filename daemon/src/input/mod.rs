//! Where packets come from: what the configuration's input names, and files, given to lanes.

pub mod cards;
pub(crate) mod chain;
pub mod import;
pub(crate) mod sources;
