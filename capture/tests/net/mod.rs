//! A network namespace for one test, a raw sender, and a thread that lacks a capability.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

/// A namespace that the calling thread is in until it is dropped.
pub(crate) struct Namespace {
    name: String,
    before: File,
}

impl Namespace {
    /// Makes one and enters it. `None`, loudly, if privileges are missing and `CI` is not `true`.
    pub(crate) fn new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("wvtest-{}-{number}", std::process::id());
        let made = Command::new("ip").args(["netns", "add", &name]).output();
        if !made.as_ref().is_ok_and(|output| output.status.success()) {
            let ci = std::env::var("CI").is_ok_and(|value| value == "true");
            assert!(!ci, "CI=true, but no network namespace can be made: {made:?}");
            eprintln!("SKIPPED: this test needs root and `ip netns`: {made:?}");
            return None;
        }
        let before = File::open("/proc/thread-self/ns/net").expect("own namespace");
        let ns = Self { name, before };
        ns.enter();
        // No router solicitations between the test's packets.
        for scope in ["all", "default"] {
            let key = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
            std::fs::write(key, "1").expect("sysctl");
        }
        Some(ns)
    }

    /// Has the calling thread be in it.
    pub(crate) fn enter(&self) {
        set_namespace(&File::open(format!("/run/netns/{}", self.name)).expect("namespace"));
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` in the namespace.
    pub(crate) fn ip(&self, args: &[&str]) {
        let output = Command::new("ip").args(["-n", &self.name]).args(args).output().expect("ip");
        assert!(output.status.success(), "ip {args:?}: {output:?}");
    }

    /// Adds a veth pair that is up: `a` has the address 02:..:01, `b` 02:..:02.
    pub(crate) fn add_veth(&self, a: &str, b: &str) {
        self.ip(&["link", "add", a, "type", "veth", "peer", "name", b]);
        for (name, address) in [(a, "02:00:00:00:00:01"), (b, "02:00:00:00:00:02")] {
            self.ip(&["link", "set", name, "address", address, "up"]);
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        set_namespace(&self.before);
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn set_namespace(namespace: &File) {
    // SAFETY: only a descriptor is passed, and it is open.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "setns: {}", std::io::Error::last_os_error());
}

/// Sends frames as they are.
pub(crate) struct Sender(OwnedFd);

impl Sender {
    /// On the interface of that name in the thread's namespace.
    pub(crate) fn on(name: &str) -> Self {
        let zeroed = std::ffi::CString::new(name).expect("name");
        // SAFETY: the name is zero-terminated and live.
        let index = unsafe { libc::if_nametoindex(zeroed.as_ptr()) };
        assert_ne!(index, 0, "{name} is absent");
        // SAFETY: no pointers are passed.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) };
        assert!(fd >= 0, "socket: {}", std::io::Error::last_os_error());
        // SAFETY: the descriptor was just made and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: 0,
            sll_ifindex: index.cast_signed(),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let length = size_of_val(&address) as libc::socklen_t;
        // SAFETY: pointer and length describe a live value of the type that the family asks for.
        let result = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) };
        assert_eq!(result, 0, "bind: {}", std::io::Error::last_os_error());
        Self(fd)
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        // SAFETY: pointer and length describe live bytes.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        let length = frame.len().cast_signed();
        assert_eq!(sent, length, "send: {}", std::io::Error::last_os_error());
    }
}

/// A UDP packet over IPv4 whose payload begins with `number`, at byte 42.
pub(crate) fn udp(to: [u8; 6], from: [u8; 6], source_port: u16, number: u32) -> Vec<u8> {
    let mut frame = [&to[..], &from, &[8, 0]].concat();
    frame.extend([0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 10, 99, 0, 1, 10, 99, 0, 2]);
    frame.extend(source_port.to_be_bytes());
    frame.extend([0x27, 0x0f, 0, 26, 0, 0]);
    frame.extend(number.to_be_bytes());
    frame.extend([0; 14]);
    frame
}

/// Unix time in nanoseconds.
#[expect(clippy::disallowed_methods, reason = "compared with the kernel's own time stamps")]
pub(crate) fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_nanos()).expect("before 2554")
}

/// CAP_NET_RAW.
pub(crate) const NET_RAW: u32 = 13;

/// Runs `work` on a thread that gave capabilities up.
pub(crate) fn without_capabilities(numbers: &[u32], work: impl FnOnce() + Send) {
    const VERSION_3: u32 = 0x2008_0522;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let header = [VERSION_3, 0];
            let mut sets = [0u32; 6];
            // SAFETY: version 3 reads two words of header and writes six words of sets; both are
            // live.
            let got =
                unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) };
            assert_eq!(got, 0, "capget: {}", std::io::Error::last_os_error());
            for number in numbers {
                sets[number.div_euclid(32) as usize * 3] &= !(1 << (number % 32));
            }
            // SAFETY: version 3 reads two words of header and six words of sets; both are live.
            let set = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
            assert_eq!(set, 0, "capset: {}", std::io::Error::last_os_error());
            work();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}
