//! pcapng blocks: writing into slices, reading from slices and streams.
//!
//! - [`mod@write`]: what Wirevault puts into its own segments: little-endian, nanoseconds, one
//!   encoding of a packet.
//! - [`read`]: walks such bytes in place; every length is checked, nothing is copied.
//! - [`stream`]: reads anybody's pcapng, whole or damaged, from a pipe or a file, for import.
//!
//! Source: draft-ietf-opsawg-pcapng, "PCAP Now Generic (pcapng) Capture File Format".

use std::io;

pub mod read;
pub mod stream;
pub mod write;

pub use read::{Block, Blocks, Epb, RawOption, options};
pub use stream::{Event, OtherKind, Reader, Record};
pub use write::{
    Beside, EpbParts, epb_bytes, put_epb, put_epb_with, put_idb, put_isb_comment, put_option,
    put_shb,
};

/// Section Header Block. The number reads the same in both byte orders.
pub const BLOCK_SHB: u32 = 0x0A0D_0D0A;
/// Interface Description Block.
pub const BLOCK_IDB: u32 = 1;
/// Packet Block, obsolete: read, never written.
pub const BLOCK_PB: u32 = 2;
/// Simple Packet Block: read, never written, because it has no time stamp.
pub const BLOCK_SPB: u32 = 3;
/// Name Resolution Block.
pub const BLOCK_NRB: u32 = 4;
/// Interface Statistics Block.
pub const BLOCK_ISB: u32 = 5;
/// Enhanced Packet Block.
pub const BLOCK_EPB: u32 = 6;
/// systemd Journal Export Block.
pub const BLOCK_JOURNAL: u32 = 9;
/// Decryption Secrets Block.
pub const BLOCK_DSB: u32 = 10;
/// Custom Block that tools may copy.
pub const BLOCK_CUSTOM: u32 = 0x0000_0BAD;
/// Custom Block that tools must not copy.
pub const BLOCK_CUSTOM_NO_COPY: u32 = 0x4000_0BAD;
/// Set in the type of every local-use block. All readers tried skip such blocks silently.
pub const BLOCK_LOCAL: u32 = 0x8000_0000;

/// `opt_endofopt`.
pub const OPTION_END: u16 = 0;
/// `opt_comment`.
pub const OPTION_COMMENT: u16 = 1;
/// `shb_userappl`.
pub const OPTION_SHB_USERAPPL: u16 = 4;
/// `if_name`.
pub const OPTION_IF_NAME: u16 = 2;
/// `if_description`.
pub const OPTION_IF_DESCRIPTION: u16 = 3;
/// `if_tsresol`.
pub const OPTION_IF_TSRESOL: u16 = 9;
/// `if_filter`.
pub const OPTION_IF_FILTER: u16 = 11;
/// `if_os`.
pub const OPTION_IF_OS: u16 = 12;
/// `if_tsoffset`.
pub const OPTION_IF_TSOFFSET: u16 = 14;
/// `if_hardware`.
pub const OPTION_IF_HARDWARE: u16 = 15;
/// Ours, local use: the interface's own snaplen, `u32`. The field of the block holds one common
/// value.
pub const OPTION_IF_OWN_SNAPLEN: u16 = 0x8001;
/// Ours, local use: what stamped the packets, UTF-8.
pub const OPTION_IF_CLOCK: u16 = 0x8002;
/// Ours, local use: the UDP ports that were taken for VXLAN's, `u16` each; absent for the usual
/// ones.
pub const OPTION_IF_VXLAN_PORTS: u16 = 0x8003;
/// Ours, local use: what outer headers said that were removed from the packet before it was stored.
/// Records of kind `u8`, length `u8` and the header's bytes, from the outside in. The codes from
/// 0x8001 on are taken by Apple's tools: scapy refused files that had another length in 0x8003.
pub const OPTION_EPB_OUTER: u16 = 0x8057;
/// Ours, local use: the packet is a second copy of one that the same lanes stored; nanoseconds
/// between the two, `u64`.
pub const OPTION_EPB_DUPLICATE: u16 = 0x8058;
/// `epb_flags`; `pack_flags` of the obsolete Packet Block has the same code and meaning.
pub const OPTION_EPB_FLAGS: u16 = 2;
/// `epb_dropcount`.
pub const OPTION_EPB_DROPCOUNT: u16 = 4;
/// `epb_packetid`.
pub const OPTION_EPB_PACKETID: u16 = 5;
/// `epb_queue`.
pub const OPTION_EPB_QUEUE: u16 = 6;
/// `epb_verdict`.
pub const OPTION_EPB_VERDICT: u16 = 7;

/// Bytes of a block around its body: type, length, and the length again.
pub const BLOCK_FRAME_BYTES: usize = 12;
/// Bytes of an Enhanced Packet Block with neither data nor options.
pub const EPB_FIXED_BYTES: usize = 32;
/// Bytes of one text of an interface at most; a longer one is cut and ends in an ellipsis. A header
/// of 64 interfaces stays bounded that way.
pub const TEXT_BYTES_MAX: usize = 1024;
/// Bytes of one block that a reader accepts at most. libpcap's limit for the same purpose has the
/// same value.
pub const READ_BLOCK_BYTES_MAX: u32 = 16 << 20;
/// Bytes of options that a reader keeps of one packet; what comes behind is dropped and told. A
/// packet with its options must leave room for data in a chunk.
pub const PACKET_OPTIONS_BYTES_MAX: usize = 16 << 10;
/// Distinct interfaces that one stream may describe.
pub const STREAM_INTERFACES_MAX: usize = 4096;
/// Interface descriptions that one section may hold, repeated ones included.
pub const SECTION_INTERFACES_MAX: usize = 65_536;

/// Byte-order magic in a section header.
pub(crate) const BYTE_ORDER_MAGIC: u32 = 0x1A2B_3C4D;

/// Why pcapng bytes cannot be read. Every offset counts from the first byte of the stream or slice.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PcapngError {
    /// The stream does not begin with a section header.
    #[error("not a pcapng file: it begins with {first:02x?} instead of 0a 0d 0d 0a")]
    NotPcapng {
        /// The first bytes.
        first: Vec<u8>,
    },
    /// A section header whose magic is in neither byte order.
    #[error("section at byte {at}: byte-order magic {magic:#010x} is in neither byte order")]
    ByteOrder {
        /// Offset of the block.
        at: u64,
        /// What stands there, read as little-endian.
        magic: u32,
    },
    /// A newer major version of the format.
    #[error("section at byte {at}: pcapng version {major}.{minor} is not known, only 1.x is")]
    Version {
        /// Offset of the block.
        at: u64,
        /// Major version.
        major: u16,
        /// Minor version.
        minor: u16,
    },
    /// A block's length cannot be: too short, not a multiple of 4, or beyond what a reader accepts.
    #[error("block at byte {at}: length {length} is impossible ({why})")]
    Length {
        /// Offset of the block.
        at: u64,
        /// The length it states.
        length: u32,
        /// Which rule it breaks.
        why: &'static str,
    },
    /// The length at a block's end differs from the one at its beginning.
    #[error("block at byte {at}: it begins with length {length} and ends with length {trailer}")]
    Trailer {
        /// Offset of the block.
        at: u64,
        /// Length at the beginning.
        length: u32,
        /// Length at the end.
        trailer: u32,
    },
    /// The bytes end inside a block.
    #[error(
        "the data ends at byte {end}, inside the block that begins at byte {at}; \
         {packets} packets came before it"
    )]
    Truncated {
        /// Offset of the cut block.
        at: u64,
        /// Offset of the end.
        end: u64,
        /// Whole packets before the cut.
        packets: u64,
    },
    /// A packet states more captured bytes than its block holds.
    #[error("packet at byte {at}: {captured} captured bytes are stated, {room} fit into its block")]
    CapturedLength {
        /// Offset of the block.
        at: u64,
        /// Captured length stated.
        captured: u32,
        /// Bytes the block has room for.
        room: usize,
    },
    /// A packet names an interface that its section did not describe.
    #[error(
        "packet at byte {at}: interface {interface} is not among the {known} described before it"
    )]
    UnknownInterface {
        /// Offset of the block.
        at: u64,
        /// Interface number in its section.
        interface: u32,
        /// Interfaces described so far in the section.
        known: usize,
    },
    /// More interfaces than a reader keeps.
    #[error("interface description at byte {at}: more than {limit} interfaces are not supported")]
    TooManyInterfaces {
        /// Offset of the block.
        at: u64,
        /// The limit reached.
        limit: usize,
    },
    /// A list of options runs past its block.
    #[error("block at byte {at}: its options run past its end")]
    Options {
        /// Offset of the block.
        at: u64,
    },
    /// A block of one of our own files is not as our writer makes it.
    #[error("block at byte {at}: {what}")]
    Foreign {
        /// Offset of the block.
        at: u64,
        /// What differs.
        what: &'static str,
    },
    /// The source below failed.
    #[error("reading at byte {at} failed")]
    Io {
        /// Bytes read before.
        at: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Length rounded up to the 32-bit borders of pcapng.
pub(crate) const fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(4)
}

/// Integers of one byte order, taken from a slice; `None` means that the slice ends before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Little,
    Big,
}

impl Order {
    pub(crate) fn u16(self, bytes: &[u8], at: usize) -> Option<u16> {
        let raw = *bytes.get(at..)?.first_chunk()?;
        Some(if self == Self::Big { u16::from_be_bytes(raw) } else { u16::from_le_bytes(raw) })
    }

    pub(crate) fn u32(self, bytes: &[u8], at: usize) -> Option<u32> {
        let raw = *bytes.get(at..)?.first_chunk()?;
        Some(if self == Self::Big { u32::from_be_bytes(raw) } else { u32::from_le_bytes(raw) })
    }

    pub(crate) fn u64(self, bytes: &[u8], at: usize) -> Option<u64> {
        let raw = *bytes.get(at..)?.first_chunk()?;
        Some(if self == Self::Big { u64::from_be_bytes(raw) } else { u64::from_le_bytes(raw) })
    }
}
