//! AWS Backup by its SDK.

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::sync::{Mutex, PoisonError};

use aws_sdk_backup::Client;
use aws_sdk_backup::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_backup::types::{BackupJobState, Lifecycle};
use tokio::runtime::Runtime;

use crate::backup::{BackupFailure, BackupService, JobState, Order};
use crate::{NO_CREDENTIALS, client};

/// Tags of the recovery point: what a restore looks for.
const TAG_STORE: &str = "wirevault-store";
const TAG_CHECKPOINT: &str = "wirevault-checkpoint";
const START: &str = "start a backup";
const DESCRIBE: &str = "tell how a backup stands";
/// Throttling and failures of the service are tried again by the SDK, with pauses of its own.
const ATTEMPTS: u32 = 3;
const DAY_SECONDS: u64 = 24 * 3600;

/// AWS Backup of whatever region a resource names.
pub(crate) struct AwsBackup {
    runtime: Runtime,
    clients: Mutex<HashMap<Option<String>, Client>>,
}

impl AwsBackup {
    /// Nothing is connected yet.
    ///
    /// # Errors
    /// The operating system gives no descriptor to wait with.
    pub(crate) fn new() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { runtime, clients: Mutex::default() })
    }

    fn ask<T, E, F>(
        &self,
        doing: &'static str,
        resource: &str,
        call: impl FnOnce(Client) -> F + Send,
    ) -> Result<T, BackupFailure>
    where
        T: Send,
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
        F: Future<Output = Result<T, SdkError<E>>> + Send,
    {
        let region = client::region_of(resource);
        let answer = client::wait(&self.runtime, async { call(self.client(region).await).await });
        let region = region.unwrap_or("of the environment").to_owned();
        let Some(answer) = answer else {
            let code = "the SDK panicked".to_owned();
            return Err(BackupFailure { doing, region, code, message: None });
        };
        answer.map_err(|error| {
            let unsigned = client::unsigned(&error);
            let (code, message) = match (error.code(), &error) {
                (Some(code), _) => (code, error.message().map(ToOwned::to_owned)),
                (None, _) if unsigned.is_some() => (NO_CREDENTIALS, unsigned),
                (None, SdkError::TimeoutError(_)) => ("no answer in time", None),
                (None, SdkError::DispatchFailure(_)) => {
                    ("it was not reached", Some(client::causes(&error)))
                }
                (None, _) => ("no answer of AWS Backup", Some(client::causes(&error))),
            };
            BackupFailure { doing, region, code: code.to_owned(), message }
        })
    }

    async fn client(&self, region: Option<&str>) -> Client {
        let named = region.map(ToOwned::to_owned);
        let lock = || self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = lock().get(&named).cloned() {
            return client;
        }
        let client = Client::new(&client::config(region, ATTEMPTS).await);
        lock().insert(named, client.clone());
        client
    }
}

impl BackupService for AwsBackup {
    fn start(&self, order: &Order) -> Result<String, BackupFailure> {
        let days = order.retention.map(|retention| retention.as_secs() / DAY_SECONDS);
        let lifecycle = days.map(|days| {
            let days = i64::try_from(days).unwrap_or(i64::MAX);
            Lifecycle::builder().delete_after_days(days).build()
        });
        let started = self.ask(START, &order.resource, |client| {
            client
                .start_backup_job()
                .backup_vault_name(&order.vault)
                .resource_arn(&order.resource)
                .iam_role_arn(&order.role)
                .idempotency_token(&order.token)
                .set_lifecycle(lifecycle)
                .recovery_point_tags(TAG_STORE, &order.store)
                .recovery_point_tags(TAG_CHECKPOINT, order.checkpoint.to_string())
                .send()
        })?;
        started.backup_job_id.ok_or_else(|| BackupFailure {
            doing: START,
            region: client::region_of(&order.resource).unwrap_or_default().to_owned(),
            code: "the answer names no job".to_owned(),
            message: None,
        })
    }

    fn describe(&self, resource: &str, job: &str) -> Result<JobState, BackupFailure> {
        let told = self.ask(DESCRIBE, resource, |client| {
            client.describe_backup_job().backup_job_id(job).send()
        })?;
        let word = told.state.as_ref().map_or("UNKNOWN", BackupJobState::as_str).to_owned();
        Ok(match told.state {
            Some(BackupJobState::Completed) => JobState::Completed,
            Some(
                BackupJobState::Aborted
                | BackupJobState::Aborting
                | BackupJobState::Expired
                | BackupJobState::Failed
                // Something of the volume is missing in the recovery point.
                | BackupJobState::Partial,
            ) => {
                let why = told.status_message.map_or(String::new(), |why| format!(", {why}"));
                JobState::Failed(format!("{word}{why}"))
            }
            _ => JobState::Going(word),
        })
    }
}
