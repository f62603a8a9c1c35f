//! `hold`: what is held stays, whoever deletes, and goes when it is released.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use wirevault_daemon::reload::ConfigFile;
use wirevault_index::KeySource;

use crate::common::{Lab, Said, pcap, run};

/// Longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);
const PACKETS: u64 = 40_000;
const FLOW: &str = "udp src port 5003 and host 10.0.0.4";

fn json(said: &Said) -> Value {
    serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"))
}

fn hold(lab: &Lab, verb: &str, more: &[&str]) -> Said {
    run(["hold", verb, "--store", lab.store()].iter().chain(more))
}

/// The bytes that a query writes.
fn exported(lab: &Lab, filter: &str) -> Vec<u8> {
    let said = lab.ask("query", &["-w", "-", "--format", "pcap", filter]);
    assert!(matches!(said.code, Some(0 | 3)), "{said:?}");
    said.bytes
}

fn audited(lab: &Lab) -> String {
    let said = run(["audit", "show", "--store", lab.store()]);
    assert_eq!(run(["audit", "verify", "--store", lab.store()]).code, Some(0));
    said.out
}

#[test]
fn what_is_held_outlives_what_it_was_copied_from() {
    for plaintext in [false, true] {
        let lab = Lab::filled(plaintext, PACKETS);
        let (flow, all) = (exported(&lab, FLOW), exported(&lab, ""));
        assert_eq!(hold(&lab, "list", &[]).code, Some(1), "there is none yet");
        let add = ["--name", "case-7", "--filter", FLOW, "--reason", "a breach"];
        let said = hold(&lab, "add", &add);
        assert!(said.code == Some(0) && said.out.contains("case-7"), "{said:?}");
        let said = hold(&lab, "add", &add);
        assert!(said.code == Some(2) && said.err.contains("case-7 already"), "{said:?}");
        assert!(exported(&lab, FLOW) == flow && exported(&lab, "") == all, "each packet once");

        let row = json(&hold(&lab, "list", &["--json"]))["holds"][0].clone();
        assert_eq!((&row["name"], &row["reason"]), (&"case-7".into(), &"a breach".into()));
        assert_eq!((&row["number"], &row["segments"]), (&1.into(), &1.into()));
        let said = lab.ask("delete", &["--before", "2200-01-01T00:00:00Z", "--yes"]);
        assert_eq!(said.code, Some(0), "{said:?}");
        assert!(exported(&lab, FLOW) == flow, "the flow is there byte for byte");
        let left = lab.ask("segments", &["--json"]);
        assert_eq!(
            (json(&left).as_array().unwrap().len(), &json(&left)[0]["hold"]),
            (1, &1.into())
        );
        let said = lab.ask("delete", &["--segment", "2", "--yes"]);
        assert!(said.code == Some(2) && said.err.contains("no closed segment 2"), "{said:?}");
        assert_eq!(lab.ask("verify", &[]).code, Some(0));

        let said = hold(&lab, "release", &["case-7"]);
        assert!(said.code == Some(0) && said.out.contains("hold case-7 released"), "{said:?}");
        assert!(lab.segments().is_empty());
        assert_eq!(hold(&lab, "release", &["case-7"]).code, Some(2));
        let log = audited(&lab);
        for line in ["hold case-7 (number 1) added", "for hold 1", "hold case-7 (number 1) rel"] {
            assert!(log.contains(line), "{line}: {log}");
        }
        assert!(run(["certificate", "verify", "--store", lab.store()]).code == Some(0));
    }
}

/// The copies say that they are held, also where the list is lost.
#[test]
fn copies_without_a_list_stay_and_can_be_released() {
    let lab = Lab::filled(false, PACKETS);
    assert_eq!(hold(&lab, "add", &["--name", "a", "--filter", "arp"]).code, Some(0));
    fs::remove_file(lab.path("store/audit/holds.json")).unwrap();
    let said = hold(&lab, "list", &["--json"]);
    assert_eq!(json(&said)["holds"][0]["name"], "#1");
    assert_eq!(hold(&lab, "add", &["--name", "a", "--filter", "arp"]).code, Some(0));
    let names = |said: &Said| {
        let holds = json(said)["holds"].clone();
        let names = holds.as_array().unwrap().iter().map(|row| row["name"].to_string());
        names.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(&hold(&lab, "list", &["--json"])), r##""a" "#1""##, "numbers differ");
    assert_eq!(hold(&lab, "release", &["#1"]).code, Some(0));
    assert_eq!(names(&hold(&lab, "list", &["--json"])), r#""a""#);
    assert_eq!(hold(&lab, "release", &["a"]).code, Some(0));
}

#[test]
fn what_cannot_be_held_is_told_and_not_deleted() {
    let lab = Lab::filled(false, PACKETS);
    let said = hold(&lab, "add", &["--name", "a", "--filter", "tcpp"]);
    assert!(said.code == Some(2) && said.err.contains("the filter does not fit"), "{said:?}");
    // A chunk in the middle does not read any more.
    let segment = lab.segments().remove(0);
    let mut bytes = fs::read(&segment).unwrap();
    let middle = bytes.len() / 3;
    bytes[middle..middle + 64].fill(0x55);
    fs::write(&segment, bytes).unwrap();
    let said = hold(&lab, "add", &["--name", "a"]);
    assert!(said.code == Some(3) && said.err.contains("is not held for a"), "{said:?}");
    let said = lab.ask("delete", &["--segment", "1", "--yes"]);
    assert!(said.code == Some(2) && said.err.contains("what hold a wants of it"), "{said:?}");
    assert_eq!(hold(&lab, "release", &["a"]).code, Some(1), "nothing was copied");
    assert_eq!(lab.ask("delete", &["--segment", "1", "--yes"]).code, Some(0));
}

/// An import holds what it stores, as a recorder does, although nobody comes by later.
#[test]
fn an_import_holds_what_a_standing_hold_wants() {
    let lab = Lab::new(false);
    assert_eq!(hold(&lab, "add", &["--name", "soon", "--filter", FLOW]).code, Some(0));
    let file = lab.text("a.pcap");
    fs::write(&file, pcap(1, PACKETS)).unwrap();
    let said = lab.ask("import", &[&file]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let row = json(&hold(&lab, "list", &["--json"]))["holds"][0].clone();
    assert_eq!(row["segments"], 1, "{row}");
    let flow = exported(&lab, FLOW);
    assert_eq!(lab.ask("delete", &["--before", "2200-01-01T00:00:00Z", "--yes"]).code, Some(0));
    assert!(exported(&lab, FLOW) == flow, "the flow is there byte for byte");
    assert!(audited(&lab).contains("for hold 1"));
    // What finds no room is told.
    assert_eq!(hold(&lab, "add", &["--name", "all"]).code, Some(0));
    let mut imports = (0..30).map(|_| lab.ask("import", &[&file]));
    let told = imports.find(|said| said.code == Some(3)).expect("the budget has an end");
    // Of the two holds, each of which wants a copy, whichever comes first.
    let (_, why) = told.out.split_once("is not held for ").expect("which one is not");
    assert!(why.contains(": no room for a copy"), "{told:?}");
}

/// A recorder holds what it records, before its own rule deletes it.
#[test]
fn a_recorder_holds_what_is_still_to_come() {
    let lab = Lab::new(false);
    let (socket, file) = (lab.text("s.sock"), lab.text("b.pcap"));
    fs::write(&file, pcap(1, PACKETS)).unwrap();
    let said = hold(&lab, "add", &["--name", "soon", "--filter", FLOW]);
    assert!(said.code == Some(0), "{said:?}");
    let text = format!(
        "store: {}\nsandbox: off\nhold_share: 20%\nreplay:\n  file: {file}\napi:\n  \
         socket: {socket}\nbuffer:\n  size: 16MiB\nretention:\n  - name: all\n    \
         action: delete\n    size: 0B\n",
        lab.store()
    );
    let config = wirevault_config::parse(&text, "test").unwrap_or_else(|faults| panic!("{faults}"));
    thread::spawn(move || {
        let file = ConfigFile::new(Path::new("test.yaml"), Vec::new());
        if let Err(error) =
            wirevault_daemon::serve::run(&config, &file, &KeySource::Recorded.into())
        {
            eprintln!("daemon: {}", error.chain());
        }
    });
    let ask = |verb: &[&str], more: &[&str]| {
        run(verb.iter().copied().chain(["--socket", &socket]).chain(more.iter().copied()))
    };
    let started = Instant::now();
    let held = loop {
        let said = ask(&["hold", "list"], &["--json"]);
        if said.code == Some(0) && json(&said)["holds"][0]["segments"] == 1 {
            break json(&said);
        }
        assert!(started.elapsed() < PATIENCE, "{said:?}");
        thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(held["budget_bytes"], (300u64 << 20) / 5);
    assert!(held["used_bytes"].as_u64() > Some(0) && held["holds"][0]["waiting"] == 0, "{held}");
    let said = ask(&["lifecycle", "apply"], &[]);
    assert!(matches!(said.code, Some(0 | 1)), "{said:?}");
    let rows = json(&ask(&["segments"], &["--json"]));
    assert!(rows.as_array().unwrap().iter().all(|row| row["hold"] == 1), "{rows}");
    let other = Lab::filled(false, PACKETS);
    let expected = other.ask("query", &["--count", FLOW]).out;
    assert_eq!(ask(&["query"], &["--count", FLOW]).out, expected);
    let status = json(&ask(&["status"], &["--json"]));
    assert_eq!(status["holds"]["used_bytes"], held["used_bytes"]);
    let said = ask(&["hold", "add"], &["--name", "soon"]);
    assert!(said.code == Some(2) && said.err.contains("soon already"), "{said:?}");
    let said = ask(&["hold", "release"], &["soon"]);
    assert!(said.code == Some(0) && said.out.contains("hold soon released"), "{said:?}");
    assert_eq!(ask(&["query"], &["--count", FLOW]).out, "0\n");
    let started = audited(&lab);
    let (file, hash) = (lab.path("config.yaml"), |text: &str| text[..64].to_owned());
    fs::write(&file, text).unwrap();
    let sum = Command::new("sha256sum").arg(&file).output().unwrap();
    let sum = hash(&String::from_utf8(sum.stdout).unwrap());
    assert!(started.contains(&format!("configuration {sum}, key file:")), "{started}");
}

#[test]
fn an_exported_log_is_checked_without_its_store() {
    let lab = Lab::filled(false, 100);
    assert_eq!(hold(&lab, "add", &["--name", "a", "--filter", "arp"]).code, Some(0));
    let file = lab.text("log.json");
    let said = run(["audit", "export", "--store", lab.store(), "-w", &file, "--json"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let lines = fs::read_to_string(&file).unwrap();
    let proof: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    // The import has two, the hold and its copy one each.
    assert_eq!((&proof["proof"]["whole"], &proof["proof"]["entries"]), (&true.into(), &4.into()));
    fs::remove_dir_all(lab.store()).unwrap();
    let verify = || run(["audit", "verify", "--file", &file]);
    let said = verify();
    assert!(said.code == Some(0) && said.out.contains("4 entries"), "{said:?}");
    fs::write(&file, lines.replace("\"filter\":\"arp\"", "\"filter\":\"udp\"")).unwrap();
    let said = verify();
    assert!(said.code == Some(3) && said.out.contains("line 3"), "{said:?}");
    let cut: String = lines.split_inclusive('\n').skip(1).collect();
    fs::write(&file, cut).unwrap();
    assert_eq!(verify().code, Some(3));
    let said = run(["audit", "verify"]);
    assert!(said.code == Some(2) && said.err.contains("--store"), "{said:?}");
}
