//! What tests of several crates share. No program contains it: `cargo xtask layers` lets crates
//! below the tests name it only among what their own tests use.
//!
//! - [`certificates`]: authorities, and certificates of them, good and bad.
//! - [`hooked`]: disks that do what they are asked, but for what a test says.
//! - [`net`]: network namespaces, veth pairs, a raw sender, packets that describe themselves.
//! - [`random`]: numbers at random from a seed.

#![forbid(unsafe_code)]

pub mod certificates;
pub mod hooked;
pub mod net;
pub mod random;
