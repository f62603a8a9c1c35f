//! The system call.
//!
//! # Invariants
//! - The kernel writes to the caller's memory during the call only, and not more than the command
//!   says.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::spec::command::{COMMAND_BYTES, Command};

/// `_IOWR('N', 0x41, struct nvme_passthru_cmd)` (Linux `include/uapi/linux/nvme_ioctl.h`).
const NVME_IOCTL_ADMIN_CMD: u64 = 0xc048_4e41;

/// `struct nvme_passthru_cmd`.
#[repr(C, align(8))]
struct Argument([u8; COMMAND_BYTES]);

/// Carries an admin command out that fills `data`, which the caller made as long as the command
/// says. Gives its status. Errors: the system's.
pub(super) fn admin(node: &File, command: &Command, data: &mut [u8]) -> io::Result<u16> {
    assert_eq!(data.len(), command.data_bytes as usize, "the kernel goes by the command");
    let mut argument = Argument(command.encode(data.as_mut_ptr() as u64));
    // SAFETY: the node is open; the argument has the size that is part of the request's number, and
    // it names `data`, which is borrowed through the call, with its length (asserted above).
    let result = unsafe {
        libc::ioctl(node.as_raw_fd(), NVME_IOCTL_ADMIN_CMD as libc::Ioctl, &raw mut argument)
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // A status has 15 bits.
    u16::try_from(result).map_err(|_| io::Error::other("the kernel gave what is no status"))
}
