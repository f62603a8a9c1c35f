//! Kinds of pages and what the kernel has of them (Linux
//! Documentation/admin-guide/mm/hugetlbpage.rst).

use std::fmt;
use std::fs;
use std::path::PathBuf;

/// Which pages an arena asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hugepages {
    /// The largest that are free: 1 GiB (only if that wastes nothing), 2 MiB, then transparent
    /// ones.
    #[default]
    Auto,
    /// 2 MiB from the pool, else transparent ones.
    TwoMiB,
    /// 1 GiB from the pool, else 2 MiB, else transparent ones. The size is rounded up to whole
    /// pages.
    OneGiB,
    /// Ordinary memory, with transparent hugepages where the kernel grants them.
    Off,
}

/// Pages an arena got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// Reserved 1 GiB pages.
    OneGiB,
    /// Reserved 2 MiB pages.
    TwoMiB,
    /// Ordinary memory; part of it may be backed by transparent hugepages.
    Ordinary,
}

impl PageKind {
    /// Bytes of one page. Ordinary memory counts in 2 MiB, the unit in which it may become
    /// transparent hugepages.
    pub fn bytes(self) -> usize {
        match self {
            Self::OneGiB => 1 << 30,
            Self::TwoMiB | Self::Ordinary => 2 << 20,
        }
    }

    /// How many pages of this kind are free, in total or on one NUMA node; `None` if the kernel has
    /// no such kind.
    pub fn free(self, numa_node: Option<u32>) -> Option<u64> {
        let text = fs::read_to_string(self.folder(numa_node).join("free_hugepages")).ok()?;
        text.trim().parse().ok()
    }

    /// Why `wanted` pages of this kind cannot be had, with the way out.
    pub fn shortage(self, wanted: u64, numa_node: Option<u32>) -> String {
        let place = numa_node.map_or(String::new(), |n| format!(" on NUMA node {n}"));
        match (self.free(numa_node), self) {
            (None, _) => format!("this kernel offers no {self} hugepages{place}"),
            (Some(free), Self::TwoMiB) if numa_node.is_none() => {
                format!("{free} of {wanted} {self} hugepages free; set vm.nr_hugepages={wanted}")
            }
            (Some(free), _) => format!(
                "{free} of {wanted} {self} hugepages free{place}; write {wanted} to {}",
                self.folder(numa_node).join("nr_hugepages").display()
            ),
        }
    }

    fn folder(self, numa_node: Option<u32>) -> PathBuf {
        let base = match numa_node {
            Some(node) => format!("/sys/devices/system/node/node{node}/hugepages"),
            None => "/sys/kernel/mm/hugepages".to_owned(),
        };
        PathBuf::from(base).join(format!("hugepages-{}kB", self.bytes() >> 10))
    }
}

impl fmt::Display for PageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OneGiB => "1 GiB",
            Self::TwoMiB => "2 MiB",
            Self::Ordinary => "ordinary",
        })
    }
}

/// Bytes of `start..end` that transparent hugepages back at this moment, out of /proc/self/smaps.
pub(crate) fn transparent_bytes(start: usize, end: usize) -> usize {
    fs::read_to_string("/proc/self/smaps").map_or(0, |smaps| transparent_in(&smaps, start, end))
}

fn transparent_in(smaps: &str, start: usize, end: usize) -> usize {
    let mut inside = false;
    let mut kib = 0;
    for line in smaps.lines() {
        let Some(first) = line.split_ascii_whitespace().next() else { continue };
        if let Some((from, to)) = first.split_once('-')
            && let (Ok(from), Ok(to)) =
                (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16))
        {
            inside = from < end && start < to;
        } else if inside && let Some(value) = line.strip_prefix("AnonHugePages:") {
            kib += value.trim().trim_end_matches(" kB").parse().unwrap_or(0);
        }
    }
    kib << 10
}

/// Why transparent hugepages will not help, if so.
pub(crate) fn transparent_off() -> Option<&'static str> {
    let text = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok();
    match text {
        None => Some("this kernel has no transparent hugepages"),
        Some(text) if text.contains("[never]") => Some(
            "transparent hugepages are off; write madvise to \
             /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smaps_are_summed_over_overlapping_mappings() {
        let text = "7f0000000000-7f0000400000 rw-p 00000000 00:00 0 \n\
                    Size:               4096 kB\n\
                    AnonHugePages:      2048 kB\n\
                    VmFlags: rd wr mr\n\
                    7f0000400000-7f0000600000 rw-p 00000000 00:00 0   [anon]\n\
                    AnonHugePages:      2048 kB\n";
        assert_eq!(transparent_in(text, 0x7f0000000000, 0x7f0000200000), 2 << 20);
        assert_eq!(transparent_in(text, 0x7f0000000000, 0x7f0000500000), 4 << 20);
        assert_eq!(transparent_in(text, 0x7f0000600000, 0x7f0000700000), 0);
    }

    #[test]
    fn shortage_says_what_to_do() {
        let text = PageKind::TwoMiB.shortage(1 << 40, None);
        assert!(
            text.contains("vm.nr_hugepages=1099511627776") || text.contains("no 2 MiB"),
            "{text}"
        );
        assert!(PageKind::TwoMiB.shortage(1, Some(4000)).contains("NUMA node 4000"));
    }
}
