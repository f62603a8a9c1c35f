//! What the end-to-end tests share.

#![forbid(unsafe_code)]

pub mod aws;
pub mod captures;
mod double;
pub mod filters;
pub mod frames;
pub mod imds;
pub mod injected;
pub mod lanes;
pub mod oracle;
pub mod prometheus;
pub mod readers;
pub mod recorder;
pub mod s3s;
pub mod slow;
pub mod stepper;
pub mod store;
pub mod traffic;
pub mod vault;
pub mod vm;
