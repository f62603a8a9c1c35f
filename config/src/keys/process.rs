//! The process itself: `cpus`, `log`.

use super::Without::{Nothing, Value};
use super::{CPU_MAX, Key, Kind, hidden, key};
use crate::settings::{LogLevel, Topology};

const CPUS: Kind = Kind::Cpus;

pub(super) const KEYS: &[Key] = &[
    hidden(key(
        "cpus",
        Kind::Section,
        Nothing,
        "",
        "Which CPUs do what. Without it the system decides.",
    )),
    hidden(key(
        "cpus.lanes",
        Kind::List(&CPUS, CPU_MAX as usize),
        Nothing,
        "[2, 3-5]",
        "CPUs for the lanes, in the order of the interfaces: at least one for each lane. Other \
         threads are kept off them, and get CPUs of their own while there are some.",
    )),
    hidden(key(
        "cpus.topology",
        Kind::Choice(Topology::NAMES),
        Value("auto"),
        "auto",
        "Threads: `split` has one for each lane and one that seals for it; with \
         `run_to_completion` lanes seal themselves; `auto` takes `split` if each of its threads \
         can have a CPU.",
    )),
    key(
        "log",
        Kind::Choice(LogLevel::NAMES),
        Value("info"),
        "info",
        "The least important messages to log.",
    ),
];
