//! Services of others, behind traits that the crates below declare; the only crate with an AWS SDK.
//!
//! ```text
//!  seal::KeyService               ◄── kms        ──► AWS KMS
//!  telemetry::publish::MetricSink ◄── cloudwatch ──► Amazon CloudWatch
//!  media::Objects                 ◄── objects    ──► a folder
//!  boards: alarms and dashboard, from the tables of what is published ──► cloudwatch
//! ```
//! Programs hand what they find here to the libraries, which never name this crate. Without the
//! feature `aws` there is no service for keys.

#![forbid(unsafe_code)]

pub mod boards;
#[cfg(feature = "aws")]
mod client;
#[cfg(feature = "aws")]
pub mod cloudwatch;
#[cfg(feature = "aws")]
pub mod kms;
pub mod objects;

use std::io;
use std::sync::Arc;

use wirevault_seal::KeyService;
use wirevault_telemetry::publish::MetricSink;

use boards::Boards;
pub use objects::objects;

/// The service for keys that this build has; nothing if it has none. `endpoint` replaces the
/// region's own address.
///
/// # Errors
/// The operating system gives no thread or descriptor for it. Nothing is connected yet.
#[cfg(feature = "aws")]
pub fn key_service(endpoint: Option<&str>) -> io::Result<Option<Arc<dyn KeyService>>> {
    Ok(Some(Arc::new(kms::Kms::new(endpoint)?)))
}

/// The service for keys that this build has; nothing if it has none. `endpoint` replaces the
/// region's own address.
///
/// # Errors
/// None in this build.
#[cfg(not(feature = "aws"))]
pub fn key_service(_endpoint: Option<&str>) -> io::Result<Option<Arc<dyn KeyService>>> {
    Ok(None)
}

/// Where metrics are published, and as whose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricOptions {
    /// The namespace.
    pub namespace: String,
    /// What tells this recorder from others.
    pub appliance: String,
    /// The region in place of that of the environment.
    pub region: Option<String>,
    /// Address of the service in place of the region's own.
    pub endpoint: Option<String>,
}

/// The service for metrics that this build has; nothing if it has none.
///
/// # Errors
/// The operating system gives no descriptor for it. Nothing is connected yet.
#[cfg(feature = "aws")]
pub fn metric_sink(options: MetricOptions) -> io::Result<Option<Arc<dyn MetricSink>>> {
    Ok(Some(Arc::new(cloudwatch::CloudWatch::new(options)?)))
}

/// The service for metrics that this build has; nothing if it has none.
///
/// # Errors
/// None in this build.
#[cfg(not(feature = "aws"))]
pub fn metric_sink(_options: MetricOptions) -> io::Result<Option<Arc<dyn MetricSink>>> {
    Ok(None)
}

/// The service that alarms and dashboards are put into; nothing if this build has none.
///
/// # Errors
/// As of [`metric_sink`].
#[cfg(feature = "aws")]
pub fn board_service(options: MetricOptions) -> io::Result<Option<Box<dyn Boards>>> {
    Ok(Some(Box::new(cloudwatch::CloudWatch::new(options)?)))
}

/// The service that alarms and dashboards are put into; nothing if this build has none.
///
/// # Errors
/// None in this build.
#[cfg(not(feature = "aws"))]
pub fn board_service(_options: MetricOptions) -> io::Result<Option<Box<dyn Boards>>> {
    Ok(None)
}
