//! Reads anybody's pcapng from a stream: both byte orders, several sections, every unit of time,
//! every kind of packet block. Made for import, so nothing in the input is trusted.
//!
//! Invariants: memory is bounded by [`READ_BLOCK_BYTES_MAX`] and [`STREAM_INTERFACES_MAX`]; whole
//! packets before damage are always given out before the error that names it; after an error the
//! stream has ended, except where the source only has nothing yet (`WouldBlock`).

use std::collections::HashMap;
use std::io::{self, Read};
use std::ops::Range;

use super::read::{RawOption, TimeUnit, check_length, describe, options_in};
use super::write::put_option;
use super::{
    BLOCK_CUSTOM, BLOCK_CUSTOM_NO_COPY, BLOCK_DSB, BLOCK_EPB, BLOCK_FRAME_BYTES, BLOCK_IDB,
    BLOCK_ISB, BLOCK_JOURNAL, BLOCK_LOCAL, BLOCK_NRB, BLOCK_PB, BLOCK_SHB, BLOCK_SPB,
    BYTE_ORDER_MAGIC, OPTION_EPB_DROPCOUNT, OPTION_EPB_FLAGS, OPTION_EPB_PACKETID,
    OPTION_EPB_QUEUE, OPTION_EPB_VERDICT, Order, PACKET_OPTIONS_BYTES_MAX, PcapngError,
    READ_BLOCK_BYTES_MAX, SECTION_INTERFACES_MAX, STREAM_INTERFACES_MAX, padded,
};
use crate::Interface;

/// Bytes read from the source at a time. Large enough that a read call costs little per packet.
const BUFFER_BYTES: usize = 256 << 10;

/// One step of a stream.
#[derive(Debug)]
pub enum Event<'a> {
    /// An interface that was not known before: its place in [`Reader::interfaces`].
    Interface(u32),
    /// A packet.
    Packet(Record<'a>),
    /// A block that holds neither; its content is skipped.
    Other(OtherKind),
}

/// Blocks that an import cannot keep. They are told by kind, so that a loss is never silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OtherKind {
    /// Name resolution.
    Names,
    /// Interface statistics.
    Statistics,
    /// Decryption secrets.
    Secrets,
    /// systemd journal entry.
    Journal,
    /// Custom block, of either copying rule.
    Custom,
    /// Local-use block.
    Local,
    /// Any other type.
    Unknown,
}

impl OtherKind {
    /// Every kind, in the order of [`Self::index`].
    pub const ALL: [Self; 7] = [
        Self::Names,
        Self::Statistics,
        Self::Secrets,
        Self::Journal,
        Self::Custom,
        Self::Local,
        Self::Unknown,
    ];

    /// Place of this kind in an array of counters.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The name that summaries use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Names => "name_resolution",
            Self::Statistics => "interface_statistics",
            Self::Secrets => "decryption_secrets",
            Self::Journal => "systemd_journal",
            Self::Custom => "custom",
            Self::Local => "local_use",
            Self::Unknown => "unknown",
        }
    }

    fn of(kind: u32) -> Self {
        match kind {
            BLOCK_NRB => Self::Names,
            BLOCK_ISB => Self::Statistics,
            BLOCK_DSB => Self::Secrets,
            BLOCK_JOURNAL => Self::Journal,
            BLOCK_CUSTOM | BLOCK_CUSTOM_NO_COPY => Self::Custom,
            local if local & BLOCK_LOCAL != 0 => Self::Local,
            _ => Self::Unknown,
        }
    }
}

/// One packet of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Place of its interface in [`Reader::interfaces`].
    pub interface: u32,
    /// Nanoseconds since 1970-01-01 UTC; 0 for a Simple Packet Block, which has no time.
    pub ts_ns: u64,
    /// The file counts in finer units than the nanosecond, and this time was not a whole one. It is
    /// rounded down.
    pub sub_ns_lost: bool,
    /// The time lies before 1970 or after 2554 and was moved to that border.
    pub time_clamped: bool,
    /// Length on the wire in bytes.
    pub orig_len: u32,
    /// Captured bytes.
    pub data: &'a [u8],
    /// `epb_flags`.
    pub flags: Option<u32>,
    /// The other options, re-encoded little-endian and padded, without `opt_endofopt`. Numbers in
    /// options of known meaning are little-endian too.
    pub options: &'a [u8],
    /// Options ran past the block, or beyond [`PACKET_OPTIONS_BYTES_MAX`]; those from there on were
    /// dropped.
    pub options_cut: bool,
}

/// Reads a stream block by block.
#[derive(Debug)]
pub struct Reader<R> {
    source: R,
    buf: Vec<u8>,
    /// Unread bytes in `buf`.
    held: Range<usize>,
    /// Offset in the stream of the first held byte.
    at: u64,
    /// Bytes of the current block, which [`Self::packet`] may still show.
    current_bytes: usize,
    current: Option<Current>,
    options: Vec<u8>,
    order: Order,
    section: Vec<SectionInterface>,
    interfaces: Vec<Interface>,
    known: HashMap<Interface, u32>,
    packets: u64,
    started: bool,
    ended: bool,
}

#[derive(Debug, Clone, Copy)]
struct SectionInterface {
    place: u32,
    unit: TimeUnit,
    snaplen_bytes: u32,
}

/// The current packet: as [`Record`], its data as a range of the current block's body.
#[derive(Debug, Clone)]
struct Current {
    interface: u32,
    stamp: Stamp,
    orig_len: u32,
    data: Range<usize>,
    flags: Option<u32>,
    options_cut: bool,
}

enum Step {
    Interface(u32),
    Packet,
    Other(OtherKind),
}

impl<R: Read> Reader<R> {
    /// Starts at the first byte of a pcapng stream. Nothing is read yet; no buffering is needed
    /// below.
    pub fn new(source: R) -> Self {
        Self {
            source,
            buf: vec![0; BUFFER_BYTES],
            held: 0..0,
            at: 0,
            current_bytes: 0,
            current: None,
            options: Vec::new(),
            order: Order::Little,
            section: Vec::new(),
            interfaces: Vec::new(),
            known: HashMap::new(),
            packets: 0,
            started: false,
            ended: false,
        }
    }

    /// Distinct interfaces met so far, over all sections. The list only grows.
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// Packets given out so far.
    pub fn packets(&self) -> u64 {
        self.packets
    }

    /// Offset in the stream of the block that [`Self::next_event`] read last.
    pub fn offset(&self) -> u64 {
        self.at
    }

    /// Reads on to the next interface, packet or skipped block; `None` at the end, and after an
    /// error.
    ///
    /// Errors: [`PcapngError`], with the byte offset. All whole packets before it were given out.
    /// After `Io` of kind `WouldBlock` the next call reads on; what was read of a block is kept.
    pub fn next_event(&mut self) -> Result<Option<Event<'_>>, PcapngError> {
        if self.ended {
            return Ok(None);
        }
        match self.step() {
            Ok(Some(Step::Interface(place))) => Ok(Some(Event::Interface(place))),
            Ok(Some(Step::Other(kind))) => Ok(Some(Event::Other(kind))),
            Ok(Some(Step::Packet)) => Ok(self.packet().map(Event::Packet)),
            Ok(None) => {
                self.ended = true;
                Ok(None)
            }
            Err(error) => {
                self.ended = !matches!(&error, PcapngError::Io { source, .. }
                    if source.kind() == io::ErrorKind::WouldBlock);
                self.current = None;
                Err(error)
            }
        }
    }

    /// The packet that [`Self::next_event`] gave out last, once more; `None` if its last event was
    /// no packet.
    pub fn packet(&self) -> Option<Record<'_>> {
        let current = self.current.as_ref()?;
        Some(Record {
            interface: current.interface,
            ts_ns: current.stamp.ns,
            sub_ns_lost: current.stamp.sub_ns_lost,
            time_clamped: current.stamp.clamped,
            orig_len: current.orig_len,
            data: self.body().get(current.data.clone())?,
            flags: current.flags,
            options: &self.options,
            options_cut: current.options_cut,
        })
    }

    fn body(&self) -> &[u8] {
        let start = self.held.start;
        self.buf.get(start + 8..start + self.current_bytes.max(12) - 4).unwrap_or_default()
    }

    fn step(&mut self) -> Result<Option<Step>, PcapngError> {
        loop {
            self.held.start += self.current_bytes;
            self.at += self.current_bytes as u64;
            self.current_bytes = 0;
            self.current = None;
            let Some(kind) = self.read_block()? else {
                return Ok(None);
            };
            let step = match kind {
                BLOCK_SHB => {
                    self.section.clear();
                    continue;
                }
                BLOCK_IDB => match self.describe_interface()? {
                    Some(place) => Step::Interface(place),
                    None => continue,
                },
                BLOCK_EPB | BLOCK_PB | BLOCK_SPB => {
                    self.current = Some(self.read_packet(kind)?);
                    self.packets += 1;
                    Step::Packet
                }
                other => Step::Other(OtherKind::of(other)),
            };
            return Ok(Some(step));
        }
    }

    /// Brings the next whole block into the buffer and checks its frame.
    fn read_block(&mut self) -> Result<Option<u32>, PcapngError> {
        let at = self.at;
        let held = self.fill(BLOCK_FRAME_BYTES)?;
        let start = &self.buf[self.held.start..][..held.min(BLOCK_FRAME_BYTES)];
        let is_section = start.get(..4) == Some(&BLOCK_SHB.to_le_bytes()[..]);
        if !self.started && !is_section {
            let first = start[..start.len().min(4)].to_vec();
            return Err(PcapngError::NotPcapng { first });
        }
        if held == 0 {
            return Ok(None);
        }
        if held < BLOCK_FRAME_BYTES {
            return Err(self.truncated(held));
        }
        if is_section {
            self.order = section_order(at, start)?;
        }
        self.started = true;
        let field = |order: Order, n| order.u32(start, n).unwrap_or_default();
        let (kind, length) = (field(self.order, 0), field(self.order, 4));
        check_length(at, length)?;
        if length > READ_BLOCK_BYTES_MAX {
            return Err(PcapngError::Length { at, length, why: "it is above 16 MiB" });
        }
        let held = self.fill(length as usize)?;
        if held < length as usize {
            return Err(self.truncated(held));
        }
        self.current_bytes = length as usize;
        let block = &self.buf[self.held.start..][..length as usize];
        let trailer = self.order.u32(block, block.len() - 4).unwrap_or_default();
        if trailer != length {
            return Err(PcapngError::Trailer { at, length, trailer });
        }
        if is_section {
            check_version(at, length, &block[12..], self.order)?;
        }
        Ok(Some(kind))
    }

    fn truncated(&self, held: usize) -> PcapngError {
        PcapngError::Truncated { at: self.at, end: self.at + held as u64, packets: self.packets }
    }

    /// Reads until `want` bytes are held or the source ends; returns how many are held.
    fn fill(&mut self, want: usize) -> Result<usize, PcapngError> {
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
                    let at = self.at + self.held.len() as u64;
                    return Err(PcapngError::Io { at, source });
                }
            }
        }
        Ok(self.held.len())
    }

    /// Adds the described interface to the section; returns its place if it is new to the stream.
    fn describe_interface(&mut self) -> Result<Option<u32>, PcapngError> {
        let at = self.at;
        if self.section.len() == SECTION_INTERFACES_MAX {
            return Err(PcapngError::TooManyInterfaces { at, limit: SECTION_INTERFACES_MAX });
        }
        let (interface, unit) = describe(at, self.body(), self.order)?;
        // A Simple Packet Block is cut at the field, not at the interface's own snaplen.
        let snaplen_bytes = self.order.u32(self.body(), 4).unwrap_or_default();
        let known = self.known.get(&interface).copied();
        let place = match known {
            Some(place) => place,
            None if self.interfaces.len() == STREAM_INTERFACES_MAX => {
                return Err(PcapngError::TooManyInterfaces { at, limit: STREAM_INTERFACES_MAX });
            }
            None => {
                let place = self.interfaces.len() as u32;
                self.interfaces.push(interface.clone());
                self.known.insert(interface, place);
                place
            }
        };
        self.section.push(SectionInterface { place, unit, snaplen_bytes });
        Ok(known.is_none().then_some(place))
    }

    fn read_packet(&mut self, kind: u32) -> Result<Current, PcapngError> {
        let (at, order) = (self.at, self.order);
        let mut options = std::mem::take(&mut self.options);
        options.clear();
        let fields = PacketFields::of(kind, self.body(), order).ok_or(PcapngError::Length {
            at,
            length: self.current_bytes as u32,
            why: "it is too short for a packet",
        })?;
        let described = self.section.get(fields.interface as usize).copied();
        let Some(described) = described else {
            let (interface, known) = (fields.interface, self.section.len());
            return Err(PcapngError::UnknownInterface { at, interface, known });
        };
        let room = self.body().len() - fields.data_at;
        let captured = match fields.captured {
            Some(captured) => captured,
            None if described.snaplen_bytes == 0 => fields.orig_len,
            None => fields.orig_len.min(described.snaplen_bytes),
        };
        if captured as usize > room {
            return Err(PcapngError::CapturedLength { at, captured, room });
        }
        let data = fields.data_at..fields.data_at + captured as usize;
        let encoded = match kind {
            BLOCK_SPB => &[],
            _ => self.body().get(padded(data.end)..).unwrap_or_default(),
        };
        let (flags, options_cut) = convert_options(encoded, order, &mut options);
        if let Some(count) = fields.drops.filter(|count| *count != 0 && *count != u16::MAX) {
            put_option(&mut options, OPTION_EPB_DROPCOUNT, &u64::from(count).to_le_bytes());
        }
        let stamp = match fields.ticks {
            Some(ticks) => described.unit.stamp(ticks),
            None => Stamp { ns: 0, sub_ns_lost: false, clamped: false },
        };
        self.options = options;
        let (interface, orig_len) = (described.place, fields.orig_len);
        Ok(Current { interface, stamp, orig_len, data, flags, options_cut })
    }
}

fn section_order(at: u64, start: &[u8]) -> Result<Order, PcapngError> {
    let magic = Order::Little.u32(start, 8).unwrap_or_default();
    match magic {
        BYTE_ORDER_MAGIC => Ok(Order::Little),
        _ if magic.swap_bytes() == BYTE_ORDER_MAGIC => Ok(Order::Big),
        _ => Err(PcapngError::ByteOrder { at, magic }),
    }
}

fn check_version(at: u64, length: u32, rest: &[u8], order: Order) -> Result<(), PcapngError> {
    if length < 28 {
        return Err(PcapngError::Length { at, length, why: "it is too short for a section" });
    }
    let major = order.u16(rest, 0).unwrap_or_default();
    let minor = order.u16(rest, 2).unwrap_or_default();
    if major != 1 {
        return Err(PcapngError::Version { at, major, minor });
    }
    Ok(())
}

/// The fixed fields of the three kinds of packet blocks.
struct PacketFields {
    interface: u32,
    ticks: Option<u64>,
    /// `None`: the original length, cut at the interface's snaplen.
    captured: Option<u32>,
    orig_len: u32,
    drops: Option<u16>,
    data_at: usize,
}

impl PacketFields {
    fn of(kind: u32, body: &[u8], order: Order) -> Option<Self> {
        let word = |n: usize| order.u32(body, 4 * n);
        if kind == BLOCK_SPB {
            let orig_len = word(0)?;
            let (ticks, captured, drops) = (None, None, None);
            return Some(Self { interface: 0, ticks, captured, orig_len, drops, data_at: 4 });
        }
        let (interface, drops) = match kind {
            BLOCK_PB => (u32::from(order.u16(body, 0)?), Some(order.u16(body, 2)?)),
            _ => (word(0)?, None),
        };
        let ticks = Some(u64::from(word(1)?) << 32 | u64::from(word(2)?));
        let captured = Some(word(3)?);
        Some(Self { interface, ticks, captured, orig_len: word(4)?, drops, data_at: 20 })
    }
}

/// Re-encodes options little-endian into `out`; returns `epb_flags`, taken out, and whether options
/// were dropped.
fn convert_options(encoded: &[u8], order: Order, out: &mut Vec<u8>) -> (Option<u32>, bool) {
    let mut flags = None;
    for option in options_in(encoded, order) {
        let Ok(RawOption { code, value }) = option else {
            return (flags, true);
        };
        if code == OPTION_EPB_FLAGS && value.len() == 4 && flags.is_none() {
            flags = order.u32(value, 0);
            continue;
        }
        if out.len() + 4 + padded(value.len()) > PACKET_OPTIONS_BYTES_MAX {
            return (flags, true);
        }
        put_option(out, code, value);
        if order == Order::Big {
            let at = out.len() - padded(value.len());
            if let Some(number) = number_in_option(code, value) {
                out[at + number.start..at + number.end].reverse();
            }
        }
    }
    (flags, false)
}

/// Where an option of known meaning holds a number in the section's byte order.
fn number_in_option(code: u16, value: &[u8]) -> Option<Range<usize>> {
    let number = match code {
        OPTION_EPB_FLAGS | OPTION_EPB_QUEUE => 0..4,
        OPTION_EPB_DROPCOUNT | OPTION_EPB_PACKETID => 0..8,
        // Kinds 1 and 2 are eBPF verdicts, a number behind the kind; kind 0 is opaque bytes.
        OPTION_EPB_VERDICT if matches!(value.first(), Some(1 | 2)) => 1..9,
        // Custom options begin with a private enterprise number.
        2988 | 2989 | 19372 | 19373 => 0..4,
        _ => return None,
    };
    (number.end <= value.len()).then_some(number)
}

/// A time in nanoseconds and what became of it on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    ns: u64,
    sub_ns_lost: bool,
    clamped: bool,
}

impl TimeUnit {
    fn stamp(self, ticks: u64) -> Stamp {
        let scaled = u128::from(ticks) * 1_000_000_000;
        let exponent = u32::from(self.resolution & 0x7f);
        let (ns, sub_ns_lost) = if self.resolution & 0x80 != 0 {
            (scaled >> exponent, scaled & ((1 << exponent) - 1) != 0)
        } else {
            match 10u128.checked_pow(exponent) {
                Some(per_second) => (scaled / per_second, scaled % per_second != 0),
                // Units so fine that 64 bits of them do not reach one nanosecond.
                None => (0, ticks != 0),
            }
        };
        // At most 94 bits each, so neither the conversion nor the sum can overflow.
        let sum = ns.cast_signed() + i128::from(self.offset_s) * 1_000_000_000;
        let ns = sum.clamp(0, i128::from(u64::MAX));
        Stamp { ns: ns as u64, sub_ns_lost, clamped: ns != sum }
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
