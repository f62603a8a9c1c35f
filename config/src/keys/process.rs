//! The process itself: `cpus`, `log`, `sandbox`.

use super::Without::{Nothing, Value};
use super::{CPU_MAX, Key, Kind, hidden, key};
use crate::settings::{LogLevel, Sandbox, Topology};

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
    key(
        "sandbox",
        Kind::Choice(Sandbox::NAMES),
        Value("auto"),
        "auto",
        "What the recorder gives up once it records: rights that it does not need, files that are \
         not its own, and system calls such as starting a program. `auto` gives up what this \
         kernel lets it, `on` does not start where that is not all, `off` gives up nothing.",
    ),
];
