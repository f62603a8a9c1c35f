//! Where answers go: pcapng, pcap, lines of text, or nowhere but a count; flows also into Parquet.
//!
//! A sink sees every interface once, before its first packet, and packets in the order of the
//! answer. The caller ends it with `finish`, which is where a file gets its statement of
//! completeness.

mod flow_file;
mod line;
mod pcap;
mod pcapng;

use std::io;
use std::ops::ControlFlow;

use wirevault_format::{Interface, LinkType};

pub use flow_file::{FLOW_SCHEMA, FlowFile};
pub use line::LineSink;
pub use pcap::PcapSink;
pub use pcapng::{COMMENT_PREFIX, PcapngSink};

pub(crate) use pcap::pcap_header;

/// One packet of an answer.
#[derive(Debug, Clone, Copy)]
pub struct PacketOut<'a> {
    /// Number of its interface, as given to [`Sink::interface`].
    pub interface: u32,
    /// Link type of that interface.
    pub link_type: LinkType,
    /// Nanoseconds since 1970-01-01 UTC.
    pub ts_ns: u64,
    /// Length on the wire in bytes.
    pub orig_len: u32,
    /// Captured bytes.
    pub data: &'a [u8],
    /// `epb_flags`, if it was stored.
    pub flags: Option<u32>,
    /// Other pcapng options, comments among them: encoded and padded, without `opt_endofopt`.
    pub options: &'a [u8],
}

/// Receives an answer.
pub trait Sink {
    /// An interface that packets will name by `id`. Ids count from 0.
    ///
    /// # Errors
    /// Writing failed, or the output cannot express it. The query ends with the error.
    fn interface(&mut self, id: u32, interface: &Interface) -> io::Result<()>;

    /// A packet. `Break` means that no more are wanted; the packet itself was taken.
    ///
    /// # Errors
    /// As [`Sink::interface`].
    fn packet(&mut self, packet: &PacketOut<'_>) -> io::Result<ControlFlow<()>>;
}

/// Counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CountSink {
    /// Packets.
    pub packets: u64,
    /// Captured bytes of them.
    pub bytes: u64,
}

impl Sink for CountSink {
    fn interface(&mut self, _: u32, _: &Interface) -> io::Result<()> {
        Ok(())
    }

    fn packet(&mut self, packet: &PacketOut<'_>) -> io::Result<ControlFlow<()>> {
        self.packets += 1;
        self.bytes += packet.data.len() as u64;
        Ok(ControlFlow::Continue(()))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::process::Command;

    use super::*;

    /// A DNS question over Ethernet, and a frame that is nothing.
    pub(crate) const DNS: &[u8] = &[
        2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 33, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0,
        0, 1, 10, 0, 0, 2, 0x30, 0x39, 0, 53, 0, 13, 0, 0, 1, 2, 3, 4, 5,
    ];

    pub(crate) fn packet(interface: u32, ts_ns: u64, data: &[u8]) -> PacketOut<'_> {
        PacketOut {
            interface,
            link_type: LinkType::ETHERNET,
            ts_ns,
            orig_len: data.len() as u32 + 10,
            data,
            flags: Some(1),
            options: &[],
        }
    }

    /// Runs a reader on `bytes` as a file; panics with what it said if it refuses them.
    pub(crate) fn read_with(program: &str, arguments: &[&str], bytes: &[u8]) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let output =
            Command::new(program).arg("-r").arg(file.path()).args(arguments).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{program}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[test]
    fn a_count_counts() {
        let mut sink = CountSink::default();
        assert_eq!(sink.packet(&packet(0, 1, DNS)).unwrap(), ControlFlow::Continue(()));
        assert_eq!(sink, CountSink { packets: 1, bytes: DNS.len() as u64 });
    }
}
