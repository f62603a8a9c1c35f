//! Memory, cores, clock, kernel, and what this user may do.

use super::root::{Root, cpu_list};
use super::{Finding, Wanted};
use crate::output::{count_text, size_text};

const PAGE_BYTES: u64 = 2 << 20;
/// Capabilities that recording wants. Source: linux/capability.h.
const CAPABILITIES: [(&str, u32, &str); 4] = [
    ("CAP_NET_RAW", 13, "packet sockets"),
    ("CAP_NET_ADMIN", CAP_NET_ADMIN, "AF_XDP, large socket buffers"),
    ("CAP_IPC_LOCK", CAP_IPC_LOCK, "memory that is not swapped out"),
    ("CAP_BPF", CAP_BPF, "AF_XDP"),
];
const CAP_NET_ADMIN: u32 = 12;
const CAP_IPC_LOCK: u32 = 14;
const CAP_BPF: u32 = 39;
const CAP_SYS_ADMIN: u32 = 21;
/// Sources of time that cost a system call, or a slow device, for each reading.
const SLOW_CLOCKS: [&str; 3] = ["hpet", "acpi_pm", "jiffies"];

pub(super) fn check(root: &Root, wanted: &Wanted) -> Vec<Finding> {
    let mut findings = vec![pages(root, wanted), locked(root, wanted)];
    findings.extend([cores(root), governor(root), time_source(root), set_clock(root)]);
    findings.extend([io_uring(root), rights(root)]);
    findings.extend(socket_buffer(root, wanted));
    findings.extend(iommu(root));
    findings
}

fn pages(root: &Root, wanted: &Wanted) -> Finding {
    let about = "huge pages";
    let folder = "sys/kernel/mm/hugepages/hugepages-2048kB";
    let number = |file: &str| root.number::<u64>(&format!("{folder}/{file}"));
    let needed = wanted.buffer_bytes.div_ceil(PAGE_BYTES);
    let Some(pages) = number("nr_hugepages") else {
        let advice = "packets are kept in ordinary pages, which costs the lanes some percent";
        return Finding::warn(about, "this kernel has none of 2 MiB", advice);
    };
    let free = number("free_hugepages").unwrap_or(0);
    let buffer = size_text(wanted.buffer_bytes);
    let seen = format!("{pages} of 2 MiB, {free} free; a buffer of {buffer} takes {needed}");
    // A recorder that runs has its own already.
    let advice = format!("sysctl vm.nr_hugepages={needed}, and the same in /etc/sysctl.d");
    Finding::judged(about, seen, pages < needed, &advice)
}

/// The limit of this process, which a service need not have.
fn locked(root: &Root, wanted: &Wanted) -> Finding {
    let about = "locked memory";
    let limits = root.text("proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    let Some(soft) = line.and_then(|line| line.split_whitespace().next()) else {
        return Finding::warn(about, "the limit is unknown", "see `ulimit -l`");
    };
    let enough = soft.parse::<u64>().map_or(soft == "unlimited", |it| it > wanted.buffer_bytes);
    let enough = enough || capability(root, CAP_IPC_LOCK) == Some(true);
    let seen = match soft.parse() {
        Ok(bytes) => format!("at most {} without CAP_IPC_LOCK", size_text(bytes)),
        Err(_) => soft.to_owned(),
    };
    let advice = "LimitMEMLOCK=infinity in the unit (the packaged one has it), or ulimit -l";
    Finding::judged(about, seen, !enough, advice)
}

fn cores(root: &Root) -> Finding {
    let about = "cores";
    let cpus = cpu_list(&root.text("sys/devices/system/cpu/online").unwrap_or_default());
    let nodes = root.text("sys/devices/system/node/online").map_or(1, |it| cpu_list(&it).len());
    if cpus.is_empty() {
        return Finding::warn(about, "their number is unknown", "see `nproc`");
    }
    let nodes = count_text(nodes.max(1) as u64, "NUMA node");
    let seen = format!("{} on {nodes}", cpus.len());
    let advice = "a lane, its sealer, and a writer for each volume want a core each; with fewer \
                  than four, lanes seal themselves and sleep between packets";
    Finding::judged(about, seen, cpus.len() < 4, advice)
}

fn governor(root: &Root) -> Finding {
    let about = "frequency";
    let cpus = root.names("sys/devices/system/cpu");
    let governors = cpus.iter().filter_map(|cpu| {
        root.text(&format!("sys/devices/system/cpu/{cpu}/cpufreq/scaling_governor"))
    });
    let mut slow: Vec<_> = governors.filter(|governor| governor != "performance").collect();
    slow.sort();
    slow.dedup();
    match slow.as_slice() {
        [] => Finding::ok(about, "performance, or not ours to choose"),
        slow => {
            let advice = "cpupower frequency-set -g performance: a core that slows down while \
                          packets are few is late when many come";
            Finding::warn(about, format!("governor {}", slow.join(", ")), advice)
        }
    }
}

fn time_source(root: &Root) -> Finding {
    let about = "clock";
    let folder = "sys/devices/system/clocksource/clocksource0";
    match root.text(&format!("{folder}/current_clocksource")) {
        None => Finding::warn(about, "its source is unknown", "see `dmesg | grep clocksource`"),
        Some(source) => {
            let slow = SLOW_CLOCKS.contains(&source.as_str());
            let advice = "boot with clocksource=tsc, if the machine's is reliable";
            Finding::judged(about, format!("source {source}"), slow, advice)
        }
    }
}

fn set_clock(root: &Root) -> Finding {
    let about = "clock";
    let keepers = [
        ("run/systemd/timesync/synchronized", "set by systemd-timesyncd"),
        ("run/chrony", "chrony runs"),
        ("run/ntpd.pid", "ntpd runs"),
    ];
    let cards = root.names("sys/class/ptp").len();
    let cards = match cards {
        0 => String::new(),
        cards => format!("; {}", count_text(cards as u64, "hardware clock")),
    };
    match keepers.iter().find(|(path, _)| root.has(path)) {
        Some((_, who)) => Finding::ok(about, format!("{who}{cards}")),
        None => Finding::warn(
            about,
            format!("nobody seems to set it{cards}"),
            "install chrony: times of packets are this clock's, and answers of several machines \
             are joined by them",
        ),
    }
}

fn io_uring(root: &Root) -> Finding {
    let about = "io_uring";
    match root.number::<u8>("proc/sys/kernel/io_uring_disabled") {
        Some(level @ 1..) => {
            let advice = "sysctl kernel.io_uring_disabled=0, or the recorder's group as \
                          kernel.io_uring_group; without it a thread writes, one call at a time";
            Finding::warn(about, format!("kernel.io_uring_disabled is {level}"), advice)
        }
        // Kernels before 6.6 do not know the switch.
        Some(0) | None => Finding::ok(about, "the kernel does not forbid it"),
    }
}

/// Of this process. Unknown where `/proc` does not say.
fn capability(root: &Root, number: u32) -> Option<bool> {
    let status = root.text("proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let bits = u64::from_str_radix(line.trim(), 16).ok()?;
    Some(bits & (1 << number) != 0)
}

fn rights(root: &Root) -> Finding {
    let about = "rights";
    let has = |number| capability(root, number).unwrap_or(false);
    // Who administers everything may load programs, too.
    let may = |number| has(number) || (number == CAP_BPF && has(CAP_SYS_ADMIN));
    let missing: Vec<_> = CAPABILITIES.iter().filter(|(_, number, _)| !may(*number)).collect();
    if missing.is_empty() {
        return Finding::ok(about, "all that recording wants");
    }
    let missing = missing.iter().map(|(name, _, what)| format!("{name} ({what})"));
    let seen = format!("this user lacks {}", missing.collect::<Vec<_>>().join(", "));
    Finding::warn(about, seen, "the packaged unit has them; by hand run the recorder as root")
}

fn socket_buffer(root: &Root, wanted: &Wanted) -> Option<Finding> {
    let max: u64 = root.number("proc/sys/net/core/rmem_max")?;
    let bytes = wanted.socket_buffer_bytes;
    let short = bytes > max && capability(root, CAP_NET_ADMIN) != Some(true);
    (bytes > 0).then(|| {
        let seen = format!("net.core.rmem_max is {}, {} wanted", size_text(max), size_text(bytes));
        let advice = format!("sysctl net.core.rmem_max={bytes}, or CAP_NET_ADMIN for the recorder");
        Finding::judged("mirror targets", seen, short, &advice)
    })
}

/// Only devices that are driven past the kernel want one.
fn iommu(root: &Root) -> Option<Finding> {
    let groups = root.names("sys/kernel/iommu_groups").len();
    let seen = format!("{}; `vfio` can be used", count_text(groups as u64, "group"));
    (groups > 0).then(|| Finding::ok("IOMMU", seen))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::Verdict;
    use super::*;

    /// The finding about this in a machine with these files, if there is one.
    fn found(about: &str, files: &[(&str, &str)], wanted: &Wanted) -> Vec<Finding> {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let mut findings = check(&Root::new(dir.path()), wanted);
        findings.retain(|finding| finding.about == about);
        findings
    }

    #[test]
    fn each_limit_is_told_with_a_way_out() {
        const PAGES: &str = "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
        const STATUS: &str = "proc/self/status";
        const LIMITS: &str = "proc/self/limits";
        const GOVERNOR: &str = "sys/devices/system/cpu/cpu3/cpufreq/scaling_governor";
        const SOURCE: &str = "sys/devices/system/clocksource/clocksource0/current_clocksource";
        let locked = "Limit   Soft Limit\nMax locked memory         8388608   8388608   bytes\n";
        let (ok, warn) = (Verdict::Ok, Verdict::Warn);
        let wanted = Wanted { socket_buffer_bytes: 1 << 20, ..Wanted::nothing() };
        for (about, path, text, verdict, said) in [
            ("huge pages", PAGES, "32\n", ok, "32 of 2 MiB"),
            ("huge pages", PAGES, "31\n", warn, "vm.nr_hugepages=32"),
            ("huge pages", PAGES, "nonsense", warn, "none of 2 MiB"),
            ("locked memory", LIMITS, locked, warn, "at most 8.0 MiB"),
            ("locked memory", LIMITS, &locked.replace("8388608", "unlimited"), ok, "unlimited"),
            ("cores", "sys/devices/system/cpu/online", "0-7", ok, "8 on 1 NUMA node"),
            ("cores", "sys/devices/system/cpu/online", "0-1", warn, "lanes seal themselves"),
            ("frequency", GOVERNOR, "performance\n", ok, "performance"),
            ("frequency", GOVERNOR, "powersave\n", warn, "governor powersave"),
            ("clock", SOURCE, "tsc\n", ok, "source tsc"),
            ("clock", SOURCE, "hpet\n", warn, "clocksource=tsc"),
            ("clock", "run/chrony/x", "", ok, "chrony runs"),
            ("io_uring", "proc/sys/kernel/io_uring_disabled", "2\n", warn, "one call at a time"),
            ("rights", STATUS, "CapEff:\t000001ffffffffff\n", ok, "all that recording wants"),
            ("rights", STATUS, "CapEff:\t0000000000003000\n", warn, "lacks CAP_IPC_LOCK"),
            ("mirror targets", "proc/sys/net/core/rmem_max", "212992\n", warn, "rmem_max=1048576"),
            ("mirror targets", "proc/sys/net/core/rmem_max", "2000000\n", ok, "1.0 MiB wanted"),
            ("IOMMU", "sys/kernel/iommu_groups/0/x", "", ok, "1 group"),
        ] {
            let findings = found(about, &[(path, text)], &wanted);
            let fits = |finding: &&Finding| {
                finding.verdict == verdict
                    && format!("{}\n{}", finding.seen, finding.advice).contains(said)
            };
            assert!(findings.iter().any(|it| fits(&it)), "{about} {path}: {findings:?}");
        }
    }
}
