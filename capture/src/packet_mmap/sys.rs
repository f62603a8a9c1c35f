//! System calls and the mapped ring of one packet socket.
//!
//! Invariants: the mapping lives exactly as long as [`RingSocket`]; a block's bytes are lent out
//! only while its status word says that it belongs to this side, and giving it back needs `&mut`,
//! so no loan can outlive it.
//!
//! Source: packet(7), linux/if_packet.h, net/packet/af_packet.c.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::link::{check, get, set};

/// Offset of the status word in a block (`tpacket_block_desc.hdr.bh1.block_status`).
const STATUS_AT: usize = 8;
/// Milliseconds after which the kernel gives out a block that is not full.
const RETIRE_MS: u32 = 10;

/// What to open.
#[derive(Debug, Clone, Copy)]
pub(super) struct RingShape {
    /// Bytes of a block: a power of two, at least a page.
    pub(super) block_bytes: usize,
    /// Number of blocks.
    pub(super) blocks: usize,
}

/// A packet socket with its ring.
#[derive(Debug)]
pub(super) struct RingSocket {
    fd: OwnedFd,
    map: NonNull<u8>,
    shape: RingShape,
}

// SAFETY: the mapping is owned by this value alone and is not tied to a thread; all access goes
// through `&self` or `&mut self`, and the status words shared with the kernel are atomic.
unsafe impl Send for RingSocket {}

/// Kernel counters since they were last read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Statistics {
    /// Packets, those dropped included.
    pub(super) packets: u32,
    /// Packets dropped because the ring was full.
    pub(super) drops: u32,
}

/// What waiting came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waited {
    /// A block may be ready.
    Ready,
    /// Nothing came.
    Quiet,
    /// The socket has an error pending; [`RingSocket::take_error`] tells which.
    Error,
}

impl RingSocket {
    /// Gives the socket a ring and maps it.
    ///
    /// Errors: ENOMEM if the kernel has no memory for the ring; others with the name of the step.
    pub(super) fn new(fd: OwnedFd, shape: RingShape) -> Result<Self, (&'static str, io::Error)> {
        let version = libc::tpacket_versions::TPACKET_V3 as c_int;
        set(&fd, libc::SOL_PACKET, libc::PACKET_VERSION, &version)
            .map_err(|e| ("asking for TPACKET_V3", e))?;
        const FRAME_BYTES: u32 = 2048;
        let request = libc::tpacket_req3 {
            tp_block_size: shape.block_bytes as u32,
            tp_block_nr: shape.blocks as u32,
            // Frames of this version have no fixed size; the kernel only checks that these two
            // agree.
            tp_frame_size: FRAME_BYTES,
            tp_frame_nr: shape.block_bytes as u32 / FRAME_BYTES * shape.blocks as u32,
            tp_retire_blk_tov: RETIRE_MS,
            tp_sizeof_priv: 0,
            tp_feature_req_word: 0,
        };
        set(&fd, libc::SOL_PACKET, libc::PACKET_RX_RING, &request)
            .map_err(|e| ("making the ring", e))?;
        let length = shape.block_bytes * shape.blocks;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no memory of ours;
        // the length is that of the ring just made.
        let map = unsafe {
            libc::mmap(std::ptr::null_mut(), length, protection, flags, fd.as_raw_fd(), 0)
        };
        if map == libc::MAP_FAILED {
            return Err(("mapping the ring", io::Error::last_os_error()));
        }
        let Some(map) = NonNull::new(map.cast::<u8>()) else {
            return Err(("mapping the ring", io::ErrorKind::AddrNotAvailable.into()));
        };
        Ok(Self { fd, map, shape })
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Bytes of block `index` if the kernel has given it out.
    #[inline]
    pub(super) fn block(&self, index: usize) -> Option<&[u8]> {
        let status = self.status(index)?.load(Ordering::Acquire);
        if status & libc::TP_STATUS_USER == 0 {
            return None;
        }
        // SAFETY: `status` above proved `index < blocks`, so the sum lies inside the mapping.
        let start = unsafe { self.map.add(index * self.shape.block_bytes) };
        // SAFETY: the block's bytes are mapped for as long as `self` lives. The status says that
        // the kernel does not write to them until `release`, which needs `&mut self` and so waits
        // for this loan to end.
        Some(unsafe { std::slice::from_raw_parts(start.as_ptr(), self.shape.block_bytes) })
    }

    /// Gives block `index` back to the kernel.
    #[inline]
    pub(super) fn release(&mut self, index: usize) {
        if let Some(status) = self.status(index) {
            status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
        }
    }

    #[inline]
    fn status(&self, index: usize) -> Option<&AtomicU32> {
        if index >= self.shape.blocks {
            return None;
        }
        // SAFETY: `index` is below the number of blocks and a block is larger than its header, so
        // this is mapped.
        let status = unsafe { self.map.add(index * self.shape.block_bytes + STATUS_AT) };
        // SAFETY: blocks are page-aligned, so the word is aligned; it is mapped as long as `self`;
        // the kernel and this side only access it as one atomic word.
        Some(unsafe { AtomicU32::from_ptr(status.as_ptr().cast()) })
    }

    /// Lets no packet in until [`Self::open_gate`], so that nothing arrives twice while fanout is
    /// being set up.
    pub(super) fn close_gate(&self) -> io::Result<()> {
        // One instruction: `ret #0`, take no byte of any packet.
        let mut code = [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 }];
        let program = libc::sock_fprog { len: 1, filter: code.as_mut_ptr() };
        set(&self.fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
    }

    /// Undoes [`Self::close_gate`].
    pub(super) fn open_gate(&self) -> io::Result<()> {
        set(&self.fd, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0)
    }

    /// Asks for time stamps taken early: by the network card, or where the packet enters the
    /// kernel.
    pub(super) fn stamp_early(&self, hardware: bool) -> io::Result<()> {
        set(&self.fd, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, &1)?;
        let source = match hardware {
            true => libc::SOF_TIMESTAMPING_RAW_HARDWARE,
            false => libc::SOF_TIMESTAMPING_SOFTWARE,
        };
        set(&self.fd, libc::SOL_PACKET, libc::PACKET_TIMESTAMP, &(source as c_int))
    }

    /// Leaves out what this host sends; on the loopback interface each packet would come twice.
    pub(super) fn ignore_outgoing(&self) -> io::Result<()> {
        set(&self.fd, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1)
    }

    /// Starts receiving every protocol of one interface.
    pub(super) fn bind(&self, index: i32) -> io::Result<()> {
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
            sll_ifindex: index,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let length = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the pointer and length describe a live value of the type that the family asks
        // for.
        check(unsafe { libc::bind(self.fd.as_raw_fd(), (&raw const address).cast(), length) })
    }

    /// Joins the group `id` that shares an interface by flow hash, or a new one of an id nobody
    /// uses; returns the id.
    ///
    /// Fragments are not put together (no `DEFRAG`): a recorder stores what was on the wire.
    pub(super) fn join_fanout(&self, id: Option<u16>, ignore_outgoing: bool) -> io::Result<u16> {
        let mut kind = libc::PACKET_FANOUT_HASH;
        if ignore_outgoing {
            kind |= libc::PACKET_FANOUT_FLAG_IGNORE_OUTGOING;
        }
        if id.is_none() {
            kind |= libc::PACKET_FANOUT_FLAG_UNIQUEID;
        }
        let argument = u32::from(id.unwrap_or(0)) | kind << 16;
        set(&self.fd, libc::SOL_PACKET, libc::PACKET_FANOUT, &argument)?;
        let got: u32 = get(&self.fd, libc::SOL_PACKET, libc::PACKET_FANOUT)?;
        Ok(got as u16)
    }

    /// Reads the kernel's counters, which start again from 0.
    pub(super) fn statistics(&self) -> io::Result<Statistics> {
        let [packets, drops, _freezes]: [u32; 3] =
            get(&self.fd, libc::SOL_PACKET, libc::PACKET_STATISTICS)?;
        Ok(Statistics { packets, drops })
    }

    /// The error that the socket has pending, if any; it is pending no more.
    pub(super) fn take_error(&self) -> io::Result<Option<io::Error>> {
        let number: c_int = get(&self.fd, libc::SOL_SOCKET, libc::SO_ERROR)?;
        Ok((number != 0).then(|| io::Error::from_raw_os_error(number)))
    }

    /// Sleeps until a block is ready, an error is pending, or the time is over.
    pub(super) fn wait(&self, wait: Duration) -> io::Result<Waited> {
        let events = libc::POLLIN | libc::POLLERR;
        let mut entry = libc::pollfd { fd: self.fd.as_raw_fd(), events, revents: 0 };
        let limit = libc::timespec {
            tv_sec: wait.as_secs().min(3600).cast_signed(),
            tv_nsec: wait.subsec_nanos().into(),
        };
        // SAFETY: one entry is passed with the count 1, the time is a live value, no signal mask is
        // given.
        let ready = unsafe { libc::ppoll(&mut entry, 1, &limit, std::ptr::null()) };
        match check(ready) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Waited::Quiet),
            Err(error) => Err(error),
            Ok(()) if entry.revents & libc::POLLERR != 0 => Ok(Waited::Error),
            Ok(()) if ready == 0 => Ok(Waited::Quiet),
            Ok(()) => Ok(Waited::Ready),
        }
    }
}

impl Drop for RingSocket {
    fn drop(&mut self) {
        let length = self.shape.block_bytes * self.shape.blocks;
        // SAFETY: exactly the mapping made in `new`; nothing borrows from it, because this value is
        // being dropped.
        unsafe { libc::munmap(self.map.as_ptr().cast(), length) };
    }
}
