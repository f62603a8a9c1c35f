//! `delete`, `lifecycle`, `certificate`: what goes, who says so, and that it is gone.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use wirevault_daemon::reload::ConfigFile;
use wirevault_index::KeySource;

use crate::common::{Lab, Said, pcap, run};

/// Longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Packets of the imports, each of which makes a segment.
const IMPORTS: [u64; 3] = [40, 60, 80];

fn imported(plaintext: bool) -> Lab {
    let lab = Lab::new(plaintext);
    for packets in IMPORTS {
        fs::write(lab.path("a.pcap"), pcap(1, packets)).unwrap();
        let said = lab.ask("import", &[&lab.text("a.pcap")]);
        assert_eq!(said.code, Some(0), "{said:?}");
    }
    lab
}

fn json(said: &Said) -> Value {
    serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"))
}

fn lives<'a>(list: impl IntoIterator<Item = &'a Value>) -> BTreeSet<String> {
    list.into_iter().map(|it| it["life"].as_str().unwrap().to_owned()).collect()
}

fn lifecycle(lab: &Lab, verb: &str, rules: &str) -> Said {
    let config = lab.path("rules.yaml");
    let text = format!("store: {}\nreplay:\n  file: /x\nretention:\n{rules}", lab.store());
    fs::write(&config, text).unwrap();
    let config = config.to_str().unwrap();
    run(["lifecycle", verb, "--store", lab.store(), "--config", config, "--json"])
}

fn count(lab: &Lab) -> String {
    lab.ask("query", &["--count"]).out
}

#[test]
fn what_is_deleted_by_hand_is_gone_and_certified() {
    let lab = imported(false);
    let said = lab.ask("delete", &["--segment", "1", "--json"]);
    assert!(said.code == Some(0) && said.err.contains("--yes deletes these"), "{said:?}");
    assert_eq!(json(&said)["certificates"].as_array().map(Vec::len), Some(0));
    assert_eq!(count(&lab), "180\n");
    let said = lab.ask("certificate show", &[]);
    assert_eq!(said.code, Some(2), "verbs are words of their own: {said:?}");
    let certificate = |verb: &str, more: &[&str]| {
        run(["certificate", verb, "--store", lab.store()].iter().chain(more))
    };
    assert_eq!(certificate("show", &[]).code, Some(1), "nothing yet");

    let said = lab.ask("delete", &["--segment", "1", "--segment", "3", "--yes", "--json"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let done = json(&said);
    let segments = &done["certificates"][0]["segments"];
    assert_eq!(lives(done["steps"].as_array().unwrap()), lives(segments.as_array().unwrap()));
    assert_eq!(done["certificates"][0]["level"], "L0");
    assert_eq!(segments[0]["chain"].as_str().map(str::len), Some(64));
    assert_eq!((count(&lab), lab.segments().len()), ("60\n".to_owned(), 1));
    let said = lab.ask("delete", &["--segment", "1", "--yes"]);
    assert!(said.code == Some(2) && said.err.contains("no closed segment 1"), "{said:?}");
    assert_eq!(lab.ask("verify", &[]).code, Some(0));

    assert!(certificate("show", &[]).out.contains("2 segments"), "{:?}", certificate("show", &[]));
    let said = certificate("verify", &[]);
    assert!(said.code == Some(0) && said.out.contains("so it is"), "{said:?}");
    let file = fs::read_dir(lab.path("store/audit/certificates")).unwrap().next().unwrap();
    let (file, text) = (file.as_ref().unwrap().path(), fs::read_to_string(file.unwrap().path()));
    fs::write(&file, text.unwrap().replace("by hand", "by rain")).unwrap();
    let said = certificate("verify", &[file.to_str().unwrap()]);
    assert!(said.code == Some(3) && said.out.contains("something else"), "{said:?}");
}

/// An old image of the volume, put back: a certificate then says what is not so.
#[test]
fn a_certificate_does_not_hold_over_an_old_volume() {
    let lab = imported(false);
    let (volume, old) = (lab.path("store/volume.wv"), lab.path("old.wv"));
    fs::copy(&volume, &old).unwrap();
    assert_eq!(lab.ask("delete", &["--segment", "2", "--yes"]).code, Some(0));
    fs::copy(&old, &volume).unwrap();
    let said = run(["certificate", "verify", "--store", lab.store()]);
    assert!(said.code == Some(3) && said.out.contains("in the table still"), "{said:?}");
}

#[test]
fn a_plain_store_forgets_nothing_and_says_so() {
    let lab = imported(true);
    let said = lab.ask("delete", &["--before", "2200-01-01T00:00:00Z", "--yes"]);
    assert!(said.code == Some(0) && said.out.contains("the store is plain"), "{said:?}");
    assert_eq!((count(&lab), lab.segments().len()), ("0\n".to_owned(), 0));
}

#[test]
fn what_is_planned_is_what_is_done() {
    let lab = imported(false);
    let size = |path: &Path| fs::metadata(path).unwrap().len();
    let youngest = size(&lab.segments()[2]);
    let rules = format!(
        "  - name: dns\n    action: keep\n    flows: vlan 4000\n  \
           - name: room\n    action: delete\n    size: {}B\n",
        youngest + 1
    );
    let planned = json(&lifecycle(&lab, "plan", &rules));
    assert_eq!(planned["steps"].as_array().map(Vec::len), Some(2), "{planned}");
    assert!(planned["steps"][0]["reason"] == "rule room" && planned["steps"][0]["segment"] == 1);
    assert_eq!(count(&lab), "180\n", "a plan does nothing");
    let done = json(&lifecycle(&lab, "apply", &rules));
    assert_eq!(done["steps"], planned["steps"]);
    let erased = done["certificates"].as_array().unwrap();
    let erased = erased.iter().flat_map(|it| it["segments"].as_array().unwrap());
    assert_eq!(lives(erased), lives(planned["steps"].as_array().unwrap()));
    assert_eq!(count(&lab), "80\n");
    assert_eq!(lifecycle(&lab, "plan", &rules).code, Some(1), "and nothing is left to do");
    let log = run(["audit", "show", "--store", lab.store()]).out;
    assert_eq!(log.matches("for rule room").count(), 2, "{log}");
    assert!(log.contains("forgotten (L0): segments 1, 2 of"), "{log}");
    assert_eq!(run(["audit", "verify", "--store", lab.store()]).code, Some(0));
}

/// What each condition of a rule matches.
#[test]
fn rules_match_by_what_they_name() {
    let lab = imported(false);
    let planned = |rules: &str| {
        let said = lifecycle(&lab, "plan", rules);
        assert!(matches!(said.code, Some(0 | 1)), "{said:?}");
        json(&said)["steps"].as_array().unwrap().len()
    };
    let rule = |more: &str| format!("  - name: r\n    action: delete\n{more}");
    let keep = |more: &str| format!("  - name: k\n    action: keep\n{more}{}", rule(""));
    assert_eq!(planned(&rule("")), 3);
    assert_eq!(planned(&rule("    age: 1h\n")), 0);
    thread::sleep(Duration::from_millis(1100));
    assert_eq!(planned(&rule("    age: 1s\n")), 3);
    assert_eq!(planned(&rule("    interface: eth7\n")), 0);
    assert_eq!(planned(&keep("    interface: eth7\n")), 3);
    assert_eq!(planned(&rule("    flows: arp or ip or vlan\n")), 3, "all of them match");
    assert_eq!(planned(&rule("    flows: arp\n")), 0, "others are in there");
    assert_eq!(planned(&keep("    flows: arp\n")), 0, "some of them match");
    assert_eq!(planned(&keep("    flows: host 192.0.2.1\n")), 3, "none of them matches");
    let said = lifecycle(&lab, "plan", &keep("    size: 1GiB\n"));
    assert!(said.code == Some(2) && said.err.contains("no size to keep to"), "{said:?}");
}

/// The daemon does by itself what the rules say, and what it is told to.
#[test]
fn a_recorder_follows_its_rules() {
    let lab = imported(false);
    let (socket, file) = (lab.text("s.sock"), lab.text("b.pcap"));
    // Not all of its frames are what the rule asks for, so it is kept.
    fs::write(&file, pcap(101, 500)).unwrap();
    let youngest = fs::metadata(&lab.segments()[2]).unwrap().len();
    let text = format!(
        "store: {}\nsandbox: off\nreplay:\n  file: {file}\napi:\n  socket: {socket}\n\
         buffer:\n  size: 16MiB\nretention:\n  - name: room\n    action: delete\n    \
         size: {youngest}B\n    flows: arp or ip or vlan\n",
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
    let wait_for = |what: &str, seen: &dyn Fn() -> bool| {
        let started = Instant::now();
        while !seen() {
            assert!(started.elapsed() < PATIENCE, "{what}: {:?}", ask(&["segments"], &[]));
            thread::sleep(Duration::from_millis(50));
        }
    };
    let holds = |ordinal: u64| {
        let said = ask(&["segments"], &["--json"]);
        said.code.is_none_or(|code| code == 2)
            || json(&said).as_array().unwrap().iter().any(|row| row["ordinal"] == ordinal)
    };
    wait_for("the rule takes the two oldest", &|| !holds(1) && !holds(2));
    assert!(holds(3));
    let planned = ask(&["lifecycle", "plan"], &[]);
    assert!(planned.code == Some(1) && planned.err.contains("nothing to delete"), "{planned:?}");
    assert_eq!(ask(&["lifecycle", "apply"], &[]).code, Some(1));
    let said = ask(&["delete"], &["--segment", "3"]);
    assert!(said.code == Some(0) && holds(3), "{said:?}");
    let said = ask(&["delete"], &["--segment", "3", "--yes"]);
    assert!(said.code == Some(0) && said.out.contains("1 segment of"), "{said:?}");
    assert!(!holds(3));
    let said = run(["certificate", "verify", "--store", lab.store()]);
    assert_eq!((said.code, said.out.matches("so it is").count()), (Some(0), 2), "{said:?}");
    let counted = || ask(&["query"], &["--count"]).out == "500\n";
    wait_for("what is recorded stays", &counted);
}
