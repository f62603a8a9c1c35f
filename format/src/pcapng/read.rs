//! Walks blocks in a slice, in place: chunk payloads and the headers of our own segments.
//!
//! Framing comes from bytes whose checksum was verified, yet every length is checked again: a wrong
//! one yields an error with its offset, never a panic and never a byte outside the slice.

use super::write::cut_text;
use super::{
    BLOCK_EPB, BLOCK_FRAME_BYTES, BLOCK_IDB, OPTION_END, OPTION_EPB_FLAGS, OPTION_IF_CLOCK,
    OPTION_IF_DESCRIPTION, OPTION_IF_FILTER, OPTION_IF_HARDWARE, OPTION_IF_NAME, OPTION_IF_OS,
    OPTION_IF_OWN_SNAPLEN, OPTION_IF_TSOFFSET, OPTION_IF_TSRESOL, OPTION_IF_VXLAN_PORTS, Order,
    PcapngError, padded,
};
use crate::{Interface, LinkType, VxlanPorts};

/// One block of a little-endian slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block<'a> {
    /// Offset of its first byte in the slice.
    pub offset: usize,
    /// Block type.
    pub kind: u32,
    /// Bytes of the whole block.
    pub total_bytes: usize,
    /// What is between the two lengths.
    pub body: &'a [u8],
}

/// Iterator over the blocks of a little-endian slice. It ends after the last whole block, or after
/// an error.
#[derive(Debug, Clone)]
pub struct Blocks<'a> {
    bytes: &'a [u8],
    next: usize,
    packets: u64,
}

impl<'a> Blocks<'a> {
    /// Starts at the first byte of `bytes`, which must be the first byte of a block.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, next: 0, packets: 0 }
    }

    /// Offset of the block that comes next.
    pub fn offset(&self) -> usize {
        self.next
    }

    fn step(&mut self) -> Result<Option<Block<'a>>, PcapngError> {
        let offset = self.next;
        let rest = &self.bytes[offset..];
        if rest.is_empty() {
            return Ok(None);
        }
        let at = offset as u64;
        let cut =
            PcapngError::Truncated { at, end: self.bytes.len() as u64, packets: self.packets };
        let (Some(kind), Some(length)) = (Order::Little.u32(rest, 0), Order::Little.u32(rest, 4))
        else {
            return Err(cut);
        };
        check_length(at, length)?;
        let total_bytes = length as usize;
        let Some(block) = rest.get(..total_bytes) else {
            return Err(cut);
        };
        let trailer = Order::Little.u32(block, total_bytes - 4).unwrap_or_default();
        if trailer != length {
            return Err(PcapngError::Trailer { at, length, trailer });
        }
        self.next += total_bytes;
        self.packets += u64::from(kind == BLOCK_EPB);
        Ok(Some(Block { offset, kind, total_bytes, body: &block[8..total_bytes - 4] }))
    }
}

impl<'a> Iterator for Blocks<'a> {
    type Item = Result<Block<'a>, PcapngError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step().transpose();
        if matches!(step, Some(Err(_))) {
            self.next = self.bytes.len();
        }
        step
    }
}

/// Refuses a block length that breaks a rule of the format, whatever follows it.
pub(crate) fn check_length(at: u64, length: u32) -> Result<(), PcapngError> {
    if (length as usize) < BLOCK_FRAME_BYTES {
        return Err(PcapngError::Length { at, length, why: "a block has at least 12 bytes" });
    }
    if !length.is_multiple_of(4) {
        return Err(PcapngError::Length { at, length, why: "it is not a multiple of 4" });
    }
    Ok(())
}

/// One packet of our own files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epb<'a> {
    /// Number of the interface in its section.
    pub interface_id: u32,
    /// Nanoseconds since 1970-01-01 UTC: all interfaces of our files state nanoseconds.
    pub ts_ns: u64,
    /// Length on the wire in bytes.
    pub orig_len: u32,
    /// Captured bytes.
    pub data: &'a [u8],
    /// `epb_flags`, if it is the first option, where our writer puts it.
    pub flags: Option<u32>,
    /// The other options, encoded and padded, without `opt_endofopt`.
    pub options: &'a [u8],
}

impl<'a> Epb<'a> {
    /// Reads the block as a packet.
    ///
    /// Errors: the block is of another type, or one of its lengths does not fit into it.
    #[inline]
    pub fn parse(block: &Block<'a>) -> Result<Self, PcapngError> {
        let at = block.offset as u64;
        let Some((fixed, rest)) =
            block.body.split_first_chunk::<20>().filter(|_| block.kind == BLOCK_EPB)
        else {
            return Err(PcapngError::Foreign { at, what: "it is not an Enhanced Packet Block" });
        };
        let field = |n: usize| Order::Little.u32(fixed, 4 * n).unwrap_or_default();
        let captured = field(3);
        let Some(data) = rest.get(..captured as usize) else {
            return Err(PcapngError::CapturedLength { at, captured, room: rest.len() });
        };
        // The body is whole 32-bit words, so the padding of data that fits lies inside it too.
        let encoded = rest.get(padded(data.len())..).unwrap_or_default();
        let (flags, options) = match encoded.split_first_chunk::<8>() {
            Some((option, others)) if option[..4] == FLAGS_HEADER => {
                (Order::Little.u32(option, 4), others)
            }
            _ => (None, encoded),
        };
        Ok(Self {
            interface_id: field(0),
            ts_ns: u64::from(field(1)) << 32 | u64::from(field(2)),
            orig_len: field(4),
            data,
            flags,
            options: without_end(at, options)?,
        })
    }
}

/// Code and length of `epb_flags` as they stand in a little-endian block.
const FLAGS_HEADER: [u8; 4] = [OPTION_EPB_FLAGS as u8, 0, 4, 0];

fn without_end(at: u64, encoded: &[u8]) -> Result<&[u8], PcapngError> {
    if encoded.len() <= 4 && encoded.iter().all(|byte| *byte == 0) {
        return Ok(&[]);
    }
    let mut walk = options(encoded);
    for option in walk.by_ref() {
        option.map_err(|_| PcapngError::Options { at })?;
    }
    Ok(&encoded[..walk.next])
}

/// One option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawOption<'a> {
    /// Option code; its meaning depends on the block.
    pub code: u16,
    /// Value without padding.
    pub value: &'a [u8],
}

/// A list of options runs past its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an option runs past the end of its list, {at} bytes from its beginning")]
pub struct OptionOverrun {
    /// Offset of the option in the list.
    pub at: usize,
}

/// Iterator over encoded options up to `opt_endofopt` or the end of the bytes.
#[derive(Debug, Clone)]
pub struct Options<'a> {
    bytes: &'a [u8],
    order: Order,
    /// Offset behind the last option given out.
    pub(crate) next: usize,
    ended: bool,
}

/// Walks little-endian options, such as [`Epb::options`].
pub fn options(bytes: &[u8]) -> Options<'_> {
    options_in(bytes, Order::Little)
}

pub(crate) fn options_in(bytes: &[u8], order: Order) -> Options<'_> {
    Options { bytes, order, next: 0, ended: false }
}

impl<'a> Iterator for Options<'a> {
    type Item = Result<RawOption<'a>, OptionOverrun>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended || self.next == self.bytes.len() {
            return None;
        }
        let at = self.next;
        let header = self.order.u16(self.bytes, at).zip(self.order.u16(self.bytes, at + 2));
        if let Some((OPTION_END, _)) = header {
            self.ended = true;
            return None;
        }
        let option = header.and_then(|(code, length)| {
            let start = at + 4;
            let end = start + padded(usize::from(length));
            let value = self.bytes.get(start..end)?;
            Some((end, RawOption { code, value: &value[..usize::from(length)] }))
        });
        let Some((end, option)) = option else {
            self.ended = true;
            return Some(Err(OptionOverrun { at }));
        };
        self.next = end;
        Some(Ok(option))
    }
}

/// Reads an Interface Description Block of our own files; options that [`Interface`] has no place
/// for are dropped.
///
/// Errors: the block is of another type, its options run past its end, or its unit is not the
/// nanosecond.
pub fn interface(block: &Block<'_>) -> Result<Interface, PcapngError> {
    let at = block.offset as u64;
    if block.kind != BLOCK_IDB {
        let what = "it is not an Interface Description Block";
        return Err(PcapngError::Foreign { at, what });
    }
    let (interface, unit) = describe(at, block.body, Order::Little)?;
    if unit != TimeUnit::NANOSECOND {
        let what = "the interface does not count nanoseconds since 1970";
        return Err(PcapngError::Foreign { at, what });
    }
    Ok(interface)
}

/// How an interface counts time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimeUnit {
    /// `if_tsresol` as it stands in the option.
    pub(crate) resolution: u8,
    /// `if_tsoffset` in seconds.
    pub(crate) offset_s: i64,
}

impl TimeUnit {
    const NANOSECOND: Self = Self { resolution: 9, offset_s: 0 };
    const DEFAULT: Self = Self { resolution: 6, offset_s: 0 };
}

/// Reads the body of an Interface Description Block in either byte order.
pub(crate) fn describe(
    at: u64,
    body: &[u8],
    order: Order,
) -> Result<(Interface, TimeUnit), PcapngError> {
    let (Some(link), Some(snaplen)) = (order.u16(body, 0), order.u32(body, 4)) else {
        return Err(PcapngError::Foreign { at, what: "the interface description is too short" });
    };
    let mut interface = Interface::unnamed(LinkType(link));
    interface.snaplen_bytes = snaplen;
    let mut unit = TimeUnit::DEFAULT;
    for option in options_in(&body[8..], order) {
        let RawOption { code, value } = option.map_err(|_| PcapngError::Options { at })?;
        match code {
            OPTION_IF_NAME => interface.name = text(value),
            OPTION_IF_DESCRIPTION => interface.description = text(value),
            OPTION_IF_OS => interface.os = text(value),
            OPTION_IF_HARDWARE => interface.hardware = text(value),
            OPTION_IF_CLOCK => interface.clock = text(value),
            // The first byte tells the kind of filter; 0 is a text, others are bytecode.
            OPTION_IF_FILTER if value.first() == Some(&0) => interface.filter = text(&value[1..]),
            OPTION_IF_TSRESOL if value.len() == 1 => unit.resolution = value[0],
            OPTION_IF_TSOFFSET if value.len() == 8 => {
                unit.offset_s = order.u64(value, 0).unwrap_or_default().cast_signed();
            }
            OPTION_IF_OWN_SNAPLEN if value.len() == 4 => {
                interface.snaplen_bytes = order.u32(value, 0).unwrap_or_default();
            }
            OPTION_IF_VXLAN_PORTS
                if value.len() <= 2 * VxlanPorts::MAX && value.len().is_multiple_of(2) =>
            {
                let mut ports = [0; VxlanPorts::MAX];
                for (at, port) in ports.iter_mut().enumerate() {
                    *port = order.u16(value, 2 * at).unwrap_or(0);
                }
                interface.vxlan_ports = VxlanPorts::new(&ports);
            }
            _ => {}
        }
    }
    Ok((interface, unit))
}

fn text(value: &[u8]) -> Option<String> {
    // Some writers end the text with a zero although the option has a length.
    let value = value.strip_suffix(&[0]).unwrap_or(value);
    Some(cut_text(&String::from_utf8_lossy(value)).into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::write::{EpbParts, put_epb, put_idb, put_isb_comment, put_option, put_shb};
    use super::*;
    use crate::pcapng::{BLOCK_ISB, BLOCK_SHB, OPTION_COMMENT};

    pub(crate) fn interfaces() -> impl Strategy<Value = Interface> {
        let text = || proptest::option::of("[a-z0-9\u{e9} ]{0,20}");
        let ports = proptest::collection::vec(any::<u16>(), 0..9);
        let numbers = (any::<u16>(), any::<u32>(), ports);
        (text(), text(), numbers, text(), text(), text(), text()).prop_map(
            |(name, description, numbers, filter, hardware, os, clock)| Interface {
                name,
                description,
                link_type: LinkType(numbers.0),
                snaplen_bytes: numbers.1,
                vxlan_ports: VxlanPorts::new(&numbers.2),
                filter,
                hardware,
                os,
                clock,
            },
        )
    }

    proptest! {
        #[test]
        fn an_interface_reads_back(described in interfaces(), common in any::<u32>()) {
            let mut out = Vec::new();
            put_shb(&mut out, "wirevault test");
            put_idb(&mut out, &described, common);
            put_isb_comment(&mut out, 0, 5, "gap");
            let blocks: Vec<_> = Blocks::new(&out).collect::<Result<_, _>>().unwrap();
            let kinds: Vec<_> = blocks.iter().map(|block| block.kind).collect();
            prop_assert_eq!(kinds, [BLOCK_SHB, BLOCK_IDB, BLOCK_ISB]);
            prop_assert_eq!(interface(&blocks[1]).unwrap(), described);
            prop_assert!(interface(&blocks[0]).is_err());
        }

        #[test]
        fn a_packet_reads_back(
            data in proptest::collection::vec(any::<u8>(), 0..200),
            (interface_id, ts_ns, more) in (any::<u32>(), any::<u64>(), 0u32..9000),
            flags in proptest::option::of(any::<u32>()),
            comments in proptest::collection::vec("[a-z]{0,9}", 0..3),
            tagged in any::<bool>(),
        ) {
            let mut raw_options = Vec::new();
            for comment in &comments {
                put_option(&mut raw_options, OPTION_COMMENT, comment.as_bytes());
            }
            let orig_len = data.len() as u32 + more;
            let vlan = tagged.then_some((12, [0x81, 0, 0x2a, 0xbc]));
            let packet = EpbParts {
                interface_id, ts_ns, orig_len, data: &data, vlan, flags, raw_options: &raw_options,
            };
            let mut buf = vec![0xee; 4096];
            let written = put_epb(&mut buf, 0, &packet).unwrap();
            let block = Blocks::new(&buf[..written]).next().unwrap().unwrap();
            prop_assert_eq!(block.total_bytes, written);
            let read = Epb::parse(&block).unwrap();
            let mut whole = data.clone();
            if tagged && data.len() >= 12 {
                whole.splice(12..12, [0x81, 0, 0x2a, 0xbc]);
            }
            prop_assert_eq!(read.data, &whole[..]);
            prop_assert_eq!(read.orig_len, orig_len + if tagged { 4 } else { 0 });
            prop_assert_eq!((read.interface_id, read.ts_ns), (interface_id, ts_ns));
            prop_assert_eq!((read.flags, read.options), (flags, &raw_options[..]));
            for cut in 0..written {
                prop_assert!(Blocks::new(&buf[..cut]).all(|b| b.is_err()));
            }
        }

        #[test]
        fn any_bytes_are_walked_without_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            length in any::<u8>(),
        ) {
            for block in Blocks::new(&bytes).flatten() {
                let _ = (Epb::parse(&block), interface(&block));
            }
            // The same bytes as the body of well-framed blocks, so that the inner lengths are
            // reached.
            let body = &bytes[..bytes.len() / 4 * 4];
            for kind in [BLOCK_EPB, BLOCK_IDB] {
                let mut body = body.to_vec();
                if let Some(field) = body.get_mut(12..16) {
                    field.copy_from_slice(&u32::from(length).to_le_bytes());
                }
                let block = Block { offset: 0, kind, total_bytes: body.len() + 12, body: &body };
                let _ = (Epb::parse(&block), interface(&block));
            }
            let _ = options(&bytes).count();
        }
    }

    #[test]
    fn wrong_lengths_are_named_with_their_offset() {
        let mut out = Vec::new();
        put_shb(&mut out, "");
        let second = out.len();
        for (length, expected) in [(8u32, "at least 12"), (13, "multiple of 4"), (64, "ends at")] {
            let mut bad = out.clone();
            bad.extend(6u32.to_le_bytes());
            bad.extend(length.to_le_bytes());
            bad.extend([0; 20]);
            let error = Blocks::new(&bad).find_map(Result::err).unwrap().to_string();
            assert!(error.contains(expected), "{error}");
            assert!(error.contains(&format!("byte {second}")), "{error}");
        }
        let last = out.len() - 4;
        out[last] ^= 4;
        assert!(matches!(Blocks::new(&out).next(), Some(Err(PcapngError::Trailer { at: 0, .. }))));
    }
}
