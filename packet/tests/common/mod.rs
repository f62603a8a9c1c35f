//! Frames and filters at random, from one seed, and libpcap to compare with.

pub mod filters;
pub mod frames;

use pcap::{BpfProgram, Capture, Linktype};
use proptest::test_runner::Config;
use wirevault_format::LinkType;
use wirevault_packet::bpf::Program;

/// Link types that the generator writes.
pub const LINKS: [LinkType; 8] = [
    LinkType::ETHERNET,
    LinkType::RAW,
    LinkType::LINUX_SLL,
    LinkType::LINUX_SLL2,
    LinkType::NULL,
    LinkType::LOOP,
    LinkType::IPV4,
    LinkType::IPV6,
];

/// Cases of each property, or more where PROPTEST_CASES asks for more. A failing seed is printed,
/// not stored.
pub fn cases(least: u32) -> Config {
    let asked = Config::default();
    Config { failure_persistence: None, cases: least.max(asked.cases), ..asked }
}

/// A small generator of numbers; the same seed gives the same frames on every machine.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }
}

/// Compiles with libpcap. `None`: libpcap refuses the expression for this link type.
pub fn compile(link: LinkType, filter: &str, optimize: bool) -> Option<(BpfProgram, Program)> {
    let theirs = Capture::dead(in_memory(link)).ok()?.compile(filter, optimize).ok()?;
    let insns = theirs.get_instructions().iter().map(|insn| insn.to_string().parse().unwrap());
    let ours = Program::new(insns.collect()).ok()?;
    Some((theirs, ours))
}

/// What libpcap calls a link type that no file names: its numbers for files and for captures differ
/// in raw IP, among those in [`LINKS`]. Source: pcap-linktype(7).
fn in_memory(link: LinkType) -> Linktype {
    const DLT_RAW: i32 = 12;
    match link {
        LinkType::RAW => Linktype(DLT_RAW),
        LinkType(number) => Linktype(i32::from(number)),
    }
}

/// Compiles a filter that must compile.
pub fn must_compile(filter: &str) -> Program {
    compile(LinkType::ETHERNET, filter, true).unwrap_or_else(|| panic!("`{filter}`")).1
}
