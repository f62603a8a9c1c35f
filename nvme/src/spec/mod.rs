//! What NVMe devices say of themselves, byte by byte. Pure: bytes in, values out; hostile bytes
//! give odd values, never a panic.
//!
//! - [`command`]: opcodes and the dwords of commands. [`status`]: how a command ended.
//! - [`identify`]: the controller and the namespace. [`smart`]: health. [`errors`]: the error log.
//! - [`reservation`]: which hosts may write. [`amazon`]: what EC2's devices add.
//!
//! All numbers are little-endian. Sections are those of the NVM Express Base Specification 2.0 and
//! the NVM Command Set Specification 1.0.

pub mod amazon;
pub mod command;
pub mod errors;
pub mod identify;
pub mod reservation;
pub mod smart;
pub mod status;

pub use amazon::AmazonLog;
pub use errors::ErrorEntry;
pub use identify::{IdentifyController, IdentifyNamespace};
pub use smart::SmartLog;
pub use status::Status;

/// `N` bytes from a fixed place of a structure. The caller names a place that the structure has;
/// the end of a shorter one counts as zeros.
fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes_at(bytes, at))
}

fn u128_at(bytes: &[u8], at: usize) -> u128 {
    u128::from_le_bytes(bytes_at(bytes, at))
}

/// Text padded with blanks (ASCII); anything else shows as `?`, zeros end it.
fn text<const N: usize>(field: [u8; N]) -> String {
    let until = field.iter().position(|b| *b == 0).unwrap_or(N);
    let shown = |b: &u8| if (0x20..0x7f).contains(b) { char::from(*b) } else { '?' };
    field[..until].iter().map(shown).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_cannot_carry_control_characters() {
        assert_eq!(text(*b"  QEMU NVMe Ctrl    "), "QEMU NVMe Ctrl");
        assert_eq!(text(*b"a\x1b[2J\xff\0zzz"), "a?[2J?");
        assert_eq!(text([0; 4]), "");
    }

    #[test]
    fn numbers_are_little_endian_and_end_with_the_bytes() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!((u16_at(&bytes, 1), u32_at(&bytes, 4)), (0x0302, 0x0807_0605));
        assert_eq!((u64_at(&bytes, 0), u64_at(&bytes, 1)), (0x0807_0605_0403_0201, 0));
        assert_eq!(u128_at(&bytes, 0), 0);
    }
}
