//! The verbs, one file each.

pub(crate) mod audit;
pub(crate) mod certificate;
pub(crate) mod cloudwatch;
pub(crate) mod delete;
pub(crate) mod doctor;
pub(crate) mod flows;
pub(crate) mod generate;
pub(crate) mod hold;
pub(crate) mod import;
pub(crate) mod init;
pub(crate) mod inspect;
pub(crate) mod key;
pub(crate) mod metrics;
pub(crate) mod query;
mod retire;
pub(crate) mod segments;
pub(crate) mod snapshot;
pub(crate) mod status;
pub(crate) mod tail;
pub(crate) mod tail_listen;
pub(crate) mod verify;
pub(crate) mod volume;
