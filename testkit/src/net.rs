//! Network namespaces, veth pairs, and packets that carry what they must look like.
//!
//! ```text
//!  test thread, in its namespace:  Sender ──► vb ═══ va ◄── recorder, tcpdump
//! ```
//! A [`Stamp`] describes a whole frame: who sees one packet can say whether it was altered, and who
//! sees all of them can say which are missing or doubled.

use std::fs::{self, File};
use std::io;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use caps::{CapSet, Capability};
use nix::sched::{CloneFlags, setns};
use wirevault_telemetry::clock::{Clock, SystemClock};

/// Longest wait for what the kernel or another program does; machines are shared.
const PATIENCE: Duration = Duration::from_secs(60);

/// A namespace that the calling thread, and every program it starts, is in until it is dropped.
pub struct Namespace {
    name: String,
    before: File,
}

impl Namespace {
    /// Makes one and enters it. `None`, loudly, if privileges are missing and `CI` is not `true`.
    ///
    /// # Panics
    /// If privileges are missing and `CI` is `true`.
    pub fn new() -> Option<Self> {
        match Self::enter() {
            Ok(namespace) => Some(namespace),
            Err(error) => {
                let ci = std::env::var("CI").is_ok_and(|value| value == "true");
                assert!(!ci, "CI=true, but no network namespace can be made: {error}");
                eprintln!("SKIPPED: this test needs root and `ip netns`: {error}");
                None
            }
        }
    }

    /// Makes one and enters it.
    ///
    /// # Errors
    /// Privileges or `ip` are missing.
    pub fn enter() -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("wv-{}-{number}", std::process::id());
        let made = Command::new("ip").args(["netns", "add", &name]).output()?;
        if !made.status.success() {
            let said = String::from_utf8_lossy(&made.stderr);
            return Err(io::Error::other(format!("ip netns add: {}", said.trim())));
        }
        let before = File::open("/proc/thread-self/ns/net")?;
        let namespace = Self { name, before };
        let inside = File::open(format!("/run/netns/{}", namespace.name))?;
        setns(inside, CloneFlags::CLONE_NEWNET)?;
        // No router solicitations between the packets.
        for scope in ["all", "default"] {
            fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1")?;
        }
        Ok(namespace)
    }

    /// Has the calling thread be in it, too.
    ///
    /// # Panics
    /// If it is gone.
    pub fn join(&self) {
        let inside = File::open(format!("/run/netns/{}", self.name)).expect("namespace");
        setns(inside, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
    }

    /// Its name, as `ip netns` has it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` in the namespace; gives what it printed.
    ///
    /// # Panics
    /// If it fails.
    pub fn ip(&self, args: &[&str]) -> Vec<u8> {
        let output = Command::new("ip").args(["-n", &self.name]).args(args).output().expect("ip");
        assert!(output.status.success(), "ip {args:?}: {output:?}");
        output.stdout
    }

    /// Adds a veth pair that is up: `a` has the address 02:00:00:00:00:01, `b` ends in 02.
    pub fn add_veth(&self, a: &str, b: &str) {
        self.ip(&["link", "add", a, "type", "veth", "peer", "name", b]);
        for (name, address) in [(a, "02:00:00:00:00:01"), (b, "02:00:00:00:00:02")] {
            self.ip(&["link", "set", name, "address", address, "up"]);
        }
        self.wait_for_carrier(&[a, b]);
    }

    /// Waits until these interfaces send. One whose peer has just come up throws away what is to be
    /// sent until a work queue of the kernel has been at it, however late that is.
    ///
    /// # Panics
    /// If that does not come.
    pub fn wait_for_carrier(&self, interfaces: &[&str]) {
        for interface in interfaces {
            wait_for("a carrier", PATIENCE, || {
                let link = self.ip(&["link", "show", interface]);
                String::from_utf8_lossy(&link).contains("state UP").then_some(())
            });
        }
    }
}

/// Packets that an interface of the thread's namespace has received: a veth pair's own queue is
/// behind them.
///
/// # Panics
/// If there is no such interface.
pub fn received(interface: &str) -> u64 {
    let table = fs::read_to_string("/proc/thread-self/net/dev").expect("interfaces");
    let mut rows = table.lines().filter_map(|row| row.trim_start().split_once(':'));
    let (_, counts) = rows.find(|(name, _)| *name == interface).expect("an interface");
    // Its bytes, then its packets.
    counts.split_whitespace().nth(1).and_then(|count| count.parse().ok()).expect("a count")
}

impl Drop for Namespace {
    fn drop(&mut self) {
        setns(&self.before, CloneFlags::CLONE_NEWNET).expect("leave the namespace");
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Sends frames as they are.
pub struct Sender {
    socket: pcap::Capture<pcap::Active>,
}

impl Sender {
    /// On the interface of that name in the thread's namespace.
    pub fn on(interface: &str) -> Self {
        let socket = pcap::Capture::from_device(interface).expect("device");
        let socket = socket.snaplen(64).buffer_size(1 << 16).open().expect("raw socket");
        Self { socket }
    }

    /// Sends one frame; waits where the interface's queue is full.
    pub fn send(&mut self, frame: &[u8]) {
        let begin = Instant::now();
        while let Err(error) = self.socket.sendpacket(frame) {
            assert!(begin.elapsed() < PATIENCE, "sending: {error}");
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

/// A UDP packet over IPv4 whose payload begins with `number`, at byte 42.
pub fn udp(to: [u8; 6], from: [u8; 6], source_port: u16, number: u32) -> Vec<u8> {
    let mut frame = [&to[..], &from, &[8, 0]].concat();
    frame.extend([0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 10, 99, 0, 1, 10, 99, 0, 2]);
    frame.extend(source_port.to_be_bytes());
    frame.extend([0x27, 0x0f, 0, 26, 0, 0]);
    frame.extend(number.to_be_bytes());
    frame.extend([0; 14]);
    frame
}

/// What a frame is made from, and what its payload says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stamp {
    /// Tells sendings of one test apart. It is the low part of the UDP destination port.
    pub run: u16,
    /// Sequence number within the run.
    pub number: u64,
    /// When it was sent, Unix nanoseconds; 0 where nobody asks.
    pub sent_ns: u64,
    /// UDP source port.
    pub flow: u16,
    /// Bytes of the frame without its VLAN tag; at least [`FRAME_BYTES_MIN`].
    pub bytes: u16,
    /// VLAN tag's control information; 0 is no tag.
    pub vlan: u16,
}

const HEADERS_BYTES: usize = 14 + 20 + 8;
const MAGIC: [u8; 4] = *b"WVst";
const STAMP_BYTES: usize = 4 + 2 + 8 + 8 + 2 + 2 + 2;
/// The smallest stamped frame.
pub const FRAME_BYTES_MIN: u16 = (HEADERS_BYTES + STAMP_BYTES) as u16;
/// UDP destination port of run 0.
pub const PORT: u16 = 20_000;

impl Stamp {
    /// UDP destination port of a run.
    pub fn port(run: u16) -> u16 {
        PORT + run
    }

    /// The frame.
    pub fn frame(&self) -> Vec<u8> {
        let bytes = self.bytes.max(FRAME_BYTES_MIN);
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        if self.vlan != 0 {
            frame.extend([0x81, 0]);
            frame.extend(self.vlan.to_be_bytes());
        }
        frame.extend([8, 0, 0x45, 0]);
        frame.extend((bytes - 14).to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 99, 0, 1, 10, 99, 0, 2]);
        frame.extend(self.flow.to_be_bytes());
        frame.extend(Self::port(self.run).to_be_bytes());
        frame.extend((bytes - 34).to_be_bytes());
        frame.extend([0, 0]);
        frame.extend(MAGIC);
        frame.extend(self.run.to_be_bytes());
        frame.extend(self.number.to_be_bytes());
        frame.extend(self.sent_ns.to_be_bytes());
        frame.extend(self.flow.to_be_bytes());
        frame.extend(bytes.to_be_bytes());
        frame.extend(self.vlan.to_be_bytes());
        let tag_bytes = if self.vlan == 0 { 0 } else { 4 };
        let mut value = self.number;
        while frame.len() < usize::from(bytes) + tag_bytes {
            value = value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            frame.push((value >> 56) as u8);
        }
        frame
    }

    /// What a frame says of itself; `None` if it carries no stamp.
    ///
    /// # Panics
    /// If a stamped frame is not byte for byte what its stamp describes.
    pub fn read(frame: &[u8]) -> Option<Self> {
        let tagged = frame.get(12..14)? == [0x81, 0];
        let payload = frame.get(HEADERS_BYTES + if tagged { 4 } else { 0 }..)?;
        let stamp = payload.get(..STAMP_BYTES).filter(|stamp| stamp.starts_with(&MAGIC))?;
        let u16_at = |at: usize| u16::from_be_bytes([stamp[at], stamp[at + 1]]);
        let u64_at = |at: usize| u64::from_be_bytes(std::array::from_fn(|n| stamp[at + n]));
        let stamp = Self {
            run: u16_at(4),
            number: u64_at(6),
            sent_ns: u64_at(14),
            flow: u16_at(22),
            bytes: u16_at(24),
            vlan: u16_at(26),
        };
        assert_eq!(stamp.frame(), frame, "a packet was altered: {stamp:?}");
        Some(stamp)
    }
}

/// Runs `work` on a thread that gave capabilities up.
///
/// # Panics
/// If `work` does, or a capability cannot be given up.
pub fn without_capabilities(given_up: &[Capability], work: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            for capability in given_up {
                let dropped = caps::drop(None, CapSet::Effective, *capability);
                dropped.expect("a capability can be given up");
            }
            work();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Unix time in nanoseconds.
pub fn now_ns() -> u64 {
    SystemClock.unix_ns()
}

/// Asks until there is an answer.
///
/// # Panics
/// If there is none within `limit`.
pub fn wait_for<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begin.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_says_what_it_is() {
        for (bytes, vlan) in [(0, 0), (FRAME_BYTES_MIN, 7), (1514, 0x2abc)] {
            let bytes = bytes.max(FRAME_BYTES_MIN);
            let stamp = Stamp { run: 3, number: 1 << 40, sent_ns: 5, flow: 1000, bytes, vlan };
            let frame = stamp.frame();
            assert_eq!(frame.len(), usize::from(bytes) + if vlan == 0 { 0 } else { 4 });
            assert_eq!(Stamp::read(&frame), Some(stamp));
        }
        assert_eq!(Stamp::read(&[0; 100]), None);
    }

    #[test]
    #[should_panic(expected = "altered")]
    fn an_altered_frame_is_noticed() {
        let stamp = Stamp { run: 0, number: 1, sent_ns: 0, flow: 1, bytes: 200, vlan: 0 };
        let mut frame = stamp.frame();
        frame[150] ^= 1;
        Stamp::read(&frame);
    }
}
