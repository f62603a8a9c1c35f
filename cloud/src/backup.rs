//! Backups of the volume that a recorder's state is on, by AWS Backup: jobs on order, and how they
//! stand.
//!
//! Source: AWS Backup Developer Guide, API `StartBackupJob`, `DescribeBackupJob`.

use std::fmt;
use std::time::Duration;

use crate::NO_CREDENTIALS;

/// What to back up, and where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Name of the vault.
    pub vault: String,
    /// ARN of the role that AWS Backup takes on.
    pub role: String,
    /// ARN of the volume. Its region is the one that is asked.
    pub resource: String,
    /// After which time the recovery point goes; nothing: never by itself. Whole days.
    pub retention: Option<Duration>,
    /// Store id, hex: a tag of the recovery point.
    pub store: String,
    /// Number of the last checkpoint before the order: a tag of the recovery point.
    pub checkpoint: u64,
    /// The same order given twice with this is one job.
    pub token: String,
}

/// How a job stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobState {
    /// It waits or runs, in the service's words.
    Going(String),
    /// There is a recovery point.
    Completed,
    /// There is none, and there will be none: the service's word, and why.
    Failed(String),
}

/// The service does not take an order, or does not tell.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("AWS Backup, region {region}: cannot {doing}: {code}{}; {}", .message.as_ref()
    .map_or(String::new(), |message| format!(", {message}")), self.way_out())]
pub struct BackupFailure {
    /// What was tried.
    pub doing: &'static str,
    /// Where.
    pub region: String,
    /// The service's code, or what kept it from answering.
    pub code: String,
    /// The service's words.
    pub message: Option<String>,
}

impl BackupFailure {
    fn way_out(&self) -> &'static str {
        match self.code.as_str() {
            "ResourceNotFoundException" => {
                "check `backup.vault` and `backup.resource`: name, account and region"
            }
            "InvalidParameterValueException" | "MissingParameterValueException" => {
                "check `backup.role` and `backup.resource`: whole ARNs, of that account"
            }
            "AccessDeniedException" => {
                "give the recorder backup:StartBackupJob, backup:DescribeBackupJob and iam:PassRole"
            }
            "LimitExceededException" | "ThrottlingException" | "ServiceUnavailableException" => {
                "it is tried again"
            }
            "UnrecognizedClientException" | "ExpiredTokenException" => "renew the credentials",
            NO_CREDENTIALS => "give this machine some",
            "it was not reached" | "no answer in time" => {
                "check network, endpoint and security groups; it is tried again"
            }
            _ => "see the API reference of AWS Backup",
        }
    }
}

/// A service that backs volumes up.
pub trait BackupService: Send + Sync {
    /// Orders a backup, and gives the id of the job.
    ///
    /// # Errors
    /// It refuses, or does not answer.
    fn start(&self, order: &Order) -> Result<String, BackupFailure>;

    /// How a job stands.
    ///
    /// # Errors
    /// It does not know the job, or does not answer.
    fn describe(&self, resource: &str, job: &str) -> Result<JobState, BackupFailure>;
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Going(word) => f.write_str(&word.to_lowercase()),
            Self::Completed => f.write_str("completed"),
            Self::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}
