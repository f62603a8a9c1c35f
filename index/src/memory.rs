//! What the flow table asks of the machine's memory: lines fetched ahead of their use, and large
//! pages. Both are requests without effect on what the program does.
//!
//! Invariant: no function here reads or writes memory, or keeps an address.

#![expect(unsafe_code, reason = "no safe way to prefetch or to ask for large pages")]

/// Asks for the cache line in which `slice[at]` lies. `at` may be outside of the slice.
#[inline(always)]
pub fn prefetch<T>(slice: &[T], at: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let address = slice.as_ptr().wrapping_add(at);
        // SAFETY: a prefetch is a hint: it does not fault and changes nothing, at any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (slice, at);
}

/// An allocation of `len` copies of `value`, all of it touched, in large pages where the system
/// gives some: a table that is read at random otherwise misses the TLB as often as the cache.
pub(crate) fn filled<T: Copy>(len: usize, value: T) -> Vec<T> {
    let mut memory = Vec::with_capacity(len);
    advise_large_pages(&mut memory);
    memory.resize(len, value);
    memory
}

/// Large pages begin at multiples of this.
const LARGE_PAGE_BYTES: usize = 2 << 20;

fn advise_large_pages<T>(memory: &mut Vec<T>) {
    let spare = memory.spare_capacity_mut();
    let start = spare.as_mut_ptr() as usize;
    let from = start.next_multiple_of(LARGE_PAGE_BYTES);
    let until = (start + size_of_val(spare)) / LARGE_PAGE_BYTES * LARGE_PAGE_BYTES;
    if from >= until {
        return;
    }
    let address = spare.as_mut_ptr().wrapping_byte_add(from - start);
    // SAFETY: the range lies within an allocation that this function borrows mutably; the advice
    // changes how it is mapped and not what it holds.
    let advised = unsafe {
        rustix::mm::madvise(address.cast(), until - from, rustix::mm::Advice::LinuxHugepage)
    };
    // A kernel without large pages refuses; the table is slower then, and right.
    let _ = advised;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filled_memory_holds_its_value_and_any_place_may_be_asked_for() {
        let memory = filled((5 << 20) / 8, 7u64);
        assert!(memory.iter().all(|word| *word == 7));
        prefetch(&memory, 0);
        prefetch(&memory, usize::MAX / 2);
        assert!(filled(0, 1u8).is_empty());
    }
}
