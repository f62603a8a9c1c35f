//! One AF_XDP socket: its packet memory (UMEM), its rings, and the system calls around them.
//!
//! ```text
//!  fill ring ──► frames that the kernel may write to ──► receive ring ──► frames to read
//!      ▲                                                                        │
//!      └──────────────── given back when the packets in them were taken ◄───────┘
//! ```
//! Invariants: a frame is on one side at a time. It is lent out only while it stands in the receive
//! ring, and giving it back needs `&mut`, so no loan can outlive it. Every address that the kernel
//! names is checked against the memory. Memory and rings live as long as [`Queue`]; the memory is
//! an arena that no pool was made of, so nobody else reads or writes it.
//!
//! Source: Linux Documentation/networking/af_xdp.rst, linux/if_xdp.h.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use wirevault_buffer::Arena;

use super::program::Stamp;
use crate::link::{check, get, set};

/// Bytes of a frame that a card may write to itself: drivers take no other size than a page of 4
/// KiB. A longer packet comes in several frames.
pub(super) const PAGE_FRAME_BYTES: usize = 4096;
/// Bytes of a frame that the kernel copies a usual packet to; it takes no smaller ones. Twice as
/// many bridge twice the time.
pub(super) const SMALL_FRAME_BYTES: usize = 2048;
/// The completion ring is of no use to a receiver, but a socket without one cannot be bound.
const COMPLETIONS: u32 = 64;
const DESCRIPTOR_BYTES: usize = size_of::<libc::xdp_desc>();
/// Microseconds that a system call polls the card for.
const BUSY_POLL_US: c_int = 20;
/// Packets that it takes at most.
const BUSY_POLL_PACKETS: c_int = 64;

/// How a socket is tied to its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Binding {
    /// The card writes into our memory; otherwise the kernel copies.
    pub(super) zero_copy: bool,
    /// Packets longer than a frame are taken.
    pub(super) fragments: bool,
}

impl Binding {
    /// From best to worst.
    pub(super) const ALL: [Self; 4] = [
        Self { zero_copy: true, fragments: true },
        Self { zero_copy: true, fragments: false },
        Self { zero_copy: false, fragments: true },
        Self { zero_copy: false, fragments: false },
    ];
}

/// The kernel's counters of a socket since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Statistics {
    /// Packets that found no free frame, or were too long.
    pub(super) dropped: u64,
    /// Packets that found the receive ring full.
    pub(super) ring_full: u64,
    /// Times that no frame was free. With copies these are among `dropped`; without, they are
    /// events, and the card alone knows of how many packets.
    pub(super) no_frame: u64,
    /// Frames that we gave back and that the kernel did not accept.
    pub(super) invalid: u64,
}

/// One entry of the receive ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    at: usize,
    bytes: usize,
    /// The packet goes on in the next entry.
    pub(super) continued: bool,
}

/// A socket with its rings and its memory.
#[derive(Debug)]
pub(super) struct Queue {
    fd: OwnedFd,
    receive: Ring,
    fill: Ring,
    /// First entry of the receive ring that was not given back yet.
    next: u32,
    /// Entries put into the fill ring so far.
    filled: u32,
    frames: u32,
    /// A power of two.
    frame_bytes: usize,
    memory: NonNull<u8>,
    memory_bytes: usize,
    _arena: Arena,
}

// SAFETY: mappings and memory are owned by this value (the arena by a handle of it) and not tied to
// a thread; access goes through `&self` or `&mut self`, and the words that are shared with the
// kernel are atomic.
unsafe impl Send for Queue {}

/// One mapped ring. Its counters run freely; a place is a counter modulo the size.
#[derive(Debug)]
struct Ring {
    map: NonNull<u8>,
    map_bytes: usize,
    offsets: RingOffsets,
    size: u32,
}

#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct RingOffsets {
    producer: u64,
    consumer: u64,
    descriptors: u64,
    flags: u64,
}

impl Queue {
    /// Makes a socket whose memory is `frames` frames of the arena, from frame `first` on. All are
    /// free. `frames` is a power of two, `frame_bytes` one of those above.
    ///
    /// Errors: with the name of the step.
    pub(super) fn new(
        arena: &Arena,
        first: usize,
        frames: u32,
        frame_bytes: usize,
    ) -> Result<Self, (&'static str, io::Error)> {
        // SAFETY: no pointers are passed.
        let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        check(fd).map_err(|e| ("opening an AF_XDP socket", e))?;
        // SAFETY: the descriptor was just made and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let memory_bytes = frames as usize * frame_bytes;
        let start = arena.regions().first().map_or(0, |region| region.address);
        let outside = || ("cutting its memory", io::ErrorKind::InvalidInput.into());
        if (first * frame_bytes).saturating_add(memory_bytes) > arena.report().bytes {
            return Err(outside());
        }
        let memory = std::ptr::with_exposed_provenance_mut(start + first * frame_bytes);
        let memory = NonNull::new(memory).ok_or_else(outside)?;
        let region = libc::xdp_umem_reg {
            addr: memory.as_ptr() as u64,
            len: memory_bytes as u64,
            chunk_size: frame_bytes as u32,
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        };
        set(&fd, libc::SOL_XDP, libc::XDP_UMEM_REG, &region)
            .map_err(|e| ("registering packet memory", e))?;
        for (ring, entries) in [
            (libc::XDP_UMEM_FILL_RING, frames),
            (libc::XDP_UMEM_COMPLETION_RING, COMPLETIONS),
            (libc::XDP_RX_RING, frames),
        ] {
            set(&fd, libc::SOL_XDP, ring, &entries).map_err(|e| ("making a ring", e))?;
        }
        // Receive, transmit, fill, completion.
        let offsets: [RingOffsets; 4] = get(&fd, libc::SOL_XDP, libc::XDP_MMAP_OFFSETS)
            .map_err(|e| ("asking where the rings are", e))?;
        let map = |offsets, at, bytes| Ring::map(&fd, offsets, frames, at, bytes);
        let fill_at = libc::XDP_UMEM_PGOFF_FILL_RING as libc::off_t;
        let receive = map(offsets[0], libc::XDP_PGOFF_RX_RING, DESCRIPTOR_BYTES)?;
        let fill = map(offsets[2], fill_at, size_of::<u64>())?;
        let _arena = arena.clone();
        let (next, filled) = (0, 0);
        let mut queue = Self {
            fd,
            receive,
            fill,
            next,
            filled,
            frames,
            frame_bytes,
            memory,
            memory_bytes,
            _arena,
        };
        for frame in 0..frames {
            queue.put_free(frame as usize * frame_bytes);
        }
        queue.publish_free();
        Ok(queue)
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Where in its frame a place of the memory is.
    #[inline]
    fn in_frame(&self, at: usize) -> usize {
        at & (self.frame_bytes - 1)
    }

    /// Bytes of a frame.
    pub(super) fn frame_bytes(&self) -> usize {
        self.frame_bytes
    }

    /// Frames of its memory, and entries of each ring.
    pub(super) fn frames(&self) -> u32 {
        self.frames
    }

    /// Ties the socket to a queue in the best way that its driver knows. Errors: the kernel's
    /// answer to the plainest way.
    pub(super) fn bind(&self, interface: i32, queue: u32, ways: &[Binding]) -> io::Result<Binding> {
        let mut result = Err(io::ErrorKind::Unsupported.into());
        for way in ways {
            let copy = if way.zero_copy { libc::XDP_ZEROCOPY } else { libc::XDP_COPY };
            let fragments = if way.fragments { libc::XDP_USE_SG } else { 0 };
            let address = libc::sockaddr_xdp {
                sxdp_family: libc::AF_XDP as u16,
                sxdp_flags: copy | fragments | libc::XDP_USE_NEED_WAKEUP,
                sxdp_ifindex: interface.cast_unsigned(),
                sxdp_queue_id: queue,
                sxdp_shared_umem_fd: 0,
            };
            let length = size_of_val(&address) as libc::socklen_t;
            // SAFETY: pointer and length describe a live value of the type that the family asks
            // for.
            let bound =
                unsafe { libc::bind(self.fd.as_raw_fd(), (&raw const address).cast(), length) };
            match check(bound) {
                Ok(()) => return Ok(*way),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Err(error),
                Err(error) => result = Err(error),
            }
        }
        result
    }

    /// Has system calls of this socket poll the card themselves; `false` if the kernel refuses.
    pub(super) fn poll_busily(&self) -> bool {
        let set = |name, value: c_int| set(&self.fd, libc::SOL_SOCKET, name, &value).is_ok();
        set(libc::SO_PREFER_BUSY_POLL, 1)
            && set(libc::SO_BUSY_POLL, BUSY_POLL_US)
            && set(libc::SO_BUSY_POLL_BUDGET, BUSY_POLL_PACKETS)
    }

    /// Number of entries that wait in the receive ring.
    #[inline]
    pub(super) fn waiting(&self) -> u32 {
        // More than the ring holds is a lie; what is read then is checked entry by entry.
        self.receive.producer().load(Ordering::Acquire).wrapping_sub(self.next).min(self.frames)
    }

    /// The entry that is `ahead` of the first; `None` if it is not there, or lies outside of the
    /// memory or across two frames.
    #[inline]
    pub(super) fn entry(&self, ahead: u32) -> Option<Entry> {
        let descriptor = self.receive.descriptor(self.next.wrapping_add(ahead));
        let (at, bytes) = (usize::try_from(descriptor.addr).ok()?, descriptor.len as usize);
        let fits = at < self.memory_bytes && self.in_frame(at) + bytes <= self.frame_bytes;
        let continued = descriptor.options & libc::XDP_PKT_CONTD != 0;
        fits.then_some(Entry { at, bytes, continued })
    }

    /// Has the processor fetch the beginning and the stamp of an entry that will be read soon.
    /// Frames lie far apart, so each is a miss otherwise.
    #[inline]
    pub(super) fn prefetch(&self, ahead: u32) {
        let Some(entry) = self.entry(ahead) else { return };
        #[cfg(target_arch = "x86_64")]
        for at in [entry.at.saturating_sub(Stamp::BYTES), entry.at] {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: `entry` made sure that the place lies in the memory.
            let line = unsafe { self.memory.add(at) };
            // SAFETY: a hint; it reads nothing that the program sees, and cannot fault.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = entry;
    }

    /// Bytes of an entry that waits.
    #[inline]
    pub(super) fn bytes(&self, entry: Entry) -> &[u8] {
        // SAFETY: `entry` made sure that the place lies in the memory.
        let start = unsafe { self.memory.add(entry.at) };
        // SAFETY: `entry` made sure that all bytes lie in one frame of the memory, which `_arena`
        // keeps mapped and which zeros initialised. The frame stands in the receive ring, so the
        // kernel does not write to it until `give_back`, which needs `&mut self` and so waits for
        // this loan to end.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), entry.bytes) }
    }

    /// What the program wrote before the entry's bytes.
    #[inline]
    pub(super) fn stamp(&self, entry: Entry) -> Option<Stamp> {
        let bytes = self.in_frame(entry.at).min(Stamp::CARD_BYTES);
        Stamp::read(self.bytes(Entry { at: entry.at - bytes, bytes, continued: false }))
    }

    /// Gives the first `count` waiting entries back. Their stamps are wiped: a later packet that
    /// gets none must not be read with an old one.
    pub(super) fn give_back(&mut self, count: u32) {
        for ahead in 0..count.min(self.waiting()) {
            let descriptor = self.receive.descriptor(self.next.wrapping_add(ahead));
            let at = descriptor.addr as usize;
            let frame = at - self.in_frame(at);
            if frame >= self.memory_bytes {
                continue;
            }
            if at - frame >= Stamp::BYTES {
                // SAFETY: the place lies `Stamp::BYTES` or more into a frame of the memory.
                let mark = unsafe { self.memory.add(at - Stamp::BYTES) };
                // SAFETY: these bytes are in that frame, which is on our side; no loan is out,
                // because this method borrows exclusively.
                unsafe { mark.cast::<[u8; Stamp::BYTES]>().write([0; Stamp::BYTES]) };
            }
            self.put_free(frame);
        }
        self.next = self.next.wrapping_add(count.min(self.waiting()));
        self.publish_free();
        self.receive.consumer().store(self.next, Ordering::Release);
    }

    fn put_free(&mut self, frame: usize) {
        let at = (self.filled & (self.fill.size - 1)) as usize * size_of::<u64>();
        // SAFETY: the place is below the ring's size, so it lies in the mapping.
        let entry = unsafe { self.fill.map.add(self.fill.offsets.descriptors as usize + at) };
        // SAFETY: entries are aligned words. There are as many places as frames, and a frame is in
        // the ring once at most, so the kernel has read what stood here.
        unsafe { entry.cast::<u64>().write(frame as u64) };
        self.filled = self.filled.wrapping_add(1);
    }

    fn publish_free(&self) {
        self.fill.producer().store(self.filled, Ordering::Release);
    }

    /// The kernel's counters.
    pub(super) fn statistics(&self) -> io::Result<Statistics> {
        // `xdp_statistics`: dropped, two of invalid descriptors, ring full, no frame, and one of
        // the transmit ring.
        let [dropped, invalid, _, ring_full, no_frame, _]: [u64; 6] =
            get(&self.fd, libc::SOL_XDP, libc::XDP_STATISTICS)?;
        Ok(Statistics { dropped, ring_full, no_frame, invalid })
    }

    /// The error that the socket has pending, if any; it is pending no more.
    pub(super) fn take_error(&self) -> io::Result<Option<io::Error>> {
        let number: c_int = get(&self.fd, libc::SOL_SOCKET, libc::SO_ERROR)?;
        Ok((number != 0).then(|| io::Error::from_raw_os_error(number)))
    }

    /// Has the kernel look at the rings, if it asks for that or `always`.
    pub(super) fn wake(&self, always: bool) {
        if always || self.fill.flags().load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0 {
            let (nowhere, flags) = (std::ptr::null_mut(), libc::MSG_DONTWAIT);
            let (address, length) = (std::ptr::null_mut(), std::ptr::null_mut());
            // SAFETY: no buffer and no address are given, so nothing is written. A failure is an
            // empty ring.
            unsafe { libc::recvfrom(self.fd.as_raw_fd(), nowhere, 0, flags, address, length) };
        }
    }
}

/// Sleeps until a socket has packets or an error, or the time is over.
pub(super) fn wait<'a>(
    queues: impl Iterator<Item = &'a Queue>,
    room: &mut Vec<libc::pollfd>,
    wait: Duration,
) -> io::Result<()> {
    room.clear();
    room.extend(queues.map(|queue| libc::pollfd {
        fd: queue.fd.as_raw_fd(),
        events: libc::POLLIN | libc::POLLERR,
        revents: 0,
    }));
    let limit = libc::timespec {
        tv_sec: wait.as_secs().min(3600).cast_signed(),
        tv_nsec: wait.subsec_nanos().into(),
    };
    let count = room.len() as libc::nfds_t;
    // SAFETY: as many live entries are passed as is said, the time is a live value, no signal mask
    // is given.
    match check(unsafe { libc::ppoll(room.as_mut_ptr(), count, &limit, std::ptr::null()) }) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        other => other,
    }
}

/// Nanoseconds by which CLOCK_TAI is ahead of Unix time: whole seconds, 0 until somebody tells the
/// kernel of leap seconds.
pub(super) fn tai_ahead_ns() -> i64 {
    const SECOND_NS: i64 = 1_000_000_000;
    let read = |clock| {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: writes one live timespec.
        unsafe { libc::clock_gettime(clock, &mut now) };
        now.tv_sec * SECOND_NS + now.tv_nsec
    };
    let ahead = read(libc::CLOCK_TAI) - read(libc::CLOCK_REALTIME);
    (ahead + SECOND_NS / 2).div_euclid(SECOND_NS) * SECOND_NS
}

impl Ring {
    fn map(
        fd: &OwnedFd,
        offsets: RingOffsets,
        size: u32,
        at: libc::off_t,
        entry_bytes: usize,
    ) -> Result<Self, (&'static str, io::Error)> {
        let map_bytes = offsets.descriptors as usize + size as usize * entry_bytes;
        let words = [offsets.producer, offsets.consumer, offsets.flags];
        let fits = |word: &u64| word.is_multiple_of(4) && *word as usize + 4 <= map_bytes;
        if !words.iter().all(fits) || !offsets.descriptors.is_multiple_of(8) {
            return Err(("mapping a ring", io::ErrorKind::InvalidData.into()));
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no memory of ours;
        // the length is that of the ring just made.
        let map = unsafe {
            libc::mmap(std::ptr::null_mut(), map_bytes, protection, flags, fd.as_raw_fd(), at)
        };
        if map == libc::MAP_FAILED {
            return Err(("mapping a ring", io::Error::last_os_error()));
        }
        match NonNull::new(map.cast::<u8>()) {
            Some(map) => Ok(Self { map, map_bytes, offsets, size }),
            None => Err(("mapping a ring", io::ErrorKind::AddrNotAvailable.into())),
        }
    }

    fn producer(&self) -> &AtomicU32 {
        self.word(self.offsets.producer)
    }

    fn consumer(&self) -> &AtomicU32 {
        self.word(self.offsets.consumer)
    }

    fn flags(&self) -> &AtomicU32 {
        self.word(self.offsets.flags)
    }

    #[inline]
    fn word(&self, offset: u64) -> &AtomicU32 {
        // SAFETY: `map` made sure that the word lies in the mapping.
        let word = unsafe { self.map.add(offset as usize) };
        // SAFETY: aligned, as `map` made sure; mapped as long as `self`; the kernel and this side
        // only access it as one atomic word.
        unsafe { AtomicU32::from_ptr(word.as_ptr().cast()) }
    }

    /// What the kernel last wrote to a place of the receive ring.
    #[inline]
    fn descriptor(&self, counter: u32) -> libc::xdp_desc {
        let at = (counter & (self.size - 1)) as usize * DESCRIPTOR_BYTES;
        // SAFETY: the place is below the ring's size, so it lies in the mapping.
        let entry = unsafe { self.map.add(self.offsets.descriptors as usize + at) };
        // SAFETY: aligned and mapped; any bytes are a valid descriptor. The kernel writes to a
        // place only after it was given back.
        unsafe { entry.cast::<libc::xdp_desc>().read() }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `map`; nothing borrows from it, because this value is
        // being dropped.
        unsafe { libc::munmap(self.map.as_ptr().cast(), self.map_bytes) };
    }
}
