//! On-disk codec of Wirevault: what the bytes of a store mean. No I/O and no cryptography happen
//! here.
//!
//! ```text
//!  volume file   superblock | segment table | run table | key ring        superblock, table
//!  segment file  header page(s) | chunk | chunk | ... | index | footer    segment, chunk, section, footer
//!  chunk         128-byte header | pcapng blocks (and gaps) | tail        chunk, pcapng, gap
//! ```
//! A closed segment is a valid pcapng file: everything of ours sits in *local-use* blocks, which
//! every reader tried skips silently. `docs/FORMAT.md` is the authority for every offset; the
//! constants here are the same numbers as code.

#![forbid(unsafe_code)]

mod bytes;
pub mod chunk;
pub mod digest;
mod error;
pub mod footer;
pub mod gap;
pub mod ids;
pub mod interface;
pub mod limits;
pub mod local;
pub mod pcapng;
mod policy;
pub mod section;
pub mod segment;
pub mod superblock;
pub mod table;

pub use error::FormatError;
pub use gap::{Cause, Gap, PressureCause};
pub use ids::{LifeId, LinkType, RunId, StoreId, VolumeId};
pub use interface::{Interface, VxlanPorts};
pub use policy::PolicyName;

/// CRC-32C (Castagnoli), the checksum of every structure that is not under a GCM tag.
///
/// Polynomial 0x1EDC6F41, reflected; the check value of `123456789` is 0xE3069283.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_checksum_is_crc32c() {
        assert_eq!(super::crc32c(b"123456789"), 0xE306_9283);
    }
}
