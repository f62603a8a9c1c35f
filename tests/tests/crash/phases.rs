//! Killed in every phase of writing: at a chosen system call of the real program. The bytes on the
//! disk then prove the phase.

use std::path::Path;
use std::time::{Duration, Instant};

use wirevault_format::chunk::ChunkHeader;
use wirevault_format::footer::{FOOTER_BYTES, Footer};
use wirevault_format::table::SegmentState;
use wirevault_format::{section, segment};
use wirevault_testkit::net::{Namespace, now_ns, wait_for};
use wirevault_tests::captures::{Packet, write_pcap};
use wirevault_tests::recorder::{PATIENCE, Recorder, Site, lane_count};
use wirevault_tests::stepper::{Act, Call, Hit, Moment};
use wirevault_tests::store::text;

use crate::disk::{Change, Disk, PAGE_BYTES, Part, piece, place};
use crate::load::{Load, check, options};

/// The smallest there is for one lane: segments of 16 MiB.
const QUOTA: &str = "272MiB";
/// Enough of them fill the quota, so that every new segment takes the place of an old one.
const FILLERS: u64 = 4500;
const FILLER_BYTES: usize = 60_000;
/// A part of a page that a torn write leaves.
const TORN_BYTES: u64 = 1500;
/// Every phase comes within a few seconds under load; machines are shared.
const PHASE_MAX: Duration = Duration::from_secs(60);
const FOOTER: u64 = FOOTER_BYTES as u64;

/// One kill.
struct Case {
    phase: &'static str,
    /// What the disk shows afterwards.
    shows: &'static str,
    /// Chunks are written by pwrite64(2), for io_uring writes without a call of its own.
    without_uring: bool,
    rule: fn(&Disk, &Call) -> Option<Moment>,
    proof: fn(&Disk, &Hit),
}

const fn case(
    phase: &'static str,
    shows: &'static str,
    rule: fn(&Disk, &Call) -> Option<Moment>,
    proof: fn(&Disk, &Hit),
) -> Case {
    Case { phase, shows, without_uring: false, rule, proof }
}

const CASES: &[Case] = &[
    case(
        "open",
        "a file with a torn header, its place free",
        |_, call| header(call).then_some(Moment::Within(64)),
        |disk, hit| {
            assert_eq!(disk.state(place(&hit.path)), SegmentState::Free);
            assert!(segment::decode(&piece(&hit.path, 0, PAGE_BYTES)).is_err());
            assert_eq!(length(hit), disk.segment_bytes(), "its space is reserved");
        },
    ),
    case(
        "open, table",
        "a file with a whole header, its place free: the table does not name it yet",
        |disk, call| changes(disk, call, Change::Opens).then_some(Moment::Before),
        |disk, _| {
            let left = disk.files(SegmentState::Free);
            assert_eq!(left.len(), 1, "{left:?}");
            segment::decode(&piece(&left[0], 0, PAGE_BYTES)).expect("a header");
        },
    ),
    case(
        "open, table",
        "a torn page in one slot of the table, the older page in the other",
        |disk, call| changes(disk, call, Change::Opens).then_some(Moment::Within(TORN_BYTES)),
        torn_page,
    ),
    case(
        "chunk, io_uring",
        "an open segment whose last chunks were handed to the kernel",
        |_, call| (call.act == Act::Submit).then_some(Moment::Behind),
        |disk, hit| {
            assert!(hit.bytes > 0, "something was submitted");
            let open = disk.files(SegmentState::Open);
            assert!(open.iter().any(|file| chunks(file) > 0), "{open:?}");
        },
    ),
    Case {
        without_uring: true,
        ..case(
            "chunk, pwrite",
            "a chunk's header without the chunk's end",
            |_, call| {
                let far = call.act == Act::Write && call.offset > 1 << 20;
                let whole =
                    || ChunkHeader::decode(&call.data(128)).is_ok() && call.bytes > 2 * PAGE_BYTES;
                (far && whole()).then_some(Moment::Within(PAGE_BYTES))
            },
            |disk, hit| {
                assert_eq!(disk.state(place(&hit.path)), SegmentState::Open);
                let chunk = piece(&hit.path, hit.offset, hit.bytes);
                let header = ChunkHeader::decode(&chunk).expect("its header is there");
                assert_eq!(header.chunk_bytes() as u64, hit.bytes);
                assert!(chunk[PAGE_BYTES as usize..].iter().all(|byte| *byte == 0));
            },
        )
    },
    case(
        "index",
        "half of an index, no footer, the segment open",
        |_, call| tail(call).then(|| Moment::Within((call.bytes - FOOTER) / 2)),
        |disk, hit| {
            let written = piece(&hit.path, hit.offset, hit.bytes);
            let (first, rest) = written.split_at((hit.bytes - FOOTER) as usize / 2);
            assert!(first.iter().any(|byte| *byte != 0) && rest.iter().all(|byte| *byte == 0));
            assert_eq!(disk.state(place(&hit.path)), SegmentState::Open);
        },
    ),
    case(
        "footer",
        "the whole index, no footer, the segment open",
        |_, call| tail(call).then(|| Moment::Within(call.bytes - FOOTER)),
        |disk, hit| {
            section::decode(&piece(&hit.path, hit.offset, hit.bytes)).expect("an index");
            assert!(footer(hit).iter().all(|byte| *byte == 0));
            assert_eq!(disk.state(place(&hit.path)), SegmentState::Open);
        },
    ),
    case(
        "footer",
        "a torn footer, the segment open",
        |_, call| tail(call).then(|| Moment::Within(call.bytes - FOOTER + TORN_BYTES)),
        |disk, hit| {
            assert!(footer(hit).iter().any(|byte| *byte != 0));
            assert!(Footer::decode(&footer(hit)).is_err());
            assert_eq!(disk.state(place(&hit.path)), SegmentState::Open);
        },
    ),
    case(
        "footer",
        "a whole footer in a file that is not cut behind it, the segment open",
        |_, call| tail(call).then_some(Moment::Behind),
        |disk, hit| {
            Footer::decode(&footer(hit)).expect("a footer");
            assert!(length(hit) > hit.offset + hit.bytes);
            assert_eq!(disk.state(place(&hit.path)), SegmentState::Open);
        },
    ),
    case(
        "close, table",
        "a torn page in one slot of the table, the older page in the other",
        |disk, call| changes(disk, call, Change::Closes).then_some(Moment::Within(TORN_BYTES)),
        torn_page,
    ),
    case(
        "close, table",
        "a newer page that the program never learned of",
        |disk, call| changes(disk, call, Change::Closes).then_some(Moment::Behind),
        |disk, hit| {
            let older = disk.page_at(disk.other_slot(hit.offset)).expect("the older page");
            assert_eq!(disk.page_at(hit.offset), Some(older + 1));
        },
    ),
    case(
        "key ring",
        "a torn ring in one slot, the older ring in the other",
        |disk, call| writes(disk, call, Part::Ring).then_some(Moment::Within(call.bytes / 2)),
        |disk, hit| {
            assert_eq!(disk.ring_at(hit.offset), None);
            disk.ring_at(disk.other_slot(hit.offset)).expect("the older ring");
        },
    ),
    case(
        "key ring",
        "a newer ring that the program never learned of",
        |disk, call| writes(disk, call, Part::Ring).then_some(Moment::Behind),
        |disk, hit| {
            let older = disk.ring_at(disk.other_slot(hit.offset)).expect("the older ring");
            assert_eq!(disk.ring_at(hit.offset), Some(older + 1));
        },
    ),
    case(
        "place reuse, superblock",
        "a torn superblock, the older one in the other slot",
        |disk, call| writes(disk, call, Part::Superblock).then_some(Moment::Within(TORN_BYTES)),
        |disk, hit| {
            assert_eq!(disk.superblock_at(hit.offset), None);
            disk.superblock_at(disk.other_slot(hit.offset)).expect("the older superblock");
        },
    ),
    case(
        "place reuse, table",
        "a torn page in one slot of the table, the older page in the other",
        |disk, call| changes(disk, call, Change::Frees).then_some(Moment::Within(TORN_BYTES)),
        torn_page,
    ),
    case(
        "place reuse, removal",
        "a place that is free and still has its closed segment's file",
        |_, call| (call.act == Act::Remove && is_segment(call)).then_some(Moment::Before),
        |disk, hit| assert!(disk.files(SegmentState::Free).contains(&hit.path)),
    ),
    case(
        "place reuse, new file",
        "the old file gone, an empty new one in its place, which is free",
        |_, call| (call.act == Act::Make && is_segment(call)).then_some(Moment::Behind),
        |disk, hit| {
            assert!(disk.files(SegmentState::Free).contains(&hit.path));
            assert_eq!(length(hit), 0);
        },
    ),
];

/// Every phase that a kill must have met.
const PHASES: [&str; 7] =
    ["open", "chunk", "index", "footer", "close, table", "key ring", "place reuse"];

#[test]
fn nothing_acknowledged_is_lost_by_a_kill_in_any_phase() {
    let Some(ns) = Namespace::new() else { return };
    ns.add_veth("va", "vb");
    let begin = Instant::now();
    let site = Site::new(QUOTA, 1);
    fill(&site);
    let (mut acknowledged_in_all, mut found_in_all, mut sent_in_all) = (0, 0, 0);
    for (case, run) in CASES.iter().zip(0..) {
        let recorder = site.record_stepped("va", &options(run), case.without_uring);
        let (hit, acknowledged, sent) = live_and_die(&site, recorder, run, case);
        let killed_ns = now_ns();
        (case.proof)(&Disk::of(&site), &hit);
        let recorder = site.record("va", &options(run));
        let status = recorder.status();
        assert_eq!(status["recovery"]["crashed_runs"], 1, "{status}");
        assert_eq!(status["recovery"]["damage"].as_array().map(Vec::len), Some(0), "{status}");
        let (found, summary) = check(&site, &recorder, run, acknowledged, sent);
        let gaps = summary["gaps"].as_array().expect("gaps");
        let crash = gaps.iter().find(|gap| {
            let ns = |bound: &str| gap[bound]["ns"].as_u64().expect("a bound");
            gap["cause"] == "crash_tail" && (ns("from")..ns("until")).contains(&killed_ns)
        });
        assert!(crash.is_some() && summary["complete"] == false, "{summary:#}");
        assert!(recorder.terminate().success());
        println!("{:<24} {:?} {:?}: {}", case.phase, hit.act, hit.moment, case.shows);
        println!("{:<24} {sent} sent, {acknowledged} acknowledged, {found} found", "");
        acknowledged_in_all += acknowledged;
        found_in_all += found;
        sent_in_all += sent;
    }
    let verify = site.offline("verify", &[]);
    assert_eq!(verify.status.code(), Some(0), "{verify:?}");
    println!(
        "{} kills, each in its phase, in {:.0} s: {sent_in_all} packets sent, \
         {acknowledged_in_all} acknowledged and all of these found once, {found_in_all} found",
        CASES.len(),
        begin.elapsed().as_secs_f64()
    );
}

#[test]
fn every_phase_has_a_kill() {
    for phase in PHASES {
        assert!(CASES.iter().any(|case| case.phase.starts_with(phase)), "none in {phase}");
    }
}

/// Fills the quota.
fn fill(site: &Site) {
    let file = site.file("filler.pcap");
    let packet = |number: u64| {
        let mut data = vec![0x5a; FILLER_BYTES];
        data[12..14].copy_from_slice(&[0x88, 0xb5]);
        Packet { ts_ns: 1_700_000_000_000_000_000 + number, orig_len: FILLER_BYTES as u32, data }
    };
    write_pcap(&file, &(0..FILLERS).map(packet).collect::<Vec<_>>());
    let output = site.offline("import", &[&text(&file)]);
    assert!(output.status.success(), "{output:?}");
    std::fs::remove_file(&file).expect("the file was imported");
}

/// Sends until the case's rule has killed the recorder. Gives where that was, the last watermark it
/// told before, and how many packets were sent.
fn live_and_die(site: &Site, recorder: Recorder, run: u16, case: &Case) -> (Hit, u64, u64) {
    let load = Load::start(run);
    let watermark = |recorder: &Recorder| {
        let status = recorder.try_status()?;
        assert_eq!(lane_count(&status, "dropped"), 0, "{status}");
        Some(lane_count(&status, "watermark"))
    };
    let first = wait_for("the first acknowledgement", PATIENCE, || {
        watermark(&recorder).filter(|watermark| *watermark > 0)
    });
    let (disk, rule) = (Disk::of(site), case.rule);
    recorder.stepper().arm(Box::new(move |call| rule(&disk, call)));
    let mut acknowledged = first;
    let hit = wait_for(case.phase, PHASE_MAX, || {
        acknowledged = watermark(&recorder).unwrap_or(acknowledged).max(acknowledged);
        recorder.stepper().ended().and(recorder.stepper().hit())
    });
    recorder.kill();
    (hit, acknowledged, load.stop())
}

fn is_segment(call: &Call) -> bool {
    call.path.extension().is_some_and(|extension| extension == "pcapng")
}

/// The first write to a new segment's file.
fn header(call: &Call) -> bool {
    call.act == Act::Write && is_segment(call) && call.offset == 0
}

/// Index and footer are written by one call.
fn tail(call: &Call) -> bool {
    let part = || section::decode(&call.data(call.bytes as usize)).is_ok();
    call.act == Act::Write && is_segment(call) && call.offset > 0 && part()
}

fn writes(disk: &Disk, call: &Call, part: Part) -> bool {
    call.act == Act::Write && call.is_of("volume.wv") && disk.part(call.offset) == part
}

/// Whether a page of the segment table is written that says this of some place.
fn changes(disk: &Disk, call: &Call, change: Change) -> bool {
    writes(disk, call, Part::Segments)
        && disk.change(call.offset, &call.data(PAGE_BYTES as usize)) == Some(change)
}

/// Headers of chunks that follow each other in a segment's file.
fn chunks(file: &Path) -> u64 {
    let (mut chunks, mut at) = (0, PAGE_BYTES);
    while let Ok(header) = ChunkHeader::decode(&piece(file, at, 128)) {
        chunks += 1;
        at += header.chunk_bytes() as u64;
    }
    chunks
}

fn torn_page(disk: &Disk, hit: &Hit) {
    assert_eq!(disk.page_at(hit.offset), None);
    disk.page_at(disk.other_slot(hit.offset)).expect("the older page");
}

fn footer(hit: &Hit) -> Vec<u8> {
    piece(&hit.path, hit.offset + hit.bytes - FOOTER, FOOTER)
}

fn length(hit: &Hit) -> u64 {
    std::fs::metadata(&hit.path).expect("a file").len()
}
