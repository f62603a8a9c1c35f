//! The filter language is libpcap's: libpcap compiles, [`Program`] runs.
//!
//! Invariants:
//! - what `tcpdump -r` refuses is refused here, with libpcap's own words;
//! - the instructions come out unchanged, optimised as tcpdump's are, with network mask 0 as
//!   tcpdump uses for files.
//!
//! libpcap resolves host names in a filter while it compiles, as it does for tcpdump.

use std::io::{self, PipeReader, Write};
use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError};

use pcap::Capture;
use wirevault_format::LinkType;
use wirevault_packet::bpf::{Insn, Program};

use crate::export::pcap_header;

/// Bytes of a filter at most. libpcap takes time by the square of the length: 3 s for a list of
/// 1700 addresses of this length, 12 s for one of twice the length, and nothing else compiles
/// meanwhile.
pub const EXPRESSION_BYTES_MAX: usize = 32 << 10;

/// Bytes of stack for the thread that compiles: libpcap's recursion on the longest expression stays
/// far below.
const STACK_BYTES: usize = 64 << 20;

/// libpcap's parser was not reentrant before 1.8 and its name resolution may not be: one
/// compilation at a time.
static COMPILING: Mutex<()> = Mutex::new(());

/// A filter that cannot be used for one link type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the filter does not fit link type {link_type}: {message}")]
pub struct FilterError {
    /// Link type it was compiled for.
    pub link_type: LinkType,
    /// What is wrong, in libpcap's words where they are libpcap's.
    pub message: String,
}

/// Compiles a filter for packets of one link type. An empty filter takes every packet.
///
/// # Errors
/// libpcap refuses the expression, or it asks for something that stored packets do not carry
/// (`inbound`).
pub fn compile(expression: &str, link_type: LinkType) -> Result<Program, FilterError> {
    let refused = |message: String| FilterError { link_type, message };
    if expression.len() > EXPRESSION_BYTES_MAX {
        let have = expression.len();
        return Err(refused(format!(
            "it is {have} bytes long, {EXPRESSION_BYTES_MAX} are possible: ask in several queries"
        )));
    }
    let lines = instructions(expression, link_type).map_err(refused)?;
    let insns = lines.iter().map(|line| line.parse::<Insn>()).collect::<Result<Vec<_>, _>>();
    let insns = insns.map_err(|error| refused(error.to_string()))?;
    Program::new(insns).map_err(|error| refused(error.to_string()))
}

/// Compiles a filter that is narrowed to what another takes. Where the other is empty this is
/// [`compile`].
///
/// # Errors
/// As [`compile`], for either of them.
pub fn compile_within(
    expression: &str,
    within: &str,
    link_type: LinkType,
) -> Result<Program, FilterError> {
    let asked = compile(expression, link_type)?;
    if within.is_empty() {
        return Ok(asked);
    }
    let both = compile(within, link_type)?.and(&asked);
    both.map_err(|error| FilterError { link_type, message: error.to_string() })
}

/// The program as `tcpdump -ddd` prints it. Runs on a thread of its own, whose stack suits the
/// recursion.
fn instructions(expression: &str, link_type: LinkType) -> Result<Vec<String>, String> {
    let work = || {
        let savefile = EmptySavefile::new(link_type).map_err(|error| error.to_string())?;
        let _one_at_a_time = COMPILING.lock().unwrap_or_else(PoisonError::into_inner);
        let handle = Capture::from_file(savefile.path()).map_err(words)?;
        let program = handle.compile(expression, true).map_err(words)?;
        Ok(program.get_instructions().iter().map(ToString::to_string).collect())
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("filter".into()).stack_size(STACK_BYTES);
        let spawned = thread.spawn_scoped(scope, work).map_err(|error| error.to_string())?;
        spawned.join().map_err(|_| "compiling it failed unexpectedly".to_owned())?
    })
}

/// A pcap file without packets, in a pipe.
///
/// libpcap compiles differently for files: it refuses what only a live capture knows, and for NULL
/// link headers it takes the address families of every operating system. Its handle for no capture
/// at all does neither.
struct EmptySavefile {
    reader: PipeReader,
}

impl EmptySavefile {
    /// The writing end is closed when this returns, so that no reader ever waits.
    fn new(link_type: LinkType) -> io::Result<Self> {
        let (reader, mut writer) = io::pipe()?;
        writer.write_all(&pcap_header(link_type))?;
        Ok(Self { reader })
    }

    fn path(&self) -> String {
        format!("/dev/fd/{}", self.reader.as_raw_fd())
    }
}

fn words(error: pcap::Error) -> String {
    match error {
        pcap::Error::PcapError(message) => message,
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// What tcpdump compiles for a file; `None` if it refuses.
    fn tcpdump(expression: &str, link_type: LinkType) -> Option<Vec<Insn>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), pcap_header(link_type)).unwrap();
        let mut run = Command::new("tcpdump");
        let output = run.arg("-ddd").arg("-r").arg(file.path()).arg(expression).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        output.status.success().then(|| text.lines().skip(1).map(|l| l.parse().unwrap()).collect())
    }

    #[test]
    fn nothing_in_a_question_widens_what_it_is_narrowed_to() {
        let udp = |port: u16, tag: &[u8]| {
            let mut frame =
                [&[0; 12][..], tag, &[8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17]].concat();
            frame.extend([0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, 9]);
            frame.extend(port.to_be_bytes());
            frame.extend([0, 8, 0, 0]);
            frame
        };
        let takes = |expression: &str, frame: &[u8]| {
            let program = compile_within(expression, "not udp port 53", LinkType::ETHERNET);
            program.map(|program| program.run(frame, frame.len() as u32) != 0)
        };
        for expression in ["", "udp", "udp port 53 or udp", "ip or vlan", "not udp port 80"] {
            assert_eq!(takes(expression, &udp(53, &[])), Ok(false), "{expression}");
            assert_eq!(takes(expression, &udp(54, &[])), Ok(true), "{expression}");
        }
        // It means what it means alone: `vlan` shifts the question only.
        assert_eq!(takes("vlan and udp", &udp(54, &[0x81, 0, 0, 5])), Ok(true));
        assert_eq!(takes("host 10.0.0.1", &udp(54, &[])), Ok(true));
        for expression in ["udp) or (udp", "udp) or udp port 53 or (udp", "or udp"] {
            assert!(takes(expression, &udp(53, &[])).is_err(), "{expression}");
        }
    }

    #[test]
    fn programs_and_refusals_are_tcpdumps() {
        let expressions = [
            "",
            "tcp",
            "udp port 53",
            "host 10.0.0.1 and not port 22",
            "vlan 5 and host 10.0.0.1",
            "ip broadcast",
            "ip6 host 2001:db8::1",
            "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
            "icmp6[0] == 135",
            "less 100",
            "greater 1000",
            "net 10.0.0.0/8",
            "portrange 1-1023",
            "ether host 00:11:22:33:44:55",
            "mpls 100",
            "geneve",
            "inbound",
            "outbound",
            "ifname eth0",
            "host",
            "port 99999",
            "(tcp",
            "tcp and udp",
            "vxlan",
            "ip protochain 6",
            "ether[0] & 1 != 0",
            "len > 100",
            "not ip",
            "sctp port 5",
            "arp",
        ];
        for link_type in [
            LinkType::ETHERNET,
            LinkType::RAW,
            LinkType::NULL,
            LinkType::LINUX_SLL,
            LinkType::LINUX_SLL2,
            LinkType::IPV4,
            LinkType::IPV6,
            LinkType(105),
        ] {
            for expression in expressions {
                let ours = instructions(expression, link_type)
                    .ok()
                    .filter(|_| compile(expression, link_type).is_ok());
                let ours: Option<Vec<Insn>> =
                    ours.map(|lines| lines.iter().map(|line| line.parse().unwrap()).collect());
                let theirs = tcpdump(expression, link_type);
                assert_eq!(ours, theirs, "{expression:?} on {link_type}");
            }
        }
    }

    #[test]
    fn an_empty_filter_takes_everything() {
        let all = compile("", LinkType::ETHERNET).unwrap();
        assert_ne!(all.run(&[], 0), 0);
        let blank = compile("  \n", LinkType(147)).unwrap();
        assert_ne!(blank.run(&[1], 1), 0);
    }

    #[test]
    fn refusals_name_the_link_type_and_say_what_libpcap_says() {
        let error = compile("ether host 00:11:22:33:44:55", LinkType::RAW).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("RAW") && text.contains("ethernet"), "{text}");
        assert!(compile("inbound", LinkType::ETHERNET).is_err());
        assert!(compile("tcp\0", LinkType::ETHERNET).is_err());
    }

    #[test]
    fn the_longest_expressions_end_with_an_answer() {
        let mut list = "host 10.0.0.0".to_owned();
        for n in 1.. {
            let more = format!(" or host 10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255);
            if list.len() + more.len() > EXPRESSION_BYTES_MAX {
                break;
            }
            list += &more;
        }
        let started = std::time::Instant::now();
        let program = compile(&list, LinkType::RAW);
        eprintln!("{:?} {:?}", started.elapsed(), program.as_ref().err());
        let deep = "(".repeat(30_000) + "tcp" + &")".repeat(30_000);
        let _ = compile(&deep, LinkType::ETHERNET);
        let nots = "not ".repeat(15_000) + "tcp";
        let _ = compile(&nots, LinkType::ETHERNET);
        eprintln!("{:?}", started.elapsed());
        assert!(compile(&" ".repeat(EXPRESSION_BYTES_MAX + 1), LinkType::RAW).is_err());
    }

    #[test]
    fn threads_compile_at_the_same_time() {
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for n in 1..40 {
                        assert!(compile(&format!("port {n}"), LinkType::ETHERNET).is_ok());
                        assert!(compile("host", LinkType::ETHERNET).is_err());
                    }
                });
            }
        });
    }
}
