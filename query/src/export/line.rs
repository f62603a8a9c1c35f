//! Answers as text: one line a packet, in tcpdump's manner.

use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;

use jiff::tz::TimeZone;
use wirevault_format::Interface;
use wirevault_packet::{OuterText, summary};

use super::{PacketOut, Sink};
use crate::stream::{is_duplicate, outer_records};
use crate::time::time_of_day;

/// Writes a line for every packet: time of day in a zone, then what the headers say.
#[derive(Debug)]
pub struct LineSink<W: Write> {
    writer: BufWriter<W>,
    zone: TimeZone,
}

impl<W: Write> LineSink<W> {
    /// Lines whose times are those of `zone`.
    pub fn new(writer: W, zone: TimeZone) -> Self {
        Self { writer: BufWriter::new(writer), zone }
    }

    /// Passes on what is buffered, so that a reader at the other end of a pipe sees it.
    ///
    /// # Errors
    /// Writing failed.
    pub fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }

    /// Gives the writer back.
    ///
    /// # Errors
    /// Writing failed.
    pub fn finish(self) -> io::Result<W> {
        self.writer.into_inner().map_err(io::IntoInnerError::into_error)
    }
}

impl<W: Write> Sink for LineSink<W> {
    fn interface(&mut self, _: u32, _: &Interface) -> io::Result<()> {
        Ok(())
    }

    fn packet(&mut self, packet: &PacketOut<'_>) -> io::Result<ControlFlow<()>> {
        let time = time_of_day(packet.ts_ns, &self.zone);
        let line = summary::line(packet.link_type, packet.data, packet.orig_len);
        let mark = if is_duplicate(packet.options) { "[duplicate] " } else { "" };
        match outer_records(packet.options) {
            [] => writeln!(self.writer, "{time} {mark}{line}")?,
            records => writeln!(self.writer, "{time} {mark}[{}] {line}", OuterText(records))?,
        }
        Ok(ControlFlow::Continue(()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{DNS, packet};
    use super::*;

    #[test]
    fn a_packet_is_one_line() {
        let mut sink = LineSink::new(Vec::new(), TimeZone::UTC);
        assert_eq!(
            sink.packet(&packet(0, 36_000_000_000_005, DNS)).unwrap(),
            ControlFlow::Continue(())
        );
        let text = String::from_utf8(sink.finish().unwrap()).unwrap();
        assert!(text.starts_with("10:00:00.000000005 IP 10.0.0.1.12345 > 10.0.0.2.53: "), "{text}");
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn what_was_removed_stands_before_the_line() {
        let mut sink = LineSink::new(Vec::new(), TimeZone::UTC);
        let option = [0x57, 0x80, 10, 0, 7, 8, 8, 0, 0, 0, 0, 0, 5, 0, 0, 0];
        let packet = PacketOut { options: &option, ..packet(0, 1, DNS) };
        assert_eq!(sink.packet(&packet).unwrap(), ControlFlow::Continue(()));
        let text = String::from_utf8(sink.finish().unwrap()).unwrap();
        assert!(text.contains(" [VXLAN vni 5] IP 10.0.0.1.12345 > "), "{text}");
    }
}
