//! Backups of the state by AWS Backup: the real recorder with the real SDK, and a double that
//! refuses what AWS refuses. That jobs go through these states is our reading of AWS.

use std::time::Duration;

use serde_json::Value;
use wirevault_testkit::net::{Namespace, wait_for};
use wirevault_tests::recorder::{Recorder, Site, wait_until_it_records};
use wirevault_tests::vault::{ROLE, VAULT, VOLUME, Vault};

const PATIENCE: Duration = Duration::from_secs(120);

/// A namespace with a veth pair, in which the service can be reached.
fn namespace() -> Option<Namespace> {
    let ns = Namespace::new()?;
    ns.ip(&["link", "set", "lo", "up"]);
    ns.add_veth("va", "vb");
    Some(ns)
}

fn site(vault: &Vault) -> Site {
    let mut site = Site::new("272MiB", 1);
    site.set_environment(vault.environment());
    site
}

/// Backups every two seconds, which is also how often jobs are asked for.
fn start(site: &Site) -> Recorder {
    let folder = site.file("state");
    let options = format!(
        "    ring: 8MiB\nbuffer:\n  size: 8MiB\nsnapshots:\n  folder: {}\n\
         backup:\n  vault: {VAULT}\n  role: {ROLE}\n  resource: {VOLUME}\n  every: 2s\n  \
         retention: 35days\n",
        folder.display()
    );
    site.record("va", &options)
}

/// Waits until status says so of backups.
fn until(recorder: &Recorder, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    wait_for(what, PATIENCE, || {
        let status = recorder.status();
        is(&status["backup"]).then_some(status)
    })
}

fn audited(site: &Site) -> String {
    let log = site.offline_of("audit", "show", &[]);
    assert!(log.status.success(), "{log:?}");
    String::from_utf8_lossy(&log.stdout).into_owned()
}

#[test]
fn a_backup_is_ordered_behind_a_checkpoint_and_followed_to_its_end() {
    let Some(_ns) = namespace() else { return };
    let vault = Vault::start(&["CREATED", "RUNNING", "COMPLETED"]);
    let site = site(&vault);
    let recorder = start(&site);
    let status = until(&recorder, "a recovery point", |backup| backup["checkpoint"].is_u64());
    wait_until_it_records(&recorder);
    let metrics = recorder.get("/v1/metrics").expect("metrics");
    assert!(metrics.contains("wirevault_backup_age_seconds"), "{metrics}");
    let first = vault.jobs()[0].clone();
    let order = &first["order"];
    assert_eq!(order["RecoveryPointTags"]["wirevault-store"], status["store"], "{order}");
    let tagged = order["RecoveryPointTags"]["wirevault-checkpoint"].as_str().expect("a tag");
    assert_eq!(order["Lifecycle"]["DeleteAfterDays"], 35, "{order}");
    let log = audited(&site);
    let at = |text: &str| log.find(text).unwrap_or_else(|| panic!("no `{text}` in {log}"));
    let taken = at(&format!("checkpoint {tagged} of the state"));
    assert!(taken < at("backup ordered") && at("backup ordered") < at("backup completed"));

    let second = wait_for("the next order", PATIENCE, || vault.jobs().get(1).cloned());
    assert_ne!(first["token"], second["token"]);

    // A restart asks for the job that is under way, and orders no other.
    vault.script(&[VAULT], &[ROLE], &["RUNNING"], None);
    let status = until(&recorder, "a job under way", |backup| backup["state"] == "running");
    let job = status["backup"]["job"].clone();
    assert!(recorder.terminate().success());
    let jobs = vault.jobs().len();
    let asked = |vault: &Vault| {
        let jobs = vault.jobs();
        let same = jobs.iter().find(|it| it["id"] == job).expect("the job");
        same["asked"].as_u64().expect("a count")
    };
    let before = asked(&vault);
    let recorder = start(&site);
    wait_for("the same job is asked for", PATIENCE, || (asked(&vault) > before).then_some(()));
    assert_eq!(vault.jobs().len(), jobs, "no other was ordered");
    assert!(recorder.terminate().success());
}

#[test]
fn what_aws_refuses_is_told_with_the_way_out_and_tried_again() {
    let Some(_ns) = namespace() else { return };
    let vault = Vault::start(&["COMPLETED"]);
    let site = site(&vault);
    vault.script(&[], &[ROLE], &["COMPLETED"], None);
    let recorder = start(&site);
    let trouble = |code: &'static str| {
        move |backup: &Value| backup["trouble"].as_str().is_some_and(|it| it.contains(code))
    };
    let status = until(&recorder, "no vault", trouble("ResourceNotFoundException"));
    assert_eq!(status["state"], "degraded", "{status}");
    assert!(status["reasons"].to_string().contains("check `backup.vault`"), "{status}");
    vault.script(&[VAULT], &[], &["COMPLETED"], None);
    until(&recorder, "no role", trouble("InvalidParameterValueException"));
    vault.script(&[VAULT], &[ROLE], &["FAILED"], Some("the volume is gone"));
    until(&recorder, "a job that fails", trouble("FAILED, the volume is gone"));
    vault.script(&[VAULT], &[ROLE], &["EXPIRED"], None);
    until(&recorder, "a job that expires", trouble("EXPIRED"));
    vault.script(&[VAULT], &[ROLE], &["COMPLETED"], None);
    until(&recorder, "a recovery point", |backup| {
        backup["checkpoint"].is_u64() && backup["trouble"].is_null()
    });
    let log = audited(&site);
    assert!(log.contains("backup refused") && log.contains("backup failed"), "{log}");
    assert!(recorder.terminate().success());
}
