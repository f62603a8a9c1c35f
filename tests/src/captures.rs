//! Capture files as the tests write and read them: classic pcap with nanoseconds, Ethernet, little
//! endian. Written and read here without any code of the product.

use std::fs;
use std::path::Path;

const MAGIC_NS: u32 = 0xa1b2_3c4d;
const MAGIC_US: u32 = 0xa1b2_c3d4;
const SECOND_NS: u64 = 1_000_000_000;

/// One packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Packet {
    /// Unix nanoseconds.
    pub ts_ns: u64,
    /// Bytes on the wire.
    pub orig_len: u32,
    /// Captured bytes.
    pub data: Vec<u8>,
}

/// Writes a file of link type Ethernet.
///
/// # Panics
/// If the file cannot be written.
pub fn write_pcap(path: &Path, packets: &[Packet]) {
    let mut out = Vec::new();
    for word in [MAGIC_NS, 4 << 16 | 2, 0, 0, 262_144, 1] {
        out.extend(word.to_le_bytes());
    }
    for packet in packets {
        let (seconds, rest) = (packet.ts_ns / SECOND_NS, packet.ts_ns % SECOND_NS);
        for word in [seconds as u32, rest as u32, packet.data.len() as u32, packet.orig_len] {
            out.extend(word.to_le_bytes());
        }
        out.extend(&packet.data);
    }
    fs::write(path, out).expect("a capture file is written");
}

/// Reads what [`write_pcap`], tcpdump or `wirevault query --format pcap` wrote.
///
/// # Panics
/// If it is no such file.
pub fn parse_pcap(file: &[u8]) -> Vec<Packet> {
    let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().expect("four bytes"));
    let unit_ns = match word(0) {
        MAGIC_NS => 1,
        MAGIC_US => 1000,
        other => panic!("{other:#x} is no magic of a pcap file"),
    };
    let mut packets = Vec::new();
    let mut at = 24;
    while at < file.len() {
        let data = at + 16..at + 16 + word(at + 8) as usize;
        packets.push(Packet {
            ts_ns: u64::from(word(at)) * SECOND_NS + u64::from(word(at + 4)) * unit_ns,
            orig_len: word(at + 12),
            data: file[data.clone()].to_vec(),
        });
        at = data.end;
    }
    packets
}
