//! Packets in memory, and the source that hands them to a lane.

use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;
use wirevault_capture::{
    CaptureError, Packet, PacketSink, Polled, Source, SourceCounters, SourceReport, SourceState,
};
use wirevault_format::{Interface, LinkType};

/// Flows among the packets.
pub(crate) const FLOWS: u64 = 100_000;
/// Packets handed out in one poll: about what a block of a live ring holds.
const BATCH: u64 = 1024;
/// Bytes handed out in one poll, where packets are large.
const BATCH_BYTES: usize = 4 << 20;
/// Lengths whose mean is 796 B.
const MIX: [usize; 12] = [64, 1514, 576, 1514, 64, 1514, 576, 1514, 64, 576, 1514, 64];
/// Time between two packets.
pub(crate) const STEP_NS: u64 = 250;

/// Lengths of the packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
pub(crate) enum Size {
    /// 64 B.
    #[value(name = "64")]
    #[serde(rename = "64")]
    Smallest,
    /// 512 B.
    #[value(name = "512")]
    #[serde(rename = "512")]
    Middle,
    /// 64, 576 and 1514 B, 796 B in the mean.
    #[value(name = "mix")]
    #[serde(rename = "800 mix")]
    Mix,
    /// 1024 B, as records of a log.
    #[value(name = "1024")]
    #[serde(rename = "1024")]
    Record,
    /// 1500 B.
    #[value(name = "1500")]
    #[serde(rename = "1500")]
    Large,
}

impl Size {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Smallest => "64",
            Self::Middle => "512",
            Self::Mix => "800 mix",
            Self::Record => "1024",
            Self::Large => "1500",
        }
    }

    /// Lengths of packets that follow one another, again and again.
    fn lengths(self) -> &'static [usize] {
        match self {
            Self::Smallest => &[64],
            Self::Middle => &[512],
            Self::Mix => &MIX,
            Self::Record => &[1024],
            Self::Large => &[1500],
        }
    }
}

/// Distinct packets, one behind the other.
pub(crate) struct Packets {
    name: &'static str,
    lengths: Box<[usize]>,
    data: Vec<u8>,
    pub(crate) count: u64,
}

impl Packets {
    /// At least `bytes` of them, over [`FLOWS`] flows in random order.
    pub(crate) fn make(size: Size, bytes: usize) -> Self {
        let data = Vec::with_capacity(bytes + 2048);
        let mut packets =
            Self { name: size.name(), lengths: size.lengths().into(), data, count: 0 };
        let mut random = 0x9e37_79b9_7f4a_7c15;
        while packets.data.len() < bytes {
            packets.push(&mut random);
        }
        packets
    }

    /// A single one.
    pub(crate) fn one(name: &'static str, frame: Vec<u8>) -> Self {
        Self { name, lengths: [frame.len()].into(), data: frame, count: 1 }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.data.len() as u64
    }

    /// All of them in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut at = 0;
        self.lengths.iter().cycle().take(self.count as usize).map(move |bytes| {
            at += bytes;
            &self.data[at - bytes..at]
        })
    }

    fn push(&mut self, random: &mut u64) {
        let bytes = self.lengths[(self.count % self.lengths.len() as u64) as usize];
        let flow = next(random) % FLOWS;
        let [.., a, b, c] = flow.to_be_bytes();
        let (tcp, ip_bytes) = (flow.is_multiple_of(2), (bytes - 14) as u16);
        let at = self.data.len();
        self.data.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0]);
        self.data.extend(ip_bytes.to_be_bytes());
        self.data.extend([0, 0, 0x40, 0, 64, if tcp { 6 } else { 17 }, 0, 0]);
        self.data.extend([10, a, b, c, 192, 168, c, 1]);
        self.data.extend([0x80 | b, c, 1, 0xbb]);
        match tcp {
            true => self.data.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]),
            false => self.data.extend([(ip_bytes - 20).to_be_bytes(), [0, 0]].concat()),
        }
        while self.data.len() < at + bytes {
            let room = at + bytes - self.data.len();
            self.data.extend(&next(random).to_le_bytes()[..room.min(8)]);
        }
        self.count += 1;
    }
}

/// xorshift64.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Hands packets out as quickly as they are taken, then is idle.
pub(crate) struct MemorySource {
    packets: Arc<Packets>,
    interfaces: [Interface; 1],
    total: u64,
    handed: u64,
    /// Where the next packet stands, and which of the lengths it has.
    offset: usize,
    length: usize,
    from_ns: u64,
}

impl MemorySource {
    /// All of `packets`, `passes` times, as if they came from `from_ns` on.
    pub(crate) fn new(packets: Arc<Packets>, passes: u64, from_ns: u64) -> Self {
        let interface =
            Interface { name: Some("memory".to_owned()), ..Interface::unnamed(LinkType::ETHERNET) };
        let total = packets.count * passes;
        let interfaces = [interface];
        Self { packets, interfaces, total, handed: 0, offset: 0, length: 0, from_ns }
    }
}

impl Source for MemorySource {
    fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    fn poll(&mut self, sink: &mut dyn PacketSink, wait: Duration) -> Result<Polled, CaptureError> {
        let Packets { lengths, data, .. } = &*self.packets;
        let large = (BATCH_BYTES / lengths[0]).max(1) as u64;
        let left = BATCH.min(large).min(self.total - self.handed);
        if left == 0 {
            // The lane goes on until it is told to stop, so that its CPU time can be read.
            std::thread::sleep(wait);
            return Ok(Polled::Idle);
        }
        for taken in 0..left {
            let bytes = lengths[self.length];
            let packet = Packet {
                interface: 0,
                ts_ns: self.from_ns + self.handed * STEP_NS,
                wire_len: bytes as u32,
                data: &data[self.offset..self.offset + bytes],
                vlan: None,
                flags: None,
                options: &[],
            };
            if sink.packet(&packet).is_break() {
                return Ok(Polled::Packets(taken));
            }
            self.handed += 1;
            self.offset += bytes;
            self.length += 1;
            if self.length == lengths.len() {
                self.length = 0;
            }
            if self.offset == data.len() {
                (self.offset, self.length) = (0, 0);
            }
        }
        Ok(Polled::Packets(left))
    }

    fn counters(&mut self) -> SourceCounters {
        let (received, handed) = (self.handed, self.handed);
        SourceCounters { received, handed, ..SourceCounters::default() }
    }

    fn state(&self) -> SourceState {
        SourceState::Running
    }

    fn report(&self) -> SourceReport {
        SourceReport {
            kind: "memory",
            name: self.packets.name.to_owned(),
            fanout: None,
            ring_bytes: 0,
            clocks: Vec::new(),
            notes: Vec::new(),
        }
    }

    fn is_live(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;

    #[test]
    fn every_packet_is_handed_out_once_a_pass_and_in_order() {
        for size in Size::value_variants() {
            let packets = Arc::new(Packets::make(*size, 100_000));
            let mut expected = packets.iter().chain(packets.iter());
            let mut source = MemorySource::new(Arc::clone(&packets), 2, 7);
            let (mut seen, mut last_ns) = (0, 0);
            let mut sink = |packet: &Packet<'_>| {
                assert_eq!(Some(packet.data), expected.next());
                assert!(packet.ts_ns > last_ns);
                (seen, last_ns) = (seen + 1, packet.ts_ns);
                ControlFlow::Continue(())
            };
            while source.poll(&mut sink, Duration::ZERO).unwrap() != Polled::Idle {}
            assert_eq!((seen, source.counters().handed), (2 * packets.count, 2 * packets.count));
            assert_eq!(packets.iter().map(<[u8]>::len).sum::<usize>() as u64, packets.bytes());
        }
    }
}
