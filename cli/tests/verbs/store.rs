//! `init`, `import`, `status`, `segments`, `verify`, `inspect`: what concerns the store itself.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use crate::common::{Lab, frame, pcap, run};
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

#[test]
fn init_says_where_the_key_is_and_to_back_it_up() {
    let lab = Lab::empty();
    let (store, key) = (lab.text("store"), lab.text("keys/my.key"));
    let said = run(["init", &store, "--quota", "300MiB", "--key", &key]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.out.contains(&key) && said.out.contains("Back the key up"), "{}", said.out);
    assert!(fs::metadata(&key).unwrap().is_file());
    assert!(said.out.contains("16.0 MiB each, on 1 volume"), "{}", said.out);
    // The same key serves a second store.
    let said = run(["init", &lab.text("other"), "--quota", "300MiB", "--key", &key]);
    assert!(said.code == Some(0) && said.out.contains("was there already"), "{said:?}");
}

#[test]
fn init_without_a_key_uses_the_users_place() {
    let lab = Lab::empty();
    let said: crate::common::Said = crate::common::wirevault()
        .env("XDG_CONFIG_HOME", lab.path("config"))
        .args(["init", &lab.text("store"), "--quota", "300MiB"])
        .output()
        .unwrap()
        .into();
    assert_eq!(said.code, Some(0), "{said:?}");
    let line = said.out.lines().find(|line| line.starts_with("key ")).unwrap();
    let key = line.split_whitespace().nth(1).unwrap();
    assert!(key.contains("/wirevault/keys/") && key.ends_with(".key"), "{key}");
    assert!(fs::remove_file(key).is_ok(), "{key} is there");
}

#[test]
fn init_makes_several_volumes_for_several_lanes() {
    let lab = Lab::empty();
    let (one, two) = (lab.text("one"), lab.text("two"));
    let said =
        run(["init", &one, "--volume", &two, "--lanes", "2", "--quota", "1GiB", "--plaintext"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.out.contains("on 2 volumes") && said.out.contains("unencrypted"), "{}", said.out);
    let status = json(&run(["status", "--store", &one, "--json"]).out);
    assert_eq!(status["volumes"].as_array().unwrap().len(), 2);
    // A volume that is gone is told by name.
    fs::rename(&two, lab.path("away")).unwrap();
    let said = run(["status", "--store", &one]);
    assert!(said.out.contains("missing volume") && said.out.contains(&two), "{}", said.out);
    let said = run(["verify", "--store", &one]);
    assert!(said.code == Some(3) && said.out.contains(&two), "{said:?}");
    let said = run(["query", "--store", &one]);
    assert!(said.code == Some(3) && said.err.contains("missing volume"), "{said:?}");
}

#[test]
fn init_refuses_what_cannot_be_and_leaves_nothing_behind() {
    let lab = Lab::empty();
    let (store, key) = (lab.text("store"), lab.text("key"));
    let said = run(["init", &store, "--quota", "10MiB", "--key", &key]);
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.err.contains("bytes") && said.err.contains("fewer lanes"), "{}", said.err);
    assert!(!lab.path("store").exists() && !lab.path("key").exists());
    let inside = format!("{store}/key");
    let said = run(["init", &store, "--quota", "300MiB", "--key", &inside]);
    assert!(said.code == Some(2) && said.err.contains("inside the store"), "{said:?}");
    let said = run(["init", &store, "--volume", &store, "--plaintext"]);
    assert!(said.code == Some(2) && said.err.contains("named twice"), "{said:?}");
    assert_eq!(run(["init", &store, "--plaintext", "--key", &key]).code, Some(2));
    assert_eq!(run(["init", &store, "--quota", "much"]).code, Some(2));
    assert_eq!(run(["init", &store, "--lanes", "0"]).code, Some(2));

    let said = run(["init", &store, "--quota", "300MiB", "--plaintext"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let said = run(["init", &store, "--quota", "300MiB", "--key", &key]);
    assert!(said.code == Some(2) && said.err.contains("belongs to store"), "{said:?}");
    assert!(!lab.path("key").exists());
    assert_eq!(run(["status", "--store", &store]).code, Some(0), "the store is as it was");
}

#[test]
fn import_reports_file_by_file() {
    let lab = Lab::new(false);
    fs::write(lab.path("a.pcap"), pcap(1, 30)).unwrap();
    fs::write(lab.path("empty.pcap"), pcap(1, 0)).unwrap();
    let mut gzip = Command::new("gzip")
        .arg("-c")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    gzip.stdin.take().unwrap().write_all(&pcap(1, 20)).unwrap();
    fs::write(lab.path("b.pcap.gz"), gzip.wait_with_output().unwrap().stdout).unwrap();
    let (a, empty, b) = (lab.text("a.pcap"), lab.text("empty.pcap"), lab.text("b.pcap.gz"));
    let said = lab.ask("import", &[&a, &empty, &b]);
    assert_eq!(said.code, Some(0), "{said:?}");
    for wanted in [
        format!("{a}: 30 packets"),
        format!("{empty}: 0 packets"),
        format!("{b}: 20 packets"),
        "50 packets".to_owned(),
        "all stored".to_owned(),
    ] {
        assert!(said.out.contains(&wanted), "{wanted} is not in {}", said.out);
    }
    assert_eq!(lab.ask("query", &["--count"]).out, "50\n");
    let report = json(&lab.ask("import", &[&a, "--json", "--key", &lab.text("key")]).out);
    assert_eq!((&report["packets"], &report["stored"]), (&30.into(), &30.into()));
    assert_eq!(report["files"][0]["path"], a);
    assert_eq!(lab.ask("import", &[&empty]).code, Some(1), "nothing came");
}

#[test]
fn import_keeps_what_came_before_a_cut_and_says_so() {
    let lab = Lab::new(true);
    let mut bytes = pcap(1, 30);
    bytes.truncate(bytes.len() - 5);
    fs::write(lab.path("cut.pcap"), bytes).unwrap();
    fs::write(lab.path("text.pcap"), "no capture at all").unwrap();
    fs::write(lab.path("a.pcap"), pcap(1, 5)).unwrap();
    let (a, cut) = (lab.text("a.pcap"), lab.text("cut.pcap"));
    let said = lab.ask("import", &[&a, &cut, &lab.text("text.pcap"), &lab.text("absent.pcap")]);
    assert_eq!(said.code, Some(3), "{said:?}");
    assert!(said.out.contains(&format!("{cut}: 29 packets")), "{}", said.out);
    assert!(said.out.contains("NOT ALL STORED"), "{}", said.out);
    assert_eq!(said.out.matches("not read to its end").count(), 3, "{}", said.out);
    assert_eq!(lab.ask("query", &["--count"]).out, "34\n");
}

#[test]
fn import_refuses_files_and_stores_that_are_none() {
    let lab = Lab::new(true);
    fs::write(lab.path("text.pcap"), "no capture at all").unwrap();
    fs::write(lab.path("empty.pcap"), "").unwrap();
    fs::create_dir(lab.path("folder.pcap")).unwrap();
    for (name, why) in [
        ("text.pcap", "not a pcap or pcapng file"),
        ("absent.pcap", "No such file"),
        ("empty.pcap", "it is empty"),
        ("folder.pcap", "Is a directory"),
    ] {
        let said = lab.ask("import", &[&lab.text(name)]);
        assert_eq!(said.code, Some(2), "{said:?}");
        assert!(said.err.contains(name) && said.err.contains(why), "{}", said.err);
        assert!(!said.err.contains("after 0 bytes"), "{}", said.err);
    }
    assert_eq!(lab.ask("import", &[]).code, Some(2), "no file was named");
    fs::write(lab.path("a.pcap"), pcap(1, 5)).unwrap();
    let said = run(["import", "--store", "/nowhere", &lab.text("a.pcap")]);
    assert!(said.code == Some(2) && said.err.contains("/nowhere"), "{said:?}");
}

#[test]
fn what_a_store_cannot_keep_is_told() {
    let lab = Lab::new(true);
    let mut file = Vec::new();
    let mut block = |kind: u32, body: &[u8]| {
        let bytes = 12 + body.len() as u32;
        for part in [&kind.to_le_bytes()[..], &bytes.to_le_bytes(), body, &bytes.to_le_bytes()] {
            file.extend_from_slice(part);
        }
    };
    block(0x0a0d_0d0a, &[&[0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0][..], &[0xff; 8]].concat());
    // Ethernet, picoseconds.
    block(1, &[1, 0, 0, 0, 0, 0, 4, 0, 9, 0, 1, 0, 12, 0, 0, 0, 0, 0, 0, 0]);
    block(4, &[0; 4]);
    let (frame, ticks) = (frame(0), 1_700_000_000_000_000_000_123u128 as u64);
    let mut body = vec![0; 4];
    for word in [(ticks >> 32) as u32, ticks as u32, frame.len() as u32, frame.len() as u32] {
        body.extend_from_slice(&word.to_le_bytes());
    }
    body.extend_from_slice(&frame);
    body.resize(body.len().next_multiple_of(4), 0);
    block(6, &body);
    fs::write(lab.path("x.pcapng"), file).unwrap();
    let said = lab.ask("import", &[&lab.text("x.pcapng")]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.out.contains("not kept: 1 block of kind name_resolution"), "{}", said.out);
    assert!(said.out.contains("not kept: 1 times finer than a nanosecond"), "{}", said.out);
}

#[test]
fn status_has_the_same_shape_offline() {
    let lab = Lab::filled(false, 100);
    let status = json(&lab.ask("status", &["--json"]).out);
    assert_eq!(status["state"], "offline");
    assert_eq!(status["segments"], 1);
    let lane = &status["lanes"][0];
    for key in [
        "received",
        "stored",
        "shed",
        "dropped",
        "dropped_by_cause",
        "in_flight",
        "cut",
        "unparsed",
        "watermark",
        "unacknowledged_age_ms",
    ] {
        assert!(!lane[key].is_null(), "{key} is not in {lane}");
    }
    assert_eq!((&lane["received"], &lane["stored"]), (&100.into(), &100.into()));
    assert!(status["volumes"][0]["quota_bytes"].as_u64() > Some(0));
    let page = lab.ask("status", &[]);
    assert_eq!(page.code, Some(0));
    for wanted in ["offline", "sealed, 1 segment", "lanes, in packets", "volumes", "300.0 MiB"] {
        assert!(page.out.contains(wanted), "{wanted} is not in {}", page.out);
    }
}

#[test]
fn segments_are_listed() {
    let lab = Lab::filled(false, 100);
    let table = lab.ask("segments", &[]);
    assert_eq!(table.code, Some(0));
    assert_eq!(table.out.lines().count(), 2, "{}", table.out);
    assert!(table.out.contains("closed: stop") && table.out.contains("import"), "{}", table.out);
    let rows = json(&lab.ask("segments", &["--json"]).out);
    assert_eq!((&rows[0]["packets"], &rows[0]["state"]), (&100.into(), &"closed".into()));
    let empty = Lab::new(true);
    let said = empty.ask("segments", &["--json"]);
    assert_eq!((said.code, said.out.trim()), (Some(1), "[]"));
    assert_eq!(empty.ask("segments", &[]).code, Some(1));
}

#[test]
fn verify_names_segment_chunk_and_time_range() {
    for plaintext in [false, true] {
        let lab = Lab::filled(plaintext, 5000);
        let said = lab.ask("verify", &[]);
        assert_eq!(said.code, Some(0), "{said:?}");
        assert!(said.out.contains("5000 packets") && said.out.contains("whole"), "{}", said.out);
        let report = json(&lab.ask("verify", &["--json"]).out);
        assert_eq!((&report["whole"], &report["packets"]), (&true.into(), &5000.into()));
        assert!(report["chunks"].as_u64() > Some(1));

        // A byte in the middle of the second chunk.
        let file = fs::OpenOptions::new().read(true).write(true).open(&lab.segments()[0]).unwrap();
        let at = 4096 + (256 << 10) + 5000;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        let said = lab.ask("verify", &[]);
        assert_eq!(said.code, Some(3), "{said:?}");
        assert!(
            said.out.contains(
                "segment 0:000000#1, chunk 1 (volume 0, 000000.pcapng), packets \
            from 2023-11-14T22:13:2"
            ),
            "{}",
            said.out
        );
        let report = json(&lab.ask("verify", &["--json"]).out);
        assert_eq!(report["whole"], false);
        assert_eq!(report["damaged"][0]["chunk"], 1);
        assert_eq!(report["damaged"].as_array().unwrap().len(), 1, "{report}");
        let said = lab.ask("query", &["--count"]);
        assert!(said.code == Some(3) && said.err.contains("damaged"), "{said:?}");

        // A damaged footer is damage of the segment as a whole.
        let bytes = file.metadata().unwrap().len();
        file.write_all_at(&[0xff; 8], bytes - 4000).unwrap();
        let report = json(&lab.ask("verify", &["--json"]).out);
        assert_eq!(report["damaged"][0]["chunk"], Value::Null, "{report}");
        // A segment that is gone is told, too.
        fs::remove_file(&lab.segments()[0]).unwrap();
        let said = lab.ask("verify", &[]);
        assert!(said.code == Some(3) && said.out.contains("missing"), "{said:?}");
    }
}

#[test]
fn inspect_shows_structures_and_no_key() {
    let lab = Lab::filled(false, 3000);
    let volume = lab.text("store");
    let said = run(["inspect", "volume", &volume]);
    assert_eq!(said.code, Some(0), "{said:?}");
    for wanted in [
        "superblock, slot",
        "generation",
        "key ring",
        "opens; epoch",
        "1 place used",
        "run table, 1 run",
    ] {
        assert!(said.out.contains(wanted), "{wanted} is not in {}", said.out);
    }
    let key = fs::read_to_string(lab.path("key")).unwrap();
    let secret = key.lines().find(|line| line.len() == 64).unwrap().to_owned();
    let found = json(&run(["inspect", "volume", &volume, "--json"]).out);
    assert_eq!(found["key_ring"]["opens"], true);
    assert_eq!(found["segments"][0]["packets"], 3000);
    assert!(!said.out.contains(&secret) && !found.to_string().contains(&secret));

    let file = lab.segments()[0].to_str().unwrap().to_owned();
    let by_file = run(["inspect", "segment", &file]);
    assert_eq!(by_file.code, Some(0), "{by_file:?}");
    for wanted in ["sealed, from import", "2 chunks", "footer", "stop", "Postings"] {
        assert!(by_file.out.contains(wanted), "{wanted} is not in {}", by_file.out);
    }
    let by_name = run(["inspect", "segment", "0:000000#1", "--store", &volume]);
    assert_eq!(by_name.out, by_file.out);
    let found = json(&run(["inspect", "segment", &file, "--json"]).out);
    assert_eq!(found["footer"]["packets"], 3000);
    assert_eq!(found["chunks"].as_array().unwrap().len(), 2);
    assert_eq!(found["header"]["interfaces"], Value::Null, "sealed");

    let said = run(["inspect", "segment", "9:000000#1", "--store", &volume]);
    assert!(said.code == Some(2) && said.err.contains("wirevault segments"), "{said:?}");
    let said = run(["inspect", "segment", &lab.text("a.pcap")]);
    assert!(said.code == Some(2) && said.err.contains("a.pcap"), "{said:?}");
    assert_eq!(run(["inspect", "volume", "/nowhere"]).code, Some(2));
    let said = run(["inspect", "constants"]);
    assert!(said.out.contains("chunk::HEADER_BYTES = 128\n"), "{}", said.out);
}

#[test]
fn a_plain_segment_shows_its_interfaces() {
    let lab = Lab::filled(true, 10);
    let file = lab.segments()[0].to_str().unwrap().to_owned();
    let said = run(["inspect", "segment", &file]);
    assert!(said.out.contains("plaintext") && said.out.contains("unnamed"), "{}", said.out);
    assert_eq!(crate::common::tcpdump(&lab.segments()[0], "").len(), 10);
}

#[test]
fn a_key_that_is_missing_or_another_is_named() {
    let lab = Lab::filled(false, 100);
    let other = Lab::new(false);
    fs::rename(lab.path("key"), lab.path("away")).unwrap();
    let said = lab.ask("verify", &[]);
    assert!(said.code == Some(2) && said.err.contains("does not exist"), "{said:?}");
    let said = lab.ask("verify", &["--key", &other.text("key")]);
    assert!(said.code == Some(2) && said.err.contains("wrong key"), "{said:?}");
    let said = lab.ask("import", &[&lab.text("a.pcap"), "--key", &other.text("key")]);
    assert!(said.code == Some(2) && said.err.contains("wrong key"), "{said:?}");
    // A question is answered with what can be read, and says why that is nothing.
    for key in [other.text("key"), lab.text("absent")] {
        let name = lab.text("summary.json");
        let said = lab.ask("query", &["--count", "--key", &key, "--summary", &name]);
        assert_eq!((said.code, said.out.as_str()), (Some(3), "0\n"), "{said:?}");
        let summary = json(&fs::read_to_string(&name).unwrap());
        assert_eq!(summary["gaps"][0]["cause"], "wrong_key", "{summary}");
        assert!(said.err.contains("nothing sealed can be read"), "{said:?}");
    }
    // Nothing is missing from an empty store, but whoever asks would not be told later either.
    fs::remove_file(other.path("key")).unwrap();
    let said = other.ask("query", &["--count"]);
    assert!(said.code == Some(1) && said.err.contains("does not exist"), "{said:?}");
    let said = lab.ask("query", &["--count", "--key", &lab.text("away")]);
    assert_eq!((said.code, said.out.as_str()), (Some(0), "100\n"), "{said:?}");
    let said = run(["inspect", "volume", lab.store()]);
    assert!(said.code == Some(0) && said.out.contains("does not open"), "{said:?}");
}

#[test]
fn what_is_no_store_is_said_with_a_way_out() {
    let lab = Lab::empty();
    fs::create_dir(lab.path("dir")).unwrap();
    for name in ["dir", "absent"] {
        for verb in ["query", "flows", "status", "segments", "verify"] {
            let said = run([verb, "--store", &lab.text(name)]);
            assert_eq!(said.code, Some(2), "{said:?}");
            assert!(said.err.contains("is not a Wirevault store"), "{}", said.err);
            assert!(said.err.contains("wirevault init"), "{}", said.err);
        }
    }
}

#[test]
fn a_store_of_a_newer_release_is_refused() {
    let lab = Lab::filled(true, 10);
    let path = lab.path("store/volume.wv");
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut block = vec![0; 4096];
    for at in [0, 1 << 20] {
        file.read_exact_at(&mut block, at).unwrap();
        if block[..8] == *b"WVVOLUME" {
            block[8] = 99;
            let crc = wirevault_format::crc32c(&block[..4092]);
            block[4092..].copy_from_slice(&crc.to_le_bytes());
            file.write_all_at(&block, at).unwrap();
        }
    }
    for verb in ["query", "status", "verify"] {
        let said = lab.ask(verb, &[]);
        assert_eq!(said.code, Some(2), "{said:?}");
        assert!(
            said.err.contains("version 99") && said.err.contains("reads up to"),
            "{}",
            said.err
        );
    }
}

#[test]
fn help_has_an_example_for_every_verb() {
    let said = run(["--help"]);
    assert_eq!(said.code, Some(0));
    assert!(said.out.contains("Exit codes") && said.out.contains("Example"), "{}", said.out);
    let verbs =
        ["init", "import", "query", "flows", "tail", "status", "segments", "verify", "inspect"];
    for verb in verbs {
        assert!(said.out.contains(&format!("  {verb} ")), "{verb}");
        let help = run([verb, "--help"]);
        assert!(help.code == Some(0) && help.out.contains("Example"), "{verb}: {}", help.out);
    }
    for verb in ["constants", "segment", "volume"] {
        assert!(run(["inspect", verb, "--help"]).out.contains("Example"), "{verb}");
    }
    assert!(run(["--version"]).out.starts_with("wirevault 0."));
    let said = run::<&str>([]);
    assert_eq!(said.code, Some(2), "{said:?}");
    let said = run(["frobnicate"]);
    assert!(said.code == Some(2) && said.err.contains("frobnicate"), "{said:?}");
}
