//! Packets made by the kernel: an XDP program that runs over live frames and sends each on its way,
//! two to three times as many as a socket can send.
//!
//! The program stamps number and source port as [`crate::sender`] does, and keeps the pace itself:
//! a run of it ends only after the kernel has waited for all its cores, some ten milliseconds, so
//! one run is long. A frame that is not due yet is dropped before it was a packet.
//!
//! Invariant: attributes of bpf(2) are live through the call, and what they point to is, too.
//!
//! Source: bpf(2), `union bpf_attr` of linux/bpf.h; Documentation/bpf/bpf_prog_run.rst.

use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use crate::sender::{FLOWS, NUMBER_AT, PORT_AT};

const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP: libc::c_long = 1;
const MAP_UPDATE: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const PROG_TEST_RUN: libc::c_long = 10;
const MAP_TYPE_ARRAY: u32 = 2;
const PROG_TYPE_XDP: u32 = 6;
const LIVE_FRAMES: u32 = 1 << 1;
/// Frames of one run: a second of them, or less where many are not due yet.
const RUN_FRAMES: u32 = 2_000_000;
/// Parts of a nanosecond in which the distance of two packets is told.
const STEP_PARTS_LOG: u32 = 10;

/// What program and sender share: the value of a map with one entry.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Pace {
    /// Packets sent.
    sent: u64,
    /// CLOCK_MONOTONIC at which packet 0 is due, and at which no more is.
    from_ns: u64,
    until_ns: u64,
    /// Time between two packets in 1/1024 ns.
    step: u64,
}

/// Sends frames like `frame` for `time`; gives how many, and the time they took.
pub(crate) fn send(
    interface: &str,
    mut frame: Vec<u8>,
    packets_per_s: u64,
    time: Duration,
) -> io::Result<(u64, Duration)> {
    let name = CString::new(interface)?;
    // SAFETY: the name is zero-terminated and lives until the call returns.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    let map = new_map()?;
    let program = load(&instructions(map.as_raw_fd(), index))?;
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(io::Error::from)?;
    let from_ns = Duration::from(now).as_nanos() as u64;
    let step = (1_000_000_000 << STEP_PARTS_LOG) / packets_per_s.max(1);
    let until_ns = from_ns + time.as_nanos() as u64;
    let mut pace = Pace { sent: 0, from_ns, until_ns, step };
    access(MAP_UPDATE, &map, &mut pace)?;
    let begin = Instant::now();
    while begin.elapsed() < time {
        match run(&program, &mut frame) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => other?,
        }
    }
    access(MAP_LOOKUP, &map, &mut pace)?;
    Ok((pace.sent, time))
}

/// One instruction: operation, destination, source, offset, immediate value.
fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    let (registers, offset) = (u64::from(from << 4 | to) << 8, u64::from(offset as u16) << 16);
    u64::from(code) | registers | offset | u64::from(value as u32) << 32
}

/// The program. It keeps its argument in r6, the map's value in r7, the packet's number in r8.
fn instructions(map: i32, interface: u32) -> Vec<u64> {
    // Mnemonics of linux/bpf_common.h and linux/bpf.h: class, size or operation, source.
    const LOAD_64: u8 = 0x79;
    const LOAD_32: u8 = 0x61;
    const LOAD_VALUE: u8 = 0x18;
    const STORE_64: u8 = 0x7b;
    const STORE_16: u8 = 0x6b;
    const MOVE: u8 = 0xbf;
    const MOVE_VALUE: u8 = 0xb7;
    const ADD_VALUE: u8 = 0x07;
    const AND_VALUE: u8 = 0x57;
    const SHIFT_RIGHT_VALUE: u8 = 0x77;
    const ADD: u8 = 0x0f;
    const MULTIPLY: u8 = 0x2f;
    const BIG_ENDIAN: u8 = 0xdc;
    const JUMP_IF_LESS: u8 = 0xad;
    const JUMP_IF_NOT_LESS: u8 = 0x3d;
    const JUMP_IF_MORE: u8 = 0x2d;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    const PSEUDO_MAP_VALUE: u8 = 2;
    const KTIME_GET_NS: i32 = 5;
    const REDIRECT: i32 = 23;
    const XDP_DROP: i32 = 1;
    let field = |at: usize| at as i16;
    let mut code = vec![
        instruction(MOVE, 6, 1, 0, 0),
        instruction(LOAD_VALUE, 7, PSEUDO_MAP_VALUE, 0, map),
        instruction(0, 0, 0, 0, 0),
        instruction(CALL, 0, 0, 0, KTIME_GET_NS),
        instruction(LOAD_64, 8, 7, field(mem::offset_of!(Pace, sent)), 0),
        // Due, and not too late?
        instruction(LOAD_64, 1, 7, field(mem::offset_of!(Pace, step)), 0),
        instruction(MULTIPLY, 1, 8, 0, 0),
        instruction(SHIFT_RIGHT_VALUE, 1, 0, 0, STEP_PARTS_LOG as i32),
        instruction(LOAD_64, 2, 7, field(mem::offset_of!(Pace, from_ns)), 0),
        instruction(ADD, 1, 2, 0, 0),
        instruction(JUMP_IF_LESS, 0, 1, 0, 0),
        instruction(LOAD_64, 1, 7, field(mem::offset_of!(Pace, until_ns)), 0),
        instruction(JUMP_IF_NOT_LESS, 0, 1, 0, 0),
        // The verifier wants to see that the frame is long enough.
        instruction(LOAD_32, 2, 6, 0, 0),
        instruction(LOAD_32, 3, 6, 4, 0),
        instruction(MOVE, 4, 2, 0, 0),
        instruction(ADD_VALUE, 4, 0, 0, NUMBER_AT as i32 + 8),
        instruction(JUMP_IF_MORE, 4, 3, 0, 0),
        instruction(MOVE, 5, 8, 0, 0),
        instruction(AND_VALUE, 5, 0, 0, FLOWS as i32 - 1),
        instruction(ADD_VALUE, 5, 0, 0, 1024),
        instruction(BIG_ENDIAN, 5, 0, 0, 16),
        instruction(STORE_16, 2, 5, field(PORT_AT), 0),
        instruction(MOVE, 5, 8, 0, 0),
        instruction(BIG_ENDIAN, 5, 0, 0, 64),
        instruction(STORE_64, 2, 5, field(NUMBER_AT), 0),
        instruction(ADD_VALUE, 8, 0, 0, 1),
        instruction(STORE_64, 7, 8, field(mem::offset_of!(Pace, sent)), 0),
        instruction(MOVE_VALUE, 1, 0, 0, interface.cast_signed()),
        instruction(MOVE_VALUE, 2, 0, 0, 0),
        instruction(CALL, 0, 0, 0, REDIRECT),
        instruction(EXIT, 0, 0, 0, 0),
    ];
    // Every jump goes here.
    let end = code.len();
    for (at, word) in code.iter_mut().enumerate() {
        if matches!(*word as u8, JUMP_IF_LESS | JUMP_IF_NOT_LESS | JUMP_IF_MORE) {
            *word |= ((end - at - 1) as u64) << 16;
        }
    }
    code.extend([instruction(MOVE_VALUE, 0, 0, 0, XDP_DROP), instruction(EXIT, 0, 0, 0, 0)]);
    code
}

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    kind: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
}

#[repr(C)]
#[derive(Default)]
struct MapAccess {
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
}

#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    verdict: u32,
    data_in_bytes: u32,
    data_out_bytes: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_in_bytes: u32,
    context_out_bytes: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    padding: u32,
}

fn new_map() -> io::Result<OwnedFd> {
    let value_bytes = mem::size_of::<Pace>() as u32;
    let mut attributes = MapCreate { kind: MAP_TYPE_ARRAY, key_bytes: 4, value_bytes, entries: 1 };
    owned(bpf(MAP_CREATE, &mut attributes)?)
}

fn load(code: &[u64]) -> io::Result<OwnedFd> {
    let mut attributes = ProgLoad {
        kind: PROG_TYPE_XDP,
        instructions: code.len() as u32,
        code: code.as_ptr() as u64,
        licence: c"Dual MIT/GPL".as_ptr() as u64,
    };
    owned(bpf(PROG_LOAD, &mut attributes)?)
}

/// Reads or writes the map's one value.
fn access(command: libc::c_long, map: &OwnedFd, pace: &mut Pace) -> io::Result<()> {
    let key = 0u32;
    let mut attributes = MapAccess {
        map: map.as_raw_fd().cast_unsigned(),
        key: (&raw const key) as u64,
        value: (&raw mut *pace) as u64,
        ..MapAccess::default()
    };
    bpf(command, &mut attributes).map(drop)
}

fn run(program: &OwnedFd, frame: &mut [u8]) -> io::Result<()> {
    let mut attributes = TestRun {
        program: program.as_raw_fd().cast_unsigned(),
        data_in_bytes: frame.len() as u32,
        data_in: frame.as_ptr() as u64,
        repeat: RUN_FRAMES,
        flags: LIVE_FRAMES,
        ..TestRun::default()
    };
    bpf(PROG_TEST_RUN, &mut attributes).map(drop)
}

/// Calls of this module only: each names the attributes of its command, and what they point to
/// lives in the caller.
fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    let bytes = mem::size_of::<T>();
    // SAFETY: attributes of this command and length; what they point to lives through the call, as
    // the callers see to.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, bytes) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the call just made the descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
