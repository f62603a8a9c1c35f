//! Packet sockets: one that sends many frames with one system call, and a ring to read from. And
//! memory that is given back.
//!
//! Invariants: the message headers hold addresses only within one call of [`RawSocket::send`]; the
//! frames that they name are borrowed for that call. A block of a [`PacketRing`] is lent out only
//! while the kernel has handed it over, and what is lent out borrows the ring, so it ends before
//! the block is given back.

use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

/// Frames of one call.
pub(crate) const FRAMES_MAX: usize = 64;
/// Bytes of a ring's block.
const BLOCK_BYTES: usize = 1 << 20;
/// Age at which the kernel hands over a block that is not full, as the recorder has it.
const BLOCK_AGE_MS: u32 = 10;
/// Offset of `block_status` in a block (`linux/if_packet.h`, `tpacket_block_desc`).
const STATUS_AT: usize = 8;

/// A socket bound to one interface; frames go past its queueing discipline.
pub(crate) struct RawSocket(OwnedFd);

/// A TPACKET_V3 ring of one interface.
pub(crate) struct PacketRing {
    socket: OwnedFd,
    memory: *mut u8,
    blocks: usize,
}

/// Gives what the allocator keeps of freed memory back to the system. It keeps what the threads of
/// an ended pipeline freed, which then counts as the next one's.
pub(crate) fn give_memory_back() {
    // SAFETY: the call takes no memory of ours; it may be made by any thread at any time.
    unsafe { libc::malloc_trim(0) };
}

impl RawSocket {
    /// On an interface of the calling thread's namespace.
    pub(crate) fn on(interface: &str) -> io::Result<Self> {
        let socket = packet_socket()?;
        let on: libc::c_int = 1;
        set_option(&socket, libc::PACKET_QDISC_BYPASS, &on)?;
        bind(&socket, interface, 0)?;
        Ok(Self(socket))
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

impl PacketRing {
    /// Of so many blocks of one MiB, on an interface of the calling thread's namespace.
    pub(crate) fn on(interface: &str, blocks: usize) -> io::Result<Self> {
        let socket = packet_socket()?;
        let version = libc::tpacket_versions::TPACKET_V3 as libc::c_int;
        set_option(&socket, libc::PACKET_VERSION, &version)?;
        let frame_bytes = 2048;
        let shape = libc::tpacket_req3 {
            tp_block_size: BLOCK_BYTES as u32,
            tp_block_nr: blocks as u32,
            tp_frame_size: frame_bytes,
            tp_frame_nr: (blocks * BLOCK_BYTES) as u32 / frame_bytes,
            tp_retire_blk_tov: BLOCK_AGE_MS,
            tp_sizeof_priv: 0,
            tp_feature_req_word: 0,
        };
        set_option(&socket, libc::PACKET_RX_RING, &shape)?;
        // SAFETY: a new mapping of as many bytes as the ring was just given; nothing is replaced.
        let memory = unsafe {
            libc::mmap(
                ptr::null_mut(),
                blocks * BLOCK_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                socket.as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let ring = Self { socket, memory: memory.cast(), blocks };
        bind(&ring.socket, interface, (libc::ETH_P_ALL as u16).to_be())?;
        Ok(ring)
    }

    pub(crate) fn blocks(&self) -> usize {
        self.blocks
    }

    /// The block, if the kernel has handed it over.
    pub(crate) fn block(&self, at: usize) -> Option<&[u8]> {
        let handed_over = self.status(at).load(Ordering::Acquire) & libc::TP_STATUS_USER != 0;
        // SAFETY: the block is within the mapping, and the kernel does not write to it until
        // `give_back`, which the borrow of the ring keeps away.
        handed_over.then(|| unsafe { std::slice::from_raw_parts(self.start(at), BLOCK_BYTES) })
    }

    /// Lets the kernel have the block again.
    pub(crate) fn give_back(&mut self, at: usize) {
        self.status(at).store(libc::TP_STATUS_KERNEL, Ordering::Release);
    }

    fn start(&self, at: usize) -> *mut u8 {
        assert!(at < self.blocks, "block {at} of {}", self.blocks);
        // SAFETY: the mapping has `blocks` blocks, and `at` is one of them.
        unsafe { self.memory.add(at * BLOCK_BYTES) }
    }

    fn status(&self, at: usize) -> &AtomicU32 {
        // SAFETY: the field lies within the block.
        let field = unsafe { self.start(at).add(STATUS_AT) };
        // SAFETY: blocks are pages, so the field is aligned; the mapping lives as long as the ring,
        // and kernel and we read and write this word as a whole.
        unsafe { AtomicU32::from_ptr(field.cast()) }
    }
}

impl AsFd for PacketRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for PacketRing {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, of this length, and nothing borrows it any more.
        unsafe { libc::munmap(self.memory.cast(), self.blocks * BLOCK_BYTES) };
    }
}

/// A packet socket that takes nothing until it is bound to a protocol.
fn packet_socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets an option of packet sockets; `T` is the type that the option takes.
fn set_option<T>(socket: &OwnedFd, option: libc::c_int, value: &T) -> io::Result<()> {
    let (value, bytes) = (ptr::from_ref(value).cast(), mem::size_of_val(value));
    let fd = socket.as_raw_fd();
    // SAFETY: pointer and length describe a live value of the type that the option takes.
    let set = unsafe { libc::setsockopt(fd, libc::SOL_PACKET, option, value, bytes as u32) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Binds to an interface of the thread's namespace; the protocol in network byte order, 0 for none.
fn bind(socket: &OwnedFd, interface: &str, protocol: u16) -> io::Result<()> {
    let name = CString::new(interface)?;
    // SAFETY: the name is zero-terminated and lives until the call returns.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol,
        sll_ifindex: index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = mem::size_of_val(&address) as libc::socklen_t;
    // SAFETY: pointer and length describe a live value of the type that the family takes.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if bound == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
