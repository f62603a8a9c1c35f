//! What a question learns without opening segments changes no answer: with digests, without them,
//! and with damaged ones it is the same, and segments that hold no answer are left alone.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use wirevault_format::LinkType;
use wirevault_format::digest::PAGE_BYTES;
use wirevault_index::{Catalog, Segment};
use wirevault_media::{BlockMedia, DIGEST_FILE};
use wirevault_query::filter::compile;
use wirevault_storage::{Mended, mend_digests};
use wirevault_testkit::random::Random;
use wirevault_tests::captures::{Packet, write_pcap};
use wirevault_tests::filters::filter;
use wirevault_tests::frames::{self, Fragment};
use wirevault_tests::oracle::is_undefined;
use wirevault_tests::store::{Answer, TestStore, all, ask, succeed, text, wirevault};
use wirevault_tests::traffic::{BEGIN_NS, Capture};

/// The smallest store whose segments have digests: 16 of 64 MiB.
const QUOTA: &str = "1GiB";
/// Each capture is imported on its own, and so has a segment of its own.
const SEGMENTS: usize = 9;
const FILTERS: usize = 40;

fn store_of(sealed: bool, captures: &[&[Packet]]) -> TestStore {
    filled(TestStore::with(sealed, 1, QUOTA), captures)
}

fn filled(store: TestStore, captures: &[&[Packet]]) -> TestStore {
    for (number, packets) in captures.iter().enumerate() {
        let file = store.path(&format!("{number}.pcap"));
        write_pcap(&file, packets);
        succeed(&store.import(&file));
    }
    assert!(store.catalog().segments.iter().all(|segment| segment.has_digest() == Some(true)));
    store
}

fn answers(catalog: &Catalog, filters: &[String]) -> Vec<Answer> {
    let answer = |filter: &String| ask(catalog, &all(filter)).expect("the filter was taken");
    filters.iter().map(answer).collect()
}

#[test]
fn answers_are_the_same_with_digests_and_without() {
    let capture = Capture::new(7);
    let mut random = Random::new(7);
    let known = |filter: &String| {
        compile(filter, LinkType::ETHERNET).is_ok_and(|program| !is_undefined(&program))
    };
    let mut filters: Vec<String> = (0..FILTERS).map(|_| filter(&mut random, &capture)).collect();
    filters.extend(capture.flows.iter().take(12).map(|flow| format!("host {}", flow.a)));
    filters.extend(capture.bulks.iter().map(|bulk| format!("not host {}", bulk.a)));
    filters.retain(known);
    let pieces: Vec<&[Packet]> =
        capture.packets.chunks(capture.packets.len().div_ceil(SEGMENTS)).collect();
    for sealed in [false, true] {
        let store = store_of(sealed, &pieces);
        let with = answers(&store.catalog(), &filters);
        let digests = store.dir().join(DIGEST_FILE);
        let mut damaged = fs::read(&digests).unwrap();
        // Every second page of those that were written, which lie at the start of each row.
        for page in damaged.chunks_mut(PAGE_BYTES).step_by(2) {
            page[100] ^= 1;
        }
        fs::write(&digests, damaged).unwrap();
        let in_part = answers(&store.catalog(), &filters);
        fs::remove_file(&digests).unwrap();
        let without = answers(&store.catalog(), &filters);
        for (at, filter) in filters.iter().enumerate() {
            for (kind, found) in [("all", &with[at]), ("some", &in_part[at])] {
                let (here, there) = (found, &without[at]);
                assert_eq!(here.packets, there.packets, "`{filter}`, {kind} of the digests");
                assert_eq!(here.summary, there.summary, "`{filter}`, {kind} of the digests");
            }
        }
        let some = without.iter().filter(|answer| !answer.packets.is_empty()).count();
        assert!(some > filters.len() / 4, "{some} of {} filters match", filters.len());
    }
}

/// A capture of UDP packets to a host of its own.
fn to_host(number: u8) -> Vec<Packet> {
    let packet = |n: u64| {
        let (from, to) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 1, number));
        let ports = frames::udp(1000 + u16::from(number), 53, &n.to_be_bytes());
        let packet = frames::ipv4(from, to, 17, &[], Fragment::Whole, &ports);
        let data = frames::ethernet(1, 2, 0x0800, &packet);
        let ts_ns = BEGIN_NS + u64::from(number) * 1_000_000_000 + n * 1000;
        Packet { ts_ns, orig_len: data.len() as u32, data }
    };
    (0..100).map(packet).collect()
}

#[test]
fn segments_without_an_answer_are_not_opened() {
    let captures: Vec<Vec<Packet>> = (0..4).map(to_host).collect();
    let captures: Vec<&[Packet]> = captures.iter().map(Vec::as_slice).collect();
    for sealed in [false, true] {
        let store = store_of(sealed, &captures);
        let files = store.segment_files();
        assert_eq!(files.len(), captures.len());
        for file in &files[1..] {
            fs::rename(file, file.with_extension("gone")).unwrap();
        }
        let asked = |filter: &str| ask(&store.catalog(), &all(filter)).unwrap();
        for filter in ["host 10.0.1.0", "udp port 1000", "dst net 10.0.1.0/32", "icmp6"] {
            let answer = asked(filter);
            let found = if filter == "icmp6" { 0 } else { 100 };
            assert_eq!(answer.packets.len(), found, "`{filter}`");
            assert!(answer.summary.complete, "`{filter}`: {}", answer.summary);
            assert_eq!(answer.summary.segments_considered, 4);
        }
        for filter in ["host 10.0.0.1", "not host 10.0.1.0", "udp", "net 10.0.0.0/15"] {
            let answer = asked(filter);
            assert!(!answer.summary.complete, "`{filter}` may be in the segments that are gone");
        }
        let flows = ["flows", "--store", &text(&store.dir()), "host 10.0.1.0"];
        succeed(&wirevault(&flows));
        for file in &files[1..] {
            fs::rename(file.with_extension("gone"), file).unwrap();
        }
    }
}

#[test]
fn digests_that_are_lost_are_made_anew() {
    let captures: Vec<Vec<Packet>> = (0..3).map(to_host).collect();
    let captures: Vec<&[Packet]> = captures.iter().map(Vec::as_slice).collect();
    for sealed in [false, true] {
        let store = store_of(sealed, &captures);
        let file = store.dir().join(DIGEST_FILE);
        let written = fs::read(&file).unwrap();
        fs::write(&file, &written[..PAGE_BYTES * 2]).unwrap();
        let has = || -> Vec<_> {
            store.catalog().segments.iter().map(|segment| segment.has_digest()).collect()
        };
        assert_eq!(has(), [Some(true), Some(true), Some(false)]);
        let stop = AtomicBool::new(false);
        let mended = mend_digests(&store.catalog(), &stop);
        assert_eq!(mended, Mended { made: 1, without: 0 });
        assert_eq!(has(), [Some(true); 3]);
        fs::remove_file(&file).unwrap();
        assert_eq!(mend_digests(&store.catalog(), &stop), Mended { made: 3, without: 0 });
        let anew = fs::read(&file).unwrap();
        // Under a seal every writing has salts of its own.
        assert!(sealed || anew == written, "what an index says is what its closing said");
        assert_eq!(mend_digests(&store.catalog(), &stop), Mended::default());
    }
}

/// There the digests have a part of the device, between the tables and the segments.
#[test]
fn segments_on_a_device_have_digests() {
    const DEVICE_BYTES: u64 = 1400 << 20;
    let captures: Vec<Vec<Packet>> = (0..4).map(to_host).collect();
    let captures: Vec<&[Packet]> = captures.iter().map(Vec::as_slice).collect();
    for sealed in [false, true] {
        let store = filled(TestStore::on_device(sealed, DEVICE_BYTES, QUOTA), &captures);
        let label = BlockMedia::open(store.dir()).unwrap().label().unwrap();
        let device = File::options().read(true).write(true).open(store.dir()).unwrap();
        let mut headers = vec![[0; 4096]; captures.len()];
        for (place, header) in (0..).zip(&mut headers) {
            let at = label.place_offset(place);
            device.read_exact_at(header, at).unwrap();
            device.write_all_at(&[0; 4096], at).unwrap();
        }
        device.write_all_at(&headers[0], label.place_offset(0)).unwrap();
        let asked = |filter: &str| ask(&store.catalog(), &all(filter)).unwrap();
        let answer = asked("host 10.0.1.0");
        assert_eq!(answer.packets.len(), 100);
        assert!(answer.summary.complete, "the others were not opened: {}", answer.summary);
        assert!(!asked("udp").summary.complete, "there the others cannot be read");

        for (place, header) in (0..).zip(&headers) {
            device.write_all_at(header, label.place_offset(place)).unwrap();
        }
        let pages = vec![0; label.digests_bytes as usize];
        device.write_all_at(&pages, label.digests_offset()).unwrap();
        let mended = mend_digests(&store.catalog(), &AtomicBool::new(false));
        assert_eq!(mended, Mended { made: 4, without: 0 });
        let has = |it: &Arc<Segment>| it.has_digest() == Some(true);
        assert!(store.catalog().segments.iter().all(has));
        assert_eq!(asked("udp").packets.len(), 400);
    }
}
