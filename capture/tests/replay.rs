//! Replay of whole files through the source, and what other people's tools say of files we write.

use std::io::{Cursor, Write};
use std::ops::ControlFlow;
use std::process::Command;
use std::time::{Duration, Instant};

use wirevault_capture::{
    CaptureError, Packet, Polled, ReplayOptions, ReplaySource, Source, SourceState, Speed,
};
use wirevault_format::pcapng::{EpbParts, put_epb, put_idb, put_isb_comment, put_option, put_shb};
use wirevault_format::{Cause, Interface, LinkType};

const WAIT: Duration = Duration::from_millis(5);
const PACKETS: u32 = 3000;
const COMMENT: u16 = 1;

type Row = (u32, u64, u32, Vec<u8>, Option<u32>, Vec<u8>);

fn rows() -> Vec<Row> {
    let row = |n: u32| {
        let mut options = Vec::new();
        if n.is_multiple_of(10) {
            put_option(&mut options, COMMENT, format!("packet {n}").as_bytes());
        }
        let data: Vec<u8> = (0..64 + n % 200).map(|i| (i + n) as u8).collect();
        let ts_ns = 1_790_000_000_000_000_000 + u64::from(n) * 1_000;
        let flags = (!n.is_multiple_of(3)).then_some(n % 3);
        (n % 2, ts_ns, data.len() as u32 + n % 7, data, flags, options)
    };
    (0..PACKETS).map(row).collect()
}

fn interfaces() -> [Interface; 2] {
    let mut second = Interface::unnamed(LinkType::ETHERNET);
    second.name = Some("eth1".to_owned());
    second.snaplen_bytes = 300;
    [Interface::unnamed(LinkType::ETHERNET), second]
}

/// The rows as a file; the second interface is described behind the first packet.
fn pcapng(rows: &[Row]) -> Vec<u8> {
    let mut out = Vec::new();
    put_shb(&mut out, "wirevault test");
    let [first, second] = interfaces();
    put_idb(&mut out, &first, 262_144);
    for (number, (interface_id, ts_ns, orig_len, data, flags, raw_options)) in
        rows.iter().enumerate()
    {
        if number == 1 {
            put_idb(&mut out, &second, 262_144);
        }
        let parts = EpbParts {
            interface_id: *interface_id,
            ts_ns: *ts_ns,
            orig_len: *orig_len,
            data,
            vlan: None,
            flags: *flags,
            raw_options,
        };
        let at = out.len();
        out.resize(at + parts.block_bytes(), 0);
        put_epb(&mut out, at, &parts).expect("it fits");
    }
    put_isb_comment(&mut out, 0, 1_790_000_001_000_000_000, "a gap");
    out
}

fn open(bytes: Vec<u8>) -> ReplaySource {
    let input = Box::new(Cursor::new(bytes));
    ReplaySource::from_reader("test".to_owned(), input, Speed::Full).expect("a capture")
}

/// Replays to the end; the sink refuses every seventh call.
fn replay(source: &mut ReplaySource) -> (Vec<Row>, Vec<Cause>, Option<CaptureError>) {
    let (mut rows, mut gaps) = (Vec::new(), Vec::new());
    let (mut calls, mut known) = (0, source.interfaces().len());
    loop {
        let mut sink = |p: &Packet<'_>| {
            assert!((p.interface as usize) < known, "an interface was used before it was told");
            calls += 1;
            if calls % 7 == 0 {
                return ControlFlow::Break(());
            }
            let (data, options) = (p.data.to_vec(), p.options.to_vec());
            rows.push((p.interface, p.ts_ns, p.wire_len, data, p.flags, options));
            ControlFlow::Continue(())
        };
        match source.poll(&mut sink, WAIT) {
            Ok(Polled::End) => return (rows, gaps, None),
            Ok(Polled::Gap(gap)) => gaps.push(gap.cause),
            Ok(Polled::Interfaces) => known = source.interfaces().len(),
            Ok(Polled::Packets(_) | Polled::Idle) => {}
            Err(error) => return (rows, gaps, Some(error)),
        }
        let c = source.counters();
        assert_eq!(c.received, c.handed + c.in_ring);
    }
}

#[test]
fn packets_interfaces_and_options_come_through_unchanged() {
    let mut source = open(pcapng(&rows()));
    let (got, gaps, error) = replay(&mut source);
    assert!(error.is_none() && gaps.is_empty(), "{error:?} {gaps:?}");
    assert_eq!(got, rows());
    assert_eq!(source.interfaces(), interfaces());
    assert_eq!(source.state(), SourceState::Ended);
    assert!(!source.is_live());
    let counters = source.counters();
    assert_eq!(counters.handed, u64::from(PACKETS));
    assert_eq!(counters.skipped_blocks[1], 1, "the statistics block is counted");
}

#[test]
fn compressed_files_are_read_by_their_content() {
    let plain = pcapng(&rows());
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).expect("in memory");
    let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
    lz4.write_all(&plain).expect("in memory");
    let dir = tempfile::tempdir().expect("temporary directory");
    for (name, bytes) in [
        ("gzip", gzip.finish().expect("in memory")),
        ("zstd", zstd::encode_all(&plain[..], 1).expect("in memory")),
        ("lz4", lz4.finish().expect("in memory")),
    ] {
        let path = dir.path().join("capture.bin");
        std::fs::write(&path, bytes).expect("temporary file");
        let mut source =
            ReplaySource::open(&ReplayOptions { path, speed: Speed::Full }).expect("a capture");
        let (got, _, error) = replay(&mut source);
        assert!(error.is_none(), "{name}: {error:?}");
        assert_eq!(got.len(), PACKETS as usize, "{name}");
        assert_eq!(source.report().notes, [format!("format: pcapng, {name}")]);
    }
}

#[test]
fn damage_gives_the_packets_before_it_then_a_gap_then_the_error() {
    let rows = rows();
    let bytes = pcapng(&rows[..20]);
    let cut = bytes.len() - 100;
    let mut source = open(bytes[..cut].to_vec());
    let (got, gaps, error) = replay(&mut source);
    assert_eq!(got, rows[..got.len()]);
    assert!(got.len() >= 18);
    assert_eq!(gaps, [Cause::ImportUnreadable]);
    let error = error.expect("it is cut");
    assert!(error.is_corrupt(), "{error}");
    assert!(error.to_string().contains(&format!("{} packets came before", got.len())), "{error}");
    assert_eq!(source.counters().unreadable, 1);
    let after = source.poll(&mut |_: &Packet<'_>| ControlFlow::Continue(()), WAIT);
    assert_eq!(after.expect("it has ended"), Polled::End);
}

fn in_real_time(rows: &[Row]) -> ReplaySource {
    let input = Box::new(Cursor::new(pcapng(rows)));
    ReplaySource::from_reader("test".to_owned(), input, Speed::RealTime).expect("a capture")
}

#[test]
fn real_time_replay_keeps_the_distances() {
    const DISTANCE: Duration = Duration::from_millis(60);
    let mut rows = rows()[..3].to_vec();
    rows[1].1 = rows[0].1 + DISTANCE.as_nanos() as u64;
    rows[2].1 = rows[0].1;
    let mut source = in_real_time(&rows);
    let begin = Instant::now();
    let mut taken = Vec::new();
    loop {
        let mut sink = |_: &Packet<'_>| {
            taken.push(begin.elapsed());
            ControlFlow::Continue(())
        };
        if source.poll(&mut sink, WAIT).expect("replay") == Polled::End {
            break;
        }
    }
    assert_eq!(taken.len(), 3);
    // The first was due after the beginning, however late it was taken.
    assert!(taken[1] >= DISTANCE, "{taken:?}");
}

#[test]
fn a_poll_of_a_real_time_replay_waits_no_longer_than_it_is_told() {
    let mut rows = rows()[..2].to_vec();
    rows[1].1 = rows[0].1 + 24 * 60 * 60 * 1_000_000_000;
    let mut source = in_real_time(&rows);
    let mut taken = 0;
    let mut poll = || {
        let mut sink = |_: &Packet<'_>| {
            taken += 1;
            ControlFlow::Continue(())
        };
        source.poll(&mut sink, WAIT).expect("replay")
    };
    // The first packet, the second interface, and then that there is nothing.
    while poll() != Polled::Idle {}
    let called = Instant::now();
    assert_eq!(poll(), Polled::Idle);
    assert!(called.elapsed() >= WAIT);
    assert_eq!(taken, 1);
}

#[test]
fn an_absent_file_is_named() {
    let options = ReplayOptions { path: "/nonexistent/x.pcap".into(), speed: Speed::Full };
    let error = ReplaySource::open(&options).err().expect("absent");
    assert!(error.to_string().contains("/nonexistent/x.pcap"), "{error}");
    assert!(!error.is_corrupt());
}

/// Runs a tool; `None`, loudly, if it is not installed and `CI` is not `true`.
fn tool(name: &str, args: &[&str]) -> Option<String> {
    match Command::new(name).args(args).output() {
        Ok(output) => {
            assert!(output.status.success(), "{name} {args:?}: {output:?}");
            Some(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Err(error) => {
            let ci = std::env::var("CI").is_ok_and(|value| value == "true");
            assert!(!ci, "CI=true, but {name} cannot be run: {error}");
            eprintln!("SKIPPED: {name} cannot be run: {error}");
            None
        }
    }
}

#[test]
fn tcpdump_and_tshark_read_what_we_write_and_we_read_what_they_write() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("ours.pcapng");
    let file = path.to_str().expect("UTF-8");
    std::fs::write(&path, pcapng(&rows())).expect("temporary file");

    if let Some(lines) = tool("tcpdump", &["-n", "-tt", "--nano", "-r", file]) {
        assert_eq!(lines.lines().filter(|l| l.starts_with("1790000000.")).count(), 3000);
    }
    let fields =
        ["-T", "fields", "-e", "frame.time_epoch", "-e", "frame.len", "-e", "frame.cap_len"];
    let comment = ["-e", "frame.comment"];
    let args = [&["-n", "-r", file], &fields[..], &comment].concat();
    if let Some(lines) = tool("tshark", &args) {
        let expected: Vec<String> = rows()
            .iter()
            .enumerate()
            .map(|(n, (_, ts_ns, orig_len, data, _, _))| {
                let (s, ns) = (ts_ns / 1_000_000_000, ts_ns % 1_000_000_000);
                let note = if n % 10 == 0 { format!("packet {n}") } else { String::new() };
                format!("{s}.{ns:09}\t{orig_len}\t{}\t{note}", data.len())
            })
            .collect();
        assert_eq!(lines.lines().collect::<Vec<_>>(), expected);
    }

    // Classic pcap in both units, as editcap writes it, holds the same packets.
    for kind in ["pcap", "nsecpcap"] {
        let path = dir.path().join(kind);
        let to = path.to_str().expect("UTF-8");
        if tool("editcap", &["-F", kind, file, to]).is_none() {
            return;
        }
        let options = ReplayOptions { path, speed: Speed::Full };
        let mut source = ReplaySource::open(&options).expect("a capture");
        let (got, _, error) = replay(&mut source);
        assert!(error.is_none(), "{error:?}");
        let plain = |r: &Row| (r.1, r.2, r.3.clone());
        assert!(got.iter().map(plain).eq(rows().iter().map(plain)), "{kind}");
        assert_eq!(source.interfaces().len(), 1);
    }
}
