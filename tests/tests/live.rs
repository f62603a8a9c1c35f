//! The recorder on a live interface: what was sent is what was received, stored and found again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use wirevault_testkit::net::{Namespace, Sender, Stamp, now_ns, received, wait_for};
use wirevault_tests::recorder::{
    Exported, PATIENCE, Recorder, Site, counted, lane_count, read_pcap, read_pcapng,
};

const OPTIONS: &str = "    ring: 32MiB\nbuffer:\n  size: 16MiB\n";

/// Packets of all sizes, flows and tags, numbered from 0.
fn stamp(run: u16, number: u64) -> Stamp {
    let bytes = [70, 71, 200, 594, 1400, 1514][number as usize % 6];
    let tag = 0x2000 | ((number % 4000) as u16 + 1);
    let vlan = if number.is_multiple_of(5) { tag } else { 0 };
    let flow = 1000 + (number % 97) as u16;
    Stamp { run, number, sent_ns: now_ns(), flow, bytes, vlan }
}

fn send(interface: &str, run: u16, packets: u64) -> Vec<Stamp> {
    let mut sender = Sender::on(interface);
    let mut sent = Vec::new();
    for number in 0..packets {
        let stamp = stamp(run, number);
        sender.send(&stamp.frame());
        sent.push(stamp);
        // About 50 000 a second: far below what the ring holds while a busy machine pauses.
        if number % 500 == 499 {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    sent
}

fn wait_until_stored(recorder: &Recorder, packets: u64) -> Value {
    wait_for("everything is stored", PATIENCE, || {
        let status = recorder.status();
        (lane_count(&status, "stored") >= packets).then_some(status)
    })
}

/// Asks the recorder for packets and for what the answer says of itself.
fn query(site: &Site, recorder: &Recorder, args: &[&str]) -> (Vec<Exported>, Value) {
    let (file, summary) = (site.file("answer.pcapng"), site.file("summary.json"));
    let paths = ["-w", path(&file), "--summary", path(&summary)];
    let output = recorder.ask("query", &[args, &paths].concat());
    let known = [Some(0), Some(1), Some(3)];
    assert!(known.contains(&output.status.code()), "{output:?}");
    let text = std::fs::read(&summary).expect("summary");
    (read_pcapng(&file), serde_json::from_slice(&text).expect("a summary is JSON"))
}

fn path(path: &Path) -> &str {
    path.to_str().expect("the folder has a plain name")
}

/// tcpdump beside the recorder, with the classic file format and nanoseconds.
struct Tcpdump {
    program: Child,
    file: PathBuf,
}

impl Tcpdump {
    fn start(interface: &str, file: &Path, filter: &str) -> Self {
        let nano = "--time-stamp-precision=nano";
        let args = ["-i", interface, "-n", "-B", "65536", nano, "-Z", "root", "-U", "-w"];
        let mut command = Command::new("tcpdump");
        command.args(args).arg(file).arg(filter).stderr(Stdio::null());
        let program = command.spawn().expect("tcpdump");
        // It writes the file's header when its socket is open.
        wait_for("tcpdump", PATIENCE, || {
            std::fs::metadata(file).ok().filter(|facts| facts.len() >= 24)
        });
        Self { program, file: file.to_owned() }
    }

    /// What it captured, once that is as many bytes as these packets make.
    fn end(mut self, packets: &[Exported]) -> Vec<Exported> {
        let records = packets.iter().map(|packet| 16 + packet.data.len() as u64);
        let bytes = 24 + records.sum::<u64>();
        wait_for("tcpdump's packets", PATIENCE, || {
            std::fs::metadata(&self.file).ok().filter(|facts| facts.len() >= bytes)
        });
        kill(Pid::from_raw(self.program.id().cast_signed()), Signal::SIGINT).expect("SIGINT");
        self.program.wait().expect("tcpdump's end");
        read_pcap(&self.file)
    }
}

#[test]
fn what_was_sent_is_received_stored_and_found_once() {
    const PACKETS: u64 = 30_000;
    const FILTER: &str = "udp src portrange 1000-1030 or (vlan and udp src portrange 1000-1030)";
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    let site = Site::new("512MiB", 1);
    let recorder = site.record("va", OPTIONS);
    let tcpdump = Tcpdump::start("va", &site.file("tcpdump.pcap"), FILTER);

    let sent = send("vb", 0, PACKETS);
    let status = wait_until_stored(&recorder, PACKETS);
    let counts = ["received", "stored", "dropped", "shed", "in_flight"];
    let counts = counts.map(|field| lane_count(&status, field));
    assert_eq!(counts, [PACKETS, PACKETS, 0, 0, 0], "{status}");
    assert_eq!(lane_count(&status, "watermark"), PACKETS);
    assert_eq!(lane_count(&status, "cut"), 0);

    // The segment is still open.
    let (found, summary) = query(&site, &recorder, &[]);
    let once: BTreeMap<Stamp, u32> = sent.iter().map(|stamp| (*stamp, 1)).collect();
    assert_eq!(counted(&found), once);
    assert_eq!(found.len() as u64, PACKETS);
    assert!(found.iter().all(|packet| packet.wire_len as usize == packet.data.len()));
    assert_eq!(summary["packets"], PACKETS);
    assert_eq!(summary["complete"], true, "{summary}");

    let (mut ours, _) = query(&site, &recorder, &[FILTER]);
    let mut theirs = tcpdump.end(&ours);
    assert!(theirs.len() > PACKETS as usize / 4, "tcpdump saw {}", theirs.len());
    ours.sort_unstable();
    theirs.sort_unstable();
    assert_eq!(ours.len(), theirs.len());
    assert!(ours == theirs, "times, lengths and bytes as tcpdump beside us has them");

    let begin = Instant::now();
    assert!(recorder.terminate().success());
    println!(
        "{PACKETS} packets, {} by tcpdump's filter; {:?} to end",
        theirs.len(),
        begin.elapsed()
    );
    let verify = site.offline("verify", &[]);
    assert_eq!(verify.status.code(), Some(0), "{verify:?}");
    let file = site.file("closed.pcapng");
    let output = site.offline("query", &["-w", path(&file)]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(
        counted(&read_pcapng(&file)),
        once,
        "the closed segment holds what the open one did"
    );
}

/// Sends to `va` in bursts, and waits each time for the kernel's thread that empties the veth
/// pair's own queue of 256.
fn send_slowly(interface: &str, run: u16, packets: u64) -> BTreeMap<Stamp, u32> {
    let mut sender = Sender::on(interface);
    let (mut sent, before) = (BTreeMap::new(), received("va"));
    for number in 0..packets {
        let stamp = stamp(run, number);
        sender.send(&stamp.frame());
        sent.insert(stamp, 1);
        if number % 32 == 31 {
            let all = before + number + 1;
            wait_for("the pair is empty", PATIENCE, || (received("va") >= all).then_some(()));
        }
    }
    sent
}

fn has_program(interface: &str) -> bool {
    let link = Command::new("ip").args(["link", "show", interface]).output().expect("ip");
    String::from_utf8_lossy(&link.stdout).contains("prog/xdp")
}

fn notes(status: &Value) -> String {
    status["lanes"][0]["notes"].to_string()
}

#[test]
fn af_xdp_records_what_was_sent_and_leaves_nothing_behind_when_killed() {
    const PACKETS: u64 = 700;
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    let site = Site::new("512MiB", 1);
    let mut sent = BTreeMap::new();
    for run in 0..2 {
        let busy = ["", "    busy_poll: true\n"][usize::from(run)];
        let recorder = site.record("va", &format!("    source: af_xdp\n{busy}{OPTIONS}"));
        assert!(has_program("va"));
        sent.extend(send_slowly("vb", run, PACKETS));
        let status = wait_until_stored(&recorder, PACKETS);
        let counts = ["received", "stored", "dropped", "in_flight"];
        let counts = counts.map(|field| lane_count(&status, field));
        assert_eq!(counts, [PACKETS, PACKETS, 0, 0], "{status}");
        assert_eq!(status["lanes"][0]["source"], "af_xdp");
        assert_eq!(status["lanes"][0]["clocks"].to_string(), r#"["xdp"]"#);
        let told = notes(&status);
        for part in ["af_xdp, as configured", "(native)", "no zero-copy", "sends are not seen"] {
            assert!(told.contains(part), "{part} is not in {told}");
        }
        assert_eq!(told.contains("busy polling is on"), run == 1, "{told}");
        let (found, _) = query(&site, &recorder, &[]);
        assert_eq!(counted(&found), sent, "run {run}");
        recorder.kill();
        assert!(!has_program("va"), "the program went with the process");
    }
}

#[test]
fn without_zero_copy_a_packet_socket_is_taken_and_either_source_selects_ports() {
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    let ethtool = Command::new("ethtool").args(["-K", "va", "rxvlan", "off"]).status();
    assert!(ethtool.expect("ethtool").success());
    for (config, source, why) in [
        ("", "packet_mmap", "packet_mmap, because its driver has no zero-copy"),
        ("    source: af_xdp\n", "af_xdp", "af_xdp, as configured"),
        ("    source: packet_mmap\n", "packet_mmap", "packet_mmap, as configured"),
    ] {
        // Ports 20000 and 20002 of runs 0 and 2, not 20001 of run 1.
        let ports = "    udp_ports: [20000, 20002]\n";
        let site = Site::new("512MiB", 1);
        let recorder = site.record("va", &format!("{config}{ports}{OPTIONS}"));
        let mut sent = BTreeMap::new();
        for run in 0..3 {
            let stamps = send_slowly("vb", run, 100);
            sent.extend(stamps.into_iter().filter(|(stamp, _)| run != 1 && stamp.vlan == 0));
        }
        let status = wait_until_stored(&recorder, sent.len() as u64);
        assert_eq!(status["lanes"][0]["source"], source, "{status}");
        assert!(notes(&status).contains(why), "{status}");
        let (found, _) = query(&site, &recorder, &["not vlan"]);
        assert_eq!(counted(&found), sent, "{source}");
        assert!(recorder.terminate().success());
    }
}

#[test]
fn a_card_without_time_stamps_is_refused_by_name() {
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    let site = Site::new("512MiB", 1);
    let refused = site.refuse(&site.config("va", "    hardware_time: true\n"));
    let (status, log) = (refused.status, String::from_utf8_lossy(&refused.stderr));
    assert_eq!(status.code(), Some(6), "{log}");
    for part in ["interface va", "does not stamp received packets", "ethtool -T va"] {
        assert!(log.contains(part), "{part} is not in {log}");
    }
}

#[test]
fn a_packet_is_found_soon_after_it_arrived() {
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    let site = Site::new("512MiB", 1);
    let recorder = site.record("va", OPTIONS);
    let mut sender = Sender::on("vb");
    let (mut longest, mut question) = (Duration::ZERO, Duration::ZERO);
    for run in 0..5 {
        let stamp = stamp(run, 1);
        sender.send(&stamp.frame());
        let begin = Instant::now();
        let filter = format!("udp dst port {}", Stamp::port(run));
        let found = wait_for("the packet", PATIENCE, || {
            let asked = Instant::now();
            let (found, _) = query(&site, &recorder, &[&filter]);
            question = asked.elapsed();
            (!found.is_empty()).then_some(found)
        });
        longest = longest.max(begin.elapsed());
        assert_eq!(counted(&found), BTreeMap::from([(stamp, 1)]));
    }
    println!("found again after {longest:?} at most; promised are 2 s");
    println!("the last question alone, with the start of its process, took {question:?}");
    assert!(recorder.terminate().success());
}

#[test]
fn an_interface_that_was_down_is_a_gap_with_that_window() {
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    let site = Site::new("512MiB", 1);
    let recorder = site.record("va", OPTIONS);
    send("vb", 0, 100);
    wait_until_stored(&recorder, 100);
    let before_ns = now_ns();
    ns.ip(&["link", "set", "va", "down"]);
    let state = |name: &'static str| {
        wait_for(name, PATIENCE, || {
            let status = recorder.status();
            (status["lanes"][0]["state"] == name).then_some(status)
        })
    };
    state("interface_down");
    std::thread::sleep(Duration::from_millis(300));
    let up_ns = now_ns();
    ns.ip(&["link", "set", "va", "up"]);
    ns.wait_for_carrier(&["va", "vb"]);
    state("running");
    let after_ns = now_ns();
    send("vb", 1, 100);
    wait_until_stored(&recorder, 200);

    let (found, summary) = query(&site, &recorder, &[]);
    assert_eq!(counted(&found).len(), 200);
    assert_eq!(summary["complete"], false, "{summary}");
    let gaps = summary["gaps"].as_array().expect("gaps");
    let down: Vec<_> = gaps.iter().filter(|gap| gap["cause"] == "interface_down").collect();
    assert_eq!(down.len(), 1, "{summary}");
    let (from_ns, until_ns) = (down[0]["from"]["ns"].as_u64(), down[0]["until"]["ns"].as_u64());
    let (from_ns, until_ns) = (from_ns.expect("from"), until_ns.expect("until"));
    // The lane looks at its interface ten times a second; the window is never too small.
    let slack_ns = 5_000_000_000;
    assert!(from_ns <= before_ns + slack_ns && from_ns + slack_ns >= before_ns, "{summary}");
    assert!(until_ns >= up_ns && until_ns <= after_ns + slack_ns, "{summary}");
    assert_eq!(down[0]["lane"], 0);
    assert!(down[0]["packets"].is_null(), "nobody can count what came while it was down");

    // Beside the gap the answer is complete.
    let until = format!("@{}.{:09}", before_ns / 1_000_000_000, before_ns % 1_000_000_000);
    let first_run = "udp dst port 20000 or (vlan and udp dst port 20000)";
    let (found, summary) = query(&site, &recorder, &["--until", &until, first_run]);
    assert_eq!(counted(&found).len(), 100);
    let only_down = summary["gaps"].as_array().expect("gaps").is_empty();
    assert!(only_down || from_ns < before_ns, "{summary}");
    assert!(recorder.terminate().success());
}

#[test]
fn sigterm_drains_what_has_arrived() {
    const PACKETS: u64 = 20_000;
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    let site = Site::new("512MiB", 1);
    // Without the signal the chunk would wait for ten seconds.
    let recorder = site.record("va", &format!("{OPTIONS}flush_age: 10s\ncommit_interval: 10s\n"));
    let sent = send("vb", 0, PACKETS);
    assert!(recorder.terminate().success());
    let file = site.file("closed.pcapng");
    let output = site.offline("query", &["-w", path(&file)]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let once: BTreeMap<Stamp, u32> = sent.iter().map(|stamp| (*stamp, 1)).collect();
    assert_eq!(counted(&read_pcapng(&file)), once);
    let segments = site.offline("segments", &["--json"]);
    let segments: Value = serde_json::from_slice(&segments.stdout).expect("JSON");
    let rows = segments.as_array().expect("a list");
    assert!(!rows.is_empty() && rows.iter().all(|row| row["state"] == "closed"), "{segments}");
}
