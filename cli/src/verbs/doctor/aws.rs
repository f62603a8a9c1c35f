//! What a machine of EC2 is bound to, and whether the services answer that the recorder needs.

use std::sync::Arc;
use std::time::Instant;

use wirevault_config::Config;
use wirevault_index::{KeySource, open_store};
use wirevault_seal::KeyService;
use wirevault_seal::service::{Context, Refusal, ServiceFailure};

use super::root::Root;
use super::{Finding, Verdict};

/// Local disks of an instance. Source: EC2 User Guide, "Instance store volumes".
const LOCAL_MODEL: &str = "Amazon EC2 NVMe Instance Storage";
/// An epoch that no store ever has: they are random.
const NO_EPOCH: [u8; 16] = [0; 16];

/// What is said of disks that end with the instance.
pub(super) fn check(root: &Root) -> Option<Finding> {
    let model = |disk: &String| root.text(&format!("sys/block/{disk}/device/model"));
    let mut disks = root.names("sys/block");
    disks.retain(|disk| model(disk).is_some_and(|model| model.starts_with(LOCAL_MODEL)));
    (!disks.is_empty()).then(|| {
        let seen = format!("{} are local disks of the instance", disks.join(", "));
        let advice = "a stop of the instance empties them, and neither AWS Backup nor an image of \
                      the instance has them: copy elsewhere what must outlive it";
        Finding { advice: advice.to_owned(), ..Finding::ok("backups", seen) }
    })
}

/// Whether the key service gives what recording needs: a new key, and what opens it again.
pub(super) fn key(
    config: &Config,
    source: &KeySource,
    service: Option<&Arc<dyn KeyService>>,
) -> Option<Finding> {
    let (KeySource::Service(services), Some(service)) = (source, service) else { return None };
    // That it does not open is told by the probe.
    let store = open_store(config.stores.first()?, source).ok()?.store;
    let keys = services.known(store)?;
    let key = keys.key();
    if let Some(silent) = keys.status().trouble.filter(|it| it.refusal.is_no_answer()) {
        // It would be waited for once more.
        return Some(told(&key, Err(silent), 0));
    }
    let context = Context { store, epoch: NO_EPOCH };
    let since = Instant::now();
    let tried = service
        .generate(&key, &context)
        .and_then(|made| service.decrypt(&key, &context, &made.wrapped).map(drop));
    Some(told(&key, tried, since.elapsed().as_millis()))
}

fn told(key: &str, tried: Result<(), ServiceFailure>, millis: u128) -> Finding {
    match tried {
        Ok(()) => Finding::ok("key", format!("{key} draws and opens keys, in {millis} ms")),
        Err(failure) => {
            let advice = match failure.refusal {
                Refusal::NoCredentials => {
                    "give the instance a role that may use the key (deploy/appliance.yaml has \
                     one), or the recorder's unit credentials in its environment or a profile"
                }
                Refusal::Unreachable => "check network, endpoint and security groups",
                _ => {
                    "allow `kms:GenerateDataKey` and `kms:Decrypt` with this key to the \
                     recorder's role, with contexts whose `app` is `wirevault` \
                     (deploy/appliance.yaml has the policy)"
                }
            };
            let finding = Finding::warn("key", failure.to_string(), advice);
            Finding { verdict: Verdict::Fail, ..finding }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn local_disks_are_told_and_others_are_not() {
        let dir = tempfile::tempdir().unwrap();
        for (disk, model) in [
            ("nvme0n1", "Amazon Elastic Block Store              "),
            ("nvme1n1", "Amazon EC2 NVMe Instance Storage        "),
        ] {
            let folder = dir.path().join("sys/block").join(disk).join("device");
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("model"), model).unwrap();
        }
        let told = check(&Root::new(dir.path())).unwrap();
        assert!(told.seen.starts_with("nvme1n1 are local"), "{told:?}");
        assert!(told.advice.contains("AWS Backup"), "{told:?}");
        assert_eq!(check(&Root::new(&dir.path().join("sys"))), None);
    }

    #[test]
    fn a_refusal_says_what_to_allow() {
        let failure = |refusal| ServiceFailure {
            doing: "make an epoch key",
            key: "arn:1".to_owned(),
            endpoint: "eu-central-1".to_owned(),
            code: "AccessDeniedException".to_owned(),
            message: String::new(),
            refusal,
        };
        let finding = told("arn:1", Err(failure(Refusal::NoCredentials)), 3);
        assert!(finding.advice.contains("a role"), "{finding:?}");
        let finding = told("arn:1", Err(failure(Refusal::Denied)), 3);
        assert_eq!(finding.verdict, Verdict::Fail);
        assert!(finding.seen.contains("AccessDenied") && finding.advice.contains("kms:Gen"));
        assert_eq!(told("arn:1", Ok(()), 3).verdict, Verdict::Ok);
    }
}
