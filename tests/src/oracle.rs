//! What tcpdump says about the original file, and how an answer of ours compares with it.

use std::path::Path;
use std::process::Command;

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
