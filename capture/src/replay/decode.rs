//! Decodes pcap and pcapng as they come, for replay and for streams over TCP.

use std::io::{self, Read};

use wirevault_format::Interface;
use wirevault_format::pcapng::{self, Event, PcapngError};

use super::pcap::{self, Fault, PcapReader};
use crate::error::CaptureError;
use crate::source::{Packet, SourceCounters};

/// Reads one stream. The current packet stays until it is taken.
///
/// An input that answers `WouldBlock` is dry, not damaged: the next call reads on.
pub(crate) struct Decoder<R> {
    format: Format<R>,
    interfaces: Vec<Interface>,
    /// The current packet was read and not yet taken.
    pending: bool,
    counters: SourceCounters,
}

enum Format<R> {
    Pcap(PcapReader<R>),
    Pcapng(pcapng::Reader<R>),
}

/// What reading on came to.
pub(crate) enum Advanced {
    /// There is a current packet.
    Packet,
    /// The list of interfaces has grown.
    Interface,
    /// A block that holds neither was skipped.
    Nothing,
    /// The stream ended behind a whole record.
    End,
}

/// Why a stream cannot be read on, without its name.
#[derive(Debug)]
pub(crate) enum DecodeFault {
    Pcap(Fault),
    Pcapng(PcapngError),
}

impl<R: Read> Decoder<R> {
    /// Starts at the first byte of `input`; `first` are its first bytes, which it still gives out.
    ///
    /// # Errors
    /// A pcap header cannot be read or is not one.
    pub(crate) fn new(input: R, first: &[u8]) -> Result<Self, DecodeFault> {
        let mut interfaces = Vec::new();
        let format = if first.starts_with(&pcapng::BLOCK_SHB.to_le_bytes()) {
            Format::Pcapng(pcapng::Reader::new(input))
        } else {
            let reader = PcapReader::new(input).map_err(DecodeFault::Pcap)?;
            interfaces.push(reader.interface());
            Format::Pcap(reader)
        };
        Ok(Self { format, interfaces, pending: false, counters: SourceCounters::default() })
    }

    /// Interfaces met so far.
    pub(crate) fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// Name of the format.
    pub(crate) fn format(&self) -> &'static str {
        match self.format {
            Format::Pcap(_) => "pcap",
            Format::Pcapng(_) => "pcapng",
        }
    }

    /// Counts of what was read and taken.
    pub(crate) fn counters(&self) -> SourceCounters {
        SourceCounters { in_ring: u64::from(self.pending), ..self.counters }
    }

    /// Reads on, unless the current packet is not taken yet.
    ///
    /// # Errors
    /// All whole packets before the fault were given out.
    pub(crate) fn advance(&mut self) -> Result<Advanced, DecodeFault> {
        if self.pending {
            return Ok(Advanced::Packet);
        }
        match &mut self.format {
            Format::Pcap(reader) => {
                let more = reader.advance().map_err(DecodeFault::Pcap)?;
                self.counters.cut_to_snaplen = reader.cut_to_snaplen;
                self.counters.times_carried = reader.times_carried;
                if !more {
                    return Ok(Advanced::End);
                }
            }
            Format::Pcapng(reader) => match reader.next_event().map_err(DecodeFault::Pcapng)? {
                None => return Ok(Advanced::End),
                Some(Event::Other(kind)) => {
                    self.counters.skipped_blocks[kind.index()] += 1;
                    return Ok(Advanced::Nothing);
                }
                Some(Event::Interface(_)) => {
                    let known = self.interfaces.len();
                    self.interfaces.extend_from_slice(&reader.interfaces()[known..]);
                    return Ok(Advanced::Interface);
                }
                Some(Event::Packet(record)) => {
                    let rounded = record.sub_ns_lost || record.time_clamped;
                    self.counters.times_rounded += u64::from(rounded);
                    self.counters.options_cut += u64::from(record.options_cut);
                }
            },
        }
        self.counters.received += 1;
        self.pending = true;
        Ok(Advanced::Packet)
    }

    /// The current packet, if one waits.
    pub(crate) fn packet(&self) -> Option<Packet<'_>> {
        if !self.pending {
            return None;
        }
        match &self.format {
            Format::Pcap(reader) => {
                let pcap::Record { ts_ns, wire_len, data } = reader.record();
                let (vlan, flags) = (None, None);
                Some(Packet { interface: 0, ts_ns, wire_len, data, vlan, flags, options: &[] })
            }
            Format::Pcapng(reader) => reader.packet().map(|record| Packet {
                interface: record.interface,
                ts_ns: record.ts_ns,
                wire_len: record.orig_len,
                data: record.data,
                vlan: None,
                flags: record.flags,
                options: record.options,
            }),
        }
    }

    /// The current packet was taken.
    pub(crate) fn taken(&mut self) {
        self.pending = false;
        self.counters.handed += 1;
    }
}

impl DecodeFault {
    /// The input has nothing now; what was read of a record is kept.
    pub(crate) fn is_dry(&self) -> bool {
        self.io().is_some_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// The input failed after so many bytes, before a decoder was made.
    pub(crate) fn input(at: u64, source: io::Error) -> Self {
        Self::Pcap(Fault::Io { at, source })
    }

    /// The input's own failure, as opposed to what it said.
    pub(crate) fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Pcap(Fault::Io { source, .. }) | Self::Pcapng(PcapngError::Io { source, .. }) => {
                Some(source)
            }
            _ => None,
        }
    }

    /// As an error of the file or stream of that name.
    pub(crate) fn named(self, name: &str) -> CaptureError {
        let path = name.to_owned();
        match self {
            Self::Pcap(Fault::Io { at, source }) | Self::Pcapng(PcapngError::Io { at, source }) => {
                CaptureError::File { path, step: "reading", at, source }
            }
            Self::Pcap(Fault::Unsupported(what)) => CaptureError::Unsupported { path, what },
            Self::Pcap(Fault::Record { at, what, packets }) => {
                CaptureError::Record { path, at, what, packets }
            }
            Self::Pcapng(source) => CaptureError::Pcapng { path, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;
    use wirevault_format::LinkType;
    use wirevault_format::pcapng::{EpbParts, put_epb, put_idb, put_isb_comment, put_shb};

    use super::*;

    /// Gives its pieces one by one and is dry between them, as a socket is.
    struct Pieces(VecDeque<Vec<u8>>, bool);

    impl Read for Pieces {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let Some(piece) = self.0.front_mut() else { return Ok(0) };
            let count = piece.len().min(out.len());
            out[..count].copy_from_slice(&piece[..count]);
            piece.drain(..count);
            if piece.is_empty() {
                self.0.pop_front();
            }
            Ok(count)
        }
    }

    fn pcap(packets: &[Vec<u8>]) -> Vec<u8> {
        let mut out = 0xa1b2_3c4d_u32.to_le_bytes().to_vec();
        out.extend([2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0]);
        for (n, data) in (0u32..).zip(packets) {
            let len = data.len() as u32;
            out.extend([n, n, len, len].map(u32::to_le_bytes).concat());
            out.extend_from_slice(data);
        }
        out
    }

    fn pcapng(packets: &[Vec<u8>]) -> Vec<u8> {
        let mut out = Vec::new();
        put_shb(&mut out, "test");
        put_idb(&mut out, &Interface::unnamed(LinkType::ETHERNET), 262_144);
        for (ts_ns, data) in (0u64..).zip(packets) {
            let parts = EpbParts {
                interface_id: 0,
                ts_ns,
                orig_len: data.len() as u32,
                data,
                vlan: None,
                flags: Some(1),
                raw_options: &[],
            };
            let at = out.len();
            out.resize(at + parts.block_bytes(), 0);
            put_epb(&mut out, at, &parts).unwrap();
            put_isb_comment(&mut out, 0, ts_ns, "a comment");
        }
        out
    }

    fn read(stream: &[u8], cuts: &[usize]) -> Vec<Vec<u8>> {
        let mut pieces = VecDeque::new();
        let mut rest = &stream[24..];
        for cut in cuts.iter().cycle() {
            let (piece, more) = rest.split_at((*cut).min(rest.len()));
            if !piece.is_empty() {
                pieces.push_back(piece.to_vec());
            }
            rest = more;
            if rest.is_empty() {
                break;
            }
        }
        let input = stream[..24].chain(Pieces(pieces, false));
        let mut decoder = Decoder::new(input, &stream[..4]).unwrap_or_else(|e| panic!("{e:?}"));
        let mut packets = Vec::new();
        loop {
            match decoder.advance() {
                Ok(Advanced::Packet) => {
                    packets.push(decoder.packet().unwrap().data.to_vec());
                    decoder.taken();
                }
                Ok(Advanced::End) => break,
                Ok(_) => {}
                Err(fault) => assert!(fault.is_dry(), "{fault:?}"),
            }
        }
        assert_eq!(decoder.counters().received, packets.len() as u64);
        packets
    }

    proptest! {
        #[test]
        fn a_stream_that_pauses_anywhere_reads_as_one_that_does_not(
            packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..6),
            cuts in prop::collection::vec(1usize..90, 1..12),
        ) {
            prop_assert_eq!(read(&pcap(&packets), &cuts), packets.clone());
            prop_assert_eq!(read(&pcapng(&packets), &cuts), packets);
        }
    }
}
