//! What the cloud announces to a machine: the real recorder with the real client of the metadata
//! service, which refuses what EC2 refuses.

use std::fs;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use wirevault_testkit::net::{Namespace, Sender, wait_for};
use wirevault_tests::captures::{Packet, write_pcap};
use wirevault_tests::imds::{INSTANCE, Imds};
use wirevault_tests::recorder::{Recorder, Site, program, wait_until_it_records};

const PATIENCE: Duration = Duration::from_secs(120);
const PACKETS: u64 = 60;
const SPOT: (&str, &str) =
    ("spot/instance-action", "{\"action\":\"terminate\",\"time\":\"2026-11-21T20:02:00Z\"}");

/// A namespace with a veth pair, in which the service can be reached.
fn namespace() -> Option<Namespace> {
    let ns = Namespace::new()?;
    ns.ip(&["link", "set", "lo", "up"]);
    ns.add_veth("va", "vb");
    Some(ns)
}

fn site(imds: &Imds) -> Site {
    let mut site = Site::new("272MiB", 1);
    site.set_environment(imds.environment());
    site
}

fn start(site: &Site, more: &str) -> Recorder {
    let folder = site.file("state");
    let options = format!(
        "    ring: 8MiB\nbuffer:\n  size: 8MiB\nsnapshots:\n  folder: {}\n{more}",
        folder.display()
    );
    site.record("va", &options)
}

fn send(recorder: &Recorder, sent: &mut u64) {
    let mut sender = Sender::on("vb");
    for number in *sent..*sent + PACKETS {
        let head = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5];
        sender.send(&[&head[..], &number.to_be_bytes(), &[0; 64]].concat());
    }
    *sent += PACKETS;
    wait_for("everything is told", PATIENCE, || {
        (packets(&segments(recorder), "") >= *sent).then_some(())
    });
}

fn segments(recorder: &Recorder) -> Vec<Value> {
    let rows = recorder.get("/v1/segments").expect("segments");
    serde_json::from_str(&rows).expect("a list")
}

/// Packets of the segments whose state begins so.
fn packets(rows: &[Value], state: &str) -> u64 {
    let of_state = rows.iter().filter(|row| row["state"].as_str().unwrap().starts_with(state));
    of_state.map(|row| row["packets"].as_u64().unwrap()).sum()
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_notice_closes_segments_saves_the_state_and_is_told_until_it_is_withdrawn() {
    let Some(_ns) = namespace() else { return };
    let imds = Imds::start();
    let site = site(&imds);
    let recorder = start(&site, "");
    let known = wait_for("the instance", PATIENCE, || {
        let status = recorder.status();
        (status["instance"]["id"] == INSTANCE).then(|| status["instance"].clone())
    });
    assert_eq!(
        (&known["kind"], &known["zone"]),
        (&"i7ie.12xlarge".into(), &"eu-central-1b".into())
    );
    assert_eq!(known["tags"]["Name"], "recorder-7", "{known}");
    let mut sent = 0;
    send(&recorder, &mut sent);
    assert_eq!(packets(&segments(&recorder), "closed"), 0);

    imds.announce(&[SPOT]);
    let status = wait_for("the drain", PATIENCE, || {
        let status = recorder.status();
        status["instance"]["drained"].is_object().then_some(status)
    });
    assert_eq!(status["state"], "degraded", "{status}");
    assert!(status["reasons"].to_string().contains("the cloud announces spot"), "{status}");
    let rows = segments(&recorder);
    assert!(packets(&rows, "closed") >= sent, "{rows:?}");
    let checkpoint = status["snapshots"]["checkpoint"].as_u64().expect("a checkpoint");
    assert!(checkpoint >= 2, "one at the start, one behind the drain: {status}");
    let log = said(&site.offline_of("audit", "show", &[]));
    assert!(
        log.contains("the cloud announces spot") && log.contains("drained: 1 segments"),
        "{log}"
    );

    send(&recorder, &mut sent);
    assert!(packets(&segments(&recorder), "open") > 0, "it goes on in another one");
    imds.announce(&[]);
    wait_until_it_records(&recorder);
    let calls = imds.calls();
    let refused = |call: &&String| !call.ends_with(" 200") && !call.ends_with(" 404");
    assert!(!calls.iter().any(|call| refused(&call)), "{calls:?}");
    assert_eq!(calls.iter().filter(|call| call.starts_with("PUT")).count(), 1, "one token");
    assert!(recorder.terminate().success());
}

/// There is no rule that moves: what is in the tier afterwards, the notice has moved.
#[test]
fn a_notice_moves_segments_to_the_tier_copies_for_holds_first() {
    let Some(_ns) = namespace() else { return };
    let imds = Imds::start();
    let site = site(&imds);
    let capture = site.file("before.pcap");
    let data = [&[2; 12][..], &[0x88, 0xb6], &[0; 64]].concat();
    let orig_len = data.len() as u32;
    write_pcap(&capture, &[Packet { ts_ns: 1_700_000_000_000_000_000, orig_len, data }]);
    said(&site.offline("import", &[capture.to_str().expect("a path")]));
    said(&site.offline_of("hold", "add", &["--name", "case-9", "--filter", "ether proto 0x88b6"]));
    let tier = site.file("tier");
    fs::create_dir(&tier).expect("a folder");
    let recorder = start(&site, &format!("tier:\n  url: file://{}\n", tier.display()));
    send(&recorder, &mut 1);

    imds.announce(&[SPOT]);
    wait_for("the drain", PATIENCE, || {
        recorder.status()["instance"]["drained"].is_object().then_some(())
    });
    let log = said(&site.offline_of("audit", "show", &["--json"]));
    let entries: Vec<Value> =
        log.lines().map(|line| serde_json::from_str(line).expect("an entry")).collect();
    let of = |event: &str| entries.iter().filter(|it| it["event"] == event).collect::<Vec<_>>();
    let moved = of("tiered");
    assert!(moved.iter().all(|it| it["reason"] == "drain"), "{moved:?}");
    let order: Vec<_> = moved.iter().map(|it| it["segment"].as_u64().expect("a number")).collect();
    let copy = of("held")[0]["copy"].as_u64().expect("a copy");
    let youngest = *order.iter().max().expect("segments");
    assert!(order.len() >= 3 && order[0] == copy && order[1] == youngest, "{copy}, {order:?}");
    assert!(copy < youngest, "what was recorded behind it is younger: {copy}, {order:?}");
    let drained = of("drained")[0]["number"].as_u64();
    assert!(moved.iter().all(|it| it["number"].as_u64() > drained), "the state is saved before");
    assert!(recorder.terminate().success());
}

#[test]
fn a_recorder_that_is_to_stop_ends_well_before_its_machine() {
    let Some(_ns) = namespace() else { return };
    let imds = Imds::start();
    let site = site(&imds);
    let mut recorder = start(&site, "cloud:\n  on_notice: stop\n");
    let mut sent = 0;
    send(&recorder, &mut sent);
    // What may happen is no reason to end.
    imds.announce(&[("events/recommendations/rebalance", "{\"noticeTime\":\"now\"}")]);
    wait_for("the drain", PATIENCE, || {
        recorder.status()["instance"]["drained"].is_object().then_some(())
    });
    imds.announce(&[("autoscaling/target-lifecycle-state", "Terminated")]);
    let ended = wait_for("the end of the recorder", PATIENCE, || recorder.ended());
    assert!(ended.success(), "{ended}");
    let log = said(&site.offline_of("audit", "show", &[]));
    assert!(log.contains("announces rebalance") && log.contains("announces scaling"), "{log}");
    assert!(log.trim_end().ends_with("stopped"), "{log}");
    let folder = site.file("state");
    let mut list = Command::new(program("wirevault"));
    let listed = said(&list.args(["snapshot", "list"]).arg(folder).output().expect("wirevault"));
    assert!(listed.contains("yes"), "{listed}");
    let rows = said(&site.offline("segments", &["--json"]));
    let rows: Vec<Value> = serde_json::from_str(&rows).expect("a list");
    assert!(packets(&rows, "closed") >= sent, "{rows:?}");
}

#[test]
fn a_service_that_does_not_answer_costs_nothing() {
    let Some(_ns) = namespace() else { return };
    let mut site = Site::new("272MiB", 1);
    let nobody = ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9".to_owned());
    site.set_environment(vec![nobody]);
    let recorder = start(&site, "");
    let mut sent = 0;
    send(&recorder, &mut sent);
    let trouble = wait_for("the trouble", PATIENCE, || {
        recorder.status()["instance"]["trouble"].as_str().map(ToOwned::to_owned)
    });
    assert!(trouble.contains("instance metadata"), "{trouble}");
    wait_until_it_records(&recorder);
    assert!(recorder.terminate().success());
}

#[test]
fn the_doctor_says_who_the_instance_is_and_whether_anyone_may_ask() {
    let imds = Imds::start();
    let mut doctor = Command::new(program("wirevault"));
    let output = doctor.args(["doctor", "--json"]).envs(imds.environment()).output();
    let output = output.expect("wirevault");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let mut findings = report["findings"].as_array().expect("findings").iter();
    let finding = findings.find(|it| it["about"] == "instance").expect("a finding");
    assert_eq!(finding["verdict"], "ok", "{finding}");
    let seen = finding["seen"].as_str().expect("text");
    assert!(seen.contains(INSTANCE) && seen.contains("2 tags; its metadata"), "{seen}");
    let calls = imds.calls();
    let refused = |call: &String| call.starts_with("GET /latest/dynamic") && call.ends_with(" 401");
    assert!(calls.iter().any(refused), "it was asked without a token: {calls:?}");
}
