//! The one call on a block device that no crate has without `unsafe`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `_IO(0x12, 119)` (Linux `include/uapi/linux/fs.h`).
const BLKDISCARD: libc::Ioctl = 0x1277;

/// Tells a block device, which was opened for writing, that these bytes are not wanted any more.
///
/// Errors: the system's own; `EOPNOTSUPP` where the device takes no such order.
pub(super) fn discard(device: &File, offset: u64, bytes: u64) -> io::Result<()> {
    let range = [offset, bytes];
    // SAFETY: the file is open; the request reads two numbers of 64 bits, which live through the
    // call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), BLKDISCARD, range.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
