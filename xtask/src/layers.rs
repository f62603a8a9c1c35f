//! Layers: every crate of the workspace states a level and depends on lower levels only.
//!
//! Normal and build dependencies count; what only tests use may come from anywhere.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use cargo_metadata::{DependencyKind, Metadata, Package};

/// A crate that must not be reached, not even through others.
struct Forbidden {
    from: &'static str,
    to: &'static [&'static str],
    /// Crates through which it may be reached all the same.
    except_through: &'static [&'static str],
    reason: &'static str,
}

const HOT_PATH: &[&str] = &["wirevault-capture", "wirevault-pipeline", "wirevault-nvme"];

const FORBIDDEN: &[Forbidden] = &[
    Forbidden {
        from: "wirevault-query",
        to: HOT_PATH,
        except_through: &[],
        reason: "a query reads segments through `format` and `seal` and can never cause loss",
    },
    Forbidden {
        from: "wirevault-cli",
        to: HOT_PATH,
        except_through: &["wirevault-daemon"],
        reason: "the command line records only through the daemon's import entry",
    },
];

/// What only tests and measurements share: no program may contain it.
const TESTS_ONLY: &str = "wirevault-testkit";
/// Level of the crates that are tests or measurements themselves.
const TESTS_LEVEL: u64 = 9;

/// Prints the table of layers and returns the faults.
pub(crate) fn check(metadata: &Metadata) -> Result<Vec<String>> {
    let packages = metadata.workspace_packages();
    let graph = Graph::of(&packages);
    let mut faults = Vec::new();
    let mut levels = BTreeMap::new();
    for package in &packages {
        match package.metadata.get("layer").and_then(|layer| layer.get("level")?.as_u64()) {
            Some(level) => {
                levels.insert(package.name.to_string(), level);
            }
            None => faults.push(format!(
                "{}: states no layer; add `[package.metadata.layer]` with `level = N` to {}",
                package.name, package.manifest_path
            )),
        }
    }
    print_table(&levels, &graph);
    faults.extend(upward(&levels, &graph));
    faults.extend(in_programs(&levels, &graph));
    for rule in FORBIDDEN {
        faults.extend(reached(rule, &graph));
    }
    Ok(faults)
}

/// Who depends on whom inside the workspace.
struct Graph(BTreeMap<String, BTreeSet<String>>);

impl Graph {
    fn of(packages: &[&Package]) -> Self {
        let members: BTreeSet<_> = packages.iter().map(|package| package.name.as_str()).collect();
        let edges = packages.iter().map(|package| {
            let below = package
                .dependencies
                .iter()
                .filter(|dependency| dependency.kind != DependencyKind::Development)
                .map(|dependency| dependency.name.to_string())
                .filter(|name| members.contains(name.as_str()));
            (package.name.to_string(), below.collect())
        });
        Self(edges.collect())
    }

    fn below(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.get(name).into_iter().flatten().map(String::as_str)
    }
}

fn print_table(levels: &BTreeMap<String, u64>, graph: &Graph) {
    let mut rows: Vec<_> = levels.iter().map(|(name, level)| (level, name)).collect();
    rows.sort();
    println!("{:>5}  {:<22} depends on", "level", "crate");
    for (level, name) in rows {
        let below: Vec<_> = graph.below(name).map(short).collect();
        println!("{level:>5}  {:<22} {}", short(name), below.join(" "));
    }
}

fn short(name: &str) -> &str {
    name.strip_prefix("wirevault-").unwrap_or(name)
}

fn upward(levels: &BTreeMap<String, u64>, graph: &Graph) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, level) in levels {
        for to in graph.below(name) {
            if let Some(to_level) = levels.get(to).filter(|to_level| *to_level >= level) {
                faults.push(format!(
                    "{name} (level {level}) depends on {to} (level {to_level}): \
                     a crate depends on lower levels only"
                ));
            }
        }
    }
    faults
}

/// Crates below the tests that contain what only tests may share.
fn in_programs(levels: &BTreeMap<String, u64>, graph: &Graph) -> Vec<String> {
    let below = levels.iter().filter(|(_, level)| **level < TESTS_LEVEL);
    let contain = below.filter(|(name, _)| graph.below(name).any(|to| to == TESTS_ONLY));
    contain
        .map(|(name, level)| {
            format!(
                "{name} (level {level}) contains {TESTS_ONLY}: below level {TESTS_LEVEL} it may \
                 stand in `[dev-dependencies]` only"
            )
        })
        .collect()
}

/// The forbidden crates that are reached, each with the way.
fn reached(rule: &Forbidden, graph: &Graph) -> Vec<String> {
    let mut ways = vec![vec![rule.from]];
    let mut seen = BTreeSet::from([rule.from]);
    let mut faults = Vec::new();
    while let Some(way) = ways.pop() {
        let Some(last) = way.last() else { continue };
        for next in graph.below(last) {
            if rule.except_through.contains(&next) || !seen.insert(next) {
                continue;
            }
            let mut longer = way.clone();
            longer.push(next);
            if rule.to.contains(&next) {
                faults.push(format!(
                    "{} reaches {next} ({}): {}",
                    rule.from,
                    longer.join(" -> "),
                    rule.reason
                ));
            }
            ways.push(longer);
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(&str, &[&str])]) -> Graph {
        let owned = |below: &[&str]| below.iter().map(ToString::to_string).collect();
        Graph(edges.iter().map(|(name, below)| (name.to_string(), owned(below))).collect())
    }

    fn levels(of: &[(&str, u64)]) -> BTreeMap<String, u64> {
        of.iter().map(|(name, level)| (name.to_string(), *level)).collect()
    }

    #[test]
    fn an_edge_to_the_same_or_a_higher_level_is_a_fault() {
        let graph = graph(&[("a", &["b"]), ("b", &["c"]), ("c", &[])]);
        assert_eq!(upward(&levels(&[("a", 2), ("b", 1), ("c", 0)]), &graph).len(), 0);
        assert_eq!(upward(&levels(&[("a", 1), ("b", 1), ("c", 0)]), &graph).len(), 1);
        assert_eq!(upward(&levels(&[("a", 1), ("b", 2), ("c", 2)]), &graph).len(), 2);
    }

    #[test]
    fn no_program_contains_what_tests_share() {
        let graph = graph(&[("a", &[TESTS_ONLY]), ("b", &["a"]), (TESTS_ONLY, &[])]);
        let faults = in_programs(&levels(&[("a", 2), ("b", 9), (TESTS_ONLY, 1)]), &graph);
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(in_programs(&levels(&[("a", 9), (TESTS_ONLY, 1)]), &graph).is_empty());
    }

    #[test]
    fn the_way_to_a_forbidden_crate_is_told() {
        let graph = graph(&[
            ("wirevault-query", &["wirevault-index"]),
            ("wirevault-index", &["wirevault-nvme"]),
            ("wirevault-nvme", &[]),
        ]);
        let faults = reached(&FORBIDDEN[0], &graph);
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].contains("wirevault-query -> wirevault-index -> wirevault-nvme"));
    }

    #[test]
    fn the_command_line_may_go_through_the_daemon_only() {
        let through = graph(&[
            ("wirevault-cli", &["wirevault-daemon"]),
            ("wirevault-daemon", &["wirevault-pipeline"]),
        ]);
        assert!(reached(&FORBIDDEN[1], &through).is_empty());
        let beside = graph(&[
            ("wirevault-cli", &["wirevault-daemon", "wirevault-pipeline"]),
            ("wirevault-daemon", &["wirevault-pipeline"]),
        ]);
        assert_eq!(reached(&FORBIDDEN[1], &beside).len(), 1);
    }
}
