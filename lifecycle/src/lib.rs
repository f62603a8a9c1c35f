//! What happens to a record while it lies there.
//!
//! - [`audit`]: the log of everything that was done with a store, each line chained to the one
//!   before it.
//! - [`holds`]: what may not be forgotten, and why.
//! - [`retention`]: rules, and what they want deleted. [`certificate`]: what a deletion came to.
//! - [`snapshot`]: checkpoints of a recorder's state, and putting one back.
//! - [`tier`]: the list of what lies in the object tier.
//! - [`error`] has the one error, [`AuditError`].

#![forbid(unsafe_code)]

pub mod audit;
pub mod certificate;
pub mod error;
mod hex;
pub mod holds;
pub mod retention;
pub mod snapshot;
pub mod tier;

pub use error::AuditError;
