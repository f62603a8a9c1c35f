//! Keys in the memory of a running recorder: in pages that are locked and left out of core dumps,
//! and in no others.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use wirevault_tests::captures::write_pcap;
use wirevault_tests::recorder::Site;
use wirevault_tests::traffic::Capture;

/// Bytes that are looked through at a time.
const PIECE_BYTES: u64 = 1 << 20;

/// Memory of a process that has one set of properties.
struct Mapping {
    range: (u64, u64),
    readable: bool,
    /// As `/proc/PID/smaps` has them: `lo` locked, `dd` not in core dumps, `dc` not in children.
    flags: String,
}

impl Mapping {
    fn is_for_secrets(&self) -> bool {
        ["lo", "dd", "dc"].iter().all(|flag| self.flags.split(' ').any(|it| it == *flag))
    }
}

fn mappings(pid: i32) -> Vec<Mapping> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("smaps");
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        let (head, rest) = line.split_once(' ').unwrap_or((line, ""));
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let range = head.split_once('-').and_then(|(from, to)| hex(from).zip(hex(to)));
        if let Some(range) = range {
            let (readable, flags) = (rest.starts_with('r'), String::new());
            mappings.push(Mapping { range, readable, flags });
        } else if let (Some(flags), Some(last)) =
            (line.strip_prefix("VmFlags: "), mappings.last_mut())
        {
            flags.trim().clone_into(&mut last.flags);
        }
    }
    mappings
}

/// How often these bytes occur in a mapping.
fn occurrences(memory: &File, mapping: &Mapping, wanted: &[u8]) -> usize {
    let (mut found, (mut at, end)) = (0, mapping.range);
    let overlap = wanted.len() as u64 - 1;
    let mut piece = vec![0; (PIECE_BYTES + overlap) as usize];
    while at < end {
        let bytes = (end - at).min(PIECE_BYTES + overlap) as usize;
        // The kernel's own pages in our space do not read, and some go while we look.
        if memory.read_exact_at(&mut piece[..bytes], at).is_ok() {
            let mut rest = &piece[..bytes];
            while let Some(next) = rest.iter().position(|byte| *byte == wanted[0]) {
                found += usize::from(rest[next..].starts_with(wanted));
                rest = &rest[next + 1..];
            }
        }
        at += PIECE_BYTES;
    }
    found
}

#[test]
fn keys_lie_in_locked_pages_and_nowhere_else() {
    let site = Site::new("272MiB", 1);
    let file = site.file("a.pcap");
    write_pcap(&file, &Capture::new(5).packets);
    let input = format!("buffer:\n  size: 16MiB\nreplay:\n  file: {}\n", file.display());
    let recorder = site.record_from(&input);
    let text = fs::read_to_string(site.key()).expect("the key file");
    let digits = text.lines().last().expect("a line of digits").to_owned();
    let pairs = (0..digits.len()).step_by(2).map(|at| &digits[at..at + 2]);
    let key: Vec<u8> =
        pairs.map(|pair| u8::from_str_radix(pair, 16).expect("a hexadecimal digit")).collect();
    assert_eq!(key.len(), 32);

    let pid = recorder.pid().as_raw();
    let memory = File::open(format!("/proc/{pid}/mem")).expect("the recorder's memory");
    let (mut locked, mut elsewhere) = (0, Vec::new());
    for mapping in mappings(pid).iter().filter(|mapping| mapping.readable) {
        for wanted in [&key[..], digits.as_bytes()] {
            let found = occurrences(&memory, mapping, wanted);
            match mapping.is_for_secrets() {
                true => locked += found,
                false if found > 0 => {
                    elsewhere.push(format!("{found} in {:x?}: {}", mapping.range, mapping.flags));
                }
                false => {}
            }
        }
    }
    assert!(elsewhere.is_empty(), "the key lies in common memory: {elsewhere:#?}");
    // The provider's own; what the file was read into is zeroed.
    assert_eq!(locked, 1, "copies of the key in locked pages");
}
