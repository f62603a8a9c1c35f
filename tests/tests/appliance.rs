//! The whole appliance: the configuration that the documentation shows, ten lines longer than the
//! demonstration's, with every service of AWS on loopback, through the faults of a bad day and the
//! end of its machine.
//!
//! Each service has tests of its own. This one is about all of them at once, and about what an
//! operator sees: status, doctor and alarms.

use std::fs;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::{Value, json};
use wirevault_testkit::net::{Namespace, Sender, now_ns, wait_for};
use wirevault_tests::aws::{Aws, REGION};
use wirevault_tests::imds::{INSTANCE, Imds};
use wirevault_tests::recorder::{Recorder, Site, nothing_is_damaged, program};
use wirevault_tests::vault::{ROLE, VAULT, VOLUME, Vault};

/// A silent service is given up on after seconds, rules are asked every minute, and many people may
/// share this machine.
const PATIENCE: Duration = Duration::from_secs(120);
const PACKETS: u64 = 100;
/// Packets that the test sends.
const OURS: &str = "ether proto 0x88b5";
/// More calls than this test makes.
const ALWAYS: u32 = 1_000_000;
const EXAMPLE: &str = include_str!("../../config/examples/appliance.yaml");
/// A notice two minutes before a spot instance is taken back.
const SPOT: (&str, &str) =
    ("spot/instance-action", "{\"action\":\"terminate\",\"time\":\"2026-11-21T20:02:00Z\"}");

/// All that there is outside of the recorder.
struct Cloud {
    aws: Aws,
    vault: Vault,
    imds: Imds,
    /// The store's key.
    key: String,
    /// The key for codes of the audit log.
    codes: String,
}

impl Cloud {
    /// Nothing where the emulator is not installed.
    fn new() -> Option<Self> {
        let aws = Aws::start()?;
        for name in [aws.create_bucket(), VAULT, ROLE, VOLUME] {
            assert!(EXAMPLE.contains(name), "`{name}` in the example");
        }
        let (key, codes) = (aws.create_key(), aws.create_mac_key());
        let vault = Vault::start(&["CREATED", "RUNNING", "COMPLETED"]);
        Some(Self { aws, vault, imds: Imds::start(), key, codes })
    }

    /// One environment for all of it.
    fn environment(&self) -> Vec<(&'static str, String)> {
        let of_aws = self.aws.environment().into_iter();
        let here = of_aws.filter(|(name, _)| *name != "AWS_EC2_METADATA_DISABLED");
        let backup = ("AWS_ENDPOINT_URL_BACKUP", self.vault.endpoint());
        here.chain([backup]).chain(self.imds.environment()).collect()
    }

    /// An empty store of the same key.
    fn site(&self) -> Site {
        let mut site = Site::with_kms_key(&self.aws, &self.key);
        site.set_environment(self.environment());
        site
    }

    /// The example with this machine's names, and with shorter times.
    fn config(&self, site: &Site) -> String {
        let (store, state) = (site.store(), site.file("state"));
        let mut text = EXAMPLE.to_owned();
        for (shown, here) in [
            ("store: /var/lib/wirevault\n", format!("store: {}\n", store.display())),
            ("eth0\n", "va\n    ring: 8MiB\n".to_owned()),
            ("/var/lib/wirevault-state}", format!("{}, every: 2s}}", state.display())),
            ("backup:\n", "backup:\n  every: 2s\n".to_owned()),
            (
                "kms:arn:aws:kms:eu-central-1:123456789012:key/0123'",
                format!("kms:{}', anchor_every: 1s", self.codes),
            ),
            ("{publish: true,", "{publish: true, period: 1s,".to_owned()),
            ("age: 1h", "age: 1s".to_owned()),
        ] {
            assert!(text.contains(shown), "`{shown}` in {text}");
            text = text.replace(shown, &here);
        }
        let socket = site.file("socket");
        let more = "buffer: {size: 8MiB}\nkms: {epoch_age: 1s, epochs_ahead: 3}\n";
        format!("{text}api: {{socket: {}}}\n{more}", socket.display())
    }

    /// The alarms that `wirevault cloudwatch alarms --apply` has put, of which the newest published
    /// value is one that they look for.
    fn raised(&self) -> Vec<String> {
        let alarms = self.aws.cloudwatch(REGION, "DescribeAlarms", &json!({}));
        let alarms = alarms["MetricAlarms"].as_array().expect("alarms").clone();
        let raised = alarms.iter().filter(|alarm| self.is_raised(alarm));
        raised.map(|alarm| alarm["AlarmName"].as_str().expect("a name").to_owned()).collect()
    }

    fn is_raised(&self, alarm: &Value) -> bool {
        let now_s = now_ns() / 1_000_000_000;
        let asked = json!({
            "Namespace": alarm["Namespace"], "MetricName": alarm["MetricName"],
            "Dimensions": alarm["Dimensions"], "Statistics": [alarm["Statistic"]], "Period": 1,
            "StartTime": now_s - 1200, "EndTime": now_s + 60,
        });
        let told = self.aws.cloudwatch(REGION, "GetMetricStatistics", &asked);
        let points = told["Datapoints"].as_array().expect("data points").iter();
        let newest = points.max_by_key(|point| point["Timestamp"].to_string());
        let statistic = alarm["Statistic"].as_str().expect("a statistic");
        let Some(value) = newest.and_then(|it| it[statistic].as_f64()) else { return false };
        let threshold = alarm["Threshold"].as_f64().expect("a threshold");
        match alarm["ComparisonOperator"].as_str() {
            Some("GreaterThanThreshold") => value > threshold,
            Some("LessThanThreshold") => value < threshold,
            other => panic!("{other:?}"),
        }
    }
}

/// A recorder on one machine, and what was sent to it.
struct Appliance<'a> {
    cloud: &'a Cloud,
    site: &'a Site,
    recorder: Recorder,
}

impl<'a> Appliance<'a> {
    fn start(cloud: &'a Cloud, site: &'a Site) -> Self {
        let recorder = site.start(&cloud.config(site), &site.file("socket"));
        Self { cloud, site, recorder }
    }

    /// Sends more packets, and waits until all that was ever sent is told as stored.
    fn send(&self, sent: &mut u64) {
        let mut sender = Sender::on("vb");
        for number in *sent..*sent + PACKETS {
            let head = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5];
            sender.send(&[&head[..], &number.to_be_bytes(), &[0; 64]].concat());
        }
        *sent += PACKETS;
        wait_for("everything is told", PATIENCE, || {
            (packets(&self.segments()) >= *sent).then_some(())
        });
    }

    fn segments(&self) -> Vec<Value> {
        let rows = self.recorder.get("/v1/segments").expect("segments");
        serde_json::from_str(&rows).expect("a list")
    }

    /// Waits until the status is this.
    fn until(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, PATIENCE, || {
            let status = self.recorder.status();
            is(&status).then_some(status)
        })
    }

    /// Waits until nothing is amiss, every service has been of use, and no alarm is raised.
    fn until_all_is_well(&self) {
        let mut told = String::new();
        wait_for("all is well", PATIENCE, || {
            let status = self.recorder.status();
            let is_well = status["state"] == "recording"
                && status["reasons"] == json!([])
                && status["key"]["condition"] == "ready"
                && status["backup"]["checkpoint"].is_u64()
                && status["anchors"][0]["age_ms"].is_u64()
                && status["publish"]["sent_periods"].as_u64() > Some(0)
                && status["instance"]["id"] == INSTANCE;
            let raised = if is_well { self.cloud.raised() } else { Vec::new() };
            let now = format!("{} {raised:?}", status["reasons"]);
            if now != told {
                eprintln!("amiss: {now}");
                told = now;
            }
            (is_well && raised.is_empty()).then_some(())
        });
    }

    /// What the doctor finds amiss with a service, by its name.
    fn amiss(&self) -> Vec<(String, String)> {
        let config = self.site.file("wirevault.yaml").display().to_string();
        let output = self.wirevault(&["doctor", "--json", "--config", &config]);
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let findings = report["findings"].as_array().expect("findings").iter();
        let of_services = findings.filter(|it| {
            let about = it["about"].as_str().expect("a name");
            ["key", "metrics", "backup", "tier", "anchor", "instance"].contains(&about)
        });
        let amiss = of_services.filter(|it| it["verdict"] != "ok");
        amiss.map(|it| (it["about"].as_str().unwrap().to_owned(), it.to_string())).collect()
    }

    fn wirevault(&self, args: &[&str]) -> Output {
        let mut command = Command::new(program("wirevault"));
        command.args(args).envs(self.cloud.environment()).output().expect("wirevault")
    }
}

fn packets(rows: &[Value]) -> u64 {
    rows.iter().map(|row| row["packets"].as_u64().expect("packets")).sum()
}

/// The number that `query --count` prints.
fn count(answer: &Output) -> u64 {
    let said = String::from_utf8_lossy(&answer.stdout);
    said.trim().parse().unwrap_or_else(|_| panic!("{answer:?}"))
}

fn succeed(output: &Output) {
    assert!(output.status.success(), "{output:?}");
}

/// A namespace with a veth pair, in which the services can be reached.
fn namespace() -> Option<Namespace> {
    let ns = Namespace::new()?;
    ns.ip(&["link", "set", "lo", "up"]);
    ns.add_veth("va", "vb");
    Some(ns)
}

#[test]
fn an_appliance_of_ten_lines_lives_through_a_bad_day() {
    let Some(_ns) = namespace() else { return };
    let Some(cloud) = Cloud::new() else { return };
    let site = cloud.site();
    let mut sent = 0;
    let one = Appliance::start(&cloud, &site);
    let config = site.file("wirevault.yaml").display().to_string();
    succeed(&one.wirevault(&["cloudwatch", "alarms", "--apply", "--config", &config]));
    one.send(&mut sent);
    one.until_all_is_well();
    assert_eq!(one.amiss(), []);

    everything_fails_at_once(&one, &mut sent);
    cloudwatch_is_away(&one, &mut sent);
    one.recorder.kill();
    let one = a_start_waits_for_its_key(&cloud, &site);
    one.send(&mut sent);
    one.until_all_is_well();
    everything_is_there(&one, sent);
    the_machine_is_lost(one, sent);
}

/// Keys are taken away, the tier is silent, AWS Backup has lost its role, and EC2 wants the machine
/// back: each is told, alarms are raised, and recording goes on.
fn everything_fails_at_once(one: &Appliance<'_>, sent: &mut u64) {
    let cloud = one.cloud;
    cloud.aws.change_key("DisableKey", &cloud.key);
    cloud.aws.change_key("DisableKey", &cloud.codes);
    cloud.vault.script(&[VAULT], &[], &["COMPLETED"], None);
    let silent = |op: &str| json!({"op": op, "delay_s": 60, "count": ALWAYS});
    cloud.aws.set_faults(&json!([silent("PutObject"), silent("HeadObject")]));
    cloud.imds.announce(&[SPOT]);
    let status = one.until("each is told", |status| {
        let reasons = status["reasons"].to_string();
        let told = |words: &str| reasons.contains(words);
        told(&cloud.key) && told(&cloud.codes) && told(ROLE) && told("s3://") && told("spot")
    });
    assert_eq!(status["state"], "degraded");
    one.send(sent);
    wait_for("the alarms", PATIENCE, || {
        let raised = cloud.raised();
        let is_raised = |name: &str| raised.iter().any(|it| it.ends_with(name));
        (is_raised("tier-failed") && is_raised("epoch-keys-low")).then_some(())
    });
    // Now it answers, and refuses.
    let denied = json!({"op": "PutObject", "code": "AccessDenied", "status": 403, "count": ALWAYS});
    cloud.aws.set_faults(&json!([denied]));
    let amiss = one.amiss();
    for about in ["key", "tier", "anchor"] {
        assert!(amiss.iter().any(|(name, _)| name == about), "{about} in {amiss:?}");
    }
    assert_eq!(one.recorder.status()["lanes"][0]["dropped"], 0);

    for key in [&cloud.key, &cloud.codes] {
        cloud.aws.change_key("EnableKey", key);
    }
    cloud.vault.script(&[VAULT], &[ROLE], &["COMPLETED"], None);
    cloud.aws.set_faults(&json!([]));
    cloud.imds.announce(&[]);
    one.until_all_is_well();
}

/// What nobody can be told meanwhile is told afterwards.
fn cloudwatch_is_away(one: &Appliance<'_>, sent: &mut u64) {
    let aws = &one.cloud.aws;
    let failing = json!({"op": "PutMetricData", "code": "InternalServiceFault", "status": 500,
                         "count": ALWAYS});
    aws.set_faults(&json!([failing]));
    one.send(sent);
    one.until("the outage is told", |status| {
        status["reasons"].to_string().contains("are not published")
    });
    aws.set_faults(&json!([]));
    one.until_all_is_well();
    wait_for("all is published", PATIENCE, || {
        (aws.sum("recorder-1", "PacketsStored") >= *sent).then_some(())
    });
    assert_eq!(aws.sum("recorder-1", "PacketsLost"), 0);
}

/// After a crash KMS is out of order. That is no reason to stay down.
fn a_start_waits_for_its_key<'a>(cloud: &'a Cloud, site: &'a Site) -> Appliance<'a> {
    let failing = json!({"op": "*", "code": "KMSInternalException", "status": 500,
                         "count": ALWAYS});
    cloud.aws.set_faults(&json!([failing]));
    let refused = site.refuse(&cloud.config(site));
    assert_eq!(refused.status.code(), Some(6), "systemd tries again: {refused:?}");
    cloud.aws.set_faults(&json!([]));
    Appliance::start(cloud, site)
}

/// Each packet once; the audit log whole, with codes of KMS.
fn everything_is_there(one: &Appliance<'_>, sent: u64) {
    let found = one.recorder.ask("query", &[OURS, "--count"]);
    assert_eq!(count(&found), sent);
    let verified = one.site.offline("verify", &["--json"]);
    nothing_is_damaged(&String::from_utf8_lossy(&verified.stdout));
    let place = format!("kms:{}", one.cloud.codes);
    let verified = one.site.offline_of("audit", "verify", &["--anchor", &place]);
    succeed(&verified);
    let log = one.site.offline_of("audit", "show", &["--json"]);
    let log = String::from_utf8_lossy(&log.stdout).into_owned();
    for event in ["revoked", "notice", "drained", "backup", "tiered"] {
        assert!(log.contains(event), "`{event}` in the audit log: {log}");
    }
}

/// EC2 takes the machine back, with its volume. Another goes on from the state and the tier, and
/// nothing that was stored is lost.
fn the_machine_is_lost(one: Appliance<'_>, sent: u64) {
    let (cloud, state) = (one.cloud, one.site.file("state").display().to_string());
    cloud.imds.announce(&[SPOT]);
    wait_for("all is in the tier", PATIENCE, || {
        let rows = one.segments();
        let moved: Vec<_> = rows.into_iter().filter(|row| row["at"] != "local").collect();
        (packets(&moved) >= sent).then_some(())
    });
    let socket = one.recorder.socket().display().to_string();
    succeed(&one.wirevault(&["snapshot", "create", "--socket", &socket]));
    one.recorder.kill();
    fs::remove_dir_all(one.site.store()).expect("its volume");
    cloud.imds.announce(&[]);

    let next = cloud.site();
    let store = next.store().display().to_string();
    let mut restore = Command::new(program("wirevault"));
    restore.args(["snapshot", "restore", &state, "--store", &store]).envs(cloud.environment());
    succeed(&restore.output().expect("wirevault"));
    fs::rename(&state, next.file("state")).expect("the state volume");
    assert_eq!(count(&next.offline("query", &[OURS, "--count"])), sent);
    let (another, mut all) = (Appliance::start(cloud, &next), sent);
    another.send(&mut all);
    another.until_all_is_well();
    assert_eq!(count(&another.recorder.ask("query", &[OURS, "--count"])), all);
    assert!(another.recorder.terminate().success());
}

#[test]
fn the_documentation_shows_the_example() {
    let page = include_str!("../../docs/OPERATIONS.md");
    assert!(page.contains(EXAMPLE), "docs/OPERATIONS.md: not config/examples/appliance.yaml");
    let minimal = include_str!("../../config/examples/minimal.yaml");
    let more = EXAMPLE.strip_prefix(minimal).expect("the smallest configuration comes first");
    assert_eq!(more.lines().count(), 10);
}
