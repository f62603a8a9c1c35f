//! The whole gate. Stages go from quick to slow; all of them run, even after a failure.
//!
//! With `CI` set in the environment the lock file must be up to date (`--locked`) and nextest
//! tells only of failures and slow tests (its profile `ci`).

use std::{
    io::{BufRead, BufReader, IsTerminal},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{counts, everything, layers, licences, report, root, tidy, workspace};

type Stage = (&'static str, fn(&mut Tests) -> Result<bool>);

const STAGES: &[Stage] = &[
    ("fmt", |_| cargo("fmt", &["--all", "--check"], &[])),
    ("layers", |_| report(&layers::check(&workspace()?)?)),
    ("tidy", |_| report(&tidy::check(&workspace()?)?)),
    ("licences", |_| report(&licences::check(&everything()?)?)),
    ("clippy", |_| cargo("clippy", &["--workspace", "--all-targets", "--", "-D", "warnings"], &[])),
    // The programs without any SDK of AWS, which nothing else builds.
    ("no-aws", |_| {
        let programs = ["-p", "wirevault-daemon", "-p", "wirevault-cli", "--no-default-features"];
        cargo("clippy", &[&programs[..], &["--", "-D", "warnings"]].concat(), &[])
    }),
    ("doc", |_| {
        cargo("doc", &["--workspace", "--no-deps", "--quiet"], &[("RUSTDOCFLAGS", "-D warnings")])
    }),
    ("loom", loom),
    ("counts", |_| counts::run(false)),
    ("doctest", |tests| {
        counted(tests, "test", &["--workspace", "--doc", "--quiet", "--no-fail-fast"], &[])
    }),
    ("test", test),
];

/// Runs the stages named, or all; true when none failed.
pub(crate) fn run(only: &[&str]) -> Result<bool> {
    if let Some(unknown) = only.iter().find(|name| STAGES.iter().all(|(stage, _)| stage != *name)) {
        let known: Vec<_> = STAGES.iter().map(|(name, _)| *name).collect();
        bail!("there is no stage `{unknown}`; the stages are {}", known.join(", "));
    }
    let mut tests = Tests::default();
    let mut done = Vec::new();
    for (name, stage) in STAGES.iter().filter(|(name, _)| only.is_empty() || only.contains(name)) {
        println!("\n==> {name}");
        let began = Instant::now();
        let passed = stage(&mut tests).unwrap_or_else(|error| {
            eprintln!("{name}: {error:#}");
            false
        });
        let took = began.elapsed();
        println!("<== {name}: {} in {:.1} s", verdict(passed), took.as_secs_f64());
        done.push((*name, passed, took));
    }
    let passed = done.iter().all(|(_, passed, _)| *passed);
    close(&done, &tests);
    Ok(passed)
}

fn close(done: &[(&str, bool, Duration)], tests: &Tests) {
    println!();
    for (name, passed, took) in done {
        println!("{name:<10} {:<7} {:>7.1} s", verdict(*passed), took.as_secs_f64());
    }
    let failed: Vec<_> = done.iter().filter(|(_, passed, _)| !passed).map(|row| row.0).collect();
    match failed.as_slice() {
        [] => println!("all stages passed"),
        _ => println!("failed stages: {}", failed.join(", ")),
    }
    // Counted from what the runners themselves reported.
    if tests.passed + tests.failed > 0 {
        let Tests { passed, flaky, failed, skipped } = tests;
        println!("tests: {passed} passed ({flaky} flaky), {failed} failed, {skipped} skipped");
    }
}

fn verdict(passed: bool) -> &'static str {
    if passed { "passed" } else { "FAILED" }
}

/// Lock-free parts under every interleaving; the crates that have such tests are named here.
fn loom(tests: &mut Tests) -> Result<bool> {
    let arguments = ["--release", "--quiet", "--lib", "-p", "wirevault-telemetry", "loom_tests"];
    // A folder of its own, or every dependency would be built anew each time.
    let set = [("RUSTFLAGS", "--cfg loom"), ("CARGO_TARGET_DIR", "target/loom")];
    counted(tests, "test", &arguments, &set)
}

fn test(tests: &mut Tests) -> Result<bool> {
    let nextest = Command::new("cargo").args(["nextest", "--version"]).output();
    if nextest.is_ok_and(|output| output.status.success()) {
        let profile = if in_ci() { "ci" } else { "default" };
        return counted(tests, "nextest", &["run", "--workspace", "--profile", profile], &[]);
    }
    println!("cargo-nextest is not installed; using `cargo test`, one test at a time");
    let arguments = ["--workspace", "--lib", "--bins", "--tests", "--no-fail-fast"];
    counted(tests, "test", &arguments, &[("RUST_TEST_THREADS", "1")])
}

fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false")
}

/// Runs cargo with our standard output and error.
fn cargo(command: &str, arguments: &[&str], set: &[(&str, &str)]) -> Result<bool> {
    let status = prepared(command, arguments, set)
        .status()
        .with_context(|| format!("cannot start `cargo {command}`"))?;
    Ok(status.success())
}

/// Runs cargo, passes its output on, and adds up the tests that it reports.
fn counted(
    tests: &mut Tests,
    command: &str,
    arguments: &[&str],
    set: &[(&str, &str)],
) -> Result<bool> {
    let mut cargo = prepared(command, arguments, set);
    // One pipe for both streams keeps their order. It is no terminal, so colours are asked for.
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    if std::io::stdout().is_terminal() {
        cargo.env("CARGO_TERM_COLOR", "always");
    }
    cargo.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = cargo.spawn().with_context(|| format!("cannot start `cargo {command}`"))?;
    // The command holds our ends of the pipe; without this the reader below never sees its end.
    drop(cargo);
    let mut from = BufReader::new(reader);
    let mut line = Vec::new();
    let runner = if command == "nextest" { Runner::Nextest } else { Runner::Libtest };
    while from.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        print!("{text}");
        tests.count(runner, &text);
        line.clear();
    }
    Ok(child.wait()?.success())
}

fn prepared(command: &str, arguments: &[&str], set: &[(&str, &str)]) -> Command {
    let mut cargo = Command::new("cargo");
    cargo.arg(command).current_dir(root());
    // `cargo run` tells its child about itself, which would mislead the build scripts of others.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_") || name == "CARGO_MANIFEST_DIR" {
            cargo.env_remove(name);
        }
    }
    let (own, passed_on) = match arguments.iter().position(|argument| *argument == "--") {
        Some(at) => arguments.split_at(at),
        None => (arguments, &[][..]),
    };
    cargo.args(own);
    if in_ci() && command != "fmt" {
        cargo.arg("--locked");
    }
    cargo.args(passed_on).envs(set.iter().copied());
    cargo
}

/// Who says how many tests ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Runner {
    Nextest,
    Libtest,
}

/// Tests reported by the runners.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tests {
    passed: u64,
    /// Of those that passed: with a further try only.
    flaky: u64,
    failed: u64,
    skipped: u64,
}

impl Tests {
    /// Reads the runner's closing line; any other line changes nothing. nextest prints what a
    /// failed test said, twice, and that ends with the closing line of libtest.
    fn count(&mut self, runner: Runner, line: &str) {
        let plain = without_colours(line);
        let plain = plain.trim();
        let counts = match runner {
            Runner::Nextest if plain.starts_with("Summary [") => plain.rsplit_once(" run: "),
            Runner::Libtest if plain.starts_with("test result: ") => plain.rsplit_once(". "),
            _ => None,
        };
        for part in counts.map_or("", |(_, counts)| counts).split([',', ';', '(', ')']) {
            let mut words = part.split_whitespace();
            let number = words.next().and_then(|word| word.parse::<u64>().ok());
            match (number, words.next()) {
                (Some(number), Some("passed")) => self.passed += number,
                (Some(number), Some("flaky")) => self.flaky += number,
                (Some(number), Some("failed" | "exec" | "timed")) => self.failed += number,
                (Some(number), Some("skipped" | "ignored")) => self.skipped += number,
                _ => {}
            }
        }
    }
}

/// The text without SGR sequences (ECMA-48, section 8.3.117).
fn without_colours(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let head = parts.next().unwrap_or_default().to_owned();
    parts.fold(head, |plain, part| plain + part.split_once('m').map_or(part, |(_, rest)| rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(runner: Runner, lines: &str) -> (u64, u64, u64) {
        let mut tests = Tests::default();
        lines.lines().for_each(|line| tests.count(runner, line));
        (tests.passed, tests.failed, tests.skipped)
    }

    #[test]
    fn closing_lines_of_both_runners_are_read() {
        let summary =
            "     Summary [   0.170s] 14 tests run: 11 passed (1 slow), 3 failed, 2 skipped";
        assert_eq!(counts(Runner::Nextest, summary), (11, 3, 2));
        let coloured = "\u{1b}[32;1m     Summary\u{1b}[0m [ 0.1s] \u{1b}[1m1\u{1b}[0m test run: \
                        \u{1b}[1m1\u{1b}[0m \u{1b}[32;1mpassed\u{1b}[0m, 0 skipped";
        assert_eq!(counts(Runner::Nextest, coloured), (1, 0, 0));
        let libtest = "test result: FAILED. 2 passed; 1 failed; 4 ignored; 0 measured; \
                       9 filtered out; finished in 0.08s";
        assert_eq!(counts(Runner::Libtest, libtest), (2, 1, 4));
        assert_eq!(counts(Runner::Libtest, "the run: 5 passed"), (0, 0, 0));
    }

    #[test]
    fn a_test_that_passed_with_its_second_try_is_told() {
        let summary = "     Summary [   9.170s] 9 tests run: 8 passed (1 slow, 2 flaky), 1 failed, \
                       0 skipped";
        let mut tests = Tests::default();
        tests.count(Runner::Nextest, summary);
        assert_eq!(tests, Tests { passed: 8, flaky: 2, failed: 1, skipped: 0 });
    }

    /// The output of the failed test is printed at once and again at the end, each time with the
    /// closing line of its own process.
    #[test]
    fn a_failed_test_is_counted_once() {
        let output = "        FAIL [   0.010s] (1/2) a::b c
  stdout ---

    running 1 test
    test c ... FAILED

    test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 7 filtered out; finished in 0s

        PASS [   0.010s] (2/2) a::b d
------------
     Summary [   0.170s] 2 tests run: 1 passed, 1 failed, 0 skipped
        FAIL [   0.010s] (1/2) a::b c
  stdout ---

    running 1 test
    test c ... FAILED

    test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 7 filtered out; finished in 0s
";
        assert_eq!(counts(Runner::Nextest, output), (1, 1, 0));
    }
}
