//! What the kernel says about interfaces: their state, offloads, queues, time stamps and addresses.
//!
//! Invariants: buffers that the kernel writes to live through the call and have the size that the
//! call may use; a member of a union is read only after the call that writes it succeeded.
//!
//! Source: netdevice(7), linux/ethtool.h, linux/net_tstamp.h, netlink(7).

use std::ffi::{CStr, CString, c_int, c_void};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Longest interface name with its final zero.
const NAME_BYTES: usize = libc::IFNAMSIZ;
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GRINGPARAM: u32 = 0x10;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSTATS: u32 = 0x1d;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_GGRO: u32 = 0x2b;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETHTOOL_GET_TS_INFO: u32 = 0x41;
const ETH_SS_STATS: u32 = 1;
const ETH_FLAG_RXVLAN: u32 = 1 << 8;
const ETH_FLAG_LRO: u32 = 1 << 15;
/// Counters of a driver that there is room for. The largest instances of EC2 have 128 queues of 40.
const STATISTICS_MAX: usize = 16 << 10;
/// Bytes of the longest netlink answer that is asked for here: one interface with all attributes.
const ANSWER_BYTES_MAX: usize = 32 << 10;

/// An interface as the kernel knows it now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: i32,
    pub(crate) up: bool,
    /// ARPHRD number.
    pub(crate) hardware: u16,
    /// Its Ethernet address; zeros on other hardware.
    pub(crate) address: [u8; 6],
}

/// Opens an unbound packet socket; it receives nothing yet. Needs CAP_NET_RAW.
pub(crate) fn open_socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    check(fd)?;
    // SAFETY: the descriptor was just made and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Has the interface take frames for other hosts too, for as long as the packet socket is open.
pub(crate) fn be_promiscuous(fd: &OwnedFd, index: i32) -> io::Result<()> {
    let request = libc::packet_mreq {
        mr_ifindex: index,
        mr_type: libc::PACKET_MR_PROMISC as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set(fd, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &request)
}

/// Looks an interface up by name; `None` if there is none.
pub(crate) fn link_by_name(fd: &OwnedFd, name: &str) -> io::Result<Option<Link>> {
    let Ok(mut request) = request_for(name) else { return Ok(None) };
    if !found(ioctl(fd, libc::SIOCGIFINDEX, &mut request))? {
        return Ok(None);
    }
    // SAFETY: SIOCGIFINDEX succeeded, so this member of the union was written.
    let index = unsafe { request.ifr_ifru.ifru_ifindex };
    if !found(ioctl(fd, libc::SIOCGIFHWADDR, &mut request))? {
        return Ok(None);
    }
    // SAFETY: SIOCGIFHWADDR succeeded, so this member of the union was written.
    let libc::sockaddr { sa_family, sa_data } = unsafe { request.ifr_ifru.ifru_hwaddr };
    let ethernet = [libc::ARPHRD_ETHER, libc::ARPHRD_LOOPBACK].contains(&sa_family);
    let address = std::array::from_fn(|at| if ethernet { sa_data[at].cast_unsigned() } else { 0 });
    if !found(ioctl(fd, libc::SIOCGIFFLAGS, &mut request))? {
        return Ok(None);
    }
    // SAFETY: SIOCGIFFLAGS succeeded, so this member of the union was written.
    let flags = c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    Ok(Some(Link { index, up: flags & libc::IFF_UP != 0, hardware: sa_family, address }))
}

/// Looks at the interface with that index, whatever its name is now; `None` if it is gone.
pub(crate) fn link_by_index(fd: &OwnedFd, index: i32) -> io::Result<Option<Link>> {
    let mut name = [0u8; NAME_BYTES];
    // SAFETY: the buffer has the IFNAMSIZ bytes that the call may write.
    let found = unsafe { libc::if_indextoname(index.cast_unsigned(), name.as_mut_ptr().cast()) };
    if found.is_null() {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ENXIO | libc::ENODEV) => Ok(None),
            _ => Err(error),
        };
    }
    let name = CStr::from_bytes_until_nul(&name).unwrap_or_default();
    link_by_name(fd, &name.to_string_lossy())
}

/// Names of the interfaces in this network namespace.
pub(crate) fn interface_names() -> Vec<String> {
    let mut names = Vec::new();
    // SAFETY: takes no arguments; the list it returns is freed below.
    let list = unsafe { libc::if_nameindex() };
    let mut next = list;
    while !next.is_null() {
        // SAFETY: `next` points into the list, whose last entry is the one with a null name met
        // below.
        let entry = unsafe { &*next };
        if entry.if_name.is_null() {
            break;
        }
        // SAFETY: names in the list are zero-terminated and live until the list is freed.
        let name = unsafe { CStr::from_ptr(entry.if_name) };
        names.push(name.to_string_lossy().into_owned());
        // SAFETY: this entry was not the last one, so there is one behind it.
        next = unsafe { next.add(1) };
    }
    if !list.is_null() {
        // SAFETY: the list came from `if_nameindex` and is freed once.
        unsafe { libc::if_freenameindex(list) };
    }
    names
}

/// Whether the kernel (`gro`) and the card (`lro`) merge received packets of one stream; `None` if
/// unknown.
pub(crate) fn receive_offloads(fd: &OwnedFd, name: &str) -> [(&'static str, Option<bool>); 2] {
    let ask = |command: u32, mask: u32| {
        ethtool(fd, name, [command, 0]).ok().map(|[_, value]| value & mask != 0)
    };
    [("gro", ask(ETHTOOL_GGRO, u32::MAX)), ("lro", ask(ETHTOOL_GFLAGS, ETH_FLAG_LRO))]
}

/// Whether the card takes VLAN tags out of frames; `None` if unknown.
pub(crate) fn strips_vlan(fd: &OwnedFd, name: &str) -> Option<bool> {
    ethtool(fd, name, [ETHTOOL_GFLAGS, 0]).ok().map(|[_, flags]| flags & ETH_FLAG_RXVLAN != 0)
}

/// Receive queues in use; 1 if the driver does not say.
pub(crate) fn receive_queues(fd: &OwnedFd, name: &str) -> u32 {
    // `ethtool_channels`: command, four limits, then counts: receive, transmit, other, combined.
    let mut request = [0; 9];
    request[0] = ETHTOOL_GCHANNELS;
    match ethtool(fd, name, request) {
        Ok([_, _, _, _, _, receive, _, _, combined]) => receive.saturating_add(combined).max(1),
        Err(_) => 1,
    }
}

/// Descriptors of the receive ring: as it is, and as long as it can be. Errors: it has none.
pub(crate) fn receive_ring(fd: &OwnedFd, name: &str) -> io::Result<(u32, u32)> {
    // `ethtool_ringparam`: command, four limits, then lengths: receive, mini, jumbo, transmit.
    let mut request = [0; 9];
    request[0] = ETHTOOL_GRINGPARAM;
    let [_, max, _, _, _, now, ..] = ethtool(fd, name, request)?;
    Ok((now, max))
}

/// What a card can do about time stamps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimeStamping {
    /// It stamps received packets and hands its stamps out.
    pub(crate) receives: bool,
    /// Number of its clock: `/dev/ptpN`.
    pub(crate) clock: Option<u32>,
    /// It can stamp every packet, and not only those of a time protocol.
    pub(crate) all: bool,
    /// It is set up to stamp every packet now; `None` if the driver does not say.
    pub(crate) on: Option<bool>,
}

/// Asks a card about time stamps. Errors: the driver does not know the question.
pub(crate) fn time_stamping(fd: &OwnedFd, name: &str) -> io::Result<TimeStamping> {
    // `ethtool_ts_info`: command, capabilities, clock, transmit kinds and 3 reserved, receive
    // filters and 3 reserved.
    let mut request = [0; 11];
    request[0] = ETHTOOL_GET_TS_INFO;
    let [_, can, clock, _, _, _, _, filters, ..] = ethtool(fd, name, request)?;
    let needed = libc::SOF_TIMESTAMPING_RX_HARDWARE | libc::SOF_TIMESTAMPING_RAW_HARDWARE;
    Ok(TimeStamping {
        receives: can & needed == needed,
        clock: u32::try_from(clock.cast_signed()).ok(),
        all: filters & (1 << libc::HWTSTAMP_FILTER_ALL) != 0,
        on: stamps_all(fd, name).ok(),
    })
}

fn stamps_all(fd: &OwnedFd, name: &str) -> io::Result<bool> {
    // `hwtstamp_config`: flags, transmit kind, receive filter.
    let mut config = [0u32; 3];
    let mut request = request_for(name)?;
    request.ifr_ifru.ifru_data = config.as_mut_ptr().cast();
    ioctl(fd, libc::SIOCGHWTSTAMP, &mut request)?;
    Ok(config[2] == libc::HWTSTAMP_FILTER_ALL)
}

/// Counters that a driver keeps, by its own names; none if it keeps none. Needs no privilege.
///
/// The kernel writes as many as the driver has, whatever it is asked for. So there is room for
/// [`STATISTICS_MAX`], and a driver is not asked that has more than half of that: it would have to
/// double their number between two calls to write past the end.
pub(crate) fn statistics(fd: &OwnedFd, name: &str) -> io::Result<Vec<(String, u64)>> {
    // `ethtool_drvinfo`: 49 words, the 46th is the number of counters.
    let mut about = [0; 49];
    about[0] = ETHTOOL_GDRVINFO;
    let count = match ethtool(fd, name, about) {
        Ok(about) => about[45],
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => 0,
        Err(error) => return Err(error),
    };
    if count == 0 {
        return Ok(Vec::new());
    }
    if count as usize > STATISTICS_MAX / 2 {
        let why =
            format!("its driver has {count} counters; at most {} are read", STATISTICS_MAX / 2);
        return Err(io::Error::new(io::ErrorKind::Unsupported, why));
    }
    // `ethtool_gstrings`: command, set, number, names of 8 words. `ethtool_stats`: command, number,
    // values of 2 words.
    let mut names = vec![0; 3 + 8 * STATISTICS_MAX];
    names[..3].copy_from_slice(&[ETHTOOL_GSTRINGS, ETH_SS_STATS, count]);
    ask_driver(fd, name, &mut names)?;
    let mut values = vec![0; 2 + 2 * STATISTICS_MAX];
    values[..2].copy_from_slice(&[ETHTOOL_GSTATS, count]);
    ask_driver(fd, name, &mut values)?;
    if names[2] != count || values[1] != count {
        return Err(io::Error::other("its driver's counters changed meanwhile"));
    }
    let bytes = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let text = |words: &[u32]| {
        let mut text: Vec<u8> = bytes(words);
        text.truncate(text.iter().position(|byte| *byte == 0).unwrap_or(text.len()));
        String::from_utf8_lossy(&text).into_owned()
    };
    let value = |words: &[u32]| {
        let bytes: Vec<u8> = bytes(words);
        bytes.try_into().map_or(0, u64::from_ne_bytes)
    };
    let values = values[2..].chunks(2).map(value);
    Ok(names[3..].chunks(8).map(text).zip(values).take(count as usize).collect())
}

/// Asks the driver; the first word is the command. The answer has as many words as the question,
/// which therefore must have as many as the command's structure.
fn ethtool<const N: usize>(fd: &OwnedFd, name: &str, mut words: [u32; N]) -> io::Result<[u32; N]> {
    ask_driver(fd, name, &mut words)?;
    Ok(words)
}

/// The same where the length is known only then: `words` must have room for the whole answer.
fn ask_driver(fd: &OwnedFd, name: &str, words: &mut [u32]) -> io::Result<()> {
    let mut request = request_for(name)?;
    request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
    ioctl(fd, libc::SIOCETHTOOL, &mut request)
}

/// IP addresses of an interface, as text.
pub(crate) fn addresses(name: &str) -> io::Result<Vec<String>> {
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: writes one pointer to a list that is freed below.
    check(unsafe { libc::getifaddrs(&mut list) })?;
    let mut found = Vec::new();
    let mut next = list;
    while !next.is_null() {
        // SAFETY: `next` points to an entry of the list, which lives until it is freed.
        let entry = unsafe { &*next };
        // SAFETY: names in the list are zero-terminated and live until the list is freed.
        let its_name = unsafe { CStr::from_ptr(entry.ifa_name) };
        if its_name.to_bytes() == name.as_bytes() {
            found.extend(address(entry));
        }
        next = entry.ifa_next;
    }
    // SAFETY: the list came from `getifaddrs` and is freed once; nothing borrows from it any more.
    unsafe { libc::freeifaddrs(list) };
    Ok(found)
}

fn address(entry: &libc::ifaddrs) -> Option<String> {
    // SAFETY: the kernel's address, if there is one, begins with a family and lives as long as the
    // list that the entry is part of.
    let family = unsafe { entry.ifa_addr.as_ref() }?.sa_family;
    match i32::from(family) {
        libc::AF_INET => {
            // SAFETY: an address of this family is a `sockaddr_in`; the list aligns its addresses.
            let address = unsafe { &*entry.ifa_addr.cast::<libc::sockaddr_in>() };
            Some(Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes()).to_string())
        }
        libc::AF_INET6 => {
            // SAFETY: an address of this family is a `sockaddr_in6`; the list aligns its addresses.
            let address = unsafe { &*entry.ifa_addr.cast::<libc::sockaddr_in6>() };
            Some(Ipv6Addr::from(address.sin6_addr.s6_addr).to_string())
        }
        _ => None,
    }
}

/// Sends one request to the kernel's netlink and gives the first datagram of its answer.
pub(crate) fn netlink(protocol: c_int, request: &[u8]) -> io::Result<Vec<u8>> {
    // SAFETY: no pointers are passed.
    let fd =
        unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
    check(fd)?;
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: pointer and length describe live bytes, which are only read. Unconnected, so it goes
    // to the kernel.
    let sent = unsafe { libc::send(fd.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut answer = vec![0; ANSWER_BYTES_MAX];
    // SAFETY: pointer and length describe live bytes of this function's own.
    let got = unsafe { libc::recv(fd.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
    let bytes = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    answer.truncate(bytes);
    Ok(answer)
}

/// Unix time in nanoseconds, from the clock that stamps packets.
pub(crate) fn now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one live timespec. The call cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &mut now) };
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

fn request_for(name: &str) -> io::Result<libc::ifreq> {
    let name = CString::new(name).map_err(|_| io::ErrorKind::InvalidInput)?;
    let bytes = name.as_bytes_with_nul();
    if bytes.len() > NAME_BYTES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: `ifreq` is plain integers and a union of such; all zeros is a valid value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    Ok(request)
}

fn found(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        Err(error) => Err(error),
    }
}

fn ioctl(fd: &OwnedFd, code: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: the interface calls used here read and write one `ifreq`, which is live; where it
    // holds a pointer (SIOCETHTOOL, SIOCGHWTSTAMP), the pointee is live and has the bytes that the
    // command uses.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), code as _, request) })
}

pub(crate) fn set<T>(fd: &OwnedFd, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    let value: *const c_void = (&raw const *value).cast();
    // SAFETY: pointer and length describe a live value; the kernel reads at most that much.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value, length) })
}

/// `T` must be valid for all bit patterns: callers use integers and arrays of them.
pub(crate) fn get<T: Copy + Default>(fd: &OwnedFd, level: c_int, name: c_int) -> io::Result<T> {
    let mut value = T::default();
    let mut length = size_of::<T>() as libc::socklen_t;
    let to: *mut c_void = (&raw mut value).cast();
    // SAFETY: pointer and length describe a live value that may take any bytes; the kernel writes
    // at most that much.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, to, &mut length) })?;
    Ok(value)
}

pub(crate) fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
