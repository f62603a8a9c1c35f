//! Registers of an NVMe controller (NVM Express Base Specification 2.0, section 3.1.3).

/// Controller Capabilities, 64 bits.
pub(super) const CAP: usize = 0x00;
/// Controller Configuration.
pub(super) const CC: usize = 0x14;
/// Controller Status.
pub(super) const CSTS: usize = 0x1c;
/// Admin Queue Attributes.
pub(super) const AQA: usize = 0x24;
/// Admin Submission Queue Base Address, 64 bits.
pub(super) const ASQ: usize = 0x28;
/// Admin Completion Queue Base Address, 64 bits.
pub(super) const ACQ: usize = 0x30;
/// First doorbell.
pub(super) const DOORBELLS: usize = 0x1000;

/// CC: enabled, entries of 64 and 16 bytes, pages of 4 KiB, NVM command set, round robin.
pub(super) const CC_RUN: u32 = 6 << 16 | 4 << 20 | CC_EN;
/// CC: enable.
pub(super) const CC_EN: u32 = 1;
/// CC: notify of a normal shutdown.
pub(super) const CC_SHN_NORMAL: u32 = 1 << 14;
/// CC: field of the shutdown notification.
pub(super) const CC_SHN_MASK: u32 = 3 << 14;
/// CSTS: ready.
pub(super) const CSTS_RDY: u32 = 1;
/// CSTS: the controller failed and does nothing any more.
pub(super) const CSTS_CFS: u32 = 1 << 1;
/// CSTS: field of the shutdown's progress.
pub(super) const CSTS_SHST_MASK: u32 = 3 << 2;
/// CSTS: shutdown is complete.
pub(super) const CSTS_SHST_DONE: u32 = 2 << 2;
/// What every register of a device that was pulled out reads as.
pub(super) const GONE: u32 = u32::MAX;

/// Bytes of a page as the driver sets it up (CC.MPS = 0), and as PRP entries count.
pub(super) const PAGE_BYTES: usize = 4096;

/// What a controller can do: the CAP register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capabilities(pub(super) u64);

impl Capabilities {
    /// Entries a queue may have.
    pub(super) fn entries_max(self) -> u32 {
        (self.0 & 0xffff) as u32 + 1
    }

    /// How long enabling and disabling may take. The register counts in 500 ms, and 0 means that
    /// the device promises nothing, so 500 ms is the least.
    pub(super) fn ready_timeout_ns(self) -> u64 {
        (self.0 >> 24 & 0xff).max(1) * 500_000_000
    }

    /// Bytes between doorbells.
    pub(super) fn doorbell_stride(self) -> usize {
        4 << (self.0 >> 32 & 0xf)
    }

    /// Whether the NVM command set (reads and writes of blocks) is there.
    pub(super) fn has_nvm_commands(self) -> bool {
        self.0 >> 37 & 1 == 1
    }

    /// Bytes of the smallest page that the controller works with.
    pub(super) fn page_bytes_min(self) -> u64 {
        4096 << (self.0 >> 48 & 0xf)
    }

    /// Byte of the doorbell of a queue's submission tail; the completion head's is a stride behind.
    pub(super) fn doorbell(self, queue: u16) -> usize {
        DOORBELLS + 2 * usize::from(queue) * self.doorbell_stride()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_where_the_specification_puts_them() {
        let cap = Capabilities(1 << 48 | 1 << 37 | 15 << 24 | 0x7ff);
        assert_eq!(cap.entries_max(), 2048);
        assert_eq!(cap.ready_timeout_ns(), 7_500_000_000);
        assert_eq!((cap.doorbell_stride(), cap.page_bytes_min()), (4, 8192));
        assert!(cap.has_nvm_commands());
        assert_eq!((cap.doorbell(0), cap.doorbell(3)), (0x1000, 0x1018));
        let wide = Capabilities(2 << 32);
        assert_eq!((wide.doorbell(1), wide.ready_timeout_ns()), (0x1020, 500_000_000));
        assert!(!wide.has_nvm_commands());
    }
}
