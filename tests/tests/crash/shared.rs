//! Two machines and one device: the first is stopped under load, the second takes over, and only
//! then the first goes on.

use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use wirevault_testkit::certificates::{Authority, Pair, Wish};
use wirevault_testkit::net::{Namespace, wait_for};
use wirevault_tests::recorder::{
    PATIENCE, Recorder, Site, lane_count, nothing_is_damaged, program,
};

use crate::load::{Load, check};

/// Segments of 16 MiB; nothing goes for the quota.
const DEVICE_BYTES: u64 = 2 << 30;
/// What a fenced recorder exits with.
const FENCED: i32 = 7;

/// Packets acknowledged, once there are some.
fn acknowledged(recorder: &Recorder, more_than: u64) -> u64 {
    wait_for("an acknowledgement", PATIENCE, || {
        let watermark = lane_count(&recorder.try_status()?, "watermark");
        Some(watermark).filter(|watermark| *watermark > more_than)
    })
}

/// The status of a machine once it writes the volume.
fn writing(recorder: &Recorder) -> Value {
    wait_for("the take-over", 2 * PATIENCE, || {
        recorder.try_status().filter(|status| status["state"] == "recording")
    })
}

/// What systemd would be told by both, by a unit with a watchdog of 30 s.
fn supervised(site: &mut Site) -> Arc<Mutex<Vec<String>>> {
    let path = site.file("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    site.set_environment(vec![
        ("NOTIFY_SOCKET", path.display().to_string()),
        ("WATCHDOG_USEC", "30000000".to_owned()),
    ]);
    let told = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&told);
    // It ends with the test.
    thread::spawn(move || {
        let mut message = [0; 512];
        while let Ok(length) = socket.recv(&mut message) {
            let message = String::from_utf8_lossy(&message[..length]).into_owned();
            heard.lock().expect("a list").push(message);
        }
    });
    told
}

/// A recovery longer than the watchdog's time was ended by it, again and again.
fn the_watchdog_waits_for_a_take_over(told: &Mutex<Vec<String>>) {
    let told = told.lock().expect("a list");
    let at = |wanted: &[&str]| {
        let has_all = |it: &String| wanted.iter().all(|wanted| it.contains(wanted));
        told.iter().rposition(has_all).unwrap_or_else(|| panic!("{wanted:?} is not in {told:?}"))
    };
    let taking_over = at(&["STATUS=taking over", "WATCHDOG_USEC=900000000"]);
    assert!(taking_over < at(&["STATUS=recording", "WATCHDOG_USEC=30000000"]), "{told:?}");
}

#[test]
fn a_stopped_writer_is_taken_over_and_nothing_of_it_is_lost_or_comes_late() {
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    let mut site = Site::shared(DEVICE_BYTES);
    let told = supervised(&mut site);
    let mut first = site.on_machine("first", "va", "");
    let shared = writing(&first)["shared"].clone();
    assert_eq!((&shared["epoch"], &shared["protection"]), (&2.into(), &"lease".into()), "{shared}");
    assert!(shared["why_no_reservation"].is_string(), "a file has none: {shared}");
    let second = site.on_machine("second", "va", "standby: true\n");
    let shared = second.status();
    assert_eq!((&shared["state"], &shared["shared"]["writes"]), (&"standby".into(), &false.into()));
    assert_eq!(shared["shared"]["holder"], "first");
    let refused = second.ask("tail", &[]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("stands by"), "{refused:?}");

    let load = Load::start(0);
    let promised = acknowledged(&first, 5000);
    // What stands by answers what the other one records.
    check(&site, &second, 0, promised, u64::MAX);
    let promised = acknowledged(&first, promised);
    kill(first.pid(), Signal::SIGSTOP).expect("SIGSTOP");
    let sent = load.stop();
    let shared = writing(&second)["shared"].clone();
    assert_eq!((&shared["epoch"], &shared["holder"]), (&3.into(), &"second".into()), "{shared}");
    the_watchdog_waits_for_a_take_over(&told);
    let again = Load::start(1);
    acknowledged(&second, 5000);
    kill(first.pid(), Signal::SIGCONT).expect("SIGCONT");
    let ended = wait_for("the end of the first", 2 * PATIENCE, || first.ended());
    assert_eq!(ended.code(), Some(FENCED), "{}", first.log());
    assert!(first.log().contains("second took over with epoch 3"), "{}", first.log());
    let promised_again = acknowledged(&second, 10_000);
    let sent_again = again.stop();

    let (found, _) = check(&site, &second, 0, promised, sent);
    let (found_again, _) = check(&site, &second, 1, promised_again, sent_again);
    println!("first: {promised} acknowledged, {found} found; second: {found_again} found");
    // The first machine comes back, and stands by.
    let third = site.on_machine("first", "va", "");
    assert_eq!(third.status()["state"], "standby");
    assert_eq!(check(&site, &third, 0, promised, sent).0, found);
    assert!(second.terminate().success());
    // The other one said that it has ended: nobody waits for its beats.
    assert_eq!(writing(&third)["shared"]["epoch"], 4);
    assert_eq!(check(&site, &third, 0, promised, sent).0, found);
    check(&site, &third, 1, promised_again, sent_again);
    assert!(third.terminate().success());
    let verified = site.offline("verify", &["--json"]);
    nothing_is_damaged(&String::from_utf8_lossy(&verified.stdout));
}

/// What was changed while it stood by took a new start, which nobody was told but its log.
#[test]
fn a_machine_took_over_with_the_rules_and_revocations_that_it_began_to_stand_by_with() {
    const LISTEN: &str = "127.0.0.1:8443";
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    ns.ip(&["link", "set", "lo", "up"]);
    let site = Site::shared(DEVICE_BYTES);
    let (authority, list) = (Authority::new("Fleet"), site.file("clients.crl"));
    authority.write(&site.file("ca.pem"));
    authority.revoke(&list, &[], false);
    let [server, alice, bob, carol] = ["server", "alice", "bob", "carol"].map(|name| {
        let wish = Wish { name, alternatives: &["127.0.0.1"], ..Wish::default() };
        authority.issue(&site.file(""), &wish)
    });
    let is_let_in = |pair: &Pair| {
        let mut status = Command::new(program("wirevault"));
        status.args(["status", "--json", "--connect", LISTEN, "--ca"]).arg(site.file("ca.pem"));
        status.arg("--cert").arg(&pair.certificate).arg("--key").arg(&pair.key);
        let output = status.output().expect("wirevault");
        String::from_utf8_lossy(&output.stdout).contains("\"state\"")
    };
    let first = site.on_machine("first", "va", "");
    writing(&first);
    let api = format!(
        "  tls:\n    listen: {LISTEN}\n    certificate: {}\n    key: {}\n    client_ca: {}\n    \
         crl: {}\n  access:\n    - {{certificates: ['cn:alice', 'cn:bob'], role: status}}\n\
         standby: true\n",
        server.certificate.display(),
        server.key.display(),
        site.file("ca.pem").display(),
        list.display()
    );
    let second = site.on_machine("second", "va", &api);
    assert_eq!(second.status()["state"], "standby");
    assert_eq!([&alice, &bob, &carol].map(is_let_in), [true, true, false]);

    authority.revoke(&list, &[bob.serial], false);
    let file = site.file("second.yaml");
    let text = std::fs::read_to_string(&file).expect("its configuration");
    std::fs::write(&file, text.replace("'cn:bob'", "'cn:bob', 'cn:carol'")).expect("written");
    kill(second.pid(), Signal::SIGHUP).expect("SIGHUP");
    wait_for("the new rule", PATIENCE, || is_let_in(&carol).then_some(()));
    assert!(!is_let_in(&bob), "he was revoked");
    assert_eq!(second.status()["state"], "standby");
    // What takes a new start is refused as a whole.
    std::fs::write(&file, text.replace("standby: true", "standby: false")).expect("written");
    kill(second.pid(), Signal::SIGHUP).expect("SIGHUP");
    wait_for("a refusal", PATIENCE, || {
        second.log().contains("another configuration was refused").then_some(())
    });
    assert!(first.terminate().success());
    writing(&second);
    assert_eq!([&alice, &bob, &carol].map(is_let_in), [true, false, true]);
    assert!(second.terminate().success());
}
