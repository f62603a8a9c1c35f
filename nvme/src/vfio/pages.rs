//! Transfers cut to what a device takes, and the lists of pages that name their memory (NVM Express
//! Base Specification 2.0, section 4.1.1).

use wirevault_format::limits::CHUNK_BYTES;

use super::memory::DmaMemory;
use super::registers::PAGE_BYTES;

/// Bytes of one command's list: an entry for every page of a chunk. A list that starts at a
/// multiple of this never crosses a page, so it needs no pointer to a second one.
pub(super) const LIST_BYTES: usize = CHUNK_BYTES / PAGE_BYTES * 8;

const _: () = assert!(PAGE_BYTES.is_multiple_of(LIST_BYTES), "a list lies within one page");

/// Writes the list of the `bytes` at device address `data` to byte `at` of `lists`, which the
/// device knows as `list`, and gives the two entries for the command.
///
/// `data` is a multiple of [`PAGE_BYTES`], `bytes` 1 to `CHUNK_BYTES`.
pub(super) fn name(lists: &DmaMemory, at: usize, list: u64, data: u64, bytes: usize) -> (u64, u64) {
    let page = PAGE_BYTES as u64;
    match bytes.div_ceil(PAGE_BYTES) {
        0 | 1 => (data, 0),
        2 => (data, data + page),
        pages => {
            for n in 1..pages {
                lists.store64(at + (n - 1) * 8, data + n as u64 * page);
            }
            (data, list)
        }
    }
}

/// The next piece of a transfer of which `done` of `bytes` are submitted: its length, at most
/// `bytes_max`.
pub(super) fn piece(done: usize, bytes: usize, bytes_max: usize) -> usize {
    (bytes - done).min(bytes_max)
}

/// Bytes one command may carry: the device's limit or ours, in whole pages.
pub(super) fn transfer_bytes_max(device: Option<u64>) -> usize {
    let bytes = device.unwrap_or(u64::MAX).min(CHUNK_BYTES as u64) as usize;
    (bytes - bytes % PAGE_BYTES).max(PAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The pages a device finds, as the specification tells it to look.
    fn walk(lists: &DmaMemory, at: usize, (first, second): (u64, u64), bytes: usize) -> Vec<u64> {
        let pages = bytes.div_ceil(PAGE_BYTES);
        let mut found = vec![first];
        match pages {
            1 => {}
            2 => found.push(second),
            _ => found.extend((0..pages - 1).map(|n| {
                let (low, high) = (lists.load32(at + n * 8), lists.load32(at + n * 8 + 4));
                u64::from(high) << 32 | u64::from(low)
            })),
        }
        found
    }

    proptest! {
        #[test]
        fn every_page_is_named_once(page in 0u64..1 << 30, bytes in 1usize..=CHUNK_BYTES) {
            let lists = DmaMemory::new(2 * PAGE_BYTES).unwrap();
            let at = 3 * LIST_BYTES;
            let data = page * PAGE_BYTES as u64;
            let list = 0x7000_0000 + at as u64;
            let entries = name(&lists, at, list, data, bytes);
            let pages = bytes.div_ceil(PAGE_BYTES);
            if pages > 2 {
                prop_assert_eq!(entries.1, list);
            }
            let expected: Vec<_> = (0..pages).map(|n| data + (n * PAGE_BYTES) as u64).collect();
            prop_assert_eq!(walk(&lists, at, entries, bytes), expected);
            prop_assert_eq!(lists.load32(at + LIST_BYTES), 0, "the next list is untouched");
        }

        #[test]
        fn pieces_cover_a_transfer(blocks in 1usize..=64, mdts in 0u32..12) {
            let (bytes, max) = (blocks * 4096, transfer_bytes_max(Some(4096 << mdts)));
            let mut done = 0;
            while done < bytes {
                let piece = piece(done, bytes, max);
                prop_assert!(piece > 0 && piece <= max && piece.is_multiple_of(4096));
                done += piece;
            }
            prop_assert_eq!(done, bytes);
        }
    }

    #[test]
    fn limits_are_the_smaller_ones() {
        assert_eq!(transfer_bytes_max(None), CHUNK_BYTES);
        assert_eq!(transfer_bytes_max(Some(8192)), 8192);
        assert_eq!(transfer_bytes_max(Some(128 << 10)), 128 << 10);
        assert_eq!(transfer_bytes_max(Some(1 << 30)), CHUNK_BYTES);
    }
}
