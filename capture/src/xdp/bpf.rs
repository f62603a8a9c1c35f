//! bpf(2): a map of sockets, the program, and the link that holds it to an interface.
//!
//! Invariants: each command's attributes are live and as long as is said; what they point to lives
//! through the call. All three objects are descriptors: when the last copy is closed, by the
//! program or by the kernel at its end, they are gone, and with the link the program leaves the
//! interface.
//!
//! Source: bpf(2), `union bpf_attr` of linux/bpf.h.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::program::LICENCE;

const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;

const MAP_TYPE_XSKMAP: u32 = 17;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
/// The program can take packets of several buffers. Linux 5.18.
const PROG_FRAGMENTS: u32 = 1 << 5;
/// The program is for one interface, whose driver it may ask. Linux 6.3.
const PROG_BOUND: u32 = 1 << 6;
const NAME: [u8; 16] = *b"wirevault\0\0\0\0\0\0\0";
/// Bytes of the verifier's account that an error shows the end of.
const LOG_BYTES: usize = 64 << 10;
const LOG_SHOWN_BYTES: usize = 300;

/// Where in the way of a packet the program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    /// In the driver, before the kernel makes anything of the packet (`XDP_FLAGS_DRV_MODE`).
    Native,
    /// In the kernel's stack, for drivers that cannot (`XDP_FLAGS_SKB_MODE`).
    Generic,
}

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    kind: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
    flags: u32,
    inner: u32,
    node: u32,
    name: [u8; 16],
}

#[repr(C)]
#[derive(Default)]
struct MapUpdate {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    kind: u32,
    instructions: u32,
    code: u64,
    licence: u64,
    log_level: u32,
    log_bytes: u32,
    log: u64,
    kernel: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_kind: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    interface: u32,
    kind: u32,
    flags: u32,
}

/// Makes a map from queue to AF_XDP socket.
pub(super) fn new_map(queues: u32) -> io::Result<OwnedFd> {
    let mut attributes = MapCreate {
        kind: MAP_TYPE_XSKMAP,
        key_bytes: 4,
        value_bytes: 4,
        entries: queues,
        name: NAME,
        ..MapCreate::default()
    };
    // SAFETY: the attributes are of this command and point to nothing.
    unsafe { new_object(MAP_CREATE, &mut attributes) }
}

/// Has packets of a queue go to a socket.
pub(super) fn put(map: &OwnedFd, queue: u32, socket: &OwnedFd) -> io::Result<()> {
    let value = raw(socket);
    let mut attributes = MapUpdate {
        map: raw(map),
        key: (&raw const queue) as u64,
        value: (&raw const value) as u64,
        ..MapUpdate::default()
    };
    // SAFETY: the attributes are of this command; key and value are live words of the 4 bytes that
    // the map was made with.
    unsafe { bpf(MAP_UPDATE, &mut attributes) }.map(|_| ())
}

/// What a program is loaded for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct For {
    /// Takes packets of several buffers.
    pub(super) fragments: bool,
    /// The only interface that it may be put on, and whose driver it asks.
    pub(super) interface: Option<i32>,
}

/// Loads an XDP program. Errors: the kernel's, with the end of the verifier's account if it has
/// one.
pub(super) fn load(code: &[u64], aim: For) -> Result<OwnedFd, (io::Error, String)> {
    let flag = |wanted, flag| if wanted { flag } else { 0 };
    let mut attributes = ProgLoad {
        kind: PROG_TYPE_XDP,
        instructions: code.len() as u32,
        code: code.as_ptr() as u64,
        licence: LICENCE.as_ptr() as u64,
        flags: flag(aim.fragments, PROG_FRAGMENTS) | flag(aim.interface.is_some(), PROG_BOUND),
        interface: aim.interface.unwrap_or(0).cast_unsigned(),
        attach_kind: ATTACH_XDP,
        name: NAME,
        ..ProgLoad::default()
    };
    // SAFETY: the attributes are of this command; code and licence live through the call, and the
    // number of instructions is right.
    let loaded = unsafe { new_object(PROG_LOAD, &mut attributes) };
    let error = match loaded {
        Ok(program) => return Ok(program),
        Err(error) => error,
    };
    let mut log = vec![0u8; LOG_BYTES];
    (attributes.log_level, attributes.log_bytes) = (1, log.len() as u32);
    attributes.log = log.as_mut_ptr() as u64;
    // SAFETY: as above; the log is live and as long as is said.
    match unsafe { new_object(PROG_LOAD, &mut attributes) } {
        Ok(program) => Ok(program),
        Err(_) => {
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
            let shown = &log[end.saturating_sub(LOG_SHOWN_BYTES)..end];
            Err((error, String::from_utf8_lossy(shown).trim().replace('\n', "; ")))
        }
    }
}

/// Has the program run on an interface for as long as the link that this gives is open.
pub(super) fn attach(program: &OwnedFd, interface: i32, hook: Hook) -> io::Result<OwnedFd> {
    const DRIVER_MODE: u32 = 1 << 2;
    const STACK_MODE: u32 = 1 << 1;
    let mut attributes = LinkCreate {
        program: raw(program),
        interface: interface.cast_unsigned(),
        kind: ATTACH_XDP,
        flags: match hook {
            Hook::Native => DRIVER_MODE,
            Hook::Generic => STACK_MODE,
        },
    };
    // SAFETY: the attributes are of this command and point to nothing.
    unsafe { new_object(LINK_CREATE, &mut attributes) }
}

fn raw(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// A command that gives a new descriptor.
///
/// # Safety
/// As for [`bpf`].
unsafe fn new_object<T>(command: libc::c_long, attributes: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { bpf(command, attributes) }?;
    // SAFETY: the descriptor was just made and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// # Safety
/// `T` must be the attributes of the command, and every address in it that of live memory as large
/// as the command uses.
unsafe fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    let bytes = size_of::<T>();
    // SAFETY: pointer and length describe a live value; what it points to is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, bytes) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
