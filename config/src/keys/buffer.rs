//! Packets on their way to the disk: `buffer`, and how long they wait where.

use wirevault_format::limits::CHUNK_BYTES;

use super::Without::{Nothing, Value};
use super::{DAY_MS, GIB, Key, Kind, MIB, SECOND_MS, key, millis, size};
use crate::settings::Hugepages;

pub(super) const KEYS: &[Key] = &[
    key("buffer", Kind::Section, Nothing, "", "Memory for packets on their way to the disk."),
    key(
        "buffer.size",
        size(4 * MIB, 256 * GIB, CHUNK_BYTES as u64),
        Value("64MiB"),
        "64MiB",
        "Bytes of the buffer. It bridges pauses of the disk; every lane needs 1MiB at least.",
    ),
    key(
        "buffer.hugepages",
        Kind::Choice(Hugepages::NAMES),
        Value("auto"),
        "auto",
        "Pages to use: `auto` takes the largest that can be had; `wirevault status` says which.",
    ),
    key(
        "flush_age",
        millis(1, 10 * SECOND_MS),
        Value("250ms"),
        "250ms",
        "Longest time that a packet waits in memory on a quiet link.",
    ),
    key(
        "commit_interval",
        millis(1, 10 * SECOND_MS),
        Value("100ms"),
        "100ms",
        "Time between two flushes of the disk's cache. What is not flushed may be lost in a crash.",
    ),
    key(
        "segment_age",
        millis(10 * SECOND_MS, 7 * DAY_MS),
        Value("1h"),
        "1h",
        "Longest time that a segment is written to. Segments are what is deleted as a whole.",
    ),
];
