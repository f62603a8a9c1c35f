//! System calls in a thread of another program, as somebody makes them who took that program over.

use std::fs;

use nix::libc::user_regs_struct;
use nix::sys::ptrace::{self, AddressType, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// `syscall`, and whatever stood behind it.
const SYSCALL: i64 = 0x050f;
/// Bytes below the stack's end that the compiler may use without saying so (System V ABI, AMD64).
const RED_ZONE_BYTES: u64 = 128;
/// Bytes of a text for a call, with its closing zero.
const TEXT_BYTES_MAX: usize = 256;

/// The thread of this name in a process.
///
/// # Panics
/// If there is none.
pub fn thread(process: Pid, name: &str) -> Pid {
    let threads = fs::read_dir(format!("/proc/{process}/task")).expect("threads").flatten();
    let named = threads.map(|thread| thread.path()).find(|folder| {
        fs::read_to_string(folder.join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    });
    let number = named.as_deref().and_then(|folder| folder.file_name()?.to_str()?.parse().ok());
    Pid::from_raw(number.unwrap_or_else(|| panic!("{process} has no thread {name}")))
}

/// Makes a call in this thread, and gives what the kernel answers: a value, or an error's negated
/// number. `text` lies in the thread's memory at the address that `arguments` is given. The thread
/// goes on as if nothing had been.
///
/// # Panics
/// If it cannot be traced, or the text is too long.
pub fn call(thread: Pid, number: i64, text: &str, arguments: impl Fn(u64) -> [u64; 6]) -> i64 {
    assert!(text.len() < TEXT_BYTES_MAX, "the text has {} bytes", text.len());
    ptrace::seize(thread, Options::empty()).expect("a thread can be traced");
    ptrace::interrupt(thread).expect("it can be stopped");
    waitpid(thread, Some(WaitPidFlag::__WALL)).expect("it stops");
    let before = ptrace::getregs(thread).expect("registers");
    let place = (before.rsp - RED_ZONE_BYTES - TEXT_BYTES_MAX as u64) & !15;
    let code = exchange(thread, before.rip, |code| code & !0xffff | SYSCALL);
    let bytes = [text.as_bytes(), &[0; 8]].concat();
    let words = bytes.chunks_exact(8).zip((place..).step_by(8));
    let memory: Vec<_> = words
        .map(|(word, at)| {
            let word = i64::from_le_bytes(word.try_into().expect("eight bytes"));
            (at, exchange(thread, at, |_| word))
        })
        .collect();
    let [rdi, rsi, rdx, r10, r8, r9] = arguments(place);
    let rax = number.cast_unsigned();
    // No call is to be begun anew when this one ends.
    let orig_rax = u64::MAX;
    ptrace::setregs(
        thread,
        user_regs_struct { rax, orig_rax, rdi, rsi, rdx, r10, r8, r9, ..before },
    )
    .expect("registers");
    ptrace::step(thread, None).expect("a step");
    while waitpid(thread, Some(WaitPidFlag::__WALL)).expect("it stops")
        != WaitStatus::Stopped(thread, Signal::SIGTRAP)
    {
        ptrace::step(thread, None).expect("a step");
    }
    let answer = ptrace::getregs(thread).expect("registers").rax.cast_signed();
    for (at, word) in memory {
        exchange(thread, at, |_| word);
    }
    exchange(thread, before.rip, |_| code);
    ptrace::setregs(thread, before).expect("registers");
    ptrace::detach(thread, None).expect("it goes on");
    answer
}

/// Puts a word into the thread's memory; gives the one that was there.
fn exchange(thread: Pid, at: u64, change: impl Fn(i64) -> i64) -> i64 {
    let at = at as AddressType;
    let was = ptrace::read(thread, at).expect("a word of memory");
    ptrace::write(thread, at, change(was)).expect("a word of memory");
    was
}
