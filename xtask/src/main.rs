//! The project's own tooling: `cargo xtask`.
//!
//! - [`layers`]: crates depend downward only, and some never reach some others.
//! - [`tidy`]: what no compiler checks in the tracked files.
//! - [`licences`]: what other people's crates may be.
//! - [`counts`]: instructions that the small jobs of the packet path take.
//! - [`deb`]: the Debian package.
//! - [`ci`]: every check, in one command, the same here and on a server.

#![forbid(unsafe_code)]

mod ci;
mod counts;
mod deb;
mod layers;
mod licences;
mod reach;
mod tidy;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use cargo_metadata::{Metadata, MetadataCommand};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  ci [STAGE...]   the whole gate, or only the named stages of it
  layers          crates depend downward only; prints the table
  tidy            line lengths, banned words, big or unreachable files, links of the documents
  licences        licences, sources and bans of all dependencies
  loom            model checks of the lock-free parts
  deb [--programs FOLDER] [--revision N] [--out FOLDER]
                  the Debian package, of a release build or of programs that are built already
  counts [--note] instructions of codecs, dissecting, flow table and sealing, against those noted
";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["ci", stages @ ..] => ci::run(stages),
        ["loom"] => ci::run(&["loom"]),
        ["deb", options @ ..] => deb::run(options),
        ["counts"] => counts::run(false),
        ["counts", "--note"] => counts::run(true),
        ["layers"] => workspace().and_then(|metadata| report(&layers::check(&metadata)?)),
        ["tidy"] => workspace().and_then(|metadata| report(&tidy::check(&metadata)?)),
        ["licences"] => everything().and_then(|metadata| report(&licences::check(&metadata)?)),
        ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// The folder of the workspace.
fn root() -> PathBuf {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    own.parent().map_or(own.clone(), PathBuf::from)
}

/// The members of the workspace, without what they depend on: quick, and needs no network.
fn workspace() -> Result<Metadata> {
    let mut command = MetadataCommand::new();
    command.manifest_path(root().join("Cargo.toml")).no_deps();
    command.exec().context("`cargo metadata --no-deps` failed")
}

/// The members and everything they depend on, on any platform and with the features in use.
fn everything() -> Result<Metadata> {
    let mut command = MetadataCommand::new();
    command.manifest_path(root().join("Cargo.toml"));
    command.exec().context("`cargo metadata` failed")
}

/// What a command that has to succeed prints.
fn said(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(output.status.success(), "{command:?} failed");
    Ok(String::from_utf8(output.stdout)?)
}

/// Prints faults, one a line; true when there are none.
fn report(faults: &[String]) -> Result<bool> {
    for fault in faults {
        eprintln!("{fault}");
    }
    if !faults.is_empty() {
        eprintln!("{} fault(s)", faults.len());
    }
    Ok(faults.is_empty())
}
