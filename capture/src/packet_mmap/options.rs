//! Options of live capture.

use super::sys::RingShape;
use crate::error::CaptureError;

/// Blocks of a ring at least: fewer would leave the kernel nowhere to write while one is consumed.
const BLOCKS_MIN: usize = 4;

/// Options of live capture.
#[derive(Debug, Clone)]
pub struct PacketMmapOptions {
    /// Name of the interface.
    pub interface: String,
    /// Bytes of one lane's ring. Rounded down to whole blocks; at least four.
    pub ring_bytes: usize,
    /// Bytes of one block: a power of two, at least a page. A packet longer than a block is cut by
    /// the kernel.
    pub block_bytes: usize,
    /// Whether frames for other hosts are taken too.
    pub promiscuous: bool,
    /// Whether the card's own time stamps are asked for. They need a card set up for it, and its
    /// clock in UTC.
    pub hardware_time: bool,
    /// What the lane cuts packets to; only described here. 0 means no limit.
    pub snaplen_bytes: u32,
    /// Why this source and no other, for `status`.
    pub chosen: Option<String>,
}

impl PacketMmapOptions {
    /// The usual options: 64 MiB in blocks of 1 MiB, promiscuous, the kernel's time stamps, whole
    /// packets.
    pub fn new(interface: impl Into<String>) -> Self {
        Self {
            interface: interface.into(),
            ring_bytes: 64 << 20,
            block_bytes: 1 << 20,
            promiscuous: true,
            hardware_time: false,
            snaplen_bytes: 0,
            chosen: None,
        }
    }

    pub(super) fn shape(&self) -> Result<RingShape, CaptureError> {
        let bytes = self.block_bytes;
        if !bytes.is_power_of_two() || !(4096..=16 << 20).contains(&bytes) {
            return Err(CaptureError::Option {
                name: "block_bytes",
                value: bytes.to_string(),
                rule: "it must be a power of two from 4096 to 16777216",
            });
        }
        Ok(RingShape { block_bytes: bytes, blocks: (self.ring_bytes / bytes).max(BLOCKS_MIN) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_checked_before_anything_is_opened() {
        let mut options = PacketMmapOptions::new("lo");
        assert_eq!(options.shape().map(|s| s.blocks).ok(), Some(64));
        options.ring_bytes = 1;
        assert_eq!(options.shape().map(|s| s.blocks).ok(), Some(BLOCKS_MIN));
        options.block_bytes = 5000;
        let error = options.shape().map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("block_bytes is 5000"), "{error}");
        assert!(super::super::open_lanes(&PacketMmapOptions::new("lo"), 0).is_err());
    }
}
