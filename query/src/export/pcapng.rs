//! Answers as pcapng: everything that was stored comes out again, and the last block says what is
//! missing.

use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;

use wirevault_format::limits::SNAPLEN_MAX;
use wirevault_format::pcapng::{
    BLOCK_FRAME_BYTES, BLOCK_ISB, EpbParts, OPTION_COMMENT, OPTION_END, put_epb, put_idb,
    put_option, put_shb,
};
use wirevault_format::{Interface, LinkType};

use super::{PacketOut, Sink};
use crate::summary::Summary;

/// What the machine-readable line of the closing comment begins with; the rest of the line is the
/// summary as JSON.
pub const COMMENT_PREFIX: &str = "wirevault-summary: ";

/// Bytes of the closing comment at most: an option's length is 16 bits.
const COMMENT_BYTES_MAX: usize = 60_000;
/// Bytes collected before they are written on.
const BUFFER_BYTES: usize = 256 << 10;

/// Writes pcapng: section header, interfaces as they first occur, packets, and an Interface
/// Statistics Block whose comment is the summary, in words and as JSON.
///
/// Every interface states the same snaplen, because tcpdump refuses files whose interfaces differ
/// in it; its own is in a local-use option.
#[derive(Debug)]
pub struct PcapngSink<W: Write> {
    writer: BufWriter<W>,
    block: Vec<u8>,
    interfaces: u32,
    last_ns: u64,
}

impl<W: Write> PcapngSink<W> {
    /// Starts the file.
    ///
    /// # Errors
    /// Writing failed.
    pub fn new(writer: W) -> io::Result<Self> {
        let mut block = Vec::new();
        put_shb(&mut block, concat!("wirevault ", env!("CARGO_PKG_VERSION")));
        let mut writer = BufWriter::with_capacity(BUFFER_BYTES, writer);
        writer.write_all(&block)?;
        Ok(Self { writer, block, interfaces: 0, last_ns: 0 })
    }

    /// Passes on what is buffered, so that a reader at the other end of a pipe sees it.
    ///
    /// # Errors
    /// Writing failed.
    pub fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }

    /// Ends the file with the summary and gives the writer back.
    ///
    /// # Errors
    /// Writing failed.
    pub fn finish(mut self, summary: &Summary) -> io::Result<W> {
        if self.interfaces == 0 {
            // tcpdump refuses a file without any interface.
            self.interface(0, &Interface::unnamed(LinkType::ETHERNET))?;
        }
        let words = summary.to_string();
        let json = summary.json_within(COMMENT_BYTES_MAX.saturating_sub(words.len()));
        let comment = format!("{words}\n{COMMENT_PREFIX}{json}");
        let at = summary.covered_until.as_ref().map_or(self.last_ns, |until| until.ns);
        self.block.clear();
        put_statistics(&mut self.block, at, &comment);
        self.writer.write_all(&self.block)?;
        self.writer.into_inner().map_err(io::IntoInnerError::into_error)
    }
}

impl<W: Write> Sink for PcapngSink<W> {
    fn interface(&mut self, id: u32, interface: &Interface) -> io::Result<()> {
        if id != self.interfaces {
            let text = format!("interface {id} comes as number {}", self.interfaces);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        self.interfaces += 1;
        self.block.clear();
        put_idb(&mut self.block, interface, SNAPLEN_MAX);
        self.writer.write_all(&self.block)
    }

    fn packet(&mut self, packet: &PacketOut<'_>) -> io::Result<ControlFlow<()>> {
        let parts = EpbParts {
            interface_id: packet.interface,
            ts_ns: packet.ts_ns,
            orig_len: packet.orig_len,
            data: packet.data,
            vlan: None,
            flags: packet.flags,
            raw_options: packet.options,
        };
        self.block.resize(parts.block_bytes(), 0);
        let written = put_epb(&mut self.block, 0, &parts)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a packet above 4 GiB"))?;
        self.last_ns = self.last_ns.max(packet.ts_ns);
        self.writer.write_all(&self.block[..written])?;
        Ok(ControlFlow::Continue(()))
    }
}

/// An Interface Statistics Block that only carries a comment. The format crate's own cuts texts far
/// shorter.
///
/// Source: pcapng, section 4.6 "Interface Statistics Block".
fn put_statistics(out: &mut Vec<u8>, ts_ns: u64, comment: &str) {
    let mut options = Vec::new();
    put_option(&mut options, OPTION_COMMENT, comment.as_bytes());
    put_option(&mut options, OPTION_END, &[]);
    let total_bytes = (BLOCK_FRAME_BYTES + 12 + options.len()) as u32;
    let (high, low) = ((ts_ns >> 32) as u32, ts_ns as u32);
    for word in [BLOCK_ISB, total_bytes, 0, high, low] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(&options);
    out.extend_from_slice(&total_bytes.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use wirevault_format::Cause;
    use wirevault_format::pcapng::{Blocks, Epb, options};

    use super::super::tests::{DNS, packet, read_with};
    use super::*;
    use crate::summary::GapLine;

    fn exported(packets: &[PacketOut<'_>], names: &[&str], summary: &Summary) -> Vec<u8> {
        let mut sink = PcapngSink::new(Vec::new()).unwrap();
        for (id, name) in names.iter().enumerate() {
            let mut interface = Interface::unnamed(LinkType::ETHERNET);
            interface.name = Some((*name).to_owned());
            interface.snaplen_bytes = 96 + id as u32;
            sink.interface(id as u32, &interface).unwrap();
        }
        for packet in packets {
            assert_eq!(sink.packet(packet).unwrap(), ControlFlow::Continue(()));
        }
        sink.finish(summary).unwrap()
    }

    fn comment(file: &[u8]) -> String {
        let last = Blocks::new(file).last().unwrap().unwrap();
        assert_eq!(last.kind, BLOCK_ISB);
        let option = options(&last.body[12..]).next().unwrap().unwrap();
        String::from_utf8(option.value.to_vec()).unwrap()
    }

    #[test]
    fn tcpdump_and_tshark_read_it() {
        let mut kept = Vec::new();
        put_option(&mut kept, OPTION_COMMENT, b"seen before");
        let mut second = packet(1, 1_500_000_001, DNS);
        second.options = &kept;
        let summary = Summary { packets: 2, complete: true, ..Summary::default() };
        let file = exported(&[packet(0, 1_000_000_000, DNS), second], &["eth0", "eth1"], &summary);
        let text = read_with("tcpdump", &["-n", "-tt", "--nano"], &file);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.starts_with("1.000000000 IP 10.0.0.1.12345 > 10.0.0.2.53:"), "{text}");
        let fields = [
            "-T",
            "fields",
            "-e",
            "frame.time_epoch",
            "-e",
            "frame.interface_name",
            "-e",
            "frame.len",
            "-e",
            "frame.comment",
        ];
        let text = read_with("tshark", &fields, &file);
        assert_eq!(text, "1.000000000\teth0\t57\t\n1.500000001\teth1\t57\tseen before\n");
    }

    #[test]
    fn packets_keep_flags_and_options_and_the_end_is_the_summary() {
        let mut kept = Vec::new();
        put_option(&mut kept, OPTION_COMMENT, b"x");
        let mut out = packet(0, 7, DNS);
        out.options = &kept;
        let summary = Summary { packets: 1, limit_reached: true, ..Summary::default() };
        let file = exported(&[out], &["eth0"], &summary);
        let epb = Epb::parse(&Blocks::new(&file).nth(2).unwrap().unwrap()).unwrap();
        assert_eq!((epb.data, epb.flags, epb.options), (DNS, Some(1), &kept[..]));
        let comment = comment(&file);
        let json = comment.lines().last().unwrap().strip_prefix(COMMENT_PREFIX).unwrap();
        assert_eq!(serde_json::from_str::<Summary>(json).unwrap(), summary);
        assert!(comment.starts_with("1 packet, 0 bytes; INCOMPLETE"), "{comment}");
    }

    #[test]
    fn an_empty_answer_is_a_file_that_readers_take() {
        let file = exported(&[], &[], &Summary::default());
        assert_eq!(read_with("tcpdump", &[], &file), "");
        assert_eq!(read_with("tshark", &[], &file), "");
    }

    #[test]
    fn a_thousand_gaps_fit_into_the_comment() {
        let gap = |n: u64| GapLine {
            from: (n * 1_000_000_007).into(),
            until: (n * 1_000_000_007 + 5).into(),
            lane: Some(1),
            packets: Some(n),
            cause: Cause::NoBuffer,
            policy: None,
        };
        let summary = Summary { gaps: (0..1000).map(gap).collect(), ..Summary::default() };
        let file = exported(&[packet(0, 1, DNS)], &["eth0"], &summary);
        let comment = comment(&file);
        let json = comment.lines().last().unwrap().strip_prefix(COMMENT_PREFIX).unwrap();
        let read: Summary = serde_json::from_str(json).unwrap();
        assert_eq!(read.gaps.len() as u64 + read.gaps_not_listed, 1000);
        assert_eq!(read_with("tcpdump", &["-n"], &file).lines().count(), 1);
    }
}
