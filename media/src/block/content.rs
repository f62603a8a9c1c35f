//! What stands on a device that is no volume, in words.

/// Offset, bytes that stand there, and whose they are. In the order of trust: partition tables are
/// looked for last, for boot sectors of file systems carry their mark.
const SIGNATURES: &[(usize, &[u8], &str)] = &[
    (0, b"WVDEVICE", "a damaged label of a volume"),
    (0, b"XFSB", "an XFS file system"),
    (1080, &[0x53, 0xef], "an ext2, ext3 or ext4 file system"),
    (65_600, b"_BHRfS_M", "a btrfs file system"),
    (0, b"LUKS\xba\xbe", "an encrypted (LUKS) device"),
    (512, b"LABELONE", "a physical volume of LVM"),
    (4086, b"SWAPSPACE2", "swap space"),
    (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "a member of a RAID"),
    (3, b"NTFS    ", "an NTFS file system"),
    (512, b"EFI PART", "a partition table (GPT)"),
    (4096, b"EFI PART", "a partition table (GPT)"),
    (510, &[0x55, 0xaa], "a partition table or boot sector"),
];

/// Names what begins with these bytes.
pub(super) fn name(start: &[u8]) -> &'static str {
    let stands = |(at, bytes, _): &&(usize, &[u8], &str)| {
        start.get(*at..at + bytes.len()).is_some_and(|found| found == *bytes)
    };
    SIGNATURES.iter().find(stands).map_or("data of an unknown kind", |(_, _, whose)| whose)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_signature_is_found_where_it_stands() {
        for (at, bytes, whose) in SIGNATURES {
            let mut start = vec![0; 1 << 17];
            start[*at..at + bytes.len()].copy_from_slice(bytes);
            assert_eq!(name(&start), *whose);
        }
        assert_eq!(name(&[1; 100]), "data of an unknown kind");
        assert_eq!(name(&[]), "data of an unknown kind");
    }
}
