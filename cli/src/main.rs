//! `wirevault`: the command line for the people who ask questions of a store.
//!
//! ```text
//!  args ──► verbs ──┬─► a store, read directly:  index, query
//!                   └─► the daemon:              client (HTTP over a unix socket)
//!             │
//!             ├─► answer: lines, pcapng, pcap, a number      standard output or -w
//!             └─► summary: is it complete?                   standard error and --summary
//! ```
//! Invariants:
//! - what a program may read goes to standard output, what people should know to standard error;
//! - an answer that was cut is never exit code 0, unless the reader of a pipe cut it;
//! - a store that is only asked is only read: no lock, no write.

#![forbid(unsafe_code)]

mod answer;
mod args;
mod client;
mod error;
mod interrupt;
mod outcome;
mod output;
mod place;
mod progress;
mod verbs;

use std::process::ExitCode;

use clap::Parser;

use args::{Arguments, Verb};
use error::CliError;
use outcome::Outcome;
use output::{Paint, tell};
use wirevault_index::error::chain;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are such errors too. A closed pipe is nothing to complain about.
            let _ = error.print();
            let outcome = if error.use_stderr() { Outcome::Error } else { Outcome::Found };
            return outcome.into();
        }
    };
    match run(&arguments) {
        Ok(outcome) => outcome.into(),
        Err(error) if error.is_closed_pipe() => Outcome::Found.into(),
        Err(error) => {
            tell(&format!("{}: {}", Paint::stderr().bad("wirevault"), chain(&error)));
            Outcome::Error.into()
        }
    }
}

fn run(arguments: &Arguments) -> Result<Outcome, CliError> {
    match &arguments.verb {
        Verb::Init(args) => verbs::init::init(args),
        Verb::Import(args) => verbs::import::import(args),
        Verb::Query(args) => verbs::query::query(args),
        Verb::Flows(args) => verbs::flows::list(args),
        Verb::Tail(args) => verbs::tail::tail(args),
        Verb::Status(args) => verbs::status::show(args),
        Verb::Segments(args) => verbs::segments::list(args),
        Verb::Verify(args) => verbs::verify::verify(args),
        Verb::Lifecycle(verb) => verbs::delete::lifecycle(verb),
        Verb::Delete(args) => verbs::delete::delete(args),
        Verb::Hold(verb) => verbs::hold::hold(verb),
        Verb::Certificate(verb) => verbs::certificate::certificate(verb),
        Verb::Key(verb) => verbs::key::key(verb),
        Verb::Cloudwatch(verb) => verbs::cloudwatch::cloudwatch(verb),
        Verb::Metrics(verb) => verbs::metrics::metrics(verb),
        Verb::Audit(verb) => verbs::audit::audit(verb),
        Verb::Snapshot(verb) => verbs::snapshot::snapshot(verb),
        Verb::Doctor(args) => verbs::doctor::doctor(args),
        Verb::Volume(verb) => verbs::volume::volume(verb),
        Verb::Inspect(verb) => verbs::inspect::inspect(verb),
        Verb::Generate(args) => verbs::generate::generate(args),
    }
}
