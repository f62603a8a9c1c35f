//! Services of others, each seen to by a thread of its own: keys, metrics, backups, and the machine
//! that this one is.

pub(crate) mod backup;
pub(crate) mod instance;
pub mod keys;
pub mod publisher;
