//! Stores that are sealed with a public key: whoever records cannot read what is there, and who has
//! the private half reads all of it.

use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use serde_json::{Value, json};
use wirevault_testkit::net::{Namespace, Sender, wait_for};
use wirevault_tests::aws::Aws;
use wirevault_tests::captures::{Packet, write_pcap};
use wirevault_tests::recorder::{Recorder, Site, lane_count, read_pcapng};
use wirevault_tests::store::{text, wirevault};

/// Each call of a silent service takes 6 s, and many people may share this machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Packets of each file.
const PACKETS: u64 = 50;
/// More calls than a test makes.
const ALWAYS: u32 = 1_000_000;

/// An Ethernet frame of an experimental type.
fn frame(number: u64) -> Vec<u8> {
    let head = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5];
    [&head[..], &number.to_be_bytes(), &[0; 64]].concat()
}

/// A file of [`PACKETS`] beside the store, as a recorder takes it in.
fn replay(site: &Site, number: u64) -> String {
    let packets = (0..PACKETS).map(|at| {
        let ts_ns = 1_700_000_000_000_000_000 + number * 1_000_000_000 + at;
        let data = frame(number);
        Packet { ts_ns, orig_len: data.len() as u32, data }
    });
    let file = site.file(&format!("{number}.pcap"));
    write_pcap(&file, &packets.collect::<Vec<_>>());
    format!("replay:\n  file: {}\n", file.display())
}

/// A recorder that has taken the file in.
fn recorded(site: &Site, number: u64, more: &str) -> Recorder {
    let recorder = site.record_from(&(replay(site, number) + more));
    wait_until_stored(&recorder);
    recorder
}

fn wait_until_stored(recorder: &Recorder) {
    wait_for("all is stored", PATIENCE, || {
        (lane_count(&recorder.status(), "stored") == PACKETS).then_some(())
    });
}

/// Packets of an answer, its exit code, and what was said.
fn answer(site: &Site, ask: impl Fn(&[&str]) -> Output) -> (u64, Option<i32>, String) {
    let file = site.file("answer.pcapng");
    let output = ask(&["ether proto 0x88b5", "-w", &file.display().to_string()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (read_pcapng(&file).len() as u64, output.status.code(), said)
}

fn with_key(site: &Site, key: &Path) -> (u64, Option<i32>, String) {
    let key = key.display().to_string();
    answer(site, |args| site.offline("query", &[args, &["--key", &key]].concat()))
}

#[test]
fn who_has_only_the_public_key_records_and_cannot_read_what_is_there() {
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    let (site, private) = Site::sealed_one_way();
    let first = recorded(&site, 0, "");
    let (packets, code, said) = answer(&site, |args| first.ask("query", args));
    assert_eq!((packets, code), (PACKETS, Some(0)), "this process made the keys: {said}");
    assert!(first.terminate().success());

    // A crash leaves segments that this machine cannot repair; it leaves them as they are.
    let second = site.record("va", "    ring: 8MiB\nbuffer:\n  size: 8MiB\n");
    let mut sender = Sender::on("vb");
    (0..PACKETS).for_each(|_| sender.send(&frame(1)));
    wait_until_stored(&second);
    let (packets, code, said) = answer(&site, |args| second.ask("query", args));
    assert_eq!((packets, code), (PACKETS, Some(3)), "{said}");
    assert!(said.contains("wrong_key"), "{said}");
    second.kill();
    let third = recorded(&site, 2, "");
    let set_aside = third.status()["recovery"]["set_aside"].to_string();
    assert!(set_aside.contains("public half is here"), "{set_aside}");
    assert!(third.terminate().success());

    let (packets, code, said) = answer(&site, |args| site.offline("query", args));
    assert_eq!((packets, code), (0, Some(3)), "{said}");
    let (packets, _, said) = with_key(&site, &private);
    assert_eq!(packets, 3 * PACKETS, "{said}");

    // Whoever records with both halves has it all repaired, and reads it.
    let whole = format!("key_file: {}\n", private.display());
    let fourth = recorded(&site, 3, &whole);
    let (packets, _, said) = answer(&site, |args| fourth.ask("query", args));
    assert_eq!(packets, 4 * PACKETS, "{said}");
    assert!(fourth.terminate().success());
}

#[test]
fn a_start_without_kms_seals_one_way_and_the_private_key_in_kms_opens_it() {
    let Some(aws) = Aws::start() else { return };
    let (key, (sealing, public)) = (aws.create_key(), aws.create_rsa_key());
    let site = Site::with_kms_key(&aws, &key);
    let pem = site.file("seal.pem");
    fs::write(&pem, public).expect("a PEM file");
    // Epochs of a second, so that the service is asked all the time.
    let seal = format!(
        "kms:\n  epoch_age: 1s\n  epochs_ahead: 2\n  when_exhausted: seal\n  \
         when_revoked: seal\n  public_key: {}\n  public_key_of: {sealing}\n",
        pem.display()
    );
    let state = |recorder: &Recorder| recorder.status()["key"].clone();
    let first = recorded(&site, 0, &seal);
    assert_eq!(state(&first)["one_way"], Value::Null);
    aws.change_key("DisableKey", &key);
    let sealed = wait_for("it seals", PATIENCE, || {
        let key = state(&first);
        (key["one_way"] != Value::Null).then_some(key)
    });
    assert_eq!((&sealed["condition"], &sealed["stopped"]), (&"revoked".into(), &false.into()));
    assert!(sealed["one_way"].to_string().contains(&sealing), "{sealed}");
    assert!(first.terminate().success());

    let second = recorded(&site, 1, &seal);
    assert_ne!(state(&second)["one_way"], Value::Null);
    let (packets, code, said) = answer(&site, |args| second.ask("query", args));
    assert_eq!((packets, code), (PACKETS, Some(3)), "{said}");
    assert!(second.terminate().success());
    aws.set_faults(&json!([{"op": "*", "code": "KMSInternalException", "status": 500,
                            "count": ALWAYS}]));
    let third = recorded(&site, 2, &seal);
    assert!(third.terminate().success());

    aws.set_faults(&json!([]));
    let (packets, _, said) = answer(&site, |args| site.offline("query", args));
    assert_eq!(packets, 3 * PACKETS, "the RSA key is enabled: {said}");
    aws.change_key("DisableKey", &sealing);
    let (packets, code, said) = answer(&site, |args| site.offline("query", args));
    assert_eq!((packets, code), (0, Some(3)), "{said}");
}

#[test]
fn what_a_recorder_without_the_private_key_made_moves_to_the_tier_and_the_rest_is_told() {
    let (site, private) = Site::sealed_one_way();
    let tier = site.file("tier");
    fs::create_dir(&tier).expect("a folder");
    let rules = format!(
        "tier:\n  url: file://{}\n  keep_local: false\nretention:\n  - name: cold\n    \
         action: tier\n",
        tier.display()
    );
    // What this one records stays, and the next one has no key to it.
    assert!(recorded(&site, 0, "").terminate().success());
    let recorder = recorded(&site, 1, &rules);
    let socket = text(recorder.socket());
    let tiered = |status: &Value| {
        (status["tier"]["segments"] == 1).then(|| status["tier"]["trouble"].clone())
    };
    let trouble = wait_for("one segment moves, and the other is told", PATIENCE, || {
        wirevault(&["lifecycle", "apply", "--socket", &socket]);
        tiered(&recorder.status()).filter(|trouble| !trouble.is_null())
    });
    assert!(trouble.to_string().contains("key"), "{trouble}");
    assert!(recorder.terminate().success());
    let (packets, code, said) = with_key(&site, &private);
    assert_eq!((packets, code), (2 * PACKETS, Some(0)), "{said}");
}
