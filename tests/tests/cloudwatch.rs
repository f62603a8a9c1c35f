//! Metrics in CloudWatch: the real daemon with the real SDK, and an emulator that refuses what AWS
//! refuses and can lose answers.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use wirevault_testkit::net::{Namespace, Sender, now_ns, wait_for};
use wirevault_tests::aws::{Aws, REGION};
use wirevault_tests::recorder::{Recorder, Site, lane_count, program};

/// A call without an answer takes 2 s, and many people may share this machine.
const PATIENCE: Duration = Duration::from_secs(120);
const APPLIANCE: &str = "box";
/// The shortest periods there are, so that a test sees many.
const OPTIONS: &str = "    ring: 8MiB\nbuffer:\n  size: 8MiB\n\
                       cloudwatch:\n  publish: true\n  period: 1s\n  appliance: box\n";
const PACKETS: u64 = 100;
/// A device of two machines; there is room for segments of the smallest size.
const SHARED_BYTES: u64 = 2 << 30;
/// More calls than a test makes.
const ALWAYS: u32 = 1_000_000;
/// What is published, and what the daemon says of it when it ends.
const PAIRS: [(&str, &str); 4] = [
    ("PacketsReceived", "received"),
    ("PacketsStored", "stored"),
    ("PacketsShed", "shed"),
    ("PacketsLost", "dropped"),
];

/// A namespace with a veth pair, in which the emulator can be reached.
fn namespace() -> Option<Namespace> {
    let ns = Namespace::new()?;
    ns.ip(&["link", "set", "lo", "up"]);
    ns.add_veth("va", "vb");
    Some(ns)
}

fn site(aws: &Aws) -> Site {
    let mut site = Site::new("272MiB", 1);
    site.set_environment(aws.environment().into());
    site
}

/// Sends packets, and waits until so many more are stored.
fn send(recorder: &Recorder) {
    let before = lane_count(&recorder.status(), "stored");
    let mut sender = Sender::on("vb");
    let frame = [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5][..], &[0; 64]].concat();
    (0..PACKETS).for_each(|_| sender.send(&frame));
    wait_for("everything is stored", PATIENCE, || {
        (lane_count(&recorder.status(), "stored") >= before + PACKETS).then_some(())
    });
}

/// Waits until status says this of the publisher.
fn until(recorder: &Recorder, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    wait_for(what, PATIENCE, || {
        let publish = recorder.status()["publish"].clone();
        is(&publish).then_some(publish)
    })
}

/// Whether nothing is left to be sent.
fn all_sent(publish: &Value) -> bool {
    publish["waiting_periods"] == 0 && publish["in_doubt_periods"] == 0
}

/// What all runs that ended by themselves counted of this.
fn counted(site: &Site, field: &str) -> u64 {
    let log = fs::read_to_string(site.file("log")).expect("the log");
    let ended = log.lines().filter(|line| line.contains("the lane has ended"));
    let of = |line: &str| {
        let (_, rest) = line.split_once(&format!("{field}="))?;
        rest.split_whitespace().next()?.parse::<u64>().ok()
    };
    ended.map(|line| of(line).unwrap_or_else(|| panic!("{field} in {line}"))).sum()
}

/// Starts recorders until one has left nothing to be sent: on a busy machine the last call of one
/// may find no answer in time.
fn settled(site: &Site) {
    let spool = site.store().join("audit/publish");
    while fs::read_dir(&spool).expect("the spool").next().is_some() {
        let recorder = site.record("va", OPTIONS);
        until(&recorder, "what the run before could not send", all_sent);
        assert!(recorder.terminate().success());
    }
}

/// Every published sum is what the runs that ended by themselves counted.
fn sums_are_the_counters(aws: &Aws, site: &Site) {
    for (metric, field) in PAIRS {
        assert_eq!(aws.sum(APPLIANCE, metric), counted(site, field), "{metric}");
    }
}

#[test]
fn sums_are_the_counters_over_lost_answers_an_outage_and_restarts() {
    let Some(_ns) = namespace() else { return };
    let Some(aws) = Aws::start() else { return };
    let site = site(&aws);
    // CloudWatch has the first period, but its answer comes when nobody waits any more.
    aws.set_faults(&json!([{"op": "PutMetricData", "late": true, "delay_s": 5}]));
    let recorder = site.record("va", OPTIONS);
    send(&recorder);
    let received = lane_count(&recorder.status(), "received");
    until(&recorder, "everything arrived", |publish| {
        all_sent(publish) && aws.sum(APPLIANCE, "PacketsReceived") >= received
    });
    let log = recorder.log();
    assert!(log.contains("no answer in time"), "the first answer was lost: {log}");
    assert!(recorder.terminate().success());
    settled(&site);
    sums_are_the_counters(&aws, &site);

    // A failure of the service leaves a doubt as well; being throttled does not.
    let failing =
        json!({"op": "*", "code": "InternalServiceFault", "status": 500, "count": ALWAYS});
    aws.set_faults(&json!([
        {"op": "PutMetricData", "code": "ThrottlingException", "count": 2}, failing,
    ]));
    let recorder = site.record("va", OPTIONS);
    send(&recorder);
    let status = wait_for("an outage that is told", PATIENCE, || {
        let status = recorder.status();
        status["reasons"].to_string().contains("are not published").then_some(status)
    });
    assert_eq!(status["state"], "degraded");
    assert!(status["publish"]["trouble"].to_string().contains("InternalServiceFault"), "{status}");
    assert!(recorder.terminate().success());
    aws.set_faults(&json!([]));
    let missing = counted(&site, "received") - aws.sum(APPLIANCE, "PacketsReceived");
    assert!(missing >= PACKETS, "{missing} packets wait on disk");

    let recorder = site.record("va", OPTIONS);
    send(&recorder);
    until(&recorder, "what the run before could not send", all_sent);
    assert!(recorder.terminate().success());
    settled(&site);
    sums_are_the_counters(&aws, &site);
    assert!(counted(&site, "stored") >= 3 * PACKETS);
}

#[test]
fn a_killed_recorder_loses_its_unfinished_period_and_counts_nothing_twice() {
    let Some(_ns) = namespace() else { return };
    let Some(aws) = Aws::start() else { return };
    let site = site(&aws);
    let recorder = site.record("va", OPTIONS);
    send(&recorder);
    let received = lane_count(&recorder.status(), "received");
    until(&recorder, "everything arrived", |_| aws.sum(APPLIANCE, "PacketsReceived") >= received);
    let published = aws.sum(APPLIANCE, "PacketsReceived");
    send(&recorder);
    let received = lane_count(&recorder.status(), "received");
    recorder.kill();

    let recorder = site.record("va", OPTIONS);
    send(&recorder);
    until(&recorder, "the rest", all_sent);
    assert!(recorder.terminate().success());
    settled(&site);
    let since = counted(&site, "received");
    let sum = aws.sum(APPLIANCE, "PacketsReceived");
    assert!(sum >= published + since, "{sum} of at least {published} + {since}");
    // What came between the status and the end is a handful of the kernel's own packets.
    assert!(sum <= received + since + PACKETS / 2, "{sum} of at most {received} + {since}");
}

#[test]
fn what_is_refused_goes_and_what_is_denied_waits() {
    let Some(_ns) = namespace() else { return };
    let Some(aws) = Aws::start() else { return };
    let site = site(&aws);
    let invalid = json!({"op": "PutMetricData", "code": "InvalidParameterValue", "count": 1});
    let denied = json!({"op": "PutMetricData", "code": "AccessDenied", "status": 403, "count": 3});
    let config = site.file("doctor.yaml");
    fs::write(&config, site.config("va", OPTIONS)).expect("a configuration");
    aws.set_faults(&json!([invalid, denied]));
    let recorder = site.record("va", OPTIONS);
    until(&recorder, "one refused, others sent", |publish| {
        publish["dropped_periods"] == 1 && publish["sent_periods"].as_u64() > Some(2)
    });
    let metrics = recorder.get("/v1/metrics").expect("metrics");
    assert!(metrics.contains("wirevault_publish_dropped_periods_total 1\n"), "{metrics}");
    until(&recorder, "the rest", |publish| all_sent(publish) && publish["trouble"].is_null());
    let shown = String::from_utf8(recorder.ask("status", &[]).stdout).expect("text");
    assert!(shown.contains("published") && shown.contains("1 given up"), "{shown}");

    let doctor = || {
        let output = Command::new(program("wirevault"))
            .args(["doctor", "--json", "--config"])
            .arg(&config)
            .envs(aws.environment())
            .output();
        let output = output.expect("wirevault");
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let mut told = report["findings"].as_array().expect("findings").iter();
        told.find(|it| it["about"] == "metrics").expect("a finding").clone()
    };
    // A busy machine may lose an answer, which the doctor tells as well.
    wait_for("CloudWatch's answer", PATIENCE, || (doctor()["verdict"] == "ok").then_some(()));
    let advice = wait_for("the right that is missing", PATIENCE, || {
        let denied = json!({"op": "GetMetricStatistics", "code": "AccessDenied", "status": 403});
        aws.set_faults(&json!([denied]));
        let told = doctor();
        told["seen"].as_str()?.contains("AccessDenied").then(|| told["advice"].to_string())
    });
    assert!(advice.contains("cloudwatch:GetMetricStatistics"), "{advice}");
    aws.set_faults(&json!([]));

    // A call for each period, and one for each that was refused or denied.
    aws.calls();
    let before = until(&recorder, "a start", all_sent)["sent_periods"].as_u64().expect("a count");
    let sent = until(&recorder, "three more", |publish| {
        publish["sent_periods"].as_u64() >= Some(before + 3)
    });
    let sent = sent["sent_periods"].as_u64().expect("a count") - before;
    let calls = aws.calls();
    let of = |name: &str| calls.iter().filter(|call| *call == name).count() as u64;
    let (puts, asked) = (of("PutMetricData"), of("GetMetricStatistics"));
    // A busy machine may lose answers; each is asked about.
    assert!((sent..=sent + 2 + asked).contains(&puts), "{puts} calls for {sent} periods");
    assert!(aws.sum(APPLIANCE, "PeriodsDropped") <= 1);
}

/// What is published only where a machine or a store has it: a card of EC2, a worn or throttled
/// device, a key service, a ladder, another machine, places for heads of the audit log, for the
/// state and for old segments.
const ELSEWHERE: [&str; 12] = [
    "AllowanceExceeded",
    "AuditAnchorAge",
    "BackupOverdue",
    "CheckpointFailed",
    "DeviceLifeUsed",
    "DeviceMediaErrors",
    "DeviceThrottled",
    "DeviceWarnings",
    "EpochKeysAhead",
    "RungsEntered",
    "TierFailed",
    "WriterBeatAge",
];

#[test]
fn alarms_and_dashboard_are_put_and_look_at_what_is_published() {
    let Some(_ns) = namespace() else { return };
    let Some(aws) = Aws::start() else { return };
    let site = site(&aws);
    let config = site.file("boards.yaml");
    fs::write(&config, site.config("va", OPTIONS)).expect("a configuration");
    let wirevault = |of: &str, more: &[&str]| {
        let mut command = Command::new(program("wirevault"));
        command.args(["cloudwatch", of, "--config"]).arg(&config).args(more);
        let output = command.envs(aws.environment()).output().expect("wirevault");
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        output.stdout
    };
    let topic = "arn:aws:sns:eu-central-1:123456789012:duty";
    wirevault("alarms", &["--apply", "--notify", topic]);
    let shown: Value = serde_json::from_slice(&wirevault("alarms", &["--json"])).expect("JSON");
    let put = aws.cloudwatch(REGION, "DescribeAlarms", &json!({}));
    let names = |alarms: &Value| {
        let alarms = alarms.as_array().expect("alarms").iter();
        alarms.map(|alarm| alarm["AlarmName"].to_string()).collect::<BTreeSet<_>>()
    };
    assert_eq!(names(&shown), names(&put["MetricAlarms"]));
    let of_losses = put["MetricAlarms"].as_array().expect("alarms").iter();
    let of_losses = of_losses.clone().find(|alarm| alarm["MetricName"] == "PacketsLost");
    let of_losses = of_losses.expect("an alarm of losses");
    assert_eq!(of_losses["TreatMissingData"], "breaching");
    assert_eq!(of_losses["AlarmActions"], json!([topic]));

    let name = String::from_utf8(wirevault("dashboard", &["--apply"])).expect("a name");
    let body: Value = serde_json::from_slice(&wirevault("dashboard", &["--json"])).expect("JSON");
    let kept = json!({"DashboardName": name.trim()});
    let kept = aws.cloudwatch(REGION, "GetDashboard", &kept);
    let kept = kept["DashboardBody"].as_str().expect("a body").to_owned();
    assert_eq!(serde_json::from_str::<Value>(&kept).expect("JSON"), body);

    let recorder = site.record("va", OPTIONS);
    send(&recorder);
    wait_for("every alarm's metric is published", PATIENCE, || {
        let listed = aws.cloudwatch(REGION, "ListMetrics", &json!({}));
        let listed = listed["Metrics"].as_array().expect("metrics").iter();
        let published: BTreeSet<_> = listed.filter_map(|it| it["MetricName"].as_str()).collect();
        let alarms = shown.as_array().expect("alarms").iter();
        let mut looked_at = alarms.filter_map(|alarm| alarm["MetricName"].as_str());
        looked_at.all(|it| published.contains(it) || ELSEWHERE.contains(&it)).then_some(())
    });
    // A veth has no card, and so has lost nothing there.
    let cards = recorder.status()["cards"].clone();
    assert_eq!(cards[0]["interface"], "va", "{cards}");
    assert_eq!(aws.sum(APPLIANCE, "NicDrops"), 0);
}

#[test]
fn a_machine_that_stands_by_publishes_and_goes_on_when_its_turn_comes() {
    let Some(_ns) = namespace() else { return };
    let Some(aws) = Aws::start() else { return };
    let mut site = Site::shared(SHARED_BYTES);
    site.set_environment(aws.environment().into());
    let publish = "cloudwatch:\n  publish: true\n  period: 1s\n";
    let first = site.on_machine("first", "va", publish);
    wait_for("the writer's word", PATIENCE, || (aws.sum("first", "Recording") > 0).then_some(()));
    let second = site.on_machine("second", "va", &format!("standby: true\n{publish}"));
    let sent = until(&second, "some periods", |it| it["sent_periods"].as_u64() > Some(2));
    assert_eq!(second.status()["state"], "standby");
    assert!(aws.sum("second", "PeriodsPublished") >= 3, "{sent}");
    assert_eq!(aws.sum("second", "Recording"), 0);
    // All alarms that take silence for a fault have something to look at.
    let listed = aws.cloudwatch(REGION, "ListMetrics", &json!({"MetricName": "PacketsLost"}));
    assert!(listed.to_string().contains("second"), "{listed}");
    assert!(first.terminate().success());
    wait_for("the take-over", PATIENCE, || (aws.sum("second", "Recording") > 0).then_some(()));
    let metrics = second.get("/v1/metrics").expect("metrics");
    assert!(metrics.contains("wirevault_daemon_recording_state 1"), "{metrics}");
    assert!(second.terminate().success());
}

/// The emulator's refusals are our reading of AWS; they must at least refuse.
#[test]
fn the_emulator_refuses_what_aws_refuses() {
    let Some(aws) = Aws::start() else { return };
    let now_s = now_ns() / 1_000_000_000;
    let datum = |more: Value| {
        let mut datum = json!({"MetricName": "M", "Timestamp": now_s});
        let more = more.as_object().expect("an object").clone();
        datum.as_object_mut().expect("an object").extend(more);
        datum
    };
    let put = |namespace: &str, data: Vec<Value>| {
        let body = json!({"Namespace": namespace, "MetricData": data});
        let target = "GraniteServiceVersion20100801.PutMetricData";
        let (head, answer) = aws.try_ask("monitoring", REGION, target, &body);
        (!head[8..].starts_with(" 200")).then(|| answer["__type"].as_str().map(ToOwned::to_owned))
    };
    let one = || datum(json!({"Value": 1.0}));
    assert_eq!(put("Mine", vec![one(); 1000]), None);
    let invalid = Some(Some("InvalidParameterValue".to_owned()));
    assert_eq!(put("Mine", vec![one(); 1001]), invalid);
    assert_eq!(put("AWS/EC2", vec![one()]), invalid);
    let set = json!({"SampleCount": 0.0, "Sum": 0.0, "Minimum": 0.0, "Maximum": 0.0});
    for wrong in [
        json!({"Values": vec![1.0; 151]}),
        json!({"Values": [1.0, 2.0], "Counts": [1.0]}),
        json!({"Value": 1.0, "Timestamp": now_s - 15 * 86_400}),
        json!({"Value": 1.0, "Timestamp": now_s + 3 * 3600}),
        json!({"Value": 1.0, "Unit": "Packets"}),
        json!({"Value": 1.0, "StorageResolution": 10}),
        json!({"Value": 1e300}),
        json!({"Value": 1.0, "Dimensions": [{"Name": "Appliance", "Value": ""}]}),
        json!({"StatisticValues": set}),
    ] {
        assert_eq!(put("Mine", vec![datum(wrong.clone())]), invalid, "{wrong}");
    }
    let together = Some(Some("InvalidParameterCombination".to_owned()));
    assert_eq!(put("Mine", vec![datum(json!({"Value": 1.0, "Values": [1.0]}))]), together);
}
