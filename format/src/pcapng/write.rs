//! Writes blocks: descriptions into growing vectors, packets into slices without allocating.
//!
//! Everything is little-endian, and every interface states nanoseconds, so a segment is one section
//! in one unit.

use super::{
    BLOCK_EPB, BLOCK_FRAME_BYTES, BLOCK_IDB, BLOCK_ISB, BLOCK_SHB, BYTE_ORDER_MAGIC,
    EPB_FIXED_BYTES, OPTION_COMMENT, OPTION_END, OPTION_EPB_DUPLICATE, OPTION_EPB_FLAGS,
    OPTION_IF_CLOCK, OPTION_IF_DESCRIPTION, OPTION_IF_FILTER, OPTION_IF_HARDWARE, OPTION_IF_NAME,
    OPTION_IF_OS, OPTION_IF_OWN_SNAPLEN, OPTION_IF_TSRESOL, OPTION_IF_VXLAN_PORTS,
    OPTION_SHB_USERAPPL, TEXT_BYTES_MAX, padded,
};
use crate::{Interface, VxlanPorts};

/// Bytes that `epb_flags` takes as an option.
pub const FLAGS_OPTION_BYTES: usize = 8;
/// Bytes that the mark of a duplicate takes as an option.
pub const DUPLICATE_OPTION_BYTES: usize = 12;

/// One packet, as [`put_epb`] writes it.
#[derive(Debug, Clone, Copy)]
pub struct EpbParts<'a> {
    /// Number of the interface in its section.
    pub interface_id: u32,
    /// Nanoseconds since 1970-01-01 UTC.
    pub ts_ns: u64,
    /// Length on the wire in bytes, without the tag in `vlan`.
    pub orig_len: u32,
    /// Captured bytes, without the tag in `vlan`.
    pub data: &'a [u8],
    /// Four bytes of a VLAN tag that the kernel took out, and the offset where they belong. They
    /// count in both lengths. If the captured bytes end before the offset, the tag lies in the part
    /// that was cut.
    pub vlan: Option<(usize, [u8; 4])>,
    /// `epb_flags`.
    pub flags: Option<u32>,
    /// More options, encoded and padded, without `opt_endofopt` and without `epb_flags`.
    pub raw_options: &'a [u8],
}

impl EpbParts<'_> {
    /// Bytes of data in the block, the tag included.
    #[inline]
    pub fn captured_bytes(&self) -> usize {
        match self.vlan {
            Some((at, tag)) if at <= self.data.len() => self.data.len() + tag.len(),
            _ => self.data.len(),
        }
    }

    /// Bytes of the whole block.
    #[inline]
    pub fn block_bytes(&self) -> usize {
        self.block_bytes_with(&Beside::default())
    }

    /// As [`Self::block_bytes`], for [`put_epb_with`].
    #[inline]
    pub fn block_bytes_with(&self, beside: &Beside<'_>) -> usize {
        let flags = if self.flags.is_some() { FLAGS_OPTION_BYTES } else { 0 };
        let options = flags + beside.options_bytes() + self.raw_options.len();
        epb_bytes(beside.head.len() + self.captured_bytes(), options)
    }
}

/// What a lane stores of a packet beside its [`EpbParts`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Beside<'a> {
    /// Captured bytes before [`EpbParts::data`]; `orig_len` counts them already.
    pub head: &'a [u8],
    /// The option that says what outer headers were removed, encoded and padded; empty if none
    /// were.
    pub outer: &'a [u8],
    /// The packet is a second copy: nanoseconds between the two.
    pub duplicate_ns: Option<u64>,
}

impl Beside<'_> {
    /// Bytes of the options.
    #[inline]
    pub fn options_bytes(&self) -> usize {
        let duplicate = if self.duplicate_ns.is_some() { DUPLICATE_OPTION_BYTES } else { 0 };
        self.outer.len() + duplicate
    }
}

/// Bytes of an Enhanced Packet Block with `captured_bytes` of data and `options_bytes` of encoded
/// options, the end mark not counted (it is added if there are options).
#[inline]
pub const fn epb_bytes(captured_bytes: usize, options_bytes: usize) -> usize {
    let end_mark = if options_bytes == 0 { 0 } else { 4 };
    EPB_FIXED_BYTES + padded(captured_bytes) + padded(options_bytes) + end_mark
}

/// Writes an Enhanced Packet Block into `buf` from offset `at`, and returns its length.
///
/// Returns `None`, with `buf` as it was, if the block does not fit: the chunk is full. The packet's
/// bytes are copied once, and nothing is allocated.
///
/// Layout: type, length, interface, time high, time low, captured length, original length (`u32`
/// each), data padded with zeros to 4, options, length.
#[inline]
pub fn put_epb(buf: &mut [u8], at: usize, packet: &EpbParts<'_>) -> Option<usize> {
    put_epb_with(buf, at, packet, &Beside::default())
}

/// As [`put_epb`], with what the lane adds: its head stands before the data, and its options
/// between `epb_flags` and the others.
///
/// Inlined into the lane: what it is given was made a moment before, and handing it over in memory
/// took longer than writing the block.
#[inline(always)]
pub fn put_epb_with(
    buf: &mut [u8],
    at: usize,
    packet: &EpbParts<'_>,
    beside: &Beside<'_>,
) -> Option<usize> {
    let head_bytes = beside.head.len();
    let captured = head_bytes + packet.captured_bytes();
    let total = packet.block_bytes_with(beside);
    let total_field = u32::try_from(total).ok()?;
    let block = buf.get_mut(at..at.checked_add(total)?)?;
    let tag_bytes = if packet.vlan.is_some() { 4 } else { 0 };

    let (fixed, rest) = block.split_first_chunk_mut::<28>()?;
    fixed[0..4].copy_from_slice(&BLOCK_EPB.to_le_bytes());
    fixed[4..8].copy_from_slice(&total_field.to_le_bytes());
    fixed[8..12].copy_from_slice(&packet.interface_id.to_le_bytes());
    fixed[12..16].copy_from_slice(&((packet.ts_ns >> 32) as u32).to_le_bytes());
    fixed[16..20].copy_from_slice(&(packet.ts_ns as u32).to_le_bytes());
    // It fits: the block's total, which is larger, did.
    fixed[20..24].copy_from_slice(&(captured as u32).to_le_bytes());
    fixed[24..28].copy_from_slice(&packet.orig_len.saturating_add(tag_bytes).to_le_bytes());

    rest[..head_bytes].copy_from_slice(beside.head);
    let data = &mut rest[head_bytes..captured];
    match packet.vlan {
        Some((at, tag)) if at <= packet.data.len() => {
            data[..at].copy_from_slice(&packet.data[..at]);
            data[at..at + 4].copy_from_slice(&tag);
            data[at + 4..].copy_from_slice(&packet.data[at..]);
        }
        _ => data.copy_from_slice(packet.data),
    }
    let mut next = padded(captured);
    rest[captured..next].fill(0);

    if let Some(flags) = packet.flags {
        rest[next..next + 2].copy_from_slice(&OPTION_EPB_FLAGS.to_le_bytes());
        rest[next + 2..next + 4].copy_from_slice(&4u16.to_le_bytes());
        rest[next + 4..next + 8].copy_from_slice(&flags.to_le_bytes());
        next += FLAGS_OPTION_BYTES;
    }
    if !beside.outer.is_empty() {
        let end = next + beside.outer.len();
        rest[next..end].copy_from_slice(beside.outer);
        next = end;
    }
    if let Some(ns) = beside.duplicate_ns {
        rest[next..next + 2].copy_from_slice(&OPTION_EPB_DUPLICATE.to_le_bytes());
        rest[next + 2..next + 4].copy_from_slice(&8u16.to_le_bytes());
        rest[next + 4..next + 12].copy_from_slice(&ns.to_le_bytes());
        next += DUPLICATE_OPTION_BYTES;
    }
    if !packet.raw_options.is_empty() {
        let end = next + packet.raw_options.len();
        rest[next..end].copy_from_slice(packet.raw_options);
        next = end.next_multiple_of(4);
        rest[end..next].fill(0);
    }
    let options = beside.options_bytes() + packet.raw_options.len();
    if packet.flags.is_some() || options > 0 {
        rest[next..next + 4].fill(0);
        next += 4;
    }
    rest[next..next + 4].copy_from_slice(&total_field.to_le_bytes());
    Some(total)
}

/// Appends a Section Header Block: version 1.0, length of the section not stated, `shb_userappl`.
pub fn put_shb(out: &mut Vec<u8>, userappl: &str) {
    put_block(out, BLOCK_SHB, |body| {
        body.extend_from_slice(&BYTE_ORDER_MAGIC.to_le_bytes());
        body.extend_from_slice(&1u16.to_le_bytes());
        body.extend_from_slice(&0u16.to_le_bytes());
        body.extend_from_slice(&(-1i64).to_le_bytes());
        put_text(body, OPTION_SHB_USERAPPL, userappl);
        put_option(body, OPTION_END, &[]);
    });
}

/// Appends an Interface Description Block in nanoseconds.
///
/// `snaplen_on_disk` fills the snaplen field; the interface's own is kept in
/// [`OPTION_IF_OWN_SNAPLEN`], because tcpdump refuses files whose interfaces differ in that field.
/// Texts longer than [`TEXT_BYTES_MAX`] are cut.
pub fn put_idb(out: &mut Vec<u8>, interface: &Interface, snaplen_on_disk: u32) {
    put_block(out, BLOCK_IDB, |body| {
        body.extend_from_slice(&interface.link_type.0.to_le_bytes());
        body.extend_from_slice(&0u16.to_le_bytes());
        body.extend_from_slice(&snaplen_on_disk.to_le_bytes());
        for (code, text) in [
            (OPTION_IF_NAME, &interface.name),
            (OPTION_IF_DESCRIPTION, &interface.description),
            (OPTION_IF_OS, &interface.os),
            (OPTION_IF_HARDWARE, &interface.hardware),
            (OPTION_IF_CLOCK, &interface.clock),
        ] {
            if let Some(text) = text {
                put_text(body, code, text);
            }
        }
        if let Some(filter) = &interface.filter {
            let mut value = vec![0];
            value.extend_from_slice(cut_text(filter).as_bytes());
            put_option(body, OPTION_IF_FILTER, &value);
        }
        put_option(body, OPTION_IF_TSRESOL, &[9]);
        put_option(body, OPTION_IF_OWN_SNAPLEN, &interface.snaplen_bytes.to_le_bytes());
        if interface.vxlan_ports != VxlanPorts::USUAL {
            let ports: Vec<_> = interface.vxlan_ports.iter().flat_map(u16::to_le_bytes).collect();
            put_option(body, OPTION_IF_VXLAN_PORTS, &ports);
        }
        put_option(body, OPTION_END, &[]);
    });
}

/// Appends an Interface Statistics Block that carries a comment: how an export tells of a gap in a
/// way that every reader shows or skips.
pub fn put_isb_comment(out: &mut Vec<u8>, interface_id: u32, ts_ns: u64, comment: &str) {
    put_block(out, BLOCK_ISB, |body| {
        body.extend_from_slice(&interface_id.to_le_bytes());
        body.extend_from_slice(&((ts_ns >> 32) as u32).to_le_bytes());
        body.extend_from_slice(&(ts_ns as u32).to_le_bytes());
        put_text(body, OPTION_COMMENT, comment);
        put_option(body, OPTION_END, &[]);
    });
}

/// Appends one option with its header and padding. A value longer than 65,535 bytes is cut there.
pub fn put_option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
    let value = &value[..usize::from(length)];
    out.extend_from_slice(&code.to_le_bytes());
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(value);
    out.resize(out.len() + padded(value.len()) - value.len(), 0);
}

/// A text as a description keeps it: at most [`TEXT_BYTES_MAX`] bytes, and visibly cut if it was
/// longer.
pub(crate) fn cut_text(text: &str) -> std::borrow::Cow<'_, str> {
    const ELLIPSIS: &str = "\u{2026}";
    if text.len() <= TEXT_BYTES_MAX {
        return text.into();
    }
    let end = text.floor_char_boundary(TEXT_BYTES_MAX - ELLIPSIS.len());
    format!("{}{ELLIPSIS}", &text[..end]).into()
}

fn put_text(out: &mut Vec<u8>, code: u16, text: &str) {
    put_option(out, code, cut_text(text).as_bytes());
}

fn put_block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    body(out);
    // Bodies here are a few bounded options, far below 4 GiB.
    let total = ((out.len() - start - 8 + BLOCK_FRAME_BYTES) as u32).to_le_bytes();
    out[start + 4..start + 8].copy_from_slice(&total);
    out.extend_from_slice(&total);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LinkType;

    fn parts<'a>(data: &'a [u8]) -> EpbParts<'a> {
        let orig_len = data.len() as u32;
        let (vlan, flags) = (None, None);
        EpbParts { interface_id: 0, ts_ns: 1, orig_len, data, vlan, flags, raw_options: &[] }
    }

    #[test]
    fn a_packet_is_laid_out_as_the_specification_draws_it() {
        let mut buf = [0xee; 64];
        let mut packet = parts(&[1, 2, 3, 4, 5]);
        packet.ts_ns = 0x0102_0304_0506_0708;
        packet.interface_id = 7;
        packet.orig_len = 99;
        packet.flags = Some(2);
        let written = put_epb(&mut buf, 4, &packet);
        assert_eq!(written, Some(52));
        let expected: [u8; 52] = [
            6, 0, 0, 0, 52, 0, 0, 0, 7, 0, 0, 0, 4, 3, 2, 1, 8, 7, 6, 5, 5, 0, 0, 0, 99, 0, 0, 0,
            1, 2, 3, 4, 5, 0, 0, 0, 2, 0, 4, 0, 2, 0, 0, 0, 0, 0, 0, 0, 52, 0, 0, 0,
        ];
        assert_eq!(buf[4..56], expected);
        assert_eq!(buf[..4], [0xee; 4]);
        assert_eq!(buf[56..], [0xee; 8]);
    }

    #[test]
    fn a_tag_goes_in_at_its_place_and_counts_in_both_lengths() {
        let data: Vec<u8> = (0..14).collect();
        let mut packet = parts(&data);
        packet.vlan = Some((12, [0x81, 0, 0, 5]));
        let mut buf = [0; 64];
        assert_eq!(put_epb(&mut buf, 0, &packet), Some(32 + 20));
        assert_eq!(buf[20..28], [18, 0, 0, 0, 18, 0, 0, 0]);
        assert_eq!(buf[28..46], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0x81, 0, 0, 5, 12, 13]);
    }

    #[test]
    fn a_tag_beyond_the_cut_counts_in_the_original_length_only() {
        let data = [9; 8];
        let mut packet = parts(&data);
        packet.vlan = Some((12, [0x81, 0, 0, 5]));
        packet.orig_len = 60;
        let mut buf = [0; 64];
        assert_eq!(put_epb(&mut buf, 0, &packet), Some(40));
        assert_eq!(buf[20..28], [8, 0, 0, 0, 64, 0, 0, 0]);
    }

    #[test]
    fn what_was_removed_is_an_option_and_a_head_stands_before_the_data() {
        let data = [7, 8, 9];
        let mut packet = parts(&data);
        packet.orig_len = 5;
        packet.raw_options = &[1, 0, 1, 0, b'x', 0, 0, 0];
        let outer = &[0x57, 0x80, 2, 0, 1, 0, 0, 0];
        let beside = Beside { head: &[1, 2], outer, duplicate_ns: None };
        let mut buf = [0xee; 80];
        let written = put_epb_with(&mut buf, 0, &packet, &beside);
        assert_eq!(written, Some(32 + 8 + 8 + 8 + 4));
        assert_eq!(written, Some(packet.block_bytes_with(&beside)));
        assert_eq!(buf[20..28], [5, 0, 0, 0, 5, 0, 0, 0]);
        assert_eq!(buf[28..36], [1, 2, 7, 8, 9, 0, 0, 0]);
        assert_eq!(buf[36..56], [&outer[..], packet.raw_options, &[0; 4]].concat());

        let beside = Beside { duplicate_ns: Some(0x0102), ..beside };
        let written = put_epb_with(&mut buf, 0, &packet, &beside);
        assert_eq!(written, Some(packet.block_bytes_with(&beside)));
        let mark = [0x58, 0x80, 8, 0, 2, 1, 0, 0, 0, 0, 0, 0];
        assert_eq!(buf[36..68], [&outer[..], &mark, packet.raw_options, &[0; 4]].concat());
    }

    #[test]
    fn a_full_slice_is_left_alone() {
        let data = [1; 16];
        let mut buf = [0xee; 47];
        assert_eq!(put_epb(&mut buf, 0, &parts(&data)), None);
        assert_eq!(put_epb(&mut buf, 48, &parts(&data)), None);
        assert_eq!(put_epb(&mut buf, usize::MAX, &parts(&data)), None);
        assert_eq!(buf, [0xee; 47]);
    }

    #[test]
    fn a_long_text_is_cut_visibly_and_only_once() {
        let long = "\u{e9}".repeat(TEXT_BYTES_MAX);
        let cut = cut_text(&long).into_owned();
        assert!(cut.len() <= TEXT_BYTES_MAX && cut.ends_with('\u{2026}'));
        assert_eq!(cut_text(&cut), cut);
        let mut out = Vec::new();
        let mut interface = Interface::unnamed(LinkType::ETHERNET);
        interface.name = Some(long);
        put_idb(&mut out, &interface, 1);
        assert!(out.len() < 2 * TEXT_BYTES_MAX);
    }
}
