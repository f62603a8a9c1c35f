//! Equal to tcpdump: what `tcpdump -r` finds in the original file is what a store that holds its
//! packets finds, packet for packet and in the same order; and the index makes it cheaper.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, RwLock};

use wirevault_format::LinkType;
use wirevault_index::delta::FlowStats;
use wirevault_index::delta::FlowTouch;
use wirevault_index::{Catalog, ChunkDelta, FlowRecord, Segment, SegmentIndex};
use wirevault_media::{DirMedia, Media};
use wirevault_packet::FlowKey;
use wirevault_query::filter::compile;
use wirevault_query::{Request, Summary};
use wirevault_telemetry::clock::SystemClock;
use wirevault_testkit::random::Random;
use wirevault_tests::captures::{Packet, parse_pcap, write_pcap};
use wirevault_tests::filters::{filter, inner_host, net_of};
use wirevault_tests::frames::{self, Fragment};
use wirevault_tests::lanes::{self, Held};
use wirevault_tests::oracle::{compare, is_undefined, tcpdump};
use wirevault_tests::store::{TestStore, all, ask, code, folder, text, window, words};
use wirevault_tests::traffic::{Capture, Flow, Kind, Wrap};

/// Everything at random comes from it; `WIREVAULT_SEED` sets another.
static SEED: LazyLock<u64> = LazyLock::new(|| {
    let set = std::env::var("WIREVAULT_SEED").ok();
    let seed = set.map_or(1, |seed| seed.parse().expect("WIREVAULT_SEED is a number"));
    println!("seed {seed}");
    seed
});
/// Random filters of the large comparison.
const FILTERS: usize = 540;

/// The original: its packets, its flows, and the file that tcpdump reads.
struct Original {
    capture: Capture,
    file: PathBuf,
    _folder: tempfile::TempDir,
}

static ORIGINAL: LazyLock<Original> = LazyLock::new(|| {
    let (capture, folder) = (Capture::new(*SEED), folder());
    let file = folder.path().join("original.pcap");
    write_pcap(&file, &capture.packets);
    Original { capture, file, _folder: folder }
});

fn imported(sealed: bool) -> TestStore {
    let store = TestStore::new(sealed);
    let output = store.import(&ORIGINAL.file);
    assert_eq!(code(&output), 0, "{}", words(&output));
    store
}

fn chunks(catalog: &Catalog) -> u64 {
    catalog.segments.iter().map(|segment| u64::from(segment.entry.chunks)).sum()
}

/// Filters at random without those that have no defined answer, and for every stretch that holds
/// one flow what an index is tempted to answer wrongly: `not host` must find a host's packets
/// behind a tag.
fn suite(random_filters: usize) -> Vec<String> {
    let mut random = Random::new(*SEED);
    let capture = &ORIGINAL.capture;
    let mut filters: Vec<String> = (0..random_filters)
        .map(|_| filter(&mut random, capture))
        .filter(|filter| {
            let program = compile(filter, LinkType::ETHERNET);
            !program.is_ok_and(|program| is_undefined(&program))
        })
        .collect();
    for bulk in &capture.bulks {
        filters.push(format!("not host {}", bulk.a));
        filters.push(format!("not port {}", bulk.a_port));
    }
    filters
}

/// What became of a row of filters.
#[derive(Debug, Default)]
struct Tally {
    filters: u64,
    some: u64,
    chunks: u64,
    chunks_read: u64,
    wrong: Vec<String>,
}

impl Tally {
    /// Compares; what tcpdump refuses must be refused with the same words, and counts for nothing.
    fn add(
        &mut self,
        filter: &str,
        wanted: &Result<Vec<Packet>, String>,
        catalog: &Catalog,
    ) -> Option<Summary> {
        self.add_request(&all(filter), wanted, catalog)
    }

    fn add_request(
        &mut self,
        request: &Request,
        wanted: &Result<Vec<Packet>, String>,
        catalog: &Catalog,
    ) -> Option<Summary> {
        let filter = &request.filter;
        let (wanted, answer) = match (wanted, ask(catalog, request)) {
            (Ok(wanted), Ok(answer)) => (wanted, answer),
            (Err(refusal), Err(error)) if error.to_string().contains(refusal.as_str()) => {
                return None;
            }
            (wanted, answer) => {
                let theirs = wanted.as_ref().map(Vec::len);
                let ours = answer.map(|answer| answer.packets.len());
                self.wrong.push(format!("`{filter}`: {theirs:?} there, {ours:?} here"));
                return None;
            }
        };
        let found = wanted.len();
        self.filters += 1;
        self.some += u64::from(found > 0 && found < ORIGINAL.capture.packets.len());
        self.chunks += chunks(catalog);
        self.chunks_read += answer.summary.chunks_read;
        if let Err(why) = compare(wanted, &answer.packets) {
            self.wrong.push(format!("`{filter}`: {why}"));
        } else if !answer.summary.complete {
            self.wrong.push(format!("`{filter}`: {}", answer.summary));
        }
        Some(answer.summary)
    }

    fn print(&self, what: &str) {
        println!(
            "{what}: {} filters, {} ({} %) match some but not all packets; {} of {} chunks read, \
             {} % skipped",
            self.filters,
            self.some,
            self.some * 100 / self.filters.max(1),
            self.chunks_read,
            self.chunks,
            100 - self.chunks_read * 100 / self.chunks.max(1)
        );
    }
}

fn original_answer(filter: &str) -> Result<Vec<Packet>, String> {
    tcpdump(&ORIGINAL.file, filter)
}

#[test]
fn random_filters_find_what_tcpdump_finds() {
    let stores = [imported(false), imported(true)];
    let catalogs = [stores[0].catalog(), stores[1].catalog()];
    for catalog in &catalogs {
        let sizes = (catalog.segments.len(), chunks(catalog));
        assert!(sizes.0 >= 2 && sizes.1 >= 100, "segments and chunks: {sizes:?}");
        let packets: u64 = catalog.segments.iter().map(|segment| segment.entry.packets).sum();
        assert_eq!(packets, ORIGINAL.capture.packets.len() as u64);
    }
    let mut tallies = [Tally::default(), Tally::default()];
    let mut windows = Tally::default();
    let mut random = Random::new(*SEED + 1);
    let (first_ns, last_ns) = ORIGINAL.capture.times_ns();
    for (number, filter) in suite(FILTERS).iter().enumerate() {
        let wanted = original_answer(filter);
        for (tally, catalog) in tallies.iter_mut().zip(&catalogs) {
            tally.add(filter, &wanted, catalog);
        }
        if number % 3 == 0 {
            let since_ns = first_ns + random.bits() % (last_ns - first_ns);
            let until_ns = since_ns + 1 + random.bits() % (last_ns - since_ns);
            let within = |packet: &Packet| (since_ns..until_ns).contains(&packet.ts_ns);
            let wanted = wanted.map(|mut wanted| {
                wanted.retain(within);
                wanted
            });
            let request = Request { filter: filter.clone(), ..window(since_ns, until_ns) };
            windows.add_request(&request, &wanted, &catalogs[number % 2]);
        }
    }
    windows.print("windows");
    assert!(windows.wrong.is_empty(), "{:#?}", windows.wrong);
    for (tally, what) in tallies.iter().zip(["plaintext", "sealed"]) {
        tally.print(what);
    }
    for tally in &tallies {
        assert!(tally.wrong.is_empty(), "{} wrong: {:#?}", tally.wrong.len(), tally.wrong);
        assert!(tally.filters >= 500);
        assert!(tally.some * 2 >= tally.filters, "{} of {}", tally.some, tally.filters);
        assert!(tally.chunks_read < tally.chunks);
    }
}

#[test]
fn the_program_answers_as_tcpdump_does() {
    let stores = [imported(false), imported(true)];
    let filters = suite(45);
    for (number, filter) in filters.iter().take(45).enumerate() {
        let store = &stores[number % 2];
        let Ok(wanted) = original_answer(filter) else { continue };
        let file = store.path("out.pcap");
        let (output, summary) = store.query(&[filter, "-w", &text(&file), "--format", "pcap"]);
        let summary = summary.unwrap_or_else(|| panic!("`{filter}`: {}", words(&output)));
        assert_eq!(code(&output), i32::from(wanted.is_empty()), "`{filter}`: {}", words(&output));
        let found = parse_pcap(&fs::read(&file).unwrap());
        compare(&wanted, &found).unwrap_or_else(|why| panic!("`{filter}`: {why}"));
        assert_eq!(summary["packets"], wanted.len());
        assert_eq!(summary["complete"], true, "`{filter}`: {summary}");
        let bytes: usize = wanted.iter().map(|packet| packet.data.len()).sum();
        assert_eq!(summary["bytes"], bytes);
    }
}

#[test]
fn open_segments_answer_as_tcpdump_does() {
    for sealed in [false, true] {
        let store = TestStore::new(sealed);
        let release = Arc::new(AtomicBool::new(false));
        let source = Held::open(&ORIGINAL.file, &release);
        let clock = Arc::new(SystemClock);
        let pipeline = lanes::start(&store.dir(), vec![source], true, clock);
        let packets = ORIGINAL.capture.packets.len() as u64;
        let catalog = lanes::stored(&pipeline, packets);
        assert!(catalog.segments.iter().any(|segment| segment.is_live()));
        let total = ask(&catalog, &all("")).unwrap().summary.chunks_read;
        let mut tally = Tally::default();
        let mut pruned = 0;
        for filter in suite(100) {
            let wanted = original_answer(&filter);
            let summary = tally.add(&filter, &wanted, &catalog);
            pruned += u64::from(summary.is_some_and(|summary| summary.chunks_read < total));
        }
        println!("open segments, sealed {sealed}: {} of {} filters pruned", pruned, tally.filters);
        assert!(tally.wrong.is_empty(), "{:#?}", tally.wrong);
        assert!(pruned * 2 > tally.filters);
        release.store(true, Ordering::Release);
        pipeline.join().unwrap();
    }
}

/// One filter of each sort that the index has to know of, with a number in it where it takes one.
fn leaves(bulks: &[Flow]) -> Vec<String> {
    let [tcp, udp, sctp, _, v6, arp, _, extended, _, vlan, qinq, mpls, vxlan, geneve, gre] = bulks
    else {
        panic!("another list of stretches");
    };
    let mut leaves: Vec<String> = [
        "tcp",
        "udp",
        "sctp",
        "icmp",
        "ip",
        "ip6",
        "arp",
        "vlan",
        "mpls",
        "ip proto 6",
        "ip proto 132",
        "ip6 proto 0",
        "ip6 protochain 6",
        "ether proto 0x0806",
        "less 1000",
        "greater 1000",
        "len > 1280",
        "tcp[tcpflags] & tcp-push != 0",
        "ip[6:2] & 0x1fff != 0",
        "ip[0] & 0xf > 5",
        "ip[9] = 17",
        "ip6[6] = 0",
        "ether[12:2] = 0x8100",
    ]
    .map(str::to_owned)
    .into();
    leaves.extend([
        format!("host {}", tcp.a),
        format!("src host {}", tcp.a),
        format!("dst host {}", tcp.b),
        format!("net {}", net_of(tcp.a, 24)),
        format!("host {}", v6.a),
        format!("net {}", net_of(v6.a, 64)),
        format!("host {}", arp.a),
        format!("host {}", extended.a),
        format!("port {}", tcp.a_port),
        format!("src port {}", udp.a_port),
        format!("dst port {}", sctp.b_port),
        format!("portrange {}-{}", udp.a_port - 5, udp.a_port + 5),
        format!("tcp port {}", v6.b_port),
        format!("vlan 77 and host {}", vlan.a),
        format!("vlan 78 and vlan 79 and port {}", qinq.a_port),
        format!("mpls 777 and host {}", mpls.a),
        format!("geneve 7778 and host {}", geneve.a),
        format!("udp port 4789 and host {}", vxlan.outer.0),
        format!("ip proto 47 and host {}", gre.outer.0),
        format!("ip[12:4] = {:#x}", u32::from_be_bytes([10, 201, 0, 1])),
    ]);
    leaves
}

#[test]
fn every_sort_of_filter_saves_reading() {
    let store = imported(true);
    let catalog = store.catalog();
    let total = chunks(&catalog);
    let elsewhere = ORIGINAL.capture.flows.iter().find(|flow| flow.wrap == Wrap::Plain).unwrap();
    let mut tally = Tally::default();
    let mut idle = Vec::new();
    for leaf in leaves(&ORIGINAL.capture.bulks) {
        let forms =
            [leaf.clone(), format!("not ({leaf})"), format!("host {} or ({leaf})", elsewhere.a)];
        let mut read = Vec::new();
        for form in forms {
            let wanted = original_answer(&form);
            assert!(wanted.as_ref().is_ok_and(|wanted| !wanted.is_empty()), "`{form}`: {wanted:?}");
            let summary = tally.add(&form, &wanted, &catalog).expect("an answer");
            read.push(summary.chunks_read);
            if summary.chunks_read >= total {
                idle.push(form);
            }
        }
        println!("{leaf}: {} plain, {} not, {} or, of {total} chunks", read[0], read[1], read[2]);
    }
    tally.print("sorts of filters");
    assert!(tally.wrong.is_empty(), "{:#?}", tally.wrong);
    assert!(idle.is_empty(), "all chunks are read for {idle:#?}");
}

#[test]
fn every_encapsulation_is_found_by_an_inner_host() {
    let store = imported(true);
    let catalog = store.catalog();
    let total = chunks(&catalog);
    let capture = &ORIGINAL.capture;
    let same = |a: &Wrap, b: &Wrap| std::mem::discriminant(a) == std::mem::discriminant(b);
    for bulk in capture.bulks.iter().filter(|bulk| bulk.wrap != Wrap::Plain) {
        let alike = |flow: &&Flow| {
            same(&flow.wrap, &bulk.wrap) && flow.kind == Kind::Tcp && flow.a.is_ipv4()
        };
        let mixed = capture.flows.iter().find(alike).unwrap();
        for flow in [bulk, mixed] {
            let bytes = inner_host(flow);
            let precise = match &flow.wrap {
                Wrap::Vlan(_) => format!("vlan and host {}", flow.a),
                Wrap::QinQ(..) => format!("vlan and vlan and host {}", flow.a),
                Wrap::Mpls(labels) => {
                    let words = vec!["mpls"; labels.len()].join(" and ");
                    format!("{words} and host {}", flow.a)
                }
                Wrap::Geneve(_) => format!("geneve and host {}", flow.a),
                // libpcap has no word that reaches inside.
                Wrap::Vxlan(_) => format!("udp port 4789 and {bytes}"),
                Wrap::Gre => format!("ip proto 47 and {bytes}"),
                Wrap::Plain => unreachable!("only what is wrapped is looked at"),
            };
            // Bytes alone may be anything in frames of another kind, so more chunks are read.
            for (filter, limit) in [(precise, total / 4), (bytes, total)] {
                let wanted = original_answer(&filter);
                let mut tally = Tally::default();
                tally.add(&filter, &wanted, &catalog);
                println!("{filter}: {} of {total} chunks", tally.chunks_read);
                assert!(tally.wrong.is_empty(), "{:#?}", tally.wrong);
                assert!(tally.chunks_read < limit, "`{filter}` reads {}", tally.chunks_read);
                assert!(wanted.is_ok_and(|wanted| !wanted.is_empty()), "{flow:?} is not found");
            }
        }
    }
}

#[test]
fn what_tcpdump_refuses_is_refused_in_its_words() {
    let store = TestStore::holding(true, &ORIGINAL.capture.packets[..100]);
    for filter in [
        "tcpp",
        "host",
        "port 70000",
        "vlan 5000",
        "host 10.0.0.1 and",
        "(tcp",
        "inbound",
        "net 10.0.0.1/8",
        "ip[",
        "tcp[999999999999] = 1",
        "wlan type mgt",
        "host 1.2.3.4.5",
        "ip6 host 10.0.0.1",
        "port http and and",
        "proto 6 foo",
        "gateway 10.0.0.1",
    ] {
        let refusal = tcpdump(&ORIGINAL.file, filter);
        let (output, _) = store.query(&[filter]);
        match refusal {
            Ok(_) => assert!(code(&output) < 2, "`{filter}`: {}", words(&output)),
            Err(message) => {
                assert_eq!(code(&output), 2, "`{filter}`: {}", words(&output));
                let said = words(&output);
                assert!(said.contains(&message), "`{filter}`: `{message}` is not in\n{said}");
            }
        }
    }
}

/// Packets each of which is a flow of its own, and among them a conversation now and then.
fn flood(packets: u32) -> Vec<Packet> {
    let packet = |n: u32| {
        let source = n.wrapping_mul(0x9e37_79b1) | 1;
        let talk = n.is_multiple_of(1000);
        let (source, ports) = match talk {
            true => (0x0a09_0807, [50_000, 8443]),
            false => (source, [1024 + (n % 60_000) as u16, 80]),
        };
        let mut data = vec![2; 12];
        if n.is_multiple_of(7) {
            data.extend([0x81, 0, 0, 77]);
        }
        data.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
        data.extend([source, 0xc0a8_0001].map(u32::to_be_bytes).as_flattened());
        data.extend(ports.map(u16::to_be_bytes).as_flattened());
        data.extend([0; 16]);
        let ts_ns = 1_700_000_000_000_000_000 + u64::from(n) * 1000;
        Packet { ts_ns, orig_len: data.len() as u32, data }
    };
    (0..packets).map(packet).collect()
}

#[test]
fn a_flood_is_answered_as_tcpdump_does() {
    const PACKETS: u32 = 60_000;
    let packets = flood(PACKETS);
    for sealed in [false, true] {
        let store = TestStore::holding(sealed, &packets);
        let catalog = store.catalog();
        let filtered = catalog.segments.iter().map(|segment| {
            let reader = segment.open().unwrap();
            reader.with_index(|index| {
                let all = 0..index.chunks().len() as u32;
                let is_filtered =
                    |chunk: &u32| !index.is_unindexed(*chunk) && !index.lists_flows_of(*chunk);
                all.filter(is_filtered).count() as u64
            })
        });
        assert_eq!(filtered.sum::<u64>(), chunks(&catalog));
        let one = |n: u32| std::net::Ipv4Addr::from(n.wrapping_mul(0x9e37_79b1) | 1);
        let mut tally = Tally::default();
        // Each with the share of chunks that may be read, in tenths.
        for (filter, tenths) in [
            (format!("host {}", one(30_001)), 6),
            (format!("vlan and host {}", one(7 * 777)), 6),
            (format!("not host {}", one(5)), 10),
            ("host 10.9.8.7".to_owned(), 10),
            ("host 10.9.8.7 and port 8443".to_owned(), 10),
            ("not port 80".to_owned(), 10),
            ("net 10.9.0.0/16 or udp".to_owned(), 10),
            ("less 59".to_owned(), 10),
            ("udp or port 22 or host 203.0.113.9".to_owned(), 6),
        ] {
            let wanted = tcpdump(&store.path("original.pcap"), &filter);
            let summary = tally.add(&filter, &wanted, &catalog).expect("an answer");
            let (read, total) = (summary.chunks_read, chunks(&catalog));
            assert!(read * 10 <= total * tenths, "`{filter}` reads {read} of {total}");
        }
        assert!(tally.wrong.is_empty(), "{:#?}", tally.wrong);
    }
}

/// A flow of an index, free to be changed.
struct Indexed {
    key: FlowKey,
    stats: FlowStats,
    chunks: Vec<u32>,
}

/// The store with every segment's index made anew from what `change` leaves of it.
fn reindexed(store: &TestStore, change: &dyn Fn(&mut Vec<Indexed>)) -> Catalog {
    let media: Arc<dyn Media> = Arc::new(DirMedia::open(store.dir()).unwrap());
    let catalog = store.catalog();
    let reindexed = catalog.segments.iter().map(|segment| {
        let reader = segment.open().unwrap();
        let (chunks, mut flows) = reader.with_index(|index| {
            let chunks = index.chunks().to_vec();
            assert!((0..chunks.len() as u32).all(|chunk| index.lists_flows_of(chunk)));
            let flow = |it: FlowRecord<'_>| Indexed {
                key: it.key,
                stats: it.stats,
                chunks: it.chunks.to_vec(),
            };
            (chunks, index.flows().unwrap().iter().map(flow).collect::<Vec<_>>())
        });
        change(&mut flows);
        let mut index = SegmentIndex::new();
        for (number, chunk) in (0..).zip(chunks) {
            let mut delta = ChunkDelta::small();
            (delta.number, delta.chunk) = (number, chunk);
            if number == 0 {
                delta.new_flows = flows.iter().map(|flow| flow.key).collect();
            }
            let touched = (0..).zip(&flows).filter(|(_, flow)| flow.chunks.contains(&number));
            delta.touched =
                touched.map(|(flow, record)| FlowTouch { flow, stats: record.stats }).collect();
            index.apply(&delta).unwrap();
        }
        let Segment { entry, volume, place, .. } = &**segment;
        let index = Arc::new(RwLock::new(index));
        let media = Arc::clone(&media);
        Arc::new(Segment::live(entry.clone(), *volume, *place, media, None, index))
    });
    Catalog { segments: reindexed.collect(), ..catalog.clone() }
}

/// Takes the VLAN tags out of a flow's key, as if its packets were plain.
fn without_tags(key: &FlowKey) -> FlowKey {
    const ETHERNET: u8 = 1;
    const VLAN: u8 = 3;
    let mut shape = key.shape().to_vec();
    while shape.len() > 10 && shape[2] == ETHERNET && shape[5] == VLAN {
        let ethertype = [shape[8], shape[9]];
        shape.splice(3..10, ethertype);
    }
    FlowKey::from_parts(&shape, key.values()).unwrap()
}

fn failures(catalog: &Catalog) -> usize {
    let mut tally = Tally::default();
    for filter in suite(60) {
        tally.add(&filter, &original_answer(&filter), catalog);
    }
    tally.wrong.len()
}

#[test]
fn an_index_with_a_fault_fails_the_comparison() {
    let store = imported(false);
    assert_eq!(failures(&reindexed(&store, &|_| {})), 0);
    let short = reindexed(&store, &|flows| {
        flows.iter_mut().for_each(|flow| {
            flow.chunks.pop();
        })
    });
    assert!(failures(&short) > 0, "postings one chunk short are not noticed");
    let plain = reindexed(&store, &|flows| {
        flows.iter_mut().for_each(|flow| flow.key = without_tags(&flow.key));
    });
    assert!(failures(&plain) > 0, "tagged flows that count as plain are not noticed");
}

/// A record may state more than its file's snap length, and a fraction of more than a second.
/// libpcap hides the bytes behind the snap length, from filters too.
#[test]
fn what_tcpdump_does_not_see_of_a_file_is_not_found() {
    const SNAPLEN: u32 = 96;
    let store = TestStore::new(true);
    let file = store.path("odd.pcap");
    let mut bytes = Vec::new();
    for word in [0xa1b2_c3d4, 4 << 16 | 2, 0, 0, SNAPLEN, 1] {
        bytes.extend(u32::to_le_bytes(word));
    }
    let sizes = [20, 53, 54, 55, 200, 1000];
    for (number, size) in (0u32..).zip(sizes) {
        let (from, to) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let payload = vec![0xab; size];
        let udp = frames::udp(4000, 53, &payload);
        let frame =
            frames::ethernet(1, 2, 0x0800, &frames::ipv4(from, to, 17, &[], Fragment::Whole, &udp));
        let length = frame.len() as u32;
        for word in [1_700_000_000, number * 400_000, length, length] {
            bytes.extend(u32::to_le_bytes(word));
        }
        bytes.extend(frame);
    }
    fs::write(&file, bytes).unwrap();
    let output = store.import(&file);
    assert_eq!(code(&output), 0, "{}", words(&output));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("3 packets' bytes behind the file's own snap length"), "{said}");
    assert!(said.contains("changed: 3 packets with a fraction"), "{said}");
    let catalog = store.catalog();
    let mut tally = Tally::default();
    let seen = ["", "udp[60] = 0xab", "udp[61] = 0xab", "udp[61] != 0xab", "udp[100] >= 0"];
    let lengths = ["greater 96", "less 97", "len = 242", "udp[61] = 0xab or len > 200"];
    for filter in [&seen[..], &lengths].concat() {
        tally.add(filter, &tcpdump(&file, filter), &catalog);
    }
    assert!(tally.wrong.is_empty(), "{:#?}", tally.wrong);
    assert_eq!(tally.filters, 9, "{tally:?}");
    let found = store.ask(&all("udp[61] = 0xab")).packets;
    assert!(found.iter().all(|packet| packet.data.len() == SNAPLEN as usize));
}
