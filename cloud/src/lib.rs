//! Services of others, behind traits that the crates below declare; the only crate with an AWS SDK.
//!
//! ```text
//!  seal::{KeyService, MacService} ◄── kms        ──► AWS KMS
//!  telemetry::publish::MetricSink ◄── cloudwatch ──► Amazon CloudWatch
//!  media::Objects                 ◄── objects    ──► a folder, a bucket of Amazon S3
//!  boards: alarms and dashboard, from the tables of what is published ──► cloudwatch
//!  template: the same as resources of CloudFormation
//!  backup::BackupService          ◄── aws_backup ──► AWS Backup
//!  instance::Metadata             ◄── imds       ──► instance metadata of EC2
//! ```
//! Programs hand what they find here to the libraries, which never name this crate. Without the
//! feature `aws` there is no service for keys, and objects lie in folders.

#![forbid(unsafe_code)]

#[cfg(feature = "aws")]
mod aws_backup;
pub mod backup;
pub mod boards;
#[cfg(feature = "aws")]
mod client;
#[cfg(feature = "aws")]
pub mod cloudwatch;
#[cfg(feature = "aws")]
mod imds;
pub mod instance;
#[cfg(feature = "aws")]
pub mod kms;
pub mod objects;
pub mod template;

use std::io;
use std::sync::Arc;

use wirevault_seal::{KeyService, MacService};
use wirevault_telemetry::publish::MetricSink;

use backup::BackupService;
use boards::Boards;
use instance::Metadata;
pub use objects::objects;

/// What stands in place of a service's code where nothing was sent, for want of a signature.
const NO_CREDENTIALS: &str = "no credentials";

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

/// The service for codes that this build has; nothing if it has none. `endpoint` replaces the
/// region's own address.
///
/// # Errors
/// As of [`key_service`].
#[cfg(feature = "aws")]
pub fn mac_service(endpoint: Option<&str>) -> io::Result<Option<Arc<dyn MacService>>> {
    Ok(Some(Arc::new(kms::Kms::new(endpoint)?)))
}

/// The service for codes that this build has; nothing if it has none. `endpoint` replaces the
/// region's own address.
///
/// # Errors
/// None in this build.
#[cfg(not(feature = "aws"))]
pub fn mac_service(_endpoint: Option<&str>) -> io::Result<Option<Arc<dyn MacService>>> {
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

/// The service for backups that this build has; nothing if it has none.
///
/// # Errors
/// The operating system gives no descriptor to wait with. Nothing is connected yet.
#[cfg(feature = "aws")]
pub fn backup_service() -> io::Result<Option<Arc<dyn BackupService>>> {
    Ok(Some(Arc::new(aws_backup::AwsBackup::new()?)))
}

/// The service for backups that this build has; nothing if it has none.
///
/// # Errors
/// None in this build.
#[cfg(not(feature = "aws"))]
pub fn backup_service() -> io::Result<Option<Arc<dyn BackupService>>> {
    Ok(None)
}

/// Where this machine learns of itself; nothing where no cloud tells it anything, or in a build
/// without an SDK. Nobody is asked: an instance of EC2 is known by its firmware.
///
/// # Errors
/// The operating system gives no descriptor to wait with.
#[cfg(feature = "aws")]
pub fn metadata() -> io::Result<Option<Arc<dyn Metadata>>> {
    Ok(match is_instance() {
        true => Some(Arc::new(imds::Imds::new()?)),
        false => None,
    })
}

/// Where this machine learns of itself: nowhere, in this build.
///
/// # Errors
/// None in this build.
#[cfg(not(feature = "aws"))]
pub fn metadata() -> io::Result<Option<Arc<dyn Metadata>>> {
    Ok(None)
}

/// Whether this is an instance of EC2, or the environment names a place to ask. Source: Amazon EC2
/// User Guide, "Detect whether a host is an EC2 instance".
#[cfg(feature = "aws")]
fn is_instance() -> bool {
    const VENDOR: &str = "/sys/class/dmi/id/sys_vendor";
    let set = |name| std::env::var(name).unwrap_or_default();
    if set("AWS_EC2_METADATA_DISABLED").eq_ignore_ascii_case("true") {
        return false;
    }
    let vendor = || std::fs::read_to_string(VENDOR).unwrap_or_default();
    !set("AWS_EC2_METADATA_SERVICE_ENDPOINT").is_empty() || vendor().trim() == "Amazon EC2"
}
