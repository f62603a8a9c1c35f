//! Readers of pcap and pcapng that are not ours.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const SCAPY: &str = "\
import sys
from scapy.utils import RawPcapNgReader
print(sum(1 for _ in RawPcapNgReader(sys.argv[1])))
";
const DPKT: &str = "\
import sys, dpkt
print(sum(1 for _ in dpkt.pcapng.Reader(open(sys.argv[1], 'rb'))))
";
const PYTHON_PCAPNG: &str = "\
import sys
from pcapng import FileScanner
from pcapng.blocks import EnhancedPacket
print(sum(1 for block in FileScanner(open(sys.argv[1], 'rb')) if isinstance(block, EnhancedPacket)))
";

/// A reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// Wireshark's dissector.
    Tshark,
    /// Wireshark's counter.
    Capinfos,
    /// libpcap.
    Tcpdump,
    /// The Python package `scapy`.
    Scapy,
    /// The Python package `dpkt`.
    Dpkt,
    /// The Python package `python-pcapng`.
    PythonPcapng,
}

impl Reader {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Tshark, Self::Capinfos, Self::Tcpdump, Self::Scapy, Self::Dpkt, Self::PythonPcapng];

    /// Packets that the reader finds in a file; `None` if the reader is not installed here, which
    /// is said, and which fails where `CI` is set.
    ///
    /// # Panics
    /// If the reader refuses the file or ends with another exit code than 0.
    pub fn count(self, file: &Path) -> Option<u64> {
        let file = file.to_str().expect("paths of tests are UTF-8");
        let output = match self {
            Self::Tshark => {
                start("tshark", &["-n", "-r", file, "-T", "fields", "-e", "frame.number"])?
            }
            Self::Capinfos => start("capinfos", &["-M", "-T", "-r", "-c", file])?,
            Self::Tcpdump => start("tcpdump", &["-n", "--count", "-r", file])?,
            Self::Scapy => python("scapy", SCAPY, &[file])?,
            Self::Dpkt => python("dpkt", DPKT, &[file])?,
            Self::PythonPcapng => python("pcapng", PYTHON_PCAPNG, &[file])?,
        };
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{self:?}: {}: {errors}", output.status);
        let text = String::from_utf8_lossy(&output.stdout);
        let number = |word: &str| {
            word.parse().unwrap_or_else(|_| panic!("{self:?} gives no count: {text}{errors}"))
        };
        Some(match self {
            Self::Tshark => text.lines().count() as u64,
            Self::Capinfos => number(text.split_whitespace().last().unwrap_or_default()),
            Self::Tcpdump => number(text.split_whitespace().next().unwrap_or_default()),
            Self::Scapy | Self::Dpkt | Self::PythonPcapng => number(text.trim()),
        })
    }
}

/// Runs a program that is not ours; `None`, loudly, if it is not installed here, which fails where
/// `CI` is set.
pub fn start(name: &str, args: &[&str]) -> Option<Output> {
    match Command::new(name).args(args).output() {
        Ok(output) => Some(output),
        Err(error) => missing(name, &error.to_string()),
    }
}

/// Runs Python code that needs a module; `None` as with [`start`].
///
/// # Panics
/// If Python is there and does not run.
pub fn python(module: &str, code: &str, args: &[&str]) -> Option<Output> {
    let python = interpreter();
    let probe = Command::new(&python).args(["-c", &format!("import {module}")]).output();
    match probe {
        Ok(output) if output.status.success() => {}
        Ok(output) => return missing(module, &String::from_utf8_lossy(&output.stderr)),
        Err(error) => return missing(module, &format!("{}: {error}", python.display())),
    }
    Some(Command::new(python).args(["-c", code]).args(args).output().expect("Python runs"))
}

/// The Python that has the packages: `./test` makes one.
pub fn interpreter() -> PathBuf {
    let named = std::env::var_os("WIREVAULT_PYTHON").map(PathBuf::from);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    named.unwrap_or_else(|| root.join("target/python/bin/python"))
}

/// Says that a program of others is missing; fails where `CI` is set.
pub fn missing<T>(name: &str, why: &str) -> Option<T> {
    let in_ci = std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false");
    assert!(!in_ci, "{name} is missing: {why}");
    eprintln!("SKIPPED: {name} is missing, so nothing is proved with it: {why}");
    None
}
