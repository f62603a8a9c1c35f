//! Memory that a controller reads and writes while we do.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use super::registers::PAGE_BYTES;
use super::sys::Pages;

/// Zeroed memory of whole pages, shared with a device. Every word may change at any time, so there
/// are no references to its bytes, only loads and stores.
#[derive(Debug)]
pub struct DmaMemory {
    pages: Pages,
}

impl DmaMemory {
    /// Maps at least `bytes`. Errors: no memory.
    pub fn new(bytes: usize) -> io::Result<Self> {
        Ok(Self { pages: Pages::new(bytes.max(1).next_multiple_of(PAGE_BYTES))? })
    }

    /// Bytes, a multiple of 4096.
    pub fn bytes(&self) -> usize {
        self.words().len() * 4
    }

    /// First address in this process; a multiple of 4096.
    pub fn address(&self) -> usize {
        self.words().as_ptr() as usize
    }

    /// Reads the little-endian dword at byte `at`.
    pub fn load32(&self, at: usize) -> u32 {
        u32::from_le(self.words()[at / 4].load(Ordering::Relaxed))
    }

    /// Writes the little-endian dword at byte `at`.
    pub fn store32(&self, at: usize, value: u32) {
        self.words()[at / 4].store(value.to_le(), Ordering::Relaxed);
    }

    /// Writes the little-endian qword at byte `at`.
    pub fn store64(&self, at: usize, value: u64) {
        self.store32(at, value as u32);
        self.store32(at + 4, (value >> 32) as u32);
    }

    /// Writes whole dwords from byte `at` on; what is left over of `data` is padded with zeros.
    pub fn copy_in(&self, at: usize, data: &[u8]) {
        let words = &self.words()[at / 4..][..data.len().div_ceil(4)];
        for (word, bytes) in words.iter().zip(data.chunks(4)) {
            let mut four = [0; 4];
            four[..bytes.len()].copy_from_slice(bytes);
            word.store(u32::from_ne_bytes(four), Ordering::Relaxed);
        }
    }

    /// Reads from byte `at` on.
    pub fn copy_out(&self, at: usize, data: &mut [u8]) {
        fence(Ordering::Acquire);
        let words = &self.words()[at / 4..][..data.len().div_ceil(4)];
        for (word, bytes) in words.iter().zip(data.chunks_mut(4)) {
            let four = word.load(Ordering::Relaxed).to_ne_bytes();
            bytes.copy_from_slice(&four[..bytes.len()]);
        }
    }

    /// Zeroes `bytes` from byte `at` on.
    pub fn clear(&self, at: usize, bytes: usize) {
        for word in &self.words()[at / 4..][..bytes / 4] {
            word.store(0, Ordering::Relaxed);
        }
    }

    fn words(&self) -> &[AtomicU32] {
        self.pages.words()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_in_and_out_at_any_length() {
        let memory = DmaMemory::new(5000).unwrap();
        assert_eq!(memory.bytes(), 2 * PAGE_BYTES);
        assert!(memory.address().is_multiple_of(PAGE_BYTES));
        memory.copy_in(4096, b"flight");
        let mut found = [0; 7];
        memory.copy_out(4096, &mut found);
        assert_eq!(&found, b"flight\0");
        memory.store64(8, 0x0102_0304_0506_0708);
        assert_eq!((memory.load32(8), memory.load32(12)), (0x0506_0708, 0x0102_0304));
        memory.clear(8, 8);
        assert_eq!((memory.load32(8), memory.load32(12)), (0, 0));
    }
}
