//! `query` and `flows` over a store, against tcpdump on the file that was imported.

use std::fs;
use std::io::Read;
use std::process::Stdio;

use crate::common::{Lab, run, tcpdump, wirevault};
use serde_json::Value;

const PACKETS: u64 = 3000;

#[test]
fn a_query_gives_the_lines_that_tcpdump_gives() {
    for plaintext in [false, true] {
        let lab = Lab::filled(plaintext, PACKETS);
        let file = lab.path("a.pcap");
        for filter in [
            "",
            "tcp",
            "udp port 53 and host 10.0.0.3",
            "not host 10.0.0.3",
            "arp",
            "vlan 5",
            "vlan and udp",
            "portrange 4001-4002",
            "less 60",
            "ether[0] & 1 != 0",
            "net 10.0.0.4/30 or tcp[13] & 2 = 0",
        ] {
            let theirs = tcpdump(&file, filter);
            let said = lab.ask("query", &[filter]);
            assert_eq!(said.out.lines().count(), theirs.len(), "{filter}: {}", said.err);
            assert_eq!(said.code, Some(i32::from(theirs.is_empty())), "{filter}: {said:?}");
            // Times have three digits more; where no VLAN is told, what speaks with what is equal.
            for (ours, theirs) in said.out.lines().zip(&theirs) {
                assert_eq!(ours[..15], theirs[..15], "{filter}");
                if let (Some(ours), Some(theirs)) =
                    (ours[18..].strip_prefix(" IP "), theirs[15..].strip_prefix(" IP "))
                {
                    assert_eq!(ours.split(':').next(), theirs.split(':').next());
                }
            }
            let count = lab.ask("query", &[filter, "--count"]);
            assert_eq!(count.out, format!("{}\n", theirs.len()), "{filter}");
            assert_eq!(count.code, said.code);
        }
    }
}

#[test]
fn words_of_a_filter_may_stand_alone() {
    let lab = Lab::filled(true, 100);
    let one = lab.ask("query", &["udp port 53"]);
    assert_eq!(lab.ask("query", &["udp", "port", "53"]).out, one.out);
    assert!(!one.out.is_empty());
}

#[test]
fn files_open_in_tcpdump_and_end_with_the_summary() {
    let lab = Lab::filled(false, PACKETS);
    let original = tcpdump(&lab.path("a.pcap"), "udp");
    for format in ["pcapng", "pcap"] {
        let name = lab.text(&format!("found.{format}"));
        let said = lab.ask("query", &["udp", "-w", &name, "--format", format]);
        assert_eq!((said.code, said.out.as_str()), (Some(0), ""), "{said:?}");
        assert_eq!(tcpdump(name.as_ref(), ""), original, "{format}");
        let piped = lab.ask("query", &["udp", "-w", "-", "--format", format]);
        assert_eq!(piped.bytes, fs::read(&name).unwrap(), "{format}");
    }
    let text = String::from_utf8_lossy(&fs::read(lab.path("found.pcapng")).unwrap()).into_owned();
    assert!(text.contains("wirevault-summary: {\"complete\":true"));
    let mut tshark = std::process::Command::new("tshark");
    let tshark = tshark.arg("-r").arg(lab.path("found.pcapng")).args([
        "-T",
        "fields",
        "-e",
        "frame.time_epoch",
    ]);
    let times = String::from_utf8(tshark.output().unwrap().stdout).unwrap();
    assert_eq!(times.lines().count(), original.len());
    assert!(times.starts_with("1700000000.001000003\n"), "{}", &times[..40]);
}

#[test]
fn a_window_a_limit_and_an_order() {
    let lab = Lab::filled(false, PACKETS);
    let said = lab.ask("query", &["--since", "@1700000001", "--until", "@1700000002"]);
    assert_eq!(said.out.lines().count(), 1000, "{}", said.err);
    assert!(said.out.lines().all(|line| line.starts_with("22:13:21.")));
    let said = lab.ask("query", &["--limit", "7", "--sort"]);
    assert_eq!((said.out.lines().count(), said.code), (7, Some(0)));
    assert!(said.out.starts_with("22:13:20.000000000 IP 10.0.0.1.4000 > 10.0.1.1.80: Flags [S]"));
    // Before the store begins nothing can be promised.
    let said = lab.ask("query", &["--until", "2020-01-01"]);
    assert_eq!(said.code, Some(3), "{said:?}");
    assert!(said.err.contains("INCOMPLETE"), "{}", said.err);
}

#[test]
fn nothing_found_is_exit_code_1_and_a_valid_file() {
    let lab = Lab::filled(false, 100);
    let name = lab.text("none.pcapng");
    let said = lab.ask("query", &["udp port 9", "-w", &name]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(tcpdump(name.as_ref(), "").is_empty());
}

#[test]
fn the_summary_is_json_for_programs_and_words_for_people() {
    let lab = Lab::filled(false, PACKETS);
    let name = lab.text("summary.json");
    let said = lab.ask("query", &["host 10.0.0.3", "--summary", &name, "--count"]);
    assert!(
        said.err.contains(" packets, ")
            && said.err.contains("; complete from 2023-11-14T22:13:20Z")
    );
    let summary: Value = serde_json::from_slice(&fs::read(name).unwrap()).unwrap();
    assert_eq!(summary["complete"], true);
    assert_eq!(summary["packets"].to_string(), said.out.trim());
    for key in [
        "bytes",
        "covered_from",
        "covered_until",
        "gaps",
        "damaged",
        "segments_considered",
        "segments_read",
        "chunks_considered",
        "chunks_read",
    ] {
        assert!(!summary[key].is_null(), "{key} is not in {summary}");
    }
}

#[test]
fn a_file_that_cannot_be_made_is_told_before_the_search() {
    let lab = Lab::filled(true, 10);
    let absent = lab.text("absent/a.pcapng");
    let said = lab.ask("query", &["-w", &absent, "udp"]);
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.err.contains("there is no directory"), "{}", said.err);
    assert!(!said.err.contains("complete"), "nothing was searched: {}", said.err);
    let dir = lab.text("");
    let said = lab.ask("query", &["-w", &dir, "udp"]);
    assert!(said.code == Some(2) && said.err.contains("is a directory"), "{said:?}");
}

#[test]
fn flows_are_a_table_json_lines_or_csv() {
    let lab = Lab::filled(false, PACKETS);
    let table = lab.ask("flows", &["udp port 53"]);
    assert_eq!(table.code, Some(0), "{table:?}");
    let lines: Vec<_> = table.out.lines().collect();
    assert!(lines[0].starts_with("first ") && lines[0].contains(" protocol "), "{}", lines[0]);
    assert!(lines[1].contains("10.0.0.") && lines[1].contains("10.0.1.1:53"), "{}", lines[1]);

    let json = lab.ask("flows", &["udp port 53", "--json"]);
    let rows: Vec<Value> =
        json.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), lines.len() - 1);
    let packets: u64 = rows.iter().map(|row| row["packets"].as_u64().unwrap()).sum();
    assert_eq!(packets as usize, tcpdump(&lab.path("a.pcap"), "udp port 53").len());
    assert_eq!(rows[0]["b_port"], 53);

    let csv = lab.ask("flows", &["udp port 53", "--csv"]);
    assert_eq!(csv.out.lines().count(), rows.len() + 1);
    let fields = csv.out.lines().next().unwrap().split(',').count();
    assert!(csv.out.lines().all(|line| line.split(',').count() == fields), "{}", csv.out);

    let name = lab.text("summary.json");
    let said = lab.ask("flows", &["--limit", "3", "--json", "--summary", &name]);
    assert_eq!(said.out.lines().count(), 3);
    let summary: Value = serde_json::from_slice(&fs::read(name).unwrap()).unwrap();
    assert_eq!(summary["limit_reached"], true);
    assert_eq!(lab.ask("flows", &["udp port 9"]).code, Some(1));
    let none = lab.ask("flows", &["udp port 9", "--csv"]);
    assert_eq!(none.out.lines().count(), 1, "the headings stay");
    let window = ["--since", "@1700000001", "--until", "@1700000002", "--json"];
    let said = lab.ask("flows", &window);
    assert!(said.out.lines().count() > 0 && said.code == Some(0), "{said:?}");
}

#[test]
fn what_is_no_filter_is_refused_as_libpcap_refuses_it() {
    let lab = Lab::filled(true, 10);
    let name = lab.path("kept.pcapng");
    fs::write(&name, "precious").unwrap();
    for verb in ["query", "flows"] {
        for filter in ["tcpp", "port 99999", "(tcp", "inbound"] {
            let said = lab.ask(verb, &[filter]);
            assert_eq!((said.code, said.out.as_str()), (Some(2), ""), "{said:?}");
            assert!(said.err.starts_with("wirevault: the filter does not fit"), "{}", said.err);
        }
    }
    let said = lab.ask("query", &["tcpp", "-w", name.to_str().unwrap()]);
    assert!(said.err.contains("syntax error"), "{}", said.err);
    assert!(!said.err.contains("--skip-linktype"), "that would not help: {}", said.err);
    assert_eq!(fs::read(&name).unwrap(), b"precious", "a refused question writes no file");
}

#[test]
fn several_link_types_need_pcapng_and_may_be_left_out() {
    let lab = Lab::filled(true, 100);
    fs::write(lab.path("raw.pcap"), crate::common::pcap(101, 100)).unwrap();
    assert_eq!(lab.ask("import", &[&lab.text("raw.pcap")]).code, Some(0));
    let said = lab.ask("query", &["ether host 02:00:00:00:00:01"]);
    assert_eq!(said.code, Some(2));
    assert!(said.err.contains("RAW") && said.err.contains("--skip-linktype"), "{}", said.err);
    let said = lab.ask("query", &["ether host 02:00:00:00:00:01", "--skip-linktype"]);
    assert_eq!(said.out.lines().count(), 100, "{}", said.err);
    assert!(said.err.contains("left out: link type RAW"), "{}", said.err);
    let said = lab.ask("query", &["tcp", "-w", &lab.text("x.pcap"), "--format", "pcap"]);
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.err.contains("EN10MB") && said.err.contains("RAW"), "{}", said.err);
    let said = lab.ask("query", &["tcp", "-w", &lab.text("x.pcapng")]);
    assert_eq!(said.code, Some(0), "{said:?}");
}

#[test]
fn a_time_that_is_none_names_its_flag_and_what_is_possible() {
    let lab = Lab::new(true);
    for (flag, value) in [("--since", "soon"), ("--until", "25:00"), ("--since", "5m")] {
        let said = lab.ask("query", &[flag, value]);
        assert_eq!(said.code, Some(2));
        assert!(said.err.contains(&format!("{flag}: `{value}` is not a time")), "{}", said.err);
    }
    let said = lab.ask("query", &["--since", "@20", "--until", "@10"]);
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.err.contains("is empty"), "{}", said.err);
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let lab = Lab::filled(true, 20_000);
    for arguments in [vec![], vec!["-w", "-"], vec!["-w", "-", "--format", "pcap"]] {
        let mut child = wirevault()
            .args(["query", "--store", lab.store()])
            .args(&arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = [0; 50];
        child.stdout.take().unwrap().read_exact(&mut first).unwrap();
        let said: crate::common::Said = child.wait_with_output().unwrap().into();
        assert_eq!(said.code, Some(0), "{arguments:?} {said:?}");
        assert!(!said.err.contains("wirevault:") && !said.err.contains("panic"), "{}", said.err);
    }
    let mut child = wirevault().arg("--help").stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn flags_that_do_not_go_together_are_refused() {
    let lab = Lab::new(true);
    for arguments in [
        vec!["--count", "-w", "x"],
        vec!["--format", "pcap"],
        vec!["--format", "txt", "-w", "x"],
        vec!["--socket", "/x"],
        vec!["--limit", "-1"],
        vec!["--frob"],
    ] {
        let said = lab.ask("query", &arguments);
        assert_eq!(said.code, Some(2), "{arguments:?}");
        assert!(said.err.contains("error:"), "{}", said.err);
    }
    assert_eq!(lab.ask("flows", &["--json", "--csv"]).code, Some(2));
    assert_eq!(run(["query", "--key", "/x", "tcp"]).code, Some(2));
}

#[test]
fn an_answer_that_cannot_be_written_says_where() {
    let lab = Lab::filled(true, 100);
    let said = lab.ask("query", &["-w", "/nowhere/x.pcapng"]);
    assert_eq!(said.code, Some(2));
    assert!(said.err.contains("/nowhere/x.pcapng"), "{}", said.err);
    let said = lab.ask("query", &["-w", "/dev/full"]);
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.err.contains("No space left"), "{}", said.err);
    let said = lab.ask("query", &["--count", "--summary", "/nowhere/s.json"]);
    assert_eq!(said.code, Some(2));
    assert!(said.err.contains("/nowhere/s.json"), "{}", said.err);
}

#[test]
fn there_are_no_colours_where_no_terminal_is() {
    let lab = Lab::filled(true, 10);
    for arguments in [vec!["query"], vec!["status"], vec!["verify"], vec!["flows"]] {
        let said = lab.ask(arguments[0], &[]);
        assert!(!said.out.contains('\x1b') && !said.err.contains('\x1b'), "{said:?}");
    }
}
