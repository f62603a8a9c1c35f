//! Transfers of any offset and length, on what takes whole blocks only.
//!
//! What is not aligned is copied. The first and last block of a write that does not fill them are
//! read before, so two writers of one block must not meet: `edges`.

use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::MediaFile;

/// Addresses, offsets and lengths of transfers are multiples of this. Devices have blocks of 512
/// or 4096 bytes.
pub const ALIGN_BYTES: usize = 4096;
/// Bytes of a transfer at most, where the caller's memory is not aligned and is copied.
const BOUNCE_BYTES: usize = 1 << 20;

/// A device that is open, as far as whole blocks go. Offsets, lengths and addresses of memory are
/// multiples of [`ALIGN_BYTES`]; calls may come from several threads.
pub trait Blocks: Send + Sync {
    /// The device, for messages.
    fn path(&self) -> &Path;

    /// Bytes that it holds, in whole blocks.
    fn bytes(&self) -> u64;

    /// Fills memory from an offset. Errors: the device's.
    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of the data. Errors: the device's, also for one that is open to be read only.
    fn write(&self, data: &[u8], offset: u64) -> io::Result<()>;

    /// Makes what was written durable. Errors: the device's.
    fn sync(&self) -> io::Result<()>;

    /// The descriptor, if the kernel gave one.
    fn raw_fd(&self) -> Option<RawFd>;
}

/// A device as a file of fixed length.
pub struct AlignedFile<B: Blocks> {
    blocks: B,
    edges: Mutex<()>,
}

impl<B: Blocks> AlignedFile<B> {
    /// Takes a device.
    pub fn new(blocks: B) -> Self {
        Self { blocks, edges: Mutex::new(()) }
    }
}

impl<B: Blocks> MediaFile for AlignedFile<B> {
    fn name(&self) -> &str {
        self.blocks.path().to_str().unwrap_or("device")
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = self.blocks.bytes().saturating_sub(offset).min(buf.len() as u64) as usize;
        if left == 0 {
            return Ok(0);
        }
        if is_aligned(buf, offset) && left == buf.len() {
            return self.blocks.read(buf, offset).map(|()| left);
        }
        let (from, skip) = floor(offset);
        let wanted = (skip + left).next_multiple_of(ALIGN_BYTES).min(BOUNCE_BYTES);
        let mut bounce = Bounce::new(wanted);
        self.blocks.read(bounce.bytes(), from)?;
        let found = (wanted - skip).min(left);
        buf[..found].copy_from_slice(&bounce.bytes()[skip..skip + found]);
        Ok(found)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        if is_aligned(data, offset) {
            return self.blocks.write(data, offset);
        }
        let _edges = self.edges.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = 0;
        while done < data.len() {
            let (from, skip) = floor(offset + done as u64);
            let wanted = (skip + data.len() - done).next_multiple_of(ALIGN_BYTES).min(BOUNCE_BYTES);
            let mut bounce = Bounce::new(wanted);
            let part = (wanted - skip).min(data.len() - done);
            // What stands before and behind the data in its first and last block stays.
            for block in [0, wanted - ALIGN_BYTES] {
                let whole = block >= skip && block + ALIGN_BYTES <= skip + part;
                if !whole {
                    let edge = &mut bounce.bytes()[block..block + ALIGN_BYTES];
                    self.blocks.read(edge, from + block as u64)?;
                }
            }
            bounce.bytes()[skip..skip + part].copy_from_slice(&data[done..done + part]);
            self.blocks.write(bounce.bytes(), from)?;
            done += part;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.blocks.sync()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.blocks.bytes())
    }

    fn set_len(&self, _len_bytes: u64) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "a device keeps its length"))
    }

    fn allocate(&self, _len_bytes: u64) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "a device keeps its length"))
    }

    fn raw_fd(&self) -> Option<RawFd> {
        self.blocks.raw_fd()
    }

    fn direct_path(&self) -> Option<PathBuf> {
        Some(self.blocks.path().to_owned())
    }
}

fn is_aligned(buf: &[u8], offset: u64) -> bool {
    let whole = offset.is_multiple_of(ALIGN_BYTES as u64) && buf.len().is_multiple_of(ALIGN_BYTES);
    whole && buf.as_ptr().align_offset(ALIGN_BYTES) == 0
}

/// The border at or before an offset, and how far the offset is behind it.
fn floor(offset: u64) -> (u64, usize) {
    let skip = offset % ALIGN_BYTES as u64;
    (offset - skip, skip as usize)
}

/// Aligned memory.
struct Bounce {
    memory: Vec<u8>,
    from: usize,
    bytes: usize,
}

impl Bounce {
    fn new(bytes: usize) -> Self {
        let memory = vec![0; bytes + ALIGN_BYTES];
        let from = memory.as_ptr().align_offset(ALIGN_BYTES).min(ALIGN_BYTES);
        Self { memory, from, bytes }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.from..self.from + self.bytes]
    }
}
