//! What happens to a record while it lies there.
//!
//! - [`audit`]: the log of everything that was done with a store, each line chained to the one
//!   before it.
//! - [`error`] has the one error, [`AuditError`].

#![forbid(unsafe_code)]

pub mod audit;
pub mod error;

pub use error::AuditError;
