//! Other people's crates: their licence, where they come from, and the ones we chose against.

use std::collections::HashSet;
use std::process::Command;

use anyhow::Result;
use cargo_metadata::{Metadata, Package};
use spdx::{Expression, ParseMode};

use crate::said;

/// Licences that ask for no more than naming the authors.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "BlueOak-1.0.0",
    "CC0-1.0",
    // Mozilla's list of root certificates, which only builds for Android take.
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "OpenSSL",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Crates that must not be in the tree, with the reason and what to use.
const BANNED: &[(&str, &str)] = &[
    ("native-tls", "one TLS stack: rustls on aws-lc-rs"),
    ("openssl-sys", "one TLS stack: rustls on aws-lc-rs"),
    ("ring", "one cryptographic provider: aws-lc-rs"),
    ("serde_yaml", "no longer maintained: use serde-saphyr"),
];

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Checks every package of the dependency graph that is not ours.
pub(crate) fn check(metadata: &Metadata) -> Result<Vec<String>> {
    let built = built()?;
    let foreign: Vec<_> = metadata
        .packages
        .iter()
        .filter(|package| !metadata.workspace_members.contains(&package.id))
        .filter(|package| built.contains(&format!("{} v{}", package.name, package.version)))
        .collect();
    let mut faults: Vec<_> = foreign.iter().flat_map(|package| faults_of(package)).collect();
    faults.sort();
    println!("{} dependencies, {} licences allowed", foreign.len(), ALLOWED.len());
    Ok(faults)
}

/// `NAME vVERSION` of every package that some target has built. The metadata has more: also what
/// only a feature `other?/feature` names, without whose dependency it is never built.
fn built() -> Result<HashSet<String>> {
    let mut tree = Command::new("cargo");
    tree.args(["tree", "--workspace", "--target", "all", "--edges", "all"]);
    let lines = said(tree.args(["--prefix", "none", "--format", "{p}"]))?;
    let named = |line: &str| line.split(' ').take(2).collect::<Vec<_>>().join(" ");
    Ok(lines.lines().map(named).collect())
}

fn faults_of(package: &Package) -> Vec<String> {
    let mut faults = Vec::new();
    let name = format!("{} {}", package.name, package.version);
    if let Some((_, reason)) = BANNED.iter().find(|(banned, _)| *banned == package.name.as_str()) {
        faults.push(format!("{name}: banned; {reason}"));
    }
    let source = package.source.as_ref().map(|source| source.repr.as_str());
    if source != Some(CRATES_IO) {
        let from = source.unwrap_or("a folder outside the workspace");
        faults.push(format!("{name}: comes from {from}; only crates.io is allowed"));
    }
    match package.license.as_deref() {
        None => faults.push(format!("{name}: states no licence")),
        Some(licence) => faults.extend(refusal(licence).map(|why| format!("{name}: {why}"))),
    }
    faults
}

/// Why a licence expression is refused.
fn refusal(licence: &str) -> Option<String> {
    let expression = match Expression::parse_mode(licence, ParseMode::LAX) {
        Ok(expression) => expression,
        Err(error) => {
            return Some(format!("licence `{licence}` is not understood: {}", error.reason));
        }
    };
    // An exception (`WITH ...`) only ever adds permissions.
    let allowed = expression.evaluate(|requirement| {
        requirement.license.id().is_some_and(|id| ALLOWED.contains(&id.name))
    });
    (!allowed).then(|| format!("licence `{licence}` is not on the list in xtask/src/licences.rs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_evaluated_not_compared() {
        for licence in [
            "MIT",
            "MIT OR Apache-2.0",
            "MIT/Apache-2.0",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-3.0-only",
            "LGPL-3.0-or-later OR ISC",
        ] {
            assert_eq!(refusal(licence), None, "{licence}");
        }
        for licence in ["GPL-3.0-only", "MIT AND MPL-2.0", "EUPL-1.2", "LicenseRef-own", "ours"] {
            assert!(refusal(licence).is_some(), "{licence}");
        }
    }
}
