//! Backups of the state by AWS Backup: `backup`.

use std::time::Duration;

use super::Without::{Fault, Nothing, Value};
use super::{DAY_MS, Key, Kind, SECOND_MS, hidden, key, millis};

/// Bytes of a vault's name at most. Source: AWS Backup API, `BackupVaultName`.
const VAULT_BYTES_MAX: usize = 50;
/// Bytes of an ARN at most. Source: IAM User Guide, "IAM identifiers".
const ARN_BYTES_MAX: usize = 2048;
/// A recovery point is kept for whole days, up to a hundred years.
const RETENTION: Kind = Kind::Duration {
    min: Duration::from_millis(DAY_MS),
    max: Duration::from_millis(36_525 * DAY_MS),
};

pub(super) const KEYS: &[Key] = &[
    hidden(key(
        "backup",
        Kind::Section,
        Nothing,
        "",
        "Backups of the EBS volume that `snapshots.folder` is on, by AWS Backup. A checkpoint is \
         taken before each. Region and credentials are found as by any AWS program.",
    )),
    hidden(key(
        "backup.vault",
        Kind::Word(VAULT_BYTES_MAX),
        Fault,
        "recorders",
        "Vault that recovery points go to.",
    )),
    hidden(key(
        "backup.role",
        Kind::Word(ARN_BYTES_MAX),
        Fault,
        "arn:aws:iam::123456789012:role/wirevault-backup",
        "Role that AWS Backup takes on. The recorder needs iam:PassRole for it.",
    )),
    hidden(key(
        "backup.resource",
        Kind::Word(ARN_BYTES_MAX),
        Fault,
        "arn:aws:ec2:eu-central-1:123456789012:volume/vol-0123456789abcdef0",
        "The volume. Its region is the one that is asked.",
    )),
    hidden(key(
        "backup.every",
        millis(SECOND_MS, 31 * DAY_MS),
        Value("1day"),
        "1day",
        "Time between two backups. One that fails is tried again after a quarter of an hour.",
    )),
    hidden(key(
        "backup.retention",
        RETENTION,
        Nothing,
        "35days",
        "Time after which a recovery point goes, in whole days; without it none goes by itself.",
    )),
];
