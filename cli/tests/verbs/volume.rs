//! `wirevault volume`, on plain files that stand for devices.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use crate::common::*;

/// The store's audit log, which is whole.
fn audit(store: &str) -> String {
    let verified = run(["audit", "verify", "--store", store]);
    assert_eq!(verified.code, Some(0), "{verified:?}");
    run(["audit", "show", "--store", store]).out
}

#[test]
fn what_a_retired_volume_held_is_certified_in_the_log_of_its_store() {
    let lab = Lab::empty();
    let (first, device) = (lab.text("first"), lab.text("device"));
    // So large that its share of the quota is enough, and nearly all of it a hole.
    File::create(lab.path("device")).unwrap().set_len(64 << 30).unwrap();
    let made = run(["init", &first, "--volume", &device, "--plaintext", "--quota", "1GiB"]);
    assert_eq!(made.code, Some(0), "{made:?}");
    let id = made.out.split_whitespace().nth(1).expect("store's id").to_owned();
    // Each link type has a segment of its own, and both volumes get some.
    let files = [1, 101, 113, 276].map(|link_type| {
        let name = format!("{link_type}.pcap");
        fs::write(lab.path(&name), pcap(link_type, 50)).unwrap();
        lab.text(&name)
    });
    let imported =
        run(["import", "--store", &first].into_iter().chain(files.iter().map(|it| &**it)));
    assert_eq!(imported.code, Some(0), "{imported:?}");
    let log = audit(&first);
    assert!(log.contains(&format!("importing {}", files.join(", "))), "{log}");
    assert!(log.contains("200 packets, 200 stored\n"), "{log}");
    let retired = run(["volume", "retire", &device, "--store", &id]);
    assert_eq!(retired.code, Some(0), "{retired:?}");
    assert!(retired.out.contains(&format!("of {device} deleted, volume retired")), "{retired:?}");
    let log = audit(&first);
    let at = |what: &str| log.find(what).unwrap_or_else(|| panic!("{what}: {log}"));
    assert!(at("retired: volume 1, ") < at("forgotten (no level"), "{log}");
    let shown = run(["certificate", "verify", "--store", &first]);
    assert_eq!(shown.code, Some(0), "{shown:?}");
}

#[test]
fn a_device_is_formatted_used_and_retired() {
    let dir = tempfile::tempdir().unwrap();
    let device = dir.path().join("device");
    let file = File::create(&device).unwrap();
    file.set_len(300 << 20).unwrap();
    file.write_all_at(b"XFSB", 0).unwrap();
    let name = device.to_str().unwrap();

    let refused = run(["init", name, "--plaintext"]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.err.contains("an XFS file system"), "{refused:?}");
    let refused = run(["volume", "format", name]);
    assert_eq!(refused.code, Some(2));
    assert!(refused.err.contains("--force erases it"), "{refused:?}");
    let formatted = run(["volume", "format", name, "--force"]);
    assert_eq!(formatted.code, Some(0), "{formatted:?}");

    let made = run(["init", name, "--plaintext"]);
    assert_eq!(made.code, Some(0), "{made:?}");
    let id = made.out.split_whitespace().nth(1).expect("store's id").to_owned();
    let refused = run(["volume", "format", name]);
    assert!(refused.err.contains(&format!("volume 0 of store {id}")), "{refused:?}");
    let other = "0".repeat(32);
    let refused = run(["volume", "retire", name, "--store", &other]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert_eq!(run(["verify", "--store", name]).code, Some(0), "it was left alone");

    let retired = run(["volume", "retire", name, "--store", &id]);
    assert_eq!(retired.code, Some(0), "{retired:?}");
    assert!(retired.err.contains("it stands in no audit log"), "{retired:?}");
    assert!(retired.out.contains("256 blocks that were read afterwards 256 hold"), "{retired:?}");
    assert!(run(["segments", "--store", name]).err.contains("not a Wirevault store"));
    let again = run(["volume", "format", name]);
    assert_eq!(again.code, Some(0), "an empty device needs no force: {again:?}");
}

#[test]
fn disks_of_this_machine_are_listed() {
    let listed = run(["volume", "list", "--json"]);
    assert!(matches!(listed.code, Some(0 | 1)), "{listed:?}");
    let found: serde_json::Value = serde_json::from_str(&listed.out).unwrap();
    for device in found["devices"].as_array().unwrap() {
        assert!(device["bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{device}");
    }
    let table = run(["volume", "list"]);
    assert!(table.out.contains("serial"), "{table:?}");
}

#[test]
fn a_moved_volume_is_adopted_when_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let (first, second, moved) = (at("first"), at("second"), at("moved"));
    let made = run(["init", &first, "--volume", &second, "--plaintext", "--quota", "512MiB"]);
    assert_eq!(made.code, Some(0), "{made:?}");
    std::fs::rename(&second, &moved).unwrap();
    let looked = run(["volume", "adopt", &moved, "--store", &first]);
    assert_eq!(looked.code, Some(0), "{looked:?}");
    assert!(looked.out.contains(&format!("{second} -> {moved}")), "{looked:?}");
    assert!(looked.err.contains("--yes records"), "{looked:?}");
    let missing = run(["verify", "--store", &first]);
    assert_ne!(missing.code, Some(0), "nothing was recorded: {missing:?}");
    let adopted = run(["volume", "adopt", &moved, "--store", &first, "--yes"]);
    assert_eq!(adopted.code, Some(0), "{adopted:?}");
    assert_eq!(run(["verify", "--store", &first]).code, Some(0));
    let log = audit(&first);
    assert!(log.contains(&format!("adopted: volume 1, {second}, is {moved} now")), "{log}");
    let again = run(["volume", "adopt", &moved, "--store", &first, "--yes"]);
    assert_eq!(again.code, Some(2), "{again:?}");
    assert!(again.err.contains("already"), "{again:?}");
}

#[test]
fn a_volume_that_is_gone_is_replaced_when_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let (first, second, new) = (at("first"), at("second"), at("new"));
    let made = run(["init", &first, "--volume", &second, "--plaintext", "--quota", "512MiB"]);
    assert_eq!(made.code, Some(0), "{made:?}");
    let asked = run(["query", "--store", &first, "--count"]);
    assert_eq!(asked.code, Some(1), "there is nothing, and nothing is missing: {asked:?}");
    std::fs::create_dir(&new).unwrap();
    let replace = ["volume", "replace", "1", &new, "--store", &first, "--yes"];
    let refused = run(replace);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.err.contains("only a missing one goes"), "{refused:?}");
    std::fs::remove_dir_all(&second).unwrap();
    let told = run(&replace[..6]);
    assert!(told.code == Some(2) && told.err.contains("--yes"), "{told:?}");
    let replaced = run(replace);
    assert_eq!(replaced.code, Some(0), "{replaced:?}");
    let log = audit(&first);
    assert!(log.contains(&format!("replaced: volume 1, {second}, by {new}")), "{log}");
    assert_eq!(run(["verify", "--store", &first]).code, Some(0));
    let asked = run(["query", "--store", &first, "--count"]);
    assert_eq!(asked.code, Some(3), "what it held is not known: {asked:?}");
    assert!(asked.err.contains("replaced at"), "{asked:?}");
}

/// What a slip of the hand is answered with, and that nothing comes of it.
#[test]
fn what_is_no_device_is_left_alone_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let (folder, blank, empty, missing) = (at("folder"), at("blank"), at("empty"), at("missing"));
    std::fs::create_dir(&folder).unwrap();
    File::create(&empty).unwrap();
    File::create(&blank).unwrap().set_len(300 << 20).unwrap();
    let store = at("store");
    assert_eq!(run(["init", &store, "--plaintext", "--quota", "512MiB"]).code, Some(0));
    let id = "0".repeat(32);
    let foreign = at("foreign");
    let file = File::create(&foreign).unwrap();
    file.set_len(300 << 20).unwrap();
    file.write_all_at(b"XFSB", 0).unwrap();
    let cases: [(&[&str], &str); 12] = [
        (&["format", &missing], "No such file"),
        (&["format", &folder, "--force"], "it is a directory"),
        (&["format", "/dev/null"], "`wirevault volume list` shows disks"),
        (&["format", &empty], "holds no bytes"),
        (&["retire", &folder, "--store", &id], "it is a directory"),
        (&["retire", &blank, "--store", &id], "it is empty; no volume of store 0000"),
        (&["adopt", &missing, "--store", &store], "No such file"),
        (&["adopt", &blank, "--store", &store], "it is empty, so there is nothing to adopt"),
        (&["adopt", &foreign, "--store", &store], "it holds an XFS file system, so there is"),
        (&["adopt", &folder, "--store", &store], "it is a directory without a volume, so"),
        (&["replace", "0", &missing, "--store", &store, "--yes"], "No such file"),
        (&["replace", "7", &blank, "--store", &store, "--yes"], "has no volume 7"),
    ];
    for (arguments, why) in cases {
        let refused = run([&["volume"][..], arguments].concat());
        assert_eq!(refused.code, Some(2), "{refused:?}");
        assert!(refused.err.contains(why), "{why}: {refused:?}");
        assert!(!refused.err.contains("wirevault init /"), "it makes no volume of a store");
    }
    let small = at("small");
    File::create(&small).unwrap().set_len(64 << 20).unwrap();
    let formatted = run(["volume", "format", &small]);
    assert_eq!(formatted.code, Some(0), "{formatted:?}");
    assert!(formatted.out.contains("268435456 bytes are needed"), "{formatted:?}");
    assert_eq!(run(["init", &small, "--plaintext"]).code, Some(2), "as it was told");
    assert_eq!(run(["verify", "--store", &store]).code, Some(0));
    assert_eq!(run(["init", &blank, "--plaintext"]).code, Some(0), "it is as empty as before");
}
