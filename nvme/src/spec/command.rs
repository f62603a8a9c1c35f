//! Opcodes, and the structure in which the kernel takes a command (Linux
//! `include/uapi/linux/nvme_ioctl.h`).
//!
//! `struct nvme_uring_cmd`, 72 bytes, the same for the ioctl of admin commands but for the last
//! word (there it is the result):
//!
//! ```text
//! byte  0 opcode   1 flags   2 reserved(2)   4 namespace   8 cdw2   12 cdw3
//!      16 metadata address(8)   24 data address(8)   32 metadata bytes   36 data bytes
//!      40 cdw10   44 cdw11   48 cdw12   52 cdw13   56 cdw14   60 cdw15
//!      64 timeout in ms, 0 for the driver's own   68 reserved, or result
//! ```

/// Bytes of the structure.
pub const COMMAND_BYTES: usize = 72;

/// Namespace number that stands for all of them.
pub const ALL_NAMESPACES: u32 = u32::MAX;

/// Opcodes of the admin queue (base specification, section 5).
pub mod admin {
    /// Delete I/O Submission Queue.
    pub const DELETE_SUBMISSION_QUEUE: u8 = 0x00;
    /// Create I/O Submission Queue.
    pub const CREATE_SUBMISSION_QUEUE: u8 = 0x01;
    /// Get Log Page.
    pub const GET_LOG_PAGE: u8 = 0x02;
    /// Delete I/O Completion Queue.
    pub const DELETE_COMPLETION_QUEUE: u8 = 0x04;
    /// Create I/O Completion Queue.
    pub const CREATE_COMPLETION_QUEUE: u8 = 0x05;
    /// Identify.
    pub const IDENTIFY: u8 = 0x06;
    /// Abort.
    pub const ABORT: u8 = 0x08;
    /// Set Features.
    pub const SET_FEATURES: u8 = 0x09;
    /// Format NVM.
    pub const FORMAT: u8 = 0x80;
    /// Sanitize.
    pub const SANITIZE: u8 = 0x84;
}

/// Opcodes of I/O queues (base specification, section 7; NVM command set, section 3.2).
pub mod io {
    /// Flush.
    pub const FLUSH: u8 = 0x00;
    /// Write.
    pub const WRITE: u8 = 0x01;
    /// Read.
    pub const READ: u8 = 0x02;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Dataset Management, of which Deallocate is a part.
    pub const DATASET_MANAGEMENT: u8 = 0x09;
    /// Reservation Register.
    pub const RESERVATION_REGISTER: u8 = 0x0d;
    /// Reservation Report.
    pub const RESERVATION_REPORT: u8 = 0x0e;
    /// Reservation Acquire.
    pub const RESERVATION_ACQUIRE: u8 = 0x11;
}

/// Log pages (base specification, section 5.16.1).
pub mod log {
    /// Errors, newest first.
    pub const ERRORS: u8 = 0x01;
    /// Health.
    pub const SMART: u8 = 0x02;
    /// How far Sanitize is.
    pub const SANITIZE: u8 = 0x81;
}

/// A command without its data's address, which the kernel's caller fills in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// What to do.
    pub opcode: u8,
    /// With which namespace.
    pub namespace: u32,
    /// Bytes of data to or from the device.
    pub data_bytes: u32,
    /// Command dwords 10 to 15.
    pub dwords: [u32; 6],
    /// Time after which the driver gives up; 0 stands for the driver's own.
    pub timeout_ms: u32,
}

impl Command {
    /// Identify: `cns` 0 for a namespace, 1 for the controller.
    pub fn identify(cns: u8, namespace: u32) -> Self {
        Self {
            opcode: admin::IDENTIFY,
            namespace,
            data_bytes: super::identify::IDENTIFY_BYTES as u32,
            dwords: [u32::from(cns), 0, 0, 0, 0, 0],
            timeout_ms: 0,
        }
    }

    /// Get Log Page. `data_bytes` is a multiple of 4, at least 4. "Retain Asynchronous Event" is
    /// set, so that reading takes no event away from the driver.
    pub fn log_page(page: u8, namespace: u32, data_bytes: u32) -> Self {
        let dwords_less_one = (data_bytes / 4).max(1) - 1;
        let (low, high) = (dwords_less_one & 0xffff, dwords_less_one >> 16);
        Self {
            opcode: admin::GET_LOG_PAGE,
            namespace,
            data_bytes,
            dwords: [u32::from(page) | 1 << 15 | low << 16, high, 0, 0, 0, 0],
            timeout_ms: 0,
        }
    }

    /// Format NVM with the LBA format of this number. `erase` is the Secure Erase Setting: 1 for
    /// user data, 2 cryptographic.
    pub fn format(namespace: u32, format: u8, erase: u32, timeout_ms: u32) -> Self {
        let (low, high) = (u32::from(format & 0xf), u32::from(format >> 4 & 3));
        Self {
            opcode: admin::FORMAT,
            namespace,
            data_bytes: 0,
            dwords: [low | high << 12 | (erase & 7) << 9, 0, 0, 0, 0, 0],
            timeout_ms,
        }
    }

    /// Sanitize. `action`: 2 erases blocks, 3 overwrites once, 4 erases keys. The device refuses
    /// everything else if it fails, until another one succeeds.
    pub fn sanitize(action: u32) -> Self {
        // One pass of zeros, for the action that overwrites.
        let passes = if action == 3 { 1 << 4 } else { 0 };
        let dwords = [action & 7 | passes, 0, 0, 0, 0, 0];
        Self { opcode: admin::SANITIZE, dwords, ..Self::default() }
    }

    /// Write `blocks` (1 to 65,536) from `first_block` on.
    pub fn write(namespace: u32, first_block: u64, blocks: u32, data_bytes: u32) -> Self {
        let (low, high) = (first_block as u32, (first_block >> 32) as u32);
        Self {
            opcode: io::WRITE,
            namespace,
            data_bytes,
            dwords: [low, high, (blocks.max(1) - 1) & 0xffff, 0, 0, 0],
            timeout_ms: 0,
        }
    }

    /// Flush: every write that completed before is durable when this completes.
    pub fn flush(namespace: u32) -> Self {
        Self { opcode: io::FLUSH, namespace, ..Self::default() }
    }

    /// The structure, for data at this address.
    pub fn encode(&self, address: u64) -> [u8; COMMAND_BYTES] {
        let mut bytes = [0; COMMAND_BYTES];
        bytes[0] = self.opcode;
        bytes[4..8].copy_from_slice(&self.namespace.to_le_bytes());
        bytes[24..32].copy_from_slice(&address.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.data_bytes.to_le_bytes());
        for (dword, place) in self.dwords.iter().zip(bytes[40..64].chunks_exact_mut(4)) {
            place.copy_from_slice(&dword.to_le_bytes());
        }
        bytes[64..68].copy_from_slice(&self.timeout_ms.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_lie_as_the_kernel_takes_them() {
        let write = Command::write(7, 0x1_0000_0002, 128, 0x8_0000);
        let mut expected = [0u8; COMMAND_BYTES];
        expected[0] = 1;
        expected[4] = 7;
        expected[24..32].copy_from_slice(&[8, 7, 6, 5, 4, 3, 2, 1]);
        expected[36..40].copy_from_slice(&[0, 0, 8, 0]);
        expected[40] = 2;
        expected[44] = 1;
        expected[48] = 127;
        assert_eq!(write.encode(0x0102_0304_0506_0708), expected);
        let flush = Command::flush(7).encode(0);
        assert_eq!((flush[0], flush[4], &flush[8..]), (0, 7, &[0u8; 64][..]));
    }

    #[test]
    fn long_log_pages_use_both_halves_of_their_length() {
        let smart = Command::log_page(log::SMART, ALL_NAMESPACES, 512);
        assert_eq!(smart.dwords[..2], [2 | 1 << 15 | 127 << 16, 0]);
        let long = Command::log_page(0xd0, 1, 4 << 20);
        assert_eq!(long.dwords[..2], [0xd0 | 1 << 15 | 0xffff << 16, 0xf]);
    }
}
