//! Sizes that the format promises, each with its reason.

/// Bytes of one logical block. Every device write starts and ends on such a border (O_DIRECT and
/// NVMe ask for it).
pub const LBA_BYTES: usize = 4096;

/// Bytes of one chunk buffer. At 30 Gbps, 256 KiB means about 14,300 chunks a second over all
/// devices, and a query that wants one packet unseals no more than this.
pub const CHUNK_BYTES: usize = 256 << 10;

/// Snaplen written into every interface description on disk. tcpdump refuses files whose interfaces
/// differ in snaplen, so all are equal; 262,144 is libpcap's own maximum. The interface's own
/// snaplen is kept in an option.
pub const SNAPLEN_MAX: u32 = 262_144;

/// Bytes a pcapng block of ours may have. The Rust `pcap-file` crate fails above 8,000,000 and
/// libpcap above 16 MiB; 1 MiB is read by every reader tried.
pub const BLOCK_BYTES_MAX: usize = 1 << 20;

/// Interfaces one segment describes at most. More would let the header grow without bound.
pub const SEGMENT_INTERFACES_MAX: usize = 64;

const _: () = assert!(CHUNK_BYTES.is_multiple_of(LBA_BYTES), "a chunk is whole logical blocks");
const _: () = assert!(CHUNK_BYTES <= BLOCK_BYTES_MAX, "a sealed chunk is one block");
