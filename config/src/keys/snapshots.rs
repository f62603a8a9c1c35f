//! Checkpoints of the recorder's state: `snapshots`.

use super::Without::{Fault, Nothing, Value};
use super::{DAY_MS, Key, Kind, PATH_BYTES_MAX, SECOND_MS, hidden, key, millis};

/// Checkpoints kept at most: a month of one an hour.
const KEEP_MAX: u64 = 1000;

pub(super) const KEYS: &[Key] = &[
    hidden(key(
        "snapshots",
        Kind::Section,
        Nothing,
        "",
        "Checkpoints of the recorder's state, to restore it from: this configuration, the audit \
         log, the list of holds and the catalog of segments. No packet and no key is in them.",
    )),
    hidden(key(
        "snapshots.folder",
        Kind::Path(PATH_BYTES_MAX),
        Fault,
        "/var/lib/wirevault-state",
        "Folder that they are written to, and that is to be backed up: not on a volume, and on a \
         disk that outlives them. Any copy of it, taken at any instant, can be restored from.",
    )),
    hidden(key(
        "snapshots.every",
        millis(SECOND_MS, DAY_MS),
        Value("15min"),
        "15min",
        "Time between two checkpoints. One more is taken when the recorder ends.",
    )),
    hidden(key(
        "snapshots.keep",
        Kind::Count { min: 2, max: KEEP_MAX },
        Value("24"),
        "24",
        "Checkpoints that stay. What did not change between them is there once.",
    )),
];
