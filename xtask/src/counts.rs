//! Instructions that the small jobs of the packet path take, against those that were noted.
//!
//! `wirevault-counts` does one job at a time under callgrind. The crates that hold the jobs are
//! built as for a release; everything else is what the other stages have built already.

use std::{collections::BTreeMap, fmt::Write, fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail, ensure};

use crate::{root, said};

const BASELINE: &str = "bench/counts/baseline.txt";
/// Crates whose code is counted.
const COUNTED: [&str; 5] = ["format", "index", "packet", "seal", "counts"];
/// Change that is a fault. Calls of the C library differ by a few per cent with its version.
const TOLERANCE: f64 = 0.05;
/// The same if another compiler made the baseline.
const TOLERANCE_ELSEWHERE: f64 = 0.25;
const COMPILER: &str = "compiler";

/// Counts every job and compares; with `note` the counts become the baseline. True if none changed.
pub(crate) fn run(note: bool) -> Result<bool> {
    let program = build()?;
    let path = root().join(BASELINE);
    let compiler = said(Command::new("rustc").arg("--version"))?;
    let mut now = BTreeMap::new();
    for job in said(&mut Command::new(&program))?.lines() {
        now.insert(job.to_owned(), count(&program, job)?);
    }
    if note {
        let mut text = format!("{COMPILER}: {}\n", compiler.trim());
        for (job, each) in &now {
            writeln!(text, "{job}: {each:.1}")?;
        }
        fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let (known_compiler, known) = parse(&text)?;
    let same = known_compiler == compiler.trim();
    let tolerance = if same { TOLERANCE } else { TOLERANCE_ELSEWHERE };
    if !same {
        println!("noted with {known_compiler}; here it is {}", compiler.trim());
    }
    let faults = compare(&known, &now, tolerance);
    for (job, each) in &now {
        let before = known.get(job).copied().unwrap_or(f64::NAN);
        println!("{job:<36} {each:>11.1} instructions, {before:>11.1} noted");
    }
    crate::report(&faults)
}

/// Builds the jobs optimised, next to the other crates as they are built for tests: these need not
/// be built again.
fn build() -> Result<PathBuf> {
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--quiet", "--package", "wirevault-counts"]).current_dir(root());
    for name in COUNTED {
        for setting in ["opt-level=3", "debug-assertions=false", "overflow-checks=false"] {
            cargo.arg("--config").arg(format!("profile.dev.package.wirevault-{name}.{setting}"));
        }
    }
    ensure!(cargo.status().context("cannot start cargo")?.success(), "the jobs do not build");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root().join("target"), PathBuf::from);
    Ok(target.join("debug/wirevault-counts"))
}

/// Instructions of one piece of a job's work.
fn count(program: &PathBuf, job: &str) -> Result<f64> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    valgrind.args(["--collect-atstart=no", "--toggle-collect=*wirevault_counts*measured*"]);
    let output = valgrind.arg(program).arg(job).output();
    let output = output.context("cannot start valgrind; ./test installs it")?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{job}: {told}");
    let times: f64 = String::from_utf8_lossy(&output.stdout).trim().parse()?;
    Ok(collected(&told).with_context(|| format!("{job}: no count in: {told}"))? / times)
}

/// Callgrind's own closing line: `==1234== Collected : 56789`.
fn collected(told: &str) -> Option<f64> {
    let line = told.lines().find_map(|line| line.split_once("Collected : "))?;
    line.1.trim().parse().ok().filter(|count| *count > 0.0)
}

/// The compiler, and each job's count.
fn parse(text: &str) -> Result<(String, BTreeMap<String, f64>)> {
    let (mut compiler, mut counts) = (String::new(), BTreeMap::new());
    for line in text.lines() {
        let (name, value) =
            line.rsplit_once(": ").with_context(|| format!("{BASELINE}: `{line}`"))?;
        if name == COMPILER {
            value.clone_into(&mut compiler);
        } else if counts.insert(name.to_owned(), value.parse()?).is_some() {
            bail!("{BASELINE}: `{name}` stands twice");
        }
    }
    Ok((compiler, counts))
}

/// What is not as it was noted: in either direction, so that what became quicker is noted too.
fn compare(
    known: &BTreeMap<String, f64>,
    now: &BTreeMap<String, f64>,
    tolerance: f64,
) -> Vec<String> {
    let way_out = "if that is meant: cargo xtask counts --note";
    let mut faults = Vec::new();
    for (job, each) in now {
        match known.get(job) {
            None => faults.push(format!("{job}: {each:.1} instructions, none noted; {way_out}")),
            Some(before) if (each / before - 1.0).abs() > tolerance => {
                let change = (each / before - 1.0) * 100.0;
                faults.push(format!(
                    "{job}: {each:.1} instructions, {before:.1} noted: {change:+.1} %, at most {} \
                     % either way; {way_out}",
                    tolerance * 100.0
                ));
            }
            Some(_) => {}
        }
    }
    let gone = known.keys().filter(|job| !now.contains_key(*job));
    faults.extend(gone.map(|job| format!("{job}: noted, and no longer a job; {way_out}")));
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callgrinds_closing_line_is_read() {
        let told = "==7== \n==7== Events    : Ir\n==7== Collected : 123456\n==7== \n";
        assert_eq!(collected(told), Some(123_456.0));
        assert_eq!(collected("==7== Collected : 0"), None, "nothing was within the function");
        assert_eq!(collected("valgrind: no such tool"), None);
    }

    #[test]
    fn changes_either_way_are_faults() {
        let map = |rows: &[(&str, f64)]| {
            rows.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
        };
        let known = map(&[("a", 100.0), ("b", 100.0), ("c", 100.0), ("gone", 1.0)]);
        let now = map(&[("a", 104.0), ("b", 106.0), ("c", 94.0), ("new", 1.0)]);
        let faults = compare(&known, &now, 0.05);
        let names: Vec<_> = faults.iter().filter_map(|it| it.split(':').next()).collect();
        assert_eq!(names, ["b", "c", "new", "gone"]);
    }

    #[test]
    fn the_baseline_is_read_back() {
        let (compiler, counts) = parse("compiler: rustc 1.95.0\nseal a chunk: 12.5\n").unwrap();
        assert_eq!(compiler, "rustc 1.95.0");
        assert_eq!(counts, [("seal a chunk".to_owned(), 12.5)].into());
        assert!(parse("a: 1\na: 2").is_err() && parse("nothing").is_err());
    }
}
