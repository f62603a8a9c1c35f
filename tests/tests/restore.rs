//! The restore drill: copies of the folder of checkpoints, taken at whatever instant while a
//! recorder works, and recorders that begin from them on a machine without its volumes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::time::Duration;

use serde_json::Value;
use wirevault_testkit::net::{Namespace, Sender, wait_for};
use wirevault_tests::recorder::{Recorder, Site, program, wait_until_it_records};

/// Several programs run for each step, and many people may share this machine.
const PATIENCE: Duration = Duration::from_secs(120);
const COPIES: usize = 5;
/// Packets between two checkpoints that are ordered.
const PACKETS: u64 = 40;

fn frame(number: u64) -> Vec<u8> {
    let head = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5];
    [&head[..], &number.to_be_bytes(), &[0; 64]].concat()
}

fn namespace() -> Option<Namespace> {
    let ns = Namespace::new()?;
    ns.add_veth("va", "vb");
    Some(ns)
}

fn run(args: &[&str]) -> Output {
    Command::new(program("wirevault")).args(args).output().expect("wirevault")
}

fn succeed(output: &Output) {
    assert!(output.status.success(), "{output:?}");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Checkpoints every second, beside those that are ordered; none goes while a copy is made.
fn options(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "    ring: 8MiB\nbuffer:\n  size: 8MiB\nsegment_age: 10s\n\
         snapshots:\n  folder: {folder}\n  every: 1s\n  keep: 1000\n"
    )
}

/// Packets in all segments of a list.
fn packets(segments: &Value) -> u64 {
    let rows = segments.as_array().expect("a list").iter();
    rows.map(|row| row["packets"].as_u64().expect("packets")).sum()
}

/// Sends more, and waits until all that was ever sent is told as stored.
fn send(recorder: &Recorder, sent: &mut u64) {
    let mut sender = Sender::on("vb");
    (*sent..*sent + PACKETS).for_each(|number| sender.send(&frame(number)));
    *sent += PACKETS;
    wait_for("what was sent is told", PATIENCE, || {
        let segments: Value = serde_json::from_str(&recorder.get("/v1/segments")?).ok()?;
        (packets(&segments) >= *sent).then_some(())
    });
}

/// A copy of the folder, and what was promised before it was begun.
struct Copy {
    folder: PathBuf,
    checkpoint: u64,
    packets: u64,
}

/// A recorder that works and is ended as an instance is that goes away, and copies of its
/// checkpoints from meanwhile.
fn copies(site: &Site) -> Vec<Copy> {
    let folder = site.file("state");
    let recorder = site.record("va", &options(&folder));
    let promised = Mutex::new((0, 0));
    let mut sent = 0;
    let copies = std::thread::scope(|scope| {
        let copier = scope.spawn(|| {
            (0..COPIES)
                .map(|number| {
                    // Each copy is of another checkpoint than the one before.
                    let (checkpoint, packets) = wait_for("a checkpoint", PATIENCE, || {
                        let promised = *promised.lock().expect("a lock");
                        (promised.0 > number as u64).then_some(promised)
                    });
                    let to = site.file(&format!("copy-{number}"));
                    succeed(&Command::new("cp").arg("-r").arg(&folder).arg(&to).output().unwrap());
                    Copy { folder: to, checkpoint, packets }
                })
                .collect::<Vec<_>>()
        });
        while !copier.is_finished() {
            send(&recorder, &mut sent);
            let checkpoint = create(&recorder)["checkpoint"].as_u64().expect("a number");
            *promised.lock().expect("a lock") = (checkpoint, sent);
        }
        copier.join().expect("copies")
    });
    recorder.kill();
    copies
}

/// `wirevault snapshot create`.
fn create(recorder: &Recorder) -> Value {
    let taken = run(&["snapshot", "create", "--socket", text(recorder.socket()), "--json"]);
    succeed(&taken);
    json(&taken)
}

#[test]
fn any_copy_restores_all_that_was_answered_for_before_it_and_tells_what_is_lost() {
    let Some(_ns) = namespace() else { return };
    let site = Site::new("272MiB", 1);
    let copies = copies(&site);
    let mut last = None;
    for Copy { folder, checkpoint, packets: promised } in copies {
        let folder = text(&folder).to_owned();
        let listed = json(&run(&["snapshot", "list", &folder, "--json"]));
        let listed = listed.as_array().expect("a list");
        let whole = listed.iter().filter(|row| row["trouble"].is_null());
        let newest = whole.map(|row| row["checkpoint"].as_u64().unwrap()).max();
        assert!(newest.is_some_and(|newest| newest >= checkpoint), "{checkpoint}: {listed:?}");

        let next = Site::new("272MiB", 1);
        let (store, config) = (next.store(), next.file("restored.yaml"));
        let restored = run(&[
            "snapshot",
            "restore",
            &folder,
            "--store",
            text(&store),
            "--config",
            text(&config),
        ]);
        succeed(&restored);
        let (was, is) = (fs::read(site.file("wirevault.yaml")), fs::read(&config));
        assert_eq!(was.unwrap(), is.unwrap(), "the configuration");
        succeed(&next.offline_of("audit", "verify", &[]));
        let log = next.offline_of("audit", "show", &[]);
        let log = String::from_utf8(log.stdout).expect("text");
        assert!(log.contains("restored from checkpoint"), "{log}");
        let segments = json(&next.offline("segments", &["--json"]));
        assert!(packets(&segments) >= promised, "{promised} were told: {segments}");
        let lost = |row: &Value| row["state"] == "lost: instance store";
        assert!(segments.as_array().unwrap().iter().all(lost), "{segments}");
        let again = run(&["snapshot", "restore", &folder, "--store", text(&store)]);
        assert_eq!(again.status.code(), Some(2), "nothing is replaced: {again:?}");
        last = Some((next, packets(&segments)));
    }
    let (next, lost) = last.expect("copies");
    goes_on(&next, lost);
}

/// A recorder on the restored store records, and says of what went before that it is lost.
fn goes_on(site: &Site, lost: u64) {
    let folder = site.file("state");
    let recorder = site.record("va", &options(&folder));
    let status = recorder.status();
    assert_eq!(status["lost"][0]["packets"], lost, "{status}");
    let mut sent = lost;
    send(&recorder, &mut sent);
    let summary = site.file("summary.json");
    let args = ["--count", "--summary", text(&summary)];
    let answer = recorder.ask("query", &args);
    assert_eq!(answer.status.code(), Some(3), "{answer:?}");
    let summary: Value = serde_json::from_slice(&fs::read(&summary).unwrap()).unwrap();
    let gaps = summary["gaps"].as_array().expect("gaps").iter();
    assert!(gaps.clone().any(|gap| gap["cause"] == "missing_segment"), "{summary}");
    assert!(summary["warnings"].to_string().contains("lost: instance store"), "{summary}");
    create(&recorder);
    assert!(recorder.terminate().success());

    // What is lost is handed on when this store is lost as well.
    let third = Site::new("272MiB", 1);
    succeed(&run(&["snapshot", "restore", text(&folder), "--store", text(&third.store())]));
    let segments = json(&third.offline("segments", &["--json"]));
    assert!(packets(&segments) >= sent, "{sent} were told: {segments}");
}

/// Packets of the segments that lie in the tier only, and the number of the last of them.
fn tiered(segments: &Value) -> (u64, u64) {
    let rows = segments.as_array().expect("a list").iter().filter(|row| row["at"] == "tiered");
    let number = |row: &Value, field: &str| row[field].as_u64().expect("a number");
    rows.fold((0, 0), |(sum, _), row| (sum + number(row, "packets"), number(row, "ordinal")))
}

#[test]
fn what_lies_in_the_tier_is_found_by_the_store_that_takes_the_place_of_its_own() {
    let Some(_ns) = namespace() else { return };
    let site = Site::new("272MiB", 1);
    let (folder, tier) = (site.file("state"), site.file("tier"));
    fs::create_dir(&tier).expect("a folder");
    let rules = "  keep_local: false\nretention:\n  - name: cold\n    action: tier\n";
    let options = format!("{}tier:\n  url: file://{}\n{rules}", options(&folder), text(&tier));
    let recorder = site.record("va", &options);
    let mut sent = 0;
    send(&recorder, &mut sent);
    let drain = ["lifecycle", "drain", "--within", "60", "--socket", text(recorder.socket())];
    wait_for("what was sent is in the tier", PATIENCE, || {
        succeed(&run(&drain));
        let segments = serde_json::from_str(&recorder.get("/v1/segments")?).ok()?;
        (tiered(&segments).0 == sent).then_some(())
    });
    create(&recorder);
    recorder.kill();

    let next = Site::with_key_of("272MiB", &site);
    let store = next.store();
    succeed(&run(&["snapshot", "restore", text(&folder), "--store", text(&store)]));
    let segments = json(&next.offline("segments", &["--json"]));
    let (packets, number) = tiered(&segments);
    assert_eq!(packets, sent, "{segments}");
    let count = |answer: &Output| String::from_utf8_lossy(&answer.stdout).trim().to_owned();
    assert_eq!(count(&next.offline("query", &["--count"])), sent.to_string());

    let recorder = next.record("va", &options);
    let before = sent;
    send(&recorder, &mut sent);
    assert_eq!(count(&recorder.ask("query", &["--count"])), sent.to_string());
    // What goes, goes under the names that the former store gave it.
    for number in 1..=number {
        succeed(&recorder.ask("delete", &["--segment", &number.to_string(), "--yes"]));
    }
    assert_eq!(count(&recorder.ask("query", &["--count"])), (sent - before).to_string());
    let keys = fs::read_dir(tier.join("keys")).expect("a folder").map(|it| it.expect("an entry"));
    for of_store in keys {
        assert_eq!(fs::read_dir(of_store.path()).expect("a folder").count(), 0, "{of_store:?}");
    }
    assert!(recorder.terminate().success());
}

#[test]
fn a_store_whose_volumes_are_there_gets_its_log_back_and_has_lost_nothing() {
    let Some(_ns) = namespace() else { return };
    let site = Site::new("272MiB", 1);
    let folder = site.file("state");
    let recorder = site.record("va", &options(&folder));
    let mut sent = 0;
    send(&recorder, &mut sent);
    let metrics = wait_for("a checkpoint", PATIENCE, || {
        let metrics = recorder.get("/v1/metrics")?;
        metrics.contains("wirevault_snapshot_age_seconds").then_some(metrics)
    });
    assert!(!metrics.is_empty());
    assert!(recorder.terminate().success());
    let before = json(&site.offline("segments", &["--json"]));

    fs::remove_dir_all(site.store().join("audit")).expect("the log was there");
    succeed(&run(&["snapshot", "restore", text(&folder), "--store", text(&site.store())]));
    succeed(&site.offline_of("audit", "verify", &[]));
    assert_eq!(json(&site.offline("segments", &["--json"])), before);
    let recorder = site.record("va", &options(&folder));
    send(&recorder, &mut sent);
    assert_eq!(recorder.status()["lost"], Value::Array(Vec::new()));
    assert!(recorder.terminate().success());
}

#[test]
fn a_folder_that_cannot_be_written_degrades_the_recorder_and_nothing_else() {
    let Some(_ns) = namespace() else { return };
    let site = Site::new("272MiB", 1);
    let folder = site.file("state");
    fs::write(&folder, "no folder").expect("a file");
    let recorder = site.record("va", &options(&folder));
    let status = wait_for("the trouble", PATIENCE, || {
        let status = recorder.status();
        (status["state"] == "degraded").then_some(status)
    });
    assert!(status["snapshots"]["trouble"].as_str().unwrap().contains("state"), "{status}");
    let refused = run(&["snapshot", "create", "--socket", text(recorder.socket())]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    let mut sent = 0;
    send(&recorder, &mut sent);
    fs::remove_file(&folder).expect("the file was there");
    assert_eq!(create(&recorder)["trouble"], Value::Null);
    wait_until_it_records(&recorder);
    assert!(recorder.terminate().success());
}
