//! Log page 01h: errors, newest first (base specification, section 5.16.1.2).

use super::status::Status;
use super::{u16_at, u32_at, u64_at};

/// Bytes of an entry.
pub const ERROR_BYTES: usize = 64;

/// One error that the controller noted.
///
/// ```text
/// byte 0 number(8)   8 queue(2)   10 command(2)   12 status(2)   14 place in the command(2)
///     16 block(8)   24 namespace(4)   28 vendor's page
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorEntry {
    /// Number of the error in the controller's life, from 1.
    pub number: u64,
    /// Submission queue of the command; 0 is the admin queue, 65,535 stands for none.
    pub queue: u16,
    /// How the command ended.
    pub status: Status,
    /// First block of the command that was in error, where that makes sense.
    pub block: u64,
    /// Namespace of the command.
    pub namespace: u32,
}

impl ErrorEntry {
    /// Reads a whole log: newest first, up to the first entry that was never used.
    pub fn decode_all(bytes: &[u8]) -> Vec<Self> {
        let entries = bytes.as_chunks::<ERROR_BYTES>().0.iter().map(Self::decode);
        entries.map_while(|entry| entry).collect()
    }

    fn decode(bytes: &[u8; ERROR_BYTES]) -> Option<Self> {
        let number = u64_at(bytes, 0);
        (number != 0).then(|| Self {
            number,
            queue: u16_at(bytes, 8),
            // The lowest bit is the phase.
            status: Status(u16_at(bytes, 12) >> 1),
            block: u64_at(bytes, 16),
            namespace: u32_at(bytes, 24),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_until_the_first_unused_one() {
        let mut bytes = [0; 4 * ERROR_BYTES + 3];
        for (n, number) in [9u8, 8, 0, 7].into_iter().enumerate() {
            bytes[n * ERROR_BYTES] = number;
        }
        bytes[12..14].copy_from_slice(&(0x280u16 << 1 | 1).to_le_bytes());
        bytes[16..24].copy_from_slice(&4096u64.to_le_bytes());
        bytes[24] = 1;
        let found = ErrorEntry::decode_all(&bytes);
        let numbers: Vec<_> = found.iter().map(|entry| entry.number).collect();
        assert_eq!(numbers, [9, 8]);
        assert_eq!(found[0].status, Status::WRITE_FAULT);
        assert_eq!((found[0].block, found[0].namespace), (4096, 1));
        assert_eq!(ErrorEntry::decode_all(&bytes[..63]), []);
    }
}
