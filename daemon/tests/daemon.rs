//! The whole service with a file as its source, on a temporary store, without any privilege:
//! started as a process, asked over its socket, ended by a signal.

mod support;

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use support::{FIRST_S, Place, Recorder, daemon, dechunk, run, send};
use wirevault_daemon::Exit;
use wirevault_daemon::api::State;
use wirevault_daemon::input::import::{self, ImportOptions, Progress};
use wirevault_daemon::report::status;
use wirevault_format::pcapng::{BLOCK_EPB, Blocks};
use wirevault_index::{Catalog, KeySource, StoreReader, open_store};
use wirevault_telemetry::clock::{Clock, SystemClock};

/// Packets of a file that is replayed at full speed.
const PACKETS: u32 = 3000;
const STEP_US: u64 = 1000;

/// Waits until the whole file is stored and its lane has ended.
fn recorded(recorder: &Recorder, packets: u64) -> serde_json::Value {
    recorder.wait("all packets are stored", |status| {
        status["lanes"][0]["stored"] == packets && status["state"] == "ended"
    })
}

fn offline(place: &Place) -> (StoreReader, Catalog) {
    let key = place.key.clone().map_or(KeySource::Recorded, KeySource::File);
    let reader = open_store(&place.store, &key).unwrap();
    let catalog = reader.catalog(SystemClock.unix_ns());
    (reader, catalog)
}

#[test]
fn a_file_is_recorded_asked_for_and_the_end_is_clean() {
    let place = Place::new(false);
    let file = place.capture("a.pcap", PACKETS, STEP_US);
    let recorder = place.start(&place.config(&file, "  interface: eth7\n"));
    let status = recorded(&recorder, u64::from(PACKETS));
    let lane = &status["lanes"][0];
    assert_eq!(lane["received"], PACKETS);
    assert_eq!((&lane["dropped"], &lane["in_flight"]), (&0.into(), &0.into()));
    assert_eq!(lane["dropped_by_cause"]["ring_overflow"], 0);
    assert_eq!(lane["unacknowledged_age_ms"], 0);
    assert_eq!(lane["watermark"], PACKETS);
    let flows = (lane["flows"].as_u64().unwrap(), lane["flows_max"].as_u64().unwrap());
    assert!(0 < flows.0 && flows.0 < flows.1, "{lane:#}");
    assert_eq!((&lane["filtered_chunks"], &lane["unindexed_chunks"]), (&0.into(), &0.into()));
    assert_eq!(status["sealed"], false);
    assert_eq!(status["volumes"][0]["path"], place.store.display().to_string());
    assert_eq!(status["recovery"]["crashed_runs"], 0);

    // Packets: those of the filter, in order, with a summary.
    let (times, summary) = recorder.post("/v1/query", r#"{"filter":"arp"}"#).packets();
    let time = |number: u64| FIRST_S * 1_000_000_000 + number * STEP_US * 1000;
    let expected: Vec<_> = (0..u64::from(PACKETS)).step_by(3).map(time).collect();
    assert_eq!(times, expected);
    assert_eq!(summary["packets"], PACKETS / 3);
    assert_eq!(summary["complete"], true, "{summary:#}");
    assert_eq!(summary["covered_from"]["ns"], time(0));
    let window = format!(r#"{{"since_ns":{},"until_ns":{},"limit":4}}"#, time(10), time(20));
    let (times, summary) = recorder.post("/v1/query", &window).packets();
    assert_eq!(times, (10..14).map(time).collect::<Vec<_>>());
    assert_eq!(summary["limit_reached"], true);
    let counted = recorder.post("/v1/query", r#"{"filter":"udp port 53","count_only":true}"#);
    let (times, summary) = counted.packets();
    assert_eq!((times.len(), &summary["packets"]), (0, &(PACKETS * 2 / 3).into()));

    // Flows: a line each, the summary last.
    let flows = recorder.post("/v1/flows", r#"{"filter":"udp and src port 16385"}"#).text();
    let lines: Vec<serde_json::Value> =
        flows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{flows}");
    assert_eq!(lines[0]["packets"], 1);
    assert!(lines[1]["summary"]["packets"] == 1, "{flows}");

    // Errors before the first byte.
    let refused = |answer: support::Answer, status: u16, part: &str| {
        let text = answer.text();
        assert_eq!(answer.status, status, "{text}");
        let body: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(body["error"].as_str().unwrap().contains(part), "{text}");
    };
    refused(recorder.post("/v1/query", r#"{"filter":"tcpp"}"#), 400, "EN10MB");
    refused(recorder.post("/v1/query", r#"{"since_ns":5,"until_ns":5}"#), 400, "empty");
    refused(recorder.post("/v1/query", r#"{"filtre":"tcp"}"#), 422, "filtre");
    refused(recorder.post("/v1/flows", r#"{"filter":"tcpp"}"#), 400, "EN10MB");
    refused(recorder.post("/v1/query", "{"), 400, "JSON");
    refused(recorder.get("/v1/tail?filter=tcpp"), 400, "EN10MB");
    refused(recorder.get("/v1/query"), 405, "POST");
    refused(recorder.get("/v2"), 404, "/v2");

    let metrics = recorder.get("/v1/metrics").text();
    for line in [
        &format!("wirevault_lane_stored_packets_total{{lane=\"0\"}} {PACKETS}"),
        "wirevault_query_finished_count_total{result=\"answered\"} 4",
        "wirevault_query_finished_count_total{result=\"refused\"} 3",
        "# TYPE wirevault_lane_stored_packets_total counter",
    ] {
        assert!(metrics.lines().any(|got| got == line), "{line}\nis not in\n{metrics}");
    }
    let segments = recorder.json("/v1/segments");
    let stored: u64 = segments
        .as_array()
        .unwrap()
        .iter()
        .map(|segment| segment["packets"].as_u64().unwrap())
        .sum();
    assert_eq!(stored, u64::from(PACKETS), "{segments:#}");

    let socket = recorder.socket.clone();
    assert!(recorder.told().contains("READY=1"));
    let (code, log) = recorder.end(Signal::SIGTERM);
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("STOPPING=1"), "{log}");
    assert!(log.contains("every segment is closed"), "{log}");
    assert!(!socket.exists(), "the socket is removed");
    let (reader, catalog) = offline(&place);
    let report = status::offline(&reader, &catalog);
    assert_eq!((report.state, report.lanes[0].stored), (State::Offline, u64::from(PACKETS)));
    assert_eq!((report.lanes[0].received, report.lanes[0].in_flight), (u64::from(PACKETS), 0));
    // The volume's own file counts, as it does for the quota; the folder of the audit log does not.
    let files =
        std::fs::read_dir(&place.store).unwrap().map(|file| file.unwrap().metadata().unwrap());
    let on_disk: u64 = files.filter(|file| file.is_file()).map(|file| file.len()).sum();
    assert_eq!(report.volumes[0].used_bytes, on_disk);
    assert!(status::segments(&catalog).iter().all(|segment| segment.state == "closed"));
}

#[test]
fn what_a_source_cannot_keep_is_in_the_status_while_it_runs() {
    let place = Place::new(false);
    let mut file = Vec::new();
    let mut block = |kind: u32, body: &[u8]| {
        let bytes = 12 + body.len() as u32;
        file.extend([kind.to_le_bytes(), bytes.to_le_bytes()].concat());
        file.extend_from_slice(body);
        file.extend(bytes.to_le_bytes());
    };
    let words = |words: &[u32]| words.iter().flat_map(|it| it.to_le_bytes()).collect::<Vec<u8>>();
    block(0x0a0d_0d0a, &words(&[0x1a2b_3c4d, 1, u32::MAX, u32::MAX]));
    // Times in picoseconds.
    block(1, &words(&[1, 262_144, 0x0001_0009, 12, 0]));
    block(4, &words(&[0]));
    block(6, &words(&[0, 0, 1_500_001, 4, 4, 0]));
    let path = place.path("picoseconds.pcapng");
    std::fs::write(&path, file).unwrap();
    let recorder = place.start(&place.config(&path, ""));
    let status = recorded(&recorder, 1);
    let lane = &status["lanes"][0];
    assert_eq!((&lane["times_rounded"], &lane["options_cut"]), (&1.into(), &0.into()), "{lane:#}");
    assert_eq!(lane["skipped_blocks"], serde_json::json!({"name_resolution": 1}));
    assert_eq!(lane["notes"], serde_json::json!(["format: pcapng"]));
    recorder.end(Signal::SIGTERM);
}

#[test]
fn many_questions_at_once_are_answered_or_told_to_come_again() {
    const PLACES: usize = 32;
    let place = Place::new(true);
    // Enough packets that an answer does not fit what lies between the recorder and its reader.
    let file = place.capture("many.pcap", 60_000, 10);
    let recorder = place.start(&place.config(&file, ""));
    recorded(&recorder, 60_000);
    let head = "content-type: application/json\r\ncontent-length: 2\r\n";
    let ask = || send(&recorder.socket, "POST /v1/query", head, "{}").unwrap();

    // 50 at once, all read.
    let answers: Vec<_> = std::thread::scope(|scope| {
        let asking: Vec<_> =
            (0..50).map(|_| scope.spawn(|| recorder.post("/v1/query", "{}"))).collect();
        asking.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let answered = answers.iter().filter(|answer| answer.status == 200).count();
    assert!(answered > 0);
    for answer in &answers {
        match answer.status {
            200 => assert_eq!(answer.packets().0.len(), 60_000),
            429 => assert!(answer.text().contains("ask again later"), "{}", answer.text()),
            other => panic!("{other}: {}", answer.text()),
        }
    }

    // As many readers as there are places that take nothing: the next is refused at once, and what
    // is no answer of packets goes on.
    let stalled: Vec<_> = (0..PLACES).map(|_| ask()).collect();
    let running = "wirevault_query_running_queries 32.0";
    let since = Instant::now();
    while !recorder.get("/v1/metrics").text().lines().any(|line| line == running) {
        assert!(since.elapsed() < Duration::from_secs(60), "they never run all together");
        std::thread::sleep(Duration::from_millis(20));
    }
    let refused = recorder.post("/v1/query", "{}");
    assert_eq!(refused.status, 429, "{}", refused.text());
    assert!(refused.text().contains("32 answers are being made already"), "{}", refused.text());
    assert_eq!(recorder.json("/v1/status")["state"], "ended");
    let mut tail = send(&recorder.socket, "GET /v1/tail", "", "").unwrap();
    let mut first = [0; 12];
    tail.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200", "live views have places of their own");

    // Readers that go away make room.
    drop(stalled);
    let since = Instant::now();
    while recorder.post("/v1/query", "{}").status != 200 {
        assert!(since.elapsed() < Duration::from_secs(60), "no place was given back");
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(tail);
    let (code, log) = recorder.end(Signal::SIGTERM);
    assert_eq!(code, Some(0), "{log}");
}

#[test]
fn a_supervisor_that_does_not_read_holds_up_nothing() {
    let place = Place::new(true);
    let file = place.capture("few.pcap", 100, 10);
    let recorder = place.start(&place.config(&file, ""));
    recorder.fill_notify_socket();
    // Two beats of the watchdog, and one more.
    std::thread::sleep(Duration::from_secs(1));
    for _ in 0..3 {
        assert_eq!(recorder.get("/v1/status").status, 200);
    }
    let (code, log) = recorder.end(Signal::SIGTERM);
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("nothing more is told until then"), "{log}");
}

#[test]
fn packets_are_seen_as_they_pass_and_nothing_acknowledged_is_lost_by_a_kill() {
    let place = Place::new(true);
    // Ten minutes of packets; the test sees the first second or so.
    let file = place.capture("slow.pcap", 60_000, 10_000);
    let config = place.config(&file, "  speed: realtime\n");
    let recorder = place.start(&config);
    let mut tail = send(&recorder.socket, "GET /v1/tail?filter=arp", "", "").unwrap();
    let mut bytes = Vec::new();
    let packets = loop {
        let mut piece = [0; 4096];
        let length = tail.read(&mut piece).unwrap();
        assert!(length > 0, "the live view ended early");
        bytes.extend_from_slice(&piece[..length]);
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let (body, _) = dechunk(&bytes[end + 4..]);
        let kinds = Blocks::new(&body).map_while(Result::ok).map(|block| block.kind);
        let packets = kinds.filter(|kind| *kind == BLOCK_EPB).count();
        if packets >= 5 {
            break packets;
        }
    };
    drop(tail);
    let status = recorder.wait("something is stored", |status| {
        status["lanes"][0]["stored"].as_u64() > Some(3 * packets as u64)
            && status["state"] == "recording"
    });
    assert_eq!(status["sealed"], true);
    let acknowledged = status["lanes"][0]["stored"].as_u64().unwrap();
    let (code, _) = recorder.end(Signal::SIGKILL);
    assert_eq!(code, None, "it was killed");

    // Read as it was left, without a writer.
    let (_, catalog) = offline(&place);
    let found: u64 = status::segments(&catalog).iter().map(|segment| segment.packets).sum();
    assert!(found >= acknowledged, "{found} of {acknowledged}");
    // The leftover socket is replaced, the segments are closed, the answer says what is missing.
    let recorder = place.start(&config);
    let status = recorder.json("/v1/status");
    assert_eq!(status["recovery"]["crashed_runs"], 1);
    assert!(status["recovery"]["packets"].as_u64() >= Some(acknowledged));
    let (times, _) = recorder.post("/v1/query", r#"{"filter":"not port 1"}"#).packets();
    assert!(times.len() as u64 >= acknowledged);
    // Watchers do not keep it from ending.
    let mut tail = send(&recorder.socket, "GET /v1/tail", "", "").unwrap();
    tail.read_exact(&mut [0; 12]).unwrap();
    let since = Instant::now();
    while !recorder.told().contains("WATCHDOG=1") {
        assert!(since.elapsed() < Duration::from_secs(60), "systemd is not told that it lives");
        std::thread::sleep(Duration::from_millis(20));
    }
    let since = Instant::now();
    let (code, log) = recorder.end(Signal::SIGINT);
    assert_eq!(code, Some(0), "{log}");
    assert!(since.elapsed() < Duration::from_secs(30), "{log}");
    assert!(log.contains("the last run did not end well"), "{log}");
}

#[test]
fn a_second_recorder_is_refused() {
    let place = Place::new(false);
    let file = place.capture("a.pcap", 10, STEP_US);
    let config = place.config(&file, "");
    let recorder = place.start(&config);
    let config = config.display().to_string();
    let (code, text) = run(&["--config", &config]);
    assert_eq!(code, Exit::Busy as i32, "{text}");
    assert!(text.contains("api.socket"), "{text}");
    let other = std::fs::read_to_string(&config).unwrap().replace("wirevault.sock", "other.sock");
    let path = place.path("other.yaml");
    std::fs::write(&path, other).unwrap();
    let (code, text) = run(&["--config", &path.display().to_string()]);
    assert_eq!(code, Exit::Busy as i32, "{text}");
    assert!(!place.path("run/other.sock").exists());
    assert_eq!(recorder.end(Signal::SIGTERM).0, Some(0));
}

/// Both once logged what the default does.
#[test]
fn debug_and_trace_log_more_than_info() {
    for (level, debug, trace) in
        [("info", false, false), ("debug", true, false), ("trace", true, true)]
    {
        let place = Place::new(false);
        let file = place.capture("a.pcap", 10, STEP_US);
        let recorder = place.start(&place.config(&file, &format!("log: {level}\n")));
        recorded(&recorder, 10);
        let (code, log) = recorder.end(Signal::SIGTERM);
        assert_eq!(code, Some(0), "{log}");
        assert_eq!((log.contains(" DEBUG "), log.contains(" TRACE ")), (debug, trace), "{log}");
    }
}

#[test]
fn others_are_told_that_they_may_not_ask() {
    if !nix::unistd::Uid::effective().is_root() || Command::new("curl").output().is_err() {
        eprintln!("skipped: this test becomes another user, and that user needs curl");
        assert!(std::env::var_os("WIREVAULT_NO_SKIP").is_none(), "skips are failures here");
        return;
    }
    const NOBODY: u32 = 65534;
    let place = Place::new(false);
    let file = place.capture("a.pcap", 10, STEP_US);
    let folder = place.path("");
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    let ask = |place: &Place| {
        let socket = place.socket().display().to_string();
        let arguments = ["-s", "--unix-socket", &socket, "http://localhost/v1/status"];
        let output = Command::new("curl").args(arguments).uid(NOBODY).gid(NOBODY).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let config = place.config(&file, "");
    let recorder = place.start(&config);
    let text = ask(&place);
    assert!(text.contains("user 65534 may not ask") && text.contains("api.users"), "{text}");
    assert_eq!(recorder.end(Signal::SIGTERM).0, Some(0));
    let allowed = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, allowed.replace("api:\n", "api:\n  groups: [65534]\n")).unwrap();
    let recorder = place.start(&config);
    assert!(ask(&place).contains("\"lanes\""), "{}", ask(&place));
    assert_eq!(recorder.end(Signal::SIGTERM).0, Some(0));
}

#[test]
fn files_are_imported_in_order_and_bad_ones_are_told() {
    let place = Place::new(true);
    let first = place.capture("a.pcap", 100, STEP_US);
    let second = place.capture("b.pcap", 50, STEP_US);
    let cut = place.path("cut.pcap");
    let whole = std::fs::read(&second).unwrap();
    std::fs::write(&cut, &whole[..whole.len() - 7]).unwrap();
    let import = |files: Vec<_>, key: KeySource| {
        let mut last = Progress::default();
        let options = ImportOptions {
            key,
            arena_bytes: 4 << 20,
            ..ImportOptions::new(place.store.clone(), files)
        };
        let report = import::run(options, &mut |progress| last.clone_from(progress));
        (report, last)
    };
    let (report, last) = import(vec![first.clone(), second], KeySource::Recorded);
    let report = report.unwrap();
    assert!(report.is_whole(), "{report:?}");
    assert_eq!((report.packets, report.stored, report.interfaces), (150, 150, 2));
    // However short an import is, its end is told.
    assert_eq!((last.files, last.files_ended, last.file.as_str()), (2, 2, ""));
    assert_eq!((last.packets, last.bytes, last.stored), (150, 150 * 60, 150));
    assert_eq!(report.bytes, 150 * 60);
    let (report, _) = import(vec![cut, first.clone()], KeySource::Recorded);
    let report = report.unwrap();
    assert!(!report.is_whole());
    assert_eq!((report.packets, report.unreadable), (149, 1));
    assert!(report.files[0].error.as_ref().unwrap().contains("cut.pcap"), "{report:?}");
    let (_, catalog) = offline(&place);
    let rows = status::segments(&catalog);
    assert_eq!(rows.iter().map(|row| row.packets).sum::<u64>(), 299);
    assert!(rows.iter().all(|row| row.import && row.sealed && row.state == "closed"));

    let missing = import(vec![place.path("none")], KeySource::Recorded).0.unwrap_err();
    assert_eq!(missing.exit(), Exit::Usage, "{missing}");
    let wrong = place.path("wrong.key");
    wirevault_seal::FileProvider::create(&wrong).unwrap();
    let error = import(vec![first.clone()], KeySource::File(wrong)).0.unwrap_err();
    assert_eq!(error.exit(), Exit::Key, "{}", error.chain());
    let error = import(vec![first], KeySource::File(place.path("no.key"))).0.unwrap_err();
    assert_eq!(error.exit(), Exit::Key, "{}", error.chain());
}

#[test]
fn faults_are_told_with_the_documented_exit_codes() {
    let place = Place::new(false);
    let file = place.capture("a.pcap", 10, STEP_US);
    let good = place.config(&file, "");
    let good_name = good.display().to_string();
    let (code, text) = run(&["validate", &good_name]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("the recorder can start with it"), "{text}");

    let bad = place.path("bad.yaml");
    std::fs::write(&bad, "store: /a\nbufer: 1\ncapture:\n  - interface: eth0\n    lanes: 99\n")
        .unwrap();
    let bad = bad.display().to_string();
    for arguments in [vec!["validate", bad.as_str()], vec!["--config", bad.as_str()]] {
        let (code, text) = run(&arguments);
        assert_eq!(code, Exit::Usage as i32, "{text}");
        assert!(text.contains("bad.yaml:2:1: ") && text.contains("capture[0].lanes"), "{text}");
    }
    let empty = place.path("empty");
    std::fs::create_dir(&empty).unwrap();
    let empty = empty.display().to_string();
    for arguments in [
        vec!["validate", good_name.as_str(), "--store", empty.as_str()],
        vec!["--config", good_name.as_str(), "--store", empty.as_str()],
    ] {
        let (code, text) = run(&arguments);
        assert_eq!(code, Exit::Store as i32, "{text}");
        assert!(text.contains("is not a Wirevault store"), "{text}");
    }
    assert_eq!(run(&["--config", "/nowhere/x.yaml"]).0, Exit::Usage as i32);
    assert_eq!(run(&[]).0, Exit::Usage as i32);
    assert_eq!(run(&["--bogus"]).0, Exit::Usage as i32);
    let (code, text) = run(&["--version"]);
    assert_eq!((code, text.trim()), (0, concat!("wirevaultd ", env!("CARGO_PKG_VERSION"))));
    let (code, text) = run(&["--help"]);
    assert!(code == 0 && text.contains("Exit codes: 0") && text.contains("validate"), "{text}");
    assert!(daemon(&["--help"]).output().unwrap().stderr.is_empty());
}
