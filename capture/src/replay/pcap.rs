//! Classic pcap files: microseconds and nanoseconds, both byte orders, versions 2.0 to 2.4.
//!
//! Source: draft-ietf-opsawg-pcap; libpcap 1.10 `sf-pcap.c` for old versions and for what is
//! refused.

use std::io::{self, Read};
use std::ops::Range;

use wirevault_format::{Interface, LinkType};

/// Bytes read from the source at a time.
const BUFFER_BYTES: usize = 256 << 10;
const FILE_HEADER_BYTES: usize = 24;
const RECORD_HEADER_BYTES: usize = 16;
/// Captured bytes that one record may state. A larger number means that the reader has lost its
/// place; libpcap refuses it too.
const CAPTURED_BYTES_MAX: u32 = 262_144;
/// The same for D-Bus, USB and EBHSCR, whose packets may be longer.
const CAPTURED_BYTES_MAX_LONG: u32 = 16 << 20;
const LONG_LINK_TYPES: [u16; 3] = [231, 249, 279];

/// What is wrong with a file, without its name.
#[derive(Debug)]
pub(crate) enum Fault {
    /// Reading failed.
    Io { at: u64, source: io::Error },
    /// Not a capture, or of a kind that is refused.
    Unsupported(String),
    /// A record is cut or impossible.
    Record { at: u64, what: String, packets: u64 },
}

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) ts_ns: u64,
    pub(super) wire_len: u32,
    pub(super) data: &'a [u8],
}

/// Reads records one by one.
pub(super) struct PcapReader<R> {
    source: R,
    buf: Vec<u8>,
    held: Range<usize>,
    /// Offset in the stream of the first held byte.
    at: u64,
    /// Bytes of the current record, header included.
    current_bytes: usize,
    header: Header,
    packets: u64,
    /// Records whose bytes behind the file's snap length are left out.
    pub(super) cut_to_snaplen: u64,
    /// Records whose fraction of a second was a second or more.
    pub(super) times_carried: u64,
}

/// What the file header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    big_endian: bool,
    ns_per_fraction: u64,
    minor: u16,
    snaplen_bytes: u32,
    link_type: LinkType,
}

impl<R: Read> PcapReader<R> {
    /// Reads the file header.
    pub(super) fn new(source: R) -> Result<Self, Fault> {
        let header = Header {
            big_endian: false,
            ns_per_fraction: 1,
            minor: 4,
            snaplen_bytes: 0,
            link_type: LinkType::ETHERNET,
        };
        let buf = vec![0; BUFFER_BYTES];
        let mut reader = Self {
            source,
            buf,
            held: 0..0,
            at: 0,
            current_bytes: 0,
            header,
            packets: 0,
            cut_to_snaplen: 0,
            times_carried: 0,
        };
        let held = reader.fill(FILE_HEADER_BYTES)?;
        reader.header = Header::parse(&reader.buf[..held.min(FILE_HEADER_BYTES)])?;
        reader.current_bytes = FILE_HEADER_BYTES;
        Ok(reader)
    }

    /// The one interface that such a file can tell of.
    pub(super) fn interface(&self) -> Interface {
        let mut interface = Interface::unnamed(self.header.link_type);
        interface.snaplen_bytes = self.header.snaplen_bytes;
        interface
    }

    /// Moves to the next record; `false` at the end.
    pub(super) fn advance(&mut self) -> Result<bool, Fault> {
        self.held.start += self.current_bytes;
        self.at += self.current_bytes as u64;
        self.current_bytes = 0;
        let held = self.fill(RECORD_HEADER_BYTES)?;
        if held == 0 {
            return Ok(false);
        }
        if held < RECORD_HEADER_BYTES {
            return Err(self.fault(format!("only {held} of its 16 header bytes are there")));
        }
        let (captured, _) = self.lengths();
        let long = LONG_LINK_TYPES.contains(&self.header.link_type.0);
        let limit = if long { CAPTURED_BYTES_MAX_LONG } else { CAPTURED_BYTES_MAX };
        if captured > limit {
            return Err(self.fault(format!(
                "a captured length of {captured} bytes is impossible, {limit} is the most"
            )));
        }
        let total = RECORD_HEADER_BYTES + captured as usize;
        let held = self.fill(total)?;
        if held < total {
            let have = held - RECORD_HEADER_BYTES;
            return Err(self.fault(format!("only {have} of its {captured} bytes are there")));
        }
        self.current_bytes = total;
        self.packets += 1;
        self.cut_to_snaplen += u64::from(captured > self.header.visible_bytes());
        let carried = u64::from(self.field(1)) * self.header.ns_per_fraction >= 1_000_000_000;
        self.times_carried += u64::from(carried);
        Ok(true)
    }

    /// The current record.
    ///
    /// libpcap gives no byte behind the file's snap length, whatever the record states, so neither
    /// filters nor people that read the file with tcpdump ever see one: it is left out here too. A
    /// fraction of a second or more is carried into the seconds. (libpcap passes it on, and tcpdump
    /// prints `1700000000.1500000`.)
    pub(super) fn record(&self) -> Record<'_> {
        let (captured, wire_len) = self.lengths();
        let start = self.held.start + RECORD_HEADER_BYTES;
        let visible = captured.min(self.header.visible_bytes());
        let seconds = u64::from(self.field(0));
        let fraction = u64::from(self.field(1)) * self.header.ns_per_fraction;
        Record {
            ts_ns: seconds * 1_000_000_000 + fraction,
            wire_len,
            data: &self.buf[start..start + visible as usize],
        }
    }

    fn lengths(&self) -> (u32, u32) {
        let (captured, wire) = (self.field(2), self.field(3));
        // Before version 2.3 the two stood the other way round, and some writers of 2.3 did not
        // notice the change.
        let swapped = self.header.minor < 3 || (self.header.minor == 3 && captured > wire);
        if swapped { (wire, captured) } else { (captured, wire) }
    }

    fn field(&self, n: usize) -> u32 {
        u32_at(&self.buf[self.held.start..], 4 * n, self.header.big_endian)
    }

    fn fault(&self, what: String) -> Fault {
        Fault::Record { at: self.at, what, packets: self.packets }
    }

    fn fill(&mut self, want: usize) -> Result<usize, Fault> {
        if self.held.len() < want && self.held.start + want > self.buf.len() {
            self.buf.copy_within(self.held.clone(), 0);
            self.held = 0..self.held.len();
            if want > self.buf.len() {
                self.buf.resize(want, 0);
            }
        }
        while self.held.len() < want {
            match self.source.read(&mut self.buf[self.held.end..]) {
                Ok(0) => break,
                Ok(count) => self.held.end += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(Fault::Io { at: self.at + self.held.len() as u64, source });
                }
            }
        }
        Ok(self.held.len())
    }
}

impl Header {
    fn parse(bytes: &[u8]) -> Result<Self, Fault> {
        let refuse = |what: &str| Err(Fault::Unsupported(what.to_owned()));
        let magic = bytes.first_chunk().map_or(0, |raw| u32::from_le_bytes(*raw));
        let (big_endian, ns_per_fraction) = match magic {
            0xa1b2_c3d4 => (false, 1000),
            0xd4c3_b2a1 => (true, 1000),
            0xa1b2_3c4d => (false, 1),
            0x4d3c_b2a1 => (true, 1),
            0xa1b2_cd34 | 0x34cd_b2a1 => {
                return refuse(
                    "a `modified` pcap file (Kuznetsov's patch): its records have further fields \
                     that differ between patches; convert it with `editcap -F pcapng`",
                );
            }
            0x1c00_01ac | 0xac01_001c | 0x1c00_01ab | 0xab01_001c => {
                return refuse("an IXIA capture; convert it with `editcap -F pcapng`");
            }
            _ if bytes.is_empty() => return refuse("it is empty, which no capture file is"),
            _ => {
                let first = &bytes[..bytes.len().min(4)];
                return Err(Fault::Unsupported(format!(
                    "not a pcap or pcapng file: it begins with {first:02x?}"
                )));
            }
        };
        if bytes.len() < FILE_HEADER_BYTES {
            return refuse("a pcap file that ends inside its header of 24 bytes");
        }
        let versions = u32_at(bytes, 4, big_endian);
        let (major, minor) = match big_endian {
            true => ((versions >> 16) as u16, versions as u16),
            false => (versions as u16, (versions >> 16) as u16),
        };
        if major != 2 || minor > 4 {
            let what = format!("pcap version {major}.{minor} is not known, 2.0 to 2.4 are");
            return Err(Fault::Unsupported(what));
        }
        // Values beyond 2^31 mean "no limit" to libpcap as well.
        let snaplen_bytes = match u32_at(bytes, 16, big_endian) {
            huge if huge > i32::MAX as u32 => 0,
            snaplen => snaplen,
        };
        // The upper half tells of frame check sequences; the link type is the lower half.
        let link_type = LinkType(u32_at(bytes, 20, big_endian) as u16);
        Ok(Self { big_endian, ns_per_fraction, minor, snaplen_bytes, link_type })
    }

    /// Bytes of a packet that libpcap gives at most.
    fn visible_bytes(&self) -> u32 {
        if self.snaplen_bytes == 0 { u32::MAX } else { self.snaplen_bytes }
    }
}

/// Callers hold at least `at + 4` bytes: a whole file or record header.
fn u32_at(bytes: &[u8], at: usize, big_endian: bool) -> u32 {
    let raw = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
    if big_endian { u32::from_be_bytes(raw) } else { u32::from_le_bytes(raw) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Row = (u64, u32, Vec<u8>);

    fn encode(magic: u32, big: bool, minor: u16, link: u32, rows: &[Row]) -> Vec<u8> {
        let word = |n: u32| if big { n.to_be_bytes() } else { n.to_le_bytes() };
        let half = |n: u16| if big { n.to_be_bytes() } else { n.to_le_bytes() };
        let per_second = if magic == 0xa1b2_3c4d { 1 } else { 1000 };
        let mut out = word(magic).to_vec();
        out.extend([half(2), half(minor)].concat());
        out.extend([word(0), word(0), word(65_535), word(link)].concat());
        for (ts_ns, wire, data) in rows {
            let fraction = (ts_ns % 1_000_000_000 / per_second) as u32;
            let (a, b) = match minor {
                0..3 => (*wire, data.len() as u32),
                _ => (data.len() as u32, *wire),
            };
            out.extend([(ts_ns / 1_000_000_000) as u32, fraction, a, b].map(word).concat());
            out.extend(data);
        }
        out
    }

    fn read(bytes: &[u8]) -> (Vec<Row>, Option<Fault>) {
        let mut rows = Vec::new();
        let mut reader = match PcapReader::new(bytes) {
            Ok(reader) => reader,
            Err(fault) => return (rows, Some(fault)),
        };
        loop {
            match reader.advance() {
                Ok(true) => {
                    let r = reader.record();
                    rows.push((r.ts_ns, r.wire_len, r.data.to_vec()));
                }
                Ok(false) => return (rows, None),
                Err(fault) => return (rows, Some(fault)),
            }
        }
    }

    fn rows() -> impl Strategy<Value = Vec<Row>> {
        let row =
            (0..4_000_000_000_000_000_000u64, 0u32..2000, proptest::collection::vec(0u8.., 0..60))
                .prop_map(|(ts, more, data)| (ts / 1000 * 1000, data.len() as u32 + more, data));
        proptest::collection::vec(row, 0..8)
    }

    proptest! {
        #[test]
        fn every_kind_of_file_reads_back(rows in rows(), minor in 2u16..5) {
            for magic in [0xa1b2_c3d4, 0xa1b2_3c4d] {
                for big in [false, true] {
                    let bytes = encode(magic, big, minor, 0xf400_0001, &rows);
                    let (got, fault) = read(&bytes);
                    prop_assert!(fault.is_none(), "{fault:?}");
                    prop_assert_eq!(&got, &rows);
                    let Ok(reader) = PcapReader::new(&bytes[..]) else { panic!("a header") };
                    let interface = reader.interface();
                    prop_assert_eq!(interface.link_type, LinkType::ETHERNET);
                    prop_assert_eq!(interface.snaplen_bytes, 65_535);
                }
            }
        }

        #[test]
        fn a_cut_anywhere_gives_the_whole_records_and_then_the_place(rows in rows()) {
            let bytes = encode(0xa1b2_3c4d, false, 4, 1, &rows);
            let mut ends = vec![FILE_HEADER_BYTES];
            for (_, _, data) in &rows {
                ends.push(ends[ends.len() - 1] + RECORD_HEADER_BYTES + data.len());
            }
            for cut in 0..bytes.len() {
                let (got, fault) = read(&bytes[..cut]);
                let whole = ends.iter().filter(|end| **end <= cut).count();
                prop_assert_eq!(&got[..], &rows[..whole.saturating_sub(1)]);
                let expected = match fault {
                    None => ends.contains(&cut),
                    Some(Fault::Unsupported(_)) => cut < FILE_HEADER_BYTES,
                    Some(Fault::Record { at, packets, .. }) => {
                        at == ends[whole - 1] as u64 && packets == got.len() as u64
                    }
                    Some(Fault::Io { .. }) => false,
                };
                prop_assert!(expected, "cut {cut}");
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(
            noise in proptest::collection::vec(0u8.., 0..200),
            rows in rows(),
        ) {
            read(&noise);
            let mut bytes = encode(0xa1b2_c3d4, true, 4, 1, &rows);
            bytes.extend(&noise);
            read(&bytes);
        }
    }

    #[test]
    fn what_libpcap_does_not_show_is_left_out_and_counted() {
        let rows = [(1_000_000_000, 100, vec![7; 100]), (2_000_000_000, 90, vec![8; 90])];
        let mut bytes = encode(0xa1b2_c3d4, false, 4, 1, &rows);
        bytes[16..20].copy_from_slice(&90u32.to_le_bytes());
        // 1.5 s as microseconds of the second record.
        bytes[24 + 116 + 4..][..4].copy_from_slice(&1_500_000u32.to_le_bytes());
        let Ok(mut reader) = PcapReader::new(&bytes[..]) else { panic!("a header") };
        assert!(matches!(reader.advance(), Ok(true)));
        assert_eq!(reader.record(), Record { ts_ns: 1_000_000_000, wire_len: 100, data: &[7; 90] });
        assert!(matches!(reader.advance(), Ok(true)));
        assert_eq!(reader.record(), Record { ts_ns: 3_500_000_000, wire_len: 90, data: &[8; 90] });
        assert!(matches!(reader.advance(), Ok(false)));
        assert_eq!((reader.cut_to_snaplen, reader.times_carried), (1, 1));
        for no_limit in [0, u32::MAX] {
            bytes[16..20].copy_from_slice(&no_limit.to_le_bytes());
            assert_eq!(read(&bytes).0[0].2.len(), 100);
        }
    }

    #[test]
    fn hostile_and_patched_files_are_refused_with_a_reason() {
        let refused = |bytes: &[u8], expected: &str| match read(bytes).1 {
            Some(Fault::Unsupported(what) | Fault::Record { what, .. }) => {
                assert!(what.contains(expected), "{what}");
            }
            other => panic!("{other:?}"),
        };
        refused(&encode(0xa1b2_cd34, false, 4, 1, &[]), "editcap");
        refused(&encode(0xa1b2_c3d4, false, 5, 1, &[]), "version 2.5");
        refused(b"GIF89a", "begins with [47, 49, 46, 38]");
        refused(b"", "it is empty");
        let mut bytes = encode(0xa1b2_c3d4, false, 4, 1, &[]);
        bytes.extend([0, 0, u32::MAX, u32::MAX].map(u32::to_le_bytes).concat());
        refused(&bytes, "impossible");
    }
}
