//! A program under ptrace(2): it stops at every system call that changes a file, and can be killed
//! at a chosen one: before it, behind it, or within it. All calls are counted by thread.
//!
//! ```text
//!  test ── arm(rule) ──► thread `stepper` ── PTRACE_SYSCALL ──► wirevaultd, all its threads
//!       ◄── Hit, end ──      asks the rule at every call
//! ```
//! Killing *within* a write shortens the write and kills behind it. That is what the kernel does
//! when SIGKILL meets a write(2) to the page cache: it ends at a page. So no hook in the program is
//! needed, and the file holds what a kill at that moment leaves.
//!
//! Invariant: one thread starts, traces and reaps the program; ptrace allows no other. It waits for
//! its own children only (`__WNOTHREAD`), so programs that other threads started are not touched.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use wirevault_testkit::net::wait_for;

/// Time for a program to end once it was killed.
const END_MAX: Duration = Duration::from_secs(20);
/// Stops itself before it becomes the program, so that tracing begins with the program's first
/// call.
const SHELL: &str = "kill -STOP $$; exec \"$@\"";
const PATH_BYTES_MAX: usize = 4096;

/// What a system call does to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// pwrite64(2).
    Write,
    /// ftruncate(2); `offset` is the new length.
    SetLength,
    /// fsync(2) or fdatasync(2).
    Sync,
    /// openat(2) with `O_CREAT`.
    Make,
    /// unlink(2) or unlinkat(2).
    Remove,
    /// io_uring_enter(2) with something to submit; `bytes` is how many entries.
    Submit,
}

/// A system call about to be made.
#[derive(Debug)]
pub struct Call {
    /// What it does.
    pub act: Act,
    /// The file.
    pub path: PathBuf,
    /// Where in it.
    pub offset: u64,
    /// How many bytes.
    pub bytes: u64,
    thread: Pid,
    address: u64,
}

impl Call {
    /// The first bytes, at most, of what is to be written.
    pub fn data(&self, bytes_max: usize) -> Vec<u8> {
        let mut data = vec![0; bytes_max.min(self.bytes as usize)];
        read_memory(self.thread, self.address, &mut data);
        data
    }

    /// Whether the file has this name.
    pub fn is_of(&self, name: &str) -> bool {
        self.path.file_name().is_some_and(|found| found == name)
    }
}

/// When to kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The call is not made.
    Before,
    /// A write ends after so many bytes, then the program does.
    Within(u64),
    /// The call has been made; the program does not learn of it.
    Behind,
}

/// Says at which call to kill.
pub type Rule = Box<dyn FnMut(&Call) -> Option<Moment> + Send>;

/// Where the program was killed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// What the call does.
    pub act: Act,
    /// The file.
    pub path: PathBuf,
    /// Where in it.
    pub offset: u64,
    /// How many bytes were to be written.
    pub bytes: u64,
    /// When.
    pub moment: Moment,
}

#[derive(Default)]
struct Shared {
    pid: Option<Pid>,
    rule: Option<Rule>,
    calls: BTreeMap<String, u64>,
    hit: Option<Hit>,
    end: Option<ExitStatus>,
}

/// A program that is traced. It ends with this value at the latest.
pub struct Stepper {
    shared: Arc<Mutex<Shared>>,
    pid: Pid,
    thread: Option<JoinHandle<()>>,
}

impl Stepper {
    /// Starts a command with its outputs into `log`. `without_uring`: io_uring_setup(2) fails for
    /// it, as where io_uring is forbidden.
    ///
    /// # Panics
    /// If it cannot be started or traced.
    pub fn start(command: &Command, log: &File, without_uring: bool) -> Self {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", SHELL, "sh"]).arg(command.get_program()).args(command.get_args());
        shell.stdout(log.try_clone().expect("log")).stderr(log.try_clone().expect("log"));
        let shared = Arc::new(Mutex::new(Shared::default()));
        let of_thread = Arc::clone(&shared);
        let trace = move || Tracer::start(shell, of_thread, without_uring).run();
        let thread = std::thread::Builder::new().name("stepper".to_owned()).spawn(trace);
        let thread = thread.expect("a thread to trace from");
        let pid = wait_for("a traced program", END_MAX, || {
            assert!(
                !thread.is_finished(),
                "the program cannot be traced: is CAP_SYS_PTRACE there?"
            );
            lock(&shared).pid
        });
        Self { shared, pid, thread: Some(thread) }
    }

    /// Process id.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// From now on every call is put to this rule.
    pub fn arm(&self, rule: Rule) {
        lock(&self.shared).rule = Some(rule);
    }

    /// System calls so far, by the name that the thread had when it made them.
    pub fn calls(&self) -> BTreeMap<String, u64> {
        lock(&self.shared).calls.clone()
    }

    /// Where the rule killed it, if it did.
    pub fn hit(&self) -> Option<Hit> {
        lock(&self.shared).hit.clone()
    }

    /// How it ended, if it has.
    ///
    /// # Panics
    /// If the tracing failed, which ends it, too.
    pub fn ended(&self) -> Option<ExitStatus> {
        // In this order: the end is told before the thread is gone.
        let traced = self.thread.as_ref().is_some_and(|thread| !thread.is_finished());
        let end = lock(&self.shared).end;
        assert!(traced || end.is_some(), "the thread that traces it failed");
        end
    }

    /// Kills it, if it has not ended, and waits for its end.
    pub fn kill(&mut self) {
        if lock(&self.shared).end.is_none() {
            // The tracer alone reaps, and says so before anybody can see the number used again.
            let _ = kill(self.pid, Signal::SIGKILL);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Stepper {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a thread is in the middle of.
struct Entered {
    /// It is killed when the call returns.
    kill: Option<Hit>,
}

struct Tracer {
    leader: Pid,
    shared: Arc<Mutex<Shared>>,
    without_uring: bool,
    entered: HashMap<Pid, Entered>,
}

impl Tracer {
    #[expect(clippy::zombie_processes, reason = "the tracer waits for it as for any traced thread")]
    fn start(mut shell: Command, shared: Arc<Mutex<Shared>>, without_uring: bool) -> Self {
        let child = shell.spawn().expect("a shell");
        let leader = Pid::from_raw(child.id().cast_signed());
        let stopped = waitpid(leader, Some(WaitPidFlag::WUNTRACED)).expect("the shell stops");
        assert!(matches!(stopped, WaitStatus::Stopped(..)), "{stopped:?}");
        let options = Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_EXITKILL;
        ptrace::seize(leader, options).expect("the program can be traced");
        kill(leader, Signal::SIGCONT).expect("SIGCONT");
        lock(&shared).pid = Some(leader);
        Self { leader, shared, without_uring, entered: HashMap::new() }
    }

    fn run(mut self) {
        let ours = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        loop {
            let status = match waitpid(None, Some(ours)) {
                Ok(status) => status,
                Err(Errno::EINTR) => continue,
                Err(error) => panic!("waiting for the traced program: {error}"),
            };
            match status {
                WaitStatus::PtraceSyscall(thread) => self.at_call(thread),
                WaitStatus::PtraceEvent(thread, ..) => resume(thread, None),
                WaitStatus::Stopped(thread, signal) => resume(thread, Some(signal)),
                WaitStatus::Exited(pid, code) if pid == self.leader => {
                    lock(&self.shared).end = Some(ExitStatus::from_raw(code << 8));
                    return;
                }
                WaitStatus::Signaled(pid, signal, _) if pid == self.leader => {
                    lock(&self.shared).end = Some(ExitStatus::from_raw(signal as i32));
                    return;
                }
                WaitStatus::Exited(thread, _) | WaitStatus::Signaled(thread, ..) => {
                    self.entered.remove(&thread);
                }
                _ => {}
            }
        }
    }

    /// A thread stands before a system call or behind it.
    fn at_call(&mut self, thread: Pid) {
        if let Some(Entered { kill }) = self.entered.remove(&thread) {
            match kill {
                Some(hit) => self.kill(hit),
                None => resume(thread, None),
            }
            return;
        }
        if let Ok(name) = std::fs::read_to_string(format!("/proc/{thread}/comm")) {
            *lock(&self.shared).calls.entry(name.trim_end().to_owned()).or_default() += 1;
        }
        // It may have been killed meanwhile.
        let Ok(mut registers) = ptrace::getregs(thread) else { return };
        let number = registers::number(&registers) as i64;
        if self.without_uring && number == libc::SYS_io_uring_setup {
            // A ring without entries is refused by the kernel.
            registers::set_argument(&mut registers, 0, 0);
            let _ = ptrace::setregs(thread, registers);
        }
        let moment = self.decide(thread, number, &registers);
        let mut kill = None;
        if let Some((hit, moment)) = moment {
            match moment {
                Moment::Before => return self.kill(hit),
                Moment::Within(bytes) => {
                    registers::set_argument(&mut registers, 2, bytes);
                    ptrace::setregs(thread, registers).expect("its registers can be set");
                    kill = Some(hit);
                }
                Moment::Behind => kill = Some(hit),
            }
        }
        self.entered.insert(thread, Entered { kill });
        resume(thread, None);
    }

    fn decide(
        &self,
        thread: Pid,
        number: i64,
        registers: &registers::Registers,
    ) -> Option<(Hit, Moment)> {
        let mut shared = lock(&self.shared);
        let rule = shared.rule.as_mut()?;
        let call = read_call(thread, number, registers)?;
        let moment = rule(&call)?;
        shared.rule = None;
        let Call { act, path, offset, bytes, .. } = call;
        Some((Hit { act, path, offset, bytes, moment }, moment))
    }

    fn kill(&self, hit: Hit) {
        lock(&self.shared).hit = Some(hit);
        kill(self.leader, Signal::SIGKILL).expect("SIGKILL");
    }
}

/// Lets a thread go on to its next stop; it may have been killed meanwhile.
fn resume(thread: Pid, signal: Option<Signal>) {
    match ptrace::syscall(thread, signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => panic!("a traced thread cannot go on: {error}"),
    }
}

fn read_call(thread: Pid, number: i64, registers: &registers::Registers) -> Option<Call> {
    let argument = |at| registers::argument(registers, at);
    let of_file =
        |at: usize| std::fs::read_link(format!("/proc/{thread}/fd/{}", argument(at))).ok();
    let call = |act, path, offset, bytes, address| {
        Some(Call { act, path, offset, bytes, thread, address })
    };
    match number {
        libc::SYS_pwrite64 => call(Act::Write, of_file(0)?, argument(3), argument(2), argument(1)),
        libc::SYS_ftruncate => call(Act::SetLength, of_file(0)?, argument(1), 0, 0),
        libc::SYS_fsync | libc::SYS_fdatasync => call(Act::Sync, of_file(0)?, 0, 0, 0),
        libc::SYS_openat if argument(2) & libc::O_CREAT as u64 != 0 => {
            call(Act::Make, path_at(thread, argument(1))?, 0, 0, 0)
        }
        libc::SYS_unlinkat => call(Act::Remove, path_at(thread, argument(1))?, 0, 0, 0),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_unlink => call(Act::Remove, path_at(thread, argument(0))?, 0, 0, 0),
        libc::SYS_io_uring_enter if argument(1) > 0 => {
            call(Act::Submit, PathBuf::new(), 0, argument(1), 0)
        }
        _ => None,
    }
}

/// A path in the memory of a thread.
fn path_at(thread: Pid, address: u64) -> Option<PathBuf> {
    let mut bytes = vec![0; PATH_BYTES_MAX];
    let length = read_memory(thread, address, &mut bytes);
    let end = bytes[..length].iter().position(|byte| *byte == 0)?;
    Some(Path::new(std::str::from_utf8(&bytes[..end]).ok()?).to_owned())
}

/// Reads as much as there is; gives how much that was.
fn read_memory(thread: Pid, address: u64, into: &mut [u8]) -> usize {
    let Ok(memory) = File::open(format!("/proc/{thread}/mem")) else { return 0 };
    memory.read_at(into, address).unwrap_or(0)
}

fn lock(shared: &Mutex<Shared>) -> std::sync::MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a system call's number and arguments stand. Source: syscall(2).
mod registers {
    pub(super) use libc::user_regs_struct as Registers;

    #[cfg(target_arch = "x86_64")]
    pub(super) fn number(registers: &Registers) -> u64 {
        registers.orig_rax
    }

    #[cfg(target_arch = "x86_64")]
    pub(super) fn argument(registers: &Registers, at: usize) -> u64 {
        [registers.rdi, registers.rsi, registers.rdx, registers.r10][at]
    }

    #[cfg(target_arch = "x86_64")]
    pub(super) fn set_argument(registers: &mut Registers, at: usize, value: u64) {
        match at {
            0 => registers.rdi = value,
            1 => registers.rsi = value,
            2 => registers.rdx = value,
            _ => registers.r10 = value,
        }
    }

    #[cfg(target_arch = "aarch64")]
    pub(super) fn number(registers: &Registers) -> u64 {
        registers.regs[8]
    }

    #[cfg(target_arch = "aarch64")]
    pub(super) fn argument(registers: &Registers, at: usize) -> u64 {
        registers.regs[at]
    }

    #[cfg(target_arch = "aarch64")]
    pub(super) fn set_argument(registers: &mut Registers, at: usize, value: u64) {
        registers.regs[at] = value;
    }
}
