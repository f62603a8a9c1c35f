//! Stores whose key AWS KMS keeps: the real programs with the real SDK, and an emulator that
//! refuses what AWS refuses.

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wirevault_index::{KeySource, open_store};
use wirevault_media::VOLUME_FILE;
use wirevault_testkit::net::{Namespace, Sender, wait_for};
use wirevault_tests::aws::Aws;
use wirevault_tests::captures::{Packet, write_pcap};
use wirevault_tests::recorder::{Recorder, Site, lane_count, program, read_pcapng};

/// Each call of a silent service takes 6 s, and many people may share this machine.
const PATIENCE: Duration = Duration::from_secs(120);
const PACKETS: u64 = 100;
/// Epochs of a second in the place of an hour, so that the service is asked all the time.
const OPTIONS: &str = "    ring: 8MiB\nbuffer:\n  size: 8MiB\nsegment_age: 10s\n\
                       kms:\n  epoch_age: 1s\n  epochs_ahead: 2\n";
const EPOCH_NS: u64 = 1_000_000_000;
/// A port that nobody listens on.
const NOBODY: &str = "http://127.0.0.1:9";
/// More calls than a test makes.
const ALWAYS: u32 = 1_000_000;

/// An Ethernet frame of an experimental type.
fn frame(number: u64) -> Vec<u8> {
    let head = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5];
    [&head[..], &number.to_be_bytes(), &[0; 64]].concat()
}

/// A file of [`PACKETS`] beside the store.
fn capture(site: &Site) -> String {
    let packets = (0..PACKETS).map(|number| {
        let (ts_ns, data) = (1_700_000_000_000_000_000 + number, frame(number));
        Packet { ts_ns, orig_len: data.len() as u32, data }
    });
    let file = site.file("original.pcap");
    write_pcap(&file, &packets.collect::<Vec<_>>());
    file.display().to_string()
}

fn import(site: &Site) -> Output {
    site.offline("import", &[&capture(site)])
}

/// Packets that the store gives without a daemon.
fn found(site: &Site) -> u64 {
    let file = site.file("answer.pcapng");
    let output = site.offline("query", &["ether proto 0x88b5", "-w", &file.display().to_string()]);
    assert!(matches!(output.status.code(), Some(0 | 3)), "{output:?}");
    read_pcapng(&file).len() as u64
}

/// Fails with all of these words.
fn refused(output: &Output, code: i32, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    words.iter().for_each(|word| assert!(said.contains(word), "`{word}` in: {said}"));
}

#[test]
fn a_store_hangs_from_its_key_from_init_to_query() {
    let Some(aws) = Aws::start() else { return };
    let key = aws.create_key();
    let mut site = Site::with_kms_key(&aws, &key);
    aws.calls();
    assert_eq!(import(&site).status.code(), Some(0));
    assert_eq!(found(&site), PACKETS);
    let calls = aws.calls();
    let count = |name: &str| calls.iter().filter(|call| *call == name).count();
    assert_eq!(count("GenerateDataKey"), 1, "to write: {calls:?}");
    assert!((2..=4).contains(&count("Decrypt")), "an epoch at a time, not a segment: {calls:?}");

    let mut stranger = aws.environment().to_vec();
    stranger.retain(|(name, _)| *name != "AWS_ACCESS_KEY_ID");
    stranger.push(("AWS_ACCESS_KEY_ID", "AKIDSTRANGER".to_owned()));
    site.set_environment(stranger);
    refused(&import(&site), 2, &["UnrecognizedClientException", "renew the credentials"]);
    // It was said that KMS was not reached.
    let mut nobody = aws.environment().to_vec();
    nobody.retain(|(name, _)| !name.ends_with("_KEY") && *name != "AWS_ACCESS_KEY_ID");
    nobody.extend([("HOME", "/nonexistent"), ("AWS_PROFILE", "")].map(|it| (it.0, it.1.into())));
    site.set_environment(nobody);
    let told = import(&site);
    refused(&told, 2, &[&key, "cannot open an epoch key: no credentials (they are looked for in"]);
    refused(&told, 2, &["AWS_ACCESS_KEY_ID", "; give this machine some"]);
    let mut elsewhere = aws.environment().to_vec();
    elsewhere.retain(|(name, _)| *name != "AWS_ENDPOINT_URL");
    elsewhere.push(("AWS_ENDPOINT_URL", NOBODY.to_owned()));
    elsewhere.push(("AWS_ENDPOINT_URL_KMS", aws.endpoint()));
    site.set_environment(elsewhere);
    assert_eq!(found(&site), PACKETS, "the address for KMS comes before that for all services");
    site.set_environment(aws.environment().into());
    drop(aws);
    refused(&import(&site), 2, &[&key, "KMS was not reached", "check network"]);
}

#[test]
fn what_kms_refuses_is_told_with_key_place_code_and_way_out() {
    let Some(aws) = Aws::start() else { return };
    let key = aws.create_key();
    let site = Site::with_kms_key(&aws, &key);
    let refused = |words: &[&str]| {
        refused(&import(&site), 2, &[&[key.as_str(), "eu-central-1"], words].concat());
    };
    aws.change_key("DisableKey", &key);
    refused(&["DisabledException", "enable the key"]);
    aws.change_key("EnableKey", &key);
    aws.change_key("ScheduleKeyDeletion", &key);
    refused(&["KMSInvalidStateException", "cancel the deletion"]);
    aws.change_key("CancelKeyDeletion", &key);
    refused(&["DisabledException"]);
    aws.change_key("EnableKey", &key);

    let fault = |fault: Value| aws.set_faults(&json!([fault]));
    for (code, status, way_out) in [
        ("ThrottlingException", 400, "raise the account's quota"),
        ("KMSInternalException", 500, "it is tried again"),
        ("AccessDeniedException", 400, "the key's policy"),
        ("NotFoundException", 400, "check the key's name"),
    ] {
        fault(json!({"op": "*", "code": code, "status": status, "count": ALWAYS}));
        refused(&[code, way_out]);
    }
    fault(json!({"op": "*", "delay_s": 30, "count": ALWAYS}));
    refused(&["no answer in time", "check network"]);
    // What passes by itself is not even noticed.
    fault(json!({"op": "*", "code": "ThrottlingException", "count": 2}));
    assert_eq!(import(&site).status.code(), Some(0));
    assert_eq!(found(&site), PACKETS);
}

#[test]
fn keys_of_other_accounts_and_rings_of_other_stores_are_refused() {
    let Some(aws) = Aws::start() else { return };
    let key = aws.create_key();
    let site = Site::with_kms_key(&aws, &key);
    let foreign = key.replace(":123456789012:", ":999999999999:");
    let elsewhere = site.file("elsewhere").display().to_string();
    let mut init = Command::new(program("wirevault"));
    let init = init.args(["init", &elsewhere, "--kms-key", &foreign]).envs(aws.environment());
    refused(&init.output().unwrap(), 2, &[&foreign, "AccessDeniedException", "their account"]);
    assert!(!site.file("elsewhere").exists(), "nothing is left of it");

    let other = Site::with_kms_key(&aws, &key);
    let volume = |site: &Site| site.store().join(VOLUME_FILE);
    let reader = open_store(&site.store(), &KeySource::Recorded).unwrap();
    let superblock = &reader.volumes[0].superblock;
    let ring = superblock.ring_offset as usize..;
    let copied = fs::read(volume(&other)).unwrap();
    let mut bytes = fs::read(volume(&site)).unwrap();
    bytes[ring.clone()].copy_from_slice(&copied[ring]);
    fs::write(volume(&site), bytes).unwrap();
    refused(&import(&site), 2, &[&key, "InvalidCiphertextException", "another store's"]);
}

/// A namespace with a veth pair, in which the emulator can be reached.
fn namespace() -> Option<Namespace> {
    let ns = Namespace::new()?;
    ns.ip(&["link", "set", "lo", "up"]);
    ns.add_veth("va", "vb");
    Some(ns)
}

/// A recorder of a veth pair, and what sends to it.
struct Live<'a> {
    site: &'a Site,
    recorder: Recorder,
    sent: u64,
}

impl<'a> Live<'a> {
    fn start(site: &'a Site, sent: u64) -> Self {
        let recorder = site.record("va", OPTIONS);
        let live = Self { site, recorder, sent };
        live.wait_for("ready");
        live
    }

    /// Sends more packets, and waits until they are stored; `before` were by earlier recorders.
    fn send(&mut self, before: u64) {
        let mut sender = Sender::on("vb");
        (self.sent..self.sent + PACKETS).for_each(|number| sender.send(&frame(number)));
        self.sent += PACKETS;
        wait_for("everything is stored", PATIENCE, || {
            let stored = lane_count(&self.recorder.status(), "stored");
            (stored == self.sent - before).then_some(())
        });
    }

    fn wait_for(&self, condition: &str) -> Value {
        wait_for(condition, PATIENCE, || {
            let status = self.recorder.status();
            (status["key"]["condition"] == condition).then_some(status)
        })
    }

    /// Packets that the recorder gives.
    fn found(&self) -> u64 {
        let file = self.site.file("live.pcapng");
        let args = ["ether proto 0x88b5", "-w", &file.display().to_string()];
        let output = self.recorder.ask("query", &args);
        assert!(matches!(output.status.code(), Some(0 | 3)), "{output:?}");
        read_pcapng(&file).len() as u64
    }

    fn key(&self, args: &[&str]) -> Output {
        let mut command = Command::new(program("wirevault"));
        command.arg("key").args(args).arg("--socket").arg(self.recorder.socket());
        command.output().expect("wirevault key")
    }
}

#[test]
fn a_silent_service_and_a_revoked_key_stop_the_next_start_only() {
    let Some(_ns) = namespace() else { return };
    let Some(aws) = Aws::start() else { return };
    let key = aws.create_key();
    let site = Site::with_kms_key(&aws, &key);
    let mut live = Live::start(&site, 0);
    live.send(0);

    aws.set_faults(&json!([{"op": "*", "delay_s": 30, "count": ALWAYS}]));
    let status = live.wait_for("exhausted");
    assert_eq!((&status["state"], &status["key"]["stopped"]), (&"degraded".into(), &false.into()));
    assert!(status["reasons"].to_string().contains("no answer in time"), "{status}");
    // The thread that writes this down waits for the silent service meanwhile.
    wait_for("the entry", PATIENCE, || told(&site, "exhausted").then_some(()));
    wait_for("half a day without the service, in which segments begin", PATIENCE, || {
        live.send(0);
        let now = live.recorder.status();
        let since_ns = now["key"]["epoch_since"]["ns"].as_u64()?;
        let epochs = now["now"]["ns"].as_u64()?.checked_sub(since_ns)? / EPOCH_NS;
        (epochs >= 12 && now["segments"].as_u64() > status["segments"].as_u64()).then_some(())
    });
    aws.set_faults(&json!([]));
    live.wait_for("ready");

    aws.change_key("DisableKey", &key);
    let status = live.wait_for("revoked");
    assert!(status["key"]["trouble"].to_string().contains("DisabledException"), "{status}");
    let metrics = live.recorder.get("/v1/metrics").expect("metrics");
    assert!(metrics.contains("key_condition_state{condition=\"revoked\"} 1"), "{metrics}");
    live.send(0);
    let sent = live.sent;
    assert_eq!(live.found(), sent, "this process goes on writing and reading");
    assert!(live.recorder.terminate().success());

    let start = site.refuse(&site.config("va", OPTIONS));
    refused(&start, 4, &[&key, "DisabledException", "enable the key"]);
    aws.change_key("EnableKey", &key);
    // With the code of a revoked key systemd would not try again.
    let failing =
        json!({"op": "*", "code": "KMSInternalException", "status": 500, "count": ALWAYS});
    aws.set_faults(&json!([failing]));
    refused(&site.refuse(&site.config("va", OPTIONS)), 6, &[&key, "KMSInternalException"]);
    aws.set_faults(&json!([]));
    let live = Live::start(&site, sent);
    assert_eq!(live.found(), sent);

    assert!(told(&site, "ready") && told(&site, "revoked"));
}

/// The audit log has an entry for this condition of the key.
fn told(site: &Site, condition: &str) -> bool {
    let log = site.offline_of("audit", "show", &["--json"]);
    String::from_utf8_lossy(&log.stdout).contains(&format!("\"condition\":\"{condition}\""))
}

#[test]
fn a_store_moves_to_another_key_and_needs_the_former_one_no_more() {
    let Some(_ns) = namespace() else { return };
    let Some(aws) = Aws::start() else { return };
    let (former, next) = (aws.create_key(), aws.create_key());
    let site = Site::with_kms_key(&aws, &former);
    let mut live = Live::start(&site, 0);
    live.send(0);
    let since = |live: &Live<'_>| live.recorder.status()["key"]["epoch_since"]["ns"].clone();
    let before = since(&live);
    assert_eq!(live.key(&["rotate"]).status.code(), Some(0));
    assert_ne!(since(&live), before);

    let unknown = next.replace("key/", "key/0000");
    refused(&live.key(&["rotate", "--to", &unknown]), 2, &[&unknown]);
    let moved = live.key(&["rotate", "--to", &next, "--json"]);
    assert_eq!(moved.status.code(), Some(0), "{moved:?}");
    let told: Value = serde_json::from_slice(&moved.stdout).expect("JSON");
    assert_eq!(told["key"], next.as_str());
    aws.change_key("ScheduleKeyDeletion", &former);
    assert!(live.recorder.terminate().success());

    let mut live = Live::start(&site, PACKETS);
    live.send(PACKETS);
    assert_eq!(live.found(), 2 * PACKETS);
    let shown = String::from_utf8(live.key(&["show"]).stdout).expect("text");
    assert!(shown.contains(&next) && shown.contains("condition  ready"), "{shown}");
    assert!(live.recorder.terminate().success());
    assert_eq!(found(&site), 2 * PACKETS);
}

/// What the former key wrapped in the tier is wrapped again, and then opens without it.
#[test]
fn keys_in_the_tier_follow_to_another_key_of_kms() {
    let Some(_ns) = namespace() else { return };
    let Some(aws) = Aws::start() else { return };
    let (former, next) = (aws.create_key(), aws.create_key());
    let site = Site::with_kms_key(&aws, &former);
    assert_eq!(import(&site).status.code(), Some(0));
    let tier = site.file("tier");
    fs::create_dir(&tier).expect("a folder");
    let rules = format!(
        "{OPTIONS}tier:\n  url: file://{}\n  keep_local: false\nretention:\n  - name: cold\n    \
         action: tier\n",
        tier.display()
    );
    let live = Live { site: &site, recorder: site.record("va", &rules), sent: 0 };
    let tiered = |what: &str, is: &dyn Fn(&Value) -> bool| {
        wait_for(what, PATIENCE, || {
            let status = live.recorder.status();
            assert!(status["tier"]["trouble"].is_null(), "{status}");
            (status["tier"]["segments"].as_u64() >= Some(1) && is(&status)).then_some(())
        });
    };
    tiered("what was imported is in the tier", &|_| true);
    let moved = live.key(&["rotate", "--to", &next]);
    assert_eq!(moved.status.code(), Some(0), "{moved:?}");
    tiered("all keys there follow", &|status| {
        status["key"]["key"] == next.as_str() && status["key"]["behind_in_tier"] == 0
    });
    assert!(live.recorder.terminate().success());
    aws.change_key("ScheduleKeyDeletion", &former);
    let listed = site.offline("segments", &["--json"]);
    let rows: Vec<Value> = serde_json::from_slice(&listed.stdout).expect("a list");
    let moved = |row: &&Value| row["at"] == "tiered" && row["packets"] == PACKETS;
    assert!(rows.iter().any(|row| moved(&row)), "{rows:?}");
    assert_eq!(found(&site), PACKETS);
}

/// The doctor asked one after the other, and the bucket alone took 50 s.
#[test]
fn a_doctor_waited_a_minute_for_services_that_are_silent() {
    let Some(aws) = Aws::start() else { return };
    let mut site = Site::with_kms_key(&aws, &aws.create_key());
    // Its backlog accepts.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", silent.local_addr().expect("a port"));
    let mut environment = aws.environment().to_vec();
    let ours = ["AWS_ENDPOINT_URL", "AWS_EC2_METADATA_DISABLED"];
    environment.retain(|(name, _)| !ours.contains(name));
    environment.push(("AWS_ENDPOINT_URL", address.clone()));
    environment.push(("AWS_EC2_METADATA_DISABLED", "false".to_owned()));
    environment.push(("AWS_EC2_METADATA_SERVICE_ENDPOINT", address));
    site.set_environment(environment);
    let file = site.file("doctor.yaml");
    let arn = |what: &str| format!("arn:aws:{what}:eu-central-1:123456789012");
    let more = format!(
        "tier:\n  url: s3://bucket/site\ncloudwatch:\n  publish: true\nbackup:\n  vault: v\n  \
         role: {}:role/b\n  resource: {}:volume/vol-1\nsnapshots:\n  folder: {}\naudit:\n  \
         anchor: [s3://heads/site, 'kms:{}:key/codes']\n",
        arn("iam").replace("eu-central-1", ""),
        arn("ec2"),
        site.file("state").display(),
        arn("kms"),
    );
    fs::write(&file, site.config("lo", &more)).expect("a configuration");
    let since = Instant::now();
    let said = site.program("wirevault").args(["doctor", "--json", "--config"]).arg(&file).output();
    let (said, took) = (said.expect("wirevault"), since.elapsed());
    let report: Value = serde_json::from_slice(&said.stdout).expect("JSON");
    let findings = report["findings"].as_array().expect("findings");
    for about in ["key", "metrics", "backup", "tier", "anchor", "instance"] {
        let mut of = findings.iter().filter(|it| it["about"] == about);
        let told = of.any(|it| it["verdict"] != "ok" && !it["advice"].is_null());
        // A busy machine may be too late to hear that the key's service is.
        let late = about == "key" && findings.iter().any(|it| it["about"] == "store");
        assert!(told || late, "{about}: {report}");
    }
    let anchors = findings.iter().filter(|it| it["about"] == "anchor" && it["verdict"] == "warn");
    assert_eq!(anchors.count(), 2, "{report}");
    assert!(took < Duration::from_secs(40), "{took:?}");
}

/// The codes are made with a key of their own. It costs about as much as its emulator's start.
#[test]
fn codes_of_the_audit_log_outlive_an_outage_and_tell_a_changed_one() {
    let Some(_ns) = namespace() else { return };
    let Some(aws) = Aws::start() else { return };
    let (key, codes) = (aws.create_key(), aws.create_mac_key());
    let site = Site::with_kms_key(&aws, &key);
    let place = format!("kms:{codes}");
    let anchor = format!("{OPTIONS}audit:\n  anchor: '{place}'\n  anchor_every: 1s\n");
    let recorder = site.record("va", &anchor);
    let anchored = |what: &str, is: fn(&Value) -> bool| {
        wait_for(what, PATIENCE, || {
            let status = recorder.status();
            is(&status["anchors"][0]).then_some(status)
        })
    };
    anchored("a first code", |anchor| anchor["age_ms"] == 0 && anchor["trouble"].is_null());

    aws.change_key("DisableKey", &codes);
    assert!(matches!(recorder.ask("query", &["arp"]).status.code(), Some(0 | 1 | 3)));
    let status = anchored("an outage", |anchor| anchor["trouble"].is_string());
    let trouble = status["reasons"].to_string();
    assert!(
        trouble.contains("DisabledException") && trouble.contains("enable the key"),
        "{trouble}"
    );
    assert_eq!(status["state"], "degraded");
    let metrics = recorder.get("/v1/metrics").expect("metrics");
    assert!(metrics.contains(&format!("audit_anchor_age_seconds{{place=\"{place}\"}}")));
    aws.change_key("EnableKey", &codes);
    anchored("the end of the outage", |anchor| anchor["trouble"].is_null());
    assert!(recorder.terminate().success());

    let export = site.file("audit.json");
    let path = export.display().to_string();
    let exported = site.offline_of("audit", "export", &["--json", "-w", &path]);
    assert_eq!(exported.status.code(), Some(0), "{exported:?}");
    let answer = |output: Output| {
        let said = [&output.stdout[..], &output.stderr].concat();
        (output.status.code(), String::from_utf8(said).expect("text"))
    };
    let verify_log = |key: &str| {
        answer(site.offline_of("audit", "verify", &["--anchor", &format!("kms:{key}")]))
    };
    let verify_export = |key: &str| {
        let mut command = site.program("wirevault");
        command.args(["audit", "verify", "--file", &path, "--anchor", &format!("kms:{key}")]);
        answer(command.output().expect("wirevault"))
    };
    let verify = |key: &str| {
        let of_log = verify_log(key);
        assert_eq!(verify_export(key), of_log, "the same is said of both");
        of_log
    };
    let (code, said) = verify(&codes);
    assert!(code == Some(0) && said.contains("good codes, the last of entry"), "{said}");
    let (code, said) = verify(&key);
    assert!(code == Some(2) && said.contains("InvalidKeyUsageException"), "{said}");
    let (code, said) = verify(&aws.create_mac_key());
    assert!(code == Some(3) && said.contains("no entry has a code of these keys"), "{said}");

    // Another digit in the last code.
    for file in [&site.store().join("audit/audit-00000001.log"), &export] {
        let log = fs::read_to_string(file).expect("the log");
        let (_, line) = log.rsplit_once("\"event\":\"anchored\"").expect("a code");
        let (_, mac) = line.split_once("\"mac\":\"").expect("the code itself");
        let other = if mac.starts_with('0') { "1" } else { "0" };
        let changed = log.replace(&mac[..64], &format!("{other}{}", &mac[1..64]));
        fs::write(file, changed).expect("written");
    }
    for (code, said) in [verify_log(&codes), verify_export(&codes)] {
        assert!(code == Some(3) && said.contains("the code of entry"), "{said}");
    }
}
