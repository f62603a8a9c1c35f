//! The audit log of a real recorder: who asked what, and that nobody can change it unseen.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use wirevault_testkit::net::{Namespace, Sender, wait_for};
use wirevault_tests::recorder::{PATIENCE, Recorder, Site, lane_count, program};

const OPTIONS: &str = "    ring: 8MiB\nbuffer:\n  size: 8MiB\n";
const PACKETS: u64 = 100;

/// A recorder in a namespace with this many packets, all durable.
fn recorded(ns: &Namespace) -> (Site, Recorder) {
    ns.add_veth("va", "vb");
    let site = Site::new("272MiB", 1);
    let recorder = site.record("va", OPTIONS);
    let mut sender = Sender::on("vb");
    (0..PACKETS).for_each(|number| sender.send(&frame(number)));
    wait_for("everything is stored", PATIENCE, || {
        (lane_count(&recorder.status(), "stored") == PACKETS).then_some(())
    });
    (site, recorder)
}

/// An Ethernet frame of an experimental type.
fn frame(number: u64) -> Vec<u8> {
    let head = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5];
    [&head[..], &number.to_be_bytes(), &[0; 64]].concat()
}

fn entries(site: &Site) -> Vec<Value> {
    let output = site.offline_of("audit", "show", &["--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn verify(site: &Site, more: &[&str]) -> (Option<i32>, String) {
    let output = site.offline_of("audit", "verify", more);
    (output.status.code(), String::from_utf8(output.stdout).expect("text"))
}

fn log_file(site: &Site) -> PathBuf {
    site.store().join("audit/audit-00000001.log")
}

#[test]
fn every_question_is_written_down_before_its_answer() {
    let Some(ns) = Namespace::new() else { return };
    let (site, recorder) = recorded(&ns);
    let asked = |verb: &str, args: &[&str]| recorder.ask(verb, args).status.code();
    assert!(matches!(asked("query", &["ether proto 0x88b5", "-w", "-"]), Some(0 | 3)));
    assert!(matches!(asked("flows", &["ether proto 0x88b5"]), Some(0 | 3)));
    assert_eq!(asked("query", &["tcpp"]), Some(2));
    let socket = recorder.socket().display().to_string();
    let to = ["-s", "--unix-socket", &socket, "http://localhost/v1/status"];
    let stranger = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "curl"])
        .args(to)
        .output()
        .expect("setpriv and curl");
    let said = String::from_utf8_lossy(&stranger.stdout);
    assert!(said.contains("user 65534 may not ask"), "{stranger:?}");
    assert!(recorder.terminate().success());

    let entries = entries(&site);
    let events: Vec<_> =
        entries.iter().map(|entry| entry["event"].as_str().expect("event")).collect();
    let pair = ["asked", "answered"];
    let expected = [&["started"][..], &pair, &pair, &pair, &["denied", "stopped"]].concat();
    assert_eq!(events, expected, "{entries:#?}");
    let root = serde_json::json!({"user": {"uid": 0, "gid": 0}});
    assert_eq!(entries[1]["who"], root);
    assert_eq!(entries[1]["verb"], "query");
    assert_eq!(entries[1]["question"]["filter"], "ether proto 0x88b5");
    assert_eq!((&entries[2]["asked"], &entries[2]["count"]), (&1.into(), &PACKETS.into()));
    assert!(entries[2]["bytes"].as_u64() > Some(PACKETS * 80), "{}", entries[2]);
    assert_eq!(entries[3]["verb"], "flows");
    assert_eq!(entries[6]["outcome"], "refused");
    assert_eq!(entries[7]["who"]["user"]["uid"], 65534);

    let (code, text) = verify(&site, &[]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("9 entries in 1 file") && text.contains("whole"), "{text}");
}

#[test]
fn a_changed_line_is_found_and_a_cut_log_is_known_by_its_head() {
    let Some(ns) = Namespace::new() else { return };
    let (site, recorder) = recorded(&ns);
    recorder.ask("query", &["udp port 53"]);
    recorder.kill();
    // A killed recorder leaves a whole log that its successor goes on with.
    let heads = site.file("heads").display().to_string();
    let recorder = site.record("va", &format!("{OPTIONS}audit:\n  anchor: {heads}\n"));
    assert!(recorder.terminate().success());
    let (code, text) = verify(&site, &["--anchor", &heads]);
    assert_eq!(code, Some(0), "{text}");
    let head = text.split("head ").nth(1).expect("head")[..64].to_owned();
    assert_eq!(verify(&site, &["--head", &head]).0, Some(0));

    let whole = fs::read_to_string(log_file(&site)).expect("the log");
    fs::write(log_file(&site), whole.replace("udp port 53", "udp port 54")).expect("written");
    let (code, text) = verify(&site, &[]);
    assert_eq!(code, Some(3), "{text}");
    assert!(text.contains("line 2") && text.contains("not what was written"), "{text}");

    let kept: String = whole.split_inclusive('\n').take(2).collect();
    fs::write(log_file(&site), kept).expect("written");
    assert_eq!(verify(&site, &[]).0, Some(0), "a chain that ends early is a chain");
    let (code, text) = verify(&site, &["--head", &head]);
    assert_eq!(code, Some(3), "{text}");
    assert!(text.contains("cut off or written anew"), "{text}");
    let (code, text) = verify(&site, &["--anchor", &heads]);
    assert_eq!(code, Some(3), "{text}");
    assert!(text.contains("entry 2 is missing, and all up to"), "{text}");
    let (code, _) = verify(&site, &["--head", "12"]);
    assert_eq!(code, Some(2));
}

#[test]
fn what_cannot_be_written_down_is_not_answered_and_recording_goes_on() {
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    let site = Site::new("272MiB", 1);
    let folder = site.store().join("audit");
    fs::create_dir(&folder).expect("a folder");
    let small = Mounted::tmpfs(&folder);
    let recorder = site.record("va", OPTIONS);
    fs::write(folder.join("filler"), vec![0; 64 << 10]).expect_err("it is full");
    // What is left of the newest page takes a few lines.
    let refused = wait_for("a question that is not answered", PATIENCE, || {
        let output = recorder.ask("query", &["udp"]);
        (output.status.code() == Some(2)).then_some(output)
    });
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("cannot be written down") && said.contains("audit"), "{said}");
    let status = recorder.status();
    assert_eq!(status["state"], "degraded", "{status}");
    let mut sender = Sender::on("vb");
    (0..PACKETS).for_each(|number| sender.send(&frame(number)));
    wait_for("everything is stored", PATIENCE, || {
        (lane_count(&recorder.status(), "stored") == PACKETS).then_some(())
    });

    fs::remove_file(folder.join("filler")).expect("room again");
    assert!(matches!(recorder.ask("query", &["udp"]).status.code(), Some(0 | 1 | 3)));
    assert!(recorder.terminate().success());
    assert_eq!(verify(&site, &[]).0, Some(0), "what was not written is not there in part either");
    drop(small);
}

/// A file system of 32 KiB; gone when this is.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(at: &std::path::Path) -> Self {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=32k", "tmpfs"]).arg(at);
        assert!(mount.status().expect("mount").success());
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// The next start would look for the log in the new volume.
#[test]
fn the_volume_with_the_log_is_not_replaced_while_it_is_written() {
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    let site = Site::new("544MiB", 2);
    let recorder = site.record("va", OPTIONS);
    let new = site.file("new");
    fs::create_dir(&new).expect("a directory");
    let refused = |number: &str| {
        let mut command = Command::new(program("wirevault"));
        command.args(["volume", "replace", number]).arg(&new).args(["--yes", "--socket"]);
        let output = command.arg(recorder.socket()).output().expect("wirevault");
        assert!(!output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).expect("text")
    };
    let said = refused("0");
    assert!(said.contains("the audit log lies in") && said.contains("--store"), "{said}");
    let said = refused("1");
    assert!(said.contains("works"), "nothing else is wrong with another one: {said}");
    assert!(recorder.terminate().success());
}
