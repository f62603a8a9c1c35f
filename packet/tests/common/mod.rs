//! Frames and filters at random, from one seed, and libpcap to compare with.

pub mod filters;
pub mod frames;

use pcap::{BpfProgram, Capture, Linktype};
use proptest::test_runner::Config;
use wirevault_format::LinkType;
use wirevault_packet::bpf::Program;
pub use wirevault_testkit::random::Random;

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
