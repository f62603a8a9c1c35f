//! A temporary store, captures that the test writes itself, and the program as people run it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// Time of the first packet: 2023-11-14 22:13:20 UTC.
pub(crate) const START_S: u64 = 1_700_000_000;
/// Nanoseconds between two packets; not a whole number of microseconds.
pub(crate) const STEP_NS: u64 = 1_000_003;

/// The program, with nothing of the caller's environment that could change what it says.
pub(crate) fn wirevault() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wirevault"));
    command.env("TZ", "UTC").env_remove("NO_COLOR").stdin(Stdio::null());
    command
}

/// What a run said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) bytes: Vec<u8>,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
            bytes: output.stdout,
        }
    }
}

/// Runs the program.
pub(crate) fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Said {
    wirevault().args(arguments).output().unwrap().into()
}

/// Lines that tcpdump prints for a file and a filter.
pub(crate) fn tcpdump(file: &Path, filter: &str) -> Vec<String> {
    let mut command = Command::new("tcpdump");
    let output = command.arg("-n").arg("-r").arg(file).arg(filter).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// A directory with a store in it.
pub(crate) struct Lab {
    dir: TempDir,
}

impl Lab {
    /// A directory, nothing in it.
    pub(crate) fn empty() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// A store without packets.
    pub(crate) fn new(plaintext: bool) -> Self {
        let lab = Self::empty();
        let (store, key) = (lab.path("store"), lab.path("key"));
        let mut arguments = vec!["init", store.to_str().unwrap(), "--quota", "300MiB"];
        match plaintext {
            true => arguments.push("--plaintext"),
            false => arguments.extend(["--key", key.to_str().unwrap()]),
        }
        let said = run(arguments);
        assert_eq!(said.code, Some(0), "{said:?}");
        lab
    }

    /// A store with the packets of [`frames`].
    pub(crate) fn filled(plaintext: bool, packets: u64) -> Self {
        let lab = Self::new(plaintext);
        fs::write(lab.path("a.pcap"), pcap(1, packets)).unwrap();
        let said = run(["import", "--store", lab.store(), lab.path("a.pcap").to_str().unwrap()]);
        assert_eq!(said.code, Some(0), "{said:?}");
        lab
    }

    /// A path in the directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The same as text.
    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// The store's directory.
    pub(crate) fn store(&self) -> &'static str {
        // One leaked path a test keeps the calls short.
        Box::leak(self.text("store").into_boxed_str())
    }

    /// Asks the store.
    pub(crate) fn ask(&self, verb: &str, arguments: &[&str]) -> Said {
        run([verb, "--store", self.store()].iter().chain(arguments))
    }

    /// Files of the segments.
    pub(crate) fn segments(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.path("store")).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> =
            files.filter(|path| path.extension() == Some(OsStr::new("pcapng"))).collect();
        files.sort();
        files
    }
}

/// Frame `number`: TCP to port 80, UDP to port 53, ARP, or UDP in a VLAN, from one of seven hosts.
pub(crate) fn frame(number: u64) -> Vec<u8> {
    let n = number as u8;
    let addresses = [10, 0, 0, 1 + n % 7, 10, 0, 1, 1];
    let payload = vec![b'x'; usize::from(n % 40)];
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    match number % 4 {
        3 if number % 8 == 3 => {
            frame.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1]);
            frame.extend_from_slice(&addresses[..4]);
            frame.extend_from_slice(&[0; 6]);
            frame.extend_from_slice(&addresses[4..]);
            return frame;
        }
        3 => frame.extend_from_slice(&[0x81, 0, 0, 5]),
        _ => {}
    }
    frame.extend_from_slice(&[8, 0]);
    let mut transport = Vec::new();
    let protocol = if number.is_multiple_of(2) { 6 } else { 17 };
    if protocol == 6 {
        transport.extend_from_slice(&(4000 + u16::from(n % 5)).to_be_bytes());
        transport.extend_from_slice(&80u16.to_be_bytes());
        transport.extend_from_slice(&(number as u32).to_be_bytes());
        transport.extend_from_slice(&[0, 0, 0, 0, 0x50, 2, 2, 0, 0, 0, 0, 0]);
    } else {
        transport.extend_from_slice(&(5000 + u16::from(n % 5)).to_be_bytes());
        transport.extend_from_slice(&53u16.to_be_bytes());
        transport.extend_from_slice(&(8 + payload.len() as u16).to_be_bytes());
        transport.extend_from_slice(&[0, 0]);
    }
    transport.extend_from_slice(&payload);
    let total = (20 + transport.len()) as u16;
    frame.extend_from_slice(&[0x45, 0]);
    frame.extend_from_slice(&total.to_be_bytes());
    frame.extend_from_slice(&[0, 1, 0, 0, 64, protocol, 0, 0]);
    frame.extend_from_slice(&addresses);
    frame.extend_from_slice(&transport);
    frame
}

/// A pcap file with nanoseconds.
pub(crate) fn pcap(link_type: u32, packets: u64) -> Vec<u8> {
    pcap_with_step(link_type, packets, STEP_NS)
}

/// The same with another time between packets.
pub(crate) fn pcap_with_step(link_type: u32, packets: u64, step_ns: u64) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [0xa1b2_3c4d, 0x0004_0002, 0, 0, 262_144, link_type] {
        file.extend_from_slice(&u32::to_le_bytes(word));
    }
    for number in 0..packets {
        let frame = frame(number);
        // Raw IP has no link header; frames of the other kinds are no IP and stay what they are.
        let data = if link_type == 101 && number % 4 != 3 { &frame[14..] } else { &frame[..] };
        let ns = START_S * 1_000_000_000 + number * step_ns;
        let length = data.len() as u32;
        for word in [(ns / 1_000_000_000) as u32, (ns % 1_000_000_000) as u32, length, length] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        file.extend_from_slice(data);
    }
    file
}
