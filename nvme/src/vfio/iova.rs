//! Addresses that a device knows memory by.

use super::sys::IOMMU_INFO_DWORDS;

/// `VFIO_IOMMU_INFO_CAPS`
const HAS_CAPABILITIES: u32 = 1 << 1;
/// `VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE`
const RANGES: u32 = 1;
/// Ranges and capabilities read at most; the kernel gives two or three.
const ITEMS_MAX: usize = 64;

/// Ranges start at multiples of this, so that the IOMMU can map a hugepage by one entry.
const ALIGN: u64 = 1 << 30;
/// Where there are no ranges in the answer (Linux before 5.4): below what every IOMMU has, and
/// clear of the low addresses that interrupts use.
const PLAIN: (u64, u64) = (4 << 30, (1 << 38) - 1);

/// Hands out device addresses, each once: memory stays mapped as long as its device is open.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct IovaSpace {
    /// First and last address.
    ranges: Vec<(u64, u64)>,
    next: u64,
}

impl IovaSpace {
    /// Reads the answer to `VFIO_IOMMU_GET_INFO`.
    pub(super) fn from_info(info: &[u32; IOMMU_INFO_DWORDS]) -> Self {
        let mut ranges = usable(info).unwrap_or_default();
        if ranges.is_empty() {
            ranges.push(PLAIN);
        }
        // Device address 0 looks like a mistake wherever it turns up.
        Self { ranges, next: ALIGN }
    }

    /// The next free addresses of so many bytes; `None` if there are none.
    pub(super) fn take(&mut self, bytes: u64) -> Option<u64> {
        let fits = |&(first, last): &(u64, u64)| {
            let start = self.next.max(first).checked_next_multiple_of(ALIGN)?;
            (start.checked_add(bytes)?.checked_sub(1)? <= last).then_some(start)
        };
        let start = self.ranges.iter().find_map(fits)?;
        self.next = start + bytes;
        Some(start)
    }
}

fn usable(info: &[u32; IOMMU_INFO_DWORDS]) -> Option<Vec<(u64, u64)>> {
    if info[1] & HAS_CAPABILITIES == 0 {
        return None;
    }
    let mut at = info[4] as usize / 4;
    for _ in 0..ITEMS_MAX {
        let (id, next) = (*info.get(at)? & 0xffff, *info.get(at + 1)?);
        if id == RANGES {
            let count = (*info.get(at + 2)? as usize).min(ITEMS_MAX);
            let qword =
                |at: usize| Some(u64::from(*info.get(at + 1)?) << 32 | u64::from(*info.get(at)?));
            let range = |n| Some((qword(at + 4 + 4 * n)?, qword(at + 6 + 4 * n)?));
            return (0..count).map(range).collect();
        }
        if next == 0 {
            return None;
        }
        at = next as usize / 4;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn info(ranges: &[(u64, u64)]) -> [u32; IOMMU_INFO_DWORDS] {
        let mut info = [0; IOMMU_INFO_DWORDS];
        (info[1], info[4]) = (3, 32);
        // A capability of another kind, then the ranges.
        (info[8], info[9]) = (3, 64);
        (info[16], info[17], info[18]) = (1 << 16 | RANGES, 0, ranges.len() as u32);
        for (n, (first, last)) in ranges.iter().enumerate() {
            for (k, value) in [*first, *last].into_iter().enumerate() {
                info[20 + 4 * n + 2 * k] = value as u32;
                info[21 + 4 * n + 2 * k] = (value >> 32) as u32;
            }
        }
        info
    }

    #[test]
    fn reserved_addresses_are_left_out() {
        let ranges = [(0, 0xfedf_ffff), (0xfef0_0000, (1 << 39) - 1)];
        let mut space = IovaSpace::from_info(&info(&ranges));
        assert_eq!(space.take(1 << 30), Some(1 << 30));
        assert_eq!(space.take(2 << 30), Some(4 << 30), "2 GiB do not fit before the hole");
        assert_eq!(space.take(1), Some(6 << 30));
        assert_eq!(space.take(1 << 40), None);
        assert_eq!(space.take(4096), Some(7 << 30));
        assert_eq!(IovaSpace::from_info(&[0; IOMMU_INFO_DWORDS]).take(1), Some(4 << 30));
    }

    proptest! {
        /// Whatever a kernel answers, reading it ends, and what is handed out lies in the ranges.
        #[test]
        fn any_answer_is_read(
            words in prop::collection::vec(any::<u32>(), 64),
            wants in prop::collection::vec(1u64..1 << 34, 0..20),
        ) {
            let mut answer = [0; IOMMU_INFO_DWORDS];
            answer[..64].copy_from_slice(&words);
            answer[4] %= 512;
            let mut space = IovaSpace::from_info(&answer);
            let mut last_end = 0;
            for want in wants {
                if let Some(start) = space.take(want) {
                    prop_assert!(start >= last_end);
                    last_end = start + want;
                    let holds = |r: &(u64, u64)| r.0 <= start && last_end - 1 <= r.1;
                    prop_assert!(space.ranges.iter().any(holds));
                }
            }
        }
    }
}
