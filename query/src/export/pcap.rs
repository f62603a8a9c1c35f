//! Answers as classic pcap, for readers that know nothing else.

use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;

use wirevault_format::limits::SNAPLEN_MAX;
use wirevault_format::{Interface, LinkType};

use super::{PacketOut, Sink};
use crate::time::rfc3339;

/// Magic of a file with nanoseconds.
const MAGIC_NS: u32 = 0xa1b2_3c4d;
const SECOND_NS: u64 = 1_000_000_000;

/// Writes classic pcap with nanoseconds. It has one link type, and no room for interfaces,
/// comments, direction or a statement of completeness.
#[derive(Debug)]
pub struct PcapSink<W: Write> {
    writer: BufWriter<W>,
    link_type: Option<LinkType>,
}

impl<W: Write> PcapSink<W> {
    /// A file that begins with its first packet, which decides the link type.
    pub fn new(writer: W) -> Self {
        Self { writer: BufWriter::new(writer), link_type: None }
    }

    /// Passes on what is buffered, so that a reader at the other end of a pipe sees it.
    ///
    /// # Errors
    /// Writing failed.
    pub fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }

    /// Ends the file and gives the writer back. Without any packet it is an empty Ethernet capture.
    ///
    /// # Errors
    /// Writing failed.
    pub fn finish(mut self) -> io::Result<W> {
        self.begin(LinkType::ETHERNET)?;
        self.writer.into_inner().map_err(io::IntoInnerError::into_error)
    }

    /// Writes the header, if that has not been done: for readers that wait for it. Returns the
    /// file's link type.
    ///
    /// # Errors
    /// Writing failed.
    pub fn begin(&mut self, link_type: LinkType) -> io::Result<LinkType> {
        if let Some(first) = self.link_type {
            return Ok(first);
        }
        self.link_type = Some(link_type);
        self.writer.write_all(&pcap_header(link_type))?;
        Ok(link_type)
    }
}

impl<W: Write> Sink for PcapSink<W> {
    fn interface(&mut self, _: u32, _: &Interface) -> io::Result<()> {
        Ok(())
    }

    fn packet(&mut self, packet: &PacketOut<'_>) -> io::Result<ControlFlow<()>> {
        let first = self.begin(packet.link_type)?;
        let refused = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
        if packet.link_type != first {
            return Err(refused(format!(
                "a pcap file holds one link type, and the answer has {first} and {}: write \
                 pcapng, or name one interface or link type in the question",
                packet.link_type
            )));
        }
        let seconds = u32::try_from(packet.ts_ns / SECOND_NS).map_err(|_| {
            refused(format!("pcap has no times as late as {}: write pcapng", rfc3339(packet.ts_ns)))
        })?;
        let captured = packet.data.len() as u32;
        let mut header = [0; 16];
        for (word, value) in header.chunks_exact_mut(4).zip([
            seconds,
            (packet.ts_ns % SECOND_NS) as u32,
            captured,
            packet.orig_len,
        ]) {
            word.copy_from_slice(&value.to_le_bytes());
        }
        self.writer.write_all(&header)?;
        self.writer.write_all(packet.data)?;
        Ok(ControlFlow::Continue(()))
    }
}

/// Header of a pcap file, 24 bytes, little-endian: magic, version 2.4, two zero words, snaplen,
/// link type.
///
/// Source: draft-ietf-opsawg-pcap, "PCAP Capture File Format".
pub(crate) fn pcap_header(link_type: LinkType) -> [u8; 24] {
    let mut header = [0; 24];
    header[..4].copy_from_slice(&MAGIC_NS.to_le_bytes());
    header[4..6].copy_from_slice(&2u16.to_le_bytes());
    header[6..8].copy_from_slice(&4u16.to_le_bytes());
    header[16..20].copy_from_slice(&SNAPLEN_MAX.to_le_bytes());
    header[20..24].copy_from_slice(&u32::from(link_type.0).to_le_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::super::tests::{DNS, packet, read_with};
    use super::*;

    #[test]
    fn tcpdump_and_tshark_read_it() {
        let mut sink = PcapSink::new(Vec::new());
        for ts_ns in [5, 1_795_255_200_123_456_789] {
            assert_eq!(sink.packet(&packet(0, ts_ns, DNS)).unwrap(), ControlFlow::Continue(()));
        }
        let file = sink.finish().unwrap();
        let text = read_with("tcpdump", &["-n", "-tt", "--nano"], &file);
        assert!(text.starts_with("0.000000005 IP 10.0.0.1"), "{text}");
        assert!(text.contains("\n1795255200.123456789 IP"), "{text}");
        let text =
            read_with("tshark", &["-T", "fields", "-e", "frame.len", "-e", "frame.cap_len"], &file);
        assert_eq!(text, "57\t47\n57\t47\n");
    }

    #[test]
    fn an_empty_answer_is_a_file_that_readers_take() {
        let file = PcapSink::new(Vec::new()).finish().unwrap();
        assert_eq!(file, pcap_header(LinkType::ETHERNET));
        assert_eq!(read_with("tcpdump", &[], &file), "");
    }

    #[test]
    fn a_second_link_type_and_a_late_time_are_refused() {
        let mut sink = PcapSink::new(Vec::new());
        assert!(sink.packet(&packet(0, 1, DNS)).is_ok());
        let mut raw = packet(1, 2, DNS);
        raw.link_type = LinkType::RAW;
        let error = sink.packet(&raw).unwrap_err().to_string();
        assert!(error.contains("EN10MB") && error.contains("RAW"), "{error}");
        let error = sink.packet(&packet(0, u64::MAX, DNS)).unwrap_err().to_string();
        assert!(error.contains("pcapng"), "{error}");
    }
}
