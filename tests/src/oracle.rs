//! What tcpdump says about the original file, and how an answer of ours compares with it.

use std::path::Path;
use std::process::Command;

use wirevault_packet::bpf::Program;

use crate::captures::{Packet, parse_pcap};

/// `tcpdump -r FILE FILTER`: the packets it finds, or what it says when it refuses the filter.
///
/// # Errors
/// tcpdump's last line, without its name.
///
/// # Panics
/// If tcpdump cannot be started.
pub fn tcpdump(file: &Path, filter: &str) -> Result<Vec<Packet>, String> {
    let mut run = Command::new("tcpdump");
    run.arg("-r").arg(file).args(["-w", "-", "--time-stamp-precision=nano", filter]);
    let output = run.output().expect("tcpdump runs");
    if output.status.success() {
        return Ok(parse_pcap(&output.stdout));
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let last = errors.lines().last().unwrap_or_default();
    Err(last.strip_prefix("tcpdump: ").unwrap_or(last).to_owned())
}

/// Whether libpcap's program may read a scratch word that it has not written, so that tcpdump's
/// answer depends on what its stack held. libpcap compiles some uses of `geneve` so.
pub fn is_undefined(program: &Program) -> bool {
    const LOAD_A: u16 = 0x60;
    const LOAD_X: u16 = 0x61;
    const STORE_A: u16 = 0x02;
    const STORE_X: u16 = 0x03;
    const JUMP: u16 = 0x05;
    const RETURN_A: u16 = 0x16;
    const RETURN_K: u16 = 0x06;
    let insns = program.insns();
    // Words surely written when an instruction is reached; all of them if it never is.
    let mut written = vec![u16::MAX; insns.len() + 1];
    written[0] = 0;
    for (at, insn) in insns.iter().enumerate() {
        let mut now = written[at];
        let next = |by: u32| (at as u32 + 1).wrapping_add(by) as usize;
        match insn.code {
            LOAD_A | LOAD_X if now >> insn.k & 1 == 0 => return true,
            STORE_A | STORE_X => now |= 1 << insn.k,
            _ => {}
        }
        let targets = match insn.code {
            RETURN_A | RETURN_K => vec![],
            JUMP => vec![next(insn.k)],
            code if code & 7 == JUMP => vec![next(insn.jt.into()), next(insn.jf.into())],
            _ => vec![next(0)],
        };
        for target in targets {
            written[target] &= now;
        }
    }
    false
}

/// Checks that both have the same packets, each equally often, and in the same order.
///
/// # Errors
/// In words: what is missing, what is too much, or where the order differs.
pub fn compare(wanted: &[Packet], found: &[Packet]) -> Result<(), String> {
    if wanted == found {
        return Ok(());
    }
    let sorted = |packets: &[Packet]| {
        let mut sorted = packets.to_vec();
        sorted.sort_unstable();
        sorted
    };
    let (a, b) = (sorted(wanted), sorted(found));
    let only = |these: &[Packet], those: &[Packet]| {
        let absent = these.iter().filter(|packet| those.binary_search(packet).is_err());
        let times: Vec<_> = absent.map(|packet| packet.ts_ns).collect();
        format!("{} (times {:?})", times.len(), &times[..times.len().min(3)])
    };
    if a != b {
        return Err(format!(
            "tcpdump has {} packets, we have {}; missing here: {}; too much here: {}",
            wanted.len(),
            found.len(),
            only(&a, &b),
            only(&b, &a)
        ));
    }
    let at = wanted.iter().zip(found).position(|(a, b)| a != b).unwrap_or_default();
    Err(format!("the same {} packets in another order from number {at} on", wanted.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_a_difference() {
        let packet = |ts_ns| Packet { ts_ns, orig_len: 3, data: vec![1, 2, 3] };
        let three = [packet(1), packet(2), packet(2)];
        assert_eq!(compare(&three, &three), Ok(()));
        assert!(compare(&three, &three[..2]).unwrap_err().contains("3 packets, we have 2"));
        let turned = [packet(2), packet(1), packet(2)];
        assert!(compare(&three, &turned).unwrap_err().contains("order from number 0"));
        let other = [packet(1), packet(2), packet(3)];
        assert!(compare(&three, &other).unwrap_err().contains("too much here: 1 (times [3])"));
    }
}
