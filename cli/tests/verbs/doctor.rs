//! `wirevault doctor`, on this machine.

use std::fs;

use serde_json::Value;

use crate::common::*;

fn report(arguments: &[&str]) -> (Option<i32>, Vec<Value>) {
    let said = run([&["doctor", "--json"], arguments].concat());
    let report: Value = serde_json::from_str(&said.out).unwrap_or_else(|_| panic!("{said:?}"));
    let findings = report["findings"].as_array().unwrap().clone();
    let worst = if said.code == Some(1) { "fail" } else { "" };
    assert_eq!(report["verdict"] == "fail", worst == "fail", "{said:?}");
    (said.code, findings)
}

#[test]
fn a_machine_without_a_configuration_is_looked_at() {
    let (code, findings) = report(&[]);
    assert_eq!(code, Some(0), "without a configuration nothing is wanted in vain: {findings:?}");
    for about in ["huge pages", "locked memory", "cores", "frequency", "clock", "rights"] {
        let mut told = findings.iter().filter(|finding| finding["about"] == about);
        assert!(told.any(|it| !it["seen"].as_str().unwrap().is_empty()), "{about}: {findings:?}");
    }
    let advised = |it: &&Value| it["verdict"] == "warn" && it["advice"].is_null();
    assert_eq!(findings.iter().find(advised), None, "a warning says what to do");
    let said = run(["doctor"]);
    assert_eq!(said.out.lines().filter(|line| line.contains("locked memory: ")).count(), 1);
}

#[test]
fn a_configuration_is_held_against_the_machine() {
    let dir = tempfile::tempdir().unwrap();
    let (store, file) = (dir.path().join("store"), dir.path().join("wirevault.yaml"));
    let made = run(["init", store.to_str().unwrap(), "--plaintext", "--quota", "300MiB"]);
    assert_eq!(made.code, Some(0), "{made:?}");
    let name = file.to_str().unwrap();
    let config = |input: &str| {
        fs::write(&file, format!("store: {}\n{input}", store.display())).unwrap();
        report(&["--config", name])
    };
    let (code, findings) = config("pcap_over_ip:\n  - connect: 127.0.0.1:9\n");
    assert_eq!(code, Some(0), "{findings:?}");
    let volume = format!("volume {}", store.display());
    assert!(findings.iter().any(|it| it["about"] == volume.as_str()), "{findings:?}");

    let (code, findings) = config("capture:\n  - interface: none7\n");
    assert_eq!(code, Some(1), "{findings:?}");
    let failed = |about: &str| {
        let mut of = findings.iter().filter(|it| it["about"] == about);
        of.any(|it| it["verdict"] == "fail")
    };
    assert!(failed("none7") && failed("capture[0].interface"), "{findings:?}");

    let (code, findings) = config("capture:\n  - interfaces: eth0\n");
    assert_eq!(code, Some(1), "{findings:?}");
    let seen = findings[0]["seen"].as_str().unwrap();
    assert!(findings[0]["about"] == "configuration" && seen.contains("interfaces"), "{seen}");
    assert!(findings.iter().any(|it| it["about"] == "cores"), "the rest is looked at anyway");
}
