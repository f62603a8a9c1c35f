//! Every key of the configuration, end to end: the real daemon, once with defaults and a few times
//! with everything else, and what is seen of each key from outside.
//!
//! A key enters the table of `config::keys` with a case here, or the gate fails.

mod access;
mod backup;
mod cases;
mod cloud;
mod cloudwatch;
mod kms;
mod policies;
mod runs;
mod sources;
mod tier;

use std::collections::BTreeSet;

use wirevault_config::keys::{Kind, TABLE};
use wirevault_testkit::net::Namespace;

use cases::CASES;
use runs::Runs;

#[test]
fn every_key_has_a_case() {
    // A mapping does nothing by itself; its keys do.
    let keys = TABLE.iter().filter(|key| !matches!(key.kind, Kind::Section));
    let keys: BTreeSet<_> = keys.map(|key| key.path).collect();
    let cases: BTreeSet<_> = CASES.iter().map(|case| case.key).collect();
    assert_eq!(keys, cases, "left: keys of the table, right: keys with a case here");
}

#[test]
fn every_key_has_its_effect() {
    let Some(ns) = Namespace::new() else { return };
    let runs = Runs::make(&ns);
    for case in CASES {
        println!("{:<24} {}", case.key, case.effect);
        (case.check)(&runs);
    }
}
