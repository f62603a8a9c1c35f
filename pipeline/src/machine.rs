//! The cores that this process may use, and the memory that is near to them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::affinity;

/// Cores and nodes, as `/sys` tells them.
///
/// Source: Linux `Documentation/ABI/stable/sysfs-devices-node` and
/// `Documentation/ABI/testing/sysfs-class-net`.
#[derive(Debug, Clone)]
pub struct Machine {
    sys: PathBuf,
    /// Each core that this process may use, in order, and its node.
    cores: Vec<(usize, Option<u32>)>,
}

impl Machine {
    /// The one that this runs on, and the cores that are allowed to the calling thread. Ask before
    /// a thread is pinned.
    pub fn here() -> Self {
        Self::at(Path::new("/sys"), &affinity::allowed())
    }

    /// One that a tree like `/sys` describes.
    pub fn at(sys: &Path, allowed: &[usize]) -> Self {
        let nodes = nodes(sys);
        let node = |cpu: usize| {
            let holds = |(_, cpus): &&(u32, Vec<usize>)| cpus.contains(&cpu);
            nodes.iter().find(holds).map(|(node, _)| *node)
        };
        let cores = allowed.iter().map(|cpu| (*cpu, node(*cpu))).collect();
        Self { sys: sys.to_owned(), cores }
    }

    /// Cores that this process may use, in order.
    pub fn cores(&self) -> impl Iterator<Item = usize> {
        self.cores.iter().map(|(cpu, _)| *cpu)
    }

    /// Node of a core that this process may use; `None` for any other, and where the kernel knows
    /// no nodes.
    pub fn node_of_core(&self, cpu: usize) -> Option<u32> {
        self.cores.iter().find(|core| core.0 == cpu).and_then(|core| core.1)
    }

    /// Cores of a node that this process may use, in order; none for `None`.
    pub fn cores_of(&self, node: Option<u32>) -> Vec<usize> {
        let near = self.cores.iter().filter(|core| node.is_some() && core.1 == node);
        near.map(|core| core.0).collect()
    }

    /// Node of the card behind an interface; `None` for one without a card, and where the machine
    /// does not say.
    pub fn node_of_interface(&self, name: &str) -> Option<u32> {
        // Names of interfaces hold no slash; those of files and addresses may.
        let name = Path::new(name).file_name().filter(|file| *file == name)?;
        let file = self.sys.join("class/net").join(name).join("device/numa_node");
        // -1 where there is one node only.
        fs::read_to_string(file).ok()?.trim().parse().ok()
    }

    /// Nodes with cores that this process may use, in order.
    pub fn nodes(&self) -> Vec<u32> {
        let mut nodes: Vec<u32> = self.cores.iter().filter_map(|core| core.1).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }
}

fn nodes(sys: &Path) -> Vec<(u32, Vec<usize>)> {
    let Ok(folder) = fs::read_dir(sys.join("devices/system/node")) else { return Vec::new() };
    let node = |entry: fs::DirEntry| {
        let number = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
        Some((number, cpu_list(&fs::read_to_string(entry.path().join("cpulist")).ok()?)))
    };
    folder.filter_map(|entry| node(entry.ok()?)).collect()
}

/// `0-3,8` and the like; what is not understood is left out.
fn cpu_list(text: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    text.split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A tree of nodes with these cores, and of interfaces on these nodes.
    pub(crate) fn tree(nodes: &[&str], interfaces: &[(&str, i32)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (node, cpus) in nodes.iter().enumerate() {
            let folder = dir.path().join(format!("devices/system/node/node{node}"));
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("cpulist"), format!("{cpus}\n")).unwrap();
        }
        for (name, node) in interfaces {
            let folder = dir.path().join("class/net").join(name).join("device");
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("numa_node"), format!("{node}\n")).unwrap();
        }
        dir
    }

    #[test]
    fn nodes_of_cores_and_cards_are_read() {
        let sys = tree(&["0-1,4-5", "2-3,6-7"], &[("eth0", 1), ("eth1", -1)]);
        let machine = Machine::at(sys.path(), &[1, 2, 3, 4]);
        assert_eq!(machine.cores().collect::<Vec<_>>(), [1, 2, 3, 4]);
        let nodes = |cpus: &[usize]| cpus.iter().map(|it| machine.node_of_core(*it)).collect();
        let found: Vec<_> = nodes(&[1, 2, 3, 4, 7]);
        assert_eq!(found, [Some(0), Some(1), Some(1), Some(0), None], "7 is not allowed");
        assert_eq!(machine.nodes(), [0, 1]);
        let cards = ["eth0", "eth1", "lo", "../net/eth0", "/tmp/a.pcap"];
        let cards = cards.map(|name| machine.node_of_interface(name));
        assert_eq!(cards, [Some(1), None, None, None, None]);
    }

    #[test]
    fn a_machine_that_says_nothing_has_cores_without_nodes() {
        let sys = tempfile::tempdir().unwrap();
        let machine = Machine::at(sys.path(), &[0, 1]);
        assert_eq!((machine.cores().count(), machine.node_of_core(0)), (2, None));
        assert!(machine.nodes().is_empty());
        assert!(cpu_list("x,3-,5").is_empty() || cpu_list("x,3-,5") == [5]);
        assert!(Machine::here().cores().count() > 0);
    }
}
