//! Whether the services answer that a configuration names, and let the recorder do what it will ask
//! of them. Of the store's key `aws` tells.
//!
//! Each check is the least that shows the right: metrics get one more second in which nothing was
//! given up, the tier an object that is read and deleted again, and the key of audit heads makes a
//! code that nobody keeps. AWS Backup is asked for a job that nobody ordered, and a place for audit
//! heads for one that nobody kept: the one has no way to try an order, and the other should let
//! nobody delete what was put.

use std::time::Instant;

use wirevault_cloud::backup::BackupService;
use wirevault_cloud::instance::Metadata;
use wirevault_config::{Anchor, Config, Imds};
use wirevault_daemon::cloud::publisher;
use wirevault_media::{ObjectError, Objects};
use wirevault_seal::MacService;
use wirevault_telemetry::clock::{Clock, SECOND_NS, SystemClock};
use wirevault_telemetry::publish::{MetricSink, Period, Series, Unit, Values};

use super::Finding;
use super::asking::{Check, PATIENCE};
use crate::output::count_text;

/// A metric whose sum is not changed by one more value of 0.
const NEUTRAL: &str = "PeriodsDropped";
/// A job that nobody ordered; how AWS Backup says that there is none.
const NO_JOB: &str = "00000000-0000-0000-0000-000000000000";
const UNKNOWN_JOB: &str = "ResourceNotFoundException";
/// What the object of the tier says to whoever finds it.
const CONTENT: &[u8] = b"wirevault doctor was here; this may go\n";

const METRICS: &str = "metrics";
const METRICS_ADVICE: &str = "allow `cloudwatch:PutMetricData` in this namespace and \
                              `cloudwatch:GetMetricStatistics` to the recorder's role; it records \
                              without, and alarms take its silence for losses";
const BACKUP: &str = "backup";
const BACKUP_ADVICE: &str = "allow `backup:StartBackupJob`, `backup:DescribeBackupJob` and \
                             `iam:PassRole` to the recorder's role; it records without";
const TIER: &str = "tier";
const TIER_ADVICE: &str = "let the recorder put, read and delete objects there; until then \
                           segments stay on the volumes, and go when the quota is reached";
const ANCHOR: &str = "anchor";
const ANCHOR_ADVICE: &str = "let the recorder use it; until then nothing outside of the recorder's \
                             reach shows that its audit log was cut off or made anew";
/// What a code is made of; no head of a log is this text.
const NO_HEAD: &[u8] = b"wirevault doctor";
/// A head of no store.
const NO_HEAD_OBJECT: &str = "heads/none";
const INSTANCE: &str = "instance";
const INSTANCE_ADVICE: &str = "aws ec2 modify-instance-metadata-options --http-endpoint enabled \
                               --http-tokens required --http-put-response-hop-limit 1 (2 in a \
                               container): without it no notice comes, and no credentials of the \
                               role";

/// Every service that the configuration names. What a build has no client for the start refuses.
pub(super) fn checks(config: &Config) -> Vec<Check> {
    let of_metrics = || {
        let options = publisher::options(&config.cloudwatch)?;
        let who = format!("{} in namespace {}", options.appliance, options.namespace);
        let sink = wirevault_cloud::metric_sink(options).ok()??;
        let late = late(METRICS, "CloudWatch", METRICS_ADVICE);
        Some(Check::new(late, move || vec![metrics(&*sink, &who)]))
    };
    let of_backup = || {
        let resource = config.backup.as_ref()?.resource.clone();
        let service = wirevault_cloud::backup_service().ok()??;
        let late = late(BACKUP, "AWS Backup", BACKUP_ADVICE);
        Some(Check::new(late, move || vec![backups(&*service, &resource)]))
    };
    let of_tier = || {
        let objects = wirevault_cloud::objects(&config.tier.as_ref()?.url).ok()?;
        let late = late(TIER, &objects.describe(), TIER_ADVICE);
        Some(Check::new(late, move || vec![tier(&*objects)]))
    };
    let of_anchor = |anchor: &Anchor| match anchor {
        // A path is looked at by the probe.
        Anchor::File(_) => None,
        Anchor::Objects(url) => {
            let objects = wirevault_cloud::objects(url).ok()?;
            let late = late(ANCHOR, &objects.describe(), ANCHOR_ADVICE);
            Some(Check::new(late, move || vec![heads(&*objects)]))
        }
        Anchor::Key(key) => {
            let key = key.clone();
            let service = wirevault_cloud::mac_service(config.kms.endpoint.as_deref()).ok()??;
            let late = late(ANCHOR, &key, ANCHOR_ADVICE);
            Some(Check::new(late, move || vec![codes(&*service, &key)]))
        }
    };
    let of_instance = || match config.cloud.imds {
        Imds::Off => None,
        Imds::Auto => instance(),
    };
    let services = [of_metrics(), of_backup(), of_tier(), of_instance()];
    let anchors = config.audit.anchors.iter().filter_map(of_anchor);
    services.into_iter().flatten().chain(anchors).collect()
}

/// What the cloud tells this machine of itself; nothing where there is none.
pub(super) fn instance() -> Option<Check> {
    let metadata = wirevault_cloud::metadata().ok()??;
    let late = late(INSTANCE, "instance metadata", INSTANCE_ADVICE);
    Some(Check::new(late, move || vec![told(&*metadata)]))
}

/// What is said of a service whose check has not come to an end.
fn late(about: &str, who: &str, advice: &str) -> Finding {
    let seen = format!("{who}: no answer within {} s", PATIENCE.as_secs());
    let advice = format!("check network, endpoint and security groups; {advice}");
    Finding::warn(about, seen, advice)
}

fn metrics(sink: &dyn MetricSink, who: &str) -> Finding {
    let now_s = SystemClock.unix_ns() / SECOND_NS;
    let nothing = Series {
        name: NEUTRAL.to_owned(),
        device: None,
        unit: Unit::Count,
        values: Values::Set { count: 1.0, sum: 0.0, min: 0.0, max: 0.0 },
    };
    let since = Instant::now();
    let period = Period { since_s: now_s, until_s: now_s, series: vec![nothing] };
    match sink.put(&period).and_then(|()| sink.has(now_s)) {
        Ok(_) => {
            let millis = since.elapsed().as_millis();
            Finding::ok(METRICS, format!("CloudWatch takes them of {who}, in {millis} ms"))
        }
        Err(failure) => Finding::warn(METRICS, failure.why, METRICS_ADVICE),
    }
}

fn backups(service: &dyn BackupService, resource: &str) -> Finding {
    match service.describe(resource, NO_JOB) {
        Err(failure) if failure.code != UNKNOWN_JOB => {
            Finding::warn(BACKUP, failure.to_string(), BACKUP_ADVICE)
        }
        _ => {
            let seen = "AWS Backup tells how jobs stand; whether it takes an order shows the first";
            Finding::ok(BACKUP, seen)
        }
    }
}

fn tier(objects: &dyn Objects) -> Finding {
    let name = format!("wirevault-doctor-{:x}", SystemClock.unix_ns());
    let since = Instant::now();
    match there_and_back(objects, &name) {
        Ok(whole) => {
            let (place, millis) = (objects.describe(), since.elapsed().as_millis());
            let seen = format!("{place}: an object was put, read and deleted, in {millis} ms");
            let advice = "it gives back something else than was put: use another place";
            Finding::judged(TIER, seen, !whole, advice)
        }
        Err(error) => Finding::warn(TIER, error.to_string(), TIER_ADVICE),
    }
}

/// Whether what comes back is what was put.
fn there_and_back(objects: &dyn Objects, name: &str) -> Result<bool, ObjectError> {
    let mut pieces = Some(CONTENT.to_vec());
    objects.put(name, &mut || Ok(pieces.take()))?;
    let read = objects.read(name, 0..CONTENT.len() as u64);
    // Also if it cannot be read.
    objects.delete(name)?;
    Ok(read? == CONTENT)
}

fn heads(objects: &dyn Objects) -> Finding {
    match objects.bytes(NO_HEAD_OBJECT) {
        Ok(_) => {
            let place = objects.describe();
            let seen = format!("{place} answers; whether it takes heads shows the first");
            Finding::ok(ANCHOR, seen)
        }
        Err(error) => Finding::warn(ANCHOR, error.to_string(), ANCHOR_ADVICE),
    }
}

fn codes(service: &dyn MacService, key: &str) -> Finding {
    let since = Instant::now();
    match service.make_mac(key, NO_HEAD) {
        Ok(_) => {
            let millis = since.elapsed().as_millis();
            Finding::ok(ANCHOR, format!("{key} makes codes, in {millis} ms"))
        }
        Err(failure) => {
            let advice = format!("allow `kms:GenerateMac` with this key; {ANCHOR_ADVICE}");
            Finding::warn(ANCHOR, failure.to_string(), advice)
        }
    }
}

fn told(metadata: &dyn Metadata) -> Finding {
    match metadata.instance() {
        Ok(it) => {
            let open = metadata.answers_without_token() == Some(true);
            let asks = if open { "does not ask" } else { "asks" };
            let (id, kind, zone, tags) = (it.id, it.kind, it.zone, it.tags.len());
            let tags = count_text(tags as u64, "tag");
            let seen =
                format!("{id}, {kind} in {zone}, {tags}; its metadata service {asks} for a token");
            let advice = "aws ec2 modify-instance-metadata-options --http-tokens required: without \
                          it whoever can have a program fetch a URL gets the role's credentials";
            Finding::judged(INSTANCE, seen, open, advice)
        }
        Err(why) => Finding::warn(INSTANCE, why, INSTANCE_ADVICE),
    }
}

#[cfg(test)]
mod tests {
    use wirevault_cloud::backup::{BackupFailure, JobState, Order};
    use wirevault_cloud::instance::{Instance, Notice};

    use super::super::Verdict;
    use super::*;

    struct Backups(&'static str);

    impl BackupService for Backups {
        fn start(&self, _: &Order) -> Result<String, BackupFailure> {
            unreachable!("nothing is ordered")
        }

        fn describe(&self, _: &str, _: &str) -> Result<JobState, BackupFailure> {
            let (code, region) = (self.0.to_owned(), "eu-central-1".to_owned());
            Err(BackupFailure { doing: "tell", region, code, message: None })
        }
    }

    /// Of an instance without a token, or silent.
    struct Told(Option<Instance>);

    impl Metadata for Told {
        fn instance(&self) -> Result<Instance, String> {
            self.0.clone().ok_or_else(|| "no answer in time".to_owned())
        }

        fn answers_without_token(&self) -> Option<bool> {
            Some(self.0.is_some())
        }

        fn notices(&self) -> Result<Vec<Notice>, String> {
            Ok(Vec::new())
        }
    }

    #[test]
    fn a_job_that_nobody_ordered_is_unknown_and_that_is_an_answer() {
        assert_eq!(backups(&Backups(UNKNOWN_JOB), "arn").verdict, Verdict::Ok);
        let denied = backups(&Backups("AccessDeniedException"), "arn");
        assert!(denied.seen.contains("AccessDenied") && denied.advice.contains("iam:PassRole"));
    }

    #[test]
    fn metadata_that_are_silent_or_open_come_with_what_to_change() {
        let finding = told(&Told(None));
        assert_eq!(finding.verdict, Verdict::Warn);
        assert!(finding.advice.contains("hop-limit"), "{finding:?}");
        let finding = told(&Told(Some(Instance::default())));
        assert_eq!(finding.verdict, Verdict::Warn);
        assert!(finding.advice.contains("--http-tokens required"), "{finding:?}");
    }

    #[test]
    fn a_tier_keeps_nothing_of_the_check() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}", dir.path().join("tier").display());
        let objects = wirevault_cloud::objects(&url).unwrap();
        let missing = tier(&*objects);
        assert!(missing.verdict == Verdict::Warn && !missing.advice.is_empty(), "{missing:?}");
        std::fs::create_dir(dir.path().join("tier")).unwrap();
        let found = tier(&*objects);
        assert_eq!(found.verdict, Verdict::Ok, "{found:?}");
        let left = std::fs::read_dir(dir.path().join("tier")).unwrap().filter_map(Result::ok);
        let left: Vec<_> = left.filter(|it| it.path().is_file()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}
