//! System calls of a UDP socket that receives in batches.
//!
//! Invariants: the buffers, names and control areas of a [`Batch`] are boxed slices that are never
//! reallocated, so the pointers in its headers stay valid as long as it lives; the kernel writes to
//! them only during [`Batch::receive`], which needs `&mut`.
//!
//! Source: recvmmsg(2), udp(7), socket(7), linux/sock_diag.h.

use std::ffi::{c_int, c_void};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Datagrams taken by one system call.
pub(super) const BATCH: usize = 64;
/// Bytes of a datagram that are kept: above the largest MTU of mirrors (9,001) and of most links.
pub(super) const DATAGRAM_BYTES: usize = 16 << 10;
/// Room for the control message of a time stamp, in words: a header of two and a timespec of two.
const CONTROL_WORDS: usize = 8;
/// `SO_MEMINFO` of asm-generic/socket.h.
const SO_MEMINFO: c_int = 55;
/// `SK_MEMINFO_VARS`, and the place of `SK_MEMINFO_DROPS`, of linux/sock_diag.h.
const MEMINFO_WORDS: usize = 9;
const MEMINFO_DROPS: usize = 8;
/// `UDP_NO_CHECK6_RX` of linux/udp.h: tunnels over IPv6 may leave the checksum out (RFC 6935).
const UDP_NO_CHECK6_RX: c_int = 102;

/// Opens a socket that takes time stamps. `shared`: others listen on the same address, and the
/// kernel shares the datagrams among them by their addresses and ports.
///
/// Errors: with the name of the step.
pub(super) fn open(listen: SocketAddr, shared: bool) -> Result<OwnedFd, (&'static str, io::Error)> {
    let family = if listen.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    check(fd).map_err(|e| ("opening the socket", e))?;
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    set(&fd, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, &1).map_err(|e| ("asking for times", e))?;
    if shared {
        set(&fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, &1).map_err(|e| ("sharing the port", e))?;
    }
    if listen.is_ipv6() {
        set(&fd, libc::IPPROTO_UDP, UDP_NO_CHECK6_RX, &1)
            .map_err(|e| ("accepting datagrams without checksum", e))?;
    }
    bind(&fd, listen).map_err(|e| ("listening", e))?;
    Ok(fd)
}

fn bind(fd: &OwnedFd, listen: SocketAddr) -> io::Result<()> {
    let result = match listen {
        SocketAddr::V4(v4) => {
            let address = libc::sockaddr_in {
                sin_family: libc::AF_INET as u16,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            let length = size_of_val(&address) as libc::socklen_t;
            // SAFETY: the pointer and length describe a live value of the socket's family.
            unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) }
        }
        SocketAddr::V6(v6) => {
            let address = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as u16,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            let length = size_of_val(&address) as libc::socklen_t;
            // SAFETY: the pointer and length describe a live value of the socket's family.
            unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) }
        }
    };
    check(result)
}

/// Asks for a socket buffer and returns what the kernel gave, its own overhead included.
pub(super) fn set_buffer(fd: &OwnedFd, bytes: usize) -> io::Result<usize> {
    let wanted = c_int::try_from(bytes).unwrap_or(c_int::MAX);
    // Beyond net.core.rmem_max with CAP_NET_ADMIN; within it otherwise.
    if set(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &wanted).is_err() {
        set(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, &wanted)?;
    }
    let got: c_int = get(fd, libc::SOL_SOCKET, libc::SO_RCVBUF)?;
    Ok(usize::try_from(got).unwrap_or(0))
}

/// Port that the socket is bound to.
pub(super) fn local_port(fd: &OwnedFd) -> io::Result<u16> {
    let mut name = empty_name();
    let mut length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY: pointer and length describe a live value with room for any address.
    check(unsafe { libc::getsockname(fd.as_raw_fd(), (&raw mut name).cast(), &mut length) })?;
    Ok(address_of(&name).map_or(0, |address| address.port()))
}

/// Datagrams that the kernel dropped because the socket's buffer was full; wraps.
pub(super) fn drops(fd: &OwnedFd) -> io::Result<u32> {
    let words: [u32; MEMINFO_WORDS] = get(fd, libc::SOL_SOCKET, SO_MEMINFO)?;
    Ok(words[MEMINFO_DROPS])
}

/// Wall clock in Unix nanoseconds.
pub(super) fn now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one live timespec. The call cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &mut now) };
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// Room for one batch of datagrams.
pub(super) struct Batch {
    buffers: Box<[u8]>,
    names: Box<[libc::sockaddr_storage]>,
    controls: Box<[[u64; CONTROL_WORDS]]>,
    /// The headers point to these.
    _vectors: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
    count: usize,
}

// SAFETY: all pointers in it point into its own boxes, which move with it and are not tied to a
// thread.
unsafe impl Send for Batch {}

/// One datagram.
pub(super) struct Datagram<'a> {
    pub(super) data: &'a [u8],
    /// Its length, also where it is longer than its buffer.
    pub(super) wire_len: u32,
    /// Unix nanoseconds, when the kernel received it.
    pub(super) ts_ns: Option<u64>,
    pub(super) from: Option<IpAddr>,
}

impl Batch {
    pub(super) fn new() -> Self {
        let mut buffers = vec![0; BATCH * DATAGRAM_BYTES].into_boxed_slice();
        let mut names = vec![empty_name(); BATCH].into_boxed_slice();
        let mut controls = vec![[0; CONTROL_WORDS]; BATCH].into_boxed_slice();
        let vectors = buffers.chunks_exact_mut(DATAGRAM_BYTES).map(|buffer| libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: DATAGRAM_BYTES,
        });
        let mut vectors: Box<[_]> = vectors.collect();
        let parts = vectors.iter_mut().zip(names.iter_mut()).zip(controls.iter_mut());
        let headers = parts.map(|((vector, name), control)| {
            // SAFETY: integers and pointers may all be zero.
            let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
            header.msg_hdr.msg_name = (&raw mut *name).cast();
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.as_mut_ptr().cast();
            header
        });
        let headers = headers.collect();
        Self { buffers, names, controls, _vectors: vectors, headers, count: 0 }
    }

    /// Takes what waits, at most a batch, and returns how much; sleeps at most `wait` for the
    /// first.
    pub(super) fn receive(&mut self, fd: &OwnedFd, wait: Duration) -> io::Result<usize> {
        self.count = 0;
        if !wait.is_zero() && !readable(fd, wait)? {
            return Ok(0);
        }
        for header in &mut self.headers {
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_hdr.msg_controllen = size_of::<[u64; CONTROL_WORDS]>();
        }
        // With MSG_TRUNC a datagram's length is told also where it is longer than its buffer.
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        let headers = self.headers.as_mut_ptr();
        // SAFETY: BATCH headers are passed, and each points to a name, a buffer and a control area
        // of the stated lengths in boxes that live as long as `self`; no timeout is given.
        let got = unsafe {
            libc::recvmmsg(fd.as_raw_fd(), headers, BATCH as u32, flags as _, std::ptr::null_mut())
        };
        match check(got) {
            Ok(()) => self.count = usize::try_from(got).unwrap_or(0).min(BATCH),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {}
                _ => return Err(error),
            },
        }
        Ok(self.count)
    }

    /// Datagrams of the batch.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Datagram `at` of the batch.
    pub(super) fn datagram(&self, at: usize) -> Option<Datagram<'_>> {
        let header = self.headers[..self.count].get(at)?;
        let length = header.msg_len as usize;
        let buffer = self.buffers.chunks_exact(DATAGRAM_BYTES).nth(at)?;
        Some(Datagram {
            data: &buffer[..length.min(DATAGRAM_BYTES)],
            wire_len: header.msg_len,
            ts_ns: self.time_of(at, header.msg_hdr.msg_controllen),
            from: address_of(self.names.get(at)?).map(|address| address.ip()),
        })
    }

    /// Reads the one control message that was asked for: length, level and type, then a timespec.
    fn time_of(&self, at: usize, control_bytes: usize) -> Option<u64> {
        let [length, level_and_type, seconds, nanos, ..] = *self.controls.get(at)?;
        let [level, kind] = [level_and_type as u32, (level_and_type >> 32) as u32];
        let ours = level == libc::SOL_SOCKET as u32 && kind == libc::SCM_TIMESTAMPNS as u32;
        let whole = control_bytes >= 32 && length >= 32;
        (ours && whole).then(|| seconds.wrapping_mul(1_000_000_000).wrapping_add(nanos))
    }
}

const _: () = assert!(cfg!(target_endian = "little") && size_of::<usize>() == 8, "control layout");

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").field("count", &self.count).finish_non_exhaustive()
    }
}

fn readable(fd: &OwnedFd, wait: Duration) -> io::Result<bool> {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let limit = libc::timespec {
        tv_sec: wait.as_secs().min(3600).cast_signed(),
        tv_nsec: wait.subsec_nanos().into(),
    };
    // SAFETY: one entry is passed with the count 1, the time is a live value, no signal mask is
    // given.
    let ready = unsafe { libc::ppoll(&mut entry, 1, &limit, std::ptr::null()) };
    match check(ready) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
        Err(error) => Err(error),
        Ok(()) => Ok(ready > 0),
    }
}

fn empty_name() -> libc::sockaddr_storage {
    // SAFETY: an address of integers may be all zeros, which is no family.
    unsafe { std::mem::zeroed() }
}

fn address_of(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let from: *const libc::sockaddr_storage = name;
    match c_int::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says so, and sockaddr_storage is larger and as strictly aligned.
            let v4 = unsafe { &*from.cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddr::new(ip.into(), u16::from_be(v4.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: the family says so, and sockaddr_storage is larger and as strictly aligned.
            let v6 = unsafe { &*from.cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr).to_canonical();
            Some(SocketAddr::new(ip, u16::from_be(v6.sin6_port)))
        }
        _ => None,
    }
}

fn set<T>(fd: &OwnedFd, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    let value: *const c_void = (&raw const *value).cast();
    // SAFETY: pointer and length describe a live value; the kernel reads at most that much.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value, length) })
}

/// `T` must be valid for all bit patterns: callers use integers and arrays of them.
fn get<T: Copy + Default>(fd: &OwnedFd, level: c_int, name: c_int) -> io::Result<T> {
    let mut value = T::default();
    let mut length = size_of::<T>() as libc::socklen_t;
    let to: *mut c_void = (&raw mut value).cast();
    // SAFETY: pointer and length describe a live value that may take any bytes; the kernel writes
    // at most that much.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, to, &mut length) })?;
    Ok(value)
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
