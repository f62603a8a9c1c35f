//! The store's volumes and the devices below them: whose they are, how they are, and what takes
//! their place.

pub mod devices;
pub(crate) mod health;
pub(crate) mod mending;
pub(crate) mod replace;
pub(crate) mod returning;
pub(crate) mod shared;
pub(crate) mod standby;
pub(crate) mod vfio;
