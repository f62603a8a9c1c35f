//! Two machines and one device: the first is stopped under load, the second takes over, and only
//! then the first goes on.

use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};
use std::thread;

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use wirevault_testkit::net::{Namespace, wait_for};
use wirevault_tests::recorder::{PATIENCE, Recorder, Site, lane_count, nothing_is_damaged};

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
