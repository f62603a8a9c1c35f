//! PCAP-over-IP with the programs that speak it: tcpdump and dumpcap send, tshark, dumpcap and
//! tcpdump receive.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use wirevault_format::pcapng::{BLOCK_EPB, Blocks};
use wirevault_testkit::net::{Namespace, Sender, Stamp, now_ns, wait_for};
use wirevault_tests::recorder::{
    Exported, PATIENCE, Recorder, Site, counted, lane_count, read_pcap, read_pcapng,
    wait_until_it_records,
};

/// Where senders and clients meet, in a namespace of the test's own.
const PLACE: &str = "127.0.0.1:57012";
const BUFFER: &str = "buffer:\n  size: 16MiB\n";

fn namespace() -> Option<Namespace> {
    let ns = Namespace::new()?;
    ns.ip(&["link", "set", "lo", "up"]);
    ns.add_veth("va", "vb");
    Some(ns)
}

fn send(run: u16, packets: u64, bytes: Option<u16>) -> Vec<Stamp> {
    let mut sender = Sender::on("vb");
    let mut sent = Vec::new();
    for number in 0..packets {
        let bytes = bytes.unwrap_or([70, 71, 200, 594, 1400, 1514][number as usize % 6]);
        let vlan = if number.is_multiple_of(5) { 0x2007 } else { 0 };
        let flow = 1000 + (number % 97) as u16;
        let stamp = Stamp { run, number, sent_ns: now_ns(), flow, bytes, vlan };
        sender.send(&stamp.frame());
        sent.push(stamp);
        if number % 500 == 499 {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    sent
}

fn once(sent: &[Stamp]) -> BTreeMap<Stamp, u32> {
    sent.iter().map(|stamp| (*stamp, 1)).collect()
}

fn interrupt(child: &Child) {
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).expect("SIGINT");
}

/// A program whose output goes to `PLACE` over TCP, as `PROGRAM | nc HOST PORT`, and into a file.
struct Piped {
    program: Child,
    pump: JoinHandle<()>,
    copy: PathBuf,
}

impl Piped {
    fn start(program: &str, args: &[&str], copy: PathBuf) -> Self {
        let mut command = Command::new(program);
        command.args(args).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut program = command.spawn().expect("a program that captures");
        let mut from = program.stdout.take().expect("its output");
        let mut to = TcpStream::connect(PLACE).expect("the recorder listens");
        let mut file = File::create(&copy).expect("file");
        let pump = std::thread::spawn(move || {
            let mut piece = vec![0; 64 << 10];
            loop {
                match from.read(&mut piece).expect("output") {
                    0 => break,
                    count => {
                        file.write_all(&piece[..count]).expect("file");
                        to.write_all(&piece[..count]).expect("the recorder takes all");
                    }
                }
            }
        });
        Self { program, pump, copy }
    }

    /// Everything that it sent.
    fn end(mut self) -> PathBuf {
        std::thread::sleep(Duration::from_millis(1500));
        interrupt(&self.program);
        self.program.wait().expect("its end");
        self.pump.join().expect("all is sent");
        self.copy
    }
}

fn wait_for_lane(recorder: &Recorder, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    wait_for(what, PATIENCE, || {
        let status = recorder.status();
        is(&status["lanes"][0]).then_some(status)
    })
}

fn note(lane: &Value) -> &str {
    lane["notes"][0].as_str().unwrap_or_default()
}

fn wait_until_stored(recorder: &Recorder, packets: u64) {
    wait_for_lane(recorder, "everything is stored", |lane| {
        lane["stored"].as_u64() >= Some(packets)
    });
}

fn path(path: &Path) -> &str {
    path.to_str().expect("the folder has a plain name")
}

fn query(site: &Site, recorder: &Recorder, args: &[&str]) -> (Vec<Exported>, Value) {
    let (file, summary) = (site.file("answer.pcapng"), site.file("summary.json"));
    let paths = ["-w", path(&file), "--summary", path(&summary)];
    let output = recorder.ask("query", &[args, &paths].concat());
    assert!([Some(0), Some(3)].contains(&output.status.code()), "{output:?}");
    let text = std::fs::read(&summary).expect("summary");
    (read_pcapng(&file), serde_json::from_slice(&text).expect("a summary is JSON"))
}

#[test]
fn what_tcpdump_and_dumpcap_send_is_stored_as_they_captured_it() {
    const PACKETS: u64 = 5000;
    let Some(_ns) = namespace() else { return };
    let site = Site::new("512MiB", 1);
    let recorder = site.record_from(&format!("pcap_over_ip:\n  - listen: {PLACE}\n{BUFFER}"));
    let status = wait_for_lane(&recorder, "it waits", |lane| lane["state"] == "waiting");
    let lane = &status["lanes"][0];
    assert!(note(lane).starts_with("waiting for a sender on 127.0.0.1:57012"), "{status}");
    assert_eq!((&lane["source"], &lane["interface"]), (&"pcap_over_ip".into(), &PLACE.into()));
    assert_eq!(status["state"], "degraded", "nothing is recorded now");

    let precise = "--time-stamp-precision=nano";
    let args =
        ["-i", "va", "-n", "-U", "-B", "65536", precise, "-Z", "root", "-w", "-", "udp or vlan"];
    let tcpdump = Piped::start("tcpdump", &args, site.file("tcpdump.pcap"));
    let status = wait_for_lane(&recorder, "its header", |lane| {
        note(lane).ends_with("stream 1, pcap") && lane["state"] == "running"
    });
    assert!(note(&status["lanes"][0]).starts_with("connected to 127.0.0.1:"), "{status}");
    wait_until_it_records(&recorder);
    let mut sent = send(0, PACKETS, None);
    let before_ns = now_ns();
    wait_until_stored(&recorder, PACKETS);
    let (found, _) = query(&site, &recorder, &[]);
    assert_eq!(counted(&found), once(&sent), "while it is connected");
    let captured = read_pcap(&tcpdump.end());
    assert!(found == captured, "times, lengths and bytes in the order of the stream");
    wait_for_lane(&recorder, "it waits again", |lane| lane["state"] == "waiting");

    let args = ["-q", "-i", "va", "-B", "16", "-w", "-"];
    let dumpcap = Piped::start("dumpcap", &args, site.file("dumpcap.pcapng"));
    wait_for_lane(&recorder, "its header", |lane| note(lane).ends_with("stream 2, pcapng"));
    let more = send(1, PACKETS, None);
    wait_until_stored(&recorder, 2 * PACKETS);
    let captured = read_pcapng(&dumpcap.end());
    assert_eq!(captured.len() as u64, PACKETS);
    wait_for_lane(&recorder, "it waits again", |lane| lane["state"] == "waiting");
    let (found, summary) = query(&site, &recorder, &[]);
    assert!(found[PACKETS as usize..] == captured, "and so of pcapng");
    sent.extend(more);
    assert_eq!(counted(&found), once(&sent));
    let causes: Vec<_> = summary["gaps"].as_array().expect("gaps").iter().collect();
    assert!(
        causes.len() >= 2 && causes.iter().all(|gap| gap["cause"] == "interface_down"),
        "{summary}"
    );
    let until = format!("@{}.{:09}", before_ns / 1_000_000_000, before_ns % 1_000_000_000);
    let since =
        format!("@{}.{:09}", sent[0].sent_ns / 1_000_000_000, sent[0].sent_ns % 1_000_000_000);
    let (_, summary) = query(&site, &recorder, &["--since", &since, "--until", &until]);
    assert_eq!(summary["complete"], true, "while tcpdump was connected: {summary}");

    // A sender that lies loses its connection, and a silent one keeps nobody from ending.
    let mut liar = TcpStream::connect(PLACE).expect("the recorder listens");
    liar.write_all(b"this is no capture file at all").expect("sent");
    assert_eq!(liar.read(&mut [0; 8]).unwrap_or(0), 0, "it is hung up on");
    let status = wait_for_lane(&recorder, "it is told", |lane| !lane["error"].is_null());
    assert!(status.to_string().contains("not a pcap or pcapng"), "{status}");
    let mut silent = TcpStream::connect(PLACE).expect("the recorder listens");
    let stream = std::fs::read(site.file("tcpdump.pcap")).expect("tcpdump's file");
    silent.write_all(&stream[..stream.len() - 3]).expect("sent");
    wait_until_stored(&recorder, 3 * PACKETS - 1);
    let status = recorder.status();
    let counts = ["received", "dropped", "in_flight", "unreadable"];
    assert_eq!(counts.map(|field| lane_count(&status, field)), [3 * PACKETS - 1, 0, 0, 1]);
    assert!(recorder.terminate().success());
    let verify = site.offline("verify", &[]);
    assert_eq!(verify.status.code(), Some(0), "{verify:?}");
}

#[test]
fn a_sender_that_is_connected_to_is_recorded_under_the_name_given() {
    let Some(_ns) = namespace() else { return };
    let site = Site::new("512MiB", 1);
    let listener = TcpListener::bind(PLACE).expect("a place");
    let input = format!(
        "pcap_over_ip:\n  - connect: {PLACE}\n    interface: far0\n    filter: udp dst port 20000\n\
         capture:\n  - interface: va\n    ring: 32MiB\n{BUFFER}"
    );
    let recorder = site.record_from(&input);
    let sent = send(0, 500, None);
    let mut file = 0xa1b2_3c4d_u32.to_be_bytes().to_vec();
    file.extend([0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 1]);
    for run in [0, 1] {
        for stamp in sent.iter().filter(|stamp| stamp.vlan == 0) {
            let frame = Stamp { run, ..*stamp }.frame();
            let seconds = (stamp.sent_ns / 1_000_000_000) as u32;
            let (ns, len) = ((stamp.sent_ns % 1_000_000_000) as u32, frame.len() as u32);
            file.extend([seconds, ns, len, len].map(u32::to_be_bytes).concat());
            file.extend(frame);
        }
    }
    let (mut socket, _) = listener.accept().expect("the recorder connects");
    socket.write_all(&file).expect("sent");
    drop(socket);
    let status = wait_for("both lanes have stored all", PATIENCE, || {
        let status = recorder.status();
        let stored = |lane: usize| status["lanes"][lane]["stored"].as_u64();
        (stored(0) == Some(500) && stored(1) == Some(400)).then_some(status)
    });
    let lane = &status["lanes"][1];
    assert_eq!((&lane["received"], &lane["shed"]), (&800.into(), &400.into()), "{status}");
    let output = recorder.ask("query", &["-w", path(&site.file("all.pcapng"))]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let mut tshark = Command::new("tshark");
    tshark.arg("-r").arg(site.file("all.pcapng")).args([
        "-T",
        "fields",
        "-e",
        "frame.interface_name",
    ]);
    let names = String::from_utf8(tshark.output().expect("tshark").stdout).expect("text");
    let count = |name: &str| names.lines().filter(|line| *line == name).count();
    assert_eq!((count("va"), count("far0")), (500, 400));
    // It comes again.
    let (socket, _) = listener.accept().expect("the recorder connects again");
    drop(socket);
    assert!(recorder.terminate().success());
}

/// A running `wirevault tail --listen`, and what it says.
struct Served {
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
}

impl Served {
    fn start(recorder: &Recorder, args: &[&str]) -> Self {
        let mut command = recorder.command("tail");
        command.args(args).stderr(Stdio::piped());
        let mut child = command.spawn().expect("wirevault tail");
        let stderr: ChildStderr = child.stderr.take().expect("stderr");
        let said = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&said);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lines.lock().expect("lines").push(line);
            }
        });
        let served = Self { child, said };
        served.wait_for("serving on ");
        served
    }

    fn wait_for(&self, part: &str) -> String {
        wait_for(part, PATIENCE, || {
            let said = self.said.lock().expect("lines");
            said.iter().find(|line| line.contains(part)).cloned()
        })
    }

    fn end(mut self) -> Vec<String> {
        interrupt(&self.child);
        let status = self.child.wait().expect("its end");
        let said = self.said.lock().expect("lines").clone();
        assert!(status.success(), "{status} {said:?}");
        said
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `nc HOST PORT | tcpdump -r - -w FILE`, and what went through the pipe.
struct Netcat {
    _socket: TcpStream,
    tcpdump: Child,
    pump: JoinHandle<()>,
    stream: Arc<Mutex<Vec<u8>>>,
    file: PathBuf,
}

impl Netcat {
    /// It has begun to get the stream when this returns.
    fn start(place: &str, file: PathBuf) -> Self {
        let mut tcpdump = Command::new("tcpdump");
        let args = ["--time-stamp-precision=nano", "-Z", "root", "-r", "-", "-w"];
        tcpdump.args(args).arg(&file).stdin(Stdio::piped()).stderr(Stdio::null());
        let mut tcpdump = tcpdump.spawn().expect("tcpdump");
        let mut into = tcpdump.stdin.take().expect("stdin");
        let mut socket = TcpStream::connect(place).expect("it is served");
        let mut piece = vec![0; 64 << 10];
        socket.read_exact(&mut piece[..24]).expect("a header comes at once");
        into.write_all(&piece[..24]).expect("tcpdump reads");
        let stream = Arc::new(Mutex::new(piece[..24].to_vec()));
        let (mut from, copy) = (socket.try_clone().expect("socket"), Arc::clone(&stream));
        let pump = std::thread::spawn(move || {
            while let Ok(count @ 1..) = from.read(&mut piece) {
                into.write_all(&piece[..count]).expect("tcpdump reads");
                copy.lock().expect("stream").extend_from_slice(&piece[..count]);
            }
        });
        Self { _socket: socket, tcpdump, pump, stream, file }
    }

    fn wait_until(&self, has_all: impl Fn(&[u8]) -> bool) {
        wait_for("all packets have come", PATIENCE, || {
            has_all(&self.stream.lock().expect("stream")).then_some(())
        });
    }

    /// What tcpdump wrote, once the stream has ended.
    fn end(mut self) -> Vec<Exported> {
        self.pump.join().expect("the stream ended");
        assert!(self.tcpdump.wait().expect("tcpdump").success());
        read_pcap(&self.file)
    }
}

fn consecutive(packets: &[Exported]) -> bool {
    let numbers: Vec<_> =
        packets.iter().map(|it| Stamp::read(&it.data).expect("a stamp").number).collect();
    numbers.windows(2).all(|pair| pair[0] + 1 == pair[1])
}

#[test]
fn tshark_dumpcap_and_tcpdump_read_a_tail_over_tcp() {
    const OTHER: &str = "127.0.0.1:57013";
    let Some(_ns) = namespace() else { return };
    let site = Site::new("512MiB", 1);
    let recorder = site.record("va", &format!("    ring: 32MiB\n{BUFFER}flush_age: 20ms\n"));
    // Something must have been recorded for pcap's link type to be known.
    send(9, 1, None);
    wait_until_stored(&recorder, 1);
    let served = Served::start(&recorder, &["--listen", PLACE, "udp or vlan"]);
    let classic = Served::start(&recorder, &["--listen", OTHER, "--format", "pcap", "udp or vlan"]);
    let ng = Netcat::start(PLACE, site.file("ng.pcap"));
    let old = Netcat::start(OTHER, site.file("classic.pcap"));

    let from = format!("TCP@{PLACE}");
    let dumped = site.file("dumpcap.pcapng");
    let mut dumpcap = Command::new("dumpcap");
    dumpcap.args(["-q", "-i", &from, "-c", "300", "-w"]).arg(&dumped).stderr(Stdio::null());
    let mut dumpcap = dumpcap.spawn().expect("dumpcap");
    let mut tshark = Command::new("tshark");
    tshark.args(["-i", &from, "-c", "300", "-T", "fields", "-e", "frame.len"]);
    tshark.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut tshark = tshark.spawn().expect("tshark");
    // These two say nothing when they have begun, so packets come until they have enough.
    let mut sent = 0;
    let mut sender = Sender::on("vb");
    wait_for("tshark and dumpcap have enough", 3 * PATIENCE, || {
        for _ in 0..50 {
            let (run, number, flow) = (0, sent, 1000);
            let stamp = Stamp { run, number, sent_ns: now_ns(), flow, bytes: 100, vlan: 0 };
            sender.send(&stamp.frame());
            sent += 1;
        }
        let ended = |child: &mut Child| child.try_wait().expect("wait").is_some();
        (ended(&mut dumpcap) & ended(&mut tshark)).then_some(())
    });
    let lengths = tshark.wait_with_output().expect("tshark").stdout;
    assert_eq!(String::from_utf8(lengths).expect("text"), "100\n".repeat(300));
    let packets = read_pcapng(&dumped);
    assert!(packets.len() == 300 && consecutive(&packets));

    wait_until_stored(&recorder, sent + 1);
    let (stored, _) = query(&site, &recorder, &["udp dst port 20000"]);
    ng.wait_until(|stream| epbs(stream) == sent);
    old.wait_until(|stream| stream.len() as u64 == 24 + sent * (16 + 100));
    assert!(served.end().iter().any(|line| line.ends_with("connected")));
    classic.end();
    for got in [ng.end(), old.end()] {
        assert_eq!(got.len() as u64, sent);
        assert!(got == stored, "times, lengths and bytes as stored");
    }
    assert!(recorder.terminate().success());
}

/// Packets in whole blocks.
fn epbs(stream: &[u8]) -> u64 {
    let blocks = Blocks::new(stream).map_while(Result::ok);
    blocks.filter(|block| block.kind == BLOCK_EPB).count() as u64
}

#[test]
fn a_slow_client_misses_packets_and_nobody_else_notices() {
    const PACKETS: u64 = 30_000;
    let Some(_ns) = namespace() else { return };
    let site = Site::new("512MiB", 1);
    let recorder = site.record("va", "    ring: 64MiB\nbuffer:\n  size: 32MiB\n");
    let served = Served::start(&recorder, &["--listen", PLACE]);
    let mut slow = TcpStream::connect(PLACE).expect("it is served");
    let mut first = vec![0; 28];
    slow.read_exact(&mut first).expect("a header comes at once");
    // More than the sockets, the pipe and the backlog of 64 chunks hold together.
    send(0, PACKETS, Some(1514));
    wait_until_stored(&recorder, PACKETS);
    let status = recorder.status();
    assert_eq!((lane_count(&status, "received"), lane_count(&status, "dropped")), (PACKETS, 0));

    let mut from = slow.try_clone().expect("socket");
    let stream = Arc::new(Mutex::new(first));
    let into = Arc::clone(&stream);
    let reading = std::thread::spawn(move || {
        let mut piece = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut piece) {
            into.lock().expect("stream").extend_from_slice(&piece[..count]);
        }
    });
    // What was missed is told with the next chunk that there is room for.
    let mut extra = 0;
    let last_told = || {
        let said = served.said.lock().expect("lines");
        let line = said.iter().rfind(|line| line.contains("too slow and missed"))?;
        line.split("; ").last()?.split(' ').next()?.parse::<u64>().ok()
    };
    wait_for("it is told", PATIENCE, || {
        extra += send(1, 20, None).len() as u64;
        std::thread::sleep(Duration::from_millis(300));
        last_told()
    });
    let (got, missed) = wait_for("received and missed are all", PATIENCE, || {
        let got = epbs(&stream.lock().expect("stream"));
        let missed = last_told()?;
        (got + missed == PACKETS + extra).then_some((got, missed))
    });
    assert!(missed > 0);
    println!("{got} packets received, {missed} missed and told");
    served.end();
    reading.join().expect("the stream ended");
    let file = site.file("slow.pcapng");
    std::fs::write(&file, &*stream.lock().expect("stream")).expect("file");
    assert_eq!(read_pcapng(&file).len() as u64, got, "it ends behind a whole block");
    drop(slow);
    assert!(recorder.terminate().success());
}

#[test]
fn clients_are_bounded_and_one_that_sends_no_more_gives_way() {
    let Some(_ns) = namespace() else { return };
    let site = Site::new("512MiB", 1);
    let recorder = site.record("va", &format!("    ring: 32MiB\n{BUFFER}"));
    let served = Served::start(&recorder, &["--listen", PLACE]);
    let connect = || {
        let mut socket = TcpStream::connect(PLACE).expect("it is served");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let served = socket.read_exact(&mut [0; 28]).is_ok();
        (socket, served)
    };
    let clients: Vec<_> = (0..8).map(|_| connect()).collect();
    assert!(clients.iter().all(|(_, served)| *served));
    assert!(!connect().1, "there is no room");
    served.wait_for("was turned away");
    clients[3].0.shutdown(Shutdown::Write).expect("half closed");
    wait_for("a place becomes free", PATIENCE, || connect().1.then_some(()));
    served.wait_for("gives way");
    assert!(recorder.terminate().success(), "clients do not keep the recorder");
    served.end();
}
