//! Identify: what a controller and a namespace are (base specification, section 5.17.2.1; NVM
//! command set, section 4.1.5.1).

use super::{bytes_at, text, u16_at, u64_at};

/// Bytes of either structure.
pub const IDENTIFY_BYTES: usize = 4096;

/// Bytes of the controller's smallest memory page, in which MDTS counts. Every controller that the
/// kernel drives takes pages of 4 KiB (CAP.MPSMIN is 0).
const MEMORY_PAGE_BYTES: u64 = 4096;

/// A controller.
///
/// ```text
/// byte   0 vendor(2)   4 serial(20)   24 model(40)   64 firmware(8)   77 MDTS   80 version(4)
///      256 optional admin commands(2)   262 error log entries less one   266 warning K(2)
///      268 critical K(2)   328 sanitize capabilities(4)   512+ I/O: 520 optional commands(2)
///      524 format attributes   525 volatile write cache   528 atomic write, power fail(2)
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentifyController {
    /// PCI vendor: 0x1d0f is Amazon.
    pub vendor: u16,
    /// Serial number, without blanks around it.
    pub serial: String,
    /// Model, without blanks around it.
    pub model: String,
    /// Firmware, without blanks around it.
    pub firmware: String,
    /// Bytes that a command may carry; nothing where the controller has no limit.
    pub transfer_bytes_max: Option<u64>,
    /// Version of the specification: major, minor, tertiary.
    pub version: (u16, u8, u8),
    /// Entries of the error log.
    pub error_entries: u16,
    /// Composite temperature from which the device warns, in kelvin; 0 where it tells none.
    pub warning_kelvin: u16,
    /// Composite temperature from which the device is in danger, in kelvin; 0 where it tells none.
    pub critical_kelvin: u16,
    /// Whether Format NVM is there.
    pub can_format: bool,
    /// Whether Format NVM can erase by throwing the key away.
    pub format_erases_keys: bool,
    /// Sanitize: by crypto erase, by block erase, by overwriting.
    pub can_sanitize: (bool, bool, bool),
    /// Whether Deallocate (Dataset Management) is there.
    pub can_deallocate: bool,
    /// Whether Write Zeroes is there.
    pub can_write_zeroes: bool,
    /// Whether reservations are there.
    pub can_reserve: bool,
    /// Whether a write cache is there that loses its content with power.
    pub volatile_cache: bool,
    /// Logical blocks that a write puts down whole or not at all when power fails. Never relied on.
    pub atomic_blocks_power_fail: u32,
}

impl IdentifyController {
    /// Reads the structure.
    pub fn decode(bytes: &[u8; IDENTIFY_BYTES]) -> Self {
        let (admin, commands) = (u16_at(bytes, 256), u16_at(bytes, 520));
        let sanitize = bytes[328];
        let pages = match bytes[77] {
            0 => None,
            // 2^51 pages are beyond any address; such a controller has no limit.
            power => 1u64.checked_shl(u32::from(power)).filter(|pages| *pages < 1 << 51),
        };
        Self {
            vendor: u16_at(bytes, 0),
            serial: text::<20>(bytes_at(bytes, 4)),
            model: text::<40>(bytes_at(bytes, 24)),
            firmware: text::<8>(bytes_at(bytes, 64)),
            transfer_bytes_max: pages.map(|pages| pages * MEMORY_PAGE_BYTES),
            version: (u16_at(bytes, 82), bytes[81], bytes[80]),
            error_entries: u16::from(bytes[262]) + 1,
            warning_kelvin: u16_at(bytes, 266),
            critical_kelvin: u16_at(bytes, 268),
            can_format: admin & 2 != 0,
            format_erases_keys: bytes[524] & 4 != 0,
            can_sanitize: (sanitize & 1 != 0, sanitize & 2 != 0, sanitize & 4 != 0),
            can_deallocate: commands & 4 != 0,
            can_write_zeroes: commands & 8 != 0,
            can_reserve: commands & 32 != 0,
            volatile_cache: bytes[525] & 1 != 0,
            atomic_blocks_power_fail: u32::from(u16_at(bytes, 528)) + 1,
        }
    }
}

/// A namespace.
///
/// ```text
/// byte   0 blocks(8)   8 blocks that can be used(8)   16 blocks in use(8)   25 formats less one
///       26 format in use   31 reservations   33 deallocation   99 attributes
///      128 formats: metadata bytes(2), power of block bytes(1), rank(1) each
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdentifyNamespace {
    /// Logical blocks.
    pub blocks: u64,
    /// Logical blocks that hold something, if the device keeps count.
    pub used_blocks: u64,
    /// Number of the format in use.
    pub format: u8,
    /// Bytes of a logical block; nothing where the format in use makes no sense.
    pub lba_bytes: Option<u32>,
    /// Bytes of metadata beside each block. Only namespaces without can be written to here.
    pub metadata_bytes: u16,
    /// What a deallocated block reads as: 0 unknown, 1 zeros, 2 ones.
    pub deallocated_reads: u8,
    /// Whether the namespace is write protected.
    pub write_protected: bool,
    /// Whether it can be reserved so that only registered hosts write it.
    pub can_reserve: bool,
    /// Whether that can survive a loss of the device's power.
    pub reservations_persist: bool,
}

impl IdentifyNamespace {
    /// Reads the structure.
    pub fn decode(bytes: &[u8; IDENTIFY_BYTES]) -> Self {
        // Bits 0-3, and 5-6 above them for more than 16 formats.
        let format = usize::from(bytes[26] & 0xf | (bytes[26] & 0x60) >> 1);
        let at = 128 + format * 4;
        let power = bytes[at + 2];
        Self {
            blocks: u64_at(bytes, 0),
            used_blocks: u64_at(bytes, 16),
            format: format as u8,
            // 512 bytes at least by the specification; a block of more than 1 MiB is nonsense.
            lba_bytes: (9..=20).contains(&power).then(|| 1 << power),
            metadata_bytes: u16_at(bytes, at),
            deallocated_reads: bytes[33] & 7,
            write_protected: bytes[99] & 1 != 0,
            can_reserve: bytes[31] & 1 << 3 != 0,
            reservations_persist: bytes[31] & 1 != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_is_read() {
        let mut bytes = [0; IDENTIFY_BYTES];
        bytes[..2].copy_from_slice(&0x1d0fu16.to_le_bytes());
        bytes[4..24].copy_from_slice(b"AWS1A2B             ");
        bytes[24..64].copy_from_slice(b"Amazon EC2 NVMe Instance Storage        ");
        bytes[64..72].copy_from_slice(b"0       ");
        bytes[77] = 7;
        bytes[80..84].copy_from_slice(&[0, 4, 1, 0]);
        bytes[256] = 2;
        bytes[262] = 63;
        bytes[266..270].copy_from_slice(&[0x57, 1, 0x75, 1]);
        bytes[328] = 1 | 4;
        bytes[520] = 4 | 8 | 32;
        bytes[525] = 7;
        let it = IdentifyController::decode(&bytes);
        assert_eq!((it.vendor, it.serial.as_str()), (0x1d0f, "AWS1A2B"));
        assert_eq!(it.model, "Amazon EC2 NVMe Instance Storage");
        assert_eq!((it.transfer_bytes_max, it.version), (Some(512 << 10), (1, 4, 0)));
        assert_eq!((it.warning_kelvin, it.critical_kelvin, it.error_entries), (343, 373, 64));
        assert_eq!(it.can_sanitize, (true, false, true));
        assert!(!it.format_erases_keys);
        assert!(it.can_format && it.can_deallocate && it.can_write_zeroes && it.can_reserve);
        assert!(it.volatile_cache);
        assert_eq!(it.atomic_blocks_power_fail, 1);
    }

    #[test]
    fn absent_limits_are_no_limits() {
        let mut bytes = [0; IDENTIFY_BYTES];
        assert_eq!(IdentifyController::decode(&bytes).transfer_bytes_max, None);
        bytes[77] = 200;
        assert_eq!(IdentifyController::decode(&bytes).transfer_bytes_max, None);
    }

    #[test]
    fn a_namespace_is_read() {
        let mut bytes = [0; IDENTIFY_BYTES];
        bytes[..8].copy_from_slice(&131_072u64.to_le_bytes());
        bytes[26] = 0x20 | 1;
        // Format 17.
        bytes[128 + 17 * 4 + 2] = 12;
        let it = IdentifyNamespace::decode(&bytes);
        assert_eq!((it.blocks, it.lba_bytes, it.metadata_bytes), (131_072, Some(4096), 0));
        assert_eq!(it.format, 17);
        bytes[26] = 3;
        assert_eq!(IdentifyNamespace::decode(&bytes).lba_bytes, None);
        (bytes[99], bytes[31]) = (1, 8 | 1);
        let it = IdentifyNamespace::decode(&bytes);
        assert!(it.write_protected && it.can_reserve && it.reservations_persist);
    }
}
