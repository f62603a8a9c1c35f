//! Closed segments are valid pcapng files: readers that are not ours open them as they are, find
//! every packet of a plain store and none of a sealed one, and end without complaint.

use std::fs::{self, File};
use std::path::Path;

use pcap_file::pcapng::{Block, PcapNgReader};
use wirevault_format::pcapng::{BLOCK_IDB, BLOCK_SHB, Blocks};
use wirevault_tests::readers::Reader;
use wirevault_tests::store::TestStore;
use wirevault_tests::traffic::Capture;

/// Largest block that every reader takes.
const BLOCK_BYTES_MAX: usize = 1 << 20;
/// Offsets of link type and snaplen in the body of an interface description.
const LINK_TYPE_AT: usize = 0;
const SNAPLEN_AT: usize = 4;

/// Counts that every reader must find in the files of a store, checked with all of them.
fn check(sealed: bool) {
    let capture = Capture::new(2);
    let store = TestStore::holding(sealed, &capture.packets);
    let catalog = store.catalog();
    assert!(catalog.segments.len() >= 2, "{} segments", catalog.segments.len());
    let stored: u64 = catalog.segments.iter().map(|segment| segment.entry.packets).sum();
    assert_eq!(stored, capture.packets.len() as u64);
    for segment in &catalog.segments {
        let file = store.dir().join(format!("{:06}.pcapng", segment.place));
        let wanted = if sealed { 0 } else { segment.entry.packets };
        let mut row = Vec::new();
        for reader in Reader::ALL {
            if let Some(found) = reader.count(&file) {
                assert_eq!(found, wanted, "{reader:?}, {}", file.display());
                row.push(format!("{reader:?} {found}"));
            }
        }
        let found = pcap_file(&file);
        assert_eq!(found, wanted, "pcap-file, {}", file.display());
        row.push(format!("PcapFile {found}"));
        println!("{}, sealed {sealed}: {}", segment.name(), row.join(", "));
        blocks(&fs::read(&file).unwrap());
    }
}

/// Packets that the crate `pcap-file` finds; it reads no block above 8,000,000 bytes.
fn pcap_file(file: &Path) -> u64 {
    let mut reader = PcapNgReader::new(File::open(file).unwrap()).unwrap();
    let mut packets = 0;
    while let Some(block) = reader.next_block() {
        packets += u64::from(matches!(block.unwrap(), Block::EnhancedPacket(_)));
    }
    packets
}

/// What else the readers need: small blocks, an interface description in front, one link type, one
/// snaplen.
fn blocks(file: &[u8]) {
    let mut interfaces = Vec::new();
    let mut kinds = Vec::new();
    let mut end = 0;
    for block in Blocks::new(file) {
        let block = block.unwrap();
        assert_eq!(block.offset, end, "blocks follow each other");
        let bytes = block.body.len() + 12;
        assert!(bytes <= BLOCK_BYTES_MAX, "a block of {bytes} bytes at {}", block.offset);
        end = block.offset + bytes;
        kinds.push(block.kind);
        if block.kind == BLOCK_IDB {
            let link_type = [block.body[LINK_TYPE_AT], block.body[LINK_TYPE_AT + 1]];
            let snaplen: [u8; 4] = block.body[SNAPLEN_AT..SNAPLEN_AT + 4].try_into().unwrap();
            interfaces.push((u16::from_le_bytes(link_type), u32::from_le_bytes(snaplen)));
        }
    }
    assert_eq!(end, file.len(), "nothing but blocks");
    assert_eq!(kinds[..2], [BLOCK_SHB, BLOCK_IDB]);
    assert_eq!(kinds.iter().filter(|kind| **kind == BLOCK_SHB).count(), 1);
    interfaces.dedup();
    assert_eq!(interfaces.len(), 1, "{interfaces:?}");
}

#[test]
fn plain_segments_open_with_every_packet() {
    check(false);
}

#[test]
fn sealed_segments_open_with_none() {
    check(true);
}
