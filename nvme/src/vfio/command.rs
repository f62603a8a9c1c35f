//! Commands and completions as they lie in queues (NVM Express Base Specification 2.0, sections
//! 3.3.3, 5 and 7; NVM Command Set Specification 1.0, section 3).

use crate::spec::Status;
use crate::spec::command::{self as spec, admin, io};

/// Dwords of a command.
pub(super) const COMMAND_DWORDS: usize = 16;
/// Dwords of a completion.
pub(super) const COMPLETION_DWORDS: usize = 4;

/// Feature 07h, Number of Queues.
pub(super) const FEATURE_QUEUES: u32 = 0x07;

/// Bytes of a range of Dataset Management: attributes(4), blocks(4), first block(8).
pub(super) const RANGE_BYTES: usize = 16;
/// The attribute Deallocate of Dataset Management.
const DEALLOCATE: u32 = 1 << 2;

/// One command. Its identifier is put in when it enters a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Command(pub(super) [u32; COMMAND_DWORDS]);

impl Command {
    fn new(opcode: u8, namespace: u32) -> Self {
        let mut dwords = [0; COMMAND_DWORDS];
        dwords[0] = u32::from(opcode);
        dwords[1] = namespace;
        Self(dwords)
    }

    /// Data by physical region pages.
    fn data(mut self, (first, second): (u64, u64)) -> Self {
        (self.0[6], self.0[7]) = halves(first);
        (self.0[8], self.0[9]) = halves(second);
        self
    }

    pub(super) fn with_id(mut self, id: u16) -> Self {
        self.0[0] = self.0[0] & 0xffff | u32::from(id) << 16;
        self
    }

    /// A command that answers with data, to a page of ours.
    pub(super) fn reading(command: &spec::Command, page: u64) -> Self {
        let mut ours = Self::new(command.opcode, command.namespace).data((page, 0));
        ours.0[10..].copy_from_slice(&command.dwords);
        ours
    }

    /// Asks for this many I/O queue pairs.
    pub(super) fn set_queues(pairs: u16) -> Self {
        let mut command = Self::new(admin::SET_FEATURES, 0);
        let less_one = u32::from(pairs.max(1)) - 1;
        command.0[10] = FEATURE_QUEUES;
        command.0[11] = less_one << 16 | less_one;
        command
    }

    /// A contiguous completion queue without interrupts.
    pub(super) fn create_cq(id: u16, entries: u16, start: u64) -> Self {
        let mut command = Self::new(admin::CREATE_COMPLETION_QUEUE, 0).data((start, 0));
        command.0[10] = (u32::from(entries) - 1) << 16 | u32::from(id);
        command.0[11] = 1;
        command
    }

    /// A contiguous submission queue that completes into the queue of the same number.
    pub(super) fn create_sq(id: u16, entries: u16, start: u64) -> Self {
        let mut command = Self::new(admin::CREATE_SUBMISSION_QUEUE, 0).data((start, 0));
        command.0[10] = (u32::from(entries) - 1) << 16 | u32::from(id);
        command.0[11] = u32::from(id) << 16 | 1;
        command
    }

    pub(super) fn delete_queue(opcode: u8, id: u16) -> Self {
        let mut command = Self::new(opcode, 0);
        command.0[10] = u32::from(id);
        command
    }

    pub(super) fn abort(queue: u16, id: u16) -> Self {
        let mut command = Self::new(admin::ABORT, 0);
        command.0[10] = u32::from(id) << 16 | u32::from(queue);
        command
    }

    pub(super) fn flush(namespace: u32) -> Self {
        Self::new(io::FLUSH, namespace)
    }

    /// Deallocates the one range that stands in a page of ours.
    pub(super) fn deallocate(namespace: u32, page: u64) -> Self {
        let mut command = Self::new(io::DATASET_MANAGEMENT, namespace).data((page, 0));
        command.0[11] = DEALLOCATE;
        command
    }

    /// A read or write of 1 to 65,536 blocks; Write Zeroes has no pages.
    pub(super) fn transfer(
        opcode: u8,
        namespace: u32,
        first_block: u64,
        blocks: u32,
        pages: (u64, u64),
    ) -> Self {
        let mut command = Self::new(opcode, namespace).data(pages);
        (command.0[10], command.0[11]) = halves(first_block);
        command.0[12] = (blocks.max(1) - 1) & 0xffff;
        command
    }
}

/// Low and high dword.
pub(super) fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}

/// One completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    /// What the command gave back.
    pub(super) result: u32,
    /// How far the device has read the submission queue.
    pub(super) submission_head: u16,
    /// The command's identifier.
    pub(super) id: u16,
    /// How it ended.
    pub(super) status: Status,
}

impl Ended {
    pub(super) fn phase(dword3: u32) -> bool {
        dword3 >> 16 & 1 == 1
    }

    pub(super) fn decode(dwords: [u32; COMPLETION_DWORDS]) -> Self {
        Self {
            result: dwords[0],
            submission_head: dwords[2] as u16,
            id: dwords[3] as u16,
            status: Status((dwords[3] >> 17) as u16),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_lie_as_the_specification_says() {
        let write = Command::transfer(io::WRITE, 7, 0x1_0000_0002, 8, (0x2_0000_1000, 0x3000));
        let c = write.with_id(0xabcd).0;
        assert_eq!(c[0], 0xabcd_0001);
        assert_eq!((c[1], c[6], c[7], c[8], c[9]), (7, 0x1000, 2, 0x3000, 0));
        assert_eq!((c[10], c[11], c[12]), (2, 1, 7));
        let cq = Command::create_cq(3, 64, 0x5000).0;
        assert_eq!((cq[0], cq[6], cq[10], cq[11]), (5, 0x5000, 63 << 16 | 3, 1));
        let sq = Command::create_sq(3, 64, 0x6000).0;
        assert_eq!((sq[0], sq[10], sq[11]), (1, 63 << 16 | 3, 3 << 16 | 1));
        assert_eq!(Command::abort(2, 9).0[10], 9 << 16 | 2);
        let smart = spec::Command::log_page(spec::log::SMART, spec::ALL_NAMESPACES, 512);
        let smart = Command::reading(&smart, 0x7000).0;
        assert_eq!((smart[0], smart[1], smart[6]), (2, u32::MAX, 0x7000));
        assert_eq!((smart[10], smart[11]), (127 << 16 | 1 << 15 | 2, 0));
    }

    #[test]
    fn completions_are_read() {
        let dwords = [5, 0, 1 << 16 | 9, (0x4280 << 1 | 1) << 16 | 0x1234];
        assert!(Ended::phase(dwords[3]));
        let ended = Ended::decode(dwords);
        assert_eq!((ended.result, ended.submission_head, ended.id), (5, 9, 0x1234));
        assert_eq!(ended.status.code(), 0x280);
    }
}
