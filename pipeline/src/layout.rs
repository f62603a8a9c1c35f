//! Which threads a pipeline has, and on which cores they run. `docs/ARCHITECTURE.md` has the same
//! rules in words.
//!
//! - *Split* wants a core for every lane, every sealer and every volume's writer. Where there are
//!   fewer, a second thread for each lane only costs waking it, and carrying each chunk from one
//!   core's cache to another's; the lane then seals its own chunks.
//! - Cores are derived only where lanes were given some by name: sealers, then writers, get one
//!   each as long as another is left for everything else. Nothing else runs on a lane's core.
//! - On a machine of several nodes a lane without a name for its core stays near its card.

use crate::lane::LaneSpec;
use crate::machine::Machine;
use crate::options::Topology;

/// Threads of a pipeline, and where they run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// `Split` or `RunToCompletion`.
    pub topology: Topology,
    /// Why that one.
    pub why: String,
    /// Every thread, lanes first.
    pub threads: Vec<ThreadPlace>,
    /// Cores for all that is not part of the pipeline; empty for any.
    pub others: Vec<usize>,
    /// For each lane, the node that its memory should be on; `None` where it does not matter.
    pub lane_nodes: Vec<Option<u32>>,
}

/// A thread, and where it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThreadPlace {
    /// Its name, as the system shows it.
    pub name: String,
    /// Cores that it may use; empty for any.
    pub cpus: Vec<usize>,
    /// Node of these, if they are of one.
    pub node: Option<u32>,
    /// Why it does not run where it was told to.
    pub why_not: Option<String>,
}

/// What is known of a lane before it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LaneWish {
    /// Core that was named for it.
    pub cpu: Option<usize>,
    /// Interface that its packets come from, or whatever else its source is called.
    pub interface: Option<String>,
}

impl LaneWish {
    pub(crate) fn of(lane: &LaneSpec) -> Self {
        Self { cpu: lane.cpu, interface: Some(lane.source.report().name) }
    }
}

impl Layout {
    /// Threads for these lanes and so many volumes.
    pub fn plan(machine: &Machine, lanes: &[LaneWish], volumes: usize, wanted: Topology) -> Self {
        let cores: Vec<usize> = machine.cores().collect();
        let (topology, why) = choose(cores.len(), lanes.len(), volumes, wanted);
        let has_nodes = machine.nodes().len() > 1;
        let named: Vec<usize> = lanes.iter().filter_map(|lane| lane.cpu).collect();
        let free: Vec<usize> = cores.iter().copied().filter(|cpu| !named.contains(cpu)).collect();
        let near = |cpus: &[usize], node: Option<u32>| -> Vec<usize> {
            let is_near = |cpu: &&usize| node.is_none() || machine.node_of_core(**cpu) == node;
            cpus.iter().filter(is_near).copied().collect()
        };
        let mut planner = Planner { machine, threads: Vec::new() };
        let mut lane_nodes = Vec::new();
        for (number, lane) in lanes.iter().enumerate() {
            let name = format!("lane-{number}");
            let of_core = lane.cpu.and_then(|cpu| machine.node_of_core(cpu));
            let of_card = lane.interface.as_ref().and_then(|name| machine.node_of_interface(name));
            let node = of_core.or(of_card).filter(|_| has_nodes);
            lane_nodes.push(node);
            match lane.cpu {
                Some(cpu) if cores.contains(&cpu) => planner.add(name, vec![cpu]),
                Some(cpu) => {
                    planner.add(name, Vec::new());
                    let why = format!("CPU {cpu} is absent, or this process may not use it");
                    planner.threads[number].why_not = Some(why);
                }
                None => {
                    planner.add(name, if node.is_some() { near(&free, node) } else { Vec::new() })
                }
            }
        }
        let is_named = named.iter().any(|cpu| cores.contains(cpu));
        // Cores to be given out one by one; the last stays for everything else.
        let mut left = if is_named { free } else { Vec::new() };
        let mut own = |node: Option<u32>| {
            let at = left
                .iter()
                .position(|cpu| node.is_none_or(|it| machine.node_of_core(*cpu) == Some(it)));
            at.filter(|_| left.len() > 1).map(|at| vec![left.remove(at)])
        };
        let mut shared = Vec::new();
        if topology == Topology::Split {
            for (number, node) in lane_nodes.iter().enumerate() {
                shared.push((format!("seal-{number}"), own(*node), *node));
            }
        }
        for volume in 0..volumes {
            shared.push((format!("write-{volume}"), own(None), None));
        }
        let openers = (0..volumes).map(|volume| format!("open-{volume}"));
        let others = openers.chain(["opener", "closer"].map(str::to_owned));
        shared.extend(others.map(|name| (name, None, None)));
        for (name, own, node) in shared {
            let cpus = match own {
                Some(own) => own,
                None if is_named => {
                    Some(near(&left, node)).filter(|it| !it.is_empty()).unwrap_or(left.clone())
                }
                // Without names only nodes matter.
                None if node.is_some() => near(&cores, node),
                None => Vec::new(),
            };
            planner.add(name, cpus);
        }
        Self { topology, why, threads: planner.threads, others: left, lane_nodes }
    }

    /// Nodes that lanes are on, and how many lanes on each: how the packet buffer is to be shared
    /// out. Empty where nodes do not matter.
    pub fn lanes_of_nodes(&self) -> Vec<(u32, usize)> {
        let mut nodes: Vec<(u32, usize)> = Vec::new();
        for node in self.lane_nodes.iter().flatten() {
            match nodes.iter_mut().find(|known| known.0 == *node) {
                Some(known) => known.1 += 1,
                None => nodes.push((*node, 1)),
            }
        }
        nodes.sort_unstable();
        nodes
    }

    /// Where a thread runs.
    pub(crate) fn cpus_of(&self, name: &str) -> Vec<usize> {
        let place = self.threads.iter().find(|thread| thread.name == name);
        place.map_or_else(Vec::new, |thread| thread.cpus.clone())
    }
}

impl Topology {
    /// Name in configuration and status.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::RunToCompletion => "run_to_completion",
            Self::Split => "split",
        }
    }
}

fn choose(cores: usize, lanes: usize, volumes: usize, wanted: Topology) -> (Topology, String) {
    if wanted != Topology::Auto {
        return (wanted, "as configured".to_owned());
    }
    let needed = 2 * lanes + volumes;
    let chosen = if cores < needed { Topology::RunToCompletion } else { Topology::Split };
    let why = format!(
        "{cores} cores; split wants {needed}: two a lane ({lanes}), one a volume ({volumes})"
    );
    (chosen, why)
}

struct Planner<'a> {
    machine: &'a Machine,
    threads: Vec<ThreadPlace>,
}

impl Planner<'_> {
    fn add(&mut self, name: String, cpus: Vec<usize>) {
        let mut nodes: Vec<_> = cpus.iter().map(|cpu| self.machine.node_of_core(*cpu)).collect();
        nodes.dedup();
        let node = if let [node] = nodes[..] { node } else { None };
        self.threads.push(ThreadPlace { name, cpus, node, why_not: None });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::tree;

    fn on(cpu: usize) -> LaneWish {
        LaneWish { cpu: Some(cpu), interface: None }
    }

    fn cpus(layout: &Layout) -> Vec<(&str, &[usize])> {
        layout.threads.iter().map(|it| (it.name.as_str(), &it.cpus[..])).collect()
    }

    #[test]
    fn split_wants_a_core_for_each_of_its_threads() {
        let choice = |cores, lanes, volumes| choose(cores, lanes, volumes, Topology::Auto).0;
        assert_eq!(choice(2, 1, 1), Topology::RunToCompletion);
        assert_eq!(choice(3, 1, 1), Topology::Split);
        assert_eq!(choice(8, 4, 1), Topology::RunToCompletion);
        assert_eq!(choice(9, 4, 1), Topology::Split);
        assert_eq!(choice(96, 32, 8), Topology::Split);
        assert_eq!(choose(1, 4, 4, Topology::Split), (Topology::Split, "as configured".to_owned()));
        let (_, why) = choose(2, 1, 1, Topology::Auto);
        assert!(why.contains("2 cores") && why.contains("split wants 3"), "{why}");
    }

    #[test]
    fn nothing_is_pinned_where_nothing_is_named_on_one_node() {
        let sys = tree(&["0-7"], &[("eth0", 0)]);
        let machine = Machine::at(sys.path(), &[0, 1, 2, 3, 4, 5, 6, 7]);
        let eth0 = LaneWish { cpu: None, interface: Some("eth0".to_owned()) };
        let layout = Layout::plan(&machine, &[eth0.clone(), eth0], 1, Topology::Auto);
        assert_eq!(layout.topology, Topology::Split);
        let names: Vec<_> = layout.threads.iter().map(|thread| thread.name.as_str()).collect();
        let all = ["lane-0", "lane-1", "seal-0", "seal-1", "write-0", "open-0", "opener", "closer"];
        assert_eq!(names, all);
        assert!(layout.threads.iter().all(|thread| thread.cpus.is_empty()), "{layout:?}");
        assert_eq!((&layout.others[..], &layout.lane_nodes[..]), (&[][..], &[None, None][..]));
    }

    #[test]
    fn nothing_else_runs_on_a_lane_s_core() {
        let sys = tree(&["0-7"], &[]);
        let machine = Machine::at(sys.path(), &[0, 1, 2, 3, 4, 5, 6, 7]);
        let layout = Layout::plan(&machine, &[on(2), on(3)], 1, Topology::Split);
        let wanted: [(&str, &[usize]); 8] = [
            ("lane-0", &[2]),
            ("lane-1", &[3]),
            ("seal-0", &[0]),
            ("seal-1", &[1]),
            ("write-0", &[4]),
            ("open-0", &[5, 6, 7]),
            ("opener", &[5, 6, 7]),
            ("closer", &[5, 6, 7]),
        ];
        assert_eq!((cpus(&layout), &layout.others[..]), (wanted.to_vec(), &[5, 6, 7][..]));
        assert!(layout.threads.iter().all(|thread| thread.node == Some(0)));

        // Two cores: the lane has one, everything else the other.
        let machine = Machine::at(sys.path(), &[0, 1]);
        let layout = Layout::plan(&machine, &[on(1)], 1, Topology::Auto);
        let wanted: [(&str, &[usize]); 5] = [
            ("lane-0", &[1]),
            ("write-0", &[0]),
            ("open-0", &[0]),
            ("opener", &[0]),
            ("closer", &[0]),
        ];
        assert_eq!((cpus(&layout), layout.topology), (wanted.to_vec(), Topology::RunToCompletion));

        // All are the lanes': the others run where the system likes.
        let layout = Layout::plan(&machine, &[on(0), on(1)], 1, Topology::Auto);
        assert!(layout.threads[2..].iter().all(|thread| thread.cpus.is_empty()), "{layout:?}");
    }

    #[test]
    fn a_core_that_is_not_there_is_told() {
        let sys = tree(&["0-1"], &[]);
        let machine = Machine::at(sys.path(), &[0, 1]);
        let layout = Layout::plan(&machine, &[on(900)], 1, Topology::Auto);
        assert!(layout.threads[0].cpus.is_empty());
        assert!(layout.threads[0].why_not.as_ref().unwrap().contains("CPU 900"));
        assert!(layout.threads.iter().all(|thread| thread.cpus.is_empty()), "{layout:?}");
    }

    #[test]
    fn lanes_and_their_sealers_stay_on_their_node() {
        let sys = tree(&["0-3", "4-7"], &[("eth0", 0), ("eth1", 1)]);
        let machine = Machine::at(sys.path(), &[0, 1, 2, 3, 4, 5, 6, 7]);
        let lanes =
            ["eth1", "eth0"].map(|name| LaneWish { cpu: None, interface: Some(name.to_owned()) });
        let layout = Layout::plan(&machine, &lanes, 1, Topology::Auto);
        assert_eq!(layout.lane_nodes, [Some(1), Some(0)]);
        assert_eq!(layout.lanes_of_nodes(), [(0, 1), (1, 1)]);
        let (far, near) = (&[4, 5, 6, 7][..], &[0, 1, 2, 3][..]);
        let threads = cpus(&layout);
        assert_eq!(threads[..2], [("lane-0", far), ("lane-1", near)]);
        assert_eq!(threads[2..4], [("seal-0", far), ("seal-1", near)]);
        assert!(threads[4..].iter().all(|thread| thread.1.is_empty()), "{threads:?}");

        // A core by name says more than the card.
        let lane = LaneWish { cpu: Some(6), interface: Some("eth0".to_owned()) };
        let layout = Layout::plan(&machine, &[lane], 1, Topology::Split);
        assert_eq!((layout.lane_nodes[0], layout.threads[0].node), (Some(1), Some(1)));
        assert_eq!(cpus(&layout)[1], ("seal-0", &[4][..]));
    }
}
