//! Metrics in Prometheus: a real one, with the scrape configuration of the documentation, and what
//! promtool thinks of the page and of the alarms.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use wirevault_testkit::certificates::{Authority, Wish};
use wirevault_testkit::net::{Namespace, Sender, wait_for};
use wirevault_tests::prometheus::{Prometheus, promtool};
use wirevault_tests::recorder::{Recorder, Site, lane_count, program};

/// Prometheus asks every 15 s, and many people may share this machine.
const PATIENCE: Duration = Duration::from_secs(90);
/// What `config/examples/prometheus.yml` says.
const EXAMPLE: &str = include_str!("../../config/examples/prometheus.yml");
/// The alarms' own tests.
const ALARM_TESTS: &str = include_str!("../prometheus/alarms.yml");
const JOBS: [&str; 2] = ["wirevault", "wirevault-tls"];
const PACKETS: u64 = 100;
/// What is asked of Prometheus, and where status says it.
const EQUAL: [(&str, &str); 6] = [
    ("wirevault_lane_received_packets_total", "/lanes/0/received"),
    ("wirevault_lane_stored_packets_total", "/lanes/0/stored"),
    ("wirevault_lane_shed_packets_total", "/lanes/0/shed"),
    ("wirevault_lane_dropped_packets_total", "/lanes/0/dropped"),
    ("wirevault_storage_live_segments", "/volumes/0/segments"),
    ("wirevault_storage_quota_bytes", "/volumes/0/quota_bytes"),
];

/// A recorder of `va` with both doors of the example, and the files that the example names.
fn watched(site: &Site) -> Recorder {
    let authority = Authority::new("Fleet");
    authority.write(&site.file("ca.pem"));
    let issue = |name| {
        let wish = Wish { name, alternatives: &["recorder"], ..Wish::default() };
        authority.issue(&site.file(""), &wish)
    };
    let (server, _) = (issue("server"), issue("prometheus"));
    let config = format!(
        "store: {}\ncapture:\n  - interface: va\n    ring: 8MiB\n    filter: not ether proto \
         0x88b6\nbuffer:\n  size: 8MiB\napi:\n  socket: {}\n  metrics_listen: 127.0.0.1:9479\n  \
         tls:\n    listen: 127.0.0.1:8443\n    certificate: {}\n    key: {}\n    client_ca: {}\n  \
         access:\n    - {{certificates: 'cn:prometheus', role: status}}\n",
        site.store().display(),
        site.file("socket").display(),
        server.certificate.display(),
        server.key.display(),
        site.file("ca.pem").display(),
    );
    site.start(&config, &site.file("socket"))
}

/// The example, with folders and the host's name of this test.
fn example(site: &Site) -> String {
    let folder = site.file("");
    let folder = folder.display().to_string();
    let folder = folder.trim_end_matches('/');
    // The certificate is for `recorder`; nobody has to know that name here.
    let text = EXAMPLE.replace("/etc/prometheus/wirevault/", &format!("{folder}/"));
    let text = text.replace("/etc/prometheus/", &format!("{folder}/"));
    let text = text.replace("['recorder:8443']", "['127.0.0.1:8443']");
    text.replace("tls_config:\n", "tls_config:\n      server_name: recorder\n")
}

fn rules(job: &str) -> String {
    let mut command = Command::new(program("wirevault"));
    let output = command.args(["metrics", "rules", "--job", job]).output().expect("wirevault");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

fn send() {
    let mut sender = Sender::on("vb");
    for kind in [0xb5, 0xb6] {
        let frame = [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, kind][..], &[0; 64]].concat();
        (0..PACKETS).for_each(|_| sender.send(&frame));
    }
}

/// Whether Prometheus knows, of all jobs, what status says before and after it is asked.
fn equal(prometheus: &Prometheus, recorder: &Recorder) -> bool {
    let before = recorder.status();
    let known =
        |job: &str, metric: &str| prometheus.value(&format!("sum({metric}{{job=\"{job}\"}})"));
    let equal = EQUAL.iter().all(|(metric, path)| {
        let told = before.pointer(path).and_then(Value::as_f64);
        assert!(told.is_some(), "{path} in {before}");
        JOBS.iter().all(|job| known(job, metric) == told)
    });
    let after = recorder.status();
    equal && EQUAL.iter().all(|(_, path)| after.pointer(path) == before.pointer(path))
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("a file");
}

#[test]
fn prometheus_scrapes_what_status_says() {
    let Some(ns) = Namespace::new() else { return };
    ns.ip(&["link", "set", "lo", "up"]);
    ns.add_veth("va", "vb");
    let site = Site::new("272MiB", 1);
    let recorder = watched(&site);
    send();
    wait_for("all is stored or shed", PATIENCE, || {
        let status = recorder.status();
        let settled = |field, least| lane_count(&status, field) >= least;
        (settled("stored", PACKETS) && settled("shed", PACKETS)).then_some(())
    });

    let config = site.file("prometheus.yml");
    write(&config, &example(&site));
    write(&site.file("wirevault.rules.yml"), &rules("wirevault"));
    promtool(&["check", "config", &config.display().to_string()], "");
    let prometheus = Prometheus::start(&config);
    wait_for("Prometheus knows what status says", PATIENCE, || {
        equal(&prometheus, &recorder).then_some(())
    });
    for target in prometheus.api("targets", &[])["activeTargets"].as_array().expect("targets") {
        assert_eq!(target["health"], "up", "{target}");
    }
    let groups = wait_for("the rules were evaluated", PATIENCE, || {
        let groups = prometheus.api("rules", &[])["groups"].clone();
        let rules = groups[0]["rules"].as_array().expect("rules");
        rules.iter().all(|rule| rule["health"] != "unknown").then_some(groups)
    });
    for rule in groups[0]["rules"].as_array().expect("rules") {
        assert_eq!(rule["health"], "ok", "{rule}");
        assert_ne!(rule["state"], "firing", "{rule}");
    }

    // What others get who ask as Prometheus' manual says.
    let curl = |arguments: &[&str]| {
        let output = Command::new("curl").arg("--silent").args(arguments).output().expect("curl");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let page = curl(&["http://127.0.0.1:9479/metrics"]);
    assert_eq!(promtool(&["check", "metrics"], &page), "", "promtool has a wish");
    let elsewhere = curl(&["http://127.0.0.1:9479/v1/status"]);
    assert!(elsewhere.contains("here is nothing but /metrics"), "{elsewhere}");
    let stranger = ["--insecure", "https://127.0.0.1:8443/v1/metrics"];
    assert_eq!(curl(&stranger), "", "without a certificate nobody is answered");
    assert!(recorder.terminate().success());
}

#[test]
fn alarms_are_raised_when_they_should_be_and_not_before() {
    let folder = tempfile::tempdir().expect("folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    write(Path::new(&path("wirevault.rules.yml")), &rules("wirevault"));
    write(Path::new(&path("alarms.yml")), ALARM_TESTS);
    let said = promtool(&["check", "rules", &path("wirevault.rules.yml")], "");
    assert!(said.contains("SUCCESS"), "{said}");
    promtool(&["test", "rules", &path("alarms.yml")], "");
    let names = rules("wirevault");
    for name in names.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        let raised = format!("{{alertname=\"{name}\"}}");
        assert!(ALARM_TESTS.contains(&raised), "tests/prometheus/alarms.yml: no test of {name}");
    }
}

#[test]
fn the_documentation_shows_the_example() {
    let page = include_str!("../../docs/OPERATIONS.md");
    assert!(page.contains(EXAMPLE), "docs/OPERATIONS.md: not config/examples/prometheus.yml");
}
