//! Disks and the room on them.

use std::path::PathBuf;
use std::sync::Arc;

use wirevault_index::{KeySource, open_store};
use wirevault_media::Media;

use super::Finding;
use super::network::bus;
use super::root::Root;
use crate::output::size_text;

/// Names of block devices that are no disks.
const NO_DISKS: [&str; 8] = ["loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd"];

/// Every disk of the machine.
pub(super) fn check(root: &Root) -> Vec<Finding> {
    let mut names = root.names("sys/block");
    names.retain(|name| !NO_DISKS.iter().any(|no| name.starts_with(no)));
    if names.is_empty() {
        let advice = "a store can lie in a directory of any file system";
        return vec![Finding::warn("disks", "none is shown in /sys/block", advice)];
    }
    names.iter().flat_map(|name| disk(root, name)).collect()
}

fn disk(root: &Root, name: &str) -> Vec<Finding> {
    let folder = format!("sys/block/{name}");
    let file = |file: &str| root.text(&format!("{folder}/{file}"));
    let model = file("device/model").unwrap_or_else(|| "no model".to_owned());
    // Sectors of 512 bytes, whatever the device's blocks are.
    let bytes = file("size").and_then(|it| it.parse::<u64>().ok()).unwrap_or(0) * 512;
    let about = format!("disk {name}");
    let cache = file("queue/write_cache").unwrap_or_else(|| "unknown".to_owned());
    let mut findings =
        vec![Finding::ok(&about, format!("{model}, {}, write cache: {cache}", size_text(bytes)))];
    if file("queue/rotational").as_deref() == Some("1") {
        let advice = "it turns, or says so: a store on it holds a tenth of a flash disk's rate";
        findings.push(Finding::warn(&about, "rotational", advice));
    }
    // `[none] mq-deadline`: the one in brackets is in use.
    let scheduler = file("queue/scheduler").unwrap_or_default();
    let used = scheduler.split(['[', ']']).nth(1).unwrap_or("none");
    let advice =
        format!("echo none > /sys/block/{name}/queue/scheduler: writes are in order anyway");
    let flash = file("queue/rotational").as_deref() == Some("0");
    let seen = format!("scheduler {used}");
    findings.push(Finding::judged(&about, seen, flash && used != "none", &advice));
    // A namespace's controller is a level above it; its PCI device another one.
    findings.extend(bus(root, &about, &format!("{folder}/device/device")));
    findings
}

/// Whether the quota of a store's volumes can be had: what they take and what is free.
pub(super) fn room(stores: &[PathBuf]) -> Vec<Finding> {
    // That the store does not open is told with the configuration.
    let Some(Ok(reader)) = stores.first().map(|first| open_store(first, &KeySource::Recorded))
    else {
        return Vec::new();
    };
    let volumes = reader.volumes.iter();
    volumes.filter_map(|it| of_volume(&it.media, it.superblock.quota_bytes)).collect()
}

fn of_volume(media: &Arc<dyn Media>, quota_bytes: u64) -> Option<Finding> {
    let (path, free) = (media.describe(), media.free_bytes().ok()?);
    // A quota that is used already needs no free space.
    let total = media.total_bytes().ok()?;
    let (quota, whole) = (size_text(quota_bytes), size_text(total));
    let seen = format!("quota {quota} of {whole}, {} free now", size_text(free));
    let beyond = quota_bytes > total;
    let advice = "others' files or the end of the file system come first: make the quota smaller";
    Some(Finding::judged(format!("volume {path}"), seen, beyond, advice))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_disk_is_told_with_what_slows_it() {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("nvme0n1/device/model", "Amazon EC2 NVMe Instance Storage    \n"),
            ("nvme0n1/size", "2097152\n"),
            ("nvme0n1/queue/write_cache", "write through\n"),
            ("nvme0n1/queue/rotational", "0\n"),
            ("nvme0n1/queue/scheduler", "none [mq-deadline] bfq\n"),
            ("sda/queue/rotational", "1\n"),
            ("sda/queue/scheduler", "[mq-deadline] none\n"),
            ("loop0/size", "0\n"),
        ] {
            let path = dir.path().join("sys/block").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let findings = check(&Root::new(dir.path()));
        let told = |about: &str, verdict| {
            let of = findings.iter().filter(|it| it.about == about && it.verdict == verdict);
            of.map(|it| format!("{} > {}\n", it.seen, it.advice)).collect::<String>()
        };
        let fine = "Amazon EC2 NVMe Instance Storage, 1.0 GiB, write cache: write through";
        assert!(told("disk nvme0n1", Verdict::Ok).contains(fine), "{findings:?}");
        let warned = told("disk nvme0n1", Verdict::Warn);
        assert!(warned.contains("scheduler mq-deadline > echo none"), "{findings:?}");
        assert!(told("disk sda", Verdict::Warn).contains("rotational"), "{findings:?}");
        assert!(told("disk sda", Verdict::Ok).contains("scheduler mq-deadline"), "{findings:?}");
        assert!(findings.iter().all(|it| !it.about.contains("loop")), "{findings:?}");
    }
}
