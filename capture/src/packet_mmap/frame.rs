//! Reads blocks and frames of a TPACKET_V3 ring from their bytes. Every offset is checked, whoever
//! wrote it.
//!
//! Layout, native byte order. Block: 12 packets u32, 16 offset of the first frame u32. Frame: 0
//! offset of the next u32, 4 seconds u32, 8 nanoseconds u32, 12 captured bytes u32, 16 length u32,
//! 20 status u32, 24 offset of the link header u16, 32 VLAN tag u32, 36 VLAN protocol u16, 58
//! packet type u8 (in the `sockaddr_ll` behind it).
//!
//! Source: linux/if_packet.h, `tpacket_block_desc`, `tpacket3_hdr`.

use crate::port::Clock;
use crate::source::VlanTag;

const BLOCK_PACKETS_AT: usize = 12;
const BLOCK_FIRST_AT: usize = 16;
const NEXT_AT: usize = 0;
const SECONDS_AT: usize = 4;
const NANOSECONDS_AT: usize = 8;
const CAPTURED_AT: usize = 12;
const LENGTH_AT: usize = 16;
const STATUS_AT: usize = 20;
const MAC_AT: usize = 24;
const VLAN_TCI_AT: usize = 32;
const VLAN_TPID_AT: usize = 36;
/// `sockaddr_ll` stands behind the 48 bytes of the header; the packet type is its byte 10.
const PACKET_TYPE_AT: usize = 48 + 10;
const HEADER_BYTES: usize = 68;

/// `TP_STATUS_TS_SYS_HARDWARE` and `TP_STATUS_TS_RAW_HARDWARE`.
const STATUS_HARDWARE_TIME: u32 = 1 << 30 | 1 << 31;

/// A place in a block: where the next frame stands, and how many are left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) offset: usize,
    pub(super) left: u32,
}

impl Cursor {
    /// The beginning of a block.
    #[inline]
    pub(super) fn at_start(block: &[u8]) -> Option<Self> {
        let offset = u32_at(block, BLOCK_FIRST_AT)? as usize;
        Some(Self { offset, left: u32_at(block, BLOCK_PACKETS_AT)? })
    }

    /// The place behind `frame`.
    #[inline]
    pub(super) fn behind(self, frame: &Frame<'_>) -> Self {
        Self { offset: self.offset.saturating_add(frame.next), left: self.left.saturating_sub(1) }
    }
}

/// One frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub(super) ts_ns: u64,
    pub(super) wire_len: u32,
    pub(super) data: &'a [u8],
    pub(super) vlan: Option<VlanTag>,
    pub(super) clock: Clock,
    /// `epb_flags`.
    pub(super) flags: u32,
    next: usize,
}

impl<'a> Frame<'a> {
    /// The frame at that offset of a block; `None` if a part of it lies outside.
    #[inline]
    pub(super) fn parse(block: &'a [u8], offset: usize) -> Option<Self> {
        let frame = block.get(offset..)?;
        let header = frame.first_chunk::<HEADER_BYTES>()?;
        let word = |at| u32_at(header, at);
        let status = word(STATUS_AT)?;
        let mac = usize::from(u16_at(header, MAC_AT)?);
        let data = frame.get(mac..)?.get(..word(CAPTURED_AT)? as usize)?;
        let vlan = if status & libc::TP_STATUS_VLAN_VALID != 0 {
            let tpid = match status & libc::TP_STATUS_VLAN_TPID_VALID {
                0 => libc::ETH_P_8021Q as u16,
                _ => u16_at(header, VLAN_TPID_AT)?,
            };
            Some(VlanTag { tpid, tci: word(VLAN_TCI_AT)? as u16 })
        } else {
            None
        };
        let hardware = status & STATUS_HARDWARE_TIME != 0;
        let clock = if hardware { Clock::Hardware } else { Clock::Software };
        let seconds = u64::from(word(SECONDS_AT)?);
        Some(Self {
            ts_ns: seconds * 1_000_000_000 + u64::from(word(NANOSECONDS_AT)?),
            wire_len: word(LENGTH_AT)?,
            data,
            vlan,
            clock,
            flags: epb_flags(header[PACKET_TYPE_AT]),
            next: word(NEXT_AT)? as usize,
        })
    }
}

/// `epb_flags` of a kernel packet type: bits 0-1 direction (1 in, 2 out), bits 2-4 reception (1
/// unicast, 2 multicast, 3 broadcast, 4 promiscuous).
#[inline]
fn epb_flags(packet_type: u8) -> u32 {
    match packet_type {
        libc::PACKET_HOST => 1 | 1 << 2,
        libc::PACKET_BROADCAST => 1 | 3 << 2,
        libc::PACKET_MULTICAST => 1 | 2 << 2,
        libc::PACKET_OTHERHOST => 1 | 4 << 2,
        libc::PACKET_OUTGOING => 2,
        _ => 0,
    }
}

#[inline]
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[inline]
fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn put(block: &mut [u8], at: usize, value: u32) {
        block[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }

    #[test]
    fn a_tagged_outgoing_frame_is_read_as_the_kernel_lays_it_out() {
        let mut block = vec![0; 256];
        put(&mut block, BLOCK_PACKETS_AT, 1);
        put(&mut block, BLOCK_FIRST_AT, 48);
        let status = libc::TP_STATUS_VLAN_VALID
            | libc::TP_STATUS_VLAN_TPID_VALID
            | libc::TP_STATUS_TS_SOFTWARE;
        for (at, value) in [
            (NEXT_AT, 144),
            (SECONDS_AT, 3),
            (NANOSECONDS_AT, 4),
            (CAPTURED_AT, 5),
            (LENGTH_AT, 90),
            (STATUS_AT, status),
            (MAC_AT, 82),
            (VLAN_TCI_AT, 0x2abc),
            (VLAN_TPID_AT, 0x88a8),
        ] {
            put(&mut block, 48 + at, value);
        }
        block[48 + PACKET_TYPE_AT] = libc::PACKET_OUTGOING;
        block[48 + 82..48 + 87].copy_from_slice(b"hello");
        let cursor = Cursor::at_start(&block).unwrap();
        assert_eq!(cursor, Cursor { offset: 48, left: 1 });
        let frame = Frame::parse(&block, cursor.offset).unwrap();
        assert_eq!((frame.ts_ns, frame.wire_len, frame.flags), (3_000_000_004, 90, 2));
        assert_eq!(frame.data, b"hello");
        assert_eq!(frame.vlan.map(VlanTag::bytes), Some([0x88, 0xa8, 0x2a, 0xbc]));
        assert_eq!(frame.clock, Clock::Software);
        assert_eq!(cursor.behind(&frame), Cursor { offset: 192, left: 0 });
    }

    #[test]
    fn a_packet_stamped_only_in_the_ring_is_of_the_same_interface() {
        let mut block = vec![0; 256];
        put(&mut block, MAC_AT, 82);
        for (status, clock) in [
            (0, Clock::Software),
            (libc::TP_STATUS_TS_SOFTWARE, Clock::Software),
            (libc::TP_STATUS_TS_RAW_HARDWARE, Clock::Hardware),
        ] {
            put(&mut block, STATUS_AT, status);
            assert_eq!(Frame::parse(&block, 0).unwrap().clock, clock);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_stay_inside_the_block(
            block in proptest::collection::vec(any::<u8>(), 0..300),
            offset in any::<prop::sample::Index>(),
        ) {
            let _ = Cursor::at_start(&block);
            if let Some(frame) = Frame::parse(&block, offset.index(block.len() + 1)) {
                prop_assert!(frame.data.len() <= block.len());
            }
        }
    }
}
