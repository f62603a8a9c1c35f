//! A raw socket that sends many frames with one system call.
//!
//! Invariant: the message headers hold addresses only within one call of [`RawSocket::send`]; the
//! frames that they name are borrowed for that call.

use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Frames of one call.
pub(crate) const FRAMES_MAX: usize = 64;

/// A socket bound to one interface; frames go past its queueing discipline.
pub(crate) struct RawSocket(OwnedFd);

impl RawSocket {
    /// On an interface of the calling thread's namespace.
    pub(crate) fn on(interface: &str) -> io::Result<Self> {
        let name = CString::new(interface)?;
        // SAFETY: the name is zero-terminated and lives until the call returns.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: no pointers are passed.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let on: libc::c_int = 1;
        // SAFETY: pointer and length describe a live value of the type that the option takes.
        let set = unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_QDISC_BYPASS,
                (&raw const on).cast(),
                mem::size_of_val(&on) as libc::socklen_t,
            )
        };
        if set != 0 {
            return Err(io::Error::last_os_error());
        }
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: 0,
            sll_ifindex: index.cast_signed(),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let length = mem::size_of_val(&address) as libc::socklen_t;
        // SAFETY: pointer and length describe a live value of the type that the family takes.
        let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) };
        if bound != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(fd))
    }

    /// Sends at most [`FRAMES_MAX`] frames; gives how many the kernel took.
    pub(crate) fn send(&self, frames: &[Vec<u8>]) -> io::Result<usize> {
        let count = frames.len().min(FRAMES_MAX);
        let mut parts: [libc::iovec; FRAMES_MAX] = std::array::from_fn(|at| {
            let frame = frames.get(at).map_or(&[][..], Vec::as_slice);
            // The kernel only reads what it sends.
            libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() }
        });
        let mut messages: [libc::mmsghdr; FRAMES_MAX] = std::array::from_fn(|at| {
            // SAFETY: every field of the header is a number or a pointer, for which zero is valid.
            let mut message: libc::mmsghdr = unsafe { mem::zeroed() };
            message.msg_hdr.msg_iov = &raw mut parts[at];
            message.msg_hdr.msg_iovlen = 1;
            message
        });
        let fd = self.0.as_raw_fd();
        // SAFETY: the first `count` headers each name one part, and each part a live frame; all of
        // them outlive the call.
        let sent = unsafe { libc::sendmmsg(fd, messages.as_mut_ptr(), count as u32, 0) };
        match sent {
            0.. => Ok(sent as usize),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
