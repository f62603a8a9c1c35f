//! Verbs that ask the daemon: a real one in this process, and one that breaks its answers off.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::common::{Lab, Said, pcap_with_step, run, tcpdump, wirevault};
use serde_json::Value;
use wirevault_daemon::reload::ConfigFile;
use wirevault_index::KeySource;

/// Longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two packets.
const STEP: Duration = Duration::from_millis(2);

fn ask(socket: &str, verb: &str, arguments: &[&str]) -> Said {
    run([verb, "--socket", socket].iter().chain(arguments))
}

fn interrupt(child: &Child) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
}

/// A capture that comes to a daemon packet by packet, for as long as the test wants more.
struct Feed {
    enough: Arc<AtomicBool>,
    sending: JoinHandle<(TcpStream, u64, Vec<u8>)>,
}

impl Feed {
    /// Begins when the daemon connects to the listener.
    fn begin(listener: TcpListener) -> Self {
        const PACKETS_MAX: u64 = 100_000;
        let enough = Arc::new(AtomicBool::new(false));
        let is_enough = Arc::clone(&enough);
        let sending = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut file = pcap_with_step(1, PACKETS_MAX, STEP.as_nanos() as u64);
            let (mut sent, mut bytes) = (0, 24);
            socket.write_all(&file[..bytes]).unwrap();
            while !is_enough.load(Ordering::Relaxed) {
                let length = u32::from_le_bytes(*file[bytes + 8..].first_chunk().unwrap());
                let record = 16 + length as usize;
                socket.write_all(&file[bytes..bytes + record]).unwrap();
                (sent, bytes) = (sent + 1, bytes + record);
                thread::sleep(STEP);
            }
            file.truncate(bytes);
            (socket, sent, file)
        });
        Self { enough, sending }
    }

    /// No more: the connection, how many packets went over it, and the capture that they make.
    fn end(self) -> (TcpStream, u64, Vec<u8>) {
        self.enough.store(true, Ordering::Relaxed);
        self.sending.join().unwrap()
    }
}

/// A daemon to which packets come, and that goes on answering when no more do.
fn daemon(lab: &Lab) -> (String, Feed) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (socket, from) = (lab.text("s.sock"), listener.local_addr().unwrap());
    let feed = Feed::begin(listener);
    let text = format!(
        // Other tests of this process start programs.
        "store: {}\nsandbox: off\npcap_over_ip:\n  - connect: {from}\napi:\n  \
         socket: {socket}\nbuffer:\n  size: 16MiB\n",
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
    let started = Instant::now();
    while !Path::new(&socket).exists() {
        assert!(started.elapsed() < PATIENCE, "the daemon does not answer");
        thread::sleep(Duration::from_millis(20));
    }
    (socket, feed)
}

/// Everything that one daemon is asked, in one test: it lives as long as the process.
#[test]
fn the_daemon_answers_every_verb() {
    let lab = Lab::new(false);
    let (socket, feed) = daemon(&lab);

    // While packets come.
    let mut tail = wirevault()
        .args(["tail", "--socket", &socket, "udp"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(tail.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains(".53: ") && line.contains(" > 10.0.1.1"), "{line}");
    interrupt(&tail);
    assert_eq!(tail.wait().unwrap().code(), Some(0));

    let mut tail = wirevault()
        .args(["tail", "--socket", &socket, "-w", "-"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = tail.stdout.take().unwrap();
    let mut some = vec![0; 2000];
    out.read_exact(&mut some).unwrap();
    interrupt(&tail);
    out.read_to_end(&mut some).unwrap();
    assert_eq!(tail.wait().unwrap().code(), Some(0));
    fs::write(lab.path("tail.pcapng"), &some).unwrap();
    assert!(tcpdump(&lab.path("tail.pcapng"), "").len() > 5, "whole blocks only");
    let said = run(["tail", "--socket", &socket, "tcpp"]);
    assert!(said.code == Some(2) && said.err.contains("syntax error"), "{said:?}");

    // When all have come.
    let (_connected, packets, capture) = feed.end();
    fs::write(lab.path("live.pcap"), capture).unwrap();
    let started = Instant::now();
    while ask(&socket, "query", &["--count"]).out != format!("{packets}\n") {
        assert!(started.elapsed() < PATIENCE, "{:?}", ask(&socket, "status", &["--json"]));
        thread::sleep(Duration::from_millis(100));
    }
    let file = lab.path("live.pcap");
    for filter in ["udp", "arp", "tcp and host 10.0.0.3", "vlan 5"] {
        let theirs = tcpdump(&file, filter);
        let lines = ask(&socket, "query", &[filter]);
        assert_eq!(lines.out.lines().count(), theirs.len(), "{filter}: {}", lines.err);
        assert_eq!(lines.out, lab.ask("query", &[filter]).out, "as the store says itself");
        for format in ["pcapng", "pcap"] {
            let name = lab.text("found");
            let summary = lab.text("summary.json");
            let more = ["-w", &name, "--format", format, "--summary", &summary];
            let said = ask(&socket, "query", &[&[filter], &more[..]].concat());
            assert_eq!(said.out, "", "{said:?}");
            assert_eq!(tcpdump(name.as_ref(), ""), theirs, "{filter} {format}");
            let summary: Value = serde_json::from_slice(&fs::read(summary).unwrap()).unwrap();
            assert_eq!(summary["packets"].as_u64(), Some(theirs.len() as u64));
        }
    }
    let said = ask(&socket, "query", &["tcpp"]);
    assert!(said.code == Some(2) && said.err.contains("syntax error"), "{said:?}");
    let said = ask(&socket, "query", &["udp", "--limit", "3"]);
    assert_eq!(said.out.lines().count(), 3, "{said:?}");
    assert!(said.err.contains("cut there"), "{}", said.err);

    let flows = ask(&socket, "flows", &["udp", "--json"]);
    assert_eq!(flows.out, lab.ask("flows", &["udp", "--json"]).out, "{}", flows.err);
    assert_eq!(ask(&socket, "flows", &["udp port 9"]).out, "");
    assert!(ask(&socket, "flows", &["udp"]).out.starts_with("first "));
    let said = ask(&socket, "flows", &["tcpp"]);
    assert!(said.code == Some(2) && said.err.contains("syntax error"), "{said:?}");

    let status: Value = serde_json::from_str(&ask(&socket, "status", &["--json"]).out).unwrap();
    assert_eq!(status["lanes"][0]["stored"], packets);
    assert!(status["buffer"]["bytes"].as_u64() > Some(0), "{status}");
    let page = ask(&socket, "status", &[]);
    for wanted in ["running   since", "lanes, in packets", "buffer", "O_DIRECT", "pages "] {
        assert!(page.out.contains(wanted), "{wanted} is not in {}", page.out);
    }
    let segments = ask(&socket, "segments", &["--json"]);
    let rows: Value = serde_json::from_str(&segments.out).unwrap();
    assert!(!rows.as_array().unwrap().is_empty(), "{segments:?}");
}

/// Serves one answer to every request, as it is given.
fn broken_daemon(lab: &Lab, answer: Vec<u8>) -> String {
    let path: PathBuf = lab.path("broken.sock");
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(&answer);
        }
    });
    path.to_str().unwrap().to_owned()
}

fn chunked(body: &[u8], whole: bool) -> Vec<u8> {
    let mut answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    answer.extend_from_slice(format!("{:x}\r\n", body.len()).as_bytes());
    answer.extend_from_slice(body);
    answer.extend_from_slice(if whole { b"\r\n0\r\n\r\n" } else { b"\r\n" });
    answer
}

#[test]
fn an_answer_that_breaks_off_is_an_error_that_says_so() {
    let lab = Lab::filled(true, 500);
    let whole = lab.ask("query", &["udp", "-w", "-"]).bytes;
    let cases = [
        ("cut in a block", chunked(&whole[..whole.len() / 2], false)),
        ("cut and properly ended", chunked(&whole[..whole.len() / 2], true)),
        ("whole but not ended", chunked(&whole, false)),
    ];
    for (case, answer) in cases {
        let socket = broken_daemon(&lab, answer);
        let said = ask(&socket, "query", &["udp"]);
        assert_eq!(said.code, Some(2), "{case}: {said:?}");
        assert!(said.err.contains("the answer is CUT after "), "{case}: {}", said.err);
        assert!(said.out.lines().count() > 10, "{case}: what came is shown");
        let name = lab.text("found.pcapng");
        let said = ask(&socket, "query", &["udp", "-w", &name]);
        assert_eq!(said.code, Some(2), "{case}: {said:?}");
        assert!(said.err.contains("the answer is CUT after "), "{case}: {}", said.err);
        assert!(tcpdump(name.as_ref(), "").len() > 10, "{case}: readers take the file");
        let bytes = fs::read(&name).unwrap();
        assert!(String::from_utf8_lossy(&bytes).contains("the answer is CUT here"), "{case}");
    }
    let socket = broken_daemon(&lab, chunked(&whole, true));
    let said = ask(&socket, "query", &["udp", "-w", "-"]);
    assert_eq!((said.code, &said.bytes), (Some(0), &whole), "byte for byte");

    let rows = lab.ask("flows", &["udp", "--json"]).out;
    let socket = broken_daemon(&lab, chunked(rows.as_bytes(), true));
    let said = ask(&socket, "flows", &["udp", "--json"]);
    assert!(said.code == Some(2) && said.err.contains("the answer is CUT after "), "{said:?}");
    assert_eq!(said.out, rows);
}

#[test]
fn strange_answers_are_named() {
    let lab = Lab::empty();
    let plain = |status: &str, body: &str| {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    };
    for (answer, wanted) in [
        (
            plain("403 Forbidden", r#"{"error":"add this user to `api.users`"}"#),
            "wirevault: add this user to `api.users`",
        ),
        (plain("404 Not Found", "nothing"), "404 Not Found; it may be of another release"),
        (plain("200 OK", "{}"), "does not fit this release"),
        (b"SSH-2.0-OpenSSH\r\n".to_vec(), "broke off"),
        (Vec::new(), "broke off"),
    ] {
        let socket = broken_daemon(&lab, answer);
        let said = ask(&socket, "status", &[]);
        assert_eq!(said.code, Some(2), "{said:?}");
        assert!(said.err.contains(wanted), "{wanted} is not in {}", said.err);
    }
    let socket = broken_daemon(&lab, plain("200 OK", "{\"a\":1}"));
    let said = ask(&socket, "query", &["udp"]);
    assert!(
        said.code == Some(2) && said.err.contains("not a pcapng file")
            || said.err.contains("is not pcapng"),
        "{said:?}"
    );
}

#[test]
fn without_a_daemon_the_way_out_is_told() {
    let lab = Lab::empty();
    let socket = lab.text("nobody.sock");
    for verb in ["query", "flows", "status", "segments", "tail"] {
        let said = ask(&socket, verb, &[]);
        assert_eq!(said.code, Some(2), "{said:?}");
        assert!(said.err.contains(&socket) && said.err.contains("start wirevaultd"), "{said:?}");
    }
}

#[test]
fn packets_leave_the_machine_only_if_that_is_said() {
    let lab = Lab::empty();
    let socket = lab.text("nobody.sock");
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:57012"] {
        let said = ask(&socket, "tail", &["--listen", address]);
        assert_eq!(said.code, Some(2), "{said:?}");
        assert!(said.err.contains("--allow-remote") && said.err.contains(address), "{said:?}");
    }
    for more in [&["--listen", "127.0.0.1:0"][..], &["--listen", "0.0.0.0:0", "--allow-remote"]] {
        let said = ask(&socket, "tail", more);
        assert!(said.code == Some(2) && said.err.contains("start wirevaultd"), "{said:?}");
    }
    for wrong in [&["--allow-remote"][..], &["--format", "pcap"], &["--listen", "here:1"]] {
        assert_eq!(ask(&socket, "tail", wrong).code, Some(2), "{wrong:?}");
    }
}

#[test]
fn ctrl_c_ends_a_stream_with_what_came_so_far() {
    let lab = Lab::filled(true, 500);
    let whole = lab.ask("query", &["udp", "-w", "-"]).bytes;
    // An answer that never goes on.
    let path = lab.path("slow.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let answer = chunked(&whole[..whole.len() / 2], false);
    thread::spawn(move || {
        let mut held = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(&answer);
            held.push(stream);
        }
    });
    let interrupted = |write: bool, after: Duration| {
        let summary = lab.text("summary.json");
        let mut command = wirevault();
        command.args(["query", "--socket", path.to_str().unwrap(), "udp", "--summary", &summary]);
        if write {
            command.args(["-w", &lab.text("found.pcapng")]);
        }
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        thread::sleep(after);
        interrupt(&child);
        let said: Said = child.wait_with_output().unwrap().into();
        let packets = fs::read(&summary).map_or(0, |text| {
            fs::remove_file(summary).unwrap();
            let summary: Value = serde_json::from_slice(&text).unwrap();
            summary["packets"].as_u64().unwrap()
        });
        (said, packets)
    };
    for write in [false, true] {
        // How long a busy machine takes to get there cannot be known.
        let (said, _) = [1, 5, 25]
            .map(Duration::from_secs)
            .into_iter()
            .map(|after| interrupted(write, after))
            .find(|(_, packets)| *packets > 10)
            .expect("it never got to ten packets");
        assert_eq!(said.code, Some(3), "{said:?}");
        assert!(said.err.contains("INCOMPLETE"), "{}", said.err);
        match write {
            true => assert!(tcpdump(lab.path("found.pcapng").as_ref(), "").len() > 10),
            false => assert!(said.out.lines().count() > 10),
        }
    }
}
