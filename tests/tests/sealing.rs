//! What a sealed store hides, what it notices, and that nothing is written without a key.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use wirevault_format::chunk::{ChunkHeader, HEADER_BYTES, TAG_BYTES};
use wirevault_format::footer::{FOOTER_AAD_BYTES, FOOTER_BYTES, Footer};
use wirevault_format::pcapng::{BLOCK_FRAME_BYTES, Blocks, EpbParts, put_epb, put_idb, put_shb};
use wirevault_format::section::{self, PART_HEADER_BYTES, PART_TAG_BYTES, SectionId};
use wirevault_format::{Interface, LinkType, segment};
use wirevault_testkit::random::Random;
use wirevault_tests::captures::Packet;
use wirevault_tests::frames::{self, Fragment};
use wirevault_tests::store::{TestStore, code, text, wirevault, words};
use wirevault_tests::traffic::{BEGIN_NS, Capture};

const MARKER: &[u8] = b"MARKER-in-every-payload-of-this-capture";
const INTERFACE: &str = "uplink-with-a-secret-name";
const CAPTURE_FILTER: &str = "host 203.0.113.77 and not port 4433";
const HOST4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 77);
const OTHER4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 23);
const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xdead, 0xbeef, 1, 2, 3, 4);
const OTHER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xcafe, 0xf00d, 5, 6, 7, 8);

/// A pcapng file: an interface with a name and a filter, packets with a marker and known hosts.
fn marked_file(path: &Path) {
    let mut file = Vec::new();
    put_shb(&mut file, "a test");
    let mut interface = Interface::unnamed(LinkType::ETHERNET);
    interface.name = Some(INTERFACE.to_owned());
    interface.filter = Some(CAPTURE_FILTER.to_owned());
    put_idb(&mut file, &interface, 262_144);
    for n in 0..600u16 {
        let (a, b): (IpAddr, IpAddr) = match n % 2 {
            0 => (HOST4.into(), OTHER4.into()),
            _ => (HOST6.into(), OTHER6.into()),
        };
        let ethertype = if a.is_ipv4() { 0x0800 } else { 0x86dd };
        let datagram = frames::udp(40_000 + n, 4433, &MARKER.repeat(20));
        let packet = frames::ip(a, b, 17, &[], Fragment::Whole, &datagram);
        let data = frames::ethernet(1, 2, ethertype, &packet);
        let parts = EpbParts {
            interface_id: 0,
            ts_ns: BEGIN_NS + u64::from(n) * 1_000_000,
            orig_len: data.len() as u32,
            data: &data,
            vlan: None,
            flags: None,
            raw_options: &[],
        };
        let mut block = vec![0; parts.block_bytes()];
        let written = put_epb(&mut block, 0, &parts).unwrap();
        file.extend(&block[..written]);
    }
    fs::write(path, file).unwrap();
}

fn holding_marked(sealed: bool) -> TestStore {
    let store = TestStore::new(sealed);
    let file = store.path("marked.pcapng");
    marked_file(&file);
    let output = store.import(&file);
    assert_eq!(code(&output), 0, "{}", words(&output));
    store
}

/// Files of the store in which the bytes occur.
fn occurrences(store: &TestStore, bytes: &[u8]) -> Vec<PathBuf> {
    let mut files = store.files();
    files.retain(|file| {
        let content = fs::read(file).unwrap();
        content.windows(bytes.len()).any(|window| window == bytes)
    });
    files
}

#[test]
fn nothing_of_the_packets_is_in_a_sealed_store() {
    let (plain, sealed) = (holding_marked(false), holding_marked(true));
    let (host4, other4) = (HOST4.octets(), OTHER4.octets());
    let (host6, other6) = (HOST6.octets(), OTHER6.octets());
    let mut secrets: Vec<(&str, Vec<u8>)> = vec![
        ("marker", MARKER[..12].to_vec()),
        ("two IPv4 hosts", [host4, other4].concat()),
        ("an IPv6 host", host6.to_vec()),
        ("another IPv6 host", other6.to_vec()),
        ("interface", INTERFACE.as_bytes().to_vec()),
        ("capture filter", CAPTURE_FILTER.as_bytes().to_vec()),
        ("half an interface name", INTERFACE.as_bytes()[..12].to_vec()),
    ];
    // What a plain store's index says of the same packets: compressed columns and filters. Free
    // places of a host filter hold random bytes, so of that section only the frame header is known,
    // with its size.
    let catalog = plain.catalog();
    let reader = catalog.segments[0].open().unwrap();
    let sections = reader.with_index(|index| index.encode()).unwrap().sections;
    for (id, name, bytes) in [
        (SectionId::Filter, "host filter", 7),
        (SectionId::Hosts, "hosts", 32),
        (SectionId::Flows, "flows", 32),
    ] {
        let section = sections.iter().find(|section| section.id == id).unwrap();
        secrets.push((name, section.bytes[..bytes].to_vec()));
    }
    for (name, secret) in &secrets {
        let found = occurrences(&plain, secret);
        assert!(!found.is_empty(), "the {name} is not even in the plain store");
        println!("{name}: {} bytes, in {} files of the plain store", secret.len(), found.len());
        assert_eq!(occurrences(&sealed, secret), Vec::<PathBuf>::new(), "{name}");
    }
    // Neither turned around, nor as text.
    for secret in [
        [other4, host4].concat(),
        HOST4.to_string().into_bytes(),
        HOST6.to_string().into_bytes(),
        OTHER6.to_string().into_bytes(),
    ] {
        assert_eq!(occurrences(&sealed, &secret), Vec::<PathBuf>::new(), "{secret:?}");
    }
    // Nor the key.
    let key = fs::read_to_string(sealed.key_file()).unwrap();
    let key = key.lines().rfind(|line| line.len() == 64).unwrap();
    let half = |from: usize| u128::from_str_radix(&key[from..from + 32], 16).unwrap().to_be_bytes();
    for secret in [key.as_bytes(), &half(0), &half(32)] {
        assert_eq!(occurrences(&sealed, secret), Vec::<PathBuf>::new());
    }
}

/// A structure of a segment file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Structure {
    name: &'static str,
    chunk: Option<u32>,
    range: Range<usize>,
}

/// Every structure of a closed segment; together they cover the file.
fn structures(file: &[u8], sealed: bool) -> Vec<Structure> {
    let mut all = Vec::new();
    let mut add = |name, chunk, range: Range<usize>| all.push(Structure { name, chunk, range });
    let region = segment::decode(file).unwrap();
    let mut at = region.region_bytes;
    let mut kinds = Blocks::new(&file[..at]).map(|block| block.unwrap());
    let (section, interface) = (kinds.next().unwrap(), kinds.next().unwrap());
    let own = kinds.last().unwrap().offset;
    add("section header block", None, section.offset..interface.offset);
    add("interface block", None, interface.offset..own);
    add("segment header", None, own..own + 112);
    add("rest of the header page", None, own + 112..at);
    let footer_at = file.len() - FOOTER_BYTES;
    let footer = Footer::decode(&file[footer_at..]).unwrap();
    for number in 0..footer.chunks {
        let header = ChunkHeader::decode(&file[at..]).unwrap();
        let body = at + HEADER_BYTES..at + HEADER_BYTES + header.payload_bytes as usize;
        let end = at + header.chunk_bytes();
        add("chunk header", Some(number), at..body.start);
        add("chunk body", Some(number), body.clone());
        match sealed {
            true => {
                add("tag", Some(number), body.end..body.end + TAG_BYTES);
                add("chunk padding", Some(number), body.end + TAG_BYTES..end - 4);
                add("chunk's trailing length", Some(number), end - 4..end);
            }
            false => {
                add("chunk tail", Some(number), body.end..body.end + 48);
                add("chunk padding", Some(number), body.end + 48..end);
            }
        }
        at = end;
    }
    let mut parts: Vec<_> = footer.directory.clone();
    parts.sort_by_key(|entry| entry.offset);
    for entry in &parts {
        assert_eq!(entry.offset, at as u64);
        for _ in 0..entry.parts {
            let part = section::decode(&file[at..]).unwrap();
            let body = at + PART_HEADER_BYTES..at + PART_HEADER_BYTES + part.body.len();
            let end = at + part.block_bytes;
            add("index part's header", None, at..body.start);
            add("index part's body", None, body.clone());
            let tag = body.end..(body.end + PART_TAG_BYTES).min(end);
            add("index part's end", None, tag.clone());
            add("index part's end", None, tag.end..end);
            at = end;
        }
    }
    for block in Blocks::new(&file[at..footer_at]) {
        let block = block.unwrap();
        let from = at + block.offset;
        add("padding block", None, from..from + block.body.len() + BLOCK_FRAME_BYTES);
    }
    add("footer", None, footer_at..footer_at + 328);
    add("footer's directory", None, footer_at + 328..footer_at + FOOTER_AAD_BYTES);
    add("footer's seal", None, footer_at + FOOTER_AAD_BYTES..file.len());
    all.retain(|structure| !structure.range.is_empty());
    let covered: usize = all.iter().map(|structure| structure.range.len()).sum();
    assert_eq!(covered, file.len(), "every byte belongs to one structure");
    all
}

#[test]
fn a_flipped_byte_of_any_structure_is_noticed() {
    let capture = Capture::new(8);
    let mut random = Random::new(8);
    for sealed in [true, false] {
        let store = TestStore::holding(sealed, &capture.packets[..1500]);
        let name = store.catalog().segments[0].name();
        let path = &store.segment_files()[0];
        let whole = fs::read(path).unwrap();
        let (status, report) = store.verify();
        assert_eq!(status, 0, "{report}");
        let structures = structures(&whole, sealed);
        let mut flips: BTreeMap<&str, usize> = BTreeMap::new();
        let mut unnoticed = Vec::new();
        for structure in &structures {
            // One chunk in three stands for all of them.
            if structure.chunk.is_some_and(|chunk| chunk % 3 != 1) {
                continue;
            }
            let range = structure.range.clone();
            let mut places = vec![range.start, range.end - 1];
            places.extend((0..6).map(|_| range.start + random.below(range.len())));
            places.sort_unstable();
            places.dedup();
            for at in places {
                let mut damaged = whole.clone();
                damaged[at] ^= 1 << random.below(8);
                fs::write(path, &damaged).unwrap();
                *flips.entry(structure.name).or_default() += 1;
                let (status, report) = store.verify();
                let named = report["damaged"].as_array().unwrap().iter().any(|damage| {
                    let chunk = damage["chunk"].as_u64().map(|chunk| chunk as u32);
                    damage["segment"] == name
                        && (structure.chunk.is_none() || chunk == structure.chunk)
                });
                if status != 3 || !named {
                    unnoticed.push(format!("{structure:?} at {at}: exit {status}, {report}"));
                }
            }
        }
        fs::write(path, &whole).unwrap();
        assert_eq!(store.verify().0, 0);
        println!("sealed {sealed}: flipped {flips:?}");
        assert!(unnoticed.is_empty(), "{} unnoticed: {unnoticed:#?}", unnoticed.len());
    }
}

fn contents(store: &TestStore) -> Vec<(PathBuf, Vec<u8>)> {
    store.files().into_iter().map(|file| (file.clone(), fs::read(file).unwrap())).collect()
}

#[test]
fn without_its_key_nothing_is_written() {
    let packets: Vec<Packet> = Capture::new(9).packets.into_iter().take(500).collect();
    for filled in [false, true] {
        let store = if filled { TestStore::holding(true, &packets) } else { TestStore::new(true) };
        let before = contents(&store);
        let file = store.path("more.pcapng");
        marked_file(&file);
        let aside = store.path("aside.key");
        fs::rename(store.key_file(), &aside).unwrap();
        let refused = |args: &[&str], what: &str| {
            let output = wirevault(&[&["import", "--store", &text(&store.dir())], args].concat());
            assert_eq!(code(&output), 2, "{what}: {}", words(&output));
            assert!(words(&output).contains("key"), "{what}: {}", words(&output));
            assert!(contents(&store) == before, "{what}: the store was written");
            println!("{what}: {}", String::from_utf8_lossy(&output.stderr).trim());
        };
        refused(&[&text(&file)], "the key file is gone");
        let other = TestStore::new(true);
        refused(&["--key", &text(&other.key_file()), &text(&file)], "another store's key");
        fs::write(store.key_file(), "wirevault-key 1\nnot a key\n").unwrap();
        fs::set_permissions(store.key_file(), Permissions::from_mode(0o600)).unwrap();
        refused(&[&text(&file)], "the key file is damaged");
        fs::rename(&aside, store.key_file()).unwrap();
        let output = store.import(&file);
        assert_eq!(code(&output), 0, "{}", words(&output));
    }
}
