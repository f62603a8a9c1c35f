//! Times that are not in order: queues of one interface that differ, and clocks that are set.

use std::fs::{self, File};
use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Output;

use serde_json::Value;
use wirevault_format::pcapng::{Event, Reader};
use wirevault_testkit::net::{Namespace, Stamp, wait_for};
use wirevault_tests::captures::{Packet, write_pcap};
use wirevault_tests::recorder::{PATIENCE, Site, lane_count};

const PACKETS: usize = 12_000;
const BASE_NS: u64 = 1_700_000_000_000_000_000;
const STEP_NS: u64 = 1_000_000;
/// Within which times are out of order.
const JITTER_NS: u64 = 6_000_000;
/// The clock goes wrong by this in the middle third of the packets.
const HOUR_NS: u64 = 3_600_000_000_000;
const PLACE: &str = "127.0.0.1:57031";

/// Packets in capture order; the middle third bears an earlier hour.
fn packets() -> Vec<Packet> {
    let packet = |number: usize| {
        let set_back = (PACKETS / 3..2 * PACKETS / 3).contains(&number);
        // Any numbers that jump about; the same in every run.
        let jitter_ns = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) % JITTER_NS;
        let ts_ns = BASE_NS + HOUR_NS + number as u64 * STEP_NS + jitter_ns;
        let stamp =
            Stamp { run: 1, number: number as u64, sent_ns: 0, flow: 7, bytes: 900, vlan: 0 };
        let data = stamp.frame();
        let ts_ns = if set_back { ts_ns - HOUR_NS } else { ts_ns };
        Packet { ts_ns, orig_len: data.len() as u32, data }
    };
    (0..PACKETS).map(packet).collect()
}

/// Half-open windows: over one edge of the clock's steps, within each part, narrower than the
/// jitter, and nowhere.
fn windows(packets: &[Packet]) -> Vec<(u64, u64)> {
    let at = |number: usize| packets[number].ts_ns;
    let (third, two) = (PACKETS / 3, 2 * PACKETS / 3);
    let mut windows = vec![
        (at(third - 500), at(third - 1) + 1),
        (at(third - 1), at(two)),
        (at(two - 300) - JITTER_NS, at(two - 200)),
        (at(two + 10), at(two + 400)),
        (at(third), at(PACKETS - 1) + 1),
        (BASE_NS + HOUR_NS / 2, BASE_NS + HOUR_NS / 2 + 1),
    ];
    for number in (0..PACKETS).step_by(997) {
        windows.push((at(number), at(number) + 1));
        windows.push((at(number), at(number) + JITTER_NS / 2));
    }
    windows
}

fn path(path: &Path) -> &str {
    path.to_str().expect("the folder has a plain name")
}

/// Times and bytes of an answer, in its order.
fn answer(file: &Path) -> Vec<(u64, Vec<u8>)> {
    let mut reader = Reader::new(BufReader::new(File::open(file).expect("an answer's file")));
    let mut found = Vec::new();
    while let Some(event) = reader.next_event().expect("a readable answer") {
        if let Event::Packet(packet) = event {
            found.push((packet.ts_ns, packet.data.to_vec()));
        }
    }
    found
}

/// Every window gives the packets whose time lies in it, in capture order, and a narrow one does
/// not read everything.
fn holds(site: &Site, packets: &[Packet], ask: &dyn Fn(&[&str]) -> Output) {
    let (file, told) = (site.file("answer.pcapng"), site.file("summary.json"));
    let time = |ns: u64| format!("@{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000);
    let query = |flags: &[&str]| {
        let output = ask(&[&["-w", path(&file), "--summary", path(&told)], flags].concat());
        // A stream that ended is a gap at its end, which may make an answer incomplete.
        assert!(matches!(output.status.code(), Some(0 | 1 | 3)), "{output:?}");
        let summary: Value =
            serde_json::from_slice(&fs::read(&told).expect("a summary")).expect("JSON");
        (answer(&file), summary)
    };
    let in_order = |packets: &mut dyn Iterator<Item = &Packet>| -> Vec<_> {
        packets.map(|packet| (packet.ts_ns, packet.data.clone())).collect()
    };
    let (all, summary) = query(&[]);
    assert!(all == in_order(&mut packets.iter()), "all of them, in capture order");
    let chunks = summary["chunks_read"].as_u64().expect("a count");
    assert!(chunks > 20, "{summary}");
    for (since_ns, until_ns) in windows(packets) {
        let within = |packet: &&Packet| (since_ns..until_ns).contains(&packet.ts_ns);
        let expected = in_order(&mut packets.iter().filter(within));
        let window = ["--since", &time(since_ns), "--until", &time(until_ns)];
        let (found, summary) = query(&window);
        assert!(found == expected, "{window:?}: {} of {}", found.len(), expected.len());
        if until_ns - since_ns < JITTER_NS {
            // Chunks of 256 KiB hold about 270 ms; two may touch a window, and where the clock was
            // set one covers both times.
            assert!(summary["chunks_read"].as_u64() <= Some(4), "{window:?}: {summary}");
        }
    }
    let (sorted, _) = query(&["--sort"]);
    let mut expected = all;
    // Equal times stay in capture order.
    expected.sort_by_key(|(ts_ns, _)| *ts_ns);
    assert!(sorted == expected, "strictly by time where that is asked for");
}

#[test]
fn windows_hold_in_a_file_whose_times_go_back() {
    let site = Site::new("512MiB", 1);
    let packets = packets();
    let file = site.file("jitter.pcap");
    write_pcap(&file, &packets);
    let imported = site.offline("import", &[path(&file)]);
    assert_eq!(imported.status.code(), Some(0), "{imported:?}");
    holds(&site, &packets, &|flags| site.offline("query", flags));
}

#[test]
fn windows_hold_while_a_clock_is_set_back() {
    let Some(ns) = Namespace::new() else { return };
    ns.ip(&["link", "set", "lo", "up"]);
    let site = Site::new("512MiB", 1);
    let packets = packets();
    let file = site.file("jitter.pcap");
    write_pcap(&file, &packets);
    let recorder = site
        .record_from(&format!("pcap_over_ip: [{{listen: '{PLACE}'}}]\nbuffer: {{size: 16MiB}}\n"));
    let mut stream = TcpStream::connect(PLACE).expect("the recorder listens");
    stream.write_all(&fs::read(&file).expect("the file")).expect("sent");
    wait_for("everything is stored", PATIENCE, || {
        (lane_count(&recorder.status(), "stored") == PACKETS as u64).then_some(())
    });
    holds(&site, &packets, &|flags| recorder.ask("query", flags));
    drop(stream);
    assert!(recorder.terminate().success());
    holds(&site, &packets, &|flags| site.offline("query", flags));
}
