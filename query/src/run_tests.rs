//! Queries over segments in memory, against a model that sorts everything.

use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;

use nix::time::ClockId;
use proptest::prelude::*;
use wirevault_format::table::{RunEntry, RunState};
use wirevault_format::{Cause, Gap, Interface, LinkType, RunId};

use crate::error::QueryError;
use crate::export::{PacketOut, Sink};
use crate::flows::{FlowRow, list};
use crate::run::{HELD_BYTES_MAX, Request, Store, execute};
use crate::sim::{SimPacket, SimSegment};
use crate::source::Hole;
use crate::summary::Summary;

const LINKS: [LinkType; 2] = [LinkType::ETHERNET, LinkType::RAW];

#[derive(Default)]
struct Collect {
    interfaces: Vec<Interface>,
    numbers: Vec<u64>,
    stop_after: Option<usize>,
    fail: Option<io::ErrorKind>,
}

impl Sink for Collect {
    fn interface(&mut self, id: u32, interface: &Interface) -> io::Result<()> {
        assert_eq!(id as usize, self.interfaces.len());
        assert!(!self.interfaces.contains(interface), "an interface comes once");
        self.interfaces.push(interface.clone());
        Ok(())
    }

    fn packet(&mut self, packet: &PacketOut<'_>) -> io::Result<ControlFlow<()>> {
        if let Some(kind) = self.fail {
            return Err(kind.into());
        }
        assert_eq!(self.interfaces[packet.interface as usize].link_type, packet.link_type);
        self.numbers.push(SimPacket::number_of(packet.data));
        let enough = self.stop_after.is_some_and(|n| self.numbers.len() >= n);
        Ok(if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }
}

/// A run that starts at `run` and has ended long after.
fn run_entry(run: u64) -> RunEntry {
    let (started_ns, ended_ns) = (run, 1_000_000);
    RunEntry {
        state: RunState::Ended,
        run: RunId(run),
        started_ns,
        ended_ns,
        lanes: 1,
        ..RunEntry::default()
    }
}

fn store<'a>(
    segments: &'a [SimSegment],
    runs: &'a [RunEntry],
    held_bytes_max: usize,
) -> Store<'a, SimSegment> {
    Store {
        segments: segments.iter().collect(),
        runs,
        missing_volumes: Vec::new(),
        lost: &[],
        replaced_ns: 0,
        evicted_live_ns: 0,
        evicted_import_ns: 0,
        now_ns: 1_000_000,
        durable_until_ns: None,
        held_bytes_max,
        flows_held_max: 100,
    }
}

fn ask_with(
    segments: &[SimSegment],
    runs: &[RunEntry],
    request: &Request,
    sink: &mut Collect,
    held_bytes_max: usize,
) -> Result<Summary, QueryError> {
    let store = store(segments, runs, held_bytes_max);
    execute(&store, request, sink, &AtomicBool::new(false))
}

fn ask(segments: &[SimSegment], request: &Request) -> (Vec<u64>, Summary) {
    let mut sink = Collect::default();
    let summary = ask_with(segments, &[run_entry(1)], request, &mut sink, HELD_BYTES_MAX).unwrap();
    (sink.numbers, summary)
}

fn packets(spec: &[(u64, u16)], first: u64) -> Vec<SimPacket> {
    let packet = |(n, (ts_ns, port)): (u64, &(u64, u16))| SimPacket {
        ts_ns: *ts_ns,
        port: *port,
        number: first + n,
    };
    (0..).zip(spec).map(packet).collect()
}

/// One stream as the property draws it: packets, where chunks and segments end, and how much is
/// copied.
#[derive(Debug, Clone)]
struct Drawn {
    run: u64,
    lane: u16,
    link: usize,
    packets: Vec<(u64, u16)>,
    chunk: usize,
    segment: usize,
    /// Chunks that a following segment repeats.
    copied: usize,
    generous: usize,
    open_end: bool,
}

fn drawn() -> impl Strategy<Value = Drawn> {
    let packets =
        proptest::collection::vec((2u64..60, prop::sample::select(vec![53u16, 80])), 0..40);
    let sizes = (1usize..6, 1usize..5, 0usize..3, 0usize..4, any::<bool>());
    (1u64..4, 0u16..2, 0usize..2, packets, sizes).prop_map(
        |(run, lane, link, packets, (chunk, segment, copied, generous, open_end))| Drawn {
            run,
            lane,
            link,
            packets,
            chunk,
            segment,
            copied: copied.min(segment - 1),
            generous,
            open_end,
        },
    )
}

impl Drawn {
    fn all(&self) -> Vec<SimPacket> {
        packets(
            &self.packets,
            (self.run << 32) + (u64::from(self.lane) << 24) + ((self.link as u64) << 16),
        )
    }

    fn segments(&self, ordinal: &mut u64) -> Vec<SimSegment> {
        let all = self.all();
        let chunks: Vec<(u64, &[SimPacket])> =
            all.chunks(self.chunk).enumerate().map(|(n, c)| ((n * self.chunk) as u64, c)).collect();
        let mut segments = Vec::new();
        let mut at = 0;
        while at < chunks.len() {
            let end = (at + self.segment).min(chunks.len());
            *ordinal += 1;
            let mut segment = SimSegment::new(self.run, self.lane, LINKS[self.link], *ordinal);
            segment.generous = self.generous;
            for (first, packets) in &chunks[at..end] {
                segment = segment.chunk(*first, packets);
            }
            segments.push(if end == chunks.len() && self.open_end {
                segment.still_open()
            } else {
                segment
            });
            if end == chunks.len() {
                break;
            }
            at = end - self.copied;
        }
        segments
    }
}

/// What the answer must be: every packet with its key, sorted.
fn model(streams: &[Drawn], request: &Request) -> Vec<u64> {
    let mut found = Vec::new();
    for stream in streams {
        let mut running = 0;
        for (sequence, packet) in stream.all().into_iter().enumerate() {
            running = running.max(packet.ts_ns);
            let since = packet.ts_ns >= request.since_ns.unwrap_or(0);
            let until = packet.ts_ns < request.until_ns.unwrap_or(u64::MAX);
            let port = request.filter.is_empty() || packet.port == 53;
            if since && until && port {
                let time = if request.sort { packet.ts_ns } else { running };
                found.push((
                    (time, stream.run, stream.lane, LINKS[stream.link], sequence),
                    packet.number,
                ));
            }
        }
    }
    found.sort();
    let limit = request.limit.unwrap_or(u64::MAX) as usize;
    found.into_iter().map(|(_, number)| number).take(limit).collect()
}

/// Behind a segment that held nothing the next ones are looked into before their turn.
#[test]
fn rows_of_segments_without_an_answer_change_nothing_of_it() {
    const SEGMENTS: u64 = 120;
    let holds = |n: u64| [0, 40, 41, 119].contains(&n);
    let segment = |n: u64| {
        let port = if holds(n) { 53 } else { 80 };
        let at = 100 * (n + 1);
        let gap = Gap {
            cause: Cause::NoBuffer,
            from_ns: at + 50,
            until_ns: Some(at + 60),
            packets: Some(1),
            cumulative: n + 1,
            sequence: 2 * n + 2,
            policy: None,
            pressure: None,
        };
        let spec = packets(&[(at, port), (at + 1, port)], 2 * n);
        let mut segment = SimSegment::new(1, 0, LINKS[0], n + 1).chunk(2 * n, &spec);
        segment.gaps.push(gap);
        segment.absent = (n == 70).then_some(Cause::MissingSegment);
        segment
    };
    let segments: Vec<_> = (0..SEGMENTS).map(segment).collect();
    let filter = "udp port 53".to_owned();
    let (found, summary) =
        ask(&segments, &Request { filter: filter.clone(), ..Request::default() });
    assert_eq!(found, [0, 1, 80, 81, 82, 83, 238, 239]);
    assert_eq!((summary.chunks_considered, summary.chunks_read), (SEGMENTS - 1, 4));
    let told = |summary: &Summary, cause: &str| {
        summary.gaps.iter().filter(|gap| gap.cause.name() == cause).count() as u64
    };
    assert_eq!(told(&summary, "no_buffer"), SEGMENTS - 1, "{summary}");
    assert_eq!(told(&summary, "missing_segment"), 1, "{summary}");
    let mut rows = Vec::new();
    let mut out = |row: &FlowRow| {
        rows.push((row.packets, row.segments));
        Ok(ControlFlow::Continue(()))
    };
    let (runs, never) = ([run_entry(1)], AtomicBool::new(false));
    let store = store(&segments, &runs, HELD_BYTES_MAX);
    let asked = Request { filter: filter.clone(), ..Request::default() };
    let listed = list(&store, &asked, &mut out, &never).unwrap();
    assert_eq!(rows, [(8, 4)]);
    assert_eq!((listed.chunks_considered, &listed.gaps), (SEGMENTS - 1, &summary.gaps));
    let first = Request { filter, limit: Some(3), ..Request::default() };
    let (found, summary) = ask(&segments, &first);
    assert_eq!((found, summary.packets), (vec![0, 1, 80], 3));
    assert_eq!(told(&summary, "no_buffer"), 40, "only those before the last packet: {summary}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn answers_are_the_models(
        streams in proptest::collection::vec(drawn(), 0..5),
        filtered in any::<bool>(),
        since in proptest::option::of(0u64..60),
        length in proptest::option::of(1u64..60),
        limit in proptest::option::of(0u64..20),
        sort in any::<bool>(),
    ) {
        let mut streams = streams;
        streams.sort_by_key(|s| (s.run, s.lane, s.link));
        streams.dedup_by_key(|s| (s.run, s.lane, s.link));
        let mut ordinal = 0;
        let segments: Vec<SimSegment> =
            streams.iter().flat_map(|stream| stream.segments(&mut ordinal)).collect();
        let request = Request {
            filter: if filtered { "udp port 53".into() } else { String::new() },
            since_ns: since,
            until_ns: length.map(|length| since.unwrap_or(0) + length),
            limit,
            sort,
            ..Request::default()
        };
        let runs: Vec<RunEntry> = (1..4).map(run_entry).collect();
        let mut sink = Collect::default();
        let summary = ask_with(&segments, &runs, &request, &mut sink, HELD_BYTES_MAX).unwrap();
        let expected = model(&streams, &request);
        prop_assert_eq!(&sink.numbers, &expected);
        prop_assert_eq!(summary.packets, expected.len() as u64);
        let cut = limit.is_some_and(|limit| limit <= expected.len() as u64);
        prop_assert_eq!(summary.limit_reached, cut);
        let counted = Request { count_only: true, ..request };
        let mut none = Collect::default();
        let count = ask_with(&segments, &runs, &counted, &mut none, HELD_BYTES_MAX).unwrap();
        prop_assert_eq!(count, summary);
        prop_assert!(none.numbers.is_empty() && none.interfaces.is_empty());
    }
}

/// Rows in short: segments, port of the flow, packets, first and last time.
type Row = (u32, u16, u64, u64, u64);

fn list_flows(
    segments: &[SimSegment],
    runs: &[RunEntry],
    request: &Request,
) -> (Vec<Row>, Summary) {
    let store = store(segments, runs, 0);
    let mut rows = Vec::new();
    let mut out = |row: &FlowRow| {
        let port = row.a_port.into_iter().chain(row.b_port).find(|port| *port != 0x3039).unwrap();
        assert_eq!((row.protocol.as_str(), row.bytes % row.packets), ("UDP", 0));
        rows.push((row.segments, port, row.packets, row.first.ns, row.last.ns));
        Ok(ControlFlow::Continue(()))
    };
    let summary = list(&store, request, &mut out, &AtomicBool::new(false)).unwrap();
    (rows, summary)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn flows_are_counted_exactly_whatever_the_index_knows(
        drawn in drawn(),
        filter in prop::sample::select(vec![
            ("", false, false), ("udp port 53", true, false), ("udp[15] & 1 = 0", false, true),
            ("port 53 and udp[15] & 1 = 0", true, true),
        ]),
        since in proptest::option::of(0u64..60),
        length in proptest::option::of(1u64..60),
        unindexed in any::<bool>(),
    ) {
        let mut segments = drawn.segments(&mut 0);
        segments.iter_mut().for_each(|segment| segment.unindexed = unindexed);
        let until_ns = length.map(|length| since.unwrap_or(0) + length);
        let (text, port, even) = filter;
        let request =
            Request { filter: text.into(), since_ns: since, until_ns, ..Request::default() };
        let wanted = |p: &&SimPacket| {
            p.ts_ns >= since.unwrap_or(0) && until_ns.is_none_or(|until| p.ts_ns < until)
                && (!port || p.port == 53) && (!even || p.number.is_multiple_of(2))
        };
        let mut expected: Vec<Row> = Vec::new();
        // A packet counts in the first segment that holds it.
        let all = drawn.all();
        let (first, rest) = all.split_at(all.len().min(drawn.chunk * drawn.segment));
        let fresh = drawn.chunk * (drawn.segment - drawn.copied);
        for port in [53, 80] {
            let mut of_flow = Vec::new();
            for segment in [first].into_iter().chain(rest.chunks(fresh)) {
                let flow = segment.iter().filter(wanted).filter(|p| p.port == port);
                of_flow.push(flow.map(|p| p.ts_ns).collect::<Vec<u64>>());
            }
            of_flow.retain(|times| !times.is_empty());
            let times = || of_flow.iter().flatten().copied();
            if let (Some(first), Some(last)) = (times().min(), times().max()) {
                let row = (of_flow.len() as u32, port, times().count() as u64, first, last);
                expected.push(row);
            }
        }
        let (mut rows, summary) = list_flows(&segments, &[run_entry(drawn.run)], &request);
        prop_assert!(rows.is_sorted_by_key(|row| row.3), "by first time");
        rows.sort_unstable();
        expected.sort_unstable();
        prop_assert_eq!(&rows, &expected);
        prop_assert_eq!(summary.packets, rows.iter().map(|row| row.2).sum::<u64>());
        if !unindexed && !even && drawn.copied == 0 && since.is_none() && until_ns.is_none() {
            prop_assert_eq!(summary.chunks_read, 0, "the index is enough");
        }
    }
}

#[test]
fn rows_can_be_limited() {
    let segment = SimSegment::new(1, 0, LINKS[0], 1).chunk(0, &packets(&[(10, 53), (20, 80)], 0));
    let request = Request { limit: Some(1), ..Request::default() };
    let (rows, summary) = list_flows(&[segment], &[run_entry(1)], &request);
    assert_eq!((rows.len(), summary.limit_reached), (1, true));
}

#[test]
fn more_flows_than_fit_in_memory_have_several_rows_and_that_is_told() {
    // 60 flows in each of three segments; 100 fit. Flow 0 goes on in every segment.
    let flows =
        |n: u64| packets(&(0..60).map(|p| (100 * n + p, 100 + p as u16)).collect::<Vec<_>>(), 0);
    let others = |n: u64| {
        let mut packets = flows(n);
        packets.iter_mut().skip(1).for_each(|packet| packet.port += 1000 * n as u16);
        packets
    };
    let segment = |n: u64| SimSegment::new(1, 0, LINKS[0], n + 1).chunk(60 * n, &others(n));
    let segments: Vec<_> = (0..3).map(segment).collect();
    let (rows, summary) = list_flows(&segments, &[run_entry(1)], &Request::default());
    assert_eq!(rows.iter().map(|row| row.2).sum::<u64>(), 180, "every packet is in one row");
    assert_eq!(rows.len(), 178, "flow 0 spoke while there was room for it");
    assert_eq!(rows.iter().map(|row| row.0).max(), Some(3));
    assert!(summary.warnings[0].contains("more than 100 flows"), "{summary}");
    let (rows, summary) = list_flows(&segments[..1], &[run_entry(1)], &Request::default());
    assert_eq!((rows.len(), summary.warnings.len()), (60, 0));
    let counted = Request { count_only: true, ..Request::default() };
    let (rows, summary) = list_flows(&segments, &[run_entry(1)], &counted);
    assert_eq!((rows.len(), summary.packets), (0, 180));
}

#[test]
fn only_chunks_that_may_hold_an_answer_are_read() {
    let quiet: Vec<(u64, u16)> = (10..20).map(|t| (t, 80)).collect();
    let mut first = SimSegment::new(1, 0, LINKS[0], 1).chunk(0, &packets(&quiet, 0));
    first = first.chunk(10, &packets(&[(20, 53)], 10));
    let second = SimSegment::new(1, 0, LINKS[0], 2).chunk(11, &packets(&[(30, 80)], 11));
    let request = Request { filter: "udp port 53".into(), ..Request::default() };
    let (numbers, summary) = ask(&[first, second], &request);
    assert_eq!(numbers, [10]);
    let reads = (
        summary.segments_considered,
        summary.segments_read,
        summary.chunks_considered,
        summary.chunks_read,
    );
    assert_eq!(reads, (2, 1, 3, 1));
}

#[test]
fn a_damaged_chunk_is_told_and_its_copy_is_used() {
    let data = packets(&[(10, 53), (20, 53), (30, 53)], 0);
    let mut first = SimSegment::new(1, 0, LINKS[0], 1).chunk(0, &data[..1]).chunk(1, &data[1..2]);
    first.chunks[1].absent = Some(Cause::Damaged);
    let rest = SimSegment::new(1, 0, LINKS[0], 2).chunk(2, &data[2..]);
    let (numbers, summary) = ask(&[first.clone(), rest.clone()], &Request::default());
    assert_eq!(numbers, [0, 2]);
    assert!(!summary.complete);
    assert_eq!((summary.damaged.len(), summary.damaged[0].chunk), (1, Some(1)));
    assert_eq!((summary.gaps[0].from.ns, summary.gaps[0].until.ns), (20, 21));
    let beside = Request { since_ns: Some(21), ..Request::default() };
    assert!(ask(&[first.clone(), rest.clone()], &beside).1.complete);
    let copy = SimSegment::new(1, 0, LINKS[0], 2).chunk(1, &data[1..2]).chunk(2, &data[2..]);
    assert_eq!(ask(&[first, copy], &Request::default()).0, [0, 1, 2]);
}

#[test]
fn absent_segments_are_told_by_cause() {
    for cause in [Cause::WrongKey, Cause::MissingSegment, Cause::Retention, Cause::Damaged] {
        let mut gone =
            SimSegment::new(1, 0, LINKS[0], 1).chunk(0, &packets(&[(10, 53), (15, 53)], 0));
        gone.absent = Some(cause);
        let kept = SimSegment::new(1, 0, LINKS[0], 2).chunk(2, &packets(&[(20, 53)], 2));
        let (numbers, summary) = ask(&[gone.clone(), kept.clone()], &Request::default());
        assert_eq!(numbers, [2]);
        let gap = &summary.gaps[0];
        assert_eq!((gap.cause, gap.from.ns, gap.until.ns, gap.packets), (cause, 10, 16, Some(2)));
        let beside = Request { since_ns: Some(16), ..Request::default() };
        assert!(ask(&[gone, kept], &beside).1.complete, "{cause}");
    }
}

#[test]
fn gaps_of_neighbours_count() {
    let gap = |from_ns, until_ns| Gap {
        cause: Cause::InterfaceDown,
        from_ns,
        until_ns,
        packets: None,
        cumulative: 0,
        sequence: 1,
        policy: None,
        pressure: None,
    };
    let segment = |ordinal: u64, at: u64| {
        let mut segment =
            SimSegment::new(1, 0, LINKS[0], ordinal).chunk(ordinal, &packets(&[(at, 53)], ordinal));
        (segment.entry.opened_ns, segment.entry.closed_ns) = (at - 5, at + 5);
        segment
    };
    let mut segments = vec![segment(1, 100), segment(2, 200), segment(3, 900), segment(4, 950)];
    segments[1].gaps.push(gap(203, None));
    segments[2].gaps.push(gap(203, Some(896)));
    let silent = Request { since_ns: Some(500), until_ns: Some(600), ..Request::default() };
    let (numbers, summary) = ask(&segments, &silent);
    assert!(numbers.is_empty());
    assert_eq!(summary.gaps.len(), 1);
    assert_eq!((summary.gaps[0].from.ns, summary.gaps[0].until.ns), (203, 896));
    let after = Request { since_ns: Some(896), until_ns: Some(1000), ..Request::default() };
    assert!(ask(&segments, &after).1.complete);
    let before = Request { since_ns: Some(100), until_ns: Some(203), ..Request::default() };
    assert!(ask(&segments, &before).1.complete);
}

#[test]
fn recovered_damage_counts() {
    let mut segment = SimSegment::new(1, 0, LINKS[0], 1).chunk(0, &packets(&[(10, 53)], 0));
    segment.holes.push(Hole {
        chunk: Some(1),
        times_ns: Some((11, 15)),
        packets: None,
        what: "hole".into(),
    });
    let (_, summary) = ask(&[segment.clone()], &Request::default());
    assert_eq!(
        (summary.damaged.len(), summary.gaps[0].from.ns, summary.gaps[0].until.ns),
        (1, 11, 15)
    );
    let before = Request { until_ns: Some(11), ..Request::default() };
    assert!(ask(&[segment], &before).1.complete);
}

#[test]
fn a_filter_that_does_not_fit_a_link_type() {
    let ethernet = SimSegment::new(1, 0, LINKS[0], 1).chunk(0, &packets(&[(10, 53)], 0));
    let raw = SimSegment::new(1, 0, LINKS[1], 2).chunk(0, &packets(&[(500, 53)], 1));
    let segments = [ethernet, raw];
    let mut request =
        Request { filter: "ether host 02:00:00:00:00:01".into(), ..Request::default() };
    let mut sink = Collect::default();
    let error = ask_with(&segments, &[run_entry(1)], &request, &mut sink, 0).unwrap_err();
    assert!(error.is_misuse() && error.to_string().contains("RAW"), "{error}");
    request.until_ns = Some(400);
    assert_eq!(ask(&segments, &request).0, [0], "only link types in the window count");
    request.until_ns = None;
    request.skip_link_types = true;
    let (numbers, summary) = ask(&segments, &request);
    assert_eq!((numbers, summary.skipped_link_types), (vec![0], vec!["RAW".to_owned()]));
    request.since_ns = Some(400);
    let error = ask_with(&segments, &[run_entry(1)], &request, &mut sink, 0).unwrap_err();
    assert!(error.is_misuse(), "nothing is left to look at: {error}");
    let wrong = Request { filter: "host".into(), ..Request::default() };
    assert!(ask_with(&[], &[], &wrong, &mut sink, 0).unwrap_err().is_misuse());
}

#[test]
fn sorting_is_bounded() {
    let late: Vec<(u64, u16)> = (0..1000).map(|n| (1000 - n, 53)).collect();
    let mut segment = SimSegment::new(1, 0, LINKS[0], 1);
    for (n, part) in late.chunks(10).enumerate() {
        segment = segment.chunk(n as u64 * 10, &packets(part, n as u64 * 10));
    }
    let request = Request { sort: true, ..Request::default() };
    let mut sink = Collect::default();
    let runs = [run_entry(1)];
    let error =
        ask_with(std::slice::from_ref(&segment), &runs, &request, &mut sink, 10_000).unwrap_err();
    assert!(matches!(error, QueryError::SortMemory { limit_bytes: 10_000 }), "{error}");
    assert!(sink.numbers.is_empty());
    ask_with(&[segment], &runs, &request, &mut sink, 100_000).unwrap();
    assert_eq!(sink.numbers, (0..1000).rev().collect::<Vec<u64>>());
    // What is in order needs one chunk's worth.
    let mut segment = SimSegment::new(1, 0, LINKS[0], 1);
    for n in 0..100 {
        segment = segment.chunk(n, &packets(&[(10 + n, 53)], n));
    }
    let mut sink = Collect::default();
    ask_with(&[segment], &runs, &request, &mut sink, 200).unwrap();
    assert_eq!(sink.numbers.len(), 100);
}

#[test]
fn the_receiver_may_stop_or_fail() {
    let segment =
        SimSegment::new(1, 0, LINKS[0], 1).chunk(0, &packets(&[(10, 53), (20, 53), (30, 53)], 0));
    let segments = [segment];
    let all = Request::default();
    let mut sink = Collect { stop_after: Some(2), ..Collect::default() };
    let summary = ask_with(&segments, &[run_entry(1)], &all, &mut sink, 0).unwrap();
    assert!(summary.limit_reached && summary.complete);
    assert_eq!((summary.packets, summary.covered_until.unwrap().ns), (2, 21));
    let mut sink = Collect { fail: Some(io::ErrorKind::BrokenPipe), ..Collect::default() };
    assert!(ask_with(&segments, &[run_entry(1)], &all, &mut sink, 0).unwrap().limit_reached);
    let mut sink = Collect { fail: Some(io::ErrorKind::StorageFull), ..Collect::default() };
    assert!(matches!(
        ask_with(&segments, &[run_entry(1)], &all, &mut sink, 0),
        Err(QueryError::Sink(_))
    ));
    let empty = Request { since_ns: Some(5), until_ns: Some(5), ..Request::default() };
    assert!(ask_with(&segments, &[], &empty, &mut sink, 0).unwrap_err().is_misuse());
}

#[test]
fn a_limit_of_nothing_is_no_complete_answer() {
    let segments = [SimSegment::new(1, 0, LINKS[0], 1).chunk(0, &packets(&[(10, 53)], 0))];
    let none = Request { limit: Some(0), ..Request::default() };
    let (numbers, summary) = ask(&segments, &none);
    assert!(numbers.is_empty() && summary.limit_reached && !summary.complete, "{summary}");
    let text = "0 packets, 0 bytes; INCOMPLETE: with a limit of 0 nothing was looked at";
    assert_eq!(summary.to_string(), text);
}

#[test]
fn a_cancelled_query_ends() {
    let segments = [SimSegment::new(1, 0, LINKS[0], 1).chunk(0, &packets(&[(10, 53)], 0))];
    let store = store(&segments, &[], 0);
    let result =
        execute(&store, &Request::default(), &mut Collect::default(), &AtomicBool::new(true));
    assert!(result.unwrap_err().is_cancelled());
}

#[test]
fn a_payload_that_is_not_packets_is_damage() {
    let mut segment =
        SimSegment::new(1, 0, LINKS[0], 1).chunk(0, &packets(&[(10, 53), (20, 53)], 0));
    let second = segment.chunks[0].payload.len() / 2;
    segment.chunks[0].payload[second + 4] ^= 1;
    let (numbers, summary) = ask(&[segment.clone()], &Request::default());
    assert_eq!((numbers, summary.damaged.len()), (vec![0], 1));
    segment.chunks[0].payload[second + 4] ^= 1;
    segment.chunks[0].payload[second + 8] = 3;
    let (numbers, summary) = ask(&[segment], &Request::default());
    assert_eq!(numbers, [0]);
    assert!(summary.damaged[0].what.contains("interface 3 of 1"), "{}", summary.damaged[0].what);
}

/// The promise is 10 ms for the plan; here it stands ten times that, on a machine that does other
/// things too.
#[test]
fn planning_over_100_000_segments_is_quick() {
    const SEGMENTS: u64 = 100_000;
    let segment = |n: u64| {
        let mut segment = SimSegment::new(1, (n % 4) as u16, LINKS[0], n + 1);
        let (from, first) = (10 * n + 10, n / 4 * 5);
        segment.entry.times_ns = Some((from, from + 9));
        segment.entry.sequences = (first, first + 5);
        segment.entry.packets = 5;
        match n {
            77_777 => segment.chunk(first, &packets(&[(from + 3, 53), (from + 9, 53)], first)),
            _ => segment,
        }
    };
    let segments: Vec<_> = (0..SEGMENTS).map(segment).collect();
    let runs = [RunEntry { ended_ns: 10 * SEGMENTS + 20, lanes: 4, ..run_entry(1) }];
    let since_ns = Some(777_780);
    let one = Request { since_ns, until_ns: Some(777_784), ..Request::default() };
    let none = Request { limit: Some(0), ..Request::default() };
    for (request, expected) in [(one, 1), (none, 0)] {
        let mut took = Vec::new();
        for _ in 0..5 {
            let mut sink = Collect::default();
            // Of this process, whatever else the machine does.
            let cpu =
                || std::time::Duration::from(ClockId::CLOCK_PROCESS_CPUTIME_ID.now().unwrap());
            let begin = cpu();
            let summary = ask_with(&segments, &runs, &request, &mut sink, 0).unwrap();
            took.push(cpu() - begin);
            assert_eq!((sink.numbers.len(), summary.chunks_read), (expected, expected as u64));
        }
        took.sort_unstable();
        println!("planned over {SEGMENTS} segments in {:?}", took[0]);
        assert!(took[0] < std::time::Duration::from_millis(100), "{took:?}");
    }
}

/// Two segments of four chunks each, and copies for two holds that share a chunk of the first. The
/// chunk of each packet is told by its number.
fn held() -> Vec<SimSegment> {
    let segment = |ordinal: u64| {
        let mut segment = SimSegment::new(1, 0, LinkType::ETHERNET, ordinal);
        for chunk in 0..4 {
            let first = ((ordinal - 1) * 4 + chunk) * 10;
            let spec: Vec<_> =
                (0..10).map(|n| (1000 + first + n, if n % 2 == 0 { 53 } else { 80 })).collect();
            segment = segment.chunk(first, &packets(&spec, first));
        }
        segment
    };
    let (first, second) = (segment(1), segment(2));
    let copies = [first.copy_of(1, 3, &[0, 2]), first.copy_of(2, 4, &[2, 3])];
    [first, second].into_iter().chain(copies).collect()
}

fn flow_packets(segments: &[SimSegment], filter: &str) -> u64 {
    let (store, mut sum) = (store(segments, &[], HELD_BYTES_MAX), 0);
    let request = Request { filter: filter.into(), ..Request::default() };
    let mut out = |row: &FlowRow| {
        sum += row.packets;
        Ok(ControlFlow::Continue(()))
    };
    list(&store, &request, &mut out, &AtomicBool::new(false)).unwrap();
    sum
}

#[test]
fn what_holds_copied_is_answered_once() {
    let all = held();
    let chunks = |chunks: &[u64]| -> Vec<u64> {
        chunks.iter().flat_map(|chunk| chunk * 10..chunk * 10 + 10).collect()
    };
    let everything: Vec<u64> = (0..8).collect();
    for (segments, expected) in [
        (vec![0, 1, 2, 3], &everything[..]),
        (vec![1, 2, 3], &[0, 2, 3, 4, 5, 6, 7]),
        (vec![2, 3], &[0, 2, 3]),
        (vec![1, 3], &[2, 3, 4, 5, 6, 7]),
        (vec![0, 3], &[0, 1, 2, 3]),
    ] {
        let there: Vec<_> = segments.iter().map(|at| all[*at].clone()).collect();
        let (numbers, _) = ask(&there, &Request::default());
        assert_eq!(numbers, chunks(expected), "{segments:?}");
        assert_eq!(flow_packets(&there, ""), expected.len() as u64 * 10, "{segments:?}");
        assert_eq!(flow_packets(&there, "port 53"), expected.len() as u64 * 5, "{segments:?}");
        let half = Request { filter: "port 53".into(), ..Request::default() };
        assert_eq!(ask(&there, &half).0.len(), expected.len() * 5, "{segments:?}");
    }
}

/// An import whose first segment is gone but for a copy: what lay around it is not promised.
#[test]
fn a_copy_covers_nothing() {
    let mut all = held();
    all.iter_mut().for_each(|segment| segment.entry.import = true);
    let run = RunEntry { import: true, ..run_entry(1) };
    let ask = |segments: &[SimSegment], since_ns| {
        let request = Request { since_ns, ..Request::default() };
        let mut sink = Collect::default();
        let runs = std::slice::from_ref(&run);
        let summary = ask_with(segments, runs, &request, &mut sink, HELD_BYTES_MAX).unwrap();
        (sink.numbers.len(), summary.complete, summary.covered_from.map(|from| from.ns))
    };
    assert_eq!(ask(&all[..2], Some(1000)), (80, true, Some(1000)));
    assert_eq!(ask(&all[1..3], Some(1000)), (60, false, Some(1040)));
    assert_eq!(ask(&all[1..3], None), (60, true, Some(1040)));
}
